package sockets

import (
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
)

// TestDemuxAgainstMap enters, finds and removes flows of all kinds of records at random, beside a map.
func TestDemuxAgainstMap(t *testing.T) {
	seed := seeds.One(t)
	r := rand.New(rand.NewPCG(seed, 0))
	k := newKit(t)
	tab := &k.h.tcp
	type rec struct{ kind, index uint32 }
	want := map[flowKey]rec{}
	random := func() flowKey {
		return flowKey{Local: usIP, Remote: peerIP, LPort: svc, RPort: uint16(r.IntN(3000))}
	}
	remove := func(f flowKey) {
		w := want[f]
		tab.flows.del(f)
		switch w.kind {
		case demuxTCB:
			c := tab.at(w.index)
			c.used, c.next, tab.free = false, tab.free, w.index+1
			tab.conns--
			tab.setBy[c.setting]--
		case demuxHalf:
			tab.half.release(w.index)
		case demuxTW:
			tab.tw.release(w.index)
		}
		delete(want, f)
	}
	for step := range 100_000 {
		f := random()
		w, there := want[f]
		// By turns the table fills and empties.
		if grow := step/10_000%2 == 0; !there && (grow || r.IntN(4) == 0) {
			w = rec{kind: demuxTCB + r.Uint32N(3)}
			switch w.kind {
			case demuxTCB:
				w.index, _ = k.h.tcpAlloc(f)
			case demuxHalf:
				i, p := tab.half.alloc()
				w.index, p.key = i, f
				tab.flows.put(demuxHalf, i)
			case demuxTW:
				i, p := tab.tw.alloc()
				w.index, p.key = i, f
				tab.flows.put(demuxTW, i)
			}
			want[f] = w
		} else if there && (!grow || r.IntN(4) == 0) {
			remove(f)
		}
		for _, f := range []flowKey{f, random()} {
			w := want[f]
			if kind, index := tab.flows.get(f); kind != w.kind || index != w.index {
				t.Fatalf("step %d: record of port %d is %d of kind %d, want %d of kind %d", step, f.RPort, index, kind, w.index, w.kind)
			}
		}
		if tab.flows.n != len(want) {
			t.Fatalf("step %d: %d entries, want %d", step, tab.flows.n, len(want))
		}
		if tab.flows.del(flowKey{RPort: 1}); tab.flows.n != len(want) {
			t.Fatal("what is not there was removed")
		}
	}
	for f := range want {
		remove(f)
	}
	for i := range tab.flows.parts {
		for _, s := range tab.flows.parts[i].slots {
			if s != 0 {
				t.Fatal("an empty table has entries")
			}
		}
	}
}

// TestSlab: records are zero when they are handed out, stay where they are, and are used again before there are more.
func TestSlab(t *testing.T) {
	var s slab[[2]uint64]
	at := map[uint32]*[2]uint64{}
	for n := range uint64(1000) {
		i, p := s.alloc()
		if *p != [2]uint64{} || at[i] != nil || s.at(i) != p {
			t.Fatalf("record %d: %v, handed out before: %v", i, *p, at[i] != nil)
		}
		at[i] = p
		p[0], p[1] = n+1, uint64(i)
	}
	for i, p := range at {
		if s.at(i) != p || p[1] != uint64(i) {
			t.Fatalf("record %d moved or changed", i)
		}
	}
	for i := range at {
		s.release(i)
	}
	if s.n != 0 {
		t.Fatalf("%d in use, want none", s.n)
	}
	for range 1000 {
		i, p := s.alloc()
		if at[i] != p || *p != [2]uint64{} {
			t.Fatalf("record %d is %v, and the one released: %v", i, *p, at[i] == p)
		}
		delete(at, i)
	}
	if len(s.chunks) != 4 {
		t.Errorf("%d chunks for 1000 records of 256 a chunk", len(s.chunks))
	}
}

// TestFIFOAgainstSlice pushes to and removes from a list at random, beside a slice.
func TestFIFOAgainstSlice(t *testing.T) {
	seed := seeds.One(t)
	r := rand.New(rand.NewPCG(seed, 0))
	var links [50]link
	at := func(i uint32) *link { return &links[i] }
	var q fifo
	var want []uint32
	for range 20_000 {
		i := r.Uint32N(uint32(len(links)))
		found := -1
		for n, w := range want {
			if w == i {
				found = n
			}
		}
		if found < 0 {
			q.push(i, at)
			want = append(want, i)
		} else {
			q.remove(i, at)
			want = append(want[:found], want[found+1:]...)
		}
		n, prev := 0, uint32(0)
		for l := q.head; l != 0; l = links[l-1].next {
			if n == len(want) || want[n] != l-1 || links[l-1].prev != prev {
				t.Fatalf("entry %d is %d, want %v", n, l-1, want)
			}
			prev = l
			n++
		}
		if n != len(want) || q.tail != prev {
			t.Fatalf("%d entries and tail %d, want %d and %d", n, q.tail, len(want), prev)
		}
	}
}
