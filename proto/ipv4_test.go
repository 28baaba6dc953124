package proto

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// Real ones, from Linux: an ICMP echo request of 44 bytes, without options and with record route.
const (
	ipPlainBytes = `45 00 002c 7ee4 4000 40 01 97d8 0a090801 0a090802
		0800 ac89 1234 0001 202122232425262728292a2b2c2d2e2f`
	ipOptionsBytes = `47 00 0034 7f15 4000 40 01 7c85 0a090801 0a090802 070708 0a090801 01
		0800 ac89 1234 0001 202122232425262728292a2b2c2d2e2f`
)

// ipHeader is a header from hex with its checksum, which is "0000" in the hex, made right by the naive sum, and padded
// to its total length, if that is longer, with zeros.
func ipHeader(s string) []byte {
	b := hx(s)
	fixIPChecksum(b)
	if total := int(binary.BigEndian.Uint16(b[2:])); total > len(b) {
		b = append(b, make([]byte, total-len(b))...)
	}
	return b
}

func fixIPChecksum(b []byte) {
	header := min(int(b[0]&15)*4, len(b))
	if header >= 20 {
		b[10], b[11] = 0, 0
		binary.BigEndian.PutUint16(b[10:], ^naiveSum(b[:header], 0))
	}
}

func TestParseIPv4(t *testing.T) {
	plain := IPv4{Src: 0x0a090801, Dst: 0x0a090802, ID: 0x7ee4, DF: true, TTL: 64, Proto: 1, HeaderLen: 20, TotalLen: 44}
	small := func(id, off uint16, df, mf bool, total uint16) IPv4 {
		return IPv4{0x0a000001, 0x0a000002, id, off, df, mf, 64, ProtoUDP, 0, 20, total}
	}
	const rest = "40 11 0000 0a000001 0a000002"
	for _, c := range []struct {
		name  string
		b     []byte
		want  IPv4
		fault Fault
	}{
		{"echo request", hx(ipPlainBytes), plain, OK},
		{"padded by Ethernet", append(hx(ipPlainBytes), make([]byte, 18)...), plain, OK},
		{"record route", hx(ipOptionsBytes), IPv4{0x0a090801, 0x0a090802, 0x7f15, 0, true, false, 64, 1, 0, 28, 52}, OK},
		{"no payload", ipHeader("45 00 0014 0001 0000" + rest), small(1, 0, false, false, 20), OK},
		{"first fragment", ipHeader("45 00 0024 0002 2000" + rest), small(2, 0, false, true, 36), OK},
		{"last fragment", ipHeader("45 00 0024 0002 00b9" + rest), small(2, 1480, false, false, 36), OK},
		{"last fragment ending at 65535", ipHeader("45 00 001b ffff 1fff" + rest), small(0xffff, 65528, false, false, 27), OK},
		{"reserved flag", ipHeader("45 00 0014 0001 c000" + rest), small(1, 0, true, false, 20), OK},
		{"all flags, congestion experienced", ipHeader("45 03 0014 0001 e001" + rest), IPv4{0x0a000001, 0x0a000002, 1, 8, true, true, 64, ProtoUDP, 3, 20, 20}, OK},
		{"TTL 0, protocol 255, odd addresses", ipHeader("45 ff 0014 0001 0000 00 ff 0000 00000000 ffffffff"), IPv4{Dst: 1<<32 - 1, ID: 1, Proto: 255, TOS: 255, HeaderLen: 20, TotalLen: 20}, OK},
		{"options of 40 bytes, all NOP", ipHeader("4f 00 003c 0001 0000" + rest + "01010101010101010101010101010101010101010101010101010101010101010101010101010101"), IPv4{0x0a000001, 0x0a000002, 1, 0, false, false, 64, ProtoUDP, 0, 60, 60}, OK},
		{"ones-complement minus zero as checksum", hx("45 00 0014 0000 0000 00 00 ffff 00000000 0000baeb"), IPv4{Dst: 0xbaeb, HeaderLen: 20, TotalLen: 20}, OK},

		{"version 6", ipHeader("65 00 0014 0001 0000" + rest), IPv4{}, IPVersion},
		{"version 0", ipHeader("05 00 0014 0001 0000" + rest), IPv4{}, IPVersion},
		{"header of 16 bytes", ipHeader("44 00 0014 0001 0000" + rest), IPv4{}, IPHeaderLen},
		{"header of 0 bytes", ipHeader("40 00 0014 0001 0000" + rest), IPv4{}, IPHeaderLen},
		{"header past the end", ipHeader("46 00 0014 0001 0000" + rest), IPv4{}, IPHeaderLen},
		{"total length below the header", ipHeader("45 00 0013 0001 0000" + rest), IPv4{}, IPTotalLen},
		{"total length 0, as of a super-packet", ipHeader("45 00 0000 0001 0000" + rest), IPv4{}, IPTotalLen},
		{"total length inside the options", ipHeader("46 00 0014 0001 0000" + rest + "01010101"), IPv4{}, IPTotalLen},
		{"total length past the end", ipHeader("45 00 0015 0001 0000" + rest)[:20], IPv4{}, IPTotalLen},
		{"ping of death", ipHeader("45 00 001c ffff 1fff" + rest), IPv4{}, IPTotalLen},
		{"ping of death, more to come", ipHeader("45 00 05dc ffff 3fff" + rest), IPv4{}, IPTotalLen},
		{"checksum one off", with(hx(ipPlainBytes), 11, 0xd9), IPv4{}, IPChecksum},
		{"a bit flipped in an address", with(hx(ipPlainBytes), 19, 0x03), IPv4{}, IPChecksum},
		{"checksum wrong in the options only", with(hx(ipOptionsBytes), 26, 0x02), IPv4{}, IPChecksum},
		{"checksum 0, not computed", with(with(hx(ipPlainBytes), 10, 0), 11, 0), IPv4{}, IPChecksum},
		{"option of length 0", ipHeader("46 00 0018 0001 0000" + rest + "07000000"), IPv4{}, IPOptions},
		{"option of length 1", ipHeader("46 00 0018 0001 0000" + rest + "01070101"), IPv4{}, IPOptions},
		{"option past the header", ipHeader("46 00 0020 0001 0000" + rest + "07050400"), IPv4{}, IPOptions},
		{"option without length", ipHeader("46 00 0018 0001 0000" + rest + "01010107"), IPv4{}, IPOptions},
		{"all zeros", make([]byte, 64), IPv4{}, IPVersion},
		{"all ones", bytes.Repeat([]byte{0xff}, 64), IPv4{}, IPVersion},
	} {
		t.Run(c.name, func(t *testing.T) { checkParse(t, ParseIPv4, c.b, c.want, c.fault) })
	}
}

