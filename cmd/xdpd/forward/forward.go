// Package forward is xdpd forward: a bridge or a router between interfaces over AF_XDP. Frames of all devices lie in one
// region, and one goroutine (reactor.Forwarder) runs all their queues: what comes in on one device is put into another's TX
// ring where it lies. A router's addresses, routes and neighbours are the kernel's, followed by netlink.
package forward

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/krnet"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// Route is a static route: what lies in Dst goes to the neighbour Via, on the port whose subnet it is in.
type Route struct {
	Dst netip.Prefix
	Via netip.Addr
}

// Config says what to forward between.
type Config struct {
	Interfaces []string // in the calling thread's network namespace
	Router     bool     // else a bridge
	Routes     []Route  // of a router: these and the ports' own subnets, in place of the kernel's routes
	Ageing     time.Duration
	Frames     int // of each interface, beyond its fill rings (default 4096)
	HugePages  bool
	Mode       rings.Mode
	Attach     xdpprog.Attach
	MaxSpin    time.Duration
	Pin        bool // to CPU
	CPU        int
	Ledger     bool
}

// Forward is a forwarder that runs. Its methods may be called from any goroutine.
type Forward struct {
	cfg    Config
	ports  []*port
	region *umem.Region
	pool   *umem.Pool
	ledger *umem.Ledger
	kernel *krnet.Namespace
	asking *rings.Channels
	locals *xdpprog.Locals
	bridge *sockets.Bridge // one of these two
	router *sockets.Router
	loop   *reactor.Forwarder

	syncing sync.Mutex // one look at the kernel's tables at a time, or an older one could be believed after a newer one

	cancel  context.CancelFunc
	running sync.WaitGroup
	resolve chan sockets.Hop
	stale   chan struct{} // addresses or routes changed
	done    chan struct{}
	err     error // valid once done is closed
}

const (
	defaultFrames = 4096
	fillSize      = 2048
)

// Open takes the interfaces' queues and starts to forward. The calling thread is to be in their network namespace while it
// runs (runtime.LockOSThread). Errors name the operation, the interface and the cure; after one nothing is left behind.
func Open(cfg Config) (*Forward, error) {
	if cfg.Frames == 0 {
		cfg.Frames = defaultFrames
	}
	f := &Forward{cfg: cfg, resolve: make(chan sockets.Hop, 1024), stale: make(chan struct{}, 1), done: make(chan struct{})}
	// Devices are looked up and sockets opened in the namespace of one thread.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := f.open(); err != nil {
		return nil, errors.Join(err, f.release())
	}
	f.start()
	return f, nil
}

func (f *Forward) open() error {
	if n := len(f.cfg.Interfaces); n < 2 || n > sockets.MaxPorts {
		return fmt.Errorf("forward: %d interfaces: name 2 to %d", n, sockets.MaxPorts)
	}
	var err error
	if f.kernel, err = krnet.OpenNamespace(); err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	if f.asking, err = rings.OpenChannels(); err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	if f.cfg.Router {
		if f.locals, err = xdpprog.NewLocals(); err != nil {
			return fmt.Errorf("forward: %w", err)
		}
	}
	queues := 0
	for _, name := range f.cfg.Interfaces {
		p, err := findPort(name)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(f.ports, func(o *port) bool { return o.index == p.index }) {
			return fmt.Errorf("forward: interface %s is named twice", name)
		}
		f.ports = append(f.ports, p)
		queues += p.queues
	}
	if err := f.makeMemory(queues); err != nil {
		return err
	}
	var opened []*rings.Socket
	for _, p := range f.ports {
		if err := p.openSockets(f.region, &f.cfg, &opened); err != nil {
			return err
		}
	}
	if err := f.makeMachine(queues); err != nil {
		return err
	}
	f.loop.Turn() // fills the fill rings: a frame that comes before Run's first turn needs a place
	for _, p := range f.ports {
		if err := p.attach(&f.cfg, f.locals); err != nil {
			return err
		}
	}
	return nil
}

func (f *Forward) makeMemory(queues int) error {
	chunk := 2048
	for _, p := range f.ports {
		if p.mtu > sockets.MaxMTU(chunk, 1) || f.cfg.Mode != rings.Copy && p.mtu > p.zeroCopyMTU(chunk) {
			chunk = 4096
		}
		if most := sockets.MaxMTU(chunk, 1); p.mtu > most {
			return fmt.Errorf("forward: interface %s has an MTU of %d: packets of more than one frame are not forwarded, the most is %d: ip link set %s mtu %d",
				p.name, p.mtu, most, p.name, most)
		}
	}
	frames := queues*fillSize + len(f.ports)*f.cfg.Frames
	var err error
	if f.region, err = umem.New(umem.Options{Frames: frames, ChunkSize: chunk, HugePages: f.cfg.HugePages}); err != nil {
		return err
	}
	if f.cfg.Ledger {
		f.ledger = umem.NewLedger(frames)
	}
	f.pool = umem.NewPool(f.region, 0, frames, f.ledger)
	return nil
}

