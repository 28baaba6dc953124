package reactor_test

import (
	"encoding/binary"

	"xdpd/proto"
)

// noisePort is the first of the source ports from which only noise comes.
const noisePort = 60000

// strayARP reports whether the peers may say false things by ARP themselves.
func (p *params) strayARP() bool { return p.garbage > 0 }

func (p *peer) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(p.w.rng.Uint32())
	}
	return b
}

// garbage sends something that no honest host sends, at every layer.
func (p *peer) garbage() {
	rng := p.w.rng
	st, src := p.source()
	switch rng.IntN(12) {
	case 0: // no Ethernet frame at all
		p.w.in.Send(p.bytes(rng.IntN(80)))
	case 1: // any type, LLC, tags without an end
		types := []uint16{0x86dd, 0x0027, 0x8100, 0x88a8, proto.EtherARP, proto.EtherIPv4}
		p.sendLink(st.mac, engineMAC, types[rng.IntN(len(types))], p.bytes(rng.IntN(120)))
	case 2: // to somebody else, or on another VLAN
		n := proto.PutEthernetTagged(p.frame[:], proto.MAC{2, 9, 9, 9, 9, 9}, st.mac, p.w.p.vlans, proto.EtherIPv4)
		if rng.IntN(2) == 0 {
			n = proto.PutEthernetTagged(p.frame[:], engineMAC, st.mac, []uint16{uint16(between(rng, 1, 4094))}, proto.EtherARP)
		}
		p.w.in.Send(append(p.frame[:n], p.bytes(rng.IntN(100))...))
	case 3:
		p.badHeader(st, src)
	case 4: // from, or to, an address that cannot be
		h := proto.IPv4{Src: src, Dst: engineAddr, TTL: 9, Proto: proto.ProtoUDP}
		addrs := []proto.Addr{0, 0x7f000001, 0xe0000001, 0xffffffff, 0xf0000001, engineAddr | 0xff, engineAddr, 0x01020304}
		wrong := addrs[rng.IntN(len(addrs))]
		if rng.IntN(2) == 0 || wrong == engineAddr {
			h.Src = wrong
		} else {
			h.Dst = wrong
		}
		if h.Src == 0x01020304 {
			h.Dst = nobodyAddr
		}
		p.sendPacket(st, h, nil, p.bytes(rng.IntN(100)))
	case 5: // a protocol that is not there; the answer is an ICMP error
		p.sendPacket(st, proto.IPv4{Src: src, Dst: engineAddr, TTL: 9, Proto: 132}, nil, p.bytes(rng.IntN(200)))
	case 6: // source routes and options without an end
		opts := [][]byte{{131, 7, 4, 1, 2, 3, 4, 0}, {137, 3, 4, 0}, {68, 40, 5, 0}, {7, 1, 0, 0}, {7, 0, 0, 0}}[rng.IntN(5)]
		p.sendPacket(st, proto.IPv4{Src: src, Dst: engineAddr, TTL: 9, Proto: proto.ProtoICMP}, opts, p.bytes(30))
	case 7:
		p.badFragments(st, src)
	case 8:
		p.falseARP(st)
	case 9:
		p.icmpError(st, src)
	case 10:
		p.w.tcp.noise(st, src)
	case 11: // a ping to everybody
		b := p.bytes(40)
		proto.PutICMP(b, proto.ICMPEcho, 0, 1)
		proto.SetICMPChecksum(b)
		p.sendPacket(st, proto.IPv4{Src: src, Dst: engineAddr | 0xff, TTL: 9, Proto: proto.ProtoICMP}, nil, b)
	}
}

