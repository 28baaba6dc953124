package sockets

import (
	"strings"
	"testing"

	"xdpd/proto"
	"xdpd/umem"
)

// TestRoute: longest prefix, gateways, /31 and /32, sources, and what is no destination at all.
func TestRoute(t *testing.T) {
	k := newKit(t, func(c *Config) {
		c.Addrs = []Prefix{{usIP, 24}, {0x0a010001, 16}, {0xc6336400, 31}, {0xcb007101, 32}}
		c.Routes = []Route{
			{Dst: 0, Bits: 0, Gateway: gwIP},
			{Dst: 0xac100000, Bits: 12, Gateway: 0x0a010002},                  // 172.16/12
			{Dst: 0xac100500, Bits: 24, Gateway: 0x0a000003, Src: 0x0a010001}, // 172.16.5/24
			{Dst: 0xac100507, Bits: 32, Gateway: 0x0a000004},
			{Dst: 0xac200000, Bits: 16}, // 172.32/16 straight onto the link
		}
	})
	for _, c := range []struct {
		dst, hop, src proto.Addr
		ok            bool
	}{
		{peerIP, peerIP, usIP, true},
		{0x0a010203, 0x0a010203, 0x0a010001, true},
		{farIP, gwIP, usIP, true},
		{0xac110000, 0x0a010002, 0x0a010001, true},
		{0xac100501, 0x0a000003, 0x0a010001, true},
		{0xac100507, 0x0a000004, usIP, true},
		{0xac200001, 0xac200001, usIP, true},
		{0xc6336401, 0xc6336401, 0xc6336400, true}, // the other end of a /31 (RFC 3021)
		{0xcb007102, gwIP, usIP, true},             // beside a /32 there is no link
		{0x0a0000ff, 0, 0, false},                  // broadcast of a subnet
		{0x0a01ffff, 0, 0, false},
		{0xffffffff, 0, 0, false},
		{0xe0000001, 0, 0, false}, // multicast
		{0xf0000001, 0, 0, false}, // reserved
		{0x7f000001, 0, 0, false}, // loopback
		{0, 0, 0, false},
		{usIP, 0, 0, false},
		{0xcb007101, 0, 0, false},
	} {
		hop, src, ok := k.h.route(c.dst)
		if ok != c.ok || ok && (hop != c.hop || src != c.src) {
			t.Errorf("route(%v) = %v from %v, %v; want %v from %v, %v", c.dst, hop, src, ok, c.hop, c.src, c.ok)
		}
	}
}

// TestRouteNone: without a route a send says ENETUNREACH; what comes from there cannot be answered, and is counted.
func TestRouteNone(t *testing.T) {
	k := newKit(t, func(c *Config) { c.Routes = nil })
	s := udpTo(k, peerIP, false)
	for _, dst := range []proto.Addr{farIP, 0x0a0000ff, 0xffffffff, 0xe0000001, usIP, 0x7f000001} {
		if err := k.h.UDPSend(s, nil, port(dst, 7), k.now); err != ENETUNREACH {
			t.Errorf("UDPSend to %v = %v, want ENETUNREACH", dst, err)
		}
		if err := k.h.UDPConnect(s, dst, 7); err != ENETUNREACH {
			t.Errorf("UDPConnect to %v = %v, want ENETUNREACH", dst, err)
		}
	}
	echo := ipPacket{src: farIP, proto: 1, body: icmpBytes(8, 0, 1, []byte("x"))}
	k.wantDrops(func() { k.inject(echo.frame()) }, map[Drop]uint64{TxNoRoute: 1})
	k.none()
}

// TestSetAddrs: addresses and routes change under a running Host.
func TestSetAddrs(t *testing.T) {
	k := newKit(t)
	const newIP = usIP + 0x40
	k.h.SetAddrs([]Prefix{{newIP, 24}}, nil)
	k.wantDrops(func() { k.inject(icmpFrame(8, 0, 1, nil)) }, map[Drop]uint64{IPNotOurs: 1})
	k.inject(ipPacket{dst: newIP, proto: 1, body: icmpBytes(8, 0, 1, nil)}.frame())
	if s := k.one(); s.ip.src != newIP || s.icmp.typ != 0 {
		t.Errorf("answered %+v", s)
	}
	if _, _, ok := k.h.route(farIP); ok {
		t.Error("the old default route is still there")
	}
}

// TestNewRefuses: every error of New names the field that is wrong.
func TestNewRefuses(t *testing.T) {
	region, err := umem.Wrap(make([]byte, 64*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	pool := umem.NewPool(region, 0, 64, nil)
	good := Config{MAC: usMAC, MTU: 1500, Addrs: []Prefix{{usIP, 24}}}
	if _, err := New(good, pool, 0); err != nil {
		t.Fatalf("New of a good configuration: %v", err)
	}
	for _, c := range []struct {
		names string
		set   func(*Config)
	}{
		{"MTU 67", func(c *Config) { c.MTU = 67 }},
		{"MTU 1771", func(c *Config) { c.MTU = 2048 - 256 - 22 + 1 }},
		{"VLAN 0", func(c *Config) { c.VLANs = []uint16{0} }},
		{"VLAN 4095", func(c *Config) { c.VLANs = []uint16{1, 4095} }},
		{"3 VLAN tags", func(c *Config) { c.VLANs = []uint16{1, 2, 3} }},
		{"no address", func(c *Config) { c.Addrs = nil }},
		{"224.0.0.1/24", func(c *Config) { c.Addrs = []Prefix{{0xe0000001, 24}} }},
		{"10.0.0.1/33", func(c *Config) { c.Addrs = []Prefix{{usIP, 33}} }},
		{"10.0.0.1/-1", func(c *Config) { c.Addrs = []Prefix{{usIP, -1}} }},
		{"192.0.2.1/33", func(c *Config) { c.Routes = []Route{{Dst: farIP, Bits: 33}} }},
		{"192.0.2.1/-1", func(c *Config) { c.Routes = []Route{{Dst: farIP, Bits: -1}} }},
		{"-5", func(c *Config) { c.RcvBuf = -5 }},
		{"-6", func(c *Config) { c.SndBuf = -6 }},
		{"-7", func(c *Config) { c.Backlog = -7 }},
		{"-8", func(c *Config) { c.MaxConns = -8 }},
		{"-9", func(c *Config) { c.FillFrames = -9 }},
		{"4294967296", func(c *Config) { c.RcvMax = 1 << 32 }},
		{"60", func(c *Config) { c.FillFrames = 60 }},
	} {
		cfg := good
		c.set(&cfg)
		if _, err := New(cfg, pool, 0); err == nil || !strings.Contains(err.Error(), c.names) {
			t.Errorf("New = %v, want an error that names %q", err, c.names)
		}
	}
}
