package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"net/url"
	"os"
	"runtime/pprof"
	"strconv"
	"strings"
	"time"

	"xdpd"
	"xdpd/cmd/xdpd/load"
)

// loadCmd is xdpd load.
type loadCmd struct {
	Kind   string `arg:"" help:"What to do: rr, connect, bulk, hold, http or udp; see below."`
	Target string `arg:"" help:"HOST:PORT, or for http a URL."`

	Interface string     `short:"i" placeholder:"IFACE" help:"Interface of an engine to send from."`
	Address   []string   `short:"a" placeholder:"ADDR[/LEN]" help:"Source address; repeat for more. An engine needs one, with its prefix length."`
	Gateway   netip.Addr `short:"g" placeholder:"ADDR" help:"Router of the engine for everything outside the prefixes."`
	Kernel    bool       `short:"k" help:"Send from kernel sockets."`
	Threads   int        `placeholder:"1" help:"Threads of kernel sockets."`
	Netns     string     `short:"n" placeholder:"NAME" help:"Network namespace to send from: a name in /run/netns, or a path."`
	Cpu       []int      `placeholder:"N" help:"Pin the engine's reactors to these CPUs."`
	Attach    string     `enum:"best,native,generic," default:"" placeholder:"best|native|generic" help:"Where the engine's steering program is attached."`
	Spin      bool       `help:"Never sleep: whoever sends keeps its CPUs busy."`

	Connections int     `short:"c" default:"1" help:"Connections, or UDP sockets."`
	Depth       int     `short:"d" default:"1" help:"Requests under way on each (pipelining)."`
	Send        string  `short:"s" placeholder:"1" help:"Bytes of a request (K, M). connect has none unless this says so."`
	Receive     string  `short:"r" placeholder:"SEND" help:"Bytes of a response."`
	Verify      *bool   `negatable:"" help:"Check every byte: responses must be the requests, streams the 64-bit numbers (default: yes where the sizes are those of an echo, no for bulk)."`
	Direction   string  `enum:"send,receive,both," default:"" placeholder:"send|receive|both" help:"Of bulk (default send)."`
	Close       string  `enum:"reset,fin,peer," default:"" placeholder:"reset|fin|peer" help:"How connect closes: by RST, which leaves no port in TIME-WAIT; by FIN; or after the peer did (default reset)."`
	Status      int     `placeholder:"200" help:"Status that http wants."`
	Length      int64   `default:"-1" placeholder:"BYTES" help:"Length of a body that http wants (default: that of the first response)."`
	Rate        float64 `short:"R" placeholder:"N" help:"Open loop: N requests (connect, hold: connections) a second, whatever the server does. Latency counts from when each is due."`
	Arrivals    string  `enum:"poisson,constant" default:"poisson" placeholder:"poisson|constant" help:"Intervals of the open loop."`
	Seed        uint64  `default:"1" help:"Of the Poisson process."`

	Duration time.Duration `short:"t" placeholder:"10s" help:"Time of the measurement (default 10s, or until --count)."`
	Count    string        `placeholder:"N" help:"End after N requests, for bulk after N bytes (K, M, G, T) in all."`
	Warmup   time.Duration `short:"w" placeholder:"0s" help:"Load for so long before the measurement."`
	Timeout  time.Duration `placeholder:"5s" help:"A request without an answer for so long has failed (default 5s, UDP 1s)."`

	JSON        bool   `name:"json" help:"Print the report as one JSON object."`
	AllowErrors bool   `help:"Exit with status 0 even if requests failed."`
	CPUProfile  string `name:"cpuprofile" placeholder:"FILE" help:"Write a CPU profile of this program."`
}

