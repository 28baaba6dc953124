package main

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"sync"
	"time"

	"xdpd/reactor"
)

// Shapes of a group of reactors, as accept has them; "" is each.
const (
	acceptEach    = "each"    // every reactor accepts what its queue receives
	acceptMain    = "main"    // the first one accepts for all
	acceptWorkers = "workers" // as each, and workers serve the connections
)

// workersEach is how many workers serve the connections of one reactor.
const workersEach = 4

var spreads = map[string]reactor.Spread{
	"": reactor.RoundRobin, "round-robin": reactor.RoundRobin, "least-conns": reactor.LeastConns,
}

// spreads is what the library is to do with new connections.
func (f *fileConfig) spreads() (reactor.Spread, error) {
	spread, ok := spreads[f.Spread]
	switch {
	case f.Accept != "" && f.Accept != acceptEach && f.Accept != acceptMain && f.Accept != acceptWorkers:
		return nil, fmt.Errorf("accept is %q; there are each, main and workers", f.Accept)
	case !ok:
		return nil, fmt.Errorf("spread is %q; there are round-robin and least-conns", f.Spread)
	case f.Accept == acceptMain:
		return spread, nil
	case f.Spread != "":
		return nil, fmt.Errorf("spread is %q where the device spreads the connections: leave it out, or have main accept (--accept main)",
			f.Spread)
	}
	return nil, nil
}

// workers is how many there are beside each reactor.
func (f *fileConfig) workers() int {
	if f.Accept == acceptWorkers {
		return workersEach
	}
	return 0
}

// stallLog writes a line for a stall, and for what comes within a second of it none: a machine that is too busy for its
// reactors has other use for its time. xdpd stats counts them all.
func stallLog(out io.Writer) func(reactor.Stall) {
	var mu sync.Mutex
	var last time.Time
	return func(s reactor.Stall) {
		mu.Lock()
		defer mu.Unlock()
		if time.Since(last) < time.Second {
			return
		}
		last = time.Now()
		what := "no handler runs: the machine is busy, or somebody keeps the lock"
		if s.Handler != "" {
			what = s.Handler + " does not return"
		}
		fmt.Fprintf(out, "xdpd: reactor %d stalls for %v: %s\n", s.Reactor, s.For.Round(time.Millisecond), what)
	}
}

// reactorsCmd is xdpd reactors.
type reactorsCmd struct {
	Number    string `arg:"" optional:"" name:"n" help:"Goroutines that are to run the queues, 1 to the number of queues; left out: says how many do."`
	Interface string `arg:"" optional:"" name:"iface" help:"Interface of the engine; may be left out where only one runs."`
	Control   string `placeholder:"PATH" help:"Control socket to ask (default /run/xdpd/IFACE.sock)."`
}

// Help is shown by xdpd reactors --help.
func (*reactorsCmd) Help() string {
	return `Connections, queues and services stay as they are: only who runs them changes, between two turns.

Examples:
  xdpd reactors
  xdpd reactors 2
  xdpd reactors 2 eth1`
}

// Run implements the command.
func (c *reactorsCmd) Run() error {
	ctx, cancel := signalContext()
	defer cancel()
	return c.run(ctx, stdout)
}

func (c *reactorsCmd) run(ctx context.Context, out io.Writer) error {
	return tuning{
		value: c.Number, iface: c.Interface, control: c.Control,
		takes:  func(v string) bool { _, err := strconv.Atoi(v); return err == nil },
		order:  "the number of reactors comes first: xdpd reactors 2",
		change: "/reactors?n=", show: func(v *statsView) string {
			if v.NAPI.What == "" { // an older engine says nothing
				return v.shape()
			}
			return v.shape() + "\n" + v.napi()
		},
	}.run(ctx, out)
}

// shape says who runs what.
func (v *statsView) shape() string {
	return fmt.Sprintf("%s run by %s", plural(len(v.Queues), "queue"), plural(v.Loops, "reactor"))
}

// napi says who runs the NAPIs.
func (v *statsView) napi() string {
	n := 0
	for _, q := range v.Queues {
		if q.Drives {
			n++
		}
	}
	who := "the kernel"
	if n > 0 {
		who = fmt.Sprintf("the reactor on %d of %s", n, plural(len(v.Queues), "queue"))
	}
	return fmt.Sprintf("NAPI (%s): run by %s; %s", v.NAPI.Mode, who, v.NAPI.What)
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}
