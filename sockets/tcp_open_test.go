package sockets

import (
	"fmt"
	"testing"

	"xdpd/proto"
)

func TestTCPHandshake(t *testing.T) {
	for _, c := range []struct {
		name       string
		opts, want []byte // of SYN and SYN-ACK; the timestamps' values do not matter
	}{
		{"no options", nil, optMSS(1460)},
		{"MSS", optMSS(1000), optMSS(1460)},
		{"window scale", concat(optMSS(1460), optWScale(3)), concat(optMSS(1460), optWScale(7))},
		{"SACK", concat([]byte{4, 2}, optMSS(1460)), concat(optMSS(1460), []byte{1, 1, 4, 2})},
		{"timestamps", concat(optMSS(1460), optTS(1, 0)), concat(optMSS(1460), optTS(0, 0))},
		{"all", concat(optMSS(1460), optTS(1, 0), optWScale(9)), concat(optMSS(1460), optTS(0, 0), optWScale(7))},
		{"unknown ones", concat([]byte{19, 2, 253, 6, 1, 2, 3, 4}, optMSS(1460)), optMSS(1460)},
		{"garbage", []byte{2, 4, 5, 180, 3, 0, 0, 0}, optMSS(1460)},
	} {
		t.Run(c.name, func(t *testing.T) {
			k := newKit(t)
			l, _ := k.h.TCPListen(usIP, svc)
			p := newPeer(k, svc, 1000)
			sa := synSent(k, p, c.opts)
			got := append([]byte(nil), sa.opts...)
			for i := 0; i+10 <= len(got); i++ {
				if got[i] == 8 && got[i+1] == 10 {
					copy(got[i+2:], make([]byte, 8))
				}
			}
			for i := 0; i+10 <= len(c.want); i++ {
				if c.want[i] == 8 && c.want[i+1] == 10 {
					copy(c.want[i+2:], make([]byte, 8))
					p.ts, p.tsval = true, 1
				}
			}
			if string(got) != string(c.want) || sa.wnd != 65535 {
				t.Errorf("SYN-ACK with options % x and window %d, want % x and 65535", got, sa.wnd, c.want)
			}
			if k.h.PendingEvents() || k.h.Ready(l) != 0 {
				t.Error("the listener is ready before the handshake is over")
			}
			if _, err := k.h.TCPAccept(l); err != EAGAIN {
				t.Errorf("TCPAccept before the handshake is over: %v", err)
			}
			p.send(psh|ack, []byte("at once"))
			if got := k.events(); got[l] != In {
				t.Errorf("events %v, want In for the listener", got)
			}
			s, err := k.h.TCPAccept(l)
			if err != 0 {
				t.Fatalf("TCPAccept: %v", err)
			}
			if local, remote := k.h.TCPAddr(s); local != port(usIP, svc) || remote != port(peerIP, 1000) {
				t.Errorf("addresses %v and %v", local, remote)
			}
			conn{tpeer: p, h: s, l: l}.wantRead([]byte("at once"))
			if r := k.h.Ready(s); r != Out {
				t.Errorf("ready for %#x, want Out", r)
			}
			if local, remote := k.h.TCPAddr(l); local != port(usIP, svc) || remote.IsValid() {
				t.Errorf("the listener's addresses %v and %v", local, remote)
			}
		})
	}
}

// TestTCPListen: RFC 9293 3.10.7.2, what LISTEN answers to each combination of flags.
func TestTCPListen(t *testing.T) {
	for flags := range uint8(64) {
		k := newKit(t)
		k.h.TCPListen(0, svc)
		k.inject(tcpSeg{sport: 9, dport: svc, seq: 1000, ack: 5000, flags: flags, wnd: 100, data: []byte("x")}.frame())
		got := k.seen()
		what := fmt.Sprintf("flags %#x: %d segments", flags, len(got))
		switch {
		case flags&rst != 0, flags&(ack|syn) == 0, flags&(syn|fin|ack) == syn|fin:
			if len(got) != 0 {
				t.Errorf("%s, want none", what)
			}
		case flags&ack != 0:
			if len(got) != 1 || got[0].tcp.flags != rst || got[0].tcp.seq != 5000 {
				t.Errorf("%s, want RST with the segment's ACK as its sequence number: %+v", what, got)
			}
		default:
			if len(got) != 1 || got[0].tcp.flags != syn|ack || got[0].tcp.ack != 1001 {
				t.Errorf("%s, want a SYN-ACK of the SYN alone: %+v", what, got)
			}
		}
	}
}

