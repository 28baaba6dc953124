package pktgen

import (
	"encoding/binary"

	"xdpd/proto"
	"xdpd/xdpprog"
)

const (
	headers = 14 + 20 + 8 // Ethernet, IPv4 and UDP
	fcs     = 4           // bytes that a frame has on a wire only
)

// maker writes frames as the in-kernel source does (xdpprog.SourceConfig): headers, a stamp, and zeros.
type maker struct {
	dst, src proto.MAC
	flows    *Flows
	sizes    []int // with FCS
	mark     uint16
	seq      uint64 // of the next frame
}

// put writes the next frame and returns its length.
func (m *maker) put(b []byte, now int64) int {
	length := m.sizes[m.seq%uint64(len(m.sizes))] - fcs
	to := m.flows.at(int(m.seq % uint64(m.flows.N)))
	b = b[:length]
	proto.PutEthernet(b, m.dst, m.src, proto.EtherIPv4)
	proto.PutIPv4(b[14:], &proto.IPv4{
		Src: to.src, Dst: to.dst, DF: true, TTL: 64, Proto: proto.ProtoUDP, TotalLen: uint16(length - 14),
	})
	payload := b[headers:]
	binary.BigEndian.PutUint16(payload, m.mark)
	binary.BigEndian.PutUint64(payload[2:], uint64(now))
	binary.BigEndian.PutUint64(payload[10:], m.seq)
	clear(payload[xdpprog.StampLen:])
	proto.PutUDP(b[34:], to.sport, to.dport, length-34, 0)
	sum := ^proto.Fold(proto.Sum(b[34:], proto.PseudoSum(to.src, to.dst, proto.ProtoUDP, length-34)))
	if sum == 0 {
		sum = 0xffff // 0 says that there is none (RFC 768)
	}
	binary.BigEndian.PutUint16(b[40:], sum)
	m.seq++
	return length
}

// checker judges frames that came in.
type checker struct {
	*verifier
	mark  uint16
	sizes []int // with FCS; nil: not known
}

// take looks at a frame.
func (c *checker) take(b []byte, now int64) {
	stamp, sums, ok := parse(b)
	if !ok || stamp.Mark != c.mark {
		c.Others++
		return
	}
	c.Frames++
	c.Bytes += uint64(len(b))
	if !sums || !c.asSent(b, stamp.Seq) {
		c.Corrupt++
		return
	}
	c.add(stamp.Seq, now-stamp.Time)
}

// asSent compares a frame with that of its number, but for the headers, which an echo changes.
func (c *checker) asSent(b []byte, seq uint64) bool {
	if c.sizes == nil {
		return true
	}
	if len(b) != c.sizes[seq%uint64(len(c.sizes))]-fcs {
		return false
	}
	for _, v := range b[headers+xdpprog.StampLen:] {
		if v != 0 {
			return false
		}
	}
	return true
}

// parse finds the stamp of a frame. ok: it is UDP over IPv4 without options, fragments or VLAN tags, with a payload that may
// begin with a stamp. sums: its checksums are right, or left to the device by a kernel (see proto.L4Partial).
func parse(b []byte) (stamp xdpprog.Stamp, sums, ok bool) {
	if len(b) < headers || binary.BigEndian.Uint16(b[12:]) != proto.EtherIPv4 || b[14] != 0x45 || b[23] != proto.ProtoUDP {
		return stamp, false, false
	}
	total := int(binary.BigEndian.Uint16(b[16:]))
	if binary.BigEndian.Uint16(b[20:])&0x3fff != 0 || total < headers-14 || 14+total > len(b) {
		return stamp, false, false
	}
	datagram := b[34 : 14+total]
	stamp, ok = xdpprog.ParseStamp(datagram[8:])
	if !ok || int(binary.BigEndian.Uint16(datagram[4:])) != len(datagram) {
		return stamp, false, false
	}
	sums = proto.Checksum(b[14:34]) == 0
	if field := binary.BigEndian.Uint16(datagram[6:]); field != 0 {
		pseudo := proto.PseudoSum(proto.GetAddr(b[26:]), proto.GetAddr(b[30:]), proto.ProtoUDP, len(datagram))
		sums = sums && proto.VerifyL4(datagram, field, pseudo) != proto.L4Bad
	}
	return stamp, sums, true
}
