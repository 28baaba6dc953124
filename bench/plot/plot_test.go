package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const result = `[
{"work": "udp-open xdpd rate", "against": "kernel-c", "ratio": 2, "low": 1.5, "high": 2.5, "rounds": 3, "better": "higher", "target": 2.5},
{"work": "udp-open xdpd cpu", "against": "kernel-c", "ratio": 0.5, "low": 0.4, "high": 0.6, "rounds": 3, "better": "lower"},
{"work": "udp-rtt xdpd p50", "against": "net", "ratio": 0.3, "low": 0.3, "high": 0.3, "rounds": 3, "better": "lower"},
{"work": "http xdpd rate", "against": "gvisor", "rounds": 0, "missing": "gvisor: cannot serve"},
{"work": "grow-flows 1000 xdpd rate", "against": "1", "ratio": 0.9, "low": 0.8, "high": 1, "rounds": 3, "value": 0.7, "unit": "Mpps"},
{"work": "grow-flows 1 xdpd rate", "against": "1", "ratio": 1, "low": 1, "high": 1, "rounds": 3, "value": 0.8, "unit": "Mpps"}
]`

func TestPlots(t *testing.T) {
	dir := t.TempDir()
	file, out := filepath.Join(dir, "result.json"), filepath.Join(dir, "out")
	if err := os.WriteFile(file, []byte(result), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := run([]string{file, out}); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"more-is-better": "kernel-c", "cpu": "kernel-c", "less-is-better": "net", "grow-flows": "flows",
	} {
		text, err := os.ReadFile(filepath.Join(out, name+".svg"))
		if err != nil {
			t.Error(err)
			continue
		}
		if !strings.Contains(string(text), "</svg>") || !strings.Contains(string(text), want) {
			t.Errorf("%s.svg has no %q: %.200s", name, want, text)
		}
		if strings.Contains(string(text), "gvisor") {
			t.Errorf("%s.svg shows what was not measured", name)
		}
	}
}

func TestSplit(t *testing.T) {
	_, curves := split([]entry{
		{Work: "grow-flows 1000 xdpd rate", Value: 1}, {Work: "grow-flows 1 xdpd rate", Value: 2}, {Work: "grow-flows 1 xdpd cpu"},
	})
	if c := curves["grow-flows"]; len(c) != 2 || c[0].n != 1 || c[1].n != 1000 || c[0].Value != 2 {
		t.Errorf("%+v", curves)
	}
}
