package reactor

import (
	"net/netip"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
)

// issueConnect is connect(2), done when the handshake is.
func issueConnect(q *Ring, i uint32) verdict {
	p := q.at(i)
	if p.arg[0] != 0 {
		return q.connecting(p)
	}
	k := q.sock(p)
	k.due = false
	if k.kind == sockConnected || k.kind == sockListening {
		return p.fail(sockets.EISCONN)
	}
	a, err := q.sockAddr(p.sqe.Addr, p.sqe.Off)
	if err != 0 {
		return p.fail(err)
	}
	remote, _ := proto.AddrFrom(a.Addr())
	if !q.mayReach(k, a) {
		return p.fail(sockets.EACCES)
	}
	if k.kind == sockUDP {
		if k.h == 0 {
			err = q.bind(p.sock-1, 0, 0)
		}
		if err == 0 {
			err = q.r.host.UDPConnect(k.h, remote, a.Port())
		}
		p.res = -int32(err)
		return done
	}
	if !q.may(slowConnect, p.sock-1) {
		if p.sqe.OpFlags&rings.MsgDontWait != 0 {
			return p.fail(sockets.EAGAIN)
		}
		k.due = true
		return wait
	}
	if err := q.dial(p.sock-1, remote, a.Port()); err != 0 {
		return p.fail(err)
	}
	q.rates.connects.take(1)
	if p.sqe.OpFlags&rings.MsgDontWait != 0 { // the Host says EAGAIN of it until it is connected, and then what went wrong
		q.connected(q.sock(p))
		return p.fail(sockets.EINPROGRESS)
	}
	p.arg[0] = 1
	return q.connecting(p)
}

// mayReach reports whether the application may send to a.
func (q *Ring) mayReach(k *ringSock, a netip.AddrPort) bool {
	if q.guard == nil {
		return true
	}
	protocol := uint8(proto.ProtoTCP)
	if k.kind == sockUDP {
		protocol = proto.ProtoUDP
	}
	return q.guard.MayReach(protocol, a)
}

// dial begins a TCP connection, from the address that the socket is bound to.
func (q *Ring) dial(s uint32, remote proto.Addr, port uint16) sockets.Errno {
	k := q.socks.at(s)
	var local proto.Addr
	var lport uint16
	if k.kind == sockBound {
		a, _ := q.r.host.TCPAddr(k.h)
		local, _ = proto.AddrFrom(a.Addr())
		lport = a.Port()
	}
	c, err := q.r.host.TCPDial(local, lport, remote, port, q.now)
	if err != 0 {
		q.searched(lport, err)
		return err
	}
	if q.ports != nil {
		if err := q.ports.Keep(q.r.host, c); err != 0 {
			q.r.host.TCPAbort(c, q.now)
			return err
		}
	}
	q.letGo(s) // what was bound is the connection's now
	q.setHandle(s, c)
	k.kind = sockConnecting
	return 0
}

// letGo closes the Host's socket and keeps the ring's.
func (q *Ring) letGo(s uint32) {
	k := q.socks.at(s)
	if k.h == 0 {
		return
	}
	q.socks.byHandle.Delete(k.h)
	q.r.Watch(k.h, nil)
	q.r.host.Close(k.h, q.now)
	q.closePort(k)
	k.h = 0
}

// connecting looks how far a handshake is.
func (q *Ring) connecting(p *request) verdict {
	k := q.sock(p)
	switch {
	case k.kind == sockConnected:
		return done
	case q.r.host.TCPConnected(k.h):
		q.connected(k)
		q.markReady(p.sock - 1) // for those who wait to receive
		return done
	case q.r.host.Ready(k.h)&(sockets.Err|sockets.Hup) == 0:
		return wait
	}
	err := q.r.host.TCPError(k.h)
	if err == 0 {
		err = sockets.ECONNREFUSED
	}
	q.notConnected(p.sock - 1)
	return p.fail(err)
}

