package xdpd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/journal"
	"xdpd/proto"
	"xdpd/rings"
)

// DefaultJournalDir is where engines write down what they change on devices.
const DefaultJournalDir = "/run/xdpd"

// NAPIStats says who may run the NAPIs of the queues.
type NAPIStats struct {
	Mode Arrangement
	// ID of the NAPI that the engine may run, as netlink has it; 0: none. What says whose it is, or why there is none.
	ID   uint32
	What string
	// All are the interface's NAPIs with their settings as they are now, where the kernel tells (Linux 6.13).
	All []rings.NAPIInfo
}

// napiLearner finds out which NAPI is a queue's: it asks a neighbour something whose answer the steering program turns into
// a datagram for the kernel's socket that wants to know.
type napiLearner struct {
	want  chan struct{} // a reactor wants a NAPI to drive
	sock  *rings.NAPI   // nil: there can be none here
	raw   int           // AF_PACKET, for the question
	netns uint64
	entry *journal.Entry
	id    atomic.Uint32
	what  atomic.Pointer[string]

	all     *rings.NAPIs // nil: the kernel does not tell
	changed []changedNAPI
}

// changedNAPI is one whose settings were changed for as long as the engine runs.
type changedNAPI struct {
	id      uint32
	was, is rings.NAPISettings
	entry   *journal.Entry
}

// napiChange is what the journal holds: settings of a NAPI while an engine may be driving it.
type napiChange struct {
	NetNS     uint64             `json:"netns"` // inode of the network namespace
	Interface string             `json:"interface"`
	Ifindex   int                `json:"ifindex"`
	NAPI      uint32             `json:"napi"`
	Was       rings.NAPISettings `json:"was"`
	Is        rings.NAPISettings `json:"is"`
}

// ask is called by reactors.
func (n *napiLearner) ask() {
	select {
	case n.want <- struct{}{}:
	default:
	}
}

func (n *napiLearner) say(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	n.what.Store(&text)
}

func (s *Stack) napiStats() NAPIStats {
	st := NAPIStats{Mode: s.cfg.NAPI, ID: s.napi.id.Load()}
	if text := s.napi.what.Load(); text != nil {
		st.What = *text
	}
	if s.napi.all != nil {
		st.All, _ = s.napi.all.Of(s.dev.index) // of an interface that is gone there are none
	}
	return st
}

// openNAPI restores what an engine that was killed left behind, and prepares to learn the NAPI, in the interface's
// namespace.
func (s *Stack) openNAPI() error {
	n := &s.napi
	n.raw = -1
	_, err := restoreHere(s.cfg.JournalDir) // where it may not read, it could not write either
	if errors.Is(err, fs.ErrPermission) {
		err = fmt.Errorf("%w: name another folder for the journal (Config.JournalDir; journal in xdpd's config file)", err)
	}
	var aerr error
	if n.all, aerr = rings.OpenNAPIs(); aerr != nil {
		n.all = nil
	}
	switch s.cfg.NAPI {
	case SuspendNAPI, ThreadedNAPI:
		if err = errors.Join(err, aerr); err == nil {
			err = s.setNAPIs()
		}
		if err != nil {
			return fmt.Errorf("xdpd: NAPIs of %s, %v: %w", s.cfg.Interface, s.cfg.NAPI, err)
		}
		return nil
	}
	if err == nil {
		err = s.tryNAPI()
	}
	if err == nil {
		n.say("not known yet: nothing wanted to drive it, or no neighbour answered")
		return nil
	}
	n.say("%v", err)
	if s.cfg.NAPI == DriveNAPI {
		return fmt.Errorf("xdpd: drive the NAPI of %s: %w", s.cfg.Interface, err)
	}
	return n.close()
}

