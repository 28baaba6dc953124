package rings_test

import (
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"runtime"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/rings"
)

// starts are the first indices that tests use: zero, and so close to 2^32 that
// the test wraps.
var starts = []uint32{0, 1<<32 - 3}

// value is what the tests put at an index.
func value(idx uint32) uint64 { return uint64(idx)*0x9e3779b97f4a7c15 + 1 }

// both is a ring with both its ends and a model of it: three indices.
type both struct {
	t          *testing.T
	words      *[2]uint32
	entries    []uint64
	p          *rings.Producer[uint64]
	c          *rings.Consumer[uint64]
	head, tail uint32 // reserved up to, published up to
	next       uint32 // released up to
	shown      uint32 // Peek has shown entries up to here
	trace      []string
}

func newBoth(t *testing.T, size int, start uint32) *both {
	b := &both{t: t, words: &[2]uint32{start, start}, entries: make([]uint64, size), head: start, tail: start, next: start, shown: start}
	b.p = rings.NewProducer(&b.words[0], &b.words[1], nil, b.entries)
	b.c = rings.NewConsumer(&b.words[0], &b.words[1], nil, b.entries)
	return b
}

func (b *both) want(what string, got, want uint32) {
	if got != want {
		b.t.Fatalf("size %d, after %v: %s is %d, want %d", len(b.entries), b.trace, what, got, want)
	}
}

func (b *both) reserve(n uint32) {
	idx, got := b.p.Reserve(n)
	b.want("Reserve idx", idx, b.head)
	b.want("Reserve got", got, min(n, uint32(len(b.entries))-(b.head-b.next)))
	for i := range got {
		*b.p.Slot(idx + i) = value(idx + i)
	}
	b.head += got
}

func (b *both) peek(n uint32) {
	idx, got := b.c.Peek(n)
	b.want("Peek idx", idx, b.next)
	b.want("Peek got", got, min(n, b.tail-b.next))
	for i := range got {
		if v := b.c.Read(idx + i); v != value(idx+i) {
			b.t.Fatalf("size %d, after %v: index %d reads %#x, want %#x", len(b.entries), b.trace, idx+i, v, value(idx+i))
		}
	}
	if got > b.shown-b.next {
		b.shown = b.next + got
	}
}

func (b *both) queries() {
	size := uint32(len(b.entries))
	b.want("*prod", b.words[0], b.tail)
	b.want("*cons", b.words[1], b.next)
	b.want("Free", b.p.Free(), size-(b.head-b.next))
	b.want("Pending", b.p.Pending(), b.tail-b.next)
	b.want("Avail", b.c.Avail(), b.tail-b.next)
	b.want("BadPeer", uint32(b.p.BadPeer()+b.c.BadPeer()), 0)
}

// TestRingExhaustive tries every sequence of eight steps on every small ring.
func TestRingExhaustive(t *testing.T) {
	const depth = 8
	for _, size := range []int{1, 2, 4} {
		for _, start := range starts {
			explore(newBoth(t, size, start), depth)
		}
	}
}

type step struct {
	name  string
	legal func(b *both) bool
	do    func(b *both)
}

var steps = []step{
	{"reserve 1", nil, func(b *both) { b.reserve(1) }},
	{"reserve 3", nil, func(b *both) { b.reserve(3) }},
	{"submit 1", func(b *both) bool { return b.head != b.tail }, func(b *both) { b.p.Submit(1); b.tail++ }},
	{"submit all", func(b *both) bool { return b.head-b.tail > 1 }, func(b *both) { b.p.Submit(b.head - b.tail); b.tail = b.head }},
	{"cancel 1", func(b *both) bool { return b.head != b.tail }, func(b *both) { b.p.Cancel(1); b.head-- }},
	{"peek 1", nil, func(b *both) { b.peek(1) }},
	{"peek 3", nil, func(b *both) { b.peek(3) }},
	{"release 1", func(b *both) bool { return b.shown != b.next }, func(b *both) { b.c.Release(1); b.next++ }},
	{"release all", func(b *both) bool { return b.shown-b.next > 1 }, func(b *both) { b.c.Release(b.shown - b.next); b.next = b.shown }},
}

// explore takes every legal step from here, depth deep. The queries go last:
// they refresh what the ends know of each other, and the steps must also be
// right with old knowledge.
func explore(b *both, depth int) {
	if depth == 0 {
		b.queries()
		return
	}
	model, p, c, words := *b, *b.p, *b.c, *b.words
	var entries [4]uint64
	copy(entries[:], b.entries)
	for _, s := range steps {
		if s.legal != nil && !s.legal(b) {
			continue
		}
		b.trace = append(b.trace, s.name)
		s.do(b)
		explore(b, depth-1)
		*b, *b.p, *b.c, *b.words = model, p, c, words
		copy(b.entries, entries[:])
	}
}

