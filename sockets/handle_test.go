package sockets

import (
	"testing"
)

// open makes a socket of each kind, so that a test of handles covers them all. The TCP connection's peer port is its
// own argument.
func openEach(k *kit, peerPort uint16) []Handle {
	k.t.Helper()
	u, err := k.h.UDPBind(0, 4000)
	if err != 0 {
		k.t.Fatalf("UDPBind: %v", err)
	}
	l, err := k.h.TCPListen(0, 4000)
	if err != 0 {
		k.t.Fatalf("TCPListen: %v", err)
	}
	p := dial(k, 4000, peerPort)
	c, err := k.h.TCPAccept(l)
	if err != 0 {
		k.t.Fatalf("TCPAccept: %v", err)
	}
	p.reset()
	return []Handle{u, l, c}
}

func closeAll(k *kit, hs []Handle) {
	k.t.Helper()
	for _, s := range hs {
		if err := k.h.Close(s, k.now); err != 0 {
			k.t.Fatalf("Close(%#x): %v", s, err)
		}
	}
	k.sent()
}

// TestHandleOfClosedSocket: every call with the handle of a closed socket says EBADF, also when its slot serves another.
func TestHandleOfClosedSocket(t *testing.T) {
	k := newKit(t)
	old := openEach(k, 1000)
	closeAll(k, old)
	fresh := openEach(k, 1001)
	buf := make([]byte, 10)
	for i, s := range old {
		if s == fresh[i] {
			t.Fatalf("handle %#x was given out twice", s)
		}
		if s.index() != fresh[i].index() {
			t.Fatalf("slot of %#x was not used again by %#x: nothing is tested", s, fresh[i])
		}
		if k.h.Ready(s) != Err|Hup || k.h.Open(s) {
			t.Errorf("Ready(%#x) = %#x, Open = %v", s, k.h.Ready(s), k.h.Open(s))
		}
		_, recv := k.h.UDPRecv(s, buf)
		_, accept := k.h.TCPAccept(s)
		_, read := k.h.TCPRead(s, buf, k.now)
		_, write := k.h.TCPWrite(s, buf, k.now)
		for name, err := range map[string]Errno{
			"UDPRecv": recv, "TCPAccept": accept, "TCPRead": read, "TCPWrite": write,
			"UDPSend":     k.h.UDPSend(s, buf, port(peerIP, 9), k.now),
			"UDPConnect":  k.h.UDPConnect(s, peerIP, 9),
			"TCPShutdown": k.h.TCPShutdown(s, k.now),
			"TCPAbort":    k.h.TCPAbort(s, k.now),
			"Close":       k.h.Close(s, k.now),
		} {
			if err != EBADF {
				t.Errorf("%s(%#x) = %v, want EBADF", name, s, err)
			}
		}
		if l, r := k.h.UDPAddr(s); l.IsValid() || r.IsValid() {
			t.Errorf("UDPAddr(%#x) = %v, %v", s, l, r)
		}
		if l, r := k.h.TCPAddr(s); l.IsValid() || r.IsValid() {
			t.Errorf("TCPAddr(%#x) = %v, %v", s, l, r)
		}
	}
	for _, s := range fresh {
		if !k.h.Open(s) {
			t.Errorf("%#x was closed through a handle that is not its own", s)
		}
	}
}

// TestHandleOfNothing: what never was a handle names nothing.
func TestHandleOfNothing(t *testing.T) {
	k := newKit(t)
	made := openEach(k, 1000)
	bad := []Handle{0, 1, ^Handle(0), makeHandle(kindUDP, 1, 1<<31), makeHandle(kindListener, 1, 99),
		makeHandle(kindTCP, 1, 1<<31), makeHandle(kindTCP, 0, 5)}
	for _, s := range made {
		bad = append(bad, makeHandle(0, s.gen(), s.index()), makeHandle(9, s.gen(), s.index()),
			makeHandle(s.kind(), s.gen()+1, s.index()), makeHandle(s.kind(), s.gen(), s.index()+1))
	}
	for _, s := range bad {
		if k.h.Open(s) || k.h.Close(s, k.now) != EBADF || k.h.Ready(s) != Err|Hup {
			t.Errorf("%#x names a socket", s)
		}
	}
}

// TestHandleGenerationsEnd: a slot whose generations are used up retires, so that no handle ever comes back. (With the
// generation wrapping round unnoticed, the next socket there could not be named by its own handle and never be closed.)
func TestHandleGenerationsEnd(t *testing.T) {
	k := newKit(t)
	closeAll(k, openEach(k, 1000))
	k.h.udp.socks[0].gen = 1<<24 - 2
	k.h.tcp.listeners[0].gen = 1<<24 - 2
	k.h.tcp.chunks[0][0].gen = 1<<24 - 2
	seen := map[Handle]bool{}
	for round := range uint16(4) {
		hs := openEach(k, 1001+round)
		for _, s := range hs {
			if !k.h.Open(s) {
				t.Fatalf("round %d: handle %#x, just given out, names nothing", round, s)
			}
			if seen[s] {
				t.Fatalf("round %d: handle %#x was given out before", round, s)
			}
			seen[s] = true
		}
		closeAll(k, hs)
	}
}

// TestEventOfClosedSocket: an event that waits when its socket is closed reaches nobody, least of all the next socket in
// the same slot.
func TestEventOfClosedSocket(t *testing.T) {
	k := newKit(t)
	u, _ := k.h.UDPBind(0, 4000)
	k.inject(udpFrame(9, 4000, []byte("x")))
	if !k.h.PendingEvents() {
		t.Fatal("no event for a datagram")
	}
	closeAll(k, []Handle{u})
	v, _ := k.h.UDPBind(0, 4000)
	if v.index() != u.index() {
		t.Fatal("the slot was not used again: nothing is tested")
	}
	if got := k.events(); len(got) != 0 {
		t.Errorf("events %v for sockets on which nothing happened", got)
	}
	k.inject(udpFrame(9, 4000, []byte("y")))
	if got := k.events(); got[v]&In == 0 || len(got) != 1 {
		t.Errorf("events %v, want In for %#x", got, v)
	}
}

// TestPopClosed tells of each closed socket once, whoever closed it and however.
func TestPopClosed(t *testing.T) {
	k := newKit(t)
	hs := openEach(k, 1000)
	l, _ := k.h.TCPListen(0, 4001)
	dial(k, 4001, 1)
	c, _ := k.h.TCPAccept(l)
	k.h.TCPAbort(c, k.now)
	closeAll(k, append(hs, l))
	want := map[Handle]bool{hs[0]: true, hs[1]: true, hs[2]: true, l: true, c: true}
	for {
		s, ok := k.h.PopClosed()
		if !ok {
			break
		}
		if !want[s] {
			t.Errorf("PopClosed gives %#x, which nobody closed, or for the second time", s)
		}
		delete(want, s)
	}
	if len(want) != 0 {
		t.Errorf("PopClosed forgets %v", want)
	}
}
