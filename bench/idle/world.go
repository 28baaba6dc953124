package main

import (
	"fmt"
	"math/rand/v2"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings/simnic"
	"xdpd/sockets"
	"xdpd/umem"
)

// world is a reactor with its Host on a simulated NIC, an application that echoes on it, and the peer. It runs in the
// caller's goroutine and in virtual time.
type world struct {
	now  int64
	nic  *simnic.SimNIC
	host *sockets.Host
	r    *reactor.Reactor
	p    *reactor.Poller
	peer *peer
	app  app
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
	stepNS    = 20_000
	stepLimit = 192 // frames into a turn, whose budget is 256
	listener  = ^uint64(0)
)

func newWorld(conns int, change func(*sockets.Config)) (*world, error) {
	region, err := umem.New(umem.Options{Frames: frames, ChunkSize: 2048})
	if err != nil {
		return nil, err
	}
	w := &world{now: 1e12, nic: simnic.NewSimNIC(region, ringSize, ringSize, ringSize, ringSize)}
	clock := func() int64 { return w.now }
	pool := umem.NewPool(region, 0, frames, nil)
	cfg := sockets.Config{
		MAC: ourMAC, MTU: 1500, Addrs: []sockets.Prefix{{Addr: ourAddr, Bits: 24}},
		Routes: []sockets.Route{{Gateway: gateway}}, MaxConns: 4 * conns, Backlog: 4096,
	}
	if change != nil {
		change(&cfg)
	}
	if w.host, err = sockets.New(cfg, pool, w.now); err != nil {
		return nil, err
	}
	if w.r, err = reactor.New(reactor.Config{Port: w.nic.Port(), Pool: pool, Host: w.host, Clock: clock}); err != nil {
		return nil, err
	}
	w.p = reactor.NewPoller(w.r)
	w.peer = newPeer(conns, clock)
	w.app = app{p: w.p, conns: make([]sockets.Handle, conns)}
	for i := range w.app.conns {
		w.app.conns[i] = 1 // touched
	}
	w.app.conns = w.app.conns[:0]
	return w, w.start()
}

// start opens the listener and lets the gateway announce itself.
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
	w.step()
	frame := make([]byte, 64)
	n := proto.PutEthernet(frame, proto.MAC{255, 255, 255, 255, 255, 255}, peerMAC, proto.EtherARP)
	proto.PutARP(frame[n:], &proto.ARP{Op: proto.ARPRequest, SHA: peerMAC, SPA: gateway, TPA: ourAddr})
	w.nic.Deliver(frame)
	w.step()
	return nil
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

// step is one turn of the reactor, after which the device has sent all that it was given.
func (w *world) step() {
	w.now += stepNS
	w.r.Turn()
	n := w.nic.Transmit(ringSize, w.peer.take)
	w.nic.Complete(n)
}

// run steps until done, and fails when a thousand steps in a row bring nothing new.
func (w *world) run(next func() []byte, progress func() (count int, done bool)) error {
	last, idle := -1, 0
	for {
		count, done := progress()
		if done && len(w.peer.answers) == 0 {
			w.step()
			return w.app.failure
		}
		if idle++; count != last {
			last, idle = count, 0
		}
		if idle > 1000 {
			return fmt.Errorf("stuck at %d; the peer saw %d resets", count, w.peer.resets)
		}
		if err := w.peer.feed(stepLimit, w.nic.Deliver, next); err != nil {
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
	for end := w.now + ns; w.now < end || len(w.peer.answers) > 0; w.now += 1_000_000 {
		if err := w.peer.feed(stepLimit, w.nic.Deliver, nil); err != nil {
			return err
		}
		w.step()
	}
	return w.app.failure
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

// establish opens the connections from..to; tick is called now and then.
func (w *world) establish(from, to int, tick func()) error {
	return w.run(w.syns(from, to), func() (int, bool) {
		if tick != nil {
			tick()
		}
		return len(w.app.conns), len(w.app.conns) >= to
	})
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

// states counts the Host's sockets by state. It allocates a lot: after the measurements.
func (w *world) states() map[string]int {
	m := map[string]int{}
	for _, s := range w.host.TCPSockets() {
		m[s.State]++
	}
	return m
}
