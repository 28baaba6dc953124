package xdpd_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/sockets"
)

// patience is how long a test waits for what must come. It decides nothing: it only turns a hang into a failure.
var patience = netlab.Patience

// newLab makes two namespaces and a veth pair, or has the machine's own NICs in them (scripts/vmlab); they end with the test.
// What these NICs cannot be is listed there.
func newLab(t testing.TB, o netlab.Options) *netlab.Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	o.NICs = netlab.NICs()
	lab, err := netlab.New(o)
	if errors.Is(err, netlab.ErrNICs) {
		t.Skipf("%s: %v", t.Name(), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

// engineConfig is the engine's configuration in the lab: its own address, and every frame's owner checked.
func engineConfig(lab *netlab.Lab) xdpd.Config {
	return xdpd.Config{
		Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Ledger: true,
		Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
	}
}

// shareConfig is the same for an engine that shares the kernel's address (netlab.Options.KernelAddr).
func shareConfig(lab *netlab.Lab) xdpd.Config {
	cfg := engineConfig(lab)
	cfg.Addrs, cfg.Share = nil, true
	return cfg
}

// openStack opens an engine. When the test ends, everything it opened must be closed before (by a Cleanup of its own):
// then no frame may be missing, and after Close nothing may be attached to the interface.
func openStack(t testing.TB, lab *netlab.Lab, cfg xdpd.Config) *xdpd.Stack {
	t.Helper()
	stack, err := xdpd.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	if must, known := netlab.ZeroCopy(); known && cfg.Mode == xdpd.Best {
		// ZeroCopy is what XDP_OPTIONS says. Packets of several frames are more than these drivers take in zero copy.
		if st := getStats(t, stack); st.ZeroCopy != (must && !st.SG) {
			t.Errorf("zero copy is %v on %s, must be %v", st.ZeroCopy, st.Driver, must && !st.SG)
		}
	}
	t.Cleanup(func() {
		if !isDone(stack) {
			checkFrames(t, lab, stack)
		}
		if err := stack.Close(); err != nil {
			t.Errorf("Close: %v", err)
		}
		checkDetached(t, lab)
	})
	t.Cleanup(func() { quiet(t, stack) }) // before that: the last FIN may still be under way
	return stack
}

// engine is the usual case: a lab of the given options with an engine that owns its address.
func engine(t testing.TB, o netlab.Options) (*netlab.Lab, *xdpd.Stack) {
	t.Helper()
	lab := newLab(t, o)
	return lab, openStack(t, lab, engineConfig(lab))
}

func isDone(stack *xdpd.Stack) bool {
	select {
	case <-stack.Done():
		return true
	default:
		return false
	}
}

func getStats(t testing.TB, stack *xdpd.Stack) xdpd.Stats {
	t.Helper()
	st, err := stack.Stats()
	if err != nil {
		t.Fatal(err)
	}
	return st
}

// drops is how often packets were dropped for a reason, by now.
func drops(t testing.TB, stack *xdpd.Stack, reason string) uint64 {
	t.Helper()
	st := getStats(t, stack)
	return st.Drops()[reason]
}

// counted sums a counter of the Hosts over all queues.
func counted(t testing.TB, stack *xdpd.Stack, stat sockets.Stat) (n uint64) {
	t.Helper()
	for _, q := range getStats(t, stack).Queues {
		n += q.Host.Stats[stat]
	}
	return n
}

// checkFrames is the frame law at the end of a test: with all sockets closed, every frame is free or waits in a fill
// ring. A reactor that sleeps takes no completions, so it is sent datagrams until what it has sent came back.
func checkFrames(t testing.TB, lab *netlab.Lab, stack *xdpd.Stack) {
	t.Helper()
	st := getStats(t, stack)
	if !noSockets(&st) {
		t.Errorf("sockets were left open: %+v", st.Queues)
		return
	}
	conn, err := stack.ListenPacket("udp", ":0")
	if err != nil {
		t.Error(err)
		return
	}
	sending := func() (n int) {
		st = getStats(t, stack)
		for _, q := range st.Queues {
			n += q.Frames.Tx
		}
		return n
	}
	for end := time.Now().Add(patience); sending() > 0 && time.Now().Before(end); {
		prod(t, lab, portOf(conn.LocalAddr()))
	}
	if err := conn.Close(); err != nil {
		t.Error(err)
	}
	// What the last packets brought may still be with another queue, whose lock Stats does not hold while it reads the
	// ledger, which is of all queues.
	fault := ""
	for end := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		st = getStats(t, stack)
		if fault = frameFault(&st); fault == "" {
			return
		}
		if time.Now().After(end) {
			t.Error(fault)
			return
		}
	}
}

// prod sends a datagram from the peer to a port of the engine.
func prod(t testing.TB, lab *netlab.Lab, port uint16) {
	t.Helper()
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, port))
	defer c.Close()
	if _, err := c.Write([]byte("prod")); err != nil {
		t.Fatal(err)
	}
}

func framesHeld(st *xdpd.Stats) (n int) {
	for _, q := range st.Queues {
		n += q.Frames.Rx + q.Frames.Tx
	}
	return n
}

// noSockets allows for connections that have nothing to say any more but must wait.
func noSockets(st *xdpd.Stats) bool {
	for _, q := range st.Queues {
		if len(q.UDP) > 0 {
			return false
		}
		for _, c := range q.TCP {
			if c.State != "TIME-WAIT" {
				return false
			}
		}
	}
	return true
}

