package proto

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"
)

// TestLPM compares with a search through the list, on tables of prefixes that lie in each other.
func TestLPM(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var list []LPMRoute
		for i := range rng.IntN(200) {
			list = append(list, LPMRoute{Addr(rng.Uint32()) & 0x0103ffff, rng.IntN(33), uint32(i)})
		}
		table := NewLPM(list)
		for range 2000 {
			a := Addr(rng.Uint32()) & 0x0303ffff
			best := -1
			for i, r := range list {
				same := r.Bits == 0 || (a^r.Dst)>>(32-r.Bits) == 0
				if same && (best < 0 || r.Bits > list[best].Bits) {
					best = i
				}
			}
			v, ok := table.Lookup(a)
			if ok != (best >= 0) || ok && int(v) != best {
				t.Fatalf("%v in %v: %d %v, want %d", a, list, v, ok, best)
			}
		}
	}
}

// TestDecTTL: the checksum stays right for every TTL.
func TestDecTTL(t *testing.T) {
	for ttl := 1; ttl < 256; ttl++ {
		var b [20]byte
		PutIPv4(b[:], &IPv4{Src: 0x0a000001, Dst: Addr(ttl) << 13, ID: uint16(ttl * 257), TTL: uint8(ttl), Proto: 17, TotalLen: 20})
		DecTTL(b[:])
		if ip, fault := ParseIPv4(b[:]); fault != OK || int(ip.TTL) != ttl-1 {
			t.Fatalf("TTL %d: %v %v", ttl, ip, fault)
		}
	}
}

// TestFragmentHeaders: later fragments carry the options with the copied flag, and all headers are sound.
func TestFragmentHeaders(t *testing.T) {
	opts := []byte{1, 7, 4, 4, 0, 0x94, 4, 0, 0, 0x83, 3, 0} // NOP, record route, router alert (copied), LSRR (copied)
	var kept [40]byte
	later := kept[:CopiedOptions(kept[:], opts)]
	if want := []byte{0x94, 4, 0, 0, 0x83, 3, 0, 0}; !bytes.Equal(later, want) {
		t.Fatalf("copied %x, want %x", later, want)
	}
	h := IPv4{Src: 0x0a000001, Dst: 0x0a000002, ID: 9, TTL: 4, Proto: 17, FragOff: 800, MF: true, HeaderLen: 32, TotalLen: 432}
	b := make([]byte, 500)
	for _, c := range []struct {
		opts   []byte
		at, n  int
		more   bool
		header int
	}{{opts, 0, 200, true, 32}, {later, 200, 200, false, 28}} {
		if n := PutFragment(b, &h, c.opts, c.at, c.n, c.more); n != c.header {
			t.Errorf("header of %d bytes, want %d", n, c.header)
		}
		got, fault := ParseIPv4(b)
		want := h
		want.FragOff, want.MF, want.HeaderLen, want.TotalLen = uint16(800+c.at), true, uint8(c.header), uint16(c.header+c.n)
		if fault != OK || got != want || !bytes.Equal(b[20:c.header], c.opts) {
			t.Errorf("%v %+v, want %+v", fault, got, want)
		}
	}
}

// TestCompleteL4: a partial checksum becomes right, and anything else is left alone.
func TestCompleteL4(t *testing.T) {
	for _, v6 := range []bool{false, true} {
		for _, transport := range []byte{ProtoTCP, ProtoUDP, 132} {
			b, typ, header, at := make([]byte, 100), uint16(EtherIPv4), 20, tcpChecksum
			if transport == ProtoUDP {
				at = udpChecksum
			}
			var pseudo uint64
			if v6 {
				typ, header = EtherIPv6, 40
				copy(b, []byte{0x60, 0, 0, 0, 0, 50, transport, 64})
				for i := 8; i < 40; i++ {
					b[i] = byte(i * 3)
				}
				pseudo = Sum(b[8:40], uint64(transport)+50)
			} else {
				PutIPv4(b, &IPv4{Src: 0x0a000001, Dst: 0x0a000002, TTL: 4, Proto: transport, TotalLen: 70})
				pseudo = PseudoSum(0x0a000001, 0x0a000002, transport, 50)
			}
			seg := b[header : header+50]
			for i := range seg {
				seg[i] = byte(i * 7)
			}
			before := bytes.Clone(b)
			if CompleteL4(b, typ) || !bytes.Equal(b, before) {
				t.Errorf("v6 %v, protocol %d: a checksum that is not partial was changed", v6, transport)
			}
			binary.BigEndian.PutUint16(seg[at:], Fold(pseudo))
			if done := CompleteL4(b, typ); done != (transport != 132) {
				t.Errorf("v6 %v, protocol %d: done %v", v6, transport, done)
			} else if done && VerifyL4(seg, binary.BigEndian.Uint16(seg[at:]), pseudo) != L4Good {
				t.Errorf("v6 %v, protocol %d: the checksum is not right", v6, transport)
			}
		}
	}
}

func FuzzCompleteL4(f *testing.F) {
	f.Add([]byte{0x45, 0, 0, 28}, true)
	f.Fuzz(func(_ *testing.T, b []byte, v6 bool) {
		typ := uint16(EtherIPv4)
		if v6 {
			typ = EtherIPv6
		}
		CompleteL4(b, typ)
	})
}

func BenchmarkLPM(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 2))
	var list []LPMRoute
	for i := range 100_000 {
		list = append(list, LPMRoute{Addr(rng.Uint32()), 16 + rng.IntN(9), uint32(i)})
	}
	t := NewLPM(list)
	a := Addr(0)
	for b.Loop() {
		a = a*1664525 + 1013904223
		t.Lookup(a)
	}
}
