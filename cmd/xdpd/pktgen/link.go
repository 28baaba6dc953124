package pktgen

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/krnet"
	"xdpd/proto"
)

// device is the interface that is sent from or received on.
type device struct {
	name  string
	index int
	mtu   int // bytes behind the Ethernet header
	mac   proto.MAC
}

// findDevice looks for an interface that can send and receive, in the calling thread's network namespace.
func findDevice(name string) (*device, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("there is no interface %s in this network namespace: ip link lists those that there are: %w", name, unix.ENODEV)
	}
	if err != nil {
		return nil, fmt.Errorf("interface %s: %w", name, err)
	}
	a := link.Attrs()
	switch {
	case len(a.HardwareAddr) != 6 || a.RawFlags&unix.IFF_LOOPBACK != 0:
		return nil, fmt.Errorf("interface %s is no Ethernet device: name one, real or veth", name)
	case a.RawFlags&unix.IFF_UP == 0:
		return nil, fmt.Errorf("interface %s is down: ip link set %s up: %w", name, name, unix.ENETDOWN)
	case a.RawFlags&unix.IFF_RUNNING == 0:
		return nil, fmt.Errorf("interface %s has no carrier: plug the cable in, or set the other end of the veth up: %w", name, unix.ENETDOWN)
	}
	return &device{name: name, index: a.Index, mtu: a.MTU, mac: proto.MAC(a.HardwareAddr)}, nil
}

// fits refuses frames that the interface cannot send.
func (d *device) fits(size int) error {
	if need := size - 14; need > d.mtu {
		return fmt.Errorf("frames of %d bytes need an MTU of %d, and %s has %d: ip link set %s mtu %d (both ends), or a smaller --size",
			size, need, d.name, d.mtu, d.name, need)
	}
	return nil
}

// resolveTime is how long the kernel is given to resolve a neighbour: it asks three times, a second each.
const resolveTime = 4 * time.Second

// complete finds out by the kernel's routes, addresses and neighbours what was not given: the first source address, and the
// MAC address that frames for dst go to.
func (d *device) complete(ctx context.Context, src *Addrs, dst proto.Addr, mac *proto.MAC) error {
	if *src != (Addrs{}) && !mac.IsZero() {
		return nil
	}
	k, err := krnet.Open(d.index)
	if err != nil {
		return err
	}
	defer k.Close()
	state, err := k.Snapshot()
	if err != nil {
		return err
	}
	hop, from := route(&state, dst.Netip())
	if *src == (Addrs{}) {
		addr, ok := proto.AddrFrom(from)
		if !ok {
			return fmt.Errorf("%s has no IPv4 address to send from: give it one, or say --src", d.name)
		}
		*src = Addrs{addr, addr}
	}
	if !mac.IsZero() {
		return nil
	}
	if !hop.IsValid() {
		return fmt.Errorf("there is no route to %s through %s: give it an address of that network, or say --dst-mac", dst, d.name)
	}
	*mac, err = resolve(ctx, k, hop)
	if err != nil {
		return fmt.Errorf("no MAC address of %s on %s: %w", hop, d.name, err)
	}
	return nil
}

// route is the next hop towards dst, and the address to send from; zero Addrs where there is none.
func route(s *krnet.State, dst netip.Addr) (hop, from netip.Addr) {
	best := krnet.Route{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0)}
	found := false
	for _, r := range s.Routes {
		longer := r.Dst.Bits() > best.Dst.Bits() || r.Dst.Bits() == best.Dst.Bits() && r.Metric < best.Metric
		if r.Dst.Contains(dst) && (!found || longer) {
			best, found = r, true
		}
	}
	if len(s.Addrs) > 0 {
		from = s.Addrs[0].Addr()
	}
	if !found {
		return hop, from
	}
	if hop = best.Gateway; !hop.IsValid() {
		hop = dst
	}
	if best.Src.IsValid() {
		return hop, best.Src
	}
	for _, p := range s.Addrs {
		if p.Contains(hop) {
			return hop, p.Addr()
		}
	}
	return hop, from
}

// resolve has the kernel do ARP for a neighbour.
func resolve(ctx context.Context, k *krnet.Kernel, hop netip.Addr) (proto.MAC, error) {
	ctx, cancel := context.WithTimeout(ctx, resolveTime)
	defer cancel()
	changed := make(chan struct{}, 1)
	err := k.Watch(ctx, func(krnet.Event) {
		select {
		case changed <- struct{}{}:
		default:
		}
	})
	if err != nil {
		return proto.MAC{}, err
	}
	if err := k.Resolve(hop); err != nil {
		return proto.MAC{}, err
	}
	for {
		s, err := k.Snapshot()
		if err != nil {
			return proto.MAC{}, err
		}
		for _, n := range s.Neighs {
			if n.Addr == hop && n.Valid {
				return proto.MAC(n.MAC), nil
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return proto.MAC{}, errors.New("nobody answers ARP for it: look at the address and at the other end, or say --dst-mac")
		}
	}
}

// MAC is a MAC address on the command line; the zero MAC is none.
type MAC struct{ proto.MAC }

// UnmarshalText reads "02:00:00:00:00:01".
func (m *MAC) UnmarshalText(b []byte) error {
	hw, err := net.ParseMAC(string(b))
	if err != nil || len(hw) != 6 {
		return fmt.Errorf("%q is no MAC address: write it as 02:00:00:00:00:01", b)
	}
	m.MAC = proto.MAC(hw)
	return nil
}

// MarshalText implements encoding.TextMarshaler; the zero MAC is "".
func (m MAC) MarshalText() ([]byte, error) {
	if m.IsZero() {
		return nil, nil
	}
	return []byte(m.String()), nil
}
