package sockets

import (
	"xdpd/umem"
)

// States of a connection (RFC 9293 3.3.2). LISTEN is a listener of its own, CLOSED a record that only waits for its
// owner to close the handle. A connection that a peer opens has no tcb before its handshake is done (halfOpen), and none
// in TIME-WAIT once its owner is gone (timeWait).
type tcpState uint8

const (
	tcpClosed tcpState = iota
	tcpSynSent
	tcpSynRcvd // after SYN-SENT: simultaneous open
	tcpEstablished
	tcpFinWait1
	tcpFinWait2
	tcpCloseWait
	tcpClosing
	tcpLastAck
	tcpTimeWait
)

var tcpStateNames = [...]string{
	"CLOSED", "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING", "LAST-ACK",
	"TIME-WAIT",
}

// tcb is the transmission control block: one record of a slab, without Go pointers, small enough for a million of them.
// What a connection needs only while data moves is in its active record. Names are RFC 9293 3.3.1's.
type tcb struct {
	key    flowKey
	gen    uint32
	next   uint32 // accept queue or free list
	active uint32 // index+1 of the active record; 0: quiet
	timer  uint32 // wheel node, there only while it runs; 0: none

	state     tcpState
	used      bool
	happened  uint8 // packReady of what happened, an event is queued; and noSpace
	blocked   bool  // its writer waits in Host.noTxData, or in its account
	later     bool  // waits in Host.noTxFrame for tcpOutput
	dirty     bool  // waits in tcpTable.dirty for tcpOutput
	orphan    bool  // the owner closed its handle
	embryo    bool  // not accepted yet
	opened    bool  // the handshake was done
	wantFIN   bool  // FIN behind the data
	finQueued bool  // the last frame of the send queue carries it
	rcvFIN    bool
	rcvShut   bool // the owner reads no more
	ackNow    bool
	tsOK      bool // both sides offered timestamps
	sackOK    bool
	ecnOK     bool
	probing   bool // the retransmission timer is the persist timer
	delay     bool // Nagle
	reno      bool
	quiet     bool  // in SYN-SENT: a sibling sends the SYN
	tracked   bool  // tell PopGone
	retries   uint8 // timeouts that nothing answered
	probes    uint8 // zero-window or keep-alive probes in a row
	sndScale  uint8
	rcvScale  uint8
	quick     uint8  // ACKs that are not to be delayed
	setting   uint8  // index into tcpTable.settings
	challenge uint8  // the half second in which a segment that may be an attack was last answered
	err       uint8  // Errno: all that there are fit
	mss       uint16 // payload bytes of a full segment
	mssMax    uint16 // what the peer and the interface allow
	rcvMSS    uint16 // largest segment seen: what "full-sized" means for delayed ACKs
	sndFrames uint16 // frames of the send queue
	tsAt      uint16 // half hours: when tsRecent was set

	sndUna, sndNxt   uint32
	sndWnd, sndWl1   uint32
	maxWnd           uint32 // largest window the peer ever offered
	cwnd, ssthresh   uint32
	sndBytes         uint32     // in the send queue, without SYN and FIN
	sndHead, sndTail umem.Frame // ascending; Buf.Seq is the first byte's number
	sndNext          umem.Frame // first frame never sent; None: all were
	srtt, rttvar     uint32     // µs
	rto              uint32     // µs, backed off
	sentAt           uint32     // ms: when data was last sent, for the idle restart
	heardAt          uint32     // ms: when anything valid last came, for keep-alive
	retransmits      uint32
	acked, received  uint64 // bytes, for people
	rtxAt            int64  // deadline in ns; 0: none

	rcvNxt, rcvAdv, lastAck uint32 // rcvAdv: right edge of the advertised window; lastAck: last ACK sent
	rcvBytes                uint32
	rcvBuf                  uint32 // bytes the window is made of; grows with what the reader takes
	rcvHead, rcvTail        umem.Frame
	tsRecent                uint32

	ackAt, idleAt uint32 // deadlines in ms; 0: none. idleAt: the end of TIME-WAIT and FIN-WAIT-2, or keep-alive
}

const (
	tcbChunk  = 1024 // records allocated at once, whole pages of them; they never move
	tcpIWSegs = 10   // RFC 6928
	tcpScale  = 7    // of windows up to 8 MiB
	mssFloor  = 64   // a peer cannot make us send headers for single bytes
	mssNone   = 536

	rtoFirstUS  = 1_000_000
	rtoLostUS   = 3_000_000
	rtoMinUS    = 200_000
	rtoMaxUS    = 120_000_000
	delackNS    = 40_000_000
	timeWaitNS  = 60_000_000_000 // 2 MSL, with Linux's TCP_TIMEWAIT_LEN
	finWait2NS  = 60_000_000_000 // without an owner (net.ipv4.tcp_fin_timeout)
	quietNS     = 1_000_000_000
	synRetries  = 5
	dialRetries = 7 // 247 s: an active open waits three minutes at least (RFC 9293 3.8.3)
	dataRetries = 15
	orphanTries = 8 // net.ipv4.tcp_orphan_retries: of data, FIN or probes of a closed window once the owner is gone

	pressedTries = 4 // and while there is not a frame left for anybody: some seconds
)

