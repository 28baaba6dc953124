package reactor

import (
	"bytes"
	"maps"
	"net/netip"
	"testing"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
)

// group makes ring number id of provided buffers: so many of that size from bufAt on, numbered from 100.
func (n *ringNet) group(id uint16, count, size int) *rings.BufGiver {
	n.t.Helper()
	const at = 1024
	g, ok := rings.NewBufGiver(n.data[at : at+16*64])
	if !ok {
		n.t.Fatal("no ring of buffers")
	}
	n.res(rings.SQE{Opcode: rings.OpBufRing, Addr: at, Len: 64, BufGroup: id, UserData: 99}, 0)
	for i := range count {
		g.Add(rings.Buf{Addr: uint64(bufAt + i*size), Len: uint32(size), ID: uint16(100 + i)})
	}
	g.Publish()
	return g
}

func selectBuf(op rings.Op, user uint64, fd int32, group, ioprio uint16) rings.SQE {
	return rings.SQE{Opcode: op, FD: fd, Flags: rings.SQEBufferSelect, IOPrio: ioprio, BufGroup: group, UserData: user}
}

// buf is the completion of a request that used buffer id.
func buf(user uint64, res int32, id uint32, flags uint32) rings.CQE {
	return rings.CQE{UserData: user, Res: res, Flags: flags | rings.CQEBuffer | id<<rings.CQEBufferShift}
}

func TestRingRecvStream(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	want := fill(make([]byte, 3000), 0)
	n.gives([]rings.SQE{opMem(rings.OpRecv, 1, 0, bufAt, 100)})
	n.write(far, want)
	n.want(n.take(), rings.CQE{UserData: 1, Res: 100, Flags: rings.CQESockNonempty})
	all := opMem(rings.OpRecv, 2, 0, bufAt+100, 3900)
	all.OpFlags = rings.MsgWaitAll
	n.gives([]rings.SQE{all})
	n.write(far, want[:500])
	n.gives(nil)
	n.write(far, want[500:1000])
	n.want(n.take(), cqe(2, 3900))
	if !bytes.Equal(n.bytes(bufAt, 4000), append(append([]byte{}, want...), want[:1000]...)) {
		t.Error("the bytes are not those that were sent")
	}
	now := opMem(rings.OpRecv, 3, 0, bufAt, 10)
	now.OpFlags = rings.MsgDontWait
	n.err(now, sockets.EAGAIN)
	first := opMem(rings.OpRecv, 4, 0, bufAt, 10)
	first.IOPrio = rings.PollFirst
	n.gives([]rings.SQE{first})
	n.write(far, []byte("x"))
	n.want(n.take(), cqe(4, 1))
	n.gives([]rings.SQE{all, nop(9, 0)}, cqe(9, 0))
	n.write(far, want[:7])
	n.onPeer(func(h *sockets.Host, now int64) { h.TCPShutdown(far, now) })
	n.want(n.take(), cqe(2, 7)) // short: the end came before all
	n.res(opMem(rings.OpRecv, 5, 0, bufAt, 10), 0)
	n.idle()
}

