package main

import (
	"os"
	"strings"
	"testing"
)

// TestMain lets the test's own binary be the server that the bench starts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "-serve" {
		main()
		return
	}
	os.Exit(m.Run())
}

// short runs one short round and gives the only sample of each server.
func short(t *testing.T, m string, list string) map[string]sample {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	b, _, err := parse([]string{"-rounds", "1", "-seconds", "0.2", "-noise", "100", "-modes", m, "-servers", list})
	if err != nil {
		t.Fatal(err)
	}
	b.progress = t.Output()
	if err := b.build(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.cleanUp)
	res, err := b.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got := make(map[string]sample)
	for name, samples := range res[m] {
		if len(samples) != 1 {
			t.Fatalf("%d samples of %s in one round", len(samples), name)
		}
		got[name] = samples[0]
	}
	if len(got) != strings.Count(list, ",")+1 {
		t.Fatalf("samples of %d servers, want %s", len(got), list)
	}
	return got
}

// checkCounts compares what the client and the server say about the same datagrams.
func checkCounts(t *testing.T, name string, s sample) {
	t.Helper()
	c := s.counters
	sent, received := s.warm.Sent+s.load.Sent, s.warm.Received+s.load.Received
	if s.load.Received == 0 || s.load.Bad != 0 || s.load.PPS <= 0 || s.cpu <= 0 {
		t.Errorf("%s: received %d, bad %d, %f a second, CPU time %v", name, s.load.Received, s.load.Bad, s.load.PPS, s.cpu)
	}
	if received > c.Sent || c.Sent > c.Delivered || c.Delivered > sent {
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
	got := short(t, "window-64", "xdpd,xdpd-net,asavie,kernel,net")
	for name, s := range got {
		checkCounts(t, name, s)
		if s.load.P50 <= 0 || s.load.P99 < s.load.P50 {
			t.Errorf("%s: p50 %f ns, p99 %f ns", name, s.load.P50, s.load.P99)
		}
	}
	for _, name := range []string{"xdpd", "xdpd-net", "asavie"} {
		if c := got[name].counters; c.Mode != "copy, native" || c.ARP == 0 || c.Syscalls == 0 {
			t.Errorf("%s: mode %q, %d ARP frames, %d system calls", name, c.Mode, c.ARP, c.Syscalls)
		}
	}
	res := results{"window-64": {"xdpd": {got["xdpd"]}, "kernel": {got["kernel"]}}}
	for _, work := range []string{"udp-echo-64 xdpd window-64 pps", "udp-echo-64 xdpd window-64 cpu"} {
		if r := findRatio(t, res.ratios(), work, "kernel"); r.Ratio <= 0 || r.Low != r.High {
			t.Errorf("%+v", r)
		}
	}
	b := bench{rounds: 1, seconds: .2}
	if h := b.header(res); !strings.Contains(h, "copy, native") || !strings.Contains(h, kernelRelease()) {
		t.Errorf("header %q", h)
	}
}

// TestOpenLoop floods; what is lost must be lost before or at a place that counts.
func TestOpenLoop(t *testing.T) {
	for _, m := range []string{"open", "open-gso"} {
		for name, s := range short(t, m, "xdpd,kernel") {
			checkCounts(t, m+" "+name, s)
		}
	}
}

func TestLatency(t *testing.T) {
	for name, s := range short(t, "one-spin", "xdpd,kernel-spin") {
		checkCounts(t, name, s)
		if s.load.P50 <= 0 {
			t.Errorf("%s: p50 %f ns", name, s.load.P50)
		}
	}
}

// TestServerFails has a server that cannot start: its own words must come out.
func TestServerFails(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	b, _, err := parse([]string{"-rounds", "1", "-seconds", "0.1", "-noise", "100", "-modes", "open"})
	if err != nil {
		t.Fatal(err)
	}
	b.progress = t.Output()
	b.servers = []server{{name: "nobody"}}
	if _, err := b.run(t.Context()); err == nil || !strings.Contains(err.Error(), "no such server") {
		t.Errorf("%v", err)
	}
}

func TestNoCompiler(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	b := bench{}
	if err := b.build(t.Context()); err == nil || !strings.Contains(err.Error(), "C compiler") {
		t.Errorf("%v", err)
	}
}
