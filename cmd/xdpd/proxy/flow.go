package proxy

import (
	"net/netip"
	"sync/atomic"
	"time"
)

// Flow is a TCP connection whose bytes somebody else moves: a data path that is not made of net.Conns. NewFlow admits it,
// Backend and Refused choose where it goes, End takes it out. These calls come from one goroutine at a time.
type Flow struct {
	p     *Proxy
	b     *backend // nil: none yet, or none left
	tried map[*backend]bool
	moved atomic.Int64 // since Proxy.start
	ended atomic.Bool
	abort func()
}

// Timeout is how long a backend has to take a connection.
func (p *Proxy) Timeout() time.Duration { return p.cfg.Timeout }

// Flows is how many there may be at a time.
func (p *Proxy) Flows() int { return p.cfg.Flows }

// NewFlow admits a connection; nil: the table is full, or the proxy is closing. abort is called, from any goroutine and at
// most once, when the flow has to go: both sides are to be reset, and then End is called as ever.
func (p *Proxy) NewFlow(abort func()) *Flow {
	f := &Flow{p: p, tried: make(map[*backend]bool), abort: abort}
	f.touch()
	if !p.admit(f) {
		return nil
	}
	return f
}

// Backend chooses the next backend to connect to; false: there is none.
func (f *Flow) Backend() (addr netip.AddrPort, ok bool) {
	if f.p.ctx.Err() != nil || f.ended.Load() {
		return addr, false
	}
	if f.b = f.p.pick(f.tried); f.b == nil {
		return addr, false
	}
	return f.b.addr, true
}

// Refused says that the backend did not take the connection, and why.
func (f *Flow) Refused(err error) {
	f.tried[f.b] = true
	f.p.unpick(f.b)
	if f.p.ctx.Err() == nil && !f.ended.Load() {
		f.p.failed(f.b, err)
	}
	f.b = nil
}

// Sent counts bytes that went to the backend.
func (f *Flow) Sent(n int) {
	f.touch()
	f.b.n.sent.Add(uint64(n))
}

// Received counts bytes that came from it.
func (f *Flow) Received(n int) {
	f.touch()
	f.b.n.received.Add(uint64(n))
}

// End is called once, when both sides are closed. broken: one was reset, or no backend took it.
func (f *Flow) End(broken bool) {
	if !f.ended.Swap(true) && broken {
		if f.b == nil {
			f.p.n.noBackend.Add(1)
		} else {
			f.p.n.broken.Add(1)
		}
	}
	if f.b != nil {
		f.p.unpick(f.b)
	}
	f.p.drop(f)
}

func (f *Flow) touch()                   { f.moved.Store(int64(f.p.since())) }
func (f *Flow) idleSince() time.Duration { return time.Duration(f.moved.Load()) }

// end implements flow.
func (f *Flow) end(bool) (first bool) {
	if f.ended.Swap(true) {
		return false
	}
	f.abort()
	return true
}
