package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"runtime"

	"github.com/asavie/xdp"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings/asavie"
	"xdpd/sockets"
	"xdpd/umem"
)

// The sizes are those that the engine uses on sockets of its own.
const (
	asavieFrames = 16384
	asavieChunk  = 2048
	asavieFill   = 4096
)

// serveAsavie is the engine's stack and reactor over a socket of github.com/asavie/xdp, with that library's XDP program:
// the same echo, so that what differs is the way of the
// frames.
func serveAsavie(ctx context.Context, o serveOptions, ready func()) (_ counters, err error) {
	dev, err := net.InterfaceByName(o.dev)
	if err != nil {
		return counters{}, err
	}
	sock, err := xdp.NewSocket(dev.Index, 0, &xdp.SocketOptions{
		NumFrames: asavieFrames, FrameSize: asavieChunk, FillRingNumDescs: asavieFill, CompletionRingNumDescs: 4096,
		RxRingNumDescs: 2048, TxRingNumDescs: 2048,
	})
	if err != nil {
		return counters{}, err
	}
	adapter, err := asavie.New(sock)
	if err != nil {
		return counters{}, errors.Join(err, sock.Close())
	}
	defer func() { err = errors.Join(err, adapter.Close()) }()
	program, err := xdp.NewProgram(1)
	if err != nil {
		return counters{}, err
	}
	defer func() { err = errors.Join(err, program.Close()) }()
	if err := program.Attach(dev.Index); err != nil {
		return counters{}, err
	}
	defer func() { err = errors.Join(err, program.Detach(dev.Index)) }()
	if err := program.Register(0, sock.FD()); err != nil {
		return counters{}, err
	}
	host, r, err := asavieReactor(adapter, dev, o)
	if err != nil {
		return counters{}, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	if err := startAsavie(r, o); err != nil {
		return counters{}, err
	}
	ready()
	polls, err := runTurns(ctx, r, adapter.FD())
	if err != nil {
		return counters{}, err
	}
	kernel, err := adapter.Stats()
	if err != nil {
		return counters{}, err
	}
	c := fromStats(&xdpd.Stats{Native: true, Queues: []xdpd.QueueStats{
		{Kernel: kernel, Reactor: r.Counters(), Host: *host.Counters()},
	}})
	c.Syscalls += polls
	return c, nil
}

// startAsavie starts the work on the reactor.
func startAsavie(r *reactor.Reactor, o serveOptions) error {
	if o.work == "udp-echo" {
		return startUDP(r, o)
	}
	h, _, _ := r.Enter()
	listener, errno := h.TCPListen(0, uint16(o.port))
	r.Leave()
	if errno != 0 {
		return fmt.Errorf("TCP port %d: %w", o.port, errno)
	}
	return startTCP(r, o, listener)
}

// asavieReactor makes what xdpd.Open makes for a queue.
func asavieReactor(a *asavie.Adapter, dev *net.Interface, o serveOptions) (*sockets.Host, *reactor.Reactor, error) {
	addr, ok := proto.AddrFrom(o.addr.Addr())
	if !ok {
		return nil, nil, fmt.Errorf("%s is no IPv4 address", o.addr)
	}
	cfg := sockets.Config{
		MAC: proto.MAC(dev.HardwareAddr), MTU: dev.MTU, AcceptPartial: true, FillFrames: asavieFill,
		Addrs: []sockets.Prefix{{Addr: addr, Bits: o.addr.Bits()}},
	}
	if o.work == "udp-echo" {
		cfg.RcvBuf = rcvBuf
	}
	if _, err := rand.Read(cfg.Seed[:]); err != nil {
		return nil, nil, err
	}
	pool := umem.NewPool(a.Region(), 0, asavieFrames, nil)
	host, err := sockets.New(cfg, pool, reactor.Monotonic())
	if err != nil {
		return nil, nil, err
	}
	r, err := reactor.New(reactor.Config{Port: a.Port(), Pool: pool, Host: host, FillFrames: asavieFill})
	return host, r, err
}

// runTurns is Reactor.Run for the adapter: it spins and sleeps alike, but spins in turns. Run spins on the RX ring, which
// for the adapter is memory that nobody writes to between turns. It counts its own system calls.
func runTurns(ctx context.Context, r *reactor.Reactor, fd int) (polls uint64, err error) {
	const spinNS, sleepMS = 50_000, 100
	idleSince := int64(0)
	for ctx.Err() == nil {
		worked, deadline := r.Turn()
		now := reactor.Monotonic()
		if worked {
			idleSince = 0
			continue
		}
		if idleSince == 0 {
			idleSince = now
		}
		if now-idleSince < spinNS {
			runtime.Gosched()
			continue
		}
		wait := max(0, min((deadline-now)/1e6, sleepMS))
		polls++
		if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(wait)); err != nil && !errors.Is(err, unix.EINTR) {
			return polls, fmt.Errorf("poll: %w", err)
		}
		idleSince = 0
	}
	return polls, r.Run(ctx) // which ends at once, and tells if the device failed
}
