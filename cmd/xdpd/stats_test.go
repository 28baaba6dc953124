package main

import (
	"encoding/json"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"xdpd"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/xdpprog"
)

var update = flag.Bool("update", false, "write the golden files anew")

// fabricated is an engine that took 1000 frames on two queues and sent 700.
func fabricated() xdpd.Stats {
	s := xdpd.Stats{
		Interface: "eth1", Driver: "veth", Native: true, ChunkSize: 2048, MTU: 1500, Loops: 1,
		RSS:       xdpd.RSSStats{Known: true, What: "Toeplitz, a table of 128; TCP: addresses and ports; UDP: addresses"},
		Checksums: xdpd.ChecksumStats{Device: true, What: "left to the device"},
		Metadata:  xdpd.MetadataStats{Stamps: true, Tags: "the driver takes none out"},
		NAPI: xdpd.NAPIStats{ID: 17, What: "NAPI 17 of queue 0", All: []rings.NAPIInfo{
			{ID: 17, IRQ: 33, NAPISettings: rings.NAPISettings{DeferHardIRQs: 2, GROFlushTimeoutNS: 20_000_000}}, {ID: 18},
			{ID: 19, PID: 77, NAPISettings: rings.NAPISettings{Threaded: 1}},
		}},
		Verdicts: []xdpprog.Counter{
			{Name: "own_arp", Packets: 4, Bytes: 168}, {Name: "own_ipv4", Packets: 1016, Bytes: 1016 * 98},
			{Name: "share_port"}, {Name: "pass_not_ours", Packets: 12, Bytes: 1200},
		},
	}
	q := xdpd.QueueStats{
		Kernel: rings.Stats{RxDropped: 3, RxRingFull: 17, RxFillRingEmpty: 3, TxRingEmptyDescs: 5},
		Reactor: reactor.Counters{
			Turns: 5000, RxFrames: 1000, TxFrames: 700, Completions: 690, Kicks: 31, WakeRX: 2, Sleeps: 9, Signals: 4,
			RxBadChain: 1,
		},
		Frames: xdpd.FrameStats{
			Total: 16384, Free: 12250, Rx: 28, RxLimit: 8192, Tx: 10, TxLimit: 4096, Exhausted: 1234,
			Owners: map[string]int{"free": 12250, "fill": 4096, "held": 38},
		},
		UDP: []sockets.UDPInfo{{Local: netip.MustParseAddrPort("0.0.0.0:7"), Datagrams: 2, Bytes: 4096, Drops: 6}},
		TCP: []sockets.TCPInfo{
			{Local: netip.MustParseAddrPort("0.0.0.0:7"), State: "LISTEN", RecvQueue: 1},
			{
				Local: netip.MustParseAddrPort("10.0.0.2:7"), Remote: netip.MustParseAddrPort("10.0.0.1:40000"),
				State: "ESTABLISHED", SendQueue: 1448, RecvQueue: 5, Cwnd: 14480, RTT: int64(123 * time.Microsecond),
			},
		},
	}
	for stat, n := range map[sockets.Stat]uint64{
		sockets.RxFrames: 999, sockets.RxBytes: 99900, sockets.RxARP: 4, sockets.RxICMP: 10, sockets.RxUDP: 600,
		sockets.RxTCP: 370, sockets.RxDelivered: 900, sockets.RxCoalesced: 20, sockets.TxFrames: 700, sockets.TxBytes: 70000,
		sockets.TxUDP: 400, sockets.TxTCP: 290, sockets.TxICMP: 9, sockets.TxARP: 1, sockets.TCPAccepted: 2,
		sockets.TCPRetransmits: 3, sockets.HandedOver: 21,
	} {
		q.Host.Stats[stat] = n
	}
	for drop, n := range map[sockets.Drop]uint64{
		sockets.EthNotOurs: 5, sockets.ARPNotOurs: 1, sockets.IPNotOurs: 6, sockets.Drop(proto.IPChecksum): 4,
		sockets.ICMPIgnored: 1, sockets.UDPNoSocket: 30, sockets.UDPQueueFull: 6, sockets.TCPNoSocket: 7,
		sockets.TCPClosed: 2, sockets.TxNoFrame: 8, sockets.NeighFailed: 3, sockets.ICMPRateLimit: 2,
		sockets.HandoverFull: 1,
	} {
		q.Host.Drops[drop] = n
	}
	second := xdpd.QueueStats{Queue: 1, Frames: xdpd.FrameStats{Total: 16384, Free: 12288, RxLimit: 8192, TxLimit: 4096}}
	second.Host.Stats[sockets.HandedIn] = 20
	s.Queues = []xdpd.QueueStats{q, second}
	return s
}

