package xdpprog

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Dispatch says whether the steering program shares the device with other programs, by a dispatcher as libxdp (xdp-loader,
// xdp-filter and others) makes it: a program on the device that calls several others in turn. What the steering program
// passes to the kernel, those behind it still see.
type Dispatch uint8

const (
	AutoDispatch   Dispatch = iota // join a dispatcher that is there; else be alone, by a link that ends with the process
	AlwaysDispatch                 // make one where there is none: others can join later
	NeverDispatch                  // be alone, or fail
)

// DefaultPriority is libxdp's.
const DefaultPriority = 50

// Membership says which program of ours is in a device's dispatcher.
type Membership struct {
	Ifindex    int    `json:"ifindex"`
	BPFFS      string `json:"bpffs"`      // where the dispatcher's parts are pinned
	Program    uint32 `json:"program"`    // id of ours
	Dispatcher uint32 `json:"dispatcher"` // id of the dispatcher that was made for it: others may have made later ones
}

// place is where our program is: in some dispatcher on a device.
type place struct {
	iface string
	dev   *netdev
	Membership
}

// tries is how often others may change the device between our reading and our writing.
const tries = 10

// changed tells that what is attached is not what was read.
func changed(err error) bool {
	return errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY)
}

// hasDispatcher tells whether a dispatcher is on the device, of whatever version. What it cannot find out is no.
func hasDispatcher(ifindex int) bool {
	l, err := netlink.LinkByIndex(ifindex)
	if err != nil || l.Attrs().Xdp == nil || l.Attrs().Xdp.ProgId == 0 {
		return false
	}
	prog, err := ebpf.NewProgramFromID(ebpf.ProgramID(l.Attrs().Xdp.ProgId))
	if err != nil {
		return false
	}
	defer prog.Close()
	info, err := prog.Info()
	if err != nil {
		return false
	}
	_, err = readConfig(prog, info)
	return !errors.Is(err, errNotDispatcher)
}

// Neighbours says which programs are in the device's dispatcher, in their order; none if there is no dispatcher. An error
// says why it cannot be joined. The calling thread must be in the device's network namespace.
func Neighbours(ifindex int) (programs []string, native bool, err error) {
	if !hasDispatcher(ifindex) {
		return nil, false, nil
	}
	dev, err := openNetdev(ifindex)
	if err != nil {
		return nil, false, err
	}
	defer dev.close()
	pins, err := lockPins(bpffsPath())
	if err != nil {
		return nil, false, err
	}
	defer pins.unlock()
	d, err := readDispatcher(dev, pins)
	if err != nil || d == nil {
		return nil, false, err
	}
	defer d.close()
	defer d.closeMembers()
	return d.list(), d.native, nil
}

// ErrNoExtensions means that the kernel does not let programs replace functions of others, which a dispatcher lives on.
var ErrNoExtensions = errors.New("this kernel takes no extension programs, and a dispatcher needs them (Linux 5.10 with BTF, " +
	"CAP_SYS_ADMIN, and no policy against it)")

// ProbeDispatch tries whether this process could join or make a dispatcher: without a device, and leaving nothing.
func ProbeDispatch() error {
	if err := checkBPFFS(bpffsPath()); err != nil {
		return fmt.Errorf("xdpprog: %w", err)
	}
	j := joiner{c: Config{Interface: "a trial", Queues: 1}}
	d, err := buildDispatcher([]member{{name: steerProgSteer, actions: 1 << actionPass, frags: true}}, j.load)
	if err == nil {
		d.close()
	}
	if j.p != nil {
		err = errors.Join(err, j.p.Close())
	}
	return err
}

// join loads the steering program as a part of the device's dispatcher, or of a new one.
func join(c Config) (*Program, error) {
	dev, err := openNetdev(c.Ifindex)
	if err != nil {
		return nil, fmt.Errorf("xdpprog: attach to %s: %w", c.Interface, err)
	}
	j := joiner{c: c, place: &place{iface: c.Interface, dev: dev, Membership: Membership{Ifindex: c.Ifindex, BPFFS: bpffsPath()}}}
	if err := j.run(); err != nil {
		dev.close()
		if j.p != nil {
			err = errors.Join(err, j.p.Close())
		}
		return nil, err
	}
	j.p.place = j.place
	return j.p, nil
}

// joiner is a join under way.
type joiner struct {
	c     Config
	place *place
	p     *Program // once it is loaded
}

