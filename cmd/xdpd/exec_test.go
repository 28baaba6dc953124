package main

import (
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/alecthomas/kong"

	"xdpd/libxdpd"
)

func TestExecOnly(t *testing.T) {
	for _, c := range []struct {
		in   []string
		want string // "": an error
	}{
		{[]string{"10.1.2.3/8"}, "10.0.0.0/8:0-65535"},
		{[]string{"10.0.0.1", ":80", "10.0.0.0/24:8000-8999"}, "10.0.0.1/32:0-65535,0.0.0.0/0:80-80,10.0.0.0/24:8000-8999"},
		{[]string{""}, ""}, {[]string{"fe80::/10"}, ""}, {[]string{"10.0.0.1:"}, ""}, {[]string{":0"}, ""}, {[]string{":9-8"}, ""},
		{[]string{":65536"}, ""}, {[]string{"10.0.0.0/33"}, ""}, {[]string{"example.org"}, ""},
	} {
		got, err := parseOnly(c.in)
		if got != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%q: %q, %v; want %q", c.in, got, err, c.want)
		}
	}
	if all, err := parseOnly(nil); all != "" || err != nil {
		t.Errorf("without --only: %q, %v", all, err)
	}
}

// TestExecArguments: what is behind the program's name is the program's, flags too, with -- and without.
func TestExecArguments(t *testing.T) {
	for _, args := range [][]string{
		{"exec", "--only", ":80", "--", "curl", "--socket", "-h"}, {"exec", "--only=:80", "curl", "--socket", "-h"},
	} {
		var c struct {
			Exec execCmd `cmd:""`
		}
		if _, err := kong.Must(&c).Parse(args); err != nil {
			t.Errorf("%q: %v", args, err)
			continue
		}
		if got := c.Exec.program(); !slices.Equal(got, []string{"curl", "--socket", "-h"}) || !slices.Equal(c.Exec.Only, []string{":80"}) {
			t.Errorf("%q: program %q, only %q", args, got, c.Exec.Only)
		}
	}
}

func TestExecEnviron(t *testing.T) {
	got := execEnviron([]string{"A=1", "LD_PRELOAD=/other.so", "XDPD_ONLY=x", "XDPD_SOCKET=y"}, "/p.so", "/s", "0.0.0.0/0:80-80")
	want := []string{"A=1", "LD_PRELOAD=/p.so:/other.so", "XDPD_SOCKET=/s", "XDPD_ONLY=0.0.0.0/0:80-80"}
	if !slices.Equal(got, want) {
		t.Errorf("environment %q, want %q", got, want)
	}
	if again := execEnviron(got, "/p.so", "/s", ""); again[1] != "LD_PRELOAD=/p.so:/other.so" {
		t.Errorf("within another: %q", again)
	}
}

func TestExecSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "clients")
	look := func(want, fault string) {
		t.Helper()
		if got, err := findClientSocket(dir); got != want || (err == nil) != (fault == "") || err != nil && !strings.Contains(err.Error(), fault) {
			t.Errorf("found %q, %v; want %q, %q", got, err, want, fault)
		}
	}
	listen := func(path string) {
		t.Helper()
		err := os.MkdirAll(filepath.Dir(path), 0o755)
		if err == nil {
			var l net.Listener
			if l, err = (&net.ListenConfig{}).Listen(t.Context(), "unixpacket", path); err == nil {
				t.Cleanup(func() { l.Close() })
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	look("", "no daemon serves")
	listen(dir + "-nobody/eth1")
	look(dir+"-nobody/eth1", "")
	listen(dir + "/eth0")
	look("", "--socket")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := clientSocketOf(file); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("a file: %v", err)
	}
	if _, err := clientSocketOf(file + "-not"); err == nil || !strings.Contains(err.Error(), "no daemon") {
		t.Errorf("nothing: %v", err)
	}
}

// TestExecLibraryPath: where the loader would leave the library out and run the program over the kernel's sockets, it is not started.
func TestExecLibraryPath(t *testing.T) {
	dir := t.TempDir()
	socket := filepath.Join(dir, "socket")
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "unixpacket", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, name := range []string{"a blank", "a:colon"} {
		library := filepath.Join(dir, name)
		if err := os.WriteFile(library, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), selfExecuting)
		cmd.Env = append(os.Environ(), childEnv+"=exec --socket "+socket+" -- /bin/true", "XDPD_LIBRARY="+library)
		if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "blank or colon") {
			t.Errorf("%q: %v, %s", name, err, out)
		}
	}
}

