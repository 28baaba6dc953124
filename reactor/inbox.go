package reactor

import (
	"sync"

	"xdpd/proto"
)

// inbox is what other reactors tell this one. A reactor posts while it holds its own lock, so the receiver's lock must
// not be asked for: the inbox has one of its own, under which nobody takes another.
type inbox struct {
	mu   sync.Mutex
	arps []proto.ARP
	busy []proto.ARP // taken last time: the two slices change places
}

const inboxMax = 256

// Post tells the reactor what a sibling heard by ARP. Safe from any goroutine; what is too much is forgotten, and asked
// for again by who needs it.
func (r *Reactor) Post(a proto.ARP) {
	r.inbox.mu.Lock()
	if len(r.inbox.arps) < inboxMax {
		r.inbox.arps = append(r.inbox.arps, a)
	}
	r.inbox.mu.Unlock()
	r.nudge()
}

// nudge has the reactor do a turn, from any goroutine and with any lock held. One that is awake looks by itself; one that
// sleeps is signalled once.
func (r *Reactor) nudge() {
	if !r.poked.Load() {
		r.poked.Store(true)
	}
	if r.dozing.Load() && r.dozing.CompareAndSwap(true, false) {
		r.wake.signal()
	}
}

// hear takes what was posted.
func (r *Reactor) hear(now int64) {
	r.inbox.mu.Lock()
	got := r.inbox.arps
	r.inbox.arps, r.inbox.busy = r.inbox.busy[:0], got
	r.inbox.mu.Unlock()
	for i := range got {
		r.host.Heard(&got[i], now)
	}
}
