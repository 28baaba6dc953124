package reactor

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"

	"xdpd/rings"
	"xdpd/sockets"
)

// RingConfig says how large a Ring is. Nothing in it grows later.
type RingConfig struct {
	SQEntries uint32 // a power of two (default 256)
	CQEntries uint32 // a power of two (default twice SQEntries)
	Requests  int    // that may be in flight (default 4096); one more is refused with ENOMEM
	Sockets   int    // numbers for sockets (default 1024)
	Fixed     int    // slots of the fixed table (default none)
	Messages  int    // that may wait behind a full CQ (default 64)
	Data      []byte // the registered memory: addresses in SQEs are offsets in it
	Area      []byte // for the rings, as rings.RingLayout has it (default: memory of this process)
	Bell      func() // wakes an application that sleeps in another process; called with the lock, it must not block (default none)
	Knock     bool   // the SQ's flags always ask for a knock: the reactor is run by Turn, by who hears the knocks

	Lends     int      // frames that the application may hold for zero copy (default none)
	LendTable uint64   // where in Data the table of them lies: Lends entries of rings.LentSize bytes
	Areas     [][]byte // what SEND_AREA sends from, by number
	Ports     Ports    // told of ports that sockets use; nil: nobody needs to know

	// For applications that are not trusted.
	Guard  Guard // what it may bind and reach; nil: everything
	CPU    int   // percent of the reactor's time that its requests may take, in the long run; 0: all of it
	Frames int   // percent of the frames that its sockets may hold, of those for received data and of those for data to send; 0: all, and any number of closed connections
	Rates  Rates
}

// MaxRequests and MaxSockets are the most that a ring can have of them.
const (
	MaxRequests = 1 << 20
	MaxSockets  = 1 << 24
)

// Guard says which addresses the application of a ring may use. It is called with the reactor's lock held. What it refuses ends
// with EACCES.
type Guard interface {
	MayBind(protocol uint8, local netip.AddrPort) bool   // port 0 is any free one, which is always allowed
	MayReach(protocol uint8, remote netip.AddrPort) bool // connect, or send to
}

const (
	defaultSQ       = 256
	defaultRequests = 4096
	defaultSockets  = 1024
	defaultMessages = 64
	maxPeers        = 1 << 10
	crowd           = 8       // sockets that the Host may have for each of a ring's with RingConfig.Frames: connections that were closed
	backlogCrowd    = 1024    // among them; and so many more, which were not accepted
	maxRings        = 1 << 10 // of a reactor: each turn looks at every SQ, for who submits may tell nobody
)

// ErrRingClosed is what calls on a closed ring, or on one of a stopped reactor, return.
var ErrRingClosed = errors.New("ring: closed")

// ErrTooManyRings says that a reactor has as many rings as it may.
var ErrTooManyRings = errors.New("ring: too many rings")

// Ring is the engine's end of a pair of rings, io_uring's context: it takes SQEs, keeps the requests that are not done,
// and gives CQEs. It belongs to one reactor, whose lock guards it.
type Ring struct {
	r    *Reactor
	end  *rings.RingEngine
	data []byte

	reqs     []request // slot 0 is nobody's
	freeHead uint32
	used     int
	limit    int

	pending  list // started and not done, in the order in which they were started
	startQ   list // chains whose turn has come
	byUser   []list
	userKey  uint64
	timers   reqHeap // by deadline
	counts   reqHeap // timeouts by the number of completions they wait for
	started  uint64
	counted  uint64    // completions that timeouts count
	taken    rings.SQE // the one being looked at; here, so that it is not allocated
	chain    chain     // being read
	held     chain     // waits until all else is done; head 0: none
	drain    bool      // nothing is consumed until all is done
	socks    sockTable
	ports    Ports
	lends    lends
	tag      uint16 // of lent frames, in what the Host tells
	areas    [][]byte
	groups   map[uint16]*rings.BufTaker
	readyQ   sockList
	epolls   []*epoll // by number; nil: nobody asked for one
	epollDue int      // waits that are to look
	mail     mailbox
	peers    []*Ring
	backlog  backlog
	cqTail   uint32 // index of the next CQE
	cqLoud   uint32 // behind the last one that is not quiet
	quiet    bool   // the one that is being posted is
	staged   uint32 // CQEs written and not published
	signaled uint32 // cqTail at the last write to the eventfd
	waiter   chan struct{}
	done     chan struct{}
	eventFD  eventFD // fd 0: nobody asked for one
	bell     func()  // nil: the application is in this process
	handler  func(rings.CQE)
	named    *string // the handler
	client   *RingClient
	closed   atomic.Bool
	guard    Guard
	account  sockets.Account // who pays for the frames of its sockets; 0: nobody
	pace     pace
	heard    uint64 // counters.Submitted at the last knock
	spent    int64  // time of the reactor, of late: see orderRings
	rates    rates
	now      int64 // of the turn
	steps    int   // of this turn, see maxSteps
	cut      bool  // settle stopped at maxSteps; the next turn goes on
	counters rings.RingCounters
}

