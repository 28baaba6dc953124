package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"time"

	"xdpd"
)

// runCmd is xdpd run. Flags outrank the config file.
type runCmd struct {
	Config    string         `short:"c" type:"existingfile" placeholder:"FILE" help:"TOML file that can say all that the flags say, and more (see docs/xdpd.toml)."`
	Interface string         `short:"i" placeholder:"IFACE" help:"Interface to take frames from."`
	Address   []netip.Prefix `short:"a" placeholder:"ADDR/LEN" help:"IPv4 address and prefix length of the engine; repeat for more."`
	Gateway   netip.Addr     `short:"g" placeholder:"ADDR" help:"Router for everything outside the prefixes."`
	Share     bool           `help:"Leave the interface's addresses to the kernel and take only the services' ports."`
	Services  []string       `short:"s" sep:"none" placeholder:"NAME[=PORT],..." help:"Services, as listed above; repeat for more."`
	Face      string         `enum:"poller,ring,net," default:"" placeholder:"poller|ring|net" help:"Face of the services that are on all three; see above."`
	Netns     string         `short:"n" placeholder:"NAME" help:"Network namespace of the interface: a name in /run/netns, or a path."`
	Queues    []int          `short:"q" placeholder:"N" help:"Receive queues to serve (default all)."`
	Vlan      []uint16       `placeholder:"ID" help:"VLAN tags of all frames, outermost first."`
	Mode      string         `enum:"best,copy,zerocopy," default:"" placeholder:"best|copy|zerocopy" help:"How frames get to the engine."`
	Attach    string         `enum:"best,native,generic," default:"" placeholder:"best|native|generic" help:"Where the steering program is attached."`
	Dispatch  string         `enum:"auto,always,never," default:"" placeholder:"auto|always|never" help:"Whether other XDP programs may be on the interface as well; see above."`
	Priority  int            `placeholder:"N" help:"Place of the engine's program among them: lower ones come first (default 50)."`
	Napi      string         `enum:"auto,softirq,drive,suspend,threaded," default:"" placeholder:"auto|softirq|drive|suspend|threaded" help:"Who runs the NAPI of the queues; see above."`
	Checksum  string         `name:"tx-checksum" enum:"auto,off," default:"" placeholder:"auto|off" help:"Who sums what is sent; see above."`
	Metadata  string         `name:"rx-metadata" enum:"auto,on,off," default:"" placeholder:"auto|on|off" help:"What is asked of the driver about received frames; see above."`
	Reactors  int            `placeholder:"N" help:"Goroutines that run the queues (default one for each queue); xdpd reactors changes it."`
	Accept    string         `enum:"each,main,workers," default:"" placeholder:"each|main|workers" help:"Which reactor accepts TCP connections, and who serves them; see above."`
	Spread    string         `enum:"round-robin,least-conns," default:"" placeholder:"round-robin|least-conns" help:"With --accept main: which reactor gets a connection."`
	Cpu       []int          `placeholder:"N" help:"Pin the reactors to these CPUs, one for each."`
	MaxSpin   duration       `placeholder:"50us" help:"How long an idle reactor polls before it sleeps; negative: it never sleeps."`
	From      string         `placeholder:"SOCKET" help:"Get sockets and steering from xdpd grant, which listens there: no privilege is needed."`
	User      string         `placeholder:"NAME[:GROUP]" help:"Become this user and give up every capability before the first frame is looked at; see above."`
	Control   string         `placeholder:"PATH" help:"Control socket for xdpd stats (default /run/xdpd/IFACE.sock)."`
	Ledger    bool           `help:"Check the owner of every frame at every step (slow)."`
	Every     time.Duration  `placeholder:"10s" help:"Print a progress line this often."`
}

