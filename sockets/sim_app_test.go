package sockets

import (
	"bytes"
	"fmt"

	"xdpd/umem"
)

// Ports of the worlds: where the listeners are, where nobody is, and those of connections that choose their own.
const (
	simPort   = 80
	simNobody = 81
	simFixed  = 5000
)

// simConn is one connection, or the attempt at one. side[0] dials; side[1] accepts, or dials as well.
type simConn struct {
	w      *simWorld
	id     int
	key    simKey
	iss    uint32
	side   [2]*simSide
	excuse string   // why it may fail; the first reason
	moved  int64    // when a byte or a FIN last reached a program
	gone   [2]int64 // since when a side does not know that the other one does not exist
}

// simProgram is what one side does with the connection.
type simProgram struct {
	total               int64 // bytes to write
	chunk, readChunk    int
	writeGap, readGap   int64 // between calls; 0: as fast as it goes
	stallAt, stallNS    int64 // after so many bytes the reader does nothing for a while
	readFirst           bool  // writes only after the peer's FIN
	holdFIN             int64 // between the last byte and the FIN
	closeEarly          bool  // closes after writing, whatever the peer still says
	abortAt, readShutAt int64 // after so many bytes read and written; -1: never
	neverRead           bool
	lend, take          bool
	nagle               bool
	keep                KeepAlive
	userNS              int64
	congestion          string
}

// calm makes the program do what it has to do without delay.
func (p *simProgram) calm() {
	p.writeGap, p.readGap, p.stallAt, p.holdFIN, p.neverRead = 0, 0, -1, 0, false
}

// simSide is a program at one end of a connection.
type simSide struct {
	c         *simConn
	n         *simNode
	id        int // which end
	p         simProgram
	h         Handle
	began     int64
	open      bool // we have a handle
	over      bool // we had one
	connected bool
	sent, got int64
	calls     int
	life      int64
	goneAt    int64 // when it gave its handle back
	shut      bool  // we sent FIN
	eof       bool
	deaf      bool // shut for reading
	noRead    bool // waits for In
	noWrite   bool // waits for Out
	readAt    int64
	writeAt   int64
	err       Errno
	lent      umem.Frame // filled and not sent
	lentN     int
}

// simLent is a frame of received data that the program looks at for a while.
type simLent struct {
	f    umem.Frame
	b    []byte
	want []byte
	at   int64
}

func newSimConn(w *simWorld) {
	c := &simConn{w: w, id: len(w.conns)}
	w.conns = append(w.conns, c)
	rng := w.rng
	if w.wrong {
		c.excuse = "lies"
	}
	from := rng.IntN(2)
	if c.id == 0 && w.p.wrap {
		from = 0
	}
	a, b := w.node[from], w.node[1-from]
	for i, n := range []*simNode{a, b} {
		c.side[i] = &simSide{c: c, n: n, id: i, p: w.program(), lent: umem.None}
	}
	if c.side[0].p.readFirst { // somebody must begin
		c.side[1].p.readFirst = false
	}
	at := w.now + rng.Int64N(w.p.spanNS)
	kind := rng.IntN(16)
	switch {
	case c.id == 0 && w.p.wrap:
		w.totals.Wrapped++
		w.at(w.now, func() { c.side[0].dial(simFixed, simPort) })
	case kind == 0:
		w.totals.Together++
		w.at(at, func() { c.side[0].dial(uint16(6000+c.id), uint16(7000+c.id)) })
		w.at(at+rng.Int64N(1+w.p.path[0].delay), func() { c.side[1].dial(uint16(7000+c.id), uint16(6000+c.id)) })
		if !w.p.clean {
			c.excuse = "simultaneous open that was none"
		}
	case kind == 2: // a port that was used before: what is in TIME-WAIT may stand in the way
		w.at(at, func() { c.side[0].dial(simFixed+1, simPort) })
	case kind == 1:
		c.excuse = "nobody listens"
		w.at(at, func() { c.side[0].dial(0, simNobody) })
	default:
		w.at(at, func() { c.side[0].dial(0, simPort) })
	}
}

