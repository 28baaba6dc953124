package load

import "xdpd/sockets"

// hold opens connections and keeps them. A request is a connection; its response is that it is there at the end. Latency is
// that of the handshake.
type hold struct{}

func (hold) room(c *conn) bool { return c.state == shut && !c.tried }

func (k hold) opened(w *worker, c *conn) {
	w.record(w.starts[c.id])
	if w.phase > running {
		k.drain(w, c)
	}
}

func (hold) push(*worker, *conn) {}

// in reads what nobody asked for, up to the end.
func (hold) in(w *worker, c *conn, _ sockets.Ready) {
	for {
		b, more := w.read(c)
		switch {
		case !more:
			return
		case len(b) == 0:
			w.ended(c)
			return
		}
	}
}

func (hold) expire(*worker, *conn, int64) {}

func (hold) drain(w *worker, c *conn) {
	c.answered++
	w.respond()
}
