package main

import (
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// testSetup is a set-up with a right hash, changed a little.
func testSetup(change func(*setup)) *setup {
	s := &setup{
		Machine: "EPYC", Cores: 2, Kernel: "6.18", Device: "veth", Mode: "copy, native", Go: "go1.26", Seconds: 1, Peers: "p",
		Commit: "abc",
	}
	if change != nil {
		change(s)
	}
	s.Hash = s.hash()
	return s
}

func testRun(s *setup, ratios ...float64) []entry {
	var out []entry
	for i, r := range ratios {
		out = append(out, entry{ratio: ratio{string(rune('a' + i)), "net", r, r * .9, r * 1.1, 7}, Better: "higher", Setup: s})
	}
	return out
}

func TestCompare(t *testing.T) {
	old, later := testSetup(nil), testSetup(func(s *setup) { s.Commit = "def" })
	text, err := compare(testRun(old, 1, 2, 3), testRun(later, 1.05, 3, 3))
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"| work | against | abc | [low .. high] | def | [low .. high] | change |",
		"| a | net | 1.00 | [0.90 .. 1.10] | 1.05 | [0.95 .. 1.16] | |",
		"| b | net | 2.00 | [1.80 .. 2.20] | 3.00 | [2.70 .. 3.30] | +50 % |",
	} {
		if !strings.Contains(squeezed(text), line) {
			t.Errorf("no line %s in\n%s", line, text)
		}
	}
}

// TestCompareRefuses: everything but the commit must be the same.
func TestCompareRefuses(t *testing.T) {
	old := testRun(testSetup(nil), 1)
	for name, change := range map[string]func(*setup){
		"machine": func(s *setup) { s.Machine = "Xeon" },
		"cores":   func(s *setup) { s.Cores = 4 },
		"kernel":  func(s *setup) { s.Kernel = "6.19" },
		"device":  func(s *setup) { s.Device = "ice" },
		"mode":    func(s *setup) { s.Mode = "copy, generic" },
		"go":      func(s *setup) { s.Go = "go1.27" },
		"seconds": func(s *setup) { s.Seconds = 2 },
		"peers":   func(s *setup) { s.Peers = "q" },
	} {
		other := testRun(testSetup(change), 1)
		for _, pair := range [][2][]entry{{old, other}, {other, old}, {append(testRun(testSetup(nil), 1), other...), old}} {
			if text, err := compare(pair[0], pair[1]); !errors.Is(err, errSetups) || text != "" {
				t.Errorf("another %s is compared: %q, %v", name, text, err)
			}
		}
	}
	forged := testSetup(nil)
	forged.Kernel = "6.19"
	for name, run := range map[string][]entry{"forged": testRun(forged, 1), "without": testRun(nil, 1)} {
		if _, err := compare(old, run); !errors.Is(err, errSetups) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := compare(old, nil); err == nil {
		t.Error("an empty run is compared")
	}
}

func TestCompareFiles(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a.json"), filepath.Join(dir, "b.json")
	for file, run := range map[string][]entry{a: testRun(testSetup(nil), 1, 2), b: testRun(testSetup(nil), 1, 4)} {
		if err := writeJSON(file, run); err != nil {
			t.Fatal(err)
		}
	}
	if text, err := compareFiles(a, b); err != nil || !strings.Contains(text, "+100 %") {
		t.Errorf("%s, %v", text, err)
	}
	if _, err := compareFiles(a, filepath.Join(dir, "none")); err == nil {
		t.Error("a file that is not there is compared")
	}
}

func TestHashPeers(t *testing.T) {
	base := fstest.MapFS{"peers/a.c": {Data: []byte("int a;")}, "gvisor/go.mod": {Data: []byte("module x")}}
	hash := func(fs fstest.MapFS) string {
		h, err := hashPeers(fs)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	was := hash(base)
	base["serve.go"] = &fstest.MapFile{Data: []byte("package main")}
	if hash(base) != was {
		t.Error("a change of the engine's side counts as another set-up")
	}
	for name, text := range map[string]string{"peers/a.c": "int b;", "peers/b.c": "int a;", "gvisor/go.mod": "module y"} {
		changed := fstest.MapFS{name: {Data: []byte(text)}}
		for n, f := range base {
			if changed[n] == nil {
				changed[n] = f
			}
		}
		if hash(changed) == was {
			t.Errorf("another %s is not seen", name)
		}
	}
}

func TestSetup(t *testing.T) {
	r := fakeResults("udp-open")
	r.samples["udp-open"]["xdpd"][0].counters.Mode = "copy, native"
	s, err := (&bench{seconds: .5}).setup(r)
	if err != nil || s.Mode != "copy, native" || s.Kernel != kernelRelease() || s.Cores < 1 || s.Hash != s.hash() || s.Commit == "" {
		t.Errorf("%+v, %v", s, err)
	}
	for _, part := range []string{s.Machine, s.Kernel, s.Mode, s.Go, s.Commit, s.Hash} {
		if !strings.Contains(s.String(), part) {
			t.Errorf("%s does not say %s", s, part)
		}
	}
}
