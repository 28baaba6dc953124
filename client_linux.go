package xdpd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
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
	ZeroCopy             bool   // takes the engine's packet memory, if the daemon trusts this process: RemoteRing.Lends
}

// RemoteRing is a ring of an engine in another process, an xdpd that serves clients. Its operations are those of docs/ring.md,
// the lending of frames only with Lends; addresses in them are offsets in Data.
type RemoteRing struct {
	*reactor.RingClient
	Data     []byte
	Reactor  int
	Reactors int // how many the engine has
	MTU      int
	Lends    int // frames that may be lent to this process at a time; 0: none. The table of them lies at the end of Data

	packets []byte // all that is mapped of the packet memory
	conn    *net.UnixConn
	raw     syscall.RawConn
	share   *rings.Share
	gone    atomic.Bool
	limited bool      // the connection has a deadline for reading
	looked  time.Time // when who does not wait last looked whether the daemon is there
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
	if cfg.ZeroCopy {
		h.Version = rings.ShareVersionFrames
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
	q := &RemoteRing{Reactor: int(w.Reactor), Reactors: int(w.Reactors), MTU: int(w.MTU), conn: conn}
	if q.share, err = rings.JoinShare(fds[0], &w); err != nil {
		return nil, err
	}
	q.Data = q.share.Data
	if q.raw, err = conn.SyscallConn(); err == nil {
		q.RingClient, err = reactor.JoinRing(q.share.Ring, q.knock, q.await)
	}
	if err != nil {
		return nil, errors.Join(err, q.share.Close())
	}
	if cfg.ZeroCopy {
		if err = q.takeFrames(); err != nil {
			return nil, errors.Join(err, q.share.Close())
		}
	}
	return q, nil
}

// takeFrames receives the packet memory, if there is any for us.
func (q *RemoteRing) takeFrames() error {
	var f rings.ShareFrames
	fds, err := rings.RecvShare(q.conn, &f)
	switch {
	case err != nil:
	case len(fds) > 1 || (len(fds) == 1) != (f.Lends > 0) || f.Table > uint64(len(q.Data)) || uint64(f.Lends)*rings.LentSize > uint64(len(q.Data))-f.Table:
		err = rings.ErrRingArea
	case f.Lends > 0:
		var packets []byte
		if packets, q.packets, err = rings.MapFrames(fds[0], &f); err == nil {
			q.Lends = int(f.Lends)
			q.RingClient.Lends(q.Data[f.Table:][:f.Lends*rings.LentSize], packets)
		}
	}
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
	return err
}

// refusedBy is what a daemon's answer says against the ring.
func refusedBy(w *rings.ShareWelcome, fds int) error {
	reason, _, _ := strings.Cut(string(w.Reason[:]), "\x00")
	switch {
	case w.Magic != rings.ShareMagic || w.Version != rings.ShareVersion: // the welcome has one version for both hellos
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

// lookEvery is how often who polls for completions has to ask the kernel whether the daemon is there.
const lookEvery = time.Millisecond

// await implements reactor.AwaitKnock.
func (q *RemoteRing) await(timeout time.Duration) error {
	if q.gone.Load() {
		return reactor.ErrRingClosed
	}
	var b [1]byte
	n, err := 0, error(nil)
	switch {
	case timeout == 0:
		now := time.Now()
		if now.Sub(q.looked) < lookEvery {
			return nil
		}
		q.looked = now
		if err = q.raw.Read(func(fd uintptr) bool {
			n, _, err = unix.Recvfrom(int(fd), b[:], unix.MSG_DONTWAIT)
			return true
		}); errors.Is(err, unix.EAGAIN) {
			return nil
		}
	case timeout > 0 || q.limited:
		until := time.Time{}
		if q.limited = timeout > 0; q.limited {
			until = time.Now().Add(timeout)
		}
		if err = q.conn.SetReadDeadline(until); err != nil {
			break
		}
		fallthrough
	default:
		if n, err = q.conn.Read(b[:]); errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
	}
	if n == 0 || err != nil {
		q.gone.Store(true)
		return reactor.ErrRingClosed
	}
	return nil
}

// Close gives the ring back: its sockets are closed, and who waits hears ErrRingClosed. Nobody may use the ring, nor Data,
// after it: the memory is gone.
func (q *RemoteRing) Close() error {
	q.gone.Store(true)
	err := q.conn.Close()
	q.Left()
	if q.packets != nil {
		err = errors.Join(err, unix.Munmap(q.packets))
		q.packets = nil
	}
	return errors.Join(err, q.share.Close())
}