// TestTCPClosedPort: RFC 9293 3.10.7.1.
func TestTCPClosedPort(t *testing.T) {
	for flags := range uint8(64) {
		k := newKit(t)
		k.inject(tcpSeg{sport: 9, dport: svc, seq: 0xffffffff, ack: 5000, flags: flags, data: []byte("xy")}.frame())
		got := k.seen()
		if flags&rst != 0 {
			if len(got) != 0 {
				t.Errorf("flags %#x: answered", flags)
			}
			continue
		}
		if len(got) != 1 {
			t.Errorf("flags %#x: %d answers", flags, len(got))
			continue
		}
		s := got[0].tcp
		n := uint32(2)
		for _, f := range []uint8{syn, fin} {
			if flags&f != 0 {
				n++
			}
		}
		switch {
		case s.sport != svc || s.dport != 9:
			t.Errorf("flags %#x: answer from %d to %d", flags, s.sport, s.dport)
		case flags&ack != 0 && (s.flags != rst || s.seq != 5000):
			t.Errorf("flags %#x: %+v, want RST at 5000", flags, s)
		case flags&ack == 0 && (s.flags != rst|ack || s.seq != 0 || s.ack != n-1):
			t.Errorf("flags %#x: %+v, want RST+ACK of %d", flags, s, n-1)
		}
	}
}

// TestTCPListenPorts: who may listen beside whom, and who gets the SYN.
func TestTCPListenPorts(t *testing.T) {
	const b = usIP + 9
	k := newKit(t, func(c *Config) { c.Addrs = []Prefix{{usIP, 24}, {b, 24}} })
	if _, err := k.h.TCPListen(peerIP, svc); err != EADDRNOTAVAIL {
		t.Errorf("on an address that is not ours: %v", err)
	}
	one, _ := k.h.TCPListen(usIP, svc)
	for local, want := range map[proto.Addr]Errno{0: EADDRINUSE, usIP: EADDRINUSE, b: 0} {
		s, err := k.h.TCPListen(local, svc)
		if err != want {
			t.Errorf("on %v: %v, want %v", local, err, want)
		}
		k.h.Close(s, k.now)
	}
	wild, err := k.h.TCPListen(0, 0)
	if err != 0 {
		t.Fatal(err)
	}
	if local, _ := k.h.TCPAddr(wild); local.Port() < 32768 {
		t.Errorf("port %d for who did not choose", local.Port())
	}
	k.inject(ipPacket{dst: b, proto: 6, body: tcpSeg{sport: 1, dport: svc, flags: syn}.bytes(peerIP, b)}.frame())
	if s := k.one(); s.tcp.flags != rst|ack {
		t.Errorf("SYN to an address without a listener: %+v", s.tcp)
	}
	k.h.Close(one, k.now)
	if _, err := k.h.TCPListen(0, svc); err != 0 {
		t.Errorf("on all addresses after the only other was closed: %v", err)
	}
}

// TestTCPAcceptOrder: connections are accepted in the order in which their handshakes ended.
func TestTCPAcceptOrder(t *testing.T) {
	k := newKit(t)
	l, _ := k.h.TCPListen(0, svc)
	peers := []*tpeer{newPeer(k, svc, 1), newPeer(k, svc, 2), newPeer(k, svc, 3)}
	for _, p := range peers {
		synSent(k, p, nil)
	}
	for _, i := range []int{1, 2, 0} {
		peers[i].ackAll()
	}
	for _, want := range []uint16{2, 3, 1} {
		s, err := k.h.TCPAccept(l)
		if err != 0 {
			t.Fatal(err)
		}
		if _, remote := k.h.TCPAddr(s); remote.Port() != want {
			t.Errorf("accepted port %d, want %d", remote.Port(), want)
		}
	}
	if _, err := k.h.TCPAccept(l); err != EAGAIN {
		t.Errorf("TCPAccept of nothing: %v", err)
	}
}

