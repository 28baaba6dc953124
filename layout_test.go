package xdpd_test

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/fstest"

	"xdpd/internal/netlab"
)

const module = "xdpd"

// A room is a folder with everything below it; of two that match, the longer name counts.
type room struct {
	name string   // "." is the root folder alone
	may  []string // rooms it may import besides itself
}

// rooms is the import table, from the bottom up. A test may also import what stands above its room in this list.
var rooms = []room{
	{"umem", nil},
	{"rings", []string{"umem"}},
	{"proto", nil},
	{"xdpprog", nil},
	{"sockets", []string{"proto", "umem"}},
	{"reactor", []string{"sockets", "proto", "rings", "umem"}},
	{"internal", nil},
	{"scripts", nil},
	{"libxdpd", nil},
	{".", []string{"reactor", "sockets", "xdpprog", "proto", "rings", "umem", "internal"}},
	{"cmd/xdpd", []string{".", "reactor", "sockets", "xdpprog", "proto", "rings", "umem", "internal", "scripts", "libxdpd"}},
	{"libxdpd/stack", []string{"reactor", "sockets", "proto", "rings", "umem"}},
	{"bench", []string{"cmd/xdpd", ".", "reactor", "sockets", "xdpprog", "proto", "rings", "umem", "internal"}},
}

// testsMay is what every test may import.
var testsMay = []string{"internal", "rings/simnic"}

const (
	maxLines     = 500
	maxTestLines = 900
)

// needSources leaves a test of the sources out where there are only the programs.
func needSources(t *testing.T) {
	if netlab.NICs() != nil {
		t.Skipf("%s: %v: the guest has no sources", t.Name(), netlab.ErrNICs)
	}
}

// within tells whether dir is folder or below it.
func within(dir, folder string) bool {
	return dir == folder || folder != "." && strings.HasPrefix(dir, folder+"/")
}

// roomOf returns the index in rooms of a folder's room, or -1.
func roomOf(dir string) int {
	found := -1
	for i, r := range rooms {
		if within(dir, r.name) && (found < 0 || len(r.name) > len(rooms[found].name)) {
			found = i
		}
	}
	return found
}

// mayImport tells whether a file in folder from may import the package in folder to.
func mayImport(from, to string, isTest bool) bool {
	f, t := roomOf(from), roomOf(to)
	if f < 0 || t < 0 {
		return false
	}
	if isTest && (t < f || slices.ContainsFunc(testsMay, func(folder string) bool { return within(to, folder) })) {
		return true
	}
	return t == f || slices.Contains(rooms[f].may, rooms[t].name)
}

// checkLayout reads every Go file in the tree and returns what breaks a rule, and the rooms that have a file.
func checkLayout(tree fs.FS) (faults []string, seen map[string]bool, err error) {
	seen = map[string]bool{}
	err = fs.WalkDir(tree, ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			hidden := strings.HasPrefix(d.Name(), ".") && name != "."
			if hidden || d.Name() == "testdata" || d.Name() == "vendor" {
				return fs.SkipDir
			}
			return nil
		}
		if path.Ext(name) != ".go" {
			return nil
		}
		source, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		if i := roomOf(path.Dir(name)); i < 0 {
			faults = append(faults, name+": its folder is not in the import table")
		} else {
			seen[rooms[i].name] = true
		}
		found, err := checkFile(name, source)
		faults = append(faults, found...)
		return err
	})
	return faults, seen, err
}