func TestRingStartsWhereItStands(t *testing.T) {
	for _, start := range starts {
		words, entries := [2]uint32{start + 3, start + 1}, make([]uint64, 4)
		for i := range uint32(4) {
			entries[(start+i)&3] = value(start + i)
		}
		p := rings.NewProducer(&words[0], &words[1], nil, entries)
		c := rings.NewConsumer(&words[0], &words[1], nil, entries)
		if p.Pending() != 2 || p.Free() != 2 || c.Avail() != 2 {
			t.Fatalf("pending %d, free %d, avail %d; want 2 each", p.Pending(), p.Free(), c.Avail())
		}
		idx, got := c.Peek(9)
		if idx != start+1 || got != 2 || c.Read(idx) != value(idx) {
			t.Fatalf("Peek gives %d entries from %d, want 2 from %d", got, idx, start+1)
		}
		if idx, got := p.Reserve(9); idx != start+3 || got != 2 {
			t.Fatalf("Reserve gives %d slots from %d, want 2 from %d", got, idx, start+3)
		}
	}
}

type summed struct {
	seq, sum uint32
}

// TestRingTwoGoroutines sends checked entries around the wrap at 2^32. Under
// the race detector it is the proof that Submit and Release publish.
func TestRingTwoGoroutines(t *testing.T) {
	const entries = 100_000
	for _, size := range []uint32{1, 8, 256} {
		seed := seeds.One(t)
		r := rings.NewPlainAt[summed](size, 1<<32-entries/2)
		p, c := r.Producer(), r.Consumer()
		go func() {
			rnd := rand.New(rand.NewPCG(seed, 1))
			for seq := uint32(0); seq < entries; {
				idx, got := p.Reserve(min(1+rnd.Uint32N(size), entries-seq))
				for i := range got {
					*p.Slot(idx + i) = summed{seq, sum(seq)}
					seq++
				}
				p.Submit(got)
				if got == 0 {
					runtime.Gosched()
				}
			}
		}()
		rnd := rand.New(rand.NewPCG(seed, 2))
		for seq := uint32(0); seq < entries; {
			idx, got := c.Peek(1 + rnd.Uint32N(size))
			for i := range got {
				if e := c.Read(idx + i); e.seq != seq || e.sum != sum(seq) {
					t.Fatalf("seed %d, size %d: entry %d is %+v", seed, size, seq, e)
				}
				seq++
			}
			c.Release(got)
			if got == 0 {
				runtime.Gosched()
			}
		}
		if p.BadPeer()+c.BadPeer() != 0 || c.Avail() != 0 {
			t.Fatalf("seed %d: bad peer %d and %d, %d entries left", seed, p.BadPeer(), c.BadPeer(), c.Avail())
		}
	}
}

func sum(seq uint32) uint32 {
	return crc32.ChecksumIEEE([]byte{byte(seq), byte(seq >> 8), byte(seq >> 16), byte(seq >> 24)})
}

func TestRingNeedWakeup(t *testing.T) {
	r := rings.NewPlain[uint64](2)
	p, c := r.Producer(), r.Consumer()
	for _, on := range []bool{true, false, true} {
		c.SetNeedWakeup(on)
		if p.NeedWakeup() != on || c.NeedWakeup() != on {
			t.Fatalf("SetNeedWakeup(%v): producer sees %v, consumer %v", on, p.NeedWakeup(), c.NeedWakeup())
		}
	}
	flags := uint32(6) // flags of others stay
	var prod, cons uint32
	c = rings.NewConsumer(&prod, &cons, &flags, make([]uint64, 1))
	c.SetNeedWakeup(true)
	c.SetNeedWakeup(false)
	if flags != 6 {
		t.Fatalf("flags word is %d, want 6", flags)
	}
	b := newBoth(t, 1, 0) // no flags word
	b.c.SetNeedWakeup(true)
	if b.p.NeedWakeup() || b.c.NeedWakeup() {
		t.Fatal("a ring without flags needs wake-up")
	}
}

func TestRingProgrammerErrors(t *testing.T) {
	var w uint32
	for name, f := range map[string]func(){
		"no entries":             func() { rings.NewProducer(&w, &w, nil, []uint64{}) },
		"three entries":          func() { rings.NewConsumer(&w, &w, nil, make([]uint64, 3)) },
		"plain of six":           func() { rings.NewPlain[uint64](6) },
		"submit nothing":         func() { newBoth(t, 2, 0).p.Submit(1) },
		"cancel nothing":         func() { newBoth(t, 2, 0).p.Cancel(1) },
		"submit after cancel":    func() { b := newBoth(t, 2, 0); b.reserve(2); b.p.Cancel(1); b.p.Submit(2) },
		"release nothing":        func() { newBoth(t, 2, 0).c.Release(1) },
		"release more than seen": func() { b := newBoth(t, 2, 0); b.reserve(1); b.p.Submit(1); b.c.Peek(2); b.c.Release(2) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			f()
		})
	}
}

func TestRingAllocatesNothing(t *testing.T) {
	r := rings.NewPlain[rings.Desc](64)
	p, c := r.Producer(), r.Consumer()
	if n := testing.AllocsPerRun(100, func() {
		idx, got := p.Reserve(32)
		for i := range got {
			*p.Slot(idx + i) = rings.Desc{Addr: uint64(i)}
		}
		p.Submit(got)
		idx, got = c.Peek(32)
		for i := range got {
			if d := c.Read(idx + i); d.Addr != uint64(i) {
				panic(fmt.Sprint(d))
			}
		}
		c.Release(got)
	}); n != 0 {
		t.Fatalf("%v allocations a batch, want 0", n)
	}
}
