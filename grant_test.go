package xdpd_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
)

// granted is a lab with a Granter for its interface, on a socket.
func granted(t *testing.T, o netlab.Options, g xdpd.Granter) (*netlab.Lab, string) {
	t.Helper()
	lab := newLab(t, o)
	path := filepath.Join(t.TempDir(), "grant")
	l, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	g.Interfaces, g.NetNS = []string{lab.EngineDev}, lab.Engine.Path()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- g.Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("Serve: %v", err)
		}
		checkDetached(t, lab)
	})
	return lab, path
}

// TestGrantStrangers has the Granter hear what no engine says. None of it may give anything, and an engine is served afterwards.
func TestGrantStrangers(t *testing.T) {
	lab, path := granted(t, netlab.Options{}, xdpd.Granter{Queues: []int{0}, Addrs: []netip.Prefix{netip.MustParsePrefix("10.77.0.0/24"), netip.MustParsePrefix("::/0")}})
	for _, c := range []struct{ says, hears string }{
		{`{"op":"nonsense"}`, "before the program is attached"},
		{`{"op":"attach","steer":0,"queues":1,"addrs":["10.77.0.2"]}`, "no socket of an interface was asked for"},
		{`{"op":"put","queue":0}`, "before the program is attached"},
		{`{"op":"detach"}`, "{}"},
		{`{"op":"open","proto":6,"port":22}`, "before the program is attached"},
		{`{"op":"socket","interface":"xa0","queue":-1}`, "queue -1 of xa0 is not granted"},
		{`{"op":"socket","interface":"xa0","queue":1}`, "queue 1 of xa0 is not granted"},
		{`{"op":"socket","interface":"lo"}`, `interface \"lo\" is not granted`},
		{`{"op":"socket","interface":"xa0","send_bytes":-1}`, "a send buffer of -1 bytes"},
		{`{"op":"socket","interface":"xa0","send_bytes":2147483647}`, "a send buffer of 2147483647 bytes"},
		{"\x00\xff", ""},
		{"[]", ""},
		{strings.Repeat("{", 60000), ""},
	} {
		if got := say(t, path, c.says); !strings.Contains(got, c.hears) || (c.hears == "") != (got == "") {
			t.Errorf("%.60q is answered with %q, want %q", c.says, got, c.hears)
		}
	}
	for _, c := range []struct{ says, hears string }{ // with a socket
		{`{"op":"attach","queues":100000,"addrs":["10.77.0.2"]}`, "100000 queues"},
		{`{"op":"attach","queues":1,"addrs":["::1"]}`, "only IPv4"},
		{`{"op":"attach","queues":1,"steer":9,"addrs":["10.77.0.2"]}`, "steering mode 9"},
		{`{"op":"attach","queues":1,"addrs":[]}`, "0 addresses"},
	} {
		if got := say(t, path, `{"op":"socket","interface":"xa0"}`, c.says); !strings.Contains(got, c.hears) {
			t.Errorf("%q is answered with %q, want %q", c.says, got, c.hears)
		}
	}
	cfg := engineConfig(lab)
	cfg.Grant, cfg.Queues = path, []int{0}
	addrs := cfg.Addrs
	cfg.Addrs, cfg.JournalDir = []netip.Prefix{netip.MustParsePrefix("10.99.0.2/24")}, "/dev/null" // where an engine without privilege finds nothing
	if _, err := xdpd.Open(cfg); err == nil || !strings.Contains(err.Error(), "address 10.99.0.2 is not granted") || strings.Contains(err.Error(), "journal") {
		t.Errorf("an address that is not granted: %v", err)
	}
	cfg.Addrs, cfg.JournalDir = addrs, ""
	stack := openStack(t, lab, cfg)
	serveTCPEcho(t, stack, 7)
	c, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 7))
	if err != nil {
		t.Fatal(err)
	}
	ask(t, c, "after all that")
	if err := echoBulk(c, 1<<20, 1); err != nil {
		t.Error(err)
	}
	c.Close()
}

