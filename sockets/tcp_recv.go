package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

const (
	// rcvBufStart is the receive window before a reader has shown how fast he is (net.ipv4.tcp_rmem's 131072 with
	// tcp_adv_win_scale 1).
	rcvBufStart = 65535
	// copybreak is the size below which received data is copied behind the data before it, as NIC drivers do: a reader
	// of small messages must not hold a whole frame for each.
	copybreak = 1024
	// quickACKs is how many ACKs are not delayed after something was lost (TCP_MAX_QUICKACKS): a sender with a window of
	// one segment would wait for each.
	quickACKs = 16
	// ofoMax is how many frames one connection may hold out of order, ofoFrameBytes the least they hold on average.
	ofoMax        = 2560 // of full segments more than the largest window
	ofoFrameBytes = 256
)

// tcpData queues the data of the segment, or what of it is new, and handles its FIN.
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
	if s.ip.TOS&ecnMask == ecnCE && c.ecnOK {
		h.count(TCPMarked)
		h.moving(i, c).eceDue = true // until the peer says that it heard (RFC 3168 6.1.3)
	}
	if s.tcp.Flags&proto.CWR != 0 && c.ecnOK {
		if x := h.activeOf(c); x != nil {
			x.eceDue = s.ip.TOS&ecnMask == ecnCE
		}
	}
	h.urgentInput(i, c, s)
	// Of what the sequence check let through, the front may be old and the end beyond the window.
	if k := int32(c.rcvNxt - s.seq); k > 0 {
		if c.sackOK && s.data > 0 {
			h.dsackNote(i, c, s.seq, seqMin(c.rcvNxt, s.seq+uint32(s.data)))
		}
		h.trimFront(s, int(k))
		c.quick = quickACKs
		h.tcpAckSoon(i, c, true)
	}
	if room := int(c.rcvAdv - s.seq); s.data > room {
		s.fin = false
		h.tcpAckSoon(i, c, true)
		h.trimData(s, room)
	}
	// RFC 1122 4.2.2.13: nobody will read it. Linux does the same for an owner who shut down both directions.
	if (c.orphan || c.rcvShut && c.state != tcpEstablished) && s.data > 0 {
		h.drop(s.packet, TCPClosed)
		c.err = uint8(ECONNRESET)
		k, next := c.key, c.sndUna // what the peer waits for: it takes no other number at once (RFC 5961 3.2)
		h.tcpFree(i, c)
		h.sendRST(k, next, 0, proto.RST)
		return
	}
	if s.seq != c.rcvNxt {
		c.quick = quickACKs
		h.tcpAckSoon(i, c, true) // RFC 5681 4.2: at once
		h.ofoInput(i, c, s)
		return
	}
	c.received += uint64(s.data)
	switch {
	case s.data == 0 || c.rcvShut:
		c.rcvNxt += uint32(s.data)
		h.discard(s.packet)
	case !h.rcvQueue(i, c, s):
		c.received -= uint64(s.data)
		return // not acknowledged; it comes again
	}
	fin := s.fin
	if x := h.activeOf(c); x != nil && x.ofoHead != umem.None {
		h.tcpAckSoon(i, c, true) // RFC 5681 4.2: what fills a gap
		fin = h.ofoTake(c, x) || fin
	}
	// More than a segment, not two: behind a full one and a last short one nothing may follow, and a sender's loss probe comes
	// sooner than a delayed ACK (as __tcp_ack_snd_check).
	h.tcpAckSoon(i, c, fin || c.quick > 0 || c.rcvNxt-c.lastAck > uint32(c.rcvMSS))
	what := happenedIn
	if fin {
		what = happenedState
		h.tcpPeerFIN(i, c)
	}
	h.notify(h.tcp.handle(i), what)
}

// tcpPeerFIN is the eighth step of RFC 9293 3.10.7.4.
func (h *Host) tcpPeerFIN(i uint32, c *tcb) {
	c.rcvNxt++
	if seqLT(c.rcvAdv, c.rcvNxt) {
		c.rcvAdv = c.rcvNxt // a FIN is taken behind a full window too
	}
	c.rcvFIN = true
	if x := h.activeOf(c); x != nil {
		h.ofoDrop(x) // nothing comes behind it
	}
	switch c.state {
	case tcpEstablished:
		c.state = tcpCloseWait
	case tcpFinWait1:
		c.state = tcpClosing // our FIN is not acknowledged, or it would be FIN-WAIT-2
	case tcpFinWait2:
		h.enterTimeWait(i, c)
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
		f = b.Next
	}
}

