package sockets

import "xdpd/umem"

const (
	dupThresh  = 3
	tlpDelayUS = 200_000 // WCDelAckT: what a receiver may hold back the ACK of a lone segment
	renegeUS   = 10_000  // least time that an ACK is waited for which shows that nothing was thrown away
)

// markLost has a frame sent again.
func (h *Host) markLost(x *active, b *umem.Buf) {
	n := uint32(b.Len)
	if b.Flags&bufFIN != 0 {
		n++
	}
	switch {
	case b.Flags&bufAgain != 0:
		b.Flags &^= bufAgain
		x.again -= n
	case b.Flags&bufLost != 0:
		return
	default:
		b.Flags |= bufLost
		x.lost += n
	}
	x.toSend++
	if b.Flags&bufProbe != 0 {
		b.Flags &^= bufProbe
		x.mtuLost(h.nowMS())
		x.probeLost = true
	}
}

// rackDetect is RFC 8985 6.2 step 5: lost is what was sent a round trip and a bit before something that has arrived.
func (h *Host) rackDetect(c *tcb, x *active) {
	x.reoAt = 0
	if x.rackRTT == 0 || x.sacked == 0 && x.lost == 0 {
		return // in order so far: whatever is out was sent after what has arrived
	}
	wnd, wait := h.reoWindow(c, x), int32(0)
	for f := c.sndHead; f != umem.None && f != c.sndNext; {
		b := h.pool.Buf(f)
		f = b.Next
		if b.Flags&bufSacked != 0 || b.Flags&(bufLost|bufAgain) == bufLost {
			continue
		}
		if d := int32(x.rackXmit - b.Aux); d < 0 || d == 0 && !seqLT(b.Seq+uint32(b.Len), x.rackEnd) {
			continue
		}
		if left := int32(b.Aux + x.rackRTT + wnd - h.nowUS()); left <= 0 {
			h.markLost(x, b)
		} else {
			wait = max(wait, left)
		}
	}
	if wait > 0 {
		x.reoAt = h.now + int64(wait)*1000
	}
}

// reoWindow is how much later than expected something may arrive, in µs (RFC 8985 6.2 step 4).
func (h *Host) reoWindow(c *tcb, x *active) uint32 {
	if !x.reordered && (x.phase == phaseRecovery || x.phase == phaseLoss || x.sackedFrames >= dupThresh) {
		return 0
	}
	return min(uint32(x.reoMult)*(x.minRTT/4), c.srtt)
}

// countDups takes a duplicate ACK for a segment that has left the network, where there is no SACK to say which.
func (h *Host) countDups(c *tcb, x *active, r *ackResult, dup bool, flight uint32) {
	mss := uint32(c.mss)
	switch {
	case r.bytes > 0 && x.phase == phaseRecovery: // as tcp_remove_reno_sacks: the first segment was the missing one
		x.dupAcks -= min(x.dupAcks, (r.bytes-1)/mss)
	case r.bytes > 0:
		x.dupAcks = 0
	case dup && x.dupAcks*mss < flight:
		x.dupAcks++
		r.delivered += mss
	}
}

// newReno is loss detection without SACK: RFC 5681 3.2 and RFC 6582. Limited transmit (RFC 3042) comes by itself, for a
// duplicate ACK makes room in the pipe.
func (h *Host) newReno(c *tcb, x *active, r *ackResult) {
	if c.sndHead == umem.None {
		return
	}
	first := (x.phase == phaseOpen || x.phase == phaseCWR) && x.dupAcks >= dupThresh
	partial := x.phase == phaseRecovery && r.bytes > 0 && seqLT(c.sndUna, x.recoverSeq)
	if b := h.pool.Buf(c.sndHead); (first || partial) && b.Flags&bufSent != 0 && b.Flags&bufAgain == 0 {
		h.markLost(x, b)
		for b.Flags&bufMore != 0 && b.Next != umem.None {
			b = h.pool.Buf(b.Next)
			h.markLost(x, b)
		}
	}
}

// recover moves between the phases and sets the congestion window. newLoss: this ACK showed something lost.
func (h *Host) recover(c *tcb, x *active, s *segment, r *ackResult, newLoss bool) {
	h.undo(c, x, s, r)
	before := x.phase
	if x.phase != phaseOpen && (seqLT(x.recoverSeq, c.sndUna) || x.recoverSeq == c.sndUna && (c.sackOK || c.sndUna == c.sndNxt)) {
		h.recovered(c, x)
	}
	fresh := false
	probe := x.probeLost && x.toSend == max(uint32(x.mtu.frames), 1)
	x.probeLost = false
	switch {
	case probe: // RFC 4821 7.3: it was its size, not congestion
	case x.toSend > 0 && (x.phase == phaseOpen || x.phase == phaseCWR):
		h.reduce(c, x, phaseRecovery, r)
		fresh = true
	case r.ece && x.phase == phaseOpen && before == phaseOpen:
		h.reduce(c, x, phaseCWR, r) // RFC 3168 6.1.2: once a window, the edge of the last one included
		fresh = true
	}
	switch x.phase {
	case phaseRecovery, phaseCWR:
		h.prr(c, x, r, newLoss, fresh)
	default:
		if r.bytes > 0 && before != phaseRecovery && before != phaseCWR {
			h.ccAcked(c, x, r.bytes)
		}
	}
}

