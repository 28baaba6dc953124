package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// eventually waits for what must come; its limit only turns a hang into a failure.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !done(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never came: %s", what)
		}
	}
}

// tcpServer is a backend that serves each connection with f.
type tcpServer struct {
	net.Listener
	addr  netip.AddrPort
	taken atomic.Int64
	work  sync.WaitGroup
}

func listenTCP(t *testing.T, address string, f func(*net.TCPConn)) *tcpServer {
	t.Helper()
	l, err := net.Listen("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &tcpServer{Listener: l, addr: l.Addr().(*net.TCPAddr).AddrPort()}
	s.work.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.taken.Add(1)
			s.work.Go(func() {
				defer c.Close()
				f(c.(*net.TCPConn))
			})
		}
	})
	t.Cleanup(func() { l.Close(); s.work.Wait() })
	return s
}

// echo answers until the peer has sent all, and then says so itself.
func echo(c *net.TCPConn) { _, _ = io.Copy(c, c) }

// unused is an address that refuses.
func unused(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// newProxy makes a proxy that nothing looks after: tests call its checks and sweeps.
func newProxy(t *testing.T, cfg Config) *Proxy {
	t.Helper()
	if cfg.Dialer == nil {
		cfg.Dialer = &net.Dialer{}
	}
	p, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// serveTCP is a proxy in front of backends, until the test ends.
func serveTCP(t *testing.T, cfg Config, backends ...netip.AddrPort) (*Proxy, string) {
	t.Helper()
	cfg.Network, cfg.Backends = "tcp", backends
	p := newProxy(t, cfg)
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- p.ServeTCP(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = p.Shutdown(ctx)
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("ServeTCP ends with %v", err)
		}
	})
	return p, l.Addr().String()
}

func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	c, err := net.Dial("tcp4", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// exchange sends b and reads as much.
func exchange(t *testing.T, c net.Conn, b []byte) []byte {
	t.Helper()
	go c.Write(b)
	got := make([]byte, len(b))
	if _, err := io.ReadFull(c, got); err != nil {
		t.Fatal(err)
	}
	return got
}

// refused connects and sees the reset, which may come before the connection is told to be there.
func refused(t *testing.T, address string) {
	t.Helper()
	c, err := net.Dial("tcp4", address)
	if err == nil {
		defer c.Close()
		_, err = io.Copy(io.Discard, c)
	}
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the client sees %v, want a reset", err)
	}
}

// wantReset reads until the reset.
func wantReset(t *testing.T, c net.Conn) {
	t.Helper()
	if _, err := io.Copy(io.Discard, c); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the peer sees %v, want a reset", err)
	}
}

func counters(p *Proxy) Counters {
	c, _ := p.Stats()
	return c
}

func states(p *Proxy) (list []string) {
	_, backends := p.Stats()
	for _, b := range backends {
		list = append(list, b.State)
	}
	return list
}

// blob is n bytes that are not alike.
func blob(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8)
	}
	return b
}

// TestTCPHalfClose: each side's end reaches the other, and the other direction goes on.
func TestTCPHalfClose(t *testing.T) {
	answer := blob(3 << 20)
	asked := make(chan []byte, 1)
	s := listenTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
		all, _ := io.ReadAll(c) // ends with the client's half
		asked <- all
		_, _ = c.Write(answer)
	})
	p, at := serveTCP(t, Config{}, s.addr)
	c := dial(t, at)
	question := blob(1 << 20)
	if _, err := c.Write(question); err != nil {
		t.Fatal(err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(c)
	if err != nil || !bytes.Equal(got, answer) || !bytes.Equal(<-asked, question) {
		t.Errorf("%d bytes came back of %d, %v", len(got), len(answer), err)
	}
	eventually(t, "the end of the flow", func() bool { return flowsOf(p) == 0 })
	_, backends := p.Stats()
	n := backends[0].Counters
	if n.BytesSent != 1<<20 || n.BytesReceived != 3<<20 || n.Flows != 1 || backends[0].Open != 0 || counters(p).Broken != 0 {
		t.Errorf("counted %+v, %+v", n, counters(p))
	}
}

// TestTCPBackendEndsFirst is the other half.
func TestTCPBackendEndsFirst(t *testing.T) {
	got := make(chan []byte, 1)
	s := listenTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
		_, _ = c.Write([]byte("bye"))
		_ = c.CloseWrite()
		all, _ := io.ReadAll(c)
		got <- all
	})
	_, at := serveTCP(t, Config{}, s.addr)
	c := dial(t, at)
	if all, err := io.ReadAll(c); string(all) != "bye" || err != nil {
		t.Errorf("the client reads %q, %v", all, err)
	}
	_, _ = c.Write([]byte("still here"))
	c.Close()
	if all := <-got; string(all) != "still here" {
		t.Errorf("the backend reads %q", all)
	}
}

