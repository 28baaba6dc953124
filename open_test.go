package xdpd_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/xdpprog"
)

// leftovers lists what an engine holds in this process: sockets, BPF objects, eventfds and packet memory.
func leftovers(t *testing.T) map[string]int {
	t.Helper()
	found := make(map[string]int)
	paths, err := filepath.Glob("/proc/self/fd/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		target, _ := os.Readlink(p) // gone by now: another test's
		for _, kind := range []string{"socket:", "anon_inode:bpf", "anon_inode:[eventfd]", "/memfd:xdpd-umem"} {
			if strings.HasPrefix(target, kind) {
				found[kind]++
			}
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	found["memory"], found["rings"] = strings.Count(string(maps), "/memfd:xdpd-umem"), strings.Count(string(maps), "socket:[")
	return found
}

// TestOpenErrors: each names what is wrong, in words that a person can act on, and leaves nothing behind.
func TestOpenErrors(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	hasZeroCopy, _ := netlab.ZeroCopy()
	stranger := netip.MustParsePrefix("fd00::2/64")
	for _, c := range []struct {
		name string
		edit func(*xdpd.Config)
		want []string
		is   error
	}{
		{"no interface", func(c *xdpd.Config) { c.Interface = "" }, []string{"no interface"}, nil},
		{"wrong interface", func(c *xdpd.Config) { c.Interface = "eth77" }, []string{"eth77", "network namespace"}, unix.ENODEV},
		{"loopback", func(c *xdpd.Config) { c.Interface = "lo" }, []string{"lo", "no Ethernet"}, nil},
		{"no address", func(c *xdpd.Config) { c.Addrs = nil }, []string{"no address"}, nil},
		{"IPv6", func(c *xdpd.Config) { c.Addrs = []netip.Prefix{stranger} }, []string{"fd00::2/64", "IPv4"}, nil},
		{"multicast", func(c *xdpd.Config) { c.Addrs = []netip.Prefix{netip.MustParsePrefix("224.0.0.1/24")} },
			[]string{"224.0.0.1"}, nil},
		{"gateway", func(c *xdpd.Config) { c.Gateway = netip.MustParseAddr("10.1.1.1") }, []string{"10.1.1.1", "subnet"}, nil},
		{"own gateway", func(c *xdpd.Config) { c.Gateway = c.Addrs[0].Addr() }, []string{"gateway", "own address"}, nil},
		{"IPv6 gateway", func(c *xdpd.Config) { c.Gateway = stranger.Addr() }, []string{"fd00::2", "IPv4"}, nil},
		{"missing queue", func(c *xdpd.Config) { c.Queues = []int{7} }, []string{"xa0", "no queue 7", "it has 1"}, unix.EINVAL},
		{"negative queue", func(c *xdpd.Config) { c.Queues = []int{-1} }, []string{"xa0", "queue -1"}, nil},
		{"one queue twice", func(c *xdpd.Config) { c.Queues = []int{0, 0} }, []string{"queue 0", "twice"}, nil},
		{"no queues", func(c *xdpd.Config) { c.Queues = []int{} }, []string{"empty list of queues"}, nil},
		{"many queues", func(c *xdpd.Config) {
			for q := range 65 {
				c.Queues = append(c.Queues, q)
			}
		}, []string{"65 queues of xa0", "64 at most"}, nil},
		{"few frames", func(c *xdpd.Config) { c.Frames = 10 }, []string{"10 frames", "64"}, nil},
		{"chunk size", func(c *xdpd.Config) { c.ChunkSize = 1000 }, []string{"1000", "2048", "4096"}, nil},
		{"CPUs", func(c *xdpd.Config) { c.CPUs = []int{0, 1, 0} }, []string{"3 CPUs", "reactors"}, nil},
		{"no such CPU", func(c *xdpd.Config) { c.CPUs = []int{1023} }, []string{"CPU 1023"}, unix.EINVAL},
		{"zero copy", func(c *xdpd.Config) { c.Mode = xdpd.ZeroCopy }, []string{"xa0", "queue 0", "zero copy", "copy mode"}, nil},
		{"namespace", func(c *xdpd.Config) { c.NetNS = "nowhere-77" }, []string{"nowhere-77"}, unix.ENOENT},
		{"no namespace", func(c *xdpd.Config) { c.NetNS = "/dev/null" }, []string{"/dev/null"}, unix.EINVAL},
		{"VLAN", func(c *xdpd.Config) { c.VLANs = []uint16{4095} }, []string{"VLAN 4095"}, nil},
		{"three VLANs", func(c *xdpd.Config) { c.VLANs = []uint16{1, 2, 3} }, []string{"3 VLAN"}, nil},
		{"share with addresses", func(c *xdpd.Config) { c.Share = true }, []string{"Addrs", "Share"}, nil},
		{"share without addresses", func(c *xdpd.Config) { c.Share, c.Addrs = true, nil },
			[]string{"xa0", "no IPv4 address", "ip addr add"}, nil},
	} {
		if c.name == "zero copy" && hasZeroCopy {
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			before := leftovers(t)
			cfg := engineConfig(lab)
			c.edit(&cfg)
			stack, err := xdpd.Open(cfg)
			if err == nil {
				stack.Close()
				t.Fatal("no error")
			}
			for _, word := range c.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%q does not say %q", err, word)
				}
			}
			if c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%q is not %q", err, c.is)
			}
			checkDetached(t, lab)
			if after := leftovers(t); fmt.Sprint(after) != fmt.Sprint(before) {
				t.Errorf("%q leaves %v, where there was %v", err, after, before)
			}
		})
	}
	stack := openStack(t, lab, engineConfig(lab)) // and the interface is as good as new
	_, to := echo(t, lab, stack)
	ask(t, kernelUDP(t, lab.Peer, netip.AddrPort{}, to), "hello")
}

