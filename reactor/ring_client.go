package reactor

import (
	"iter"
	"sync"
	"time"

	"xdpd/rings"
)

// RingClient is the application's end of a Ring, as liburing is io_uring's. One goroutine at a time may submit (SQE,
// Submit), and one at a time may take completions (Wait, Peek, Seen, Reap).
type RingClient struct {
	q       *Ring // nil: it is another process's
	app     *rings.RingApp
	door    func() // has the engine look at the rings, though it sleeps
	await   AwaitKnock
	waiting sync.Mutex // held by Wait

	lends, packets []byte // the table of lent frames, and the memory in which they are
}

func newRingClient(q *Ring, app *rings.RingApp) *RingClient {
	door := func() {
		q.r.Enter()
		q.r.Leave()
	}
	return &RingClient{
		q: q, app: app, door: door, await: AwaitToken(q.waiter, q.done), lends: q.lends.table, packets: q.r.pool.Region().Mem(),
	}
}

// AwaitKnock blocks until the engine, which saw that the application sleeps, wakes it (RingConfig.Bell), at most for timeout: negative, for
// ever; 0, not at all. It may return early. Error: ErrRingClosed, the engine's end is gone. One goroutine at a time calls it.
type AwaitKnock func(timeout time.Duration) error

// AwaitToken waits for a token in woken. done is closed with the ring.
func AwaitToken(woken, done <-chan struct{}) AwaitKnock {
	var timer *time.Timer
	return func(timeout time.Duration) error {
		var over <-chan time.Time
		switch {
		case timeout == 0:
			select {
			case <-done:
				return ErrRingClosed
			default:
				return nil
			}
		case timeout > 0 && timer == nil:
			timer = time.NewTimer(timeout)
		case timeout > 0:
			timer.Reset(timeout)
		}
		if timeout > 0 {
			defer timer.Stop()
			over = timer.C
		}
		select {
		case <-woken:
		case <-over:
		case <-done:
			return ErrRingClosed
		}
		return nil
	}
}

// JoinRing gives the application's end of a ring that another process's engine made in area. door wakes the engine when it
// sleeps, await waits until it wakes us. Serve and EventFD are for rings of this process.
func JoinRing(area []byte, door func(), await AwaitKnock) (*RingClient, error) {
	app, _, err := rings.App(area)
	if err != nil {
		return nil, err
	}
	return &RingClient{app: app, door: door, await: await}, nil
}

// Left waits until nobody is in Wait, of a ring that is gone: its memory may go then.
func (c *RingClient) Left() {
	c.waiting.Lock()
	defer c.waiting.Unlock()
}

// Lends tells an application in another process where the table of lent frames is, and the engine's packet memory, which it was given.
func (c *RingClient) Lends(table, packets []byte) { c.lends, c.packets = table, packets }

// SQE gives the next free SQE, all zero, to be filled in; nil when the SQ is full. It is submitted by Submit.
func (c *RingClient) SQE() *rings.SQE {
	idx, n := c.app.SQ.Reserve(1)
	if n == 0 {
		return nil
	}
	s := c.app.SQ.Slot(idx)
	*s = rings.SQE{}
	return s
}

// Submit hands the SQEs that were filled in to the engine and says how many they were. While the reactor is awake it
// makes no system call; when it sleeps, the caller's thread does the work.
func (c *RingClient) Submit() int {
	n := c.app.SQ.Reserved()
	c.app.SQ.Submit(n)
	if n > 0 {
		c.kick()
	}
	return int(n)
}

// kick has the engine look at the rings, and reports whether it was awake.
func (c *RingClient) kick() (awake bool) {
	switch asleep := c.app.SQ.NeedWakeup(); {
	case c.q != nil && (c.q.handler != nil || !asleep): // a handler runs with the lock held, in a turn
		c.q.r.poked.Store(true)
	case asleep:
		c.door()
		return false
	}
	return true
}

// Peek gives the oldest completion that was not Seen.
func (c *RingClient) Peek() (rings.CQE, bool) {
	idx, n := c.app.CQ.Peek(1)
	if n == 0 {
		return rings.CQE{}, false
	}
	return c.app.CQ.Read(idx), true
}

