package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
)

// served is an engine that runs as xdpd run does, in a lab.
type served struct {
	*netlab.Lab
	control string
	out     *lines
}

// serve runs the engine with the services until the test ends, which must be without an error and leave nothing.
func serve(t *testing.T, services string) *served {
	t.Helper()
	return serveAs(t, services, netlab.Options{}, fileConfig{})
}

// serveAs is serve on another wire, and with what else the configuration says.
func serveAs(t *testing.T, services string, wire netlab.Options, file fileConfig) *served {
	t.Helper()
	lab := newLab(t, wire)
	specs, err := parseServices(services)
	if err != nil {
		t.Fatal(err)
	}
	specs = append(specs, file.Services...)
	for i := range specs {
		if specs[i].Name == "proxy" {
			specs[i].Check = 50 * time.Millisecond // a test does not want to wait
		}
	}
	if err := chooseFaces(specs, file.Face); err != nil {
		t.Fatal(err)
	}
	s := &served{lab, filepath.Join(t.TempDir(), "c.sock"), &lines{n: make(chan struct{}, 1)}}
	file.Interface, file.NetNS, file.Control, file.Services = lab.EngineDev, lab.Engine.Path(), s.control, specs
	file.Addresses, file.Ledger = []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)}, true
	if file.Share {
		file.Addresses = nil
	}
	cfg, err := file.stackConfig()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() {
		ended <- runEngine(ctx, cfg, file, 0, s.out)
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("the engine ends with %v", err)
		}
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	eventually(t, "the engine", func() bool { return strings.Contains(s.text(), "ready") || len(ended) > 0 })
	return s
}

func (s *served) text() string {
	s.out.mu.Lock()
	defer s.out.mu.Unlock()
	return s.out.b.String()
}

// DialContext connects from the peer's kernel.
func (s *served) DialContext(ctx context.Context, network, address string) (c net.Conn, err error) {
	err = s.Peer.Do(func() (err error) {
		var d net.Dialer
		c, err = d.DialContext(ctx, network, address)
		return err
	})
	return c, err
}

func (s *served) at(port int) string { return fmt.Sprintf("%s:%d", s.EngineAddr, port) }

func (s *served) dial(t *testing.T, network string, port int) net.Conn {
	t.Helper()
	c, err := s.DialContext(t.Context(), network+"4", s.at(port))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// service gives one service's counters as xdpd stats has them.
func (s *served) service(t *testing.T, name, protocol string) serviceView {
	t.Helper()
	v, _, err := askControl(t.Context(), s.control)
	if err != nil {
		t.Fatal(err)
	}
	for _, sv := range v.Services {
		if sv.Name == name && sv.Protocol == protocol {
			return sv
		}
	}
	t.Fatalf("there is no %s over %s among %+v", name, protocol, v.Services)
	return serviceView{}
}

// TestServeFiles loads and sends a big file over the engine, and asks for what is outside.
func TestServeFiles(t *testing.T) {
	dir := webRootIfRoot(t)
	const size = 48<<20 + 77
	want := bigFile(t, filepath.Join(dir, "big"), size)
	eachFace(t, func(t *testing.T, face string) {
		upload := ":upload"
		if face != "net" {
			upload = ""
		}
		s := serve(t, "http@"+face+"=80:"+dir+upload)
		c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return s.DialContext(ctx, "tcp4", s.at(80))
		}}}
		defer c.CloseIdleConnections()
		resp, body := ask(t, c, "GET", "/big", nil)
		if got := sha256.Sum256([]byte(body)); resp.StatusCode != 200 || len(body) != size || hex.EncodeToString(got[:]) != want {
			t.Errorf("%d with %d bytes, SHA-256 %x, want %d, %s", resp.StatusCode, len(body), got, size, want)
		}
		resp, part := ask(t, c, "GET", "/big", nil, "Range", "bytes=1000000-1000999")
		if resp.StatusCode != 206 || part != body[1000000:1001000] {
			t.Errorf("a range is answered %d with %d bytes", resp.StatusCode, len(part))
		}
		if resp, _ := ask(t, c, "HEAD", "/big", nil); resp.StatusCode != 200 || resp.ContentLength != size {
			t.Errorf("HEAD is answered %d, length %d", resp.StatusCode, resp.ContentLength)
		}
		if resp, text := ask(t, c, "GET", "/relative", nil); resp.StatusCode != 403 || strings.Contains(text, secret) {
			t.Errorf("a link that leads outside is answered %d %q", resp.StatusCode, text)
		}
		resp, answer := ask(t, c, "PUT", "/upload/big", strings.NewReader(body))
		if upload == "" {
			if resp.StatusCode != 405 || resp.Header.Get("Allow") != "GET, HEAD" {
				t.Errorf("an upload is answered %d, allowed is %q", resp.StatusCode, resp.Header.Get("Allow"))
			}
		} else {
			var got uploaded
			if err := json.Unmarshal([]byte(answer), &got); err != nil || got.Size != size || got.SHA256 != want {
				t.Errorf("the upload is answered %d %q, %v", resp.StatusCode, answer, err)
			}
		}
		n := s.service(t, "http", "tcp").Counters
		if n["requests"] != 5 || n["bytes_sent"] < size || upload != "" && (n["uploads"] != 1 || n["bytes_received"] < size) {
			t.Errorf("counted %v", n)
		}
		c.CloseIdleConnections()
		s.restful(t)
	})
}

