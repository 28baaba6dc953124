package reactor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"xdpd/sockets"
	"xdpd/umem"
)

// newRigs is n rigs over one region, whose Hosts have one directory. They are not joined.
func newRigs(t testing.TB, n int, o options) (rigs []*rig, reactors []*Reactor, ledger *umem.Ledger) {
	t.Helper()
	const frames = 512
	o.frames, o.ring = frames, 64
	o.region = newRegion(t, n*frames)
	if !o.noLedger {
		o.ledger = umem.NewLedger(n * frames)
	}
	dir := sockets.NewDirectory()
	change := o.change
	for i := range n {
		o.first = umem.Frame(i * frames)
		o.change = func(c *Config, h *sockets.Config) {
			h.Directory, h.Self = dir, i
			if change != nil {
				change(c, h)
			}
		}
		g := newRig(t, o)
		rigs, reactors = append(rigs, g), append(reactors, g.r)
	}
	return rigs, reactors, o.ledger
}

// TestHandOver: datagrams for a socket of one reactor that come in on the other arrive, in order, without an allocation and
// without a frame lost, however many more there are than the lanes hold.
func TestHandOver(t *testing.T) {
	rigs, reactors, ledger := newRigs(t, 2, options{})
	if _, err := NewGroup(reactors, GroupConfig{}); err != nil {
		t.Fatal(err)
	}
	a, b := rigs[0], rigs[1]
	s := b.bind(echoPort)
	a.settle()
	b.settle()
	next := uint32(0)
	var payload [4]byte
	buf := make([]byte, 100)
	for range 2000 {
		for i := range uint32(20) {
			binary.BigEndian.PutUint32(payload[:], next+i)
			a.deliver(a.udpFrame(echoPort, payload[:]))
		}
		a.settle()
		b.settle()
		b.enter(func(h *sockets.Host, now int64) {
			for range 20 {
				d, errno := h.UDPRecv(s, buf)
				if got := binary.BigEndian.Uint32(buf); errno != 0 || d.N != 4 || got != next {
					t.Fatalf("datagram %d: %v, %d", next, errno, got)
				}
				next++
			}
		})
	}
	if got := b.host.Counters().Stats[sockets.HandedIn]; got != 40_000 {
		t.Errorf("%d counted as handed in", got)
	}
	a.settle()
	if counts := ledger.Counts(); counts[umem.Handed] > laneFrames || counts[umem.Held] != 0 {
		t.Errorf("frames by owner: %v", counts)
	}
}

// TestHandOverFull: a reactor that does not run costs its peer no more than the lane holds; what is too much is dropped and
// counted, and nothing is lost of what was let in.
func TestHandOverFull(t *testing.T) {
	rigs, reactors, ledger := newRigs(t, 2, options{})
	if _, err := NewGroup(reactors, GroupConfig{}); err != nil {
		t.Fatal(err)
	}
	a, b := rigs[0], rigs[1]
	s := b.bind(echoPort)
	a.settle()
	for range 400 {
		a.deliver(a.udpFrame(echoPort, []byte("x")))
		a.settle()
	}
	full := a.host.Counters().Drops[sockets.HandoverFull]
	if want := uint64(400 - a.pool.Total()/4); full != want {
		t.Errorf("%d dropped on the way, want %d", full, want)
	}
	b.settle()
	got := 0
	b.enter(func(h *sockets.Host, _ int64) {
		for buf := make([]byte, 10); ; got++ {
			if _, errno := h.UDPRecv(s, buf); errno != 0 {
				break
			}
		}
	})
	if uint64(got)+full != 400 {
		t.Errorf("%d arrived and %d were dropped, of 400", got, full)
	}
	a.deliver(a.udpFrame(echoPort, []byte("x"))) // and has the frames back that came in return
	a.settle()
	b.settle()
	if n := ledger.Counts()[umem.Handed]; n > 1 {
		t.Errorf("%d frames are still under way", n)
	}
}

// TestHandOverWakes: a packet for a reactor that sleeps wakes it.
func TestHandOverWakes(t *testing.T) {
	rigs, reactors, _ := newRigs(t, 2, options{realTime: true, change: func(c *Config, _ *sockets.Config) { c.MaxSpin = 1 }})
	g, err := NewGroup(reactors, GroupConfig{})
	if err != nil {
		t.Fatal(err)
	}
	a, b := rigs[0], rigs[1]
	s := b.bind(echoPort)
	done := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { done <- g.Run(ctx) }()
	for i := range 200 {
		b.awaitAsleep()
		a.enter(func(*sockets.Host, int64) { a.deliver(a.udpFrame(echoPort, []byte("x"))) }) // its lock: one deliverer at a time
		a.r.wake.signal()                                                                    // the simulated NIC has no fd
		b.until(fmt.Sprintf("datagram %d", i), func() bool {
			_, errno := b.host.UDPRecv(s, make([]byte, 10))
			return errno == 0
		})
	}
	cancel()
	if err := await(t, "the end of Run", done); err != nil {
		t.Error(err)
	}
}

