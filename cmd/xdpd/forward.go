package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"xdpd/cmd/xdpd/forward"
	"xdpd/rings"
	"xdpd/xdpprog"
)

// forwardCmd is xdpd forward.
type forwardCmd struct {
	Bridge forwardBridgeCmd `cmd:"" help:"Pass Ethernet frames between interfaces, as a learning bridge."`
	Route  forwardRouteCmd  `cmd:"" help:"Pass IPv4 packets between interfaces, as a router."`
	Stats  forwardStatsCmd  `cmd:"" help:"Show what a running forwarder counted."`
}

// forwardFlags are those of bridge and router.
type forwardFlags struct {
	Interfaces []string `arg:"" name:"iface" help:"Interfaces to forward between, two or more."`
	Mode       string   `enum:"best,copy,zerocopy" default:"best" placeholder:"best|copy|zerocopy" help:"How frames get from and to the devices."`
	Attach     string   `enum:"best,native,generic" default:"best" placeholder:"best|native|generic" help:"Where the XDP program is attached."`
	Frames     int      `placeholder:"N" help:"Frames of memory for each interface, beyond its fill rings (default 4096)."`
	HugePages  bool     `help:"Ask for huge pages for them."`
	Cpu        int      `default:"-1" placeholder:"N" help:"Pin the forwarder to this CPU."`
	MaxSpin    duration `placeholder:"50us" help:"How long it polls when nothing comes before it sleeps; negative: it never sleeps."`
	Control    string   `placeholder:"PATH" help:"Control socket for xdpd forward stats (default /run/xdpd/forward/IFACE+IFACE.sock)."`
	Ledger     bool     `help:"Check the owner of every frame at every step (slow)."`
}

type forwardBridgeCmd struct {
	forwardFlags
	Ageing time.Duration `default:"300s" help:"How long a station that says nothing is remembered."`
}

type forwardRouteCmd struct {
	forwardFlags
	Route []string `sep:"none" placeholder:"PREFIX=GATEWAY" help:"A route of its own; repeat for more. With any, the kernel's routes are not used."`
}

// Help is shown by xdpd forward bridge --help.
func (*forwardBridgeCmd) Help() string {
	return `Frames go to the port of their station without being copied; what is for a group or an unknown station goes to all
others. VLAN tags stay as they are. Frames to an interface's own address and to the groups that no bridge passes on
(spanning tree, LACP, LLDP) are left to the kernel. docs/forward.md says more.

Example:
  xdpd forward bridge eth1 eth2`
}

// Help is shown by xdpd forward route --help.
func (*forwardRouteCmd) Help() string {
	return `Addresses, routes and neighbours are the kernel's, and are followed as they change. Packets for the machine itself,
ARP, IPv6 and whatever else is not IPv4 to be sent on are left to the kernel. docs/forward.md says more.

Examples:
  xdpd forward route eth1 eth2
  xdpd forward route eth1 eth2 --route 10.0.0.0/8=192.168.1.1 --route 0.0.0.0/0=192.168.2.1`
}

// config is what both kinds have in common.
func (c *forwardFlags) config() forward.Config {
	cfg := forward.Config{
		Interfaces: c.Interfaces, Frames: c.Frames, HugePages: c.HugePages, MaxSpin: c.MaxSpin.Duration, Ledger: c.Ledger,
		Pin: c.Cpu >= 0, CPU: c.Cpu,
		Mode:   map[string]rings.Mode{"best": rings.Best, "copy": rings.Copy, "zerocopy": rings.ZeroCopy}[c.Mode],
		Attach: map[string]xdpprog.Attach{"best": xdpprog.BestAttach, "native": xdpprog.Native, "generic": xdpprog.Generic}[c.Attach],
	}
	return cfg
}

func (c *forwardFlags) controlPath() string {
	if c.Control != "" {
		return c.Control
	}
	return filepath.Join(forwardDir, strings.Join(c.Interfaces, "+")+".sock")
}

// Run implements the command.
func (c *forwardBridgeCmd) Run() error {
	if c.Ageing <= 0 {
		return &exitError{usageStatus, fmt.Errorf("--ageing %v: stations are remembered for some time, mostly 300s", c.Ageing)}
	}
	cfg := c.config()
	cfg.Ageing = c.Ageing
	return runForward(cfg, c.controlPath(), stdout)
}

// Run implements the command.
func (c *forwardRouteCmd) Run() error {
	cfg := c.config()
	cfg.Router = true
	for _, text := range c.Route {
		r, err := parseRoute(text)
		if err != nil {
			return &exitError{usageStatus, err}
		}
		cfg.Routes = append(cfg.Routes, r)
	}
	return runForward(cfg, c.controlPath(), stdout)
}

