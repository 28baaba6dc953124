package xdpd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
)

// daemon serves clients of a stack, this process's user with everything, and gives its socket.
func daemon(t testing.TB, stack *xdpd.Stack, change func(*xdpd.ClientPolicy)) (*xdpd.ClientServer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "clients")
	l, err := xdpd.ListenClients(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o666 {
		t.Errorf("the socket is %v, %v; all users must be able to ask", info, err)
	}
	p := xdpd.ClientPolicy{Name: "test", Users: []uint32{uint32(os.Getuid())}, Bind: []xdpd.PortRange{{First: 1, Last: 65535}}, CPU: 100}
	if change != nil {
		change(&p)
	}
	s, err := stack.ServeClients(l, []xdpd.ClientPolicy{p})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s, path
}

func client(t testing.TB, path string) *xdpd.Client {
	t.Helper()
	c, err := xdpd.Connect(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func clientSide(c *xdpd.Client, addr netip.Addr) side { return engineSide(c, addr) }

// viaDaemon is a client of a daemon and the kernel, as server and client of each other.
func viaDaemon(t *testing.T, o netlab.Options) (*netlab.Lab, *xdpd.Client, []role) {
	t.Helper()
	lab, stack := engine(t, o)
	_, path := daemon(t, stack, nil)
	c := client(t, path)
	ours, kernels := clientSide(c, lab.EngineAddr), kernelSide(lab.Peer, lab.PeerAddr)
	return lab, c, []role{{"client dials", ours, kernels}, {"kernel dials", kernels, ours}}
}

// TestClientStreams: megabytes both ways at once, and the ends of both.
func TestClientStreams(t *testing.T) {
	_, _, roles := viaDaemon(t, netlab.Options{})
	for _, r := range roles {
		t.Run(r.name, func(t *testing.T) {
			ln := r.server.open(t)
			c, s, err := connect(r.client, ln)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			defer s.Close()
			var wg sync.WaitGroup
			sendBoth(t, &wg, c, s, bytes.Repeat([]byte("sixteen bytes .."), 1<<18))
			wg.Wait()
		})
	}
}

// TestClientDaemonGone: what waits ends with an error when the daemon throws the client out, and what is opened then works again.
func TestClientDaemonGone(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	s, path := daemon(t, stack, nil)
	c := client(t, path)
	l, err := c.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	ours := clientSide(c, lab.EngineAddr)
	near, far, err := connect(ours, kernelSide(lab.Peer, lab.PeerAddr).open(t))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	go func() { _, err := l.Accept(); ended <- err }()
	go func() { _, err := near.Read(make([]byte, 1)); ended <- err }()
	list, _ := s.Clients()
	if len(list) != 1 || list[0].Sockets != 2 {
		t.Fatalf("clients %+v, want one with two sockets", list)
	}
	if err := s.Evict(list[0].ID); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-ended; !errors.Is(err, xdpd.ErrDaemonGone) {
			t.Errorf("ended with %v, want ErrDaemonGone", err)
		}
	}
	_ = far.SetReadDeadline(time.Now().Add(patience))
	if _, err := far.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the peer reads %v, want its connection's end", err)
	}
	// The number of a session that is gone means nothing to the next.
	if _, err := near.Write([]byte("x")); !errors.Is(err, xdpd.ErrDaemonGone) {
		t.Errorf("write: %v", err)
	}
	before := 0
	for i := range 20 { // what the last connection to the daemon had is given back
		again, err := c.Listen("tcp", ":80")
		if err != nil {
			t.Fatalf("after the daemon was gone: %v", err)
		}
		list, _ := s.Clients()
		if err := s.Evict(list[len(list)-1].ID); err != nil {
			t.Fatal(err)
		}
		if _, err := again.Accept(); !errors.Is(err, xdpd.ErrDaemonGone) {
			t.Errorf("accept: %v", err)
		}
		again.Close()
		if i == 0 {
			eventually(t, "the client to be gone", func() bool { list, _ := s.Clients(); return len(list) == 0 })
			before = descriptors(t)
		}
	}
	eventually(t, "all descriptors to be closed", func() bool { return descriptors(t) <= before })
	far.Close()
	near.Close()
	l.Close()
}

// TestClientPolicy: who may come in, and what may be bound and reached.
func TestClientPolicy(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	_, stranger := daemon(t, stack, func(p *xdpd.ClientPolicy) { p.Users = []uint32{uint32(os.Getuid()) + 1} })
	if _, err := xdpd.Connect(t.Context(), stranger); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a stranger: %v", err)
	}
	_, path := daemon(t, stack, func(p *xdpd.ClientPolicy) {
		p.Bind = []xdpd.PortRange{{Protocol: 6, First: 8000, Last: 8001}}
		p.Reach = []netip.Prefix{netip.PrefixFrom(lab.PeerAddr, 32)}
	})
	c := client(t, path)
	for address, may := range map[string]bool{":7999": false, ":8000": true, ":8001": true, ":8002": false, ":0": true} {
		l, err := c.Listen("tcp", address)
		if err == nil {
			l.Close()
		}
		if (err == nil) != may || err != nil && !errors.Is(err, os.ErrPermission) {
			t.Errorf("listen on %s: %v", address, err)
		}
	}
	if _, err := c.ListenPacket("udp", ":8000"); !errors.Is(err, os.ErrPermission) {
		t.Errorf("UDP: %v", err)
	}
	pc, err := c.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	other := net.UDPAddrFromAddrPort(netip.AddrPortFrom(lab.PeerAddr.Next().Next(), 9))
	if _, err := pc.WriteTo([]byte("x"), other); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a datagram to %v: %v", other, err)
	}
	if _, err := pc.WriteTo([]byte("x"), net.UDPAddrFromAddrPort(netip.AddrPortFrom(lab.PeerAddr, 9))); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, err := c.DialContext(ctx, "tcp", other.String()); !errors.Is(err, os.ErrPermission) {
		t.Errorf("a connection to %v: %v", other, err)
	}
}

// sendBoth has two ends of a connection send and close, and each must read what the other sent.
func sendBoth(t *testing.T, wg *sync.WaitGroup, c, s net.Conn, sent []byte) {
	for _, pair := range [][2]net.Conn{{c, s}, {s, c}} {
		wg.Go(func() {
			if n, err := pair[0].Write(sent); n != len(sent) || err != nil {
				t.Errorf("wrote %d: %v", n, err)
			}
			if err := pair[0].(interface{ CloseWrite() error }).CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			if got, err := io.ReadAll(pair[1]); err != nil || !bytes.Equal(got, sent) {
				t.Errorf("read %d bytes of %d, or others: %v", len(got), len(sent), err)
			}
		})
	}
}
