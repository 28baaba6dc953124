package reactor

import (
	"errors"

	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// Counters is the reactor's part of the ledger: what happened between the rings and the Host.
type Counters struct {
	Turns          uint64
	RxFrames       uint64 // packets
	RxMore         uint64 // frames behind the first of a packet
	RxBadDesc      uint64 // descriptors that name no frame which the device had, or not within it: dropped
	RxBadChain     uint64 // packets of several frames dropped because one of them was bad, or there were too many
	TxFrames       uint64 // packets
	TxMore         uint64 // frames behind the first of a packet
	Completions    uint64
	BadCompletions uint64 // addresses of no frame that the device had to send
	FillStarved    uint64 // turns that found no free frame for the fill ring
	TxRingFull     uint64 // turns that ended with frames for which the TX ring had no slot
	Kicks          uint64 // system calls to make the device send
	WakeRX         uint64 // system calls to make the device look at the fill ring
	Sleeps         uint64 // ppoll(2) calls
	Signals        uint64 // eventfd writes to wake the reactor
	DeviceDown     uint64 // times a system call said that the device is down
	Polls          uint64 // rounds of the queue's NAPI that the loop ran (Config.NAPI)
	Drives         uint64 // times that it took the NAPI from the kernel
	DriveFailed    uint64 // times that it could not, and will not try again
	Exchanges      uint64 // ports that took another's place (Exchange)
	Stalls         uint64 // turns that the watchdog found to take too long (GroupConfig.Stalled)
}

// Add sums two reactors' counters.
func (c *Counters) Add(o *Counters) {
	c.Turns += o.Turns
	c.RxFrames += o.RxFrames
	c.RxBadDesc += o.RxBadDesc
	c.RxMore += o.RxMore
	c.RxBadChain += o.RxBadChain
	c.TxFrames += o.TxFrames
	c.TxMore += o.TxMore
	c.Completions += o.Completions
	c.BadCompletions += o.BadCompletions
	c.FillStarved += o.FillStarved
	c.TxRingFull += o.TxRingFull
	c.Kicks += o.Kicks
	c.WakeRX += o.WakeRX
	c.Sleeps += o.Sleeps
	c.Signals += o.Signals
	c.DeviceDown += o.DeviceDown
	c.Polls += o.Polls
	c.Drives += o.Drives
	c.DriveFailed += o.DriveFailed
	c.Exchanges += o.Exchanges
	c.Stalls += o.Stalls
}

// Syscalls is how many system calls the data path made.
func (c *Counters) Syscalls() uint64 { return c.Kicks + c.WakeRX + c.Polls + c.Sleeps + c.Signals }

// Counters gives the counters. The caller holds the lock (Enter).
func (r *Reactor) Counters() Counters {
	c := r.counters
	c.Polls = r.polls.Load()
	c.Signals = r.wake.writes.Load()
	c.Stalls = r.stalls.Load()
	return c
}

// turn does one turn. worked: there was something to do; deadline: when the next timer wants a turn. The device is told
// without the lock: that system call is most of a turn, since the frames cross to the peer in it, and other goroutines
// may read and write meanwhile.
func (r *Reactor) turn() (worked bool, deadline int64, stop bool) {
	n := r.port.RX.Avail()
	if n < batch {
		r.poll()
	}
	if n >= budget {
		r.crowded += uint64(n)
	}
	worked, kick, deadline, stop := r.locked()
	if kick {
		if err := r.port.Dev.Kick(); err != nil || r.downUntil != 0 {
			r.lock()
			r.device(err)
			r.unlock()
		}
		if r.port.TX.Pending() > 0 {
			deadline = min(deadline, r.again(r.now()))
		}
	}
	return worked, deadline, stop
}

// locked is the part of a turn that has the lock. kick: the device is to be told of frames.
func (r *Reactor) locked() (worked, kick bool, deadline int64, stop bool) {
	r.lock()
	defer r.unlock()
	if r.stopped {
		return false, false, 0, true
	}
	r.counters.Turns++
	r.woke = false
	start := r.now()
	r.turnAt.Store(start)
	if worked = r.poked.Swap(false); worked {
		r.hear(start)
		r.handIn(start)
		if r.renew != nil {
			if r.exchange(); r.stopped {
				return false, false, 0, true
			}
		}
	}
	worked = r.reap() || worked
	r.refill()
	worked = r.receive(start) || worked
	if len(r.peers) > 0 {
		r.handOut()
	}
	now := r.now()
	if now >= r.host.NextDeadline() {
		r.host.Tick(now)
	}
	r.expire(now)
	r.host.EndTurn()
	worked = r.deliver(now) || worked
	worked = r.runRings(now) || worked
	r.host.Flush(now)
	sent, kick := r.transmit(now)
	r.publishRings()
	r.resolve()
	r.arrange(now)
	deadline = r.timers(now)
	if r.host.TxPending() > 0 || !kick && r.unsent() {
		deadline = min(deadline, r.again(now))
	}
	return worked || sent, kick, deadline, false
}

// Turn does one turn on the calling goroutine, for those who run a reactor themselves, without Run.
func (r *Reactor) Turn() (worked bool, deadline int64) {
	worked, deadline, _ = r.turn()
	return worked, deadline
}

// deadline is when the next turn is due.
func (r *Reactor) deadline(now int64) int64 {
	d := r.timers(now)
	if r.unsent() {
		d = min(d, r.again(now))
	}
	return d
}

// unsent: there are frames that the device did not take yet.
func (r *Reactor) unsent() bool { return r.port.TX.Pending() > 0 || r.host.TxPending() > 0 }

// again is when a device that did not take all frames is tried again.
func (r *Reactor) again(now int64) int64 {
	if r.downUntil > now {
		return r.downUntil
	}
	return now + minSpinNS
}

// timers is deadline without what the device left.
func (r *Reactor) timers(now int64) int64 {
	d := min(r.host.NextDeadline(), r.waits.next(), r.ringDeadline())
	// Completions, and what comes back from other reactors, free frames without a wake-up.
	if r.host.Blocked() && r.inTX+r.away > 0 || r.away > 0 && r.inFill < r.cfg.FillFrames/2 || r.sending() {
		d = min(d, now+blockedNS)
	}
	return d
}

// reap takes completions.
func (r *Reactor) reap() bool {
	any := false
	for range 2 * budget / batch {
		idx, n := r.port.Comp.Peek(batch)
		if n == 0 {
			break
		}
		any = true
		for i := range n {
			f, ok := r.frame(r.port.Comp.Read(idx+i), umem.TX)
			if !ok {
				r.counters.BadCompletions++
				continue
			}
			r.pool.Move(f, umem.TX, umem.Comp)
			r.inTX--
			r.host.Completed(f)
		}
		r.port.Comp.Release(n)
		r.counters.Completions += uint64(n)
	}
	return any
}

// frame is the frame at addr, if the device has it as o (Fill or TX), and takes it from there. So a device that names a
// frame twice, or one that it was not given, does no harm.
func (r *Reactor) frame(addr uint64, o umem.Owner) (umem.Frame, bool) {
	f, ok := r.pool.Region().FrameOf(addr)
	if !ok || r.with[f] != o {
		return f, false
	}
	r.with[f] = umem.Free
	return f, true
}

// refill gives free frames to the device, in batches.
func (r *Reactor) refill() {
	for r.inFill < r.cfg.FillFrames {
		want := min(batch, r.cfg.FillFrames-r.inFill, int(r.port.Fill.Free()))
		if want == 0 || want < batch && r.inFill > r.cfg.FillFrames/2 {
			break
		}
		n := r.pool.GetN(r.scratch[:want], umem.Fill)
		if n == 0 {
			r.counters.FillStarved++
			break
		}
		idx, _ := r.port.Fill.Reserve(uint32(n))
		for i, f := range r.scratch[:n] {
			*r.port.Fill.Slot(idx + uint32(i)) = r.pool.Region().Addr(f)
			r.with[f] = umem.Fill
		}
		r.port.Fill.Submit(uint32(n))
		r.inFill += n
	}
	if r.port.Fill.NeedWakeup() && r.now() >= r.downUntil {
		r.counters.WakeRX++
		r.device(r.port.Dev.WakeRX())
	}
}

// receive hands frames to the Host, at most a budget of them and no longer than a turn may last.
func (r *Reactor) receive(start int64) bool {
	now := start
	for done := 0; done < budget && now-start < turnNS; {
		idx, n := r.port.RX.Peek(batch)
		if n == 0 {
			return done > 0
		}
		crowded := r.host.Crowded()
		for i := range n {
			if crowded && i%sockets.AheadMax == 0 {
				r.ahead(idx+i, min(n-i, sockets.AheadMax))
			}
			r.receiveOne(r.port.RX.Read(idx+i), now)
		}
		r.port.RX.Release(n)
		r.counters.RxFrames += uint64(n)
		done += int(n)
		r.refill()
		now = r.now()
	}
	return true
}

// ahead has the Host look at packets before it is given them. Their descriptors are read a second time then, for by whatever
// stands there now nothing but the time of a turn changes.
func (r *Reactor) ahead(idx, n uint32) {
	next := r.next[:0]
	for i := range n {
		d := r.port.RX.Read(idx + i)
		if f, ok := r.pool.Region().FrameOf(d.Addr); ok && r.with[f] == umem.Fill {
			next = append(next, sockets.Piece{F: f, Off: uint16(d.Addr - r.pool.Region().Addr(f)), N: uint16(d.Len)})
		}
	}
	r.host.Ahead(next)
}

func (r *Reactor) receiveOne(d rings.Desc, now int64) {
	r.inFill--
	if d.Options&rings.DescContinued != 0 || r.parts.open {
		r.receivePart(d, now)
		return
	}
	f, ok := r.frame(d.Addr, umem.Fill)
	if !ok {
		r.counters.RxBadDesc++
		return
	}
	r.pool.Move(f, umem.Fill, umem.RX)
	chunk := r.pool.Region().ChunkSize()
	off := int(d.Addr - r.pool.Region().Addr(f))
	// The Host writes headers in front of what it answers in the same frame: Headroom must be there.
	if off < earliest || int(d.Len) > chunk-off {
		r.counters.RxBadDesc++
		r.pool.Put(f, umem.RX)
		return
	}
	r.host.Input(f, off, int(d.Len), now)
}

// earliest is where a packet may begin in a frame: with zero copy, one whose VLAN tag the steering program put back begins
// by as much earlier as its headers are longer.
const earliest = umem.Headroom - 4

// deliver tells sinks, and runs the handlers that live on the reactor.
func (r *Reactor) deliver(now int64) bool {
	worked := false
	if r.host.PendingEvents() {
		r.events = r.host.TakeEvents(r.events[:0])
		crowded := r.host.Crowded()
		for i, e := range r.events {
			if crowded && i%sockets.AheadMax == 0 {
				r.seen += r.watches.touch(r.events[i:min(i+sockets.AheadMax, len(r.events))])
			}
			if w := r.watches.find(e.Sock); w != nil {
				if r.woke = r.tell(e, w) || r.woke; r.ringPollers == 0 {
					continue
				}
			}
			if sink, ok := r.sinks.Get(e.Sock); ok {
				r.woke = sink.Ready(e.Sock, r.host.Ready(e.Sock)) || r.woke
			}
		}
		if cap(r.events) > eventsKept { // a million peers hung up at once: rare
			r.events = nil
		}
		worked = true
	}
	for {
		s, ok := r.host.PopClosed()
		if !ok {
			break
		}
		if r.watches.find(s) != nil {
			r.forget(s)
		}
		if sink, ok := r.sinks.Get(s); ok {
			r.sinks.Delete(s)
			r.woke = sink.Ready(s, sockets.Err|sockets.Hup) || r.woke
		}
	}
	return r.serveDue(now) || worked
}

// transmit moves the Host's output to the TX ring. kick: the device has entries it did not take, and wants to be told.
func (r *Reactor) transmit(now int64) (worked, kick bool) {
	for r.host.TxPending() > 0 {
		idx, n := r.port.TX.Reserve(uint32(min(batch, r.host.TxPending())))
		if whole := uint32(r.host.TxWhole(int(n))); whole < n { // a packet leaves with all its frames
			r.port.TX.Cancel(n - whole)
			n = whole
		}
		if n == 0 {
			r.counters.TxRingFull++
			break
		}
		for i := range n {
			tx := r.host.PopTX()
			r.with[tx.F] = umem.TX
			d := r.port.TX.Slot(idx + i)
			*d = rings.Desc{Addr: r.pool.Region().Addr(tx.F) + uint64(tx.Off()), Len: uint32(tx.N())}
			if tx.LeavesSum() {
				d.Options = rings.DescMetadata
				start, field := r.host.SumOf(tx)
				rings.AskChecksum(r.metadata(tx), start, field)
			} else if r.port.Metadata {
				rings.AskNothing(r.metadata(tx))
			}
			if tx.More() {
				d.Options |= rings.DescContinued
				r.counters.TxMore++
				r.counters.TxFrames-- // which the batch counts
			}
		}
		r.port.TX.Submit(n)
		r.inTX += int(n)
		r.counters.TxFrames += uint64(n)
		worked = true
	}
	if now >= r.downUntil && r.port.TX.NeedWakeup() && r.port.TX.Pending() > 0 {
		r.counters.Kicks++
		kick = true
	}
	return worked, kick
}

// metadata is what the device may read in front of a frame to send.
func (r *Reactor) metadata(tx sockets.TxFrame) []byte {
	return r.pool.Chunk(tx.F)[tx.Off()-rings.TXMetadata : tx.Off()]
}

// device notes what a system call on the socket said. A device that is down is tried again after a while: taken up
// again, it goes on where it stopped. One that is gone is the business of whoever watches the link.
func (r *Reactor) device(err error) {
	if err == nil {
		r.downUntil = 0
		return
	}
	if errors.Is(err, rings.ErrDeviceDown) {
		r.counters.DeviceDown++
		r.downUntil = r.now() + downRetryNS
		return
	}
	if !r.stopped {
		r.stopped, r.err = true, err
	}
}

// resolve passes on what the Host wants from outside.
func (r *Reactor) resolve() {
	for {
		a, ok := r.host.PopResolve()
		if !ok {
			break
		}
		if r.cfg.Resolve != nil {
			r.cfg.Resolve(a)
		}
	}
	for {
		a, ok := r.host.PopHeard()
		if !ok {
			break
		}
		if r.cfg.Heard != nil {
			r.cfg.Heard(a)
		}
	}
	for {
		local, port, ok := r.host.PopGone()
		if !ok {
			break
		}
		if r.cfg.Gone != nil {
			r.cfg.Gone(local, port)
		}
	}
}
