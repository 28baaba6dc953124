package load

import (
	"syscall"

	"github.com/HdrHistogram/hdrhistogram-go"

	"xdpd/sockets"
)

// transport is one worker's sockets. All calls come from the worker's loop, which calls event for what happens on a socket, by
// edges as epoll(7) has them, and tick no later than at deadline.
type transport interface {
	// clock is the time in ns.
	clock() int64
	// dial opens a socket to the target, whose events have the key. A TCP socket is connected when it is ready for Out; one
	// for UDP at once.
	dial(key uint64) (sock uint64, err syscall.Errno)
	// fault takes a socket's pending error.
	fault(sock uint64) syscall.Errno
	read(sock uint64, b []byte) (int, syscall.Errno)
	write(sock uint64, b []byte) (int, syscall.Errno)
	// again makes what the socket is ready for now an event.
	again(sock, key uint64)
	// shutdown sends FIN.
	shutdown(sock uint64)
	// close closes the socket; reset: by RST, so that nothing is left of the connection.
	close(sock uint64, reset bool)
}

// work is what a kind of load does on a connection.
type work interface {
	// room tells whether c can take another request.
	room(c *conn) bool
	// opened: c is connected.
	opened(w *worker, c *conn)
	// push sends what requests were begun, or goes on doing so.
	push(w *worker, c *conn)
	// in reads. r has more than In if the peer, or the connection, ended.
	in(w *worker, c *conn, r sockets.Ready)
	// expire fails what has waited since before.
	expire(w *worker, c *conn, before int64)
	// drain ends what does not end by itself.
	drain(w *worker, c *conn)
}

// phase is how far a worker is.
type phase uint8

const (
	opening  phase = iota // connects
	running               // begins requests
	draining              // waits for those under way
	closing               // closes connections
)

type connState uint8

const (
	shut connState = iota
	dialing
	open
	ending // our direction has ended
)

// conn is a connection's place; connections come and go in it.
type conn struct {
	sock             uint64
	sent, rcvd       uint64 // bytes
	issued, answered uint64 // requests
	at               int64  // when something last went on: dialled, sent, answered
	id, gen          uint32
	state            connState
	blocked          bool // push found no room
	tried            bool // to connect
}

func (c *conn) key() uint64 { return uint64(c.gen)<<32 | uint64(c.id) }

// Limits of a worker.
const (
	maxDialing  = 256  // handshakes under way, where they are not what is measured
	closeBatch  = 512  // connections closed in a tick
	maxTick     = 10e6 // ns between two looks at what takes too long
	closingTick = 1e6
	maxLatency  = int64(3600e9)
)

// worker runs its share of the load.
type worker struct {
	cfg    *Config
	t      transport
	work   work
	sched  *schedule // nil: closed loop
	newSch func(now int64) *schedule
	dials  bool // a request is a connection
	once   bool // a connection has one request, or ends the worker's interest

	phase    phase
	quota    uint64 // requests that may still begin
	primed   bool   // the way to the target is known: something came back
	conns    []conn
	starts   []int64 // of requests: Depth for each connection
	buf      [pieceSize]byte
	idle     ring // open loop: take a request when one is due
	todo     ring // wait to be dialled
	failed   ring // go on at the next tick
	now      int64
	nextTick int64
	looked   int // conns that sweep, or close, has looked at

	dialing, sockets int
	tried            int
	inflight         uint64
	lastAnswer       int64
	stats            Stats
	hist, live       *hdrhistogram.Histogram
	notify           chan<- struct{}
	told             bool
}

// newWorker is number i of several. make gives its work.
func newWorker(cfg *Config, i, workers int, notify chan<- struct{}) *worker {
	n := int(share(uint64(cfg.Connections), i, workers))
	w := &worker{
		cfg: cfg, dials: cfg.dials(), once: cfg.Kind == Hold || cfg.Kind == Bulk, notify: notify,
		conns: make([]conn, n), starts: make([]int64, n*cfg.Depth), idle: newRing(n), todo: newRing(n), failed: newRing(n),
		hist: newHistogram(), live: newHistogram(), primed: cfg.Kind != UDP,
	}
	if cfg.Rate > 0 {
		w.newSch = func(now int64) *schedule { return newSchedule(cfg, now, i, workers) }
	}
	w.work = newWork(cfg, w)
	for id := range w.conns {
		w.conns[id].id = uint32(id)
	}
	return w
}