// program makes up what a side does.
func (w *simWorld) program() simProgram {
	rng := w.rng
	p := simProgram{
		total: simLog(rng, 1, 8000) - 1, chunk: int(simLog(rng, 1, 20000)), readChunk: int(simLog(rng, 1, 40000)),
		stallAt: -1, abortAt: -1, readShutAt: -1, lend: rng.IntN(4) == 0, take: rng.IntN(4) == 0,
		nagle: rng.IntN(4) == 0,
	}
	if rng.IntN(4) == 0 {
		p.total = simLog(rng, 8000, 100<<10)
	}
	if w.p.crowd {
		p.total, p.chunk = simLog(rng, 8000, 60<<10), 8000
	}
	if w.p.big {
		p.total = simLog(rng, 1<<10, 1<<20)
	}
	p.chunk = max(p.chunk, int(p.total/100)) // the number of steps has an end
	p.readChunk = max(p.readChunk, int(p.total/100))
	if rng.IntN(4) == 0 {
		p.writeGap = simLog(rng, 1000, 4*second)
	}
	if rng.IntN(4) == 0 {
		p.readGap = simLog(rng, 1000, second)
	}
	if rng.IntN(4) == 0 {
		p.stallAt, p.stallNS = rng.Int64N(1+p.total), simLog(rng, ms, 600*second)
	}
	if w.p.crowd && rng.IntN(2) == 0 {
		p.stallAt, p.stallNS, p.readGap = rng.Int64N(1000), simLog(rng, second, 100*second), second
	}
	p.readFirst = rng.IntN(8) == 0
	if rng.IntN(8) == 0 {
		p.holdFIN = simLog(rng, ms, 100*second)
	}
	if w.p.rough {
		p.closeEarly = rng.IntN(4) == 0
		if rng.IntN(8) == 0 {
			p.abortAt = rng.Int64N(2 + 2*p.total)
		}
		if rng.IntN(8) == 0 {
			p.readShutAt = rng.Int64N(2 + 2*p.total)
		}
		p.neverRead = rng.IntN(16) == 0
	}
	if rng.IntN(4) == 0 && !w.p.clean {
		p.keep = KeepAlive{Idle: simLog(rng, 10*ms, 100*second), Interval: simLog(rng, 10*ms, 10*second), Count: 1 + rng.IntN(9)}
	}
	if rng.IntN(8) == 0 && !w.p.clean {
		p.userNS = simLog(rng, second, 1000*second)
	}
	if rng.IntN(4) == 0 {
		p.congestion = []string{"reno", "cubic"}[rng.IntN(2)]
	}
	return p
}

// forgive notes why the connection may fail.
func (c *simConn) forgive(why string) {
	if c.excuse == "" {
		c.excuse = why
	}
}

func (c *simConn) done() bool {
	a, b := c.side[0], c.side[1]
	return a.over && !a.open && !b.open && (b.over || a.err != 0 || c.excuse != "")
}

// listen opens the node's listener, which in some worlds comes and goes.
func (n *simNode) listen() {
	if n.lis != 0 {
		return
	}
	var err Errno
	if n.lis, err = n.h.TCPListen(0, simPort); err != 0 {
		n.w.fail("TCPListen: %v", err)
	}
	n.charge(n.lis, 1)
	if n.p.listenGap && !n.w.calm {
		n.w.at(n.w.now+simLog(n.w.rng, ms, n.w.p.busyNS), func() {
			if n.w.calm {
				return
			}
			n.unlisten()
			n.w.at(n.w.now+simLog(n.w.rng, ms, n.w.p.busyNS), n.listen)
		})
	}
}

// unlisten closes the listener with all that waits in it.
func (n *simNode) unlisten() {
	if n.lis == 0 {
		return
	}
	for _, c := range n.w.conns {
		if s := c.side[1]; s.n == n && !s.over {
			c.forgive("the listener was closed")
		}
	}
	if err := n.h.Close(n.lis, n.w.now); err != 0 {
		n.w.fail("Close of a listener: %v", err)
	}
	n.lis = 0
	n.wake()
}

