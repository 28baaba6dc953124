package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

// ofoInput keeps a segment that came before its turn (tcp_data_queue_ofo). Where it overlaps what is there already, what
// is there stays: bytes that were SACKed do not change.
func (h *Host) ofoInput(i uint32, c *tcb, s *segment) {
	x := h.moving(i, c)
	h.count(TCPOutOfOrderHeld)
	a := h.connAccount(i)
	if x.ofoFrames >= ofoLimit(c) || h.rxUsed >= h.rxLimit/2 || a != 0 && h.accounts.list[a].RX >= h.rxRoom(a)/2 {
		h.drop(s.packet, TCPOutOfOrder)
		return
	}
	if !h.holdFor(a, s.packet) {
		return
	}
	from, to := s.seq, s.seq+uint32(s.data)
	var dup [2]uint32
	seq := s.seq
	for f := s.f; f != umem.None; {
		b := h.pool.Buf(f)
		next := b.Next
		b.Seq = seq
		seq += uint32(b.Len)
		b.Flags = 0
		if s.fin && next == umem.None {
			b.Flags = bufFIN
		}
		if d := h.ofoInsert(x, f); dup[0] == dup[1] {
			dup = d
		}
		f = next
	}
	if c.sackOK && s.data > 0 {
		if dup[0] != dup[1] {
			h.dsackNote(i, c, dup[0], dup[1])
		}
		x.sackNote(h, from, to)
	}
}

// ofoLimit is how many frames of a connection may wait out of order: a window of full segments fits, but single bytes do
// not hold a frame each without end, nor make every insertion a long search.
func ofoLimit(c *tcb) uint32 { return min(ofoMax, c.rcvBuf/ofoFrameBytes) }

// ofoInsert puts a held frame in its place and gives the first of its bytes that were there before.
func (h *Host) ofoInsert(x *active, f umem.Frame) (dup [2]uint32) {
	b := h.pool.Buf(f)
	prev := umem.None
	if x.ofoTail != umem.None && seqLE(h.pool.Buf(x.ofoTail).Seq, b.Seq) {
		prev = x.ofoTail // most come in order behind one gap
	} else {
		g := x.ofoHead
		if x.ofoLast != umem.None && seqLE(h.pool.Buf(x.ofoLast).Seq, b.Seq) {
			g = x.ofoLast // or, where a gap is filled from its front, behind the one before
		}
		for ; g != umem.None && seqLE(h.pool.Buf(g).Seq, b.Seq); g = h.pool.Buf(g).Next {
			prev = g
		}
	}
	end := b.Seq + uint32(b.Len)
	next := x.ofoHead
	if prev != umem.None {
		p := h.pool.Buf(prev)
		next = p.Next
		if k := int32(p.Seq + uint32(p.Len) - b.Seq); k > 0 {
			dup = [2]uint32{b.Seq, seqMin(end, p.Seq+uint32(p.Len))}
			if k >= int32(b.Len) && (b.Flags&bufFIN == 0 || p.Flags&bufFIN != 0 || k > int32(b.Len)) {
				h.release(f)
				return dup
			}
			k = min(k, int32(b.Len))
			b.Off += uint16(k)
			b.Len -= uint16(k)
			b.Seq += uint32(k)
		} else if b.Len == 0 && k == 0 && p.Flags&bufFIN != 0 {
			h.release(f)
			return dup
		}
	}
	for next != umem.None {
		n := h.pool.Buf(next)
		if !seqLT(n.Seq, end) {
			break
		}
		if dup[0] == dup[1] {
			dup = [2]uint32{n.Seq, seqMin(end, n.Seq+uint32(n.Len))}
		}
		if seqLT(end, n.Seq+uint32(n.Len)) || n.Len == 0 {
			b.Len = uint16(n.Seq - b.Seq)
			b.Flags &^= bufFIN
			break
		}
		after := n.Next // wholly covered
		x.ofoFrames--
		x.ofoBytes -= uint32(n.Len)
		if x.ofoTail == next {
			x.ofoTail = prev
		}
		if x.ofoLast == next {
			x.ofoLast = umem.None
		}
		h.release(next)
		next = after
	}
	if b.Len == 0 && b.Flags&bufFIN == 0 { // its bytes were there in two frames, or it is a fragment that was trimmed away
		h.release(f)
		return dup
	}
	b.Next = next
	if prev == umem.None {
		x.ofoHead = f
	} else {
		h.pool.Buf(prev).Next = f
	}
	if next == umem.None {
		x.ofoTail = f
	}
	x.ofoLast = f
	x.ofoFrames++
	x.ofoBytes += uint32(b.Len)
	return dup
}

// ofoAgain is the first part of what just came in its turn that was there already (RFC 2883 4.2); from == to: there is none.
func (h *Host) ofoAgain(c *tcb, x *active) (from, to uint32) {
	from = h.pool.Buf(x.ofoHead).Seq
	to = from
	for f := x.ofoHead; f != umem.None && seqLT(to, c.rcvNxt); {
		b := h.pool.Buf(f)
		if b.Seq != to {
			break
		}
		to = seqMin(to+uint32(b.Len), c.rcvNxt)
		f = b.Next
	}
	return from, to
}

