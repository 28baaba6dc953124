package xdpd

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"time"

	"xdpd/rings"
	"xdpd/sockets"
)

// socket opens a socket and binds it, if local is an address.
func (s *session) socket(o call, typ uint64, local netip.AddrPort) (fd int32, err error) {
	res, errno, err := o.Do(&rings.SQE{Opcode: rings.OpSocket, FD: 2, Off: typ})
	if err == nil && errno != 0 {
		err = os.NewSyscallError("socket", errno)
	}
	if err != nil || !local.IsValid() {
		return int32(res), err
	}
	rings.PutSockAddr(o.Mem(), local)
	_, errno, err = o.Do(&rings.SQE{Opcode: rings.OpBind, FD: int32(res), Addr: o.Base(), Off: rings.SockAddrSize})
	if err == nil && errno != 0 {
		err = os.NewSyscallError("bind", errno)
	}
	if err != nil {
		return 0, errors.Join(err, s.drop(o, int32(res)))
	}
	return int32(res), nil
}

// drop closes a number within a call.
func (s *session) drop(o call, fd int32) error {
	_, _, err := o.Do(&rings.SQE{Opcode: rings.OpClose, FD: fd})
	return err
}

const (
	sockStream = 1
	sockDgram  = 2
)

// Listen is net.Listen for "tcp" and "tcp4".
func (c *Client) Listen(network, address string) (net.Listener, error) {
	local, s, o, err := c.prepare(network, "tcp", address)
	if err != nil {
		return nil, opError("listen", network, local, netip.AddrPort{}, err)
	}
	defer o.End()
	fd, err := s.socket(o, sockStream, local)
	if err == nil {
		var errno sockets.Errno
		if _, errno, err = o.Do(&rings.SQE{Opcode: rings.OpListen, FD: fd}); err == nil && errno != 0 {
			err = errors.Join(os.NewSyscallError("listen", errno), s.drop(o, fd))
		}
	}
	if err != nil {
		return nil, opError("listen", network, local, netip.AddrPort{}, err)
	}
	l := &ClientListener{}
	l.init(s, network, fd, nameOf(o, fd), netip.AddrPort{})
	l.limit.init()
	return l, nil
}

// prepare resolves an address to bind, and begins a call.
func (c *Client) prepare(network, transport, address string) (a netip.AddrPort, s *session, o call, err error) {
	switch {
	case network != transport && network != transport+"4":
		err = net.UnknownNetworkError(network)
	case transport == "udp":
		a, err = parseAddr(network, address)
	default:
		var t *net.TCPAddr
		if t, err = net.ResolveTCPAddr("tcp4", address); err == nil {
			a = t.AddrPort()
		}
	}
	if err != nil {
		return a, nil, o, err
	}
	if !a.Addr().IsValid() {
		a = netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port())
	}
	a = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	if s, err = c.session(context.Background()); err == nil {
		o, err = s.Begin()
	}
	return a, s, o, err
}

// Accept waits for a connection.
func (l *ClientListener) Accept() (net.Conn, error) {
	stop := l.limit.wait()
	if passed(l.done) {
		return nil, l.fail("accept", net.ErrClosed)
	}
	o, err := l.s.Begin()
	if err != nil {
		return nil, l.fail("accept", err)
	}
	defer o.End()
	fd, errno, err := l.do(o, &rings.SQE{Opcode: rings.OpAccept, Addr: o.Base(), Off: rings.SockAddrSize}, stop)
	if err := l.outcome("accept", 1, errno, err, stop); err != nil {
		return nil, l.fail("accept", err)
	}
	remote, _ := rings.SockAddr(o.Mem())
	return newClientConn(l.s, o, l.network, int32(fd), remote), nil
}

// Addr is the listener's address.
func (l *ClientListener) Addr() net.Addr { return l.LocalAddr() }

// SetDeadline ends an Accept that waits at t.
func (l *ClientListener) SetDeadline(t time.Time) error { return l.setLimit(&l.limit, t) }

// ListenPacket is net.ListenPacket for "udp" and "udp4".
func (c *Client) ListenPacket(network, address string) (net.PacketConn, error) {
	local, s, o, err := c.prepare(network, "udp", address)
	if err != nil {
		return nil, opError("listen", network, local, netip.AddrPort{}, err)
	}
	defer o.End()
	fd, err := s.socket(o, sockDgram, local)
	if err != nil {
		return nil, opError("listen", network, local, netip.AddrPort{}, err)
	}
	return newClientConn(s, o, network, fd, netip.AddrPort{}), nil
}

// Dial connects to address: "tcp", "tcp4", "udp" and "udp4".
func (c *Client) Dial(network, address string) (net.Conn, error) {
	return c.DialContext(context.Background(), network, address)
}

// DialContext connects to address, unless ctx ends before. A name that has several addresses is tried at one after the other.
func (c *Client) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	switch network {
	case "tcp", "tcp4", "udp", "udp4":
	default:
		return nil, opError("dial", network, netip.AddrPort{}, netip.AddrPort{}, net.UnknownNetworkError(network))
	}
	remotes, err := resolveAddr(ctx, network, address)
	if err != nil {
		return nil, opError("dial", network, netip.AddrPort{}, netip.AddrPort{}, err)
	}
	var first error
	for _, remote := range remotes {
		conn, err := c.dial(ctx, network, remote)
		if err == nil {
			return conn, nil
		}
		if first == nil {
			first = opError("dial", network, netip.AddrPort{}, remote, err)
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil, first
}

func (c *Client) dial(ctx context.Context, network string, remote netip.AddrPort) (net.Conn, error) {
	s, err := c.session(ctx)
	if err != nil {
		return nil, err
	}
	o, err := s.Begin()
	if err != nil {
		return nil, err
	}
	defer o.End()
	typ := uint64(sockStream)
	if network[:3] == "udp" {
		typ = sockDgram
	}
	fd, err := s.socket(o, typ, netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	rings.PutSockAddr(o.Mem(), remote)
	_, errno, err := o.Do(&rings.SQE{Opcode: rings.OpConnect, FD: fd, Addr: o.Base(), Off: rings.SockAddrSize}, ctx.Done())
	switch {
	case err != nil:
	case errno == sockets.ECANCELED && ctx.Err() != nil:
		err = contextError{cause: ctx.Err()}
	case errno != 0:
		err = os.NewSyscallError("connect", errno)
	}
	if err != nil {
		_ = s.drop(o, fd) // what went wrong is known
		return nil, err
	}
	return newClientConn(s, o, network, fd, remote), nil
}
