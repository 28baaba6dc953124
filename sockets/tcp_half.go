package sockets

import (
	"math/bits"

	"xdpd/proto"
)

// halfOpen is a connection in SYN-RECEIVED that a peer opened: what SYN and SYN-ACK said (request_sock in
// include/net/request_sock.h). The time-outs of all that were sent equally often are equally long, so that a list for
// each number of retries, in the order of their deadlines, takes the place of timers.
type halfOpen struct {
	key      flowKey
	irs, iss uint32
	tsRecent uint32
	listener uint32
	link     link
	sentAt   int64 // when the last SYN-ACK was sent
	wnd      uint16
	mss      uint16 // as the peer said
	flags    uint8
	sndScale uint8 // noScale: the peer does not scale
	retries  uint8
	asked    uint8 // SYN-ACKs and ACKs sent because of what the peer sent
}

// What a SYN agreed to.
const (
	halfTS = 1 << iota
	halfSACK
	halfECN
)

const expireMax = 256 // records of a kind that one turn deals with

const halfAnswers = 8 // to SYNs that come again, and to what may be an attack

const noScale = 15 // fits the four bits that a SYN cookie has

type halfTable struct {
	slab[halfOpen]
	lists [synRetries + 1]fifo
	timer uint32
}

func (t *halfTable) init(h *Host) { t.timer = h.timers.alloc(timerOwner(timerHalf, 0)) }

func (t *halfTable) link(i uint32) *link { return &t.at(i).link }

func (r *halfOpen) due() int64 { return r.sentAt + rtoFirstUS*1000<<r.retries }

// fromSYN takes what a SYN says.
func (r *halfOpen) fromSYN(k flowKey, s *segment) {
	r.key, r.irs, r.wnd = k, s.seq, s.tcp.Window
	r.mss, r.sndScale = s.opt.MSS, noScale
	if r.mss == 0 {
		r.mss = mssNone // RFC 9293 MUST-15
	}
	if s.opt.HasWScale {
		r.sndScale = s.opt.WScale
	}
	if s.opt.HasTS {
		r.flags |= halfTS
		r.tsRecent = s.opt.TSVal
	}
	if s.opt.SACKPermitted {
		r.flags |= halfSACK
	}
}

// backlogFull reports whether a listener can have no more connections.
func (h *Host) backlogFull(l *tcpListener) bool {
	return l.ready.n >= h.cfg.Backlog || h.tcp.conns >= h.cfg.MaxConns || h.crowded(l.account)
}

// tcpSYN answers a SYN to a listener. Data on it is not taken; the peer sends it again.
func (h *Host) tcpSYN(li uint32, k flowKey, s *segment) {
	t, l := &h.tcp.half, &h.tcp.listeners[li]
	if h.backlogFull(l) {
		h.drop(s.packet, TCPBacklogFull)
		return
	}
	var r halfOpen
	r.fromSYN(k, s)
	// RFC 3168 6.1.1: a SYN with both flags asks for ECN; a SYN that arrives marked does not come from such a host.
	if s.tcp.Flags&(proto.ECE|proto.CWR) == proto.ECE|proto.CWR && s.ip.TOS&ecnMask == 0 && !h.cfg.NoECN {
		r.flags |= halfECN
	}
	r.listener = li
	if l.half >= h.cfg.Backlog || t.n >= h.cfg.MaxConns {
		h.count(TCPCookies)
		l.cookieAt = h.now
		if d := h.cfg.Directory; d != nil {
			d.cookieAt.Store(h.now)
		}
		h.sendCookie(&r)
		h.discard(s.packet)
		return
	}
	r.iss = h.sec.isn(k, h.now)
	if after := s.after + 0xffff; s.again && seqLT(r.iss, after) {
		r.iss = after // as tcp_timewait_state_process: the old connection was faster than the clock
	}
	r.sentAt = h.now
	i, p := t.alloc()
	*p = r
	h.tcp.flows.put(demuxHalf, i)
	l.half++
	h.discard(s.packet)
	h.sendSYNACK(p, h.tsNow(k))
	h.halfPush(i, p)
}

// halfPush starts the record's time.
func (h *Host) halfPush(i uint32, r *halfOpen) {
	t := &h.tcp.half
	t.lists[r.retries].push(i, t.link)
	if due := r.due(); !h.timers.running(t.timer) || due < h.timers.when(t.timer) {
		h.timers.start(t.timer, due)
	}
}

