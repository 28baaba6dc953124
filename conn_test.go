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

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/sockets"
)

// opError checks that err is what package net would return, for the operation, and gives its cause.
func opError(t *testing.T, err error, op string, source, addr net.Addr) error {
	t.Helper()
	var e *net.OpError
	if !errors.As(err, &e) {
		t.Fatalf("%v is a %T, not a *net.OpError", err, err)
	}
	if e.Op != op || e.Net != "udp" || fmt.Sprint(e.Source) != fmt.Sprint(source) || fmt.Sprint(e.Addr) != fmt.Sprint(addr) {
		t.Errorf("%v: Op %q, Net %q, Source %v, Addr %v; want %q, udp, %v, %v",
			err, e.Op, e.Net, e.Source, e.Addr, op, source, addr)
	}
	return e.Err
}

func wantTimeout(t *testing.T, err error, op string, source, addr net.Addr) {
	t.Helper()
	if cause := opError(t, err, op, source, addr); cause != os.ErrDeadlineExceeded {
		t.Errorf("%v, want %v", err, os.ErrDeadlineExceeded)
	}
	var e net.Error
	if !errors.As(err, &e) || !e.Timeout() {
		t.Errorf("%v is not a timeout to package net", err)
	}
}

// blocked runs f and returns its error when it comes; f is waiting when blocked returns, as far as one can tell.
func blocked(f func() error) <-chan error {
	started, result := make(chan struct{}), make(chan error, 1)
	go func() {
		close(started)
		result <- f()
	}()
	<-started
	return result
}

// await waits for something that must come.
func await[T any](t testing.TB, ch <-chan T, what string) (v T) {
	t.Helper()
	select {
	case v = <-ch:
	case <-time.After(patience):
		t.Fatalf("never came: %s", what)
	}
	return v
}

func TestReadDeadlines(t *testing.T) { eachFace(t, netlab.Options{}, testReadDeadlines) }

func testReadDeadlines(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, f netFace) {
	c := listenOn(t, f, ":800")
	local := c.LocalAddr()
	read := func() error {
		_, _, err := c.ReadFrom(make([]byte, 16))
		return err
	}
	set := func(at time.Time) {
		if err := c.SetReadDeadline(at); err != nil {
			t.Fatal(err)
		}
	}
	set(time.Unix(1, 0))
	for range 2 { // it stays
		wantTimeout(t, read(), "read", local, nil)
	}
	set(time.Now().Add(time.Millisecond))
	wantTimeout(t, read(), "read", local, nil)

	set(time.Time{})
	waiting := blocked(read)
	set(time.Unix(1, 0)) // while it is blocked
	wantTimeout(t, await(t, waiting, "a timeout"), "read", local, nil)

	// Extended while blocked: the first deadline must not count any more, whether it has passed or not.
	for range 20 {
		set(time.Now().Add(2 * time.Millisecond))
		waiting = blocked(func() error {
			for {
				if err := read(); !errors.Is(err, os.ErrDeadlineExceeded) {
					return err
				}
			}
		})
		set(time.Now().Add(time.Hour))
		prod(t, lab, 800)
		if err := await(t, waiting, "a datagram"); err != nil {
			t.Error(err)
		}
	}
	set(time.Unix(1, 0))
	set(time.Time{}) // cleared
	waiting = blocked(read)
	prod(t, lab, 800)
	if err := await(t, waiting, "a datagram"); err != nil {
		t.Error(err)
	}

	prod(t, lab, 800)
	eventually(t, "a datagram in the queue", func() bool { return getStats(t, stack).Queues[0].UDP[0].Datagrams == 1 })
	set(time.Unix(1, 0))
	wantTimeout(t, read(), "read", local, nil) // as in package net, also when there is something to read
}