// accept takes what is there, or, if the program is slow, one now and one later.
func (n *simNode) accept() {
	for n.lis != 0 {
		if n.w.now < n.acceptAt && !n.w.calm {
			return
		}
		h, err := n.h.TCPAccept(n.lis)
		if err == EAGAIN {
			return
		}
		if err != 0 {
			n.w.fail("TCPAccept: %v", err)
		}
		n.w.totals.Accepted++
		if n.p.acceptGap > 0 && !n.w.calm {
			n.acceptAt = n.w.now + n.w.rng.Int64N(n.p.acceptGap)
			n.w.at(n.acceptAt, n.accept)
		}
		local, remote := n.h.TCPAddr(h)
		var k simKey
		k[n.id], k[1-n.id] = local.Port(), remote.Port()
		irs := simIRS(n.h.tcp.at(h.index()))
		var s *simSide
		for _, c := range n.w.conns {
			if c.key == k && (c.iss == irs || n.w.wrong) && c.side[0].n != n {
				s = c.side[1]
			}
		}
		// With a cookie of ours any late duplicate opens its connection again, as long as the cookie lives.
		again := s != nil && s.over && n.h.counters.Stats[TCPCookies] > 0
		if again || n.w.wrong && (s == nil || s.over) {
			n.must("Close", n.h.Close(h, n.w.now))
			continue
		}
		if s == nil || s.over {
			n.w.fail("node %d accepted %v, which nobody dialed, or a second time", n.id, remote)
		}
		s.connected = true
		s.begin(h)
	}
}

func (n *simNode) must(what string, err Errno) {
	if err != 0 {
		n.w.fail("node %d: %s: %v", n.id, what, err)
	}
}

func (s *simSide) begin(h Handle) {
	n, w := s.n, s.c.w
	s.h, s.open, s.over, s.began = h, true, true, w.now
	n.socks[h] = s
	n.sides = append(n.sides, s)
	if s.p.nagle {
		s.must("TCPSetNoDelay", n.h.TCPSetNoDelay(h, false, w.now))
	}
	if s.p.keep.Idle != 0 {
		s.must("TCPSetKeepAlive", n.h.TCPSetKeepAlive(h, s.p.keep, w.now))
	}
	if s.p.userNS != 0 {
		s.must("TCPSetUserTimeout", n.h.TCPSetUserTimeout(h, s.p.userNS))
	}
	if s.p.congestion != "" {
		s.must("TCPSetCongestion", n.h.TCPSetCongestion(h, s.p.congestion))
	}
	if w.calm {
		s.p.calm()
	}
	n.wake()
}

func (s *simSide) must(what string, err Errno) {
	if err != 0 {
		s.fail("%s: %v", what, err)
	}
}

func (s *simSide) fail(format string, args ...any) {
	s.c.w.fail("connection %d side %d on node %d (%v; wrote %d of %d, read %d; excuse %q): %s", s.c.id, s.id, s.n.id,
		s.c.key, s.sent, s.p.total, s.got, s.c.excuse, fmt.Sprintf(format, args...))
}

func (s *simSide) dial(lport, rport uint16) {
	n, w := s.n, s.c.w
	n.now = w.now
	w.totals.Dials++
	h, err := n.h.TCPDial(0, lport, n.peer().ip, rport, w.now)
	if err != 0 {
		// No room, or the port is taken by what stays of a connection.
		if err != EADDRINUSE && (err != EAGAIN || w.p.clean) || lport == 0 && err == EADDRINUSE {
			s.fail("TCPDial: %v", err)
		}
		s.c.forgive("could not be dialed")
		s.err, s.over = err, true
		return
	}
	n.charge(h, s.c.id%2)
	local, _ := n.h.TCPAddr(h)
	s.c.key[n.id], s.c.key[1-n.id] = local.Port(), rport
	if s.id == 0 {
		s.c.iss = n.h.tcp.at(h.index()).sndUna
	}
	s.begin(h)
	n.wake()
}

// programs runs what has something to do.
func (n *simNode) programs() {
	n.events = n.h.TakeEvents(n.events[:0])
	for _, e := range n.events {
		if e.Sock == n.lis {
			n.accept()
			continue
		}
		s := n.socks[e.Sock]
		if s == nil {
			n.w.fail("node %d has an event %+v for nobody", n.id, e)
		}
		ready := n.h.Ready(e.Sock)
		if ready&(In|RdHup|Hup|Err) != 0 {
			s.noRead = false
		}
		if ready&(Out|Hup|Err) != 0 {
			s.noWrite = false
		}
	}
	n.give()
	for i := 0; i < len(n.sides); i++ {
		if s := n.sides[i]; s.open {
			s.run()
		}
	}
}

