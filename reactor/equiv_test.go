package reactor_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/reactor"
	"xdpd/sockets"
)

// The same random script is run over Linux's sockets and epoll and over ours, and every wait must report the same events.
// Side A has the sockets under test and the pollers; side B is the peer, which only acts. After every step both worlds
// settle, then the next begins.
//
// Where Linux is known to differ, the script goes around it, and the comparison stays exact:
//   - How much fits into a buffer. A writer fills until EAGAIN and the peer drains all, or too little to matter (1 KB);
//     otherwise at most 8 KB are unread. The receiver's buffer is far below a third of the sender's, so that filling it
//     makes no room that would be told of.
//   - A socket that is neither connected nor connecting (OUT|HUP in Linux) has no handle here. A poller gets a socket that
//     connects before connect(2) in Linux, and what it says of that state is taken away unseen.
//   - ICMP errors to a UDP socket that is not connected: Linux tells them with IP_RECVERR alone, which is off.
//   - shutdown(2) of a UDP socket or a listener, which ours do not have.
//   - What is read after shutdown(SHUT_RD): Linux still gives what was queued, and goes on queueing. To a poll both are at
//     the end of the stream, but a read of data leaves a pending error where one of the end takes it: none is made.
//   - EPOLLPRI is asked for, but no step sends urgent data: our sockets take it and never send it.
//   - Delayed ACKs: Linux's are pushed out (TCP_QUICKACK), ours come in virtual time. Linux pushes none as long as something
//     lies unread, so the peer reads what comes before a FIN.
type op struct {
	do       string
	id       int // of the socket: its place in socks
	n        int // bytes, or how
	ep       int
	mask     sockets.Ready
	data     uint64
	pre      bool // connect: add to ep before
	maxEvent int
}

func (o op) String() string {
	s := fmt.Sprintf("%s %d n=%d", o.do, o.id, o.n)
	if o.do == "add" || o.do == "mod" || o.do == "del" || o.do == "wait" || o.pre {
		s += fmt.Sprintf(" ep=%d mask=%#x data=%d max=%d", o.ep, uint32(o.mask), o.data, o.maxEvent)
	}
	return s
}

// reported is an event without what differs between the worlds, the socket's name.
type reported struct {
	ready sockets.Ready
	data  uint64
}

// world runs steps. A result is an errno, which steers nothing but is compared where it is epoll_ctl's.
type twin interface {
	begin() error
	step(o op) syscall.Errno
	wait(ep, maxEvents int) []reported
	end()
}

const (
	equivEps   = 3
	listenerID = 0
	udpFree    = 1 // not connected
	udpLive    = 2 // connected to a socket of B
	udpDead    = 3 // connected to a port that nobody has
	firstTCP   = 4
	equivSocks = 9
	equivSteps = 30
	equivBuf   = 8 << 10 // bytes unread at most

	equivExclusive = sockets.In | sockets.Out | sockets.Err | sockets.Hup | reactor.EdgeTriggered | reactor.Exclusive
)

// conn is what the script knows of a TCP connection.
type conn struct {
	a, b, queued, filled         bool // a, b: that end is open; queued: nobody accepted it
	aShut                        int  // 1: reading, 2: writing
	toA, toB                     int  // bytes that nobody read
	bShut, refused, aSaw, bReset bool
}

type regKey struct{ ep, id int }

// script makes steps that make sense, and knows what they do to the registrations.
type script struct {
	rng   *rand.Rand
	conns [equivSocks]conn
	queue []int // of the listener
	grams [firstTCP]int
	regs  map[regKey]sockets.Ready
	ids   map[uint64]regKey
	data  uint64
	cov   *coverage
}

// coverage counts what the scripts met.
type coverage struct {
	steps map[string]int
}

func (c *coverage) hit(what string) { c.steps[what]++ }

func (s *script) open(id int) bool { return id < firstTCP || s.conns[id].a && !s.conns[id].queued }

// pick gives a TCP connection for which ok holds; 0: none.
func (s *script) pick(ok func(c *conn) bool) int {
	from := s.rng.IntN(equivSocks - firstTCP)
	for k := range equivSocks - firstTCP {
		if id := firstTCP + (from+k)%(equivSocks-firstTCP); ok(&s.conns[id]) {
			return id
		}
	}
	return 0
}

