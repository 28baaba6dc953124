// Package netlab makes a small network for tests and demonstrations: two network namespaces joined by a veth pair. The
// engine's side has a bare interface, for an AF_XDP socket; the peer's side has an address and the kernel's own stack.
//
//	Engine namespace            Peer namespace
//	xa0 (no address)  ───────── xb0 10.77.0.1/24
//
// With Options.Middle the cable is cut, and its two ends lie in a third namespace, for a program or a bridge that joins
// them with faults:
//
//	Engine  xa0 ───── ma  Middle  mb ───── xb0  Peer
//
// With Options.NICs two interfaces of this machine, which a cable joins, take the place of the pair: their driver may have what
// veth never has, zero copy. Close gives them back. What they cannot be is ErrNICs.
//
// Without a name the namespaces are anonymous: nothing but file descriptors of this process keeps them, so that a crash
// leaves nothing behind. With a name they appear in /run/netns, as those of ip-netns(8) do. IPv6 is off on the
// interfaces, so that no router solicitation is on the wire. Needs root.
package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
)

// ErrNoVLAN reports a kernel without 802.1Q interfaces (CONFIG_VLAN_8021Q).
var ErrNoVLAN = errors.New("netlab: this kernel has no VLAN interfaces (CONFIG_VLAN_8021Q)")

// ErrNICs reports options that Options.NICs cannot fulfil, and says why.
var ErrNICs = errors.New("netlab: not with these NICs")

// Options says what to make. The zero value is good: one queue, MTU 1500, real checksums on the wire.
type Options struct {
	Queues     int      // RX and TX queues of both ends; 0 means 1
	MTU        int      // of both ends, in bytes; 0 means 1500
	VLANs      []uint16 // IDs of the peer's VLAN sub-interfaces
	TxOffload  bool     // the peer leaves TCP and UDP checksums partial, as veth does unless told otherwise
	KernelAddr bool     // the engine's interface gets EngineAddr (and its VLANs): its kernel answers too
	Middle     bool     // the pair is cut in two, whose inner ends nobody joins yet
	NICs       []string // two interfaces to take instead of a veth pair, the engine's first; tests give NICs()
	Veth       string   // why it must be a veth pair; with NICs such a network is ErrNICs
	Name       string   // /run/netns/NAME-a and NAME-b, and NAME-m in the middle; "" means anonymous
}

// VLAN is one tagged network over the pair, with the peer's addresses 10.77.1.1/24, 10.77.2.1/24 and on, in the order of
// Options.VLANs; the engine's end in .2.
type VLAN struct {
	ID         uint16
	PeerDev    string // "xb0.ID"
	EngineAddr netip.Addr
	PeerAddr   netip.Addr
	Subnet     netip.Prefix
}

// Lab is a network that runs.
type Lab struct {
	Engine, Peer         *NS
	Middle               *NS // with Options.Middle; its interfaces are MiddleDevs: towards the engine, towards the peer
	EngineDev, PeerDev   string
	EngineAddr, PeerAddr netip.Addr
	Subnet               netip.Prefix
	VLANs                []VLAN

	nics *nics // instead of a veth pair
}

// MiddleDevs are the interfaces of Lab.Middle, towards the engine and towards the peer. They have no addresses.
var MiddleDevs = [2]string{"ma", "mb"}

// New makes the network. Leftovers of an earlier network of the same name are removed first. On error nothing is left.
func New(o Options) (_ *Lab, err error) {
	if err := o.check(); err != nil {
		return nil, err
	}
	l := &Lab{EngineDev: "xa0", PeerDev: "xb0"}
	l.EngineAddr, l.PeerAddr, l.Subnet = addresses(0)
	for i, id := range o.VLANs {
		v := VLAN{ID: id, PeerDev: fmt.Sprintf("%s.%d", l.PeerDev, id)}
		v.EngineAddr, v.PeerAddr, v.Subnet = addresses(byte(i + 1))
		l.VLANs = append(l.VLANs, v)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	// What Close must remove from the namespaces: nothing where interfaces are on loan.
	remove := [2]string{l.EngineDev, l.PeerDev}
	if o.NICs != nil {
		remove = [2]string{}
	}
	if l.Engine, err = newNS(o.Name, "a", remove[0]); err != nil {
		return nil, err
	}
	if l.Peer, err = newNS(o.Name, "b", remove[1]); err != nil {
		return nil, err
	}
	if o.Middle {
		if l.Middle, err = newNS(o.Name, "m", MiddleDevs[0]); err != nil {
			return nil, err
		}
	}
	if err := l.build(o); err != nil {
		return nil, err
	}
	return l, nil
}

// Close removes the pair, or gives the NICs back, and lets go of the namespaces. The kernel ends a namespace when the last process and socket in
// it are gone. A second Close does nothing.
func (l *Lab) Close() error {
	given := l.nics.giveBack() // while the namespaces can still be entered
	l.nics = nil
	return errors.Join(given, l.Engine.close(), l.Peer.close(), l.Middle.close())
}

func (o *Options) check() error {
	if o.Queues == 0 {
		o.Queues = 1
	}
	if o.MTU == 0 {
		o.MTU = 1500
	}
	switch {
	case o.Queues < 0 || o.Queues > 4096: // ETHTOOL and rtnl refuse more: net/core/rtnetlink.c, rtnl_create_link
		return fmt.Errorf("netlab: %d queues: not in 1..4096", o.Queues)
	case o.MTU < 68 || o.MTU > 65535: // drivers/net/veth.c: ETH_MIN_MTU, ETH_MAX_MTU
		return fmt.Errorf("netlab: MTU %d: not in 68..65535", o.MTU)
	case len(o.VLANs) > 255:
		return fmt.Errorf("netlab: %d VLANs: at most 255", len(o.VLANs))
	case len(o.NICs) != 0 && len(o.NICs) != 2:
		return fmt.Errorf("netlab: %d NICs: a wire has two ends", len(o.NICs))
	case strings.ContainsAny(o.Name, "/\x00"):
		return fmt.Errorf("netlab: name %q: a slash has no place in it", o.Name)
	}
	for _, id := range o.VLANs {
		if id < 1 || id > 4094 {
			return fmt.Errorf("netlab: VLAN %d: not in 1..4094", id)
		}
	}
	if os.Geteuid() != 0 {
		return errors.New("netlab: making network namespaces needs root")
	}
	return nil
}

// addresses returns those of network n: the engine's, the peer's, and the subnet of both.
func addresses(n byte) (engine, peer netip.Addr, subnet netip.Prefix) {
	subnet = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 77, n, 0}), 24)
	return netip.AddrFrom4([4]byte{10, 77, n, 2}), netip.AddrFrom4([4]byte{10, 77, n, 1}), subnet
}
