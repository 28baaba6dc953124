package sockets

import "math"

// Congestion control: CUBIC (RFC 9438) or Reno (RFC 5681), slow start with HyStart++ (RFC 9406). Windows are in bytes.

const (
	cubicC    = 0.4
	cubicBeta = 0.7
	// RFC 9438 4.3: what makes the Reno-friendly window grow as fast as Reno's.
	cubicAlpha = 3 * (1 - cubicBeta) / (1 + cubicBeta)
	cwndMax    = 1 << 30

	ssthreshNone = 1 << 30 // no congestion yet
)

// cubic is the state of one congestion avoidance stage; the zero value is none.
type cubic struct {
	wMax     float64 // bytes
	k        float64 // s
	epochAt  int64   // ns; 0: the stage begins with the next ACK
	lastAt   int64   // ns: of the last ACK
	wEst     float64
	cwndPrev float64 // cwnd_prior
	frac     float64 // of a byte that the window has grown
}

// ccReduce sets ssthresh on congestion, of which an ACK told that took bytes out of flight.
func (h *Host) ccReduce(c *tcb, x *active, bytes uint32) {
	w := float64(c.cwnd)
	if c.reno {
		// RFC 5681 (4) counts what is in flight: an application that sends little earns no window.
		c.ssthresh = max((c.sndNxt-c.sndUna+bytes)/2, 2*uint32(c.mss))
		return
	}
	q := &x.cubic
	q.cwndPrev, q.epochAt = w, 0
	if w < q.wMax {
		q.wMax = w * (1 + cubicBeta) / 2 // fast convergence (RFC 9438 4.7)
	} else {
		q.wMax = w
	}
	c.ssthresh = max(uint32(w*cubicBeta), 2*uint32(c.mss))
}

// ccAcked grows the window for n bytes newly acknowledged outside recovery.
func (h *Host) ccAcked(c *tcb, x *active, n uint32) {
	if !seqLT(c.sndUna-n, x.limitedSeq) {
		x.limitedSeq = c.sndUna // RFC 9438 4.1, RFC 7661: a window that is not used proves nothing
		x.cubic.pause(h.now)
		return
	}
	if c.cwnd < c.ssthresh {
		grown := min(c.cwnd+x.hy.increase(c, n), c.ssthresh)
		if n -= min(n, grown-c.cwnd); grown < c.ssthresh || n == 0 {
			c.cwnd = grown
			return
		}
		c.cwnd = grown // what is left counts as congestion avoidance
	}
	q, mss, w := &x.cubic, float64(c.mss), float64(c.cwnd)
	if c.reno {
		q.frac += min(mss*float64(n)/w, mss)
	} else {
		q.frac += q.increase(w, mss, float64(n), h.now, int64(c.srtt)*1000)
	}
	whole := math.Floor(q.frac)
	q.frac -= whole
	c.cwnd = uint32(min(w+whole, cwndMax))
}

// increase is RFC 9438 4.2 to 4.5: how many bytes the window w grows by for n bytes acknowledged.
func (q *cubic) increase(w, mss, n float64, now, rtt int64) float64 {
	if q.epochAt == 0 {
		q.epochAt, q.wEst = now, w
		if q.wMax < w {
			q.wMax = w // slow start ended without a loss, or the window outgrew the old one
		}
		q.k = math.Cbrt((q.wMax - w) / mss / cubicC)
		if q.cwndPrev == 0 {
			q.cwndPrev = w
		}
	}
	q.lastAt = now
	at := func(t int64) float64 {
		d := float64(t)/1e9 - q.k
		return cubicC*mss*d*d*d + q.wMax
	}
	alpha := cubicAlpha
	if q.wEst >= q.cwndPrev {
		alpha = 1
	}
	q.wEst += alpha * mss * n / w
	if at(now-q.epochAt) < q.wEst {
		return max(0, q.wEst-w) // the Reno-friendly region
	}
	target := min(max(at(now-q.epochAt+rtt), w), 1.5*w)
	return (target - w) / w * n
}

// pause takes the time since the last ACK out of the stage: the application sent too little for the window to grow (RFC
// 9438 4.2, 5.8).
func (q *cubic) pause(now int64) {
	if q.epochAt != 0 {
		q.epochAt += now - q.lastAt
	}
	q.lastAt = now
}

// ccIdle is RFC 2861: a window that was not used for a timeout's time is halved for each such time (tcp_cwnd_restart).
func (h *Host) ccIdle(c *tcb, x *active) {
	idle := int64(h.nowMS()-c.sentAt) * 1000
	rto := int64(c.rto)
	if idle <= rto || c.cwnd <= initialCwnd(c) {
		return
	}
	c.ssthresh = max(c.ssthresh, c.cwnd/4*3)
	for ; idle > rto && c.cwnd > initialCwnd(c); idle -= rto {
		c.cwnd /= 2
	}
	c.cwnd = max(c.cwnd, initialCwnd(c))
	x.cubic.epochAt = 0
}

// hystart is HyStart++ (RFC 9406): slow start that slows down when the round-trip time rises, before anything is lost.
type hystart struct {
	windowEnd uint32
	last, cur uint32 // minRTT of the last round and of this one, µs; noRTT: none
	baseline  uint32 // cssBaselineMinRtt; 0: not in conservative slow start
	samples   uint8
	rounds    uint8 // of conservative slow start
}

const (
	noRTT        = ^uint32(0)
	hyMinThresh  = 4_000
	hyMaxThresh  = 16_000
	hyDivisor    = 8
	hySamples    = 8
	hyCSSDivisor = 4
	hyCSSRounds  = 5
	hyLimit      = 8 // L without pacing
)

func (y *hystart) init(c *tcb) { *y = hystart{windowEnd: c.sndNxt, last: noRTT, cur: noRTT} }

// increase is how much the window grows in slow start for n bytes acknowledged.
func (y *hystart) increase(c *tcb, n uint32) uint32 {
	n = min(n, hyLimit*uint32(c.mss))
	if y.baseline != 0 && c.ssthresh == ssthreshNone {
		n /= hyCSSDivisor
	}
	return n
}

// acked runs the rounds: rtt is a sample in µs, or noRTT. Only the first slow start has to find its end (RFC 9406 4.3).
func (y *hystart) acked(c *tcb, x *active, rtt uint32) {
	if c.ssthresh != ssthreshNone {
		return
	}
	if rtt != noRTT {
		y.cur = min(y.cur, rtt)
		y.samples = min(y.samples+1, hySamples)
		if y.samples >= hySamples && y.cur != noRTT {
			y.judge()
		}
	}
	if !seqLT(c.sndUna, y.windowEnd) { // the round is over
		if y.baseline != 0 {
			if y.rounds++; y.rounds >= hyCSSRounds {
				c.ssthresh = c.cwnd
				x.cubic.epochAt = 0
			}
		}
		y.windowEnd, y.last, y.cur, y.samples = c.sndNxt, y.cur, noRTT, 0
	}
}

func (y *hystart) judge() {
	if y.baseline != 0 {
		if y.cur < y.baseline { // a false alarm: back to slow start
			y.baseline, y.rounds = 0, 0
		}
		return
	}
	if y.last == noRTT {
		return
	}
	if thresh := min(max(y.last/hyDivisor, hyMinThresh), hyMaxThresh); y.cur >= y.last+thresh {
		y.baseline, y.rounds = y.cur, 0
	}
}
