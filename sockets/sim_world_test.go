package sockets

import (
	"container/heap"
	"fmt"
	"math"
	"math/rand/v2"

	"xdpd/proto"
	"xdpd/umem"
)

// simNever is later than anything.
const simNever = int64(math.MaxInt64)

// simEvent is something that happens at a time; equal times in the order in which they were arranged.
type simEvent struct {
	at  int64
	seq int
	do  func()
}

type simEvents []simEvent

func (e simEvents) Len() int { return len(e) }
func (e simEvents) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e simEvents) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *simEvents) Push(x any)   { *e = append(*e, x.(simEvent)) }
func (e *simEvents) Pop() any {
	n := len(*e) - 1
	x := (*e)[n]
	(*e)[n] = simEvent{}
	*e = (*e)[:n]
	return x
}

// simWorld is one run: two Hosts, the path between them, and the programs.
type simWorld struct {
	p          simParams
	rng        *rand.Rand
	start, now int64
	events     simEvents
	seq        int
	steps      int
	node       [2]*simNode
	flows      map[simKey]*simFlow
	conns      []*simConn
	calm       bool  // faults are over
	calmAt     int64 // since when
	lostOther  int   // ARP, ICMP
	wrong      bool  // somebody lies: what is on the wire says nothing
	lies       uint64
	trace      bool
	digest     uint32
	totals     simTotals
}

func (w *simWorld) fail(format string, args ...any) { panic(simFailure(fmt.Sprintf(format, args...))) }

// chance uses up randomness for probability 0 too, so that one parameter less keeps the rest alike.
func (w *simWorld) chance(p float64) bool { return w.rng.Float64() < p }

func (w *simWorld) at(at int64, do func()) {
	w.seq++
	heap.Push(&w.events, simEvent{max(at, w.now), w.seq, do})
}

func newSimWorld(rng *rand.Rand, p simParams) *simWorld {
	w := &simWorld{p: p, rng: rng, flows: map[simKey]*simFlow{}}
	for i := range w.node {
		w.node[i] = newSimNode(w, i)
	}
	for i, n := range w.node {
		n.link = &simLink{simPath: p.path[i], w: w, rng: rand.New(rand.NewPCG(rng.Uint64(), 3)), from: n, to: w.node[1-i]}
		if p.share {
			n.h.SetNeighbour(n.peer().ip, n.peer().mac, true, n.now)
			n.h.SetNeighbour(simRouter, n.peer().mac, true, n.now)
			if n.front.kit != nil {
				n.front.h.SetNeighbour(n.peer().ip, n.peer().mac, true, n.now)
				n.front.h.SetNeighbour(simRouter, n.peer().mac, true, n.now)
			}
		}
	}
	w.start = w.node[0].now
	if p.wrap { // begin when the first connection's sequence numbers are about to wrap
		near := -uint32(1 + rng.IntN(3000))
		k := flowKey{Local: w.node[0].ip, Remote: w.node[1].ip, LPort: simFixed, RPort: simPort}
		w.start += int64(near-w.node[0].h.sec.isn(k, w.start)) * 4000
	}
	w.now = w.start
	return w
}

// run is the whole life of the world.
func (w *simWorld) run() {
	for range w.p.conns {
		newSimConn(w)
	}
	for _, n := range w.node {
		n.listen()
	}
	if w.p.outage > 0 {
		w.outages()
	}
	end := w.start + w.p.busyNS
	w.until(end, w.done)
	w.calmDown()
	w.at(w.now+60*second, w.watch)
	w.until(w.now+4*24*3600*second, w.done)
	if !w.done() {
		for _, c := range w.conns {
			if !c.done() {
				c.side[0].fail("no end\n%+v\n%+v\n%+v", c.side[0], c.side[1], c)
			}
		}
	}
	w.calm = true
	for _, n := range w.node {
		n.unlisten()
	}
	w.until(w.now+24*3600*second, w.silent)
	w.finish()
}

// done tells whether all programs came to their ends.
func (w *simWorld) done() bool {
	for _, c := range w.conns {
		if !c.done() {
			return false
		}
	}
	return true
}

// silent tells whether nothing will happen any more but what neighbours and listeners do.
func (w *simWorld) silent() bool {
	for _, n := range w.node {
		if n.h.tcp.conns > 0 || n.h.timers.n > 0 || len(n.device) > 0 || n.h.Busy() || len(n.rx) > 0 || n.frontBusy() ||
			n.front.kit != nil && n.front.h.timers.n > 0 {
			return false
		}
	}
	return true
}

