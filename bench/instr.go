package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

// instrRow is a loop and what it is called in the table.
type instrRow struct {
	loop, what string
}

func (r instrRow) String() string { return r.loop }

var instrRows = []instrRow{
	{"receive", "a segment of 1448 bytes received and read"},
	{"send", "a segment of 1448 bytes written and sent"},
	{"ask", "1 byte received and read, 1 byte written and sent"},
	{"syn", "a connection opened, accepted, closed by both"},
}

// runInstr is `bench instructions`: it counts what the stack executes for a segment, by cachegrind, for machines that
// do not let a guest count. The count repeats to a fraction of a percent, whatever else the machine does.
func runInstr(ctx context.Context, args []string) error {
	if len(args) == 4 && args[0] == "-loop" {
		n, err := strconv.Atoi(args[3])
		if err != nil {
			return err
		}
		if conns, err := strconv.Atoi(args[2]); err == nil {
			return waitLoop(args[1], conns, n)
		}
		if nicLoops[args[1]] != nil {
			return nicLoop(args[1], n)
		}
		return instrLoop(args[1], args[2] == "dry", n)
	}
	f := flag.NewFlagSet("bench instructions", flag.ContinueOnError)
	rounds := f.Int("rounds", 5, "counts of each")
	n := f.Int("n", 4000, "segments in a count")
	conns := f.Int("conns", 1_000_000, "connections in the Poller")
	list := f.String("loops", "", "loops, with commas between (default all: "+names(gateRows)+")")
	write := f.Bool("write", false, "write "+baselineFile+", in the source tree, instead of tables")
	if err := f.Parse(args); err != nil {
		return err
	}
	if f.NArg() > 0 || *rounds < 1 || *n < instrTurn || *conns < waitFew {
		return fmt.Errorf("what is %q? -rounds must be positive, -n at least %d, -conns at least %d", f.Args(), instrTurn, waitFew)
	}
	chosen, err := choose(gateRows, *list)
	if err != nil {
		return fmt.Errorf("-loops: %w", err)
	}
	if _, err := exec.LookPath("valgrind"); err != nil {
		return fmt.Errorf("apt-get install valgrind: %w", err)
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	if *write {
		return writeBaselines(ctx, exe, chosen, *rounds)
	}
	fmt.Printf("%s, %s, commit %s, %d rounds of %d\n", runtime.GOARCH, runtime.Version(), commit(), *rounds, *n)
	// Each round takes a minute for a million connections, which have to be made: for these one has to do.
	return errors.Join(
		countSegments(ctx, exe, chosen, *rounds, *n),
		countWaits(ctx, exe, chosen, *conns, 10**n))
}

// countSegments prints the table of segments' loops.
func countSegments(ctx context.Context, exe string, chosen []instrRow, rounds, n int) error {
	rows := [][]string{{"work", "loop", "instructions", "[low .. high]"}}
	for _, r := range chosen {
		if waitLoops[r.loop] != nil {
			continue
		}
		var v []float64
		for range rounds {
			got, err := instructions(ctx, exe, r.loop, n)
			if err != nil {
				return fmt.Errorf("%s: %w", r.loop, err)
			}
			v = append(v, got)
		}
		rows = append(rows, []string{
			r.what, r.loop, fmt.Sprintf("%.0f", median(v)), fmt.Sprintf("[%.0f .. %.0f]", slices.Min(v), slices.Max(v)),
		})
	}
	if len(rows) > 1 {
		fmt.Printf("\n%s", table(rows))
	}
	return nil
}

// instructions is what is executed for one turn of a loop of segments, without what the peer's part of it takes. That of a
// simulated NIC stays in.
func instructions(ctx context.Context, exe, loop string, n int) (float64, error) {
	if nicLoops[loop] != nil {
		return perCall(ctx, exe, loop, "nic", n)
	}
	host, err := perCall(ctx, exe, loop, "host", n)
	if err != nil {
		return 0, err
	}
	dry, err := perCall(ctx, exe, loop, "dry", n)
	if err == nil && host <= dry {
		err = fmt.Errorf("%.0f instructions with the Host, %.0f without", host, dry)
	}
	return host - dry, err
}

// perCall is what one turn of a loop executes: the difference between a long and a short run.
func perCall(ctx context.Context, exe, loop, kind string, n int) (float64, error) {
	var counts [2]float64
	for k := range counts {
		c, err := countRun(ctx, exe, loop, kind, n*(1+2*k))
		if err != nil {
			return 0, err
		}
		counts[k] = c
	}
	return (counts[1] - counts[0]) / float64(2*n), nil
}

var refs = regexp.MustCompile(`I\s+refs:\s+([0-9,]+)`)

// countRun has exe, which is the bench, run a loop n times under cachegrind.
func countRun(ctx context.Context, exe, loop, kind string, n int) (float64, error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null",
		exe, "instructions", "-loop", loop, kind, strconv.Itoa(n))
	cmd.Env = append(os.Environ(), "GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return 0, fmt.Errorf("%w: %s", err, out.Bytes())
	}
	m := refs.FindSubmatch(out.Bytes())
	if m == nil {
		return 0, errors.New("cachegrind did not count: " + out.String())
	}
	return strconv.ParseFloat(strings.ReplaceAll(string(m[1]), ",", ""), 64)
}
