package xdpd

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"xdpd/sockets"
)

// waiter is what every socket of the net face has: goroutines that wait for the reactor, deadlines, and a Close that
// ends all waiting.
type waiter struct {
	stack    *Stack
	network  string // for errors
	local    netip.AddrPort
	remote   netip.AddrPort // valid: connected
	readable chan struct{}  // a token: there may be something to read
	writable chan struct{}  // a token: there may be room to write
	closed   chan struct{}
	rd, wd   deadline
}

func (w *waiter) init(s *Stack, network string) {
	w.stack, w.network = s, network
	w.readable, w.writable = make(chan struct{}, 1), make(chan struct{}, 1)
	w.closed = make(chan struct{})
	w.rd.init()
	w.wd.init()
}

// Ready implements reactor.Sink.
func (w *waiter) Ready(_ sockets.Handle, r sockets.Ready) (woke bool) {
	if r&(sockets.In|sockets.RdHup|sockets.Err|sockets.Hup) != 0 {
		woke = token(w.readable)
	}
	if r&(sockets.Out|sockets.Err|sockets.Hup) != 0 {
		woke = token(w.writable) || woke
	}
	return woke
}

// token leaves a token for one waiter, if there is none yet.
func token(ch chan struct{}) bool {
	select {
	case ch <- struct{}{}:
		return true
	default:
		return false
	}
}

// check is what a call must see before it tries: nil, net.ErrClosed or os.ErrDeadlineExceeded.
func (w *waiter) check(d *deadline) error {
	if isClosed(w.closed) {
		return net.ErrClosed
	}
	if d.expired() {
		return os.ErrDeadlineExceeded
	}
	return nil
}

// wait blocks until a token, a Close, the end of the engine, or the deadline; the caller then looks again.
func (w *waiter) wait(tokens chan struct{}, d *deadline) {
	select {
	case <-tokens:
	case <-w.closed:
	case <-w.stack.done:
	case <-d.wait():
	}
}

// endError is what calls return when the engine under the socket is gone.
func (w *waiter) endError() error {
	if err := w.stack.Err(); err != nil {
		return err
	}
	return net.ErrClosed
}

func (w *waiter) addr(a netip.AddrPort) net.Addr {
	if strings.HasPrefix(w.network, "tcp") {
		return net.TCPAddrFromAddrPort(a)
	}
	return net.UDPAddrFromAddrPort(a)
}

// LocalAddr is the socket's own address.
func (w *waiter) LocalAddr() net.Addr { return w.addr(w.local) }

// RemoteAddr is the peer of a connected socket, else nil.
func (w *waiter) RemoteAddr() net.Addr {
	if !w.remote.IsValid() {
		return nil
	}
	return w.addr(w.remote)
}

// SetDeadline sets both deadlines.
func (w *waiter) SetDeadline(t time.Time) error {
	if err := w.SetReadDeadline(t); err != nil {
		return err
	}
	return w.SetWriteDeadline(t)
}

// SetReadDeadline ends reads that wait at t; the zero time is never.
func (w *waiter) SetReadDeadline(t time.Time) error { return w.setDeadline(&w.rd, t) }

// SetWriteDeadline ends writes that wait at t; the zero time is never.
func (w *waiter) SetWriteDeadline(t time.Time) error { return w.setDeadline(&w.wd, t) }

func (w *waiter) setDeadline(d *deadline, t time.Time) error {
	if isClosed(w.closed) {
		return w.fail("set", net.ErrClosed)
	}
	d.set(t)
	return nil
}

// failErrno turns an errno of the stack into what package net would return.
func (w *waiter) failErrno(op string, errno sockets.Errno) error { return w.failCall(op, op, errno) }

// failCall is failErrno for an operation whose system call has another name.
func (w *waiter) failCall(op, call string, errno sockets.Errno) error {
	return w.fail(op, callError(call, errno))
}

// callError is what package net has inside its errors.
func callError(call string, errno sockets.Errno) error {
	if errno == sockets.EBADF {
		return net.ErrClosed
	}
	return os.NewSyscallError(call, errno)
}

// fail is the error that package net would return.
func (w *waiter) fail(op string, err error) error {
	e := &net.OpError{Op: op, Net: w.network, Err: err}
	if w.local.IsValid() {
		e.Source = w.addr(w.local)
	}
	if w.remote.IsValid() {
		e.Addr = w.addr(w.remote)
	}
	return e
}
