package reactor_test

import (
	"fmt"
	"math/rand/v2"

	"xdpd/internal/simnet"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/rings/simnic"
	"xdpd/sockets"
	"xdpd/umem"
)

const (
	simEpoch   = int64(1e12) // where virtual time begins
	simSecond  = int64(1e9)
	engineAddr = proto.Addr(0x0a010001) // 10.1.0.1/24
	nobodyAddr = proto.Addr(0x0a0100c8) // on the link, never answers
	farNet     = proto.Addr(0xc6336400) // 198.51.100.0/24, behind the first station
)

var engineMAC = proto.MAC{2, 0, 0, 0, 0, 1}

// world is one run: engine, NIC, wires, the far side, and the program that uses the engine.
type world struct {
	p     params
	rng   *rand.Rand
	clock *simnet.Clock
	steps int
	turns int

	in, out *simnet.Wire // to and from the engine
	nic     *simnic.SimNIC
	port    *rings.Port // as the engine has it
	comp    compDelay
	pool    *umem.Pool
	ledger  *umem.Ledger
	host    *sockets.Host
	r       *reactor.Reactor

	app  *app
	peer *peer
	udp  *udpModel
	tcp  *tcpModel

	deadline               int64 // what the last turn said
	nicIn, nicLost, nicOut uint64
	kicks                  uint64
	calm                   bool // faults are over
	called                 bool // the reactor was entered since its last turn
}

func (w *world) fail(format string, args ...any) { panic(simFailure(fmt.Sprintf(format, args...))) }

// chance consumes the run's randomness even for probability 0, so that a parameter more or less keeps the rest alike.
func (w *world) chance(p float64) bool { return w.rng.Float64() < p }

func newWorld(rng *rand.Rand, p params) *world {
	w := &world{p: p, rng: rng, clock: simnet.NewClock(simEpoch)}
	w.in = simnet.NewWire(w.clock, rand.New(rand.NewPCG(rng.Uint64(), 1)), p.in)
	w.out = simnet.NewWire(w.clock, rand.New(rand.NewPCG(rng.Uint64(), 2)), p.out)
	region, err := umem.Wrap(make([]byte, p.frames*p.chunk), p.chunk)
	w.must(err)
	w.ledger = umem.NewLedger(p.frames)
	w.pool = umem.NewPool(region, 0, p.frames, w.ledger)
	w.nic = simnic.NewSimNIC(region, p.fillRing, p.compRing, p.rxRing, p.txRing)
	w.nic.SetNeedWakeup(p.kickTX, p.wakeFill)
	w.nic.SetScatter(p.packet > 1)
	w.nic.SetChecksum(p.leave)
	delayed := rings.NewPlain[uint64](p.compRing)
	port := *w.nic.Port()
	w.comp = compDelay{from: port.Comp, to: delayed.Producer()}
	port.Comp = delayed.Consumer()
	w.port = &port
	cfg := sockets.Config{
		MAC: engineMAC, MTU: p.mtu, VLANs: p.vlans, Addrs: []sockets.Prefix{{Addr: engineAddr, Bits: 24}},
		Routes:           []sockets.Route{{Dst: farNet, Bits: 24, Gateway: stationAddr(0)}},
		KernelNeighbours: p.share, AcceptPartial: p.partial, LeaveSums: p.leave,
		PacketFrames: p.packet, FillFrames: p.fillFrames, RcvBuf: p.rcvBuf, SndBuf: p.sndBuf, Backlog: p.backlog, MaxConns: p.maxConns,
	}
	for i := range cfg.Seed {
		cfg.Seed[i] = byte(rng.Uint32())
	}
	w.host, err = sockets.New(cfg, w.pool, w.clock.Now())
	w.must(err)
	w.peer = newPeer(w)
	w.r, err = reactor.New(reactor.Config{
		Port: w.port, Pool: w.pool, Host: w.host, FillFrames: p.fillFrames, Clock: w.clock.Now, Resolve: w.peer.resolve,
	})
	w.must(err)
	w.udp, w.tcp = newUDPModel(w), newTCPModel(w)
	w.app = newApp(w)
	return w
}

func (w *world) must(err error) {
	if err != nil {
		w.fail("%v", err)
	}
}

func (w *world) close() { w.must(w.r.Close()) }

// counters are the reactor's, without the lock, which nobody else can hold: to Leave it would ask for another turn.
func (w *world) counters() reactor.Counters { return w.r.Counters() }

// enter calls f as another goroutine would use the Host.
func (w *world) enter(f func(now int64)) {
	_, now, ok := w.r.Enter()
	if !ok {
		w.fail("the reactor stopped")
	}
	f(now)
	w.r.Leave()
	w.called = true
}

// compDelay sits between the NIC's completion ring and the engine's and hands on in what order it likes, as drivers do
// whose packets are freed by whoever consumes them.
type compDelay struct {
	from *rings.Consumer[uint64]
	to   *rings.Producer[uint64]
	held []uint64
}

func (c *compDelay) pump(w *world, limit int) (n int) {
	idx, got := c.from.Peek(c.from.Size())
	for i := range got {
		c.held = append(c.held, c.from.Read(idx+i))
	}
	c.from.Release(got)
	for n < limit && len(c.held) > 0 {
		slot, room := c.to.Reserve(1)
		if room == 0 {
			break
		}
		j := 0
		if w.p.shuffle {
			j = w.rng.IntN(len(c.held))
		}
		*c.to.Slot(slot) = c.held[j]
		c.held = append(c.held[:j], c.held[j+1:]...)
		c.to.Submit(1)
		n++
	}
	return n
}