// TestWriteDeadlines: a writer waits when there is no frame to send with, which a device that is down brings about.
func TestWriteDeadlines(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	cfg.Frames = 256
	stack := openStack(t, lab, cfg)
	c, to := echo(t, lab, stack)
	ask(t, kernelUDP(t, lab.Peer, netip.AddrPort{}, to), "so that the engine knows the peer")
	peer := netip.AddrPortFrom(lab.PeerAddr, 9)
	write := func() error {
		_, err := c.WriteToUDPAddrPort(make([]byte, 1000), peer)
		return err
	}
	c.SetWriteDeadline(time.Unix(1, 0))
	wantTimeout(t, write(), "write", c.LocalAddr(), nil)
	c.SetWriteDeadline(time.Time{})
	setLink(t, lab.Engine, lab.EngineDev, false)
	// Until there is no room: then a whole tenth of a second goes by without a datagram.
	for written := 1; written > 0; {
		written = 0
		c.SetWriteDeadline(time.Now().Add(100 * time.Millisecond))
		err := write()
		for ; err == nil; err = write() {
			written++
		}
		wantTimeout(t, err, "write", c.LocalAddr(), nil)
	}

	c.SetWriteDeadline(time.Time{})
	waiting := blocked(write)
	c.SetWriteDeadline(time.Unix(1, 0))
	wantTimeout(t, await(t, waiting, "a timeout"), "write", c.LocalAddr(), nil)

	c.SetWriteDeadline(time.Time{})
	waiting = blocked(write)
	setLink(t, lab.Engine, lab.EngineDev, true) // what waited leaves, and there is room
	if err := await(t, waiting, "room to write"); err != nil {
		t.Error(err)
	}
}

