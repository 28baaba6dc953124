package sockets

import "testing"

// wantTW expects one record in TIME-WAIT and no connection, or neither.
func wantTW(k *kit, n int) {
	k.t.Helper()
	k.h.Flush(k.now)
	if k.h.tcp.tw.n != n || k.h.tcp.conns != 0 {
		k.t.Fatalf("%d in TIME-WAIT and %d connections, want %d and none", k.h.tcp.tw.n, k.h.tcp.conns, n)
	}
}

// TestTCPTimeWaitClose: TIME-WAIT does not depend on when the owner closes, nor on whether he read everything, and the
// peer's FIN is acknowledged before the connection becomes a small record.
func TestTCPTimeWaitClose(t *testing.T) {
	for _, flush := range []bool{false, true} {
		for _, data := range [][]byte{nil, []byte("unread")} {
			k, c := established(t)
			k.h.TCPShutdown(c.h, k.now)
			c.got()
			c.send(ack|fin, data)
			if flush {
				wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
			}
			c.wantState(tcpTimeWait)
			if err := k.h.Close(c.h, k.now); err != 0 {
				t.Fatal(err)
			}
			if !flush {
				wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
			}
			c.none()
			wantTW(k, 1)
		}
	}
}

// TestTCPTimeWaitLimit: past the limit the oldest one goes.
func TestTCPTimeWaitLimit(t *testing.T) {
	k := newKit(t, func(c *Config) { c.MaxConns = 3 })
	l, _ := k.h.TCPListen(0, svc)
	for n := range 5 {
		c := conn{tpeer: dial(k, svc, uint16(1000+n)), l: l}
		c.h, _ = k.h.TCPAccept(l)
		if n == 0 {
			k.h.TCPTrack(c.h)
		}
		k.h.Close(c.h, k.now)
		c.got()
		c.send(ack|fin, nil)
		c.got()
		wantTW(k, min(n+1, 3))
		k.now += ms
	}
	for n := range 5 {
		kind, _ := k.h.tcp.flows.get(flowKey{Local: usIP, Remote: peerIP, LPort: svc, RPort: uint16(1000 + n)})
		if want := n >= 2; (kind == demuxTW) != want {
			t.Errorf("connection %d in TIME-WAIT: %v, want %v", n, !want, want)
		}
	}
	if local, port, ok := k.h.PopGone(); !ok || local != usIP || port != svc {
		t.Errorf("PopGone = %v, %d, %v", local, port, ok)
	}
	if _, _, ok := k.h.PopGone(); ok {
		t.Error("PopGone gave the connection twice")
	}
}

// TestTCPTimeWaitNobodyListens: a SYN for which there is no listener cannot take the place of a connection in TIME-WAIT.
func TestTCPTimeWaitNobodyListens(t *testing.T) {
	for _, owned := range []bool{false, true} {
		k, c := established(t)
		k.h.TCPShutdown(c.h, k.now)
		c.got()
		c.send(ack|fin, nil)
		c.got()
		if !owned {
			k.h.Close(c.h, k.now)
			wantTW(k, 1)
		}
		k.h.Close(c.l, k.now)
		s := c.seg(syn, nil)
		s.seq += 100_000
		c.inject(s)
		wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
		if kind, _ := k.h.tcp.flows.get(flowKey{Local: usIP, Remote: peerIP, LPort: svc, RPort: 1000}); kind == 0 {
			t.Errorf("owned %v: a SYN to nobody ended TIME-WAIT", owned)
		}
	}
}

// TestTCPTimeWaitISN: a connection that takes the place of one in TIME-WAIT begins behind its sequence numbers, however
// fast those ran (RFC 9293 3.6.1).
func TestTCPTimeWaitISN(t *testing.T) {
	for _, owned := range []bool{false, true} {
		k, c := established(t)
		for range 200 { // 2 MB in no time
			c.write(pattern(10_000))
			c.got()
			c.ackAll()
			c.got()
		}
		k.h.TCPShutdown(c.h, k.now)
		c.got()
		c.send(ack|fin, nil)
		c.got()
		if !owned {
			k.h.Close(c.h, k.now)
			wantTW(k, 1)
		}
		k.now += second
		old := c.ack
		p := newPeer(k, svc, 1000)
		p.seq = c.seq + 1000
		if sa := synSent(k, p, optMSS(1460)); !seqLT(old, sa.seq) {
			t.Errorf("owned %v: ISN %d, want it behind %d", owned, sa.seq, old)
		}
	}
}

// TestTCPTimeWaitOwned: also with an owner the peer's FIN, sent again, makes TIME-WAIT begin anew.
func TestTCPTimeWaitOwned(t *testing.T) {
	k, c := established(t)
	k.h.TCPShutdown(c.h, k.now)
	c.got()
	c.send(fin|ack, nil)
	c.wantState(tcpTimeWait)
	c.got()
	again := c.seg(fin|ack, nil)
	again.seq--
	for range 2 {
		k.sleep(50 * second)
		c.inject(again)
		c.wantState(tcpTimeWait)
	}
}
