package sockets

import "xdpd/umem"

// active is what a connection needs only while data moves: loss detection, congestion control, and what came out of
// order. A connection gets one with the first data it queues or holds, and gives it back when it was quiet for a second.
type active struct {
	// Scoreboard (RFC 6675), in bytes of the send queue. The frames themselves carry bufSacked, bufLost, bufAgain.
	sacked, lost, again uint32 // again: sent again and not acknowledged
	sackedFrames        uint32
	fack                uint32 // highest number SACKed, or sndUna
	dupAcks             uint32 // in a row; without SACK each stands for a segment that has left
	toSend              uint32 // frames marked lost and not sent again yet

	// Recovery.
	phase                         phase
	tlpOut                        bool   // a loss probe is out, up to tlpEnd
	tlpAgain                      bool   // and it was a retransmission
	tlpNext                       bool   // the retransmission timer is a loss probe's
	cwrDue                        bool   // tell the peer that we heard its ECE
	eceDue                        bool   // tell the peer that its data was marked
	probeLost                     bool   // a probe of the path's MTU was marked lost just now
	stuck                         bool   // a frame to send again is still with the device
	limitedSeq                    uint32 // up to here the congestion window was what stopped us
	partSent, partEnd             uint32 // between them something was left out (bufPart): nothing new goes before it is there
	recoverSeq                    uint32
	tlpEnd                        uint32
	prrDelivered, prrOut, prrFlow uint32 // RFC 6937: prrFlow is RecoverFS
	priorCwnd, priorSsthresh      uint32
	undoSeq                       uint32 // sndUna at the start of recovery
	undoAgain                     int32  // retransmissions that no D-SACK reported; <0: no undo
	againTS                       uint32 // our timestamp of the first retransmission

	// RACK (RFC 8985); times in µs.
	rackXmit, rackEnd, rackRTT uint32
	minRTT, minRTTAt           uint32
	rackRound                  uint32 // D-SACK round ends here
	reoMult, reoPersist        uint8
	reordered                  bool
	reoAt                      int64

	hy    hystart
	cubic cubic

	// Receiver.
	ofoHead, ofoTail umem.Frame // ascending by Buf.Seq, no overlap
	ofoLast          umem.Frame // the last that was put there, if it still is
	ofoFrames        uint32
	ofoBytes         uint32
	nsack            uint8
	hasDSACK         bool
	sacks            [4][2]uint32 // most recent first (RFC 2018 section 4)
	dsack            [2]uint32
	spaceAt          int64 // window tuning: when the current measurement began
	spaceTaken       uint32

	mtu plpmtud

	stalledAt uint32 // ms: since when the oldest data waits for an ACK, for the user timeout

	restAt int64 // when to look whether the record is still of use
}

type phase uint8

const (
	phaseOpen     phase = iota
	phaseCWR            // window reduced for ECN or a loss probe
	phaseRecovery       // fast recovery
	phaseLoss           // after a timeout
)

var phaseNames = [...]string{"open", "cwr", "recovery", "loss"}

type activeTable struct{ slab[active] }

// moving gives the active record of c, a new one if it has none.
func (h *Host) moving(i uint32, c *tcb) *active {
	if c.active != 0 {
		return h.tcp.act.at(c.active - 1)
	}
	n, x := h.tcp.act.alloc()
	c.active = n + 1
	x.ofoHead, x.ofoTail, x.ofoLast = umem.None, umem.None, umem.None
	x.fack, x.rackRound, x.limitedSeq, x.partEnd = c.sndUna, c.sndUna, c.sndUna, c.sndUna
	x.reoMult = 1
	x.undoAgain = -1
	x.mtu.nextAt = h.nowMS() + plpmtuAgainMS
	x.minRTT, x.minRTTAt = c.srtt, h.nowUS() // until there is a sample: the handshake's, or what the last burst left
	x.hy.init(c)
	x.spaceAt = h.now
	x.restAt = h.now + quietNS
	h.tcpArm(i, c)
	return x
}

// activeOf gives the active record of c, or nil.
func (h *Host) activeOf(c *tcb) *active {
	if c.active == 0 {
		return nil
	}
	return h.tcp.act.at(c.active - 1)
}

// activeFree gives the record back with the out-of-order data in it.
func (h *Host) activeFree(c *tcb) {
	if x := h.activeOf(c); x != nil {
		h.releaseChain(x.ofoHead)
		h.tcp.act.release(c.active - 1)
		c.active = 0
	}
}

// activeRest gives the record of a connection back that has been quiet.
func (h *Host) activeRest(c *tcb, x *active) {
	if x.phase == phaseOpen && c.sndBytes == 0 && c.sndUna == c.sndNxt && x.ofoFrames == 0 && c.rcvBytes == 0 &&
		int32(h.nowMS()-c.sentAt) >= quietNS/1_000_000 && int32(h.nowMS()-c.heardAt) >= quietNS/1_000_000 && !x.eceDue && !x.cwrDue {
		h.activeFree(c)
		return
	}
	// A peer that is there sends what is missing within the longest of time-outs: what waits for one that is not goes.
	if x.ofoFrames > 0 && h.nowMS()-c.heardAt > rtoMaxUS/1000 {
		h.ofoPrune(x)
	}
	x.restAt = h.now + quietNS
}

// pipe is what RFC 6675 calls so: bytes that are in the network as far as we know.
func (c *tcb) pipe(x *active) uint32 {
	gone := x.sacked + x.lost
	if !c.sackOK {
		gone = x.lost + min(x.dupAcks*uint32(c.mss), c.sndNxt-c.sndUna-x.lost)
	}
	return c.sndNxt - c.sndUna - min(gone, c.sndNxt-c.sndUna) + x.again
}
