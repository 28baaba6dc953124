package main

import (
	"xdpd/rings"

	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// stage is one step of the ledger.
type stage struct {
	name  string
	parts []part
}

// part is a sum of counters and, with each, a line for every one of them. Names are full names of counters (kindXDP and
// so on); one with a * at its end stands for all that begin so and that no part names in full, one with a - in front is
// taken off the sum. A part without a label has no sum: its counters are of other things than packets.
type part struct {
	label string
	each  bool
	names []string
}

func took(names ...string) part    { return part{"took", false, names} }
func passed(names ...string) part  { return part{"passed", false, names} }
func dropped(names ...string) part { return part{"dropped", true, names} }
func notes(names ...string) part   { return part{"", true, names} }

// each shows what a part consists of.
func each(p part) part { p.each = true; return p }

// ledgerSection is one direction.
type ledgerSection struct {
	title  string
	stages []stage
}

var ledgerSections = []ledgerSection{
	{"RECEIVED", []stage{
		{"XDP program", []part{
			took("xdp.*"),
			each(passed("xdp.own_*", "xdp.share_*")),
			{"left to the kernel", true, []string{"xdp.pass_*"}},
		}},
		{"socket rings", []part{
			took("xdp.own_*", "xdp.share_*"),
			passed("reactor.rx_frames"),
			dropped("kernel.rx_dropped", "kernel.rx_ring_full"),
			notes("kernel.rx_fill_ring_empty", "kernel.rx_invalid_descs"),
		}},
		{"reactor", []part{
			took("reactor.rx_frames"),
			passed("stack.rx_frames"),
			dropped("reactor.rx_bad_desc", "reactor.rx_bad_chain"),
			notes("reactor.rx_more", "reactor.fill_starved", "reactor.wake_rx", "reactor.turns", "reactor.sleeps", "reactor.signals",
				"reactor.stalls", "reactor.exchanges", "reactor.polls", "reactor.drives", "reactor.drive_failed"),
		}},
		{"ethernet", []part{
			took("stack.rx_frames"),
			passed("stack.rx_frames", "-drop.eth_*"),
			dropped("drop.eth_*"),
			notes("stack.rx_bytes"),
		}},
		{"arp", []part{
			took("stack.rx_arp"),
			passed("stack.rx_arp", "-drop.arp_*"),
			dropped("drop.arp_*"),
		}},
		{"ip", []part{
			took("stack.rx_frames", "-drop.eth_*", "-stack.rx_arp"),
			passed("stack.rx_icmp", "stack.rx_udp", "stack.rx_tcp"),
			dropped("drop.ip_*", "drop.icmp_broadcast", "drop.frag_*"),
			notes("stack.rx_fragments", "stack.reassembled"),
		}},
		{"hand-over", []part{
			took("stack.handed_over"),
			passed("stack.handed_in"),
			dropped("drop.handover_*"),
		}},
		{"icmp", []part{
			took("stack.rx_icmp"),
			passed("stack.rx_icmp", "-drop.icmp_*"),
			dropped("drop.icmp_*"),
		}},
		{"udp", []part{
			took("stack.rx_udp"),
			passed("stack.rx_udp", "-drop.udp_*"),
			dropped("drop.udp_*"),
		}},
		{"tcp", []part{
			took("stack.rx_tcp"),
			passed("stack.rx_tcp", "-drop.tcp_*"),
			dropped("drop.tcp_*"),
			notes("stack.tcp_accepted", "stack.tcp_syn_cookies", "stack.tcp_out_of_order_held", "stack.tcp_dsacks",
				"stack.tcp_marked", "stack.rx_partial_sum"),
		}},
		{"sockets", []part{
			each(took("stack.rx_delivered", "stack.rx_coalesced")),
			dropped("drop.udp_queue_full", "drop.tcp_backlog_full", "drop.tcp_closed", "drop.rx_*"),
		}},
	}},
	{"SENT", []stage{
		{"stack", []part{
			each(took("stack.tx_tcp", "stack.tx_udp", "stack.tx_icmp", "stack.tx_arp")),
			dropped("drop.neigh_*", "drop.tx_*", "drop.icmp_rate_limit"),
			notes("stack.tx_fragments", "stack.tx_partial_sum", "stack.tcp_retransmits", "stack.tcp_timeouts", "stack.tcp_resets",
				"stack.tcp_challenges", "stack.tcp_recoveries", "stack.tcp_loss_probes", "stack.tcp_spurious",
				"stack.tcp_pressure", "stack.tcp_path_mtu", "stack.tcp_urgent_limit", "stack.port_elsewhere", "stack.answer_elsewhere", "stack.tx_bytes"),
		}},
		{"reactor", []part{
			took("stack.tx_frames"),
			passed("reactor.tx_frames"),
			notes("reactor.tx_more", "reactor.tx_ring_full", "reactor.kicks", "reactor.device_down"),
		}},
		{"socket rings", []part{
			took("reactor.tx_frames", "reactor.tx_more"),
			passed("reactor.completions"),
			dropped("kernel.tx_invalid_descs"),
			notes("kernel.tx_ring_empty_descs", "reactor.bad_completions"),
		}},
	}},
	{"COPIED", []stage{
		{"bytes", []part{each(part{"in all", false, []string{"copied.*"}})}},
	}},
}

// otherTitle is over the counters of an engine that knows more than this program.
const otherTitle = "OTHER COUNTERS"

// ledgerLine is one line of the table: a number under a stage.
type ledgerLine struct {
	section, stage, label string
	depth                 int // 1: a part of the sum above it
	n                     uint64
}

func (l *ledgerLine) key() string { return l.section + "\n" + l.stage + "\n" + l.label }

// ledger lays the counters out from the XDP verdict to the socket and back.
func ledger(v *statsView) []ledgerLine {
	sum := v.counters()
	b := ledgerBuilder{sum: sum, names: orderedNames(sum), seen: make(map[string]bool), exact: make(map[string]bool)}
	for _, sec := range ledgerSections {
		for _, s := range sec.stages {
			for _, p := range s.parts {
				for _, n := range p.names {
					b.exact[n] = true
				}
			}
		}
	}
	for _, sec := range ledgerSections {
		for _, s := range sec.stages {
			for _, p := range s.parts {
				b.part(sec.title, s.name, p)
			}
		}
	}
	for _, n := range b.names {
		if !b.seen[n] {
			kind, name, _ := strings.Cut(n, ".")
			b.lines = append(b.lines, ledgerLine{otherTitle, kind, name, 1, sum[n]})
		}
	}
	return b.lines
}

// orderedNames puts the counters in the order they are declared in, and those this program does not know behind them.
func orderedNames(sum map[string]uint64) []string {
	known := knownCounters()
	names := slices.DeleteFunc(slices.Clone(known), func(n string) bool { _, there := sum[n]; return !there })
	for _, n := range slices.Sorted(maps.Keys(sum)) {
		if !slices.Contains(known, n) {
			names = append(names, n)
		}
	}
	return names
}

type ledgerBuilder struct {
	sum   map[string]uint64
	names []string        // all, in order
	exact map[string]bool // named by some stage in full
	seen  map[string]bool
	lines []ledgerLine
}

// find lists the counters that a name stands for, in order.
func (b *ledgerBuilder) find(want string) (found []string) {
	prefix, many := strings.CutSuffix(want, "*")
	for _, n := range b.names {
		if n == want || many && strings.HasPrefix(n, prefix) && !b.exact[n] {
			found = append(found, n)
		}
	}
	return found
}

func (b *ledgerBuilder) part(section, stage string, p part) {
	head := ledgerLine{section: section, stage: stage, label: p.label}
	depth := 1
	if p.label == "" {
		depth = 0
	}
	var lines []ledgerLine
	for _, name := range p.names {
		name, less := strings.CutPrefix(name, "-")
		for _, n := range b.find(name) {
			if p.each || n == p.names[0] && len(p.names) == 1 { // its own number is to be seen
				b.seen[n] = true
			}
			if less {
				// Counters of different stages are not read in one instant.
				head.n -= min(head.n, b.sum[n])
				continue
			}
			head.n += b.sum[n]
			_, short, _ := strings.Cut(n, ".")
			lines = append(lines, ledgerLine{section, stage, short, depth, b.sum[n]})
		}
	}
	if p.label != "" {
		b.lines = append(b.lines, head)
	}
	if p.each {
		b.lines = append(b.lines, lines...)
	}
}

// tableOptions say what of a view is shown.
type tableOptions struct {
	all    bool       // zeroes, and all connections
	before *statsView // an earlier view, for rates; nil: without
}

const maxConnections = 20 // shown without all

// writeTable shows a view to a person.
func writeTable(w io.Writer, v *statsView, o tableOptions) error {
	attach := "generic XDP"
	if v.Native {
		attach = "native XDP"
	}
	if v.Dispatched {
		attach += " in a dispatcher"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%s): %s, %s, MTU %d; process %d, up %s, commit %s\n", v.Interface, v.Driver, attach, v.copies(), v.MTU,
		v.PID, time.Duration(v.UptimeSeconds*float64(time.Second)).Round(time.Second), v.Commit)
	if v.NotZeroCopy != "" {
		fmt.Fprintf(&b, "copy, because: %s\n", v.NotZeroCopy)
	}
	writeRSS(&b, &v.RSS)
	writeChecksums(&b, &v.Checksums)
	writeMetadata(&b, &v.Metadata)
	if v.NAPI.What != "" { // an older engine says nothing
		fmt.Fprintf(&b, "%s\n", v.napi())
	}
	for _, n := range v.NAPI.All {
		if n.NAPISettings != (rings.NAPISettings{}) || o.all {
			fmt.Fprintf(&b, "NAPI %d%s: %v\n", n.ID, n.runs(), n.NAPISettings)
		}
	}
	writeLedger(&b, v, o)
	writeReactors(&b, v)
	writeFrames(&b, v)
	writeServices(&b, v, o.all)
	writeSockets(&b, v, o.all)
	_, err := io.WriteString(w, b.String())
	return err
}

