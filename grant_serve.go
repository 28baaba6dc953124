package xdpd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/xdpprog"
)

// Granter opens sockets and steers frames for engines that have no privilege themselves (Config.Grant). It needs CAP_NET_RAW,
// CAP_NET_ADMIN and CAP_BPF, and CAP_SYS_ADMIN for a NetNS.
//
// What a grantee's engine receives is the Granter's choice. What it sends is not: a socket must be unbound when it is handed
// over, for rings are mapped before (net/xdp/xsk.c, xsk_mmap), and who has it can bind it to any free queue of any interface of the
// network namespace. Where the grantee is not trusted with that, the interface belongs in a namespace of its own.
type Granter struct {
	Interfaces []string // that may be asked for; at least one
	NetNS      string   // namespace of the interfaces: a path, or a name in /run/netns; empty: the caller's
	Queues     []int    // that may be asked for; nil: all of them

	// Addrs are what an engine's addresses must lie in. nil: any address but the kernel's own, which only an engine that shares
	// them may have.
	Addrs []netip.Prefix

	Users  []uint32 // who may ask (SO_PEERCRED), besides the Granter's own user
	Groups []uint32 // the same, by primary group

	Log func(text string) // told of grants and refusals; nil: nobody is
}

// grant is one grantee's.
type grant struct {
	*Granter
	who     string
	sockets map[int]int // by queue
	iface   string
	steer   xdpprog.Steer // of the program
	program *program
}

// Serve answers on a listener of type unixpacket until ctx ends; then all grants end. It closes the listener.
func (g *Granter) Serve(ctx context.Context, l *net.UnixListener) error {
	if len(g.Interfaces) == 0 {
		return errors.New("xdpd: a Granter needs an interface to grant")
	}
	var running sync.WaitGroup
	defer running.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	context.AfterFunc(ctx, func() { l.Close() })
	strangers := make(chan struct{}, maxStrangers)
	for {
		conn, err := l.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if errors.Is(err, net.ErrClosed) {
			return fmt.Errorf("xdpd: grant: %w", err)
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of descriptors: somebody may go
			continue
		}
		running.Go(func() {
			stop := context.AfterFunc(ctx, func() { conn.Close() })
			defer stop()
			g.serve(conn, strangers)
		})
	}
}

func (g *Granter) log(format string, args ...any) {
	if g.Log != nil {
		g.Log(fmt.Sprintf(format, args...))
	}
}

// maxStrangers is how many who may not ask are waited for at a time, to tell them so.
const maxStrangers = 64

func (g *Granter) serve(conn *net.UnixConn, strangers chan struct{}) {
	defer conn.Close()
	cred, err := peerCred(conn)
	if err != nil {
		g.log("refused: %v", err)
		return
	}
	who := fmt.Sprintf("process %d of user %d", cred.Pid, cred.Uid)
	if !g.admits(cred) {
		g.log("refused: %s, group %d, is not among those who may ask", who, cred.Gid)
		select {
		case strangers <- struct{}{}:
			defer func() { <-strangers }()
		default:
			return
		}
		_ = conn.SetDeadline(time.Now().Add(time.Second)) // an answer to nothing would be lost
		_, _ = conn.Read(make([]byte, 1))
		_ = reply(conn, grantAnswer{
			Error: fmt.Sprintf("xdpd: grant: user %d, group %d, may not ask: xdpd grant --user or --group", cred.Uid, cred.Gid),
			Errno: int(unix.EACCES),
		}, -1)
		return
	}
	s := &grant{Granter: g, who: who, sockets: map[int]int{}}
	defer s.end()
	text := make([]byte, maxGrantMessage)
	for {
		n, err := conn.Read(text)
		if err != nil || n == 0 {
			return
		}
		var r grantRequest
		if err = json.Unmarshal(text[:n], &r); err != nil {
			return
		}
		answer, fd := grantAnswer{}, -1
		err = inNamespace(g.NetNS, func() (err error) {
			answer, fd, err = s.handle(r)
			return err
		})
		if err != nil {
			answer = grantRefusal(err)
			g.log("%s: %s: %v", who, r.Op, err)
		}
		if reply(conn, answer, fd) != nil {
			return
		}
	}
}

func (g *Granter) admits(c *unix.Ucred) bool {
	return c.Uid == uint32(unix.Geteuid()) || slices.Contains(g.Users, c.Uid) || slices.Contains(g.Groups, c.Gid)
}

func reply(conn *net.UnixConn, a grantAnswer, fd int) error {
	text, err := json.Marshal(a)
	if err != nil {
		return err
	}
	var rights []byte
	if fd >= 0 {
		rights = unix.UnixRights(fd)
	}
	_, _, err = conn.WriteMsgUnix(text, rights, nil)
	return err
}

func grantRefusal(err error) grantAnswer {
	a := grantAnswer{Error: err.Error(), Busy: errors.Is(err, xdpprog.ErrBusy)}
	var errno unix.Errno
	if errors.As(err, &errno) {
		a.Errno = int(errno)
	}
	return a
}

