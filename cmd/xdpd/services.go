package main

import (
	"context"
	"fmt"
	"time"

	"xdpd"
	"xdpd/reactor"
	"xdpd/sockets"
)

// services are the small internet services, run to completion on the reactors.
type services struct {
	reactors []*serviceReactor
}

// serviceReactor is what one reactor serves. Its fields are used with the reactor's lock held.
type serviceReactor struct {
	r      *reactor.Reactor
	poller *reactor.Poller
	socks  map[sockets.Handle]handler
	conns  int
	buf    [65536]byte
}

// handler is one socket's behaviour.
type handler interface {
	ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, r sockets.Ready)
}

const maxConns = 65536 // connections of all services on one reactor

// startServices opens the services' sockets on every reactor.
func startServices(st *xdpd.Stack, specs []serviceSpec) (*services, error) {
	svc := &services{}
	for _, r := range st.Reactors() {
		sr := &serviceReactor{r: r, poller: reactor.NewPoller(r), socks: make(map[sockets.Handle]handler)}
		svc.reactors = append(svc.reactors, sr)
		h, _, ok := r.Enter()
		var err error
		if ok {
			sr.poller.Serve(sr.handle)
			err = sr.open(h, specs)
		}
		r.Leave()
		if err != nil {
			return nil, err
		}
	}
	for _, s := range specs {
		if err := st.OpenPorts(s.Port, s.TCP, s.UDP); err != nil {
			return nil, err
		}
	}
	return svc, nil
}

func (sr *serviceReactor) open(h *sockets.Host, specs []serviceSpec) error {
	for _, spec := range specs {
		if spec.UDP {
			s, errno := h.UDPBind(0, spec.Port)
			if errno != 0 {
				return fmt.Errorf("service %s: UDP port %d: %w", spec.Name, spec.Port, errno)
			}
			if err := sr.add(s, udpServices[spec.Name]()); err != nil {
				return err
			}
		}
		if spec.TCP {
			s, errno := h.TCPListen(0, spec.Port)
			if errno != 0 {
				return fmt.Errorf("service %s: TCP port %d: %w", spec.Name, spec.Port, errno)
			}
			if err := sr.add(s, listener{tcpServices[spec.Name]}); err != nil {
				return err
			}
		}
	}
	return nil
}

func (sr *serviceReactor) add(s sockets.Handle, hd handler) error {
	sr.socks[s] = hd
	return sr.poller.Add(s, sockets.In, 0)
}

func (sr *serviceReactor) handle(h *sockets.Host, now int64, e reactor.Event) {
	if hd := sr.socks[e.Sock]; hd != nil {
		hd.ready(sr, h, now, e.Sock, e.Ready)
	}
}

// want changes what the socket's handler waits for.
func (sr *serviceReactor) want(s sockets.Handle, mask sockets.Ready) {
	_ = sr.poller.Mod(s, mask, 0) // the socket is in the poller as long as it is in socks
}

// closeConn ends a connection: FIN behind what was written, or RST if there is unread data.
func (sr *serviceReactor) closeConn(h *sockets.Host, now int64, s sockets.Handle) {
	_ = sr.poller.Del(s)
	delete(sr.socks, s)
	sr.conns--
	h.Close(s, now)
}

// Close stops accepting, lets connections send what is queued, and resets those whose peers do not take it before ctx
// ends.
func (svc *services) Close(ctx context.Context) error {
	for _, sr := range svc.reactors {
		sr.shutdown()
	}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for svc.open() > 0 {
		select {
		case <-tick.C:
			continue
		case <-ctx.Done():
		}
		n := 0
		for _, sr := range svc.reactors {
			n += sr.abort()
		}
		return fmt.Errorf("%d connections reset: their peers did not take what was sent", n)
	}
	return nil
}

// open counts connections with bytes their peers did not acknowledge.
func (svc *services) open() int {
	n := 0
	for _, sr := range svc.reactors {
		h, _, ok := sr.r.Enter()
		if ok && h.Unsent() {
			n++
		}
		sr.r.Leave()
	}
	return n
}

// shutdown closes listeners and UDP sockets, and our direction of every connection.
func (sr *serviceReactor) shutdown() {
	h, now, ok := sr.r.Enter()
	defer sr.r.Leave()
	if !ok {
		return
	}
	for s, hd := range sr.socks {
		if _, isConn := hd.(connHandler); isConn {
			h.TCPShutdown(s, now)
			continue
		}
		_ = sr.poller.Del(s)
		delete(sr.socks, s)
		h.Close(s, now)
	}
}

// abort resets what is left and says how much that was.
func (sr *serviceReactor) abort() int {
	h, now, ok := sr.r.Enter()
	defer sr.r.Leave()
	if !ok {
		return 0
	}
	n := len(sr.socks)
	for s := range sr.socks {
		_ = sr.poller.Del(s)
		delete(sr.socks, s)
		h.TCPAbort(s, now)
	}
	return n
}

// listener accepts connections and gives each a handler.
type listener struct {
	make func() connHandler
}

// connHandler is the handler of a TCP connection.
type connHandler interface {
	handler
	mask() sockets.Ready // what to wait for at first
}

func (l listener) ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, _ sockets.Ready) {
	for range acceptBatch {
		c, errno := h.TCPAccept(s)
		if errno != 0 {
			return
		}
		if sr.conns >= maxConns {
			h.TCPAbort(c, now)
			continue
		}
		hd := l.make()
		sr.conns++
		sr.socks[c] = hd
		if err := sr.poller.Add(c, hd.mask(), 0); err != nil {
			sr.closeConn(h, now, c)
		}
	}
}

const (
	acceptBatch = 64
	udpBatch    = 64
)