// TestOpenLargeMTU: frames that are too small for the MTU are refused.
func TestOpenLargeMTU(t *testing.T) {
	lab := newLab(t, netlab.Options{MTU: 65535})
	cfg := engineConfig(lab)
	cfg.ChunkSize = 2048
	stack, err := xdpd.Open(cfg)
	if err == nil {
		stack.Close()
		t.Fatal("no error")
	}
	for _, word := range []string{"xa0", "65535", "32234", "larger frames", "ip link set xa0 mtu"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
	checkDetached(t, lab)
}

// TestCloseLeavesNothing opens and closes engines on one interface, one after the other.
func TestCloseLeavesNothing(t *testing.T) {
	lab := newLab(t, netlab.Options{Queues: 2})
	before := leftovers(t)
	for range 5 {
		stack, err := xdpd.Open(engineConfig(lab))
		if err != nil {
			t.Fatal(err)
		}
		for what, n := range leftovers(t) {
			if n <= before[what] {
				t.Errorf("an open engine has %d of %s, where there was %d", n, what, before[what])
			}
		}
		ping(t, lab.Peer, lab.EngineAddr, 1)
		if err := stack.Close(); err != nil {
			t.Fatal(err)
		}
		checkDetached(t, lab)
		if after := leftovers(t); fmt.Sprint(after) != fmt.Sprint(before) {
			t.Errorf("left: %v, where there was %v", after, before)
		}
	}
}

// TestOpenTwice: the second engine is refused and the first does not notice.
func TestOpenTwice(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	ask(t, c, "before")
	before := leftovers(t)
	second, err := xdpd.Open(engineConfig(lab))
	if err == nil {
		second.Close()
		t.Fatal("a second engine was opened")
	}
	for _, word := range []string{lab.EngineDev, "queue 0", "another AF_XDP socket"} {
		if !errors.Is(err, unix.EBUSY) || !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not %v or does not say %q", err, unix.EBUSY, word)
		}
	}
	if after := leftovers(t); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the refused engine leaves %v, where there was %v", after, before)
	}
	ask(t, c, "after")
}

// attachedProgram is the id of the XDP program on the engine's interface, 0 for none.
func attachedProgram(t *testing.T, lab *netlab.Lab) (id uint32) {
	t.Helper()
	in(t, lab.Engine, func() error {
		l, err := netlink.LinkByName(lab.EngineDev)
		if err == nil && l.Attrs().Xdp != nil {
			id = l.Attrs().Xdp.ProgId
		}
		return err
	})
	return id
}

// TestForeignProgram: a program that somebody else attached stays, and is named.
func TestForeignProgram(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "somebody", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()}, // XDP_PASS
	})
	if err != nil {
		t.Fatal(err)
	}
	defer prog.Close()
	var attached link.Link
	in(t, lab.Engine, func() error {
		l, err := netlink.LinkByName(lab.EngineDev)
		if err == nil {
			attached, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: l.Attrs().Index})
		}
		return err
	})
	id := attachedProgram(t, lab)
	stack, err := xdpd.Open(engineConfig(lab))
	if err == nil {
		stack.Close()
		t.Fatal("no error")
	}
	for _, word := range []string{lab.EngineDev, "somebody", fmt.Sprint(id)} {
		if !errors.Is(err, xdpprog.ErrBusy) || !strings.Contains(err.Error(), word) {
			t.Errorf("%q is not %q or does not say %q", err, xdpprog.ErrBusy, word)
		}
	}
	if now := attachedProgram(t, lab); now != id || id == 0 {
		t.Errorf("the program attached was %d, and is now %d", id, now)
	}
	// Detach, because a forked child may hold a copy of the descriptor for a moment.
	if err := errors.Join(attached.Detach(), attached.Close()); err != nil {
		t.Fatal(err)
	}
	openStack(t, lab, engineConfig(lab))
}

