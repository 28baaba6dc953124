package xdpd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/reactor"
	"xdpd/rings"
)

// RemoteConfig says how large a ring of a daemon is to be. The zero value is a good default.
type RemoteConfig struct {
	SQEntries, CQEntries uint32 // powers of two (default 512 and twice as many)
	Requests             uint32 // that may be in flight (default what the daemon allows)
	Sockets, Fixed       uint32 // numbers (default what the daemon allows), slots of the fixed table
	Reactor              uint32 // whose ring it is: taken modulo how many there are
	Data                 uint64 // bytes of memory for addresses and data (default 8 MiB)
}

// RemoteRing is a ring of an engine in another process, an xdpd that serves clients. Its operations are those of docs/ring.md,
// without the lending of frames; addresses in them are offsets in Data.
type RemoteRing struct {
	*reactor.RingClient
	Data     []byte
	Reactor  int
	Reactors int // how many the engine has
	MTU      int

	conn     *net.UnixConn
	share    *rings.Share
	done     chan struct{}
	watching sync.WaitGroup
}

const (
	defaultRemoteSQ   = 512
	defaultRemoteData = 8 << 20
)

// OpenRing asks the daemon at path, the unix socket that it serves clients on, for a ring.
func OpenRing(ctx context.Context, path string, cfg RemoteConfig) (*RemoteRing, error) {
	c, err := dialDoor(ctx, path)
	if err != nil {
		return nil, err
	}
	q, err := joinRing(ctx, c.(*net.UnixConn), cfg)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("xdpd at %s: %w", path, err)
	}
	return q, nil
}

// doorPatience is how long a door may be crowded.
const doorPatience = 5 * time.Second

// dialDoor connects to the daemon's socket. Where so many connect that its queue is full, connect(2) waits, but package net's, which never
// blocks, is told EAGAIN.
func dialDoor(ctx context.Context, path string) (net.Conn, error) {
	for until := time.Now().Add(doorPatience); ; {
		var d net.Dialer
		c, err := d.DialContext(ctx, "unixpacket", path)
		if !errors.Is(err, unix.EAGAIN) || time.Now().After(until) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
}

func joinRing(ctx context.Context, conn *net.UnixConn, cfg RemoteConfig) (*RemoteRing, error) {
	if cfg.SQEntries == 0 {
		cfg.SQEntries = defaultRemoteSQ
	}
	if cfg.CQEntries == 0 {
		cfg.CQEntries = 2 * cfg.SQEntries
	}
	if cfg.Data == 0 {
		cfg.Data = defaultRemoteData
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	h := rings.ShareHello{
		Magic: rings.ShareMagic, Version: rings.ShareVersion, SQEntries: cfg.SQEntries, CQEntries: cfg.CQEntries,
		Requests: cfg.Requests, Sockets: cfg.Sockets, Fixed: cfg.Fixed, Reactor: cfg.Reactor, Data: cfg.Data,
	}
	if err := rings.SendShare(conn, &h); err != nil {
		return nil, err
	}
	var w rings.ShareWelcome
	fds, err := rings.RecvShare(conn, &w)
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = refusedBy(&w, len(fds))
	}
	if err != nil {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		return nil, err
	}
	q := &RemoteRing{Reactor: int(w.Reactor), Reactors: int(w.Reactors), MTU: int(w.MTU), conn: conn, done: make(chan struct{})}
	if q.share, err = rings.JoinShare(fds[0], &w); err != nil {
		return nil, err
	}
	woken := make(chan struct{}, 1)
	q.Data = q.share.Data
	if q.RingClient, err = reactor.JoinRing(q.share.Ring, q.knock, woken, q.done); err != nil {
		return nil, errors.Join(err, q.share.Close())
	}
	q.watching.Go(func() { q.watch(woken) })
	return q, nil
}

// refusedBy is what a daemon's answer says against the ring.
func refusedBy(w *rings.ShareWelcome, fds int) error {
	reason, _, _ := strings.Cut(string(w.Reason[:]), "\x00")
	switch {
	case w.Magic != rings.ShareMagic || w.Version != rings.ShareVersion:
		return fmt.Errorf("it speaks version %d, this is version %d", w.Version, rings.ShareVersion)
	case w.Errno != 0:
		return fmt.Errorf("%s (%w)", reason, unix.Errno(w.Errno))
	case fds != 1:
		return fmt.Errorf("%d descriptors came with its answer, not 1", fds)
	}
	return nil
}

// knock wakes the engine. A connection that has ended needs nobody awake.
func (q *RemoteRing) knock() { _, _ = q.conn.Write(knock) }

// watch turns the engine's knocks into tokens for who waits, and ends the ring with the daemon.
func (q *RemoteRing) watch(woken chan<- struct{}) {
	var b [1]byte
	for {
		if n, err := q.conn.Read(b[:]); n == 0 || err != nil {
			close(q.done)
			return
		}
		select {
		case woken <- struct{}{}:
		default:
		}
	}
}

// Done is closed when the daemon is gone, or has thrown us out, or after Close.
func (q *RemoteRing) Done() <-chan struct{} { return q.done }

// Close gives the ring back: its sockets are closed, and who waits hears ErrRingClosed. Nobody may use the ring, nor Data, during
// it and after it: the memory is gone.
func (q *RemoteRing) Close() error {
	err := q.conn.Close()
	q.watching.Wait()
	return errors.Join(err, q.share.Close())
}
