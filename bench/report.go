package main

import (
	"fmt"
	"maps"
	"math"
	"slices"
)

// describe is a sample in a line.
func (s *sample) describe(m *measurement) string {
	text := ""
	l := &s.load
	switch {
	case l.bytes > 0:
		return fmt.Sprintf("%.1f bytes each", l.bytes)
	case l.rate > 0:
		text = fmt.Sprintf("%.3f %s", l.rate, m.unit)
		if s.cpu > 0 {
			text += fmt.Sprintf("  %.0f %s CPU", s.cpuPerRequest(), m.unitOf(cpu))
		}
	default:
		text = fmt.Sprintf("%.1f %% of a core", 100*l.busy)
	}
	if l.p50 > 0 {
		text += fmt.Sprintf("  p50 %.1f µs", l.p50)
	}
	if l.p99 > 0 {
		text += fmt.Sprintf("  p99 %.1f µs", l.p99)
	}
	if l.lost > 0 {
		text += fmt.Sprintf("  lost %.1f %%%s", 100*l.lost, s.where())
	}
	return text + fmt.Sprintf("  others took %.0f %%", 100*s.others)
}

// where says on which side of the server datagrams were lost, and the server's reasons.
func (s *sample) where() string {
	c := &s.counters
	if c.Delivered == 0 { // of raw frames and of gVisor no datagrams are counted
		return ""
	}
	in, out := s.warm.sent+s.load.sent-c.Delivered, c.Sent-s.warm.received-s.load.received
	text := fmt.Sprintf(" (%d on the way in, %d on the way back", int64(in), int64(out))
	for _, why := range slices.Sorted(maps.Keys(c.Drops)) {
		text += fmt.Sprintf(", %s %d", why, c.Drops[why])
	}
	return text + ")"
}

// header says in two lines what ran where.
func (b *bench) header(s *setup, res *results) string {
	var others []float64
	for _, byContender := range res.samples {
		for _, samples := range byContender {
			for _, s := range samples {
				others = append(others, 100*s.others)
			}
		}
	}
	return fmt.Sprintf("%s\n%d rounds of %g s; other programs took %.0f %% of the machine (median; at most %.0f %%)",
		s, b.rounds, b.seconds, median(others), slices.Max(others))
}

// absolutes is the table of medians: what each contender came to.
func (r *results) absolutes() string {
	rows := [][]string{{"measurement", "contender", "rate", "unit", "CPU each", "unit", "p50 µs", "p99 µs", "lost %", "per syscall"}}
	for _, m := range measurements {
		for _, c := range contenders {
			v := r.samples[m.name][c.name]
			if len(v) == 0 {
				continue
			}
			cell := func(format string, of func(*sample) float64) string {
				if x := medianOf(v, of); x > 0 && !math.IsInf(x, 0) {
					return fmt.Sprintf(format, x)
				}
				return ""
			}
			units := [2]string{m.unit, m.unitOf(cpu)}
			if m.unit == "" {
				units[1] = ""
			}
			rows = append(rows, []string{
				m.name, c.name, cell("%.3f", rate.of), units[0],
				cell("%.0f", func(s *sample) float64 {
					if units[1] == "" {
						return 0
					}
					return s.cpuPerRequest()
				}), units[1],
				cell("%.1f", p50.of), cell("%.1f", p99.of),
				cell("%.1f", func(s *sample) float64 { return 100 * s.load.lost }),
				cell("%.1f", (*sample).perSyscall),
			})
		}
	}
	return table(rows)
}

// perSyscall is how many frames, or datagrams, came in for one system call of the server, if it counted those.
func (s *sample) perSyscall() float64 {
	if s.counters.Syscalls == 0 {
		return 0
	}
	return float64(s.counters.FramesIn) / float64(s.counters.Syscalls)
}

func (r *entry) isCPU() bool { return len(r.Work) > 4 && r.Work[len(r.Work)-4:] == " cpu" }

// entryTable shows ratios beside what they are to reach, and below it why some are not there. The CPU time's stand in the row
// of the rate that they belong to.
func entryTable(entries []entry) string {
	rows := [][]string{{"work", "against", "at least", "stretch", "ratio", "[low .. high]", "verdict", "CPU", "rounds"}}
	var reasons []string
	for i, r := range entries {
		if r.isCPU() {
			continue
		}
		row := []string{r.Work, r.Against, r.bound(r.Target), r.bound(r.Stretch), "", "", r.Verdict, "", fmt.Sprint(r.Rounds)}
		if r.Rounds > 0 {
			row[4], row[5] = number(r.Ratio), r.spread()
		} else {
			at := slices.Index(reasons, r.Missing)
			if at < 0 {
				at, reasons = len(reasons), append(reasons, r.Missing)
			}
			row[6] = fmt.Sprintf("not measured (%d)", at+1)
		}
		if i+1 < len(entries) && entries[i+1].isCPU() {
			row[7] = number(entries[i+1].Ratio)
		}
		rows = append(rows, row)
	}
	text := table(rows)
	for i, reason := range reasons {
		text += fmt.Sprintf("\n(%d) %s\n", i+1, reason)
	}
	return text
}

func (r *ratio) spread() string { return fmt.Sprintf("[%s .. %s]", number(r.Low), number(r.High)) }

// bound is a goal as it is read: "2.5", or "≤ 0.3" where less is better.
func (r *entry) bound(goal float64) string {
	switch {
	case goal == 0:
		return ""
	case r.Better == "lower":
		return "≤ " + number(goal)
	}
	return number(goal)
}

// number is a ratio with as many digits as mean something.
func number(v float64) string {
	if v >= 100 {
		return fmt.Sprintf("%.0f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

// ratioTable shows ratios that are to reach nothing.
func ratioTable(ratios []ratio) string {
	rows := [][]string{{"work", "against", "ratio", "[low .. high]", "rounds"}}
	for _, r := range ratios {
		rows = append(rows, []string{r.Work, r.Against, number(r.Ratio), r.spread(), fmt.Sprint(r.Rounds)})
	}
	return table(rows)
}
