package load

import (
	"bytes"
	"encoding/binary"

	"xdpd/sockets"
)

// bulk sends on each connection as much as it takes, or receives, or both. A request is a stream. Those that send end with FIN,
// and are answered when the peer, who has all then, ends as well. What is verified are the numbers 0, 1, 2 and on as 64-bit
// words, highest byte first, in both directions.
type bulk struct {
	send, recv, verify bool
	quota              uint64 // bytes of a stream; 0: no limit
	out, want          [pieceSize + 16]byte
}

// A stream moves so many pieces before it is another's turn.
const bulkTurns = 16

func newBulk(cfg *Config) *bulk {
	k := &bulk{send: cfg.Direction != "receive", recv: cfg.Direction != "send", verify: cfg.Verify}
	if cfg.Count > 0 {
		n := uint64(cfg.Connections)
		k.quota = (cfg.Count + n - 1) / n
	}
	return k
}

func (k *bulk) room(c *conn) bool { return c.state == open && c.issued == 0 }

func (k *bulk) opened(w *worker, c *conn) { w.free(c) }

func (k *bulk) push(w *worker, c *conn) {
	if !k.send {
		w.t.again(c.sock, c.key()) // the peer may have begun long ago
		return
	}
	for turn := 0; c.state == open; turn++ {
		left := uint64(pieceSize)
		if k.quota > 0 {
			left = min(left, k.quota-c.sent)
		}
		if left == 0 {
			k.fin(w, c)
			return
		}
		b := noise[:left]
		if k.verify {
			b = numbers(&k.out, c.sent, int(left))
		}
		n, err := w.t.write(c.sock, b)
		switch {
		case err == again:
			c.blocked = true
			return
		case err != 0:
			w.lost(c, faultOf(err))
			return
		}
		c.sent += uint64(n)
		c.at = w.now
		w.stats.SentBytes += uint64(n)
		if turn == bulkTurns {
			c.blocked = true
			w.t.again(c.sock, c.key())
			return
		}
	}
}

func (k *bulk) fin(w *worker, c *conn) {
	c.state = ending
	w.t.shutdown(c.sock)
}

func (k *bulk) in(w *worker, c *conn, _ sockets.Ready) {
	if c.issued == 0 {
		return // push will look again
	}
	for turn := 0; ; turn++ {
		b, more := w.read(c)
		switch {
		case !more:
			return
		case len(b) == 0:
			k.eof(w, c)
			return
		case k.recv && k.verify && !bytes.Equal(b, numbers(&k.want, c.rcvd, len(b))):
			w.lost(c, WrongData)
			return
		}
		c.rcvd += uint64(len(b))
		c.at = w.now
		if !k.send && k.quota > 0 && c.rcvd >= k.quota {
			k.end(w, c)
			return
		}
		if turn == bulkTurns {
			w.t.again(c.sock, c.key())
			return
		}
	}
}

// eof: the peer has ended.
func (k *bulk) eof(w *worker, c *conn) {
	switch {
	case k.send && c.state != ending, !k.send && c.rcvd < k.quota, k.send && k.recv && k.verify && c.rcvd != c.sent:
		w.ended(c)
	default:
		k.end(w, c)
	}
}

func (k *bulk) end(w *worker, c *conn) {
	w.answer(c)
	w.drop(c, !k.send)
}

func (k *bulk) expire(w *worker, c *conn, before int64) {
	if c.issued > c.answered && c.at < before {
		w.lost(c, TimedOut)
	}
}

func (k *bulk) drain(w *worker, c *conn) {
	switch {
	case c.issued == 0:
	case k.send:
		k.fin(w, c)
	default:
		k.end(w, c)
	}
}

// numbers is n bytes of the stream of numbers from a position on, made in buf.
func numbers(buf *[pieceSize + 16]byte, at uint64, n int) []byte {
	skip := int(at % 8)
	for i, word := 0, at/8; i < skip+n; i, word = i+8, word+1 {
		binary.BigEndian.PutUint64(buf[i:i+8], word)
	}
	return buf[skip : skip+n]
}
