package reactor_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"xdpd/internal/simnet"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/rings/simnic"
	"xdpd/sockets"
	"xdpd/umem"
)

// equivEnd is one side of ours: a reactor whose NIC hands what it sends to the other.
type equivEnd struct {
	*simnic.SimNIC
	r     *reactor.Reactor
	other *equivEnd
	moved bool
}

const (
	equivFrames = 2048
	equivRing   = 256
)

func (e *equivEnd) FD() int { return -1 }

// Kick sends everything.
func (e *equivEnd) Kick() error {
	if err := e.SimNIC.Kick(); err != nil {
		return err
	}
	n := e.Transmit(equivRing, func(frame []byte) {
		if !e.other.Deliver(frame) {
			panic("the NIC dropped a frame: the rings are too short for the test")
		}
		e.moved = true
	})
	e.Complete(n)
	return nil
}

func newEquivEnd(clock *simnet.Clock, addr proto.Addr, memory []byte) *equivEnd {
	region, err := umem.Wrap(memory, 2048)
	if err != nil {
		panic(err)
	}
	pool := umem.NewPool(region, 0, equivFrames, nil)
	e := &equivEnd{SimNIC: simnic.NewSimNIC(region, equivRing, equivRing, equivRing, equivRing)}
	port := *e.SimNIC.Port()
	port.Dev = e
	host, err := sockets.New(sockets.Config{
		MAC: proto.MAC{2, 0, 0, 0, 0, byte(addr)}, MTU: 1500, Addrs: []sockets.Prefix{{Addr: addr, Bits: 24}},
		KernelNeighbours: true, RcvMax: 32 << 10, SndBuf: 128 << 10,
	}, pool, clock.Now())
	if err != nil {
		panic(err)
	}
	peer := addr ^ 3
	host.SetNeighbour(peer, proto.MAC{2, 0, 0, 0, 0, byte(peer)}, true, clock.Now())
	if e.r, err = reactor.New(reactor.Config{Port: &port, Pool: pool, Host: host, FillFrames: equivRing, Clock: clock.Now}); err != nil {
		panic(err)
	}
	return e
}

const (
	equivA = proto.Addr(0x0a010001)
	equivB = proto.Addr(0x0a010002)
)

// equivHost and equivPoller are what a script needs of the sockets under test: a Host and a Poller have it, and both over a ring.
type equivHost interface {
	TCPListen(local proto.Addr, port uint16) (sockets.Handle, sockets.Errno)
	TCPDial(local proto.Addr, lport uint16, remote proto.Addr, port uint16, now int64) (sockets.Handle, sockets.Errno)
	TCPAccept(s sockets.Handle) (sockets.Handle, sockets.Errno)
	TCPRead(s sockets.Handle, dst []byte, now int64) (int, sockets.Errno)
	TCPWrite(s sockets.Handle, p []byte, now int64) (int, sockets.Errno)
	TCPShutdown(s sockets.Handle, now int64) sockets.Errno
	TCPShutdownRead(s sockets.Handle, now int64) sockets.Errno
	TCPAbort(s sockets.Handle, now int64) sockets.Errno
	UDPBind(local proto.Addr, port uint16) (sockets.Handle, sockets.Errno)
	UDPConnect(s sockets.Handle, remote proto.Addr, port uint16) sockets.Errno
	UDPRecv(s sockets.Handle, dst []byte) (sockets.Datagram, sockets.Errno)
	UDPSend(s sockets.Handle, payload []byte, dst netip.AddrPort, now int64) sockets.Errno
	Close(s sockets.Handle, now int64) sockets.Errno
}

type equivPoller interface {
	Add(s sockets.Handle, mask sockets.Ready, data uint64) error
	Mod(s sockets.Handle, mask sockets.Ready, data uint64) error
	Del(s sockets.Handle) error
	Wait(buf []reactor.Event, timeout time.Duration) (int, error)
}

// equivRingFace is A's sockets over a ring, as another process has them. Its reactor does a turn for each operation, as one that sleeps.
type equivRingFace struct {
	q     *reactor.Ring
	calls *reactor.RingCalls
	h     *reactor.RingSockets
	woken chan struct{}
	done  chan struct{}
}

func (f *equivRingFace) open(r *reactor.Reactor) {
	const calls = 4
	memory := reactor.CallsConfig{Chunk: 80 << 10, Chunks: calls}
	layout, err := rings.LayoutRing(2*calls, 4*calls)
	if err != nil {
		panic(err)
	}
	area, data := rings.NewRingArea(layout), make([]byte, memory.Size())
	f.woken, f.done = make(chan struct{}, 1), make(chan struct{})
	bell := func() {
		select {
		case f.woken <- struct{}{}:
		default:
		}
	}
	f.q, err = reactor.NewRing(r, reactor.RingConfig{SQEntries: 2 * calls, CQEntries: 4 * calls, Sockets: 64, Area: area, Data: data, Bell: bell})
	if err != nil {
		panic(err)
	}
	binary.NativeEndian.PutUint32(area[384:], 1) // it sleeps
	c, err := reactor.JoinRing(area, func() { r.Turn() }, reactor.AwaitToken(f.woken, f.done))
	if err != nil {
		panic(err)
	}
	if f.calls, err = reactor.NewRingCalls(c, data, memory, errEquivClosed); err != nil {
		panic(err)
	}
	f.h = reactor.NewRingSockets(f.calls)
}

