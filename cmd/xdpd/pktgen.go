package main

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"time"

	"xdpd/cmd/xdpd/pktgen"
)

// pktgenCmd is xdpd pktgen.
type pktgenCmd struct {
	Interface string        `short:"i" placeholder:"IFACE" help:"Interface to send on, or to receive on."`
	Source    string        `enum:"bpf,xsk,kernel," default:"" placeholder:"bpf|xsk|kernel" help:"Who sends: a program in the kernel (bpf, the default), AF_XDP (xsk, the default of --replay), the kernel's pktgen."`
	Echo      bool          `short:"e" help:"Everything comes back: receive and account for the replies."`
	Sink      bool          `help:"Send nothing; receive what another pktgen sends."`
	Verify    bool          `help:"Exit with status 1 when something was lost, doubled or corrupt."`
	Dst       pktgen.Addrs  `short:"A" placeholder:"ADDR[-ADDR]" help:"Destination addresses: one, a range, or a prefix."`
	DstMin    pktgen.Addrs  `aliases:"dst_min" placeholder:"ADDR" help:"The first of them (dst_min of the kernel's pktgen)."`
	DstMax    pktgen.Addrs  `aliases:"dst_max" placeholder:"ADDR" help:"The last."`
	Src       pktgen.Addrs  `short:"a" placeholder:"ADDR[-ADDR]" help:"Source addresses (default the interface's)."`
	SrcMin    pktgen.Addrs  `aliases:"src_min" placeholder:"ADDR" help:"The first of them (src_min)."`
	SrcMax    pktgen.Addrs  `aliases:"src_max" placeholder:"ADDR" help:"The last."`
	Dport     pktgen.Ports  `short:"P" placeholder:"PORT[-PORT]" help:"UDP destination ports (default 9)."`
	UDPDstMin uint16        `name:"udp-dst-min" aliases:"udp_dst_min" placeholder:"PORT" help:"The first of them (udp_dst_min)."`
	UDPDstMax uint16        `name:"udp-dst-max" aliases:"udp_dst_max" placeholder:"PORT" help:"The last."`
	Sport     pktgen.Ports  `short:"p" placeholder:"PORT[-PORT]" help:"UDP source ports (default 1024, and on as --flows needs)."`
	UDPSrcMin uint16        `name:"udp-src-min" aliases:"udp_src_min" placeholder:"PORT" help:"The first of them (udp_src_min)."`
	UDPSrcMax uint16        `name:"udp-src-max" aliases:"udp_src_max" placeholder:"PORT" help:"The last."`
	DstMAC    pktgen.MAC    `name:"dst-mac" short:"m" aliases:"dst_mac" placeholder:"MAC" help:"Destination MAC address (default: by route and ARP)."`
	SrcMAC    pktgen.MAC    `name:"src-mac" aliases:"src_mac" placeholder:"MAC" help:"Source MAC address (default the interface's)."`
	Flows     int           `placeholder:"N" help:"Flows, up to 1000000 (default all that addresses and ports make)."`
	Size      pktgen.Sizes  `short:"s" default:"64" placeholder:"N|imix|N:W,..." help:"Bytes of a frame with its FCS, 64 and up; imix; or sizes with weights."`
	PktSize   int           `aliases:"pkt_size" placeholder:"N" help:"The same without FCS, 60 and up (pkt_size)."`
	Rate      pktgen.Rate   `short:"r" aliases:"ratep" placeholder:"N[k|M][bit]" help:"Packets a second, or bits: 200k, 1.5M, 900Mbit (default: as fast as it goes)."`
	Delay     float64       `placeholder:"NS" help:"Nanoseconds from packet to packet, in place of --rate (delay)."`
	Count     pktgen.Count  `short:"n" placeholder:"N[k|M]" help:"Packets to send, or with --sink to receive (default: no end)."`
	Duration  time.Duration `short:"d" placeholder:"10s" help:"How long (default: no end)."`
	Burst     int           `default:"1" placeholder:"N" help:"Packets that are sent together."`
	Wait      time.Duration `default:"1s" help:"With --echo: how long nothing may come before what is missing is lost."`
	Mark      uint16        `placeholder:"N" help:"Mark of the packets, which tells one test from another (default 0x7864)."`
	Replay    string        `type:"existingfile" placeholder:"FILE" help:"Send the frames of a pcap or pcapng file as they are."`
	Speed     string        `default:"1" placeholder:"F|max" help:"With --replay: times the recorded speed, or max. --rate outranks it."`
	Loop      int           `default:"1" placeholder:"N" help:"With --replay: how often; 0: no end."`
	Queue     int           `short:"q" placeholder:"N" help:"Queue to send on (xsk, kernel)."`
	Mode      string        `enum:"best,copy,zerocopy" default:"best" help:"How frames get from AF_XDP to the driver (xsk)."`
	Cpu       int           `default:"-1" placeholder:"N" help:"CPU that sends (bpf, kernel)."`
	JSON      bool          `name:"json" help:"Print the report as one JSON object."`
	JSONFile  string        `name:"json-file" placeholder:"FILE" help:"Write the JSON object to a file as well."`
}

// Help is shown by xdpd pktgen --help.
func (*pktgenCmd) Help() string {
	return `Sends UDP packets, each with a sequence number and the time, and accounts for every number at the other end. Once a
second it says how far it is; Ctrl-C ends it with the report. docs/pktgen.md has the fields of the JSON.

Examples:
  xdpd pktgen -i xb0 --dst 10.77.0.2 -d 10s                        # one way, as fast as it goes
  xdpd pktgen -i xa0 --sink --verify -n 10M                        # at the other end
  xdpd pktgen -i xb0 --dst 10.77.0.2 -P 7 --echo --verify -n 1M -r 200k   # against xdpd run -s echo
  xdpd pktgen -i xb0 --dst 10.77.0.2 --flows 100000 --size imix -r 900Mbit
  xdpd pktgen -i xb0 --replay trace.pcapng --speed 2 --loop 0`
}

