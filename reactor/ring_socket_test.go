package reactor

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
)

func TestRingSocket(t *testing.T) {
	n := newRingNet(t, RingConfig{Sockets: 2, Fixed: 2})
	n.res(opSocket(1, sockStream), 0)
	n.res(opSocket(2, sockDgram|sockFlags), 1)
	n.err(opSocket(3, sockStream), sockets.EMFILE)
	fixed := func(index uint32) rings.SQE {
		s := opSocket(4, sockDgram)
		s.FileIndex = index
		return s
	}
	n.res(fixed(2), 0)
	n.res(fixed(rings.FileIndexAlloc), 0)
	n.err(fixed(rings.FileIndexAlloc), sockets.ENFILE)
	n.err(fixed(3), sockets.EINVAL)
	n.res(fixed(1), 0) // takes the place of the one that is there
	s := opSocket(5, sockStream)
	s.FD = 10
	n.err(s, sockets.EAFNOSUPPORT)
	n.err(opSocket(6, 3), sockets.EINVAL)
	s = opSocket(7, sockStream)
	s.Len = proto.ProtoUDP
	n.err(s, sockets.EPROTONOSUPPORT)
	n.res(opClose(8, 0), 0)
	n.err(opClose(9, 0), sockets.EBADF)
	n.res(rings.SQE{Opcode: rings.OpClose, FileIndex: 2}, 0)
	n.err(rings.SQE{Opcode: rings.OpClose, FileIndex: 2}, sockets.EBADF)
	n.err(rings.SQE{Opcode: rings.OpClose, FileIndex: 1 << 31}, sockets.EBADF)
	n.err(rings.SQE{Opcode: rings.OpClose, FileIndex: 1, FD: 1}, sockets.EINVAL)
	n.idle()
}

func TestRingBindListen(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	n.listen(0, 80)
	n.res(opLen(rings.OpListen, 1, 0, 1), 0) // again
	n.err(n.opAddr(rings.OpBind, 1, 0, 0, 81), sockets.EINVAL)
	n.res(opSocket(1, sockStream), 1)
	n.err(n.opAddr(rings.OpBind, 1, 1, 0, 80), sockets.EADDRINUSE)
	n.err(n.opAddr(rings.OpBind, 1, 1, peerAddr, 81), sockets.EADDRNOTAVAIL)
	s := n.opAddr(rings.OpBind, 1, 1, 0, 81)
	n.data[s.Addr] = 10
	n.err(s, sockets.EAFNOSUPPORT)
	s = n.opAddr(rings.OpBind, 1, 1, 0, 81)
	s.Off = 15
	n.err(s, sockets.EINVAL)
	for _, at := range []uint64{dataSize - 15, 1 << 63, ^uint64(0)} {
		s.Addr, s.Off = at, 16
		n.err(s, sockets.EFAULT)
		s.Addr, s.Off = 16, at
		n.err(s, sockets.EFAULT)
	}
	n.err(n.opAddr(rings.OpBind, 1, 7, 0, 81), sockets.EBADF)
	n.res(opLen(rings.OpListen, 1, 1, 1), 0) // which binds it to a free port
	name := opLen(rings.OpSockName, 2, 1, 16)
	name.Addr = 512
	n.res(name, 16)
	if a, _ := rings.SockAddr(n.data[512:]); a.Port() < 32768 {
		t.Errorf("an unbound listener is at %v", a)
	}
	name.OpFlags = 1
	n.err(name, sockets.ENOTCONN)
	n.res(opSocket(1, sockDgram), 2)
	n.err(opLen(rings.OpListen, 1, 2, 1), sockets.EOPNOTSUPP)
	n.res(n.opAddr(rings.OpBind, 1, 2, ourAddr, 53), 0)
	n.err(n.opAddr(rings.OpBind, 1, 2, ourAddr, 54), sockets.EINVAL)
	name.OpFlags, name.FD = 0, 2
	n.res(name, 16)
	if a, _ := rings.SockAddr(n.data[512:]); a != netip.AddrPortFrom(ourAddr.Netip(), 53) {
		t.Errorf("bound to %v", a)
	}
	n.res(opClose(1, 0), 0)
	n.listen(0, 80) // the port is free again
	n.idle()
}

