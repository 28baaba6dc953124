package sockets

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
)

// TestUDPBind is Linux's table of what may be bound beside what (udp_lib_lport_inuse, net/ipv4/udp.c), without
// SO_REUSEADDR: a connected socket keeps its local address and port as one that is not.
func TestUDPBind(t *testing.T) {
	const a, b = usIP, usIP + 9
	there := map[string]func(k *kit){
		"nothing":             func(k *kit) {},
		"any":                 func(k *kit) { k.bind(0, 5000) },
		"A":                   func(k *kit) { k.bind(a, 5000) },
		"B":                   func(k *kit) { k.bind(b, 5000) },
		"A and B":             func(k *kit) { k.bind(a, 5000); k.bind(b, 5000) },
		"A connected":         func(k *kit) { k.h.UDPConnect(k.bind(a, 5000), peerIP, 1) },
		"any connected (A)":   func(k *kit) { k.h.UDPConnect(k.bind(0, 5000), peerIP, 1) },
		"any on another port": func(k *kit) { k.bind(0, 5001) },
		"any, closed again":   func(k *kit) { k.h.Close(k.bind(0, 5000), k.now) },
		"A connected, closed": func(k *kit) { s := k.bind(a, 5000); k.h.UDPConnect(s, peerIP, 1); k.h.Close(s, k.now) },
	}
	free := map[string][3]bool{ // any, A, B may be bound then
		"nothing": {true, true, true}, "any": {}, "A": {false, false, true}, "B": {false, true, false},
		"A and B": {}, "A connected": {false, false, true}, "any connected (A)": {false, false, true},
		"any on another port": {true, true, true}, "any, closed again": {true, true, true},
		"A connected, closed": {true, true, true},
	}
	for name, make := range there {
		for i, local := range []proto.Addr{0, a, b} {
			k := newKit(t, func(c *Config) { c.Addrs = []Prefix{{a, 24}, {b, 24}} })
			make(k)
			_, err := k.h.UDPBind(local, 5000)
			if want := map[bool]Errno{true: 0, false: EADDRINUSE}[free[name][i]]; err != want {
				t.Errorf("%s is there: binding %v gives %v, want %v", name, local, err, want)
			}
		}
	}
	k := newKit(t)
	if _, err := k.h.UDPBind(peerIP, 5000); err != EADDRNOTAVAIL {
		t.Errorf("binding an address that is not ours gives %v", err)
	}
}

func (k *kit) bind(local proto.Addr, p uint16) Handle {
	k.t.Helper()
	s, err := k.h.UDPBind(local, p)
	if err != 0 {
		k.t.Fatalf("UDPBind(%v, %d): %v", local, p, err)
	}
	return s
}

// TestUDPEphemeral: ports that nobody chose are of Linux's range, all different, and when all are taken there is none.
func TestUDPEphemeral(t *testing.T) {
	k := newKit(t)
	used := map[uint16]bool{}
	for range 500 {
		local, _ := k.h.UDPAddr(k.bind(0, 0))
		if p := local.Port(); p < 32768 || p > 60999 || used[p] {
			t.Fatalf("port %d", p)
		}
		used[local.Port()] = true
	}
	taken := map[uint16]int{}
	for p := 32768; p <= 60999; p++ {
		taken[uint16(p)] = 1
	}
	delete(taken, 45678)
	saved := k.h.udp.ports
	k.h.udp.ports = taken
	s := k.bind(0, 0)
	if local, _ := k.h.UDPAddr(s); local.Port() != 45678 {
		t.Errorf("port %v, want the last one free", local)
	}
	if _, err := k.h.UDPBind(0, 0); err != EADDRINUSE {
		t.Errorf("with no port free: %v", err)
	}
	k.h.Close(s, k.now)
	k.h.udp.ports = saved
}

