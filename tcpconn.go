package xdpd

import (
	"io"
	"net"
	"net/netip"
	"sync"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

// TCPListener is a listening TCP socket on the engine: a net.Listener. On an interface with several queues it is one
// listener for each, behind one face.
type TCPListener struct {
	waiter
	ends []tcpEnd
	port portKey
	once sync.Once
}

// TCPConn is a TCP connection on the engine: a net.Conn. All methods may be called from any goroutine at any time.
// Segments are sent without Nagle's delay, as package net has it by default.
type TCPConn struct {
	waiter
	tcpEnd
	writing sync.Mutex // one Write's bytes stay together
	once    sync.Once
}

// tcpEnd is the socket on its reactor.
type tcpEnd struct {
	r *reactor.Reactor
	s sockets.Handle
}

var (
	_ net.Listener = (*TCPListener)(nil)
	_ net.Conn     = (*TCPConn)(nil)
)

// Listen opens a TCP listener as net.Listen does. network is "tcp" or "tcp4"; address is "IP:port", ":port" for all
// addresses of the engine, or port 0 for a free one. The result is a *TCPListener, its connections are *TCPConn.
func (s *Stack) Listen(network, address string) (net.Listener, error) {
	l := &TCPListener{}
	l.init(s, "tcp")
	if network != "tcp" && network != "tcp4" {
		return nil, l.fail("listen", net.UnknownNetworkError(network))
	}
	a, err := net.ResolveTCPAddr("tcp4", address)
	if err != nil {
		return nil, l.fail("listen", err)
	}
	want := a.AddrPort()
	want = netip.AddrPortFrom(want.Addr().Unmap(), want.Port())
	addr, _ := proto.AddrFrom(want.Addr())
	port := want.Port()
	for _, q := range s.queues {
		if err := l.listen(q.reactor, addr, port); err != nil {
			l.closeEnds()
			return nil, l.fail("listen", err)
		}
		port = l.local.Port() // the other queues' listeners get the same
	}
	l.port = portKey{proto.ProtoTCP, want.Addr(), port}
	if err := s.openPort(l.port); err != nil {
		l.closeEnds()
		return nil, l.fail("listen", err)
	}
	return l, nil
}

func (l *TCPListener) listen(r *reactor.Reactor, addr proto.Addr, port uint16) error {
	h, _, ok := r.Enter()
	defer r.Leave()
	if !ok {
		return l.endError()
	}
	s, errno := h.TCPListen(addr, port)
	if errno != 0 {
		return errno
	}
	l.ends = append(l.ends, tcpEnd{r, s})
	l.local, _ = h.TCPAddr(s)
	r.Watch(s, l)
	return nil
}

// Accept waits for the next connection.
func (l *TCPListener) Accept() (net.Conn, error) {
	for {
		if err := l.check(&l.rd); err != nil {
			return nil, l.fail("accept", err)
		}
		for _, e := range l.ends {
			c, err := l.accept(e)
			if c != nil {
				token(l.readable) // there may be more, for the next one who waits
				return c, nil
			}
			if err != nil {
				return nil, l.fail("accept", err)
			}
		}
		l.wait(l.readable, &l.rd)
	}
}

func (l *TCPListener) accept(e tcpEnd) (*TCPConn, error) {
	h, _, ok := e.r.Enter()
	defer e.r.Leave()
	if !ok {
		return nil, l.endError()
	}
	s, errno := h.TCPAccept(e.s)
	switch errno {
	case 0:
	case sockets.EAGAIN:
		return nil, nil
	case sockets.EBADF:
		return nil, net.ErrClosed
	default:
		return nil, errno
	}
	c := &TCPConn{tcpEnd: tcpEnd{e.r, s}}
	c.init(l.stack, "tcp")
	c.local, c.remote = h.TCPAddr(s)
	e.r.Watch(s, c)
	return c, nil
}

// Addr is the address listened on.
func (l *TCPListener) Addr() net.Addr { return l.LocalAddr() }

// Close stops listening; Accept returns net.ErrClosed, and connections that nobody accepted are reset.
func (l *TCPListener) Close() error {
	err := l.fail("close", net.ErrClosed)
	l.once.Do(func() {
		close(l.closed)
		l.closeEnds()
		err = nil
		if perr := l.stack.closePort(l.port); perr != nil {
			err = l.fail("close", perr)
		}
	})
	return err
}

func (l *TCPListener) closeEnds() {
	for _, e := range l.ends {
		e.close()
	}
}

func (e *tcpEnd) close() {
	h, now, ok := e.r.Enter()
	e.r.Watch(e.s, nil)
	if ok {
		h.Close(e.s, now)
	}
	e.r.Leave()
}

// Read reads what has arrived, waiting for it if need be; io.EOF behind the peer's last byte.
func (c *TCPConn) Read(b []byte) (int, error) {
	for {
		if err := c.check(&c.rd); err != nil {
			return 0, c.fail("read", err)
		}
		h, now, ok := c.r.Enter()
		if !ok {
			c.r.Leave()
			return 0, c.fail("read", c.endError())
		}
		n, errno := h.TCPRead(c.s, b, now)
		c.r.Leave()
		switch {
		case errno == sockets.EAGAIN:
			c.wait(c.readable, &c.rd)
		case errno != 0:
			return 0, c.failErrno("read", errno)
		case n == 0 && len(b) > 0:
			token(c.readable) // the end of the stream is there for every reader
			return 0, io.EOF
		default:
			return n, nil
		}
	}
}

// Write queues all of b, waiting for room if need be.
func (c *TCPConn) Write(b []byte) (int, error) {
	c.writing.Lock()
	defer c.writing.Unlock()
	total := 0
	for {
		if err := c.check(&c.wd); err != nil {
			return total, c.fail("write", err)
		}
		if total == len(b) {
			return total, nil
		}
		h, now, ok := c.r.Enter()
		if !ok {
			c.r.Leave()
			return total, c.fail("write", c.endError())
		}
		n, errno := h.TCPWrite(c.s, b[total:], now)
		c.r.Leave()
		total += n
		switch errno {
		case 0:
		case sockets.EAGAIN:
			c.wait(c.writable, &c.wd)
		default:
			return total, c.failErrno("write", errno)
		}
	}
}

// CloseWrite sends FIN behind what was written: the peer reads to the end, and can still send.
func (c *TCPConn) CloseWrite() error {
	h, now, ok := c.r.Enter()
	defer c.r.Leave()
	if !ok {
		return c.fail("close", c.endError())
	}
	if errno := h.TCPShutdown(c.s, now); errno != 0 {
		return c.failErrno("close", errno)
	}
	return nil
}

// Close closes the connection. What was written is still delivered, by the engine; data that nobody read makes the peer
// see a reset, as Linux does.
func (c *TCPConn) Close() error {
	err := c.fail("close", net.ErrClosed)
	c.once.Do(func() {
		close(c.closed)
		c.tcpEnd.close()
		err = nil
	})
	return err
}