// frameFault compares an idle engine's ledger with what the pools and the hosts say; "": nothing is missing.
func frameFault(st *xdpd.Stats) string {
	if n := framesHeld(st); n != 0 {
		return fmt.Sprintf("%d frames are still held with all sockets closed", n)
	}
	owners := st.Queues[0].Frames.Owners
	if owners == nil {
		return "" // Config.Ledger was off
	}
	total, free := 0, 0
	for _, q := range st.Queues {
		total += q.Frames.Total
		free += q.Frames.Free
	}
	sum := 0
	for _, n := range owners {
		sum += n
	}
	if sum != total || owners["free"] != free || owners["fill"] != total-free {
		return fmt.Sprintf("of %d frames, %d of them in the pools, the ledger says %v", total, free, owners)
	}
	return ""
}

// checkDetached looks for an XDP program on the engine's interface, if that is still there.
func checkDetached(t testing.TB, lab *netlab.Lab) {
	t.Helper()
	err := lab.Engine.Do(func() error {
		link, err := netlink.LinkByName(lab.EngineDev)
		if _, gone := err.(netlink.LinkNotFoundError); gone {
			return nil
		}
		if err == nil && link.Attrs().Xdp != nil && link.Attrs().Xdp.Attached {
			err = fmt.Errorf("an XDP program is still attached to %s", lab.EngineDev)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// in runs f inside a namespace.
func in(t testing.TB, ns *netlab.NS, f func() error) {
	t.Helper()
	if err := ns.Do(f); err != nil {
		t.Fatal(err)
	}
}

// run runs a program in a namespace and returns its output.
func run(t testing.TB, ns *netlab.NS, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	out, err := ns.Run(ctx, name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// kernelUDP is a UDP socket of the kernel, connected if remote is given. It closes with the test at the latest.
func kernelUDP(t testing.TB, ns *netlab.NS, local, remote netip.AddrPort) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	in(t, ns, func() (err error) {
		var laddr *net.UDPAddr
		if local.IsValid() {
			laddr = net.UDPAddrFromAddrPort(local)
		}
		if remote.IsValid() {
			c, err = net.DialUDP("udp4", laddr, net.UDPAddrFromAddrPort(remote))
		} else {
			c, err = net.ListenUDP("udp4", laddr)
		}
		return err
	})
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(patience))
	c.SetReadBuffer(1 << 20)
	return c
}

// listen opens a UDP socket of the engine that closes with the test at the latest.
func listen(t testing.TB, stack *xdpd.Stack, address string) *xdpd.UDPConn {
	t.Helper()
	return listenOn(t, stack, address).(*xdpd.UDPConn)
}

// udpConn is a UDP socket of either face.
type udpConn interface {
	net.Conn
	net.PacketConn
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
}

func listenOn(t testing.TB, f netFace, address string) udpConn {
	t.Helper()
	c, err := f.ListenPacket("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(udpConn)
}

// echo runs an echo service on a UDP socket of the engine until the socket is closed, which the end of the test does. It
// returns where the peer reaches it.
func echo(t testing.TB, lab *netlab.Lab, stack *xdpd.Stack) (*xdpd.UDPConn, netip.AddrPort) {
	t.Helper()
	c, to := echoFace(t, lab, stack)
	return c.(*xdpd.UDPConn), to
}

func echoFace(t testing.TB, lab *netlab.Lab, f netFace) (udpConn, netip.AddrPort) {
	t.Helper()
	c := listenOn(t, f, ":0")
	var done sync.WaitGroup
	done.Go(func() { echoLoop(c) })
	t.Cleanup(func() {
		c.Close()
		done.Wait()
	})
	return c, netip.AddrPortFrom(lab.EngineAddr, portOf(c.LocalAddr()))
}

func echoLoop(c udpConn) {
	buf := make([]byte, 65536)
	for {
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if _, err := c.WriteToUDPAddrPort(buf[:n], from); err != nil {
			return
		}
	}
}

func portOf(a net.Addr) uint16 { return a.(*net.UDPAddr).AddrPort().Port() }

// ask sends a datagram and waits for an answer of the same bytes.
func ask(t testing.TB, c net.Conn, question string) {
	t.Helper()
	if err := tryAsk(c, question, patience); err != nil {
		t.Fatal(err)
	}
}

func tryAsk(c net.Conn, question string, within time.Duration) error {
	c.SetDeadline(time.Now().Add(within))
	if _, err := c.Write([]byte(question)); err != nil {
		return err
	}
	buf := make([]byte, 65536)
	n, err := c.Read(buf)
	if err == nil && string(buf[:n]) != question {
		err = fmt.Errorf("asked %q, was answered %q", question, buf[:n])
	}
	return err
}

// eventually asks again and again, for what has no event to wait for.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// ping runs ping(8) in a namespace; every request must be answered, with its own bytes.
func ping(t testing.TB, ns *netlab.NS, to netip.Addr, count int, args ...string) {
	t.Helper()
	args = append([]string{"-n", "-q", "-c", fmt.Sprint(count), "-W", "20"}, args...)
	out := run(t, ns, "ping", append(args, to.String())...)
	if want := fmt.Sprintf("%d packets transmitted, %d received", count, count); !strings.Contains(out, want) {
		t.Errorf("ping %v: %s", args, out)
	}
	if strings.Contains(out, "wrong data") {
		t.Errorf("ping %v: the answers differ from the requests: %s", args, out)
	}
}