// TestUDPDemux: the most specific socket gets the datagram, and only it.
func TestUDPDemux(t *testing.T) {
	k := newKit(t, func(c *Config) { c.Addrs = []Prefix{{usIP, 24}, {usIP + 9, 24}} })
	connected := k.bind(usIP, 7)
	if err := k.h.UDPConnect(connected, peerIP, 1000); err != 0 {
		t.Fatal(err)
	}
	other := k.bind(usIP+9, 7)
	wild := k.bind(0, 8)
	for _, c := range []struct {
		dst          proto.Addr
		sport, dport uint16
		to           Handle
	}{
		{usIP, 1000, 7, connected}, {usIP, 1001, 7, 0}, {usIP + 9, 1000, 7, other}, {usIP + 9, 5, 7, other},
		{usIP, 5, 8, wild}, {usIP + 9, 5, 8, wild}, {usIP, 5, 9, 0},
	} {
		p := ipPacket{dst: c.dst, proto: 17, body: udpBytes(peerIP, c.dst, c.sport, c.dport, []byte("x"))}
		k.inject(p.frame())
		for _, s := range []Handle{connected, other, wild} {
			d, err := k.h.UDPRecv(s, nil)
			if (err == 0) != (s == c.to) || err == 0 && d.Src != port(peerIP, c.sport) {
				t.Errorf("%v:%d from port %d: socket %#x has %+v, %v", c.dst, c.dport, c.sport, s, d, err)
			}
		}
		if n := len(k.seen()); n != map[bool]int{true: 1}[c.to == 0] {
			t.Errorf("%v:%d: %d ICMP errors", c.dst, c.dport, n)
		}
	}
}

// TestUDPPortUnreachable quotes the packet and comes from the address it was sent to.
func TestUDPPortUnreachable(t *testing.T) {
	k := newKit(t)
	p := ipPacket{id: 7, proto: 17, body: udpBytes(peerIP, usIP, 1, 9, pattern(1000))}
	k.inject(p.frame())
	s := k.one()
	if s.icmp.typ != 3 || s.icmp.code != 3 || s.ip.src != usIP || s.ip.dst != peerIP || !bytes.Equal(s.data, p.bytes()[:548]) {
		t.Errorf("sent type %d code %d to %v with %d bytes", s.icmp.typ, s.icmp.code, s.ip.dst, len(s.data))
	}
	k.inject(ipPacket{id: 8, proto: 17, body: udpBytes(peerIP, usIP, 1, 9, pattern(4000))}.fragments(1480)...)
	if s := k.one(); s.icmp.code != 3 || len(s.data) != 548 {
		t.Errorf("about a reassembled datagram: %+v", s)
	}
}

func TestUDPConnect(t *testing.T) {
	k := newKit(t)
	s := k.bind(0, 7)
	if err := k.h.UDPSend(s, nil, netip.AddrPort{}, k.now); err != EDESTADDRREQ {
		t.Errorf("UDPSend without a peer: %v", err)
	}
	if err := k.h.UDPConnect(s, peerIP, 0); err != EINVAL {
		t.Errorf("UDPConnect to port 0: %v", err)
	}
	for _, p := range []uint16{10, 9, 9} { // another peer, and the same again
		if err := k.h.UDPConnect(s, peerIP, p); err != 0 {
			t.Fatalf("UDPConnect: %v", err)
		}
	}
	if l, r := k.h.UDPAddr(s); l != port(usIP, 7) || r != port(peerIP, 9) {
		t.Errorf("addresses %v and %v", l, r)
	}
	if err := k.h.UDPSend(s, []byte("to the peer"), netip.AddrPort{}, k.now); err != 0 {
		t.Fatal(err)
	}
	if got := k.one(); got.ip.dst != peerIP || got.sport != 7 || got.dport != 9 || string(got.data) != "to the peer" {
		t.Errorf("sent %+v", got)
	}
	for name, dst := range map[string]netip.AddrPort{
		"IPv6": netip.AddrPortFrom(netip.MustParseAddr("2001:db8::1"), 7), "port 0": port(peerIP, 0)} {
		if err := k.h.UDPSend(s, nil, dst, k.now); err != EINVAL {
			t.Errorf("UDPSend to %s: %v", name, err)
		}
	}
	mapped := netip.AddrPortFrom(netip.AddrFrom16(gwIP.Netip().As16()), 7)
	if err := k.h.UDPSend(s, nil, mapped, k.now); err != 0 {
		t.Errorf("UDPSend to %v: %v", mapped, err)
	}
	if got := k.one(); got.ip.dst != gwIP {
		t.Errorf("sent to %v", got.ip.dst)
	}
	// Of the first peer nothing is left.
	k.inject(ipPacket{id: 1, proto: 17, body: udpBytes(peerIP, usIP, 10, 7, []byte("from the one before"))}.frame())
	k.inject(ipPacket{id: 2, proto: 17, body: udpBytes(peerIP, usIP, 9, 7, []byte("from the peer"))}.frame())
	buf := make([]byte, 100)
	if d, err := k.h.UDPRecv(s, buf); err != 0 || string(buf[:d.N]) != "from the peer" || d.More {
		t.Errorf("received %q, %v", buf[:d.N], err)
	}
}

