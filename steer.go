package xdpd

import (
	"net/netip"
	"sync/atomic"

	"xdpd/proto"
)

// steering is the device's choice of a queue for what it receives, if its driver tells of it.
type steering struct {
	rss  *proto.RSS // nil: not known
	next atomic.Uint32
}

// queue is where the packets of a peer's flow come in; -1: not known.
func (st *steering) queue(transport uint8, local, remote netip.AddrPort) int {
	src, _ := proto.AddrFrom(remote.Addr())
	dst, _ := proto.AddrFrom(local.Addr())
	if src == 0 || dst == 0 {
		return -1
	}
	return st.rss.Queue(transport, src, dst, remote.Port(), local.Port())
}

// turn gives n queues their turns: a number below n.
func (st *steering) turn(n int) int { return int(st.next.Add(1) % uint32(n)) }

// RSSStats says whether the device's choice of queues is known. Whether it is as told, the counters answer_elsewhere say.
type RSSStats struct {
	Known bool
	What  string // the hash and its table, or what is not known
}
