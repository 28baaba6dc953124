package reactor

// Arrangement says who runs the NAPI of a device queue, where there is a choice (Config.NAPI).
type Arrangement uint8

const (
	AutoNAPI     Arrangement = iota // whoever moves more packets, by trial
	SoftirqNAPI                     // the kernel: on veth, within the sender's system call
	DriveNAPI                       // the loop, whenever it is awake
	SuspendNAPI                     // the kernel, from the loop's epoll_wait while there are packets, else by interrupts
	ThreadedNAPI                    // a thread of the kernel's
)

func (a Arrangement) String() string {
	return [...]string{"auto", "softirq", "drive", "suspend", "threaded"}[a]
}

// arranger chooses an arrangement by trial. Which one is better does not show in the load: a window of one packet and one
// of 64 from as many sockets both come one packet a turn, and to drive the NAPI loses a sixth of the one and wins a third
// of the other. So under load both have their turns of 20 ms, in the order that cancels a steady change; driving is taken
// if it moved a tenth more, and kept while it moves as much. A trial whose first window is worse than the one before it ends
// there, and the next one is the later the more often nothing came of it.
//
// Two things do show, and then the NAPI is the kernel's without a trial. Where batches wait for the loop, its CPU is the
// limit, and more work on it can only be worse. And where the loop is away again and again, because others have the CPU or
// handlers run long, nobody would receive meanwhile.
//
// It is a machine without a clock. It is told of turns and sleeps, and says whether to drive.
type arranger struct {
	how     Arrangement
	driving bool
	prefer  bool   // to drive, as the last trial found
	trial   int    // windows of the trial that are over; -1: none runs
	rates   [2]int // packets a second in the trial, as preferred and the other way
	before  int    // and in the window before it
	from    int64  // of the window
	was     progress
	pause   int64  // between trials
	next    int64  // when one may begin
	idle    uint64 // packets before the last sleep
}

// progress is what a loop did so far.
type progress struct {
	in, out uint64 // packets
	crowded uint64 // of those in, which waited for a turn, as many as it may take or more
	missed  int64  // ns in stretches of more than awayNS in which the loop did not run, sleeps aside
}

func (p *progress) packets() uint64 { return p.in + p.out }

const (
	windowNS   = 20_000_000
	minRate    = 20_000 // packets a second, in and out, below which nothing is gained
	gainPct    = 10
	awayNS     = 1_000_000 // a turn, with what others do on its P, is shorter
	awayPct    = 10        // of a window, from which on the loop is not reliable enough to drive
	minPauseNS = 100_000_000
	maxPauseNS = 10_000_000_000
	maxDriveNS = 2_000_000_000 // between trials while it drives, which can be wrong by more
	resumeAt   = 64            // packets after a sleep: to take the NAPI and to give it back costs as much as a few of them
)

// trialOf says in which windows of a trial the other arrangement has its turn.
var trialOf = [...]bool{true, false, false, true}

func newArranger(how Arrangement) arranger { return arranger{how: how, trial: -1, pause: minPauseNS} }

// turn is told of a turn, and of all that was done so far.
func (a *arranger) turn(now int64, p progress) (drive bool) {
	resume := uint64(1)
	if a.how == AutoNAPI {
		resume = resumeAt
		if now-a.from >= windowNS {
			a.window(now, p)
			a.from, a.was = now, p
		}
	}
	want := a.how == DriveNAPI || a.how == AutoNAPI && a.prefer != (a.trial >= 0 && trialOf[a.trial])
	a.driving = want && (a.driving || p.packets()-a.idle >= resume)
	return a.driving
}

// slept is told that the loop is about to sleep: the NAPI is the kernel's.
func (a *arranger) slept(packets uint64) { a.driving, a.idle = false, packets }

// offered is told that there is a NAPI to drive now, and refused that there is none yet.
func (a *arranger) offered(now int64) { a.trial, a.pause, a.next = -1, minPauseNS, now }

func (a *arranger) refused(now int64) {
	a.driving, a.prefer = false, false
	a.settle(now, false)
}

// window is told of a window that is over.
func (a *arranger) window(now int64, p progress) {
	took := now - a.from
	rate := int(float64(p.packets()-a.was.packets()) * 1e9 / float64(took))
	away := (p.missed-a.was.missed)*100 > took*awayPct
	crowded := !a.driving && 2*(p.crowded-a.was.crowded) > p.in-a.was.in
	if a.trial >= 0 && took > 2*windowNS { // the loop slept, or did not run
		a.settle(now, false)
	}
	switch {
	case away || crowded:
		if a.prefer || a.trial >= 0 {
			a.prefer = false
			a.settle(now, false)
		}
	case a.trial < 0 && rate < minRate:
		a.prefer, a.pause, a.next = false, minPauseNS, now
	case a.trial < 0:
		if now >= a.next {
			a.trial, a.rates, a.before = 0, [2]int{}, rate
		}
	default:
		a.tried(now, rate)
	}
}

// tried is told what a window of a trial brought.
func (a *arranger) tried(now int64, rate int) {
	side, gain := 0, 0
	if trialOf[a.trial] {
		side = 1
	}
	if !a.prefer {
		gain = gainPct
	}
	a.rates[side] += rate
	a.trial++
	switch {
	case a.trial == 1 && rate < a.before:
		a.settle(now, false)
	case a.trial == len(trialOf):
		a.settle(now, a.rates[1]*100 > a.rates[0]*(100+gain))
	}
}

// settle ends a trial.
func (a *arranger) settle(now int64, better bool) {
	a.trial = -1
	a.pause = min(2*a.pause, maxPauseNS)
	if better {
		a.prefer, a.pause = !a.prefer, minPauseNS
	}
	if a.prefer {
		a.pause = min(a.pause, maxDriveNS)
	}
	a.next = now + a.pause
}
