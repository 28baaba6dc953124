package sockets

import "xdpd/proto"

// tcpArm sets the connection's one wheel timer to its earliest deadline. A later deadline than the wheel's is left: the
// timer then fires early, finds nothing due and is set again, which is cheaper than moving it with every ACK.
func (h *Host) tcpArm(c *tcb) {
	at := int64(0)
	for _, d := range [...]int64{c.rtxAt, c.ackAt, c.lingerAt} {
		if d != 0 && (at == 0 || d < at) {
			at = d
		}
	}
	if at == 0 {
		return
	}
	if h.timers.running(c.timer) && h.timers.nodes[c.timer].when*tickNS <= at {
		return
	}
	h.timers.start(c.timer, at)
}

// tcpLinger starts or restarts the time that a connection stays without being of use to anybody.
func (h *Host) tcpLinger(i uint32, c *tcb, ns int64) {
	c.lingerAt = h.now + ns
	h.tcpArm(c)
}

func (h *Host) tcpTimer(i uint32) {
	c := h.tcp.at(i)
	if c.lingerAt != 0 && c.lingerAt <= h.now {
		h.tcpFree(i, c)
		return
	}
	if c.ackAt != 0 && c.ackAt <= h.now {
		c.ackAt, c.ackNow = 0, true
		h.tcpMark(i, c)
	}
	if c.rtxAt != 0 && c.rtxAt <= h.now && !h.tcpTimeout(i, c) {
		return
	}
	h.tcpArm(c)
}

// tcpTimeout is the retransmission timer (RFC 6298 section 5) and the persist timer (RFC 9293 3.8.6.1). false: the
// connection was given up.
func (h *Host) tcpTimeout(i uint32, c *tcb) bool {
	limit := uint8(dataRetries)
	if c.state == tcpSynRcvd {
		limit = synRetries
	}
	if c.retries >= limit {
		c.err = ETIMEDOUT
		h.tcpFree(i, c)
		return false
	}
	c.retries++
	c.rttValid = false // Karn: what is sent again is not timed
	c.rto = min(2*c.rto, rtoMaxNS)
	c.rtxAt = h.now + c.rto
	h.count(TCPTimeouts)
	switch {
	case c.state == tcpSynRcvd:
		h.sendControl(c, proto.SYN|proto.ACK, c.iss)
		h.count(TCPRetransmits)
	case c.probing && c.sndWnd > 0:
		h.sendOverride(i, c)
	case c.probing:
		// An old sequence number without data makes any receiver say what its window is (as Linux's tcp_xmit_probe_skb).
		h.sendControl(c, proto.ACK, c.sndUna-1)
	default:
		c.ssthresh = max((c.sndMax-c.sndUna)/2, 2*uint32(c.mss)) // RFC 5681 (4)
		c.cwnd = uint32(c.mss)
		c.sndNxt, c.sndNext = c.sndUna, c.sndHead
		h.tcpMark(i, c)
	}
	return true
}

// sendOverride is for a window that has become small for good: what fits into it goes, however little (RFC 9293
// 3.8.6.2.1).
func (h *Host) sendOverride(i uint32, c *tcb) {
	usable := min(c.sndWnd, c.cwnd)
	if f := c.sndNext; usable >= uint32(h.pool.Buf(f).Len) || h.sendSplit(c, f, int(usable)) {
		h.tcpMark(i, c)
	}
}

// sendSYNACK sends the SYN-ACK, for the first time or again on the peer's request.
func (h *Host) sendSYNACK(i uint32, c *tcb) {
	if c.rcvAdv == 0 {
		c.rcvAdv = c.rcvNxt
	}
	h.sendControl(c, proto.SYN|proto.ACK, c.iss)
	if c.sndMax == c.iss {
		c.sndNxt, c.sndMax = c.iss+1, c.iss+1
		c.rttValid, c.rttSeq, c.rttAt = true, c.iss, h.now
		c.rtxAt = h.now + c.rto
	} else {
		c.rttValid = false
	}
	h.tcpArm(c)
}

// challengeACK answers what may be an attack with our idea of the sequence numbers (RFC 5961), at most a thousand times a
// second. As with icmpLimit, who counts his own answers must not learn what others were sent (CVE-2016-5696).
func (h *Host) challengeACK(i uint32, c *tcb) {
	if !h.tcp.challenge.take(h.now, 1e6, 100-int32(h.sec.next()&31)) {
		return
	}
	h.count(TCPChallenges)
	h.tcpAckSoon(i, c, true)
}

// rttSample is RFC 6298 section 2 with Linux's lower bound of the RTO.
func (c *tcb) rttSample(r int64) {
	if c.srtt == 0 {
		c.srtt, c.rttvar = max(r, 1), r/2
	} else {
		d := c.srtt - r
		if d < 0 {
			d = -d
		}
		c.rttvar += (d - c.rttvar) / 4
		c.srtt += (r - c.srtt) / 8
	}
	c.setRTO()
}

func (c *tcb) setRTO() {
	c.rto = rtoFirstNS
	if c.srtt != 0 {
		c.rto = min(max(c.srtt+max(4*c.rttvar, tickNS), rtoMinNS), rtoMaxNS)
	}
}

// tcpError takes an ICMP error about a segment of ours. It counts only if the quoted sequence number is in flight
// (RFC 5927 section 4), and even then ends nothing: unreachable is a soft error (RFC 1122 4.2.3.9), and what is meant
// will show by the retransmissions' timeout.
func (h *Host) tcpError(k flowKey, seq uint32, err Errno) bool {
	i, ok := h.tcp.flows.get(k)
	if !ok {
		return false
	}
	c := h.tcp.at(i)
	return seqLE(c.sndUna, seq) && seqLT(seq, c.sndMax)
}