var errEquivClosed = errors.New("the ring is closed")

func (f *equivRingFace) poller() *reactor.RingPoller {
	p, err := f.h.NewPoller()
	if err != nil {
		panic(err)
	}
	return p
}

func (f *equivRingFace) close() {
	f.q.Close()
	close(f.done)
	f.calls.Drain()
}

// ourTwin runs scripts over two of our hosts.
type ourTwin struct {
	memory [2][]byte
	clock  *simnet.Clock
	a, b   *equivEnd
	p      [equivEps]equivPoller
	ring   *equivRingFace             // of A; nil: its Host itself
	socks  [equivSocks]sockets.Handle // of A
	peers  [equivSocks]sockets.Handle // of B
	lis    sockets.Handle             // B's listener
	buf    [64 << 10]byte
	events [64]reactor.Event
}

func newOurTwin() *ourTwin {
	w := &ourTwin{}
	for i := range w.memory {
		w.memory[i] = make([]byte, equivFrames*2048)
	}
	return w
}

// on calls f with the Host of one side.
func (w *ourTwin) on(e *equivEnd, f func(h equivHost, now int64) syscall.Errno) syscall.Errno {
	if e == w.a && w.ring != nil {
		return f(w.ring.h, 0)
	}
	h, now, ok := e.r.Enter()
	if !ok {
		panic("the reactor stopped")
	}
	defer e.r.Leave()
	return f(h, now)
}

// settle lets both work until nothing moves and no delayed ACK waits.
func (w *ourTwin) settle() {
	for range 100_000 {
		w.a.moved, w.b.moved = false, false
		workedA, dueA := w.a.r.Turn()
		workedB, dueB := w.b.r.Turn()
		if workedA || workedB || w.a.moved || w.b.moved {
			continue
		}
		due := min(dueA, dueB)
		if due > w.clock.Now()+45_000_000 {
			return
		}
		w.clock.AdvanceTo(due)
	}
	panic("the two never come to rest")
}

func (w *ourTwin) begin() (err error) {
	w.clock = simnet.NewClock(1e12)
	w.a, w.b = newEquivEnd(w.clock, equivA, w.memory[0]), newEquivEnd(w.clock, equivB, w.memory[1])
	w.a.other, w.b.other = w.b, w.a
	w.settle()
	if w.ring != nil {
		w.ring.open(w.a.r)
	}
	for i := range w.p {
		if w.p[i] = equivPoller(reactor.NewPoller(w.a.r)); w.ring != nil {
			w.p[i] = w.ring.poller()
		}
	}
	clear(w.socks[:])
	clear(w.peers[:])
	errno := w.on(w.a, func(h equivHost, _ int64) (errno syscall.Errno) {
		w.socks[listenerID], errno = h.TCPListen(0, 80)
		return errno
	})
	errno += w.on(w.b, func(h equivHost, _ int64) (errno syscall.Errno) {
		w.lis, errno = h.TCPListen(0, 81)
		for id := udpFree; id < firstTCP && errno == 0; id++ {
			w.peers[id], errno = h.UDPBind(0, uint16(90+id))
		}
		return errno
	})
	if errno != 0 {
		return fmt.Errorf("our world: %w", errno)
	}
	for id := udpFree; id < firstTCP; id++ {
		if errno := w.openUDP(id); errno != 0 {
			return fmt.Errorf("our world: %w", errno)
		}
	}
	w.settle()
	return nil
}

func (w *ourTwin) end() {
	if w.ring != nil {
		w.ring.close()
	}
	for _, e := range []*equivEnd{w.a, w.b} {
		if err := e.r.Close(); err != nil {
			panic(err)
		}
	}
}

func (w *ourTwin) openUDP(id int) syscall.Errno {
	return w.on(w.a, func(h equivHost, _ int64) (errno syscall.Errno) {
		w.socks[id], errno = h.UDPBind(0, uint16(70+id))
		port := uint16(90 + id)
		if id == udpDead {
			port = 99
		}
		if id != udpFree && errno == 0 {
			errno = h.UDPConnect(w.socks[id], equivB, port)
		}
		return errno
	})
}

func (w *ourTwin) wait(ep, maxEvents int) (out []reported) {
	n, err := w.p[ep].Wait(w.events[:maxEvents], 0)
	if err != nil {
		panic(err)
	}
	for _, e := range w.events[:n] {
		out = append(out, reported{e.Ready, e.Data})
	}
	return out
}

func (w *ourTwin) step(o op) syscall.Errno {
	errno := w.do(o)
	w.settle()
	return errno
}

