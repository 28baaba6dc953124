package reactor

import (
	"math/rand/v2"
	"testing"
)

// traffic is how many packets a second come and go while the kernel runs the NAPI, and while the loop does.
type traffic struct {
	softirq, drive float64
	crowded        float64 // share of the packets that wait in batches while the kernel runs the NAPI
	missed         float64 // share of the time in which the loop does not run
}

var (
	deep   = traffic{softirq: 200_000, drive: 280_000} // many packets under way
	single = traffic{softirq: 137_000, drive: 115_000} // one
	paced  = traffic{softirq: 100_000, drive: 100_000}
	little = traffic{softirq: 5_000, drive: 5_000}

	// To these driving seems to be good, as it may by chance.
	flood  = traffic{softirq: 700_000, drive: 1_000_000, crowded: 0.9}
	shared = traffic{softirq: 100_000, drive: 200_000, missed: 0.3}

	busy  = traffic{softirq: 200_000, drive: 280_000, crowded: 0.3}
	rough = traffic{softirq: 200_000, drive: 280_000, missed: 0.05}
)

// arrangeWorld is an arranger under load.
type arrangeWorld struct {
	a       arranger
	now     int64
	packets float64
	p       progress
	noise   float64 // share by which a window's rate may be off, either way
	rnd     *rand.Rand
	changes int
}

// run lets time pass and gives the share of it in which the loop drove.
func (w *arrangeWorld) run(l traffic, ns int64) float64 {
	const step = 50_000
	drove, off := int64(0), 1.0
	for end := w.now + ns; w.now < end; w.now += step {
		if w.now/10_000_000 != (w.now-step)/10_000_000 { // what disturbs lasts
			off = 1 + w.noise*(2*w.rnd.Float64()-1)
		}
		rate := l.softirq
		if w.a.driving {
			rate, drove = l.drive, drove+step
		}
		w.packets += rate * off * step / 1e9
		came := uint64(w.packets)/2 - w.p.in
		w.p.in, w.p.out = w.p.in+came, w.p.in+came
		if !w.a.driving && w.rnd.Float64() < l.crowded {
			w.p.crowded += came
		}
		w.p.missed += int64(l.missed * step)
		before := w.a.driving
		if w.a.turn(w.now, w.p) != before {
			w.changes++
		}
	}
	return float64(drove) / float64(ns)
}

func newArrangeWorld(how Arrangement, noise float64) *arrangeWorld {
	return &arrangeWorld{a: newArranger(how), now: 1e9, noise: noise, rnd: rand.New(rand.NewPCG(1, 2))}
}

const second = 1_000_000_000

// TestArrangeByLoad: each load gets the arrangement that moves more of it, soon, and keeps it.
func TestArrangeByLoad(t *testing.T) {
	for _, c := range []struct {
		name        string
		load        traffic
		first, then float64 // share of the time that it drives, in a second and in the nine after it, at least or at most
		drives      bool
	}{
		{"deep", deep, 0.8, 0.97, true},
		{"single", single, 0.2, 0.02, false},
		{"paced", paced, 0.2, 0.02, false},
		{"little", little, 0, 0, false},
		{"flood", flood, 0, 0, false},
		{"shared", shared, 0, 0, false},
		{"busy", busy, 0.8, 0.95, true},
		{"rough", rough, 0.8, 0.95, true},
	} {
		w := newArrangeWorld(AutoNAPI, 0.04)
		first, then := w.run(c.load, second), w.run(c.load, 9*second)
		if c.drives && (first < c.first || then < c.then) || !c.drives && (first > c.first || then > c.then) {
			t.Errorf("%s: drives for %.3f of the first second, and %.3f of those after it", c.name, first, then)
		}
	}
}

// TestArrangeFollows: it goes with the load, both ways.
func TestArrangeFollows(t *testing.T) {
	w := newArrangeWorld(AutoNAPI, 0.04)
	for i, c := range []struct {
		load   traffic
		drives bool
	}{{deep, true}, {single, false}, {deep, true}, {little, false}, {paced, false}, {deep, true}, {flood, false}, {deep, true},
		{shared, false}, {deep, true}} {
		w.run(c.load, 20*second) // longer than the longest pause between trials
		if share := w.run(c.load, second); (share > 0.5) != c.drives {
			t.Errorf("%d: under %+v it drives for %.3f of the time", i, c.load, share)
		}
	}
}

