package sockets

import "xdpd/proto"

// TCPDial begins an active open (RFC 9293 3.10.1). local 0: by route; lport 0: an ephemeral one (RFC 6056). The handle is
// in SYN-SENT: event Out says that it is connected, Err|Hup that it failed, and TCPError why. Errors: EADDRNOTAVAIL,
// EADDRINUSE, ENETUNREACH, EINVAL, EAGAIN with MaxConns connections.
func (h *Host) TCPDial(local proto.Addr, lport uint16, remote proto.Addr, rport uint16, now int64) (Handle, Errno) {
	h.now = now
	return h.tcpDial(flowKey{Local: local, Remote: remote, LPort: lport, RPort: rport}, now, loud)
}

// TCPDialHere is TCPDial from a port whose answer comes in on this queue, which no other queue need wait for then
// (Config.RSS). Where none is found, nothing is known, or what is known was wrong (AnswerElsewhere), it sends nothing, and
// the error is EADDRNOTAVAIL.
func (h *Host) TCPDialHere(local, remote proto.Addr, rport uint16, now int64) (Handle, Errno) {
	h.now = now
	if h.counters.Stats[AnswerElsewhere] > 0 {
		return 0, EADDRNOTAVAIL
	}
	return h.tcpDial(flowKey{Local: local, Remote: remote, RPort: rport}, now, here)
}

// TCPExpect waits for the answer to a SYN that a sibling sends, which may come in on any queue: with the same addresses and
// the same at it makes the same SYN of the same sequence number on each, and TCPLaunch sends it from one of them. The others
// send nothing before the answer is here. Of the siblings' sockets one connects or is refused; the others are for TCPAbort.
// Errors as TCPDial.
func (h *Host) TCPExpect(local proto.Addr, lport uint16, remote proto.Addr, rport uint16, at, now int64) (Handle, Errno) {
	h.now = now
	return h.tcpDial(flowKey{Local: local, Remote: remote, LPort: lport, RPort: rport}, at, quiet)
}

// How a connection is dialled.
type dialMode uint8

const (
	loud  dialMode = iota // TCPDial
	here                  // TCPDialHere
	quiet                 // TCPExpect
)

// TCPLaunch sends the SYN of a socket of TCPExpect. Errors: EBADF, EINVAL when it was sent, or answered.
func (h *Host) TCPLaunch(s Handle, now int64) Errno {
	h.now = now
	c := h.tcp.get(s)
	switch {
	case c == nil:
		return EBADF
	case !c.quiet || c.state != tcpSynSent:
		return EINVAL
	}
	c.quiet = false
	h.sendSYN(c)
	return 0
}

// tcpDial makes a connection in SYN-SENT whose SYN leaves at a time.
func (h *Host) tcpDial(k flowKey, at int64, mode dialMode) (Handle, Errno) {
	_, src, ok := h.route(k.Remote)
	switch {
	case k.RPort == 0:
		return 0, EINVAL
	case !ok:
		return 0, ENETUNREACH
	case k.Local != 0 && !h.isLocal(k.Local):
		return 0, EADDRNOTAVAIL
	case h.tcp.conns >= h.cfg.MaxConns:
		return 0, EAGAIN
	case k.Local == 0:
		k.Local = src
	}
	if k.LPort == 0 {
		if k.LPort = h.dialPort(k, mode == here); k.LPort == 0 {
			return 0, EADDRNOTAVAIL
		}
		h.chose(proto.ProtoTCP, k)
	} else if kind, _ := h.tcp.flows.get(k); kind != 0 || mode != quiet && !h.dialClaim(k) {
		return 0, EADDRINUSE
	}
	i, c := h.tcpAlloc(k)
	c.state = tcpSynSent
	c.quiet = mode == quiet
	c.sndUna = h.sec.isn(k, at)
	c.sndNxt = c.sndUna + 1
	c.ecnOK = !h.cfg.NoECN // asked for; the answer decides
	c.rcvScale = h.tcp.scale
	h.tcpSetMSS(c, h.cfg.MTU-40)
	h.sendSYN(c)
	c.rtxAt = at + int64(c.rto)*1000
	h.tcpArm(i, c)
	return h.tcp.handle(i), 0
}

// dialClaim keeps two Hosts of a group from dialling the same flow.
func (h *Host) dialClaim(k flowKey) bool {
	d := h.cfg.Directory
	return d == nil || d.claim(h.sec.flow(k), h.cfg.Self)
}

