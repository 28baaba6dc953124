//go:build cgo

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestC: a program in C, with ASan, linked with the archive, talks UDP and TCP over frames written by hand. The same seed gives the same
// frames at the same times, another one others.
func TestC(t *testing.T) {
	dir := t.TempDir()
	archive, bin := filepath.Join(dir, "libxdpd_stack.a"), filepath.Join(dir, "wire")
	run := func(name string, args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), name, args...)
		cmd.Env = append(os.Environ(), "ASAN_OPTIONS=detect_leaks=0") // of memory that Go keeps
		out, err := cmd.CombinedOutput()
		if err != nil {
			t.Fatalf("%s: %v\n%s", cmd, err, out[max(0, len(out)-4000):])
		}
		return string(out)
	}
	run("go", "build", "-buildmode=c-archive", "-o", archive, ".")
	run("cc", "-g", "-std=gnu11", "-fsanitize=address,undefined", "-fno-sanitize-recover", "-Wall", "-Wextra", "-Werror", "-I../src", "-o", bin,
		"testdata/wire.c", archive, "-pthread")
	one := run(bin, "1")
	if !strings.HasSuffix(one, "\ndone\n") || strings.Count(one, "\n") < 10 {
		t.Errorf("printed:\n%s", one)
	}
	if again := run(bin, "1"); again != one {
		t.Errorf("the same seed gave other frames:\n%s\nand\n%s", one, again)
	}
	if other := run(bin, "2"); other == one {
		t.Error("two seeds gave the same frames: nothing in them is random")
	}
}

// TestHeader compares the names in xdpd_stack.h with those that are exported. Their types the compiler compares.
func TestHeader(t *testing.T) {
	header, err := os.ReadFile("../src/xdpd_stack.h")
	if err != nil {
		t.Fatal(err)
	}
	source, err := os.ReadFile("export_unsafe.go")
	if err != nil {
		t.Fatal(err)
	}
	names := func(text []byte, expr string) (list []string) {
		for _, m := range regexp.MustCompile(expr).FindAllSubmatch(text, -1) {
			list = append(list, string(m[1]))
		}
		slices.Sort(list)
		return list
	}
	declared := names(header, `(?m)^[a-z].*\b(xdpd_stack_\w+|xdpd_stack)\(.*\);$`)
	exported := names(source, `(?m)^//export (\w+)$`)
	if len(declared) < 10 || !slices.Equal(declared, exported) {
		t.Errorf("xdpd_stack.h declares\n%q, and exported are\n%q", declared, exported)
	}
}