func (j *joiner) run() error {
	pins, err := lockPins(j.place.BPFFS)
	if err != nil {
		return fmt.Errorf("xdpprog: join a dispatcher on %s: %w", j.c.Interface, err)
	}
	defer pins.unlock()
	for range tries {
		if err = j.try(pins); !changed(err) {
			return err
		}
	}
	return fmt.Errorf("xdpprog: attach to %s: %w: %s (%v)", j.c.Interface, ErrBusy, nameAttached(j.c.Ifindex), err)
}

func (j *joiner) try(pins *pinDir) error {
	c, dev := &j.c, j.place.dev
	cur, err := readDispatcher(dev, pins)
	switch {
	case changed(err):
		return err
	case errors.Is(err, errNotDispatcher):
		return fmt.Errorf("xdpprog: attach to %s: %w: %s", c.Interface, ErrBusy, nameAttached(c.Ifindex))
	case err != nil:
		return fmt.Errorf("xdpprog: attach to %s: %w: %w; it is not touched", c.Interface, ErrBusy, err)
	}
	defer cur.close()
	defer cur.closeMembers()
	hooks, err := c.hooks(cur)
	if err != nil {
		return err
	}
	us := member{name: steerProgSteer, priority: uint32(c.Priority), actions: 1 << actionPass, frags: true}
	if c.Priority == 0 {
		us.priority = DefaultPriority
	}
	var members []member
	if cur != nil {
		members = cur.members
	}
	if j.p != nil {
		us.prog, us.id = j.p.objs.Steer, ebpf.ProgramID(j.place.Program)
	}
	next, err := buildDispatcher(insert(members, us), j.load)
	if err != nil {
		return fmt.Errorf("xdpprog: join the dispatcher on %s: %w", c.Interface, err)
	}
	defer next.close()
	if err := j.tell(next); err != nil {
		return err
	}
	return j.attach(pins, cur, next, hooks)
}

// hooks lists what may be tried: native is true.
func (c *Config) hooks(cur *dispatcher) ([]bool, error) {
	switch {
	case cur == nil && c.Attach == BestAttach:
		return []bool{true, false}, nil
	case cur == nil:
		return []bool{c.Attach == Native}, nil
	case c.Attach == Native && !cur.native:
		return nil, fmt.Errorf("xdpprog: attach to %s: %w: a dispatcher with %v, in the generic hook: native is not possible beside it",
			c.Interface, ErrBusy, cur)
	case c.Attach == Generic && cur.native:
		return nil, fmt.Errorf("xdpprog: attach to %s: %w: a dispatcher with %v, in the native hook: generic is not possible beside it",
			c.Interface, ErrBusy, cur)
	}
	return []bool{cur.native}, nil
}

func (j *joiner) load(target *ebpf.Program, slot string) (*ebpf.Program, error) {
	p, err := openAs(j.c, func(spec *ebpf.CollectionSpec) {
		steer := spec.Programs[steerProgSteer]
		steer.Type, steer.AttachType = ebpf.Extension, ebpf.AttachNone
		steer.AttachTarget, steer.AttachTo = target, slot
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoExtensions, err)
	}
	if j.c.Metadata != NoMetadata {
		p.noMetadata = fmt.Errorf("xdpprog: no metadata of frames from %s: a program in a dispatcher has none", j.c.Interface)
	}
	j.p = p
	return p.objs.Steer, nil
}

// tell writes down who we are before anything outlives the process.
func (j *joiner) tell(next *dispatcher) error {
	info, err := j.p.objs.Steer.Info()
	if err != nil {
		return fmt.Errorf("xdpprog: ask about the steering program: %w", err)
	}
	id, _ := info.ID()
	j.place.Program, j.place.Dispatcher = uint32(id), uint32(next.id)
	if j.c.Joins == nil {
		return nil
	}
	return j.c.Joins(j.place.Membership)
}

func (j *joiner) attach(pins *pinDir, cur, next *dispatcher, hooks []bool) error {
	var first error
	for _, native := range hooks {
		err := replace(j.place.dev, pins, cur, next, native)
		if err == nil {
			j.p.native, j.p.frags, j.p.refused = native, next.frags, first
			return nil
		}
		if changed(err) {
			return err
		}
		explained := explainAttach(j.c, attempt{native: native}, err)
		if errors.Is(err, unix.ERANGE) && !next.frags {
			explained = fmt.Errorf("%w; of %v not all can take frames in several buffers, which this MTU needs", explained, next)
		}
		if !driverRefused(err) {
			return explained
		}
		if first == nil {
			first = explained
		}
	}
	return first
}