// TestRingRecvErrors: what an SQE of RECV may not ask for, and what a socket may not be.
func TestRingRecvErrors(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	n.write(far, []byte("data"))
	change := func(f func(s *rings.SQE)) rings.SQE {
		s := opMem(rings.OpRecv, 1, 0, bufAt, 10)
		f(&s)
		return s
	}
	for name, f := range map[string]func(s *rings.SQE){
		"MSG_PEEK":                     func(s *rings.SQE) { s.OpFlags = 2 },
		"multishot without buffers":    func(s *rings.SQE) { s.IOPrio = rings.RecvMultishot },
		"a bundle without buffers":     func(s *rings.SQE) { s.IOPrio = rings.RecvBundle },
		"a group and no BUFFER_SELECT": func(s *rings.SQE) { s.BufGroup = 1 },
		"an address and BUFFER_SELECT": func(s *rings.SQE) { s.Flags = rings.SQEBufferSelect },
		"more than an int":             func(s *rings.SQE) { s.Len = 1 << 31 },
		"a destination":                func(s *rings.SQE) { s.FileIndex = 16 },
		"addr3":                        func(s *rings.SQE) { s.Addr3 = 1 },
		"multishot and a length":       func(s *rings.SQE) { *s = selectBuf(s.Opcode, 1, 0, 1, rings.RecvMultishot); s.Len = 5 },
		"multishot and nothing to tell": func(s *rings.SQE) {
			*s = selectBuf(s.Opcode, 1, 0, 1, rings.RecvMultishot)
			s.Flags |= rings.SQESkipSuccess
		},
	} {
		if c := n.one(change(f)); c.Res != -int32(sockets.EINVAL) {
			t.Errorf("%s: %d", name, c.Res)
		}
	}
	for _, c := range [][2]uint64{{dataSize, 1}, {dataSize - 9, 10}, {1 << 63, 10}, {^uint64(0), 1}, {^uint64(0) - 8, 10}, {0, dataSize + 1}} {
		n.err(change(func(s *rings.SQE) { s.Addr, s.Len = c[0], uint32(c[1]) }), sockets.EFAULT)
		n.err(rings.SQE{Opcode: rings.OpSend, Addr: c[0], Len: uint32(c[1]), UserData: 1}, sockets.EFAULT)
	}
	n.res(change(func(s *rings.SQE) {}), 4) // and nothing of it was lost
	n.err(change(func(s *rings.SQE) { s.FD = 5 }), sockets.EBADF)
	n.res(opSocket(1, sockStream), 1)
	n.err(change(func(s *rings.SQE) { s.FD = 1 }), sockets.ENOTCONN)
	n.err(opMem(rings.OpSend, 1, 1, bufAt, 10), sockets.EPIPE)
	n.err(opMem(rings.OpRecvFrom, 1, 1, bufAt, 100), sockets.ENOTCONN)
	n.gives([]rings.SQE{opMem(rings.OpRecv, 1, 0, bufAt, 10)})
	n.onPeer(func(h *sockets.Host, now int64) { h.TCPAbort(far, now) })
	n.want(n.take(), fails(1, sockets.ECONNRESET))
	n.res(opMem(rings.OpRecv, 1, 0, bufAt, 10), 0)
	n.err(opMem(rings.OpSend, 1, 0, bufAt, 10), sockets.EPIPE)
	n.idle()
}

// TestRingReset: what a request had moved when the peer reset is told, and the error by the next one.
func TestRingReset(t *testing.T) {
	for _, send := range []bool{false, true} {
		n := newRingNet(t, RingConfig{}, options{frames: 1024, ring: 256, change: func(_ *Config, h *sockets.Config) { h.SndBuf = 8192 }})
		far := n.dialed(0)
		all := opMem(rings.OpRecv, 1, 0, bufAt, 100)
		if send {
			all = opMem(rings.OpSend, 1, 0, bufAt, 500_000)
		}
		all.OpFlags, all.Flags = rings.MsgWaitAll, rings.SQELink
		n.gives([]rings.SQE{all, nop(2, 0)})
		if !send {
			n.write(far, []byte("part"))
		}
		n.onPeer(func(h *sockets.Host, now int64) { h.TCPAbort(far, now) })
		got := n.take()
		if len(got) != 2 || got[0].UserData != 1 || got[0].Res <= 0 || got[0].Res >= int32(all.Len) || got[1] != fails(2, sockets.ECANCELED) {
			t.Fatalf("completions %v: want less than all, and the end of the chain", got)
		}
		n.err(opMem(rings.OpRecv, 3, 0, bufAt, 10), sockets.ECONNRESET)
		n.res(opMem(rings.OpRecv, 3, 0, bufAt, 10), 0)
		n.idle()
	}
}

