package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

// server is one of those that are compared.
type server struct {
	name   string
	peer   bool     // peers/udpecho_kernel.c with args; else this program, run again with -serve
	args   []string // of the peer
	kernel bool     // uses the kernel's own stack, which then has the address
	only   []string // modes it takes part in; nil: all
}

func (s server) String() string { return s.name }

var servers = []server{
	{name: "xdpd"},
	{name: "xdpd-net"},
	{name: "asavie"},
	{name: "kernel", peer: true, kernel: true},
	// Spins where kernel sleeps: the engine spins too, so this is the fair opponent for latency. Under load it never
	// sleeps either way.
	{name: "kernel-spin", peer: true, args: []string{"-s"}, kernel: true, only: []string{"one", "one-spin"}},
	{name: "net", kernel: true},
}

// mode is how the load comes.
type mode struct {
	name    string
	args    []string // of udpload
	latency bool     // round-trip times are what counts; else datagrams a second
}

func (m mode) String() string { return m.name }

var modes = []mode{
	{name: "open"},
	{name: "open-gso", args: []string{"-g"}},
	{name: "window-64", args: []string{"-w", "64"}},
	{name: "one", args: []string{"-w", "1"}, latency: true},
	{name: "one-spin", args: []string{"-w", "1", "-s"}, latency: true},
}

// bench is one run of the program.
type bench struct {
	rounds   int
	seconds  float64
	noise    float64 // measure again while others take more than this percentage of the machine
	modes    []mode
	servers  []server
	profile  string
	progress io.Writer

	dir        string // of the built peers
	load, echo string // their paths
}

// load is what udpload prints.
type load struct {
	Sent       uint64
	SendErrors uint64 `json:"send_errors"`
	Received   uint64
	Late       uint64
	Bad        uint64
	Lost       uint64
	PPS        float64
	P50        float64 `json:"p50_ns"`
	P99        float64 `json:"p99_ns"`
}

// sample is one measurement.
type sample struct {
	load     load
	warm     load          // of the warm-up before it
	cpu      time.Duration // of the server's process, during the measurement
	others   float64       // share of the machine that other programs took meanwhile, 0 to 1
	counters counters      // of the server, warm-up included
}

// cpuPerPacket is the server's CPU time in ns for each datagram that came back.
func (s *sample) cpuPerPacket() float64 { return float64(s.cpu) / float64(s.load.Received) }

// build compiles the peers, which lie beside this file.
func (b *bench) build(ctx context.Context) (err error) {
	_, here, _, _ := runtime.Caller(0)
	cc, err := exec.LookPath("cc")
	if err != nil {
		return fmt.Errorf("no C compiler for the load source: install one (apt-get install gcc): %w", err)
	}
	if b.dir, err = os.MkdirTemp("", "xdpd-bench-"); err != nil {
		return err
	}
	b.load, b.echo = filepath.Join(b.dir, "udpload"), filepath.Join(b.dir, "udpecho_kernel")
	for _, out := range []string{b.load, b.echo} {
		source := filepath.Join(filepath.Dir(here), "peers", filepath.Base(out)+".c")
		text, err := exec.CommandContext(ctx, cc, "-O2", "-pthread", "-o", out, source).CombinedOutput()
		if err != nil {
			b.cleanUp()
			return fmt.Errorf("cc %s (bench runs from a source tree): %w: %s", source, err, bytes.TrimSpace(text))
		}
	}
	return nil
}

func (b *bench) cleanUp() { os.RemoveAll(b.dir) }

// run does all rounds. With an error it gives what was measured before it.
func (b *bench) run(ctx context.Context) (results, error) {
	res := results{}
	for round := range b.rounds {
		for _, m := range b.modes {
			for i := range b.servers {
				// Each round begins with another server, so that none is always the first.
				s := b.servers[(i+round)%len(b.servers)]
				if s.only != nil && !slices.Contains(s.only, m.name) {
					continue
				}
				got, err := b.measureUntilGood(ctx, s, m)
				if ctx.Err() != nil {
					return res, fmt.Errorf("interrupted in round %d", round+1)
				}
				if err != nil {
					return res, fmt.Errorf("round %d, %s, %s: %w", round+1, m, s, err)
				}
				res.add(m, s, got)
				fmt.Fprintf(b.progress, "round %d/%d  %-9s  %-11s  %s\n", round+1, b.rounds, m, s, got.describe(m))
			}
		}
	}
	return res, nil
}

// measureUntilGood measures again, a few times, if the result says more about the load source or the machine than about
// the server. If none is good, the one with the least of other programs in it counts.
func (b *bench) measureUntilGood(ctx context.Context, s server, m mode) (best sample, err error) {
	some := false
	for try := 1; ; try++ {
		if err := waitForQuiet(ctx, b.noise); err != nil {
			return best, err
		}
		got, err := b.measure(ctx, s, m)
		if err == nil && (!some || got.others < best.others) {
			some, best = true, got
		}
		switch {
		case err != nil && !errors.Is(err, errUseless):
			return best, err
		case err == nil && 100*got.others <= b.noise:
			return got, nil
		case try == tries && some:
			return best, nil
		case try == tries:
			return best, err
		case err == nil:
			err = fmt.Errorf("other programs took %.0f %% of the machine", 100*got.others)
		}
		fmt.Fprintf(b.progress, "again: %s, %s: %v\n", m, s, err)
	}
}

