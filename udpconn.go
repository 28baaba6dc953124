package xdpd

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

// UDPConn is a UDP socket on the engine: a net.PacketConn, and, made by DialUDP, a net.Conn. All methods may be called
// from any goroutine at any time.
//
// On an interface with several queues it is one socket for each, behind one face.
type UDPConn struct {
	waiter
	ends []*udpEnd
	port portKey
	once sync.Once
}

// udpEnd is the socket on one reactor.
type udpEnd struct {
	r        *reactor.Reactor
	queue    int
	s        sockets.Handle
	readable chan struct{} // UDPConn's: a reader takes from any end
	writable chan struct{} // a token: this end may have room
}

// Ready implements reactor.Sink.
func (e *udpEnd) Ready(_ sockets.Handle, r sockets.Ready) (woke bool) {
	if r&(sockets.In|sockets.Err|sockets.Hup) != 0 {
		woke = token(e.readable)
	}
	if r&(sockets.Out|sockets.Err|sockets.Hup) != 0 {
		woke = token(e.writable) || woke
	}
	return woke
}

var (
	_ net.PacketConn = (*UDPConn)(nil)
	_ net.Conn       = (*UDPConn)(nil)
)

// ListenPacket opens a UDP socket as net.ListenPacket does. network is "udp" or "udp4"; address is "IP:port", ":port" for
// all addresses of the engine, or port 0 for a free one. The result is a *UDPConn.
func (s *Stack) ListenPacket(network, address string) (net.PacketConn, error) {
	local, err := parseAddr(network, address)
	if err != nil {
		return nil, opError("listen", network, local, netip.AddrPort{}, err)
	}
	c, err := s.openUDP(local, netip.AddrPort{})
	if err != nil {
		return nil, opError("listen", network, local, netip.AddrPort{}, err)
	}
	return c, nil
}

// DialUDP opens a UDP socket that talks to one peer only.
func (s *Stack) DialUDP(remote netip.AddrPort) (*UDPConn, error) {
	c, err := s.openUDP(netip.AddrPort{}, remote)
	if err != nil {
		return nil, opError("dial", "udp", netip.AddrPort{}, remote, err)
	}
	return c, nil
}

func parseAddr(network, address string) (netip.AddrPort, error) {
	if network != "udp" && network != "udp4" {
		return netip.AddrPort{}, net.UnknownNetworkError(network)
	}
	a, err := net.ResolveUDPAddr("udp4", address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), nil
}

func (s *Stack) openUDP(local, remote netip.AddrPort) (*UDPConn, error) {
	const tries = 100
	for i := 1; ; i++ {
		c := &UDPConn{}
		c.init(s, "udp")
		err := c.open(local, remote)
		if err == nil {
			return c, nil
		}
		c.closeEnds()
		// The port that one queue chose may not be free on another.
		if err != sockets.EADDRINUSE || local.Port() != 0 || len(c.ends) == 0 || i == tries {
			return nil, err
		}
	}
}

// open opens the socket on all queues. The first chooses the port, if none is given, and with it, where the device tells
// how it spreads flows, the queue that the peer's datagrams come in on: the queues take turns.
func (c *UDPConn) open(local, remote netip.AddrPort) error {
	s, first := c.stack, 0
	if remote.IsValid() && s.steer.rss.Hashed(proto.ProtoUDP) != 0 {
		first = s.steer.turn(len(s.queues))
	}
	addr := local
	for i := range s.queues {
		q := s.queues[(first+i)%len(s.queues)]
		h, now, ok := q.reactor.Enter()
		if !ok {
			q.reactor.Leave()
			return c.endError()
		}
		sock, errno := openUDPEnd(h, addr, remote, now)
		if errno == 0 {
			e := &udpEnd{r: q.reactor, queue: q.id, s: sock, readable: c.readable, writable: make(chan struct{}, 1)}
			c.ends, c.writers = append(c.ends, e), append(c.writers, e.writable)
			q.reactor.Watch(sock, e)
			c.local, c.remote = h.UDPAddr(sock)
			addr = netip.AddrPortFrom(local.Addr(), c.local.Port()) // the other queues' sockets get the same
		}
		q.reactor.Leave()
		if errno != 0 {
			return errno
		}
	}
	c.port = portKey{proto.ProtoUDP, local.Addr(), addr.Port()}
	return s.openPort(c.port)
}

// openUDPEnd opens the socket on one queue, connected if remote is valid.
func openUDPEnd(h *sockets.Host, local, remote netip.AddrPort, now int64) (sockets.Handle, sockets.Errno) {
	from, _ := proto.AddrFrom(local.Addr())
	to, _ := proto.AddrFrom(remote.Addr())
	if remote.IsValid() && local.Port() == 0 {
		return h.UDPDial(to, remote.Port())
	}
	s, errno := h.UDPBind(from, local.Port())
	if errno != 0 || !remote.IsValid() {
		return s, errno
	}
	if errno = h.UDPConnect(s, to, remote.Port()); errno != 0 {
		h.Close(s, now)
	}
	return s, errno
}

// ReadFromUDPAddrPort reads a datagram into b without allocating. What does not fit is cut off.
func (c *UDPConn) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	d, err := c.read(b)
	return d.N, d.Src, err
}

