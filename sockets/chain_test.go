package sockets

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
	"xdpd/umem"
)

const jumboMTU = 9000

// jumbo has packets of several frames.
func jumbo(c *Config) { c.MTU, c.PacketFrames = jumboMTU, 6 }

// inputCut hands the Host a packet cut where the test says, for a device cuts as it likes.
func (k *kit) inputCut(packet []byte, at ...int) {
	k.t.Helper()
	var pieces []Piece
	from := 0
	for _, to := range append(at, len(packet)) {
		k.refill()
		f := k.fill[len(k.fill)-1]
		k.fill = k.fill[:len(k.fill)-1]
		k.pool.Move(f, umem.Fill, umem.RX)
		n := copy(k.pool.Chunk(f)[umem.Headroom:], packet[from:to])
		pieces = append(pieces, Piece{f, umem.Headroom, uint16(n)})
		from = to
	}
	k.h.InputPieces(pieces, k.now)
	k.refill()
}

func TestPacketFramesConfig(t *testing.T) {
	region, err := umem.Wrap(make([]byte, 64*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ mtu, frames, most int }{{1771, 0, 1770}, {3563, 2, 3562}, {9000, 5, 8938}, {100, 19, MaxPacketFrames}} {
		_, err := New(Config{MTU: c.mtu, PacketFrames: c.frames, KernelNeighbours: true}, umem.NewPool(region, 0, 64, nil), 1)
		if err == nil || !strings.Contains(err.Error(), fmt.Sprint(c.most)) {
			t.Errorf("MTU %d in %d frames: %v; want %d named", c.mtu, c.frames, err, c.most)
		}
	}
	for _, c := range []struct{ chunk, frames, mtu int }{{2048, 1, 1770}, {4096, 1, 3818}, {4096, 18, 65535}, {2048, 18, 32234}} {
		if got := MaxMTU(c.chunk, c.frames); got != c.mtu {
			t.Errorf("%d frames of %d bytes take an MTU of %d, want %d", c.frames, c.chunk, got, c.mtu)
		}
	}
}

// TestChainUDP has datagrams of all sizes come and go: in one frame, in several, in fragments of several frames each.
func TestChainUDP(t *testing.T) {
	k := newKit(t, jumbo)
	s, _ := k.h.UDPBind(0, 7)
	room := k.h.room
	sizes := []int{0, 1, room - 8, room - 7, room, room + 1, 2*room - 42, 2*room - 41, 4000, jumboMTU - 28, jumboMTU - 27, 20000, MaxUDP}
	buf := make([]byte, MaxUDP)
	for _, n := range sizes {
		before := k.h.counters
		data := pattern(n)
		body := udpBytes(peerIP, usIP, 5000, 7, data)
		per := jumboMTU - 20
		if len(body) > per {
			per &^= 7
		}
		frames := ipPacket{proto: 17, body: body}.fragments(per)
		k.inject(frames...)
		d, err := k.h.UDPRecv(s, buf)
		if err != 0 || d.N != n || !bytes.Equal(buf[:n], data) {
			t.Fatalf("%d bytes: received %+v, %v", n, d, err)
		}
		if err := k.h.UDPSend(s, data, netip.AddrPort{}, k.now); err != EDESTADDRREQ {
			t.Fatal(err)
		}
		if err := k.h.UDPSend(s, data, port(peerIP, 5000), k.now); err != 0 {
			t.Fatalf("send %d bytes: %v", n, err)
		}
		var got []byte
		out := k.sent()
		for _, b := range out {
			if len(b) > jumboMTU+14 || proto.Checksum(b[14:34]) != 0 {
				t.Fatalf("%d bytes: a packet of %d bytes, or a bad header", n, len(b)-14)
			}
			got = append(got, b[34:]...)
		}
		if len(out) != len(frames) || len(got) != n+8 || !bytes.Equal(got[8:], data) {
			t.Fatalf("%d bytes leave as %d packets with %d bytes of UDP; %d came", n, len(out), len(got), len(frames))
		}
		if proto.Fold(proto.Sum(got, proto.PseudoSum(usIP, peerIP, 17, len(got)))) != 0xffff {
			t.Errorf("%d bytes: the checksum is wrong", n)
		}
		after := k.h.counters
		if rx, tx := after.Stats[RxFrames]-before.Stats[RxFrames], after.Stats[TxFrames]-before.Stats[TxFrames]; int(rx) != len(frames) || tx != rx {
			t.Errorf("%d bytes: counted %d in and %d out, want %d", n, rx, tx, len(frames))
		}
		if drops := k.drops(before); len(drops) != 0 {
			t.Errorf("%d bytes: dropped %v", n, drops)
		}
		k.check()
	}
}

// TestChainCuts: a packet may be cut anywhere behind its headers, at odd places too, and have padding in frames of its
// own.
func TestChainCuts(t *testing.T) {
	k := newKit(t, jumbo)
	s, _ := k.h.UDPBind(0, 7)
	seed := seeds.One(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	buf := make([]byte, 4000)
	for range 2000 {
		data := pattern(rnd.IntN(4000))
		packet := append(udpFrame(5000, 7, data), make([]byte, rnd.IntN(3)*rnd.IntN(1000))...)
		var cuts []int
		for at := 42 + rnd.IntN(20); at < len(packet) && len(cuts) < 5; at += 1 + rnd.IntN(1500) {
			cuts = append(cuts, at)
		}
		if last := append([]int{0}, cuts...)[len(cuts)]; len(packet)-last > k.h.room {
			continue
		}
		k.inputCut(packet, cuts...)
		if d, err := k.h.UDPRecv(s, buf); err != 0 || !bytes.Equal(buf[:d.N], data) {
			t.Fatalf("seed %d: %d bytes in a packet of %d cut at %v: %+v, %v", seed, len(data), len(packet), cuts, d, err)
		}
	}
	k.check()
}

// TestChainBad: what cannot be read, because the headers do not lie in the first frame, is dropped with the parsers'
// reasons, and with all its frames.
func TestChainBad(t *testing.T) {
	k := newKit(t, jumbo)
	packet := udpFrame(5000, 7, pattern(3000))
	segment := (&tcpSeg{sport: 1, dport: 2, flags: syn, data: pattern(100)}).frame()
	arp := arpRequest(peerMAC, peerIP, usIP)
	k.wantDrops(func() {
		k.inputCut(packet, 10, 1500)
		k.inputCut(packet, 14, 1500)
		k.inputCut(packet, 33, 1500)
		k.inputCut(packet, 34, 1500)
		k.inputCut(packet, 41, 1500)
		k.inputCut(segment, 50)
		k.inputCut(packet[:2000], 1500) // the end is missing
		k.inputCut(arp, 20)
		bad := bytes.Clone(packet)
		bad[2500] ^= 1
		k.inputCut(bad, 1500)
	}, map[Drop]uint64{
		Drop(proto.EthShort): 1, Drop(proto.IPShort): 2, Drop(proto.UDPShort): 2, Drop(proto.TCPShort): 1,
		Drop(proto.IPTotalLen): 1, Drop(proto.ARPShort): 1, Drop(proto.UDPChecksum): 1,
	})
	k.check()
}

// TestChainPing answers in the frames that brought the request.
func TestChainPing(t *testing.T) {
	k := newKit(t, jumbo)
	k.inject(icmpFrame(8, 0, 0x10001, pattern(8900)))
	if c := k.pool.Ledger().Counts(); c[umem.Held] != 5 {
		t.Errorf("%d frames are held, want the 5 of the request", c[umem.Held])
	}
	out := k.sent()
	if len(out) != 1 || len(out[0]) != 14+20+8+8900 || !bytes.Equal(out[0][42:], pattern(8900)) || inetSum(out[0][34:]) != 0 {
		t.Fatalf("%d packets answer", len(out))
	}
}

// TestChainWaits: a packet of several frames waits for its neighbour like any other.
func TestChainWaits(t *testing.T) {
	k := arpKit(t, jumbo)
	s, _ := k.h.UDPBind(0, 7)
	for n := range 3 {
		if err := k.h.UDPSend(s, pattern(5000+n), port(peerIP, 5000), k.now); err != 0 {
			t.Fatal(err)
		}
	}
	k.check()
	k.answers[peerIP] = peerMAC
	out := k.sent()
	if len(out) != 3 {
		t.Fatalf("%d packets leave, want 3", len(out))
	}
	for n, b := range out {
		if !bytes.Equal(b[42:], pattern(5000+n)) {
			t.Errorf("packet %d is changed", n)
		}
	}
	k.wantDrops(func() {
		k.h.UDPSend(s, pattern(5000), port(peerIP+1, 5000), k.now)
		k.sleep(10 * second)
	}, map[Drop]uint64{NeighFailed: 1})
}

// TestChainFragments: the pieces of a datagram in frames of their own; a copy is ignored, an overlap is not.
func TestChainFragments(t *testing.T) {
	k := newKit(t, jumbo)
	s, _ := k.h.UDPBind(0, 7)
	body := udpBytes(peerIP, usIP, 5000, 7, pattern(20000))
	f := ipPacket{proto: 17, body: body}.fragments(8976)
	k.wantDrops(func() { k.inject(f[2], f[0], f[0], f[2], f[1]) }, map[Drop]uint64{FragDuplicate: 2})
	if d, err := k.h.UDPRecv(s, make([]byte, 30000)); err != 0 || d.N != 20000 {
		t.Errorf("%+v, %v", d, err)
	}
	g := ipPacket{proto: 17, id: 9, body: body}.fragments(8976)
	h := ipPacket{proto: 17, id: 9, body: body}.fragments(4000)
	k.wantDrops(func() { k.inject(g[0], g[2], h[1]) }, map[Drop]uint64{FragOverlap: 3})
	k.check()
}

// TestChainTCP: segments of several frames out, again after a loss, and in.
func TestChainTCP(t *testing.T) {
	k := newKit(t, jumbo)
	l, _ := k.h.TCPListen(0, 80)
	p := dialOpts(k, 80, 1000, concat(optMSS(jumboMTU-40), optWScale(7), []byte{4, 2, 1, 1}))
	h, err := k.h.TCPAccept(l)
	if err != 0 {
		t.Fatal(err)
	}
	data := pattern(60000)
	if n, err := k.h.TCPWrite(h, data, k.now); n != len(data) || err != 0 {
		t.Fatal(n, err)
	}
	segs := p.got()
	if len(segs) != 7 {
		t.Fatalf("%d segments for 60000 bytes, want 7", len(segs))
	}
	for i, s := range segs[:6] {
		if len(s.data) != jumboMTU-40 || !bytes.Equal(s.data, data[i*len(s.data):][:len(s.data)]) {
			t.Errorf("segment %d has %d bytes, or others", i, len(s.data))
		}
	}
	// The second is lost: a SACK for the others brings it again, in one piece.
	lost, end := segs[1], segs[6].seq+uint32(len(segs[6].data))
	a := p.seg(ack, nil)
	a.ack = lost.seq
	a.opts = concat([]byte{1, 1, 5, 10}, be32(segs[2].seq), be32(end))
	k.now += 10 * ms
	k.inject(a.frame())
	k.check()
	again := p.one()
	if again.seq != lost.seq || !bytes.Equal(again.data, lost.data) {
		t.Fatalf("%d bytes come again, want the %d that were lost", len(again.data), len(lost.data))
	}
	if got := k.h.counters.Stats[TCPRetransmits]; got != 1 {
		t.Errorf("%d segments sent again are counted, want 1", got)
	}
	p.ack = end
	for n := 0; n < 56000; n += 8000 {
		p.send(ack|psh, data[n:n+8000])
	}
	c := conn{tpeer: p, h: h}
	c.wantRead(data[:56000])
	k.check()
}

// TestChainWindow: a window that ends within a segment takes what is worth it, and the rest when it opens.
func TestChainWindow(t *testing.T) {
	k := newKit(t, jumbo)
	l, _ := k.h.TCPListen(0, 80)
	p := newPeer(k, 80, 1000)
	p.wnd = 12000
	synSent(k, p, optMSS(jumboMTU-40))
	p.ackAll()
	h, err := k.h.TCPAccept(l)
	if err != 0 {
		t.Fatal(err)
	}
	data := pattern(30000)
	if _, err := k.h.TCPWrite(h, data, k.now); err != 0 {
		t.Fatal(err)
	}
	if s := p.one(); len(s.data) != jumboMTU-40 {
		t.Fatalf("%d bytes into a window of 12000, want a segment", len(s.data))
	}
	var got []byte
	for round := 0; len(got) < 21040 && round < 1000; round++ {
		p.ackAll()
		k.sleep(10 * ms)
		for _, s := range p.got() {
			got = append(got, s.data...)
		}
	}
	if !bytes.Equal(got, data[jumboMTU-40:]) {
		t.Error("the rest is changed")
	}
	p.ackAll()
}

// TestChainPath: a router for which segments of several frames are too large.
func TestChainPath(t *testing.T) {
	k := newKit(t, jumbo)
	l, _ := k.h.TCPListen(0, 80)
	p := dialOpts(k, 80, 1000, concat(optMSS(jumboMTU-40), optWScale(7), []byte{4, 2, 1, 1}))
	h, err := k.h.TCPAccept(l)
	if err != 0 {
		t.Fatal(err)
	}
	data := pattern(40000)
	if _, err := k.h.TCPWrite(h, data, k.now); err != 0 {
		t.Fatal(err)
	}
	segs := p.got()
	quote := ipPacket{src: usIP, dst: peerIP, proto: 6, body: segs[0].bytes(usIP, peerIP)}.bytes()
	p.ack = segs[0].seq
	k.inject(icmpFrame(3, 4, 4000, quote[:28]))
	var got []byte
	for round := 0; len(got) < len(data) && round < 100; round++ {
		for _, s := range p.got() {
			if len(s.data) > 3960 {
				t.Fatalf("a segment of %d bytes on a path of 4000", len(s.data))
			}
			if s.seq == segs[0].seq+uint32(len(got)) {
				got = append(got, s.data...)
			}
		}
		p.ackAll()
		k.sleep(10 * ms)
	}
	if !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes came", len(got), len(data))
	}
}
