// Command gvisor serves the works of the bench with gVisor's netstack, over gVisor's own AF_XDP link. It has a module of
// its own, so that nobody who uses xdpd downloads gVisor. ../README.md says how it is set up.
//
//	gvisor -work WORK -dev INTERFACE -addr ADDRESS/BITS [-port PORT] [-link xdp|packet] [-qdisc fifo|none]
//	    [-cpuprofile FILE]
//
// It prints "ready" when it serves, and its counters as a line of JSON when SIGTERM or SIGINT ends it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"os/signal"
	"runtime/pprof"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

// counters is what a contender says at its end; bench/serve.go reads it.
type counters struct {
	Mode      string            `json:"mode"`
	FramesIn  uint64            `json:"frames_in"`
	FramesOut uint64            `json:"frames_out"`
	ARP       uint64            `json:"arp"`       // of FramesIn
	Delivered uint64            `json:"delivered"` // datagrams queued on the socket
	Sent      uint64            `json:"sent"`      // datagrams sent
	Syscalls  uint64            `json:"syscalls"`  // 0: gVisor does not count them
	Drops     map[string]uint64 `json:"drops"`
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "gvisor:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	f := flag.NewFlagSet("gvisor", flag.ContinueOnError)
	work := f.String("work", "udp-echo", "udp-echo, tcp-echo, tcp-accept, tcp-sink, tcp-source or http")
	dev := f.String("dev", "", "interface")
	var addr netip.Prefix
	f.TextVar(&addr, "addr", netip.Prefix{}, "address, as 10.77.0.2/24")
	port := f.Uint("port", 7, "port")
	link := f.String("link", "xdp", "xdp (AF_XDP) or packet (AF_PACKET)")
	qdisc := f.String("qdisc", "fifo", "fifo (sends from a goroutine of its own, in batches) or none")
	profile := f.String("cpuprofile", "", "file")
	if err := f.Parse(args); err != nil {
		return err
	}
	start := works[*work]
	switch {
	case start == nil:
		return fmt.Errorf("-work %s: no such work", *work)
	case links[*link] == nil:
		return fmt.Errorf("-link %s: no such link", *link)
	case *qdisc != "fifo" && *qdisc != "none":
		return fmt.Errorf("-qdisc %s: neither fifo nor none", *qdisc)
	case !addr.Addr().Is4():
		return fmt.Errorf("-addr %s: not an IPv4 address with a prefix length", addr)
	case *port == 0 || *port > 65535:
		return fmt.Errorf("-port %d: not in 1..65535", *port)
	}
	ctx, cancel := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer cancel()
	if *profile != "" {
		out, err := os.Create(*profile)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	s, mode, err := open(*dev, *link, *qdisc, addr)
	if err != nil {
		return err
	}
	failed := make(chan error, 1)
	if err := start(s, uint16(*port), failed); err != nil {
		return fmt.Errorf("%s on port %d: %w", *work, *port, err)
	}
	fmt.Println("ready")
	select {
	case <-ctx.Done():
	case err := <-failed:
		return fmt.Errorf("%s: %w", *work, err)
	}
	c := count(s)
	c.Mode = mode
	return json.NewEncoder(os.Stdout).Encode(c)
}

// count takes gVisor's statistics.
func count(s *stack.Stack) counters {
	all, nic := s.Stats(), s.NICInfo()[nicID].Stats
	c := counters{
		FramesIn: nic.Rx.Packets.Value(), FramesOut: nic.Tx.Packets.Value(),
		ARP: all.ARP.PacketsReceived.Value(), Sent: all.UDP.PacketsSent.Value(),
		Drops: map[string]uint64{},
	}
	c.Delivered = all.UDP.PacketsReceived.Value() - all.UDP.ReceiveBufferErrors.Value()
	for why, n := range map[string]uint64{
		"checksum":           all.UDP.ChecksumErrors.Value() + all.TCP.ChecksumErrors.Value(),
		"rcvbuf":             all.UDP.ReceiveBufferErrors.Value(),
		"unknown_port":       all.UDP.UnknownPortErrors.Value(),
		"ip_malformed":       all.IP.MalformedPacketsReceived.Value(),
		"tx_queue_full":      nic.TxPacketsDroppedNoBufferSpace.Value(),
		"accept_queue_full":  all.TCP.ListenOverflowSynDrop.Value() + all.TCP.ListenOverflowAckDrop.Value(),
		"tcp_retransmission": all.TCP.Retransmits.Value(),
	} {
		if n > 0 {
			c.Drops[why] = n
		}
	}
	return c
}
