package main

import (
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/alecthomas/kong"

	"xdpd"
	"xdpd/proto"
	"xdpd/reactor"
)

const exampleConfig = "../../docs/xdpd.toml"

func writeConfig(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "xdpd.toml")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestExampleConfig(t *testing.T) {
	got, err := loadConfig(exampleConfig)
	if err != nil {
		t.Fatal(err)
	}
	want := fileConfig{
		Interface: "eth1", Addresses: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")},
		Gateway: netip.MustParseAddr("10.0.0.1"), Mode: "best", Attach: "best", Dispatch: "auto", NAPI: "auto", Checksum: "auto", Metadata: "auto",
		MaxSpin: duration{50 * time.Microsecond}, Frames: 16384, RcvBuf: 1 << 20, RcvMax: 3 << 20, SndBuf: 4 << 20, Congest: "cubic",
		Services: []serviceSpec{{Name: "echo", Port: 7, TCP: true, UDP: true, Face: "poller"}, {Name: "discard", Port: 9000, TCP: true}},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("the example is read as\n%+v, want\n%+v", got, want)
	}
}

// TestExampleConfigIsWhole takes the # away from the keys behind one: each must be known, and every key must be there.
func TestExampleConfigIsWhole(t *testing.T) {
	text, err := os.ReadFile(exampleConfig)
	if err != nil {
		t.Fatal(err)
	}
	all := regexp.MustCompile(`(?m)^# ([a-z_]+ = |\[\[)`).ReplaceAllString(string(text), "$1")
	if all == string(text) {
		t.Error("no key is behind a #")
	}
	got, err := loadConfig(writeConfig(t, all))
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range keysOf(reflect.TypeFor[wholeFile]()) {
		if !regexp.MustCompile(`(?m)^`+key+` = `).MatchString(all) && !strings.Contains(all, "[["+key+"]]") {
			t.Errorf("the example does not have %s", key)
		}
	}
	for _, key := range keysOf(reflect.TypeFor[serviceTable]()) {
		if !regexp.MustCompile(`(?m)^` + key + ` = `).MatchString(all) {
			t.Errorf("the example does not have a service's %s", key)
		}
	}
	for _, key := range keysOf(reflect.TypeFor[clientTable]()) {
		if !regexp.MustCompile(`(?m)^` + key + ` = `).MatchString(all) {
			t.Errorf("the example does not have a client's %s", key)
		}
	}
	policies := []xdpd.ClientPolicy{{
		Name: "web", Users: []uint32{0}, Groups: []uint32{33}, Reach: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		Bind:    []xdpd.PortRange{{Protocol: proto.ProtoTCP, First: 8000, Last: 8999}, {First: 53, Last: 53}},
		Clients: 64, Memory: 64 << 20, Sockets: 1024, Requests: 4096, CPU: 50, Frames: 25,
		Lends: 256, Rates: reactor.Rates{Connects: 1000, Packets: 500_000, Bytes: 1 << 30},
	}}
	if !reflect.DeepEqual(got.Clients, policies) || got.ClientSocket != defaultClientsPath("eth1") {
		t.Errorf("clients are read as %+v at %s", got.Clients, got.ClientSocket)
	}
	cfg, err := got.stackConfig()
	if err != nil {
		t.Fatal(err)
	}
	want := xdpd.Config{
		Interface: "eth1", NetNS: "lab", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")},
		Gateway: netip.MustParseAddr("10.0.0.1"), VLANs: []uint16{100}, Queues: []int{0, 1}, CPUs: []int{2, 3},
		Frames: 16384, ChunkSize: 2048, MaxSpin: 50 * time.Microsecond, RcvBuf: 1 << 20, RcvMax: 3 << 20,
		Dispatch: xdpd.NeverDispatch, // as user has it
		SndBuf:   4 << 20, Congestion: "cubic", Reactors: 1, Priority: 50, JournalDir: "/run/xdpd", Grant: "/run/xdpd.grant",
	}
	if cfg.Spread == nil || got.Accept != "main" || got.Spread != "least-conns" {
		t.Errorf("connections are accepted by %q and spread by %q", got.Accept, got.Spread)
	}
	cfg.Spread = nil // functions cannot be compared
	if !reflect.DeepEqual(cfg, want) {
		t.Errorf("the library is given\n%+v, want\n%+v", cfg, want)
	}
	if got.controlPath() != "/run/xdpd/eth1.sock" {
		t.Errorf("the control socket is %s", got.controlPath())
	}
}

