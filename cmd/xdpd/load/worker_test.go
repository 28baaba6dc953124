package load

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"xdpd/internal/seeds"
)

// TestStallShows: a server stands still once, for a second of ten. In the open loop a tenth of the requests were due then,
// and the percentiles say so; in the closed loop it is one.
func TestStallShows(t *testing.T) {
	for _, c := range []struct {
		rate      float64
		constant  bool
		p50, p95  int64 // at most, at least, in ns
		responses uint64
	}{
		{1000, true, 200e3, 400e6, 10000},
		{1000, false, 300e3, 300e6, 0},
		{0, false, 200e3, 0, 0},
	} {
		x := newWorld(t, Config{Kind: RR, Rate: c.rate, Constant: c.constant, Seed: 1, Verify: true, Connections: 4})
		x.stallFrom, x.stallTo = x.now+3e9, x.now+4e9
		s := x.run(10 * time.Second)
		h := x.w.hist
		p50, p95, most := h.ValueAtQuantile(50), h.ValueAtQuantile(95), h.Max()
		if p50 > c.p50 || p95 < c.p95 || most < 990e6 || c.rate == 0 && h.ValueAtQuantile(99.9) > 200e3 {
			t.Errorf("rate %v: p50 %d, p95 %d, max %d", c.rate, p50, p95, most)
		}
		if c.responses > 0 && s.Responses+1 < c.responses || s.Failed() > 0 || uint64(h.TotalCount()) != s.Responses {
			t.Errorf("rate %v: %d responses, %d failed, %d latencies", c.rate, s.Responses, s.Failed(), h.TotalCount())
		}
		if c.rate > 0 && (s.MaxBacklog < 900 || s.MaxBacklog > 1100) {
			t.Errorf("rate %v: a backlog of %d", c.rate, s.MaxBacklog)
		}
	}
}

// TestOverload: a rate beyond what one connection can do. What was due and did not begin is told.
func TestOverload(t *testing.T) {
	x := newWorld(t, Config{Kind: RR, Rate: 20000, Constant: true, Verify: true}) // an answer takes 100 µs: 10,000 a second
	s := x.run(time.Second)
	if s.NotBegun < 9900 || s.NotBegun > 10100 || s.NotBegunNS < 490e6 || s.NotBegunNS > 510e6 || s.MaxBacklog < s.NotBegun {
		t.Errorf("%d not begun, for %d ns; backlog %d", s.NotBegun, s.NotBegunNS, s.MaxBacklog)
	}
	if all := s.Requests + s.NotBegun; all < 19990 || all > 20010 {
		t.Errorf("%d requests were due", all)
	}
}

// TestSchedule: the times are those of the rate, and the same when they are taken.
func TestSchedule(t *testing.T) {
	for _, constant := range []bool{true, false} {
		const workers, rate = 3, 30000.0
		cfg := Config{Rate: rate, Constant: constant, Seed: 7}
		due := map[int64]bool{}
		for i := range workers {
			s := newSchedule(&cfg, 0, i, workers)
			s.advance(10e9)
			if n := float64(s.backlog()); math.Abs(n-rate/workers*10) > 5*math.Sqrt(n) || constant && math.Abs(n-rate/workers*10) > 1 {
				t.Errorf("worker %d has %v requests in 10 s", i, n)
			}
			if s.next() <= 10e9 {
				t.Errorf("the next is at %d", s.next())
			}
			last, squares := int64(0), 0.0
			for s.backlog() > 0 {
				at := s.take()
				if at < last || at > 10e9 {
					t.Fatalf("%d after %d", at, last)
				}
				squares += math.Pow(float64(at-last)*rate/workers/1e9, 2)
				last = at
				due[at] = true
			}
			// The mean square of an exponential variable is twice that of its mean.
			if mean := squares / (rate / workers * 10); math.Abs(mean-map[bool]float64{true: 1, false: 2}[constant]) > 0.2 {
				t.Errorf("constant %v: intervals with a mean square of %v", constant, mean)
			}
		}
		if constant && len(due) < workers*rate/workers*10-10 {
			t.Errorf("only %d different times: the workers are in step", len(due))
		}
	}
}

