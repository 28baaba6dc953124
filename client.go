package xdpd

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"xdpd/reactor"
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

// clientCalls is how a Client divides its memory. A chunk holds what an operation moves: a header and the largest datagram fit.
var clientCalls = reactor.CallsConfig{Chunk: 68 << 10, Chunks: 64, Buffers: 256}

// Connect connects to the daemon at path, the unix socket that it serves clients on. It fails when there is none.
func Connect(ctx context.Context, path string) (*Client, error) {
	c := &Client{path: path, cfg: RemoteConfig{Data: uint64(clientCalls.Size())}}
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
	case c.now != nil && !c.now.Gone():
		return c.now, nil
	}
	q, err := OpenRing(ctx, c.path, c.cfg)
	if err != nil {
		return nil, err
	}
	if old := c.now; old != nil {
		c.past.Go(func() { _ = old.close() }) // its daemon has ended it already
	}
	if c.now, err = newSession(q); err != nil {
		return nil, err
	}
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

// session is a ring, and the calls over it.
type session struct {
	*reactor.RingCalls
	q     *RemoteRing
	ahead atomic.Int32 // datagrams that sockets may receive ahead of their readers: see datagrams
}

type call = reactor.Call

func newSession(q *RemoteRing) (*session, error) {
	calls, err := reactor.NewRingCalls(q.RingClient, q.Data, clientCalls, ErrDaemonGone)
	if err != nil {
		return nil, errors.Join(err, q.Close())
	}
	s := &session{RingCalls: calls, q: q}
	if err := s.Provide(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// close ends the session. Operations that wait end with net.ErrClosed or ErrDaemonGone.
func (s *session) close() error {
	// The end of reading is the ring's end for us: everybody who waits is woken, and the memory may go when the last of them has left
	// it. Where the daemon has ended the connection before it is an error, and done already.
	_ = s.q.conn.CloseRead()
	s.Drain()
	return s.q.Close()
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
