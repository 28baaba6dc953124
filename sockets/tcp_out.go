package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

// tcpMark puts the connection on the list that Flush works off.
func (h *Host) tcpMark(i uint32, c *tcb) {
	if !c.dirty {
		c.dirty = true
		h.tcp.dirty = append(h.tcp.dirty, i)
	}
}

// tcpAckSoon notes that the peer wants an ACK: with the next Flush, or when the delayed-ACK timer fires (RFC 1122
// 4.2.3.2).
func (h *Host) tcpAckSoon(i uint32, c *tcb, now bool) {
	if now {
		c.ackNow = true
		h.tcpMark(i, c)
		return
	}
	if c.ackAt == 0 {
		c.ackAt = h.now + delackNS
		h.tcpArm(c)
	}
}

// Flush builds the output of every connection on which something happened since the last call: data, then ACKs that no
// data carried. One turn of the reactor thus makes one ACK for a flow, however many segments it brought.
func (h *Host) Flush(now int64) {
	h.now = now
	for _, i := range h.tcp.dirty {
		c := h.tcp.at(i)
		c.dirty = false
		if c.state == tcpClosed {
			if c.orphan {
				h.tcpFree(i, c)
			}
			continue
		}
		h.tcpOutput(c)
	}
	h.tcp.dirty = h.tcp.dirty[:0]
}

// sendQueue copies p into frames of at most one segment each and returns the bytes that found room. The last frame is
// filled up while nothing of it was sent. Some TX frames always stay for ACKs, ARP and ICMP.
func (h *Host) sendQueue(c *tcb, p []byte) int {
	total := 0
	for len(p) > 0 {
		if c.sndTail == umem.None || !h.sendRoom(c) {
			if h.txUsed >= h.txLimit-h.txReserve() {
				break
			}
			f := h.allocTX()
			if f == umem.None {
				break
			}
			h.pool.Buf(f).Flags = bufKept
			if c.sndTail == umem.None {
				c.sndHead = f
			} else {
				h.pool.Buf(c.sndTail).Next = f
			}
			c.sndTail = f
			if c.sndNext == umem.None {
				c.sndNext = f
			}
		}
		b := h.pool.Buf(c.sndTail)
		room := h.pool.Chunk(c.sndTail)[int(b.Off)+int(b.Len) : int(b.Off)+int(c.mss)]
		n := copy(room, p)
		b.Len += uint16(n)
		p = p[n:]
		total += n
	}
	c.sndBytes += uint32(total)
	return total
}

// sendRoom reports whether the tail frame takes more bytes.
func (h *Host) sendRoom(c *tcb) bool {
	b := h.pool.Buf(c.sndTail)
	return b.Flags&bufSent == 0 && b.Len < c.mss
}

// sendAcked removes n acknowledged bytes from the send queue.
func (h *Host) sendAcked(c *tcb, n uint32) {
	c.sndBytes -= n
	for n > 0 {
		f := c.sndHead
		b := h.pool.Buf(f)
		if n < uint32(b.Len) {
			b.Off += uint16(n)
			b.Len -= uint16(n)
			return
		}
		n -= uint32(b.Len)
		c.sndHead = b.Next
		if c.sndNext == f {
			c.sndNext = b.Next
		}
		if c.sndTail == f {
			c.sndTail = umem.None
		}
		h.sendRelease(f)
	}
}

// tcpOutput is tcp_write_xmit: it sends what the windows allow, then a FIN that is due, then an ACK that is due.
func (h *Host) tcpOutput(c *tcb) {
	switch c.state {
	case tcpClosed:
		return
	case tcpSynRcvd: // our idea of the sequence numbers is all that may be said
		if c.ackNow {
			h.sendControl(c, proto.ACK, c.sndNxt)
		}
		return
	}
	for c.sndNext != umem.None {
		if !h.sendNextSegment(c) {
			break
		}
	}
	// A FIN goes out behind the last byte, and again when a timeout brought sndNxt back to it.
	if c.wantFIN && c.sndNext == umem.None && (!c.finSent || c.sndNxt != c.sndMax) {
		if h.sendControl(c, proto.FIN|proto.ACK, c.sndNxt) {
			c.finSent = true
			h.sent(c, 1)
		} else {
			h.sendLater(c)
		}
	}
	if c.ackNow {
		// Not sndNxt: after a timeout it stands back where the peer would take the ACK for an old duplicate.
		h.sendControl(c, proto.ACK, c.sndMax)
	}
	// Data waits, nothing is on its way that would bring an ACK: the persist timer asks for one.
	if c.sndNext != umem.None && c.sndUna == c.sndMax && c.rtxAt == 0 {
		c.probing = true
		c.rtxAt = h.now + c.rto
	}
	h.tcpArm(c)
}

