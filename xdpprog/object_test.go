package xdpprog

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// The object carries for its instructions the source line each came from: all must still be in steer.c, at that line.
// This needs no compiler, and catches an edit after which nobody ran go generate.
func TestObjectIsOfThisSource(t *testing.T) {
	source, err := os.ReadFile("bpf/steer.c")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(source), "\n")
	spec, err := loadSteer()
	if err != nil {
		t.Fatal(err)
	}
	if got := spec.Maps[steerMapCounters].MaxEntries; int(got) != len(verdictNames) {
		t.Errorf("%d verdicts in the object, %d names", got, len(verdictNames))
	}
	if a, p := spec.Maps[steerMapAddrs].MaxEntries, spec.Maps[steerMapPorts].MaxEntries; a != MaxAddrs || p != MaxPorts {
		t.Errorf("%d addresses and %d ports in the object, not %d and %d", a, p, MaxAddrs, MaxPorts)
	}
	checked := 0
	for _, ins := range spec.Programs[steerProgSteer].Instructions {
		line, ok := ins.Source().(*btf.Line)
		if !ok || line.LineNumber() == 0 { // 0: the compiler's own
			continue
		}
		n := int(line.LineNumber())
		if n < 1 || n > len(lines) || strings.TrimSpace(lines[n-1]) != strings.TrimSpace(line.String()) {
			t.Fatalf("steer_bpfel.o is stale (run go generate ./xdpprog): its line %d is %q", n, line.String())
		}
		checked++
	}
	if checked < 50 {
		t.Errorf("only %d instructions name their line", checked)
	}
}

// Where the compiler is, the go:generate line must give the committed files again. The object is compared by what the
// kernel gets of it, for debug data differs with paths; and its instructions only under the same major version.
func TestRegenerate(t *testing.T) {
	version, err := exec.Command("clang", "-dumpversion").Output()
	if err != nil {
		t.Skipf("needs clang, llvm-strip and libbpf's headers: %v", err)
	}
	dir := t.TempDir()
	generate(t, dir)
	fresh, err := ebpf.LoadCollectionSpec(filepath.Join(dir, "steer_bpfel.o"))
	if err != nil {
		t.Fatal(err)
	}
	committed, err := loadSteer()
	if err != nil {
		t.Fatal(err)
	}

	sameFile(t, "steer_bpfel.go", filepath.Join(dir, "steer_bpfel.go"))
	for name, m := range committed.Maps {
		f := fresh.Maps[name]
		if f == nil || f.Type != m.Type || f.Flags != m.Flags || f.MaxEntries != m.MaxEntries ||
			f.KeySize != m.KeySize || f.ValueSize != m.ValueSize {
			t.Errorf("map %s: committed %v, fresh %v", name, m, f)
		}
	}
	if len(fresh.Maps) != len(committed.Maps) || len(fresh.Programs) != 1 {
		t.Errorf("fresh object: %d maps, %d programs", len(fresh.Maps), len(fresh.Programs))
	}
	major, _, _ := strings.Cut(strings.TrimSpace(string(version)), ".")
	if major == clangMajor {
		sameInstructions(t, committed.Programs[steerProgSteer], fresh.Programs[steerProgSteer])
	}
	// Whatever compiler it was, this kernel's verifier must take what it made.
	needRoot(t)
	loaded, err := ebpf.NewCollection(fresh)
	if err != nil {
		t.Fatal(err)
	}
	loaded.Close()
}

// generate runs the go:generate line of gen.go with another output directory.
func generate(t *testing.T, dir string) {
	t.Helper()
	gen, err := os.ReadFile("gen.go")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(gen), "\n//go:generate go tool bpf2go ")
	if !ok {
		t.Fatal("gen.go has no go:generate line for bpf2go")
	}
	line, _, _ := strings.Cut(rest, "\n")
	cmd := exec.Command("go", append([]string{"tool", "bpf2go", "-output-dir", dir}, strings.Fields(line)...)...)
	cmd.Env = append(os.Environ(), "GOPACKAGE=xdpprog")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", cmd, err, out)
	}
}

func sameFile(t *testing.T, committed, fresh string) {
	t.Helper()
	a, err := os.ReadFile(committed)
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(fresh)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(a, b) {
		t.Errorf("%s is stale: run go generate ./xdpprog", committed)
	}
}

func sameInstructions(t *testing.T, committed, fresh *ebpf.ProgramSpec) {
	t.Helper()
	const stale = "steer_bpfel.o is stale (run go generate ./xdpprog)"
	if len(committed.Instructions) != len(fresh.Instructions) {
		t.Fatalf("%s: %d instructions, now %d", stale, len(committed.Instructions), len(fresh.Instructions))
	}
	for i, a := range committed.Instructions {
		b := fresh.Instructions[i]
		same := a.OpCode == b.OpCode && a.Dst == b.Dst && a.Src == b.Src && a.Offset == b.Offset && a.Constant == b.Constant
		if !same || a.Reference() != b.Reference() {
			t.Fatalf("%s: instruction %d is %v, now %v", stale, i, a, b)
		}
	}
}
