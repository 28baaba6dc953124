package reactor

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/rings"
	"xdpd/sockets"
)

// readable says whether the eventfd is, and reads it.
func readable(t *testing.T, fd int) bool {
	t.Helper()
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
	if _, err := unix.Poll(fds, 0); err != nil {
		t.Fatal(err)
	}
	if fds[0].Revents&unix.POLLIN == 0 {
		return false
	}
	var b [8]byte
	if _, err := unix.Read(fd, b[:]); err != nil {
		t.Fatal(err)
	}
	return true
}

// The eventfd is written once for what was not seen yet, and again when more comes after that was.
func TestRingEventFD(t *testing.T) {
	g := newRingRig(t, RingConfig{})
	g.push(nop(1, 0))
	g.settle()
	fd, err := g.c.EventFD()
	if err != nil {
		t.Fatal(err)
	}
	again, err := g.c.EventFD()
	if err != nil || again != fd {
		t.Fatalf("asked again: %d, %v; want %d", again, err, fd)
	}
	step := func(what string, want bool) {
		t.Helper()
		g.settle()
		if got := readable(t, fd); got != want {
			t.Fatalf("%s: readable %v, want %v", what, got, want)
		}
	}
	step("a completion from before", true)
	g.reap()
	step("nothing new", false)
	g.push(nop(1, 0))
	step("the first", true)
	g.push(nop(1, 0), nop(1, 0))
	step("more, with the first not seen", false)
	g.c.Seen(0)
	g.want(g.reap(), cqe(1, 0), cqe(1, 0), cqe(1, 0))
	g.push(nop(1, 0))
	step("one after all were seen", true)
	g.reap()
	g.c.DisableEventFD(true)
	g.push(nop(1, 0))
	step("disabled", false)
	g.reap()
	g.c.DisableEventFD(false)
	g.push(nop(1, 0))
	step("enabled", true)
	g.q.Close()
	if _, err := g.c.EventFD(); !errors.Is(err, ErrRingClosed) {
		t.Errorf("EventFD of a closed ring: %v", err)
	}
}

func TestRingWait(t *testing.T) {
	g := ringOn(newRig(t, options{realTime: true}), RingConfig{CQEntries: 4})
	g.run()
	if n, err := g.c.Wait(1, 0); n != 0 || err != nil {
		t.Fatalf("Wait without time gives %d, %v", n, err)
	}
	for range 3 {
		if n, err := g.c.Wait(1, time.Millisecond); n != 0 || err != nil {
			t.Fatalf("Wait for nothing gives %d, %v", n, err)
		}
	}
	// Three of them at different times: Wait comes back with all.
	g.push(timeout(1, 1e6, 0, 0), timeout(2, 2e6, 0, 0), timeout(3, 4e6, 0, 0))
	if n, err := g.c.Wait(3, -1); n != 3 || err != nil {
		t.Fatalf("Wait for 3 gives %d, %v", n, err)
	}
	// With less than was asked for when the time is over.
	g.push(timeout(4, 1e15, 0, 0))
	if n, err := g.c.Wait(4, time.Millisecond); n != 3 || err != nil {
		t.Fatalf("Wait for 4 of 3 gives %d, %v", n, err)
	}
	// More than the CQ holds cannot be waited for.
	g.push(nop(5, 0), nop(6, 0), nop(7, 0))
	if n, err := g.c.Wait(100, hang); n != 4 || err != nil {
		t.Fatalf("Wait for 100 in a CQ of 4 gives %d, %v", n, err)
	}
	buf := make([]rings.CQE, 3)
	if n := g.c.Reap(buf); n != 3 || buf[0] != fails(1, sockets.ETIME) {
		t.Fatalf("Reap gives %d, first %v", n, buf[0])
	}
	if n, err := g.c.Wait(3, hang); n != 3 || err != nil {
		t.Fatalf("Wait for what was behind the full CQ gives %d, %v", n, err)
	}
	g.c.Seen(3)
	ended := make(chan error, 1)
	go func() {
		_, err := g.c.Wait(1, -1)
		ended <- err
	}()
	g.until("the waiter to sleep", func() bool { wake, _ := g.q.end.Sleeper(g.q.cqTail+1, g.q.cqTail+1); return wake })
	g.q.Close()
	for range 2 { // the cancelled timeout, then the end
		if err := await(t, "the waiter", ended); err != nil {
			if !errors.Is(err, ErrRingClosed) {
				t.Fatalf("Wait on a closed ring: %v", err)
			}
			return
		}
		if c, _ := g.c.Peek(); c != fails(4, sockets.ECANCELED) {
			t.Fatalf("at the end %v", c)
		}
		g.c.Seen(1)
		_, err := g.c.Wait(1, -1)
		ended <- err
	}
	t.Fatal("Wait does not end")
}

// While both ends are awake nobody makes a system call; a sleeping reactor is not woken either.
func TestRingNoSyscalls(t *testing.T) {
	g := ringOn(newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = -1 }}), RingConfig{})
	g.run()
	var before, after Counters
	g.until("nothing", func() bool { before = g.r.Counters(); return true })
	for i := range uint64(1000) {
		g.push(nop(i, 0))
		if n, err := g.c.Wait(1, hang); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		g.c.Seen(1)
	}
	g.until("nothing", func() bool { after = g.r.Counters(); return true })
	if n := after.Syscalls() - before.Syscalls(); n != 0 {
		t.Errorf("1000 operations on an awake reactor took %d system calls", n)
	}
}

