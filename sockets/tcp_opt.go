package sockets

import "syscall"

// TCPSetNoDelay turns Nagle's algorithm off, as it is from the start and in package net, or on. Errors: EBADF.
func (h *Host) TCPSetNoDelay(s Handle, on bool, now int64) Errno {
	h.now = now
	c := h.tcp.get(s)
	if c == nil {
		return EBADF
	}
	c.delay = !on
	h.tcpMark(s.index(), c)
	return 0
}

// TCPSetKeepAlive sets when a silent peer is probed. Errors: EBADF, EINVAL for a negative time or no probes, ENOBUFS
// when more than 250 different settings are in use.
func (h *Host) TCPSetKeepAlive(s Handle, k KeepAlive, now int64) Errno {
	h.now = now
	c := h.tcp.get(s)
	if c == nil {
		return EBADF
	}
	if k.Idle < 0 || k.Idle > 0 && (k.Interval <= 0 || k.Count <= 0 || k.Count > 127) {
		return EINVAL
	}
	if k.Idle == 0 {
		k = KeepAlive{}
	}
	n := -1
	for i, have := range h.tcp.keepAlives {
		if have == k {
			n = i
		}
	}
	if n < 0 {
		if n = len(h.tcp.keepAlives); n > 250 {
			return syscall.ENOBUFS
		}
		h.tcp.keepAlives = append(h.tcp.keepAlives, k)
	}
	c.keepAlive, c.probes = uint8(n), 0
	if c.state == tcpEstablished || c.state == tcpCloseWait {
		c.idleAt = 0
		h.keepAliveArm(s.index(), c)
	}
	return 0
}

// TCPSetCongestion chooses the congestion control: "cubic" or "reno". Errors: EBADF, ENOENT.
func (h *Host) TCPSetCongestion(s Handle, name string) Errno {
	c := h.tcp.get(s)
	switch {
	case c == nil:
		return EBADF
	case name != "cubic" && name != "reno":
		return syscall.ENOENT
	}
	c.reno = name == "reno"
	return 0
}

// TCPSetUserTimeout limits how long sent data may wait for an acknowledgement (RFC 5482), in ns; 0: no such limit.
// Errors: EBADF, EINVAL.
func (h *Host) TCPSetUserTimeout(s Handle, ns int64) Errno {
	c := h.tcp.get(s)
	switch {
	case c == nil:
		return EBADF
	case ns < 0 || ns > 1<<31*1_000_000:
		return EINVAL
	}
	c.userMS = uint32((ns + 999_999) / 1_000_000)
	return 0
}
