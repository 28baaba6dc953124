package xdpd_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
)

// load is traffic in both directions between the peer's kernel and echo services: datagrams, of which some may get lost,
// and connections opened from either end, of which nothing may. Every byte that comes back is compared.
type load struct {
	t       testing.TB
	moved   [3]atomic.Int64 // bytes that came back: datagrams, accepted connection, dialled connection
	stopped atomic.Bool
	result  []<-chan error
	ends    []io.Closer
}

// underLoad starts the traffic; the test ends it by finish or dies.
func underLoad(t testing.TB, lab *netlab.Lab, stack *xdpd.Stack) *load {
	t.Helper()
	l := &load{t: t}
	_, to := echo(t, lab, stack)
	questions := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	questions.SetDeadline(time.Now().Add(2 * patience))
	l.ends = append(l.ends, questions)
	l.run(func() error { return l.datagrams(questions) })
	for i, r := range []struct{ client, server side }{
		{kernelSide(lab.Peer, lab.PeerAddr), engineSide(stack, lab.EngineAddr)},
		{engineSide(stack, lab.EngineAddr), kernelSide(lab.Peer, lab.PeerAddr)},
	} {
		c, server, err := connect(r.client, r.server.open(t))
		if err != nil {
			t.Fatal(err)
		}
		for _, end := range []net.Conn{c, server} {
			end.SetDeadline(time.Now().Add(2 * patience))
			l.ends = append(l.ends, end)
		}
		l.run(func() error {
			_, err := io.Copy(server, onlyReader{server})
			return errors.Join(err, server.Close())
		})
		l.run(func() error { return l.stream(c.(halfCloser), i+1) })
	}
	t.Cleanup(l.end)
	l.more("traffic before anything happens")
	return l
}

type halfCloser interface {
	net.Conn
	CloseWrite() error
}

func (l *load) run(f func() error) { l.result = append(l.result, blocked(f)) }

// datagrams sends some of all sizes, each with its number, and compares what comes back.
func (l *load) datagrams(c *net.UDPConn) error {
	body := random(7, 1400)
	got, buf := make([]byte, 2048), make([]byte, 0, 2048)
	for n := uint64(0); !l.stopped.Load(); n++ {
		size := 8 + int(n*37%1392)
		buf = append(binary.BigEndian.AppendUint64(buf[:0], n), body[8:size]...)
		if _, err := c.Write(buf); err != nil && !passing(err) {
			return err
		}
		c.SetReadDeadline(time.Now().Add(5 * time.Millisecond))
		k, err := c.Read(got)
		if errors.Is(err, os.ErrDeadlineExceeded) || passing(err) {
			continue
		}
		if err != nil {
			return err
		}
		of := binary.BigEndian.Uint64(got) // it may be the answer to an earlier one
		if want := 8 + int(of*37%1392); of > n || k != want || !bytes.Equal(got[8:k], body[8:want]) {
			return fmt.Errorf("an answer of %d bytes to datagram %d differs from the question", k, of)
		}
		l.moved[0].Add(int64(k))
	}
	return nil
}

// passing are errors of a link that is down, or of a way to the engine that is not there at the moment.
func passing(err error) bool {
	for _, e := range []error{unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENETDOWN, unix.ECONNREFUSED, unix.ENOBUFS} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// stream sends without end and expects the same bytes back. At the end both must be equal to the last byte.
func (l *load) stream(c halfCloser, i int) error {
	source := func() io.Reader { return rand.NewChaCha8([32]byte{byte(i)}) }
	sent := make(chan int64, 1)
	var werr error
	go func() {
		var n int64
		from, buf := source(), make([]byte, 8192)
		for !l.stopped.Load() && werr == nil {
			_, _ = io.ReadFull(from, buf)
			var k int
			k, werr = c.Write(buf)
			n += int64(k)
		}
		werr = errors.Join(werr, c.CloseWrite())
		sent <- n
	}()
	want := source()
	got, expected := make([]byte, 65536), make([]byte, 65536)
	var n int64
	for {
		k, err := c.Read(got)
		if _, _ = io.ReadFull(want, expected[:k]); !bytes.Equal(got[:k], expected[:k]) {
			return fmt.Errorf("connection %d: other bytes come back, somewhere from %d on", i, n)
		}
		n += int64(k)
		l.moved[i].Add(int64(k))
		if err == io.EOF {
			break
		}
		if err != nil {
			return fmt.Errorf("connection %d: after %d bytes: %w", i, n, err)
		}
	}
	if all := <-sent; all != n || werr != nil {
		return fmt.Errorf("connection %d: of %d bytes %d came back: %w", i, all, n, werr)
	}
	return nil
}

// more waits until all of the traffic has gone on.
func (l *load) more(when string) {
	l.t.Helper()
	var before [len(l.moved)]int64
	for i := range l.moved {
		before[i] = l.moved[i].Load()
	}
	for i, what := range []string{"datagrams", "the connection that was accepted", "the connection that was dialled"} {
		eventually(l.t, fmt.Sprintf("%s: more of %s", when, what), func() bool {
			for _, r := range l.result {
				select {
				case err := <-r:
					l.t.Fatalf("%s: the traffic ended: %v", when, err)
				default:
				}
			}
			return l.moved[i].Load() >= before[i]+100_000
		})
	}
}

// finish ends the traffic, of which nothing may have got lost but datagrams.
func (l *load) finish() {
	l.t.Helper()
	l.stopped.Store(true)
	for _, r := range l.result {
		if err := await(l.t, r, "the end of the traffic"); err != nil {
			l.t.Error(err)
		}
	}
	l.end()
}

// end ends what finish did not, however it stands.
func (l *load) end() {
	l.stopped.Store(true)
	for _, c := range l.ends {
		c.Close()
	}
}

// onLink changes a link in a namespace.
func onLink(t testing.TB, ns *netlab.NS, dev string, f func(netlink.Link) error) {
	t.Helper()
	in(t, ns, func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		return f(link)
	})
}