// Help is shown by xdpd run --help.
func (*runCmd) Help() string {
	return `The interface's kernel must not have the engine's addresses, unless --share is given. Frames for other addresses
pass to the kernel as before. SIGTERM, Ctrl-C and the end of its terminal drain what was written, detach the program and exit with
status 0.

Services:
  echo, discard, chargen     RFC 862, 863, 864 over TCP and UDP; =PORT for another than the usual one
  hold[=PORT]                TCP: accepts and never reads
  source=PORT[:SIZE]         TCP: sends SIZE bytes (K, M, G, T), or for ever: the 64-bit numbers 0, 1, 2 and on
  http=PORT:DIR[:upload]     HTTP/1.1: serves the files in DIR; with upload, PUT and POST to /upload are answered with size
                             and SHA-256 of what came, and nothing is kept
  proxy=PORT:PROTO:HOST:PORT[,HOST:PORT...]   hands connections and datagrams on; PROTO is tcp, udp or tcp+udp

Faces:
  echo, http and proxy are on all three faces of the engine: NAME@FACE, as in echo@ring=7, or --face for those that do not
  say. Usual are the poller for echo, and net for http and proxy. On poller and ring, http takes no uploads, and a proxy's
  datagrams are handed on by net. docs/faces.md says what the faces are.

Dispatch (other XDP programs on the interface, by libxdp's dispatcher; docs/dispatch.md):
  auto       join a dispatcher that is there (xdp-loader, xdp-filter); else have the interface alone (default)
  always     make a dispatcher where there is none, so that others can join later
  never      have the interface alone, or fail: so it is with --user and --from in any case

NAPI (who runs the poll function of the device's queues):
  auto       whoever moves more packets at the present load, which is tried where the reactor has time for it (default)
  softirq    the kernel: on veth, within the system call of who sends
  drive      the reactor, whenever it is awake. Only on veth; xdpd restore undoes what a killed engine leaves of it
  suspend    the kernel, from the reactor's epoll_wait while there are packets: interrupts are off (IRQ suspension, Linux
             6.13). For NICs whose driver tells which NAPI is a queue's, with a reactor for each queue
  threaded   a thread of the kernel's (Linux 6.17)

TX checksum:
  auto       the device, where it does that for the kernel's packets (ethtool -K IFACE tx on) and takes TX metadata; else the
             engine. A veth passes them on unsummed, as it does the kernel's: right for a kernel at its other end (default)
  off        the engine: for a program with AF_XDP, XDP or raw sockets at the other end of a veth that wants whole checksums

RX metadata (what the driver knows of a frame besides its bytes):
  auto       VLAN tags that the driver takes out are put back, by the steering program where the driver tells it (Linux 6.8;
             xdp-rx-metadata-features), or the device is told to leave them (rxvlan off), until the engine ends (default)
  on         and when a frame was received, for datagrams; needs a driver that tells it, and no dispatcher
  off        nothing: a tagged frame may look like one without a tag

User:
  --user NAME[:GROUP] is for an engine that is started by root. What takes privilege is done first: sockets, packet memory,
  steering program. Then all threads become that user, with no capability left and none to be had again, and only then the
  first frame is looked at. Files that http serves must be that user's to read. It does not go with --napi drive,
  suspend and threaded, which change settings of the device while the engine runs; auto is softirq then.

Accepting:
  each       every queue's reactor accepts and serves the connections that its queue receives: the device spreads them
  main       the first queue's reactor accepts for all, and hands each connection over to another, as --spread says
  workers    as each, but a pool of 4 goroutines for each queue serves the connections, beside the reactor. http and proxy
             have goroutines of their own in any case

Examples:
  xdpd run -i eth1 -a 10.0.0.2/24 -g 10.0.0.1 -s echo,discard=9000
  xdpd run -i eth1 -a 10.0.0.2/24 -s http=80:/srv/www -s proxy=53:udp:10.0.0.8:53,10.0.0.9:53`
}

// merge lays the flags over the config file.
func (c *runCmd) merge() (fileConfig, error) {
	var f fileConfig
	if c.Config != "" {
		var err error
		if f, err = loadConfig(c.Config); err != nil {
			return f, err
		}
	}
	if c.Interface != "" {
		f.Interface = c.Interface
	}
	if len(c.Address) > 0 {
		f.Addresses = c.Address
	}
	if c.Gateway.IsValid() {
		f.Gateway = c.Gateway
	}
	if c.Netns != "" {
		f.NetNS = c.Netns
	}
	if len(c.Queues) > 0 {
		f.Queues = c.Queues
	}
	if len(c.Vlan) > 0 {
		f.VLANs = c.Vlan
	}
	if c.Mode != "" {
		f.Mode = c.Mode
	}
	if c.Attach != "" {
		f.Attach = c.Attach
	}
	if c.Dispatch != "" {
		f.Dispatch = c.Dispatch
	}
	if c.Priority != 0 {
		f.Priority = c.Priority
	}
	if c.Napi != "" {
		f.NAPI = c.Napi
	}
	if c.Checksum != "" {
		f.Checksum = c.Checksum
	}
	if c.Metadata != "" {
		f.Metadata = c.Metadata
	}
	if c.Reactors != 0 {
		f.Reactors = c.Reactors
	}
	if c.Accept != "" {
		f.Accept = c.Accept
	}
	if c.Spread != "" {
		f.Spread = c.Spread
	}
	if len(c.Cpu) > 0 {
		f.CPUs = c.Cpu
	}
	if c.MaxSpin != (duration{}) {
		f.MaxSpin = c.MaxSpin
	}
	if c.Control != "" {
		f.Control = c.Control
	}
	if c.From != "" {
		f.From = c.From
	}
	if c.User != "" {
		f.User = &identity{}
		if err := f.User.UnmarshalText([]byte(c.User)); err != nil {
			return f, err
		}
	}
	f.Share = f.Share || c.Share
	f.Ledger = f.Ledger || c.Ledger
	if len(c.Services) > 0 {
		specs, err := parseServices(strings.Join(c.Services, ","))
		if err != nil {
			return f, err
		}
		f.Services = specs
	}
	if c.Face != "" {
		f.Face = c.Face
	}
	return f, chooseFaces(f.Services, f.Face)
}

