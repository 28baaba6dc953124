package reactor_test

import (
	"bytes"
	"encoding/binary"

	"xdpd/internal/simnet"
	"xdpd/proto"
)

// station is a host on the far side's link. The first is the router to farNet as well.
type station struct {
	ip  proto.Addr
	mac proto.MAC
}

func stationAddr(i int) proto.Addr { return engineAddr + 9 + proto.Addr(i) }

// peer is the far side's link and network layers: what every host there does alike.
type peer struct {
	w        *world
	stations []station
	later    []delayed // in order of time
	ipID     uint16
	partial  map[fragID]*reassembly
	frame    [9000]byte
	quotes   [][]byte // IP packets of the engine, to be quoted in ICMP errors
	arps     int      // answers from the engine
}

// delayed is an answer that takes its time.
type delayed struct {
	at int64
	do func()
}

type fragID struct {
	dst   proto.Addr
	id    uint16
	proto uint8
}

type reassembly struct {
	at     int64
	pieces map[int][]byte
	have   int
	total  int
	copied bool // a piece is a copy that the wire made
}

func newPeer(w *world) *peer {
	p := &peer{w: w, ipID: uint16(w.rng.Uint32()), partial: make(map[fragID]*reassembly)}
	for i := range w.p.stations {
		p.stations = append(p.stations, station{stationAddr(i), proto.MAC{2, 0, 0, 0, 1, byte(i)}})
	}
	return p
}

// after schedules do; equal times keep their order.
func (p *peer) after(ns int64, do func()) {
	at := p.w.clock.Now() + ns
	i := len(p.later)
	for i > 0 && p.later[i-1].at > at {
		i--
	}
	p.later = append(p.later, delayed{})
	copy(p.later[i+1:], p.later[i:])
	p.later[i] = delayed{at, do}
}

// timers does what is due and tells how much that was.
func (p *peer) timers() (n int) {
	for len(p.later) > 0 && p.later[0].at <= p.w.clock.Now() {
		do := p.later[0].do
		p.later = p.later[1:]
		do()
		n++
	}
	return n
}

func (p *peer) next() (int64, bool) {
	if len(p.later) == 0 {
		return 0, false
	}
	return p.later[0].at, true
}

// act is the peers' part in a step, besides UDP and TCP.
func (p *peer) act() {
	p.timers()
	if p.w.p.clean {
		return
	}
	if p.w.chance(0.05) {
		p.arpRequest(p.any())
	}
	if p.w.chance(p.w.p.garbage) {
		p.garbage()
	}
	if p.w.p.share && p.w.chance(0.02) { // the kernel forgot somebody
		st := p.any()
		p.w.enter(func(now int64) { p.w.host.SetNeighbour(st.ip, st.mac, false, now) })
	}
}

// introduce has every station ask for the engine, so that it knows them all.
func (p *peer) introduce() {
	for _, st := range p.stations {
		if p.w.p.share {
			p.w.enter(func(now int64) { p.w.host.SetNeighbour(st.ip, st.mac, true, now) })
		} else {
			p.arpRequest(st)
		}
	}
}

func (p *peer) any() station { return p.stations[p.w.rng.IntN(len(p.stations))] }

// source picks a station and an address that it sends from: its own, or one behind it.
func (p *peer) source() (station, proto.Addr) {
	st := p.any()
	if st.ip == stationAddr(0) && p.w.chance(0.3) {
		return st, farNet + proto.Addr(1+p.w.rng.IntN(5))
	}
	return st, st.ip
}

// stationFor is who the engine must send to for dst.
func (p *peer) stationFor(dst proto.Addr) (station, bool) {
	if dst&^0xff == farNet {
		return p.stations[0], true
	}
	for _, st := range p.stations {
		if st.ip == dst {
			return st, true
		}
	}
	return station{}, false
}

// sendLink sends body in an Ethernet frame with the link's tags; sometimes with a priority tag in front, sometimes padded.
func (p *peer) sendLink(from, to proto.MAC, etherType uint16, body []byte) (copies int) {
	var tags []uint16
	if len(p.w.p.vlans) < 2 && p.w.chance(0.05) {
		tags = append(tags, uint16(p.w.rng.IntN(8))<<13)
	}
	for _, id := range p.w.p.vlans {
		tags = append(tags, id|uint16(p.w.rng.IntN(8))<<13)
	}
	n := proto.PutEthernetTagged(p.frame[:], to, from, tags, etherType)
	n += copy(p.frame[n:], body)
	if n < 60 && p.w.chance(0.5) {
		for n < 60 {
			p.frame[n] = byte(p.w.rng.Uint32())
			n++
		}
	}
	return p.w.in.Send(p.frame[:n])
}

