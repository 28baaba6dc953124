package xdpprog

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
)

// nameAttached describes the program that is in the way, and whose it is, as far as the kernel tells.
func nameAttached(ifindex int) string {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		return fmt.Sprintf("asking which failed: %v", err)
	}
	xdp := l.Attrs().Xdp
	if xdp == nil || xdp.ProgId == 0 {
		return "not on this device itself; look at the bond or bridge above it"
	}
	name := programName(xdp.ProgId) // closed again before we look for who has it open
	return fmt.Sprintf("program id %d %s, %s; it is not touched, detach it first (bpftool net)",
		xdp.ProgId, name, owner(l.Attrs().Name, xdp.ProgId))
}

func programName(id uint32) string {
	// Opening a program by its id takes CAP_SYS_ADMIN, which the rest of this package does without.
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return "of unknown name"
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil || info.Name == "" {
		return "of unknown name"
	}
	return fmt.Sprintf("%q", info.Name)
}

// Owner says which program is attached to a device of the calling thread's network namespace, and whose it is: "" for none.
func Owner(ifindex int) string {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil || l.Attrs().Xdp == nil || l.Attrs().Xdp.ProgId == 0 {
		return ""
	}
	return nameAttached(ifindex)
}

// owner says who would have to let go of a program.
func owner(iface string, id uint32) string {
	if names := holders(id); len(names) > 0 {
		return "held by " + strings.Join(names, " and ")
	}
	pin, isLink := pinnedLink(id)
	switch {
	case pin != "":
		return fmt.Sprintf("held by the link pinned at %s (rm removes it)", pin)
	case isLink:
		return "held by a link that no process seen from here has"
	}
	// Privileges may be missing, and processes may be in other PID namespaces.
	return fmt.Sprintf("which no process seen from here holds: if it was attached by hand, "+
		"ip link set dev %s xdp off, or the same with xdpgeneric, removes it", iface)
}

// holders lists processes that have a descriptor of the program or of a link to it: both name it in /proc/PID/fdinfo
// (kernel/bpf/syscall.c, bpf_prog_show_fdinfo and bpf_link_show_fdinfo). It passes over those that it may not look into.
func holders(id uint32) (names []string) {
	want := fmt.Sprintf("prog_id:\t%d", id)
	processes, _ := filepath.Glob("/proc/[0-9]*") // the only error is one of the pattern
	for _, process := range processes {
		fds, _ := os.ReadDir(filepath.Join(process, "fd"))
		for _, fd := range fds {
			if holds(process, fd.Name(), want) {
				comm, _ := os.ReadFile(filepath.Join(process, "comm")) // gone: without its name
				names = append(names, fmt.Sprintf("process %s (%s)", filepath.Base(process), strings.TrimSpace(string(comm))))
				break
			}
		}
	}
	return names
}

func holds(process, fd, want string) bool {
	to, err := os.Readlink(filepath.Join(process, "fd", fd))
	if err != nil || !strings.HasPrefix(to, "anon_inode:bpf") {
		return false
	}
	text, _ := os.ReadFile(filepath.Join(process, "fdinfo", fd)) // closed meanwhile: it does not hold it
	return slices.Contains(strings.Split(string(text), "\n"), want)
}

// pinnedLink finds the link that holds a program on a device, and where in the BPF file system it is pinned, if it is.
func pinnedLink(id uint32) (path string, isLink bool) {
	var links link.Iterator
	defer links.Close()
	var found link.ID
	for !isLink && links.Next() {
		if info, err := links.Link.Info(); err == nil && info.Type == link.XDPType && uint32(info.Program) == id {
			found, isLink = info.ID, true
		}
	}
	if !isLink {
		return "", false
	}
	// What cannot be looked into is passed over: the answer is then that nobody knows.
	_ = filepath.WalkDir(bpffsPath(), func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil
		}
		l, err := link.LoadPinnedLink(name, nil)
		if err != nil {
			return nil
		}
		defer l.Close()
		if info, err := l.Info(); err == nil && info.ID == found {
			path = name
			return fs.SkipAll
		}
		return nil
	})
	return path, true
}
