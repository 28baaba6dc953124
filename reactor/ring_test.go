package reactor

import (
	"errors"
	"testing"

	"xdpd/rings"
	"xdpd/sockets"
)

func TestRingNop(t *testing.T) {
	g := newRingRig(t, RingConfig{})
	g.want(g.do(nop(1, 0), nop(2, 0)), cqe(1, 0), cqe(2, 0))
	g.want(g.do(rings.SQE{Opcode: rings.OpNop, IOPrio: 1, UserData: 3}), fails(3, sockets.EINVAL))
	g.want(g.do(rings.SQE{Opcode: 255, UserData: 4}), fails(4, sockets.EINVAL))
	g.want(g.do(nop(5, rings.SQESkipSuccess), nop(6, 0)), cqe(6, 0))
	g.idle()
}

// A sleeping reactor is not woken to do what the submitter's own thread can do.
func TestRingSleeping(t *testing.T) {
	g := ringOn(newRig(t, options{realTime: true}), RingConfig{SQEntries: 8})
	stop := g.run()
	for i := range uint64(50) {
		if i%2 == 0 {
			g.awaitAsleep()
		}
		g.push(nop(i, 0))
		if n, err := g.c.Wait(1, hang); n != 1 || err != nil {
			t.Fatalf("Wait gives %d, %v", n, err)
		}
		c, _ := g.c.Peek()
		if c != cqe(i, 0) {
			t.Fatalf("completion %v", c)
		}
		g.c.Seen(1)
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if _, err := g.c.Wait(1, hang); err != ErrRingClosed {
		t.Errorf("Wait after the end: %v", err)
	}
}

// What a LINK_TIMEOUT cuts off tells how far it came: bytes that were taken from the stream are not lost.
func TestRingLinkTimeoutProgress(t *testing.T) {
	n := newRingNet(t, RingConfig{})
	far := n.dialed(0)
	recv := with(opMem(rings.OpRecv, 1, 0, bufAt, 10), rings.SQELink)
	recv.OpFlags = rings.MsgWaitAll
	n.gives([]rings.SQE{recv, with(linkTimeout(2, 1e9), rings.SQELink), nop(3, 0)})
	n.write(far, []byte("four"))
	n.pass(1e9)
	n.want(n.take(), fails(2, sockets.ETIME), cqe(1, 4), fails(3, sockets.ECANCELED))
	if got := string(n.bytes(bufAt, 4)); got != "four" {
		t.Errorf("received %q", got)
	}
}

// TestRingsLimit: a reactor has so many rings and no more, and a place that is given back is one again. Each has a tag of
// its own, however many came and went.
func TestRingsLimit(t *testing.T) {
	g := newRig(t, options{})
	small := RingConfig{SQEntries: 1, CQEntries: 1, Requests: 1, Sockets: 1, Messages: 1}
	var first *Ring
	for i := range maxRings {
		q, err := NewRing(g.r, small)
		if err != nil {
			t.Fatalf("ring %d: %v", i, err)
		}
		if first == nil {
			first = q
		}
	}
	g.r.tag = 1<<16 - 10 // so that tags begin anew, where the oldest rings have theirs
	for range 20 {
		if _, err := NewRing(g.r, small); !errors.Is(err, ErrTooManyRings) {
			t.Fatalf("one ring too many: %v", err)
		}
		first.Close()
		var err error
		if first, err = NewRing(g.r, small); err != nil {
			t.Fatalf("in the place of a closed one: %v", err)
		}
	}
	tags := map[uint16]bool{0: true}
	for _, q := range g.r.rings {
		if tags[q.tag] || g.r.tagged[q.tag] != q {
			t.Fatalf("tag %d is another ring's as well", q.tag)
		}
		tags[q.tag] = true
	}
	if len(g.r.tagged) != maxRings {
		t.Errorf("%d tags of %d rings", len(g.r.tagged), maxRings)
	}
}
