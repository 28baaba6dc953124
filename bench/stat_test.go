package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   float64
	}{
		{[]float64{3}, 3}, {[]float64{3, 1}, 2}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 3, 2}, 2.5},
		{[]float64{7, 7, 7, 1, 100}, 7},
	} {
		before := slices.Clone(c.values)
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %v, want %v", before, got, c.want)
		}
		if !slices.Equal(before, c.values) {
			t.Errorf("median changed its argument to %v", c.values)
		}
	}
}

// fake makes samples with these rates, and p50s in µs; as much CPU time was used as p50 says, in ms, for a rate's requests.
func fake(rates, p50 []float64) []sample {
	var out []sample
	for i := range rates {
		out = append(out, sample{
			load: outcome{rate: rates[i], p50: p50[i], p99: 2 * p50[i], done: rates[i]},
			cpu:  time.Duration(p50[i]) * time.Millisecond,
		})
	}
	return out
}

// fakeResults has rounds whose machine speed differs by ten: within a round the ratio is stable, between medians it is not.
func fakeResults(on string) *results {
	r, m := newResults(), measurementOf(on)
	xdpd := fake([]float64{200, 2000, 90, 30}, []float64{10, 20, 30, 40})
	kernel := fake([]float64{100, 1000, 30, 30}, []float64{20, 60, 60, 10})
	for i := range xdpd {
		r.add(m, "xdpd", xdpd[i])
		r.add(m, "kernel-c", kernel[i])
	}
	return r
}

func TestEntries(t *testing.T) {
	r := fakeResults("udp-open")
	got := r.entries([]row{
		{name: "udp-open", on: "udp-open", q: rate, one: "xdpd", other: "kernel-c", target: 2.5, stretch: 3},
		{name: "fast", on: "udp-open", q: rate, one: "xdpd", other: "kernel-c", target: 1.5, stretch: 2},
		{name: "udp-rtt", on: "udp-open", q: p50, one: "xdpd", other: "kernel-c", target: .6, stretch: .4},
		{name: "figure", on: "udp-open", q: p50, one: "xdpd", base: 50, figure: "50 µs", target: .4},
	})
	want := []entry{
		{ratio: ratio{"udp-open xdpd rate", "kernel-c", 2, 1, 3, 4}, Better: "higher", Target: 2.5, Stretch: 3, Verdict: "missed"},
		// 10/200 : 20/100 = .25, 20/2000 : 60/1000 = 1/6, 30/90 : 60/30 = 1/6, 40/30 : 10/30 = 4
		{ratio: ratio{"udp-open xdpd cpu", "kernel-c", (.25 + 1./6) / 2, 1. / 6, 4, 4}, Better: "lower"},
		{ratio: ratio{"fast xdpd rate", "kernel-c", 2, 1, 3, 4}, Better: "higher", Target: 1.5, Stretch: 2, Verdict: "stretch"},
		{ratio: ratio{"fast xdpd cpu", "kernel-c", (.25 + 1./6) / 2, 1. / 6, 4, 4}, Better: "lower"},
		{ratio: ratio{"udp-rtt xdpd p50", "kernel-c", .5, 1. / 3, 4, 4}, Better: "lower", Target: .6, Stretch: .4, Verdict: "reached"},
		{ratio: ratio{"figure xdpd p50", "50 µs", .5, .2, .8, 4}, Better: "lower", Target: .4, Verdict: "missed"},
	}
	if len(got) != len(want) {
		t.Fatalf("%d entries, want %d: %+v", len(got), len(want), got)
	}
	for i := range got {
		near := func(a, b float64) bool { return a > b*.9999 && a < b*1.0001 }
		g, w := got[i], want[i]
		if g.Work != w.Work || g.Against != w.Against || !near(g.Ratio, w.Ratio) || !near(g.Low, w.Low) || !near(g.High, w.High) ||
			g.Rounds != w.Rounds || g.Better != w.Better || g.Target != w.Target || g.Stretch != w.Stretch || g.Verdict != w.Verdict {
			t.Errorf("%+v\nwant %+v", g, w)
		}
	}
	text := entryTable(got)
	for _, line := range []string{
		"| udp-open xdpd rate | kernel-c | 2.50 | 3.00 | 2.00 | [1.00 .. 3.00] | missed | 0.21 | 4 |",
		"| udp-rtt xdpd p50 | kernel-c | ≤ 0.60 | ≤ 0.40 | 0.50 | [0.33 .. 4.00] | reached | | 4 |",
	} {
		if !strings.Contains(squeezed(text), line) {
			t.Errorf("the table has no line\n%s\nit is\n%s", line, text)
		}
	}
}

