package pktgen

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report is what a run came to. docs/pktgen.md says what the fields of the JSON mean.
type Report struct {
	Config          Config    `json:"config"`
	Kernel          string    `json:"kernel"`
	Started         time.Time `json:"started"`
	Seconds         float64   `json:"seconds"`
	Sent            *Sent     `json:"sent,omitempty"`
	SentPackets     float64   `json:"sent_packets_per_second"`
	SentBits        float64   `json:"sent_bits_per_second"`
	Received        *Received `json:"received,omitempty"`
	ReceivedPackets float64   `json:"received_packets_per_second"`
	ReceivedBits    float64   `json:"received_bits_per_second"`
	Expected        uint64    `json:"expected"`
	Lost            uint64    `json:"lost"`
	Latency         *Latency  `json:"latency,omitempty"`
	Verified        *bool     `json:"verified,omitempty"`
}

// Latency is the distribution of what passed from the stamp to the reception, in nanoseconds.
type Latency struct {
	Count       int64        `json:"count"`
	Min         int64        `json:"min_ns"`
	Mean        float64      `json:"mean_ns"`
	P50         int64        `json:"p50_ns"`
	P90         int64        `json:"p90_ns"`
	P99         int64        `json:"p99_ns"`
	P999        int64        `json:"p99_9_ns"`
	Max         int64        `json:"max_ns"`
	Percentiles []Percentile `json:"percentiles"`
}

// Percentile is a point of the distribution: so many of the values are not above NS.
type Percentile struct {
	Percentile float64 `json:"percentile"`
	NS         int64   `json:"ns"`
	Count      int64   `json:"count"`
}

func newLatency(h *hdrhistogram.Histogram) *Latency {
	if h.TotalCount() == 0 {
		return nil
	}
	l := &Latency{
		Count: h.TotalCount(), Min: h.Min(), Mean: math.Round(h.Mean()), P50: h.ValueAtQuantile(50), P90: h.ValueAtQuantile(90),
		P99: h.ValueAtQuantile(99), P999: h.ValueAtQuantile(99.9), Max: h.Max(),
	}
	for _, b := range h.CumulativeDistribution() {
		l.Percentiles = append(l.Percentiles, Percentile{b.Quantile, b.ValueAt, b.Count})
	}
	return l
}

// fill takes the counters of a run that has ended.
func (r *run) fill(report *Report) error {
	report.Kernel = kernelRelease()
	var sent Sent
	if r.source != nil {
		var err error
		if sent, err = r.source.sent(); err != nil {
			return err
		}
		report.Sent = &sent
	}
	if r.sink == nil {
		report.rates(0)
		return nil
	}
	got, err := r.sink.received()
	if err != nil {
		return err
	}
	latency, err := r.sink.latency()
	if err != nil {
		return err
	}
	report.Received, report.Latency = &got, newLatency(latency)
	report.account(sent.Packets)
	report.rates(r.last.Sub(r.first))
	return nil
}

// account says what was expected, and what of that did not come.
func (r *Report) account(sent uint64) {
	got := r.Received
	switch {
	case r.Sent != nil:
		r.Expected = sent
	case r.Config.Count > 0:
		r.Expected = uint64(r.Config.Count)
	default: // what was lost at either end is not known
		r.Expected = got.Unique + got.Beyond + got.Gaps
	}
	r.Lost = got.Lost(r.Expected)
	if r.Config.Verify {
		ok := r.Lost == 0 && got.Duplicates == 0 && got.Corrupt == 0
		r.Verified = &ok
	}
}

// rates computes them: of what was sent over the time from the first frame to the last, of replies over the same time, and of
// what another pktgen sent over the time that something came in.
func (r *Report) rates(came time.Duration) {
	seconds := came.Seconds()
	if s := r.Sent; s != nil {
		seconds = s.Took.Seconds()
		r.SentPackets, r.SentBits = each(float64(s.Packets), seconds), each(bits(s.Packets, s.Bytes), seconds)
	}
	if got := r.Received; got != nil {
		r.ReceivedPackets, r.ReceivedBits = each(float64(got.Frames), seconds), each(bits(got.Frames, got.Bytes), seconds)
	}
}

// each is n a second; 0 where that makes no sense.
func each(n, seconds float64) float64 {
	if seconds <= 0 {
		return 0
	}
	return n / seconds
}

// Fault is an error when --verify was asked for and found something; loss is not always one.
func (r *Report) Fault() error {
	if r.Verified == nil || *r.Verified {
		return nil
	}
	return fmt.Errorf("verify: %d of %d lost, %d duplicates, %d corrupt", r.Lost, r.Expected, r.Received.Duplicates, r.Received.Corrupt)
}

// WriteJSON writes one object.
func (r *Report) WriteJSON(out io.Writer) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(r)
}

// WriteText writes what a person reads.
func (r *Report) WriteText(out io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "  %-13s", name)
		fmt.Fprintf(&b, format+"\n", args...)
	}
	fmt.Fprintf(&b, "%s\n", r.Config.title())
	if s := r.Sent; s != nil {
		line("sent", "%s in %.3f s: %spps, %sbit/s", grouped(s.Packets), s.Took.Seconds(), short(r.SentPackets), short(r.SentBits))
		for _, c := range []struct {
			name string
			n    uint64
		}{{"dropped", s.Dropped}, {"refused", s.Errors}, {"skipped", s.Skipped}} {
			if c.n > 0 {
				line(c.name, "%s", grouped(c.n))
			}
		}
	}
	if got := r.Received; got != nil {
		line("received", "%s: %spps, %sbit/s", grouped(got.Frames), short(r.ReceivedPackets), short(r.ReceivedBits))
		line("lost", "%s of %s%s", grouped(r.Lost), grouped(r.Expected), percent(r.Lost, r.Expected))
		line("duplicates", "%s", grouped(got.Duplicates))
		line("out of order", "%s", grouped(got.Reordered))
		line("corrupt", "%s", grouped(got.Corrupt))
		if got.Beyond > 0 {
			line("beyond", "%s, of which nobody knows whether they are duplicates", grouped(got.Beyond))
		}
	}
	if l := r.Latency; l != nil {
		line("latency", "min %s, p50 %s, p90 %s, p99 %s, p99.9 %s, max %s", us(l.Min), us(l.P50), us(l.P90), us(l.P99), us(l.P999), us(l.Max))
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// title says what was done.
func (c *Config) title() string {
	switch {
	case c.Sink:
		return fmt.Sprintf("sink on %s, mark %#x", c.Interface, c.Mark)
	case c.Replay != "":
		how := "at " + c.Rate.String()
		if c.Speed > 0 {
			how = fmt.Sprintf("at %g times the recorded speed", c.Speed)
		}
		return fmt.Sprintf("%s on %s: %s %s", c.Source, c.Interface, c.Replay, how)
	}
	flows := "1 flow"
	if c.N > 1 {
		flows = grouped(uint64(c.N)) + " flows"
	}
	echo := ""
	if c.Echo {
		echo = ", expecting an echo"
	}
	return fmt.Sprintf("%s on %s: %s port %s to %s port %s (%s), %s bytes, %s, %s%s",
		c.Source, c.Interface, c.Src, c.Sport, c.Dst, c.Dport, c.DstMAC, c.Sizes, flows, c.Rate, echo)
}

// grouped writes 1234567 as 1,234,567.
func grouped(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func percent(n, of uint64) string {
	if n == 0 || of == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.3g %%)", 100*float64(n)/float64(of))
}

// us writes nanoseconds as microseconds.
func us(ns int64) string { return strconv.FormatFloat(float64(ns)/1e3, 'f', 1, 64) + " µs" }