// webRootIfRoot spares the work to who may not run the test.
func webRootIfRoot(t *testing.T) string {
	t.Helper()
	needRoot(t)
	return webRoot(t)
}

// TestServeSource reads a stream to its end, and part of one without.
func TestServeSource(t *testing.T) {
	s := serve(t, "source=5001:10M,source=5002")
	const size = 10 << 20
	c := s.dial(t, "tcp", 5001)
	if _, err := c.Write([]byte("thrown away")); err != nil {
		t.Fatal(err)
	}
	all, err := io.ReadAll(c)
	if err != nil || len(all) != size {
		t.Fatalf("%d bytes, %v; want %d", len(all), err, size)
	}
	if _, err := c.Write([]byte("so is this, after the end")); err != nil {
		t.Errorf("after its end the source does not read: %v", err)
	}
	c.Close()
	endless := s.dial(t, "tcp", 5002)
	piece := make([]byte, size+8)
	if _, err := io.ReadFull(endless, piece); err != nil {
		t.Fatal(err)
	}
	endless.Close()
	for i := 0; i < size; i += 8 {
		if n := binary.BigEndian.Uint64(all[i:]); n != uint64(i/8) {
			t.Fatalf("at byte %d the stream has %d, want %d", i, n, i/8)
		}
	}
	if !bytes.Equal(all, piece[:size]) || binary.BigEndian.Uint64(piece[size:]) != size/8 {
		t.Error("the stream without end is another")
	}
	eventually(t, "the counts", func() bool { return s.service(t, "source", "tcp").Counters["bytes_received"] == 36 })
	if n := s.service(t, "source", "tcp").Counters; n["connections"] != 1 || n["completed"] != 1 || n["bytes_sent"] != size {
		t.Errorf("counted %v", n)
	}
}

// udpBackend answers in the peer's namespace, with its name in front.
type udpBackend struct {
	*net.UDPConn
	taken atomic.Int64
	done  sync.WaitGroup
}

