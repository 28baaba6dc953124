package main

import (
	"fmt"
	"slices"
	"strings"
)

// results are the samples of all rounds, by measurement and contender, in the order of the rounds. A contender that cannot
// do a measurement has the reason in missing.
type results struct {
	samples map[string]map[string][]sample
	missing map[string]map[string]string
}

func newResults() *results {
	return &results{make(map[string]map[string][]sample), make(map[string]map[string]string)}
}

func (r *results) add(m *measurement, contender string, s sample) {
	if r.samples[m.name] == nil {
		r.samples[m.name] = make(map[string][]sample)
	}
	r.samples[m.name][contender] = append(r.samples[m.name][contender], s)
}

// lacks notes that a contender cannot do a measurement.
func (r *results) lacks(m *measurement, contender, reason string) {
	if r.missing[m.name] == nil {
		r.missing[m.name] = make(map[string]string)
	}
	r.missing[m.name][contender] = strings.Join(strings.Fields(reason), " ")
}

// quantity is something that is measured.
type quantity struct {
	name string
	less bool // less is better
	of   func(*sample) float64
}

var (
	rate = quantity{name: "rate", of: func(s *sample) float64 { return s.load.rate }}
	p50  = quantity{name: "p50", less: true, of: func(s *sample) float64 { return s.load.p50 }}
	p99  = quantity{name: "p99", less: true, of: func(s *sample) float64 { return s.load.p99 }}
	cpu  = quantity{name: "cpu", less: true, of: (*sample).cpuPerRequest}
	busy = quantity{name: "busy", less: true, of: (*sample).busy}
	each = quantity{name: "bytes", less: true, of: func(s *sample) float64 { return s.load.bytes }}
)

// ratio compares one contender's quantity with another's: one / other.
type ratio struct {
	Work    string  `json:"work"`
	Against string  `json:"against"`
	Ratio   float64 `json:"ratio"` // median over the rounds
	Low     float64 `json:"low"`   // smallest of a round
	High    float64 `json:"high"`
	Rounds  int     `json:"rounds"` // 0: there is none
}

func newRatio(work, against string, values []float64) ratio {
	return ratio{
		Work: work, Against: against, Rounds: len(values),
		Ratio: median(values), Low: slices.Min(values), High: slices.Max(values),
	}
}

// entry is a ratio with what it is to be.
type entry struct {
	ratio
	Better  string  `json:"better"`            // "higher" or "lower"
	Target  float64 `json:"target,omitempty"`  // 0: none
	Stretch float64 `json:"stretch,omitempty"` // same
	Verdict string  `json:"verdict,omitempty"` // "stretch", "reached" or "missed", where there is a target
	Missing string  `json:"missing,omitempty"` // why there is no ratio

	Value float64 `json:"value"` // median of one's quantity
	Other float64 `json:"other"` // of the other's
	Unit  string  `json:"unit"`
	Setup *setup  `json:"setup,omitempty"`
}

// entries makes the comparisons of rows, in their order: that of the row, and that of the CPU time for it, if both have one.
// A ratio is taken within a round, where both saw the same state of the machine, and only then the median over the rounds.
func (r *results) entries(rows []row) []entry {
	out := []entry{}
	for _, w := range rows {
		out = append(out, r.entry(w))
		if w.q.name != rate.name || w.base > 0 || out[len(out)-1].Rounds == 0 {
			continue
		}
		w.q, w.target, w.stretch = cpu, 0, 0
		if c := r.entry(w); c.Value > 0 && c.Other > 0 {
			out = append(out, c)
		}
	}
	return out
}

// entry makes one comparison.
func (r *results) entry(w row) entry {
	m := measurementOf(w.on)
	out := entry{
		ratio: ratio{Work: w.work(), Against: w.against()}, Better: w.better(), Target: w.target, Stretch: w.stretch,
		Unit: m.unitOf(w.q),
	}
	one, other := r.samples[w.on][w.one], r.samples[w.others()][w.other]
	values := perRound(w, one, other)
	if len(values) == 0 {
		out.Missing = r.why(w)
		return out
	}
	out.ratio = newRatio(out.Work, out.Against, values)
	out.Value, out.Other = medianOf(one, w.q.of), w.base
	if w.base == 0 {
		out.Other = medianOf(other, w.q.of)
	}
	out.Verdict = w.verdict(out.Ratio)
	return out
}

// why is the reason for which a row has no ratio.
func (r *results) why(w row) string {
	for _, p := range [][2]string{{w.on, w.one}, {w.others(), w.other}} {
		if reason := r.missing[p[0]][p[1]]; reason != "" {
			return p[1] + ": " + reason
		}
	}
	return "not measured: the run ended before"
}

// perRound gives the ratio of each round that has both.
func perRound(w row, one, other []sample) []float64 {
	var out []float64
	for i := range one {
		a, b := w.q.of(&one[i]), w.base
		if b == 0 {
			if i >= len(other) {
				break
			}
			b = w.q.of(&other[i])
		}
		out = append(out, a/b)
	}
	return out
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