// sendNextSegment sends the frame at sndNxt. false: not now.
func (h *Host) sendNextSegment(c *tcb) bool {
	f := c.sndNext
	b := h.pool.Buf(f)
	if b.Flags&bufQueued != 0 {
		return false // sent before and still with the device: its bytes must not be touched, and it will arrive
	}
	flight := c.sndNxt - c.sndUna
	usable := int(min(c.sndWnd, c.cwnd)) - int(flight)
	// What a timeout brings back goes out even if the peer took its window back (MUST-34): its answer tells the window.
	if again := flight == 0 && seqLT(c.sndNxt, c.sndMax); usable < int(b.Len) && !again {
		// Sender's silly-window avoidance (RFC 9293 3.8.6.2.1): a part of a segment only if it is half of the largest
		// window the peer ever had.
		if usable <= 0 || flight != 0 || uint32(usable) < c.maxWnd/2 || !h.sendSplit(c, f, usable) {
			return false
		}
	}
	if h.txRoom() == 0 {
		h.sendLater(c)
		return false
	}
	flags := uint8(proto.ACK)
	if b.Next == umem.None {
		flags |= proto.PSH
	}
	n := uint32(b.Len)
	h.sendFrame(c, f, flags)
	b.Flags |= bufSent
	c.sndNext = b.Next
	h.sent(c, n)
	return true
}

// sendLater has tcpOutput called again when there are frames and room to send. The table knows the record's index.
func (h *Host) sendLater(c *tcb) {
	if !c.later {
		c.later = true
		i, _ := h.tcp.flows.get(c.key)
		h.wantTX(h.tcp.handle(i))
	}
}

// sendSplit cuts frame f after k bytes and puts the rest into a frame of its own behind it.
func (h *Host) sendSplit(c *tcb, f umem.Frame, k int) bool {
	// With the last frame would go the ARP request and the ACK without which no frame may ever come back.
	if h.txUsed >= h.txLimit-h.txReserve()/2 {
		return false
	}
	g := h.allocTX()
	if g == umem.None {
		return false
	}
	from, to := h.pool.Buf(f), h.pool.Buf(g)
	to.Len = uint16(copy(h.pool.Chunk(g)[umem.Headroom:], h.pool.Data(f)[k:]))
	to.Flags = bufKept | from.Flags&bufSent
	to.Next = from.Next
	from.Len, from.Next = uint16(k), g
	if c.sndTail == f {
		c.sndTail = g
	}
	return true
}

// sent accounts for n sequence numbers from sndNxt on.
func (h *Host) sent(c *tcb, n uint32) {
	if seqLT(c.sndNxt, c.sndMax) {
		h.count(TCPRetransmits)
	} else if !c.rttValid && c.retries == 0 {
		c.rttValid, c.rttSeq, c.rttAt = true, c.sndNxt, h.now
	}
	c.sndNxt += n
	if seqLT(c.sndMax, c.sndNxt) {
		c.sndMax = c.sndNxt
	}
	if c.rtxAt == 0 || c.probing {
		c.probing = false
		c.rtxAt = h.now + c.rto
	}
}

// tsNow is our timestamp clock: milliseconds, with an offset of its own for each flow (RFC 7323 5.4).
func (h *Host) tsNow(c *tcb) uint32 { return uint32(h.now/1_000_000) + uint32(h.sec.flow(c.key)) }

// header fills in what every segment of the connection has and returns its length with options.
func (h *Host) header(c *tcb, hdr *proto.TCP, opt *proto.TCPOptions) {
	hdr.SrcPort, hdr.DstPort = c.key.LPort, c.key.RPort
	hdr.Ack = c.rcvNxt
	hdr.Window = h.rcvAdvertise(c)
	if c.tsOK {
		opt.HasTS, opt.TSVal, opt.TSEcr = true, h.tsNow(c), c.tsRecent
	}
	c.lastAck = c.rcvNxt
	c.ackNow = false
	c.ackAt = 0
}

// sendFrame writes headers in front of a data frame's payload and sends it. A frame that is refused counts as lost on
// the way.
func (h *Host) sendFrame(c *tcb, f umem.Frame, flags uint8) {
	hdr := proto.TCP{Seq: c.sndNxt, Flags: flags}
	var opt proto.TCPOptions
	h.header(c, &hdr, &opt)
	b := h.pool.Buf(f)
	n := proto.TCPHeaderLen
	if c.tsOK {
		n += 12
	}
	off := int(b.Off) - n
	h.finishSegment(f, off, n+int(b.Len), c.key, &hdr, &opt)
}

// sendControl sends a segment without data. false: no frame for it, counted.
func (h *Host) sendControl(c *tcb, flags uint8, seq uint32) bool {
	f := h.allocTX()
	if f == umem.None {
		h.counters.Drops[TxNoFrame]++
		return false
	}
	hdr := proto.TCP{Seq: seq, Flags: flags}
	var opt proto.TCPOptions
	h.header(c, &hdr, &opt)
	if flags&proto.SYN != 0 {
		hdr.Window = uint16(min(c.rcvAdv-c.rcvNxt, 0xffff)) // never scaled on a SYN
		opt.MSS = uint16(h.cfg.MTU - 40)
		opt.HasWScale, opt.WScale = c.rcvScale != 0, c.rcvScale
	}
	h.sendHeader(f, c.key, &hdr, &opt)
	return true
}

