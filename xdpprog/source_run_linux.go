package xdpprog

import (
	"context"
	"errors"
	"fmt"
	"math"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A run that the program has to end is looked at this often. A signal then ends the system call; it may come just
	// before the call and do nothing, so it is sent until the call returns.
	lookEvery = 2 * time.Millisecond

	faultGone = 1 // enum fault in bpf/source.c

	maxRepeat = 1 << 31 // net/bpf/test_run.c, bpf_test_timer_continue: a sum of repetitions must not pass 2^32
)

// Run sends count frames, 0 meaning without end, and returns nil; or the context's error when that is done first. The
// next Run goes on where this one ended, with the following sequence number. One Run at a time; a second one waits.
//
// It has a thread of its own, which it interrupts with SIGURG.
func (s *Source) Run(ctx context.Context, count uint64) error {
	s.running.Lock()
	defer s.running.Unlock()
	if err := s.run(ctx, count); err != nil {
		return fmt.Errorf("xdpprog: source on %s: %w", s.config.Interface, err)
	}
	return nil
}

func (s *Source) run(ctx context.Context, count uint64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	until := uint64(math.MaxUint64)
	if count > 0 {
		st, err := s.Stats()
		if err != nil {
			return err
		}
		until = st.Written + count
	}
	o := &s.objs
	err := errors.Join(o.Until.Set(until), o.Stop.Set(uint32(0)), o.Rebase.Set(uint32(1)), o.Task.Set(uint64(0)))
	if err != nil {
		return err
	}
	s.rates.Lock()
	paced, batch := s.config.Rate > 0 || len(s.config.Gaps) > 0, s.config.batch()
	s.rates.Unlock()

	tid, done := make(chan int, 1), make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with this goroutine, and its CPU affinity with it
		tid <- unix.Gettid()
		done <- s.loop(until, batch, paced)
	}()
	return s.watch(ctx, <-tid, until, done)
}

// watch waits for the loop to end, and makes it.
func (s *Source) watch(ctx context.Context, tid int, until uint64, done <-chan error) error {
	tick := time.NewTicker(lookEvery)
	defer tick.Stop()
	cancelled := ctx.Done()
	for {
		select {
		case err := <-done:
			if err == nil {
				err = ctx.Err()
			}
			if st, serr := s.Stats(); serr == nil && st.Written == until {
				return nil // all were sent, whatever came in the end
			}
			return err
		case <-cancelled:
			cancelled = nil
			if err := s.objs.Stop.Set(uint32(1)); err != nil {
				return err
			}
		case <-tick.C:
		}
		if s.over(until) {
			// ESRCH: it ended by itself.
			if err := unix.Tgkill(unix.Getpid(), tid, unix.SIGURG); err != nil && !errors.Is(err, unix.ESRCH) {
				return err
			}
		}
	}
}

// over tells whether the program has nothing more to send.
func (s *Source) over(until uint64) bool {
	var stop, fault uint32
	var written uint64
	err := errors.Join(s.objs.Stop.Get(&stop), s.objs.Fault.Get(&fault), s.objs.Written.Get(&written))
	return err != nil || stop != 0 || fault != 0 || written >= until
}

// loop runs the program until nothing is left to send. Any signal ends a call.
func (s *Source) loop(until uint64, batch uint32, paced bool) error {
	if s.config.Pin {
		var set unix.CPUSet
		set.Set(s.config.CPU)
		if err := unix.SchedSetaffinity(0, &set); err != nil {
			return fmt.Errorf("pin to CPU %d: %w", s.config.CPU, err)
		}
	}
	for !s.over(until) {
		var written uint64
		if err := s.objs.Written.Get(&written); err != nil {
			return err
		}
		repeat := uint32(maxRepeat)
		if !paced {
			repeat = uint32(min(until-written, maxRepeat)) // the call ends by itself
		}
		err := runLive(s.objs.Source.FD(), s.proto, repeat, batch)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return explainRun(err)
		}
	}
	var fault uint32
	if err := s.objs.Fault.Get(&fault); err != nil {
		return err
	}
	switch fault {
	case 0:
		return nil
	case faultGone:
		return fmt.Errorf("the device was removed: %w", unix.ENODEV)
	}
	return errors.New("the program cannot write its frames")
}

func explainRun(err error) error {
	switch {
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("run the program: %w (CAP_NET_ADMIN is needed: run as root)", err)
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("run the program: %w (Linux 5.18 is needed, and a frame must fit a page)", err)
	}
	return fmt.Errorf("run the program: %w", err)
}