// TestArrangeAtOnce: who drives stops with the window in which the loop did not run for long, and the next trial comes later.
func TestArrangeAtOnce(t *testing.T) {
	w := newArrangeWorld(AutoNAPI, 0)
	w.run(deep, 150_000_000)
	if !w.a.driving {
		t.Fatal("does not drive")
	}
	w.run(shared, 2*windowNS)
	if w.a.driving {
		t.Error("goes on though the loop does not run")
	}
	if w.run(deep, minPauseNS); w.a.prefer || w.changes != 4 {
		t.Errorf("drives again at once: %d changes", w.changes)
	}
}

// TestArrangeFlood: the trial of one who drives when a flood comes ends with the first window in which batches wait.
func TestArrangeFlood(t *testing.T) {
	w := newArrangeWorld(AutoNAPI, 0)
	w.run(deep, second)
	if !w.a.driving {
		t.Fatal("does not drive")
	}
	if share := w.run(flood, 20*second); w.a.driving || share > 0.06 {
		t.Errorf("drives for %.3f of the time", share)
	}
}

// TestArrangeShortTrial: a trial that begins badly ends with its first window.
func TestArrangeShortTrial(t *testing.T) {
	w := newArrangeWorld(AutoNAPI, 0)
	drove := w.run(single, second) * second
	if trials := float64(w.changes / 2); trials < 3 || drove > trials*windowNS {
		t.Errorf("drove for %.0f ns in %.0f trials", drove, trials)
	}
}

// TestArrangeKeeps: to drive is not kept when it has become worse, by however little.
func TestArrangeKeeps(t *testing.T) {
	w := newArrangeWorld(AutoNAPI, 0)
	w.run(deep, second)
	for _, c := range []struct {
		load   traffic
		drives bool
	}{
		{traffic{softirq: 200_000, drive: 204_000}, true},
		{traffic{softirq: 200_000, drive: 196_000}, false},
		{traffic{softirq: 200_000, drive: 216_000}, false},
	} {
		w.run(c.load, 20*second)
		if share := w.run(c.load, second); (share > 0.5) != c.drives {
			t.Errorf("under %+v it drives for %.3f of the time", c.load, share)
		}
	}
}

// TestArrangeHysteresis: noise alone changes nothing for long, and trials get rare.
func TestArrangeHysteresis(t *testing.T) {
	w := newArrangeWorld(AutoNAPI, 0.1)
	share := w.run(paced, 60*second)
	if share > 0.05 || w.changes > 100 {
		t.Errorf("drives for %.3f of a minute, with %d changes", share, w.changes)
	}
}

// TestArrangeSleep: who slept takes the NAPI again after some packets, and not before.
func TestArrangeSleep(t *testing.T) {
	w := newArrangeWorld(AutoNAPI, 0)
	w.run(deep, second)
	if !w.a.driving {
		t.Fatal("does not drive")
	}
	p := w.p
	w.a.slept(p.packets())
	p.in += resumeAt - 1
	if w.a.turn(w.now, p) {
		t.Error("drives at once")
	}
	p.out++
	if !w.a.turn(w.now, p) {
		t.Error("does not drive again")
	}
	w.a.slept(p.packets())
	w.now += second
	p.in += resumeAt
	if w.a.turn(w.now, p) {
		t.Error("drives after a second with hardly a packet")
	}
}

// TestArrangeFixed: with a fixed arrangement there is nothing to measure.
func TestArrangeFixed(t *testing.T) {
	a := newArranger(DriveNAPI)
	if a.turn(0, progress{}) || !a.turn(1, progress{in: 1}) || !a.turn(2, progress{in: 1}) {
		t.Error("drive: not from the first packet on")
	}
	a.slept(1)
	if a.turn(3, progress{in: 1}) || !a.turn(4, progress{in: 1, out: 1, missed: second}) {
		t.Error("drive: not from the first packet after a sleep on")
	}
	w := newArrangeWorld(SoftirqNAPI, 0)
	if share := w.run(deep, second); share != 0 {
		t.Errorf("softirq: drives for %.3f of the time", share)
	}
}

// TestArrangeRefused: where there is no NAPI yet it asks less and less often, and at once when there is one.
func TestArrangeRefused(t *testing.T) {
	w := newArrangeWorld(AutoNAPI, 0)
	asked := 0
	for range 10_000 {
		w.run(deep, second/1000)
		if w.a.driving {
			asked++
			w.a.refused(w.now)
		}
	}
	if asked < 3 || asked > 12 {
		t.Errorf("asked %d times in 10 s", asked)
	}
	w.a.offered(w.now)
	w.run(deep, 150_000_000) // a window, and a trial
	if !w.a.driving {
		t.Error("does not drive what it was offered")
	}
}
