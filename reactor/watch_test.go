package reactor

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/sockets"
)

// watched counts the sockets in pollers.
func (g *rig) watched() (n int) {
	for _, chunks := range g.r.watches.kinds {
		for _, chunk := range chunks {
			for i := range chunk {
				if chunk[i].poller != 0 {
					n++
				}
			}
		}
	}
	return n
}

// TestWatchSize: no pointer for the collector to follow, and no byte more than said in Poller's comment.
func TestWatchSize(t *testing.T) {
	typ := reflect.TypeFor[watch]()
	if typ.Size() != 24 {
		t.Errorf("a watch has %d bytes, want 24", typ.Size())
	}
	for i := range typ.NumField() {
		if k := typ.Field(i).Type.Kind(); k < reflect.Bool || k > reflect.Uint64 {
			t.Errorf("field %s is a %v", typ.Field(i).Name, k)
		}
	}
}

// TestWatchMemory: what the table takes for sockets that are in a poller.
func TestWatchMemory(t *testing.T) {
	const n = 100_000
	var table watchTable
	before := heapInUse()
	for i := range uint64(n) {
		table.slot(sockets.Handle(3<<56 | i)).poller = 1
	}
	if used := heapInUse() - before; used > 25*n || used < 24*n {
		t.Errorf("%d sockets take %d bytes, %.1f each; want 24 to 25", n, used, float64(used)/n)
	}
	runtime.KeepAlive(&table)
}

func heapInUse() int {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int(m.HeapAlloc)
}

// TestSplitHandle compares split with the handles that a Host gives out.
func TestSplitHandle(t *testing.T) {
	g := newRig(t, options{})
	a, b := g.bind(7), g.bind(8)
	kind, gen, index := split(a)
	if k, gn, i := split(b); k != kind || gn != gen || i != index+1 {
		t.Errorf("split(%#x) = %d, %d, %d behind %d, %d, %d", b, k, gn, i, kind, gen, index)
	}
	var tcp sockets.Handle
	g.enter(func(h *sockets.Host, now int64) {
		var err sockets.Errno
		if tcp, err = h.TCPListen(0, 7); err != 0 {
			t.Fatal(err)
		}
		if err := h.Close(b, now); err != 0 {
			t.Fatal(err)
		}
	})
	if k, _, i := split(tcp); k == kind || i != 0 {
		t.Errorf("the first listener, %#x, is number %d of kind %d, as a UDP socket", tcp, i, k)
	}
	again := g.bind(8)
	if k, gn, i := split(again); k != kind || gn != gen+1 || i != index+1 {
		t.Errorf("split(%#x) = %d, %d, %d in the place of %#x", again, k, gn, i, b)
	}
	table := &g.r.watches
	for _, s := range []sockets.Handle{a, again, tcp, 14<<56 | 0xffffff000000ff} {
		_, gen, _ := split(s)
		*table.slot(s) = watch{gen: gen, poller: 1}
		if table.handle(refOf(s)) != s || table.find(s) == nil || table.at(refOf(s)) != table.find(s) {
			t.Errorf("%#x is found under %#x, and names %#x", s, refOf(s), table.handle(refOf(s)))
		}
	}
	for _, s := range []sockets.Handle{0, b, ^sockets.Handle(0), tcp + 1, tcp + watchChunk, 15<<56 | 1} {
		if table.find(s) != nil {
			t.Errorf("%#x is found, which nobody added", s)
		}
	}
}

