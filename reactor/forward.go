package reactor

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/rings"
	"xdpd/umem"
)

// ForwardMachine decides where frames go: sockets.Bridge and sockets.Router.
type ForwardMachine interface {
	Input(port int, f umem.Frame, off, n int, now int64)
	TxPending(port int) int
	PopTX(port int) (f umem.Frame, off, n int)
	Completed(port int, f umem.Frame)
	Tick(now int64)
	NextDeadline() int64
}

// ForwarderConfig describes a Forwarder. Machine, Pool and Ports belong to it alone from NewForwarder on.
type ForwarderConfig struct {
	Machine    ForwardMachine
	Pool       *umem.Pool
	Ports      [][]*rings.Port // of each port of the machine, its queues; frames are sent on the first
	FillFrames int             // frames kept in each queue's fill ring (default its size)
	MaxSpin    time.Duration   // longest spin before a sleep (default 50 µs); negative: never sleep
	Pin        bool            // lock the goroutine to its thread and the thread to CPU
	CPU        int
	Clock      func() int64 // ns, monotonic (default CLOCK_MONOTONIC)
	Turned     func()       // called at the end of each turn, with the lock held; it must not block
}

// Forwarder runs all queues of all ports of a ForwardMachine: a received frame goes to another port's TX ring by its number,
// and its completion gives it back to the pool that all fill rings are filled from.
type Forwarder struct {
	cfg    ForwarderConfig
	queues []forwardQueue
	out    []int // of each port, the queue that sends
	wake   eventFD
	now    func() int64
	fds    []unix.PollFd

	mu      sync.Mutex
	asleep  bool
	stopped bool
	err     error
	turns   uint64
	sleeps  uint64
	scratch [batch]umem.Frame
}

type forwardQueue struct {
	ring      *rings.Port
	port      int
	fill      int // frames to keep in the fill ring
	inFill    int
	inTX      int
	kick      bool
	chain     bool // the rest of a packet of several frames comes
	downUntil int64
	counters  Counters
}

// NewForwarder makes a Forwarder; Run runs it.
func NewForwarder(cfg ForwarderConfig) (*Forwarder, error) {
	wake, err := newEventFD()
	if err != nil {
		return nil, fmt.Errorf("reactor: %w", err)
	}
	if cfg.MaxSpin == 0 {
		cfg.MaxSpin = maxSpinNS
	}
	if cfg.Clock == nil {
		cfg.Clock = Monotonic
	}
	f := &Forwarder{cfg: cfg, wake: wake, now: cfg.Clock}
	for i, queues := range cfg.Ports {
		f.out = append(f.out, len(f.queues))
		for _, r := range queues {
			fill := int(r.Fill.Size())
			if cfg.FillFrames > 0 {
				fill = min(fill, cfg.FillFrames)
			}
			f.queues = append(f.queues, forwardQueue{ring: r, port: i, fill: fill})
		}
	}
	return f, nil
}

// Run forwards until Stop, Fail, or the end of ctx. It returns nil after Stop or a cancelled ctx, else what ended it.
func (f *Forwarder) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, f.Stop)()
	if f.cfg.Pin {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		undo, err := pinThread(f.cfg.CPU)
		if err != nil {
			return fmt.Errorf("reactor: pin to CPU %d: %w", f.cfg.CPU, err)
		}
		defer undo()
	}
	for idleSince := int64(0); ; {
		worked, deadline, stop := f.Turn()
		if stop {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.err
		}
		if worked {
			idleSince = 0
			continue
		}
		now := f.now()
		if idleSince == 0 {
			idleSince = now
		}
		runtime.Gosched()
		if f.cfg.MaxSpin > 0 && now-idleSince >= int64(f.cfg.MaxSpin) {
			f.sleep(deadline)
			idleSince = 0
		}
	}
}

// Stop ends Run after the turn in progress. Safe from any goroutine, any number of times.
func (f *Forwarder) Stop() { f.Fail(nil) }

// Fail ends Run with err.
func (f *Forwarder) Fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.stopped {
		f.stopped, f.err = true, err
		f.wake.signal() // with the lock: once Run has returned, the descriptor may be somebody else's
	}
}

// Close gives back what NewForwarder took. Run must have returned.
func (f *Forwarder) Close() error { return f.wake.close() }

// Enter locks the Forwarder and gives the time, so that any goroutine may call the machine. Every Enter needs a Leave. ok is
// false when the Forwarder ended: its packet memory may be gone.
func (f *Forwarder) Enter() (now int64, ok bool) {
	f.mu.Lock()
	return f.now(), !f.stopped
}