// give returns lent frames whose time is over; what is in them must still be the same.
func (n *simNode) give() {
	keep := n.lent[:0]
	for _, l := range n.lent {
		if l.at > n.w.now && !n.w.calm {
			keep = append(keep, l)
			continue
		}
		if !bytes.Equal(l.b, l.want) {
			n.w.fail("node %d: a lent frame was changed", n.id)
		}
		n.h.Give(l.f)
	}
	n.lent = keep
}

func (n *simNode) giveAll() {
	n.w.calm = true
	n.give()
}

// lentFrames is how many frames the programs of the node have.
func (n *simNode) lentFrames() int {
	sum := len(n.lent)
	for _, s := range n.sides {
		if s.lent != umem.None {
			sum++
		}
	}
	return sum
}

// hurry lets the side go on at once.
func (s *simSide) hurry() { s.readAt, s.writeAt = 0, 0 }

// later has the side run again after some time.
func (s *simSide) later(gap int64) int64 {
	at := s.c.w.now + gap
	s.c.w.at(at, s.n.wake)
	return at
}

func (s *simSide) run() {
	if !s.connected {
		switch r := s.n.h.Ready(s.h); {
		case r&(Err|Hup) != 0:
			s.failed(s.n.h.TCPError(s.h))
			return
		case !s.n.h.TCPConnected(s.h):
			return
		}
		s.connected = true
	}
	for s.open && !s.noRead && s.c.w.now >= s.readAt && s.mayRead() && s.read() {
	}
	for s.open && !s.noWrite && s.c.w.now >= s.writeAt && s.mayWrite() && s.write() {
	}
	if s.open {
		s.end()
	}
}

func (s *simSide) mayRead() bool { return !s.eof && !s.deaf && !s.p.neverRead }

func (s *simSide) mayWrite() bool {
	return !s.shut && s.sent < s.p.total && (!s.p.readFirst || s.eof || s.deaf)
}

// read does one call. false: not again now.
func (s *simSide) read() bool {
	n, w := s.n, s.c.w
	s.calls++
	var b []byte
	var err Errno
	frame := umem.None
	if s.p.take {
		frame, b, err = n.h.TCPTake(s.h, w.now)
	} else {
		b = make([]byte, 1+w.rng.IntN(s.p.readChunk))
		var k int
		k, err = n.h.TCPRead(s.h, b, w.now)
		b = b[:k]
	}
	switch {
	case err == EAGAIN:
		s.noRead = true
		return false
	case err != 0:
		s.failed(err)
		return false
	case len(b) == 0:
		s.eof = true
		s.c.moved = w.now
		if p := s.peer(); !w.wrong && p.over && (!p.shut || s.got != p.sent) {
			s.fail("the end of the stream after %d bytes; the peer wrote %d, and shut down: %v", s.got, p.sent, p.shut)
		}
		return false
	}
	want := s.c.key.bytes(n.peer().id, s.got, len(b))
	if !bytes.Equal(b, want) && !w.wrong {
		s.fail("%d bytes at %d are wrong", len(b), s.got)
	}
	if frame != umem.None {
		w.totals.Taken++
		if w.wrong {
			want = bytes.Clone(b)
		}
		n.lent = append(n.lent, simLent{frame, b, want, s.later(w.rng.Int64N(1 + s.p.readGap + ms))})
	}
	s.got += int64(len(b))
	s.c.moved = w.now
	w.totals.Bytes += uint64(len(b))
	if p := s.peer(); !w.wrong && p.over && s.got > p.sent {
		s.fail("read %d bytes, of which only %d were written", s.got, p.sent)
	}
	switch {
	case s.p.stallAt >= 0 && s.got >= s.p.stallAt:
		s.p.stallAt = -1
		s.readAt = s.later(s.p.stallNS)
	case s.p.readGap > 0:
		s.readAt = s.later(w.rng.Int64N(s.p.readGap))
	}
	return true
}

// write does one call. false: not again now.
func (s *simSide) write() bool {
	n, w := s.n, s.c.w
	s.calls++
	k := int(min(int64(1+w.rng.IntN(s.p.chunk)), s.p.total-s.sent))
	var err Errno
	if s.p.lend {
		k, err = s.writeLent(k)
	} else {
		k, err = n.h.TCPWrite(s.h, s.c.key.bytes(n.id, s.sent, k), w.now)
	}
	switch {
	case err == EAGAIN:
		s.noWrite = true
		return false
	case err != 0:
		s.failed(err)
		return false
	}
	s.sent += int64(k)
	if s.p.writeGap > 0 {
		s.writeAt = s.later(w.rng.Int64N(s.p.writeGap))
	}
	return true
}

