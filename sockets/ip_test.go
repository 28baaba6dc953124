package sockets

import (
	"bytes"
	"testing"

	"xdpd/proto"
)

// TestIPAddresses: RFC 1122 3.2.1.3 and RFC 1812 5.3.7: which sources and destinations are never answered or delivered.
func TestIPAddresses(t *testing.T) {
	for _, c := range []struct {
		src, dst proto.Addr
		why      Drop // 0: delivered
	}{
		{peerIP, usIP, 0},
		{farIP, usIP, 0},
		{0x0a0000ff, usIP, IPMartianSource}, // our subnet's broadcast
		{0xffffffff, usIP, IPMartianSource},
		{0xe0000001, usIP, IPMartianSource},
		{0xf0000001, usIP, IPMartianSource},
		{0x7f000001, usIP, IPMartianSource},
		{0x00000001, usIP, IPMartianSource},
		{usIP, usIP, IPMartianSource},
		{peerIP, 0x7f000001, IPMartianDest},
		{peerIP, 0x00000007, IPMartianDest},
		{peerIP, gwIP, IPNotOurs},
		{peerIP, farIP, IPNotOurs},
		{peerIP, 0x0a0000ff, IPNotOurs},
		{peerIP, 0xffffffff, IPNotOurs},
		{peerIP, 0xe0000001, IPNotOurs},
		{peerIP, 0xf0000001, IPNotOurs},
	} {
		k := newKit(t)
		s, _ := k.h.UDPBind(0, 7)
		body := udpBytes(c.src, c.dst, 1000, 7, []byte("x"))
		frame := ipPacket{proto: 17, body: body}
		frame.src, frame.dst = c.src, c.dst
		want := map[Drop]uint64{c.why: 1}
		if c.why == 0 {
			want = nil
		}
		k.wantDrops(func() { k.inject(frame.frame()) }, want)
		if _, err := k.h.UDPRecv(s, nil); (err == 0) != (c.why == 0) {
			t.Errorf("%v to %v: UDPRecv = %v", c.src, c.dst, err)
		}
		k.none()
	}
}

// TestIPHeader: what a header may be without harm, and what not.
func TestIPHeader(t *testing.T) {
	body := udpBytes(peerIP, usIP, 1000, 7, []byte("payload"))
	good := ipPacket{proto: 17, body: body}
	for name, c := range map[string]struct {
		frame []byte
		why   Drop
	}{
		"plain":               {good.frame(), 0},
		"don't fragment":      {ipPacket{proto: 17, df: true, body: body}.frame(), 0},
		"TTL 1":               {ipPacket{proto: 17, ttl: 1, body: body}.frame(), 0},
		"TTL 0":               {resummed(good.frame(), 22, 0), 0}, // RFC 1122 3.2.1.7: not for that
		"padded":              {append(good.frame(), 1, 2, 3, 4, 5, 6, 7), 0},
		"record route":        {ipPacket{proto: 17, opts: []byte{7, 7, 4, 0, 0, 0, 0, 0}, body: body}.frame(), 0},
		"40 bytes of NOP":     {ipPacket{proto: 17, opts: bytes.Repeat([]byte{1}, 40), body: body}.frame(), 0},
		"strict route":        {ipPacket{proto: 17, opts: []byte{1, 137, 7, 4, 1, 2, 3, 4}, body: body}.frame(), IPSourceRoute},
		"option runs out":     {ipPacket{proto: 17, opts: []byte{7, 5, 4, 0}, body: body}.frame(), Drop(proto.IPOptions)},
		"header beyond frame": {resummed(good.frame(), 14, 0x4f), Drop(proto.IPHeaderLen)},
		"total below header":  {resummed(good.frame(), 16, 0, 19), Drop(proto.IPTotalLen)},
		"total beyond frame":  {resummed(good.frame(), 16, 0, 200), Drop(proto.IPTotalLen)},
		"version 6":           {resummed(good.frame(), 14, 0x65), Drop(proto.IPVersion)},
		"checksum":            {mangled(good.frame(), 14+8, 77), Drop(proto.IPChecksum)},
		"reserved flag":       {resummed(good.frame(), 20, 0x80, 0), 0}, // RFC 3514 in earnest: ignored
		"link multicast":      {ethFrame(proto.MAC{1, 0, 0x5e, 0, 0, 1}, peerMAC, 0x0800, good.bytes()), IPLinkBroadcast},
		"link broadcast":      {ethFrame(proto.Broadcast, peerMAC, 0x0800, good.bytes()), IPLinkBroadcast},
		"empty":               {ethFrame(usMAC, peerMAC, 0x0800, nil), Drop(proto.IPShort)},
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			s, _ := k.h.UDPBind(0, 7)
			want := map[Drop]uint64{c.why: 1}
			if c.why == 0 {
				want = nil
			}
			k.wantDrops(func() { k.inject(c.frame) }, want)
			buf := make([]byte, 100)
			d, err := k.h.UDPRecv(s, buf)
			if (err == 0) != (c.why == 0) || err == 0 && string(buf[:d.N]) != "payload" {
				t.Errorf("UDPRecv = %q, %v", buf[:d.N], err)
			}
			k.none()
		})
	}
}

// TestIPProtocol: an unknown transport is answered with "protocol unreachable", which quotes the packet.
func TestIPProtocol(t *testing.T) {
	k := newKit(t)
	p := ipPacket{id: 7, proto: 132, body: []byte("0123456789")}
	k.wantDrops(func() { k.inject(append(p.frame(), "padding"...)) }, map[Drop]uint64{IPProtocol: 1})
	s := k.one()
	if s.icmp.typ != 3 || s.icmp.code != 2 || s.icmp.rest != 0 || !bytes.Equal(s.data, p.bytes()) || s.ip.dst != peerIP {
		t.Errorf("answer %+v", s)
	}
}

// TestIPCounters: what comes in is counted by kind and size.
func TestIPCounters(t *testing.T) {
	k := newKit(t)
	k.h.UDPBind(0, 7)
	frames := [][]byte{udpFrame(1, 7, []byte("x")), icmpFrame(8, 0, 1, nil), tcpSeg{flags: rst}.frame(),
		arpRequest(peerMAC, peerIP, usIP), ipPacket{mf: true, proto: 17, body: make([]byte, 8)}.frame()}
	before, n := k.h.counters, 0
	for _, f := range frames {
		k.inject(f)
		n += len(f)
	}
	k.one()
	c := k.h.Counters()
	for s, want := range map[Stat]int{RxFrames: 5, RxBytes: n, RxUDP: 1, RxICMP: 1, RxTCP: 1, RxARP: 1, RxFragments: 1,
		RxDelivered: 1, TxICMP: 1, TxFrames: 1, TxBytes: len(frames[1])} {
		if got := int(c.Stats[s] - before.Stats[s]); got != want {
			t.Errorf("%v is %d, want %d", s, got, want)
		}
	}
}
