package reactor

import (
	"testing"

	"xdpd/sockets"
)

// napiRig is a reactor that may drive, on a ring of what two turns take. asked counts how often it wanted to.
func napiRig(t *testing.T) (g *rig, asked *int) {
	asked = new(int)
	g = newRig(t, options{frames: 8 * budget, ring: 2 * budget, change: func(c *Config, _ *sockets.Config) {
		c.NAPI, c.WantNAPI = AutoNAPI, func() { *asked++ }
		c.FillFrames = 2 * budget
	}})
	return g, asked
}

// TestNAPIWanted: the reactor wants its NAPI under a load that leaves it time, and neither when as much waits as a turn may take nor when
// it is away now and then.
func TestNAPIWanted(t *testing.T) {
	const step, often = 50_000, windowNS / 50_000 // between turns, in ns; turns to a window
	for _, c := range []struct {
		name   string
		frames int   // that wait for each turn
		away   int64 // ns that the loop is, once in a window
		wants  bool
	}{
		{"a few frames in each turn", 5, 0, true},
		{"less than a batch in each turn", 40, 0, true},
		{"a window of 64 datagrams in each turn", 64, 0, true},
		{"what a turn may take in each turn", budget, 0, false},
		{"away for a fifth of the time", 5, 5_000_000, false},
		{"away for a moment", 5, awayNS, true},
		{"hardly anything", 0, 0, false},
	} {
		g, asked := napiRig(t)
		g.settle()
		for turn := range 4_000 {
			for range c.frames {
				g.deliver(g.udpFrame(echoPort, nil))
			}
			g.r.Turn()
			g.clock.AdvanceTo(g.clock.Now() + step)
			if turn%often == 0 {
				g.clock.AdvanceTo(g.clock.Now() + c.away)
			}
		}
		if (*asked > 0) != c.wants {
			t.Errorf("%s: it asked for the NAPI %d times", c.name, *asked)
		}
	}
}

// TestNAPISleep: a sleep is not a time that the loop missed.
func TestNAPISleep(t *testing.T) {
	const long = 1_000_000_000
	g, _ := napiRig(t)
	start := g.clock.Now()
	g.r.now = func() int64 { // in which any sleep is long
		if g.r.asleep {
			g.clock.AdvanceTo(start + long)
		}
		return g.clock.Now()
	}
	g.settle()
	before := g.r.missed
	g.r.wake.signal()
	g.r.own.sleep()
	g.settle()
	if g.clock.Now() != start+long || g.r.missed != before {
		t.Errorf("slept for %d ns, of which it missed %d", g.clock.Now()-start, g.r.missed-before)
	}
}
