package reactor

import (
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/rings"
	"xdpd/sockets"
)

// mapped is memory for a ring that can be taken away again.
func mapped(t *testing.T, n int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

// TestRingMemoryGoes: once a ring is closed its memory may go, also when the reactor ended before and its loop has not heard of it yet.
func TestRingMemoryGoes(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for _, ended := range []bool{false, true} {
		layout, err := rings.LayoutRing(4, 4)
		if err != nil {
			t.Fatal(err)
		}
		area := mapped(t, layout.Size)
		g := ringOn(newRig(t, options{}), RingConfig{SQEntries: 4, CQEntries: 4, Area: area})
		g.push(nop(1, 0))
		if _, ok := g.r.doze(g.r.now()); ok {
			t.Fatal("it sleeps with work to do")
		}
		g.settle()
		if _, ok := g.r.doze(g.r.now()); !ok {
			t.Fatal("it does not sleep")
		}
		if ended {
			g.r.Stop()
		}
		g.q.Close()
		if err := unix.Mprotect(area, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
		g.r.rouse(true)
		g.r.Turn()
		if _, ok := g.r.doze(g.r.now()); ok {
			g.r.rouse(true)
		}
	}
}

// TestRingTimeBounded: a ring that has a share of the time does not take SQEs for longer than its slice, whatever they turn out to
// cost, and is served again in the next turns until all are done.
func TestRingTimeBounded(t *testing.T) {
	now, cost := int64(1e12), int64(0)
	g := newRig(t, options{change: func(c *Config, _ *sockets.Config) {
		c.Clock = func() int64 { now += cost; return now }
	}})
	r := ringOn(g, RingConfig{SQEntries: 256, CQEntries: 256, CPU: 100})
	var list []rings.SQE
	for i := range uint64(256) {
		list = append(list, nop(i, 0))
	}
	r.push(list...)
	cost = sliceNS // between any two looks at the clock
	g.r.Turn()
	if did := r.q.counters.Submitted; did == 0 || did > batch {
		t.Errorf("%d SQEs taken in a turn in which each look at the clock finds a slice gone", did)
	}
	cost = 0
	if got := len(r.reap()); got != 256 {
		t.Errorf("%d completions, want all", got)
	}
}

// TestRingKnocksAreCharged: an application that is to be woken for each completion pays for the system calls.
func TestRingKnocksAreCharged(t *testing.T) {
	now, cost := int64(1e12), int64(0)
	g := newRig(t, options{change: func(c *Config, _ *sockets.Config) {
		c.Clock = func() int64 { return now }
	}})
	knocks := 0
	r := ringOn(g, RingConfig{SQEntries: 256, CQEntries: 256, CPU: 1, Bell: func() { knocks++; now += cost }})
	cost = 1e6
	want := uint32(0)
	for range 200 {
		want++
		r.c.app.Sleep(want)
		r.push(nop(1, 0))
		g.r.Turn()
		r.c.Reap(make([]rings.CQE, 8))
	}
	if knocks == 0 || knocks > 20 {
		t.Errorf("%d knocks of a millisecond each within as much; of one in a hundred it has few", knocks)
	}
}
