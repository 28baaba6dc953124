package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// trialDevice is an interface that is being tried, with a little packet memory to do it with.
type trialDevice struct {
	name   string
	index  int
	mtu    int
	queues int
	driver string
	mac    proto.MAC
	up     bool
	cable  bool // it has a carrier
	xdp    int  // number of the XDP program attached to it; 0: none
	region *umem.Region
}

// checkDevice tries an interface of the calling thread's network namespace. It leaves it as it was.
func checkDevice(where, name string, tell func(finding)) {
	say := func(f finding) finding {
		f.Where = where
		tell(f)
		return f
	}
	d, err := findTrialDevice(name)
	if err != nil {
		cure := "name one that ip link shows"
		if errors.Is(err, errNoEthernet) {
			cure = "an engine needs a real device, veth, tap or bridge; for programs of this machine a veth pair: ip link add xd0 type veth peer name xd1"
		}
		say(finding{Name: "interface", Status: blocking, Text: plain(err), Cure: cure})
		return
	}
	say(d.checkInterface())
	say(d.checkMTU())
	say(d.checkRSS())
	say(d.checkPlace())
	if d.queues > 1 || d.chunk() > defaultChunk {
		say(d.checkMemory(lockable()))
	}
	d.checkAttach(say)
	if d.region, err = umem.New(umem.Options{Frames: 64, ChunkSize: defaultChunk}); err != nil {
		say(finding{Name: "copy mode", Status: blocking, Text: plain(err), Cure: "more memory"})
		return
	}
	defer d.region.Close()
	if say(d.checkCopy()).Status == blocking {
		return // the rest would only repeat it
	}
	for _, check := range []func() finding{d.checkZeroCopy, d.checkNeedWakeup, d.checkBusyPoll, d.checkNAPI, d.checkNAPIs, d.checkMultiBuffer, d.checkChecksum, d.checkTXMetadata, d.checkMetadata} {
		say(check())
	}
}

var errNoEthernet = errors.New("is no Ethernet device")

func findTrialDevice(name string) (*trialDevice, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, fmt.Errorf("there is no interface %s in this network namespace", name)
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	a := link.Attrs()
	if len(a.HardwareAddr) != 6 || a.RawFlags&unix.IFF_LOOPBACK != 0 {
		return nil, fmt.Errorf("interface %s %w", name, errNoEthernet)
	}
	d := &trialDevice{name: name, index: a.Index, mtu: a.MTU, up: a.RawFlags&unix.IFF_UP != 0, driver: "unknown"}
	d.mac, d.cable = proto.MAC(a.HardwareAddr), a.RawFlags&unix.IFF_LOWER_UP != 0
	d.queues = rings.QueueCount(name, a.Index)
	if a.Xdp != nil && a.Xdp.Attached {
		d.xdp = int(a.Xdp.ProgId)
	}
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		if info, err := unix.IoctlGetEthtoolDrvinfo(fd, name); err == nil {
			d.driver = unix.ByteSliceToString(info.Driver[:])
		}
		unix.Close(fd)
	}
	return d, nil
}

func (d *trialDevice) checkInterface() finding {
	f := finding{Name: "interface", Text: fmt.Sprintf("%s, driver %s, %d receive queues", d.name, d.driver, d.queues)}
	switch {
	case !d.up:
		f.Status, f.Text, f.Cure = blocking, f.Text+", down", fmt.Sprintf("ip link set %s up", d.name)
	case d.queues == 0:
		f.Status, f.Text = missing, fmt.Sprintf("%s, driver %s, which does not tell its receive queues", d.name, d.driver)
		f.Cure = "an engine takes it for one queue"
	case d.queues == 1:
		f.Text = fmt.Sprintf("%s, driver %s, 1 receive queue", d.name, d.driver)
	}
	return f
}

