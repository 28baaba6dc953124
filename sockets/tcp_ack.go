package sockets

import (
	"slices"

	"xdpd/proto"
	"xdpd/umem"
)

// acked is what one ACK brought.
type ackResult struct {
	bytes     uint32 // newly acknowledged in sequence, FIN included
	delivered uint32 // newly known to have arrived: bytes, and newly SACKed
	sent      uint32 // xmit time of the newest of these that was sent once; if once is set
	first     uint32 // and of the oldest that was acknowledged in sequence
	once      bool
	inOrder   bool // first is set
	sackedNew bool
	dsack     bool
	ece       bool
}

// tcpACK processes the acknowledgement. false: the segment is done with.
func (h *Host) tcpACK(i uint32, c *tcb, s *segment) bool {
	ack := s.tcp.Ack
	if seqLT(c.sndNxt, ack) || seqLT(ack, c.sndUna-max(c.maxWnd, 1<<16)) { // RFC 5961 5.2
		h.challengeACK(i, c)
		h.drop(s.packet, TCPOutOfWindow)
		return false
	}
	old := seqLT(ack, c.sndUna)
	r := ackResult{ece: s.tcp.Flags&proto.ECE != 0 && c.ecnOK, bytes: ack - c.sndUna}
	if old {
		r.bytes = 0
	}
	wnd := uint32(s.tcp.Window)
	if !s.syn {
		wnd <<= c.sndScale
	}
	dup := !old && r.bytes == 0 && s.length() == 0 && wnd == c.sndWnd // RFC 5681 section 2
	h.tcpWindow(i, c, s, wnd, r.bytes > 0)
	// Also with nothing in flight: a D-SACK may come late.
	if x := h.activeOf(c); x != nil && (c.sndUna != c.sndNxt || s.opt.NSACK > 0) {
		h.tcpAcked(i, c, x, s, &r, dup && !old)
		if c.state == tcpClosed {
			h.discard(s.packet)
			return false
		}
	}
	return true
}

// tcpWindow takes the window of a segment. An ACK of something new brings its window along, even on data that is sent
// again: RFC 9293 3.10.7.4 would keep the old size and move the edge (tcp_may_update_window, net/ipv4/tcp_input.c).
func (h *Host) tcpWindow(i uint32, c *tcb, s *segment, wnd uint32, acked bool) {
	if !acked && (s.tcp.Ack != c.sndUna || seqLT(s.seq, c.sndWl1)) {
		return
	}
	if wnd != c.sndWnd {
		h.tcpMark(i, c)
	}
	patient := !c.orphan && !h.pressed()
	if c.probing || wnd == 0 && patient {
		c.retries = 0 // it hears us, and says that it has no room
	}
	if c.probing && wnd > c.sndWnd && (patient || h.helps(c, wnd)) { // it takes data again: what backing off added goes
		c.probes, c.rtxAt = 0, 0 // Flush sends, or begins to probe anew
		c.setRTO()
	}
	c.sndWnd, c.sndWl1 = wnd, s.seq
	c.maxWnd = max(c.maxWnd, wnd)
}

// helps reports whether something can be sent into a window that was shut: to open it by a byte costs a peer nothing.
func (h *Host) helps(c *tcb, wnd uint32) bool {
	return c.sndNext != umem.None && wnd >= min(uint32(h.pool.Buf(c.sndNext).Len), uint32(c.mss), max(c.maxWnd/2, 1))
}

// tcpAcked is tcp_ack: scoreboard, loss detection, recovery, congestion control, timers, in this order.
func (h *Host) tcpAcked(i uint32, c *tcb, x *active, s *segment, r *ackResult, dup bool) {
	flight, cwnd := c.sndNxt-c.sndUna, c.cwnd
	if r.bytes > 0 {
		sacked := x.sacked
		h.sndAcked(c, x, s.tcp.Ack, r)
		r.delivered = r.bytes - (sacked - x.sacked) // some of it had been SACKed before
		c.retries, c.probes, c.probing = 0, 0, false
		x.stalledAt = h.nowMS()
		if x.mtu.guess {
			h.mtuKnown(c, x)
		}
	}
	if c.sackOK && s.opt.NSACK > 0 {
		h.sackInput(c, x, s, r)
	}
	if r.bytes > 0 {
		h.tcpRTT(c, x, s, r)
	}
	if r.bytes > 0 || r.once {
		h.minRTT(c, x, r)
	}
	if !c.sackOK {
		h.countDups(c, x, r, dup, flight)
	}
	toSend := x.toSend
	h.tlpAcked(c, x, s, r, dup)
	if c.sackOK {
		h.rackDetect(c, x)
	} else {
		h.newReno(c, x, r)
	}
	h.recover(c, x, s, r, x.toSend > toSend)
	if c.sndUna == c.sndNxt {
		if !c.probing {
			c.rtxAt = 0
		}
		x.tlpNext, x.reoAt = false, 0
	} else if h.reneged(c) {
		if r.bytes > 0 {
			x.tlpNext, c.rtxAt = false, min(c.rtxAt, h.now+int64(max(x.minRTT/2, renegeUS))*1000)
		}
	} else if r.bytes > 0 || r.sackedNew {
		h.armLoss(c, x, true) // RFC 6298 5.3, RFC 8985 7.2
	}
	if r.bytes > 0 || r.delivered > 0 || x.toSend > 0 || x.reoAt != 0 || c.cwnd > cwnd {
		h.tcpMark(i, c)
	}
	h.tellRoom(i, c)
	if r.bytes > 0 && c.finQueued && c.sndHead == umem.None {
		h.tcpFinAcked(i, c)
	}
}

