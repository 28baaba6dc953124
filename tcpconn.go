package xdpd

import (
	"io"
	"net"
	"sync"
	"sync/atomic"

	"xdpd/reactor"
	"xdpd/sockets"
)

// TCPConn is a TCP connection on the engine: a net.Conn with the methods of a net.TCPConn. All methods may be called from
// any goroutine at any time. As package net has it by default, segments are sent without Nagle's delay, and a peer that
// is silent for 15 seconds is probed.
type TCPConn struct {
	waiter
	tcpEnd
	writing sync.Mutex          // one Write's bytes stay together
	keep    net.KeepAliveConfig // with the reactor's lock
	discard atomic.Bool         // SetLinger(0)
	once    sync.Once
}

// tcpEnd is the socket on its reactor.
type tcpEnd struct {
	r *reactor.Reactor
	s sockets.Handle
}

var (
	_ net.Conn      = (*TCPConn)(nil)
	_ io.ReaderFrom = (*TCPConn)(nil)
	_ io.WriterTo   = (*TCPConn)(nil)
)

// opened makes ready what the socket is now: a connection. The caller holds the reactor's lock.
func (c *TCPConn) opened(h *sockets.Host, now int64) {
	c.local, c.remote = h.TCPAddr(c.s)
	c.keep = defaultKeepAlive
	h.TCPSetKeepAlive(c.s, keepAlive(&c.keep), now) // a connection that is closed already needs none
}

// Read reads what has arrived, waiting for it if need be; io.EOF behind the peer's last byte.
func (c *TCPConn) Read(b []byte) (int, error) {
	for waited := false; ; waited = true {
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
		if waited && errno != sockets.EAGAIN {
			token(c.readable) // there may be more, or the end of the stream, for the next one who waits
		}
		switch {
		case errno == sockets.EAGAIN:
			<-c.readable
		case errno != 0:
			return 0, c.failErrno("read", errno)
		case n == 0 && len(b) > 0:
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
			<-c.writable
		default:
			return total, c.failErrno("write", errno)
		}
	}
}

// CloseWrite sends FIN behind what was written: the peer reads to the end, and can still send.
func (c *TCPConn) CloseWrite() error {
	return c.control("close", "shutdown", func(h *sockets.Host, now int64) sockets.Errno { return h.TCPShutdown(c.s, now) })
}

// CloseRead ends reading: Read returns io.EOF, also one that waits. What the peer sends is acknowledged and dropped.
func (c *TCPConn) CloseRead() error {
	return c.control("close", "shutdown", func(h *sockets.Host, now int64) sockets.Errno {
		return h.TCPShutdownRead(c.s, now)
	})
}

// Close closes the connection. What was written is still delivered, by the engine; data that nobody read makes the peer
// see a reset, as Linux does.
func (c *TCPConn) Close() error {
	err := c.fail("close", net.ErrClosed)
	c.once.Do(func() {
		c.closed.Store(true)
		c.wakeAll()
		if c.discard.Load() {
			c.abort()
		} else {
			c.tcpEnd.close()
		}
		err = nil
	})
	return err
}

func (e *tcpEnd) close() {
	h, now, ok := e.r.Enter()
	e.r.Watch(e.s, nil)
	if ok {
		h.Close(e.s, now)
	}
	e.r.Leave()
}

// abort closes with a reset.
func (e *tcpEnd) abort() {
	h, now, ok := e.r.Enter()
	e.r.Watch(e.s, nil)
	if ok {
		h.TCPAbort(e.s, now)
	}
	e.r.Leave()
}
