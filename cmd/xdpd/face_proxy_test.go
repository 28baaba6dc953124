package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
)

// oneBackend listens in the peer's namespace and gives what it accepts.
func (s *served) oneBackend(t *testing.T, port int) <-chan *net.TCPConn {
	t.Helper()
	var l *net.TCPListener
	err := s.Peer.Do(func() (err error) {
		l, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: s.PeerAddr.AsSlice(), Port: port})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	accepted := make(chan *net.TCPConn, 100)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.AcceptTCP()
			if err != nil {
				return
			}
			_ = c.SetDeadline(time.Now().Add(netlab.Patience))
			accepted <- c
		}
	}()
	t.Cleanup(func() {
		l.Close()
		<-ended
		for len(accepted) > 0 {
			(<-accepted).Close()
		}
	})
	return accepted
}

// flow is a connection through the proxy: the client's end, and the backend's. A check's connection is reset at once, and so
// the flow is known by its first byte.
func (s *served) flow(t *testing.T, port int, accepted <-chan *net.TCPConn) (client, backend *net.TCPConn) {
	t.Helper()
	client = s.dial(t, "tcp", port).(*net.TCPConn)
	_ = client.SetDeadline(time.Now().Add(netlab.Patience))
	if _, err := client.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	for {
		select {
		case backend = <-accepted:
			if _, err := io.ReadFull(backend, make([]byte, 1)); err == nil {
				t.Cleanup(func() { backend.Close() })
				return client, backend
			}
			backend.Close()
		case <-time.After(netlab.Patience):
			t.Fatal("the backend is never connected to")
		}
	}
}

// proxied is an engine with one proxy and one backend, which is up.
func proxied(t *testing.T, face string, options serviceOptions) (*served, <-chan *net.TCPConn) {
	t.Helper()
	options.Backends = []string{"10.77.0.1:8001"}
	options.Check = 50 * time.Millisecond
	s := serveAs(t, "discard", netlab.Options{}, fileConfig{Services: []serviceSpec{
		{Name: "proxy", Port: 80, TCP: true, Face: face, serviceOptions: options},
	}})
	accepted := s.oneBackend(t, 8001)
	eventually(t, "the backend", func() bool { return fmt.Sprint(s.state(t, "tcp")) == "[up]" })
	return s, accepted
}

// sendAll sends n bytes and then FIN; receive reads to the end and compares.
func sendAll(c *net.TCPConn, n int) error {
	_, err := c.Write(sourceBytes(make([]byte, n), 0))
	return errors.Join(err, c.CloseWrite())
}

func receive(t *testing.T, who string, c *net.TCPConn, n int) {
	t.Helper()
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sourceBytes(make([]byte, n), 0)) {
		t.Errorf("%s reads %d of %d bytes, %v", who, len(got), n, err)
	}
}

// TestServeProxyHalfClose: each direction ends by itself, whichever is first, and the other goes on.
func TestServeProxyHalfClose(t *testing.T) {
	const size = 2 << 20
	eachFace(t, func(t *testing.T, face string) {
		s, accepted := proxied(t, face, serviceOptions{})
		for _, clientFirst := range []bool{true, false} {
			client, backend := s.flow(t, 80, accepted)
			first, second := client, backend
			if !clientFirst {
				first, second = backend, client
			}
			sent := make(chan error, 1)
			go func() { sent <- sendAll(first, size) }()
			receive(t, "the second", second, size)
			go func() { sent <- sendAll(second, size+8) }()
			receive(t, "the first", first, size+8)
			if err := errors.Join(<-sent, <-sent); err != nil {
				t.Error(err)
			}
			client.Close()
			backend.Close()
		}
		s.restful(t)
		sv := s.service(t, "proxy", "tcp")
		n := sv.Backends[0].Counters
		if sv.Counters["broken"] != 0 || n["bytes_sent"] != 2+2*size+8 || n["bytes_received"] != 2*size+8 {
			t.Errorf("counted %v, %v", sv.Counters, n)
		}
	})
}

// writeFull writes until nothing goes any more, and says how much went.
func writeFull(c *net.TCPConn) (n int) {
	b := sourceBytes(make([]byte, 64<<20), 0)
	for {
		_ = c.SetWriteDeadline(time.Now().Add(300 * time.Millisecond))
		k, err := c.Write(b[n:])
		n += k
		if k == 0 || err == nil {
			_ = c.SetWriteDeadline(time.Now().Add(netlab.Patience))
			return n
		}
	}
}

