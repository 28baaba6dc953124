package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

const rstAck = proto.RST | proto.ACK

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
		c.ackAt = h.inMS(delackNS)
		h.tcpArm(i, c)
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
		h.tcpOutput(i, c)
		if c.state == tcpTimeWait && c.orphan {
			h.tcpTimeWait(i, c)
		}
	}
	h.tcp.dirty = h.tcp.dirty[:0]
}

// sndLimit is how many bytes the send queue takes: twice the congestion window, so that there is always something to
// send, from sndBufStart to SndBuf.
func (h *Host) sndLimit(c *tcb) int {
	return min(h.cfg.SndBuf, max(sndBufStart, 2*int(c.cwnd)))
}

// sndFrameLimit keeps single bytes from holding a frame each without end, and cuts for a smaller path from running
// sndFrames over.
func (h *Host) sndFrameLimit(bytes int) int { return min(max(16, bytes/sndFrameBytes), 1<<14) }

const (
	sndBufStart   = 128 << 10
	sndFrameBytes = 512 // least average payload of a send queue's frames
)

// sendQueue copies p into frames of at most one segment each, or into as many for a segment as it takes, and returns the bytes that found room. The last frame is
// filled up while nothing of it was sent. Some TX frames always stay for ACKs, ARP and ICMP.
func (h *Host) sendQueue(c *tcb, p []byte) int {
	total, frames := 0, h.sndFrameLimit(h.sndLimit(c))
	for len(p) > 0 {
		if c.sndTail == umem.None || !h.sendRoom(c) {
			if int(c.sndFrames) >= frames || h.txUsed >= h.txDataLimit(c) || h.payerFull(c) {
				break
			}
			f := h.allocTX()
			if f == umem.None {
				break
			}
			h.sendLink(c, f)
		}
		b := h.pool.Buf(c.sndTail)
		end := int(b.Off) + int(b.Len)
		n := copy(h.pool.Chunk(c.sndTail)[end:int(b.Off)+h.pieceAt(c, b)], p)
		b.Len += uint16(n)
		p = p[n:]
		total += n
	}
	h.counters.Copied[CopySend] += uint64(total)
	c.sndBytes += uint32(total)
	return total
}

// txDataLimit is how far data may fill up the frames: to the reserve, and who has next to nothing to send, half into it.
func (h *Host) txDataLimit(c *tcb) int {
	if c.sndFrames < 2 {
		return h.txLimit - max(1, h.txReserve()/2)
	}
	return h.txLimit - h.txReserve()
}

// sendLink puts a frame behind the send queue.
func (h *Host) sendLink(c *tcb, f umem.Frame) {
	b := h.pool.Buf(f)
	b.Flags, b.Next = b.Flags&bufTell|bufKept, umem.None
	b.Seq = c.sndUna
	if c.sndTail == umem.None {
		c.sndHead = f
		if c.sndNxt != c.sndUna { // only a FIN could be out without a frame, and nothing follows it
			b.Seq = c.sndNxt
		}
	} else {
		tail := h.pool.Buf(c.sndTail)
		tail.Next = f
		b.Seq = tail.Seq + uint32(tail.Len)
	}
	c.sndTail = f
	c.sndFrames++
	if c.sndNext == umem.None {
		c.sndNext = f
	}
}

// sendRoom reports whether the tail frame takes more bytes.
func (h *Host) sendRoom(c *tcb) bool {
	b := h.pool.Buf(c.sndTail)
	return b.Flags&(bufSent|bufFIN) == 0 && int(b.Len) < h.pieceAt(c, b)
}

// tcpOutput is tcp_write_xmit: first what was lost, then what the windows allow of the rest, then an ACK that is due.
func (h *Host) tcpOutput(i uint32, c *tcb) {
	switch c.state {
	case tcpClosed, tcpSynSent:
		return
	case tcpSynRcvd: // our idea of the sequence numbers is all that may be said
		if c.ackNow {
			h.sendACK(c)
		}
		return
	}
	if c.wantFIN && !c.finQueued {
		h.queueFIN(i, c)
	}
	if c.sndHead != umem.None {
		x := h.moving(i, c)
		h.sendLost(i, c, x)
		h.sendNew(i, c, x)
		h.tellRoom(i, c)
	}
	if c.ackNow {
		h.sendACK(c)
	}
	// Data waits, nothing is on its way that would bring an ACK: the persist timer asks for one.
	if c.sndNext != umem.None && c.sndUna == c.sndNxt && c.rtxAt == 0 && !c.later {
		c.probing = true
		h.moving(i, c).stalledAt = h.nowMS()
		c.rtxAt = h.now + int64(backoff(c.rto, c.probes))*1000
	}
	h.tcpArm(i, c)
}

