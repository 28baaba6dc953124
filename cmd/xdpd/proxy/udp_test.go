package proxy

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"
)

// udpServer is a backend that answers each datagram with its name in front.
type udpServer struct {
	*net.UDPConn
	addr  netip.AddrPort
	name  string
	mute  atomic.Bool
	taken atomic.Int64
	ended chan struct{}
}

func listenUDP(t *testing.T, address, name string) *udpServer {
	t.Helper()
	c, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.MustParseAddrPort(address)))
	if err != nil {
		t.Fatal(err)
	}
	s := &udpServer{UDPConn: c, addr: c.LocalAddr().(*net.UDPAddr).AddrPort(), name: name, ended: make(chan struct{})}
	go func() {
		defer close(s.ended)
		b := make([]byte, 65536)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b[1:])
			if err != nil {
				return
			}
			s.taken.Add(1)
			if !s.mute.Load() {
				b[0] = name[0]
				_, _ = c.WriteToUDPAddrPort(b[:n+1], from)
			}
		}
	}()
	t.Cleanup(s.stop)
	return s
}

func (s *udpServer) stop() {
	s.Close()
	<-s.ended
}

func serveUDP(t *testing.T, cfg Config, backends ...netip.AddrPort) (*Proxy, netip.AddrPort) {
	t.Helper()
	cfg.Network, cfg.Backends = "udp", backends
	p := newProxy(t, cfg)
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.ServeUDP(l) }()
	t.Cleanup(func() {
		if err := p.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("ServeUDP ends with %v", err)
		}
	})
	return p, l.LocalAddr().(*net.UDPAddr).AddrPort()
}

func dialUDP(t *testing.T, to netip.AddrPort) *net.UDPConn {
	t.Helper()
	c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return c
}

// query sends a datagram and gives the answer, with the name in front.
func query(t *testing.T, c *net.UDPConn, text string) string {
	t.Helper()
	if _, err := c.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 65536)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

// TestUDPFlows: each client has a backend and keeps it; the answers are its own.
func TestUDPFlows(t *testing.T) {
	a, b := listenUDP(t, "127.0.0.1:0", "a"), listenUDP(t, "127.0.0.1:0", "b")
	p, at := serveUDP(t, Config{}, a.addr, b.addr)
	var clients []*net.UDPConn
	var who []byte
	for range 4 {
		c := dialUDP(t, at)
		clients, who = append(clients, c), append(who, query(t, c, "first")[0])
	}
	if string(who) != "abab" {
		t.Errorf("four clients are served by %s", who)
	}
	for i, c := range clients {
		for _, text := range []string{"x", "", string(blob(60000))} {
			if got, want := query(t, c, text), string(who[i])+text; got != want {
				t.Errorf("client %d is answered %d bytes %.10q, want %d bytes %.10q", i, len(got), got, len(want), want)
			}
		}
	}
	n, backends := p.Stats()
	if n.Flows != 4 || n.Dropped != 0 || backends[0].Open != 2 || backends[0].Counters.BytesSent != 2*(5+1+60000) ||
		backends[0].Counters.BytesReceived != 2*(5+1+60000+4) {
		t.Errorf("counted %+v, %+v", n, backends[0])
	}
}

