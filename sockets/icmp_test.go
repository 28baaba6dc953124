package sockets

import (
	"bytes"
	"testing"

	"xdpd/proto"
)

// joined puts the fragments of one packet together, after checking that each fits the MTU.
func joined(t *testing.T, k *kit, parts []seen) seen {
	t.Helper()
	whole := parts[0]
	whole.ip.body, whole.ip.mf = nil, false
	for i, p := range parts {
		if len(p.ip.body)+20 > k.h.cfg.MTU || p.ip.off != len(whole.ip.body) || p.ip.mf != (i < len(parts)-1) ||
			p.ip.id != whole.ip.id || p.ip.dst != whole.ip.dst || p.ip.proto != whole.ip.proto {
			t.Fatalf("fragment %d of %d: offset %d, more %v, %d bytes, id %d", i, len(parts), p.ip.off, p.ip.mf, len(p.ip.body), p.ip.id)
		}
		whole.ip.body = append(whole.ip.body, p.ip.body...)
	}
	whole.dissectL4(t)
	return whole
}

func TestEcho(t *testing.T) {
	for _, mtu := range []int{68, 576, 1500} {
		for _, size := range []int{0, 1, 2, 39, 40, 41, 548, 549, 1471, 1472, 1473, 2953, 10001, 65507} {
			k := newKitOf(t, 8192, 2048, func(c *Config) { c.MTU, c.KernelNeighbours = mtu, true })
			k.h.SetNeighbour(peerIP, peerMAC, true, k.now)
			k.late = size%2 == 0
			data := pattern(size)
			p := ipPacket{id: 77, proto: 1, body: icmpBytes(8, 0, 0x1234_0005, data)}
			k.wantDrops(func() { k.inject(p.fragments(1480)...) }, nil)
			got := k.seen()
			if len(got) == 0 {
				t.Fatalf("no answer to a ping of %d bytes", size)
			}
			s := joined(t, k, got)
			if s.icmp.typ != 0 || s.icmp.code != 0 || s.icmp.rest != 0x1234_0005 || !bytes.Equal(s.data, data) ||
				s.ip.src != usIP || s.ip.dst != peerIP || s.ip.ttl != 64 || s.dst != peerMAC || s.src != usMAC {
				t.Fatalf("ping of %d bytes: answer %v to %v type %d, %d bytes", size, s.ip.src, s.ip.dst, s.icmp.typ, len(s.data))
			}
		}
	}
}

// TestEchoWithOptions: the answer to a ping with options in its IP header carries none.
func TestEchoWithOptions(t *testing.T) {
	k := newKit(t)
	k.inject(ipPacket{proto: 1, opts: bytes.Repeat([]byte{1}, 40), body: icmpBytes(8, 0, 5, []byte("data"))}.frame())
	if s := k.one(); s.icmp.typ != 0 || string(s.data) != "data" {
		t.Errorf("answer %+v", s)
	}
}

// TestEchoOfZeros: the answer to a ping without id, number and data but zeros is zeros altogether; their checksum is 0xffff,
// and with 0 no receiver takes it.
func TestEchoOfZeros(t *testing.T) {
	for _, size := range []int{0, 1, 56, 3000} {
		k := newKit(t)
		k.inject(ipPacket{proto: 1, body: icmpBytes(8, 0, 0, make([]byte, size))}.fragments(1480)...)
		if body := joined(t, k, k.seen()).ip.body; body[2] != 0xff || body[3] != 0xff {
			t.Errorf("%d zeros: checksum % x", size, body[2:4])
		}
	}
}

// TestEchoNoFrames: a ping that must be answered in fragments for which there are no frames is dropped, in whatever
// place the frames run out, the ARP request for its sender included.
func TestEchoNoFrames(t *testing.T) {
	for left := range 12 {
		k := arpKit(t)
		s := udpTo(k, gwIP, false)
		k.h.SetNeighbour(gwIP, gwMAC, true, k.now)
		k.late = true
		for k.h.txLimit-k.h.txUsed > left {
			k.sendTo(s, gwIP, "x")
		}
		k.sent()
		k.inject(ipPacket{proto: 1, body: icmpBytes(8, 0, 1, pattern(10_000))}.fragments(1480)...)
		k.sent()
		if k.h.txUsed > k.h.txLimit {
			t.Errorf("%d frames left: %d of %d used", left, k.h.txUsed, k.h.txLimit)
		}
	}
}

func TestICMPChecksum(t *testing.T) {
	for _, size := range []int{0, 9, 3000} {
		k := newKit(t)
		p := ipPacket{id: 1, proto: 1, body: icmpBytes(8, 0, 1, pattern(size))}
		p.body[len(p.body)-1] ^= 0x10
		k.wantDrops(func() { k.inject(p.fragments(1480)...) }, map[Drop]uint64{Drop(proto.ICMPChecksum): 1})
		k.none()
	}
}