func (f *Forward) makeMachine(queues int) error {
	cfg := sockets.ForwardConfig{FillFrames: queues * fillSize}
	if _, err := rand.Read(cfg.Seed[:]); err != nil {
		return fmt.Errorf("forward: random seed: %w", err)
	}
	var ports [][]*rings.Port
	for _, p := range f.ports {
		cfg.Ports = append(cfg.Ports, p.machinePort())
		var list []*rings.Port
		for _, s := range p.sockets {
			list = append(list, s.Port())
		}
		ports = append(ports, list)
	}
	loop := reactor.ForwarderConfig{
		Pool: f.pool, Ports: ports, FillFrames: fillSize, MaxSpin: f.cfg.MaxSpin, Pin: f.cfg.Pin, CPU: f.cfg.CPU,
	}
	var err error
	if f.cfg.Router {
		if f.router, err = sockets.NewRouter(cfg, f.pool, reactor.Monotonic()); err != nil {
			return err
		}
		loop.Machine, loop.Turned = f.router, f.popResolve
	} else {
		if f.bridge, err = sockets.NewBridge(cfg, int64(f.cfg.Ageing), f.pool, reactor.Monotonic()); err != nil {
			return err
		}
		loop.Machine = f.bridge
	}
	if f.loop, err = reactor.NewForwarder(loop); err != nil {
		return err
	}
	if f.router == nil {
		return nil
	}
	return f.sync(true)
}

// start forwards, and follows the kernel.
func (f *Forward) start() {
	ctx, cancel := context.WithCancel(context.Background())
	f.cancel = cancel
	f.running.Go(func() {
		f.err = f.loop.Run(ctx)
		cancel()
		close(f.done)
	})
	f.running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case h := <-f.resolve:
				// An error means that the kernel cannot ask: what waits is dropped when its time is over.
				_ = f.kernel.Resolve(f.ports[h.Port].index, h.Gateway.Netip())
			}
		}
	})
	f.running.Go(func() {
		for {
			select {
			case <-ctx.Done():
				return
			case <-f.stale:
				if err := f.sync(false); err != nil {
					f.loop.Fail(err)
				}
			}
		}
	})
	f.running.Go(func() { f.attend(ctx) })
	f.kernel.Watch(ctx, f.event)
	f.touch() // what changed between Open's look and here
}

// Done is closed when forwarding has ended; Err then says why.
func (f *Forward) Done() <-chan struct{} { return f.done }

// Err is nil after Close.
func (f *Forward) Err() error { return f.err }

// Close stops forwarding, detaches the programs and gives everything back.
func (f *Forward) Close() error {
	f.cancel()
	f.running.Wait()
	return f.release()
}

func (f *Forward) release() error {
	var errs []error
	for _, p := range f.ports {
		errs = append(errs, p.close())
	}
	if f.loop != nil {
		errs = append(errs, f.loop.Close())
	}
	if f.locals != nil {
		errs = append(errs, f.locals.Close())
	}
	if f.kernel != nil {
		f.kernel.Close()
	}
	if f.asking != nil {
		errs = append(errs, f.asking.Close())
	}
	if f.region != nil {
		errs = append(errs, f.region.Close())
	}
	return errors.Join(errs...)
}

// popResolve passes on whom the router asks for. It is called on the loop, which must not wait for netlink.
func (f *Forward) popResolve() {
	for len(f.resolve) < cap(f.resolve) { // else the kernel does not follow; the next turn has the rest
		h, ok := f.router.PopResolve()
		if !ok {
			return
		}
		f.resolve <- h
	}
}

// touch has the tables read again. Changes that come while they are being read are one more reading.
func (f *Forward) touch() {
	select {
	case f.stale <- struct{}{}:
	default:
	}
}

// portOf is the number of the port with that interface, or sockets.NoPort.
func (f *Forward) portOf(index int) int {
	return slices.IndexFunc(f.ports, func(p *port) bool { return p.index == index })
}

// event follows the kernel. It is called from one goroutine.
func (f *Forward) event(e krnet.Event) {
	switch e := e.(type) {
	case krnet.LinkEvent:
		i := f.portOf(e.Index)
		if i < 0 {
			if _, ok := e.Event.(krnet.LinkChange); ok {
				f.touch() // it may have taken routes with it, without a word
			}
			return
		}
		switch e := e.Event.(type) {
		case krnet.LinkChange:
			f.linkChange(i, e)
		case krnet.NeighChange:
			if a, v4 := proto.AddrFrom(e.Addr); e.Deleted && v4 && f.router != nil {
				if now, ok := f.loop.Enter(); ok {
					f.router.ForgetNeighbour(i, a, now)
				}
				f.loop.Leave()
				return
			}
			f.setNeighbours([]krnet.LinkNeigh{{Index: f.ports[i].index, Neigh: e.Neigh}})
		}
	case krnet.Resync:
		f.resync()
	default:
		f.touch()
	}
}

