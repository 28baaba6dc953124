package proto

import "encoding/binary"

// What a router does to a packet.

// DecTTL takes one off the TTL of the IPv4 header at the start of b, which must not be 0, and updates its checksum (RFC 1624).
func DecTTL(b []byte) {
	old := binary.BigEndian.Uint16(b[ipTTL:])
	sum := Update16(binary.BigEndian.Uint16(b[ipChecksum:]), old, old-0x100)
	b[ipTTL]--
	binary.BigEndian.PutUint16(b[ipChecksum:], sum)
}

// ipOptCopied is the flag of options that every fragment carries (RFC 791 section 3.1).
const ipOptCopied = 0x80

// CopiedOptions writes to dst those of the options of a header that every fragment carries, filled up to whole words, and
// returns their length, 0 to 40. The options are valid (ValidIPOptions), and dst is at least as long.
func CopiedOptions(dst, opts []byte) int {
	n := 0
	for len(opts) > 0 && opts[0] != ipOptEnd {
		rest := skipIPOption(opts)
		if opts[0]&ipOptCopied != 0 {
			n += copy(dst[n:], opts[:len(opts)-len(rest)])
		}
		opts = rest
	}
	for n%4 != 0 {
		dst[n] = ipOptEnd
		n++
	}
	return n
}

// PutFragment writes the header of one fragment of the packet whose header is h: its options are opts, whole words; its
// payload of n bytes begins at byte off of that of h, and more says that others follow. It returns the header's length.
func PutFragment(b []byte, h *IPv4, opts []byte, off, n int, more bool) int {
	part := *h
	size := IPv4HeaderLen + len(opts)
	part.FragOff, part.MF, part.DF = h.FragOff+uint16(off), more || h.MF, false
	part.TotalLen = uint16(size + n)
	PutIPv4(b, &part)
	if len(opts) > 0 {
		copy(b[IPv4HeaderLen:], opts)
		b[ipVersionIHL] = 4<<4 | byte(size/4)
		binary.BigEndian.PutUint16(b[ipChecksum:], 0)
		binary.BigEndian.PutUint16(b[ipChecksum:], Checksum(b[:size]))
	}
	return size
}

// CompleteL4 finishes the TCP or UDP checksum of a packet that a kernel left to its device (L4Partial in VerifyL4), for
// whoever passes it on to one that does not know of that. b begins with the IPv4 or IPv6 header; what it is no part of, and
// whatever is not such a packet, is left alone. IPv6 extension headers are not looked behind. It reports whether it did
// anything, which takes reading all of the packet; otherwise the headers only.
func CompleteL4(b []byte, etherType uint16) bool {
	var seg []byte
	var pseudo uint64
	var transport byte
	switch etherType {
	case EtherIPv4:
		if len(b) < IPv4HeaderLen || b[ipVersionIHL]>>4 != 4 {
			return false
		}
		header, total := int(b[ipVersionIHL]&15)*4, int(binary.BigEndian.Uint16(b[ipTotalLen:]))
		if header < IPv4HeaderLen || total < header || total > len(b) ||
			binary.BigEndian.Uint16(b[ipFrag:])&(ipMF|ipOffsetMask) != 0 {
			return false
		}
		seg, transport = b[header:total], b[ipProto]
		pseudo = PseudoSum(GetAddr(b[ipSrc:]), GetAddr(b[ipDst:]), transport, len(seg))
	case EtherIPv6:
		if len(b) < ip6HeaderLen || b[0]>>4 != 6 {
			return false
		}
		n := int(binary.BigEndian.Uint16(b[ip6PayloadLen:]))
		if n > len(b)-ip6HeaderLen {
			return false
		}
		seg, transport = b[ip6HeaderLen:ip6HeaderLen+n], b[ip6Next]
		pseudo = Sum(b[ip6Src:ip6HeaderLen], uint64(transport)+uint64(n)) // RFC 8200 section 8.1
	default:
		return false
	}
	at := 0 // of the checksum in the segment
	switch {
	case transport == ProtoTCP && len(seg) >= TCPHeaderLen:
		at = tcpChecksum
	case transport == ProtoUDP && len(seg) >= UDPHeaderLen:
		at = udpChecksum
	default:
		return false
	}
	field := seg[at : at+2]
	if binary.BigEndian.Uint16(field) != Fold(pseudo) {
		return false
	}
	// The field holds the pseudo-header's sum: a sum over the segment has it in.
	sum := ^Fold(Sum(seg, 0))
	if sum == 0 && transport == ProtoUDP {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(field, sum)
	return true
}

// EtherIPv6 is the Ethernet type of a protocol that is only bridged.
const EtherIPv6 = 0x86dd

// Offsets in an IPv6 header (RFC 8200 section 3).
const (
	ip6PayloadLen = 4
	ip6Next       = 6
	ip6Src        = 8
	ip6HeaderLen  = 40
)
