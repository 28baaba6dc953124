package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// ssCmd is xdpd ss.
type ssCmd struct {
	Interface string   `arg:"" optional:"" name:"iface" help:"Interface of the engine; may be left out where only one runs."`
	TCP       bool     `short:"t" help:"Only TCP; with -u both, as without either."`
	UDP       bool     `short:"u" help:"Only UDP."`
	Listening bool     `short:"l" help:"Listeners, and UDP sockets without a peer, instead of connections."`
	All       bool     `short:"a" help:"Both, and connections half open or in TIME-WAIT."`
	Info      bool     `short:"i" help:"What TCP knows about a connection."`
	Memory    bool     `short:"m" help:"Packet memory of each socket, in bytes of whole frames."`
	Timer     bool     `short:"o" help:"The timer that runs next."`
	State     []string `placeholder:"STATE" help:"Only these states, by ss(8)'s words: established, listening, time-wait and so on."`
	JSON      bool     `short:"j" name:"json" help:"Print JSON, with all there is about each socket."`
	Control   string   `placeholder:"PATH" help:"Control socket to ask (default /run/xdpd/IFACE.sock)."`
}

// Help is shown by xdpd ss --help.
func (*ssCmd) Help() string {
	return `Words and columns are those of ss(8): cwnd and ssthresh are in segments, times in milliseconds, and what is not known or
zero is left out. A listener's Recv-Q is the connections that wait to be accepted. Queue is the receive queue whose
reactor has the socket; listeners and UDP sockets are on every one.

States: established, syn-sent, syn-recv, fin-wait-1, fin-wait-2, time-wait, closed, close-wait, last-ack, listening,
closing, unconnected.

Examples:
  xdpd ss -tim eth1
  xdpd ss -t --state close-wait,last-ack`
}

// states are ss's words for --state and its names in the first column, by the names that the engine has.
var states = map[string]struct{ word, column string }{
	"LISTEN": {"listening", "LISTEN"}, "SYN-SENT": {"syn-sent", "SYN-SENT"}, "SYN-RECEIVED": {"syn-recv", "SYN-RECV"},
	"ESTABLISHED": {"established", "ESTAB"}, "FIN-WAIT-1": {"fin-wait-1", "FIN-WAIT-1"},
	"FIN-WAIT-2": {"fin-wait-2", "FIN-WAIT-2"}, "CLOSE-WAIT": {"close-wait", "CLOSE-WAIT"}, "CLOSING": {"closing", "CLOSING"},
	"LAST-ACK": {"last-ack", "LAST-ACK"}, "TIME-WAIT": {"time-wait", "TIME-WAIT"}, "CLOSED": {"closed", "CLOSED"},
	udpUnconnected: {"unconnected", "UNCONN"},
}

const udpUnconnected = "UNCONN"

// sockView is a socket of either protocol.
type sockView struct {
	Netid string   `json:"netid"` // "tcp" or "udp"
	Queue int      `json:"queue"`
	TCP   *tcpView `json:"tcp,omitempty"`
	UDP   *udpView `json:"udp,omitempty"`
}

func (s *sockView) state() string {
	switch {
	case s.TCP != nil:
		return s.TCP.State
	case s.UDP.Remote == "":
		return udpUnconnected
	}
	return "ESTABLISHED"
}

// Run implements the command.
func (c *ssCmd) Run() error {
	for _, want := range c.State {
		if !slices.ContainsFunc(stateWords(), func(w string) bool { return w == want }) {
			return &exitError{usageStatus, fmt.Errorf("--state %s: there are %s", want, strings.Join(stateWords(), ", "))}
		}
	}
	path, err := controlOf(c.Control, c.Interface)
	if err != nil {
		return err
	}
	ctx, cancel := signalContext()
	defer cancel()
	return c.show(ctx, path, stdout)
}

func stateWords() (words []string) {
	for _, s := range states {
		words = append(words, s.word)
	}
	slices.Sort(words)
	return words
}

func (c *ssCmd) show(ctx context.Context, path string, out io.Writer) error {
	view, _, err := askControl(ctx, path)
	if err != nil {
		return err
	}
	list := c.choose(&view)
	if c.JSON {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(list)
	}
	if err := c.write(out, list, view.ChunkSize); err != nil {
		return err
	}
	clients, err := askClients(ctx, path)
	if line := trustedClients(clients.Clients); err == nil && line != "" {
		_, err = fmt.Fprintln(out, line)
	}
	return err
}

// choose takes the sockets that the flags ask for, UDP's first, as ss does.
func (c *ssCmd) choose(v *statsView) []sockView {
	list := []sockView{}
	both := !c.TCP && !c.UDP
	add := func(s sockView) {
		if c.wants(s.state()) {
			list = append(list, s)
		}
	}
	for i := range v.Queues {
		q := &v.Queues[i]
		if c.UDP || both {
			for k := range q.UDP {
				add(sockView{Netid: "udp", Queue: q.Queue, UDP: &q.UDP[k]})
			}
		}
	}
	for i := range v.Queues {
		q := &v.Queues[i]
		if c.TCP || both {
			for k := range q.TCP {
				add(sockView{Netid: "tcp", Queue: q.Queue, TCP: &q.TCP[k]})
			}
		}
	}
	return list
}

