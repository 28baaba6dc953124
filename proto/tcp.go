package proto

import (
	"encoding/binary"
	"fmt"
)

// TCPHeaderLen is the length of a header without options.
const TCPHeaderLen = 20

// Flags (RFC 9293 section 3.1; ECE and CWR RFC 3168 section 6.1).
const (
	FIN = 1 << iota
	SYN
	RST
	PSH
	ACK
	URG
	ECE
	CWR
)

// Offsets in a header (RFC 9293 section 3.1).
const (
	tcpSrc      = 0
	tcpDst      = 2
	tcpSeq      = 4
	tcpAck      = 8
	tcpDataOff  = 12
	tcpFlags    = 13
	tcpWindow   = 14
	tcpChecksum = 16
	tcpUrgent   = 18
)

// TCP is a header's fields. Options lie at [20:DataOff], the data from DataOff on.
type TCP struct {
	SrcPort, DstPort uint16
	Seq, Ack         uint32
	DataOff          uint8 // bytes, 20..60, a multiple of 4
	Flags            uint8
	Window           uint16 // as on the wire, not scaled
	Checksum         uint16
	Urgent           uint16
}

// ParseTCP reads a header. b is the payload of the IP packet exactly: header, options and data. The checksum is for
// VerifyL4; which flags go together, and the four reserved bits (to be ignored), are no matter here.
// Faults: TCPShort, TCPDataOff.
func ParseTCP(b []byte) (TCP, Fault) {
	if len(b) < TCPHeaderLen {
		return TCP{}, TCPShort
	}
	dataOff := b[tcpDataOff] >> 4 * 4
	if dataOff < TCPHeaderLen || int(dataOff) > len(b) {
		return TCP{}, TCPDataOff
	}
	return TCP{
		SrcPort:  binary.BigEndian.Uint16(b[tcpSrc:]),
		DstPort:  binary.BigEndian.Uint16(b[tcpDst:]),
		Seq:      binary.BigEndian.Uint32(b[tcpSeq:]),
		Ack:      binary.BigEndian.Uint32(b[tcpAck:]),
		DataOff:  dataOff,
		Flags:    b[tcpFlags],
		Window:   binary.BigEndian.Uint16(b[tcpWindow:]),
		Checksum: binary.BigEndian.Uint16(b[tcpChecksum:]),
		Urgent:   binary.BigEndian.Uint16(b[tcpUrgent:]),
	}, OK
}

// PutTCP writes the 20 bytes before the options and returns 20. h.DataOff, which counts the options too, and the
// checksum are written as given.
func PutTCP(b []byte, h *TCP) int {
	_ = b[TCPHeaderLen-1]
	binary.BigEndian.PutUint16(b[tcpSrc:], h.SrcPort)
	binary.BigEndian.PutUint16(b[tcpDst:], h.DstPort)
	binary.BigEndian.PutUint32(b[tcpSeq:], h.Seq)
	binary.BigEndian.PutUint32(b[tcpAck:], h.Ack)
	b[tcpDataOff] = h.DataOff / 4 << 4
	b[tcpFlags] = h.Flags
	binary.BigEndian.PutUint16(b[tcpWindow:], h.Window)
	binary.BigEndian.PutUint16(b[tcpChecksum:], h.Checksum)
	binary.BigEndian.PutUint16(b[tcpUrgent:], h.Urgent)
	return TCPHeaderLen
}

func (h TCP) String() string {
	var flags []byte
	for i, letter := range []byte("FSRP.UEW") { // tcpdump's, from bit 0 on
		if h.Flags>>i&1 != 0 {
			flags = append(flags, letter)
		}
	}
	return fmt.Sprintf("tcp %d > %d [%s] seq %d ack %d win %d", h.SrcPort, h.DstPort, flags, h.Seq, h.Ack, h.Window)
}
