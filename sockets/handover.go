package sockets

import (
	"net/netip"

	"xdpd/proto"
	"xdpd/umem"
)

// Handed is a packet that came in on the wrong queue, on its way to the Host that has its flow: what the kernel calls
// RPS. It holds no pointers, and its frames change pools; nothing is copied.
type Handed struct {
	To     int // the Host's number
	Frames int // that the packet consists of; the receiver gives as many back
	p      packet
	stamp  umem.Stamp
	open   bool     // it completes a handshake
	half   halfOpen // which is this one
}

const (
	handedMax    = 1024 // packets that one turn hands over
	handedFrames = fragPieces
	maxHops      = 4 // to the TIME-WAIT of an old connection, to the listener, and after a connection that has just left
)

// elsewhere finds the Host that has a TCP flow which this one has not.
func (h *Host) elsewhere(k flowKey) (to int, ok bool) {
	if h.cfg.Directory == nil {
		return 0, false
	}
	to, ok = h.cfg.Directory.get(h.sec.flow(k))
	return to, ok && to != h.cfg.Self
}

// boundElsewhere finds a Host with a socket that takes packets of anybody to k.
func (h *Host) boundElsewhere(ipProto uint8, k flowKey) (to int, ok bool) {
	if h.cfg.Directory == nil {
		return 0, false
	}
	to, ok = h.cfg.Directory.bound(ipProto, k, h.sec.flow(k))
	return to, ok && to != h.cfg.Self
}

// portElsewhere reports whether another Host has a socket on a local port, which is not free then for one that did not
// ask for it.
func (h *Host) portElsewhere(ipProto uint8, local proto.Addr, port uint16) bool {
	_, ok := h.boundElsewhere(ipProto, flowKey{Local: local, LPort: port})
	return ok
}

// udpElsewhere finds the Host that has a UDP socket for k: a connected one first.
func (h *Host) udpElsewhere(k flowKey) (to int, ok bool) {
	if to, ok = h.udpConnectedElsewhere(k); !ok {
		to, ok = h.boundElsewhere(proto.ProtoUDP, k)
	}
	return to, ok
}

// udpConnectedElsewhere finds a Host with a UDP socket that is connected as k.
func (h *Host) udpConnectedElsewhere(k flowKey) (to int, ok bool) {
	if h.cfg.Directory == nil {
		return 0, false
	}
	to, ok = h.cfg.Directory.at(bindKey{proto.ProtoUDP, k}, h.sec.flow(k))
	return to, ok && to != h.cfg.Self
}

// tcpPassOver hands a segment to the Host that has its connection, or with none a listener for it. false: it stays.
func (h *Host) tcpPassOver(k flowKey, p *packet) bool {
	d := h.cfg.Directory
	if d == nil {
		return false
	}
	to, ok := d.get(h.sec.flow(k))
	if ok && to == h.cfg.Self && len(h.tcp.flows.leaving) > 0 { // it may be of those that left in this turn
		h.tcp.flows.settle()
		to, ok = d.get(h.sec.flow(k))
	}
	ours := ok && to == h.cfg.Self  // by and by: it is on its way to us
	if !ok || ours && p.hops == 0 { // by way of the listener's Host it comes behind its handshake
		if l, listens := h.listensElsewhere(k); listens {
			to, ok, ours = l, true, false
		}
	}
	switch {
	case ours:
		h.drop(p, HandoverEarly)
	case !ok:
		return false
	default:
		h.handOver(p, to, nil)
	}
	return true
}

// listensElsewhere finds another Host whose listener is to have k: one on the address goes before one on all, of ours too.
func (h *Host) listensElsewhere(k flowKey) (to int, ok bool) {
	li, here := h.tcp.listening(k)
	if !here {
		return h.boundElsewhere(proto.ProtoTCP, k)
	}
	if h.tcp.listeners[li].key.Local != 0 {
		return 0, false
	}
	return h.cfg.Directory.at(bindKey{proto.ProtoTCP, flowKey{Local: k.Local, LPort: k.LPort}}, h.sec.flow(k))
}

