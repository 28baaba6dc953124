package proxy

import (
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// PacketConn is where datagrams come in, as *net.UDPConn has it.
type PacketConn interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	Close() error
}

// A datagram that does not fit is cut off without a word, so each flow has a buffer for the largest. Most of it is never
// touched, and so no memory.
var udpBuffers = sync.Pool{New: func() any { return new([65536]byte) }}

// ServeUDP hands on datagrams until l is closed or Shutdown. A client's address and port are a flow, with a socket of its
// own to its backend, as long as it is not silent for Config.Idle.
func (p *Proxy) ServeUDP(l PacketConn) error {
	if !p.enter(l) {
		return errors.Join(net.ErrClosed, l.Close())
	}
	defer p.leave(l)
	t := &udpTable{p: p, l: l, flows: make(map[netip.AddrPort]*udpFlow)}
	b := udpBuffers.Get().(*[65536]byte)
	defer udpBuffers.Put(b)
	for {
		n, from, err := l.ReadFromUDPAddrPort(b[:])
		switch {
		case err == nil:
			if !t.forward(b[:n], netip.AddrPortFrom(from.Addr().Unmap(), from.Port())) {
				p.n.dropped.Add(1)
			}
		case !unreachable(err):
			return err
		}
	}
}

// unreachable knows the errors that ICMP tells a socket about one of its peers; the socket is as good as before.
func unreachable(err error) bool {
	return isErrno(err, syscall.ECONNREFUSED, syscall.EHOSTUNREACH, syscall.ENETUNREACH, syscall.EMSGSIZE, syscall.EPROTO,
		syscall.ENOPROTOOPT)
}

// udpTable finds flows by their clients. Proxy.flows bounds it.
type udpTable struct {
	p *Proxy
	l PacketConn

	mu    sync.Mutex
	flows map[netip.AddrPort]*udpFlow
}

// udpFlow is a client and its socket to a backend.
type udpFlow struct {
	t       *udpTable
	client  netip.AddrPort
	backend *backend
	conn    net.Conn
	moved   atomic.Int64 // since Proxy.start
	ended   atomic.Bool
}

func (f *udpFlow) touch()                   { f.moved.Store(int64(f.t.p.since())) }
func (f *udpFlow) idleSince() time.Duration { return time.Duration(f.moved.Load()) }

// end forgets the client and closes the socket to the backend.
func (f *udpFlow) end(bool) (first bool) {
	if f.ended.Swap(true) {
		return false
	}
	f.t.mu.Lock()
	delete(f.t.flows, f.client)
	f.t.mu.Unlock()
	_ = f.conn.Close()
	return true
}

// forward sends a datagram to its client's backend; false: it is lost.
func (t *udpTable) forward(d []byte, client netip.AddrPort) bool {
	t.mu.Lock()
	f := t.flows[client]
	t.mu.Unlock()
	if f != nil && !t.p.usable(f.backend) {
		f.end(true) // the client moves to another backend
		f = nil
	}
	if f == nil {
		if f = t.open(client); f == nil {
			return false
		}
	}
	f.touch()
	b := f.backend
	if b.unanswered.Add(1) == 1 {
		b.unansweredAt.Store(int64(t.p.since()))
	}
	if _, err := f.conn.Write(d); err != nil {
		f.broken(err)
		return false
	}
	b.n.sent.Add(uint64(len(d)))
	return true
}

// open makes a flow for a new client; nil: it is refused.
func (t *udpTable) open(client netip.AddrPort) *udpFlow {
	p := t.p
	p.mu.Lock()
	room := p.room() // before a socket is made in vain
	p.mu.Unlock()
	if !room {
		return nil
	}
	f := &udpFlow{t: t, client: client}
	f.touch()
	if f.backend = p.pick(nil); f.backend == nil {
		p.n.noBackend.Add(1)
		return nil
	}
	var err error
	if f.conn, err = p.cfg.Dialer.DialContext(p.ctx, "udp4", f.backend.text); err != nil {
		p.unpick(f.backend)
		p.failed(f.backend, err)
		return nil
	}
	t.mu.Lock()
	t.flows[client] = f
	t.mu.Unlock()
	if !p.admit(f) {
		f.end(true)
		p.unpick(f.backend)
		return nil
	}
	go f.serve()
	return f
}

// serve brings back what the backend answers.
func (f *udpFlow) serve() {
	p, b := f.t.p, f.backend
	defer p.drop(f)
	defer p.unpick(b)
	buf := udpBuffers.Get().(*[65536]byte)
	defer udpBuffers.Put(buf)
	for {
		n, err := f.conn.Read(buf[:])
		if err != nil {
			f.broken(err)
			return
		}
		f.touch()
		b.answered.Store(true)
		b.unanswered.Store(0)
		b.n.received.Add(uint64(n))
		if _, err := f.t.l.WriteToUDPAddrPort(buf[:n], f.client); err != nil {
			p.n.dropped.Add(1)
		}
	}
}

// broken ends a flow whose socket has an error, which is the backend's fault unless the flow has ended before.
func (f *udpFlow) broken(err error) {
	if f.end(true) {
		f.t.p.n.broken.Add(1)
		f.t.p.failed(f.backend, err)
	}
}