func writeRSS(b *strings.Builder, r *rssView) {
	switch {
	case r.Known:
		fmt.Fprintf(b, "choice of queues: %s\n", r.What)
	case r.What != "": // an older engine says nothing
		fmt.Fprintf(b, "choice of queues: not known: %s\n", r.What)
	}
}

func writeChecksums(b *strings.Builder, c *checksumView) {
	switch {
	case c.Device:
		fmt.Fprintf(b, "checksums sent: %s\n", c.What)
	case c.What != "": // an older engine says nothing
		fmt.Fprintf(b, "checksums sent: by the engine, for the device does not: %s\n", c.What)
	}
}

// runs says what has a NAPI run.
func (n *napiSettingsView) runs() string {
	text := ""
	if n.IRQ != 0 {
		text = fmt.Sprintf(", IRQ %d", n.IRQ)
	}
	if n.PID != 0 {
		text += fmt.Sprintf(", thread %d", n.PID)
	}
	return text
}

func writeMetadata(b *strings.Builder, m *metadataView) {
	stamps := ""
	if m.Stamps {
		stamps = "; received datagrams have a stamp"
	}
	if m.Tags != "" { // an older engine says nothing
		fmt.Fprintf(b, "VLAN tags: %s%s\n", m.Tags, stamps)
	}
}

