package sockets

import (
	"net/netip"
	"testing"

	"xdpd/umem"
)

// timeWaiting leaves the connection of p, which s is on to, in TIME-WAIT, with or without its owner.
func timeWaiting(k *kit, p *tpeer, s Handle, owned bool) {
	k.t.Helper()
	c := conn{tpeer: p, h: s}
	c.k = k
	k.h.TCPShutdown(s, k.now)
	c.got()
	c.send(fin|ack, nil)
	c.got()
	c.wantState(tcpTimeWait)
	if !owned {
		k.h.Close(s, k.now)
		k.pump()
	}
	k.h.EndTurn()
}

// TestHandTimeWaitAgain: a SYN takes the place of a connection in TIME-WAIT whichever queue it comes in on, and whichever
// Host has the listener.
func TestHandTimeWaitAgain(t *testing.T) {
	for _, spread := range []bool{false, true} {
		for _, owned := range []bool{false, true} {
			for _, other := range []bool{false, true} {
				g := newGroup(t)
				l, _ := g.a.h.TCPListen(0, svc)
				had, accepts := g.a, l // who has the connections
				if spread {
					g.a.h.TCPSpread(l, func(netip.AddrPort) int { return 1 })
					had = g.b
					accepts, _ = g.b.h.TCPListenBehind(0, svc)
				}
				p := newPeer(g.a, svc, 1000)
				synSent(g.a, p, optMSS(1460))
				p.ackAll()
				g.carry()
				s, errno := had.h.TCPAccept(accepts)
				if errno != 0 {
					t.Fatal(errno)
				}
				p.k = had
				timeWaiting(had, p, s, owned)
				before := p.ack
				p.k = g.a
				if other {
					p.k = g.b
				}
				p.seq += 100_000
				syn := p.seg(syn, nil)
				syn.opts = optMSS(1460)
				p.inject(syn)
				g.carry()
				p.seq++
				p.k = g.a // the listener's Host
				got := p.got()
				if len(got) != 1 || got[0].flags != 0x12 || !seqLT(before+0xfffe, got[0].seq) {
					t.Errorf("spread %v, owned %v, on the other queue %v: the SYN is answered with %+v", spread, owned, other, got)
					continue
				}
				p.irs, p.ack = got[0].seq, got[0].seq+1
				p.ackAll()
				g.carry()
				if _, errno := had.h.TCPAccept(accepts); errno != 0 {
					t.Errorf("spread %v, owned %v, on the other queue %v: accept: %v", spread, owned, other, errno)
				}
			}
		}
	}
}

// TestHandGone: a SYN that another queue hands over finds its connection gone, and its Host without a listener: it goes on
// to the one that has it, and is not refused.
func TestHandGone(t *testing.T) {
	g, _, behind := spreadTo(t)
	p := newPeer(g.a, svc, 1000)
	synSent(g.a, p, optMSS(1460))
	p.ackAll()
	g.carry()
	s, errno := g.b.h.TCPAccept(behind)
	if errno != 0 {
		t.Fatal(errno)
	}
	g.b.h.TCPAbort(s, g.b.now) // the group hears of it at the end of the turn
	p.seq += 1000
	p.send(syn, nil)
	g.carry()
	if got := p.one(); got.flags != syn|ack {
		t.Errorf("the SYN is answered with %+v", got)
	}
	p.k = g.b
	if got := p.one(); got.flags&rst == 0 { // the abort's own
		t.Errorf("the other queue sent %+v", got)
	}
}

// TestSpreadFrontCloses: what overtakes its handshake on the way to the Host behind is no reason for a reset, when nobody
// listens any more by whose way it could go.
func TestSpreadFrontCloses(t *testing.T) {
	g, front, behind := spreadTo(t)
	p := newPeer(g.a, svc, 1000)
	synSent(g.a, p, optMSS(1460))
	p.ackAll()
	under := g.a.h.TakeHanded(nil)
	g.a.h.Close(front, g.a.now)
	p.k = g.b
	g.b.wantDrops(func() { p.inject(p.seg(ack|psh, []byte("x"))) }, map[Drop]uint64{HandoverEarly: 1})
	p.none()
	for _, f := range g.b.h.InputHanded(&under[0], g.b.now) {
		g.a.h.FrameBack(f)
	}
	s, errno := g.b.h.TCPAccept(behind)
	if errno != 0 {
		t.Fatal(errno)
	}
	p.send(ack|psh, []byte("x"))
	conn{tpeer: p, h: s}.wantRead([]byte("x"))
}

