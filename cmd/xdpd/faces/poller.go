package faces

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"xdpd"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

// pollerLoop is a goroutine in Poller.Wait. Connections are edge triggered: each is read and written until it can be no
// further, and what a Stream does not take yet is looked at again when it says so.
type pollerLoop struct {
	base
	st     *xdpd.Stack
	r      *reactor.Reactor
	p      *reactor.Poller
	conns  sockets.Table[*pollerConn]
	accept map[sockets.Handle]func() Stream // by listener
	runq   []*pollerConn                    // to be looked at without an event
	buf    [pieceSize]byte
	over   bool
}

// pollerConn is a connection.
type pollerConn struct {
	l            *pollerLoop
	h            sockets.Handle
	s            Stream
	open         bool // the handshake is done
	eof, fin     bool // the peer's FIN was read, ours is queued
	queued, gone bool // in runq; Closed was called
}

const connMask = sockets.In | sockets.Out | sockets.RdHup | reactor.EdgeTriggered

func newPollerLoop(st *xdpd.Stack, n, conns int) (*pollerLoop, error) {
	p, err := st.Poller(n)
	if err != nil {
		return nil, err
	}
	l := &pollerLoop{
		st: st, r: st.Reactors()[n], p: p,
		accept: make(map[sockets.Handle]func() Stream),
	}
	l.max, l.wake, l.ended = conns, p.Wake, make(chan struct{})
	go l.run()
	return l, nil
}

func (l *pollerLoop) Listen(port uint16, accept func() Stream) error {
	h, _, ok := l.r.Enter()
	if !ok {
		l.r.Leave()
		return net.ErrClosed
	}
	s, err := h.TCPListen(0, port)
	l.r.Leave()
	if err != 0 {
		return fmt.Errorf("TCP port %d: %w", port, err)
	}
	l.Post(func() {
		l.accept[s] = accept
		l.r.Enter()
		defer l.r.Leave()
		_ = l.p.Add(s, sockets.In, 0) // fails only when all ends
	})
	return nil
}

func (l *pollerLoop) StopListening() {
	l.Post(func() {
		h, now, ok := l.r.Enter()
		defer l.r.Leave()
		for s := range l.accept {
			delete(l.accept, s)
			if ok {
				h.Close(s, now)
			}
		}
	})
}

func (l *pollerLoop) Close() {
	l.Post(func() { l.over = true })
	<-l.ended
}

func (l *pollerLoop) run() {
	defer close(l.ended)
	var events [64]reactor.Event
	for !l.over {
		n, err := l.p.Wait(events[:], l.patience(len(l.runq) > 0, l.conns.Len()))
		if err != nil {
			break
		}
		for _, e := range events[:n] {
			if accept := l.accept[e.Sock]; accept != nil {
				l.acceptAll(e.Sock, accept)
			} else if c, ok := l.conns.Get(e.Sock); ok {
				c.step()
			}
		}
		again := l.runq
		l.runq = nil
		for _, c := range again {
			c.queued = false
			c.step()
		}
		l.runPosted(false)
		if now, yes := l.due(); yes {
			for _, c := range l.conns.All() {
				if late(c.s, now) {
					c.abort(os.ErrDeadlineExceeded)
				}
			}
		}
	}
	for s := range l.accept {
		l.do(func(h *sockets.Host, now int64) { h.Close(s, now) })
	}
	l.runPosted(true)
	for _, c := range l.conns.All() {
		c.abort(net.ErrClosed)
	}
	l.p.Close()
}

// do calls f with the lock held, unless the reactor has ended.
func (l *pollerLoop) do(f func(h *sockets.Host, now int64)) (ok bool) {
	h, now, ok := l.r.Enter()
	defer l.r.Leave()
	if ok {
		f(h, now)
	}
	return ok
}

// acceptAll accepts what is there, up to a batch; the listener is level triggered.
func (l *pollerLoop) acceptAll(listener sockets.Handle, accept func() Stream) {
	var got [64]sockets.Handle
	n := 0
	l.do(func(h *sockets.Host, now int64) {
		for n < len(got) {
			c, err := h.TCPAccept(listener)
			if err != 0 {
				return
			}
			// Where the port's table is full the connection has its listener's port, and ends with it.
			_ = l.st.KeepPort(h, c)
			got[n] = c
			n++
		}
	})
	for _, s := range got[:n] {
		stream := Stream(nil)
		if l.conns.Len() < l.max {
			stream = accept()
		}
		if stream == nil {
			l.do(func(h *sockets.Host, now int64) { h.TCPAbort(s, now) })
			continue
		}
		c := l.adopt(s, stream)
		c.open = true
		stream.Open(c)
		c.Wake()
	}
}