// sendSYN sends a SYN of an active open, or the SYN-ACK of a simultaneous one. The second try asks for no ECN: a
// middlebox may have dropped the first for it (RFC 3168 6.1.1.1).
func (h *Host) sendSYN(c *tcb) {
	if c.quiet && c.state == tcpSynSent {
		return
	}
	hdr := proto.TCP{
		SrcPort: c.key.LPort, DstPort: c.key.RPort, Seq: c.sndUna, Flags: proto.SYN, Window: uint16(h.synWindow()),
	}
	opt := proto.TCPOptions{
		MSS: uint16(h.cfg.MTU - 40), SACKPermitted: true, HasTS: true, TSVal: h.tsNow(c.key),
		HasWScale: true, WScale: h.tcp.scale,
	}
	if c.ecnOK = c.ecnOK && c.retries == 0; c.ecnOK {
		hdr.Flags |= proto.ECE | proto.CWR
	}
	if c.state == tcpSynRcvd {
		hdr.Flags = proto.SYN | proto.ACK
		hdr.Ack = c.rcvNxt
		opt.SACKPermitted, opt.HasTS, opt.TSEcr, opt.HasWScale = c.sackOK, c.tsOK, c.tsRecent, c.rcvScale != 0
	}
	h.sendBare(c.key, &hdr, &opt)
}

// synSent is RFC 9293 3.10.7.3.
func (h *Host) synSent(i uint32, c *tcb, s *segment) {
	flags := s.tcp.Flags
	if flags&proto.ACK != 0 && s.tcp.Ack != c.sndNxt {
		if flags&proto.RST == 0 {
			h.sendRST(c.key, s.tcp.Ack, 0, proto.RST)
		}
		h.drop(s.packet, TCPOutOfWindow)
		return
	}
	if flags&proto.RST != 0 {
		if flags&proto.ACK == 0 {
			h.drop(s.packet, TCPNoACK) // anybody could have sent it
			return
		}
		h.discard(s.packet)
		h.tcpFail(i, c, ECONNREFUSED)
		return
	}
	if flags&proto.SYN == 0 {
		h.drop(s.packet, TCPBadFlag)
		return
	}
	h.tcpSYNOptions(c, s)
	c.rcvAdv, c.lastAck = c.rcvNxt+h.synWindow(), c.rcvNxt
	if flags&proto.ACK == 0 { // simultaneous open
		c.ecnOK = false
		c.state = tcpSynRcvd
		h.sendSYN(c)
		h.discard(s.packet)
		return
	}
	c.ecnOK = c.ecnOK && flags&(proto.ECE|proto.CWR) == proto.ECE
	if c.retries == 0 { // a user timeout may have moved the timer: milliseconds say how much of it can be true
		c.rttSample(min(uint32((h.now-c.rtxAt)/1000)+c.rto, (h.nowMS()-c.sentAt+1)*1000))
	}
	if s.hops > 0 && h.answeredHere(proto.ProtoTCP, c.key) {
		h.count(AnswerElsewhere)
	}
	c.sndUna = c.sndNxt
	h.tcpEstablish(i, c)
	c.ackNow = true
	h.tcpMark(i, c)
	if s.data == 0 && !s.fin {
		h.discard(s.packet)
		return
	}
	s.seq++ // data behind the SYN: the rest of the segment is as any other
	s.tcp.Flags &^= proto.SYN
	h.tcpData(i, c, s)
}

// tcpSYNOptions takes what the peer's SYN or SYN-ACK offers.
func (h *Host) tcpSYNOptions(c *tcb, s *segment) {
	c.rcvNxt = s.seq + 1
	c.sackOK = s.opt.SACKPermitted
	if c.tsOK = s.opt.HasTS; c.tsOK {
		c.tsRecent, c.tsAt = s.opt.TSVal, h.nowHH()
	}
	c.rcvScale = 0
	if s.opt.HasWScale {
		c.sndScale, c.rcvScale = s.opt.WScale, h.tcp.scale
	}
	peer := int(s.opt.MSS)
	if peer == 0 {
		peer = mssNone
	}
	h.tcpSetMSS(c, peer)
	c.sndWnd, c.sndWl1 = uint32(s.tcp.Window), s.seq // a SYN's window is never scaled
	c.maxWnd = c.sndWnd
}

// afterSYN sets window and timeout by how often the SYN, or its answer, was sent again: RFC 6928 section 2 keeps the
// large initial window after one such loss, RFC 6298 (5.7) begins with a longer timeout.
func (c *tcb) afterSYN(retries uint8) {
	c.cwnd = initialCwnd(c)
	if retries > 1 {
		c.cwnd = uint32(c.mss)
	}
	c.setRTO()
	if retries > 0 {
		c.rto = rtoLostUS
	}
}

// tcpEstablish is the moment at which the owner may write.
func (h *Host) tcpEstablish(i uint32, c *tcb) {
	c.state, c.opened = tcpEstablished, true
	if c.wantFIN {
		c.state = tcpFinWait1
	}
	if d := h.cfg.Directory; d != nil { // of siblings that expect the same answer it came to this one
		d.set(h.sec.flow(c.key), h.cfg.Self)
	}
	c.afterSYN(c.retries)
	c.retries, c.rtxAt, c.heardAt = 0, 0, h.nowMS()
	h.keepAliveArm(i, c)
	h.tcpMark(i, c)
	h.notify(h.tcp.handle(i), happenedState)
}
