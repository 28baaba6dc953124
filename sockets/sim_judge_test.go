package sockets

import "fmt"

// What a Host may do to a connection that no program ended: it gives up a peer who does not answer, or whom it cannot
// feed, and it resets what it does not know. Each of these has its time and its reason, which the world must show.

// judge decides whether the world gave a reason for err.
func (s *simSide) judge(err Errno) {
	w, c := s.c.w, s.c
	if w.wrong || c.followed() {
		return
	}
	switch err {
	case ECONNRESET, EPIPE: // w.reset has judged the RST
		w.totals.Reset++
		if w.flow(c.key).rsts[s.n.id] == 0 {
			s.fail("%v, and no RST came", err)
		}
	case ECONNREFUSED:
		w.totals.Refused++
		if c.excuse == "" {
			s.fail("refused, and the listener was there")
		}
	case ETIMEDOUT:
		w.totals.TimedOut++
		if why := s.gaveUp(); why != "" || w.p.clean && c.excuse == "" {
			s.fail("timed out: %s", why)
		}
	case EHOSTUNREACH:
		if w.p.share {
			s.fail("unreachable")
		}
	default:
		s.fail("failed with %v", err)
	}
}

// followed reports that the ports serve another connection already: what was seen of the flow is that one's.
func (c *simConn) followed() bool {
	for _, d := range c.w.conns {
		if d.key == c.key && d.side[0].began > c.side[0].began {
			return true
		}
	}
	return false
}

// How long a Host tries at least, as the sums of its time-outs: those that the constants of tcp.go stand for.
const (
	simDialTries = 247 * second // 1, 2, 4 to 64 and 120 s
	simDataTries = 900 * second // 0.2, 0.4 to 102.4 s, then 120 s each
	simSynTries  = 63 * second
	simOrphan    = 102 * second // 0.2, 0.4 to 51.2 s
	simPressed   = 6 * second   // probes of a closed window, with no frame left: 0.2, 0.4 to 3.2 s
)

// gaveUp says why the side's Host may not have given up the connection; "": it may.
func (s *simSide) gaveUp() string {
	w, n := s.c.w, s.n
	f := w.flow(s.c.key)
	seen := f.seen[n.id]
	quiet, silent := w.now-max(seen.moved, s.began), w.now-seen.heard
	lost := f.lost - seen.lost
	for _, n := range w.node { // what did not get as far as the path
		d := &n.h.counters.Drops
		lost += int(d[RxMemLimit] + d[RxAccountLimit] + d[TxNoFrame] + d[TCPBacklogFull] + d[NeighFailed])
	}
	if !w.p.share {
		lost += w.lostOther
	}
	k := s.p.keep
	const tick = 2 * ms // of the records' clocks
	switch {
	case k.Idle > 0 && s.connected && silent+tick >= k.Idle+int64(k.Count)*k.Interval:
	case s.p.userNS > 0 && quiet+tick >= s.p.userNS:
	case n.h.counters.Stats[TCPPressure] > 0 && quiet >= simPressed:
	case !s.open && quiet >= simOrphan && lost >= orphanTries:
	case s.p.userNS > 0 && !s.connected && w.now-s.began+tick >= s.p.userNS:
	case !s.connected && w.now-s.began >= simDialTries && lost+seen.lost >= dialRetries:
	case s.connected && quiet >= simDataTries && lost >= dataRetries:
	default:
		return fmt.Sprintf("for %.4f s nothing was acknowledged, for %.4f s nothing came, %d frames were lost; keep-alive %+v, user %d",
			float64(quiet)/1e9, float64(silent)/1e9, lost, k, s.p.userNS)
	}
	return ""
}

// reset judges a RST that a Host sends.
func (w *simWorld) reset(n *simNode, f *simFlow, s *simSegment, bad func(string, ...any)) {
	switch kind, i := n.record(f.key); {
	case kind == demuxTCB:
		if c := n.h.tcp.at(i); c.state >= tcpEstablished && s.tcp.Seq-c.sndUna <= c.sndNxt-c.sndUna {
			bad("resets a connection that goes on in %s", tcpStateNames[c.state])
		}
	case kind == demuxTW && s.tcp.Seq == n.h.tcp.tw.at(i).sndNxt:
		bad("resets a connection in TIME-WAIT")
	}
	why := "no program has anything to do with it"
	for _, c := range w.conns {
		if c.key != f.key {
			continue
		}
		if why = c.side[c.sideOf(n)].mayReset(f, s.tcp.Seq); why == "" {
			return
		}
	}
	bad("%s", why)
}

func (c *simConn) sideOf(n *simNode) int {
	if c.side[0].n == n {
		return 0
	}
	return 1
}

// mayReset says why the side's Host may not have reset the connection; "": it may.
func (s *simSide) mayReset(f *simFlow, seq uint32) string {
	w, c, n := s.c.w, s.c, s.n
	mine := f.stream(n.id, seq)
	d := n.h.Counters()
	switch {
	case c.excuse != "":
		return ""
	case seq == 0 && (n.lis == 0 || c.key[n.id] != simPort):
		return "" // the answer to a late SYN
	case !s.over:
		// Nobody ever heard of it here: the handshake was given up, or with a cookie its last ACK was not taken.
		if w.now-s.peer().began < simSynTries && (d.Stats[TCPCookies] == 0 || f.lost == 0 && d.Drops[TCPBacklogFull] == 0) {
			return "it resets a handshake"
		}
		return ""
	case mine != nil && mine.answer && mine.max == 1 && n.lis == 0:
		return "" // a late SYN's, which went with the listener
	case mine != nil && mine.fin >= 0 && mine.ackSeen > mine.fin:
		return "" // LAST-ACK is over: what comes now is late
	case s.open:
		if t := n.h.tcp.get(s.h); t.state != tcpClosed || t.err == 0 {
			return "it resets what its program has open"
		}
		return "" // judged when the program hears of it
	}
	gone := w.now - s.goneAt
	if gone >= timeWaitNS { // the end of TIME-WAIT, and of FIN-WAIT-2 without an owner
		return ""
	}
	return s.gaveUp()
}
