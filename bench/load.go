package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"xdpd/internal/netlab"
)

// load drives a contender from the other namespace, for some seconds.
type load interface {
	run(ctx context.Context, at *site, seconds float64) (outcome, error)
}

// site is where a load finds what it needs.
type site struct {
	lab     *netlab.Lab
	builder *builder
	pid     int // of the server
	conns   int // for memory
}

// outcome is what a load saw.
type outcome struct {
	rate     float64 // in the unit of the measurement
	done     float64 // requests, or kB: what CPU time is divided by
	p50, p99 float64 // µs; 0: not measured
	lost     float64 // share of what was sent
	busy     float64 // share of a core that the server took while nothing was asked of it
	bytes    float64 // a connection

	user time.Duration // that the load was on a CPU in user mode
	// Of a load by datagrams, for comparison with the server's counters.
	sent, received uint64

	window [2]clocks // at both ends of what counts, if that is not the whole run
}

var errUseless = errors.New("useless measurement")

// runProgram runs a load's program in the peer's namespace. It gives what the program printed, and how long it was on a CPU
// in user mode.
func runProgram(ctx context.Context, at *site, path string, args ...string) (out []byte, user time.Duration, err error) {
	var stdout, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &complaint
	if err := at.lab.Peer.Start(cmd); err != nil {
		return nil, 0, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, 0, fmt.Errorf("%s: %w: %s", cmd.Args[0], err, bytes.TrimSpace(complaint.Bytes()))
	}
	return stdout.Bytes(), cmd.ProcessState.UserTime(), nil
}

// runPeer runs one of the programs in peers/, and reads the JSON that it prints.
func runPeer(ctx context.Context, at *site, result any, source string, args ...string) (user time.Duration, err error) {
	path, err := at.builder.program(ctx, source)
	if err != nil {
		return 0, fmt.Errorf("%w build: %w", errCannot, err)
	}
	out, user, err := runProgram(ctx, at, path, args...)
	if err != nil {
		return 0, err
	}
	if err := json.Unmarshal(out, result); err != nil {
		return 0, fmt.Errorf("%s printed %q: %w", source, out, err)
	}
	return user, nil
}

// udp is peers/udpload.c: datagrams that come back.
type udp struct{ args []string }

func udpload(args ...string) load { return udp{args} }

func (l udp) run(ctx context.Context, at *site, seconds float64) (outcome, error) {
	var r udpResult
	args := append([]string{"-a", at.lab.EngineAddr.String(), "-p", strconv.Itoa(port), "-t", fmt.Sprint(seconds)}, l.args...)
	user, err := runPeer(ctx, at, &r, "peers/udpload.c", args...)
	if err != nil {
		return outcome{}, err
	}
	return outcome{
		rate: r.PPS / 1e6, done: float64(r.Received), p50: r.P50 / 1e3, p99: r.P99 / 1e3, user: user,
		lost: float64(r.Lost) / float64(max(1, r.Sent)), sent: r.Sent, received: r.Received,
	}, r.check()
}

// udpResult is what udpload prints.
type udpResult struct {
	Sent       uint64
	SendErrors uint64 `json:"send_errors"`
	Received   uint64
	Bad        uint64
	Lost       uint64
	PPS        float64
	P50        float64 `json:"p50_ns"`
	P99        float64 `json:"p99_ns"`
}

// check finds results that are none.
func (r *udpResult) check() error {
	switch {
	case r.SendErrors > r.Sent/10:
		return fmt.Errorf("%w: the load source could not send %d of %d datagrams", errUseless, r.SendErrors, r.Sent+r.SendErrors)
	case r.Bad > 0:
		return fmt.Errorf("%d replies were not what was sent", r.Bad)
	case r.Received == 0: // a machine with much else to do can starve either side
		return fmt.Errorf("%w: no reply to %d datagrams", errUseless, r.Sent)
	}
	return nil
}

// tcp is peers/tcpload.c.
type tcp struct {
	work string
	args []string
}

func tcpload(work string, args ...string) load { return tcp{work, args} }

func (l tcp) run(ctx context.Context, at *site, seconds float64) (outcome, error) {
	var r tcpResult
	args := append([]string{"-d", fmt.Sprint(seconds)}, l.args...)
	user, err := runPeer(ctx, at, &r, "peers/tcpload.c", append(args, l.work, at.lab.EngineAddr.String(), strconv.Itoa(port))...)
	if err != nil {
		return outcome{}, err
	}
	o := outcome{rate: r.PerSecond / 1e3, done: float64(r.Count), p50: r.P50 / 1e3, p99: r.P99 / 1e3, user: user}
	if strings.HasPrefix(l.work, "bulk") {
		o.rate, o.done = r.Mbit/1e3, float64(r.Bytes)/1e3
	}
	return o, r.check(o)
}

// tcpResult is what tcpload prints.
type tcpResult struct {
	Count     uint64
	PerSecond float64 `json:"per_second"`
	Bytes     uint64
	Mbit      float64 `json:"mbit_per_second"`
	P50       float64 `json:"p50_ns"`
	P99       float64 `json:"p99_ns"`
	Errors    uint64
	Bad       uint64
}

func (r *tcpResult) check(o outcome) error {
	switch {
	case r.Bad > 0:
		return fmt.Errorf("%d replies were not what was sent", r.Bad)
	case r.Errors > r.Count/100:
		return fmt.Errorf("%w: %d connections failed, %d did not", errUseless, r.Errors, r.Count)
	case o.done == 0:
		return fmt.Errorf("%w: nothing came back", errUseless)
	}
	return nil
}

// wrk is wrk(1), on the page /.
type wrk struct{ conns int }

func (l wrk) run(ctx context.Context, at *site, seconds float64) (outcome, error) {
	// It counts in whole seconds. One thread, for the other core is the server's.
	out, user, err := runProgram(ctx, at, "wrk", "-t1", fmt.Sprintf("-c%d", l.conns), fmt.Sprintf("-d%ds", int(math.Ceil(seconds))),
		"--latency", fmt.Sprintf("http://%s:%d/", at.lab.EngineAddr, port))
	if err != nil {
		return outcome{}, err
	}
	o, err := parseWrk(string(out))
	o.user = user
	return o, err
}

// parseWrk reads what wrk prints for a person.
func parseWrk(text string) (o outcome, err error) {
	number := func(s string) (v float64) {
		v, e := strconv.ParseFloat(s, 64)
		err = errors.Join(err, e)
		return v
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "Requests/sec:":
			o.rate = number(f[1]) / 1e3
		case len(f) > 2 && f[1] == "requests" && f[2] == "in":
			o.done = number(f[0])
		case len(f) == 2 && f[0] == "50%":
			o.p50, err = wrkTime(f[1])
		case len(f) == 2 && f[0] == "99%":
			o.p99, err = wrkTime(f[1])
		case strings.HasPrefix(strings.TrimSpace(line), "Socket errors:"), strings.HasPrefix(strings.TrimSpace(line), "Non-2xx"):
			return o, fmt.Errorf("%w: wrk says %s", errUseless, strings.TrimSpace(line))
		}
	}
	if err == nil && o.done == 0 {
		err = fmt.Errorf("%w: wrk says %q", errUseless, text)
	}
	return o, err
}

// wrkTime reads a time as wrk prints it, in µs.
func wrkTime(s string) (float64, error) {
	d, err := time.ParseDuration(s)
	return float64(d) / 1e3, err
}
