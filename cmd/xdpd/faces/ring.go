package faces

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"xdpd"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
)

// ringLoop is a goroutine that takes completions. A connection has at most one RECV under way, into a provided buffer that
// is empty again as soon as the Stream was given what is in it, and one SEND, from a place of its own: however many peers
// do not read, none of them holds what another needs.
type ringLoop struct {
	base
	q    *reactor.Ring
	c    *reactor.RingClient
	data []byte
	give *rings.BufGiver

	submit sync.Mutex  // the SQ's producer: the goroutine, and who wakes it
	todo   []rings.SQE // did not find room in the SQ

	conns   []*ringConn // by place; nil: free
	gens    []uint32
	free    []uint32
	asked   map[uint32]func(res int32) // by number: who waits for an operation of no connection
	number  uint32
	accept  map[int32]func() Stream // by listener
	resting []int32                 // listeners whose ACCEPT ended
	runq    []*ringConn
	lent    []lent      // by number
	starved []*ringConn // found all frames lent
	over    bool
}

// ringConn is a connection.
type ringConn struct {
	l                *ringLoop
	place            uint32
	fd               int32 // -1: no socket yet
	s                Stream
	to               netip.AddrPort
	open, eof, fin   bool
	reading, writing bool // a RECV, a SEND or SHUTDOWN is under way
	queued, gone     bool

	sp      Splicer // nil: its Stream has the bytes
	unsent  int     // frames that came from it and were not taken yet
	pending int     // frames on their way to it
	bursts  int     // RECV_ZCs for what had come already
}

// The registered memory: the listeners' address, the ring of provided buffers, the buffers, a place for each connection, the
// table of lent frames.
const (
	ringBufs  = 64
	bufRingAt = 64
	bufsAt    = bufRingAt + ringBufs*rings.BufEntrySize
	placesAt  = bufsAt + ringBufs*pieceSize
)

// The user data of a request: what it is, the generation of the connection's place, the place; of a SEND_ZC the
// number of its frame.
const (
	opAsk = (1 + iota) << 56
	opAccept
	opSocket
	opConnect
	opRecv
	opSend
	opShut
	opPoll
	opClose
	opRecvZC
	opBurst
	opSendZC
	opNone
	genMask = 1<<24 - 1
)

func newRingLoop(st *xdpd.Stack, n, conns int) (*ringLoop, error) {
	stats, err := st.Stats()
	if err != nil {
		return nil, err
	}
	lends, table := min(maxLends, stats.Queues[n].Frames.Total), placesAt+conns*pieceSize
	l := &ringLoop{
		data: make([]byte, table+lends*rings.LentSize), lent: make([]lent, lends), conns: make([]*ringConn, conns), gens: make([]uint32, conns),
		asked: make(map[uint32]func(int32)), accept: make(map[int32]func() Stream),
	}
	for i := conns; i > 0; i-- {
		l.free = append(l.free, uint32(i-1))
	}
	var ok bool
	if l.give, ok = rings.NewBufGiver(l.data[bufRingAt:bufsAt]); !ok {
		panic("faces: the provided buffers' ring is not aligned")
	}
	for id := range uint16(ringBufs) {
		l.provide(id)
	}
	l.q, err = st.Ring(xdpd.RingConfig{Reactor: n, RingConfig: reactor.RingConfig{
		SQEntries: 1024, CQEntries: 4096, Requests: 5*conns + 64 + lends, Sockets: conns + 256, Data: l.data,
		Lends: lends, LendTable: uint64(table),
	}})
	if err != nil {
		return nil, err
	}
	l.c = l.q.Client()
	l.max, l.wake, l.ended = conns, l.nudge, make(chan struct{})
	l.ask(new(rings.SQE).PrepBufRing(0, bufRingAt, ringBufs), func(res int32) {
		if res < 0 {
			panic(fmt.Sprintf("faces: provided buffers: %v", sockets.Errno(-res)))
		}
	})
	go l.run()
	return l, nil
}

// provide gives a buffer to the engine.
func (l *ringLoop) provide(id uint16) {
	l.give.Add(rings.Buf{Addr: bufsAt + uint64(id)*pieceSize, Len: pieceSize, ID: id})
	l.give.Publish()
}

// nudge has the goroutine's Wait return. It must not wait for room in the SQ, which may come only when the goroutine has
// taken completions: where there is none, there are connections, and the sweep is the next occasion.
func (l *ringLoop) nudge() {
	l.submit.Lock()
	defer l.submit.Unlock()
	if s := l.c.SQE(); s != nil {
		s.PrepNop().UserData = opNone
		l.c.Submit()
	}
}

