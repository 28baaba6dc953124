package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"xdpd/sockets"
)

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

func testOptions(out *bytes.Buffer) options {
	return options{length: 3 * time.Second, every: time.Second, conns: 2, size: 64, flows: 100, ledger: true, out: out}
}

// descriptors are those that the process has open.
func descriptors(t *testing.T) map[string]bool {
	t.Helper()
	// The runtime's poller has two, from the first file on that can wait.
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	w.Close()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]bool)
	for _, e := range list {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil { // else it is that of the list itself
			out[e.Name()+" "+target] = true
		}
	}
	return out
}

// noneLeft fails for descriptors that were not there before.
func noneLeft(t *testing.T, before map[string]bool) {
	t.Helper()
	for d := range descriptors(t) {
		if !before[d] {
			t.Errorf("left open: %s", d)
		}
	}
}

func TestSoak(t *testing.T) {
	needRoot(t)
	before := descriptors(t)
	var out bytes.Buffer
	if err := run(t.Context(), testOptions(&out)); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if n := strings.Count(out.String(), "balance exact"); n < 2 || !strings.Contains(out.String(), "balances exact, no growth") {
		t.Errorf("%d balances in\n%s", n, out.String())
	}
	noneLeft(t, before)
}

// notify cancels when something is written.
type notify context.CancelFunc

func (n notify) Write(b []byte) (int, error) {
	n()
	return len(b), nil
}

func TestInterrupted(t *testing.T) {
	needRoot(t)
	before := descriptors(t)
	ctx, cancel := context.WithCancel(t.Context())
	o := testOptions(nil)
	o.length, o.out = time.Hour, notify(cancel)
	if err := run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v", err)
	}
	noneLeft(t, before)
}

func TestBadOptions(t *testing.T) {
	for name, change := range map[string]func(*options){
		"no time":         func(o *options) { o.length = 0 },
		"no interval":     func(o *options) { o.every = 0 },
		"long interval":   func(o *options) { o.every = longest + 1 },
		"no connections":  func(o *options) { o.conns = 0 },
		"a size too much": func(o *options) { o.size = 1 << 20 },
	} {
		o := testOptions(nil)
		if change(&o); name == "a size too much" {
			needRoot(t) // the source says it
		}
		if err := run(t.Context(), o); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// A packet that one stage did not count is told with its place.
func TestCheckNamesThePlace(t *testing.T) {
	if off := (&books{}).check(); off != nil {
		t.Fatalf("empty books: %v", off)
	}
	for _, c := range []struct {
		place string
		lose  func(b *books)
	}{
		{"source to veth", func(b *books) { b.source.Sent++ }},
		{"source refused by veth", func(b *books) { b.source.Dropped++ }},
		{"source refused before veth", func(b *books) { b.source.RedirectErrors++ }},
		{"veth ring to the engine's end", func(b *books) { b.kernel++ }},
		{"veth ring to the engine's end", func(b *books) { b.far.SendFull++ }},
		{"engine's end to its program", func(b *books) { b.near.Packets++ }},
		{"engine's end to its program", func(b *books) { b.near.Drops++ }},
		{"program to socket", func(b *books) { b.ours++ }},
		{"program to socket", func(b *books) { b.socket.RxRingFull++ }},
		{"program to socket", func(b *books) { b.socket.RxDropped++ }},
		{"RX ring", func(b *books) { b.near.Redirected++ }},
		{"reactor to stack", func(b *books) { b.reactor.RxFrames++ }},
		{"reactor to stack", func(b *books) { b.reactor.RxBadDesc++ }},
		{"stack to protocols", func(b *books) { b.host.Stats[sockets.RxFrames]++ }},
		{"stack to protocols", func(b *books) { b.host.Stats[sockets.RxTCP]++ }},
		{"stack to protocols", func(b *books) { b.host.Drops[sockets.IPNotOurs]++ }},
		{"UDP to handler", func(b *books) { b.host.Stats[sockets.RxUDP]++ }},
		{"UDP to handler", func(b *books) { b.udpFull++ }},
		{"handler:", func(b *books) { b.received++ }},
		{"handler to stack", func(b *books) { b.sent++ }},
		{"stack to output", func(b *books) { b.host.Stats[sockets.TxTCP]++ }},
		{"stack to output", func(b *books) { b.host.Drops[sockets.NeighFailed]++ }},
		{"stack to TX ring", func(b *books) { b.host.Stats[sockets.TxFrames]++ }},
		{"TX ring to completion", func(b *books) { b.reactor.TxFrames++ }},
		{"TX ring to completion", func(b *books) { b.reactor.TxMore++ }},
		{"TX ring to completion", func(b *books) { b.reactor.Completions++ }},
		{"completions of no frame", func(b *books) { b.reactor.BadCompletions++ }},
		{"veth ring to the peer's end", func(b *books) { b.near.SendFull++ }},
		{"veth ring to the peer's end", func(b *books) { b.asked++ }},
		{"peer's end to the sink", func(b *books) { b.far.Packets++ }},
		{"peer's end to the sink", func(b *books) { b.sink.Passed++ }},
		{"handler to sink", func(b *books) { b.sent++ }},
		{"handler to sink", func(b *books) { b.sink.Frames++ }},
		{"each sequence number once", func(b *books) { b.sink.Unique++ }},
		{"bad sums", func(b *books) { b.sink.BadSum++ }},
		{"out of order", func(b *books) { b.sink.Late++ }},
		{"frames held", func(b *books) { b.frames.Rx++ }},
		{"frames free by the ledger", func(b *books) { b.frames.Free++; b.frames.Owners = map[string]int{} }},
		{"frames free or in the fill ring", func(b *books) { b.frames.Total++; b.frames.Owners = map[string]int{} }},
	} {
		var b books
		c.lose(&b)
		if err := errors.Join(b.check()...); err == nil || !strings.Contains(err.Error(), c.place) {
			t.Errorf("%s: %v", c.place, err)
		}
	}
}

func TestDrift(t *testing.T) {
	series := func(at func(i int) int64) (all []holding) {
		for i := range 40 {
			var h holding
			h[heap], h[fds] = at(i), 10
			all = append(all, h)
		}
		return all
	}
	const kib = 1 << 10
	for name, c := range map[string]struct {
		at    func(i int) int64
		grown bool
	}{
		"flat":               {func(int) int64 { return 5000 * kib }, false},
		"noise":              {func(i int) int64 { return 5000*kib + int64(i%7)*300*kib }, false},
		"shrinks":            {func(i int) int64 { return int64(100-i) * 300 * kib }, false},
		"one late peak":      {func(i int) int64 { return 5000*kib + int64(i/39)*9000*kib }, false},
		"grows":              {func(i int) int64 { return 5000*kib + int64(i)*20*kib }, true},
		"grows at last only": {func(i int) int64 { return 5000*kib + int64(i/30)*300*kib }, true},
	} {
		if err := drift(series(c.at)); err != nil != c.grown {
			t.Errorf("%s: %v", name, err)
		} else if c.grown && !strings.HasPrefix(err.Error(), "heap: ") {
			t.Errorf("%s: it does not say what grows: %v", name, err)
		}
	}
	leak := series(func(int) int64 { return 0 })
	for i := range 10 {
		leak[30+i][fds]++
	}
	if err := drift(leak); err == nil || !strings.HasPrefix(err.Error(), "fds: ") {
		t.Errorf("a descriptor more: %v", err)
	}
	if err := drift(leak[:7]); err != nil {
		t.Errorf("seven are too few: %v", err)
	}
}