// until lets the world go on up to a time, or until stop says so.
func (w *simWorld) until(limit int64, stop func() bool) {
	for same, last := 0, int64(0); ; w.steps++ {
		next := limit
		if len(w.events) > 0 {
			next = min(next, w.events[0].at)
		}
		for _, n := range w.node {
			next = min(next, n.due())
		}
		if next >= limit {
			w.now = limit
			return
		}
		w.now = max(w.now, next)
		if same++; w.now != last {
			same, last = 0, w.now
		}
		if same > 20000 {
			w.fail("no rest: the same moment goes on for ever")
		}
		for len(w.events) > 0 && w.events[0].at <= w.now {
			heap.Pop(&w.events).(simEvent).do()
		}
		for _, n := range w.node {
			if n.due() <= w.now {
				n.turn()
			}
		}
		if stop() {
			return
		}
	}
}

// outages cut the path, one direction or both, for as long as a cable or a router may be away.
func (w *simWorld) outages() {
	for t := w.start + w.rng.Int64N(w.p.busyNS); t < w.start+w.p.busyNS; t += simLog(w.rng, ms, w.p.busyNS) {
		which, long := 1+w.rng.IntN(3), simLog(w.rng, ms, 2*w.p.busyNS)
		if w.chance(w.p.outage) {
			w.totals.Outages++
			set := func(down bool) func() {
				return func() {
					for i, n := range w.node {
						if which>>i&1 != 0 && !w.calm {
							n.link.down = down
						}
					}
				}
			}
			w.at(t, set(true))
			w.at(t+long, set(false))
			t += long
		}
	}
}

// calmDown ends all faults; every program does its work now as fast as it can.
func (w *simWorld) calmDown() {
	w.calm, w.calmAt = true, w.now
	for _, n := range w.node {
		n.link.calm()
		n.p.ring = 1 << 20
		n.listen()
		n.accept()
		n.wake()
	}
	for _, c := range w.conns {
		for _, s := range c.side {
			s.p.calm()
			s.hurry()
		}
	}
}

// simPatience is how long nothing may move in calm times, although somebody wants it: the longest time-outs, twice.
const simPatience = 300 * second

// watch fails when something should move and does not; and lets programs give up whose peer is gone.
func (w *simWorld) watch() {
	for _, c := range w.conns {
		c.watch()
	}
	w.at(w.now+20*second, w.watch)
}

// finish checks that everything came back.
func (w *simWorld) finish() {
	for _, n := range w.node {
		n.giveAll()
		c := n.h.tcp.conns
		if c != 0 {
			w.fail("node %d has %d connections at the end: %+v", n.id, c, n.h.TCPSockets())
		}
		for _, e := range n.h.TakeEvents(nil) {
			w.fail("an event %+v after everything was closed", e)
		}
		n.check()
		n.unlisten() // a world may have opened it again
		for _, a := range n.accounts {
			if a == 0 {
				continue
			}
			if n.h.CloseAccount(a); n.h.accounts.list[a].used {
				w.fail("node %d: an account has %+v after everything was closed", n.id, n.h.accounts.list[a])
			}
		}
		n.kit.finish()
		if n.front.kit != nil {
			n.front.check()
			n.front.kit.finish()
			if d := n.h.cfg.Directory; d.flows() != 0 || len(d.binds) != 0 || d.Conns(0) != 0 {
				w.fail("node %d: the directory has %d flows, %d sockets, %d connections at the end", n.id, d.flows(), len(d.binds), d.Conns(0))
			}
			a, b := &n.front.h.counters, &n.h.counters
			if over, in := a.Stats[HandedOver], b.Stats[HandedIn]+a.Drops[HandoverFull]+b.Drops[HandoverNoFrame]; over != in {
				w.fail("node %d: %d packets handed over, %d taken or dropped", n.id, over, in)
			}
		}
	}
	if w.wrong {
		w.checkLies()
		return
	}
	for _, c := range w.conns {
		c.judge()
	}
	w.checkStorm()
}

// checkStorm bounds what was sent by what was to be done. Of 20,000 worlds the median came to 0.1 times the work, one in
// a thousand to 1.1 times, the worst to 2.6: a path too slow for its timer, and segments of a few bytes.
func (w *simWorld) checkStorm() {
	work := uint64(0)
	for _, c := range w.conns {
		work += 20
		for _, s := range c.side {
			work += uint64(s.calls) + uint64(s.sent)/400
			if s.p.keep.Idle > 0 {
				work += uint64(s.life / s.p.keep.Idle)
			}
		}
	}
	lost := w.totals.Lost
	if got := w.totals.Segments; got > 3*(work+lost)+100 {
		w.fail("%d segments for a work of %d, with %d frames lost", got, work, lost)
	}
}

// simNode is one Host with what surrounds it.
type simNode struct {
	*kit
	w        *simWorld
	id       int
	p        simHost
	ip       proto.Addr
	mac      proto.MAC
	link     *simLink
	rx       []simFrame
	turnAt   int64
	slack    int64
	done     int // frames that the device has sent
	turns    int
	lis      Handle
	acceptAt int64
	socks    map[Handle]*simSide
	sides    []*simSide // in the order of their beginning
	lent     []simLent
	events   []Event
	front    simFront
	accounts [2]Account // 0: none
}