// TestHandCookie: a SYN cookie of one Host opens the connection on any that listens on the same port, in whatever order they
// came to it; and on none after the last of them closed. No cookie takes room in the directory.
func TestHandCookie(t *testing.T) {
	g := newGroup(t, func(c *Config) { c.Backlog = 1 })
	other, _ := g.b.h.TCPListen(0, 81) // so that the listeners have different numbers
	la, _ := g.a.h.TCPListen(0, svc)
	lb, _ := g.b.h.TCPListen(0, svc)
	cookie := func(sport uint16) *tpeer {
		p := newPeer(g.a, svc, sport)
		synSent(g.a, p, optMSS(1460))
		p.k = g.b
		return p
	}
	newPeer(g.a, svc, 9).send(syn, nil) // takes the only place
	g.a.sent()
	p := cookie(1000)
	for i := range uint16(500) {
		cookie(2000 + i)
	}
	if n := g.dir.flows(); n != 1 || g.a.h.counters.Stats[TCPCookies] != 501 {
		t.Errorf("%d flows in the directory after %d cookies", n, g.a.h.counters.Stats[TCPCookies])
	}
	p.ackAll()
	g.carry()
	p.none()
	if _, errno := g.b.h.TCPAccept(lb); errno != 0 {
		t.Errorf("accept: %v", errno)
	}
	late := cookie(1001)
	for _, l := range []Handle{la, lb, other} {
		g.a.h.Close(l, g.a.now)
		g.b.h.Close(l, g.b.now)
	}
	g.a.sent()
	lb, _ = g.b.h.TCPListen(0, svc)
	late.inject(late.seg(ack|psh, []byte("x")))
	if _, errno := g.b.h.TCPAccept(lb); errno != EAGAIN {
		t.Errorf("a cookie of listeners that closed: %v", errno)
	}
	g.b.sent()
}

// TestSpreadNonsense: a choice of a Host that there is not keeps the connection.
func TestSpreadNonsense(t *testing.T) {
	for _, to := range []int{-1, 2, 63, 64, 1 << 40} {
		g := newGroup(t)
		l, _ := g.a.h.TCPListen(0, svc)
		g.a.h.TCPSpread(l, func(netip.AddrPort) int { return to })
		dial(g.a, svc, 1000)
		if n := len(g.a.h.TakeHanded(nil)); n != 0 {
			t.Errorf("%d: %d packets go over", to, n)
		}
		if _, errno := g.a.h.TCPAccept(l); errno != 0 {
			t.Errorf("%d: accept: %v", to, errno)
		}
	}
	g, _, behind := spreadTo(t)
	if errno := g.b.h.TCPSpread(behind, func(netip.AddrPort) int { return 0 }); errno != EINVAL {
		t.Errorf("what was passed on is passed on: %v", errno)
	}
}

// TestSpreadFlood: peers that complete their handshakes take no more records behind a listener that does not accept than
// its backlog. Those of whom nothing is left are told.
func TestSpreadFlood(t *testing.T) {
	const backlog = 4
	g, _, behind := spreadTo(t, func(c *Config) { c.Backlog = backlog })
	refused := 0
	for i := range uint16(50) {
		p := newPeer(g.a, svc, 1000+i)
		synSent(g.a, p, optMSS(1460))
		p.ackAll()
		g.carry()
		g.a.sent()
		p.k = g.b
		for _, s := range p.got() {
			if s.flags&rst != 0 && s.seq == p.ack {
				refused++
			}
		}
	}
	if n := g.b.h.tcp.half.n; n != backlog {
		t.Errorf("%d handshakes wait, the limit is %d", n, backlog)
	}
	if want := 50 - 2*backlog; refused != want || g.b.h.counters.Drops[TCPBacklogFull] != uint64(want+backlog) || g.dir.flows() != 2*backlog {
		t.Errorf("%d resets, %d counted, %d flows; want %d resets", refused, g.b.h.counters.Drops[TCPBacklogFull], g.dir.flows(), want)
	}
	for range backlog {
		if _, errno := g.b.h.TCPAccept(behind); errno != 0 {
			t.Fatal(errno)
		}
	}
}

