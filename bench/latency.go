package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// latBench is one run of `bench latency`.
type latBench struct {
	conns    []int
	faces    []face
	rounds   int
	events   int           // in a round
	gap      time.Duration // between two, on average
	noise    float64       // measure again while others take more than this percentage of the machine
	jsonFile string
	progress io.Writer
}

// latRow is what came of one face, with so many connections in the Poller.
type latRow struct {
	Connections int     `json:"connections"`
	Face        string  `json:"face"`
	P50         spread  `json:"p50_us"`
	P99         spread  `json:"p99_us"`
	P999        spread  `json:"p99_9_us"`
	Max         spread  `json:"max_us"`
	Rounds      int     `json:"rounds"`
	Refused     int     `json:"refused"` // frames for which the rings had no room, in all rounds
	Others      float64 `json:"others"`  // percentage of the machine that other programs took, median
}

// spread is a quantity over the rounds.
type spread struct {
	Median float64 `json:"median"`
	Low    float64 `json:"low"`
	High   float64 `json:"high"`
}

func (s spread) String() string { return fmt.Sprintf("%.1f [%.1f .. %.1f]", s.Median, s.Low, s.High) }

// latSample is one round.
type latSample struct {
	hist    *hdrhistogram.Histogram // ns
	refused int
	others  float64 // percentage
}

// runLatency is `bench latency`: how long it takes from a frame in the RX ring to the handler of its socket.
func runLatency(ctx context.Context, args []string) error {
	b, err := parseLatency(args)
	if err != nil {
		return err
	}
	rows, err := b.run(ctx)
	if err != nil {
		return err
	}
	var others []float64
	for _, r := range rows {
		others = append(others, r.Others)
	}
	fmt.Printf("%s, %d cores, Linux %s, simulated NIC, commit %s, %s, %d rounds of %d events, one each %v on average; other programs took %.0f %% of the machine (median)\n\n%s",
		cpuModel(), runtime.NumCPU(), kernelRelease(), commit(), runtime.Version(), b.rounds, b.events, b.gap, median(others), latTable(rows))
	if b.jsonFile == "" {
		return nil
	}
	text, err := json.MarshalIndent(rows, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(b.jsonFile, append(text, '\n'), 0o644)
}

func parseLatency(args []string) (*latBench, error) {
	b := &latBench{progress: os.Stderr}
	f := flag.NewFlagSet("bench latency", flag.ContinueOnError)
	conns := f.String("conns", "10000,100000,1000000", "connections in the Poller, with commas between")
	faceList := f.String("faces", "", "faces, with commas between (default all: "+names(faces)+")")
	f.IntVar(&b.rounds, "rounds", 7, "rounds; in each, every face is measured once")
	f.IntVar(&b.events, "events", 20_000, "events in a round")
	f.DurationVar(&b.gap, "gap", 50*time.Microsecond, "time between two events, on average")
	f.Float64Var(&b.noise, "noise", 5, fmt.Sprintf("measure again, at most %d times, while other programs take more than this percentage of the machine", tries-1))
	f.StringVar(&b.jsonFile, "json", "", "write the table to this file")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	for _, text := range strings.Split(*conns, ",") {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > crowdMax {
			return nil, fmt.Errorf("-conns: %q is not 1 to %d", text, crowdMax)
		}
		b.conns = append(b.conns, n)
	}
	var err error
	if b.faces, err = choose(faces, *faceList); err != nil {
		return nil, fmt.Errorf("-faces: %w", err)
	}
	switch {
	case f.NArg() > 0:
		return nil, fmt.Errorf("what is %q?", f.Arg(0))
	case b.rounds < 1 || b.events < 1 || b.gap <= 0:
		return nil, errors.New("-rounds, -events and -gap must be positive")
	}
	return b, nil
}

// run measures with one crowd after the other; with one, the faces take turns.
func (b *latBench) run(ctx context.Context) (rows []latRow, err error) {
	for _, n := range b.conns {
		fmt.Fprintf(b.progress, "%d connections\n", n)
		samples, err := b.measure(ctx, n)
		if err != nil {
			return nil, fmt.Errorf("%d connections: %w", n, err)
		}
		for i, f := range b.faces {
			rows = append(rows, newLatRow(n, f, samples[i]))
		}
	}
	return rows, nil
}

func newLatRow(conns int, f face, samples []latSample) latRow {
	r := latRow{Connections: conns, Face: f.name, Rounds: len(samples)}
	var v [5][]float64
	for _, s := range samples {
		h := s.hist
		for i, ns := range []int64{h.ValueAtPercentile(50), h.ValueAtPercentile(99), h.ValueAtPercentile(99.9), h.Max()} {
			v[i] = append(v[i], float64(ns)/1e3)
		}
		v[4] = append(v[4], s.others)
		r.Refused += s.refused
	}
	for i, to := range []*spread{&r.P50, &r.P99, &r.P999, &r.Max} {
		*to = spread{median(v[i]), slices.Min(v[i]), slices.Max(v[i])}
	}
	r.Others = median(v[4])
	return r
}

func latTable(rows []latRow) string {
	cells := [][]string{{"connections", "face", "p50 µs", "p99 µs", "p99.9 µs", "max µs", "refused", "others %"}}
	for _, r := range rows {
		cells = append(cells, []string{
			fmt.Sprint(r.Connections), r.Face, r.P50.String(), r.P99.String(),
			fmt.Sprintf("%.1f", r.P999.Median), fmt.Sprintf("%.1f", r.Max.Median), fmt.Sprint(r.Refused), fmt.Sprintf("%.0f", r.Others),
		})
	}
	return table(cells)
}