// TestStackConfigPassesEverything sets every field of the file's struct and looks for a field of the library's that
// stayed zero.
func TestStackConfigPassesEverything(t *testing.T) {
	cfg, err := loadConfig(writeConfig(t, `
interface = "a"
netns = "b"
addresses = ["10.0.0.2/24"]
gateway = "10.0.0.1"
share = true
vlans = [7]
queues = [1]
mode = "zerocopy"
attach = "generic"
frames = 64
chunk_size = 4096
huge_pages = true
max_spin = "-1s"
dispatch = "never"
priority = 1
napi = "drive"
tx_checksum = "off"
rx_metadata = "on"
journal = "/j"
reactors = 1
accept = "main"
spread = "round-robin"
cpus = [3]
rcvbuf = 5
rcvmax = 7
sndbuf = 6
congestion = "reno"
no_ecn = true
ledger = true
control = "/c"
from = "/g"
`))
	if err != nil {
		t.Fatal(err)
	}
	got, err := cfg.stackConfig()
	if err != nil {
		t.Fatal(err)
	}
	got.Stalled, got.Opened = stallLog(io.Discard), identity{}.assume // as runEngine does
	v := reflect.ValueOf(got)
	for i := range v.NumField() {
		if v.Field(i).IsZero() {
			t.Errorf("%s is not passed on", v.Type().Field(i).Name)
		}
	}
	if got.Mode != xdpd.ZeroCopy || got.Attach != xdpd.Generic || got.MaxSpin != -time.Second || cfg.controlPath() != "/c" {
		t.Errorf("read as %+v", got)
	}
}

func TestConfigErrors(t *testing.T) {
	for _, c := range []struct{ text, want string }{
		{"interface = \"a\"\nadresses = [\"10.0.0.2/24\"]\n", "line 2: unknown key adresses; there are interface, netns, addresses"},
		{"a = 1\nb = 2\n", "line 2: unknown key b"},
		{"[[service]]\nname = \"echo\"\nprot = 7\n", "line 3: unknown key service.prot; there are name, face, port, tcp, udp"},
		{"[engine]\nx = 1\n", "line 1: unknown key engine"},
		{"frames = \"many\"\n", "line 1: frames"},
		{"interface = \"a\"\nframes = 1\nframes = 2\n", "line 3:"},
		{"interface = \n", "line 1:"},
		{"addresses = [\"10.0.0.2\"]\n", "line 1:"},
		{"\ngateway = \"10.0.0\"\n", "line 2:"},
		{"vlans = [70000]\n", "line 1:"},
		{"vlans = [0]\n", "vlans has 0"},
		{"vlans = [1, 2, 3]\n", "3 tags"},
		{"max_spin = \"50\"\n", "line 1:"},
		{"max_spin = 50\n", "\"50\" is no time: write a number with its unit"},
		{"[[service]]\nname = \"proxy\"\nport = 1\nbackends = [\"a:1\"]\ncheck = 2\n", "\"2\" is no time: write a number with its unit"},
		{"[[service]]\nname = \"proxy\"\nport = 1\nbackends = [\"a:1\"]\ncheck = \"0s\"\n", "at least 10ms"},
		{"mode = \"fast\"\n", "mode is \"fast\"; there are best, copy and zerocopy"},
		{"attach = \"hw\"\n", "attach is \"hw\"; there are best, native and generic"},
		{"frames = -1\n", "frames has -1"},
		{"reactors = -1\n", "reactors has -1"},
		{"accept = \"all\"\n", "accept is \"all\"; there are each, main and workers"},
		{"accept = \"main\"\nspread = \"random\"\n", "spread is \"random\"; there are round-robin and least-conns"},
		{"accept = \"workers\"\nspread = \"least-conns\"\n", "where the device spreads the connections: leave it out, or have main accept (--accept main)"},
		{"spread = \"round-robin\"\n", "leave it out, or have main accept (--accept main)"},
		{"queues = [0, -2]\n", "queues has -2"},
		{"queues = [1, 1]\n", "queues has 1 twice"},
		{"cpus = [-1]\n", "cpus has -1"},
		{"[[client]]\nname = \"a\"\n", "[[client]] number 1: clients \"a\": no user and no group"},
		{"[[client]]\nuser = [\"root\"]\n", "line 2: unknown key client.user; there are name, users, groups"},
		{"[[client]]\nusers = [\"no such user\"]\n", "no such user"},
		{"[[client]]\ngroups = [\"no such group\"]\n", "no such group"},
		{"[[client]]\nusers = [\"0\"]\nbind = [\"80-70\"]\n", "bind: \"80-70\": no such ports"},
		{"[[client]]\nusers = [\"0\"]\nbind = [\"http\"]\n", "ports are written 53"},
		{"[[client]]\nusers = [\"0\"]\nbind = [\"1-2-3\"]\n", "ports are written 53"},
		{"[[client]]\nusers = [\"0\"]\nbind = [\"65536\"]\n", "ports are written 53"},
		{"[[client]]\nusers = [\"0\"]\ncpu = 101\n", "101 percent"},
		{"[[client]]\nusers = [\"0\"]\nbytes = -1\n", "rates go from 1"},
		{"[[client]]\nusers = [\"0\"]\nframes = 101\n", "101 percent of the frames"},
		{"[[client]]\nusers = [\"0\"]\nrequests = 2000000\n", "2000000 requests"},
		{"[[client]]\nusers = [\"0\"]\nsockets = 20000000\n", "20000000 sockets"},
		{"[[client]]\nusers = [\"0\"]\nreach = [\"10.0.0.1\"]\n", "line 3:"},
		{"[[client]]\nusers = [\"0\"]\nreach = []\n", "reach names no network"},
		{"[[client]]\nusers = [\"0\"]\nreach = [\"fd00::/8\"]\n", "fd00::/8, which is no IPv4 network"},
		{"[[service]]\nname = \"ecco\"\n", "number 1: there is no service \"ecco\"; there are echo (port 7, TCP and UDP), discard"},
		{"[[service]]\nport = 7\n", "there is no service \"\""},
		{"[[service]]\nname = \"echo\"\nport = 65536\n", "echo has port 65536"},
		{"[[service]]\nname = \"echo\"\nport = 0\n", "echo has port 0"},
		{"[[service]]\nname = \"hold\"\nudp = true\n", "hold does not speak UDP"},
		{"[[service]]\nname = \"echo\"\nudp = false\ntcp = false\n", "both tcp and udp off"},
		{"[[service]]\nname = \"echo\"\n[[service]]\nname = \"discard\"\nport = 7\n", "number 2: echo and discard both want port 7"},
	} {
		path := writeConfig(t, c.text)
		_, err := loadConfig(path)
		if err == nil {
			t.Errorf("taken without an error:\n%s", c.text)
			continue
		}
		if !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%q\n\tis answered %q,\n\twant %q and the file's name", c.text, err, c.want)
		}
	}
	if _, err := loadConfig("/nonexistent/xdpd.toml"); err == nil || !strings.Contains(err.Error(), "/nonexistent/xdpd.toml") {
		t.Errorf("a missing file gives %v", err)
	}
}

