package proto

import (
	"encoding/binary"
	"fmt"
	"net/netip"
)

// Addr is an IPv4 address as a host-order number: 10.0.0.1 is 0x0a000001.
type Addr uint32

// GetAddr reads an address from the first 4 bytes of b.
func GetAddr(b []byte) Addr { return Addr(binary.BigEndian.Uint32(b)) }

// PutAddr writes a to the first 4 bytes of b.
func PutAddr(b []byte, a Addr) { binary.BigEndian.PutUint32(b, uint32(a)) }

// AddrFrom converts an IPv4 address, also one mapped into IPv6 as net hands them out; false for any other.
func AddrFrom(ip netip.Addr) (Addr, bool) {
	ip = ip.Unmap()
	if !ip.Is4() {
		return 0, false
	}
	b := ip.As4()
	return GetAddr(b[:]), true
}

// Netip is a as the standard library has it.
func (a Addr) Netip() netip.Addr {
	return netip.AddrFrom4([4]byte{byte(a >> 24), byte(a >> 16), byte(a >> 8), byte(a)})
}

func (a Addr) String() string { return a.Netip().String() }

// IsUnspecified reports 0.0.0.0.
func (a Addr) IsUnspecified() bool { return a == 0 }

// IsZeroNet reports "this network", 0.0.0.0/8 (RFC 1122 section 3.2.1.3 (a), (b)): never a destination.
func (a Addr) IsZeroNet() bool { return a>>24 == 0 }

// IsLoopback reports 127.0.0.0/8 (RFC 1122 section 3.2.1.3 (g)): never on a wire.
func (a Addr) IsLoopback() bool { return a>>24 == 127 }

// IsMulticast reports 224.0.0.0/4 (RFC 1112 section 4): never a source.
func (a Addr) IsMulticast() bool { return a>>28 == 0xe }

// IsReserved reports 240.0.0.0/4 (RFC 1112 section 4) without 255.255.255.255.
func (a Addr) IsReserved() bool { return a>>28 == 0xf && a != 0xffffffff }

// IsBroadcast reports the limited broadcast 255.255.255.255 (RFC 1122 section 3.2.1.3 (c)). Whether an address is a
// subnet's broadcast only its prefix tells.
func (a Addr) IsBroadcast() bool { return a == 0xffffffff }

// MAC is an Ethernet address.
type MAC [6]byte

// Broadcast is the Ethernet broadcast address. Not to be written to.
var Broadcast = MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}

// IsMulticast reports a group address, which broadcast is too: the group bit of RFC 9542 section 2.1.
func (m MAC) IsMulticast() bool { return m[0]&1 != 0 }

func (m MAC) IsBroadcast() bool { return m == MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

func (m MAC) IsZero() bool { return m == MAC{} }

func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}
