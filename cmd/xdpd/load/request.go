package load

import (
	"bytes"
	"math/rand/v2"

	"xdpd/sockets"
)

// noise is what requests are made of: a place in it differs from the places around, and with noisePeriod prime, from the same
// place in every other request and on every other connection.
const noisePeriod = 65521

var noise = func() []byte {
	b := make([]byte, noisePeriod+pieceSize)
	rng := rand.NewChaCha8([32]byte{'l', 'o', 'a', 'd'})
	_, _ = rng.Read(b[:noisePeriod]) // never fails
	copy(b[noisePeriod:], b)
	return b
}()

// noiseAt is n bytes of the noise of a connection's stream, from a position on.
func noiseAt(id uint32, at uint64, n int) []byte {
	return noise[(at+uint64(id)*7919)%noisePeriod:][:n]
}

// requests sends requests of a fixed size back to back on each connection, and reads responses of a fixed size.
type requests struct {
	depth      uint64
	send, recv uint64 // bytes of each
	verify     bool
	text       []byte                                   // the stream of requests, over and over, if it is not noise
	take       func(w *worker, c *conn, b []byte) Fault // and frees c, if it goes on
	eof        func(w *worker, c *conn)
}

func newRequests(cfg *Config) *requests {
	q := &requests{depth: uint64(cfg.Depth), send: uint64(cfg.Send), recv: uint64(cfg.Receive), verify: cfg.Verify}
	q.take, q.eof = q.fixed, (*worker).ended
	return q
}

func (q *requests) room(c *conn) bool { return c.state == open && c.issued-c.answered < q.depth }

func (q *requests) opened(w *worker, c *conn) { w.free(c) }

// piece is what to send next, at most n bytes.
func (q *requests) piece(c *conn, n uint64) []byte {
	n = min(n, pieceSize)
	if q.text == nil {
		return noiseAt(c.id, c.sent, int(n))
	}
	b := q.text[c.sent%q.send:]
	return b[:min(n, uint64(len(b)))]
}

func (q *requests) push(w *worker, c *conn) {
	for !c.blocked {
		left := c.issued*q.send - c.sent
		if left == 0 {
			return
		}
		n, err := w.t.write(c.sock, q.piece(c, left))
		if err == again {
			c.blocked = true
			return
		}
		if err != 0 {
			w.lost(c, faultOf(err))
			return
		}
		c.sent += uint64(n)
		w.stats.SentBytes += uint64(n)
	}
}

const again = sockets.EAGAIN

func (q *requests) in(w *worker, c *conn, r sockets.Ready) {
	all := r&(sockets.RdHup|sockets.Hup|sockets.Err) != 0
	for gen := c.gen; c.gen == gen; {
		b, more := w.read(c)
		switch {
		case !more:
			return
		case len(b) == 0:
			q.eof(w, c)
			return
		}
		if f := q.take(w, c, b); f != ok {
			w.lost(c, f)
			return
		}
		if len(b) < len(w.buf) && !all {
			return // what was read short of the buffer was all
		}
	}
}

// check takes bytes of responses of a fixed size.
func (q *requests) check(c *conn, b []byte) Fault {
	switch {
	case q.verify && !bytes.Equal(b, noiseAt(c.id, c.rcvd, len(b))), c.rcvd+uint64(len(b)) > c.issued*q.recv:
		return WrongData
	}
	c.rcvd += uint64(len(b))
	return ok
}

func (q *requests) fixed(w *worker, c *conn, b []byte) Fault {
	f := q.check(c, b)
	for f == ok && c.rcvd >= (c.answered+1)*q.recv {
		w.answer(c)
	}
	if f == ok {
		w.free(c)
	}
	return f
}

func (q *requests) expire(w *worker, c *conn, before int64) {
	if c.issued > c.answered && c.at < before {
		w.lost(c, TimedOut)
	}
}

func (q *requests) drain(*worker, *conn) {}
