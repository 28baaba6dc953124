package sockets

import (
	"net/netip"
	"testing"
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