// Leave ends what Enter began. What the machine has to send since leaves in the next turn.
func (f *Forwarder) Leave() {
	if f.asleep {
		f.wake.signal() // with the lock, as in Fail
	}
	f.mu.Unlock()
}

// Counters gives the counters of a port's queue; turns and sleeps are of all queues together. The caller is between Enter
// and Leave.
func (f *Forwarder) Counters(port, queue int) Counters {
	c := f.queues[f.out[port]+queue].counters
	c.Turns, c.Sleeps, c.Signals = f.turns, f.sleeps, f.wake.writes.Load()
	return c
}

// InRings is how many frames fill rings and devices hold. The caller is between Enter and Leave.
func (f *Forwarder) InRings() (fill, tx int) {
	for i := range f.queues {
		fill += f.queues[i].inFill
		tx += f.queues[i].inTX
	}
	return fill, tx
}

// Turn does one turn: worked: there was something to do; deadline: when the next is due at the latest; stop: it was
// stopped. The devices are told without the lock, as in a Reactor.
func (f *Forwarder) Turn() (worked bool, deadline int64, stop bool) {
	if worked, deadline, stop = f.locked(); stop {
		return
	}
	for i := range f.queues {
		q := &f.queues[i]
		if !q.kick {
			continue
		}
		if err := q.ring.Dev.Kick(); err != nil || q.downUntil != 0 {
			f.mu.Lock()
			f.device(q, err)
			f.mu.Unlock()
		}
		if q.ring.TX.Pending() > 0 {
			deadline = min(deadline, max(q.downUntil, f.now()+minSpinNS))
		}
	}
	return worked, deadline, false
}

func (f *Forwarder) locked() (worked bool, deadline int64, stop bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
		return false, 0, true
	}
	f.turns++
	now := f.now()
	for i := range f.queues {
		q := &f.queues[i]
		worked = f.reap(q) || worked
		f.refill(q, now)
	}
	for i := range f.queues {
		worked = f.receive(&f.queues[i], now) || worked
	}
	if now >= f.cfg.Machine.NextDeadline() {
		f.cfg.Machine.Tick(now)
	}
	deadline = f.cfg.Machine.NextDeadline()
	for port, i := range f.out {
		q := &f.queues[i]
		worked = f.transmit(q, port, now) || worked
		if f.cfg.Machine.TxPending(port) > 0 || !q.kick && q.ring.TX.Pending() > 0 {
			deadline = min(deadline, max(q.downUntil, now+minSpinNS))
		}
	}
	_, sent := f.InRings()
	for i := range f.queues {
		if q := &f.queues[i]; q.inFill < q.fill/2 && sent > 0 { // completions wake nobody, and free what it lacks
			deadline = min(deadline, now+blockedNS)
		}
	}
	if f.cfg.Turned != nil {
		f.cfg.Turned()
	}
	return worked, deadline, false
}

// frame is the frame at addr, if it is one of the pool's.
func (f *Forwarder) frame(addr uint64) (umem.Frame, bool) {
	x, ok := f.cfg.Pool.Region().FrameOf(addr)
	return x, ok && f.cfg.Pool.Owns(x)
}

// reap takes completions.
func (f *Forwarder) reap(q *forwardQueue) (any bool) {
	for range 2 * budget / batch {
		idx, n := q.ring.Comp.Peek(batch)
		if n == 0 {
			break
		}
		any = true
		for i := range n {
			x, ok := f.frame(q.ring.Comp.Read(idx + i))
			if !ok {
				q.counters.BadCompletions++
				continue
			}
			f.cfg.Pool.Move(x, umem.TX, umem.Comp)
			q.inTX--
			f.cfg.Machine.Completed(q.port, x)
		}
		q.ring.Comp.Release(n)
		q.counters.Completions += uint64(n)
	}
	return any
}

// refill gives free frames to the device, in batches.
func (f *Forwarder) refill(q *forwardQueue, now int64) {
	fill := q.ring.Fill
	for q.inFill < q.fill {
		want := min(batch, q.fill-q.inFill, int(fill.Free()))
		if want == 0 || want < batch && q.inFill > q.fill/2 {
			break
		}
		n := f.cfg.Pool.GetN(f.scratch[:want], umem.Fill)
		if n == 0 {
			q.counters.FillStarved++
			break
		}
		idx, _ := fill.Reserve(uint32(n))
		for i, x := range f.scratch[:n] {
			*fill.Slot(idx + uint32(i)) = f.cfg.Pool.Region().Addr(x)
		}
		fill.Submit(uint32(n))
		q.inFill += n
	}
	if fill.NeedWakeup() && now >= q.downUntil {
		q.counters.WakeRX++
		f.device(q, q.ring.Dev.WakeRX())
	}
}

