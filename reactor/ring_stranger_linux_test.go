package reactor

import (
	"net/netip"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/rings"
	"xdpd/sockets"
)

// mapped is memory for a ring that can be taken away again.
func mapped(t *testing.T, n int) []byte {
	t.Helper()
	mem, err := unix.Mmap(-1, 0, n, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Munmap(mem) })
	return mem
}

// TestRingMemoryGoes: once a ring is closed its memory may go, also when the reactor ended before and its loop has not heard of it yet.
func TestRingMemoryGoes(t *testing.T) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	for _, ended := range []bool{false, true} {
		layout, err := rings.LayoutRing(4, 4)
		if err != nil {
			t.Fatal(err)
		}
		area := mapped(t, layout.Size)
		g := ringOn(newRig(t, options{}), RingConfig{SQEntries: 4, CQEntries: 4, Area: area})
		g.push(nop(1, 0))
		if _, ok := g.r.doze(g.r.now()); ok {
			t.Fatal("it sleeps with work to do")
		}
		g.settle()
		if _, ok := g.r.doze(g.r.now()); !ok {
			t.Fatal("it does not sleep")
		}
		if ended {
			g.r.Stop()
		}
		g.q.Close()
		if err := unix.Mprotect(area, unix.PROT_NONE); err != nil {
			t.Fatal(err)
		}
		g.r.rouse(true)
		g.r.Turn()
		if _, ok := g.r.doze(g.r.now()); ok {
			g.r.rouse(true)
		}
	}
}

// TestRingTimeBounded: a ring that has a share of the time does not take SQEs for longer than its slice, whatever they turn out to
// cost, and is served again in the next turns until all are done.
func TestRingTimeBounded(t *testing.T) {
	now, cost := int64(1e12), int64(0)
	g := newRig(t, options{change: func(c *Config, _ *sockets.Config) {
		c.Clock = func() int64 { now += cost; return now }
	}})
	r := ringOn(g, RingConfig{SQEntries: 256, CQEntries: 256, CPU: 100})
	var list []rings.SQE
	for i := range uint64(256) {
		list = append(list, nop(i, 0))
	}
	r.push(list...)
	cost = sliceNS // between any two looks at the clock
	g.r.Turn()
	if did := r.q.counters.Submitted; did == 0 || did > batch {
		t.Errorf("%d SQEs taken in a turn in which each look at the clock finds a slice gone", did)
	}
	cost = 0
	if got := len(r.reap()); got != 256 {
		t.Errorf("%d completions, want all", got)
	}
}

// TestRingKnocksAreCharged: an application that is to be woken for each completion pays for the system calls.
func TestRingKnocksAreCharged(t *testing.T) {
	now, cost := int64(1e12), int64(0)
	g := newRig(t, options{change: func(c *Config, _ *sockets.Config) {
		c.Clock = func() int64 { return now }
	}})
	knocks := 0
	r := ringOn(g, RingConfig{SQEntries: 256, CQEntries: 256, CPU: 1, Bell: func() { knocks++; now += cost }})
	cost = 1e6
	want := uint32(0)
	for range 200 {
		want++
		r.c.app.Sleep(want)
		r.push(nop(1, 0))
		g.r.Turn()
		r.c.Reap(make([]rings.CQE, 8))
	}
	if knocks == 0 || knocks > 20 {
		t.Errorf("%d knocks of a millisecond each within as much; of one in a hundred it has few", knocks)
	}
}

// slowGuard takes its time.
type slowGuard struct {
	now *int64
	ns  int64
}

func (g slowGuard) MayBind(uint8, netip.AddrPort) bool  { *g.now += g.ns; return false }
func (g slowGuard) MayReach(uint8, netip.AddrPort) bool { return false }

// TestRingSlowBounded: requests of which one takes longer than a slice are done one a turn, in a chain as well.
func TestRingSlowBounded(t *testing.T) {
	for _, flags := range []uint8{0, rings.SQEHardLink} {
		now := int64(1e12)
		g := newRig(t, options{change: func(c *Config, _ *sockets.Config) {
			c.Clock = func() int64 { return now }
		}})
		data := make([]byte, 64)
		rings.PutSockAddr(data, peerPort)
		r := ringOn(g, RingConfig{SQEntries: 32, CQEntries: 64, CPU: 100, Data: data, Guard: slowGuard{&now, sliceNS}})
		r.push(opSocket(1, sockDgram))
		r.want(r.reap(), cqe(1, 0))
		for range 20 {
			r.push(rings.SQE{Opcode: rings.OpBind, Off: rings.SockAddrSize, Flags: flags})
		}
		r.push(nop(1, 0))
		for turns, done := 0, r.q.counters.Completed; turns < 20; turns++ {
			g.r.Turn()
			if did := r.q.counters.Completed - done; did != 1 {
				t.Fatalf("flags %#x: %d BINDs in turn %d, want one", flags, did, turns)
			}
			done = r.q.counters.Completed
			now += turnNS // of which it may have all
		}
	}
}

