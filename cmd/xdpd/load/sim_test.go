package load

import (
	"container/heap"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"xdpd/sockets"
)

// world is a simulated server behind a transport, with a clock that stands still between events.
type world struct {
	t        *testing.T
	now      int64
	w        *worker
	socks    map[uint64]*simSock
	last     uint64
	happened events
	n        int
	delay    int64 // from a request to its answer, and of a handshake
	// stall: what would be answered in between is answered at its end.
	stallFrom, stallTo int64
	// dialled decides about a connection; nil: all are good.
	dialled func() syscall.Errno
	// answer makes of what was written at a position what comes back, and a fault at its end; nil: an echo.
	answer   func(s *simSock, b []byte) ([]byte, simEnd)
	datagram bool
	limit    int // bytes a write takes; 0: all
}

type simEnd int

const (
	goesOn simEnd = iota
	resets
	ends
	silent
)

type simSock struct {
	key  uint64
	open bool
	in   []byte
	msgs [][]byte
	err  syscall.Errno
	eof  bool
	fin  bool
	at   int64 // of the last answer: answers keep their order
	got  uint64
}

type happening struct {
	at int64
	n  int
	f  func()
}

type events []happening

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].n < e[j].n
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(happening)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

var simTarget = netip.MustParseAddrPort("10.0.0.2:7")

// newWorld is a world with one worker in it, which has connected.
func newWorld(t *testing.T, cfg Config) *world {
	cfg.Target = simTarget
	if err := cfg.Check(); err != nil {
		t.Fatal(err)
	}
	x := &world{t: t, now: 1e9, socks: map[uint64]*simSock{}, delay: 100e3, datagram: cfg.Kind == UDP}
	x.w = newWorker(&cfg, 0, 1, make(chan struct{}, 1))
	x.w.t = x
	return x
}

func (x *world) after(d int64, f func()) {
	x.n++
	heap.Push(&x.happened, happening{x.now + d, x.n, f})
}

// until runs the world until done, or until a time.
func (x *world) until(end int64, done func() bool) {
	for !done() {
		next := x.w.deadline()
		event := len(x.happened) > 0 && x.happened[0].at <= next
		if event {
			next = x.happened[0].at
		}
		if next > end {
			x.now = end
			return
		}
		x.now = max(x.now, next)
		if event {
			heap.Pop(&x.happened).(happening).f()
		} else {
			x.w.tick()
		}
	}
}

// run does all phases, with so long a measurement (or a count).
func (x *world) run(d time.Duration) *Stats {
	w := x.w
	w.start()
	if !w.dials {
		x.until(x.now+60e9, w.settled)
	}
	quota := uint64(noQuota)
	switch {
	case w.cfg.Kind == Hold:
		quota = uint64(w.cfg.Connections)
	case w.cfg.Kind != Bulk && w.cfg.Count > 0:
		quota = w.cfg.Count
	}
	w.measure(quota)
	x.until(x.now+int64(d), w.settled)
	w.drain()
	x.until(x.now+60e9, w.settled)
	w.closeAll()
	x.until(x.now+60e9, w.settled)
	if w.sockets != 0 || w.dialing != 0 || w.stats.Open != 0 {
		x.t.Errorf("at the end there are %d sockets, %d dialling, %d open", w.sockets, w.dialing, w.stats.Open)
	}
	for _, s := range x.socks {
		if s.open {
			x.t.Error("a socket was not closed")
		}
	}
	s := &w.stats
	var errors uint64
	for _, n := range s.Errors {
		errors += n
	}
	if s.Requests != s.Responses+errors+s.Unfinished {
		x.t.Errorf("%d requests, but %d responses, %d errors and %d unfinished", s.Requests, s.Responses, errors, s.Unfinished)
	}
	if s.Unfinished != 0 {
		x.t.Errorf("%d requests were not waited for", s.Unfinished)
	}
	return s
}

func (x *world) tell(s *simSock, r sockets.Ready) {
	if s.open {
		x.w.event(s.key, r)
	}
}

func (x *world) clock() int64 { return x.now }

func (x *world) dial(key uint64) (uint64, syscall.Errno) {
	err := syscall.Errno(0)
	if x.dialled != nil {
		err = x.dialled()
	}
	if err == syscall.EADDRNOTAVAIL {
		return 0, err
	}
	x.last++
	s := &simSock{key: key, open: true}
	x.socks[x.last] = s
	switch {
	case x.datagram, err == syscall.ETIMEDOUT: // nobody answers
	case err != 0:
		x.after(x.delay, func() { s.err = err; x.tell(s, sockets.Err|sockets.Hup|sockets.In|sockets.Out) })
	default:
		x.after(x.delay, func() { x.tell(s, sockets.Out) })
	}
	return x.last, 0
}

func (x *world) fault(sock uint64) syscall.Errno { return x.socks[sock].err }

func (x *world) read(sock uint64, b []byte) (int, syscall.Errno) {
	s := x.socks[sock]
	switch {
	case len(s.msgs) > 0:
		n := copy(b, s.msgs[0])
		s.msgs = s.msgs[1:]
		return n, 0
	case len(s.in) > 0:
		n := copy(b, s.in)
		s.in = s.in[n:]
		return n, 0
	case s.err != 0:
		return 0, s.err
	case s.eof:
		return 0, 0
	}
	return 0, again
}

func (x *world) write(sock uint64, b []byte) (int, syscall.Errno) {
	s := x.socks[sock]
	if x.limit > 0 && len(b) > x.limit && !x.datagram {
		b = b[:x.limit]
		if rand.IntN(2) == 0 {
			x.after(1000, func() { x.tell(s, sockets.Out) })
			return 0, again
		}
	}
	back, end := append([]byte(nil), b...), goesOn
	if x.answer != nil {
		back, end = x.answer(s, back)
	}
	s.got += uint64(len(b))
	at := max(x.now+x.delay, s.at)
	if at >= x.stallFrom && at < x.stallTo {
		at = x.stallTo
	}
	s.at = at
	x.after(at-x.now, func() { x.arrive(s, back, end) })
	return len(b), 0
}

func (x *world) arrive(s *simSock, b []byte, end simEnd) {
	r := sockets.In
	if x.datagram && end == goesOn {
		s.msgs = append(s.msgs, b)
	} else if end != silent {
		s.in = append(s.in, b...)
	}
	switch end {
	case resets:
		s.err, r = syscall.ECONNRESET, sockets.In|sockets.Err|sockets.Hup
	case ends:
		s.eof, r = true, sockets.In|sockets.RdHup
	case silent:
		return
	}
	x.tell(s, r)
}

func (x *world) again(sock, _ uint64) {
	s := x.socks[sock]
	x.after(0, func() {
		r := sockets.Out
		if len(s.in) > 0 || s.eof {
			r |= sockets.In
		}
		x.tell(s, r)
	})
}

func (x *world) shutdown(sock uint64) {
	s := x.socks[sock]
	if !s.fin {
		s.fin = true
		x.after(max(x.delay, s.at-x.now), func() { s.eof = true; x.tell(s, sockets.In|sockets.RdHup) })
	}
}

func (x *world) close(sock uint64, _ bool) {
	s := x.socks[sock]
	if !s.open {
		x.t.Error("closed twice")
	}
	s.open = false
	delete(x.socks, sock)
}
