package xdpd_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"xdpd"
)

// Applications in processes of their own: this test binary again, with childDo saying what to do. It talks to the test by lines: on
// its standard input what is asked, on its standard output what came of it.
const (
	childDo   = "XDPD_TEST_DO"
	childPath = "XDPD_TEST_CLIENTS" // the daemon's socket
	otherUser = 65534               // nobody
)

// children are what a child can do, with the words that follow.
var children = map[string]func(path string, args []string) error{}

// TestChild is the child's side; as a test of its own it does nothing.
func TestChild(t *testing.T) {
	do := strings.Fields(os.Getenv(childDo))
	if len(do) == 0 {
		return
	}
	if err := children[do[0]](os.Getenv(childPath), do[1:]); err != nil {
		fmt.Fprintln(os.Stderr, do[0]+":", err)
		os.Exit(1)
	}
	os.Exit(0)
}

// child is a running one.
type child struct {
	t   testing.TB
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

// startChild starts one. uid 0: this user.
func startChild(t testing.TB, uid uint32, path, do string) *child {
	t.Helper()
	c := &child{t: t, cmd: exec.Command("/proc/self/exe", "-test.run=^TestChild$")} // works in folders that nobody may not enter
	c.cmd.Env = append(os.Environ(), childDo+"="+do, childPath+"="+path, "XDPD_SEED=")
	c.cmd.Dir, c.cmd.Stderr = "/", os.Stderr
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if uid != 0 {
		c.cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	}
	out, err := c.cmd.StdoutPipe()
	if err == nil {
		c.in, err = c.cmd.StdinPipe()
	}
	if err == nil {
		err = c.cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	c.out = bufio.NewScanner(out)
	t.Cleanup(c.kill)
	return c
}

// ask gives it a line and wants one back.
func (c *child) ask(format string, args ...any) string {
	c.t.Helper()
	if _, err := fmt.Fprintf(c.in, format+"\n", args...); err != nil {
		c.t.Fatal(err)
	}
	return c.hear()
}

func (c *child) hear() string {
	c.t.Helper()
	if !c.out.Scan() {
		c.t.Fatalf("the application ended: %v", c.out.Err())
	}
	return c.out.Text()
}

// kill ends it as nothing else does: it has no say in it.
func (c *child) kill() {
	_ = c.cmd.Process.Kill()
	_ = c.cmd.Wait() // how it ended is known
}

// openDoor is a folder that other users may enter, for the daemon's socket.
func openDoor(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "xdpd-door")
	if err == nil {
		err = os.Chmod(dir, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "clients")
}

// policed serves clients by policies, at a socket that all users reach.
func policed(t testing.TB, stack *xdpd.Stack, policies ...xdpd.ClientPolicy) (*xdpd.ClientServer, string) {
	t.Helper()
	path := openDoor(t)
	l, err := xdpd.ListenClients(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := stack.ServeClients(l, policies)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, path
}

// lines has a child answer the lines that it is asked.
func lines(answer func(words []string) string) error {
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		if _, err := fmt.Println(answer(strings.Fields(in.Text()))); err != nil {
			return err
		}
	}
	return in.Err()
}

func init() {
	children["sockets"] = childSockets
}

// childSockets opens sockets by the ring on reactor args[0], and does what it is told with them.
func childSockets(path string, args []string) error {
	var reactor uint32
	if _, err := fmt.Sscan(args[0], &reactor); err != nil {
		return err
	}
	q, err := xdpd.OpenRing(context.Background(), path, xdpd.RemoteConfig{Reactor: reactor})
	if err != nil {
		return err
	}
	p := &ringProgram{q: q}
	return lines(p.do)
}