// adopt has a connection served.
func (l *pollerLoop) adopt(s sockets.Handle, stream Stream) *pollerConn {
	c := &pollerConn{l: l, h: s, s: stream}
	l.conns.Put(s, c)
	l.add(1)
	l.do(func(h *sockets.Host, now int64) {
		h.TCPSetKeepAlive(s, keepAlive, now)
		_ = l.p.Add(s, connMask, 0) // fails only when all ends
	})
	return c
}

func (l *pollerLoop) Dial(to netip.AddrPort, s Stream) Conn {
	remote, _ := proto.AddrFrom(to.Addr())
	if l.conns.Len() >= l.max {
		return l.refuse(s, sockets.EMFILE)
	}
	var sock sockets.Handle
	err := sockets.Errno(0)
	ok := l.do(func(h *sockets.Host, now int64) {
		if sock, err = h.TCPDial(0, 0, remote, to.Port(), now); err == 0 && l.st.KeepPort(h, sock) != nil {
			h.TCPAbort(sock, now)
			err = sockets.ENOBUFS
		}
	})
	if !ok || err != 0 {
		return l.refuse(s, err)
	}
	return l.adopt(sock, s)
}

// refuse is a Dial that fails at once, of which the Stream hears when the caller has the Conn.
func (l *pollerLoop) refuse(s Stream, err sockets.Errno) Conn {
	l.Post(func() { s.Closed(errno(err)) })
	return &pollerConn{l: l, s: s, gone: true}
}

func (c *pollerConn) Wake() {
	if !c.queued && !c.gone {
		c.queued = true
		c.l.runq = append(c.l.runq, c)
	}
}

func (c *pollerConn) Abort() { c.abort(net.ErrClosed) }

func (c *pollerConn) abort(err error) {
	if !c.gone {
		c.l.do(func(h *sockets.Host, now int64) { h.TCPAbort(c.h, now) })
		c.end(err)
	}
}

// end forgets a connection whose socket is closed.
func (c *pollerConn) end(err error) {
	c.gone = true
	c.l.conns.Delete(c.h)
	c.l.add(-1)
	c.s.Closed(err)
}

// fail ends a connection that has an error.
func (c *pollerConn) fail(err sockets.Errno) {
	c.l.do(func(h *sockets.Host, now int64) { h.TCPAbort(c.h, now) })
	c.end(errno(err))
}

// opening looks how far a handshake is; false: not there.
func (c *pollerConn) opening() bool {
	err, failed := sockets.Errno(0), false
	ok := c.l.do(func(h *sockets.Host, _ int64) {
		if c.open = h.TCPConnected(c.h); !c.open && h.Ready(c.h)&(sockets.Err|sockets.Hup) != 0 {
			failed = true
			if err = h.TCPError(c.h); err == 0 {
				err = sockets.ECONNREFUSED
			}
		}
	})
	switch {
	case failed || !ok:
		c.fail(err)
	case c.open:
		c.s.Open(c)
	}
	return c.open && !c.gone
}

// step reads and writes.
func (c *pollerConn) step() {
	if c.gone || !c.open && !c.opening() {
		return
	}
	for range turns {
		read := c.read()
		if c.gone {
			return
		}
		wrote := c.write()
		switch {
		case c.gone:
			return
		case c.eof && c.fin:
			c.l.do(func(h *sockets.Host, now int64) { h.Close(c.h, now) })
			c.end(nil)
			return
		case !read && !wrote:
			return
		}
	}
	c.Wake()
}

// read reads once and reports whether there was something.
func (c *pollerConn) read() bool {
	room := 0
	if !c.eof {
		room = min(c.s.Room(), pieceSize)
	}
	b, n, err := c.l.buf[:room], 0, sockets.EAGAIN
	ok := c.l.do(func(h *sockets.Host, now int64) {
		if room > 0 {
			n, err = h.TCPRead(c.h, b, now)
		} else if e := h.TCPError(c.h); e != 0 { // who does not read must see a reset all the same
			err = e
		}
	})
	switch {
	case !ok:
		c.fail(0)
	case err == sockets.EAGAIN:
		return false
	case err != 0:
		c.fail(err)
	case n == 0:
		c.eof = true
		c.s.End()
	default:
		c.s.Take(b[:n])
	}
	return true
}

// write writes once and reports whether something went.
func (c *pollerConn) write() bool {
	if c.fin {
		return false
	}
	b, fin := c.s.Next()
	if c.gone || len(b) == 0 && !fin {
		return false
	}
	n, err := 0, sockets.Errno(0)
	ok := c.l.do(func(h *sockets.Host, now int64) {
		if len(b) > 0 {
			n, err = h.TCPWrite(c.h, b[:min(len(b), pieceSize)], now)
		} else {
			err = h.TCPShutdown(c.h, now)
		}
	})
	switch {
	case !ok:
		c.fail(0)
		return true
	case err == sockets.EAGAIN:
		return false
	case err != 0:
		c.fail(err)
		return true
	case len(b) == 0:
		c.fin = true
		return true
	}
	c.s.Sent(n)
	return true
}
