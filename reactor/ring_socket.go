package reactor

import (
	"net/netip"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
)

// sockState is what a ring knows of a socket beyond its handle.
type sockState struct {
	kind      sockKind
	deaf      bool // UDP: shut down for reading; TCP's Host knows
	mute      bool // UDP: shut down for writing
	due       bool // TCP: its CONNECT waits for RingConfig.Rates
	reset     bool // TCP: CLOSE resets the connection (SO_LINGER)
	err       sockets.Errno
	taken     portKey // reported to RingConfig.Ports; protocol 0: none
	open      portKey // so too: a TCP port when it is listened on
	noDelay   option
	keep      option
	keepAlive sockets.KeepAlive // with keep; zero: the default
	userLimit int64             // TCP_USER_TIMEOUT in ns, with hasLimit
	hasLimit  bool
}

// sockKind is how far a socket has come.
type sockKind uint8

const (
	sockTCP        sockKind = iota // neither bound nor connected; the Host knows nothing of it
	sockBound                      // TCP
	sockListening                  // TCP
	sockConnecting                 // TCP
	sockConnected                  // TCP, whatever became of the connection since
	sockUDP                        // bound when it has a handle
)

type portKey struct {
	protocol uint8
	addr     proto.Addr
	port     uint16
}

// Ports is told which ports a ring's sockets have, and which of them are to be open, where packets only come to ports that were opened
// (share mode). It is called with the reactor's lock held.
type Ports interface {
	Take(protocol uint8, local proto.Addr, port uint16) sockets.Errno
	Give(protocol uint8, local proto.Addr, port uint16)
	Open(protocol uint8, local proto.Addr, port uint16) sockets.Errno
	Close(protocol uint8, local proto.Addr, port uint16)
	// Keep has the port of a connection open for as long as anything is left of it.
	Keep(h *sockets.Host, c sockets.Handle) sockets.Errno
}

func init() {
	ops[rings.OpSocket] = operation{check: checkSocket, issue: issueSocket, instant: true}
	ops[rings.OpBind] = operation{check: checkAddr, issue: issueBind, socket: true, instant: true, slow: true}
	ops[rings.OpListen] = operation{check: checkListen, issue: issueListen, socket: true, instant: true, slow: true}
	ops[rings.OpConnect] = operation{check: checkConnect, issue: issueConnect, cancel: cancelConnect, queue: waitOut, socket: true, slow: true}
	ops[rings.OpAccept] = operation{
		check: checkAccept, issue: issueAccept, queue: waitIn, socket: true,
		ioprio: rings.AcceptMultishot | rings.AcceptDontWait | rings.AcceptPollFirst,
	}
	ops[rings.OpShutdown] = operation{check: checkListen, issue: issueShutdown, socket: true, instant: true}
	ops[rings.OpClose] = operation{check: checkClose, issue: issueClose, instant: true, slow: true}
	ops[rings.OpSockName] = operation{check: checkName, issue: issueName, socket: true, instant: true}
}

// Types of sockets (<bits/socket_type.h>).
const (
	afInet      = 2
	sockStream  = 1
	sockDgram   = 2
	sockFlags   = 0o2004000 // SOCK_NONBLOCK, SOCK_CLOEXEC: all are
	addrLenMask = 0xffff    // addr_len is the lower half of file_index
)

func checkSocket(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.Addr != 0 || s.OpFlags != 0 || s.BufGroup != 0 || s.Addr3 != 0 {
		return sockets.EINVAL
	}
	return 0
}

// issueSocket is socket(2): FD is the domain, Off the type, Len the protocol.
func issueSocket(q *Ring, i uint32) verdict {
	p := q.at(i)
	kind, err := sockKindOf(p.sqe.FD, p.sqe.Off, p.sqe.Len)
	if err != 0 {
		return p.fail(err)
	}
	s, fd, err := q.addSock(p.sqe.FileIndex)
	if err != 0 {
		return p.fail(err)
	}
	q.socks.at(s).kind = kind
	p.res = fd
	return done
}

func sockKindOf(domain int32, typ uint64, protocol uint32) (sockKind, sockets.Errno) {
	switch typ &^= sockFlags; {
	case domain != afInet:
		return 0, sockets.EAFNOSUPPORT
	case typ == sockStream && (protocol == 0 || protocol == proto.ProtoTCP):
		return sockTCP, 0
	case typ == sockDgram && (protocol == 0 || protocol == proto.ProtoUDP):
		return sockUDP, 0
	case typ == sockStream || typ == sockDgram:
		return 0, sockets.EPROTONOSUPPORT
	}
	return 0, sockets.EINVAL
}