func (h *Host) halfFree(i uint32) {
	t := &h.tcp.half
	r := t.at(i)
	h.tcp.flows.del(r.key)
	h.tcp.listeners[r.listener].half--
	t.lists[r.retries].remove(i, t.link)
	t.release(i)
}

// halfTimer sends SYN-ACKs again whose time has come, and gives up on those whose peers never answered: a bounded number
// in one turn, and no more than there are frames for.
func (h *Host) halfTimer() {
	t := &h.tcp.half
	next, left := int64(0), expireMax
	for n := len(t.lists) - 1; n >= 0; n-- {
		for q := &t.lists[n]; q.head != 0; {
			i := q.head - 1
			r := t.at(i)
			if due := r.due(); due > h.now {
				if next == 0 || due < next {
					next = due
				}
				break
			}
			if left--; left < 0 {
				h.timers.start(t.timer, h.now+tickNS)
				return
			}
			if h.txFree() == 0 {
				h.timers.start(t.timer, h.now+delackNS)
				return
			}
			if n == synRetries {
				h.halfFree(i)
				h.count(TCPTimeouts)
				continue
			}
			q.remove(i, t.link)
			r.retries++
			r.sentAt = h.now
			t.lists[r.retries].push(i, t.link)
			h.count(TCPRetransmits)
			h.sendSYNACK(r, h.tsNow(r.key))
			if due := r.due(); next == 0 || due < next {
				next = due
			}
		}
	}
	if next != 0 {
		h.timers.start(t.timer, next)
	}
}

// halfInput is RFC 9293 3.10.7.4 for SYN-RECEIVED of a passive open, with RFC 5961's challenges.
func (h *Host) halfInput(i uint32, s *segment) {
	r := h.tcp.half.at(i)
	flags := s.tcp.Flags
	if flags&(proto.SYN|proto.ACK|proto.RST) == proto.SYN && s.seq == r.irs {
		h.drop(s.packet, TCPDuplicate)
		if r.asked < halfAnswers { // its answer was lost; but the same SYN for ever is no reason for as many answers
			r.asked++
			h.sendSYNACK(r, h.tsNow(r.key))
		}
		return
	}
	old := r.flags&halfTS != 0 && s.opt.HasTS && flags&proto.RST == 0 && seqLT(s.opt.TSVal, r.tsRecent)
	if old || s.seq-(r.irs+1) > h.synWindow() {
		h.drop(s.packet, TCPOutOfWindow)
		if flags&proto.RST == 0 {
			h.halfACK(r)
		}
		return
	}
	switch {
	case flags&proto.RST != 0:
		if s.seq != r.irs+1 {
			h.drop(s.packet, TCPOutOfWindow)
			h.halfACK(r)
			return
		}
		h.discard(s.packet)
		h.halfFree(i)
		return
	case flags&proto.SYN != 0:
		h.drop(s.packet, TCPBadFlag)
		h.halfACK(r)
		return
	case flags&proto.ACK == 0:
		h.drop(s.packet, TCPNoACK)
		return
	case s.tcp.Ack != r.iss+1:
		k, li := r.key, r.listener
		if h.cookieValid(li, k, s) { // its first SYN was answered with a cookie
			h.halfFree(i)
			h.cookieOpen(li, k, s)
			return
		}
		if !h.cookieLikely(li, k, s) { // as in LISTEN
			h.sendRST(k, s.tcp.Ack, 0, proto.RST)
		}
		h.drop(s.packet, TCPOutOfWindow)
		return
	}
	rec := *r
	if passed, done := h.passOn(&rec, s); done {
		if passed {
			h.halfFree(i)
		}
		return
	}
	if h.backlogFull(&h.tcp.listeners[rec.listener]) {
		h.drop(s.packet, TCPBacklogFull) // the peer's data, or our SYN-ACK, comes again
		return
	}
	h.halfFree(i)
	h.tcpOpen(&rec, s)
}