// TestPollerSlotReused: a socket takes the slot of one that was closed in the same turn, of which the reactor is told
// later. The old one must not be reported again, nor take the new one out.
func TestPollerSlotReused(t *testing.T) {
	for _, elsewhere := range []bool{false, true} {
		g := newPollRig(t)
		g.add(g.b, sockets.In, 2)
		g.add(g.a, sockets.In, 1)
		g.datagram(8)
		g.datagram(7)
		p := g.p
		if elsewhere {
			p = NewPoller(g.r)
		}
		var fresh sockets.Handle
		g.enter(func(h *sockets.Host, now int64) {
			if err := h.Close(g.a, now); err != 0 {
				t.Fatal(err)
			}
			var err sockets.Errno
			if fresh, err = h.UDPBind(0, 9); err != 0 {
				t.Fatal(err)
			}
			if refOf(fresh) != refOf(g.a) {
				t.Fatalf("%#x has not the slot of %#x: nothing is tested", fresh, g.a)
			}
			if err := p.Add(fresh, sockets.In, 3); err != nil {
				t.Fatal(err)
			}
			if err := g.p.Mod(g.a, sockets.In, 0); !errors.Is(err, ErrNotAdded) {
				t.Errorf("Mod of the closed socket: %v", err)
			}
		})
		g.wait(8, Event{g.b, sockets.In, 2})
		g.datagram(9) // with the news that the old one was closed
		g.read(g.b)
		if elsewhere {
			g.wait(8)
			g.p.Close()
		}
		g.p = p
		g.wait(8, Event{fresh, sockets.In, 3})
		if n := g.watched(); n != 2 && !elsewhere || n != 1 && elsewhere {
			t.Errorf("%d sockets are watched", n)
		}
	}
}

// TestWatchTakesFromPoller: a socket has one sink, the last that asked.
func TestWatchTakesFromPoller(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 1)
	g.datagram(7)
	told := 0
	g.enter(func(*sockets.Host, int64) {
		g.r.Watch(g.a, sinkFunc(func(sockets.Ready) { told++ }))
		if err := g.p.Add(g.a, sockets.In, 0); !errors.Is(err, ErrExists) {
			t.Errorf("Add of a watched socket: %v", err)
		}
	})
	g.wait(8)
	g.datagram(7)
	if told != 1 {
		t.Errorf("the sink was told %d times of one datagram", told)
	}
	g.enter(func(*sockets.Host, int64) { g.r.Watch(g.a, nil) })
	g.add(g.a, sockets.In, 2)
	g.wait(8, Event{g.a, sockets.In, 2})
}

// TestPollerPlaces: a closed poller's place serves the next one, and the old one has no say over its sockets.
func TestPollerPlaces(t *testing.T) {
	g := newPollRig(t)
	old := g.p
	g.add(g.a, sockets.In, 1)
	old.Close()
	g.p = NewPoller(g.r)
	if g.p.id != old.id || len(g.r.pollers) != 1 {
		t.Fatalf("the new poller has place %d of %d, the closed one had %d", g.p.id, len(g.r.pollers), old.id)
	}
	g.add(g.a, sockets.In, 2)
	g.enter(func(*sockets.Host, int64) {
		if err := errors.Join(old.Del(g.a), old.Mod(g.a, 0, 0)); !errors.Is(err, ErrNotAdded) {
			t.Errorf("a closed poller changes a socket: %v", err)
		}
	})
	old.Close()
	g.datagram(7)
	g.wait(8, Event{g.a, sockets.In, 2})
}

// model is a poller as simple as can be: a map, and a list of handles.
type model struct {
	items map[sockets.Handle]Event // Ready is the mask; a OneShot that was spent has no condition in it
	ready []sockets.Handle
}

const modelFlags = EdgeTriggered | OneShot | Exclusive

func (m *model) tell(s sockets.Handle, what sockets.Ready) {
	if e, ok := m.items[s]; ok && what&e.Ready&^modelFlags != 0 && !slices.Contains(m.ready, s) {
		m.ready = append(m.ready, s)
	}
}

func (m *model) del(s sockets.Handle) {
	delete(m.items, s)
	m.ready = slices.DeleteFunc(m.ready, func(q sockets.Handle) bool { return q == s })
}

func (m *model) wait(h *sockets.Host, n int) (got []Event) {
	for range len(m.ready) {
		if len(got) == n {
			break
		}
		s := m.ready[0]
		m.ready = m.ready[1:]
		e := m.items[s]
		mask := e.Ready
		if e.Ready &= h.Ready(s); e.Ready == 0 {
			continue
		}
		got = append(got, e)
		switch {
		case mask&OneShot != 0:
			e.Ready = mask & modelFlags
			m.items[s] = e
		case mask&EdgeTriggered == 0:
			m.ready = append(m.ready, s)
		}
	}
	return got
}