// sndAcked moves SND.UNA to ack and removes what was acknowledged from the send queue.
func (h *Host) sndAcked(c *tcb, x *active, ack uint32, r *ackResult) {
	c.acked += uint64(r.bytes)
	c.sndUna = ack
	for c.sndHead != umem.None {
		f := c.sndHead
		b := h.pool.Buf(f)
		n := uint32(b.Len)
		if b.Flags&bufFIN != 0 {
			n++
		}
		if seqLT(ack, b.Seq+n) {
			k := int32(ack - b.Seq)
			if k <= 0 {
				break
			}
			// A part of it: what stays is judged as if it had been sent like that.
			h.unscore(x, b, uint32(k), false)
			b.Seq += uint32(k)
			b.Off += uint16(k)
			b.Len -= uint16(k)
			c.sndBytes -= uint32(k)
			if b.Flags&bufPart != 0 {
				b.Flags &^= bufPart
				h.markLost(x, b)
			}
			break
		}
		h.delivered(c, x, b, r, true)
		h.unscore(x, b, n, true)
		c.sndHead = b.Next
		c.sndBytes -= uint32(b.Len)
		c.sndFrames--
		if c.sndTail == f {
			c.sndTail = umem.None
		}
		h.sendRelease(f)
	}
	// What lies half the sequence space behind would lie ahead.
	x.fack, x.partEnd, x.rackRound = seqMax(x.fack, ack), seqMax(x.partEnd, ack), seqMax(x.rackRound, ack)
}

// unscore takes n bytes of a frame out of the counts.
func (h *Host) unscore(x *active, b *umem.Buf, n uint32, whole bool) {
	if b.Flags&bufSacked != 0 {
		x.sacked -= n
		if whole {
			x.sackedFrames--
		}
	}
	if b.Flags&bufLost != 0 {
		x.lost -= n
		if whole && b.Flags&bufAgain == 0 {
			x.toSend--
		}
	}
	if b.Flags&bufAgain != 0 {
		x.again -= n
	}
}

// delivered takes a frame newly known to have arrived, whole: RFC 8985 6.2 steps 1 to 3.
func (h *Host) delivered(c *tcb, x *active, b *umem.Buf, r *ackResult, inOrder bool) {
	if b.Flags&bufSacked != 0 {
		return
	}
	end := b.Seq + uint32(b.Len)
	if b.Flags&bufProbe != 0 {
		b.Flags &^= bufProbe
		h.mtuArrived(c, x)
	}
	if b.Flags&bufEver == 0 {
		if !r.once || int32(b.Aux-r.sent) > 0 {
			r.once, r.sent = true, b.Aux
		}
		if inOrder && !r.inOrder {
			r.inOrder, r.first = true, b.Aux
		}
		if seqLT(end, x.fack) {
			x.reordered = true // it was overtaken
		}
	} else if h.nowUS()-b.Aux < x.minRTT {
		return // it was the first transmission that arrived (RFC 8985 6.2 step 2)
	}
	if rtt := h.nowUS() - b.Aux; int32(b.Aux-x.rackXmit) > 0 || b.Aux == x.rackXmit && seqLT(x.rackEnd, end) || x.rackRTT == 0 {
		x.rackXmit, x.rackEnd, x.rackRTT = b.Aux, end, max(rtt, 1)
	}
}

