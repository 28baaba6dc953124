package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

// AheadMax is how many packets Ahead looks at in one call. More would not wait for memory at the same time: a core has
// some two dozen lines under way, and a connection takes half a dozen.
const AheadMax = 16

// aheadFrom is how many sockets there must be before it pays: the records of fewer stay in the cache.
const aheadFrom = 2048

// Crowded reports whether the Host has so many sockets that their records are not in the cache when a packet comes.
func (h *Host) Crowded() bool { return h.tcp.flows.n >= aheadFrom || h.udp.flows.n >= aheadFrom }

// aheadFlow is what Ahead knows of a packet.
type aheadFlow struct {
	key  flowKey
	tcp  bool
	hash uint32
	slot *uint64 // where the search for a connection begins
	conn *tcb
	udp  *udpSock
}

// Ahead is told of packets that Input will be given next, AheadMax at most, each of which begins within its chunk. It reads what Input will read: their headers,
// then the slots of the tables where their sockets are found, then the sockets' records, and what hangs on these. Each is
// read for all packets before the next, in loops of little else: loads that do not depend on each other a core waits for
// together, as far as its reorder buffer reaches. Nothing is decided by what is read; Input alone checks the packets, which
// may have become others by then.
func (h *Host) Ahead(next []Piece) {
	var flows [AheadMax]aheadFlow
	next = next[:min(len(next), AheadMax)]
	seen := uint32(0) // what is read must be of use, or a compiler may leave it out
	for _, p := range next {
		seen += uint32(h.pool.Chunk(p.F)[p.Off]) + uint32(h.pool.Buf(p.F).Flags)
	}
	n := 0
	for _, p := range next {
		b := h.pool.Chunk(p.F)[p.Off:]
		if b = b[:min(len(b), int(p.N))]; len(b) <= h.lead {
			continue
		}
		k, ok := proto.PeekFlow(b[h.lead:])
		if !ok {
			continue
		}
		f := &flows[n]
		n++
		f.key = flowKey{Local: k.Dst, Remote: k.Src, LPort: k.DstPort, RPort: k.SrcPort}
		if f.tcp = k.Proto == proto.ProtoTCP; f.tcp {
			f.hash = uint32(h.sec.flow(f.key))
			f.slot = h.tcp.flows.home(f.hash)
		} else {
			seen += h.udp.touch(f.key)
		}
	}
	for i := range flows[:n] {
		if f := &flows[i]; f.tcp {
			seen += uint32(*f.slot)
		}
	}
	for i := range flows[:n] {
		if f := &flows[i]; f.tcp {
			f.conn = h.tcp.guess(f.hash)
		} else if s, ok := h.udp.lookup(f.key); ok {
			f.udp = &h.udp.socks[s]
		}
	}
	for i := range flows[:n] {
		if f := &flows[i]; f.conn != nil {
			seen += f.conn.touch()
		} else if f.udp != nil {
			seen += f.udp.touch()
		}
	}
	for i := range flows[:n] {
		if f := &flows[i]; f.conn != nil {
			seen += h.touchHeld(f.conn)
		}
	}
	h.seen = seen
}

// aheadTimers is Ahead for timers that fire next.
func (h *Host) aheadTimers(owners []uint32) {
	seen := uint32(0)
	for _, o := range owners {
		if o>>28 == timerTCP {
			seen += h.tcp.at(o & (1<<28 - 1)).touch()
		}
	}
	h.seen = seen
}

// home is the slot at which the search for a hash begins.
func (d *demux) home(hash uint32) *uint64 {
	p := d.part(hash)
	return &p.slots[hash&uint32(len(p.slots)-1)]
}

// guess gives the record that a flow with this hash probably has, if that is a connection, and does not read it.
func (t *tcpTable) guess(hash uint32) *tcb {
	p := t.flows.part(hash)
	mask := uint32(len(p.slots) - 1)
	for i := hash & mask; p.slots[i] != 0; i = (i + 1) & mask {
		if s := p.slots[i]; uint32(s>>32) == hash {
			if uint32(s)>>30 == demuxTCB {
				return t.at(uint32(s) & demuxIndexMax)
			}
			break
		}
	}
	return nil
}

// touch reads a word of each line that the record may lie on (TestTouch).
func (c *tcb) touch() uint32 {
	return uint32(c.key.Local) + uint32(c.sndFrames) + c.heardAt + c.ackAt
}

// touch reads a word of each line that the record may lie on (TestTouch).
func (u *udpSock) touch() uint32 { return uint32(u.key.Local) + uint32(u.bytes) }

// touchHeld reads what a segment of the connection needs beside its record.
func (h *Host) touchHeld(c *tcb) (seen uint32) {
	if c.timer != 0 {
		seen += uint32(h.timers.at(c.timer).when)
	}
	if c.rcvTail != umem.None {
		seen += uint32(h.pool.Buf(c.rcvTail).Len)
	}
	if c.sndHead != umem.None {
		seen += uint32(h.pool.Buf(c.sndHead).Len)
	}
	if x := h.activeOf(c); x != nil {
		seen += x.sacked + x.rackXmit + uint32(x.reoAt) + uint32(x.ofoHead) + uint32(x.spaceAt) + uint32(x.restAt)
	}
	return seen
}

// touch reads the slots at which a look-up begins.
func (t *udpTable) touch(k flowKey) (seen uint32) {
	if t.connected > 0 {
		seen += t.flows.touch(k)
	}
	k.Remote, k.RPort = 0, 0
	if t.specific > 0 {
		seen += t.flows.touch(k)
	}
	k.Local = 0
	return seen + t.flows.touch(k)
}

// touch reads the slot at which the search for k begins.
func (t *flat[K]) touch(k K) uint32 { return t.slots[t.hash(k)&uint64(len(t.slots)-1)].val }