// writeLent fills a frame of the Host's, and sends it now or the next time.
func (s *simSide) writeLent(k int) (int, Errno) {
	n, w := s.n, s.c.w
	if s.lent == umem.None {
		f, err := n.h.Lend(n.h.connAccount(s.h.index()))
		if err != 0 { // nobody tells of frames that can be lent, but of room to write
			return n.h.TCPWrite(s.h, s.c.key.bytes(n.id, s.sent, k), w.now)
		}
		b := n.pool.Data(f)
		s.lent, s.lentN = f, copy(b, s.c.key.bytes(n.id, s.sent, min(k, len(b))))
		if w.rng.IntN(4) == 0 {
			s.writeAt = s.later(w.rng.Int64N(1 + s.p.writeGap + ms))
			return 0, 0
		}
	}
	f, k := s.lent, s.lentN
	err := n.h.TCPSendLent(s.h, f, umem.Headroom, k, 0, w.now)
	switch err {
	case 0:
		s.lent = umem.None
		w.totals.Lent++
		return k, 0
	case EMSGSIZE: // more than a segment: as a ring does it, what is left is written
		if k, err = n.h.TCPWrite(s.h, n.pool.Data(f)[:k], w.now); err == 0 {
			s.unlend()
		}
	}
	return k, err
}

// unlend gives back a frame that was filled in vain.
func (s *simSide) unlend() {
	if s.lent != umem.None {
		s.n.h.Give(s.lent)
		s.lent = umem.None
	}
}

func (s *simSide) peer() *simSide { return s.c.side[1-s.id] }

// end does what is due when data was read or written.
func (s *simSide) end() {
	n, w := s.n, s.c.w
	switch {
	case s.p.abortAt >= 0 && s.sent+s.got >= s.p.abortAt:
		s.c.forgive("aborted")
		s.unlend()
		s.must("TCPAbort", n.h.TCPAbort(s.h, w.now))
		s.gone()
		return
	case s.p.readShutAt >= 0 && s.sent+s.got >= s.p.readShutAt && !s.deaf && !s.eof:
		s.deaf = true
		if err := n.h.TCPShutdownRead(s.h, w.now); err == ENOTCONN {
			s.deaf = false
			s.wakeUp()
			return
		} else {
			s.must("TCPShutdownRead", err)
		}
	}
	if s.sent < s.p.total || s.lent != umem.None {
		return
	}
	if s.p.holdFIN > 0 {
		s.writeAt = s.later(s.p.holdFIN)
		s.p.holdFIN = 0
	}
	if w.now < s.writeAt {
		return
	}
	if s.eof || s.deaf || s.p.closeEarly {
		s.close()
		return
	}
	if !s.shut {
		w.totals.HalfClosed++
		s.shut = true
		if err := n.h.TCPShutdown(s.h, w.now); err == ENOTCONN {
			s.shut = false
			s.wakeUp()
		} else {
			s.must("TCPShutdown", err)
		}
	}
}

// wakeUp has a program whose connection is over read on until it hears of it.
func (s *simSide) wakeUp() {
	s.noRead = false
	s.p.neverRead = false
	if s.read() {
		s.later(0)
	}
}

// close gives the handle back. Who does not wait for the peer's end may reset it.
func (s *simSide) close() {
	if !s.eof && (s.peer().p.total > 0 || s.peer().over && s.peer().err != 0) {
		s.c.forgive("closed before the peer had said all")
	}
	s.unlend()
	s.shut = true
	s.must("Close", s.n.h.Close(s.h, s.c.w.now))
	s.gone()
}

// gone forgets the handle.
func (s *simSide) gone() {
	s.open = false
	s.life, s.goneAt = s.c.w.now-s.began, s.c.w.now
	delete(s.n.socks, s.h)
	s.n.wake()
}

