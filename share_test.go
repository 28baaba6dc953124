package xdpd_test

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/sockets"
)

// shared is a lab whose engine shares its kernel's address.
func shared(t *testing.T) (*netlab.Lab, *xdpd.Stack) {
	t.Helper()
	lab := newLab(t, netlab.Options{KernelAddr: true})
	return lab, openStack(t, lab, shareConfig(lab))
}

// kernelEcho is a UDP echo service of the kernel on the shared address. Its answers say who gave them.
func kernelEcho(t *testing.T, lab *netlab.Lab, port uint16) {
	t.Helper()
	c := kernelUDP(t, lab.Engine, netip.AddrPortFrom(lab.EngineAddr, port), netip.AddrPort{})
	go func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			if _, err := c.WriteToUDPAddrPort(append([]byte("kernel "), buf[:n]...), from); err != nil {
				return
			}
		}
	}()
}

// answer is what the peer is told by whoever has the port: "" for ECONNREFUSED.
func answer(t *testing.T, lab *netlab.Lab, port uint16, question string) string {
	t.Helper()
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, port))
	defer c.Close()
	if _, err := c.Write([]byte(question)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 65536)
	n, err := c.Read(buf)
	if err != nil && !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatal(err)
	}
	return string(buf[:n])
}

// TestShareWithKernel has the kernel's ssh, ping and UDP go on beside the engine's services on the same address.
func TestShareWithKernel(t *testing.T) {
	lab, stack := shared(t)
	var ssh net.Listener
	in(t, lab.Engine, func() (err error) {
		ssh, err = net.Listen("tcp4", netip.AddrPortFrom(lab.EngineAddr, 22).String())
		return err
	})
	defer ssh.Close()
	go func() {
		for {
			c, err := ssh.Accept()
			if err != nil {
				return
			}
			fmt.Fprint(c, "SSH-2.0-kernel\r\n")
			_, _ = io.Copy(c, c) // until the client goes away
			c.Close()
		}
	}()
	kernelEcho(t, lab, 700)
	_, to := echo(t, lab, stack)
	serveTCPEcho(t, stack, 7)

	c, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 22))
	if err != nil {
		t.Fatal(err)
	}
	answers := bufio.NewReader(c)
	if banner, err := answers.ReadString('\n'); err != nil || banner != "SSH-2.0-kernel\r\n" {
		t.Fatalf("the kernel's banner is %q, %v", banner, err)
	}
	ours, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 7))
	if err != nil {
		t.Fatal(err)
	}
	udp := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	for i := range 20 { // all at once, by turns
		line := fmt.Sprintf("SSH-2.0-peer %d\n", i)
		if _, err := c.Write([]byte(line)); err != nil {
			t.Fatal(err)
		}
		if got, err := answers.ReadString('\n'); err != nil || got != line {
			t.Fatalf("the kernel's connection: sent %q, got %q, %v", line, got, err)
		}
		ask(t, udp, line)
		ask(t, ours, line)
		if got := answer(t, lab, 700, line); got != "kernel "+line {
			t.Fatalf("port 700 answers %q", got)
		}
	}
	if err := echoBulk(ours, 1<<20, 1); err != nil {
		t.Error(err)
	}
	ping(t, lab.Peer, lab.EngineAddr, 5, pingWait)
	if got := counted(t, stack, sockets.RxICMP); got != 0 {
		t.Errorf("%d ICMP messages came to the engine, of the kernel's", got)
	}
	if got := answer(t, lab, 701, "nobody"); got != "" {
		t.Errorf("port 701 answers %q", got)
	}
}

// TestSharePortGoesBack: a port is the engine's as long as a socket has it, and then the kernel's again.
func TestSharePortGoesBack(t *testing.T) {
	lab, stack := shared(t)
	kernelEcho(t, lab, 700)
	for range 3 {
		if got := answer(t, lab, 700, "before"); got != "kernel before" {
			t.Errorf("before, port 700 answers %q", got)
		}
		c := listen(t, stack, ":700")
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			echoLoop(c)
		}()
		if got := answer(t, lab, 700, "while"); got != "while" {
			t.Errorf("while the engine has it, port 700 answers %q", got)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		<-ended
	}
	if got := answer(t, lab, 700, "after"); got != "kernel after" {
		t.Errorf("afterwards, port 700 answers %q", got)
	}
	if got := answer(t, lab, 702, "nobody"); got != "" {
		t.Errorf("port 702 answers %q", got)
	}
}