// TestGrantAddresses: what an engine asks for later is held against what it may have, as what it asks for at first.
func TestGrantAddresses(t *testing.T) {
	lab, path := granted(t, netlab.Options{}, xdpd.Granter{})
	in(t, lab.Engine, func() error {
		link, err := netlink.LinkByName(lab.EngineDev)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IP{10, 77, 7, 7}, Mask: net.CIDRMask(32, 32)}})
	})
	const own, share = `{"op":"attach","queues":1,"steer":0,"addrs":["10.77.0.2"]}`, `{"op":"attach","queues":1,"steer":1,"addrs":["10.77.0.2"]}`
	for _, c := range []struct{ attach, says, hears string }{ // with a program
		{own, `{"op":"addrs","addrs":["10.77.7.7"]}`, "10.77.7.7 is the kernel's, and may only be shared"},
		{share, `{"op":"addrs","addrs":["::1"]}`, "only IPv4"},
		{share, `{"op":"addrs","addrs":[""]}`, "only IPv4"},
		{share, `{"op":"open","proto":6,"addr":"::1","port":7}`, "IPv4"},
		{share, `{"op":"addrs","addrs":["10.77.7.7"]}`, "{}"},
	} {
		if got := say(t, path, `{"op":"socket","interface":"xa0"}`, c.attach, c.says); !strings.Contains(got, c.hears) {
			t.Errorf("%q is answered with %q, want %q", c.says, got, c.hears)
		}
	}
}

// say sends messages one by one and gives the answer to the last, "" for none.
func say(t *testing.T, path string, messages ...string) string {
	t.Helper()
	conn, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	answer := make([]byte, 1<<16)
	n := 0
	for _, m := range messages {
		if _, err := conn.Write([]byte(m)); err != nil {
			t.Fatal(err)
		}
		if n, err = conn.Read(answer); err != nil {
			return ""
		}
	}
	return string(answer[:n])
}

// TestGrantNoDescriptors: a Granter whose process has no descriptors left for a while goes on, and with it all its engines.
func TestGrantNoDescriptors(t *testing.T) {
	_, path := granted(t, netlab.Options{}, xdpd.Granter{})
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Dup(2)
	if err != nil {
		t.Fatal(err)
	}
	limit := unix.Rlimit{Cur: uint64(fd) + 20, Max: was.Max}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		t.Fatal(err)
	}
	held := []int{fd}
	for err == nil {
		if fd, err = unix.Dup(2); err == nil {
			held = append(held, fd)
		}
	}
	unix.Close(held[0])
	conn, cerr := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	time.Sleep(100 * time.Millisecond) // in which it is not accepted; nothing tells that
	for _, fd := range held[1:] {
		unix.Close(fd)
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	if cerr != nil {
		t.Fatal(cerr)
	}
	conn.Close()
	if got := say(t, path, `{"op":"nonsense"}`); got == "" {
		t.Error("it does not answer any more")
	}
}

// TestOpened is called with everything there and nothing received; its error ends Open, and leaves nothing.
func TestOpened(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	cfg, no := engineConfig(lab), errors.New("no")
	cfg.Opened = func() error {
		in(t, lab.Engine, func() error {
			link, err := netlink.LinkByName(lab.EngineDev)
			if err == nil && (link.Attrs().Xdp == nil || !link.Attrs().Xdp.Attached) {
				t.Error("when Opened is called, the program is not attached yet")
			}
			return err
		})
		return no
	}
	if _, err := xdpd.Open(cfg); !errors.Is(err, no) {
		t.Errorf("Open gives %v", err)
	}
	checkDetached(t, lab)
	called := 0
	cfg.Opened = func() error { called++; return nil }
	stack := openStack(t, lab, cfg)
	if called != 1 {
		t.Errorf("called %d times", called)
	}
	serveTCPEcho(t, stack, 7)
}

// TestGrantUnreachable names the cure.
func TestGrantUnreachable(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	cfg.Grant = filepath.Join(t.TempDir(), "none")
	if _, err := xdpd.Open(cfg); !errors.Is(err, unix.ENOENT) || !strings.Contains(fmt.Sprint(err), "is xdpd grant running") {
		t.Errorf("Open gives %v", err)
	}
	cfg.NAPI = xdpd.DriveNAPI
	if _, err := xdpd.Open(cfg); err == nil || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("Open gives %v", err)
	}
}