// TestExecPrograms: what a file shows of why the library would not be asked.
func TestExecPrograms(t *testing.T) {
	dir := t.TempDir()
	build := func(name string, env []string, command ...string) {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), command[0], command[1:]...)
		cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", name, err, out)
		}
	}
	write := func(name, text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("main.c", "int main(void) { return 0; }\n")
	write("main.go", "package main\nfunc main() {}\n")
	write("cgo.go", "package main\n// int one(void) { return 1; }\nimport \"C\"\nfunc main() { C.one() }\n")
	write("uring.c", "int io_uring_setup(void) { return 0; }\n")
	write("uses.c", "int io_uring_setup(void);\nint main(void) { return io_uring_setup(); }\n")
	build("dynamic", nil, "cc", "-o", "dynamic", "main.c")
	build("static", nil, "cc", "-static", "-o", "static", "main.c")
	build("static-pie", nil, "cc", "-static-pie", "-o", "static-pie", "main.c")
	build("musl", nil, "cc", "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1", "-o", "musl", "main.c")
	build("liburing", nil, "cc", "-shared", "-fPIC", "-Wl,-soname,liburing.so.2", "-o", "liburing.so", "uring.c")
	build("uring", nil, "cc", "-o", "uring", "uses.c", "./liburing.so")
	build("go stripped", []string{"CGO_ENABLED=0"}, "go", "build", "-ldflags=-s -w", "-o", "go-stripped", "main.go")
	build("cgo", []string{"CGO_ENABLED=1"}, "go", "build", "-o", "cgo", "cgo.go")
	text, err := os.ReadFile(filepath.Join(dir, "dynamic"))
	if err != nil {
		t.Fatal(err)
	}
	write("other", string(text[:18])+"\xf3\x00"+string(text[20:])) // e_machine: RISC-V
	write("setuid", string(text))
	write("script", "#!"+filepath.Join(dir, "dynamic")+" -x\n")
	write("script-static", "#! "+filepath.Join(dir, "static")+"\n")
	write("script-env", "#!/usr/bin/env -S A=1 cat -u\n")
	write("script-loop", "#!"+filepath.Join(dir, "script-loop")+"\n")
	write("words", "hello\n")
	if os.Geteuid() == 0 {
		if err := os.Chown(filepath.Join(dir, "setuid"), 12345, 12345); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chmod(filepath.Join(dir, "setuid"), 0o755|fs.ModeSetuid); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, warning, fault string }{
		{name: "dynamic"},
		{name: "script"},
		{name: "script-env"},
		{name: "static", fault: "is static"},
		{name: "static-pie", fault: "is static"},
		{name: "script-static", fault: "static is static"},
		{name: "script-loop", fault: "without end"},
		{name: "musl", fault: "musl"},
		{name: "uring", warning: "io_uring"},
		{name: "go-stripped", fault: "Go program without cgo"},
		{name: "cgo", warning: "C parts"},
		{name: "other", fault: "another machine"},
		{name: "words", fault: "neither an ELF file"},
		{name: "setuid", fault: "set-user-ID"},
	} {
		if c.name == "setuid" && os.Geteuid() != 0 {
			continue // it is ours
		}
		warning, err := checkProgram(filepath.Join(dir, c.name))
		if (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: %v, want %q", c.name, err, c.fault)
		}
		if (warning == "") != (c.warning == "") || !strings.Contains(warning, c.warning) {
			t.Errorf("%s: warning %q, want %q", c.name, warning, c.warning)
		}
	}
}

