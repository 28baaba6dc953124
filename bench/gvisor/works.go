package main

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// works start to serve a port. What ends the service before its time comes through failed.
var works = map[string]func(s *stack.Stack, port uint16, failed chan<- error) error{
	"udp-echo":   udpEcho,
	"tcp-echo":   serveTCP(echo),
	"tcp-accept": serveTCP(func(net.Conn) {}),
	"tcp-sink":   serveTCP(sink),
	"tcp-source": serveTCP(source),
	"http":       serveHTTP,
}

// udpEcho answers where a datagram is delivered, on the goroutine that received it: to wake another one for it costs gVisor a
// third of what it can do, and most of a round trip.
func udpEcho(s *stack.Stack, port uint16, failed chan<- error) error {
	var queue waiter.Queue
	ep, err := s.NewEndpoint(udp.ProtocolNumber, ipv4.ProtocolNumber, &queue)
	if err != nil {
		return asError(err)
	}
	var mu sync.Mutex // the AF_PACKET link delivers on several goroutines
	var in bytes.Buffer
	var out bytes.Reader
	readable := waiter.NewFunctionEntry(waiter.ReadableEvents, func(waiter.EventMask) {
		mu.Lock()
		defer mu.Unlock()
		for {
			in.Reset()
			got, err := ep.Read(&in, tcpip.ReadOptions{NeedRemoteAddr: true})
			if _, none := err.(*tcpip.ErrWouldBlock); none {
				return
			}
			if err != nil {
				failed <- asError(err)
				return
			}
			out.Reset(in.Bytes())
			_, _ = ep.Write(&out, tcpip.WriteOptions{To: &got.RemoteAddr}) // what finds no room is lost, and counted
		}
	})
	queue.EventRegister(&readable)
	if err := ep.Bind(tcpip.FullAddress{NIC: nicID, Port: port}); err != nil {
		return asError(err)
	}
	return nil
}

func listen(s *stack.Stack, port uint16) (*gonet.TCPListener, error) {
	return gonet.ListenTCP(s, tcpip.FullAddress{NIC: nicID, Port: port}, ipv4.ProtocolNumber)
}

// serveTCP accepts, and has a goroutine for each connection.
func serveTCP(serve func(net.Conn)) func(s *stack.Stack, port uint16, failed chan<- error) error {
	return func(s *stack.Stack, port uint16, failed chan<- error) error {
		l, err := listen(s, port)
		if err != nil {
			return err
		}
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					failed <- err
					return
				}
				go func() {
					serve(c)
					c.Close()
				}()
			}
		}()
		return nil
	}
}

func echo(c net.Conn) {
	var buf [16 << 10]byte
	for {
		n, err := c.Read(buf[:])
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func sink(c net.Conn) {
	var buf [256 << 10]byte
	for {
		if _, err := c.Read(buf[:]); err != nil {
			return
		}
	}
}

func source(c net.Conn) {
	var buf [256 << 10]byte
	for {
		if _, err := c.Write(buf[:]); err != nil {
			return
		}
	}
}

func serveHTTP(s *stack.Stack, port uint16, failed chan<- error) error {
	l, err := listen(s, port)
	if err != nil {
		return err
	}
	hello := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "Hello, World!") }
	go func() { failed <- http.Serve(l, http.HandlerFunc(hello)) }()
	return nil
}

// asError makes an error of gVisor's, which is none.
func asError(err tcpip.Error) error { return errors.New(err.String()) }