func flowsOf(p *Proxy) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.flows)
}

// TestTCPReset: what breaks on one side is no end on the other.
func TestTCPReset(t *testing.T) {
	t.Run("backend", func(t *testing.T) {
		s := listenTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, _ = io.ReadFull(c, make([]byte, 1))
			_ = c.SetLinger(0)
		})
		p, at := serveTCP(t, Config{}, s.addr)
		c := dial(t, at)
		_, _ = c.Write([]byte("x"))
		wantReset(t, c)
		eventually(t, "the count", func() bool { return counters(p).Broken == 1 })
	})
	t.Run("client", func(t *testing.T) {
		seen := make(chan error, 1)
		s := listenTCP(t, "127.0.0.1:0", func(c *net.TCPConn) {
			_, err := io.Copy(c, c)
			seen <- err
		})
		_, at := serveTCP(t, Config{}, s.addr)
		c := dial(t, at)
		exchange(t, c, []byte("x"))
		_ = c.SetLinger(0)
		c.Close()
		if err := <-seen; !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the backend sees %v", err)
		}
	})
}

// TestTCPRefused: a backend that refuses costs its clients nothing while there is another.
func TestTCPRefused(t *testing.T) {
	s := listenTCP(t, "127.0.0.1:0", echo)
	p, at := serveTCP(t, Config{RoundRobin: true, Fall: 3}, unused(t), s.addr)
	p.judge(p.backends[0], answers, nil) // it was well before
	for range 8 {
		c := dial(t, at)
		if got := exchange(t, c, []byte("hello")); string(got) != "hello" {
			t.Errorf("it answers %q", got)
		}
		c.Close()
		eventually(t, "the end of the flow", func() bool { return flowsOf(p) == 0 })
	}
	_, backends := p.Stats()
	if b := backends[0]; b.State != "down" || b.Reason != "connection refused" || b.Counters.Failed != 3 || b.Counters.Downs != 1 {
		t.Errorf("after 3 refusals the backend is %+v", b)
	}
	if s.taken.Load() != 8 || counters(p).NoBackend != 0 {
		t.Errorf("the good backend took %d of 8, %+v", s.taken.Load(), counters(p))
	}
}

// TestTCPAllDown: nobody waits when there is nobody to wait for.
func TestTCPAllDown(t *testing.T) {
	p, at := serveTCP(t, Config{}, unused(t), unused(t))
	for i := range 3 {
		refused(t, at)
		eventually(t, "the count", func() bool { return counters(p).NoBackend == uint64(i+1) })
	}
	_, backends := p.Stats()
	for _, b := range backends {
		if b.State != "down" || b.Counters.Failed != 1 { // once down, it is not asked any more
			t.Errorf("%+v", b)
		}
	}
}

// TestTCPFlowLimit: one too many is reset, and one that ends makes room.
func TestTCPFlowLimit(t *testing.T) {
	s := listenTCP(t, "127.0.0.1:0", echo)
	p, at := serveTCP(t, Config{Flows: 2}, s.addr)
	first, second := dial(t, at), dial(t, at)
	exchange(t, first, []byte("1"))
	exchange(t, second, []byte("2"))
	refused(t, at)
	if n := counters(p); n.FullTable != 1 || n.Flows != 2 {
		t.Errorf("counted %+v", n)
	}
	first.Close()
	eventually(t, "room", func() bool { return flowsOf(p) == 1 })
	exchange(t, dial(t, at), []byte("3"))
}

// TestTCPBalance opens connections and looks who has them.
func TestTCPBalance(t *testing.T) {
	for _, robin := range []bool{false, true} {
		a, b := listenTCP(t, "127.0.0.1:0", echo), listenTCP(t, "127.0.0.1:0", echo)
		p, at := serveTCP(t, Config{RoundRobin: robin}, a.addr, b.addr)
		open := func(n int) (list []*net.TCPConn) {
			for range n {
				c := dial(t, at)
				exchange(t, c, []byte("x"))
				list = append(list, c)
			}
			return list
		}
		list := open(6)
		if a.taken.Load() != 3 || b.taken.Load() != 3 {
			t.Errorf("round robin %v: %d and %d of 6", robin, a.taken.Load(), b.taken.Load())
		}
		// Those of one backend end: the one with the fewest gets what comes next, or they go on taking turns.
		for i := 0; i < 6; i += 2 {
			list[i].Close()
		}
		eventually(t, "the ends", func() bool { return flowsOf(p) == 3 })
		open(2)
		wantA := int64(5)
		if robin {
			wantA = 4
		}
		if a.taken.Load() != wantA {
			t.Errorf("round robin %v: the first backend then has %d of 8, want %d", robin, a.taken.Load(), wantA)
		}
	}
}

