package reactor

import (
	"xdpd/rings"
	"xdpd/sockets"
)

// verdict is what became of a request that was tried.
type verdict uint8

const (
	done  verdict = iota // request.res and request.cflags are its result
	wait                 // it stays first in its socket's queue, and is tried again when the socket is ready
	again                // as wait, but tried again in the next turn: there was more than one turn may do
	held                 // the operation keeps it, in a heap or list of its own, and ends it with Ring.complete
)

// waitKind says in which queue of its socket a request waits. Requests of one queue are served in order.
type waitKind uint8

const (
	waitNone waitKind = iota
	waitIn            // receive, accept
	waitOut           // send, connect
	waitPoll          // not in order: each looks for itself
)

// operation is what the machine must know of an opcode.
type operation struct {
	// check refuses an SQE that makes no sense, before anything is begun.
	check func(q *Ring, s *rings.SQE) sockets.Errno
	// issue tries the request. It may come to be called more than once.
	issue func(q *Ring, i uint32) verdict
	// cancel undoes what issue began, before the request ends; nil: there is nothing to undo.
	cancel func(q *Ring, i uint32)

	queue    waitKind // of its socket; what it is not first in is not issued
	socket   bool     // FD names a socket, which issue finds in request.sock; else EBADF
	buffers  bool     // may be asked to select a buffer
	ioprio   uint16   // flags that it knows
	instant  bool     // never in flight
	slow     bool     // may take long: what it looks for depends on how many sockets there are
	progress bool     // request.arg[0] is how many bytes were done before it had to wait: cancelled, it tells them
}

// maxSteps bounds what a ring does in a turn beyond its SQEs, of which one may have much as its consequence: a look at a
// request in a search is a step; to begin or to end one, and to fill a buffer, costs as much as some, and to learn that all
// ports are taken as much as a turn may.
const (
	maxSteps    = 64 * 1024
	costRequest = 8
	costPorts   = maxSteps
)

// ops is written by init functions only. An opcode without issue is unknown.
var ops [256]operation

// chain is a list of requests through request.next.
type chain struct {
	head, tail uint32
	n          int
	drain      bool
	broken     bool // was refused: what is still to come of it is cancelled
}

// consume takes SQEs from the SQ, at most max, and starts them. While completions wait behind a full CQ, or a drain for
// what went before it, it takes none: they stay where they are, and the application cannot submit more than the SQ
// holds.
func (q *Ring) consume(limit int) (n int) {
	for n < limit && q.steps < maxSteps && q.mayConsume() {
		idx, got := q.end.SQ.Peek(uint32(min(q.pace.batch(), limit-n)))
		if got == 0 {
			break
		}
		taken := uint32(0)
		for taken < got && q.steps < maxSteps && q.mayConsume() {
			q.taken = q.end.SQ.Read(idx + taken)
			taken++
			q.counters.Submitted++
			q.take(&q.taken)
			q.settle()
		}
		q.end.SQ.Release(taken)
		n += int(taken)
		if q.pace.percent != 0 && q.r.now()-q.now >= sliceNS {
			q.steps = max(q.steps, maxSteps)
		}
	}
	return n
}

func (q *Ring) mayConsume() bool {
	if q.drain && q.used == 0 {
		q.drain = false
	}
	return !q.drain && q.held.head == 0 && (q.backlog.n == 0 || q.flush())
}

// take makes a request of an SQE, a copy that nobody else writes to, and starts the chain that it ends.
func (q *Ring) take(s *rings.SQE) {
	linked := s.Flags&(rings.SQELink|rings.SQEHardLink) != 0
	if q.chain.broken {
		q.refuse(s, sockets.ECANCELED)
		q.chain.broken = linked
		return
	}
	err := q.check(s)
	i := uint32(0)
	if err == 0 {
		if i = q.alloc(ops[s.Opcode].instant && !linked && q.chain.n == 0); i == 0 {
			err = sockets.ENOMEM
		}
	}
	if err != 0 {
		q.cancelChain(q.chain.head, false)
		q.refuse(s, err)
		q.chain = chain{broken: linked}
		return
	}
	q.at(i).sqe = *s
	c := &q.chain
	if c.n++; c.head == 0 {
		c.head = i
	} else {
		q.at(c.tail).next = i
	}
	c.tail = i
	c.drain = c.drain || s.Flags&rings.SQEDrain != 0
	if linked {
		return
	}
	if c.drain {
		q.held = *c
	} else {
		q.append(&q.startQ, onWait, c.head)
	}
	q.chain = chain{}
}

// refuse completes an SQE that has no request.
func (q *Ring) refuse(s *rings.SQE, err sockets.Errno) {
	q.counters.Refused++
	q.counted++
	q.post(rings.CQE{UserData: s.UserData, Res: -int32(err)})
}

