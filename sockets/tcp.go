package sockets

import (
	"net/netip"

	"xdpd/proto"
	"xdpd/umem"
)

// States of a connection (RFC 9293 3.3.2). LISTEN is a listener of its own, CLOSED a record that only waits for its
// owner to close the handle.
type tcpState uint8

const (
	tcpClosed tcpState = iota
	tcpSynRcvd
	tcpEstablished
	tcpFinWait1
	tcpFinWait2
	tcpCloseWait
	tcpClosing
	tcpLastAck
	tcpTimeWait
)

var tcpStateNames = [...]string{
	"CLOSED", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING", "LAST-ACK", "TIME-WAIT",
}

// tcb is the transmission control block: one record of a slab, without Go pointers. Names are RFC 9293 3.3.1's.
type tcb struct {
	key   flowKey
	gen   uint32
	next  uint32 // accept queue, free list or dirty list
	state tcpState

	used     bool
	marked   bool // an event is queued
	blocked  bool // its writer waits in Host.noTxData
	later    bool // waits in Host.noTxFrame for tcpOutput
	dirty    bool // waits in tcpTable.dirty for tcpOutput
	orphan   bool // the owner closed its handle
	embryo   bool // not accepted yet: listener says whose
	wantFIN  bool // send FIN behind the data
	finSent  bool // FIN has a sequence number: sndMax-1
	rcvFIN   bool
	ackNow   bool
	tsOK     bool // both sides offered timestamps
	rttValid bool // rttSeq is being timed
	probing  bool // the retransmission timer is the persist timer
	retries  uint8
	listener uint32
	sndScale uint8
	rcvScale uint8
	mss      uint16 // payload bytes of a full segment
	rcvMSS   uint16 // largest segment seen: what "full-sized" means for delayed ACKs
	err      Errno

	iss, sndUna, sndNxt, sndMax  uint32
	sndWnd, sndWl1, sndWl2       uint32
	maxWnd                       uint32 // largest window the peer ever offered
	cwnd, ssthresh               uint32
	sndBytes                     uint32     // in the send queue: unacknowledged and unsent, without SYN and FIN
	sndHead, sndTail, sndNext    umem.Frame // sndNext starts at sndNxt; None: nothing unsent
	rttSeq                       uint32
	srtt, rttvar, rto, rttAt     int64  // ns
	irs, rcvNxt, rcvAdv, lastAck uint32 // rcvAdv: right edge of the advertised window; lastAck: last ACK sent
	rcvBytes                     uint32
	rcvHead, rcvTail             umem.Frame
	tsRecent                     uint32
	tsRecentAt                   int64
	timer                        uint32
	rtxAt, ackAt, lingerAt       int64 // deadlines; 0: none
}

const (
	tcbChunk  = 256 // records allocated at once; they never move
	tcpIWSegs = 10  // RFC 6928
	tcpScale  = 7

	rtoFirstNS  = 1_000_000_000
	rtoMinNS    = 200_000_000
	rtoMaxNS    = 120_000_000_000
	delackNS    = 40_000_000
	timeWaitNS  = 60_000_000_000 // 2 MSL, with Linux's TCP_TIMEWAIT_LEN
	finWait2NS  = 60_000_000_000 // without an owner (net.ipv4.tcp_fin_timeout)
	synRetries  = 5
	dataRetries = 15
)

type tcpTable struct {
	chunks    [][]tcb
	free      uint32 // list by tcb.next, index+1
	flows     *flat[flowKey]
	listeners []tcpListener
	bound     *flat[flowKey]
	dirty     []uint32
	challenge bucket
	conns     int
}

func (t *tcpTable) init(h *Host) {
	t.flows = newFlat(h.sec.flow)
	t.bound = newFlat(h.sec.flow)
	t.challenge = bucket{100, h.now}
}

func (t *tcpTable) at(i uint32) *tcb { return &t.chunks[i/tcbChunk][i%tcbChunk] }

// get finds the connection of a handle; nil once its owner closed it.
func (t *tcpTable) get(s Handle) *tcb {
	if i := s.index(); s.kind() == kindTCP && int(i) < len(t.chunks)*tcbChunk {
		if c := t.at(i); c.used && !c.orphan && c.gen == s.gen() {
			return c
		}
	}
	return nil
}

func (t *tcpTable) listener(s Handle) *tcpListener {
	if i := s.index(); s.kind() == kindListener && int(i) < len(t.listeners) {
		if l := &t.listeners[i]; l.used && l.gen == s.gen() {
			return l
		}
	}
	return nil
}

