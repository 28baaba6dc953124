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
	socks  sockets.Table[*socket]
	conns  int

	workers *reactor.Workers // serve the connections; nil: the reactor does
	buf     [65536]byte
}

// socket is one with what it does, and waits for.
type socket struct {
	handler
	mask sockets.Ready
}

// handler is one socket's behaviour.
type handler interface {
	ready(sr *serviceReactor, h *sockets.Host, now int64, s sockets.Handle, r sockets.Ready)
}

const maxConns = 65536 // connections of all services on one reactor

// startServices opens the services' sockets. With workers > 0 as many goroutines beside each reactor serve the connections.
func startServices(st *xdpd.Stack, specs []serviceSpec, workers int) (_ *services, err error) {
	svc := &services{}
	defer func() {
		if err != nil {
			at, cancel := context.WithCancel(context.Background())
			cancel() // nobody is being served yet
			_ = svc.Close(at)
		}
	}()
	if err := chooseFaces(specs, ""); err != nil { // for who did not go by the flags
		return nil, err
	}
	for _, s := range specs {
		if start := faceServiceOf(&s); start != nil {
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
		sr := &serviceReactor{r: r, poller: reactor.NewPoller(r)}
		if workers > 0 {
			sr.workers = reactor.NewWorkers(r, workers, sr.work)
		}
		svc.reactors = append(svc.reactors, sr)
		h, _, ok := r.Enter()
		if ok {
			sr.poller.Serve(sr.handle)
			err = sr.bind(h, svc.counts)
		}
		r.Leave()
		if err != nil {
			return nil, err
		}
	}
	for _, s := range svc.counts {
		if err := svc.listen(st, s); err != nil {
			return nil, err
		}
		if err := st.OpenPorts(s.Port, s.TCP, s.UDP); err != nil {
			return nil, err
		}
	}
	return svc, nil
}

// bind opens the services' UDP sockets: one on every reactor, which has what its queue receives.
func (sr *serviceReactor) bind(h *sockets.Host, list []*countedService) error {
	for _, c := range list {
		if !c.UDP {
			continue
		}
		s, errno := h.UDPBind(0, c.Port)
		if errno != 0 {
			return fmt.Errorf("service %s: UDP port %d: %w", c.Name, c.Port, errno)
		}
		if err := sr.add(s, udpServices[c.Name]()); err != nil {
			return err
		}
	}
	return nil
}

// listen opens a service's TCP listener on all reactors.
func (svc *services) listen(st *xdpd.Stack, c *countedService) error {
	if !c.TCP {
		return nil
	}
	socks, err := st.ListenReactors(c.Port)
	if err != nil {
		return fmt.Errorf("service %s: TCP port %d: %w", c.Name, c.Port, err)
	}
	for i, sr := range svc.reactors {
		_, _, ok := sr.r.Enter()
		if ok {
			err = sr.add(socks[i], listener{c})
		}
		sr.r.Leave()
		if err != nil {
			return err
		}
	}
	return nil
}

// add has the reactor serve a socket.
func (sr *serviceReactor) add(s sockets.Handle, hd handler) error {
	sr.socks.Put(s, &socket{hd, sockets.In})
	return sr.poller.Add(s, sockets.In, 0)
}

// addConn has a connection served: by the reactor, or by its workers.
func (sr *serviceReactor) addConn(s sockets.Handle, hd connHandler) error {
	sr.conns++
	sr.socks.Put(s, &socket{hd, hd.mask()})
	if sr.workers != nil {
		return sr.workers.Add(s, hd.mask(), 0)
	}
	return sr.poller.Add(s, hd.mask(), 0)
}

func (sr *serviceReactor) handle(h *sockets.Host, now int64, e reactor.Event) {
	if k, ok := sr.socks.Get(e.Sock); ok {
		k.ready(sr, h, now, e.Sock, e.Ready)
	}
}

// work is handle on a worker. What these services do is done by calls of the Host, all of it, so it takes the lock for all
// of it; one that has to compute or wait would do that in between.
func (sr *serviceReactor) work(e reactor.Event) (next sockets.Ready) {
	h, now, ok := sr.r.Enter()
	defer sr.r.Leave()
	k, _ := sr.socks.Get(e.Sock)
	if !ok || k == nil {
		return 0
	}
	k.ready(sr, h, now, e.Sock, e.Ready)
	return k.mask
}

// want changes what the socket's handler waits for.
func (sr *serviceReactor) want(s sockets.Handle, mask sockets.Ready) {
	if k, ok := sr.socks.Get(s); ok {
		k.mask = mask
	}
	_ = sr.poller.Mod(s, mask, 0) // one of the workers' is not in it: the worker registers it anew
}

// closeConn ends a connection: FIN behind what was written, or RST if there is unread data.
func (sr *serviceReactor) closeConn(h *sockets.Host, now int64, s sockets.Handle) {
	_ = sr.poller.Del(s)
	sr.socks.Delete(s)
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
	errs = append(errs, svc.drain(ctx))
	for _, sr := range svc.reactors {
		if sr.workers != nil {
			errs = append(errs, sr.workers.Close(ctx))
		}
	}
	return errors.Join(errs...)
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
	for s, k := range sr.socks.All() {
		if _, isConn := k.handler.(connHandler); isConn {
			h.TCPShutdown(s, now)
			continue
		}
		_ = sr.poller.Del(s)
		sr.socks.Delete(s)
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
	n := sr.socks.Len()
	for s := range sr.socks.All() {
		_ = sr.poller.Del(s)
		sr.socks.Delete(s)
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
		if err := sr.addConn(c, tcpServices[l.c.Name](l.c)); err != nil {
			sr.closeConn(h, now, c)
		}
	}
}

const (
	acceptBatch = 64
	udpBatch    = 64
)
