package xdpd

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"xdpd/rings"
	"xdpd/sockets"
)

// ClientConn is a TCP connection or a UDP socket of a Client: a net.Conn, and for UDP a net.PacketConn.
type ClientConn struct {
	clientSock
	rd, wd  timeLimit
	reading chan struct{} // a place for one reader, and one writer: their pieces stay together
	writing chan struct{}
}

// ClientListener accepts connections for a Client.
type ClientListener struct {
	clientSock
	limit timeLimit
}

var (
	_ net.Conn       = (*ClientConn)(nil)
	_ net.PacketConn = (*ClientConn)(nil)
	_ net.Listener   = (*ClientListener)(nil)
)

// clientSock is a number of the daemon's ring.
type clientSock struct {
	s       *session
	network string
	fd      int32
	remote  netip.AddrPort

	mu     sync.RWMutex // who submits for fd holds it; Close takes it all, so that nothing is submitted for somebody else's fd
	closed bool
	done   chan struct{}

	local func() netip.AddrPort
}

func (k *clientSock) init(s *session, network string, fd int32, remote netip.AddrPort) {
	k.s, k.network, k.fd, k.remote, k.done = s, network, fd, remote, make(chan struct{})
	k.local = sync.OnceValue(k.name)
}

// do is an operation on the socket. A nil error and 0: the result counts.
func (k *clientSock) do(o call, sqe *rings.SQE, stop <-chan struct{}) (res int, errno sockets.Errno, err error) {
	k.mu.RLock()
	if k.closed {
		err = net.ErrClosed
	} else {
		sqe.FD = k.fd
		err = o.submit(sqe)
	}
	k.mu.RUnlock()
	if err == nil {
		res, errno, err = o.wait(stop, k.done)
	}
	return res, errno, err
}

// outcome is the error of an operation that was done, or was cancelled by stop or Close; nil, if it did something.
func (k *clientSock) outcome(call string, res int, errno sockets.Errno, err error, stop <-chan struct{}) error {
	closed := false
	select {
	case <-k.done:
		closed = true
	default:
	}
	switch {
	case closed && (res == 0 || err != nil || errno != 0), errors.Is(err, errStopped) && closed:
		return net.ErrClosed
	case errno == sockets.ECANCELED || errors.Is(err, errStopped):
		return os.ErrDeadlineExceeded
	case err != nil:
		return err
	case errno != 0:
		return callError(call, errno)
	}
	return nil
}

func passed(ch <-chan struct{}) bool {
	select {
	case <-ch:
		return true
	default:
		return false
	}
}

// Close closes the socket: what was written still goes out, what was received and not read makes it a reset.
func (k *clientSock) Close() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return k.fail("close", net.ErrClosed)
	}
	k.closed = true
	close(k.done)
	k.mu.Unlock()
	return closeFD(k.s, k.fd)
}

// closeFD closes a number. A daemon that is gone has closed it already.
func closeFD(s *session, fd int32) error {
	o, err := s.begin()
	if err != nil {
		return nil
	}
	defer o.end()
	_, errno, err := o.do(&rings.SQE{Opcode: rings.OpClose, FD: fd})
	if err == nil && errno != 0 {
		err = os.NewSyscallError("close", errno)
	}
	if errors.Is(err, ErrDaemonGone) {
		return nil
	}
	return err
}

func (k *clientSock) fail(op string, err error) error {
	var local netip.AddrPort
	return opError(op, k.network, local, k.remote, err)
}

// name asks for the local address.
func (k *clientSock) name() (a netip.AddrPort) {
	o, err := k.s.begin(k.done)
	if err != nil {
		return a
	}
	defer o.end()
	if _, errno, err := k.do(o, &rings.SQE{Opcode: rings.OpSockName, Addr: o.base(), Len: rings.SockAddrSize}, nil); errno != 0 || err != nil {
		return a
	}
	a, _ = rings.SockAddr(o.mem())
	return a
}

func (k *clientSock) netAddr(a netip.AddrPort) net.Addr {
	if k.network[:3] == "tcp" {
		return net.TCPAddrFromAddrPort(a)
	}
	return net.UDPAddrFromAddrPort(a)
}

// LocalAddr is the socket's own address.
func (k *clientSock) LocalAddr() net.Addr { return k.netAddr(k.local()) }

// RemoteAddr is the peer of a connected socket, else nil.
func (k *clientSock) RemoteAddr() net.Addr {
	if !k.remote.IsValid() {
		return nil
	}
	return k.netAddr(k.remote)
}

func newClientConn(s *session, network string, fd int32, remote netip.AddrPort) *ClientConn {
	c := &ClientConn{reading: make(chan struct{}, 1), writing: make(chan struct{}, 1)}
	c.init(s, network, fd, remote)
	c.rd.init()
	c.wd.init()
	return c
}

