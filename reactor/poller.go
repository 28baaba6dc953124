package reactor

import (
	"errors"
	"slices"
	"sync"
	"time"

	"xdpd/sockets"
)

// Event is one socket's readiness as Poller.Wait reports it.
type Event struct {
	Sock  sockets.Handle
	Ready sockets.Ready
	Data  uint64 // as given to Add
}

// Poller is a level-triggered readiness poller over the sockets of one reactor, with epoll's semantics: a socket is
// reported by every Wait as long as it is ready for what it was added for; Err and Hup are always reported. A socket
// that is closed leaves the poller by itself.
type Poller struct {
	r       *Reactor
	items   map[sockets.Handle]*pollItem
	ready   []sockets.Handle // epoll's rdllist; each socket once; one that is not in items was closed
	kept    []sockets.Handle // scratch of take
	waiting sync.Cond        // on r.mu
	closed  bool
	handler Handler
	batch   []Event // scratch of serve
}

// Handler handles a ready socket on the reactor: h is the reactor's Host, now the time of the turn. It must not block.
type Handler func(h *sockets.Host, now int64, e Event)

type pollItem struct {
	mask   sockets.Ready
	data   uint64
	queued bool
}

// Errors of a Poller.
var (
	ErrExists    = errors.New("poller: socket was added before")
	ErrNotAdded  = errors.New("poller: no such socket")
	ErrBadSocket = errors.New("poller: socket is closed")
	ErrClosed    = errors.New("poller: closed")
)

// NewPoller makes a poller for sockets of r. The caller does not hold the lock.
func NewPoller(r *Reactor) *Poller {
	p := &Poller{r: r, items: make(map[sockets.Handle]*pollItem)}
	p.waiting.L = &r.mu
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pollers = append(r.pollers, p)
	return p
}

// Add has the poller report s when it is ready for any of mask. The caller holds the reactor's lock (Enter), as for Mod
// and Del. A socket has one sink: added here, it can be in no other poller.
func (p *Poller) Add(s sockets.Handle, mask sockets.Ready, data uint64) error {
	switch {
	case p.closed || p.r.stopped:
		return ErrClosed
	case p.items[s] != nil || p.r.sinks[s] != nil:
		return ErrExists
	case !p.r.host.Open(s):
		return ErrBadSocket
	}
	p.items[s] = &pollItem{mask: mask | sockets.Err | sockets.Hup, data: data}
	p.r.Watch(s, p)
	p.Ready(s, p.r.host.Ready(s))
	return nil
}

// Mod changes what s is reported for.
func (p *Poller) Mod(s sockets.Handle, mask sockets.Ready, data uint64) error {
	it := p.items[s]
	if it == nil {
		return ErrNotAdded
	}
	if p.r.stopped {
		return ErrClosed
	}
	it.mask, it.data = mask|sockets.Err|sockets.Hup, data
	p.Ready(s, p.r.host.Ready(s))
	return nil
}

// Del takes s out.
func (p *Poller) Del(s sockets.Handle) error {
	if p.items[s] == nil {
		return ErrNotAdded
	}
	delete(p.items, s)
	p.r.Watch(s, nil)
	p.ready = slices.DeleteFunc(p.ready, func(q sockets.Handle) bool { return q == s })
	return nil
}

// Ready implements Sink: it is ep_poll_callback.
func (p *Poller) Ready(s sockets.Handle, ready sockets.Ready) (woke bool) {
	it := p.items[s]
	if it != nil && !p.r.host.Open(s) { // closed: it leaves, as from an epoll set
		delete(p.items, s)
		return false
	}
	if it == nil || it.queued || ready&it.mask == 0 {
		return false
	}
	it.queued = true
	p.ready = append(p.ready, s)
	p.waiting.Signal()
	return p.handler == nil
}

// take moves at most len(buf) events out of the ready list. As ep_send_events does, it asks each socket again: what is
// no longer ready leaves the list, what still is goes to its end.
func (p *Poller) take(buf []Event) int {
	n, seen := 0, 0
	p.kept = p.kept[:0]
	for seen < len(p.ready) && n < len(buf) {
		s := p.ready[seen]
		seen++
		it := p.items[s]
		if it == nil {
			continue
		}
		it.queued = false
		if !p.r.host.Open(s) {
			delete(p.items, s)
			continue
		}
		if ready := p.r.host.Ready(s) & it.mask; ready != 0 {
			buf[n] = Event{s, ready, it.data}
			n++
			it.queued = true
			p.kept = append(p.kept, s)
		}
	}
	p.ready = append(p.ready[:copy(p.ready, p.ready[seen:])], p.kept...)
	return n
}

// Wait blocks until a socket is ready, then reports up to len(buf) of them. timeout zero: does not block; negative: no
// limit. 0, nil: the time is over. It must not be called on the reactor's own goroutine.
func (p *Poller) Wait(buf []Event, timeout time.Duration) (int, error) {
	p.r.Enter()
	defer p.r.Leave()
	var expired *bool // a wait without a limit allocates nothing
	if timeout > 0 {
		over := new(bool)
		expired = over
		defer time.AfterFunc(timeout, func() {
			p.r.mu.Lock()
			*over = true
			p.waiting.Broadcast()
			p.r.mu.Unlock()
		}).Stop()
	}
	for {
		if p.closed || p.r.stopped {
			return 0, ErrClosed
		}
		if n := p.take(buf); n > 0 || timeout == 0 || expired != nil && *expired || len(buf) == 0 {
			if len(p.ready) > 0 { // still ready: the next waiter's, if this one is busy for long (ep_done_scan)
				p.waiting.Signal()
			}
			return n, nil
		}
		p.waiting.Wait()
	}
}

// Serve has the reactor itself call handler for every ready socket, in each turn, with the lock held: handlers that run
// to completion. The caller holds the lock (Enter).
func (p *Poller) Serve(handler Handler) {
	p.handler = handler
}

// serve runs the handler for a bounded number of events.
func (p *Poller) serve(now int64) bool {
	if len(p.ready) == 0 {
		return false
	}
	if p.batch == nil {
		p.batch = make([]Event, batch)
	}
	n := p.take(p.batch)
	for _, e := range p.batch[:n] {
		p.handler(p.r.host, now, e)
	}
	return n > 0
}

// Close ends every Wait with ErrClosed. The sockets stay open.
func (p *Poller) Close() {
	p.r.Enter()
	defer p.r.Leave()
	p.r.pollers = slices.DeleteFunc(p.r.pollers, func(q *Poller) bool { return q == p })
	p.close()
}

func (p *Poller) close() {
	p.closed = true
	for s := range p.items {
		p.r.Watch(s, nil)
	}
	clear(p.items)
	p.ready = p.ready[:0]
	p.waiting.Broadcast()
}
