package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

// contender is somebody who serves, a process of its own in the engine's namespace.
type contender struct {
	name   string
	source string   // beside this file: what it is built from; "": it is this program
	app    string   // the same of the application that this program serves
	args   []string // before the work
	kernel bool     // it serves on the interface's own address
	noGSO  bool     // on an interface without segmentation offload
}

var contenders = []contender{
	{name: "xdpd"},
	{name: "xdpd-net"},
	{name: "client-net"},
	{name: "client-ring"},
	{name: "client-c", app: "peers/client.c"},
	{name: "raw", kernel: true},
	{name: "asavie"},
	{name: "net", kernel: true},
	{name: "kernel-c", source: "peers/epoll.c", kernel: true},
	{name: "kernel-c-spin", source: "peers/epoll.c", args: []string{"-s"}, kernel: true},
	{name: "kernel-c-nogso", source: "peers/epoll.c", kernel: true, noGSO: true},
	{name: "uring", source: "peers/uring.c", kernel: true},
	{name: "xsk", source: "peers/xsk.c", kernel: true},
	{name: "gvisor", source: "gvisor"},
	{name: "gvisor-noqdisc", source: "gvisor", args: []string{"-qdisc", "none"}},
}

func contenderOf(name string) *contender {
	i := slices.IndexFunc(contenders, func(c contender) bool { return c.name == name })
	return &contenders[i] // rows name contenders that are there: TestRows
}

// builder makes programs from sources beside this file, each once.
type builder struct {
	dir   string // of what was built
	built map[string]error
}

func newBuilder() (*builder, error) {
	dir, err := os.MkdirTemp("", "xdpd-bench-")
	return &builder{dir, make(map[string]error)}, err
}

func (b *builder) cleanUp() { os.RemoveAll(b.dir) }

// program gives the path of the program made from a source: a file in C, or a folder with a Go program. "" is this program.
func (b *builder) program(ctx context.Context, source string) (string, error) {
	if source == "" {
		return os.Executable()
	}
	path := filepath.Join(b.dir, strings.TrimSuffix(filepath.Base(source), ".c"))
	if _, done := b.built[source]; !done {
		b.built[source] = build(ctx, filepath.Join(here(), source), path)
	}
	return path, b.built[source]
}

// here is the folder of this file: the bench runs from a source tree.
func here() string {
	_, file, _, _ := runtime.Caller(0)
	return filepath.Dir(file)
}

func build(ctx context.Context, source, path string) error {
	if _, err := os.Stat(source); err != nil {
		return fmt.Errorf("there is no %s", filepath.Base(source))
	}
	cmd := exec.CommandContext(ctx, "cc", "-O2", "-pthread", "-o", path, source)
	if !strings.HasSuffix(source, ".c") {
		cmd = exec.CommandContext(ctx, "go", "build", "-o", path, ".")
		cmd.Dir = source
	}
	cmd.Env = append(os.Environ(), "TMPDIR="+filepath.Dir(path)) // a compiler that is ended leaves files there
	out, err := cmd.CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("install it (apt-get install gcc): %w", err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(cmd.Args, " "), err, bytes.TrimSpace(out))
	}
	return nil
}

// command is how a contender is started for a work.
func (c *contender) command(path, work string, lab *netlab.Lab, more []string) []string {
	if strings.HasSuffix(c.source, ".c") {
		return slices.Concat([]string{path}, c.args, []string{work, lab.EngineAddr.String(), strconv.Itoa(port), lab.EngineDev})
	}
	args := append([]string{path}, c.args...)
	if c.source == "" {
		args = append(args, "-serve", c.name)
	}
	prefix := fmt.Sprintf("%s/%d", lab.EngineAddr, lab.Subnet.Bits())
	args = append(args, "-work", work, "-dev", lab.EngineDev, "-addr", prefix, "-port", strconv.Itoa(port))
	return append(args, more...)
}

// elsewhere has a program run on all CPUs but the last, which the load has for itself.
func elsewhere(args []string) []string {
	if runtime.NumCPU() == 1 {
		return args
	}
	return append([]string{"taskset", "-c", fmt.Sprintf("0-%d", runtime.NumCPU()-2)}, args...)
}

// server is a contender that runs.
type server struct {
	cmd    *exec.Cmd
	out    *bufio.Reader
	stderr *bytes.Buffer
}

// errCannot is the error of what is not there: a program, or a work that a contender does not do.
var errCannot = errors.New("cannot")

// startServer starts a program in the engine's namespace and waits until it is ready.
func startServer(ctx context.Context, lab *netlab.Lab, args []string) (*server, error) {
	s := &server{cmd: exec.CommandContext(ctx, args[0], args[1:]...), stderr: new(bytes.Buffer)}
	s.cmd.Stderr = s.stderr
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	s.out = bufio.NewReader(out)
	if err := lab.Engine.Start(s.cmd); err != nil {
		return nil, err
	}
	if line, err := s.out.ReadString('\n'); line != "ready\n" {
		s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, fmt.Errorf("%w serve: %s", errCannot, firstOf(s.complaint(), strings.TrimSpace(line), fmt.Sprint(err)))
	}
	return s, nil
}

func firstOf(texts ...string) string {
	for _, t := range texts {
		if t != "" {
			return t
		}
	}
	return ""
}

// pid is the process.
func (s *server) pid() int { return s.cmd.Process.Pid }

// stop ends a server and takes its counters.
func (s *server) stop() (c counters, err error) {
	if err := s.cmd.Process.Signal(unix.SIGTERM); err != nil {
		return c, errors.Join(fmt.Errorf("server: %w", err), s.cmd.Wait())
	}
	line, err := io.ReadAll(s.out)
	if err = errors.Join(err, s.cmd.Wait()); err != nil {
		return c, fmt.Errorf("server: %w: %s", err, s.complaint())
	}
	if err := json.Unmarshal(line, &c); err != nil {
		return c, fmt.Errorf("server printed %q: %w", line, err)
	}
	return c, nil
}

// complaint is what the server wrote to stderr: a line of it, for a panic writes many.
func (s *server) complaint() string {
	line, _, _ := strings.Cut(strings.TrimSpace(s.stderr.String()), "\n")
	return line
}
