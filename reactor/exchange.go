package reactor

import (
	"fmt"
	"time"

	"xdpd/rings"
	"xdpd/umem"
)

// exchange is a port that is to take another's place.
type exchange struct {
	open func(old *rings.Port) (*rings.Port, error)
	done chan error
}

// Exchange has open close the device's port and open another one, on the reactor's goroutine between two turns. Sockets,
// timers and frames stay: what the old port received before it was closed is taken up, and the frames that it still had
// come back, those to be sent as if they had been. What arrives or leaves meanwhile is lost, as on a wire.
//
// Without a port the reactor ends: an error of open, which Exchange returns, is then Run's as well. The new port has rings
// as large as the old one's. A reactor that Run does not run now takes it up when it does; one that stopped is ErrStopped.
func (r *Reactor) Exchange(open func(old *rings.Port) (*rings.Port, error)) error {
	e := &exchange{open, make(chan error, 1)}
	r.mu.Lock()
	for r.renew != nil { // one at a time
		before := r.renew
		r.mu.Unlock()
		before.wait()
		r.mu.Lock()
	}
	if r.stopped {
		r.mu.Unlock()
		return ErrStopped
	}
	r.renew = e
	r.mu.Unlock()
	r.nudge()
	return e.wait()
}

// wait gives the result, to as many as wait for it.
func (e *exchange) wait() error {
	err := <-e.done
	e.done <- err
	return err
}

// How often an old device is asked for what it was given to send, and how long for its completions: what a peer keeps longer
// was copied when it was sent.
const (
	drainKicks  = 64
	drainRounds = 200
	drainPause  = 100 * time.Microsecond
)

// TrySend has the device send a frame, and waits until it gives back one, this or another, up to the given time: drivers may
// take a socket and never send from it, without an errno. Nothing stands still meanwhile. Errors: rings.ErrUnsent; ErrStopped.
func (r *Reactor) TrySend(within time.Duration) error {
	h, now, ok := r.Enter()
	before, sent := r.counters.Completions, false
	for end := time.Now().Add(within); ok; h, now, ok = r.Enter() {
		if r.collect(); r.counters.Completions != before {
			break
		}
		late := time.Now().After(end)
		sent = sent || h.Trial(now)
		r.Leave()
		if late {
			return fmt.Errorf("%w: a frame did not come back within %v", rings.ErrUnsent, within)
		}
		time.Sleep(drainPause)
	}
	r.Leave()
	if !ok {
		return ErrStopped
	}
	return nil
}

// Given is how many frames the device was given to send and has not given back. The caller holds the lock (Enter).
func (r *Reactor) Given() int {
	r.collect()
	return r.inTX
}

// collect takes completions of a reactor that sleeps; one that is awake looks at them without the lock, and is asked for a turn. The caller
// holds the lock.
func (r *Reactor) collect() {
	if r.asleep {
		r.reap()
		return
	}
	r.poked.Store(true)
}

// exchange does what Exchange asks for, with the lock.
func (r *Reactor) exchange() {
	e := r.renew
	r.renew = nil
	r.turnAt.Store(0) // no handler is to blame for how long this takes
	if r.drive != nil {
		r.arr.slept(r.counters.RxFrames + r.counters.TxFrames)
		r.letGo()
	}
	for range drainKicks {
		if r.port.TX.Pending() == 0 || r.port.Dev.Kick() != nil {
			break
		}
	}
	for round := 0; r.inTX > 0 && round < drainRounds; round++ {
		if !r.reap() {
			time.Sleep(drainPause)
		}
	}
	for end := r.counters.RxFrames + uint64(r.port.RX.Size()); r.port.RX.Avail() > 0 && r.counters.RxFrames < end; {
		r.receive(r.now()) // in a flood what is left is lost
	}
	port, err := e.open(r.port)
	if err != nil {
		r.stopped, r.err = true, err
		e.done <- err
		return
	}
	if r.parts.open {
		r.dropParts()
		r.parts = parts{}
		r.counters.RxBadChain++
	}
	if !port.Checksum { // nor will the device finish what it was left: it is lost, and TCP sends it again
		for r.host.TxPending() > 0 {
			r.with[r.host.PopTX().F] = umem.TX
		}
	}
	r.host.SetLeaveSums(port.Checksum)
	for f, o := range r.with {
		switch o {
		case umem.Fill:
			r.pool.Put(umem.Frame(f), umem.Fill)
		case umem.TX:
			r.pool.Move(umem.Frame(f), umem.TX, umem.Comp)
			r.host.Completed(umem.Frame(f))
		}
		r.with[f] = umem.Free
	}
	if r.epoll != nil {
		r.epoll.forget()
	}
	r.port, r.inFill, r.inTX, r.downUntil = port, 0, 0, 0
	r.counters.Exchanges++
	e.done <- nil
}
