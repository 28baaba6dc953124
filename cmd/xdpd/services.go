package main

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"xdpd"
	"xdpd/reactor"
	"xdpd/sockets"
)

// services are what xdpd run offers: small ones that run to completion on the reactors, and larger ones with goroutines
// on the net face.
type services struct {
	reactors []*serviceReactor
	counts   []*countedService
	faces    []faceService
}

// countedService is a service on the reactors.
type countedService struct {
	serviceSpec
	n serviceCount
}

// faceService is a service on the net face.
type faceService interface {
	views() []serviceView
	Close(ctx context.Context) error // stops accepting, ends what is open, by force when ctx ends
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

// startServices opens the services' sockets.
func startServices(st *xdpd.Stack, specs []serviceSpec) (_ *services, err error) {
	svc := &services{}
	defer func() {
		if err != nil {
			at, cancel := context.WithCancel(context.Background())
			cancel() // nobody is being served yet
			_ = svc.Close(at)
		}
	}()
	for _, s := range specs {
		if start := faceServices[s.Name]; start != nil {
			face, err := start(st, &s)
			if err != nil {
				return nil, err
			}
			svc.faces = append(svc.faces, face)
		} else {
			svc.counts = append(svc.counts, &countedService{serviceSpec: s})
		}
	}
	for _, r := range st.Reactors() {
		sr := &serviceReactor{r: r, poller: reactor.NewPoller(r), socks: make(map[sockets.Handle]handler)}
		svc.reactors = append(svc.reactors, sr)
		h, _, ok := r.Enter()
		if ok {
			sr.poller.Serve(sr.handle)
			err = sr.open(h, svc.counts)
		}
		r.Leave()
		if err != nil {
			return nil, err
		}
	}
	for _, s := range svc.counts {
		if err := st.OpenPorts(s.Port, s.TCP, s.UDP); err != nil {
			return nil, err
		}
	}
	return svc, nil
}

func (sr *serviceReactor) open(h *sockets.Host, list []*countedService) error {
	for _, c := range list {
		if c.UDP {
			s, errno := h.UDPBind(0, c.Port)
			if errno != 0 {
				return fmt.Errorf("service %s: UDP port %d: %w", c.Name, c.Port, errno)
			}
			if err := sr.add(s, udpServices[c.Name]()); err != nil {
				return err
			}
		}
		if c.TCP {
			s, errno := h.TCPListen(0, c.Port)
			if errno != 0 {
				return fmt.Errorf("service %s: TCP port %d: %w", c.Name, c.Port, errno)
			}
			if err := sr.add(s, listener{c}); err != nil {
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
	errs := make([]error, len(svc.faces))
	var closing sync.WaitGroup
	for i, f := range svc.faces {
		closing.Go(func() { errs[i] = f.Close(ctx) })
	}
	closing.Wait()
	return errors.Join(append(errs, svc.drain(ctx))...)
}

// drain waits for the connections on the reactors.
func (svc *services) drain(ctx context.Context) error {
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
	c *countedService
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
			l.c.n.refused.Add(1)
			h.TCPAbort(c, now)
			continue
		}
		l.c.n.connections.Add(1)
		hd := tcpServices[l.c.Name](l.c)
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