// failed is the end of a connection that no program of this side ended.
func (s *simSide) failed(err Errno) {
	s.err = err
	s.judge(err)
	if s.lent != umem.None {
		s.unlend()
	}
	s.must("Close", s.n.h.Close(s.h, s.c.w.now))
	s.gone()
	s.c.forgive("failed on the other side: " + err.Error())
}

// watch is called every few seconds of calm times.
func (c *simConn) watch() {
	w := c.w
	if c.done() {
		return
	}
	c.moved = max(c.moved, w.calmAt)
	// A client who only waits never learns that the other side gave up its handshake, or, with a cookie, had no room.
	if s := c.side[1]; !s.over && !c.known(s.n) {
		d := s.n.h.Counters()
		lost := w.flow(c.key).lost
		if d.Drops[TCPBacklogFull] > 0 || d.Stats[TCPCookies] > 0 && lost > 0 || lost >= synRetries {
			c.forgive("the last ACK of the handshake never came")
		}
	}
	if a, b := c.side[0], c.side[1]; a.over && !a.open && !b.over && !c.known(a.n) && !c.known(b.n) && a.gaveUp() == "" {
		c.forgive("given up before the handshake was done on the other side")
	}
	// Who reads first and never probes does not hear that the other side gave up the handshake, whose last ACK was lost.
	if a, b := c.side[0], c.side[1]; c.excuse == "" && a.open && a.sent == 0 && !b.open && !b.over && !c.known(b.n) &&
		w.now-c.moved > 2*simPatience {
		c.forgive("given up before the last ACK of the handshake came")
	}
	long := w.now - c.moved
	for i, s := range c.side {
		p := c.side[1-i]
		if !s.open {
			continue
		}
		if c.excuse == "" && p.over && !p.open && !s.eof && !c.known(p.n) {
			p.judge(ETIMEDOUT) // the Host gave up what it had to send without a program to tell
			c.forgive("given up")
		}
		if c.excuse == "" && p.over && !s.eof && (p.sent > s.got || p.shut) && long > simPatience && !s.deaf {
			s.fail("nothing comes for %d s, and the peer wrote %d bytes, shut down: %v\n%+v\n%+v", long/second, p.sent, p.shut,
				w.node[0].h.TCPSockets(), w.node[1].h.TCPSockets())
		}
		c.watchGone(i, s)
		patience := 2 * simPatience
		if w.wrong {
			patience = simPatience
		}
		// An idle connection whose peer is gone notices nothing.
		if c.excuse != "" && long > patience && (!p.open || w.wrong || w.now-w.calmAt > 24*3600*second) {
			s.close()
		}
	}
}

// known reports whether the Host of a node has a record of the connection.
func (c *simConn) known(n *simNode) bool {
	kind, _ := n.record(c.key)
	return kind != 0
}

// simIRS is the number of the peer's SYN.
func simIRS(c *tcb) uint32 {
	irs := c.rcvNxt - uint32(c.received) - 1
	if c.rcvFIN {
		irs--
	}
	return irs
}

// watchGone fails when a side asks something of a peer that does not exist any more, and is not told.
func (c *simConn) watchGone(i int, s *simSide) {
	w, n := c.w, s.n
	t := n.h.tcp.get(s.h)
	there := c.known(n.peer())
	asks := t != nil && t.state != tcpClosed && (t.sndBytes > 0 || s.p.keep.Idle > 0)
	if there || !asks || w.wrong {
		c.gone[i] = 0
		return
	}
	if c.gone[i] == 0 {
		c.gone[i] = w.now
	}
	if long := w.now - c.gone[i]; long > simPatience+s.p.keep.Idle+int64(s.p.keep.Count)*s.p.keep.Interval {
		s.fail("the peer is gone for %d s and it was not told", long/second)
	}
}

// judge looks at a connection when all is over.
func (c *simConn) judge() {
	a, b := c.side[0], c.side[1]
	for _, s := range c.side {
		if s.open {
			s.fail("still open")
		}
	}
	if c.excuse != "" {
		c.w.totals.Excused++
		return
	}
	c.w.totals.Finished++
	for _, s := range []*simSide{a, b} {
		p := s.peer()
		if !s.over || s.err != 0 || s.sent != s.p.total || !s.deaf && !s.p.closeEarly && (s.got != p.sent || !s.eof) {
			s.fail("not finished: err %v, end seen %v, the peer wrote %d", s.err, s.eof, p.sent)
		}
	}
}
