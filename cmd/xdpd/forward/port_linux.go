package forward

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// port is an interface with what was opened on it.
type port struct {
	name    string
	index   int
	mtu     int // when it was opened
	mac     proto.MAC
	up      bool
	queues  int
	driver  string
	sockets []*rings.Socket
	owns    bool // its packet memory is registered for it alone, and not shared with another port's
	program *xdpprog.Forward
	promisc int          // packet socket that keeps it promiscuous; 0: none
	restore func() error // nil: the device was not told to leave VLAN tags
	tags    string       // how VLAN tags may get lost; "": they do not
}

func findPort(name string) (*port, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("forward: there is no interface %s in this network namespace: %w", name, unix.ENODEV)
	}
	if err != nil {
		return nil, fmt.Errorf("forward: interface %s: %w", name, err)
	}
	a := link.Attrs()
	if len(a.HardwareAddr) != 6 || a.RawFlags&unix.IFF_LOOPBACK != 0 {
		return nil, fmt.Errorf("forward: interface %s is no Ethernet device: name one, real or veth", name)
	}
	p := &port{
		name: name, index: a.Index, mtu: a.MTU, mac: proto.MAC(a.HardwareAddr), queues: max(1, rings.QueueCount(name, a.Index)),
		up: a.RawFlags&(unix.IFF_UP|unix.IFF_RUNNING) == unix.IFF_UP|unix.IFF_RUNNING,
	}
	if fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err == nil {
		if info, err := unix.IoctlGetEthtoolDrvinfo(fd, name); err == nil {
			p.driver = unix.ByteSliceToString(info.Driver[:])
		}
		unix.Close(fd)
	}
	return p, nil
}

// zeroCopyMTU is the largest MTU whose packets the driver receives in zero copy into frames of so many bytes.
func (p *port) zeroCopyMTU(chunk int) int {
	return sockets.MaxMTU(rings.ZeroCopyRoom(p.driver, chunk)+umem.Headroom, 1)
}

// zeroCopy says whether the driver works on the packet memory itself.
func (p *port) zeroCopy() bool {
	return slices.ContainsFunc(p.sockets, (*rings.Socket).ZeroCopy)
}

// machinePort is the port as the machine sees it.
func (p *port) machinePort() sockets.PortConfig {
	// Their other end may be a kernel that believes in a checksum offload.
	partial := slices.Contains([]string{"veth", "virtio_net", "tun", "bridge"}, p.driver)
	return sockets.PortConfig{MAC: p.mac, MTU: p.mtu, Up: p.up, CompletePartial: partial}
}

// openSockets opens a socket on each queue. All are over the same memory. A registration of it (struct xdp_umem) is in zero
// copy or in copy mode as a whole, and whoever shares it inherits that (xp_assign_dev_shared, net/xdp/xsk_buff_pool.c): so
// there is one for each mode that occurs, and frames go from one to the other as they go from device to device.
func (p *port) openSockets(r *umem.Region, cfg *Config, opened *[]*rings.Socket) error {
	modes, err := p.modes(cfg.Mode, cfg.Attach, r.ChunkSize())
	if err != nil {
		return err
	}
	for q := range p.queues {
		s, err := p.openSocket(r, q, modes, *opened)
		if err != nil {
			return err
		}
		p.sockets = append(p.sockets, s)
		*opened = append(*opened, s)
	}
	return nil
}

// modes are those to try, in their order. A generic program is behind the driver, which does zero copy for one of its own: igb refuses
// to send without (igb_xsk_wakeup, drivers/net/ethernet/intel/igb/igb_xsk.c).
func (p *port) modes(mode rings.Mode, attach xdpprog.Attach, chunk int) ([]rings.Mode, error) {
	switch most := p.zeroCopyMTU(chunk); {
	case mode == rings.ZeroCopy && attach == xdpprog.Generic:
		return nil, fmt.Errorf("forward: interface %s: zero copy needs a native program: use copy mode, or --attach native", p.name)
	case mode == rings.Best && attach == xdpprog.Generic:
		return []rings.Mode{rings.Copy}, nil
	case mode == rings.ZeroCopy && p.mtu > most:
		return nil, fmt.Errorf("forward: interface %s has an MTU of %d; zero copy of %s receives packets up to %d: use a smaller MTU, or copy mode",
			p.name, p.mtu, p.driver, most)
	case mode == rings.Best && p.mtu > most:
		return []rings.Mode{rings.Copy}, nil
	case mode == rings.Best:
		return []rings.Mode{rings.ZeroCopy, rings.Copy}, nil
	}
	return []rings.Mode{mode}, nil
}