// TestTCPBacklog: so many half-open connections, and so many that wait to be accepted.
func TestTCPBacklog(t *testing.T) {
	k := newKit(t, func(c *Config) { c.Backlog = 3 })
	l, _ := k.h.TCPListen(0, svc)
	var peers []*tpeer
	for i := range uint16(3) {
		p := newPeer(k, svc, 1+i)
		synSent(k, p, nil)
		peers = append(peers, p)
	}
	extra := newPeer(k, svc, 99)
	for _, p := range peers {
		p.ackAll()
	}
	// Three wait to be accepted now: no new SYN is taken either.
	k.wantDrops(func() { extra.inject(extra.seg(syn, nil)) }, map[Drop]uint64{TCPBacklogFull: 1})
	if _, err := k.h.TCPAccept(l); err != 0 {
		t.Fatal(err)
	}
	late := []*tpeer{newPeer(k, svc, 50), newPeer(k, svc, 51)}
	for _, p := range late {
		synSent(k, p, nil)
	}
	late[0].ackAll()
	// The second handshake ends, but there is no room: it is not lost, for its data, or our SYN-ACK, comes again.
	k.wantDrops(late[1].ackAll, map[Drop]uint64{TCPBacklogFull: 1})
	for range 3 {
		if _, err := k.h.TCPAccept(l); err != 0 {
			t.Fatal(err)
		}
	}
	late[1].send(psh|ack, []byte("data"))
	if s, err := k.h.TCPAccept(l); err != 0 {
		t.Errorf("the connection that found no room: %v", err)
	} else {
		conn{tpeer: late[1], h: s}.wantRead([]byte("data"))
	}
}

// TestTCPSYNFlood: a flood leaves no more than the backlog, and all of it goes when its time is over.
func TestTCPSYNFlood(t *testing.T) {
	k := newKit(t, func(c *Config) { c.Backlog = 100 })
	k.h.TCPListen(0, svc)
	for i := range 10_000 {
		from := farIP + proto.Addr(i)
		k.inject(ipPacket{src: from, proto: 6, body: tcpSeg{sport: 7, dport: svc, seq: 5, flags: syn}.bytes(from, usIP)}.frame())
		if i%100 == 0 {
			k.sent()
		}
	}
	if k.h.tcp.conns != 0 || k.h.tcp.half.n != 100 || k.h.tcp.listeners[0].half != 100 {
		t.Errorf("%d connections, %d half-open; want 0 and 100", k.h.tcp.conns, k.h.tcp.half.n)
	}
	if n := k.h.counters.Stats[TCPCookies]; n != 9900 {
		t.Errorf("%d SYN cookies, want 9900", n)
	}
	k.sleep(70 * second)
	k.sent()
	if k.h.tcp.half.n != 0 || k.h.tcp.listeners[0].half != 0 {
		t.Errorf("%d half-open connections after a minute; want none", k.h.tcp.half.n)
	}
}

// TestTCPMaxConns: connections of any state together have a limit.
func TestTCPMaxConns(t *testing.T) {
	k := newKit(t, func(c *Config) { c.MaxConns = 2 })
	l, _ := k.h.TCPListen(0, svc)
	first := dial(k, svc, 1)
	dial(k, svc, 2)
	third := newPeer(k, svc, 3)
	k.wantDrops(func() { third.inject(third.seg(syn, nil)) }, map[Drop]uint64{TCPBacklogFull: 1})
	first.reset()
	synSent(k, third, nil)
	third.reset()
	k.h.Close(l, k.now)
	k.sent()
}

// TestTCPSYNACKRetransmission: after 1, 2, 4, 8 and 16 s, and given up 32 s later; the same SYN brings it at once.
func TestTCPSYNACKRetransmission(t *testing.T) {
	k := newKit(t)
	k.h.TCPListen(0, svc)
	p := newPeer(k, svc, 1)
	first := synSent(k, p, nil)
	again := p.seg(syn, nil)
	again.seq--
	k.wantDrops(func() { p.inject(again) }, map[Drop]uint64{TCPDuplicate: 1})
	wantSeg(t, p.one(), syn|ack, first.seq, p.seq, nil)
	at := k.now
	for wait := second; wait <= 16*second; wait *= 2 {
		at += wait
		k.sleep(at - 2*ms - k.now)
		p.none()
		k.sleep(at + 2*ms - k.now)
		s := p.one()
		wantSeg(t, s, syn|ack, first.seq, p.seq, nil)
		if s.wnd != first.wnd || string(s.opts) != string(first.opts) {
			t.Errorf("again with window %d and options % x", s.wnd, s.opts)
		}
	}
	k.sleep(31 * second)
	if k.h.tcp.half.n != 1 {
		t.Fatal("given up too soon")
	}
	k.sleep(2 * second)
	if k.h.tcp.half.n != 0 {
		t.Error("not given up")
	}
	p.none()
}