func (s *served) udpBackend(t *testing.T, port int, name string) *udpBackend {
	t.Helper()
	b := &udpBackend{}
	err := s.Peer.Do(func() (err error) {
		b.UDPConn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: s.PeerAddr.AsSlice(), Port: port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.done.Go(func() {
		buf := make([]byte, 65536)
		for {
			n, from, err := b.ReadFromUDPAddrPort(buf[1:])
			if err != nil {
				return
			}
			b.taken.Add(1)
			buf[0] = name[0]
			_, _ = b.WriteToUDPAddrPort(buf[:n+1], from)
		}
	})
	t.Cleanup(b.stop)
	return b
}

func (b *udpBackend) stop() {
	b.Close()
	b.done.Wait()
}

// state is that of a proxy's backends, as xdpd stats tells it.
func (s *served) state(t *testing.T, protocol string) (list []string) {
	t.Helper()
	for _, b := range s.service(t, "proxy", protocol).Backends {
		list = append(list, b.State)
	}
	return list
}

// TestServeUDPProxy: two backends in the kernel, one of which dies and returns.
func TestServeUDPProxy(t *testing.T) {
	needRoot(t)
	s := serve(t, "proxy=53:udp:10.77.0.1:5301,10.77.0.1:5302")
	a, b := s.udpBackend(t, 5301, "a"), s.udpBackend(t, 5302, "b")
	// Sent until it is answered: what goes to a backend in the moment that it dies is lost, as it is with UDP.
	query := func(c net.Conn, text string) string {
		buf := make([]byte, 65536)
		for range 100 {
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
			_ = c.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
			n, err := c.Read(buf)
			for err == nil && string(buf[1:n]) != text { // a second answer to what was asked before
				n, err = c.Read(buf)
			}
			if err == nil {
				return string(buf[:n])
			}
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		}
		t.Fatalf("%.20q is never answered: %s", text, s.text())
		return ""
	}
	eventually(t, "the backends", func() bool { return fmt.Sprint(s.state(t, "udp")) == "[up up]" })
	// A backend that did not listen yet when it was first asked has been down once already.
	downs := func(backend int) uint64 { return s.service(t, "proxy", "udp").Backends[backend].Counters["downs"] }
	downsA, downsB := downs(0), downs(1)
	one, two := s.dial(t, "udp", 53), s.dial(t, "udp", 53)
	names := query(one, "x")[:1] + query(two, "x")[:1]
	if names != "ab" && names != "ba" {
		t.Errorf("two clients are served by %s", names)
	}
	long := strings.Repeat("0123456789", 1200) // in fragments
	if got := query(one, long); got != names[:1]+long {
		t.Errorf("%d bytes are answered with %d", len(long), len(got))
	}
	a.stop()
	eventually(t, "a's end", func() bool { return fmt.Sprint(s.state(t, "udp")) == "[down up]" })
	for _, c := range []net.Conn{one, two} {
		if got := query(c, "y"); got != "by" {
			t.Errorf("with one backend left the answer is %q", got)
		}
	}
	s.udpBackend(t, 5301, "a")
	eventually(t, "a's return", func() bool { return fmt.Sprint(s.state(t, "udp")) == "[up up]" })
	if got := query(s.dial(t, "udp", 53), "z"); got != "az" { // the one with the fewest flows
		t.Errorf("after its return the answer is %q", got)
	}
	if err := (&drainCmd{Backend: "10.77.0.1:5302", Control: s.control}).Run(); err != nil {
		t.Fatal(err)
	}
	if got := s.state(t, "udp"); fmt.Sprint(got) != "[up drained]" {
		t.Errorf("after xdpd drain they are %v", got)
	}
	if got := query(one, "w"); got != "bw" {
		t.Errorf("a flow of a drained backend is answered %q", got)
	}
	if err := (&drainCmd{Backend: "10.77.0.1:5302", Control: s.control, Undo: true}).Run(); err != nil {
		t.Fatal(err)
	}
	if got := s.state(t, "udp"); fmt.Sprint(got) != "[up up]" {
		t.Errorf("after xdpd drain --undo they are %v", got)
	}
	err := (&drainCmd{Backend: "10.77.0.1:1", Control: s.control}).Run()
	if err == nil || !strings.Contains(err.Error(), "there are 10.77.0.1:5301, 10.77.0.1:5302") {
		t.Errorf("draining nobody gives %v", err)
	}
	sv := s.service(t, "proxy", "udp")
	if sv.Counters["flows"] < 3 || downs(0) != downsA+1 || downs(1) != downsB || b.taken.Load() == 0 {
		t.Errorf("counted %+v", sv)
	}
}

// tcpBackend says its name on each connection and echoes the rest, in the peer's namespace.
type tcpBackend struct {
	net.Listener
	taken atomic.Int64
	done  sync.WaitGroup
}

func (s *served) tcpBackend(t *testing.T, port int, name string) *tcpBackend {
	t.Helper()
	b := &tcpBackend{}
	err := s.Peer.Do(func() (err error) {
		b.Listener, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: s.PeerAddr.AsSlice(), Port: port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	b.done.Go(func() {
		for {
			c, err := b.Accept()
			if err != nil {
				return
			}
			b.taken.Add(1)
			b.done.Go(func() {
				defer c.Close()
				_, _ = io.WriteString(c, name)
				_, _ = io.Copy(c, c)
			})
		}
	})
	t.Cleanup(b.stop)
	return b
}

func (b *tcpBackend) stop() {
	b.Close()
	b.done.Wait()
}

// TestServeTCPProxy: two backends in the kernel, one of which dies and returns, and then both die.
func TestServeTCPProxy(t *testing.T) { eachFace(t, testServeTCPProxy) }

func testServeTCPProxy(t *testing.T, face string) {
	s := serve(t, "proxy@"+face+"=80:tcp:10.77.0.1:8001,10.77.0.1:8002")
	a, b := s.tcpBackend(t, 8001, "a"), s.tcpBackend(t, 8002, "b")
	becomes := func(want string) {
		t.Helper()
		eventually(t, want, func() bool { return fmt.Sprint(s.state(t, "tcp")) == want })
	}
	becomes("[up up]")
	// talk sends bytes, ends its direction, and gives who answered; all must come back.
	talk := func(n int) string {
		c := s.dial(t, "tcp", 80)
		defer c.Close()
		sent := sourceBytes(make([]byte, n), 0)
		writing := make(chan error, 1)
		go func() {
			_, err := c.Write(sent)
			writing <- errors.Join(err, c.(*net.TCPConn).CloseWrite())
		}()
		got, err := io.ReadAll(c)
		if err := errors.Join(err, <-writing); err != nil || len(got) == 0 || !bytes.Equal(got[1:], sent) {
			t.Fatalf("%d bytes are answered with %d, %v", len(sent), len(got), err)
		}
		return string(got[:1])
	}
	if names := talk(8<<20) + talk(8); names != "ab" && names != "ba" {
		t.Errorf("two clients are served by %s", names)
	}
	a.stop()
	for range 4 { // also before anybody knows
		if got := talk(8); got != "b" {
			t.Errorf("with one backend left the answer is %q", got)
		}
	}
	becomes("[down up]")
	s.tcpBackend(t, 8001, "a")
	becomes("[up up]")
	if names := talk(8) + talk(8); names != "ab" && names != "ba" {
		t.Errorf("after its return two clients are served by %s", names)
	}
	held := s.dial(t, "tcp", 80)
	if _, err := io.ReadFull(held, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	flows := func() (n int) {
		for _, k := range s.service(t, "proxy", "tcp").Backends {
			n += k.Open
		}
		return n
	}
	eventually(t, "one open flow", func() bool { return flows() == 1 }) // a client is told of the end before it is counted
	_ = held.(*net.TCPConn).SetLinger(0)                                // a reset ends both sides
	held.Close()
	eventually(t, "the end of the flow", func() bool { return flows() == 0 })
	if n := s.service(t, "proxy", "tcp").Counters; n["broken"] != 1 || n["flows"] != 9 || n["no_backend"] != 0 {
		t.Errorf("counted %v", n)
	}
	b.stop()
	if err := (&drainCmd{Backend: "10.77.0.1:8001", Control: s.control}).Run(); err != nil {
		t.Fatal(err)
	}
	becomes("[drained down]")
	c, err := s.DialContext(t.Context(), "tcp4", s.at(80))
	if err == nil {
		_, err = c.Read(make([]byte, 1))
		c.Close()
	}
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("with no backend left the client sees %v", err)
	}
	eventually(t, "the count", func() bool { return s.service(t, "proxy", "tcp").Counters["no_backend"] == 1 })
	s.restful(t)
}

// TestServeAndList holds a connection and looks at it with xdpd ss.
func TestServeAndList(t *testing.T) {
	s := serve(t, "hold,echo")
	c := s.dial(t, "tcp", 10)
	if _, err := c.Write(make([]byte, 5000)); err != nil {
		t.Fatal(err)
	}
	line := fmt.Sprintf("ESTAB 5000 0 %s:10 %s 0", s.EngineAddr, c.LocalAddr())
	list := func(cmd ssCmd) string {
		var b bytes.Buffer
		if err := cmd.show(t.Context(), s.control, &b); err != nil {
			t.Fatal(err)
		}
		return strings.Join(strings.Fields(b.String()), " ")
	}
	eventually(t, line, func() bool { return strings.Contains(list(ssCmd{TCP: true}), line) })
	all := list(ssCmd{All: true})
	for _, want := range []string{"tcp LISTEN 0 0 0.0.0.0:10 0.0.0.0:* 0", "udp UNCONN 0 0 0.0.0.0:7 0.0.0.0:* 0", line} {
		if !strings.Contains(all, want) {
			t.Errorf("xdpd ss -a lacks %q:\n%s", want, all)
		}
	}
	info := list(ssCmd{TCP: true, Info: true, Memory: true})
	for _, want := range []string{" ts sack ", " cubic wscale:", " rto:", " mss:1448 pmtu:1500 ", " cwnd:10 ", " bytes_received:5000 ", " snd_wnd:"} {
		if !strings.Contains(info, want) {
			t.Errorf("xdpd ss -tim lacks %q:\n%s", want, info)
		}
	}
	c.Close()
	eventually(t, "its end", func() bool { return !strings.Contains(list(ssCmd{TCP: true}), "ESTAB") })
	if n := s.service(t, "hold", "tcp").Counters["connections"]; n != 1 {
		t.Errorf("%d connections are counted", n)
	}
}

func TestLookUp(t *testing.T) {
	got, err := lookUp([]string{"10.0.0.8:53", "localhost:54"})
	want := []netip.AddrPort{netip.MustParseAddrPort("10.0.0.8:53"), netip.MustParseAddrPort("127.0.0.1:54")}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("looked up as %v, %v, want %v", got, err, want)
	}
	if got, err := lookUp([]string{"[::1]:53"}); err == nil {
		t.Errorf("an IPv6 address is looked up as %v", got)
	}
}

// TestServeErrors: a service that cannot start ends the engine, with its name.
func TestServeErrors(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	defer lab.Close()
	for services, want := range map[string]string{
		"echo,http=80:/nonexistent/www":             "service http: open /nonexistent/www",
		"proxy=80:udp:10.77.0.1:80,http=81:/absent": "service http",
	} {
		specs, err := parseServices(services)
		if err != nil {
			t.Fatal(err)
		}
		err = runEngine(t.Context(), xdpd.Config{
			Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
		}, fileConfig{Control: filepath.Join(t.TempDir(), "c.sock"), Services: specs}, 0, io.Discard)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s ends with %v, want %q", services, err, want)
		}
	}
}