// Help is shown by xdpd load --help.
func (*loadCmd) Help() string {
	return `Sends from an engine of its own (-i IFACE -a ADDR/LEN), or from kernel sockets (--kernel). Ctrl-C ends the
measurement, and the report follows. The exit status is not 0 if requests failed, or a wrong byte came.

Loads:
  rr        requests of --send bytes, each answered by --receive bytes
  connect   connections opened, asked once if --send says so, and closed
  bulk      streams that --direction says: to a sink, from a source, or both with an echo
  hold      connections opened and kept idle
  http      GET over HTTP/1.1; status and length are verified
  udp       datagrams, each answered by one; those without an answer are counted as timeout

Examples:
  xdpd load rr 10.0.0.2:7 -i eth1 -a 10.0.0.3/24 -c 64
  xdpd load http http://10.0.0.2/index.html --kernel -c 32 --rate 20000 -t 30s
  xdpd load bulk 10.0.0.2:5001 --kernel --direction receive --verify --count 10G`
}

// Run implements the command.
func (c *loadCmd) Run() error {
	cfg, err := c.config()
	if err == nil {
		err = cfg.Check()
	}
	if err == nil {
		err = c.checkSide()
	}
	if err != nil {
		return &exitError{usageStatus, err}
	}
	ctx, cancel := signalContext()
	defer cancel()
	side, end, err := c.side(ctx)
	if err != nil {
		return err
	}
	if c.CPUProfile != "" {
		file, err := os.Create(c.CPUProfile)
		if err != nil {
			return errors.Join(err, end())
		}
		defer file.Close()
		if err := pprof.StartCPUProfile(file); err != nil {
			return errors.Join(err, end())
		}
		defer pprof.StopCPUProfile()
	}
	return errors.Join(c.load(ctx, cfg, side, stdout, isTerminal(os.Stdout)), end())
}

// load runs the load and reports.
func (c *loadCmd) load(ctx context.Context, cfg load.Config, side load.Side, out io.Writer, terminal bool) error {
	var live func(load.Live)
	if terminal && !c.JSON {
		live = func(l load.Live) { fmt.Fprintf(out, "\r\x1b[K%v", l) }
	}
	res, err := load.Run(ctx, cfg, side, live)
	if live != nil {
		fmt.Fprint(out, "\r\x1b[K")
	}
	if res == nil {
		return err
	}
	if c.JSON {
		text, e := json.Marshal(res.Report())
		if e == nil {
			_, e = fmt.Fprintf(out, "%s\n", text)
		}
		err = errors.Join(err, e)
	} else {
		err = errors.Join(err, res.Write(out))
	}
	if c.AllowErrors {
		return err
	}
	if rerr := res.Err(); err == nil {
		err = rerr
	} else if rerr != nil {
		err = fmt.Errorf("%w: %w", err, rerr)
	}
	return err
}

// config turns flags into what the load takes.
func (c *loadCmd) config() (cfg load.Config, err error) {
	cfg = load.Config{
		Kind: load.Kind(c.Kind), Connections: c.Connections, Depth: c.Depth, Rate: c.Rate, Constant: c.Arrivals == "constant",
		Seed: c.Seed, Duration: c.Duration, Warmup: c.Warmup, Timeout: c.Timeout, Close: c.Close, Direction: c.Direction,
		Status: c.Status, Length: c.Length,
	}
	for _, n := range []struct {
		flag, text string
		to         *int
	}{{"--send", c.Send, &cfg.Send}, {"--receive", c.Receive, &cfg.Receive}} {
		if n.text != "" {
			size, err := parseSize(n.text)
			if err != nil || size == 0 || size > 1<<30 {
				return cfg, fmt.Errorf("%s %s: a size is 1 to 1024M bytes", n.flag, n.text)
			}
			*n.to = int(size)
		}
	}
	if c.Count != "" {
		if cfg.Count, err = parseSize(c.Count); err != nil || cfg.Count == 0 {
			return cfg, fmt.Errorf("--count %s: a number of at least 1", c.Count)
		}
	}
	host := c.Target
	if cfg.Kind == load.HTTP {
		u, err := url.Parse(c.Target)
		if err != nil || u.Scheme != "http" || u.Hostname() == "" || u.User != nil {
			return cfg, fmt.Errorf("%s: http wants a URL as in http://10.0.0.2:8080/path", c.Target)
		}
		host, cfg.Host, cfg.Path = net.JoinHostPort(u.Hostname(), cmp.Or(u.Port(), "80")), u.Host, u.RequestURI()
	}
	if cfg.Target, err = resolve(host); err != nil {
		return cfg, err
	}
	cfg.Verify = cfg.Kind == load.UDP || (cfg.Kind == load.RR || cfg.Kind == load.Connect) && (cfg.Receive == 0 || cfg.Receive == cfg.Send)
	if c.Verify != nil {
		cfg.Verify = *c.Verify
	}
	return cfg, nil
}

