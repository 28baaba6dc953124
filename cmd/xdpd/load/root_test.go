package load

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
)

// bed is a network with a server of the kernel's on one side.
type bed struct {
	*netlab.Lab
	t     *testing.T
	conns atomic.Int64  // open at the server
	came  atomic.Uint64 // connections that it accepted
	asked atomic.Uint64 // responses it sent
}

// eachSide runs a test with load from the engine, and from kernel sockets.
func eachSide(t *testing.T, test func(b *bed, side Side)) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, name := range []string{"engine", "kernel"} {
		t.Run(name, func(t *testing.T) {
			lab, err := netlab.New(netlab.Options{KernelAddr: name == "kernel", Queues: 2})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { lab.Close() })
			b := &bed{Lab: lab, t: t}
			if name == "kernel" {
				k, err := NewKernel(KernelConfig{Threads: 2, NetNS: lab.Engine.Path(), Sources: []netip.Addr{lab.EngineAddr}})
				if err != nil {
					t.Fatal(err)
				}
				test(b, k)
				return
			}
			st, err := xdpd.Open(xdpd.Config{
				Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Ledger: true,
				Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { st.Close() })
			e, err := NewEngine(st, lab.EngineDev, []netip.Addr{lab.EngineAddr})
			if err != nil {
				t.Fatal(err)
			}
			test(b, e)
			b.restful(st)
		})
	}
}

// restful waits until the engine has neither connections nor frames of any.
func (b *bed) restful(st *xdpd.Stack) {
	b.eventually("the end of the engine's connections", func() bool {
		stats, err := st.Stats()
		if err != nil {
			b.t.Fatal(err)
		}
		for _, q := range stats.Queues {
			for _, c := range q.TCP {
				if c.State != "TIME-WAIT" {
					return false
				}
			}
			if q.Frames.Rx > 0 || len(q.UDP) > 0 {
				return false
			}
		}
		return true
	})
}

func (b *bed) eventually(what string, done func() bool) {
	b.t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			b.t.Fatalf("never came: %s", what)
		}
	}
}

