package main

import (
	"encoding/json"
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
		before := append([]float64(nil), c.values...)
		if got := median(c.values); got != c.want {
			t.Errorf("median(%v) = %v, want %v", before, got, c.want)
		}
		for i := range before {
			if c.values[i] != before[i] {
				t.Errorf("median changed its argument to %v", c.values)
			}
		}
	}
}

// fake makes samples with these datagrams a second, and p50s in ns.
func fake(pps, p50 []float64) []sample {
	var out []sample
	for i := range pps {
		out = append(out, sample{
			load: load{PPS: pps[i], P50: p50[i], P99: 2 * p50[i], Received: uint64(pps[i])},
			cpu:  time.Duration(p50[i]) * time.Microsecond,
		})
	}
	return out
}

func findRatio(t *testing.T, rs []ratio, work, against string) ratio {
	t.Helper()
	for _, r := range rs {
		if r.Work == work && r.Against == against {
			return r
		}
	}
	t.Fatalf("no %q against %q in %+v", work, against, rs)
	return ratio{}
}

// TestRatios has rounds whose machine speed differs by ten: within a round the ratio is stable, between medians it is not.
func TestRatios(t *testing.T) {
	r := results{}
	xdpd := fake([]float64{200, 2000, 90, 30}, []float64{10, 20, 30, 40})
	kernel := fake([]float64{100, 1000, 30, 30}, []float64{20, 60, 60, 10})
	for i := range xdpd {
		for _, m := range []mode{modes[0], modes[3]} {
			r.add(m, servers[0], xdpd[i])
			r.add(m, server{name: "kernel"}, kernel[i])
		}
	}
	rs := r.ratios()
	for _, c := range []struct {
		work string
		want ratio
	}{
		{"udp-echo-64 xdpd open pps", ratio{Ratio: 2, Low: 1, High: 3, Rounds: 4}},
		// 20000/100 : 10000/200 = 4, 60000/1000 : 20000/2000 = 6, 60000/30 : 30000/90 = 6, 10000/30 : 40000/30 = .25
		{"udp-echo-64 xdpd open cpu", ratio{Ratio: 5, Low: .25, High: 6, Rounds: 4}},
		{"udp-echo-64 xdpd one p50", ratio{Ratio: 2, Low: .25, High: 3, Rounds: 4}},
		{"udp-echo-64 xdpd one p99", ratio{Ratio: 2, Low: .25, High: 3, Rounds: 4}},
	} {
		got := findRatio(t, rs, c.work, "kernel")
		c.want.Work, c.want.Against = c.work, "kernel"
		if got != c.want {
			t.Errorf("%s: %+v, want %+v", c.work, got, c.want)
		}
	}
	if len(rs) != 4 {
		t.Errorf("%d ratios where 4 can be made: %+v", len(rs), rs)
	}
	text := ratioTable(rs)
	if want := "| udp-echo-64 xdpd open pps | kernel  |  2.00 | [1.00 .. 3.00] |      4 |\n"; !strings.Contains(text, want) {
		t.Errorf("the table\n%s\nhas no line %s", text, want)
	}
}

func TestNoRatiosAreAnEmptyList(t *testing.T) {
	text, err := json.Marshal(results{}.ratios())
	if err != nil || string(text) != "[]" {
		t.Errorf("%s, %v", text, err)
	}
}

func TestAbsolutes(t *testing.T) {
	r := results{}
	for _, s := range fake([]float64{3e6, 1e6, 2e6}, []float64{5000, 7000, 9000}) {
		r.add(modes[0], servers[0], s)
		r.add(modes[3], servers[0], s)
	}
	rows := strings.Split(r.absolutes(), "\n")
	if len(rows) != 5 { // head, rule, two modes, the end of the last line
		t.Fatalf("%d lines:\n%s", len(rows), r.absolutes())
	}
	for i, want := range [][]string{{"open", "xdpd", "2.000", "0.0"}, {"one", "xdpd", "2.000", "7.0", "14.0"}} {
		cells := strings.Fields(strings.ReplaceAll(rows[2+i], "|", " "))
		for _, w := range want {
			found := false
			for _, c := range cells {
				found = found || c == w
			}
			if !found {
				t.Errorf("row %q has no %s", rows[2+i], w)
			}
		}
	}
}

func TestCheck(t *testing.T) {
	for _, c := range []struct {
		l    load
		want string
	}{
		{load{Sent: 100, SendErrors: 9, Received: 1}, ""},
		{load{Sent: 100, SendErrors: 11, Received: 1}, "could not send 11 of 111"},
		{load{Sent: 100, Received: 99, Bad: 1}, "1 replies were not what was sent"},
		{load{Sent: 100}, "no reply to 100"},
	} {
		err := c.l.check()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.l, err, c.want)
		}
	}
}

func TestFlags(t *testing.T) {
	b, file, err := parse([]string{"-quick", "-seconds", "0.5", "-modes", "one,open", "-servers", "kernel,xdpd", "-json", "f"})
	if err != nil || b.rounds != 3 || b.seconds != .5 || names(b.modes) != "open,one" || names(b.servers) != "xdpd,kernel" || file != "f" {
		t.Errorf("%+v, %q, %v", b, file, err)
	}
	for _, args := range []string{
		"-rounds 0", "-seconds 0", "-modes open,closed", "-servers xdp", "-servers xdpd,xdpd", "open",
		"-cpuprofile f", "-cpuprofile f -servers kernel -modes open -rounds 1",
	} {
		if _, _, err := parse(strings.Fields(args)); err == nil {
			t.Errorf("%s is accepted", args)
		}
	}
	if b, _, err = parse(strings.Fields("-cpuprofile f -servers xdpd -modes open -rounds 1")); err != nil || b.profile != "f" {
		t.Errorf("-cpuprofile: %v", err)
	}
}

func TestUnknownServer(t *testing.T) {
	for _, args := range [][]string{nil, {"xdp"}, {"kernel"}} {
		if err := serve(t.Context(), args); err == nil {
			t.Errorf("-serve %v is accepted", args)
		}
	}
}

func TestPeerCounters(t *testing.T) {
	var c counters
	line := `{"received":10,"sent":9,"batches":2,"truncated":0,"errors":1}`
	if err := c.fromPeer([]byte(line)); err != nil || c.Delivered != 10 || c.Sent != 9 || c.Syscalls != 4 || c.Drops["errors"] != 1 {
		t.Errorf("%s is %+v, %v", line, c, err)
	}
	if c.fromPeer([]byte("ready")) == nil {
		t.Error("nonsense is accepted")
	}
}
