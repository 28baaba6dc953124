package sockets

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	"xdpd/umem"
)

// TestUDPTake: a datagram is lent in the frame that it came in, and is the application's until it gives it back.
func TestUDPTake(t *testing.T) {
	k := newKit(t)
	s := k.bind(0, 7)
	if _, _, err := k.h.UDPTake(s, 1); err != EAGAIN {
		t.Errorf("with nothing there: %v", err)
	}
	frame := k.fill[len(k.fill)-1]
	want := pattern(700)
	k.inject(udpFrame(5000, 7, want), udpFrame(5001, 7, nil))
	f, d, err := k.h.UDPTake(s, 1)
	if err != 0 || f != frame || d.N != 700 || d.Size != 700 || d.Src != port(peerIP, 5000) || !d.More || !bytes.Equal(k.pool.Data(f), want) {
		t.Fatalf("frame %d, %+v, %v", f, d, err)
	}
	if owner := k.pool.Ledger().Owner(f); owner != umem.Lent || k.h.rxUsed != 2 {
		t.Errorf("the frame is %v's, %d count as received", owner, k.h.rxUsed)
	}
	g, d, err := k.h.UDPTake(s, 1)
	if err != 0 || d.N != 0 || d.More || len(k.pool.Data(g)) != 0 {
		t.Fatalf("an empty datagram: %+v, %v", d, err)
	}
	k.h.Close(s, k.now)
	k.h.Give(g)
	k.h.Give(f)
	if k.h.rxUsed != 0 || k.pool.Ledger().Owner(f) != umem.Free {
		t.Errorf("given back: %v", k.pool.Ledger().Owner(f))
	}
	if _, _, err := k.h.UDPTake(s, 1); err != EBADF {
		t.Errorf("of a closed socket: %v", err)
	}
}

// TestUDPTakeChain: a reassembled datagram is lent as the chain it is, or stays where it is.
func TestUDPTakeChain(t *testing.T) {
	k := newKit(t)
	s := k.bind(0, 7)
	p, want := datagram(1, 4000)
	k.inject(p.fragments(1480)...)
	if _, d, err := k.h.UDPTake(s, 2); err != EMSGSIZE || d.Size != 4000 {
		t.Fatalf("three frames where two may be: %+v, %v", d, err)
	}
	f, d, err := k.h.UDPTake(s, 3)
	if err != 0 || d.N != 4000 {
		t.Fatal(d, err)
	}
	var got []byte
	for f != umem.None {
		next := k.pool.Buf(f).Next
		got = append(got, k.pool.Data(f)...)
		k.h.Give(f)
		f = next
	}
	if !bytes.Equal(got, want) || k.h.rxUsed != 0 {
		t.Errorf("%d bytes, equal %v, %d frames held", len(got), bytes.Equal(got, want), k.h.rxUsed)
	}
}

// TestUDPSendLent: what came in a frame leaves in it, and the sender is told when the device has let go.
func TestUDPSendLent(t *testing.T) {
	k := newKit(t)
	k.late = true
	s := k.bind(0, 7)
	want := pattern(1400)
	k.inject(udpFrame(5000, 7, want))
	f, d, _ := k.h.UDPTake(s, 1)
	off := int(k.pool.Buf(f).Off)
	for name, c := range map[string]struct {
		off, n int
		to     bool
		want   Errno
	}{
		"no destination":   {off, 10, false, EDESTADDRREQ},
		"more than an MTU": {off, 1473, true, EMSGSIZE},
		"no headroom":      {umem.Headroom - 1, 10, true, EMSGSIZE},
		"behind the chunk": {2000, 49, true, EMSGSIZE},
	} {
		dst := d.Src
		if !c.to {
			dst = netip.AddrPort{}
		}
		if err := k.h.UDPSendLent(s, f, c.off, c.n, dst, 0, k.now); err != c.want || k.pool.Ledger().Owner(f) != umem.Lent {
			t.Errorf("%s: %v, and the frame is %v's", name, err, k.pool.Ledger().Owner(f))
		}
	}
	if err := k.h.UDPSendLent(s, f, off+100, 1000, d.Src, 77, k.now); err != 0 {
		t.Fatal(err)
	}
	got := k.one()
	if !bytes.Equal(got.data, want[100:1100]) || got.dport != 5000 || !slices.Equal(k.device, []umem.Frame{f}) {
		t.Errorf("sent %d bytes to %d in frames %v, want frame %d", len(got.data), got.dport, k.device, f)
	}
	if rx, _, tx, _ := k.h.Held(); rx != 0 || tx != 1 {
		t.Errorf("%d and %d frames held: it must count as data to send now", rx, tx)
	}
	if freed := k.h.TakeFreed(nil); len(freed) != 0 {
		t.Errorf("told of %v while the device has it", freed)
	}
	k.complete(1)
	if freed := k.h.TakeFreed(nil); !slices.Equal(freed, []uint32{77}) || k.pool.Ledger().Owner(f) != umem.Free {
		t.Errorf("told of %v; the frame is %v's", freed, k.pool.Ledger().Owner(f))
	}
	if freed := k.h.TakeFreed(nil); len(freed) != 0 {
		t.Errorf("told twice: %v", freed)
	}
}

