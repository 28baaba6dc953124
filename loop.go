package xdpd

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"time"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

// Loop is the poller face of one reactor: of this process's (Stack.Loop) or of a daemon's (Client.Loop). A program that is written for
// it moves from one to the other by the line that makes it. docs/poller.md is the manual.
type Loop interface {
	// Enter gives the sockets and the time in nanoseconds, between here and Leave for this goroutine alone. ok is false when the reactor ended, or
	// its daemon is gone.
	Enter() (h Sockets, now int64, ok bool)
	Leave()
	// Poller makes a poller for the sockets. The caller is not between Enter and Leave.
	Poller() (Poller, error)
	// Close ends all pollers of a Client's loop and closes its sockets. A Stack's are the stack's.
	Close() error
}

// Sockets are a Loop's sockets, which never block: the part of sockets.Host that a program needs, with its rules and errors.
type Sockets interface {
	TCPListen(local proto.Addr, port uint16) (sockets.Handle, sockets.Errno)
	TCPDial(local proto.Addr, lport uint16, remote proto.Addr, port uint16, now int64) (sockets.Handle, sockets.Errno)
	TCPAccept(s sockets.Handle) (sockets.Handle, sockets.Errno)
	TCPRead(s sockets.Handle, dst []byte, now int64) (int, sockets.Errno)
	TCPWrite(s sockets.Handle, p []byte, now int64) (int, sockets.Errno)
	TCPShutdown(s sockets.Handle, now int64) sockets.Errno
	TCPShutdownRead(s sockets.Handle, now int64) sockets.Errno
	TCPAbort(s sockets.Handle, now int64) sockets.Errno
	TCPError(s sockets.Handle) sockets.Errno
	TCPAddr(s sockets.Handle) (local, remote netip.AddrPort)
	UDPBind(local proto.Addr, port uint16) (sockets.Handle, sockets.Errno)
	UDPConnect(s sockets.Handle, remote proto.Addr, port uint16) sockets.Errno
	UDPRecv(s sockets.Handle, dst []byte) (sockets.Datagram, sockets.Errno)
	UDPSend(s sockets.Handle, payload []byte, dst netip.AddrPort, now int64) sockets.Errno
	UDPAddr(s sockets.Handle) (local, remote netip.AddrPort)
	Close(s sockets.Handle, now int64) sockets.Errno
}

// Poller is epoll over a Loop's sockets, as reactor.Poller is.
type Poller interface {
	Add(s sockets.Handle, mask sockets.Ready, data uint64) error // between Enter and Leave, as Mod and Del
	Mod(s sockets.Handle, mask sockets.Ready, data uint64) error
	Del(s sockets.Handle) error
	Wait(buf []reactor.Event, timeout time.Duration) (int, error)
	Wake()
	// Serve has handler called for each ready socket, between an Enter and a Leave of its own: a Stack's on the reactor, and there it must be called
	// between Enter and Leave, a Client's on a goroutine.
	Serve(handler func(h Sockets, now int64, e reactor.Event))
	Close()
}

var (
	_ Sockets = (*sockets.Host)(nil)
	_ Sockets = (*reactor.RingSockets)(nil)
)

// Loop gives the poller face of a reactor, given by its number.
func (s *Stack) Loop(number int) (Loop, error) {
	r, err := s.reactor(number)
	if err != nil {
		return nil, err
	}
	return stackLoop{r}, nil
}

// Loops gives the poller faces of all reactors.
func (s *Stack) Loops() (list []Loop, err error) {
	for n := range s.queues {
		l, err := s.Loop(n)
		if err != nil {
			return nil, err
		}
		list = append(list, l)
	}
	return list, nil
}

type stackLoop struct{ r *reactor.Reactor }

func (l stackLoop) Enter() (Sockets, int64, bool) {
	h, now, ok := l.r.Enter()
	return h, now, ok
}

func (l stackLoop) Leave()                  { l.r.Leave() }
func (l stackLoop) Close() error            { return nil }
func (l stackLoop) Poller() (Poller, error) { return stackPoller{reactor.NewPoller(l.r)}, nil }

type stackPoller struct{ *reactor.Poller }

func (p stackPoller) Serve(handler func(h Sockets, now int64, e reactor.Event)) {
	p.Poller.Serve(func(h *sockets.Host, now int64, e reactor.Event) { handler(h, now, e) })
}

// clientLoop is a Loop over a ring of its own.
type clientLoop struct {
	s     *session
	h     *reactor.RingSockets
	mu    sync.Mutex // Enter to Leave
	began time.Time

	pollers struct {
		sync.Mutex
		list   []*reactor.RingPoller
		closed bool
	}
}

// Loop gives the poller face of one of the daemon's reactors, given by its number modulo how many there are, over a ring of its own. When the
// daemon ends, its sockets are closed and what waits returns an error that is reactor.ErrClosed and ErrDaemonGone: then another Loop connects anew.
func (c *Client) Loop(number int) (Loop, error) {
	cfg := c.cfg
	cfg.Reactor = uint32(number)
	q, err := OpenRing(context.Background(), c.path, cfg)
	if err != nil {
		return nil, err
	}
	s, err := newSession(q)
	if err != nil {
		return nil, err
	}
	return &clientLoop{s: s, h: reactor.NewRingSockets(s.RingCalls), began: time.Now()}, nil
}

// Loops gives the poller faces of all of the daemon's reactors, over a ring each.
func (c *Client) Loops() (list []Loop, err error) {
	for n, of := 0, 1; n < of; n++ {
		l, err := c.Loop(n)
		if err != nil {
			for _, l := range list {
				err = errors.Join(err, l.Close())
			}
			return nil, err
		}
		of = l.(*clientLoop).s.q.Reactors
		list = append(list, l)
	}
	return list, nil
}

func (l *clientLoop) Enter() (Sockets, int64, bool) {
	l.mu.Lock()
	return l.h, int64(time.Since(l.began)), !l.s.Gone()
}

func (l *clientLoop) Leave() { l.mu.Unlock() }

func (l *clientLoop) Poller() (Poller, error) {
	l.pollers.Lock()
	defer l.pollers.Unlock()
	if l.pollers.closed {
		return nil, reactor.ErrClosed
	}
	p, err := l.h.NewPoller()
	if err != nil {
		return nil, err
	}
	l.pollers.list = append(l.pollers.list, p)
	return &clientPoller{p, l}, nil
}

func (l *clientLoop) Close() error {
	l.pollers.Lock()
	list, closed := l.pollers.list, l.pollers.closed
	l.pollers.closed, l.pollers.list = true, nil
	l.pollers.Unlock()
	if closed {
		return nil
	}
	for _, p := range list {
		p.Close()
	}
	return l.s.close()
}

type clientPoller struct {
	*reactor.RingPoller
	l *clientLoop
}

func (p *clientPoller) Serve(handler func(h Sockets, now int64, e reactor.Event)) {
	p.RingPoller.Serve(func(e reactor.Event) {
		h, now, _ := p.l.Enter()
		defer p.l.Leave()
		handler(h, now, e)
	})
}
