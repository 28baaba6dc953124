package sockets

import (
	"encoding/binary"
	"testing"

	"xdpd/proto"
)

// Frames are written and read here byte by byte after the RFCs, without proto's Put and Parse functions, so that a
// mistake there does not meet itself.

// inetSum is the Internet checksum of RFC 1071, word by word. Over what has a right one it is 0.
func inetSum(parts ...[]byte) uint16 {
	b := concat(parts...)
	if len(b)%2 != 0 {
		b = append(b, 0)
	}
	s := uint32(0)
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	for s>>16 != 0 {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}

func ethFrame(dst, src proto.MAC, typ uint16, body []byte) []byte {
	return concat(dst[:], src[:], be16(typ), body)
}

func arpFrame(op uint16, sha proto.MAC, spa proto.Addr, tha proto.MAC, tpa proto.Addr, dst proto.MAC) []byte {
	return ethFrame(dst, sha, 0x0806, concat(
		be16(1), be16(0x0800), []byte{6, 4}, be16(op), sha[:], be32(uint32(spa)), tha[:], be32(uint32(tpa)),
		make([]byte, 18), // Ethernet's padding
	))
}

func arpRequest(sha proto.MAC, spa, tpa proto.Addr) []byte {
	return arpFrame(1, sha, spa, proto.MAC{}, tpa, proto.Broadcast)
}

func arpReplyFrame(sha proto.MAC, spa proto.Addr) []byte {
	return arpFrame(2, sha, spa, usMAC, usIP, usMAC)
}

// ipPacket is an IPv4 packet from the peer to us unless its fields say otherwise.
type ipPacket struct {
	src, dst proto.Addr
	id       uint16
	off      int // bytes
	mf, df   bool
	ttl      uint8 // 0: 64
	proto    uint8
	opts     []byte
	body     []byte
}

func (p ipPacket) bytes() []byte {
	if p.src == 0 {
		p.src = peerIP
	}
	if p.dst == 0 {
		p.dst = usIP
	}
	if p.ttl == 0 {
		p.ttl = 64
	}
	frag := uint16(p.off / 8)
	if p.mf {
		frag |= 0x2000
	}
	if p.df {
		frag |= 0x4000
	}
	hl := 20 + len(p.opts)
	head := concat([]byte{0x40 | byte(hl/4), 0}, be16(uint16(hl+len(p.body))), be16(p.id), be16(frag),
		[]byte{p.ttl, p.proto}, be16(0), be32(uint32(p.src)), be32(uint32(p.dst)), p.opts)
	binary.BigEndian.PutUint16(head[10:], inetSum(head))
	return concat(head, p.body)
}

func (p ipPacket) frame() []byte { return ethFrame(usMAC, peerMAC, 0x0800, p.bytes()) }

// fragments cuts p into pieces of n bytes.
func (p ipPacket) fragments(n int) [][]byte {
	var out [][]byte
	for at := 0; at < len(p.body); at += n {
		q := p
		q.off, q.body = at, p.body[at:min(len(p.body), at+n)]
		q.mf = at+n < len(p.body)
		out = append(out, q.frame())
	}
	return out
}

func pseudo(src, dst proto.Addr, protocol uint8, n int) []byte {
	return concat(be32(uint32(src)), be32(uint32(dst)), []byte{0, protocol}, be16(uint16(n)))
}

func udpBytes(src, dst proto.Addr, sport, dport uint16, payload []byte) []byte {
	b := concat(be16(sport), be16(dport), be16(uint16(8+len(payload))), be16(0), payload)
	sum := inetSum(pseudo(src, dst, 17, len(b)), b)
	if sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], sum)
	return b
}

// udpFrame is a datagram from the peer to us.
func udpFrame(sport, dport uint16, payload []byte) []byte {
	return ipPacket{proto: 17, body: udpBytes(peerIP, usIP, sport, dport, payload)}.frame()
}

func icmpBytes(typ, code uint8, rest uint32, data []byte) []byte {
	b := concat([]byte{typ, code, 0, 0}, be32(rest), data)
	binary.BigEndian.PutUint16(b[2:], inetSum(b))
	return b
}

func icmpFrame(typ, code uint8, rest uint32, data []byte) []byte {
	return ipPacket{proto: 1, body: icmpBytes(typ, code, rest, data)}.frame()
}

const (
	fin = 1
	syn = 2
	rst = 4
	psh = 8
	ack = 16
	urg = 32
)

// tcpSeg is a TCP segment, from the peer to us unless it was sent by us.
type tcpSeg struct {
	sport, dport uint16
	seq, ack     uint32
	flags        uint8
	wnd, urgent  uint16
	opts         []byte // a multiple of 4
	data         []byte
}

func (s tcpSeg) bytes(src, dst proto.Addr) []byte {
	b := concat(be16(s.sport), be16(s.dport), be32(s.seq), be32(s.ack),
		[]byte{byte((20 + len(s.opts)) / 4 << 4), s.flags}, be16(s.wnd), be16(0), be16(s.urgent), s.opts, s.data)
	binary.BigEndian.PutUint16(b[16:], inetSum(pseudo(src, dst, 6, len(b)), b))
	return b
}

func (s tcpSeg) frame() []byte { return ipPacket{proto: 6, body: s.bytes(peerIP, usIP)}.frame() }

