package xdpd

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/reactor"
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

	local netip.AddrPort
}

func (k *clientSock) init(s *session, network string, fd int32, local, remote netip.AddrPort) {
	k.s, k.network, k.fd, k.local, k.remote, k.done = s, network, fd, local, remote, make(chan struct{})
}

// do is an operation on the socket. A nil error and 0: the result counts.
func (k *clientSock) do(o call, sqe *rings.SQE, stop <-chan struct{}) (res int, errno sockets.Errno, err error) {
	k.mu.RLock()
	if k.closed {
		err = net.ErrClosed
	} else {
		sqe.FD = k.fd
		err = o.Submit(sqe)
	}
	k.mu.RUnlock()
	if err == nil {
		res, errno, err = o.Wait(stop, k.done)
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
	case closed && (res == 0 || err != nil || errno != 0), errors.Is(err, reactor.ErrCallStopped) && closed:
		return net.ErrClosed
	case errno == sockets.ECANCELED || errors.Is(err, reactor.ErrCallStopped):
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
	o, err := s.Begin()
	if err != nil {
		return nil
	}
	defer o.End()
	_, errno, err := o.Do(&rings.SQE{Opcode: rings.OpClose, FD: fd})
	if err == nil && errno != 0 {
		err = os.NewSyscallError("close", errno)
	}
	if errors.Is(err, ErrDaemonGone) {
		return nil
	}
	return err
}

func (k *clientSock) fail(op string, err error) error {
	return opError(op, k.network, k.local, k.remote, err)
}

// nameOf asks for a number's local address.
func nameOf(o call, fd int32) (a netip.AddrPort) {
	if _, errno, err := o.Do(&rings.SQE{Opcode: rings.OpSockName, FD: fd, Addr: o.Base(), Len: rings.SockAddrSize}); errno != 0 || err != nil {
		return a // the daemon is gone
	}
	a, _ = rings.SockAddr(o.Mem())
	return a
}

// LocalAddr is the socket's own address.
func (k *clientSock) LocalAddr() net.Addr { return netAddrOf(k.network, k.local) }

// RemoteAddr is the peer of a connected socket, else nil.
func (k *clientSock) RemoteAddr() net.Addr {
	if !k.remote.IsValid() {
		return nil
	}
	return netAddrOf(k.network, k.remote)
}

func newClientConn(s *session, o call, network string, fd int32, remote netip.AddrPort) *ClientConn {
	c := &ClientConn{reading: make(chan struct{}, 1), writing: make(chan struct{}, 1)}
	c.init(s, network, fd, nameOf(o, fd), remote)
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
	o, err := c.s.Begin(stop, c.done)
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
	defer func() { o.End(); <-c.reading }()
	res, errno, err := c.do(o, &rings.SQE{Opcode: op, Addr: o.Base(), Len: uint32(min(n, clientChunk))}, stop)
	if err := c.outcome("read", res, errno, err, stop); err != nil {
		return 0, c.fail("read", err)
	}
	take(o.Mem()[:res])
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
		return 0, c.fail("write", unix.EINVAL)
	}
	return c.WriteToUDPAddrPort(b, a.AddrPort())
}

// WriteToUDPAddrPort is WriteTo without an allocation.
func (c *ClientConn) WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error) {
	if c.remote.IsValid() {
		return 0, c.fail("write", net.ErrWriteToConnected)
	}
	if to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port()); to.Addr().Is6() {
		return 0, c.fail("write", unix.EINVAL)
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
	defer func() { o.End(); <-c.writing }()
	stream := c.network[:3] == "tcp"
	if !stream && len(b) > maxDatagram {
		return 0, c.fail("write", os.NewSyscallError("write", sockets.EMSGSIZE))
	}
	for {
		mem := o.Mem()
		sqe := rings.SQE{Opcode: rings.OpSend, Addr: o.Base() + rings.SockAddrSize}
		if to.IsValid() {
			rings.PutSockAddr(mem, to)
			sqe.Off, sqe.FileIndex = o.Base(), rings.SockAddrSize
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
	o, err := c.s.Begin(c.done)
	if err == nil {
		defer o.End()
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