// chained counts the watches of sockets beyond their second.
func chained(t *watchTable) (n int) {
	for _, k := range t.more {
		for k = t.extra[k-1].next; k != 0; k = t.extra[k-1].next {
			n++
		}
	}
	return n
}

// TestPollerAgainstModel does at random what can be done to several pollers, and compares them with their models.
func TestPollerAgainstModel(t *testing.T) {
	seed := seeds.One(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	g := newRig(t, options{})
	const n, ports = 4, 6
	var pollers [n]*Poller
	var models [n]*model
	for i := range pollers {
		pollers[i], models[i] = NewPoller(g.r), &model{items: map[sockets.Handle]Event{}}
	}
	var socks [ports]sockets.Handle
	for i := range socks {
		socks[i] = g.bind(uint16(100 + i))
	}
	masks := []sockets.Ready{0, sockets.In, sockets.Out, sockets.In | sockets.Out}
	flags := []sockets.Ready{0, EdgeTriggered, OneShot, OneShot | EdgeTriggered, Exclusive, Exclusive | EdgeTriggered}
	deeds := map[string]int{}
	for step := range 20_000 {
		k, which := rng.IntN(ports), rng.IntN(n)
		s, p, m := socks[k], pollers[which], models[which]
		mask := masks[rng.IntN(len(masks))] | flags[rng.IntN(len(flags))]
		e := Event{s, mask | sockets.Err | sockets.Hup, rng.Uint64()}
		deed := []string{"add", "add", "mod", "del", "datagram", "read", "wait", "turn", "reopen", "close"}[rng.IntN(10)]
		deeds[deed]++
		fail := func(got, want any) { t.Fatalf("seed %d, step %d, %s: %v, want %v", seed, step, deed, got, want) }
		g.enter(func(h *sockets.Host, now int64) {
			_, mine := m.items[s]
			switch deed {
			case "add":
				if err := p.Add(s, mask, e.Data); (err == nil) == mine {
					fail(err, mine)
				} else if err == nil {
					m.items[s] = e
					m.tell(s, h.Ready(s))
				}
			case "mod":
				legal := mine && (mask|m.items[s].Ready)&Exclusive == 0
				if err := p.Mod(s, mask, e.Data); (err == nil) != legal {
					fail(err, legal)
				} else if legal {
					m.items[s] = e
					m.tell(s, h.Ready(s))
				}
			case "del":
				if err := p.Del(s); (err == nil) != mine {
					fail(err, mine)
				}
				m.del(s)
			case "read":
				h.UDPRecv(s, nil)
			case "reopen": // the handle changes, the slot does not
				h.Close(s, now)
				for _, m := range models {
					m.del(s)
				}
				socks[k], _ = h.UDPBind(0, uint16(100+k))
			}
		})
		switch deed {
		case "close":
			if rng.IntN(10) == 0 {
				p.Close()
				pollers[which], models[which] = NewPoller(g.r), &model{items: map[sockets.Handle]Event{}}
			}
		case "datagram":
			g.settle()
			g.deliver(g.udpFrame(uint16(100+k), nil))
			g.settle()
			for _, m := range models {
				m.tell(s, sockets.In)
			}
		case "turn":
			g.settle()
		case "wait":
			buf := make([]Event, 1+rng.IntN(ports))
			n, err := p.Wait(buf, 0)
			if want := m.wait(g.host, len(buf)); err != nil || fmt.Sprint(buf[:n]) != fmt.Sprint(append([]Event{}, want...)) {
				fail(fmt.Sprint(buf[:n], err), want)
			}
		}
		want := 0
		for _, m := range models {
			want += len(m.items)
		}
		if deed == "turn" && (g.watched() != want || g.r.watches.nmore != len(g.r.watches.more)+chained(&g.r.watches)) {
			fail(fmt.Sprint(g.watched(), g.r.watches.nmore), want)
		}
	}
	for deed, n := range deeds {
		if n < 1000 {
			t.Errorf("%s was done only %d times", deed, n)
		}
	}
}
