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
}

func newEventFD() (eventFD, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return eventFD{}, fmt.Errorf("eventfd: %w", err)
	}
	return eventFD{fd: fd, writes: new(atomic.Uint64)}, nil
}

// signal makes the reactor's ppoll return. A counter that is full says the same as one more.
func (e eventFD) signal() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	e.writes.Add(1)
	_, _ = unix.Write(e.fd, one[:])
}

func (e eventFD) drain() {
	var b [8]byte
	_, _ = unix.Read(e.fd, b[:])
}

func (e eventFD) close() error { return unix.Close(e.fd) }

// sleep blocks until a frame arrives, the deadline comes, or signal is called. The spin time adapts as KVM's
// halt_poll_ns does: a sleep so short that spinning would have been better doubles it, a long one halves it.
func (r *Reactor) sleep() {
	r.mu.Lock()
	if r.stopped || r.poked.Load() || r.unfinished() || !r.doze() {
		r.mu.Unlock()
		return
	}
	from := r.now()
	deadline := r.deadline(from) // not the turn's: a caller may have set a timer since
	r.asleep, r.until = true, deadline
	r.mu.Unlock()

	r.poll(max(0, min(deadline-from, defaultSleep)))
	slept := r.now() - from

	r.mu.Lock()
	r.asleep = false
	r.awaken()
	r.counters.Sleeps++
	r.mu.Unlock()
	if limit := int64(r.cfg.MaxSpin); slept < 2*limit {
		r.spinNS = min(2*r.spinNS, limit)
	} else if slept > 20*limit {
		r.spinNS = max(r.spinNS/2, min(minSpinNS, limit))
	}
}

// poll is the one place where a reactor blocks.
func (r *Reactor) poll(ns int64) {
	fds := [2]unix.PollFd{{Fd: int32(r.wake.fd), Events: unix.POLLIN}, {Fd: int32(r.port.Dev.FD()), Events: unix.POLLIN}}
	n := 2
	if fds[1].Fd < 0 {
		n = 1
	}
	ts := unix.NsecToTimespec(ns)
	_, err := unix.Ppoll(fds[:n], &ts, nil)
	if err == nil && fds[0].Revents != 0 {
		r.wake.drain()
	}
	if err == nil && n == 2 && fds[1].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0 && r.port.RX.Avail() == 0 {
		r.deviceError()
	}
}

// deviceError is called when the socket itself reports an error: its device was taken away. poll would return at once
// for ever, so the reactor waits on its eventfd alone for a while; whoever watches the link says what became of it.
func (r *Reactor) deviceError() {
	fds := []unix.PollFd{{Fd: int32(r.wake.fd), Events: unix.POLLIN}}
	ts := unix.NsecToTimespec(downRetryNS)
	if _, err := unix.Ppoll(fds, &ts, nil); err == nil && fds[0].Revents != 0 {
		r.wake.drain()
	}
}

// pinThread binds the calling thread to one CPU.
func pinThread(cpu int) error {
	var set unix.CPUSet
	set.Set(cpu)
	return unix.SchedSetaffinity(0, &set)
}
