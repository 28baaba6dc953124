package main

import (
	"fmt"
	"strings"

	"github.com/vishvananda/netlink"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/xdpprog"
)

// veth is what one end of the pair counts (drivers/net/veth.c): the far end puts a frame on its ring, its NAPI takes it from there
// and runs the XDP program.
type veth struct {
	Packets    uint64 // taken from its ring
	Redirected uint64 // handed to a socket by the program
	Drops      uint64 // could not be copied for the program, or the socket refused it
	Xmit       uint64 // frames of an XDP redirect that this end put on the far end's ring
	XmitFull   uint64 // for which it had no room
	SendFull   uint64 // packets of a socket, or of the kernel, for which it had no room
}

// books is what all stages have counted since they began.
type books struct {
	source xdpprog.SourceStats
	kernel uint64 // packets that the peer's kernel sent
	asked  uint64 // and the engine's, for the engine
	near   veth   // the engine's end
	far    veth   // the peer's

	verdicts uint64 // of the steering program
	ours     uint64 // of them, for the socket
	socket   rings.Stats
	reactor  reactor.Counters
	host     sockets.Counters
	udpFull  uint64 // datagrams that the socket refused
	frames   xdpd.FrameStats
	tcp      int // engine's sockets

	received, sent, refused uint64 // the handler's

	sink          xdpprog.SinkStats
	rounds, bytes uint64 // of the TCP clients
	dials         uint64
}

func (w *world) read() (b books, err error) {
	if b.source, err = w.source.Stats(); err != nil {
		return b, err
	}
	if err := w.readVeth(&b); err != nil {
		return b, err
	}
	if b.asked, err = w.asked.packets(); err != nil {
		return b, err
	}
	st, err := w.stack.Stats()
	if err != nil {
		return b, err
	}
	for _, v := range st.Verdicts {
		b.verdicts += v.Packets
		if !strings.HasPrefix(v.Name, "pass_") {
			b.ours += v.Packets
		}
	}
	q := &st.Queues[0]
	b.socket, b.reactor, b.host, b.frames, b.tcp = q.Kernel, q.Reactor, q.Host, q.Frames, len(q.TCP)
	for _, u := range q.UDP {
		b.udpFull += u.Drops
	}
	b.received, b.sent, b.refused = w.echo.counts()
	now, err := w.sink.Stats()
	if err != nil {
		return b, err
	}
	b.sink = w.sunk
	for _, f := range []struct {
		to  *uint64
		add uint64
	}{
		{&b.sink.Frames, now.Frames}, {&b.sink.Bytes, now.Bytes}, {&b.sink.BadSum, now.BadSum},
		{&b.sink.PartialSum, now.PartialSum}, {&b.sink.Unique, now.Unique}, {&b.sink.Duplicates, now.Duplicates},
		{&b.sink.Outside, now.Outside}, {&b.sink.InOrder, now.InOrder}, {&b.sink.Ahead, now.Ahead}, {&b.sink.Gap, now.Gap},
		{&b.sink.Late, now.Late}, {&b.sink.Passed, now.Passed},
	} {
		*f.to += f.add
	}
	b.rounds, b.bytes, b.dials = w.rounds.Load(), w.bytes.Load(), w.dials.Load()
	return b, nil
}

func (w *world) readVeth(b *books) error {
	read := func(ns *netlab.NS, dev string, v *veth) error {
		st, err := ns.Statistics(dev)
		if err != nil {
			return err
		}
		for name, to := range map[string]*uint64{
			"rx_queue_0_xdp_packets": &v.Packets, "rx_queue_0_xdp_redirect": &v.Redirected, "rx_queue_0_drops": &v.Drops,
			"tx_queue_0_xdp_xmit": &v.Xmit, "tx_queue_0_xdp_xmit_errors": &v.XmitFull,
		} {
			n, ok := st[name]
			if !ok {
				return fmt.Errorf("%s has no counter %s", dev, name)
			}
			*to = n
		}
		return ns.Do(func() error {
			link, err := netlink.LinkByName(dev)
			if err == nil {
				// veth_get_stats64 adds both, and XDP_TX, which nobody uses here.
				v.SendFull = link.Attrs().Statistics.TxDropped - v.XmitFull
			}
			return err
		})
	}
	if err := read(w.lab.Engine, w.lab.EngineDev, &b.near); err != nil {
		return err
	}
	if err := read(w.lab.Peer, w.lab.PeerDev, &b.far); err != nil {
		return err
	}
	return w.lab.Peer.Do(func() error {
		list, err := netlink.QdiscList(w.peer)
		if err != nil {
			return fmt.Errorf("queue of %s: %w", w.lab.PeerDev, err)
		}
		for _, q := range list {
			if a := q.Attrs(); a.Parent == netlink.HANDLE_ROOT && a.Statistics != nil && a.Statistics.Basic != nil {
				b.kernel = uint64(a.Statistics.Basic.Packets)
				return nil
			}
		}
		return fmt.Errorf("queue of %s: it counts nothing", w.lab.PeerDev)
	})
}

// below are the packets that ended in the stack before it knew their transport protocol.
func (b *books) below() (n uint64) {
	for d, drops := range b.host.Drops {
		switch name, _, _ := strings.Cut(sockets.Drop(d).String(), "_"); name {
		case "eth", "ip", "frag":
			n += drops
		}
	}
	return n
}