// sendIP sends a transport message, in fragments if it must or wants to, and tells how often the whole of it will arrive.
func (p *peer) sendIP(st station, src proto.Addr, protocol uint8, message []byte) (copies int) {
	p.ipID++
	h := proto.IPv4{
		Src: src, Dst: engineAddr, ID: p.ipID, TTL: 1 + uint8(p.w.rng.IntN(255)), Proto: protocol,
		TOS: uint8(p.w.rng.Uint32()), DF: p.w.chance(0.5),
	}
	var opts []byte
	if p.w.chance(0.05) {
		opts = []byte{1, 1, 1, 0} // NOPs and the end
	}
	room := p.w.p.mtu - 20 - len(opts)
	if len(message) <= room && (p.w.p.clean || len(message) < 16 || !p.w.chance(0.05)) {
		return p.sendPacket(st, h, opts, message)
	}
	return p.sendFragments(st, h, opts, message, room)
}

func (p *peer) sendFragments(st station, h proto.IPv4, opts, message []byte, room int) (copies int) {
	per := room &^ 7
	if !p.w.p.clean {
		per = max(8, len(message)/60+8, p.w.rng.IntN(per+1)) &^ 7
	}
	h.DF = false
	var offs []int
	for at := 0; at < len(message); at += per {
		offs = append(offs, at)
	}
	if !p.w.p.clean && p.w.chance(0.3) {
		p.w.rng.Shuffle(len(offs), func(i, j int) { offs[i], offs[j] = offs[j], offs[i] })
	}
	copies = 1 << 30
	// Two flipped bits in different fragments may cancel out in the checksum of the whole: one is enough.
	corrupt, before := p.w.in.Faults.Corrupt, p.w.in.Stats().Corrupted
	defer func() { p.w.in.Faults.Corrupt = corrupt }()
	for _, at := range offs {
		if p.w.in.Stats().Corrupted != before {
			p.w.in.Faults.Corrupt = 0
		}
		end := min(at+per, len(message))
		h.FragOff, h.MF = uint16(at), end < len(message)
		copies = min(copies, p.sendPacket(st, h, opts, message[at:end]))
	}
	return copies
}

func (p *peer) sendPacket(st station, h proto.IPv4, opts, payload []byte) int {
	b := make([]byte, 20+len(opts)+len(payload))
	h.TotalLen = uint16(len(b))
	proto.PutIPv4(b, &h)
	if len(opts) > 0 {
		b[0] = 4<<4 | byte(5+len(opts)/4)
		copy(b[20:], opts)
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], proto.Checksum(b[:20+len(opts)]))
	}
	copy(b[20+len(opts):], payload)
	return p.sendLink(st.mac, engineMAC, proto.EtherIPv4, b)
}

func (p *peer) arpRequest(st station) {
	var b [proto.ARPLen]byte
	a := proto.ARP{Op: proto.ARPRequest, SHA: st.mac, SPA: st.ip, TPA: engineAddr}
	if !p.w.p.clean && p.w.chance(0.1) {
		a.SPA = 0 // an RFC 5227 probe
	}
	proto.PutARP(b[:], &a)
	p.sendLink(st.mac, proto.Broadcast, proto.EtherARP, b[:])
}

// resolve is the engine's question to the kernel in share mode.
func (p *peer) resolve(a proto.Addr) {
	st, ok := p.stationFor(a)
	if !ok || st.ip != a || !p.w.calm && p.w.chance(p.w.p.silence) {
		return
	}
	p.after(p.w.rng.Int64N(2_000_000), func() {
		p.w.enter(func(now int64) { p.w.host.SetNeighbour(a, st.mac, true, now) })
	})
}

