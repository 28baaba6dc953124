package reactor

import (
	"errors"
	"testing"
	"time"

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

// TestExchangeInFlood: who sends faster than packets are taken up does not keep the old device open.
func TestExchangeInFlood(t *testing.T) {
	var g *far
	flood, sent := false, 0
	g = newFar(t, func(c *Config, _ *sockets.Config) {
		clock := c.Clock
		c.Clock = func() int64 {
			if flood && sent < 100_000 && g.fill.Avail() > 0 {
				g.good(g.udpFrame(7, []byte("x")), 0)
				sent++
			}
			return clock()
		}
	})
	result := make(chan error, 1)
	go func() {
		result <- g.r.Exchange(func(*rings.Port) (*rings.Port, error) {
			flood = false
			return g.another(), nil
		})
	}()
	for !flood {
		g.r.mu.Lock()
		flood = g.r.renew != nil
		g.r.mu.Unlock()
	}
	g.r.Turn()
	if err := <-result; err != nil || sent > 1000 {
		t.Errorf("%v after %d packets", err, sent)
	}
	g.settle()
	if counts := g.pool.Ledger().Counts(); counts[umem.Fill] != g.r.inFill || counts[umem.RX] != 0 || counts[umem.TX] != 0 {
		t.Errorf("the frames are with %v", counts)
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

// TestTrySend: a device that gives a frame back is believed, one that takes frames and keeps them is not, and what it keeps
// comes back when another takes its place.
func TestTrySend(t *testing.T) {
	g := newFar(t)
	try := func(within time.Duration, device func()) error {
		result := make(chan error, 1)
		go func() { result <- g.r.TrySend(within) }()
		for {
			g.r.Turn()
			device()
			select {
			case err := <-result:
				return err
			default:
			}
		}
	}
	if err := try(time.Millisecond, func() {}); !errors.Is(err, rings.ErrUnsent) {
		t.Errorf("nothing comes back: %v", err)
	}
	g.settle() // which may have come after that
	if len(g.unsent()) != 1 {
		t.Errorf("%d frames are in the TX ring, want one", len(g.unsent()))
	}
	var sent [][]byte
	if err := g.exchanged(func(*rings.Port) (*rings.Port, error) { return g.another(), nil }); err != nil {
		t.Fatal(err)
	}
	if err := try(time.Hour, func() { sent = append(sent, g.complete()...) }); err != nil {
		t.Errorf("everything comes back: %v", err)
	}
	e, fault := proto.ParseEthernet(sent[0])
	if len(sent) != 1 || fault != 0 || len(sent[0]) != 60 || e.Dst != ourMAC || e.Src != ourMAC || e.Type != proto.EtherTrial {
		t.Errorf("sent %x", sent)
	}
	if counts := g.pool.Ledger().Counts(); counts[umem.TX] != 0 || counts[umem.Held] != 0 {
		t.Errorf("the frames are with %v", counts)
	}
	g.r.Stop()
	if err := g.r.TrySend(time.Hour); err != ErrStopped {
		t.Errorf("afterwards: %v", err)
	}
}

// unsent are the packets in the TX ring.
func (g *far) unsent() (packets [][]byte) {
	idx, n := g.tx.Peek(64)
	for i := range n {
		d := g.tx.Read(idx + i)
		f, _ := g.raw.FrameOf(d.Addr)
		packets = append(packets, g.raw.Chunk(f)[d.Addr-g.raw.Addr(f):][:d.Len])
	}
	return packets
}

// complete has the device send them.
func (g *far) complete() [][]byte {
	packets := g.unsent()
	idx, n := g.tx.Peek(64)
	at, _ := g.comp.Reserve(n)
	for i := range n {
		*g.comp.Slot(at + i) = g.tx.Read(idx + i).Addr
	}
	g.comp.Submit(n)
	g.tx.Release(n)
	return packets
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
