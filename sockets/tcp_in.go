package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

func seqLT(a, b uint32) bool { return int32(a-b) < 0 }
func seqLE(a, b uint32) bool { return int32(a-b) <= 0 }

// segment is a TCP segment on its way in. seq and n change as it is trimmed.
type segment struct {
	*packet
	tcp  proto.TCP
	opt  proto.TCPOptions
	seq  uint32 // of the first byte of data, or of SYN
	data int    // bytes of data
	fin  bool
}

// length is SEG.LEN: data, SYN and FIN.
func (s *segment) length() uint32 {
	n := uint32(s.data)
	if s.tcp.Flags&proto.SYN != 0 {
		n++
	}
	if s.fin {
		n++
	}
	return n
}

// tcpInput is tcp_v4_rcv.
func (h *Host) tcpInput(p *packet) {
	data := h.pool.Data(p.f)
	hdr, fault := proto.ParseTCP(data)
	if fault != proto.OK {
		h.drop(p, Drop(fault))
		return
	}
	if !h.checkL4(p, hdr.Checksum) {
		h.drop(p, Drop(proto.TCPChecksum))
		return
	}
	s := segment{packet: p, tcp: hdr, seq: hdr.Seq, data: p.n - int(hdr.DataOff), fin: hdr.Flags&proto.FIN != 0}
	proto.ParseTCPOptions(data[proto.TCPHeaderLen:hdr.DataOff], &s.opt)
	b := h.pool.Buf(p.f)
	b.Off += uint16(hdr.DataOff)
	b.Len -= uint16(hdr.DataOff)
	k := flowKey{Local: p.ip.Dst, Remote: p.ip.Src, LPort: hdr.DstPort, RPort: hdr.SrcPort}
	if i, ok := h.tcp.flows.get(k); ok {
		c := h.tcp.at(i)
		if c.state != tcpTimeWait || !h.timeWaitReuse(i, c, &s) {
			h.tcpSegment(i, c, &s)
			return
		}
	}
	li, ok := h.tcp.bound.get(flowKey{Local: k.Local, LPort: k.LPort})
	if !ok {
		li, ok = h.tcp.bound.get(flowKey{LPort: k.LPort})
	}
	if !ok {
		h.tcpClosedPort(k, &s)
		return
	}
	h.tcpListenInput(li, k, &s)
}

// tcpClosedPort is CLOSED (RFC 9293 3.10.7.1): RST for anything but a RST.
func (h *Host) tcpClosedPort(k flowKey, s *segment) {
	switch {
	case s.tcp.Flags&proto.RST != 0:
	case s.tcp.Flags&proto.ACK != 0:
		h.sendRST(k, s.tcp.Ack, 0, proto.RST)
	default:
		h.sendRST(k, 0, s.seq+s.length(), proto.RST|proto.ACK)
	}
	h.drop(s.packet, TCPNoSocket)
}

// tcpListenInput is LISTEN (RFC 9293 3.10.7.2).
func (h *Host) tcpListenInput(li uint32, k flowKey, s *segment) {
	switch flags := s.tcp.Flags; {
	case flags&proto.RST != 0:
		h.drop(s.packet, TCPBadFlag)
	case flags&proto.ACK != 0: // with SYN or FIN too: it belongs to a connection that we do not know
		h.sendRST(k, s.tcp.Ack, 0, proto.RST)
		h.drop(s.packet, TCPNoSocket)
	case flags&(proto.SYN|proto.FIN) == proto.SYN:
		h.tcpSYN(li, k, s)
	default:
		h.drop(s.packet, TCPBadFlag)
	}
}

