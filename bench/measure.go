package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"runtime"
	"slices"
	"time"
)

// bench is one run of the table.
type bench struct {
	rounds   int
	seconds  float64
	noise    float64 // measure again while others take more than this percentage of the machine
	rows     []row
	conns    int // of the memory row
	tries    int // of a measurement
	profile  string
	progress io.Writer

	builder *builder
}

// sample is one measurement of one contender.
type sample struct {
	load     outcome
	warm     outcome       // of the warm-up before it
	cpu      time.Duration // of the server's process, during the measurement
	others   float64       // share of the machine that other programs took meanwhile, 0 to 1
	counters counters      // of the server, warm-up included
}

// cpuPerRequest is the server's CPU time in ns for each request that was answered, or each kB.
func (s *sample) cpuPerRequest() float64 { return float64(s.cpu) / s.load.done }

func (s *sample) busy() float64 { return s.load.busy }

// run does all rounds. With an error it gives what was measured before it. A contender that fails at a measurement is left
// out of it from then on; that it cannot do it at all is no error.
func (b *bench) run(ctx context.Context) (*results, error) {
	res, failed := newResults(), []error(nil)
	ms, who := players(b.rows)
	for round := range b.rounds {
		// Each round begins with another one, so that none is always the first.
		for _, m := range rotate(ms, round) {
			for _, name := range rotate(who[m.name], round) {
				if res.missing[m.name][name] != "" || m.once && round > 0 {
					continue
				}
				got, err := b.measureUntilGood(ctx, m, contenderOf(name))
				if ctx.Err() != nil {
					return res, errors.Join(append(failed, fmt.Errorf("interrupted in round %d", round+1))...)
				}
				if err != nil {
					fmt.Fprintf(b.progress, "%s, %s is left out: %v\n", m.name, name, err)
					res.lacks(m, name, err.Error())
					if !errors.Is(err, errCannot) {
						failed = append(failed, fmt.Errorf("round %d, %s, %s: %w", round+1, m.name, name, err))
					}
					continue
				}
				res.add(m, name, got)
				fmt.Fprintf(b.progress, "round %d/%d  %-13s  %-14s  %s\n", round+1, b.rounds, m.name, name, got.describe(m))
			}
		}
	}
	return res, errors.Join(failed...)
}

// rotate is a list from another place on, and in every other round backwards: who comes after whom changes as well.
func rotate[T any](list []T, round int) []T {
	at := round % len(list)
	out := slices.Concat(list[at:], list[:at])
	if round%2 == 1 {
		slices.Reverse(out)
	}
	return out
}

// measureUntilGood measures again, a few times, if the result says more about the load source or the machine than about
// the server. If none is good, the one with the least of other programs in it counts.
func (b *bench) measureUntilGood(ctx context.Context, m *measurement, c *contender) (best sample, err error) {
	some := false
	for try := 1; ; try++ {
		if err := waitForQuiet(ctx, b.noise); err != nil {
			return best, err
		}
		got, err := b.measure(ctx, m, c)
		if err == nil && (!some || got.others < best.others) {
			some, best = true, got
		}
		switch {
		case ctx.Err() != nil:
			return best, ctx.Err()
		case err != nil && !errors.Is(err, errUseless):
			return best, err
		case err == nil && 100*got.others <= b.noise:
			return got, nil
		case try >= b.tries && some:
			return best, nil
		case try >= b.tries:
			return best, err
		case err == nil:
			err = fmt.Errorf("other programs took %.0f %% of the machine", 100*got.others)
		}
		fmt.Fprintf(b.progress, "again: %s, %s: %v\n", m.name, c.name, err)
	}
}

// tries is how often a measurement is made at most.
const tries = 4

// measure does one measurement, in a network of its own.
func (b *bench) measure(ctx context.Context, m *measurement, c *contender) (got sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(b.seconds*float64(time.Second))+2*time.Minute)
	defer cancel()
	if m.work == "" {
		got.load, err = m.load.run(ctx, &site{builder: b.builder, conns: b.conns}, b.seconds)
		return got, err
	}
	path, err := b.builder.program(ctx, c.source)
	if err != nil {
		return got, fmt.Errorf("%w build: %w", errCannot, err)
	}
	more := m.serve
	if c.app != "" {
		app, err := b.builder.program(ctx, c.app)
		if err != nil {
			return got, fmt.Errorf("%w build: %w", errCannot, err)
		}
		more = slices.Concat(more, []string{"-app", app})
	}
	lab, err := newLab(ctx, m, c)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	if b.profile != "" && c.name == b.rows[0].one {
		more = slices.Concat(more, []string{"-cpuprofile", b.profile})
	}
	args := c.command(path, m.work, lab, more)
	if _, ok := m.load.(flood); ok {
		args = elsewhere(args)
	}
	s, err := startServer(ctx, lab, args)
	if err != nil {
		return got, err
	}
	defer func() {
		var stopped error
		got.counters, stopped = s.stop()
		err = errors.Join(err, stopped)
	}()
	if err := answers(ctx, lab, m.work); err != nil {
		return got, err
	}
	at := &site{lab: lab, builder: b.builder, pid: s.pid()}
	if !m.cold {
		if got.warm, err = m.load.run(ctx, at, min(warmUp, b.seconds/4)); err != nil {
			return got, err
		}
	}
	err = b.clocked(ctx, m, at, &got)
	return got, err
}

// warmUp is how long a server has the load before it counts, at most: caches are warm then, and windows open.
const warmUp = 0.3

// clocked runs the load, and tells who had the CPUs meanwhile.
func (b *bench) clocked(ctx context.Context, m *measurement, at *site, got *sample) error {
	before, err := readClocks(at.pid)
	if err != nil {
		return err
	}
	if got.load, err = m.load.run(ctx, at, b.seconds); err != nil {
		return err
	}
	after, err := readClocks(at.pid)
	if err != nil {
		return err
	}
	if w := got.load.window; !w[1].at.IsZero() {
		before, after = w[0], w[1]
	}
	got.cpu = after.cpu - before.cpu
	own := got.load.user + after.user - before.user
	got.others = max(0, float64(after.all-before.all-own)/float64(after.at.Sub(before.at))/float64(runtime.NumCPU()))
	return nil
}
