package load

import "math"

// What follows is called between two events of the worker's loop.

// start begins to connect.
func (w *worker) start() {
	w.now = w.t.clock()
	w.nextTick = w.now
	for i := range w.conns {
		if w.dials {
			break
		}
		w.todo.push(uint32(i))
	}
	w.pump()
}

// measure begins the measurement, or before it the warm-up, with so many requests: what was counted is forgotten, and what is
// under way is counted as begun now.
func (w *worker) measure(quota uint64) {
	w.now = w.t.clock()
	before := w.stats
	w.stats = Stats{Requests: w.inflight, Open: before.Open, Dialled: uint64(w.dialing)}
	if !w.dials { // connections are no requests: what became of them is told from the start
		w.stats.Dialled, w.stats.Opened, w.stats.ConnErrors, w.stats.Lost = before.Dialled, before.Opened, before.ConnErrors, before.Lost
	}
	w.hist.Reset()
	w.live.Reset()
	w.told = false
	w.quota = quota
	first := w.phase == opening
	w.phase = running
	if w.newSch != nil && first {
		w.sched = w.newSch(w.now)
	} else if w.sched != nil {
		w.sched.most = w.sched.backlog()
	}
	if first {
		w.kick()
	}
	w.pump()
}

// kick offers every connection to requests.
func (w *worker) kick() {
	for i := range w.conns {
		if c := &w.conns[i]; w.dials || c.state == open {
			w.free(c)
		}
	}
}

// drain begins no more requests.
func (w *worker) drain() {
	w.now = w.t.clock()
	w.phase, w.told = draining, false
	if w.sched != nil && w.quota > 0 {
		w.sched.advance(w.now)
		w.stats.NotBegun = w.sched.backlog()
		if w.stats.NotBegun > 0 {
			w.stats.NotBegunNS = w.now - w.sched.oldest()
		}
	}
	if w.sched != nil {
		w.stats.MaxBacklog = w.sched.most
	}
	w.stats.window = window{w.stats.Responses, w.stats.SentBytes, w.stats.ReceivedBytes}
	for i := range w.conns {
		if c := &w.conns[i]; c.state == open {
			w.work.drain(w, c)
		}
	}
	w.pump()
}

// closeAll closes all connections. What is still under way was not waited for.
func (w *worker) closeAll() {
	w.phase, w.told, w.looked = closing, false, 0
	w.stats.Unfinished = w.inflight
	w.nextTick = 0
}

// deadline is when tick has something to do.
func (w *worker) deadline() int64 {
	if w.sched != nil && w.phase == running && w.quota > 0 {
		return min(w.nextTick, w.sched.next())
	}
	return w.nextTick
}

// tick does what is due, and now and then looks at what takes too long.
func (w *worker) tick() {
	w.now = w.t.clock()
	if w.now >= w.nextTick {
		w.nextTick = w.now + w.every()
		if w.phase == closing {
			w.closeSome()
		} else {
			w.sweep()
		}
	}
	w.pump()
}

func (w *worker) every() int64 {
	if w.phase == closing {
		return closingTick
	}
	return min(maxTick, int64(w.cfg.Timeout)/8)
}

func (w *worker) closeSome() {
	for range min(closeBatch, len(w.conns)-w.looked) {
		w.drop(&w.conns[w.looked], true)
		w.looked++
	}
}

// sweep fails what takes too long. It looks at a part of the connections each time, so that each is looked at eight times in
// a timeout, however many there are.
func (w *worker) sweep() {
	for range w.failed.n {
		c := &w.conns[w.failed.pop()]
		if c.state != shut || w.dials {
			w.free(c)
		} else {
			w.todo.push(c.id)
		}
	}
	if !w.primed && w.inflight == 0 { // the first request has failed: it is another connection's turn
		w.kick()
	}
	n := len(w.conns)
	if n == 0 {
		return
	}
	part := int64(n)*w.every()*8/int64(w.cfg.Timeout) + 64
	before := w.now - int64(w.cfg.Timeout)
	for range min(int(part), n) {
		if w.looked++; w.looked >= n {
			w.looked = 0
		}
		switch c := &w.conns[w.looked]; {
		case c.state == dialing && c.at < before:
			w.lost(c, TimedOut)
		case c.state == open || c.state == ending:
			w.work.expire(w, c, before)
		}
	}
}

const noQuota = math.MaxUint64