// receive hands frames to the machine, at most a budget of them.
func (f *Forwarder) receive(q *forwardQueue, now int64) bool {
	done := 0
	for done < budget {
		idx, n := q.ring.RX.Peek(batch)
		if n == 0 {
			break
		}
		for i := range n {
			f.receiveOne(q, q.ring.RX.Read(idx+i), now)
		}
		q.ring.RX.Release(n)
		q.counters.RxFrames += uint64(n)
		done += int(n)
		f.refill(q, now)
	}
	return done > 0
}

func (f *Forwarder) receiveOne(q *forwardQueue, d rings.Desc, now int64) {
	q.inFill--
	x, ok := f.frame(d.Addr)
	if !ok {
		q.counters.RxBadDesc++
		return
	}
	pool := f.cfg.Pool
	pool.Move(x, umem.Fill, umem.RX)
	off := int(d.Addr - pool.Region().Addr(x))
	part := d.Options&rings.DescContinued != 0 || q.chain
	if q.chain = d.Options&rings.DescContinued != 0; part {
		q.counters.RxBadChain++
		pool.Put(x, umem.RX)
		return
	}
	if off < earliest || int(d.Len) > pool.Region().ChunkSize()-max(off, umem.Headroom) {
		q.counters.RxBadDesc++
		pool.Put(x, umem.RX)
		return
	}
	f.cfg.Machine.Input(q.port, x, off, int(d.Len), now)
}

// transmit moves a port's output to its TX ring.
func (f *Forwarder) transmit(q *forwardQueue, port int, now int64) (worked bool) {
	m, tx := f.cfg.Machine, q.ring.TX
	for m.TxPending(port) > 0 {
		idx, n := tx.Reserve(uint32(min(batch, m.TxPending(port))))
		if n == 0 {
			q.counters.TxRingFull++
			break
		}
		for i := range n {
			x, off, length := m.PopTX(port)
			*tx.Slot(idx + i) = rings.Desc{Addr: f.cfg.Pool.Region().Addr(x) + uint64(off), Len: uint32(length)}
		}
		tx.Submit(n)
		q.inTX += int(n)
		q.counters.TxFrames += uint64(n)
		worked = true
	}
	if q.kick = now >= q.downUntil && tx.NeedWakeup() && tx.Pending() > 0; q.kick {
		q.counters.Kicks++
	}
	return worked
}

// device notes what a system call on a queue's socket said, as Reactor.device.
func (f *Forwarder) device(q *forwardQueue, err error) {
	switch {
	case err == nil:
		q.downUntil = 0
	case errors.Is(err, rings.ErrDeviceDown):
		q.counters.DeviceDown++
		q.downUntil = f.now() + downRetryNS
	case !f.stopped:
		f.stopped, f.err = true, err
	}
}

// sleep blocks until a frame arrives, the deadline comes, or somebody left.
func (f *Forwarder) sleep(deadline int64) {
	f.mu.Lock()
	if f.stopped {
		f.mu.Unlock()
		return
	}
	f.asleep = true
	f.mu.Unlock()
	f.fds = append(f.fds[:0], unix.PollFd{Fd: int32(f.wake.fd), Events: unix.POLLIN})
	for i := range f.queues {
		f.fds = append(f.fds, unix.PollFd{Fd: int32(f.queues[i].ring.Dev.FD()), Events: unix.POLLIN})
	}
	f.block(max(0, min(deadline-f.now(), defaultSleep)))
	broken := false
	for i := range f.fds[1:] {
		fd := &f.fds[i+1]
		if fd.Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0 {
			fd.Fd, broken = -1, true // its device was taken away: whoever watches the link says so
		}
	}
	if broken {
		f.block(min(max(0, deadline-f.now()), downRetryNS))
	}
	f.mu.Lock()
	f.asleep = false
	f.sleeps++
	f.mu.Unlock()
}

func (f *Forwarder) block(ns int64) {
	ts := unix.NsecToTimespec(ns)
	if _, err := unix.Ppoll(f.fds, &ts, nil); err == nil && f.fds[0].Revents != 0 {
		f.wake.drain()
	}
}
