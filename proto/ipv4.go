package proto

import (
	"encoding/binary"
	"fmt"
)

// IPv4HeaderLen is the length of a header without options.
const IPv4HeaderLen = 20

// Protocol numbers (IANA).
const (
	ProtoICMP = 1
	ProtoTCP  = 6
	ProtoUDP  = 17
)

// Offsets in a header (RFC 791 section 3.1).
const (
	ipVersionIHL = 0
	ipTOS        = 1
	ipTotalLen   = 2
	ipID         = 4
	ipFrag       = 6
	ipTTL        = 8
	ipProto      = 9
	ipChecksum   = 10
	ipSrc        = 12
	ipDst        = 16

	ipDF         = 0x4000
	ipMF         = 0x2000
	ipOffsetMask = 0x1fff // in units of 8 bytes

	ipMaxLen = 65535
)

// Option types (RFC 791 section 3.1).
const (
	ipOptEnd  = 0
	ipOptNop  = 1
	ipOptLSRR = 131
	ipOptSSRR = 137
)

// IPv4 is a header's fields. Options lie at [20:HeaderLen], the payload at [HeaderLen:TotalLen].
type IPv4 struct {
	Src, Dst  Addr
	ID        uint16
	FragOff   uint16 // bytes, a multiple of 8
	DF, MF    bool
	TTL       uint8
	Proto     uint8
	TOS       uint8  // DSCP<<2 | ECN (RFC 2474 section 3, RFC 3168 section 5)
	HeaderLen uint8  // bytes, 20..60
	TotalLen  uint16 // bytes, header and payload
}

// ParseIPv4 reads and checks a header; b may be longer than the packet, as Ethernet pads. It checks what RFC 1122
// section 3.2.1 and RFC 1812 section 5.2.2 ask of a receiver, and that the payload of a fragment ends within 65535 bytes
// (a reassembled packet must do so with its header). It does not judge addresses, TTL or the reserved flag.
// Faults: IPShort, IPVersion, IPHeaderLen, IPTotalLen, IPChecksum, IPOptions, looked for in this order.
func ParseIPv4(b []byte) (IPv4, Fault) { return ParseIPv4In(b, len(b)) }

// ParseIPv4In is ParseIPv4 for a packet of which b is the beginning, its header at least, and which has room for n bytes
// in all.
func ParseIPv4In(b []byte, n int) (IPv4, Fault) {
	if len(b) < IPv4HeaderLen {
		return IPv4{}, IPShort
	}
	if b[ipVersionIHL]>>4 != 4 {
		return IPv4{}, IPVersion
	}
	header := int(b[ipVersionIHL]&15) * 4
	if header < IPv4HeaderLen || header > len(b) {
		return IPv4{}, IPHeaderLen
	}
	total := int(binary.BigEndian.Uint16(b[ipTotalLen:]))
	frag := binary.BigEndian.Uint16(b[ipFrag:])
	offset := int(frag&ipOffsetMask) * 8
	if total < header || total > n || offset+total-header > ipMaxLen {
		return IPv4{}, IPTotalLen
	}
	sum := sumIPv4((*[IPv4HeaderLen]byte)(b))
	if header > IPv4HeaderLen {
		sum = Sum(b[IPv4HeaderLen:header], sum)
	}
	if Fold(sum) != 0xffff {
		return IPv4{}, IPChecksum
	}
	if !ValidIPOptions(b[IPv4HeaderLen:header]) {
		return IPv4{}, IPOptions
	}
	return IPv4{
		Src:       GetAddr(b[ipSrc:]),
		Dst:       GetAddr(b[ipDst:]),
		ID:        binary.BigEndian.Uint16(b[ipID:]),
		FragOff:   uint16(offset),
		DF:        frag&ipDF != 0,
		MF:        frag&ipMF != 0,
		TTL:       b[ipTTL],
		Proto:     b[ipProto],
		TOS:       b[ipTOS],
		HeaderLen: uint8(header),
		TotalLen:  uint16(total),
	}, OK
}

// Fragment reports that the packet is a part of one (RFC 791 section 3.2).
func (h *IPv4) Fragment() bool { return h.MF || h.FragOff != 0 }

// PutIPv4 writes a header without options, whatever h.HeaderLen says, with its checksum, and returns its length, 20.
// The low three bits of FragOff are lost.
func PutIPv4(b []byte, h *IPv4) int {
	_ = b[IPv4HeaderLen-1]
	frag := h.FragOff / 8
	if h.DF {
		frag |= ipDF
	}
	if h.MF {
		frag |= ipMF
	}
	b[ipVersionIHL] = 4<<4 | IPv4HeaderLen/4
	b[ipTOS] = h.TOS
	binary.BigEndian.PutUint16(b[ipTotalLen:], h.TotalLen)
	binary.BigEndian.PutUint16(b[ipID:], h.ID)
	binary.BigEndian.PutUint16(b[ipFrag:], frag)
	b[ipTTL] = h.TTL
	b[ipProto] = h.Proto
	binary.BigEndian.PutUint16(b[ipChecksum:], 0)
	PutAddr(b[ipSrc:], h.Src)
	PutAddr(b[ipDst:], h.Dst)
	binary.BigEndian.PutUint16(b[ipChecksum:], ^Fold(sumIPv4((*[IPv4HeaderLen]byte)(b))))
	return IPv4HeaderLen
}

// sumIPv4 is Sum of a header without options, of which every packet has one.
func sumIPv4(b *[IPv4HeaderLen]byte) uint64 {
	be := binary.BigEndian
	return uint64(be.Uint32(b[0:])) + uint64(be.Uint32(b[4:])) + uint64(be.Uint32(b[8:])) + uint64(be.Uint32(b[12:])) + uint64(be.Uint32(b[16:]))
}

// ValidIPOptions reports that the options of a header can be walked to their end: each is one byte (end of list, which
// ends the walk, and no operation) or has a length byte of at least 2 that stays inside (RFC 791 section 3.1).
func ValidIPOptions(opts []byte) bool {
	for len(opts) > 0 && opts[0] != ipOptEnd {
		if opts = skipIPOption(opts); opts == nil {
			return false
		}
	}
	return true
}

// SourceRouted reports a loose or strict source route among the options (RFC 791 section 3.1, RFC 1122 section 3.2.1.8
// (c)); RFC 7126 sections 4.3 and 4.4 advise to drop such packets.
func SourceRouted(opts []byte) bool {
	for len(opts) > 0 && opts[0] != ipOptEnd {
		if opts[0] == ipOptLSRR || opts[0] == ipOptSSRR {
			return true
		}
		opts = skipIPOption(opts)
	}
	return false
}

// skipIPOption is what follows the first option, not nil; nil if that option is malformed. len(opts) > 0.
func skipIPOption(opts []byte) []byte {
	if opts[0] == ipOptNop {
		return opts[1:]
	}
	if len(opts) < 2 || opts[1] < 2 || int(opts[1]) > len(opts) {
		return nil
	}
	return opts[opts[1]:]
}

func (h IPv4) String() string {
	s := fmt.Sprintf("%v > %v: proto %d, len %d, ttl %d, id %d", h.Src, h.Dst, h.Proto, h.TotalLen, h.TTL, h.ID)
	if h.TOS != 0 {
		s += fmt.Sprintf(", tos %#x", h.TOS)
	}
	if h.DF {
		s += ", DF"
	}
	if h.Fragment() {
		s += fmt.Sprintf(", frag %d", h.FragOff)
	}
	if h.MF {
		s += "+"
	}
	return s
}
