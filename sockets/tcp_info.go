package sockets

import (
	"net/netip"

	"xdpd/umem"
)

// TCPInfo is what there is to know about a connection for a person. Sizes are bytes, times ns.
type TCPInfo struct {
	Local, Remote        netip.AddrPort
	State                string
	SendQueue            int // unacknowledged or unsent
	RecvQueue            int // nobody read yet; of a listener: connections to accept
	Cwnd, Ssthresh       int // Ssthresh 0: none yet
	InFlight             int
	Unacked              int // sent and not acknowledged: of it the peer has Sacked, Lost is lost, and Again of that was sent once more
	Sacked, Lost, Again  int
	SndWnd, RcvWnd       int
	RcvBuf               int // what the window is made of
	MSS, RcvMSS, PMTU    int
	SndScale, RcvScale   int
	RTT, RTTVar, MinRTT  int64 // smoothed; 0: not known
	RTO                  int64
	Retransmits          uint32 // segments sent again
	Reordering           int    // RACK's multiple of a quarter round trip; 0: nothing in flight to tell
	OutOfOrder           int
	SndFrames, RcvFrames int
	BytesAcked           uint64
	BytesReceived        uint64
	SACK, TS, ECN        bool
	Congestion           string // "cubic" or "reno"
	Phase                string // "open", "cwr", "recovery" or "loss"
	Timer                string // "", "on" (retransmission), "probe" (loss probe), "persist", "keepalive", "timewait", "delack"
	TimerIn              int64  // until it fires
	Backoff              int    // timeouts in a row
}

// TCPStat tells all about one connection. Errors: EBADF.
func (h *Host) TCPStat(s Handle) (TCPInfo, Errno) {
	c := h.tcp.get(s)
	if c == nil {
		return TCPInfo{}, EBADF
	}
	return h.tcpInfo(c), 0
}

func (h *Host) tcpInfo(c *tcb) TCPInfo {
	info := TCPInfo{
		Local: c.key.local(), Remote: c.key.remote(), State: tcpStateNames[c.state],
		SendQueue: int(c.sndBytes), RecvQueue: int(c.rcvBytes), Cwnd: int(c.cwnd),
		InFlight: int(c.sndNxt - c.sndUna), Unacked: int(c.sndNxt - c.sndUna), SndWnd: int(c.sndWnd), RcvWnd: int(c.rcvAdv - c.rcvNxt), RcvBuf: int(c.rcvBuf),
		MSS: int(c.mss), RcvMSS: int(c.rcvMSS), PMTU: int(c.mss) + 40, SndScale: int(c.sndScale), RcvScale: int(c.rcvScale),
		RTT: int64(c.srtt) * 1000, RTTVar: int64(c.rttvar) * 1000, RTO: int64(c.rto) * 1000, Retransmits: c.retransmits,
		SndFrames: int(c.sndFrames), BytesAcked: c.acked, BytesReceived: c.received,
		SACK: c.sackOK, TS: c.tsOK, ECN: c.ecnOK, Congestion: "cubic", Phase: phaseNames[phaseOpen], Backoff: int(c.retries),
	}
	for f := c.rcvHead; f != umem.None; f = h.pool.Buf(f).Next {
		info.RcvFrames++
	}
	if c.tsOK {
		info.PMTU += 12
	}
	if c.ssthresh != ssthreshNone {
		info.Ssthresh = int(c.ssthresh)
	}
	if c.reno {
		info.Congestion = "reno"
	}
	tlp := false
	if x := h.activeOf(c); x != nil {
		info.InFlight, info.MinRTT, info.Reordering = int(c.pipe(x)), int64(x.minRTT)*1000, int(x.reoMult)
		info.Sacked, info.Lost, info.Again = int(x.sacked), int(x.lost), int(x.again)
		info.OutOfOrder, info.Phase = int(x.ofoBytes), phaseNames[x.phase]
		info.RcvFrames += int(x.ofoFrames)
		tlp = x.tlpNext
	}
	if c.state == tcpClosed {
		return info
	}
	at := int64(0)
	switch {
	case c.rtxAt != 0 && tlp:
		info.Timer, at = "probe", c.rtxAt
	case c.rtxAt != 0 && c.probing:
		info.Timer, at = "persist", c.rtxAt
	case c.rtxAt != 0:
		info.Timer, at = "on", c.rtxAt
	case c.ackAt != 0:
		info.Timer, at = "delack", h.nsAt(c.ackAt)
	case c.idleAt != 0 && (c.state == tcpTimeWait || c.state == tcpFinWait2 && c.orphan):
		info.Timer, at = "timewait", h.nsAt(c.idleAt)
	case c.idleAt != 0:
		info.Timer, at = "keepalive", h.nsAt(c.idleAt)
	}
	if at != 0 {
		info.TimerIn = max(0, at-h.now)
	}
	return info
}

// TCPSockets lists listeners and connections, those half-open and in TIME-WAIT too.
func (h *Host) TCPSockets() []TCPInfo {
	var out []TCPInfo
	for _, l := range h.tcp.listeners {
		if l.used && l.open {
			out = append(out, TCPInfo{Local: l.key.local(), State: "LISTEN", RecvQueue: l.ready.n})
		}
	}
	h.tcp.each(func(_ uint32, c *tcb) { out = append(out, h.tcpInfo(c)) })
	for n := range h.tcp.half.lists {
		for at := h.tcp.half.lists[n].head; at != 0; at = h.tcp.half.at(at - 1).link.next {
			r := h.tcp.half.at(at - 1)
			out = append(out, TCPInfo{Local: r.key.local(), Remote: r.key.remote(), State: tcpStateNames[tcpSynRcvd],
				Timer: "on", TimerIn: max(0, r.due()-h.now), Backoff: int(r.retries)})
		}
	}
	for at := h.tcp.tw.list.head; at != 0; at = h.tcp.tw.at(at - 1).link.next {
		w := h.tcp.tw.at(at - 1)
		out = append(out, TCPInfo{Local: w.key.local(), Remote: w.key.remote(), State: tcpStateNames[tcpTimeWait],
			Timer: "timewait", TimerIn: int64(int32(w.due-h.nowMS())) * 1_000_000})
	}
	return out
}
