package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// backend is one place to hand flows on to. Fields without atomics are used with Proxy.mu held.
type backend struct {
	addr    netip.AddrPort
	text    string
	drained bool // no new flows, by order
	open    int  // flows now

	health health

	n backendCounts
	// For UDP: datagrams sent since the last one that came back, and when the first of them was sent.
	unanswered   atomic.Int64
	unansweredAt atomic.Int64 // since Proxy.start
	answered     atomic.Bool  // ever
}

type backendCounts struct {
	flows, failed, sent, received, checks, badChecks, downs atomic.Uint64
}

// pick chooses a backend for a new flow that is none of those tried, and counts the flow on it; nil: there is none.
func (p *Proxy) pick(tried map[*backend]bool) *backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	var best *backend
	at := 0
	silentToo := !p.anyUp()
	for i := range p.backends {
		k := (p.next + i) % len(p.backends)
		b := p.backends[k]
		if b.down(silentToo) || b.drained || tried[b] || best != nil && b.open >= best.open {
			continue
		}
		best, at = b, k
		if p.cfg.RoundRobin {
			break
		}
	}
	if best == nil {
		return nil
	}
	p.next = (at + 1) % len(p.backends) // those with as few flows take turns
	best.open++
	best.n.flows.Add(1)
	return best
}

// down tells whether b is not to be chosen. Anybody can send what no backend answers: silence, other than a refusal, counts
// only where there is somebody to go to instead.
func (b *backend) down(silentToo bool) bool {
	return b.health.down && !(silentToo && b.health.silent)
}

// anyUp tells whether new flows have a backend that nothing is known against. The caller holds mu.
func (p *Proxy) anyUp() bool {
	return slices.ContainsFunc(p.backends, func(b *backend) bool { return !b.health.down && !b.drained })
}

// unpick takes back what pick counted, when the flow ends.
func (p *Proxy) unpick(b *backend) {
	p.mu.Lock()
	b.open--
	p.mu.Unlock()
}

// usable tells whether a flow that exists may go on to send there. TCP connections are left to find out by themselves.
func (p *Proxy) usable(b *backend) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return !b.down(!p.anyUp())
}

// Drain takes a backend out of the choice for new flows, or puts it back. Its flows go on to their end.
func (p *Proxy) Drain(addr netip.AddrPort, on bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range p.backends {
		if b.addr == addr {
			b.drained = on
			return nil
		}
	}
	return fmt.Errorf("proxy: there is no backend %s", addr)
}

// Counters are of the proxy since its start.
type Counters struct {
	Flows     uint64 // admitted
	FullTable uint64 // refused, because the table of flows was full
	NoBackend uint64 // refused, because no backend was up, or none of them took the connection
	Idle      uint64 // ended because they were silent
	Broken    uint64 // reset by one side, which the other was told
	Dropped   uint64 // UDP: datagrams of refused flows, or that could not be sent on
}

// BackendCounters are of one backend.
type BackendCounters struct {
	Flows         uint64
	Failed        uint64 // connections that it refused or did not answer, and ICMP errors
	BytesSent     uint64 // to it
	BytesReceived uint64
	Checks        uint64
	BadChecks     uint64
	Downs         uint64 // times it was taken down
}

// BackendStats is a backend for a person.
type BackendStats struct {
	Addr     netip.AddrPort
	State    string // "up", "down", "drained"
	Reason   string // why it is down
	Since    time.Duration
	Open     int // flows now
	Counters BackendCounters
}

// Stats takes the counters.
func (p *Proxy) Stats() (Counters, []BackendStats) {
	n := &p.n
	c := Counters{n.flows.Load(), n.full.Load(), n.noBackend.Load(), n.idle.Load(), n.broken.Load(), n.dropped.Load()}
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []BackendStats
	for _, b := range p.backends {
		n := &b.n
		s := BackendStats{
			Addr: b.addr, State: "up", Since: p.since() - b.health.since, Open: b.open, Counters: BackendCounters{
				n.flows.Load(), n.failed.Load(), n.sent.Load(), n.received.Load(), n.checks.Load(), n.badChecks.Load(),
				n.downs.Load(),
			},
		}
		switch {
		case b.health.down:
			s.State, s.Reason = "down", b.health.reason
		case b.drained:
			s.State = "drained"
		}
		list = append(list, s)
	}
	return c, list
}