// TestServeProxyBackpressure: who does not read stops who writes, in both directions at once, and nobody else. Then all of
// it arrives.
func TestServeProxyBackpressure(t *testing.T) {
	eachFace(t, func(t *testing.T, face string) {
		s, accepted := proxied(t, face, serviceOptions{})
		client, backend := s.flow(t, 80, accepted)
		forth, back := writeFull(client), writeFull(backend)
		if forth > 32<<20 || back > 32<<20 {
			t.Errorf("%d and %d bytes are on their way to somebody who does not read", forth, back)
		}
		c2, b2 := s.flow(t, 80, accepted)
		sent := make(chan error, 2)
		go func() { sent <- sendAll(c2, 1<<20) }()
		receive(t, "somebody else", b2, 1<<20)
		go func() { sent <- errors.Join(client.CloseWrite(), backend.CloseWrite()) }()
		receive(t, "the backend", backend, forth)
		receive(t, "the client", client, back)
		if err := errors.Join(<-sent, <-sent); err != nil {
			t.Error(err)
		}
		b2.Close()
		c2.Close()
		s.restful(t)
	})
}

// TestServeProxyResets: a reset on one side is one on the other, also on a side from which nothing is read.
func TestServeProxyResets(t *testing.T) {
	eachFace(t, func(t *testing.T, face string) {
		s, accepted := proxied(t, face, serviceOptions{})
		for _, c := range []struct{ client, full bool }{{true, false}, {false, false}, {true, true}, {false, true}} {
			one, other := s.flow(t, 80, accepted)
			if !c.client {
				one, other = other, one
			}
			if c.full {
				writeFull(one)
			}
			_ = one.SetLinger(0)
			one.Close()
			if _, err := io.Copy(io.Discard, other); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("client resets: %v, after it wrote all that went: %v: the other sees %v", c.client, c.full, err)
			}
			other.Close()
		}
		s.restful(t)
		eventually(t, "the count", func() bool { return s.service(t, "proxy", "tcp").Counters["broken"] == 4 })
	})
}

// TestServeProxyLimits: flows beyond the limit are reset, and silent ones. The first are silent for as long as the third takes
// to be refused.
func TestServeProxyLimits(t *testing.T) {
	eachFace(t, func(t *testing.T, face string) {
		s, accepted := proxied(t, face, serviceOptions{Flows: 2, Idle: 4 * time.Second})
		c1, b1 := s.flow(t, 80, accepted)
		_, b2 := s.flow(t, 80, accepted)
		c, err := s.DialContext(t.Context(), "tcp4", s.at(80))
		if err == nil {
			_, err = c.Read(make([]byte, 1))
			c.Close()
		}
		if !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("a third flow sees %v", err)
		}
		for _, silent := range []*net.TCPConn{c1, b1, b2} {
			if _, err := silent.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("a silent flow sees %v", err)
			}
		}
		c3, b3 := s.flow(t, 80, accepted)
		if err := sendAll(c3, 100); err != nil {
			t.Error(err)
		}
		receive(t, "the next", b3, 100)
		b3.Close()
		c3.Close()
		s.restful(t)
		if n := s.service(t, "proxy", "tcp").Counters; n["full_table"] != 1 || n["idle"] != 2 || n["flows"] != 3 {
			t.Errorf("counted %v", n)
		}
	})
}

// TestServeQueues: every queue has its own loop, and dials by itself.
func TestServeQueues(t *testing.T) { testServeAll(t, netlab.Options{Queues: 3}, fileConfig{}) }

// TestServeShare: beside the kernel, on its address, only what has a port comes to the engine, also what was dialled.
func TestServeShare(t *testing.T) {
	testServeAll(t, netlab.Options{KernelAddr: true}, fileConfig{Share: true})
}

// testServeAll has all three services at work at a time, on each face.
func testServeAll(t *testing.T, wire netlab.Options, file fileConfig) {
	needRoot(t)
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "page"), sourceBytes(make([]byte, 1<<18), 0), 0o644); err != nil {
		t.Fatal(err)
	}
	eachFace(t, func(t *testing.T, face string) {
		const conns = 8
		file.Face = face
		s := serveAs(t, "echo,proxy=80:tcp:10.77.0.1:8001,http=81:"+dir, wire, file)
		backend := s.tcpBackend(t, 8001, "a")
		eventually(t, "the backend", func() bool { return fmt.Sprint(s.state(t, "tcp")) == "[up]" })
		parallel(t, 3*conns, func(i int) error {
			port, head := []int{7, 80, 81}[i%3], []string{"", "a", ""}[i%3]
			conn, err := s.DialContext(t.Context(), "tcp4", s.at(port))
			if err != nil {
				return err
			}
			defer conn.Close()
			c := conn.(*net.TCPConn)
			_ = c.SetDeadline(time.Now().Add(netlab.Patience))
			want := sourceBytes(make([]byte, 1<<18), 0)
			sent := make(chan error, 1)
			if port == 81 {
				_, err := io.WriteString(c, "GET /page HTTP/1.0\r\n\r\n")
				sent <- err
			} else {
				go func() { sent <- sendAll(c, len(want)) }()
			}
			got, err := io.ReadAll(c)
			if err = errors.Join(err, <-sent); err == nil && port == 81 {
				_, got, _ = bytes.Cut(got, []byte("\r\n\r\n"))
			}
			if err != nil || string(got) != head+string(want) {
				return fmt.Errorf("port %d: %d bytes, %w", port, len(got), err)
			}
			return nil
		})
		backend.stop()
		s.restful(t)
	})
}
