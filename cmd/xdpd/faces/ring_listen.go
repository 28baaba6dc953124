package faces

import (
	"fmt"
	"net"
	"net/netip"

	"xdpd/rings"
	"xdpd/sockets"
)

func (l *ringLoop) Listen(port uint16, accept func() Stream) error {
	result := make(chan int32, 1)
	posted := l.Post(func() {
		rings.PutSockAddr(l.data, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
		l.ask(new(rings.SQE).PrepSocket(rings.SockStream), func(fd int32) {
			if fd < 0 {
				result <- fd
				return
			}
			l.ask(new(rings.SQE).PrepBind(fd, 0), func(res int32) {
				if res < 0 {
					result <- res
					return
				}
				l.ask(new(rings.SQE).PrepListen(fd), func(res int32) {
					if res >= 0 {
						l.accept[fd] = accept
						l.acceptFrom(fd)
					}
					result <- res
				})
			})
		})
	})
	if !posted {
		return net.ErrClosed
	}
	select {
	case res := <-result:
		if res < 0 {
			return fmt.Errorf("TCP port %d: %w", port, sockets.Errno(-res))
		}
		return nil
	case <-l.ended:
		return net.ErrClosed
	}
}

func (l *ringLoop) acceptFrom(fd int32) {
	l.push(new(rings.SQE).PrepAccept(fd, rings.AcceptMultishot), opAccept|uint64(fd))
}

func (l *ringLoop) StopListening() {
	l.Post(func() {
		for fd := range l.accept {
			delete(l.accept, fd)
			l.push(new(rings.SQE).PrepClose(fd), opNone)
		}
		l.resting = nil
	})
}

// accepted has a connection served.
func (l *ringLoop) accepted(listener int32, e rings.CQE) {
	accept := l.accept[listener]
	if e.Flags&rings.CQEMore == 0 && accept != nil {
		l.resting = append(l.resting, listener)
	}
	if e.Res < 0 {
		return
	}
	if len(l.resting) > 0 {
		l.acceptAgain()
	}
	s := Stream(nil)
	if accept != nil && len(l.free) > 0 {
		s = accept()
	}
	if s == nil {
		l.push(new(rings.SQE).PrepReset(e.Res), opNone)
		l.push(new(rings.SQE).PrepClose(e.Res), opNone)
		return
	}
	c := l.adopt(s)
	c.fd = e.Res
	c.opened()
}

// acceptAgain goes on after there was no number for a connection, or no room for its completion.
func (l *ringLoop) acceptAgain() {
	for _, fd := range l.resting {
		l.acceptFrom(fd)
	}
	l.resting = l.resting[:0]
}
