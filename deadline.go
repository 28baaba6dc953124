package xdpd

import (
	"sync"
	"sync/atomic"
	"time"
)

// deadline is a point in time that can be moved while others wait for it.
type deadline struct {
	passed atomic.Bool
	mu     sync.Mutex
	timer  *time.Timer
	moved  uint64 // a timer that fired before it was stopped finds that it counts no more
}

// set moves the deadline; the zero time is never. When it passes, those who wait at w are woken to look.
func (d *deadline) set(t time.Time, w *waiter) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	d.moved++
	if t.IsZero() {
		d.passed.Store(false)
		return
	}
	wait := time.Until(t)
	if wait <= 0 {
		d.passed.Store(true)
		w.wakeAll()
		return
	}
	d.passed.Store(false)
	moved := d.moved
	d.timer = time.AfterFunc(wait, func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		if d.moved == moved {
			d.passed.Store(true)
			w.wakeAll()
		}
	})
}