func TestRingRecvCancel(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	all := opMem(rings.OpRecv, 1, 0, bufAt, 100)
	n.gives([]rings.SQE{all, opCancel(2, 1)}, fails(1, sockets.ECANCELED), cqe(2, 0))
	all.OpFlags = rings.MsgWaitAll
	n.gives([]rings.SQE{all})
	n.write(far, []byte("part"))
	n.gives([]rings.SQE{opCancel(2, 1)}, cqe(1, 4), cqe(2, 0)) // what was received is not lost
	n.gives([]rings.SQE{opCancel(2, 1)}, fails(2, sockets.ENOENT))
	n.gives([]rings.SQE{all, opClose(3, 0)}, fails(1, sockets.ECANCELED), cqe(3, 0))
	n.idle()
}

func TestRingBufRing(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	reg := rings.SQE{Opcode: rings.OpBufRing, Addr: 1024, Len: 64, BufGroup: 7, UserData: 1}
	bad := func(f func(s *rings.SQE), want sockets.Errno) {
		t.Helper()
		s := reg
		f(&s)
		n.err(s, want)
	}
	bad(func(s *rings.SQE) { s.Len = 63 }, sockets.EINVAL)
	bad(func(s *rings.SQE) { s.Addr++ }, sockets.EINVAL)
	bad(func(s *rings.SQE) { s.Len = 1 << 16 }, sockets.EINVAL)
	bad(func(s *rings.SQE) { s.Addr = dataSize - 16*64 + 8 }, sockets.EFAULT)
	bad(func(s *rings.SQE) { s.Addr = ^uint64(7) }, sockets.EFAULT)
	bad(func(s *rings.SQE) { s.Len = 0 }, sockets.ENOENT)
	n.res(reg, 0)
	bad(func(s *rings.SQE) {}, sockets.EEXIST)
	bad(func(s *rings.SQE) { s.Len = 0 }, 0)
	n.res(reg, 0)
	n.idle()
}

// TestRingMultishot: a completion for each arrival, each in a buffer of its own, until there is none.
func TestRingMultishot(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	g := n.group(7, 3, 16)
	n.gives([]rings.SQE{selectBuf(rings.OpRecv, 1, 0, 7, rings.RecvMultishot)})
	n.write(far, fill(make([]byte, 20), 0))
	n.want(n.take(), buf(1, 16, 100, rings.CQEMore|rings.CQESockNonempty), buf(1, 4, 101, rings.CQEMore))
	n.write(far, fill(make([]byte, 20), 20))
	n.want(n.take(), buf(1, 16, 102, rings.CQEMore|rings.CQESockNonempty), fails(1, sockets.ENOBUFS))
	if got := append(append([]byte{}, n.bytes(bufAt, 20)...), n.bytes(bufAt+32, 16)...); !bytes.Equal(got, fill(make([]byte, 36), 0)) {
		t.Error("wrong bytes in the buffers")
	}
	g.Add(rings.Buf{Addr: bufAt, Len: 16, ID: 555})
	g.Publish()
	n.gives([]rings.SQE{selectBuf(rings.OpRecv, 2, 0, 7, rings.RecvMultishot)}, buf(2, 4, 555, rings.CQEMore))
	g.Add(rings.Buf{Addr: bufAt, Len: 16, ID: 556})
	g.Publish()
	n.onPeer(func(h *sockets.Host, now int64) { h.TCPShutdown(far, now) })
	n.want(n.take(), cqe(2, 0)) // the end takes no buffer
	n.err(selectBuf(rings.OpRecv, 3, 0, 8, 0), sockets.ENOBUFS)
	n.gives([]rings.SQE{selectBuf(rings.OpRecv, 3, 0, 7, 0)}, cqe(3, 0))
	n.idle()
}

