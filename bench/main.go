// Command bench measures the engine against others on the same work, over a veth pair between two network namespaces.
// README.md says what the rows mean.
//
//	go run ./bench [table] [-quick | -full] [-only NAME[,NAME]] [-json FILE] [-plots DIR] [-h]
//	go run ./bench [table] -list
//	go run ./bench [table] -compare OLD.json NEW.json
//	go run ./bench faults [-h]    # TCP over a wire with faults, against the kernel's
//	go run ./bench instructions [-h]    # what the stack executes for a segment, and for an event
//	go run ./bench latency [-h]    # from a frame in the RX ring to the handler
//
// It needs root and a C compiler; the wrapper run sees to the rest. Who is measured is a process of its own: the bench itself,
// run again with -serve, one of peers/, or gvisor/. So are most loads.
package main

import (
	"context"
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
	if len(args) > 0 && args[0] == "-app" {
		return runApp(ctx, args[1:])
	}
	if len(args) > 0 && args[0] == "-crowd" {
		return runCrowd(args[1:])
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
	if len(args) > 0 && args[0] == "table" {
		args = args[1:]
	}
	return runTable(ctx, args)
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