// setNAPIs has the NAPIs of the queues run as SuspendNAPI or ThreadedNAPI want it, after what they are to be restored to was
// written down. Where the driver does not say which these are, those of the interface, if that is enough.
func (s *Stack) setNAPIs() (err error) {
	n := &s.napi
	if n.netns, err = ownNetNS(); err != nil {
		return err
	}
	all, err := n.all.Of(s.dev.index)
	if err != nil {
		return err
	}
	wanted := make(map[uint32]bool)
	for _, q := range s.queues {
		id, err := n.all.OfQueue(s.dev.index, q.id)
		if err != nil {
			return err
		}
		if id != 0 {
			wanted[id] = true
		}
	}
	told := len(wanted) == len(s.queues)
	switch {
	case s.cfg.NAPI == SuspendNAPI && !s.program.Native():
		return errors.New("the steering program is attached in generic mode: no socket learns which NAPI is its queue's")
	case s.cfg.NAPI == SuspendNAPI && !told:
		return fmt.Errorf("the driver, %s, does not tell which NAPI is a queue's", s.dev.driver)
	case len(all) == 0:
		return fmt.Errorf("the driver, %s, has none", s.dev.driver)
	}
	for _, i := range all {
		if told && !wanted[i.ID] {
			continue
		}
		is := i.NAPISettings
		if s.cfg.NAPI == SuspendNAPI {
			is = is.Suspendable()
		} else {
			is.Threaded = 1
		}
		if err := s.setNAPI(i.ID, i.NAPISettings, is); err != nil {
			return err
		}
	}
	if s.cfg.NAPI == SuspendNAPI {
		n.say("the kernel polls them from the reactors' epoll_wait while there are packets, and else lets the device interrupt")
	} else {
		n.say("threads of the kernel's run them")
	}
	return nil
}

func (s *Stack) setNAPI(id uint32, was, is rings.NAPISettings) error {
	if was == is {
		return nil
	}
	n := &s.napi
	name := fmt.Sprintf("napi-%d-%d-%d", n.netns, s.dev.index, id)
	entry, err := journal.Write(s.cfg.JournalDir, name, napiChange{
		NetNS: n.netns, Interface: s.cfg.Interface, Ifindex: s.dev.index, NAPI: id, Was: was, Is: is,
	})
	if err != nil {
		return err
	}
	n.changed = append(n.changed, changedNAPI{id, was, is, entry})
	changed, err := n.all.Change(id, was, is)
	if err == nil && !changed {
		err = fmt.Errorf("somebody changes the settings of NAPI %d", id)
	}
	if errors.Is(err, unix.EINVAL) {
		err = fmt.Errorf("%w (suspend needs Linux 6.13, threaded 6.17)", err)
	}
	return err
}

// restoreNAPIs undoes what setNAPIs did; settings that somebody else changed stay.
func (n *napiLearner) restoreNAPIs() (err error) {
	for _, c := range n.changed {
		_, cerr := n.all.Change(c.id, c.is, c.was)
		if cerr == nil {
			cerr = c.entry.Remove()
		}
		err = errors.Join(err, cerr)
	}
	n.changed = nil
	if n.all != nil {
		err = errors.Join(err, n.all.Close())
	}
	return err
}

func (s *Stack) tryNAPI() (err error) {
	n := &s.napi
	switch {
	case s.cfg.NAPI == SoftirqNAPI:
		return errors.New("not wanted")
	case s.dev.driver != "veth":
		return fmt.Errorf("the driver is %s: only veth is known to gain by it", s.dev.driver)
	case !s.program.Native():
		return errors.New("the steering program is attached in generic mode, which no NAPI runs")
	case len(s.cfg.VLANs) > 0:
		return errors.New("frames have VLAN tags")
	}
	if n.netns, err = ownNetNS(); err != nil {
		return err
	}
	if n.sock, err = rings.OpenNAPI(s.cfg.Interface); err != nil {
		return err
	}
	if n.raw, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open an AF_PACKET socket: %w", err)
	}
	return nil
}

// ownNetNS is the inode of the calling thread's network namespace.
func ownNetNS() (uint64, error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return 0, fmt.Errorf("own network namespace: %w", err)
	}
	return st.Ino, nil
}