// reduce begins a reduction of the congestion window.
func (h *Host) reduce(c *tcb, x *active, to phase, r *ackResult) {
	if x.phase == phaseOpen {
		x.priorCwnd, x.priorSsthresh = c.cwnd, c.ssthresh
		h.ccReduce(c, x, r.bytes)
		// RFC 6937bis: what was delivered before does not count, what this ACK brought does.
		x.prrFlow = c.sndNxt - c.sndUna + r.delivered - min(x.sacked, c.sndNxt-c.sndUna)
		x.prrDelivered, x.prrOut = 0, 0
	}
	x.undoSeq, x.undoAgain, x.againTS = c.sndUna, 0, 0
	if to == phaseCWR || x.phase == phaseCWR {
		x.undoAgain = -1 // that nothing was lost does not take back what ECE asked for
	}
	x.phase, x.recoverSeq = to, c.sndNxt
	x.cwrDue = c.ecnOK
	x.tlpOut = false
	if to == phaseRecovery {
		h.count(TCPRecoveries)
	}
}

// prr is proportional rate reduction (RFC 6937bis section 6).
func (h *Host) prr(c *tcb, x *active, r *ackResult, newLoss, fresh bool) {
	if r.delivered == 0 && !fresh {
		return
	}
	pipe := c.pipe(x)
	x.prrDelivered += r.delivered
	var n int64
	if pipe > c.ssthresh {
		flow := max(uint64(x.prrFlow), 1)
		n = int64((uint64(x.prrDelivered)*uint64(c.ssthresh)+flow-1)/flow) - int64(x.prrOut)
	} else {
		n = max(int64(x.prrDelivered)-int64(x.prrOut), int64(r.delivered))
		if r.bytes > 0 && !newLoss { // SafeACK
			n += int64(c.mss)
		}
		n = min(int64(c.ssthresh-pipe), n)
	}
	if fresh && x.phase == phaseRecovery {
		n = max(n, int64(c.mss)) // the first retransmission goes out in any case
	}
	c.cwnd = pipe + uint32(max(n, 0))
}

// recovered ends a phase: all that was out when it began has arrived.
func (h *Host) recovered(c *tcb, x *active) {
	if x.phase == phaseRecovery || x.phase == phaseCWR {
		c.cwnd = max(c.ssthresh, uint32(c.mss))
	}
	if x.reoPersist > 0 {
		if x.reoPersist--; x.reoPersist == 0 {
			x.reoMult = 1
		}
	}
	x.phase, x.dupAcks = phaseOpen, 0
}

// undo takes a reduction back that was not needed: the timestamp shows that the original arrived (Eifel, RFC 3522 and
// 4015), D-SACKs do so for all that was sent again (RFC 3708), or what was taken for lost came in the same turn, before it
// could be sent again.
func (h *Host) undo(c *tcb, x *active, s *segment, r *ackResult) {
	if x.undoAgain < 0 {
		return
	}
	original := r.bytes > 0 && x.againTS != 0 && c.tsOK && s.opt.HasTS && s.opt.TSEcr != 0 && seqLT(s.opt.TSEcr, x.againTS)
	twice := r.dsack && x.undoAgain == 0 && x.againTS != 0
	overtaken := x.phase == phaseRecovery && x.lost == 0 && x.undoAgain == 0 && x.againTS == 0
	if !original && !twice && !overtaken {
		return
	}
	h.count(TCPSpurious)
	if x.phase != phaseOpen {
		for f := c.sndHead; f != umem.None && f != c.sndNext; f = h.pool.Buf(f).Next {
			if b := h.pool.Buf(f); b.Flags&(bufLost|bufAgain) == bufLost {
				b.Flags &^= bufLost
				n := uint32(b.Len)
				if b.Flags&bufFIN != 0 {
					n++
				}
				x.lost -= n
				x.toSend--
			}
		}
		x.phase = phaseOpen
	}
	x.reordered = true
	c.cwnd = max(c.cwnd, x.priorCwnd)
	c.ssthresh = max(c.ssthresh, x.priorSsthresh)
	x.cubic.wMax, x.cubic.epochAt = max(x.cubic.wMax, x.cubic.cwndPrev), 0
	x.undoAgain = -1
}