// TestTCPSynRcvd: RFC 9293 3.10.7.4 in SYN-RECEIVED.
func TestTCPSynRcvd(t *testing.T) {
	open := func(t *testing.T) (*kit, *tpeer) {
		k := newKit(t)
		k.h.TCPListen(0, svc)
		p := newPeer(k, svc, 1)
		synSent(k, p, nil)
		return k, p
	}
	t.Run("RST", func(t *testing.T) {
		k, p := open(t)
		p.inject(p.seg(rst, nil))
		p.none()
		if k.h.tcp.half.n != 0 || k.h.tcp.listeners[0].half != 0 {
			t.Error("the half-open connection is still there")
		}
	})
	t.Run("RST elsewhere in the window", func(t *testing.T) {
		k, p := open(t)
		s := p.seg(rst, nil)
		s.seq += 10
		p.inject(s)
		wantSeg(t, p.one(), ack, p.ack, p.seq, nil) // RFC 5961 3.2
		if k.h.tcp.half.n != 1 {
			t.Error("reset by a guess")
		}
	})
	t.Run("RST outside the window", func(t *testing.T) {
		k, p := open(t)
		s := p.seg(rst, nil)
		s.seq += 1 << 30
		p.inject(s)
		p.none()
		if k.h.tcp.half.n != 1 {
			t.Error("reset by a guess")
		}
	})
	for name, off := range map[string]int32{"too small": -1, "too large": 1, "far off": 1 << 30} {
		t.Run("ACK "+name, func(t *testing.T) {
			k, p := open(t)
			s := p.seg(ack, []byte("x"))
			s.ack = uint32(int32(s.ack) + off)
			p.inject(s)
			wantSeg(t, p.one(), rst, s.ack, 0, nil)
			if k.h.tcp.half.n != 1 || k.h.Ready(openSockets(k.h)[0]) != 0 {
				t.Error("the connection was opened, or is gone")
			}
		})
	}
	t.Run("no ACK", func(t *testing.T) {
		k, p := open(t)
		k.wantDrops(func() { p.inject(p.seg(0, []byte("x"))) }, map[Drop]uint64{TCPNoACK: 1})
		p.none()
	})
	t.Run("FIN with the ACK", func(t *testing.T) {
		k, p := open(t)
		p.send(fin|ack, []byte("all"))
		s, err := k.h.TCPAccept(openSockets(k.h)[0])
		if err != 0 {
			t.Fatal(err)
		}
		c := conn{tpeer: p, h: s}
		c.wantState(tcpCloseWait)
		c.wantRead([]byte("all"))
		c.wantEOF(0)
	})
	// A peer that restarted and took the same port again: our ACK tells it of the old connection, its RST ends that, and
	// its next SYN succeeds (RFC 9293 3.5.1). Without the ACK it would be locked out until the SYN-ACKs are given up.
	t.Run("another SYN", func(t *testing.T) {
		k, p := open(t)
		fresh := newPeer(k, svc, 1)
		fresh.seq = p.seq + 1<<28
		fresh.inject(fresh.seg(syn, nil))
		wantSeg(t, p.one(), ack, p.ack, p.seq, nil)
		p.inject(tcpSeg{sport: 1, dport: svc, seq: p.seq, flags: rst})
		synSent(k, fresh, nil)
		fresh.ackAll()
		if _, err := k.h.TCPAccept(openSockets(k.h)[0]); err != 0 {
			t.Error(err)
		}
	})
}

// TestTCPCloseListener: connections that nobody accepted are reset, half-open ones too; accepted ones go on.
func TestTCPCloseListener(t *testing.T) {
	k, c := established(t)
	half, ready := newPeer(k, svc, 2), newPeer(k, svc, 3)
	synSent(k, half, nil)
	synSent(k, ready, nil)
	ready.send(psh|ack, []byte("unread"))
	ended := dial(k, svc, 4)
	ended.reset()
	if err := k.h.Close(c.l, k.now); err != 0 {
		t.Fatal(err)
	}
	resets := map[uint16]tcpSeg{}
	for _, s := range k.seen() {
		if s.tcp.flags&rst != 0 {
			resets[s.tcp.dport] = s.tcp
		}
	}
	for _, p := range []*tpeer{half, ready} {
		if s, ok := resets[p.sport]; !ok || s.seq != p.ack {
			t.Errorf("port %d was sent %+v, want RST at %d", p.sport, s, p.ack)
		}
	}
	if len(resets) != 2 || k.h.tcp.conns != 1 {
		t.Errorf("%d resets, %d connections left; want 2 and 1", len(resets), k.h.tcp.conns)
	}
	c.send(psh|ack, []byte("still here"))
	c.wantRead([]byte("still here"))
	half.inject(half.seg(syn, nil))
	if s := k.seen(); s[len(s)-1].tcp.flags&rst == 0 {
		t.Errorf("SYN to the closed listener: %+v", s)
	}
}