func (s *script) mask() sockets.Ready {
	var m sockets.Ready
	for _, c := range []struct {
		bit sockets.Ready
		per int
	}{
		{sockets.In, 70}, {sockets.Out, 50}, {sockets.RdHup, 35}, {sockets.Pri, 10}, {sockets.Err, 5}, {sockets.Hup, 5},
		{reactor.EdgeTriggered, 45}, {reactor.OneShot, 20}, {reactor.Exclusive, 15},
	} {
		if s.rng.IntN(100) < c.per {
			m |= c.bit
		}
	}
	if m&reactor.Exclusive != 0 && s.rng.IntN(4) > 0 {
		m &= equivExclusive
	}
	return m
}

// next makes a step; ok is false when this one cannot be now.
func (s *script) next() (o op, ok bool) {
	o.n = 1 + s.rng.IntN(2000)
	o.ep = s.rng.IntN(equivEps)
	o.maxEvent = 1 + s.rng.IntN(8)
	s.data++
	o.data = s.data<<32 | uint64(s.rng.Uint32())
	weights := []struct {
		do string
		w  int
	}{
		{"add", 24}, {"mod", 9}, {"del", 3}, {"wait", 26}, {"connect", 5}, {"refused", 2}, {"arrive", 6}, {"accept", 6},
		{"asend", 4}, {"bsend", 7}, {"arecv", 3}, {"arecvall", 4}, {"brecvall", 2}, {"ashut", 4}, {"bshut", 3}, {"aclose", 2},
		{"bclose", 2}, {"areset", 1}, {"breset", 2}, {"fill", 3}, {"bread", 2}, {"drain", 5},
		{"gram", 5}, {"gramrecv", 4}, {"gramsend", 4}, {"reopen", 1},
	}
	total := 0
	for _, w := range weights {
		total += w.w
	}
	at := s.rng.IntN(total)
	for _, w := range weights {
		if at -= w.w; at < 0 {
			o.do = w.do
			break
		}
	}
	return o, s.choose(&o)
}

// choose finds the socket for a step.
func (s *script) choose(o *op) bool {
	alive := func(c *conn) bool { return c.a && !c.queued }
	switch o.do {
	case "add", "mod", "del":
		o.id = s.rng.IntN(equivSocks)
		if o.do != "add" && s.rng.IntN(4) > 0 { // of what is there, mostly
			o.id, o.ep = s.registered(o)
		}
		o.mask = s.mask()
		return s.open(o.id)
	case "wait":
		if s.rng.IntN(4) > 0 {
			_, o.ep = s.registered(o)
		}
	case "connect", "refused":
		o.id = s.pick(func(c *conn) bool { return !c.a && !c.b })
		o.mask = s.mask() &^ reactor.OneShot
		o.pre = s.rng.IntN(3) > 0 && (o.mask&reactor.Exclusive == 0 || o.mask&^equivExclusive == 0)
	case "arrive":
		o.id = s.pick(func(c *conn) bool { return !c.a && !c.b })
	case "accept":
		if len(s.queue) > 0 {
			o.id = s.queue[0]
		}
	case "asend":
		o.id = s.pick(func(c *conn) bool { return alive(c) && !c.filled && c.toB+o.n < equivBuf })
	case "bsend":
		o.id = s.pick(func(c *conn) bool { return c.b && c.a && !c.bShut && c.toA+o.n < equivBuf })
	case "aclose", "areset":
		o.id = s.pick(alive)
	case "arecv", "arecvall":
		o.id = s.pick(func(c *conn) bool { return alive(c) && (c.aShut&1 == 0 || c.toA == 0) })
	case "ashut":
		o.n = 1 + s.rng.IntN(3)
		o.id = s.pick(func(c *conn) bool { return alive(c) && (o.n&1 == 0 || c.toA == 0) })
	case "brecvall":
		o.id = s.pick(func(c *conn) bool { return c.b && !c.filled && !c.refused })
	case "bshut", "bclose", "breset":
		o.id = s.pick(func(c *conn) bool { return c.b })
	case "fill":
		o.id = s.pick(func(c *conn) bool { return alive(c) && c.b && !c.bShut && c.aShut == 0 && !c.filled && !c.aSaw })
	case "bread", "drain":
		o.id = s.pick(func(c *conn) bool { return alive(c) && c.b && c.filled && !c.bReset })
		o.n = 1000
	case "gram":
		o.id = udpFree + s.rng.IntN(2)
		return s.grams[o.id] < 10
	case "gramrecv", "gramsend":
		o.id = udpFree + s.rng.IntN(3)
	case "reopen":
		o.id = udpFree + s.rng.IntN(3)
	}
	return o.do == "wait" || o.id != 0
}