// TestShareSpecificAddress binds the engine's socket to the address and not to all.
func TestShareSpecificAddress(t *testing.T) {
	lab, stack := shared(t)
	c := listen(t, stack, netip.AddrPortFrom(lab.EngineAddr, 700).String())
	go echoLoop(c)
	if got := answer(t, lab, 700, "specific"); got != "specific" {
		t.Errorf("port 700 answers %q", got)
	}
}

// TestShareFragments: only the first fragment names the port; the steering program must remember the others.
func TestShareFragments(t *testing.T) {
	lab, stack := shared(t)
	kernelEcho(t, lab, 700)
	_, to := echo(t, lab, stack)
	for _, n := range []int{1472, 1473, 9000, 60000} {
		question := string(bytes.Repeat([]byte("0123456789"), n)[:n])
		if got := answer(t, lab, to.Port(), question); got != question {
			t.Errorf("%d bytes to the engine: %d come back", n, len(got))
		}
		if got := answer(t, lab, 700, question); got != "kernel "+question {
			t.Errorf("%d bytes to the kernel: %d come back", n, len(got))
		}
	}
	if counted(t, stack, sockets.Reassembled) != 3 {
		t.Errorf("the engine reassembled %d datagrams, not 3", counted(t, stack, sockets.Reassembled))
	}
}

// kernelNeighbour is what the engine's kernel knows of a neighbour.
func kernelNeighbour(t *testing.T, lab *netlab.Lab, of netip.Addr) (found *netlink.Neigh) {
	t.Helper()
	in(t, lab.Engine, func() error {
		link, err := netlink.LinkByName(lab.EngineDev)
		if err != nil {
			return err
		}
		list, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
		for _, n := range list {
			if n.IP.Equal(of.AsSlice()) {
				found = &n
			}
		}
		return err
	})
	return found
}

// TestShareResolves: the engine is the first to talk, to a neighbour of which the kernel knows nothing yet.
func TestShareResolves(t *testing.T) {
	lab, stack := shared(t)
	peer := kernelUDP(t, lab.Peer, netip.AddrPortFrom(lab.PeerAddr, 900), netip.AddrPort{})
	if n := kernelNeighbour(t, lab, lab.PeerAddr); n != nil {
		t.Fatalf("the kernel knows the peer already: %v", n)
	}
	c := listen(t, stack, ":0")
	if _, err := c.WriteToUDPAddrPort([]byte("first"), netip.AddrPortFrom(lab.PeerAddr, 900)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, from, err := peer.ReadFromUDPAddrPort(buf)
	if want := netip.AddrPortFrom(lab.EngineAddr, portOf(c.LocalAddr())); err != nil || string(buf[:n]) != "first" || from != want {
		t.Errorf("the peer got %q from %v (%v), not from %v", buf[:n], from, err, want)
	}
	if kernelNeighbour(t, lab, lab.PeerAddr) == nil {
		t.Error("the engine's kernel has no neighbour entry for the peer")
	}
}

// TestShareUnresolved: the kernel finds nobody, and a connected socket is told.
func TestShareUnresolved(t *testing.T) {
	lab, stack := shared(t)
	c, err := stack.DialUDP(netip.AddrPortFrom(lab.EngineAddr.Next(), 9))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("is anybody there?")); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.EHOSTUNREACH) {
		t.Errorf("read: %v, want %v", err, unix.EHOSTUNREACH)
	}
	if got := drops(t, stack, "neigh_failed"); got != 1 {
		t.Errorf("neigh_failed is %d, not 1", got)
	}
}