func TestRingConnect(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	n.err(n.opAddr(rings.OpConnect, 2, 0, peerAddr, 80), sockets.EISCONN)
	n.err(opLen(rings.OpListen, 2, 0, 1), sockets.EINVAL)
	name := opLen(rings.OpSockName, 2, 0, 16)
	name.Addr, name.OpFlags = 512, 1
	n.res(name, 16)
	if a, _ := rings.SockAddr(n.data[512:]); a != netip.AddrPortFrom(peerAddr.Netip(), 80) {
		t.Errorf("connected to %v", a)
	}
	n.onPeer(func(h *sockets.Host, _ int64) {
		if local, _ := h.TCPAddr(far); local.Port() != 80 {
			t.Errorf("the peer is at %v", local)
		}
	})

	n.res(opSocket(1, sockStream), 1)
	n.err(n.opAddr(rings.OpConnect, 2, 1, peerAddr, 81), sockets.ECONNREFUSED)
	n.err(n.opAddr(rings.OpConnect, 2, 1, 0xc0000201, 80), sockets.ENETUNREACH)
	n.err(n.opAddr(rings.OpConnect, 2, 1, peerAddr, 0), sockets.EINVAL)
	n.res(n.opAddr(rings.OpBind, 3, 1, ourAddr, 4321), 0)
	n.onPeer(func(h *sockets.Host, _ int64) { h.TCPListen(0, 82) })
	n.res(n.opAddr(rings.OpConnect, 2, 1, peerAddr, 82), 0)
	name.FD, name.OpFlags = 1, 0
	n.res(name, 16)
	if a, _ := rings.SockAddr(n.data[512:]); a != netip.AddrPortFrom(ourAddr.Netip(), 4321) {
		t.Errorf("bound to port 4321, connected from %v", a)
	}
	n.res(opClose(1, 1), 0)
	n.res(opSocket(1, sockStream), 1)
	n.res(n.opAddr(rings.OpBind, 3, 1, ourAddr, 4321), 0) // the port went with the connection
	n.res(opSocket(1, sockStream), 2)
	n.listen(3, 90)
	n.err(n.opAddr(rings.OpConnect, 2, 3, peerAddr, 80), sockets.EISCONN)
	n.idle()
}

// TestRingConnectTwice: the second CONNECT waits for the first, and finds the socket connected.
func TestRingConnectTwice(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	n.onPeer(func(h *sockets.Host, _ int64) { h.TCPListen(0, 80) })
	n.res(opSocket(1, sockStream), 0)
	n.gives([]rings.SQE{n.opAddr(rings.OpConnect, 2, 0, peerAddr, 80), n.opAddr(rings.OpConnect, 3, 0, peerAddr, 80)},
		cqe(2, 0), fails(3, sockets.EISCONN))
	n.idle()
}

// TestRingConnectCancel: a CONNECT that is given up leaves a socket that can connect.
func TestRingConnectCancel(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	n.res(opSocket(1, sockStream), 0)
	n.gives([]rings.SQE{n.opAddr(rings.OpConnect, 2, 0, peerAddr+7, 80)})
	n.gives([]rings.SQE{opCancel(3, 2)}, fails(2, sockets.ECANCELED), cqe(3, 0))
	n.gives([]rings.SQE{opCancel(4, 2)}, fails(4, sockets.ENOENT))
	n.onPeer(func(h *sockets.Host, _ int64) { h.TCPListen(0, 80) })
	n.res(n.opAddr(rings.OpConnect, 5, 0, peerAddr, 80), 0)
	n.res(opSocket(1, sockStream), 1)
	n.gives([]rings.SQE{n.opAddr(rings.OpConnect, 6, 1, peerAddr+7, 80), opClose(7, 1)},
		fails(6, sockets.ECANCELED), cqe(7, 0))
	n.idle()
}

func TestRingConnectUnreachable(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	n.res(opSocket(1, sockStream), 0)
	n.gives([]rings.SQE{n.opAddr(rings.OpConnect, 2, 0, peerAddr+7, 80)})
	n.pass(10e9)
	n.want(n.take(), fails(2, sockets.EHOSTUNREACH))
	n.idle()
}

