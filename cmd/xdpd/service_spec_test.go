package main

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestParseServiceOptions(t *testing.T) {
	got, err := parseServices("http=8080:/srv/a:b, http=81:/srv:upload,source=5001:1G,source=5002," +
		"proxy=53:tcp+udp:10.0.0.8:53,10.0.0.9:5353,proxy=54:udp:dns.example:53,echo")
	want := []serviceSpec{
		{Name: "http", Port: 8080, TCP: true, serviceOptions: serviceOptions{Dir: "/srv/a:b"}},
		{Name: "http", Port: 81, TCP: true, serviceOptions: serviceOptions{Dir: "/srv", Upload: true}},
		{Name: "source", Port: 5001, TCP: true, serviceOptions: serviceOptions{Size: 1 << 30}},
		{Name: "source", Port: 5002, TCP: true},
		{Name: "proxy", Port: 53, TCP: true, UDP: true, serviceOptions: serviceOptions{Backends: []string{"10.0.0.8:53", "10.0.0.9:5353"}}},
		{Name: "proxy", Port: 54, UDP: true, serviceOptions: serviceOptions{Backends: []string{"dns.example:53"}}},
		{Name: "echo", Port: 7, TCP: true, UDP: true},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("parsed as\n%+v, %v, want\n%+v", got, err, want)
	}
	for _, c := range []struct{ list, want string }{
		{"http", "http needs a folder to serve: http=PORT:DIR"},
		{"http=80", "http needs a folder"},
		{"http=80:", "http needs a folder"},
		{"http=80::upload", "http needs a folder"},
		{"http=:/srv", `http has port ""`},
		{"http=/srv", `http has port "/srv"`},
		{"source", "source has no usual port: say which, source=PORT"},
		{"source=5001:0", `size is "0"`},
		{"source=5001:1X", `size is "1X"`},
		{"source=5001:-1", `size is "-1"`},
		{"source=5001:9999999T", `size is "9999999T"`},
		{"proxy", "proxy needs backends"},
		{"proxy=53", `proxy has the protocol ""`},
		{"proxy=53:tcp", "proxy needs backends"},
		{"proxy=53:sctp:10.0.0.8:53", `proxy has the protocol "sctp"`},
		{"proxy=53:10.0.0.8:53", `proxy has the protocol "10.0.0.8"`},
		{"proxy=53:udp:10.0.0.8", `proxy has the backend "10.0.0.8": write HOST:PORT`},
		{"proxy=53:udp:10.0.0.8:0", `proxy has the backend "10.0.0.8:0": ports are 1 to 65535`},
		{"proxy=53:udp:[::1]:53", `proxy has the backend "[::1]:53"`},
		{"proxy=53:udp:10.0.0.8:53,10.0.0.8:53", "proxy has the backend 10.0.0.8:53 twice"},
		{"echo,10.0.0.8:53", `there is no service "10.0.0.8:53"`},
		{"proxy=7:udp:10.0.0.8:53,echo", "proxy and echo both want port 7"},
		{"source=80,http=80:/srv", "source and http both want port 80"},
	} {
		if got, err := parseServices(c.list); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q gives %v, %v, want an error with %q", c.list, got, err, c.want)
		}
	}
}

