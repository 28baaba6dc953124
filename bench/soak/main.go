// Command soak drives the engine flat out for as long as one wants, and accounts for every packet and every byte of memory:
//
//	go run ./bench/soak [-for 30m] [-every 10s]
//
// A source in the kernel (xdpprog.Source) sends UDP through a veth pair as fast as it can; a handler on the reactor sends
// each datagram back, to a sink in the kernel (xdpprog.Sink). Beside them kernel sockets open TCP connections to the
// engine, and compare what comes back byte for byte. Every so often everything comes to rest, and the books of all that
// a packet passed must agree to the packet: check says where they do not. At the end the last quarter must hold no more
// memory, descriptors and goroutines than the first. ../README.md says more. Needs root.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"
)

func main() {
	o := options{out: os.Stdout}
	flag.DurationVar(&o.length, "for", 30*time.Minute, "how long")
	flag.DurationVar(&o.every, "every", 10*time.Second, "how long traffic runs between two balances")
	flag.IntVar(&o.conns, "conns", 4, "TCP connections beside the UDP traffic")
	flag.IntVar(&o.size, "size", 64, "bytes of a UDP frame, with the Ethernet checksum")
	flag.IntVar(&o.flows, "flows", 1000, "UDP flows")
	flag.Float64Var(&o.rate, "rate", 0, "UDP frames/s, 0: as fast as possible")
	flag.BoolVar(&o.ledger, "ledger", true, "check the owner of every frame at every step")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintf(os.Stderr, "soak: %v\n", err)
		os.Exit(1)
	}
}

// run soaks until the time is over, a balance is off, or ctx ends, which is an error.
func run(ctx context.Context, o options) (err error) {
	w, err := newWorld(o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.startTCP(ctx); err != nil {
		return err
	}
	var held []holding
	before := books{}
	for start, last := time.Now(), false; !last; {
		begun := time.Now()
		flood := min(o.every, time.Until(start.Add(o.length)))
		last = start.Add(o.length).Before(begun.Add(flood + time.Millisecond))
		if err := w.flood(ctx, flood); err != nil {
			return err
		}
		took := time.Since(begun)
		b, err := w.settle(ctx)
		if err != nil {
			return err
		}
		h := w.hold(&b)
		held = append(held, h)
		fmt.Fprintln(o.out, line(time.Since(start), took, &before, &b, &h))
		before = b
	}
	fmt.Fprint(o.out, before.String())
	if before.sink.Frames == 0 || before.rounds == 0 {
		return errors.New("nothing came back, of UDP or of TCP: this was no soak")
	}
	if err := drift(held); err != nil {
		return fmt.Errorf("growth: %w", err)
	}
	fmt.Fprintf(o.out, "soak: %d balances exact, no growth\n", len(held))
	return nil
}