func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, maxLatency, 3) }

func newWork(cfg *Config, w *worker) work {
	switch cfg.Kind {
	case Connect:
		return newConnect(cfg)
	case Bulk:
		return newBulk(cfg)
	case Hold:
		return hold{}
	case HTTP:
		return newGets(cfg, len(w.conns))
	case UDP:
		return newDatagrams(cfg, len(w.conns))
	}
	return newRequests(cfg)
}

// event is told what happened on a socket.
func (w *worker) event(key uint64, r sockets.Ready) {
	c := &w.conns[uint32(key)]
	if c.gen != uint32(key>>32) || c.state == shut {
		return // of a connection that is no more
	}
	w.now = w.t.clock()
	gen := c.gen
	if c.state == dialing {
		w.handshake(c, r)
	}
	if c.gen == gen && c.state != dialing && c.blocked && r&sockets.Out != 0 {
		c.blocked = false
		w.work.push(w, c)
	}
	if c.gen == gen && c.state != dialing && r&(sockets.In|sockets.RdHup|sockets.Hup|sockets.Err) != 0 {
		w.work.in(w, c, r)
	}
	w.pump()
}

func (w *worker) handshake(c *conn, r sockets.Ready) {
	switch {
	case r&(sockets.Err|sockets.Hup) != 0:
		f := Refused
		if err := w.t.fault(c.sock); err != 0 {
			f = faultOf(err)
		}
		w.lost(c, f)
	case r&sockets.Out != 0:
		w.dialing--
		w.opened(c)
	}
}

func (w *worker) opened(c *conn) {
	c.state, c.at = open, w.now
	w.stats.Opened++
	w.stats.Open++
	w.try(c)
	w.work.opened(w, c)
}

// try notes that a connection is there, or could not be.
func (w *worker) try(c *conn) {
	if !c.tried {
		c.tried = true
		w.tried++
	}
}

// mayBegin tells whether another request may begin.
func (w *worker) mayBegin() bool {
	return w.phase == running && w.quota > 0 && (w.primed || w.inflight == 0)
}

// begin counts a request of c that was to begin at start.
func (w *worker) begin(c *conn, start int64) {
	if c.issued == c.answered {
		c.at = w.now
	}
	w.starts[uint64(c.id)*uint64(w.cfg.Depth)+c.issued%uint64(w.cfg.Depth)] = start
	c.issued++
	w.count()
}

func (w *worker) count() {
	w.stats.Requests++
	w.inflight++
	w.quota--
}

// answer counts the response to the oldest request of c.
func (w *worker) answer(c *conn) {
	w.record(w.starts[uint64(c.id)*uint64(w.cfg.Depth)+c.answered%uint64(w.cfg.Depth)])
	c.answered++
	c.at = w.now
	w.respond()
}

func (w *worker) respond() {
	w.inflight--
	w.stats.Responses++
	w.lastAnswer = w.now
}

func (w *worker) record(start int64) {
	d := min(max(w.now-start, 1), maxLatency)
	_ = w.hist.RecordValue(d) // within its limits
	_ = w.live.RecordValue(d)
}

// fail counts n requests of c that failed.
func (w *worker) fail(f Fault, n uint64) {
	w.stats.Errors[f] += n
	w.inflight -= n
}

// free offers c to the next request.
func (w *worker) free(c *conn) {
	switch {
	case w.phase > running:
	case w.sched != nil:
		w.idle.push(c.id)
	case w.dials:
		w.todo.push(c.id)
	default:
		began := false
		for w.mayBegin() && w.work.room(c) {
			w.begin(c, w.now)
			began = true
		}
		if began {
			w.work.push(w, c)
		}
	}
}

