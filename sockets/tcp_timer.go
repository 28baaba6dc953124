package sockets

import "xdpd/umem"

// KeepAlive says when a silent connection is probed (RFC 9293 3.8.4): after Idle, then every Interval, Count times
// without an answer before it is given up. Times in ns; Idle 0: never.
type KeepAlive struct {
	Idle, Interval int64
	Count          int
}

// tcpArm sets the connection's one wheel timer to its earliest deadline. A later deadline than the wheel's is left: the
// timer then fires early, finds nothing due and is set again, which is cheaper than moving it with every ACK.
func (h *Host) tcpArm(i uint32, c *tcb) {
	at := first(first(c.rtxAt, h.nsAt(c.ackAt)), h.nsAt(c.idleAt))
	if x := h.activeOf(c); x != nil {
		at = first(first(at, x.reoAt), x.restAt)
		if x.stuck {
			at = first(at, h.now+tickNS)
		}
	}
	if at == 0 {
		return
	}
	if c.timer == 0 {
		c.timer = h.timers.alloc(timerOwner(timerTCP, i))
	} else if h.timers.when(c.timer) <= at {
		return
	}
	h.timers.start(c.timer, at)
}

// first is the earlier of two deadlines, of which 0 is none.
func first(a, b int64) int64 {
	if a == 0 || b != 0 && b < a {
		return b
	}
	return a
}

// tcpLinger starts or restarts the time that a connection stays without being of use to anybody.
func (h *Host) tcpLinger(i uint32, c *tcb, ns int64) {
	c.idleAt = h.inMS(ns)
	h.tcpMark(i, c)
	h.tcpArm(i, c)
}

func (h *Host) tcpTimer(i uint32) {
	c := h.tcp.at(i)
	h.timers.release(c.timer)
	c.timer = 0
	if c.idleAt != 0 && h.nsAt(c.idleAt) <= h.now && !h.idleTimer(i, c) {
		return
	}
	if c.ackAt != 0 && h.nsAt(c.ackAt) <= h.now {
		c.ackAt, c.ackNow = 0, true
		h.tcpMark(i, c)
	}
	x := h.activeOf(c)
	switch {
	case c.rtxAt == 0 || c.rtxAt > h.now:
	case x != nil && x.tlpNext:
		h.tlpProbe(i, c, x)
	case !h.tcpTimeout(i, c, x):
		return
	}
	if x != nil {
		if x.reoAt != 0 && x.reoAt <= h.now {
			h.reoTimer(i, c, x)
		}
		if x.stuck {
			h.tcpMark(i, c)
		}
		if x.restAt <= h.now {
			h.activeRest(c, x)
		}
	}
	h.tcpArm(i, c)
}

// reoTimer is the RACK reordering timer: what was given time to arrive late has had it.
func (h *Host) reoTimer(i uint32, c *tcb, x *active) {
	h.rackDetect(c, x)
	if x.toSend > 0 {
		probe := x.probeLost && x.toSend == max(uint32(x.mtu.frames), 1)
		x.probeLost = false
		if !probe && (x.phase == phaseOpen || x.phase == phaseCWR) {
			var r ackResult
			h.reduce(c, x, phaseRecovery, &r)
			h.prr(c, x, &r, true, true)
		}
		h.tcpMark(i, c)
	}
}

// idleTimer ends TIME-WAIT and FIN-WAIT-2, or probes a silent peer. false: the connection is gone.
func (h *Host) idleTimer(i uint32, c *tcb) bool {
	if c.state == tcpTimeWait || c.state == tcpFinWait2 && c.orphan {
		h.tcpFree(i, c)
		return false
	}
	k := h.tcp.settings[c.setting]
	c.idleAt = 0
	if k.Idle == 0 {
		return true
	}
	switch silent := int64(h.nowMS()-c.heardAt) * 1_000_000; {
	case c.sndUna != c.sndNxt || c.sndBytes > 0:
		return true // what waits for an ACK has its own timer, and the next thing heard starts this one again
	case silent < k.Idle:
		c.probes = 0
		h.keepAliveArm(i, c)
		return true
	}
	if int(c.probes) >= k.Count {
		c.err = uint8(ETIMEDOUT)
		h.tcpAbort(i, c)
		return false
	}
	c.probes++
	h.sendPure(c, c.sndUna-1)
	c.idleAt = h.inMS(k.Interval)
	return true
}

// keepAliveArm starts the time after which a silent peer is probed.
func (h *Host) keepAliveArm(i uint32, c *tcb) {
	k := h.tcp.settings[c.setting]
	if k.Idle == 0 || c.state == tcpTimeWait || c.orphan && c.state == tcpFinWait2 {
		return
	}
	silent := int64(h.nowMS()-c.heardAt) * 1_000_000
	c.idleAt = h.inMS(max(k.Idle-silent, tickNS))
	h.tcpArm(i, c)
}

