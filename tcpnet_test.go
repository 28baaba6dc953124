package xdpd_test

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/nettest"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/sockets"
)

// pipes is what nettest wants: connections made by r, with the dialled end first, or last.
func (r *role) pipes(reversed bool) nettest.MakePipe {
	return func() (net.Conn, net.Conn, func(), error) {
		ln, err := r.server.listen(netip.AddrPortFrom(r.server.addr, 0).String())
		if err != nil {
			return nil, nil, nil, err
		}
		c, s, err := connect(r.client, ln)
		if err != nil {
			ln.Close()
			return nil, nil, nil, err
		}
		stop := func() {
			c.Close()
			s.Close()
			ln.Close()
		}
		if reversed {
			c, s = s, c
		}
		return c, s, stop, nil
	}
}

func (r *role) nettest(t *testing.T) {
	t.Run(r.name, func(t *testing.T) { nettest.TestConn(t, r.pipes(false)) })
	t.Run(r.name+"/reversed", func(t *testing.T) { nettest.TestConn(t, r.pipes(true)) })
}

// TestNettest is the test of golang.org/x/net for every implementation of net.Conn, against the kernel's.
func TestNettest(t *testing.T) {
	_, _, roles := bothWays(t, netlab.Options{})
	for _, r := range roles {
		r.nettest(t)
	}
}

// twoEngines is an engine at each end of the wire.
func twoEngines(t *testing.T) role {
	t.Helper()
	lab, stack := engine(t, netlab.Options{})
	addr := lab.PeerAddr.Next().Next()
	other, err := xdpd.Open(xdpd.Config{
		Interface: lab.PeerDev, NetNS: lab.Peer.Path(), Ledger: true, Addrs: []netip.Prefix{netip.PrefixFrom(addr, 24)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		quiet(t, other)
		if err := other.Close(); err != nil {
			t.Error(err)
		}
	})
	return role{"engines", engineSide(stack, lab.EngineAddr), engineSide(other, addr)}
}

func TestNettestEngines(t *testing.T) {
	r := twoEngines(t)
	r.nettest(t)
}

// TestNettestQueues has the peer's answers come in on any of several queues.
func TestNettestQueues(t *testing.T) {
	_, _, roles := bothWays(t, netlab.Options{Queues: 2})
	for _, r := range roles {
		t.Run(r.name, func(t *testing.T) { nettest.TestConn(t, r.pipes(false)) })
	}
}

// TestNettestSpread has one reactor do the handshakes, and the others the rest.
func TestNettestSpread(t *testing.T) {
	lab := newLab(t, netlab.Options{Queues: 3})
	cfg := engineConfig(lab)
	cfg.Spread = reactor.RoundRobin
	stack := openStack(t, lab, cfg)
	r := role{"accept", kernelSide(lab.Peer, lab.PeerAddr), engineSide(stack, lab.EngineAddr)}
	nettest.TestConn(t, r.pipes(false))
	queues := getStats(t, stack).Queues
	if n := queues[0].Host.Stats[sockets.TCPAccepted]; n != 0 || counted(t, stack, sockets.TCPAccepted) == 0 {
		t.Errorf("the main reactor accepted %d connections, all of them %d", n, counted(t, stack, sockets.TCPAccepted))
	}
}

func TestNettestShare(t *testing.T) {
	lab, stack := shared(t)
	us, them := engineSide(stack, lab.EngineAddr), kernelSide(lab.Peer, lab.PeerAddr)
	for _, r := range []role{{"accept", them, us}, {"dial", us, them}} {
		t.Run(r.name, func(t *testing.T) { nettest.TestConn(t, r.pipes(false)) })
	}
}

// TestTCPListener is to listeners what nettest is to connections.
func TestTCPListener(t *testing.T) {
	for _, c := range []struct {
		queues int
		spread reactor.Spread
		client bool
	}{{1, nil, false}, {2, nil, false}, {1, reactor.RoundRobin, false}, {3, reactor.LeastConns, false}, {1, nil, true}} {
		t.Run(fmt.Sprint(c.queues, " main=", c.spread != nil, " client=", c.client), func(t *testing.T) {
			lab := newLab(t, netlab.Options{Queues: c.queues})
			cfg := engineConfig(lab)
			cfg.Spread = c.spread
			stack := openStack(t, lab, cfg)
			f := netFace(stack)
			if c.client {
				_, path := daemon(t, stack, nil)
				f = client(t, path)
			}
			us, them := engineSide(f, lab.EngineAddr), kernelSide(lab.Peer, lab.PeerAddr)
			ln := us.open(t).(interface {
				net.Listener
				SetDeadline(at time.Time) error
			})
			if ln.Addr().Network() != "tcp" || ln.Addr().(*net.TCPAddr).Port == 0 {
				t.Errorf("Addr is %v", ln.Addr())
			}
			if _, err := f.Listen("tcp", ln.Addr().String()); !errors.Is(err, unix.EADDRINUSE) {
				t.Errorf("a second listener: %v", err)
			}

			ln.SetDeadline(time.Unix(1, 0))
			if _, err := ln.Accept(); !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("Accept past the deadline: %v", err)
			}
			ln.SetDeadline(time.Time{})
			testAcceptMany(t, them, ln)

			const waiters = 3
			results := make(chan error, waiters)
			for range waiters {
				go func() {
					_, err := ln.Accept()
					results <- err
				}()
			}
			if err := ln.Close(); err != nil {
				t.Error(err)
			}
			for range waiters {
				if err := await(t, results, "the end of an Accept"); !errors.Is(err, net.ErrClosed) {
					t.Errorf("Accept: %v, want %v", err, net.ErrClosed)
				}
			}
			if err := ln.Close(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("second Close: %v, want %v", err, net.ErrClosed)
			}
			if _, err := them.dial(t.Context(), "tcp", ln.Addr().String()); !errors.Is(err, unix.ECONNREFUSED) {
				t.Errorf("connect after Close: %v, want %v", err, unix.ECONNREFUSED)
			}
			again, err := us.listen(ln.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			again.Close()
		})
	}
}

// testAcceptMany has several goroutines accept what several others open; every connection comes once.
func testAcceptMany(t *testing.T, from side, ln net.Listener) {
	t.Helper()
	const n, each = 4, 25
	accepted := make(chan string, n*each)
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			for range each {
				c, err := ln.Accept()
				if err != nil {
					t.Error(err)
					return
				}
				accepted <- c.RemoteAddr().String()
				c.Close()
			}
		})
	}
	dialled := make(chan string, n*each)
	for range n {
		all.Go(func() {
			for range each {
				c, err := from.dial(t.Context(), "tcp", ln.Addr().String())
				if err != nil {
					t.Error(err)
					return
				}
				dialled <- c.LocalAddr().String()
				c.Close()
			}
		})
	}
	all.Wait()
	seen := make(map[string]int)
	for range len(accepted) {
		seen[<-accepted]++
	}
	for range len(dialled) {
		seen[<-dialled]--
	}
	for a, k := range seen {
		if k != 0 {
			t.Errorf("of the connections of %s, %d more were accepted than dialled", a, k)
		}
	}
}