// TestTCPDrain: a drained backend keeps what it has.
func TestTCPDrain(t *testing.T) {
	a, b := listenTCP(t, "127.0.0.1:0", echo), listenTCP(t, "127.0.0.1:0", echo)
	p, at := serveTCP(t, Config{}, a.addr, b.addr)
	old := dial(t, at)
	exchange(t, old, []byte("x"))
	if err := p.Drain(a.addr, true); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		exchange(t, dial(t, at), []byte("y"))
	}
	exchange(t, old, []byte("z"))
	if a.taken.Load() != 1 || b.taken.Load() != 3 || states(p)[0] != "drained" {
		t.Errorf("%d and %d, %v", a.taken.Load(), b.taken.Load(), states(p))
	}
	if err := p.Drain(a.addr, false); err != nil {
		t.Fatal(err)
	}
	exchange(t, dial(t, at), []byte("y"))
	if a.taken.Load() != 2 {
		t.Error("put back, it gets nothing")
	}
	if err := p.Drain(netip.MustParseAddrPort("192.0.2.1:1"), true); err == nil {
		t.Error("a backend that is not there is drained")
	}
}

// TestTCPIdle: a flow that moves stays, one that does not goes, at the very end of its time.
func TestTCPIdle(t *testing.T) {
	s := listenTCP(t, "127.0.0.1:0", echo)
	p, at := serveTCP(t, Config{Idle: time.Hour}, s.addr)
	c := dial(t, at)
	exchange(t, c, []byte("x"))
	eventually(t, "the copy's end", func() bool { return p.backends[0].n.received.Load() == 1 })
	p.mu.Lock()
	last := p.flowList()[0].idleSince()
	p.mu.Unlock()
	p.sweep(last + time.Hour/2)
	exchange(t, c, []byte("x"))
	p.sweep(p.since() + time.Hour)
	wantReset(t, c)
	if n := counters(p); n.Idle != 1 || n.Broken != 0 {
		t.Errorf("counted %+v", n)
	}
}

// TestTCPShutdown waits for those who are served, and not for ever.
func TestTCPShutdown(t *testing.T) {
	for _, patient := range []bool{true, false} {
		s := listenTCP(t, "127.0.0.1:0", echo)
		p, at := serveTCP(t, Config{}, s.addr)
		c := dial(t, at)
		exchange(t, c, []byte("x"))
		ctx, cancel := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- p.Shutdown(ctx) }()
		eventually(t, "the listener's end", func() bool {
			late, err := net.Dial("tcp4", at)
			if err == nil {
				late.Close()
			}
			return err != nil
		})
		exchange(t, c, []byte("still served"))
		if patient {
			c.Close()
			if err := <-ended; err != nil {
				t.Errorf("Shutdown gives %v", err)
			}
		} else {
			cancel()
			if err := <-ended; !errors.Is(err, context.Canceled) {
				t.Errorf("Shutdown gives %v", err)
			}
			wantReset(t, c)
		}
		cancel()
	}
}

// pipes dials in memory.
type pipes struct {
	mu     sync.Mutex
	dial   func() (net.Conn, error)
	dialed int
}

func (d *pipes) DialContext(context.Context, string, string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dialed++
	return d.dial()
}

func (d *pipes) set(dial func() (net.Conn, error)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dial = dial
}

// TestTCPBounded has a backend write to a client that never reads: no more than the buffer is taken from it.
func TestTCPBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ours, theirs := net.Pipe()
		client, front := net.Pipe()
		p := newProxy(t, Config{
			Network: "tcp", Backends: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")},
			Dialer: &pipes{dial: func() (net.Conn, error) { return ours, nil }},
		})
		f := &tcpFlow{p: p, client: front}
		if !p.admit(f) {
			t.Fatal("refused")
		}
		go f.serve()
		var written atomic.Int64
		go func() {
			for {
				n, err := theirs.Write(make([]byte, 1000))
				written.Add(int64(n))
				if err != nil {
					return
				}
			}
		}()
		synctest.Wait() // nothing moves any more
		if n := written.Load(); n == 0 || n > tcpBuffer {
			t.Errorf("%d bytes were taken for a client that does not read, the buffer has %d", n, tcpBuffer)
		}
		client.Close()
		theirs.Close()
		p.work.Wait()
	})
}

func TestConfigErrors(t *testing.T) {
	for _, cfg := range []Config{
		{Network: "sctp", Backends: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}},
		{Network: "tcp"},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%+v is taken", cfg)
		}
	}
}