// TestExecSources: the compiler finds nothing to warn of, and the linker is told of all calls that are replaced: libxdpd must not call one
// that is the library's.
func TestExecSources(t *testing.T) {
	calls, err := fs.ReadFile(libxdpd.Sources, "src/preload/preload.h")
	if err != nil {
		t.Fatal(err)
	}
	flags, err := fs.ReadFile(libxdpd.Sources, libxdpd.PreloadFlags)
	if err != nil {
		t.Fatal(err)
	}
	var replaced, wrapped []string
	for _, m := range regexp.MustCompile(`(?m)^\tX\([^,]+, (\w+), `).FindAllSubmatch(calls, -1) {
		replaced = append(replaced, string(m[1]))
	}
	for _, m := range regexp.MustCompile(`-Wl,--wrap=(\w+)`).FindAllSubmatch(flags, -1) {
		wrapped = append(wrapped, string(m[1]))
	}
	if len(replaced) < 40 || !slices.Equal(replaced, wrapped) {
		t.Errorf("preload.h replaces %q\ncc.args wraps %q", replaced, wrapped)
	}
	dir := t.TempDir()
	if err := os.CopyFS(dir, libxdpd.Sources); err != nil {
		t.Fatal(err)
	}
	files, err := fs.Glob(libxdpd.Sources, "src/preload/*.c")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	cmd := exec.CommandContext(t.Context(), "cc", append([]string{"-fsyntax-only", "-Wall", "-Wextra", "-Werror", "@" + libxdpd.PreloadFlags}, files...)...)
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, out)
	}
}

// TestExecLibraryChecked: what is named as the library and is none is not given to a loader, which would go on without.
func TestExecLibraryChecked(t *testing.T) {
	dir := t.TempDir()
	build := func(name, source string) string {
		cmd := exec.CommandContext(t.Context(), "cc", "-shared", "-fPIC", "-xc", "-o", filepath.Join(dir, name), "-")
		cmd.Stdin = strings.NewReader(source)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return filepath.Join(dir, name)
	}
	if err := checkLibrary(build("has", "int connect(void) { return 0; }")); err != nil {
		t.Error(err)
	}
	uses := build("uses", "int connect(void); int f(void) { return connect(); }")
	text := filepath.Join(dir, "text")
	if err := os.WriteFile(text, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		text: "is no library", uses: "not a library that xdpd exec built", dir + "/none": "no such file",
	} {
		if err := checkLibrary(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
}

// TestExecLibrary: the library is built once, anew when a source changes, and what the compiler says is shown.
func TestExecLibrary(t *testing.T) {
	dir := t.TempDir()
	sources := fstest.MapFS{
		libxdpd.PreloadFlags:   {Data: []byte("-shared -fPIC\n")},
		"src/preload/a.c":      {Data: []byte("#include \"../b.h\"\nint a(void) { return B; }\n")},
		"src/b.h":              {Data: []byte("#define B 1\n")},
		"src/c.c":              {Data: []byte("int c;\n")},
		"src/preload/README.x": {Data: []byte("nothing\n")},
	}
	first, err := buildLibrary(sources, dir, "cc")
	if err != nil {
		t.Fatal(err)
	}
	if again, err := buildLibrary(sources, dir, "no-such-compiler"); again != first || err != nil {
		t.Errorf("the second time: %s, %v; want %s", again, err, first)
	}
	sources["src/b.h"] = &fstest.MapFile{Data: []byte("#define B 2\n")}
	if _, err := buildLibrary(sources, dir, "no-such-compiler"); err == nil || !strings.Contains(err.Error(), "install gcc") {
		t.Errorf("without a compiler: %v", err)
	}
	if changed, err := buildLibrary(sources, dir, "cc"); changed == first || err != nil {
		t.Errorf("changed: %s, %v", changed, err)
	}
	sources["src/c.c"] = &fstest.MapFile{Data: []byte("int c\n")}
	if _, err := buildLibrary(sources, dir, "cc"); err == nil || !strings.Contains(err.Error(), "src/c.c") {
		t.Errorf("a source that is wrong: %v", err)
	}
	if err := ours(dir); err != nil {
		t.Error(err)
	}
	if err := os.Chmod(dir, 0o775); err != nil {
		t.Fatal(err)
	}
	if err := ours(dir); err == nil || !strings.Contains(err.Error(), "others may write") {
		t.Errorf("a folder that the group may write: %v", err)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) != 2 {
		t.Errorf("in the cache: %v, %v; want two libraries", left, err)
	}
}
