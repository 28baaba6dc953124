package reactor

import (
	"math"
	"net/netip"
	"syscall"
	"testing"

	"xdpd/rings"
	"xdpd/sockets"
)

func opCtl(user uint64, ep int32, op uint32, fd int, mask sockets.Ready, data uint64) rings.SQE {
	return rings.SQE{Opcode: rings.OpEpollCtl, FD: ep, Len: op, Off: uint64(fd), OpFlags: uint32(mask), Addr: data, UserData: user}
}

func opWait(user uint64, ep int32, at, n int, flags uint32) rings.SQE {
	return rings.SQE{Opcode: rings.OpEpollWait, FD: ep, Addr: uint64(at), Len: uint32(n), OpFlags: flags, UserData: user}
}

// gram has the peer send a datagram to a port of ours.
func (n *ringNet) gram(port uint16) {
	n.t.Helper()
	n.onPeer(func(h *sockets.Host, now int64) {
		s, _ := h.UDPBind(0, 0)
		if err := h.UDPSend(s, []byte("x"), netip.AddrPortFrom(ourAddr.Netip(), port), now); err != 0 {
			n.t.Fatal(err)
		}
		h.Close(s, now)
	})
}

func (n *ringNet) wantEvents(at int, want ...rings.EpollEvent) {
	n.t.Helper()
	for i, w := range want {
		if e := rings.ParseEpollEvent(n.data[at+i*rings.EpollEventSize:]); e != w {
			n.t.Errorf("event %d is %+v, want %+v", i, e, w)
		}
	}
}

// TestRingEpollWait: waits end when something happens, the last that came first, one for an event; those that there is nothing for wait on.
// What they say is where they said.
func TestRingEpollWait(t *testing.T) {
	n := newRingNet(t, RingConfig{Fixed: 2})
	n.res(opSocket(1, sockDgram), 0)
	n.res(n.opAddr(rings.OpBind, 2, 0, 0, 70), 0)
	slot := opSocket(1, sockDgram)
	slot.FileIndex = 2
	n.res(slot, 0)
	bind := n.opAddr(rings.OpBind, 2, 1, 0, 71)
	bind.Flags = rings.SQEFixedSocket
	n.res(bind, 0)
	n.res(opCtl(3, 5, rings.EpollAdd, 0, sockets.In, 1000), 0)
	fixed := opCtl(3, 5, rings.EpollAdd, 1, sockets.In|EdgeTriggered, 2000)
	fixed.Flags = rings.SQEFixedSocket
	n.res(fixed, 0)
	n.err(fixed, sockets.EEXIST)
	n.res(opWait(4, 5, bufAt, 4, rings.MsgDontWait), 0)
	n.gives([]rings.SQE{opWait(10, 5, bufAt, 4, 0), opWait(11, 5, bufAt+1000, 4, 0)})
	n.gram(71) // by edge: one report
	n.gives(nil, cqe(11, 1))
	n.wantEvents(bufAt+1000, rings.EpollEvent{Data: 2000, Events: uint32(sockets.In), FD: -2})
	n.gives([]rings.SQE{opWait(12, 5, bufAt+1000, 4, 0)})
	n.gram(70) // by level: told again to who asks again
	n.gives(nil, cqe(12, 1), cqe(10, 1))
	n.wantEvents(bufAt, rings.EpollEvent{Data: 1000, Events: uint32(sockets.In), FD: 0})
	n.res(opWait(13, 5, bufAt, 1, 0), 1)
	n.res(opMem(rings.OpRecv, 14, 0, bufAt, 10), 1)
	n.res(opWait(15, 5, bufAt, 4, rings.MsgDontWait), 0)
	n.gives([]rings.SQE{opWait(16, 5, bufAt, 4, 0), opCancel(17, 16)}, fails(16, sockets.ECANCELED), cqe(17, 0))
	n.gives([]rings.SQE{with(opWait(18, 5, bufAt, 4, 0), rings.SQELink), linkTimeout(19, 1000)})
	n.pass(second / 100)
	n.gives(nil, fails(19, sockets.ETIME), fails(18, sockets.ECANCELED))
	// A socket that is closed leaves, and RECV works beside a poller as without.
	n.gives([]rings.SQE{opMem(rings.OpRecv, 20, 0, bufAt, 10), opWait(21, 5, bufAt, 4, 0)})
	n.gram(70)
	n.gives(nil, cqe(20, 1))
	n.res(opClose(22, 0), 0)
	n.err(opCtl(23, 5, rings.EpollDel, 0, 0, 0), sockets.EBADF)
	n.gives([]rings.SQE{opCtl(24, 5, rings.EpollForget, 0, 0, 0)}, fails(21, sockets.ECANCELED), cqe(24, 0))
	n.gram(71)
	n.res(opWait(25, 5, bufAt, 4, rings.MsgDontWait), 0) // it is as at the beginning
	n.res(with(opCtl(26, 5, rings.EpollAdd, 1, sockets.In, 0), rings.SQEFixedSocket), 0)
	n.res(opWait(27, 5, bufAt, 4, rings.MsgDontWait), 1)
	n.idle()
}