// TestICMPRatePerPeer: six errors at once to one peer, then one a second.
func TestICMPRatePerPeer(t *testing.T) {
	k := newKit(t)
	errors := func(n int) int {
		for range n {
			k.inject(udpFrame(1, 9, nil))
		}
		return len(k.seen())
	}
	if n := errors(20); n != 6 {
		t.Errorf("%d errors at once, want 6", n)
	}
	k.sleep(990 * ms)
	if n := errors(5); n != 0 {
		t.Errorf("%d errors within the first second, want none", n)
	}
	k.sleep(20 * ms)
	if n := errors(5); n != 1 {
		t.Errorf("%d errors after a second, want 1", n)
	}
	k.sleep(3600 * second)
	if n := errors(20); n != 6 {
		t.Errorf("%d errors after an hour, want 6", n)
	}
}

// TestICMPRateGlobal: fifty at once to everybody together, then a thousand a second.
func TestICMPRateGlobal(t *testing.T) {
	k := newKit(t)
	from := farIP
	errors := func(n int) int {
		for range n {
			from += 7
			k.inject(ipPacket{src: from, proto: 17, body: udpBytes(from, usIP, 1, 9, nil)}.frame())
		}
		return len(k.seen())
	}
	k.wantDrops(func() {
		if n := errors(150); n != 50 {
			t.Errorf("%d errors at once, want 50", n)
		}
	}, map[Drop]uint64{UDPNoSocket: 150, ICMPRateLimit: 100})
	k.sleep(10 * ms)
	if n := errors(50); n != 10 {
		t.Errorf("%d errors after 10 ms, want 10", n)
	}
	k.sleep(3600 * second)
	if n := errors(150); n < 47 || n > 50 {
		t.Errorf("%d errors after an hour, want 47 to 50", n)
	}
}

// TestICMPNever: RFC 1122 3.2.2: about what no error is sent, whatever else is wrong with it.
func TestICMPNever(t *testing.T) {
	datagram := udpBytes(peerIP, usIP, 1, 9, pattern(40))
	for name, frame := range map[string][]byte{
		"an ICMP error":           icmpFrame(3, 1, 0, ipPacket{proto: 17, body: datagram}.bytes()),
		"a link broadcast":        ethFrame(proto.Broadcast, peerMAC, 0x0800, ipPacket{proto: 17, body: datagram}.bytes()),
		"an IP broadcast":         ipPacket{dst: 0x0a0000ff, proto: 17, body: datagram}.frame(),
		"a multicast":             ipPacket{dst: 0xe0000001, proto: 17, body: datagram}.frame(),
		"a source that is none":   ipPacket{src: 0x0a0000ff, proto: 17, body: datagram}.frame(),
		"a later fragment":        ipPacket{off: 8, proto: 132, body: datagram}.frame(),
		"a bad checksum":          mangled(udpFrame(1, 9, []byte("x")), 42, 'y'),
		"an unknown ICMP type":    icmpFrame(42, 0, 0, nil),
		"a timestamp request":     icmpFrame(13, 0, 0, make([]byte, 12)),
		"an echo reply":           icmpFrame(0, 0, 0, nil),
		"a broadcast ping":        ipPacket{dst: 0xffffffff, proto: 1, body: icmpBytes(8, 0, 1, nil)}.frame(),
		"a redirect":              icmpFrame(5, 1, uint32(gwIP), ipPacket{proto: 17, body: datagram}.bytes()),
		"an unreachable, no data": icmpFrame(3, 3, 0, nil),
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			k.inject(frame)
			k.sleep(31 * second)
			k.none()
		})
	}
}

// quoting is an ICMP error about a datagram of ours.
func quoting(typ, code uint8, p ipPacket) ipPacket {
	return ipPacket{proto: 1, body: icmpBytes(typ, code, 0, p.bytes())}
}

// TestICMPErrors: an error reaches the connected socket that sent the quoted datagram as the errno of Linux's
// icmp_err_convert, once.
func TestICMPErrors(t *testing.T) {
	for _, c := range []struct {
		typ, code uint8
		want      Errno
	}{
		{3, 0, ENETUNREACH}, {3, 1, EHOSTUNREACH}, {3, 2, ENOPROTOOPT}, {3, 3, ECONNREFUSED}, {3, 4, EMSGSIZE},
		{3, 6, ENETUNREACH}, {3, 9, ENETUNREACH}, {3, 10, EHOSTUNREACH}, {3, 13, EHOSTUNREACH}, {3, 200, EHOSTUNREACH},
		{11, 0, EHOSTUNREACH}, {11, 1, EHOSTUNREACH}, {12, 0, EPROTO},
	} {
		k := newKit(t)
		s := udpTo(k, peerIP, true)
		k.sendTo(s, peerIP, "x")
		sent := k.one()
		quote := ipPacket{src: usIP, dst: peerIP, proto: 17, body: sent.ip.body}
		k.events()
		k.wantDrops(func() { k.inject(quoting(c.typ, c.code, quote).frame()) }, nil)
		if got := k.events(); got[s] != Err|Out {
			t.Errorf("type %d code %d: events %v", c.typ, c.code, got)
		}
		if err := k.h.UDPSend(s, nil, port(peerIP, 7), k.now); err != c.want {
			t.Errorf("type %d code %d: UDPSend = %v, want %v", c.typ, c.code, err, c.want)
		}
		if err := k.h.UDPSend(s, nil, port(peerIP, 7), k.now); err != 0 {
			t.Errorf("type %d code %d: second UDPSend = %v", c.typ, c.code, err)
		}
		k.count(1)
	}
}

