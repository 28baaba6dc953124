package forward

import (
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"xdpd/internal/krnet"
	"xdpd/proto"
	"xdpd/sockets"
)

// tables converts the kernel's: the routes are its own, or the static ones.
func (f *Forward) tables(t *krnet.Tables) sockets.Tables {
	out := sockets.Tables{Addrs: make([][]sockets.Prefix, len(f.ports))}
	for _, a := range t.Addrs {
		addr, ok := proto.AddrFrom(a.Addr.Addr())
		if !ok {
			continue
		}
		out.Local = append(out.Local, addr)
		if i := f.portOf(a.Index); i >= 0 {
			out.Addrs[i] = append(out.Addrs[i], sockets.Prefix{Addr: addr, Bits: a.Addr.Bits()})
		}
	}
	if len(f.cfg.Routes) > 0 {
		out.Routes = staticRoutes(out.Addrs, f.cfg.Routes)
		return out
	}
	routes := slices.Clone(t.Routes)
	slices.SortStableFunc(routes, func(a, b krnet.TableRoute) int { return a.Metric - b.Metric })
	for _, r := range routes {
		dst, _ := proto.AddrFrom(r.Dst.Addr())
		route := sockets.FwdRoute{Dst: dst, Bits: r.Dst.Bits()}
		switch r.Type {
		case unix.RTN_UNICAST:
			for _, h := range r.Hops {
				route.Hops = append(route.Hops, sockets.Hop{Port: f.portOf(h.Index), Gateway: gateway(h.Gateway)})
			}
		case unix.RTN_BLACKHOLE:
			route.Kind = sockets.RouteBlackhole
		case unix.RTN_PROHIBIT:
			route.Kind = sockets.RouteProhibit
		default:
			route.Kind = sockets.RouteUnreachable
		}
		out.Routes = append(out.Routes, route)
	}
	return out
}

// gateway is 0 for a destination on the link.
func gateway(a netip.Addr) proto.Addr {
	v, _ := proto.AddrFrom(a)
	return v
}

// staticRoutes are those of the ports' own subnets, and the ones that were given. A gateway that is in no port's subnet
// makes a route out of no port.
func staticRoutes(addrs [][]sockets.Prefix, static []Route) (out []sockets.FwdRoute) {
	portOf := func(a proto.Addr) int {
		found, bits := sockets.NoPort, -1
		for i, list := range addrs {
			for _, p := range list {
				if p.Bits > bits && p.Contains(a) {
					found, bits = i, p.Bits
				}
			}
		}
		return found
	}
	for i, list := range addrs {
		for _, p := range list {
			out = append(out, sockets.FwdRoute{Dst: p.Addr, Bits: p.Bits, Hops: []sockets.Hop{{Port: i}}})
		}
	}
	for _, r := range static {
		dst, _ := proto.AddrFrom(r.Dst.Addr())
		via, _ := proto.AddrFrom(r.Via)
		out = append(out, sockets.FwdRoute{Dst: dst, Bits: r.Dst.Bits(), Hops: []sockets.Hop{{Port: portOf(via), Gateway: via}}})
	}
	return out
}
