package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
)

// face is a way in which an application learns of an event, with what the connections are in for it. start makes it the
// one that a runs by; stop is called when no event is under way.
type face struct {
	name  string
	ring  bool // the connections are a Ring's, not a Poller's
	start func(a *latApp) (stop func() error)
}

func (f face) String() string { return f.name }

var faces = []face{
	{"serve", false, (*latApp).serve},         // Poller.Serve: a handler on the reactor
	{"wait", false, (*latApp).wait},           // Poller.Wait in another goroutine
	{"ring-serve", true, (*latApp).ringServe}, // RingClient.Serve: a handler of completions on the reactor
	{"ring-wait", true, (*latApp).ringWait},   // RingClient.Wait in another goroutine
}

// latApp reads what came in and notes how old it is.
type latApp struct {
	c    *crowd
	hist *hdrhistogram.Histogram
	got  atomic.Int64
	buf  [4096]byte

	mu      sync.Mutex
	failure error // the first
}

// newLatHist is for 1 ns to a minute, to three digits.
func newLatHist() *hdrhistogram.Histogram { return hdrhistogram.New(1, int64(time.Minute), 3) }

// note takes data that a handler found at a time. It comes last: who sees the count may go on.
func (a *latApp) note(at int64, data []byte) {
	if len(data)%crowdData != 0 {
		a.fail(fmt.Errorf("%d bytes came together", len(data)))
		return
	}
	n := int64(len(data) / crowdData)
	for ; len(data) > 0; data = data[crowdData:] {
		if err := a.hist.RecordValue(at - stampOf(data)); err != nil {
			a.fail(err)
		}
	}
	a.got.Add(n)
}

func (a *latApp) fail(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.failure == nil && err != nil {
		a.failure = err
	}
}

func (a *latApp) failed() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.failure
}

// take is the Poller's handler. Its time is that of its start, before it reads.
func (a *latApp) take(h *sockets.Host, now int64, e reactor.Event) {
	at := a.c.now()
	n, errno := h.TCPRead(e.Sock, a.buf[:], now)
	if errno != 0 {
		a.fail(fmt.Errorf("connection %d: %w", e.Data, errno))
		return
	}
	a.note(at, a.buf[:n])
}

// complete is the Ring's.
func (a *latApp) complete(cqe rings.CQE) {
	at := a.c.now()
	if cqe.UserData == ringAccept { // the NOP of ringWait
		return
	}
	data, err := a.c.ring.taken(cqe)
	if err != nil {
		a.fail(err)
		return
	}
	n := copy(a.buf[:], data)
	a.fail(a.c.ring.release(cqe))
	a.note(at, a.buf[:n])
}

func (a *latApp) serve() (stop func() error) {
	return a.locked(func() { a.c.p.Serve(a.take) }, func() { a.c.p.Serve(nil) })
}

func (a *latApp) ringServe() (stop func() error) {
	return a.locked(func() { a.c.ring.client.Serve(a.complete) }, func() { a.c.ring.client.Serve(nil) })
}

// locked does something now and something at the end, both with the reactor's lock.
func (a *latApp) locked(begin, end func()) (stop func() error) {
	do := func(f func()) {
		a.c.r.Enter()
		defer a.c.r.Leave()
		f()
	}
	do(begin)
	return func() error {
		do(end)
		return nil
	}
}

func (a *latApp) wait() (stop func() error) {
	buf := make([]reactor.Event, 64)
	return a.loop(func() error {
		n, err := a.c.p.Wait(buf, -1)
		h, now, _ := a.c.r.Enter()
		defer a.c.r.Leave()
		for _, e := range buf[:n] {
			a.take(h, now, e)
		}
		return err
	}, func() error {
		a.c.p.Wake()
		return nil
	})
}

func (a *latApp) ringWait() (stop func() error) {
	buf := make([]rings.CQE, 64)
	return a.loop(func() error {
		_, err := a.c.ring.client.Wait(1, -1)
		for _, cqe := range buf[:a.c.ring.client.Reap(buf)] {
			a.complete(cqe)
		}
		return err
	}, func() error {
		return a.c.ring.push(rings.SQE{Opcode: rings.OpNop, UserData: ringAccept})
	})
}

// loop calls step in another goroutine until stop, which calls wake.
func (a *latApp) loop(step, wake func() error) (stop func() error) {
	var over atomic.Bool
	done := make(chan error, 1)
	go func() {
		for !over.Load() {
			if err := step(); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return func() error {
		over.Store(true)
		if err := wake(); err != nil {
			return err
		}
		return <-done
	}
}
