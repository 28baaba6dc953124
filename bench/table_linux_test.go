package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

// TestMain lets the test's own binary be the servers that the bench starts, and the bench.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && slices.Contains([]string{"-serve", "-app", "-crowd", "table"}, os.Args[1]) {
		main()
		return
	}
	os.Exit(m.Run())
}

// newBench is for one short round of some rows.
func newBench(t *testing.T, only string) *bench {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	b, _, err := parseTable([]string{"-rounds", "1", "-seconds", "0.2", "-noise", "100", "-only", only, "-conns", "10000"})
	if err != nil {
		t.Fatal(err)
	}
	b.progress = t.Output()
	if b.builder, err = newBuilder(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.builder.cleanUp)
	return b
}

// measured does one measurement with some contenders.
func measured(t *testing.T, m *measurement, names ...string) map[string]sample {
	t.Helper()
	b := newBench(t, "*")
	got := make(map[string]sample)
	for _, name := range names {
		s, err := b.measureUntilGood(t.Context(), m, contenderOf(name))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got[name] = s
	}
	return got
}

// checkCounts compares what the client and the server say about the same datagrams.
func checkCounts(t *testing.T, name string, s sample) {
	t.Helper()
	c := s.counters
	sent, received := s.warm.sent+s.load.sent, s.warm.received+s.load.received
	if s.load.done == 0 || s.load.rate <= 0 || s.cpu <= 0 {
		t.Errorf("%s: %v replies, %v Mpps, CPU time %v", name, s.load.done, s.load.rate, s.cpu)
	}
	if c.Delivered == 0 { // those in C count frames alone
		c.Delivered, c.Sent = c.FramesIn, c.FramesOut
	}
	const asked = 10 // until it answered
	if received > c.Sent || c.Sent > c.Delivered || c.Delivered > sent+asked {
		t.Errorf("%s: not in falling order: client sent %d, server took %d and sent %d, client received %d",
			name, sent, c.Delivered, c.Sent, received)
	}
	dropped := uint64(0)
	for why, n := range c.Drops {
		if !strings.HasPrefix(why, "kernel_") { // those never came in
			dropped += n
		}
	}
	if c.FramesIn != c.ARP+c.Delivered+dropped {
		t.Errorf("%s: %d frames in, but %d ARP, %d delivered, %d dropped (%v)", name, c.FramesIn, c.ARP, c.Delivered, dropped, c.Drops)
	}
	if c.FramesOut < c.Sent {
		t.Errorf("%s: %d datagrams sent in %d frames", name, c.Sent, c.FramesOut)
	}
}

func TestWindow(t *testing.T) {
	got := measured(t, measurementOf("udp-window"), "xdpd", "xdpd-net", "asavie", "kernel-c", "net", "client-net", "client-ring", "client-c")
	for name, s := range got {
		checkCounts(t, name, s)
		if s.load.p50 <= 0 || s.load.p99 < s.load.p50 {
			t.Errorf("%s: p50 %f µs, p99 %f µs", name, s.load.p50, s.load.p99)
		}
	}
	for _, name := range []string{"xdpd", "xdpd-net", "asavie", "client-net", "client-ring", "client-c"} {
		if c := got[name].counters; c.Mode != "copy, native" || c.ARP == 0 || c.Syscalls == 0 {
			t.Errorf("%s: mode %q, %d ARP frames, %d system calls", name, c.Mode, c.ARP, c.Syscalls)
		}
	}
}

// TestFlood: what is lost must be lost before or at a place that counts.
func TestFlood(t *testing.T) {
	for name, s := range measured(t, measurementOf("udp-open"), "xdpd", "kernel-c") {
		if s.load.done > float64(s.load.received) {
			t.Errorf("%s: %v replies in a part of the time, %d in all of it", name, s.load.done, s.load.received)
		}
		checkCounts(t, name, s)
	}
	for name, s := range measured(t, measurementOf("raw-tx"), "raw") {
		if s.load.done == 0 || s.load.done > float64(s.counters.FramesOut) {
			t.Errorf("%s: %v frames came, %d were sent", name, s.load.done, s.counters.FramesOut)
		}
	}
}

// TestTCPWorks has every contender of this program do every TCP work for a moment.
func TestTCPWorks(t *testing.T) {
	for _, m := range []string{"tcp-rr", "tcp-accept", "bulk-1500-in", "bulk-1500-out"} {
		for name, s := range measured(t, measurementOf(m), "xdpd", "xdpd-net", "asavie", "net", "kernel-c") {
			if s.load.rate <= 0 || s.load.done == 0 || s.cpu <= 0 {
				t.Errorf("%s: %s: %+v", m, name, s)
			}
		}
	}
}

// TestTable is the whole program, on cheap rows, as a process of its own: what it prints, what it writes, what is left.
func TestTable(t *testing.T) {
	newBench(t, "*") // which makes sure of root
	dir := t.TempDir()
	file := filepath.Join(dir, "out.json")
	before := leftovers(t, dir)
	cmd := benchCommand(t.Context(), dir, "-only", "idle-*,raw-tx", "-json", file)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, cmd.Stderr)
	}
	for _, want := range []string{"copy, native", kernelRelease(), "idle-first xdpd p50", "raw-tx raw rate", "250 bytes"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("it does not say %q:\n%s", want, out)
		}
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var entries []entry
	if err := json.Unmarshal(text, &entries); err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Rounds != 1 || e.Setup == nil || e.Setup.Hash != e.Setup.hash() {
			t.Errorf("%+v, %+v", e, e.Setup)
		}
	}
	if after := leftovers(t, dir); !slices.Equal(before, after) {
		t.Errorf("left behind: %v, before %v", after, before)
	}
}

