package sockets

import (
	"slices"
	"syscall"
)

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
// when more than 255 different settings are in use.
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
	set := h.tcp.settings[c.setting]
	set.KeepAlive = k
	if !h.tcpSet(c, set) {
		return syscall.ENOBUFS
	}
	c.probes = 0
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
// Errors: EBADF, EINVAL, ENOBUFS.
func (h *Host) TCPSetUserTimeout(s Handle, ns int64) Errno {
	c := h.tcp.get(s)
	switch {
	case c == nil:
		return EBADF
	case ns < 0 || ns > (1<<31-1)*1_000_000: // more than the timer's difference of milliseconds can say
		return EINVAL
	}
	set := h.tcp.settings[c.setting]
	set.userMS = uint32((ns + 999_999) / 1_000_000)
	if !h.tcpSet(c, set) {
		return syscall.ENOBUFS
	}
	if c.state != tcpClosed {
		h.userClamp(c)
		h.tcpArm(s.index(), c)
	}
	return 0
}

// tcpSetting is what few connections have an opinion on.
type tcpSetting struct {
	KeepAlive
	userMS uint32 // RFC 5482 user timeout; 0: none
}

// tcpSet gives a connection its settings. false: more different ones are in use than a byte can number.
func (h *Host) tcpSet(c *tcb, set tcpSetting) bool {
	t := &h.tcp
	n := slices.Index(t.settings, set)
	if n < 0 {
		t.setBy[c.setting]-- // what nobody else has is free
		n = 1 + slices.Index(t.setBy[1:], 0)
		t.setBy[c.setting]++
		switch {
		case n == 0:
			return false
		case n == len(t.settings): // without a gap: the first that is free
			t.settings = append(t.settings, set)
		default:
			t.settings[n] = set
		}
	}
	t.setBy[c.setting]--
	t.setBy[n]++
	c.setting = uint8(n)
	return true
}
