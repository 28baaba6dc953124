package reactor

import (
	"testing"

	"xdpd/rings"
	"xdpd/sockets"
)

// TestBucket: in the long run who takes as much as he may gets the rate and what fits into a tenth of a second; and the time that he is told
// to come back at is the first at which he may.
func TestBucket(t *testing.T) {
	const seconds = 20
	for _, rate := range []int64{1, 7, 1000, 1_000_003, MaxRate} {
		for _, size := range []int{1, 1500} {
			b, taken := bucket{rate: rate}, int64(0)
			for now := int64(1e9); now < (1+seconds)*1e9; {
				if !b.ok(now) {
					at := b.ready()
					if b.ok(at - 1) {
						t.Fatalf("%d a second: he may before he was told", rate)
					}
					if !b.ok(at) {
						t.Fatalf("%d a second: at the time that he was told he has to wait on", rate)
					}
					now = at
					continue
				}
				n := max(int64(size), rate/1000)
				b.take(int(n))
				taken += n
			}
			want := seconds*rate + rate/10
			if n := max(int64(size), rate/1000); taken < want-n || taken > want+n+1 {
				t.Errorf("%d a second, %d at a time: %d in %d s, want %d", rate, size, taken, seconds, want)
			}
		}
	}
	var free bucket
	if free.take(1e9); !free.ok(5) {
		t.Error("without a limit he waits")
	}
}

// results counts completions that did something, and fails for others.
func (n *ringNet) results(all []rings.CQE) (done int) {
	n.t.Helper()
	for _, c := range all {
		if c.Res < 0 {
			n.t.Fatalf("completion %v", c)
		}
		done++
	}
	return done
}

// TestRingSendRate: datagrams and data of connections beyond the rate wait, in order, with the clock; a poll does not say that there is
// room until there is, and what may not wait is told to come again.
func TestRingSendRate(t *testing.T) {
	n := newRingNet(t, RingConfig{SQEntries: 512, Rates: Rates{Packets: 100, Bytes: 200_000}})
	n.onPeer(func(h *sockets.Host, _ int64) { h.UDPBind(0, 9) })
	n.res(opSocket(1, sockDgram), 0)
	n.res(n.opAddr(rings.OpConnect, 2, 0, peerAddr, 9), 0)
	for i := range 300 {
		n.push(opMem(rings.OpSend, uint64(10+i), 0, bufAt, 10))
	}
	done := 0
	for sec := range 3 {
		all := n.take()
		for i, c := range all {
			if c.UserData != uint64(10+done+i) {
				t.Fatalf("completion %v is out of order", c)
			}
		}
		if done += n.results(all); done < 100*sec+9 || done > 100*sec+12 {
			t.Errorf("%d datagrams in %d s, want 100 a second and 10", done, sec)
		}
		n.pass(second)
	}
	now := opMem(rings.OpSend, 5, 0, bufAt, 10)
	now.OpFlags = rings.MsgDontWait
	n.take()
	for n.one(now).Res == 10 { // what there is at once
	}
	n.err(now, sockets.EAGAIN)
	n.gives([]rings.SQE{{Opcode: rings.OpPollAdd, OpFlags: uint32(sockets.Out), UserData: 6}})
	n.pass(second / 100)
	n.gives(nil, cqe(6, int32(sockets.Out)))
	far := n.dialed(1)
	n.pass(second)
	n.push(rings.SQE{Opcode: rings.OpSend, FD: 1, Addr: bufAt, Len: 60_000, OpFlags: rings.MsgWaitAll, UserData: 7})
	n.push(opMem(rings.OpSend, 8, 1, bufAt, 60_000))
	n.push(opMem(rings.OpSend, 9, 1, bufAt, 100))
	n.pass(second / 20)
	n.gives(nil, cqe(7, 60_000)) // which was more than there was
	n.pass(second / 2)
	n.gives(nil, cqe(8, 60_000))
	n.gives([]rings.SQE{opCancel(10, 9)}, fails(9, sockets.ECANCELED), cqe(10, 0))
	n.onPeer(func(h *sockets.Host, now int64) { h.Close(far, now) })
	if _, sends := n.q.HeldBack(); sends == 0 {
		t.Error("nothing was held back")
	}
}

