package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"xdpd"
	"xdpd/sockets"
)

// ssEngine has a socket in every state on its first queue, and one more of each kind on its second.
func ssEngine() xdpd.Stats {
	local, peer := netip.MustParseAddrPort("10.0.0.2:80"), netip.MustParseAddrPort("10.0.0.1:40000")
	s := xdpd.Stats{Interface: "eth1", ChunkSize: 2048, Queues: make([]xdpd.QueueStats, 2)}
	s.Queues[1].Queue = 1
	for _, state := range []string{
		"LISTEN", "SYN-SENT", "SYN-RECEIVED", "ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2", "CLOSE-WAIT", "CLOSING", "LAST-ACK",
		"TIME-WAIT", "CLOSED",
	} {
		t := sockets.TCPInfo{Local: local, Remote: peer, State: state}
		if state == "LISTEN" {
			t.Remote, t.RecvQueue = netip.AddrPort{}, 3
			s.Queues[1].TCP = append(s.Queues[1].TCP, t)
		}
		s.Queues[0].TCP = append(s.Queues[0].TCP, t)
	}
	open := sockets.UDPInfo{Local: netip.MustParseAddrPort("0.0.0.0:53"), Datagrams: 2, Bytes: 4096, Drops: 6}
	connected := sockets.UDPInfo{Local: local, Remote: peer}
	s.Queues[0].UDP = []sockets.UDPInfo{open, connected}
	s.Queues[1].UDP = []sockets.UDPInfo{open}
	return s
}