func (s *script) registered(o *op) (id, ep int) {
	keys := make([]regKey, 0, len(s.regs))
	for k := range s.regs {
		keys = append(keys, k)
	}
	if len(keys) == 0 {
		return o.id, o.ep
	}
	slices.SortFunc(keys, func(a, b regKey) int { return (a.id*equivEps + a.ep) - (b.id*equivEps + b.ep) })
	k := keys[s.rng.IntN(len(keys))]
	return k.id, k.ep
}

// gone forgets the registrations of a socket that was closed.
func (s *script) gone(id int) {
	for ep := range equivEps {
		delete(s.regs, regKey{ep, id})
	}
}

// done notes what a step did.
func (s *script) done(o op, errno syscall.Errno) {
	c := &s.conns[o.id]
	switch o.do {
	case "add", "mod", "del":
		s.registration(o, errno)
	case "connect":
		*c = conn{a: true, b: true}
	case "refused":
		*c = conn{a: true, refused: true, aSaw: true}
	case "arrive":
		*c = conn{a: true, b: true, queued: true}
		s.queue = append(s.queue, o.id)
	case "accept":
		c.queued = false
		s.queue = s.queue[1:]
	case "asend":
		c.toB += o.n
		c.aSaw = c.aSaw || !c.b
	case "bsend":
		if c.aShut != 3 { // else it is answered with a reset
			c.toA += o.n
		}
	case "arecv":
		c.toA = max(0, c.toA-o.n)
	case "arecvall":
		c.toA = 0
	case "brecvall":
		c.toB = 0
	case "ashut":
		c.aShut |= o.n
	case "bshut":
		c.bShut = true
	case "aclose", "areset":
		c.a = false
		s.gone(o.id)
	case "bclose", "breset":
		c.b, c.bReset = false, true
	case "fill":
		c.filled = true
	case "drain":
		c.filled, c.toB = false, 0
	case "gram":
		s.grams[o.id]++
	case "gramrecv":
		s.grams[o.id] = max(0, s.grams[o.id]-1)
	case "reopen":
		s.grams[o.id] = 0
		s.gone(o.id)
	}
	if o.pre {
		s.regs[regKey{o.ep, o.id}] = o.mask
		s.ids[o.data] = regKey{o.ep, o.id}
	}
}

func (s *script) registration(o op, errno syscall.Errno) {
	k := regKey{o.ep, o.id}
	if errno != 0 {
		s.cov.hit(o.do + " " + errno.Error())
		return
	}
	if o.do == "del" {
		delete(s.regs, k)
		return
	}
	s.regs[k] = o.mask
	s.ids[o.data] = k
}

// count notes what an event covers.
func (s *script) count(e reported) {
	mask := s.regs[s.ids[e.data]]
	switch {
	case mask&reactor.OneShot != 0:
		s.cov.hit("ONESHOT")
	case mask&reactor.EdgeTriggered == 0:
		s.cov.hit("LT")
	}
	if mask&reactor.EdgeTriggered != 0 {
		s.cov.hit("ET")
	}
	if mask&reactor.Exclusive != 0 {
		s.cov.hit("EXCLUSIVE")
	}
	for bit, name := range map[sockets.Ready]string{
		sockets.In: "IN", sockets.Out: "OUT", sockets.RdHup: "RDHUP", sockets.Hup: "HUP", sockets.Err: "ERR",
	} {
		if e.ready&bit != 0 {
			s.cov.hit(name)
		}
	}
	if e.ready == sockets.Out && mask&reactor.EdgeTriggered != 0 {
		s.cov.hit("OUT alone by edge")
	}
}

