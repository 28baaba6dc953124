package reactor_test

import (
	"fmt"

	"xdpd/proto"
	"xdpd/sockets"
	"xdpd/umem"
)

// checkBooks holds after every turn, whatever happened: each frame is where the counts say, and every packet is counted
// once.
func (w *world) checkBooks() {
	c := w.ledger.Counts()
	rx, rxLimit, tx, txLimit := w.host.Held()
	if rx < 0 || rx > rxLimit || tx < 0 || tx > txLimit {
		w.fail("the Host holds %d of %d frames for receiving, %d of %d for sending", rx, rxLimit, tx, txLimit)
	}
	total := 0
	for _, n := range c {
		total += n
	}
	inParts := w.openParts()
	inFill := int(w.port.Fill.Pending() + w.port.RX.Avail())
	inTX := int(w.port.TX.Pending()+w.nic.Port().Comp.Avail()+w.port.Comp.Avail()) + w.nic.InFlight() + len(w.comp.held)
	switch {
	case total != w.p.frames:
		w.fail("the ledger has %d frames of %d: %v", total, w.p.frames, c)
	case c[umem.Free] != w.pool.Avail():
		w.fail("%d frames are free, the pool has %d", c[umem.Free], w.pool.Avail())
	case c[umem.Fill] != inFill:
		w.fail("%d frames are in fill, the NIC and its rings have %d", c[umem.Fill], inFill)
	case c[umem.TX] != inTX:
		w.fail("%d frames are in tx, the NIC and its rings have %d", c[umem.TX], inTX)
	case c[umem.Held]+c[umem.TX] != rx+tx:
		w.fail("%d frames are held and %d in tx, the Host counts %d received and %d to send", c[umem.Held], c[umem.TX], rx, tx)
	case c[umem.RX] != inParts || c[umem.Lent]+c[umem.Comp] != 0:
		w.fail("frames are left over after a turn: %v", c)
	case inFill > w.p.fillFrames:
		w.fail("%d frames are in fill, the limit is %d", inFill, w.p.fillFrames)
	}
	w.checkCounters()
	// The rest looks at every socket; when all is calm little happens in a turn.
	if w.turns++; !w.calm || w.turns%64 == 0 {
		w.checkDatagrams()
		w.checkQueues()
	}
}

// openParts is how many frames the reactor has of a packet whose end is still in the RX ring.
func (w *world) openParts() int {
	if w.p.packet == 1 || w.port.RX.Avail() == 0 {
		return 0
	}
	return w.ledger.Counts()[umem.RX]
}

// txPackets is how many packets the Host has to send: of several frames each they cannot be told from outside.
func (w *world) txPackets() uint64 {
	if w.p.packet == 1 {
		return uint64(w.host.TxPending())
	}
	left := w.host.Counters().Stats[sockets.TxFrames] - w.counters().TxFrames
	if n := uint64(w.host.TxPending()); left > n || n > left*uint64(w.p.packet) {
		w.fail("%d packets in %d frames wait in the Host", left, n)
	}
	return left
}

// checkCounters: nothing is lost without a counter, from the wire to the transport protocol and back.
func (w *world) checkCounters() {
	r, h := w.counters(), w.host.Counters()
	sum := func(drops ...sockets.Drop) (n uint64) {
		for _, d := range drops {
			n += h.Drops[d]
		}
		return n
	}
	f := func(f proto.Fault) sockets.Drop { return sockets.Drop(f) }
	link := sum(f(proto.EthShort), f(proto.EthVLAN), f(proto.EthLLC), sockets.EthNotOurs, sockets.EthVLANID, sockets.EthType)
	ip := sum(f(proto.IPShort), f(proto.IPVersion), f(proto.IPHeaderLen), f(proto.IPTotalLen), f(proto.IPChecksum),
		f(proto.IPOptions), sockets.IPNotOurs, sockets.IPMartianSource, sockets.IPMartianDest, sockets.IPLinkBroadcast,
		sockets.IPSourceRoute, sockets.ICMPBroadcast)
	s := h.Stats
	up := s[sockets.RxICMP] + s[sockets.RxUDP] + s[sockets.RxTCP] + sum(sockets.IPProtocol)
	for _, c := range []struct {
		what      string
		got, want uint64
	}{
		{"frames received by the NIC and by the reactor", r.RxFrames + r.RxMore + uint64(w.port.RX.Avail()), w.nicIn},
		{"frames received by the reactor and by the Host", s[sockets.RxFrames] + r.RxBadDesc + r.RxBadChain, r.RxFrames},
		{"packets received and accounted for", s[sockets.RxARP] + link + ip + s[sockets.RxFragments] + up,
			s[sockets.RxFrames] + s[sockets.Reassembled]},
		{"packets sent by the Host and by the reactor", r.TxFrames + w.txPackets(), s[sockets.TxFrames]},
		{"frames sent by the reactor and by the NIC", w.nicOut + uint64(w.port.TX.Pending()), r.TxFrames + r.TxMore},
		{"bad descriptors and completions", r.RxBadDesc + r.RxBadChain + r.BadCompletions, 0},
	} {
		if c.got != c.want {
			w.fail("%s: %d and %d\n%+v\n%s", c.what, c.got, c.want, r, hostCounters(h))
		}
	}
}

