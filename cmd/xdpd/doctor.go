package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
)

// doctorCmd is xdpd doctor.
type doctorCmd struct {
	Interface string `arg:"" optional:"" name:"iface" help:"Interface to try as well; without it nothing of this machine is touched."`
	JSON      bool   `name:"json" help:"Print the findings as JSON."`
}

// Help is shown by xdpd doctor --help.
func (*doctorCmd) Help() string {
	return `Everything is tried for real: on a veth pair in network namespaces that vanish afterwards, and on the interface if one
is named. There an AF_XDP socket is bound to a queue a few times, for milliseconds, and the steering program is attached
and detached with no port opened, so that all frames go on to the kernel; not if another XDP program is attached. Neither
takes frames, but drivers that rebuild their rings for XDP may lose what arrives in that moment, and the queue must not be
in use by another AF_XDP program. For an interface in another namespace: ip netns exec NAME xdpd doctor IFACE.

ok: works. --: does not work, and an engine runs without it. !!: without it no engine runs. Below is what to do about it.
The exit status is 0 if an engine can run, else 1.`
}

// status is a finding's weight.
type status uint8

const (
	good     status = iota // it works
	missing                // it does not, and an engine runs without it
	blocking               // no engine runs without it
)

func (s status) mark() string { return [...]string{"ok", "--", "!!"}[s] }

// MarshalText implements encoding.TextMarshaler, for JSON.
func (s status) MarshalText() ([]byte, error) {
	return []byte([...]string{"ok", "missing", "blocking"}[s]), nil
}

// finding is the answer to one question.
type finding struct {
	Where  string `json:"where"` // what it is about: the machine, the veth pair, an interface
	Name   string `json:"check"`
	Status status `json:"status"`
	Text   string `json:"finding"`
	Cure   string `json:"cure,omitempty"`
}

// Run implements the command.
func (c *doctorCmd) Run() error {
	ctx, cancel := signalContext()
	defer cancel()
	return c.examine(ctx, stdout)
}

func (c *doctorCmd) examine(ctx context.Context, out io.Writer) error {
	var found []finding
	tell := func(f finding) {
		found = append(found, f)
		if !c.JSON {
			writeFinding(out, f, len(found) == 1 || found[len(found)-2].Where != f.Where)
		}
	}
	checkMachine(tell)
	if ctx.Err() == nil {
		checkThrowAway(ctx, tell)
	}
	if c.Interface != "" && ctx.Err() == nil {
		checkNamed(c.Interface, tell)
	}
	if ctx.Err() != nil {
		return errors.New("doctor: interrupted")
	}
	wrong := 0
	for _, f := range found {
		if f.Status == blocking {
			wrong++
		}
	}
	if c.JSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err := enc.Encode(struct {
			CanRun bool      `json:"can_run"`
			Checks []finding `json:"checks"`
		}{wrong == 0, found})
		if err != nil {
			return err
		}
	} else if wrong == 0 {
		fmt.Fprintln(out, "\nAn engine can run here.")
	}
	if wrong > 0 {
		return fmt.Errorf("no engine can run here: %d of %d checks say why", wrong, len(found))
	}
	return nil
}

func writeFinding(out io.Writer, f finding, first bool) {
	if first {
		fmt.Fprintf(out, "%s\n", f.Where)
	}
	fmt.Fprintf(out, "  %s  %-15s  %s\n", f.Status.mark(), f.Name, f.Text)
	if f.Cure != "" {
		fmt.Fprintf(out, "      %-15s  cure: %s\n", "", f.Cure)
	}
}

// checkThrowAway tries a device, and a whole engine, on a veth pair that nobody else sees.
func checkThrowAway(ctx context.Context, tell func(finding)) {
	const where = "a throw-away veth pair"
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		tell(finding{
			where, "namespaces", missing, plain(err),
			"run xdpd doctor as root (CAP_SYS_ADMIN), or name an interface; a kernel without CONFIG_VETH can only do the latter",
		})
		return
	}
	defer func() {
		if err := lab.Close(); err != nil {
			tell(finding{where, "clean-up", missing, plain(err), "nothing: the namespaces go when this process does"})
		}
	}()
	err = lab.Engine.Do(func() error {
		checkDevice(where, lab.EngineDev, tell)
		return nil
	})
	if err != nil {
		tell(finding{where, "namespaces", missing, plain(err), "run xdpd doctor as root (CAP_SYS_ADMIN)"})
		return
	}
	tell(checkEngine(ctx, where, lab))
}

// checkEngine runs an engine with its defaults and asks it for ICMP echoes.
func checkEngine(ctx context.Context, where string, lab *netlab.Lab) finding {
	const echoes = 20
	f := finding{Where: where, Name: "engine", Status: blocking}
	st, err := xdpd.Open(xdpd.Config{
		Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
	})
	if err != nil {
		f.Text, f.Cure = "does not start: "+plain(err), "what the checks above say"
		return f
	}
	defer st.Close()
	p, err := newPinger(lab.Peer, lab.EngineAddr)
	if err != nil {
		f.Text = plain(err)
		return f
	}
	defer p.close()
	answered, best := 0, time.Duration(1<<62)
	for range echoes {
		rtt, ok, err := p.ping(time.Second)
		switch {
		case err != nil:
			f.Text = plain(err)
			return f
		case ok:
			answered++
			best = min(best, rtt)
		}
		if ctx.Err() != nil {
			break
		}
	}
	f.Text = fmt.Sprintf("answered %d of %d ICMP echo requests", answered, echoes)
	if answered > 0 {
		f.Status = good
		f.Text += fmt.Sprintf(", the fastest in %v", best.Round(100*time.Nanosecond))
	}
	return f
}

// checkNamed tries the user's interface, in the namespace of the caller.
func checkNamed(name string, tell func(finding)) {
	checkDevice("interface "+name, name, tell)
}
