// Package xdpprog is the part of the engine that runs in the kernel: the XDP program which picks our frames out of a
// device's receive path and passes everything else on to the kernel's own stack.
//
// bpf/steer.c is the program; this package loads it, attaches it by bpf_link (so that a crash detaches it) and fills
// its maps. Two ways to steer:
//
//   - Own: the configured addresses are ours altogether: their ARP and all their IPv4.
//   - Share: the kernel keeps the addresses and everything about them (ARP, echo, ssh); ours are only the TCP and UDP
//     ports that were opened here, later fragments of their datagrams, and ICMP errors that quote packets they sent. A
//     later fragment that overtakes its first fragment passes to the kernel, for only the first names the port.
//
// A frame that is ours goes to the AF_XDP socket of the queue it came in on; without one the kernel gets it, counted.
// Frames may carry up to two VLAN tags; the tags do not matter to the choice. Needs Linux 5.18.
//
// Forward (bpf/forward.c) is the program of a bridge's or router's interface.
//
// For measuring there is also traffic of the kernel's own making: Source (bpf/source.c) writes frames and sends them out of
// a device, Sink (bpf/sink.c) takes them, or their echoes, and keeps account; Drop takes everything.
package xdpprog

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"os"
	"sync"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// MaxAddrs and MaxPorts are the sizes of the program's address and port tables.
const (
	MaxAddrs = 256
	MaxPorts = 65536
)

// Steer says how the configured addresses are divided between us and the kernel.
type Steer uint8

const (
	Own   Steer = iota // all of their ARP and IPv4 is ours
	Share              // only opened TCP and UDP ports are ours
)

// Config says what to load and where to attach it.
type Config struct {
	Interface string       // for messages
	Ifindex   int          // device in the calling thread's network namespace
	Steer     Steer        //
	Addrs     []netip.Addr // 1..MaxAddrs IPv4 addresses
	Queues    int          // receive queues of the device: the size of the socket map
	Attach    Attach       //
	Metadata  Metadata     // what to pass on besides the frame, if the driver has it: NoMetadata of the program says if not
	Dispatch  Dispatch     // whether to share the device with other programs
	// Priority is the program's place among those of a dispatcher (0: DefaultPriority): lower ones have their turn first.
	Priority int
	// Joins is called before the device is given a dispatcher with the program, with what Leave wants to know if the process
	// is killed: the program then stays there. Of several calls the last one counts. An error ends Load. nil: nobody asks.
	Joins func(Membership) error
}

// Program is a loaded and attached steering program. Its methods may be called from any goroutine.
type Program struct {
	iface   string
	steer   Steer
	queues  int
	objs    steerParts
	frags   bool
	native  bool
	refused error // why native mode was not had; nil when it was, or was not wanted

	noMetadata error // why there is none, if it was wanted

	mu    sync.Mutex
	addrs map[netip.Addr]bool
	// One of the two says where the program is attached. While link is reachable it stays so: its finalizer detaches it.
	link  link.Link
	place *place
}

// steerParts are what is loaded of the object: one of its programs.
type steerParts struct {
	steerMaps
	Steer *ebpf.Program `ebpf:"steer"`
}

func (p *steerParts) Close() error { return errors.Join(p.steerMaps.Close(), p.Steer.Close()) }

// Load loads the steering program and attaches it to the device: alone, or beside others (Config.Dispatch). The calling thread must be in the device's network
// namespace (runtime.LockOSThread where that is not the process's own) while Load runs, and not afterwards.
//
// Errors match ErrBusy (someone else's program is attached and stays), unix.EPERM, unix.ENODEV, unix.EOPNOTSUPP.
func Load(c Config) (*Program, error) {
	if err := c.check(); err != nil {
		return nil, fmt.Errorf("xdpprog: load for %s: %w", c.Interface, err)
	}
	if c.Dispatch == AlwaysDispatch || c.Dispatch == AutoDispatch && hasDispatcher(c.Ifindex) {
		return join(c)
	}
	return attachBest(c)
}