// TestSwitchesUnderLoad does to the interface what the engine goes on after.
func TestSwitchesUnderLoad(t *testing.T) {
	mtu := func(n int) func(netlink.Link) error {
		return func(l netlink.Link) error { return netlink.LinkSetMTU(l, n) }
	}
	for _, c := range []struct {
		name  string
		opts  netlab.Options
		act   func(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, l *load)
		check func(st *xdpd.Stats) error
	}{
		{"link flaps", netlab.Options{}, func(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, l *load) {
			for range 3 {
				setLink(t, lab.Engine, lab.EngineDev, false)
				setLink(t, lab.Engine, lab.EngineDev, true)
				l.more("our end went down and up")
				setLink(t, lab.Peer, lab.PeerDev, false)
				setLink(t, lab.Peer, lab.PeerDev, true)
				l.more("the peer's end went down and up")
			}
		}, nil},
		{"smaller MTU", netlab.Options{}, func(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, l *load) {
			onLink(t, lab.Engine, lab.EngineDev, mtu(1000))
			onLink(t, lab.Peer, lab.PeerDev, mtu(1000))
			l.more("both ends have MTU 1000")
		}, func(st *xdpd.Stats) error {
			if st.MTU != 1000 {
				return fmt.Errorf("the engine has MTU %d, not 1000", st.MTU)
			}
			for _, c := range st.Queues[0].TCP {
				if c.State == "ESTABLISHED" && c.MSS > 960 {
					return fmt.Errorf("a connection has segments of %d bytes", c.MSS)
				}
			}
			return nil
		}},
		{"larger MTU", netlab.Options{}, func(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, l *load) {
			if netlab.NICs() != nil { // igb takes none beyond its buffers while a program is there
				if _, err := lab.Engine.Run(t.Context(), "ip", "link", "set", lab.EngineDev, "mtu", "9000"); err != nil {
					t.Skip(t.Name(), ": ", netlab.ErrNICs, ": no MTU of 9000 beside a program")
				}
			}
			onLink(t, lab.Engine, lab.EngineDev, mtu(9000))
			eventually(t, "all that a frame holds", func() bool { return getStats(t, stack).MTU > 1500 })
			l.more("our end has MTU 9000")
			onLink(t, lab.Engine, lab.EngineDev, mtu(1500))
			eventually(t, "the MTU as it was", func() bool { return getStats(t, stack).MTU == 1500 })
			l.more("our end has MTU 1500 again")
		}, nil},
		{"larger MTU than the frames were chosen for", netlab.Options{MTU: 1000}, func(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, l *load) {
			onLink(t, lab.Engine, lab.EngineDev, mtu(1500))
			onLink(t, lab.Peer, lab.PeerDev, mtu(1500))
			eventually(t, "the MTU", func() bool { return getStats(t, stack).MTU == 1500 })
			l.more("both ends have MTU 1500")
			_, to := echo(t, lab, stack)
			eventually(t, "a whole packet", func() bool { // igb's link comes back when copy mode is there
				c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
				defer c.Close()
				return tryAsk(c, strings.Repeat("x", 1400), time.Second) == nil
			})
		}, func(st *xdpd.Stats) error {
			if st.Driver == "igb" && (st.ZeroCopy || !strings.Contains(st.NotZeroCopy, "MTU")) {
				return fmt.Errorf("zero copy %v, %q: igb cuts such packets up", st.ZeroCopy, st.NotZeroCopy)
			}
			return nil
		}},
		{"renamed", netlab.Options{Veth: "a NIC of another name is not found again"}, func(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, l *load) {
			onLink(t, lab.Engine, lab.EngineDev, func(l netlink.Link) error { return netlink.LinkSetName(l, "other") })
			lab.EngineDev = "other"
			l.more("another name")
		}, func(st *xdpd.Stats) error {
			if st.Interface != "other" {
				return fmt.Errorf("the engine still calls it %s", st.Interface)
			}
			return nil
		}},
		{"another MAC", netlab.Options{}, func(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, l *load) {
			onLink(t, lab.Engine, lab.EngineDev, func(l netlink.Link) error {
				return netlink.LinkSetHardwareAddr(l, net.HardwareAddr{2, 0, 0, 1, 2, 3})
			})
			l.more("another MAC")
		}, nil},
		{"reopened", netlab.Options{}, reopens, exchanged},
		{"reopened, two queues", netlab.Options{Queues: 2}, reopens, exchanged},
		{"reopened, large packets", netlab.Options{MTU: 9000}, reopens, exchanged},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab, stack := engine(t, c.opts)
			l := underLoad(t, lab, stack)
			c.act(t, lab, stack, l)
			st := getStats(t, stack)
			if c.check != nil {
				if err := c.check(&st); err != nil {
					t.Error(err)
				}
			}
			l.finish()
			if isDone(stack) || stack.Err() != nil {
				t.Errorf("the engine ended: %v", stack.Err())
			}
		})
	}
}