// Run implements the command.
func (c *pktgenCmd) Run() error {
	cfg, err := c.config()
	if err != nil {
		return &exitError{usageStatus, err}
	}
	ctx, cancel := signalContext()
	defer cancel()
	report, err := pktgen.Run(ctx, cfg, &pktgen.Live{Out: os.Stderr, Terminal: isTerminal(os.Stderr), Every: time.Second})
	if usage := (*pktgen.UsageError)(nil); errors.As(err, &usage) {
		return &exitError{usageStatus, err}
	}
	if err != nil {
		return err
	}
	if err := c.write(report, stdout); err != nil {
		return err
	}
	return report.Fault()
}

// write shows the report, and writes the file: what was measured is not lost with a path that is wrong.
func (c *pktgenCmd) write(report *pktgen.Report, out io.Writer) error {
	show := report.WriteText
	if c.JSON {
		show = report.WriteJSON
	}
	err := show(out)
	if c.JSONFile == "" {
		return err
	}
	f, ferr := os.Create(c.JSONFile)
	if ferr == nil {
		ferr = errors.Join(report.WriteJSON(f), f.Close())
	}
	if ferr != nil {
		ferr = fmt.Errorf("--json-file: %w", ferr)
	}
	return errors.Join(err, ferr)
}

// config puts together what can be said in more than one way.
func (c *pktgenCmd) config() (cfg pktgen.Config, err error) {
	cfg = pktgen.Config{
		Interface: c.Interface, Source: c.Source, Sink: c.Sink, Echo: c.Echo, SrcMAC: c.SrcMAC, DstMAC: c.DstMAC,
		Sizes: c.Size, Rate: c.Rate, Count: c.Count, Duration: c.Duration, Burst: c.Burst, Wait: c.Wait, Mark: c.Mark,
		Queue: c.Queue, Mode: c.Mode, CPU: c.Cpu, Verify: c.Verify,
	}
	cfg.N = c.Flows
	for _, a := range []struct {
		name             string
		to               *pktgen.Addrs
		whole, min, most pktgen.Addrs
	}{{"dst", &cfg.Dst, c.Dst, c.DstMin, c.DstMax}, {"src", &cfg.Src, c.Src, c.SrcMin, c.SrcMax}} {
		if *a.to, err = span(a.name, a.whole, a.min, a.most); err != nil {
			return cfg, err
		}
	}
	if cfg.Dport, err = ports("dport", "udp-dst", c.Dport, c.UDPDstMin, c.UDPDstMax); err != nil {
		return cfg, err
	}
	if cfg.Sport, err = ports("sport", "udp-src", c.Sport, c.UDPSrcMin, c.UDPSrcMax); err != nil {
		return cfg, err
	}
	if c.PktSize != 0 {
		if err := cfg.Sizes.UnmarshalText(fmt.Append(nil, c.PktSize+4)); err != nil {
			return cfg, fmt.Errorf("--pkt-size is --size less 4: %w", err)
		}
	}
	if c.Delay != 0 {
		if c.Delay < 0 || c.Rate != (pktgen.Rate{}) {
			return cfg, errors.New("--delay is the time from packet to packet, in place of --rate: give one of them")
		}
		cfg.Rate = pktgen.Rate{Packets: 1e9 / c.Delay}
	}
	if cfg.Sink {
		cfg.Source, cfg.Sizes, cfg.Replay = "", nil, c.Replay
		return cfg, nil
	}
	if c.Replay == "" {
		cfg.Source = cmp.Or(cfg.Source, "bpf")
		return cfg, nil
	}
	cfg.Source = cmp.Or(cfg.Source, "xsk")
	cfg.Replay, cfg.Loops, cfg.Sizes = c.Replay, c.Loop, nil
	if c.Loop < 0 {
		return cfg, fmt.Errorf("--loop %d: it is a number of rounds, or 0 for no end", c.Loop)
	}
	cfg.Speed, err = speed(c.Speed)
	return cfg, err
}

// span is a range that is given whole or by its ends.
func span(name string, whole, first, last pktgen.Addrs) (pktgen.Addrs, error) {
	none := pktgen.Addrs{}
	switch {
	case first == none && last == none:
		return whole, nil
	case whole != none || first == none:
		return none, fmt.Errorf("--%s-min and --%s-max say the same as --%s: give both of them, or that", name, name, name)
	case last == none:
		return first, nil
	}
	var out pktgen.Addrs
	err := out.UnmarshalText([]byte(first.First.String() + "-" + last.Last.String()))
	return out, err
}

func ports(name, ends string, whole pktgen.Ports, first, last uint16) (pktgen.Ports, error) {
	switch {
	case first == 0 && last == 0:
		return whole, nil
	case whole != pktgen.Ports{} || first == 0:
		return whole, fmt.Errorf("--%s-min and --%s-max say the same as --%s: give both of them, or that", ends, ends, name)
	case last == 0:
		last = first
	}
	var out pktgen.Ports
	err := out.UnmarshalText(fmt.Appendf(nil, "%d-%d", first, last))
	return out, err
}

// speed reads a factor; max is 0.
func speed(s string) (f float64, err error) {
	if s == "max" {
		return 0, nil
	}
	if f, err = strconv.ParseFloat(s, 64); err != nil || !(f > 0 && f < 1e6) {
		return 0, fmt.Errorf("--speed %q: write a factor of the recorded speed, as 1, 0.5 or 10, or max", s)
	}
	return f, nil
}
