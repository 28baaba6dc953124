package xdpd

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
)

// Client is the net face over an engine in another process: Listen, ListenPacket and Dial as Stack has them. When the daemon goes
// away its sockets end with ErrDaemonGone; the next one that is opened connects to the daemon that is there by then.
type Client struct {
	path string
	cfg  RemoteConfig

	mu     sync.Mutex
	now    *session
	closed bool
	past   sync.WaitGroup // sessions whose daemon is gone, and whose last operations are not yet
}

// ErrDaemonGone is what operations on a Client's sockets return when the daemon has ended, or has thrown the client out.
var ErrDaemonGone = errors.New("xdpd: the daemon is gone")

const (
	// clientOps is how many operations may wait at a time: a goroutine that reads or writes is one. Each has an SQE, and perhaps
	// another one that cancels it, so that the SQ always has room.
	clientOps = defaultRemoteSQ / 2
	// clientChunk holds what an operation moves: a header and the largest datagram fit.
	clientChunk = 68 << 10
)

// Connect connects to the daemon at path, the unix socket that it serves clients on. It fails when there is none.
func Connect(ctx context.Context, path string) (*Client, error) {
	c := &Client{path: path, cfg: RemoteConfig{Requests: 2 * clientOps, Data: clientOps * clientChunk}}
	if _, err := c.session(ctx); err != nil {
		return nil, err
	}
	return c, nil
}

// session gives the connection to the daemon, a new one if the last is gone.
func (c *Client) session(ctx context.Context) (*session, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return nil, net.ErrClosed
	case c.now != nil && !c.now.gone.Load():
		return c.now, nil
	}
	q, err := OpenRing(ctx, c.path, c.cfg)
	if err != nil {
		return nil, err
	}
	if old := c.now; old != nil {
		c.past.Go(func() { _ = old.close() }) // its daemon has ended it already
	}
	c.now = newSession(q)
	return c.now, nil
}

// Close ends all sockets.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.now == nil {
		return nil
	}
	c.closed = true
	err := c.now.close()
	c.past.Wait()
	return err
}

// session is a ring and the operations under way on it.
type session struct {
	q      *RemoteRing
	mu     sync.Mutex // submitting; and nobody submits when the ring is gone
	ops    []clientOp
	free   chan uint32 // numbers of ops, and of their chunks of the ring's memory
	gone   atomic.Bool
	reaped sync.WaitGroup
	users  sync.WaitGroup // operations, which look into the memory
}

type clientOp struct {
	res  atomic.Int32  // what orders its uses goes through the rings, where no tool sees it
	done chan struct{} // a token: res is the result
}

const cancelData = ^uint64(0) // user data of CANCEL, whose failure says that there was nothing to cancel

func newSession(q *RemoteRing) *session {
	s := &session{q: q, ops: make([]clientOp, clientOps), free: make(chan uint32, clientOps)}
	for i := range s.ops {
		s.ops[i].done = make(chan struct{}, 1)
		s.free <- uint32(i)
	}
	s.reaped.Go(s.reap)
	return s
}

// reap gives completions to those who wait, until the ring is gone; then everybody is told that.
func (s *session) reap() {
	buf := make([]rings.CQE, 64)
	for {
		_, err := s.q.Wait(1, -1)
		n := s.q.Reap(buf)
		for _, c := range buf[:n] {
			if c.UserData < uint64(len(s.ops)) {
				op := &s.ops[c.UserData]
				op.res.Store(c.Res)
				token(op.done)
			}
		}
		if n == 0 && errors.Is(err, reactor.ErrRingClosed) {
			s.gone.Store(true)
			s.mu.Lock() // who submitted before this lock waits, and hears of it; who comes after it sees gone
			defer s.mu.Unlock()
			for i := range s.ops {
				s.ops[i].res.Store(-int32(sockets.EBADFD))
				token(s.ops[i].done)
			}
			return
		}
	}
}

