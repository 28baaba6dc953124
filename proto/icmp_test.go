package proto

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// From Linux.
const (
	icmpEchoBytes  = "0800 ac89 12340001 202122232425262728292a2b2c2d2e2f"
	icmpReplyBytes = "0000 b489 12340001 202122232425262728292a2b2c2d2e2f"
	icmpPortBytes  = "0303 2131 00000000 45000022f96d400040111d490a0908010a090802 baa914e9000ed3e6 636c6f736564"
)

func TestParseICMP(t *testing.T) {
	for _, c := range []struct {
		name  string
		b     []byte
		want  ICMP
		fault Fault
	}{
		{"echo request", hx(icmpEchoBytes), ICMP{ICMPEcho, 0, 0xac89, 0x12340001}, OK},
		{"echo reply", hx(icmpReplyBytes), ICMP{ICMPEchoReply, 0, 0xb489, 0x12340001}, OK},
		{"port unreachable", hx(icmpPortBytes), ICMP{ICMPUnreachable, UnreachPort, 0x2131, 0}, OK},
		{"fragmentation needed, MTU 1400", hx("0304 f783 0000 0578"), ICMP{ICMPUnreachable, UnreachFragNeeded, 0xf783, 1400}, OK},
		{"odd length", hx("0800 95ff 00000000 62"), ICMP{ICMPEcho, 0, 0x95ff, 0}, OK},
		{"unknown type", hx("ff00 00ff 00000000"), ICMP{255, 0, 0x00ff, 0}, OK},
		{"minus zero as checksum", hx("ffff ffff 00000000"), ICMP{255, 255, 0xffff, 0}, OK},
		{"checksum one off", with(hx(icmpEchoBytes), 3, 0x8a), ICMP{}, ICMPChecksum},
		{"last byte changed", with(hx(icmpEchoBytes), 23, 0x2e), ICMP{}, ICMPChecksum},
		{"all zeros", make([]byte, 8), ICMP{}, ICMPChecksum},
		{"seven bytes", hx("0800 f7ff 000000"), ICMP{}, ICMPShort},
	} {
		t.Run(c.name, func(t *testing.T) { checkParse(t, ParseICMP, c.b, c.want, c.fault) })
	}
	b := hx(icmpEchoBytes)
	checkTruncated(t, ParseICMP, b, len(b), ICMPShort, ICMPChecksum)
}

func TestPutICMP(t *testing.T) {
	for _, want := range []string{icmpEchoBytes, icmpReplyBytes, icmpPortBytes} {
		b := hx(want)
		out := bytes.Repeat([]byte{0xee}, len(b))
		n := PutICMP(out, b[0], b[1], binary.BigEndian.Uint32(b[4:]))
		if n != 8 || out[2] != 0 || out[3] != 0 || len(b) > 8 && out[8] != 0xee {
			t.Errorf("%d % x", n, out)
		}
		copy(out[n:], b[n:])
		out[2] = 0x55 // what was in the field must not count
		if SetICMPChecksum(out); !bytes.Equal(out, b) {
			t.Errorf("% x\n % x", b, out)
		}
	}
}

func FuzzICMP(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzICMP(t, b)
		if len(b) >= 8 {
			b = bytes.Clone(b)
			b[2], b[3] = 0, 0
			binary.BigEndian.PutUint16(b[2:], ^naiveSum(b, 0))
			if _, fault := ParseICMP(b); fault != OK {
				t.Fatalf("%v in spite of a right checksum", fault)
			}
			fuzzICMP(t, b)
		}
	})
}

func fuzzICMP(t *testing.T, b []byte) {
	h, fault := ParseICMP(b)
	if fault != OK {
		if h != (ICMP{}) || (fault == ICMPShort) != (len(b) < 8) || fault != ICMPShort && fault != ICMPChecksum {
			t.Fatalf("%v %+v", fault, h)
		}
		return
	}
	if naiveSum(b, 0) != 0xffff {
		t.Fatalf("accepted % x", b)
	}
	out := bytes.Clone(b)
	PutICMP(out, h.Type, h.Code, h.Rest)
	SetICMPChecksum(out)
	again, fault := ParseICMP(out)
	if h.Checksum == 0xffff {
		h.Checksum = again.Checksum // 0xffff and 0 are the same sum, and 0xffff is not what we send
	}
	if fault != OK || again != h {
		t.Fatalf("%v\n   %+v\nis %+v", fault, h, again)
	}
}