// charge has a socket paid for by one of the node's accounts, if it has any.
func (n *simNode) charge(h Handle, which int) {
	if a := n.accounts[which]; a != 0 {
		n.h.Charge(h, a)
	}
}

func newSimNode(w *simWorld, id int) *simNode {
	p := w.p.host[id]
	n := &simNode{
		w: w, id: id, p: p, ip: usIP + proto.Addr(id), mac: usMAC, turnAt: simNever, socks: map[Handle]*simSide{},
	}
	n.mac[5] += byte(id)
	seed := [32]byte{}
	for i := range seed {
		seed[i] = byte(w.rng.Uint32())
	}
	set := func(c *Config) {
		c.MAC, c.Addrs, c.MTU, c.KernelNeighbours = n.mac, []Prefix{{n.ip, 24}}, p.mtu, w.p.share
		c.FillFrames, c.RcvBuf, c.SndBuf, c.Backlog, c.MaxConns = p.fill, p.rcvBuf, p.sndBuf, p.backlog, p.maxConns
		c.NoECN, c.PacketFrames, c.LeaveSums = p.noECN, p.packet, p.leave
		if p.reno {
			c.Congestion = "reno"
		}
		c.Seed = seed
	}
	if p.queues == 2 {
		n.grouped(NewDirectory(), set)
	} else {
		n.kit = newKitOf(simTB{}, p.frames, 2048, set)
	}
	n.late = p.compNS > 0
	for i := range n.accounts {
		if p.account > 0 {
			n.accounts[i], _ = n.h.NewAccount(p.account, p.account, 0)
		}
	}
	return n
}

func (n *simNode) peer() *simNode { return n.w.node[1-n.id] }

// due is when the node wants its next turn.
func (n *simNode) due() int64 {
	at := n.h.NextDeadline()
	if at != simNever {
		at += n.slack
	}
	return min(at, n.turnAt, n.frontDue())
}

func (n *simNode) wakeAt(at int64) { n.turnAt = min(n.turnAt, max(at, n.w.now)) }

func (n *simNode) wake() { n.wakeAt(n.w.now) }

// receive is the device.
func (n *simNode) receive(f simFrame) {
	if len(n.rx) >= n.p.ring {
		n.w.lose(f.b)
		return
	}
	n.rx = append(n.rx, f)
	at := n.w.now
	if n.p.turnNS > 0 {
		at += n.w.rng.Int64N(n.p.turnNS)
	}
	n.wakeAt(at)
}

// turn is what a reactor does: completions, received frames, timers, programs, output.
func (n *simNode) turn() {
	w, now := n.w, n.w.now
	n.now, n.turnAt = now, simNever
	if n.p.slackNS > 0 && !w.calm {
		n.slack = w.rng.Int64N(n.p.slackNS)
	}
	if k := min(n.done, len(n.device)); k > 0 {
		n.complete(k)
	}
	n.done = 0
	for range min(len(n.rx), 64) {
		f := n.rx[0]
		n.rx = n.rx[1:]
		if n.takesFront(f.b) {
			n.receiveFront(f)
			continue
		}
		if n.refill(); len(n.fill) == 0 {
			w.lose(f.b)
			continue
		}
		w.deliver(n, f.whole)
		n.input(f.b)
	}
	n.h.Tick(now)
	n.runFront()
	n.programs()
	before := len(n.device)
	n.pump()
	if k := len(n.device) - before; k > 0 {
		at := now + w.rng.Int64N(n.p.compNS+1)
		w.at(at, func() { n.done += k; n.wake() })
	}
	for _, b := range n.out {
		if len(b) > n.h.room {
			w.totals.Jumbo++
		}
		w.egress(n, b)
		if w.wrong && n.id == 1 {
			for _, b := range w.lie(b) {
				n.link.send(b)
			}
			continue
		}
		n.link.send(b)
	}
	n.out = n.out[:0]
	if n.h.Busy() || len(n.rx) > 0 || n.frontBusy() {
		n.wake()
	}
	n.inspect()
}

