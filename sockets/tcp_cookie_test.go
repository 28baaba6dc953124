package sockets

import (
	"encoding/binary"
	"testing"
)

// cookieKit is a Host whose every SYN is answered with a cookie: its one half-open connection is somebody else's. A SYN
// comes again now and then, so that the listener goes on taking cookies.
func cookieKit(t *testing.T) (*kit, Handle) {
	k := newKit(t, func(c *Config) { c.Backlog = 1 })
	l, _ := k.h.TCPListen(0, svc)
	newPeer(k, svc, 9).send(syn, nil)
	k.sent()
	return k, l
}

// again makes sure that the listener has sent a cookie just now.
func cookieAgain(k *kit) {
	k.t.Helper()
	for _, port := range []uint16{9, 10} {
		n := k.h.counters.Stats[TCPCookies]
		newPeer(k, svc, port).send(syn, nil)
		k.sent()
		if k.h.counters.Stats[TCPCookies] > n {
			return
		}
	}
	k.t.Fatal("no cookie was sent")
}

// TestTCPCookieOptions: what a connection knows that was opened with a cookie.
func TestTCPCookieOptions(t *testing.T) {
	sackOpt := []byte{1, 1, 4, 2}
	for _, o := range []struct {
		opts             []byte
		flags            uint8
		ts, sack, ecn    bool
		mss, scale, mine uint8
	}{
		{opts: nil},
		{opts: sackOpt},
		{opts: optWScale(7)},
		{opts: optTS(77, 0), ts: true},
		{opts: concat(optTS(77, 0), sackOpt), ts: true, sack: true},
		{opts: concat(optTS(77, 0), optWScale(0)), ts: true, mine: tcpScale},
		{opts: concat(optTS(77, 0), optWScale(14)), ts: true, scale: 14, mine: tcpScale},
		{opts: concat(optTS(77, 0), sackOpt, optWScale(9)), flags: 0xc0, ts: true, sack: true, ecn: true, scale: 9, mine: tcpScale},
		{opts: concat(sackOpt, optWScale(9)), flags: 0xc0},
	} {
		k, l := cookieKit(t)
		p := newPeer(k, svc, 1000)
		clock := k.h.tsNow(flowKey{Local: usIP, Remote: peerIP, LPort: svc, RPort: 1000})
		s := p.seg(syn|o.flags, nil)
		s.opts = o.opts
		p.inject(s)
		p.seq++
		sa := k.one().tcp
		p.ack = sa.seq + 1
		if k.h.counters.Stats[TCPCookies] != 1 || k.h.tcp.half.n != 1 {
			t.Fatalf("%d cookies and %d half-open, want 1 and 1", k.h.counters.Stats[TCPCookies], k.h.tcp.half.n)
		}
		if o.ts {
			i := 0
			for ; i < len(sa.opts) && !(sa.opts[i] == 8 && sa.opts[i+1] == 10); i++ {
			}
			p.ts, p.tsval, p.tsecr = true, 78, binary.BigEndian.Uint32(sa.opts[i+2:])
			if d := clock - p.tsecr; d >= 128 {
				t.Errorf("%x: the cookie's timestamp is %d behind the clock", o.opts, int32(d))
			}
		}
		p.send(ack, []byte("hello"))
		h, err := k.h.TCPAccept(l)
		if err != 0 {
			t.Fatalf("%x: accept: %v", o.opts, err)
		}
		c := conn{tpeer: p, h: h, l: l}
		b := c.tcb()
		if b.tsOK != o.ts || b.sackOK != o.sack || b.ecnOK != o.ecn || b.sndScale != o.scale || b.rcvScale != o.mine {
			t.Errorf("%x: TS %v SACK %v ECN %v scale %d and %d; want %v %v %v %d %d", o.opts,
				b.tsOK, b.sackOK, b.ecnOK, b.sndScale, b.rcvScale, o.ts, o.sack, o.ecn, o.scale, o.mine)
		}
		if want := uint32(p.wnd) << o.scale; b.sndWnd != want {
			t.Errorf("%x: window %d, want %d", o.opts, b.sndWnd, want)
		}
		c.wantRead([]byte("hello"))
		c.write([]byte("world"))
		c.got()
		if p.ack != sa.seq+6 {
			t.Errorf("%x: what is sent does not begin behind the cookie", o.opts)
		}
	}
}

// TestTCPCookieMSS: a cookie keeps the largest of its steps that is not above the peer's.
func TestTCPCookieMSS(t *testing.T) {
	for _, m := range []struct{ peer, want uint16 }{
		{1, mssFloor}, {63, mssFloor}, {535, mssFloor}, {536, 536}, {1023, 536}, {1024, 1024}, {1219, 1024}, {1220, 1220},
		{1359, 1220}, {1360, 1360}, {1440, 1440}, {1459, 1440}, {1460, 1460}, {8959, 1460}, {9000, 1460}, {0, 536},
	} {
		k, l := cookieKit(t)
		p := newPeer(k, svc, 1000)
		opts := optMSS(m.peer)
		if m.peer == 0 {
			opts = nil
		}
		synSent(k, p, opts)
		p.ackAll()
		h, err := k.h.TCPAccept(l)
		if err != 0 {
			t.Fatal(err)
		}
		if got := (conn{tpeer: p, h: h}).tcb().mss; got != m.want {
			t.Errorf("MSS %d behind a cookie: %d, want %d", m.peer, got, m.want)
		}
	}
}

