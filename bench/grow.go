package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/sockets"
)

// curve is how the engine's rate changes while there is more and more of something.
type curve struct {
	name   string
	points []int
	at     func(n int) *measurement
}

var curves = []curve{
	{"grow-flows", []int{1, 100, 10_000, 1_000_000}, func(n int) *measurement {
		return &measurement{work: "udp-echo", load: flood{flows: n, strangers: true}}
	}},
	{"grow-sockets", []int{1, 100, 10_000, 100_000}, func(n int) *measurement {
		return &measurement{work: "udp-echo", load: flood{ports: n}, serve: []string{"-ports", strconv.Itoa(n)}}
	}},
	{"grow-conns", []int{10, 1000, 100_000, 1_000_000}, func(n int) *measurement {
		return &measurement{load: crowded(n)}
	}},
	{"grow-rules", []int{1, 100, 10_000}, func(n int) *measurement {
		return &measurement{
			work: "udp-echo", load: flood{}, serve: []string{"-rules", strconv.Itoa(n)}, lab: netlab.Options{KernelAddr: true},
		}
	}},
	// The generator's frames all come on the queue of its CPU: here it takes sockets, whose flows are spread.
	{"grow-reactors", []int{1, 2, 4, 8}, func(n int) *measurement {
		return &measurement{work: "udp-echo", load: udpload("-g", "-f", "64"), lab: netlab.Options{Queues: n}}
	}},
}

// measurements are those of the points.
func (c *curve) measurements() []*measurement {
	var out []*measurement
	for _, n := range c.points {
		m := c.at(n)
		m.name, m.unit = c.point(n), "Mpps"
		m.cold = true
		out = append(out, m)
	}
	return out
}

func (c *curve) point(n int) string { return fmt.Sprintf("%s %d", c.name, n) }

// rows compare each point with the first.
func (c *curve) rows() []row {
	var out []row
	first := c.point(c.points[0])
	for _, n := range c.points[1:] {
		out = append(out, row{name: c.name, on: c.point(n), q: rate, one: "xdpd", other: "xdpd", than: first})
	}
	return out
}

// grown has what the curves need beside the rows.
func grown() (ms []*measurement, more []row) {
	for _, c := range curves {
		ms, more = append(ms, c.measurements()...), append(more, c.rows()...)
	}
	return ms, more
}

// crowded is so many TCP connections behind a simulated NIC, for no kernel has memory for the other end of a million: ten
// segments of eight bytes a turn come on random ones, and a handler on the reactor reads them. The peer that makes the segments is in the rate.
type crowded int

func (l crowded) run(ctx context.Context, at *site, seconds float64) (o outcome, err error) {
	exe, err := os.Executable()
	if err != nil {
		return o, err
	}
	cmd := exec.CommandContext(ctx, exe, "-crowd", strconv.Itoa(int(l)), fmt.Sprint(seconds))
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return o, err
	}
	var r crowdResult
	if err := json.Unmarshal(out, &r); err != nil {
		return o, fmt.Errorf("-crowd printed %q: %w", out, err)
	}
	return outcome{rate: float64(r.Segments) / r.Seconds / 1e6, done: float64(r.Segments), user: cmd.ProcessState.UserTime()}, nil
}

// crowdResult is what -crowd prints.
type crowdResult struct {
	Segments uint64
	Seconds  float64
}

// runCrowd is what runs behind -crowd CONNECTIONS SECONDS.
func runCrowd(args []string) error {
	if len(args) != 2 {
		return errors.New("-crowd CONNECTIONS SECONDS")
	}
	n, err := strconv.Atoi(args[0])
	if err != nil {
		return err
	}
	seconds, err := strconv.ParseFloat(args[1], 64)
	if err != nil {
		return err
	}
	r, err := crowdRate(n, seconds)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(r)
}

// crowdActive is how many connections have a segment in a turn: as many as there are at least.
const crowdActive = 10

func crowdRate(n int, seconds float64) (r crowdResult, err error) {
	skipped := int64(0)
	c, err := newCrowd(withPoller, n, func() int64 { return reactor.Monotonic() + skipped }, func(ns int64) { skipped += ns })
	if err != nil {
		return r, err
	}
	defer func() { err = errors.Join(err, c.close()) }()
	var buf [4096]byte
	_, _, _ = c.r.Enter()
	c.p.Serve(func(h *sockets.Host, now int64, e reactor.Event) {
		k, errno := h.TCPRead(e.Sock, buf[:], now)
		if errno != 0 {
			err = fmt.Errorf("connection %d: %w", e.Data, errno)
		}
		r.Segments += uint64(k) / crowdData
	})
	c.r.Leave()
	rng, sent := rand.New(rand.NewPCG(1, uint64(n))), uint64(0)
	start := time.Now()
	for r.Seconds < seconds {
		first := rng.IntN(n)
		for i := range crowdActive { // all different, far from each other
			if !c.offer((first+i*(n/crowdActive))%n, crowdData) {
				return r, errUseless
			}
			sent++
		}
		c.turn(nil)
		if r.Seconds = time.Since(start).Seconds(); err != nil {
			return r, err
		}
	}
	if r.Segments != sent {
		return r, fmt.Errorf("%d segments were read, of %d", r.Segments, sent)
	}
	return r, nil
}
