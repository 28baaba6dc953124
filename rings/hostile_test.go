package rings_test

import (
	"encoding/binary"
	"testing"

	"xdpd/rings"
)

// script hands out the bytes of a fuzz input; behind its end they are zero.
type script struct{ b []byte }

func (s *script) byte() byte {
	if len(s.b) == 0 {
		return 0
	}
	v := s.b[0]
	s.b = s.b[1:]
	return v
}

func (s *script) word() uint32 {
	return binary.LittleEndian.Uint32([]byte{s.byte(), s.byte(), s.byte(), s.byte()})
}

// lie is an index a hostile peer may write: anything at all, or something near
// the truth, where bounds are decided.
func (s *script) lie(truth uint32) uint32 {
	if s.byte()&1 == 0 {
		return truth + uint32(int8(s.byte()))
	}
	return s.word()
}

// guarded is n entries between two that must never be touched.
func guarded(n int) (all, entries []uint64) {
	all = make([]uint64, n+2)
	all[0], all[n+1] = 0xdead, 0xbeef
	return all, all[1 : n+1 : n+1]
}

func checkGuards(t *testing.T, all []uint64) {
	t.Helper()
	if all[0] != 0xdead || all[len(all)-1] != 0xbeef {
		t.Fatal("wrote outside of the entries")
	}
}

func hostileSeeds(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{2, 0xff, 0xff, 0xff, 0xff, 1, 0xff, 0xff, 0xff, 0xff, 9, 9, 0, 5, 9, 9, 0, 0xfe, 4, 4})
	f.Add([]byte{3, 0, 0, 0, 0, 0, 8, 8, 8, 0, 9, 8, 8, 0, 0xf0, 8, 8, 1, 0, 0, 0, 0x80, 8, 8})
}

// FuzzConsumerHostile gives the consumer a producer that writes anything
// anywhere: in its own index, in ours, in the flags and in the entries.
func FuzzConsumerHostile(f *testing.F) {
	hostileSeeds(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		s := &script{input}
		size := uint32(1) << (s.byte() % 5)
		start := s.word()
		prod, cons, flags := start, start, uint32(0)
		all, entries := guarded(int(size))
		c := rings.NewConsumer(&prod, &cons, &flags, entries)
		next, believed, bad := start, start, uint64(0)
		for len(s.b) > 0 {
			prod, flags = s.lie(next), s.word()
			cons = s.word()
			entries[s.word()%size] = uint64(s.word())

			n := uint32(s.byte())
			idx, got := c.Peek(n)
			if believed-next < n { // it had to look
				if d := prod - next; d <= size && d >= believed-next {
					believed = prod
				} else {
					bad++
					if got != 0 {
						t.Fatalf("Peek believed index %d, %d entries ahead of %d in a ring of %d", prod, d, next, size)
					}
				}
			}
			if idx != next || got > n || got > size || got > believed-next || c.BadPeer() != bad {
				t.Fatalf("Peek(%d) gives %d from %d, bad %d; the truth is %d to %d, bad %d, size %d", n, got, idx, c.BadPeer(), next, believed, bad, size)
			}
			for i := range got {
				c.Read(idx + i)
			}
			if k := min(uint32(s.byte()), got); k > 0 {
				c.Release(k)
				next += k
				if cons != next {
					t.Fatalf("Release published %d, want %d", cons, next)
				}
			}
			c.NeedWakeup()
			checkGuards(t, all)
		}
	})
}

// FuzzProducerHostile gives the producer such a consumer.
func FuzzProducerHostile(f *testing.F) {
	hostileSeeds(f)
	f.Fuzz(func(t *testing.T, input []byte) {
		s := &script{input}
		size := uint32(1) << (s.byte() % 5)
		start := s.word()
		prod, cons, flags := start, s.lie(start), uint32(0)
		all, entries := guarded(int(size))
		p := rings.NewProducer(&prod, &cons, &flags, entries)
		head, tail := start, start
		believed, bad := start-size, uint64(0) // full until it looks
		for len(s.b) > 0 {
			cons, flags = s.lie(tail), s.word()
			prod = s.word()

			n := uint32(s.byte())
			idx, got := p.Reserve(n)
			if size-(head-believed) < n { // it had to look
				if d := tail - cons; d <= tail-believed {
					believed = cons
				} else {
					bad++
					if got != 0 {
						t.Fatalf("Reserve believed index %d, %d behind %d in a ring of %d", cons, d, tail, size)
					}
				}
			}
			if idx != head || got > n || head+got-believed > size || p.BadPeer() != bad {
				t.Fatalf("Reserve(%d) gives %d from %d, bad %d; the truth is %d, peer at %d, bad %d, size %d", n, got, idx, p.BadPeer(), head, believed, bad, size)
			}
			for i := range got {
				*p.Slot(idx + i) = uint64(i)
			}
			head += got
			back := min(uint32(s.byte()), head-tail)
			p.Cancel(back)
			head -= back
			if k := min(uint32(s.byte()), head-tail); k > 0 {
				p.Submit(k)
				tail += k
				if prod != tail {
					t.Fatalf("Submit published %d, want %d", prod, tail)
				}
			}
			p.NeedWakeup()
			checkGuards(t, all)
		}
		if free, pending := p.Free(), p.Pending(); free > size || pending > size {
			t.Fatalf("free %d, pending %d in a ring of %d", free, pending, size)
		}
	})
}

// A peer that goes back is no better than one that runs ahead: the producer
// would overwrite what it has reserved since, the consumer lose what it was
// shown.
func TestRingPeerGoesBack(t *testing.T) {
	for _, start := range starts {
		b := newBoth(t, 4, start)
		b.reserve(4)
		b.p.Submit(4)
		b.words[1] = start + 2
		if _, got := b.p.Reserve(2); got != 2 { // now it knows of start + 2
			t.Fatalf("got %d slots, want 2", got)
		}
		b.words[1] = start // within a ring's length of what is published
		if _, got := b.p.Reserve(1); got != 0 || b.p.BadPeer() != 1 || b.p.Free() != 0 || b.p.Pending() != 2 {
			t.Fatalf("consumer went back: got %d slots, bad peer %d, free %d, pending %d; want 0, 1, 0, 2", got, b.p.BadPeer(), b.p.Free(), b.p.Pending())
		}

		b = newBoth(t, 4, start)
		b.reserve(3)
		b.p.Submit(3)
		b.c.Peek(3)
		b.words[0] = start + 1
		if _, got := b.c.Peek(4); got != 0 || b.c.BadPeer() != 1 || b.c.Avail() != 0 || b.c.BadPeer() != 2 {
			t.Fatalf("producer went back: got %d entries, bad peer %d; want 0 and 2", got, b.c.BadPeer())
		}
		b.c.Release(3) // what was shown stays shown
	}
}