// check is io_init_req: what is wrong with an SQE whatever the state of anything.
func (q *Ring) check(s *rings.SQE) sockets.Errno {
	op := &ops[s.Opcode]
	switch {
	case op.issue == nil, s.IOPrio&^op.ioprio != 0, s.Reserved != 0:
		return sockets.EINVAL
	case s.Flags&rings.SQEBufferSelect != 0 && !op.buffers:
		return sockets.EOPNOTSUPP
	}
	if s.Opcode == rings.OpLinkTimeout { // guards the one before it, so there must be one, and no other guard
		if q.chain.head == 0 || q.at(q.chain.tail).sqe.Opcode == rings.OpLinkTimeout {
			return sockets.EINVAL
		}
	}
	if op.check == nil {
		return 0
	}
	return op.check(q, s)
}

// settle starts what may start, until nothing may, or the turn has done enough.
func (q *Ring) settle() {
	for {
		if q.cut = q.steps >= maxSteps; q.cut {
			return
		}
		if i := q.startQ.head; i != 0 {
			q.remove(&q.startQ, onWait, i)
			q.start(i)
		} else if q.held.head != 0 && q.used == q.held.n+q.chain.n {
			i, q.held, q.drain = q.held.head, chain{}, true
			q.start(i)
		} else if !q.satisfyCount() {
			return
		}
	}
}

// start begins a request.
func (q *Ring) start(i uint32) {
	p := q.at(i)
	op := &ops[p.sqe.Opcode]
	q.started++
	q.steps += costRequest
	p.order, p.running = q.started, true
	if op.socket {
		s, ok := q.socks.lookup(p.sqe.FD, p.sqe.Flags&rings.SQEFixedSocket != 0)
		if !ok {
			p.res = -int32(sockets.EBADF)
			q.complete(i)
			return
		}
		p.sock = s + 1
	}
	v := wait
	if op.queue != waitIn && op.queue != waitOut || q.socks.at(p.sock - 1).queues[op.queue].head == 0 {
		v = op.issue(q, i)
	}
	if op.slow && q.pace.percent != 0 && q.r.now()-q.now >= sliceNS {
		q.steps = max(q.steps, maxSteps)
	}
	if v == done {
		q.complete(i)
		return
	}
	q.append(&q.pending, onPending, i)
	q.append(q.bucket(p.sqe.UserData), onUser, i)
	if v != held {
		q.await(i, op.queue)
		if v == again {
			q.markReady(p.sock - 1)
		}
	}
	q.armLinkTimeout(i)
}

// complete ends a request with request.res: its CQE, its LINK_TIMEOUT, its chain.
func (q *Ring) complete(i uint32) {
	p := q.at(i)
	q.steps += costRequest
	q.unlist(i)
	failed := p.res < 0 || p.partial
	if p.sqe.Opcode == rings.OpTimeout && p.res == -int32(sockets.ETIME) && p.sqe.OpFlags&rings.TimeoutEtimeOK != 0 {
		failed = false
	}
	skip := p.sqe.Flags&rings.SQESkipSuccess != 0
	if failed || !skip {
		q.quiet = !failed && p.sqe.Flags&rings.SQEQuiet != 0
		q.post(rings.CQE{UserData: p.sqe.UserData, Res: p.res, Flags: p.cflags})
		q.quiet = false
		if !p.fired() {
			q.counted++
		}
	}
	q.disarmLinkTimeout(i)
	next := p.next
	hard := p.sqe.Flags&rings.SQEHardLink != 0
	q.free(i)
	switch {
	case next == 0:
	case failed && !hard:
		q.cancelChain(next, skip)
	default:
		q.append(&q.startQ, onWait, next)
	}
}

// fired reports whether a timeout ended as timeouts do: such completions are not counted by others (cq_timeouts).
func (p *request) fired() bool {
	return p.sqe.Opcode == rings.OpTimeout && p.res != -int32(sockets.ECANCELED)
}

// unlist takes a request out of everything it may be in.
func (q *Ring) unlist(i uint32) {
	p := q.at(i)
	if p.links[onPending] != (link{}) || q.pending.head == i {
		q.remove(&q.pending, onPending, i)
		q.remove(q.bucket(p.sqe.UserData), onUser, i)
	}
	if p.waits != waitNone {
		q.remove(&q.socks.at(p.sock - 1).queues[p.waits], onWait, i)
		p.waits = waitNone
	}
	q.heapRemove(&q.timers, i)
	q.heapRemove(&q.counts, i)
}

// cancelChain ends requests that were never started. If silent, they say nothing: the one that failed had
// SKIP_SUCCESS, and spoke for all (io_fail_links).
func (q *Ring) cancelChain(i uint32, silent bool) {
	for i != 0 {
		p := q.at(i)
		next := p.next
		if !silent {
			q.counted++
			q.post(rings.CQE{UserData: p.sqe.UserData, Res: -int32(sockets.ECANCELED)})
		}
		q.free(i)
		i = next
	}
}

func init() {
	ops[rings.OpNop] = operation{issue: func(*Ring, uint32) verdict { return done }, instant: true}
}