// throughJSON is what the asker has of a view.
func throughJSON(t *testing.T, s xdpd.Stats) statsView {
	t.Helper()
	sent := newStatsView(&s)
	sent.PID, sent.Commit, sent.UptimeSeconds = 4711, "0123abcd", 100
	text, err := json.Marshal(sent)
	if err != nil {
		t.Fatal(err)
	}
	var got statsView
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, sent) {
		t.Errorf("JSON turns\n%+v into\n%+v", sent, got)
	}
	return got
}

func table(t *testing.T, v *statsView, o tableOptions) string {
	t.Helper()
	var b strings.Builder
	if err := writeTable(&b, v, o); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the table is not that of %s (look, then go test -update):\n%s", path, got)
	}
}

func TestStatsTable(t *testing.T) {
	v := throughJSON(t, fabricated())
	golden(t, "stats.txt", table(t, &v, tableOptions{}))
}

func TestStatsTableWithRates(t *testing.T) {
	before := throughJSON(t, fabricated())
	s := fabricated()
	s.Queues[0].Reactor.RxFrames += 5000
	s.Queues[0].Host.Drops[sockets.UDPNoSocket] += 3
	s.Queues[1].Host.Stats[sockets.RxUDP] += 25
	s.Queues[0].Reactor.Turns = 0 // an engine started anew
	v := throughJSON(t, s)
	v.UptimeSeconds += 2
	golden(t, "stats-rates.txt", table(t, &v, tableOptions{before: &before}))
}

func TestStatsServices(t *testing.T) {
	v := throughJSON(t, xdpd.Stats{Interface: "eth1"})
	v.Services = []serviceView{
		{Name: "http", Port: 80, Protocol: "tcp", Counters: map[string]uint64{"requests": 1234, "bytes_sent": 5678901, "refused": 0}},
		{Name: "proxy", Port: 53, Protocol: "udp", Counters: map[string]uint64{"flows": 7, "no_backend": 2}, Backends: []backendView{
			{Address: "10.0.0.8:53", State: "up", SinceSeconds: 90, Open: 3, Counters: map[string]uint64{"bytes_sent": 4096}},
			{Address: "10.0.0.9:53", State: "down", Reason: "connection refused", SinceSeconds: 1.6, Counters: map[string]uint64{"downs": 1}},
		}},
	}
	golden(t, "services.txt", table(t, &v, tableOptions{}))
	if all := table(t, &v, tableOptions{all: true}); !strings.Contains(all, "refused 0") {
		t.Errorf("--all hides what is zero:\n%s", all)
	}
}

// numberAll sets the counters of a struct or an array to n, n+1 and on, and returns what is next.
func numberAll(counters any, n uint64) uint64 {
	v := reflect.ValueOf(counters).Elem()
	set := func(c reflect.Value) {
		c.SetUint(n)
		n++
	}
	if v.Kind() == reflect.Struct {
		for i := range v.NumField() {
			set(v.Field(i))
		}
		return n
	}
	for i := range v.Len() {
		set(v.Index(i))
	}
	return n
}

// TestStatsTableHasEverything gives every counter a value of its own and looks for it: a counter that is new in the
// engine must have a place in the ledger.
func TestStatsTableHasEverything(t *testing.T) {
	var s xdpd.Stats
	var q xdpd.QueueStats
	n := numberAll(&q.Kernel, 1_000_000_007)
	n = numberAll(&q.Reactor, n)
	n = numberAll(&q.Host.Stats, n)
	n = numberAll(&q.Host.Drops, n)
	numberAll(&q.Host.Copied, n)
	s.Queues = []xdpd.QueueStats{q}
	v := throughJSON(t, s)
	text := table(t, &v, tableOptions{})
	if strings.Contains(text, otherTitle) {
		t.Errorf("counters without a place:\n%s", text[strings.Index(text, otherTitle):])
	}
	sum := v.counters()
	for _, name := range knownCounters() {
		if sum[name] < 1_000_000_007 {
			t.Errorf("%s is %d in the view", name, sum[name])
		}
		if !strings.Contains(text, " "+commas(sum[name])) {
			t.Errorf("%s, %s, is not in the table", name, commas(sum[name]))
		}
	}
}

