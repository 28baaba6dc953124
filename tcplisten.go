package xdpd

import (
	"errors"
	"net"
	"net/netip"
	"sync"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

// TCPListener is a listening TCP socket on the engine: a net.Listener. On an interface with several queues it is one
// listener for each, behind one face; Config.Spread says which connections come to which.
type TCPListener struct {
	waiter
	ends []tcpEnd
	port portKey
	once sync.Once
}

var _ net.Listener = (*TCPListener)(nil)

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
	if err := l.listen(addr, want.Port()); err != nil {
		l.closeEnds()
		return nil, l.fail("listen", err)
	}
	l.port = portKey{proto.ProtoTCP, want.Addr(), l.local.Port()}
	if err := s.openPort(l.port); err != nil {
		l.closeEnds()
		return nil, l.fail("listen", err)
	}
	return l, nil
}

func (l *TCPListener) listen(addr proto.Addr, port uint16) error {
	socks, err := l.stack.group.Listen(addr, port, l.stack.cfg.Spread)
	if errors.Is(err, reactor.ErrStopped) {
		return l.endError()
	}
	for i, s := range socks {
		e := tcpEnd{l.stack.queues[i].reactor, s}
		l.ends = append(l.ends, e)
		if h, _, ok := e.r.Enter(); ok {
			l.local, _ = h.TCPAddr(s)
			// Who accepts looks before it waits: what came before is not missed.
			e.r.Watch(s, l)
		}
		e.r.Leave()
	}
	return err
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
		<-l.readable
	}
}

func (l *TCPListener) accept(e tcpEnd) (*TCPConn, error) {
	h, now, ok := e.r.Enter()
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
	// Where the port's table is full the connection has its listener's port, and ends with it.
	_ = l.stack.keepPort(h, s)
	e.r.Watch(s, c)
	c.opened(h, now)
	return c, nil
}

// Addr is the address listened on.
func (l *TCPListener) Addr() net.Addr { return l.LocalAddr() }

// Close stops listening; Accept returns net.ErrClosed, and connections that nobody accepted are reset.
func (l *TCPListener) Close() error {
	err := l.fail("close", net.ErrClosed)
	l.once.Do(func() {
		l.closed.Store(true)
		l.wakeAll()
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