func checkFile(name string, source []byte) (faults []string, err error) {
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, name, source, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	fault := func(format string, args ...any) {
		faults = append(faults, name+": "+fmt.Sprintf(format, args...))
	}
	stem := strings.TrimSuffix(name, ".go")
	isTest := strings.HasSuffix(stem, "_test")
	stem = strings.TrimSuffix(stem, "_test")
	unsafeFile := strings.HasSuffix(stem, "_unsafe")
	generated := ast.IsGenerated(file)
	systemCalls := map[string]bool{} // names under which the file imports packages with system calls

	for _, spec := range file.Imports {
		target, err := strconv.Unquote(spec.Path.Value)
		if err != nil {
			return nil, err
		}
		if target == module || strings.HasPrefix(target, module+"/") {
			to := path.Clean("./" + strings.TrimPrefix(target, module))
			if !mayImport(path.Dir(name), to, isTest) {
				fault("may not import %s", target)
			}
		}
		if target == "unsafe" && !unsafeFile && !isTest && !generated {
			fault("unsafe belongs in files named *_unsafe.go")
		}
		if target == "syscall" || target == "golang.org/x/sys/unix" {
			local := path.Base(target)
			if spec.Name != nil {
				local = spec.Name.Name
			}
			systemCalls[local] = true
		}
	}
	if !unsafeFile && !strings.HasSuffix(stem, "_linux") {
		ast.Inspect(file, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok && isRawCall(s.Sel.Name) {
				if p, ok := s.X.(*ast.Ident); ok && systemCalls[p.Name] {
					fault("%s.%s belongs in files named *_linux.go or *_unsafe.go", p.Name, s.Sel.Name)
				}
			}
			return true
		})
	}
	limit := maxLines
	if isTest {
		limit = maxTestLines
	}
	if lines := strings.Count(string(source), "\n"); lines > limit && !generated {
		fault("%d lines, the limit is %d: which second thing has it become?", lines, limit)
	}
	return faults, nil
}

// isRawCall knows Syscall, Syscall6, SyscallNoError and the like, with and without Raw.
func isRawCall(name string) bool {
	return strings.HasPrefix(strings.TrimPrefix(name, "Raw"), "Syscall")
}

func TestLayout(t *testing.T) {
	needSources(t)
	faults, seen, err := checkLayout(os.DirFS("."))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range faults {
		t.Error(f)
	}
	for _, r := range rooms {
		if !seen[r.name] {
			t.Errorf("the import table has the room %s, where no Go file is", r.name)
		}
	}
}

// TestBaggage: what only the bench compares with is in a module of its own, and not among ours.
func TestBaggage(t *testing.T) {
	needSources(t)
	for _, name := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for _, baggage := range []string{"gvisor.dev/gvisor", "gonum.org/v1/plot"} {
			if strings.Contains(string(text), baggage) {
				t.Errorf("%s: %s belongs to a module below bench", name, baggage)
			}
		}
	}
}

