package main

import (
	"fmt"
	"maps"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
)

// describe is a sample in a line.
func (s *sample) describe(m mode) string {
	others := fmt.Sprintf("others took %.0f %%", 100*s.others)
	if m.latency {
		return fmt.Sprintf("p50 %5.1f µs  p99 %5.1f µs  %s", s.load.P50/1e3, s.load.P99/1e3, others)
	}
	return fmt.Sprintf("%.3f Mpps  %4.0f ns CPU a packet  lost %4.1f %%%s  %s",
		s.load.PPS/1e6, s.cpuPerPacket(), s.lost(), s.where(), others)
}

// where says on which side of the server datagrams were lost, and the server's reasons.
func (s *sample) where() string {
	c := &s.counters
	in, out := s.warm.Sent+s.load.Sent-c.Delivered, c.Sent-s.warm.Received-s.load.Received
	if in+out == 0 && len(c.Drops) == 0 {
		return ""
	}
	text := fmt.Sprintf(" (%d on the way in, %d on the way back", in, out)
	for _, why := range slices.Sorted(maps.Keys(c.Drops)) {
		text += fmt.Sprintf(", %s %d", why, c.Drops[why])
	}
	return text + ")"
}

// lost is how many of a hundred datagrams did not come back.
func (s *sample) lost() float64 { return 100 * float64(s.load.Lost) / float64(max(1, s.load.Sent)) }

// perSyscall is how many datagrams the server took for one system call, if it counted those.
func (s *sample) perSyscall() float64 {
	return float64(s.counters.Delivered) / float64(s.counters.Syscalls)
}

// header says in a line what ran where.
func (b *bench) header(res results) string {
	how := "no engine"
	var others []float64
	for _, byServer := range res {
		for _, samples := range byServer {
			if m := samples[0].counters.Mode; m != "" {
				how = m
			}
			for _, s := range samples {
				others = append(others, 100*s.others)
			}
		}
	}
	return fmt.Sprintf("%s, %d cores, Linux %s, veth, %s, commit %s, %s, %d rounds of %g s; other programs took %.0f %% of the machine (median; at most %.0f %%)",
		cpuModel(), runtime.NumCPU(), kernelRelease(), how, commit(), runtime.Version(), b.rounds, b.seconds,
		median(others), slices.Max(others))
}

// commit is what was built: from the build if it knows (go build), else from git (go run).
func commit() string {
	revision, dirty := "", false
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				revision = s.Value
			case "vcs.modified":
				dirty = s.Value == "true"
			}
		}
	}
	if revision == "" {
		_, here, _, _ := runtime.Caller(0)
		git := func(args ...string) string {
			out, err := exec.Command("git", append([]string{"-c", "safe.directory=*", "-C", filepath.Dir(here)}, args...)...).Output()
			if err != nil {
				return ""
			}
			return strings.TrimSpace(string(out))
		}
		revision = git("rev-parse", "HEAD")
		dirty = git("status", "--porcelain", "--untracked-files=no") != ""
	}
	if revision == "" {
		return "unknown"
	}
	if len(revision) > 12 {
		revision = revision[:12]
	}
	if dirty {
		revision += "+changes"
	}
	return revision
}

// absolutes is the table of medians.
func (r results) absolutes() string {
	rows := [][]string{{"mode", "server", "Mpps", "lost %", "CPU ns/packet", "packets/syscall", "p50 µs", "p99 µs"}}
	number := func(format string, show bool, samples []sample, of func(*sample) float64) string {
		if !show {
			return ""
		}
		return fmt.Sprintf(format, medianOf(samples, of))
	}
	for _, m := range modes {
		for _, s := range servers {
			v := r[m.name][s.name]
			if len(v) == 0 {
				continue
			}
			window := len(m.args) > 0 && m.args[0] == "-w"
			rows = append(rows, []string{
				m.name, s.name,
				number("%.3f", true, v, func(s *sample) float64 { return s.load.PPS / 1e6 }),
				number("%.1f", !window, v, (*sample).lost),
				number("%.0f", !m.latency, v, (*sample).cpuPerPacket),
				number("%.1f", v[0].counters.Syscalls > 0, v, (*sample).perSyscall),
				number("%.1f", window, v, func(s *sample) float64 { return s.load.P50 / 1e3 }),
				number("%.1f", window, v, func(s *sample) float64 { return s.load.P99 / 1e3 }),
			})
		}
	}
	return table(rows)
}

func ratioTable(ratios []ratio) string {
	rows := [][]string{{"work", "against", "ratio", "[low .. high]", "rounds"}}
	for _, r := range ratios {
		rows = append(rows, []string{
			r.Work, r.Against, fmt.Sprintf("%.2f", r.Ratio), fmt.Sprintf("[%.2f .. %.2f]", r.Low, r.High), fmt.Sprint(r.Rounds),
		})
	}
	return table(rows)
}
