package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
)

// demoCmd is xdpd demo.
type demoCmd struct {
	Seconds float64 `default:"10" help:"How long it measures, in all."`
}

// Help is shown by xdpd demo --help.
func (*demoCmd) Help() string {
	return `Needs root, and nothing else: no interface of this machine is touched, no other program is called. The engine runs in
a network namespace on one end of a veth pair; the kernel's own sockets on the other end send it ICMP echo requests, UDP
datagrams and TCP streams and check every byte that comes back. The namespaces have no names: they end with the process,
however it ends.`
}

// Run implements the command.
func (c *demoCmd) Run() error {
	if !(c.Seconds > 0 && c.Seconds <= 3600) {
		return &exitError{usageStatus, fmt.Errorf("--seconds %v: give a number above 0 and up to 3600", c.Seconds)}
	}
	if os.Geteuid() != 0 {
		return errors.New("the demo makes network namespaces, which needs root: sudo xdpd demo")
	}
	ctx, cancel := signalContext()
	defer cancel()
	live := newLiveLine(os.Stderr, isTerminal(os.Stderr))
	report, err := c.measure(ctx, stdout, live)
	if ctx.Err() != nil {
		return &exitError{128 + 2, errors.New("interrupted; nothing is left behind")}
	}
	if err != nil {
		return err
	}
	if err := report.write(stdout); err != nil {
		return err
	}
	return report.fault()
}

// measure makes the network, runs the engine and drives it.
//
// A crash of it leaves nothing behind that a later run would have to clean up: the namespaces are anonymous, so that they
// and the veth pair in them end with the last file descriptor, and the steering program is attached by a link that is
// one.
func (c *demoCmd) measure(ctx context.Context, out io.Writer, live *liveLine) (report *demoReport, err error) {
	// The peer leaves checksums to the device, as veth does unless ethtool tells it otherwise.
	lab, err := netlab.New(netlab.Options{TxOffload: true})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	st, err := xdpd.Open(xdpd.Config{
		Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
		Ledger: true, // takes some percent of the speed, and knows at the end where every frame is
	})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	echo, err := knownService("echo")
	if err != nil {
		return nil, err
	}
	svc, err := startServices(st, []serviceSpec{echo}, 0)
	if err != nil {
		return nil, err
	}
	stats, err := st.Stats()
	if err != nil {
		return nil, err
	}
	fmt.Fprintf(out, "engine at %s on %s; the kernel asks from %s\n", lab.EngineAddr, describe(&stats), lab.PeerAddr)

	report = &demoReport{}
	d := &demo{lab: lab, to: netip.AddrPortFrom(lab.EngineAddr, echo.Port), live: live, report: report}
	if err := d.run(ctx, time.Duration(c.Seconds*float64(time.Second))); err != nil {
		return nil, err
	}
	closing, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := svc.Close(closing); err != nil {
		return nil, fmt.Errorf("stop the echo service: %w", err)
	}
	if report.Stats, err = settle(closing, st); err != nil {
		return nil, err
	}
	return report, nil
}

// settle waits until no frame is held for a socket any more, and takes the counters then.
func settle(ctx context.Context, st *xdpd.Stack) (xdpd.Stats, error) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := st.Stats()
		if err != nil {
			return s, err
		}
		pending := 0
		for _, q := range s.Queues {
			pending += unaccounted(&q.Frames)
		}
		if pending == 0 {
			return s, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return s, nil // the report names the frames
		}
	}
}