// serve runs handle for each connection, and gives the address.
func (b *bed) serve(handle func(c *net.TCPConn)) netip.AddrPort {
	b.t.Helper()
	var l net.Listener
	err := b.Peer.Do(func() (err error) {
		l, err = net.Listen("tcp4", netip.AddrPortFrom(b.PeerAddr, 0).String())
		return err
	})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			b.came.Add(1)
			b.conns.Add(1)
			go func() {
				defer b.conns.Add(-1)
				defer c.Close()
				handle(c.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// answer reads requests of a size and sends responses of another: of the same, what came.
func (b *bed) answer(send, recv int) func(c *net.TCPConn) {
	return func(c *net.TCPConn) {
		in, out := make([]byte, send), make([]byte, recv)
		for {
			if _, err := io.ReadFull(c, in); err != nil {
				return
			}
			if send == recv {
				copy(out, in)
			}
			b.asked.Add(1)
			if _, err := c.Write(out); err != nil {
				return
			}
		}
	}
}

// want runs a load that is to succeed and checks the account.
func (b *bed) want(side Side, cfg Config) *Result {
	b.t.Helper()
	cfg.Timeout = 20 * time.Second
	res, err := Run(b.t.Context(), cfg, side, nil)
	if err != nil {
		b.t.Fatalf("%v: %v", &cfg, err)
	}
	s := &res.Stats
	if s.Failed() > 0 || s.Requests != s.Responses || s.Unfinished > 0 || s.Responses == 0 {
		b.t.Errorf("%v: %+v", &cfg, s)
	}
	if cfg.Count > 0 && cfg.Kind != Bulk && s.Responses != cfg.Count {
		b.t.Errorf("%v: %d responses", &cfg, s.Responses)
	}
	var text strings.Builder
	if err := res.Write(&text); err != nil || !strings.Contains(text.String(), "0 failed") {
		b.t.Errorf("the report: %v\n%s", err, &text)
	}
	if _, err := json.Marshal(res.Report()); err != nil {
		b.t.Error(err)
	}
	b.eventually("the end of the server's connections", func() bool { return b.conns.Load() == 0 })
	return res
}

func TestAgainstKernel(t *testing.T) {
	eachSide(t, func(b *bed, side Side) {
		echo := b.serve(b.answer(100, 100))
		for _, cfg := range []Config{
			{Kind: RR, Connections: 20, Send: 100, Verify: true, Count: 5000},
			{Kind: RR, Connections: 20, Depth: 7, Send: 100, Verify: true, Count: 5000},
			{Kind: RR, Connections: 20, Send: 100, Verify: true, Count: 500, Rate: 2000},
			{Kind: RR, Connections: 1, Send: 100, Verify: true, Duration: 50 * time.Millisecond, Warmup: 50 * time.Millisecond},
			{Kind: Connect, Connections: 10, Send: 100, Verify: true, Count: 1000},
			{Kind: Connect, Connections: 10, Send: 100, Verify: true, Count: 200, Close: "fin"},
			{Kind: Connect, Connections: 10, Count: 1000},
			{Kind: Connect, Connections: 10, Count: 300, Rate: 3000, Constant: true},
		} {
			cfg.Target = echo
			b.asked.Store(0)
			b.came.Store(0)
			res := b.want(side, cfg)
			want := uint64(cfg.Connections)
			if cfg.Kind == Connect {
				want = res.Stats.Responses
			}
			// The kernel opens connections before the server accepts them.
			b.eventually("all connections to the server", func() bool { return b.came.Load() >= want })
			if n := b.came.Load(); n != want {
				b.t.Errorf("%v: the server accepted %d, not %d", &cfg, n, want)
			}
			if cfg.Warmup == 0 && cfg.Send > 0 && b.asked.Load() != res.Stats.Responses {
				t := b.t
				t.Errorf("%v: the server answered %d", &cfg, b.asked.Load())
			}
		}
		b.want(side, Config{Kind: RR, Target: b.serve(b.answer(3, 50000)), Connections: 5, Send: 3, Receive: 50000, Count: 300})
		b.want(side, Config{Kind: Connect, Target: b.serve(func(*net.TCPConn) {}), Connections: 10, Count: 500, Close: "peer"})
	})
}

// drained ends as an orderly peer does: when the other side has.
func drained(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }

func TestBulkAgainstKernel(t *testing.T) {
	eachSide(t, func(b *bed, side Side) {
		const size = 8 << 20
		var sunk atomic.Uint64
		sink := b.serve(func(c *net.TCPConn) {
			n, _ := io.Copy(io.Discard, c)
			sunk.Add(uint64(n))
		})
		res := b.want(side, Config{Kind: Bulk, Target: sink, Connections: 4, Count: size, Direction: "send"})
		if sunk.Load() != size || res.Stats.SentBytes != size {
			b.t.Errorf("%d bytes came, %d were sent", sunk.Load(), res.Stats.SentBytes)
		}
		source := b.serve(func(c *net.TCPConn) {
			var w [8 << 10]byte
			for n := uint64(0); n < size/4/8; n += uint64(len(w) / 8) {
				for i := 0; i < len(w); i += 8 {
					binary.BigEndian.PutUint64(w[i:], n+uint64(i/8))
				}
				if _, err := c.Write(w[:]); err != nil {
					return
				}
			}
			_ = c.CloseWrite()
			drained(c)
		})
		for _, count := range []uint64{0, size, size / 2} {
			res = b.want(side, Config{Kind: Bulk, Target: source, Connections: 4, Count: count, Verify: true, Direction: "receive"})
			if got := res.Stats.ReceivedBytes; count == 0 && got != size || got < count {
				b.t.Errorf("%d bytes came of %d", got, count)
			}
		}
		echo := b.serve(func(c *net.TCPConn) { _, _ = io.Copy(c, c) })
		for _, cfg := range []Config{{Count: size}, {Duration: 100 * time.Millisecond}} {
			cfg.Kind, cfg.Target, cfg.Connections, cfg.Verify, cfg.Direction = Bulk, echo, 4, true, "both"
			res = b.want(side, cfg)
			if res.Stats.SentBytes != res.Stats.ReceivedBytes {
				b.t.Errorf("%d bytes were sent, %d came back", res.Stats.SentBytes, res.Stats.ReceivedBytes)
			}
		}
	})
}

func TestHoldAgainstKernel(t *testing.T) {
	eachSide(t, func(b *bed, side Side) {
		to := b.serve(drained)
		done := make(chan *Result)
		ctx, cancel := context.WithCancel(b.t.Context())
		go func() {
			res, err := Run(ctx, Config{Kind: Hold, Target: to, Connections: 300, Duration: time.Hour}, side, nil)
			if err != nil {
				b.t.Error(err)
			}
			done <- res
		}()
		b.eventually("all connections", func() bool { return b.conns.Load() == 300 })
		cancel() // as Ctrl-C does
		if res := <-done; res == nil || res.Stats.Responses > 300 || res.Stats.Failed() > 0 || !res.Interrupted || res.Latency.TotalCount() < 299 {
			b.t.Errorf("%+v", res)
		}
		b.eventually("their end", func() bool { return b.conns.Load() == 0 })
	})
}

func TestHTTPAgainstKernel(t *testing.T) {
	eachSide(t, func(b *bed, side Side) {
		var l net.Listener
		err := b.Peer.Do(func() (err error) {
			l, err = net.Listen("tcp4", netip.AddrPortFrom(b.PeerAddr, 0).String())
			return err
		})
		if err != nil {
			b.t.Fatal(err)
		}
		mux := http.NewServeMux()
		mux.HandleFunc("/plain", func(w http.ResponseWriter, _ *http.Request) { b.asked.Add(1); fmt.Fprint(w, "Hello, world!") })
		mux.HandleFunc("/chunks", func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				fmt.Fprint(w, strings.Repeat("x", 100))
				w.(http.Flusher).Flush()
			}
		})
		mux.HandleFunc("/close", func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") })
		server := &http.Server{Handler: mux}
		go func() { _ = server.Serve(l) }()
		b.t.Cleanup(func() { server.Close() })
		to := l.Addr().(*net.TCPAddr).AddrPort()
		for path, length := range map[string]int64{"/plain": 13, "/chunks": 10000, "/close": 0} {
			for _, expect := range []int64{length, -1} {
				b.want(side, Config{Kind: HTTP, Target: to, Path: path, Connections: 8, Count: 400, Length: expect})
			}
		}
		b.want(side, Config{Kind: HTTP, Target: to, Path: "/none", Connections: 8, Count: 400, Status: 404, Length: -1})
		res, err := Run(b.t.Context(), Config{Kind: HTTP, Target: to, Path: "/plain", Connections: 8, Count: 400, Length: 12}, side, nil)
		if err != nil || res.Stats.Errors[BadLength] != 400 || res.Err() == nil {
			b.t.Errorf("a wrong length: %v, %+v", err, res.Stats)
		}
	})
}

func TestUDPAgainstKernel(t *testing.T) {
	eachSide(t, func(b *bed, side Side) {
		var u *net.UDPConn
		err := b.Peer.Do(func() (err error) {
			u, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(b.PeerAddr, 0)))
			return err
		})
		if err != nil {
			b.t.Fatal(err)
		}
		defer u.Close()
		var came, dropped atomic.Uint64
		go func() {
			buf := make([]byte, 65536)
			for {
				n, from, err := u.ReadFromUDPAddrPort(buf)
				if err != nil {
					return
				}
				if came.Add(1)%100 == 0 {
					dropped.Add(1)
					continue
				}
				_, _ = u.WriteToUDPAddrPort(buf[:n], from)
			}
		}()
		to := u.LocalAddr().(*net.UDPAddr).AddrPort()
		for _, cfg := range []Config{{Send: 1}, {Send: 64, Depth: 8}, {Send: 1400, Depth: 2, Rate: 20000}} {
			cfg.Kind, cfg.Target, cfg.Connections, cfg.Verify, cfg.Count = UDP, to, 4, true, 2000
			came.Store(0)
			dropped.Store(0)
			res, err := Run(b.t.Context(), cfg, side, nil)
			if err != nil {
				b.t.Fatal(err)
			}
			s := &res.Stats
			// What is lost elsewhere is not dropped here; what is late is neither.
			if lost := s.Errors[TimedOut]; lost < dropped.Load() || lost != s.Failed() || s.Requests != 2000 || s.Responses+lost != 2000 ||
				s.Unmatched > lost-dropped.Load() {
				b.t.Errorf("%v: %+v; %d came and %d were dropped", &cfg, s, came.Load(), dropped.Load())
			}
		}
	})
}

