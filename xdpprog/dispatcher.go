package xdpprog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// What libxdp's protocol.org fixes.
const (
	dispatcherSlots   = 10
	dispatcherMagic   = 236
	dispatcherVersion = 2
	emptySlot         = 31 // action of a slot without a program
	actionPass        = 2  // XDP_PASS in linux/bpf.h
)

// dispatcherConfig is the dispatcher's read-only data, as bpf/dispatcher.c and libxdp have it.
type dispatcherConfig struct {
	Magic, Version, Programs, Frags uint8
	ChainActions                    [dispatcherSlots]uint32
	Priorities                      [dispatcherSlots]uint32
	Flags                           [dispatcherSlots]uint32
}

// member is a program in a dispatcher.
type member struct {
	prog     *ebpf.Program // nil: not loaded yet
	id       ebpf.ProgramID
	name     string
	priority uint32
	actions  uint32 // bit n: after action n the next program has its turn
	frags    bool   // it can take frames in several buffers
}

// dispatcher is a program that runs its members in turn.
type dispatcher struct {
	prog    *ebpf.Program
	id      ebpf.ProgramID
	native  bool
	frags   bool
	members []member
	links   []link.Link // of members to prog; none in a dispatcher that was read
}

// close lets go of the descriptors; what is pinned or attached stays. The members' programs stay open.
func (d *dispatcher) close() {
	if d == nil {
		return
	}
	for _, l := range d.links {
		l.Close()
	}
	d.prog.Close()
}

// closeMembers is for the programs of a dispatcher that was read.
func (d *dispatcher) closeMembers() {
	if d == nil {
		return
	}
	for _, m := range d.members {
		m.prog.Close()
	}
}

// find tells the slot of a program, or -1.
func (d *dispatcher) find(id ebpf.ProgramID) int {
	if d == nil {
		return -1
	}
	return slices.IndexFunc(d.members, func(m member) bool { return m.id == id })
}

// list names the members in their order.
func (d *dispatcher) list() (names []string) {
	for _, m := range d.members {
		names = append(names, fmt.Sprintf("%s (priority %d)", m.name, m.priority))
	}
	return names
}

func (d *dispatcher) String() string { return strings.Join(d.list(), ", ") }

// errNotDispatcher: what is attached is a program of another kind.
var errNotDispatcher = errors.New("no dispatcher of libxdp")

// readConfig tells whether a program is a dispatcher that we know, and how it is set up.
func readConfig(prog *ebpf.Program, info *ebpf.ProgramInfo) (c dispatcherConfig, err error) {
	ids, _ := info.MapIDs()
	if info.Name != dispatcherProgXdpDispatcher || len(ids) != 1 {
		return c, errNotDispatcher
	}
	m, err := ebpf.NewMapFromID(ids[0])
	if err != nil {
		return c, fmt.Errorf("open the dispatcher's configuration: %w", err)
	}
	defer m.Close()
	if m.KeySize() != 4 || m.MaxEntries() != 1 || m.ValueSize() < 2 || m.Flags()&unix.BPF_F_RDONLY_PROG == 0 {
		return c, errNotDispatcher
	}
	value, err := m.LookupBytes(uint32(0))
	switch {
	case err != nil:
		return c, fmt.Errorf("read the dispatcher's configuration: %w", err)
	case value[0] != dispatcherMagic:
		return c, errors.New("a dispatcher of libxdp older than 1.3 (version 1), which cannot be joined: unload its programs " +
			"(xdp-loader unload --all), and load them with a newer libxdp")
	case value[1] != dispatcherVersion:
		return c, fmt.Errorf("a dispatcher of version %d, which cannot be joined: the engine knows version %d (libxdp 1.3 to 1.5)",
			value[1], dispatcherVersion)
	case len(value) != binary.Size(c):
		return c, fmt.Errorf("a dispatcher whose configuration has %d bytes, and not %d", len(value), binary.Size(c))
	}
	if err := binary.Read(bytes.NewReader(value), binary.NativeEndian, &c); err != nil {
		return c, err
	}
	if c.Programs > dispatcherSlots {
		return c, fmt.Errorf("a dispatcher that says it has %d programs", c.Programs)
	}
	return c, nil
}

