package xdpd

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"xdpd/internal/krnet"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// Open takes over the interface's queues and starts their reactors. The caller needs CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF
// and, for more packet memory than RLIMIT_MEMLOCK, CAP_IPC_LOCK; with Config.Grant only the last. Errors name the operation, the interface and the cure;
// after one nothing is left behind.
func Open(cfg Config) (*Stack, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	s, err := openStack(cfg, "")
	if errors.Is(err, rings.ErrUnsent) && cfg.Mode == Best {
		why := err.Error()
		cfg.Mode = Copy
		s, err = openStack(cfg, why)
	}
	if err != nil {
		return nil, err
	}
	if cfg.Opened != nil {
		if err := cfg.Opened(); err != nil {
			return nil, errors.Join(err, s.release())
		}
	}
	s.start()
	return s, nil
}

// openStack opens all that Open does, or nothing. notZeroCopy is why it is not to try that, for Stats.
func openStack(cfg Config, notZeroCopy string) (*Stack, error) {
	s := &Stack{cfg: cfg, notZeroCopy: notZeroCopy, done: make(chan struct{}), napi: napiLearner{want: make(chan struct{}, 1)}}
	if err := inNamespace(cfg.NetNS, s.open); err != nil {
		s.release()
		return nil, err
	}
	return s, nil
}

// inNamespace runs f on a thread in the namespace. A thread that cannot be brought back is left to die with its
// goroutine.
func inNamespace(name string, f func() error) error {
	if name == "" {
		return f()
	}
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			result <- fmt.Errorf("xdpd: own network namespace: %w", err)
			return
		}
		defer home.Close()
		if !strings.Contains(name, "/") {
			name = "/run/netns/" + name
		}
		ns, err := netns.GetFromPath(name)
		if err != nil {
			result <- fmt.Errorf("xdpd: network namespace %s: %w", name, err)
			return
		}
		defer ns.Close()
		if err := netns.Set(ns); err != nil {
			result <- fmt.Errorf("xdpd: enter network namespace %s (needs CAP_SYS_ADMIN): %w", name, err)
			return
		}
		err = f()
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// device is what Open learns about the interface.
type device struct {
	index  int
	mtu    int
	mac    proto.MAC
	queues int
	cable  bool // it has a carrier
	driver string
	rss    *proto.RSS     // nil: not known
	hash   string         // what rss is, or why it is not known
	addrs  []netip.Prefix // the kernel's
}

func findDevice(name string) (device, error) {
	link, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	if errors.As(err, &missing) {
		return device{}, fmt.Errorf("xdpd: there is no interface %s in this network namespace: %w", name, unix.ENODEV)
	}
	if err != nil {
		return device{}, fmt.Errorf("xdpd: interface %s: %w", name, err)
	}
	a := link.Attrs()
	if len(a.HardwareAddr) != 6 || a.RawFlags&unix.IFF_LOOPBACK != 0 {
		return device{}, fmt.Errorf("xdpd: interface %s is no Ethernet device: the engine needs one, real or veth", name)
	}
	d := device{index: a.Index, mtu: a.MTU, mac: proto.MAC(a.HardwareAddr), queues: max(1, rings.QueueCount(name, a.Index))}
	d.cable, d.driver = a.RawFlags&unix.IFF_LOWER_UP != 0, driverOf(name)
	d.rss, d.hash = readRSS(name)
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil && !errors.Is(err, netlink.ErrDumpInterrupted) {
		return device{}, fmt.Errorf("xdpd: addresses of interface %s: %w", name, err)
	}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP.To4()); ok {
			bits, _ := a.Mask.Size()
			d.addrs = append(d.addrs, netip.PrefixFrom(ip, bits))
		}
	}
	return d, nil
}

// driverOf is the name of the interface's driver, "" where it does not tell.
func driverOf(name string) string {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	info, err := unix.IoctlGetEthtoolDrvinfo(fd, name)
	if err != nil {
		return ""
	}
	return unix.ByteSliceToString(info.Driver[:])
}