// TestLayoutRules shows the rules one file each: fault is a part of the only report, "" means that there is none.
func TestLayoutRules(t *testing.T) {
	imports := func(list ...string) string { return "package p\nimport (\"" + strings.Join(list, "\"\n\"") + "\")\n" }
	long := func(n int) string { return "package p\n" + strings.Repeat("\n", n-1) }
	for _, c := range []struct{ name, source, fault string }{
		{"umem/a.go", imports("fmt", "golang.org/x/sys/unix", "github.com/cilium/ebpf"), ""},
		{"umem/a.go", imports("xdpd/proto"), "may not import xdpd/proto"},
		{"umem/a.go", imports("xdpd/internal/clock"), "may not import xdpd/internal/clock"},
		{"rings/a.go", imports("xdpd/umem"), ""},
		{"rings/simnic/a.go", imports("xdpd/umem", "xdpd/rings"), ""},
		{"rings/simnic/a.go", imports("xdpd/reactor"), "may not import xdpd/reactor"},
		{"rings/a.go", imports("xdpd/sockets"), "may not import xdpd/sockets"},
		{"proto/a.go", imports("xdpd/umem"), "may not import xdpd/umem"},
		{"xdpprog/a.go", imports("xdpd/rings"), "may not import xdpd/rings"},
		{"sockets/a.go", imports("xdpd/proto", "xdpd/umem"), ""},
		{"sockets/a.go", imports("xdpd/rings"), "may not import xdpd/rings"},
		{"reactor/a.go", imports("xdpd/sockets", "xdpd/proto", "xdpd/rings", "xdpd/umem"), ""},
		{"reactor/a.go", imports("xdpd/xdpprog"), "may not import xdpd/xdpprog"},
		{"reactor/a.go", imports("xdpd"), "may not import xdpd"},
		{"a.go", imports("xdpd/reactor", "xdpd/xdpprog", "xdpd/internal/x"), ""},
		{"a.go", imports("xdpd/cmd/xdpd/flags"), "may not import xdpd/cmd/xdpd/flags"},
		{"cmd/xdpd/a.go", imports("xdpd", "xdpd/umem", "xdpd/internal/x"), ""},
		{"cmd/xdpd/a.go", imports("xdpd/bench/x"), "may not import xdpd/bench/x"},
		{"bench/a.go", imports("xdpd", "xdpd/umem", "xdpd/cmd/xdpd/x"), ""},
		{"internal/x/a.go", imports("xdpd/internal/y"), ""},
		{"internal/x/a.go", imports("xdpd/umem"), "may not import xdpd/umem"},
		{"internal/x/a.go", imports("xdpd"), "may not import xdpd"},
		{"internal/x/a_test.go", imports("xdpd/proto"), ""},
		{"umem/a_test.go", imports("xdpd/umem", "xdpd/internal/x", "xdpd/rings/simnic"), ""},
		{"umem/a_test.go", imports("xdpd/rings"), "may not import xdpd/rings"},
		{"sockets/a_test.go", imports("xdpd/rings", "xdpd/xdpprog"), ""},
		{"sockets/a_test.go", imports("xdpd/reactor"), "may not import xdpd/reactor"},
		{"extra/a.go", "package p\n", "not in the import table"},
		{"umemory/a.go", "package p\n", "not in the import table"},
		{"umem/a.go", imports("xdpdother/umem"), ""},
		{"umem/testdata/a.go", imports("xdpd/reactor"), ""},

		{"umem/a.go", imports("unsafe"), "unsafe belongs"},
		{"umem/a_linux.go", imports("unsafe"), "unsafe belongs"},
		{"umem/a_unsafe.go", imports("unsafe"), ""},
		{"umem/a_test.go", imports("unsafe"), ""},
		{"umem/a.go", "// Code generated by x. DO NOT EDIT.\n\n" + imports("unsafe"), ""},

		{"umem/a.go", imports("golang.org/x/sys/unix") + "var e = unix.Close(3)\n", ""},
		{"umem/a.go", imports("golang.org/x/sys/unix") + "var _, _, e = unix.RawSyscall(1, 2, 3, 4)\n", "unix.RawSyscall belongs"},
		{"umem/a.go", "package p\nimport u \"syscall\"\nvar _, _, e = u.Syscall6(1, 2, 3, 4, 5, 6, 7)\n", "u.Syscall6 belongs"},
		{"umem/a_linux.go", imports("golang.org/x/sys/unix") + "var _, _, e = unix.Syscall(1, 2, 3, 4)\n", ""},
		{"umem/a_unsafe.go", imports("syscall") + "var _, _, e = syscall.Syscall(1, 2, 3, 4)\n", ""},
		{"umem/a_linux_test.go", imports("syscall") + "var _, _, e = syscall.Syscall(1, 2, 3, 4)\n", ""},

		{"umem/a.go", long(500), ""},
		{"umem/a.go", long(501), "501 lines"},
		{"umem/a_test.go", long(900), ""},
		{"umem/a_test.go", long(901), "901 lines"},
		{"umem/a.go", "// Code generated by x. DO NOT EDIT.\n\n" + long(501), ""},
	} {
		faults, _, err := checkLayout(fstest.MapFS{c.name: {Data: []byte(c.source)}})
		switch {
		case err != nil:
			t.Errorf("%s: %v\n%s", c.name, err, c.source)
		case c.fault == "" && len(faults) > 0:
			t.Errorf("a good %s is reported: %v\n%s", c.name, faults, c.source)
		case c.fault != "" && (len(faults) != 1 || !strings.Contains(faults[0], c.fault)):
			t.Errorf("%s: reported %q, want %q\n%s", c.name, faults, c.fault, c.source)
		}
	}
}