// close ends the session. Operations that wait end with net.ErrClosed or ErrDaemonGone.
func (s *session) close() error {
	// The end of reading is the ring's end for us: everybody who waits is woken, and the memory may go when the last of them has left
	// it. Where the daemon has ended the connection before it is an error, and done already.
	_ = s.q.conn.CloseRead()
	s.reaped.Wait()
	s.users.Wait()
	return s.q.Close()
}

// call is an operation of one goroutine: a number, and a chunk of memory.
type call struct {
	s  *session
	i  uint32
	ch <-chan struct{}
}

// begin takes an operation's number, when one is free.
func (s *session) begin(stop ...<-chan struct{}) (call, error) {
	a, b := stopPair(stop)
	select {
	case i := <-s.free:
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.gone.Load() {
			s.free <- i
			return call{}, ErrDaemonGone
		}
		s.users.Add(1)
		return call{s: s, i: i, ch: s.ops[i].done}, nil
	case <-a:
	case <-b:
	}
	return call{}, errStopped
}

var errStopped = errors.New("stopped")

func stopPair(stop []<-chan struct{}) (a, b <-chan struct{}) {
	if len(stop) > 0 {
		a = stop[0]
	}
	if len(stop) > 1 {
		b = stop[1]
	}
	return a, b
}

// end gives the number back.
func (o call) end() {
	o.s.users.Done()
	o.s.free <- o.i
}

// mem is the call's memory, and base where it begins.
func (o call) mem() []byte  { return o.s.q.Data[o.base():][:clientChunk:clientChunk] }
func (o call) base() uint64 { return uint64(o.i) * clientChunk }

// submit gives an SQE to the engine.
func (o call) submit(sqe *rings.SQE) error {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	if o.s.gone.Load() {
		return ErrDaemonGone
	}
	s := o.s.q.SQE() // there is room: clientOps is half of the entries
	*s = *sqe
	s.UserData = uint64(o.i)
	o.s.q.Submit()
	return nil
}

// do submits an SQE and waits for its result. When one of stop is closed it is cancelled, and the result is that of the cancelled
// request: the bytes that it had moved, or ECANCELED.
func (o call) do(sqe *rings.SQE, stop ...<-chan struct{}) (res int, errno sockets.Errno, err error) {
	if err := o.submit(sqe); err != nil {
		return 0, 0, err
	}
	return o.wait(stop...)
}

func (o call) wait(stop ...<-chan struct{}) (res int, errno sockets.Errno, err error) {
	a, b := stopPair(stop)
	stopped := true
	select {
	case <-o.ch:
		stopped = false
	case <-a:
	case <-b:
	}
	if stopped {
		o.cancel()
		<-o.ch
	}
	r := o.s.ops[o.i].res.Load()
	switch {
	case o.s.gone.Load(), !stopped && sockets.Errno(-r) == sockets.ECANCELED: // by the daemon, which gives up the ring
		return 0, 0, ErrDaemonGone
	case r < 0:
		return 0, sockets.Errno(-r), nil
	}
	return int(r), 0, nil
}

func (o call) cancel() {
	o.s.mu.Lock()
	defer o.s.mu.Unlock()
	if o.s.gone.Load() {
		return
	}
	if s := o.s.q.SQE(); s != nil {
		*s = rings.SQE{Opcode: rings.OpCancel, Flags: rings.SQESkipSuccess, Addr: uint64(o.i), UserData: cancelData}
		o.s.q.Submit()
	}
}

// timeLimit is a deadline that can be waited for: package net's pipeDeadline.
type timeLimit struct {
	mu     sync.Mutex
	timer  *time.Timer
	passed chan struct{}
}

func (d *timeLimit) init() { d.passed = make(chan struct{}) }

func (d *timeLimit) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.passed // the timer's function is closing it
	}
	d.timer = nil
	over := false
	select {
	case <-d.passed:
		over = true
	default:
	}
	if t.IsZero() {
		if over {
			d.passed = make(chan struct{})
		}
		return
	}
	if wait := time.Until(t); wait > 0 {
		if over {
			d.passed = make(chan struct{})
		}
		passed := d.passed
		d.timer = time.AfterFunc(wait, func() { close(passed) })
		return
	}
	if !over {
		close(d.passed)
	}
}

func (d *timeLimit) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.passed
}
