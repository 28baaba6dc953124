package forward

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// patience is how long a test waits for what must come. It decides nothing: it only turns a hang into a failure.
var patience = netlab.Patience

// lab is two hosts with a forwarder between them: a (xa0) – ma, mb – b (xb0).
type lab struct {
	*netlab.Lab
	t *testing.T
	f *Forward
}

// newLab makes the hosts, not the forwarder. A router's are in networks of their own.
func newLab(t *testing.T, router bool, o netlab.Options) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	o.Middle, o.KernelAddr = true, true
	nl, err := netlab.New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := nl.Close(); err != nil {
			t.Error(err)
		}
	})
	l := &lab{Lab: nl, t: t}
	if router {
		l.ip(nl.Peer, "addr flush dev xb0")
		l.ip(nl.Peer, "addr add 10.78.0.1/24 dev xb0")
		l.ip(nl.Peer, "route add default via 10.78.0.254")
		l.ip(nl.Engine, "route add default via 10.77.0.254")
		l.ip(nl.Middle, "addr add 10.77.0.254/24 dev ma")
		l.ip(nl.Middle, "addr add 10.78.0.254/24 dev mb")
		l.PeerAddr = netip.MustParseAddr("10.78.0.1")
	}
	return l
}

// open starts the forwarder, which ends with the test: then every frame must be where it may be.
func (l *lab) open(cfg Config) *Forward {
	l.t.Helper()
	cfg.Interfaces, cfg.Ledger = netlab.MiddleDevs[:], true
	err := l.Middle.Do(func() (err error) {
		l.f, err = Open(cfg)
		return err
	})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() {
		l.checkFrames()
		if err := l.f.Close(); err != nil {
			l.t.Error(err)
		}
	})
	return l.f
}

// checkFrames: a frame is free, with a device, or waits for a neighbour.
func (l *lab) checkFrames() {
	counts := l.f.ledger.Counts()
	sum := 0
	for _, n := range counts {
		sum += n
	}
	if sum != l.f.region.Frames() || counts[umem.RX] != 0 || counts[umem.Comp] != 0 || counts[umem.Lent] != 0 {
		l.t.Errorf("frames by owner %v, %d in all", counts, l.f.region.Frames())
	}
	if _, ok := l.f.loop.Enter(); ok {
		fill, tx := l.f.loop.InRings()
		if counts := l.f.ledger.Counts(); counts[umem.Fill] != fill || counts[umem.TX] != tx || counts[umem.Free] != l.f.pool.Avail() {
			l.t.Errorf("frames by owner %v; the rings hold %d and %d, the pool %d", counts, fill, tx, l.f.pool.Avail())
		}
	}
	l.f.loop.Leave()
}

func (l *lab) stats() Stats {
	l.t.Helper()
	st, err := l.f.Stats()
	if err != nil {
		l.t.Fatal(err)
	}
	return st
}

// noCopies fails the test if a byte was copied.
func (l *lab) noCopies() {
	l.t.Helper()
	st := l.stats()
	for _, p := range st.Ports {
		if st.Copied() != 0 {
			l.t.Errorf("%s copied %v", p.Interface, p.Counters.Copied)
		}
		if p.Counters.RxFrames == 0 || p.Counters.TxFrames == 0 {
			l.t.Errorf("%s: %+v: nothing was forwarded", p.Interface, p.Counters.PortStats)
		}
	}
}

func (l *lab) ip(ns *netlab.NS, args string) {
	l.t.Helper()
	if out, err := l.run(ns, "ip "+args); err != nil {
		l.t.Fatalf("ip %s: %v\n%s", args, err, out)
	}
}

func (l *lab) run(ns *netlab.NS, command string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	words := strings.Fields(command)
	out, err := ns.Run(ctx, words[0], words[1:]...)
	return string(out), err
}

// ping succeeds once something is answered: the first may be lost while neighbours are looked for.
func (l *lab) ping(ns *netlab.NS, to netip.Addr, options string) string {
	l.t.Helper()
	out, err := l.run(ns, fmt.Sprintf("ping -n -c 3 -i 0.2 -W 5 %s %s", options, to))
	if err != nil {
		l.t.Errorf("ping %s %v: %v\n%s", options, to, err, out)
	}
	return out
}

