package load

// connects opens a connection for each request, asks once if it is to, and closes it. The response is there when the
// connection is, or its answer; with an orderly end, when the peer has ended.
type connects struct {
	requests
	how string
}

func newConnect(cfg *Config) *connects {
	k := &connects{requests: *newRequests(cfg), how: cfg.Close}
	k.take, k.eof = k.reply, k.ended
	return k
}

func (k *connects) room(c *conn) bool { return c.state == shut }

func (k *connects) opened(w *worker, c *conn) {
	if k.send > 0 {
		k.push(w, c)
	} else {
		k.over(w, c)
	}
}

// reply takes bytes of the answer. Behind it none may come, but from one who is asked nothing.
func (k *connects) reply(w *worker, c *conn, b []byte) Fault {
	if k.send == 0 {
		return ok
	}
	if f := k.check(c, b); f != ok {
		return f
	}
	if c.rcvd == k.recv {
		k.over(w, c)
	}
	return ok
}

// over: what was to be done on the connection is done.
func (k *connects) over(w *worker, c *conn) {
	switch k.how {
	case "reset":
		k.end(w, c)
	case "fin":
		c.state = ending
		w.t.shutdown(c.sock)
	default:
		c.state = ending
	}
}

func (k *connects) end(w *worker, c *conn) {
	w.answer(c)
	w.drop(c, k.how == "reset")
	w.free(c)
}

// ended: the peer has.
func (k *connects) ended(w *worker, c *conn) {
	if c.state == ending {
		k.end(w, c)
	} else {
		w.ended(c)
	}
}
