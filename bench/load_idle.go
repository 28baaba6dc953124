package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

// seldom asks nothing, and then a datagram now and then: what an idle server costs, and how long its first answer takes.
type seldom struct{}

const (
	seldomGap  = 20 * time.Millisecond // long enough for anybody to fall asleep
	seldomAsks = 25
	patience   = 5 * time.Second // for a reply that must come
)

func (seldom) run(ctx context.Context, at *site, seconds float64) (o outcome, err error) {
	c, err := dialRaw(at.lab)
	if err != nil {
		return o, err
	}
	defer c.close()
	before, err := cpuTime(at.pid)
	if err != nil {
		return o, err
	}
	start := time.Now()
	select {
	case <-ctx.Done():
		return o, ctx.Err()
	case <-time.After(time.Duration(seconds * float64(time.Second))):
	}
	after, err := cpuTime(at.pid)
	if err != nil {
		return o, err
	}
	o.busy = float64(after-before) / float64(time.Since(start))
	var took []float64
	for range seldomAsks {
		nap(int64(seldomGap))
		d, err := c.ask(patience)
		if err != nil {
			return o, err
		}
		took = append(took, float64(d)/1e3)
	}
	o.p50, o.done = median(took), seldomAsks
	return o, ctx.Err()
}

// rawClient is a UDP socket without Go's poller before it: the thread itself sleeps until the reply comes.
type rawClient int

func dialRaw(lab *netlab.Lab) (c rawClient, err error) {
	err = lab.Peer.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		c = rawClient(fd)
		return err
	})
	if err != nil {
		return c, err
	}
	if err = unix.Connect(int(c), &unix.SockaddrInet4{Addr: lab.EngineAddr.As4(), Port: port}); err != nil {
		c.close()
	}
	return c, err
}

func (c rawClient) close() { unix.Close(int(c)) }

// ask sends a datagram and tells how long the reply took. No reply: errUseless.
func (c rawClient) ask(wait time.Duration) (time.Duration, error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	limit := unix.NsecToTimeval(int64(wait))
	if err := unix.SetsockoptTimeval(int(c), unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return 0, err
	}
	var b [22]byte
	start := time.Now()
	if _, err := unix.Write(int(c), b[:]); err != nil {
		return 0, fmt.Errorf("%w: %w", errUseless, err)
	}
	for {
		n, err := unix.Read(int(c), b[:])
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n != len(b) {
			return 0, fmt.Errorf("%w: no reply: %d, %w", errUseless, n, err)
		}
		return time.Since(start), nil
	}
}

// answers waits until a server answers: an interface that was just set up may drop everything for a second
// (net/core/link_watch.c).
func answers(ctx context.Context, lab *netlab.Lab, work string) error {
	const look, give = 20 * time.Millisecond, 5 * time.Second
	if work == "raw-tx" || work == "raw-drop" {
		return nil
	}
	try := func() error {
		c, err := dialRaw(lab)
		if err != nil {
			return err
		}
		defer c.close()
		_, err = c.ask(look)
		return err
	}
	if work != "udp-echo" && work != "raw-echo" {
		at := netip.AddrPortFrom(lab.EngineAddr, port).String()
		try = func() error {
			return lab.Peer.Do(func() error {
				c, err := net.DialTimeout("tcp4", at, look)
				if err == nil {
					c.Close()
				}
				return err
			})
		}
	}
	var err error
	for end := time.Now().Add(give); time.Now().Before(end); {
		if err = try(); err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return fmt.Errorf("%w: it does not answer: %w", errUseless, err)
}

// memory is bench/idle: what an idle connection takes of the resident set. It has no server and no network.
type memory struct{}

func (memory) run(ctx context.Context, at *site, _ float64) (o outcome, err error) {
	path, err := at.builder.program(ctx, "idle")
	if err != nil {
		return o, err
	}
	cmd := exec.CommandContext(ctx, path, "-child", "established", "-n", fmt.Sprint(at.conns))
	cmd.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	out, err := cmd.Output()
	if err != nil {
		return o, fmt.Errorf("bench/idle: %w", err)
	}
	var report struct {
		Rows []struct {
			Count int
			Mem   struct{ RSSFreed int64 }
		}
	}
	if err := json.Unmarshal(out, &report); err != nil || len(report.Rows) == 0 {
		return o, fmt.Errorf("bench/idle printed %q: %w", out, err)
	}
	first := report.Rows[0] // established, idle
	return outcome{bytes: float64(first.Mem.RSSFreed) / float64(first.Count), done: float64(first.Count), user: cmd.ProcessState.UserTime()}, nil
}