// tellRoom is tcp_check_space: it wakes who was told that the send queue is too full, once it is worth it.
func (h *Host) tellRoom(i uint32, c *tcb) {
	if c.happened&noSpace != 0 && !c.blocked && h.sndRoomy(c) {
		c.happened &^= noSpace
		h.notify(h.tcp.handle(i), happenedOut)
	}
}

// queueFIN marks the last frame of the send queue with FIN, or makes one for it.
func (h *Host) queueFIN(i uint32, c *tcb) {
	if c.sndTail == umem.None || h.pool.Buf(c.sndTail).Flags&bufSent != 0 {
		// What is kept until it is acknowledged never takes the last frames: with them would go the ARP reply and the ACK
		// without which nothing is ever acknowledged.
		f := umem.None
		if h.txUsed < h.txLimit-max(1, h.txReserve()/4) {
			f = h.allocFor(h.connAccount(i))
		}
		if f == umem.None {
			h.awaitData(h.tcp.handle(i), c)
			return
		}
		h.sendLink(c, f)
	}
	h.pool.Buf(c.sndTail).Flags |= bufFIN
	c.finQueued = true
}

// sendLost sends again what is marked lost, as far as the congestion window goes.
func (h *Host) sendLost(i uint32, c *tcb, x *active) {
	x.stuck = false
	for f := c.sndHead; x.toSend > 0 && f != umem.None && f != c.sndNext; {
		b := h.pool.Buf(f)
		if b.Flags&(bufLost|bufAgain) != bufLost {
			f = b.Next
			continue
		}
		s := together{bytes: uint32(b.Len), last: f}
		if h.cfg.PacketFrames > 1 {
			s = h.together(c, f)
		}
		if pipe := c.pipe(x); pipe > 0 && pipe+min(s.bytes, uint32(c.mss)) > c.cwnd {
			x.limitedSeq = c.sndNxt
			return
		}
		if b.Flags&bufQueued != 0 {
			x.stuck = true // still with the device: its bytes must not be touched, and it will arrive
		} else if !h.sendData(i, c, x, f, s.last) {
			return
		}
		f = h.pool.Buf(s.last).Next // sendData may have cut it
	}
}

// inWindow reports whether a frame fits into the peer's window.
func (h *Host) inWindow(c *tcb, b *umem.Buf) bool {
	return seqLE(b.Seq+uint32(b.Len), c.sndUna+c.sndWnd)
}

// sendNew sends what was not sent yet, as far as both windows go.
func (h *Host) sendNew(i uint32, c *tcb, x *active) {
	for c.sndNext != umem.None && !seqLT(c.sndUna, x.partEnd) {
		if c.mss < c.mssMax && h.mtuProbe(i, c, x) {
			continue
		}
		f := c.sndNext
		h.sendFill(c, f)
		b := h.pool.Buf(f)
		s := together{bytes: uint32(b.Len), last: f}
		if h.cfg.PacketFrames > 1 {
			s = h.together(c, f)
		}
		pipe := c.pipe(x)
		if pipe > 0 && pipe+min(s.bytes, uint32(c.mss)) > c.cwnd {
			x.limitedSeq = c.sndNxt
			return
		}
		if !h.inWindow(c, b) {
			// Sender's silly-window avoidance (RFC 9293 3.8.6.2.1): a part of a segment only if it is half of the largest
			// window the peer ever had.
			usable := int32(c.sndUna + c.sndWnd - b.Seq)
			whole := b.Len > c.mss && usable >= int32(c.mss) // the path's MTU became smaller: a segment of it fits
			if whole {
				whole = h.sendSplit(c, f, int(c.mss))
			}
			if !whole && (usable <= 0 || c.sndUna != c.sndNxt || uint32(usable) < c.maxWnd/2 || !h.sendSplit(c, f, int(usable))) {
				break
			}
		} else if c.sndUna != c.sndNxt && (s.shut && s.bytes < c.maxWnd/2 || c.delay && h.nagle(c, s)) {
			break
		}
		if !h.sendData(i, c, x, f, s.last) {
			return
		}
	}
	// In slow start a window that is half used will be whole used (tcp_is_cwnd_limited).
	if flight := c.sndNxt - c.sndUna; flight+uint32(c.mss) > c.cwnd || c.cwnd < c.ssthresh && 2*flight > c.cwnd {
		x.limitedSeq = c.sndNxt
	}
}

