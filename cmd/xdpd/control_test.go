package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
)

func noResize(int) error { return errors.New("nothing runs") }

func noStats() (xdpd.Stats, error) { return xdpd.Stats{}, nil }

// serveStats is a control socket of an engine without services.
func serveStats(ctx context.Context, path string, stats func() (xdpd.Stats, error)) (func(), error) {
	none := func() []serviceView { return nil }
	return serveAnswers(ctx, path, answers{stats, none, (&services{}).drainBackend, noResize, nil, nil})
}

// serveFabricated runs a control socket in front of the fabricated engine until the test ends.
func serveFabricated(t *testing.T, path string) {
	t.Helper()
	end, err := serveStats(t.Context(), path, func() (xdpd.Stats, error) { return fabricated(), nil })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(end)
}

func TestStatsOverSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "made", "c.sock")
	serveFabricated(t, path)
	view, raw, err := askControl(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if view.PID != os.Getpid() || view.UptimeSeconds <= 0 || view.Commit == "" || view.Queues[0].Drops["udp_no_socket"] != 30 {
		t.Errorf("the answer is %+v", view)
	}
	for _, want := range []string{`"own_ipv4": {`, `"rx_ring_full": 17`, `"rx_delivered": 900`, `"tcp_closed": 2`, `"held_received": 28`} {
		if !strings.Contains(string(raw), want) {
			t.Errorf("the JSON lacks %s:\n%s", want, raw)
		}
	}

	var plain, asJSON bytes.Buffer
	if err := (&statsCmd{}).show(t.Context(), path, &plain, false); err != nil || !strings.Contains(plain.String(), "own_ipv4") {
		t.Errorf("xdpd stats prints %v\n%s", err, &plain)
	}
	if err := (&statsCmd{JSON: true}).show(t.Context(), path, &asJSON, false); err != nil || !json.Valid(asJSON.Bytes()) {
		t.Errorf("xdpd stats --json prints %v\n%s", err, &asJSON)
	}
}

// until cancels as soon as what is written has the wanted text that many times.
type until struct {
	bytes.Buffer
	want   string
	times  int
	cancel context.CancelFunc
}

func (u *until) Write(b []byte) (int, error) {
	n, err := u.Buffer.Write(b)
	if strings.Count(u.String(), u.want) >= u.times {
		u.cancel()
	}
	return n, err
}

func TestStatsWatch(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	serveFabricated(t, path)
	watch := func(c statsCmd, terminal bool, want string) string {
		ctx, cancel := context.WithCancel(t.Context())
		out := &until{want: want, times: 3, cancel: cancel}
		if err := c.show(ctx, path, out, terminal); err != nil {
			t.Error(err)
		}
		return out.String()
	}
	text := watch(statsCmd{Watch: time.Millisecond}, false, "RECEIVED")
	if n := strings.Count(text, "per second"); n < 2 || strings.Contains(text, "\x1b") {
		t.Errorf("%d of the tables have rates:\n%q", n, text)
	}
	if text := watch(statsCmd{Watch: time.Millisecond}, true, "RECEIVED"); strings.Count(text, "\x1b[H\x1b[2J") < 3 {
		t.Errorf("the terminal is not cleared:\n%q", text)
	}
	lines := strings.Split(strings.TrimSpace(watch(statsCmd{Watch: time.Millisecond, JSON: true}, true, "\n")), "\n")
	for _, line := range lines {
		if !json.Valid([]byte(line)) {
			t.Errorf("a line of the watch is no JSON: %s", line)
		}
	}
}

func TestControlModes(t *testing.T) {
	old := unix.Umask(0)
	defer unix.Umask(old)
	path := filepath.Join(t.TempDir(), "a", "b", "c.sock")
	serveFabricated(t, path)
	for p, want := range map[string]fs.FileMode{
		path: fs.ModeSocket | 0o600, filepath.Dir(path): fs.ModeDir | 0o700, filepath.Dir(filepath.Dir(path)): fs.ModeDir | 0o700,
	} {
		info, err := os.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		if info.Mode() != want {
			t.Errorf("%s has mode %v, want %v", p, info.Mode(), want)
		}
	}
}

