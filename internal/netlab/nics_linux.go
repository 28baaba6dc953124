package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// nicsBusy is held by the one Lab that has the machine's interfaces.
var nicsBusy sync.Mutex

// nics are the two interfaces of Options.NICs, on loan from the namespace that New was called in.
type nics struct {
	home netns.NsHandle
	ends [2]nic
}

// nic is one of them, as it was and where it is.
type nic struct {
	name     string // at home
	mtu      int
	checksum bool
	queues   uint32 // 0: the driver does not tell
	untags   bool   // it takes VLAN tags away
	hash     uint32 // what of UDP chooses a queue; 0: the driver does not tell
	ns       *NS
	dev      string // its name there
}

// takeNICs puts the interfaces into the namespaces, bare, down, with the MTU and the queues asked for.
func (l *Lab) takeNICs(o Options) (err error) {
	if reason := o.notNICs(); reason != "" {
		return fmt.Errorf("%w: %s", ErrNICs, reason)
	}
	if !nicsBusy.TryLock() {
		return fmt.Errorf("netlab: another network still has %s and %s", o.NICs[0], o.NICs[1])
	}
	n := &nics{home: netns.None()}
	l.nics = n
	if n.home, err = netns.Get(); err != nil {
		return fmt.Errorf("netlab: own namespace: %w", err)
	}
	for i, to := range []struct {
		ns  *NS
		dev string
	}{{l.Engine, l.EngineDev}, {l.Peer, l.PeerDev}} {
		end := &n.ends[i]
		if end.mtu, end.checksum, err = lookAt(o.NICs[i]); err != nil {
			return err
		}
		end.queues, _ = channels(o.NICs[i])
		end.untags, end.hash = untags(o.NICs[i]), udpHash(o.NICs[i])
		if err := move(o.NICs[i], to.dev, to.ns.handle); err != nil {
			return err
		}
		end.name, end.ns, end.dev = o.NICs[i], to.ns, to.dev
		if err := to.ns.Do(func() error { return end.configure(o) }); err != nil {
			return err
		}
	}
	return nil
}

// nicMTU is the most that NICs have. virtio_net takes more, and with an XDP program drops what lies in more than 18 buffers
// (virtnet_build_xdp_buff_mrg), of 1536 bytes at first.
const nicMTU = 9216

// notNICs says what of the options two interfaces cannot be.
func (o *Options) notNICs() string {
	switch {
	case o.Veth != "":
		return o.Veth
	case o.TxOffload:
		return "no checksum stays partial on their wire"
	case o.Middle:
		return "their wire cannot be cut"
	case o.MTU > nicMTU:
		return fmt.Sprintf("no MTU of %d", o.MTU)
	}
	return ""
}

func lookAt(dev string) (mtu int, checksum bool, err error) {
	link, err := netlink.LinkByName(dev)
	if err != nil {
		return 0, false, fmt.Errorf("netlab: interface %s: %w", dev, err)
	}
	words := []uint32{unix.ETHTOOL_GTXCSUM, 0}
	if err := ethtool(dev, words); err != nil {
		return 0, false, fmt.Errorf("netlab: %s: ask for TX checksum offload: %w", dev, err)
	}
	return link.Attrs().MTU, words[1] != 0, nil
}

// channels are the combined queues of dev, and how many it may have.
func channels(dev string) (now, limit uint32) {
	words := []uint32{unix.ETHTOOL_GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0} // struct ethtool_channels
	if ethtool(dev, words) != nil {
		return 0, 0
	}
	return words[8], words[4]
}

func setChannels(dev string, n uint32) error {
	words := []uint32{unix.ETHTOOL_GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0}
	err := ethtool(dev, words)
	if err == nil && words[8] != n {
		words[0], words[8] = unix.ETHTOOL_SCHANNELS, n
		err = ethtool(dev, words)
	}
	if err != nil {
		return fmt.Errorf("netlab: give %s %d queues: %w", dev, n, err)
	}
	return nil
}

// move takes dev from the calling thread's namespace to another, under another name. It is down afterwards and has lost its
// addresses.
func move(dev, as string, to netns.NsHandle) error {
	link, err := netlink.LinkByName(dev)
	if err == nil {
		err = netlink.LinkSetDown(link)
	}
	if err == nil {
		err = netlink.LinkSetName(link, as)
	}
	if err == nil {
		err = netlink.LinkSetNsFd(link, int(to))
	}
	if err != nil {
		return fmt.Errorf("netlab: move %s: %w", dev, err)
	}
	return nil
}

// configure runs in the namespace that the interface was moved to.
func (n *nic) configure(o Options) error {
	link, err := netlink.LinkByName(n.dev)
	if err == nil {
		err = netlink.LinkSetMTU(link, o.MTU)
	}
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: %s takes no MTU of %d", ErrNICs, n.name, o.MTU)
	}
	if err != nil {
		return fmt.Errorf("netlab: %s: set MTU %d: %w", n.name, o.MTU, err)
	}
	_, limit := channels(n.dev) // 0: the driver has no such choice
	if max(1, int(limit)) < o.Queues {
		return fmt.Errorf("%w: %s has no %d queues", ErrNICs, n.name, o.Queues)
	}
	// As on veth: frames keep their tags, and ports choose the queue as well.
	if err := errors.Join(setUntag(n.dev, false), setUDPHash(n.dev, n.hash, hashAddrsPorts)); err != nil {
		return err
	}
	if limit == 0 {
		return nil
	}
	return setChannels(n.dev, uint32(o.Queues))
}