func TestRingConnectTimeout(t *testing.T) {
	n := newRingNet(t, RingConfig{}, options{frames: 1024, ring: 256, change: func(_ *Config, h *sockets.Config) { h.KernelNeighbours = true }})
	n.enter(func(h *sockets.Host, now int64) { h.SetNeighbour(peerAddr, peerMAC, true, now) })
	n.cut = true
	n.res(opSocket(1, sockStream), 0)
	n.gives([]rings.SQE{n.opAddr(rings.OpConnect, 2, 0, peerAddr, 80)})
	n.pass(300e9)
	n.want(n.take(), fails(2, sockets.ETIMEDOUT))
	n.err(opMem(rings.OpRecv, 3, 0, bufAt, 10), sockets.ENOTCONN)
	n.idle()
}

// TestRingConnectWaiters: what waits for a connection that does not come about hears of it.
func TestRingConnectWaiters(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	n.res(opSocket(1, sockStream), 0)
	n.gives([]rings.SQE{n.opAddr(rings.OpConnect, 2, 0, peerAddr, 81), opMem(rings.OpRecv, 3, 0, bufAt, 10), opMem(rings.OpSend, 4, 0, bufAt, 10)},
		fails(2, sockets.ECONNREFUSED), fails(4, sockets.EPIPE), fails(3, sockets.ENOTCONN))
	n.onPeer(func(h *sockets.Host, _ int64) { h.TCPListen(0, 80) })
	n.gives([]rings.SQE{n.opAddr(rings.OpConnect, 2, 0, peerAddr, 80), opMem(rings.OpRecv, 3, 0, bufAt, 10), opMem(rings.OpSend, 4, 0, bufAt, 10)},
		cqe(2, 0), cqe(4, 10))
	n.gives([]rings.SQE{opCancel(5, 3)}, fails(3, sockets.ECANCELED), cqe(5, 0))
	n.idle()
}

func TestRingAccept(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	n.listen(0, 80)
	accept := rings.SQE{Opcode: rings.OpAccept, FD: 0, UserData: 5, Addr: 640, Off: 16}
	n.gives([]rings.SQE{accept})
	far := n.peerDials(80)
	n.want(n.take(), cqe(5, 1))
	n.onPeer(func(h *sockets.Host, _ int64) {
		local, _ := h.TCPAddr(far)
		if a, _ := rings.SockAddr(n.data[640:]); a != local {
			t.Errorf("accepted from %v, the peer is at %v", a, local)
		}
	})
	for range 2 { // which the backlog holds
		n.peerDials(80)
	}
	accept.IOPrio, accept.Addr, accept.Off, accept.UserData = rings.AcceptMultishot, 0, 0, 6
	n.gives([]rings.SQE{accept}, more(6, 2), more(6, 3))
	n.peerDials(80)
	n.want(n.take(), more(6, 4))
	n.gives([]rings.SQE{opCancel(7, 6)}, fails(6, sockets.ECANCELED), cqe(7, 0))
	accept.IOPrio, accept.UserData = rings.AcceptDontWait, 8
	n.err(accept, sockets.EAGAIN)
	accept.IOPrio, accept.UserData = rings.AcceptPollFirst, 9
	n.gives([]rings.SQE{accept})
	n.gives([]rings.SQE{opClose(10, 0)}, fails(9, sockets.ECANCELED), cqe(10, 0))
	n.err(accept, sockets.EBADF)
	accept.FD = 1
	n.err(accept, sockets.EINVAL) // a connection
	n.res(opSocket(1, sockDgram), 0)
	accept.FD = 0
	n.err(accept, sockets.EOPNOTSUPP)
	n.idle()
}

// TestRingAcceptPlaces: without a number a connection stays in the backlog, and fixed slots are taken as asked for.
func TestRingAcceptPlaces(t *testing.T) {
	n := newRingNet(t, RingConfig{Sockets: 2, Fixed: 2})
	n.listen(0, 80)
	accept := rings.SQE{Opcode: rings.OpAccept, FD: 0, UserData: 5, IOPrio: rings.AcceptMultishot}
	n.push(accept)
	n.peerDials(80)
	n.peerDials(80)
	n.want(n.take(), more(5, 1), fails(5, sockets.EMFILE))
	accept.IOPrio, accept.FileIndex = 0, 2
	n.res(accept, 0)
	n.peerDials(80)
	accept.FileIndex = 2
	n.res(accept, 0) // the one that was there is closed
	if got := len(n.host.TCPSockets()); got != 4 {
		t.Errorf("%d sockets in the Host, want listener, two and the closing one", got)
	}
	accept.IOPrio, accept.FileIndex = rings.AcceptMultishot, rings.FileIndexAlloc
	n.push(accept)
	n.peerDials(80)
	n.peerDials(80)
	n.want(n.take(), more(5, 0), fails(5, sockets.ENFILE))
	accept.FileIndex = 1
	n.err(accept, sockets.EINVAL)
	n.idle()
}