func (t *tcpTable) handle(i uint32) Handle { return makeHandle(kindTCP, t.at(i).gen, i) }

// alloc makes a connection record for k.
func (h *Host) tcpAlloc(k flowKey) (uint32, *tcb) {
	t := &h.tcp
	if t.free == 0 {
		base := uint32(len(t.chunks) * tcbChunk)
		t.chunks = append(t.chunks, make([]tcb, tcbChunk))
		for i := base + tcbChunk; i > base; i-- {
			t.at(i - 1).next = t.free
			t.free = i
		}
	}
	i := t.free - 1
	c := t.at(i)
	t.free = c.next
	*c = tcb{
		key: k, gen: c.gen + 1, used: true, sndHead: umem.None, sndTail: umem.None, sndNext: umem.None,
		rcvHead: umem.None, rcvTail: umem.None, timer: h.timers.alloc(timerOwner(timerTCP, i)),
	}
	t.flows.put(k, i)
	t.conns++
	return i, c
}

// tcpFree gives everything back that the connection holds. A connection that still has an owner stays as a CLOSED record
// until the owner closes its handle, with what was received still readable.
func (h *Host) tcpFree(i uint32, c *tcb) {
	t := &h.tcp
	if c.state != tcpClosed {
		if c.state == tcpSynRcvd { // nobody ever saw it
			t.listeners[c.listener].half--
			c.orphan = true
		}
		c.state = tcpClosed
		t.flows.del(c.key)
		h.timers.release(c.timer)
		h.sendPurge(c)
		t.conns--
	}
	if !c.orphan {
		h.notify(t.handle(i))
		return
	}
	h.releaseChain(c.rcvHead)
	c.rcvHead, c.rcvBytes = umem.None, 0
	if c.dirty {
		return // tcpFlush finds it there and frees the record
	}
	c.used = false
	if c.gen < maxGen {
		c.next = t.free
		t.free = i + 1
	}
}

// sendPurge empties the send queue. A frame that the device still has is freed when it completes.
func (h *Host) sendPurge(c *tcb) {
	for f := c.sndHead; f != umem.None; {
		next := h.pool.Buf(f).Next
		h.sendRelease(f)
		f = next
	}
	c.sndHead, c.sndTail, c.sndNext, c.sndBytes = umem.None, umem.None, umem.None, 0
}

func (h *Host) sendRelease(f umem.Frame) {
	b := h.pool.Buf(f)
	b.Flags &^= bufKept | bufSent
	if b.Flags&bufQueued == 0 {
		h.freeTX(f, umem.Held)
	}
}

// TCPAddr gives a listener's or a connection's addresses.
func (h *Host) TCPAddr(s Handle) (local, remote netip.AddrPort) {
	if l := h.tcp.listener(s); l != nil {
		return netip.AddrPortFrom(l.key.Local.Netip(), l.key.LPort), netip.AddrPort{}
	}
	if c := h.tcp.get(s); c != nil {
		return netip.AddrPortFrom(c.key.Local.Netip(), c.key.LPort), netip.AddrPortFrom(c.key.Remote.Netip(), c.key.RPort)
	}
	return netip.AddrPort{}, netip.AddrPort{}
}

// tcpReady is tcp_poll.
func (h *Host) tcpReady(c *tcb) Ready {
	var r Ready
	if c.rcvBytes > 0 || c.rcvFIN || c.state == tcpClosed {
		r |= In
	}
	if c.rcvFIN || c.state == tcpClosed {
		r |= RdHup
	}
	if c.err != 0 {
		r |= Err
	}
	if c.state == tcpClosed || c.rcvFIN && c.wantFIN {
		r |= Hup
	}
	// Writable only when a third of the buffer is free, or the writer would be woken for every segment acknowledged.
	if c.state == tcpClosed || c.wantFIN || !c.blocked && int(c.sndBytes) <= h.cfg.SndBuf/3*2 {
		r |= Out
	}
	return r
}

