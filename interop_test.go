package xdpd_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"xdpd/internal/netlab"
	"xdpd/proto"
	"xdpd/sockets"
)

// TestTenThousandConnections opens as many, many at a time, and closes them: half of them at the peer's end first, half at
// the engine's. Nothing may be left of them, but who closed first waits in TIME-WAIT.
func TestTenThousandConnections(t *testing.T) {
	const n, atOnce = 10_000, 16
	lab, stack := engine(t, netlab.Options{})
	ln, err := stack.Listen("tcp", ":7")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, ln, func(c net.Conn) { // one byte says who closes first
		b := make([]byte, 1)
		if _, err := io.ReadFull(c, b); err != nil {
			t.Error(err)
		}
		if _, err := c.Write(b); err != nil {
			t.Error(err)
		}
		if b[0] == 'p' {
			if n, err := c.Read(b); err != io.EOF {
				t.Errorf("read %d bytes, %v; want the end", n, err)
			}
		}
	})
	to := netip.AddrPortFrom(lab.EngineAddr, 7)
	failed := make(chan error, atOnce)
	for worker := range atOnce {
		go func() { failed <- manyConnections(lab, to, n/atOnce, worker%2 == 0) }()
	}
	for range atOnce {
		if err := <-failed; err != nil { // each of them has a deadline; how long all take is the machine's matter
			t.Error(err)
		}
	}
	if got := counted(t, stack, sockets.TCPAccepted); got != n {
		t.Errorf("%d connections were accepted, not %d", got, n)
	}
	eventually(t, "the end of all connections", func() bool {
		m := states(t, stack)
		delete(m, "TIME-WAIT")
		return len(m) == 1 && m["LISTEN"] == 1
	})
	if m := states(t, stack); m["TIME-WAIT"] > n/2 {
		t.Errorf("%d connections wait, of which the engine closed %d first", m["TIME-WAIT"], n/2)
	}
}

// manyConnections opens connections one after the other.
func manyConnections(lab *netlab.Lab, to netip.AddrPort, n int, peerFirst bool) error {
	return lab.Peer.Do(func() error {
		for i := range n {
			c, err := net.DialTimeout("tcp4", to.String(), patience)
			if err != nil {
				return err
			}
			c.SetDeadline(time.Now().Add(patience))
			first, b := byte('e'), make([]byte, 2)
			if peerFirst {
				first = 'p'
			}
			if _, err = c.Write([]byte{first}); err == nil {
				_, err = io.ReadFull(c, b[:1])
			}
			if err == nil && b[0] != first {
				err = fmt.Errorf("%q came back for %q", b[0], first)
			}
			if err == nil && !peerFirst {
				var k int
				if k, err = c.Read(b); err == io.EOF {
					err = nil
				} else if err == nil {
					err = fmt.Errorf("%d bytes came before the end", k)
				}
			}
			if err = errors.Join(err, c.Close()); err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
		}
		return nil
	})
}

// TestKeepAliveOfPeer leaves a connection alone that the peer's kernel probes: every probe must be answered, or the kernel
// would give the connection up after two.
func TestKeepAliveOfPeer(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	serveTCPEcho(t, stack, 7)
	w := newAttacker(t, lab)
	c, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 7))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: time.Second, Interval: time.Second, Count: 2}); err != nil {
		t.Fatal(err)
	}
	ask(t, c, "before")
	barrier(t, lab)()
	w.overheard(func(*heard) bool { return true })
	port := c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	for range 5 {
		w.hear("an answer to a probe", func(g *heard) bool {
			return g.tcp.DstPort == port && g.tcp.Flags == proto.ACK && len(g.data) == 0
		})
	}
	ask(t, c, "after a long silence")
	c.Close()
	noConnections(t, stack)
}

// TestHTTPSByH2load serves HTTP/2 over TLS with the standard library on the engine's listener, to a client of another
// house with many streams on many connections.
func TestHTTPSByH2load(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	ln := listenTCP(t, stack, stack)
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<10)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(body) })}
	srv.TLSConfig, _ = certificate(t, lab.EngineAddr)
	served := blocked(func() error { return srv.ServeTLS(ln, "", "") })
	_, port, _ := net.SplitHostPort(ln.Addr().String())
	url := fmt.Sprintf("https://%s/", net.JoinHostPort(lab.EngineAddr.String(), port))
	const n = 5000
	for _, args := range [][]string{
		{"-m", "10"}, {"--h1"}, {"-m", "1", "-c", "200"},
	} {
		out := run(t, lab.Peer, "h2load", append([]string{"-n", fmt.Sprint(n), "-c", "20", "-t", "1"}, append(args, url)...)...)
		if want := fmt.Sprintf("%d succeeded, 0 failed, 0 errored, 0 timeout", n); !strings.Contains(out, want) {
			t.Errorf("h2load %v:\n%s", args, out)
		}
		if want := fmt.Sprintf("status codes: %d 2xx", n); !strings.Contains(out, want) {
			t.Errorf("h2load %v: no %q in\n%s", args, want, out)
		}
	}
	if err := srv.Close(); err != nil {
		t.Error(err)
	}
	if err := await(t, served, "the end of the server"); !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
}