// TestRingAcceptItself: a listener in the fixed table is not replaced by its own connection.
func TestRingAcceptItself(t *testing.T) {
	n := newRingNet(t, RingConfig{Fixed: 1})
	s := opSocket(1, sockStream)
	s.FileIndex = 1
	n.res(s, 0)
	bind := n.opAddr(rings.OpBind, 2, 0, 0, 80)
	listen := opLen(rings.OpListen, 3, 0, 1)
	accept := rings.SQE{Opcode: rings.OpAccept, UserData: 5, FileIndex: 1}
	bind.Flags, listen.Flags, accept.Flags = rings.SQEFixedSocket, rings.SQEFixedSocket, rings.SQEFixedSocket
	n.res(bind, 0)
	n.res(listen, 0)
	n.peerDials(80)
	n.err(accept, sockets.EINVAL)
}

func TestRingShutdown(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	n.err(opLen(rings.OpShutdown, 1, 0, 3), sockets.EINVAL)
	n.res(opLen(rings.OpShutdown, 1, 0, 1), 0)
	n.err(opMem(rings.OpSend, 2, 0, bufAt, 10), sockets.EPIPE)
	n.wantRead(far, nil)
	n.write(far, []byte("still"))
	n.res(opMem(rings.OpRecv, 3, 0, bufAt, 10), 5)
	n.gives([]rings.SQE{opMem(rings.OpRecv, 4, 0, bufAt, 10)})
	n.gives([]rings.SQE{opLen(rings.OpShutdown, 5, 0, 0)}, cqe(5, 0), cqe(4, 0))
	n.res(opSocket(1, sockStream), 1)
	n.err(opLen(rings.OpShutdown, 6, 1, 2), sockets.ENOTCONN)
	n.res(opSocket(1, sockDgram), 2)
	n.err(opLen(rings.OpShutdown, 6, 2, 2), sockets.ENOTCONN)
	n.res(n.opAddr(rings.OpConnect, 2, 2, peerAddr, 5000), 0)
	n.gives([]rings.SQE{opMem(rings.OpRecv, 4, 2, bufAt, 10)})
	n.gives([]rings.SQE{opLen(rings.OpShutdown, 6, 2, 2)}, cqe(6, 0), cqe(4, 0))
	n.err(opMem(rings.OpSend, 2, 2, bufAt, 10), sockets.EPIPE)
	n.idle()
}

func TestRingSockOpt(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	set := func(level, name uint32, value uint64, want sockets.Errno) {
		t.Helper()
		n.err(rings.SQE{Opcode: rings.OpSetSockOpt, FD: 0, Len: level, OpFlags: name, Off: value, UserData: 9}, want)
	}
	n.dialed(0)
	set(solTCP, tcpNoDelay, 0, 0)
	n.res(opMem(rings.OpSend, 1, 0, bufAt, 10), 10)
	n.push(opMem(rings.OpSend, 2, 0, bufAt, 10), opMem(rings.OpSend, 3, 0, bufAt, 10))
	n.settle()
	if len(n.sent) != 0 {
		t.Error("a small segment leaves behind one that is not acknowledged: Nagle is off")
	}
	n.push(rings.SQE{Opcode: rings.OpSetSockOpt, FD: 0, Len: solTCP, OpFlags: tcpNoDelay, Off: 1})
	n.settle()
	if len(n.sent) != 1 {
		t.Errorf("without Nagle %d frames leave, want one of two writes", len(n.sent))
	}
	n.take()
	set(solSocket, soKeepAlive, 1, 0)
	set(solTCP, tcpKeepIdle, 10, 0)
	set(solTCP, tcpKeepIntvl, 1, 0)
	set(solTCP, tcpKeepCnt, 2, 0)
	before := n.peer.host.Counters().Stats[sockets.RxTCP]
	n.pass(15e9)
	if got := n.peer.host.Counters().Stats[sockets.RxTCP] - before; got == 0 {
		t.Error("no keep-alive probe")
	}
	set(solTCP, tcpKeepCnt, 128, sockets.EINVAL)
	set(solTCP, tcpKeepIdle, 0, sockets.EINVAL)
	set(solTCP, 99, 1, sockets.ENOPROTOOPT)
	set(1<<16|solTCP, tcpNoDelay, 1, sockets.ENOPROTOOPT)
	n.idle()
}

