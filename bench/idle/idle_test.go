package main

import (
	"testing"

	"xdpd/sockets"
)

func init() { profile() }

// TestMemory: what a connection takes of the heap, everything that the stack and a poller keep of it together. None of it
// is a pointer.
func TestMemory(t *testing.T) {
	const n = 50_000
	for _, c := range []struct {
		state string // of TCPInfo
		limit int    // bytes each
		open  func(w *world) error
	}{
		{"ESTABLISHED", 250, func(w *world) error { return w.establish(0, n) }},
		{"TIME-WAIT", 64, func(w *world) error { return w.come(0, n) }},
		{"SYN-RECEIVED", 96, func(w *world) error { return w.halfOpen(0, n) }},
	} {
		t.Run(c.state, func(t *testing.T) {
			s := scenario{limit: func(_ int, c *sockets.Config) { c.Backlog = n }}
			tr, err := s.newTrial(n, false)
			if err != nil {
				t.Fatal(err)
			}
			defer tr.close()
			if err := c.open(tr.world); err != nil {
				t.Fatal(err)
			}
			if err := tr.rest(500e6); err != nil {
				t.Fatal(err)
			}
			r := tr.measure(c.state)
			if got := tr.states()[c.state]; got != n {
				t.Fatalf("%d connections in %s, want %d: %v", got, c.state, n, tr.states())
			}
			if r.Mem.Heap > int64(c.limit*n) {
				t.Errorf("%.1f bytes each, want at most %d: %v", float64(r.Mem.Heap)/n, c.limit, r.Mem.Sites)
			}
			if r.Mem.Scan > n {
				t.Errorf("the collector looks into %.1f bytes each", float64(r.Mem.Scan)/n)
			}
		})
	}
}

// TestCookieMemory: what does not fit into the backlog is answered and takes nothing.
func TestCookieMemory(t *testing.T) {
	const n = 50_000
	s := scenario{limit: func(_ int, c *sockets.Config) { c.Backlog = 1 }}
	tr, err := s.newTrial(n, false)
	if err != nil {
		t.Fatal(err)
	}
	defer tr.close()
	if err := tr.world.halfOpen(0, n); err != nil {
		t.Fatal(err)
	}
	if got := tr.host.Counters().Stats[sockets.TCPCookies]; got != n-1 {
		t.Fatalf("%d SYN cookies, want %d", got, n-1)
	}
	if r := tr.measure("cookies"); r.Mem.Heap > 2*n {
		t.Errorf("%.1f bytes a cookie, want none: %v", float64(r.Mem.Heap)/n, r.Mem.Sites)
	}
}
