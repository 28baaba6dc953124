package reactor

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"

	"xdpd/sockets"
)

// Event is one socket's readiness as Poller.Wait reports it.
type Event struct {
	Sock  sockets.Handle
	Ready sockets.Ready
	Data  uint64 // as given to Add or Mod
}

// Flags of a mask, beside the conditions, with the values of epoll(7).
const (
	Exclusive     sockets.Ready = 1 << 28 // of all pollers with it, an event wakes one where somebody waits
	OneShot       sockets.Ready = 1 << 30 // after one report nothing more, until Mod
	EdgeTriggered sockets.Ready = 1 << 31 // one report an event, not as long as the condition lasts
)

// exclusiveOK is what a mask with Exclusive may have (EPOLLEXCLUSIVE_OK_BITS, fs/eventpoll.c).
const exclusiveOK = sockets.In | sockets.Out | sockets.Err | sockets.Hup | EdgeTriggered | Exclusive

// Poller is epoll over the sockets of one reactor; docs/poller.md is its manual. A socket is reported by every Wait as
// long as it is ready for what it was added for, or as the flags of its mask say; Err and Hup are always reported. A
// socket may be in any number of pollers. A socket that is closed leaves them by itself. It costs 24 bytes in its first
// poller. What costs time is a socket that is ready, never one that is idle.
//
// A poller cannot be in a poller: what is added is the Handle of a socket, and a Poller has none.
type Poller struct {
	r         *Reactor
	id        uint16 // 1 + its index in Reactor.pollers
	ready     readyList
	closed    bool
	members   int  // sockets in it
	due       bool // in Reactor.due
	handler   Handler
	ring      *Ring // whose requests wait; nil: goroutines do
	ringEpoll *epoll
	name      *string // of the handler
	batch     []Event // scratch of serve
	looked    uint64  // sockets that were asked whether they are ready

	wmu     sync.Mutex // guards what follows; taken last, for a moment
	waiting waitList
	spare   *waiter     // waiters that nobody uses
	woken   atomic.Bool // Wake found nobody waiting
}

// Handler handles a ready socket on the reactor: h is the reactor's Host, now the time of the turn. It must not block.
type Handler func(h *sockets.Host, now int64, e Event)

// pollError is an error of a Poller that is, for errors.Is, the errno that epoll would give.
type pollError struct {
	text  string
	errno syscall.Errno
}

func (e *pollError) Error() string { return "poller: " + e.text }
func (e *pollError) Unwrap() error { return e.errno }

// Errors of a Poller.
var (
	ErrExists    error = &pollError{"socket was added before", syscall.EEXIST}
	ErrNotAdded  error = &pollError{"no such socket", syscall.ENOENT}
	ErrBadSocket error = &pollError{"socket is closed", syscall.EBADF}
	ErrClosed    error = &pollError{"closed", syscall.EBADF}
	ErrInvalid   error = &pollError{"invalid argument", syscall.EINVAL}
	ErrTooMany   error = &pollError{"too many sockets in several pollers", syscall.ENOSPC}
	ErrInHandler error = &pollError{"Wait inside a handler would wait for itself", syscall.EDEADLK}
)

// NewPoller makes a poller for sockets of r. The caller does not hold the lock.
func NewPoller(r *Reactor) *Poller {
	r.mu.Lock()
	defer r.mu.Unlock()
	p := r.newPoller()
	if p == nil {
		panic("reactor: 65535 pollers")
	}
	return p
}

// newPoller makes a poller; nil: there are 65535.
func (r *Reactor) newPoller() *Poller {
	p := &Poller{r: r}
	i := slices.Index(r.pollers, nil)
	if i < 0 {
		if i = len(r.pollers); i >= math.MaxUint16 {
			return nil
		}
		r.pollers = append(r.pollers, nil)
	}
	r.pollers[i], p.id = p, uint16(i+1)
	return p
}

