package xdpd_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/sockets"
)

// echoTCP is an echo service of the peer's kernel. It closes when its client has closed its direction.
func echoTCP(t *testing.T, lab *netlab.Lab) string {
	t.Helper()
	ln := kernelSide(lab.Peer, lab.PeerAddr).open(t)
	serve(t, ln, func(c net.Conn) {
		_, _ = io.Copy(c, c) // until the client goes away
	})
	return ln.Addr().String()
}

func dial(t *testing.T, stack *xdpd.Stack, network, address string) *xdpd.TCPConn {
	t.Helper()
	return dialOn(t, stack, network, address).(*xdpd.TCPConn)
}

func dialOn(t *testing.T, f netFace, network, address string) halfConn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c, err := f.DialContext(ctx, network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	return c.(halfConn)
}

func TestDial(t *testing.T) { eachFace(t, netlab.Options{}, testDial) }

func testDial(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, f netFace) {
	address := echoTCP(t, lab)
	for _, network := range []string{"tcp", "tcp4"} {
		c := dialOn(t, f, network, address)
		if c.RemoteAddr().String() != address || c.RemoteAddr().Network() != "tcp" {
			t.Errorf("RemoteAddr is %v, not %s", c.RemoteAddr(), address)
		}
		local := c.LocalAddr().(*net.TCPAddr).AddrPort()
		if local.Addr() != lab.EngineAddr || local.Port() < 1024 {
			t.Errorf("LocalAddr is %v", local)
		}
		ask(t, c, "hello")
		if err := c.CloseWrite(); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(c); len(b) != 0 || err != nil {
			t.Errorf("behind the end: %q, %v", b, err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}
	u, err := f.Dial("udp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, is := u.(net.PacketConn); !is || u.RemoteAddr().String() != address {
		t.Errorf("Dial udp: %T to %v", u, u.RemoteAddr())
	}
}

// TestDialBulk moves more than any window in both directions.
func TestDialBulk(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			eachFace(t, netlab.Options{Queues: queues}, testDialBulk)
		})
	}
}

func testDialBulk(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, f netFace) {
	address := echoTCP(t, lab)
	var all sync.WaitGroup
	for i := range 4 {
		c := dialOn(t, f, "tcp", address)
		all.Go(func() {
			want := random(uint64(i), 2<<20)
			sent := blocked(func() error {
				_, err := c.Write(want)
				return err
			})
			err := expect(c, want)
			if err = errors.Join(err, <-sent); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
}

// TestDialQueues: the answer comes in on the queue that the device chooses, also a refusal.
func TestDialQueues(t *testing.T) {
	for _, queues := range []int{2, 4} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			lab, stack := engine(t, netlab.Options{Queues: queues})
			address := echoTCP(t, lab)
			used := make([]int, queues)
			for range 32 * queues {
				c := dial(t, stack, "tcp", address)
				ask(t, c, "which queue?")
				for i, q := range getStats(t, stack).Queues {
					for _, info := range q.TCP {
						if info.Local.String() == c.LocalAddr().String() {
							used[i]++
						}
					}
				}
				c.Close()
			}
			for range 32 * queues {
				if _, err := stack.Dial("tcp", netip.AddrPortFrom(lab.PeerAddr, 9).String()); !errors.Is(err, unix.ECONNREFUSED) {
					t.Fatalf("a closed port: %v", err)
				}
			}
			t.Logf("connections by queue: %v", used)
			total := 0
			for i, n := range used {
				total += n
				if n == 0 {
					t.Errorf("no connection was queue %d's", i)
				}
			}
			if total != 32*queues {
				t.Errorf("%d connections were there for %d that were made", total, 32*queues)
			}
		})
	}
}

