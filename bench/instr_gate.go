package main

import (
	"context"
	_ "embed"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// baselineFile has a line for each loop: what it executes, for which architecture and version of Go.
const baselineFile = "bench/testdata/instructions.txt"

//go:embed testdata/instructions.txt
var baselineText string

// gateRows are all loops, those of a crowd with few connections.
var gateRows = slices.Concat(instrRows, nicRows, waitRows)

// gateCounts are how often each runs for the gate. What the runtime does by itself comes with the time that passes: a count
// must be long against that.
const gateCounts = 8000

// gateCount is what a loop executes, as the baseline has it.
func gateCount(ctx context.Context, exe, loop string) (float64, error) {
	if waitLoops[loop] != nil {
		return perCall(ctx, exe, loop, strconv.Itoa(waitFew), 2*gateCounts)
	}
	return instructions(ctx, exe, loop, gateCounts)
}

// baselineKey is what a baseline holds for.
func baselineKey(loop string) string {
	return fmt.Sprintf("%s %s %s", runtime.GOARCH, runtime.Version(), loop)
}

// baselines reads the file: instructions by baselineKey.
func baselines(text string) (map[string]int, error) {
	m := make(map[string]int)
	for line := range strings.Lines(text) {
		at := strings.LastIndex(line, " ")
		n, err := strconv.Atoi(strings.TrimSpace(line[at+1:]))
		if err != nil || n <= 0 || at < 0 {
			return nil, fmt.Errorf("baseline %q: not an architecture, a version, a loop and a count", line)
		}
		m[line[:at]] = n
	}
	return m, nil
}

// formatBaselines is the file with these.
func formatBaselines(m map[string]int) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(m)) {
		fmt.Fprintf(&b, "%s %d\n", key, m[key])
	}
	return b.String()
}

// writeBaselines counts all loops some rounds, and puts the medians into the file, for this architecture and version of Go.
func writeBaselines(ctx context.Context, exe string, chosen []instrRow, rounds int) error {
	m, err := baselines(baselineText)
	if err != nil {
		return err
	}
	for _, r := range chosen {
		var v []float64
		for range rounds {
			n, err := gateCount(ctx, exe, r.loop)
			if err != nil {
				return fmt.Errorf("%s: %w", r.loop, err)
			}
			v = append(v, n)
		}
		n, key := int(median(v)+.5), baselineKey(r.loop)
		fmt.Printf("%s %d, was %d [%.0f .. %.0f]\n", key, n, m[key], slices.Min(v), slices.Max(v))
		m[key] = n
	}
	return os.WriteFile(baselineFile, []byte(formatBaselines(m)), 0o644)
}
