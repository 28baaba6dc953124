package proto

import (
	"bytes"
	"slices"
	"testing"
)

var (
	macA = MAC{2, 0, 0, 0, 0, 1}
	macB = MAC{2, 0, 0, 0, 0, 2}
)

func TestParseEthernet(t *testing.T) {
	const addrs = "020000000002 020000000001 "
	for _, c := range []struct {
		name, bytes string
		want        Ethernet
		fault       Fault
	}{
		{"IPv4", addrs + "0800 45", Ethernet{macB, macA, EtherIPv4, 0, [2]uint16{}, 14}, OK},
		{"broadcast ARP", "ffffffffffff 020000000001 0806", Ethernet{Broadcast, macA, EtherARP, 0, [2]uint16{}, 14}, OK},
		{"VLAN 100, priority 5", addrs + "8100 a064 0800", Ethernet{macB, macA, EtherIPv4, 1, [2]uint16{0xa064}, 18}, OK},
		{"priority tag, drop eligible", addrs + "8100 f000 0806", Ethernet{macB, macA, EtherARP, 1, [2]uint16{0xf000}, 18}, OK},
		{"service tag alone", addrs + "88a8 0007 0800", Ethernet{macB, macA, EtherIPv4, 1, [2]uint16{7}, 18}, OK},
		{"Q-in-Q", addrs + "88a8 0064 8100 0065 0800", Ethernet{macB, macA, EtherIPv4, 2, [2]uint16{100, 101}, 22}, OK},
		{"8100 twice", addrs + "8100 0064 8100 0065 86dd", Ethernet{macB, macA, 0x86dd, 2, [2]uint16{100, 101}, 22}, OK},
		{"8100 around 88a8", addrs + "8100 0064 88a8 0065 0800", Ethernet{macB, macA, EtherIPv4, 2, [2]uint16{100, 101}, 22}, OK},
		{"smallest type", addrs + "0600", Ethernet{macB, macA, 0x600, 0, [2]uint16{}, 14}, OK},
		{"largest type", addrs + "ffff", Ethernet{macB, macA, 0xffff, 0, [2]uint16{}, 14}, OK},
		{"LLC of spanning tree", "0180c2000000 020000000001 0026 424203", Ethernet{}, EthLLC},
		{"no type and no length", addrs + "05ff", Ethernet{}, EthLLC},
		{"length 0", addrs + "0000", Ethernet{}, EthLLC},
		{"LLC in a VLAN", addrs + "8100 0064 0026 424203", Ethernet{}, EthLLC},
		{"three tags", addrs + "88a8 0064 8100 0065 8100 0066 0800", Ethernet{}, EthVLAN},
		{"tag without control information", addrs + "8100", Ethernet{}, EthVLAN},
		{"tag without type", addrs + "8100 0064 08", Ethernet{}, EthVLAN},
		{"second tag cut off", addrs + "88a8 0064 8100 0065", Ethernet{}, EthVLAN},
		{"no type", addrs + "08", Ethernet{}, EthShort},
		{"nothing", "", Ethernet{}, EthShort},
	} {
		t.Run(c.name, func(t *testing.T) { checkParse(t, ParseEthernet, hx(c.bytes), c.want, c.fault) })
	}
}

func TestEthernetTruncated(t *testing.T) {
	checkTruncated(t, ParseEthernet, hx("020000000002 020000000001 0800 4500"), 14, EthShort)
	checkTruncated(t, ParseEthernet, hx("020000000002 020000000001 88a8 0064 8100 0065 0800 4500"), 22, EthShort, EthVLAN)
}

func TestPutEthernet(t *testing.T) {
	for _, c := range []struct {
		tags []uint16
		want string
	}{
		{nil, "020000000002 020000000001 0800"},
		{[]uint16{0xa064}, "020000000002 020000000001 8100 a064 0800"},
		{[]uint16{100, 101}, "020000000002 020000000001 88a8 0064 8100 0065 0800"},
	} {
		b := bytes.Repeat([]byte{0xee}, 24)
		n := PutEthernetTagged(b, macB, macA, c.tags, EtherIPv4)
		if !bytes.Equal(b[:n], hx(c.want)) || n != 14+4*len(c.tags) || b[n] != 0xee {
			t.Errorf("%d tags: % x", len(c.tags), b)
		}
		e, f := ParseEthernet(b)
		if f != OK || e.Dst != macB || e.Src != macA || e.Type != EtherIPv4 || int(e.Len) != n || !slices.Equal(e.Tags[:e.NTags], c.tags) {
			t.Errorf("%d tags: %v %v", len(c.tags), f, e)
		}
		if c.tags == nil {
			again := make([]byte, 14)
			if PutEthernet(again, macB, macA, EtherIPv4) != 14 || !bytes.Equal(again, b[:14]) {
				t.Errorf("PutEthernet: % x", again)
			}
		}
	}
	mustPanic(t, "three tags", func() { PutEthernetTagged(make([]byte, 64), macB, macA, make([]uint16, 3), EtherIPv4) })
}

func FuzzEthernet(f *testing.F) {
	f.Fuzz(func(t *testing.T, b []byte) {
		e, fault := ParseEthernet(b)
		if fault != OK {
			if e != (Ethernet{}) || fault >= ARPShort {
				t.Fatalf("%v %+v", fault, e)
			}
			return
		}
		if int(e.Len) != 14+4*int(e.NTags) || int(e.Len) > len(b) || e.NTags > 2 || e.Type < 0x600 || e.Type == EtherCTag || e.Type == EtherSTag {
			t.Fatalf("accepted %+v", e)
		}
		out := make([]byte, 22)
		n := PutEthernetTagged(out, e.Dst, e.Src, e.Tags[:e.NTags], e.Type)
		if again, fault := ParseEthernet(out[:n]); fault != OK || again != e {
			t.Fatalf("%v\n   %+v\nis %+v", fault, e, again)
		}
	})
}