// fail ends a request with an errno.
func (p *request) fail(err sockets.Errno) verdict {
	p.res = -int32(err)
	return done
}

// sock is the socket of a request.
func (q *Ring) sock(p *request) *ringSock { return q.socks.at(p.sock - 1) }

func checkAddr(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.Len != 0 || s.OpFlags != 0 || s.BufGroup != 0 || s.FileIndex != 0 || s.Addr3 != 0 {
		return sockets.EINVAL
	}
	return 0
}

func checkConnect(q *Ring, s *rings.SQE) sockets.Errno {
	c := *s
	c.OpFlags &^= rings.MsgDontWait
	return checkAddr(q, &c)
}

// sockAddr reads the struct sockaddr_in of n bytes at addr.
func (q *Ring) sockAddr(addr, n uint64) (netip.AddrPort, sockets.Errno) {
	b, err := q.mem(addr, n)
	switch {
	case err != 0:
		return netip.AddrPort{}, err
	case n < rings.SockAddrSize:
		return netip.AddrPort{}, sockets.EINVAL
	}
	a, ok := rings.SockAddr(b)
	if !ok {
		return a, sockets.EAFNOSUPPORT
	}
	return a, 0
}

func issueBind(q *Ring, i uint32) verdict {
	p := q.at(i)
	k := q.sock(p)
	if k.h != 0 || k.kind != sockTCP && k.kind != sockUDP {
		return p.fail(sockets.EINVAL)
	}
	a, err := q.sockAddr(p.sqe.Addr, p.sqe.Off)
	if err == 0 && q.guard != nil && a.Port() != 0 {
		protocol := uint8(proto.ProtoTCP)
		if k.kind == sockUDP {
			protocol = proto.ProtoUDP
		}
		if !q.guard.MayBind(protocol, a) {
			err = sockets.EACCES
		}
	}
	if err == 0 {
		local, _ := proto.AddrFrom(a.Addr())
		err = q.bind(p.sock-1, local, a.Port())
	}
	p.res = -int32(err)
	return done
}

// bind gives a socket an address. A TCP port is opened when it is listened on.
func (q *Ring) bind(s uint32, local proto.Addr, port uint16) sockets.Errno {
	k := q.socks.at(s)
	if k.kind == sockTCP {
		h, err := q.r.host.TCPBind(local, port)
		if q.searched(port, err); err != 0 {
			return err
		}
		a, _ := q.r.host.TCPAddr(h)
		if err := q.takePort(k, portKey{proto.ProtoTCP, local, a.Port()}); err != 0 {
			q.r.host.Close(h, q.now)
			return err
		}
		k.kind = sockBound
		q.setHandle(s, h)
		return 0
	}
	h, err := q.r.host.UDPBind(local, port)
	if q.searched(port, err); err != 0 {
		return err
	}
	a, _ := q.r.host.UDPAddr(h)
	p := portKey{proto.ProtoUDP, local, a.Port()}
	if err = q.takePort(k, p); err == 0 {
		err = q.openPort(k, p)
	}
	if err != 0 {
		q.closePort(k)
		q.r.host.Close(h, q.now)
		return err
	}
	q.setHandle(s, h)
	return 0
}

// searched notes what it cost to find no free port, where the choice of it was the Host's, or who has the port that was asked for.
func (q *Ring) searched(port uint16, err sockets.Errno) {
	if err == sockets.EADDRINUSE || port == 0 && err == sockets.EADDRNOTAVAIL {
		q.steps += costPorts
	}
}

func (q *Ring) takePort(k *ringSock, p portKey) sockets.Errno {
	if q.ports == nil {
		return 0
	}
	if err := q.ports.Take(p.protocol, p.addr, p.port); err != 0 {
		return err
	}
	k.taken = p
	return 0
}

func (q *Ring) openPort(k *ringSock, p portKey) sockets.Errno {
	if q.ports == nil {
		return 0
	}
	if err := q.ports.Open(p.protocol, p.addr, p.port); err != 0 {
		return err
	}
	k.open = p
	return 0
}

