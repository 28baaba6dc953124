package main

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/rings"
	"xdpd/sockets"
)

// TestClientsOfEngine: an engine with a policy serves an application, lists it, and throws it out. Without a policy there is no socket.
func TestClientsOfEngine(t *testing.T) {
	needRoot(t)
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	st, err := xdpd.Open(xdpd.Config{
		Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)}, Frames: 1024,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	dir := t.TempDir()
	file := fileConfig{Interface: lab.EngineDev, ClientSocket: filepath.Join(dir, "sub", "clients")}
	if s, err := serveClients(t.Context(), st, &file); s != nil || err != nil {
		t.Fatalf("without a policy: %v, %v", s, err)
	}
	file.Clients = []xdpd.ClientPolicy{{Name: "us", Users: []uint32{uint32(os.Getuid())}}}
	mask := syscall.Umask(0o077) // as the units have it
	s, err := serveClients(t.Context(), st, &file)
	syscall.Umask(mask)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if info, err := os.Stat(filepath.Dir(file.ClientSocket)); err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("the socket's folder is %v, %v; all users must be able to enter it", info.Mode(), err)
	}
	if _, err := serveClients(t.Context(), st, &file); err == nil || !strings.Contains(err.Error(), "client_socket") {
		t.Errorf("a second server at the same socket: %v", err)
	}
	for _, path := range []string{filepath.Join(dir, strings.Repeat("x", 108)), "/proc/clients", "/sys/class/clients"} {
		file := file
		file.ClientSocket = path
		if s, err := serveClients(t.Context(), st, &file); s != nil || err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v", path, err)
		} else if path != "/proc/clients" && !strings.Contains(err.Error(), "with client_socket") {
			t.Errorf("%s: the cure is missing: %v", path, err)
		}
	}
	control := filepath.Join(dir, "c.sock")
	end, err := serveControl(t.Context(), control, st, &services{}, s)
	if err != nil {
		t.Fatal(err)
	}
	defer end()
	app, err := xdpd.Connect(t.Context(), file.ClientSocket)
	if err != nil {
		t.Fatal(err)
	}
	defer app.Close()
	l, err := app.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	ask := func() (v clientsView) {
		raw, err := callControl(t.Context(), control, http.MethodGet, "/clients")
		if err == nil {
			err = json.Unmarshal(raw, &v)
		}
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	v := ask()
	if len(v.Clients) != 1 || v.Clients[0].PID != int32(os.Getpid()) || v.Clients[0].Sockets != 1 || v.Clients[0].Policy != "us" {
		t.Fatalf("clients %+v", v)
	}
	cmd := clientsCmd{Control: control, Evict: v.Clients[0].ID + 1}
	if err := cmd.Run(); err == nil || !strings.Contains(err.Error(), "no client "+strconv.Itoa(int(cmd.Evict))) {
		t.Errorf("a client that is not there: %v", err)
	}
	cmd.Evict--
	if err := cmd.Run(); err != nil {
		t.Error(err)
	}
	if _, err := l.Accept(); err == nil || !strings.Contains(err.Error(), xdpd.ErrDaemonGone.Error()) {
		t.Errorf("thrown out, it accepts %v", err)
	}
	eventually(t, "the client to be gone", func() bool { return len(ask().Clients) == 0 })
	if raw, err := callControl(t.Context(), control, http.MethodGet, "/clients"); err != nil || !strings.Contains(string(raw), `"clients":[]`) {
		t.Errorf("without clients the answer is %s, %v", raw, err)
	}
}

func TestClientsTable(t *testing.T) {
	at := time.Unix(1000, 0)
	v := clientsView{Refused: 3, Clients: []xdpd.ClientView{{
		ID: 7, PID: 4711, UID: 33, Policy: "web", Memory: 1 << 20, Sockets: 5, Requests: 6, Since: at,
		Counters: rings.RingCounters{Submitted: 100, Completed: 90, Refused: 1},
		Frames:   sockets.AccountUse{RX: 11, RXLimit: 512, TX: 12, TXLimit: 513, Dropped: 14},
		Lends:    1717, HeldBack: 15, Knocks: 16, Limits: xdpd.ClientLimits{Sockets: 1024, Requests: 4096},
	}}}
	var out bytes.Buffer
	if err := v.write(&out, at.Add(90*time.Second)); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"Policy", "7", "web", "4711", "33", "1024 KiB", "100", "90", "11/512", "12/513", "14", "1717", "all packet memory (zero copy): 7\n", "15", "16", "5/1024", "6/4096", "1m30s", "3 refused"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is missing:\n%s", want, out.String())
		}
	}
}