// turn waits for the place of the one reader, or writer, and for an operation's number.
func (c *ClientConn) turn(place chan struct{}, stop <-chan struct{}) (call, error) {
	if passed(c.done) {
		return call{}, net.ErrClosed
	}
	if passed(stop) {
		return call{}, os.ErrDeadlineExceeded
	}
	select {
	case place <- struct{}{}:
	case <-c.done:
		return call{}, net.ErrClosed
	case <-stop:
		return call{}, os.ErrDeadlineExceeded
	}
	o, err := c.s.begin(stop, c.done)
	if err != nil {
		<-place
		err = c.outcome("", 0, 0, err, stop)
	}
	return o, err
}

// receive does a RECV or RECVFROM of at most n bytes, and gives where they lie until the call ends.
func (c *ClientConn) receive(op rings.Op, n int, take func(b []byte)) (int, error) {
	stop := c.rd.wait()
	o, err := c.turn(c.reading, stop)
	if err != nil {
		return 0, c.fail("read", err)
	}
	defer func() { o.end(); <-c.reading }()
	res, errno, err := c.do(o, &rings.SQE{Opcode: op, Addr: o.base(), Len: uint32(min(n, clientChunk))}, stop)
	if err := c.outcome("read", res, errno, err, stop); err != nil {
		return 0, c.fail("read", err)
	}
	take(o.mem()[:res])
	return res, nil
}

// Read reads what there is, at most len(b) bytes; of UDP a datagram.
func (c *ClientConn) Read(b []byte) (n int, err error) {
	stream := c.network[:3] == "tcp"
	if stream && len(b) == 0 {
		return 0, nil
	}
	n, err = c.receive(rings.OpRecv, len(b), func(from []byte) { copy(b, from) })
	if n == 0 && err == nil && stream {
		return 0, io.EOF
	}
	return n, err
}

// ReadFrom reads a datagram; what of it does not fit is lost.
func (c *ClientConn) ReadFrom(b []byte) (n int, from net.Addr, err error) {
	n, a, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return 0, nil, err
	}
	return n, net.UDPAddrFromAddrPort(a), nil
}

// ReadFromUDPAddrPort is ReadFrom without an allocation.
func (c *ClientConn) ReadFromUDPAddrPort(b []byte) (n int, from netip.AddrPort, err error) {
	_, err = c.receive(rings.OpRecvFrom, len(b)+rings.RecvHeaderSize, func(mem []byte) {
		h, _ := rings.ParseRecvHeader(mem)
		from, n = h.Src, copy(b, mem[rings.RecvHeaderSize:])
	})
	return n, from, err
}

// Write writes all of b, or says how much went.
func (c *ClientConn) Write(b []byte) (int, error) { return c.send(b, netip.AddrPort{}) }

// WriteTo sends a datagram.
func (c *ClientConn) WriteTo(b []byte, to net.Addr) (int, error) {
	a, ok := to.(*net.UDPAddr)
	if !ok || a == nil {
		return 0, c.fail("write", net.InvalidAddrError("not a UDP address"))
	}
	return c.WriteToUDPAddrPort(b, a.AddrPort())
}

// WriteToUDPAddrPort is WriteTo without an allocation.
func (c *ClientConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if c.remote.IsValid() {
		return 0, c.fail("write", net.ErrWriteToConnected)
	}
	return c.send(b, to)
}

const maxDatagram = 65507

func (c *ClientConn) send(b []byte, to netip.AddrPort) (n int, err error) {
	stop := c.wd.wait()
	o, err := c.turn(c.writing, stop)
	if err != nil {
		return 0, c.fail("write", err)
	}
	defer func() { o.end(); <-c.writing }()
	stream := c.network[:3] == "tcp"
	if !stream && len(b) > maxDatagram {
		return 0, c.fail("write", os.NewSyscallError("write", sockets.EMSGSIZE))
	}
	for {
		mem := o.mem()
		sqe := rings.SQE{Opcode: rings.OpSend, Addr: o.base() + rings.SockAddrSize}
		if to.IsValid() {
			rings.PutSockAddr(mem, to)
			sqe.Off, sqe.FileIndex = o.base(), rings.SockAddrSize
		}
		if stream {
			sqe.OpFlags = rings.MsgWaitAll
		}
		k := copy(mem[rings.SockAddrSize:], b[n:])
		sqe.Len = uint32(k)
		res, errno, err := c.do(o, &sqe, stop)
		if err == nil && errno == 0 {
			n += res
		}
		if stream && res == k && n == len(b) || !stream && errno == 0 && err == nil {
			return n, nil
		}
		if err == nil && errno == 0 && res < k { // stopped on the way, or broken: the next operation would tell
			if passed(c.done) || passed(stop) {
				errno = sockets.ECANCELED
			} else {
				continue
			}
		}
		if err := c.outcome("write", 0, errno, err, stop); err != nil {
			return n, c.fail("write", err)
		}
	}
}

