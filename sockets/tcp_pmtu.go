package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

const (
	pmtuMin    = 552 // net.ipv4.route.min_pmtu: who claims less is lying, or not worth it
	pmtuSize   = 256
	pmtuLifeNS = 600_000_000_000 // net.ipv4.route.mtu_expires; RFC 1191 6.3
	plpmtuBase = 1024            // RFC 4821 7.2
	plpmtuNear = 32              // bytes: a search that has come so near is over
	plpmtuTry  = 2               // timeouts in a row before the path is taken for a black hole
)

const (
	plpmtuFirstMS = 1_000  // from the discovery of a black hole to the first probe
	plpmtuAgainMS = 60_000 // from the end of a search to the next
)

// pmtuCache holds what is known of paths, by destination, so that new connections begin with it: a small table in which
// a newer entry takes an older one's place.
type pmtuCache struct {
	slots [pmtuSize]pmtuEntry
}

type pmtuEntry struct {
	dst   proto.Addr
	mtu   uint16
	until int64
}

// pathMTU is the MTU of the path to a; 0: that of the interface.
func (h *Host) pathMTU(a proto.Addr) int {
	if e := &h.tcp.pmtu.slots[h.sec.addr(a)%pmtuSize]; e.dst == a && h.now < e.until {
		return int(e.mtu)
	}
	return 0
}

func (h *Host) setPathMTU(a proto.Addr, mtu int) {
	h.tcp.pmtu.slots[h.sec.addr(a)%pmtuSize] = pmtuEntry{a, uint16(mtu), h.now + pmtuLifeNS}
}

// plpmtud is RFC 4821's search on one connection whose path is narrower than its ends: upwards again, by single segments
// whose loss says nothing about congestion.
type plpmtud struct {
	high   uint16 // smallest MSS known to be too large; 0: none
	tried  uint16 // MSS of the probe that is out; 0: none is
	frames uint8  // of the probe
	nextAt uint32 // ms: when to probe next
	guess  bool   // the path may also just have been down: nothing was acknowledged since
}

// tcpError takes an ICMP error about a segment of ours. It counts only if the quoted sequence number is in flight
// (RFC 5927 section 4), and even then ends nothing but an open: unreachable is a soft error (RFC 1122 4.2.3.9), and what
// is meant will show by the retransmissions' timeout.
func (h *Host) tcpError(k flowKey, seq uint32, err Errno, mtu, size int) bool {
	kind, i := h.tcp.flows.get(k)
	if kind != demuxTCB {
		return false
	}
	c := h.tcp.at(i)
	if !seqLE(c.sndUna, seq) || !seqLT(seq, c.sndNxt) {
		return false
	}
	switch {
	case err == EMSGSIZE:
		return h.tcpTooBig(i, c, mtu, size)
	case c.state == tcpSynSent && (err == ECONNREFUSED || err == ENOPROTOOPT):
		h.tcpFail(i, c, ECONNREFUSED) // RFC 1122 4.2.3.9: hard errors; RFC 5927 6.1 keeps them to this state
	case c.state == tcpSynSent && (err == EHOSTUNREACH || err == ENETUNREACH):
		h.tcpFail(i, c, err) // as Linux: who dials wants to know now
	}
	return true
}

// tcpTooBig is path MTU discovery (RFC 1191): mtu is the next hop's as the router says, size that of the packet quoted.
func (h *Host) tcpTooBig(i uint32, c *tcb, mtu, size int) bool {
	if mtu == 0 { // a router older than RFC 1191
		mtu = plateau(size)
	}
	if mtu >= size || size > h.cfg.MTU { // RFC 5927 7.2: it cannot have been too big
		return false
	}
	mtu = max(mtu, pmtuMin)
	h.setPathMTU(c.key.Remote, mtu)
	mss := mtu - 40
	if c.tsOK {
		mss -= 12
	}
	if mss >= int(c.mss) {
		return false
	}
	h.count(TCPPathMTU)
	h.shrink(i, c, uint16(mss))
	return true
}

// tcpFit has a connection's segments fit the device.
func (h *Host) tcpFit(i uint32, c *tcb) {
	limit := h.cfg.MTU - 40
	if c.tsOK {
		limit -= 12
	}
	if int(c.mssMax) <= limit {
		return
	}
	c.mssMax = uint16(limit)
	switch {
	case int(c.mss) <= limit:
	case c.sndHead == umem.None:
		c.mss = c.mssMax
	default:
		h.shrink(i, c, c.mssMax)
	}
}