// NewRing makes a ring of r. The caller does not hold the lock.
func NewRing(r *Reactor, cfg RingConfig) (*Ring, error) {
	cfg.SQEntries = or(cfg.SQEntries, defaultSQ)
	cfg.CQEntries = or(cfg.CQEntries, 2*cfg.SQEntries)
	cfg.Requests, cfg.Sockets, cfg.Messages = or(cfg.Requests, defaultRequests), or(cfg.Sockets, defaultSockets), or(cfg.Messages, defaultMessages)
	layout, err := rings.LayoutRing(cfg.SQEntries, cfg.CQEntries)
	switch {
	case err != nil:
		return nil, err
	case cfg.Requests < 1 || cfg.Requests > MaxRequests:
		return nil, fmt.Errorf("ring: %d requests; 1 to %d can be", cfg.Requests, MaxRequests)
	case cfg.Sockets < 1 || cfg.Fixed < 0 || cfg.Sockets+cfg.Fixed > MaxSockets:
		return nil, fmt.Errorf("ring: %d and %d sockets; 1 to %d can be", cfg.Sockets, cfg.Fixed, MaxSockets)
	case cfg.Messages < 1 || cfg.Messages > MaxRequests:
		return nil, fmt.Errorf("ring: %d messages; 1 to %d can be", cfg.Messages, MaxRequests)
	case cfg.CPU < 0 || cfg.CPU > 100:
		return nil, fmt.Errorf("ring: %d percent of the time; 1 to 100 can be, 0 is all", cfg.CPU)
	case cfg.Frames < 0 || cfg.Frames > 100:
		return nil, fmt.Errorf("ring: %d percent of the frames; 1 to 100 can be, 0 is all", cfg.Frames)
	case min(cfg.Rates.Connects, cfg.Rates.Packets, cfg.Rates.Bytes) < 0 || max(cfg.Rates.Connects, cfg.Rates.Packets, cfg.Rates.Bytes) > MaxRate:
		return nil, fmt.Errorf("ring: rates %+v; 1 to %d a second can be, 0 is no limit", cfg.Rates, MaxRate)
	case cfg.Area != nil && len(cfg.Area) < layout.Size:
		return nil, fmt.Errorf("ring: an area of %d bytes; the rings take %d", len(cfg.Area), layout.Size)
	}
	lends, err := newLends(&cfg)
	if err != nil {
		return nil, err
	}
	if cfg.Area == nil {
		cfg.Area = rings.NewRingArea(layout)
	}
	q := &Ring{
		r: r, end: layout.Engine(cfg.Area), data: cfg.Data,
		reqs: make([]request, cfg.Requests+2), limit: cfg.Requests,
		byUser: make([]list, ceilPow2(cfg.Requests)), userKey: rand.Uint64(),
		waiter: make(chan struct{}, 1), done: make(chan struct{}),
		socks:   newSockTable(cfg.Sockets, cfg.Fixed),
		backlog: newBacklog(2*(cfg.Requests+1) + 1 + cfg.Messages + cfg.Lends), // a notification for each frame
		lends:   lends, areas: cfg.Areas, ports: cfg.Ports, bell: cfg.Bell,
		rates: newRates(cfg.Rates, cfg.Sockets+cfg.Fixed),
		guard: cfg.Guard, pace: pace{percent: int64(cfg.CPU)},
	}
	q.timers.kind, q.counts.kind = byDeadline, byCount
	q.mail.room.Store(int32(cfg.Messages))
	for i := len(q.reqs) - 1; i > 0; i-- {
		q.reqs[i].next, q.freeHead = q.freeHead, uint32(i)
	}
	app, _, err := rings.App(cfg.Area)
	if err != nil {
		return nil, err
	}
	q.client = newRingClient(q, app)
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.stopped {
		return nil, ErrRingClosed
	}
	if len(r.rings) >= maxRings {
		return nil, ErrTooManyRings
	}
	if cfg.Frames > 0 {
		_, rx, _, tx := r.host.Held()
		var ok bool
		socks := crowd*(cfg.Sockets+cfg.Fixed) + backlogCrowd
		if q.account, ok = r.host.NewAccount(max(1, rx*cfg.Frames/100), max(1, tx*cfg.Frames/100), socks); !ok {
			return nil, ErrTooManyRings
		}
	}
	for _, other := range r.rings { // or who comes again and again would always be first
		q.spent = max(q.spent, other.spent)
	}
	q.tag = r.ringTag()
	r.rings, r.tagged[q.tag] = append(r.rings, q), q
	if q.bell != nil {
		r.apart.Add(1)
	}
	q.end.SQ.SetNeedWakeup(r.asleep || cfg.Knock)
	return q, nil
}