// TestRingSockOptBefore: what is set before there is a connection holds for it.
func TestRingSockOptBefore(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	n.onPeer(func(h *sockets.Host, _ int64) { h.TCPListen(0, 80) })
	n.res(opSocket(1, sockStream), 0)
	for _, s := range [][3]uint32{{solSocket, soKeepAlive, 1}, {solTCP, tcpKeepIdle, 10}, {solTCP, tcpNoDelay, 0}} {
		n.res(rings.SQE{Opcode: rings.OpSetSockOpt, Len: s[0], OpFlags: s[1], Off: uint64(s[2])}, 0)
	}
	n.res(n.opAddr(rings.OpConnect, 2, 0, peerAddr, 80), 0)
	n.res(opMem(rings.OpSend, 1, 0, bufAt, 10), 10)
	n.push(opMem(rings.OpSend, 2, 0, bufAt, 10), opMem(rings.OpSend, 3, 0, bufAt, 10))
	if n.settle(); len(n.sent) != 0 {
		t.Error("Nagle is off")
	}
	n.take()
	before := n.peer.host.Counters().Stats[sockets.RxTCP]
	n.pass(15e9)
	if got := n.peer.host.Counters().Stats[sockets.RxTCP] - before; got == 0 {
		t.Error("no keep-alive probe")
	}
}

// TestRingLinger: CLOSE ends a connection with FIN, and with RST where SO_LINGER was set without time.
func TestRingLinger(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	closing := func(value uint64) (read int, err sockets.Errno) {
		t.Helper()
		far := n.dialed(0)
		n.res(*new(rings.SQE).PrepReset(0), 0)
		linger := new(rings.SQE).PrepReset(0)
		linger.Off = value
		n.res(*linger, 0)
		n.res(opClose(1, 0), 0)
		n.onPeer(func(h *sockets.Host, now int64) {
			read, err = h.TCPRead(far, make([]byte, 1), now)
			h.Close(far, now)
		})
		return read, err
	}
	if n, err := closing(0); n != 0 || err != 0 {
		t.Errorf("without SO_LINGER the peer reads %d, %v", n, err)
	}
	if _, err := closing(1); err != sockets.ECONNRESET {
		t.Errorf("with SO_LINGER the peer reads %v, want ECONNRESET", err)
	}
}

// TestRingChain: a whole conversation in one chain, through a slot of the fixed table.
func TestRingChain(t *testing.T) {
	n := newRingNet(t, RingConfig{Fixed: 1})
	var l, far sockets.Handle
	n.onPeer(func(h *sockets.Host, _ int64) { l, _ = h.TCPListen(0, 80) })
	chain := []rings.SQE{
		opSocket(1, sockStream), n.opAddr(rings.OpConnect, 2, 0, peerAddr, 80),
		opMem(rings.OpSend, 3, 0, bufAt, 5), opMem(rings.OpRecv, 4, 0, bufAt+100, 100), {Opcode: rings.OpClose, FileIndex: 1, UserData: 5},
	}
	chain[0].FileIndex = 1
	for i := range chain[:4] {
		chain[i].Flags = rings.SQELink
		if i > 0 {
			chain[i].Flags |= rings.SQEFixedSocket
		}
	}
	copy(n.data[bufAt:], "hello")
	n.gives(chain, cqe(1, 0), cqe(2, 0), cqe(3, 5))
	n.onPeer(func(h *sockets.Host, _ int64) { far, _ = h.TCPAccept(l) })
	n.wantRead(far, []byte("hello"))
	n.write(far, []byte("and you"))
	n.want(n.take(), cqe(4, 7), cqe(5, 0))
	if string(n.bytes(bufAt+100, 7)) != "and you" {
		t.Errorf("received %q", n.bytes(bufAt+100, 7))
	}
	chain[1].Addr = n.addr(900, peerAddr, 81)
	n.gives(chain, cqe(1, 0), fails(2, sockets.ECONNREFUSED), fails(3, sockets.ECANCELED), fails(4, sockets.ECANCELED), fails(5, sockets.ECANCELED))
	n.idle()
}

