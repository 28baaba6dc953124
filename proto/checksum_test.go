package proto

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
)

// naiveSum is RFC 1071 section 4.1 in words: 16 bits at a time, big-endian, the carry put back at once.
func naiveSum(b []byte, acc uint16) uint16 {
	s := uint32(acc)
	for i := 0; i < len(b); i += 2 {
		s += uint32(b[i]) << 8
		if i+1 < len(b) {
			s += uint32(b[i+1])
		}
		s = s>>16 + s&0xffff
	}
	return uint16(s)
}

func newRand(t testing.TB) *rand.Rand {
	return rand.New(rand.NewPCG(seeds.One(t), 0))
}

func randomBytes(r *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// The numbers are those of RFC 1071 section 3.
func TestSumRFC1071(t *testing.T) {
	b := hx("00 01 f2 03 f4 f5 f6 f7")
	if got := Fold(Sum(b, 0)); got != 0xddf2 {
		t.Errorf("sum %#04x, want 0xddf2", got)
	}
	if got := Checksum(b); got != 0x220d {
		t.Errorf("checksum %#04x, want 0x220d", got)
	}
}

// Every length that a frame has, at every alignment, in data where carries are rare, usual and constant.
func TestSumAllLengthsAndOffsets(t *testing.T) {
	const maxLen, offsets = 2000, 8
	random := randomBytes(newRand(t), maxLen+offsets)
	for name, data := range map[string][]byte{
		"random": random,
		"zeros":  make([]byte, maxLen+offsets),
		"ones":   bytes.Repeat([]byte{0xff}, maxLen+offsets),
	} {
		for n := 0; n <= maxLen; n++ {
			for off := range offsets {
				b := data[off:][:n:n]
				if got, want := Fold(Sum(b, 0)), naiveSum(b, 0); got != want {
					t.Fatalf("%s: %d bytes at offset %d: sum %#04x, want %#04x", name, n, off, got, want)
				}
			}
		}
	}
}

// A sum may be made in pieces, and an accumulator may be anything, the largest too.
func TestSumChains(t *testing.T) {
	r := newRand(t)
	b := randomBytes(r, 300)
	whole := Fold(Sum(b, 0))
	for split := 0; split <= len(b); split += 2 {
		if got := Fold(Sum(b[split:], Sum(b[:split], 0))); got != whole {
			t.Fatalf("split at %d: sum %#04x, want %#04x", split, got, whole)
		}
	}
	for _, acc := range []uint64{0, 1, 0xffff, 0x10000, 1<<32 - 1, 1 << 63, 1<<64 - 2, 1<<64 - 1, r.Uint64()} {
		var words [8]byte
		binary.BigEndian.PutUint64(words[:], acc)
		if got, want := Fold(Sum(b, acc)), naiveSum(b, naiveSum(words[:], 0)); got != want {
			t.Errorf("acc %#x: sum %#04x, want %#04x", acc, got, want)
		}
	}
}

func TestFold(t *testing.T) {
	for acc, want := range map[uint64]uint16{
		0: 0, 1: 1, 0xffff: 0xffff, 0x10000: 1, 0x1fffe: 0xffff, 0xffff0001: 1,
		0xffffffff00010000: 1, 1<<32 - 1: 0xffff, 1 << 32: 1, 1<<64 - 1: 0xffff, 1<<64 - 2: 0xfffe, 0x0001000100010001: 4,
	} {
		if got := Fold(acc); got != want {
			t.Errorf("Fold(%#x) = %#04x, want %#04x", acc, got, want)
		}
	}
}

func TestUpdate16(t *testing.T) {
	// RFC 1624 section 4: RFC 1141 gives 0xffff here.
	if got := Update16(0xdd2f, 0x5555, 0x3285); got != 0 {
		t.Errorf("the example of RFC 1624: %#04x, want 0", got)
	}
	r := newRand(t)
	corners := []uint16{0, 1, 0x7fff, 0x8000, 0xfffe, 0xffff, uint16(r.Uint32()), uint16(r.Uint32())}
	for _, rest := range corners[1:] { // all 0 is the exception that the comment names
		for _, old := range corners {
			for _, new := range corners {
				was, is := Checksum(words(rest, old)), Checksum(words(rest, new))
				if got := Update16(was, old, new); got != is {
					t.Errorf("rest %#04x, %#04x -> %#04x: %#04x, want %#04x", rest, old, new, got, is)
				}
			}
		}
	}
	if got := Update16(Checksum(words(0, 0xffff)), 0xffff, 0); got != 0 {
		t.Errorf("data now all 0: %#04x, want 0, as documented", got)
	}
	// UDP's 0xffff for a computed 0 is the same sum, and comes out as 0 again.
	for _, csum := range []uint16{0, 0xffff} {
		if got := Update16(csum, 0x1234, 0x1234); got != 0 {
			t.Errorf("sum %#04x, nothing changed: %#04x, want 0", csum, got)
		}
	}
}

func words(w ...uint16) []byte {
	var b []byte
	for _, w := range w {
		b = binary.BigEndian.AppendUint16(b, w)
	}
	return b
}

func TestPseudoSum(t *testing.T) {
	// 0a09 + 0801 + 0a09 + 0802 + 0006 + 0028
	if got := Fold(PseudoSum(0x0a090801, 0x0a090802, ProtoTCP, 40)); got != 0x2443 {
		t.Errorf("%#04x, want 0x2443", got)
	}
	// The largest of everything, as 16-bit words: 4 times 0xffff, 0x00ff, 0xffff.
	if got, want := Fold(PseudoSum(1<<32-1, 1<<32-1, 255, 65535)), naiveSum(words(0xffff, 0xff, 0xffff), 0); got != want {
		t.Errorf("%#04x, want %#04x", got, want)
	}
}

func TestVerifyL4(t *testing.T) {
	const field = 6
	for _, n := range []int{0, 1, 2, 1472} {
		seg := make([]byte, UDPHeaderLen+n)
		PutUDP(seg, 53, 4242, len(seg), 0)
		copy(seg[UDPHeaderLen:], randomBytes(newRand(t), n))
		pseudo := PseudoSum(0x0a000001, 0x0a000002, ProtoUDP, len(seg))
		right := ^naiveSum(seg, Fold(pseudo))
		check := func(name string, sum uint16, want L4Sum) {
			t.Helper()
			binary.BigEndian.PutUint16(seg[field:], sum)
			if got := VerifyL4(seg, sum, pseudo); got != want {
				t.Errorf("%d bytes of data, %s: %v, want %v", n, name, got, want)
			}
		}
		check("right", right, L4Good)
		check("pseudo-header sum only", Fold(pseudo), L4Partial)
		check("pseudo-header sum inverted", ^Fold(pseudo), L4Bad)
		check("one off", right+1, L4Bad)
	}
	// A segment whose right checksum is its pseudo-header's sum: good wins.
	pseudo := PseudoSum(1, 2, ProtoTCP, 4)
	half := Fold(pseudo)
	seg := words(half, ^naiveSum(words(half, half), 0))
	if got := VerifyL4(seg, half, pseudo); got != L4Good {
		t.Errorf("right and partial at once: %v, want good", got)
	}
}

func TestL4SumString(t *testing.T) {
	if L4Good.String() != "good" || L4Partial.String() != "partial" || L4Bad.String() != "bad" {
		t.Error(L4Good, L4Partial, L4Bad)
	}
	if (L4Sum(0)) != L4Bad {
		t.Error("a forgotten check must not be good")
	}
}

func FuzzChecksum(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte, split uint16, word uint16) {
		want := naiveSum(b, 0)
		if got := Fold(Sum(b, 0)); got != want {
			t.Fatalf("sum %#04x, want %#04x", got, want)
		}
		at := min(int(split), len(b)) &^ 1
		if got := Fold(Sum(b[at:], Sum(b[:at], 0))); got != want {
			t.Fatalf("split at %d: sum %#04x, want %#04x", at, got, want)
		}
		if at+2 > len(b) {
			return
		}
		b = bytes.Clone(b)
		was, old := Checksum(b), binary.BigEndian.Uint16(b[at:])
		binary.BigEndian.PutUint16(b[at:], word)
		is := Checksum(b)
		if len(bytes.Trim(b, "\x00")) == 0 {
			return // the documented exception
		}
		if got := Update16(was, old, word); got != is {
			t.Fatalf("word %d %#04x -> %#04x: checksum %#04x, want %#04x", at, old, word, got, is)
		}
		if at > 0 { // the word is the checksum of what is before it
			binary.BigEndian.PutUint16(b[at:], ^naiveSum(b[:at], 0))
			if got := VerifyL4(b[:at+2], binary.BigEndian.Uint16(b[at:]), 0); got != L4Good {
				t.Fatalf("right checksum judged %v", got)
			}
		}
	})
}

func BenchmarkSum(b *testing.B) {
	data := make([]byte, 9000)
	for i := range data {
		data[i] = byte(i * 7)
	}
	for _, n := range []int{20, 40, 64, 576, 1500, 9000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.SetBytes(int64(n))
			var acc uint64
			for b.Loop() {
				acc = Sum(data[:n], acc)
			}
			if Fold(acc) == 0 {
				b.Fatal("sum of data that is not 0 is 0")
			}
		})
	}
}