// TestRingConnectRate: connections made and accepted beyond the rate wait. Meanwhile the socket is as one that connects.
func TestRingConnectRate(t *testing.T) {
	n := newRingNet(t, RingConfig{SQEntries: 256, Rates: Rates{Connects: 10}})
	n.onPeer(func(h *sockets.Host, _ int64) { h.TCPListen(0, 80) })
	for i := range int32(30) {
		n.res(opSocket(1, sockStream), i)
	}
	for i := range int32(30) {
		n.push(n.opAddr(rings.OpConnect, 100+uint64(i), i, peerAddr, 80))
	}
	done := n.results(n.take())
	if done < 1 || done > 2 {
		t.Errorf("%d connections at once", done)
	}
	last := int32(29)
	n.gives([]rings.SQE{opMem(rings.OpRecv, 1, last, bufAt, 10), {Opcode: rings.OpPollAdd, FD: last, OpFlags: uint32(sockets.Out), UserData: 2}})
	n.gives([]rings.SQE{opCancel(3, 129)}, fails(129, sockets.ECANCELED), cqe(3, 0))
	n.pass(second)
	if done += n.results(n.take()); done < 10 || done > 12 {
		t.Errorf("%d connections in a second, want 10 and a bit", done)
	}
	n.gives([]rings.SQE{opCancel(3, 1), opCancel(4, 2)}, fails(1, sockets.ECANCELED), cqe(3, 0), fails(2, sockets.ECANCELED), cqe(4, 0))
	n.pass(2 * second)
	if done += n.results(n.take()); done != 29 {
		t.Errorf("%d connections, want 29", done)
	}
	n.listen(30, 81)
	for range 20 {
		n.peerDials(81)
	}
	n.pass(second) // what was done in the last second
	n.push(rings.SQE{Opcode: rings.OpAccept, FD: 30, IOPrio: rings.AcceptMultishot, UserData: 7})
	done = n.results(n.take())
	n.pass(second)
	if done += n.results(n.take()); done < 10 || done > 13 {
		t.Errorf("%d accepted in a second, want 10 and a bit", done)
	}
	n.pass(second)
	if done += n.results(n.take()); done != 20 {
		t.Errorf("%d accepted, want all 20", done)
	}
	if connects, _ := n.q.HeldBack(); connects == 0 {
		t.Error("nothing was held back")
	}
	n.gives([]rings.SQE{opClose(8, 30)}, fails(7, sockets.ECANCELED), cqe(8, 0))
	for range 1000 { // who closes while he waits does not stand in the list twice
		n.res(opSocket(1, sockStream), 30)
		n.push(n.opAddr(rings.OpConnect, 2, 30, peerAddr, 80), opClose(3, 30))
		n.take()
	}
}

// TestRingEpollRate: a poller does not report what is held back, and reports it, by edge as well, when it may be.
func TestRingEpollRate(t *testing.T) {
	for _, edge := range []sockets.Ready{0, EdgeTriggered} {
		n := newRingNet(t, RingConfig{Rates: Rates{Connects: 10, Packets: 10}})
		n.onPeer(func(h *sockets.Host, _ int64) { h.UDPBind(0, 9) })
		n.res(opSocket(1, sockDgram), 0)
		n.res(n.opAddr(rings.OpConnect, 2, 0, peerAddr, 9), 0)
		n.listen(1, 81)
		for range 5 {
			n.peerDials(81)
		}
		send := opMem(rings.OpSend, 3, 0, bufAt, 10)
		send.OpFlags = rings.MsgDontWait
		accept := rings.SQE{Opcode: rings.OpAccept, FD: 1, IOPrio: rings.AcceptDontWait, UserData: 4}
		for fd, s := range []rings.SQE{send, accept} {
			ep := int32(fd)
			n.res(opCtl(5, ep, rings.EpollAdd, fd, sockets.In|sockets.Out|edge, 0), 0)
			n.res(opWait(6, ep, bufAt, 1, rings.MsgDontWait), 1)
			did := 0
			for c := n.one(s); ; c = n.one(s) {
				if c.Res == -int32(sockets.EAGAIN) {
					break
				}
				if did++; c.Res < 0 || did > 4 {
					t.Fatalf("socket %d: %v after %d", fd, c, did)
				}
			}
			n.one(opWait(6, ep, bufAt, 1, rings.MsgDontWait)) // an edge of before
			n.gives([]rings.SQE{opWait(7, ep, bufAt, 1, 0)})
			n.pass(second)
			n.gives(nil, cqe(7, 1))
			if c := n.one(s); c.Res < 0 {
				t.Errorf("socket %d: what was reported gives %v", fd, c)
			}
		}
	}
}

// TestRingConnectRateEnds: who does not wait is told so; and a socket whose CONNECT ended before it began is none that connects.
func TestRingConnectRateEnds(t *testing.T) {
	n := newRingNet(t, RingConfig{Rates: Rates{Connects: 1}})
	n.onPeer(func(h *sockets.Host, _ int64) { h.TCPListen(0, 80) })
	for fd := range int32(3) {
		n.res(opSocket(1, sockStream), fd)
	}
	n.res(n.opAddr(rings.OpConnect, 2, 0, peerAddr, 80), 0)
	now := n.opAddr(rings.OpConnect, 3, 1, peerAddr, 80)
	now.OpFlags = rings.MsgDontWait
	n.err(now, sockets.EAGAIN)
	poll := rings.SQE{Opcode: rings.OpPollAdd, FD: 1, OpFlags: uint32(sockets.In), UserData: 4}
	n.res(poll, int32(sockets.Hup))
	connect := n.opAddr(rings.OpConnect, 5, 1, peerAddr, 80)
	another := connect
	another.UserData = 6
	n.gives([]rings.SQE{connect, another, opCancel(7, 6)}, fails(6, sockets.ECANCELED), cqe(7, 0))
	n.gives([]rings.SQE{poll}) // the first one still waits
	n.res(opLen(rings.OpListen, 8, 1, 1), 0)
	n.pass(2 * second)
	n.gives(nil, fails(5, sockets.EISCONN))
	name := opLen(rings.OpSockName, 9, 1, rings.SockAddrSize)
	name.Addr = bufAt
	n.res(name, rings.SockAddrSize)
	at, _ := rings.SockAddr(n.bytes(bufAt, rings.SockAddrSize))
	n.peerDials(at.Port())
	n.gives(nil, cqe(4, int32(sockets.In)))
}
