package proto

import (
	"bytes"
	"testing"
)

func TestParseTCPOptions(t *testing.T) {
	for _, c := range []struct {
		name, bytes string
		want        TCPOptions
	}{
		{"none", "", TCPOptions{}},
		{"SYN of Linux", "020405b4 0402080a 2780a1b7 00000000 0103030a", TCPOptions{MSS: 1460, WScale: 10, HasWScale: true, SACKPermitted: true, HasTS: true, TSVal: 0x2780a1b7}},
		{"SYN of Windows", "020405b4 01030308 01010402", TCPOptions{MSS: 1460, WScale: 8, HasWScale: true, SACKPermitted: true}},
		{"SYN of macOS", "020405b4 01030306 0101080a 12345678 00000000 04020000", TCPOptions{MSS: 1460, WScale: 6, HasWScale: true, SACKPermitted: true, HasTS: true, TSVal: 0x12345678}},
		{"two SACK blocks, of Linux", "0101080a 9db2c909 2780a1b8 01010512 f24746da f247470c f2474612 f2474644",
			TCPOptions{HasTS: true, TSVal: 0x9db2c909, TSEcr: 0x2780a1b8, NSACK: 2, SACK: [4][2]uint32{{0xf24746da, 0xf247470c}, {0xf2474612, 0xf2474644}}}},
		{"four SACK blocks", "0101 0522 00000001 00000002 00000003 00000004 00000005 00000006 00000007 00000008",
			TCPOptions{NSACK: 4, SACK: [4][2]uint32{{1, 2}, {3, 4}, {5, 6}, {7, 8}}}},
		{"not aligned", "080a 00000001 00000002 020405b4 01 0402 030307", TCPOptions{MSS: 1460, WScale: 7, HasWScale: true, SACKPermitted: true, HasTS: true, TSVal: 1, TSEcr: 2}},
		{"end of list hides what follows", "020405b4 00 030307", TCPOptions{MSS: 1460}},
		{"unknown kinds", "fe04dead 13120000000000000000000000000000000 0 020405b4 2202 ff02", TCPOptions{MSS: 1460}},
		{"scale 0", "01030300", TCPOptions{HasWScale: true}},
		{"scale 14", "0103030e", TCPOptions{HasWScale: true, WScale: 14}},
		{"scale 15", "0103030f", TCPOptions{HasWScale: true, WScale: 14}},
		{"scale 255", "010303ff", TCPOptions{HasWScale: true, WScale: 14}},
		{"MSS 0", "02040000 0402", TCPOptions{SACKPermitted: true}},
		{"MSS 1", "02040001", TCPOptions{MSS: 1}},
		{"MSS twice", "020405b4 02040218", TCPOptions{MSS: 536}},
		{"MSS, then MSS 0", "020405b4 02040000", TCPOptions{MSS: 1460}},
		{"MSS of wrong length", "020305 0206000005b4 0402", TCPOptions{SACKPermitted: true}},
		{"scale of wrong length", "0302 03040707 0402", TCPOptions{SACKPermitted: true}},
		{"SACK permitted of wrong length", "040300 020405b4", TCPOptions{MSS: 1460}},
		{"timestamps of wrong length", "0806 00000001 080b 0000000100000002 00 0402", TCPOptions{SACKPermitted: true}},
		{"SACK twice, the first longer", "0512 00000001 00000002 00000003 00000004 050a 00000005 00000006", TCPOptions{NSACK: 1, SACK: [4][2]uint32{{5, 6}}}},
		{"SACK, then one without a block", "050a 00000001 00000002 0502", TCPOptions{NSACK: 1, SACK: [4][2]uint32{{1, 2}}}},
		{"SACK without a block", "0502 0402", TCPOptions{SACKPermitted: true}},
		{"SACK of seven bytes", "0509 00000000000000 0402", TCPOptions{SACKPermitted: true}},
		{"SACK of nine bytes", "050b 000000000000000000 0402", TCPOptions{SACKPermitted: true}},
		{"SACK of five blocks", "052a 0000000000000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000 0402", TCPOptions{SACKPermitted: true}},
		{"length 0", "020405b4 0300 0402", TCPOptions{MSS: 1460}},
		{"length 1", "020405b4 0301 0402", TCPOptions{MSS: 1460}},
		{"length runs out by one", "020405b4 080a 00000001 000000", TCPOptions{MSS: 1460}},
		{"length 255", "020405b4 feff 0402", TCPOptions{MSS: 1460}},
		{"no length", "020405b4 08", TCPOptions{MSS: 1460}},
		{"all ones", "ffffffffffffffff", TCPOptions{}},
	} {
		o := TCPOptions{9, 9, true, true, true, 9, 9, 9, [4][2]uint32{{9}}} // of the segment before: must be gone
		if ParseTCPOptions(hx(c.bytes), &o); o != c.want {
			t.Errorf("%s:\n got %+v\nwant %+v", c.name, o, c.want)
		}
	}
}

