package xdpd

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"xdpd/internal/krnet"
	"xdpd/proto"
	"xdpd/sockets"
)

// watch follows the interface: one that is deleted ends the engine with a clear error; in share mode the kernel's
// neighbours, routes and addresses are the engine's.
func (s *Stack) watch(ctx context.Context) {
	s.resync() // what changed since Open's look; before the first event, or an older look could be believed after a newer one
	err := s.kernel.Watch(ctx, s.kernelEvent)
	if err != nil {
		s.fail(fmt.Errorf("xdpd: watch interface %s: %w", s.cfg.Interface, err))
	}
}

func (s *Stack) kernelEvent(e krnet.Event) {
	switch e := e.(type) {
	case krnet.LinkChange:
		switch {
		case e.Moved:
			s.fail(fmt.Errorf("xdpd: interface %s was moved to another network namespace; start the engine there (--netns): %w",
				s.iface(), unix.ENODEV))
		case e.Deleted:
			s.fail(fmt.Errorf("xdpd: interface %s was removed: %w", s.iface(), unix.ENODEV))
		default:
			s.followLink(e)
		}
		if !e.Up {
			s.loseNAPI()
		}
		if !e.Deleted && s.program.Unloaded() {
			s.fail(fmt.Errorf("xdpd: somebody took the steering program out of the dispatcher on interface %s (xdp-loader unload): start anew",
				s.cfg.Interface))
		}
	case krnet.NeighChange:
		if s.cfg.Share {
			s.setNeighbours([]krnet.Neigh{e.Neigh})
		}
	case krnet.AddrChange, krnet.RouteChange:
		s.resync()
	case krnet.Resync:
		if link, err := s.kernel.Link(); err == nil {
			s.kernelEvent(link)
		}
		s.resync()
	}
}

// resync takes the kernel's whole state (share mode).
func (s *Stack) resync() {
	if !s.cfg.Share {
		return
	}
	state, err := s.kernel.Snapshot()
	if err != nil {
		return // the interface is going away, which has an event of its own
	}
	var addrs []netip.Addr
	for _, p := range state.Addrs {
		addrs = append(addrs, p.Addr())
	}
	if err := s.program.SetAddrs(addrs); err != nil { // first: a socket bound to a new address has its port opened
		s.fail(fmt.Errorf("xdpd: follow the addresses of interface %s: %w", s.cfg.Interface, err))
		return
	}
	for _, q := range s.queues {
		if h, _, ok := q.reactor.Enter(); ok {
			h.SetAddrs(prefixes(state.Addrs), kernelRoutes(state.Routes))
		}
		q.reactor.Leave()
	}
	s.setNeighbours(state.Neighs)
}

func (s *Stack) setNeighbours(list []krnet.Neigh) {
	for _, q := range s.queues {
		h, now, ok := q.reactor.Enter()
		for _, n := range list {
			if a, v4 := proto.AddrFrom(n.Addr); ok && v4 {
				h.SetNeighbour(a, n.MAC, n.Valid, now)
			}
		}
		q.reactor.Leave()
	}
}

// tellSiblings passes on what queue number i heard.
func (s *Stack) tellSiblings(i int, a proto.ARP) {
	for j, q := range s.queues {
		if j != i {
			q.reactor.Post(a)
		}
	}
}

// resolve has the kernel ask for a neighbour. It is called on a reactor, which must not wait for netlink.
func (s *Stack) resolve(a proto.Addr) {
	go func() {
		// An error means that the kernel cannot ask; the packets that wait are dropped when their time is over.
		_ = s.kernel.Resolve(a.Netip())
	}()
}

// kernelRoutes converts the kernel's routes; of equal ones the smallest metric comes first, which is the one used.
func kernelRoutes(routes []krnet.Route) []sockets.Route {
	routes = slices.Clone(routes)
	slices.SortStableFunc(routes, func(a, b krnet.Route) int { return a.Metric - b.Metric })
	addr := func(a netip.Addr) proto.Addr {
		v, _ := proto.AddrFrom(a)
		return v
	}
	var out []sockets.Route
	for _, r := range routes {
		if r.Dst.Addr().Is4() {
			out = append(out, sockets.Route{
				Dst: addr(r.Dst.Addr()), Bits: r.Dst.Bits(), Gateway: addr(r.Gateway), Src: addr(r.Src),
			})
		}
	}
	return out
}
