package main

import (
	"strings"

	"xdpd/rings"
	"xdpd/xdpprog"
)

// checkMetadata: what the driver tells of received frames, tried with a program that asks it.
func (d *trialDevice) checkMetadata() finding {
	f := finding{Name: "RX metadata", Status: missing}
	features, err := rings.ReadFeatures(d.index)
	if err != nil {
		f.Text, f.Cure = plain(err), "Linux 6.8; without, VLAN tags that a driver takes out are not known: "+d.tagCure()
		return f
	}
	has := names(features.RXMetadata, "timestamp", "hash", "vlan-tag")
	switch {
	case has == "":
		f.Text = "the driver tells XDP programs nothing but the bytes of a frame"
	case features.RXMetadata&(rings.RXTimestamp|rings.RXTag) == 0:
		f.Text = "the driver tells XDP programs " + has + ", which an engine does not use"
	case d.xdp != 0:
		f.Status, f.Text = good, "the driver tells XDP programs "+has+"; not tried, because of the XDP program"
		return f
	default:
		p, err := xdpprog.Load(xdpprog.Config{
			Interface: d.name, Ifindex: d.index, Steer: xdpprog.Share, Addrs: trialAddrs, Queues: max(d.queues, 1), Metadata: xdpprog.Stamps,
		})
		if err == nil {
			err = p.NoMetadata()
			defer p.Close()
		}
		if err != nil {
			f.Text = plain(err)
			break
		}
		f.Status, f.Text = good, "the driver tells XDP programs "+has+"; --rx-metadata on has datagrams stamped"
		if features.RXMetadata&rings.RXTag != 0 {
			return f
		}
	}
	f.Cure = d.tagCure()
	return f
}

// tagCure is what to do about VLAN tags that the driver takes out and tells nobody.
func (d *trialDevice) tagCure() string {
	if d.driver == "veth" {
		return "with VLANs on a kernel at the other end: ethtool -K PEER txvlan off"
	}
	tags, err := rings.OpenTags()
	if err != nil {
		return plain(err)
	}
	defer tags.Close()
	if taken, err := tags.Taken(d.name); err != nil || !taken {
		return "none is needed: the driver leaves VLAN tags in frames"
	}
	return "none is needed: while an engine runs it has the driver leave VLAN tags in frames (ethtool -K " + d.name + " rxvlan off)"
}

// names lists those of which the bit is set.
func names(bits uint64, of ...string) string {
	var list []string
	for i, name := range of {
		if bits>>i&1 != 0 {
			list = append(list, name)
		}
	}
	return strings.Join(list, ", ")
}
