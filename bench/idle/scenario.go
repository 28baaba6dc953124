package main

import (
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"xdpd/sockets"
)

// report is what a scenario's process tells.
type report struct {
	Rows   []row
	Phases []phase
	Notes  []string
}

// row is the memory that count connections in some state take.
type row struct {
	What  string
	Count int
	Mem   sample
	Peak  int64 // largest resident set on the way there, above the start; 0: not measured
}

// phase is a time with traffic in which the collector was made to run again and again.
type phase struct {
	What   string
	Took   time.Duration
	Rounds int // times that the work was done
	GCs    int
	GCTime time.Duration // from the start to the end of a forced collection, on average
	Pauses pauses
}

type scenario struct {
	name string
	run  func(n int, rep *report) error
}

var scenarios = []scenario{
	{"established", established},
	{"timewait", timeWait},
	{"burst", timeWaitBurst},
	{"halfopen", halfOpen},
	{"growth", growth},
}

// base makes the world and measures it without a connection. One connection has come and gone, so that what there is
// once is there.
func base(n int, change func(*sockets.Config)) (*world, sample, error) {
	w, err := newWorld(n, change)
	if err != nil {
		return nil, sample{}, err
	}
	s := take()
	return w, s, resetPeak()
}

// mark makes the lines of GODEBUG=gctrace=1 tell to which part they belong.
func mark(what string) { fmt.Fprintf(os.Stderr, "phase %s\n", what) }

func (rep *report) measured(what string, n int, from sample) {
	high := peak()
	mark("measuring")
	s := take()
	rep.Rows = append(rep.Rows, row{What: what, Count: n, Mem: s.since(from), Peak: high - from.RSS})
}

func (rep *report) notef(format string, args ...any) {
	rep.Notes = append(rep.Notes, fmt.Sprintf(format, args...))
}

func established(n int, rep *report) error {
	w, from, err := base(n, nil)
	if err != nil {
		return err
	}
	few := phase{What: "no connection, idle"}
	if err := few.run(func() error { return w.rest(200e6) }); err != nil {
		return err
	}
	rep.Phases = append(rep.Phases, few)
	mark("opening")
	start := time.Now()
	if err := w.establish(0, n, nil); err != nil {
		return err
	}
	rep.notef("%d connections opened in %.1f s, %.2f µs each with the peer's part", n, time.Since(start).Seconds(), time.Since(start).Seconds()*1e6/float64(n))
	if err := w.rest(5e9); err != nil {
		return err
	}
	rep.measured("established, idle", n, from)
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for _, size := range []int{1, fullSegment} {
		p := phase{What: fmt.Sprintf("1 %% ask for %d bytes", size)}
		err := p.run(func() error { return w.requests(n/100, size, rng) })
		if err != nil {
			return err
		}
		rep.Phases = append(rep.Phases, p)
	}
	rep.measured("with 1 % just active", n, from)
	if err := w.rest(10e9); err != nil {
		return err
	}
	rep.measured("idle again", n, from)
	idle := phase{What: "all idle"}
	if err := idle.run(func() error { return w.rest(200e6) }); err != nil {
		return err
	}
	rep.Phases = append(rep.Phases, idle)
	rep.notef("states: %v; counted by the application: %d", w.states(), len(w.app.conns))
	runtime.KeepAlive(w)
	return nil
}

// timeWait opens and closes connections in small batches: the records of established ones stay few.
func timeWait(n int, rep *report) error {
	w, from, err := base(n, nil)
	if err != nil {
		return err
	}
	for at := 0; at < n; {
		to := min(at+1000, n)
		if err := w.establish(at, to, nil); err != nil {
			return err
		}
		if err := w.closeOurs(at, to); err != nil {
			return err
		}
		at = to
	}
	rep.measured("TIME-WAIT", n, from)
	if err := w.rest(70e9); err != nil {
		return err
	}
	rep.measured("after TIME-WAIT", n, from)
	rep.notef("states: %v", w.states())
	runtime.KeepAlive(w)
	return nil
}

// timeWaitBurst closes all connections at once: what the established ones took may still be held.
func timeWaitBurst(n int, rep *report) error {
	w, from, err := base(n, nil)
	if err != nil {
		return err
	}
	if err := w.establish(0, n, nil); err != nil {
		return err
	}
	if err := w.closeOurs(0, n); err != nil {
		return err
	}
	rep.measured("TIME-WAIT, all at once", n, from)
	if err := w.rest(70e9); err != nil {
		return err
	}
	rep.measured("after TIME-WAIT, all at once", n, from)
	runtime.KeepAlive(w)
	return nil
}

func halfOpen(n int, rep *report) error {
	w, from, err := base(2*n, func(c *sockets.Config) { c.Backlog = n })
	if err != nil {
		return err
	}
	if err := w.halfOpen(0, n); err != nil {
		return err
	}
	rep.measured("half-open", n, from)
	runtime.KeepAlive(w)
	return nil
}

// run does work, again and again, while a goroutine beside it has the collector run enough times.
func (p *phase) run(work func() error) error {
	mark(p.What)
	defer mark("")
	const enough = 30
	var gcs atomic.Int32
	var spent time.Duration
	done := make(chan struct{})
	histogram := pauseCounts()
	go func() {
		defer close(done)
		for gcs.Load() < enough {
			start := time.Now()
			runtime.GC()
			spent += time.Since(start)
			gcs.Add(1)
			time.Sleep(time.Millisecond)
		}
	}()
	start := time.Now()
	var err error
	for err == nil && gcs.Load() < enough {
		err = work()
		p.Rounds++
	}
	p.Took = time.Since(start)
	<-done
	p.GCs, p.GCTime = int(gcs.Load()), spent/enough
	p.Pauses = pausesSince(histogram, pauseCounts())
	return err
}