// TestUDPChecksums: none is accepted, a wrong one never, and the pseudo-header's alone only where the device is known to
// leave it.
func TestUDPChecksums(t *testing.T) {
	for _, size := range []int{0, 1, 100, 3001} {
		for _, partialOK := range []bool{false, true} {
			for _, kind := range []string{"good", "none", "partial", "bad", "inverted partial"} {
				k, s := fragKit(t, func(c *Config) { c.AcceptPartial = partialOK })
				p, payload := datagram(5, size)
				partial := ^inetSum(pseudo(peerIP, usIP, 17, len(p.body)))
				field := uint16(p.body[6])<<8 | uint16(p.body[7])
				switch kind {
				case "none":
					field = 0
				case "partial":
					field = partial
				case "inverted partial":
					field = ^partial
				case "bad":
					field++
				}
				p.body[6], p.body[7] = byte(field>>8), byte(field)
				ok := kind == "good" || kind == "none" || kind == "partial" && partialOK
				want := map[Drop]uint64{Drop(proto.UDPChecksum): 1}
				if ok {
					want = nil
				}
				k.wantDrops(func() { k.inject(p.fragments(1480)...) }, want)
				if ok {
					k.wantRecv(s, payload)
				} else {
					k.wantNoRecv(s)
				}
				if got := k.h.counters.Stats[RxPartialSum]; got != map[bool]uint64{true: 1}[kind == "partial" && partialOK] {
					t.Errorf("%d bytes, %s: RxPartialSum is %d", size, kind, got)
				}
			}
		}
	}
}

// TestUDPZeroSum: a checksum that comes out as 0 is sent as 0xffff (RFC 768), for 0 says that there is none.
func TestUDPZeroSum(t *testing.T) {
	for _, n := range []int{2, 3000} {
		k := newKit(t)
		s := k.bind(0, 7)
		payload := make([]byte, n)
		b := concat(be16(7), be16(9), be16(uint16(n+8)), be16(0), payload)
		copy(payload, be16(inetSum(pseudo(usIP, peerIP, 17, n+8), b)))
		if err := k.h.UDPSend(s, payload, port(peerIP, 9), k.now); err != 0 {
			t.Fatal(err)
		}
		body := joined(t, k, k.seen()).ip.body
		if body[6] != 0xff || body[7] != 0xff {
			t.Errorf("%d bytes: checksum %x", n, body[6:8])
		}
	}
}

// TestUDPLength: the length field below 8 or beyond the packet is a lie; what lies behind it is no data.
func TestUDPLength(t *testing.T) {
	for _, size := range []int{20, 3000} {
		for _, length := range []int{0, 7, 8, 9, 8 + size - 1, 8 + size, 8 + size + 1, 65535} {
			k, s := fragKit(t)
			p, payload := datagram(5, size)
			copy(p.body[4:], be16(uint16(length)))
			copy(p.body[6:], be16(0))
			ok := length >= 8 && length <= 8+size
			want := map[Drop]uint64{Drop(proto.UDPLen): 1}
			if ok {
				want = nil
				sum := inetSum(pseudo(peerIP, usIP, 17, length), p.body[:length])
				copy(p.body[6:], be16(sum))
			}
			k.wantDrops(func() { k.inject(p.fragments(1480)...) }, want)
			if ok {
				k.wantRecv(s, payload[:length-8])
			}
			k.wantNoRecv(s)
			if k.h.rxUsed != 0 {
				t.Errorf("%d bytes, length %d: %d frames held", size, length, k.h.rxUsed)
			}
		}
	}
}

// TestUDPTruncation: a small buffer gets the front, hears the size, and the rest is lost.
func TestUDPTruncation(t *testing.T) {
	k, s := fragKit(t)
	for _, size := range []int{100, 4000} {
		for _, room := range []int{0, 1, 99, 1472, 1473, 3999} {
			if room >= size {
				continue
			}
			p, payload := datagram(5, size)
			k.inject(p.fragments(1480)...)
			k.inject(udpFrame(2, 7, []byte("next")))
			buf := make([]byte, room)
			d, err := k.h.UDPRecv(s, buf)
			if err != 0 || d.N != room || d.Size != size || !d.More || !bytes.Equal(buf, payload[:room]) || d.Src != port(peerIP, 1000) {
				t.Errorf("%d bytes into %d: %+v, %v", size, room, d, err)
			}
			k.wantRecv(s, []byte("next"))
		}
	}
}