// benchCommand is the bench as a process that keeps its temporary files in a folder.
func benchCommand(ctx context.Context, dir string, args ...string) *exec.Cmd {
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.CommandContext(ctx, exe, slices.Concat([]string{
		"table", "-rounds", "1", "-seconds", "0.2", "-noise", "100", "-conns", "10000",
	}, args)...)
	cmd.Env = append(os.Environ(), "TMPDIR="+dir)
	cmd.Stderr = new(bytes.Buffer)
	return cmd
}

// leftovers are what a bench whose temporary folder is dir may have left: processes that it started, or files.
func leftovers(t *testing.T, dir string) []string {
	t.Helper()
	files, err := filepath.Glob(dir + "/xdpd-bench-*")
	if err != nil {
		t.Fatal(err)
	}
	environments, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range environments {
		if text, err := os.ReadFile(name); err == nil && bytes.Contains(text, []byte("TMPDIR="+dir)) {
			files = append(files, name)
		}
	}
	return files
}

// TestInterrupted ends the bench by a signal while a server runs. Its namespaces have no names: they go with the processes.
func TestInterrupted(t *testing.T) {
	newBench(t, "*")
	for _, sig := range []os.Signal{unix.SIGINT, unix.SIGTERM, unix.SIGKILL} {
		dir := t.TempDir()
		cmd := benchCommand(t.Context(), dir, "-only", "udp-rtt", "-seconds", "100")
		progress, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		pid := cmd.Process.Pid
		waitFor(t, func() bool { return len(childrenOf(t, pid)) > 1 }) // a server and its load
		children := childrenOf(t, pid)
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(progress).ReadString(0); err == nil {
			t.Error("it goes on")
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v: it ended well", sig)
		}
		waitFor(t, func() bool {
			return !slices.ContainsFunc(children, func(pid string) bool {
				_, err := os.Stat("/proc/" + pid)
				return err == nil
			})
		})
		if left := leftovers(t, dir); len(left) > 0 && sig != unix.SIGKILL { // nobody can clean up after that
			t.Errorf("%v: left behind: %v", sig, left)
		}
	}
}

// TestWrapper: bench/run passes on what it is told, and how it ends.
func TestWrapper(t *testing.T) {
	newBench(t, "*")
	dir := t.TempDir()
	run := func(args ...string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "./run", args...)
		cmd.Env = append(os.Environ(), "TMPDIR="+dir)
		return cmd
	}
	if out, err := run("--list", "--only", "http").CombinedOutput(); err != nil || !strings.Contains(squeezed(string(out)), "| http | net |") {
		t.Errorf("%v: %s", err, out)
	}
	if out, err := run("--only", "sctp").CombinedOutput(); err == nil || !strings.Contains(string(out), "no row is called sctp") {
		t.Errorf("%v: %s", err, out)
	}
	cmd := run("--only", "udp-rtt", "--rounds", "1", "--seconds", "100", "--noise", "100")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var bench []string
	waitFor(t, func() bool { // a server and its load are there
		bench = childrenOf(t, cmd.Process.Pid)
		if len(bench) != 1 {
			return false
		}
		pid, err := strconv.Atoi(bench[0])
		return err == nil && len(childrenOf(t, pid)) > 1
	})
	if err := cmd.Process.Signal(unix.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it ended well")
	}
	if _, err := os.Stat("/proc/" + bench[0]); err == nil {
		t.Error("the bench goes on")
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		t.Errorf("left behind: %s", f.Name())
	}
}

// childrenOf are the processes that a process has started.
func childrenOf(t *testing.T, pid int) []string {
	t.Helper()
	var all []string
	lists, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range lists {
		text, _ := os.ReadFile(name) // a thread may have ended
		all = append(all, strings.Fields(string(text))...)
	}
	return all
}

// waitFor waits for a state; it gives up when the test's time is over.
func waitFor(t *testing.T, state func() bool) {
	t.Helper()
	for !state() {
		if t.Context().Err() != nil {
			t.Fatal("it does not come")
		}
		nap(1e6)
	}
}

// TestServerFails has a server that cannot start: its own words must come out, and its rows say them.
func TestServerFails(t *testing.T) {
	b := newBench(t, "bulk-9000-in")
	m := &measurement{name: "udp-open", work: "udp-echo", load: udpload(), lab: netlab.Options{MTU: 9000}}
	_, err := b.measure(t.Context(), m, &contender{name: "nobody"})
	if !errors.Is(err, errCannot) || !strings.Contains(err.Error(), "no such server") {
		t.Errorf("%v", err)
	}
	_, err = b.measure(t.Context(), m, &contender{name: "uring", source: "peers/none.c"})
	if !errors.Is(err, errCannot) || !strings.Contains(err.Error(), "no none.c") {
		t.Errorf("%v", err)
	}
}

// TestCrowd: all segments arrive.
func TestCrowd(t *testing.T) {
	r, err := crowdRate(100, 0.02)
	if err != nil || r.Segments == 0 || r.Seconds < 0.02 {
		t.Errorf("%+v, %v", r, err)
	}
}
