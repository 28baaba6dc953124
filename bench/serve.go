package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime/pprof"
	"strings"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/reactor"
	"xdpd/sockets"
)

const (
	port   = 7
	rcvBuf = 8 << 20 // bytes every server may queue for receiving, as peers/udpecho_kernel.c

	// echoBatch is what the reactor receives in a turn at most. Were it less, an overload would be taken in, queued, and
	// dropped at the socket, where a drop costs most.
	echoBatch = 256
)

// serveOptions are the flags behind -serve NAME.
type serveOptions struct {
	work    string
	dev     string
	addr    netip.Prefix
	port    uint
	profile string
}

// counters is what a server says at its end.
type counters struct {
	Mode      string            `json:"mode"`       // how frames got to the engine
	FramesIn  uint64            `json:"frames_in"`  // for kernel sockets, datagrams
	FramesOut uint64            `json:"frames_out"` // same
	ARP       uint64            `json:"arp"`        // of FramesIn
	Delivered uint64            `json:"delivered"`  // datagrams queued on the socket
	Sent      uint64            `json:"sent"`       // datagrams sent
	Syscalls  uint64            `json:"syscalls"`   // of the data path; 0: not counted
	Drops     map[string]uint64 `json:"drops"`      // reasons as in the engine's ledger
}

// serveFuncs run a server until ctx ends; ready is to be called when it serves.
var serveFuncs = map[string]func(ctx context.Context, o serveOptions, ready func()) (counters, error){
	"xdpd":     serveReactor,
	"xdpd-net": serveNetFace,
	"asavie":   serveAsavie,
	"net":      serveNet,
	"raw":      serveRaw,
}

