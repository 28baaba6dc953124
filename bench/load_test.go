package main

import (
	"errors"
	"strings"
	"testing"
)

func TestUDPCheck(t *testing.T) {
	for _, c := range []struct {
		r    udpResult
		want string
	}{
		{udpResult{Sent: 100, SendErrors: 9, Received: 1}, ""},
		{udpResult{Sent: 100, SendErrors: 11, Received: 1}, "could not send 11 of 111"},
		{udpResult{Sent: 100, Received: 99, Bad: 1}, "1 replies were not what was sent"},
		{udpResult{Sent: 100}, "no reply to 100"},
	} {
		checkError(t, c.r.check(), c.want)
	}
}

func TestTCPCheck(t *testing.T) {
	for _, c := range []struct {
		r    tcpResult
		o    outcome
		want string
	}{
		{tcpResult{Count: 1000, Errors: 10}, outcome{done: 1000}, ""},
		{tcpResult{Count: 1000, Errors: 11}, outcome{done: 1000}, "11 connections failed"},
		{tcpResult{Count: 1000, Bad: 1}, outcome{done: 1000}, "1 replies were not what was sent"},
		{tcpResult{}, outcome{}, "nothing came back"},
	} {
		checkError(t, c.r.check(c.o), c.want)
	}
}

func checkError(t *testing.T, err error, want string) {
	t.Helper()
	if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
		t.Errorf("%v, want %q", err, want)
	}
}

const wrkSays = `Running 1s test @ http://10.77.0.2:7/
  1 threads and 32 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency   298.87us  194.07us   3.56ms   76.21%
    Req/Sec   105.68k     3.91k  109.54k    90.91%
  Latency Distribution
     50%  263.00us
     75%  401.00us
     90%  540.00us
     99%    1.02ms
  115570 requests in 1.10s, 14.22MB read
Requests/sec: 105075.68
Transfer/sec:     12.93MB
`

func TestParseWrk(t *testing.T) {
	o, err := parseWrk(wrkSays)
	perSecond := 105075.68
	if err != nil || o.rate != perSecond/1e3 || o.done != 115570 || o.p50 != 263 || o.p99 != 1020 {
		t.Errorf("%+v, %v", o, err)
	}
	for _, c := range []struct{ add, want string }{
		{"  Socket errors: connect 0, read 5, write 0, timeout 0\n", "read 5"},
		{"  Non-2xx or 3xx responses: 7\n", "responses: 7"},
	} {
		if _, err := parseWrk(strings.Replace(wrkSays, "Requests/sec", c.add+"Requests/sec", 1)); !errors.Is(err, errUseless) {
			t.Errorf("%s: %v", c.add, err)
		} else {
			checkError(t, err, c.want)
		}
	}
	for _, bad := range []string{"", "unable to connect to 10.77.0.2:7 Connection refused\n"} {
		if _, err := parseWrk(bad); !errors.Is(err, errUseless) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestUnknownServer(t *testing.T) {
	for _, args := range [][]string{nil, {"xdp"}, {"kernel-c"}, {"xdpd", "-work", "sctp"}, {"asavie", "-work", "http"}} {
		if err := serve(t.Context(), args); err == nil {
			t.Errorf("-serve %v is accepted", args)
		}
	}
}

func TestNoCompiler(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	b, err := newBuilder()
	if err != nil {
		t.Fatal(err)
	}
	defer b.cleanUp()
	if _, err := b.program(t.Context(), "peers/udpload.c"); err == nil || !strings.Contains(err.Error(), "apt-get install gcc") {
		t.Errorf("%v", err)
	}
	if _, err := b.program(t.Context(), "peers/none.c"); err == nil || !strings.Contains(err.Error(), "no none.c") {
		t.Errorf("%v", err)
	}
}
