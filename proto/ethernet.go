package proto

import (
	"encoding/binary"
	"fmt"
)

// EthernetHeaderLen is the length of a header without tags; a tag adds 4.
const EthernetHeaderLen = 14

// Ethernet types (IEEE 802 numbers, RFC 9542 appendix B).
const (
	EtherIPv4 = 0x0800
	EtherARP  = 0x0806
	EtherCTag = 0x8100 // customer VLAN tag, 802.1Q
	EtherSTag = 0x88a8 // service VLAN tag, 802.1ad

	EtherTrial = 0x88b5 // for local experiments (IEEE 802-2014 section 9.2.4)
)

// Smaller values of the type field are lengths (IEEE 802.3-2018 section 3.2.6).
const etherTypeMin = 0x600

// Offsets in a header (RFC 894; IEEE 802.3-2018 section 3.1.1).
const (
	ethDst  = 0
	ethSrc  = 6
	ethType = 12

	ethTagLen = 4 // type of the tag, then its control information, in front of the type proper
)

// Ethernet is a frame's header with up to two VLAN tags.
type Ethernet struct {
	Dst, Src MAC
	Type     uint16    // of what follows the header
	NTags    uint8     // 0..2
	Tags     [2]uint16 // outermost first: priority, drop eligible, VLAN (IEEE 802.1Q-2018 section 9.6)
	Len      uint8     // bytes of the whole header: 14, 18 or 22
}

// ParseEthernet reads the header at the start of a frame. Both kinds of tag are taken at both places, as some switches
// put 0x8100 outside too. Faults: EthShort, EthVLAN, EthLLC.
func ParseEthernet(b []byte) (Ethernet, Fault) {
	if len(b) < EthernetHeaderLen {
		return Ethernet{}, EthShort
	}
	e := Ethernet{
		Dst:  MAC(b[ethDst:ethSrc]),
		Src:  MAC(b[ethSrc:ethType]),
		Type: binary.BigEndian.Uint16(b[ethType:]),
		Len:  EthernetHeaderLen,
	}
	for e.Type == EtherCTag || e.Type == EtherSTag {
		if int(e.NTags) == len(e.Tags) || len(b) < int(e.Len)+ethTagLen {
			return Ethernet{}, EthVLAN
		}
		tag := b[e.Len:][:ethTagLen]
		e.Tags[e.NTags] = binary.BigEndian.Uint16(tag)
		e.Type = binary.BigEndian.Uint16(tag[2:])
		e.NTags++
		e.Len += ethTagLen
	}
	if e.Type < etherTypeMin {
		return Ethernet{}, EthLLC
	}
	return e, OK
}

// PutEthernet writes a header without tags and returns its length, 14.
func PutEthernet(b []byte, dst, src MAC, typ uint16) int {
	_ = b[EthernetHeaderLen-1]
	*(*MAC)(b[ethDst:]) = dst
	*(*MAC)(b[ethSrc:]) = src
	binary.BigEndian.PutUint16(b[ethType:], typ)
	return EthernetHeaderLen
}

// PutEthernetTagged writes a header with tags, outermost first, and returns its length. One tag is of type 0x8100; of
// two the outer is 0x88a8 and the inner 0x8100 (IEEE 802.1Q-2018 table 9-1). More than two panic.
func PutEthernetTagged(b []byte, dst, src MAC, tags []uint16, typ uint16) int {
	if len(tags) > len(Ethernet{}.Tags) {
		panic(fmt.Sprintf("proto: %d VLAN tags, at most 2 fit", len(tags)))
	}
	n := PutEthernet(b, dst, src, typ)
	for i, tag := range tags {
		kind := uint16(EtherCTag)
		if i < len(tags)-1 {
			kind = EtherSTag
		}
		binary.BigEndian.PutUint16(b[n-2:], kind)
		binary.BigEndian.PutUint16(b[n:], tag)
		binary.BigEndian.PutUint16(b[n+2:], typ)
		n += ethTagLen
	}
	return n
}

func (e Ethernet) String() string {
	s := fmt.Sprintf("%v > %v, type %#04x", e.Src, e.Dst, e.Type)
	for _, tag := range e.Tags[:e.NTags] {
		s += fmt.Sprintf(", vlan %d p %d", tag&0xfff, tag>>13)
	}
	return s
}
