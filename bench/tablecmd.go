package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"strings"
)

// tableFlags are what the command line says besides what a bench is.
type tableFlags struct {
	list     bool
	compare  []string // two files
	jsonFile string
	plots    string
}

// parseTable reads the command line.
func parseTable(args []string) (b *bench, o tableFlags, err error) {
	b = &bench{progress: os.Stderr, tries: tries}
	f := flag.NewFlagSet("bench table", flag.ContinueOnError)
	quick := f.Bool("quick", false, "3 rounds of 0.5 s, in less than five minutes")
	full := f.Bool("full", false, "9 rounds of 2 s, in less than an hour")
	only := f.String("only", "", "rows, as NAME or NAME/AGAINST, with commas between and * for anything (see -list)")
	f.BoolVar(&o.list, "list", false, "list the rows with what they are to reach")
	both := f.Bool("compare", false, "compare two JSON files, the old one and the new one")
	f.StringVar(&o.jsonFile, "json", "", "write the ratios to this file")
	f.StringVar(&o.plots, "plots", "", "draw the ratios into this folder")
	f.IntVar(&b.rounds, "rounds", 7, "rounds; in each, every contender does its work once")
	f.Float64Var(&b.seconds, "seconds", 1, "length of one measurement")
	f.Float64Var(&b.noise, "noise", 5, fmt.Sprintf("measure again, at most %d times, while other programs take more than this percentage of the machine", tries-1))
	f.IntVar(&b.conns, "conns", 1_000_000, "connections of idle-memory")
	f.StringVar(&b.profile, "cpuprofile", "", "write a CPU profile of the one who is compared to this file (one measurement, -rounds 1)")
	if err := f.Parse(args); err != nil {
		return nil, o, err
	}
	given := make(map[string]bool)
	f.Visit(func(f *flag.Flag) { given[f.Name] = true })
	preset := func(rounds int, seconds float64) {
		if !given["rounds"] {
			b.rounds = rounds
		}
		if !given["seconds"] {
			b.seconds = seconds
		}
	}
	if *quick {
		preset(3, .5)
		b.tries = 2
	}
	if *full {
		preset(9, 2)
	}
	if b.rows, err = chooseRows(rows, *only); err != nil {
		return nil, o, fmt.Errorf("-only: %w", err)
	}
	if *both {
		if o.compare = f.Args(); len(o.compare) != 2 {
			return nil, o, errors.New("-compare OLD.json NEW.json")
		}
		return b, o, nil
	}
	switch {
	case f.NArg() > 0:
		return nil, o, fmt.Errorf("what is %q?", f.Arg(0))
	case *quick && *full:
		return nil, o, errors.New("-quick or -full?")
	case b.rounds < 1 || b.seconds <= 0 || b.conns < 1:
		return nil, o, errors.New("-rounds, -seconds and -conns must be positive")
	}
	if ms, _ := players(b.rows); b.profile != "" && (len(ms) != 1 || b.rounds != 1) {
		return nil, o, fmt.Errorf("-cpuprofile goes with -rounds 1 and one measurement, not %d", len(ms))
	}
	return b, o, nil
}

// runTable is `bench table`.
func runTable(ctx context.Context, args []string) error {
	b, o, err := parseTable(args)
	if err != nil {
		return err
	}
	switch {
	case o.list:
		fmt.Print(listRows(b.rows))
		return nil
	case o.compare != nil:
		text, err := compareFiles(o.compare[0], o.compare[1])
		fmt.Print(text)
		return err
	case os.Geteuid() != 0:
		return errors.New("network namespaces and AF_XDP need root")
	}
	if b.builder, err = newBuilder(); err != nil {
		return err
	}
	defer b.builder.cleanUp()
	res, failed := b.run(ctx)
	if len(res.samples) == 0 {
		return failed
	}
	s, err := b.setup(res) // of a run that was interrupted as well
	if err != nil {
		return errors.Join(failed, err)
	}
	entries := res.entries(b.rows)
	for i := range entries {
		entries[i].Setup = s
	}
	fmt.Printf("%s\n\n%s\n%s", b.header(s, res), res.absolutes(), entryTable(entries))
	return errors.Join(failed, writeJSON(o.jsonFile, entries), b.plot(ctx, o.plots, entries))
}

func writeJSON(name string, entries []entry) error {
	if name == "" {
		return nil
	}
	text, err := json.MarshalIndent(entries, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(name, append(text, '\n'), 0o644)
}

// listRows shows what there is to measure.
func listRows(chosen []row) string {
	out := [][]string{{"row", "against", "work", "quantity", "at least", "stretch"}}
	for _, w := range chosen {
		r := entry{Better: w.better()}
		what := strings.TrimSpace(w.one + " " + measurementOf(w.on).work)
		out = append(out, []string{w.name, w.against(), what, w.q.name, r.bound(w.target), r.bound(w.stretch)})
	}
	return table(out)
}
