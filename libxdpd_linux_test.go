package xdpd_test

import (
	"bytes"
	"io"
	"net"
	"sync"
	"testing"

	"xdpd/internal/netlab"
)

// viaLibrary is a process with libxdpd and the kernel, as server and client of each other.
func viaLibrary(t *testing.T, cflags ...string) []role {
	t.Helper()
	lab, stack := engine(t, netlab.Options{})
	_, path := daemon(t, stack, nil)
	ours, kernels := startCalls(t, path, cflags...).side(lab.EngineAddr), kernelSide(lab.Peer, lab.PeerAddr)
	return []role{{"library dials", ours, kernels}, {"kernel dials", kernels, ours}}
}

// TestLibxdpdNettest is the test of golang.org/x/net for connections by the calls of libxdpd.
func TestLibxdpdNettest(t *testing.T) {
	for _, r := range viaLibrary(t) {
		r.nettest(t)
	}
}

// TestLibxdpdStreams: megabytes both ways at once, and the ends of both, on 20 connections.
func TestLibxdpdStreams(t *testing.T) {
	for _, r := range viaLibrary(t) {
		t.Run(r.name, func(t *testing.T) {
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
				for _, pair := range [][2]net.Conn{{c, s}, {s, c}} {
					wg.Go(func() {
						if n, err := pair[0].Write(sent); n != len(sent) || err != nil {
							t.Errorf("wrote %d: %v", n, err)
						}
						if err := pair[0].(interface{ CloseWrite() error }).CloseWrite(); err != nil {
							t.Error(err)
						}
					})
					wg.Go(func() {
						if got, err := io.ReadAll(pair[1]); err != nil || !bytes.Equal(got, sent) {
							t.Errorf("read %d bytes of %d, or others: %v", len(got), len(sent), err)
						}
					})
				}
			}
			wg.Wait()
		})
	}
}
