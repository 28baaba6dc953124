// Package faces moves the bytes of TCP connections on two faces of the engine, the poller and the ring. What is done with
// the bytes is a Stream, which knows neither of them.
//
//	Loop (one for each reactor) ── Listen ──▶ accept(Conn) Stream
//	     │                      ── Dial ────▶ Stream.Open, or Stream.Closed
//	     └─ a goroutine: waits, and calls the Streams of its connections
//
// The goroutine is no reactor's: a Stream may read a file without holding up the engine, but it holds up its own Loop.
package faces

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"xdpd"
	"xdpd/sockets"
)

// Stream is what is done on a connection. All calls come from its Loop, one at a time.
type Stream interface {
	// Open: the connection is there. Its addresses are those of its Conn.
	Open(c Conn)
	// Room is how many bytes Take takes now. After 0 it is asked again when something was sent, and after Conn.Wake.
	Room() int
	// Take is given at least 1 and at most Room bytes that came. They are not its own.
	Take(b []byte)
	// End: the peer will send nothing more.
	End()
	// Next is what to send: the same until Sent says that some of it is. fin: nothing comes behind it.
	Next() (b []byte, fin bool)
	// Sent: the first n bytes of Next are on their way.
	Sent(n int)
	// Deadline is when the connection is to be reset, with os.ErrDeadlineExceeded, unless there is a later one by then;
	// zero: never. It is kept to a second.
	Deadline() time.Time
	// Closed is the last call: nil when both directions ended, otherwise why the connection is no more, or never was.
	Closed(err error)
}

// Conn is a connection as its Stream sees it. Its methods are for the Loop's own goroutine.
type Conn interface {
	// Wake has the Stream asked again for Room and Next. It may be called at any time, after Closed too.
	Wake()
	// Abort resets the connection. Closed is called later, with net.ErrClosed.
	Abort()
}

// Loop serves connections of one reactor.
type Loop interface {
	// Listen accepts on a port of every address. accept gives the Stream of a connection; nil: it is reset.
	Listen(port uint16, accept func() Stream) error
	// Dial connects to a backend. Only for the Loop's goroutine.
	Dial(to netip.AddrPort, s Stream) Conn
	// Post has f called by the Loop's goroutine. From any goroutine; false: the Loop has ended, and does not.
	Post(f func()) bool
	// StopListening closes the listeners. Connections go on.
	StopListening()
	// Conns is how many connections there are.
	Conns() int
	// Close resets all connections and ends the goroutine.
	Close()
}

// New makes the Loop of a face, "poller" or "ring", on each reactor of the stack, and starts it. It has up to conns
// connections at a time; more that come in are reset. On a ring each has 16 KiB of address space, which becomes memory when
// it first sends.
func New(st *xdpd.Stack, face string, conns int) ([]Loop, error) {
	if conns < 1 || conns > MaxConns {
		return nil, fmt.Errorf("%s: %d connections; there can be 1 to %d", face, conns, MaxConns)
	}
	var loops []Loop
	for n := range st.Reactors() {
		var l Loop
		var err error
		if face == "ring" {
			l, err = newRingLoop(st, n, conns)
		} else {
			l, err = newPollerLoop(st, n, conns)
		}
		if err != nil {
			for _, l := range loops {
				l.Close()
			}
			return nil, fmt.Errorf("%s: %w", face, err)
		}
		loops = append(loops, l)
	}
	return loops, nil
}

// MaxConns is the most that a Loop can be made for.
const MaxConns = 1 << 16

const (
	pieceSize = 16 << 10    // bytes of one read, and at most of one write
	sweepTime = time.Second // between two looks at deadlines
	turns     = 8           // reads and writes of one connection before it is another's turn
)

// keepAlive finds out about peers that are gone, as package net does by default.
var keepAlive = sockets.KeepAlive{Idle: 15e9, Interval: 15e9, Count: 9}

// errno is an errno of a socket as an error.
func errno(e sockets.Errno) error {
	if e == 0 {
		return errors.New("the engine has ended")
	}
	return e
}

// base is what both loops have: posted calls and the sweep.
type base struct {
	mu     sync.Mutex
	posted []func()
	closed bool
	count  int
	max    int // connections
	wake   func()
	ended  chan struct{}

	sweepAt time.Time
}

func (l *base) Post(f func()) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return false
	}
	l.posted = append(l.posted, f)
	if len(l.posted) == 1 {
		l.wake()
	}
	return true
}

// runPosted runs what was posted. last: nothing more can be.
func (l *base) runPosted(last bool) {
	l.mu.Lock()
	list := l.posted
	l.posted = nil
	l.closed = l.closed || last
	l.mu.Unlock()
	for _, f := range list {
		f()
	}
}

func (l *base) Conns() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.count
}

func (l *base) add(n int) {
	l.mu.Lock()
	l.count += n
	l.mu.Unlock()
}

// patience is how long a loop may wait: without connections for ever.
func (l *base) patience(busy bool, conns int) time.Duration {
	switch {
	case busy:
		return 0
	case conns == 0:
		return -1
	}
	return max(0, time.Until(l.sweepAt))
}

// due tells, once a sweepTime, that it is time to look at deadlines.
func (l *base) due() (now time.Time, yes bool) {
	now = time.Now()
	if now.Before(l.sweepAt) {
		return now, false
	}
	l.sweepAt = now.Add(sweepTime)
	return now, true
}

// late tells whether a Stream's time is over.
func late(s Stream, now time.Time) bool {
	d := s.Deadline()
	return !d.IsZero() && !d.After(now)
}
