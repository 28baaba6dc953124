package reactor

import (
	"xdpd/rings"
	"xdpd/sockets"
)

// reqHeap is a binary heap of requests by a number of theirs; those that have the same come out in the order in which
// they were started.
type reqHeap struct {
	kind int
	reqs []uint32
}

// The heaps a request can be in.
const (
	byDeadline = iota // Ring.timers
	byCount           // Ring.counts
	heapKinds
)

func (q *Ring) before(kind int, a, b uint32) bool {
	x, y := q.at(a), q.at(b)
	if kind == byDeadline && x.deadline != y.deadline {
		return x.deadline < y.deadline
	}
	if kind == byCount && x.count != y.count {
		return x.count < y.count
	}
	return x.order < y.order
}

func (q *Ring) heapPush(h *reqHeap, i uint32) {
	h.reqs = append(h.reqs, i)
	q.heapUp(h, len(h.reqs)-1)
}

func (q *Ring) heapUp(h *reqHeap, at int) {
	i := h.reqs[at]
	for at > 0 {
		parent := (at - 1) / 2
		if !q.before(h.kind, i, h.reqs[parent]) {
			break
		}
		h.reqs[at] = h.reqs[parent]
		q.at(h.reqs[at]).heapPos[h.kind] = uint32(at + 1)
		at = parent
	}
	h.reqs[at] = i
	q.at(i).heapPos[h.kind] = uint32(at + 1)
}

func (q *Ring) heapDown(h *reqHeap, at int) {
	i := h.reqs[at]
	for {
		child := 2*at + 1
		if child >= len(h.reqs) {
			break
		}
		if child+1 < len(h.reqs) && q.before(h.kind, h.reqs[child+1], h.reqs[child]) {
			child++
		}
		if !q.before(h.kind, h.reqs[child], i) {
			break
		}
		h.reqs[at] = h.reqs[child]
		q.at(h.reqs[at]).heapPos[h.kind] = uint32(at + 1)
		at = child
	}
	h.reqs[at] = i
	q.at(i).heapPos[h.kind] = uint32(at + 1)
}

// heapRemove takes a request out, if it is in.
func (q *Ring) heapRemove(h *reqHeap, i uint32) {
	pos := q.at(i).heapPos[h.kind]
	if pos == 0 {
		return
	}
	q.at(i).heapPos[h.kind] = 0
	at, last := int(pos-1), len(h.reqs)-1
	moved := h.reqs[last]
	h.reqs = h.reqs[:last]
	if at == last {
		return
	}
	h.reqs[at] = moved
	q.heapDown(h, at)
	q.heapUp(h, int(q.at(moved).heapPos[h.kind]-1))
}

func init() {
	ops[rings.OpTimeout] = operation{check: checkTimeout, issue: issueTimeout}
	ops[rings.OpLinkTimeout] = operation{check: checkLinkTimeout, issue: func(*Ring, uint32) verdict { panic("reactor: a LINK_TIMEOUT alone") }}
	ops[rings.OpTimeoutRemove] = operation{check: checkTimeoutRemove, issue: issueTimeoutRemove, instant: true}
}

const timeoutFlags = rings.TimeoutAbs | rings.TimeoutEtimeOK | rings.TimeoutMultishot

func checkTimeout(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.Len != 0 || s.BufGroup != 0 || s.FileIndex != 0 || s.Addr3 != 0 || s.OpFlags&^timeoutFlags != 0 ||
		s.Addr > rings.MaxTimeout || s.Off > 1<<32-1 || s.OpFlags&(rings.TimeoutMultishot|rings.TimeoutAbs) == rings.TimeoutMultishot|rings.TimeoutAbs {
		return sockets.EINVAL
	}
	return 0
}

func checkLinkTimeout(q *Ring, s *rings.SQE) sockets.Errno {
	if s.Off != 0 || s.OpFlags&^rings.TimeoutAbs != 0 {
		return sockets.EINVAL
	}
	return checkTimeout(q, s)
}

// expiry is when a timeout of ns ends.
func (q *Ring) expiry(ns uint64, flags uint32) int64 {
	if flags&rings.TimeoutAbs != 0 {
		return int64(ns)
	}
	return min(q.now+int64(ns), foreverNS)
}

func issueTimeout(q *Ring, i uint32) verdict {
	p := q.at(i)
	p.deadline = q.expiry(p.sqe.Addr, p.sqe.OpFlags)
	q.heapPush(&q.timers, i)
	if p.sqe.Off > 0 && p.sqe.OpFlags&rings.TimeoutMultishot == 0 {
		p.count = q.counted + p.sqe.Off
		q.heapPush(&q.counts, i)
	}
	return held
}

// satisfyCount ends one timeout that waited for as many completions as there were, and reports whether there was one.
func (q *Ring) satisfyCount() bool {
	if len(q.counts.reqs) == 0 {
		return false
	}
	i := q.counts.reqs[0]
	if q.at(i).count > q.counted {
		return false
	}
	q.at(i).res = 0
	q.complete(i)
	return true
}

