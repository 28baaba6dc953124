package reactor

import (
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"xdpd/proto"
	"xdpd/sockets"
)

// The rules of epoll_ctl(2) and epoll_wait(2), one by one. That all of them together are Linux's, TestPollerIsEpoll shows.

func (g *pollRig) mod(s sockets.Handle, mask sockets.Ready, data uint64) {
	g.t.Helper()
	g.enter(func(*sockets.Host, int64) {
		if err := g.p.Mod(s, mask, data); err != nil {
			g.t.Fatal(err)
		}
	})
}

func TestPollerEdgeTriggered(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In|EdgeTriggered, 1)
	ready := Event{g.a, sockets.In, 1}
	g.datagram(7)
	g.wait(8, ready)
	g.wait(8) // nothing new, though nobody read
	g.datagram(7)
	g.wait(8, ready)
	g.datagram(7)
	for range 3 {
		g.read(g.a)
	}
	g.wait(8) // an event, but nothing to read any more
	g.datagram(7)
	g.wait(8, ready)
	g.mod(g.a, sockets.In|EdgeTriggered, 2) // tells anew what is
	g.wait(8, Event{g.a, sockets.In, 2})
	g.wait(8)
}

// TestPollerEdgeOfAnother: what happened must be asked for; what is reported then is all that is.
func TestPollerEdgeOfAnother(t *testing.T) {
	g := newPollRig(t)
	g.meet()
	g.add(g.a, sockets.Out|EdgeTriggered, 1)
	g.wait(8, Event{g.a, sockets.Out, 1})
	g.datagram(7)
	g.wait(8)
	g.mod(g.a, sockets.In|sockets.Out|EdgeTriggered, 2)
	g.wait(8, Event{g.a, sockets.In | sockets.Out, 2})
	g.datagram(7)
	g.wait(8, Event{g.a, sockets.In | sockets.Out, 2})
	g.enter(func(h *sockets.Host, now int64) { // sock_wfree: what was sent makes room
		if err := h.UDPSend(g.a, []byte("hello"), peerPort, now); err != 0 {
			t.Fatal(err)
		}
	})
	g.settle()
	g.wait(8, Event{g.a, sockets.In | sockets.Out, 2})
	g.wait(8)
}

func TestPollerOneShot(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In|OneShot, 1)
	g.datagram(7)
	g.wait(8, Event{g.a, sockets.In, 1})
	g.datagram(7)
	g.wait(8)
	g.mod(g.a, sockets.In|OneShot, 2)
	g.wait(8, Event{g.a, sockets.In, 2})
	g.wait(8)
	g.mod(g.a, sockets.In, 3)
	g.wait(8, Event{g.a, sockets.In, 3})
	g.wait(8, Event{g.a, sockets.In, 3})
}

// TestPollerControlErrors: do_epoll_ctl.
func TestPollerControlErrors(t *testing.T) {
	g := newPollRig(t)
	other := NewPoller(g.r)
	check := func(what string, got error, want syscall.Errno) {
		t.Helper()
		if want == 0 && got != nil || want != 0 && !errors.Is(got, want) {
			t.Errorf("%s: %v, want %v", what, got, want)
		}
	}
	g.enter(func(h *sockets.Host, now int64) {
		check("Exclusive with RdHup", g.p.Add(g.a, sockets.In|sockets.RdHup|Exclusive, 0), syscall.EINVAL)
		check("Exclusive with Pri", g.p.Add(g.a, sockets.Pri|Exclusive, 0), syscall.EINVAL)
		check("Exclusive with OneShot", g.p.Add(g.a, sockets.In|OneShot|Exclusive, 0), syscall.EINVAL)
		check("Mod to Exclusive of what is not there", g.p.Mod(g.a, sockets.In|Exclusive, 0), syscall.EINVAL)
		check("Exclusive", g.p.Add(g.a, exclusiveOK, 0), 0)
		check("Mod of Exclusive", g.p.Mod(g.a, sockets.In, 0), syscall.EINVAL)
		check("Add again", g.p.Add(g.a, sockets.In, 0), syscall.EEXIST)
		check("Add again, badly", g.p.Add(g.a, sockets.RdHup|Exclusive, 0), syscall.EINVAL)
		check("Add elsewhere", other.Add(g.a, sockets.In, 0), 0)
		check("Mod elsewhere to Exclusive", other.Mod(g.a, sockets.In|Exclusive, 0), syscall.EINVAL)
		check("Mod elsewhere", other.Mod(g.a, sockets.Out, 0), 0)
		check("Mod of nothing", g.p.Mod(g.b, sockets.In, 0), syscall.ENOENT)
		check("Del of nothing", g.p.Del(g.b), syscall.ENOENT)
		check("Add of nothing", g.p.Add(0, sockets.In, 0), syscall.EBADF)
	})
	_, err := g.p.Wait(nil, -1)
	check("Wait for nothing", err, syscall.EINVAL)
	g.p.Close()
	_, err = g.p.Wait(make([]Event, 1), -1)
	check("Wait on a closed poller", err, syscall.EBADF)
}