// ReadStamped is ReadFromUDPAddrPort that says, too, when the datagram was received (MetadataOn), as SO_TIMESTAMPING
// does; 0: nobody knows.
func (c *UDPConn) ReadStamped(b []byte) (int, netip.AddrPort, Stamp, error) {
	d, err := c.read(b)
	return d.N, d.Src, d.At, err
}

func (c *UDPConn) read(b []byte) (sockets.Datagram, error) {
	for waited := false; ; waited = true {
		if err := c.check(&c.rd); err != nil {
			return sockets.Datagram{}, c.fail("read", err)
		}
		for _, e := range c.ends {
			h, _, ok := e.r.Enter()
			if !ok {
				e.r.Leave()
				return sockets.Datagram{}, c.fail("read", c.endError())
			}
			d, errno := h.UDPRecv(e.s, b)
			e.r.Leave()
			switch errno {
			case 0:
				// For the next reader, if several wait: the token may have stood for another end's datagram too.
				if d.More || waited && len(c.ends) > 1 {
					token(c.readable)
				}
				return d, nil
			case sockets.EAGAIN:
			default:
				token(c.readable) // there may be datagrams behind the error
				return sockets.Datagram{}, c.failErrno("read", errno)
			}
		}
		<-c.readable
	}
}

// WriteToUDPAddrPort sends b as one datagram to addr without allocating. It waits while there is no frame to send with.
func (c *UDPConn) WriteToUDPAddrPort(b []byte, addr netip.AddrPort) (int, error) {
	if c.remote.IsValid() {
		return 0, c.fail("write", net.ErrWriteToConnected)
	}
	return c.send(b, addr)
}

func (c *UDPConn) send(b []byte, addr netip.AddrPort) (int, error) {
	if addr.IsValid() {
		addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	}
	e := c.ends[c.endFor(addr)]
	for waited := false; ; waited = true {
		if err := c.check(&c.wd); err != nil {
			return 0, c.fail("write", err)
		}
		h, now, ok := e.r.Enter()
		if !ok {
			e.r.Leave()
			return 0, c.fail("write", c.endError())
		}
		errno := h.UDPSend(e.s, b, addr, now)
		e.r.Leave()
		if waited && errno != sockets.EAGAIN {
			token(e.writable) // for the next writer, if several wait
		}
		switch errno {
		case 0:
			return len(b), nil
		case sockets.EAGAIN:
		default:
			return 0, c.failErrno("write", errno)
		}
		<-e.writable
	}
}

// endFor chooses the queue to send on: always the same for a peer, so that its datagrams stay in order, and the one that
// its own come in on, if that is known.
func (c *UDPConn) endFor(addr netip.AddrPort) int {
	if len(c.ends) == 1 {
		return 0
	}
	if !addr.IsValid() {
		addr = c.remote
	}
	if q := c.stack.steer.queue(proto.ProtoUDP, c.local, addr); q >= 0 {
		for i, e := range c.ends {
			if e.queue == q {
				return i
			}
		}
	}
	a, _ := proto.AddrFrom(addr.Addr())
	return int((uint32(a)*31 + uint32(addr.Port())) % uint32(len(c.ends)))
}

// ReadFrom implements net.PacketConn.
func (c *UDPConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.ReadFromUDPAddrPort(b)
	if err != nil {
		return n, nil, err
	}
	return n, net.UDPAddrFromAddrPort(from), nil
}

// WriteTo implements net.PacketConn. addr must be a *net.UDPAddr.
func (c *UDPConn) WriteTo(b []byte, addr net.Addr) (int, error) {
	u, ok := addr.(*net.UDPAddr)
	if !ok || u == nil {
		return 0, c.fail("write", syscall.EINVAL)
	}
	return c.WriteToUDPAddrPort(b, u.AddrPort())
}

// Read implements net.Conn.
func (c *UDPConn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFromUDPAddrPort(b)
	return n, err
}

// Write implements net.Conn: it sends to the peer of a connected socket.
func (c *UDPConn) Write(b []byte) (int, error) { return c.send(b, netip.AddrPort{}) }

// Close closes the socket. Calls that wait on it return net.ErrClosed.
func (c *UDPConn) Close() error {
	err := c.fail("close", net.ErrClosed)
	c.once.Do(func() {
		c.closed.Store(true)
		c.wakeAll()
		c.closeEnds()
		err = nil
		if perr := c.stack.closePort(c.port); perr != nil {
			err = c.fail("close", perr)
		}
	})
	return err
}

func (c *UDPConn) closeEnds() {
	for _, e := range c.ends {
		h, now, ok := e.r.Enter()
		e.r.Watch(e.s, nil)
		if ok {
			h.Close(e.s, now)
		}
		e.r.Leave()
	}
}

// opError is the error that package net would return.
func opError(op, network string, local, remote netip.AddrPort, err error) error {
	e := &net.OpError{Op: op, Net: network, Err: err}
	if local.IsValid() {
		e.Source = netAddrOf(network, local)
	}
	if remote.IsValid() {
		e.Addr = netAddrOf(network, remote)
	}
	return e
}

// netAddrOf is an address as package net has it.
func netAddrOf(network string, a netip.AddrPort) net.Addr {
	if strings.HasPrefix(network, "tcp") {
		return net.TCPAddrFromAddrPort(a)
	}
	return net.UDPAddrFromAddrPort(a)
}
