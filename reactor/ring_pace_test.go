package reactor

import "testing"

// TestPace: whoever always wants to run gets its share of the time and a little for having been idle, no more and no less; and
// the time that it is told to come back at is the one at which it may.
func TestPace(t *testing.T) {
	for _, percent := range []int64{1, 10, 50, 99, 100} {
		const cost, end = turnNS / 2, int64(20e9)
		p := pace{percent: percent}
		var ran int64
		for now := int64(1e9); now < 1e9+end; {
			if at := p.wait(now); at > now {
				if p.wait(at-1) <= at-1 {
					t.Fatalf("%d %%: may run before it was told", percent)
				}
				if p.wait(at) > at {
					t.Fatalf("%d %%: at the time that it was told it has to wait on", percent)
				}
				now = at
			}
			p.took(cost)
			ran += cost
			now += cost
		}
		if want := end * percent / 100; ran < want-cost || ran > want+paceMax+2*cost {
			t.Errorf("%d %%: ran for %d of %d ns", percent, ran, end)
		}
	}
	var free pace
	if free.took(1e12); free.wait(5) != 5 {
		t.Error("without a limit it waits")
	}
}
