package reactor

// pace holds a ring to its share of the reactor's time: a bucket of ns that fills at percent of real time.
type pace struct {
	percent int64 // 0: no limit
	left    int64
	at      int64 // when left was right
}

// paceMax is what a ring that was idle may take at once: a few turns' time.
const paceMax = 4 * turnNS

// wait is when the ring may run; a time that is past, if it may now.
func (p *pace) wait(now int64) int64 {
	if p.percent == 0 {
		return now
	}
	p.left = min(p.left+(now-p.at)*p.percent/100, paceMax)
	p.at = now
	if p.left >= 0 {
		return now
	}
	return now - p.left*100/p.percent + 1
}

// took notes what it took.
func (p *pace) took(ns int64) {
	if p.percent != 0 {
		p.left -= ns
	}
}
