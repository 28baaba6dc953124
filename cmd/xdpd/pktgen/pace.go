package pktgen

// pacer says how many packets are due. Time is an argument, in nanoseconds.
type pacer struct {
	rate   float64 // packets a nanosecond; 0: no limit
	burst  float64 // packets that are due together
	room   float64 // what may be due at most: what a sender was late for beyond it is not sent later
	credit float64
	last   int64
}

// catchUpNS is how late a sender may be and still send what it missed.
const catchUpNS = 1_000_000

// newPacer has a first burst due at now. perSecond 0 is no limit.
func newPacer(perSecond float64, burst int, now int64) *pacer {
	p := &pacer{rate: perSecond / 1e9, burst: float64(max(1, burst)), last: now}
	p.room = max(p.burst, p.rate*catchUpNS)
	p.credit = p.burst
	return p
}

// due is how many packets may be sent now, whole bursts of them, at most n.
func (p *pacer) due(now int64, n int) int {
	if p.rate == 0 {
		return n
	}
	p.credit = min(p.credit+float64(now-p.last)*p.rate, p.room)
	p.last = now
	if p.credit < p.burst {
		return 0
	}
	return min(n, int(p.credit/p.burst)*int(p.burst))
}

// sent takes what was sent of it.
func (p *pacer) sent(n int) {
	if p.rate != 0 {
		p.credit -= float64(n)
	}
}
