package xdpprog

import (
	"encoding/binary"
	"net/netip"
)

var be = binary.BigEndian

// ether puts an Ethernet header with tags (TPIDs, outermost first) before a payload.
func ether(typ uint16, payload []byte, tpids ...uint16) []byte {
	b := []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1}
	for _, tpid := range tpids {
		b = be.AppendUint16(b, tpid)
		b = be.AppendUint16(b, 0x2007) // priority 1, VLAN 7
	}
	b = be.AppendUint16(b, typ)
	return append(b, payload...)
}

func arp(target netip.Addr) []byte {
	b := []byte{0, 1, 8, 0, 6, 4, 0, 1, 2, 0, 0, 0, 0, 1}
	b = append(b, peerAddr.AsSlice()...)
	b = append(b, 0, 0, 0, 0, 0, 0)
	return append(b, target.AsSlice()...)
}

// ip4 is what the tests vary in an IPv4 header; the rest is plain. Frag is the flags and fragment offset word.
type ip4 struct {
	src, dst netip.Addr
	proto    uint8
	id, frag uint16
	options  []byte
}

func (h ip4) bytes(payload []byte) []byte {
	header := 20 + len(h.options)
	b := []byte{4<<4 | byte(header/4), 0}
	b = be.AppendUint16(b, uint16(header+len(payload)))
	b = be.AppendUint16(b, h.id)
	b = be.AppendUint16(b, h.frag)
	b = append(b, 64, h.proto, 0, 0) // the program does not look at checksums
	b = append(b, h.src.AsSlice()...)
	b = append(b, h.dst.AsSlice()...)
	b = append(b, h.options...)
	return append(b, payload...)
}

// toUs is a header of a packet from the peer to our first address.
func toUs(proto uint8) ip4 { return ip4{src: peerAddr, dst: ourAddr, proto: proto, id: 0x1234} }

func udp(src, dst uint16) []byte {
	b := be.AppendUint16(nil, src)
	b = be.AppendUint16(b, dst)
	b = append(b, 0, 16, 0, 0)
	return append(b, "datagram"...)
}

func tcp(src, dst uint16) []byte {
	b := be.AppendUint16(nil, src)
	b = be.AppendUint16(b, dst)
	b = append(b, make([]byte, 8)...)
	return append(b, 5<<4, 2, 0xff, 0xff, 0, 0, 0, 0)
}

// icmp is a message of a type with what it quotes.
func icmp(typ uint8, quote []byte) []byte {
	return append([]byte{typ, 1, 0, 0, 0, 0, 0, 0}, quote...)
}

// fromUs is the header of a packet that we sent and somebody quotes.
func fromUs(proto uint8) ip4 { return ip4{src: ourAddr, dst: peerAddr, proto: proto} }

func set16(b []byte, off int, v uint16) []byte {
	b = append([]byte(nil), b...)
	be.PutUint16(b[off:], v)
	return b
}

func set8(b []byte, off int, v byte) []byte {
	b = append([]byte(nil), b...)
	b[off] = v
	return b
}
