package sockets

import "xdpd/proto"

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
	syn  bool // it had a SYN, which was dealt with: its window is not scaled (RFC 7323 2.2)
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
	k := flowKey{Local: p.ip.Dst, Remote: p.ip.Src, LPort: hdr.DstPort, RPort: hdr.SrcPort}
	kind, i := h.tcp.flows.get(k)
	if kind == 0 && h.tcpPassOver(k, p) {
		return
	}
	s := segment{packet: p, tcp: hdr, seq: hdr.Seq, data: p.n - int(hdr.DataOff), fin: hdr.Flags&proto.FIN != 0}
	proto.ParseTCPOptions(data[proto.TCPHeaderLen:hdr.DataOff], &s.opt)
	b := h.pool.Buf(p.f)
	b.Off += uint16(hdr.DataOff)
	b.Len -= uint16(hdr.DataOff)
	switch kind {
	case demuxTCB:
		c := h.tcp.at(i)
		if c.state == tcpTimeWait && h.timeWaitReuse(i, c, &s) {
			break
		}
		h.tcpSegment(i, c, &s)
		return
	case demuxHalf:
		h.halfInput(i, &s)
		return
	case demuxTW:
		if !h.twInput(i, &s) {
			return
		}
	}
	li, ok := h.tcp.listening(k)
	switch {
	case ok:
		h.tcpListenInput(li, k, &s)
	case s.again && h.passAgain(k, &s):
	default:
		h.tcpClosedPort(k, &s)
	}
}

// listening finds the listener for a flow.
func (t *tcpTable) listening(k flowKey) (li uint32, ok bool) {
	if li, ok = t.bound.get(flowKey{Local: k.Local, LPort: k.LPort}); !ok {
		li, ok = t.bound.get(flowKey{LPort: k.LPort})
	}
	return li, ok
}

// tcpClosedPort is CLOSED (RFC 9293 3.10.7.1): RST for anything but a RST.
func (h *Host) tcpClosedPort(k flowKey, s *segment) {
	switch {
	case s.tcp.Flags&proto.RST != 0:
	case s.tcp.Flags&proto.ACK != 0:
		h.sendRST(k, s.tcp.Ack, 0, proto.RST)
	default:
		h.sendRST(k, 0, s.seq+s.length(), rstAck)
	}
	h.drop(s.packet, TCPNoSocket)
}

// tcpListenInput is LISTEN (RFC 9293 3.10.7.2).
func (h *Host) tcpListenInput(li uint32, k flowKey, s *segment) {
	switch flags := s.tcp.Flags; {
	case flags&proto.RST != 0:
		h.drop(s.packet, TCPBadFlag)
	case flags&proto.ACK != 0: // with SYN or FIN too: it belongs to a connection that we do not know
		if flags&proto.SYN == 0 && h.cookieOpen(li, k, s) {
			return
		}
		if flags&proto.SYN != 0 || !h.cookieLikely(li, k, s) {
			h.sendRST(k, s.tcp.Ack, 0, proto.RST)
		}
		h.drop(s.packet, TCPNoSocket)
	case flags&(proto.SYN|proto.FIN) == proto.SYN:
		h.tcpSYN(li, k, s)
	default:
		h.drop(s.packet, TCPBadFlag)
	}
}

// timeWaitReuse lets a new SYN take the place of a connection in TIME-WAIT that has an owner.
func (h *Host) timeWaitReuse(i uint32, c *tcb, s *segment) bool {
	if !h.mayReuse(c.key, c.tsOK, c.tsRecent, c.rcvNxt, s) {
		return false
	}
	s.again, s.after = true, c.sndNxt
	h.tcpFree(i, c)
	return true
}

