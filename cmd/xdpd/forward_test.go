package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/netip"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"xdpd/cmd/xdpd/forward"
	"xdpd/internal/netlab"
	"xdpd/sockets"
	"xdpd/xdpprog"
)

func TestParseRoute(t *testing.T) {
	r, err := parseRoute("10.0.0.0/8=192.168.1.1")
	if err != nil || r.Dst != netip.MustParsePrefix("10.0.0.0/8") || r.Via != netip.MustParseAddr("192.168.1.1") {
		t.Errorf("%v %v", r, err)
	}
	for _, bad := range []string{"", "10.0.0.0/8", "10.0.0.0=1.1.1.1", "10.0.0.0/8=x", "::/0=::1", "0.0.0.0/0=::1"} {
		if _, err := parseRoute(bad); err == nil || !strings.Contains(err.Error(), "--route "+bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAgeing(t *testing.T) {
	for _, d := range []time.Duration{0, -time.Second} {
		err := (&forwardBridgeCmd{Ageing: d}).Run()
		if exit := new(exitError); !errors.As(err, &exit) || exit.code != usageStatus || !strings.Contains(err.Error(), "--ageing") {
			t.Errorf("%v: %v", d, err)
		}
	}
}

// TestForwardTable gives every counter of a forwarder a value of its own and looks for it.
func TestForwardTable(t *testing.T) {
	p := forward.PortStats{Interface: "eth1", Queues: make([]forward.QueueStats, 1), Verdicts: []xdpprog.Counter{{Name: "forward", Packets: 17}}}
	n := numberAll(&p.Counters.PortStats, 1_000_000_007)
	n = numberAll(&p.Queues[0].Kernel, n)
	n = numberAll(&p.Queues[0].Reactor, n)
	for _, d := range forwardDrops() {
		p.Counters.Drops[d] = n
		n++
	}
	p.Counters.Copied[sockets.CopyFlood], p.Counters.Copied[sockets.CopyQuote], p.Counters.Copied[sockets.CopyFragment] = n, n+1, n+2
	s := forward.Stats{Router: true, Ports: []forward.PortStats{p, {Interface: "eth2"}}}
	v := newForwardView(&s)
	if v.Copied != 3*n+3 {
		t.Errorf("%d bytes copied in all, want %d", v.Copied, 3*n+3)
	}
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	var back forwardView
	if err := json.Unmarshal(raw, &back); err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	if err := writeForward(&out, &back, nil, false); err != nil {
		t.Fatal(err)
	}
	for k := uint64(1_000_000_007); k < n+3; k++ {
		if !strings.Contains(out.String(), commas(k)) {
			t.Errorf("%s is not in the table", commas(k))
		}
	}
	if !strings.Contains(out.String(), "router of 2 ports") || strings.Contains(out.String(), "pass_") {
		t.Errorf("%s", out.String())
	}
}

// TestForwardStats asks a bridge that runs, by its control socket.
func TestForwardStats(t *testing.T) {
	needRoot(t)
	lab, err := netlab.New(netlab.Options{KernelAddr: true, Middle: true})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	var f *forward.Forward
	if err := lab.Middle.Do(func() (err error) {
		f, err = forward.Open(forward.Config{Interfaces: netlab.MiddleDevs[:]})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := filepath.Join(t.TempDir(), "forward", "s")
	stop, err := serveForward(path, f)
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	if out, err := lab.Engine.Run(t.Context(), "ping", "-n", "-c", "2", "-i", "0.2", lab.PeerAddr.String()); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var text, raw bytes.Buffer
	if err := (&forwardStatsCmd{}).show(t.Context(), path, &text, false); err != nil {
		t.Fatal(err)
	}
	if err := (&forwardStatsCmd{JSON: true}).show(t.Context(), path, &raw, false); err != nil {
		t.Fatal(err)
	}
	var v forwardView
	if err := json.Unmarshal(raw.Bytes(), &v); err != nil {
		t.Fatal(err)
	}
	if v.Kind != "bridge" || len(v.Ports) != 2 || v.Ports[0].Interface != "ma" || v.Ports[0].Counters["rx_frames"] == 0 || v.Copied != 0 ||
		v.Stations != 2 {
		t.Errorf("%s", raw.String())
	}
	if !strings.Contains(text.String(), "bridge of 2 ports") || !strings.Contains(text.String(), "2 stations") {
		t.Errorf("%s", text.String())
	}
	_, _, err = askControl(t.Context(), path) // as xdpd stats
	_, cerr := askClients(t.Context(), path)
	for _, err := range []error{err, cerr} {
		if err == nil || !strings.Contains(err.Error(), "a forwarder listens there") {
			t.Errorf("who takes it for an engine is told %v", err)
		}
	}
}

// TestForwardStatsOfEngine asks an engine what it does not know.
func TestForwardStatsOfEngine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	serveFabricated(t, path)
	err := (&forwardStatsCmd{}).show(t.Context(), path, io.Discard, false)
	if err == nil || !strings.Contains(err.Error(), "an engine listens there") {
		t.Errorf("%v", err)
	}
}