// learnNAPI waits until a reactor wants to drive, and then asks neighbours until the NAPI is known.
func (s *Stack) learnNAPI(ctx context.Context) {
	const first, longest = 100 * time.Millisecond, 10 * time.Second
	for pause := first; ; pause = min(2*pause, longest) {
		select {
		case <-ctx.Done():
			return
		case <-s.napi.want:
		}
		if queue, ok := s.probe(ctx); ok {
			if err := s.offer(queue); err != nil {
				s.napi.say("%v", err)
			}
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
	}
}

// probe asks neighbours for their addresses, from nobody (RFC 5227), so that no answer is missed by anybody. It gives the
// queue that an answer came to.
func (s *Stack) probe(ctx context.Context) (queue int, ok bool) {
	n := &s.napi
	if err := s.program.Probe(n.sock.Port()); err != nil {
		n.say("%v", err)
		return 0, false
	}
	defer s.program.Probe(0) // at worst a later answer comes to a socket that is deaf
	for _, a := range s.neighbours() {
		if s.sendProbe(a) != nil {
			continue
		}
		for range 20 {
			if source, ok := n.sock.Hear(); ok {
				return int(source), true
			}
			select {
			case <-ctx.Done():
				return 0, false
			case <-time.After(time.Millisecond):
			}
		}
	}
	return 0, false
}

// neighbours lists some that the reactors exchange packets with.
func (s *Stack) neighbours() (list []proto.Addr) {
	for _, q := range s.queues {
		if h, _, ok := q.reactor.Enter(); ok {
			list = append(list, h.Neighbours(8)...)
		}
		q.reactor.Leave()
	}
	return list
}

func (s *Stack) sendProbe(a proto.Addr) error {
	everybody := proto.MAC{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	var b [60]byte // the shortest frame
	mac := s.linkState().mac
	off := proto.PutEthernet(b[:], everybody, mac, proto.EtherARP)
	proto.PutARP(b[off:], &proto.ARP{Op: proto.ARPRequest, SHA: mac, TPA: a})
	return unix.Sendto(s.napi.raw, b[:], 0, &unix.SockaddrLinklayer{Ifindex: s.dev.index})
}

// offer gives a reactor the NAPI of its queue, after what it is to be restored to was written down.
func (s *Stack) offer(queue int) error {
	n := &s.napi
	for _, q := range s.queues {
		if q.id != queue {
			continue
		}
		was, err := n.sock.Settings()
		if err != nil {
			return err
		}
		name := fmt.Sprintf("napi-%d-%d", n.netns, s.dev.index)
		n.entry, err = journal.Write(s.cfg.JournalDir, name, napiChange{
			NetNS: n.netns, Interface: s.cfg.Interface, Ifindex: s.dev.index, NAPI: n.sock.ID(), Was: was, Is: was.Driven(),
		})
		if err != nil {
			return err
		}
		n.say("NAPI %d of queue %d", n.sock.ID(), queue)
		n.id.Store(n.sock.ID())
		q.reactor.SetNAPI(n.sock)
		return nil
	}
	return fmt.Errorf("the neighbours' answers come to queue %d, which is not served", queue)
}

// loseNAPI is called when the link went down: the driver may have made a new NAPI when it comes up again (veth_open).
func (s *Stack) loseNAPI() {
	if s.napi.id.Swap(0) == 0 {
		return
	}
	s.napi.say("the link was down meanwhile, and the queue may have another NAPI; a new start of the engine finds it")
	for _, q := range s.queues {
		q.reactor.SetNAPI(nil)
	}
}

// close gives the NAPI back, after the reactors stopped.
func (n *napiLearner) close() error {
	if n.sock == nil {
		return nil
	}
	err := n.sock.Close()
	if n.raw >= 0 {
		err = errors.Join(err, unix.Close(n.raw))
	}
	if n.entry != nil {
		err = errors.Join(err, n.entry.Remove())
	}
	n.sock, n.entry, n.raw = nil, nil, -1
	return err
}

// Restore undoes what engines changed on the devices of a network namespace (a path, or a name in /run/netns; empty: the
// caller's) and could not undo because they were killed. It leaves alone what belongs to a running engine, and what
// somebody else changed since. dir is their Config.JournalDir. It says what it restored.
func Restore(dir, ns string) (done []string, err error) {
	if dir == "" {
		dir = DefaultJournalDir
	}
	err = inNamespace(ns, func() (err error) {
		done, err = restoreHere(dir)
		left, lerr := restoreDispatch(dir)
		tags, terr := restoreTags(dir)
		done = append(append(done, left...), tags...)
		if err = errors.Join(err, lerr, terr); errors.Is(err, fs.ErrPermission) {
			return fmt.Errorf("xdpd: restore from %s: it takes CAP_NET_ADMIN, and who may read what engines wrote down, which is mostly root: %w", dir, fs.ErrPermission)
		}
		if err != nil {
			return fmt.Errorf("xdpd: %w", err)
		}
		return nil
	})
	return done, err
}

func restoreHere(dir string) (done []string, err error) {
	here, err := ownNetNS()
	if err != nil {
		return nil, err
	}
	err = journal.Replay(dir, func(c napiChange) (bool, error) {
		if c.NetNS != here {
			return false, nil
		}
		changed, err := rings.RestoreNAPI(c.Ifindex, c.NAPI, c.Is, c.Was)
		if changed {
			done = append(done, fmt.Sprintf("%s: NAPI %d has its settings again: %v", c.Interface, c.NAPI, c.Was))
		}
		return err == nil, err
	})
	return done, err
}
