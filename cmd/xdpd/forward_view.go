package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"xdpd/cmd/xdpd/forward"
	"xdpd/proto"
	"xdpd/sockets"
)

// forwardDir is where running forwarders are found, beside the engines' sockets.
const forwardDir = controlDir + "/forward"

// forwardView is forward.Stats as JSON: every counter under its name.
type forwardView struct {
	Kind          string            `json:"kind"` // "bridge" or "router"
	PID           int               `json:"pid"`
	Commit        string            `json:"commit"`
	UptimeSeconds float64           `json:"uptime_seconds"`
	ChunkSize     int               `json:"chunk_size_bytes"`
	HugePages     bool              `json:"huge_pages"`
	Stations      int               `json:"stations"`
	Prefixes      int               `json:"prefixes"`
	Neighbours    int               `json:"neighbours"`
	Waiting       int               `json:"packets_waiting"`
	Copied        uint64            `json:"copied_bytes"`
	Frames        forwardFrames     `json:"frames"`
	Ports         []forwardPortView `json:"ports"`
}

type forwardFrames struct {
	Total     int            `json:"total"`
	Free      int            `json:"free"`
	Fill      int            `json:"fill"`
	TX        int            `json:"tx"`
	Exhausted uint64         `json:"exhausted"`
	Owners    map[string]int `json:"owners,omitempty"`
}

type forwardPortView struct {
	Interface string                 `json:"interface"`
	Driver    string                 `json:"driver"`
	MAC       string                 `json:"mac"`
	MTU       int                    `json:"mtu_bytes"`
	Up        bool                   `json:"up"`
	Native    bool                   `json:"native_xdp"`
	ZeroCopy  bool                   `json:"zero_copy"`
	OwnMemory bool                   `json:"own_memory_registration"`
	Tags      string                 `json:"vlan_tags_lost,omitempty"`
	Used      int                    `json:"frames_to_send"`
	Limit     int                    `json:"frames_to_send_limit"`
	Verdicts  map[string]verdictView `json:"xdp_verdicts"`
	Counters  map[string]uint64      `json:"counters"`
	Drops     map[string]uint64      `json:"drops"`
	Copied    map[string]uint64      `json:"copied_bytes"`
	Queues    []forwardQueueView     `json:"queues"`
}

type forwardQueueView struct {
	Kernel map[string]uint64 `json:"kernel_rings"`
	Rings  map[string]uint64 `json:"rings"`
}

// forwardDrops are the reasons that a bridge or a router has; others of a Host's it never meets.
func forwardDrops() (list []sockets.Drop) {
	list = append(list, sockets.Drop(proto.EthShort), sockets.EthNotOurs, sockets.EthType)
	for d := proto.IPShort; d <= proto.IPOptions; d++ {
		list = append(list, sockets.Drop(d))
	}
	list = append(list, sockets.NeighTableFull, sockets.NeighQueueFull, sockets.NeighFailed, sockets.IPMartianSource,
		sockets.IPMartianDest, sockets.IPSourceRoute, sockets.ICMPRateLimit, sockets.TxNoFrame, sockets.TxQueueFull, sockets.TxNoRoute)
	for d := sockets.NHostDrops; d < sockets.NDrops; d++ {
		list = append(list, d)
	}
	return list
}

func newForwardView(s *forward.Stats) forwardView {
	v := forwardView{
		Kind: "bridge", ChunkSize: s.ChunkSize, HugePages: s.HugePages, Stations: s.Stations, Prefixes: s.Prefixes,
		Neighbours: s.Neighbours, Waiting: s.Waiting, Copied: s.Copied(),
		Frames: forwardFrames{s.Frames.Total, s.Frames.Free, s.Frames.Fill, s.Frames.TX, s.Frames.Exhausted, s.Frames.Owners},
	}
	if s.Router {
		v.Kind = "router"
	}
	for i := range s.Ports {
		p := &s.Ports[i]
		pv := forwardPortView{
			Interface: p.Interface, Driver: p.Driver, MAC: p.Config.MAC.String(), MTU: p.Config.MTU, Up: p.Config.Up,
			Native: p.Native, ZeroCopy: p.ZeroCopy, OwnMemory: p.OwnMemory, Tags: p.Tags, Used: p.Used, Limit: p.Limit,
			Verdicts: make(map[string]verdictView), Counters: fieldCounters(p.Counters.PortStats),
			Drops: make(map[string]uint64), Copied: make(map[string]uint64),
		}
		for _, c := range p.Verdicts {
			pv.Verdicts[c.Name] = verdictView{c.Packets, c.Bytes}
		}
		for _, d := range forwardDrops() {
			pv.Drops[d.String()] = p.Counters.Drops[d]
		}
		for _, c := range []sockets.Copy{sockets.CopyFlood, sockets.CopyFragment, sockets.CopyQuote} {
			pv.Copied[c.String()] = p.Counters.Copied[c]
		}
		for _, q := range p.Queues {
			pv.Queues = append(pv.Queues, forwardQueueView{fieldCounters(q.Kernel), fieldCounters(q.Reactor)})
		}
		v.Ports = append(v.Ports, pv)
	}
	return v
}

