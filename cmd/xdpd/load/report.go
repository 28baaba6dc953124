package load

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Report is a result as JSON.
type Report struct {
	Config      ReportConfig      `json:"config"`
	Seconds     float64           `json:"seconds"` // of the measurement
	Interrupted bool              `json:"interrupted"`
	Requests    uint64            `json:"requests"`   // = responses + all errors + unfinished
	Responses   uint64            `json:"responses"`  //
	Errors      map[string]uint64 `json:"errors"`     // of requests, by kind
	Unfinished  uint64            `json:"unfinished"` // not waited for at the end
	PerSecond   float64           `json:"responses_per_second"`
	Latency     LatencyReport     `json:"latency_us"`
	OpenLoop    *OpenLoopReport   `json:"open_loop"` // null in the closed loop
	Connections ConnectionReport  `json:"connections"`
	SentBytes   uint64            `json:"sent_bytes"` // payload
	Received    uint64            `json:"received_bytes"`
	SentGbit    float64           `json:"sent_gbit_per_second"`
	RecvGbit    float64           `json:"received_gbit_per_second"`
	Unmatched   uint64            `json:"unmatched"`       // datagrams that came twice or too late
	Retransmits *uint64           `json:"tcp_retransmits"` // segments this side sent again; null: not known
}

// ReportConfig is what was asked for. Times are in seconds.
type ReportConfig struct {
	Kind        Kind    `json:"kind"`
	Target      string  `json:"target"`
	Side        string  `json:"side"`
	Workers     int     `json:"workers"`
	Connections int     `json:"connections"`
	Depth       int     `json:"depth"`
	Send        int     `json:"send"`
	Receive     int     `json:"receive"`
	Verify      bool    `json:"verify"`
	Rate        float64 `json:"rate"` // 0: closed loop
	Arrivals    string  `json:"arrivals,omitempty"`
	Seed        uint64  `json:"seed"`
	Duration    float64 `json:"duration"`
	Warmup      float64 `json:"warmup"`
	Timeout     float64 `json:"timeout"`
	Count       uint64  `json:"count"`
	Close       string  `json:"close,omitempty"`
	Direction   string  `json:"direction,omitempty"`
	Path        string  `json:"path,omitempty"`
	Host        string  `json:"host,omitempty"`
	Status      int     `json:"status,omitempty"`
	Length      int64   `json:"length,omitempty"`
}

// LatencyReport is of the responses, in µs. In the open loop it counts from when a request was to begin.
type LatencyReport struct {
	Count int64   `json:"count"`
	Mean  float64 `json:"mean"`
	P50   float64 `json:"p50"`
	P90   float64 `json:"p90"`
	P99   float64 `json:"p99"`
	P999  float64 `json:"p999"`
	Max   float64 `json:"max"`
}

// OpenLoopReport is how far the schedule was kept.
type OpenLoopReport struct {
	MaxBacklog     uint64  `json:"max_backlog"`      // requests that were due and could not begin, at worst
	NotBegun       uint64  `json:"not_begun"`        // the same at the end
	OldestNotBegun float64 `json:"oldest_not_begun"` // for how long by then, in seconds
}

// ConnectionReport is of connections from the first on; where a request is a connection, of those of the measurement.
type ConnectionReport struct {
	Dialled uint64            `json:"dialled"`
	Opened  uint64            `json:"opened"`
	Errors  map[string]uint64 `json:"errors"` // of connections with no request under way: not opened, or bytes that nobody asked for
	Lost    uint64            `json:"lost"`   // ended with no request under way
}

func faults(list *[nFaults]uint64) map[string]uint64 {
	m := map[string]uint64{}
	for f, n := range list {
		if n > 0 {
			m[Fault(f).String()] = n
		}
	}
	return m
}

func latencyOf(h *hdrhistogram.Histogram) LatencyReport {
	at := func(q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1e3 }
	l := LatencyReport{Count: h.TotalCount()}
	if l.Count > 0 {
		l.Mean, l.P50, l.P90, l.P99, l.P999, l.Max = h.Mean()/1e3, at(50), at(90), at(99), at(99.9), float64(h.Max())/1e3
	}
	return l
}

// Report makes the JSON.
func (res *Result) Report() *Report {
	c, s := &res.Config, &res.Stats
	r := &Report{
		Config: ReportConfig{
			Kind: c.Kind, Target: c.Target.String(), Side: res.Side, Workers: res.Workers, Connections: c.Connections,
			Depth: c.Depth, Send: c.Send, Receive: c.Receive, Verify: c.Verify, Rate: c.Rate, Seed: c.Seed,
			Duration: c.Duration.Seconds(), Warmup: c.Warmup.Seconds(), Timeout: c.Timeout.Seconds(), Count: c.Count,
			Close: c.Close, Direction: c.Direction, Path: c.Path, Host: c.Host, Status: c.Status, Length: c.Length,
		},
		Seconds: res.Elapsed.Seconds(), Interrupted: res.Interrupted,
		Requests: s.Requests, Responses: s.Responses, Errors: faults(&s.Errors), Unfinished: s.Unfinished,
		Latency:     latencyOf(res.Latency),
		Connections: ConnectionReport{s.Dialled, s.Opened, faults(&s.ConnErrors), s.Lost},
		SentBytes:   s.SentBytes, Received: s.ReceivedBytes, Unmatched: s.Unmatched,
	}
	if r.Seconds > 0 {
		r.PerSecond = float64(s.window.Responses) / r.Seconds
		r.SentGbit = float64(s.window.SentBytes) * 8 / 1e9 / r.Seconds
		r.RecvGbit = float64(s.window.ReceivedBytes) * 8 / 1e9 / r.Seconds
	}
	if c.Rate > 0 {
		r.Config.Arrivals = "poisson"
		if c.Constant {
			r.Config.Arrivals = "constant"
		}
		r.OpenLoop = &OpenLoopReport{s.MaxBacklog, s.NotBegun, time.Duration(s.NotBegunNS).Seconds()}
	}
	if res.KnowRetrans {
		r.Retransmits = &res.Retransmits
	}
	return r
}