// squeezed is a table without the blanks that make it even.
func squeezed(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		lines = append(lines, strings.ReplaceAll(strings.Join(strings.Fields(line), " "), "| |", "| |"))
	}
	return strings.Join(lines, "\n")
}

// TestMissingRows: what cannot be measured is in the result, with the reason.
func TestMissingRows(t *testing.T) {
	r := fakeResults("udp-open")
	r.lacks(measurementOf("udp-open"), "gvisor", "cannot build:\n there is no gvisor")
	for _, c := range []struct {
		other, want string
	}{{"gvisor", "gvisor: cannot build: there is no gvisor"}, {"net", "not measured"}} {
		got := r.entries([]row{{name: "udp-open", on: "udp-open", q: rate, one: "xdpd", other: c.other, target: 3}})
		if len(got) != 1 || got[0].Rounds != 0 || !strings.Contains(got[0].Missing, c.want) || got[0].Verdict != "" {
			t.Errorf("%+v, want %q", got, c.want)
			continue
		}
		if text := entryTable(got); !strings.Contains(text, c.want) {
			t.Errorf("the table does not say %q:\n%s", c.want, text)
		}
	}
}

func TestNoEntriesAreAnEmptyList(t *testing.T) {
	text, err := json.Marshal(newResults().entries(nil))
	if err != nil || string(text) != "[]" {
		t.Errorf("%s, %v", text, err)
	}
}

// TestJSON: whoever reads the file finds the fields by these names.
func TestJSON(t *testing.T) {
	r := fakeResults("udp-open")
	got := r.entries([]row{{name: "udp-open", on: "udp-open", q: rate, one: "xdpd", other: "kernel-c", target: 2.5}})
	got[0].Setup = &setup{Machine: "m", Hash: "h"}
	text, err := json.Marshal(got[:1])
	if err != nil {
		t.Fatal(err)
	}
	var back []map[string]any
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]any{
		"work": "udp-open xdpd rate", "against": "kernel-c", "ratio": 2., "low": 1., "high": 3., "rounds": 4., "target": 2.5,
		"verdict": "missed",
	} {
		if back[0][name] != want {
			t.Errorf("%s is %v, want %v", name, back[0][name], want)
		}
	}
	if s, ok := back[0]["setup"].(map[string]any); !ok || s["machine"] != "m" || s["hash"] != "h" {
		t.Errorf("set-up %v", back[0]["setup"])
	}
}

func TestAbsolutes(t *testing.T) {
	r := fakeResults("udp-window")
	text := squeezed(r.absolutes())
	for _, want := range []string{
		"| udp-window | xdpd | 145.000 | Mpps | 191667 | ns | 25.0 | 50.0 | | |",
		"| udp-window | kernel-c | 65.000 | Mpps | 266667 | ns | 40.0 | 80.0 | | |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %s in\n%s", want, text)
		}
	}
}

func TestRotate(t *testing.T) {
	seen := map[string]bool{}
	for round := range 4 {
		got := rotate([]string{"a", "b", "c"}, round)
		seen[strings.Join(got, "")] = true
		if slices.Sort(got); strings.Join(got, "") != "abc" {
			t.Errorf("round %d has %v", round, got)
		}
	}
	if len(seen) != 4 {
		t.Errorf("four rounds have the orders %v", seen)
	}
}
