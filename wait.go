package xdpd

import (
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"xdpd/sockets"
)

// waiter is what every socket of the net face has: goroutines that wait for the reactor, deadlines, and a Close that
// ends all waiting.
type waiter struct {
	stack    *Stack
	network  string // for errors
	local    netip.AddrPort
	remote   netip.AddrPort  // valid: connected
	readable chan struct{}   // a token: there may be something to read
	writable chan struct{}   // a token: there may be room to write
	writers  []chan struct{} // tokens that writers wait for besides
	closed   atomic.Bool
	rd, wd   deadline
	addrs    atomic.Pointer[addrs]
}

// addrs are the two ends as package net names them, made when they are first asked for.
type addrs struct{ local, remote net.Addr }

func (w *waiter) init(s *Stack, network string) {
	w.stack, w.network = s, network
	w.readable, w.writable = make(chan struct{}, 1), make(chan struct{}, 1)
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
	if w.closed.Load() {
		w.wakeAll()
		return net.ErrClosed
	}
	if d.passed.Load() {
		w.wakeAll()
		return os.ErrDeadlineExceeded
	}
	return nil
}

// wakeAll leaves a token for one waiter of each kind. What ends all waiting (a Close, a deadline, the end of the engine)
// is a state that each who wakes sees and passes on in this way, so that waiting is for one channel: a select over what
// may end it costs more than the rest of a read. A token too many makes somebody look in vain.
func (w *waiter) wakeAll() {
	token(w.readable)
	token(w.writable)
	for _, ch := range w.writers {
		token(ch)
	}
}

// endError is what calls return when the engine under the socket is gone, of which its reactor told one waiter.
func (w *waiter) endError() error {
	w.wakeAll()
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

// names gives the addresses, which do not change once the socket is open.
func (w *waiter) names() *addrs {
	a := w.addrs.Load()
	if a == nil {
		a = &addrs{local: w.addr(w.local)}
		if w.remote.IsValid() {
			a.remote = w.addr(w.remote)
		}
		w.addrs.Store(a)
	}
	return a
}

// LocalAddr is the socket's own address.
func (w *waiter) LocalAddr() net.Addr { return w.names().local }

// RemoteAddr is the peer of a connected socket, else nil.
func (w *waiter) RemoteAddr() net.Addr { return w.names().remote }

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
	if w.closed.Load() {
		return w.fail("set", net.ErrClosed)
	}
	d.set(t, w)
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
		e.Source = w.names().local
	}
	if w.remote.IsValid() {
		e.Addr = w.names().remote
	}
	return e
}
