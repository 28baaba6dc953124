package sockets

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
)

// fragKit is a Host with a UDP socket on port 7 that hears what comes through reassembly.
func fragKit(t *testing.T, set ...func(*Config)) (*kit, Handle) {
	t.Helper()
	k := newKit(t, set...)
	s, err := k.h.UDPBind(0, 7)
	if err != 0 {
		t.Fatalf("UDPBind: %v", err)
	}
	return k, s
}

// wantDatagram reads one datagram and nothing after it.
func (k *kit) wantRecv(s Handle, want []byte) {
	k.t.Helper()
	buf := make([]byte, 1<<16)
	d, err := k.h.UDPRecv(s, buf)
	if err != 0 || d.N != len(want) || d.Size != len(want) || !bytes.Equal(buf[:d.N], want) {
		k.t.Fatalf("UDPRecv = %+v, %v; want %d bytes, or they differ", d, err, len(want))
	}
	k.wantNoRecv(s)
}

func (k *kit) wantNoRecv(s Handle) {
	k.t.Helper()
	if d, err := k.h.UDPRecv(s, make([]byte, 10)); err != EAGAIN {
		k.t.Fatalf("UDPRecv = %+v, %v; want EAGAIN", d, err)
	}
}

// datagram is a UDP datagram with n bytes of payload as an IP packet that is not cut yet.
func datagram(id uint16, n int) (ipPacket, []byte) {
	payload := pattern(n)
	return ipPacket{id: id, proto: 17, body: udpBytes(peerIP, usIP, 1000, 7, payload)}, payload
}

func TestFragOrders(t *testing.T) {
	for _, size := range []int{0, 1, 7, 8, 9, 100, 1472, 3000, 8192, 65507} {
		for _, cut := range []int{8, 24, 576, 1480} {
			if (size+8)/cut >= fragPieces {
				continue
			}
			k := newKitOf(t, 4096, 2048, func(c *Config) { c.KernelNeighbours = true })
			s, _ := k.h.UDPBind(0, 7)
			p, payload := datagram(uint16(size), size)
			frames := p.fragments(cut)
			orders := map[string][][]byte{"in order": frames, "reverse": nil}
			for i := range frames {
				orders["reverse"] = append(orders["reverse"], frames[len(frames)-1-i])
			}
			seed := seeds.One(t)
			r := rand.New(rand.NewPCG(seed, 0))
			for range 3 {
				mixed := append([][]byte(nil), frames...)
				r.Shuffle(len(mixed), func(i, j int) { mixed[i], mixed[j] = mixed[j], mixed[i] })
				orders[string(rune('a'+len(orders)))] = mixed
			}
			for name, order := range orders {
				k.wantDrops(func() { k.inject(order...) }, nil)
				if t.Failed() {
					t.Fatalf("%d bytes in pieces of %d, %s, seed %d", size, cut, name, seed)
				}
				k.wantRecv(s, payload)
				if k.h.frags.index.n != 0 || k.h.frags.frames != 0 || k.h.rxUsed != 0 {
					t.Fatalf("%d datagrams and %d frames left in reassembly", k.h.frags.index.n, k.h.frags.frames)
				}
			}
		}
	}
}

// TestFragDuplicates: copies of fragments are dropped alone, and the datagram comes once.
func TestFragDuplicates(t *testing.T) {
	k, s := fragKit(t)
	p, payload := datagram(1, 3000)
	frames := p.fragments(1000)
	k.wantDrops(func() {
		k.inject(frames[0], frames[0], frames[2], frames[2], frames[0], frames[3], frames[3])
	}, map[Drop]uint64{FragDuplicate: 4})
	k.wantDrops(func() { k.inject(frames[1]) }, nil)
	k.wantRecv(s, payload)
	// A copy that comes after the datagram was delivered begins a new one, which never gets whole.
	k.inject(frames[1])
	k.wantNoRecv(s)
	k.wantDrops(func() { k.sleep(31 * second) }, map[Drop]uint64{FragTimeout: 1})
}

