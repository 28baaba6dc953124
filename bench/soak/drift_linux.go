package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"time"
)

// holding is what the process holds when everything is at rest.
type holding [6]int64

// The parts of a holding.
const (
	heap       = iota // live bytes after a collection
	rss               // resident bytes after the runtime gave back what it could
	fds               // file descriptors
	goroutines        //
	used              // frames that are not free: those in the fill ring
	tcp               // the engine's TCP sockets
)

// holdings names them, and says how many more at the end are noise. Goroutines and sockets of a connection that was closed just
// now are on their way out; the fill ring is filled in batches.
var holdings = [...]struct {
	name  string
	slack int64
}{{"heap", 256 << 10}, {"RSS", 4 << 20}, {"fds", 0}, {"goroutines", 2}, {"frames in use", 64}, {"TCP sockets", 2}}

func (w *world) hold(b *books) (h holding) {
	debug.FreeOSMemory() // it collects first
	m := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(m)
	h[heap] = int64(m[0].Value.Uint64())
	h[rss] = resident()
	open, _ := os.ReadDir("/proc/self/fd") // unreadable: 0, as ever
	h[fds] = int64(len(open))
	h[goroutines] = int64(runtime.NumGoroutine())
	h[used] = int64(b.frames.Total - b.frames.Free)
	h[tcp] = int64(b.tcp)
	return h
}

func resident() int64 {
	text, _ := os.ReadFile("/proc/self/statm")
	var size, pages int64
	_, _ = fmt.Sscan(string(text), &size, &pages)
	return pages * int64(os.Getpagesize())
}

// drift compares the last quarter with the first: its median may not be above the first's highest, but for the slack. Fewer than
// eight are too few to tell.
func drift(all []holding) error {
	n := len(all) / 4
	if n < 2 {
		return nil
	}
	column := func(hs []holding, i int) (out []int64) {
		for _, h := range hs {
			out = append(out, h[i])
		}
		slices.Sort(out)
		return out
	}
	var grown []error
	for i, what := range holdings {
		first, last := column(all[:n], i), column(all[len(all)-n:], i)
		if median := last[n/2]; median > first[n-1]+what.slack {
			grown = append(grown, fmt.Errorf("%s: %d to %d in the first quarter, %d in the last", what.name, first[0], first[n-1], median))
		}
	}
	return errors.Join(grown...)
}

// line is what is said at each balance: rates since the one before, and what is held.
func line(elapsed, took time.Duration, before, now *books, h *holding) string {
	rate := func(now, before uint64) float64 { return float64(now-before) / took.Seconds() / 1e3 }
	return fmt.Sprintf("%7.1fs  offered %6.0f  RX %6.0f  echoed %6.0f  sunk %6.0f kpps  TCP %d conns %d rounds  heap %d KiB  RSS %d KiB  "+
		"fds %d  goroutines %d  frames %d free %d fill  balance exact",
		elapsed.Seconds(), rate(now.source.Written, before.source.Written), rate(now.reactor.RxFrames, before.reactor.RxFrames),
		rate(now.sent, before.sent), rate(now.sink.Frames, before.sink.Frames), now.dials-before.dials, now.rounds-before.rounds,
		h[heap]>>10, h[rss]>>10, h[fds], h[goroutines], now.frames.Free, h[used])
}