// TestPollerManyLimit: the table of further registrations has an end.
func TestPollerManyLimit(t *testing.T) {
	g := newPollRig(t)
	other := NewPoller(g.r)
	g.add(g.a, sockets.In, 1)
	g.r.watches.nmore = maxMore
	g.enter(func(*sockets.Host, int64) {
		if err := other.Add(g.a, sockets.In, 0); !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, ErrTooMany) {
			t.Errorf("Add beyond the limit: %v", err)
		}
		g.r.watches.nmore--
		if err := other.Add(g.a, sockets.In, 0); err != nil {
			t.Errorf("Add up to the limit: %v", err)
		}
	})
}

// TestPollerSeveral: a socket in three pollers is reported by each, and leaves each by itself.
func TestPollerSeveral(t *testing.T) {
	g := newPollRig(t)
	first := g.p
	ps := []*Poller{first, NewPoller(g.r), NewPoller(g.r)}
	for i, p := range ps {
		g.p = p
		g.add(g.a, sockets.In, uint64(i))
	}
	g.datagram(7)
	for i := range ps {
		for j, p := range ps {
			g.p = p
			if j < i {
				g.wait(8)
			} else {
				g.wait(8, Event{g.a, sockets.In, uint64(j)})
			}
		}
		g.enter(func(*sockets.Host, int64) {
			if err := ps[i].Del(g.a); err != nil {
				t.Fatal(err)
			}
		})
	}
	if g.watched() != 0 || len(g.r.watches.more) != 0 || g.r.watches.nmore != 0 {
		t.Error("something is left in the tables")
	}
}

func TestPollerWake(t *testing.T) {
	g := newPollRig(t)
	g.add(g.a, sockets.In, 1)
	g.p.Wake() // nobody waits: the next one returns, and only that
	g.p.Wake()
	g.waitNothing("the Wait behind a Wake", g.waitOn(-1))
	c1, c2 := g.waitOn(-1), g.waitOn(time.Hour)
	g.awaitWaiters(2)
	g.p.Wake()
	g.awaitWaiters(1)
	g.p.Wake()
	g.waitNothing("Wake", c1)
	g.waitNothing("Wake", c2)
	g.enter(func(*sockets.Host, int64) { g.p.Wake() }) // with the lock held, as a handler does
	g.datagram(7)
	g.wait(8, Event{g.a, sockets.In, 1}) // which uses it up
	g.read(g.a)
	c := g.waitOn(-1)
	g.awaitWaiters(1)
	g.p.Wake()
	g.waitNothing("Wake", c)
}

func (g *pollRig) waitNothing(what string, c <-chan waited) {
	g.t.Helper()
	if w := await(g.t, what, c); len(w.events) != 0 || w.err != nil {
		g.t.Errorf("%s: Wait gave %+v", what, w)
	}
}

// TestPollerWaitInHandler: a handler that waits would wait for itself.
func TestPollerWaitInHandler(t *testing.T) {
	g := newPollRig(t)
	other := NewPoller(g.r)
	var errs []error
	g.enter(func(*sockets.Host, int64) {
		g.p.Serve(func(h *sockets.Host, _ int64, e Event) {
			_, err1 := other.Wait(make([]Event, 1), 0)
			_, err2 := g.p.Wait(make([]Event, 1), -1)
			errs = append(errs, err1, err2)
			h.UDPRecv(e.Sock, nil)
		})
	})
	g.add(g.a, sockets.In, 1)
	g.datagram(7)
	if len(errs) != 2 || !errors.Is(errs[0], ErrInHandler) || !errors.Is(errs[1], syscall.EDEADLK) {
		t.Errorf("Wait in a handler: %v", errs)
	}
}

// TestPollerWaitInHandlerOfSibling: the loop that runs the handler may be the one that runs what it would wait for.
func TestPollerWaitInHandlerOfSibling(t *testing.T) {
	rigs, reactors, _ := newRigs(t, 2, options{})
	if _, err := NewGroup(reactors, GroupConfig{}); err != nil {
		t.Fatal(err)
	}
	g, sibling := &pollRig{rig: rigs[0], p: NewPoller(rigs[0].r)}, NewPoller(rigs[1].r)
	g.a = g.bind(7)
	var errs []error
	g.enter(func(*sockets.Host, int64) {
		g.p.Serve(func(h *sockets.Host, _ int64, e Event) {
			_, err := sibling.Wait(make([]Event, 1), -1)
			errs = append(errs, err)
			h.UDPRecv(e.Sock, nil)
		})
	})
	g.add(g.a, sockets.In, 1)
	g.datagram(7)
	if len(errs) != 1 || !errors.Is(errs[0], ErrInHandler) {
		t.Errorf("Wait for a sibling in a handler: %v", errs)
	}
}