// TestRefused: nobody listens there; and nobody is there at all.
func TestRefused(t *testing.T) {
	eachSide(t, func(b *bed, side Side) {
		to := netip.AddrPortFrom(b.PeerAddr, 1)
		res, err := Run(b.t.Context(), Config{Kind: RR, Target: to, Connections: 4}, side, nil)
		if err != ErrNotOpened || res.Stats.ConnErrors[Refused] < 4 || res.Stats.Requests > 0 {
			b.t.Errorf("%v %+v", err, res)
		}
		res, err = Run(b.t.Context(), Config{Kind: Connect, Target: to, Connections: 4, Count: 100}, side, nil)
		if err != nil || res.Stats.Errors[Refused] != 100 {
			b.t.Errorf("%v %+v", err, res)
		}
		res, err = Run(b.t.Context(), Config{Kind: UDP, Target: to, Verify: true, Connections: 2, Count: 10, Timeout: 200 * time.Millisecond}, side, nil)
		if err != nil || res.Stats.Errors[Refused] == 0 || res.Stats.Errors[Refused]+res.Stats.Errors[TimedOut] != 10 {
			b.t.Errorf("%v %+v", err, res)
		}
		if _, err := Run(b.t.Context(), Config{Kind: Hold, Target: to, Connections: 1 << 20}, side, nil); err == nil || !strings.Contains(err.Error(), "source addresses") {
			b.t.Errorf("more connections than ports: %v", err)
		}
	})
}

