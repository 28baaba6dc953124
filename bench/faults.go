package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"time"
)

// faultCase is a kind of wire.
type faultCase struct {
	name string
	wire []string // flags of chaosbox
	rate string   // of the link's slowest place, for tc-tbf(8); "": none
}

func (c faultCase) String() string { return c.name }

// The names say what they do to each direction. All have a round trip of 20 ms.
var faultCases = []faultCase{
	{name: "clean", wire: []string{"-delay", "10"}},
	{name: "bottleneck", wire: []string{"-delay", "10"}, rate: "50mbit"},
	{name: "loss-1", wire: []string{"-delay", "10", "-drop", "0.01"}},
	{name: "loss-10", wire: []string{"-delay", "10", "-drop", "0.1"}},
	// A burst's segments come a few microseconds apart: a hold of this length lets about three others pass.
	{name: "reorder-3", wire: []string{"-delay", "10", "-reorder", "0.01", "-hold", "0.015"}},
	// As long as a quarter of the round trip: what RACK allows before it takes a segment for lost (RFC 8985 6.2).
	{name: "reorder-far", wire: []string{"-delay", "10", "-reorder", "0.01", "-hold", "4"}},
	{name: "duplicate", wire: []string{"-delay", "10", "-dup", "0.01"}},
	{name: "corrupt", wire: []string{"-delay", "10", "-corrupt", "0.01"}},
}

// duty is what the one who is measured does; its peer is always the kernel's TCP.
type duty string

func (d duty) String() string { return string(d) }

var duties = []duty{"send", "receive"}

// faultBench is one run.
type faultBench struct {
	rounds   int
	seconds  float64
	noise    float64 // wait while others take more than this percentage of the machine
	cases    []faultCase
	duties   []duty
	seed     uint64
	chaosbox string // path of the source, then of the program
	jsonFile string
	progress io.Writer
}

