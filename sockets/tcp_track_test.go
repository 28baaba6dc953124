package sockets

import (
	"testing"

	"xdpd/proto"
)

// gone takes what PopGone tells: how many connections of our port ended.
func gone(k *kit, port uint16) (n int) {
	k.t.Helper()
	for {
		local, p, ok := k.h.PopGone()
		if !ok {
			return n
		}
		if local != usIP || p != port {
			k.t.Errorf("PopGone told of %v:%d", local, p)
		}
		n++
	}
}

// TestTCPTrack: the end of a connection is told when nothing is left of it, once, whoever closes it and how.
func TestTCPTrack(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(k *kit, c conn)
		wait int64 // how long something is left
	}{
		{"the peer closes first", func(k *kit, c conn) {
			c.send(fin|ack, nil)
			k.h.Close(c.h, k.now)
			c.got()
			c.ackAll()
		}, 0},
		{"we close first", func(k *kit, c conn) {
			k.h.Close(c.h, k.now)
			c.got()
			c.ackAll()
			c.send(fin|ack, nil)
			c.got()
		}, 60 * second},
		{"we close first, late", func(k *kit, c conn) {
			k.h.TCPShutdown(c.h, k.now)
			c.got()
			c.ackAll()
			c.send(fin|ack, nil)
			c.got()
			k.h.Close(c.h, k.now)
		}, 60 * second},
		{"a reset by the peer", func(k *kit, c conn) { c.reset() }, 0},
		{"a reset by us", func(k *kit, c conn) {
			k.h.TCPAbort(c.h, k.now)
			c.got()
		}, 0},
		{"a peer that stays in FIN-WAIT-2", func(k *kit, c conn) {
			k.h.Close(c.h, k.now)
			c.got()
			c.ackAll()
		}, 60 * second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			k, c := established(t)
			if err := k.h.TCPTrack(c.h); err != 0 {
				t.Fatal(err)
			}
			k.h.TCPTrack(c.h) // twice is once
			if n := gone(k, svc); n != 0 {
				t.Fatal("the end was told at the beginning")
			}
			tc.end(k, c)
			if tc.wait > 0 {
				k.sleep(tc.wait - second)
				if n := gone(k, svc); n != 0 {
					t.Fatal("the end was told while something was left")
				}
				k.sleep(2 * second)
			}
			if n := gone(k, svc); n != 1 {
				t.Errorf("the end was told %d times", n)
			}
			k.h.Close(c.h, k.now)
			k.sleep(100 * second)
			if n := gone(k, svc); n != 0 {
				t.Error("and again")
			}
		})
	}
	t.Run("not tracked", func(t *testing.T) {
		k, c := established(t)
		k.h.TCPAbort(c.h, k.now)
		c.got()
		if n := gone(k, svc); n != 0 {
			t.Error("told of a connection that nobody asked about")
		}
		if err := k.h.TCPTrack(c.h); err != EBADF {
			t.Errorf("TCPTrack of a closed handle: %v", err)
		}
	})
	t.Run("tracked too late", func(t *testing.T) {
		k, c := established(t)
		c.reset()
		if err := k.h.TCPTrack(c.h); err != 0 {
			t.Error(err)
		}
		k.h.Close(c.h, k.now)
		if n := gone(k, svc); n != 1 {
			t.Errorf("the end was told %d times", n)
		}
	})
	t.Run("a port used again", func(t *testing.T) {
		k, c := established(t)
		k.h.TCPTrack(c.h)
		k.h.Close(c.h, k.now)
		c.got()
		c.ackAll()
		c.send(fin|ack, nil)
		c.got()
		again := newPeer(k, svc, c.sport)
		again.seq = c.seq + 100_000
		synSent(k, again, concat(optMSS(1460), optWScale(0)))
		if n := gone(k, svc); n != 1 {
			t.Errorf("the end was told %d times when a new connection took the place in TIME-WAIT", n)
		}
	})
}