// TestLedgerNamesExist finds misspelt names: each must be a counter's, or begin as one does.
func TestLedgerNamesExist(t *testing.T) {
	known := knownCounters()
	for _, verdict := range []string{"own_arp", "share_port", "pass_not_ours"} { // kinds of verdict
		known = append(known, kindXDP+verdict)
	}
	for _, sec := range ledgerSections {
		for _, st := range sec.stages {
			for _, p := range st.parts {
				for _, name := range p.names {
					name = strings.TrimPrefix(name, "-")
					prefix, many := strings.CutSuffix(name, "*")
					if !slices.ContainsFunc(known, func(k string) bool { return k == name || many && strings.HasPrefix(k, prefix) }) {
						t.Errorf("%s, %s: there is no counter %s", sec.title, st.name, name)
					}
				}
			}
		}
	}
}

func TestStatsTableShowsZeroesOnRequest(t *testing.T) {
	v := throughJSON(t, fabricated())
	if few := table(t, &v, tableOptions{}); strings.Contains(few, "frag_overlap") || strings.Contains(few, "share_port") {
		t.Errorf("zeroes are shown:\n%s", few)
	}
	all := table(t, &v, tableOptions{all: true})
	for _, name := range []string{"frag_overlap", "share_port", "device_down"} {
		if !strings.Contains(all, " "+name+" ") {
			t.Errorf("%s is hidden:\n%s", name, all)
		}
	}
}

// TestStatsTableOfAnotherVersion has counters that this program does not know, and lacks some that it does.
func TestStatsTableOfAnotherVersion(t *testing.T) {
	v := throughJSON(t, fabricated())
	v.Queues[0].Reactor["gro_merged"] = 1234
	v.Queues[0].Drops["udp_new_reason"] = 56
	v.Verdicts["mirror"] = verdictView{Packets: 78}
	delete(v.Queues[0].Stack, "rx_arp")
	text := table(t, &v, tableOptions{all: true})
	for _, want := range []string{otherTitle, "gro_merged", "1,234", "udp_new_reason", "mirror"} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing:\n%s", want, text)
		}
	}
}

func TestStatsTableWithManyConnections(t *testing.T) {
	s := fabricated()
	conn := s.Queues[0].TCP[1]
	for range 1000 {
		s.Queues[1].TCP = append(s.Queues[1].TCP, conn)
	}
	v := throughJSON(t, s)
	few := table(t, &v, tableOptions{})
	if n := strings.Count(few, "10.0.0.1:40000"); n >= 100 || !strings.Contains(few, "more in state ESTABLISHED") {
		t.Errorf("%d connections are shown:\n%s", n, few)
	}
	all := table(t, &v, tableOptions{all: true})
	if n := strings.Count(all, "10.0.0.1:40000"); n != 1001 {
		t.Errorf("--all shows %d of 1001 connections", n)
	}
}

func TestFieldNames(t *testing.T) {
	type counters struct{ Turns, RxBadDesc, WakeRX, TxRingFull uint64 }
	want := []string{"turns", "rx_bad_desc", "wake_rx", "tx_ring_full"}
	if got := fieldNames(counters{}); !slices.Equal(got, want) {
		t.Errorf("the names are %v, want %v", got, want)
	}
}

func TestCommas(t *testing.T) {
	for n, want := range map[uint64]string{
		0: "0", 999: "999", 1000: "1,000", 1234567: "1,234,567", 1<<64 - 1: "18,446,744,073,709,551,615",
	} {
		if got := commas(n); got != want {
			t.Errorf("%d is written %s", n, got)
		}
	}
}
