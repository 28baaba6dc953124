package xdpd

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

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
	in      *datagrams // of UDP
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
	done   chan struct{} // closed by Close, before the number is

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
	if network[:3] == "udp" {
		c.in = newDatagrams(s)
	}
	return c
}

// turn waits for the place of the one reader, or writer. Who has it gives it back.
func (c *ClientConn) turn(place chan struct{}, stop <-chan struct{}) error {
	if passed(c.done) {
		return net.ErrClosed
	}
	if passed(stop) {
		return os.ErrDeadlineExceeded
	}
	select {
	case place <- struct{}{}:
		return nil
	case <-c.done:
		return net.ErrClosed
	case <-stop:
		return os.ErrDeadlineExceeded
	}
}

// Read reads what there is, at most len(b) bytes; of UDP a datagram.
func (c *ClientConn) Read(b []byte) (n int, err error) {
	if c.in != nil {
		n, _, err = c.readDatagram(b)
		return n, err
	}
	if len(b) == 0 {
		return 0, nil
	}
	if n, err = c.readStream(b); err != nil {
		return 0, c.fail("read", err)
	}
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func (c *ClientConn) readStream(b []byte) (int, error) {
	stop := c.rd.wait()
	if err := c.turn(c.reading, stop); err != nil {
		return 0, err
	}
	defer func() { <-c.reading }()
	o, err := c.s.Begin()
	if err != nil {
		return 0, err
	}
	defer o.End()
	sqe := rings.SQE{Opcode: rings.OpRecv, Flags: rings.SQEBufferSelect, Len: uint32(min(len(b), clientCalls.Chunk))}
	for {
		res, errno, err := c.do(o, &sqe, stop)
		if err == nil && errno == sockets.ENOBUFS { // all buffers are full: the data waits in the engine
			select {
			case <-c.s.Freed():
				continue
			case <-stop:
				err = reactor.ErrCallStopped
			case <-c.done:
				err = reactor.ErrCallStopped
			}
		}
		if err := c.outcome("read", res, errno, err, stop); err != nil {
			return 0, err
		}
		if f := o.Flags(); res > 0 && f&rings.CQEBuffer != 0 {
			id := uint16(f >> rings.CQEBufferShift)
			copy(b, c.s.Buffer(id)[:res])
			c.s.GiveBack(id)
		}
		return res, nil
	}
}

// Write writes all of b, or says how much went.
func (c *ClientConn) Write(b []byte) (n int, err error) {
	if c.in != nil {
		return c.sendDatagram(b, netip.AddrPort{})
	}
	stop := c.wd.wait()
	if err = c.turn(c.writing, stop); err != nil {
		return 0, c.fail("write", err)
	}
	defer func() { <-c.writing }()
	for how := uint32(rings.MsgWaitAll); ; {
		if how == rings.MsgWaitAll && c.s.Scarce() {
			how = rings.MsgDontWait
		}
		k, more, err := c.writeSome(b[n:], how, stop)
		n += k
		if err != nil {
			return n, c.fail("write", err)
		}
		if n == len(b) {
			return n, nil
		}
		how = more
	}
}

// writeSome writes a chunk at most, and says how to go on. Where chunks are scarce none waits in the engine for a peer that takes nothing: who
// has room at last waits only for what else may hold him back, the policy's rates.
func (c *ClientConn) writeSome(b []byte, how uint32, stop <-chan struct{}) (n int, more uint32, err error) {
	o, err := c.s.BeginData(stop, c.done)
	if err != nil {
		return 0, 0, c.outcome("write", 0, 0, err, stop)
	}
	k := copy(o.Mem(), b)
	n, errno, err := c.do(o, &rings.SQE{Opcode: rings.OpSend, Addr: o.Base(), Len: uint32(k), OpFlags: how}, stop)
	o.End()
	switch {
	case how == rings.MsgDontWait && err == nil && (errno == sockets.EAGAIN || errno == 0 && n < k):
		return n, 0, c.awaitRoom(stop)
	case err == nil && errno == 0 && n < k && (passed(c.done) || passed(stop)): // stopped on the way
		errno = sockets.ECANCELED
	case err == nil && errno == 0: // all, or broken on the way: the next operation tells
		return n, rings.MsgWaitAll, nil
	}
	return n, 0, c.outcome("write", 0, errno, err, stop)
}

// awaitRoom waits until there is room for what is to be sent.
func (c *ClientConn) awaitRoom(stop <-chan struct{}) error {
	o, err := c.s.Begin()
	if err != nil {
		return err
	}
	defer o.End()
	_, errno, err := c.do(o, &rings.SQE{Opcode: rings.OpPollAdd, OpFlags: uint32(sockets.Out)}, stop)
	return c.outcome("write", 1, errno, err, stop)
}

// CloseWrite ends the stream; the peer reads its end.
func (c *ClientConn) CloseWrite() error { return c.shutdown(1) }

// CloseRead discards what comes from now on.
func (c *ClientConn) CloseRead() error { return c.shutdown(0) }

func (c *ClientConn) shutdown(how uint32) error {
	o, err := c.s.Begin()
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
