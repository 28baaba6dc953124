package main

import "testing"

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