func writeLedger(b *strings.Builder, v *statsView, o tableOptions) {
	before := make(map[string]uint64)
	seconds := 0.0
	if o.before != nil {
		seconds = v.UptimeSeconds - o.before.UptimeSeconds
		for _, l := range ledger(o.before) {
			before[l.key()] = l.n
		}
	}
	line := func(stage, label, count, perSecond string) {
		text := fmt.Sprintf("%-19s %-26s %16s", stage, label, count)
		if o.before != nil {
			text = strings.TrimRight(fmt.Sprintf("%s %14s", text, perSecond), " ")
		}
		b.WriteString(text + "\n")
	}
	section, name := "", ""
	for _, l := range ledger(v) {
		if l.n == 0 && !o.all {
			continue
		}
		if l.section != section {
			section, name = l.section, ""
			b.WriteByte('\n')
			line(section, "", "count", "per second")
		}
		shown := ""
		if l.stage != name {
			name, shown = l.stage, l.stage
		}
		line(shown, strings.Repeat("  ", l.depth)+l.label, commas(l.n), rate(before[l.key()], l.n, seconds))
	}
}

// rate is "" where nothing happened, so that the eye finds what moves.
func rate(before, now uint64, seconds float64) string {
	if now <= before || seconds <= 0 { // another engine may have taken its place
		return ""
	}
	r := float64(now-before) / seconds
	if r < 10 {
		return fmt.Sprintf("%.1f", r)
	}
	return commas(uint64(r + 0.5))
}

