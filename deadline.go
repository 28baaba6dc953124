package xdpd

import (
	"sync"
	"time"
)

// deadline is a point in time that can be moved while others wait for it, as in net.Pipe: a channel that is closed when
// the time has come, replaced when it is moved to later.
type deadline struct {
	mu     sync.Mutex
	timer  *time.Timer
	passed chan struct{}
}

func (d *deadline) init() { d.passed = make(chan struct{}) }

// set moves the deadline; the zero time is never.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.passed // the timer fired: wait for its function, or it would close the new channel
	}
	d.timer = nil
	was := isClosed(d.passed)
	if t.IsZero() {
		if was {
			d.passed = make(chan struct{})
		}
		return
	}
	if wait := time.Until(t); wait > 0 {
		if was {
			d.passed = make(chan struct{})
		}
		passed := d.passed
		d.timer = time.AfterFunc(wait, func() { close(passed) })
		return
	}
	if !was {
		close(d.passed)
	}
}

// wait gives a channel that is closed when the deadline passes. A waiter that is woken looks again: the deadline may
// have moved.
func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}

func (d *deadline) expired() bool { return isClosed(d.wait()) }

func isClosed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}
