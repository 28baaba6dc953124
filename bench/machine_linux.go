package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// clocks are readings at one moment. Differences of them count.
type clocks struct {
	at   time.Time
	cpu  time.Duration // the process was on a CPU, all its threads
	user time.Duration // of that, in user mode: sampled, to 10 ms
	all  time.Duration // userTime
}

// readClocks reads those of a process and its children: a daemon has its application.
func readClocks(pid int) (c clocks, err error) {
	if c, err = readClock(pid); err != nil {
		return c, err
	}
	for _, child := range offspring(pid) {
		of, err := readClock(child)
		if err != nil {
			return c, err
		}
		c.cpu, c.user = c.cpu+of.cpu, c.user+of.user
	}
	if c.all, err = userTime(); err != nil {
		return c, err
	}
	c.at = time.Now()
	return c, nil
}

func readClock(pid int) (c clocks, err error) {
	if c.cpu, err = cpuTime(pid); err != nil {
		return c, err
	}
	// /proc/PID/stat, proc_pid_stat(5): utime is field 14; field 2, in brackets, may hold anything.
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return c, err
	}
	c.user, err = ticks(string(text[bytes.LastIndexByte(text, ')')+1:]), 11)
	return c, err
}

// offspring lists the processes that threads of a process started (proc_pid_task(5), children).
func offspring(pid int) (list []int) {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	for _, f := range files {
		text, _ := os.ReadFile(f) // a thread may have ended
		for _, field := range strings.Fields(string(text)) {
			if n, err := strconv.Atoi(field); err == nil {
				list = append(list, n)
			}
		}
	}
	return list
}

// userTime is how long the CPUs ran user mode code, or were taken away by the hypervisor. System time is left out: what
// the kernel does for our packets cannot be told from what it does for others.
func userTime() (sum time.Duration, err error) {
	text, err := os.ReadFile("/proc/stat") // proc_stat(5): "cpu user nice system idle iowait irq softirq steal ..."
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(text), "\n")
	for _, field := range []int{1, 2, 8} {
		d, err := ticks(line, field)
		if err != nil {
			return 0, err
		}
		sum += d
	}
	return sum, nil
}

// waitForQuiet waits, for a minute at most, until nobody takes more than a percentage of the machine.
func waitForQuiet(ctx context.Context, percent float64) error {
	const look = 200 * time.Millisecond
	for range time.Minute / look {
		before, err := userTime()
		if err != nil || percent >= 100 {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(look):
		}
		after, err := userTime()
		if err != nil || 100*float64(after-before) <= percent*float64(look)*float64(runtime.NumCPU()) {
			return err
		}
	}
	return nil
}

// ticks reads one of the fields of a line, counted from 0: hundredths of a second (USER_HZ, on all architectures of Go).
func ticks(line string, field int) (time.Duration, error) {
	fields := strings.Fields(line)
	if field >= len(fields) {
		return 0, fmt.Errorf("/proc: %q has %d fields", line, len(fields))
	}
	n, err := strconv.ParseInt(fields[field], 10, 64)
	return time.Duration(n) * 10 * time.Millisecond, err
}

// cpuTime is the CPU time that all threads of a process have used. getrusage(2) tells it only after the process has
// ended, which includes its start.
func cpuTime(pid int) (time.Duration, error) {
	const cpuclockSched = 2 // CPUCLOCK_SCHED, include/linux/posix-timers.h; what clock_getcpuclockid(3) computes
	var t unix.Timespec
	if err := unix.ClockGettime(int32(^pid<<3|cpuclockSched), &t); err != nil {
		return 0, fmt.Errorf("CPU clock of process %d: %w", pid, err)
	}
	return time.Duration(t.Nano()), nil
}

// nap blocks the thread for a while, not only the goroutine. A signal may end it.
func nap(ns int64) {
	t := unix.NsecToTimespec(ns)
	_ = unix.Nanosleep(&t, nil)
}

// sharpTimers has the calling thread's naps be no more than a few microseconds too long, until undo.
func sharpTimers() (undo func(), err error) {
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return nil, fmt.Errorf("timer slack: %w", err)
	}
	return func() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 0, 0, 0, 0) }, nil // 0: the default again
}

// kernelRelease is what uname -r says.
func kernelRelease() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown kernel"
	}
	return unix.ByteSliceToString(u.Release[:])
}

// cpuModel is the processor's name, as far as the kernel tells: arm64 has no "model name".
func cpuModel() string {
	f, err := os.Open("/proc/cpuinfo")
	if err != nil {
		return "unknown CPU"
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		key, value, _ := strings.Cut(lines.Text(), ":")
		if strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}
