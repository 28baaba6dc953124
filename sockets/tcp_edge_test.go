package sockets

import (
	"testing"

	"xdpd/umem"
)

// timedOut is a connection of which the peer has all the data but no ACK came: the engine has gone back to the start.
func timedOut(t *testing.T) (*kit, conn) {
	k, c := established(t)
	c.write(pattern(3000))
	if n := len(c.got()); n != 3 {
		t.Fatalf("%d segments, want 3", n)
	}
	k.sleep(250 * ms)
	wantSeg(t, c.one(), ack, c.irs+1, c.seq, pattern(3000)[:1460])
	return k, c
}

// TestTCPACKAfterTimeout: an ACK without data carries the next new sequence number, not that of what is sent again: to
// the peer that would be an old duplicate, whose ACK it need not read (RFC 9293 3.10.7.4).
func TestTCPACKAfterTimeout(t *testing.T) {
	k, c := timedOut(t)
	hole := c.seg(ack, pattern(10)) // answered at once
	hole.seq, hole.ack = c.seq+100, c.irs+1
	c.inject(hole)
	wantSeg(t, c.one(), ack, c.irs+1+3000, c.seq, nil)
	c.ackAll()
	c.none()
	k.sleep(second)
	c.none()
}

// TestTCPRSTAfterTimeout: so does a RST, which counts only with exactly the next number (RFC 5961 section 3).
func TestTCPRSTAfterTimeout(t *testing.T) {
	k, c := timedOut(t)
	if err := k.h.TCPAbort(c.h, k.now); err != 0 {
		t.Fatal(err)
	}
	wantSeg(t, c.one(), rst|ack, c.irs+1+3000, c.seq, nil)
}

// TestTCPWindowOfOldData: data that comes again carries an old sequence number; if it acknowledges something new, its
// window counts all the same, or the old window would be taken from the new edge on.
func TestTCPWindowOfOldData(t *testing.T) {
	k, c := established(t)
	c.send(ack, pattern(500))
	c.wnd = 4000
	c.ackAll()
	c.write(pattern(3000))
	c.got()
	again := c.seg(ack, pattern(600)) // 100 of them are new
	again.seq, again.wnd = c.seq-500, 1000
	c.inject(again)
	c.seq += 100
	c.write(pattern(5000))
	sent := 0
	for range 10 {
		for _, s := range c.got() {
			sent += len(s.data)
		}
		k.sleep(ms)
	}
	if sent > 1000 {
		t.Errorf("%d bytes sent into a window of 1000", sent)
	}
	c.wnd = 65535
	c.read()
	c.ackAll()
	c.got()
	c.ackAll()
}

// TestTCPDeafPeer: a peer that talks but never acknowledges is given up as a silent one is.
func TestTCPDeafPeer(t *testing.T) {
	k, c := established(t)
	c.write(pattern(100))
	deaf := c.ack
	for range 40 {
		c.send(ack, pattern(10))
		c.wantRead(pattern(10))
		k.sleep(60 * second)
		c.got()
		c.ack = deaf
		if k.h.Ready(c.h)&Err != 0 {
			c.wantEOF(ETIMEDOUT)
			return
		}
	}
	t.Errorf("after %d tries the connection is still %s", c.tcb().retries, tcpStateNames[c.tcb().state])
}

// TestTCPSplitLeavesReserve: to cut segments for small windows never takes the last frames, which the ACKs need that
// bring frames back.
func TestTCPSplitLeavesReserve(t *testing.T) {
	k := newKitOf(t, 48, 2048, func(c *Config) { c.KernelNeighbours, c.FillFrames = true, 24 })
	l, err := k.h.TCPListen(0, svc)
	if err != 0 {
		t.Fatal(err)
	}
	var cs []conn
	for i := range uint16(6) {
		c := conn{tpeer: newPeer(k, svc, 1000+i), l: l}
		c.wnd = 700 // half a segment
		synSent(k, c.tpeer, optMSS(1460))
		c.ackAll()
		if c.h, err = k.h.TCPAccept(l); err != 0 {
			t.Fatal(err)
		}
		cs = append(cs, c)
	}
	for full := false; !full; {
		full = true
		for _, c := range cs {
			n, _ := k.h.TCPWrite(c.h, pattern(1460), k.now)
			full = full && n == 0
		}
	}
	k.pump()
	k.out = nil
	if k.h.txUsed >= k.h.txLimit {
		t.Fatalf("%d of %d frames are held by connections: none is left for an ACK", k.h.txUsed, k.h.txLimit)
	}
	k.inject(cs[0].seg(ack, pattern(10)).frame())
	k.sleep(100 * ms)
	found := false
	for _, s := range k.seen() {
		found = found || s.tcp.dport == cs[0].sport && s.tcp.ack == cs[0].seq+10
	}
	if !found {
		t.Error("data was not acknowledged")
	}
	for _, c := range cs {
		k.h.TCPAbort(c.h, k.now)
	}
	k.h.Close(l, k.now)
	k.sent()
}

// TestTCPWindowTakenBack: a window that shrinks below what is in flight (RFC 9293 MUST-34; an ACK that came late looks
// the same) does not keep what was sent from being sent again: the peer may have it all, and only that makes it say so.
func TestTCPWindowTakenBack(t *testing.T) {
	for _, wnd := range []uint16{0, 1, 100, 999} {
		k, c := established(t)
		c.wnd = 3000
		c.ackAll()
		c.write(pattern(1000))
		if n := len(c.one().data); n != 1000 {
			t.Fatalf("%d bytes sent, want 1000", n)
		}
		late := c.seg(ack, nil)
		late.ack, late.wnd = c.irs+1, wnd
		c.inject(late)
		c.none()
		for range 20 { // longer than a peer without an answer is given
			c.inject(late)
			k.sleep(130 * second)
			if n := len(c.got()); n == 0 {
				t.Fatalf("nothing is sent again into a window of %d", wnd)
			}
			if wnd > 0 {
				break
			}
		}
		c.ackAll()
		k.sleep(200 * second)
		c.none()
		if k.h.Ready(c.h)&(Err|Hup) != 0 || c.tcb().sndBytes != 0 {
			t.Errorf("ready for %#x with %d bytes to send after all was acknowledged", k.h.Ready(c.h), c.tcb().sndBytes)
		}
	}
}

// TestTCPRSTWithoutFrames: a connection that is given up because it holds the frames that others need, or that its owner
// aborts then, tells its peer so, with a frame of its own: who waits for data that will never come sends nothing that a
// later RST could answer.
func TestTCPRSTWithoutFrames(t *testing.T) {
	for _, abort := range []bool{false, true} {
		k, c := established(t)
		c.wnd = 0
		c.ackAll()
		c.write(pattern(1000))
		k.sent()
		for f := k.h.allocTX(); f != umem.None; f = k.h.allocTX() {
			defer k.h.freeTX(f, umem.Held)
		}
		if abort {
			k.h.TCPAbort(c.h, k.now)
		} else {
			k.sleep(7 * second)
			c.wantEOF(ETIMEDOUT)
		}
		wantSeg(t, c.one(), rst|ack, c.irs+1, c.seq, nil)
	}
}