// TCPRead copies received bytes into dst. n == 0 and no error: the peer sent FIN, or dst is empty. Errors: EAGAIN,
// EBADF, ECONNRESET or ETIMEDOUT once, then end of stream.
func (h *Host) TCPRead(s Handle, dst []byte, now int64) (n int, err Errno) {
	h.now = now
	c := h.tcp.get(s)
	switch {
	case c == nil:
		return 0, EBADF
	case c.rcvBytes > 0:
		n = h.rcvCopy(c, dst)
		h.rcvWindowCheck(s.index(), c)
		return n, 0
	case c.err != 0:
		err, c.err = c.err, 0
		return 0, err
	case c.rcvFIN || c.state == tcpClosed || len(dst) == 0:
		return 0, 0
	}
	return 0, EAGAIN
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
	c.rcvBytes -= uint32(n)
	return n
}

// TCPWrite queues bytes of p to be sent and returns how many. Errors: EAGAIN when none fit (the socket reports Out when
// some do), EPIPE after a shutdown, EBADF, ECONNRESET or ETIMEDOUT once.
func (h *Host) TCPWrite(s Handle, p []byte, now int64) (n int, err Errno) {
	h.now = now
	c := h.tcp.get(s)
	switch {
	case c == nil:
		return 0, EBADF
	case c.err != 0:
		err, c.err = c.err, 0
		return 0, err
	case c.wantFIN || c.state != tcpEstablished && c.state != tcpCloseWait:
		return 0, EPIPE
	case len(p) == 0:
		return 0, 0
	}
	p = p[:min(len(p), max(0, h.cfg.SndBuf-int(c.sndBytes)))]
	n = h.sendQueue(c, p)
	if n < len(p) && !c.blocked {
		c.blocked = true
		h.noTxData = h.await(h.noTxData, s)
	}
	if n == 0 {
		return 0, EAGAIN
	}
	h.tcpMark(s.index(), c)
	return n, 0
}

// TCPShutdown closes our direction: FIN follows what is queued. Errors: EBADF, ENOTCONN.
func (h *Host) TCPShutdown(s Handle, now int64) Errno {
	h.now = now
	c := h.tcp.get(s)
	switch {
	case c == nil:
		return EBADF
	case c.state == tcpClosed:
		return ENOTCONN
	}
	h.tcpFinish(s.index(), c)
	return 0
}

// tcpFinish queues the FIN.
func (h *Host) tcpFinish(i uint32, c *tcb) {
	if !c.wantFIN {
		c.wantFIN = true
		switch c.state {
		case tcpEstablished:
			c.state = tcpFinWait1
		case tcpCloseWait:
			c.state = tcpLastAck
		}
		h.tcpMark(i, c)
	}
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
	i := s.index()
	c.orphan = true
	switch {
	case c.state == tcpClosed:
		h.tcpFree(i, c)
	case c.rcvBytes > 0:
		h.tcpAbort(i, c)
	default:
		h.tcpFinish(i, c)
		if c.state == tcpFinWait2 {
			h.tcpLinger(i, c, finWait2NS)
		}
	}
	return 0
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

// tcpAbort resets and frees a connection.
func (h *Host) tcpAbort(i uint32, c *tcb) {
	switch c.state {
	case tcpClosed, tcpTimeWait:
	default:
		h.sendRST(c.key, c.sndMax, c.rcvNxt, proto.RST|proto.ACK)
	}
	h.tcpFree(i, c)
}

// TCPInfo is what there is to know about a connection for a person.
type TCPInfo struct {
	Local, Remote netip.AddrPort
	State         string
	SendQueue     int   // bytes unacknowledged or unsent
	RecvQueue     int   // bytes nobody read yet
	Cwnd          int   // bytes
	RTT           int64 // smoothed, ns; 0: not known
}

// TCPSockets lists listeners and connections.
func (h *Host) TCPSockets() []TCPInfo {
	var out []TCPInfo
	for _, l := range h.tcp.listeners {
		if l.used {
			out = append(out, TCPInfo{
				Local: netip.AddrPortFrom(l.key.Local.Netip(), l.key.LPort), State: "LISTEN", RecvQueue: l.ready.n,
			})
		}
	}
	for _, chunk := range h.tcp.chunks {
		for i := range chunk {
			if c := &chunk[i]; c.used {
				out = append(out, TCPInfo{
					Local:  netip.AddrPortFrom(c.key.Local.Netip(), c.key.LPort),
					Remote: netip.AddrPortFrom(c.key.Remote.Netip(), c.key.RPort),
					State:  tcpStateNames[c.state], SendQueue: int(c.sndBytes), RecvQueue: int(c.rcvBytes),
					Cwnd: int(c.cwnd), RTT: c.srtt,
				})
			}
		}
	}
	return out
}