// TestPollerWaitBesideHandler: another goroutine that calls Wait while a handler runs waits for the lock, and is served.
func TestPollerWaitBesideHandler(t *testing.T) {
	g := newPollRig(t)
	other := NewPoller(g.r)
	in, out := make(chan bool), make(chan bool)
	g.enter(func(*sockets.Host, int64) {
		g.p.Serve(func(h *sockets.Host, _ int64, e Event) {
			h.UDPRecv(e.Sock, nil)
			in <- true
			<-out
		})
	})
	g.add(g.a, sockets.In, 1)
	done := make(chan error, 1)
	go func() {
		<-in
		go func() {
			_, err := other.Wait(make([]Event, 1), 0)
			done <- err
		}()
		for range 1000 { // let it come to the lock
			runtime.Gosched()
		}
		out <- true
	}()
	g.datagram(7)
	if err := await(t, "Wait", done); err != nil {
		t.Error(err)
	}
}

// TestServeFlags: masks mean to Serve what they mean to Wait.
func TestServeFlags(t *testing.T) {
	for mask, want := range map[sockets.Ready]string{
		sockets.In:                             "2 calls, 0 left",
		sockets.In | EdgeTriggered:             "1 calls, 1 left",
		sockets.In | OneShot:                   "1 calls, 1 left",
		sockets.In | EdgeTriggered | Exclusive: "1 calls, 1 left",
	} {
		g := newPollRig(t)
		calls := 0
		g.datagram(7)
		g.datagram(7)
		g.enter(func(*sockets.Host, int64) {
			g.p.Serve(func(h *sockets.Host, _ int64, e Event) {
				calls++
				h.UDPRecv(e.Sock, nil)
			})
		})
		g.add(g.a, mask, 1)
		g.settle()
		left := 0
		g.enter(func(h *sockets.Host, _ int64) {
			for ; h.Ready(g.a)&sockets.In != 0; left++ {
				h.UDPRecv(g.a, nil)
			}
		})
		if got := fmt.Sprintf("%d calls, %d left", calls, left); got != want {
			t.Errorf("mask %#x: %s, want %s", uint32(mask), got, want)
		}
	}
}

// herd has n goroutines wait, each on poller(i), and gives the counter of those that came back.
func (g *pollRig) herd(n int, poller func(i int) *Poller) (back *atomic.Int32) {
	back = new(atomic.Int32)
	for i := range n {
		p := poller(i)
		go func() {
			if got, err := p.Wait(make([]Event, 1), -1); got == 1 && err == nil {
				back.Add(1)
			}
		}()
		g.until("a goroutine in Wait", func() bool { return p.waiters() > 0 })
	}
	return back
}

// TestPollerNoHerd: 64 goroutines wait for one socket; an event wakes one of them.
func TestPollerNoHerd(t *testing.T) {
	const n = 64
	g := newPollRig(t)
	var ps []*Poller
	for i := range n {
		ps = append(ps, NewPoller(g.r))
		g.p = ps[i]
		g.add(g.a, sockets.In|Exclusive, uint64(i))
	}
	back := g.herd(n, func(i int) *Poller { return ps[i] })
	waiting := func() (k int) {
		for _, p := range ps {
			k += p.waiters()
		}
		return k
	}
	for k := range 5 {
		g.datagram(7)
		if got := waiting(); got != n-1-k {
			t.Fatalf("%d goroutines wait after %d datagrams", got, k+1)
		}
		g.until("those that were woken", func() bool { return int(back.Load()) == k+1 })
		if ps[k].waiters() != 0 {
			t.Errorf("poller %d was passed over: the first in the queue is woken first", k)
		}
	}
	// Two that came in one turn are two events.
	g.deliver(g.udpFrame(7, nil))
	g.deliver(g.udpFrame(7, nil))
	g.settle()
	if got := waiting(); got != n-7 {
		t.Errorf("%d goroutines wait after two datagrams more", got)
	}
	// All others than those with Exclusive are told as well.
	g.p = NewPoller(g.r)
	g.add(g.b, sockets.In, 0)
	g.add(g.a, sockets.In|EdgeTriggered, 77)
	g.wait(1, Event{g.a, sockets.In, 77})
	c := g.waitOn(-1)
	g.awaitWaiters(1)
	g.datagram(7)
	await(t, "the one without Exclusive", c)
	if got := waiting(); got != n-8 {
		t.Errorf("%d goroutines wait after another datagram", got)
	}
	for _, p := range ps {
		p.Close()
	}
}