// sendData sends the segment of the send queue from frame f to frame to, for the first time or again. false: not now.
func (h *Host) sendData(i uint32, c *tcb, x *active, f, to umem.Frame) bool {
	if room := h.txRoom(); room == 0 || f != to && room < h.cfg.PacketFrames {
		h.sendLater(i, c)
		return false
	}
	b := h.pool.Buf(f)
	again := b.Flags&bufSent != 0
	size := b.Len
	if size > c.mss { // the path's MTU became smaller
		if h.sendSplit(c, f, int(c.mss)) {
			size = b.Len
		} else { // all frames are in queues like this one: the rest goes when this part is acknowledged
			size = c.mss
			b.Flags |= bufPart
			if !again {
				x.partSent, x.partEnd = b.Seq+uint32(size), b.Seq+uint32(b.Len)
			}
		}
	}
	hdr := proto.TCP{Seq: b.Seq, Flags: proto.ACK}
	tos := uint8(0)
	if c.ecnOK && !again && b.Len > 0 {
		tos = ecnECT0
		if x.cwrDue {
			x.cwrDue = false
			hdr.Flags |= proto.CWR
		}
	}
	n := uint32(b.Len)
	last := b
	if f != to {
		n, last = h.tie(f, to), h.pool.Buf(to)
	}
	last.Flags &^= bufMore
	if last.Next == umem.None && n > 0 {
		hdr.Flags |= proto.PSH
	}
	if last.Flags&bufFIN != 0 {
		n++
		if size == b.Len {
			hdr.Flags |= proto.FIN
		}
	}
	var opt proto.TCPOptions
	h.header(c, &hdr, &opt)
	off := int(b.Off) - proto.TCPHeaderLen
	if c.tsOK {
		off -= 12
	}
	// A frame that is refused counts as lost on the way.
	h.finishSegment(f, off, int(b.Off)-off+int(size), c.key, &hdr, &opt, tos)
	if c.sndUna == c.sndNxt { // after a pause
		h.ccIdle(c, x)
		x.cubic.pause(h.now)
		x.stalledAt = h.nowMS()
		x.rackXmit, x.rackEnd = h.nowUS(), b.Seq // nothing later has arrived; what did may be too long ago to say
	}
	b.Flags |= bufSent
	b.Aux = h.nowUS()
	if f != to {
		h.sent(b, last)
	}
	c.sentAt = h.nowMS()
	if x.phase == phaseRecovery || x.phase == phaseCWR {
		x.prrOut += n
	}
	if again {
		h.sentAgain(c, x, b, last, n)
	} else {
		c.sndNext = last.Next
		c.sndNxt += n
		c.probing = false
		h.armLoss(c, x, false)
	}
	return true
}

// sentAgain accounts for a retransmission.
func (h *Host) sentAgain(c *tcb, x *active, b, last *umem.Buf, n uint32) {
	h.count(TCPRetransmits)
	c.retransmits++
	for ; ; b = h.pool.Buf(b.Next) {
		b.Flags |= bufAgain | bufEver
		x.toSend--
		if b == last {
			break
		}
	}
	x.again += n
	if x.undoAgain >= 0 {
		x.undoAgain++
		if x.againTS == 0 {
			x.againTS = max(h.tsNow(c.key), 1)
		}
	}
	if c.rtxAt == 0 {
		c.rtxAt = h.now + int64(c.rto)*1000
	}
}

// sendLater has tcpOutput called again when there are frames and room to send.
func (h *Host) sendLater(i uint32, c *tcb) {
	if !c.later {
		c.later = true
		h.wantTX(h.tcp.handle(i))
	}
}

// sendSplit cuts frame f after k bytes and puts the rest into a frame of its own behind it.
func (h *Host) sendSplit(c *tcb, f umem.Frame, k int) bool {
	// With the last frame would go the ARP request and the ACK without which no frame may ever come back.
	if h.txUsed >= h.txLimit-h.txReserve()/2 {
		return false
	}
	g := h.allocLike(f)
	if g == umem.None {
		return false
	}
	from, to := h.pool.Buf(f), h.pool.Buf(g)
	to.Len = uint16(copy(h.pool.Chunk(g)[umem.Headroom:], h.pool.Data(f)[k:]))
	h.counters.Copied[CopySplit] += uint64(to.Len)
	to.Flags = from.Flags &^ (bufQueued | bufTell)
	to.Aux, to.Seq, to.Next = from.Aux, from.Seq+uint32(k), from.Next
	from.Len, from.Next, from.Flags = uint16(k), g, from.Flags&^bufFIN
	if x := h.activeOf(c); x != nil {
		if to.Flags&bufSacked != 0 {
			x.sackedFrames++
		}
		if to.Flags&(bufLost|bufAgain) == bufLost {
			x.toSend++
		}
	}
	c.sndFrames++
	if c.sndTail == f {
		c.sndTail = g
	}
	return true
}

