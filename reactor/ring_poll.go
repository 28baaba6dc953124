package reactor

import (
	"xdpd/rings"
	"xdpd/sockets"
)

func init() {
	ops[rings.OpPollAdd] = operation{check: checkPollAdd, issue: issuePoll, queue: waitPoll, socket: true}
	ops[rings.OpPollRemove] = operation{check: checkPollRemove, issue: issuePollRemove, instant: true}
}

// pollAlways is IO_POLL_UNMASK: reported whether asked for or not.
const pollAlways = sockets.Err | sockets.Hup | sockets.RdHup

func checkPollAdd(_ *Ring, s *rings.SQE) sockets.Errno {
	multi := s.Len&rings.PollMulti != 0
	if s.Len&^rings.PollMulti != 0 || s.Off != 0 || s.Addr != 0 || s.BufGroup != 0 || s.FileIndex != 0 || s.Addr3 != 0 ||
		multi && s.Flags&rings.SQESkipSuccess != 0 {
		return sockets.EINVAL
	}
	return 0
}

// issuePoll looks whether the socket is ready. A multishot poll says so each time something happened on it.
func issuePoll(q *Ring, i uint32) verdict {
	p := q.at(i)
	ready := q.readiness(p.sock-1) & (sockets.Ready(p.sqe.OpFlags) | pollAlways)
	if ready == 0 || p.sqe.Len&rings.PollMulti != 0 && q.postMore(i, int32(ready), 0) {
		return wait
	}
	p.res = int32(ready)
	return done
}

// readiness is what a socket is ready for; one that is neither connected nor bound is hung up and takes no data, and
// poll(2) says so.
func (q *Ring) readiness(s uint32) sockets.Ready {
	h := q.socks.at(s).h
	if q.socks.at(s).due {
		return 0
	}
	if h == 0 {
		return sockets.Out | sockets.Hup
	}
	ready := q.r.host.Ready(h)
	if q.rates.on {
		ready = q.slowed(s, ready)
	}
	return ready
}

// pollSock has the polls of a socket look.
func (q *Ring) pollSock(s uint32) {
	for i, next := q.socks.at(s).queues[waitPoll].head, uint32(0); i != 0; i = next {
		next = q.at(i).links[onWait].next
		if issuePoll(q, i) == done {
			q.complete(i)
		}
	}
}

func checkPollRemove(_ *Ring, s *rings.SQE) sockets.Errno {
	const known = rings.PollMulti | rings.PollUpdateEvents | rings.PollUpdateUserData
	switch {
	case s.BufGroup != 0, s.FileIndex != 0, s.Addr3 != 0, s.Len&^known != 0, s.Len == rings.PollMulti:
		return sockets.EINVAL
	case s.Len&rings.PollUpdateUserData == 0 && s.Off != 0, s.Len&rings.PollUpdateEvents == 0 && s.OpFlags != 0:
		return sockets.EINVAL
	}
	return 0
}

func issuePollRemove(q *Ring, i uint32) verdict {
	s := &q.at(i).sqe
	poll := q.findUser(s.Addr, rings.OpPollAdd)
	switch {
	case poll == 0:
		q.at(i).res = -int32(sockets.ENOENT)
	case s.Len == 0:
		q.cancelOne(poll)
	default:
		q.updatePoll(poll, s)
	}
	return done
}

// updatePoll changes a poll, and has it look again.
func (q *Ring) updatePoll(i uint32, s *rings.SQE) {
	p := q.at(i)
	if s.Len&rings.PollUpdateEvents != 0 {
		p.sqe.OpFlags = s.OpFlags
	}
	if s.Len&rings.PollUpdateUserData != 0 {
		q.remove(q.bucket(p.sqe.UserData), onUser, i)
		p.sqe.UserData = s.Off
		q.append(q.bucket(p.sqe.UserData), onUser, i)
	}
	if issuePoll(q, i) == done {
		q.complete(i)
	}
}
