package load

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"
	"time"

	"xdpd"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

// Engine is the engine's sockets: the workers are handlers on its reactors.
type Engine struct {
	st      *xdpd.Stack
	name    string
	sources []proto.Addr
	before  uint64 // retransmits
}

// ephemeralPorts is how many ports the engine gives to connections of its own, for each of its addresses.
const ephemeralPorts = 28232

// NewEngine is a side on a stack, with connections from each of the addresses in turn. name is the interface's.
func NewEngine(st *xdpd.Stack, name string, sources []netip.Addr) (*Engine, error) {
	e := &Engine{st: st, name: name}
	for _, a := range sources {
		addr, good := proto.AddrFrom(a)
		if !good {
			return nil, fmt.Errorf("%v is no IPv4 address", a)
		}
		e.sources = append(e.sources, addr)
	}
	if len(e.sources) == 0 {
		return nil, errors.New("no address to connect from")
	}
	e.before, _ = e.count()
	return e, nil
}

// Workers implements Side: one for each reactor.
func (e *Engine) Workers() int { return len(e.st.Reactors()) }

func (e *Engine) String() string { return "the engine on " + e.name }

// Ports implements Side.
func (e *Engine) Ports() int { return ephemeralPorts * len(e.sources) }

// Done implements Side.
func (e *Engine) Done() <-chan struct{} { return e.st.Done() }

// Err implements Side.
func (e *Engine) Err() error { return e.st.Err() }

// Retransmits implements Side.
func (e *Engine) Retransmits() (n uint64, known bool) {
	n, known = e.count()
	return n - e.before, known
}

func (e *Engine) count() (n uint64, known bool) {
	for _, r := range e.st.Reactors() {
		h, _, alive := r.Enter()
		if alive {
			n += h.Counters().Stats[sockets.TCPRetransmits]
			known = true
		}
		r.Leave()
	}
	return n, known
}

// engineLoop is a worker on a reactor: a handler for events, and a goroutine for deadlines, which the reactor wakes.
type engineLoop struct {
	w             *worker
	r             *reactor.Reactor
	poller, pacer *reactor.Poller
	h             *sockets.Host
	turn          int64 // time of the turn
	udp           bool
	alone         bool // no other queue could get the answers
	mask          sockets.Ready
	sources       []proto.Addr
	next          int
	remote        proto.Addr
	port          uint16
	resets        []sockets.Handle // connections to be reset in the next turn
	ended         chan struct{}
}

func (e *Engine) start(cfg *Config, i int, w *worker) (loop, error) {
	remote, _ := proto.AddrFrom(cfg.Target.Addr())
	p, err := e.st.Poller(i)
	if err != nil {
		return nil, err
	}
	pacer, err := e.st.Poller(i)
	if err != nil {
		p.Close()
		return nil, err
	}
	l := &engineLoop{
		w: w, r: e.st.Reactors()[i], poller: p, pacer: pacer, udp: cfg.Kind == UDP, alone: e.Workers() == 1,
		mask: sockets.In | sockets.Out | sockets.RdHup | reactor.EdgeTriggered, sources: e.sources, next: i,
		remote: remote, port: cfg.Target.Port(), ended: make(chan struct{}),
	}
	if l.udp {
		l.mask = sockets.In | reactor.EdgeTriggered
	}
	w.t = l
	l.r.Enter()
	p.Serve(l.handle)
	l.r.Leave()
	go l.pace()
	return l, nil
}

func (l *engineLoop) handle(h *sockets.Host, now int64, e reactor.Event) {
	if l.h = h; l.turn != now {
		l.turn = now
		l.reset()
	}
	l.w.event(e.Data, e.Ready)
}

// enter calls f with the lock held, unless the reactor has ended.
func (l *engineLoop) enter(f func()) bool {
	h, now, alive := l.r.Enter()
	defer l.r.Leave()
	if alive {
		l.h, l.turn = h, now
		l.reset()
		f()
	}
	return alive
}

// reset resets the connections that were closed in an earlier turn.
func (l *engineLoop) reset() {
	for _, s := range l.resets {
		l.h.TCPAbort(s, l.turn)
	}
	l.resets = l.resets[:0]
}

// pace ticks.
func (l *engineLoop) pace() {
	defer close(l.ended)
	var events [1]reactor.Event
	var wait time.Duration
	tick := func() {
		l.w.tick()
		wait = time.Duration(max(1, l.w.deadline()-l.clock()))
	}
	for l.enter(tick) {
		if _, err := l.pacer.Wait(events[:], wait); err != nil {
			return
		}
	}
}

func (l *engineLoop) do(f func()) bool {
	alive := l.enter(f)
	l.pacer.Wake() // the deadline may be another one
	return alive
}

func (l *engineLoop) end() {
	l.enter(func() {})
	l.pacer.Close()
	<-l.ended
	l.poller.Close()
}

func (l *engineLoop) clock() int64 { return reactor.Monotonic() }

func (l *engineLoop) dial(key uint64) (uint64, syscall.Errno) {
	local := l.sources[l.next%len(l.sources)]
	l.next++
	var s sockets.Handle
	var err sockets.Errno
	switch {
	case l.udp && len(l.sources) == 1: // where the device tells, the answers come in here
		s, err = l.h.UDPDial(l.remote, l.port)
	case l.udp:
		if s, err = l.h.UDPBind(local, 0); err == 0 {
			err = l.h.UDPConnect(s, l.remote, l.port)
		}
	case l.alone:
		s, err = l.h.TCPDial(local, 0, l.remote, l.port, l.turn)
	default:
		if s, err = l.h.TCPDialHere(local, l.remote, l.port, l.turn); err == sockets.EADDRNOTAVAIL {
			s, err = l.h.TCPDial(local, 0, l.remote, l.port, l.turn)
		}
	}
	if err == 0 && l.poller.Add(s, l.mask, key) != nil {
		err = sockets.ENOBUFS // the poller is closed
	}
	if err != 0 && s != 0 {
		l.h.Close(s, l.turn)
	}
	return uint64(s), err
}

func (l *engineLoop) fault(sock uint64) syscall.Errno { return l.h.TCPError(sockets.Handle(sock)) }

func (l *engineLoop) read(sock uint64, b []byte) (int, syscall.Errno) {
	if l.udp {
		d, err := l.h.UDPRecv(sockets.Handle(sock), b)
		return d.N, err
	}
	return l.h.TCPRead(sockets.Handle(sock), b, l.turn)
}

func (l *engineLoop) write(sock uint64, b []byte) (int, syscall.Errno) {
	if l.udp {
		return len(b), l.h.UDPSend(sockets.Handle(sock), b, netip.AddrPort{}, l.turn)
	}
	return l.h.TCPWrite(sockets.Handle(sock), b, l.turn)
}

func (l *engineLoop) again(sock, key uint64) { _ = l.poller.Mod(sockets.Handle(sock), l.mask, key) }

func (l *engineLoop) shutdown(sock uint64) { l.h.TCPShutdown(sockets.Handle(sock), l.turn) }

// close resets a connection not before the next turn: in this one the handshake's last ACK may be still to leave, without which
// the peer would have no connection to accept.
func (l *engineLoop) close(sock uint64, reset bool) {
	if reset && !l.udp {
		l.resets = append(l.resets, sockets.Handle(sock))
	} else {
		l.h.Close(sockets.Handle(sock), l.turn)
	}
}
