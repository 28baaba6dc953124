package sockets

import "xdpd/umem"

// Segments of several frames. A frame of the send queue stays what is marked sent, lost or SACKed; which of them go out in
// one packet is decided anew each time that they do.

// together is what of the send queue goes as one segment: frames from the first to last, with so many bytes.
type together struct {
	bytes uint32
	last  umem.Frame
	shut  bool // the peer's window ends before the segment is full
}

// piece is how much of a segment of mss bytes each of its frames takes: the same, and even, for the sake of checksums.
func (h *Host) piece(mss uint16) int {
	if int(mss) <= h.room {
		return int(mss)
	}
	n := h.frames(int(mss))
	return int(mss) / n &^ 1
}

// pieceAt is how much a frame of the send queue takes. A lent one may begin too far behind for a whole piece.
func (h *Host) pieceAt(c *tcb, b *umem.Buf) int {
	if h.cfg.PacketFrames == 1 {
		return int(c.mss)
	}
	return h.pieceIn(c, b)
}

func (h *Host) pieceIn(c *tcb, b *umem.Buf) int {
	return min(h.piece(c.mss), h.room+umem.Headroom-int(b.Off))
}

// together gives the segment that begins with frame f, which was never sent or is marked lost.
func (h *Host) together(c *tcb, f umem.Frame) together {
	b := h.pool.Buf(f)
	fresh := b.Flags&bufSent == 0
	s := together{bytes: uint32(b.Len), last: f}
	if b.Flags&bufQueued != 0 || fresh && !h.inWindow(c, b) {
		return s
	}
	for frames := 1; frames < h.cfg.PacketFrames && s.bytes < uint32(c.mss); frames++ {
		next := b.Next
		if next == umem.None || !fresh && next == c.sndNext {
			break
		}
		b = h.pool.Buf(next)
		if fresh {
			h.sendFill(c, next)
		} else if b.Flags&(bufLost|bufAgain) != bufLost || b.Flags&bufQueued != 0 {
			break
		}
		if b.Len == 0 || s.bytes+uint32(b.Len) > uint32(c.mss) { // a FIN alone has no bytes for a frame of its own
			break
		}
		if fresh && !h.inWindow(c, b) {
			s.shut = true
			break
		}
		s.bytes += uint32(b.Len)
		s.last = next
	}
	return s
}

// tie marks the frames of a segment as one packet and gives its bytes.
func (h *Host) tie(f, to umem.Frame) (bytes uint32) {
	for {
		b := h.pool.Buf(f)
		bytes += uint32(b.Len)
		if f == to {
			return bytes
		}
		b.Flags |= bufMore
		f = b.Next
	}
}

// sent marks the frames of a segment behind the first.
func (h *Host) sent(b, last *umem.Buf) {
	for b != last {
		b = h.pool.Buf(b.Next)
		b.Flags |= bufSent
		b.Aux = h.nowUS()
	}
}

// segmentSize is how many bytes the segment has that was sent with f as its first frame.
func (h *Host) segmentSize(f umem.Frame) uint32 {
	b := h.pool.Buf(f)
	n := uint32(b.Len)
	for b.Flags&bufMore != 0 && b.Next != umem.None {
		b = h.pool.Buf(b.Next)
		n += uint32(b.Len)
	}
	return n
}

// tiedLen is the length of a TCP segment of which n bytes are in f.
func (h *Host) tiedLen(f umem.Frame, n int) int {
	b := h.pool.Buf(f)
	if b.Flags&bufMore == 0 {
		return n
	}
	return n + int(h.segmentSize(f)) - int(b.Len)
}

// sumTied is the checksum of what a TCP segment, of which n bytes are in f, has in its other frames.
func (h *Host) sumTied(f umem.Frame, n int) (acc uint64) {
	for b := h.pool.Buf(f); b.Flags&bufMore != 0; {
		f = b.Next
		acc = h.sumFrame(f, n, acc)
		b = h.pool.Buf(f)
		n += int(b.Len)
	}
	return acc
}

// nagle reports a short segment at the end of what there is to send (RFC 9293 3.7.4).
func (h *Host) nagle(c *tcb, s together) bool {
	b := h.pool.Buf(s.last)
	return b.Next == umem.None && s.bytes < uint32(c.mss) && b.Flags&bufFIN == 0
}

// sendFill fills a short frame that was never sent from those behind it: what a small window split, or many small lent
// frames.
func (h *Host) sendFill(c *tcb, f umem.Frame) {
	b := h.pool.Buf(f)
	if b.Next == umem.None {
		return
	}
	for size := h.pieceAt(c, b); int(b.Len) < size && b.Next != umem.None; {
		n := h.pool.Buf(b.Next)
		k := copy(h.pool.Chunk(f)[int(b.Off)+int(b.Len):int(b.Off)+size], h.pool.Data(b.Next))
		h.counters.Copied[CopyGather] += uint64(k)
		b.Len += uint16(k)
		n.Len -= uint16(k)
		n.Seq += uint32(k)
		if n.Len > 0 { // what is left goes to its front, so that there is room for a whole segment behind it
			chunk := h.pool.Chunk(b.Next)
			k = copy(chunk[n.Off:], chunk[int(n.Off)+k:int(n.Off)+k+int(n.Len)])
			h.counters.Copied[CopyGather] += uint64(k)
			return
		}
		b.Flags |= n.Flags & bufFIN
		gone := b.Next
		if b.Next = n.Next; c.sndTail == gone {
			c.sndTail = f
		}
		c.sndFrames--
		h.sendRelease(gone)
	}
}