// Cut anywhere, what was whole before the cut counts and nothing else does.
func TestTCPOptionsTruncated(t *testing.T) {
	b := hx("020405b4 0402 080a 00000001 00000002 01 03030a 0512 00000003 00000004 00000005 00000006")
	for n := 0; n <= len(b); n++ {
		var got, want TCPOptions
		ParseTCPOptions(b[:n:n], &got)
		if n >= 4 {
			want.MSS = 1460
		}
		want.SACKPermitted = n >= 6
		if n >= 16 {
			want.HasTS, want.TSVal, want.TSEcr = true, 1, 2
		}
		if n >= 20 {
			want.HasWScale, want.WScale = true, 10
		}
		if n >= 38 {
			want.NSACK, want.SACK = 2, [4][2]uint32{{3, 4}, {5, 6}}
		}
		if got != want {
			t.Errorf("%d bytes:\n got %+v\nwant %+v", n, got, want)
		}
	}
}

func TestPutTCPOptions(t *testing.T) {
	blocks := [4][2]uint32{{1, 2}, {3, 4}, {5, 6}, {7, 8}}
	for _, c := range []struct {
		name string
		o    TCPOptions
		want string
	}{
		{"none", TCPOptions{}, ""},
		{"SYN", TCPOptions{MSS: 1460, WScale: 10, HasWScale: true, SACKPermitted: true, HasTS: true, TSVal: 0x2780a1b7}, "020405b4 0402080a 2780a1b7 00000000 0103030a"},
		{"SYN, no timestamps", TCPOptions{MSS: 1460, WScale: 7, HasWScale: true, SACKPermitted: true}, "020405b4 01010402 01030307"},
		{"SYN, no SACK", TCPOptions{MSS: 1460, WScale: 7, HasWScale: true, HasTS: true, TSVal: 1, TSEcr: 2}, "020405b4 0101080a 00000001 00000002 01030307"},
		{"SYN, MSS alone", TCPOptions{MSS: 536}, "02040218"},
		{"scale 0", TCPOptions{HasWScale: true}, "01030300"},
		{"values without their flags", TCPOptions{WScale: 7, TSVal: 1, TSEcr: 2, SACK: blocks}, ""},
		{"established", TCPOptions{HasTS: true, TSVal: 1, TSEcr: 2}, "0101080a 00000001 00000002"},
		{"SACK of Linux", TCPOptions{HasTS: true, TSVal: 0x9db2c909, TSEcr: 0x2780a1b8, NSACK: 2, SACK: [4][2]uint32{{0xf24746da, 0xf247470c}, {0xf2474612, 0xf2474644}}},
			"0101080a 9db2c909 2780a1b8 01010512 f24746da f247470c f2474612 f2474644"},
		{"four blocks", TCPOptions{NSACK: 4, SACK: blocks}, "01010522 00000001 00000002 00000003 00000004 00000005 00000006 00000007 00000008"},
		{"four blocks beside timestamps", TCPOptions{HasTS: true, NSACK: 4, SACK: blocks}, "0101080a 00000000 00000000 0101051a 00000001 00000002 00000003 00000004 00000005 00000006"},
		{"everything", TCPOptions{MSS: 1, HasWScale: true, SACKPermitted: true, HasTS: true, NSACK: 255, SACK: blocks},
			"02040001 0402080a 00000000 00000000 01030300 01010512 00000001 00000002 00000003 00000004"},
	} {
		out := bytes.Repeat([]byte{0xee}, 41)
		n := PutTCPOptions(out, &c.o)
		if !bytes.Equal(out[:n], hx(c.want)) || n != c.o.Len() || out[n] != 0xee {
			t.Errorf("%s: %d (Len %d)\n got % x\nwant % x", c.name, n, c.o.Len(), out[:n], hx(c.want))
		}
	}
}

func FuzzTCPOptions(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		var o, again TCPOptions
		ParseTCPOptions(b, &o)
		if o.WScale > 14 || o.NSACK > 4 || !o.HasWScale && o.WScale != 0 || !o.HasTS && (o.TSVal != 0 || o.TSEcr != 0) {
			t.Fatalf("%+v", o)
		}
		for _, block := range o.SACK[o.NSACK:] {
			if block != [2]uint32{} {
				t.Fatalf("a block past the last: %+v", o)
			}
		}
		out := make([]byte, 40)
		n := PutTCPOptions(out, &o)
		if n%4 != 0 || n > 40 || n != o.Len() {
			t.Fatalf("%d bytes, Len %d", n, o.Len())
		}
		ParseTCPOptions(out[:n], &again)
		if again.NSACK < o.NSACK && n+8 > 40 {
			o.NSACK = again.NSACK // no room for all
		}
		clear(o.SACK[o.NSACK:])
		if again != o {
			t.Fatalf("\n   %+v\nis %+v\n   % x", o, again, out[:n])
		}
	})
}
