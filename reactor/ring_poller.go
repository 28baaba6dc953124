package reactor

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"xdpd/rings"
	"xdpd/sockets"
)

// RingPoller is a Poller over RingSockets: the engine's own, at the other end of the ring. Its calls may come from any goroutine.
type RingPoller struct {
	h      *RingSockets
	number int32
	woken  chan struct{} // a token of Wake
	closed chan struct{}
	once   sync.Once
	served sync.WaitGroup
}

// NewPoller makes a poller. Error: ErrTooMany, 64 are there.
func (h *RingSockets) NewPoller() (*RingPoller, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for i, used := range h.epoll {
		if !used {
			h.epoll[i] = true
			return &RingPoller{h: h, number: int32(i), woken: make(chan struct{}, 1), closed: make(chan struct{})}, nil
		}
	}
	return nil, ErrTooMany
}

// Add is Poller.Add.
func (p *RingPoller) Add(s sockets.Handle, mask sockets.Ready, data uint64) error {
	return p.ctl(rings.EpollAdd, s, mask, data)
}

// Mod is Poller.Mod.
func (p *RingPoller) Mod(s sockets.Handle, mask sockets.Ready, data uint64) error {
	return p.ctl(rings.EpollMod, s, mask, data)
}

// Del is Poller.Del.
func (p *RingPoller) Del(s sockets.Handle) error { return p.ctl(rings.EpollDel, s, 0, 0) }

func (p *RingPoller) ctl(op uint32, s sockets.Handle, mask sockets.Ready, data uint64) error {
	o, err := p.begin(false)
	if err != nil {
		return err
	}
	defer o.End()
	fd := p.h.number(s)
	if fd < 0 {
		if op == rings.EpollAdd {
			return ErrBadSocket
		}
		return ErrNotAdded // it left when it was closed
	}
	_, errno, err := o.Do(&rings.SQE{Opcode: rings.OpEpollCtl, FD: p.number, Len: op, Off: uint64(fd), OpFlags: uint32(mask), Addr: data})
	if err != nil {
		return p.gone(err)
	}
	switch errno {
	case 0:
		return nil
	case sockets.EEXIST:
		return ErrExists
	case sockets.ENOENT:
		return ErrNotAdded
	case sockets.EINVAL:
		return ErrInvalid
	case syscall.ENOSPC:
		return ErrTooMany
	case sockets.EBADF:
		return ErrBadSocket
	}
	return errno
}

// begin takes a call, with a chunk for events or without, unless the poller is closed.
func (p *RingPoller) begin(events bool) (o Call, err error) {
	select {
	case <-p.closed:
		return Call{}, ErrClosed
	default:
	}
	if events {
		o, err = p.h.calls.BeginData(p.closed)
	} else {
		o, err = p.h.calls.Begin()
	}
	if err != nil {
		return o, p.gone(err)
	}
	return o, nil
}

// gone is ErrClosed, and why.
func (p *RingPoller) gone(err error) error {
	if errors.Is(err, ErrCallStopped) {
		return ErrClosed
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// Wait is Poller.Wait. It gives at most 256 events.
func (p *RingPoller) Wait(buf []Event, timeout time.Duration) (int, error) {
	if len(buf) == 0 {
		return 0, ErrInvalid
	}
	o, err := p.begin(true)
	if err != nil {
		return 0, err
	}
	defer o.End()
	sqe := rings.SQE{Opcode: rings.OpEpollWait, FD: p.number, Addr: o.Base(), Len: uint32(min(len(buf), rings.MaxEpollEvents))}
	select {
	case <-p.woken:
		timeout = 0
	default:
	}
	if timeout == 0 {
		sqe.OpFlags = rings.MsgDontWait
	}
	if err := o.Submit(&sqe); err != nil {
		return 0, p.gone(err)
	}
	var over chan struct{}
	if timeout > 0 {
		over = make(chan struct{})
		defer time.AfterFunc(timeout, func() { close(over) }).Stop()
	}
	n, errno, err := o.Wait(p.woken, p.closed, over)
	switch {
	case err != nil:
		return 0, p.gone(err)
	case errno == sockets.ECANCELED:
		n = 0
		select {
		case <-p.closed:
			return 0, ErrClosed
		default:
		}
	case errno != 0:
		return 0, errno
	}
	k := 0
	for i := range n {
		e := rings.ParseEpollEvent(o.Mem()[i*rings.EpollEventSize:])
		if s := p.h.handle(e.FD); s != 0 { // else it was closed meanwhile
			buf[k] = Event{s, sockets.Ready(e.Events), e.Data}
			k++
		}
	}
	return k, nil
}

// handle is the socket with a number.
func (h *RingSockets) handle(fd int32) sockets.Handle {
	h.mu.Lock()
	defer h.mu.Unlock()
	if fd < 0 || int(fd) >= len(h.socks) {
		return 0
	}
	return h.socks[fd]
}

// Wake is Poller.Wake.
func (p *RingPoller) Wake() {
	select {
	case p.woken <- struct{}{}:
	default:
	}
}

// Serve has a goroutine call handler for each ready socket, until the poller is closed.
func (p *RingPoller) Serve(handler func(e Event)) {
	p.served.Go(func() {
		buf := make([]Event, rings.MaxEpollEvents)
		for {
			n, err := p.Wait(buf, -1)
			if err != nil {
				return
			}
			for _, e := range buf[:n] {
				handler(e)
			}
		}
	})
}

// Close is Poller.Close.
func (p *RingPoller) Close() {
	p.once.Do(func() {
		close(p.closed)
		p.served.Wait()
		if o, err := p.h.calls.Begin(); err == nil {
			_, _, _ = o.Do(&rings.SQE{Opcode: rings.OpEpollCtl, FD: p.number, Len: rings.EpollForget}) // a ring that is gone has forgotten it
			o.End()
		}
		p.h.mu.Lock()
		p.h.epoll[p.number] = false
		p.h.mu.Unlock()
	})
}
