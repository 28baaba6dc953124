package sockets

import "testing"

// TestTCPBind: a bound socket has its port, answers nobody, and becomes a listener.
func TestTCPBind(t *testing.T) {
	k := newKit(t)
	s, err := k.h.TCPBind(0, svc)
	if err != 0 {
		t.Fatal(err)
	}
	if _, err := k.h.TCPBind(usIP, svc); err != EADDRINUSE {
		t.Errorf("bound again: %v", err)
	}
	if _, err := k.h.TCPListen(0, svc); err != EADDRINUSE {
		t.Errorf("another listens: %v", err)
	}
	if _, err := k.h.TCPBind(peerIP, 81); err != EADDRNOTAVAIL {
		t.Errorf("somebody else's address: %v", err)
	}
	if local, _ := k.h.TCPAddr(s); local.Port() != svc {
		t.Errorf("its address is %v", local)
	}
	if n := len(k.h.TCPSockets()); n != 0 {
		t.Errorf("%d sockets are told of", n)
	}
	if _, err := k.h.TCPAccept(s); err != EINVAL {
		t.Errorf("accept: %v", err)
	}
	p := newPeer(k, svc, 1000)
	p.inject(p.seg(syn, nil))
	if got := p.one(); got.flags&rst == 0 {
		t.Errorf("a SYN to a bound socket brings flags %#x, want RST", got.flags)
	}
	for range 2 {
		if err := k.h.TCPListenBound(s); err != 0 {
			t.Fatal(err)
		}
	}
	dial(k, svc, 1001)
	if _, err := k.h.TCPAccept(s); err != 0 {
		t.Error(err)
	}
	k.h.Close(s, k.now)
	if err := k.h.TCPListenBound(s); err != EBADF {
		t.Errorf("of a closed socket: %v", err)
	}
}

// TestTCPBindDial: the port that was bound is the connection's, and closing a bound socket frees its port.
func TestTCPBindDial(t *testing.T) {
	k := newKit(t)
	s, err := k.h.TCPBind(0, 0)
	if err != 0 {
		t.Fatal(err)
	}
	local, _ := k.h.TCPAddr(s)
	c, err := k.h.TCPDial(0, local.Port(), peerIP, 80, k.now)
	if err != 0 {
		t.Fatal(err)
	}
	if got, _ := k.h.TCPAddr(c); got.Port() != local.Port() {
		t.Errorf("dialled from %v, bound to %v", got, local)
	}
	k.one()
	k.h.Close(s, k.now)
	if _, err = k.h.TCPBind(0, local.Port()); err != 0 {
		t.Errorf("after it was closed: %v", err)
	}
}
