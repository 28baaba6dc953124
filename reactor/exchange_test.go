package reactor

import (
	"errors"
	"testing"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// another gives the far device's test new rings, and the reactor's ends of them.
func (g *far) another() *rings.Port {
	fill, comp := rings.NewPlain[uint64](64), rings.NewPlain[uint64](64)
	rx, tx := rings.NewPlain[rings.Desc](64), rings.NewPlain[rings.Desc](64)
	g.rx, g.fill, g.tx, g.comp = rx.Producer(), fill.Consumer(), tx.Consumer(), comp.Producer()
	return &rings.Port{Fill: fill.Producer(), RX: rx.Consumer(), TX: tx.Producer(), Comp: comp.Consumer(), Dev: g.dev}
}

// exchanged runs an Exchange and the turn that does it.
func (g *far) exchanged(open func(*rings.Port) (*rings.Port, error)) error {
	result := make(chan error, 1)
	go func() { result <- g.r.Exchange(open) }()
	for {
		g.r.Turn()
		select {
		case err := <-result:
			return err
		default:
		}
	}
}

// TestExchange: what the old device received is taken up, whatever it had of frames comes back, and the new one works.
func TestExchange(t *testing.T) {
	g := newFar(t)
	s := g.bind(7)
	g.good(g.arpFrame(proto.ARPRequest), 0)
	g.settle()
	g.enter(func(h *sockets.Host, now int64) {
		for range 3 {
			if err := h.UDPSend(s, []byte("x"), peerPort, now); err != 0 {
				t.Fatal(err)
			}
		}
	})
	g.settle()
	g.takeTX(1)
	_, n := g.tx.Peek(1) // it sent a frame, has another one, and leaves the rest in the ring
	g.tx.Release(n)
	if _, left := g.tx.Peek(64); n != 1 || left == 0 {
		t.Fatalf("it has %d frames, and %d are left", n, left)
	}
	for range 5 { // and five to receive into
		g.take(nil)
	}
	g.good(g.udpFrame(7, []byte("x")), 0) // and a packet that nobody took up, and the beginning of one
	g.good(g.udpFrame(7, []byte("x")), rings.DescContinued)
	if err := g.exchanged(func(old *rings.Port) (*rings.Port, error) { return g.another(), nil }); err != nil {
		t.Fatal(err)
	}
	g.settle()
	if got := g.received(s); got != 1 {
		t.Errorf("%d datagrams received, want the 1 that was in the old ring", got)
	}
	counts := g.pool.Ledger().Counts()
	if inFill := g.r.inFill; counts[umem.Fill] != inFill || counts[umem.Free] != 128-inFill || inFill != int(g.fill.Avail()) {
		t.Errorf("the frames are with %v", counts)
	}
	if c := g.r.Counters(); c.Exchanges != 1 || c.RxBadChain != 1 {
		t.Errorf("counted %+v", c)
	}
	g.good(g.udpFrame(7, []byte("x")), 0)
	if got := g.received(s); got != 1 {
		t.Errorf("%d datagrams received from the new device", got)
	}
	g.enter(func(h *sockets.Host, now int64) { h.UDPSend(s, []byte("x"), peerPort, now) })
	g.settle()
	if _, n := g.tx.Peek(64); n != 1 {
		t.Errorf("%d frames are in the new TX ring", n)
	}
}

// TestExchangeFails: without a port the reactor ends with the reason, and nobody is left waiting.
func TestExchangeFails(t *testing.T) {
	g := newFar(t)
	boom := errors.New("boom")
	if err := g.exchanged(func(*rings.Port) (*rings.Port, error) { return nil, boom }); err != boom {
		t.Errorf("Exchange: %v", err)
	}
	if err := g.r.endedWith(); err != boom {
		t.Errorf("the reactor ended with %v", err)
	}
	if err := g.r.Exchange(nil); err != ErrStopped {
		t.Errorf("Exchange afterwards: %v", err)
	}
	g = newFar(t)
	result := make(chan error, 1)
	go func() { result <- g.r.Exchange(nil) }()
	for {
		g.r.mu.Lock()
		asked := g.r.renew != nil
		g.r.mu.Unlock()
		if asked {
			break
		}
	}
	g.r.Stop()
	g.r.finish()
	if err := <-result; err != ErrStopped {
		t.Errorf("Exchange of a reactor that stops: %v", err)
	}
}

// TestFrameTwice: a device that names a frame again does no harm.
func TestFrameTwice(t *testing.T) {
	g := newFar(t)
	s := g.bind(7)
	packet := g.udpFrame(7, []byte("x"))
	d := rings.Desc{Addr: g.raw.Addr(g.take(packet)) + umem.Headroom, Len: uint32(len(packet))}
	for range 3 {
		g.post(d)
	}
	g.settle()
	if got, c := g.received(s), g.r.Counters(); got != 1 || c.RxBadDesc != 2 {
		t.Errorf("%d datagrams received, %d descriptors found bad; want 1 and 2", got, c.RxBadDesc)
	}
}
