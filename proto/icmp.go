package proto

import (
	"encoding/binary"
	"fmt"
)

// ICMPHeaderLen is the length of every header: type, code, checksum and four bytes whose sense is the type's.
const ICMPHeaderLen = 8

// Message types (RFC 792).
const (
	ICMPEchoReply    = 0
	ICMPUnreachable  = 3
	ICMPEcho         = 8
	ICMPTimeExceeded = 11
	ICMPParameter    = 12
)

// Codes of ICMPUnreachable (RFC 792).
const (
	UnreachNet        = 0
	UnreachHost       = 1
	UnreachProtocol   = 2
	UnreachPort       = 3
	UnreachFragNeeded = 4 // the low half of Rest is the next hop's MTU (RFC 1191 section 4)
)

// Offsets in a message (RFC 792).
const (
	icmpType     = 0
	icmpCode     = 1
	icmpChecksum = 2
	icmpRest     = 4
)

// ICMP is a message's header.
type ICMP struct {
	Type, Code uint8
	Checksum   uint16
	Rest       uint32 // echo: identifier<<16 | sequence number; fragmentation needed: MTU in the low half
}

// ParseICMP reads and checks a message: b is all of it, because the checksum covers all of it.
// Faults: ICMPShort, ICMPChecksum.
func ParseICMP(b []byte) (ICMP, Fault) {
	if len(b) < ICMPHeaderLen {
		return ICMP{}, ICMPShort
	}
	if Checksum(b) != 0 {
		return ICMP{}, ICMPChecksum
	}
	return ICMP{
		Type:     b[icmpType],
		Code:     b[icmpCode],
		Checksum: binary.BigEndian.Uint16(b[icmpChecksum:]),
		Rest:     binary.BigEndian.Uint32(b[icmpRest:]),
	}, OK
}

// PutICMP writes a header with a checksum of 0 and returns its length, 8. SetICMPChecksum comes after the data.
func PutICMP(b []byte, typ, code uint8, rest uint32) int {
	_ = b[ICMPHeaderLen-1]
	b[icmpType], b[icmpCode] = typ, code
	binary.BigEndian.PutUint16(b[icmpChecksum:], 0)
	binary.BigEndian.PutUint32(b[icmpRest:], rest)
	return ICMPHeaderLen
}

// SetICMPChecksum computes the checksum of the whole message b and writes it into its header.
func SetICMPChecksum(b []byte) {
	binary.BigEndian.PutUint16(b[icmpChecksum:], 0)
	binary.BigEndian.PutUint16(b[icmpChecksum:], Checksum(b))
}

func (h ICMP) String() string {
	id, low := h.Rest>>16, h.Rest&0xffff
	switch {
	case h.Type == ICMPEcho:
		return fmt.Sprintf("icmp echo request, id %d, seq %d", id, low)
	case h.Type == ICMPEchoReply:
		return fmt.Sprintf("icmp echo reply, id %d, seq %d", id, low)
	case h.Type == ICMPUnreachable && h.Code == UnreachFragNeeded:
		return fmt.Sprintf("icmp unreachable, fragmentation needed, mtu %d", low)
	}
	return fmt.Sprintf("icmp type %d, code %d", h.Type, h.Code)
}