// wants is ss's choice of states: without flags those of connections with both ends known to be there.
func (c *ssCmd) wants(state string) bool {
	switch {
	case len(c.State) > 0:
		return slices.Contains(c.State, states[state].word)
	case c.All:
		return true
	case c.Listening:
		return state == "LISTEN" || state == udpUnconnected
	}
	switch state {
	case "LISTEN", "CLOSED", "TIME-WAIT", "SYN-RECEIVED", udpUnconnected:
		return false
	}
	return true
}

func (c *ssCmd) write(out io.Writer, list []sockView, chunk int) error {
	var table, text strings.Builder
	t := tabwriter.NewWriter(&table, 0, 0, 1, ' ', 0)
	fmt.Fprintln(t, "Netid\tState\tRecv-Q\tSend-Q\tLocal Address:Port\tPeer Address:Port\tQueue")
	for i := range list {
		s := &list[i]
		column := states[s.state()].column
		if column == "" {
			column = s.state() // of another version
		}
		local, remote, recv, send := "", "", 0, 0
		if s.TCP != nil {
			local, remote, recv, send = s.TCP.Local, s.TCP.Remote, s.TCP.RecvQueue, s.TCP.SendQueue
		} else {
			local, remote, recv = s.UDP.Local, s.UDP.Remote, s.UDP.Bytes
		}
		if remote == "" {
			remote = "0.0.0.0:*"
		}
		fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%s\t%s\t%d\n", s.Netid, column, recv, send, local, remote, s.Queue)
	}
	t.Flush()
	row := 0
	for line := range strings.Lines(table.String()) {
		text.WriteString(line)
		if row > 0 { // the first has the titles
			if words := c.details(&list[row-1], chunk); len(words) > 0 {
				fmt.Fprintf(&text, "\t %s\n", strings.Join(words, " "))
			}
		}
		row++
	}
	_, err := io.WriteString(out, text.String())
	return err
}

// details are the second line of a socket.
func (c *ssCmd) details(s *sockView, chunk int) (words []string) {
	if s.TCP == nil {
		if c.Memory {
			words = append(words, fmt.Sprintf("skmem:(r%d,d%d)", s.UDP.Bytes, s.UDP.Drops))
		}
		return words
	}
	t := s.TCP
	if c.Timer && t.Timer != "" {
		words = append(words, fmt.Sprintf("timer:(%s,%v,%d)", t.Timer,
			(time.Duration(t.TimerInMicros)*time.Microsecond).Round(time.Millisecond), t.Backoff))
	}
	if c.Memory {
		words = append(words, fmt.Sprintf("skmem:(r%d,rb%d,t%d)", t.RcvFrames*chunk, t.RcvBuf, t.SndFrames*chunk))
	}
	if c.Info {
		words = append(words, t.info()...)
	}
	return words
}

// info is ss -i: words in its order.
func (t *tcpView) info() (words []string) {
	is := func(on bool, word string) {
		if on {
			words = append(words, word)
		}
	}
	num := func(name string, n int64) {
		if n != 0 {
			words = append(words, fmt.Sprintf("%s:%d", name, n))
		}
	}
	inSegments := func(bytes int) int64 {
		if t.MSS <= 0 {
			return 0
		}
		return int64((bytes + t.MSS - 1) / t.MSS)
	}
	segments := func(name string, bytes int) { num(name, inSegments(bytes)) }
	is(t.TS, "ts")
	is(t.SACK, "sack")
	is(t.ECN, "ecn")
	is(t.Congestion != "", t.Congestion)
	is(t.Phase != "" && t.Phase != "open", t.Phase)
	is(t.SndScale != 0 || t.RcvScale != 0, fmt.Sprintf("wscale:%d,%d", t.SndScale, t.RcvScale))
	is(t.RTOMicros != 0, "rto:"+millis(t.RTOMicros))
	num("backoff", int64(t.Backoff))
	is(t.RTTMicros != 0 || t.RTTVarMicros != 0, "rtt:"+millis(t.RTTMicros)+"/"+millis(t.RTTVarMicros))
	num("mss", int64(t.MSS))
	num("pmtu", int64(t.PMTU))
	num("rcvmss", int64(t.RcvMSS))
	segments("cwnd", t.Cwnd)
	segments("ssthresh", t.Ssthresh)
	num("bytes_acked", int64(t.BytesAcked))
	num("bytes_received", int64(t.BytesReceived))
	segments("unacked", t.Unacked)
	is(t.Again != 0 || t.Retransmits != 0, fmt.Sprintf("retrans:%d/%d", inSegments(t.Again), t.Retransmits))
	segments("lost", t.Lost)
	segments("sacked", t.Sacked)
	segments("in_flight", t.InFlight)
	num("reordering", int64(t.Reordering))
	num("rcv_ooo_bytes", int64(t.OutOfOrder))
	is(t.MinRTTMicros != 0, "minrtt:"+millis(t.MinRTTMicros))
	num("snd_wnd", int64(t.SndWnd))
	num("rcv_wnd", int64(t.RcvWnd))
	return words
}

// millis writes microseconds as milliseconds, as short as they are exact.
func millis(us int64) string {
	text := fmt.Sprintf("%d.%03d", us/1000, us%1000)
	return strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
}