func ethtool(t testing.TB, ns *netlab.NS, args ...string) {
	t.Helper()
	run(t, ns, "ethtool", args...)
}

// reopens changes the mode some times. Where the driver has no zero copy the engine must be as it was after the refusal.
func reopens(t *testing.T, _ *netlab.Lab, stack *xdpd.Stack, l *load) {
	zero := getStats(t, stack).ZeroCopy
	for _, mode := range []xdpd.Mode{xdpd.Copy, xdpd.Best, xdpd.Copy} {
		if err := stack.SetMode(mode); err != nil {
			t.Fatal(err)
		}
		if got, is := stack.Mode(), getStats(t, stack).ZeroCopy; got != mode || is != (zero && mode == xdpd.Best) {
			t.Errorf("the mode is %v, not %v, and zero copy %v", got, mode, is)
		}
		l.more("sockets opened anew")
	}
	err := stack.SetMode(xdpd.ZeroCopy)
	switch got := stack.Mode(); {
	case zero && (err != nil || got != xdpd.ZeroCopy):
		t.Errorf("zero copy again: %v, the mode is %v", err, got)
	case !zero && (err == nil || !strings.Contains(err.Error(), "copy mode") || got != xdpd.Copy): // the driver's errno, or none where it is not asked
		t.Errorf("zero copy on a driver without it: %v, the mode is %v", err, got)
	}
	l.more("zero copy, or a refusal")
}

// TestGenericIsCopy: with a generic program zero copy is refused with words, before the driver takes a socket that cannot send.
func TestGenericIsCopy(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	cfg.Attach, cfg.Mode = xdpd.Generic, xdpd.Copy
	stack := openStack(t, lab, cfg)
	_, to := echo(t, lab, stack)
	if err := stack.SetMode(xdpd.ZeroCopy); err == nil || !strings.Contains(err.Error(), "generic mode") {
		t.Errorf("zero copy: %v", err)
	}
	if err := stack.SetMode(xdpd.Best); err != nil || getStats(t, stack).ZeroCopy {
		t.Errorf("best: %v", err)
	}
	ask(t, kernelUDP(t, lab.Peer, netip.AddrPort{}, to), "after all that")
}

func exchanged(st *xdpd.Stats) error {
	for _, q := range st.Queues {
		if n := q.Reactor.Exchanges; n < 3 { // and a fourth where zero copy is tried
			return fmt.Errorf("queue %d has had %d other sockets, not 3 at least", q.Queue, n)
		}
	}
	return nil
}

