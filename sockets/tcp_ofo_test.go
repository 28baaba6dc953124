package sockets

import (
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/umem"
)

// TestTCPOutOfOrderRandom sends pieces of a stream in any order and overlap: what is SACKed is held, no frame is held for
// nothing, and what is read in the end is the stream.
func TestTCPOutOfOrderRandom(t *testing.T) {
	for range 300 {
		seed := seeds.One(t)
		t.Run("", func(t *testing.T) { ofoRandom(t, seed) })
	}
}

func ofoRandom(t *testing.T, seed uint64) {
	rnd := rand.New(rand.NewPCG(seed, 0))
	k := newKit(t)
	l, _ := k.h.TCPListen(0, svc)
	c := conn{tpeer: newPeer(k, svc, 1000), l: l}
	synSent(k, c.tpeer, concat(optMSS(1460), []byte{1, 1, 4, 2}))
	c.ackAll()
	c.h, _ = k.h.TCPAccept(l)
	stream := pattern(60)
	held := make([]bool, len(stream)+1) // behind the stream stands the FIN
	for range 40 {
		from := 1 + rnd.IntN(len(stream)-1)
		to := from + rnd.IntN(len(stream)-from+1)
		s := c.seg(ack, stream[from:to])
		s.seq += uint32(from)
		if to == len(stream) && rnd.IntN(2) == 0 {
			s.flags |= fin
			held[to] = true
		} else if from == to {
			continue
		}
		c.inject(s)
		c.got()
		for i := from; i < to; i++ {
			held[i] = true
		}
		x := k.h.activeOf(c.tcb())
		at := c.seq
		for f := x.ofoHead; f != umem.None; f = k.pool.Buf(f).Next {
			b := k.pool.Buf(f)
			if seqLT(b.Seq, at) || b.Len == 0 && b.Flags&bufFIN == 0 {
				t.Fatalf("seed %d: a frame of %d bytes at %d, behind what ends at %d", seed, b.Len, b.Seq-c.seq, at-c.seq)
			}
			at = b.Seq + uint32(b.Len)
		}
		for n, b := range x.sacks[:x.nsack] {
			from, to := int(b[0]-c.seq), int(b[1]-c.seq)
			if from < 1 || to <= from || held[from-1] || to < len(stream) && held[to] {
				t.Fatalf("seed %d: block %d is [%d,%d), of what is held: %v", seed, n, from, to, held)
			}
			for i := from; i < to; i++ {
				if !held[i] {
					t.Fatalf("seed %d: byte %d SACKed and not held", seed, i)
				}
			}
		}
		for i := range stream {
			if got := ofoHolds(k, x, c.seq+uint32(i)); got != held[i] {
				t.Fatalf("seed %d: byte %d held: %v, want %v", seed, i, got, held[i])
			}
		}
	}
	s := c.seg(ack|fin, stream)
	c.inject(s)
	c.wantRead(stream)
	c.wantEOF(0)
	c.got()
}

// ofoHolds reports whether the byte of a number is held out of order.
func ofoHolds(k *kit, x *active, seq uint32) bool {
	for f := x.ofoHead; f != umem.None; f = k.pool.Buf(f).Next {
		if b := k.pool.Buf(f); seq-b.Seq < uint32(b.Len) {
			return true
		}
	}
	return false
}

// TestTCPOutOfOrderBytes: single bytes do not hold a frame each without end, and full segments fill the window.
func TestTCPOutOfOrderBytes(t *testing.T) {
	k, c := established(t)
	for n := range uint32(2000) {
		s := c.seg(ack, []byte{1})
		s.seq += 1 + 2*n
		c.inject(s)
		k.sent()
	}
	if rx, _, _, _ := k.h.Held(); rx*ofoFrameBytes > rcvBufStart {
		t.Errorf("%d frames held for as many bytes", rx)
	}
	k, c = established(t)
	for n := range uint32(40) {
		s := c.seg(ack, pattern(1460))
		s.seq += 1 + 1460*n
		c.inject(s)
		k.sent()
	}
	if rx, _, _, _ := k.h.Held(); rx != 40 {
		t.Errorf("%d frames held of 40 full segments", rx)
	}
}

// TestTCPOutOfOrderDeadPeer: what came out of order from a peer that fell silent does not hold frames for ever.
func TestTCPOutOfOrderDeadPeer(t *testing.T) {
	k, c := established(t)
	data := pattern(3000)
	for _, at := range []uint32{1000, 2000} {
		s := c.seg(ack, data[at:at+1000])
		s.seq += at
		c.inject(s)
	}
	c.got()
	k.sleep(119 * second)
	if rx, _, _, _ := k.h.Held(); rx != 2 {
		t.Fatalf("%d frames held after two minutes, want 2", rx)
	}
	k.sleep(4 * second)
	if rx, _, _, _ := k.h.Held(); rx != 0 || k.h.tcp.act.n != 0 && k.h.activeOf(c.tcb()).nsack != 0 {
		t.Errorf("%d frames held for a peer that is not heard", rx)
	}
	for ; len(data) > 0; data = data[1000:] { // it was only away
		c.send(ack, data[:1000])
	}
	c.wantRead(pattern(3000))
	c.got()
}

// TestTCPDataBehindFIN: a FIN that came before its turn stays where it is, whatever data a peer sends for the same numbers.
func TestTCPDataBehindFIN(t *testing.T) {
	_, c := established(t)
	end := c.seg(fin|ack, nil)
	end.seq += 1000
	beyond := c.seg(ack, pattern(1500)[500:])
	beyond.seq += 500
	c.inject(end, beyond)
	c.send(ack, pattern(1500)[:500])
	c.wantRead(pattern(1500)[:1000])
	c.wantEOF(0)
	c.wantState(tcpCloseWait)
}

// TestTCPFINCut: a FIN whose segment is cut by what is there behind it goes with what is cut off.
func TestTCPFINCut(t *testing.T) {
	_, c := established(t)
	there, cut := c.seg(ack, pattern(300)[150:]), c.seg(fin|ack, pattern(200)[100:])
	there.seq += 150
	cut.seq += 100
	c.inject(there, cut)
	c.send(ack, pattern(100))
	c.wantRead(pattern(300))
	c.wantState(tcpEstablished)
}
