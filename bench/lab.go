package main

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/vishvananda/netlink"

	"xdpd/internal/netlab"
)

// newLab makes the network of a measurement for a contender. Both ends know each other's MAC address, so that also who does
// not speak ARP is found.
func newLab(ctx context.Context, m *measurement, c *contender) (_ *netlab.Lab, err error) {
	o := m.lab
	o.KernelAddr = o.KernelAddr || c.kernel
	lab, err := netlab.New(o)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lab.Close())
		}
	}()
	engine, err := macOf(lab.Engine, lab.EngineDev)
	if err != nil {
		return nil, err
	}
	peer, err := macOf(lab.Peer, lab.PeerDev)
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		addNeighbour(lab.Peer, lab.PeerDev, lab.EngineAddr.AsSlice(), engine),
		addNeighbour(lab.Engine, lab.EngineDev, lab.PeerAddr.AsSlice(), peer))
	if err != nil {
		return nil, err
	}
	if _, ok := m.load.(flood); ok && c.kernel { // what is redirected to a veth needs a NAPI at the other end
		if _, err := lab.Engine.Run(ctx, "ethtool", "-K", lab.EngineDev, "gro", "on"); err != nil {
			return nil, err
		}
	}
	if !c.noGSO {
		return lab, nil
	}
	for ns, dev := range map[*netlab.NS]string{lab.Engine: lab.EngineDev, lab.Peer: lab.PeerDev} {
		if _, err := ns.Run(ctx, "ethtool", "-K", dev, "tso", "off", "gso", "off"); err != nil {
			return nil, err
		}
	}
	return lab, nil
}

func macOf(ns *netlab.NS, dev string) (mac net.HardwareAddr, err error) {
	err = ns.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err == nil {
			mac = link.Attrs().HardwareAddr
		}
		return err
	})
	return mac, err
}

func addNeighbour(ns *netlab.NS, dev string, ip net.IP, mac net.HardwareAddr) error {
	return ns.Do(func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		n := &netlink.Neigh{LinkIndex: link.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: mac}
		if err := netlink.NeighSet(n); err != nil {
			return fmt.Errorf("neighbour %s on %s: %w", ip, dev, err)
		}
		return nil
	})
}