func (c *Config) check() error {
	switch {
	case c.Ifindex < 1:
		return fmt.Errorf("interface index %d: no such device", c.Ifindex)
	case c.Queues < 1:
		return fmt.Errorf("%d receive queues: the socket map needs at least one", c.Queues)
	case len(c.Addrs) < 1 || len(c.Addrs) > MaxAddrs:
		return fmt.Errorf("%d addresses: the program takes 1 to %d", len(c.Addrs), MaxAddrs)
	case c.Steer > Share:
		return fmt.Errorf("steering mode %d: neither Own nor Share", c.Steer)
	case c.Attach > Generic:
		return fmt.Errorf("attach mode %d: none of BestAttach, Native, Generic", c.Attach)
	case c.Metadata.check() != nil:
		return c.Metadata.check()
	case c.Dispatch > NeverDispatch:
		return fmt.Errorf("dispatch %d: none of AutoDispatch, AlwaysDispatch, NeverDispatch", c.Dispatch)
	case c.Priority < 0 || c.Priority > math.MaxInt32:
		return fmt.Errorf("priority %d: it must be 1 to %d", c.Priority, math.MaxInt32)
	}
	return checkAddrs(c.Addrs)
}

func checkAddrs(addrs []netip.Addr) error {
	for _, a := range addrs {
		if a = a.Unmap(); !a.Is4() || a.IsUnspecified() {
			return fmt.Errorf("address %q: only IPv4 addresses of hosts are steered", a)
		}
	}
	return nil
}

// open loads the program and fills its address table without attaching it. With frags the program may be given
// frames in several buffers, which drivers ask for above one page of MTU.
//
// RLIMIT_MEMLOCK is left alone: since Linux 5.11 BPF memory is charged to the memory cgroup instead.
func open(c Config, a attempt) (*Program, error) {
	p, err := openAs(c, func(spec *ebpf.CollectionSpec) {
		if a.metadata {
			bind(spec, steerProgSteer, steerProgSteerMetadata, c.Ifindex)
		}
		if a.frags {
			spec.Programs[steerProgSteer].Flags |= unix.BPF_F_XDP_HAS_FRAGS
		}
	})
	if err == nil {
		p.frags = a.frags
	}
	return p, err
}

func openAs(c Config, change func(*ebpf.CollectionSpec)) (*Program, error) {
	spec, err := loadSteer()
	if err != nil {
		return nil, fmt.Errorf("xdpprog: read the built-in program: %w", err)
	}
	spec.Maps[steerMapXsks].MaxEntries = uint32(c.Queues)
	change(spec)
	if err := spec.Variables[steerVarShare].Set(uint32(c.Steer)); err != nil {
		return nil, fmt.Errorf("xdpprog: set the steering mode: %w", err)
	}
	if err := spec.Variables[steerVarStamps].Set(flag(c.Metadata == Stamps)); err != nil {
		return nil, fmt.Errorf("xdpprog: have frames stamped: %w", err)
	}

	p := &Program{iface: c.Interface, steer: c.Steer, queues: c.Queues, addrs: map[netip.Addr]bool{}}
	if err := spec.LoadAndAssign(&p.objs, nil); err != nil {
		return nil, explainLoad(c.Interface, err)
	}
	for _, a := range c.Addrs {
		a = a.Unmap()
		p.addrs[a] = true
		if err := p.objs.Addrs.Put(a.As4(), uint8(1)); err != nil {
			return nil, errors.Join(fmt.Errorf("xdpprog: steer %s on %s: %w", a, c.Interface, err), p.Close())
		}
	}
	return p, nil
}

// SetAddrs replaces the addresses that are steered, for a kernel whose addresses change while we share them. Ports that
// were opened on an address stay open, and are in use again when it comes back.
func (p *Program) SetAddrs(addrs []netip.Addr) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.link == nil && p.place == nil {
		return fmt.Errorf("xdpprog: set the addresses of %s: %w", p.iface, os.ErrClosed)
	}
	if err := checkAddrs(addrs); err != nil {
		return fmt.Errorf("xdpprog: set the addresses of %s: %w", p.iface, err)
	}
	want := make(map[netip.Addr]bool)
	for _, a := range addrs {
		want[a.Unmap()] = true
	}
	for a := range p.addrs { // first: the table may be full
		if want[a] {
			continue
		}
		if err := p.objs.Addrs.Delete(a.As4()); err != nil {
			return fmt.Errorf("xdpprog: no longer steer %s on %s: %w", a, p.iface, err)
		}
		delete(p.addrs, a)
	}
	for a := range want {
		if err := p.objs.Addrs.Put(a.As4(), uint8(1)); err != nil {
			return fmt.Errorf("xdpprog: steer %s on %s: %w", a, p.iface, err)
		}
		p.addrs[a] = true
	}
	return nil
}

