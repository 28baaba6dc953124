package reactor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// Config describes a Reactor. Host, Pool and Port belong to it alone from New on.
type Config struct {
	Port       *rings.Port
	Pool       *umem.Pool
	Host       *sockets.Host
	FillFrames int           // frames kept in the fill ring (default its size, or a quarter of the pool)
	MaxSpin    time.Duration // longest spin before a sleep (default 50 µs); negative: never sleep
	Pin        bool          // lock the reactor to its thread and the thread to CPU
	CPU        int
	Clock      func() int64 // ns, monotonic (default CLOCK_MONOTONIC)

	// NAPI says who runs the queue's NAPI, once SetNAPI was called; WantNAPI asks for that call, now and then, and must not
	// block. nil: the kernel runs it.
	NAPI     Arrangement
	WantNAPI func()

	// Resolve is asked to resolve addresses for a Host with KernelNeighbours. It must not block.
	Resolve func(proto.Addr)
	// Heard is told what siblings must hear of (sockets.Config.Siblings), to Post it to them. It must not block.
	Heard func(proto.ARP)
	// Gone is told the local end of a connection of which nothing is left, if it was tracked (Host.TCPTrack). It must not
	// block.
	Gone func(local proto.Addr, port uint16)
}

// Sink is told when a socket became ready for something. It is called with the reactor's lock held, on the reactor's
// goroutine or on one inside Leave, and must not block. It reports whether it made a goroutine runnable.
type Sink interface {
	Ready(s sockets.Handle, r sockets.Ready) (woke bool)
}

// Reactor runs one device queue.
type Reactor struct {
	cfg  Config
	port *rings.Port
	pool *umem.Pool
	host *sockets.Host
	wake eventFD
	// epoll is what it sleeps in with SuspendNAPI; else nil.
	epoll *napiEpoll
	now   func() int64

	mu          sync.Mutex
	over        bool  // stopped, and nobody waits on it any more: the loop's
	asleep      bool  // in ppoll, or about to be: guarded by mu
	until       int64 // when a sleeping reactor wakes by itself: guarded by mu
	stopped     bool
	err         error
	sinks       sockets.Table[Sink] // of sockets that are in no poller, but for a ring's
	ringPollers int                 // pollers of rings, whose sockets are in them and the ring's as well
	watches     watchTable          // of those that are in some
	pollers     []*Poller           // nil: a place that is free
	due         []*Poller           // with a handler, and something ready for it since they were served last
	dueNow      []*Poller           // scratch of serveDue: the two change places
	rings       []*Ring
	tagged      map[uint16]*Ring
	tag         uint16   // of the last ring
	forgotAt    int64    // when what the rings spent was halved
	freed       []uint32 // scratch of tellFreed
	events      []sockets.Event
	refs        []ref       // scratch of tell
	waits       waitHeap    // goroutines in Wait with a limit
	serving     atomic.Bool // a handler runs

	poked    atomic.Bool  // somebody left work for an awake reactor
	apart    atomic.Int32 // rings of applications in other processes, which cannot poke
	rang     atomic.Bool  // one of them was woken since the loop's last look
	dozing   atomic.Bool  // it sleeps, or is about to and will look at poked once more
	inbox    inbox
	turnAt   atomic.Int64           // when the turn in progress began, or what stands in its way; 0: none
	handling atomic.Pointer[string] // the handler that it runs
	stalls   atomic.Uint64          // turns that the watchdog told of
	peers    []peer                 // of its group, by Host number
	self     int                    // its own
	handed   []sockets.Handed
	away     int           // frames of all peers.away
	own      *loop         // what Run runs
	napi     *rings.NAPI   // guarded by mu
	drive    *rings.NAPI   // napi, while the loop runs it: the loop's
	polls    atomic.Uint64 // rounds of it
	arr      arranger
	crowded  uint64 // packets that waited for a turn, as many as it may take or more
	ranAt    int64  // when the loop last ran: the loop's
	missed   int64  // ns in long stretches that it did not run, sleeps aside: the loop's

	with      []umem.Owner // by frame: Fill or TX while the device has it, of this reactor
	inFill    int
	inTX      int // given to the device and not completed
	renew     *exchange
	parts     parts
	downUntil int64
	woke      bool // a goroutine was made runnable in this turn
	scratch   [batch]umem.Frame
	next      [sockets.AheadMax]sockets.Piece // scratch of ahead
	seen      uint32                          // of watchTable.touch, for nobody

	counters Counters
}

const (
	batch        = 64        // NAPI_POLL_WEIGHT
	budget       = 256       // packets a turn (net.core.netdev_budget is 300)
	turnNS       = 2_000_000 // net.core.netdev_budget_usecs
	minSpinNS    = 10_000
	maxSpinNS    = 50_000
	downRetryNS  = 10_000_000
	blockedNS    = 1_000_000
	foreverNS    = int64(1)<<62 - 1
	eventsKept   = 4096 // room for events that a turn leaves to the next
	defaultSleep = 3600_000_000_000
)