// sackInput marks what the peer holds out of order (RFC 2018, RFC 2883). Blocks that make no sense are left.
func (h *Host) sackInput(c *tcb, x *active, s *segment, r *ackResult) {
	blocks := s.opt.SACK[:s.opt.NSACK]
	ack := s.tcp.Ack
	if b := blocks[0]; seqLT(b[0], b[1]) && seqLE(b[1], c.sndNxt) &&
		(seqLT(b[0], ack) && seqLE(b[1], ack) || len(blocks) > 1 && seqLE(blocks[1][0], b[0]) && seqLE(b[1], blocks[1][1])) {
		r.dsack = true
		blocks = blocks[1:]
		h.dsackInput(c, x, b)
	}
	// In ascending order one walk is enough, whatever the peer makes up.
	slices.SortFunc(blocks, func(a, b [2]uint32) int { return int(int32(a[0] - b[0])) })
	top, f := x.fack, c.sndHead // of which of these blocks came first nothing is known
	for _, b := range blocks {
		if !seqLT(b[0], b[1]) || !seqLT(c.sndUna, b[1]) || seqLT(c.sndNxt, b[1]) || seqLT(b[0], c.sndUna) {
			continue
		}
		for f != umem.None && f != c.sndNext {
			buf := h.pool.Buf(f)
			if !seqLT(buf.Seq, b[1]) {
				break
			}
			n := uint32(buf.Len)
			if buf.Flags&bufFIN != 0 {
				n++
			}
			// A frame of which a part arrived counts as missing: the peer trims what comes again.
			if buf.Flags&bufSacked == 0 && seqLE(b[0], buf.Seq) && seqLE(buf.Seq+n, b[1]) {
				h.delivered(c, x, buf, r, false)
				h.unscore(x, buf, n, true)
				buf.Flags = buf.Flags&^(bufLost|bufAgain) | bufSacked
				x.sacked += n
				x.sackedFrames++
				r.delivered += n
				r.sackedNew = true
			}
			f = buf.Next
		}
		top = seqMax(top, b[1])
	}
	x.fack = top
}

// dsackInput hears that something arrived twice: a retransmission that was not needed, or a duplicate of the network's.
func (h *Host) dsackInput(c *tcb, x *active, b [2]uint32) {
	h.count(TCPDSACKs)
	if x.undoAgain > 0 && seqLE(x.undoSeq, b[0]) {
		x.undoAgain--
	}
	// RFC 8985 6.2 step 4: a wider reordering window, at most once a round trip.
	if x.rackRound != 0 && seqLT(c.sndUna, x.rackRound) {
		return
	}
	x.rackRound = c.sndNxt
	x.reoMult = min(x.reoMult+1, 20)
	x.reoPersist = 16
}

// tcpRTT takes a sample: from what was sent once (Karn), else from the timestamp that came back (RFC 7323 4.1).
func (h *Host) tcpRTT(c *tcb, x *active, s *segment, r *ackResult) {
	if r.inOrder {
		c.rttSample(h.nowUS() - r.first)
	} else if c.tsOK && s.opt.HasTS && s.opt.TSEcr != 0 {
		if ms := h.tsNow(c.key) - s.opt.TSEcr; int32(ms) >= 0 && ms < 1<<21 {
			c.rttSample(max(ms*1000, 500))
		}
	}
}

// minRTT follows the shortest round trip for loss detection and slow start. What is SACKed counts as well: on a path that
// reorders, what moves the acknowledgement on is what came late.
func (h *Host) minRTT(c *tcb, x *active, r *ackResult) {
	rtt := noRTT
	if r.once {
		if rtt = max(h.nowUS()-r.sent, 1); x.minRTT == 0 || rtt <= x.minRTT || h.nowUS()-x.minRTTAt > 300_000_000 {
			x.minRTT, x.minRTTAt = rtt, h.nowUS()
		}
	}
	if x.phase == phaseOpen {
		x.hy.acked(c, x, rtt)
	}
}

// nowUS is the time of the call in progress for frames and loss detection; it wraps after 71 minutes.
func (h *Host) nowUS() uint32 { return uint32(h.now / 1000) }

// tcpFinAcked moves on after our FIN was acknowledged. Each of these steps is a change of state that Linux tells of.
func (h *Host) tcpFinAcked(i uint32, c *tcb) {
	switch c.state {
	case tcpFinWait1:
		c.state = tcpFinWait2
		h.notify(h.tcp.handle(i), happenedState)
		if c.orphan {
			h.tcpLinger(i, c, h.finWait2(i))
		}
	case tcpClosing:
		h.enterTimeWait(i, c)
		h.notify(h.tcp.handle(i), happenedState)
	case tcpLastAck:
		h.tcpFree(i, c)
	}
}

// enterTimeWait keeps the record only for an owner who did not close it.
func (h *Host) enterTimeWait(i uint32, c *tcb) {
	c.state = tcpTimeWait
	h.tcpLinger(i, c, timeWaitNS)
}