// tcpSYN opens a connection in SYN-RECEIVED. Data on the SYN is not taken; the peer sends it again.
func (h *Host) tcpSYN(li uint32, k flowKey, s *segment) {
	l := &h.tcp.listeners[li]
	if l.half >= h.cfg.Backlog || l.ready.n >= h.cfg.Backlog || h.tcp.conns >= h.cfg.MaxConns {
		h.drop(s.packet, TCPBacklogFull)
		return
	}
	i, c := h.tcpAlloc(k)
	c.state, c.embryo, c.listener = tcpSynRcvd, true, li
	l.half++
	c.irs, c.rcvNxt = s.seq, s.seq+1
	c.iss = h.sec.isn(k, h.now)
	c.sndUna, c.sndNxt, c.sndMax = c.iss, c.iss, c.iss
	c.rto = rtoFirstNS
	peer := int(s.opt.MSS)
	if peer == 0 {
		peer = 536 // RFC 9293 MUST-15
	}
	c.mss = uint16(min(max(peer, 64), h.cfg.MTU-40)) // a peer cannot make us send headers for single bytes
	if s.opt.HasTS {
		c.tsOK, c.tsRecent, c.tsRecentAt = true, s.opt.TSVal, h.now
		c.mss -= 12
	}
	c.rcvMSS = c.mss
	if s.opt.HasWScale {
		c.sndScale, c.rcvScale = s.opt.WScale, tcpScale
	}
	c.sndWnd, c.maxWnd = uint32(s.tcp.Window), uint32(s.tcp.Window) // a SYN's window is never scaled (RFC 7323 2.2)
	c.sndWl1, c.sndWl2 = s.seq, c.iss
	c.cwnd, c.ssthresh = tcpIWSegs*uint32(c.mss), 1<<30
	h.discard(s.packet)
	h.sendSYNACK(i, c)
}

// timeWaitReuse lets a new SYN take the place of a connection in TIME-WAIT when its sequence numbers, or its timestamps
// (RFC 6191), cannot be confused with the old ones.
func (h *Host) timeWaitReuse(i uint32, c *tcb, s *segment) bool {
	if s.tcp.Flags&(proto.SYN|proto.ACK|proto.RST|proto.FIN) != proto.SYN {
		return false
	}
	newer := c.tsOK && s.opt.HasTS && seqLT(c.tsRecent, s.opt.TSVal)
	if !newer && !seqLT(c.rcvNxt, s.seq) {
		return false
	}
	h.tcpFree(i, c)
	return true
}

// tcpSegment is RFC 9293 3.10.7.4 with the checks of RFC 7323 and RFC 5961: every path frees or queues the segment.
func (h *Host) tcpSegment(i uint32, c *tcb, s *segment) {
	flags := s.tcp.Flags
	if c.state == tcpSynRcvd && flags&(proto.SYN|proto.ACK|proto.RST) == proto.SYN && s.seq == c.irs {
		h.drop(s.packet, TCPDuplicate)
		h.sendSYNACK(i, c) // its answer was lost
		return
	}
	if why := h.tcpAcceptable(c, s); why != 0 {
		if flags&proto.RST == 0 {
			h.tcpAckInvalid(i, c, s)
		}
		h.drop(s.packet, why)
		return
	}
	switch {
	case flags&proto.RST != 0:
		h.tcpRST(i, c, s)
		return
	case flags&proto.SYN != 0: // RFC 5961 section 4
		h.challengeACK(i, c)
		h.drop(s.packet, TCPBadFlag)
		return
	case flags&proto.ACK == 0:
		h.drop(s.packet, TCPNoACK)
		return
	}
	if c.state == tcpSynRcvd && !h.tcpOpened(i, c, s) {
		return
	}
	if !h.tcpACK(i, c, s) {
		return
	}
	if c.tsOK && s.opt.HasTS && seqLE(s.seq, c.lastAck) && seqLE(c.tsRecent, s.opt.TSVal) {
		c.tsRecent, c.tsRecentAt = s.opt.TSVal, h.now
	}
	h.tcpData(i, c, s)
}