// TestUDPSendLentLimit: a received frame is sent only where another may be sent, and the socket hears of room.
func TestUDPSendLentLimit(t *testing.T) {
	k := newKit(t)
	s := k.bind(0, 7)
	k.inject(udpFrame(5000, 7, pattern(10)))
	f, d, _ := k.h.UDPTake(s, 1)
	k.events()
	k.h.txUsed += k.h.txLimit
	if err := k.h.UDPSendLent(s, f, int(k.pool.Buf(f).Off), 10, d.Src, 0, k.now); err != EAGAIN {
		t.Fatal(err)
	}
	k.h.txUsed -= k.h.txLimit
	k.h.EndTurn()
	if k.events()[s]&Out == 0 {
		t.Error("not told of room")
	}
	k.h.Give(f)
}

// TestLend: a frame to be written in place counts as data to send, and the last ones are not lent.
func TestLend(t *testing.T) {
	k := newKit(t)
	s := k.bind(0, 7)
	var lent []umem.Frame
	for {
		f, err := k.h.Lend(0)
		if err != 0 {
			if err != EAGAIN {
				t.Fatal(err)
			}
			break
		}
		lent = append(lent, f)
	}
	if want := k.h.txLimit - k.h.txReserve(); len(lent) != want {
		t.Errorf("%d frames lent, want %d", len(lent), want)
	}
	f := lent[0]
	if b := k.pool.Data(f); len(b) != 2048-umem.Headroom {
		t.Fatalf("%d bytes to be written", len(b))
	}
	copy(k.pool.Data(f), "hello")
	if err := k.h.UDPSendLent(s, f, umem.Headroom, 5, port(peerIP, 9), 1, k.now); err != 0 {
		t.Fatal(err)
	}
	if got := k.one(); string(got.data) != "hello" {
		t.Errorf("sent %q", got.data)
	}
	for _, f := range lent[1:] {
		k.h.Give(f)
	}
	if freed := k.h.TakeFreed(nil); k.h.txUsed != 0 || !slices.Equal(freed, []uint32{1}) {
		t.Errorf("%d frames held; told of %v", k.h.txUsed, freed)
	}
}

// TestTCPSendLent: the segment is the lent frame itself; it is free, and told of once, when the peer has acknowledged it and
// the device let go, whichever comes last.
func TestTCPSendLent(t *testing.T) {
	for _, deviceFirst := range []bool{true, false} {
		k, c := established(t)
		k.late = true
		want := pattern(1000)
		c.send(ack, want)
		f, b, err := k.h.TCPTake(c.h, k.now)
		if err != 0 || !bytes.Equal(b, want) {
			t.Fatal(err)
		}
		if err := k.h.TCPSendLent(c.h, f, int(k.pool.Buf(f).Off), 1000, 5, k.now); err != 0 {
			t.Fatal(err)
		}
		wantSeg(t, c.one(), ack, c.ack-1000, c.seq, want)
		if !slices.Equal(k.device, []umem.Frame{f}) {
			t.Fatalf("sent in frames %v, want %d", k.device, f)
		}
		steps := []func(){func() { k.complete(1) }, func() { c.ackAll() }}
		if !deviceFirst {
			slices.Reverse(steps)
		}
		steps[0]()
		if freed := k.h.TakeFreed(nil); len(freed) != 0 {
			t.Errorf("told of %v half-way (device first: %v)", freed, deviceFirst)
		}
		steps[1]()
		if freed := k.h.TakeFreed(nil); !slices.Equal(freed, []uint32{5}) || k.pool.Ledger().Owner(f) != umem.Free {
			t.Errorf("told of %v, the frame is %v's (device first: %v)", freed, k.pool.Ledger().Owner(f), deviceFirst)
		}
		k.check()
	}
}

