package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"xdpd/reactor"
	"xdpd/sockets"
)

// face is a way in which an application learns of an event. start makes it the one that a runs by; stop is called when no
// event is under way.
type face struct {
	name  string
	start func(a *latApp) (stop func() error)
}

func (f face) String() string { return f.name }

var faces = []face{
	{"serve", (*latApp).serve}, // Poller.Serve: a handler on the reactor
	{"wait", (*latApp).wait},   // Poller.Wait in another goroutine
}

// latApp reads what came in and notes how old it is.
type latApp struct {
	c       *crowd
	hist    *hdrhistogram.Histogram
	got     atomic.Int64
	failure error // guarded by the reactor's lock
	buf     [4096]byte
}

// take is the handler. Its time is that of its start, before it reads.
func (a *latApp) take(h *sockets.Host, now int64, e reactor.Event) {
	at := a.c.now()
	n, errno := h.TCPRead(e.Sock, a.buf[:], now)
	if errno != 0 || n%crowdData != 0 {
		a.failure = fmt.Errorf("connection %d: read %d bytes: %w", e.Data, n, errno)
		return
	}
	for b := a.buf[:n]; len(b) > 0; b = b[crowdData:] {
		if err := a.hist.RecordValue(at - stampOf(b)); err != nil {
			a.failure = err
		}
	}
	a.got.Add(int64(n / crowdData))
}

func (a *latApp) serve() (stop func() error) {
	set := func(h reactor.Handler) {
		a.c.r.Enter()
		a.c.p.Serve(h)
		a.c.r.Leave()
	}
	set(a.take)
	return func() error {
		set(nil)
		return nil
	}
}

func (a *latApp) wait() (stop func() error) {
	var over atomic.Bool
	done := make(chan error, 1)
	go func() {
		buf := make([]reactor.Event, 64)
		for !over.Load() {
			n, err := a.c.p.Wait(buf, -1)
			if err != nil {
				done <- err
				return
			}
			h, now, _ := a.c.r.Enter()
			for _, e := range buf[:n] {
				a.take(h, now, e)
			}
			a.c.r.Leave()
		}
		done <- nil
	}()
	return func() error {
		over.Store(true)
		a.c.p.Wake()
		return <-done
	}
}

// newLatHist is for 1 ns to 10 s, to three digits.
func newLatHist() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(10*time.Second), 3) }

// measure gives the samples of each face, with n connections.
func (b *latBench) measure(ctx context.Context, n int) (samples [][]latSample, err error) {
	skipped := int64(0) // while there is no other goroutine, time need not be waited for
	c, err := newCrowd(n, func() int64 { return reactor.Monotonic() + skipped }, func(ns int64) { skipped += ns })
	if err != nil {
		return nil, err
	}
	ran := make(chan error, 1)
	go func() { ran <- c.r.Run(ctx) }()
	defer func() {
		c.r.Stop()
		err = errors.Join(err, <-ran, c.close())
	}()
	a := &latApp{c: c}
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	samples = make([][]latSample, len(b.faces))
	for round := -1; round < b.rounds; round++ { // the first is for the caches
		for i, f := range b.faces {
			s, err := b.quietest(ctx, a, f, rng)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", f, err)
			}
			if round >= 0 {
				samples[i] = append(samples[i], s)
				fmt.Fprintf(b.progress, "  %-6s p50 %6.1f µs  p99 %8.1f µs  others took %.0f %%\n", f,
					float64(s.hist.ValueAtPercentile(50))/1e3, float64(s.hist.ValueAtPercentile(99))/1e3, s.others)
			}
		}
	}
	return samples, nil
}

// quietest measures one face, again while other programs take much of the machine: a reactor that is not on a CPU says
// nothing about reactors.
func (b *latBench) quietest(ctx context.Context, a *latApp, f face, rng *rand.Rand) (best latSample, err error) {
	for try := 1; try <= tries && (try == 1 || best.others > b.noise); try++ {
		if err := waitForQuiet(ctx, b.noise); err != nil {
			return best, err
		}
		s, err := b.round(ctx, a, f, rng)
		if err != nil {
			return best, err
		}
		if try == 1 || s.others < best.others {
			best = s
		}
	}
	return best, nil
}

// round measures one face once. This goroutine is the NIC.
func (b *latBench) round(ctx context.Context, a *latApp, f face, rng *rand.Rand) (s latSample, err error) {
	s.hist = newLatHist()
	a.c.r.Enter()
	a.hist = s.hist
	a.c.r.Leave()
	stop := f.start(a)
	before, err := readClocks(os.Getpid())
	if err != nil {
		return s, err
	}
	want := a.got.Load() + int64(b.events)
	s.refused, err = b.produce(ctx, a, rng)
	after, failed := readClocks(os.Getpid())
	if err == nil {
		err = a.settle(want)
	}
	err = errors.Join(err, failed, stop())
	s.others = 100 * max(0, float64(after.all-before.all-(after.user-before.user))/float64(after.at.Sub(before.at))/float64(runtime.NumCPU()))
	a.c.r.Enter()
	defer a.c.r.Leave()
	return s, errors.Join(err, a.failure)
}

// produce puts the events of a round into the RX ring, on random connections. They come independently of each other, as
// those of many peers do; one that comes late does not make the next ones come early.
func (b *latBench) produce(ctx context.Context, a *latApp, rng *rand.Rand) (refused int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	next := a.c.now()
	for sent := 0; sent < b.events; {
		now := a.c.now()
		if now < next {
			a.c.drain(nil)
			continue
		}
		next = now + int64(rng.ExpFloat64()*float64(b.gap))
		if a.c.offerStamped(rng.IntN(len(a.c.snd))) {
			sent++
		} else if refused++; ctx.Err() != nil || refused > b.events {
			return refused, errors.Join(ctx.Err(), errUseless)
		}
	}
	return refused, ctx.Err()
}

// settle waits until all came.
func (a *latApp) settle(sent int64) error {
	for give := time.Now().Add(latPatience); a.got.Load() < sent; runtime.Gosched() {
		if time.Now().After(give) {
			h, _, _ := a.c.r.Enter()
			defer a.c.r.Leave()
			return fmt.Errorf("%d events came, of %d; dropped %v", a.got.Load(), sent, h.Counters().Drops)
		}
		a.c.drain(nil)
	}
	if got := a.got.Load(); got != sent {
		return fmt.Errorf("%d events came, of %d", got, sent)
	}
	return nil
}

// latPatience is how long the last events of a round may take.
const latPatience = 10 * time.Second