// plateau is the next lower MTU that occurs in practice (RFC 1191 section 7).
func plateau(size int) int {
	for _, p := range [...]int{32000, 17914, 8166, 4352, 2002, 1492, 1006} {
		if p < size {
			return p
		}
	}
	return pmtuMin
}

// shrink takes a smaller segment size. What is out and larger cannot arrive: it is sent again in pieces, which is no
// sign of congestion.
func (h *Host) shrink(i uint32, c *tcb, mss uint16) {
	x := h.moving(i, c)
	c.mss = mss
	x.mtu = plpmtud{nextAt: h.nowMS() + pmtuLifeNS/1_000_000} // RFC 1191 6.3
	size, tied := uint32(0), false
	for f := c.sndHead; f != umem.None && f != c.sndNext; f = h.pool.Buf(f).Next {
		b := h.pool.Buf(f)
		if !tied {
			size = h.segmentSize(f)
		}
		if tied = b.Flags&bufMore != 0; size > uint32(mss) && b.Flags&bufSacked == 0 {
			h.markLost(x, b)
			b.Flags |= bufEver
		}
	}
	if x.toSend > 0 && x.phase == phaseOpen {
		x.phase, x.recoverSeq = phaseLoss, c.sndNxt // so that lost segments count, with the window as it was
		x.undoAgain = -1
	}
	c.cwnd = max(c.cwnd, 2*uint32(mss))
	h.tcpMark(i, c)
}

// blackHole looks whether a path swallows large packets without a word (RFC 4821 7.7): after timeouts in a row the
// segments become smaller, first of the base size, then by halves.
func (h *Host) blackHole(c *tcb, x *active) {
	if x == nil || c.retries <= plpmtuTry || c.sndHead == umem.None {
		return
	}
	b := h.pool.Buf(c.sndHead)
	base := uint16(plpmtuBase)
	if c.mss <= base {
		base = max(c.mss/2, pmtuMin-52)
	}
	if h.segmentSize(c.sndHead) <= uint32(base) || b.Flags&bufQueued != 0 {
		return
	}
	h.count(TCPPathMTU)
	x.mtu = plpmtud{high: c.mss, guess: true, nextAt: h.nowMS() + plpmtuFirstMS}
	c.mss = base
}

// mtuProbe sends the next frame as a probe of a larger segment size, if it is time for one and there is so much to send:
// what follows it shows whether it was lost. Whether it did so.
func (h *Host) mtuProbe(i uint32, c *tcb, x *active) bool {
	if c.mss >= c.mssMax || x.mtu.tried != 0 || x.phase != phaseOpen || x.sacked+x.lost > 0 ||
		int32(h.nowMS()-x.mtu.nextAt) < 0 {
		return false
	}
	size := c.mssMax
	if x.mtu.high != 0 {
		size = (c.mss + x.mtu.high) / 2
	}
	if size < c.mss+plpmtuNear {
		x.mtu = plpmtud{nextAt: h.nowMS() + plpmtuAgainMS}
		return false
	}
	unsent := c.sndBytes - (c.sndNxt - c.sndUna)
	need := uint32(size) + dupThresh*uint32(c.mss)
	if unsent < need || need > c.cwnd || c.pipe(x)+uint32(size) > c.cwnd || seqLT(c.sndUna+c.sndWnd, c.sndNxt+need) {
		return false
	}
	f, mss := c.sndNext, c.mss
	c.mss = size
	h.sendFill(c, f)
	s := h.together(c, f)
	good := s.bytes == uint32(size) || s.last != f && s.bytes >= uint32(mss)+plpmtuNear // whole frames
	sent := good && h.sendData(i, c, x, f, s.last)
	c.mss = mss
	if sent {
		h.pool.Buf(f).Flags |= bufProbe
		x.mtu.tried, x.mtu.frames = uint16(s.bytes), uint8(h.sentTogether(f))
	}
	return sent
}

// mtuArrived is called when a probe was acknowledged: the path takes its size.
func (h *Host) mtuArrived(c *tcb, x *active) {
	c.mss = max(c.mss, x.mtu.tried)
	x.mtu.tried = 0
	h.mtuKnown(c, x)
}

// mtuKnown has new connections to the same host begin with what this one found.
func (h *Host) mtuKnown(c *tcb, x *active) {
	x.mtu.guess = false
	mtu := int(c.mss) + 40
	if c.tsOK {
		mtu += 12
	}
	h.setPathMTU(c.key.Remote, mtu)
}

// mtuLost is called when a probe was lost. It is sent again in pieces.
func (x *active) mtuLost(nowMS uint32) {
	x.mtu.high, x.mtu.tried = x.mtu.tried, 0
	x.mtu.nextAt = nowMS + plpmtuFirstMS
}