// tcpAcceptable is the sequence check, behind PAWS (RFC 7323 5.3). 0: go on.
func (h *Host) tcpAcceptable(c *tcb, s *segment) Drop {
	if c.tsOK && s.tcp.Flags&proto.RST == 0 {
		const pawsIdleNS = 24 * 24 * 3600 * 1_000_000_000
		if !s.opt.HasTS {
			return TCPPAWS // RFC 7323 3.2: timestamps were agreed on
		}
		if seqLT(s.opt.TSVal, c.tsRecent) && h.now-c.tsRecentAt < pawsIdleNS {
			return TCPPAWS
		}
	}
	wnd, n := c.rcvAdv-c.rcvNxt, s.length()
	end := s.seq + n
	switch {
	case n == 0:
		// The right edge itself is still good, as in Linux's tcp_sequence: there stands a peer that has filled the window.
		// To refuse its ACKs would lose what they say, and answering each would be a war of ACKs.
		if s.seq-c.rcvNxt <= wnd {
			return 0
		}
	case wnd == 0:
		// RFC 9293 3.10.7.4: ACKs and the like are still taken; the data is trimmed away.
		if s.seq == c.rcvNxt {
			return 0
		}
	case s.seq-c.rcvNxt < wnd || end-1-c.rcvNxt < wnd:
		return 0
	}
	if seqLE(end, c.rcvNxt) {
		return TCPDuplicate
	}
	return TCPOutOfWindow
}

// tcpAckInvalid answers a segment outside the window. A FIN that comes again restarts TIME-WAIT.
func (h *Host) tcpAckInvalid(i uint32, c *tcb, s *segment) {
	if c.state == tcpTimeWait && s.fin {
		h.tcpLinger(i, c, timeWaitNS)
	}
	if (s.data > 0 || s.fin) && s.tcp.Flags&proto.SYN == 0 {
		h.tcpAckSoon(i, c, true) // no part of a loop of ACKs, and a peer whose ACK was lost needs it
		return
	}
	h.challengeACK(i, c)
}

// tcpRST is RFC 5961 3.2: only the exact next sequence number resets, others are asked about.
func (h *Host) tcpRST(i uint32, c *tcb, s *segment) {
	if s.seq != c.rcvNxt {
		h.challengeACK(i, c)
		h.drop(s.packet, TCPOutOfWindow)
		return
	}
	h.discard(s.packet)
	if c.state != tcpTimeWait { // RFC 1337: TIME-WAIT must not be assassinated
		c.err = ECONNRESET
		h.tcpFree(i, c)
	}
}

// tcpOpened handles the ACK that completes a handshake.
func (h *Host) tcpOpened(i uint32, c *tcb, s *segment) bool {
	if !seqLT(c.sndUna, s.tcp.Ack) || seqLT(c.sndMax, s.tcp.Ack) {
		h.sendRST(c.key, s.tcp.Ack, 0, proto.RST)
		h.drop(s.packet, TCPOutOfWindow)
		return false
	}
	l := &h.tcp.listeners[c.listener]
	if l.ready.n >= h.cfg.Backlog {
		h.drop(s.packet, TCPBacklogFull) // the peer's data, or our SYN-ACK, comes again
		return false
	}
	l.half--
	c.state = tcpEstablished
	c.sndWl1, c.sndWl2 = s.seq-1, s.tcp.Ack // so that tcpACK takes the window
	h.acceptPush(l, i)
	h.notify(makeHandle(kindListener, l.gen, c.listener))
	return true
}

// tcpACK processes the acknowledgement. false: the segment is done with.
func (h *Host) tcpACK(i uint32, c *tcb, s *segment) bool {
	ack := s.tcp.Ack
	if seqLT(c.sndMax, ack) || seqLT(ack, c.sndUna-max(c.maxWnd, 1<<16)) { // RFC 5961 5.2
		h.challengeACK(i, c)
		h.drop(s.packet, TCPOutOfWindow)
		return false
	}
	if seqLT(c.sndUna, ack) || c.probing && s.tcp.Window != 0 {
		c.setRTO() // the peer takes data: what backing off added goes
	}
	acked := seqLT(c.sndUna, ack)
	if acked || c.probing || s.tcp.Window == 0 { // else it shows that the peer lives, not that it hears us
		c.retries = 0
	}
	if acked {
		h.tcpAcked(i, c, ack)
	}
	// An ACK of something new brings its window along, even on data that is sent again: RFC 9293 3.10.7.4 would keep the
	// old size and move the edge (tcp_may_update_window, net/ipv4/tcp_input.c).
	if acked || seqLE(c.sndUna, ack) && (seqLT(c.sndWl1, s.seq) || c.sndWl1 == s.seq && seqLE(c.sndWl2, ack)) {
		wnd := uint32(s.tcp.Window) << c.sndScale
		if wnd != c.sndWnd {
			h.tcpMark(i, c)
		}
		c.sndWnd, c.sndWl1, c.sndWl2 = wnd, s.seq, ack
		c.maxWnd = max(c.maxWnd, wnd)
	}
	if c.finSent && c.sndUna == c.sndMax && !h.tcpFinAcked(i, c) {
		h.discard(s.packet)
		return false
	}
	return true
}

