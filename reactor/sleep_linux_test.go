package reactor

import (
	"context"
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/sockets"
)

// newAsleep is a running reactor that sleeps, with a socket bound to echoPort and the peer known.
func newAsleep(t *testing.T) (g *rig, s sockets.Handle, stop func() error) {
	g = newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = 1 }})
	s = g.bind(echoPort)
	g.meet()
	stop = g.run()
	g.awaitAsleep()
	return g, s, stop
}

func (g *rig) counters() Counters {
	g.r.mu.Lock()
	defer g.r.mu.Unlock()
	return g.r.Counters()
}

// TestLeaveSendsInline: a sleeping reactor is not woken to send; whoever leaves does it.
func TestLeaveSendsInline(t *testing.T) {
	g, s, stop := newAsleep(t)
	// The timer that probes the peer after its first use has to be set already: to set it wakes the reactor.
	g.send(s)
	g.until("a sleep that the timer ends", func() bool { return g.r.asleep && g.r.until != foreverNS && g.r.until > g.r.now() })
	before := g.counters()
	const n = 10
	for range n {
		g.send(s)
		g.r.mu.Lock()
		if got := len(g.sent); got == 0 || len(g.sent[got-1]) != 14+28+5 {
			t.Fatalf("%d frames sent when Leave returned", got)
		}
		g.sent = nil
		g.r.mu.Unlock()
	}
	after := g.counters()
	if after.Turns != before.Turns || after.Signals != before.Signals || after.Kicks != before.Kicks+n {
		t.Errorf("sending %d datagrams on a sleeping reactor took %d turns, %d signals, %d kicks",
			n, after.Turns-before.Turns, after.Signals-before.Signals, after.Kicks-before.Kicks)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}

func (g *rig) send(s sockets.Handle) {
	g.t.Helper()
	g.enter(func(h *sockets.Host, now int64) {
		if err := h.UDPSend(s, []byte("hello"), peerPort, now); err != 0 {
			g.t.Fatal(err)
		}
	})
}

// TestLeaveSignalsEarlierDeadline: a timer that is due before the sleep ends wakes the reactor, which then runs it.
func TestLeaveSignalsEarlierDeadline(t *testing.T) {
	g := newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = 1 }})
	s := g.bind(echoPort)
	g.run()
	g.awaitAsleep()
	g.until("an endless sleep", func() bool { return g.r.asleep && g.r.until == foreverNS })
	before := g.counters()
	for range 5 {
		g.send(s) // the first asks for the peer: the next question is due in a second
	}
	if after := g.counters(); after.Signals != before.Signals+1 {
		t.Errorf("%d signals, want 1", after.Signals-before.Signals)
	}
	g.until("the second question", func() bool { return len(g.sent) >= 2 })
}

// TestLeaveServes: what a handler left over when it ran inside Leave, and a socket that was ready when it was added, are
// served without another event.
func TestLeaveServes(t *testing.T) {
	for _, asleep := range []bool{true, false} {
		g := newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = 1 }})
		s := g.bind(echoPort)
		const n = 5
		for range n {
			g.settle()
			g.deliver(g.udpFrame(echoPort, nil))
		}
		g.settle()
		var handled atomic.Int32
		p := NewPoller(g.r)
		if asleep {
			g.run()
			g.awaitAsleep()
		}
		g.enter(func(*sockets.Host, int64) {
			p.Serve(func(h *sockets.Host, _ int64, e Event) { // one datagram a call
				if _, err := h.UDPRecv(e.Sock, nil); err == 0 {
					handled.Add(1)
				}
			})
			if err := p.Add(s, sockets.In, 0); err != nil {
				t.Fatal(err)
			}
		})
		if !asleep {
			if !g.r.poked.Load() {
				t.Error("an awake reactor is not told of a socket that is ready and has a handler")
			}
			g.run()
		}
		g.until("all datagrams to be handled", func() bool { return handled.Load() == n })
	}
}