// count expects n frames, whatever they are.
func (k *kit) count(n int) {
	k.t.Helper()
	if got := len(k.seen()); got != n {
		k.t.Fatalf("%d frames were sent, want %d", got, n)
	}
}

// TestICMPErrorsIgnored: what quotes nothing of ours concerns nobody.
func TestICMPErrorsIgnored(t *testing.T) {
	ours := ipPacket{src: usIP, dst: peerIP, proto: 17, body: udpBytes(usIP, peerIP, 4000, 7, nil)}
	change := func(f func(*ipPacket)) ipPacket {
		p := ours
		f(&p)
		return p
	}
	for name, quote := range map[string]ipPacket{
		"another source":   change(func(p *ipPacket) { p.src = gwIP }),
		"another peer":     change(func(p *ipPacket) { p.dst = gwIP }),
		"another port":     change(func(p *ipPacket) { p.body = udpBytes(usIP, peerIP, 4001, 7, nil) }),
		"its peer's port":  change(func(p *ipPacket) { p.body = udpBytes(usIP, peerIP, 4000, 8, nil) }),
		"unconnected":      change(func(p *ipPacket) { p.body = udpBytes(usIP, peerIP, 5000, 7, nil) }),
		"a later fragment": change(func(p *ipPacket) { p.off = 8 }),
		"TCP":              change(func(p *ipPacket) { p.proto = 6 }),
		"another protocol": change(func(p *ipPacket) { p.proto = 132 }),
	} {
		t.Run(name, func(t *testing.T) {
			k := newKit(t)
			s, _ := k.h.UDPBind(usIP, 4000)
			k.h.UDPConnect(s, peerIP, 7)
			wild, _ := k.h.UDPBind(0, 5000)
			k.wantDrops(func() { k.inject(quoting(3, 3, quote).frame()) }, map[Drop]uint64{ICMPIgnored: 1})
			for _, u := range []Handle{s, wild} {
				k.wantNoRecv(u)
			}
			if got := k.events(); len(got) != 0 {
				t.Errorf("events %v", got)
			}
		})
	}
}

// TestICMPQuotes: every truncation and every value of each header byte of a quote; nothing panics, and less than an IP
// header and 8 bytes is never believed.
func TestICMPQuotes(t *testing.T) {
	k := newKit(t)
	s, _ := k.h.UDPBind(usIP, 4000)
	k.h.UDPConnect(s, peerIP, 7)
	quote := ipPacket{src: usIP, dst: peerIP, proto: 17, opts: []byte{1, 1, 1, 1}, body: udpBytes(usIP, peerIP, 4000, 7, nil)}.bytes()
	for n := range quote {
		k.inject(icmpFrame(3, 3, 0, quote[:n]))
		k.wantNoRecv(s)
	}
	k.inject(icmpFrame(3, 3, 0, quote))
	if _, err := k.h.UDPRecv(s, nil); err != ECONNREFUSED {
		t.Fatalf("the whole quote: %v", err)
	}
	for at := range 20 {
		for v := range 256 {
			bad := append([]byte(nil), quote...)
			bad[at] = byte(v)
			for _, n := range []int{20, 28, len(bad)} {
				k.inject(icmpFrame(11, 0, 0, bad[:n]))
			}
			k.h.UDPRecv(s, nil)
		}
	}
	k.none()
}

// TestICMPQuoteInFragments: an error that comes in fragments is put together first.
func TestICMPQuoteInFragments(t *testing.T) {
	k := newKit(t)
	s, _ := k.h.UDPBind(usIP, 4000)
	k.h.UDPConnect(s, peerIP, 7)
	p := quoting(3, 3, ipPacket{src: usIP, dst: peerIP, proto: 17, body: udpBytes(usIP, peerIP, 4000, 7, pattern(500))})
	for _, cut := range []int{8, 48, 200} {
		k.inject(p.fragments(cut)...)
		_, err := k.h.UDPRecv(s, nil)
		if want := map[bool]Errno{true: ECONNREFUSED, false: EAGAIN}[cut >= 8+28]; err != want {
			t.Errorf("in pieces of %d: %v, want %v", cut, err, want)
		}
	}
}