// handle does what is asked. fd, if it is not -1, stays the grant's.
func (s *grant) handle(r grantRequest) (a grantAnswer, fd int, err error) {
	fd = -1
	switch r.Op {
	case grantSocket:
		fd, err = s.open(r)
		return a, fd, err
	case grantAttach:
		c := xdpprog.Config{Interface: s.iface, Steer: r.Steer, Attach: r.Attach, Queues: r.Queues, Addrs: r.Addrs, Dispatch: xdpprog.NeverDispatch}
		return s.attach(c, r.Metadata)
	}
	switch {
	case s.program == nil && r.Op == grantDetach: // of an engine that could not be opened
		return a, fd, nil
	case s.program == nil:
		return a, fd, fmt.Errorf("xdpd: grant: %q before the program is attached", r.Op)
	}
	switch r.Op {
	case grantPut:
		sock, ok := s.sockets[r.Queue]
		if !ok {
			return a, fd, fmt.Errorf("xdpd: grant: there is no socket for queue %d", r.Queue)
		}
		err = s.program.SetSocket(r.Queue, sock)
	case grantAddrs:
		if err = s.mayHave(r.Addrs, s.steer); err == nil {
			err = s.program.SetAddrs(r.Addrs)
		}
	case grantOpen:
		err = s.program.OpenPort(r.Proto, r.Addr, r.Port)
	case grantClose:
		err = s.program.ClosePort(r.Proto, r.Addr, r.Port)
	case grantCounters:
		a.Counters, err = s.program.Counters()
	case grantAttached:
		a.Attached = s.program.Attached()
	case grantDetach:
		s.end()
	default:
		err = fmt.Errorf("xdpd: grant: %q is no request", r.Op)
	}
	return a, fd, err
}

// open makes a socket for a queue. The last one of a queue is kept for the program.
func (s *grant) open(r grantRequest) (int, error) {
	switch {
	case !slices.Contains(s.Interfaces, r.Interface):
		return -1, fmt.Errorf("xdpd: grant: interface %q is not granted: %w", r.Interface, unix.EACCES)
	case s.iface != "" && s.iface != r.Interface:
		return -1, fmt.Errorf("xdpd: grant: one connection is for one interface, which is %s already", s.iface)
	case r.Queue < 0 || r.Queue >= maxQueues || s.Queues != nil && !slices.Contains(s.Queues, r.Queue):
		return -1, fmt.Errorf("xdpd: grant: queue %d of %s is not granted: %w", r.Queue, r.Interface, unix.EACCES)
	case r.SendBytes < 0 || r.SendBytes > maxSendBytes:
		return -1, fmt.Errorf("xdpd: grant: a send buffer of %d bytes", r.SendBytes)
	}
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("xdpd: grant: open an AF_XDP socket (needs CAP_NET_RAW): %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, r.SendBytes); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("xdpd: grant: set the send buffer (needs CAP_NET_ADMIN): %w", err)
	}
	if old, ok := s.sockets[r.Queue]; ok {
		unix.Close(old)
	}
	s.sockets[r.Queue], s.iface = fd, r.Interface
	return fd, nil
}

const (
	maxQueues    = 4096     // net/core/rtnetlink.c, rtnl_create_link
	maxSendBytes = 64 << 20 // what a TX ring of 4096 entries with frames of 4096 bytes asks for, twice
)

func (s *grant) attach(c xdpprog.Config, metadata RXMetadata) (a grantAnswer, fd int, err error) {
	switch {
	case s.program != nil:
		return a, -1, errors.New("xdpd: grant: the program is attached already")
	case s.iface == "":
		return a, -1, errors.New("xdpd: grant: no socket of an interface was asked for")
	case c.Queues > maxQueues:
		return a, -1, fmt.Errorf("xdpd: grant: %d queues", c.Queues)
	case metadata > MetadataOff:
		return a, -1, fmt.Errorf("xdpd: grant: metadata %d", metadata)
	}
	link, err := netlink.LinkByName(c.Interface)
	if err != nil {
		return a, -1, fmt.Errorf("xdpd: grant: interface %s: %w", c.Interface, err)
	}
	c.Ifindex = link.Attrs().Index
	if err := s.mayHave(c.Addrs, c.Steer); err != nil {
		return a, -1, err
	}
	if s.program, err = loadProgram(c, metadata, driverOf(c.Interface), DefaultJournalDir); err != nil {
		return a, -1, err
	}
	s.steer = c.Steer
	a.Native, a.Metadata = s.program.Native(), s.program.Metadata()
	if refused := s.program.NativeRefused(); refused != nil {
		a.Refused = refused.Error()
	}
	s.log("%s has interface %s, queues %v, addresses %v", s.who, s.iface, s.queueList(), c.Addrs)
	return a, -1, nil
}

func (s *grant) queueList() (list []int) {
	for q := range s.sockets {
		list = append(list, q)
	}
	slices.Sort(list)
	return list
}

// mayHave holds addresses against what is granted.
func (s *grant) mayHave(addrs []netip.Addr, steer xdpprog.Steer) error {
	kernel, err := netlink.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("xdpd: grant: the kernel's addresses: %w", err)
	}
	for _, a := range addrs {
		inside := func(p netip.Prefix) bool { return p.Contains(a.Unmap()) }
		kernels := slices.ContainsFunc(kernel, func(k netlink.Addr) bool {
			ip, _ := netip.AddrFromSlice(k.IP)
			return ip.Unmap() == a.Unmap()
		})
		switch {
		case s.Addrs != nil && !slices.ContainsFunc(s.Addrs, inside):
			return fmt.Errorf("xdpd: grant: address %v is not granted: %w", a, unix.EACCES)
		case s.Addrs == nil && steer == xdpprog.Own && kernels:
			return fmt.Errorf("xdpd: grant: address %v is the kernel's, and may only be shared: %w", a, unix.EACCES)
		}
	}
	return nil
}

// end takes back what was granted. The sockets work on for as long as the grantee has them, but nothing comes to them.
func (s *grant) end() {
	if s.program != nil {
		if err := s.program.Close(); err != nil {
			s.log("%s: %v", s.who, err)
		}
		s.log("%s gave back interface %s", s.who, s.iface)
		s.program = nil
	}
	for q, fd := range s.sockets {
		unix.Close(fd)
		delete(s.sockets, q)
	}
}
