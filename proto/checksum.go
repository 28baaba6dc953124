package proto

import (
	"encoding/binary"
	"math/bits"
)

// Sum adds the bytes of b to the ones-complement accumulator acc and returns it unfolded. b counts as big-endian
// 16-bit words, an odd last byte as the high half of a word (RFC 1071 section 4.1): sums may be chained over pieces of a
// packet as long as every piece but the last has an even length. Start with 0 or a PseudoSum.
//
// The result is 0 only if acc and all bytes of b are 0.
func Sum(b []byte, acc uint64) uint64 {
	// Any width and byte order give the same sum, up to one byte swap at the end (RFC 1071 section 2 (B) and (C)), so
	// 64-bit words are added as they lie in the memory of the machines we run on. Two accumulators, because one chain of
	// carries goes no faster than one addition a cycle.
	le := binary.LittleEndian
	var s, t, c uint64
	for len(b) >= 64 {
		s, c = bits.Add64(s, le.Uint64(b[0:8]), 0)
		s, c = bits.Add64(s, le.Uint64(b[8:16]), c)
		s, c = bits.Add64(s, le.Uint64(b[16:24]), c)
		s, c = bits.Add64(s, le.Uint64(b[24:32]), c)
		s += c // cannot overflow: a sum that carried out is below 2^64-1
		t, c = bits.Add64(t, le.Uint64(b[32:40]), 0)
		t, c = bits.Add64(t, le.Uint64(b[40:48]), c)
		t, c = bits.Add64(t, le.Uint64(b[48:56]), c)
		t, c = bits.Add64(t, le.Uint64(b[56:64]), c)
		t += c
		b = b[64:]
	}
	if len(b) >= 32 {
		s, c = bits.Add64(s, le.Uint64(b[0:8]), 0)
		s, c = bits.Add64(s, le.Uint64(b[8:16]), c)
		s, c = bits.Add64(s, le.Uint64(b[16:24]), c)
		s, c = bits.Add64(s, le.Uint64(b[24:32]), c)
		s += c
		b = b[32:]
	}
	s = add(s, t)
	// Of what is left no sum carries out of 64 bits: halves of words need no carries.
	t = 0
	if len(b) >= 16 {
		t = uint64(le.Uint32(b[0:4])) + uint64(le.Uint32(b[4:8])) + uint64(le.Uint32(b[8:12])) + uint64(le.Uint32(b[12:16]))
		b = b[16:]
	}
	if len(b) >= 8 {
		t += uint64(le.Uint32(b[0:4])) + uint64(le.Uint32(b[4:8]))
		b = b[8:]
	}
	if len(b) >= 4 {
		t += uint64(le.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		t += uint64(le.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		t += uint64(b[0]) // low byte of a little-endian word: the zero that pads it comes after it
	}
	s = add(s, t)
	return add(acc, bits.ReverseBytes64(s))
}

// AddSum is an accumulator over what two are over, the second of them behind an even number of bytes.
func AddSum(a, b uint64) uint64 { return add(a, b) }

// add is the ones-complement addition of 64-bit words: the carry comes back in at the low end.
func add(a, b uint64) uint64 {
	s, c := bits.Add64(a, b, 0)
	return s + c
}

// Fold folds an accumulator to 16 bits. The result is not inverted, and 0 only if acc is 0.
func Fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>16 + acc&0xffff
	acc = acc>>16 + acc&0xffff
	return uint16(acc)
}

// Checksum is the Internet checksum of b (RFC 1071 section 1), ready for a header whose checksum field is 0 in b. Over
// data that includes a right checksum it gives 0.
func Checksum(b []byte) uint16 { return ^Fold(Sum(b, 0)) }

// PseudoSum is the accumulator of the pseudo-header of TCP (RFC 9293 section 3.1) and UDP (RFC 768). length is that of
// the transport header and data in bytes, below 65536.
func PseudoSum(src, dst Addr, proto uint8, length int) uint64 {
	return uint64(src) + uint64(dst) + uint64(proto) + uint64(length)
}

// Update16 is the checksum csum of a header after one of its aligned 16-bit fields went from old to new: RFC 1624
// section 3, equation 3, which, unlike RFC 1141, gives what computing anew would give. The one exception is data whose
// words are now all 0: its checksum is 0xffff, and 0 comes out; no IPv4, TCP or UDP sum is over such data.
//
// In UDP a sum of 0 is sent as 0xffff (RFC 768): there a result of 0 has to become 0xffff, and a csum of 0 must not be
// updated at all, because it means that there is none.
func Update16(csum, old, new uint16) uint16 {
	return ^Fold(uint64(^csum) + uint64(^old) + uint64(new))
}

// L4Sum is what VerifyL4 found.
type L4Sum uint8

const (
	L4Bad     L4Sum = iota // neither of the others
	L4Good                 // the checksum is right
	L4Partial              // the field holds the folded pseudo-header sum only
)

func (s L4Sum) String() string {
	switch s {
	case L4Good:
		return "good"
	case L4Partial:
		return "partial"
	}
	return "bad"
}

// VerifyL4 checks the TCP or UDP checksum of seg: header and data, exactly as long as pseudo says. csumField is the
// checksum field in seg, and pseudo the segment's PseudoSum. L4Partial is what a kernel sender leaves for its device to
// finish (CHECKSUM_PARTIAL in include/linux/skbuff.h; tcp_v4_send_check in net/ipv4/tcp_ipv4.c) and what arrives over a
// veth, which never finishes it. Such a field that is also right counts as good.
//
// A UDP field of 0 means that there is no checksum (RFC 768): not to be asked here.
func VerifyL4(seg []byte, csumField uint16, pseudo uint64) L4Sum {
	switch {
	case Fold(Sum(seg, pseudo)) == 0xffff:
		return L4Good
	case csumField == Fold(pseudo):
		return L4Partial
	}
	return L4Bad
}
