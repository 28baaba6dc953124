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
