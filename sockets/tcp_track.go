package sockets

import "xdpd/proto"

// TCPTrack has PopGone tell when nothing is left of a connection: after its owner closed it, it may have data to send for
// a while, and then TIME-WAIT to spend. Errors: EBADF.
func (h *Host) TCPTrack(s Handle) Errno {
	c := h.tcp.get(s)
	switch {
	case c == nil:
		return EBADF
	case c.state == tcpClosed:
		h.gone = append(h.gone, c.key)
	default:
		c.tracked = true
	}
	return 0
}

// PopGone gives the local end of a tracked connection of which nothing is left, each once.
func (h *Host) PopGone() (local proto.Addr, port uint16, ok bool) {
	n := len(h.gone)
	if n == 0 {
		return 0, 0, false
	}
	k := h.gone[n-1]
	h.gone = h.gone[:n-1]
	return k.Local, k.LPort, true
}
