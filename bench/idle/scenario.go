package main

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"sync/atomic"
	"time"

	"xdpd/proto"
	"xdpd/sockets"
)

// report is what a scenario's process tells.
type report struct {
	Rows   []row
	Phases []phase
	Notes  []string
}

// row is the memory that Count connections in some state take.
type row struct {
	What  string
	Count int
	Mem   sample
	Peak  int64         // largest resident set on the way there, above the start
	Turn  time.Duration // longest turn on the way there
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

// scenario is one measurement; run finds a world without a connection.
type scenario struct {
	name  string
	run   func(t *trial) error
	peers func(n int) int                // connections that the peer makes; nil: n
	limit func(n int, c *sockets.Config) // nil: those of newWorld
}

var scenarios = []scenario{
	{name: "established", run: (*trial).established},
	{name: "timewait", run: (*trial).timeWait},
	{name: "burst", run: (*trial).burst},
	{name: "keepalive", run: (*trial).keepAlive},
	{
		name: "halfopen", run: (*trial).halfOpen, peers: func(n int) int { return 2 * n },
		limit: func(n int, c *sockets.Config) { c.Backlog = n },
	},
}

// trial is a scenario that runs: n connections, measured from a state without any.
type trial struct {
	*world
	report
	n     int
	from  sample
	trace io.Writer // where the collector's trace goes, if it is on
}

func (s *scenario) newTrial(n int, veth bool) (*trial, error) {
	peers := n
	if s.peers != nil {
		peers = s.peers(n)
	}
	w, err := newWorld(peers, veth, func(c *sockets.Config) {
		if s.limit != nil {
			s.limit(n, c)
		}
	})
	if err != nil {
		return nil, err
	}
	t := &trial{world: w, n: n, from: take()}
	return t, resetPeak()
}

// mark makes the lines of GODEBUG=gctrace=1 tell to which part they belong.
func (t *trial) mark(what string) {
	if t.trace != nil {
		fmt.Fprintf(t.trace, "phase %s\n", what)
	}
}

// measure notes what there is above the start.
func (t *trial) measure(what string) row {
	high := peak()
	t.mark("measuring")
	r := row{What: what, Count: t.n, Mem: take().since(t.from), Peak: high - t.from.RSS, Turn: t.longest}
	t.longest = 0
	t.Rows = append(t.Rows, r)
	runtime.KeepAlive(t.world)
	return r
}

func (t *trial) notef(format string, args ...any) {
	t.Notes = append(t.Notes, fmt.Sprintf(format, args...))
}

func (t *trial) established() error {
	if err := t.phase("no connection", func() error { return t.rest(200e6) }); err != nil {
		return err
	}
	t.mark("opening")
	start := time.Now()
	if err := t.establish(0, t.n); err != nil {
		return err
	}
	t.notef("opened in %.1f s: %.2f µs each, with the peer's part", time.Since(start).Seconds(), time.Since(start).Seconds()*1e6/float64(t.n))
	if err := t.rest(5e9); err != nil {
		return err
	}
	t.measure("established, idle")
	rng := rand.New(rand.NewPCG(1, uint64(t.n)))
	for _, size := range []int{1, fullSegment} {
		what := fmt.Sprintf("1 %% asked for %d bytes", size)
		if err := t.requests(t.n/100, size, rng); err != nil {
			return err
		}
		t.measure(what + " just now")
		err := t.phase(what, func() error {
			return errors.Join(t.rest(3e9), t.requests(t.n/100, size, rng)) // no more than these are active at a time
		})
		if err := errors.Join(err, t.rest(3e9)); err != nil {
			return err
		}
	}
	t.measure("idle again")
	if err := t.phase("all idle", func() error { return t.rest(200e6) }); err != nil {
		return err
	}
	t.notef("sockets by state: %v; accepted by the application: %d", t.states(), len(t.app.conns))
	return nil
}

func (t *trial) timeWait() error {
	if err := t.come(0, t.n); err != nil {
		return err
	}
	t.measure("TIME-WAIT")
	return t.forget()
}

// burst closes all at once: what the established ones took may still be held.
func (t *trial) burst() error {
	if err := t.establish(0, t.n); err != nil {
		return err
	}
	t.measure("established")
	if err := t.closeOurs(0, t.n); err != nil {
		return err
	}
	t.measure("TIME-WAIT, all at once")
	return t.forget()
}

// forget waits for the end of TIME-WAIT.
func (t *trial) forget() error {
	states := t.states()
	if err := resetPeak(); err != nil {
		return err
	}
	if err := t.rest(70e9); err != nil {
		return err
	}
	t.measure("after TIME-WAIT")
	t.notef("sockets by state: %v; later %v", states, t.states())
	return nil
}

// keepAlive lets probes be sent and answered, and then has the peer fall silent.
func (t *trial) keepAlive() error {
	const idle, interval, count = 60e9, 10e9, 5
	t.app.setup = func(h *sockets.Host, s sockets.Handle, now int64) sockets.Errno {
		return h.TCPSetKeepAlive(s, sockets.KeepAlive{Idle: idle, Interval: interval, Count: count}, now)
	}
	t.stepNS = 400_000 // about as long as it takes: the timers do not all fire at once
	if err := t.establish(0, t.n); err != nil {
		return err
	}
	if err := t.rest(5e9); err != nil {
		return err
	}
	t.measure("established, keep-alive on")
	if err := t.phase("probes are sent and answered", func() error { return t.rest(idle) }); err != nil {
		return err
	}
	t.notef("%d probes answered; sockets by state: %v", t.peer.probes, t.states())
	if err := resetPeak(); err != nil {
		return err
	}
	t.peer.mute = true
	if err := t.rest(2*idle + (count+1)*interval); err != nil {
		return err
	}
	t.measure("all peers are gone")
	t.notef("sockets by state: %v", t.states())
	return nil
}

func (t *trial) halfOpen() error {
	if err := t.world.halfOpen(0, t.n); err != nil {
		return err
	}
	half := t.measure("half-open").Mem
	if err := t.world.halfOpen(t.n, 2*t.n); err != nil {
		return err
	}
	full := t.measure("half-open, and as many SYN cookies").Mem
	t.notef("a cookie takes %s bytes", perConn(full.Heap-half.Heap, t.n))
	some := min(1000, t.n)
	for conn := t.n; conn < t.n+some; conn++ {
		t.peer.answer(conn, proto.ACK)
	}
	if err := t.run(nil, func() (int, bool) { return len(t.app.conns), len(t.app.conns) == some }); err != nil {
		return err
	}
	t.notef("%d of them answered; sockets by state: %v", some, t.states())
	if err := resetPeak(); err != nil {
		return err
	}
	if err := t.rest(100e9); err != nil {
		return err
	}
	t.measure("after all their SYN-ACKs")
	t.notef("sockets by state: %v; %s", t.states(), t.counters())
	return nil
}

// phase does work, again and again, while a goroutine beside it has the collector run enough times.
func (t *trial) phase(what string, work func() error) error {
	t.mark(what)
	defer t.mark("")
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
	p := phase{What: what, GCs: enough}
	start := time.Now()
	var err error
	for err == nil && gcs.Load() < enough {
		err = work()
		p.Rounds++
	}
	p.Took = time.Since(start)
	<-done
	p.GCTime, p.Pauses = spent/enough, pausesSince(histogram, pauseCounts())
	t.Phases = append(t.Phases, p)
	return err
}
