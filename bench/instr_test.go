package main

import (
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
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
	for _, r := range nicRows {
		if err := nicLoop(r.loop, 4000); err != nil {
			t.Errorf("%s: %v", r.loop, err)
		}
	}
	if len(instrLoops) != len(instrRows) || len(nicLoops) != len(nicRows) {
		t.Errorf("%d and %d loops, of which %d and %d are shown", len(instrLoops), len(nicLoops), len(instrRows), len(nicRows))
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
	const many = 20_000
	exe := instrBench(t)
	for _, r := range waitRows {
		limit := 0.03
		if r.loop == "event" {
			limit = 0.15 // with thousands of sockets packets are read ahead: an eighth more instructions, for half of the time
		}
		var v [2]float64
		for i, conns := range []int{waitFew, many} {
			var err error
			if v[i], err = perCall(t.Context(), exe, r.loop, fmt.Sprint(conns), 30_000); err != nil {
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

// instrBench builds the bench: the race detector's memory has no place under valgrind, so this binary will not do.
func instrBench(t *testing.T) string {
	t.Helper()
	if _, err := exec.LookPath("valgrind"); err != nil {
		if os.Geteuid() != 0 {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	exe := filepath.Join(t.TempDir(), "bench")
	if text, err := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", exe, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, text)
	}
	return exe
}

// TestInstructions: no loop executes 3 % more than its baseline. A count may be too high, when the machine had other things
// to do, but hardly too low: the least of three is held against it.
func TestInstructions(t *testing.T) {
	const limit = 0.03
	base, err := baselines(baselineText)
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := base[baselineKey("udp")]; !ok {
		t.Logf("%s has no baseline for %s and %s; `go run ./bench instructions -write` writes one", baselineFile, runtime.GOARCH, runtime.Version())
		return
	}
	exe := instrBench(t)
	for _, r := range gateRows {
		want := float64(base[baselineKey(r.loop)])
		got := math.Inf(1)
		for try := 0; try < 3 && got > want*(1+limit); try++ {
			n, err := gateCount(t.Context(), exe, r.loop)
			if err != nil {
				t.Fatalf("%s: %v", r.loop, err)
			}
			got = min(got, n)
		}
		t.Logf("%s: %.0f instructions, %+.1f %%", r.loop, got, 100*(got/want-1))
		if got > want*(1+limit) || got < 50 {
			t.Errorf("%s (%s): %.0f instructions, where the baseline has %.0f; if that is meant, `go run ./bench instructions -write`",
				r.loop, r.what, got, want)
		}
	}
}

// TestBaselines: the file is what it is written as, has every loop, and what is no baseline is refused.
func TestBaselines(t *testing.T) {
	m, err := baselines(baselineText)
	if err != nil || formatBaselines(m) != baselineText {
		t.Errorf("%v; %q is written as %q", err, baselineText, formatBaselines(m))
	}
	if len(m) == 0 || len(m)%len(gateRows) != 0 {
		t.Errorf("%d baselines, for %d loops", len(m), len(gateRows))
	}
	for _, text := range []string{"\n", "5\n", "amd64 go1 udp\n", "amd64 go1 udp -5\n", "amd64 go1 udp 5.5\n"} {
		if m, err := baselines(text); err == nil {
			t.Errorf("%q is taken as %v", text, m)
		}
	}
}