// checkMTU: a packet must fit in a frame behind the headroom, with an Ethernet header and two VLAN tags, or in several.
func (d *trialDevice) checkMTU() finding {
	const before = umem.Headroom + 14 + 2*4
	f := finding{Name: "MTU", Text: fmt.Sprintf("%d: frames of 2048 bytes hold a packet", d.mtu)}
	switch {
	case d.mtu > 4096-before:
		f.Text = fmt.Sprintf("%d: a packet takes several frames of 4096 bytes, which multi-buffer allows", d.mtu)
	case d.chunk() > defaultChunk:
		f.Text = fmt.Sprintf("%d: an engine takes frames of 4096 bytes, twice the packet memory", d.mtu)
	}
	return f
}

// chunk is the size of the frames that an engine takes.
func (d *trialDevice) chunk() int {
	if d.mtu > sockets.MaxMTU(rings.ZeroCopyRoom(d.driver, defaultChunk)+umem.Headroom, 1) {
		return 4096
	}
	return defaultChunk
}

// checkRSS: with a known hash a dial knows the queue of its answer.
func (d *trialDevice) checkRSS() finding {
	told, err := rings.ReadRSS(d.name)
	if err == nil {
		_, err = proto.NewRSS(told.Key, told.Table, told.TCP, told.UDP)
	}
	if err != nil {
		return finding{
			Name: "choice of queues", Status: missing, Text: "not known: " + plain(err),
			Cure: "none is needed: a connection of the engine's own waits for its answer on all queues",
		}
	}
	return finding{Name: "choice of queues", Text: told.String()}
}

// checkMemory: all queues share one region, and limit bytes of it can be had.
func (d *trialDevice) checkMemory(limit uint64) finding {
	queues := max(d.queues, 1)
	need := queues * defaultFrames * d.chunk()
	f := finding{Name: "memory", Text: fmt.Sprintf("%d MiB for %s, with frames of %d bytes", need>>20, plural(queues, "queue"), d.chunk())}
	if limit >= uint64(need) {
		return f
	}
	f.Status, f.Text = blocking, fmt.Sprintf("%s, are more than RLIMIT_MEMLOCK allows, which is %s", f.Text, memlockText())
	f.Cure = memlockCure(queues, d.chunk())
	if queues > 1 {
		f.Cure += ", or serve fewer queues (--queues)"
	}
	return f
}

// checkAttach tries both hooks. One of them is enough.
func (d *trialDevice) checkAttach(say func(finding) finding) {
	say(d.checkDispatch())
	if d.xdp != 0 {
		say(d.checkOccupied())
		return
	}
	native, generic := d.tryAttach(xdpprog.Native), d.tryAttach(xdpprog.Generic)
	f := finding{Name: "native attach", Text: "the driver runs the steering program"}
	if native != nil {
		f.Status, f.Text = missing, plain(native)
		f.Cure = "none is needed if generic attach works: it is slower"
	}
	g := finding{Name: "generic attach", Text: "the kernel runs the steering program behind the driver"}
	if generic != nil {
		g.Status, g.Text = missing, plain(generic)
		if native != nil {
			f.Status, f.Cure, g.Status, g.Cure = blocking, "", blocking, "an engine needs one of the two"
		}
	}
	say(f)
	say(g)
}

// checkDispatch: whether several programs can be on the device at once.
func (d *trialDevice) checkDispatch() finding {
	f := finding{Name: "dispatcher", Text: "other XDP programs can be on the device as well, beside an engine's"}
	if err := xdpprog.ProbeDispatch(); err != nil {
		f.Status, f.Text, f.Cure = missing, plain(err), "none is needed by an engine that has the device alone"
	}
	return f
}

// checkOccupied says what an engine would do about the program that is attached.
func (d *trialDevice) checkOccupied() finding {
	f := finding{Name: "attach"}
	names, native, err := xdpprog.Neighbours(d.index)
	switch {
	case err != nil:
		f.Status, f.Text = blocking, plain(err)
		f.Cure = fmt.Sprintf("stop what attached it (bpftool prog show id %d; bpftool net)", d.xdp)
	case len(names) > 0:
		hook := "generic"
		if native {
			hook = "native"
		}
		f.Text = fmt.Sprintf("not tried: a dispatcher is in the %s hook, which an engine joins: %s", hook, strings.Join(names, ", "))
	default:
		f.Status = blocking
		f.Text = fmt.Sprintf("not tried: another XDP program is attached: %s", xdpprog.Owner(d.index))
		f.Cure = fmt.Sprintf("stop what attached it (bpftool prog show id %d; bpftool net)", d.xdp)
	}
	return f
}