// TestUDPQueueLimit: a socket queues RcvBuf bytes, counted in whole frames, but at least one datagram; what comes beyond
// is counted at the Host and at the socket.
func TestUDPQueueLimit(t *testing.T) {
	k, s := fragKit(t, func(c *Config) { c.RcvBuf = 4*2048 + 100 })
	k.wantDrops(func() {
		for i := range 7 {
			k.inject(udpFrame(1000, 7, []byte{byte(i)}))
		}
	}, map[Drop]uint64{UDPQueueFull: 3})
	if info := k.h.UDPSockets(); len(info) != 1 || info[0] != (UDPInfo{Local: port(0, 7), Datagrams: 4, Bytes: 4 * 2048, Drops: 3}) {
		t.Errorf("UDPSockets = %+v", info)
	}
	k.h.UDPRecv(s, nil)
	big, payload := datagram(1, 8000) // six frames
	k.wantDrops(func() { k.inject(big.fragments(1480)...) }, map[Drop]uint64{UDPQueueFull: 1})
	for range 3 {
		k.h.UDPRecv(s, nil)
	}
	k.wantDrops(func() { k.inject(big.fragments(1480)...) }, nil)
	k.wantDrops(func() { k.inject(udpFrame(1000, 7, nil)) }, map[Drop]uint64{UDPQueueFull: 1})
	k.wantRecv(s, payload)
}

// TestUDPEvents: one event for any number of datagrams until it was taken; In as long as one waits.
func TestUDPEvents(t *testing.T) {
	k, s := fragKit(t)
	if r := k.h.Ready(s); r != Out {
		t.Errorf("ready for %#x, want Out", r)
	}
	for range 3 {
		k.inject(udpFrame(1000, 7, nil))
	}
	if got := k.events(); len(got) != 1 || got[s] != In|Out {
		t.Errorf("events %v", got)
	}
	if got := k.events(); len(got) != 0 || k.h.PendingEvents() {
		t.Errorf("events %v for nothing new", got)
	}
	for range 3 {
		if k.h.Ready(s)&In == 0 {
			t.Error("not ready while a datagram waits")
		}
		k.h.UDPRecv(s, nil)
	}
	if r := k.h.Ready(s); r != Out {
		t.Errorf("ready for %#x after all was read, want Out", r)
	}
}

// TestUDPNoFrames: without frames a send says EAGAIN and counts nothing; when there are some again, and not before, the
// socket hears of it, once.
func TestUDPNoFrames(t *testing.T) {
	for _, size := range []int{10, 20_000} {
		k := newKit(t)
		k.late = true
		s := k.bind(0, 7)
		k.wantDrops(func() {
			for k.h.UDPSend(s, pattern(size), port(peerIP, 9), k.now) == 0 {
			}
		}, nil)
		if err := k.h.UDPSend(s, pattern(size), port(peerIP, 9), k.now); err != EAGAIN {
			t.Fatalf("UDPSend = %v, want EAGAIN", err)
		}
		if !k.h.Blocked() || k.h.Ready(s)&Out != 0 {
			t.Errorf("Blocked is %v, ready for %#x", k.h.Blocked(), k.h.Ready(s))
		}
		k.pump()
		if got := k.events(); len(got) != 0 {
			t.Errorf("events %v while the device has all frames", got)
		}
		k.complete(len(k.device))
		k.pump()
		if got := k.events(); len(got) != 1 || got[s]&Out == 0 {
			t.Errorf("events %v after the completions, want Out", got)
		}
		k.pump()
		if got := k.events(); len(got) != 0 || k.h.Blocked() {
			t.Errorf("events %v for nothing new", got)
		}
		k.sent()
	}
}