// refused pings until the answer has want in it: what is changed takes effect when the forwarder has heard of it.
func (l *lab) refused(ns *netlab.NS, to, options, want string) {
	l.t.Helper()
	out := ""
	for end := time.Now().Add(patience); time.Now().Before(end); {
		out, _ = l.run(ns, fmt.Sprintf("ping -n -c 1 -W 4 %s %s", options, to))
		if strings.Contains(out, want) {
			return
		}
	}
	l.t.Errorf("ping %s %s never said %q:\n%s", options, to, want, out)
}

// bulk sends n bytes by TCP from host a to b, and compares what arrives.
func (l *lab) bulk(n int64) {
	l.t.Helper()
	var ln net.Listener
	must(l.t, l.Peer.Do(func() (err error) { ln, err = net.Listen("tcp4", "0.0.0.0:0"); return err }))
	defer ln.Close()
	got := make(chan []byte, 1)
	go func() {
		h := sha256.New()
		if c, err := ln.Accept(); err == nil {
			_ = c.SetDeadline(time.Now().Add(patience))
			_, _ = io.Copy(h, c)
			c.Close()
		}
		got <- h.Sum(nil)
	}()
	var c net.Conn
	port := netip.MustParseAddrPort(ln.Addr().String()).Port()
	must(l.t, l.Engine.Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", netip.AddrPortFrom(l.PeerAddr, port).String(), patience)
		return err
	}))
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	h := sha256.New()
	_, err := io.CopyN(io.MultiWriter(c, h), rand.NewChaCha8([32]byte{1}), n)
	must(l.t, err)
	must(l.t, c.(*net.TCPConn).CloseWrite())
	if sum := <-got; string(sum) != string(h.Sum(nil)) {
		l.t.Error("what arrived is not what was sent")
	}
}

// datagrams sends UDP of each of the sizes to b, which returns it.
func (l *lab) datagrams(sizes []int) {
	l.t.Helper()
	var echo, c net.PacketConn
	must(l.t, l.Peer.Do(func() (err error) { echo, err = net.ListenPacket("udp4", "0.0.0.0:0"); return err }))
	defer echo.Close()
	go func() {
		b := make([]byte, 65536)
		for {
			n, from, err := echo.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = echo.WriteTo(b[:n], from)
		}
	}()
	must(l.t, l.Engine.Do(func() (err error) {
		lc := net.ListenConfig{Control: func(_, _ string, rc syscall.RawConn) error { // DF clear: who forwards may cut
			return rc.Control(func(fd uintptr) {
				_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT)
			})
		}}
		c, err = lc.ListenPacket(context.Background(), "udp4", "0.0.0.0:0")
		return err
	}))
	defer c.Close()
	to := net.UDPAddrFromAddrPort(netip.AddrPortFrom(l.PeerAddr, netip.MustParseAddrPort(echo.LocalAddr().String()).Port()))
	b := make([]byte, 65536)
	for _, n := range sizes {
		sent := make([]byte, n)
		rand.NewChaCha8([32]byte{byte(n)}).Read(sent)
		_, err := c.WriteTo(sent, to)
		must(l.t, err)
		_ = c.SetReadDeadline(time.Now().Add(patience))
		k, _, err := c.ReadFrom(b)
		if err != nil || string(b[:k]) != string(sent) {
			l.t.Fatalf("datagram of %d bytes: %d came back, %v", n, k, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func upTo(n, step int) (list []int) {
	for i := 0; i <= n; i += step {
		list = append(list, i)
	}
	return append(list, n)
}

// across has the source send count frames, so many at a time as rings hold whoever gets a CPU when, and waits for them at
// the sink.
func across(t *testing.T, source *xdpprog.Source, sink *xdpprog.Sink, count uint64) (sent xdpprog.SourceStats, got xdpprog.SinkStats) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	for at := uint64(0); at < count; at += 1000 {
		err := source.Run(ctx, min(1000, count-at))
		must(t, err)
		sent, err = source.Stats()
		must(t, err)
		for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(100 * time.Microsecond) {
			got, err = sink.Stats()
			must(t, err)
			if got.Frames >= sent.Sent {
				break
			}
		}
		if got.Frames < sent.Sent {
			return sent, got
		}
	}
	return sent, got
}