// TestControlLeavesDir: a folder that was there keeps its mode.
func TestControlLeavesDir(t *testing.T) {
	dir := t.TempDir()
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	serveFabricated(t, filepath.Join(dir, "c.sock"))
	if info, err := os.Stat(dir); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the folder has mode %v, %v", info.Mode(), err)
	}
}

func TestControlReplacesStale(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false) // as a process does that is killed
	l.Close()
	if _, _, err := askControl(t.Context(), path); err == nil || !strings.Contains(err.Error(), "no xdpd listens there") {
		t.Errorf("a dead socket answers %v", err)
	}
	serveFabricated(t, path)
	if _, _, err := askControl(t.Context(), path); err != nil {
		t.Error(err)
	}
}

func TestControlRefusesLive(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	serveFabricated(t, path)
	_, err := serveStats(t.Context(), path, noStats)
	if err == nil || !strings.Contains(err.Error(), "another process listens there") || !strings.Contains(err.Error(), "--control") {
		t.Errorf("a second engine gets %v", err)
	}
	if view, _, err := askControl(t.Context(), path); err != nil || view.Interface != "eth1" {
		t.Errorf("the first one answers %v, %v", view, err)
	}
}

func TestControlRefusesOtherFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := serveStats(t.Context(), path, noStats); err == nil || !strings.Contains(err.Error(), "no socket") {
		t.Errorf("a file in the way gives %v", err)
	}
	if b, err := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file is now %q, %v", b, err)
	}
}

func TestControlLongPath(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("x", 110))
	if _, err := serveStats(t.Context(), path, noStats); err == nil || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("a path too long gives %v", err)
	}
	// The longest that goes: 107 bytes and the terminating zero.
	dir := t.TempDir()
	path = filepath.Join(dir, strings.Repeat("x", 107-len(dir)-1))
	serveFabricated(t, path)
	if _, _, err := askControl(t.Context(), path); err != nil {
		t.Error(err)
	}
}

func TestControlEnds(t *testing.T) {
	dir := t.TempDir()
	gone := func(path string) {
		t.Helper()
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	path := filepath.Join(dir, "closed.sock")
	end, err := serveStats(t.Context(), path, noStats)
	if err != nil {
		t.Fatal(err)
	}
	end()
	end()
	gone(path)

	path = filepath.Join(dir, "cancelled.sock")
	ctx, cancel := context.WithCancel(t.Context())
	if end, err = serveStats(ctx, path, noStats); err != nil {
		t.Fatal(err)
	}
	cancel()
	end() // waits for the end that the context began
	gone(path)
}

func TestControlAnswers(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	end, err := serveStats(t.Context(), path, func() (xdpd.Stats, error) { return xdpd.Stats{}, errors.New("the engine ended") })
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	if _, _, err := askControl(t.Context(), path); err == nil || !strings.Contains(err.Error(), "the engine ended") {
		t.Errorf("an engine that ended answers %v", err)
	}
	client := http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return net.Dial("unix", path)
	}, DisableKeepAlives: true}}
	for _, c := range []struct {
		method, url string
		want        int
	}{{"GET", "http://x/other", 404}, {"POST", "http://x/stats", 405}, {"GET", "http://x/stats", 503}} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, c.url, nil)
		if err != nil {
			t.Fatal(err)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != c.want {
			t.Errorf("%s %s answers %d, want %d", c.method, c.url, resp.StatusCode, c.want)
		}
	}
}

func TestAskNobody(t *testing.T) {
	path := filepath.Join(t.TempDir(), "c.sock")
	_, _, err := askControl(t.Context(), path)
	if err == nil || !strings.Contains(err.Error(), "no xdpd listens there: start one with xdpd run") || !strings.Contains(err.Error(), path) {
		t.Errorf("a missing socket gives %v", err)
	}
}