// tcpOpen makes the connection of a handshake that s completes, and goes on with what s carries.
func (h *Host) tcpOpen(r *halfOpen, s *segment) {
	i, c := h.tcpAlloc(r.key)
	c.embryo, c.state, c.opened = true, tcpEstablished, true
	c.rcvNxt, c.lastAck = r.irs+1, r.irs+1
	c.rcvAdv = c.rcvNxt + h.synWindow()
	c.sndUna, c.sndNxt = r.iss+1, r.iss+1
	c.sackOK, c.ecnOK = r.flags&halfSACK != 0, r.flags&halfECN != 0
	if r.flags&halfTS != 0 {
		c.tsOK, c.tsRecent, c.tsAt = true, r.tsRecent, h.nowHH()
	}
	if r.sndScale != noScale {
		c.sndScale, c.rcvScale = r.sndScale, h.tcp.scale
	}
	h.tcpSetMSS(c, int(r.mss))
	c.sndWnd = uint32(r.wnd) // a SYN's window is never scaled (RFC 7323 2.2)
	c.maxWnd = c.sndWnd
	c.sndWl1 = s.seq - 1 // so that tcpACK takes the window
	if r.retries == 0 && r.asked == 0 && r.sentAt != 0 {
		c.rttSample(uint32((h.now - r.sentAt) / 1000))
	}
	c.afterSYN(r.retries)
	l := &h.tcp.listeners[r.listener]
	if l.account != 0 {
		h.chargeConn(i, l.account)
	}
	h.acceptPush(l, i)
	h.notify(makeHandle(kindListener, l.gen, r.listener), happenedIn)
	h.tcpSegment(i, c, s)
}

// tcpSetMSS takes the peer's MSS option (RFC 6691: it counts neither side's options).
func (h *Host) tcpSetMSS(c *tcb, peer int) {
	mss := min(max(peer, mssFloor), h.cfg.MTU-40)
	c.mssMax = uint16(mss)
	if pmtu := h.pathMTU(c.key.Remote); pmtu != 0 {
		mss = min(mss, pmtu-40)
	}
	c.mss = uint16(mss)
	c.rcvMSS = uint16(min(max(peer, mssFloor), h.cfg.MTU-40, mssNone)) // until there is one to see (tcp_initialize_rcv_mss)
	if c.tsOK {
		c.mss -= 12
		c.mssMax -= 12
		c.rcvMSS -= 12
	}
}

// synWindow is the window of a SYN or SYN-ACK, which is never scaled.
func (h *Host) synWindow() uint32 { return uint32(min(h.rcvLimit(), rcvBufStart, 0xffff)) }

// sendSYNACK sends a SYN-ACK with ts on our timestamp clock.
func (h *Host) sendSYNACK(r *halfOpen, ts uint32) {
	hdr := proto.TCP{
		SrcPort: r.key.LPort, DstPort: r.key.RPort, Seq: r.iss, Ack: r.irs + 1,
		Flags: proto.SYN | proto.ACK, Window: uint16(h.synWindow()),
	}
	if r.flags&halfECN != 0 {
		hdr.Flags |= proto.ECE
	}
	opt := proto.TCPOptions{
		MSS: uint16(h.cfg.MTU - 40), SACKPermitted: r.flags&halfSACK != 0,
		HasTS: r.flags&halfTS != 0, TSVal: ts, TSEcr: r.tsRecent,
		HasWScale: r.sndScale != noScale, WScale: h.tcp.scale,
	}
	h.sendBare(r.key, &hdr, &opt)
}

// halfACK tells the peer our idea of the sequence numbers (RFC 5961).
func (h *Host) halfACK(r *halfOpen) {
	if r.asked >= halfAnswers || !h.challengeToken() { // one that is asked for ever does not take what others need
		return
	}
	r.asked++
	hdr := proto.TCP{
		SrcPort: r.key.LPort, DstPort: r.key.RPort, Seq: r.iss + 1, Ack: r.irs + 1, Flags: proto.ACK,
		Window: uint16(h.synWindow() >> h.tcp.scale),
	}
	if r.sndScale == noScale {
		hdr.Window = uint16(h.synWindow())
	}
	opt := proto.TCPOptions{HasTS: r.flags&halfTS != 0, TSVal: h.tsNow(r.key), TSEcr: r.tsRecent}
	h.sendBare(r.key, &hdr, &opt)
}

// SYN cookies (RFC 4987 3.6; net/ipv4/syncookies.c): when the queue of half-open connections is full, all that must be
// remembered of a SYN goes out with the SYN-ACK and comes back with the ACK. The sequence number carries the time in
// units of 64 s (5 bits), the MSS (3 bits) and a keyed hash of everything (24 bits), all of it behind a keyed offset; the
// low six bits of the timestamp carry window scale, SACK and ECN. Without timestamps there are no such options.
var cookieMSS = [8]uint16{mssFloor, 536, 1024, 1220, 1360, 1440, 1460, 8960}

const (
	cookieUnitNS = 64_000_000_000
	cookieUnits  = 2 // an ACK may come that much later
	cookieBits   = 6 // of the timestamp
	cookieNoTS   = 1 << cookieBits
)