// TestFramesDuringOpen floods the interface while the engine opens: from the first frame on that is steered to it there
// must be a place to receive into.
func TestFramesDuringOpen(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	w := openWire(t, lab.Peer, lab.PeerDev, unix.ETH_P_ARP)
	mac, us := macOf(t, lab.Engine, lab.EngineDev), protoAddr(t, lab.EngineAddr)
	for range 3 {
		stop := make(chan struct{})
		flooding := blocked(func() error {
			for {
				select {
				case <-stop:
					return nil
				default:
					w.send(probeFor(us, w.mac, mac))
				}
			}
		})
		stack, err := xdpd.Open(engineConfig(lab))
		close(stop)
		await(t, flooding, "the end of the flood")
		if err != nil {
			t.Fatal(err)
		}
		if got := drops(t, stack, "kernel_rx_fill_ring_empty"); got != 0 {
			t.Errorf("%d frames found the fill ring empty", got)
		}
		if err := stack.Close(); err != nil {
			t.Error(err)
		}
	}
}

// childEnv tells the test binary to be TestUnprivileged's child: it opens an engine on the interface named.
const childEnv = "XDPD_TEST_OPEN"

// TestUnprivileged runs Open as user 65534 with some capabilities: without one that it needs the error names it, and
// with those that the documentation asks for it works.
func TestUnprivileged(t *testing.T) {
	if dev := os.Getenv(childEnv); dev != "" {
		openAsChild(dev)
	}
	lab := newLab(t, netlab.Options{})
	for _, c := range []struct {
		caps []uintptr
		want string
	}{
		{nil, "CAP_NET_RAW"},
		{[]uintptr{unix.CAP_NET_ADMIN, unix.CAP_BPF}, "CAP_NET_RAW"},
		{[]uintptr{unix.CAP_NET_RAW, unix.CAP_BPF}, "CAP_NET_ADMIN"},
		{[]uintptr{unix.CAP_NET_RAW, unix.CAP_NET_ADMIN}, "CAP_BPF"},
		{[]uintptr{unix.CAP_NET_RAW, unix.CAP_NET_ADMIN, unix.CAP_BPF}, "opened and closed"},
	} {
		cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run=^TestUnprivileged$")
		cmd.Env = append(os.Environ(), childEnv+"="+lab.EngineDev)
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Credential: &syscall.Credential{Uid: 65534, Gid: 65534}, AmbientCaps: c.caps,
		}
		var out strings.Builder
		cmd.Stdout, cmd.Stderr = &out, &out
		err := lab.Engine.Start(cmd)
		if err == nil {
			err = cmd.Wait()
		}
		if err != nil || !strings.Contains(out.String(), c.want) {
			t.Errorf("with capabilities %v: %v, %q; want %q", c.caps, err, out.String(), c.want)
		}
		checkDetached(t, lab)
	}
}

// openAsChild opens an engine and says on stdout what came of it. Few frames, for RLIMIT_MEMLOCK counts here.
func openAsChild(dev string) {
	stack, err := xdpd.Open(xdpd.Config{
		Interface: dev, Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.2/24")}, Frames: 256,
	})
	if err == nil {
		if err = stack.Close(); err == nil {
			err = errors.New("opened and closed")
		}
	}
	fmt.Println(err)
	os.Exit(0)
}

// TestShutdown waits for what was written.
func TestShutdown(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	peer := kernelUDP(t, lab.Peer, netip.AddrPortFrom(lab.PeerAddr, 900), netip.AddrPort{})
	c := listen(t, stack, ":0")
	if _, err := c.WriteTo([]byte("last words"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(lab.PeerAddr, 900))); err != nil {
		t.Fatal(err)
	}
	if err := stack.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
	buf := make([]byte, 16)
	peer.SetReadDeadline(time.Now().Add(patience))
	if n, err := peer.Read(buf); err != nil || string(buf[:n]) != "last words" {
		t.Errorf("the peer got %q, %v", buf[:n], err)
	}
}
