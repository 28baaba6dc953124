package main

import (
	"math/rand/v2"
	"net/netip"

	"xdpd/sockets"
)

var udpServices = map[string]func() handler{
	"echo":    func() handler { return &udpEcho{} },
	"discard": func() handler { return udpDiscard{} },
	"chargen": func() handler { return udpChargen{} },
}

var tcpServices = map[string]func(*countedService) connHandler{
	"echo":    func(*countedService) connHandler { return &tcpEcho{} },
	"discard": func(*countedService) connHandler { return tcpDiscard{} },
	"chargen": func(*countedService) connHandler { return &tcpChargen{} },
	"hold":    func(*countedService) connHandler { return tcpHold{} },
	"source":  func(c *countedService) connHandler { return &tcpSource{n: &c.n, size: c.Size} },
}

// udpEcho is RFC 862 over UDP. A datagram that cannot be sent back for want of frames waits, and stops reception.
type udpEcho struct {
	pending []byte
	to      netip.AddrPort
	waiting bool
}

func (e *udpEcho) ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, _ sockets.Ready) {
	if e.waiting {
		if h.UDPSend(s, e.pending, e.to, now) == sockets.EAGAIN {
			return
		}
		e.waiting = false
		sr.want(s, sockets.In)
	}
	for range udpBatch {
		d, errno := h.UDPRecv(s, sr.buf[:])
		if errno != 0 {
			return
		}
		if h.UDPSend(s, sr.buf[:d.N], d.Src, now) == sockets.EAGAIN {
			e.pending, e.to, e.waiting = append(e.pending[:0], sr.buf[:d.N]...), d.Src, true
			sr.want(s, sockets.Out)
			return
		}
	}
}

// udpDiscard is RFC 863 over UDP.
type udpDiscard struct{}

func (udpDiscard) ready(sr *serviceReactor, h *sockets.Host, _ int64, s sockets.Handle, _ sockets.Ready) {
	for range udpBatch {
		if _, errno := h.UDPRecv(s, sr.buf[:]); errno != 0 {
			return
		}
	}
}

// chargenPattern is RFC 864's: lines of 72 of the 95 printing characters, each line starting one further.
var chargenPattern = func() []byte {
	var b []byte
	for line := range 95 {
		for i := range 72 {
			b = append(b, byte(' '+(line+i)%95))
		}
		b = append(b, '\r', '\n')
	}
	return b
}()

// udpChargen is RFC 864 over UDP: a datagram of 0 to 512 characters for each received.
type udpChargen struct{}

func (udpChargen) ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, _ sockets.Ready) {
	for range udpBatch {
		d, errno := h.UDPRecv(s, sr.buf[:])
		if errno != 0 {
			return
		}
		h.UDPSend(s, chargenPattern[:rand.IntN(513)], d.Src, now)
	}
}

// tcpEcho is RFC 862: what cannot be sent yet waits, and stops reading.
type tcpEcho struct {
	pending []byte
}

func (*tcpEcho) mask() sockets.Ready { return sockets.In }

func (e *tcpEcho) ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, r sockets.Ready) {
	if r&(sockets.Err|sockets.Hup) != 0 && r&sockets.In == 0 {
		sr.closeConn(h, now, s)
		return
	}
	if len(e.pending) > 0 {
		n, errno := h.TCPWrite(s, e.pending, now)
		if errno != 0 && errno != sockets.EAGAIN {
			sr.closeConn(h, now, s)
			return
		}
		e.pending = e.pending[n:]
		if len(e.pending) > 0 {
			return
		}
		e.pending = nil
		sr.want(s, sockets.In)
	}
	for range 4 { // a bound, so that one connection does not keep the reactor
		n, errno := h.TCPRead(s, sr.buf[:], now)
		if errno == sockets.EAGAIN {
			return
		}
		if n == 0 || errno != 0 {
			sr.closeConn(h, now, s)
			return
		}
		w, errno := h.TCPWrite(s, sr.buf[:n], now)
		if errno != 0 && errno != sockets.EAGAIN {
			sr.closeConn(h, now, s)
			return
		}
		if w < n {
			e.pending = append(e.pending, sr.buf[w:n]...)
			sr.want(s, sockets.Out)
			return
		}
	}
}

// tcpDiscard is RFC 863.
type tcpDiscard struct{}

func (tcpDiscard) mask() sockets.Ready { return sockets.In }

func (tcpDiscard) ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, _ sockets.Ready) {
	for range 4 {
		n, errno := h.TCPRead(s, sr.buf[:], now)
		if errno == sockets.EAGAIN {
			return
		}
		if n == 0 || errno != 0 {
			sr.closeConn(h, now, s)
			return
		}
	}
}

// tcpChargen is RFC 864: characters as fast as the peer takes them; what it sends is thrown away.
type tcpChargen struct {
	at int // position in the pattern
}

func (*tcpChargen) mask() sockets.Ready { return sockets.In | sockets.Out }

func (c *tcpChargen) ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, r sockets.Ready) {
	if r&sockets.In != 0 {
		n, errno := h.TCPRead(s, sr.buf[:], now)
		if errno != 0 && errno != sockets.EAGAIN || errno == 0 && n == 0 {
			sr.closeConn(h, now, s)
			return
		}
	}
	if r&sockets.Out != 0 {
		for range 8 {
			n, errno := h.TCPWrite(s, chargenPattern[c.at:], now)
			c.at = (c.at + n) % len(chargenPattern)
			if errno == sockets.EAGAIN {
				return
			}
			if errno != 0 {
				sr.closeConn(h, now, s)
				return
			}
		}
	}
}

// tcpHold accepts and never reads: the peer sees its window close. It goes when the peer does.
type tcpHold struct{}

func (tcpHold) mask() sockets.Ready { return sockets.RdHup }

func (tcpHold) ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, _ sockets.Ready) {
	sr.closeConn(h, now, s)
}
