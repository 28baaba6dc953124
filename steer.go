package xdpd

import (
	"net/netip"
	"sync/atomic"

	"xdpd/proto"
)

// steering is the device's choice of a queue for what it receives, if its driver tells of it, and what came of believing
// that. A driver may be wrong, and the table may be changed while the engine runs (ethtool -X).
type steering struct {
	rss       *proto.RSS // nil: not known
	next      atomic.Uint32
	row       atomic.Int32 // answers since the last dial that got none
	agreed    atomic.Uint64
	elsewhere atomic.Uint64
}

// enoughAnswers must come in where the hash says, one after the other, before a dial waits for its answer there alone.
// On two queues a hash that is wrong gets as far once in 65536 times.
const enoughAnswers = 16

// queue is where the packets of a peer's flow come in; -1: not known.
func (st *steering) queue(transport uint8, local, remote netip.AddrPort) int {
	src, _ := proto.AddrFrom(remote.Addr())
	dst, _ := proto.AddrFrom(local.Addr())
	if src == 0 || dst == 0 {
		return -1
	}
	return st.rss.Queue(transport, src, dst, remote.Port(), local.Port())
}

// believed reports whether a dial may wait for its answer on one queue alone.
func (st *steering) believed() bool {
	return st.rss.Hashed(proto.ProtoTCP) != 0 && st.elsewhere.Load() == 0 && st.row.Load() >= enoughAnswers
}

// answered takes note of the queue that the answer to a dial came in on.
func (st *steering) answered(local, remote netip.AddrPort, queue int) {
	switch st.queue(proto.ProtoTCP, local, remote) {
	case -1:
	case queue:
		st.agreed.Add(1)
		if st.row.Load() < enoughAnswers {
			st.row.Add(1)
		}
	default:
		st.elsewhere.Add(1)
	}
}

// unanswered takes note of a dial that waited on one queue in vain: perhaps the answer came in on another.
func (st *steering) unanswered() { st.row.Store(0) }

// turn gives the queues their turns: a number below n.
func (st *steering) turn(n int) int { return int(st.next.Add(1) % uint32(n)) }

// RSSStats says whether the device's choice of queues is known, and how many answers to dials came in on the queue that
// it said, and on another: after one of those every dial waits on all queues.
type RSSStats struct {
	Known     bool
	What      string // the hash and its table, or what is not known
	Agreed    uint64
	Elsewhere uint64
}

func (s *Stack) rssStats() RSSStats {
	return RSSStats{
		Known: s.steer.rss != nil, What: s.dev.hash, Agreed: s.steer.agreed.Load(), Elsewhere: s.steer.elsewhere.Load(),
	}
}
