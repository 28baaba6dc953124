package proto

import (
	"bytes"
	"testing"
)

// From Linux: a SYN, with MSS 1460, SACK permitted, timestamps, window scale 10.
const tcpSYNBytes = "a32a 1e61 f24745a3 00000000 a0 02 faf0 6649 0000 020405b4 0402080a 2780a1b7 00000000 0103030a"

func TestParseTCP(t *testing.T) {
	for _, c := range []struct {
		name, bytes string
		want        TCP
		fault       Fault
	}{
		{"SYN", tcpSYNBytes, TCP{41770, 7777, 0xf24745a3, 0, 40, SYN, 64240, 0x6649, 0}, OK},
		{"data, from Linux", "a32a 1e61 f24745a4 75b7466a 80 18 003f a5d8 0000 0101080a 2780a1b7 9db2c714 68656c6c6f2c20786470",
			TCP{41770, 7777, 0xf24745a4, 0x75b7466a, 32, PSH | ACK, 63, 0xa5d8, 0}, OK},
		{"bare", "0050 1234 00000001 ffffffff 50 11 ffff 0102 0304", TCP{80, 0x1234, 1, 1<<32 - 1, 20, FIN | ACK, 65535, 0x0102, 0x0304}, OK},
		{"all flags, all reserved bits", "0050 1234 00000001 00000002 5f ff 0000 0000 0000", TCP{80, 0x1234, 1, 2, 20, FIN | SYN | RST | PSH | ACK | URG | ECE | CWR, 0, 0, 0}, OK},
		{"no flags", "0050 1234 00000001 00000002 50 00 0000 0000 0000", TCP{SrcPort: 80, DstPort: 0x1234, Seq: 1, Ack: 2, DataOff: 20}, OK},
		{"data offset 4", "0050 1234 00000001 00000002 40 10 0000 0000 0000", TCP{}, TCPDataOff},
		{"data offset 0", "0050 1234 00000001 00000002 00 10 0000 0000 0000", TCP{}, TCPDataOff},
		{"data offset past the end", "0050 1234 00000001 00000002 60 10 0000 0000 0000 010101", TCP{}, TCPDataOff},
		{"data offset 15 past the end", "0050 1234 00000001 00000002 f0 10 0000 0000 0000 01010101", TCP{}, TCPDataOff},
		{"19 bytes", "0050 1234 00000001 00000002 50 10 0000 0000 00", TCP{}, TCPShort},
		{"nothing", "", TCP{}, TCPShort},
	} {
		t.Run(c.name, func(t *testing.T) { checkParse(t, ParseTCP, hx(c.bytes), c.want, c.fault) })
	}
	checkTruncated(t, ParseTCP, hx(tcpSYNBytes+"00"), 40, TCPShort, TCPDataOff)
}

func TestTCPFlagBits(t *testing.T) {
	// RFC 9293 section 3.1, from the right.
	for i, f := range []int{FIN, SYN, RST, PSH, ACK, URG, ECE, CWR} {
		if f != 1<<i {
			t.Errorf("flag %d is %#x", i, f)
		}
	}
}

func TestPutTCP(t *testing.T) {
	b := hx(tcpSYNBytes)
	h, f := ParseTCP(b)
	if f != OK {
		t.Fatal(f)
	}
	out := bytes.Repeat([]byte{0xee}, 21)
	if n := PutTCP(out, &h); n != 20 || !bytes.Equal(out[:20], b[:20]) || out[20] != 0xee {
		t.Errorf("%d % x", n, out)
	}
}

func FuzzTCP(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		h, fault := ParseTCP(b)
		if fault != OK {
			if h != (TCP{}) || (fault == TCPShort) != (len(b) < 20) || fault != TCPShort && fault != TCPDataOff {
				t.Fatalf("%v %+v", fault, h)
			}
			return
		}
		if h.DataOff < 20 || int(h.DataOff) > len(b) || h.DataOff%4 != 0 {
			t.Fatalf("accepted %+v of %d bytes", h, len(b))
		}
		VerifyL4(b, h.Checksum, PseudoSum(1, 2, ProtoTCP, len(b)))
		var o TCPOptions
		ParseTCPOptions(b[20:h.DataOff], &o)
		out, want := make([]byte, 20), bytes.Clone(b[:20])
		want[12] &= 0xf0 // reserved bits are sent as 0
		if PutTCP(out, &h); !bytes.Equal(out, want) {
			t.Fatalf("   % x\nis % x", want, out)
		}
	})
}
