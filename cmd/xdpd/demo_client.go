package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/proto"
)

// client is one of the kernel's own sockets in a namespace, connected to the engine. It polls: what a blocking receive
// would add to a round trip is the time the kernel takes to wake a thread, many times the engine's own.
type client struct {
	fd  int
	buf [65536]byte
}

func newClient(ns *netlab.NS, kind, protocol int, to netip.AddrPort) (*client, error) {
	c := &client{}
	err := ns.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
		if err != nil {
			return fmt.Errorf("open a socket: %w", err)
		}
		c.fd = fd
		if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}); err != nil {
			unix.Close(fd)
			return fmt.Errorf("connect a socket to %s: %w", to, err)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return c, nil
}

func (c *client) close() { unix.Close(c.fd) }

// send sends one datagram. false: the kernel has no room now.
func (c *client) send(b []byte) (bool, error) {
	_, err := unix.Write(c.fd, b)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.EINTR):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("send: %w", err)
	}
	return true, nil
}

// receive gives a datagram, which is good until the next call; nil when there is none.
func (c *client) receive() ([]byte, error) {
	n, err := unix.Read(c.fd, c.buf[:])
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("receive: %w", err)
	}
	return c.buf[:n], nil
}

// exchange sends a request and waits for the reply that isReply knows. ok is false when none came in time.
func (c *client) exchange(request []byte, isReply func(b []byte) bool, timeout time.Duration) (rtt time.Duration, ok bool, err error) {
	start := time.Now()
	sent := false
	for {
		if !sent {
			if sent, err = c.send(request); err != nil {
				return 0, false, err
			}
		}
		b, err := c.receive()
		rtt = time.Since(start)
		switch {
		case err != nil:
			return 0, false, err
		case b != nil && isReply(b):
			return rtt, true, nil
		case rtt > timeout:
			return 0, false, nil
		case b == nil:
			runtime.Gosched() // on a machine with one CPU the engine needs it now
		}
	}
}

// pinger sends ICMP echo requests from a raw socket: ping(8) without the program.
type pinger struct {
	*client
	request [64]byte // 8 of header
	seq     uint16
}

const pingID = 0x7864

func newPinger(ns *netlab.NS, to netip.Addr) (*pinger, error) {
	c, err := newClient(ns, unix.SOCK_RAW, unix.IPPROTO_ICMP, netip.AddrPortFrom(to, 0))
	if err != nil {
		return nil, err
	}
	p := &pinger{client: c}
	for i := range p.request {
		p.request[i] = byte(i)
	}
	return p, nil
}

// ping does one echo. The reply must quote the request to the byte.
func (p *pinger) ping(timeout time.Duration) (rtt time.Duration, ok bool, err error) {
	p.seq++
	rest := pingID<<16 | uint32(p.seq)
	proto.PutICMP(p.request[:], proto.ICMPEcho, 0, rest)
	binary.BigEndian.PutUint32(p.request[8:], rest)
	proto.SetICMPChecksum(p.request[:])
	return p.exchange(p.request[:], p.isReply, timeout)
}

func (p *pinger) isReply(b []byte) bool {
	ip, fault := proto.ParseIPv4(b) // a raw socket gives the IP header too (raw(7))
	if fault != proto.OK {
		return false
	}
	b = b[ip.HeaderLen:ip.TotalLen]
	icmp, fault := proto.ParseICMP(b)
	return fault == proto.OK && icmp.Type == proto.ICMPEchoReply && bytes.Equal(b[4:], p.request[4:])
}