func (w *ourTwin) do(o op) syscall.Errno {
	switch o.do {
	case "brecvall", "bsend", "bshut", "bclose", "breset", "bread":
		return w.on(w.b, func(h equivHost, now int64) syscall.Errno { return w.tcp(h, now, w.peers[o.id], o) })
	case "gram":
		return w.on(w.b, func(h equivHost, now int64) syscall.Errno {
			return h.UDPSend(w.peers[o.id], w.buf[:o.n%1400], netip.AddrPortFrom(equivA.Netip(), uint16(70+o.id)), now)
		})
	case "arrive":
		return w.on(w.b, func(h equivHost, now int64) (errno syscall.Errno) {
			w.peers[o.id], errno = h.TCPDial(0, 0, equivA, 80, now)
			return errno
		})
	case "fill":
		return w.fill(o)
	case "drain":
		return w.drain(o)
	case "connect":
		return w.connect(o)
	case "reopen":
		w.on(w.a, func(h equivHost, now int64) syscall.Errno { return h.Close(w.socks[o.id], now) })
		return w.openUDP(o.id)
	}
	return w.on(w.a, func(h equivHost, now int64) syscall.Errno { return w.doA(h, now, o) })
}

// doA does what A does alone.
func (w *ourTwin) doA(h equivHost, now int64, o op) (errno syscall.Errno) {
	switch o.do {
	case "add":
		return errnoOf(w.p[o.ep].Add(w.socks[o.id], o.mask, o.data))
	case "mod":
		return errnoOf(w.p[o.ep].Mod(w.socks[o.id], o.mask, o.data))
	case "del":
		return errnoOf(w.p[o.ep].Del(w.socks[o.id]))
	case "refused":
		return w.dial(h, now, o, 82)
	case "accept":
		w.socks[o.id], errno = h.TCPAccept(w.socks[listenerID])
		return errno
	case "gramrecv":
		_, errno = h.UDPRecv(w.socks[o.id], w.buf[:])
		return errno
	case "gramsend":
		to := netip.AddrPort{}
		if o.id == udpFree {
			to = netip.AddrPortFrom(equivB.Netip(), uint16(90+o.id))
		}
		return h.UDPSend(w.socks[o.id], w.buf[:o.n%1400], to, now)
	}
	return w.tcp(h, now, w.socks[o.id], o)
}

// tcp does what either end does to a connection.
func (w *ourTwin) tcp(h equivHost, now int64, s sockets.Handle, o op) (errno syscall.Errno) {
	switch o.do[1:] {
	case "send":
		_, errno = h.TCPWrite(s, w.buf[:o.n], now)
	case "recv", "read":
		_, errno = h.TCPRead(s, w.buf[:o.n], now)
	case "recvall":
		for n := 1; n > 0 && errno == 0; {
			n, errno = h.TCPRead(s, w.buf[:], now)
		}
	case "shut":
		if o.do == "bshut" {
			return h.TCPShutdown(s, now)
		}
		if o.n&1 != 0 {
			errno = h.TCPShutdownRead(s, now)
		}
		if o.n&2 != 0 {
			errno = h.TCPShutdown(s, now)
		}
	case "close":
		return h.Close(s, now)
	case "reset":
		return h.TCPAbort(s, now)
	default:
		panic(o.do)
	}
	return errno
}

// dial begins a connection from A, and adds it to a poller if the step says so.
func (w *ourTwin) dial(h equivHost, now int64, o op, port uint16) (errno syscall.Errno) {
	if w.socks[o.id], errno = h.TCPDial(0, 0, equivB, port, now); errno == 0 && o.pre {
		errno = errnoOf(w.p[o.ep].Add(w.socks[o.id], o.mask, o.data))
	}
	return errno
}

func (w *ourTwin) connect(o op) syscall.Errno {
	errno := w.on(w.a, func(h equivHost, now int64) syscall.Errno { return w.dial(h, now, o, 81) })
	w.settle()
	return errno + w.on(w.b, func(h equivHost, now int64) (errno syscall.Errno) {
		w.peers[o.id], errno = h.TCPAccept(w.lis)
		return errno
	})
}

// fill writes until nothing more goes, however long it waits.
func (w *ourTwin) fill(o op) syscall.Errno {
	for any := true; any; w.settle() {
		any = w.on(w.a, func(h equivHost, now int64) (errno syscall.Errno) {
			for total := 0; ; {
				n, errno := h.TCPWrite(w.socks[o.id], w.buf[:], now)
				if total += n; errno != 0 && total > 0 {
					return 0
				} else if errno != 0 {
					return errno
				}
			}
		}) == 0
	}
	return 0
}

// drain reads until nothing more comes, however long it waits.
func (w *ourTwin) drain(o op) syscall.Errno {
	for got := 1; got > 0; w.settle() {
		w.on(w.b, func(h equivHost, now int64) (errno syscall.Errno) {
			got, errno = h.TCPRead(w.peers[o.id], w.buf[:], now)
			return errno
		})
	}
	return 0
}

// errnoOf is the errno that an error of a Poller is.
func errnoOf(err error) (errno syscall.Errno) {
	for _, e := range []syscall.Errno{syscall.EEXIST, syscall.ENOENT, syscall.EINVAL, syscall.EBADF, syscall.ENOSPC} {
		if errors.Is(err, e) {
			return e
		}
	}
	return 0
}

var _ rings.Device = (*equivEnd)(nil)