// replace pins a dispatcher and has it take the place of cur, nil for nothing.
func replace(dev *netdev, pins *pinDir, cur, next *dispatcher, native bool) error {
	dir := pins.of(dev.index, next.id)
	err := next.pin(dir)
	if err == nil {
		var was *ebpf.Program
		if cur != nil {
			was = cur.prog
		}
		err = dev.swap(was, next.prog, native)
	}
	if err != nil {
		return errors.Join(err, unpin(dir))
	}
	next.native = native
	if cur != nil {
		return unpin(pins.of(dev.index, cur.id))
	}
	return nil
}

// leave takes our program out of whatever dispatcher the device has now. Pinned by others too, it would run on.
func (pl *place) leave() error {
	defer pl.dev.close()
	_, err := pl.Membership.leave(pl.dev)
	if err != nil {
		return fmt.Errorf("xdpprog: leave the dispatcher on %s: %w", pl.iface, err)
	}
	return nil
}

// Leave takes the program of a process that was killed out of its dispatcher, and tells whether it was in one. The calling
// thread must be in the device's network namespace.
func Leave(m Membership) (left bool, err error) {
	dev, err := openNetdev(m.Ifindex)
	if err == nil {
		defer dev.close()
		left, err = m.leave(dev)
	}
	if err != nil {
		return left, fmt.Errorf("xdpprog: leave the dispatcher on interface %d: %w", m.Ifindex, err)
	}
	return left, nil
}

func (m Membership) leave(dev *netdev) (left bool, err error) {
	pins, err := lockPins(m.BPFFS)
	if err != nil {
		return false, err
	}
	defer pins.unlock()
	for range tries {
		if left, err = m.tryLeave(dev, pins); !changed(err) {
			break
		}
	}
	if err != nil {
		return false, err
	}
	return left, m.sweep(dev, pins)
}

func (m Membership) tryLeave(dev *netdev, pins *pinDir) (left bool, err error) {
	cur, err := readDispatcher(dev, pins)
	if errors.Is(err, errNotDispatcher) {
		return false, nil
	}
	if err != nil || cur == nil {
		return false, err
	}
	defer cur.close()
	defer cur.closeMembers()
	slot := cur.find(ebpf.ProgramID(m.Program))
	if slot < 0 {
		return false, nil
	}
	rest := slices.Delete(slices.Clone(cur.members), slot, slot+1)
	if len(rest) == 0 {
		if err := dev.swap(cur.prog, nil, cur.native); err != nil {
			return false, err
		}
		return true, unpin(pins.of(dev.index, cur.id))
	}
	next, err := buildDispatcher(rest, nil)
	if err != nil {
		return false, err
	}
	defer next.close()
	return true, replace(dev, pins, cur, next, cur.native)
}

// sweep removes the pins of a dispatcher that was never attached, or whose device is gone.
func (m Membership) sweep(dev *netdev, pins *pinDir) error {
	id, _, err := dev.attached()
	if err != nil {
		return err
	}
	dirs := []string{pins.of(m.Ifindex, ebpf.ProgramID(m.Dispatcher))}
	if _, err := dev.handle.LinkByIndex(m.Ifindex); errors.As(err, new(netlink.LinkNotFoundError)) {
		if dirs, err = filepath.Glob(filepath.Join(pins.path, fmt.Sprintf("dispatch-%d-*", m.Ifindex))); err != nil {
			return err
		}
	}
	var errs []error
	for _, dir := range dirs {
		in, err := m.in(dir)
		if in && dir != pins.of(m.Ifindex, id) {
			err = unpin(dir)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// in tells whether our program is pinned in a dispatcher's folder.
func (m Membership) in(dir string) (bool, error) {
	for i := range dispatcherSlots {
		p, err := ebpf.LoadPinnedProgram(progPin(dir, i), nil)
		if errors.Is(err, os.ErrNotExist) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		us := member{prog: p}
		err = us.describe()
		p.Close()
		if err != nil || uint32(us.id) == m.Program {
			return err == nil, err
		}
	}
	return false, nil
}

// Unloaded reports whether the program is in no dispatcher of the device any more, because somebody took it out or the
// dispatcher off. Of a program that is alone, and where it may not look, it says no.
func (p *Program) Unloaded() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.place == nil {
		return false
	}
	pins := pinDir{path: filepath.Join(p.place.BPFFS, "xdp")}
	for was := ebpf.ProgramID(0); ; {
		id, _, err := p.place.dev.attached()
		if err != nil || id == 0 {
			return err == nil
		}
		if in, err := p.place.in(pins.of(p.place.Ifindex, id)); in || err != nil {
			return false
		}
		if id == was { // not one whose pins went away while we looked, because another took its place
			return true
		}
		was = id
	}
}