// passAgain hands a SYN that took the place of a connection in TIME-WAIT to a Host that listens. false: there is none.
func (h *Host) passAgain(k flowKey, s *segment) bool {
	to, ok := h.boundElsewhere(proto.ProtoTCP, k)
	if ok {
		h.tcp.flows.forget(k) // or it would come back
		h.uncover(s)
		h.handOver(s.packet, to, nil)
	}
	return ok
}

// uncover has the Buf cover the TCP header again, for a segment that another Host is to look at.
func (h *Host) uncover(s *segment) {
	b := h.pool.Buf(s.f)
	b.Off -= uint16(s.tcp.DataOff)
	b.Len += uint16(s.tcp.DataOff)
}

// quotePassOver hands an ICMP error to the Host that has the socket it is about.
func (h *Host) quotePassOver(q *quote, p *packet) bool {
	to, ok := 0, false
	switch q.proto {
	case proto.ProtoTCP:
		to, ok = h.elsewhere(q.key)
	case proto.ProtoUDP:
		to, ok = h.udpConnectedElsewhere(q.key)
	}
	if ok {
		h.handOver(p, to, nil)
	}
	return ok
}

// handOver queues a packet for another Host; its Buf covers what lies behind the IP header. rec is the handshake that it
// completes, if it does. false: it was dropped.
func (h *Host) handOver(p *packet, to int, rec *halfOpen) bool {
	n := 0
	for f := p.f; f != umem.None; f = h.pool.Buf(f).Next {
		n++
	}
	h.count(HandedOver)
	if p.hops >= maxHops || len(h.handed) >= handedMax || n > handedFrames {
		h.drop(p, HandoverFull)
		return false
	}
	from := umem.RX
	if p.held {
		from = umem.Held
		h.rxUsed -= n
	}
	for f := p.f; f != umem.None; f = h.pool.Buf(f).Next {
		h.pool.Give(f, from)
	}
	m := Handed{To: to, Frames: n, p: *p, stamp: h.stamp}
	if rec != nil {
		m.open, m.half = true, *rec
	}
	h.handed = append(h.handed, m)
	return true
}

// TakeHanded appends what must go to other Hosts to buf, and forgets it. What cannot be passed on goes to HandBack.
func (h *Host) TakeHanded(buf []Handed) []Handed {
	buf = append(buf, h.handed...)
	h.handed = h.handed[:0]
	return buf
}

// HandBack drops what there was no room for. A handshake is as it was before.
func (h *Host) HandBack(m *Handed) {
	h.counters.Drops[HandoverFull]++
	for f := m.p.f; f != umem.None; {
		next := h.pool.Buf(f).Next
		h.pool.Take(f, umem.Free)
		f = next
	}
	if !m.open {
		return
	}
	h.cfg.Directory.del(h.sec.flow(m.half.key), m.To)
	h.cfg.Directory.conns[m.To].Add(-1)
	if li, ok := h.tcp.listening(m.half.key); ok && m.half.sentAt != 0 { // a cookie is good again as it is
		h.halfInsert(&m.half, li)
	}
}

// FrameBack takes a frame that came in return for one of a Handed.
func (h *Host) FrameBack(f umem.Frame) { h.pool.Take(f, umem.Free) }

// InputHanded takes a packet that another Host received for this one. back are the frames that go to that one in return,
// as many as came, valid until the next call: free ones of ours, or when there are none, those of the packet.
func (h *Host) InputHanded(m *Handed, now int64) (back []umem.Frame) {
	h.now, h.stamp = now, m.stamp
	p := m.p
	p.hops++
	if m.open { // from here on it counts by itself, if it becomes a connection
		defer h.cfg.Directory.conns[h.cfg.Self].Add(-1)
	}
	why := Drop(0)
	if m.open {
		why = h.openHanded(&m.half)
	}
	back = h.back[:0]
	if h.pool.Avail() < m.Frames || p.held && h.rxUsed+m.Frames > h.rxLimit {
		h.counters.Drops[HandoverNoFrame]++
		for f := p.f; f != umem.None; f = h.pool.Buf(f).Next {
			back = append(back, f)
		}
		return back
	}
	h.count(HandedIn)
	to := umem.RX
	if p.held {
		to = umem.Held
		h.rxUsed += m.Frames
	}
	for f := p.f; f != umem.None; f = h.pool.Buf(f).Next {
		own := h.pool.Get(to)
		h.pool.Give(own, to)
		back = append(back, own)
		h.pool.Take(f, to)
	}
	switch {
	case why != 0:
		h.drop(&p, why)
	case p.ip.Proto == proto.ProtoTCP:
		h.tcpInput(&p)
	case p.ip.Proto == proto.ProtoUDP:
		h.udpInput(&p)
	default:
		h.icmpInput(&p)
	}
	return back
}

