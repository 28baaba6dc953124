package xdpd

import (
	"net"
	"time"

	"xdpd/sockets"
)

// defaultKeepAlive is what package net gives connections that nobody asked for something else.
var defaultKeepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 15 * time.Second, Count: 9}

// keepAlive is the configuration as the Host takes it.
func keepAlive(c *net.KeepAliveConfig) sockets.KeepAlive {
	if !c.Enable {
		return sockets.KeepAlive{}
	}
	return sockets.KeepAlive{Idle: int64(c.Idle), Interval: int64(c.Interval), Count: c.Count}
}

// control runs a call of the stack that is named as the system call it stands for.
func (c *TCPConn) control(op, call string, do func(h *sockets.Host, now int64) sockets.Errno) error {
	if c.closed.Load() {
		return c.fail(op, net.ErrClosed)
	}
	h, now, ok := c.r.Enter()
	defer c.r.Leave()
	if !ok {
		return c.fail(op, c.endError())
	}
	if errno := do(h, now); errno != 0 {
		return c.failCall(op, call, errno)
	}
	return nil
}

func (c *TCPConn) set(do func(h *sockets.Host, now int64) sockets.Errno) error {
	return c.control("set", "setsockopt", do)
}

// SetNoDelay sends small segments at once (true, the default) or waits for more while some are not acknowledged (Nagle's
// algorithm).
func (c *TCPConn) SetNoDelay(on bool) error {
	return c.set(func(h *sockets.Host, now int64) sockets.Errno { return h.TCPSetNoDelay(c.s, on, now) })
}

// SetLinger says what Close does with what was not sent yet. sec 0: it is discarded, and the peer sees a reset. Any other
// number: it is delivered after Close, which does not wait for that.
func (c *TCPConn) SetLinger(sec int) error {
	return c.set(func(*sockets.Host, int64) sockets.Errno {
		c.discard.Store(sec == 0)
		return 0
	})
}

// SetKeepAlive turns probes of a silent peer on or off. They are on by default.
func (c *TCPConn) SetKeepAlive(on bool) error {
	return c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: on, Idle: -1, Interval: -1, Count: -1})
}

// SetKeepAlivePeriod says how long the peer must be silent before it is probed. 0: the default of 15 seconds.
func (c *TCPConn) SetKeepAlivePeriod(d time.Duration) error {
	return c.setKeepAlive(func(keep *net.KeepAliveConfig) { choose(&keep.Idle, d, defaultKeepAlive.Idle) })
}

// SetKeepAliveConfig says when a silent peer is probed. A field that is zero takes its default (15 s, 15 s and 9), one
// that is negative stays as it is.
func (c *TCPConn) SetKeepAliveConfig(config net.KeepAliveConfig) error {
	return c.setKeepAlive(func(keep *net.KeepAliveConfig) {
		keep.Enable = config.Enable
		choose(&keep.Idle, config.Idle, defaultKeepAlive.Idle)
		choose(&keep.Interval, config.Interval, defaultKeepAlive.Interval)
		choose(&keep.Count, config.Count, defaultKeepAlive.Count)
	})
}

func (c *TCPConn) setKeepAlive(change func(*net.KeepAliveConfig)) error {
	return c.set(func(h *sockets.Host, now int64) sockets.Errno {
		change(&c.keep)
		return h.TCPSetKeepAlive(c.s, keepAlive(&c.keep), now)
	})
}

// choose sets *v to what is wanted: the default for zero, and what it was for a negative number.
func choose[T int | time.Duration](v *T, want, byDefault T) {
	switch {
	case want == 0:
		*v = byDefault
	case want > 0:
		*v = want
	}
}

// Info tells what there is to know about the connection.
func (c *TCPConn) Info() (info sockets.TCPInfo, err error) {
	err = c.control("get", "getsockopt", func(h *sockets.Host, _ int64) (errno sockets.Errno) {
		info, errno = h.TCPStat(c.s)
		return errno
	})
	return info, err
}
