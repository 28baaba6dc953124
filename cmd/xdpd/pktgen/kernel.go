package pktgen

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/scripts"
)

// kernelFlows is how many flows the kernel's pktgen has at most (MAX_CFLOWS in net/core/pktgen.c).
const kernelFlows = 65536

// kernelSource runs scripts/pktgen.
type kernelSource struct {
	cmd   *exec.Cmd
	out   bytes.Buffer
	errs  bytes.Buffer
	state string  // file that tells how far pktgen is
	size  float64 // mean, without FCS

	mu   sync.Mutex
	done *Sent // when it has ended
}

func newKernelSource(c *Config) (*kernelSource, error) {
	if c.N > kernelFlows {
		return nil, fmt.Errorf("--flows %d: the kernel's pktgen has at most %d: use --source bpf", c.N, kernelFlows)
	}
	bash, err := exec.LookPath("bash")
	if err != nil {
		return nil, fmt.Errorf("--source kernel runs a script: %w: install bash, or use --source bpf", err)
	}
	cpu := max(0, c.CPU)
	proc := cmp.Or(os.Getenv("PKTGEN_PROC"), "/proc/net/pktgen")
	s := &kernelSource{
		cmd:   exec.Command(bash, append([]string{"-c", scripts.Pktgen, "pktgen"}, scriptArgs(c, cpu)...)...),
		state: filepath.Join(proc, fmt.Sprintf("%s@%d", c.Interface, cpu)), size: c.Sizes.mean() - fcs,
	}
	s.cmd.Stdout, s.cmd.Stderr = &s.out, &s.errs
	s.cmd.WaitDelay = time.Second // a child of it that does not end may hold the pipes
	return s, nil
}

// scriptArgs is the configuration in the script's words.
func scriptArgs(c *Config, cpu int) []string {
	args := []string{
		"-i", c.Interface, "--dst", c.Dst.String(), "--dst-mac", c.DstMAC.String(), "--src", c.Src.String(), "--src-mac", c.SrcMAC.String(),
		"--dport", c.Dport.String(), "--sport", c.Sport.String(), "--size", c.Sizes.String(), "--count", strconv.FormatUint(c.frames(), 10),
		"--burst", strconv.Itoa(c.Burst), "--cpu", strconv.Itoa(cpu),
	}
	if c.N > 1 {
		args = append(args, "--flows", strconv.Itoa(c.N))
	}
	if c.Queue > 0 {
		args = append(args, "--queue", strconv.Itoa(c.Queue))
	}
	if rate := c.perSecond(); rate > 0 {
		args = append(args, "--delay", strconv.FormatInt(int64(1e9/rate), 10))
	}
	return args
}

// run starts the script on this thread, in whose network namespace pktgen looks for the interface.
func (s *kernelSource) run(ctx context.Context) error {
	if err := s.cmd.Start(); err != nil {
		return fmt.Errorf("run scripts/pktgen: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.cmd.Process.Signal(unix.SIGTERM) })
	defer stop()
	err := s.cmd.Wait()
	if err != nil && ctx.Err() != nil && s.out.Len() == 0 && s.errs.Len() == 0 {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.done = &Sent{} // it was stopped before it began
		return nil
	}
	if err != nil {
		return errors.New(strings.TrimPrefix(cmp.Or(strings.TrimSpace(s.errs.String()), err.Error()), "pktgen: "))
	}
	lines := strings.Split(strings.TrimSpace(s.out.String()), "\n")
	var packets, refused, usec uint64
	if _, err := fmt.Sscanf(lines[len(lines)-1], "sent %d errors %d usec %d", &packets, &refused, &usec); err != nil {
		return fmt.Errorf("scripts/pktgen tells no result: %q", s.out.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = &Sent{Packets: packets, Bytes: s.bytes(packets), Errors: refused, Took: time.Duration(usec) * time.Microsecond}
	return nil
}

// bytes is what so many packets had, which pktgen does not count: exact where all are of one size.
func (s *kernelSource) bytes(packets uint64) uint64 { return uint64(float64(packets) * s.size) }

func (s *kernelSource) sent() (Sent, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done != nil {
		return *s.done, nil
	}
	text, err := os.ReadFile(s.state)
	if err != nil {
		return Sent{}, nil // not yet there
	}
	var now Sent
	_, rest, _ := strings.Cut(string(text), "pkts-sofar:")
	_, _ = fmt.Sscanf(rest, "%d errors: %d", &now.Packets, &now.Errors) // pktgen_if_show in net/core/pktgen.c
	now.Bytes = s.bytes(now.Packets)
	return now, nil
}
