package main

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"xdpd"
)

// demoReport is what the demo found out.
type demoReport struct {
	ICMP, UDP demoEcho // one at a time
	Window    demoEcho // several in flight
	TCP       demoTCP
	Stats     xdpd.Stats // after the last byte
}

// demoEcho counts requests and replies.
type demoEcho struct {
	Sent, Received uint64
	Wrong          uint64                  // replies that are not what was sent, or came twice
	RTT            *hdrhistogram.Histogram // ns; nil for several in flight
	Took           time.Duration           // from the first request to the last reply, of several in flight
}

// demoTCP is what the connections did together.
type demoTCP struct {
	Connections int
	Wrong       int    // connections on which something else came back than was sent
	Bytes       uint64 // in each direction
	Took        time.Duration
}

// fault is why the demo failed, or nil. A datagram that is lost is no fault of UDP's; one that is changed is.
func (r *demoReport) fault() error {
	var errs []error
	for _, e := range []struct {
		name string
		*demoEcho
	}{{"ICMP echo", &r.ICMP}, {"UDP echo", &r.UDP}, {"UDP echo with several in flight", &r.Window}} {
		if e.Received == 0 {
			errs = append(errs, fmt.Errorf("%s: none of %d requests was answered", e.name, e.Sent))
		}
		if e.Wrong > 0 {
			errs = append(errs, fmt.Errorf("%s: %d replies are not what was sent", e.name, e.Wrong))
		}
	}
	if r.TCP.Wrong > 0 {
		errs = append(errs, fmt.Errorf("TCP echo: on %d connections something else came back than was sent", r.TCP.Wrong))
	}
	for _, q := range r.Stats.Queues {
		if n := unaccounted(&q.Frames); n != 0 || q.Frames.Free != q.Frames.Owners["free"] {
			errs = append(errs, fmt.Errorf("queue %d: %d of %d frames are unaccounted for; their owners are %v, %d are in the pool",
				q.Queue, n, q.Frames.Total, q.Frames.Owners, q.Frames.Free))
		}
	}
	return errors.Join(errs...)
}