// tcpAcked moves SND.UNA to ack: frees what was acknowledged, measures, opens the congestion window.
func (h *Host) tcpAcked(i uint32, c *tcb, ack uint32) {
	n := ack - c.sndUna // with SYN and FIN
	c.sndUna = ack
	if seqLT(c.sndNxt, ack) {
		c.sndNxt = ack
	}
	if c.rttValid && seqLT(c.rttSeq, ack) {
		c.rttValid = false
		c.rttSample(h.now - c.rttAt)
	}
	h.sendAcked(c, min(n, c.sndBytes))
	// RFC 5681 3.1 with byte counting (RFC 3465, L = 2).
	if c.cwnd < c.ssthresh {
		c.cwnd += min(n, 2*uint32(c.mss))
	} else {
		c.cwnd += max(1, uint32(c.mss)*uint32(c.mss)/c.cwnd)
	}
	c.cwnd = min(c.cwnd, 1<<30)
	c.probing = false
	c.rtxAt = 0
	if c.sndUna != c.sndMax {
		c.rtxAt = h.now + c.rto // RFC 6298 5.3
	}
	h.tcpMark(i, c)
	if !c.blocked && int(c.sndBytes) <= h.cfg.SndBuf/3*2 && int(c.sndBytes+n) > h.cfg.SndBuf/3*2 {
		h.notify(h.tcp.handle(i)) // Out, from here on
	}
}

// tcpFinAcked moves on after our FIN was acknowledged. false: the connection is gone.
func (h *Host) tcpFinAcked(i uint32, c *tcb) bool {
	switch c.state {
	case tcpFinWait1:
		c.state = tcpFinWait2
		if c.orphan {
			h.tcpLinger(i, c, finWait2NS)
		}
	case tcpClosing:
		c.state = tcpTimeWait
		h.tcpLinger(i, c, timeWaitNS)
	case tcpLastAck:
		h.tcpFree(i, c)
		return false
	}
	return true
}

// tcpData queues the in-order part of the segment and handles its FIN.
func (h *Host) tcpData(i uint32, c *tcb, s *segment) {
	if s.data == 0 && !s.fin {
		h.discard(s.packet)
		return
	}
	switch c.state {
	case tcpEstablished, tcpFinWait1, tcpFinWait2:
	default: // the peer sent its FIN already: this is that FIN again, or nonsense
		h.tcpAckSoon(i, c, true)
		h.drop(s.packet, TCPDuplicate)
		return
	}
	if seqLT(c.rcvNxt, s.seq) {
		h.tcpAckSoon(i, c, true) // RFC 5681 4.2: at once
		h.drop(s.packet, TCPOutOfOrder)
		return
	}
	// Of what the sequence check let through, the front may be old and the end beyond the window.
	h.trimFront(s, int(c.rcvNxt-s.seq))
	if room := int(c.rcvAdv - c.rcvNxt); s.data > room {
		s.fin = false
		h.tcpAckSoon(i, c, true)
		h.trimData(s, room)
	}
	if c.orphan && s.data > 0 { // RFC 1122 4.2.2.13: nobody will read it
		h.drop(s.packet, TCPClosed)
		h.tcpAbort(i, c)
		return
	}
	if s.data == 0 {
		h.discard(s.packet)
	} else if !h.rcvQueue(c, s) {
		return // not acknowledged; it comes again
	}
	h.tcpAckSoon(i, c, s.fin || c.rcvNxt-c.lastAck >= 2*uint32(c.rcvMSS))
	if s.fin {
		h.tcpPeerFIN(i, c)
	}
	h.notify(h.tcp.handle(i))
}