// TestRingEpollRefuses: what makes no sense, and a wait whose memory is not there.
func TestRingEpollRefuses(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	n.res(opSocket(1, sockStream), 0)
	for _, s := range []rings.SQE{
		opCtl(2, -1, rings.EpollAdd, 0, 0, 0), opCtl(2, rings.MaxEpolls, rings.EpollAdd, 0, 0, 0), opCtl(2, 0, 4, 0, 0, 0),
		opWait(2, -1, 0, 1, 0), opWait(2, rings.MaxEpolls, 0, 1, 0), opWait(2, 0, 0, 0, 0), opWait(2, 0, 0, 1, 1),
	} {
		n.err(s, sockets.EINVAL)
	}
	n.err(opCtl(3, 0, rings.EpollAdd, 0, sockets.In, 0), sockets.EBADF) // neither bound nor connected
	n.err(opCtl(3, 0, rings.EpollAdd, 7, sockets.In, 0), sockets.EBADF)
	n.res(n.opAddr(rings.OpBind, 4, 0, 0, 80), 0)
	n.res(opLen(rings.OpListen, 5, 0, 1), 0)
	n.err(opCtl(6, 0, rings.EpollMod, 0, sockets.In, 0), sockets.ENOENT)
	n.err(opCtl(6, 0, rings.EpollAdd, 0, sockets.RdHup|Exclusive, 0), sockets.EINVAL)
	n.res(opCtl(6, 0, rings.EpollAdd, 0, sockets.In, 0), 0)
	n.peerDials(80)
	n.err(opWait(7, 0, dataSize-15, 1, 0), sockets.EFAULT)
	n.res(opWait(7, 0, dataSize-16, 1, 0), 1)
	if p := NewPoller(n.r); p.Add(n.q.socks.at(0).h, sockets.In, 0) != ErrExists {
		t.Error("a poller of others takes a ring's socket")
	}
	n.idle()
}

// TestRingConnectDontWait: who does not wait is told by a poller when it is connected, or why not.
func TestRingConnectDontWait(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	n.onPeer(func(h *sockets.Host, _ int64) { h.TCPListen(0, 80) })
	for fd, port := range []uint16{80, 81} {
		n.res(opSocket(1, sockStream), int32(fd))
		s := n.opAddr(rings.OpConnect, 2, int32(fd), peerAddr, port)
		s.OpFlags = rings.MsgDontWait
		n.gives([]rings.SQE{s, opMem(rings.OpRecv, 3, int32(fd), bufAt, 10), opCtl(4, int32(fd), rings.EpollAdd, fd, sockets.Out, 0)},
			append([]rings.CQE{fails(2, sockets.EINPROGRESS), cqe(4, 0)}, []rings.CQE{fails(3, sockets.ECONNREFUSED)}[:fd]...)...)
		n.err(s, sockets.EISCONN)
	}
	n.res(opWait(5, 0, bufAt, 1, rings.MsgDontWait), 1)
	n.wantEvents(bufAt, rings.EpollEvent{Events: uint32(sockets.Out)})
	n.res(opWait(5, 1, bufAt, 1, rings.MsgDontWait), 1)
	if e := rings.ParseEpollEvent(n.data[bufAt:]); sockets.Ready(e.Events)&sockets.Hup == 0 {
		t.Errorf("a connection that was refused is ready for %#x", e.Events)
	}
	n.gives([]rings.SQE{opCancel(6, 3)}, fails(3, sockets.ECANCELED), cqe(6, 0))
	n.res(opMem(rings.OpSend, 7, 0, bufAt, 10), 10)
}

