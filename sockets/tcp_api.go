package sockets

import (
	"net/netip"

	"xdpd/umem"
)

// TCPAddr gives a listener's or a connection's addresses.
func (h *Host) TCPAddr(s Handle) (local, remote netip.AddrPort) {
	if l := h.tcp.listener(s); l != nil {
		return netip.AddrPortFrom(l.key.Local.Netip(), l.key.LPort), netip.AddrPort{}
	}
	if c := h.tcp.get(s); c != nil {
		return c.key.local(), c.key.remote()
	}
	return netip.AddrPort{}, netip.AddrPort{}
}

// sndRoomy reports whether a writer is worth waking.
func (h *Host) sndRoomy(c *tcb) bool {
	limit := h.sndLimit(c)
	return int(c.sndBytes) <= limit/3*2 && int(c.sndFrames) <= h.sndFrameLimit(limit)/3*2
}

// TCPError takes a connection's pending error, as SO_ERROR does.
func (h *Host) TCPError(s Handle) Errno {
	c := h.tcp.get(s)
	if c == nil {
		return EBADF
	}
	return c.takeErr()
}

func (c *tcb) takeErr() Errno {
	err := Errno(c.err)
	c.err = 0
	return err
}

// TCPConnected reports whether the connection was established, whatever became of it since.
func (h *Host) TCPConnected(s Handle) bool {
	c := h.tcp.get(s)
	return c != nil && c.opened
}

// readable finds the connection of a reading call. Errors: EBADF, EAGAIN, and, unless the peer's FIN was here before,
// ECONNRESET or ETIMEDOUT once. c is nil at the end of the stream.
func (h *Host) readable(s Handle) (c *tcb, err Errno) {
	c = h.tcp.get(s)
	switch {
	case c == nil:
		return nil, EBADF
	case c.rcvBytes > 0:
		return c, 0
	case c.rcvFIN: // also when a reset came behind it: that is for who writes (SOCK_DONE)
		return nil, 0
	case c.err != 0:
		return nil, c.takeErr()
	case c.rcvShut || c.state == tcpClosed:
		return nil, 0
	}
	return nil, EAGAIN
}

// TCPRead copies received bytes into dst. n == 0 and no error: the peer sent FIN, or dst is empty. Errors: EAGAIN,
// EBADF, ECONNRESET or ETIMEDOUT once, then end of stream.
func (h *Host) TCPRead(s Handle, dst []byte, now int64) (n int, err Errno) {
	h.now = now
	c, err := h.readable(s)
	if c == nil {
		if err == EAGAIN && len(dst) == 0 {
			err = 0
		}
		return 0, err
	}
	n = h.rcvCopy(c, dst)
	h.rcvTaken(s.index(), c, n)
	return n, 0
}

// writable finds the connection of a writing call. Errors: EBADF, EAGAIN before the handshake is done, EPIPE after a
// shutdown, ECONNRESET or ETIMEDOUT once.
func (h *Host) writable(s Handle) (*tcb, Errno) {
	c := h.tcp.get(s)
	switch {
	case c == nil:
		return nil, EBADF
	case c.err != 0:
		return nil, c.takeErr()
	case c.wantFIN:
		return nil, EPIPE
	case c.state == tcpSynSent || c.state == tcpSynRcvd:
		return nil, EAGAIN
	case c.state != tcpEstablished && c.state != tcpCloseWait:
		return nil, EPIPE
	}
	return c, 0
}

// TCPWrite queues bytes of p to be sent and returns how many. Errors: EAGAIN when none fit (the socket reports Out when
// some do), EPIPE after a shutdown, EBADF, ECONNRESET or ETIMEDOUT once.
func (h *Host) TCPWrite(s Handle, p []byte, now int64) (n int, err Errno) {
	h.now = now
	c, err := h.writable(s)
	if c == nil || len(p) == 0 {
		return 0, err
	}
	h.accounts.payer = h.connAccount(s.index())
	n = h.sendQueue(c, p[:min(len(p), max(0, h.sndLimit(c)-int(c.sndBytes)))])
	h.accounts.payer = 0
	if n < len(p) {
		h.writerWaits(s, c)
	}
	if n == 0 {
		return 0, EAGAIN
	}
	h.tcpMark(s.index(), c)
	return n, 0
}

// writerWaits notes that the writer must hear of room. What keeps it from writing is its own queue, whose
// acknowledgements tell it, or the want of frames.
func (h *Host) writerWaits(s Handle, c *tcb) {
	c.happened |= noSpace
	if h.sndRoomy(c) {
		h.awaitData(s, c)
	}
}