// TestTCPCookieExpiry: a cookie opens a connection for two units of time and never again, not even when the five bits
// that say when it was made come around.
func TestTCPCookieExpiry(t *testing.T) {
	k, l := cookieKit(t)
	k.now = (k.now/cookieUnitNS + 1) * cookieUnitNS // the beginning of a unit
	k.h.Tick(k.now)
	cookieAgain(k)
	p := newPeer(k, svc, 1000)
	synSent(k, p, optMSS(1460))
	made := k.now
	open := func(at int64) bool {
		k.sleep(made + at - k.now)
		k.sent()
		cookieAgain(k)
		p.inject(p.seg(ack, nil))
		h, err := k.h.TCPAccept(l)
		if err != 0 {
			k.sent()
			return false
		}
		k.h.TCPAbort(h, k.now)
		k.sent()
		return true
	}
	for _, at := range []int64{0, cookieUnitNS, 3*cookieUnitNS - 1} {
		if !open(at) {
			t.Errorf("a cookie of %d s was refused", at/second)
		}
	}
	for n := int64(3); n < 200; n++ {
		if open(n * cookieUnitNS) {
			t.Errorf("a cookie was good after %d s", n*cookieUnitNS/second)
		}
	}
}

// TestTCPCookieForged: nothing but the number itself, behind the right SYN and from the right flow, opens a connection.
func TestTCPCookieForged(t *testing.T) {
	k, l := cookieKit(t)
	p := newPeer(k, svc, 1000)
	synSent(k, p, optMSS(1460))
	try := func(what string, set func(*tcpSeg)) {
		s := p.seg(ack, nil)
		set(&s)
		k.inject(s.frame())
		k.sent()
		if _, err := k.h.TCPAccept(l); err != EAGAIN {
			t.Errorf("%s: accepted (%v)", what, err)
		}
	}
	for bit := range 32 {
		try("another number", func(s *tcpSeg) { s.ack ^= 1 << bit })
		try("behind another SYN", func(s *tcpSeg) { s.seq ^= 1 << bit })
	}
	try("from another port", func(s *tcpSeg) { s.sport++ })
	try("with SYN", func(s *tcpSeg) { s.flags |= syn })
	try("with RST", func(s *tcpSeg) { s.flags |= rst })
	p.ackAll()
	if _, err := k.h.TCPAccept(l); err != 0 {
		t.Errorf("the cookie itself: %v", err)
	}
}

// TestTCPHalfOpenLimits: a listener keeps as many half-open connections as its backlog, all together as many as there may
// be connections; what is beyond gets a cookie and takes nothing. Who goes makes room for others.
func TestTCPHalfOpenLimits(t *testing.T) {
	k := newKit(t, func(c *Config) { c.Backlog, c.MaxConns = 4, 6 })
	var l [2]Handle
	for n := range l {
		l[n], _ = k.h.TCPListen(0, svc+uint16(n))
	}
	want := func(a, b, cookies int) {
		t.Helper()
		k.sent()
		got := k.h.tcp.listeners
		if got[0].half != a || got[1].half != b || k.h.tcp.half.n != a+b || int(k.h.counters.Stats[TCPCookies]) != cookies {
			t.Fatalf("%d and %d half-open, together %d, %d cookies; want %d, %d and %d cookies", got[0].half, got[1].half,
				k.h.tcp.half.n, k.h.counters.Stats[TCPCookies], a, b, cookies)
		}
	}
	var peers []*tpeer
	for n := range uint16(5) {
		p := newPeer(k, svc, 1000+n)
		synSent(k, p, nil)
		peers = append(peers, p)
	}
	want(4, 0, 1)
	for n := range uint16(3) {
		newPeer(k, svc+1, 1000+n).send(syn, nil)
	}
	want(4, 2, 2)
	peers[0].reset() // room for one
	want(3, 2, 2)
	newPeer(k, svc+1, 2000).send(syn, nil)
	want(3, 3, 2)
	peers[1].ackAll() // half-open no more
	want(2, 3, 2)
	if err := k.h.Close(l[1], k.now); err != 0 {
		t.Fatal(err)
	}
	want(2, 0, 2)
	peers[4].ackAll() // the one with a cookie
	for range 2 {
		if _, err := k.h.TCPAccept(l[0]); err != 0 {
			t.Fatal(err)
		}
	}
	want(2, 0, 2)
	k.sleep(70 * second)
	want(0, 0, 2)
}

