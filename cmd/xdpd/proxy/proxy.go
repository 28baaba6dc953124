// Package proxy is a layer-4 proxy: what comes in for one address is handed on to one of several backends, connection by
// connection or, for UDP, flow by flow.
//
//	client ── Listener ──▶ pick: up, not drained, fewest flows ──▶ Dialer ── backend
//	                             ▲
//	          checks, and failures of real traffic (health.go)
//
// It knows nothing of the engine below it: listeners and the Dialer are the standard library's interfaces. Everything is
// bounded: flows at a time, bytes buffered for each, and how long a silent one stays. What is refused is counted.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// Dialer opens connections to backends, as net.Dialer does. network is "tcp4" or "udp4".
type Dialer interface {
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// Config says what a proxy does. The zero value of a field but the first three is its default.
type Config struct {
	Network  string // "tcp" or "udp"
	Backends []netip.AddrPort
	Dialer   Dialer

	RoundRobin bool // one after the other; default: the one with the fewest flows
	Flows      int  // at a time; default 4096
	// Idle is how long a flow may be silent: by default a minute for UDP, and two hours for TCP, where keep-alive finds out
	// about ends that are gone.
	Idle time.Duration

	Check   time.Duration // between two checks of a backend; default 2 s
	Timeout time.Duration // for a connection to a backend, and for a check; default 2 s
	Rise    int           // good checks in a row that bring a backend up; default 2
	Fall    int           // bad ones that take it down; default 3
}

func (c *Config) setDefaults() error {
	switch {
	case c.Network != "tcp" && c.Network != "udp":
		return net.UnknownNetworkError(c.Network)
	case len(c.Backends) == 0:
		return errors.New("proxy: no backends")
	}
	for v, or := range map[*int]int{&c.Flows: 4096, &c.Rise: 2, &c.Fall: 3} {
		if *v <= 0 {
			*v = or
		}
	}
	idle := 2 * time.Hour
	if c.Network == "udp" {
		idle = time.Minute
	}
	for v, or := range map[*time.Duration]time.Duration{&c.Idle: idle, &c.Check: 2 * time.Second, &c.Timeout: 2 * time.Second} {
		if *v <= 0 {
			*v = or
		}
	}
	return nil
}

// Proxy hands on what comes in. Its methods are safe from any goroutine.
type Proxy struct {
	cfg      Config
	backends []*backend
	start    time.Time
	n        counts
	cancel   context.CancelFunc
	ctx      context.Context // ends with Shutdown
	work     sync.WaitGroup  // flows, listeners and checks

	mu       sync.Mutex
	next     int // where the next choice begins
	entries  map[listener]struct{}
	flows    map[flow]struct{}
	shutdown bool
}

// flow is a TCP connection or a UDP flow.
type flow interface {
	idleSince() time.Duration // when it last moved, since Proxy.start
	end(reset bool) bool      // closes both sides; false: they are closed already
}

// listener is what comes in through: a net.Listener or a PacketConn.
type listener interface{ Close() error }

// counts are of the whole proxy.
type counts struct {
	flows, full, noBackend, idle, broken, dropped atomic.Uint64
}

// New makes a proxy. Run keeps its books; Shutdown ends it.
func New(cfg Config) (*Proxy, error) {
	if err := cfg.setDefaults(); err != nil {
		return nil, err
	}
	p := &Proxy{cfg: cfg, start: time.Now(), entries: make(map[listener]struct{}), flows: make(map[flow]struct{})}
	p.ctx, p.cancel = context.WithCancel(context.Background())
	for _, a := range cfg.Backends {
		p.backends = append(p.backends, &backend{addr: a, text: a.String()})
	}
	return p, nil
}

// Run checks backends and ends silent flows until Shutdown.
func (p *Proxy) Run() {
	var checks sync.WaitGroup
	for _, b := range p.backends {
		checks.Go(func() { p.watch(b) })
	}
	tick := time.NewTicker(max(p.cfg.Idle/8, time.Millisecond))
	defer tick.Stop()
	for p.ctx.Err() == nil {
		select {
		case <-tick.C:
			p.sweep(p.since())
		case <-p.ctx.Done():
		}
	}
	checks.Wait()
}

func (p *Proxy) since() time.Duration { return time.Since(p.start) }

// sweep ends the flows that were silent for too long at the time of now.
func (p *Proxy) sweep(now time.Duration) {
	var old []flow
	p.mu.Lock()
	for f := range p.flows {
		if now-f.idleSince() >= p.cfg.Idle {
			old = append(old, f)
		}
	}
	p.mu.Unlock()
	for _, f := range old {
		if f.end(true) {
			p.n.idle.Add(1)
		}
	}
}

// Shutdown stops accepting, and waits for the flows to end; when ctx ends first it resets them and returns its error.
// UDP flows have no end to wait for.
func (p *Proxy) Shutdown(ctx context.Context) error {
	p.mu.Lock()
	p.shutdown = true
	for l := range p.entries {
		_ = l.Close()
	}
	p.mu.Unlock()
	var err error
	if p.cfg.Network == "tcp" {
		err = p.drained(ctx)
	}
	p.cancel()
	p.mu.Lock()
	left := p.flowList()
	p.mu.Unlock()
	for _, f := range left {
		f.end(true)
	}
	p.work.Wait()
	return err
}

func (p *Proxy) drained(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		p.mu.Lock()
		n := len(p.flows)
		p.mu.Unlock()
		if n == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("proxy: %d connections reset: %w", n, ctx.Err())
		}
	}
}

func (p *Proxy) flowList() (list []flow) {
	for f := range p.flows {
		list = append(list, f)
	}
	return list
}

// enter has a listener closed by Shutdown; false: it is too late.
func (p *Proxy) enter(l listener) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.shutdown {
		return false
	}
	p.entries[l] = struct{}{}
	p.work.Add(1)
	return true
}

func (p *Proxy) leave(l listener) {
	p.mu.Lock()
	delete(p.entries, l)
	p.mu.Unlock()
	p.work.Done()
}

// admit takes a flow into the table; false: it is full, or the proxy is closing. drop takes it out.
func (p *Proxy) admit(f flow) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.room() {
		return false
	}
	p.flows[f] = struct{}{}
	p.n.flows.Add(1)
	p.work.Add(1)
	return true
}

// room tells whether a flow would be admitted, and counts it as refused if not. The caller holds mu.
func (p *Proxy) room() bool {
	if p.shutdown || len(p.flows) >= p.cfg.Flows {
		p.n.full.Add(1)
		return false
	}
	return true
}

func (p *Proxy) drop(f flow) {
	p.mu.Lock()
	delete(p.flows, f)
	p.mu.Unlock()
	p.work.Done()
}