// TestRingBufHostile: buffers that lie outside, and a tail that makes no sense.
func TestRingBufHostile(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	g := n.group(7, 0, 0)
	for i, b := range []rings.Buf{{Addr: dataSize - 1, Len: 2}, {Addr: ^uint64(0), Len: 1}, {Addr: bufAt}, {Addr: bufAt, Len: 10}} {
		b.ID = uint16(i)
		g.Add(b)
	}
	g.Publish()
	n.write(far, []byte("hello"))
	for range 3 {
		n.err(selectBuf(rings.OpRecv, 1, 0, 7, 0), sockets.EFAULT)
	}
	n.gives([]rings.SQE{selectBuf(rings.OpRecv, 1, 0, 7, 0)}, buf(1, 5, 3, 0))
	for range 65 {
		g.Add(rings.Buf{Addr: bufAt, Len: 10})
	}
	g.Publish()
	n.write(far, []byte("hello"))
	n.err(selectBuf(rings.OpRecv, 1, 0, 7, 0), sockets.ENOBUFS)
}

func TestRingBundle(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	n.group(7, 6, 16)
	n.write(far, fill(make([]byte, 50), 0))
	n.gives([]rings.SQE{selectBuf(rings.OpRecv, 1, 0, 7, rings.RecvBundle)}, buf(1, 50, 100, 0))
	if !bytes.Equal(n.bytes(bufAt, 50), fill(make([]byte, 50), 0)) {
		t.Error("wrong bytes in the buffers")
	}
	n.write(far, fill(make([]byte, 50), 0))
	n.gives([]rings.SQE{selectBuf(rings.OpRecv, 1, 0, 7, rings.RecvBundle|rings.RecvMultishot)},
		buf(1, 32, 104, rings.CQEMore|rings.CQESockNonempty), fails(1, sockets.ENOBUFS))
	n.idle()
}

// TestRingBundleHostile: a buffer that is none ends the bundle before it, and the next request tells of it.
func TestRingBundleHostile(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	g := n.group(7, 1, 16)
	g.Add(rings.Buf{Addr: ^uint64(0), Len: 1, ID: 101})
	g.Add(rings.Buf{Addr: bufAt + 16, Len: 16, ID: 102})
	g.Publish()
	n.write(far, fill(make([]byte, 20), 0))
	s := selectBuf(rings.OpRecv, 1, 0, 7, rings.RecvBundle)
	n.gives([]rings.SQE{s, s, s}, buf(1, 16, 100, rings.CQESockNonempty), fails(1, sockets.EFAULT), buf(1, 4, 102, 0))
	if !bytes.Equal(n.bytes(bufAt, 20), fill(make([]byte, 20), 0)) {
		t.Error("wrong bytes in the buffers")
	}
	n.idle()
}

// TestRingSelectWaitAll: all goes into the one buffer that was taken with the first byte, and a cancel names it.
func TestRingSelectWaitAll(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	n.group(7, 2, 16)
	s := selectBuf(rings.OpRecv, 1, 0, 7, 0)
	s.OpFlags = rings.MsgWaitAll
	n.gives([]rings.SQE{s})
	n.write(far, fill(make([]byte, 7), 0))
	n.write(far, fill(make([]byte, 9), 7))
	n.want(n.take(), buf(1, 16, 100, 0))
	if !bytes.Equal(n.bytes(bufAt, 16), fill(make([]byte, 16), 0)) {
		t.Error("wrong bytes in the buffer")
	}
	n.gives([]rings.SQE{s})
	n.write(far, []byte("abc"))
	n.gives([]rings.SQE{opCancel(2, 1)}, buf(1, 3, 101, 0), cqe(2, 0))
	n.idle()
}