// readRSS gives the device's choice of queues, with words for it; nil where it is not known, and why.
func readRSS(name string) (*proto.RSS, string) {
	told, err := rings.ReadRSS(name)
	if err != nil {
		return nil, err.Error()
	}
	rss, err := proto.NewRSS(told.Key, told.Table, told.TCP, told.UDP)
	if err != nil {
		return nil, err.Error()
	}
	return rss, told.String()
}

// leavesPartial reports drivers whose frames may carry only the pseudo-header's checksum: their other end is a kernel
// that believed in a checksum offload.
func (d *device) leavesPartial() bool {
	switch d.driver {
	case "veth", "virtio_net", "tun", "bridge":
		return true
	}
	return false
}

// open builds everything up to, but not including, the running reactors.
func (s *Stack) open() error {
	dev, err := findDevice(s.cfg.Interface)
	if err != nil {
		return err
	}
	for _, p := range dev.addrs { // a Granter has looked
		ours := func(a netip.Prefix) bool { return a.Addr().Unmap() == p.Addr() }
		if s.cfg.Grant == "" && slices.ContainsFunc(s.cfg.Addrs, ours) {
			return fmt.Errorf("xdpd: the kernel has %v on %s, and would hear nothing that comes for it any more, ssh neither: share it (Share, --share), "+
				"or ip addr del %v dev %s", p.Addr(), s.cfg.Interface, p, s.cfg.Interface)
		}
	}
	s.dev, s.link, s.mode = dev, linkState{s.cfg.Interface, dev.mtu, dev.mac}, s.cfg.Mode
	s.all = s.cfg.Queues == nil
	if len(s.cfg.VLANs) < 2 { // devices differ in how deep they look
		s.steer.rss = dev.rss
	} else if dev.rss != nil {
		s.dev.hash = "frames with two VLAN tags may be hashed otherwise"
	}
	if s.kernel, err = krnet.Open(dev.index); err != nil {
		return fmt.Errorf("xdpd: %w", err)
	}
	if s.asking, err = rings.OpenChannels(); err != nil {
		return err
	}
	if s.cfg.Queues == nil {
		for q := range dev.queues {
			s.cfg.Queues = append(s.cfg.Queues, q)
		}
	}
	queues := len(s.cfg.Queues)
	if queues > sockets.MaxHosts {
		return fmt.Errorf("xdpd: %d queues of %s, and an engine serves %d at most: list some of them, or ethtool -L %s combined %d",
			queues, s.cfg.Interface, sockets.MaxHosts, s.cfg.Interface, sockets.MaxHosts)
	}
	if s.cfg.Reactors == 0 {
		s.cfg.Reactors = queues
	}
	if s.cfg.Reactors > queues {
		return fmt.Errorf("xdpd: %d reactors for the %d queues of %s: ethtool -L %s combined N gives a device more",
			s.cfg.Reactors, queues, s.cfg.Interface, s.cfg.Interface)
	}
	if n := len(s.cfg.CPUs); n > 0 && (n < s.cfg.Reactors || n > queues) {
		return fmt.Errorf("xdpd: %d CPUs for the %d reactors of %s: list one for each, or up to one for each of its %d queues",
			n, s.cfg.Reactors, s.cfg.Interface, queues)
	}
	for _, cpu := range s.cfg.CPUs {
		if err := tryCPU(cpu); err != nil {
			return fmt.Errorf("xdpd: run a reactor on CPU %d: %w: CPUs count from 0, and /proc/self/status says which may be used", cpu, err)
		}
	}
	chunk, packet, err := s.cfg.chunkFor(dev.driver, dev.mtu)
	if err != nil {
		return err
	}
	if s.cfg.Grant != "" {
		if s.grant, err = dialGrant(s.cfg.Grant); err != nil {
			return err
		}
	}
	features, _ := rings.ReadFeatures(dev.index) // an old kernel tells none
	packet, why := fitZeroCopy(dev, chunk, packet, features.ZeroCopySegs)
	if why != "" { // nor will SetMode have it
		if s.cfg.Mode == ZeroCopy {
			return fmt.Errorf("xdpd: interface %s: %s: use larger frames, a smaller MTU, or copy mode", s.cfg.Interface, why)
		}
		s.cfg.Mode, s.notZeroCopy = Copy, why
	}
	frames := s.cfg.Frames * len(s.cfg.Queues)
	if s.region, err = umem.New(umem.Options{Frames: frames, ChunkSize: chunk, HugePages: s.cfg.HugePages}); err != nil {
		return err
	}
	if s.cfg.Ledger {
		s.ledger = umem.NewLedger(frames)
	}
	hostCfg, err := s.hostConfig()
	if err != nil {
		return err
	}
	hostCfg.PacketFrames = packet
	for i, q := range s.cfg.Queues {
		if err := s.openQueue(i, q, hostCfg); err != nil {
			return err
		}
	}
	if s.group, err = reactor.NewGroup(s.Reactors(), reactor.GroupConfig{
		Loops: s.cfg.Reactors, CPUs: s.cfg.CPUs, Stalled: s.cfg.Stalled,
	}); err != nil {
		return err
	}
	if err := s.attach(); err != nil {
		return err
	}
	if err := s.trust(); err != nil {
		return err
	}
	return s.openNAPI()
}

