package main

import (
	"fmt"
	"slices"
	"strings"
)

// results are the samples of all rounds, by mode and server, in the order of the rounds.
type results map[string]map[string][]sample

func (r results) add(m mode, s server, got sample) {
	if r[m.name] == nil {
		r[m.name] = make(map[string][]sample)
	}
	r[m.name][s.name] = append(r[m.name][s.name], got)
}

// quantity is something that is measured.
type quantity struct {
	name    string
	latency bool // of the modes that measure latency; else of the others
	less    bool // less is better
	of      func(*sample) float64
}

var quantities = []quantity{
	{name: "pps", of: func(s *sample) float64 { return s.load.PPS }},
	{name: "cpu", less: true, of: (*sample).cpuPerPacket},
	{name: "p50", latency: true, less: true, of: func(s *sample) float64 { return s.load.P50 }},
	{name: "p99", latency: true, less: true, of: func(s *sample) float64 { return s.load.P99 }},
}

// pairs are the comparisons: who is measured against whom.
var pairs = [][2]string{
	{"xdpd", "kernel"}, {"xdpd", "kernel-spin"}, {"xdpd", "asavie"}, {"xdpd", "xdpd-net"}, {"xdpd-net", "net"},
}

// ratio says how many times better the one is than the other: more than 1 is better, also where less is better.
type ratio struct {
	Work    string  `json:"work"`
	Against string  `json:"against"`
	Ratio   float64 `json:"ratio"` // median over the rounds
	Low     float64 `json:"low"`   // the worst round
	High    float64 `json:"high"`
	Rounds  int     `json:"rounds"`
}

// ratios makes all comparisons for which there are samples. A ratio is taken within a round, where both saw the same
// state of the machine, and only then the median over the rounds.
func (r results) ratios() []ratio {
	out := []ratio{}
	for _, m := range modes {
		for _, q := range quantities {
			for _, p := range pairs {
				one, other := r[m.name][p[0]], r[m.name][p[1]]
				if q.latency != m.latency || len(one) == 0 || len(other) == 0 {
					continue
				}
				work := fmt.Sprintf("udp-echo-64 %s %s %s", p[0], m, q.name)
				out = append(out, newRatio(work, p[1], perRound(q, one, other)))
			}
		}
	}
	return out
}

// perRound gives how many times better one was than other in each round that has both.
func perRound(q quantity, one, other []sample) []float64 {
	var out []float64
	for i := range min(len(one), len(other)) {
		a, b := q.of(&one[i]), q.of(&other[i])
		if q.less {
			a, b = b, a
		}
		out = append(out, a/b)
	}
	return out
}

func newRatio(work, against string, values []float64) ratio {
	return ratio{
		Work: work, Against: against, Rounds: len(values),
		Ratio: median(values), Low: slices.Min(values), High: slices.Max(values),
	}
}

// median is the middle value, of an even number the mean of the two in the middle. No values: panics.
func median(values []float64) float64 {
	v := slices.Sorted(slices.Values(values))
	n := len(v)
	return (v[(n-1)/2] + v[n/2]) / 2
}

// medianOf is the median of a quantity over samples.
func medianOf(samples []sample, of func(*sample) float64) float64 {
	var v []float64
	for i := range samples {
		v = append(v, of(&samples[i]))
	}
	return median(v)
}

// table lays out rows as Markdown; the first is the head. Columns but the first two are numbers, and lean right.
func table(rows [][]string) string {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], len([]rune(cell)))
		}
	}
	var b strings.Builder
	for n, row := range rows {
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-len([]rune(cell)))
			if i < 2 {
				fmt.Fprintf(&b, "| %s%s ", cell, pad)
			} else {
				fmt.Fprintf(&b, "| %s%s ", pad, cell)
			}
		}
		b.WriteString("|\n")
		if n > 0 {
			continue
		}
		for i, w := range width {
			end := "-"
			if i >= 2 {
				end = ":"
			}
			fmt.Fprintf(&b, "|-%s%s", strings.Repeat("-", w), end)
		}
		b.WriteString("|\n")
	}
	return b.String()
}