const (
	flagRxVLAN     = 1 << 8 // ETH_FLAG_RXVLAN
	udpV4Flow      = 2      // UDP_V4_FLOW
	hashAddrsPorts = 1<<4 | 1<<5 | 1<<6 | 1<<7
)

func untags(dev string) bool {
	words := []uint32{unix.ETHTOOL_GFLAGS, 0}
	return ethtool(dev, words) == nil && words[1]&flagRxVLAN != 0
}

func setUntag(dev string, on bool) error {
	if untags(dev) == on {
		return nil
	}
	words := []uint32{unix.ETHTOOL_GFLAGS, 0}
	err := ethtool(dev, words)
	if err == nil {
		words[0] = unix.ETHTOOL_SFLAGS
		words[1] ^= flagRxVLAN
		err = ethtool(dev, words)
	}
	if err != nil {
		return fmt.Errorf("netlab: %s: take VLAN tags away: %v: %w", dev, on, err)
	}
	return nil
}

// udpHash reads a struct ethtool_rxnfc: the command, the kind of flow, 64 bits of data, and what is for other commands.
func udpHash(dev string) uint32 {
	words := append([]uint32{unix.ETHTOOL_GRXFH, udpV4Flow}, make([]uint32, 46)...)
	if ethtool(dev, words) != nil {
		return 0
	}
	return words[2]
}

func setUDPHash(dev string, from, to uint32) error {
	if from == 0 || from == to {
		return nil
	}
	words := append([]uint32{unix.ETHTOOL_SRXFH, udpV4Flow, to}, make([]uint32, 45)...)
	if err := ethtool(dev, words); err != nil {
		return fmt.Errorf("netlab: %s: choose queues by ports: %w", dev, err)
	}
	return nil
}

// awaitCarrier waits until both ends are up with a carrier: a driver takes its time after the move.
func (n *nics) awaitCarrier() error {
	for _, end := range n.ends {
		err := end.ns.Do(func() error {
			for start := time.Now(); ; time.Sleep(time.Millisecond) {
				link, err := netlink.LinkByName(end.dev)
				if err != nil || link.Attrs().RawFlags&unix.IFF_LOWER_UP != 0 {
					return err
				}
				if time.Since(start) > Patience {
					return errors.New("no carrier")
				}
			}
		})
		if err != nil {
			return fmt.Errorf("netlab: %s: %w", end.name, err)
		}
	}
	return nil
}

// giveBack brings the interfaces home as they were, and up.
func (n *nics) giveBack() error {
	if n == nil {
		return nil
	}
	var errs []error
	for i := range n.ends {
		if end := &n.ends[i]; end.ns != nil {
			errs = append(errs, end.giveBack(n.home))
		}
	}
	if n.home.IsOpen() {
		errs = append(errs, n.home.Close())
	}
	nicsBusy.Unlock()
	return errors.Join(errs...)
}

func (n *nic) giveBack(home netns.NsHandle) error {
	err := n.ns.Do(func() error {
		if err := removeVLANs(n.dev); err != nil {
			return err
		}
		return move(n.dev, n.name, home)
	})
	if err != nil {
		return err
	}
	return onLockedThread(func() error {
		if err := netns.Set(home); err != nil {
			return fmt.Errorf("netlab: enter namespace: %w", err)
		}
		link, err := netlink.LinkByName(n.name)
		if err == nil {
			err = netlink.LinkSetMTU(link, n.mtu)
		}
		if err != nil {
			return fmt.Errorf("netlab: %s: restore MTU %d: %w", n.name, n.mtu, err)
		}
		errs := []error{setChecksum(n.name, n.checksum), setUntag(n.name, n.untags)}
		if n.hash != 0 {
			errs = append(errs, setUDPHash(n.name, udpHash(n.name), n.hash))
		}
		if n.queues > 0 {
			errs = append(errs, setChannels(n.name, n.queues))
		}
		return errors.Join(append(errs, up(n.name, netip.Prefix{}))...)
	})
}

// removeVLANs removes the tagged networks above dev: they do not move with it.
func removeVLANs(dev string) error {
	all, err := netlink.LinkList()
	for _, link := range all {
		if link.Type() == "vlan" && strings.HasPrefix(link.Attrs().Name, dev+".") {
			err = errors.Join(err, netlink.LinkDel(link))
		}
	}
	if err != nil {
		return fmt.Errorf("netlab: remove the VLANs of %s: %w", dev, err)
	}
	return nil
}

// setChecksum sets TX checksum offload, where the device has it.
func setChecksum(dev string, on bool) error {
	err := setTxChecksum(dev, on)
	if err != nil && !errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("netlab: %s: set TX checksum offload: %w", dev, err)
	}
	return nil
}
