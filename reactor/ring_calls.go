package reactor

import (
	"errors"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"xdpd/rings"
	"xdpd/sockets"
)

// RingCalls are calls that block, of any number of goroutines, over one ring: an operation is submitted, and who asked waits for its
// completion. The ring is theirs alone.
//
// A call has a number, which is its operation's user data, and a little memory for addresses; a data call has a chunk for data. Who waits
// for something that may never come, a reader, has no chunk: what comes for it goes into a provided buffer of group 0.
type RingCalls struct {
	ring   *RingClient
	data   []byte
	cfg    CallsConfig
	closed error
	spin   time.Duration // how long a call looks for its completion before it sleeps

	mu     sync.Mutex // submitting; and nobody submits when the ring is gone
	blocks [maxCallBlocks]atomic.Pointer[callBlock]
	grown  uint32      // numbers that there are; those of data calls come first
	small  []uint32    // free numbers, of calls without a chunk
	chunks chan uint32 // and of data calls
	gone   atomic.Bool
	reaped sync.WaitGroup
	users  sync.WaitGroup // calls, which look into the memory

	take    taker
	buffers callBuffers
}

// CallsConfig says how calls divide the ring's memory.
type CallsConfig struct {
	Chunk   int // bytes of a chunk, and of a buffer
	Chunks  int // data calls at a time: more wait for one of them
	Buffers int // to receive into: a power of two, or none
}

const (
	callBlockSize = 256
	maxCallBlocks = 128
	callMem       = 64 // bytes of memory of a call that has no chunk
	callAlign     = 4096
)

type callBlock [callBlockSize]callState

type callState struct {
	res   atomic.Int32 // what orders its uses goes through the rings, where no tool sees it
	flags atomic.Uint32
	done  chan struct{} // a token: res is the result
	sink  atomic.Pointer[CallSink]
	quick bool // the engine is awake, and does what was submitted without waiting for others
}

// CallSink hears of completions instead of somebody who waits. It is called by whoever takes completions, and must neither block nor submit.
type CallSink interface {
	Completed(o Call, res int32, flags uint32)
}

// ErrCallStopped is what a call returns that found no chunk before it was to stop.
var ErrCallStopped = errors.New("ring: the call was stopped")

// ErrTooManyCalls says that 32768 calls are there.
var ErrTooManyCalls = errors.New("ring: too many calls at a time")

const cancelData = ^uint64(0) // user data of CANCEL, whose failure says that there was nothing to cancel

// Size is how many bytes of the ring's memory they take.
func (c CallsConfig) Size() int { return c.buffersAt() + c.Buffers*c.Chunk }

// The memory: small calls, the ring of buffers, chunks, buffers.
func (c CallsConfig) bufRingAt() int { return maxCallBlocks * callBlockSize * callMem }
func (c CallsConfig) chunksAt() int {
	return (c.bufRingAt() + c.Buffers*rings.BufEntrySize + callAlign - 1) &^ (callAlign - 1)
}
func (c CallsConfig) buffersAt() int { return c.chunksAt() + c.Chunks*c.Chunk }

// NewRingCalls makes calls over a ring with data, the ring's memory. When the ring is closed they end with the error closed.
func NewRingCalls(ring *RingClient, data []byte, cfg CallsConfig, closed error) (*RingCalls, error) {
	if len(data) < cfg.Size() || cfg.Chunks < 1 || cfg.Chunks > maxCallBlocks*callBlockSize/2 || cfg.Chunk < callMem {
		return nil, fmt.Errorf("ring: %d bytes of memory; %+v takes %d", len(data), cfg, cfg.Size())
	}
	s := &RingCalls{ring: ring, data: data, cfg: cfg, closed: closed, chunks: make(chan uint32, cfg.Chunks)}
	if runtime.GOMAXPROCS(0) > 1 { // else nobody would complete it meanwhile
		s.spin = lookFor
	}
	for int(s.grown) < cfg.Chunks {
		s.grow()
	}
	for i := range uint32(cfg.Chunks) {
		s.chunks <- i
	}
	s.reaped.Go(s.reap)
	return s, nil
}

// grow makes a block of calls. Those that have no chunk are free.
func (s *RingCalls) grow() {
	b := &callBlock{}
	for k := range b {
		b[k].done = make(chan struct{}, 1)
	}
	s.blocks[s.grown/callBlockSize].Store(b)
	for i := s.grown + callBlockSize; i > s.grown; i-- {
		if int(i) > s.cfg.Chunks {
			s.small = append(s.small, i-1)
		}
	}
	s.grown += callBlockSize
}