func or[T int | uint32](v, otherwise T) T {
	if v == 0 {
		return otherwise
	}
	return v
}

func ceilPow2(n int) int {
	p := 1
	for p < n {
		p *= 2
	}
	return p
}

// Client is the application's end, in this process.
func (q *Ring) Client() *RingClient { return q.client }

// Counters gives the counters. The caller holds the lock (Enter).
func (q *Ring) Counters() rings.RingCounters {
	c := q.counters
	c.BadIndex = q.end.SQ.BadPeer() + q.end.CQ.BadPeer()
	return c
}

// Sockets and InFlight are how many sockets and requests there are. The caller holds the lock.
func (q *Ring) Sockets() int { return len(q.socks.socks) - q.socks.free[0].n - q.socks.free[1].n }

// Knocked is for a knock of an application in another process, and reports whether there was something behind it: SQEs that may be taken
// now, or that were since the last knock. The ring pays for it; one that has used up its share could knock on for nothing, and has nothing
// behind it. The caller holds the lock.
func (q *Ring) Knocked() bool {
	q.pace.wait(q.r.now()) // it may have been idle for long
	q.pace.took(knockNS)
	behind := q.hasWork() || q.counters.Submitted != q.heard
	q.heard = q.counters.Submitted
	return behind
}

// Unread is how many SQEs wait to be taken. The caller holds the lock.
func (q *Ring) Unread() int { return int(q.end.SQ.Avail()) }

// InFlight is how many requests are not done. The caller holds the lock.
func (q *Ring) InFlight() int { return q.used }

// Held is what the ring's sockets hold and may hold of the packet memory; zero where RingConfig.Frames says all. The caller holds the lock.
func (q *Ring) Held() (u sockets.AccountUse) {
	if q.account != 0 && !q.closed.Load() {
		u, _ = q.r.host.AccountUse(q.account)
	}
	return u
}

// Rest gives what tells how many frames are still held for the ring's sockets when it is closed. Who calls that does not hold the lock.
func (q *Ring) Rest() func() int {
	r, a := q.r, q.account
	if a == 0 {
		return func() int { return 0 }
	}
	_, _, _ = r.Enter()
	_, own := r.host.AccountUse(a)
	r.Leave()
	return func() int {
		h, _, ok := r.Enter()
		defer r.Leave()
		if u, serial := h.AccountUse(a); ok && serial == own {
			return u.RX + u.TX
		}
		return 0
	}
}

// mem gives n bytes of the registered memory at addr.
func (q *Ring) mem(addr, n uint64) ([]byte, sockets.Errno) {
	if addr > uint64(len(q.data)) || n > uint64(len(q.data))-addr {
		return nil, sockets.EFAULT
	}
	return q.data[addr : addr+n : addr+n], 0
}

// post gives a completion to the application. There is room: in the CQ, or in the backlog, which has a place for
// everything that requests in flight may still say.
func (q *Ring) post(c rings.CQE) { q.put(c, false) }