// expire ends the timeouts whose time has come. now is the turn's: one that is set anew comes in a later one.
func (q *Ring) expire() (worked bool) {
	for len(q.timers.reqs) > 0 && q.steps < maxSteps {
		i := q.timers.reqs[0]
		p := q.at(i)
		if p.deadline > q.now {
			break
		}
		worked = true
		switch {
		case p.sqe.Opcode == rings.OpLinkTimeout:
			q.expireLink(i)
		case p.sqe.OpFlags&rings.TimeoutMultishot != 0 && p.sqe.Off != 1 && q.postMore(i, -int32(sockets.ETIME), 0):
			p.sqe.Off = max(p.sqe.Off, 1) - 1 // 0: for ever
			q.heapRemove(&q.timers, i)
			p.deadline = min(q.now+max(int64(p.sqe.Addr), 1), foreverNS)
			q.heapPush(&q.timers, i)
		default:
			p.res = -int32(sockets.ETIME)
			q.complete(i)
		}
		q.settle()
	}
	return worked
}

// armLinkTimeout starts the LINK_TIMEOUT that follows a request which was started and is not done.
func (q *Ring) armLinkTimeout(i uint32) {
	p := q.at(i)
	l := p.next
	if l == 0 || q.at(l).sqe.Opcode != rings.OpLinkTimeout {
		return
	}
	t := q.at(l)
	p.next, t.next = t.next, 0
	p.timeout, t.timeout = l, i
	q.started++
	t.order, t.running = q.started, true
	t.deadline = q.expiry(t.sqe.Addr, t.sqe.OpFlags)
	q.heapPush(&q.timers, l)
}

// disarmLinkTimeout ends the LINK_TIMEOUT of a request that is done.
func (q *Ring) disarmLinkTimeout(i uint32) {
	p := q.at(i)
	l := p.timeout
	if l == 0 {
		if l = p.next; l == 0 || q.at(l).sqe.Opcode != rings.OpLinkTimeout {
			return
		}
		p.next = q.at(l).next
	}
	p.timeout = 0
	q.heapRemove(&q.timers, l)
	q.endLink(l, sockets.ECANCELED)
}

// endLink completes a LINK_TIMEOUT. It has failed by no means, so SKIP_SUCCESS silences it (io_req_task_link_timeout).
func (q *Ring) endLink(l uint32, err sockets.Errno) {
	t := q.at(l)
	if t.sqe.Flags&rings.SQESkipSuccess == 0 {
		q.counted++
		q.post(rings.CQE{UserData: t.sqe.UserData, Res: -int32(err)})
	}
	q.free(l)
}

// expireLink cancels what a LINK_TIMEOUT guards.
func (q *Ring) expireLink(l uint32) {
	t := q.at(l)
	i := t.timeout
	q.heapRemove(&q.timers, l)
	q.at(i).timeout = 0
	q.endLink(l, sockets.ETIME)
	q.cancelOne(i)
}

func checkTimeoutRemove(_ *Ring, s *rings.SQE) sockets.Errno {
	const update = rings.TimeoutUpdate | rings.LinkTimeoutUpdate
	switch {
	case s.Flags&rings.SQEFixedSocket != 0, s.Len != 0, s.BufGroup != 0, s.FileIndex != 0, s.Addr3 != 0, s.Off > rings.MaxTimeout:
		return sockets.EINVAL
	case s.OpFlags&update == 0 && (s.OpFlags != 0 || s.Off != 0):
		return sockets.EINVAL
	case s.OpFlags&^(update|rings.TimeoutAbs) != 0:
		return sockets.EINVAL
	}
	return 0
}

func issueTimeoutRemove(q *Ring, i uint32) verdict {
	p := q.at(i)
	p.res = -int32(q.timeoutRemove(&p.sqe))
	return done
}

func (q *Ring) timeoutRemove(s *rings.SQE) sockets.Errno {
	if s.OpFlags&rings.LinkTimeoutUpdate != 0 {
		return q.updateLinkTimeout(s)
	}
	i := q.findUser(s.Addr, rings.OpTimeout)
	if i == 0 {
		return sockets.ENOENT
	}
	if s.OpFlags == 0 {
		q.cancelOne(i)
		return 0
	}
	p := q.at(i)
	q.heapRemove(&q.counts, i)
	q.heapRemove(&q.timers, i)
	p.sqe.Off, p.sqe.Addr = 0, s.Off // as in io_uring, it waits for no completions any more, and repeats for ever
	p.deadline = q.expiry(s.Off, s.OpFlags)
	q.heapPush(&q.timers, i)
	return 0
}

func (q *Ring) updateLinkTimeout(s *rings.SQE) sockets.Errno {
	for i := q.pending.head; i != 0; i = q.at(i).links[onPending].next {
		q.steps++
		l := q.at(i).timeout
		if l == 0 || q.at(l).sqe.UserData != s.Addr {
			continue
		}
		q.heapRemove(&q.timers, l)
		q.at(l).deadline = q.expiry(s.Off, s.OpFlags)
		q.heapPush(&q.timers, l)
		return 0
	}
	return sockets.ENOENT
}
