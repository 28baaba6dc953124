package load

import (
	"bytes"

	"xdpd/sockets"
)

// datagrams sends datagrams and waits for their answers, in any order. Where they are verified a datagram begins with its
// number, lowest byte first and as much of it as fits, and goes on with noise: the answer begins with the number, and if it is
// as long as the request, is the same.
type datagrams struct {
	depth, stride uint64 // stride: a power of two, so that a number cut off still tells the slot
	send, recv    int
	number        int // bytes of it
	verify        bool
	slots         []slot // depth for each connection
	out           [maxDatagram]byte
}

// slot is a datagram under way.
type slot struct {
	number      uint64
	start, sent int64 // sent 0: free
}

func newDatagrams(cfg *Config, conns int) *datagrams {
	d := &datagrams{
		depth: uint64(cfg.Depth), stride: 1, send: cfg.Send, recv: cfg.Receive, number: cfg.numberSize(), verify: cfg.Verify,
		slots: make([]slot, conns*cfg.Depth),
	}
	for d.stride < d.depth {
		d.stride *= 2
	}
	for i := range d.slots {
		d.slots[i].number = uint64(i) % d.depth
	}
	return d
}

func (d *datagrams) of(c *conn) []slot {
	return d.slots[uint64(c.id)*d.depth:][:d.depth]
}

func (d *datagrams) room(c *conn) bool { return c.state == open && c.issued-c.answered < d.depth }

func (d *datagrams) opened(w *worker, c *conn) { w.free(c) }

// push sends a datagram for each request that was begun and has none.
func (d *datagrams) push(w *worker, c *conn) {
	slots := d.of(c)
	for next := c.issued % d.depth; c.sent < c.issued; c.sent++ {
		for slots[next].sent != 0 {
			next = (next + 1) % d.depth
		}
		s := &slots[next]
		s.number += d.stride
		s.start, s.sent = w.starts[uint64(c.id)*d.depth+c.sent%d.depth], w.now
		if _, err := w.t.write(c.sock, d.request(c, s.number)); err != 0 {
			d.failed(w, c, s, faultOf(err))
			continue
		}
		w.stats.SentBytes += uint64(d.send)
	}
}

// request is the datagram of a number.
func (d *datagrams) request(c *conn, number uint64) []byte {
	b := d.out[:d.send]
	copy(b, noiseAt(c.id, number*61, d.send))
	for i := range d.number {
		b[i] = byte(number >> (8 * i))
	}
	return b
}

// failed ends a request. The connection waits for the next tick, for what is in the way of one is so for all.
func (d *datagrams) failed(w *worker, c *conn, s *slot, f Fault) {
	s.sent = 0
	c.answered++
	w.fail(f, 1)
	w.failed.push(c.id)
}

func (d *datagrams) in(w *worker, c *conn, _ sockets.Ready) {
	for {
		n, err := w.t.read(c.sock, w.buf[:])
		if err == again {
			break
		}
		if err != 0 { // ICMP, about one of them
			if s := d.oldest(c); s != nil {
				d.failed(w, c, s, faultOf(err))
				continue
			}
			break
		}
		w.stats.ReceivedBytes += uint64(n)
		s := d.match(c, w.buf[:n])
		if s == nil {
			w.stats.Unmatched++
			continue
		}
		if !d.right(c, s, w.buf[:n]) {
			d.failed(w, c, s, WrongData)
			continue
		}
		w.record(s.start)
		s.sent = 0
		c.answered++
		w.respond()
		if !w.primed {
			w.primed = true
			w.kick()
		}
	}
	if !w.failed.in[c.id] {
		w.free(c)
	}
}

// match finds whose answer it is.
func (d *datagrams) match(c *conn, b []byte) *slot {
	if !d.verify {
		return d.oldest(c)
	}
	if len(b) < d.number {
		return nil
	}
	number := uint64(0)
	for i := range d.number {
		number |= uint64(b[i]) << (8 * i)
	}
	i := number % d.stride
	if i >= d.depth {
		return nil
	}
	s := &d.of(c)[i]
	if s.sent == 0 || (s.number^number)<<(64-8*d.number) != 0 {
		return nil
	}
	return s
}

func (d *datagrams) right(c *conn, s *slot, b []byte) bool {
	return len(b) == d.recv && (!d.verify || d.send != d.recv || bytes.Equal(b, d.request(c, s.number)))
}

func (d *datagrams) oldest(c *conn) (first *slot) {
	slots := d.of(c)
	for i := range slots {
		if s := &slots[i]; s.sent != 0 && (first == nil || s.sent < first.sent) {
			first = s
		}
	}
	return first
}

func (d *datagrams) expire(w *worker, c *conn, before int64) {
	if c.issued == c.answered {
		return
	}
	late := false
	slots := d.of(c)
	for i := range slots {
		if s := &slots[i]; s.sent != 0 && s.sent < before {
			s.sent = 0
			c.answered++
			w.fail(TimedOut, 1)
			late = true
		}
	}
	if late {
		w.free(c)
	}
}

func (d *datagrams) drain(*worker, *conn) {}