// write prints the figures.
func (r *demoReport) write(w io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-37s %s\n", name, fmt.Sprintf(format, args...))
	}
	b.WriteString("\nFIGURES, with the kernel's own sockets at the other end\n")
	for _, e := range []struct {
		name string
		*demoEcho
	}{{"ICMP echo, one at a time", &r.ICMP}, {fmt.Sprintf("UDP echo of %d bytes, one at a time", smallDatagram), &r.UDP}} {
		line(e.name, "round trip min %s, median %s, p99 %s", micros(e.RTT.Min()), micros(e.RTT.ValueAtQuantile(50)),
			micros(e.RTT.ValueAtQuantile(99)))
		line("", "%s of %s answered%s", commas(e.Received), commas(e.Sent), wrongText(e.Wrong))
	}
	n, seconds := r.Window.Received, r.Window.Took.Seconds()
	line(fmt.Sprintf("UDP echo of %d bytes, %d in flight", largeDatagram, window), "%s echoes a second, %.2f Gbit/s each way",
		commas(perSecond(n, seconds)), gbits(n*largeDatagram, seconds))
	line("", "%s of %s answered%s", commas(n), commas(r.Window.Sent), wrongText(r.Window.Wrong))
	digests := "there and back with the same SHA-256"
	if r.TCP.Wrong > 0 {
		digests = fmt.Sprintf("SHA-256 WRONG on %d connections", r.TCP.Wrong)
	}
	line(fmt.Sprintf("TCP echo, %d connections", r.TCP.Connections), "%.2f Gbit/s each way", gbits(r.TCP.Bytes, r.TCP.Took.Seconds()))
	line("", "%.1f MB, %s", float64(r.TCP.Bytes)/1e6, digests)
	r.writeLedger(&b)
	b.WriteString("\nNEXT\n" +
		"  xdpd doctor eth1                                what your interface can do\n" +
		"  sudo xdpd run -i eth1 -a 10.0.0.2/24 -s echo    the same engine on it, with an address nobody has\n" +
		"  sudo xdpd stats eth1 --watch 1s                 its packets, from the driver to the socket\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// writeLedger sums the drop ledger up, and counts the frames.
func (r *demoReport) writeLedger(b *strings.Builder) {
	var rx, tx, syscalls uint64
	for _, q := range r.Stats.Queues {
		rx += q.Reactor.RxFrames
		tx += q.Reactor.TxFrames
		syscalls += q.Reactor.Syscalls()
	}
	b.WriteString("\nLEDGER of the engine\n")
	fmt.Fprintf(b, "  %s frames in, %s out, by %s system calls\n", commas(rx), commas(tx), commas(syscalls))
	drops := r.Stats.Drops()
	if len(drops) == 0 {
		b.WriteString("  nothing dropped\n")
	}
	for _, why := range slices.Sorted(maps.Keys(drops)) {
		fmt.Fprintf(b, "  dropped: %-25s %12s\n", why, commas(drops[why]))
	}
	for _, q := range r.Stats.Queues {
		f, o := &q.Frames, q.Frames.Owners
		fmt.Fprintf(b, "  queue %d: %d frames = %d free + %d given to the device to fill + %d sent and not collected yet: ",
			q.Queue, f.Total, o["free"], o["fill"], o["tx"])
		if n := unaccounted(f); n != 0 {
			fmt.Fprintf(b, "%d UNACCOUNTED FOR (%v)\n", n, o)
		} else {
			b.WriteString("all accounted for\n")
		}
	}
}

// unaccounted is how many of a queue's frames are not where they belong in an engine without sockets: free, in the fill
// ring, or sent.
func unaccounted(f *xdpd.FrameStats) int {
	return f.Total - f.Owners["free"] - f.Owners["fill"] - f.Owners["tx"]
}

func wrongText(n uint64) string {
	if n == 0 {
		return ", every byte as it was sent"
	}
	return fmt.Sprintf(", %s replies WRONG", commas(n))
}

func micros(ns int64) string { return fmt.Sprintf("%.1f µs", float64(ns)/1e3) }

func perSecond(n uint64, seconds float64) uint64 {
	if seconds <= 0 {
		return 0
	}
	return uint64(float64(n)/seconds + 0.5)
}

func gbits(bytes uint64, seconds float64) float64 { return float64(perSecond(bytes*8, seconds)) / 1e9 }

// liveLine tells once a second how far a part is: on a terminal always in the same line, else one below the other.
type liveLine struct {
	out         io.Writer
	terminal    bool
	every       time.Duration
	trips, size atomic.Uint64
}

func newLiveLine(out io.Writer, terminal bool) *liveLine {
	return &liveLine{out: out, terminal: terminal, every: time.Second}
}

// add counts round trips and bytes that came back.
func (l *liveLine) add(trips, bytes uint64) {
	l.trips.Add(trips)
	l.size.Add(bytes)
}

// start begins a part; the function it returns ends it.
func (l *liveLine) start(name string) (stop func()) {
	l.trips.Store(0)
	l.size.Store(0)
	begin, done := time.Now(), make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		tick := time.NewTicker(l.every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				l.show(name, time.Since(begin))
			case <-done:
				if l.terminal {
					fmt.Fprint(l.out, "\r\x1b[K") // the figures come at the end
				}
				return
			}
		}
	})
	return func() { close(done); telling.Wait() }
}

func (l *liveLine) show(name string, since time.Duration) {
	text := fmt.Sprintf("%s: %.0f s", name, since.Seconds())
	if n := l.trips.Load(); n > 0 {
		text += fmt.Sprintf(", %s round trips", commas(n))
	}
	if n := l.size.Load(); n > 0 {
		text += fmt.Sprintf(", %.0f MB back", float64(n)/1e6)
	}
	if l.terminal {
		fmt.Fprintf(l.out, "\r\x1b[K%s", text)
		return
	}
	fmt.Fprintln(l.out, text)
}
