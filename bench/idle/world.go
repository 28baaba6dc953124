package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"runtime/debug"
	"strings"
	"time"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
	"xdpd/umem"
)

// world is a reactor with its Host, an application that echoes on it, and the peer. It runs in the caller's goroutine,
// which is locked to its thread.
type world struct {
	link    link
	host    *sockets.Host
	r       *reactor.Reactor
	p       *reactor.Poller
	peer    *peer
	app     app
	send    func([]byte) error
	take    func([]byte)
	stepNS  int64         // virtual time of a turn
	longest time.Duration // turn of the reactor, in CPU time: others may run on the machine
}

// app is a server as the cheapest documented way makes it: one handler on the reactor for all sockets.
type app struct {
	p       *reactor.Poller
	conns   []sockets.Handle // in the order of Accept; made with room for all
	setup   func(h *sockets.Host, s sockets.Handle, now int64) sockets.Errno
	buf     [4096]byte
	failure error
}

const (
	frames    = 16384
	ringSize  = 2048
	stepLimit = 192 // frames into a turn, whose budget is 256
	listener  = ^uint64(0)
)

var errDropped = errors.New("the link dropped a frame")

// newWorld has room for conns connections. change may set limits. One more has come and gone: what there is only once is
// there.
func newWorld(conns int, veth bool, change func(*sockets.Config)) (w *world, err error) {
	runtime.LockOSThread()
	region, err := umem.New(umem.Options{Frames: frames, ChunkSize: 2048})
	if err != nil {
		return nil, err
	}
	w = &world{stepNS: 20_000}
	if !veth {
		w.link = newSimLink(region)
	} else if w.link, err = newVethLink(region); err != nil {
		return nil, err
	}
	pool := umem.NewPool(region, 0, frames, nil)
	cfg := sockets.Config{
		MAC: w.link.mac(), MTU: 1500, Addrs: []sockets.Prefix{{Addr: ourAddr, Bits: 24}},
		Routes: []sockets.Route{{Gateway: gateway}}, MaxConns: 2 * conns, Backlog: 4096,
	}
	if change != nil {
		change(&cfg)
	}
	if w.host, err = sockets.New(cfg, pool, w.link.now()); err != nil {
		return nil, err
	}
	w.r, err = reactor.New(reactor.Config{Port: w.link.port(), Pool: pool, Host: w.host, Clock: w.link.now})
	if err != nil {
		return nil, err
	}
	w.p = reactor.NewPoller(w.r)
	w.peer = newPeer(conns+1, w.link.mac(), w.link.now)
	w.send, w.take = w.link.send, w.peer.take
	w.app = app{p: w.p, conns: make([]sockets.Handle, conns+1)}
	for i := range w.app.conns {
		w.app.conns[i] = 1 // touched
	}
	w.app.conns = w.app.conns[:0]
	return w, errors.Join(w.start(), w.warmUp(conns))
}

func (w *world) close() error {
	runtime.UnlockOSThread()
	return errors.Join(w.r.Close(), w.link.close())
}

// start opens the listener and lets the gateway announce itself until it is answered: an interface that was just set up
// may drop everything for a second (net/core/link_watch.c).
func (w *world) start() error {
	h, _, _ := w.r.Enter()
	s, errno := h.TCPListen(0, ourPort)
	if errno != 0 {
		return errno
	}
	w.p.Serve(w.app.handle)
	if err := w.p.Add(s, sockets.In, listener); err != nil {
		return err
	}
	w.r.Leave()
	for give := time.Now().Add(patience); !w.peer.met; {
		if time.Now().After(give) {
			return errors.New("no answer to ARP")
		}
		w.step()
		if err := w.send(w.peer.arp(proto.ARPRequest)); err != nil {
			return err
		}
		w.step()
	}
	return nil
}

// warmUp opens a connection, uses it, and has the peer close it.
func (w *world) warmUp(conn int) error {
	next := w.syns(conn, conn+1)
	if err := w.run(next, func() (int, bool) { return len(w.app.conns), len(w.app.conns) == 1 }); err != nil {
		return err
	}
	request := func(flags uint8, n int) func() []byte {
		w.peer.flows[conn].want = uint32(n)
		return func() (frame []byte) {
			if flags != 0 {
				frame, flags = w.peer.segment(conn, flags, n), 0
			}
			return frame
		}
	}
	if err := w.run(request(proto.ACK|proto.PSH, 1), func() (int, bool) { return 0, w.peer.replies == 1 }); err != nil {
		return err
	}
	if err := w.run(request(proto.ACK|proto.FIN, 0), func() (int, bool) { return 0, w.peer.closed == 1 }); err != nil {
		return err
	}
	w.app.conns = w.app.conns[:0]
	return w.rest(100e6)
}

func (a *app) handle(h *sockets.Host, now int64, e reactor.Event) {
	if e.Data == listener {
		for {
			s, errno := h.TCPAccept(e.Sock)
			if errno != 0 {
				return
			}
			a.conns = append(a.conns, s)
			if err := a.p.Add(s, sockets.In, uint64(len(a.conns)-1)); err != nil {
				a.fail(err)
			}
			if a.setup != nil {
				if errno := a.setup(h, s, now); errno != 0 {
					a.fail(errno)
				}
			}
		}
	}
	n, errno := h.TCPRead(e.Sock, a.buf[:], now)
	if errno != 0 || n == 0 {
		h.Close(e.Sock, now)
		return
	}
	if k, errno := h.TCPWrite(e.Sock, a.buf[:n], now); k != n || errno != 0 {
		a.fail(fmt.Errorf("TCPWrite took %d of %d bytes: %w", k, n, errno))
	}
}