// TestTCPHalfOpenChallenges: one half-open connection that is sent nonsense does not use up the answers of all.
func TestTCPHalfOpenChallenges(t *testing.T) {
	k := newKit(t)
	k.h.TCPListen(0, svc)
	p := newPeer(k, svc, 1000)
	synSent(k, p, nil)
	for range 100 {
		s := p.seg(ack, nil)
		s.seq += 1 << 30
		p.inject(s)
	}
	if n := len(p.got()); n == 0 || n > halfAnswers {
		t.Errorf("%d answers to nonsense, want at most %d", n, halfAnswers)
	}
	p.ackAll()
	if k.h.tcp.conns != 1 {
		t.Error("the handshake could not be completed")
	}
	k.sent()
}

// TestTCPCookieEcho: a cookie is good only with the timestamp that it came with. Another one, which the peer had from the
// connection that the cookie opened, holds no options, though the number is right.
func TestTCPCookieEcho(t *testing.T) {
	k, l := cookieKit(t)
	p := newPeer(k, svc, 1000)
	sa := synSent(k, p, concat(optTS(77, 0), []byte{1, 1, 4, 2}, optWScale(9)))
	i := 0
	for ; i < len(sa.opts) && !(sa.opts[i] == 8 && sa.opts[i+1] == 10); i++ {
	}
	cookie := binary.BigEndian.Uint32(sa.opts[i+2:])
	p.ts, p.tsval = true, 78
	for other := range uint32(1 << cookieBits) {
		if p.tsecr = cookie + other; other != 0 {
			p.ackAll()
		}
	}
	if _, err := k.h.TCPAccept(l); err != EAGAIN {
		t.Fatalf("accept: %v; another timestamp was taken", err)
	}
	k.seen()
	p.tsecr = cookie
	p.ackAll()
	if _, err := k.h.TCPAccept(l); err != 0 {
		t.Fatalf("accept: %v", err)
	}
}

// TestTCPCookieThenHalfOpen: a SYN was answered with a cookie, and the same SYN again, when there was room, with a number
// of its own. The peer took the cookie. Its second segment without the first (here a FIN whose data is lost), and what it
// says to the second SYN-ACK, are no reason to reset it: its data comes again. What cannot be of a cookie is reset.
func TestTCPCookieThenHalfOpen(t *testing.T) {
	k, l := cookieKit(t)
	p := newPeer(k, svc, 1000)
	cookie := synSent(k, p, nil)
	other := newPeer(k, svc, 9)
	other.seq++
	other.reset() // room for one
	again := newPeer(k, svc, 1000)
	again.send(syn, nil)
	if sa := p.one(); sa.flags != syn|ack || sa.seq == cookie.seq || k.h.tcp.half.n != 1 {
		t.Fatalf("the SYN again: answer %+v and %d half-open, want a SYN-ACK with another number, and 1", sa, k.h.tcp.half.n)
	}
	late := p.seg(fin|ack, nil)
	late.seq += 5
	p.inject(late)
	late.flags, late.seq = ack, late.seq+1
	p.inject(late)
	p.none()
	old := late
	old.ack += 16 << 27 // as if the cookie were half an hour old
	p.inject(old)
	wantSeg(t, p.one(), rst, old.ack, 0, nil)
	p.send(ack, []byte("hello"))
	h, err := k.h.TCPAccept(l)
	if err != 0 {
		t.Fatalf("accept: %v", err)
	}
	c := conn{tpeer: p, h: h, l: l}
	c.wantRead([]byte("hello"))
	p.send(fin|ack, nil)
	c.wantEOF(0)
	c.write([]byte("world"))
	for _, s := range p.got() {
		if s.flags&rst != 0 {
			t.Errorf("reset: %+v", s)
		}
	}
	if p.ack != cookie.seq+6 {
		t.Error("what is sent does not begin behind the cookie")
	}
}

// TestTCPCookieOfClosedListener: a cookie is of the listener that sent it. The next one on the port resets who comes with
// it, whether it has sent cookies of its own meanwhile or not: what was reset must not be accepted a moment later.
func TestTCPCookieOfClosedListener(t *testing.T) {
	k, l := cookieKit(t)
	late := 0
	for sport := uint16(1000); sport < 1100; sport++ {
		p := newPeer(k, svc, sport)
		synSent(k, p, nil)
		k.h.Close(l, k.now)
		l, _ = k.h.TCPListen(0, svc)
		k.sent()
		p.ackAll()
		wantSeg(t, p.one(), rst, p.ack, 0, nil)
		newPeer(k, svc, 9).send(syn, nil)
		k.sent()
		cookieAgain(k)
		p.ackAll()
		late += len(p.got())
		if _, err := k.h.TCPAccept(l); err != EAGAIN {
			t.Fatalf("port %d: accept: %v", sport, err)
		}
	}
	if late < 70 { // by chance one in ten looks like a cookie
		t.Errorf("%d of 100 were reset", late)
	}
}
