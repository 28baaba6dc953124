package sockets

import (
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
)

// wheelModel is what a wheel must do, by looking at everything all the time.
type wheelModel struct {
	w     *wheel
	now   int64
	at    map[uint32]int64 // owner: deadline in ns of those that run
	ids   map[uint32]uint32
	fired int
}

func (m *wheelModel) start(owner uint32, at int64) {
	m.w.start(m.ids[owner], at)
	m.at[owner] = max(at, m.now) // what is due already fires with the next tick
}

func (m *wheelModel) stop(owner uint32) {
	m.w.stop(m.ids[owner])
	delete(m.at, owner)
}

// advance checks each timer that fires, and that none that was due a tick ago is left.
func (m *wheelModel) advance(t *testing.T, to int64, onFire func(owner uint32)) {
	t.Helper()
	m.now = to
	m.w.advance(to, func(owner uint32) {
		at, ok := m.at[owner]
		if !ok {
			t.Fatalf("timer %d fired at %d and does not run", owner, to)
		}
		if to < at {
			t.Fatalf("timer %d fired at %d, %d ns before its time", owner, to, at-to)
		}
		m.fired++
		delete(m.at, owner)
		if onFire != nil {
			onFire(owner)
		}
	})
	for owner, at := range m.at {
		if to-at >= tickNS {
			t.Fatalf("timer %d, due at %d, has not fired at %d: %d ms late", owner, at, to, (to-at)/tickNS)
		}
	}
	m.check(t)
}

// check compares next with the true next deadline: it may be earlier, for then nothing fires, but never later by more
// than the tick that rounds it up.
func (m *wheelModel) check(t *testing.T) {
	t.Helper()
	if m.w.n != len(m.at) {
		t.Fatalf("the wheel counts %d timers, %d run", m.w.n, len(m.at))
	}
	at, ok := m.w.next()
	if ok != (len(m.at) > 0) {
		t.Fatalf("next says %v with %d timers", ok, len(m.at))
	}
	for owner, due := range m.at {
		if at > due+tickNS {
			t.Fatalf("next is %d, but timer %d is due %d ms before", at, owner, (at-due)/tickNS)
		}
	}
	if ok && at/tickNS <= m.w.tick {
		t.Fatalf("next is tick %d, not after the current %d: who waits for it turns for ever", at/tickNS, m.w.tick)
	}
}

func newWheelModel(now int64, timers int) *wheelModel {
	m := &wheelModel{w: newWheel(now), now: now, at: map[uint32]int64{}, ids: map[uint32]uint32{}}
	for i := range timers {
		owner := uint32(i + 1)
		m.ids[owner] = m.w.alloc(owner)
	}
	return m
}

// spans are distances and steps over all levels of the wheel and beyond its rim.
var spans = []int64{1, 2, 63, 64, 65, 1000, 4095, 4096, 4097, 100_000, 262_143, 262_144, 1 << 20, 1 << 24, 1<<24 + 1,
	1 << 28, 1<<30 - 1, 1 << 30, 1<<30 + 1, 1 << 31, 1 << 33}

func randomSpan(r *rand.Rand) int64 {
	s := spans[r.IntN(len(spans))]
	return (r.Int64N(s)+1)*tickNS - r.Int64N(tickNS)
}

func TestWheelAgainstModel(t *testing.T) {
	for round := range 60 {
		seed := seeds.One(t)
		if round == 0 {
			seed = 1
		}
		r := rand.New(rand.NewPCG(seed, 0))
		// Start near the places where levels wrap too: 2^30 ms is twelve days after boot.
		start := (spans[r.IntN(len(spans))] + r.Int64N(200) - 100) * tickNS
		m := newWheelModel(max(0, start)+r.Int64N(tickNS), 40)
		t.Logf("round %d, seed %d, start %d", round, seed, m.now)
		for range 1500 {
			owner := uint32(r.IntN(len(m.ids)) + 1)
			switch r.IntN(6) {
			case 0, 1:
				m.start(owner, m.now+randomSpan(r))
			case 2:
				m.start(owner, m.now-r.Int64N(5*tickNS)) // in the past: with the next tick
			case 3:
				m.stop(owner)
			case 4:
				m.advance(t, m.now+randomSpan(r), nil)
			case 5: // as a reactor does: to the next deadline, and there timers start and stop others
				at, ok := m.w.next()
				if !ok {
					continue
				}
				m.advance(t, max(m.now, at)+r.Int64N(tickNS), func(uint32) {
					if o := uint32(r.IntN(len(m.ids)) + 1); r.IntN(2) == 0 {
						m.start(o, m.now+randomSpan(r))
					} else {
						m.stop(o)
					}
				})
			}
			m.check(t)
		}
		for len(m.at) > 0 {
			at, _ := m.w.next()
			m.advance(t, at, nil)
		}
		if m.fired == 0 {
			t.Fatal("nothing ever fired")
		}
	}
}

// TestWheelCrossesTopLevel starts a short timer just before the top level has gone round once, 2^30 ms after boot.
func TestWheelCrossesTopLevel(t *testing.T) {
	for _, before := range []int64{1, 2, 40, 63, 64, 1000, 1 << 24} {
		for _, after := range []int64{0, 1, 40, 64, 5000, 1 << 24} {
			m := newWheelModel((1<<30-before)*tickNS, 1)
			m.start(1, (1<<30+after)*tickNS)
			m.check(t)
			m.advance(t, (1<<30+after)*tickNS, nil)
			if m.fired != 1 {
				t.Errorf("started %d ms before, due %d ms after the turn: fired %d times", before, after, m.fired)
			}
		}
	}
}

// TestWheelNodesAreReused shows that starting, stopping and releasing allocates nothing once the slab is there.
func TestWheelNodesAreReused(t *testing.T) {
	w := newWheel(0)
	keep := w.alloc(1)
	w.start(keep, 5*second)
	now := int64(0)
	run := func() {
		a, b := w.alloc(2), w.alloc(3)
		w.start(a, now+3*tickNS)
		w.start(b, now+100*tickNS)
		now += 5 * tickNS
		w.advance(now, func(uint32) {})
		w.release(a)
		w.release(b)
		w.start(keep, now+5*second)
	}
	run()
	if n := testing.AllocsPerRun(500, run); n != 0 {
		t.Errorf("%v allocations a round", n)
	}
	if len(w.nodes) > 1 {
		t.Errorf("%d chunks of nodes for three timers", len(w.nodes))
	}
}

// TestWheelStopWhileFiring: a timer that another one stops in the same tick must not fire any more.
func TestWheelStopWhileFiring(t *testing.T) {
	w := newWheel(0)
	ids := [2]uint32{w.alloc(0), w.alloc(1)}
	w.start(ids[0], 10*tickNS)
	w.start(ids[1], 10*tickNS)
	fired := 0
	w.advance(20*tickNS, func(owner uint32) {
		fired++
		w.stop(ids[1-owner])
	})
	if fired != 1 || w.n != 0 {
		t.Errorf("%d fired, %d left; want one and none", fired, w.n)
	}
}
