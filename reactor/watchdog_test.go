package reactor

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
)

// watched is a group of two that runs, with a watchdog.
func watched(t *testing.T, spread Spread) (rigs []*rig, stalls chan Stall) {
	t.Helper()
	rigs, reactors, _ := newRigs(t, 2, options{realTime: true})
	for _, k := range rigs {
		k.meet()
	}
	stalls = make(chan Stall, 64)
	// Long enough that a machine with other things to do is not taken for a handler.
	g, err := NewGroup(reactors, GroupConfig{Stall: 300 * time.Millisecond, Stalled: func(s Stall) { stalls <- s }})
	if err != nil {
		t.Fatal(err)
	}
	if spread != nil {
		if _, err := g.Listen(0, echoPort, spread); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := await(t, "the end of Run", done); err != nil {
			t.Error(err)
		}
	})
	return rigs, stalls
}

// put delivers a frame to a running reactor.
func (g *rig) put(frame func() []byte) {
	g.r.Enter()
	g.deliver(frame())
	g.r.Leave()
	g.r.wake.signal()
}

// expect waits for the one stall of the reactor, whose handler's name ends so, and lets go of it.
func expect(t *testing.T, g *rig, stalls chan Stall, reactor int, name string, release chan struct{}) {
	t.Helper()
	told, wanted := uint64(0), 0
	take := func(s Stall) {
		t.Logf("the watchdog tells %+v", s) // perhaps of a turn that the machine kept waiting
		if s.Reactor != reactor {
			return
		}
		told++
		if strings.HasSuffix(s.Handler, name) && (name == "") == (s.Handler == "") && s.For >= 300*time.Millisecond {
			wanted++
		}
	}
	for wanted == 0 {
		take(await(t, "the watchdog", stalls))
	}
	time.Sleep(900 * time.Millisecond) // time to tell it again
	close(release)
	g.until("the count", func() bool {
		for len(stalls) > 0 {
			take(<-stalls)
		}
		return g.r.Counters().Stalls == told
	})
	if wanted != 1 {
		t.Errorf("%q on reactor %d is told %d times", name, reactor, wanted)
	}
}

// TestStallPoller: a handler that blocks is named, once; on the other reactor goes on what does not.
func TestStallPoller(t *testing.T) {
	rigs, stalls := watched(t, nil)
	release := make(chan struct{})
	p := NewPoller(rigs[1].r)
	s := rigs[1].bind(echoPort)
	rigs[1].enter(func(*sockets.Host, int64) {
		p.Serve(blockOn(release).handle)
		if err := p.Add(s, sockets.In|EdgeTriggered, 0); err != nil {
			t.Fatal(err)
		}
	})
	other := rigs[0].bind(echoPort + 1)
	rigs[1].put(func() []byte { return rigs[1].udpFrame(echoPort, []byte("x")) })
	rigs[0].put(func() []byte { return rigs[0].udpFrame(echoPort+1, []byte("x")) })
	rigs[0].until("the datagram", func() bool {
		_, errno := rigs[0].host.UDPRecv(other, make([]byte, 1))
		return errno == 0
	})
	expect(t, rigs[1], stalls, 1, ".blockOn.handle", release)
}

// blockOn is a handler that waits for a channel.
type blockOn chan struct{}

func (c blockOn) handle(*sockets.Host, int64, Event) { <-c }
func (c blockOn) complete(rings.CQE)                 { <-c }

// TestStallRing: the same for a handler of completions.
func TestStallRing(t *testing.T) {
	rigs, stalls := watched(t, nil)
	release := make(chan struct{})
	q, err := NewRing(rigs[0].r, RingConfig{})
	if err != nil {
		t.Fatal(err)
	}
	c := q.Client()
	entered := make(chan struct{})
	go func() { // where the reactor sleeps, the handler runs on this thread, and blocks it
		defer close(entered)
		rigs[0].enter(func(*sockets.Host, int64) {
			c.Serve(blockOn(release).complete)
			c.SQE() // a zero one is OpNop
			c.Submit()
		})
	}()
	expect(t, rigs[0], stalls, 0, ".blockOn.complete", release)
	await(t, "the end of Leave", entered)
}

// TestStallSpread: the same for the function that chooses a reactor.
func TestStallSpread(t *testing.T) {
	release := make(chan struct{})
	rigs, stalls := watched(t, By(func(netip.AddrPort) int { <-release; return 0 }))
	p := &client{port: 5000}
	rigs[0].put(func() []byte { return p.frame(rigs[0], echoPort, proto.SYN, "") })
	rigs[0].until("the SYN-ACK", func() bool {
		h, ok := p.answer(rigs[:1])
		p.ack = h.Seq + 1
		return ok
	})
	rigs[0].put(func() []byte { return p.frame(rigs[0], echoPort, proto.ACK, "") })
	expect(t, rigs[0], stalls, 0, ".TestStallSpread.func1", release)
}

// TestStallLock: who keeps the lock stalls the reactor as well, and is no handler.
func TestStallLock(t *testing.T) {
	rigs, stalls := watched(t, nil)
	release := make(chan struct{})
	go func() {
		rigs[0].r.Enter()
		rigs[0].r.wake.signal()
		<-release
		rigs[0].r.Leave()
	}()
	expect(t, rigs[0], stalls, 0, "", release)
}

// TestStallAsleep: a handler that runs on the thread of who woke nobody is told of once, not for the sleeper as well.
func TestStallAsleep(t *testing.T) {
	rigs, stalls := watched(t, nil)
	release := make(chan struct{})
	p := NewPoller(rigs[0].r)
	s := rigs[0].bind(echoPort)
	rigs[0].enter(func(*sockets.Host, int64) {
		p.Serve(blockOn(release).handle)
		if err := p.Add(s, sockets.Out|EdgeTriggered, 0); err != nil {
			t.Fatal(err)
		}
	})
	expect(t, rigs[0], stalls, 0, ".blockOn.handle", release)
}