// New makes a Reactor; Run runs it.
func New(cfg Config) (*Reactor, error) {
	if n := cfg.Host.PacketFrames(); int(cfg.Port.TX.Size()) < n {
		return nil, fmt.Errorf("reactor: a TX ring of %d entries for packets of %d frames", cfg.Port.TX.Size(), n)
	}
	wake, err := newEventFD()
	if err != nil {
		return nil, fmt.Errorf("reactor: %w", err)
	}
	var epoll *napiEpoll
	if cfg.NAPI == SuspendNAPI {
		if epoll, err = newNAPIEpoll(wake.fd); err != nil {
			return nil, errors.Join(fmt.Errorf("reactor: %w", err), wake.close())
		}
		if cfg.MaxSpin == 0 { // the kernel spins, for what it finds nobody else would bring
			cfg.MaxSpin = 1
		}
	}
	if cfg.FillFrames == 0 {
		cfg.FillFrames = min(int(cfg.Port.Fill.Size()), cfg.Pool.Total()/4)
	}
	if cfg.MaxSpin == 0 {
		cfg.MaxSpin = maxSpinNS
	}
	if cfg.Clock == nil {
		cfg.Clock = Monotonic
	}
	r := &Reactor{
		cfg: cfg, port: cfg.Port, pool: cfg.Pool, host: cfg.Host, wake: wake, epoll: epoll, now: cfg.Clock,
		tagged: make(map[uint16]*Ring), with: make([]umem.Owner, cfg.Pool.Region().Frames()),
	}
	if cfg.WantNAPI == nil {
		cfg.NAPI = SoftirqNAPI
	}
	r.arr = newArranger(cfg.NAPI)
	r.own = newLoop([]*Reactor{r})
	return r, nil
}

// ErrStopped is what calls on a stopped reactor return.
var ErrStopped = errors.New("reactor: stopped")

// Run runs the reactor until Stop, Fail, or the end of ctx. It returns nil after Stop or a cancelled ctx, else what
// ended it.
func (r *Reactor) Run(ctx context.Context) error {
	defer context.AfterFunc(ctx, r.Stop)()
	if err := r.own.run(r.cfg.Pin, r.cfg.CPU); err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}

// finish wakes all who wait on a reactor that stopped.
func (r *Reactor) finish() {
	r.relax()
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.renew != nil {
		r.renew.done <- ErrStopped
		r.renew = nil
	}
	for s, sink := range r.sinks.All() {
		sink.Ready(s, sockets.Err|sockets.Hup|sockets.In|sockets.Out)
	}
	for _, p := range r.pollers {
		if p != nil {
			p.close()
		}
	}
	for _, q := range r.rings {
		q.shut()
	}
}

// Stop ends Run after the turn in progress. Safe from any goroutine, any number of times.
func (r *Reactor) Stop() { r.Fail(nil) }

// Fail ends Run with err: the device is gone.
func (r *Reactor) Fail(err error) {
	r.mu.Lock()
	if !r.stopped {
		r.stopped, r.err = true, err
	}
	r.mu.Unlock()
	r.poked.Store(true) // it may be spinning, by a clock that a test holds for ever
	r.wake.signal()
}

// Close gives back what New took. Run must have returned.
func (r *Reactor) Close() error {
	if r.epoll != nil {
		return errors.Join(r.wake.close(), r.epoll.close())
	}
	return r.wake.close()
}

// Enter locks the reactor and gives its Host and the time, for calls from any goroutine. Every Enter needs a Leave. ok
// is false when the reactor ended: its packet memory may be gone, so the Host must not be touched.
func (r *Reactor) Enter() (h *sockets.Host, now int64, ok bool) {
	r.mu.Lock()
	return r.host, r.now(), !r.stopped
}

// Leave sends what the caller produced, if the reactor sleeps, or leaves it to the reactor's next turn, and unlocks.
func (r *Reactor) Leave() {
	if r.stopped {
		r.mu.Unlock()
		return
	}
	if !r.asleep {
		if r.unfinished() || r.host.Blocked() { // what the caller freed may be what somebody waits for
			r.poked.Store(true)
		}
		r.mu.Unlock()
		return
	}
	// The sender's own thread does the sleeping reactor's work: waking another core would take longer than sending.
	now := r.now()
	r.turnAt.Store(now) // handlers may run
	r.host.EndTurn()
	r.deliver(now)
	r.runRings(now)
	r.host.Flush(now)
	if _, kick := r.transmit(now); kick {
		r.device(r.port.Dev.Kick())
	}
	r.publishRings()
	r.resolve()
	wake := r.deadline(now) < r.until || r.unfinished()
	if wake {
		r.until = now // it is on its way: the next caller need not signal again
	}
	r.turnAt.Store(0)
	r.mu.Unlock()
	if wake {
		r.wake.signal()
	}
}

// unfinished reports whether the Host or a handler has work that only a turn does.
func (r *Reactor) unfinished() bool {
	return len(r.due) > 0 || r.host.Busy() || r.ringWork()
}

// Watch has sink told about events of s. The caller holds the lock (Enter). A nil sink ends it. A socket has one sink:
// one that is in pollers leaves them.
func (r *Reactor) Watch(s sockets.Handle, sink Sink) {
	r.forget(s)
	if sink == nil {
		r.sinks.Delete(s)
		return
	}
	r.sinks.Put(s, sink)
}