// tryCPU runs on a CPU for a moment.
func tryCPU(cpu int) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var before, set unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	set.Set(cpu)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	return unix.SchedSetaffinity(0, &before)
}

// hostConfig is what all reactors' Hosts have in common.
func (s *Stack) hostConfig() (sockets.Config, error) {
	cfg := sockets.Config{
		MAC: s.dev.mac, MTU: s.dev.mtu, VLANs: s.cfg.VLANs, Addrs: prefixes(s.cfg.Addrs),
		KernelNeighbours: s.cfg.Share, AcceptPartial: s.dev.leavesPartial(),
		RcvBuf: s.cfg.RcvBuf, RcvMax: s.cfg.RcvMax, SndBuf: s.cfg.SndBuf, Congestion: s.cfg.Congestion, NoECN: s.cfg.NoECN,
		RSS: s.steer.rss, Stamps: s.cfg.RXMetadata == MetadataOn,
	}
	if len(s.cfg.Queues) > 1 {
		cfg.Siblings, cfg.Directory = true, sockets.NewDirectory()
	}
	if g, ok := proto.AddrFrom(s.cfg.Gateway); ok {
		cfg.Routes = []sockets.Route{{Gateway: g}}
	}
	if _, err := rand.Read(cfg.Seed[:]); err != nil {
		return cfg, fmt.Errorf("xdpd: random seed: %w", err)
	}
	if !s.cfg.Share {
		return cfg, nil
	}
	state, err := s.kernel.Snapshot()
	if err != nil {
		return cfg, fmt.Errorf("xdpd: %w", err)
	}
	if len(state.Addrs) == 0 {
		return cfg, fmt.Errorf("xdpd: interface %s has no IPv4 address to share: ip addr add ADDR/LEN dev %s",
			s.cfg.Interface, s.cfg.Interface)
	}
	s.state = state
	cfg.Addrs, cfg.Routes = prefixes(state.Addrs), kernelRoutes(state.Routes)
	return cfg, nil
}

// openQueue makes the socket, the stack and the reactor of one queue.
func (s *Stack) openQueue(i, q int, hostCfg sockets.Config) error {
	opts := s.socketOptions(i, q, s.cfg.Mode)
	opts.SG = hostCfg.PacketFrames > 1
	sock, err := rings.OpenSocket(s.region, opts)
	if err != nil {
		return err
	}
	pool := umem.NewPool(s.region, umem.Frame(i*s.cfg.Frames), s.cfg.Frames, s.ledger)
	queue := &queue{id: q, sock: sock, pool: pool}
	s.queues = append(s.queues, queue)
	fill := min(int(sock.Port().Fill.Size()), s.cfg.Frames/4)
	hostCfg.FillFrames, hostCfg.Self, hostCfg.Queue = fill, i, q
	hostCfg.LeaveSums = sock.Port().Checksum
	if queue.host, err = sockets.New(hostCfg, pool, reactor.Monotonic()); err != nil {
		return err
	}
	rc := reactor.Config{
		NAPI: s.cfg.NAPI, WantNAPI: s.napi.ask,
		Port: sock.Port(), Pool: pool, Host: queue.host, FillFrames: fill, MaxSpin: s.cfg.MaxSpin,
		Resolve: s.resolve,
		Heard:   func(a proto.ARP) { s.tellSiblings(i, a) }, Gone: s.gone,
	}
	queue.reactor, err = reactor.New(rc)
	return err
}