// TestTCPResetBeforeAccept: what was reset while it waited is accepted all the same, as in Linux, and tells of it.
func TestTCPResetBeforeAccept(t *testing.T) {
	k := newKit(t)
	l, _ := k.h.TCPListen(0, svc)
	k.events()
	p := dial(k, svc, 1)
	p.send(psh|ack, []byte("last words"))
	k.sent()
	p.reset()
	for s := range k.events() {
		if s != l {
			t.Errorf("event for %#x, of which nobody has heard", s)
		}
	}
	s, err := k.h.TCPAccept(l)
	if err != 0 {
		t.Fatal(err)
	}
	c := conn{tpeer: p, h: s}
	if r := k.h.Ready(s); r&(In|Err|Hup) != In|Err|Hup {
		t.Errorf("ready for %#x", r)
	}
	c.wantRead([]byte("last words"))
	c.wantEOF(ECONNRESET)
	if _, err := k.h.TCPWrite(s, []byte("x"), k.now); err != EPIPE {
		t.Errorf("TCPWrite: %v", err)
	}
}

// TestTCPMSS: what we send never exceeds the peer's MSS nor our MTU, and a tiny MSS does not make us send headers alone.
func TestTCPMSS(t *testing.T) {
	for _, mtu := range []int{68, 80, 103, 104, 576, 1500} {
		for _, ts := range []bool{false, true} {
			for _, mss := range []int{-1, 1, 63, 64, 536, 1460, 65535} {
				k := newKit(t, func(c *Config) { c.MTU = mtu })
				l, _ := k.h.TCPListen(0, svc)
				p := newPeer(k, svc, 1)
				var opts []byte
				if mss >= 0 {
					opts = optMSS(uint16(mss))
				}
				if ts {
					opts = concat(opts, optTS(1, 0))
				}
				sa := synSent(k, p, opts)
				if string(sa.opts[:4]) != string(optMSS(uint16(mtu-40))) {
					t.Fatalf("MTU %d: we say % x", mtu, sa.opts)
				}
				p.ts, p.tsval = ts, 1
				p.ackAll()
				s, _ := k.h.TCPAccept(l)
				c := conn{tpeer: p, h: s}
				c.write(pattern(4000))
				limit := min(mtu-40, max(mss, 64))
				if mss < 0 {
					limit = min(mtu-40, 536)
				}
				if ts {
					limit -= 12
				}
				largest := 0
				for _, s := range p.got() {
					largest = max(largest, len(s.data))
				}
				if largest != limit {
					t.Errorf("MTU %d, MSS %d, timestamps %v: largest segment has %d bytes, want %d", mtu, mss, ts, largest, limit)
				}
			}
		}
	}
}

// TestTCPWindowScale: a scale above 14 counts as 14 (RFC 7323 2.3), and the window of a SYN is never scaled.
func TestTCPWindowScale(t *testing.T) {
	for scale, want := range map[uint8]uint32{0: 3, 1: 6, 14: 3 << 14, 15: 3 << 14, 255: 3 << 14} {
		k := newKit(t)
		l, _ := k.h.TCPListen(0, svc)
		p := newPeer(k, svc, 1)
		p.wnd = 3
		synSent(k, p, concat(optMSS(1460), optWScale(scale)))
		if r := k.h.tcp.half.at(0); r.wnd != 3 {
			t.Errorf("scale %d: window of the SYN taken as %d", scale, r.wnd)
		}
		p.ackAll()
		s, _ := k.h.TCPAccept(l)
		if c := k.h.tcp.get(s); c.sndWnd != want {
			t.Errorf("scale %d: window of 3 taken as %d, want %d", scale, c.sndWnd, want)
		}
	}
}

// TestTCPISN: initial sequence numbers differ by peer, cannot be had without the secret, and move on with time (RFC 6528).
func TestTCPISN(t *testing.T) {
	a, b := newSecret([32]byte{1}, 0), newSecret([32]byte{2}, 0)
	key := flowKey{usIP, peerIP, 80, 1000}
	seen := map[uint32]bool{}
	for i := range uint16(1000) {
		k := key
		k.RPort = i
		seen[a.isn(k, 0)] = true
		seen[b.isn(k, 0)] = true
	}
	if len(seen) < 1990 {
		t.Errorf("%d different numbers for 2000 flows", len(seen))
	}
	for _, d := range []int64{4000, second, 3600 * second} {
		if got, want := a.isn(key, d)-a.isn(key, 0), uint32(d/4000); got != want {
			t.Errorf("moved on by %d in %d ns, want %d", got, d, want)
		}
	}
}
