package sockets

import "testing"

// TestSendAfterTwoGiB looks at what was noted once and lies half the sequence space behind after so many bytes: it must
// not lie ahead then.
func TestSendAfterTwoGiB(t *testing.T) {
	k, c := established(t)
	c.write(pattern(1000))
	if len(c.got()) != 1 {
		t.Fatal("nothing was sent")
	}
	tcb := c.tcb()
	x := k.h.activeOf(tcb)
	old := tcb.sndUna - (1<<31 - 1500)
	x.partEnd, x.limitedSeq, x.rackRound, x.fack = old, old, old, old
	cwnd := tcb.cwnd
	for range 3 {
		c.ackAll()
		c.write(pattern(1000))
		if n := len(c.got()); n != 1 {
			t.Fatalf("%d segments, want one", n)
		}
	}
	if tcb.cwnd != cwnd {
		t.Errorf("a window of %d that nothing fills grew to %d", cwnd, tcb.cwnd)
	}
}

// TestSlowStartAfterTimeout: HyStart++ is for the first slow start; one whose end is known is as RFC 5681 says.
func TestSlowStartAfterTimeout(t *testing.T) {
	k, c := established(t)
	c.write(pattern(14600))
	c.got()
	tcb, una := c.tcb(), c.tcb().sndUna
	x := k.h.activeOf(tcb)
	x.hy.baseline = 1 // in conservative slow start
	k.sleep(second)
	if x.phase != phaseLoss || tcb.cwnd != 1460 {
		t.Fatalf("after a second: %s with a window of %d", phaseNames[x.phase], tcb.cwnd)
	}
	ssthresh := tcb.ssthresh
	for n := range uint32(9) {
		c.ack = una + 1460*(n+1)
		c.ackAll()
		c.got()
		if want := min(1460*(n+2), ssthresh); tcb.cwnd < want {
			t.Errorf("after %d segments: a window of %d, want %d", n+1, tcb.cwnd, want)
		}
	}
	if x.hy.rounds != 0 || tcb.ssthresh != ssthresh {
		t.Errorf("HyStart++ went on: ssthresh %d, was %d", tcb.ssthresh, ssthresh)
	}
}

// TestCubicApplicationLimited: time in which the application sends too little does not count (RFC 9438 4.2 and 5.8).
func TestCubicApplicationLimited(t *testing.T) {
	k, c := established(t)
	tcb := c.tcb()
	tcb.ssthresh = tcb.cwnd
	turn := func(n int) {
		c.write(pattern(n))
		for len(c.got()) > 0 {
			k.sleep(100 * ms)
			c.ackAll()
		}
	}
	turn(40000)
	before := tcb.cwnd
	for range 300 {
		turn(100)
	}
	if tcb.cwnd != before {
		t.Fatalf("a window of %d that nothing fills became %d", before, tcb.cwnd)
	}
	turn(40000)
	k.sleep(150 * ms) // less than the timeout, so the window stays
	turn(40000)
	if grown := tcb.cwnd - before; grown == 0 || grown > 2*1460 {
		t.Errorf("in two round trips the window of %d grew by %d", before, grown)
	}
}

// TestIdleOnce: a pause makes the window smaller once, however often the connection is looked at before it sends.
func TestIdleOnce(t *testing.T) {
	k, c := established(t)
	tcb := c.tcb()
	tcb.cwnd = 100 * 1460
	c.write(pattern(1460))
	c.got()
	c.wnd = 0
	c.ackAll()
	c.write(pattern(1460))
	c.none()
	k.sleep(150 * ms)
	c.none()
	k.sleep(150 * ms)
	c.got() // the window's probe
	for range 4 {
		c.ackAll()
		k.h.tcpMark(c.h.index(), tcb)
		c.none()
	}
	c.wnd = 65535
	c.ackAll()
	c.got()
	if tcb.cwnd != 50*1460 {
		t.Errorf("after one timeout's time without sending: a window of %d, want half of %d", tcb.cwnd, 100*1460)
	}
}

