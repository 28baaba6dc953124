package reactor

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// cut posts a packet as a device does that takes so many bytes for a frame.
func (g *far) cut(packet []byte, n int) {
	g.t.Helper()
	for len(packet) > n {
		g.good(packet[:n], rings.DescContinued)
		packet = packet[n:]
	}
	g.good(packet, 0)
}

func jumbo(_ *Config, h *sockets.Config) { h.MTU, h.PacketFrames = 4000, 3 }

// TestParts: packets of several frames arrive whole, also when a turn ends within one, and are dropped whole when one of
// their frames is bad, or there are too many.
func TestParts(t *testing.T) {
	g := newFar(t, jumbo)
	s := g.bind(7)
	payload := bytes.Repeat([]byte("0123456789"), 300)
	packet := bytes.Clone(g.udpFrame(7, payload))
	g.cut(packet, 1500)
	g.good(packet[:1500], rings.DescContinued)
	if got := g.received(s); got != 1 { // the turn ends within the packet
		t.Errorf("%d datagrams received, want 1", got)
	}
	if c := g.pool.Ledger().Counts(); c[umem.RX] != 1 {
		t.Errorf("between its frames: %v", c)
	}
	g.good(packet[1500:3000], rings.DescContinued)
	g.good(packet[3000:], 0)
	if got := g.received(s); got != 1 {
		t.Errorf("%d datagrams received, want 1", got)
	}
	g.cut(packet, 900) // four frames
	for _, bad := range []rings.Desc{
		{Addr: 1 << 63, Len: 5}, {Addr: g.raw.Addr(200) + umem.Headroom, Len: 5}, // no frame of ours
	} {
		for at := range 3 {
			for i := range 3 {
				d := bad
				if i != at {
					d = rings.Desc{Addr: g.raw.Addr(g.take(packet[:1500])) + umem.Headroom, Len: 1500}
				}
				if i < 2 {
					d.Options = rings.DescContinued
				}
				g.post(d)
			}
			g.settle()
		}
	}
	for _, n := range []uint32{0, 2048 - umem.Headroom + 1} { // in a frame of ours that cannot hold them
		g.good(packet[:1500], rings.DescContinued)
		g.post(rings.Desc{Addr: g.raw.Addr(g.take(nil)) + umem.Headroom, Len: n, Options: rings.DescContinued})
		g.good(packet[:100], 0)
	}
	g.cut(packet, 1500)
	if got := g.received(s); got != 1 {
		t.Errorf("%d datagrams received after all that, want 1", got)
	}
	c := g.r.Counters()
	if c.RxBadChain != 1+6+2 || c.RxBadDesc != 0 || c.RxFrames != g.host.Counters().Stats[sockets.RxFrames]+c.RxBadChain {
		t.Errorf("counted %+v", c)
	}
	if counts := g.pool.Ledger().Counts(); counts[umem.RX]+counts[umem.Held] != 0 {
		t.Errorf("frames are left over: %v", counts)
	}
}

// TestPartsUnasked: with packets of one frame no other is taken.
func TestPartsUnasked(t *testing.T) {
	g := newFar(t)
	s := g.bind(7)
	packet := bytes.Clone(g.udpFrame(7, []byte("hello")))
	g.cut(packet, 45)
	g.cut(packet, 20)
	g.good(packet, 0)
	if got := g.received(s); got != 1 {
		t.Errorf("%d datagrams received, want 1", got)
	}
	if c := g.r.Counters(); c.RxBadChain != 2 || c.RxMore != 3 || c.RxFrames != 3 {
		t.Errorf("counted %+v", c)
	}
	if counts := g.pool.Ledger().Counts(); counts[umem.RX] != 0 {
		t.Errorf("frames are left over: %v", counts)
	}
}