func (s *RingCalls) state(i uint32) *callState {
	return &s.blocks[i/callBlockSize].Load()[i%callBlockSize]
}

// Gone reports whether the ring is closed.
func (s *RingCalls) Gone() bool { return s.gone.Load() }

// Drain waits until the ring is closed and nobody is in a call. Then its memory may go.
func (s *RingCalls) Drain() {
	s.reaped.Wait()
	s.users.Wait()
}

// Call is an operation of one goroutine: a number, and memory.
type Call struct {
	s *RingCalls
	i uint32
}

// Use lets the caller look into the memory until Unuse, or says that the ring is closed.
func (s *RingCalls) Use() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone.Load() {
		return s.closed
	}
	s.users.Add(1)
	return nil
}

// Unuse ends Use.
func (s *RingCalls) Unuse() { s.users.Done() }

// Begin takes a number. Errors: ErrTooManyCalls, the ring's.
func (s *RingCalls) Begin() (Call, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone.Load() {
		return Call{}, s.closed
	}
	if len(s.small) == 0 {
		if s.grown == maxCallBlocks*callBlockSize {
			return Call{}, ErrTooManyCalls
		}
		s.grow()
	}
	i := s.small[len(s.small)-1]
	s.small = s.small[:len(s.small)-1]
	s.users.Add(1)
	return Call{s, i}, nil
}

// BeginData takes a number with a chunk when one is free, or until one of at most two channels of stop says so. Errors: ErrCallStopped,
// the ring's.
func (s *RingCalls) BeginData(stop ...<-chan struct{}) (o Call, err error) {
	o.s = s
	select {
	case o.i = <-s.chunks:
	default:
		if o.i, err = s.awaitChunk(stop); err != nil {
			return Call{}, err
		}
	}
	if err := s.Use(); err != nil {
		s.chunks <- o.i
		return Call{}, err
	}
	return o, nil
}

func (s *RingCalls) awaitChunk(stop []<-chan struct{}) (uint32, error) {
	s.Hear(1)
	defer s.Hear(-1)
	a, b := stops(stop)
	select {
	case i := <-s.chunks:
		return i, nil
	case <-a:
	case <-b:
	}
	return 0, ErrCallStopped
}

// Scarce reports whether few chunks are free: who might keep one for long does without.
func (s *RingCalls) Scarce() bool { return len(s.chunks) < s.cfg.Chunks/4 }

func stops(stop []<-chan struct{}) (a, b <-chan struct{}) {
	var list [2]<-chan struct{}
	if copy(list[:], stop) < len(stop) {
		panic("ring: a call with more than two channels that stop it")
	}
	return list[0], list[1]
}

// End ends the call and gives the number back.
func (o Call) End() {
	o.s.users.Done()
	o.Free()
}

// Free gives the number back, for who ended before: Post, Keep.
func (o Call) Free() {
	o.s.state(o.i).sink.Store(nil)
	if int(o.i) < o.s.cfg.Chunks {
		o.s.chunks <- o.i
		return
	}
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	o.s.small = append(o.s.small, o.i)
}

// Mem is the call's memory, a chunk or callMem bytes, and Base where it begins.
func (o Call) Mem() []byte {
	n := callMem
	if int(o.i) < o.s.cfg.Chunks {
		n = o.s.cfg.Chunk
	}
	return o.s.data[o.Base():][:n:n]
}

// Base is where Mem begins.
func (o Call) Base() uint64 {
	if int(o.i) < o.s.cfg.Chunks {
		return uint64(o.s.cfg.chunksAt()) + uint64(o.i)*uint64(o.s.cfg.Chunk)
	}
	return uint64(o.i) * callMem
}

// fullRest is how long who finds the SQ full waits: the engine is behind, or this application has used up its share of the time.
const fullRest = 100 * time.Microsecond

