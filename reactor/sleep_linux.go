package reactor

import (
	"encoding/binary"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Monotonic is the clock of reactors: ns since some start, never backwards.
func Monotonic() int64 { return int64(time.Since(start)) + 1e9 }

var start = time.Now()

// eventFD wakes a sleeping reactor.
type eventFD struct {
	fd     int
	writes *atomic.Uint64
	count  []byte // what drain reads into: of the one goroutine that waits
}

func newEventFD() (eventFD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return eventFD{}, fmt.Errorf("eventfd: %w", err)
	}
	return eventFD{fd: fd, writes: new(atomic.Uint64), count: make([]byte, 8)}, nil
}

// signal makes the reactor's ppoll return. A counter that is full says the same as one more.
func (e eventFD) signal() {
	e.writes.Add(1)
	_, _ = unix.Write(e.fd, oneEvent)
}

// oneEvent is what is written: a local one would be allocated each time.
var oneEvent = binary.NativeEndian.AppendUint64(nil, 1)

func (e eventFD) drain() { _, _ = unix.Read(e.fd, e.count) }

func (e eventFD) close() error { return unix.Close(e.fd) }

// sleep blocks until a frame arrives, the deadline comes, or signal is called. The spin time adapts as KVM's
// halt_poll_ns does: a sleep so short that spinning would have been better doubles it, a long one halves it.
func (l *loop) sleep() {
	for _, r := range l.reactors {
		r.relax()
	}
	from := l.reactors[0].now()
	deadline, ready := int64(foreverNS), true
	for i, r := range l.reactors {
		d, ok := r.doze(from)
		if !ok {
			for _, r := range l.reactors[:i] {
				r.rouse(false)
			}
			ready = false
			break
		}
		deadline = min(deadline, d)
	}
	if !ready {
		return
	}
	l.poll(max(0, min(deadline-from, defaultSleep)))
	now := l.reactors[0].now()
	slept := now - from
	for _, r := range l.reactors {
		r.ranAt = now
		r.rouse(true)
	}
	if slept < 2*l.maxSpin {
		l.spinNS = min(2*l.spinNS, l.maxSpin)
	} else if slept > 20*l.maxSpin {
		l.spinNS = max(l.spinNS/2, min(minSpinNS, l.maxSpin))
	}
}

// doze marks the reactor asleep, unless it has work to do. The deadline is not its last turn's: a caller may have set a
// timer since.
func (r *Reactor) doze(now int64) (deadline int64, ok bool) {
	r.lock()
	defer r.unlock()
	if r.stopped {
		return foreverNS, r.over // one that ended is no reason for its siblings to stay awake
	}
	r.dozing.Store(true)
	r.ringsNeedWakeup(true)
	if r.poked.Load() || r.unfinished() {
		r.dozing.Store(false)
		r.ringsNeedWakeup(false)
		return 0, false
	}
	deadline = r.deadline(now)
	r.asleep, r.until = true, deadline
	return deadline, true
}

// rouse ends what doze began.
func (r *Reactor) rouse(slept bool) {
	r.lock()
	defer r.unlock()
	r.asleep = false
	r.dozing.Store(false)
	r.ringsNeedWakeup(false)
	if slept && !r.over {
		r.counters.Sleeps++
	}
}

// poll is the one place where a loop blocks.
func (l *loop) poll(ns int64) {
	if r := l.reactors[0]; len(l.reactors) == 1 && r.epoll != nil && !r.over {
		l.pollNAPI(r, ns)
		return
	}
	fds := l.fds[:0]
	for _, r := range l.reactors {
		if r.over {
			continue
		}
		fds = append(fds, unix.PollFd{Fd: int32(r.wake.fd), Events: unix.POLLIN}, unix.PollFd{Fd: int32(r.port.Dev.FD()), Events: unix.POLLIN})
	}
	l.fds = fds
	ts := unix.NsecToTimespec(ns)
	if _, err := unix.Ppoll(fds, &ts, nil); err != nil {
		return
	}
	broken := false
	for _, r := range l.reactors {
		if r.over {
			continue
		}
		if fds[0].Revents != 0 {
			r.wake.drain()
		}
		broken = broken || fds[1].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0 && r.port.RX.Avail() == 0
		fds = fds[2:]
	}
	if broken {
		l.deviceError()
	}
}

// pollNAPI is poll for SuspendNAPI. (A loop of several reactors cannot: an epoll instance polls one NAPI.)
func (l *loop) pollNAPI(r *Reactor, ns int64) {
	woken, broken := r.epoll.wait(r.port.Dev.FD(), ns)
	if woken {
		r.wake.drain()
	}
	if broken && r.port.RX.Avail() == 0 {
		l.fds = append(l.fds[:0], unix.PollFd{Fd: int32(r.wake.fd), Events: unix.POLLIN}, unix.PollFd{Fd: -1})
		l.deviceError()
	}
}

// deviceError is called when a socket itself reports an error: its device was taken away. poll would return at once for
// ever, so the loop waits on its eventfds alone for a while; whoever watches the link says what became of it.
func (l *loop) deviceError() {
	for i := range l.fds {
		l.fds[i].Revents = 0
		if i%2 == 1 {
			l.fds[i].Fd = -1
		}
	}
	ts := unix.NsecToTimespec(downRetryNS)
	_, _ = unix.Ppoll(l.fds, &ts, nil)
	fds := l.fds
	for _, r := range l.reactors {
		if r.over {
			continue
		}
		if fds[0].Revents != 0 {
			r.wake.drain()
		}
		fds = fds[2:]
	}
}

// pinThread binds the calling thread to one CPU, until undo.
func pinThread(cpu int) (undo func(), err error) {
	var before, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return nil, err
	}
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return nil, err
	}
	return func() { _ = unix.SchedSetaffinity(0, &before) }, nil
}
