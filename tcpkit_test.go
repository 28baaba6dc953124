package xdpd_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/sockets"
)

// side is one end of the wire as a program sees it: the engine, or a kernel.
type side struct {
	addr   netip.Addr
	listen func(address string) (net.Listener, error)
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
}

// netFace is what a program does with package net: an engine has it, and a daemon's client.
type netFace interface {
	Listen(network, address string) (net.Listener, error)
	ListenPacket(network, address string) (net.PacketConn, error)
	Dial(network, address string) (net.Conn, error)
	DialContext(ctx context.Context, network, address string) (net.Conn, error)
}

// halfConn is a connection that can be ended one way.
type halfConn interface {
	net.Conn
	CloseRead() error
	CloseWrite() error
}

// eachFace runs a test on an engine, and on a client of one.
func eachFace(t *testing.T, o netlab.Options, test func(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack, f netFace)) {
	t.Run("engine", func(t *testing.T) {
		lab, stack := engine(t, o)
		test(t, lab, stack, stack)
	})
	t.Run("client", func(t *testing.T) {
		lab, stack := engine(t, o)
		_, path := daemon(t, stack, nil)
		test(t, lab, stack, client(t, path))
	})
}

func engineSide(f netFace, addr netip.Addr) side {
	return side{
		addr:   addr,
		listen: func(address string) (net.Listener, error) { return f.Listen("tcp", address) },
		dial:   f.DialContext,
	}
}

func kernelSide(ns *netlab.NS, addr netip.Addr) side {
	return side{
		addr: addr,
		listen: func(address string) (ln net.Listener, err error) {
			err = ns.Do(func() (err error) {
				ln, err = net.Listen("tcp4", address)
				return err
			})
			return ln, err
		},
		dial: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = ns.Do(func() (err error) {
				c, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return c, err
		},
	}
}

// open listens on a free port until the end of the test.
func (s side) open(t testing.TB) net.Listener {
	t.Helper()
	ln, err := s.listen(netip.AddrPortFrom(s.addr, 0).String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln
}

// connect makes a connection from one side to a listener, which is asked for the other end of it.
func connect(from side, ln net.Listener) (dialled, accepted net.Conn, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if dialled, err = from.dial(ctx, "tcp", ln.Addr().String()); err != nil {
		return nil, nil, err
	}
	if accepted, err = ln.Accept(); err != nil {
		dialled.Close()
		return nil, nil, err
	}
	return dialled, accepted, nil
}

// roles is every way in which an engine and somebody else can be client and server.
type role struct {
	name           string
	client, server side
}

// bothWays is a lab with an engine and a kernel as server and client of each other: the engine by itself, and over a daemon.
func bothWays(t *testing.T, o netlab.Options) (*netlab.Lab, *xdpd.Stack, []role) {
	t.Helper()
	lab, stack := engine(t, o)
	us, them := engineSide(stack, lab.EngineAddr), kernelSide(lab.Peer, lab.PeerAddr)
	_, path := daemon(t, stack, nil)
	far := engineSide(client(t, path), lab.EngineAddr)
	return lab, stack, []role{{"accept", them, us}, {"dial", us, them}, {"client accepts", them, far}, {"client dials", far, them}}
}

// dialledPair is a connection that the engine opened, with its kernel end. Both end with the test.
func dialledPair(t *testing.T, lab *netlab.Lab, stack *xdpd.Stack) (*xdpd.TCPConn, *net.TCPConn) {
	t.Helper()
	ln := kernelSide(lab.Peer, lab.PeerAddr).open(t)
	ours, theirs, err := connect(engineSide(stack, lab.EngineAddr), ln)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		theirs.Close()
		ours.Close()
	})
	theirs.SetDeadline(time.Now().Add(2 * patience))
	return ours.(*xdpd.TCPConn), theirs.(*net.TCPConn)
}

// quiet waits until no connection has anything to say any more.
func quiet(t testing.TB, stack *xdpd.Stack) {
	t.Helper()
	if isDone(stack) {
		return
	}
	eventually(t, "the end of all connections", func() bool {
		for _, q := range getStats(t, stack).Queues {
			for _, c := range q.TCP {
				if c.State != "TIME-WAIT" && c.State != "LISTEN" {
					return false
				}
			}
		}
		return true
	})
}

// countState is how many connections are in a state.
func countState(t testing.TB, stack *xdpd.Stack, state string) (n int) {
	t.Helper()
	for _, q := range getStats(t, stack).Queues {
		for _, c := range q.TCP {
			if c.State == state {
				n++
			}
		}
	}
	return n
}

func info(t testing.TB, c *xdpd.TCPConn) sockets.TCPInfo {
	t.Helper()
	i, err := c.Info()
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// serve runs f for every connection of a listener, until the test ends.
func serve(t testing.TB, ln net.Listener, f func(net.Conn)) {
	t.Helper()
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(2 * patience))
				f(c)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		all.Wait()
	})
}

// certificate makes TLS configurations for a server at the addresses, and for a client that trusts it.
func certificate(t testing.TB, addrs ...netip.Addr) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	for _, a := range addrs {
		template.IPAddresses = append(template.IPAddresses, a.AsSlice())
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: roots}
}