// sendRST answers a segment that belongs to no connection, or ends one.
func (h *Host) sendRST(k flowKey, seq, ack uint32, flags uint8) {
	f := h.allocTX()
	if f == umem.None {
		h.counters.Drops[TxNoFrame]++
		return
	}
	h.count(TCPResets)
	h.sendHeader(f, k, &proto.TCP{SrcPort: k.LPort, DstPort: k.RPort, Seq: seq, Ack: ack, Flags: flags}, &proto.TCPOptions{})
}

// sendHeader sends a segment of header and options alone in a frame of its own.
func (h *Host) sendHeader(f umem.Frame, k flowKey, hdr *proto.TCP, opt *proto.TCPOptions) {
	n := proto.TCPHeaderLen + optionsLen(opt)
	if !h.finishSegment(f, umem.Headroom, n, k, hdr, opt) {
		h.freeTX(f, umem.Held)
	}
}

// optionsLen is the room that PutTCPOptions takes.
func optionsLen(o *proto.TCPOptions) int {
	var scratch [proto.TCPOptionsMax]byte
	return proto.PutTCPOptions(scratch[:], o)
}

// finishSegment writes TCP and IP header of the segment chunk[off:off+n] and sends it.
func (h *Host) finishSegment(f umem.Frame, off, n int, k flowKey, hdr *proto.TCP, opt *proto.TCPOptions) bool {
	hop, _, ok := h.route(k.Remote)
	if !ok {
		h.counters.Drops[TxNoRoute]++
		return false
	}
	chunk := h.pool.Chunk(f)
	seg := chunk[off : off+n]
	hdr.DataOff = uint8(proto.TCPHeaderLen + proto.PutTCPOptions(seg[proto.TCPHeaderLen:], opt))
	hdr.Checksum = 0
	proto.PutTCP(seg, hdr)
	hdr.Checksum = ^proto.Fold(proto.Sum(seg, proto.PseudoSum(k.Local, k.Remote, proto.ProtoTCP, n)))
	proto.PutTCP(seg, hdr)
	off -= 20
	ip := proto.IPv4{
		Src: k.Local, Dst: k.Remote, ID: h.ident(k.Remote), TTL: defaultTTL, Proto: proto.ProtoTCP,
		HeaderLen: 20, TotalLen: uint16(n + 20),
	}
	proto.PutIPv4(chunk[off:], &ip)
	if !h.transmit(f, off, n+20, hop) {
		return false
	}
	h.count(TxTCP)
	return true
}

// rcvAdvertise is the window to put on the wire. The right edge never moves back (RFC 9293 SHLD-14), and forward only by
// a segment or half the buffer (3.8.6.2.2). Where all sockets together hold most of the memory there is, it stands still.
func (h *Host) rcvAdvertise(c *tcb) uint16 {
	limit, said := h.rcvLimit(), c.rcvAdv
	edge := c.rcvNxt + uint32(max(0, limit-int(c.rcvBytes)))
	if pressure := h.rxUsed > h.rxLimit/4*3; !pressure && int32(edge-c.rcvAdv) >= int32(min(int(c.rcvMSS), limit/2)) {
		c.rcvAdv = edge
	}
	wnd := c.rcvAdv - c.rcvNxt
	// What scaling cuts off is rounded up, or the edge would move back by it. But each ACK adds to the edge that way, so
	// that single bytes would fill any memory: at twice the limit it does move back (RFC 7323 2.4 says how peers take it).
	up := uint32(1)<<c.rcvScale - 1
	if int(c.rcvBytes)+int(wnd) > h.cfg.RcvBuf {
		up = 0
	}
	scaled := min((wnd+up)>>c.rcvScale, 0xffff)
	if c.rcvAdv = c.rcvNxt + scaled<<c.rcvScale; seqLT(c.rcvAdv, said) {
		c.rcvAdv = said // what was promised once is taken
	}
	return uint16(scaled)
}

// rcvLimit is the receive buffer in bytes of data: half of RcvBuf, which counts whole frames.
func (h *Host) rcvLimit() int { return h.cfg.RcvBuf / 2 }

// rcvWindowCheck sends an update when a reader has made room and the peer sees a small window.
func (h *Host) rcvWindowCheck(i uint32, c *tcb) {
	if c.state == tcpClosed || c.rcvFIN {
		return
	}
	seen := int(int32(c.rcvAdv - c.rcvNxt))
	room := h.rcvLimit() - int(c.rcvBytes)
	if seen < h.rcvLimit()/4 && room-seen >= min(2*int(c.rcvMSS), h.rcvLimit()/2) {
		h.tcpAckSoon(i, c, true)
	}
}