// TestHandUDPTwice: of two Hosts that are connected to the same peer from the same port either gets what comes in on a
// third, and the other one's ICMP errors; when one closes, the other gets it.
func TestHandUDPTwice(t *testing.T) {
	g := newGroup(t)
	connect := func(k *kit) Handle {
		s := k.bind(0, 53)
		if errno := k.h.UDPConnect(s, peerIP, 1000); errno != 0 {
			t.Fatal(errno)
		}
		return s
	}
	k := flowKey{Local: usIP, Remote: peerIP, LPort: 53, RPort: 1000}
	a, b := connect(g.a), connect(g.b)
	if to, ok := g.a.h.udpElsewhere(k); ok && to != 1 {
		t.Errorf("from the first it goes to %d", to)
	}
	g.b.h.Close(b, g.b.now)
	g.b.inject(udpFrame(1000, 53, []byte("x")))
	if g.carry() != 1 {
		t.Fatal("with one closed, the other one's datagram was not handed over")
	}
	g.a.wantRecv(a, []byte("x"))
	if n := len(g.b.sent()); n != 0 {
		t.Errorf("%d answers", n)
	}
}

// TestHandListeners: a listener on the address goes before one on all addresses, whichever queue a SYN comes in on, and a
// cookie comes back to the listener that sent it.
func TestHandListeners(t *testing.T) {
	for _, cookies := range []bool{false, true} {
		g := newGroup(t, func(c *Config) { c.Backlog = 2 })
		all, _ := g.b.h.TCPListen(0, svc)
		own, errno := g.a.h.TCPListen(usIP, svc)
		if errno != 0 {
			t.Fatal(errno)
		}
		for i := range uint16(2) {
			if cookies {
				newPeer(g.a, svc, 8+i).send(syn, nil)
			}
		}
		g.a.sent()
		for i, at := range []*kit{g.a, g.b} {
			p := newPeer(at, svc, 1000+uint16(i))
			p.send(syn, nil)
			g.carry()
			sa := g.a.one().tcp
			p.irs, p.ack = sa.seq, sa.seq+1
			p.k = g.b
			p.ackAll()
			g.carry()
			p.none()
			if _, errno := g.a.h.TCPAccept(own); errno != 0 {
				t.Errorf("cookies %v, in on %d: the listener on the address: %v", cookies, i, errno)
			}
			if _, errno := g.b.h.TCPAccept(all); errno != EAGAIN {
				t.Errorf("cookies %v, in on %d: the listener on all: %v", cookies, i, errno)
			}
		}
	}
}

// TestHandCounts: every packet for another Host is counted once, as taken or as dropped on the way, wherever it was.
func TestHandCounts(t *testing.T) {
	g := newGroup(t)
	s := g.b.bind(0, 53)
	for range handedMax + 10 {
		g.a.inject(udpFrame(1000, 53, []byte("x")))
		if len(g.a.h.handed) == 300 { // the rest of the turn finds no room
			for len(g.a.h.handed) < handedMax {
				g.a.h.handed = append(g.a.h.handed, Handed{})
			}
		}
	}
	g.a.h.handed = g.a.h.handed[:300]
	under := g.a.h.TakeHanded(nil)
	g.a.h.HandBack(&under[0])
	var taken []umem.Frame
	for i := range under[1:] {
		if i == 100 {
			for f := g.b.pool.Get(umem.Held); f != umem.None; f = g.b.pool.Get(umem.Held) {
				taken = append(taken, f)
			}
		}
		for _, f := range g.b.h.InputHanded(&under[1+i], g.b.now) {
			g.a.h.FrameBack(f)
		}
	}
	g.b.pool.PutN(taken, umem.Held)
	a, b := &g.a.h.counters, &g.b.h.counters
	over, in, full, none := a.Stats[HandedOver], b.Stats[HandedIn], a.Drops[HandoverFull], b.Drops[HandoverNoFrame]
	if over != handedMax+10 || in != 100 || full != handedMax+10-300+1 || none != 199 || over != in+full+none {
		t.Errorf("%d handed over: %d taken, %d and %d dropped", over, in, full, none)
	}
	if got := g.b.h.udp.get(s).datagrams; got != 100 {
		t.Errorf("%d datagrams", got)
	}
}
