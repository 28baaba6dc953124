package xdpd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"xdpd/proto"
	"xdpd/sockets"
)

// Dial connects to an address as net.Dial does; see DialContext.
func (s *Stack) Dial(network, address string) (net.Conn, error) {
	return s.DialContext(context.Background(), network, address)
}

// DialContext connects to an address as net.Dialer.DialContext does, and goes wherever that function goes: into an
// http.Transport, a tls.Dialer's place, a net.Resolver. network is "tcp", "tcp4", "udp" or "udp4"; address is
// "host:port". Names are resolved by the net package, outside the engine; the addresses of a name are tried one after the
// other. The result is a *TCPConn or a *UDPConn. When ctx ends, the attempt ends; a connection that was made stays.
//
// On an interface with several queues the connection is the queue's that the peer's answer comes in on. Where the device
// tells how it chooses that queue, the queues take turns, and the source port is one that brings the answer there.
func (s *Stack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	fail := func(err error) error { return &net.OpError{Op: "dial", Net: network, Err: err} }
	switch network {
	case "tcp", "tcp4", "udp", "udp4":
	default:
		return nil, fail(net.UnknownNetworkError(network))
	}
	remotes, err := resolveAddr(ctx, network, address)
	if err != nil {
		return nil, fail(err)
	}
	var first error // the most telling
	for i, remote := range remotes {
		c, err := s.dialOne(ctx, network, remote, len(remotes)-i)
		if err == nil {
			return c, nil
		}
		if first == nil {
			first = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

// resolveAddr gives the addresses of a host and the port of a service.
func resolveAddr(ctx context.Context, network, address string) ([]netip.AddrPort, error) {
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	port, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil {
		return nil, err
	}
	if host == "" {
		return nil, &net.AddrError{Err: "missing host in address", Addr: address} // the engine does not talk to itself
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", host)
	if err != nil {
		return nil, err
	}
	var out []netip.AddrPort
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() {
			out = append(out, netip.AddrPortFrom(a, uint16(port)))
		}
	}
	if len(out) == 0 {
		return nil, &net.AddrError{Err: "no suitable address found", Addr: host}
	}
	return out, nil
}

// dialOne tries one address of those that are left. It has its share of the time that remains, as in package net.
func (s *Stack) dialOne(ctx context.Context, network string, remote netip.AddrPort, left int) (net.Conn, error) {
	if network[:3] == "udp" {
		c, err := s.DialUDP(remote)
		if err != nil {
			return nil, err
		}
		return c, nil
	}
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		share := max(time.Until(deadline)/time.Duration(left), 2*time.Second)
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, share)
		defer cancel()
	}
	c := &TCPConn{}
	c.init(s, network)
	c.remote = remote
	if err := c.connect(ctx); err != nil {
		c.local = netip.AddrPort{} // as package net does: nobody chose it
		return nil, c.fail("dial", err)
	}
	return c, nil
}

// connect opens the connection.
func (c *TCPConn) connect(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return contextError{err}
	}
	ends, err := c.start()
	if err != nil {
		return err
	}
	for {
		select {
		case <-c.writable: // a socket has connected or failed
		case <-ctx.Done():
			abandon(ends)
			return contextError{ctx.Err()}
		case <-c.stack.done:
			return c.endError()
		}
		for i, e := range ends {
			connected, err := c.outcome(e)
			if connected {
				abandon(append(ends[:i:i], ends[i+1:]...))
				return nil
			}
			if err != nil {
				abandon(ends)
				return err
			}
		}
	}
}

// start sends a SYN. It returns the sockets that wait for the answer: one on every queue, unless it is known on which of
// them it comes in.
func (c *TCPConn) start() ([]tcpEnd, error) {
	if len(c.stack.queues) > 1 && c.stack.steer.rss.Hashed(proto.ProtoTCP) != 0 {
		if ends, err := c.startHere(); err != nil || ends != nil {
			return ends, err
		}
	}
	const tries = 100
	for i := 1; ; i++ {
		ends, errno, err := c.tryStart()
		if errno == sockets.EADDRINUSE && i < tries { // the port that one queue chose is not free on another
			continue
		}
		if errno != 0 {
			return nil, os.NewSyscallError("connect", errno)
		}
		return ends, err
	}
}

