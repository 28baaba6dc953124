package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"xdpd"
)

// quiet is a live line that nobody sees.
func quiet() *liveLine { return newLiveLine(new(bytes.Buffer), false) }

// belongings lists what this process has of namespaces, BPF objects, packet memory and sockets.
func belongings(t *testing.T) (list []string) {
	t.Helper()
	for _, pattern := range []string{"/proc/self/fd/*", "/proc/self/task/*/ns/net"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			link, err := os.Readlink(path) // a descriptor or thread may be gone by now
			if err != nil {
				continue
			}
			if strings.HasPrefix(link, "net:") && strings.Contains(path, "task") {
				list = append(list, "a thread in "+link)
			} else if regexp.MustCompile(`^net:|^anon_inode:bpf|memfd:xdpd|^socket:`).MatchString(link) {
				list = append(list, link)
			}
		}
	}
	slices.Sort(list)
	return slices.Compact(list)
}

// leavesNothing waits until this process has nothing that it did not have before: a thread's end takes its time.
func leavesNothing(t *testing.T, before []string) {
	t.Helper()
	var left []string
	defer func() {
		if t.Failed() {
			t.Log(left)
		}
	}()
	eventually(t, "the end of what was not there before", func() bool {
		left = slices.DeleteFunc(belongings(t), func(what string) bool { return slices.Contains(before, what) })
		return len(left) == 0
	})
}

// TestDemo runs it for a second: it must count something everywhere and leave nothing.
func TestDemo(t *testing.T) {
	needRoot(t)
	before := belongings(t)
	var head bytes.Buffer
	report, err := (&demoCmd{Seconds: 1}).measure(t.Context(), &head, quiet())
	if err != nil {
		t.Fatal(err)
	}
	leavesNothing(t, before)
	if !strings.Contains(head.String(), "xa0 (veth): native XDP, copy") {
		t.Errorf("it begins with %q", &head)
	}
	if err := report.fault(); err != nil {
		t.Error(err)
	}
	for name, e := range map[string]demoEcho{"ICMP": report.ICMP, "UDP": report.UDP, "window": report.Window} {
		if e.Received == 0 || e.Received > e.Sent || e.Wrong != 0 {
			t.Errorf("%s: %d of %d came back, %d wrong", name, e.Received, e.Sent, e.Wrong)
		}
		if e.RTT != nil && (uint64(e.RTT.TotalCount()) != e.Received || e.RTT.Min() <= 0) {
			t.Errorf("%s: %d round trips, the shortest of %d ns, for %d replies", name, e.RTT.TotalCount(), e.RTT.Min(), e.Received)
		}
	}
	if report.ICMP.RTT == nil || report.UDP.RTT == nil || report.Window.Took <= 0 {
		t.Errorf("times are missing: %+v", report)
	}
	if c := report.TCP; c.Connections != tcpConnections || c.Wrong != 0 || c.Bytes < tcpConnections*tcpBlock || c.Took <= 0 {
		t.Errorf("TCP: %+v", c)
	}

	// The engine's own numbers must be those of the other end.
	sum := newStatsView(&report.Stats)
	n := sum.counters()
	if n["stack.rx_icmp"] < report.ICMP.Received || n["stack.rx_udp"] < report.UDP.Received+report.Window.Received ||
		n["stack.tcp_accepted"] != tcpConnections {
		t.Errorf("the engine counted %d ICMP, %d UDP, %d connections; the demo %+v", n["stack.rx_icmp"], n["stack.rx_udp"],
			n["stack.tcp_accepted"], report)
	}

	var text bytes.Buffer
	if err := report.write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`ICMP echo, one at a time +round trip min [\d.]+ µs, median [\d.]+ µs, p99 [\d.]+ µs`,
		`every byte as it was sent`, `UDP echo of 1400 bytes, 64 in flight +[\d,]+ echoes a second`,
		`TCP echo, 4 connections +[\d.]+ Gbit/s`, `with the same SHA-256`, `queue 0: 16384 frames = .*: all accounted for`,
		`xdpd run -i eth1`,
	} {
		if !regexp.MustCompile(want).MatchString(text.String()) {
			t.Errorf("there is no %q in\n%s", want, &text)
		}
	}
}

// TestDemoInterrupted ends it in the middle of every part.
func TestDemoInterrupted(t *testing.T) {
	needRoot(t)
	for _, part := range []string{"ICMP", "one at a time", "in flight", "TCP"} {
		t.Run(part, func(t *testing.T) {
			before := belongings(t)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			live := newLiveLine(&until{want: part, times: 1, cancel: cancel}, false)
			live.every = 10 * time.Millisecond
			if _, err := (&demoCmd{Seconds: 1}).measure(ctx, new(bytes.Buffer), live); err == nil {
				t.Error("an interrupted demo has a report")
			}
			leavesNothing(t, before)
		})
	}
}

