package main

import (
	"encoding/binary"
	"sync/atomic"

	"xdpd/sockets"
)

// serviceCount is what a service on the reactors counts, over all of them.
type serviceCount struct {
	connections, refused, completed, sent, received atomic.Uint64
}

// tcpSource is the service source: the numbers 0, 1, 2 and on as 64-bit words, highest byte first, as fast as the peer
// takes them, for ever or up to a size and then FIN. Unlike chargen's lines no part of it comes twice, so that a reader
// sees at every place which byte of the stream it has. What the peer sends is thrown away.
type tcpSource struct {
	n    *serviceCount
	size uint64 // 0: without end
	at   uint64 // bytes queued so far
	done bool
}

func (*tcpSource) mask() sockets.Ready { return sockets.In | sockets.Out }

func (c *tcpSource) ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, r sockets.Ready) {
	if r&sockets.In != 0 {
		n, errno := h.TCPRead(s, sr.buf[:], now)
		c.n.received.Add(uint64(n))
		if errno != 0 && errno != sockets.EAGAIN || errno == 0 && n == 0 {
			sr.closeConn(h, now, s)
			return
		}
	}
	if r&sockets.Out == 0 || c.done {
		return
	}
	for range 8 { // a bound, so that one connection does not keep the reactor
		b := sourceBytes(sr.buf[:16<<10], c.at)
		if c.size > 0 {
			b = b[:min(uint64(len(b)), c.size-c.at)]
		}
		n, errno := h.TCPWrite(s, b, now)
		c.at += uint64(n)
		c.n.sent.Add(uint64(n))
		switch {
		case errno == sockets.EAGAIN:
			return
		case errno != 0:
			sr.closeConn(h, now, s)
			return
		case c.at == c.size:
			// Closing with bytes unread would reset the connection, and take what is queued from the peer.
			c.done = true
			c.n.completed.Add(1)
			h.TCPShutdown(s, now)
			sr.want(s, sockets.In)
			return
		}
	}
}

// sourceBytes fills b with the stream from byte at on.
func sourceBytes(b []byte, at uint64) []byte {
	skip := int(at % 8)
	b = b[:len(b)&^7]
	for i, word := 0, at/8; i < len(b); i, word = i+8, word+1 {
		binary.BigEndian.PutUint64(b[i:], word)
	}
	return b[skip:]
}