// startHere sends a SYN from the queue whose turn it is and from a port that brings the answer there. Neither ends nor
// an error: no queue has found such a port, or believes in it any more.
func (c *TCPConn) startHere() ([]tcpEnd, error) {
	remote, _ := proto.AddrFrom(c.remote.Addr())
	n := len(c.stack.queues)
	first := c.stack.steer.turn(n)
	for i := range n {
		r := c.stack.queues[(first+i)%n].reactor
		h, now, ok := r.Enter()
		if !ok {
			r.Leave()
			return nil, c.endError()
		}
		s, errno := h.TCPDialHere(0, remote, c.remote.Port(), now)
		ends := []tcpEnd{{r, s}}
		var err error
		if errno == 0 {
			err = c.await(h, ends[0])
		}
		r.Leave()
		switch {
		case errno == sockets.EADDRNOTAVAIL:
			continue
		case errno != 0:
			return nil, os.NewSyscallError("connect", errno)
		case err != nil:
			abandon(ends)
			return nil, err
		}
		return ends, nil
	}
	return nil, nil
}

// tryStart opens the connection on all queues. One of them sends the SYN.
func (c *TCPConn) tryStart() (ends []tcpEnd, errno sockets.Errno, err error) {
	remote, _ := proto.AddrFrom(c.remote.Addr())
	first := c.stack.queues[0].reactor
	h, now, ok := first.Enter()
	defer first.Leave() // which sends the SYN
	if !ok {
		return nil, 0, c.endError()
	}
	s, errno := h.TCPExpect(0, 0, remote, c.remote.Port(), now, now)
	if errno != 0 {
		return nil, errno, nil
	}
	ends = []tcpEnd{{first, s}}
	defer func() {
		if errno != 0 || err != nil {
			first.Watch(s, nil)
			h.TCPAbort(s, now)
			abandon(ends[1:])
			ends = nil
		}
	}()
	if err := c.await(h, ends[0]); err != nil {
		return ends, 0, err
	}
	// The locks of several reactors are only ever taken in this order.
	for _, q := range c.stack.queues[1:] {
		h, later, ok := q.reactor.Enter()
		s := sockets.Handle(0)
		if !ok {
			err = c.endError()
		} else if s, errno = h.TCPExpect(0, c.local.Port(), remote, c.remote.Port(), now, later); errno == 0 {
			ends = append(ends, tcpEnd{q.reactor, s})
			err = c.await(h, ends[len(ends)-1])
		}
		q.reactor.Leave()
		if errno != 0 || err != nil {
			return ends, errno, err
		}
	}
	return ends, h.TCPLaunch(s, now), nil
}

// await makes a socket in SYN-SENT ready for its answer. The caller holds its reactor's lock.
func (c *TCPConn) await(h *sockets.Host, e tcpEnd) error {
	c.local, _ = h.TCPAddr(e.s)
	e.r.Watch(e.s, c)
	return c.stack.keepPort(h, e.s)
}

// outcome looks whether a socket has connected, which makes it the connection's, or failed.
func (c *TCPConn) outcome(e tcpEnd) (connected bool, err error) {
	h, now, ok := e.r.Enter()
	defer e.r.Leave()
	if !ok {
		return false, c.endError()
	}
	if h.TCPConnected(e.s) {
		c.tcpEnd = e
		c.opened(h, now)
		return true, nil
	}
	if h.Ready(e.s)&(sockets.Err|sockets.Hup) == 0 {
		return false, nil
	}
	errno := h.TCPError(e.s)
	if errno == 0 {
		errno = sockets.ECONNREFUSED
	}
	return false, os.NewSyscallError("connect", errno)
}

// abandon gives up sockets that did not become the connection.
func abandon(ends []tcpEnd) {
	for _, e := range ends {
		e.abort()
	}
}

// contextError is how package net tells that a context ended a dial.
type contextError struct{ cause error }

func (e contextError) Error() string {
	switch {
	case e.Timeout():
		return "i/o timeout"
	case errors.Is(e.cause, context.Canceled):
		return "operation was canceled"
	}
	return e.cause.Error()
}

func (e contextError) Unwrap() error   { return e.cause }
func (e contextError) Timeout() bool   { return errors.Is(e.cause, context.DeadlineExceeded) }
func (e contextError) Temporary() bool { return e.Timeout() }

func (e contextError) Is(target error) bool { return target == os.ErrDeadlineExceeded && e.Timeout() }