// TestDialErrors compares with what the kernel says of the same address.
func TestDialErrors(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	them := kernelSide(lab.Peer, lab.PeerAddr)
	for _, c := range []struct {
		network, address string
		want             error
	}{
		{"tcp", "10.77.0.1:9", unix.ECONNREFUSED},
		{"tcp4", "10.77.0.1:9", unix.ECONNREFUSED},
		{"tcp", "192.0.2.1:9", unix.ENETUNREACH},
		{"tcp", "10.77.0.200:9", unix.EHOSTUNREACH},
		{"tcp", "10.77.0.1", nil},
		{"tcp", "10.77.0.1:70000", nil},
		{"tcp", "10.77.0.1:no such service", nil},
		{"sctp", "10.77.0.1:9", net.UnknownNetworkError("sctp")},
		{"", "10.77.0.1:9", net.UnknownNetworkError("")},
	} {
		ours, err := stack.Dial(c.network, c.address)
		if err == nil {
			ours.Close()
			t.Errorf("Dial(%q, %q) has no error", c.network, c.address)
			continue
		}
		if ours != nil {
			t.Errorf("Dial(%q, %q) gives %v with an error", c.network, c.address, ours)
		}
		_, want := them.dial(t.Context(), c.network, c.address)
		if want == nil || err.Error() != want.Error() || fmt.Sprintf("%T", err) != fmt.Sprintf("%T", want) {
			t.Errorf("Dial(%q, %q): %T %q, want %T %q", c.network, c.address, err, err, want, want)
			continue
		}
		e, w := err.(*net.OpError), want.(*net.OpError)
		if fmt.Sprintf("%T", e.Err) != fmt.Sprintf("%T", w.Err) || e.Timeout() != w.Timeout() || fmt.Sprint(e.Addr) != fmt.Sprint(w.Addr) {
			t.Errorf("Dial(%q, %q): %#v, want %#v", c.network, c.address, e, w)
		}
		if c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("Dial(%q, %q): %v, want %v", c.network, c.address, err, c.want)
		}
	}
	for _, c := range []struct{ network, address string }{
		{"tcp6", "10.77.0.1:9"}, {"tcp", "[::1]:9"}, {"tcp", ":9"}, {"tcp", "10.77.0.1:0"}, {"tcp", "10.77.0.2:9"},
		{"tcp", "127.0.0.1:9"}, {"tcp", "0.0.0.0:9"}, {"tcp", "224.0.0.1:9"}, {"tcp", "255.255.255.255:9"}, {"tcp", "10.77.0.255:9"},
	} {
		conn, err := stack.Dial(c.network, c.address)
		var e *net.OpError
		if err == nil || !errors.As(err, &e) || e.Op != "dial" || e.Net != c.network {
			t.Errorf("Dial(%q, %q): %v, %v", c.network, c.address, conn, err)
		}
	}
}

// TestDialUnreachable: routers say so.
func TestDialUnreachable(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	in(t, lab.Peer, func() error {
		for i, kind := range []int{unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT} {
			dst := &net.IPNet{IP: net.IPv4(10, 99, byte(i), 0), Mask: net.CIDRMask(24, 32)}
			if err := netlink.RouteAdd(&netlink.Route{Dst: dst, Type: kind}); err != nil {
				return err
			}
		}
		return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0)
	})
	cfg := engineConfig(lab)
	cfg.Gateway = lab.PeerAddr
	stack := openStack(t, lab, cfg)
	for _, address := range []string{"10.99.0.1:9", "10.99.1.1:9"} {
		if _, err := stack.Dial("tcp", address); !errors.Is(err, unix.EHOSTUNREACH) {
			t.Errorf("Dial(%q): %v, want %v", address, err, unix.EHOSTUNREACH)
		}
	}
}

// deaf is an address of the peer where SYNs are dropped: a listener whose queue is full.
func deaf(t *testing.T, lab *netlab.Lab) string {
	t.Helper()
	var at netip.AddrPort
	in(t, lab.Peer, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: lab.PeerAddr.As4()}); err != nil {
			return err
		}
		if err := unix.Listen(fd, 0); err != nil {
			return err
		}
		name, err := unix.Getsockname(fd)
		if err != nil {
			return err
		}
		at = netip.AddrPortFrom(lab.PeerAddr, uint16(name.(*unix.SockaddrInet4).Port))
		c, err := net.DialTimeout("tcp4", at.String(), patience)
		if err == nil {
			t.Cleanup(func() { c.Close() })
		}
		return err
	})
	return at.String()
}

