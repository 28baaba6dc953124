package xdpd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/rings"
)

// callServer is a process that does socket calls of libxdpd for us (testdata/libxdpd_calls.c).
type callServer struct {
	conn *net.UnixConn
	out  sync.Mutex

	mu    sync.Mutex
	next  uint32
	waits map[uint32]chan callAnswer
	socks map[int32]*callConn
	early map[int32]uint32 // what was told of sockets that nobody has yet
}

type callAnswer struct {
	res  int32
	data []byte
}

const (
	callSocket = 1 + iota
	callBind
	callListen
	callAccept
	callConnect
	callRead
	callWrite
	callShutdown
	callClose
	callName
	callGetOpt
	callSetOpt
)

const callHead = 24

// startCalls starts the process; it ends with the test, and must end well.
func startCalls(t testing.TB, path string, cflags ...string) *callServer {
	t.Helper()
	bin := buildLibxdpd(t, "libxdpd_calls", cflags...)
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "calls"), os.NewFile(uintptr(fds[1]), "calls")
	c, err := net.FileConn(ours)
	ours.Close()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bin, path)
	var errs bytes.Buffer
	cmd.Stdin, cmd.Stderr = theirs, &errs
	err = cmd.Start()
	theirs.Close()
	if err != nil {
		t.Fatal(err)
	}
	s := &callServer{conn: c.(*net.UnixConn), waits: map[uint32]chan callAnswer{}, socks: map[int32]*callConn{}, early: map[int32]uint32{}}
	go s.read()
	t.Cleanup(func() {
		_ = s.conn.CloseWrite()
		if err := cmd.Wait(); err != nil || errs.Len() > 0 {
			t.Errorf("the process of calls ended with %v\n%s", err, &errs)
		}
		s.conn.Close()
	})
	return s
}