// TestManyWritersWait: room to write is told once, but all who wait for it must hear of it, whichever queue they send on.
func TestManyWritersWait(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			lab := newLab(t, netlab.Options{Queues: queues})
			cfg := engineConfig(lab)
			cfg.Frames = 256
			stack := openStack(t, lab, cfg)
			c, to := echo(t, lab, stack)
			ask(t, kernelUDP(t, lab.Peer, netip.AddrPort{}, to), "so that the engine knows the peer")
			c.SetWriteDeadline(time.Now().Add(patience))
			for range 5 {
				setLink(t, lab.Engine, lab.EngineDev, false)
				written := make(chan error)
				const writers = 8
				for w := range writers {
					go func() {
						for range 500 {
							if _, err := c.WriteToUDPAddrPort(make([]byte, 1000), netip.AddrPortFrom(lab.PeerAddr, uint16(9+w))); err != nil {
								written <- err
								return
							}
						}
						written <- nil
					}()
				}
				// A quarter of the room must be there again before those who wait are told.
				eventually(t, "the end of all room", func() bool {
					for _, q := range getStats(t, stack).Queues {
						if 4*q.Frames.Tx <= 3*q.Frames.TxLimit {
							return false
						}
					}
					return true
				})
				setLink(t, lab.Engine, lab.EngineDev, true)
				for range writers {
					if err := await(t, written, "the end of a writer"); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
}

func TestCloseUnblocks(t *testing.T) { eachFace(t, netlab.Options{}, testCloseUnblocks) }

func testCloseUnblocks(t *testing.T, _ *netlab.Lab, _ *xdpd.Stack, f netFace) {
	c := listenOn(t, f, ":0")
	local := c.LocalAddr()
	read := func() error {
		_, _, err := c.ReadFrom(make([]byte, 16))
		return err
	}
	first, second := blocked(read), blocked(read)
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	to := net.UDPAddrFromAddrPort(netip.MustParseAddrPort("10.77.0.1:9"))
	_, werr := c.WriteTo([]byte("x"), to)
	for _, e := range []struct {
		op  string
		err error
	}{
		{"read", await(t, first, "the end of a read")}, {"read", await(t, second, "the end of a read")}, {"read", read()},
		{"write", werr}, {"close", c.Close()}, {"set", c.SetDeadline(time.Now())},
	} {
		if cause := opError(t, e.err, e.op, local, nil); cause != net.ErrClosed {
			t.Errorf("%s after Close: %v, want %v", e.op, e.err, net.ErrClosed)
		}
	}
}

// TestConcurrentUse has readers and writers of one socket in many goroutines, and a Close that ends them.
func TestConcurrentUse(t *testing.T) {
	for _, queues := range []int{1, 2} {
		t.Run(fmt.Sprint(queues), func(t *testing.T) {
			eachFace(t, netlab.Options{Queues: queues}, testConcurrentUse)
		})
	}
}

func testConcurrentUse(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, f netFace) {
	c := listenOn(t, f, ":800")
	const pairs, each = 4, 500
	var all, ended sync.WaitGroup
	read := make(chan int, pairs*each)
	window := make(chan struct{}, 32) // on their way there or back: the queues at both ends have limits
	for range pairs {
		peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 800))
		ask := peer.LocalAddr().(*net.UDPAddr).AddrPort()
		ended.Go(func() {
			for {
				n, _, err := c.ReadFromUDPAddrPort(make([]byte, 64))
				if errors.Is(err, net.ErrClosed) {
					return
				}
				if err != nil {
					t.Error(err)
					return
				}
				<-window
				read <- n
				c.SetReadDeadline(time.Now().Add(patience))
			}
		})
		all.Go(func() {
			for range each {
				window <- struct{}{}
				if _, err := c.WriteToUDPAddrPort([]byte("out"), ask); err != nil {
					t.Error(err)
					return
				}
				c.SetWriteDeadline(time.Now().Add(patience))
			}
		})
		all.Go(func() {
			for i := range each {
				if _, err := peer.Read(make([]byte, 16)); err != nil {
					t.Errorf("a peer got %d: %v", i, err)
					return
				}
				if _, err := peer.Write([]byte("in")); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	all.Wait()
	for i := range pairs * each {
		if n := await(t, read, fmt.Sprintf("datagram %d", i)); n != 2 {
			t.Errorf("a datagram of %d bytes", n)
		}
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	ended.Wait()
}

// TestTruncation: what does not fit into the reader's buffer is cut off, and the next read gets the next datagram.
func TestTruncation(t *testing.T) { eachFace(t, netlab.Options{}, testTruncation) }

func testTruncation(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, f netFace) {
	c := listenOn(t, f, ":800")
	peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 800))
	c.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 4)
	for i, s := range []string{"any", "abcdef", "", "ghi", string(make([]byte, 9000)), "end"} {
		if _, err := peer.Write([]byte(s)); err != nil {
			t.Fatal(err)
		}
		if i == 0 { // what waits for an ARP answer in the kernel is overtaken by what comes when it has arrived
			if n, _, err := c.ReadFrom(buf); n != len(s) || err != nil {
				t.Fatal(n, err)
			}
		}
	}
	for i, want := range []string{"abcd", "", "ghi", "\x00\x00\x00\x00", "end"} {
		n, from, err := c.ReadFrom(buf)
		if err != nil || string(buf[:n]) != want || from.String() != peer.LocalAddr().String() {
			t.Errorf("datagram %d: %q from %v, %v; want %q from %v", i, buf[:n], from, err, want, peer.LocalAddr())
		}
	}
	if _, err := peer.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if n, _, err := c.ReadFrom(nil); n != 0 || err != nil {
		t.Errorf("read into nothing: %d, %v", n, err)
	}
}

func TestListenPacketErrors(t *testing.T) { eachFace(t, netlab.Options{}, testListenPacketErrors) }

func testListenPacketErrors(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, f netFace) {
	us := netip.AddrPortFrom(lab.EngineAddr, 800)
	wild := listenOn(t, f, ":800")
	if got := wild.LocalAddr().String(); got != "0.0.0.0:800" {
		t.Errorf("LocalAddr of a socket on :800 is %s", got)
	}
	one := listenOn(t, f, netip.AddrPortFrom(us.Addr(), 801).String())
	if got, want := one.LocalAddr().String(), netip.AddrPortFrom(us.Addr(), 801).String(); got != want {
		t.Errorf("LocalAddr is %s, not %s", got, want)
	}
	for _, c := range []struct {
		network, address string
		want             error
	}{
		{"udp", ":800", unix.EADDRINUSE},
		{"udp4", us.String(), unix.EADDRINUSE},
		{"udp", ":801", unix.EADDRINUSE},
		{"udp", one.LocalAddr().String(), unix.EADDRINUSE},
		{"udp", "192.0.2.1:800", unix.EADDRNOTAVAIL},
		{"udp", "127.0.0.1:800", unix.EADDRNOTAVAIL},
		{"tcp", ":802", net.UnknownNetworkError("tcp")},
		{"udp6", ":802", net.UnknownNetworkError("udp6")},
		{"unixgram", "x", net.UnknownNetworkError("unixgram")},
		{"", ":802", net.UnknownNetworkError("")},
	} {
		conn, err := f.ListenPacket(c.network, c.address)
		var e *net.OpError
		if !errors.Is(err, c.want) || !errors.As(err, &e) || e.Op != "listen" || e.Net != c.network {
			t.Errorf("ListenPacket(%q, %q): %v, %#v; want %v", c.network, c.address, conn, err, c.want)
		}
	}
	for _, address := range []string{"800", ":70000", "[::1]:802", "10.77.0.2"} {
		if conn, err := f.ListenPacket("udp", address); err == nil {
			t.Errorf("ListenPacket(%q) opened %v", address, conn.LocalAddr())
		}
	}
	// Free ports are different ones, and closed ones can be had again.
	seen := make(map[uint16]bool)
	for range 20 {
		p := portOf(listenOn(t, f, ":0").LocalAddr())
		if p == 0 || seen[p] {
			t.Errorf("port %d given for :0, after %v", p, seen)
		}
		seen[p] = true
	}
	if err := wild.Close(); err != nil {
		t.Error(err)
	}
	listenOn(t, f, ":800")
}

func TestWriteErrors(t *testing.T) { eachFace(t, netlab.Options{}, testWriteErrors) }

func testWriteErrors(t *testing.T, lab *netlab.Lab, _ *xdpd.Stack, f netFace) {
	c := listenOn(t, f, ":0")
	peer := netip.AddrPortFrom(lab.PeerAddr, 9)
	for _, w := range []struct {
		what string
		n    int
		to   net.Addr
		want error
	}{
		{"65508 bytes", sockets.MaxUDP + 1, net.UDPAddrFromAddrPort(peer), unix.EMSGSIZE},
		{"no route", 1, &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 9}, unix.ENETUNREACH},
		{"port 0", 1, &net.UDPAddr{IP: lab.PeerAddr.AsSlice()}, unix.EINVAL},
		{"IPv6", 1, &net.UDPAddr{IP: net.IPv6loopback, Port: 9}, unix.EINVAL},
		{"nil", 1, nil, unix.EINVAL},
		{"nil UDPAddr", 1, (*net.UDPAddr)(nil), unix.EINVAL},
		{"a TCP address", 1, net.TCPAddrFromAddrPort(peer), unix.EINVAL},
		{"the zero address", 1, &net.UDPAddr{}, unix.EDESTADDRREQ},
	} {
		n, err := c.WriteTo(make([]byte, w.n), w.to)
		if n != 0 || !errors.Is(err, w.want) {
			t.Errorf("%s: %d, %v; want %v", w.what, n, err, w.want)
			continue
		}
		opError(t, err, "write", c.LocalAddr(), nil)
	}
	if _, err := c.Write([]byte("x")); !errors.Is(err, unix.EDESTADDRREQ) {
		t.Errorf("Write without a peer: %v, want %v", err, unix.EDESTADDRREQ)
	}
}

func dialUDP(f netFace, to netip.AddrPort) (udpConn, error) {
	if stack, ok := f.(*xdpd.Stack); ok {
		return stack.DialUDP(to)
	}
	c, err := f.Dial("udp", to.String())
	if err != nil {
		return nil, err
	}
	return c.(udpConn), nil
}

func TestDialUDP(t *testing.T) { eachFace(t, netlab.Options{}, testDialUDP) }

func testDialUDP(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, f netFace) {
	peer := kernelUDP(t, lab.Peer, netip.AddrPortFrom(lab.PeerAddr, 900), netip.AddrPort{})
	stranger := kernelUDP(t, lab.Peer, netip.AddrPortFrom(lab.PeerAddr, 901), netip.AddrPort{})
	remote := netip.AddrPortFrom(lab.PeerAddr, 900)
	c, err := dialUDP(f, remote)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if c.RemoteAddr().String() != remote.String() {
		t.Errorf("RemoteAddr is %v, not %v", c.RemoteAddr(), remote)
	}
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, from, err := peer.ReadFromUDPAddrPort(buf)
	if err != nil || string(buf[:n]) != "hello" || from.String() != c.LocalAddr().String() {
		t.Fatalf("the peer got %q from %v, %v; not from %v", buf[:n], from, err, c.LocalAddr())
	}
	// One that it does not talk to is not heard, and told so.
	if _, err := stranger.WriteToUDPAddrPort([]byte("psst"), from); err != nil {
		t.Fatal(err)
	}
	if _, err := peer.WriteToUDPAddrPort([]byte("answer"), from); err != nil {
		t.Fatal(err)
	}
	c.SetReadDeadline(time.Now().Add(patience))
	if n, err := c.Read(buf); err != nil || string(buf[:n]) != "answer" {
		t.Errorf("read %q, %v", buf[:n], err)
	}
	if got := drops(t, stack, "udp_no_socket"); got != 1 {
		t.Errorf("udp_no_socket is %d, not 1: the stranger's", got)
	}
	if _, err := c.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(remote)); !errors.Is(err, net.ErrWriteToConnected) {
		t.Errorf("WriteTo on a connected socket: %v, want %v", err, net.ErrWriteToConnected)
	}
	if _, err := c.WriteTo([]byte("x"), &net.UDPAddr{}); !errors.Is(err, net.ErrWriteToConnected) {
		t.Errorf("WriteTo without an address on a connected socket: %v, want %v", err, net.ErrWriteToConnected)
	}
	testRefused(t, lab, f)
	for _, bad := range []string{"192.0.2.1:9", "10.77.0.1:0", "127.0.0.1:9", "[::1]:9", "255.255.255.255:9", "10.77.0.2:9"} {
		c, err := dialUDP(f, netip.MustParseAddrPort(bad))
		if err == nil {
			c.Close()
			t.Errorf("DialUDP(%s) has no error", bad)
			continue
		}
		if _, is := f.(*xdpd.Client); is && bad[0] == '[' { // which has no call that takes it without a look whether it is of IPv4
			continue
		}
		opError(t, err, "dial", nil, net.UDPAddrFromAddrPort(netip.MustParseAddrPort(bad)))
	}
}

