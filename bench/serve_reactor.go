package main

import (
	"context"
	"fmt"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

const (
	// serveBatch is what a handler takes of a UDP socket, or of a listener, in a turn at most. Were it less, an overload
	// would be taken in, queued, and dropped at the socket, where a drop costs most.
	serveBatch = 256
	// bulkBytes is what a handler reads or writes of a connection in a turn at most.
	bulkBytes = 256 << 10
)

// serveReactor is the engine with the work as a handler on the reactor: no goroutine switch.
func serveReactor(ctx context.Context, o serveOptions, ready func()) (counters, error) {
	st, err := open(o)
	if err != nil {
		return counters{}, err
	}
	defer st.Close()
	var listeners []sockets.Handle // of each reactor
	if o.work != "udp-echo" {
		if listeners, err = st.ListenReactors(uint16(o.port)); err != nil {
			return counters{}, err
		}
	}
	for i, r := range st.Reactors() {
		if listeners == nil {
			err = startUDP(r, o)
		} else {
			err = startTCP(r, o, listeners[i])
		}
		if err != nil {
			return counters{}, err
		}
	}
	return whileRunning(ctx, st, ready)
}

// udpEcho is the handler of UDP sockets on a reactor. A datagram that cannot be sent for want of frames is kept, and stops
// reception on its socket.
type udpEcho struct {
	poller *reactor.Poller
	kept   map[sockets.Handle]sockets.Datagram
	bytes  map[sockets.Handle][]byte
	buf    [9216]byte
}

// startUDP opens the ports on a reactor.
func startUDP(r *reactor.Reactor, o serveOptions) error {
	e := &udpEcho{
		poller: reactor.NewPoller(r),
		kept:   make(map[sockets.Handle]sockets.Datagram), bytes: make(map[sockets.Handle][]byte),
	}
	h, _, ok := r.Enter()
	defer r.Leave()
	if !ok {
		return reactor.ErrStopped
	}
	e.poller.Serve(e.ready)
	addrs := o.addresses()
	each := o.ports / uint(len(addrs)) // load_flood.go sends to as many
	for _, a := range addrs {
		addr, _ := proto.AddrFrom(a.Addr())
		if len(addrs) == 1 {
			addr = 0 // any: in share mode it is the kernel's
		}
		for i := range each {
			if err := e.bind(h, addr, uint16(o.port+i)); err != nil {
				return err
			}
		}
	}
	return nil
}

func (e *udpEcho) bind(h *sockets.Host, addr proto.Addr, port uint16) error {
	s, errno := h.UDPBind(addr, port)
	if errno != 0 {
		return fmt.Errorf("UDP %v:%d: %w", addr, port, errno)
	}
	return e.poller.Add(s, sockets.In, 0)
}

func (e *udpEcho) ready(h *sockets.Host, now int64, ev reactor.Event) {
	if ev.Ready&sockets.Out != 0 && len(e.kept) > 0 && !e.again(h, now, ev.Sock) {
		return
	}
	for range serveBatch {
		d, errno := h.UDPRecv(ev.Sock, e.buf[:])
		if errno != 0 {
			return
		}
		if h.UDPSend(ev.Sock, e.buf[:d.N], d.Src, now) == sockets.EAGAIN {
			e.kept[ev.Sock], e.bytes[ev.Sock] = d, append([]byte(nil), e.buf[:d.N]...)
			_ = e.poller.Mod(ev.Sock, sockets.Out, 0) // the socket is in the poller: it just called us
			return
		}
	}
}

// again sends what was kept. It reports whether the socket may be read.
func (e *udpEcho) again(h *sockets.Host, now int64, s sockets.Handle) bool {
	d, ok := e.kept[s]
	if ok && h.UDPSend(s, e.bytes[s], d.Src, now) == sockets.EAGAIN {
		return false
	}
	delete(e.kept, s)
	delete(e.bytes, s)
	_ = e.poller.Mod(s, sockets.In, 0)
	return true
}

// tcpServer is the handler of a listener's connections on a reactor.
type tcpServer struct {
	work     string
	poller   *reactor.Poller
	listener sockets.Handle
	unsent   map[sockets.Handle][]byte // of an echo that could not be written yet, which stops reading
	buf      []byte
}

// startTCP serves a listener of a reactor.
func startTCP(r *reactor.Reactor, o serveOptions, listener sockets.Handle) error {
	s := &tcpServer{
		work: o.work, poller: reactor.NewPoller(r), listener: listener, unsent: make(map[sockets.Handle][]byte),
		buf: make([]byte, 64<<10),
	}
	_, _, ok := r.Enter()
	defer r.Leave()
	if !ok {
		return reactor.ErrStopped
	}
	s.poller.Serve(s.ready)
	return s.poller.Add(listener, sockets.In, 0)
}

func (s *tcpServer) ready(h *sockets.Host, now int64, ev reactor.Event) {
	if ev.Sock == s.listener {
		s.accept(h, now)
		return
	}
	more := false
	switch s.work {
	case "tcp-echo":
		more = s.echo(h, now, ev)
	case "tcp-sink":
		more = s.sink(h, now, ev.Sock)
	case "tcp-source":
		more = s.source(h, now, ev)
	}
	if !more {
		delete(s.unsent, ev.Sock)
		_ = h.Close(ev.Sock, now) // which takes it out of the poller
	}
}

func (s *tcpServer) accept(h *sockets.Host, now int64) {
	for range serveBatch {
		c, errno := h.TCPAccept(s.listener)
		if errno != 0 {
			return
		}
		mask := sockets.In
		switch s.work {
		case "tcp-accept":
			_ = h.Close(c, now)
			continue
		case "tcp-source":
			mask = sockets.In | sockets.Out
		}
		_ = h.TCPSetNoDelay(c, true, now)
		if s.poller.Add(c, mask, 0) != nil {
			_ = h.Close(c, now)
		}
	}
}

// echo, sink and source do their work on a connection. They report whether it goes on.

func (s *tcpServer) echo(h *sockets.Host, now int64, ev reactor.Event) bool {
	if ev.Ready&sockets.Out != 0 {
		n, errno := h.TCPWrite(ev.Sock, s.unsent[ev.Sock], now)
		if errno != 0 && errno != sockets.EAGAIN {
			return false
		}
		if s.unsent[ev.Sock] = s.unsent[ev.Sock][n:]; len(s.unsent[ev.Sock]) > 0 {
			return true
		}
		delete(s.unsent, ev.Sock)
		_ = s.poller.Mod(ev.Sock, sockets.In, 0) // it is in the poller: it just called us
	}
	n, errno := h.TCPRead(ev.Sock, s.buf, now)
	if errno == sockets.EAGAIN {
		return true
	}
	if errno != 0 || n == 0 {
		return false
	}
	sent, errno := h.TCPWrite(ev.Sock, s.buf[:n], now)
	if errno != 0 && errno != sockets.EAGAIN {
		return false
	}
	if sent < n {
		s.unsent[ev.Sock] = append([]byte(nil), s.buf[sent:n]...)
		_ = s.poller.Mod(ev.Sock, sockets.Out, 0)
	}
	return true
}

func (s *tcpServer) sink(h *sockets.Host, now int64, c sockets.Handle) bool {
	for got := 0; got < bulkBytes; {
		n, errno := h.TCPRead(c, s.buf, now)
		if errno == sockets.EAGAIN {
			return true
		}
		if errno != 0 || n == 0 {
			return false
		}
		got += n
	}
	return true
}

func (s *tcpServer) source(h *sockets.Host, now int64, ev reactor.Event) bool {
	if ev.Ready&sockets.In != 0 {
		if n, errno := h.TCPRead(ev.Sock, s.buf, now); errno != sockets.EAGAIN && (errno != 0 || n == 0) {
			return false
		}
	}
	for sent := 0; ev.Ready&sockets.Out != 0 && sent < bulkBytes; {
		n, errno := h.TCPWrite(ev.Sock, s.buf, now)
		if errno == sockets.EAGAIN {
			return true
		}
		if errno != 0 {
			return false
		}
		sent += n
	}
	return true
}
