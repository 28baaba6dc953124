package load

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"xdpd/reactor"
)

// Result is what a run found out.
type Result struct {
	Config      Config
	Side        string
	Workers     int
	Elapsed     time.Duration // of the measurement
	Interrupted bool
	Stats       Stats
	Latency     *hdrhistogram.Histogram // ns
	Retransmits uint64
	KnowRetrans bool
}

// Live is how a run goes.
type Live struct {
	Phase    string
	Since    time.Duration // of the phase
	Stats    Stats         // of the measurement so far
	Backlog  uint64
	Previous Stats                   // a second earlier
	Latency  *hdrhistogram.Histogram // of the last second
}

// ErrEnded says that the side to send from was closed meanwhile.
var ErrEnded = errors.New("what is sent from has ended")

// ErrNotOpened says that there was no connection to measure with.
var ErrNotOpened = errors.New("no connection could be opened")

// closeTime is how long connections may take to be closed.
const closeTime = time.Minute

// run is a run in progress.
type run struct {
	cfg     *Config
	side    Side
	workers []*worker
	loops   []loop
	notify  chan struct{}
	live    func(Live)
	last    Stats
	ended   bool // a loop has, before its time
}

// Run makes load until the configured end, or that of ctx, and says what came of it. live is called once a second, if there is
// one. An error means that the load could not be made, or not to its end; there may be a result all the same. That requests
// failed is no error.
func Run(ctx context.Context, cfg Config, side Side, live func(Live)) (*Result, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	if cfg.Connections > side.Ports() {
		return nil, fmt.Errorf("%d connections to %v: there are local ports for %d; more source addresses make more",
			cfg.Connections, cfg.Target, side.Ports())
	}
	r := &run{cfg: &cfg, side: side, notify: make(chan struct{}, 1), live: live}
	defer func() {
		for _, l := range r.loops {
			l.end()
		}
	}()
	workers := min(side.Workers(), cfg.Connections)
	for i := range workers {
		w := newWorker(&cfg, i, workers, r.notify)
		l, err := side.start(&cfg, i, w)
		if err != nil {
			return nil, err
		}
		r.workers, r.loops = append(r.workers, w), append(r.loops, l)
	}
	return r.run(ctx)
}

func (r *run) run(ctx context.Context) (*Result, error) {
	res := &Result{Config: *r.cfg, Side: r.side.String(), Workers: len(r.workers), Latency: newHistogram()}
	var err error
	r.each(func(_ int, w *worker) { w.start() })
	if !r.cfg.dials() && r.wait(ctx, "opening", -1) {
		open := int64(0)
		r.each(func(_ int, w *worker) { open += w.stats.Open })
		if open == 0 {
			err = ErrNotOpened
		}
	}
	if err == nil && r.cfg.Warmup > 0 && ctx.Err() == nil {
		r.each(func(_ int, w *worker) { w.measure(noQuota) })
		r.wait(ctx, "warming up", r.cfg.Warmup)
	}
	if err == nil && ctx.Err() == nil {
		begin := reactor.Monotonic()
		r.each(func(i int, w *worker) { w.measure(r.quota(i)) })
		patience := time.Duration(-1)
		if r.cfg.Duration > 0 {
			patience = r.cfg.Duration
		}
		byItself := r.wait(ctx, "running", patience)
		end := reactor.Monotonic()
		if byItself {
			last := begin
			r.each(func(_ int, w *worker) { last = max(last, w.lastAnswer) })
			if last > begin {
				end = last
			}
		}
		res.Elapsed = time.Duration(end - begin)
	}
	res.Interrupted = ctx.Err() != nil
	r.each(func(_ int, w *worker) { w.drain() })
	r.wait(context.Background(), "draining", r.cfg.Timeout*2)
	r.each(func(_ int, w *worker) { w.closeAll() })
	if !r.wait(context.Background(), "closing", closeTime) && err == nil {
		err = fmt.Errorf("connections are still open after %v", closeTime)
	}
	r.each(func(_ int, w *worker) {
		res.Stats.add(&w.stats)
		res.Latency.Merge(w.hist)
	})
	res.Retransmits, res.KnowRetrans = r.side.Retransmits()
	select {
	case <-r.side.Done():
		r.ended = true
	default:
	}
	if r.ended {
		err = cmp.Or(r.side.Err(), ErrEnded)
	}
	return res, err
}

// quota is how many requests worker i is to make.
func (r *run) quota(i int) uint64 {
	n := len(r.workers)
	switch {
	case r.cfg.Kind == Hold:
		return share(uint64(r.cfg.Connections), i, n)
	case r.cfg.Kind == Bulk || r.cfg.Count == 0:
		return noQuota
	}
	return share(r.cfg.Count, i, n)
}

// each calls f for one worker after the other, between their events.
func (r *run) each(f func(i int, w *worker)) {
	for i, w := range r.workers {
		if !r.loops[i].do(func() { f(i, w) }) {
			r.ended = true
		}
	}
}

// wait waits for the phase to end by itself, for at most so long (negative: as long as it takes), and for the end of ctx. It
// tells whether it ended by itself.
func (r *run) wait(ctx context.Context, phase string, patience time.Duration) bool {
	begin := time.Now()
	var over <-chan time.Time
	if patience >= 0 {
		over = time.After(patience)
	}
	second := time.NewTicker(time.Second)
	defer second.Stop()
	r.last = Stats{}
	for {
		settled := true
		r.each(func(_ int, w *worker) {
			w.told = false
			settled = settled && w.settled()
		})
		if settled {
			return true
		}
		select {
		case <-r.notify:
		case <-over:
			return false
		case <-ctx.Done():
			return false
		case <-r.side.Done():
			return false
		case <-second.C:
			r.show(phase, time.Since(begin))
		}
	}
}

func (r *run) show(phase string, since time.Duration) {
	if r.live == nil {
		return
	}
	l := Live{Phase: phase, Since: since, Previous: r.last, Latency: newHistogram()}
	r.each(func(_ int, w *worker) {
		l.Stats.add(&w.stats)
		l.Latency.Merge(w.live)
		w.live.Reset()
		if w.sched != nil {
			l.Backlog += w.sched.backlog()
		}
	})
	r.last = l.Stats
	r.live(l)
}

// Err says what of a result is a failure, or nil.
func (res *Result) Err() error {
	if res.Stats.Failed() == 0 && res.Stats.Unfinished == 0 {
		return nil
	}
	var parts []string
	for f := range nFaults {
		if n := res.Stats.Errors[f] + res.Stats.ConnErrors[f]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %d", f, n))
		}
	}
	if n := res.Stats.Unfinished; n > 0 {
		parts = append(parts, fmt.Sprintf("unfinished %d", n))
	}
	return fmt.Errorf("there were errors: %s", strings.Join(parts, ", "))
}