// Seen gives back the places of the n oldest completions. More than Peek or Reap showed panics.
func (c *RingClient) Seen(n int) {
	c.app.CQ.Release(uint32(n))
	if c.app.Overflow() { // what waits behind the full CQ can come now
		c.kick()
	}
}

// Reap moves up to len(buf) completions to buf.
func (c *RingClient) Reap(buf []rings.CQE) int {
	idx, n := c.app.CQ.Peek(uint32(len(buf)))
	for i := range n {
		buf[i] = c.app.CQ.Read(idx + i)
	}
	if n > 0 {
		c.Seen(int(n))
	}
	return int(n)
}

// Wait blocks until n completions, or as many as the CQ holds, can be taken, and says how many there are. timeout zero:
// does not block; negative: no limit. Fewer than n and no error: the time is over. It must not be called on the
// reactor's own goroutine. Completions of which the last is quiet (SQEQuiet) do not end it.
func (c *RingClient) Wait(n int, timeout time.Duration) (int, error) {
	c.waiting.Lock()
	defer c.waiting.Unlock()
	n = min(n, int(c.app.CQ.Size()))
	idx, got := c.app.CQ.Peek(uint32(n))
	if int(got) >= n {
		return int(got), nil
	}
	var until time.Time
	if timeout > 0 {
		until = time.Now().Add(timeout)
	}
	if timeout != 0 {
		c.app.Sleep(idx + uint32(n))
		defer c.app.Awake()
	}
	for {
		_, got = c.app.CQ.Peek(uint32(n))
		over := timeout == 0 || timeout > 0 && !time.Now().Before(until)
		if int(got) >= n || over && timeout != 0 {
			return int(got), nil
		}
		left := timeout
		if timeout > 0 {
			left = max(time.Until(until), 1)
		}
		if err := c.await(left); err != nil {
			if _, got = c.app.CQ.Peek(uint32(n)); got > 0 {
				err = nil
			}
			return int(got), err
		}
		if over {
			return int(got), nil
		}
	}
}

// All gives completion after completion, as they come, until the ring is closed. Before it waits it submits what was filled
// in, so that a program is a loop over what happened. One goroutine only, not the reactor's own.
func (c *RingClient) All() iter.Seq[rings.CQE] {
	return func(yield func(rings.CQE) bool) {
		for {
			cqe, ok := c.Peek()
			if !ok {
				c.Submit()
				if _, err := c.Wait(1, -1); err != nil {
					return
				}
				continue
			}
			c.Seen(1)
			if !yield(cqe) {
				return
			}
		}
	}
}

// Serve has the reactor itself call handler for each completion, in its turns, with the lock held: handlers that run to
// completion. SQEs that it submits are consumed in the same turn, within its budget. From then on the client belongs to
// the handler, and to who holds the lock (Enter), as the caller of Serve does.
func (c *RingClient) Serve(handler func(rings.CQE)) {
	c.q.handler, c.q.named = handler, funcName(handler)
}

// EventFD gives an eventfd(2) that becomes readable when completions came and all before them had been seen, for use in
// another event loop: read it, then take completions until there are none. It is the ring's, and closed with it.
func (c *RingClient) EventFD() (int, error) {
	c.q.r.Enter()
	defer c.q.r.Leave()
	if c.q.closed.Load() {
		return -1, ErrRingClosed
	}
	if c.q.eventFD.fd == 0 {
		e, err := newEventFD()
		if err != nil {
			return -1, err
		}
		c.q.eventFD = e
		if c.app.CQ.Avail() > 0 {
			e.signal()
		}
	}
	return c.q.eventFD.fd, nil
}

// DisableEventFD switches writes to the eventfd off, or on again.
func (c *RingClient) DisableEventFD(off bool) { c.app.DisableEventFD(off) }

// Overflow reports whether completions wait behind the full CQ.
func (c *RingClient) Overflow() bool { return c.app.Overflow() }
