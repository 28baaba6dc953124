package drill

import (
	"fmt"
	"math"
	"strings"
)

// start is the time on the runner's clock when a script begins: not on the edge of any tick.
const start = 1000_000_123_456

// forever bounds "*": longer than any timer of TCP but keep-alive.
const forever = 1000_000_000_000

// runner runs one script on one host.
type runner struct {
	script *Script
	host   Host
	now    int64
	last   int64 // time of the step before
	flows  []*flow
	queue  []sent // sent and not looked at
	log    []string
	ipID   uint16
}

// sent is a segment that the host sent.
type sent struct {
	at   int64
	flow *flow
	seg  *segment
}

// Run runs the script. The error shows what was wanted, what came, and all that happened before.
func Run(s *Script, h Host) error {
	r := &runner{script: s, host: h, now: start, last: start}
	h.Tick(start)
	for i := range s.Steps {
		if err := r.step(&s.Steps[i]); err != nil {
			return r.fail(s.Steps[i].Line, err)
		}
	}
	end := s.Steps[len(s.Steps)-1].Line
	if err := r.nothing(); err != nil {
		return r.fail(end, err)
	}
	if err := h.Finish(); err != nil {
		return r.fail(end, fmt.Errorf("after the script: %w", err))
	}
	return nil
}

func (r *runner) fail(line int, err error) error {
	const most = 60
	log := r.log
	if len(log) > most {
		log = append([]string{fmt.Sprintf("... %d lines", len(log)-most)}, log[len(log)-most:]...)
	}
	return fmt.Errorf("%s:%d: %w\n    %s", r.script.Name, line, err, strings.Join(log, "\n    "))
}

func (r *runner) note(format string, args ...any) {
	r.log = append(r.log, fmt.Sprintf("%10.6f ", float64(r.now-start)/1e9)+fmt.Sprintf(format, args...))
}

func (r *runner) flow(name string) *flow {
	for _, f := range r.flows {
		if f.name == name {
			return f
		}
	}
	f := newFlow(name, uint16(len(r.flows)))
	r.flows = append(r.flows, f)
	return f
}

func (r *runner) step(s *Step) error {
	f := r.flow(s.Flow)
	if s.Kind == Out {
		return r.expectAll(s, f)
	}
	from, _ := r.when(s.At)
	if !s.At.Relative && from < r.now {
		return fmt.Errorf("it is %.6f already", float64(r.now-start)/1e9)
	}
	if err := r.advance(max(from, r.now), false); err != nil {
		return err
	}
	if s.Kind == Call && s.Args[0] == "ignore" {
		r.queue = nil
	}
	if err := r.nothing(); err != nil {
		return err
	}
	r.last = r.now
	if s.Kind == Call {
		r.note("%s", s.Text)
		if err := calls[s.Args[0]].run(r, s, f); err != nil {
			return err
		}
		return r.collect()
	}
	for k := range s.Count {
		n := s.Packet.Len / s.Count
		if err := r.inject(s, f, k*n, n); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) inject(s *Step, f *flow, k, n int) error {
	r.note("%s", s.Text)
	if f.localPort == 0 {
		return fmt.Errorf("the host has not sent its SYN, and its port is not known")
	}
	var packet []byte
	r.ipID++
	if s.Kind == ICMP {
		packet = icmpError(s.Error, &segment{
			src: hostAddr, dst: peerAddr, sport: f.localPort, dport: f.remotePort, df: true, flags: ACK,
			seq: f.hostISN + uint32(s.Packet.Seq.N), ack: f.peerISN + 1, data: make([]byte, s.Packet.Len),
		})
	} else {
		seg := f.encode(&s.Packet, k, n)
		seg.id = r.ipID
		if len(seg.opts) > 40 {
			return fmt.Errorf("%d bytes of options", len(seg.opts))
		}
		packet = seg.packet()
	}
	r.host.Input(ether(hostMAC, peerMAC, packet))
	return r.collect()
}

// collect takes what the host has sent.
func (r *runner) collect() error {
	for _, frame := range r.host.Output() {
		seg, err := decode(frame)
		if err != nil {
			return fmt.Errorf("the host sent %w", err)
		}
		var f *flow
		for _, g := range r.flows {
			if g.remotePort == seg.dport {
				f = g
			}
		}
		if f == nil {
			return fmt.Errorf("the host sent to port %d", seg.dport)
		}
		if err := f.learn(seg); err != nil {
			return fmt.Errorf("the host sent %w", err)
		}
		r.note("%s", describe(f, seg))
		r.queue = append(r.queue, sent{r.now, f, seg})
	}
	return nil
}

func describe(f *flow, s *segment) string {
	at := ""
	if f.name != "" {
		at = "@" + f.name + " "
	}
	return "    > " + at + f.relative(s).String()
}

// nothing checks that no packet waits to be looked at.
func (r *runner) nothing() error {
	if len(r.queue) == 0 {
		return nil
	}
	q := r.queue[0]
	return fmt.Errorf("a packet that no line expects\n%s", describe(q.flow, q.seg))
}

func (r *runner) when(w When) (from, to int64) {
	base := int64(start)
	if w.Relative {
		base = r.last
	}
	return base + w.From, base + w.To
}

// advance moves the clock to t, or, with stop, to the first packet before. Timers run when they are due.
func (r *runner) advance(t int64, stop bool) error {
	for idle := 0; ; idle++ {
		at := min(t, max(r.now, r.host.Deadline()))
		if at > r.now {
			idle = 0
		}
		if idle > 1000 {
			return fmt.Errorf("a timer that is due fires for ever")
		}
		r.now = at
		r.host.Tick(at)
		if err := r.collect(); err != nil {
			return err
		}
		if at == t || stop && len(r.queue) > 0 {
			return nil
		}
	}
}

func (r *runner) expectAll(s *Step, f *flow) error {
	n := s.Packet.Len / s.Count
	for k := range s.Count {
		want := s.Packet
		want.Seq.N += int64(k * n)
		want.Len = n
		at := s.At
		if k > 0 && at.Relative && !at.Range { // together with the first
			at = When{Relative: true}
		}
		if err := r.expect(&want, s, at, f); err != nil {
			return err
		}
	}
	return nil
}

func (r *runner) expect(want *Packet, s *Step, at When, f *flow) error {
	from, to := r.when(at)
	if at.Any {
		from, to = math.MinInt64, r.now+forever
	}
	until := to + Tolerance
	if s.Optional {
		until = to
	}
	if len(r.queue) == 0 && until > r.now {
		if err := r.advance(until, true); err != nil {
			return err
		}
	}
	line := "\n  want > " + want.String()
	if len(r.queue) == 0 {
		if s.Optional {
			return nil
		}
		return fmt.Errorf("no packet came until %.6f%s", float64(r.now-start)/1e9, line)
	}
	q := r.queue[0]
	got := q.flow.relative(q.seg)
	bad := differ(want, &got)
	if q.flow != f {
		bad = append(bad, "connection")
	}
	late := q.at < from || q.at > until
	if s.Optional && (len(bad) > 0 || late) {
		return nil
	}
	if len(bad) > 0 {
		return fmt.Errorf("another packet came: %s%s\n  got%s", strings.Join(bad, ", "), line, describe(q.flow, q.seg)[3:])
	}
	if late {
		return fmt.Errorf("the packet came at %.6f, want %.6f to %.6f%s", float64(q.at-start)/1e9,
			float64(from-start)/1e9, float64(until-start)/1e9, line)
	}
	r.queue = r.queue[1:]
	r.last = q.at
	return nil
}