// TestSwitchesThatEnd does to the interface what the engine does not outlive: it says what happened, and what to do.
func TestSwitchesThatEnd(t *testing.T) {
	for _, c := range []struct {
		name string
		opts netlab.Options
		act  func(t *testing.T, lab *netlab.Lab)
		errs error
		says []string
	}{
		{"deleted", netlab.Options{Veth: "a NIC cannot be deleted"}, func(t *testing.T, lab *netlab.Lab) {
			onLink(t, lab.Engine, lab.EngineDev, netlink.LinkDel)
		}, unix.ENODEV, []string{"xa0", "removed"}},
		{"moved", netlab.Options{}, func(t *testing.T, lab *netlab.Lab) {
			home, err := os.Open(lab.Peer.Path())
			if err != nil {
				t.Fatal(err)
			}
			defer home.Close()
			onLink(t, lab.Engine, lab.EngineDev, func(l netlink.Link) error { return netlink.LinkSetNsFd(l, int(home.Fd())) })
			t.Cleanup(func() { // who lent it wants it back
				ours, err := os.Open(lab.Engine.Path())
				if err != nil {
					t.Fatal(err)
				}
				defer ours.Close()
				onLink(t, lab.Peer, lab.EngineDev, func(l netlink.Link) error { return netlink.LinkSetNsFd(l, int(ours.Fd())) })
			})
		}, unix.ENODEV, []string{"xa0", "another network namespace"}},
		{"detached", netlab.Options{}, func(t *testing.T, lab *netlab.Lab) {
			detach(t, lab)
		}, unix.ENOLINK, []string{"xa0", "detached", "start the engine again"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab, stack := engine(t, c.opts)
			l := underLoad(t, lab, stack)
			c.act(t, lab)
			await(t, stack.Done(), "Done")
			l.end()
			err := stack.Err()
			if !errors.Is(err, c.errs) {
				t.Errorf("Err: %v, want %v", err, c.errs)
			}
			for _, text := range c.says {
				if !strings.Contains(fmt.Sprint(err), text) {
					t.Errorf("Err does not say %q: %v", text, err)
				}
			}
		})
	}
}

// detach takes the engine's program off its interface as bpftool link detach does.
func detach(t *testing.T, lab *netlab.Lab) {
	t.Helper()
	onLink(t, lab.Engine, lab.EngineDev, func(l netlink.Link) error {
		for links := new(link.Iterator); links.Next(); {
			info, err := links.Link.Info()
			if err == nil && info.Type == link.XDPType && uint32(info.Program) == l.Attrs().Xdp.ProgId {
				return links.Link.Detach()
			}
		}
		return errors.New("the engine's link is not to be found")
	})
}

// fewerQueues says what ethtool calls our end's queues. veth needs as many to receive by as its peer sends by: there the peer gives one up.
func fewerQueues(t *testing.T, lab *netlab.Lab) (rx, tx string) {
	if netlab.NICs() != nil {
		return "combined", "combined"
	}
	ethtool(t, lab.Peer, "-L", lab.PeerDev, "tx", "1")
	return "rx", "tx"
}

// TestQueueAdded: where all queues were to be served, a new one is an error, for nobody serves it; where some were named, it
// is nobody's business.
func TestQueueAdded(t *testing.T) {
	for _, all := range []bool{true, false} {
		t.Run(fmt.Sprint("all ", all), func(t *testing.T) { testQueueAdded(t, all) })
	}
}

func testQueueAdded(t *testing.T, all bool) {
	opts := netlab.Options{Queues: 2}
	if !all {
		opts.Veth = "a NIC of two queues spreads over both"
	}
	lab := newLab(t, opts)
	rx, _ := fewerQueues(t, lab)
	ethtool(t, lab.Engine, "-L", lab.EngineDev, rx, "1")
	cfg := engineConfig(lab)
	if !all {
		cfg.Queues = []int{0}
	}
	stack := openStack(t, lab, cfg)
	l := underLoad(t, lab, stack)
	ethtool(t, lab.Engine, "-L", lab.EngineDev, rx, "2")
	if !all {
		time.Sleep(2 * time.Second) // in which it would be seen; nothing tells that nothing happened
		l.more("a second RX queue")
		l.finish()
		return
	}
	await(t, stack.Done(), "Done")
	l.end()
	err := stack.Err()
	if !errors.Is(err, unix.ENXIO) || !strings.Contains(fmt.Sprint(err), "xa0 has 2 RX queues") {
		t.Errorf("Err: %v", err)
	}
}

// TestQueueTaken: the kernel leaves the engine its queues.
func TestQueueTaken(t *testing.T) {
	lab, stack := engine(t, netlab.Options{Queues: 2})
	l := underLoad(t, lab, stack)
	rx, tx := fewerQueues(t, lab)
	for _, which := range []string{rx, tx} {
		out, err := lab.Engine.Run(t.Context(), "ethtool", "-L", lab.EngineDev, which, "1")
		if err == nil || !strings.Contains(string(out)+err.Error(), "AF_XDP") {
			t.Errorf("ethtool -L %s 1: %v: %s", which, err, out)
		}
	}
	l.more("the peer sends by one queue, and ours are there")
	l.finish()
}

// TestForeignDetach: the program cannot be taken off by who has no link to it.
func TestForeignDetach(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	l := underLoad(t, lab, stack)
	onLink(t, lab.Engine, lab.EngineDev, func(l netlink.Link) error {
		if err := netlink.LinkSetXdpFd(l, -1); err == nil {
			t.Error("ip link set xdp off took the program away")
		}
		return nil
	})
	l.more("ip link set xdp off")
	l.finish()
}