// CloseWrite ends the stream; the peer reads its end.
func (c *ClientConn) CloseWrite() error { return c.shutdown(1) }

// CloseRead discards what comes from now on.
func (c *ClientConn) CloseRead() error { return c.shutdown(0) }

func (c *ClientConn) shutdown(how uint32) error {
	o, err := c.s.begin(c.done)
	if err == nil {
		defer o.end()
		var errno sockets.Errno
		_, errno, err = c.do(o, &rings.SQE{Opcode: rings.OpShutdown, Len: how}, nil)
		err = c.outcome("shutdown", 1, errno, err, nil)
	}
	if err != nil {
		return c.fail("close", err)
	}
	return nil
}

// SetDeadline sets both deadlines.
func (c *ClientConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline ends reads that wait at t; the zero time is never.
func (c *ClientConn) SetReadDeadline(t time.Time) error { return c.setLimit(&c.rd, t) }

// SetWriteDeadline ends writes that wait at t; the zero time is never.
func (c *ClientConn) SetWriteDeadline(t time.Time) error { return c.setLimit(&c.wd, t) }

func (k *clientSock) setLimit(d *timeLimit, t time.Time) error {
	if passed(k.done) {
		return k.fail("set", net.ErrClosed)
	}
	d.set(t)
	return nil
}

// socket opens a socket and binds it, if local is an address.
func (s *session) socket(o call, typ uint64, local netip.AddrPort) (fd int32, err error) {
	res, errno, err := o.do(&rings.SQE{Opcode: rings.OpSocket, FD: 2, Off: typ})
	if err == nil && errno != 0 {
		err = os.NewSyscallError("socket", errno)
	}
	if err != nil || !local.IsValid() {
		return int32(res), err
	}
	rings.PutSockAddr(o.mem(), local)
	_, errno, err = o.do(&rings.SQE{Opcode: rings.OpBind, FD: int32(res), Addr: o.base(), Off: rings.SockAddrSize})
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
	_, _, err := o.do(&rings.SQE{Opcode: rings.OpClose, FD: fd})
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
	defer o.end()
	fd, err := s.socket(o, sockStream, local)
	if err == nil {
		var errno sockets.Errno
		if _, errno, err = o.do(&rings.SQE{Opcode: rings.OpListen, FD: fd}); err == nil && errno != 0 {
			err = errors.Join(os.NewSyscallError("listen", errno), s.drop(o, fd))
		}
	}
	if err != nil {
		return nil, opError("listen", network, local, netip.AddrPort{}, err)
	}
	l := &ClientListener{}
	l.init(s, network, fd, netip.AddrPort{})
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
		o, err = s.begin()
	}
	return a, s, o, err
}

// Accept waits for a connection.
func (l *ClientListener) Accept() (net.Conn, error) {
	stop := l.limit.wait()
	if passed(l.done) {
		return nil, l.fail("accept", net.ErrClosed)
	}
	o, err := l.s.begin(stop, l.done)
	if err != nil {
		return nil, l.fail("accept", l.outcome("accept", 0, 0, err, stop))
	}
	defer o.end()
	fd, errno, err := l.do(o, &rings.SQE{Opcode: rings.OpAccept, Addr: o.base(), Off: rings.SockAddrSize}, stop)
	if err := l.outcome("accept", 1, errno, err, stop); err != nil {
		return nil, l.fail("accept", err)
	}
	remote, _ := rings.SockAddr(o.mem())
	return newClientConn(l.s, l.network, int32(fd), remote), nil
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
	defer o.end()
	fd, err := s.socket(o, sockDgram, local)
	if err != nil {
		return nil, opError("listen", network, local, netip.AddrPort{}, err)
	}
	return newClientConn(s, network, fd, netip.AddrPort{}), nil
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
	o, err := s.begin(ctx.Done())
	if err != nil {
		if ctx.Err() != nil {
			err = contextError{cause: ctx.Err()}
		}
		return nil, err
	}
	defer o.end()
	typ := uint64(sockStream)
	if network[:3] == "udp" {
		typ = sockDgram
	}
	fd, err := s.socket(o, typ, netip.AddrPort{})
	if err != nil {
		return nil, err
	}
	rings.PutSockAddr(o.mem(), remote)
	_, errno, err := o.do(&rings.SQE{Opcode: rings.OpConnect, FD: fd, Addr: o.base(), Off: rings.SockAddrSize}, ctx.Done())
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
	return newClientConn(s, network, fd, remote), nil
}