// TestRingSend: what fits is sent, all if asked for, and a canceled one tells what it sent.
func TestRingSend(t *testing.T) {
	n := newRingNet(t, RingConfig{}, options{frames: 1024, ring: 256, change: func(_ *Config, h *sockets.Config) { h.SndBuf = 8192 }})
	far := n.dialed(0)
	const length = 300_000
	want := fill(n.bytes(bufAt, length), 0)
	c := n.one(opMem(rings.OpSend, 1, 0, bufAt, length))
	if c.Res <= 0 || c.Res >= length {
		t.Fatalf("SEND of more than fits gives %d", c.Res)
	}
	n.wantRead(far, want[:c.Res])
	all := opMem(rings.OpSend, 2, 0, bufAt, length)
	all.OpFlags = rings.MsgWaitAll
	n.gives([]rings.SQE{all})
	var got []byte
	for range 200 {
		n.onPeer(func(h *sockets.Host, now int64) {
			b := make([]byte, 1<<16)
			k, _ := h.TCPRead(far, b, now)
			got = append(got, b[:k]...)
		})
		n.pass(10_000_000)
	}
	n.want(n.take(), cqe(2, length))
	if !bytes.Equal(got, want) {
		t.Errorf("the peer read %d bytes, or they differ", len(got))
	}
	n.gives([]rings.SQE{all})
	cs := n.submit(opCancel(3, 2))
	if len(cs) != 2 || cs[0].UserData != 2 || cs[0].Res <= 0 || cs[0].Res >= length || cs[1] != cqe(3, 0) {
		t.Errorf("a canceled SEND gives %v", cs)
	}
	now := opMem(rings.OpSend, 4, 0, bufAt, length)
	now.OpFlags = rings.MsgDontWait
	n.err(now, sockets.EAGAIN)
	n.gives([]rings.SQE{opMem(rings.OpSend, 5, 0, bufAt, 10), opClose(6, 0)}, fails(5, sockets.ECANCELED), cqe(6, 0))
	n.idle()
}

func TestRingSendSelect(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	n.group(7, 2, 16)
	copy(n.data[bufAt:], fill(make([]byte, 32), 0))
	n.gives([]rings.SQE{selectBuf(rings.OpSend, 1, 0, 7, 0)}, buf(1, 16, 100, 0))
	s := selectBuf(rings.OpSend, 2, 0, 7, 0)
	s.Len = 5
	n.gives([]rings.SQE{s}, buf(2, 5, 101, 0))
	n.wantRead(far, fill(make([]byte, 21), 0))
	n.err(s, sockets.ENOBUFS)
	n.idle()
}

// TestRingSendArea: a registered area goes out whole, however long it takes.
func TestRingSendArea(t *testing.T) {
	area := fill(make([]byte, 400_000), 3)
	n := newRingNet(t, RingConfig{Areas: [][]byte{nil, area}})
	far := n.dialed(0)
	s := rings.SQE{Opcode: rings.OpSendArea, BufGroup: 1, Off: 1000, Len: 399_000, UserData: 1}
	n.push(s)
	var got []byte
	for range 100 {
		n.onPeer(func(h *sockets.Host, now int64) {
			b := make([]byte, 1<<16)
			k, _ := h.TCPRead(far, b, now)
			got = append(got, b[:k]...)
		})
		n.pass(10_000_000)
	}
	n.want(n.take(), cqe(1, 399_000))
	if !bytes.Equal(got, area[1000:]) {
		t.Errorf("the peer read %d bytes, or they differ", len(got))
	}
	s.Len++
	n.err(s, sockets.EFAULT)
	s.Off = ^uint64(0)
	n.err(s, sockets.EFAULT)
	s.BufGroup = 2
	n.err(s, sockets.EINVAL)
	n.res(opSocket(1, sockDgram), 1)
	n.err(rings.SQE{Opcode: rings.OpSendArea, FD: 1, BufGroup: 1, Len: 10}, sockets.EOPNOTSUPP)
	n.idle()
}

// TestRingSlotReused: a socket that is closed while it waits for its turn, and whose number another one gets at once, loses
// nobody who waits behind it.
func TestRingSlotReused(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	n.res(opSocket(1, sockDgram), 0)
	n.res(opSocket(1, sockDgram), 1)
	n.res(n.opAddr(rings.OpBind, 2, 1, 0, 9), 0)
	n.onPeer(func(h *sockets.Host, now int64) {
		s, _ := h.UDPBind(0, 0)
		h.UDPSend(s, []byte("hello"), addrPort(ourAddr, 9), now)
	})
	n.run()
	first, second := opMem(rings.OpRecv, 3, 0, bufAt, 10), opMem(rings.OpRecv, 4, 1, bufAt, 10)
	first.IOPrio, second.IOPrio = rings.PollFirst, rings.PollFirst
	n.gives([]rings.SQE{first, second, opClose(5, 0), opSocket(6, sockDgram)}, fails(3, sockets.ECANCELED), cqe(5, 0), cqe(6, 0), cqe(4, 5))
	n.idle()
}

