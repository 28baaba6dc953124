package proto

import (
	"bytes"
	"testing"
)

func TestParseUDP(t *testing.T) {
	for _, c := range []struct {
		name, bytes string
		want        UDP
		fault       Fault
	}{
		{"three bytes, from Linux", "ac7c 0035 000b 5bad 6f6464", UDP{44156, 53, 11, 0x5bad}, OK},
		{"no data, no checksum", "0035 1234 0008 0000", UDP{53, 0x1234, 8, 0}, OK},
		{"bytes after the datagram", "0035 1234 0009 ffff 61 626364", UDP{53, 0x1234, 9, 0xffff}, OK},
		{"port 0", "0000 0000 0008 0001", UDP{0, 0, 8, 1}, OK},
		{"length 7", "0035 1234 0007 0000 61", UDP{}, UDPLen},
		{"length 0, as of a jumbogram", "0035 1234 0000 0000 61", UDP{}, UDPLen},
		{"length past the end", "0035 1234 000a 0000 61", UDP{}, UDPLen},
		{"length 65535", "0035 1234 ffff 0000 61", UDP{}, UDPLen},
		{"seven bytes", "0035 1234 0008 00", UDP{}, UDPShort},
		{"nothing", "", UDP{}, UDPShort},
	} {
		t.Run(c.name, func(t *testing.T) { checkParse(t, ParseUDP, hx(c.bytes), c.want, c.fault) })
	}
	checkTruncated(t, ParseUDP, hx("ac7c 0035 000b 5bad 6f6464 0000"), 11, UDPShort, UDPLen)
	// The length field reaches to 65535; a packet that long has to be possible.
	long := make([]byte, 65535)
	PutUDP(long, 1, 2, len(long), 3)
	checkParse(t, ParseUDP, long, UDP{1, 2, 65535, 3}, OK)
}

// The first of several pieces: the length may reach past it, but not past all of them.
func TestParseUDPIn(t *testing.T) {
	first := hx("ac7c 0035 000b 5bad 6f")
	for total, fault := range map[int]Fault{9: UDPLen, 10: UDPLen, 11: OK, 12: OK, 65515: OK} {
		in := func(b []byte) (UDP, Fault) { return ParseUDPIn(b, total) }
		checkParse(t, in, first, UDP{44156, 53, 11, 0x5bad}, fault)
		checkParse(t, in, first[:7], UDP{}, UDPShort) // a first fragment has 8 bytes at least
	}
}

func TestPutUDP(t *testing.T) {
	b := bytes.Repeat([]byte{0xee}, 9)
	if n := PutUDP(b, 44156, 53, 11, 0x5bad); n != 8 || !bytes.Equal(b, hx("ac7c 0035 000b 5bad ee")) {
		t.Errorf("%d % x", n, b)
	}
}

func FuzzUDP(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		h, fault := ParseUDP(b)
		if fault != OK {
			if h != (UDP{}) || (fault == UDPShort) != (len(b) < 8) || fault != UDPShort && fault != UDPLen {
				t.Fatalf("%v %+v", fault, h)
			}
			return
		}
		if h.Len < 8 || int(h.Len) > len(b) {
			t.Fatalf("accepted %+v of %d bytes", h, len(b))
		}
		VerifyL4(b[:h.Len], h.Checksum, PseudoSum(1, 2, ProtoUDP, int(h.Len)))
		out := make([]byte, 8)
		if PutUDP(out, h.SrcPort, h.DstPort, int(h.Len), h.Checksum); !bytes.Equal(out, b[:8]) {
			t.Fatalf("   % x\nis % x", b[:8], out)
		}
	})
}