func TestIPv4Truncated(t *testing.T) {
	checkTruncated(t, ParseIPv4, append(hx(ipPlainBytes), 0, 0), 44, IPShort, IPTotalLen)
	checkTruncated(t, ParseIPv4, append(hx(ipOptionsBytes), 0, 0), 52, IPShort, IPHeaderLen, IPTotalLen)
}

func TestIPv4Fragment(t *testing.T) {
	for _, c := range []struct {
		h    IPv4
		want bool
	}{
		{IPv4{}, false}, {IPv4{DF: true}, false}, {IPv4{MF: true}, true}, {IPv4{FragOff: 8}, true}, {IPv4{MF: true, FragOff: 8}, true},
	} {
		if c.h.Fragment() != c.want {
			t.Errorf("%+v: %v", c.h, c.h.Fragment())
		}
	}
}

func TestIPOptions(t *testing.T) {
	for _, c := range []struct {
		name, opts    string
		valid, routed bool
	}{
		{"none", "", true, false},
		{"end of list hides what follows", "00 83 01 ff", true, false},
		{"NOPs", "01010101", true, false},
		{"record route", "07070400000000 00", true, false},
		{"router alert", "94040000", true, false},
		{"loose source route", "83070401020304 00", true, true},
		{"strict source route, last", "01 01 01 01 01 890704 01020304", true, true},
		{"source route behind a timestamp", "440805000000000 1 830704 01020304 00", true, true},
		{"the type's number inside other data", "44 04 83 89", true, false},
		{"unknown of length 2", "de02 0101", true, false},
		{"length 0", "de000101", false, false},
		{"length 1", "de010101", false, false},
		{"length runs out by one", "de050101", false, false},
		{"length 255", "deff0101", false, false},
		{"no length", "010101de", false, false},
		{"source route without a length", "01010183", false, true},
		{"source route behind a malformed one", "de00 8307", false, false},
	} {
		opts := hx(c.opts)
		if ValidIPOptions(opts) != c.valid || SourceRouted(opts) != c.routed {
			t.Errorf("%s: valid %v, source routed %v", c.name, ValidIPOptions(opts), SourceRouted(opts))
		}
	}
}

