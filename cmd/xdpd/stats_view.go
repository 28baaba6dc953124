package main

import (
	"maps"
	"reflect"
	"runtime/debug"
	"strings"
	"time"
	"unicode"

	"xdpd"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
)

// statsView is xdpd.Stats as JSON: every counter under its name, so that a reader needs nothing else to understand it,
// and a newer or older engine's counters do not get mixed up.
type statsView struct {
	Interface     string                 `json:"interface"`
	Driver        string                 `json:"driver"`
	Native        bool                   `json:"native_xdp"`
	Dispatched    bool                   `json:"in_dispatcher"`
	ZeroCopy      bool                   `json:"zero_copy"`
	NotZeroCopy   string                 `json:"not_zero_copy,omitempty"` // why
	SG            bool                   `json:"multi_buffer"`
	NeedWakeup    bool                   `json:"need_wakeup"`
	TXBudget      int                    `json:"tx_budget_frames"` // of a system call, in copy mode
	HugePages     bool                   `json:"huge_pages"`
	ChunkSize     int                    `json:"chunk_size_bytes"`
	MTU           int                    `json:"mtu_bytes"`
	Loops         int                    `json:"reactors"`
	NAPI          napiView               `json:"napi"`
	RSS           rssView                `json:"rss"`
	Checksums     checksumView           `json:"tx_checksum"`
	Metadata      metadataView           `json:"rx_metadata"`
	PID           int                    `json:"pid"`
	Commit        string                 `json:"commit"`
	UptimeSeconds float64                `json:"uptime_seconds"`
	Verdicts      map[string]verdictView `json:"xdp_verdicts"`
	Queues        []queueView            `json:"queues"`
	Services      []serviceView          `json:"services"`
}

// rssView is whether the device's choice of queues is known.
type rssView struct {
	Known bool   `json:"known"`
	What  string `json:"what"` // the hash, or why it is not known
}

// checksumView is who sums what is sent by UDP and TCP.
type checksumView struct {
	Device bool   `json:"device"`
	What   string `json:"what"` // in words; why the device does not
}

// metadataView is what is asked of the driver about received frames.
type metadataView struct {
	Stamps bool   `json:"stamps"`
	Tags   string `json:"tags"` // what becomes of VLAN tags that the driver would take out
}

// napiView is who may run the queues' NAPIs.
type napiView struct {
	Mode string `json:"mode"`
	ID   uint32 `json:"id,omitempty"` // of the one that the engine may run
	What string `json:"what"`         // whose it is, or why there is none
	// All are the interface's, where the kernel tells.
	All []napiSettingsView `json:"all,omitempty"`
}

// napiSettingsView is a NAPI as it is now.
type napiSettingsView struct {
	ID  uint32 `json:"id"`
	IRQ uint32 `json:"irq,omitempty"`
	PID uint32 `json:"thread,omitempty"`
	rings.NAPISettings
}

// serviceView is a service with what it counted; a proxy's TCP and UDP are two.
type serviceView struct {
	Name     string            `json:"name"`
	Port     uint16            `json:"port"`
	Protocol string            `json:"protocol"` // "tcp" or "udp"
	Counters map[string]uint64 `json:"counters"`
	Backends []backendView     `json:"backends,omitempty"`
}

type backendView struct {
	Address      string            `json:"address"`
	State        string            `json:"state"`
	Reason       string            `json:"reason,omitempty"`
	SinceSeconds float64           `json:"since_seconds"`
	Open         int               `json:"open_flows"`
	Counters     map[string]uint64 `json:"counters"`
}

