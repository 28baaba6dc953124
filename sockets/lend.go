package sockets

import (
	"net/netip"

	"xdpd/umem"
)

// Lent frames: the payload changes hands between the Host and an application instead of being copied. The application
// owns the frame, as umem.Lent, from UDPTake, TCPTake or Lend until it gives it back (Give) or sends it (UDPSendLent,
// TCPSendLent). A frame that brought something counts as received data until then, one to be written as data to send.

// tells is what senders of lent frames want to hear when these are free.
type tells struct {
	of    []uint32 // by frame with bufTell; nil until there was one
	freed []uint32 // since the last TakeFreed
}

func (t *tells) free(f umem.Frame) { t.freed = append(t.freed, t.of[f]) }

// TCPTake lends the first piece of what was received. None and no error: end of stream. Errors as TCPRead.
func (h *Host) TCPTake(s Handle, now int64) (f umem.Frame, b []byte, err Errno) {
	h.now = now
	c, err := h.readable(s)
	if c == nil {
		return umem.None, nil, err
	}
	f = c.rcvHead
	b = h.pool.Data(f)
	c.rcvHead = h.pool.Buf(f).Next
	c.rcvBytes -= uint32(len(b))
	h.lendOut(f, 0)
	h.rcvTaken(s.index(), c, len(b))
	return f, b, 0
}

// UDPTake lends the frames of the next datagram, at most limit of them: the first, from which Buf.Next leads to the
// others that a reassembled one has. Each is given back by itself. Errors as UDPRecv, and EMSGSIZE for a datagram of more
// frames, which stays.
func (h *Host) UDPTake(s Handle, limit int) (f umem.Frame, d Datagram, err Errno) {
	u, err := h.udpFirst(s, &d)
	if err != 0 {
		return umem.None, d, err
	}
	if h.longer(u.head, limit) {
		return umem.None, d, EMSGSIZE
	}
	f = h.udpUnlink(u)
	for g := f; g != umem.None; {
		next := h.pool.Buf(g).Next
		d.N += int(h.pool.Buf(g).Len)
		h.lendOut(g, 0)
		h.pool.Buf(g).Next = next
		g = next
	}
	return f, d, 0
}

// longer reports whether a chain has more than limit frames.
func (h *Host) longer(f umem.Frame, limit int) bool {
	for ; f != umem.None && limit > 0; limit-- {
		f = h.pool.Buf(f).Next
	}
	return f != umem.None
}

// Lend lends a frame to be written, for which a pays: its Buf covers all bytes that can be. Like data that is written, it
// leaves the last frames to ACKs and ARP. Errors: EAGAIN.
func (h *Host) Lend(a Account) (umem.Frame, Errno) {
	if h.txUsed >= h.txLimit-h.txReserve() {
		return umem.None, EAGAIN
	}
	f := h.allocFor(a)
	if f == umem.None {
		return f, EAGAIN
	}
	h.pool.Buf(f).Len = uint16(h.pool.Region().ChunkSize() - umem.Headroom)
	h.lendOut(f, bufToSend)
	return f, 0
}

func (h *Host) lendOut(f umem.Frame, flags uint16) {
	b := h.pool.Buf(f)
	b.Flags, b.Next = flags, umem.None
	h.pool.Move(f, umem.Held, umem.Lent)
}

// Give takes back a lent frame; the socket it came from may be long gone.
func (h *Host) Give(f umem.Frame) {
	h.pool.Move(f, umem.Lent, umem.Held)
	if h.pool.Buf(f).Flags&bufToSend != 0 {
		h.freeTX(f, umem.Held)
		return
	}
	h.release(f)
}

// takeLent takes a frame over with the n bytes from off of its chunk to be sent. false: there are limit frames to be sent
// already, and what was received is not one more.
func (h *Host) takeLent(f umem.Frame, off, n, limit int, tell uint32) bool {
	b := h.pool.Buf(f)
	if b.Flags&bufToSend == 0 {
		if h.txUsed >= limit || h.accounts.of != nil && !h.sendsReceived(f) {
			return false
		}
		h.rxUsed--
		h.txUsed++
	}
	h.pool.Move(f, umem.Lent, umem.Held)
	*b = umem.Buf{Next: umem.None, Off: uint16(off), Len: uint16(n)}
	if tell != 0 {
		if h.tells.of == nil {
			h.tells.of = make([]uint32, h.pool.Region().Frames())
		}
		h.tells.of[f], b.Flags = tell, bufTell
	}
	return true
}

// fits reports whether n bytes at off of a chunk can be sent where they lie: with room for headers in front, and for the
// rest of a segment of size bytes behind.
func (h *Host) fits(off, n, size int) bool {
	return off >= umem.Headroom && n <= size && off+size <= h.pool.Region().ChunkSize()
}

// TCPSendLent queues the n > 0 bytes from off of a lent frame's chunk without copying them; the frame is the Host's then,
// and its next user's when the peer has acknowledged them and the device has let go: if tell is not 0, TakeFreed says so.
// After an error it is still lent. Errors as TCPWrite, and EMSGSIZE for what cannot be sent where it lies: it is more than
// a segment, or too far behind.
func (h *Host) TCPSendLent(s Handle, f umem.Frame, off, n int, tell uint32, now int64) Errno {
	h.now = now
	c, err := h.writable(s)
	if c == nil {
		return err
	}
	size := int(c.mssMax)
	if size > h.room {
		size = n // the rest of a segment lies in other frames
	}
	if n > int(c.mss) || !h.fits(off, n, size) {
		return EMSGSIZE
	}
	limit := h.sndLimit(c)
	if int(c.sndBytes) >= limit || int(c.sndFrames) >= h.sndFrameLimit(limit) || !h.takeLent(f, off, n, h.txDataLimit(c), tell) {
		h.writerWaits(s, c)
		return EAGAIN
	}
	h.sendLink(c, f)
	c.sndBytes += uint32(n)
	h.tcpMark(s.index(), c)
	return 0
}

// UDPSendLent sends the n bytes from off of a lent frame's chunk as a datagram, without copying them; else it is as
// TCPSendLent. Errors as UDPSend, where EMSGSIZE means what does not fit into a packet.
func (h *Host) UDPSendLent(s Handle, f umem.Frame, off, n int, dst netip.AddrPort, tell uint32, now int64) Errno {
	h.now = now
	u, k, hop, err := h.udpRoute(s, n, dst)
	switch {
	case err != 0:
		return err
	case !h.fits(off, n, min(n, h.cfg.MTU-28)):
		return EMSGSIZE
	case h.txRoom() == 0 || !h.takeLent(f, off, n, h.txLimit, tell):
		h.udpWait(s, u, n)
		return EAGAIN
	}
	h.udpFinish(f, k, hop)
	if u.tellSent {
		h.notify(s, happenedOut)
	}
	return 0
}

// TakeFreed appends the tells of frames that were sent and became free since the last call to buf, and forgets them.
func (h *Host) TakeFreed(buf []uint32) []uint32 {
	buf = append(buf, h.tells.freed...)
	h.tells.freed = h.tells.freed[:0]
	return buf
}

// Untell forgets that somebody wanted to hear of f, a frame that was sent with a tell and of which TakeFreed said nothing.
func (h *Host) Untell(f umem.Frame) { h.pool.Buf(f).Flags &^= bufTell }
