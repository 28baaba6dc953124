package asavie_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/asavie/xdp"
	"golang.org/x/sys/unix"

	"xdpd/rings"
	"xdpd/rings/asavie"
	"xdpd/rings/internal/vethtest"
	"xdpd/umem"
)

var options = xdp.SocketOptions{
	NumFrames: 128, FrameSize: 2048,
	FillRingNumDescs: 64, CompletionRingNumDescs: 32, RxRingNumDescs: 16, TxRingNumDescs: 64,
}

func newSocket(t *testing.T, p *vethtest.Pair, o xdp.SocketOptions) *xdp.Socket {
	t.Helper()
	var s *xdp.Socket
	if err := p.Do(func() (err error) {
		s, err = xdp.NewSocket(p.Ifindex, 0, &o)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// rig is a veth pair with the library's socket, the adapter, and a pool of all
// its frames with a ledger.
type rig struct {
	t       *testing.T
	pair    *vethtest.Pair
	sock    *xdp.Socket
	adapter *asavie.Adapter
	port    *rings.Port
	pool    *umem.Pool
}

func newRig(t *testing.T) *rig {
	t.Helper()
	g := &rig{t: t, pair: vethtest.New(t, 1)}
	g.sock = newSocket(t, g.pair, options)
	var err error
	if g.adapter, err = asavie.New(g.sock); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { g.adapter.Close() })
	g.port = g.adapter.Port()
	r := g.adapter.Region()
	g.pool = umem.NewPool(r, 0, r.Frames(), umem.NewLedger(r.Frames()))
	return g
}

func (g *rig) wakeRX() {
	g.t.Helper()
	if err := g.port.Dev.WakeRX(); err != nil {
		g.t.Fatal(err)
	}
}

func (g *rig) fill(n uint32) {
	idx, got := g.port.Fill.Reserve(n)
	for i := range got {
		*g.port.Fill.Slot(idx + i) = g.pool.Region().Addr(g.pool.Get(umem.Fill))
	}
	g.port.Fill.Submit(got)
	g.wakeRX()
}

func (g *rig) send(number uint32) {
	f := g.pool.Get(umem.TX)
	copy(g.pool.Chunk(f)[umem.Headroom:], vethtest.Frame(number, 60))
	g.post(rings.Desc{Addr: g.pool.Region().Addr(f) + umem.Headroom, Len: 60})
}

func (g *rig) post(d rings.Desc) {
	g.t.Helper()
	idx, got := g.port.TX.Reserve(1)
	if got != 1 {
		g.t.Fatal("TX ring is full")
	}
	*g.port.TX.Slot(idx) = d
	g.port.TX.Submit(1)
}

func (g *rig) reap() int {
	g.wakeRX()
	idx, got := g.port.Comp.Peek(1024)
	for i := range got {
		f, ok := g.pool.Region().FrameOf(g.port.Comp.Read(idx + i))
		if !ok {
			g.t.Fatalf("completion of %#x", g.port.Comp.Read(idx+i))
		}
		g.pool.Move(f, umem.TX, umem.Comp)
		g.pool.Put(f, umem.Comp)
	}
	g.port.Comp.Release(got)
	return int(got)
}

func (g *rig) kickUntilTaken() {
	g.t.Helper()
	vethtest.Until(g.t, "TX ring empty", func() bool {
		if err := g.port.Dev.Kick(); err != nil {
			g.t.Fatal(err)
		}
		g.reap() // the completion ring is smaller than the batch
		return g.port.TX.Pending() == 0
	})
}

func TestSizes(t *testing.T) {
	g := newRig(t)
	r := g.adapter.Region()
	if r.Frames() != 128 || r.ChunkSize() != 2048 || r.FD() != -1 {
		t.Errorf("region of %d frames of %d bytes, fd %d", r.Frames(), r.ChunkSize(), r.FD())
	}
	if p := g.port; p.Fill.Size() != 64 || p.Comp.Size() != 32 || p.RX.Size() != 16 || p.TX.Size() != 64 {
		t.Errorf("rings of %d, %d, %d, %d; want 64, 32, 16, 64", p.Fill.Size(), p.Comp.Size(), p.RX.Size(), p.TX.Size())
	}
	if !g.port.Fill.NeedWakeup() || !g.port.TX.NeedWakeup() || g.port.Dev.FD() != g.sock.FD() {
		t.Error("the port does not ask to be pumped, or has another fd")
	}
	frame := g.sock.GetFrame(xdp.Desc{Addr: 3 * 2048, Len: 2048})
	if r.Chunk(3)[7] = 99; frame[7] != 99 {
		t.Error("the region is not the library's memory")
	}
}

// The library's own program redirects, as in a program that comes over.
func TestReceive(t *testing.T) {
	g := newRig(t)
	prog, err := xdp.NewProgram(1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { prog.Close() })
	if err := g.pair.Do(func() error { return prog.Attach(g.pair.Ifindex) }); err != nil {
		t.Fatal(err)
	}
	if err := prog.Register(0, g.sock.FD()); err != nil {
		t.Fatal(err)
	}
	peer := g.pair.Packet(t)
	g.fill(48)
	// Rounds of eight: around every ring several times.
	for i := uint32(0); i < 200; i += 8 {
		for j := range uint32(8) {
			peer.Send(vethtest.Frame(i+j, 64))
		}
		next := i
		vethtest.Until(t, "eight packets", func() bool {
			g.wakeRX()
			idx, got := g.port.RX.Peek(64)
			for k := range got {
				d := g.port.RX.Read(idx + k)
				f, _ := g.pool.Region().FrameOf(d.Addr)
				g.pool.Move(f, umem.Fill, umem.RX)
				if packet := g.pool.Region().Mem()[d.Addr:][:d.Len]; !bytes.Equal(packet, vethtest.Frame(next, 64)) {
					t.Fatalf("packet %d is %x", next, packet)
				}
				next++
				g.pool.Put(f, umem.RX)
			}
			g.port.RX.Release(got)
			g.fill(got)
			return next == i+8
		})
	}
	if c := g.pool.Ledger().Counts(); c[umem.Fill] != 48 || c[umem.Free] != 80 {
		t.Fatalf("frames %v, want 48 filled and 80 free", c)
	}
}

func TestTransmit(t *testing.T) {
	g := newRig(t)
	peer := g.pair.Packet(t)
	number, done := uint32(0), 0
	for range 5 {
		first := number
		for range 64 { // twice the completion ring, and two kicks of the kernel's 32
			g.send(number)
			number++
		}
		if err := g.port.Dev.Kick(); err != nil {
			t.Fatal(err)
		}
		if left := g.port.TX.Pending(); left == 0 || left == 64 {
			t.Fatalf("%d entries left after one kick; the kernel takes some, not all", left)
		}
		g.kickUntilTaken()
		for i := first; i < number; i++ {
			if got := peer.Receive(); !bytes.Equal(got, vethtest.Frame(i, 60)) {
				t.Fatalf("frame %d is %x", i, got)
			}
		}
		vethtest.Until(t, "completions", func() bool {
			done += g.reap()
			return g.pool.Avail() == 128
		})
	}
}

func TestBadDescriptors(t *testing.T) {
	g := newRig(t)
	peer := g.pair.Packet(t)
	outside := uint64(len(g.adapter.Region().Mem()))
	idx, _ := g.port.Fill.Reserve(1)
	*g.port.Fill.Slot(idx) = outside
	g.port.Fill.Submit(1)
	g.wakeRX()
	g.post(rings.Desc{Addr: outside, Len: 60})
	g.send(1)
	g.post(rings.Desc{Addr: outside, Len: 60})
	// Over the end of its chunk: the kernel's to refuse.
	g.post(rings.Desc{Addr: g.pool.Region().Addr(g.pool.Get(umem.TX)) + 2000, Len: 60})
	g.send(2)
	g.kickUntilTaken()
	for i := uint32(1); i <= 2; i++ {
		if got := peer.Receive(); !bytes.Equal(got, vethtest.Frame(i, 60)) {
			t.Fatalf("frame %d is %x", i, got)
		}
	}
	st, err := g.port.Dev.Stats()
	if err != nil || st.RxInvalidDescs != 1 || st.TxInvalidDescs != 3 {
		t.Fatalf("stats %+v, %v; want 1 invalid fill entry and 3 invalid TX entries", st, err)
	}
}

// The library panics when sendto fails; a port gives an error.
func TestInterfaceDeleted(t *testing.T) {
	g := newRig(t)
	g.pair.Delete(t)
	g.send(0)
	for name, err := range map[string]error{"Kick": g.port.Dev.Kick(), "WakeRX": g.port.Dev.WakeRX()} {
		if !errors.Is(err, rings.ErrDeviceDown) || !errors.Is(err, unix.ENXIO) {
			t.Errorf("%s after the interface was deleted: %v, want ErrDeviceDown and ENXIO", name, err)
		}
	}
}

// Close must let go of the queue, which the library alone does not.
func TestCloseAndReopen(t *testing.T) {
	g := newRig(t)
	g.send(0)
	g.kickUntilTaken()
	if err := errors.Join(g.adapter.Close(), g.adapter.Close()); err != nil {
		t.Fatal(err)
	}
	if g.port.Dev.FD() != -1 || !errors.Is(g.port.Dev.Kick(), rings.ErrDeviceDown) || !errors.Is(g.port.Dev.WakeRX(), rings.ErrDeviceDown) {
		t.Error("a closed adapter works on")
	}
	if _, err := g.port.Dev.Stats(); err == nil {
		t.Error("a closed adapter has statistics")
	}
	r, err := umem.New(umem.Options{Frames: 64, ChunkSize: 2048})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	err = g.pair.Do(func() error {
		s, err := rings.OpenSocket(r, rings.SocketOptions{Interface: vethtest.Dev, Ifindex: g.pair.Ifindex})
		if err != nil {
			return err
		}
		return s.Close()
	})
	if err != nil {
		t.Fatalf("a socket of ours on the same queue: %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	p := vethtest.New(t, 1)
	noTX, busy := options, options
	noTX.TxRingNumDescs = 0
	for _, c := range []struct {
		words string
		o     xdp.SocketOptions
		use   func(s *xdp.Socket)
	}{
		{"made without an RX or a TX ring", noTX, func(*xdp.Socket) {}},
		{"has frames under way", busy, func(s *xdp.Socket) { s.Fill(s.GetDescs(1)) }},
	} {
		s := newSocket(t, p, c.o)
		c.use(s)
		if _, err := asavie.New(s); err == nil || !strings.Contains(err.Error(), c.words) {
			t.Errorf("error %v does not say %q", err, c.words)
		}
		s.Close()
		p = vethtest.New(t, 1) // the library's rings keep the queue taken
	}
	s := newSocket(t, p, options)
	s.Close()
	if _, err := asavie.New(s); err == nil || !strings.Contains(err.Error(), "the socket is closed") {
		t.Errorf("closed socket: %v", err)
	}
}