// resync makes up for events that were lost.
func (f *Forward) resync() {
	t, err := f.kernel.Snapshot()
	if err != nil {
		f.loop.Fail(fmt.Errorf("forward: %w", err))
		return
	}
	for i, p := range f.ports {
		l, ok := t.Links[p.index]
		f.linkChange(i, krnet.LinkChange{Name: l.Name, Up: l.Up, MTU: l.MTU, MAC: l.MAC, Deleted: !ok})
	}
	if err := f.sync(true); err != nil {
		f.loop.Fail(err)
	}
}

func (f *Forward) linkChange(i int, e krnet.LinkChange) {
	p := f.ports[i]
	switch {
	case e.Moved:
		f.loop.Fail(fmt.Errorf("forward: interface %s was moved to another network namespace: %w", p.name, unix.ENODEV))
		return
	case e.Deleted:
		f.loop.Fail(fmt.Errorf("forward: interface %s was removed: %w", p.name, unix.ENODEV))
		return
	}
	changed := false
	if _, ok := f.loop.Enter(); ok {
		was := f.machinePortNow(i)
		is := was
		is.MAC, is.MTU, is.Up = e.MAC, e.MTU, e.Up
		if most := p.zeroCopyMTU(f.region.ChunkSize()); p.zeroCopy() && e.MTU > most {
			defer f.loop.Fail(fmt.Errorf("forward: interface %s has an MTU of %d by now, in zero copy %d is possible: start the forwarder again", p.name, e.MTU, most))
		}
		if changed = is != was; changed {
			if err := f.setPort(i, is); err != nil {
				defer f.loop.Fail(fmt.Errorf("forward: interface %s: %w: start the forwarder again", p.name, err))
			}
		}
		if is.MAC != was.MAC {
			if err := p.program.SetMAC(is.MAC); err != nil {
				defer f.loop.Fail(err)
			}
		}
	}
	f.loop.Leave()
	if !changed {
		return
	}
	// An interface that goes down takes its routes and neighbours with it, without a word.
	if err := f.sync(true); err != nil {
		f.loop.Fail(err)
	}
}

func (f *Forward) machinePortNow(i int) sockets.PortConfig {
	if f.router != nil {
		return f.router.Port(i)
	}
	return f.bridge.Port(i)
}

func (f *Forward) setPort(i int, c sockets.PortConfig) error {
	if f.router != nil {
		return f.router.SetPort(i, c)
	}
	return f.bridge.SetPort(i, c)
}

// sync takes the kernel's tables; neighbours too, or they are followed by events alone.
func (f *Forward) sync(neighbours bool) error {
	if f.router == nil {
		return nil
	}
	f.syncing.Lock()
	defer f.syncing.Unlock()
	t, err := f.kernel.Snapshot()
	if err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	var all []netip.Addr
	for _, a := range t.Addrs {
		all = append(all, a.Addr.Addr())
	}
	if err := f.locals.Set(all); err != nil {
		return fmt.Errorf("forward: %w", err)
	}
	fib := sockets.NewFIB(f.tables(&t))
	if _, ok := f.loop.Enter(); ok {
		f.router.SetFIB(fib)
	}
	f.loop.Leave()
	if neighbours {
		f.keepNeighbours(t.Neighs)
		f.setNeighbours(t.Neighs)
	}
	return nil
}

// keepNeighbours has the router forget whom the kernel has forgotten, in case that event was lost.
func (f *Forward) keepNeighbours(list []krnet.LinkNeigh) {
	valid := make(map[sockets.Hop]bool)
	for _, n := range list {
		if a, v4 := proto.AddrFrom(n.Addr); v4 && n.Valid {
			valid[sockets.Hop{Port: f.portOf(n.Index), Gateway: a}] = true
		}
	}
	if now, ok := f.loop.Enter(); ok {
		f.router.KeepNeighbours(func(port int, a proto.Addr) bool { return valid[sockets.Hop{Port: port, Gateway: a}] }, now)
	}
	f.loop.Leave()
}

func (f *Forward) setNeighbours(list []krnet.LinkNeigh) {
	if f.router == nil {
		return
	}
	now, ok := f.loop.Enter()
	for _, n := range list {
		a, v4 := proto.AddrFrom(n.Addr)
		if i := f.portOf(n.Index); ok && v4 && i >= 0 {
			f.router.SetNeighbour(i, a, n.MAC, n.Valid, now)
		}
	}
	f.loop.Leave()
}
