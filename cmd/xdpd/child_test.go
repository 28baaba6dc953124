package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/alecthomas/kong"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

// newLab makes a lab, on the machine's own NICs if there are any (scripts/vmlab). The caller closes it.
func newLab(t testing.TB, o netlab.Options) *netlab.Lab {
	t.Helper()
	needRoot(t)
	o.NICs = netlab.NICs()
	lab, err := netlab.New(o)
	if errors.Is(err, netlab.ErrNICs) {
		t.Skipf("%s: %v", t.Name(), err)
	}
	if err != nil {
		t.Fatal(err)
	}
	return lab
}

// A test that needs a process with fewer rights starts this binary again, with childEnv saying what to do there.
const (
	childEnv      = "XDPD_TEST_CHILD"   // "run FLAGS", "grant FLAGS", "exec FLAGS", "restore FLAGS", "try OPERATION", "doctor [IFACE]", "demo", "control PATH", "stats PATH", "find DIR"
	childWithout  = "XDPD_TEST_WITHOUT" // a capability to lose first, by number
	childMemlock  = "XDPD_TEST_MEMLOCK" // RLIMIT_MEMLOCK to have, in bytes
	nobody        = 65534               // a user without rights
	selfExecuting = "/proc/self/exe"    // works in folders that nobody may not enter
)

func TestMain(m *testing.M) {
	if do := os.Getenv(childEnv); do != "" {
		if err := child(strings.Fields(do)); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func child(do []string) error {
	if os.Getenv(childWithout) != "" || os.Getenv(childMemlock) != "" {
		return loseRights()
	}
	switch do[0] {
	case "run", "grant", "exec", "restore":
		k, err := kong.Must(&cli).Parse(do)
		if err != nil {
			return err
		}
		return runCommand(k)
	case "doctor":
		return (&doctorCmd{Interface: strings.Join(do[1:], "")}).Run()
	case "try":
		return tryOperation(strings.Join(do[1:], " "))
	case "demo":
		return (&demoCmd{Seconds: 1}).Run()
	case "control":
		_, err := serveStats(context.Background(), do[1], noStats)
		return err
	case "stats":
		return (&statsCmd{Control: do[1]}).Run()
	case "find":
		_, err := findControl(do[1])
		return err
	}
	return errors.New("what is this child to do?")
}

// loseRights becomes the same program with less. A capability that is not in the bounding set is lost to root at execve
// (capabilities(7)); the calling thread's set is the one that counts.
func loseRights() error {
	runtime.LockOSThread()
	var bit int
	var limit uint64
	if _, err := fmt.Sscan(os.Getenv(childWithout), &bit); err == nil {
		if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(bit), 0, 0, 0); err != nil {
			return fmt.Errorf("drop capability %d: %w", bit, err)
		}
	}
	if _, err := fmt.Sscan(os.Getenv(childMemlock), &limit); err == nil {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: limit, Max: limit}); err != nil {
			return fmt.Errorf("set RLIMIT_MEMLOCK: %w", err)
		}
	}
	env := []string{childEnv + "=" + os.Getenv(childEnv)}
	return unix.Exec(selfExecuting, os.Args, env)
}

// childCommand is this program doing something else; env are further NAME=VALUE.
func childCommand(t *testing.T, do string, env ...string) *exec.Cmd {
	cmd := exec.CommandContext(t.Context(), selfExecuting)
	cmd.Env = append(env, childEnv+"="+do)
	return cmd
}

// asNobody takes all rights from the command, but the capabilities given.
func asNobody(cmd *exec.Cmd, caps ...uintptr) *exec.Cmd {
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, AmbientCaps: caps,
	}
	return cmd
}

// runChild runs it to its end and gives what it wrote, and its exit status.
func runChild(t *testing.T, cmd *exec.Cmd) (output string, status int) {
	t.Helper()
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%v: %v\n%s", cmd.Env, err, out)
	}
	return string(out), cmd.ProcessState.ExitCode()
}
