package pktgen

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
)

// TestPacer asks at random times: never is more due than the rate allows, in whole bursts, and who asks often enough may
// send all of it.
func TestPacer(t *testing.T) {
	first, n := seeds.Range(t, 1000)
	seeds.Each(t, first, n, func(seed uint64) error {
		r := rand.New(rand.NewPCG(seed, 0))
		rate := 1 + r.Float64()*5e6
		burst := 1 + r.IntN(8)
		start := int64(r.IntN(1e9))
		p := newPacer(rate, burst, start)
		now, sent := start, 0
		for range 2000 {
			now += int64(r.ExpFloat64() * 20_000)
			for {
				n := p.due(now, 1+r.IntN(200))
				if n == 0 {
					break
				}
				p.sent(n)
				sent += n
			}
			if most := float64(now-start)*rate/1e9 + float64(burst); float64(sent) > most+1e-6 {
				return fmt.Errorf("%d sent after %d ns at %v a second in bursts of %d", sent, now-start, rate, burst)
			} else if float64(sent) <= most-2*float64(burst) {
				return fmt.Errorf("only %d sent after %d ns at %v a second in bursts of %d", sent, now-start, rate, burst)
			}
		}
		// What a sender missed while it slept for a second is not sent later.
		now += 1e9
		if got, most := p.due(now, 1<<30), max(burst, int(rate/1e9*catchUpNS)); got > most || got%burst != 0 {
			return fmt.Errorf("after a second of sleep %d are due, the rate is %v", got, rate)
		}
		return nil
	})
}

func TestPacerWithoutLimit(t *testing.T) {
	p := newPacer(0, 4, 0)
	for range 3 {
		if n := p.due(0, 64); n != 64 {
			t.Fatalf("%d are due", n)
		}
		p.sent(64)
	}
}
