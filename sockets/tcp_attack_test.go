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
		c.ack, c.wnd = c.irs+1, 0
		for range 20 {
			c.ackAll()
			k.sleep(60 * second)
			c.sent()
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
