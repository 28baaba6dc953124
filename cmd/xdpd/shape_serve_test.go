package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"xdpd/internal/netlab"
	"xdpd/sockets"
)

// queues asks for the counters of all queues.
func (s *served) queues(t *testing.T) []queueView {
	t.Helper()
	v, _, err := askControl(t.Context(), s.control)
	if err != nil {
		t.Fatal(err)
	}
	return v.Queues
}

// parallel runs f for 0 to n-1, some at a time, and reports the first errors.
func parallel(t *testing.T, n int, f func(i int) error) {
	t.Helper()
	var all sync.WaitGroup
	slots := make(chan struct{}, 32)
	for i := range n {
		all.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			if err := f(i); err != nil {
				t.Errorf("number %d: %v", i, err)
			}
		})
	}
	all.Wait()
}

// echoed writes random bytes and compares what comes back. A datagram that is lost fails it too, by the deadline.
func echoed(c net.Conn, seed, size int) error {
	_ = c.SetDeadline(time.Now().Add(netlab.Patience))
	r := rand.New(rand.NewPCG(uint64(seed), uint64(size)))
	sent, got := make([]byte, size), make([]byte, size)
	for i := range sent {
		sent[i] = byte(r.Uint32())
	}
	failed := make(chan error, 1)
	go func() {
		_, err := c.Write(sent)
		failed <- err
	}()
	if _, err := io.ReadFull(c, got); err != nil {
		return err
	}
	if !bytes.Equal(sent, got) {
		return fmt.Errorf("%d bytes came back as others", size)
	}
	return <-failed
}

// TestServeShapes: in every shape 200 connections and as many flows of datagrams are served at a time, each connection by the
// reactor that its spread says, and nothing is dropped.
func TestServeShapes(t *testing.T) {
	needRoot(t)
	const conns, queues = 200, 4
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "page"), []byte("a page"), 0o644); err != nil {
		t.Fatal(err)
	}
	even := func(owned []int) bool { // 200 by 3, and the main reactor has none
		return owned[0] == 0 && slices.Min(owned[1:]) == conns/(queues-1) && slices.Max(owned) == conns/(queues-1)+1
	}
	all := func(owned []int) bool { return slices.Min(owned) > 0 }
	for _, c := range []struct {
		accept, spread string
		good           func(owned []int) bool
	}{{"each", "", all}, {"main", "round-robin", even}, {"main", "least-conns", even}, {"workers", "", all}} {
		t.Run(strings.TrimSpace(c.accept+" "+c.spread), func(t *testing.T) {
			s := serveAs(t, "echo,http=80:"+dir, netlab.Options{Queues: queues},
				fileConfig{Reactors: 2, Accept: c.accept, Spread: c.spread})
			if !strings.Contains(s.text(), "4 queues run by 2 reactors") {
				t.Errorf("it says %q", s.text())
			}
			tcp, udp := make([]net.Conn, conns), make([]net.Conn, conns)
			parallel(t, conns, func(i int) (err error) {
				if tcp[i], err = s.DialContext(t.Context(), "tcp4", s.at(7)); err == nil {
					udp[i], err = s.DialContext(t.Context(), "udp4", s.at(7))
				}
				return err
			})
			if t.Failed() {
				return
			}
			eventually(t, "all to be accepted", func() bool { return s.service(t, "echo", "tcp").Counters["connections"] == conns })
			owned := make([]int, queues)
			for i, q := range s.queues(t) {
				for _, k := range q.TCP {
					if k.State == "ESTABLISHED" {
						owned[i]++
					}
				}
			}
			if !c.good(owned) {
				t.Errorf("the reactors have %v connections", owned)
			}
			parallel(t, conns, func(i int) error {
				defer tcp[i].Close()
				defer udp[i].Close()
				for n := range 4 {
					if err := echoed(tcp[i], 4*i+n, 1+n*3000); err != nil {
						return err
					}
					if err := echoed(udp[i], 4*i+n, 1+n*400); err != nil {
						return fmt.Errorf("UDP: %w", err)
					}
				}
				return nil
			})
			web := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
				return s.DialContext(ctx, "tcp4", s.at(80))
			}}}
			for range 20 {
				if resp, body := ask(t, web, "GET", "/page", nil); resp.StatusCode != 200 || body != "a page" {
					t.Fatalf("the page is %d %q", resp.StatusCode, body)
				}
			}
			eventually(t, "the end of all connections", func() bool {
				for _, q := range s.queues(t) {
					if slices.ContainsFunc(q.TCP, func(k tcpView) bool { return k.State != "LISTEN" && k.State != "TIME-WAIT" }) {
						return false
					}
				}
				return true
			})
			var over, in uint64
			for _, q := range s.queues(t) {
				over, in = over+q.Stack["handed_over"], in+q.Stack["handed_in"]
				for reason, n := range q.Drops {
					// A reply that another queue had asked for; a segment that overtook its connection and came again; and
					// the loss probes of clients whom a slow machine keeps waiting.
					if n > 0 && reason != "arp_unsolicited" && reason != "handover_early" && reason != "tcp_duplicate" {
						t.Errorf("queue %d dropped %d: %s", q.Queue, n, reason)
					}
				}
			}
			if over != in || c.accept == "main" && over < conns {
				t.Errorf("%d packets were handed over, %d taken", over, in)
			}
		})
	}
}