// serve is what runs behind -serve, inside the engine's namespace. It prints "ready", and its counters when ctx ends.
func serve(ctx context.Context, args []string) error {
	var o serveOptions
	f := flag.NewFlagSet("bench -serve NAME", flag.ContinueOnError)
	f.StringVar(&o.work, "work", "udp-echo", "what to serve")
	f.StringVar(&o.dev, "dev", "", "interface")
	f.TextVar(&o.addr, "addr", netip.Prefix{}, "address")
	f.UintVar(&o.port, "port", port, "UDP port (raw)")
	f.StringVar(&o.profile, "cpuprofile", "", "file")
	if len(args) == 0 || serveFuncs[args[0]] == nil {
		return fmt.Errorf("-serve %s: no such server", strings.Join(args, " "))
	}
	if err := f.Parse(args[1:]); err != nil {
		return err
	}
	ready := func() { fmt.Println("ready") }
	if o.profile != "" {
		out, err := os.Create(o.profile)
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	c, err := serveFuncs[args[0]](ctx, o, ready)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(c)
}

func open(o serveOptions) (*xdpd.Stack, error) {
	return xdpd.Open(xdpd.Config{Interface: o.dev, Addrs: []netip.Prefix{o.addr}, RcvBuf: rcvBuf})
}

// serveReactor is the engine with the echo as a handler on the reactor.
func serveReactor(ctx context.Context, o serveOptions, ready func()) (counters, error) {
	st, err := open(o)
	if err != nil {
		return counters{}, err
	}
	defer st.Close()
	for _, r := range st.Reactors() {
		if err := startEcho(r); err != nil {
			return counters{}, err
		}
	}
	ready()
	select {
	case <-ctx.Done():
	case <-st.Done():
		return counters{}, st.Err()
	}
	stats, err := st.Stats()
	if err != nil {
		return counters{}, err
	}
	return fromStats(&stats), nil
}

// echo is the handler. A datagram that cannot be sent for want of frames is kept, and stops reception.
type echo struct {
	poller *reactor.Poller
	kept   bool
	d      sockets.Datagram
	buf    [2048]byte
}

// startEcho opens the port on a reactor.
func startEcho(r *reactor.Reactor) error {
	e := &echo{poller: reactor.NewPoller(r)}
	h, _, ok := r.Enter()
	defer r.Leave()
	if !ok {
		return reactor.ErrStopped
	}
	s, errno := h.UDPBind(0, port)
	if errno != 0 {
		return fmt.Errorf("UDP port %d: %w", port, errno)
	}
	e.poller.Serve(e.ready)
	return e.poller.Add(s, sockets.In, 0)
}

func (e *echo) ready(h *sockets.Host, now int64, ev reactor.Event) {
	for range echoBatch {
		if !e.kept {
			var errno sockets.Errno
			if e.d, errno = h.UDPRecv(ev.Sock, e.buf[:]); errno != 0 {
				return
			}
		}
		full := h.UDPSend(ev.Sock, e.buf[:e.d.N], e.d.Src, now) == sockets.EAGAIN
		if full != e.kept {
			e.kept = full
			e.wait(ev.Sock)
		}
		if full {
			return
		}
	}
}

func (e *echo) wait(s sockets.Handle) {
	mask := sockets.In
	if e.kept {
		mask = sockets.Out
	}
	_ = e.poller.Mod(s, mask, 0) // the socket is in the poller: it just called us
}

// fromStats takes what counts from the engine's ledger.
func fromStats(s *xdpd.Stats) counters {
	c := counters{Mode: "copy, generic", Drops: s.Drops()}
	switch {
	case s.ZeroCopy:
		c.Mode = "zero copy, native"
	case s.Native:
		c.Mode = "copy, native"
	}
	for i := range s.Queues {
		q := &s.Queues[i]
		c.FramesIn += q.Reactor.RxFrames
		c.FramesOut += q.Reactor.TxFrames
		c.ARP += q.Host.Stats[sockets.RxARP]
		c.Delivered += q.Host.Stats[sockets.RxDelivered]
		c.Sent += q.Host.Stats[sockets.TxUDP]
		c.Syscalls += q.Reactor.Syscalls()
	}
	return c
}

// fromPeer reads what peers/udpecho_kernel.c prints.
func (c *counters) fromPeer(line []byte) error {
	var p struct{ Received, Sent, Batches, Truncated, Errors uint64 }
	if err := json.Unmarshal(line, &p); err != nil {
		return err
	}
	*c = counters{
		FramesIn: p.Received, FramesOut: p.Sent, Delivered: p.Received, Sent: p.Sent,
		Syscalls: 2 * p.Batches, Drops: map[string]uint64{},
	}
	if n := p.Truncated + p.Errors; n > 0 {
		c.Drops["errors"] = n
	}
	return nil
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

// echoBlocking is the program that anybody would write. It runs until the socket is closed, and counts.
func echoBlocking(s socket) (in, out uint64) {
	var buf [2048]byte
	for {
		n, from, err := s.ReadFromUDPAddrPort(buf[:])
		if err != nil {
			return in, out
		}
		in++
		if _, err := s.WriteToUDPAddrPort(buf[:n], from); err == nil {
			out++
		}
	}
}

// runBlocking runs echoBlocking in a goroutine until ctx or the engine ends.
func runBlocking(ctx context.Context, s socket, failed <-chan struct{}) (in, out uint64, err error) {
	done := make(chan struct{})
	go func() {
		in, out = echoBlocking(s)
		close(done)
	}()
	select {
	case <-ctx.Done():
	case <-failed:
	}
	err = s.Close()
	<-done
	return in, out, err
}

// serveNetFace is the engine through its net face.
func serveNetFace(ctx context.Context, o serveOptions, ready func()) (counters, error) {
	st, err := open(o)
	if err != nil {
		return counters{}, err
	}
	defer st.Close()
	conn, err := st.ListenPacket("udp", fmt.Sprintf(":%d", port))
	if err != nil {
		return counters{}, err
	}
	ready()
	if _, _, err := runBlocking(ctx, conn.(*xdpd.UDPConn), st.Done()); err != nil {
		return counters{}, err
	}
	if err := st.Err(); err != nil {
		return counters{}, err
	}
	stats, err := st.Stats()
	if err != nil {
		return counters{}, err
	}
	return fromStats(&stats), nil
}

// serveNet is the same program over package net.
func serveNet(ctx context.Context, o serveOptions, ready func()) (counters, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{Port: port})
	if err != nil {
		return counters{}, err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return counters{}, err
	}
	var errSet error
	if err := raw.Control(func(fd uintptr) {
		errSet = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, rcvBuf)
	}); err != nil || errSet != nil {
		return counters{}, fmt.Errorf("SO_RCVBUFFORCE: %w, %w", err, errSet)
	}
	ready()
	in, out, err := runBlocking(ctx, conn, nil)
	return counters{FramesIn: in, FramesOut: out, Delivered: in, Sent: out, Drops: map[string]uint64{}}, err
}