func (q *Ring) closePort(k *ringSock) {
	if p := k.open; p.protocol != 0 {
		q.ports.Close(p.protocol, p.addr, p.port)
		k.open = portKey{}
	}
	if p := k.taken; p.protocol != 0 {
		q.ports.Give(p.protocol, p.addr, p.port)
		k.taken = portKey{}
	}
}

func checkListen(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.Addr != 0 || s.Off != 0 || s.OpFlags != 0 || s.BufGroup != 0 || s.FileIndex != 0 || s.Addr3 != 0 {
		return sockets.EINVAL
	}
	return 0
}

// issueListen is listen(2). The backlog, Len, is the Host's.
func issueListen(q *Ring, i uint32) verdict {
	p := q.at(i)
	k := q.sock(p)
	switch k.kind {
	case sockUDP:
		return p.fail(sockets.EOPNOTSUPP)
	case sockConnecting, sockConnected:
		return p.fail(sockets.EINVAL)
	case sockTCP:
		if err := q.bind(p.sock-1, 0, 0); err != 0 {
			return p.fail(err)
		}
	case sockListening:
		return done
	}
	a, _ := q.r.host.TCPAddr(k.h)
	local, _ := proto.AddrFrom(a.Addr())
	if err := q.openPort(k, portKey{proto.ProtoTCP, local, a.Port()}); err != 0 {
		return p.fail(err)
	}
	q.r.host.TCPListenBound(k.h)
	k.kind = sockListening
	return done
}

// issueShutdown is shutdown(2): Len is SHUT_RD, SHUT_WR or SHUT_RDWR.
func issueShutdown(q *Ring, i uint32) verdict {
	p := q.at(i)
	k := q.sock(p)
	how, err := p.sqe.Len, sockets.Errno(0)
	switch {
	case how > 2:
		err = sockets.EINVAL
	case k.kind == sockUDP:
		if _, remote := q.r.host.UDPAddr(k.h); !remote.IsValid() {
			err = sockets.ENOTCONN
			break
		}
		k.deaf = k.deaf || how != 1
		k.mute = k.mute || how != 0
	case k.kind != sockConnected:
		err = sockets.ENOTCONN
	default:
		if how != 1 {
			err = q.r.host.TCPShutdownRead(k.h, q.now)
		}
		if how != 0 && err == 0 {
			err = q.r.host.TCPShutdown(k.h, q.now)
		}
	}
	if err == 0 {
		q.markReady(p.sock - 1)
	}
	p.res = -int32(err)
	return done
}

func checkClose(_ *Ring, s *rings.SQE) sockets.Errno {
	switch {
	case s.Off != 0 || s.Addr != 0 || s.Len != 0 || s.OpFlags != 0 || s.BufGroup != 0 || s.Addr3 != 0:
		return sockets.EINVAL
	case s.FileIndex != 0 && s.FD != 0:
		return sockets.EINVAL
	case s.Flags&rings.SQEFixedSocket != 0:
		return sockets.EBADF
	}
	return 0
}

// issueClose closes FD, or slot FileIndex-1 of the fixed table.
func issueClose(q *Ring, i uint32) verdict {
	p := q.at(i)
	fd, fixed := p.sqe.FD, p.sqe.FileIndex != 0
	if fixed {
		fd = int32(min(p.sqe.FileIndex-1, 1<<31-1))
	}
	s, ok := q.socks.lookup(fd, fixed)
	if !ok {
		return p.fail(sockets.EBADF)
	}
	p.res = -int32(q.closeSock(s))
	return done
}

func checkName(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.Off != 0 || s.OpFlags > 1 || s.BufGroup != 0 || s.FileIndex != 0 || s.Addr3 != 0 || s.Len < rings.SockAddrSize {
		return sockets.EINVAL
	}
	return 0
}

// issueName writes the local address, or with OpFlags 1 the peer's, to Addr.
func issueName(q *Ring, i uint32) verdict {
	p := q.at(i)
	k := q.sock(p)
	b, err := q.mem(p.sqe.Addr, uint64(p.sqe.Len))
	if err != 0 {
		return p.fail(err)
	}
	local, remote := q.r.host.TCPAddr(k.h)
	if k.kind == sockUDP {
		local, remote = q.r.host.UDPAddr(k.h)
	}
	if p.sqe.OpFlags == 1 {
		if !remote.IsValid() || k.kind == sockConnecting {
			return p.fail(sockets.ENOTCONN)
		}
		local = remote
	}
	rings.PutSockAddr(b, local)
	p.res = rings.SockAddrSize
	return done
}
