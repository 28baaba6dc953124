package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"
)

// queueHolder names the process whose AF_XDP socket has a queue, as far as the kernel tells. Of other users only root sees it.
func queueHolder(ifindex, queue int) string {
	sockets, err := netlink.SocketDiagXDP()
	if err != nil { // a kernel without CONFIG_XDP_SOCKETS_DIAG
		return ringHolders()
	}
	for _, s := range sockets {
		if s.XDPDiagMsg == nil || s.XDPInfo == nil || int(s.XDPInfo.Ifindex) != ifindex || int(s.XDPInfo.QueueID) != queue {
			continue
		}
		if who := socketOwner(s.XDPDiagMsg.Ino); who != "" {
			return who + ", which has the queue"
		}
	}
	return "the program that has the queue (ss --xdp -p)"
}

// socketOwner finds a process that has the socket open, or "".
func socketOwner(inode uint32) string {
	want := fmt.Sprintf("socket:[%d]", inode)
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*") // the pattern is well formed
	for _, file := range files {
		if link, err := os.Readlink(file); err == nil && link == want {
			return processName(filepath.Dir(filepath.Dir(file)))
		}
	}
	return ""
}

// ringHolders lists processes that have rings of sockets mapped: mostly AF_XDP's, else AF_PACKET's.
func ringHolders() string {
	var found []string
	files, _ := filepath.Glob("/proc/[0-9]*/maps")
	for _, file := range files {
		if maps, err := os.ReadFile(file); err == nil && bytes.Contains(maps, []byte(" socket:[")) {
			found = append(found, processName(filepath.Dir(file)))
		}
	}
	if len(found) == 0 {
		return "the program that has the queue"
	}
	return "whichever has the queue of those with rings of sockets: " + strings.Join(found, ", ")
}

func processName(dir string) string {
	comm, _ := os.ReadFile(filepath.Join(dir, "comm")) // it may have ended by now
	return fmt.Sprintf("process %s (%s)", filepath.Base(dir), strings.TrimSpace(string(comm)))
}
