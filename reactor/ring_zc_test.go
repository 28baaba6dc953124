package reactor

import (
	"bytes"
	"testing"

	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// lent is the table's entry for a completion, and the bytes that it says.
func (n *ringNet) lent(c rings.CQE) (id uint16, l rings.Lent, b []byte) {
	n.t.Helper()
	if c.Flags&rings.CQEBuffer == 0 {
		n.t.Fatalf("completion %v lends nothing", c)
	}
	id = uint16(c.Flags >> rings.CQEBufferShift)
	l = rings.ParseLent(n.data[tableAt+int(id)*rings.LentSize:])
	return id, l, n.pool.Region().Mem()[l.Addr:][:l.Len]
}

func opReturn(user uint64, id uint16) rings.SQE {
	return rings.SQE{Opcode: rings.OpReturn, UserData: user, BufGroup: id}
}

func opSendZC(user uint64, fd int32, id uint16, length uint32) rings.SQE {
	return rings.SQE{Opcode: rings.OpSendZC, UserData: user, FD: fd, BufGroup: id, Len: length}
}

func opRecvZC(user uint64, fd int32) rings.SQE {
	return rings.SQE{Opcode: rings.OpRecvZC, FD: fd, UserData: user}
}

func notif(user uint64, res int32) rings.CQE {
	return rings.CQE{UserData: user, Res: res, Flags: rings.CQENotif}
}

// allFree checks that nothing is lent any more.
func (n *ringNet) allFree() {
	n.t.Helper()
	if n.q.lends.n != len(n.q.lends.list) || n.q.lends.sent != 0 || n.pool.Ledger().Counts()[umem.Lent] != 0 {
		n.t.Fatalf("%d of %d entries free, %d sent, %d frames lent", n.q.lends.n, len(n.q.lends.list), n.q.lends.sent, n.pool.Ledger().Counts()[umem.Lent])
	}
}

func TestRingRecvZC(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	want := fill(make([]byte, 1000), 0)
	n.gives([]rings.SQE{opRecvZC(1, 0)})
	n.write(far, want)
	got := n.take()
	if len(got) != 1 || got[0].Res != 1000 {
		t.Fatalf("completions %v", got)
	}
	id, l, b := n.lent(got[0])
	_, remote := n.host.TCPAddr(n.q.socks.at(0).h)
	if !bytes.Equal(b, want) || l.Next != 0 || l.Src != remote {
		t.Errorf("lent %+v, equal %v; the peer is %v", l, bytes.Equal(b, want), remote)
	}
	f, _ := n.pool.Region().FrameOf(l.Addr)
	if owner := n.pool.Ledger().Owner(f); owner != umem.Lent {
		t.Errorf("the frame is %v's", owner)
	}
	n.res(opClose(2, 0), 0)
	n.res(opReturn(3, id), 0)
	n.err(opReturn(3, id), sockets.ENOENT)
	n.err(opReturn(3, id+1), sockets.ENOENT)
	n.err(opReturn(3, 60000), sockets.ENOENT)
	n.err(opRecvZC(4, 0), sockets.EBADF)
	n.allFree()
	n.idle()
}

// TestRingRecvZCMultishot: a completion for each frame until none can be lent; what is not lent is not lost.
func TestRingRecvZCMultishot(t *testing.T) {
	n := newRingNet(t, RingConfig{Lends: 3, LendTable: tableAt})
	n.res(opSocket(1, sockDgram), 0)
	n.res(n.opAddr(rings.OpBind, 2, 0, 0, 53), 0)
	multi := opRecvZC(3, 0)
	multi.IOPrio = rings.RecvMultishot
	n.gives([]rings.SQE{multi})
	for i := range 4 {
		n.deliver(n.udpFrame(53, []byte{byte(i), 1, 2}))
	}
	got := n.take()
	if len(got) != 4 || got[3] != fails(3, sockets.ENOBUFS) {
		t.Fatalf("completions %v", got)
	}
	var ids []uint16
	for i, c := range got[:3] {
		id, l, b := n.lent(c)
		if c.Res != 3 || c.Flags&rings.CQEMore == 0 || b[0] != byte(i) || l.Src != peerPort {
			t.Errorf("completion %v, entry %+v, data %v", c, l, b)
		}
		ids = append(ids, id)
	}
	n.err(opRecvZC(4, 0), sockets.ENOBUFS)
	n.res(opReturn(5, ids[1]), 0)
	c := n.one(opRecvZC(6, 0))
	if _, _, b := n.lent(c); c.Res != 3 || b[0] != 3 {
		t.Errorf("the one that was left: %v, %v", c, b)
	}
	n.idle()
	// what is still lent, Close takes back: newRingNet looks
}

// TestRingRecvZCChain: a reassembled datagram is lent as it lies, in linked pieces; one that never fits goes.
func TestRingRecvZCChain(t *testing.T) {
	n := newRingNet(t, RingConfig{Lends: 3, LendTable: tableAt})
	n.res(opSocket(1, sockDgram), 0)
	n.res(n.opAddr(rings.OpBind, 2, 0, 0, 53), 0)
	var far sockets.Handle
	n.onPeer(func(h *sockets.Host, _ int64) { far, _ = h.UDPBind(0, 5000) })
	want := fill(make([]byte, 6000), 0)
	send := func(size int) {
		n.onPeer(func(h *sockets.Host, now int64) {
			if err := h.UDPSend(far, want[:size], addrPort(ourAddr, 53), now); err != 0 {
				t.Fatal(err)
			}
		})
	}
	send(4000)
	c := n.one(opRecvZC(1, 0))
	var got []byte
	id, l, b := n.lent(c)
	for {
		got = append(got, b...)
		n.res(opReturn(9, id), 0)
		if l.Next == 0 {
			break
		}
		id, l, b = n.lent(rings.CQE{Flags: rings.CQEBuffer | (l.Next-1)<<rings.CQEBufferShift})
	}
	if c.Res != 4000 || !bytes.Equal(got, want[:4000]) {
		t.Errorf("%v; %d bytes, or they differ", c, len(got))
	}
	send(10)
	c = n.one(opRecvZC(1, 0))
	id, _, _ = n.lent(c)
	send(4000)
	n.err(opRecvZC(1, 0), sockets.ENOBUFS) // two entries are left
	n.res(opReturn(2, id), 0)
	if c = n.one(opRecvZC(1, 0)); c.Res != 4000 {
		t.Errorf("completion %v", c)
	}
	for id := range uint16(3) {
		n.res(opReturn(2, id), 0)
	}
	send(6000)
	send(10)
	n.err(opRecvZC(1, 0), sockets.EMSGSIZE)
	if c = n.one(opRecvZC(1, 0)); c.Res != 10 {
		t.Errorf("completion %v", c)
	}
}

// TestRingEchoZC: what comes in a frame leaves in it, by TCP and by UDP, and the application is told when it is free.
func TestRingEchoZC(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	for i := range 50 {
		want := fill(make([]byte, 900), i)
		n.write(far, want)
		c := n.one(opRecvZC(1, 0))
		id, l, _ := n.lent(c)
		n.dev.prompt = false
		n.push(opSendZC(2, 0, id, uint32(c.Res)))
		n.settle()
		frame, _ := n.pool.Region().FrameOf(l.Addr)
		if owner := n.pool.Ledger().Owner(frame); owner != umem.TX {
			t.Fatalf("the frame is %v's, want the device's", owner)
		}
		n.transmit(10)
		n.dev.Complete(10)
		n.dev.prompt = true
		n.wantRead(far, want)
		n.pass(100_000_000)
		n.want(n.take(), rings.CQE{UserData: 2, Res: 900, Flags: rings.CQEMore}, notif(2, 0))
	}
	n.res(opSocket(3, sockDgram), 1)
	n.res(n.opAddr(rings.OpBind, 4, 1, 0, 53), 0)
	n.deliver(n.udpFrame(53, []byte("ping")))
	c := n.one(opRecvZC(5, 1))
	id, l, _ := n.lent(c)
	s := opSendZC(6, 1, id, 4)
	s.Off, s.FileIndex = n.addr(16, peerAddr, l.Src.Port()), 16
	n.gives([]rings.SQE{s}, rings.CQE{UserData: 6, Res: 4, Flags: rings.CQEMore}, notif(6, 0))
	n.deliver(n.udpFrame(53, []byte("pong")))
	id, _, _ = n.lent(n.one(opRecvZC(7, 1)))
	n.dev.prompt = false
	s.UserData, s.BufGroup = 8, id
	n.push(s)
	n.settle()
	n.transmit(10)
	// A completion wakes nobody, but the application waits for what it brings: the reactor looks.
	if deadline := n.settle(); deadline > n.clock.Now()+blockedNS {
		t.Errorf("with a lent frame at the device the reactor sleeps for %d ns", deadline-n.clock.Now())
	}
	n.dev.Complete(10)
	n.dev.prompt = true
	n.want(n.take(), rings.CQE{UserData: 8, Res: 4, Flags: rings.CQEMore}, notif(8, 0))
	counters := n.q.Counters()
	if counters.SentZC != 52 || counters.CopiedZC != 0 {
		t.Errorf("%d frames sent as they lay and %d bytes copied, want 52 and 0", counters.SentZC, counters.CopiedZC)
	}
	if copied := n.host.Counters().Copied; copied != [sockets.NCopies]uint64{} {
		t.Errorf("the Host copied %v bytes", copied)
	}
	n.allFree()
	n.idle()
}

// TestRingFrameGet: a frame that the application writes, whole or a part of it.
func TestRingFrameGet(t *testing.T) {
	n := newRingNet(t, RingConfig{Lends: 2, LendTable: tableAt})
	far := n.dialed(0)
	get := rings.SQE{Opcode: rings.OpFrameGet, UserData: 1}
	c := n.one(get)
	id, l, b := n.lent(c)
	if int(c.Res) != len(b) || len(b) != 2048-umem.Headroom || l.Next != 0 {
		t.Fatalf("completion %v, entry %+v", c, l)
	}
	want := fill(b[:1000], 5)
	s := opSendZC(2, 0, id, 500)
	s.Addr = 100
	got := n.submit(s)
	n.pass(100_000_000)
	n.want(append(got, n.take()...), rings.CQE{UserData: 2, Res: 500, Flags: rings.CQEMore}, notif(2, 0))
	n.wantRead(far, want[100:600])
	n.err(s, sockets.ENOENT)
	first := n.one(get)
	second := n.one(get)
	n.err(get, sockets.ENOBUFS)
	id, _, _ = n.lent(first)
	for _, x := range [][2]uint64{{1793, 0}, {1792, 1}, {0, 1793}, {1, 1792}} {
		s := opSendZC(2, 0, id, uint32(x[1]))
		s.Addr = x[0]
		n.err(s, sockets.EFAULT)
	}
	n.res(opReturn(3, id), 0)
	id, _, _ = n.lent(second)
	n.err(opSendZC(2, 7, id, 1), sockets.EBADF)
	n.res(opSocket(4, sockStream), 1)
	n.err(opSendZC(2, 1, id, 1), sockets.EPIPE)
	n.res(opReturn(3, id), 0) // which is the application's after an error
	n.allFree()
	n.idle()
}

// TestRingSendZCCopied: more than a segment is copied, and the notification says so to who asked.
func TestRingSendZCCopied(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	for _, report := range []bool{false, true} {
		c := n.one(rings.SQE{Opcode: rings.OpFrameGet, UserData: 1})
		id, _, b := n.lent(c)
		want := append([]byte{}, fill(b, 1)...)
		s := opSendZC(2, 0, id, uint32(len(b)))
		res := int32(0)
		if report {
			s.IOPrio, res = rings.ReportUsage, rings.NotifCopied
		}
		n.gives([]rings.SQE{s}, rings.CQE{UserData: 2, Res: int32(len(b)), Flags: rings.CQEMore}, notif(2, res))
		n.wantRead(far, want)
	}
	if counters := n.q.Counters(); counters.SentZC != 0 || counters.CopiedZC != 2*(2048-umem.Headroom) {
		t.Errorf("%+v", counters)
	}
	if copied := n.host.Counters().Copied[sockets.CopySend]; copied != 2*(2048-umem.Headroom) {
		t.Errorf("the Host counts %d bytes copied", copied)
	}
	n.allFree()
	n.idle()
}

// TestRingCopies: SEND and RECV cost a copy each, which the Host counts by the byte.
func TestRingCopies(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	n.res(opMem(rings.OpSend, 1, 0, bufAt, 1000), 1000)
	n.write(far, fill(make([]byte, 700), 1))
	n.res(opMem(rings.OpRecv, 2, 0, bufAt, 1000), 700)
	copied := n.host.Counters().Copied
	if copied[sockets.CopySend] != 1000 || copied[sockets.CopyRecv] != 700 {
		t.Errorf("%v bytes copied, want 700 to a reader and 1000 from a writer", copied)
	}
	n.idle()
}

// TestRingSendZCWaits: one that finds no room waits; canceled, the frame is the application's; returned meanwhile, it is
// not sent.
func TestRingSendZCWaits(t *testing.T) {
	n := newRingNet(t, RingConfig{}, options{frames: 1024, ring: 256, change: func(_ *Config, h *sockets.Config) { h.SndBuf = 8192 }})
	n.dialed(0)
	all := opMem(rings.OpSend, 1, 0, bufAt, 300_000)
	all.OpFlags = rings.MsgWaitAll
	n.gives([]rings.SQE{all})
	n.submit(opCancel(2, 1)) // nobody reads: the queue is full
	id, _, _ := n.lent(n.one(rings.SQE{Opcode: rings.OpFrameGet, UserData: 1}))
	n.gives([]rings.SQE{opSendZC(2, 0, id, 100)})
	n.gives([]rings.SQE{opCancel(3, 2)}, fails(2, sockets.ECANCELED), cqe(3, 0))
	n.gives([]rings.SQE{opSendZC(4, 0, id, 100)})
	n.res(opReturn(5, id), 0)
	again, _, _ := n.lent(n.one(rings.SQE{Opcode: rings.OpFrameGet, UserData: 6}))
	if again != id {
		t.Fatalf("entry %d, want %d again", again, id)
	}
	n.q.markReady(0)
	n.want(n.take(), fails(4, sockets.ENOENT))
	n.gives([]rings.SQE{opSendZC(7, 0, id, 100), opClose(8, 0)}, fails(7, sockets.ECANCELED), cqe(8, 0))
	n.res(opReturn(9, id), 0)
	n.allFree()
	n.idle()
}

// TestRingCloseZC: a ring that is closed takes back what is lent, and forgets what is being sent; the next ring does not
// hear of it.
func TestRingCloseZC(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	n.one(rings.SQE{Opcode: rings.OpFrameGet, UserData: 1})
	id, _, b := n.lent(n.one(rings.SQE{Opcode: rings.OpFrameGet, UserData: 1}))
	want := append([]byte{}, fill(b[:100], 1)...)
	n.push(opSendZC(2, 0, id, 100))
	n.settle()
	n.q.Close()
	if lent := n.pool.Ledger().Counts()[umem.Lent]; lent != 0 {
		t.Errorf("%d frames are lent after Close", lent)
	}
	n.r.tag-- // the worst that can be: it has the same tag
	q, err := NewRing(n.r, RingConfig{Data: n.data, Lends: lendCount, LendTable: tableAt})
	if err != nil {
		t.Fatal(err)
	}
	n.q, n.c = q, q.Client()
	n.wantRead(far, want)
	n.pass(1e9)
	n.gives(nil)
	if rx, _, tx, _ := n.host.Held(); rx != 0 || tx != 0 {
		t.Errorf("%d and %d frames are held", rx, tx)
	}
	n.allFree()
	q.Close()
}
