package reactor

import (
	"fmt"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// loop is the goroutine that runs reactors: one, or several queues' worth. Reactors share nothing for being on one loop but
// the time they take.
type loop struct {
	reactors []*Reactor
	quit     atomic.Bool // its reactors go to other loops
	maxSpin  int64
	forever  bool // never sleeps
	spinNS   int64
	rang     bool // the last work woke an application in another process
	fds      []unix.PollFd
}

func newLoop(reactors []*Reactor) *loop {
	limit := int64(reactors[0].cfg.MaxSpin)
	l := &loop{reactors: reactors, maxSpin: limit, forever: limit < 0, spinNS: min(maxSpinNS, limit)}
	if l.forever {
		l.maxSpin, l.spinNS = maxSpinNS, maxSpinNS
	}
	return l
}

// run runs the reactors until all have stopped or one failed, or quit is set and they were signalled.
func (l *loop) run(pin bool, cpu int) error {
	if pin {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		undo, err := pinThread(cpu)
		if err != nil {
			return fmt.Errorf("reactor: pin to CPU %d: %w", cpu, err)
		}
		defer undo() // the thread may run other goroutines later
	}
	for idleSince := int64(0); ; {
		worked, woke, deadline, ended := l.turns()
		if ended || l.quit.Load() {
			return nil
		}
		if woke {
			runtime.Gosched()
		}
		if worked || woke {
			idleSince = 0
			continue
		}
		now := l.reactors[0].now()
		if idleSince == 0 {
			idleSince = now
		}
		// Who was woken needs a CPU, and where there is no other it is ours; he knocks, or the next packet comes. Who does not want to wait for
		// that polls for completions, and is never woken.
		if (!l.rang || l.forever) && l.spin(idleSince, deadline) {
			continue
		}
		l.sleep()
		idleSince = 0
	}
}

// turns does one turn of each reactor. ended: none runs any more, or one failed, of which the others must hear.
func (l *loop) turns() (worked, woke bool, deadline int64, ended bool) {
	deadline = foreverNS
	alive, failed := 0, false
	for _, r := range l.reactors {
		if r.over {
			continue
		}
		w, d, stop := r.turn()
		if stop {
			r.over = true
			r.finish()
			failed = failed || r.endedWith() != nil
			continue
		}
		alive++
		l.rang = l.rang && !w || r.rang.Swap(false)
		worked, woke, deadline = worked || w, woke || r.woke, min(deadline, d)
	}
	return worked, woke, deadline, failed || alive == 0
}

// spin polls without a lock until there is work (true) or the spin time is over. Each round yields, so that goroutines
// get their turn on a single P as well.
func (l *loop) spin(since, deadline int64) bool {
	for {
		runtime.Gosched()
		for _, r := range l.reactors {
			r.poll()
			if r.poked.Load() || r.port.RX.Avail() > 0 || r.port.Comp.Avail() > batch || r.submitted() {
				return true
			}
		}
		now := l.reactors[0].now()
		for _, r := range l.reactors {
			r.alive(now)
		}
		if now >= deadline {
			return true
		}
		if now-since >= l.spinNS {
			return l.forever // one that never sleeps does a turn now and then
		}
	}
}