// TestRingUDP: datagrams to and from whom the addresses say, cut off where the buffer ends.
func TestRingUDP(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	var far sockets.Handle
	n.onPeer(func(h *sockets.Host, _ int64) { far, _ = h.UDPBind(0, 5000) })
	n.res(opSocket(1, sockDgram), 0)
	n.err(opMem(rings.OpSend, 1, 0, bufAt, 10), sockets.EDESTADDRREQ)
	to := opMem(rings.OpSend, 2, 0, bufAt, 2000)
	to.Off, to.FileIndex = n.addr(16, peerAddr, 5000), rings.SockAddrSize
	want := fill(n.bytes(bufAt, 2000), 0)
	n.res(to, 2000) // in fragments
	var local netip.AddrPort
	n.onPeer(func(h *sockets.Host, now int64) {
		b := make([]byte, 4000)
		d, err := h.UDPRecv(far, b)
		if err != 0 || !bytes.Equal(b[:d.N], want) {
			t.Fatalf("the peer received %+v, %v", d, err)
		}
		local = d.Src
	})
	send := func(size int) {
		n.onPeer(func(h *sockets.Host, now int64) {
			if err := h.UDPSend(far, want[:size], local, now); err != 0 {
				t.Fatal(err)
			}
		})
	}
	send(100)
	n.res(opMem(rings.OpRecv, 3, 0, bufAt+4000, 60), 60)
	send(100)
	trunc := opMem(rings.OpRecv, 3, 0, bufAt+4000, 60)
	trunc.OpFlags = rings.MsgTrunc
	n.res(trunc, 100)
	send(100)
	n.res(opMem(rings.OpRecvFrom, 4, 0, bufAt+4000, 60+rings.RecvHeaderSize), 60+rings.RecvHeaderSize)
	h, cut := rings.ParseRecvHeader(n.data[bufAt+4000:])
	if h.Src != netip.AddrPortFrom(peerAddr.Netip(), 5000) || h.Size != 100 || !cut || !bytes.Equal(n.bytes(bufAt+4000+rings.RecvHeaderSize, 60), want[:60]) {
		t.Errorf("header %+v, cut off: %v", h, cut)
	}
	n.group(7, 3, 64)
	n.gives([]rings.SQE{selectBuf(rings.OpRecvFrom, 5, 0, 7, rings.RecvMultishot)})
	send(5)
	send(0)
	n.want(n.take(), buf(5, 37, 100, rings.CQEMore), buf(5, 32, 101, rings.CQEMore))
	n.gives([]rings.SQE{opCancel(6, 5)}, fails(5, sockets.ECANCELED), cqe(6, 0))
	send(5)
	n.err(opMem(rings.OpRecvFrom, 4, 0, bufAt, rings.RecvHeaderSize-1), sockets.EFAULT)
	n.res(opMem(rings.OpRecv, 4, 0, bufAt, 10), 5)
	to.FileIndex = 15
	n.err(to, sockets.EINVAL)
	n.res(n.opAddr(rings.OpConnect, 7, 0, peerAddr, 5001), 0) // where nobody is
	n.res(opMem(rings.OpSend, 8, 0, bufAt, 10), 10)
	n.err(opMem(rings.OpRecv, 9, 0, bufAt, 10), sockets.ECONNREFUSED)
	n.gives([]rings.SQE{opMem(rings.OpRecv, 10, 0, bufAt, 10), opClose(11, 0)}, fails(10, sockets.ECANCELED), cqe(11, 0))
	n.idle()
}

// ports notes what a ring tells about ports.
type ports struct {
	taken, open map[portKey]int
	kept        int
	err, full   sockets.Errno
}

func (p *ports) Take(protocol uint8, local proto.Addr, port uint16) sockets.Errno {
	if p.full == 0 {
		p.taken[portKey{protocol, local, port}]++
	}
	return p.full
}