// resolve finds the IPv4 address of HOST:PORT.
func resolve(target string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(target)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("%s: a target is HOST:PORT", target)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil || n == 0 {
		return netip.AddrPort{}, fmt.Errorf("%s: a port is 1 to 65535", target)
	}
	addrs, err := net.DefaultResolver.LookupNetIP(context.Background(), "ip4", host)
	if err != nil || len(addrs) == 0 {
		return netip.AddrPort{}, fmt.Errorf("%s has no IPv4 address: %w", host, err)
	}
	return netip.AddrPortFrom(addrs[0].Unmap(), uint16(n)), nil
}

// checkSide says which flags do not go together.
func (c *loadCmd) checkSide() error {
	switch {
	case c.Kernel == (c.Interface != ""):
		return errors.New("either -i IFACE for an engine to send from, or --kernel")
	case c.Kernel && (c.Gateway.IsValid() || len(c.Cpu) > 0 || c.Attach != ""):
		return errors.New("--gateway, --cpu and --attach are the engine's: the kernel has its own")
	case !c.Kernel && c.Threads != 0:
		return errors.New("--threads is for kernel sockets: an engine has a reactor for each queue")
	case !c.Kernel && len(c.Address) == 0:
		return errors.New("no address given: -a ADDR/LEN for an address of the engine's own")
	case c.Threads < 0:
		return fmt.Errorf("--threads %d: there must be at least 1", c.Threads)
	}
	for _, a := range c.Address {
		if _, err := parseSource(a, !c.Kernel); err != nil {
			return err
		}
	}
	return nil
}

// parseSource reads ADDR or ADDR/LEN.
func parseSource(text string, prefix bool) (p netip.Prefix, err error) {
	if strings.Contains(text, "/") {
		p, err = netip.ParsePrefix(text)
	} else if !prefix {
		var a netip.Addr
		a, err = netip.ParseAddr(text)
		p = netip.PrefixFrom(a, 32)
	} else {
		err = errors.New("the prefix length is missing")
	}
	if err == nil && !p.Addr().Is4() {
		err = errors.New("no IPv4 address")
	}
	if err != nil {
		return p, fmt.Errorf("-a %s: %w", text, err)
	}
	return p, nil
}

// side opens what to send from; end closes it.
func (c *loadCmd) side(ctx context.Context) (side load.Side, end func() error, err error) {
	var prefixes []netip.Prefix
	var sources []netip.Addr
	for _, a := range c.Address {
		p, err := parseSource(a, !c.Kernel)
		if err != nil {
			return nil, nil, err
		}
		prefixes, sources = append(prefixes, p), append(sources, p.Addr())
	}
	if c.Kernel {
		k, err := load.NewKernel(load.KernelConfig{Threads: c.Threads, Sources: sources, NetNS: c.Netns, Spin: c.Spin})
		return k, func() error { return nil }, err
	}
	cfg := xdpd.Config{
		Interface: c.Interface, NetNS: c.Netns, Addrs: prefixes, Gateway: c.Gateway, CPUs: c.Cpu, Attach: attaches[c.Attach],
	}
	if c.Spin {
		cfg.MaxSpin = -1
	}
	st, err := xdpd.Open(cfg)
	if err != nil {
		return nil, nil, err
	}
	e, err := load.NewEngine(st, c.Interface, sources)
	if err != nil {
		return nil, nil, errors.Join(err, st.Close())
	}
	return e, func() error {
		// The resets are to leave.
		drain, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
		defer cancel()
		if err := st.Shutdown(drain); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			return err
		}
		return nil
	}, nil
}
