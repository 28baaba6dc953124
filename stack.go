package xdpd

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"xdpd/internal/journal"
	"xdpd/internal/krnet"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// Stack is an engine running on an interface. Its methods are safe from any goroutine.
type Stack struct {
	cfg     Config
	dev     device
	kernel  *krnet.Kernel
	state   krnet.State // share mode: the kernel's addresses, routes and neighbours at the start
	region  *umem.Region
	ledger  *umem.Ledger
	grant   *grantee // nil without Config.Grant
	program steerer
	queues  []*queue
	steer   steering
	group   *reactor.Group
	napi    napiLearner
	// notZeroCopy is why the sockets are not zero copy although they could have been.
	notZeroCopy string
	asking      *rings.Channels
	all         bool           // all queues are served that there were
	joined      *journal.Entry // the steering program is in a dispatcher
	running     sync.WaitGroup
	cancel      context.CancelFunc

	reopening sync.Mutex // SetMode's

	mu     sync.Mutex
	ports  map[portKey]int // share mode: sockets and connections that need a port open
	link   linkState       // of the interface, by now
	mode   Mode            // of the sockets, as it was asked for last
	err    error
	closed bool
	done   chan struct{}
}

// linkState is what may change about an interface.
type linkState struct {
	name string
	mtu  int
	mac  proto.MAC
}

// queue is one receive queue with all that belongs to it.
type queue struct {
	id      int
	sock    *rings.Socket // guarded by the reactor's lock
	pool    *umem.Pool
	host    *sockets.Host
	reactor *reactor.Reactor
}

type portKey struct {
	proto uint8
	addr  netip.Addr
	port  uint16
}

// Reactors gives the reactors, one for each queue, for services whose handlers run on them.
func (s *Stack) Reactors() []*reactor.Reactor {
	var out []*reactor.Reactor
	for _, q := range s.queues {
		out = append(out, q.reactor)
	}
	return out
}

// ListenReactors opens a TCP listener on a port, or a free one (0), for services whose handlers run on the reactors: a socket
// on each, by their order, with the connections that Config.Spread says. In share mode OpenPorts has them come.
func (s *Stack) ListenReactors(port uint16) ([]sockets.Handle, error) {
	return s.group.Listen(0, port, s.cfg.Spread)
}

// Resize has n goroutines run the reactors from now on. Nothing that is open is touched: a queue only changes who runs it,
// between two turns. Errors say how many there can be.
func (s *Stack) Resize(n int) error {
	if err := s.group.Resize(n); err != nil {
		return fmt.Errorf("xdpd: %w", err)
	}
	return nil
}

// Done is closed when the engine ended: after Close, or because it failed. Err tells why.
func (s *Stack) Done() <-chan struct{} { return s.done }

// Err is why the engine ended by itself; nil while it runs and after Close.
func (s *Stack) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// fail ends the engine: every call on its sockets returns an error from here on.
func (s *Stack) fail(err error) {
	s.mu.Lock()
	if s.err == nil && !s.closed {
		s.err = err
		close(s.done)
	}
	s.mu.Unlock()
	for _, q := range s.queues {
		q.reactor.Fail(err)
	}
}

// Shutdown waits until everything that was written has left and been acknowledged, or ctx ends, and then closes.
func (s *Stack) Shutdown(ctx context.Context) error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	var idle time.Time // since when only the devices have something
	for {
		unsent, given := s.unsent()
		switch {
		case unsent:
			idle = time.Time{}
		case idle.IsZero():
			idle = time.Now()
		}
		if !unsent && (given == 0 || time.Since(idle) > deviceWait) {
			break
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("xdpd: shutdown: %w", ctx.Err()), s.Close())
		case <-s.done:
			return s.Close()
		case <-tick.C:
		}
	}
	return s.Close()
}

// deviceWait is how long frames that a device took may need to leave it. One without a carrier gives none back.
const deviceWait = time.Second