func (p *ports) Give(protocol uint8, local proto.Addr, port uint16) {
	if p.taken[portKey{protocol, local, port}]--; p.taken[portKey{protocol, local, port}] == 0 {
		delete(p.taken, portKey{protocol, local, port})
	}
}

func (p *ports) Open(protocol uint8, local proto.Addr, port uint16) sockets.Errno {
	if p.err == 0 {
		p.open[portKey{protocol, local, port}]++
	}
	return p.err
}

func (p *ports) Close(protocol uint8, local proto.Addr, port uint16) {
	p.open[portKey{protocol, local, port}]--
}

func (p *ports) Keep(*sockets.Host, sockets.Handle) sockets.Errno {
	if p.err == 0 {
		p.kept++
	}
	return p.err
}

// TestRingPorts: each port is opened once, and closed with its socket, however that ends.
func TestRingPorts(t *testing.T) {
	p := &ports{taken: map[portKey]int{}, open: map[portKey]int{}}
	n := newRingNet(t, RingConfig{Ports: p})
	n.dialed(0)
	n.listen(1, 80)
	n.res(opSocket(1, sockDgram), 2)
	n.res(n.opAddr(rings.OpBind, 2, 2, ourAddr, 53), 0)
	n.push(rings.SQE{Opcode: rings.OpAccept, FD: 1, UserData: 5})
	n.peerDials(80)
	n.want(n.take(), cqe(5, 3))
	if p.kept != 2 || p.open[portKey{proto.ProtoTCP, 0, 80}] != 1 || p.open[portKey{proto.ProtoUDP, ourAddr, 53}] != 1 || len(p.open) != 2 {
		t.Errorf("%+v", p)
	}
	if !maps.Equal(p.taken, p.open) {
		t.Errorf("open are %v, taken %v", p.open, p.taken)
	}
	n.onPeer(func(h *sockets.Host, _ int64) { h.TCPListen(0, 81) })
	n.res(opSocket(1, sockStream), 4)
	n.res(n.opAddr(rings.OpBind, 2, 4, 0, 90), 0)
	if key := (portKey{proto.ProtoTCP, 0, 90}); p.taken[key] != 1 || p.open[key] != 0 {
		t.Errorf("of a bound socket's port: %+v", p)
	}
	n.res(n.opAddr(rings.OpConnect, 2, 4, peerAddr, 81), 0)
	if p.taken[portKey{proto.ProtoTCP, 0, 90}] != 0 {
		t.Errorf("what was bound is the connection's: %+v", p)
	}
	n.res(opClose(1, 4), 0)
	p.full = sockets.EADDRINUSE
	for _, typ := range []uint64{sockStream, sockDgram} {
		n.res(opSocket(1, typ), 4)
		n.err(n.opAddr(rings.OpBind, 2, 4, 0, 91), sockets.EADDRINUSE)
		n.res(opClose(1, 4), 0)
	}
	p.full, p.err = 0, sockets.ENFILE
	n.res(opSocket(1, sockDgram), 4)
	n.err(n.opAddr(rings.OpBind, 2, 4, ourAddr, 54), sockets.ENFILE)
	n.res(opSocket(1, sockStream), 5)
	n.err(n.opAddr(rings.OpConnect, 2, 5, peerAddr, 80), sockets.ENFILE)
	n.res(opClose(1, 1), 0)
	n.q.Close()
	for k, open := range p.open {
		if open != 0 {
			t.Errorf("%+v is open %d times", k, open)
		}
	}
	if len(p.taken) != 0 {
		t.Errorf("ports are taken yet: %v", p.taken)
	}
	n.enter(func(h *sockets.Host, _ int64) {
		for port := uint16(53); port < 100; port++ { // nor does the Host have any
			if _, err := h.UDPBind(0, port); err != 0 {
				t.Errorf("UDP port %d: %v", port, err)
			}
			if _, err := h.TCPBind(0, port); err != 0 {
				t.Errorf("TCP port %d: %v", port, err)
			}
		}
	})
}