// TestDialContext ends dials in every state they can be in.
func TestDialContext(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			lab, stack := engine(t, netlab.Options{Queues: queues})
			silent := deaf(t, lab)
			unresolved := "10.77.0.200:9" // ARP takes its time
			gone := func(address string) {
				t.Helper()
				eventually(t, "the end of the attempt", func() bool { return countState(t, stack, "SYN-SENT") == 0 })
			}
			for _, address := range []string{silent, unresolved} {
				ctx, cancel := context.WithCancel(t.Context())
				result := blocked(func() error {
					c, err := stack.DialContext(ctx, "tcp", address)
					if c != nil {
						return fmt.Errorf("%v and %w", c, err)
					}
					return err
				})
				eventually(t, "a SYN", func() bool { // of each queue, where nobody can say on which the answer would come, as of a NIC
					n := countState(t, stack, "SYN-SENT")
					return n == queues || n == 1 && netlab.NICs() != nil
				})
				cancel()
				err := await(t, result, "the end of a dial")
				if !errors.Is(err, context.Canceled) || err.Error() != "dial tcp "+address+": operation was canceled" {
					t.Errorf("cancelled: %v", err)
				}
				gone(address)

				ctx, cancel = context.WithTimeout(t.Context(), 20*time.Millisecond)
				_, err = stack.DialContext(ctx, "tcp", address)
				cancel()
				var ne net.Error
				if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, os.ErrDeadlineExceeded) ||
					!errors.As(err, &ne) || !ne.Timeout() || err.Error() != "dial tcp "+address+": i/o timeout" {
					t.Errorf("timed out: %v", err)
				}
				gone(address)

				ctx, cancel = context.WithCancel(t.Context())
				cancel()
				if _, err := stack.DialContext(ctx, "tcp", address); !errors.Is(err, context.Canceled) {
					t.Errorf("cancelled before: %v", err)
				}
			}
			// A context that ends afterwards does nothing to the connection.
			ctx, cancel := context.WithCancel(t.Context())
			c, err := stack.DialContext(ctx, "tcp", echoTCP(t, lab))
			if err != nil {
				t.Fatal(err)
			}
			cancel()
			ask(t, c, "still there?")
			c.Close()
		})
	}
}

// TestDialCancelRace cancels dials at about the time at which they connect: each is either a connection or nothing.
func TestDialCancelRace(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	address := echoTCP(t, lab)
	var connected, cancelled int
	for i := range 300 {
		ctx, cancel := context.WithCancel(t.Context())
		go func() {
			time.Sleep(time.Duration(i%30) * 5 * time.Microsecond)
			cancel()
		}()
		c, err := stack.DialContext(ctx, "tcp", address)
		switch {
		case err == nil:
			connected++
			ask(t, c, "connected")
			c.Close()
		case errors.Is(err, context.Canceled):
			cancelled++
		default:
			t.Error(err)
		}
		cancel()
	}
	t.Logf("%d connected, %d were cancelled", connected, cancelled)
}

// TestDialStackClose ends dials with the engine.
func TestDialStackClose(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	stack := openStack(t, lab, engineConfig(lab))
	silent := deaf(t, lab)
	result := blocked(func() error {
		_, err := stack.Dial("tcp", silent)
		return err
	})
	eventually(t, "a SYN", func() bool { return countState(t, stack, "SYN-SENT") == 1 })
	if err := stack.Close(); err != nil {
		t.Error(err)
	}
	if err := await(t, result, "the end of a dial"); !errors.Is(err, net.ErrClosed) {
		t.Errorf("%v, want %v", err, net.ErrClosed)
	}
	if _, err := stack.Dial("tcp", silent); !errors.Is(err, net.ErrClosed) {
		t.Errorf("afterwards: %v, want %v", err, net.ErrClosed)
	}
}