// ofoTake moves what has come into its turn to the receive queue and reports whether the FIN was among it.
func (h *Host) ofoTake(c *tcb, x *active) (fin bool) {
	x.ofoLast = umem.None
	if from, to := h.ofoAgain(c, x); from != to && c.sackOK && !x.hasDSACK { // else it overlaps what was acknowledged as well, which comes first
		x.hasDSACK, x.dsack = true, [2]uint32{from, to}
	}
	for x.ofoHead != umem.None {
		f := x.ofoHead
		b := h.pool.Buf(f)
		if seqLT(c.rcvNxt, b.Seq) {
			break
		}
		x.ofoHead = b.Next
		if x.ofoHead == umem.None {
			x.ofoTail = umem.None
		}
		x.ofoFrames--
		x.ofoBytes -= uint32(b.Len)
		k := c.rcvNxt - b.Seq
		if k > uint32(b.Len) || k == uint32(b.Len) && b.Flags&bufFIN == 0 {
			h.release(f) // overtaken
			continue
		}
		b.Off += uint16(k)
		b.Len -= uint16(k)
		fin = b.Flags&bufFIN != 0
		n := uint32(b.Len)
		b.Flags = 0
		c.received += uint64(n)
		c.rcvNxt += n
		if c.rcvShut || n == 0 {
			h.release(f)
		} else {
			c.rcvBytes += n
			h.rcvLink(c, f)
		}
		if fin {
			return true
		}
	}
	x.sackTrim(c.rcvNxt)
	return false
}

// ofoDrop frees all that is out of order.
func (h *Host) ofoDrop(x *active) {
	h.releaseChain(x.ofoHead)
	x.ofoHead, x.ofoTail, x.ofoLast, x.ofoFrames, x.ofoBytes, x.nsack = umem.None, umem.None, umem.None, 0, 0, 0
}

// ofoPrune makes room for what is in order. The peer learns from the next ACK that it must keep these bytes: receivers
// may throw away what they only SACKed (RFC 2018 section 8).
func (h *Host) ofoPrune(x *active) {
	h.counters.Drops[TCPOutOfOrder] += uint64(x.ofoFrames)
	h.ofoDrop(x)
}

// sackNote puts the block that now holds [from,to) first: all that hangs together around it (RFC 2018 section 4).
func (x *active) sackNote(h *Host, from, to uint32) {
	tail := h.pool.Buf(x.ofoTail)
	if x.nsack > 0 && from == x.sacks[0][1] && tail.Seq+uint32(tail.Len) == to {
		from = x.sacks[0][0] // behind one gap most come in order: the last block grows
	} else {
		lo, hi := from, from
		for f := x.ofoHead; f != umem.None; f = h.pool.Buf(f).Next {
			b := h.pool.Buf(f)
			if hi != b.Seq {
				if seqLT(from, hi) {
					break
				}
				lo = b.Seq
			}
			hi = b.Seq + uint32(b.Len)
		}
		if from-lo >= hi-lo {
			return // not kept: it lies behind a FIN
		}
		from, to = lo, hi
	}
	blocks := [5][2]uint32{{from, to}}
	n := 1
	for _, b := range x.sacks[:x.nsack] {
		if seqLT(b[1], from) || seqLT(to, b[0]) { // else it is part of the first now
			blocks[n] = b
			n++
		} else {
			blocks[0] = [2]uint32{seqMin(blocks[0][0], b[0]), seqMax(blocks[0][1], b[1])}
		}
	}
	x.nsack = uint8(min(n, len(x.sacks)))
	copy(x.sacks[:], blocks[:x.nsack])
}

func seqMin(a, b uint32) uint32 {
	if seqLT(a, b) {
		return a
	}
	return b
}

func seqMax(a, b uint32) uint32 {
	if seqLT(a, b) {
		return b
	}
	return a
}

// sackTrim forgets blocks that were acknowledged.
func (x *active) sackTrim(rcvNxt uint32) {
	n := 0
	for _, b := range x.sacks[:x.nsack] {
		if seqLT(rcvNxt, b[0]) {
			x.sacks[n] = b
			n++
		}
	}
	x.nsack = uint8(n)
}

// dsackNote has the next ACK say that [from,to) came twice (RFC 2883).
func (h *Host) dsackNote(i uint32, c *tcb, from, to uint32) {
	x := h.moving(i, c)
	x.hasDSACK, x.dsack = true, [2]uint32{from, to}
}

// sackDue reports whether an ACK has something to SACK.
func (h *Host) sackDue(c *tcb) bool {
	x := h.activeOf(c)
	return x != nil && c.sackOK && (x.hasDSACK || x.nsack > 0)
}

// sackOptions fills in the blocks of an ACK: a D-SACK first, then the block that changed last.
func (h *Host) sackOptions(c *tcb, opt *proto.TCPOptions) {
	x := h.activeOf(c)
	if x == nil || !c.sackOK {
		return
	}
	n := 0
	if x.hasDSACK {
		opt.SACK[0], n = x.dsack, 1
		x.hasDSACK = false
	}
	for _, b := range x.sacks[:x.nsack] {
		if n < len(opt.SACK) {
			opt.SACK[n] = b
			n++
		}
	}
	opt.NSACK = uint8(n)
}