func (p *port) openSocket(r *umem.Region, queue int, modes []rings.Mode, opened []*rings.Socket) (*rings.Socket, error) {
	var err error
	for _, m := range modes {
		o := rings.SocketOptions{Interface: p.name, Ifindex: p.index, Queue: queue, Mode: m, FillSize: fillSize}
		for _, s := range opened {
			if s.ZeroCopy() == (m == rings.ZeroCopy) {
				o.Shared = s
				break
			}
		}
		var s *rings.Socket
		if s, err = rings.OpenSocket(r, o); err == nil {
			p.owns = p.owns || o.Shared == nil
			return s, nil
		}
		// What drivers say to zero copy that they do not have, or not in this state (rings.SocketOptions).
		if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOMEM) {
			break
		}
	}
	return nil, err
}

// attach loads the program and gives it the sockets: from here on frames arrive.
func (p *port) attach(cfg *Config, locals *xdpprog.Locals) error {
	c := xdpprog.ForwardConfig{
		Interface: p.name, Ifindex: p.index, MAC: p.mac, Queues: p.queues, Attach: cfg.Attach, Route: cfg.Router, Locals: locals,
	}
	if f, err := rings.ReadFeatures(p.index); err == nil && f.RXMetadata&rings.RXTag != 0 {
		c.Metadata = xdpprog.Tags
	}
	var err error
	if p.program, err = xdpprog.LoadForward(c); err != nil {
		return err
	}
	if p.zeroCopy() && !p.program.Native() {
		return fmt.Errorf("forward: interface %s: the driver refuses the program, which zero copy needs: --mode copy, or --attach native says why", p.name)
	}
	// A frame whose VLAN tag the driver took out would leave without it. On a veth it is the sender who leaves it out.
	switch hidden := c.Metadata == xdpprog.NoMetadata || p.program.NoMetadata() != nil; {
	case hidden && p.driver == "veth":
		p.tags = "VLAN tags that a kernel on the other end hides get lost (ethtool -K PEER txvlan off)"
	case hidden:
		if p.restore, err = xdpd.LeaveTags("", p.name, p.index); err != nil {
			return err
		}
	}
	for q, s := range p.sockets {
		if err := p.program.SetSocket(q, s.FD()); err != nil {
			return err
		}
	}
	if !cfg.Router {
		return p.promiscuous()
	}
	return nil
}

// promiscuous has the device receive frames for other stations for as long as the packet socket is open: the kernel takes it
// back with the process. The socket has no protocol and so hears nothing.
func (p *port) promiscuous() error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("forward: interface %s: open a packet socket (needs CAP_NET_RAW): %w", p.name, err)
	}
	p.promisc = fd
	m := unix.PacketMreq{Ifindex: int32(p.index), Type: unix.PACKET_MR_PROMISC}
	if err := unix.SetsockoptPacketMreq(fd, unix.SOL_PACKET, unix.PACKET_ADD_MEMBERSHIP, &m); err != nil {
		return fmt.Errorf("forward: interface %s: make it promiscuous: %w", p.name, err)
	}
	return nil
}

func (p *port) close() error {
	var errs []error
	if p.program != nil {
		errs = append(errs, p.program.Close())
	}
	if p.restore != nil {
		errs = append(errs, p.restore())
	}
	if p.promisc > 0 {
		errs = append(errs, unix.Close(p.promisc))
	}
	for _, s := range slices.Backward(p.sockets) {
		errs = append(errs, s.Close())
	}
	return errors.Join(errs...)
}