// TestFragOverlaps: any overlap kills the datagram (RFC 5722), and it stays dead until its time is over.
func TestFragOverlaps(t *testing.T) {
	piece := func(off, n int, mf bool) ipPacket {
		return ipPacket{id: 9, proto: 17, off: off, mf: mf, body: pattern(n)}
	}
	for name, parts := range map[string][]ipPacket{
		"end over the next's front":    {piece(16, 16, true), piece(8, 16, true)},
		"front over the last's end":    {piece(0, 16, true), piece(8, 16, true)},
		"inside":                       {piece(0, 48, true), piece(16, 8, true)},
		"around":                       {piece(16, 8, true), piece(8, 32, true)},
		"same front, shorter":          {piece(8, 16, true), piece(8, 8, true)},
		"same front, longer":           {piece(8, 8, true), piece(8, 16, true)},
		"same end":                     {piece(8, 16, true), piece(16, 8, true)},
		"last over another":            {piece(0, 24, true), piece(16, 12, false)},
		"over the last":                {piece(16, 16, false), piece(8, 16, true)},
		"over two":                     {piece(0, 16, true), piece(24, 16, true), piece(8, 24, true)},
		"first fragment over the next": {piece(8, 16, true), piece(0, 16, true)},
	} {
		t.Run(name, func(t *testing.T) {
			k, s := fragKit(t)
			n := uint64(len(parts))
			k.wantDrops(func() {
				for _, p := range parts {
					k.inject(p.frame())
				}
			}, map[Drop]uint64{FragOverlap: n})
			if k.h.frags.frames != 0 || k.h.rxUsed != 0 {
				t.Errorf("%d frames still held", k.h.rxUsed)
			}
			whole, _ := datagram(9, 100)
			frames := whole.fragments(24)
			k.wantDrops(func() { k.inject(frames...) }, map[Drop]uint64{FragOverlap: uint64(len(frames))})
			k.wantNoRecv(s)
			k.wantDrops(func() { k.sleep(31 * second) }, nil)
			k.none() // nobody is told about what was killed
			k.inject(frames...)
			if _, err := k.h.UDPRecv(s, nil); err != 0 {
				t.Errorf("the same datagram after the timeout: %v", err)
			}
		})
	}
}

// TestFragBad: pieces that cannot belong together.
func TestFragBad(t *testing.T) {
	piece := func(off, n int, mf bool) ipPacket {
		return ipPacket{id: 9, proto: 17, off: off, mf: mf, body: pattern(n)}
	}
	for name, parts := range map[string][]ipPacket{
		"not a multiple of 8":         {piece(0, 9, true)},
		"empty but not the last":      {piece(8, 0, true)},
		"two ends, second further":    {piece(16, 8, false), piece(24, 8, false)},
		"two ends, second nearer":     {piece(24, 8, false), piece(8, 8, false)},
		"two ends, other length":      {piece(16, 8, false), piece(16, 7, false)},
		"beyond the end":              {piece(16, 8, false), piece(24, 8, true)},
		"end in front of another":     {piece(32, 8, true), piece(8, 8, false)},
		"end where another is longer": {piece(8, 16, true), piece(8, 8, false)},
	} {
		t.Run(name, func(t *testing.T) {
			k, s := fragKit(t)
			k.wantDrops(func() {
				for _, p := range parts {
					k.inject(p.frame())
				}
			}, map[Drop]uint64{FragBad: uint64(len(parts))})
			if k.h.frags.frames != 0 || k.h.rxUsed != 0 {
				t.Errorf("%d frames still held", k.h.rxUsed)
			}
			k.wantNoRecv(s)
		})
	}
}

// TestFragKeys: identification, protocol and source keep datagrams apart.
func TestFragKeys(t *testing.T) {
	k, s := fragKit(t)
	p, payload := datagram(1, 2000)
	base := p.fragments(1480)
	other := p
	other.id = 2
	k.inject(base[0], other.fragments(1480)[1])
	other = p
	other.proto = 6
	k.inject(other.fragments(1480)[1])
	other = p
	other.src = peerIP + 1
	k.inject(other.fragments(1480)[1])
	k.wantNoRecv(s)
	if n := k.h.frags.index.n; n != 4 {
		t.Errorf("%d datagrams in reassembly, want 4", n)
	}
	k.inject(base[1])
	k.wantRecv(s, payload)
}