// receive takes a frame of the engine. What the wire did not spoil must be flawless.
func (p *peer) receive(f simnet.Frame) {
	bad := func(format string, args ...any) {
		if !f.Corrupt {
			p.w.fail("the engine sent a bad frame, "+format+"\n% x", append(args, f.Bytes)...)
		}
	}
	eth, fault := proto.ParseEthernet(f.Bytes)
	if fault != proto.OK || int(eth.NTags) != len(p.w.p.vlans) || eth.Src != engineMAC {
		bad("%v %v", eth, fault)
		return
	}
	for i, id := range p.w.p.vlans {
		if eth.Tags[i] != id {
			bad("tags %v, want %v", eth.Tags, p.w.p.vlans)
			return
		}
	}
	body := f.Bytes[eth.Len:]
	switch eth.Type {
	case proto.EtherARP:
		p.receiveARP(&eth, body, bad)
	case proto.EtherIPv4:
		p.receiveIP(f, &eth, body, bad)
	default:
		bad("type %#x", eth.Type)
	}
}

func (p *peer) receiveARP(eth *proto.Ethernet, body []byte, bad func(string, ...any)) {
	a, fault := proto.ParseARP(body)
	if fault != proto.OK || a.SHA != engineMAC || a.SPA != engineAddr || p.w.p.share {
		bad("%v %v", a, fault)
		return
	}
	if a.Op == proto.ARPReply {
		p.arps++
		return
	}
	st, ok := p.stationFor(a.TPA)
	if !ok || st.ip != a.TPA || !p.w.calm && p.w.chance(p.w.p.silence) {
		return
	}
	p.after(p.w.rng.Int64N(1_000_000), func() {
		var b [proto.ARPLen]byte
		proto.PutARP(b[:], &proto.ARP{Op: proto.ARPReply, SHA: st.mac, SPA: st.ip, THA: engineMAC, TPA: engineAddr})
		p.sendLink(st.mac, engineMAC, proto.EtherARP, b[:])
	})
}

func (p *peer) receiveIP(f simnet.Frame, eth *proto.Ethernet, body []byte, bad func(string, ...any)) {
	h, fault := proto.ParseIPv4(body)
	if fault != proto.OK || h.Src != engineAddr || int(h.TotalLen) != len(body) || len(body) > p.w.p.mtu || h.HeaderLen != 20 {
		bad("%v %v in %d bytes", h, fault, len(body))
		return
	}
	st, ok := p.stationFor(h.Dst)
	if !ok || st.mac != eth.Dst {
		// An ARP packet with a flipped bit in an address may have led the engine astray until it asks again.
		if p.w.p.in.Corrupt == 0 && !p.w.p.strayARP() {
			bad("%v to %v", h, eth.Dst)
		}
		return
	}
	if len(p.quotes) < 64 {
		p.quotes = append(p.quotes, bytes.Clone(body))
	} else {
		p.quotes[p.w.rng.IntN(64)] = bytes.Clone(body)
	}
	payload, copied := body[20:], f.Copy
	if h.Fragment() {
		if f.Corrupt {
			return // the checksum of the whole would say it, of another frame
		}
		if payload, copied = p.reassemble(&h, payload, f.Copy); payload == nil {
			return
		}
	}
	switch h.Proto {
	case proto.ProtoUDP:
		p.w.udp.receive(&h, payload, copied, bad)
	case proto.ProtoICMP:
		p.w.udp.receiveICMP(&h, payload, copied, bad)
	case proto.ProtoTCP:
		p.w.tcp.receive(&h, payload, bad)
	default:
		bad("%v", h)
	}
}

// reassemble gives the whole message when its last piece is there. A message with a copied piece counts as a copy.
func (p *peer) reassemble(h *proto.IPv4, b []byte, copied bool) ([]byte, bool) {
	id := fragID{h.Dst, h.ID, h.Proto}
	r := p.partial[id]
	if r == nil || p.w.clock.Now()-r.at > 30*simSecond {
		r = &reassembly{at: p.w.clock.Now(), pieces: make(map[int][]byte), total: -1}
		p.partial[id] = r
	}
	if _, dup := r.pieces[int(h.FragOff)]; dup {
		return nil, false
	}
	r.copied = r.copied || copied
	r.pieces[int(h.FragOff)] = bytes.Clone(b)
	r.have += len(b)
	if !h.MF {
		r.total = int(h.FragOff) + len(b)
	}
	if r.have != r.total {
		return nil, false
	}
	delete(p.partial, id)
	whole := make([]byte, 0, r.total)
	for len(whole) < r.total {
		piece := r.pieces[len(whole)]
		if piece == nil {
			p.w.fail("fragments of the engine overlap: %v", h)
		}
		whole = append(whole, piece...)
	}
	return whole, r.copied
}