func TestDemoWithoutRoot(t *testing.T) {
	needRoot(t)
	out, status := runChild(t, asNobody(childCommand(t, "demo")))
	if status != 1 || !strings.Contains(out, "needs root: sudo xdpd demo") {
		t.Errorf("as nobody it ends with %d: %s", status, out)
	}
}

func TestDemoSeconds(t *testing.T) {
	for _, s := range []float64{0, -1, 1e9} {
		if err := (&demoCmd{Seconds: s}).Run(); err == nil || !strings.Contains(err.Error(), "--seconds") {
			t.Errorf("--seconds %v gives %v", s, err)
		}
	}
}

// soundReport is a report in which all is well.
func soundReport() *demoReport {
	h := newHistogram()
	record(h, time.Microsecond)
	frames := xdpd.FrameStats{Total: 100, Free: 60, Owners: map[string]int{"free": 60, "fill": 39, "tx": 1}}
	return &demoReport{
		ICMP: demoEcho{Sent: 1, Received: 1, RTT: h}, UDP: demoEcho{Sent: 2, Received: 1, RTT: h},
		Window: demoEcho{Sent: 3, Received: 3, Took: time.Second},
		TCP:    demoTCP{Connections: 4, Bytes: 5, Took: time.Second},
		Stats:  xdpd.Stats{Queues: []xdpd.QueueStats{{Frames: frames}}},
	}
}

// TestDemoFaults: nothing that went wrong may look well.
func TestDemoFaults(t *testing.T) {
	if err := soundReport().fault(); err != nil {
		t.Errorf("a sound report has the fault %v", err)
	}
	for want, spoil := range map[string]func(r *demoReport){
		"ICMP echo: none of 1": func(r *demoReport) { r.ICMP.Received = 0 },
		"UDP echo: 7 replies":  func(r *demoReport) { r.UDP.Wrong = 7 },
		"in flight: 1 replies": func(r *demoReport) { r.Window.Wrong = 1 },
		"on 2 connections":     func(r *demoReport) { r.TCP.Wrong = 2 },
		"3 of 100 frames": func(r *demoReport) {
			r.Stats.Queues[0].Frames.Owners = map[string]int{"free": 60, "fill": 37, "held": 3}
		},
		"0 of 100 frames are unaccount": func(r *demoReport) { r.Stats.Queues[0].Frames.Free = 59 },
	} {
		r := soundReport()
		spoil(r)
		err := r.fault()
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the fault is %v, want %q", err, want)
		}
		var text bytes.Buffer
		if werr := r.write(&text); werr != nil {
			t.Error(werr)
		}
	}
}

// TestDatagramCheck changes, cuts and swaps datagrams.
func TestDatagramCheck(t *testing.T) {
	const size = 100
	for seq := range uint64(5000) {
		b := make([]byte, size)
		fill(b, seq)
		if !sound(b, seq, size) {
			t.Fatalf("datagram %d is not what it is", seq)
		}
		if sound(b, seq+1, size) || sound(b[:size-1], seq, size) || sound(nil, seq, size) {
			t.Fatalf("datagram %d is taken for another", seq)
		}
		at := int(seq % size)
		b[at] ^= 1
		if sound(b, seq, size) {
			t.Fatalf("datagram %d is sound with byte %d changed", seq, at)
		}
	}
}

// lines is a writer for several goroutines.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
	n  chan struct{}
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Write(p)
	select {
	case l.n <- struct{}{}:
	default:
	}
	return len(p), nil
}

func TestLiveLine(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		t.Run(fmt.Sprint("terminal ", terminal), func(t *testing.T) {
			out := &lines{n: make(chan struct{}, 1)}
			live := newLiveLine(out, terminal)
			live.every = time.Millisecond
			stop := live.start("part")
			live.add(1234, 5_000_000)
			<-out.n
			<-out.n
			stop()
			text := out.b.String()
			if !regexp.MustCompile(`part: \d+ s, 1,234 round trips, 5 MB back`).MatchString(text) {
				t.Errorf("it shows %q", text)
			}
			if strings.Contains(text, "\n") == terminal || strings.Contains(text, "\r\x1b[K") != terminal {
				t.Errorf("on a terminal (%v) it writes %q", terminal, text)
			}
		})
	}
}
