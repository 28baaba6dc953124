package pktgen

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files anew")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; -update writes it anew\n%s", path, got)
	}
}

// reported is the report of an echo that lost two of a million, as run.fill makes it.
func reported(t *testing.T) *Report {
	t.Helper()
	r := &Report{
		Config: Config{
			Interface: "xb0", Source: "bpf", Echo: true, Verify: true, Sizes: imix, Rate: Rate{Packets: 200e3}, Count: 1e6, Burst: 1,
			Wait: time.Second, Mark: 0x7864, Mode: "best", CPU: -1,
			SrcMAC: MAC{[6]byte{2, 0, 0, 0, 0, 1}}, DstMAC: MAC{[6]byte{2, 0, 0, 0, 0, 2}},
			Flows: Flows{
				Src: Addrs{addr(10, 77, 0, 1), addr(10, 77, 0, 1)}, Dst: Addrs{addr(10, 77, 0, 2), addr(10, 77, 0, 2)},
				Sport: Ports{1024, 2023}, Dport: Ports{7, 7}, N: 1000,
			},
		},
		Kernel: "6.18.0", Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Seconds: 5.25,
		Sent: &Sent{Packets: 1e6, Bytes: 357_000_000, Dropped: 12, Took: 5 * time.Second},
		Received: &Received{
			Frames: 1_000_001, Bytes: 357_000_100, Unique: 999_998, Duplicates: 2, Reordered: 3, Corrupt: 1, Others: 4,
		},
	}
	h := newHistogram()
	for i := range int64(1000) {
		if err := h.RecordValues(5000+i*i, 1+i%3); err != nil {
			t.Fatal(err)
		}
	}
	r.Latency = newLatency(h)
	r.account(r.Sent.Packets)
	r.rates(0)
	return r
}

func TestReport(t *testing.T) {
	r := reported(t)
	var text, asJSON bytes.Buffer
	if err := r.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.txt", text.String())
	if err := r.WriteJSON(&asJSON); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", asJSON.String())
	if !json.Valid(asJSON.Bytes()) {
		t.Error("this is no JSON")
	}
	want := "verify: 2 of 1000000 lost, 2 duplicates, 1 corrupt"
	if err := r.Fault(); err == nil || err.Error() != want {
		t.Errorf("the fault is %v, want %s", err, want)
	}
}

// TestFault: each kind of fault alone is one, and nothing else is.
func TestFault(t *testing.T) {
	for _, c := range []struct {
		got    Received
		verify bool
		bad    bool
	}{
		{Received{Unique: 10, Reordered: 3, Others: 2}, true, false},
		{Received{Unique: 9}, true, true},
		{Received{Unique: 9}, false, false},
		{Received{Unique: 10, Duplicates: 1}, true, true},
		{Received{Unique: 10, Corrupt: 1}, true, true},
		{Received{Unique: 4, Beyond: 6}, true, false},
	} {
		r := Report{Config: Config{Verify: c.verify}, Sent: &Sent{Packets: 10}, Received: &c.got}
		r.account(10)
		if (r.Fault() != nil) != c.bad {
			t.Errorf("%+v, verify %v: %v", c.got, c.verify, r.Fault())
		}
	}
}

// TestExpected is what a sink alone expects.
func TestExpected(t *testing.T) {
	for _, c := range []struct {
		count          Count
		got            Received
		expected, lost uint64
	}{
		{100, Received{Unique: 97}, 100, 3},
		{0, Received{Unique: 97, Gaps: 2}, 99, 2},
		{0, Received{Unique: 90, Beyond: 7}, 97, 0},
		{50, Received{Unique: 97}, 50, 0},
	} {
		r := Report{Config: Config{Sink: true, Count: c.count}, Received: &c.got}
		r.account(0)
		if r.Expected != c.expected || r.Lost != c.lost {
			t.Errorf("%+v of %d: %d expected, %d lost", c.got, c.count, r.Expected, r.Lost)
		}
	}
}

func TestTitles(t *testing.T) {
	for want, c := range map[string]Config{
		"sink on xa0, mark 0x1":                            {Sink: true, Interface: "xa0", Mark: 1},
		"xsk on xb0: a.pcap at 2 times the recorded speed": {Source: "xsk", Interface: "xb0", Replay: "a.pcap", Speed: 2},
		"bpf on xb0: a.pcap at no limit":                   {Source: "bpf", Interface: "xb0", Replay: "a.pcap"},
	} {
		if got := c.title(); got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

func TestLiveLine(t *testing.T) {
	before := view{at: time.Second, sent: Sent{Packets: 1000, Bytes: 60_000}, received: Received{Frames: 900, Bytes: 54_000}}
	now := view{
		at: 3 * time.Second, sends: true, receives: true, sent: Sent{Packets: 4_001_000, Bytes: 240_060_000, Dropped: 5},
		received: Received{Frames: 1_900, Bytes: 114_000, Duplicates: 1, Reordered: 2, Corrupt: 3},
	}
	want := "  3 s  sent 2.00 Mpps, 1.02 Gbit/s, refused 5, received 500 pps, 256.00 kbit/s, duplicates 1, out of order 2, corrupt 3"
	if got := now.since(&before); got != want {
		t.Errorf("%q\nwant %q", got, want)
	}
	now.receives, now.sent.Dropped = false, 0
	if got := now.since(&before); !strings.HasSuffix(got, "1.02 Gbit/s") {
		t.Errorf("one way: %q", got)
	}
}