// TestFragTimeout: after 30 s the pieces go, and the sender is told if, and only if, the first came (RFC 1122 3.3.2).
func TestFragTimeout(t *testing.T) {
	p, _ := datagram(3, 3000)
	frames := p.fragments(1000)
	for name, c := range map[string]struct {
		parts [][]byte
		told  bool
	}{
		"the first alone":    {frames[:1], true},
		"all but the last":   {frames[:3], true},
		"all but the first":  {frames[1:], false},
		"first and last":     {[][]byte{frames[3], frames[0]}, true},
		"one in the middle":  {frames[2:3], false},
		"an echo request":    {ipPacket{proto: 1, body: icmpBytes(8, 0, 1, pattern(2000))}.fragments(1000)[:1], true},
		"an ICMP error":      {ipPacket{proto: 1, body: icmpBytes(3, 3, 0, pattern(2000))}.fragments(1000)[:1], false},
		"a killed datagram":  {[][]byte{frames[0], ipPacket{id: 3, proto: 17, off: 8, mf: true, body: pattern(16)}.frame()}, false},
		"other protocol":     {ipPacket{proto: 132, body: pattern(2000)}.fragments(1000)[:1], true},
		"nothing for 29.9 s": {nil, false},
	} {
		t.Run(name, func(t *testing.T) {
			k, s := fragKit(t)
			k.inject(c.parts...)
			k.sleep(30*second - 2*ms)
			k.none()
			held := uint64(k.h.rxUsed)
			if c.parts == nil {
				return
			}
			want := map[Drop]uint64{FragTimeout: held}
			if held == 0 {
				want = nil
			}
			k.wantDrops(func() { k.sleep(4 * ms) }, want)
			if k.h.rxUsed != 0 {
				t.Errorf("%d frames still held", k.h.rxUsed)
			}
			if !c.told {
				k.none()
				return
			}
			e := k.one()
			if e.icmp.typ != 11 || e.icmp.code != 1 || e.ip.dst != peerIP || e.ip.src != usIP {
				t.Fatalf("sent %+v, want time exceeded in reassembly", e)
			}
			if q := c.parts[len(c.parts)-1]; len(c.parts) == 1 && !bytes.Equal(e.data, q[14:14+548]) {
				t.Errorf("quotes % x", e.data)
			}
			if binary.BigEndian.Uint16(e.data[6:])&0x1fff != 0 {
				t.Error("quotes a fragment that is not the first")
			}
			k.wantNoRecv(s)
		})
	}
}

// TestFragTable: the newest datagrams keep their place, the oldest goes and is counted.
func TestFragTable(t *testing.T) {
	k, s := fragKit(t)
	var all [][][]byte
	for id := range uint16(fragMax + 10) {
		p, _ := datagram(id, 40)
		all = append(all, p.fragments(24))
	}
	k.wantDrops(func() {
		for _, frames := range all {
			k.inject(frames[0])
			k.sleep(ms)
		}
	}, map[Drop]uint64{FragLimit: 10})
	if k.h.frags.index.n != fragMax {
		t.Errorf("%d datagrams in reassembly, want %d", k.h.frags.index.n, fragMax)
	}
	for id := 10; id < len(all); id++ { // those that are still there
		k.inject(all[id][1])
	}
	n := 0
	for ; ; n++ {
		if _, err := k.h.UDPRecv(s, nil); err != 0 {
			break
		}
	}
	if n != fragMax {
		t.Errorf("%d datagrams came, want %d", n, fragMax)
	}
}

