package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"time"

	"xdpd/reactor"
)

// measure gives the samples of each face, with n connections.
func (b *latBench) measure(ctx context.Context, n int) (samples [][]latSample, err error) {
	samples = make([][]latSample, len(b.faces))
	for _, ring := range []bool{false, true} {
		if slices.ContainsFunc(b.faces, func(f face) bool { return f.ring == ring }) {
			if err := b.measureCrowd(ctx, n, ring, samples); err != nil {
				return nil, err
			}
		}
	}
	return samples, nil
}

// measureCrowd adds to the samples those of the faces that can be had with a Ring, or with a Poller. The faces take turns.
func (b *latBench) measureCrowd(ctx context.Context, n int, ring bool, samples [][]latSample) (err error) {
	kind := withPoller
	if ring {
		kind = withRing
	}
	skipped := int64(0) // while there is no other goroutine, time need not be waited for
	c, err := newCrowd(kind, n, func() int64 { return reactor.Monotonic() + skipped }, func(ns int64) { skipped += ns })
	if err != nil {
		return err
	}
	ran := make(chan error, 1)
	go func() { ran <- c.r.Run(ctx) }()
	defer func() {
		c.r.Stop()
		err = errors.Join(err, <-ran, c.close())
	}()
	a := &latApp{c: c}
	rng := rand.New(rand.NewPCG(1, uint64(n)))
	for round := -1; round < b.rounds; round++ { // the first is for the caches
		for i, f := range b.faces {
			if f.ring != ring {
				continue
			}
			s, err := b.quietest(ctx, a, f, rng)
			if err != nil {
				return fmt.Errorf("%s: %w", f, err)
			}
			if round >= 0 {
				samples[i] = append(samples[i], s)
				fmt.Fprintf(b.progress, "  %-10s p50 %6.1f µs  p99 %8.1f µs  others took %.0f %%\n", f,
					float64(s.hist.ValueAtPercentile(50))/1e3, float64(s.hist.ValueAtPercentile(99))/1e3, s.others)
			}
		}
	}
	return nil
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
	a.hist = s.hist
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
	return s, errors.Join(err, a.failed())
}

// produce puts the events of a round into the RX ring, on random connections. They come independently of each other, as
// those of many peers do; one that comes late does not make the next ones come early.
func (b *latBench) produce(ctx context.Context, a *latApp, rng *rand.Rand) (refused int, err error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	undo, err := sharpTimers()
	if err != nil {
		return 0, err
	}
	defer undo()
	next := a.c.now()
	for sent := 0; sent < b.events; {
		now := a.c.now()
		if now < next {
			a.c.drain(nil)
			// A NIC takes nothing of Go's scheduler: a loop here would, for 10 ms at a time, keep a P whose queue may hold
			// the goroutine that is to be woken.
			nap(next - now)
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