// enterLoss is what a timeout means (RFC 5681 3.1, tcp_enter_loss).
func (h *Host) enterLoss(c *tcb, x *active) {
	if x.phase != phaseLoss || c.retries == 1 {
		if x.phase == phaseOpen || x.phase == phaseLoss { // the latter after progress: RFC 5681 (4) once more
			x.priorCwnd, x.priorSsthresh = c.cwnd, c.ssthresh
			h.ccReduce(c, x, 0)
			x.undoAgain = 0
		}
		x.undoSeq, x.undoAgain, x.againTS = c.sndUna, min(x.undoAgain, 0), 0
	}
	x.cubic.wMax = 0 // RFC 9438 4.8: the next stage begins where slow start ends
	x.phase, x.recoverSeq, x.dupAcks = phaseLoss, c.sndNxt, 0
	x.tlpOut, x.cwrDue = false, c.ecnOK
	if c.sndHead == umem.None {
		return
	}
	if h.reneged(c) {
		h.renege(c, x)
	}
	wnd := h.reoWindow(c, x)
	for f := c.sndHead; f != umem.None && f != c.sndNext; f = h.pool.Buf(f).Next {
		b := h.pool.Buf(f)
		late := !c.sackOK || x.rackRTT == 0 || int32(b.Aux+x.rackRTT+wnd-h.nowUS()) <= 0
		if b.Flags&bufSacked == 0 && (f == c.sndHead || late) {
			h.markLost(x, b)
		}
	}
	c.cwnd = c.pipe(x) + uint32(c.mss)
}

// reneged reports whether the peer SACKed what it has not acknowledged although nothing is missing before it: it threw it
// away, or its better ACK was overtaken. Half a round trip tells (tcp_check_sack_reneging); a timeout may be far.
func (h *Host) reneged(c *tcb) bool {
	return c.sndHead != umem.None && h.pool.Buf(c.sndHead).Flags&bufSacked != 0
}

// renege forgets what the peer SACKed: it threw it away again, as RFC 2018 section 8 lets it.
func (h *Host) renege(c *tcb, x *active) {
	for f := c.sndHead; f != umem.None && f != c.sndNext; f = h.pool.Buf(f).Next {
		h.pool.Buf(f).Flags &^= bufSacked
	}
	x.sacked, x.sackedFrames, x.fack = 0, 0, c.sndUna
}

// armLoss sets the retransmission timer: a loss probe (RFC 8985 7.2) where one may help, else the timeout, which an ACK
// of something new starts again (RFC 6298 5.3) and what is sent does not (5.1).
func (h *Host) armLoss(c *tcb, x *active, acked bool) {
	left := c.rto
	if c.sndHead != umem.None && !acked {
		if d := int32(h.pool.Buf(c.sndHead).Aux + c.rto - h.nowUS()); d > 0 {
			left = min(left, uint32(d))
		}
	}
	if acked || x.tlpNext || c.rtxAt == 0 {
		c.rtxAt = h.now + int64(left)*1000
	}
	x.tlpNext = false
	if !c.sackOK || x.phase != phaseOpen || x.sacked > 0 || x.toSend > 0 || x.tlpOut || c.retries > 0 || c.srtt == 0 ||
		c.sndHead == umem.None {
		return
	}
	pto := 2*c.srtt + tickNS/1000
	if c.sndNxt-c.sndUna <= uint32(c.mss) {
		pto += tlpDelayUS
	}
	x.tlpNext = true
	c.rtxAt = h.now + int64(min(pto, left))*1000
}

// tlpProbe sends a loss probe: new data if there is some, else the last segment again (RFC 8985 7.3).
func (h *Host) tlpProbe(i uint32, c *tcb, x *active) {
	x.tlpNext = false
	c.rtxAt = h.now + int64(c.rto)*1000
	f, again := c.sndNext, false
	if f == umem.None || !h.inWindow(c, h.pool.Buf(f)) || seqLT(c.sndUna, x.partEnd) {
		again = true
		for f = c.sndHead; h.pool.Buf(f).Next != c.sndNext; f = h.pool.Buf(f).Next {
		}
	}
	s := h.together(c, f)
	h.tellRoom(i, c) // frames that were filled up from others leave room
	b := h.pool.Buf(f)
	if b.Flags&(bufQueued|bufSacked) != 0 || h.txRoom() < h.cfg.PacketFrames {
		return
	}
	h.count(TCPProbes)
	if again {
		h.markLost(x, b)
	}
	h.sendData(i, c, x, f, s.last)
	x.tlpOut, x.tlpAgain, x.tlpEnd = true, again, c.sndNxt
	c.rtxAt = h.now + int64(c.rto)*1000
}

// tlpAcked judges what the answer to a loss probe says (RFC 8985 7.4).
func (h *Host) tlpAcked(c *tcb, x *active, s *segment, r *ackResult, dup bool) {
	if !x.tlpOut || seqLT(s.tcp.Ack, x.tlpEnd) {
		return
	}
	switch {
	case !x.tlpAgain, r.dsack:
		x.tlpOut = false
	case seqLT(x.tlpEnd, s.tcp.Ack): // the probe filled a hole that nobody saw: that was congestion all the same
		x.tlpOut = false
		if x.phase == phaseOpen {
			h.reduce(c, x, phaseCWR, r)
			x.recoverSeq = c.sndUna
		}
	case dup && !r.sackedNew:
		x.tlpOut = false
	}
}