// testRefused: the kernel's port unreachable comes to the next call on the socket, once.
func testRefused(t *testing.T, lab *netlab.Lab, f netFace) {
	t.Helper()
	c, err := dialUDP(f, netip.AddrPortFrom(lab.PeerAddr, 999))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	if _, err := c.Write([]byte("anybody?")); err != nil {
		t.Fatal(err)
	}
	_, err = c.Read(make([]byte, 16))
	if !errors.Is(err, unix.ECONNREFUSED) {
		t.Fatalf("read: %v, want %v", err, unix.ECONNREFUSED)
	}
	opError(t, err, "read", c.LocalAddr(), c.RemoteAddr())
	c.SetReadDeadline(time.Unix(1, 0))
	if _, err := c.Read(make([]byte, 16)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the error came twice: %v", err)
	}
}

// TestNoAllocations: in the steady state a datagram costs no garbage, in the caller or in the reactor. The peer's calls
// do not allocate either, so that all of the process's allocations may be counted.
func TestNoAllocations(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	cfg.Ledger = false
	stack := openStack(t, lab, cfg)
	c := listen(t, stack, ":800")
	peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 800))
	buf, answer := make([]byte, 2048), make([]byte, 2048)
	question := make([]byte, 1000)
	c.SetDeadline(time.Now().Add(patience))
	allocs := testing.AllocsPerRun(2000, func() {
		if _, err := peer.Write(question); err != nil {
			t.Fatal(err)
		}
		n, from, err := c.ReadFromUDPAddrPort(buf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.WriteToUDPAddrPort(buf[:n], from); err != nil {
			t.Fatal(err)
		}
		if _, err := peer.Read(answer); err != nil {
			t.Fatal(err)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for each datagram received and sent", allocs)
	}
}