// TestUDPFlowLimit: clients beyond the table are refused and counted, and those in it do not suffer.
func TestUDPFlowLimit(t *testing.T) {
	s := listenUDP(t, "127.0.0.1:0", "a")
	p, at := serveUDP(t, Config{Flows: 3, Idle: time.Hour}, s.addr)
	var in []*net.UDPConn
	for range 3 {
		c := dialUDP(t, at)
		query(t, c, "x")
		in = append(in, c)
	}
	out := dialUDP(t, at)
	for i := range 5 {
		if _, err := out.Write([]byte("y")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the refusal", func() bool { return counters(p).FullTable == uint64(i+1) })
	}
	for _, c := range in {
		query(t, c, "x")
	}
	if n := counters(p); n.Dropped != 5 || n.Flows != 3 || flowsOf(p) != 3 || s.taken.Load() != 6 {
		t.Errorf("counted %+v; the backend got %d", n, s.taken.Load())
	}
	p.sweep(p.since() + time.Hour/2)
	if flowsOf(p) != 3 {
		t.Error("flows end before their time")
	}
	p.sweep(p.since() + time.Hour)
	eventually(t, "room", func() bool { return flowsOf(p) == 0 })
	if got := query(t, out, "y"); got != "ay" {
		t.Errorf("with room again it is answered %q", got)
	}
	if n := counters(p); n.Idle != 3 || n.Broken != 0 {
		t.Errorf("counted %+v", n)
	}
	for _, b := range p.backends {
		if b.n.failed.Load() != 0 {
			t.Errorf("an idle flow's end is the backend's fault")
		}
	}
}

// TestUDPRefused: ICMP from a backend moves its clients to another, and takes it down at the third.
func TestUDPRefused(t *testing.T) {
	dead, good := listenUDP(t, "127.0.0.1:0", "d"), listenUDP(t, "127.0.0.1:0", "g")
	p, at := serveUDP(t, Config{Fall: 3}, dead.addr, good.addr)
	p.judge(p.backends[0], answers, nil)
	c := dialUDP(t, at)
	if got := query(t, c, "x"); got != "dx" {
		t.Fatalf("answered %q", got)
	}
	if err := p.Drain(good.addr, true); err != nil { // or the second try goes there
		t.Fatal(err)
	}
	dead.stop()
	for i := range 3 {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the refusal", func() bool { return p.backends[0].n.failed.Load() == uint64(i+1) })
	}
	// The refusal is counted first.
	eventually(t, "the verdict", func() bool {
		_, backends := p.Stats()
		b := backends[0]
		return b.State == "down" && b.Reason == "connection refused" && b.Open == 0
	})
	if err := p.Drain(good.addr, false); err != nil {
		t.Fatal(err)
	}
	if got := query(t, c, "x"); got != "gx" {
		t.Errorf("then it is answered %q", got)
	}
}

// TestUDPMoves: a flow leaves a backend that checks take down.
func TestUDPMoves(t *testing.T) {
	a, b := listenUDP(t, "127.0.0.1:0", "a"), listenUDP(t, "127.0.0.1:0", "b")
	p, at := serveUDP(t, Config{}, a.addr, b.addr)
	c := dialUDP(t, at)
	query(t, c, "x")
	p.takeDown(p.backends[0], health{reason: "test"})
	if got := query(t, c, "x"); got != "bx" {
		t.Errorf("answered %q", got)
	}
	eventually(t, "one flow for one client", func() bool { return flowsOf(p) == 1 })
	p.takeDown(p.backends[1], health{reason: "test"})
	for i := range 2 {
		if _, err := c.Write([]byte("x")); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the refusal", func() bool { return counters(p).NoBackend == uint64(i+1) })
	}
}

// TestCheckUDP has a backend die and return.
func TestCheckUDP(t *testing.T) {
	s := listenUDP(t, "127.0.0.1:0", "a")
	p, _ := serveUDP(t, Config{Rise: 2, Fall: 3}, s.addr)
	b := p.backends[0]
	look := func(times int, want string) {
		t.Helper()
		for range times {
			p.check(t.Context(), b)
		}
		if got := states(p); got[0] != want {
			t.Errorf("after %d checks it is %v, want %s", times, got, want)
		}
	}
	look(1, "up")
	s.stop()
	look(2, "up")
	look(1, "down")
	if b.health.reason != "connection refused" {
		t.Errorf("because %q", b.health.reason)
	}
	back := listenUDP(t, s.addr.String(), "a")
	look(1, "down")
	look(1, "up")
	if n := back.taken.Load(); n != 2 {
		t.Errorf("it got %d checks", n)
	}
}

// TestUDPSilence: a backend that used to answer and does not any more is down; one that never did is not.
func TestUDPSilence(t *testing.T) {
	for _, usedTo := range []bool{true, false} {
		s := listenUDP(t, "127.0.0.1:0", "a")
		p, at := serveUDP(t, Config{Check: time.Nanosecond, Timeout: 10 * time.Millisecond}, s.addr)
		b := p.backends[0]
		c := dialUDP(t, at)
		if usedTo {
			query(t, c, "x")
		}
		s.mute.Store(true)
		for range silentDatagrams - 1 {
			_, _ = c.Write([]byte("x"))
		}
		eventually(t, "the datagrams", func() bool { return b.unanswered.Load() == silentDatagrams-1 })
		p.check(t.Context(), b)
		if b.health.down {
			t.Errorf("used to answer %v: it is down after %d", usedTo, silentDatagrams-1)
		}
		_, _ = c.Write([]byte("x"))
		eventually(t, "the datagrams", func() bool { return b.unanswered.Load() == silentDatagrams })
		p.check(t.Context(), b)
		if b.health.down != usedTo {
			t.Errorf("used to answer %v: it is %v", usedTo, states(p))
		}
	}
}

// TestUDPSilentStaysDown: more silence does not bring it up before its time, an answer does.
func TestUDPSilentStaysDown(t *testing.T) {
	p := newProxy(t, Config{Network: "udp", Backends: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}, Check: time.Hour})
	b := p.backends[0]
	down := func() { p.takeDown(b, health{reason: "test", silent: true}) }
	down()
	for range 10 {
		p.judge(b, silence, nil)
	}
	if !b.health.down {
		t.Error("silence brought it up")
	}
	p.judge(b, answers, nil)
	p.judge(b, answers, nil)
	if b.health.down {
		t.Error("answers did not bring it up")
	}
	down()
	b.health.since -= silentHold * time.Hour
	p.judge(b, silence, nil)
	p.judge(b, silence, nil)
	if b.health.down {
		t.Error("it is never tried again")
	}
	// One that was refused is well again with silence: nobody refuses any more.
	p.takeDown(b, health{reason: "test"})
	p.judge(b, silence, nil)
	p.judge(b, silence, nil)
	if b.health.down {
		t.Error("a port that refused stays down")
	}
}