// pump begins requests that are due, and dials.
func (w *worker) pump() {
	if w.sched != nil && w.phase == running && w.quota > 0 {
		w.feed()
	}
	for w.todo.n > 0 && w.mayDial() {
		c := &w.conns[w.todo.pop()]
		switch {
		case c.state != shut || !w.dials && w.phase > running:
			continue
		case w.dials && !w.mayBegin():
			continue
		case w.dials:
			w.begin(c, w.now)
		}
		w.dial(c)
	}
	if w.inflight == 0 || w.phase != running {
		w.tell()
	}
}

// mayDial lets one handshake go first, and find the way, and then bounds them where they are not what is measured.
func (w *worker) mayDial() bool {
	switch {
	case w.cfg.Kind == UDP:
		return true
	case w.tried == 0:
		return w.dialing == 0
	}
	return w.dialing < maxDialing || w.cfg.Kind == Connect
}

// feed gives the requests that are due to connections that take them.
func (w *worker) feed() {
	w.sched.advance(w.now)
	for w.sched.backlog() > 0 && w.idle.n > 0 && w.mayBegin() && (!w.dials || w.mayDial()) {
		c := &w.conns[w.idle.pop()]
		if !w.work.room(c) {
			continue
		}
		w.begin(c, w.sched.take())
		if w.dials {
			w.dial(c)
			continue
		}
		w.work.push(w, c)
		if w.work.room(c) {
			w.idle.push(c.id)
		}
	}
}

func (w *worker) dial(c *conn) {
	c.at = w.now
	w.stats.Dialled++
	sock, err := w.t.dial(c.key())
	if err != 0 {
		w.lost(c, faultOf(err))
		return
	}
	c.sock, c.state = sock, dialing
	w.sockets++
	if w.cfg.Kind == UDP {
		w.opened(c)
		return
	}
	w.dialing++
}

// drop closes the socket of c, which may have none.
func (w *worker) drop(c *conn, reset bool) {
	switch c.state {
	case shut:
	case dialing:
		w.dialing--
	default:
		w.stats.Open--
	}
	if c.state != shut {
		w.t.close(c.sock, reset)
		w.sockets--
	}
	c.gen++
	c.state, c.blocked = shut, false
	c.issued, c.answered, c.sent, c.rcvd = 0, 0, 0, 0
}

// lost ends a connection, or an attempt, by a fault, and with it the requests under way on it.
func (w *worker) lost(c *conn, f Fault) {
	switch n := c.issued - c.answered; {
	case n > 0:
		w.fail(f, n)
	case c.state == open && (f == Closed || f == Reset):
		w.stats.Lost++ // as a server may do with one that is idle
	default:
		w.stats.ConnErrors[f]++
	}
	w.drop(c, true)
	w.try(c)
	if !w.once {
		w.failed.push(c.id)
	}
}

// read reads what there is for c, at most a buffer of it, and nothing when the peer has ended. more false: there is no more for
// now, or the connection is lost.
func (w *worker) read(c *conn) (b []byte, more bool) {
	n, err := w.t.read(c.sock, w.buf[:])
	if err != 0 {
		if err != again {
			w.lost(c, faultOf(err))
		}
		return nil, false
	}
	w.stats.ReceivedBytes += uint64(n)
	return w.buf[:n], true
}

// ended: the peer has ended the connection, before its time.
func (w *worker) ended(c *conn) { w.lost(c, Closed) }

// tell wakes who waits for the worker's phase to end, once.
func (w *worker) tell() {
	if w.told || !w.settled() {
		return
	}
	w.told = true
	select {
	case w.notify <- struct{}{}:
	default: // it is awake
	}
}

// settled tells whether the phase has ended by itself.
func (w *worker) settled() bool {
	switch w.phase {
	case opening:
		return w.dials || w.tried == len(w.conns)
	case running:
		return w.inflight == 0 && (w.quota == 0 || w.once && w.tried == len(w.conns))
	case draining:
		return w.inflight == 0
	}
	return w.sockets == 0
}