func parseRoute(text string) (r forward.Route, err error) {
	dst, via, ok := strings.Cut(text, "=")
	if ok {
		if r.Dst, err = netip.ParsePrefix(dst); err == nil {
			r.Via, err = netip.ParseAddr(via)
		}
		ok = err == nil && r.Dst.Addr().Is4() && r.Via.Is4()
	}
	if !ok {
		return r, fmt.Errorf("--route %s: a route is an IPv4 prefix and its gateway: 10.0.0.0/8=192.168.1.1", text)
	}
	return r, nil
}

// runForward forwards until a signal comes or an interface is gone.
func runForward(cfg forward.Config, control string, out io.Writer) (err error) {
	ctx, cancel := signalContext()
	defer cancel()
	f, err := forward.Open(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	stop, err := serveForward(control, f)
	if err != nil {
		return err
	}
	defer stop()
	st, err := f.Stats()
	if err != nil {
		return err
	}
	for _, line := range describeForward(&st) {
		fmt.Fprintln(out, line)
	}
	fmt.Fprintln(out, "xdpd: forwarding")
	select {
	case <-ctx.Done():
		fmt.Fprintln(out, "xdpd: done")
		return nil
	case <-f.Done():
		return f.Err()
	}
}

// serveForward answers GET /stats on the control socket with a forwardView.
func serveForward(path string, f *forward.Forward) (stop func(), err error) {
	mux := http.NewServeMux()
	started := time.Now()
	answerStats(mux, func() (any, error) {
		st, err := f.Stats()
		if err != nil {
			return nil, err
		}
		v := newForwardView(&st)
		v.PID, v.Commit, v.UptimeSeconds = os.Getpid(), buildCommit(), time.Since(started).Seconds()
		return v, nil
	})
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, isForwarder, http.StatusNotFound) })
	return serveMux(path, mux)
}

// forwardStatsCmd is xdpd forward stats.
type forwardStatsCmd struct {
	Control string        `placeholder:"PATH" help:"Control socket to ask (default that of the only forwarder that runs)."`
	JSON    bool          `name:"json" help:"Print the answer as it is: JSON, every counter under its name."`
	Watch   time.Duration `short:"w" placeholder:"1s" help:"Ask again this often and show rates, until Ctrl-C."`
	All     bool          `help:"Show what is zero too."`
}

// Run implements the command.
func (c *forwardStatsCmd) Run() error {
	if c.Watch < 0 {
		return &exitError{usageStatus, fmt.Errorf("--watch %v: the time between two looks cannot be negative", c.Watch)}
	}
	path := c.Control
	if path == "" {
		found, err := filepath.Glob(filepath.Join(forwardDir, "*.sock"))
		found = listening("unix", found)
		switch {
		case err != nil:
			return err
		case len(found) == 0:
			return fmt.Errorf("there is no control socket in %s: start a forwarder with xdpd forward, or name its socket with --control", forwardDir)
		case len(found) > 1:
			return fmt.Errorf("several forwarders are known; say which with --control: %s", strings.Join(found, ", "))
		}
		path = found[0]
	}
	ctx, cancel := signalContext()
	defer cancel()
	return c.show(ctx, path, stdout, isTerminal(os.Stdout))
}

// show prints once, or until ctx ends.
func (c *forwardStatsCmd) show(ctx context.Context, path string, out io.Writer, terminal bool) error {
	var before *forwardView
	for {
		raw, err := callControl(ctx, path, http.MethodGet, "/stats")
		if err != nil {
			if before != nil && ctx.Err() != nil {
				return nil
			}
			return err
		}
		var v forwardView
		if err := json.Unmarshal(raw, &v); err != nil {
			return fmt.Errorf("control socket %s: the answer is not xdpd's: %w", path, err)
		}
		if v.Kind == "" {
			return fmt.Errorf("control socket %s: an engine listens there, and not a forwarder: xdpd stats asks it", path)
		}
		if c.JSON {
			err = (&statsCmd{Watch: c.Watch}).writeJSON(out, raw)
		} else {
			if c.Watch > 0 && terminal {
				fmt.Fprint(out, "\x1b[H\x1b[2J") // to the upper left corner, and clear
			} else if before != nil {
				fmt.Fprintln(out)
			}
			err = writeForward(out, &v, before, c.All)
		}
		if err != nil || c.Watch == 0 {
			return err
		}
		before = &v
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(c.Watch):
		}
	}
}
