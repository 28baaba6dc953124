package netlab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func (l *Lab) build(o Options) error {
	for _, n := range []*NS{l.Engine, l.Peer, l.Middle} {
		if n == nil {
			continue
		}
		if err := n.Do(prepare); err != nil {
			return err
		}
	}
	join := l.addPairs
	if o.NICs != nil {
		join = l.takeNICs
	}
	if err := join(o); err != nil {
		return err
	}
	err := l.Engine.Do(func() error {
		if !o.KernelAddr {
			return up(l.EngineDev, netip.Prefix{})
		}
		if err := up(l.EngineDev, netip.PrefixFrom(l.EngineAddr, 24)); err != nil {
			return err
		}
		for _, v := range l.VLANs {
			if err := addVLAN(l.EngineDev, v.ID, v.EngineAddr); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	if err := l.Peer.Do(func() error { return l.setUpPeer(o) }); err != nil || l.nics == nil {
		return err
	}
	return l.nics.awaitCarrier()
}

// prepare turns IPv6 off for interfaces to come, and the loopback up.
func prepare() error {
	err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
		return fmt.Errorf("netlab: %w", err)
	}
	return up("lo", netip.Prefix{})
}

func (l *Lab) addPairs(o Options) error {
	if l.Middle == nil {
		return l.Engine.Do(func() error { return addPair(o, l.EngineDev, l.PeerDev, l.Peer) })
	}
	for i, n := range []*NS{l.Engine, l.Peer} {
		dev := []string{l.EngineDev, l.PeerDev}[i]
		if err := n.Do(func() error { return addPair(o, dev, MiddleDevs[i], l.Middle) }); err != nil {
			return err
		}
		err := l.Middle.Do(func() error {
			if err := setTxChecksum(MiddleDevs[i], false); err != nil {
				return fmt.Errorf("netlab: %s: set TX checksum offload: %w", MiddleDevs[i], err)
			}
			return up(MiddleDevs[i], netip.Prefix{})
		})
		if err != nil {
			return err
		}
	}
	// A frame that a user of the middle takes must have its checksum, also one of the engine's kernel.
	return l.Engine.Do(func() error { return setTxChecksum(l.EngineDev, false) })
}

// addPair makes a veth pair from within the namespace of dev, its other end in other. Given explicitly, all queues are in
// use from the start (drivers/net/veth.c, veth_init_queues).
func addPair(o Options, dev, otherDev string, other *NS) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = dev, o.MTU
	attrs.NumRxQueues, attrs.NumTxQueues = o.Queues, o.Queues
	pair := &netlink.Veth{LinkAttrs: attrs, PeerName: otherDev, PeerNamespace: netlink.NsFd(other.handle)}
	if err := netlink.LinkAdd(pair); err != nil {
		return fmt.Errorf("netlab: make veth pair %s, %s with %d queues, MTU %d: %w", dev, otherDev, o.Queues, o.MTU, err)
	}
	return nil
}

func (l *Lab) setUpPeer(o Options) error {
	if err := setChecksum(l.PeerDev, o.TxOffload); err != nil {
		return err
	}
	if err := up(l.PeerDev, netip.PrefixFrom(l.PeerAddr, 24)); err != nil {
		return err
	}
	for _, v := range l.VLANs {
		if err := addVLAN(l.PeerDev, v.ID, v.PeerAddr); err != nil {
			return err
		}
	}
	return nil
}

// up gives dev an address, unless it is the zero Prefix, and sets it up.
func up(dev string, addr netip.Prefix) error {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("netlab: %s: %w", dev, err)
	}
	if addr.IsValid() {
		ip := &net.IPNet{IP: addr.Addr().AsSlice(), Mask: net.CIDRMask(addr.Bits(), 32)}
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: ip}); err != nil {
			return fmt.Errorf("netlab: %s: add address %s: %w", dev, addr, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("netlab: %s: set up: %w", dev, err)
	}
	return nil
}

func addVLAN(dev string, id uint16, addr netip.Addr) error {
	parent, err := netlink.LinkByName(dev)
	if err != nil {
		return fmt.Errorf("netlab: %s: %w", dev, err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.ParentIndex = fmt.Sprintf("%s.%d", dev, id), parent.Attrs().Index
	err = netlink.LinkAdd(&netlink.Vlan{LinkAttrs: attrs, VlanId: int(id)})
	if errors.Is(err, unix.EOPNOTSUPP) { // what rtnetlink says of an unknown kind of link
		return ErrNoVLAN
	}
	if err != nil {
		return fmt.Errorf("netlab: %s: add VLAN: %w", attrs.Name, err)
	}
	return up(attrs.Name, netip.PrefixFrom(addr, 24))
}

// setTxChecksum is `ethtool -K dev tx on|off`: off also takes TSO away, so that the wire has frames of MTU size.
func setTxChecksum(dev string, on bool) error {
	words := []uint32{unix.ETHTOOL_STXCSUM, 0}
	if on {
		words[1] = 1
	}
	return ethtool(dev, words)
}

// Statistics are the counters that the driver of dev keeps in namespace n, as `ethtool -S dev` shows them.
func (n *NS) Statistics(dev string) (out map[string]uint64, err error) {
	err = n.Do(func() error {
		if out, err = statistics(dev); err != nil {
			return fmt.Errorf("netlab: statistics of %s: %w", dev, err)
		}
		return nil
	})
	return out, err
}