// tcpPeerFIN is the eighth step of RFC 9293 3.10.7.4.
func (h *Host) tcpPeerFIN(i uint32, c *tcb) {
	c.rcvNxt++
	if seqLT(c.rcvAdv, c.rcvNxt) {
		c.rcvAdv = c.rcvNxt // a FIN is taken behind a full window too
	}
	c.rcvFIN = true
	switch c.state {
	case tcpEstablished:
		c.state = tcpCloseWait
	case tcpFinWait1:
		c.state = tcpClosing // our FIN is not acknowledged, or it would be FIN-WAIT-2
	case tcpFinWait2:
		c.state = tcpTimeWait
		h.tcpLinger(i, c, timeWaitNS)
	}
}

// trimFront cuts k old bytes off the segment's front; k is at most its length with FIN.
func (h *Host) trimFront(s *segment, k int) {
	k = min(k, s.data)
	s.seq += uint32(k)
	s.data -= k
	f := s.f
	for k > 0 {
		b := h.pool.Buf(f)
		n := min(k, int(b.Len))
		b.Off += uint16(n)
		b.Len -= uint16(n)
		k -= n
		f = b.Next
	}
}

// trimData cuts the segment's data to n bytes.
func (h *Host) trimData(s *segment, n int) {
	s.data = n
	s.packet.n = n
	for f := s.f; f != umem.None; {
		b := h.pool.Buf(f)
		b.Len = uint16(min(n, int(b.Len)))
		n -= int(b.Len)
		if !s.held {
			return
		}
		f = b.Next
	}
}

// copybreak is the size below which received data is copied behind the data before it, as NIC drivers do: a reader of
// small messages must not hold a whole frame for each.
const copybreak = 512

// rcvQueue appends the segment's data. false: no memory, and the segment was dropped.
func (h *Host) rcvQueue(c *tcb, s *segment) bool {
	c.rcvMSS = max(c.rcvMSS, uint16(min(s.data, 0xffff)))
	switch {
	case !s.held && h.rcvCopied(c, s.f):
		h.count(RxCoalesced)
		h.discard(s.packet)
	case !h.hold(s.packet):
		return false
	default:
		h.count(RxDelivered)
		for f := s.f; f != umem.None; { // each frame by itself: a segment may come in fragments of 8 bytes
			next := h.pool.Buf(f).Next
			h.rcvLink(c, f)
			f = next
		}
	}
	c.rcvBytes += uint32(s.data)
	c.rcvNxt += uint32(s.data)
	return true
}

// rcvCopied copies the data of f behind the last frame's, if it is small and has room there; nothing always has.
func (h *Host) rcvCopied(c *tcb, f umem.Frame) bool {
	data := h.pool.Data(f)
	if len(data) > copybreak || c.rcvHead == umem.None {
		return len(data) == 0
	}
	tail := h.pool.Buf(c.rcvTail)
	end := int(tail.Off) + int(tail.Len)
	if end+len(data) > h.pool.Region().ChunkSize() {
		return len(data) == 0
	}
	tail.Len += uint16(copy(h.pool.Chunk(c.rcvTail)[end:], data))
	return true
}

// rcvLink puts a held frame behind the queue, or its data into the frame that is there.
func (h *Host) rcvLink(c *tcb, f umem.Frame) {
	if h.rcvCopied(c, f) {
		h.release(f)
		return
	}
	h.pool.Buf(f).Next = umem.None
	if c.rcvHead == umem.None {
		c.rcvHead = f
	} else {
		h.pool.Buf(c.rcvTail).Next = f
	}
	c.rcvTail = f
}