// String says in a line what is done.
func (c *Config) String() string {
	b := fmt.Sprintf("%s %v, connections: %d", c.Kind, c.Target, c.Connections)
	switch c.Kind {
	case RR, UDP:
		b += fmt.Sprintf(", %d bytes there and %d back", c.Send, c.Receive)
	case Connect:
		if c.Send > 0 {
			b += fmt.Sprintf(", %d bytes there and %d back", c.Send, c.Receive)
		}
		b += ", closed by " + c.Close
	case Bulk:
		b += ", " + c.Direction
	case HTTP:
		b += ", GET " + c.Path
	}
	if c.Depth > 1 {
		b += fmt.Sprintf(", %d at a time on each", c.Depth)
	}
	switch {
	case c.Rate == 0 && (c.Kind == Hold || c.Kind == Bulk):
		return b
	case c.Rate == 0:
		return b + ", closed loop"
	}
	arrivals := "Poisson"
	if c.Constant {
		arrivals = "constant"
	}
	return b + fmt.Sprintf(", open loop of %.0f/s (%s)", c.Rate, arrivals)
}

// Write writes the result for people.
func (res *Result) Write(out io.Writer) error {
	r := res.Report()
	t := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(t, "  %s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	head := fmt.Sprintf("%v over %s: %.2f s", &res.Config, res.Side, r.Seconds)
	if res.Interrupted {
		head += ", interrupted"
	}
	fmt.Fprintln(t, head)
	noun := map[Kind]string{Connect: "connections", Hold: "connections", Bulk: "streams"}[res.Config.Kind]
	if noun == "" {
		noun = "requests"
	}
	row(noun, "%s: %s done, %s failed%s", commas(r.Requests), commas(r.Responses), commas(sum(r.Errors)), list(r.Errors))
	if r.Unfinished > 0 {
		row("", "%s not waited for", commas(r.Unfinished))
	}
	if k := res.Config.Kind; k != Hold && k != Bulk {
		row("a second", "%s", commas(uint64(r.PerSecond+0.5)))
	}
	if l := r.Latency; l.Count > 0 && res.Config.Kind != Bulk {
		row("latency", "p50 %s, p90 %s, p99 %s, p99.9 %s, max %s", micros(l.P50), micros(l.P90), micros(l.P99), micros(l.P999), micros(l.Max))
	}
	if o := r.OpenLoop; o != nil {
		row("backlog", "at most %s; %s due and not begun at the end", commas(o.MaxBacklog), commas(o.NotBegun))
		if o.NotBegun > 0 {
			row("", "the oldest of them for %.3f s: the latencies above are without them", o.OldestNotBegun)
		}
	}
	if res.Config.Kind == Bulk {
		row("sent", "%.3f Gbit/s, %s bytes", r.SentGbit, commas(r.SentBytes))
		row("received", "%.3f Gbit/s, %s bytes", r.RecvGbit, commas(r.Received))
	}
	if c := r.Connections; len(c.Errors) > 0 || c.Lost > 0 {
		row("connecting", "%s attempts, %s failed%s; %s connections ended between requests",
			commas(c.Dialled), commas(sum(c.Errors)), list(c.Errors), commas(c.Lost))
	}
	if r.Unmatched > 0 {
		row("unmatched", "%s datagrams came twice or too late", commas(r.Unmatched))
	}
	if r.Retransmits != nil && res.Config.Kind != UDP {
		row("retransmits", "%s segments from here", commas(*r.Retransmits))
	}
	return t.Flush()
}

// String is the live line.
func (l Live) String() string {
	s, p := &l.Stats, &l.Previous
	text := fmt.Sprintf("%s %.0f s: %d open, %s requests/s", l.Phase, l.Since.Seconds(), s.Open, commas(less(s.Responses, p.Responses)))
	if l.Latency.TotalCount() > 0 {
		lat := latencyOf(l.Latency)
		text += fmt.Sprintf(", p50 %s, p99 %s", micros(lat.P50), micros(lat.P99))
	}
	if bytes := less(s.SentBytes, p.SentBytes) + less(s.ReceivedBytes, p.ReceivedBytes); bytes > 1e6 {
		text += fmt.Sprintf(", %.2f Gbit/s", float64(bytes)*8/1e9)
	}
	if l.Backlog > 0 {
		text += fmt.Sprintf(", backlog %s", commas(l.Backlog))
	}
	if n := s.Failed(); n > 0 {
		text += fmt.Sprintf(", errors %s", commas(n))
	}
	return text
}

// less is a - b, or 0: counts begin anew after the warm-up.
func less(a, b uint64) uint64 { return max(a, b) - b }

func micros(us float64) string {
	switch {
	case us < 1000:
		return fmt.Sprintf("%.1f µs", us)
	case us < 1e6:
		return fmt.Sprintf("%.2f ms", us/1e3)
	}
	return fmt.Sprintf("%.2f s", us/1e6)
}

func sum(m map[string]uint64) (n uint64) {
	for _, k := range m {
		n += k
	}
	return n
}

// list is the kinds of errors, in their order.
func list(m map[string]uint64) string {
	var parts []string
	for _, name := range faultNames {
		if n := m[name]; n > 0 {
			parts = append(parts, fmt.Sprintf("%s %s", name, commas(n)))
		}
	}
	if parts == nil {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// commas groups digits.
func commas(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
