package sockets

import (
	"net/netip"
	"testing"

	"xdpd/umem"
)

// bound opens a UDP socket for which a pays.
func (k *kit) bound(port uint16, a Account) Handle {
	k.t.Helper()
	s, err := k.h.UDPBind(0, port)
	if err != 0 {
		k.t.Fatal(err)
	}
	k.h.Charge(s, a)
	return s
}

func (k *kit) use(a Account) AccountUse {
	u, _ := k.h.AccountUse(a)
	return u
}

// TestAccountOfReaders: who reads nothing holds no more than his account, and no more than he leaves to all others.
func TestAccountOfReaders(t *testing.T) {
	k := newKit(t, func(c *Config) { c.RcvBuf = 1 << 30 })
	hog, _ := k.h.NewAccount(k.h.rxLimit, 10, 0)
	small, _ := k.h.NewAccount(7, 10, 0)
	k.bound(7, hog)
	k.bound(8, small)
	for range 2 * k.h.rxLimit {
		k.inject(udpFrame(1, 7, []byte("x")))
		k.inject(udpFrame(1, 8, []byte("x")))
	}
	if u := k.use(small); u.RX != 7 {
		t.Errorf("an account of 7 frames holds %d", u.RX)
	}
	u := k.use(hog)
	if want := (k.h.rxLimit - 7) / 2; u.RX != want || u.Dropped == 0 {
		t.Errorf("an account of all frames holds %d of %d, want %d, %d packets dropped", u.RX, k.h.rxLimit, want, u.Dropped)
	}
	other, _ := k.h.UDPBind(0, 10)
	for range k.h.rxLimit/2 - 10 {
		k.inject(udpFrame(1, 10, []byte("x")))
	}
	for range k.h.rxLimit/2 - 10 {
		if d, err := k.h.UDPRecv(other, nil); err != 0 || d.Size != 1 {
			t.Fatalf("another one's datagram: %v", err)
		}
	}
	k.check()
}

// TestAccountOfSenders: datagrams that wait for the device count until it has sent them; then who waits hears of it, and not before.
func TestAccountOfSenders(t *testing.T) {
	k := newKit(t)
	k.late = true
	a, _ := k.h.NewAccount(10, 64, 0)
	s := k.bound(7, a)
	free, _ := k.h.UDPBind(0, 8)
	to := netip.AddrPortFrom(peerIP.Netip(), 9)
	sent := 0
	for k.h.UDPSend(s, []byte("x"), to, k.now) == 0 {
		sent++
	}
	if u := k.use(a); sent != 64 || u.TX != 64 {
		t.Errorf("%d datagrams and %d frames of an account of 64", sent, u.TX)
	}
	if err := k.h.UDPSend(free, []byte("x"), to, k.now); err != 0 {
		t.Errorf("a socket without an account: %v", err)
	}
	if err := k.h.UDPSend(s, make([]byte, 65507), to, k.now); err != EAGAIN {
		t.Errorf("a datagram of many frames: %v, want EAGAIN", err)
	}
	tiny, _ := k.h.NewAccount(1, 1, 0)
	if err := k.h.UDPSend(k.bound(9, tiny), make([]byte, 3000), to, k.now); err != EMSGSIZE {
		t.Errorf("a datagram that never fits: %v, want EMSGSIZE", err)
	}
	k.h.EndTurn()
	if k.h.Ready(s)&Out != 0 {
		t.Error("it may write, and has no frame")
	}
	k.pump()
	k.complete(len(k.device))
	k.h.EndTurn()
	if k.h.Ready(s)&Out == 0 || k.use(a).TX != 0 {
		t.Errorf("all is sent: ready %#x, use %+v", k.h.Ready(s), k.use(a))
	}
	k.check()
}

// TestAccountGoneWaiting: nobody waits for the frames of an account that is gone, or the reactor would look for them for ever.
func TestAccountGoneWaiting(t *testing.T) {
	k := newKit(t)
	k.late = true
	for range 3 {
		a, _ := k.h.NewAccount(10, 4, 0)
		s := k.bound(7, a)
		for err := Errno(0); err == 0; {
			err = k.h.UDPSend(s, []byte("x"), netip.AddrPortFrom(peerIP.Netip(), 9), k.now)
		}
		if !k.h.Blocked() {
			t.Fatal("nobody waits")
		}
		k.h.Close(s, k.now)
		k.h.CloseAccount(a)
		k.pump()
		k.complete(len(k.device))
		k.h.EndTurn()
		if k.h.Blocked() {
			t.Errorf("somebody waits: %v", k.h.accounts.waiting)
		}
	}
	k.check()
}