// check compares, along the way of a packet, what each stage took with what it passed on and dropped. It is for a moment
// when nothing is on its way, and nil then.
//
// The kernel has a counter for every drop on this way, but for two that share one. Drops of the engine's end are what could not be
// copied for the program, and what the socket refused (veth_xdp_rcv_skb): the socket counts its part itself. SendFull does
// not say whose packet it was: of handler to sink, and of the other packets, only the sum is checked. What the peer's
// kernel sent, the queue before its device counts: on veth it is not told apart from what the source sent.
func (b *books) check() (off []error) {
	equal := func(where string, in, out uint64) {
		if in != out {
			off = append(off, fmt.Errorf("%s: %d in, %d out, %+d", where, in, out, int64(out-in)))
		}
	}
	stat := func(s sockets.Stat) uint64 { return b.host.Stats[s] }
	drop := func(d sockets.Drop) uint64 { return b.host.Drops[d] }

	// To the engine.
	equal("source to veth", b.source.Sent, b.far.Xmit)
	equal("source refused by veth", b.source.Dropped, b.far.XmitFull)
	equal("source refused before veth", b.source.RedirectErrors, 0)
	equal("veth ring to the engine's end", b.source.Sent+b.kernel, b.near.Packets+b.far.SendFull)
	refused := b.ours - b.near.Redirected
	equal("engine's end to its program", b.near.Packets, b.verdicts+b.near.Drops-refused)
	equal("program to socket", b.ours, b.near.Redirected+b.socket.RxDropped+b.socket.RxRingFull)
	equal("RX ring", b.near.Redirected, b.reactor.RxFrames)
	equal("reactor to stack", b.reactor.RxFrames, stat(sockets.RxFrames)+b.reactor.RxBadDesc+b.reactor.RxBadChain)
	equal("stack to protocols", stat(sockets.RxFrames),
		stat(sockets.RxARP)+stat(sockets.RxICMP)+stat(sockets.RxUDP)+stat(sockets.RxTCP)+stat(sockets.RxFragments)+b.below())
	equal("UDP to handler", stat(sockets.RxUDP), b.received+b.udpFull+drop(sockets.UDPNoSocket))

	// And back.
	equal("handler", b.received, b.sent+b.refused)
	equal("handler to stack", b.sent, stat(sockets.TxUDP))
	equal("stack to output", stat(sockets.TxARP)+stat(sockets.TxICMP)+stat(sockets.TxUDP)+stat(sockets.TxTCP),
		stat(sockets.TxFrames)+drop(sockets.NeighFailed)+drop(sockets.NeighQueueFull)+drop(sockets.NeighTableFull))
	equal("stack to TX ring", stat(sockets.TxFrames), b.reactor.TxFrames)
	equal("TX ring to completion", b.reactor.TxFrames+b.reactor.TxMore, b.reactor.Completions+b.socket.TxInvalidDescs)
	equal("completions of no frame", b.reactor.BadCompletions, 0)
	equal("veth ring to the peer's end", b.reactor.TxFrames+b.asked, b.far.Packets+b.near.SendFull)
	equal("peer's end to the sink", b.far.Packets, b.sink.Frames+b.sink.Passed+b.far.Drops)
	if lost := b.sent - b.sink.Frames; lost > b.near.SendFull+b.far.Drops { // wraps when the sink has more
		off = append(off, fmt.Errorf("handler to sink: %d sent, %d taken, and veth had no room for %d of all packets",
			b.sent, b.sink.Frames, b.near.SendFull))
	}
	equal("sink: each sequence number once", b.sink.Frames, b.sink.Unique)
	equal("sink: bad sums, strangers", b.sink.BadSum+b.sink.Outside, 0)
	equal("sink: out of order", b.sink.Late, 0)

	// Memory: all frames are where they are at rest.
	equal("frames held for sockets or on their way", uint64(b.frames.Rx+b.frames.Tx+b.frames.Away), 0)
	if o := b.frames.Owners; o != nil {
		equal("frames free by the ledger", uint64(b.frames.Free), uint64(o["free"]))
		equal("frames free or in the fill ring", uint64(b.frames.Total), uint64(o["free"]+o["fill"]))
	}
	return off
}

// String lists what is not zero.
func (b *books) String() string {
	s := &strings.Builder{}
	fmt.Fprintf(s, "  source      %d written, %d sent, %d refused by a full ring\n", b.source.Written, b.source.Sent, b.source.Dropped)
	fmt.Fprintf(s, "  peer kernel %d sent\n", b.kernel)
	fmt.Fprintf(s, "  engine veth %+v\n", b.near)
	fmt.Fprintf(s, "  program     %d verdicts, %d ours\n", b.verdicts, b.ours)
	fmt.Fprintf(s, "  socket      %+v\n", b.socket)
	fmt.Fprintf(s, "  reactor     %+v\n", b.reactor)
	s.WriteString("  stack      ")
	for i, n := range b.host.Stats {
		if n > 0 {
			fmt.Fprintf(s, " %s %d", sockets.Stat(i), n)
		}
	}
	s.WriteString("\n  drops      ")
	for i, n := range b.host.Drops {
		if n > 0 {
			fmt.Fprintf(s, " %s %d", sockets.Drop(i), n)
		}
	}
	fmt.Fprintf(s, "\n  handler     %d received, %d sent, %d refused\n", b.received, b.sent, b.refused)
	fmt.Fprintf(s, "  frames      %+v\n", b.frames)
	fmt.Fprintf(s, "  kernel      %d sent for the engine\n", b.asked)
	fmt.Fprintf(s, "  peer veth   %+v\n", b.far)
	fmt.Fprintf(s, "  sink        %d frames, %d unique, %d out of order, %d bad, %d passed to the kernel\n",
		b.sink.Frames, b.sink.Unique, b.sink.Late, b.sink.BadSum+b.sink.Outside, b.sink.Passed)
	fmt.Fprintf(s, "  TCP         %d connections, %d rounds, %d bytes there and back\n", b.dials, b.rounds, b.bytes)
	return s.String()
}