// Add has the poller report s when it is ready for any of mask (EPOLL_CTL_ADD). The caller holds the reactor's lock
// (Enter), as for Mod and Del. Errors: ErrExists (also when a Sink has s), ErrBadSocket, ErrInvalid: what may not stand
// beside Exclusive; ErrTooMany: a million sockets are in a second poller; ErrClosed.
func (p *Poller) Add(s sockets.Handle, mask sockets.Ready, data uint64) error {
	t := &p.r.watches
	switch {
	case p.closed || p.r.stopped:
		return ErrClosed
	case !p.r.host.Open(s):
		return ErrBadSocket
	case mask&Exclusive != 0 && mask&^exclusiveOK != 0:
		return ErrInvalid
	}
	if sink, ok := p.r.sinks.Get(s); ok && (p.ring == nil || sink != Sink(p.ring)) {
		return ErrExists
	}
	if _, w := t.findIn(s, p.id); w != nil {
		return ErrExists
	}
	i, w := refOf(s), t.slot(s)
	if t.find(s) != nil {
		var ok bool
		if i, w, ok = t.add(s); !ok {
			return ErrTooMany
		}
	} else if w.poller != 0 { // a closed socket's, of which the reactor has not been told yet
		p.r.forget(t.handle(i))
	}
	_, gen, _ := split(s)
	*w = watch{gen: gen, poller: p.id}
	p.members++
	p.set(s, i, w, mask, data)
	return nil
}

// Mod changes what s is reported for, and takes up one that OneShot put to rest (EPOLL_CTL_MOD). What s is ready for now
// is an event. Errors: ErrNotAdded; ErrInvalid for a mask with Exclusive, and for a socket that was added with it;
// ErrClosed.
func (p *Poller) Mod(s sockets.Handle, mask sockets.Ready, data uint64) error {
	i, w, err := p.find(s)
	switch {
	case mask&Exclusive != 0:
		return ErrInvalid
	case err != nil:
		return err
	case p.r.stopped:
		return ErrClosed
	case w.mask&watchExclusive != 0:
		return ErrInvalid
	}
	p.set(s, i, w, mask, data)
	return nil
}

// set is what ep_insert and ep_modify have in common.
func (p *Poller) set(s sockets.Handle, i ref, w *watch, mask sockets.Ready, data uint64) {
	w.mask = packMask(mask|sockets.Err|sockets.Hup) | w.mask&watchMore
	w.data = data
	if mask&(EdgeTriggered|sockets.Out) == EdgeTriggered|sockets.Out {
		p.r.host.UDPTellSent(s)
	}
	if p.r.host.Open(s) { // else it is about to leave
		p.tell(i, w, p.readiness(s))
	}
}

// readiness is what a socket is ready for; a ring's, what it may do already.
func (p *Poller) readiness(s sockets.Handle) sockets.Ready {
	ready := p.r.host.Ready(s)
	if p.ring != nil && p.ring.rates.on {
		if k, ok := p.ring.socks.byHandle.Get(s); ok {
			ready = p.ring.slowed(k, ready)
		}
	}
	return ready
}

// Del takes s out (EPOLL_CTL_DEL). Errors: ErrNotAdded.
func (p *Poller) Del(s sockets.Handle) error {
	i, _, err := p.find(s)
	if err == nil {
		p.r.unwatch(s, i)
	}
	return err
}

func (p *Poller) find(s sockets.Handle) (i ref, w *watch, err error) {
	if i, w = p.r.watches.findIn(s, p.id); w == nil || p.closed {
		return 0, nil, ErrNotAdded
	}
	return i, w, nil
}

// tell is ep_poll_callback. woke: it made a goroutine runnable; taken: somebody will see to it, so that nobody else with
// Exclusive need be told.
func (p *Poller) tell(i ref, w *watch, what sockets.Ready) (woke, taken bool) {
	if w.events(what) == 0 {
		return false, false
	}
	if w.next == 0 {
		p.r.watches.push(&p.ready, i)
	}
	if p.handler != nil {
		p.fallDue()
		return false, true
	}
	if p.ring != nil {
		taken = p.ring.wakeEpoll(p.ringEpoll)
		return false, taken && what&(sockets.In|sockets.Out) != sockets.In|sockets.Out
	}
	woke = p.wakeOne(wokenByEvent)
	// What comes as both at once counts for neither (ep_poll_callback).
	return woke, woke && what&(sockets.In|sockets.Out) != sockets.In|sockets.Out
}

// tell passes an event on to all pollers that have the socket, in the order of __wake_up_common: first those without
// Exclusive, the last added before the others, then of those with it the first that somebody waits for. Several
// connections that came in one turn are several events.
func (r *Reactor) tell(e sockets.Event, first *watch) (woke bool) {
	if first.mask&(watchMore|watchExclusive) == 0 {
		woke, _ = r.pollers[first.poller-1].tell(refOf(e.Sock), first, e.What)
		return woke
	}
	r.refs = r.watches.all(r.refs[:0], e.Sock)
	all := e.What&sockets.Hup != 0 // a change of state: sock_def_wakeup wakes all
	for _, i := range slices.Backward(r.refs) {
		if w := r.watches.at(i); w.mask&watchExclusive == 0 {
			one, _ := r.pollers[w.poller-1].tell(i, w, e.What)
			woke = woke || one
		}
	}
	for taken := true; taken && e.Times > 0; e.Times-- {
		taken = false
		for _, i := range r.refs {
			w := r.watches.at(i)
			if w.mask&watchExclusive == 0 {
				continue
			}
			var one bool
			one, taken = r.pollers[w.poller-1].tell(i, w, e.What)
			if woke = woke || one; taken && !all {
				break
			}
		}
	}
	return woke
}

