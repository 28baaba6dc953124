package proto

import (
	"encoding/binary"
	"fmt"
)

// ARPLen is the length of a packet for Ethernet and IPv4. On a wire padding follows it.
const ARPLen = 28

// Operations (RFC 826, "Packet format").
const (
	ARPRequest = 1
	ARPReply   = 2
)

// Offsets in a packet (RFC 826, "Packet format").
const (
	arpHardware = 0
	arpProtocol = 2
	arpHLen     = 4
	arpPLen     = 5
	arpOp       = 6
	arpSHA      = 8
	arpSPA      = 14
	arpTHA      = 18
	arpTPA      = 24

	arpEthernet = 1 // hardware type
)

// ARP is a request or reply for IPv4 over Ethernet.
type ARP struct {
	Op  uint16 // ARPRequest or ARPReply
	SHA MAC    // sender's
	SPA Addr
	THA MAC // target's: anything in a request
	TPA Addr
}

// ParseARP reads a packet, which may be longer: Ethernet pads it to 46 bytes. What the addresses may be it leaves to who
// knows the network. Faults: ARPShort, ARPBad.
func ParseARP(b []byte) (ARP, Fault) {
	if len(b) < ARPLen {
		return ARP{}, ARPShort
	}
	op := binary.BigEndian.Uint16(b[arpOp:])
	if binary.BigEndian.Uint16(b[arpHardware:]) != arpEthernet || binary.BigEndian.Uint16(b[arpProtocol:]) != EtherIPv4 ||
		b[arpHLen] != 6 || b[arpPLen] != 4 || op != ARPRequest && op != ARPReply {
		return ARP{}, ARPBad
	}
	return ARP{
		Op:  op,
		SHA: MAC(b[arpSHA:]),
		SPA: GetAddr(b[arpSPA:]),
		THA: MAC(b[arpTHA:]),
		TPA: GetAddr(b[arpTPA:]),
	}, OK
}

// PutARP writes a packet and returns its length, 28.
func PutARP(b []byte, a *ARP) int {
	_ = b[ARPLen-1]
	binary.BigEndian.PutUint16(b[arpHardware:], arpEthernet)
	binary.BigEndian.PutUint16(b[arpProtocol:], EtherIPv4)
	b[arpHLen], b[arpPLen] = 6, 4
	binary.BigEndian.PutUint16(b[arpOp:], a.Op)
	*(*MAC)(b[arpSHA:]) = a.SHA
	PutAddr(b[arpSPA:], a.SPA)
	*(*MAC)(b[arpTHA:]) = a.THA
	PutAddr(b[arpTPA:], a.TPA)
	return ARPLen
}

func (a ARP) String() string {
	if a.Op == ARPRequest {
		return fmt.Sprintf("arp who-has %v tell %v (%v)", a.TPA, a.SPA, a.SHA)
	}
	return fmt.Sprintf("arp %v is-at %v to %v (%v)", a.SPA, a.SHA, a.TPA, a.THA)
}