// tcpSegment is RFC 9293 3.10.7.4 with the checks of RFC 7323 and RFC 5961: every path frees or queues the segment.
func (h *Host) tcpSegment(i uint32, c *tcb, s *segment) {
	flags := s.tcp.Flags
	switch {
	case c.state == tcpSynSent:
		h.synSent(i, c, s)
		return
	case c.state == tcpSynRcvd && flags&proto.SYN != 0 && s.seq+1 == c.rcvNxt:
		// Simultaneous open: the peer's SYN again, or with an ACK what completes the handshake.
		if flags&proto.ACK == 0 {
			h.drop(s.packet, TCPDuplicate)
			h.challengeACK(i, c)
			return
		}
		s.seq++
		s.tcp.Flags &^= proto.SYN
		s.syn = true
		flags = s.tcp.Flags
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
	c.heardAt = h.nowMS()
	if !c.probing {
		c.probes = 0 // a keep-alive probe was answered
	}
	if c.idleAt == 0 {
		h.keepAliveArm(i, c)
	}
	if c.state == tcpSynRcvd && !h.tcpOpened(i, c, s) {
		return
	}
	if !h.tcpACK(i, c, s) {
		return
	}
	if c.tsOK && s.opt.HasTS && seqLE(s.seq, c.lastAck) && (seqLE(c.tsRecent, s.opt.TSVal) || h.tsOutdated(c)) {
		c.tsRecent, c.tsAt = s.opt.TSVal, h.nowHH()
	}
	h.tcpData(i, c, s)
}

// tcpAcceptable is the sequence check, behind PAWS (RFC 7323 5.3). 0: go on.
func (h *Host) tcpAcceptable(c *tcb, s *segment) Drop {
	if c.tsOK && s.tcp.Flags&proto.RST == 0 {
		if !s.opt.HasTS {
			return TCPPAWS // RFC 7323 3.2: timestamps were agreed on
		}
		if seqLT(s.opt.TSVal, c.tsRecent) && !h.tsOutdated(c) {
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

// tsOutdated reports whether TS.Recent is so old that the peer's clock may have gone around (RFC 7323 5.5).
func (h *Host) tsOutdated(c *tcb) bool {
	const pawsIdleHH = 24 * 48 // 24 days
	return h.nowHH()-c.tsAt >= pawsIdleHH
}

// tcpAckInvalid answers a segment outside the window, or with an old timestamp.
func (h *Host) tcpAckInvalid(i uint32, c *tcb, s *segment) {
	if c.state == tcpTimeWait && s.fin && s.seq+s.length() == c.rcvNxt {
		h.tcpLinger(i, c, timeWaitNS) // the FIN again: its ACK was lost
	}
	if c.tsOK && !s.opt.HasTS {
		return // RFC 7323 3.2: dropped without an answer
	}
	if (s.data > 0 || s.fin) && s.tcp.Flags&proto.SYN == 0 {
		if end := s.seq + uint32(s.data); c.sackOK && s.data > 0 && seqLE(end, c.rcvNxt) {
			h.dsackNote(i, c, s.seq, end)
		}
		c.quick = quickACKs
		h.tcpAckSoon(i, c, true) // no part of a loop of ACKs, and a peer whose ACK was lost needs it
		return
	}
	h.challengeACK(i, c)
}

// tcpRST is RFC 5961 3.2: only the exact next sequence number resets, others are asked about.
func (h *Host) tcpRST(i uint32, c *tcb, s *segment) {
	if s.seq != c.rcvNxt && !h.sackEdge(c, s.seq) {
		h.challengeACK(i, c)
		h.drop(s.packet, TCPOutOfWindow)
		return
	}
	h.discard(s.packet)
	switch {
	case c.state == tcpTimeWait: // RFC 1337: TIME-WAIT must not be assassinated
	case c.state == tcpSynRcvd:
		h.tcpFail(i, c, ECONNREFUSED)
	default:
		h.tcpFail(i, c, ECONNRESET)
	}
}

// sackEdge reports the right edge of the highest block that was SACKed: a peer whose data was lost on the way resets
// there (as tcp_reset_check and its kin in net/ipv4/tcp_input.c).
func (h *Host) sackEdge(c *tcb, seq uint32) bool {
	x := h.activeOf(c)
	if x == nil || x.nsack == 0 {
		return false
	}
	top := x.sacks[0][1]
	for _, b := range x.sacks[1:x.nsack] {
		top = seqMax(top, b[1])
	}
	return seq == top
}

// tcpOpened handles the ACK that completes a simultaneous open.
func (h *Host) tcpOpened(i uint32, c *tcb, s *segment) bool {
	if s.tcp.Ack != c.sndNxt {
		h.sendRST(c.key, s.tcp.Ack, 0, proto.RST)
		h.drop(s.packet, TCPOutOfWindow)
		return false
	}
	c.sndUna = c.sndNxt
	c.sndWl1 = s.seq - 1 // so that tcpACK takes the window
	h.tcpEstablish(i, c)
	return true
}
