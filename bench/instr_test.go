package main

import (
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestInstrLoops runs the loops as they are: they check their own work.
func TestInstrLoops(t *testing.T) {
	for _, r := range instrRows {
		if err := instrLoop(r.loop, false, 4000); err != nil {
			t.Errorf("%s: %v", r.loop, err)
		}
		if err := instrLoop(r.loop, true, 4000); err != nil {
			t.Errorf("%s without a Host: %v", r.loop, err)
		}
	}
	if len(instrLoops) != len(instrRows) {
		t.Errorf("%d loops, of which %d are shown", len(instrLoops), len(instrRows))
	}
	b := &bare{got: 1}
	if err := b.check(2); err != nil {
		t.Error("the peer alone is asked for work: ", err)
	}
}

// TestWaitLoops runs the loops of a crowd as they are.
func TestWaitLoops(t *testing.T) {
	for _, r := range waitRows {
		for _, conns := range []int{1, waitFew, 3*crowdBatch + 1} {
			if err := waitLoop(r.loop, conns, 300); err != nil {
				t.Errorf("%s of %d: %v", r.loop, conns, err)
			}
		}
	}
	if len(waitLoops) != len(waitRows) {
		t.Errorf("%d loops, of which %d are shown", len(waitLoops), len(waitRows))
	}
}

// TestWaitInstructions: what a Poller.Wait costs is the ready sockets, never the idle ones beside them; and so for the way
// there from the RX ring. The counts repeat to a percent, if they are long: the runtime's own work comes with the
// time that passes.
func TestWaitInstructions(t *testing.T) {
	const many, limit = 20_000, 0.03
	if _, err := exec.LookPath("valgrind"); err != nil {
		if os.Geteuid() != 0 {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	// The race detector's memory has no place under valgrind: not this binary, but one without it.
	exe := filepath.Join(t.TempDir(), "bench")
	if text, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	for _, r := range waitRows {
		var v [2]float64
		for i, conns := range []int{waitFew, many} {
			var err error
			if v[i], err = waitInstructions(t.Context(), exe, r.loop, conns, 30_000); err != nil {
				t.Fatal(err)
			}
		}
		t.Logf("%s: %.0f instructions with %d connections, %.0f with %d", r.loop, v[0], waitFew, v[1], many)
		if v[0] < 100 {
			t.Errorf("%s: %.0f instructions is no work", r.loop, v[0])
		}
		if math.Abs(v[1]/v[0]-1) > limit {
			t.Errorf("%s: %.0f instructions with %d connections, %.0f with %d", r.loop, v[0], waitFew, v[1], many)
		}
	}
}