// socketOptions are those of queue number i. The first registers the packet memory.
func (s *Stack) socketOptions(i, q int, mode Mode) rings.SocketOptions {
	if mode == Best && s.program != nil && !s.program.Native() { // as in SetMode
		mode = Copy
	}
	opts := rings.SocketOptions{
		Interface: s.iface(), Ifindex: s.dev.index, Queue: q, Mode: mode, Checksum: !s.cfg.NoTXChecksum,
	}
	if i > 0 {
		opts.Shared = s.queues[0].sock
	}
	if s.grant != nil {
		opts.Make = func(sendBytes int) (int, error) { return s.grant.socket(s.cfg.Interface, q, sendBytes) }
	}
	return opts
}

// attach loads the steering program and gives it the sockets: from here on frames arrive.
func (s *Stack) attach() error {
	cfg := xdpprog.Config{
		Interface: s.cfg.Interface, Ifindex: s.dev.index, Steer: xdpprog.Own,
		Queues: max(s.dev.queues, maxOf(s.cfg.Queues)+1), Attach: s.cfg.Attach,
		Dispatch: s.cfg.Dispatch, Priority: s.cfg.Priority, Joins: s.journalJoin,
	}
	addrs := s.cfg.Addrs
	if s.cfg.Share {
		cfg.Steer, addrs = xdpprog.Share, s.state.Addrs
	}
	for _, p := range addrs {
		cfg.Addrs = append(cfg.Addrs, p.Addr())
	}
	for _, q := range s.queues {
		q.reactor.Turn() // fills the fill ring: a frame that comes before Run's first turn needs a place
	}
	// A dead engine's program may be in the way, or behind or before ours. If it cannot be taken out, that may matter.
	// A Granter's program is alone, and its engine may not look.
	var left error
	if s.cfg.Grant == "" {
		_, left = restoreDispatch(s.cfg.JournalDir)
	}
	if err := s.load(cfg); err != nil {
		return errors.Join(err, left)
	}
	for _, q := range s.queues {
		if err := s.program.SetSocket(q.id, q.sock.FD()); err != nil {
			return err
		}
	}
	return nil
}

// load has the program attached, by ourselves or by the helper.
func (s *Stack) load(cfg xdpprog.Config) error {
	if s.grant != nil {
		if err := s.grant.attach(cfg, s.cfg.RXMetadata); err != nil {
			return err
		}
		s.program = s.grant
		return nil
	}
	p, err := loadProgram(cfg, s.cfg.RXMetadata, s.dev.driver, s.cfg.JournalDir)
	if err != nil {
		return err // not a nil *program in s.program
	}
	s.program = p
	return nil
}

func maxOf(v []int) int {
	m := 0
	for _, x := range v {
		m = max(m, x)
	}
	return m
}

// start runs the reactors and watches the interface.
func (s *Stack) start() {
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.running.Go(func() {
		if err := s.group.Run(ctx); err != nil {
			s.fail(err)
		}
	})
	for _, q := range s.queues {
		if h, now, ok := q.reactor.Enter(); ok {
			h.Announce(now)
		}
		q.reactor.Leave()
	}
	if s.napi.sock != nil {
		s.running.Go(func() { s.learnNAPI(ctx) })
	}
	if s.grant != nil {
		s.running.Go(func() {
			<-s.grant.gone // at the latest when we close it
			if s.grant.lost != nil {
				s.fail(s.grant.lost)
			}
		})
	}
	s.watch(ctx)
	s.running.Go(func() { s.attend(ctx) })
}
