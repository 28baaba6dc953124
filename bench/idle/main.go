// Command idle opens a million connections in one process and says what each costs: in bytes, and in the collector's
// pauses. ../README.md says what the rows mean.
//
//	go run ./bench/idle [-n N] [-run LIST] [-veth]
//
// Each scenario is a process of its own: the bench itself, run again with -child. The engine is a real reactor with a
// real Host and real rings. The device is a simulated NIC in virtual time, whose far end a peer in the same process
// holds; with -veth it is a veth pair between two network namespaces, in real time, which needs root.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"sort"
	"strings"
	"syscall"
	"text/tabwriter"
)

func main() {
	profile()
	if err := run(); err != nil {
		fmt.Fprintf(os.Stderr, "idle: %v\n", err)
		os.Exit(1)
	}
}

func run() error {
	n := flag.Int("n", 1_000_000, "connections")
	list := flag.String("run", strings.Join(scenarioNames(), ","), "scenarios, with commas between")
	veth := flag.Bool("veth", false, "over a veth pair, in real time")
	child := flag.String("child", "", "run this scenario in this process and write its report to stdout")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *child != "" {
		return runChild(*child, *n, *veth)
	}
	for _, name := range strings.Split(*list, ",") {
		rep, trace, err := runScenario(ctx, name, *n, *veth)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		rep.print(name, trace)
	}
	return nil
}

func scenarioNames() (names []string) {
	for _, s := range scenarios {
		names = append(names, s.name)
	}
	return names
}

func runChild(name string, n int, veth bool) (err error) {
	i := slices.IndexFunc(scenarios, func(s scenario) bool { return s.name == name })
	if i < 0 {
		return fmt.Errorf("no scenario %s; there are %s", name, strings.Join(scenarioNames(), ", "))
	}
	t, err := scenarios[i].newTrial(n, veth)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, t.close()) }()
	t.trace = os.Stderr
	if err := scenarios[i].run(t); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(&t.report)
}

// runScenario runs a scenario in a process of its own, with the collector's trace on.
func runScenario(ctx context.Context, name string, n int, veth bool) (rep *report, trace string, err error) {
	exe, err := os.Executable()
	if err != nil {
		return nil, "", err
	}
	cmd := exec.CommandContext(ctx, exe, "-child", name, "-n", fmt.Sprint(n), fmt.Sprintf("-veth=%v", veth))
	cmd.Env = append(os.Environ(), "GODEBUG=gctrace=1")
	var out, log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &log
	if err := cmd.Run(); err != nil {
		lines := strings.Split(strings.TrimSpace(log.String()), "\n")
		return nil, "", fmt.Errorf("%w: %s", err, lines[len(lines)-1])
	}
	rep = new(report)
	return rep, log.String(), json.Unmarshal(out.Bytes(), rep)
}

func (rep *report) print(name, trace string) {
	fmt.Printf("\n## %s\n\n", name)
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	if len(rep.Rows) > 0 {
		fmt.Fprintln(t, "bytes each\tcount\theap\tscanned\tRSS\tRSS freed\tpeak RSS\tturn ms\t")
	}
	for _, r := range rep.Rows {
		per := func(bytes int64) string { return perConn(bytes, r.Count) }
		fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%s\t%s\t%.1f\t\n", r.What, r.Count,
			per(r.Mem.Heap), per(r.Mem.Scan), per(r.Mem.RSS), per(r.Mem.RSSFreed), per(r.Peak), r.Turn.Seconds()*1e3)
	}
	t.Flush()
	for _, r := range rep.Rows {
		fmt.Printf("\n%s, bytes each by who allocated them:\n", r.What)
		printSites(r)
	}
	if len(rep.Phases) > 0 {
		fmt.Fprintln(t, "\nphase\trounds\tms\tcollections\tms each\tpauses\tlongest µs\t")
	}
	for _, p := range rep.Phases {
		fmt.Fprintf(t, "%s\t%d\t%.0f\t%d\t%.2f\t%d\t%.0f\t\n", p.What, p.Rounds, p.Took.Seconds()*1e3, p.GCs,
			p.GCTime.Seconds()*1e3, p.Pauses.Count, p.Pauses.Max.Seconds()*1e6)
	}
	t.Flush()
	for _, p := range rep.Phases {
		if lines := traceOf(trace, p.What); len(lines) > 0 {
			fmt.Printf("\n%s, the last of %d lines of gctrace:\n%s\n", p.What, len(lines), lines[len(lines)-1])
		}
	}
	for _, note := range rep.Notes {
		fmt.Println("\n" + note)
	}
}

// printSites lists where the bytes were allocated, the most first; what is less than half a byte a connection is left
// out.
func printSites(r row) {
	var names []string
	for f, n := range r.Mem.Sites {
		if 2*max(n, -n) >= int64(r.Count) {
			names = append(names, f)
		}
	}
	sort.Slice(names, func(i, j int) bool { return r.Mem.Sites[names[i]] > r.Mem.Sites[names[j]] })
	rest := r.Mem.Heap
	for _, f := range names {
		fmt.Printf("%8s  %s\n", perConn(r.Mem.Sites[f], r.Count), f)
		rest -= r.Mem.Sites[f]
	}
	fmt.Printf("%8s  others\n", perConn(rest, r.Count))
}

// traceOf gives the lines of the collector's trace within a phase.
func traceOf(trace, phase string) (lines []string) {
	in := false
	for line := range strings.Lines(trace) {
		line = strings.TrimSpace(line)
		if what, ok := strings.CutPrefix(line, "phase "); ok || line == "phase" {
			in = what == phase
		} else if in && strings.HasPrefix(line, "gc ") {
			lines = append(lines, line)
		}
	}
	return lines
}