// describeForward says in a line for each port how it runs.
func describeForward(s *forward.Stats) (lines []string) {
	v := newForwardView(s)
	for i := range v.Ports {
		lines = append(lines, "xdpd: "+v.Ports[i].describe())
	}
	return lines
}

func (p *forwardPortView) describe() string {
	attach, mode, state := "generic XDP", "copy", ""
	if p.Native {
		attach = "native XDP"
	}
	if p.ZeroCopy {
		mode = "zero copy"
	}
	if !p.Up {
		state = ", down"
	}
	if p.Tags != "" {
		state += ", " + p.Tags
	}
	return fmt.Sprintf("%s (%s): %s, %s, %s, MTU %d%s", p.Interface, p.Driver, attach, mode, plural(len(p.Queues), "queue"), p.MTU, state)
}

// writeForward shows a view to a person: a column for each port.
func writeForward(w io.Writer, v, before *forwardView, all bool) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s of %s; process %d, up %s, commit %s\n", v.Kind, plural(len(v.Ports), "port"), v.PID,
		time.Duration(v.UptimeSeconds*float64(time.Second)).Round(time.Second), v.Commit)
	for i := range v.Ports {
		p := &v.Ports[i]
		fmt.Fprintf(&b, "%s; %d of at most %d frames to send\n", p.describe(), p.Used, p.Limit)
	}
	if v.Kind == "router" {
		fmt.Fprintf(&b, "%d prefixes, %d neighbours; %d packets wait for others\n", v.Prefixes, v.Neighbours, v.Waiting)
	} else {
		fmt.Fprintf(&b, "%d stations\n", v.Stations)
	}
	fmt.Fprintf(&b, "%d frames of %d bytes: %d free, %d to receive into, %d with devices to send\n", v.Frames.Total, v.ChunkSize,
		v.Frames.Free, v.Frames.Fill, v.Frames.TX)
	for _, owner := range slices.Sorted(maps.Keys(v.Frames.Owners)) {
		fmt.Fprintf(&b, "  owner %-6s %d\n", owner, v.Frames.Owners[owner])
	}
	line := func(name string, cells []string) {
		text := fmt.Sprintf("%-26s", name)
		for _, c := range cells {
			text += fmt.Sprintf(" %16s", c)
		}
		b.WriteString(strings.TrimRight(text, " ") + "\n")
	}
	var names []string
	for i := range v.Ports {
		names = append(names, v.Ports[i].Interface)
		if before != nil {
			names = append(names, "per second")
		}
	}
	for _, section := range []struct {
		title string
		of    func(p *forwardPortView) map[string]uint64
	}{
		{"XDP PROGRAM", func(p *forwardPortView) map[string]uint64 {
			m := make(map[string]uint64)
			for name, c := range p.Verdicts {
				m[name] = c.Packets
			}
			return m
		}},
		{"PORT", func(p *forwardPortView) map[string]uint64 { return p.Counters }},
		{"DROPPED", func(p *forwardPortView) map[string]uint64 { return p.Drops }},
		{"COPIED BYTES", func(p *forwardPortView) map[string]uint64 { return p.Copied }},
		{"RINGS", func(p *forwardPortView) map[string]uint64 { return p.queueSums() }},
	} {
		titled := false
		for _, name := range slices.Sorted(maps.Keys(section.of(&v.Ports[0]))) {
			var cells []string
			sum := uint64(0)
			for i := range v.Ports {
				n := section.of(&v.Ports[i])[name]
				sum += n
				cells = append(cells, commas(n))
				if before != nil && i < len(before.Ports) {
					cells = append(cells, rate(section.of(&before.Ports[i])[name], n, v.UptimeSeconds-before.UptimeSeconds))
				}
			}
			if sum == 0 && !all {
				continue
			}
			if !titled {
				b.WriteByte('\n')
				line(section.title, names)
				titled = true
			}
			line("  "+name, cells)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// queueSums are the counters of a port's queues, those of the kernel and of ours.
func (p *forwardPortView) queueSums() map[string]uint64 {
	sum := make(map[string]uint64)
	for _, q := range p.Queues {
		for name, n := range q.Kernel {
			sum["kernel "+name] += n
		}
		for name, n := range q.Rings {
			sum[name] += n
		}
	}
	return sum
}
