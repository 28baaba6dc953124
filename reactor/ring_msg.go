package reactor

import (
	"errors"
	"sync"
	"sync/atomic"

	"xdpd/rings"
	"xdpd/sockets"
)

// mailbox is where other rings leave messages. They may be on other reactors, which hold their own lock, so it has one
// of its own, under which nobody takes another. A sender takes room first, which comes back when the message is in the
// CQ: so each message has a place in the CQ or in the backlog.
type mailbox struct {
	room atomic.Int32
	n    atomic.Int32 // in msgs
	mu   sync.Mutex
	msgs []rings.CQE
	busy []rings.CQE // taken last time: the two change places
}

func init() {
	ops[rings.OpMsg] = operation{check: checkMsg, issue: issueMsg, instant: true}
}

// ErrTooManyPeers says that a ring has as many peers as it may.
var ErrTooManyPeers = errors.New("ring: too many peers")

// AddPeer lets q send messages to another ring, or to itself, and gives the number by which MSG names it.
func (q *Ring) AddPeer(peer *Ring) (int32, error) {
	q.r.Enter()
	defer q.r.Leave()
	if len(q.peers) >= maxPeers {
		return 0, ErrTooManyPeers
	}
	q.peers = append(q.peers, peer)
	return int32(len(q.peers) - 1), nil
}

func checkMsg(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.BufGroup != 0 || s.Addr != 0 || s.Addr3 != 0 || s.OpFlags&^rings.MsgFlagsPass != 0 ||
		s.OpFlags&rings.MsgFlagsPass == 0 && s.FileIndex != 0 {
		return sockets.EINVAL
	}
	return 0
}

func issueMsg(q *Ring, i uint32) verdict {
	p := q.at(i)
	s := &p.sqe
	switch {
	case s.FD < 0 || int(s.FD) >= len(q.peers):
		p.res = -int32(sockets.EBADF)
	default:
		p.res = -int32(q.peers[s.FD].leave(rings.CQE{UserData: s.Off, Res: int32(s.Len), Flags: s.FileIndex}))
	}
	return done
}

// leave puts a message into the ring's mailbox. Safe from any goroutine, with any reactor's lock held.
func (q *Ring) leave(c rings.CQE) sockets.Errno {
	m := &q.mail
	if q.closed.Load() {
		return sockets.EBADFD
	}
	if m.room.Add(-1) < 0 {
		m.room.Add(1)
		return sockets.EOVERFLOW
	}
	m.mu.Lock()
	m.msgs = append(m.msgs, c)
	m.n.Store(int32(len(m.msgs)))
	m.mu.Unlock()
	q.r.nudge()
	return 0
}

// takeMail completes the messages that were left.
func (q *Ring) takeMail() bool {
	m := &q.mail
	if m.n.Load() == 0 {
		return false
	}
	m.mu.Lock()
	got := m.msgs
	m.msgs, m.busy = m.busy[:0], got
	m.n.Store(0)
	m.mu.Unlock()
	for _, c := range got {
		q.counted++
		q.put(c, true)
	}
	q.settle()
	return true
}