// TestTCPSendLentRefused: what cannot be sent where it lies stays lent.
func TestTCPSendLentRefused(t *testing.T) {
	k, c := established(t)
	f, _ := k.h.Lend(0)
	mss := int(c.tcb().mss)
	try := func(what string, off, n int, want Errno) {
		t.Helper()
		if err := k.h.TCPSendLent(c.h, f, off, n, 1, k.now); err != want || k.pool.Ledger().Owner(f) != umem.Lent {
			t.Errorf("%s: %v, want %v; the frame is %v's", what, err, want, k.pool.Ledger().Owner(f))
		}
	}
	try("more than a segment", umem.Headroom, mss+1, EMSGSIZE)
	try("no headroom", umem.Headroom-1, 10, EMSGSIZE)
	try("no room for the rest of a segment", 2048-mss+1, 10, EMSGSIZE)
	saved := c.tcb().sndBytes
	c.tcb().sndBytes = 1 << 30
	try("a full send queue", umem.Headroom, 10, EAGAIN)
	c.tcb().sndBytes = saved
	k.h.TCPShutdown(c.h, k.now)
	try("after a shutdown", umem.Headroom, 10, EPIPE)
	k.h.Close(c.h, k.now)
	try("after the end", umem.Headroom, 10, EBADF)
	k.h.Give(f)
	if freed := k.h.TakeFreed(nil); len(freed) != 0 {
		t.Errorf("told of %v, which was never sent", freed)
	}
}

// TestTCPSendLentMerged: small lent frames that go out as one segment are each told of.
func TestTCPSendLentMerged(t *testing.T) {
	k, c := established(t)
	var want []byte
	for i := range 3 {
		f, _ := k.h.Lend(0)
		n := copy(k.pool.Data(f), pattern(100+i))
		want = append(want, pattern(100+i)...)
		if err := k.h.TCPSendLent(c.h, f, umem.Headroom, n, uint32(1+i), k.now); err != 0 {
			t.Fatal(err)
		}
	}
	wantSeg(t, c.one(), ack, c.ack-uint32(len(want)), c.seq, want)
	c.ackAll()
	freed := k.h.TakeFreed(nil)
	slices.Sort(freed)
	if !slices.Equal(freed, []uint32{1, 2, 3}) {
		t.Errorf("told of %v", freed)
	}
}

// TestUntell: nobody is told of a frame that nobody waits for any more, and a reset tells of one that was never sent.
func TestUntell(t *testing.T) {
	k, c := established(t)
	k.late = true
	var fs [2]umem.Frame
	for i := range fs {
		fs[i], _ = k.h.Lend(0)
		if err := k.h.TCPSendLent(c.h, fs[i], umem.Headroom, int(c.tcb().mss), uint32(1+i), k.now); err != 0 {
			t.Fatal(err)
		}
	}
	c.got()
	k.h.Untell(fs[0])
	c.reset()
	if freed := k.h.TakeFreed(nil); len(freed) != 0 {
		t.Errorf("told of %v, which the device still has", freed)
	}
	k.complete(len(k.device))
	if freed := k.h.TakeFreed(nil); !slices.Equal(freed, []uint32{2}) {
		t.Errorf("told of %v, want only the second", freed)
	}
}

// TestTCPSendLentSplit: a lent frame that a small window cuts is told of once.
func TestTCPSendLentSplit(t *testing.T) {
	k, c := established(t)
	c.tcb().maxWnd, c.wnd = 600, 600
	c.ackAll()
	f, _ := k.h.Lend(0)
	want := pattern(1000)
	copy(k.pool.Data(f), want)
	if err := k.h.TCPSendLent(c.h, f, umem.Headroom, 1000, 5, k.now); err != 0 {
		t.Fatal(err)
	}
	wantSeg(t, c.one(), ack, c.ack-600, c.seq, want[:600])
	c.ackAll()
	wantSeg(t, c.one(), ack, c.ack-400, c.seq, want[600:])
	c.ackAll()
	if freed := k.h.TakeFreed(nil); !slices.Equal(freed, []uint32{5}) {
		t.Errorf("told of %v, want it once", freed)
	}
}
