package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// tcpBuffer is what each direction of a connection buffers here; the rest is in the sockets of both sides, whose windows
// close when the far end does not read.
const tcpBuffer = 16 << 10

var tcpBuffers = sync.Pool{New: func() any { return new([tcpBuffer]byte) }}

// ServeTCP hands on connections until l is closed or Shutdown.
func (p *Proxy) ServeTCP(l net.Listener) error {
	if !p.enter(l) {
		return errors.Join(net.ErrClosed, l.Close())
	}
	defer p.leave(l)
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		f := &tcpFlow{p: p, client: c}
		f.touch()
		if !p.admit(f) {
			reset(c)
			continue
		}
		go f.serve()
	}
}

// tcpFlow is a client's connection and the one to its backend.
type tcpFlow struct {
	p      *Proxy
	client net.Conn
	moved  atomic.Int64 // since Proxy.start

	mu      sync.Mutex
	backend net.Conn
	ended   bool
}

func (f *tcpFlow) touch()                   { f.moved.Store(int64(f.p.since())) }
func (f *tcpFlow) idleSince() time.Duration { return time.Duration(f.moved.Load()) }

// end closes both sides, once. A reset tells both that what they have is not the whole.
func (f *tcpFlow) end(isReset bool) (first bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		return false
	}
	f.ended = true
	for _, c := range []net.Conn{f.client, f.backend} {
		switch {
		case c == nil:
		case isReset:
			reset(c)
		default:
			_ = c.Close()
		}
	}
	return true
}

// connected takes the backend's side; false: the flow has ended meanwhile.
func (f *tcpFlow) connected(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.ended {
		reset(c)
		return false
	}
	f.backend = c
	return true
}

func (f *tcpFlow) serve() {
	p := f.p
	defer p.drop(f)
	b, c := f.dial()
	if b == nil {
		if f.end(true) {
			p.n.noBackend.Add(1)
		}
		return
	}
	defer p.unpick(b)
	if !f.connected(c) {
		return
	}
	var forth sync.WaitGroup
	forth.Go(func() { f.copy(c, f.client, &b.n.sent) })
	f.copy(f.client, c, &b.n.received)
	forth.Wait()
	f.end(false)
}

// dial connects to a backend, to the next one if the first does not take it.
func (f *tcpFlow) dial() (*backend, net.Conn) {
	p := f.p
	tried := make(map[*backend]bool)
	for p.ctx.Err() == nil {
		b := p.pick(tried)
		if b == nil {
			return nil, nil
		}
		ctx, cancel := context.WithTimeout(p.ctx, p.cfg.Timeout)
		c, err := p.cfg.Dialer.DialContext(ctx, "tcp4", b.text)
		cancel()
		if err == nil {
			return b, c
		}
		p.unpick(b)
		if p.ctx.Err() == nil {
			p.failed(b, err)
		}
		tried[b] = true
	}
	return nil, nil
}

// copy hands bytes on until src ends, which dst is told, or one of them breaks, which ends both. The other direction goes
// on after an end.
func (f *tcpFlow) copy(dst, src net.Conn, n *atomic.Uint64) {
	b := tcpBuffers.Get().(*[tcpBuffer]byte)
	defer tcpBuffers.Put(b)
	for {
		k, err := src.Read(b[:])
		if k > 0 {
			f.touch()
			w, werr := dst.Write(b[:k])
			n.Add(uint64(w))
			if werr != nil {
				err = werr
			}
			f.touch()
		}
		if err == io.EOF {
			if err = closeWrite(dst); err == nil {
				return
			}
		}
		if err != nil {
			if f.end(true) {
				f.p.n.broken.Add(1)
			}
			return
		}
	}
}

func closeWrite(c net.Conn) error {
	if h, ok := c.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return errors.ErrUnsupported
}

// reset closes a connection so that its peer sees a reset, where the connection can.
func reset(c net.Conn) {
	if l, ok := c.(interface{ SetLinger(sec int) error }); ok {
		_ = l.SetLinger(0)
	}
	_ = c.Close()
}