// push has an operation submitted at the end of the round.
func (l *ringLoop) push(s *rings.SQE, userData uint64) {
	s.UserData = userData
	l.todo = append(l.todo, *s)
}

// flush submits what there is room for.
func (l *ringLoop) flush() {
	l.submit.Lock()
	defer l.submit.Unlock()
	n := 0
	for ; n < len(l.todo); n++ {
		s := l.c.SQE()
		if s == nil {
			break
		}
		*s = l.todo[n]
	}
	l.todo = l.todo[:copy(l.todo, l.todo[n:])]
	l.c.Submit()
}

// ask has then called with an operation's result.
func (l *ringLoop) ask(s *rings.SQE, then func(res int32)) {
	l.number++
	l.asked[l.number] = then
	l.push(s, opAsk|uint64(l.number))
}

func (l *ringLoop) Close() {
	l.Post(func() { l.over = true })
	<-l.ended
}

func (l *ringLoop) run() {
	defer close(l.ended)
	for !l.over && l.round() {
	}
	l.runPosted(true)
	for _, c := range l.conns {
		if c != nil {
			c.abort(net.ErrClosed)
		}
	}
	// The resets are on their way when the CLOSEs are done.
	for end := time.Now().Add(sweepTime); len(l.free) < l.max && time.Now().Before(end) && l.round(); {
	}
	l.q.Close()
}

// round does what has come, and waits before if there is nothing; false: the ring is closed.
func (l *ringLoop) round() bool {
	l.flush()
	busy := len(l.runq) > 0 || len(l.todo) > 0
	if _, err := l.c.Wait(1, l.patience(busy, l.max-len(l.free))); err != nil {
		return false
	}
	var buf [64]rings.CQE
	for _, c := range buf[:l.c.Reap(buf[:])] {
		l.completed(c)
	}
	again := l.runq
	l.runq = nil
	for _, c := range again {
		c.queued = false
		c.pump()
	}
	l.runPosted(false)
	if now, yes := l.due(); yes {
		l.acceptAgain()
		for _, c := range l.conns {
			if c != nil && !c.gone && late(c.s, now) {
				c.abort(os.ErrDeadlineExceeded)
			}
		}
	}
	return true
}

// completed finds out what a completion is about.
func (l *ringLoop) completed(e rings.CQE) {
	op, at := e.UserData>>56<<56, uint32(e.UserData)
	switch op {
	case opNone:
		return
	case opAsk:
		then := l.asked[at]
		delete(l.asked, at)
		then(e.Res)
		return
	case opAccept:
		l.accepted(int32(at), e)
		return
	}
	if op == opSendZC {
		l.frameWent(e)
		return
	}
	c := l.conns[at]
	if c == nil || l.gens[at]&genMask != uint32(e.UserData>>32)&genMask {
		c = nil // of a connection that is no more
	}
	if e.Flags&rings.CQEBuffer != 0 && op != opRecv {
		l.frameCame(c, e)
	} else if e.Flags&rings.CQEBuffer != 0 {
		id := e.Buffer()
		if c != nil && !c.gone && e.Res > 0 {
			c.s.Take(l.data[bufsAt+int(id)*pieceSize:][:e.Res])
		}
		l.provide(id)
	}
	if c != nil {
		c.completed(op, e)
	}
}

// adopt gives a Stream a place, which there is.
func (l *ringLoop) adopt(s Stream) *ringConn {
	n := len(l.free) - 1
	c := &ringConn{l: l, place: l.free[n], fd: -1, s: s}
	l.free = l.free[:n]
	l.conns[c.place] = c
	l.add(1)
	return c
}

func (l *ringLoop) Dial(to netip.AddrPort, s Stream) Conn {
	if len(l.free) == 0 {
		l.Post(func() { s.Closed(sockets.EMFILE) })
		return &ringConn{l: l, s: s, gone: true}
	}
	c := l.adopt(s)
	c.to = to
	c.push(new(rings.SQE).PrepSocket(rings.SockStream), opSocket)
	return c
}

// push submits an operation of the connection.
func (c *ringConn) push(s *rings.SQE, op uint64) {
	c.l.push(s, op|uint64(c.l.gens[c.place]&genMask)<<32|uint64(c.place))
}

// at is where the connection's place begins.
func (c *ringConn) at() uint64 { return placesAt + uint64(c.place)*pieceSize }