// TestDialMany opens and closes a thousand connections, and looks for what is left over.
func TestDialMany(t *testing.T) {
	for _, c := range []struct {
		name   string
		queues int
		share  bool
	}{{"own", 1, false}, {"own/queues", 2, false}, {"share", 1, true}, {"share/queues", 2, true}} {
		t.Run(c.name, func(t *testing.T) {
			lab := newLab(t, netlab.Options{Queues: c.queues, KernelAddr: c.share})
			cfg := engineConfig(lab)
			if c.share {
				cfg = shareConfig(lab)
			}
			stack := openStack(t, lab, cfg)
			address := echoTCP(t, lab)
			// The peer closes first, or a reset ends it: nothing must stay.
			dialMany(t, stack, address, 1000, func(i int, c *xdpd.TCPConn) error {
				if i%2 == 0 {
					return c.SetLinger(0)
				}
				if err := c.CloseWrite(); err != nil {
					return err
				}
				_, err := io.Copy(io.Discard, c)
				return err
			})
			quiet(t, stack)
			checkPorts(t, lab, stack, c.share)
			// Ours to close, and to wait in TIME-WAIT: with its port, so that the kernel does not answer for us.
			dialMany(t, stack, address, 100, func(int, *xdpd.TCPConn) error { return nil })
			quiet(t, stack)
			checkPorts(t, lab, stack, c.share)
			if got := counted(t, stack, sockets.TCPAccepted); got != 0 {
				t.Errorf("%d connections were accepted", got)
			}
		})
	}
}

// dialMany opens n connections, asks something on each, does what end says, and closes them.
func dialMany(t *testing.T, stack *xdpd.Stack, address string, n int, end func(int, *xdpd.TCPConn) error) {
	t.Helper()
	const workers = 20
	var all sync.WaitGroup
	for w := range workers {
		all.Go(func() {
			for i := w; i < n; i += workers {
				ctx, cancel := context.WithTimeout(context.Background(), patience)
				c, err := stack.DialContext(ctx, "tcp", address)
				cancel()
				if err != nil {
					t.Error(err)
					return
				}
				err = tryAsk(c, fmt.Sprintf("connection %d", i), patience)
				if err = errors.Join(err, end(i/workers, c.(*xdpd.TCPConn)), c.Close()); err != nil {
					t.Errorf("connection %d: %v", i, err)
				}
			}
		})
	}
	all.Wait()
}

// checkPorts compares the ports that are steered to the engine with its connections.
func checkPorts(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, share bool) {
	t.Helper()
	ports := func() int {
		locals := make(map[netip.AddrPort]bool)
		for _, q := range getStats(t, stack).Queues {
			for _, c := range q.TCP {
				locals[c.Local] = true
			}
		}
		return len(locals)
	}
	if !share {
		if st := getStats(t, stack); st.Ports != 0 {
			t.Errorf("%d ports are open where none need be", st.Ports)
		}
		return
	}
	eventually(t, fmt.Sprintf("as many open ports as there are connections, %d", ports()), func() bool {
		return getStats(t, stack).Ports == ports()
	})
}

// TestShareDial: the kernel must not answer for the engine's connections, nor the engine for the kernel's.
func TestShareDial(t *testing.T) {
	lab, stack := shared(t)
	address := echoTCP(t, lab)
	c := dial(t, stack, "tcp", address)
	ask(t, c, "engine")
	k, err := kernelSide(lab.Engine, lab.EngineAddr).dial(t.Context(), "tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	ask(t, k, "kernel")
	ask(t, c, "engine again")
	if st := getStats(t, stack); st.Ports != 1 {
		t.Errorf("%d ports are open, not 1", st.Ports)
	}
	if _, err := stack.Dial("tcp", netip.AddrPortFrom(lab.PeerAddr, 9).String()); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a closed port: %v", err)
	}
	if err := c.CloseWrite(); err != nil {
		t.Error(err)
	}
	if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
		t.Errorf("behind the end: %q, %v", b, err)
	}
	c.Close()
	quiet(t, stack)
	checkPorts(t, lab, stack, true)
}

// TestShareListenerClose: a connection outlives its listener.
func TestShareListenerClose(t *testing.T) {
	lab, stack := shared(t)
	ln, err := stack.Listen("tcp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := pair(t, lab, ln)
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := theirs.Write([]byte("who is there?")); err != nil {
			t.Fatal(err)
		}
		if err := expect(ours, []byte("who is there?")); err != nil {
			t.Fatal(err)
		}
		if _, err := ours.Write([]byte("the engine")); err != nil {
			t.Fatal(err)
		}
		if err := expect(theirs, []byte("the engine")); err != nil {
			t.Fatal(err)
		}
	}
	theirs.Close()
	ours.Close()
	quiet(t, stack)
	checkPorts(t, lab, stack, true)
}