func TestPutIPv4(t *testing.T) {
	for _, want := range []string{
		ipPlainBytes,
		// From Linux: a UDP datagram in two fragments, and a port unreachable with TOS.
		"4500 05dc b4ad 2000 4011 7c4f 0a090801 0a090802",
		"4500 02ec b4ad 00b9 4011 9e86 0a090801 0a090802",
		"45c0 003e a2c6 0000 4001 b324 0a090802 0a090801",
	} {
		b := hx(want)[:20]
		total := int(binary.BigEndian.Uint16(b[2:]))
		h, f := ParseIPv4(append(b, make([]byte, total-20)...))
		if f != OK {
			t.Fatal(f)
		}
		h.HeaderLen = 60 // must not matter
		out := bytes.Repeat([]byte{0xee}, 21)
		if n := PutIPv4(out, &h); n != 20 || !bytes.Equal(out[:20], b) || out[20] != 0xee {
			t.Errorf("% x\n % x", b, out)
		}
	}
}

// TestPeekFlow: only what has ports behind a header of 20 bytes is a flow's.
func TestPeekFlow(t *testing.T) {
	b := make([]byte, 24)
	PutIPv4(b, &IPv4{Src: 0x0a000002, Dst: 0x0a000001, Proto: ProtoTCP, TTL: 64, DF: true, TotalLen: 24})
	copy(b[20:], []byte{0x12, 0x34, 0, 80})
	want := Flow{Src: 0x0a000002, Dst: 0x0a000001, SrcPort: 0x1234, DstPort: 80, Proto: ProtoTCP}
	if f, ok := PeekFlow(b); !ok || f != want {
		t.Errorf("%+v, %v; want %+v", f, ok, want)
	}
	for name, change := range map[string]func(b []byte) []byte{
		"short":           func(b []byte) []byte { return b[:23] },
		"nothing":         func([]byte) []byte { return nil },
		"options":         func(b []byte) []byte { b[0]++; return b },
		"IPv6":            func(b []byte) []byte { b[0] = 0x65; return b },
		"ICMP":            func(b []byte) []byte { b[9] = ProtoICMP; return b },
		"first fragment":  func(b []byte) []byte { b[6] |= 0x20; return b },
		"second fragment": func(b []byte) []byte { b[7]++; return b },
	} {
		if f, ok := PeekFlow(change(bytes.Clone(b))); ok {
			t.Errorf("%s: %+v", name, f)
		}
	}
}

func FuzzIPv4(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		fuzzIPv4(t, b)
		if len(b) >= 20 { // few random checksums are right, so see behind that check
			b = bytes.Clone(b)
			fixIPChecksum(b)
			fuzzIPv4(t, b)
		}
	})
}

func fuzzIPv4(t *testing.T, b []byte) {
	h, fault := ParseIPv4(b)
	flow, ok := PeekFlow(b) // of whatever it is
	if fault != OK {
		if h != (IPv4{}) || fault < IPShort || fault > IPOptions {
			t.Fatalf("%v %+v", fault, h)
		}
		return
	}
	header, total := int(h.HeaderLen), int(h.TotalLen)
	if header < 20 || header > total || total > len(b) || int(h.FragOff)+total-header > 65535 || h.FragOff%8 != 0 {
		t.Fatalf("accepted %+v of %d bytes", h, len(b))
	}
	plain := header == 20 && !h.Fragment() && (h.Proto == ProtoUDP || h.Proto == ProtoTCP) && len(b) >= 24
	if ok != plain || ok && (flow.Src != h.Src || flow.Dst != h.Dst || flow.Proto != h.Proto) {
		t.Fatalf("%+v, %v of %+v", flow, ok, h)
	}
	if naiveSum(b[:header], 0) != 0xffff || !ValidIPOptions(b[20:header]) {
		t.Fatalf("accepted % x", b[:header])
	}
	SourceRouted(b[20:header])
	h.TotalLen -= uint16(header - 20)
	h.HeaderLen = 20
	out := make([]byte, h.TotalLen)
	PutIPv4(out, &h)
	if again, fault := ParseIPv4(out); fault != OK || again != h {
		t.Fatalf("%v\n   %+v\nis %+v", fault, h, again)
	}
}