// TestSilence: a server that takes requests and does not answer. Each is a timeout.
func TestSilence(t *testing.T) {
	eachSide(t, func(b *bed, side Side) {
		to := b.serve(drained)
		res, err := Run(b.t.Context(), Config{Kind: RR, Target: to, Verify: true, Connections: 3, Depth: 2, Count: 6, Timeout: 100 * time.Millisecond}, side, nil)
		if err != nil || res.Stats.Errors[TimedOut] != 6 || res.Stats.Requests != 6 || res.Err() == nil {
			b.t.Errorf("%v %+v", err, res.Stats)
		}
		b.eventually("the end of the server's connections", func() bool { return b.conns.Load() == 0 })
	})
}

// TestSteadyAllocations: requests on real transports allocate nothing. The server is in this process, and does not either. The
// seconds that pass do, in the runtime and for the live line, so it goes on until there were far more requests than allocations,
// which never comes when requests allocate.
func TestSteadyAllocations(t *testing.T) {
	eachSide(t, func(b *bed, side Side) {
		to := b.serve(b.answer(10, 10))
		ctx, cancel := context.WithCancel(b.t.Context())
		defer cancel()
		var before, now runtime.MemStats
		var first, requests uint64
		few := false
		res, err := Run(ctx, Config{Kind: RR, Target: to, Verify: true, Connections: 8, Send: 10, Duration: time.Minute}, side, func(l Live) {
			if before.Mallocs == 0 {
				runtime.ReadMemStats(&before)
				first = l.Stats.Responses
				return
			}
			runtime.ReadMemStats(&now)
			requests = l.Stats.Responses - first
			if few = requests > 5000 && requests > 5*(now.Mallocs-before.Mallocs); few {
				cancel()
			}
		})
		if err != nil || res.Stats.Failed() > 0 {
			b.t.Fatalf("%v %+v", err, res)
		}
		if !few {
			b.t.Errorf("%d allocations in %d requests", now.Mallocs-before.Mallocs, requests)
		}
		b.eventually("the end of the server's connections", func() bool { return b.conns.Load() == 0 })
	})
}

// TestEngineEnds: an engine that goes away ends the load, which says so.
func TestEngineEnds(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	for _, how := range []string{"closed", "device gone"} {
		lab, err := netlab.New(netlab.Options{})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { lab.Close() })
		st, err := xdpd.Open(xdpd.Config{
			Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
		})
		if err != nil {
			t.Fatal(err)
		}
		defer st.Close()
		e, err := NewEngine(st, lab.EngineDev, []netip.Addr{lab.EngineAddr})
		if err != nil {
			t.Fatal(err)
		}
		b := &bed{Lab: lab, t: t}
		to := b.serve(b.answer(1, 1))
		done := make(chan error)
		go func() {
			_, err := Run(t.Context(), Config{Kind: RR, Target: to, Connections: 5, Duration: time.Hour, Timeout: 200 * time.Millisecond}, e, nil)
			done <- err
		}()
		b.eventually("requests", func() bool { return b.asked.Load() > 100 })
		if how == "closed" {
			st.Close()
		} else if out, err := lab.Engine.Run(t.Context(), "ip", "link", "del", lab.EngineDev); err != nil {
			t.Fatalf("%v %s", err, out)
		}
		if err := <-done; err == nil || errors.Is(err, ErrEnded) != (how == "closed") {
			t.Errorf("%s: %v", how, err)
		}
	}
}
