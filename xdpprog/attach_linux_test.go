package xdpprog

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func TestAttachNative(t *testing.T) {
	enterNS(t)
	engine, _ := newVeth(t, 1500, 2)
	for _, attach := range []Attach{BestAttach, Native} {
		c := testConfig(Own, engine.Attrs().Index)
		c.Attach = attach
		p, err := Load(c)
		if err != nil {
			t.Fatal(err)
		}
		// Nothing but p keeps the link alive from here on: a collected link would detach.
		runtime.GC()
		if !p.Native() || p.Frags() || p.NativeRefused() != nil {
			t.Errorf("native %v frags %v refused %v", p.Native(), p.Frags(), p.NativeRefused())
		}
		if got := attachedXDP(t, engine); got.AttachMode != nl.XDP_ATTACHED_DRV || got.ProgId != programID(t, p.objs.Steer) {
			t.Errorf("the kernel says %+v", got)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
		if got := attachedXDP(t, engine); got.Attached {
			t.Errorf("after Close: %+v", got)
		}
		if err := p.Close(); err != nil {
			t.Errorf("second Close: %v", err)
		}
	}
}

// veth wants a program for frames of several buffers above one page of MTU.
func TestAttachJumbo(t *testing.T) {
	enterNS(t)
	engine, _ := newVeth(t, 9000, 1)
	p, err := Load(testConfig(Own, engine.Attrs().Index))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if !p.Native() || !p.Frags() || !errors.Is(p.NativeRefused(), unix.ERANGE) {
		t.Errorf("native %v frags %v refused %v", p.Native(), p.Frags(), p.NativeRefused())
	}
}

func TestAttachGeneric(t *testing.T) {
	enterNS(t)
	engine, _ := newVeth(t, 1500, 2)
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "bridge0"
	if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
		t.Fatal(err)
	}
	bridge := setUp(t, "bridge0") // its driver has no XDP

	for _, c := range []struct {
		dev     netlink.Link
		attach  Attach
		refused error
	}{
		{engine, Generic, nil},
		{bridge, Generic, nil},
		{bridge, BestAttach, unix.EOPNOTSUPP},
	} {
		conf := testConfig(Own, c.dev.Attrs().Index)
		conf.Attach = c.attach
		p, err := Load(conf)
		if err != nil {
			t.Fatal(err)
		}
		if got := attachedXDP(t, c.dev); p.Native() || got.AttachMode != nl.XDP_ATTACHED_SKB {
			t.Errorf("%s: native %v, the kernel says %+v", c.dev.Attrs().Name, p.Native(), got)
		}
		if !errors.Is(p.NativeRefused(), c.refused) {
			t.Errorf("%s: refused %v, want %v", c.dev.Attrs().Name, p.NativeRefused(), c.refused)
		}
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	}

	conf := testConfig(Own, bridge.Attrs().Index)
	conf.Attach = Native
	_, err := Load(conf)
	if !errors.Is(err, unix.EOPNOTSUPP) {
		t.Fatalf("native on a bridge: %v", err)
	}
	for _, want := range []string{"under-test", "no native XDP"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not say %s", err, want)
		}
	}
	if got := attachedXDP(t, bridge); got.Attached {
		t.Errorf("a refused attach left %+v", got)
	}
}

// stranger loads somebody else's program.
func stranger(t *testing.T) *ebpf.Program {
	t.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "stranger", Type: ebpf.XDP, License: "GPL",
		Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, xdpPass), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

func TestBusy(t *testing.T) {
	enterNS(t)
	engine, _ := newVeth(t, 1500, 2)
	other := stranger(t)
	byLink := func(mode link.XDPAttachFlags) func() func() error {
		return func() func() error {
			l, err := link.AttachXDP(link.XDPOptions{Program: other, Interface: engine.Attrs().Index, Flags: mode})
			if err != nil {
				t.Fatal(err)
			}
			return l.Close
		}
	}
	byNetlink := func(mode int) func() func() error {
		return func() func() error {
			if err := netlink.LinkSetXdpFdWithFlags(engine, other.FD(), mode); err != nil {
				t.Fatal(err)
			}
			return func() error { return netlink.LinkSetXdpFdWithFlags(engine, -1, mode) }
		}
	}
	for how, put := range map[string]func() func() error{
		"link, native":     byLink(link.XDPDriverMode),
		"link, generic":    byLink(link.XDPGenericMode),
		"netlink, native":  byNetlink(nl.XDP_FLAGS_DRV_MODE),
		"netlink, generic": byNetlink(nl.XDP_FLAGS_SKB_MODE),
	} {
		remove := put()
		before := attachedXDP(t, engine)
		for _, attach := range []Attach{BestAttach, Native, Generic} {
			c := testConfig(Share, engine.Attrs().Index)
			c.Attach = attach
			_, err := Load(c)
			id := fmt.Sprintf("program id %d \"stranger\"", programID(t, other))
			if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), id) || !strings.Contains(err.Error(), "under-test") {
				t.Errorf("%s, attach %d: %v", how, attach, err)
			}
			if now := attachedXDP(t, engine); now != before {
				t.Errorf("%s, attach %d: %+v became %+v", how, attach, before, now)
			}
		}
		if err := remove(); err != nil {
			t.Fatal(err)
		}
	}
	// Another engine on the same device is a stranger like any other.
	p, err := Load(testConfig(Own, engine.Attrs().Index))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	_, err = Load(testConfig(Own, engine.Attrs().Index))
	if !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), `"steer"`) {
		t.Errorf("second engine: %v", err)
	}
}