// buildLibxdpd compiles a program of testdata with the library's sources.
func buildLibxdpd(t testing.TB, name string, cflags ...string) (bin string) {
	t.Helper()
	bin = filepath.Join(t.TempDir(), name)
	sources, err := filepath.Glob("libxdpd/src/*.c")
	if err != nil || len(sources) == 0 {
		t.Fatal("no sources of the library: ", err)
	}
	args := append([]string{"-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror", "-pthread", "-o", bin, "testdata/" + name + ".c"}, cflags...)
	if out, err := exec.CommandContext(t.Context(), "cc", append(args, sources...)...).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

func (s *callServer) read() {
	buf := make([]byte, 1<<17)
	for {
		n, err := s.conn.Read(buf)
		s.mu.Lock()
		if err != nil || n < callHead {
			for _, w := range s.waits {
				w <- callAnswer{res: -int32(unix.EPIPE)}
			}
			s.waits = nil
			s.mu.Unlock()
			return
		}
		id, what, fd := binary.NativeEndian.Uint32(buf), binary.NativeEndian.Uint32(buf[4:]), int32(binary.NativeEndian.Uint32(buf[8:]))
		if id == 0 {
			if c := s.socks[fd]; c != nil {
				c.happened(what)
			} else {
				s.early[fd] |= what
			}
		} else if w := s.waits[id]; w != nil {
			delete(s.waits, id)
			w <- callAnswer{int32(binary.NativeEndian.Uint32(buf[12:])), bytes.Clone(buf[callHead:n])}
		}
		s.mu.Unlock()
	}
}

// do makes a call and waits for its answer.
func (s *callServer) do(call uint32, fd int32, a, b uint32, data []byte) ([]byte, int32) {
	w := make(chan callAnswer, 1)
	s.mu.Lock()
	if s.waits == nil {
		s.mu.Unlock()
		return nil, -int32(unix.EPIPE)
	}
	s.next++
	id := s.next
	s.waits[id] = w
	s.mu.Unlock()
	m := make([]byte, callHead, callHead+len(data))
	for i, v := range []uint32{id, call, uint32(fd), 0, a, b} {
		binary.NativeEndian.PutUint32(m[4*i:], v)
	}
	s.out.Lock()
	_, err := s.conn.Write(append(m, data...))
	s.out.Unlock()
	if err != nil {
		return nil, -int32(unix.EPIPE)
	}
	r := <-w
	return r.data, r.res
}

// callConn is a socket of the process with the methods of net.Conn and net.Listener, for which it waits as package net does: a call
// that would block is made again when epoll told something of the socket, or a deadline is over.
type callConn struct {
	s             *callServer
	fd            int32
	dirs          [2]callDir // reading, writing
	local, remote netip.AddrPort
	once          sync.Once
	closed        chan struct{}
}

type callDir struct {
	turn  chan struct{} // who has its token may call
	ready chan struct{} // a token: something happened
	mu    sync.Mutex
	timer *time.Timer
	over  chan struct{} // closed: the deadline is over
}

func (s *callServer) own(fd int32) *callConn {
	c := &callConn{s: s, fd: fd, closed: make(chan struct{})}
	for i := range c.dirs {
		c.dirs[i] = callDir{turn: make(chan struct{}, 1), ready: make(chan struct{}, 1), over: make(chan struct{})}
	}
	c.local, c.remote = c.name(0), c.name(1)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.socks[fd] = c
	c.happened(s.early[fd])
	delete(s.early, fd)
	return c
}

func (c *callConn) name(peer uint32) netip.AddrPort {
	b, res := c.s.do(callName, c.fd, peer, 0, nil)
	if res < 0 || len(b) < rings.SockAddrSize {
		return netip.AddrPort{}
	}
	a, _ := rings.SockAddr(b)
	return a
}

func (c *callConn) happened(what uint32) {
	for i, mask := range []uint32{unix.EPOLLIN | unix.EPOLLRDHUP, unix.EPOLLOUT} {
		if what&(mask|unix.EPOLLERR|unix.EPOLLHUP) != 0 {
			select {
			case c.dirs[i].ready <- struct{}{}:
			default:
			}
		}
	}
}

// try makes a call until it does not have to wait.
func (c *callConn) try(op string, dir int, call func() int32) (n int, err error) {
	d := &c.dirs[dir]
	fail := func(err error) error {
		return &net.OpError{Op: op, Net: "tcp", Source: net.TCPAddrFromAddrPort(c.local), Addr: net.TCPAddrFromAddrPort(c.remote), Err: err}
	}
	d.mu.Lock()
	over := d.over
	d.mu.Unlock()
	select {
	case d.turn <- struct{}{}:
		defer func() { <-d.turn }()
	case <-c.closed:
		return 0, fail(net.ErrClosed)
	case <-over:
		return 0, fail(os.ErrDeadlineExceeded)
	}
	for {
		d.mu.Lock()
		over = d.over
		d.mu.Unlock()
		select {
		case <-c.closed:
			return 0, fail(net.ErrClosed)
		case <-over:
			return 0, fail(os.ErrDeadlineExceeded)
		default:
		}
		res := call()
		if res >= 0 {
			return int(res), nil
		}
		if res != -int32(unix.EAGAIN) {
			return 0, fail(os.NewSyscallError(op, unix.Errno(-res)))
		}
		select {
		case <-d.ready:
		case <-c.closed:
		case <-over:
		}
	}
}

func (c *callConn) Read(b []byte) (int, error) {
	n, err := c.try("read", 0, func() int32 {
		data, res := c.s.do(callRead, c.fd, uint32(len(b)), 0, nil)
		copy(b, data)
		return res
	})
	if n == 0 && err == nil && len(b) > 0 {
		return 0, io.EOF
	}
	return n, err
}

func (c *callConn) Write(b []byte) (n int, err error) {
	for n < len(b) {
		m, err := c.try("write", 1, func() int32 {
			_, res := c.s.do(callWrite, c.fd, 0, 0, b[n:min(len(b), n+60000)])
			return res
		})
		if n += m; err != nil {
			return n, err
		}
	}
	return n, nil
}

func (c *callConn) Accept() (net.Conn, error) {
	n, err := c.try("accept", 0, func() int32 {
		_, res := c.s.do(callAccept, c.fd, 0, 0, nil)
		return res
	})
	if err != nil {
		return nil, err
	}
	return c.s.own(int32(n)), nil
}

func (c *callConn) CloseWrite() error {
	if _, res := c.s.do(callShutdown, c.fd, 1, 0, nil); res < 0 {
		return unix.Errno(-res)
	}
	return nil
}

func (c *callConn) Close() error {
	err := net.ErrClosed
	c.once.Do(func() {
		close(c.closed)
		c.s.mu.Lock()
		delete(c.s.socks, c.fd)
		c.s.mu.Unlock()
		err = nil
		if _, res := c.s.do(callClose, c.fd, 0, 0, nil); res < 0 {
			err = unix.Errno(-res)
		}
	})
	return err
}

func (c *callConn) Addr() net.Addr       { return net.TCPAddrFromAddrPort(c.local) }
func (c *callConn) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(c.local) }
func (c *callConn) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(c.remote) }

