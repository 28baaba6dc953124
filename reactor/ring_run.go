package reactor

import (
	"cmp"
	"slices"
)

// forgetNS is how long ago "of late" is, roughly.
const forgetNS = 128_000_000

// What a reactor does for its rings. The lock is held.

// runRings takes what is submitted, serves sockets that became ready, and ends timeouts: in each turn, and in Leave
// when the reactor sleeps. Rings that have much to do share the time of a turn: who was not reached comes earlier in the next one.
func (r *Reactor) runRings(now int64) (worked bool) {
	r.tellFreed()
	last := now
	for i, q := range r.rings {
		if !q.runPaced(now) {
			continue
		}
		worked = true
		if len(r.rings) == 1 {
			break
		}
		t := r.now()
		q.spent += t - last
		if last = t; t-now >= turnNS && i < len(r.rings)-1 {
			r.orderRings(t)
			break
		}
	}
	return worked
}

// orderRings has those come first who took least of late: however many are never done, who has little to do waits for none of them.
func (r *Reactor) orderRings(now int64) {
	if now-r.forgotAt > forgetNS {
		r.forgotAt = now
		for _, q := range r.rings {
			q.spent /= 2
		}
	}
	slices.SortStableFunc(r.rings, func(a, b *Ring) int { return cmp.Compare(a.spent, b.spent) })
}

// runPaced is run for a ring that has its share of the time only. What it may not do yet it does when its time has come.
func (q *Ring) runPaced(now int64) bool {
	if q.pace.percent == 0 {
		return q.run(now)
	}
	if q.pace.wait(now) > now {
		return false
	}
	began := q.r.now()
	worked := q.run(now)
	if worked {
		q.pace.took(q.r.now() - began)
	}
	return worked
}

func (q *Ring) run(now int64) bool {
	q.now, q.steps = now, 0
	if !q.hasWork() && q.deadline() > now {
		return false
	}
	q.flush()
	worked := q.cut
	if q.cut {
		q.settle()
	}
	worked = q.takeMail() || worked
	worked = q.serveReady() || worked
	worked = q.serveSlow() || worked
	for left := budget; ; {
		n := q.consume(left)
		left -= n
		worked = n > 0 || worked
		worked = q.expire() || worked
		worked = q.serveEpolls() || worked
		q.notifyCopied()
		if !q.serve(left) || left == 0 {
			return worked
		}
		worked = true
	}
}

// serve has the handler take completions, at most limit of them, and reports whether there were any.
func (q *Ring) serve(limit int) (worked bool) {
	if q.handler == nil {
		return false
	}
	q.r.handling.Store(q.named)
	defer q.r.handling.Store(nil)
	for limit > 0 {
		q.publish()
		idx, n := q.client.app.CQ.Peek(uint32(min(batch, limit)))
		if n == 0 {
			break
		}
		for k := range n {
			q.handler(q.client.app.CQ.Read(idx + k))
		}
		q.client.app.CQ.Release(n)
		limit -= int(n)
		worked = true
	}
	return worked
}

// publishRings shows the applications what was completed.
func (r *Reactor) publishRings() {
	for _, q := range r.rings {
		r.woke = q.publish() || r.woke
	}
}

// ringWork reports whether a ring has something that only a turn does.
func (r *Reactor) ringWork() bool {
	return slices.ContainsFunc(r.rings, (*Ring).hasWork)
}

// hasWork reports whether there is something that the ring may do now.
func (q *Ring) hasWork() bool {
	return q.work() && (q.pace.percent == 0 || q.pace.left >= 0)
}

func (q *Ring) work() bool {
	waiting := q.backlog.n > 0
	return q.cut || q.readyQ.head != 0 || q.epollDue > 0 || q.mail.n.Load() > 0 || q.staged > 0 || waiting && q.end.CQ.Free() > 0 ||
		!waiting && q.held.head == 0 && (!q.drain || q.used == 0) && q.end.SQ.Avail() > 0 ||
		q.handler != nil && q.client.app.CQ.Avail() > 0
}

// submitted reports whether an application in another process submitted something. It cannot poke a reactor that spins, and would
// wait until the spin is over.
func (r *Reactor) submitted() bool {
	if r.apart.Load() == 0 || !r.mu.TryLock() { // who has the lock looks at the rings
		return false
	}
	defer r.mu.Unlock()
	return r.ringWork()
}

// ringDeadline is when the first timeout ends.
func (r *Reactor) ringDeadline() int64 {
	d := foreverNS
	for _, q := range r.rings {
		d = min(d, q.deadline())
	}
	return d
}

func (q *Ring) deadline() int64 {
	d := foreverNS
	if len(q.timers.reqs) > 0 {
		d = q.at(q.timers.reqs[0]).deadline
	}
	if q.rates.on {
		d = min(d, q.slowDeadline())
	}
	if q.pace.left < 0 { // nothing is done before it may go on, and then what there is
		if again := q.pace.ready(); q.work() || d < again {
			d = again
		}
	}
	return d
}

// ringsNeedWakeup tells the applications whether the reactor sleeps. Once they are told that it does it looks at the rings
// once more, and who submits after that look sees what was told.
func (r *Reactor) ringsNeedWakeup(on bool) {
	for _, q := range r.rings {
		q.end.SQ.SetNeedWakeup(on)
	}
}