func TestConfigServices(t *testing.T) {
	got, err := loadConfig(writeConfig(t, `
[[service]]
name = "echo"
tcp = false
[[service]]
name = "discard"
port = 7
udp = false
[[service]]
name = "hold"
`))
	want := []serviceSpec{{Name: "echo", Port: 7, UDP: true}, {Name: "discard", Port: 7, TCP: true}, {Name: "hold", Port: 10, TCP: true}}
	if err != nil || !reflect.DeepEqual(got.Services, want) {
		t.Errorf("services are %v, %v, want %v", got.Services, err, want)
	}
}

func TestZeroSpinIsNotTheDefault(t *testing.T) {
	got, err := loadConfig(writeConfig(t, "max_spin = \"0s\"\n"))
	if err != nil || got.MaxSpin.Duration <= 0 {
		t.Errorf("max_spin 0s is read as %v, %v", got.MaxSpin, err)
	}
	var c struct {
		Run runCmd `cmd:""`
	}
	if _, err := kong.Must(&c).Parse([]string{"run", "--max-spin", "0"}); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Run.merge(); err != nil || got.MaxSpin.Duration <= 0 {
		t.Errorf("--max-spin 0 is read as %v, %v", got.MaxSpin, err)
	}
}

func TestParseServices(t *testing.T) {
	got, err := parseServices("echo, discard=9000,chargen,hold=65535")
	want := []serviceSpec{
		{Name: "echo", Port: 7, TCP: true, UDP: true}, {Name: "discard", Port: 9000, TCP: true, UDP: true}, {Name: "chargen", Port: 19, TCP: true, UDP: true}, {Name: "hold", Port: 65535, TCP: true},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parsed as %v, %v, want %v", got, err, want)
	}
	for _, c := range []struct{ list, want string }{
		{"", `there is no service ""; there are echo`},
		{"echo,", `there is no service ""`},
		{"daytime", "hold (port 10, TCP), chargen (port 19, TCP and UDP)"},
		{"Echo", `there is no service "Echo"`},
		{"echo=", `echo has port ""`},
		{"echo@", "echo@ says no face: there are poller, ring, net"},
		{"echo@disk=7", `echo is wanted on the face "disk"; there are poller, ring, net`},
		{"discard@ring", "discard is on the poller alone: leave @ring out"},
		{"http@ring=80:/srv:upload", "http takes uploads on the face net alone"},
		{"echo=0", `echo has port "0"`},
		{"echo=65536", `echo has port "65536"`},
		{"echo=-7", `echo has port "-7"`},
		{"echo=7/udp", `echo has port "7/udp"`},
		{"echo,echo", "echo and echo both want port 7"},
		{"echo,discard=7", "echo and discard both want port 7"},
	} {
		if got, err := parseServices(c.list); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q gives %v, %v, want an error with %q", c.list, got, err, c.want)
		}
	}
}

// TestServicesExist holds the list of names against the services that there are.
func TestServicesExist(t *testing.T) {
	for _, s := range knownServices {
		list := []string{""}
		if usualFace[s.Name] != "" {
			list = faceNames
		}
		for _, s.Face = range list {
			if faceServiceOf(&s) == nil && ((udpServices[s.Name] != nil) != s.UDP || (tcpServices[s.Name] != nil) != s.TCP) {
				t.Errorf("%s on %q is announced for %s, and is something else", s.Name, s.Face, s.protocols())
			}
		}
	}
}