// TestPartsSent: a packet enters the TX ring with all its frames, or not yet.
func TestPartsSent(t *testing.T) {
	tx := rings.NewPlain[rings.Desc](16)
	g := newFar(t, jumbo, func(c *Config, _ *sockets.Config) { c.Port.TX = tx.Producer() })
	g.tx = tx.Consumer()
	s := g.bind(7)
	g.good(g.arpFrame(proto.ARPRequest), 0)
	g.settle()
	g.takeTX(64)
	payload := bytes.Repeat([]byte("0123456789"), 390)
	const packets = 15 // of three frames: five fit into the ring
	g.enter(func(h *sockets.Host, now int64) {
		for range packets {
			if err := h.UDPSend(s, payload, peerPort, now); err != 0 {
				t.Fatal(err)
			}
		}
	})
	sent, part := 0, 0
	for sent < packets {
		g.settle()
		if n := g.tx.Avail(); n%3 != uint32(part) {
			t.Fatalf("%d descriptors in the ring, %d of them the rest of a packet", n, part)
		}
		descs := g.takeTX(5) // no multiple: packets stay in part
		part = (part - len(descs) + 9) % 3
		if len(descs) == 0 {
			t.Fatal("nothing more is sent")
		}
		for _, d := range descs {
			if d.Options&rings.DescContinued == 0 {
				sent++
			}
		}
	}
	if c := g.r.Counters(); c.TxMore != 2*packets || c.TxFrames != packets+1 { // with an ARP reply
		t.Errorf("counted %+v", c)
	}
}

// takeTX takes up to n descriptors from the TX ring and completes them.
func (g *far) takeTX(n uint32) (descs []rings.Desc) {
	idx, got := g.tx.Peek(n)
	for i := range got {
		d := g.tx.Read(idx + i)
		descs = append(descs, d)
		slot, _ := g.comp.Reserve(1)
		*g.comp.Slot(slot) = d.Addr
	}
	g.comp.Submit(got)
	g.tx.Release(got)
	return descs
}

// TestPartsRing: a ring that no packet fits into is refused.
func TestPartsRing(t *testing.T) {
	g := newRig(t, options{change: jumbo})
	port := *g.port
	port.TX = rings.NewPlain[rings.Desc](2).Producer()
	if r, err := New(Config{Port: &port, Pool: g.pool, Host: g.host}); err == nil {
		r.Close()
		t.Error("a TX ring of 2 takes packets of 3 frames")
	}
}

// TestPartsHostile: whatever a device says, frames stay where the ledger has them and every packet is counted once.
func TestPartsHostile(t *testing.T) {
	g := newFar(t, jumbo)
	s := g.bind(7)
	seed := seeds.One(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	packet := bytes.Clone(g.udpFrame(7, make([]byte, 1500)))
	for range 20_000 {
		d := rings.Desc{Addr: rnd.Uint64(), Len: rnd.Uint32N(3000)}
		if rnd.IntN(8) > 0 {
			off := umem.Headroom
			if rnd.IntN(8) == 0 {
				off = rnd.IntN(2048)
			}
			d.Addr = g.raw.Addr(g.take(packet)) + uint64(off)
		}
		if rnd.IntN(2) == 0 {
			d.Options = rings.DescContinued
		}
		g.post(d)
		if rnd.IntN(3) > 0 {
			continue
		}
		g.received(s)
		for len(g.takeTX(64)) > 0 {
			g.settle()
		}
		c, l := g.r.Counters(), g.pool.Ledger().Counts()
		if c.RxFrames != g.host.Counters().Stats[sockets.RxFrames]+c.RxBadDesc+c.RxBadChain {
			t.Fatalf("seed %d: %d packets reached the Host; counted %+v", seed, g.host.Counters().Stats[sockets.RxFrames], c)
		}
		// A descriptor that points nowhere takes a frame's place in the fill ring; the frame itself stays with the device.
		if l[umem.RX] != g.r.parts.n || l[umem.Held] != 0 || l[umem.Free]+l[umem.Fill]+l[umem.RX] != 128 {
			t.Fatalf("seed %d: %v, %d frames of a packet in progress", seed, l, g.r.parts.n)
		}
	}
	if c := g.r.Counters(); c.RxBadChain == 0 || c.RxMore == 0 || g.host.Counters().Stats[sockets.RxUDP] == 0 {
		t.Errorf("nothing happened: %+v", c)
	}
}
