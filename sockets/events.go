package sockets

import "slices"

// Ready is a set of readiness conditions with the values of epoll(7).
type Ready uint32

// Readiness conditions.
const (
	In    Ready = 0x001  // data, a connection or an end of stream can be read without waiting
	Pri   Ready = 0x002  // an urgent byte of TCP came and was not read
	Out   Ready = 0x004  // there is room to write
	Err   Ready = 0x008  // an error is pending
	Hup   Ready = 0x010  // both directions are closed
	RdHup Ready = 0x2000 // the peer closed its direction
)

// Event says that something happened on a socket: what the kernel passes to ep_poll_callback as its key.
type Event struct {
	Sock  Handle
	What  Ready // the conditions that it may have changed; what the socket is ready for now, Host.Ready tells
	Times int   // how many datagrams or connections came; 1 for all else
}

// What can happen on a socket. Its conditions are those that Linux's callback wakes with.
const (
	happenedIn    Ready = In | Pri                           // sock_def_readable, which wakes those who wait for Pri too
	happenedOut   Ready = Out                                // sk_stream_write_space
	happenedErr   Ready = Err                                // sk_error_report
	happenedState Ready = In | Pri | Out | Err | Hup | RdHup // sk_state_change: anything, and it wakes all who wait
)

// TakeEvents appends the sockets on which something happened since the last call to buf, each once, and forgets them.
func (h *Host) TakeEvents(buf []Event) []Event {
	for _, s := range h.events {
		what, times := h.eventMark(s)
		if what == nil {
			continue // closed since
		}
		e := Event{s, unpackReady(*what), 1}
		*what &= noSpace
		if times != nil {
			e.Times, *times = int(*times), 0
		}
		buf = append(buf, e)
	}
	h.events = h.events[:0]
	return buf
}

// noSpace stands beside them in a connection's record: a writer was refused, or a poll saw no room, and must hear when there
// is (SOCK_NOSPACE).
const noSpace uint8 = 0x80

// packReady makes conditions fit into a byte of a socket's record.
func packReady(r Ready) uint8 { return uint8(r&0x1f | r>>8) }

func unpackReady(b uint8) Ready { return Ready(b&0x1f) | Ready(b&0x20)<<8 }

// PopClosed gives a socket that its owner closed since it was last asked for: whoever watches it can let go.
func (h *Host) PopClosed() (Handle, bool) {
	n := len(h.closed)
	if n == 0 {
		return 0, false
	}
	s := h.closed[n-1]
	h.closed = h.closed[:n-1]
	return s, true
}

// PendingEvents reports whether TakeEvents has something to give.
func (h *Host) PendingEvents() bool { return len(h.events) > 0 }

// notify queues an event for s, once until it is taken: the list is bounded by the number of sockets.
func (h *Host) notify(s Handle, what Ready) {
	m, times := h.eventMark(s)
	if m == nil {
		return
	}
	if *m&^noSpace == 0 {
		h.events = append(h.events, s)
	}
	*m |= packReady(what)
	if times != nil {
		*times++
	}
}

// eventMark is where it stands what happened on s and, for sockets on which it counts, how often; nil when nobody has s.
func (h *Host) eventMark(s Handle) (what *uint8, times *uint32) {
	switch s.kind() {
	case kindUDP:
		if u := h.udp.get(s); u != nil {
			return &u.happened, &u.times
		}
	case kindListener:
		if l := h.tcp.listener(s); l != nil {
			return &l.happened, &l.times
		}
	case kindTCP:
		if c := h.tcp.get(s); c != nil && !c.embryo {
			return &c.happened, nil
		}
	}
	return nil, nil
}

// Ready tells what s is ready for now; Err|Hup for a handle that names nothing. Who was told that s is not ready for Out
// hears of it when it is (SOCK_NOSPACE).
func (h *Host) Ready(s Handle) Ready {
	switch s.kind() {
	case kindUDP:
		if u := h.udp.get(s); u != nil {
			return h.udpReady(u)
		}
	case kindListener:
		if l := h.tcp.listener(s); l != nil {
			if l.ready.n > 0 {
				return In
			}
			return 0
		}
	case kindTCP:
		if c := h.tcp.get(s); c != nil {
			return h.tcpReady(s.index(), c)
		}
	}
	return Err | Hup
}

// Open reports whether s names a socket that its owner did not close.
func (h *Host) Open(s Handle) bool {
	what, _ := h.eventMark(s)
	return what != nil
}

// udpReady is udp_poll.
func (h *Host) udpReady(u *udpSock) Ready {
	var r Ready
	if u.datagrams > 0 {
		r |= In
	}
	if u.err != 0 {
		r |= Err
	}
	if !u.blocked {
		r |= Out
	}
	return r
}

// UDPTellSent has every datagram that s sends make an event Out, as sock_wfree does: for who waits for edges of it. To all
// others it would be news of nothing, so it is not done by itself. It lasts until s is closed.
func (h *Host) UDPTellSent(s Handle) {
	if u := h.udp.get(s); u != nil {
		u.tellSent = true
	}
}

// tcpReady is tcp_poll.
func (h *Host) tcpReady(i uint32, c *tcb) Ready {
	var r Ready
	if c.state == tcpSynSent || c.state == tcpSynRcvd {
		return 0
	}
	eof := c.rcvFIN || c.rcvShut || c.state == tcpClosed
	if c.rcvBytes > 0 || eof {
		r |= In
	}
	if h.urgentReady(i, c) {
		r |= Pri
	}
	if eof {
		r |= RdHup
	}
	if c.err != 0 {
		r |= Err
	}
	if c.state == tcpClosed || (c.rcvFIN || c.rcvShut) && c.wantFIN {
		r |= Hup
	}
	// Writable only when a third of the buffer is free, or the writer would be woken for every segment acknowledged.
	if c.state == tcpClosed || c.wantFIN || !c.blocked && h.sndRoomy(c) {
		r |= Out
	} else {
		c.happened |= noSpace
	}
	return r
}

// await appends s to a list of those that wait. Before it grows the closed ones leave it, so that it is bounded by the
// number of sockets, however many come and go.
func (h *Host) await(list []Handle, s Handle) []Handle {
	if len(list) == cap(list) {
		list = slices.DeleteFunc(list, func(s Handle) bool { return !h.exists(s) })
		if len(list) > cap(list)/2 {
			list = slices.Grow(list, len(list))
		}
	}
	return append(list, s)
}

// wakeFrame is for those that found no frame to send with. false: free frames are too few for this one.
func (h *Host) wakeFrame(s Handle, free int) bool {
	if !h.exists(s) {
		return true
	}
	if s.kind() == kindTCP {
		h.tcp.at(s.index()).later = false
		h.tcpMark(s.index(), h.tcp.at(s.index()))
		return true
	}
	u := h.udp.get(s)
	if u.need > free {
		return false
	}
	u.blocked = false
	h.notify(s, happenedOut)
	return true
}

// wakeData is for TCP connections that found no frame for their data, or for their FIN.
func (h *Host) wakeData(s Handle) {
	if !h.exists(s) {
		return
	}
	c := h.tcp.at(s.index())
	c.blocked = false
	c.happened &^= noSpace
	if c.wantFIN && !c.finQueued {
		h.tcpMark(s.index(), c)
	}
	h.notify(s, happenedOut)
}