// TestRingGetSockOpt: what getsockopt tells of a connection, and that an error is told once.
func TestRingGetSockOpt(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	get := func(level, name uint32) rings.SQE {
		return rings.SQE{Opcode: rings.OpGetSockOpt, FD: 0, Len: level, OpFlags: name, UserData: 9}
	}
	far := n.dialed(0)
	n.res(get(solSocket, soError), 0)
	info, _ := n.r.host.TCPStat(n.q.socks.at(0).h)
	n.res(get(solTCP, tcpMaxSeg), int32(info.MSS))
	s := get(solTCP, tcpInfo)
	s.Addr, s.Off = bufAt, 1000
	n.res(s, tcpInfoSize)
	b := n.data[bufAt:]
	if b[0] != 1 || int(binary.NativeEndian.Uint32(b[16:])) != info.MSS || binary.NativeEndian.Uint64(b[120:]) != info.BytesAcked {
		t.Errorf("state %d, %d bytes a segment, want 1, %d: %v", b[0], binary.NativeEndian.Uint32(b[16:]), info.MSS, b[:tcpInfoSize])
	}
	s.Off = 8
	n.res(s, 8)
	s.Addr = 1 << 40
	n.err(s, sockets.EFAULT)
	n.err(get(solTCP, 99), sockets.ENOPROTOOPT)
	bad := get(solSocket, soError)
	bad.BufGroup = 1
	n.err(bad, sockets.EINVAL)
	n.onPeer(func(h *sockets.Host, now int64) { h.TCPAbort(far, now) })
	n.pass(1e6)
	n.res(get(solSocket, soError), int32(sockets.ECONNRESET))
	n.res(get(solSocket, soError), 0)
	n.res(opClose(10, 0), 0)
	n.res(opSocket(1, sockDgram), 0)
	n.res(get(solSocket, soError), 0)
	n.res(n.opAddr(rings.OpConnect, 2, 0, peerAddr, 9), 0)
	n.res(opMem(rings.OpSend, 3, 0, bufAt, 10), 10) // nobody has the port
	n.res(rings.SQE{Opcode: rings.OpPollAdd, UserData: 4}, int32(sockets.Err))
	n.res(get(solSocket, soError), int32(sockets.ECONNREFUSED))
	n.gives([]rings.SQE{{Opcode: rings.OpPollAdd, UserData: 4}})
	n.gives([]rings.SQE{opCancel(5, 4)}, fails(4, sockets.ECANCELED), cqe(5, 0))
	n.res(opSocket(1, sockStream), 1) // of what is no connection there is nothing to tell
	s = get(solTCP, tcpInfo)
	s.FD, s.Addr, s.Off = 1, bufAt, 1000
	n.res(s, tcpInfoSize)
	if b[0] != 7 || !bytes.Equal(b[24:40], make([]byte, 16)) { // from tcpi_unacked to tcpi_retrans
		t.Errorf("no connection: state %d, segments %v", b[0], b[24:40])
	}
	n.idle()
}

// TestRingUserTimeout: what a peer does not acknowledge ends the connection when TCP_USER_TIMEOUT is over, set before it was there or later.
func TestRingUserTimeout(t *testing.T) {
	for _, before := range []bool{true, false} {
		n := newRingNet(t, RingConfig{})
		limit := rings.SQE{Opcode: rings.OpSetSockOpt, Len: solTCP, OpFlags: tcpUserLimit, Off: 3000}
		if before {
			n.onPeer(func(h *sockets.Host, _ int64) { h.TCPListen(0, 80) })
			n.res(opSocket(1, sockStream), 0)
			n.res(limit, 0)
			n.res(n.opAddr(rings.OpConnect, 2, 0, peerAddr, 80), 0)
		} else {
			n.dialed(0)
			n.res(limit, 0)
		}
		n.cut = true
		n.res(opMem(rings.OpSend, 1, 0, bufAt, 10), 10)
		n.gives([]rings.SQE{opMem(rings.OpRecv, 4, 0, bufAt, 10)})
		n.pass(2.9e9)
		n.want(n.take())
		n.pass(4e9)
		n.want(n.take(), cqe(4, -int32(sockets.ETIMEDOUT)))
	}
}
