package reactor

import (
	"errors"
	"math"
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
// that is closed leaves the poller by itself. A socket in it costs 24 bytes.
type Poller struct {
	r       *Reactor
	id      uint16 // 1 + its index in Reactor.pollers
	ready   readyList
	waiting sync.Cond // on r.mu
	closed  bool
	handler Handler
	batch   []Event // scratch of serve
}

// Handler handles a ready socket on the reactor: h is the reactor's Host, now the time of the turn. It must not block.
type Handler func(h *sockets.Host, now int64, e Event)

// Errors of a Poller.
var (
	ErrExists    = errors.New("poller: socket was added before")
	ErrNotAdded  = errors.New("poller: no such socket")
	ErrBadSocket = errors.New("poller: socket is closed")
	ErrClosed    = errors.New("poller: closed")
)

// NewPoller makes a poller for sockets of r. The caller does not hold the lock.
func NewPoller(r *Reactor) *Poller {
	p := &Poller{r: r}
	p.waiting.L = &r.mu
	r.mu.Lock()
	defer r.mu.Unlock()
	i := slices.Index(r.pollers, nil)
	if i < 0 {
		i = len(r.pollers)
		r.pollers = append(r.pollers, nil)
	}
	if i >= math.MaxUint16 {
		panic("reactor: 65535 pollers")
	}
	r.pollers[i], p.id = p, uint16(i+1)
	return p
}

// Add has the poller report s when it is ready for any of mask. The caller holds the reactor's lock (Enter), as for Mod
// and Del. A socket has one sink: added here, it can be in no other poller.
func (p *Poller) Add(s sockets.Handle, mask sockets.Ready, data uint64) error {
	switch {
	case p.closed || p.r.stopped:
		return ErrClosed
	case p.r.watches.find(s) != nil || p.r.sinks[s] != nil:
		return ErrExists
	case !p.r.host.Open(s):
		return ErrBadSocket
	}
	w := p.r.watches.slot(s)
	if w.poller != 0 { // a closed socket's, of which the reactor has not been told yet
		p.r.unwatch(w, refOf(s))
	}
	_, gen, _ := split(s)
	*w = watch{gen: gen, poller: p.id}
	p.set(s, w, mask, data)
	return nil
}

// Mod changes what s is reported for.
func (p *Poller) Mod(s sockets.Handle, mask sockets.Ready, data uint64) error {
	w := p.find(s)
	if w == nil {
		return ErrNotAdded
	}
	if p.r.stopped {
		return ErrClosed
	}
	p.set(s, w, mask, data)
	return nil
}

func (p *Poller) set(s sockets.Handle, w *watch, mask sockets.Ready, data uint64) {
	w.mask, w.data = uint16(mask|sockets.Err|sockets.Hup), data
	if p.r.host.Open(s) { // else it is about to leave
		p.tell(w, refOf(s), p.r.host.Ready(s))
	}
}

// Del takes s out.
func (p *Poller) Del(s sockets.Handle) error {
	w := p.find(s)
	if w == nil {
		return ErrNotAdded
	}
	p.r.unwatch(w, refOf(s))
	return nil
}

// find gives the watch of s if it is this poller's.
func (p *Poller) find(s sockets.Handle) *watch {
	if w := p.r.watches.find(s); w != nil && w.poller == p.id && !p.closed {
		return w
	}
	return nil
}

// tell is ep_poll_callback. It reports whether it made a goroutine runnable.
func (p *Poller) tell(w *watch, i ref, ready sockets.Ready) (woke bool) {
	if w.next != 0 || ready&sockets.Ready(w.mask) == 0 {
		return false
	}
	p.r.watches.push(&p.ready, i)
	p.waiting.Signal()
	return p.handler == nil
}

// unwatch forgets a socket that is in a poller.
func (r *Reactor) unwatch(w *watch, i ref) {
	if w.next != 0 {
		r.watches.unlink(&r.pollers[w.poller-1].ready, i)
	}
	*w = watch{}
}

// take moves at most len(buf) events out of the ready list. As ep_send_events does, it asks each socket again: what is
// no longer ready leaves the list, what still is goes to its end.
func (p *Poller) take(buf []Event) int {
	t, n := &p.r.watches, 0
	for looked := p.ready.n; looked > 0 && n < len(buf); looked-- {
		i := p.ready.head
		w, s := t.at(i), t.handle(i)
		if !p.r.host.Open(s) {
			p.r.unwatch(w, i)
			continue
		}
		t.unlink(&p.ready, i)
		if ready := p.r.host.Ready(s) & sockets.Ready(w.mask); ready != 0 {
			buf[n] = Event{s, ready, w.data}
			n++
			t.push(&p.ready, i)
		}
	}
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
			if p.ready.n > 0 { // still ready: the next waiter's, if this one is busy for long (ep_done_scan)
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
	if p.ready.n == 0 {
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
	if !p.closed {
		p.r.pollers[p.id-1] = nil
		p.close()
	}
}

func (p *Poller) close() {
	p.closed = true
	p.r.watches.drop(p.id)
	p.ready = readyList{}
	p.waiting.Broadcast()
}
