package load

import "math/rand/v2"

// schedule says when the requests of the open loop are to begin. The times are made twice from the same seed: once to see how
// many are due, and once when a request takes the next; what lies in between is the backlog, and costs no memory.
type schedule struct {
	due, taken  cursor
	nDue, nTook uint64
	most        uint64 // largest backlog
}

// cursor makes the times, one after the other.
type cursor struct {
	at       float64 // the next, in ns
	interval float64 // mean
	constant bool
	rng      rand.PCG
}

func newCursor(start int64, rate float64, constant bool, seed uint64, i int) cursor {
	c := cursor{at: float64(start), interval: 1e9 / rate, constant: constant, rng: *rand.NewPCG(seed, uint64(i))}
	if !constant {
		c.step()
	}
	return c
}

func (c *cursor) step() {
	if c.constant {
		c.at += c.interval
		return
	}
	c.at += c.interval * rand.New(&c.rng).ExpFloat64()
}

// newSchedule is that of worker i: its share of the rate. Constant intervals of several workers are offset.
func newSchedule(cfg *Config, now int64, i, workers int) *schedule {
	rate := cfg.Rate / float64(workers)
	if cfg.Constant {
		now += int64(1e9 / cfg.Rate * float64(i))
	}
	c := newCursor(now, rate, cfg.Constant, cfg.Seed, i)
	return &schedule{due: c, taken: c}
}

// advance finds what is due by now.
func (s *schedule) advance(now int64) {
	for s.due.at <= float64(now) {
		s.due.step()
		s.nDue++
	}
	s.most = max(s.most, s.backlog())
}

// backlog is how many requests are due and did not begin.
func (s *schedule) backlog() uint64 { return s.nDue - s.nTook }

// take is the time at which the first of the backlog was to begin.
func (s *schedule) take() int64 {
	at := int64(s.taken.at)
	s.taken.step()
	s.nTook++
	return at
}

// oldest is the time of the first that did not begin.
func (s *schedule) oldest() int64 { return int64(s.taken.at) }

// next is when the next is due.
func (s *schedule) next() int64 { return int64(s.due.at) + 1 }
