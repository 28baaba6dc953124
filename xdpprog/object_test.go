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
	"golang.org/x/sys/unix"
)

// objects are what the go:generate lines make, in their order.
var objects = []struct {
	name     string
	load     func() (*ebpf.CollectionSpec, error)
	programs []string
}{
	{"steer", loadSteer, []string{steerProgSteer, steerProgSteerMetadata}},
	{"forward", loadForward, []string{forwardProgForward, forwardProgForwardMetadata}},
	{"source", loadSource, []string{sourceProgSource, sourceProgSourceXmit, sourceProgSourceErr}},
	{"sink", loadSink, []string{sinkProgSink, sinkProgDrop}},
	{"dispatcher", loadDispatcher, []string{dispatcherProgXdpDispatcher}},
}

func TestObjectSizes(t *testing.T) {
	steer, err := loadSteer()
	if err != nil {
		t.Fatal(err)
	}
	sink, err := loadSink()
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		m            *ebpf.MapSpec
		entries, len int
	}{
		"verdicts":      {steer.Maps[steerMapCounters], len(verdictNames), 16},
		"addresses":     {steer.Maps[steerMapAddrs], MaxAddrs, 1},
		"ports":         {steer.Maps[steerMapPorts], MaxPorts, 1},
		"sink counters": {sink.Maps[sinkMapTotals], 1, 8 * len(sinkWords{})},
	} {
		if int(c.m.MaxEntries) != c.entries || int(c.m.ValueSize) != c.len {
			t.Errorf("%s: %d of %d bytes in the object, not %d of %d", name, c.m.MaxEntries, c.m.ValueSize, c.entries, c.len)
		}
	}
}

// The object carries for its instructions the source line each came from: all must still be in the source, at that line.
// This needs no compiler, and catches an edit after which nobody ran go generate.
func TestObjectIsOfThisSource(t *testing.T) {
	files := map[string][]string{}
	for _, name := range []string{"metadata.h", "stamp.h", "steer.c", "forward.c", "source.c", "sink.c", "dispatcher.c"} {
		source, err := os.ReadFile("bpf/" + name)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = strings.Split(string(source), "\n")
	}
	for _, o := range objects {
		spec, err := o.load()
		if err != nil {
			t.Fatal(err)
		}
		checked := 0
		for _, p := range o.programs {
			for _, ins := range spec.Programs[p].Instructions {
				line, ok := ins.Source().(*btf.Line)
				if !ok || line.LineNumber() == 0 { // 0: the compiler's own
					continue
				}
				lines, ok := files[filepath.Base(line.FileName())]
				if !ok { // a macro of a system header
					continue
				}
				n := int(line.LineNumber())
				if n < 1 || n > len(lines) || strings.TrimSpace(lines[n-1]) != strings.TrimSpace(line.String()) {
					t.Fatalf("%s_bpfel.o is stale (run go generate ./xdpprog): its line %d is %q", o.name, n, line.String())
				}
				checked++
			}
		}
		if checked < 50 {
			t.Errorf("%s: only %d instructions name their line", o.name, checked)
		}
	}
}

// Where the compiler is, the go:generate line must give the committed files again. The object is compared by what the
// kernel gets of it, for debug data differs with paths; and its instructions only under the same major version.
func TestRegenerate(t *testing.T) {
	version, err := exec.Command("clang", "-dumpversion").Output()
	if err != nil {
		t.Skipf("needs clang, llvm-strip and libbpf's headers: %v", err)
	}
	needRoot(t)
	enterNS(t)
	veth, _ := newVeth(t, 1500, 1)
	major, _, _ := strings.Cut(strings.TrimSpace(string(version)), ".")
	for i, o := range objects {
		dir := t.TempDir()
		generate(t, i, dir)
		fresh, err := ebpf.LoadCollectionSpec(filepath.Join(dir, o.name+"_bpfel.o"))
		if err != nil {
			t.Fatal(err)
		}
		committed, err := o.load()
		if err != nil {
			t.Fatal(err)
		}
		sameFile(t, o.name+"_bpfel.go", filepath.Join(dir, o.name+"_bpfel.go"))
		for name, m := range committed.Maps {
			f := fresh.Maps[name]
			if f == nil || f.Type != m.Type || f.Flags != m.Flags || f.MaxEntries != m.MaxEntries ||
				f.KeySize != m.KeySize || f.ValueSize != m.ValueSize {
				t.Errorf("%s: map %s: committed %v, fresh %v", o.name, name, m, f)
			}
		}
		if len(fresh.Maps) != len(committed.Maps) || len(fresh.Programs) != len(o.programs) {
			t.Errorf("%s: fresh object: %d maps, %d programs", o.name, len(fresh.Maps), len(fresh.Programs))
		}
		if major == clangMajor {
			for _, p := range o.programs {
				sameInstructions(t, o.name, committed.Programs[p], fresh.Programs[p])
			}
		}
		// Whatever compiler it was, this kernel's verifier must take what it made.
		for name, p := range fresh.Programs {
			if strings.HasSuffix(name, "_metadata") {
				p.Flags, p.Ifindex = p.Flags|unix.BPF_F_XDP_DEV_BOUND_ONLY, uint32(veth.Attrs().Index)
			}
		}
		loaded, err := ebpf.NewCollection(fresh)
		if err != nil {
			t.Fatal(err)
		}
		loaded.Close()
	}
}

// generate runs the i-th go:generate line of gen.go with another output directory.
func generate(t *testing.T, i int, dir string) {
	t.Helper()
	gen, err := os.ReadFile("gen.go")
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(string(gen), "\n//go:generate go tool bpf2go ")[1:]
	if len(lines) != len(objects) {
		t.Fatalf("gen.go has %d go:generate lines for bpf2go, want %d", len(lines), len(objects))
	}
	line, _, _ := strings.Cut(lines[i], "\n")
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

func sameInstructions(t *testing.T, object string, committed, fresh *ebpf.ProgramSpec) {
	t.Helper()
	stale := object + "_bpfel.o is stale (run go generate ./xdpprog)"
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