// readDispatcher reads what is attached to the device: nil for nothing. An error that is not the kernel's says why it
// cannot be joined.
func readDispatcher(dev *netdev, pins *pinDir) (d *dispatcher, err error) {
	id, native, err := dev.attached()
	if err != nil || id == 0 {
		return nil, err
	}
	prog, err := ebpf.NewProgramFromID(id)
	if errors.Is(err, os.ErrNotExist) { // gone meanwhile
		return nil, unix.EAGAIN
	}
	if err != nil {
		return nil, fmt.Errorf("open program id %d (needs CAP_SYS_ADMIN): %w", id, err)
	}
	d = &dispatcher{prog: prog, id: id, native: native}
	defer func() {
		if err != nil {
			d.closeMembers()
			d.close()
		}
	}()
	info, err := prog.Info()
	if err != nil {
		return d, err
	}
	conf, err := readConfig(prog, info)
	if err != nil {
		return d, err
	}
	d.frags = conf.Frags != 0
	dir := pins.of(dev.index, id)
	for i := range int(conf.Programs) {
		p, err := ebpf.LoadPinnedProgram(progPin(dir, i), nil)
		if errors.Is(err, os.ErrNotExist) {
			return d, fmt.Errorf("a dispatcher whose programs are not pinned in %s: it was loaded with another LIBXDP_BPFFS, "+
				"in another mount namespace, or by another manager of programs", dir)
		}
		if err != nil {
			return d, fmt.Errorf("open a program of the dispatcher: %w", err)
		}
		m := member{
			prog: p, priority: conf.Priorities[i], actions: conf.ChainActions[i] &^ (1 << emptySlot),
			frags: conf.Flags[i]&unix.BPF_F_XDP_HAS_FRAGS != 0,
		}
		d.members = append(d.members, m)
		if err := d.members[i].describe(); err != nil {
			return d, err
		}
	}
	return d, nil
}

// describe asks the kernel for id and name.
func (m *member) describe() error {
	info, err := m.prog.Info()
	if err != nil {
		return fmt.Errorf("ask about a program: %w", err)
	}
	m.name = info.Name
	m.id, _ = info.ID()
	return nil
}

// insert gives the members with one more, in the order in which libxdp would have them: by priority, then by name.
func insert(members []member, m member) []member {
	out := append(slices.Clone(members), m)
	slices.SortStableFunc(out, func(a, b member) int {
		if a.priority != b.priority {
			return int(a.priority) - int(b.priority)
		}
		return strings.Compare(a.name, b.name)
	})
	return out
}

// loader loads a program that is to take a slot of a dispatcher.
type loader func(target *ebpf.Program, slot string) (*ebpf.Program, error)

// buildDispatcher loads a dispatcher and attaches the members to it, of which load loads the one that has no program yet.
func buildDispatcher(members []member, load loader) (*dispatcher, error) {
	if len(members) > dispatcherSlots {
		return nil, fmt.Errorf("the dispatcher has %d places, and all are taken", dispatcherSlots)
	}
	conf := dispatcherConfig{Magic: dispatcherMagic, Version: dispatcherVersion, Programs: uint8(len(members)), Frags: 1}
	for i, m := range members {
		conf.ChainActions[i], conf.Priorities[i] = m.actions|1<<emptySlot, m.priority
		if m.frags {
			conf.Flags[i] = unix.BPF_F_XDP_HAS_FRAGS
		} else {
			conf.Frags = 0
		}
	}
	prog, err := loadXDPDispatcher(conf)
	if err != nil {
		return nil, fmt.Errorf("load a dispatcher: %w", err)
	}
	d := &dispatcher{prog: prog, members: slices.Clone(members), frags: conf.Frags != 0}
	if err := d.fill(load); err != nil {
		d.close()
		return nil, err
	}
	return d, nil
}

func loadXDPDispatcher(conf dispatcherConfig) (*ebpf.Program, error) {
	spec, err := loadDispatcher()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables[dispatcherVarConf].Set(conf); err != nil {
		return nil, err
	}
	if conf.Frags != 0 {
		spec.Programs[dispatcherProgXdpDispatcher].Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	var objs dispatcherPrograms
	err = spec.LoadAndAssign(&objs, nil)
	return objs.XdpDispatcher, err
}

func (d *dispatcher) fill(load loader) error {
	info, err := d.prog.Info()
	if err != nil {
		return fmt.Errorf("ask about the dispatcher: %w", err)
	}
	d.id, _ = info.ID()
	for i := range d.members {
		m := &d.members[i]
		slot := fmt.Sprintf("prog%d", i)
		if m.prog == nil {
			if m.prog, err = load(d.prog, slot); err != nil {
				return err
			}
			if err := m.describe(); err != nil {
				return err
			}
		}
		l, err := link.AttachFreplace(d.prog, slot, m.prog)
		if err != nil {
			return fmt.Errorf("attach %s to a dispatcher (needs Linux 5.10, BTF and CAP_SYS_ADMIN): %w", m.name, err)
		}
		d.links = append(d.links, l)
	}
	return nil
}

// pin makes the folder from which others know the members.
func (d *dispatcher) pin(dir string) error {
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("pin a dispatcher: %w", err)
	}
	for i, m := range d.members {
		if err := d.links[i].Pin(linkPin(dir, i)); err != nil {
			return fmt.Errorf("pin a dispatcher: %w", err)
		}
		// Not Pin of the program itself: it may be pinned in the folder of another dispatcher at the same time.
		p, err := m.prog.Clone()
		if err == nil {
			err = p.Pin(progPin(dir, i))
			p.Close()
		}
		if err != nil {
			return fmt.Errorf("pin a dispatcher: %w", err)
		}
	}
	return nil
}