func explainLoad(iface string, err error) error {
	cure := ""
	switch {
	case errors.Is(err, unix.EPERM):
		cure = needCaps
	case errors.Is(features.HaveProgramHelper(ebpf.XDP, asm.FnXdpGetBuffLen), ebpf.ErrNotSupported):
		cure = " (Linux 5.18 or newer is needed)"
	}
	return fmt.Errorf("xdpprog: load the steering program for %s: %w%s", iface, err, cure)
}

// Native reports whether the program runs in the driver. False: it runs in the kernel's generic hook, after the
// kernel has built a packet buffer for each frame; NativeRefused then says why.
func (p *Program) Native() bool { return p.native }

// Dispatched reports whether the program is in a dispatcher, where other programs may be as well.
func (p *Program) Dispatched() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.place != nil
}

// NativeRefused is the driver's refusal that made BestAttach fall back to the generic hook, else nil.
func (p *Program) NativeRefused() error { return p.refused }

// NoMetadata is why the program has no metadata, if Config asked for it; nil: it has, or was not asked for.
func (p *Program) NoMetadata() error { return p.noMetadata }

// Frags reports whether the program was loaded for frames in several buffers (the driver asked for it at this MTU, or it is
// in a dispatcher whose programs all take them): a socket without XDP_USE_SG will not get those frames.
func (p *Program) Frags() bool { return p.frags }

// SetSocket puts an AF_XDP socket that has an RX ring behind a receive queue. The socket's fd stays the caller's.
func (p *Program) SetSocket(queue, fd int) error {
	if err := p.checkQueue(queue); err != nil {
		return err
	}
	if fd < 0 {
		return fmt.Errorf("xdpprog: set the socket of %s queue %d: %w", p.iface, queue, unix.EBADF)
	}
	if err := p.objs.Xsks.Put(uint32(queue), uint32(fd)); err != nil {
		cure := ""
		if errors.Is(err, unix.EOPNOTSUPP) {
			cure = " (it must be an AF_XDP socket that has an RX ring)"
		}
		return fmt.Errorf("xdpprog: set the socket of %s queue %d: %w%s", p.iface, queue, err, cure)
	}
	return nil
}

// Probe has the next answers to ARP probes (requests with sender address 0, RFC 5227), if they have no VLAN tag, come to
// the kernel's UDP sockets on a port, as empty datagrams to 224.0.0.1 whose source port is the number of the queue: so a
// socket learns which NAPI runs the queue. Port 0 ends it.
func (p *Program) Probe(port uint16) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	// The program stores the value's first two bytes as they are.
	if err := p.objs.Probe.Put(uint32(0), [4]byte{byte(port >> 8), byte(port)}); err != nil {
		return fmt.Errorf("xdpprog: have probes of %s answered on port %d: %w", p.iface, port, err)
	}
	return nil
}

// ClearSocket takes the socket of a receive queue away, if it has one: its frames pass to the kernel from here on.
func (p *Program) ClearSocket(queue int) error {
	if err := p.checkQueue(queue); err != nil {
		return err
	}
	// The kernel clears an entry by itself when the last descriptor of its socket is closed.
	if err := p.objs.Xsks.Delete(uint32(queue)); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("xdpprog: clear the socket of %s queue %d: %w", p.iface, queue, err)
	}
	return nil
}

func (p *Program) checkQueue(queue int) error {
	if queue < 0 || queue >= p.queues {
		return fmt.Errorf("xdpprog: %s has queues 0 to %d, not %d", p.iface, p.queues-1, queue)
	}
	return nil
}

// Attached reports whether the program is still attached. Who may (CAP_NET_ADMIN) can detach it behind our back (bpftool
// link detach); nobody is told.
func (p *Program) Attached() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return attached(p.link)
}

func attached(l link.Link) bool {
	if l == nil { // closed, or in a dispatcher (Unloaded)
		return true
	}
	info, err := l.Info()
	if err != nil { // it says nothing
		return true
	}
	xdp := info.XDP()
	return xdp == nil || xdp.Ifindex != 0
}

// Close detaches the program and frees it. The second call does nothing.
func (p *Program) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	var err error
	if p.link != nil {
		// Detach before Close: a child that another goroutine is forking right now holds a copy of the descriptor, and
		// closing ours would leave the program attached until that child execs.
		err = p.link.Detach()
		err = errors.Join(err, p.link.Close())
		p.link = nil
	}
	if p.place != nil {
		err = p.place.leave()
		p.place = nil
	}
	if err = errors.Join(err, p.objs.Close()); err != nil {
		return fmt.Errorf("xdpprog: detach from %s: %w", p.iface, err)
	}
	return nil
}