// unwatch takes a socket out of one poller.
func (r *Reactor) unwatch(s sockets.Handle, i ref) {
	t := &r.watches
	p := r.pollers[t.at(i).poller-1]
	if p.members--; t.at(i).next != 0 {
		t.unlink(&p.ready, i)
	}
	if t.remove(s, i) != 0 && t.at(i).next != 0 { // another poller's watch has the place now
		t.renamed(&r.pollers[t.at(i).poller-1].ready, i)
	}
}

// forget takes a socket out of all pollers.
func (r *Reactor) forget(s sockets.Handle) {
	for r.watches.find(s) != nil {
		r.unwatch(s, refOf(s))
	}
}

// take moves at most len(buf) events out of the ready list. As ep_send_events does, it asks each socket again: what is
// no longer ready leaves the list, what still is goes to its end, unless its mask says that once is enough.
func (p *Poller) take(buf []Event) int {
	t, n := &p.r.watches, 0
	for looked := p.ready.n; looked > 0 && n < len(buf); looked-- {
		i := p.ready.head
		w, s := t.at(i), t.handle(i)
		p.looked++
		if !p.r.host.Open(s) {
			p.r.forget(s)
			continue
		}
		t.unlink(&p.ready, i)
		ready := w.events(p.readiness(s))
		if ready == 0 {
			continue
		}
		buf[n] = Event{s, ready, w.data}
		n++
		switch {
		case w.mask&watchOneShot != 0:
			w.mask &= watchFlags
		case w.mask&watchET == 0:
			t.push(&p.ready, i)
		}
	}
	return n
}

// Serve has the reactor itself call handler for every ready socket, in each turn, with the lock held: handlers that run
// to completion. The masks mean what they mean to Wait. The caller holds the lock (Enter).
func (p *Poller) Serve(handler Handler) {
	p.handler, p.name = handler, funcName(handler)
	if p.ready.n > 0 {
		p.fallDue()
	}
}

// fallDue has the handler called in this turn, or the next.
func (p *Poller) fallDue() {
	if !p.due {
		p.due = true
		p.r.due = append(p.r.due, p)
	}
}

// serveDue serves the pollers whose sockets became ready. What does not run dry, or becomes ready meanwhile, is for the next
// turn: so each handler has its share of a turn.
func (r *Reactor) serveDue(now int64) (worked bool) {
	r.due, r.dueNow = r.dueNow[:0], r.due
	for i, p := range r.dueNow {
		r.dueNow[i] = nil
		p.due = false
		worked = p.serve(now) || worked
		if p.ready.n > 0 {
			p.fallDue()
		}
	}
	return worked
}

// serve runs the handler for as many events as a turn can bring at most. Were it fewer, what comes for many sockets would be
// taken in, held, and dropped for want of frames. Wait finds it by its name (inHandler).
func (p *Poller) serve(now int64) bool {
	if p.ready.n == 0 {
		return false
	}
	if p.batch == nil {
		p.batch = make([]Event, budget)
	}
	n := p.take(p.batch)
	p.r.serving.Store(true)
	p.r.handling.Store(p.name)
	for _, e := range p.batch[:n] {
		p.handler(p.r.host, now, e)
	}
	p.r.handling.Store(nil)
	p.r.serving.Store(false)
	return n > 0
}

// Close ends every Wait with ErrClosed. The sockets stay open. It must not be called by a handler.
func (p *Poller) Close() {
	p.r.Enter()
	defer p.r.Leave()
	p.r.dropPoller(p)
}

func (r *Reactor) dropPoller(p *Poller) {
	if !p.closed {
		p.close()
		r.pollers[p.id-1] = nil
	}
}

func (p *Poller) close() {
	p.closed = true
	if p.members > 0 {
		p.r.watches.each(func(i ref, w *watch) {
			if w.poller == p.id {
				p.r.unwatch(p.r.watches.handle(i), i)
			}
		})
	}
	for p.wakeOne(wokenByClose) {
	}
}