type verdictView struct {
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

type queueView struct {
	Queue   int               `json:"queue"`
	Kernel  map[string]uint64 `json:"kernel_rings"`
	Reactor map[string]uint64 `json:"reactor"`
	Stack   map[string]uint64 `json:"stack"`
	Drops   map[string]uint64 `json:"drops"`
	Copied  map[string]uint64 `json:"copied_bytes"` // by the engine, and why
	Drives  bool              `json:"drives_napi"`
	Frames  framesView        `json:"frames"`
	UDP     []udpView         `json:"udp_sockets"`
	TCP     []tcpView         `json:"tcp_sockets"`
}

type framesView struct {
	Total     int            `json:"total"`
	Free      int            `json:"free"`
	Rx        int            `json:"held_received"`
	RxLimit   int            `json:"held_received_limit"`
	Tx        int            `json:"held_to_send"`
	TxLimit   int            `json:"held_to_send_limit"`
	Exhausted uint64         `json:"exhausted"`
	Owners    map[string]int `json:"owners,omitempty"`
}

type udpView struct {
	Local     string `json:"local"`
	Remote    string `json:"remote,omitempty"`
	Datagrams int    `json:"queued_datagrams"`
	Bytes     int    `json:"queued_bytes"`
	Drops     uint64 `json:"drops"`
}

type tcpView struct {
	State         string `json:"state"`
	Local         string `json:"local"`
	Remote        string `json:"remote,omitempty"`
	SendQueue     int    `json:"send_queue_bytes"`
	RecvQueue     int    `json:"recv_queue_bytes"`
	Cwnd          int    `json:"cwnd_bytes"`
	Ssthresh      int    `json:"ssthresh_bytes"`
	InFlight      int    `json:"in_flight_bytes"`
	Unacked       int    `json:"unacked_bytes"`
	Sacked        int    `json:"sacked_bytes"`
	Lost          int    `json:"lost_bytes"`
	Again         int    `json:"again_bytes"`
	SndWnd        int    `json:"send_window_bytes"`
	RcvWnd        int    `json:"receive_window_bytes"`
	RcvBuf        int    `json:"receive_buffer_bytes"`
	MSS           int    `json:"mss_bytes"`
	RcvMSS        int    `json:"receive_mss_bytes"`
	PMTU          int    `json:"pmtu_bytes"`
	SndScale      int    `json:"send_scale"`
	RcvScale      int    `json:"receive_scale"`
	RTTMicros     int64  `json:"rtt_us"`
	RTTVarMicros  int64  `json:"rtt_var_us"`
	MinRTTMicros  int64  `json:"min_rtt_us"`
	RTOMicros     int64  `json:"rto_us"`
	Retransmits   uint32 `json:"retransmits"`
	Reordering    int    `json:"reordering"`
	OutOfOrder    int    `json:"out_of_order_bytes"`
	SndFrames     int    `json:"send_frames"`
	RcvFrames     int    `json:"receive_frames"`
	BytesAcked    uint64 `json:"bytes_acked"`
	BytesReceived uint64 `json:"bytes_received"`
	SACK          bool   `json:"sack"`
	TS            bool   `json:"timestamps"`
	ECN           bool   `json:"ecn"`
	Congestion    string `json:"congestion_control"`
	Phase         string `json:"phase"`
	Timer         string `json:"timer"`
	TimerInMicros int64  `json:"timer_in_us"`
	Backoff       int    `json:"backoff"`
}

func newTCPView(t *sockets.TCPInfo) tcpView {
	const us = int64(time.Microsecond)
	return tcpView{
		State: t.State, Local: addrText(t.Local), Remote: addrText(t.Remote), SendQueue: t.SendQueue, RecvQueue: t.RecvQueue,
		Cwnd: t.Cwnd, Ssthresh: t.Ssthresh, InFlight: t.InFlight, Unacked: t.Unacked, Sacked: t.Sacked, Lost: t.Lost, Again: t.Again,
		SndWnd: t.SndWnd, RcvWnd: t.RcvWnd, RcvBuf: t.RcvBuf,
		MSS: t.MSS, RcvMSS: t.RcvMSS, PMTU: t.PMTU, SndScale: t.SndScale, RcvScale: t.RcvScale,
		RTTMicros: t.RTT / us, RTTVarMicros: t.RTTVar / us, MinRTTMicros: t.MinRTT / us, RTOMicros: t.RTO / us,
		Retransmits: t.Retransmits, Reordering: t.Reordering, OutOfOrder: t.OutOfOrder,
		SndFrames: t.SndFrames, RcvFrames: t.RcvFrames, BytesAcked: t.BytesAcked, BytesReceived: t.BytesReceived,
		SACK: t.SACK, TS: t.TS, ECN: t.ECN, Congestion: t.Congestion, Phase: t.Phase,
		Timer: t.Timer, TimerInMicros: t.TimerIn / us, Backoff: t.Backoff,
	}
}

func newStatsView(s *xdpd.Stats) statsView {
	v := statsView{
		Interface: s.Interface, Driver: s.Driver, Native: s.Native, Dispatched: s.Dispatched,
		ZeroCopy: s.ZeroCopy, NotZeroCopy: s.NotZeroCopy, SG: s.SG, HugePages: s.HugePages, NeedWakeup: s.NeedWakeup, TXBudget: s.TXBudget,
		ChunkSize: s.ChunkSize, MTU: s.MTU, Loops: s.Loops, RSS: rssView(s.RSS), Verdicts: make(map[string]verdictView),
		Checksums: checksumView(s.Checksums),
		Metadata:  metadataView(s.Metadata),
		NAPI:      napiView{Mode: s.NAPI.Mode.String(), ID: s.NAPI.ID, What: s.NAPI.What},
	}
	for _, n := range s.NAPI.All {
		v.NAPI.All = append(v.NAPI.All, napiSettingsView{n.ID, n.IRQ, n.PID, n.NAPISettings})
	}
	for _, c := range s.Verdicts {
		v.Verdicts[c.Name] = verdictView{c.Packets, c.Bytes}
	}
	for i := range s.Queues {
		v.Queues = append(v.Queues, newQueueView(&s.Queues[i]))
	}
	return v
}

func newQueueView(q *xdpd.QueueStats) queueView {
	f := q.Frames
	v := queueView{
		Queue: q.Queue, Kernel: fieldCounters(q.Kernel), Reactor: fieldCounters(q.Reactor),
		Stack: make(map[string]uint64), Drops: make(map[string]uint64), Drives: q.Drives, Copied: make(map[string]uint64),
		Frames: framesView{f.Total, f.Free, f.Rx, f.RxLimit, f.Tx, f.TxLimit, f.Exhausted, maps.Clone(f.Owners)},
	}
	for i, n := range q.Host.Stats {
		v.Stack[sockets.Stat(i).String()] = n
	}
	for i, n := range q.Host.Drops[:sockets.NHostDrops] {
		if i > 0 { // 0 is proto.OK, which is no reason
			v.Drops[sockets.Drop(i).String()] = n
		}
	}
	for i, n := range q.Host.Copied[:sockets.NHostCopies] {
		v.Copied[sockets.Copy(i).String()] = n
	}
	for _, u := range q.UDP {
		v.UDP = append(v.UDP, udpView{addrText(u.Local), addrText(u.Remote), u.Datagrams, u.Bytes, u.Drops})
	}
	for _, t := range q.TCP {
		v.TCP = append(v.TCP, newTCPView(&t))
	}
	return v
}

// addrText is "" for an address that is not there.
func addrText(a interface {
	IsValid() bool
	String() string
}) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

// fieldCounters gives a struct of uint64 counters by name.
func fieldCounters(counters any) map[string]uint64 {
	v := reflect.ValueOf(counters)
	out := make(map[string]uint64, v.NumField())
	for i, name := range fieldNames(counters) {
		out[name] = v.Field(i).Uint()
	}
	return out
}

// fieldNames are the names of a struct's counters, in its order: RxRingFull is rx_ring_full.
func fieldNames(counters any) (names []string) {
	t := reflect.TypeOf(counters)
	for i := range t.NumField() {
		var b strings.Builder
		before := 'A'
		for _, r := range t.Field(i).Name {
			if unicode.IsUpper(r) && !unicode.IsUpper(before) {
				b.WriteByte('_')
			}
			b.WriteRune(unicode.ToLower(r))
			before = r
		}
		names = append(names, b.String())
	}
	return names
}

// Kinds of counters, as their full names begin in the ledger.
const (
	kindXDP     = "xdp."
	kindKernel  = "kernel."
	kindReactor = "reactor."
	kindStack   = "stack."
	kindDrop    = "drop."
	kindCopied  = "copied." // bytes
)

// knownCounters are the full names of this program's own counters, in the order of the ledger. Verdicts are not among
// them: only a loaded program tells them.
func knownCounters() (names []string) {
	add := func(kind string, list []string) {
		for _, n := range list {
			names = append(names, kind+n)
		}
	}
	add(kindKernel, fieldNames(rings.Stats{}))
	add(kindReactor, fieldNames(reactor.Counters{}))
	for i := range sockets.NStats {
		names = append(names, kindStack+i.String())
	}
	for i := sockets.Drop(1); i < sockets.NHostDrops; i++ {
		names = append(names, kindDrop+i.String())
	}
	for i := range sockets.NHostCopies {
		names = append(names, kindCopied+i.String())
	}
	return names
}

// counters sums all queues up under full names.
func (v *statsView) counters() map[string]uint64 {
	sum := make(map[string]uint64)
	for name, c := range v.Verdicts {
		sum[kindXDP+name] += c.Packets
	}
	for _, q := range v.Queues {
		for kind, m := range map[string]map[string]uint64{
			kindKernel: q.Kernel, kindReactor: q.Reactor, kindStack: q.Stack, kindDrop: q.Drops, kindCopied: q.Copied,
		} {
			for name, n := range m {
				sum[kind+name] += n
			}
		}
	}
	return sum
}

// buildCommit is what the binary was built from.
func buildCommit() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	commit, changed := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "+changes"
		}
	}
	return commit + changed
}