func (c *callConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}
func (c *callConn) SetReadDeadline(t time.Time) error  { return c.limit(0, t) }
func (c *callConn) SetWriteDeadline(t time.Time) error { return c.limit(1, t) }

func (c *callConn) limit(dir int, t time.Time) error {
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	d := &c.dirs[dir]
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
	select {
	case <-d.over:
		d.over = make(chan struct{})
	default:
	}
	select { // who waits looks at its new deadline
	case d.ready <- struct{}{}:
	default:
	}
	if t.IsZero() {
		return nil
	}
	over := d.over
	if left := time.Until(t); left <= 0 {
		close(over)
	} else {
		var me *time.Timer
		me = time.AfterFunc(left, func() {
			d.mu.Lock()
			defer d.mu.Unlock()
			if d.timer == me {
				d.timer = nil
				close(over)
			}
		})
		d.timer = me
	}
	return nil
}

// side is the process as one end of the wire.
func (s *callServer) side(addr netip.Addr) side {
	open := func(call uint32, to string) (fd int32, res int32) {
		a, err := netip.ParseAddrPort(to)
		if err != nil {
			return 0, -int32(unix.EINVAL)
		}
		if _, fd = s.do(callSocket, 0, unix.SOCK_STREAM, 0, nil); fd < 0 {
			return 0, fd
		}
		b := make([]byte, rings.SockAddrSize)
		rings.PutSockAddr(b, a)
		_, res = s.do(call, fd, 0, 0, b)
		return fd, res
	}
	return side{
		addr: addr,
		listen: func(a string) (net.Listener, error) {
			fd, res := open(callBind, a)
			if res == 0 {
				_, res = s.do(callListen, fd, 0, 0, nil)
			}
			if res < 0 {
				return nil, unix.Errno(-res)
			}
			return s.own(fd), nil
		},
		dial: func(ctx context.Context, _, a string) (net.Conn, error) {
			fd, res := open(callConnect, a)
			if res != -int32(unix.EINPROGRESS) {
				return nil, unix.Errno(-res)
			}
			c := s.own(fd)
			stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
			defer stop()
			_, err := c.try("connect", 1, func() int32 { // done when it can be written to, or there is an error
				b, res := s.do(callGetOpt, fd, unix.SOL_SOCKET, unix.SO_ERROR, nil)
				if res < 0 {
					return res
				}
				if e := binary.NativeEndian.Uint32(b); e != 0 {
					return -int32(e)
				}
				if c.remote = c.name(1); !c.remote.IsValid() {
					return -int32(unix.EAGAIN)
				}
				return 0
			})
			if err != nil {
				c.Close()
				return nil, err
			}
			c.local = c.name(0)
			return c, nil
		},
	}
}