// trialAddrs is an address that no packet has (RFC 5737).
var trialAddrs = []netip.Addr{netip.MustParseAddr("192.0.2.1")}

// tryAttach loads the steering program, attaches and detaches it. Meanwhile it steers nothing: no port is open.
func (d *trialDevice) tryAttach(how xdpprog.Attach) error {
	p, err := d.load(how)
	if err != nil {
		return err
	}
	return p.Close()
}

func (d *trialDevice) load(how xdpprog.Attach) (*xdpprog.Program, error) {
	return xdpprog.Load(xdpprog.Config{
		Interface: d.name, Ifindex: d.index, Steer: xdpprog.Share, Addrs: trialAddrs,
		Queues: max(d.queues, 1), Attach: how,
	})
}

// bind opens a socket on queue 0 and hands it to use.
func (d *trialDevice) bind(o rings.SocketOptions, use func(*rings.Socket)) error {
	o.Interface, o.Ifindex, o.FillSize, o.CompSize, o.RXSize, o.TXSize = d.name, d.index, 64, 64, 64, 64
	s, err := rings.OpenSocket(d.region, o)
	if err != nil {
		return err
	}
	use(s)
	return s.Close()
}

func (d *trialDevice) checkCopy() finding {
	f := finding{Name: "copy mode", Text: "queue 0 takes a socket"}
	err := d.bind(rings.SocketOptions{Mode: xdpd.Copy, NoNeedWakeup: true}, func(*rings.Socket) {})
	if err != nil {
		f.Status, f.Text = blocking, plain(err)
	}
	if errors.Is(err, unix.EBUSY) {
		f.Cure = "stop " + queueHolder(d.index, 0) + ", or serve other queues (--queues)"
	}
	return f
}

func (d *trialDevice) checkZeroCopy() finding {
	f := finding{Name: "zero copy", Status: missing}
	err := d.bind(rings.SocketOptions{Mode: xdpd.ZeroCopy}, func(s *rings.Socket) {
		f.Text = "the driver takes the socket, and then works in copy mode"
		if s.ZeroCopy() {
			f.Status, f.Text, f.Cure = d.trySend(s)
		}
	})
	if err != nil {
		f.Status, f.Text = missing, "refused: "+plain(err)
		f.Cure = "none is needed, copy mode works; drivers that have it: ice, i40e, ixgbe, igb (6.14), igc, mlx5, virtio_net (6.13)"
		if d.driver == "virtio_net" && errors.Is(err, unix.EINVAL) {
			f.Cure = "an IOMMU for the device (QEMU: -device virtio-net-pci,disable-legacy=on,iommu_platform=on); copy mode works without"
		}
	}
	return f
}

// trySend has a zero-copy socket send a frame, with the steering program attached, for some drivers send only then.
func (d *trialDevice) trySend(s *rings.Socket) (status, string, string) {
	const takes = "the driver takes a zero-copy socket on queue 0"
	if d.xdp != 0 {
		return good, takes + "; whether it sends was not tried, because of the XDP program", ""
	}
	p, err := d.load(xdpprog.Native)
	if err != nil {
		return missing, takes + ", and no program: " + plain(err), "none is needed: copy mode works"
	}
	defer p.Close()
	if !d.cable || !rings.AwaitCarrier(d.index, carrierTime) {
		return good, takes + "; whether it sends was not tried: there is no carrier", ""
	}
	pool := umem.NewPool(d.region, 0, d.region.Frames(), nil)
	if err := s.TrySend(pool, d.mac, carrierTime); err != nil {
		return missing, takes + ", and does not send from it: " + plain(err), "none is needed: an engine takes copy mode by itself"
	}
	return good, takes + ", and sends from it", ""
}

// carrierTime is how long a device may take after a reset, or for a frame.
const carrierTime = 10 * time.Second