func (w *world) run() {
	w.app.start()
	if w.p.clean {
		w.peer.introduce()
		w.settle(w.clock.Now() + simSecond)
		if !w.p.share && w.peer.arps < w.p.stations {
			w.fail("%d of %d ARP requests were answered", w.peer.arps, w.p.stations)
		}
	}
	for w.steps = 0; w.steps < w.p.steps; w.steps++ {
		w.step()
	}
	w.calmDown()
	w.settle(w.clock.Now() + 2*3600*simSecond)
	w.tcp.keepAlive()
	w.settle(w.clock.Now() + 60*simSecond)
	w.checkLive()
	w.app.closeAll()
	w.tcp.vanishAll()
	w.settle(w.clock.Now() + 4*3600*simSecond)
	for w.turn() { // completions wake nobody
	}
	w.checkEnd()
}

// step is a moment of the busy phase: everybody does a little, in bursts that no ring is prepared for.
func (w *world) step() {
	w.udp.act()
	w.tcp.act()
	w.peer.act()
	w.app.act()
	if !w.p.clean && w.chance(0.02) {
		w.nic.SetDown(w.p.cable && w.chance(0.5))
	}
	w.nicRX(w.rng.IntN(w.p.rxBurst + 1))
	for range w.rng.IntN(3) {
		w.turn()
	}
	w.app.poll()
	w.nicTX(w.rng.IntN(w.p.txBurst + 1))
	w.nicComp(w.rng.IntN(w.p.compBurst + 1))
	w.peerRX()
	switch n := w.rng.IntN(100); {
	case n < 60:
		w.advance(50_000)
	case n < 85:
		w.advance(1_000_000)
	case n < 97:
		w.advance(50_000_000)
	default:
		w.advance(3 * simSecond)
	}
}

func (w *world) advance(limit int64) { w.clock.AdvanceTo(w.clock.Now() + w.rng.Int64N(limit)) }

// turn lets the engine do one turn and looks at the books.
func (w *world) turn() bool {
	worked, deadline := w.r.Turn()
	w.deadline = deadline
	w.checkBooks()
	return worked
}

// nicRX lets the NIC receive what has arrived.
func (w *world) nicRX(limit int) (n int) {
	for n < limit {
		f, ok := w.in.Receive()
		if !ok {
			break
		}
		n++
		if w.nic.Deliver(f.Bytes) {
			w.nicIn += uint64(w.nic.Pieces(len(f.Bytes)))
			continue
		}
		w.nicLost++
		if w.p.clean && w.p.udp {
			stats, _ := w.nic.Stats()
			w.fail("the NIC has no room for a frame although few are under way: %+v", stats)
		}
	}
	return n
}

// nicTX lets the NIC send. One that wants kicks sends only after one, and at most 32 frames for each, as in copy mode
// (TX_BATCH_SIZE, net/xdp/xsk.c); a busy one ignores it.
func (w *world) nicTX(limit int) int {
	if w.p.kickTX {
		kicked := w.nic.Kicks() != w.kicks
		w.kicks = w.nic.Kicks()
		if !kicked || !w.calm && w.chance(w.p.busy) {
			return 0
		}
		limit = min(limit, 32)
	}
	n := w.nic.Transmit(limit, func(frame []byte) { w.out.Send(frame) })
	w.nicOut += uint64(n)
	return n
}

func (w *world) nicComp(limit int) int { return w.nic.Complete(limit) + w.comp.pump(w, limit) }

// peerRX gives the far side what has arrived there.
func (w *world) peerRX() (n int) {
	for {
		f, ok := w.out.Receive()
		if !ok {
			return n
		}
		n++
		w.peer.receive(f)
	}
}

func (w *world) calmDown() {
	w.calm = true
	w.in.Faults = simnet.Faults{LatencyNS: w.p.in.LatencyNS}
	w.out.Faults = simnet.Faults{LatencyNS: w.p.out.LatencyNS}
	w.nic.SetDown(false)
	w.app.closeUnread()
}

// settle runs the engine as Reactor.Run does, until nothing happens any more before the time limit: it takes a turn when
// the last one found work, a frame arrives, its deadline comes, or somebody calls, and at no other time. The NIC and the
// far side do at once what they can; time jumps from one announced event to the next. A deadline that the engine does not
// announce, or a wake-up that it forgets, leaves work undone.
func (w *world) settle(limit int64) {
	const all = 1 << 20
	turn, rounds := true, 0
	for range 1 << 24 { // a reactor with a socket that waits for room to send wakes every millisecond
		for w.peer.timers()+w.tcp.timers()+w.nicTX(all)+w.nicComp(all)+w.peerRX() > 0 {
		}
		if w.nicRX(all) > 0 || turn || w.called || w.clock.Now() >= w.deadline {
			w.called = false
			turn = w.turn()
			if rounds++; rounds > 1<<16 {
				w.fail("no rest: turns find work for ever")
			}
			continue
		}
		next := w.deadline
		for _, f := range []func() (int64, bool){w.in.Next, w.out.Next, w.peer.next, w.tcp.next} {
			if at, ok := f(); ok {
				next = min(next, at)
			}
		}
		if next > limit {
			w.clock.AdvanceTo(limit)
			return
		}
		if next > w.clock.Now() {
			rounds = 0
		}
		w.clock.AdvanceTo(next)
	}
	w.fail("no end: events for ever")
}
