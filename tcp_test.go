package xdpd_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/sockets"
)

// tcpEcho is an echo service that runs on one reactor. Its fields are used with the reactor's lock held.
type tcpEcho struct {
	poller   *reactor.Poller
	listener sockets.Handle
	pending  map[sockets.Handle][]byte // what a connection could not send yet
	buf      [65536]byte
}

// serveTCPEcho opens an echo service on every reactor; what is left of it is closed with the test.
func serveTCPEcho(t testing.TB, stack *xdpd.Stack, port uint16) {
	t.Helper()
	for _, r := range stack.Reactors() {
		e := &tcpEcho{poller: reactor.NewPoller(r), pending: make(map[sockets.Handle][]byte)}
		h, _, ok := r.Enter()
		l, errno := h.TCPListen(0, port)
		e.listener = l
		e.poller.Serve(e.serve)
		err := e.poller.Add(l, sockets.In, 0)
		r.Leave()
		if !ok || errno != 0 || err != nil {
			t.Fatal(ok, errno, err)
		}
		t.Cleanup(func() {
			h, now, ok := r.Enter()
			if ok {
				h.Close(l, now)
				for s := range e.pending {
					h.TCPAbort(s, now)
				}
			}
			r.Leave()
		})
	}
	if err := stack.OpenPorts(port, true, false); err != nil {
		t.Fatal(err)
	}
}

func (e *tcpEcho) serve(h *sockets.Host, now int64, ev reactor.Event) {
	if ev.Sock != e.listener {
		if e.echo(h, now, ev.Sock) {
			_ = e.poller.Del(ev.Sock)
			delete(e.pending, ev.Sock)
			h.Close(ev.Sock, now)
		}
		return
	}
	for {
		c, errno := h.TCPAccept(e.listener)
		if errno != 0 {
			return
		}
		e.pending[c] = nil
		if err := e.poller.Add(c, sockets.In, 0); err != nil {
			panic(err)
		}
	}
}

// echo sends back what came; while something waits to be sent it reads nothing. True: the connection is over.
func (e *tcpEcho) echo(h *sockets.Host, now int64, s sockets.Handle) (over bool) {
	b := e.pending[s]
	if len(b) == 0 {
		n, errno := h.TCPRead(s, e.buf[:], now)
		if errno == sockets.EAGAIN {
			return false
		}
		if n == 0 || errno != 0 {
			return true
		}
		b = e.buf[:n]
	}
	n, errno := h.TCPWrite(s, b, now)
	if errno != 0 && errno != sockets.EAGAIN {
		return true
	}
	e.pending[s] = append([]byte(nil), b[n:]...)
	want := sockets.In
	if n < len(b) {
		want = sockets.Out
	}
	_ = e.poller.Mod(s, want, 0) // the socket is there until over
	return false
}

// kernelTCP connects from the peer's kernel.
func kernelTCP(t testing.TB, ns *netlab.NS, to netip.AddrPort) (*net.TCPConn, error) {
	t.Helper()
	var c net.Conn
	err := ns.Do(func() (err error) {
		c, err = net.DialTimeout("tcp4", to.String(), patience)
		return err
	})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(2 * patience))
	return c.(*net.TCPConn), nil
}

// echoBulk sends n random bytes, closes its direction, and compares what comes back.
func echoBulk(c *net.TCPConn, n int64, seed uint64) error {
	source := func() io.Reader {
		return io.LimitReader(rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16)}), n)
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, source())
		sent <- errors.Join(err, c.CloseWrite())
	}()
	got := sha256.New()
	k, err := io.Copy(got, c)
	if err = errors.Join(err, <-sent); err != nil {
		return fmt.Errorf("seed %d: after %d bytes: %w", seed, k, err)
	}
	want := sha256.New()
	if _, err := io.Copy(want, source()); err != nil {
		return err
	}
	if k != n || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("seed %d: of %d bytes came back %d, with another SHA-256", seed, n, k)
	}
	return nil
}

func TestTCPEcho(t *testing.T) {
	for _, o := range []netlab.Options{
		{}, {TxOffload: true}, {MTU: 576}, {MTU: 3000}, {MTU: 3819}, {MTU: 9000}, {MTU: 9000, TxOffload: true}, {MTU: 65535, TxOffload: true},
	} {
		t.Run(fmt.Sprintf("MTU%d/offload=%v", o.MTU, o.TxOffload), func(t *testing.T) {
			lab, stack := engine(t, o)
			serveTCPEcho(t, stack, 7)
			c, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 7))
			if err != nil {
				t.Fatal(err)
			}
			if err := echoBulk(c, 10<<20, rand.Uint64()); err != nil {
				t.Error(err)
			}
			c.Close()
			noConnections(t, stack)
		})
	}
}

func TestTCPManyAtOnce(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	serveTCPEcho(t, stack, 7)
	var all sync.WaitGroup
	for range 16 {
		c, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 7))
		if err != nil {
			t.Fatal(err)
		}
		all.Go(func() {
			if err := echoBulk(c, 512<<10, rand.Uint64()); err != nil {
				t.Error(err)
			}
			c.Close()
		})
	}
	all.Wait()
	noConnections(t, stack)
}

func TestTCPRefused(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	if _, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 9)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("connect to a closed port: %v, want %v", err, unix.ECONNREFUSED)
	}
	if got := drops(t, stack, "tcp_no_socket"); got != 1 {
		t.Errorf("tcp_no_socket is %d, not 1", got)
	}
}

// TestTCPShortConnections: the side that closes first is the one that waits, and that is the kernel.
func TestTCPShortConnections(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	serveTCPEcho(t, stack, 7)
	to := netip.AddrPortFrom(lab.EngineAddr, 7).String()
	const n = 2000
	in(t, lab.Peer, func() error {
		for i := range n {
			c, err := net.DialTimeout("tcp4", to, patience)
			if err != nil {
				return err
			}
			if i%2 == 0 {
				err = tryAsk(c, "hello", patience)
			}
			if i%10 == 3 { // what it has sent, it leaves unread: the kernel resets
				_, err = c.Write([]byte("goodbye"))
				c.(*net.TCPConn).SetLinger(0)
			}
			if err = errors.Join(err, c.Close()); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
		}
		return nil
	})
	noConnections(t, stack)
	if got := counted(t, stack, sockets.TCPAccepted); got != n {
		t.Errorf("%d connections were accepted, not %d", got, n)
	}
}

// noConnections waits until the listener alone is left: the last FIN may still be under way.
func noConnections(t *testing.T, stack *xdpd.Stack) {
	t.Helper()
	eventually(t, "the end of all connections", func() bool {
		for _, q := range getStats(t, stack).Queues {
			if len(q.TCP) != 1 || q.TCP[0].State != "LISTEN" {
				return false
			}
		}
		return true
	})
}