// rcvQueue appends the segment's data. false: no memory, and the segment was dropped.
func (h *Host) rcvQueue(i uint32, c *tcb, s *segment) bool {
	c.rcvMSS = max(c.rcvMSS, uint16(min(s.data, h.cfg.MTU-40)))
	if s.data <= copybreak && !s.held && h.pool.Buf(s.f).Next == umem.None && h.rcvCopied(c, s.f) {
		h.count(RxCoalesced)
		h.discard(s.packet)
	} else {
		// What waits out of order gives way to what is in order: the peer keeps it until it is acknowledged.
		a := h.connAccount(i)
		if x := h.activeOf(c); x != nil && (h.rxUsed+h.cfg.PacketFrames > h.rxLimit || a != 0 && h.rxShort(a)) {
			h.ofoPrune(x)
		}
		if !h.holdFor(a, s.packet) {
			return false
		}
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
	h.counters.Copied[CopyGather] += uint64(len(data))
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

// rcvCopy moves bytes from the receive queue to dst and frees the frames that are empty.
func (h *Host) rcvCopy(c *tcb, dst []byte) int {
	n := 0
	for n < len(dst) && c.rcvHead != umem.None {
		b := h.pool.Buf(c.rcvHead)
		k := copy(dst[n:], h.pool.Data(c.rcvHead))
		n += k
		b.Off += uint16(k)
		b.Len -= uint16(k)
		if b.Len == 0 {
			f := c.rcvHead
			c.rcvHead = b.Next
			h.release(f)
		}
	}
	h.counters.Copied[CopyRecv] += uint64(n)
	c.rcvBytes -= uint32(n)
	return n
}

// rcvTaken is called when the reader took n bytes: the window may grow, and the peer may have to hear of it.
func (h *Host) rcvTaken(i uint32, c *tcb, n int) {
	h.urgentRead(i, c)
	if c.state == tcpClosed || c.rcvFIN {
		return
	}
	h.rcvTune(i, c, n)
	seen := int(int32(c.rcvAdv - c.rcvNxt))
	room := int(c.rcvBuf) - int(c.rcvBytes)
	if seen < int(c.rcvBuf)/4 && room-seen >= min(2*int(c.rcvMSS), int(c.rcvBuf)/2) {
		h.tcpAckSoon(i, c, true)
	}
}

// rcvTune is dynamic right-sizing (tcp_rcv_space_adjust): a reader who takes n bytes in a round trip gets a window of
// twice that and a bit, so that the window never limits a sender who goes on growing.
func (h *Host) rcvTune(i uint32, c *tcb, n int) {
	limit := uint32(h.rcvLimit())
	if c.rcvBuf >= limit || n == 0 {
		return
	}
	// A sender whom the window could hold up sends more than this before anybody acknowledges it: for a small message now and
	// then, a connection that rests goes on resting.
	if c.active == 0 && c.rcvNxt-c.lastAck < uint32(c.rcvMSS) {
		return
	}
	x := h.moving(i, c)
	x.spaceTaken += uint32(n)
	if h.now-x.spaceAt < int64(max(c.srtt, 1000))*1000 {
		return
	}
	if want := 2*x.spaceTaken + 16*uint32(c.rcvMSS); want > c.rcvBuf {
		c.rcvBuf = min(want, limit)
	}
	x.spaceAt, x.spaceTaken = h.now, 0
}

// rcvAdvertise is the window to put on the wire. The right edge never moves back (RFC 9293 SHLD-14), and forward only by
// a segment or half the buffer (3.8.6.2.2). Where all sockets together hold half of the memory there
// is, no connection gets more than it began with, nor a quarter of what is left: many that nobody reads leave a share to one
// that is read, where a limit for all would stop that one with them (tcp_under_memory_pressure clamps windows, too).
func (h *Host) rcvAdvertise(c *tcb) uint16 {
	limit, said := int(c.rcvBuf), c.rcvAdv
	share := limit
	if h.rxUsed > h.rxTight {
		share = h.rcvShare(c, limit)
	}
	edge := c.rcvNxt + uint32(max(0, share-int(c.rcvBytes)))
	if int32(edge-c.rcvAdv) >= int32(min(int(c.rcvMSS), limit/2)) {
		c.rcvAdv = edge
	}
	wnd := c.rcvAdv - c.rcvNxt
	// What scaling cuts off is rounded up, or the edge would move back by it. But each ACK adds to the edge that way, so
	// that single bytes would fill any memory: at twice the limit it does move back (RFC 7323 2.4 says how peers take it).
	up := uint32(1)<<c.rcvScale - 1
	if int(c.rcvBytes)+int(wnd) > 2*limit {
		up = 0
	}
	scaled := min((wnd+up)>>c.rcvScale, 0xffff)
	if c.rcvAdv = c.rcvNxt + scaled<<c.rcvScale; seqLT(c.rcvAdv, said) {
		c.rcvAdv = said // what was promised once is taken
	}
	return uint16(scaled)
}

// rcvShare is how large a window may be, of limit bytes at most, where much of the memory, or of the account's, is held.
func (h *Host) rcvShare(c *tcb, limit int) int {
	free := h.rxLimit
	if h.rxUsed > h.rxLimit/2 {
		free -= h.rxUsed
	}
	if h.accounts.of != nil {
		if _, i := h.tcp.flows.get(c.key); h.connAccount(i) != 0 {
			a := h.connAccount(i)
			if used, room := h.accounts.list[a].RX, h.rxRoom(a); used > room/2 {
				free = min(free, max(0, room-used))
			}
		}
	}
	if free == h.rxLimit {
		return limit
	}
	return min(limit, rcvBufStart, free/4*h.piece(c.rcvMSS))
}

// rcvLimit is the largest receive buffer in bytes of data.
func (h *Host) rcvLimit() int { return h.cfg.RcvMax }