// TestNoLostWakeup: senders, a reactor that falls asleep at every chance, and a waiter that must see every datagram.
func TestNoLostWakeup(t *testing.T) {
	g := newRig(t, options{realTime: true, frames: 1024, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = 1 }})
	s := g.bind(echoPort)
	g.meet()
	p := NewPoller(g.r)
	g.enter(func(*sockets.Host, int64) {
		if err := p.Add(s, sockets.In, 0); err != nil {
			t.Fatal(err)
		}
	})
	stop := g.run()
	const n = 2000
	got := make(chan int, n)
	go func() {
		defer close(got)
		buf := make([]Event, 1)
		for range n {
			if k, err := p.Wait(buf, -1); k != 1 || err != nil {
				return
			}
			h, now, ok := g.r.Enter()
			if !ok {
				return
			}
			_, err := h.UDPRecv(s, nil)
			if err == 0 {
				err = h.UDPSend(s, nil, peerPort, now)
			}
			g.r.Leave()
			if err == 0 {
				got <- 1
			}
		}
	}()
	for i := range n {
		if i%100 == 0 {
			g.awaitAsleep()
		}
		g.r.mu.Lock() // the device is this goroutine's and the reactor's
		ok := g.nic.Deliver(g.udpFrame(echoPort, nil))
		g.r.mu.Unlock()
		g.r.wake.signal() // as the device's interrupt does
		if !ok {
			t.Fatal("the NIC dropped a frame")
		}
		if await(t, "the echo", got) != 1 {
			t.Fatalf("the waiter ended after %d datagrams", i)
		}
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if c := g.counters(); c.Sleeps == 0 || c.RxFrames != n+1 || c.TxFrames < n {
		t.Errorf("counted %+v", c)
	}
}

// TestNoSleepWithWork: what came between the last turn and the sleep keeps the reactor awake; or this test hangs.
func TestNoSleepWithWork(t *testing.T) {
	g := newRig(t, options{realTime: true})
	s := g.bind(echoPort)
	g.settle()
	g.r.poked.Store(true)
	g.r.own.sleep()
	g.settle()
	g.send(s)
	g.r.own.sleep()
	g.settle()
	g.r.Stop()
	g.r.wake.drain()
	g.r.own.sleep()
	if n := g.r.counters.Sleeps; n != 0 {
		t.Errorf("%d sleeps", n)
	}
}

// TestWakeByDevice: the reactor sleeps on the device's fd as well.
func TestWakeByDevice(t *testing.T) {
	g := newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = 1 }})
	irq, err := newEventFD()
	if err != nil {
		t.Fatal(err)
	}
	defer irq.close()
	g.dev.fd = irq.fd
	s := g.bind(echoPort)
	g.run()
	for range 20 {
		g.awaitAsleep()
		g.r.mu.Lock()
		ok := g.nic.Deliver(g.udpFrame(echoPort, nil))
		g.r.mu.Unlock()
		if !ok {
			t.Fatal("the NIC dropped a frame")
		}
		irq.signal()
		g.until("the datagram", func() bool { return g.host.Ready(s)&sockets.In != 0 })
		irq.drain()
		g.enter(func(h *sockets.Host, _ int64) {
			if _, err := h.UDPRecv(s, nil); err != 0 {
				t.Error(err)
			}
		})
	}
}

// TestDeadDeviceFD: a socket whose device was taken away polls as ready for ever; the reactor rests all the same, and
// can be woken.
func TestDeadDeviceFD(t *testing.T) {
	g := newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = 1 }})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	w.Close() // POLLHUP from now on
	g.dev.fd = int(r.Fd())
	g.bind(echoPort)
	g.settle()
	rested := false
	for i := 0; !rested && i < 1000; i++ { // a signal of the Go runtime may end a sleep early
		start := time.Now()
		g.r.own.sleep()
		rested = time.Since(start) >= downRetryNS
	}
	if !rested {
		t.Error("a reactor without a device does not rest")
	}
	g.r.wake.signal()
	g.r.own.sleep()
	var fds = []unix.PollFd{{Fd: int32(g.r.wake.fd), Events: unix.POLLIN}}
	n, err := unix.Poll(fds, 0)
	for err == unix.EINTR {
		n, err = unix.Poll(fds, 0)
	}
	if n != 0 || err != nil {
		t.Errorf("the signal was not taken: %d, %v", n, err)
	}
}