// TestErrorsExactly: a server that does everything wrong now and then. Each wrong is counted once, as what it is.
func TestErrorsExactly(t *testing.T) {
	seed := seeds.One(t)
	for _, kind := range []Kind{RR, Connect} {
		for _, how := range []string{"reset", "fin"} {
			rng := rand.New(rand.NewPCG(uint64(seed), 1))
			cfg := Config{Kind: kind, Connections: 20, Send: 100, Verify: true, Count: 5000, Timeout: time.Second}
			if kind == Connect {
				cfg.Close = how
			}
			x := newWorld(t, cfg)
			var want, dials [nFaults]uint64
			failed := uint64(0)
			x.dialled = func() syscall.Errno {
				to := &dials
				if kind == Connect {
					to = &want
				}
				list := []syscall.Errno{syscall.ECONNREFUSED, syscall.EADDRNOTAVAIL, syscall.ETIMEDOUT, syscall.EHOSTUNREACH}
				i := rng.IntN(10 * len(list))
				if i >= len(list) {
					return 0
				}
				to[faultOf(list[i])]++
				failed++
				return list[i]
			}
			x.answer = func(s *simSock, b []byte) ([]byte, simEnd) {
				if len(b) != 100 {
					t.Fatalf("%d bytes are written", len(b))
				}
				switch rng.IntN(60) {
				case 0:
					want[Reset]++
					return b[:rng.IntN(len(b))], resets
				case 1:
					want[Closed]++
					return b[:rng.IntN(len(b))], ends
				case 2:
					want[TimedOut]++
					return nil, silent
				case 3:
					want[WrongData]++
					b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
				case 4:
					want[WrongData]++
					return append(b, 0), goesOn
				}
				return b, goesOn
			}
			s := x.run(time.Hour)
			// Where connections are no requests, those that are being dialled at the end are given up.
			given := s.Dialled - s.Opened - sum(faults(&s.ConnErrors))
			if kind == Connect {
				given = 0
			}
			for f := range nFaults {
				if n := s.ConnErrors[f]; n > dials[f] || n+given < dials[f] {
					given = 21
				}
			}
			if s.Errors != want || given > 20 || s.Requests != 5000 {
				t.Errorf("seed %d, %s closed by %s: %d requests\nerrors %v %v\nwant   %v %v", seed, kind, how, s.Requests,
					faults(&s.Errors), faults(&s.ConnErrors), faults(&want), faults(&dials))
			}
			if kind == Connect && s.Dialled != s.Opened+failed {
				t.Errorf("%d dialled, %d opened, %d not", s.Dialled, s.Opened, failed)
			}
		}
	}
}

// TestPipeline: many requests under way, written and answered in pieces of any size.
func TestPipeline(t *testing.T) {
	for _, limit := range []int{0, 7, 1000} {
		x := newWorld(t, Config{Kind: RR, Connections: 3, Depth: 16, Send: 300, Verify: true, Count: 3000})
		x.limit = limit
		s := x.run(time.Hour)
		if s.Responses != 3000 || s.Failed() > 0 || s.SentBytes != 900000 || s.ReceivedBytes != 900000 {
			t.Errorf("limit %d: %+v", limit, s)
		}
	}
}

// TestDatagrams: some are lost, doubled, late, turned around or damaged.
func TestDatagrams(t *testing.T) {
	seed := seeds.One(t)
	for _, c := range []struct{ size, depth int }{{1, 1}, {1, 100}, {8, 5}, {1400, 64}} {
		rng := rand.New(rand.NewPCG(uint64(seed), 2))
		x := newWorld(t, Config{Kind: UDP, Connections: 4, Depth: c.depth, Send: c.size, Verify: true, Count: 20000, Timeout: 100 * time.Millisecond})
		var lost, wrong, more uint64
		x.answer = func(s *simSock, b []byte) ([]byte, simEnd) {
			s.at = 0 // in any order
			x.delay = 50e3 + rng.Int64N(100e3)
			switch rng.IntN(50) {
			case 0:
				lost++
				return nil, silent
			case 1:
				if c.size > 8 {
					wrong++
					b[8+rng.IntN(len(b)-8)] ^= 0x80
				}
			case 2:
				if c.size == 8 { // with a shorter number a copy may look like another's
					more++
					x.after(400e6, func() { x.arrive(s, b, goesOn) })
				}
			}
			return b, goesOn
		}
		s := x.run(time.Hour)
		if s.Errors[TimedOut] != lost || s.Errors[WrongData] != wrong || s.Requests != 20000 || s.Unmatched > more {
			t.Errorf("seed %d, %+v: %d requests, errors %v, unmatched %d; %d were lost, %d wrong, %d doubled", seed, c,
				s.Requests, faults(&s.Errors), s.Unmatched, lost, wrong, more)
		}
	}
}

// TestBulk: both directions, verified, over a transport that takes odd pieces; and a wrong byte.
func TestBulk(t *testing.T) {
	for _, damage := range []bool{false, true} {
		x := newWorld(t, Config{Kind: Bulk, Direction: "both", Connections: 3, Verify: true, Count: 3 << 20})
		x.limit = 4321
		x.answer = func(s *simSock, b []byte) ([]byte, simEnd) {
			if damage && s.got <= 1<<19 && s.got+uint64(len(b)) > 1<<19 {
				b[1<<19-s.got] ^= 1
			}
			return b, goesOn
		}
		s := x.run(time.Hour)
		if !damage && (s.Responses != 3 || s.SentBytes != 3<<20 || s.ReceivedBytes != 3<<20) || damage && s.Errors[WrongData] != 3 {
			t.Errorf("damage %v: %+v", damage, s)
		}
	}
}