// TestRingLightFirst: however many rings are never done, one that takes little of the time is served in each turn; the others share the rest.
func TestRingLightFirst(t *testing.T) {
	now := int64(1e12)
	g := newRig(t, options{change: func(c *Config, _ *sockets.Config) {
		c.Clock = func() int64 { return now }
	}})
	bind := rings.SQE{Opcode: rings.OpBind, FD: 0, Off: rings.SockAddrSize}
	var heavy []*ringRig
	for range 10 {
		data := make([]byte, 64)
		rings.PutSockAddr(data, peerPort)
		r := ringOn(g, RingConfig{SQEntries: 1, CQEntries: 64, Data: data, Guard: slowGuard{&now, turnNS / 2}})
		r.push(opSocket(1, sockDgram))
		r.want(r.reap(), cqe(1, 0))
		heavy = append(heavy, r)
	}
	light := ringOn(g, RingConfig{SQEntries: 1, CQEntries: 64})
	missed, served := 0, 0
	for turn := range 300 {
		for _, r := range heavy {
			if s := r.c.SQE(); s != nil {
				*s = bind
				r.c.Submit()
			}
			served += r.c.Reap(make([]rings.CQE, 4))
		}
		if s := light.c.SQE(); s != nil {
			*s = nop(1, 0)
			light.c.Submit()
		}
		g.r.Turn()
		if n := light.c.Reap(make([]rings.CQE, 4)); n == 0 && turn >= len(heavy) { // until it is known who takes how much
			missed++
		}
	}
	if missed > 3 { // each time that what was long ago is forgotten all are nearer to each other
		t.Errorf("the light ring was not served in %d turns of 300", missed)
	}
	if served < 300 {
		t.Errorf("the heavy ones had %d turns, which is less than one a turn", served)
	}
	for i, r := range heavy {
		if n := r.q.counters.Completed; n < 20 {
			t.Errorf("heavy ring %d was served %d times in 300 turns", i, n)
		}
	}
}

// TestRingOfASpinner: what another process submits is seen by a reactor that spins, though nobody tells it; here by one whose clock
// stands, so that it spins for ever. Who was woken finds a reactor that sleeps instead.
func TestRingOfASpinner(t *testing.T) {
	layout, err := rings.LayoutRing(4, 4)
	if err != nil {
		t.Fatal(err)
	}
	area := mapped(t, layout.Size)
	g := newRig(t, options{})
	rang := 0
	r := ringOn(g, RingConfig{SQEntries: 4, CQEntries: 4, Area: area, Bell: func() { rang++ }})
	c, err := JoinRing(area, func() { t.Error("it knocked at a reactor that spins") }, AwaitToken(nil, r.q.done))
	if err != nil {
		t.Fatal(err)
	}
	stop := g.run()
	submit := func() {
		*c.SQE() = nop(1, 0)
		c.Submit()
	}
	for range 10 {
		submit()
		g.until("a completion", func() bool { _, ok := c.Peek(); return ok })
		c.Seen(1)
	}
	c.app.Sleep(11)
	submit()
	g.awaitAsleep()
	if rang != 1 {
		t.Errorf("it was woken %d times, want once", rang)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

// TestRingKnocked: a knock has something behind it when SQEs wait, or were taken since the last one, and its share of the time is not used up; each is paid for.
func TestRingKnocked(t *testing.T) {
	r := ringOn(newRig(t, options{}), RingConfig{SQEntries: 4, CQEntries: 4, CPU: 50})
	knock := func(want bool) {
		t.Helper()
		r.q.pace.wait(r.r.now())
		before := r.q.pace.left
		if got := r.q.Knocked(); got != want {
			t.Errorf("something behind the knock: %v", got)
		}
		if r.q.pace.left >= before {
			t.Error("nobody paid for it")
		}
	}
	knock(false)
	r.push(nop(1, 0))
	knock(true)
	r.settle()
	knock(true)
	knock(false)
	r.push(nop(1, 0))
	for r.q.pace.left >= 0 {
		r.q.Knocked()
	}
	knock(false) // who has used up his share is not worth a look, whatever he submits
}

// TestRingQuiet: a quiet completion wakes nobody by itself, unless it tells a failure or the application wants to hear of quiet ones; the next that
// is not quiet wakes.
func TestRingQuiet(t *testing.T) {
	rang := 0
	g := ringOn(newRig(t, options{}), RingConfig{SQEntries: 8, CQEntries: 8, Bell: func() { rang++ }})
	quiet := func(user uint64) rings.SQE {
		return rings.SQE{Opcode: rings.OpNop, Flags: rings.SQEQuiet, UserData: user}
	}
	app, head := g.c.app, uint32(0)
	for _, c := range []struct {
		name string
		all  bool // it wants quiet ones
		sqes []rings.SQE
		want int
	}{
		{"quiet", false, []rings.SQE{quiet(1), quiet(2)}, 0},
		{"quiet ones wanted", true, []rings.SQE{quiet(3)}, 1},
		{"loud behind quiet", false, []rings.SQE{quiet(4), nop(5, 0)}, 1},
		{"quiet behind loud", false, []rings.SQE{nop(6, 0), quiet(7)}, 1},
		{"failure", false, []rings.SQE{{Opcode: rings.OpTimeoutRemove, Flags: rings.SQEQuiet, Addr: 99, UserData: 8}}, 1},
	} {
		app.WantQuiet(c.all)
		app.Sleep(head + 1)
		rang = 0
		g.push(c.sqes...)
		g.settle()
		if rang != c.want {
			t.Errorf("%s: %d wake-ups, want %d", c.name, rang, c.want)
		}
		if n := g.c.Reap(make([]rings.CQE, 8)); n != len(c.sqes) {
			t.Errorf("%s: %d completions, want %d", c.name, n, len(c.sqes))
		}
		head += uint32(len(c.sqes))
		app.Awake()
	}
}