func (c *runCmd) Run() error {
	file, err := c.merge()
	switch {
	case err != nil:
	case file.Interface == "":
		err = errors.New("no interface given: -i IFACE, or interface in the config file")
	case len(file.Addresses) == 0 && !file.Share:
		err = errors.New("no address given: -a ADDR/LEN for an address of the engine's own, or --share to use the kernel's")
	}
	if err != nil {
		return &exitError{usageStatus, err}
	}
	cfg, err := file.stackConfig()
	if err != nil {
		return &exitError{usageStatus, err}
	}
	ctx, cancel := signalContext()
	defer cancel()
	return runEngine(ctx, cfg, file, c.Every, stdout)
}

// drainTime is how long a terminated engine waits for its peers to take what was written.
const drainTime = 3 * time.Second

// runEngine runs until ctx ends or the engine fails.
func runEngine(ctx context.Context, cfg xdpd.Config, file fileConfig, every time.Duration, out io.Writer) (err error) {
	cfg.Stalled = stallLog(out)
	if file.User != nil {
		// Where they are depends on who we are, and that changes.
		file.Control, file.ClientSocket = file.controlPath(), file.clientsPath()
		if err := file.User.makeRoom(file.Control, 0o700, "--control"); err != nil {
			return err
		}
		if len(file.Clients) > 0 {
			if err := file.User.makeRoom(file.ClientSocket, 0o755, "client_socket"); err != nil {
				return err
			}
		}
		cfg.Opened = file.User.assume
	}
	st, err := xdpd.Open(cfg)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, st.Close()) }()
	svc, err := startServices(st, file.Services, file.workers())
	if err != nil {
		return err
	}
	apps, err := serveClients(ctx, st, &file)
	if err != nil {
		return err
	}
	if apps != nil {
		defer func() { err = errors.Join(err, apps.Close()) }()
	}
	closeControl, err := serveControl(ctx, file.controlPath(), st, svc, apps)
	if err != nil {
		return err
	}
	defer closeControl()
	stats, err := st.Stats()
	if err != nil {
		return err
	}
	for _, p := range file.Clients {
		if p.Lends > 0 {
			fmt.Fprintf(out, "xdpd: clients of %q that ask for zero copy can read and change all packet memory (lends)\n", p.Name)
		}
	}
	if stats.Refused != "" {
		fmt.Fprintf(out, "xdpd: generic XDP, which is slower, because: %s\n", stats.Refused)
	}
	if stats.NotZeroCopy != "" {
		fmt.Fprintf(out, "xdpd: copy mode, because: %s\n", stats.NotZeroCopy)
	}
	if cfg.HugePages && !stats.HugePages {
		fmt.Fprintln(out, "xdpd: no huge pages are free, normal ones are used: sysctl vm.nr_hugepages")
	}
	fmt.Fprintf(out, "xdpd: ready on %s\n", describe(&stats))
	if err := notifyReady(); err != nil {
		return fmt.Errorf("tell systemd: %w", err)
	}
	if err := progress(ctx, st, every, out); err != nil {
		return err
	}
	fmt.Fprintln(out, "xdpd: draining")
	drain, cancel := context.WithTimeout(context.Background(), drainTime)
	defer cancel()
	if apps != nil { // what they wrote goes out with all else; and they would go on writing
		if err := apps.Close(); err != nil {
			fmt.Fprintf(out, "xdpd: %v\n", err)
		}
	}
	if err := svc.Close(drain); err != nil {
		fmt.Fprintf(out, "xdpd: %v\n", err)
	}
	// What is still not acknowledged is lost with its connection, which is no failure of ours.
	if err := st.Shutdown(drain); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	fmt.Fprintln(out, "xdpd: done")
	return nil
}

// describe says in a few words how the engine runs.
func describe(s *xdpd.Stats) string {
	attach, copies := "generic XDP", "copy"
	if s.Native {
		attach = "native XDP"
	}
	if s.Dispatched {
		attach += " in a dispatcher"
	}
	if s.ZeroCopy {
		copies = "zero copy"
	}
	if s.SG {
		copies += ", multi-buffer"
	}
	queues := plural(len(s.Queues), "queue")
	if s.Loops != len(s.Queues) {
		queues += " run by " + plural(s.Loops, "reactor")
	}
	return fmt.Sprintf("%s (%s): %s, %s, %s, MTU %d", s.Interface, s.Driver, attach, copies, queues, s.MTU)
}

// progress waits for the end, printing a line now and then if asked to.
func progress(ctx context.Context, st *xdpd.Stack, every time.Duration, out io.Writer) error {
	var tick <-chan time.Time
	if every > 0 {
		t := time.NewTicker(every)
		defer t.Stop()
		tick = t.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-st.Done():
			return st.Err()
		case <-tick:
			s, err := st.Stats()
			if err != nil {
				return err
			}
			var rx, tx, drops uint64
			for _, q := range s.Queues {
				rx += q.Reactor.RxFrames
				tx += q.Reactor.TxFrames
			}
			for _, n := range s.Drops() {
				drops += n
			}
			fmt.Fprintf(out, "xdpd: %d frames in, %d out, %d dropped\n", rx, tx, drops)
		}
	}
}