// TestServeResize: the number of reactors changes all the time while connections echo; every byte comes back, in every shape.
func TestServeResize(t *testing.T) {
	for _, accept := range []string{"each", "main", "workers"} {
		t.Run(accept, func(t *testing.T) {
			s := serveAs(t, "echo", netlab.Options{Queues: 4}, fileConfig{Accept: accept})
			const conns = 12
			var rounds atomic.Int64
			enough := make(chan struct{})
			var clients sync.WaitGroup
			for i := range conns {
				c := s.dial(t, "tcp", 7)
				clients.Go(func() {
					for n := 0; ; n++ {
						if err := echoed(c, i, 1+(i*7919+n*104729)%12000); err != nil {
							t.Errorf("connection %d, round %d: %v", i, n, err)
							return
						}
						rounds.Add(1)
						select {
						case <-enough:
							return
						default:
						}
					}
				})
			}
			reactors := func(n string) string {
				var out bytes.Buffer
				if err := (&reactorsCmd{Number: n, Control: s.control}).run(t.Context(), &out); err != nil {
					t.Error(err)
				}
				shape, napi, _ := strings.Cut(out.String(), "\n")
				if n == "" && !strings.HasPrefix(napi, "NAPI (auto): run by ") {
					t.Errorf("of the NAPI it says %q", napi)
				}
				return shape
			}
			for i := range 30 {
				n := 1 + (i*i+i/3)%4
				before := rounds.Load()
				reactors(fmt.Sprint(n))
				if got, want := reactors(""), fmt.Sprintf("4 queues run by %s", plural(n, "reactor")); got != want {
					t.Errorf("it says %q, want %q", got, want)
				}
				eventually(t, "echoes", func() bool { return rounds.Load() > before+conns || t.Failed() })
			}
			close(enough)
			clients.Wait()
			err := (&reactorsCmd{Number: "5", Control: s.control}).run(t.Context(), io.Discard)
			if err == nil || !strings.Contains(err.Error(), "there can be 1 to 4") {
				t.Errorf("5 reactors for 4 queues: %v", err)
			}
		})
	}
}

// blocker is a service whose handler waits for a channel.
type blocker chan struct{}

func (blocker) mask() sockets.Ready { return sockets.In }

func (b blocker) ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, _ sockets.Ready) {
	<-b
	sr.closeConn(h, now, s)
}

// TestServeStall: a handler that blocks is a line in the log, and counted; the engine goes on when it returns. How often it is
// told is the reactor's matter: here a machine with other things to do may add lines of its own.
func TestServeStall(t *testing.T) {
	needRoot(t)
	hold, release := tcpServices["hold"], make(blocker)
	tcpServices["hold"] = func(*countedService) connHandler { return release }
	t.Cleanup(func() { tcpServices["hold"] = hold })
	s := serveAs(t, "echo,hold", netlab.Options{}, fileConfig{})
	letGo := sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo) // or a failure would be a hang
	if _, err := s.dial(t, "tcp", 10).Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the line", func() bool { return strings.Contains(s.text(), "xdpd.(*serviceReactor).handle does not return\n") })
	letGo()
	if err := echoed(s.dial(t, "tcp", 7), 1, 1000); err != nil {
		t.Error(err)
	}
	if q := s.queues(t)[0]; q.Reactor["stalls"] == 0 {
		t.Error("xdpd stats does not count it")
	}
}
