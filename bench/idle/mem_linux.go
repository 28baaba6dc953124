package main

import (
	"fmt"
	"math"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// sample is what the process holds at one moment.
type sample struct {
	Heap     int64            // live bytes, after a collection
	Scan     int64            // of those, what the collector has to look into for pointers
	RSS      int64            // resident, as it is
	RSSFreed int64            // resident, after the runtime gave back to the kernel what it can
	GC       time.Duration    // a forced collection
	Sites    map[string]int64 // live bytes by the function of ours that allocated them
}

func take() (s sample) {
	runtime.GC() // what was freed since the last one
	s.RSS = rss("Rss:")
	start := time.Now()
	runtime.GC()
	s.GC = time.Since(start)
	debug.FreeOSMemory()
	s.RSSFreed = rss("Rss:")
	v := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/heap:bytes"}}
	metrics.Read(v)
	s.Heap, s.Scan = int64(v[0].Value.Uint64()), int64(v[1].Value.Uint64())
	s.Sites = sites()
	return s
}

// since is the difference to an earlier sample.
func (s sample) since(o sample) sample {
	d := sample{s.Heap - o.Heap, s.Scan - o.Scan, s.RSS - o.RSS, s.RSSFreed - o.RSSFreed, s.GC, map[string]int64{}}
	for f, n := range s.Sites {
		if n != o.Sites[f] {
			d.Sites[f] = n - o.Sites[f]
		}
	}
	for f, n := range o.Sites {
		if _, ok := s.Sites[f]; !ok {
			d.Sites[f] = -n
		}
	}
	return d
}

// profile has the runtime note nearly every allocation of a few KB or more, as slabs and tables are; to note small ones as
// well takes memory of its own. It must come before any other work.
func profile() { runtime.MemProfileRate = 512 }

// sites sums the live bytes by the innermost function of this module.
func sites() map[string]int64 {
	var records []runtime.MemProfileRecord
	for n, ok := runtime.MemProfile(nil, false); !ok; {
		records = make([]runtime.MemProfileRecord, n+64)
		if n, ok = runtime.MemProfile(records, false); ok {
			records = records[:n]
		}
	}
	sum := map[string]int64{}
	for i := range records {
		frames := runtime.CallersFrames(records[i].Stack())
		for {
			f, more := frames.Next()
			if strings.HasPrefix(f.Function, "xdpd/") {
				sum[strings.TrimPrefix(f.Function, "xdpd/")] += records[i].InUseBytes()
				break
			}
			if !more {
				break
			}
		}
	}
	return sum
}

// rss reads a line of smaps_rollup, in bytes.
func rss(field string) int64 {
	return procField("/proc/self/smaps_rollup", field)
}

func procField(file, field string) int64 {
	text, err := os.ReadFile(file)
	if err != nil {
		return -1
	}
	_, rest, ok := strings.Cut(string(text), field)
	if !ok {
		return -1
	}
	kb, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
	if err != nil {
		return -1
	}
	return kb << 10
}

// resetPeak starts the kernel's high-water mark of the resident set anew (proc(5), clear_refs).
func resetPeak() error { return os.WriteFile("/proc/self/clear_refs", []byte("5"), 0) }

// peak is the largest resident set since resetPeak.
func peak() int64 { return procField("/proc/self/status", "VmHWM:") }

// threadTime is the CPU time of the calling thread.
func threadTime() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		panic(err)
	}
	return time.Duration(ts.Nano())
}

// pauses is a histogram of the collector's stop-the-world pauses.
type pauses struct {
	Count int
	Max   time.Duration // upper edge of the highest bucket with an entry
}

const pauseMetric = "/sched/pauses/total/gc:seconds"

func pauseCounts() *metrics.Float64Histogram {
	v := []metrics.Sample{{Name: pauseMetric}}
	metrics.Read(v)
	return v[0].Value.Float64Histogram()
}

func pausesSince(before, after *metrics.Float64Histogram) (p pauses) {
	for i, n := range after.Counts {
		if n -= before.Counts[i]; n > 0 {
			p.Count += int(n)
			if edge := after.Buckets[i+1]; !math.IsInf(edge, 1) {
				p.Max = time.Duration(edge * 1e9)
			} else {
				p.Max = math.MaxInt64
			}
		}
	}
	return p
}

func perConn(bytes int64, n int) string { return fmt.Sprintf("%.1f", float64(bytes)/float64(n)) }