// badHeader spoils a header so that a check must find it.
func (p *peer) badHeader(st station, src proto.Addr) {
	rng := p.w.rng
	b := p.bytes(20 + rng.IntN(60))
	protocol := []uint8{proto.ProtoICMP, proto.ProtoTCP, proto.ProtoUDP}[rng.IntN(3)]
	proto.PutIPv4(b, &proto.IPv4{Src: src, Dst: engineAddr, TTL: 9, Proto: protocol, TotalLen: uint16(len(b))})
	switch rng.IntN(4) {
	case 0:
		b[0] = byte(rng.Uint32())
	case 1:
		binary.BigEndian.PutUint16(b[2:], uint16(rng.Uint32()))
	case 2:
		b = b[:rng.IntN(20)]
	case 3: // the header is right, what is in it is too short for its protocol
		n := 20 + rng.IntN(8)
		b = b[:min(n, len(b))]
		binary.BigEndian.PutUint16(b[2:], uint16(len(b)))
	}
	if len(b) >= 20 && rng.IntN(2) == 0 {
		n := max(20, min(int(b[0]&15)*4, len(b)))
		binary.BigEndian.PutUint16(b[10:], 0)
		binary.BigEndian.PutUint16(b[10:], proto.Checksum(b[:n]))
	}
	p.sendLink(st.mac, engineMAC, proto.EtherIPv4, b)
}

// badFragments sends pieces that overlap, end twice, have no end, or would be longer than a packet can be.
func (p *peer) badFragments(st station, src proto.Addr) {
	rng := p.w.rng
	p.ipID++
	protocol := []uint8{proto.ProtoUDP, proto.ProtoICMP, proto.ProtoTCP}[rng.IntN(3)]
	h := proto.IPv4{Src: src, Dst: engineAddr, ID: p.ipID, TTL: 9, Proto: protocol}
	for range 1 + rng.IntN(8) {
		h.FragOff, h.MF = uint16(rng.IntN(8)*8*(1+rng.IntN(20))), rng.IntN(3) > 0
		if rng.IntN(10) == 0 {
			h.FragOff = 0xfff8
		}
		p.sendPacket(st, h, nil, p.bytes(rng.IntN(min(400, p.w.p.mtu-20))))
	}
}

// falseARP claims what is not so: the engine may ask again, and must not lose what it knows.
func (p *peer) falseARP(st station) {
	rng := p.w.rng
	a := proto.ARP{Op: uint16(1 + rng.IntN(2)), SHA: st.mac, SPA: st.ip, THA: engineMAC, TPA: engineAddr}
	switch rng.IntN(6) {
	case 0:
		a.SPA = engineAddr
	case 1:
		a.TPA = nobodyAddr
	case 2:
		a.SHA = proto.MAC{1, 2, 3, 4, 5, 6}
	case 3:
		a.SHA = proto.MAC{2, 9, 9, 9, 9, 9}
	case 4:
		a.SPA = 0x08080808
	case 5:
		a.SPA = nobodyAddr + 1 + proto.Addr(rng.IntN(40))
	}
	var b [proto.ARPLen]byte
	proto.PutARP(b[:], &a)
	src := st.mac
	if rng.IntN(2) == 0 {
		src = a.SHA
	}
	p.sendLink(src, engineMAC, proto.EtherARP, b[:rng.IntN(len(b))])
	p.sendLink(src, engineMAC, proto.EtherARP, b[:])
}

// icmpError quotes a packet of the engine, or something that looks like one.
func (p *peer) icmpError(st station, src proto.Addr) {
	rng := p.w.rng
	quote := p.bytes(28 + rng.IntN(20))
	if len(p.quotes) > 0 && rng.IntN(3) > 0 {
		q := p.quotes[rng.IntN(len(p.quotes))]
		quote = q[:rng.IntN(min(len(q), p.w.p.mtu-28)+1)]
	}
	b := append(make([]byte, 8), quote...)
	proto.PutICMP(b, []uint8{3, 4, 5, 11, 12}[rng.IntN(5)], uint8(rng.IntN(16)), rng.Uint32())
	proto.SetICMPChecksum(b)
	if rng.IntN(5) == 0 {
		b[2]++
	}
	p.sendPacket(st, proto.IPv4{Src: src, Dst: engineAddr, TTL: 9, Proto: proto.ProtoICMP}, nil, b)
}
