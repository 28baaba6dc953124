package sockets

import (
	"testing"
)

// Peers that keep what they cannot keep by silence: each of their segments is one that an honest peer might send.

// TestTCPOrphanShutWindow: a peer that took its window back over what is in flight and says so again and again holds a
// connection without an owner no longer than one that is silent.
func TestTCPOrphanShutWindow(t *testing.T) {
	for _, data := range [][]byte{nil, pattern(5000)} {
		k, c := established(t)
		if data != nil {
			c.write(data)
			c.got()
		}
		k.h.Close(c.h, k.now)
		c.sent()
		c.wnd = 0
		var last tcpSeg
		for range 20 {
			c.ack = c.irs + 1
			c.ackAll()
			k.sleep(60 * second)
			for _, last = range c.got() {
				if last.flags&rst != 0 {
					break
				}
			}
			if c.gone() {
				break
			}
		}
		if data != nil && last.flags&rst == 0 {
			t.Error("the peer, which is there, is not told")
		}
		if _, _, tx, _ := k.h.Held(); !c.gone() || tx != 0 {
			t.Errorf("with %d bytes: gone %v after 20 minutes, %d frames held", len(data), c.gone(), tx)
		}
	}
}

// TestTCPOrphanFlippedWindow: nor does one that opens its window by a byte and shuts it again.
func TestTCPOrphanFlippedWindow(t *testing.T) {
	for _, wnd := range []uint16{0, 1} {
		k, c := established(t)
		c.wnd = 0
		c.ackAll()
		c.write(pattern(5000))
		c.got()
		k.h.Close(c.h, k.now)
		c.got()
		for range 20 * 600 {
			c.wnd = wnd - c.wnd
			c.ackAll()
			k.sleep(100 * ms)
			c.sent() // what comes is not acknowledged
		}
		if _, _, tx, _ := k.h.Held(); !c.gone() || tx != 0 {
			t.Errorf("window 0 to %d: gone %v after 20 minutes, %d frames held", wnd, c.gone(), tx)
		}
	}
}

// TestTCPOrphanWindowOpens: one that opens it in earnest gets the data at once, and again in time, however long it
// was asked before.
func TestTCPOrphanWindowOpens(t *testing.T) {
	k, c := established(t)
	c.wnd = 0
	c.ackAll()
	c.write(pattern(5000))
	c.got()
	k.h.Close(c.h, k.now)
	for range 20 {
		k.sleep(second)
		c.got()
		c.ackAll()
	}
	if c.tcb().probes < 5 {
		t.Fatalf("%d probes", c.tcb().probes)
	}
	c.wnd = 65535
	c.ackAll()
	if n := len(c.got()); n != 4 {
		t.Errorf("%d segments, want 4", n)
	}
	k.sleep(2 * second)
	if n := len(c.got()); n == 0 {
		t.Error("what was lost waits for the time of the next probe")
	}
	c.ackAll()
	c.send(fin|ack, nil)
	c.got()
}

// TestTCPPressureShutWindow: with no frame left for anybody, those who took their windows back over what is in flight go
// as soon as those who are probed, whatever they say.
func TestTCPPressureShutWindow(t *testing.T) {
	for _, flip := range []uint16{0, 1} {
		k := newKit(t)
		l, _ := k.h.TCPListen(0, svc)
		var peers []*tpeer
		for n := 1; n > 0; {
			p := dial(k, svc, uint16(1000+len(peers)))
			s, err := k.h.TCPAccept(l)
			if err != 0 {
				t.Fatal(err)
			}
			n, _ = k.h.TCPWrite(s, pattern(128<<10), k.now)
			k.sent()
			p.wnd = 0
			p.ackAll()
			peers = append(peers, p)
		}
		for range 100 {
			for _, p := range peers {
				p.wnd = flip - p.wnd
				p.ackAll()
			}
			k.sleep(100 * ms)
			k.sent()
		}
		if n := k.h.counters.Stats[TCPPressure]; n == 0 || k.h.pressed() {
			t.Errorf("windows of 0 and %d: after 10 s %d of %d peers are gone, %d of %d frames held", flip, n, len(peers), k.h.txUsed, k.h.txLimit)
		}
	}
}
