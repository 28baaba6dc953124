package reactor

// pace holds a ring to its share of the reactor's time: a bucket that fills at percent of real time. It counts in hundredths of a ns, so
// that nothing is lost between two looks at it, however close they are.
type pace struct {
	percent int64 // 0: no limit
	left    int64
	at      int64 // when left was right
}

// paceMax is what a ring that was idle may take at once, in ns: a few turns' time.
const paceMax = 4 * turnNS

// knockNS is what a knock costs beyond what it is for: a goroutine that wakes.
const knockNS = 5_000

// sliceNS is how long such a ring may go on taking SQEs in a turn. Steps are counted (maxSteps), but what one costs can depend on
// how many sockets others have.
const sliceNS = turnNS / 4

// batch is how many SQEs are taken between two looks at the clock.
func (p *pace) batch() int {
	if p.percent != 0 {
		return batch / 8
	}
	return batch
}

// wait is when the ring may run: now, or later.
func (p *pace) wait(now int64) int64 {
	if p.percent == 0 {
		return now
	}
	// Beyond the time that fills the bucket more makes no difference, and the product would overflow some day.
	p.left = min(p.left+min(now-p.at, 1e9)*p.percent, paceMax*100)
	p.at = now
	return p.ready()
}

// ready is when the bucket has something again, as of the last look at it.
func (p *pace) ready() int64 {
	if p.left >= 0 {
		return p.at
	}
	return p.at + (-p.left+p.percent-1)/p.percent
}

// took notes what it took.
func (p *pace) took(ns int64) {
	if p.percent != 0 {
		p.left -= ns * 100
	}
}
