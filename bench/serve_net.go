package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"xdpd"
)

// network is what a blocking program needs of a stack: package net's, or the engine's.
type network struct {
	packet func() (socket, error)
	listen func() (net.Listener, error)
}

// socket is what package net's UDP sockets and the engine's have in common.
type socket interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error)
	Close() error
}

var (
	_ socket = (*net.UDPConn)(nil)
	_ socket = (*xdpd.UDPConn)(nil)
)

// moved counts what the blocking programs read and wrote.
type moved struct{ in, out atomic.Uint64 }

// start starts a work's goroutines; close ends the first of them.
func (f *network) start(work string, m *moved) (close func() error, err error) {
	if work == "udp-echo" {
		s, err := f.packet()
		if err != nil {
			return nil, err
		}
		go echoPackets(s, m)
		return s.Close, nil
	}
	ln, err := f.listen()
	if err != nil {
		return nil, err
	}
	if work == "http" {
		srv := &http.Server{Handler: http.HandlerFunc(hello), ErrorLog: log.New(io.Discard, "", 0)}
		go srv.Serve(ln)
		return srv.Close, nil
	}
	go acceptAll(ln, work, m)
	return ln.Close, nil
}

// hello answers as small as a page can be: 13 bytes.
func hello(w http.ResponseWriter, _ *http.Request) {
	_, _ = io.WriteString(w, "Hello, World!")
}

// echoPackets is the program that anybody would write. It runs until the socket is closed, and counts.
func echoPackets(s socket, m *moved) {
	buf := make([]byte, 9216)
	for {
		n, from, err := s.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		m.in.Add(1)
		if _, err := s.WriteToUDPAddrPort(buf[:n], from); err == nil {
			m.out.Add(1)
		}
	}
}

// acceptAll serves connections, each in a goroutine, until the listener is closed.
func acceptAll(ln net.Listener, work string, m *moved) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		m.in.Add(1)
		if work == "tcp-accept" {
			_ = c.Close() // there is nothing to lose
			continue
		}
		go func() {
			defer c.Close()
			serveConn(c, work, m)
		}()
	}
}

func serveConn(c net.Conn, work string, m *moved) {
	buf := make([]byte, 64<<10)
	for {
		if work != "tcp-source" {
			n, err := c.Read(buf)
			if err != nil {
				return
			}
			m.in.Add(1)
			if work == "tcp-sink" {
				continue
			}
			buf = buf[:n]
		}
		if _, err := c.Write(buf); err != nil {
			return
		}
		m.out.Add(1)
		buf = buf[:cap(buf)]
	}
}

// serveNetFace is the engine through its net face.
func serveNetFace(ctx context.Context, o serveOptions, ready func()) (counters, error) {
	st, err := open(o)
	if err != nil {
		return counters{}, err
	}
	defer st.Close()
	at := fmt.Sprintf(":%d", o.port)
	f := network{
		packet: func() (socket, error) {
			c, err := st.ListenPacket("udp", at)
			if err != nil {
				return nil, err
			}
			return c.(*xdpd.UDPConn), nil
		},
		listen: func() (net.Listener, error) { return st.Listen("tcp", at) },
	}
	if _, err := f.start(o.work, new(moved)); err != nil {
		return counters{}, err
	}
	return whileRunning(ctx, st, ready)
}

// serveNet is the same program over package net.
func serveNet(ctx context.Context, o serveOptions, ready func()) (counters, error) {
	f := network{
		packet: func() (socket, error) { return listenUDP(int(o.port)) },
		listen: func() (net.Listener, error) { return net.Listen("tcp4", fmt.Sprintf(":%d", o.port)) },
	}
	m := new(moved)
	end, err := f.start(o.work, m)
	if err != nil {
		return counters{}, err
	}
	ready()
	<-ctx.Done()
	c := counters{FramesIn: m.in.Load(), FramesOut: m.out.Load(), Drops: map[string]uint64{}}
	if o.work == "udp-echo" {
		c.Delivered, c.Sent = c.FramesIn, c.FramesOut
	}
	return c, end()
}

func listenUDP(port int) (*net.UDPConn, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
	if err != nil {
		return nil, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, err
	}
	var errSet error
	err = raw.Control(func(fd uintptr) {
		errSet = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvBuf)
	})
	if err = errors.Join(err, errSet); err != nil {
		return nil, fmt.Errorf("SO_RCVBUFFORCE: %w", err)
	}
	return conn, nil
}
