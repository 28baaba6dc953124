package reactor

import (
	"xdpd/rings"
	"xdpd/sockets"
)

func init() {
	ops[rings.OpCancel] = operation{check: checkCancel, issue: issueCancel, instant: true}
}

const cancelFlags = rings.CancelAll | rings.CancelFD | rings.CancelAny | rings.CancelFixed | rings.CancelUserData | rings.CancelOp

func checkCancel(_ *Ring, s *rings.SQE) sockets.Errno {
	switch {
	case s.Off != 0, s.FileIndex != 0, s.BufGroup != 0, s.Addr3 != 0, s.OpFlags&^cancelFlags != 0:
		return sockets.EINVAL
	case s.OpFlags&rings.CancelAny != 0 && s.OpFlags&(rings.CancelFD|rings.CancelOp) != 0:
		return sockets.EINVAL
	}
	return 0
}

func issueCancel(q *Ring, i uint32) verdict {
	s := &q.at(i).sqe
	sock := uint32(0) // index+1
	if s.OpFlags&rings.CancelFD != 0 {
		k, ok := q.socks.lookup(s.FD, s.Flags&rings.SQEFixedSocket != 0 || s.OpFlags&rings.CancelFixed != 0)
		if !ok {
			q.at(i).res = -int32(sockets.EBADF)
			return done
		}
		sock = k + 1
	}
	q.at(i).res = q.cancelMatching(s, sock)
	return done
}

// cancelMatching is __io_async_cancel: of one request, 0 or -ENOENT; of all, how many.
func (q *Ring) cancelMatching(s *rings.SQE, sock uint32) (res int32) {
	all := s.OpFlags&(rings.CancelAll|rings.CancelAny) != 0
	byUser := s.OpFlags&rings.CancelAny == 0 && (s.OpFlags&rings.CancelUserData != 0 || s.OpFlags&(rings.CancelFD|rings.CancelOp) == 0)
	from, kind := q.pending.head, onPending
	if byUser {
		from, kind = q.bucket(s.Addr).head, onUser
	}
	for next := uint32(0); from != 0; from = next {
		p := q.at(from)
		next = p.links[kind].next // completing a request takes no other one out of these lists
		q.steps++
		switch {
		case byUser && p.sqe.UserData != s.Addr:
		case sock != 0 && p.sock != sock:
		case s.OpFlags&rings.CancelOp != 0 && uint32(p.sqe.Opcode) != s.Len:
		default:
			q.cancelOne(from)
			if !all {
				return 0
			}
			res++
		}
	}
	if !all {
		return -int32(sockets.ENOENT)
	}
	return res
}

// cancelOne cancels a request that was started. It is never too late: what was done of it is told.
func (q *Ring) cancelOne(i uint32) {
	if undo := ops[q.at(i).sqe.Opcode].cancel; undo != nil {
		undo(q, i)
	}
	q.canceled(i)
}

// canceled ends a request with ECANCELED, or with what was done of it (io_sendrecv_fail). A buffer that it took is named
// in any case.
func (q *Ring) canceled(i uint32) {
	p := q.at(i)
	p.res = -int32(sockets.ECANCELED)
	if !ops[p.sqe.Opcode].progress {
		p.cflags = 0
	} else if p.arg[0] > 0 {
		p.res, p.partial = int32(p.arg[0]), true
	}
	q.complete(i)
}

// findUser gives the oldest request of that opcode with that user data, or 0.
func (q *Ring) findUser(user uint64, op rings.Op) uint32 {
	for i := q.bucket(user).head; i != 0; i = q.at(i).links[onUser].next {
		q.steps++
		if p := q.at(i); p.sqe.UserData == user && p.sqe.Opcode == op {
			return i
		}
	}
	return 0
}

// cancelEverything ends what was started and what was not.
func (q *Ring) cancelEverything() {
	q.cancelMatching(&rings.SQE{OpFlags: rings.CancelAny}, 0)
	for q.startQ.head != 0 { // behind hard links
		i := q.startQ.head
		q.remove(&q.startQ, onWait, i)
		q.cancelChain(i, false)
	}
	q.cancelChain(q.held.head, false)
	q.cancelChain(q.chain.head, false)
	q.held, q.chain = chain{}, chain{}
}
