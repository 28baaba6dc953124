package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"kernel.org/pub/linux/libs/security/libcap/cap"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/rings"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// givenSocket is where an operation finds an AF_XDP socket that was opened for it.
const givenSocket = 3

// operations are the rows of the table in docs/privileges.md. They run in a namespace with xa0.
var operations = map[string]func() error{
	"socket": func() error {
		_, _, err := newRawSocket()
		return err
	},
	"memory": func() error {
		limit := unix.Rlimit{Cur: 1 << 20, Max: 1 << 20}
		region, err := umem.New(umem.Options{Frames: 1024, ChunkSize: 2048})
		if err := errors.Join(err, unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit)); err != nil {
			return err
		}
		return registerMemory(givenSocket, region.Mem(), 2048)
	},
	"bind": func() error {
		d, err := findTrialDevice("xa0")
		if err != nil {
			return err
		}
		if d.region, err = umem.New(umem.Options{Frames: 64, ChunkSize: 2048}); err != nil {
			return err
		}
		given := func(int) (int, error) { return givenSocket, nil }
		return d.bind(rings.SocketOptions{Mode: xdpd.Copy, Make: given}, func(*rings.Socket) {})
	},
	"program": func() error {
		d, err := findTrialDevice("xa0")
		if err != nil {
			return err
		}
		return d.tryAttach(xdpprog.Native)
	},
	"send buffer": func() error {
		return unix.SetsockoptInt(givenSocket, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 8<<20)
	},
	"busy poll": func() error { return unix.SetsockoptInt(givenSocket, unix.SOL_SOCKET, unix.SO_PREFER_BUSY_POLL, 1) },
	"neighbour": func() error {
		link, err := netlink.LinkByName("xa0")
		if err != nil {
			return err
		}
		return netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link.Attrs().Index, Family: netlink.FAMILY_V4, IP: []byte{10, 77, 0, 1}, Flags: netlink.NTF_USE,
		})
	},
	"namespace": func() error {
		ns, err := netns.Get()
		if err != nil {
			return err
		}
		return netns.Set(ns)
	},
	"user": identity{"48111", 48111, 48111}.assume,
	"engine": func() error {
		st, err := xdpd.Open(xdpd.Config{
			Interface: "xa0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24")}, Frames: 1024,
		})
		if err != nil {
			return err
		}
		return st.Close()
	},
}

// TestPrivileges holds docs/privileges.md against the kernel: every operation works with the capabilities of its row alone, and
// without any one of them it is not permitted.
func TestPrivileges(t *testing.T) {
	text, err := os.ReadFile("../../docs/privileges.md")
	if err != nil {
		t.Fatal(err)
	}
	var rows []string
	for _, row := range regexp.MustCompile("(?m)^\\| `([a-z ]+)` \\|[^|]*\\| ([^|]*) \\|$").FindAllStringSubmatch(string(text), -1) {
		name, needs := row[1], regexp.MustCompile(`CAP_[A-Z_]+`).FindAllString(row[2], -1)
		if operations[name] == nil {
			t.Errorf("the table has %q, which is not tried", name)
			continue
		}
		if rows = append(rows, name); len(needs) == 0 && row[2] != "none" {
			t.Errorf("%s needs %q", name, row[2])
		}
		t.Run(name, func(t *testing.T) {
			if out, status := try(t, name, needs); status != 0 {
				t.Errorf("with %v: %s", needs, out)
			}
			for i := range needs {
				less := slices.Delete(slices.Clone(needs), i, i+1)
				out, status := try(t, name, less)
				refused := strings.Contains(out, "not permitted") || strings.Contains(out, "no buffer space") || strings.Contains(out, "permission denied")
				if status == 0 || !refused {
					t.Errorf("with %v alone the status is %d: %q", less, status, out)
				}
			}
		})
	}
	for name := range operations {
		if !slices.Contains(rows, name) {
			t.Errorf("the table does not have %q", name)
		}
	}
}

// try runs an operation as a user who has these capabilities.
func try(t *testing.T, name string, caps []string) (out string, status int) {
	var bits []uintptr
	for _, c := range caps {
		v, err := cap.FromName(strings.ToLower(c))
		if err != nil {
			t.Fatal(err)
		}
		bits = append(bits, uintptr(v))
	}
	inLab(t, netlab.Options{KernelAddr: name == "neighbour"}, func(*netlab.Lab, netlink.Link) {
		fd, _, err := newRawSocket()
		if err != nil {
			t.Fatal(err)
		}
		file := os.NewFile(uintptr(fd), "socket")
		defer file.Close()
		cmd := asNobody(childCommand(t, "try "+name), bits...)
		cmd.ExtraFiles = []*os.File{file}
		out, status = runChild(t, cmd)
	})
	return out, status
}

func tryOperation(name string) error {
	do, ok := operations[name]
	if !ok {
		return fmt.Errorf("there is no operation %q", name)
	}
	return do()
}
