package reactor

import (
	"errors"
	"net/netip"
	"testing"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// far is the far ends of a port: a NIC that the test plays itself, to say what no good one says.
type far struct {
	*rig
	rx   *rings.Producer[rings.Desc]
	fill *rings.Consumer[uint64]
	tx   *rings.Consumer[rings.Desc]
	comp *rings.Producer[uint64]
	raw  *umem.Region
}

// newFar is a rig whose pool covers only the first 128 of the region's 256 frames.
func newFar(t *testing.T, set ...func(*Config, *sockets.Config)) *far {
	g := &far{}
	fill, comp := rings.NewPlain[uint64](64), rings.NewPlain[uint64](64)
	rx, tx := rings.NewPlain[rings.Desc](64), rings.NewPlain[rings.Desc](64)
	region, err := umem.Wrap(make([]byte, 256*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	g.raw, g.rx, g.fill, g.tx, g.comp = region, rx.Producer(), fill.Consumer(), tx.Consumer(), comp.Producer()
	g.rig = newRig(t, options{change: func(c *Config, h *sockets.Config) {
		c.Port.Fill, c.Port.RX, c.Port.TX, c.Port.Comp = fill.Producer(), rx.Consumer(), tx.Producer(), comp.Consumer()
		c.Pool = umem.NewPool(region, 0, 128, umem.NewLedger(128))
		h.FillFrames = 32
		for _, f := range set {
			f(c, h)
		}
	}})
	g.settle()
	return g
}

// take is the next frame of the fill ring, with a packet in it.
func (g *far) take(packet []byte) umem.Frame {
	g.t.Helper()
	idx, n := g.fill.Peek(1)
	if n == 0 {
		g.t.Fatal("the fill ring is empty")
	}
	f, ok := g.raw.FrameOf(g.fill.Read(idx))
	if !ok {
		g.t.Fatal("the fill ring holds an address outside the region")
	}
	g.fill.Release(1)
	copy(g.raw.Chunk(f)[umem.Headroom:], packet)
	return f
}

func (g *far) post(d rings.Desc) {
	g.t.Helper()
	idx, n := g.rx.Reserve(1)
	if n == 0 {
		g.t.Fatal("the RX ring is full")
	}
	*g.rx.Slot(idx) = d
	g.rx.Submit(1)
}

// good posts a frame as a NIC does, with the options given.
func (g *far) good(packet []byte, options uint32) {
	g.t.Helper()
	g.post(rings.Desc{Addr: g.raw.Addr(g.take(packet)) + umem.Headroom, Len: uint32(len(packet)), Options: options})
}

func (g *far) received(s sockets.Handle) (n int) {
	g.t.Helper()
	g.settle()
	g.enter(func(h *sockets.Host, _ int64) {
		for {
			if _, err := h.UDPRecv(s, nil); err != 0 {
				return
			}
			n++
		}
	})
	return n
}

// TestBadDescriptors: what points where no packet can be is dropped and counted, and its frame, if it is one of ours,
// comes back.
func TestBadDescriptors(t *testing.T) {
	t.Run("few sockets", func(t *testing.T) { badDescriptors(t, 0) })
	t.Run("many, for which the Host looks ahead", func(t *testing.T) { badDescriptors(t, 3000) })
}

func badDescriptors(t *testing.T, more int) {
	g := newFar(t)
	s := g.bind(7)
	for i := range more {
		g.bind(uint16(1000 + i))
	}
	frame := g.udpFrame(7, []byte("x"))
	n := uint32(len(frame))
	ours := func(off uint64) uint64 { return g.raw.Addr(g.take(frame)) + off }
	for i, d := range []rings.Desc{
		{Addr: ours(0), Len: n},                            // no headroom
		{Addr: ours(umem.Headroom - 5), Len: n},            // a byte less than with a tag that was put back
		{Addr: ours(umem.Headroom), Len: 2048 - 256 + 1},   // beyond the chunk
		{Addr: ours(2047), Len: 2},                         //
		{Addr: ours(umem.Headroom), Len: 0xffffffff},       //
		{Addr: g.raw.Addr(200) + umem.Headroom, Len: n},    // another pool's frame
		{Addr: 256 * 2048, Len: n},                         // outside the region
		{Addr: 1 << 63, Len: n}, {Addr: 1<<64 - 1, Len: n}, //
	} {
		g.post(d)
		if got := g.received(s); got != 0 {
			t.Errorf("%+v was received", d)
		}
		if c := g.r.Counters(); c.RxBadDesc != uint64(i+1) || c.RxFrames != uint64(i+1) {
			t.Errorf("after %+v: %d bad of %d descriptors are counted, want %d", d, c.RxBadDesc, c.RxFrames, i+1)
		}
	}
	bad := g.r.Counters().RxBadDesc
	g.post(rings.Desc{Addr: ours(umem.Headroom - 4), Len: n})
	g.received(s)
	if c := g.r.Counters(); c.RxBadDesc != bad {
		t.Error("a frame whose tag was put back is refused")
	}
	if counts := g.pool.Ledger().Counts(); counts[umem.RX] != 0 || counts[umem.Held] != 0 {
		t.Errorf("frames are left over: %v", counts)
	}
	g.good(frame, 0)
	if got := g.received(s); got != 1 {
		t.Errorf("%d datagrams received after all that, want 1", got)
	}
	if looked := int(g.r.next[0].N) == len(frame); looked != (more > 0) {
		t.Errorf("with %d more sockets the Host looked ahead: %v", more, looked)
	}
}

// TestBadCompletions: addresses that are no frame of ours are counted, the others are freed.
func TestBadCompletions(t *testing.T) {
	g := newFar(t)
	s := g.bind(7)
	g.good(g.arpFrame(proto.ARPRequest), 0)
	g.settle()
	g.enter(func(h *sockets.Host, now int64) {
		if err := h.UDPSend(s, []byte("x"), peerPort, now); err != 0 {
			t.Fatal(err)
		}
	})
	g.settle()
	idx, n := g.tx.Peek(64)
	if n != 2 {
		t.Fatalf("%d frames in the TX ring, want 2", n)
	}
	bad := []uint64{256 * 2048, 1<<64 - 1, g.raw.Addr(200)}
	for _, addr := range append(bad, g.tx.Read(idx).Addr, g.tx.Read(idx+1).Addr) {
		slot, _ := g.comp.Reserve(1)
		*g.comp.Slot(slot) = addr
	}
	g.tx.Release(n)
	g.comp.Submit(5)
	g.settle()
	if c := g.r.Counters(); c.BadCompletions != 3 || c.Completions != 5 {
		t.Errorf("counted %+v", c)
	}
	if _, _, tx, _ := g.host.Held(); tx != 0 || g.pool.Ledger().Counts()[umem.TX] != 0 {
		t.Errorf("%d frames are still to be sent", tx)
	}
}

// TestDeviceDown: nothing is lost while the device is down, it is asked again every 10 ms, and when it is up all is sent.
func TestDeviceDown(t *testing.T) {
	g := newRig(t, options{})
	s := g.bind(7)
	g.meet()
	g.nic.SetDown(true)
	kicks := g.nic.Kicks()
	const n = 5
	for range n {
		g.enter(func(h *sockets.Host, now int64) {
			if err := h.UDPSend(s, []byte("x"), peerPort, now); err != 0 {
				t.Fatal(err)
			}
		})
		if deadline := g.settle(); deadline != g.clock.Now()+downRetryNS {
			t.Errorf("the next turn is due in %d ns, want %d", deadline-g.clock.Now(), downRetryNS)
		}
	}
	if c := g.r.Counters(); c.DeviceDown != 1 || g.nic.Kicks() != kicks+1 {
		t.Errorf("the device was asked %d times within 10 ms, and %d times said it is down", g.nic.Kicks()-kicks, c.DeviceDown)
	}
	g.clock.AdvanceTo(g.clock.Now() + downRetryNS)
	g.settle()
	if c := g.r.Counters(); c.DeviceDown != 2 || len(g.sent) != 0 {
		t.Errorf("after 10 ms: down %d times, %d frames sent", c.DeviceDown, len(g.sent))
	}
	g.nic.SetDown(false)
	g.clock.AdvanceTo(g.clock.Now() + downRetryNS)
	g.settle()
	if len(g.sent) != n {
		t.Errorf("%d frames sent after the device came up, want %d", len(g.sent), n)
	}
	g.r.Turn() // takes the completions
	if _, _, tx, _ := g.host.Held(); tx != 0 {
		t.Errorf("%d frames are still to be sent", tx)
	}
	g.deliver(g.udpFrame(7, nil))
	g.settle()
	if g.host.Ready(s)&sockets.In == 0 {
		t.Error("nothing is received after the device came up")
	}
}

// TestDeviceError: any other error than "down" ends the reactor with it.
func TestDeviceError(t *testing.T) {
	g := newRig(t, options{realTime: true})
	s := g.bind(7)
	g.meet()
	g.dev.err = errors.New("out of luck")
	p := NewPoller(g.r)
	done := make(chan error, 1)
	go func() {
		_, err := p.Wait(make([]Event, 1), -1)
		done <- err
	}()
	stop := g.run()
	g.awaitAsleep()
	g.enter(func(h *sockets.Host, now int64) {
		if err := h.UDPSend(s, []byte("x"), peerPort, now); err != 0 {
			t.Fatal(err)
		}
	})
	if err := await(t, "the end of Wait", done); !errors.Is(err, ErrClosed) {
		t.Errorf("Wait: %v", err)
	}
	if err := stop(); !errors.Is(err, g.dev.err) {
		t.Errorf("Run: %v, want %v", err, g.dev.err)
	}
}

// TestBudget: a turn receives no more than its budget, whatever the device holds.
func TestBudget(t *testing.T) {
	g := newFar(t)
	g.bind(7)
	frame := append([]byte{}, g.udpFrame(8, nil)...)
	n := 0
	g.r.now = func() int64 { // the device receives whenever the reactor looks at the clock
		for g.fill.Avail() > 0 && g.rx.Free() > 0 && n < 10*budget {
			g.good(frame, 0)
			n++
		}
		return g.clock.Now()
	}
	g.r.Turn()
	if c := g.r.Counters(); c.RxFrames < budget || c.RxFrames >= budget+batch {
		t.Errorf("%d frames received in one turn, the budget is %d", c.RxFrames, budget)
	}
	slow := g.clock.Now()
	g.r.now = func() int64 { slow += turnNS; return slow } // every look takes 2 ms
	before := g.r.Counters().RxFrames
	g.r.Turn()
	if got := g.r.Counters().RxFrames - before; got == 0 || got > batch {
		t.Errorf("%d frames received in a turn whose time was over after the first batch", got)
	}
}

// TestTxRingFull: what finds no slot waits in the Host, is counted, and goes out in order.
func TestTxRingFull(t *testing.T) {
	g := newRig(t, options{frames: 512})
	s := g.bind(7)
	g.meet()
	g.dev.prompt = false
	const n = 100 // the ring has 64
	for i := range n {
		g.enter(func(h *sockets.Host, now int64) {
			if err := h.UDPSend(s, []byte{byte(i)}, peerPort, now); err != 0 {
				t.Fatal(err)
			}
		})
	}
	_, deadline := g.r.Turn()
	if c := g.r.Counters(); c.TxRingFull != 1 || g.host.TxPending() != n-64 || deadline > g.clock.Now()+minSpinNS {
		t.Errorf("counted %+v; %d frames wait, the next turn is due in %d ns", c, g.host.TxPending(), deadline-g.clock.Now())
	}
	g.transmit(64)
	g.nic.Complete(64)
	g.r.Turn()
	g.transmit(64)
	if len(g.sent) != n {
		t.Fatalf("%d frames sent, want %d", len(g.sent), n)
	}
	for i, frame := range g.sent {
		if got := frame[len(frame)-1]; int(got) != i {
			t.Fatalf("frame %d carries %d", i, got)
		}
	}
	g.nic.Complete(64)
	g.settle()
	if _, _, tx, _ := g.host.Held(); tx != 0 {
		t.Errorf("%d frames are still to be sent", tx)
	}
}

// TestWakeRX: a device that asks for it is woken for the fill ring, and one that does not is left alone.
func TestWakeRX(t *testing.T) {
	g := newRig(t, options{})
	g.settle()
	if n := g.nic.Wakes(); n != 0 {
		t.Errorf("a device that sees the fill ring by itself was woken %d times", n)
	}
	g.nic.SetNeedWakeup(false, true)
	g.r.Turn()
	if n, c := g.nic.Wakes(), g.r.Counters(); n == 0 || c.WakeRX != n {
		t.Errorf("woken %d times, counted %d", n, c.WakeRX)
	}
	s := g.bind(7)
	kicks := g.nic.Kicks()
	g.enter(func(h *sockets.Host, now int64) { h.UDPSend(s, nil, netip.AddrPortFrom(peerAddr.Netip(), 9), now) })
	g.settle()
	if g.nic.Kicks() != kicks {
		t.Error("a device that sees the TX ring by itself was kicked")
	}
}

// TestBlockedRests: a datagram that waits for the frames of a connection whose peer is silent costs no turns, and its
// socket hears of it when the connection gives them up.
func TestBlockedRests(t *testing.T) {
	s := newStream(t, 576, 768) // fewer frames than the connection may queue and the datagram needs together
	s.dev.prompt = true
	u := s.bind(9)
	big := make([]byte, sockets.MaxUDP)
	s.enter(func(h *sockets.Host, now int64) {
		for n := 1; n > 0; {
			n, _ = h.TCPWrite(s.conn, s.buf, now)
		}
		if err := h.UDPSend(u, big, peerPort, now); err != sockets.EAGAIN {
			t.Fatalf("UDPSend: %v, want EAGAIN", err)
		}
	})
	if deadline := s.settle(); !s.host.Blocked() || deadline < s.clock.Now()+100*blockedNS {
		t.Errorf("blocked (%v) by a silent peer, the reactor wakes after %d ns", s.host.Blocked(), deadline-s.clock.Now())
	}
	s.enter(func(h *sockets.Host, now int64) {
		if err := h.TCPAbort(s.conn, now); err != 0 || h.Ready(u)&sockets.Out != 0 {
			t.Fatalf("TCPAbort: %v; the socket is ready for %#x", err, h.Ready(u))
		}
	})
	if s.r.Turn(); s.host.Ready(u)&sockets.Out == 0 {
		t.Error("the socket did not hear of the frames that came free")
	}
}