func TestLoadErrors(t *testing.T) {
	enterNS(t)
	for what, spoil := range map[string]func(*Config){
		"no addresses": func(c *Config) { c.Addrs = nil },
		"IPv6":         func(c *Config) { c.Addrs = append(c.Addrs, netip.IPv6Loopback()) },
		"0.0.0.0":      func(c *Config) { c.Addrs = append(c.Addrs, netip.IPv4Unspecified()) },
		"no queues":    func(c *Config) { c.Queues = 0 },
		"no device":    func(c *Config) { c.Ifindex = 0 },
		"wrong device": func(c *Config) { c.Ifindex = 1 << 20 },
		"wrong mode":   func(c *Config) { c.Steer = 7 },
		"wrong attach": func(c *Config) { c.Attach = 7 },

		"wrong dispatch": func(c *Config) { c.Dispatch = 7 },
		"wrong priority": func(c *Config) { c.Priority = -1 },
	} {
		c := testConfig(Own, 1)
		spoil(&c)
		p, err := Load(c)
		if err == nil {
			p.Close()
			t.Errorf("%s: no error", what)
		} else if !strings.Contains(err.Error(), "under-test") {
			t.Errorf("%s: the error does not name the interface: %v", what, err)
		} else if what == "wrong device" && !errors.Is(err, unix.ENODEV) {
			t.Errorf("%s: %v is not ENODEV", what, err)
		}
	}
}

// startChild runs this binary again in the present namespace, to do what TestMain says, and returns its first line.
func startChild(t *testing.T, do string, ifindex int) (*exec.Cmd, string) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), childEnv+"="+do, fmt.Sprintf("%s=%d", childIfindexEnv, ifindex))
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe() // "hold" waits on it
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stdin.Close(); cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, strings.TrimSpace(line)
}

func TestCrashDetaches(t *testing.T) {
	enterNS(t)
	engine, _ := newVeth(t, 1500, 2)
	cmd, said := startChild(t, "hold", engine.Attrs().Index)
	if said != "loaded" || !attachedXDP(t, engine).Attached {
		t.Fatalf("the child said %q", said)
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	cmd.Wait()
	// The kernel may put off the last reference of a link to a work queue, of which nobody is told.
	for attachedXDP(t, engine).Attached {
		time.Sleep(time.Millisecond)
	}
}

// The two capabilities that the error names are enough, and without them the error names them.
func TestCapabilities(t *testing.T) {
	enterNS(t)
	engine, _ := newVeth(t, 1500, 2)
	if _, said := startChild(t, "caps", engine.Attrs().Index); said != "loaded" {
		t.Errorf("with CAP_BPF and CAP_NET_ADMIN: %s", said)
	}
	_, said := startChild(t, "nocaps", engine.Attrs().Index)
	for _, want := range []string{"under-test", "CAP_BPF", "CAP_NET_ADMIN"} {
		if !strings.Contains(said, want) {
			t.Errorf("without capabilities: %q does not name %s", said, want)
		}
	}
}

// In Share mode the kernel goes on serving the address: frames that are not ours, and those for which there is no
// socket, reach a kernel socket through the attached program.
func TestKernelKeepsTheRest(t *testing.T) {
	enterNS(t)
	engine, peer := newVeth(t, 1500, 1)
	far, err := netns.Get() // becomes the peer's namespace; the engine moves to a new one
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	near, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	inNS := func(ns netns.NsHandle, f func() error) {
		t.Helper()
		if err := netns.Set(ns); err != nil {
			t.Fatal(err)
		}
		if err := f(); err != nil {
			t.Fatal(err)
		}
	}
	inNS(far, func() error {
		addr, err := netlink.ParseAddr(peerAddr.String() + "/24")
		if err != nil {
			return err
		}
		return errors.Join(netlink.AddrAdd(peer, addr), netlink.LinkSetNsFd(engine, int(near)))
	})
	var p *Program
	var server *net.UDPConn
	inNS(near, func() error {
		engine = setUp(t, "engine0")
		addr, err := netlink.ParseAddr(ourAddr.String() + "/24")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(engine, addr); err != nil {
			return err
		}
		if p, err = Load(testConfig(Share, engine.Attrs().Index)); err != nil {
			return err
		}
		server, err = net.ListenUDP("udp4", &net.UDPAddr{IP: ourAddr.AsSlice(), Port: 5353})
		return err
	})
	defer p.Close()
	defer server.Close()
	var client *net.UDPConn
	inNS(far, func() (err error) {
		client, err = net.DialUDP("udp4", nil, &net.UDPAddr{IP: ourAddr.AsSlice(), Port: 5353})
		return err
	})
	defer client.Close()

	r := &rig{t: t, p: p}
	count := func(name string) uint64 {
		for _, c := range r.counters() {
			if c.Name == name {
				return c.Packets
			}
		}
		t.Fatalf("no counter %s", name)
		return 0
	}
	exchange := func() {
		t.Helper()
		if _, err := client.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		if _, _, err := server.ReadFrom(make([]byte, 16)); err != nil {
			t.Fatal(err)
		}
	}
	exchange()
	if count("pass_not_ours") == 0 || count("pass_no_socket") != 0 {
		t.Errorf("closed port: %v", r.counters())
	}
	if err := p.OpenPort(udpNr, ourAddr, 5353); err != nil {
		t.Fatal(err)
	}
	exchange()
	if count("pass_no_socket") != 1 {
		t.Errorf("open port without a socket: %v", r.counters())
	}
}
