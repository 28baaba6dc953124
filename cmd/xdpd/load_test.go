package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xdpd/cmd/xdpd/load"
)

// loadSides are the flags for load from the peer: an engine of its own beside the kernel's address there, and the kernel.
func (s *served) loadSides() map[string]loadCmd {
	addr := s.PeerAddr.Next().Next().Next()
	return map[string]loadCmd{
		"engine": {Interface: s.PeerDev, Address: []string{addr.String() + "/24"}, Netns: s.Peer.Path()},
		"kernel": {Kernel: true, Netns: s.Peer.Path(), Threads: 2},
	}
}

// loadRun runs the command to its end and gives the report.
func loadRun(t *testing.T, c loadCmd) (*load.Report, error) {
	t.Helper()
	cfg, err := c.config()
	if err == nil {
		err = errors.Join(cfg.Check(), c.checkSide())
	}
	if err != nil {
		t.Fatal(err)
	}
	side, end, err := c.side(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	c.JSON = true
	var out bytes.Buffer
	err = c.load(t.Context(), cfg, side, &out, false)
	if e := end(); e != nil {
		t.Error(e)
	}
	var r load.Report
	if e := json.Unmarshal(out.Bytes(), &r); e != nil {
		t.Fatalf("%v: %s", e, &out)
	}
	return &r, err
}

// TestLoadServices: each kind of load on the services of an engine, from another engine and from the kernel. Nothing fails,
// and nothing is left.
func TestLoadServices(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "thirteen"), []byte("Hello, world!"), 0o644); err != nil {
		t.Fatal(err)
	}
	s := serve(t, "echo,discard,hold=9001,source=5001:1M,http=80:"+dir)
	at := func(port int) string { return fmt.Sprintf("%v:%d", s.EngineAddr, port) }
	for side, from := range s.loadSides() {
		for _, c := range []struct {
			loadCmd
			responses, sent, received uint64 // sent 0: not known
		}{
			{loadCmd{Kind: "rr", Target: at(7), Connections: 64, Depth: 1, Count: "10000"}, 10000, 10000, 10000},
			{loadCmd{Kind: "rr", Target: at(7), Connections: 8, Depth: 8, Send: "3000", Count: "2K"}, 2048, 2048 * 3000, 2048 * 3000},
			{loadCmd{Kind: "rr", Target: at(7), Connections: 8, Depth: 1, Rate: 3000, Count: "600", Arrivals: "constant"}, 600, 600, 600},
			{loadCmd{Kind: "connect", Target: at(7), Connections: 16, Depth: 1, Send: "10", Count: "2000"}, 2000, 20000, 20000},
			{loadCmd{Kind: "connect", Target: at(9), Connections: 16, Depth: 1, Count: "500", Close: "fin"}, 500, 0, 0},
			{loadCmd{Kind: "bulk", Target: at(9), Connections: 4, Depth: 1, Count: "16M"}, 4, 16 << 20, 0},
			{loadCmd{Kind: "bulk", Target: at(5001), Connections: 4, Depth: 1, Direction: "receive", Verify: new(true), Count: "4M"}, 4, 0, 4 << 20},
			{loadCmd{Kind: "bulk", Target: at(7), Connections: 4, Depth: 1, Direction: "both", Verify: new(true), Count: "8M"}, 4, 8 << 20, 8 << 20},
			{loadCmd{Kind: "hold", Target: at(9001), Connections: 500, Depth: 1, Duration: 500 * time.Millisecond}, 500, 0, 0},
			{loadCmd{Kind: "http", Target: "http://" + at(80) + "/thirteen", Connections: 8, Depth: 1, Length: 13, Count: "1000"}, 1000, 0, 0},
			{loadCmd{Kind: "http", Target: "http://" + at(80) + "/none", Connections: 8, Depth: 1, Length: -1, Status: 404, Count: "100"}, 100, 0, 0},
			{loadCmd{Kind: "udp", Target: at(7), Connections: 4, Depth: 1, Send: "64", Count: "1000", AllowErrors: true}, 1000, 64000, 0},
		} {
			l := c.loadCmd
			l.Interface, l.Address, l.Netns, l.Kernel, l.Threads = from.Interface, from.Address, from.Netns, from.Kernel, from.Threads
			if l.Kind != "udp" {
				l.Timeout = 20 * time.Second
			}
			r, err := loadRun(t, l)
			lost := uint64(0)
			if l.Kind == "udp" { // a datagram may be lost
				lost = r.Errors["timeout"]
			}
			if err != nil || r.Responses+lost != c.responses || r.Requests != c.responses || c.sent > 0 && r.SentBytes != c.sent ||
				c.received > 0 && r.Received != c.received || lost > 100 {
				t.Errorf("%s: %s %s: %v\n%+v", side, l.Kind, l.Target, err, r)
			}
			s.restful(t)
		}
	}
}

