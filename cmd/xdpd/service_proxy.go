package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"

	"xdpd"
	"xdpd/cmd/xdpd/proxy"
)

// balances are the words for how a proxy chooses.
var balances = map[string]bool{"": false, "least": false, "roundrobin": true}

func checkBalance(word string) error {
	if _, ok := balances[word]; !ok {
		return fmt.Errorf("proxy has the balance %q; there are least and roundrobin", word)
	}
	return nil
}

func startHTTP(st *xdpd.Stack, spec *serviceSpec) (faceService, error) {
	s, err := newFileServer(spec)
	if err != nil {
		return nil, err
	}
	l, err := st.Listen("tcp", fmt.Sprintf(":%d", spec.Port))
	if err != nil {
		return nil, errors.Join(fmt.Errorf("service http: %w", err), s.root.Close())
	}
	s.start(l)
	return s, nil
}

// proxyService is the service proxy: one proxy for each protocol, since a backend may have the one and not the other.
type proxyService struct {
	port    uint16
	proxies []*protoProxy
	serving sync.WaitGroup
}

type protoProxy struct {
	*proxy.Proxy
	protocol string
	loops    *loopServer // its data path on the poller or the ring; nil: on the net face
}

func startProxy(st *xdpd.Stack, spec *serviceSpec) (_ faceService, err error) {
	backends, err := lookUp(spec.Backends)
	if err != nil {
		return nil, fmt.Errorf("service proxy: %w", err)
	}
	s := &proxyService{port: spec.Port}
	defer func() {
		if err != nil {
			_ = s.Close(context.Background()) // nobody is being served yet
		}
	}()
	for _, protocol := range []string{"tcp", "udp"} {
		if protocol == "tcp" && !spec.TCP || protocol == "udp" && !spec.UDP {
			continue
		}
		p, err := proxy.New(proxy.Config{
			Network: protocol, Backends: backends, Dialer: st, RoundRobin: balances[spec.Balance],
			Flows: spec.Flows, Idle: spec.Idle, Check: spec.Check,
		})
		if err != nil {
			return nil, err
		}
		if err := s.serve(st, p, protocol, spec.Face); err != nil {
			return nil, fmt.Errorf("service proxy: %w", err)
		}
	}
	return s, nil
}

func (s *proxyService) serve(st *xdpd.Stack, p *proxy.Proxy, protocol, face string) (err error) {
	address := fmt.Sprintf(":%d", s.port)
	pp := &protoProxy{Proxy: p, protocol: protocol}
	switch {
	case protocol == "tcp" && (face == "poller" || face == "ring"):
		if pp.loops, err = joinLoops(st, face, s.port, p); err != nil {
			return err
		}
	case protocol == "tcp":
		l, err := st.Listen("tcp", address)
		if err != nil {
			return err
		}
		s.serving.Go(func() { _ = p.ServeTCP(l) })
	default:
		c, err := st.ListenPacket("udp", address)
		if err != nil {
			return err
		}
		s.serving.Go(func() { _ = p.ServeUDP(c.(*xdpd.UDPConn)) })
	}
	s.serving.Go(p.Run)
	s.proxies = append(s.proxies, pp)
	return nil
}

// lookUp finds the addresses of backends, names once and for all.
func lookUp(list []string) (addrs []netip.AddrPort, err error) {
	for _, b := range list {
		a, err := net.ResolveTCPAddr("tcp4", b)
		if err != nil {
			return nil, err
		}
		ap := a.AddrPort()
		addrs = append(addrs, netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()))
	}
	return addrs, nil
}

func (s *proxyService) Close(ctx context.Context) error {
	errs := make([]error, len(s.proxies))
	var closing sync.WaitGroup
	for i, p := range s.proxies {
		closing.Go(func() {
			if p.loops != nil {
				p.loops.finish()
			}
			if errs[i] = p.Shutdown(ctx); p.loops != nil {
				p.loops.abort() // its flows have ended
			}
		})
	}
	closing.Wait()
	s.serving.Wait()
	return errors.Join(errs...)
}

func (s *proxyService) views() (list []serviceView) {
	for _, p := range s.proxies {
		n, backends := p.Stats()
		v := serviceView{Name: "proxy", Port: s.port, Protocol: p.protocol, Counters: fieldCounters(n)}
		for _, b := range backends {
			v.Backends = append(v.Backends, backendView{
				Address: b.Addr.String(), State: b.State, Reason: b.Reason, SinceSeconds: b.Since.Seconds(), Open: b.Open,
				Counters: fieldCounters(b.Counters),
			})
		}
		list = append(list, v)
	}
	return list
}

// drainBackend finds the backend in every proxy.
func (svc *services) drainBackend(backend string, on bool) error {
	addr, err := netip.ParseAddrPort(backend)
	if err != nil {
		return fmt.Errorf("backend %q: write ADDRESS:PORT, as xdpd stats does", backend)
	}
	found, known := false, make(map[string]bool)
	for _, f := range svc.faces {
		s, ok := f.(*proxyService)
		if !ok {
			continue
		}
		for _, p := range s.proxies {
			found = p.Drain(addr, on) == nil || found
			_, backends := p.Stats()
			for _, b := range backends {
				known[b.Addr.String()] = true
			}
		}
	}
	if !found {
		return fmt.Errorf("no proxy has the backend %s; there are %s", addr,
			strings.Join(slices.Sorted(maps.Keys(known)), ", "))
	}
	return nil
}

// views are all services, those on the reactors first.
func (svc *services) views() []serviceView {
	var list []serviceView
	for _, c := range svc.counts {
		if !c.TCP {
			continue // datagrams are in the ledger, and nothing else is to count
		}
		v := serviceView{Name: c.Name, Port: c.Port, Protocol: "tcp", Counters: map[string]uint64{
			"connections": c.n.connections.Load(), "refused": c.n.refused.Load(),
		}}
		if c.Name == "source" {
			v.Counters["completed"] = c.n.completed.Load()
			v.Counters["bytes_sent"] = c.n.sent.Load()
			v.Counters["bytes_received"] = c.n.received.Load()
		}
		list = append(list, v)
	}
	for _, f := range svc.faces {
		list = append(list, f.views()...)
	}
	return list
}

// drainCmd is xdpd drain.
type drainCmd struct {
	Backend   string `arg:"" placeholder:"ADDR:PORT" help:"Backend, as xdpd stats shows it."`
	Interface string `arg:"" optional:"" name:"iface" help:"Interface of the engine; may be left out where only one runs."`
	Control   string `placeholder:"PATH" help:"Control socket to ask (default /run/xdpd/IFACE.sock)."`
	Undo      bool   `help:"Give it flows again."`
}

// Help is shown by xdpd drain --help.
func (*drainCmd) Help() string {
	return `What the backend is serving goes on to its end: xdpd stats shows how many flows that still are.`
}

// Run implements the command.
func (c *drainCmd) Run() error {
	path, err := controlOf(c.Control, c.Interface)
	if err != nil {
		return err
	}
	ctx, cancel := signalContext()
	defer cancel()
	form := url.Values{"backend": {c.Backend}}
	if c.Undo {
		form.Set("undo", "1")
	}
	_, err = callControl(ctx, path, "POST", "/drain?"+form.Encode())
	return err
}
