package main

import (
	"math/rand/v2"
	"os"
	"strings"
	"testing"

	"xdpd/sockets"
)

// TestScenarios runs them all, with few connections. Each ends with what it says of its sockets' states, which are those
// that it means to measure.
func TestScenarios(t *testing.T) {
	const n = 1000
	for name, want := range map[string][]string{
		"established": {"sockets by state: map[ESTABLISHED:1000 LISTEN:1]; accepted by the application: 1000"},
		"timewait":    {"sockets by state: map[LISTEN:1 TIME-WAIT:1000]; later map[LISTEN:1]"},
		"burst":       {"sockets by state: map[LISTEN:1 TIME-WAIT:1000]; later map[LISTEN:1]"},
		"keepalive":   {"sockets by state: map[ESTABLISHED:1000 LISTEN:1]", "sockets by state: map[LISTEN:1]"},
		"halfopen": {
			"sockets by state: map[ESTABLISHED:1000 LISTEN:1 SYN-RECEIVED:1000]",
			"sockets by state: map[ESTABLISHED:1000 LISTEN:1]; ",
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, s := range scenarios {
				if s.name != name {
					continue
				}
				tr, err := s.newTrial(n, false)
				if err != nil {
					t.Fatal(err)
				}
				defer tr.close()
				if err := s.run(tr); err != nil {
					t.Fatal(err)
				}
				text := strings.Join(tr.Notes, "\n")
				for _, w := range want {
					if !strings.Contains(text, w) {
						t.Errorf("no word of %q in\n%s", w, text)
					}
				}
				if tr.host.Counters().Stats[sockets.TCPAccepted] == 0 || len(tr.Rows) == 0 {
					t.Errorf("nothing was measured: %+v", tr.Rows)
				}
				return
			}
			t.Fatal("there is no such scenario")
		})
	}
	if len(scenarios) != 5 {
		t.Errorf("%d scenarios, of which 5 are tested", len(scenarios))
	}
}

// TestVeth: the same connections over a veth pair.
func TestVeth(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const n = 500
	tr, err := (&scenario{}).newTrial(n, true)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	if err := tr.establish(0, n); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int{1, fullSegment} {
		if err := tr.requests(n, size, rand.New(rand.NewPCG(1, 2))); err != nil {
			t.Fatal(err)
		}
	}
	if got := tr.peer.echoed; got != 1+n+n*fullSegment {
		t.Errorf("%d bytes came back, want %d", got, 1+n+n*fullSegment)
	}
	if got := tr.states()["ESTABLISHED"]; got != n {
		t.Errorf("%d connections are established, want %d", got, n)
	}
	if err := tr.closeOurs(0, n); err != nil {
		t.Fatal(err)
	}
	if got := tr.states()["TIME-WAIT"]; got != n {
		t.Errorf("%d connections are in TIME-WAIT, want %d", got, n)
	}
}

// TestTraceOf picks the lines of one phase.
func TestTraceOf(t *testing.T) {
	const trace = "gc 1 @0s\nphase a b\ngc 2 @0s\nother\ngc 3 @0s\nphase \ngc 4 @0s\nphase a\ngc 5 @0s\n"
	if got := strings.Join(traceOf(trace, "a b"), "|"); got != "gc 2 @0s|gc 3 @0s" {
		t.Errorf("got %q", got)
	}
	if got := traceOf(trace, "b"); got != nil {
		t.Errorf("got %q", got)
	}
}
