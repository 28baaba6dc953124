package xdpd_test

import (
	"bytes"
	"cmp"
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
)

// TestLibxdpd drives the library's calls from here, as package net does the kernel's: as server and client of the kernel it passes the
// test of golang.org/x/net and carries megabytes, until the daemon throws it out.
func TestLibxdpd(t *testing.T) {
	lab, stack := engine(t, netlab.Options{Veth: "the guest has no C compiler"})
	server, path := daemon(t, stack, nil)
	ours, kernels := startCalls(t, path).side(lab.EngineAddr), kernelSide(lab.Peer, lab.PeerAddr)
	for _, r := range []role{{"library dials", ours, kernels}, {"kernel dials", kernels, ours}} {
		r.nettest(t)
		t.Run(r.name+"/streams", func(t *testing.T) { manyStreams(t, r) })
	}
	t.Run("spare", func(t *testing.T) { librarySpare(t, lab, server, ours) })
	t.Run("gone", func(t *testing.T) { libraryGone(t, lab, server, ours) })
}

// librarySpare: who made a connection has the socket of the next one already, and no more than that.
func librarySpare(t *testing.T, lab *netlab.Lab, server *xdpd.ClientServer, ours side) {
	ln := kernelSide(lab.Peer, lab.PeerAddr).open(t)
	for n := range 3 {
		c, far, err := connect(ours, ln)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		defer far.Close()
		eventually(t, "a socket for the next connection", func() bool {
			list, _ := server.Clients()
			return len(list) == 1 && list[0].Sockets == n+2
		})
	}
}

// manyStreams: megabytes both ways at once, and the ends of both, on 20 connections.
func manyStreams(t *testing.T, r role) {
	ln := r.server.open(t)
	sent := bytes.Repeat([]byte("sixteen bytes .."), 1<<15)
	var wg sync.WaitGroup
	for range 20 {
		c, s, err := connect(r.client, ln)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		defer s.Close()
		sendBoth(t, &wg, c, s, sent)
	}
	wg.Wait()
}

// libraryGone: when the daemon throws the process out, what waits ends with an error, and the peer hears of it.
func libraryGone(t *testing.T, lab *netlab.Lab, server *xdpd.ClientServer, ours side) {
	c, far, err := connect(ours, kernelSide(lab.Peer, lab.PeerAddr).open(t))
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	ln, err := ours.listen("0.0.0.0:80")
	if err != nil {
		t.Fatal(err)
	}
	reading, accepting := blocked(func() error { _, err := c.Read(make([]byte, 1)); return err }), blocked(func() error { _, err := ln.Accept(); return err })
	list, _ := server.Clients()
	if len(list) != 1 {
		t.Fatalf("clients %+v, want one", list)
	}
	if err := server.Evict(list[0].ID); err != nil {
		t.Fatal(err)
	}
	if err := await(t, reading, "an error"); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	if err := await(t, accepting, "an error"); !errors.Is(err, unix.ENETDOWN) {
		t.Errorf("accept: %v", err)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, unix.EPIPE) {
		t.Errorf("write: %v", err)
	}
	if _, err := ours.listen("0.0.0.0:81"); !errors.Is(err, unix.ENETDOWN) {
		t.Errorf("another socket: %v", err)
	}
	_ = far.SetReadDeadline(time.Now().Add(patience))
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer reads %v, want its connection's end", err)
	}
	c.Close()
	ln.Close()
}

// TestLibxdpdSuite runs testdata/libxdpd_suite.c with a sanitizer: each call and its errors, beside the kernel's, several threads and processes.
func TestLibxdpdSuite(t *testing.T) {
	lab, stack := engine(t, netlab.Options{Veth: "the guest has no C compiler"})
	sanitizer := cmp.Or(os.Getenv("XDPD_SANITIZE"), "address,undefined")
	bin := buildLibxdpd(t, "libxdpd_suite", "-O1", "-g", "-fsanitize="+sanitizer, "-fno-sanitize-recover=undefined", "-Wl,--wrap=syscall,--wrap=send")
	runSuite(t, bin, lab, stack, nil)
	runSuite(t, bin, lab, stack, func(p *xdpd.ClientPolicy) { p.Memory = 16 << 20 }, "crowds")
	// That the kernel is asked nothing while there is much to do can be counted where the engine never sleeps.
	lab = newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	cfg.MaxSpin = -1
	runSuite(t, bin, lab, openStack(t, lab, cfg), nil, "silent")
}

func runSuite(t *testing.T, bin string, lab *netlab.Lab, stack *xdpd.Stack, policy func(*xdpd.ClientPolicy), only ...string) {
	t.Helper()
	_, path := daemon(t, stack, policy)
	args := append([]string{path, lab.Peer.Path(), lab.EngineAddr.String(), lab.PeerAddr.String()}, only...)
	cmd := exec.CommandContext(t.Context(), bin, args...)
	cmd.Env = append(os.Environ(),
		"TSAN_OPTIONS=detect_deadlocks=0", // it takes the lock for the child's that the parent holds while it forks
		"ASAN_OPTIONS=use_sigaltstack=0")  // at its end a canceled thread would run into the stack of calls that it did not return from
	out, err := cmd.CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v\n%s", err, out)
	}
}