// awaitData notes that s must hear when there are frames for data again.
func (h *Host) awaitData(s Handle, c *tcb) {
	if !c.blocked {
		c.blocked = true
		if a := h.connAccount(s.index()); a == 0 || !h.accountAwait(s, a, 1+h.accounts.list[a].keep(c)) {
			h.noTxData = h.await(h.noTxData, s)
		}
	}
}

// shuttable finds the connection of a shutdown. Errors: EBADF, ENOTCONN.
func (h *Host) shuttable(s Handle) (*tcb, Errno) {
	c := h.tcp.get(s)
	switch {
	case c == nil:
		return nil, EBADF
	case c.state == tcpClosed || c.state == tcpSynSent:
		h.notify(s, happenedState) // as inet_shutdown does
		return nil, ENOTCONN
	}
	return c, 0
}

// TCPShutdown closes our direction: FIN follows what is queued. Errors: EBADF, ENOTCONN.
func (h *Host) TCPShutdown(s Handle, now int64) Errno {
	h.now = now
	c, err := h.shuttable(s)
	if c == nil {
		return err
	}
	h.tcpFinish(s.index(), c)
	h.notify(s, happenedState)
	return 0
}

// TCPShutdownRead closes the other direction: reads give the end of the stream, and what still arrives is acknowledged
// and forgotten, as in BSD; Linux goes on queueing it for whoever reads all the same. Errors: EBADF, ENOTCONN.
func (h *Host) TCPShutdownRead(s Handle, now int64) Errno {
	h.now = now
	c, err := h.shuttable(s)
	if c == nil {
		return err
	}
	c.rcvShut = true
	n := int(c.rcvBytes)
	h.releaseChain(c.rcvHead)
	c.rcvHead, c.rcvBytes = umem.None, 0
	h.rcvTaken(s.index(), c, n)
	h.notify(s, happenedState)
	return 0
}

// tcpFinish queues the FIN.
func (h *Host) tcpFinish(i uint32, c *tcb) {
	if c.wantFIN {
		return
	}
	c.wantFIN = true
	switch c.state {
	case tcpEstablished, tcpSynRcvd:
		if c.state == tcpEstablished {
			c.state = tcpFinWait1
		}
	case tcpCloseWait:
		c.state = tcpLastAck
	}
	h.tcpMark(i, c)
}

// Close closes any socket. A TCP connection goes on without its owner until the peer has everything; one that held data
// nobody read is reset, so that the peer learns of it (RFC 2525 2.17). Errors: EBADF.
func (h *Host) Close(s Handle, now int64) Errno {
	h.now = now
	if h.Open(s) {
		h.closed = append(h.closed, s)
	}
	switch s.kind() {
	case kindUDP:
		return h.udpClose(s)
	case kindListener:
		return h.tcpCloseListener(s)
	}
	c := h.tcp.get(s)
	if c == nil {
		return EBADF
	}
	h.tcpOrphan(s.index(), c)
	return 0
}

// tcpOrphan goes on without the owner.
func (h *Host) tcpOrphan(i uint32, c *tcb) {
	c.orphan = true
	switch {
	case c.state == tcpClosed || c.state == tcpSynSent:
		h.tcpFree(i, c)
	case c.state == tcpTimeWait:
		h.tcpMark(i, c) // Flush acknowledges the FIN, if that is due, and then replaces the record
	case c.rcvBytes > 0 || c.state != tcpFinWait2 && h.crowded(h.connAccount(i)):
		h.tcpAbort(i, c)
	default:
		h.tcpFinish(i, c)
		if c.state == tcpFinWait2 {
			h.tcpLinger(i, c, h.finWait2(i))
		}
	}
}

// finWait2 is how long a connection without an owner waits for its peer's FIN. Where an account is crowded, or all are and it has one, it
// does not wait, and a peer that says something yet is reset (as tcp_time_wait of Linux where there are too many).
func (h *Host) finWait2(i uint32) int64 {
	if a := h.connAccount(i); a != 0 && (h.crowded(a) || h.tcp.conns > h.cfg.MaxConns/2) {
		return 0
	}
	return finWait2NS
}

// TCPAbort closes a connection with RST.
func (h *Host) TCPAbort(s Handle, now int64) Errno {
	h.now = now
	c := h.tcp.get(s)
	if c == nil {
		return EBADF
	}
	h.closed = append(h.closed, s)
	c.orphan = true
	h.tcpAbort(s.index(), c)
	return 0
}