// runScript runs one script over both worlds. The error tells the steps.
func runScript(seed uint64, ours, kernel twin, cov *coverage) error {
	s := &script{
		rng: rand.New(rand.NewPCG(seed, 0)), regs: map[regKey]sockets.Ready{}, ids: map[uint64]regKey{}, cov: cov,
	}
	if err := errors.Join(ours.begin(), kernel.begin()); err != nil {
		return err
	}
	defer ours.end()
	defer kernel.end()
	var log []string
	fail := func(format string, args ...any) error {
		return fmt.Errorf("%s\nafter:\n  %s", fmt.Sprintf(format, args...), strings.Join(log, "\n  "))
	}
	compare := func(ep, maxEvents int) error {
		a, b := ours.wait(ep, maxEvents), kernel.wait(ep, maxEvents)
		log = append(log, fmt.Sprintf("wait ep=%d max=%d: %x", ep, maxEvents, b))
		byData := func(x, y reported) int { return int(int64(x.data) - int64(y.data)) }
		slices.SortFunc(a, byData)
		slices.SortFunc(b, byData)
		if !slices.Equal(a, b) {
			return fail("ours %x, Linux %x", a, b)
		}
		for _, e := range a {
			s.count(e)
		}
		if len(a) == maxEvents {
			s.cov.hit("full wait")
		} else if len(a) == 0 {
			s.cov.hit("empty wait")
		}
		return nil
	}
	for n := 0; n < equivSteps; {
		o, ok := s.next()
		if !ok {
			continue
		}
		n++
		s.cov.hit(o.do)
		if o.do == "wait" {
			if err := compare(o.ep, o.maxEvent); err != nil {
				return err
			}
			continue
		}
		if o.pre {
			if err := compare(o.ep, 64); err != nil {
				return err
			}
		}
		a, b := ours.step(o), kernel.step(o)
		log = append(log, fmt.Sprintf("%v: %v, Linux %v", o, a, b))
		if o.do == "ashut" && o.n&2 != 0 && s.conns[o.id].b && !s.conns[o.id].filled {
			read := op{do: "brecvall", id: o.id}
			ours.step(read)
			kernel.step(read)
			s.done(read, 0)
		}
		if (o.do == "add" || o.do == "mod" || o.do == "del") && a != b {
			return fail("ours %v, Linux %v", a, b)
		}
		s.done(o, b)
	}
	for ep := range equivEps {
		if err := compare(ep, 64); err != nil {
			return err
		}
	}
	return nil
}

// TestPollerIsEpoll: random scripts over Linux and over ours report the same. XDPD_SEED repeats one.
func TestPollerIsEpoll(t *testing.T) { testIsEpoll(t, 20_000, newOurTwin()) }

// TestRingPollerIsEpoll is the same for sockets and pollers over a ring, those of an application in another process.
func TestRingPollerIsEpoll(t *testing.T) {
	ours := newOurTwin()
	ours.ring = &equivRingFace{}
	testIsEpoll(t, 500, ours)
}

func testIsEpoll(t *testing.T, scripts int, ours *ourTwin) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	first, runs := seeds.Range(t, scripts)
	cov := &coverage{steps: map[string]int{}}
	inKernelTwin(t, func(kernel twin) {
		seeds.Each(t, first, runs, func(seed uint64) error { return runScript(seed, ours, kernel, cov) })
	})
	if runs < 100 || t.Failed() {
		return
	}
	for _, what := range strings.Split("LT,ET,ONESHOT,EXCLUSIVE,IN,OUT,RDHUP,HUP,ERR,OUT alone by edge,full wait,empty wait,"+
		"add file exists,add invalid argument,mod invalid argument,mod no such file or directory,del no such file or directory,"+
		"connect,refused,arrive,accept,asend,bsend,arecv,arecvall,brecvall,ashut,bshut,aclose,bclose,areset,breset,fill,bread,"+
		"drain,gram,gramrecv,gramsend,reopen,add,mod,del,wait", ",") {
		if cov.steps[what] == 0 {
			t.Errorf("no step covered %q", what)
		}
	}
	t.Log(cov.steps)
}
