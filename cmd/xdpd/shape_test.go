package main

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xdpd"
	"xdpd/reactor"
)

func TestShapeOfFlags(t *testing.T) {
	path := writeConfig(t, "interface = \"a\"\naddresses = [\"10.0.0.2/24\"]\nreactors = 3\naccept = \"main\"\nspread = \"least-conns\"\n")
	for _, c := range []struct {
		cmd     runCmd
		loops   int
		spread  bool
		workers int
		fails   string
	}{
		{runCmd{Config: path}, 3, true, 0, ""},
		{runCmd{Config: path, Reactors: 2, Spread: "round-robin"}, 2, true, 0, ""},
		{runCmd{Config: path, Accept: "each"}, 0, false, 0, "have main accept (--accept main)"},
		{runCmd{Accept: "main"}, 0, true, 0, ""},
		{runCmd{Accept: "workers"}, 0, false, workersEach, ""},
		{runCmd{Accept: "each"}, 0, false, 0, ""},
		{runCmd{}, 0, false, 0, ""},
		{runCmd{Spread: "least-conns"}, 0, false, 0, "have main accept (--accept main)"},
		{runCmd{Reactors: -1}, 0, false, 0, "reactors has -1"},
	} {
		f, err := c.cmd.merge()
		if err != nil {
			t.Fatal(err)
		}
		cfg, err := f.stackConfig()
		if c.fails != "" {
			if err == nil || !strings.Contains(err.Error(), c.fails) {
				t.Errorf("%+v: %v, want %q", c.cmd, err, c.fails)
			}
			continue
		}
		if err != nil || cfg.Reactors != c.loops || (cfg.Spread != nil) != c.spread || f.workers() != c.workers {
			t.Errorf("%+v: %v, %d reactors, a spread: %v, %d workers", c.cmd, err, cfg.Reactors, cfg.Spread != nil, f.workers())
		}
	}
}

// TestReactorsCommand tells and changes the number, over the control socket, and passes refusals on.
func TestReactorsCommand(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	loops := 4
	stats := func() (xdpd.Stats, error) {
		return xdpd.Stats{Interface: "eth1", Loops: loops, Queues: make([]xdpd.QueueStats, 4)}, nil
	}
	resize := func(n int) error {
		if n < 1 || n > 4 {
			return errors.New("there can be 1 to 4")
		}
		loops = n
		return nil
	}
	end, err := serveAnswers(t.Context(), path, answers{stats, func() []serviceView { return nil }, (&services{}).drainBackend, resize, nil, nil})
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	for _, c := range []struct{ n, iface, want string }{
		{"", "", "4 queues run by 4 reactors"}, {"1", "", ""}, {"", "", "4 queues run by 1 reactor"},
		{"3", "eth1", ""}, {"eth1", "", "4 queues run by 3 reactors"},
		{"5", "", "error: there can be 1 to 4"}, {"-1", "", "error: there can be 1 to 4"}, {"0", "", "error: there can be 1 to 4"},
		{"eth1", "2", "error: xdpd reactors 2 eth1"}, {"two", "", "error: not on two"}, {"", "", "4 queues run by 3 reactors"},
	} {
		var out bytes.Buffer
		err := (&reactorsCmd{Number: c.n, Interface: c.iface, Control: path}).run(t.Context(), &out)
		if want, fails := strings.CutPrefix(c.want, "error: "); fails {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%+v: %v", c, err)
			}
		} else if err != nil || strings.TrimSpace(out.String()) != c.want {
			t.Errorf("%+v: %v, %q", c, err, &out)
		}
	}
	if _, err := callControl(t.Context(), path, "POST", "/reactors?n=many"); err == nil || !strings.Contains(err.Error(), "POST /reactors?n=2") {
		t.Errorf("a word instead of a number: %v", err)
	}
}

// TestStallLog: a line names reactor, time and handler; a flood of stalls is one line.
func TestStallLog(t *testing.T) {
	var out bytes.Buffer
	log := stallLog(&out)
	for range 100 {
		log(reactor.Stall{Reactor: 3, Handler: "main.block", For: 12345678 * time.Nanosecond})
	}
	if got, want := out.String(), "xdpd: reactor 3 stalls for 12ms: main.block does not return\n"; got != want {
		t.Errorf("logged %q", got)
	}
	out.Reset()
	stallLog(&out)(reactor.Stall{})
	if !strings.Contains(out.String(), "no handler runs") {
		t.Errorf("logged %q", &out)
	}
}