// unsent reports whether a connection has bytes that its peer did not acknowledge, or a frame waits for the device, and how many frames
// devices have not given back: in zero copy they lie in a NIC's ring, which is emptied when the program is taken off (igb_down).
func (s *Stack) unsent() (unsent bool, given int) {
	for _, q := range s.queues {
		h, _, ok := q.reactor.Enter()
		if ok {
			unsent = h.Unsent() || unsent
			given += q.reactor.Given()
		}
		q.reactor.Leave()
	}
	return unsent, given
}

// Close stops the reactors, detaches the steering program and gives back the queues and the memory. Connections end
// without a word to their peers; Shutdown is the polite way. Closing twice does nothing.
func (s *Stack) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil
	}
	s.closed = true
	if s.err == nil {
		close(s.done)
	}
	s.mu.Unlock()
	return s.release()
}

// release undoes what open did, in reverse; parts that were never made are skipped.
func (s *Stack) release() error {
	var errs []error
	if s.program != nil { // first: nothing more is steered to sockets that go away
		errs = append(errs, s.program.Close())
	}
	if errors.Join(errs...) == nil { // else xdpd restore may do better
		errs = append(errs, s.forgetJoin())
	}
	if s.cancel != nil {
		s.cancel()
	}
	s.running.Wait()
	errs = append(errs, s.napi.close(), s.napi.restoreNAPIs())
	if s.asking != nil {
		errs = append(errs, s.asking.Close())
	}
	if s.kernel != nil {
		errs = append(errs, s.kernel.Close())
	}
	if s.grant != nil && s.program == nil { // where it is the program, it is closed already
		errs = append(errs, s.grant.Close())
	}
	for _, q := range s.queues {
		if q.reactor != nil {
			errs = append(errs, q.reactor.Close())
		}
		errs = append(errs, q.sock.Close())
	}
	if s.region != nil {
		errs = append(errs, s.region.Close())
	}
	return errors.Join(errs...)
}

// OpenPorts has the packets of a port steered to the engine, for sockets that were opened on its reactors directly.
// ListenPacket does it by itself.
func (s *Stack) OpenPorts(port uint16, tcp, udp bool) error {
	for p, wanted := range map[uint8]bool{proto.ProtoTCP: tcp, proto.ProtoUDP: udp} {
		if wanted {
			if err := s.openPort(portKey{proto: p, port: port}); err != nil {
				return err
			}
		}
	}
	return nil
}

// openPort has the steering program send a port's packets to the engine (share mode; in own mode they come anyway).
func (s *Stack) openPort(k portKey) error {
	if !s.cfg.Share {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports == nil {
		s.ports = make(map[portKey]int)
	}
	if s.ports[k] == 0 {
		if err := s.program.OpenPort(k.proto, k.addr, k.port); err != nil {
			return err
		}
	}
	s.ports[k]++
	return nil
}

func (s *Stack) closePort(k portKey) error {
	if !s.cfg.Share {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ports[k]--; s.ports[k] > 0 || s.closed {
		return nil
	}
	delete(s.ports, k)
	return s.program.ClosePort(k.proto, k.addr, k.port)
}

// keepPort has a connection's port open for as long as anything is left of the connection, with or without its owner or
// its listener (share mode). The caller holds the reactor's lock.
func (s *Stack) keepPort(h *sockets.Host, c sockets.Handle) error {
	if !s.cfg.Share {
		return nil
	}
	local, _ := h.TCPAddr(c)
	if err := s.openPort(portKey{proto.ProtoTCP, local.Addr(), local.Port()}); err != nil {
		return err
	}
	h.TCPTrack(c)
	return nil
}

// KeepPort keeps packets of a connection coming for as long as anything is left of it, in share mode: for connections that
// were accepted, or dialled, on a reactor directly. Error: the steering program's table of ports is full. The caller holds
// the reactor's lock.
func (s *Stack) KeepPort(h *sockets.Host, c sockets.Handle) error { return s.keepPort(h, c) }

// gone ends what keepPort began. It is called on a reactor, with its lock held.
func (s *Stack) gone(local proto.Addr, port uint16) {
	// There is nobody to tell of an error, which an open port always is: it only keeps the kernel from using it.
	_ = s.closePort(portKey{proto.ProtoTCP, local.Netip(), port})
}
