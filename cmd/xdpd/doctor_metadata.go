package main

import (
	"errors"
	"fmt"
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

// checkTXMetadata: what the driver takes of TX metadata in zero copy. An engine asks for checksums only.
func (d *trialDevice) checkTXMetadata() finding {
	f := finding{Name: "TX metadata", Status: missing, Cure: "none is needed"}
	features, err := rings.ReadFeatures(d.index)
	has := names(features.TXMetadata, "tx-timestamp", "tx-checksum", "tx-launch-time-fifo")
	switch {
	case err != nil:
		f.Text = plain(err)
	case has == "":
		f.Text = "the driver takes none in zero copy (xsk-features); copy mode takes requests for checksums"
	default:
		f.Status, f.Cure, f.Text = good, "", "in zero copy the driver takes "+has+" (xsk-features), of which an engine uses tx-checksum"
	}
	return f
}

// checkNAPIs: what there is to choose for --napi suspend and threaded. A veth has NAPIs only while an XDP program is attached, or with
// GRO.
func (d *trialDevice) checkNAPIs() finding {
	f := finding{Name: "NAPI settings", Status: missing, Cure: "none is needed: the kernel's defaults serve"}
	napis, err := rings.OpenNAPIs()
	if err != nil {
		f.Text = plain(err)
		return f
	}
	defer napis.Close()
	if d.xdp == 0 {
		p, err := d.load(xdpprog.Native)
		if err != nil {
			f.Text = plain(err)
			return f
		}
		defer p.Close()
	}
	all, err := napis.Of(d.index)
	if err == nil && len(all) == 0 {
		err = errors.New("the kernel tells of none")
	}
	id := uint32(0)
	if err == nil {
		id, err = napis.OfQueue(d.index, 0)
	}
	if err != nil {
		f.Text = plain(err)
		return f
	}
	f.Status, f.Cure = good, ""
	f.Text = fmt.Sprintf("%d NAPIs; the first has %v", len(all), all[0].NAPISettings)
	if id != 0 {
		f.Text += fmt.Sprintf("; queue 0 is NAPI %d: --napi suspend is possible", id)
	} else {
		f.Text += "; the driver does not tell which is a queue's, which --napi suspend needs"
	}
	return f
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
