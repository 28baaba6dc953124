package reactor

import (
	"errors"
	"sync"
	"time"

	"xdpd/rings"
	"xdpd/sockets"
)

// lookFor is how long a call looks for its completion before it sleeps. An engine that is awake does an operation in a few µs, and a sleep
// with its wake-up costs both sides ten times that.
const lookFor = 15 * time.Microsecond

// taker takes completions for RingCalls: the reaper, a goroutine that sleeps while there are none, and callers that look for themselves.
type taker struct {
	sync.Mutex
	asleep  bool // the reaper is
	lookers int  // callers that look: meanwhile the engine need not wake us
	hungry  int  // see Hear
	buf     [64]rings.CQE
}

// reap takes completions until the ring is gone; then everybody is told that.
func (s *RingCalls) reap() {
	t := &s.take
	for {
		t.Lock()
		if t.asleep && t.lookers == 0 {
			s.ring.app.Awake()
		}
		t.asleep = true
		if t.lookers == 0 {
			t.rest(s)
		} else {
			t.some(s)
		}
		t.Unlock()
		if err := s.ring.await(-1); errors.Is(err, ErrRingClosed) {
			s.end()
			return
		}
	}
}

// some gives the completions that are there to those who wait. The caller holds the lock.
func (t *taker) some(s *RingCalls) {
	for {
		n := s.ring.Reap(t.buf[:])
		for _, c := range t.buf[:n] {
			if c.UserData < maxCallBlocks*callBlockSize {
				s.completed(uint32(c.UserData), c.Res, c.Flags)
			}
		}
		if n < len(t.buf) {
			return
		}
	}
}

func (s *RingCalls) completed(i uint32, res int32, flags uint32) {
	st := s.state(i)
	if sink := st.sink.Load(); sink != nil {
		(*sink).Completed(Call{s, i}, res, flags)
		return
	}
	st.end(res, flags)
}

func (c *callState) end(res int32, flags uint32) {
	c.res.Store(res)
	c.flags.Store(flags)
	select {
	case c.done <- struct{}{}:
	default:
	}
}

// rest asks the engine for a knock at the next completion, and takes those that came before it heard. The caller holds the lock.
func (t *taker) rest(s *RingCalls) {
	app := s.ring.app
	for {
		t.some(s)
		app.WantQuiet(t.hungry > 0)
		idx, _ := app.CQ.Peek(1)
		app.Sleep(idx + 1)
		if _, n := app.CQ.Peek(1); n == 0 {
			return
		}
		app.Awake()
	}
}

// look takes completions until that of a call is there, and reports whether it came in time.
func (t *taker) look(s *RingCalls, st *callState) (came bool) {
	if s.spin == 0 {
		return false
	}
	t.Lock()
	if t.lookers++; t.lookers == 1 && t.asleep {
		s.ring.app.Awake()
	}
	t.Unlock()
	for began := time.Now(); !came; {
		if s.ring.app.Waiting() && t.TryLock() {
			t.some(s)
			t.Unlock()
		}
		select {
		case <-st.done:
			came = true
		default:
			if time.Since(began) > s.spin {
				t.leave(s)
				return false
			}
		}
	}
	t.leave(s)
	return true
}

func (t *taker) leave(s *RingCalls) {
	t.Lock()
	defer t.Unlock()
	if t.lookers--; t.lookers == 0 && t.asleep {
		t.rest(s)
	}
}

// Hear counts, by 1 and -1, those who wait for what quiet completions bring: a free chunk, say. While there are some they wake as others do.
func (s *RingCalls) Hear(n int) {
	t := &s.take
	t.Lock()
	defer t.Unlock()
	if t.hungry += n; n > 0 && t.lookers == 0 && t.asleep {
		s.ring.app.Awake()
		t.rest(s)
	}
}

// end tells everybody that the ring is gone.
func (s *RingCalls) end() {
	s.take.Lock()
	defer s.take.Unlock()
	s.take.some(s)
	s.gone.Store(true)
	s.mu.Lock() // who submitted before this lock waits, and hears of it; who comes after it sees gone
	grown := s.grown
	s.mu.Unlock()
	for i := range grown {
		s.completed(i, -int32(sockets.EBADFD), 0)
	}
}

// callBuffers are the provided buffers of group 0.
type callBuffers struct {
	sync.Mutex
	giver *rings.BufGiver
	freed chan struct{} // a token: one was given back
}

// Provide registers the buffers. It comes before all that uses them.
func (s *RingCalls) Provide() error {
	at := s.cfg.bufRingAt()
	b, ok := rings.NewBufGiver(s.data[at:][:s.cfg.Buffers*rings.BufEntrySize])
	if !ok {
		return errors.New("ring: buffers are a power of two")
	}
	s.buffers.giver, s.buffers.freed = b, make(chan struct{}, 1)
	for i := range s.cfg.Buffers {
		s.GiveBack(uint16(i))
	}
	o, err := s.Begin()
	if err != nil {
		return err
	}
	defer o.End()
	_, errno, err := o.Do(&rings.SQE{Opcode: rings.OpBufRing, Addr: uint64(at), Len: uint32(s.cfg.Buffers)})
	if err == nil && errno != 0 {
		err = errno
	}
	return err
}

// Buffer is a provided buffer, of a caller between Use or Begin and their ends.
func (s *RingCalls) Buffer(id uint16) []byte {
	return s.data[s.cfg.buffersAt()+int(id)*s.cfg.Chunk:][:s.cfg.Chunk:s.cfg.Chunk]
}

// GiveBack gives the engine a buffer again. A ring that is gone takes none.
func (s *RingCalls) GiveBack(id uint16) {
	b := &s.buffers
	b.Lock()
	defer b.Unlock()
	b.giver.Add(rings.Buf{Addr: uint64(s.cfg.buffersAt() + int(id)*s.cfg.Chunk), Len: uint32(s.cfg.Chunk), ID: id})
	b.giver.Publish()
	select {
	case b.freed <- struct{}{}:
	default:
	}
}

// Freed has a token when a buffer was given back: who found none looks again.
func (s *RingCalls) Freed() <-chan struct{} { return s.buffers.freed }
