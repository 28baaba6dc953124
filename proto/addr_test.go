package proto

import (
	"net/netip"
	"testing"
)

func TestAddrClasses(t *testing.T) {
	type class struct{ unspecified, zeroNet, loopback, multicast, reserved, broadcast bool }
	for s, want := range map[string]class{
		"0.0.0.0":         {unspecified: true, zeroNet: true},
		"0.0.0.1":         {zeroNet: true},
		"0.255.255.255":   {zeroNet: true},
		"1.0.0.0":         {},
		"10.0.0.1":        {},
		"126.255.255.255": {},
		"127.0.0.0":       {loopback: true},
		"127.255.255.255": {loopback: true},
		"128.0.0.0":       {},
		"223.255.255.255": {},
		"224.0.0.0":       {multicast: true},
		"239.255.255.255": {multicast: true},
		"240.0.0.0":       {reserved: true},
		"255.255.255.254": {reserved: true},
		"255.255.255.255": {broadcast: true},
	} {
		a, ok := AddrFrom(netip.MustParseAddr(s))
		got := class{a.IsUnspecified(), a.IsZeroNet(), a.IsLoopback(), a.IsMulticast(), a.IsReserved(), a.IsBroadcast()}
		if !ok || got != want {
			t.Errorf("%s: %+v, want %+v", s, got, want)
		}
		if a.String() != s || a.Netip() != netip.MustParseAddr(s) {
			t.Errorf("%s comes back as %v, %v", s, a, a.Netip())
		}
	}
}

func TestAddrFrom(t *testing.T) {
	if a, ok := AddrFrom(netip.MustParseAddr("::ffff:192.0.2.7")); !ok || a != 0xc0000207 {
		t.Errorf("mapped: %v %v", a, ok)
	}
	for _, ip := range []netip.Addr{{}, netip.IPv6Unspecified(), netip.MustParseAddr("2001:db8::1")} {
		if a, ok := AddrFrom(ip); ok || a != 0 {
			t.Errorf("%v: %v %v", ip, a, ok)
		}
	}
}

func TestAddrBytes(t *testing.T) {
	b := []byte{9, 9, 9, 9, 9}
	PutAddr(b, 0x0a000001)
	if [5]byte(b) != [5]byte{10, 0, 0, 1, 9} {
		t.Errorf("% x", b)
	}
	if a := GetAddr(b); a != 0x0a000001 || a.String() != "10.0.0.1" {
		t.Errorf("%v", a)
	}
}

func TestMAC(t *testing.T) {
	for _, c := range []struct {
		m                          MAC
		s                          string
		multicast, broadcast, zero bool
	}{
		{MAC{}, "00:00:00:00:00:00", false, false, true},
		{MAC{2, 0, 0, 0, 0, 1}, "02:00:00:00:00:01", false, false, false},
		{MAC{1, 0, 0x5e, 0, 0, 0xfb}, "01:00:5e:00:00:fb", true, false, false},
		{Broadcast, "ff:ff:ff:ff:ff:ff", true, true, false},
		{MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xfe}, "ff:ff:ff:ff:ff:fe", true, false, false},
	} {
		if c.m.String() != c.s || c.m.IsMulticast() != c.multicast || c.m.IsBroadcast() != c.broadcast || c.m.IsZero() != c.zero {
			t.Errorf("%v: multicast %v, broadcast %v, zero %v", c.m, c.m.IsMulticast(), c.m.IsBroadcast(), c.m.IsZero())
		}
	}
}