func (q *Ring) connected(k *ringSock) {
	k.kind = sockConnected
	q.applyOptions(k)
}

// notConnected has a socket be again as if it was never bound or connected.
func (q *Ring) notConnected(s uint32) {
	q.letGo(s)
	q.socks.at(s).kind = sockTCP
	q.markReady(s)
}

// cancelConnect gives the handshake up.
func cancelConnect(q *Ring, i uint32) {
	p := q.at(i)
	if k := q.sock(p); p.arg[0] == 0 {
		k.due = k.due && k.queues[waitOut].head != i // which waits behind another one, or is the one that is due
	} else if k.kind == sockConnecting {
		q.notConnected(p.sock - 1)
	}
}

func checkAccept(_ *Ring, s *rings.SQE) sockets.Errno {
	multi := s.IOPrio&rings.AcceptMultishot != 0
	switch {
	case s.Len != 0 || s.BufGroup != 0 || s.Addr3 != 0 || s.OpFlags&^sockFlags != 0:
		return sockets.EINVAL
	case multi && (s.Off != 0 || s.FileIndex != 0 && s.FileIndex != rings.FileIndexAlloc || s.Flags&rings.SQESkipSuccess != 0):
		return sockets.EINVAL
	case s.Off == 0 && s.Addr != 0:
		return sockets.EINVAL
	}
	return 0
}

// issueAccept is accept(2); multishot, one completion for each connection.
func issueAccept(q *Ring, i uint32) verdict {
	p := q.at(i)
	if p.sqe.IOPrio&rings.AcceptPollFirst != 0 {
		p.sqe.IOPrio &^= rings.AcceptPollFirst
		return again
	}
	for range batch {
		switch k := q.sock(p); {
		case k.kind == sockUDP:
			return p.fail(sockets.EOPNOTSUPP)
		case k.kind != sockListening, uint64(q.socks.numbers)+uint64(p.sqe.FileIndex) == uint64(p.sock) && p.sqe.FileIndex != 0:
			return p.fail(sockets.EINVAL) // it would take the place of its own listener
		case !q.acceptable(p) && p.sqe.IOPrio&rings.AcceptDontWait != 0:
			return p.fail(sockets.EAGAIN)
		case !q.acceptable(p):
			return wait
		}
		fd, err := q.accept(p)
		if err != 0 {
			return p.fail(err)
		}
		if p.sqe.IOPrio&rings.AcceptMultishot == 0 || !q.postMore(i, fd, 0) {
			p.res = fd
			return done
		}
	}
	return again
}

// acceptable reports whether there is a connection that may be accepted now.
func (q *Ring) acceptable(p *request) bool {
	return q.r.host.Ready(q.sock(p).h)&sockets.In != 0 && q.may(slowConnect, p.sock-1)
}

// accept takes a connection that is there. Without a place for it, it stays where it is.
func (q *Ring) accept(p *request) (fd int32, err sockets.Errno) {
	var addr []byte
	if p.sqe.Off != 0 {
		if addr, err = q.mem(p.sqe.Addr, p.sqe.Off); err != 0 {
			return 0, err
		} else if len(addr) < rings.SockAddrSize {
			return 0, sockets.EINVAL
		}
	}
	s, fd, err := q.addSock(p.sqe.FileIndex)
	if err != 0 {
		return 0, err
	}
	c, err := q.r.host.TCPAccept(q.sock(p).h)
	if err != 0 {
		q.closeSock(s)
		return 0, err
	}
	if q.ports != nil {
		// Where the port's table is full the connection has its listener's port, and ends with it.
		_ = q.ports.Keep(q.r.host, c)
	}
	q.rates.connects.take(1)
	q.setHandle(s, c)
	q.connected(q.socks.at(s))
	if addr != nil {
		_, remote := q.r.host.TCPAddr(c)
		rings.PutSockAddr(addr, remote)
	}
	return fd, 0
}