const tries = 4

var errUseless = errors.New("useless measurement")

// measure does one measurement, in a network of its own.
func (b *bench) measure(ctx context.Context, s server, m mode) (got sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, time.Duration(b.seconds*float64(time.Second))+30*time.Second)
	defer cancel()
	lab, err := netlab.New(netlab.Options{KernelAddr: s.kernel})
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	p, err := b.start(ctx, s, lab)
	if err != nil {
		return got, err
	}
	defer func() { err = errors.Join(err, p.stop(s, &got.counters)) }()

	if got.warm, err = b.warmUp(ctx, lab, m); err != nil {
		return got, err
	}
	before, err := readClocks(p.cmd.Process.Pid)
	if err != nil {
		return got, err
	}
	var own time.Duration
	if got.load, own, err = b.runLoad(ctx, lab, m, b.seconds); err != nil {
		return got, err
	}
	after, err := readClocks(p.cmd.Process.Pid)
	if err != nil {
		return got, err
	}
	got.cpu = after.cpu - before.cpu
	own += after.user - before.user
	got.others = max(0, float64(after.all-before.all-own)/float64(after.at.Sub(before.at))/float64(runtime.NumCPU()))
	return got, got.load.check()
}

// warmUp runs the load for a moment: addresses resolved, caches warm. It does so until there are replies, for an interface
// that was just set up may drop everything for a second (net/core/link_watch.c).
func (b *bench) warmUp(ctx context.Context, lab *netlab.Lab, m mode) (sum load, err error) {
	for try := 0; try < 10 && sum.Received == 0; try++ {
		l, _, err := b.runLoad(ctx, lab, m, min(0.3, b.seconds))
		if err != nil {
			return sum, err
		}
		sum.Sent, sum.Received = sum.Sent+l.Sent, sum.Received+l.Received
	}
	return sum, nil
}

// check finds results that are none.
func (l *load) check() error {
	switch {
	case l.SendErrors > l.Sent/10:
		return fmt.Errorf("%w: the load source could not send %d of %d datagrams", errUseless, l.SendErrors, l.Sent+l.SendErrors)
	case l.Bad > 0:
		return fmt.Errorf("%d replies were not what was sent", l.Bad)
	case l.Received == 0: // a machine with much else to do can starve either side
		return fmt.Errorf("%w: no reply to %d datagrams", errUseless, l.Sent)
	}
	return nil
}

// runLoad runs udpload in the peer's namespace, and tells how long that was on a CPU in user mode.
func (b *bench) runLoad(ctx context.Context, lab *netlab.Lab, m mode, seconds float64) (l load, user time.Duration, err error) {
	args := append([]string{"-a", lab.EngineAddr.String(), "-p", strconv.Itoa(port), "-t", fmt.Sprint(seconds)}, m.args...)
	var out, complaint bytes.Buffer
	cmd := exec.CommandContext(ctx, b.load, args...)
	cmd.Stdout, cmd.Stderr = &out, &complaint
	if err := lab.Peer.Start(cmd); err != nil {
		return l, 0, err
	}
	if err := cmd.Wait(); err != nil {
		return l, 0, fmt.Errorf("udpload: %w: %s", err, bytes.TrimSpace(complaint.Bytes()))
	}
	if err := json.Unmarshal(out.Bytes(), &l); err != nil {
		return l, 0, fmt.Errorf("udpload printed %q: %w", out.Bytes(), err)
	}
	return l, cmd.ProcessState.UserTime(), nil
}

// process is a running server.
type process struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	stderr *bytes.Buffer
}

// start starts a server in the engine's namespace and waits until it is ready.
func (b *bench) start(ctx context.Context, s server, lab *netlab.Lab) (*process, error) {
	path, args := b.echo, append([]string{"-p", strconv.Itoa(port)}, s.args...)
	if !s.peer {
		var err error
		if path, err = os.Executable(); err != nil {
			return nil, err
		}
		prefix := fmt.Sprintf("%s/%d", lab.EngineAddr, lab.Subnet.Bits())
		args = []string{"-serve", s.name, "-dev", lab.EngineDev, "-addr", prefix, "-cpuprofile", b.profile}
	}
	p := &process{cmd: exec.CommandContext(ctx, path, args...), stderr: new(bytes.Buffer)}
	p.cmd.Stderr = p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	p.out = bufio.NewReader(out)
	if err := lab.Engine.Start(p.cmd); err != nil {
		return nil, err
	}
	if line, err := p.out.ReadString('\n'); line != "ready\n" {
		p.cmd.Process.Kill()
		return nil, fmt.Errorf("server did not start: %w: %s", errors.Join(err, p.cmd.Wait()), p.complaint())
	}
	return p, nil
}

// stop ends a server and takes its counters.
func (p *process) stop(s server, c *counters) error {
	if err := p.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return errors.Join(fmt.Errorf("server: %w", err), p.cmd.Wait())
	}
	line, err := io.ReadAll(p.out)
	if err = errors.Join(err, p.cmd.Wait()); err != nil {
		return fmt.Errorf("server: %w: %s", err, p.complaint())
	}
	if s.peer {
		err = c.fromPeer(line)
	} else {
		err = json.Unmarshal(line, c)
	}
	if err != nil {
		return fmt.Errorf("server printed %q: %w", line, err)
	}
	return nil
}

func (p *process) complaint() string { return strings.TrimSpace(p.stderr.String()) }