func ssText(t *testing.T, c ssCmd, s xdpd.Stats) string {
	t.Helper()
	v := throughJSON(t, s)
	var b bytes.Buffer
	if err := c.write(&b, c.choose(&v), v.ChunkSize); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// TestSsChoice holds the flags against the states that are then listed.
func TestSsChoice(t *testing.T) {
	conns := "SYN-SENT ESTAB FIN-WAIT-1 FIN-WAIT-2 CLOSE-WAIT CLOSING LAST-ACK"
	for _, c := range []struct {
		cmd  ssCmd
		want string
	}{
		{ssCmd{}, "ESTAB " + conns}, // the first is UDP's
		{ssCmd{TCP: true}, conns},
		{ssCmd{UDP: true}, "ESTAB"},
		{ssCmd{TCP: true, UDP: true}, "ESTAB " + conns},
		{ssCmd{Listening: true}, "UNCONN UNCONN LISTEN LISTEN"},
		{ssCmd{TCP: true, Listening: true}, "LISTEN LISTEN"},
		{ssCmd{UDP: true, All: true}, "UNCONN ESTAB UNCONN"},
		{ssCmd{TCP: true, All: true}, "LISTEN SYN-SENT SYN-RECV ESTAB FIN-WAIT-1 FIN-WAIT-2 CLOSE-WAIT CLOSING LAST-ACK TIME-WAIT CLOSED LISTEN"},
		{ssCmd{State: []string{"time-wait", "syn-recv"}}, "SYN-RECV TIME-WAIT"},
		{ssCmd{State: []string{"unconnected"}}, "UNCONN UNCONN"},
		{ssCmd{UDP: true, State: []string{"listening"}}, ""},
	} {
		var got []string
		for line := range strings.Lines(ssText(t, c.cmd, ssEngine())) {
			if f := strings.Fields(line); f[0] != "Netid" {
				got = append(got, f[1])
			}
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v lists %v, want %s", c.cmd, got, c.want)
		}
	}
}

func TestSsStateWords(t *testing.T) {
	err := (&ssCmd{State: []string{"ESTAB"}, Control: "/nonexistent"}).Run()
	if err == nil || !strings.Contains(err.Error(), "--state ESTAB: there are close-wait, closed, closing, established") {
		t.Errorf("a state that is none gives %v", err)
	}
	for _, word := range stateWords() {
		if err := (&ssCmd{State: []string{word}, Control: "/nonexistent"}).Run(); err == nil || strings.Contains(err.Error(), "--state") {
			t.Errorf("%s gives %v", word, err)
		}
	}
	// Every state of the engine has its words.
	s := ssEngine()
	for _, info := range s.Queues[0].TCP {
		if _, ok := states[info.State]; !ok {
			t.Errorf("%s has no words", info.State)
		}
	}
	if len(states) != len(s.Queues[0].TCP)+1 {
		t.Errorf("there are words for %d states, the engine has %d and UDP one", len(states), len(s.Queues[0].TCP))
	}
}

// busyInfo is a connection with something in every field.
func busyInfo() sockets.TCPInfo {
	us := int64(time.Microsecond)
	return sockets.TCPInfo{
		Local: netip.MustParseAddrPort("10.0.0.2:80"), Remote: netip.MustParseAddrPort("10.0.0.1:40000"), State: "ESTABLISHED",
		SendQueue: 28961, RecvQueue: 1448, Cwnd: 14480, Ssthresh: 10136, InFlight: 2897, Unacked: 8688, Sacked: 4344, Lost: 2896, Again: 1448, SndWnd: 65536, RcvWnd: 131072,
		RcvBuf: 1048576, MSS: 1448, RcvMSS: 1400, PMTU: 1500, SndScale: 9, RcvScale: 7, RTT: 123 * us, RTTVar: 50 * us,
		MinRTT: 99 * us, RTO: 204_000 * us, Retransmits: 5, Reordering: 2, OutOfOrder: 4344, SndFrames: 21, RcvFrames: 3,
		BytesAcked: 1234567, BytesReceived: 7654321, SACK: true, TS: true, ECN: true, Congestion: "cubic", Phase: "recovery",
		Timer: "on", TimerIn: 180_400 * us, Backoff: 1,
	}
}

func TestSsText(t *testing.T) {
	s := ssEngine()
	s.Queues[0].TCP = append(s.Queues[0].TCP[:1], busyInfo())
	golden(t, "ss.txt", ssText(t, ssCmd{All: true, Info: true, Memory: true, Timer: true}, s))
	plain := ssText(t, ssCmd{All: true}, s)
	if strings.Contains(plain, "\t") || strings.Contains(plain, "cubic") {
		t.Errorf("without -i, -m and -o it says\n%s", plain)
	}
}

// TestSsTellsEverything changes one field of a connection after the other: each must be seen, in the text and in JSON.
func TestSsTellsEverything(t *testing.T) {
	show := func(info sockets.TCPInfo) (text, asJSON string) {
		s := xdpd.Stats{ChunkSize: 2048, Queues: []xdpd.QueueStats{{TCP: []sockets.TCPInfo{info}}}}
		v := throughJSON(t, s)
		j, err := json.Marshal((&ssCmd{All: true}).choose(&v))
		if err != nil {
			t.Fatal(err)
		}
		return ssText(t, ssCmd{All: true, Info: true, Memory: true, Timer: true}, s), string(j)
	}
	text, asJSON := show(busyInfo())
	v := reflect.ValueOf(busyInfo())
	for i := range v.NumField() {
		name := v.Type().Field(i).Name
		if v.Field(i).IsZero() {
			t.Errorf("%s has nothing in it to be seen", name)
		}
		other := busyInfo()
		switch f := reflect.ValueOf(&other).Elem().Field(i); f.Kind() {
		case reflect.Int, reflect.Int64:
			f.SetInt(f.Int() * 3)
		case reflect.Uint32, reflect.Uint64:
			f.SetUint(f.Uint() * 3)
		case reflect.Bool:
			f.SetBool(false)
		case reflect.String:
			f.SetString("LAST-ACK")
		default:
			f.Set(reflect.ValueOf(netip.MustParseAddrPort("10.9.9.9:99")))
		}
		if a, b := show(other); a == text || b == asJSON {
			t.Errorf("another %s makes no difference in the text (%v) or in JSON (%v)", name, a == text, b == asJSON)
		}
	}
}

func TestSsAlignment(t *testing.T) {
	s := ssEngine()
	s.Queues[0].TCP = append(s.Queues[0].TCP, busyInfo())
	at := -1
	for line := range strings.Lines(ssText(t, ssCmd{All: true, Info: true}, s)) {
		if strings.HasPrefix(line, "\t") {
			continue
		}
		i := strings.LastIndex(strings.TrimRight(line, "\n"), " ")
		if at < 0 {
			at = i
		}
		if i != at {
			t.Errorf("the last column of %q begins at %d, the title's at %d", line, i, at)
		}
	}
}

func TestMillis(t *testing.T) {
	for us, want := range map[int64]string{1: "0.001", 50: "0.05", 123: "0.123", 1000: "1", 204_000: "204", 1_234_500: "1234.5"} {
		if got := millis(us); got != want {
			t.Errorf("%d µs are written %s, want %s", us, got, want)
		}
	}
}

// TestSsOverSocket asks a control socket.
func TestSsOverSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	serveFabricated(t, path)
	var text, asJSON bytes.Buffer
	if err := (&ssCmd{All: true}).show(t.Context(), path, &text); err != nil {
		t.Fatal(err)
	}
	if !regexp.MustCompile(`(?m)^tcp +ESTAB +5 +1448 +10\.0\.0\.2:7 +10\.0\.0\.1:40000 +0$`).MatchString(text.String()) {
		t.Errorf("it prints\n%s", &text)
	}
	if err := (&ssCmd{All: true, JSON: true}).show(t.Context(), path, &asJSON); err != nil {
		t.Fatal(err)
	}
	var list []sockView
	if err := json.Unmarshal(asJSON.Bytes(), &list); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, s := range list {
		got = append(got, fmt.Sprint(s.Netid, s.Queue, s.state()))
	}
	if !slices.Equal(got, []string{"udp0UNCONN", "tcp0LISTEN", "tcp0ESTABLISHED"}) || list[2].TCP.RTTMicros != 123 {
		t.Errorf("JSON has %v\n%s", got, &asJSON)
	}
	asJSON.Reset()
	if err := (&ssCmd{JSON: true, State: []string{"closing"}}).show(t.Context(), path, &asJSON); err != nil || asJSON.String() != "[]\n" {
		t.Errorf("no sockets are %q, %v", &asJSON, err)
	}
}
