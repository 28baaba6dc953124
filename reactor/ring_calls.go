package reactor

import (
	"errors"
	"sync"
	"sync/atomic"

	"xdpd/rings"
	"xdpd/sockets"
)

// RingCalls are calls that block, of any number of goroutines, over one ring: an operation is submitted, and who asked waits for its
// completion. The ring is theirs alone.
type RingCalls struct {
	ring   *RingClient
	data   []byte
	chunk  int
	closed error

	mu     sync.Mutex // submitting; and nobody submits when the ring is gone
	calls  []callState
	free   chan uint32 // numbers of calls, and of their chunks of the ring's memory
	gone   atomic.Bool
	reaped sync.WaitGroup
	users  sync.WaitGroup // calls, which look into the memory
}

type callState struct {
	res   atomic.Int32 // what orders its uses goes through the rings, where no tool sees it
	flags atomic.Uint32
	done  chan struct{} // a token: res is the result
}

// ErrCallStopped is what a call returns that found no number before it was to stop.
var ErrCallStopped = errors.New("ring: the call was stopped")

const cancelData = ^uint64(0) // user data of CANCEL, whose failure says that there was nothing to cancel

// NewRingCalls makes calls over a ring of at least twice n entries, each with chunk bytes of data, the ring's memory. When the ring is
// closed they end with the error closed.
func NewRingCalls(ring *RingClient, data []byte, n, chunk int, closed error) *RingCalls {
	s := &RingCalls{ring: ring, data: data, chunk: chunk, closed: closed, calls: make([]callState, n), free: make(chan uint32, n)}
	for i := range s.calls {
		s.calls[i].done = make(chan struct{}, 1)
		s.free <- uint32(i)
	}
	s.reaped.Go(s.reap)
	return s
}

// reap gives completions to those who wait, until the ring is gone; then everybody is told that.
func (s *RingCalls) reap() {
	buf := make([]rings.CQE, 64)
	for {
		_, err := s.ring.Wait(1, -1)
		n := s.ring.Reap(buf)
		for _, c := range buf[:n] {
			if c.UserData < uint64(len(s.calls)) {
				s.calls[c.UserData].end(c.Res, c.Flags)
			}
		}
		if n == 0 && errors.Is(err, ErrRingClosed) {
			s.gone.Store(true)
			s.mu.Lock() // who submitted before this lock waits, and hears of it; who comes after it sees gone
			defer s.mu.Unlock()
			for i := range s.calls {
				s.calls[i].end(-int32(sockets.EBADFD), 0)
			}
			return
		}
	}
}

func (c *callState) end(res int32, flags uint32) {
	c.res.Store(res)
	c.flags.Store(flags)
	select {
	case c.done <- struct{}{}:
	default:
	}
}

// Gone reports whether the ring is closed.
func (s *RingCalls) Gone() bool { return s.gone.Load() }

// Drain waits until the ring is closed and nobody is in a call. Then its memory may go.
func (s *RingCalls) Drain() {
	s.reaped.Wait()
	s.users.Wait()
}

// Call is an operation of one goroutine: a number, and a chunk of memory.
type Call struct {
	s  *RingCalls
	i  uint32
	ch <-chan struct{}
}

// Begin takes an operation's number, when one is free, or until one of at most three channels of stop says so. Errors: ErrCallStopped,
// the ring's.
func (s *RingCalls) Begin(stop ...<-chan struct{}) (Call, error) {
	a, b, c := stops(stop)
	select {
	case i := <-s.free:
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.gone.Load() {
			s.free <- i
			return Call{}, s.closed
		}
		s.users.Add(1)
		return Call{s: s, i: i, ch: s.calls[i].done}, nil
	case <-a:
	case <-b:
	case <-c:
	}
	return Call{}, ErrCallStopped
}

func stops(stop []<-chan struct{}) (a, b, c <-chan struct{}) {
	var list [3]<-chan struct{}
	copy(list[:], stop)
	return list[0], list[1], list[2]
}

// End gives the number back.
func (o Call) End() {
	o.s.users.Done()
	o.s.free <- o.i
}

// Mem is the call's memory, and Base where it begins.
func (o Call) Mem() []byte  { return o.s.data[o.Base():][:o.s.chunk:o.s.chunk] }
func (o Call) Base() uint64 { return uint64(o.i) * uint64(o.s.chunk) }

// Submit gives an SQE to the engine. Each is waited for before the next.
func (o Call) Submit(sqe *rings.SQE) error {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	if o.s.gone.Load() {
		return o.s.closed
	}
	s := o.s.ring.SQE() // there is room: there are twice as many entries
	*s = *sqe
	s.UserData = uint64(o.i)
	o.s.ring.Submit()
	return nil
}

// Do submits an SQE and waits for its result. When one of stop is closed it is cancelled, and the result is that of the cancelled
// request: the bytes that it had moved, or ECANCELED.
func (o Call) Do(sqe *rings.SQE, stop ...<-chan struct{}) (res int, errno sockets.Errno, err error) {
	if err := o.Submit(sqe); err != nil {
		return 0, 0, err
	}
	return o.Wait(stop...)
}

// Wait waits for what was submitted.
func (o Call) Wait(stop ...<-chan struct{}) (res int, errno sockets.Errno, err error) {
	a, b, c := stops(stop)
	stopped := true
	select {
	case <-o.ch:
		stopped = false
	case <-a:
	case <-b:
	case <-c:
	}
	if stopped {
		o.cancel()
		<-o.ch
	}
	r := o.s.calls[o.i].res.Load()
	switch {
	case o.s.gone.Load(), !stopped && sockets.Errno(-r) == sockets.ECANCELED: // by the engine, which gives up the ring
		return 0, 0, o.s.closed
	case r < 0:
		return 0, sockets.Errno(-r), nil
	}
	return int(r), 0, nil
}

// Flags are those of the last completion.
func (o Call) Flags() uint32 { return o.s.calls[o.i].flags.Load() }

func (o Call) cancel() {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	if o.s.gone.Load() {
		return
	}
	if s := o.s.ring.SQE(); s != nil {
		*s = rings.SQE{Opcode: rings.OpCancel, Flags: rings.SQESkipSuccess, Addr: uint64(o.i), UserData: cancelData}
		o.s.ring.Submit()
	}
}