// checkDatagrams: what was received by UDP was delivered to a socket or has a drop reason.
func (w *world) checkDatagrams() {
	h := w.host.Counters()
	s, d := &h.Stats, &h.Drops
	udp := s[sockets.RxUDP] - d[proto.UDPShort] - d[proto.UDPLen] - d[proto.UDPChecksum] -
		d[sockets.UDPNoSocket] - d[sockets.UDPQueueFull]
	refused, limit := udp-w.app.delivered(), d[sockets.RxMemLimit]
	exact := !w.p.tcp && s[sockets.RxFragments] == 0 // else fragments and segments share the counter
	if refused > limit || exact && refused != limit {
		w.fail("of %d datagrams %d were delivered; %d were refused for want of memory\n%s",
			udp, w.app.delivered(), limit, hostCounters(h))
	}
}

// checkQueues: no socket holds more than its limit, or one datagram.
func (w *world) checkQueues() {
	for _, u := range w.host.UDPSockets() {
		if u.Datagrams > 1 && u.Bytes > w.p.rcvBuf || u.Bytes < 0 || (u.Datagrams == 0) != (u.Bytes == 0) {
			w.fail("%v holds %d datagrams in %d bytes, the limit is %d", u.Local, u.Datagrams, u.Bytes, w.p.rcvBuf)
		}
	}
	counts := map[string]int{}
	for _, c := range w.host.TCPSockets() {
		if c.SendQueue > w.p.sndBuf || c.RecvQueue > w.p.rcvBuf || c.SendQueue < 0 || c.RecvQueue < 0 {
			w.fail("%v %v has %d bytes to send and %d to read; the limits are %d and %d",
				c.Remote, c.State, c.SendQueue, c.RecvQueue, w.p.sndBuf, w.p.rcvBuf)
		}
		if c.State == "LISTEN" && c.RecvQueue > w.p.backlog {
			w.fail("%d connections wait for Accept, the limit is %d", c.RecvQueue, w.p.backlog)
		}
		switch c.State {
		case "LISTEN", "CLOSED":
		case "SYN-RECEIVED", "TIME-WAIT": // have records, and a limit, of their own
			counts[c.State]++
		default:
			counts["open"]++
		}
	}
	for state, n := range counts {
		if n > w.p.maxConns {
			w.fail("%d connections (%s), the limit is %d", n, state, w.p.maxConns)
		}
	}
}

// checkLive holds when all faults are over and everybody had time: what could be answered was.
func (w *world) checkLive() {
	for serial, d := range w.udp.inOrder() {
		if w.p.clean && d.answer && (d.echoed < d.least() || !d.ping && d.echoed != d.received) {
			w.fail("datagram %d (%+v) was sent %d times, reached the program %d times and came back %d times",
				serial, *d, d.copies, d.received, d.echoed)
		}
	}
	w.app.checkIdle()
	for _, k := range w.tcp.all {
		k.checkLive()
	}
	h := w.host.Counters()
	if w.p.clean {
		for d, n := range h.Drops {
			if n != 0 && !harmless(sockets.Drop(d)) {
				w.fail("without faults %d were dropped: %v", n, sockets.Drop(d))
			}
		}
	}
}

// harmless are drops without a loss: what TCP sends again, and a reply to an ARP request that was answered already. Of
// datagrams each one is looked at.
func harmless(d sockets.Drop) bool {
	switch d {
	case sockets.TCPPAWS, sockets.TCPBadFlag, sockets.TCPNoACK, sockets.TCPDuplicate, sockets.TCPOutOfOrder,
		sockets.TCPOutOfWindow, sockets.TCPBacklogFull, sockets.TCPNoSocket, sockets.RxMemLimit, sockets.TxNoFrame,
		sockets.FragTimeout, sockets.FragLimit, sockets.FragDuplicate, sockets.ARPUnsolicited, sockets.NeighQueueFull,
		sockets.NeighFailed:
		return true
	}
	return false
}

// checkEnd holds when all sockets are closed and all timers ran: nothing is left.
func (w *world) checkEnd() {
	c := w.ledger.Counts()
	rx, _, tx, _ := w.host.Held()
	if rx != 0 || tx != 0 || c[umem.Free]+c[umem.Fill] != w.p.frames {
		w.fail("at the end the Host holds %d received frames and %d to send: %v, %s\n%+v",
			rx, tx, c, hostCounters(w.host.Counters()), w.host.TCPSockets())
	}
	h := w.host.Counters()
	frags := h.Stats[sockets.RxFragments]
	for d := sockets.FragOverlap; d <= sockets.FragTimeout; d++ {
		frags -= h.Drops[d]
	}
	if n := h.Stats[sockets.Reassembled]; n == 0 && frags > h.Drops[sockets.RxMemLimit] || frags < 2*n || int64(frags) < 0 {
		w.fail("of the fragments %d are left for %d reassembled datagrams: %s", int64(frags), n, hostCounters(h))
	}
	if u, k := w.host.UDPSockets(), w.host.TCPSockets(); len(u)+len(k) != 0 {
		w.fail("at the end there are sockets: %+v %+v", u, k)
	}
	if w.host.Busy() || w.host.Blocked() || w.host.Unsent() || w.host.TxPending() != 0 {
		w.fail("at the end the Host is busy: %v, blocked: %v, has %d frames to send",
			w.host.Busy(), w.host.Blocked(), w.host.TxPending())
	}
}

// hostCounters lists what is not zero.
func hostCounters(h *sockets.Counters) string {
	var b []byte
	for i, n := range h.Stats {
		if n != 0 {
			b = fmt.Appendf(b, "%v=%d ", sockets.Stat(i), n)
		}
	}
	for i, n := range h.Drops {
		if n != 0 {
			b = fmt.Appendf(b, "%v=%d ", sockets.Drop(i), n)
		}
	}
	return string(b)
}
