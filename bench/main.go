// Command bench measures the engine against others on the same work: echoing UDP datagrams in frames of 64 bytes, over a
// veth pair between two network namespaces. README.md says what the rows mean.
//
//	go run ./bench [-quick] [-rounds N] [-seconds S] [-modes LIST] [-servers LIST] [-noise PERCENT]
//	    [-json FILE] [-cpuprofile FILE]
//	go run ./bench faults [-h]    # TCP over a wire with faults, against the kernel's
//	go run ./bench instructions [-h]    # what the stack executes for a segment, and for an event
//	go run ./bench latency [-h]    # from a frame in the RX ring to the handler
//
// It needs root and a C compiler. The servers are processes of their own: the bench itself, run again with -serve, or
// peers/udpecho_kernel.c. The load is peers/udpload.c.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

func main() {
	err := run(os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if len(args) > 0 && args[0] == "-serve" {
		return serve(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "faults" {
		return runFaults(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "instructions" {
		return runInstr(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "latency" {
		return runLatency(ctx, args[1:])
	}
	b, jsonFile, err := parse(args)
	if err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("network namespaces and AF_XDP need root")
	}
	if err := b.build(ctx); err != nil {
		return err
	}
	defer b.cleanUp()
	res, err := b.run(ctx)
	if len(res) == 0 {
		return err
	}
	ratios := res.ratios() // of a run that was interrupted as well
	fmt.Printf("%s\n\n%s\n%s", b.header(res), res.absolutes(), ratioTable(ratios))
	if jsonFile == "" {
		return err
	}
	text, failed := json.MarshalIndent(ratios, "", "  ")
	if failed == nil {
		failed = os.WriteFile(jsonFile, append(text, '\n'), 0o644)
	}
	return errors.Join(err, failed)
}

// parse reads the command line.
func parse(args []string) (b *bench, jsonFile string, err error) {
	b = &bench{progress: os.Stderr}
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&b.rounds, "rounds", 7, "rounds; in each, every server does every mode once")
	quick := f.Bool("quick", false, "3 rounds")
	f.Float64Var(&b.seconds, "seconds", 2, "length of one measurement")
	f.Float64Var(&b.noise, "noise", 5, fmt.Sprintf("measure again, at most %d times, while other programs take more than this percentage of the machine", tries-1))
	modeList := f.String("modes", "", "modes, with commas between (default all: "+names(modes)+")")
	serverList := f.String("servers", "", "servers, with commas between (default all: "+names(servers)+")")
	f.StringVar(&jsonFile, "json", "", "write the ratios to this file")
	f.StringVar(&b.profile, "cpuprofile", "", "write a CPU profile of the server to this file (one server in Go, one mode, one round)")
	if err := f.Parse(args); err != nil {
		return nil, "", err
	}
	if *quick {
		b.rounds = 3
	}
	if b.modes, err = choose(modes, *modeList); err != nil {
		return nil, "", fmt.Errorf("-modes: %w", err)
	}
	if b.servers, err = choose(servers, *serverList); err != nil {
		return nil, "", fmt.Errorf("-servers: %w", err)
	}
	switch {
	case f.NArg() > 0:
		return nil, "", fmt.Errorf("what is %q?", f.Arg(0))
	case b.rounds < 1 || b.seconds <= 0:
		return nil, "", errors.New("-rounds and -seconds must be positive")
	case b.profile != "" && (len(b.servers) != 1 || b.servers[0].peer || len(b.modes) != 1 || b.rounds != 1):
		return nil, "", errors.New("-cpuprofile goes with one server in Go, one mode and -rounds 1")
	}
	return b, jsonFile, nil
}

// choose finds the named ones of all, in the order of all.
func choose[T fmt.Stringer](all []T, list string) ([]T, error) {
	if list == "" {
		return all, nil
	}
	wanted := strings.Split(list, ",")
	var chosen []T
	for _, t := range all {
		if slices.Contains(wanted, t.String()) {
			chosen = append(chosen, t)
		}
	}
	if len(chosen) != len(wanted) {
		return nil, fmt.Errorf("%s: there are %s", list, names(all))
	}
	return chosen, nil
}

func names[T fmt.Stringer](all []T) string {
	var s []string
	for _, t := range all {
		s = append(s, t.String())
	}
	return strings.Join(s, ",")
}