// TestShareFollowsRoutes: the kernel's routes are the engine's, also those that come and go while it runs.
func TestShareFollowsRoutes(t *testing.T) {
	lab, stack := shared(t)
	far := netip.MustParseAddr("10.99.0.1")
	farNet := &net.IPNet{IP: net.IPv4(10, 99, 0, 0), Mask: net.CIDRMask(24, 32)}
	in(t, lab.Peer, func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.AddrAdd(lo, &netlink.Addr{IPNet: &net.IPNet{IP: far.AsSlice(), Mask: net.CIDRMask(32, 32)}})
	})
	peer := kernelUDP(t, lab.Peer, netip.AddrPortFrom(far, 900), netip.AddrPort{})
	c := listen(t, stack, ":0")
	send := func() error {
		_, err := c.WriteToUDPAddrPort([]byte("far"), netip.AddrPortFrom(far, 900))
		return err
	}
	route := func(do func(*netlink.Route) error) {
		in(t, lab.Engine, func() error {
			link, err := netlink.LinkByName(lab.EngineDev)
			if err != nil {
				return err
			}
			return do(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: farNet, Gw: lab.PeerAddr.AsSlice()})
		})
	}
	if err := send(); !errors.Is(err, unix.ENETUNREACH) {
		t.Fatalf("without a route: %v, want %v", err, unix.ENETUNREACH)
	}
	for range 2 {
		route(netlink.RouteAdd)
		eventually(t, "the new route", func() bool { return send() == nil })
		if n, _, err := peer.ReadFromUDPAddrPort(make([]byte, 16)); n != 3 || err != nil {
			t.Fatalf("through the gateway came %d bytes, %v", n, err)
		}
		route(netlink.RouteDel)
		eventually(t, "the end of the route", func() bool { return errors.Is(send(), unix.ENETUNREACH) })
	}
}

// TestShareFollowsAddresses: an address that the kernel gets while the engine runs is the engine's to share too.
func TestShareFollowsAddresses(t *testing.T) {
	lab, stack := shared(t)
	second := netip.MustParseAddr("10.77.8.2")
	change := func(do func(netlink.Link, *netlink.Addr) error) {
		in(t, lab.Engine, func() error {
			link, err := netlink.LinkByName(lab.EngineDev)
			if err != nil {
				return err
			}
			return do(link, &netlink.Addr{IPNet: &net.IPNet{IP: second.AsSlice(), Mask: net.CIDRMask(24, 32)}})
		})
	}
	in(t, lab.Peer, func() error {
		link, err := netlink.LinkByName(lab.PeerDev)
		if err != nil {
			return err
		}
		return netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 77, 8, 1), Mask: net.CIDRMask(24, 32)}})
	})
	at := netip.AddrPortFrom(second, 700)
	if c, err := stack.ListenPacket("udp", at.String()); !errors.Is(err, unix.EADDRNOTAVAIL) {
		t.Errorf("before: %v, %v; want %v", c, err, unix.EADDRNOTAVAIL)
	}
	change(netlink.AddrAdd)
	var c net.PacketConn
	eventually(t, "the new address", func() bool {
		var err error
		if c, err = stack.ListenPacket("udp", at.String()); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			t.Fatal(err)
		}
		return err == nil
	})
	go echoLoop(c.(*xdpd.UDPConn))
	ask(t, kernelUDP(t, lab.Peer, netip.AddrPort{}, at), "new here?")
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	change(netlink.AddrDel)
	eventually(t, "the end of the address", func() bool {
		c, err := stack.ListenPacket("udp", at.String())
		if err == nil {
			c.Close()
		}
		return errors.Is(err, unix.EADDRNOTAVAIL)
	})
}

// TestOwnAddressOfKernel: an address that the kernel has is shared or left alone; an engine that took it would shut ssh out.
func TestOwnAddressOfKernel(t *testing.T) {
	lab := newLab(t, netlab.Options{KernelAddr: true})
	kernelEcho(t, lab, 7)
	stack, err := xdpd.Open(engineConfig(lab))
	if err == nil {
		stack.Close()
		t.Fatal("an engine took the kernel's address")
	}
	for _, word := range []string{lab.EngineAddr.String(), lab.EngineDev, "--share", "ip addr del"} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q does not say %q", err, word)
		}
	}
	if got := answer(t, lab, 7, "still"); got != "kernel still" {
		t.Errorf("the kernel answers %q", got)
	}
}
