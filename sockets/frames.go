package sockets

import "xdpd/umem"

// What counts as received data, and what as data to send: Host.rxUsed and txUsed.

// hold charges the packet to the received frames, so that it may be queued. false: the limit is reached and the packet
// was dropped.
func (h *Host) hold(p *packet) bool {
	if p.held {
		return true
	}
	next := h.pool.Buf(p.f).Next
	n := 1
	if next != umem.None {
		n = h.chainFrames(p.f)
	}
	if h.rxUsed+n > h.rxLimit {
		h.drop(p, RxMemLimit)
		return false
	}
	h.rxUsed += n
	h.pool.Move(p.f, umem.RX, umem.Held)
	for ; next != umem.None; next = h.pool.Buf(next).Next {
		h.pool.Move(next, umem.RX, umem.Held)
	}
	p.held = true
	return true
}

// release frees one frame held for received data.
func (h *Host) release(f umem.Frame) {
	h.rxUsed--
	if h.accounts.of != nil {
		h.rxBack(f)
	}
	h.pool.Put(f, umem.Held)
}

func (h *Host) releaseChain(f umem.Frame) {
	for f != umem.None {
		next := h.pool.Buf(f).Next
		h.release(f)
		f = next
	}
}

// allocTX takes a frame to send, with Buf.Off at umem.Headroom and no payload. None: the limit is reached; the caller
// counts what it gives up.
func (h *Host) allocTX() umem.Frame {
	if h.txUsed >= h.txLimit {
		return umem.None
	}
	f := h.pool.Get(umem.Held)
	if f == umem.None {
		return f
	}
	if h.accounts.payer != 0 && !h.pay(f) {
		h.pool.Put(f, umem.Held)
		return umem.None
	}
	h.txUsed++
	*h.pool.Buf(f) = umem.Buf{Next: umem.None, Off: umem.Headroom}
	return f
}

// freeTX frees a frame that was to be sent.
func (h *Host) freeTX(f umem.Frame, from umem.Owner) {
	if h.pool.Buf(f).Flags&bufTell != 0 {
		h.tells.free(f)
	}
	h.txUsed--
	if h.accounts.of != nil {
		h.txBack(f)
	}
	h.pool.Put(f, from)
}
