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

// TestC: programs in C over the archive. One, with ASan, talks UDP and TCP over frames written by hand: the same seed gives the same
// frames at the same times, another one others. The other uses libxdpd. What drives the stack for packetdrill compiles.
func TestC(t *testing.T) {
	dir := t.TempDir()
	archive := filepath.Join(dir, "libxdpd_stack.a")
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
	strict := []string{"-g", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-I../src"}
	build := func(name string, more ...string) string {
		t.Helper()
		bin := filepath.Join(dir, name)
		run("cc", slices.Concat(strict, []string{"-o", bin, "testdata/" + name + ".c"}, more, []string{archive, "-pthread"})...)
		return bin
	}
	run("go", "build", "-buildmode=c-archive", "-o", archive, ".")
	wire := build("wire", "-fsanitize=address,undefined", "-fno-sanitize-recover")
	one := run(wire, "1")
	if !strings.HasSuffix(one, "\ndone\n") || strings.Count(one, "\n") < 10 {
		t.Errorf("printed:\n%s", one)
	}
	if again := run(wire, "1"); again != one {
		t.Errorf("the same seed gave other frames:\n%s\nand\n%s", one, again)
	}
	if other := run(wire, "2"); other == one {
		t.Error("two seeds gave the same frames: nothing in them is random")
	}
	library, err := filepath.Glob("../src/*.c")
	if err != nil || len(library) == 0 {
		t.Fatal(library, err)
	}
	if got := run(build("sockets", library...)); got != "done\n" {
		t.Errorf("printed:\n%s", got)
	}
	run("cc", slices.Concat(strict, []string{"-Wno-cast-function-type", "-fsyntax-only", "../conformance/packetdrill_xdpd.c"})...)
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
