package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

// TestImage runs what scripts/container/build puts into an image as a container would: the static binary in a root of its own, where nothing else is but /proc and /sys, with the capabilities that docs/privileges.md names and no others.
func TestImage(t *testing.T) {
	needRoot(t)
	if netlab.NICs() != nil {
		t.Skipf("%s: %v: the guest has no Go to compile the program with", t.Name(), netlab.ErrNICs)
	}
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	lab.PeerAddr = secondPeerAddr(t, lab)
	root := openFolder(t)
	if out, err := exec.CommandContext(t.Context(), "../../scripts/container/build", "--root", root).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for folder, fs := range map[string]string{"proc": "proc", "sys": "sysfs"} {
		path := filepath.Join(root, folder)
		if err := errors.Join(os.Mkdir(path, 0o755), unix.Mount(fs, path, fs, unix.MS_RDONLY, "")); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
	}
	if err := os.WriteFile(filepath.Join(root, "file"), []byte("of the files"), 0o644); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/xdpd", "run", "--interface", "xa0", "--address", "10.77.0.2/24", "--ledger", "--user", fmt.Sprint(nobody),
		"--services", "echo,http=80:/", "--services", "proxy=81:tcp:"+lab.PeerAddr.String()+":8001")
	cmd.Env = []string{}
	asNobody(cmd, unix.CAP_NET_RAW, unix.CAP_NET_ADMIN, unix.CAP_BPF, unix.CAP_IPC_LOCK, unix.CAP_SETPCAP)
	cmd.SysProcAttr.Chroot = root
	d := startDaemon(t, lab, cmd, filepath.Join(root, "run/xdpd/xa0.sock"))
	d.tcpBackend(t, 8001, "p")
	d.powerless(t)
	eventually(t, "the backend", func() bool { return fmt.Sprint(d.state(t, "tcp")) == "[up]" })
	d.exchange(t)
	d.powerless(t)
	d.stop(t)
}
