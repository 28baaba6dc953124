package sockets

import (
	"math/rand/v2"
	"reflect"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
	"xdpd/umem"
)

// ahead is a frame that the kit's Host may look at ahead.
func (k *kit) ahead(frame []byte) Piece {
	f := k.fill[len(k.fill)-1]
	copy(k.pool.Chunk(f)[umem.Headroom:], frame)
	return Piece{f, umem.Headroom, uint16(len(frame))}
}

// TestAhead: what is read ahead is what the packets will need, each part of it, and nothing is changed by it.
func TestAhead(t *testing.T) {
	k, c := established(t)
	s := k.bind(0, 7)
	tcp, udp := c.seg(ack, pattern(8)).frame(), udpFrame(1000, 7, pattern(8))
	before := *k.h.Counters()
	read := func(frame []byte) uint32 {
		k.h.Ahead([]Piece{k.ahead(frame)})
		return k.h.seen
	}
	b, u := c.tcb(), k.h.udp.get(s)
	for _, r := range []struct {
		what  string
		frame []byte
		add   func(n int)
	}{
		{"the first line of a connection", tcp, func(n int) { b.key.Local += proto.Addr(n) }},
		{"its second line", tcp, func(n int) { b.sndFrames += uint16(n) }},
		{"its third line", tcp, func(n int) { b.heardAt += uint32(n) }},
		{"its fourth line", tcp, func(n int) { b.ackAt += uint32(n) }},
		{"a UDP socket", udp, func(n int) { u.bytes += n }},
	} {
		was := read(r.frame)
		r.add(3)
		if got := read(r.frame) - was; got != 3 {
			t.Errorf("%s: a sum that 3 was added to is %d more", r.what, got)
		}
		r.add(-3)
	}
	// What hangs on a connection: its timer, its queue, its active record.
	c.send(ack, pattern(8))
	was := read(tcp)
	k.pool.Buf(b.rcvTail).Len += 3
	if got := read(tcp) - was; got != 3 {
		t.Errorf("the receive queue is not read: %d", got)
	}
	k.pool.Buf(b.rcvTail).Len -= 3
	k.h.timers.at(b.timer).when += 3
	if got := read(tcp) - was; got != 3 {
		t.Errorf("the timer is not read: %d", got)
	}
	k.h.timers.at(b.timer).when -= 3
	was = read(tcp)
	x := k.h.moving(c.h.index(), b)
	x.sacked = 0
	with := read(tcp)
	x.sacked = 3
	if got := read(tcp) - with; got != 3 || with == was {
		t.Errorf("the active record is not read: %d", got)
	}
	x.sacked = 0
	after := *k.h.Counters()
	before.Stats, after.Stats = [NStats]uint64{}, [NStats]uint64{} // the one segment that was sent
	if before != after {
		t.Errorf("looking ahead counted %+v", after)
	}
}

// TestAheadAllocatesNothing, however many packets it is told of.
func TestAheadAllocatesNothing(t *testing.T) {
	k, c := established(t)
	k.bind(0, 7)
	var next []Piece
	for range AheadMax {
		next = append(next, k.ahead(c.seg(ack, pattern(8)).frame()), k.ahead(udpFrame(1000, 7, nil)))
	}
	if n := testing.AllocsPerRun(100, func() { k.h.Ahead(next) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestAheadGarbage: nothing in a frame, and no place in its chunk, does harm.
func TestAheadGarbage(t *testing.T) {
	k, c := established(t)
	seed := seeds.One(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	good := [][]byte{c.seg(ack, pattern(8)).frame(), udpFrame(1000, 7, pattern(8))}
	for range 20_000 {
		b := append([]byte(nil), good[rng.IntN(2)]...)
		for range rng.IntN(8) {
			b[rng.IntN(len(b))] = byte(rng.Uint32())
		}
		p := k.ahead(b)
		if rng.IntN(4) == 0 {
			p.Off = uint16(rng.IntN(2048))
		}
		if rng.IntN(4) == 0 {
			p.N = uint16(rng.Uint32())
		}
		k.h.Ahead([]Piece{p, p})
	}
	k.h.Ahead(nil)
}

// TestTouch: the words that are read of a record lie on all of its lines, wherever on a line it begins.
func TestTouch(t *testing.T) {
	for _, r := range []struct {
		typ   reflect.Type
		words []string
	}{
		{reflect.TypeFor[tcb](), []string{"key", "sndFrames", "heardAt", "ackAt"}},
		{reflect.TypeFor[udpSock](), []string{"key", "bytes"}},
	} {
		var at uintptr
		for i, w := range r.words {
			f, _ := r.typ.FieldByName(w)
			if i == 0 && f.Offset != 0 || f.Offset-at > 64 {
				t.Errorf("%v: there is a line between %s and the word before", r.typ, w)
			}
			at = f.Offset
		}
		if r.typ.Size()-at > 64 {
			t.Errorf("%v: there is a line behind %s", r.typ, r.words[len(r.words)-1])
		}
	}
}

// TestCrowded: a Host with few sockets does not look ahead.
func TestCrowded(t *testing.T) {
	k := newKit(t)
	for i := range aheadFrom {
		if k.h.Crowded() {
			t.Fatalf("%d sockets are a crowd", i)
		}
		k.bind(0, uint16(1000+i))
	}
	if !k.h.Crowded() {
		t.Errorf("%d sockets are none", aheadFrom)
	}
}

// TestWheelAhead: where many timers run, those that fire were told of before, all of them, some at a time; where few do,
// none.
func TestWheelAhead(t *testing.T) {
	for _, n := range []uint32{aheadFrom / 2, aheadFrom + 1000} {
		w := newWheel(0)
		told := map[uint32]bool{}
		w.ahead = func(owners []uint32) {
			if len(owners) > AheadMax {
				t.Errorf("told of %d at a time", len(owners))
			}
			for _, o := range owners {
				told[o] = true
			}
		}
		for o := range n {
			w.start(w.alloc(o), 10*tickNS)
		}
		fired, unknown := 0, 0
		w.advance(20*tickNS, func(owner uint32) {
			if fired++; !told[owner] {
				unknown++
			}
		})
		// As they fire, those left become few.
		if want := int(min(n, aheadFrom)); fired != int(n) || unknown > want || n < aheadFrom && len(told) != 0 || n > aheadFrom && unknown == fired {
			t.Errorf("%d timers: %d fired, of which %d were not told of", n, fired, unknown)
		}
	}
}