// TestLoadFails: what is wrong is told by the exit, unless that is allowed.
func TestLoadFails(t *testing.T) {
	s := serve(t, "discard,source=5001:1M,echo")
	for side, from := range s.loadSides() {
		from.Connections, from.Depth, from.Timeout = 2, 1, 200*time.Millisecond
		for _, c := range []struct {
			kind, port, count string
			verify            bool
			want              string
		}{
			{"rr", "9", "2", true, "timeout 2"},
			{"rr", "5001", "2", true, "wrong_data"},
			{"connect", "99", "3", false, "refused 3"},
			{"bulk", "5001", "8M", true, "closed_early 2"},
			{"rr", "99", "2", true, "no connection could be opened"},
		} {
			l := from
			l.Kind, l.Target, l.Count, l.Verify = c.kind, fmt.Sprintf("%v:%s", s.EngineAddr, c.port), c.count, &c.verify
			if c.kind == "bulk" {
				l.Direction = "receive"
			}
			if _, err := loadRun(t, l); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s: %s to port %s: %v, want %s", side, c.kind, c.port, err, c.want)
			}
			l.AllowErrors = true
			// A source does not wait for a request: perhaps there is no connection to begin with.
			if _, err := loadRun(t, l); (err != nil) != (c.port == "99" && c.kind == "rr") && (err == nil || c.port != "5001") {
				t.Errorf("%s: %s to port %s: %v, with errors allowed", side, c.kind, c.port, err)
			}
		}
	}
}

func TestLoadFlags(t *testing.T) {
	good := loadCmd{Kind: "rr", Target: "127.0.0.1:7", Kernel: true, Connections: 1, Depth: 1}
	for want, change := range map[string]func(c *loadCmd){
		"there is no load":             func(c *loadCmd) { c.Kind = "ping" },
		"a target is HOST:PORT":        func(c *loadCmd) { c.Target = "127.0.0.1" },
		"a port is 1 to 65535":         func(c *loadCmd) { c.Target = "127.0.0.1:0" },
		"has no IPv4 address":          func(c *loadCmd) { c.Target = "[::1]:7" },
		"http wants a URL":             func(c *loadCmd) { c.Kind = "http" },
		"a size is 1 to":               func(c *loadCmd) { c.Send = "1X" },
		"a number of at least 1":       func(c *loadCmd) { c.Count = "0" },
		"either -i IFACE":              func(c *loadCmd) { c.Kernel = false },
		"no address given":             func(c *loadCmd) { c.Kernel, c.Interface = false, "eth1" },
		"prefix length is missing":     func(c *loadCmd) { c.Kernel, c.Interface, c.Address = false, "eth1", []string{"10.0.0.1"} },
		"no IPv4 address\n":            func(c *loadCmd) { c.Address = []string{"::1"} },
		"--threads is for kernel":      func(c *loadCmd) { c.Kernel, c.Interface, c.Threads = false, "eth1", 1 },
		"--gateway, --cpu and":         func(c *loadCmd) { c.Cpu = []int{1} },
		"as many bytes back":           func(c *loadCmd) { c.Send, c.Receive, c.Verify = "2", "3", new(true) },
		"no such file or directory":    func(c *loadCmd) { c.Netns = "/nonexistent/ns" },
		"there are local ports for":    func(c *loadCmd) { c.Connections = 70000 },
		"a timeout of 1":               func(c *loadCmd) { c.Timeout = time.Millisecond },
		"bulk goes as fast as it can:": func(c *loadCmd) { c.Kind, c.Rate = "bulk", 1 },
	} {
		c := good
		change(&c)
		cfg, err := c.config()
		if err == nil {
			err = cfg.Check()
		}
		if err == nil {
			err = c.checkSide()
		}
		if err == nil {
			var side load.Side
			if side, _, err = c.side(t.Context()); err == nil {
				_, err = load.Run(context.Background(), cfg, side, nil)
			}
		}
		if err == nil || !strings.Contains(err.Error()+"\n", want) {
			t.Errorf("%+v gives %v, want %q", c, err, want)
		}
	}
	c := good
	c.Kind, c.Target = "http", "http://127.0.0.1/a?b=c"
	if cfg, err := c.config(); err != nil || cfg.Target.Port() != 80 || cfg.Path != "/a?b=c" || cfg.Host != "127.0.0.1" {
		t.Errorf("%+v, %v", cfg, err)
	}
}

// TestLoadLive: a terminal is shown a line a second, and then the report.
func TestLoadLive(t *testing.T) {
	s := serve(t, "echo")
	c := s.loadSides()["kernel"]
	c.Kind, c.Target, c.Connections, c.Depth = "rr", fmt.Sprintf("%v:7", s.EngineAddr), 2, 1
	cfg, err := c.config()
	if err != nil {
		t.Fatal(err)
	}
	side, _, err := c.side(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	out := &until{want: "requests/s", times: 1, cancel: cancel}
	if err := c.load(ctx, cfg, side, out, true); err != nil {
		t.Error(err)
	}
	for _, want := range []string{"\r\x1b[Krunning 1 s: 2 open, ", ", interrupted\n", "latency", "0 failed"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
}
