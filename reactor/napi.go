package reactor

import "xdpd/rings"

// SetNAPI gives the reactor the NAPI of its queue, to drive when that pays; nil: it is not the queue's any more, and there
// will be no other. It stays the caller's to close, after Run returned.
func (r *Reactor) SetNAPI(n *rings.NAPI) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.napi = n
	if n == nil {
		r.arr = newArranger(SoftirqNAPI)
	}
	r.arr.offered(r.now())
	r.poked.Store(true)
}

// Drives reports whether the reactor runs the NAPI of its queue at this moment, and whether it has one to run. The caller
// holds the lock (Enter).
func (r *Reactor) Drives() (now, can bool) { return r.drive != nil, r.napi != nil }

// arrange follows the arranger, at the end of a turn.
func (r *Reactor) arrange(now int64) {
	r.alive(now)
	want := r.arr.turn(now, progress{r.counters.RxFrames, r.counters.TxFrames, r.crowded, r.missed})
	switch {
	case want == (r.drive != nil):
	case !want:
		r.letGo()
	case r.napi == nil:
		r.arr.refused(now)
		r.cfg.WantNAPI()
	case r.napi.Drive(true) != nil: // the link was down meanwhile, and has another NAPI; or somebody changed its settings
		r.giveUp()
	default:
		r.drive = r.napi
		r.counters.Drives++
	}
}

// alive notes that the loop runs. For long stretches between two notes it did not, or did something else.
func (r *Reactor) alive(now int64) {
	if d := now - r.ranAt; d > awayNS {
		r.missed += d
	}
	r.ranAt = now
}

// letGo gives the NAPI back to the kernel.
func (r *Reactor) letGo() {
	if r.drive == nil {
		return
	}
	drive := r.drive
	r.drive = nil
	if drive.Drive(false) != nil {
		r.giveUp()
	}
}

func (r *Reactor) giveUp() {
	r.napi, r.arr = nil, newArranger(SoftirqNAPI)
	r.counters.DriveFailed++
}

// poll runs a round of the NAPI, if it is ours.
func (r *Reactor) poll() {
	if r.drive != nil {
		r.polls.Add(1)
		r.drive.Poll()
	}
}

// relax gives the NAPI back before a sleep or the end.
func (r *Reactor) relax() {
	if r.drive == nil { // only the loop changes it
		return
	}
	r.lock()
	defer r.unlock()
	r.arr.slept(r.counters.RxFrames + r.counters.TxFrames)
	r.letGo()
}