// TestRingEpollBounded: of many waits for many sockets that are ready a turn ends as many as it may, and the next ones the others.
func TestRingEpollBounded(t *testing.T) {
	const socks, waits = 256, 3000
	n := newRingNet(t, RingConfig{SQEntries: 4096})
	for fd := range int32(socks) {
		n.res(opSocket(1, sockDgram), fd)
		n.res(n.opAddr(rings.OpBind, 2, fd, 0, 1000+uint16(fd)), 0)
		n.res(opCtl(3, 0, rings.EpollAdd, int(fd), sockets.In, 0), 0)
	}
	for range waits {
		n.push(opWait(4, 0, bufAt, socks, 0))
	}
	n.gives(nil)
	for fd := range socks {
		n.push(opCtl(5, 0, rings.EpollMod, fd, sockets.Out, 0))
	}
	got, most := 0, 0
	for turns := 0; got < waits && turns < 100; turns++ {
		n.r.Turn()
		most = max(most, n.q.steps)
		for c, ok := n.c.Peek(); ok; c, ok = n.c.Peek() {
			if n.c.Seen(1); c.UserData == 4 && c.Res > 0 {
				got++
			}
		}
	}
	if got != waits {
		t.Errorf("%d waits ended of %d", got, waits)
	}
	if most > maxSteps+2*socks || most < maxSteps/2 {
		t.Errorf("%d steps in a turn, at most %d may be", most, maxSteps+2*socks)
	}
	n.idle()
}

// TestRingEpollForgets: a ring's poller lets go of the ring's sockets alone, whose number is all that it costs; and where a reactor has no
// more pollers, it says so.
func TestRingEpollForgets(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	other := NewPoller(n.r)
	sock := n.bind(69)
	n.enter(func(*sockets.Host, int64) {
		if err := other.Add(sock, sockets.Out, 7); err != nil {
			t.Fatal(err)
		}
	})
	n.res(opSocket(1, sockDgram), 0)
	n.res(n.opAddr(rings.OpBind, 2, 0, 0, 70), 0)
	for ep := range int32(2) {
		n.res(opCtl(3, ep, rings.EpollAdd, 0, sockets.Out, 0), 0)
	}
	looked := 0
	n.r.watches.each(func(ref, *watch) { looked++ })
	if looked != 3 {
		t.Fatalf("%d sockets are in pollers, want 3", looked)
	}
	n.res(opCtl(4, 0, rings.EpollForget, 0, 0, 0), 0)
	n.res(opWait(5, 0, bufAt, 1, rings.MsgDontWait), 0)
	n.res(opWait(5, 1, bufAt, 1, rings.MsgDontWait), 1)
	if e := n.q.epolls[1]; e.members != 1 || other.members != 1 {
		t.Errorf("%d and %d members are left, want 1 and 1", e.members, other.members)
	}
	for len(n.r.pollers) < math.MaxUint16 {
		n.r.pollers = append(n.r.pollers, other)
	}
	n.err(opCtl(6, 7, rings.EpollAdd, 0, sockets.Out, 0), syscall.ENOSPC)
	n.err(opWait(6, 7, bufAt, 1, rings.MsgDontWait), syscall.ENOSPC)
	n.res(opCtl(7, 1, rings.EpollForget, 0, 0, 0), 0) // and there is one again
	n.res(opCtl(8, 7, rings.EpollAdd, 0, sockets.Out, 0), 0)
	n.q.Close()
	n.enter(func(*sockets.Host, int64) {
		if got := make([]Event, 2); other.take(got) != 1 || got[0].Data != 7 {
			t.Errorf("another poller gives %+v", got)
		}
		n.r.watches.each(func(_ ref, w *watch) {
			if w.poller != other.id {
				t.Errorf("poller %d is gone, and has a socket", w.poller)
			}
		})
	})
}