func (c *ringConn) completed(op uint64, e rings.CQE) {
	if c.gone {
		switch {
		case op == opClose:
			c.release()
		case op == opSocket && e.Res >= 0: // given up before it had a number
			c.push(new(rings.SQE).PrepClose(e.Res), opClose)
		case op == opSocket:
			c.release()
		}
		return
	}
	switch op {
	case opRecv:
		c.reading = false
	case opSend, opShut:
		c.writing = false
	case opPoll:
		c.happened(e)
		return
	case opRecvZC, opBurst:
		c.framesRead(op, e)
		return
	}
	switch {
	case op == opRecv && e.Res == -int32(sockets.ENOBUFS): // until the buffers of this round are given back
	case e.Res < 0:
		c.abort(sockets.Errno(-e.Res))
		return
	case op == opSocket:
		c.fd = e.Res
		rings.PutSockAddr(c.l.data[c.at():], c.to)
		c.push(new(rings.SQE).PrepConnect(c.fd, c.at()), opConnect)
		return
	case op == opConnect:
		c.opened()
		return
	case op == opRecv && e.Res == 0:
		c.eof = true
		c.s.End()
	case op == opSend:
		c.s.Sent(int(e.Res))
	}
	c.pump()
}

// opened: the handshake is done. A poll for nothing but the end tells of a reset to who neither reads nor writes.
func (c *ringConn) opened() {
	c.open = true
	if s, ok := c.s.(spliced); ok {
		c.sp = s.Splicer()
	}
	c.watch()
	for _, s := range []*rings.SQE{
		new(rings.SQE).PrepKeepAlive(c.fd, rings.KeepIdle, uint64(keepAlive.Idle/1e9)),
		new(rings.SQE).PrepKeepAlive(c.fd, rings.KeepInterval, uint64(keepAlive.Interval/1e9)),
		new(rings.SQE).PrepKeepAlive(c.fd, rings.KeepOn, 1),
	} {
		c.l.push(s, opNone)
	}
	c.s.Open(c)
	c.pump()
}

func (c *ringConn) watch() {
	c.push(&rings.SQE{Opcode: rings.OpPollAdd, FD: c.fd, Len: rings.PollMulti}, opPoll)
}

func (c *ringConn) happened(e rings.CQE) {
	switch {
	case e.Res > 0 && sockets.Ready(e.Res)&sockets.Err != 0 && !c.reading && !c.writing && c.pending == 0:
		c.abort(sockets.ECONNRESET)
	case e.Flags&rings.CQEMore == 0 && e.Res >= 0:
		c.watch()
	}
}

func (c *ringConn) Wake() {
	if !c.queued && !c.gone {
		c.queued = true
		c.l.runq = append(c.l.runq, c)
	}
}

// pump begins to read and to write, if it can.
func (c *ringConn) pump() {
	if c.gone || !c.open {
		return
	}
	if c.sp != nil {
		c.readFrames(false)
	} else if !c.reading && !c.eof {
		if room := c.s.Room(); room > 0 {
			c.reading = true
			c.push(new(rings.SQE).PrepRecvSelect(c.fd, 0, uint32(min(room, pieceSize))), opRecv)
		}
	}
	if c.writing || c.gone {
		return
	}
	if !c.fin {
		b, fin := c.s.Next()
		switch {
		case c.gone:
			return
		case len(b) > 0:
			n := copy(c.l.data[c.at():][:pieceSize], b)
			c.writing = true
			c.push(new(rings.SQE).PrepSend(c.fd, c.at(), uint32(n)), opSend)
		case fin && c.pending == 0:
			c.fin, c.writing = true, true
			c.push(new(rings.SQE).PrepShutdown(c.fd, 1), opShut)
		}
		return
	}
	if c.eof {
		c.end(nil)
	}
}

func (c *ringConn) Abort() { c.abort(net.ErrClosed) }

func (c *ringConn) abort(err error) {
	if c.gone {
		return
	}
	if c.fd >= 0 {
		c.l.push(new(rings.SQE).PrepReset(c.fd), opNone)
	}
	c.end(err)
}

// end closes the socket. The place is free when nothing of it can be sent any more.
func (c *ringConn) end(err error) {
	c.gone = true
	c.l.add(-1)
	if c.fd >= 0 {
		c.push(new(rings.SQE).PrepClose(c.fd), opClose)
	}
	c.s.Closed(err)
}

func (c *ringConn) release() {
	l := c.l
	l.conns[c.place] = nil
	l.gens[c.place]++
	l.free = append(l.free, c.place)
}
