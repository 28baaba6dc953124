package proxy

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// TestCheckTCP has a backend die and return: it goes down at the third bad check, and up at the second good one.
func TestCheckTCP(t *testing.T) {
	s := listenTCP(t, "127.0.0.1:0", echo)
	stays := listenTCP(t, "127.0.0.1:0", echo)
	p, at := serveTCP(t, Config{Rise: 2, Fall: 3}, s.addr, stays.addr)
	look := func(times int, want string) {
		t.Helper()
		for range times {
			for _, b := range p.backends {
				p.check(t.Context(), b)
			}
		}
		if got := states(p); got[0] != want || got[1] != "up" {
			t.Errorf("after %d checks it is %v, want %s", times, got, want)
		}
	}
	look(2, "up")
	// A connection that nobody accepted goes with its listener, and is not counted.
	eventually(t, "the first checks' connections", func() bool { return s.taken.Load() == 2 })
	s.Close()
	s.work.Wait()
	look(2, "up")
	look(1, "down")
	_, backends := p.Stats()
	if b := backends[0]; b.Reason != "connection refused" || b.Counters.BadChecks != 3 || b.Counters.Checks != 5 || b.Counters.Downs != 1 {
		t.Errorf("%+v", b)
	}
	for range 4 {
		exchange(t, dial(t, at), []byte("x"))
	}
	if n := s.taken.Load(); n != 2 { // its checks
		t.Errorf("the dead backend took %d", n)
	}
	again := listenTCP(t, s.addr.String(), echo)
	look(1, "down")
	look(1, "up")
	exchange(t, dial(t, at), []byte("x")) // it has the fewest
	if n := again.taken.Load(); n != 3 {
		t.Errorf("the backend that returned took %d, want 2 checks and 1 connection", n)
	}
}

// TestCheckFlapping: what is good and bad in turns is left as it is.
func TestCheckFlapping(t *testing.T) {
	p := newProxy(t, Config{Network: "tcp", Backends: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}})
	b := p.backends[0]
	p.judge(b, answers, nil)
	for range 10 {
		p.judge(b, fails, errors.New("x"))
		p.judge(b, fails, errors.New("x"))
		p.judge(b, answers, nil)
	}
	if b.health.down {
		t.Error("it was taken down without three in a row")
	}
	for range 3 {
		p.judge(b, fails, errors.New("x"))
	}
	for range 10 {
		p.judge(b, answers, nil)
		p.judge(b, fails, errors.New("x"))
	}
	if !b.health.down || b.n.downs.Load() != 1 {
		t.Errorf("it was brought up without two in a row: %+v", b.health)
	}
}

// TestRunChecks runs the checks by the clock.
func TestRunChecks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refuse := func() (net.Conn, error) { return nil, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED} }
		accept := func() (net.Conn, error) {
			a, b := net.Pipe()
			b.Close()
			return a, nil
		}
		d := &pipes{dial: refuse}
		p := newProxy(t, Config{
			Network: "tcp", Backends: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}, Dialer: d, Check: time.Second,
		})
		done := make(chan struct{})
		go func() { p.Run(); close(done) }()
		at := func(after time.Duration, want string) {
			t.Helper()
			time.Sleep(after)
			synctest.Wait()
			if got := states(p); got[0] != want {
				t.Errorf("it is %s, want %s", got[0], want)
			}
		}
		at(0, "down") // the first look decides
		d.set(accept)
		at(3*time.Second, "up")
		d.set(refuse)
		at(5*time.Second, "down")
		d.set(accept)
		at(3*time.Second, "up")
		if d.dialed < 8 || d.dialed > 20 {
			t.Errorf("%d checks in 11 seconds", d.dialed)
		}
		if err := p.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		<-done
	})
}

// TestLocalFailure: that we have no port, no memory or no descriptor left says nothing about a backend.
func TestLocalFailure(t *testing.T) {
	d := &pipes{}
	p := newProxy(t, Config{
		Network: "tcp", Backends: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:1")}, Dialer: d,
	})
	b := p.backends[0]
	p.judge(b, answers, nil)
	for _, errno := range []syscall.Errno{
		syscall.EADDRNOTAVAIL, syscall.EADDRINUSE, syscall.EAGAIN, syscall.ENOBUFS, syscall.ENOMEM, syscall.EMFILE, syscall.ENFILE,
	} {
		d.set(func() (net.Conn, error) { return nil, &net.OpError{Op: "dial", Err: errno} })
		for range 5 {
			p.check(t.Context(), b)
			f := &tcpFlow{p: p, client: &net.TCPConn{}}
			if picked, _ := f.dial(); picked != nil {
				t.Fatalf("%v connects", errno)
			}
		}
		if b.health.down || b.health.bad > 0 {
			t.Errorf("%v: %+v", errno, b.health)
		}
	}
	if n := b.n.failed.Load(); n != 35 || b.n.badChecks.Load() != 35 || b.open != 0 {
		t.Errorf("%d connections and %d checks are counted as failed, %d open", n, b.n.badChecks.Load(), b.open)
	}
}

// TestReason: a person is told the cause, not the call.
func TestReason(t *testing.T) {
	for want, err := range map[string]error{
		"":                   nil,
		"connection refused": &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED},
		"no route to host":   &net.OpError{Op: "read", Err: syscall.EHOSTUNREACH},
		"no answer":          &net.OpError{Op: "dial", Err: timeoutError()},
		"strange":            errors.New("strange"),
	} {
		if got := reason(err); got != want {
			t.Errorf("%v is told as %q, want %q", err, got, want)
		}
	}
}

// timeoutError is what a read past its deadline gives.
func timeoutError() error {
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	_ = a.SetReadDeadline(time.Unix(1, 0))
	_, err := a.Read(make([]byte, 1))
	return err
}

// TestPickOrder: with nothing to choose by, backends take turns; without any left there is none.
func TestPickOrder(t *testing.T) {
	var addrs []netip.AddrPort
	for i := range 3 {
		addrs = append(addrs, netip.AddrPortFrom(netip.MustParseAddr("192.0.2.1"), uint16(i+1)))
	}
	for _, robin := range []bool{false, true} {
		p := newProxy(t, Config{Network: "tcp", Backends: addrs, RoundRobin: robin})
		var order []uint16
		for range 6 {
			b := p.pick(nil)
			order = append(order, b.addr.Port())
			p.unpick(b)
		}
		if !slices.Equal(order, []uint16{1, 2, 3, 1, 2, 3}) {
			t.Errorf("round robin %v: the order is %v", robin, order)
		}
		tried := map[*backend]bool{p.backends[0]: true, p.backends[1]: true}
		if b := p.pick(tried); b != p.backends[2] {
			t.Errorf("round robin %v: with one left it takes %v", robin, b)
		}
		tried[p.backends[2]] = true
		if b := p.pick(tried); b != nil {
			t.Errorf("round robin %v: with none left it takes %v", robin, b.addr)
		}
	}
}
