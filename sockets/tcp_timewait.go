package sockets

import "xdpd/proto"

// timeWait is a connection in TIME-WAIT that nobody owns any more: what RFC 9293 3.10.7 and RFC 6191 need to answer for
// it, and nothing else (as tcp_timewait_sock in include/linux/tcp.h). All of them wait equally long, so that a list in
// the order of their deadlines takes the place of timers.
type timeWait struct {
	key            flowKey
	sndNxt, rcvNxt uint32
	tsRecent       uint32
	due            uint32 // ms
	link           link
	wnd            uint16 // as last advertised, scaled
	flags          uint8
	challenge      uint8 // as tcb's
}

// Flags of a record.
const (
	twTS      = 1 << iota
	twTracked // tell PopGone
	twAsked   // a SYN was answered with an ACK
)

type twTable struct {
	slab[timeWait]
	list  fifo
	timer uint32
}

func (t *twTable) init(h *Host) { t.timer = h.timers.alloc(timerOwner(timerTimeWait, 0)) }

func (t *twTable) link(i uint32) *link { return &t.at(i).link }

// tcpTimeWait replaces an ownerless connection by a record of its own. Past the limit the oldest one goes.
func (h *Host) tcpTimeWait(i uint32, c *tcb) {
	t := &h.tcp.tw
	if t.n >= h.cfg.MaxConns {
		h.twFree(t.list.head - 1)
	}
	wnd := uint16(min((c.rcvAdv-c.rcvNxt)>>c.rcvScale, 0xffff))
	rec := timeWait{key: c.key, sndNxt: c.sndNxt, rcvNxt: c.rcvNxt, tsRecent: c.tsRecent, wnd: wnd}
	if c.tsOK {
		rec.flags |= twTS
	}
	if c.tracked {
		rec.flags |= twTracked
		c.tracked = false
	}
	h.tcpFree(i, c)
	n, w := t.alloc()
	*w = rec
	h.tcp.flows.put(demuxTW, n)
	h.twPush(n, w)
}

// twPush starts the record's time.
func (h *Host) twPush(n uint32, w *timeWait) {
	w.due = h.nowMS() + timeWaitNS/1_000_000
	h.tcp.tw.list.push(n, h.tcp.tw.link)
	if !h.timers.running(h.tcp.tw.timer) {
		h.timers.start(h.tcp.tw.timer, h.now+timeWaitNS)
	}
}

func (h *Host) twFree(n uint32) {
	t := &h.tcp.tw
	w := t.at(n)
	h.tcp.flows.del(w.key)
	if w.flags&twTracked != 0 {
		h.gone = append(h.gone, w.key)
	}
	t.list.remove(n, t.link)
	t.release(n)
}

func (h *Host) twTimer() {
	t := &h.tcp.tw
	for range expireMax {
		if t.list.head == 0 {
			return
		}
		left := int32(t.at(t.list.head-1).due - h.nowMS())
		if left > 0 {
			h.timers.start(t.timer, h.now+int64(left)*1_000_000)
			return
		}
		h.twFree(t.list.head - 1)
	}
	h.timers.start(t.timer, h.now+tickNS) // more with the next turn
}

// mayReuse reports whether s is a SYN that may take the place of a connection in TIME-WAIT: its sequence numbers, or its
// timestamps (RFC 6191), cannot be confused with the old ones. Where nobody listens it must not, or a SYN would assassinate
// TIME-WAIT.
func (h *Host) mayReuse(k flowKey, tsOK bool, tsRecent, rcvNxt uint32, s *segment) bool {
	if s.tcp.Flags&(proto.SYN|proto.ACK|proto.RST|proto.FIN) != proto.SYN {
		return false
	}
	newer := false
	if tsOK && s.opt.HasTS {
		if seqLT(s.opt.TSVal, tsRecent) {
			return false
		}
		newer = seqLT(tsRecent, s.opt.TSVal)
	}
	_, ok := h.tcp.listening(k)
	if !ok { // of a connection that was passed on the listener is elsewhere
		_, ok = h.boundElsewhere(proto.ProtoTCP, k)
	}
	return ok && (newer || seqLT(rcvNxt, s.seq))
}

// twInput is RFC 9293 3.10.7.4 for TIME-WAIT. true: the segment opens a new connection and is the listener's.
func (h *Host) twInput(n uint32, s *segment) (again bool) {
	w := h.tcp.tw.at(n)
	flags := s.tcp.Flags
	ts := w.flags&twTS != 0
	old := ts && s.opt.HasTS && seqLT(s.opt.TSVal, w.tsRecent)
	if h.mayReuse(w.key, ts, w.tsRecent, w.rcvNxt, s) {
		s.again, s.after = true, w.sndNxt
		h.twFree(n)
		return true
	}
	switch {
	case flags&proto.RST != 0:
		// RFC 1337: old duplicates must not assassinate TIME-WAIT. But who opens a connection by the same ports with numbers
		// that mean nothing here, being another host behind the same NAT or the same after a restart, resets what answers
		// its SYN (RFC 9293 3.10.7.3), and would find no way in for a minute. Linux lets every RST in.
		if w.flags&twAsked != 0 && s.seq == w.rcvNxt {
			h.twFree(n)
		}
		h.discard(s.packet)
		return false
	case s.fin && s.seq+s.length() == w.rcvNxt && !old: // its ACK was lost
		h.tcp.tw.list.remove(n, h.tcp.tw.link)
		h.twPush(n, w)
		h.twACK(w)
		h.drop(s.packet, TCPDuplicate)
		return false
	}
	if flags&proto.SYN != 0 || s.data > 0 || s.fin || s.seq != w.rcvNxt || s.tcp.Ack != w.sndNxt {
		if half := h.challengeSlot(); half != w.challenge {
			w.challenge = half
			h.twACK(w)
		}
		if flags&proto.SYN != 0 {
			w.flags |= twAsked
		}
		h.drop(s.packet, TCPOutOfWindow)
		return false
	}
	h.discard(s.packet)
	return false
}

func (h *Host) twACK(w *timeWait) {
	hdr := proto.TCP{SrcPort: w.key.LPort, DstPort: w.key.RPort, Seq: w.sndNxt, Ack: w.rcvNxt, Flags: proto.ACK, Window: w.wnd}
	opt := proto.TCPOptions{HasTS: w.flags&twTS != 0, TSEcr: w.tsRecent}
	if opt.HasTS {
		opt.TSVal = h.tsNow(w.key)
	}
	h.sendBare(w.key, &hdr, &opt)
}
