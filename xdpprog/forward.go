package xdpprog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ForwardConfig says what a forwarder takes off a device.
type ForwardConfig struct {
	Interface string // for messages
	Ifindex   int    // device in the calling thread's network namespace
	MAC       [6]byte
	Queues    int // receive queues of the device: the size of the socket map
	Attach    Attach
	Metadata  Metadata // NoMetadata or Tags; a router's program passes frames to the kernel whose tag the driver took out

	// Route: IPv4 packets that were sent to MAC and not to an address of the machine (Locals). Without it, a bridge: all frames
	// but those to MAC itself and to the groups that bridges do not pass on (IEEE 802.1Q table 8-1).
	Route  bool
	Locals *Locals
}

// Forward is a loaded and attached program of a forwarder (bpf/forward.c). What it does not give to the sockets goes to the
// kernel. Its methods may be called from any goroutine.
type Forward struct {
	hook
	config ForwardConfig
	objs   forwardParts
}

// forwardParts are what is loaded of the object: one of its programs.
type forwardParts struct {
	forwardMaps
	forwardVariables
	Forward *ebpf.Program `ebpf:"forward"`
}

func (p *forwardParts) Close() error { return errors.Join(p.forwardMaps.Close(), p.Forward.Close()) }

// Locals is a table of the machine's own addresses, which the programs of all of a router's devices share.
type Locals struct {
	table *ebpf.Map
	has   map[netip.Addr]bool
}

// MaxLocals is how many addresses the table takes.
const MaxLocals = 4096

// NewLocals makes an empty table.
func NewLocals() (*Locals, error) {
	m, err := ebpf.NewMap(&ebpf.MapSpec{Name: "locals", Type: ebpf.Hash, KeySize: 4, ValueSize: 1, MaxEntries: MaxLocals})
	if err != nil {
		return nil, fmt.Errorf("xdpprog: make the table of local addresses: %w", explainPrivilege(err))
	}
	return &Locals{m, make(map[netip.Addr]bool)}, nil
}

// Set replaces the addresses. It is for one goroutine at a time.
func (l *Locals) Set(addrs []netip.Addr) error {
	want := make(map[netip.Addr]bool)
	for _, a := range addrs {
		if a = a.Unmap(); a.Is4() {
			want[a] = true
		}
	}
	if len(want) > MaxLocals {
		return fmt.Errorf("xdpprog: the machine has %d IPv4 addresses, and a router takes %d: remove some, or move the router to a network namespace of its own: %w",
			len(want), MaxLocals, unix.E2BIG)
	}
	for a := range l.has { // first: the table may be full
		if want[a] {
			continue
		}
		if err := l.table.Delete(a.As4()); err != nil {
			return fmt.Errorf("xdpprog: forget the local address %s: %w", a, err)
		}
		delete(l.has, a)
	}
	for a := range want {
		if l.has[a] {
			continue
		}
		if err := l.table.Put(a.As4(), uint8(1)); err != nil {
			return fmt.Errorf("xdpprog: add the local address %s: %w", a, err)
		}
		l.has[a] = true
	}
	return nil
}

// Close frees the table; programs that use it keep it.
func (l *Locals) Close() error { return l.table.Close() }

// LoadForward loads the program and attaches it to the device, as Load does.
func LoadForward(c ForwardConfig) (*Forward, error) {
	switch {
	case c.Queues < 1:
		return nil, fmt.Errorf("xdpprog: load for %s: %d receive queues: the socket map needs at least one", c.Interface, c.Queues)
	case c.Metadata > Tags:
		return nil, fmt.Errorf("xdpprog: load for %s: metadata %d: neither NoMetadata nor Tags", c.Interface, c.Metadata)
	case c.Route && c.Locals == nil:
		return nil, fmt.Errorf("xdpprog: load for %s: a router needs a table of local addresses", c.Interface)
	}
	f := &Forward{config: c}
	var err error
	f.hook, err = hookUp(Config{Interface: c.Interface, Ifindex: c.Ifindex, Attach: c.Attach, Metadata: c.Metadata}, f.load, f.objs.Close)
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (f *Forward) load(a attempt) (*ebpf.Program, error) {
	spec, err := loadForward()
	if err != nil {
		return nil, fmt.Errorf("read the built-in program: %w", err)
	}
	spec.Maps[forwardMapXsks].MaxEntries = uint32(f.config.Queues)
	if a.metadata {
		bind(spec, forwardProgForward, forwardProgForwardMetadata, f.config.Ifindex)
	}
	if a.frags {
		spec.Programs[forwardProgForward].Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	for name, value := range map[string]any{
		forwardVarRoute: flag(f.config.Route), forwardVarOwnMac: macWord(f.config.MAC),
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	opts := &ebpf.CollectionOptions{}
	if f.config.Locals != nil {
		opts.MapReplacements = map[string]*ebpf.Map{forwardMapLocals: f.config.Locals.table}
	}
	if err := spec.LoadAndAssign(&f.objs, opts); err != nil {
		return nil, explainPrivilege(err)
	}
	return f.objs.Forward, nil
}

func macWord(mac [6]byte) uint64 {
	var b [8]byte
	copy(b[:], mac[:])
	return binary.LittleEndian.Uint64(b[:])
}

// SetMAC follows a device whose address changed.
func (f *Forward) SetMAC(mac [6]byte) error {
	if err := f.objs.OwnMac.Set(macWord(mac)); err != nil {
		return fmt.Errorf("xdpprog: set the address of %s: %w", f.iface, err)
	}
	return nil
}

// SetSocket puts an AF_XDP socket that has an RX ring behind a receive queue. The socket's fd stays the caller's.
func (f *Forward) SetSocket(queue, fd int) error {
	if queue < 0 || queue >= f.config.Queues || fd < 0 {
		return fmt.Errorf("xdpprog: set the socket of %s queue %d of %d: %w", f.iface, queue, f.config.Queues, unix.EINVAL)
	}
	if err := f.objs.Xsks.Put(uint32(queue), uint32(fd)); err != nil {
		return fmt.Errorf("xdpprog: set the socket of %s queue %d: %w", f.iface, queue, err)
	}
	return nil
}

// forwardNames are in the order of enum verdict in bpf/forward.c.
var forwardNames = [...]string{
	"forward",        // to the forwarder
	"pass_own",       // to the device's own address (bridge), to an address of the machine (router)
	"pass_group",     // to a group or broadcast that is the kernel's
	"pass_protocol",  // router: no IPv4, tagged, or sent to another station
	"pass_short",     // too short to tell
	"pass_no_socket", // no socket is behind that queue
	"drop_no_room",   // bridge: there was no room in front of it for its tag
}

// Counters reads the verdict counters, as Program.Counters does.
func (f *Forward) Counters() ([]Counter, error) {
	out := make([]Counter, len(forwardNames))
	var perCPU []forwardCounter
	for i, name := range forwardNames {
		if err := f.objs.Counters.Lookup(uint32(i), &perCPU); err != nil {
			return nil, fmt.Errorf("xdpprog: read counter %s of %s: %w", name, f.iface, err)
		}
		out[i].Name = name
		for _, c := range perCPU {
			out[i].Packets += c.Packets
			out[i].Bytes += c.Bytes
		}
	}
	return out, nil
}

// Close detaches the program and frees it. The second call does nothing.
func (f *Forward) Close() error { return errors.Join(f.detach(), f.objs.Close()) }
