package sockets

import (
	"net/netip"

	"xdpd/proto"
)

// tcpListener is a listening socket, or one that is only bound; connections that completed their handshake wait in ready.
type tcpListener struct {
	key      flowKey
	gen      uint32
	used     bool
	happened uint8  // packReady of what happened; not 0: an event is queued
	times    uint32 // connections that came since
	open     bool   // listens to the wire
	half     int    // half-open connections
	cookieAt int64  // when a SYN cookie was last sent
	cookieID uint32 // what its cookies are bound to
	ready    connQueue
	account  Account
	behind   bool                     // for what other Hosts pass on
	spread   func(netip.AddrPort) int // chooses the Host of a connection; nil: this one
}

// connQueue is a list of connections linked by tcb.next.
type connQueue struct {
	head, tail uint32
	n          int
}

// TCPListen opens a listener on an address of ours, or on all (zero), and a port, or a free one (zero). Errors:
// EADDRNOTAVAIL, EADDRINUSE.
func (h *Host) TCPListen(local proto.Addr, port uint16) (Handle, Errno) {
	s, errno := h.TCPBind(local, port)
	if errno == 0 {
		h.TCPListenBound(s)
	}
	return s, errno
}

// TCPListenBound has a socket that TCPBind made listen; one that does already goes on. Errors: EBADF.
func (h *Host) TCPListenBound(s Handle) Errno {
	l := h.tcp.listener(s)
	if l == nil {
		return EBADF
	}
	if !l.open {
		l.open = true
		h.tcp.bound.put(l.key, s.index())
		h.tcp.opened++
		l.cookieID = h.tcp.opened
		if d := h.cfg.Directory; d != nil { // an ACK may come in on another queue than its SYN, where another Host listens
			l.cookieID = d.bind(bindKey{proto.ProtoTCP, l.key}, h.cfg.Self)
		}
	}
	return 0
}

// TCPListenBehind opens a listener that accepts only what another Host's listener on the same address and port passes on
// (TCPSpread). Errors as TCPListen; EINVAL for port 0.
func (h *Host) TCPListenBehind(local proto.Addr, port uint16) (Handle, Errno) {
	if port == 0 {
		return 0, EINVAL
	}
	s, errno := h.TCPBind(local, port)
	if errno == 0 {
		l := h.tcp.listener(s)
		l.behind = true
		h.tcp.behind.put(l.key, s.index())
	}
	return s, errno
}

// TCPBind reserves an address and a port as TCPListen does, for a socket that is to listen, or to connect, later. Errors:
// EADDRNOTAVAIL, EADDRINUSE.
func (h *Host) TCPBind(local proto.Addr, port uint16) (Handle, Errno) {
	if local != 0 && !h.isLocal(local) {
		return 0, EADDRNOTAVAIL
	}
	t := &h.tcp
	if port == 0 {
		free := func(p uint16) bool { return t.ports[p] == 0 && !h.portElsewhere(proto.ProtoTCP, local, p) }
		if port = h.ephemeral(proto.ProtoTCP, flowKey{Local: local}, free); port == 0 {
			return 0, EADDRINUSE
		}
	}
	if h.tcpPortUsed(local, port) {
		return 0, EADDRINUSE
	}
	i := len(t.listeners)
	if n := len(t.freeListeners); n > 0 {
		i, t.freeListeners = int(t.freeListeners[n-1]), t.freeListeners[:n-1]
	} else {
		t.listeners = append(t.listeners, tcpListener{})
	}
	l := &t.listeners[i]
	*l = tcpListener{key: flowKey{Local: local, LPort: port}, gen: l.gen + 1, used: true}
	t.ports[port]++
	return makeHandle(kindListener, l.gen, uint32(i)), 0
}

// tcpPortUsed reports whether a listener, or a bound socket, stands in the way of one on local:port.
func (h *Host) tcpPortUsed(local proto.Addr, port uint16) bool {
	if h.tcp.ports[port] == 0 {
		return false
	}
	for i := range h.tcp.listeners {
		l := &h.tcp.listeners[i]
		if l.used && l.key.LPort == port && (local == 0 || l.key.Local == 0 || l.key.Local == local) {
			return true
		}
	}
	return false
}

// TCPAccept takes a connection that completed its handshake. Errors: EAGAIN, EBADF, EINVAL of a socket that does not
// listen.
func (h *Host) TCPAccept(s Handle) (Handle, Errno) {
	l := h.tcp.listener(s)
	if l == nil {
		return 0, EBADF
	}
	switch {
	case !l.open && !l.behind:
		return 0, EINVAL
	case l.ready.n == 0:
		return 0, EAGAIN
	}
	i := l.ready.head
	c := h.tcp.at(i)
	l.ready.head = c.next
	l.ready.n--
	c.embryo = false
	h.count(TCPAccepted)
	return h.tcp.handle(i), 0
}

// acceptPush queues a connection for TCPAccept.
func (h *Host) acceptPush(l *tcpListener, i uint32) {
	if l.ready.n == 0 {
		l.ready.head = i
	} else {
		h.tcp.at(l.ready.tail).next = i
	}
	l.ready.tail = i
	l.ready.n++
}

// tcpCloseListener closes a listener; connections nobody accepted are reset, open or half-open.
func (h *Host) tcpCloseListener(s Handle) Errno {
	l := h.tcp.listener(s)
	if l == nil {
		return EBADF
	}
	switch {
	case l.behind:
		h.tcp.behind.del(l.key)
	case l.open:
		h.tcp.bound.del(l.key)
		if d := h.cfg.Directory; d != nil {
			d.unbind(bindKey{proto.ProtoTCP, l.key}, h.cfg.Self)
		}
	}
	for n, i := l.ready.n, l.ready.head; n > 0; n-- {
		c := h.tcp.at(i)
		next := c.next
		c.embryo, c.orphan = false, true
		h.tcpAbort(i, c)
		i = next
	}
	t := &h.tcp.half
	for n := range t.lists {
		for at := t.lists[n].head; at != 0 && l.half > 0; {
			i := at - 1
			r := t.at(i)
			at = r.link.next
			if r.listener == s.index() {
				h.sendRST(r.key, r.iss+1, r.irs+1, rstAck)
				h.halfFree(i)
			}
		}
	}
	l.used = false
	if l.gen < maxGen {
		h.tcp.freeListeners = append(h.tcp.freeListeners, s.index())
	}
	h.uncharge(l.account)
	if h.tcp.ports[l.key.LPort]--; h.tcp.ports[l.key.LPort] == 0 {
		delete(h.tcp.ports, l.key.LPort)
	}
	return 0
}
