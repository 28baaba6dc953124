package sockets

import "testing"

// sackConn is an established connection with SACK and without timestamps.
func sackConn(t *testing.T) (*kit, conn) {
	k := newKit(t)
	l, _ := k.h.TCPListen(0, svc)
	c := conn{tpeer: dialOpts(k, svc, 1000, concat(optMSS(1460), optWScale(0), []byte{1, 1, 4, 2})), l: l}
	c.h, _ = k.h.TCPAccept(l)
	c.none()
	return k, c
}

// sacked acknowledges n segments of 1460 bytes and SACKs those from a to b, all counted from the first byte.
func (c conn) sacked(n, a, b uint32) {
	s, first := c.seg(ack, nil), c.irs+1
	s.ack, s.opts = first+n*1460, concat([]byte{1, 1, 5, 10}, be32(first+a*1460), be32(first+b*1460))
	c.inject(s)
}

// TestDeliveredOnce: what was SACKed and then acknowledged was delivered once (RFC 6937bis).
func TestDeliveredOnce(t *testing.T) {
	k, c := sackConn(t)
	c.write(pattern(10 * 1460))
	c.got()
	k.now += 20 * ms // without a loss probe
	c.sacked(0, 1, 4)
	x := k.h.activeOf(c.tcb())
	if x.phase != phaseRecovery || x.prrDelivered != 3*1460 {
		t.Fatalf("%s, %d bytes delivered", phaseNames[x.phase], x.prrDelivered)
	}
	c.got()
	c.sacked(4, 5, 6) // the first segment, and a new hole
	if x.phase != phaseRecovery || x.prrDelivered != 5*1460 {
		t.Errorf("%s, %d bytes delivered, want 5 segments", phaseNames[x.phase], x.prrDelivered)
	}
	c.reset()
	k.sent()
}

// TestLostWithTheDevice: a segment that counts as lost before the device has sent it goes again as soon as it may be
// touched, not with the retransmission timer.
func TestLostWithTheDevice(t *testing.T) {
	k, c := sackConn(t)
	k.late = true
	c.write(pattern(5 * 1460))
	c.got()
	first := k.device[0]
	k.device = append(k.device[1:], first)
	k.complete(4)
	k.now += 20 * ms // without a loss probe
	c.sacked(0, 1, 5)
	k.sleep(20 * ms)
	if got := c.got(); len(got) != 0 {
		t.Fatalf("%d segments sent while the device has the first", len(got))
	}
	k.late = false
	k.complete(len(k.device))
	k.sleep(3 * ms)
	wantSeg(t, c.one(), ack, c.irs+1, c.seq, pattern(1460))
	c.reset()
	k.sent()
}

// TestCutSegmentIsMeasured: what is left of a segment that was cut was sent when the whole was.
func TestCutSegmentIsMeasured(t *testing.T) {
	k, c := established(t)
	c.write(pattern(2 * 1460))
	c.got()
	tcb := c.tcb()
	tcb.mss = 1000 // as if the path had become smaller
	k.sleep(250 * ms)
	wantSeg(t, c.one(), ack, c.irs+1, c.seq, pattern(1000))
	tcb.srtt = 0
	c.ackAll() // all had arrived
	if rtt := tcb.srtt; rtt != 250_000 {
		t.Errorf("a round trip of %d µs, want 250 ms", rtt)
	}
	c.none()
}

// TestTimeoutBehindNewData: on a timeout the first segment goes again although what was sent just before still fills the
// window of one segment (RFC 8985 6.3 lets it count as in flight).
func TestTimeoutBehindNewData(t *testing.T) {
	k, c := sackConn(t)
	c.write(pattern(1460))
	c.got()
	k.sleep(100 * ms)
	c.ackAll() // a round trip for RACK
	first := c.ack
	c.write(pattern(1460))
	c.got()
	tcb := c.tcb()
	x := k.h.activeOf(tcb)
	for x.tlpNext {
		k.sleep(ms)
	}
	c.got() // the loss probe
	k.sleep(tcb.rtxAt - k.now - 20*ms)
	c.write(pattern(1460))
	if n := len(c.got()); n != 1 {
		t.Fatalf("%d segments of new data", n)
	}
	k.sleep(25 * ms)
	if x.phase != phaseLoss {
		t.Fatalf("no timeout: %s", phaseNames[x.phase])
	}
	wantSeg(t, c.one(), ack, first, c.seq, pattern(1460))
	c.ackAll()
	c.none()
}