// cookieBase is of one listener, or of those that a group has on the same port at the same time: a cookie goes with them,
// as what is half open does. A later one may have reset the flow before it sends cookies itself, and must not open it then.
func (h *Host) cookieBase(li uint32, k flowKey) uint32 {
	return h.sec.cookieBase(k, h.tcp.listeners[li].cookieID)
}

func (h *Host) sendCookie(r *halfOpen) {
	idx := uint32(0)
	for int(idx) < len(cookieMSS)-1 && cookieMSS[idx+1] <= r.mss {
		idx++
	}
	at := uint32(h.now / cookieUnitNS)
	ts, low := h.tsNow(r.key), uint32(cookieNoTS)
	if r.flags&halfTS != 0 {
		low = uint32(r.sndScale) | uint32(r.flags&(halfSACK|halfECN))<<3
		was := ts
		if ts = ts&^(1<<cookieBits-1) | low; seqLT(was, ts) {
			ts -= 1 << cookieBits // never ahead of the clock
		}
	} else {
		r.sndScale, r.flags = noScale, 0
	}
	hash := h.sec.cookie(r.key, r.irs, at<<10|idx<<7|low)
	r.iss = h.cookieBase(r.listener, r.key) + (at<<27 | idx<<24 | hash)
	h.sendSYNACK(r, ts)
}

// cookieLikely reports whether s may acknowledge a cookie of ours: its time is right. With the first segment behind a
// cookie lost, the second says so much and no more, and must not be answered with a RST.
func (h *Host) cookieLikely(li uint32, k flowKey, s *segment) bool {
	at := h.tcp.listeners[li].cookieAt
	if d := h.cfg.Directory; d != nil {
		at = max(at, d.cookieAt.Load()) // the ACK may come in on another queue than its SYN
	}
	if at == 0 || h.now-at > (cookieUnits+1)*cookieUnitNS {
		return false // none is out
	}
	return (uint32(h.now/cookieUnitNS)-(s.tcp.Ack-1-h.cookieBase(li, k))>>27)&31 <= cookieUnits
}

// cookieValid reports whether s acknowledges a cookie of ours, with the number behind its SYN's, and echoes the timestamp
// that came with it: another one, of a connection that the cookie opened before, says nothing of options.
func (h *Host) cookieValid(li uint32, k flowKey, s *segment) bool {
	if !h.cookieLikely(li, k, s) {
		return false
	}
	v, now := s.tcp.Ack-1-h.cookieBase(li, k), uint32(h.now/cookieUnitNS)
	at := now - (now-v>>27)&31 // the hash knows all of the time, or a cookie would be good again when five bits come around
	low := uint32(cookieNoTS)
	if s.opt.HasTS {
		low = s.opt.TSEcr & (1<<cookieBits - 1)
	}
	return v&(1<<24-1) == h.sec.cookie(k, s.seq-1, at<<10|v>>24&7<<7|low)
}

// cookieOpen makes a connection of an ACK whose number is a cookie of ours. false: it is not.
func (h *Host) cookieOpen(li uint32, k flowKey, s *segment) bool {
	if !h.cookieValid(li, k, s) {
		return false
	}
	idx := (s.tcp.Ack - 1 - h.cookieBase(li, k)) >> 24 & 7
	r := halfOpen{key: k, irs: s.seq - 1, iss: s.tcp.Ack - 1, listener: li, mss: cookieMSS[idx], sndScale: noScale, wnd: s.tcp.Window}
	if s.opt.HasTS {
		low := s.opt.TSEcr & (1<<cookieBits - 1)
		r.flags = halfTS | uint8(low>>3)&(halfSACK|halfECN)
		r.sndScale = uint8(low & 15)
		r.tsRecent = s.opt.TSVal
	}
	if _, done := h.passOn(&r, s); done {
		return true
	}
	if h.backlogFull(&h.tcp.listeners[li]) {
		h.drop(s.packet, TCPBacklogFull)
		return true
	}
	h.tcpOpen(&r, s)
	return true
}

// initialCwnd is RFC 6928.
func initialCwnd(c *tcb) uint32 { return tcpIWSegs * uint32(c.mss) }

// backoff doubles a time as often as can be without running over.
func backoff(us uint32, times uint8) uint32 {
	if int(times) >= bits.LeadingZeros32(us) {
		return rtoMaxUS
	}
	return min(us<<times, rtoMaxUS)
}