// TestUDPSilentLastResort: any client can send what no backend answers, and have them all taken for silent; where there is
// no other, a silent one is chosen all the same, and a flow stays with it.
func TestUDPSilentLastResort(t *testing.T) {
	a, b, refuses := listenUDP(t, "127.0.0.1:0", "a"), listenUDP(t, "127.0.0.1:0", "b"), unused(t)
	p, at := serveUDP(t, Config{Check: time.Hour}, a.addr, b.addr, refuses)
	p.takeDown(p.backends[0], health{reason: "test", silent: true})
	p.takeDown(p.backends[2], health{reason: "test"})
	c := dialUDP(t, at)
	for range 3 {
		if got := query(t, c, "x"); got != "bx" {
			t.Errorf("answered %q, and b is up", got)
		}
	}
	p.takeDown(p.backends[1], health{reason: "test", silent: true})
	for range 3 {
		if got := query(t, c, "x"); got != "bx" {
			t.Errorf("answered %q, and the flow is b's", got)
		}
	}
	for range 2 {
		if got := query(t, dialUDP(t, at), "x"); got != "ax" && got != "bx" {
			t.Errorf("another client is answered %q", got)
		}
	}
	if n := counters(p).Flows; n != 3 {
		t.Errorf("%d flows for three clients", n)
	}
	p.judge(p.backends[0], answers, nil)
	p.judge(p.backends[0], answers, nil)
	if got := query(t, c, "x"); got != "ax" {
		t.Errorf("answered %q, and a is up", got)
	}
}

// TestUDPBigTable holds many clients at once, and forgets them all.
func TestUDPBigTable(t *testing.T) {
	s := listenUDP(t, "127.0.0.1:0", "a")
	p, at := serveUDP(t, Config{Flows: 200, Idle: time.Hour}, s.addr)
	for i := range 200 {
		c := dialUDP(t, at)
		want := bytes.Repeat([]byte{byte(i)}, 10)
		if got := query(t, c, string(want)); got != "a"+string(want) {
			t.Fatalf("client %d is answered %q", i, got)
		}
	}
	if flowsOf(p) != 200 {
		t.Errorf("%d flows", flowsOf(p))
	}
	p.sweep(p.since() + time.Hour)
	eventually(t, "the end of all", func() bool { return flowsOf(p) == 0 })
	if _, backends := p.Stats(); backends[0].Open != 0 {
		t.Errorf("%d flows are open on the backend", backends[0].Open)
	}
}