// TestTCPExpect has two siblings, one that dials and one that the answer comes to.
func TestTCPExpect(t *testing.T) {
	const rport = 7000
	start := func(t *testing.T) (dialler, other *kit, d, o Handle, syn tcpSeg) {
		t.Helper()
		g := newGroup(t)
		dialler, other = g.a, g.b
		other.sleep(3 * ms) // its clock is a little ahead, as clocks of others are
		at := dialler.now
		o, err := other.h.TCPExpect(0, 0, peerIP, rport, at, other.now)
		if err != 0 {
			t.Fatalf("TCPExpect: %v", err)
		}
		local, remote := other.h.TCPAddr(o)
		if local.Addr() != usIP.Netip() || remote != port(peerIP, rport) {
			t.Fatalf("TCPExpect for %v-%v", local, remote)
		}
		if d, err = dialler.h.TCPExpect(usIP, local.Port(), peerIP, rport, at, at); err != 0 {
			t.Fatalf("TCPExpect with a port: %v", err)
		}
		dialler.none()
		if err := dialler.h.TCPLaunch(d, at); err != 0 {
			t.Fatalf("TCPLaunch: %v", err)
		}
		if err := dialler.h.TCPLaunch(d, at); err != EINVAL {
			t.Fatalf("TCPLaunch again: %v", err)
		}
		return dialler, other, d, o, dialler.one().tcp
	}
	synack := func(s tcpSeg, flags uint8, acked uint32) []byte {
		return tcpSeg{sport: rport, dport: s.sport, seq: 9000, ack: acked, flags: flags, wnd: 1000, opts: optMSS(1460)}.frame()
	}

	t.Run("connects", func(t *testing.T) {
		dialler, other, d, o, s := start(t)
		other.sleep(500 * ms)
		if got := other.sent(); len(got) != 0 {
			t.Fatalf("the one that expects sent %d frames", len(got))
		}
		other.inject(synack(s, syn|ack, s.seq+1))
		a := other.one().tcp
		if a.flags != ack || a.seq != s.seq+1 || a.ack != 9001 {
			t.Errorf("the answer to the SYN-ACK: %+v", a)
		}
		if !other.h.TCPConnected(o) || other.h.Ready(o)&Out == 0 {
			t.Error("not connected")
		}
		if rtt := info(t, other, o).RTT; rtt < 490*ms || rtt > 510*ms {
			t.Errorf("the round trip took %d ns, counted from the SYN on", rtt)
		}
		dialler.h.TCPAbort(d, dialler.now)
		if got := dialler.sent(); len(got) != 0 {
			t.Errorf("giving up the other one sent %d frames", len(got))
		}
		other.h.TCPAbort(o, other.now)
		other.sent()
	})
	t.Run("is refused", func(t *testing.T) {
		_, other, _, o, s := start(t)
		other.inject(synack(s, rst|ack, s.seq+1))
		if err := other.h.TCPError(o); err != ECONNREFUSED || other.h.TCPConnected(o) {
			t.Errorf("error %v, want %v", err, ECONNREFUSED)
		}
	})
	t.Run("times out without a word", func(t *testing.T) {
		_, other, _, o, _ := start(t)
		other.sleep(300 * second)
		if got := other.sent(); len(got) != 0 {
			t.Errorf("%d frames were sent", len(got))
		}
		if err := other.h.TCPError(o); err != ETIMEDOUT {
			t.Errorf("error %v, want %v", err, ETIMEDOUT)
		}
		if n := other.h.counters.Stats[TCPRetransmits]; n != 0 {
			t.Errorf("%d retransmissions were counted", n)
		}
	})
	t.Run("in use", func(t *testing.T) {
		dialler, _, d, _, s := start(t)
		if _, err := dialler.h.TCPExpect(0, s.sport, peerIP, rport, dialler.now, dialler.now); err != EADDRINUSE {
			t.Errorf("TCPExpect of a flow that is there: %v, want %v", err, EADDRINUSE)
		}
		if _, err := dialler.h.TCPExpect(proto.Addr(1), 0, peerIP, rport, dialler.now, dialler.now); err != EADDRNOTAVAIL {
			t.Errorf("TCPExpect from an address of others: %v, want %v", err, EADDRNOTAVAIL)
		}
		dialler.h.TCPAbort(d, dialler.now)
	})
}

func info(t *testing.T, k *kit, s Handle) TCPInfo {
	t.Helper()
	i, err := k.h.TCPStat(s)
	if err != 0 {
		t.Fatal(err)
	}
	return i
}
