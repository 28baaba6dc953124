package umem

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"xdpd/internal/seeds"
)

func newPool4(t *testing.T, l *Ledger) *Pool {
	t.Helper()
	r, err := Wrap(make([]byte, 8*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	return NewPool(r, 2, 4, l)
}

func TestPoolIsAStack(t *testing.T) {
	l := NewLedger(8)
	p := newPool4(t, l)
	if p.Avail() != 4 || p.Total() != 4 || p.Region().Frames() != 8 || p.Ledger() != l {
		t.Fatalf("avail %d, total %d", p.Avail(), p.Total())
	}
	a, b := p.Get(RX), p.Get(Held)
	if a != 2 || b != 3 || l.Owner(2) != RX || l.Owner(3) != Held {
		t.Fatalf("got frames %d of %v and %d of %v, want 2 of rx and 3 of held", a, l.Owner(a), b, l.Owner(b))
	}
	p.Put(b, Held)
	p.Put(a, RX)
	if got := p.Get(TX); got != a {
		t.Fatalf("got frame %d, want the last put back, %d", got, a)
	}
	p.Put(a, TX)
	var fs [6]Frame
	if n := p.GetN(fs[:], Fill); n != 4 || !slices.Equal(fs[:n], []Frame{2, 3, 4, 5}) {
		t.Fatalf("GetN gives %d: %v, want 2 to 5", n, fs)
	}
	if p.Exhausted() != 1 || p.Get(RX) != None || p.Exhausted() != 2 || p.Avail() != 0 {
		t.Fatalf("exhausted %d, avail %d; want 2 and 0", p.Exhausted(), p.Avail())
	}
	p.PutN(fs[:4], Fill)
	if got := p.Get(RX); got != 5 {
		t.Fatalf("got frame %d, want the last of PutN, 5", got)
	}
	if p.GetN(fs[:3], RX) != 3 || p.Exhausted() != 2 {
		t.Fatalf("exhausted %d after a GetN that could be served, want 2", p.Exhausted())
	}
	if c := l.Counts(); c != [NOwners]int{Free: 4, RX: 4} {
		t.Fatalf("counts %v", c)
	}
	if l.Moves(Fill, Free) != 4 || l.Moves(Free, RX) != 5 || l.Moves(RX, TX) != 0 {
		t.Fatalf("moves %d, %d and %d, want 4, 5 and 0", l.Moves(Fill, Free), l.Moves(Free, RX), l.Moves(RX, TX))
	}
}

func TestPoolPanics(t *testing.T) {
	for name, c := range map[string]struct {
		ledger *Ledger
		do     func(p *Pool)
		words  []string
	}{
		"double put with a ledger names the owner": {NewLedger(8), func(p *Pool) {
			a, _ := p.Get(RX), p.Get(RX)
			p.Put(a, RX)
			p.Put(a, RX)
		}, []string{"frame 2", "from rx", "owner is free"}},
		"and in a full pool too": {NewLedger(8), func(p *Pool) { p.Put(p.Get(RX), RX); p.Put(2, RX) },
			[]string{"frame 2", "from rx", "owner is free"}},
		"put by one who is not the owner": {NewLedger(8), func(p *Pool) { p.Put(p.Get(Held), Lent) },
			[]string{"frame 2", "from lent", "owner is held"}},
		"more put than there are": {nil, func(p *Pool) { p.Put(p.Get(RX), RX); p.Put(2, RX) },
			[]string{"frame 2", "freed twice"}},
		"below the range":         {nil, func(p *Pool) { p.Get(RX); p.Put(1, RX) }, []string{"frame 1", "does not have it"}},
		"above the range":         {nil, func(p *Pool) { p.Get(RX); p.Put(6, RX) }, []string{"frame 6", "does not have it"}},
		"None":                    {nil, func(p *Pool) { p.Get(RX); p.Put(None, RX) }, []string{"frame 4294967295"}},
		"Buf of no frame":         {nil, func(p *Pool) { p.Buf(8) }, []string{"out of range"}},
		"range beyond the region": {nil, func(p *Pool) { NewPool(p.Region(), 5, 4, nil) }, []string{"4 frames from 5", "8"}},
		"range beyond the ledger": {nil, func(p *Pool) { NewPool(p.Region(), 0, 4, NewLedger(3)) }, []string{"ledger of 3"}},
		"put into an older pool":  {nil, func(p *Pool) { f := p.Get(RX); NewPool(p.Region(), f, 1, nil); p.Put(f, RX) }, []string{"does not have it"}},
		"gives what it has not":   {nil, func(p *Pool) { p.Give(1, RX) }, []string{"frame 1", "does not have it"}},
		"takes more than it has":  {nil, func(p *Pool) { p.Take(6, Free) }, []string{"frame 6", "full pool"}},
	} {
		t.Run(name, func(t *testing.T) {
			p := newPool4(t, c.ledger)
			mustPanic(t, func() { c.do(p) }, c.words...)
		})
	}
}

func TestPoolData(t *testing.T) {
	p := newPool4(t, nil)
	f := p.Get(TX)
	copy(p.Chunk(f)[Headroom:], "payload")
	*p.Buf(f) = Buf{Next: None, Off: Headroom, Len: 7}
	if got := string(p.Data(f)); got != "payload" {
		t.Fatalf("data is %q", got)
	}
	if p.Buf(f) == p.Buf(f+1) || &p.Data(f)[0] != &p.Region().Mem()[p.Region().Addr(f)+Headroom] {
		t.Fatal("two frames share a Buf, or data is not in the region")
	}
	p.Buf(f).Len = 2048
	mustPanic(t, func() { p.Data(f) }, "out of range")
}

// Two pools exchange frames: each keeps its number, and what was taken is as good as what was there.
func TestPoolsExchange(t *testing.T) {
	r, err := Wrap(make([]byte, 8*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	l := NewLedger(8)
	a, b := NewPool(r, 0, 4, l), NewPool(r, 4, 4, l)
	f, g := a.Get(RX), b.Get(Held)
	*a.Buf(f) = Buf{Off: 7}
	a.Give(f, RX)
	b.Give(g, Held)
	if l.Counts() != [NOwners]int{Free: 6, Handed: 2} {
		t.Fatalf("on their way: %v", l.Counts())
	}
	b.Take(f, Held)
	a.Take(g, Free)
	if a.Owns(f) || !b.Owns(f) || !a.Owns(g) || b.Owns(g) || b.Buf(f).Off != 7 {
		t.Error("the frames did not change pools, or lost what was written on them")
	}
	b.Put(f, Held)
	if a.Avail() != 4 || b.Avail() != 4 || a.Get(TX) != g || b.Get(TX) != f {
		t.Errorf("%d and %d frames are free", a.Avail(), b.Avail())
	}
}

// A random walk of all operations; the ledger and a plain map must agree.
func TestPoolRandomWalk(t *testing.T) {
	seed := seeds.One(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	l := NewLedger(8)
	p := newPool4(t, l)
	owner := map[Frame]Owner{}
	for range 20_000 {
		to := Owner(1 + rnd.IntN(int(NOwners)-1))
		switch f := Frame(2 + rnd.IntN(4)); rnd.IntN(3) {
		case 0:
			if got := p.Get(to); got != None {
				owner[got] = to
			}
		case 1:
			if from, ok := owner[f]; ok {
				p.Move(f, from, to)
				owner[f] = to
			}
		case 2:
			if from, ok := owner[f]; ok {
				p.Put(f, from)
				delete(owner, f)
			}
		}
		if p.Avail() != 4-len(owner) {
			t.Fatalf("seed %d: %d frames free, want %d", seed, p.Avail(), 4-len(owner))
		}
		for o := range NOwners {
			n := 0
			for f, who := range owner {
				if who == o {
					n++
					if !slices.Contains(l.Frames(o), f) {
						t.Fatalf("seed %d: frame %d is not among those of %v", seed, f, o)
					}
				}
			}
			if o == Free {
				n = 8 - len(owner)
			}
			if l.Counts()[o] != n {
				t.Fatalf("seed %d: %v has %d frames, want %d", seed, o, l.Counts()[o], n)
			}
		}
	}
}

func TestLedgerPanics(t *testing.T) {
	l := NewLedger(2)
	mustPanic(t, func() { l.Move(2, Free, RX) }, "frame 2", "only 2 frames")
	mustPanic(t, func() { l.Move(None, Free, RX) }, "frame 4294967295")
	mustPanic(t, func() { l.Move(0, Free, NOwners) }, "frame 0", NOwners.String())
	l.Move(0, Free, Lent)
	mustPanic(t, func() { l.Move(0, TX, Comp) }, "frame 0", "from tx to comp", "owner is lent")
	if l.Counts() != [NOwners]int{Free: 1, Lent: 1} { // and it is still usable
		t.Fatalf("counts %v", l.Counts())
	}
}

func TestLedgerGoroutines(t *testing.T) {
	l := NewLedger(4)
	var wg sync.WaitGroup
	for f := range Frame(4) {
		wg.Go(func() {
			for range 1000 {
				l.Move(f, Free, RX)
				l.Move(f, RX, Free)
			}
		})
	}
	wg.Wait()
	if l.Counts() != [NOwners]int{Free: 4} {
		t.Fatalf("counts %v", l.Counts())
	}
}

func TestPoolAllocatesNothing(t *testing.T) {
	for _, l := range []*Ledger{nil, NewLedger(8)} {
		p := newPool4(t, l)
		var fs [4]Frame
		if n := testing.AllocsPerRun(100, func() {
			p.PutN(fs[:p.GetN(fs[:], RX)], RX)
			p.Put(p.Get(TX), TX)
		}); n != 0 {
			t.Errorf("ledger %v: %v allocations, want 0", l != nil, n)
		}
	}
}

// TestPoolGiven: a frame that was given away is nobody's until it is taken, with a ledger or without.
func TestPoolGiven(t *testing.T) {
	r, err := Wrap(make([]byte, 4*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	a, b := NewPool(r, 0, 2, nil), NewPool(r, 2, 2, nil)
	f := a.Get(RX)
	a.Give(f, RX)
	if a.Owns(f) || b.Owns(f) {
		t.Error("a frame under way has an owner")
	}
	func() {
		defer func() {
			if recover() == nil {
				t.Error("it was put back")
			}
		}()
		a.Put(f, RX)
	}()
	b.Take(f, RX)
	if a.Owns(f) || !b.Owns(f) {
		t.Error("it did not change pools")
	}
}