func TestRingSubmitToSleeper(t *testing.T) {
	g := ringOn(newRig(t, options{realTime: true}), RingConfig{})
	g.run()
	g.awaitAsleep()
	before := g.r.wake.writes.Load()
	g.push(nop(1, 0))
	if c, ok := g.c.Peek(); !ok || c != cqe(1, 0) {
		t.Errorf("Submit returned before its own thread did the work: %v", ok)
	}
	if n := g.r.wake.writes.Load() - before; n != 0 {
		t.Errorf("the sleeping reactor was signalled %d times for what the submitter did", n)
	}
	g.push(timeout(2, 1e6, 0, 0)) // this one must wake it: its time comes earlier than anything else's
	if n, err := g.c.Wait(2, hang); n != 2 || err != nil {
		t.Errorf("Wait gives %d, %v", n, err)
	}
}

// Two reactors, each with a ring, which play ball.
func TestRingMsgAcrossReactors(t *testing.T) {
	a := ringOn(newRig(t, options{realTime: true}), RingConfig{})
	b := ringOn(newRig(t, options{realTime: true}), RingConfig{})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 2)
	for _, g := range []*ringRig{a, b} {
		go func() { done <- g.r.Run(ctx) }()
	}
	defer func() { stop(); <-done; <-done }()
	ends := [2]*ringRig{a, b}
	var to [2]int32
	for i, g := range ends {
		var err error
		if to[i], err = g.q.AddPeer(ends[1-i].q); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(400) {
		g, other := ends[i%2], ends[1-i%2]
		if i%40 < 2 {
			other.awaitAsleep()
		}
		g.push(rings.SQE{Opcode: rings.OpMsg, FD: to[i%2], Off: i, Len: uint32(i), UserData: 1, Flags: rings.SQESkipSuccess})
		if n, err := other.c.Wait(1, hang); n != 1 || err != nil {
			t.Fatalf("message %d: %d, %v", i, n, err)
		}
		if c, _ := other.c.Peek(); c != cqe(i, int32(i)) {
			t.Fatalf("message %d is %v", i, c)
		}
		other.c.Seen(1)
	}
}

// A handler on the reactor gets every completion, and what it submits is done in the same turn, within its budget.
func TestRingServe(t *testing.T) {
	g := newRingRig(t, RingConfig{SQEntries: 4, CQEntries: 4})
	count, left := 0, 100
	g.enter(func(*sockets.Host, int64) {
		g.c.Serve(func(c rings.CQE) {
			if count++; c.Res != 0 {
				t.Errorf("completion %v", c)
			}
			for ; left > 0; left-- {
				s := g.c.SQE()
				if s == nil {
					break
				}
				*s = nop(uint64(left), 0)
			}
			g.c.Submit()
		})
		*g.c.SQE() = nop(1, 0)
		g.c.Submit()
	})
	g.r.Turn()
	if count != 101 {
		t.Errorf("the handler saw %d completions in one turn, want 101", count)
	}
	left = 10_000
	count = 0
	g.enter(func(*sockets.Host, int64) { *g.c.SQE() = nop(1, 0); g.c.Submit() })
	g.r.Turn()
	if count > budget+64 {
		t.Errorf("the handler kept the turn for %d completions", count)
	}
	g.settle()
	if count != 10_001 {
		t.Errorf("the handler saw %d completions, want 10001", count)
	}
	g.idle()
}

// In steady state nothing is allocated.
func TestRingAllocates(t *testing.T) {
	g := ringOn(newRig(t, options{noLedger: true}), RingConfig{})
	buf := make([]rings.CQE, 64)
	round := func() {
		for i := range uint64(16) {
			*g.c.SQE() = timeout(i, 100+i, 0, 0)
			*g.c.SQE() = nop(i, rings.SQELink)
			*g.c.SQE() = nop(i, 0)
			*g.c.SQE() = cancel(i, i/2, 0)
		}
		g.c.Submit()
		g.r.Turn()
		g.clock.AdvanceTo(g.clock.Now() + 1000)
		g.r.Turn()
		for g.c.Reap(buf) > 0 {
		}
	}
	round()
	if n := testing.AllocsPerRun(100, round); n != 0 {
		t.Errorf("%v allocations a round", n)
	}
}

// The end of the reactor ends the ring; who comes later is told.
func TestRingReactorEnds(t *testing.T) {
	g := ringOn(newRig(t, options{realTime: true}), RingConfig{})
	fd, err := g.c.EventFD()
	if err != nil {
		t.Fatal(err)
	}
	stop := g.run()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if !readable(t, fd) {
		t.Error("the eventfd does not tell of the end")
	}
	if _, err := g.c.Wait(1, -1); !errors.Is(err, ErrRingClosed) {
		t.Errorf("Wait: %v", err)
	}
	if _, err := NewRing(g.r, RingConfig{}); !errors.Is(err, ErrRingClosed) {
		t.Errorf("NewRing: %v", err)
	}
}

func TestRingConfigRefused(t *testing.T) {
	g := newRig(t, options{})
	for _, c := range []RingConfig{
		{SQEntries: 3}, {CQEntries: 3}, {SQEntries: 1 << 21}, {Requests: -1}, {Requests: 1 << 21}, {Sockets: -1}, {Fixed: -1},
		{Sockets: 1 << 25}, {Messages: -1}, {Area: make([]byte, 1024)},
	} {
		if _, err := NewRing(g.r, c); err == nil {
			t.Errorf("%+v is accepted", c)
		}
	}
}