// TestHold: connections that stay are responses; those that end are not.
func TestHold(t *testing.T) {
	x := newWorld(t, Config{Kind: Hold, Connections: 1000})
	n := 0
	x.dialled = func() syscall.Errno {
		if n++; n%10 == 0 {
			return syscall.ECONNREFUSED
		}
		return 0
	}
	x.after(1e9, func() {
		n := 0
		for _, s := range x.socks {
			if n++; n <= 50 {
				x.arrive(s, nil, ends)
			}
		}
	})
	s := x.run(5 * time.Second)
	if s.Requests != 1000 || s.Responses != 850 || s.Errors[Refused] != 100 || s.Errors[Closed] != 50 || x.w.hist.TotalCount() != 900 {
		t.Errorf("%+v", s)
	}
}

// TestHoldAtRate: the open loop opens them one by one.
func TestHoldAtRate(t *testing.T) {
	x := newWorld(t, Config{Kind: Hold, Connections: 1000, Rate: 500, Constant: true})
	s := x.run(time.Second)
	if s.Requests < 499 || s.Requests > 501 || s.Responses != s.Requests {
		t.Errorf("%+v", s)
	}
}

func TestNoAllocation(t *testing.T) {
	for _, cfg := range []Config{
		{Kind: RR, Connections: 8, Depth: 4, Verify: true}, {Kind: RR, Connections: 8, Rate: 1000, Verify: true},
		{Kind: UDP, Connections: 8, Depth: 4, Send: 64, Verify: true}, {Kind: HTTP, Connections: 8, Length: -1},
	} {
		cfg.Target = simTarget
		if err := cfg.Check(); err != nil {
			t.Fatal(err)
		}
		m := &mirror{udp: cfg.Kind == UDP, http: cfg.Kind == HTTP}
		w := newWorker(&cfg, 0, 1, make(chan struct{}, 1))
		w.t, m.w = m, w
		w.start()
		m.turn()
		w.measure(noQuota)
		for range 100 {
			m.turn()
		}
		before := w.stats.Responses
		n := testing.AllocsPerRun(200, m.turn)
		if done := w.stats.Responses - before; n != 0 || done < 200 || w.stats.Failed() > 0 {
			t.Errorf("%v: %v allocations in a turn; %d responses, errors %v", &cfg, n, done, faults(&w.stats.Errors))
		}
	}
}

// mirror is a transport whose peer echoes, or answers GETs, without allocating itself.
type mirror struct {
	world
	udp, http bool
	pipes     [64]struct {
		buf [1 << 16]byte
		n   int
		key uint64
	}
	used int
}

func (m *mirror) dial(key uint64) (uint64, syscall.Errno) {
	m.pipes[m.used].key = key
	m.used++
	return uint64(m.used - 1), 0
}

func (m *mirror) write(sock uint64, b []byte) (int, syscall.Errno) {
	p := &m.pipes[sock]
	back := b
	if m.http {
		back = []byte("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
	}
	p.n += copy(p.buf[p.n:], back)
	return len(b), 0
}

func (m *mirror) read(sock uint64, b []byte) (int, syscall.Errno) {
	p := &m.pipes[sock]
	n := p.n
	if m.udp {
		n = min(n, m.w.cfg.Send)
	}
	if n == 0 {
		return 0, again
	}
	copy(b, p.buf[:n])
	p.n = copy(p.buf[:], p.buf[n:p.n])
	return n, 0
}

// turn is a millisecond in which everybody hears what came.
func (m *mirror) turn() {
	m.now += 1e6
	for i := range m.used {
		m.w.event(m.pipes[i].key, 5)
	}
	m.w.tick()
}

func TestCheck(t *testing.T) {
	good := Config{Kind: RR, Target: simTarget}
	for _, change := range []func(*Config){
		func(c *Config) { c.Kind = "ping" }, func(c *Config) { c.Connections = -1 }, func(c *Config) { c.Connections = 2 << 20 },
		func(c *Config) { c.Depth = 1 << 30 }, func(c *Config) { c.Kind, c.Depth = Connect, 2 }, func(c *Config) { c.Send = -1 },
		func(c *Config) { c.Kind, c.Receive = Connect, 1 }, func(c *Config) { c.Kind, c.Send = UDP, 65508 },
		func(c *Config) { c.Kind, c.Verify, c.Depth = UDP, true, 129 }, func(c *Config) { c.Kind, c.Depth = UDP, 2 },
		func(c *Config) { c.Verify, c.Send, c.Receive = true, 1, 2 }, func(c *Config) { c.Kind, c.Close = Connect, "slam" },
		func(c *Config) { c.Kind, c.Direction = Bulk, "up" }, func(c *Config) { c.Kind, c.Rate = Bulk, 1 },
		func(c *Config) { c.Kind, c.Count = Hold, 1 }, func(c *Config) { c.Kind, c.Path = HTTP, "x" },
		func(c *Config) { c.Rate = -1 }, func(c *Config) { c.Timeout = time.Millisecond }, func(c *Config) { c.Warmup = -1 }, func(c *Config) { c.Target = netip.AddrPort{} },
	} {
		bad := good
		change(&bad)
		if err := bad.Check(); err == nil {
			t.Errorf("nothing is wrong with %+v", bad)
		}
	}
	if err := good.Check(); err != nil || fmt.Sprint(&good) == "" {
		t.Error(err)
	}
}
