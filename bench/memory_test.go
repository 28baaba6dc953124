package main

import (
	"runtime"
	"testing"
)

// TestRingMemory: what an established connection takes of the heap that is received on by a ring, or is in a poller; of the
// peer that is four bytes in each of two lists.
func TestRingMemory(t *testing.T) {
	const few, n, peer = 100, 20_000, 8
	heap := func(kind crowdKind, conns int) int {
		now := int64(1e12)
		c, err := newCrowd(kind, conns, func() int64 { return now }, func(ns int64) { now += ns })
		if err != nil {
			t.Fatal(err)
		}
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		if err := c.close(); err != nil {
			t.Fatal(err)
		}
		return int(m.HeapAlloc)
	}
	for _, c := range []struct {
		name string
		kind crowdKind
		most float64 // a tenth over what was measured
	}{{"poller", withPoller, 255}, {"ring", withRing, 617}} {
		each := float64(heap(c.kind, n)-heap(c.kind, few))/(n-few) - peer
		t.Logf("%s: %.1f bytes", c.name, each)
		if each > c.most || each < 100 {
			t.Errorf("%s: a connection takes %.1f bytes, want at most %.0f", c.name, each, c.most)
		}
	}
}
