package main

import (
	"encoding/binary"
	"slices"

	"xdpd/proto"
)

// The ends of the connections that the bench makes itself. With many the peer has more addresses, and is their gateway.
const (
	segHeaders = 14 + 20 + 32
	ourAddr    = proto.Addr(10<<24 | 1)
	ourPort    = 7
	peerAddr   = proto.Addr(10<<24 | 2)
	peerPort   = 4000
)

var (
	ourMAC  = proto.MAC{2, 0, 0, 0, 0, 1}
	peerMAC = proto.MAC{2, 0, 0, 0, 0, 2}
)

// segment is what differs between the peer's segments.
type segment struct {
	src      proto.Addr
	port     uint16
	seq, ack uint32
	ts       uint32 // ms
}

// segments writes the peer's frames from a template, with what differs put in: what the peer takes must be little against
// what is measured.
type segments struct {
	tmpl []byte         // Ethernet, IPv4, TCP with timestamps, and the longest data
	sums map[int]uint64 // by the length of the data
}

// newSegments is for segments with these lengths of data.
func newSegments(lengths ...int) *segments {
	s := &segments{make([]byte, segHeaders+slices.Max(lengths)), make(map[int]uint64)}
	for i := range s.tmpl {
		s.tmpl[i] = byte(i)
	}
	proto.PutEthernet(s.tmpl, ourMAC, peerMAC, proto.EtherIPv4)
	h := proto.TCP{DstPort: ourPort, DataOff: 32, Flags: proto.ACK | proto.PSH, Window: 0xffff}
	proto.PutTCP(s.tmpl[34:], &h)
	proto.PutTCPOptions(s.tmpl[54:], &proto.TCPOptions{HasTS: true})
	for _, n := range lengths {
		s.sums[n] = proto.Sum(s.tmpl[34:segHeaders+n], proto.PseudoSum(0, ourAddr, proto.ProtoTCP, 32+n))
	}
	return s
}

// put writes the frame with n bytes of data to p, and gives it.
func (s *segments) put(p []byte, g segment, n int) []byte {
	p = p[:segHeaders+n]
	copy(p, s.tmpl)
	proto.PutIPv4(p[14:], &proto.IPv4{Src: g.src, Dst: ourAddr, TTL: 64, Proto: proto.ProtoTCP, DF: true, TotalLen: uint16(52 + n)})
	binary.BigEndian.PutUint16(p[34:], g.port)
	binary.BigEndian.PutUint32(p[38:], g.seq)
	binary.BigEndian.PutUint32(p[42:], g.ack)
	binary.BigEndian.PutUint32(p[58:], g.ts)
	sum := s.sums[n] + uint64(g.src) + uint64(g.port) + uint64(g.seq) + uint64(g.ack) + uint64(g.ts)
	binary.BigEndian.PutUint16(p[50:], ^proto.Fold(sum))
	return p
}

// withFIN gives a segment the flag.
func withFIN(p []byte) []byte {
	was := binary.BigEndian.Uint16(p[46:])
	binary.BigEndian.PutUint16(p[46:], was|proto.FIN)
	binary.BigEndian.PutUint16(p[50:], proto.Update16(binary.BigEndian.Uint16(p[50:]), was, was|proto.FIN))
	return p
}

// restamp writes eight bytes to the start of the frame's data, and what that does to the checksum (RFC 1624).
func restamp(p []byte, stamp uint64) {
	at := p[segHeaders:]
	was := binary.BigEndian.Uint64(at)
	binary.BigEndian.PutUint64(at, stamp)
	sum := uint64(^binary.BigEndian.Uint16(p[50:])) + uint64(^uint32(was)) + uint64(^uint32(was>>32)) + stamp>>32 + uint64(uint32(stamp))
	binary.BigEndian.PutUint16(p[50:], ^proto.Fold(sum))
}

// stampOf reads it.
func stampOf(data []byte) int64 { return int64(binary.BigEndian.Uint64(data)) }

// putSYN writes the SYN before the segments of g's connection to p, and gives it: the one frame that the template does not
// make.
func putSYN(p []byte, g segment) []byte {
	opt := proto.TCPOptions{MSS: 1460, SACKPermitted: true, HasTS: true, TSVal: g.ts, HasWScale: true, WScale: 0}
	n := proto.TCPHeaderLen + opt.Len()
	proto.PutEthernet(p, ourMAC, peerMAC, proto.EtherIPv4)
	proto.PutIPv4(p[14:], &proto.IPv4{Src: g.src, Dst: ourAddr, TTL: 64, Proto: proto.ProtoTCP, TotalLen: uint16(20 + n)})
	seg := p[34 : 34+n]
	proto.PutTCP(seg, &proto.TCP{SrcPort: g.port, DstPort: ourPort, Seq: g.seq, DataOff: uint8(n), Flags: proto.SYN, Window: 0xffff})
	proto.PutTCPOptions(seg[20:], &opt)
	binary.BigEndian.PutUint16(seg[16:], ^proto.Fold(proto.Sum(seg, proto.PseudoSum(g.src, ourAddr, proto.ProtoTCP, n))))
	return p[:34+n]
}