// tsNow is our timestamp clock: milliseconds, with an offset of its own for each flow (RFC 7323 5.4).
func (h *Host) tsNow(k flowKey) uint32 { return h.nowMS() + h.sec.stamp(k) }

// header fills in what every segment of the connection has.
func (h *Host) header(c *tcb, hdr *proto.TCP, opt *proto.TCPOptions) {
	hdr.SrcPort, hdr.DstPort = c.key.LPort, c.key.RPort
	hdr.Ack = c.rcvNxt
	hdr.Window = h.rcvAdvertise(c)
	if c.tsOK {
		opt.HasTS, opt.TSVal, opt.TSEcr = true, h.tsNow(c.key), c.tsRecent
	}
	if x := h.activeOf(c); x != nil && x.eceDue {
		hdr.Flags |= proto.ECE
	}
	c.lastAck = c.rcvNxt
	c.ackAt = 0
	c.quick -= min(c.quick, 1)
	if !h.sackDue(c) { // data carries no SACK blocks: an ACK that has some goes out by itself
		c.ackNow = false
	}
}

// sendACK sends an ACK without data, with what is to be SACKed.
func (h *Host) sendACK(c *tcb) {
	seq := c.sndNxt
	if x := h.activeOf(c); x != nil && seqLT(c.sndUna, x.partEnd) {
		seq = x.partSent // the peer may not have room for a number behind what was left out
	}
	h.sendPure(c, seq)
}

func (h *Host) sendPure(c *tcb, seq uint32) {
	hdr := proto.TCP{Seq: seq, Flags: proto.ACK}
	var opt proto.TCPOptions
	h.header(c, &hdr, &opt)
	h.sackOptions(c, &opt)
	c.ackNow = false
	h.sendBare(c.key, &hdr, &opt)
}

// sendRST answers a segment that belongs to no connection, or ends one.
func (h *Host) sendRST(k flowKey, seq, ack uint32, flags uint8) {
	h.count(TCPResets)
	h.sendBare(k, &proto.TCP{SrcPort: k.LPort, DstPort: k.RPort, Seq: seq, Ack: ack, Flags: flags}, &proto.TCPOptions{})
}

// sendBare sends a segment of header and options alone in a frame of its own. Without one it is lost, and counted.
func (h *Host) sendBare(k flowKey, hdr *proto.TCP, opt *proto.TCPOptions) {
	f := h.allocTX()
	if f == umem.None {
		h.counters.Drops[TxNoFrame]++
		return
	}
	if !h.finishSegment(f, umem.Headroom, proto.TCPHeaderLen+opt.Len(), k, hdr, opt, 0) {
		h.freeTX(f, umem.Held)
	}
}

// ECN field of the IP header (RFC 3168 section 5).
const (
	ecnMask = 3
	ecnECT0 = 2
	ecnCE   = 3
)

// finishSegment writes TCP and IP header of the segment chunk[off:off+n], which with bufMore goes on in other frames, and
// sends it.
func (h *Host) finishSegment(f umem.Frame, off, n int, k flowKey, hdr *proto.TCP, opt *proto.TCPOptions, tos uint8) bool {
	hop, _, ok := h.route(k.Remote)
	if !ok {
		h.counters.Drops[TxNoRoute]++
		return false
	}
	chunk, b := h.pool.Chunk(f), h.pool.Buf(f)
	seg := chunk[off : off+n]
	hdr.DataOff = uint8(proto.TCPHeaderLen + proto.PutTCPOptions(seg[proto.TCPHeaderLen:], opt))
	total := h.tiedLen(f, n)
	pseudo := proto.PseudoSum(k.Local, k.Remote, proto.ProtoTCP, total)
	if h.leavesSum(total) {
		hdr.Checksum = h.partialSum(b, pseudo)
	} else {
		b.Flags &^= bufPartial // as which it may have gone out before
		hdr.Checksum = 0
		if proto.PutTCP(seg, hdr); total > n {
			pseudo = proto.AddSum(pseudo, h.sumTied(f, n))
		}
		hdr.Checksum = ^proto.Fold(proto.Sum(seg, pseudo))
	}
	proto.PutTCP(seg, hdr)
	off -= 20
	ip := proto.IPv4{
		Src: k.Local, Dst: k.Remote, ID: h.ident(k.Remote), TTL: defaultTTL, Proto: proto.ProtoTCP, TOS: tos,
		DF: true, HeaderLen: 20, TotalLen: uint16(total + 20),
	}
	proto.PutIPv4(chunk[off:], &ip)
	h.count(TxTCP)
	return h.transmit(f, off, n+20, hop)
}