// submit gives SQEs to the engine, with the call's number, and reports whether the engine was awake.
func (o Call) submit(sqe *rings.SQE, n int) (awake bool, err error) {
	s := o.s
	for {
		s.mu.Lock()
		for ; n > 0 && !s.gone.Load(); n-- {
			e := s.ring.SQE()
			if e == nil {
				break
			}
			*e = *sqe
			e.UserData = uint64(o.i)
		}
		k := s.ring.app.SQ.Reserved()
		s.ring.app.SQ.Submit(k)
		// Where SQEs wait that were submitted before, the engine is awake or has been knocked at, and looks at the tail again behind each head.
		awake = k == 0 || s.ring.app.SQ.Pending() > k || s.ring.kick()
		gone := s.gone.Load()
		s.mu.Unlock()
		switch {
		case gone:
			return awake, s.closed
		case n == 0:
			return awake, nil
		}
		time.Sleep(fullRest)
	}
}

// Submit gives an SQE to the engine. Each is waited for before the next.
func (o Call) Submit(sqe *rings.SQE) error {
	awake, err := o.submit(sqe, 1)
	o.s.state(o.i).quick = awake && quick(sqe)
	return err
}

// quick reports whether an operation does not wait, or seldom.
func quick(sqe *rings.SQE) bool {
	switch sqe.Opcode {
	case rings.OpRecv, rings.OpRecvFrom, rings.OpEpollWait, rings.OpConnect:
		return sqe.OpFlags&rings.MsgDontWait != 0
	case rings.OpAccept:
		return sqe.IOPrio&rings.AcceptDontWait != 0
	case rings.OpPollAdd:
		return false
	}
	return true
}

// Post gives an SQE to the engine and ends the call. Its completion goes to sink, which frees the number; it is quiet, unless it fails.
func (o Call) Post(sqe *rings.SQE, sink *CallSink) error {
	o.s.state(o.i).sink.Store(sink)
	sqe.Flags |= rings.SQEQuiet
	_, err := o.submit(sqe, 1)
	if err != nil {
		o.s.state(o.i).sink.Store(nil)
		o.End()
		return err
	}
	o.s.users.Done()
	return nil
}

// Keep ends the call and keeps the number, for operations whose completions go to sink.
func (o Call) Keep(sink *CallSink) {
	o.s.state(o.i).sink.Store(sink)
	o.s.users.Done()
}

// Again submits an SQE n times, with a number that was kept.
func (o Call) Again(sqe *rings.SQE, n int) error {
	_, err := o.submit(sqe, n)
	return err
}

// Do submits an SQE and waits for its result. When one of stop is closed it is cancelled, and the result is that of the cancelled
// request: the bytes that it had moved, or ECANCELED.
func (o Call) Do(sqe *rings.SQE, stop ...<-chan struct{}) (res int, errno sockets.Errno, err error) {
	if err := o.Submit(sqe); err != nil {
		return 0, 0, err
	}
	return o.Wait(stop...)
}

// Wait waits for what was submitted, until one of at most three channels of stop says so.
func (o Call) Wait(stop ...<-chan struct{}) (res int, errno sockets.Errno, err error) {
	st := o.s.state(o.i)
	stopped := false
	if !st.quick || !o.s.take.look(o.s, st) {
		var list [3]<-chan struct{}
		copy(list[:], stop)
		select {
		case <-st.done:
		case <-list[0]:
			stopped = true
		case <-list[1]:
			stopped = true
		case <-list[2]:
			stopped = true
		}
	}
	if stopped {
		o.Cancel()
		<-st.done
	}
	r := st.res.Load()
	switch {
	case o.s.gone.Load(), !stopped && sockets.Errno(-r) == sockets.ECANCELED: // by the engine, which gives up the ring
		return 0, 0, o.s.closed
	case r < 0:
		return 0, sockets.Errno(-r), nil
	}
	return int(r), 0, nil
}

// Flags are those of the last completion.
func (o Call) Flags() uint32 { return o.s.state(o.i).flags.Load() }

// Cancel cancels what the call submitted, of several the oldest.
func (o Call) Cancel() {
	sqe := rings.SQE{Opcode: rings.OpCancel, Flags: rings.SQESkipSuccess, Addr: uint64(o.i)}
	for {
		o.s.mu.Lock()
		gone, s := o.s.gone.Load(), (*rings.SQE)(nil)
		if !gone {
			if s = o.s.ring.SQE(); s != nil {
				*s = sqe
				s.UserData = cancelData
				o.s.ring.Submit()
			}
		}
		o.s.mu.Unlock()
		if gone || s != nil {
			return
		}
		time.Sleep(fullRest)
	}
}