// TestUDPNoFramesForAll: a datagram that needs more frames than others wait for is not called before there are as many:
// it would be refused again, and called again, turn after turn.
func TestUDPNoFramesForAll(t *testing.T) {
	k := newKit(t)
	k.late = true
	s, small := k.bind(0, 7), k.bind(0, 8)
	const size = 60_000
	need := (size + 8 + 1479) / 1480
	for k.h.UDPSend(s, pattern(size), port(peerIP, 9), k.now) == 0 {
	}
	for k.h.UDPSend(small, nil, port(peerIP, 9), k.now) == 0 {
	}
	k.pump()
	k.complete(need - 1)
	k.pump()
	if got := k.events(); len(got) != 1 || got[small]&Out == 0 {
		t.Errorf("events %v with %d free frames, want Out for the socket of which a datagram takes one", got, need-1)
	}
	k.complete(1)
	k.pump()
	if got := k.events(); len(got) != 1 || got[s]&Out == 0 || k.h.Blocked() {
		t.Errorf("events %v with %d free frames, want Out for the other", got, need)
	}
	k.complete(len(k.device))
	k.sent()
}

// TestUDPTooBig: 65507 bytes are the most; and what this Host never has the frames for is too big as well, for a socket
// that waited for them would wait for ever.
func TestUDPTooBig(t *testing.T) {
	k := newKit(t)
	s := k.bind(0, 7)
	if err := k.h.UDPSend(s, make([]byte, 65508), port(peerIP, 9), k.now); err != EMSGSIZE {
		t.Errorf("65508 bytes: %v", err)
	}
	if err := k.h.UDPSend(s, make([]byte, 65507), port(peerIP, 9), k.now); err != 0 {
		t.Errorf("65507 bytes: %v", err)
	}
	k.count(45)
	k = newKitOf(t, 32, 2048, func(c *Config) { c.KernelNeighbours = true })
	s = k.bind(0, 7)
	if err := k.h.UDPSend(s, make([]byte, 65507), port(peerIP, 9), k.now); err != EMSGSIZE {
		t.Errorf("65507 bytes with %d frames: %v", k.h.txLimit, err)
	}
}

// wire carries frames between two Hosts until both are quiet.
func wire(a, b *kit) {
	for {
		x, y := a.sent(), b.sent()
		if len(x)+len(y) == 0 {
			return
		}
		b.inject(x...)
		a.inject(y...)
	}
}

// TestUDPTwoHosts sends datagrams of all kinds of sizes to another Host and back: the first finds its way by ARP, and
// each comes back as it was.
func TestUDPTwoHosts(t *testing.T) {
	a := newKitOf(t, 2048, 2048, func(c *Config) { c.MTU = 1400 })
	b := newKitOf(t, 2048, 4096, func(c *Config) {
		c.MAC, c.Addrs, c.MTU = peerMAC, []Prefix{{peerIP, 24}}, 1500
	})
	client, server := a.bind(0, 0), b.bind(0, 7)
	sizes := []int{65507, 0, 1, 2, 1371, 1372, 1373, 1471, 1472, 1473, 2951, 2952, 2953, 4095, 4096, 8000, 65506}
	seed := seeds.One(t)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 100 {
		sizes = append(sizes, r.IntN(65508))
	}
	buf := make([]byte, 1<<16)
	for i, size := range sizes {
		what := fmt.Sprintf("%d bytes, seed %d", size, seed)
		payload := pattern(size)
		for j := range payload {
			payload[j] += byte(i)
		}
		if err := a.h.UDPSend(client, payload, port(peerIP, 7), a.now); err != 0 {
			t.Fatalf("%s: UDPSend: %v", what, err)
		}
		wire(a, b)
		d, err := b.h.UDPRecv(server, buf)
		if err != 0 || d.Size != size || !bytes.Equal(buf[:d.N], payload) {
			t.Fatalf("%s: there %+v, %v", what, d, err)
		}
		if err := b.h.UDPSend(server, buf[:d.N], d.Src, b.now); err != 0 {
			t.Fatalf("%s: UDPSend back: %v", what, err)
		}
		wire(b, a)
		d, err = a.h.UDPRecv(client, buf)
		if err != 0 || d.Src != port(peerIP, 7) || !bytes.Equal(buf[:d.N], payload) {
			t.Fatalf("%s: back %+v, %v", what, d, err)
		}
	}
	for _, k := range []*kit{a, b} {
		for d, n := range k.h.counters.Drops {
			if n != 0 {
				t.Errorf("%v: %d", Drop(d), n)
			}
		}
	}
}