// TestAccountOfConnections: what a listener's connections hold is its account's, from the handshake to the last acknowledgement, also
// when nobody owns them any more; then the account is gone, and its number is free.
func TestAccountOfConnections(t *testing.T) {
	k := newKit(t)
	a, _ := k.h.NewAccount(100, 100, 0)
	l, _ := k.h.TCPListen(0, 80)
	k.h.Charge(l, a)
	p := dial(k, 80, 1000)
	p.send(ack, []byte("hello"))
	c, err := k.h.TCPAccept(l)
	if err != 0 {
		t.Fatal(err)
	}
	k.h.Charge(c, a) // it is already
	if u := k.use(a); u.RX != 1 {
		t.Errorf("%d frames received before it was accepted, want 1", u.RX)
	}
	if _, err := k.h.TCPRead(c, make([]byte, 100), k.now); err != 0 {
		t.Fatal(err)
	}
	n, _ := k.h.TCPWrite(c, make([]byte, 1<<20), k.now)
	u := k.use(a)
	if n == 0 || u.TX == 0 || u.TX > 100 || u.RX != 0 {
		t.Errorf("%d bytes written, use %+v", n, u)
	}
	k.h.Close(l, k.now)
	k.h.Close(c, k.now)
	k.h.CloseAccount(a)
	if b, _ := k.h.NewAccount(1, 1, 0); b == a {
		t.Error("an account with frames is given to somebody else")
	}
	k.check()
	p.got()
	p.reset()
	p.got()
	if b, _ := k.h.NewAccount(1, 1, 0); b != a {
		t.Errorf("account %d, want %d again: %+v", b, a, k.h.accounts.list[a])
	}
	if n := k.pool.Ledger().Counts()[umem.Held]; n != 0 {
		t.Errorf("%d frames held", n)
	}
}

// TestAccountCrowded: an account has no more sockets than it may, whoever has forgotten them: handshakes wait, who closes resets, and whose
// peer has all that was sent does not wait for it.
func TestAccountCrowded(t *testing.T) {
	k := newKit(t)
	a, _ := k.h.NewAccount(100, 100, 4)
	l, _ := k.h.TCPListen(0, 80)
	k.h.Charge(l, a)
	take := func() Handle {
		c, err := k.h.TCPAccept(l)
		if err != 0 {
			t.Fatal(err)
		}
		return c
	}
	first, second := dial(k, 80, 1000), dial(k, 80, 1001)
	one, two := take(), take()
	k.h.Close(one, k.now)
	first.got()
	third := newPeer(k, 80, 1002)
	synSent(k, third, nil)
	dial(k, 80, 1003) // and with the listener there are four
	third.ackAll()
	third.none()
	k.wantDrops(func() { third.ackAll() }, map[Drop]uint64{TCPBacklogFull: 1})
	k.wantDrops(func() { newPeer(k, 80, 1004).send(syn, nil) }, map[Drop]uint64{TCPBacklogFull: 1})
	first.ackAll() // of the FIN
	k.sleep(10_000_000)
	if n := k.h.tcp.conns; n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	first.send(fin|ack, nil)
	if s := first.one(); s.flags&rst == 0 {
		t.Errorf("a peer that says something yet hears %+v", s)
	}
	third.ackAll()
	if n := k.h.tcp.conns; n != 3 {
		t.Errorf("%d connections, want 3", n)
	}
	k.h.Close(two, k.now)
	if s := second.one(); s.flags&rst == 0 {
		t.Errorf("the peer of who closes hears %+v", s)
	}
	if n := k.h.tcp.conns; n != 2 {
		t.Errorf("%d connections, want 2", n)
	}
	k.check()
}

// TestAccountsCrowded: nor do those who come, leave connections behind and go fill the Host with them, each with an account that is not crowded.
func TestAccountsCrowded(t *testing.T) {
	k := newKit(t, func(c *Config) { c.MaxConns = 20 })
	l, _ := k.h.TCPListen(0, 80)
	for port := range uint16(40) {
		p := dial(k, 80, 1000+port)
		p.send(ack, nil)
		c, err := k.h.TCPAccept(l)
		if err != 0 {
			t.Fatal(err)
		}
		a, _ := k.h.NewAccount(10, 10, 100)
		k.h.Charge(c, a)
		k.h.Close(c, k.now)
		k.h.CloseAccount(a)
		p.got()
		p.ackAll()
		k.sleep(10_000_000)
	}
	if n := k.h.tcp.conns; n > 11 || n < 10 {
		t.Errorf("%d connections of nobody, of 20 that there may be", n)
	}
	k.check()
}