// TestSmallerSegmentsAfterTimeout: what is to be sent again in pieces needs room for one of them, not for all.
func TestSmallerSegmentsAfterTimeout(t *testing.T) {
	k, c := established(t)
	c.write(pattern(1460))
	c.got()
	k.sleep(100 * ms)
	tcb, x := c.tcb(), k.h.activeOf(c.tcb())
	c.write(pattern(100)) // recent enough to be on its way
	if len(c.got()) != 1 {
		t.Fatal("nothing was sent")
	}
	k.h.markLost(x, k.pool.Buf(tcb.sndHead))
	tcb.mss, tcb.cwnd = 500, tcb.pipe(x)+500
	k.h.tcpMark(c.h.index(), tcb)
	if got := c.got(); len(got) != 1 || len(got[0].data) != 500 || got[0].seq != tcb.sndUna {
		t.Errorf("%d segments were sent, want the first 500 bytes", len(got))
	}
	c.ack = c.irs + 1
	c.reset()
}

// TestRACKAfterLongPause: the clock of the frames wraps after 71 minutes; what was delivered before a pause of more than
// half of that is no later than what is sent behind it.
func TestRACKAfterLongPause(t *testing.T) {
	k := newKit(t)
	l, _ := k.h.TCPListen(0, svc)
	c := conn{tpeer: dialOpts(k, svc, 1000, concat(optMSS(1460), optWScale(0), []byte{1, 1, 4, 2})), l: l}
	c.h, _ = k.h.TCPAccept(l)
	c.write(pattern(1460))
	c.got()
	c.send(ack|psh, []byte("x")) // nobody reads it, so that the connection stays as it is
	k.sleep(40 * 60 * second)
	c.got()
	first := c.ack
	c.write(pattern(5 * 1460))
	if n := len(c.got()); n != 5 {
		t.Fatalf("%d segments, want 5", n)
	}
	k.now += ms / 2
	s := c.seg(ack, nil)
	s.ack, s.opts = first, concat([]byte{1, 1, 5, 10}, be32(first+1460), be32(first+2*1460))
	c.inject(s)
	c.got()
	if x := k.h.activeOf(c.tcb()); x.lost > 1460 {
		t.Errorf("%d bytes are lost, want those before what has arrived", x.lost)
	}
	c.read()
	c.reset()
}

// TestOvertaken: what three later segments have overtaken counts as lost; when it arrives within the same turn, before it
// could be sent again, the window is what it was.
func TestOvertaken(t *testing.T) {
	k := newKit(t)
	l, _ := k.h.TCPListen(0, svc)
	c := conn{tpeer: dialOpts(k, svc, 1000, concat(optMSS(1460), []byte{1, 1, 4, 2})), l: l}
	c.h, _ = k.h.TCPAccept(l)
	c.write(pattern(8760))
	c.got()
	tcb, end := c.tcb(), c.ack
	cwnd := tcb.cwnd
	k.now += 20 * ms // without a loss probe
	s := c.seg(ack, nil)
	s.ack = c.irs + 1
	s.opts = concat([]byte{1, 1, 5, 10}, be32(s.ack+1460), be32(end))
	c.inject(s)
	if x := k.h.activeOf(tcb); x.phase != phaseRecovery || tcb.ssthresh == ssthreshNone {
		t.Fatalf("phase %s: the first segment does not count as lost", phaseNames[x.phase])
	}
	c.ack = end
	c.inject(c.seg(ack, nil))
	c.none()
	if x := k.h.activeOf(tcb); x.phase != phaseOpen || tcb.cwnd < cwnd || tcb.ssthresh != ssthreshNone || !x.reordered {
		t.Errorf("phase %s, window %d of %d, ssthresh %d", phaseNames[x.phase], tcb.cwnd, cwnd, tcb.ssthresh)
	}
	if n := k.h.counters.Stats[TCPSpurious]; n != 1 {
		t.Errorf("%d reductions taken back", n)
	}
}