// runFaults is `bench faults`.
func runFaults(ctx context.Context, args []string) error {
	b, err := parseFaults(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and AF_XDP need root")
	}
	dir, err := os.MkdirTemp("", "xdpd-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	program := filepath.Join(dir, "chaosbox")
	text, err := exec.CommandContext(ctx, "go", "build", "-C", b.chaosbox, "-buildvcs=false", "-o", program, ".").CombinedOutput()
	if err != nil {
		return fmt.Errorf("build the wire of faults (-chaosbox names its source): %w: %s", err, text)
	}
	b.chaosbox = program
	res, err := b.run(ctx)
	if len(res) == 0 {
		return err
	}
	fmt.Printf("%s, %s, %s, %d CPUs, %d rounds of %g s, seed %d; the kernel's congestion control is cubic\n\n%s\n%s",
		cpuModel(), kernelRelease(), runtime.Version(), runtime.NumCPU(), b.rounds, b.seconds, b.seed,
		faultTable(res), ratioTable(faultRatios(res)))
	if b.jsonFile == "" {
		return err
	}
	text, failed := json.MarshalIndent(faultRatios(res), "", "  ")
	if failed == nil {
		failed = os.WriteFile(b.jsonFile, append(text, '\n'), 0o644)
	}
	return errors.Join(err, failed)
}

func parseFaults(args []string) (*faultBench, error) {
	_, here, _, _ := runtime.Caller(0)
	b := &faultBench{progress: os.Stderr}
	f := flag.NewFlagSet("bench faults", flag.ContinueOnError)
	f.IntVar(&b.rounds, "rounds", 7, "rounds; in each, both stacks meet every case once")
	f.Float64Var(&b.seconds, "seconds", 5, "length of one transfer")
	f.Float64Var(&b.noise, "noise", 5, "wait, a minute at most, while other programs take more than this percentage of the machine")
	f.Uint64Var(&b.seed, "seed", uint64(time.Now().UnixNano()), "of the faults in the first round")
	f.StringVar(&b.chaosbox, "chaosbox", filepath.Join(filepath.Dir(here), "../../shared/wire/chaosbox"), "source of the wire")
	f.StringVar(&b.jsonFile, "json", "", "write the ratios to this file")
	cases := f.String("cases", "", "cases, with commas between (default all: "+names(faultCases)+")")
	dutyList := f.String("duties", "", "what the stacks do, with commas between (default all: "+names(duties)+")")
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	var err error
	if b.cases, err = choose(faultCases, *cases); err != nil {
		return nil, fmt.Errorf("-cases: %w", err)
	}
	if b.duties, err = choose(duties, *dutyList); err != nil {
		return nil, fmt.Errorf("-duties: %w", err)
	}
	if f.NArg() > 0 || b.rounds < 1 || b.seconds <= 0 {
		return nil, fmt.Errorf("what is %q? -rounds and -seconds must be positive", f.Args())
	}
	return b, nil
}

// faultKey is a row of the table; both stacks have their transfers in the order of the rounds.
type faultKey struct {
	faultCase string
	duty      duty
}

type faultRow struct {
	faultKey
	transfers map[string][]transfer // by stack
}

// stacks are those that are compared, in the engine's place.
var stacks = []string{"xdpd", "linux"}

// run does all rounds. With an error it gives what was measured before it.
func (b *faultBench) run(ctx context.Context) (rows []faultRow, err error) {
	for _, c := range b.cases {
		for _, d := range b.duties {
			rows = append(rows, faultRow{faultKey{c.name, d}, make(map[string][]transfer)})
		}
	}
	for round := range b.rounds {
		row := 0
		for _, c := range b.cases {
			for _, d := range b.duties {
				for i := range stacks {
					s := stacks[(i+round)%len(stacks)] // who is first changes
					if err := waitForQuiet(ctx, b.noise); err != nil {
						return b.complete(rows), err
					}
					got, err := b.transfer(ctx, s, c, d, b.seed+uint64(round))
					if err != nil {
						return b.complete(rows), fmt.Errorf("round %d, %s, %s, %s, seed %d: %w", round+1, c, s, d, b.seed+uint64(round), err)
					}
					rows[row].transfers[s] = append(rows[row].transfers[s], got)
					fmt.Fprintf(b.progress, "round %d/%d  %-11s %-7s %-5s  %7.2f Mbit/s, %d of %d segments sent again\n",
						round+1, b.rounds, c, d, s, got.goodput, got.retransmits, got.segments)
				}
				row++
			}
		}
	}
	return rows, nil
}

// complete leaves out the rows that do not have both stacks.
func (b *faultBench) complete(rows []faultRow) (out []faultRow) {
	for _, r := range rows {
		if len(r.transfers["xdpd"]) > 0 && len(r.transfers["linux"]) > 0 {
			out = append(out, r)
		}
	}
	return out
}

// faultRatios says how many times more of the data arrived in the same time than with Linux in the engine's place.
func faultRatios(rows []faultRow) (out []ratio) {
	for _, r := range rows {
		var values []float64
		for i := range min(len(r.transfers["xdpd"]), len(r.transfers["linux"])) {
			values = append(values, r.transfers["xdpd"][i].goodput/r.transfers["linux"][i].goodput)
		}
		out = append(out, newRatio(fmt.Sprintf("tcp-goodput xdpd %s %s", r.duty, r.faultCase), "linux", values))
	}
	return out
}

func faultTable(rows []faultRow) string {
	cells := [][]string{{"wire", "duty", "linux Mbit/s", "xdpd Mbit/s", "linux sent again %", "xdpd sent again %"}}
	for _, r := range rows {
		row := []string{r.faultCase, r.duty.String()}
		for _, of := range []func(transfer) float64{func(t transfer) float64 { return t.goodput }, transfer.again} {
			for _, s := range []string{"linux", "xdpd"} {
				var v []float64
				for _, t := range r.transfers[s] {
					v = append(v, of(t))
				}
				row = append(row, fmt.Sprintf("%.2f", median(v)))
			}
		}
		cells = append(cells, row)
	}
	return table(cells)
}