// TestResize: the number of loops changes all the time, and no datagram that was let in is lost or comes twice.
func TestResize(t *testing.T) {
	rigs, reactors, ledger := newRigs(t, 4, options{realTime: true})
	g, err := NewGroup(reactors, GroupConfig{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	s := rigs[3].bind(echoPort)
	done := make(chan error, 1)
	go func() { done <- g.Run(t.Context()) }()
	const n, least = 3000, 1000
	var arrived atomic.Uint32
	go func() {
		for i := 0; i < n || arrived.Load() < least; i++ {
			if err := g.Resize(1 + i%4); err != nil {
				t.Error(err)
				return
			}
			if i%64 == 0 {
				time.Sleep(time.Millisecond)
			}
		}
		g.Stop()
	}()
	var payload [4]byte
	sent, got := uint32(0), uint32(0)
	buf := make([]byte, 10)
	receive := func() {
		h, _, _ := rigs[3].r.Enter()
		for {
			if _, errno := h.UDPRecv(s, buf); errno != 0 {
				break
			}
			if at := binary.BigEndian.Uint32(buf); at != got {
				t.Errorf("datagram %d after %d", at, got)
			}
			got++
		}
		arrived.Store(got)
		rigs[3].r.Leave()
	}
	a := rigs[0]
	var ended error
	for running := true; running; {
		select {
		case ended = <-done:
			running = false
		default:
		}
		if sent < got+32 {
			a.r.Enter()
			binary.BigEndian.PutUint32(payload[:], sent)
			if a.nic.Deliver(a.udpFrame(echoPort, payload[:])) {
				sent++
			}
			a.r.Leave()
			a.r.wake.signal()
		}
		receive()
		runtime.Gosched() // there may be one CPU for all
	}
	if ended != nil {
		t.Error(ended)
	}
	for _, r := range reactors { // what was under way when they stopped
		r.stopped = false
	}
	for range 10 {
		for _, g := range rigs {
			g.settle()
		}
		receive()
	}
	if got != sent || got < least {
		t.Errorf("%d of %d datagrams arrived", got, sent)
	}
	if n := ledger.Counts()[umem.Held]; n != 0 {
		t.Errorf("%d frames are held", n)
	}
	if g.Loops() != 4 {
		t.Errorf("%d loops", g.Loops())
	}
}

// TestGroupFails: one reactor's failure ends all, and Run says why.
func TestGroupFails(t *testing.T) {
	_, reactors, _ := newRigs(t, 3, options{realTime: true})
	g, err := NewGroup(reactors, GroupConfig{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- g.Run(t.Context()) }()
	broken := errors.New("gone")
	reactors[1].Fail(broken)
	if err := await(t, "the end of Run", done); !errors.Is(err, broken) {
		t.Errorf("Run: %v", err)
	}
	for i, r := range reactors {
		if _, _, ok := r.Enter(); ok {
			t.Errorf("reactor %d still runs", i)
		}
		r.Leave()
	}
	if err := g.Resize(1); !errors.Is(err, ErrStopped) {
		t.Errorf("Resize afterwards: %v", err)
	}
}

// TestGroupRefuses what cannot be.
func TestGroupRefuses(t *testing.T) {
	_, reactors, _ := newRigs(t, 2, options{})
	for want, cfg := range map[string]GroupConfig{
		"3 loops for 2 queues":  {Loops: 3},
		"-1 loops":              {Loops: -1},
		"2 loops and 1 CPUs to": {CPUs: []int{0}},
	} {
		if _, err := NewGroup(reactors, cfg); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", cfg, err)
		}
	}
	if _, err := NewGroup(nil, GroupConfig{}); err == nil {
		t.Error("a group of none")
	}
	g, err := NewGroup(reactors, GroupConfig{})
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Resize(3); err == nil || g.Loops() != 2 {
		t.Errorf("Resize to 3: %v, %d loops", err, g.Loops())
	}
	if err := g.Resize(1); err != nil || g.Loops() != 1 {
		t.Errorf("Resize before Run: %v, %d loops", err, g.Loops())
	}
}