func (a *app) fail(err error) {
	if a.failure == nil {
		a.failure = err
	}
}

// step is one turn of the reactor.
func (w *world) step() {
	w.link.pass(w.stepNS)
	start := threadTime()
	w.r.Turn()
	w.longest = max(w.longest, threadTime()-start)
	w.link.receive(w.take)
}

// patience is how long a run may bring nothing new.
const patience = 10 * time.Second

// run steps until done.
func (w *world) run(next func() []byte, progress func() (count int, done bool)) error {
	last, since := -1, time.Now()
	for {
		count, done := progress()
		if done && len(w.peer.answers) == 0 {
			w.step()
			return errors.Join(w.app.failure, w.peer.fault)
		}
		if count != last {
			last, since = count, time.Now()
		} else if time.Since(since) > patience {
			return fmt.Errorf("stuck at %d; the peer saw %d resets; %s", count, w.peer.resets, w.counters())
		}
		if err := w.peer.feed(stepLimit, w.send, next); err != nil {
			return err
		}
		w.step()
		if w.app.failure != nil {
			return w.app.failure
		}
	}
}

// rest lets time pass without anything new from the peer, which answers what comes.
func (w *world) rest(ns int64) error {
	for end := w.link.now() + ns; w.link.now() < end || len(w.peer.answers) > 0; {
		if len(w.peer.answers) == 0 {
			w.link.pass(1_000_000)
		}
		if err := w.peer.feed(stepLimit, w.send, nil); err != nil {
			return err
		}
		w.step()
	}
	return errors.Join(w.app.failure, w.peer.fault)
}

// syns has the peer open the connections from..to, and gives the frames one by one.
func (w *world) syns(from, to int) func() []byte {
	return func() []byte {
		if from == to {
			return nil
		}
		from++
		return w.peer.segment(from-1, proto.SYN, 0)
	}
}

// establish opens the connections from..to.
func (w *world) establish(from, to int) error {
	return w.run(w.syns(from, to), func() (int, bool) { return len(w.app.conns), len(w.app.conns) >= to })
}

// halfOpen sends SYNs whose SYN-ACKs the peer does not answer.
func (w *world) halfOpen(from, to int) error {
	w.peer.silent = true
	before := w.peer.synAcks
	return w.run(w.syns(from, to), func() (int, bool) {
		return w.peer.synAcks, w.peer.synAcks-before == to-from
	})
}

// requests sends size bytes on k connections at random and waits for their echo, at most window of them under way.
func (w *world) requests(k, size int, rng *rand.Rand) error {
	const window = 64
	sent, before := 0, w.peer.replies
	next := func() []byte {
		if sent == k || sent-(w.peer.replies-before) >= window {
			return nil
		}
		conn := rng.IntN(len(w.app.conns))
		for w.peer.flows[conn].want > 0 {
			conn = rng.IntN(len(w.app.conns))
		}
		sent++
		w.peer.flows[conn].want = uint32(size)
		return w.peer.segment(conn, proto.ACK|proto.PSH, size)
	}
	return w.run(next, func() (int, bool) { return w.peer.replies, w.peer.replies-before == k })
}

// closeOurs has the application close the connections from..to; the peer closes its end as well.
func (w *world) closeOurs(from, to int) error {
	const some = stepLimit
	before := w.peer.closed
	for at := from; at < to; {
		h, now, _ := w.r.Enter()
		for range min(some, to-at) {
			if errno := h.Close(w.app.conns[at], now); errno != 0 {
				return errno
			}
			at++
		}
		w.r.Leave()
		if err := w.run(nil, func() (int, bool) { return w.peer.closed, w.peer.closed-before == at-from }); err != nil {
			return err
		}
	}
	return nil
}

// come opens the connections from..to and closes them again, in small batches: few are established at a time.
func (w *world) come(from, to int) error {
	const some = stepLimit
	for at := from; at < to; at += some {
		end := min(at+some, to)
		if err := w.establish(at, end); err != nil {
			return err
		}
		if err := w.closeOurs(at, end); err != nil {
			return err
		}
	}
	return nil
}

// counters are those of the Host that are not 0.
func (w *world) counters() string {
	var b strings.Builder
	c := w.host.Counters()
	for i, n := range c.Stats {
		if n > 0 {
			fmt.Fprintf(&b, "%v %d ", sockets.Stat(i), n)
		}
	}
	for i, n := range c.Drops {
		if n > 0 {
			fmt.Fprintf(&b, "drop %v %d ", sockets.Drop(i), n)
		}
	}
	return b.String()
}

// states counts the Host's sockets by state.
func (w *world) states() map[string]int {
	m := map[string]int{}
	for _, s := range w.host.TCPSockets() {
		m[s.State]++
	}
	debug.FreeOSMemory() // the list is large
	return m
}
