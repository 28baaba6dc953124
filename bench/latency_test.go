package main

import (
	"encoding/json"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"xdpd/proto"
)

// TestLatencyRun runs all faces for a moment.
func TestLatencyRun(t *testing.T) {
	b, err := parseLatency([]string{"-conns", "3,300", "-rounds", "2", "-events", "500", "-noise", "100"})
	if err != nil {
		t.Fatal(err)
	}
	b.progress = t.Output()
	rows, err := b.run(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(rows) != 2*len(faces) {
		t.Fatalf("%d rows, want one of each face and size: %+v", len(rows), rows)
	}
	for i, r := range rows {
		if r.Connections != []int{3, 300}[i/len(faces)] || r.Face != faces[i%len(faces)].name || r.Rounds != 2 {
			t.Errorf("row %d is %+v", i, r)
		}
		if r.P50.Low <= 0 || r.P50.Low > r.P50.Median || r.P50.Median > r.P50.High || r.P50.Median > r.P99.Median ||
			r.P99.Median > r.P999.Median || r.P999.Median > r.Max.Median {
			t.Errorf("quantiles out of order: %+v", r)
		}
	}
}

// TestLatencyCounts: what is measured is each event once, from the stamp on.
func TestLatencyCounts(t *testing.T) {
	for _, f := range faces {
		t.Run(f.name, func(t *testing.T) {
			now := int64(1e12)
			kind := withPoller
			if f.ring {
				kind = withRing
			}
			c, err := newCrowd(kind, 5, func() int64 { return now }, func(ns int64) { now += ns })
			if err != nil {
				t.Fatal(err)
			}
			defer c.close()
			a := &latApp{c: c, hist: newLatHist()}
			stop := f.start(a)
			for conn, old := range []int64{1000, 2000, 2000, 3000, 7000} {
				for range 2 {
					if !c.offerStamped(conn) {
						t.Fatal("no room")
					}
				}
				now += old
				for want := int64(2 * (conn + 1)); a.got.Load() < want; {
					c.turn(nil)
				}
			}
			stopped := make(chan error, 1)
			go func() { stopped <- stop() }()
			for over := false; !over; c.turn(nil) {
				select {
				case err := <-stopped:
					over = true
					if err != nil || a.failed() != nil {
						t.Fatal(err, a.failed())
					}
				default:
				}
			}
			h := a.hist
			for q, want := range map[float64]int64{10: 1000, 50: 2000, 70: 3000, 90: 7000} {
				if got := h.ValueAtPercentile(q); got < want || got > want*1002/1000 {
					t.Errorf("percentile %g is %d ns, want %d", q, got, want)
				}
			}
			if h.TotalCount() != 10 {
				t.Errorf("%d events noted, want 10", h.TotalCount())
			}
		})
	}
}

// TestLatencyLost: an event that does not come is an error.
func TestLatencyLost(t *testing.T) {
	now := int64(1e12)
	c, err := newCrowd(withPoller, 2, func() int64 { return now }, func(ns int64) { now += ns })
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	a := &latApp{c: c, hist: newLatHist()}
	a.got.Store(3)
	if err := a.settle(2); err == nil || !strings.Contains(err.Error(), "3 events came, of 2") {
		t.Errorf("too many: %v", err)
	}
	if err := a.settle(3); err != nil {
		t.Error(err)
	}
	a.serve()
	c.snd[0]++ // a byte that never came: the next segment is out of order
	if !c.offerStamped(0) {
		t.Fatal("no room")
	}
	c.turn(nil)
	if got := a.got.Load(); got != 3 || a.hist.TotalCount() != 0 {
		t.Errorf("%d events, %d noted, of data that is not in order", got, a.hist.TotalCount())
	}
}

func TestLatencyFlags(t *testing.T) {
	for _, args := range [][]string{
		{"-conns", "0"}, {"-conns", "1000001"}, {"-conns", "10,x"}, {"-faces", "none"}, {"-rounds", "0"}, {"-events", "0"},
		{"-gap", "0"}, {"more"},
	} {
		if _, err := parseLatency(args); err == nil {
			t.Errorf("%q is taken", args)
		}
	}
	b, err := parseLatency(nil)
	if err != nil || !slices.Equal(b.conns, []int{10_000, 100_000, 1_000_000}) || len(b.faces) != len(faces) {
		t.Errorf("default: %+v, %v", b, err)
	}
}

// TestLatencyReport: what is printed is what was measured, in µs, and so is what is written.
func TestLatencyReport(t *testing.T) {
	var samples []latSample
	for _, us := range []int64{3, 1, 2} {
		h := newLatHist()
		for range 100 {
			if err := h.RecordValue(us * 1000); err != nil {
				t.Fatal(err)
			}
		}
		if err := h.RecordValue(us * 100_000); err != nil {
			t.Fatal(err)
		}
		samples = append(samples, latSample{hist: h, refused: int(us), others: float64(10 * us)})
	}
	r := newLatRow(77, faces[0], samples)
	text := latTable([]latRow{r})
	for _, want := range []string{"| 77 ", "| serve |", " 2.0 [1.0 .. 3.0] |", " 200.", "| 6 |", "| 20 |"} {
		if !strings.Contains(strings.Join(strings.Fields(text), " "), strings.Join(strings.Fields(want), " ")) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	file := filepath.Join(t.TempDir(), "out.json")
	if err := runLatency(t.Context(), []string{
		"-conns", "1", "-faces", "serve", "-rounds", "1", "-events", "100", "-noise", "100", "--json", file,
	}); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var rows []latRow
	if err := json.Unmarshal(data, &rows); err != nil || len(rows) != 1 || rows[0].Face != "serve" || rows[0].P50.Median <= 0 {
		t.Errorf("%v in %s", err, data)
	}
	if !strings.Contains(string(data), `"p99_9_us"`) {
		t.Errorf("no p99.9 in %s", data)
	}
}

// TestSegments: the checksum of a template with numbers put in is that of the whole.
func TestSegments(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	s := newSegments(0, 1, crowdData)
	buf := make([]byte, 2048)
	for range 2000 {
		g := segment{proto.Addr(rng.Uint32()), uint16(rng.Uint32()), rng.Uint32(), rng.Uint32(), rng.Uint32()}
		n := []int{0, 1, crowdData}[rng.IntN(3)]
		p := s.put(buf, g, n)
		if n == crowdData {
			stamp := []uint64{rng.Uint64(), 0, ^uint64(0)}[rng.IntN(3)]
			if restamp(p, stamp); uint64(stampOf(p[segHeaders:])) != stamp {
				t.Fatalf("stamp %x is %x", stamp, stampOf(p[segHeaders:]))
			}
		}
		ip, fault := proto.ParseIPv4(p[14:])
		if fault != proto.OK || ip.Src != g.src || int(ip.TotalLen) != len(p)-14 {
			t.Fatalf("%v %v", ip, fault)
		}
		tcp, fault := proto.ParseTCP(p[34:])
		if fault != proto.OK || tcp.SrcPort != g.port || tcp.Seq != g.seq || tcp.Ack != g.ack {
			t.Fatalf("%v %v", tcp, fault)
		}
		if sum := proto.Fold(proto.Sum(p[34:], proto.PseudoSum(g.src, ourAddr, proto.ProtoTCP, len(p)-34))); sum != 0xffff {
			t.Fatalf("%+v with %d bytes: the sum is %#x", g, n, sum)
		}
	}
}
