package reactor

import (
	"container/heap"
	"runtime"
	"time"
)

// waiter is a goroutine in Wait.
type waiter struct {
	token      chan struct{} // room for one: whoever takes the waiter out of the list leaves it
	prev, next *waiter       // in Poller.waiting; next alone in Poller.spare
	queued     bool          // in Poller.waiting
	why        uint8         // what woke it
	p          *Poller
	deadline   int64 // ns on the reactor's clock
	place      int   // in Reactor.waits; -1: no limit
}

// What wakes a waiter.
const (
	wokenByEvent = iota
	wokenByUser
	wokenByTime
	wokenByClose
)

// waitList is the wait queue of a Poller (eventpoll.wq): who came last is woken first, his data is in the cache.
type waitList struct{ head *waiter }

func (l *waitList) push(w *waiter) {
	w.prev, w.next, w.queued = nil, l.head, true
	if l.head != nil {
		l.head.prev = w
	}
	l.head = w
}

func (l *waitList) remove(w *waiter) {
	if w.prev != nil {
		w.prev.next = w.next
	} else {
		l.head = w.next
	}
	if w.next != nil {
		w.next.prev = w.prev
	}
	w.prev, w.next, w.queued = nil, nil, false
}

// wakeOne makes one waiter runnable and takes it out of the list, so that the next event wakes another one
// (ep_autoremove_wake_function).
func (p *Poller) wakeOne(why uint8) bool {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	return p.wakeThis(p.waiting.head, why)
}

// wakeThis wakes a waiter if it still waits. The caller holds p.wmu.
func (p *Poller) wakeThis(w *waiter, why uint8) bool {
	if w == nil || !w.queued {
		return false
	}
	p.waiting.remove(w)
	w.why = why
	w.token <- struct{}{}
	return true
}

// Wake makes one Wait return at once: one that blocks, else the next. It returns 0 and no error, unless a socket is ready.
// Wakes that meet nobody are one. Any goroutine may call it, a handler as well.
func (p *Poller) Wake() {
	p.wmu.Lock()
	defer p.wmu.Unlock()
	if !p.wakeThis(p.waiting.head, wokenByUser) {
		p.woken.Store(true)
	}
}

// Wait blocks until a socket is ready, then reports up to len(buf) of them (epoll_pwait2). timeout zero: does not block;
// negative: no limit; else it is kept to some microseconds, by the reactor, not by a timer of the runtime, which counts in
// milliseconds. 0, nil: the time is over, or Wake. The caller does not hold the lock. Errors: ErrInvalid: buf is empty;
// ErrInHandler; ErrClosed: Close, or the reactor stopped.
func (p *Poller) Wait(buf []Event, timeout time.Duration) (int, error) {
	if len(buf) == 0 {
		return 0, ErrInvalid
	}
	r := p.r
	if !r.mu.TryLock() {
		if r.serving.Load() && inHandler() {
			return 0, ErrInHandler
		}
		r.mu.Lock()
	}
	defer r.Leave()
	over := timeout == 0
	var deadline int64
	if timeout > 0 {
		deadline = r.now() + int64(timeout)
	}
	for {
		if p.closed || r.stopped {
			return 0, ErrClosed
		}
		if n := p.take(buf); n > 0 || over || p.woken.Load() {
			p.woken.Store(false)
			if p.ready.n > 0 { // still ready: the next waiter's, if this one is busy for long (ep_done_scan)
				p.wakeOne(wokenByEvent)
			}
			return n, nil
		}
		if r.siblingServes() && inHandler() {
			return 0, ErrInHandler
		}
		why := p.park(deadline)
		over = why == wokenByTime || why == wokenByUser
	}
}

// park lets go of the lock until somebody wakes the goroutine, and tells why.
func (p *Poller) park(deadline int64) (why uint8) {
	r := p.r
	p.wmu.Lock()
	if p.woken.Load() {
		p.wmu.Unlock()
		return wokenByUser
	}
	w := p.spare
	if w != nil {
		p.spare = w.next
	} else {
		w = &waiter{token: make(chan struct{}, 1), p: p}
	}
	p.waiting.push(w)
	p.wmu.Unlock()
	w.deadline, w.place = deadline, -1
	if deadline != 0 {
		heap.Push(&r.waits, w)
		if w.place == 0 && deadline-r.now() < 2*maxSpinNS {
			r.poked.Store(true) // it may be spinning beyond that
		}
	}
	r.Leave()
	<-w.token
	r.mu.Lock()
	if w.place >= 0 {
		heap.Remove(&r.waits, w.place)
	}
	why = w.why
	p.wmu.Lock()
	w.next, p.spare = p.spare, w
	p.wmu.Unlock()
	return why
}

// expire wakes those whose time is over.
func (r *Reactor) expire(now int64) {
	for len(r.waits) > 0 && r.waits[0].deadline <= now {
		w := r.waits[0]
		heap.Remove(&r.waits, 0)
		w.p.wmu.Lock()
		r.woke = w.p.wakeThis(w, wokenByTime) || r.woke
		w.p.wmu.Unlock()
	}
}

// waitHeap has the waiters of a reactor that have a deadline, the earliest first.
type waitHeap []*waiter

func (h waitHeap) Len() int           { return len(h) }
func (h waitHeap) Less(i, j int) bool { return h[i].deadline < h[j].deadline }

func (h waitHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

func (h *waitHeap) Push(w any) {
	w.(*waiter).place = len(*h)
	*h = append(*h, w.(*waiter))
}

func (h *waitHeap) Pop() any {
	last := len(*h) - 1
	w := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	w.place = -1
	return w
}

// next is when the first of them is due.
func (h waitHeap) next() int64 {
	if len(h) == 0 {
		return foreverNS
	}
	return h[0].deadline
}

// siblingServes reports whether a reactor of the same group runs a handler now: one of the same loop's would, in Wait, keep
// from running what it waits for.
func (r *Reactor) siblingServes() bool {
	for i := range r.peers {
		if r.peers[i].r.serving.Load() {
			return true
		}
	}
	return false
}

// inHandler reports whether the calling goroutine runs a handler, so that the lock is its own, or its
// sibling's. Go has no name for a goroutine but its stack. It is asked only by who finds handlers running.
func inHandler() bool {
	var pcs [128]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		if f.Function == "xdpd/reactor.(*Poller).serve" {
			return true
		}
		if !more {
			return false
		}
	}
}