type tcpTable struct {
	chunks        [][]tcb
	free          uint32 // list by tcb.next, index+1
	conns         int
	flows         demux
	act           activeTable
	half          halfTable
	scale         uint8 // of windows that we advertise: RcvMax can be told
	tw            twTable
	listeners     []tcpListener
	freeListeners []uint32       // places in it
	opened        uint32         // listeners so far
	ports         map[uint16]int // listeners that use a local port
	bound         *flat[flowKey]
	behind        *flat[flowKey] // listeners for what other Hosts pass on
	dirty         []uint32
	challenge     bucket
	urgent        map[uint32]uint32 // of connections with urgent data: its last byte's number
	settings      []tcpSetting      // interned: connections share a few; the first is the default
	setBy         [256]int32        // how many connections have each
	pmtu          pmtuCache
	dialNext      uint32 // RFC 6056 algorithm 3's counter
}

func (t *tcpTable) init(h *Host) {
	t.flows.init(t, &h.sec, &h.cfg)
	t.bound, t.behind = newFlat(h.sec.flow), newFlat(h.sec.flow)
	t.challenge = bucket{100, h.now}
	t.settings = []tcpSetting{{KeepAlive: h.cfg.KeepAlive}}
	t.urgent, t.ports = map[uint32]uint32{}, map[uint16]int{}
	for t.scale = tcpScale; h.cfg.RcvMax > 0xffff<<t.scale && t.scale < 14; { // RFC 7323 2.3
		t.scale++
	}
	t.half.init(h)
	t.tw.init(h)
}

func (t *tcpTable) at(i uint32) *tcb { return &t.chunks[i/tcbChunk][i%tcbChunk] }

// each calls f for every record in use.
func (t *tcpTable) each(f func(i uint32, c *tcb)) {
	for n := range t.chunks {
		for k := range t.chunks[n] {
			if c := &t.chunks[n][k]; c.used {
				f(uint32(n*tcbChunk+k), c)
			}
		}
	}
}

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
		rcvHead: umem.None, rcvTail: umem.None, rto: rtoFirstUS, reno: h.cfg.Congestion == "reno",
		rcvBuf: uint32(min(rcvBufStart, h.rcvLimit())), ssthresh: ssthreshNone,
		heardAt: h.nowMS(), sentAt: h.nowMS(),
	}
	t.setBy[c.setting]++
	t.flows.put(demuxTCB, i)
	h.connCount(1)
	return i, c
}

func (h *Host) connCount(n int) {
	h.tcp.conns += n
	if d := h.cfg.Directory; d != nil {
		d.conns[h.cfg.Self].Add(int64(n))
	}
}

// nowMS is the time of the call in progress for the records' small clocks; they wrap after 49 days.
func (h *Host) nowMS() uint32 { return uint32(h.now / 1_000_000) }

// nowHH counts half hours, for what is days old.
func (h *Host) nowHH() uint16 { return uint16(h.now / 1_800_000_000_000) }

// inMS is the deadline ns from now on such a clock, never 0; nsAt is the time that it stands for, 0 for none.
func (h *Host) inMS(ns int64) uint32 {
	return max(1, uint32((h.now+min(ns, 1<<30*1_000_000)+999_999)/1_000_000))
}

func (h *Host) nsAt(ms uint32) int64 {
	if ms == 0 {
		return 0
	}
	return (h.now/1_000_000 + int64(int32(ms-h.nowMS()))) * 1_000_000
}

// tcpFree gives everything back that the connection holds. A connection that still has an owner stays as a CLOSED record
// until the owner closes its handle, with what was received still readable.
func (h *Host) tcpFree(i uint32, c *tcb) {
	t := &h.tcp
	if c.state != tcpClosed {
		c.state = tcpClosed
		t.flows.del(c.key)
		if c.tracked {
			h.gone = append(h.gone, c.key)
		}
		if c.timer != 0 {
			h.timers.release(c.timer)
			c.timer = 0
		}
		h.sendPurge(c)
		h.activeFree(c)
		h.connCount(-1)
	}
	if !c.orphan {
		h.notify(t.handle(i), happenedState)
		return
	}
	h.releaseChain(c.rcvHead)
	c.rcvHead, c.rcvBytes = umem.None, 0
	delete(h.tcp.urgent, i)
	if c.dirty {
		return // Flush finds it there and frees the record
	}
	c.used = false
	h.unchargeConn(i)
	t.setBy[c.setting]--
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
	c.sndHead, c.sndTail, c.sndNext, c.sndBytes, c.sndFrames = umem.None, umem.None, umem.None, 0, 0
}

func (h *Host) sendRelease(f umem.Frame) {
	b := h.pool.Buf(f)
	b.Flags &= bufQueued | bufTell
	if b.Flags&bufQueued == 0 {
		h.freeTX(f, umem.Held)
	}
}

// tcpFail ends a connection with an error for its owner.
func (h *Host) tcpFail(i uint32, c *tcb, err Errno) {
	c.err = uint8(err)
	h.tcpFree(i, c)
}

// tcpAbort resets and frees a connection. The RST comes second: the frame for it may be one that the connection held.
func (h *Host) tcpAbort(i uint32, c *tcb) {
	state, k, seq, ack := c.state, c.key, c.sndNxt, c.rcvNxt
	h.tcpFree(i, c)
	switch state {
	case tcpClosed, tcpTimeWait, tcpSynSent:
	default:
		h.sendRST(k, seq, ack, rstAck)
	}
}