// TestStop: Stop, Fail and a cancelled context wake a sleeping reactor, and with it everybody who waits.
func TestStop(t *testing.T) {
	gone := errors.New("the interface is gone")
	for _, c := range []struct {
		name string
		end  func(r *Reactor, cancel func())
		want error
	}{
		{"Stop", func(r *Reactor, _ func()) { r.Stop() }, nil},
		{"Fail", func(r *Reactor, _ func()) { r.Fail(gone); r.Stop(); r.Fail(errors.New("second")) }, gone},
		{"context", func(_ *Reactor, cancel func()) { cancel() }, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = 1 }})
			s := g.bind(echoPort)
			told := make(chan sockets.Ready, 1)
			g.enter(func(*sockets.Host, int64) { g.r.Watch(s, sinkFunc(func(r sockets.Ready) { told <- r })) })
			ctx, cancel := context.WithCancel(context.Background())
			defer cancel()
			ran := make(chan error, 1)
			go func() { ran <- g.r.Run(ctx) }()
			ended := make(chan error, 4)
			for range 2 {
				p := NewPoller(g.r)
				for range 2 {
					go func() {
						_, err := p.Wait(make([]Event, 1), -1)
						ended <- err
					}()
				}
			}
			g.awaitAsleep()
			c.end(g.r, cancel)
			if err := await(t, "the end of Run", ran); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("Run: %v, want %v", err, c.want)
			}
			for range 4 {
				if err := await(t, "the end of Wait", ended); !errors.Is(err, ErrClosed) {
					t.Errorf("Wait: %v", err)
				}
			}
			if r := await(t, "the sink", told); r&(sockets.Err|sockets.Hup) != sockets.Err|sockets.Hup {
				t.Errorf("the sink was told %#x", r)
			}
			if err := g.r.Run(context.Background()); !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("Run after the end: %v, want %v", err, c.want)
			}
		})
	}
}

type sinkFunc func(sockets.Ready)

func (f sinkFunc) Ready(_ sockets.Handle, r sockets.Ready) bool { f(r); return true }

// TestSpinAdapts: after a sleep that was shorter than spinning would have been it spins longer, after a long one shorter.
func TestSpinAdapts(t *testing.T) {
	const limit = int64(80_000)
	var slept, now int64
	calls := 0
	g := newRig(t, options{change: func(c *Config, _ *sockets.Config) {
		c.MaxSpin = time.Duration(limit)
		c.Clock = func() int64 {
			if calls++; calls%2 == 0 { // before and after ppoll
				now += slept
			}
			return now
		}
	}})
	sleep := func(ns, want int64) {
		t.Helper()
		g.r.wake.signal() // ends it at once
		slept, calls = ns, 0
		g.r.own.sleep()
		if g.r.own.spinNS != want {
			t.Errorf("after a sleep of %d ns it spins for %d, want %d", ns, g.r.own.spinNS, want)
		}
	}
	if g.r.own.spinNS != maxSpinNS {
		t.Errorf("it begins with %d ns, want %d", g.r.own.spinNS, maxSpinNS)
	}
	sleep(2*limit-1, limit)
	sleep(1000, limit) // the limit
	sleep(2*limit, limit)
	sleep(20*limit, limit)
	sleep(20*limit+1, limit/2)
	sleep(1e9, limit/4)
	sleep(1e9, minSpinNS)
	sleep(1e9, minSpinNS) // never less
	sleep(limit, 2*minSpinNS)
	if c := g.r.counters; c.Sleeps != 9 {
		t.Errorf("%d sleeps are counted, want 9", c.Sleeps)
	}
}

// TestSpinNever: a negative MaxSpin never sleeps, and does a turn now and then for the timers.
func TestSpinNever(t *testing.T) {
	g := newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = -1 }})
	stop := g.run()
	g.until("ten turns", func() bool { return g.r.counters.Turns > 10 })
	if err := stop(); err != nil {
		t.Error(err)
	}
	if c := g.counters(); c.Sleeps != 0 {
		t.Errorf("%d sleeps", c.Sleeps)
	}
}

// TestPinned: a reactor that is locked to a CPU runs there, and a CPU that is not there is an error.
func TestPinned(t *testing.T) {
	var set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &set); err != nil {
		t.Fatal(err)
	}
	cpu := 0
	for !set.IsSet(cpu) {
		cpu++
	}
	var on unix.CPUSet
	g := newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.Pin, c.CPU = true, cpu }})
	p := NewPoller(g.r)
	s := g.bind(echoPort)
	ran := make(chan error, 1)
	g.enter(func(*sockets.Host, int64) {
		p.Serve(func(h *sockets.Host, _ int64, e Event) {
			ran <- unix.SchedGetaffinity(0, &on)
			if _, err := h.UDPRecv(s, nil); err != 0 {
				t.Error(err)
			}
		})
		if err := p.Add(s, sockets.In, 0); err != nil {
			t.Fatal(err)
		}
	})
	g.settle()
	g.deliver(g.udpFrame(echoPort, nil))
	stop := g.run()
	if err := await(t, "the handler", ran); err != nil {
		t.Error(err)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	if on.Count() != 1 || !on.IsSet(cpu) {
		t.Errorf("it runs on %d CPUs, want CPU %d alone", on.Count(), cpu)
	}
	g = newRig(t, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.Pin, c.CPU = true, 1000 }})
	if err := g.r.Run(context.Background()); !errors.Is(err, unix.EINVAL) {
		t.Errorf("pinned to CPU 1000: %v", err)
	}
}