// TestFragMemory: reassembly holds no more than a quarter of the frames that sockets may, whoever fills it.
func TestFragMemory(t *testing.T) {
	k, s := fragKit(t)
	limit := k.h.rxLimit / 4
	for id := range uint16(200) {
		for i := range 60 {
			k.inject(ipPacket{id: id, proto: 17, off: 8 * i, mf: true, body: pattern(8)}.frame())
			if k.h.frags.frames > limit || k.h.rxUsed > limit {
				t.Fatalf("%d frames in reassembly, %d held; the limit is %d", k.h.frags.frames, k.h.rxUsed, limit)
			}
		}
	}
	if k.h.frags.frames < limit-60 {
		t.Errorf("only %d frames in reassembly after the flood", k.h.frags.frames)
	}
	p, payload := datagram(9999, 3000)
	k.inject(p.fragments(1480)...)
	k.wantRecv(s, payload) // the flood shuts nobody out
}

// TestFragMemoryAlone: a single datagram may not take all of the share and push out itself.
func TestFragMemoryAlone(t *testing.T) {
	k := newKitOf(t, 64, 2048, func(c *Config) { c.KernelNeighbours = true })
	limit := k.h.rxLimit / 4
	k.wantDrops(func() {
		for i := range limit + 1 {
			k.inject(ipPacket{id: 1, proto: 17, off: 8 * i, mf: true, body: pattern(8)}.frame())
		}
	}, map[Drop]uint64{FragLimit: uint64(limit + 1)})
	if k.h.rxUsed != 0 {
		t.Errorf("%d frames held", k.h.rxUsed)
	}
}

// TestFragPieces: 128 pieces make a datagram, with the 129th it is given up.
func TestFragPieces(t *testing.T) {
	for _, n := range []int{fragPieces, fragPieces + 1} {
		k := newKitOf(t, 4096, 2048, func(c *Config) { c.KernelNeighbours = true })
		s, _ := k.h.UDPBind(0, 7)
		p, payload := datagram(1, 8*n-8)
		want := map[Drop]uint64{}
		if n > fragPieces {
			want[FragLimit] = uint64(n)
		}
		k.wantDrops(func() { k.inject(p.fragments(8)...) }, want)
		if n > fragPieces {
			k.wantNoRecv(s)
		} else {
			k.wantRecv(s, payload)
		}
	}
}

// TestFragPingOfDeath: no datagram is longer than 65535 bytes with its header, however its pieces say so.
func TestFragPingOfDeath(t *testing.T) {
	k, s := fragKit(t)
	k.wantDrops(func() {
		k.inject(ipPacket{id: 1, proto: 17, off: 65528, body: pattern(100)}.frame()) // ends at 65628
	}, map[Drop]uint64{Drop(proto.IPTotalLen): 1})
	// It ends within 65535, but the header has no room: the first is an IP packet of 65516 + 20 bytes.
	k.wantDrops(func() {
		k.inject(ipPacket{id: 2, proto: 17, off: 65512, body: pattern(4)}.frame())
	}, map[Drop]uint64{FragBad: 1})
	k.wantDrops(func() {
		k.inject(ipPacket{id: 3, proto: 17, off: 65512, body: pattern(3)}.frame())
	}, nil)
	body := concat(be16(1), be16(7), be16(65515), be16(0), pattern(65507))
	k.inject(ipPacket{id: 4, proto: 17, body: body}.fragments(1480)...)
	k.wantRecv(s, pattern(65507))
}

// TestFragRxLimit: pieces that find no memory are dropped and counted, and the others wait.
func TestFragRxLimit(t *testing.T) {
	k, s := fragKit(t, func(c *Config) { c.RcvBuf = 1 << 30 })
	for k.h.rxUsed < k.h.rxLimit {
		k.inject(udpFrame(1, 7, nil))
	}
	p, payload := datagram(1, 2000)
	frames := p.fragments(1480)
	k.wantDrops(func() { k.inject(frames[0]) }, map[Drop]uint64{RxMemLimit: 1})
	for range 2 {
		k.h.UDPRecv(s, nil)
	}
	k.wantDrops(func() { k.inject(frames...) }, nil)
	for {
		d, err := k.h.UDPRecv(s, make([]byte, 1))
		if err != 0 {
			t.Fatal("the datagram did not come")
		}
		if d.Size == len(payload) {
			return
		}
	}
}