func (d *trialDevice) checkNeedWakeup() finding {
	f := finding{Name: "need_wakeup", Cure: "none is needed: without it an engine makes more system calls"}
	err := d.bind(rings.SocketOptions{Mode: xdpd.Copy}, func(s *rings.Socket) {
		f.Text, f.Cure = "accepted; sending asks for system calls: "+yesNo(s.Port().TX.NeedWakeup())+
			", receiving: "+yesNo(s.Port().Fill.NeedWakeup()), ""
	})
	if err != nil {
		f.Status, f.Text = missing, plain(err)
	}
	return f
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func (d *trialDevice) checkBusyPoll() finding {
	f := finding{Name: "busy poll", Text: "SO_PREFER_BUSY_POLL, SO_BUSY_POLL and its budget are accepted"}
	opts := rings.SocketOptions{Mode: xdpd.Copy, BusyPollUS: 20, BusyPollBudget: 64}
	err := d.bind(opts, func(*rings.Socket) {})
	switch {
	case err != nil:
		f.Status, f.Text = missing, plain(err)
	case d.driver == "veth": // its AF_XDP sockets have NAPI id 0, which net/core/dev.c, napi_busy_loop, does not find
		f.Text += ", and do nothing on veth"
	}
	return f
}

// checkNAPI opens what an engine drives the NAPI with.
func (d *trialDevice) checkNAPI() finding {
	f := finding{Name: "driving the NAPI", Text: "an engine tries it under load, and keeps it where more packets go through"}
	if d.driver != "veth" {
		f.Status, f.Text, f.Cure = missing, "only veth is known to gain by it", "none is needed: the kernel runs it"
		return f
	}
	n, err := rings.OpenNAPI(d.name)
	if err == nil {
		err = n.Close()
	}
	if err != nil {
		f.Status, f.Text, f.Cure = missing, plain(err), "none is needed: the kernel runs it"
	}
	return f
}

// checkMultiBuffer: what an MTU asks for that no frame holds.
func (d *trialDevice) checkMultiBuffer() finding {
	f := finding{Name: "multi-buffer", Text: "XDP_USE_SG is accepted: a packet may take several frames, for an MTU above 3818"}
	err := d.bind(rings.SocketOptions{Mode: xdpd.Copy, SG: true}, func(*rings.Socket) {})
	if err == nil {
		f.Text += "; " + d.zeroCopySegs()
		return f
	}
	f.Status, f.Text = missing, "refused: "+plain(err)
	if errors.Is(err, unix.EINVAL) {
		f.Text = "refused: the kernel is older than 6.6, or the driver cannot"
	}
	f.Cure = "none is needed up to an MTU of 3818"
	if d.mtu > sockets.MaxMTU(4096, 1) {
		f.Status, f.Cure = blocking, fmt.Sprintf("ip link set %s mtu 1500", d.name)
	}
	return f
}

// zeroCopySegs says how many frames a packet may have in zero copy.
func (d *trialDevice) zeroCopySegs() string {
	features, err := rings.ReadFeatures(d.index)
	switch n := features.ZeroCopySegs; {
	case err != nil:
		return plain(err)
	case n == 0:
		return "the driver has no zero copy"
	case n == 1:
		return "one in zero copy (xdp-zc-max-segs), so that such an MTU means copy mode"
	default:
		return fmt.Sprintf("%d in zero copy (xdp-zc-max-segs), for an MTU up to %d", n, sockets.MaxMTU(4096, min(n, sockets.MaxPacketFrames)))
	}
}

// checkChecksum: who sums what is sent. A socket in the mode that an engine would have.
func (d *trialDevice) checkChecksum() finding {
	f := finding{Name: "TX checksum", Text: "the device finishes those of UDP and TCP for an engine, as for the kernel"}
	var why error
	if err := d.bind(rings.SocketOptions{Checksum: true}, func(s *rings.Socket) { why = s.NoChecksum() }); err != nil {
		why = err
	}
	if why != nil {
		f.Status, f.Text, f.Cure = missing, plain(why), "none is needed: an engine sums by itself"
	} else if d.driver == "veth" {
		f.Text = "veth passes an engine's UDP and TCP packets on without their checksums, as the kernel's: ethtool -K " + d.name + " tx off has them summed"
	}
	return f
}