// inspect is what must hold after every turn.
func (n *simNode) inspect() {
	h := n.h
	rx, rxLimit, tx, txLimit := h.Held()
	c := n.pool.Ledger().Counts()
	if n.others != nil {
		for o, k := range n.others() {
			c[o] -= k
		}
	}
	if rx < 0 || rx > rxLimit || tx < 0 || tx > txLimit {
		n.w.fail("node %d holds %d of %d frames for receiving, %d of %d for sending", n.id, rx, rxLimit, tx, txLimit)
	}
	if c[umem.Free] != n.pool.Avail() || c[umem.Fill] != len(n.fill) || c[umem.TX] != len(n.device) ||
		c[umem.RX]+c[umem.Comp]+c[umem.Handed] != 0 || c[umem.Held]+c[umem.TX]+c[umem.Lent] != rx+tx || c[umem.Lent] != n.lentFrames() {
		n.w.fail("node %d: ledger %v; %d free, %d fill, %d in the device, %d held for receiving, %d for sending, %d lent",
			n.id, c, n.pool.Avail(), len(n.fill), len(n.device), rx, tx, n.lentFrames())
	}
	h.tcp.each(n.inspectConn)
	if !h.PendingEvents() {
		n.inspectSides()
	}
	if n.turns++; n.turns%16 == 0 && n.lentFrames() == 0 {
		n.check()
	}
}

// inspectConn looks into a connection.
func (n *simNode) inspectConn(i uint32, c *tcb) {
	if c.state == tcpClosed {
		return
	}
	h := n.h
	bad := func(what string) {
		n.w.fail("node %d connection %d in %s: %s: %+v %+v", n.id, i, tcpStateNames[c.state], what, *c, h.activeOf(c))
	}
	switch {
	case !seqLE(c.sndUna, c.sndNxt) || !seqLE(c.rcvNxt, c.rcvAdv):
		bad("numbers")
	case int(c.sndBytes) > h.cfg.SndBuf+max(1500, int(c.mssMax))*(1+n.lentFrames()): // what was lent may come on top
		bad("too much to send")
	case c.rto < rtoMinUS || c.rto > rtoMaxUS:
		bad("RTO")
	case c.dirty:
		return // Flush is still to come
	case c.sndUna != c.sndNxt && c.rtxAt == 0:
		bad("no timer for what is in flight")
	case c.sndUna == c.sndNxt && c.sndNext == umem.None && c.rtxAt != 0:
		bad("a timer for nothing")
	case c.rcvNxt != c.lastAck && c.ackAt == 0 && c.state >= tcpEstablished:
		bad("nothing will acknowledge what came")
	case (c.state == tcpTimeWait || c.state == tcpFinWait2 && c.orphan) && c.idleAt == 0:
		bad("it stays for ever")
	case h.tcp.settings[c.setting].Idle > 0 && c.idleAt == 0 && c.sndUna == c.sndNxt && c.sndBytes == 0 &&
		(c.state == tcpEstablished || c.state == tcpCloseWait):
		bad("no keep-alive")
	}
	at := first(first(c.rtxAt, h.nsAt(c.ackAt)), h.nsAt(c.idleAt))
	if x := h.activeOf(c); x != nil {
		at = first(first(at, x.reoAt), x.restAt)
		if n.inspectSend(c, x) {
			bad("what could be sent waits")
		}
	}
	if at != 0 && (c.timer == 0 || !h.timers.running(c.timer) || h.timers.when(c.timer) > max(at, n.w.now)+2*tickNS) {
		bad("the timer comes late")
	}
}

// inspectSend reports whether both windows leave room for what is lost or new, and nothing else keeps it back.
func (n *simNode) inspectSend(c *tcb, x *active) bool {
	h := n.h
	if c.later || x.stuck || c.state < tcpEstablished || seqLT(c.sndUna, x.partEnd) {
		return false
	}
	pipe := c.pipe(x)
	if x.toSend > 0 {
		return pipe == 0
	}
	if c.sndNext == umem.None {
		return false
	}
	b := h.pool.Buf(c.sndNext)
	if b.Len > c.mss && !h.inWindow(c, b) && h.txUsed >= h.txLimit-h.txReserve()/2 {
		return false // no frame to cut it with
	}
	if h.cfg.PacketFrames > 1 && (c.sndUna != c.sndNxt || pipe > 0) {
		unsent := c.sndBytes - (c.sndNxt - c.sndUna)
		return unsent >= uint32(c.mss) && seqLE(b.Seq+uint32(c.mss), c.sndUna+c.sndWnd) && pipe+uint32(c.mss) <= c.cwnd
	}
	nagle := c.delay && c.sndUna != c.sndNxt && b.Next == umem.None && b.Len < c.mss && b.Flags&bufFIN == 0
	return !nagle && h.inWindow(c, b) && (pipe == 0 || pipe+uint32(b.Len) <= c.cwnd)
}

// inspectSides finds programs that wait for what is there already: an event was lost.
func (n *simNode) inspectSides() {
	for _, s := range n.sides {
		if !s.open || !s.connected || !s.noRead && !s.noWrite {
			continue
		}
		if r := n.h.Ready(s.h); s.noRead && r&In != 0 || s.noWrite && r&Out != 0 {
			s.fail("ready for %#x, waits to read %v, to write %v, and was not told", r, s.noRead, s.noWrite)
		}
	}
}