func TestConfigServiceOptions(t *testing.T) {
	got, err := loadConfig(writeConfig(t, `
[[service]]
name = "http"
dir = "/srv/with,comma"
upload = true
[[service]]
name = "source"
port = 5001
size = "3K"
[[service]]
name = "proxy"
port = 53
udp = false
backends = ["10.0.0.8:53"]
balance = "roundrobin"
check = "1s"
idle = "2s"
flows = 3
`))
	want := []serviceSpec{
		{Name: "http", Port: 80, TCP: true, serviceOptions: serviceOptions{Dir: "/srv/with,comma", Upload: true}},
		{Name: "source", Port: 5001, TCP: true, serviceOptions: serviceOptions{Size: 3072}},
		{Name: "proxy", Port: 53, TCP: true, serviceOptions: serviceOptions{
			Backends: []string{"10.0.0.8:53"}, Balance: "roundrobin", Check: time.Second, Idle: 2 * time.Second, Flows: 3,
		}},
	}
	if err != nil || !reflect.DeepEqual(got.Services, want) {
		t.Errorf("services are\n%+v, %v, want\n%+v", got.Services, err, want)
	}
	proxy := "[[service]]\nname = \"proxy\"\nport = 53\nbackends = [\"10.0.0.8:53\"]\n"
	for _, c := range []struct{ text, want string }{
		{"[[service]]\nname = \"echo\"\ndir = \"/srv\"\n", "number 1: echo has an option of another service: dir and upload are http's"},
		{"[[service]]\nname = \"http\"\ndir = \"/srv\"\nflows = 1\n", "http has an option of another service"},
		{"[[service]]\nname = \"source\"\nport = 1\nsize = \"x\"\n", `source: size is "x"`},
		{"[[service]]\nname = \"source\"\nport = 1\nsize = 7\n", "line 4: "},
		{"[[service]]\nname = \"source\"\n", "source has no usual port"},
		{"[[service]]\nname = \"http\"\nudp = true\ndir = \"/srv\"\n", "http does not speak UDP"},
		{proxy + "balance = \"random\"\n", `proxy has the balance "random"; there are least and roundrobin`},
		{proxy + "flows = -1\n", "cannot be negative"},
		{proxy + "check = \"-1s\"\n", "cannot be negative"},
		{proxy + "idle = \"1\"\n", "line 5: "},
		{proxy + "upload = true\n", "proxy has an option of another service"},
	} {
		if _, err := loadConfig(writeConfig(t, c.text)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q\n\tis answered %v,\n\twant %q", c.text, err, c.want)
		}
	}
}

// TestEveryOptionHasAnOwner sets each option on echo, which has none.
func TestEveryOptionHasAnOwner(t *testing.T) {
	o := reflect.TypeFor[serviceOptions]()
	for i := range o.NumField() {
		spec, err := knownService("echo")
		if err != nil {
			t.Fatal(err)
		}
		switch f := reflect.ValueOf(&spec.serviceOptions).Elem().Field(i); f.Kind() {
		case reflect.String:
			f.SetString("x")
		case reflect.Bool:
			f.SetBool(true)
		case reflect.Uint64:
			f.SetUint(1)
		case reflect.Slice:
			f.Set(reflect.ValueOf([]string{"x"}))
		default:
			f.SetInt(1)
		}
		if spec.check() == nil {
			t.Errorf("echo is taken with %s", o.Field(i).Name)
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]uint64{"1": 1, "1500": 1500, "1K": 1024, "10M": 10 << 20, "1G": 1 << 30, "2T": 2 << 40} {
		if got, err := parseSize(text); got != want || err != nil {
			t.Errorf("%s is read as %d, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "K", "1k", "1KB", "1.5G", "0x10", "0K", "18446744073709551616", "8388608T"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("%q is read as %d", text, got)
		}
	}
}

// TestSourceBytes: a stream in pieces is the stream, from anywhere.
func TestSourceBytes(t *testing.T) {
	whole := sourceBytes(make([]byte, 4096), 0)
	for i := range len(whole) / 8 {
		for k, want := range []byte{0, 0, 0, 0, 0, 0, byte(i >> 8), byte(i)} {
			if whole[8*i+k] != want {
				t.Fatalf("byte %d is %d", 8*i+k, whole[8*i+k])
			}
		}
	}
	for at := uint64(0); at < 100; at++ {
		for _, room := range []int{16, 17, 63, 64, 1000} {
			if got := sourceBytes(make([]byte, room), at); len(got) == 0 || string(got) != string(whole[at:int(at)+len(got)]) {
				t.Fatalf("from byte %d in a buffer of %d it goes on with %x", at, room, got)
			}
		}
	}
}
