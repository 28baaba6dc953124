package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"

	"xdpd/internal/netlab"
	"xdpd/xdpprog"
)

// flood is an open loop of 64-byte datagrams that never waits: the kernel's own generator (xdpprog.Source) on the last core
// sends as fast as that core can, and an XDP program at the same end takes the replies and counts them. Neither makes a system
// call for a packet, so the contender has the other core to itself, and what is counted is what it can do.
type flood struct {
	flows     int  // 0: 64
	ports     int  // they go to so many UDP ports; 0: one
	strangers bool // they come from beyond the peer, which is their gateway
}

// settle is how long the source runs before it counts: rings are full then.
const settle = 100 * time.Millisecond

func (l flood) run(ctx context.Context, at *site, seconds float64) (o outcome, err error) {
	mac, err := macOf(at.lab.Engine, at.lab.EngineDev)
	if err != nil {
		return o, err
	}
	var source *xdpprog.Source
	var sink *xdpprog.Sink
	err = at.lab.Peer.Do(func() (err error) {
		link, err := netlink.LinkByName(at.lab.PeerDev)
		if err != nil {
			return err
		}
		index := link.Attrs().Index
		if sink, err = xdpprog.LoadSink(xdpprog.SinkConfig{Interface: at.lab.PeerDev, Ifindex: index}); err != nil {
			return err
		}
		source, err = xdpprog.LoadSource(l.config(at.lab, link, mac))
		return err
	})
	if sink != nil {
		defer func() { err = errors.Join(err, sink.Close()) }()
	}
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, source.Close()) }()

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	ran := make(chan error, 1)
	go func() { ran <- source.Run(ctx, 0) }()
	o, err = count(ctx, at, seconds, func() (uint64, error) {
		s, err := sink.Stats()
		return s.Frames, err
	})
	stop()
	if failed := <-ran; failed != nil && !errors.Is(failed, context.Canceled) {
		err = errors.Join(err, fmt.Errorf("source: %w", failed))
	}
	sent, failed := source.Stats()
	replies, failed2 := sink.Stats()
	if err = errors.Join(err, failed, failed2); err != nil {
		return o, err
	}
	o.sent, o.received = sent.Written, replies.Frames
	o.lost = 1 - float64(o.received)/float64(max(1, o.sent))
	return o, nil
}

// config has the flows differ by their source ports, then by their destination ports, then by their addresses.
func (l flood) config(lab *netlab.Lab, link netlink.Link, mac net.HardwareAddr) xdpprog.SourceConfig {
	flows, ports := max(1, l.flows), max(1, l.ports)
	if l.flows == 0 && l.ports == 0 {
		flows = 64
	}
	src := xdpprog.Addrs{First: lab.PeerAddr}
	if l.strangers {
		src = xdpprog.Addrs{First: netip.AddrFrom4([4]byte{198, 18, 0, 1}), Count: (flows + portsEach - 1) / portsEach}
	}
	dsts := (ports + portsEach - 1) / portsEach
	return xdpprog.SourceConfig{
		Interface: lab.PeerDev, Ifindex: link.Attrs().Index, SrcMAC: link.Attrs().HardwareAddr, DstMAC: mac,
		Src: src, SrcPort: xdpprog.Ports{First: 1024, Count: flows / max(1, src.Count)},
		Dst: xdpprog.Addrs{First: lab.EngineAddr, Count: dsts}, DstPort: xdpprog.Ports{First: port, Count: ports / dsts},
		Pin: runtime.NumCPU() > 1, CPU: runtime.NumCPU() - 1,
	}
}

// count counts for some seconds, after a while in which what comes does not count, and reads the clocks at both ends: to load
// programs into the kernel takes longer than some measurements.
func count(ctx context.Context, at *site, seconds float64, frames func() (uint64, error)) (o outcome, err error) {
	var seen [2]uint64
	for i, d := range []time.Duration{settle, time.Duration(seconds * float64(time.Second))} {
		select {
		case <-ctx.Done():
			return o, ctx.Err()
		case <-time.After(d):
		}
		if seen[i], err = frames(); err != nil {
			return o, err
		}
		if o.window[i], err = readClocks(at.pid); err != nil {
			return o, err
		}
	}
	o.done = float64(seen[1] - seen[0])
	o.rate = o.done / o.window[1].at.Sub(o.window[0].at).Seconds() / 1e6
	if o.done == 0 {
		err = fmt.Errorf("%w: nothing came", errUseless)
	}
	return o, err
}

// watch asks nothing: it counts what comes out at the peer's end, and drops it there.
type watch struct{}

func (watch) run(ctx context.Context, at *site, seconds float64) (o outcome, err error) {
	var drop *xdpprog.Drop
	err = at.lab.Peer.Do(func() error {
		link, err := netlink.LinkByName(at.lab.PeerDev)
		if err == nil {
			drop, err = xdpprog.LoadDrop(at.lab.PeerDev, link.Attrs().Index, xdpprog.Native)
		}
		return err
	})
	if err != nil {
		return o, err
	}
	defer func() { err = errors.Join(err, drop.Close()) }()
	return count(ctx, at, seconds, func() (uint64, error) {
		n, _, err := drop.Count()
		return n, err
	})
}