func (q *Ring) put(c rings.CQE, message bool) {
	q.counters.Completed++
	if q.backlog.n == 0 && q.push(c) {
		if message {
			q.mail.room.Add(1)
		}
		return
	}
	q.counters.Overflows++
	q.backlog.push(c, message)
}

// push puts a completion in the CQ, if there is room.
func (q *Ring) push(c rings.CQE) bool {
	idx, n := q.end.CQ.Reserve(1)
	if n == 0 {
		return false
	}
	*q.end.CQ.Slot(idx) = c
	q.cqTail = idx + 1
	if !q.quiet {
		q.cqLoud = q.cqTail
	}
	q.staged++
	return true
}

// postMore posts a completion of a request that goes on. Where the CQ is full it posts nothing and says false: the
// request must end, with this completion as its last, for which there is a place.
func (q *Ring) postMore(i uint32, res int32, flags uint32) bool {
	if q.backlog.n > 0 || !q.push(rings.CQE{UserData: q.at(i).sqe.UserData, Res: res, Flags: flags | rings.CQEMore}) {
		return false
	}
	q.counters.Completed++
	q.steps += costRequest
	if q.at(i).sqe.Opcode != rings.OpTimeout {
		q.counted++
	}
	return true
}

// flush moves the backlog to the CQ as far as there is room, and reports whether all of it went.
func (q *Ring) flush() bool {
	for q.backlog.n > 0 {
		c, message := q.backlog.first()
		if !q.push(c) {
			return false
		}
		if message {
			q.mail.room.Add(1)
		}
		q.backlog.drop()
	}
	return true
}

// publish shows the application what was completed, and wakes it if it sleeps. It reports whether it did.
func (q *Ring) publish() (woke bool) {
	if q.backlog.n > 0 || q.backlog.told {
		full := !q.flush()
		if full && !q.backlog.told { // told before the last look, so that who makes room after it sees the flag
			q.end.SetOverflow(true)
			q.backlog.told = true
			full = !q.flush()
		}
		if !full {
			q.end.SetOverflow(false)
			q.backlog.told = false
		}
	}
	if q.staged == 0 {
		return false
	}
	q.end.CQ.Submit(q.staged)
	q.staged = 0
	c := q.Counters()
	q.end.Publish(&c)
	wake, event := q.end.Sleeper(q.cqTail, q.cqLoud)
	if wake {
		select {
		case q.waiter <- struct{}{}:
			woke = true
		default:
		}
		if q.bell != nil {
			began := q.r.now()
			q.r.rang.Store(true)
			q.bell() // a system call for each turn's completions, if the application wants it so: of its time
			q.pace.took(q.r.now() - began)
		}
	}
	if q.eventFD.fd != 0 && event && q.end.Seen(q.signaled) {
		q.signaled = q.cqTail
		q.eventFD.signal()
	}
	return woke
}

// Close cancels every request, closes the ring's sockets, and ends every Wait with ErrRingClosed. What of it the CQ has
// room for can still be taken. It must not be called by a handler.
func (q *Ring) Close() {
	_, now, ok := q.r.Enter()
	defer q.r.Leave()
	if ok && !q.closed.Load() {
		q.now = now
		q.cancelEverything()
		q.socks.closeAll(q)
		q.forgetEpolls()
		q.freeLends()
		if q.account != 0 { // what is on its way, and connections that have something to send, are paid for until they are done
			q.r.host.CloseAccount(q.account)
		}
	}
	// Also when the reactor ended: its memory may go now, and a loop that wakes tells its rings that it is awake.
	if i := slices.Index(q.r.rings, q); i >= 0 {
		q.r.rings = slices.Delete(q.r.rings, i, i+1)
		if q.bell != nil {
			q.r.apart.Add(-1)
		}
	}
	delete(q.r.tagged, q.tag)
	q.shut()
	if q.eventFD.fd != 0 {
		_ = q.eventFD.close()
		q.eventFD = eventFD{}
	}
}

// shut ends the ring for the application; also when the reactor ended.
func (q *Ring) shut() {
	if q.closed.Swap(true) {
		return
	}
	q.publish()
	close(q.done)
	if q.eventFD.fd != 0 {
		q.eventFD.signal()
	}
}