// TestControlAsNobody: a socket and its folder are root's.
func TestControlAsNobody(t *testing.T) {
	needRoot(t)
	dir, err := os.MkdirTemp("/tmp", "xdpd-control-") // t.TempDir is in a folder that nobody may not enter
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, "made", "c.sock")
	serveFabricated(t, path)
	open := filepath.Join(dir, "open.sock")
	serveFabricated(t, open)
	for _, c := range []struct{ do, want string }{
		{"control " + filepath.Join(dir, "mine", "c.sock"), "permission denied: name a path with --control where you may write"},
		{"control " + filepath.Join(dir, "c.sock"), "permission denied: name a path with --control where you may write"},
		{"control " + path, "name a path with --control where you may write"},
		{"stats " + path, "ask as the user that runs xdpd"},
		{"stats " + open, "ask as the user that runs xdpd"},
		{"find " + filepath.Dir(path), "ask as the user that runs xdpd"},
	} {
		out, status := runChild(t, asNobody(childCommand(t, c.do)))
		if status != 1 || !strings.Contains(out, c.want) {
			t.Errorf("as nobody %q ends with %d, %q; want 1, %q", c.do, status, out, c.want)
		}
	}
}

func TestFindControl(t *testing.T) {
	dir := t.TempDir()
	if _, err := findControl(dir); err == nil || !strings.Contains(err.Error(), "start one with xdpd run") {
		t.Errorf("an empty folder gives %v", err)
	}
	if _, err := findControl(filepath.Join(dir, "missing")); err == nil || !strings.Contains(err.Error(), "start one with xdpd run") {
		t.Errorf("a missing folder gives %v", err)
	}
	one := filepath.Join(dir, "eth1.sock")
	serveFabricated(t, one)
	if path, err := findControl(dir); path != one || err != nil {
		t.Errorf("found %s, %v", path, err)
	}
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "eth0.sock"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	if path, err := findControl(dir); path != one || err != nil {
		t.Errorf("beside the socket of an engine that was killed: %s, %v", path, err)
	}
	serveFabricated(t, filepath.Join(dir, "eth2.sock"))
	if _, err := findControl(dir); err == nil || !strings.Contains(err.Error(), "xdpd stats eth1|eth2") {
		t.Errorf("two sockets give %v", err)
	}
}

// TestStatsOfEngine asks a real engine.
func TestStatsOfEngine(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	defer lab.Close()
	st, err := xdpd.Open(xdpd.Config{
		Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
		Frames: 1024,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	path := filepath.Join(t.TempDir(), "c.sock")
	end, err := serveControl(t.Context(), path, st, &services{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	if _, err := st.ListenPacket("udp", ":7"); err != nil {
		t.Fatal(err)
	}
	if out, err := lab.Peer.Run(t.Context(), "ping", "-c", "2", "-i", "0.2", lab.EngineAddr.String()); err != nil {
		t.Fatal(err, string(out))
	}
	var view statsView
	var sum map[string]uint64
	eventually(t, "both answers", func() bool { // ping may have gone before the second
		if view, _, err = askControl(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		sum = view.counters()
		return sum["stack.tx_icmp"] >= 2
	})
	if veth := view.Driver == "veth"; veth != (netlab.NICs() == nil) || !view.Native || len(view.Queues) != 1 || sum["stack.rx_icmp"] != 2 || sum["stack.tx_icmp"] != 2 {
		t.Errorf("after 2 echo requests the engine says %+v", view)
	}
	text := table(t, &view, tableOptions{})
	for _, want := range []string{"own_ipv4", "own_arp", "tx_icmp", "queue 0: 1024", "0.0.0.0:7"} {
		if !strings.Contains(text, want) {
			t.Errorf("%s is missing:\n%s", want, text)
		}
	}
	if strings.Contains(text, otherTitle) {
		t.Errorf("a verdict has no place in the ledger:\n%s", text)
	}
}
