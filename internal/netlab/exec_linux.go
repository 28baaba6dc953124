package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Start starts cmd inside the namespace. The caller waits for it with cmd.Wait, as ever. The child is killed when this
// process ends. It sees the host's /sys, not one of its namespace.
func (n *NS) Start(cmd *exec.Cmd) error {
	started := make(chan error, 2)
	go func() {
		// The second value, if any, is that of a thread which could not go home: nobody waits for it any more.
		started <- n.Do(func() error { return startAndStay(cmd, started) })
	}()
	return <-started
}

// startAndStay keeps its thread until the child has ended: the kernel sends Pdeathsig when the thread that forked ends,
// not the process (prctl(2), PR_SET_PDEATHSIG).
func startAndStay(cmd *exec.Cmd, started chan<- error) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = unix.SIGKILL
	if err := cmd.Start(); err != nil {
		return err
	}
	pid := cmd.Process.Pid // read before the caller may Wait
	started <- nil
	for {
		// WNOWAIT leaves the child to cmd.Wait; ECHILD says that Wait was first.
		err := unix.Waitid(unix.P_PID, pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			return nil
		}
	}
}

// Run runs a program inside the namespace until it ends or ctx does, which kills it. Output is what it wrote to stdout
// and stderr; the error, if any, repeats it.
func (n *NS) Run(ctx context.Context, name string, args ...string) (output []byte, err error) {
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = time.Second // a grandchild may hold the pipe
	if err = n.Start(cmd); err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		line := strings.Join(cmd.Args, " ")
		err = fmt.Errorf("netlab: %s: %w: %s", line, errors.Join(err, ctx.Err()), bytes.TrimSpace(out.Bytes()))
	}
	return out.Bytes(), err
}