// commas writes 1234567 as 1,234,567.
func commas(n uint64) string {
	s := fmt.Sprint(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// writeReactors tells what goes from queue to queue: nothing, where there is one.
func writeReactors(b *strings.Builder, v *statsView) {
	if len(v.Queues) < 2 {
		return
	}
	fmt.Fprintf(b, "\nREACTORS: %s\n", v.shape())
	for _, q := range v.Queues {
		fmt.Fprintf(b, "queue %d: %s packets handed over to others, %s taken from others\n",
			q.Queue, commas(q.Stack["handed_over"]), commas(q.Stack["handed_in"]))
	}
}

func writeFrames(b *strings.Builder, v *statsView) {
	fmt.Fprintf(b, "\nFRAMES of %d bytes", v.ChunkSize)
	if v.HugePages {
		b.WriteString(" in huge pages")
	}
	b.WriteByte('\n')
	for _, q := range v.Queues {
		f := &q.Frames
		fmt.Fprintf(b, "queue %d: %d, of which %d free, %d of at most %d received and unread, %d of at most %d to send or on their way",
			q.Queue, f.Total, f.Free, f.Rx, f.RxLimit, f.Tx, f.TxLimit)
		if f.Exhausted > 0 {
			fmt.Fprintf(b, "; %s times none was free", commas(f.Exhausted))
		}
		b.WriteByte('\n')
		for _, owner := range slices.Sorted(maps.Keys(f.Owners)) {
			fmt.Fprintf(b, "  owner %-5s %d\n", owner, f.Owners[owner])
		}
	}
}

func writeSockets(b *strings.Builder, v *statsView, all bool) {
	t := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "\nSOCKETS\tqueue\tlocal\tremote\tunread\tunsent\tnotes\n")
	shown, more := 0, make(map[string]int)
	for _, q := range v.Queues {
		for _, u := range q.UDP {
			fmt.Fprintf(t, "UDP\t%d\t%s\t%s\t%d\t\t%d datagrams, %d dropped\n",
				q.Queue, u.Local, u.Remote, u.Bytes, u.Datagrams, u.Drops)
		}
		for _, c := range q.TCP {
			if shown++; !all && shown > maxConnections && c.State != "LISTEN" {
				more[c.State]++
				continue
			}
			notes := fmt.Sprintf("cwnd %d, RTT %v", c.Cwnd, time.Duration(c.RTTMicros)*time.Microsecond)
			if c.State == "LISTEN" {
				notes = "unread: connections to accept"
			}
			fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%d\t%d\t%s\n", c.State, q.Queue, c.Local, c.Remote, c.RecvQueue, c.SendQueue, notes)
		}
	}
	t.Flush()
	for _, state := range slices.Sorted(maps.Keys(more)) {
		fmt.Fprintf(b, "and %d more in state %s\n", more[state], state)
	}
}
