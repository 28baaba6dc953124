package proto

import "encoding/binary"

// Flow is who a packet is from and for.
type Flow struct {
	Src, Dst         Addr
	SrcPort, DstPort uint16
	Proto            uint8 // ProtoTCP or ProtoUDP
}

// PeekFlow reads the flow of a UDP or TCP packet whose IPv4 header, without options, begins at b[0], and checks no more
// than that it is one: for who prepares what a packet will need before somebody parses it. ok is false for anything else,
// fragments with it.
func PeekFlow(b []byte) (f Flow, ok bool) {
	if len(b) < IPv4HeaderLen+4 || b[ipVersionIHL] != 4<<4|IPv4HeaderLen/4 {
		return f, false
	}
	if p := b[ipProto]; p != ProtoTCP && p != ProtoUDP || binary.BigEndian.Uint16(b[ipFrag:])&(ipMF|ipOffsetMask) != 0 {
		return f, false
	}
	return Flow{
		Src: GetAddr(b[ipSrc:]), Dst: GetAddr(b[ipDst:]), Proto: b[ipProto],
		SrcPort: binary.BigEndian.Uint16(b[IPv4HeaderLen:]), DstPort: binary.BigEndian.Uint16(b[IPv4HeaderLen+2:]),
	}, true
}
