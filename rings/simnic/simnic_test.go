package simnic

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/rings"
	"xdpd/umem"
)

// rig is a NIC with a pool of frames and a ledger.
type rig struct {
	t    *testing.T
	nic  *SimNIC
	port *rings.Port
	pool *umem.Pool
}

func newRig(t *testing.T, frames int, fill, comp, rx, tx uint32) *rig {
	t.Helper()
	r, err := umem.Wrap(make([]byte, frames*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	nic := NewSimNIC(r, fill, comp, rx, tx)
	return &rig{t, nic, nic.Port(), umem.NewPool(r, 0, frames, umem.NewLedger(frames))}
}

func (g *rig) fill(n uint32) {
	idx, got := g.port.Fill.Reserve(min(n, uint32(g.pool.Avail())))
	for i := range got {
		*g.port.Fill.Slot(idx + i) = g.pool.Region().Addr(g.pool.Get(umem.Fill))
	}
	g.port.Fill.Submit(got)
}

func (g *rig) receive(f func(frame umem.Frame, packet []byte)) {
	idx, got := g.port.RX.Peek(1024)
	for i := range got {
		d := g.port.RX.Read(idx + i)
		frame, ok := g.pool.Region().FrameOf(d.Addr)
		if !ok || d.Addr != g.pool.Region().Addr(frame)+umem.Headroom {
			g.t.Fatalf("RX descriptor %+v", d)
		}
		g.pool.Move(frame, umem.Fill, umem.RX)
		f(frame, g.pool.Chunk(frame)[umem.Headroom:umem.Headroom+d.Len])
	}
	g.port.RX.Release(got)
}

func (g *rig) send(payload []byte) bool {
	f := g.pool.Get(umem.TX)
	if f == umem.None {
		return false
	}
	if !g.post(rings.Desc{Addr: g.pool.Region().Addr(f) + umem.Headroom, Len: uint32(copy(g.pool.Chunk(f)[umem.Headroom:], payload))}) {
		g.pool.Put(f, umem.TX)
		return false
	}
	return true
}

func (g *rig) post(d rings.Desc) bool {
	idx, got := g.port.TX.Reserve(1)
	if got == 1 {
		*g.port.TX.Slot(idx) = d
		g.port.TX.Submit(1)
	}
	return got == 1
}

// reap frees completed frames and gives their numbers.
func (g *rig) reap() (fs []umem.Frame) {
	idx, got := g.port.Comp.Peek(1024)
	for i := range got {
		f, ok := g.pool.Region().FrameOf(g.port.Comp.Read(idx + i))
		if !ok {
			g.t.Fatalf("completion of %#x", g.port.Comp.Read(idx+i))
		}
		g.pool.Move(f, umem.TX, umem.Comp)
		g.pool.Put(f, umem.Comp)
		fs = append(fs, f)
	}
	g.port.Comp.Release(got)
	return fs
}

func (g *rig) stats() rings.Stats {
	st, err := g.port.Dev.Stats()
	if err != nil {
		g.t.Fatal(err)
	}
	return st
}

func TestDeliver(t *testing.T) {
	g := newRig(t, 8, 4, 4, 2, 4)
	if g.nic.Deliver([]byte("lost")) || g.stats().RxFillRingEmpty != 1 {
		t.Fatalf("delivered without a fill entry, or not counted: %+v", g.stats())
	}
	g.fill(4)
	for i := range byte(2) {
		if !g.nic.Deliver([]byte{'p', i}) {
			t.Fatalf("packet %d dropped: %+v", i, g.stats())
		}
	}
	if g.nic.Deliver([]byte("no room")) || g.stats().RxRingFull != 1 {
		t.Fatalf("delivered into a full RX ring, or not counted: %+v", g.stats())
	}
	n := byte(0)
	g.receive(func(f umem.Frame, packet []byte) {
		if want := []byte{'p', n}; !bytes.Equal(packet, want) {
			t.Fatalf("packet %d is %q", n, packet)
		}
		g.pool.Put(f, umem.RX)
		n++
	})
	if n != 2 || g.port.Fill.Pending() != 2 {
		t.Fatalf("%d packets, %d fill entries left; want 2 and 2", n, g.port.Fill.Pending())
	}
	if g.nic.Deliver(make([]byte, 2048-umem.Headroom+1)) || g.stats().RxDropped != 2 {
		t.Fatalf("delivered a packet that is larger than a frame, or not counted: %+v", g.stats())
	}
	if !g.nic.Deliver(make([]byte, 2048-umem.Headroom)) {
		t.Fatal("dropped a packet that just fits")
	}
}

func TestDeliverBadFill(t *testing.T) {
	g := newRig(t, 8, 4, 4, 4, 4)
	idx, _ := g.port.Fill.Reserve(3)
	*g.port.Fill.Slot(idx) = 8 * 2048
	*g.port.Fill.Slot(idx + 1) = 1<<64 - 1
	*g.port.Fill.Slot(idx + 2) = 3*2048 + 77 // anywhere in the chunk means the chunk
	g.port.Fill.Submit(3)
	if !g.nic.Deliver([]byte("x")) || g.stats().RxInvalidDescs != 2 {
		t.Fatalf("stats %+v; want delivery after two invalid entries", g.stats())
	}
	i, got := g.port.RX.Peek(1)
	if d := g.port.RX.Read(i); got != 1 || d.Addr != 3*2048+umem.Headroom || d.Len != 1 {
		t.Fatalf("descriptor %+v", d)
	}
}

// Frames leave when Transmit says, and are done when Complete says, in order.
func TestTransmitLateCompletion(t *testing.T) {
	g := newRig(t, 8, 4, 4, 4, 8)
	for i := range byte(6) {
		g.send([]byte{i})
	}
	var out []byte
	sent := func(frame []byte) { out = append(out, frame...) }
	if n := g.nic.Transmit(2, sent); n != 2 || g.nic.InFlight() != 2 || g.port.TX.Pending() != 4 || g.port.Comp.Avail() != 0 {
		t.Fatalf("sent %d, in flight %d, pending %d, completed %d; want 2, 2, 4, 0", n, g.nic.InFlight(), g.port.TX.Pending(), g.port.Comp.Avail())
	}
	// The completion ring has four slots: that is how many may be in flight.
	if n := g.nic.Transmit(9, sent); n != 2 || g.nic.InFlight() != 4 {
		t.Fatalf("sent %d more, in flight %d; want 2 and 4", n, g.nic.InFlight())
	}
	if n := g.nic.Complete(3); n != 3 {
		t.Fatalf("completed %d, want 3", n)
	}
	if fs := g.reap(); len(fs) != 3 || fs[0] != 0 || fs[1] != 1 || fs[2] != 2 {
		t.Fatalf("completed frames %v, want 0 1 2", fs)
	}
	if n := g.nic.Transmit(9, sent); n != 2 || !bytes.Equal(out, []byte{0, 1, 2, 3, 4, 5}) || g.stats().TxRingEmptyDescs != 1 {
		t.Fatalf("sent %d more, %v in all, stats %+v; want 2, 0 to 5, ring found empty once", n, out, g.stats())
	}
	if n := g.nic.Complete(9); n != 3 || len(g.reap()) != 3 || g.nic.InFlight() != 0 || g.pool.Avail() != 8 {
		t.Fatalf("completed %d, %d frames free; want 3 and 8", n, g.pool.Avail())
	}
}

func TestTransmitInvalid(t *testing.T) {
	bad := []rings.Desc{
		{Addr: 8 * 2048, Len: 60}, // behind the region
		{Addr: 1<<64 - 1, Len: 60},
		{Addr: 2048 - 59, Len: 60}, // over the end of its chunk
		{Addr: 256, Len: 1<<32 - 1},
		{Addr: 256, Len: 0},
		{Addr: 256, Len: 60, Options: 1 << 9}, // unknown option
	}
	for _, lossy := range []bool{false, true} {
		g := newRig(t, 8, 4, 16, 4, 16)
		g.nic.SetLossy(lossy)
		for _, d := range bad {
			g.post(d)
		}
		g.post(rings.Desc{Addr: 2048 - 60, Len: 60})
		for i, d := range bad {
			if n := g.nic.Transmit(99, nil); n != 0 || g.stats().TxInvalidDescs != uint64(i)+1 {
				t.Fatalf("%+v: sent %d, stats %+v; want it to end the call and be counted", d, n, g.stats())
			}
		}
		if n := g.nic.Transmit(99, func(packet []byte) {
			if len(packet) != 60 {
				t.Errorf("sent a packet of %d bytes, want 60", len(packet))
			}
		}); n != 1 {
			t.Fatalf("sent %d good entries, want 1", n)
		}
		want := []uint64{2048 - 60}
		if !lossy {
			want = nil
			for _, d := range bad {
				want = append(want, d.Addr)
			}
			want = append(want, 2048-60)
		}
		if n := g.nic.Complete(99); n != len(want) {
			t.Fatalf("lossy %v: %d completions, want %d", lossy, n, len(want))
		}
		idx, _ := g.port.Comp.Peek(99)
		for i, addr := range want {
			if got := g.port.Comp.Read(idx + uint32(i)); got != addr {
				t.Errorf("lossy %v: completion %d is %#x, want %#x", lossy, i, got, addr)
			}
		}
	}
}

// A packet of several descriptors leaves in one piece, also when it is sent in
// two calls, and not at all when a part is bad.
func TestTransmitContinued(t *testing.T) {
	g := newRig(t, 8, 4, 16, 4, 16)
	copy(g.pool.Chunk(0), "one ")
	copy(g.pool.Chunk(1), "two ")
	copy(g.pool.Chunk(2), "three")
	part := func(f uint64, n uint32, options uint32) { g.post(rings.Desc{Addr: f * 2048, Len: n, Options: options}) }
	part(0, 4, rings.DescContinued)
	part(1, 4, rings.DescContinued)
	part(2, 5, 0)
	part(2, 5, 0)
	part(0, 4, rings.DescContinued)
	part(99, 4, 0)
	part(2, 5, 0)
	var packets []string
	for _, n := range []int{2, 99, 99} {
		g.nic.Transmit(n, func(packet []byte) { packets = append(packets, string(packet)) })
	}
	if want := []string{"one two three", "three", "three"}; !slices.Equal(packets, want) {
		t.Fatalf("packets %q, want %q", packets, want)
	}
	if n := g.nic.Complete(99); n != 7 {
		t.Fatalf("%d completions, want one for each descriptor, 7", n)
	}
}

func TestDown(t *testing.T) {
	g := newRig(t, 8, 4, 4, 4, 4)
	g.fill(4)
	g.send([]byte("x"))
	if err := errors.Join(g.port.Dev.Kick(), g.port.Dev.WakeRX()); err != nil || g.nic.Kicks() != 1 || g.nic.Wakes() != 1 {
		t.Fatalf("%v, %d kicks, %d wakes; want one each", err, g.nic.Kicks(), g.nic.Wakes())
	}
	g.nic.Transmit(1, nil)
	g.nic.SetDown(true)
	for name, err := range map[string]error{"Kick": g.port.Dev.Kick(), "WakeRX": g.port.Dev.WakeRX()} {
		if !errors.Is(err, rings.ErrDeviceDown) {
			t.Errorf("%s of a dead NIC: %v", name, err)
		}
	}
	if g.nic.Deliver([]byte("x")) || g.nic.Transmit(1, nil) != 0 || g.nic.Complete(1) != 0 {
		t.Error("a dead NIC moves frames")
	}
	g.nic.SetDown(false)
	if !g.nic.Deliver([]byte("x")) || g.nic.Complete(1) != 1 {
		t.Error("a NIC that is up again moves no frames")
	}
	if err := g.port.Dev.Close(); err != nil || g.port.Dev.FD() != -1 || g.port.Dev.Kick() == nil {
		t.Errorf("closed: %v, fd %d", err, g.port.Dev.FD())
	}
}

func TestNeedWakeup(t *testing.T) {
	g := newRig(t, 8, 4, 4, 4, 4)
	if !g.port.TX.NeedWakeup() || g.port.Fill.NeedWakeup() {
		t.Error("not like veth: TX always, fill never")
	}
	g.nic.SetNeedWakeup(false, true)
	if g.port.TX.NeedWakeup() || !g.port.Fill.NeedWakeup() {
		t.Error("SetNeedWakeup does not reach the port")
	}
}

// An echo under random steps keeps the frame law, loses no packet it took, and
// keeps their order.
func TestEchoRandomSteps(t *testing.T) {
	seed := seeds.One(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	g := newRig(t, 16, 8, 4, 4, 8)
	var arrived, left uint32
	held := []umem.Frame{}
	step := func(kind int) {
		switch n := 1 + rnd.IntN(5); kind {
		case 0:
			g.fill(uint32(n))
		case 1:
			if g.nic.Deliver([]byte{byte(arrived), byte(arrived >> 8), byte(arrived >> 16)}) {
				arrived++
			}
		case 2:
			g.receive(func(f umem.Frame, _ []byte) {
				g.pool.Move(f, umem.RX, umem.Held)
				held = append(held, f)
			})
		case 3:
			for len(held) > 0 && g.post(rings.Desc{Addr: g.pool.Region().Addr(held[0]) + umem.Headroom, Len: 3}) {
				g.pool.Move(held[0], umem.Held, umem.TX)
				held = held[1:]
			}
		case 4:
			g.nic.Transmit(n, func(b []byte) {
				if got := uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16; got != left {
					t.Fatalf("seed %d: packet %d leaves, want %d", seed, got, left)
				}
				left++
			})
		case 5:
			g.nic.Complete(n)
		case 6:
			g.reap()
		}
	}
	for range 50_000 {
		step(rnd.IntN(7))
	}
	for range 16 { // let what is inside out
		for kind := 2; kind < 7; kind++ {
			step(kind)
		}
	}
	counts := g.pool.Ledger().Counts()
	if arrived < 1000 || left != arrived || counts[umem.Free]+counts[umem.Fill] != 16 || counts[umem.Fill] != int(g.port.Fill.Pending()) {
		t.Fatalf("seed %d: %d arrived, %d left, frames %v, %d in the fill ring", seed, arrived, left, counts, g.port.Fill.Pending())
	}
}
