package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"runtime/pprof"
	"slices"
	"strings"

	"xdpd"
	"xdpd/sockets"
)

const (
	port   = 7
	rcvBuf = 8 << 20 // bytes every UDP server may queue for receiving, as those in peers/
)

// serveOptions are the flags behind -serve NAME.
type serveOptions struct {
	work    string
	dev     string
	addr    netip.Prefix
	port    uint
	ports   uint
	rules   uint
	profile string
	app     string
}

// counters is what a server says at its end. Those of peers in C and of other modules may leave fields out.
type counters struct {
	Mode      string            `json:"mode"`       // how frames got to the engine
	FramesIn  uint64            `json:"frames_in"`  // for kernel sockets, datagrams or reads
	FramesOut uint64            `json:"frames_out"` // same
	ARP       uint64            `json:"arp"`        // of FramesIn
	Delivered uint64            `json:"delivered"`  // datagrams queued on the socket
	Sent      uint64            `json:"sent"`       // datagrams sent
	Syscalls  uint64            `json:"syscalls"`   // of the data path; 0: not counted
	Drops     map[string]uint64 `json:"drops"`      // reasons as in the engine's ledger
}

// serveFunc runs a server until ctx ends; ready is to be called when it serves.
type serveFunc func(ctx context.Context, o serveOptions, ready func()) (counters, error)

// serveFuncs are the contenders in this program, by name and work.
var serveFuncs = map[string]map[string]serveFunc{
	"xdpd": {
		"udp-echo": serveReactor, "tcp-echo": serveReactor, "tcp-accept": serveReactor, "tcp-sink": serveReactor,
		"tcp-source": serveReactor, "http": serveNetFace,
	},
	"raw": {"raw-echo": serveRaw, "raw-tx": serveRaw, "raw-drop": serveRaw},
	"xdpd-net": {
		"udp-echo": serveNetFace, "tcp-echo": serveNetFace, "tcp-accept": serveNetFace, "tcp-sink": serveNetFace,
		"tcp-source": serveNetFace, "http": serveNetFace,
	},
	"client-net": {
		"udp-echo": serveClient("client-net"), "tcp-echo": serveClient("client-net"), "tcp-sink": serveClient("client-net"),
		"tcp-source": serveClient("client-net"), "http": serveClient("client-net"),
	},
	"client-ring": {"udp-echo": serveClient("client-ring")},
	"client-c":    {"udp-echo": serveClient("client-c")},
	"asavie": {
		"udp-echo": serveAsavie, "tcp-echo": serveAsavie, "tcp-accept": serveAsavie, "tcp-sink": serveAsavie,
		"tcp-source": serveAsavie,
	},
	"net": {
		"udp-echo": serveNet, "tcp-echo": serveNet, "tcp-accept": serveNet, "tcp-sink": serveNet, "tcp-source": serveNet,
		"http": serveNet,
	},
}

// serve is what runs behind -serve, inside the engine's namespace. It prints "ready", and its counters when ctx ends.
func serve(ctx context.Context, args []string) error {
	var o serveOptions
	f := flag.NewFlagSet("bench -serve NAME", flag.ContinueOnError)
	f.StringVar(&o.work, "work", "udp-echo", "what to serve")
	f.StringVar(&o.dev, "dev", "", "interface")
	f.TextVar(&o.addr, "addr", netip.Prefix{}, "address")
	f.UintVar(&o.port, "port", port, "UDP or TCP port")
	f.UintVar(&o.ports, "ports", 1, "serve so many UDP ports from -port on, each by a socket (xdpd, udp-echo)")
	f.UintVar(&o.rules, "rules", 0, "share the kernel's address, with so many ports in the steering program (xdpd)")
	f.StringVar(&o.profile, "cpuprofile", "", "file")
	f.StringVar(&o.app, "app", "", "program that does the work over rings of this process's engine (client-c)")
	if len(args) == 0 || serveFuncs[args[0]] == nil {
		return fmt.Errorf("-serve %s: no such server", strings.Join(args, " "))
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	works := serveFuncs[args[0]]
	if works[o.work] == nil {
		return fmt.Errorf("-serve %s: no work %q; there are %s", args[0], o.work, slices.Sorted(maps.Keys(works)))
	}
	ready := func() { fmt.Println("ready") }
	if o.profile != "" {
		out, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	c, err := works[o.work](ctx, o, ready)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(c)
}

// open is the engine as a user would open it.
func open(o serveOptions) (*xdpd.Stack, error) {
	cfg := xdpd.Config{Interface: o.dev, RcvBuf: rcvBuf}
	if strings.HasPrefix(o.work, "tcp") || o.work == "http" {
		cfg.RcvBuf = 0 // a TCP window finds its size by itself, as the kernel's does
	}
	if cfg.Share = o.rules > 0; !cfg.Share {
		cfg.Addrs, cfg.Gateway = o.addresses(), o.addr.Masked().Addr().Next() // the peer is the subnet's first
	}
	st, err := xdpd.Open(cfg)
	if err != nil {
		return nil, err
	}
	for i := range o.rules {
		if err = st.OpenPorts(uint16(o.port+i), false, true); err != nil {
			st.Close()
			return nil, err
		}
	}
	return st, nil
}

// portsEach is how many of -ports an address has at most: there are 65535.
const portsEach = 50_000

// addresses are as many, from -addr on, as the ports need.
func (o *serveOptions) addresses() []netip.Prefix {
	var out []netip.Prefix
	for a := o.addr; uint(len(out))*portsEach < o.ports; a = netip.PrefixFrom(a.Addr().Next(), a.Bits()) {
		out = append(out, a)
	}
	return out
}

// whileRunning serves until ctx ends or the engine does, and tells what it counted.
func whileRunning(ctx context.Context, st *xdpd.Stack, ready func()) (counters, error) {
	ready()
	select {
	case <-ctx.Done():
	case <-st.Done():
		return counters{}, st.Err()
	}
	stats, err := st.Stats()
	if err != nil {
		return counters{}, err
	}
	return fromStats(&stats), nil
}

// fromStats takes what counts from the engine's ledger.
func fromStats(s *xdpd.Stats) counters {
	c := counters{Mode: "copy, generic", Drops: s.Drops()}
	switch {
	case s.ZeroCopy:
		c.Mode = "zero copy, native"
	case s.Native:
		c.Mode = "copy, native"
	}
	for i := range s.Queues {
		q := &s.Queues[i]
		c.FramesIn += q.Reactor.RxFrames
		c.FramesOut += q.Reactor.TxFrames
		c.ARP += q.Host.Stats[sockets.RxARP]
		c.Delivered += q.Host.Stats[sockets.RxDelivered]
		c.Sent += q.Host.Stats[sockets.TxUDP]
		c.Syscalls += q.Reactor.Syscalls()
	}
	return c
}
