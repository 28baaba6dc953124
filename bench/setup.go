package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
)

// setup is where and how a run was made. Runs are compared only when their Hash is the same, which says everything but the
// commit: what is measured may change, what it is measured with may not.
type setup struct {
	Machine string  `json:"machine"`
	Cores   int     `json:"cores"`
	Kernel  string  `json:"kernel"`
	Device  string  `json:"device"`
	Mode    string  `json:"mode"` // how frames got to the engine
	Go      string  `json:"go"`
	Seconds float64 `json:"seconds"` // of a measurement
	Peers   string  `json:"peers"`   // a hash of the contenders and loads that are not the engine
	Hash    string  `json:"hash"`
	Commit  string  `json:"commit"`
}

func (b *bench) setup(res *results) (*setup, error) {
	peers, err := hashPeers(os.DirFS(here()))
	if err != nil {
		return nil, err
	}
	s := &setup{
		Machine: cpuModel(), Cores: runtime.NumCPU(), Kernel: kernelRelease(), Device: "veth", Mode: res.mode(),
		Go: runtime.Version(), Seconds: b.seconds, Peers: peers, Commit: commit(),
	}
	s.Hash = s.hash()
	return s, nil
}

// hash is over all that two runs must have in common.
func (s *setup) hash() string {
	same := *s
	same.Hash, same.Commit = "", ""
	text, _ := json.Marshal(same) // a struct of strings and numbers
	return fmt.Sprintf("%x", sha256.Sum256(text))[:12]
}

// String is the first line of a report.
func (s *setup) String() string {
	return fmt.Sprintf("%s, %d cores, Linux %s, %s, %s, %s, commit %s, set-up %s",
		s.Machine, s.Cores, s.Kernel, s.Device, s.Mode, s.Go, s.Commit, s.Hash)
}

// hashPeers tells whether the peers, the loads or gVisor's module changed.
func hashPeers(bench fs.FS) (string, error) {
	sum := sha256.New()
	for _, pattern := range []string{"peers/*.c", "peers/*.h", "gvisor/*.go", "gvisor/go.*"} {
		names, err := fs.Glob(bench, pattern)
		if err != nil {
			return "", err
		}
		for _, name := range names {
			text, err := fs.ReadFile(bench, name)
			if err != nil {
				return "", err
			}
			fmt.Fprintf(sum, "%s %d\n%s", name, len(text), text)
		}
	}
	return fmt.Sprintf("%x", sum.Sum(nil))[:12], nil
}

// mode is how frames got to the engine: "copy, native" on veth.
func (r *results) mode() string {
	var modes []string
	for _, byContender := range r.samples {
		for _, name := range []string{"xdpd", "xdpd-net"} {
			for _, s := range byContender[name] {
				if m := s.counters.Mode; m != "" && !slices.Contains(modes, m) {
					modes = append(modes, m)
				}
			}
		}
	}
	if len(modes) == 0 {
		return "no engine"
	}
	slices.Sort(modes)
	return strings.Join(modes, " and ")
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
		git := func(args ...string) string {
			out, err := exec.Command("git", append([]string{"-c", "safe.directory=*", "-C", here()}, args...)...).Output()
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

// errSetups refuses a comparison.
var errSetups = errors.New("the runs are not of the same set-up")

// compareFiles compares what two runs wrote. Runs with different set-ups are refused.
func compareFiles(oldFile, newFile string) (string, error) {
	var runs [2][]entry
	for i, name := range []string{oldFile, newFile} {
		text, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		if err := json.Unmarshal(text, &runs[i]); err != nil {
			return "", fmt.Errorf("%s: %w", filepath.Base(name), err)
		}
	}
	return compare(runs[0], runs[1])
}

func compare(before, after []entry) (string, error) {
	a, b, err := setupsOf(before, after)
	if err != nil {
		return "", err
	}
	out := [][]string{{"work", "against", a.Commit, "[low .. high]", b.Commit, "[low .. high]", "change"}}
	for _, now := range after {
		i := slices.IndexFunc(before, func(r entry) bool { return r.Work == now.Work && r.Against == now.Against })
		if i < 0 || now.Rounds == 0 || before[i].Rounds == 0 {
			continue
		}
		was, change := before[i], ""
		// The spreads overlap unless something changed.
		if now.Low > was.High || now.High < was.Low {
			change = fmt.Sprintf("%+.0f %%", 100*(now.Ratio/was.Ratio-1))
		}
		out = append(out, []string{now.Work, now.Against, number(was.Ratio), was.spread(), number(now.Ratio), now.spread(), change})
	}
	if len(out) == 1 {
		return "", errors.New("the runs have no row in common")
	}
	return table(out), nil
}

// setupsOf finds the set-ups of two runs, which must be one.
func setupsOf(before, after []entry) (a, b *setup, err error) {
	for i, run := range [][]entry{before, after} {
		for _, r := range run {
			s := r.Setup
			switch {
			case s == nil || s.Hash != s.hash():
				return nil, nil, fmt.Errorf("%w: %q tells of none, or was changed by hand", errSetups, r.Work)
			case a == nil:
				a = s
			case s.Hash != a.Hash:
				return nil, nil, fmt.Errorf("%w:\n  %s\n  %s", errSetups, describeSetup(a), describeSetup(s))
			}
			if i == 1 {
				b = s
			}
		}
	}
	if a == nil || b == nil {
		return nil, nil, errors.New("a run without a row")
	}
	return a, b, nil
}

func describeSetup(s *setup) string {
	return fmt.Sprintf("%s, %g s a measurement, peers %s", s, s.Seconds, s.Peers)
}