func optMSS(n uint16) []byte       { return concat([]byte{2, 4}, be16(n)) }
func optWScale(n uint8) []byte     { return []byte{1, 3, 3, n} }
func optTS(val, ecr uint32) []byte { return concat([]byte{1, 1, 8, 10}, be32(val), be32(ecr)) }

// seen is a frame we sent, taken apart; everything that has a checksum was verified.
type seen struct {
	dst, src proto.MAC
	typ      uint16
	arp      struct {
		op       uint16
		sha, tha proto.MAC
		spa, tpa proto.Addr
	}
	ip    ipPacket
	sport uint16 // UDP
	dport uint16
	data  []byte // of UDP, ICMP behind 8 bytes
	icmp  struct {
		typ, code uint8
		rest      uint32
	}
	tcp tcpSeg
}

// dissect reads a frame that we sent and fails the test on anything that is wrong in itself.
func dissect(t testing.TB, b []byte) seen {
	t.Helper()
	if len(b) < 14 {
		t.Fatalf("sent a frame of %d bytes", len(b))
	}
	s := seen{dst: proto.MAC(b), src: proto.MAC(b[6:]), typ: binary.BigEndian.Uint16(b[12:])}
	b = b[14:]
	if s.typ == 0x0806 {
		if len(b) != 28 || inetSum(b[:6]) != inetSum([]byte{0, 1, 8, 0, 6, 4}) {
			t.Fatalf("sent a bad ARP packet: % x", b)
		}
		s.arp.op = binary.BigEndian.Uint16(b[6:])
		s.arp.sha, s.arp.spa = proto.MAC(b[8:]), proto.Addr(binary.BigEndian.Uint32(b[14:]))
		s.arp.tha, s.arp.tpa = proto.MAC(b[18:]), proto.Addr(binary.BigEndian.Uint32(b[24:]))
		return s
	}
	if s.typ != 0x0800 || len(b) < 20 || b[0] != 0x45 || inetSum(b[:20]) != 0 {
		t.Fatalf("sent a bad IP packet: % x", b)
	}
	if n := int(binary.BigEndian.Uint16(b[2:])); n != len(b) {
		t.Fatalf("IP total length %d in a frame with %d bytes for it", n, len(b))
	}
	frag := binary.BigEndian.Uint16(b[6:])
	s.ip = ipPacket{
		src: proto.Addr(binary.BigEndian.Uint32(b[12:])), dst: proto.Addr(binary.BigEndian.Uint32(b[16:])),
		id: binary.BigEndian.Uint16(b[4:]), off: int(frag&0x1fff) * 8, mf: frag&0x2000 != 0, df: frag&0x4000 != 0,
		ttl: b[8], proto: b[9], body: b[20:],
	}
	if s.ip.off == 0 && !s.ip.mf {
		s.dissectL4(t)
	}
	return s
}

func (s *seen) dissectL4(t testing.TB) {
	t.Helper()
	b := s.ip.body
	ph := pseudo(s.ip.src, s.ip.dst, s.ip.proto, len(b))
	switch s.ip.proto {
	case 1:
		if len(b) < 8 || inetSum(b) != 0 {
			t.Fatalf("sent a bad ICMP message: % x", b)
		}
		s.icmp.typ, s.icmp.code, s.icmp.rest = b[0], b[1], binary.BigEndian.Uint32(b[4:])
		s.data = b[8:]
	case 17:
		if len(b) < 8 || int(binary.BigEndian.Uint16(b[4:])) != len(b) || inetSum(ph, b) != 0 || b[6] == 0 && b[7] == 0 {
			t.Fatalf("sent a bad UDP datagram: % x", b)
		}
		s.sport, s.dport, s.data = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[8:]
	case 6:
		if len(b) < 20 || int(b[12]>>4)*4 < 20 || int(b[12]>>4)*4 > len(b) || inetSum(ph, b) != 0 {
			t.Fatalf("sent a bad TCP segment: % x", b)
		}
		off := int(b[12]>>4) * 4
		s.tcp = tcpSeg{
			sport: binary.BigEndian.Uint16(b), dport: binary.BigEndian.Uint16(b[2:]),
			seq: binary.BigEndian.Uint32(b[4:]), ack: binary.BigEndian.Uint32(b[8:]), flags: b[13],
			wnd: binary.BigEndian.Uint16(b[14:]), opts: b[20:off], data: b[off:],
		}
	default:
		t.Fatalf("sent IP protocol %d", s.ip.proto)
	}
}

// seen takes all that was sent apart.
func (k *kit) seen() []seen {
	k.t.Helper()
	var out []seen
	for _, b := range k.sent() {
		out = append(out, dissect(k.t, b))
	}
	return out
}

// one expects exactly one sent frame.
func (k *kit) one() seen {
	k.t.Helper()
	got := k.seen()
	if len(got) != 1 {
		k.t.Fatalf("%d frames were sent, want one: %+v", len(got), got)
	}
	return got[0]
}

// none expects that nothing was sent.
func (k *kit) none() {
	k.t.Helper()
	if got := k.seen(); len(got) != 0 {
		k.t.Fatalf("%d frames were sent, want none: %+v", len(got), got)
	}
}
