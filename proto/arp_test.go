package proto

import (
	"bytes"
	"testing"
)

// Hardware type, protocol type, lengths, operation; sender; target.
const arpRequestBytes = "0001 0800 06 04 0001  020000000001 0a000001  000000000000 0a000002"

func TestParseARP(t *testing.T) {
	request := ARP{ARPRequest, macA, 0x0a000001, MAC{}, 0x0a000002}
	for _, c := range []struct {
		name, bytes string
		want        ARP
		fault       Fault
	}{
		{"request", arpRequestBytes, request, OK},
		{"reply", "0001 0800 06 04 0002  020000000002 0a000002  020000000001 0a000001", ARP{ARPReply, macB, 0x0a000002, macA, 0x0a000001}, OK},
		{"padded to 46", arpRequestBytes + "deadbeef deadbeef deadbeef deadbeef dead", request, OK},
		{"probe (RFC 5227)", "0001 0800 06 04 0001  020000000001 00000000  000000000000 0a000001", ARP{ARPRequest, macA, 0, MAC{}, 0x0a000001}, OK},
		{"announcement (RFC 5227)", "0001 0800 06 04 0001  020000000001 0a000001  000000000000 0a000001", ARP{ARPRequest, macA, 0x0a000001, MAC{}, 0x0a000001}, OK},
		{"hardware type IEEE 802", "0006 0800 06 04 0001  020000000001 0a000001  000000000000 0a000002", ARP{}, ARPBad},
		{"protocol type IPv6", "0001 86dd 06 04 0001  020000000001 0a000001  000000000000 0a000002", ARP{}, ARPBad},
		{"hardware length 8", "0001 0800 08 04 0001  020000000001 0a000001  000000000000 0a000002 00000000", ARP{}, ARPBad},
		{"hardware length 255", "0001 0800 ff 04 0001  020000000001 0a000001  000000000000 0a000002", ARP{}, ARPBad},
		{"protocol length 0", "0001 0800 06 00 0001  020000000001 0a000001  000000000000 0a000002", ARP{}, ARPBad},
		{"operation 0", "0001 0800 06 04 0000  020000000001 0a000001  000000000000 0a000002", ARP{}, ARPBad},
		{"reverse request (RFC 903)", "0001 0800 06 04 0003  020000000001 0a000001  000000000000 0a000002", ARP{}, ARPBad},
		{"operation 0x0101", "0001 0800 06 04 0101  020000000001 0a000001  000000000000 0a000002", ARP{}, ARPBad},
		{"nothing", "", ARP{}, ARPShort},
	} {
		t.Run(c.name, func(t *testing.T) { checkParse(t, ParseARP, hx(c.bytes), c.want, c.fault) })
	}
	checkTruncated(t, ParseARP, hx(arpRequestBytes+"0000"), 28, ARPShort)
}

func TestPutARP(t *testing.T) {
	b := bytes.Repeat([]byte{0xee}, 30)
	n := PutARP(b, &ARP{ARPReply, macB, 0x0a000002, macA, 0x0a000001})
	if n != 28 || !bytes.Equal(b, hx("0001 0800 06 04 0002  020000000002 0a000002  020000000001 0a000001 eeee")) {
		t.Errorf("%d % x", n, b)
	}
}

func FuzzARP(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		a, fault := ParseARP(b)
		if fault != OK {
			if a != (ARP{}) || (fault == ARPShort) != (len(b) < 28) || fault != ARPShort && fault != ARPBad {
				t.Fatalf("%v %+v", fault, a)
			}
			return
		}
		out := make([]byte, 28)
		if PutARP(out, &a); !bytes.Equal(out, b[:28]) {
			t.Fatalf("   % x\nis % x", b[:28], out)
		}
	})
}