// openHanded goes on with a handshake that the Host with the listener began: the record lives here from now on. What
// completes it is the segment that comes with it, or with the accept queue full a later one. Not 0: it does not, because
// nobody listens, or as many wait for room in the accept queue as may.
func (h *Host) openHanded(rec *halfOpen) Drop {
	k := rec.key
	li, ok := h.tcp.behind.get(flowKey{Local: k.Local, LPort: k.LPort})
	if !ok {
		li, ok = h.tcp.behind.get(flowKey{LPort: k.LPort})
	}
	if kind, _ := h.tcp.flows.get(k); kind != 0 {
		return 0 // a connection of the same name was quicker, and says what it thinks of the segment
	}
	why := Drop(0)
	if !ok {
		why = TCPNoSocket
	} else if h.tcp.listeners[li].half >= h.cfg.Backlog || h.tcp.half.n >= h.cfg.MaxConns {
		why = TCPBacklogFull
	}
	if why != 0 {
		if h.tcp.flows.forget(k); !ok || rec.sentAt != 0 { // a cookie is good again as it is
			h.sendRST(k, rec.iss+1, rec.irs+1, rstAck)
		}
		return why
	}
	if rec.sentAt == 0 { // behind a cookie
		rec.sentAt, rec.asked = h.now, 1 // no good for measuring
	}
	h.halfInsert(rec, li)
	return 0
}

// halfInsert takes a record that another Host, or this one, let go of.
func (h *Host) halfInsert(rec *halfOpen, li uint32) {
	i, r := h.tcp.half.alloc()
	*r = *rec
	r.listener, r.link = li, link{}
	h.tcp.flows.put(demuxHalf, i)
	h.tcp.listeners[li].half++
	h.halfPush(i, r)
}

// passOn gives a handshake that s completes to the Host that the listener's spread chooses; s is dealt with then. false: it
// stays.
func (h *Host) passOn(rec *halfOpen, s *segment) (passed, done bool) {
	l := &h.tcp.listeners[rec.listener]
	if l.spread == nil {
		return false, false
	}
	to := l.spread(rec.key.remote())
	if to == h.cfg.Self || !h.cfg.Directory.has(to) {
		return false, false
	}
	h.uncover(s)
	if !h.handOver(s.packet, to, rec) {
		return false, true
	}
	// Before anybody sees the next segment: it must follow this one, not come back.
	h.cfg.Directory.set(h.sec.flow(rec.key), to)
	h.cfg.Directory.conns[to].Add(1) // before anybody chooses the next one
	return true, true
}

// TCPSpread has the connections of a listener go to other Hosts of the group as soon as their handshakes are done: choose
// names one for a peer. There, TCPListenBehind accepts them. Choosing this Host, or one that there is not, keeps the
// connection. Errors: EBADF, EINVAL without a Directory or for a listener of TCPListenBehind.
func (h *Host) TCPSpread(s Handle, choose func(remote netip.AddrPort) int) Errno {
	l := h.tcp.listener(s)
	switch {
	case l == nil:
		return EBADF
	case h.cfg.Directory == nil || l.behind: // where connections would go around for ever
		return EINVAL
	}
	l.spread = choose
	return 0
}

// udpEnter and udpForget tell the group where a UDP socket is.
func (h *Host) udpEnter(k flowKey) {
	if d := h.cfg.Directory; d != nil {
		d.bind(bindKey{proto.ProtoUDP, k}, h.cfg.Self)
	}
}

func (h *Host) udpForget(u *udpSock) {
	h.udp.flows.del(u.key)
	if d := h.cfg.Directory; d != nil {
		d.unbind(bindKey{proto.ProtoUDP, u.key}, h.cfg.Self)
	}
}
