package proto

import (
	"encoding/binary"
	"fmt"
)

// UDPHeaderLen is the length of a header.
const UDPHeaderLen = 8

// Offsets in a header (RFC 768, "Format").
const (
	udpSrc      = 0
	udpDst      = 2
	udpLen      = 4
	udpChecksum = 6
)

// UDP is a header's fields. The data lies at [8:Len].
type UDP struct {
	SrcPort, DstPort uint16
	Len              uint16 // bytes, header and data
	Checksum         uint16 // 0: none
}

// ParseUDP reads a header. b is the payload of the IP packet exactly; bytes after Len are not the datagram's. The
// checksum is for VerifyL4 over b[:Len], if it is not 0. Faults: UDPShort, UDPLen.
func ParseUDP(b []byte) (UDP, Fault) { return ParseUDPIn(b, len(b)) }

// ParseUDPIn is ParseUDP for a datagram that lies in several pieces: b is the first of them, total the bytes in all.
func ParseUDPIn(b []byte, total int) (UDP, Fault) {
	if len(b) < UDPHeaderLen {
		return UDP{}, UDPShort
	}
	length := binary.BigEndian.Uint16(b[udpLen:])
	if length < UDPHeaderLen || int(length) > total {
		return UDP{}, UDPLen
	}
	return UDP{
		SrcPort:  binary.BigEndian.Uint16(b[udpSrc:]),
		DstPort:  binary.BigEndian.Uint16(b[udpDst:]),
		Len:      length,
		Checksum: binary.BigEndian.Uint16(b[udpChecksum:]),
	}, OK
}

// PutUDP writes a header and returns its length, 8. length is that of header and data, at most 65515 in an IPv4 packet.
// sum is written as given: 0 says that there is no checksum, so a computed 0 has to be given as 0xffff (RFC 768,
// "Fields").
func PutUDP(b []byte, src, dst uint16, length int, sum uint16) int {
	_ = b[UDPHeaderLen-1]
	binary.BigEndian.PutUint16(b[udpSrc:], src)
	binary.BigEndian.PutUint16(b[udpDst:], dst)
	binary.BigEndian.PutUint16(b[udpLen:], uint16(length))
	binary.BigEndian.PutUint16(b[udpChecksum:], sum)
	return UDPHeaderLen
}

func (h UDP) String() string {
	return fmt.Sprintf("udp %d > %d, len %d", h.SrcPort, h.DstPort, h.Len)
}
