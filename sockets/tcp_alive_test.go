package sockets

import (
	"syscall"
	"testing"
)

// TestTCPKeepAliveLongInterval: a peer that answers every probe lives, also when the probes are further apart than the
// silence that brings the first.
func TestTCPKeepAliveLongInterval(t *testing.T) {
	k, c := established(t)
	if err := k.h.TCPSetKeepAlive(c.h, KeepAlive{Idle: 10 * second, Interval: 75 * second, Count: 3}, k.now); err != 0 {
		t.Fatal(err)
	}
	k.sleep(11 * second)
	for n := range 10 {
		wantSeg(t, c.one(), ack, c.ack-1, c.seq, nil)
		c.ackAll()
		c.none()
		if n < 9 {
			k.sleep(75 * second)
		}
	}
	c.wantState(tcpEstablished)
	for n := range 3 { // and one that stops answering does not
		k.sleep(75 * second)
		if n < 2 {
			wantSeg(t, c.one(), ack, c.ack-1, c.seq, nil)
		}
	}
	k.sleep(75 * second)
	c.wantEOF(ETIMEDOUT)
	c.got()
}

// TestTCPUserTimeoutOfDial: the user timeout of an open counts from the first SYN.
func TestTCPUserTimeoutOfDial(t *testing.T) {
	k := newKit(t)
	s, err := k.h.TCPDial(0, 0, peerIP, 80, k.now)
	if err != 0 {
		t.Fatal(err)
	}
	if err := k.h.TCPSetUserTimeout(s, 10*second); err != 0 {
		t.Fatal(err)
	}
	k.sleep(9 * second)
	if got := len(k.seen()); got != 4 { // at 0, 1, 3 and 7 s
		t.Errorf("%d SYNs in 9 s, want 4", got)
	}
	if err := k.h.TCPError(s); err != 0 {
		t.Errorf("after 9 s: %v", err)
	}
	k.sleep(2 * second)
	if err := k.h.TCPError(s); err != ETIMEDOUT {
		t.Errorf("after 11 s: %v, want ETIMEDOUT", err)
	}
}

// TestTCPOrphanGivenUp: data and FIN of a connection without an owner are sent again eight times, as Linux does, not
// fifteen: its frames are other connections'.
func TestTCPOrphanGivenUp(t *testing.T) {
	for _, data := range [][]byte{nil, pattern(5000)} {
		k, c := established(t)
		if data != nil {
			c.write(data)
		}
		k.h.Close(c.h, k.now)
		k.sleep(60 * second)
		if c.gone() {
			t.Fatal("given up within a minute")
		}
		k.sleep(250 * second)
		if _, _, tx, _ := k.h.Held(); !c.gone() || tx != 0 {
			t.Errorf("after five minutes: gone %v, %d frames held", c.gone(), tx)
		}
		k.sent()
	}
}

// TestTCPSettings: 255 different settings can be in use at a time, and any number one after the other.
func TestTCPSettings(t *testing.T) {
	k, c := established(t)
	idle := func(n int) KeepAlive { return KeepAlive{Idle: int64(n+1) * second, Interval: second, Count: 3} }
	for n := range 1000 {
		if err := k.h.TCPSetKeepAlive(c.h, idle(n), k.now); err != 0 {
			t.Fatalf("setting %d: %v", n, err)
		}
	}
	var conns []Handle
	for n := range 260 {
		dial(k, svc, uint16(2000+n))
		h, err := k.h.TCPAccept(c.l)
		if err != 0 {
			t.Fatal(err)
		}
		conns = append(conns, h)
		k.sent()
		want := Errno(0)
		if n >= 254 { // and c has one
			want = syscall.ENOBUFS
		}
		if err := k.h.TCPSetKeepAlive(h, idle(n), k.now); err != want {
			t.Errorf("setting %d in use: %v, want %v", n, err, want)
		}
	}
	for n, h := range conns[:254] {
		if got := k.h.tcp.settings[k.h.tcp.get(h).setting].KeepAlive; got != idle(n) {
			t.Errorf("connection %d has %v, want %v", n, got, idle(n))
		}
	}
	k.h.TCPAbort(conns[7], k.now)
	if err := k.h.TCPSetKeepAlive(conns[255], idle(255), k.now); err != 0 {
		t.Errorf("with room for one: %v", err)
	}
	for _, h := range conns {
		k.h.TCPAbort(h, k.now)
	}
	k.sent()
}

// TestTCPUserTimeoutLongest: the longest user timeout is none that is over at once.
func TestTCPUserTimeoutLongest(t *testing.T) {
	k, c := established(t)
	const longest = (1<<31 - 1) * ms
	for _, ns := range []int64{longest + 1, longest + ms, 1 << 62} {
		if err := k.h.TCPSetUserTimeout(c.h, ns); err != EINVAL {
			t.Errorf("user timeout of %d ns: %v, want EINVAL", ns, err)
		}
	}
	if err := k.h.TCPSetUserTimeout(c.h, longest); err != 0 {
		t.Fatal(err)
	}
	c.write(pattern(100))
	c.got()
	k.sleep(60 * second)
	if n := c.tcb().retransmits; n < 5 || n > 10 {
		t.Errorf("%d retransmissions in a minute", n)
	}
	c.reset()
}

// TestTCPUserTimeoutMeasures: a user timeout shorter than the timer of the SYN does not count into the round trip.
func TestTCPUserTimeoutMeasures(t *testing.T) {
	k := newKit(t)
	s, _ := k.h.TCPDial(0, 0, peerIP, 80, k.now)
	if err := k.h.TCPSetUserTimeout(s, 100*ms); err != 0 {
		t.Fatal(err)
	}
	sent := k.one().tcp
	k.sleep(10 * ms)
	p := &tpeer{k: k, sport: 80, dport: sent.sport, seq: 5000, ack: sent.seq + 1, wnd: 65535}
	p.send(syn|ack, nil)
	p.sent()
	if rtt := info(t, k, s).RTT; rtt < 9*ms || rtt > 11*ms {
		t.Errorf("a round trip of %d ns, want 10 ms", rtt)
	}
	p.reset()
}

// TestTCPUserTimeoutICMP: an ICMP error about the SYN does not have the user timeout over.
func TestTCPUserTimeoutICMP(t *testing.T) {
	k := newKit(t)
	s, _ := k.h.TCPDial(0, 0, peerIP, 80, k.now)
	if err := k.h.TCPSetUserTimeout(s, 10*second); err != 0 {
		t.Fatal(err)
	}
	sent := k.one().tcp
	quote := ipPacket{src: usIP, dst: peerIP, proto: 6, body: append(sent.bytes(usIP, peerIP), make([]byte, 1000)...)}.bytes()
	k.inject(icmpFrame(3, 4, 600, quote))
	k.sleep(2 * second)
	if err := k.h.TCPError(s); err != 0 {
		t.Errorf("after 2 of 10 s: %v", err)
	}
	k.h.TCPAbort(s, k.now)
	k.sent()
}