// TestPollerNoHerdInOne: the same with one poller, and edges: levels pass from waiter to waiter (TestPollerWaitChain).
func TestPollerNoHerdInOne(t *testing.T) {
	const n = 64
	g := newPollRig(t)
	g.add(g.a, sockets.In|EdgeTriggered, 1)
	back := new(atomic.Int32)
	for range n {
		go func() {
			if got, err := g.p.Wait(make([]Event, 1), -1); got == 1 && err == nil {
				back.Add(1)
			}
		}()
	}
	g.awaitWaiters(n)
	for k := range int32(5) {
		g.datagram(7)
		if got := g.p.waiters(); got != n-1-int(k) {
			t.Fatalf("%d goroutines wait after %d datagrams", got, k+1)
		}
		g.until("the one that was woken", func() bool { return back.Load() == k+1 })
	}
	g.p.Close()
}

// TestPollerWorkIsOfTheActive: a Wait looks at what is ready, however many sockets are there that are not.
func TestPollerWorkIsOfTheActive(t *testing.T) {
	few, many := lookedAt(t, 10), lookedAt(t, 1_000_000)
	if few != many || few == 0 {
		t.Errorf("Wait looked at %d sockets of 10, and at %d of a million", few, many)
	}
}

// fillWatches has n idle sockets in a poller, by their watches alone.
func (g *rig) fillWatches(p *Poller, n uint32) {
	for i := range n {
		*g.r.watches.slot(sockets.Handle(3<<56 | 1<<32 | uint64(i))) = watch{gen: 1, poller: p.id, mask: packMask(sockets.In)}
	}
}

// lookedAt has n idle sockets in a poller and one that is active, and counts what Wait looks at for 100 datagrams.
func lookedAt(t *testing.T, n uint32) uint64 {
	g := newPollRig(t)
	g.fillWatches(g.p, n)
	g.add(g.a, sockets.In, 1)
	before := g.p.looked
	for range 100 {
		g.datagram(7)
		g.wait(8, Event{g.a, sockets.In, 1})
		g.read(g.a)
		g.wait(8)
	}
	return g.p.looked - before
}

// TestPollerWaitExact: a running reactor keeps a limit below a millisecond, which Go's timers cannot when all is idle: it
// does not end early, and the reactor, asked to sleep until then, was.
func TestPollerWaitExact(t *testing.T) {
	g := &pollRig{rig: newRig(t, options{realTime: true})}
	g.p = NewPoller(g.r)
	g.run()
	best := time.Hour
	for range 200 {
		start := time.Now()
		n, err := g.p.Wait(make([]Event, 1), 150*time.Microsecond)
		took := time.Since(start)
		if n != 0 || err != nil || took < 150*time.Microsecond {
			t.Fatalf("Wait gave %d, %v after %v", n, err, took)
		}
		best = min(best, took)
	}
	t.Logf("the best of 200 waits of 150 µs took %v", best)
}

// TestPollerStateWakesAll: a change of state wakes all that have the socket with Exclusive, where data is for one: here for
// the first, which has a handler.
func TestPollerStateWakesAll(t *testing.T) {
	const n = 8
	_, rigs, socks := listening(t, 1, nil)
	g := &pollRig{rig: rigs[0], p: NewPoller(rigs[0].r)}
	c := &client{port: 5000}
	c.open(t, rigs, echoPort, 0, 0)
	_, conn := accept(t, rigs, socks)
	var handled []sockets.Ready
	g.enter(func(*sockets.Host, int64) {
		g.p.Serve(func(_ *sockets.Host, _ int64, e Event) { handled = append(handled, e.Ready) })
	})
	g.add(conn, sockets.In|Exclusive|EdgeTriggered, 0)
	var ps []*Poller
	for i := range n {
		g.p = NewPoller(g.r)
		ps = append(ps, g.p)
		g.add(conn, sockets.In|Exclusive, uint64(i))
	}
	back := g.herd(n, func(i int) *Poller { return ps[i] })
	g.deliver(c.frame(g.rig, echoPort, proto.ACK|proto.PSH, "hello"))
	g.settle()
	for i, p := range ps {
		if p.waiters() != 1 {
			t.Errorf("poller %d is woken by data that another one takes", i)
		}
	}
	g.deliver(c.frame(g.rig, echoPort, proto.ACK|proto.FIN, ""))
	g.settle()
	for i, p := range ps {
		if p.waiters() != 0 {
			t.Errorf("poller %d is not woken by the FIN", i)
			p.Wake()
		}
	}
	if !t.Failed() {
		g.until("all to come back", func() bool { return back.Load() == n })
	}
	if len(handled) != 2 {
		t.Errorf("the handler is called with %v", handled)
	}
}