// tcpTimeout is the retransmission timer (RFC 6298 section 5) and the persist timer (RFC 9293 3.8.6.1). false: the
// connection was given up.
func (h *Host) tcpTimeout(i uint32, c *tcb, x *active) bool {
	if h.givenUp(c) {
		c.err = uint8(ETIMEDOUT)
		if c.probing || h.shut(c) { // it may be there, and would keep its half for ever
			h.tcpAbort(i, c)
		} else {
			h.tcpFree(i, c)
		}
		return false
	}
	c.retries++
	switch {
	case c.state == tcpSynSent || c.state == tcpSynRcvd:
		if !c.quiet {
			h.count(TCPTimeouts)
			h.count(TCPRetransmits)
		}
		h.sendSYN(c)
	case c.probing:
		c.probes = min(c.probes+1, 200)
		c.rtxAt = h.now + int64(backoff(c.rto, c.probes))*1000
		h.userClamp(c)
		if c.sndWnd > 0 {
			c.retries-- // nothing was lost: what goes now goes for the first time
			h.sendOverride(i, c)
			return true
		}
		// An old sequence number without data makes any receiver say what its window is (as Linux's tcp_xmit_probe_skb).
		h.sendPure(c, c.sndUna-1)
		return true
	default:
		h.count(TCPTimeouts)
		h.blackHole(c, x)
		h.enterLoss(c, x)
		h.tcpMark(i, c)
	}
	c.rto = backoff(c.rto, 1)
	c.rtxAt = h.now + int64(c.rto)*1000
	h.userClamp(c)
	return true
}

// userClamp has the timer look when the user timeout is over, not later.
func (h *Host) userClamp(c *tcb) {
	if user := h.tcp.settings[c.setting].userMS; user != 0 && c.rtxAt != 0 {
		left := int32(user - h.stalledMS(c))
		c.rtxAt = min(c.rtxAt, h.now+int64(max(left, 1))*1_000_000)
	}
}

// givenUp reports whether a timeout was one too many.
func (h *Host) givenUp(c *tcb) bool {
	limit := uint8(dataRetries)
	switch {
	case c.state == tcpSynSent || c.state == tcpSynRcvd:
		limit = dialRetries
	case c.probing && c.orphan && c.probes >= orphanTries:
		h.count(TCPPressure)
		return true
	case h.pressed() && (c.probing && c.probes >= pressedTries || h.shut(c) && c.retries >= pressedTries):
		// Peers that take nothing hold all the frames there are: nobody else can send. However politely they answer, they go.
		h.count(TCPPressure)
		return true
	}
	if c.orphan && c.opened {
		limit = orphanTries // nobody waits for what it holds
	}
	user := h.tcp.settings[c.setting].userMS
	if user != 0 && h.stalledMS(c) >= user {
		return true
	}
	return c.retries >= limit
}

// pressed reports that not a frame is left for anybody's data.
func (h *Host) pressed() bool { return h.txUsed >= h.txLimit-h.txReserve() }

// shut reports whether the window does not take what is to be acknowledged next: it was open when that was sent.
func (h *Host) shut(c *tcb) bool {
	return c.sndHead != umem.None && !h.inWindow(c, h.pool.Buf(c.sndHead))
}

// stalledMS is how long the oldest data, or the SYN, has waited for an ACK.
func (h *Host) stalledMS(c *tcb) uint32 {
	if c.state == tcpSynSent || c.state == tcpSynRcvd {
		return h.nowMS() - c.sentAt // since the record was made
	}
	if x := h.activeOf(c); x != nil {
		return h.nowMS() - x.stalledAt
	}
	return 0
}

// sendOverride is for a window that has become small for good: what fits into it goes, however little (RFC 9293
// 3.8.6.2.1).
func (h *Host) sendOverride(i uint32, c *tcb) {
	f := c.sndNext
	if h.inWindow(c, h.pool.Buf(f)) || h.sendSplit(c, f, int(c.sndUna+c.sndWnd-h.pool.Buf(f).Seq)) {
		h.sendData(i, c, h.moving(i, c), f, h.together(c, f).last)
		h.tcpMark(i, c) // it may have been cut for the path, and the window have room for the rest
	}
}

// challengeMS is the time in which one connection answers once to what may be an attack (net.ipv4.tcp_invalid_ratelimit).
const challengeMS = 500

// challengeACK answers what may be an attack with our idea of the sequence numbers (RFC 5961): for one connection twice a
// second, for all together a thousand times.
func (h *Host) challengeACK(i uint32, c *tcb) {
	half := h.challengeSlot()
	if half == c.challenge || !h.challengeToken() {
		return
	}
	c.challenge = half
	h.tcpAckSoon(i, c, true)
}

// challengeSlot numbers the half seconds, in a byte that is never 0.
func (h *Host) challengeSlot() uint8 { return uint8(h.nowMS()/challengeMS)<<1 | 1 }

// challengeToken is the limit for all connections. As with icmpLimit, who counts his own answers must not learn what
// others were sent (CVE-2016-5696).
func (h *Host) challengeToken() bool {
	r := h.sec.next()
	if !h.tcp.challenge.take(h.now, 1e6, 100-int32(r&31)) || r>>8&3 == 0 && !h.tcp.challenge.take(h.now, 1e6, 100) {
		return false // one in four costs two
	}
	h.count(TCPChallenges)
	return true
}

// rttSample is RFC 6298 section 2; r in µs.
func (c *tcb) rttSample(r uint32) {
	r = min(max(r, 1), rtoMaxUS)
	if c.srtt == 0 {
		c.srtt, c.rttvar = r, r/2
	} else {
		d := int32(c.srtt - r)
		if d < 0 {
			d = -d
		}
		c.rttvar += uint32((d - int32(c.rttvar)) / 4)
		c.srtt += uint32((int32(r) - int32(c.srtt)) / 8)
	}
	c.setRTO()
}

// setRTO is RFC 6298 (2.3) with Linux's lower bound.
func (c *tcb) setRTO() {
	c.rto = rtoFirstUS
	if c.srtt != 0 {
		c.rto = min(max(c.srtt+max(4*c.rttvar, tickNS/1000), rtoMinUS), rtoMaxUS)
	}
}
