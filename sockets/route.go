package sockets

import (
	"slices"

	"xdpd/proto"
)

// Route sends what lies in Dst/Bits through Gateway, or straight onto the link when Gateway is zero.
type Route struct {
	Dst     proto.Addr
	Bits    int
	Gateway proto.Addr
	Src     proto.Addr // source address for it; zero: chosen by subnet
}

// mask is for 0 to 32 bits. & 63 spares the comparisons of a shift by any number.
func mask(bits int) proto.Addr {
	return proto.Addr(^uint64(0) << (uint(32-bits) & 63))
}

// SetAddrs replaces addresses and routes, as a running interface may see them change in share mode. Sockets bound to an
// address that went away keep it and hear nothing more.
func (h *Host) SetAddrs(addrs []Prefix, routes []Route) {
	h.cfg.Addrs = slices.Clone(addrs)
	h.routes = h.routes[:0]
	for _, a := range addrs {
		h.routes = append(h.routes, Route{Dst: a.Addr & mask(a.Bits), Bits: a.Bits, Src: a.Addr})
	}
	h.routes = append(h.routes, routes...)
	// Longest prefix first; of equals the connected one, which was put first.
	slices.SortStableFunc(h.routes, func(a, b Route) int { return b.Bits - a.Bits })
}

// route finds the next hop towards dst and the source address to use. ok is false when there is no route, or dst is no
// address to send to: multicast, broadcast, loopback, or one of our own.
func (h *Host) route(dst proto.Addr) (hop, src proto.Addr, ok bool) {
	if badUnicast(dst) || h.isLocal(dst) {
		return 0, 0, false
	}
	for i := range h.routes {
		r := &h.routes[i]
		if dst&mask(r.Bits) != r.Dst&mask(r.Bits) {
			continue
		}
		hop, src = dst, r.Src
		if r.Gateway != 0 {
			hop = r.Gateway
		}
		if src == 0 {
			src = h.sourceFor(hop)
		}
		return hop, src, src != 0 && !h.subnetBroadcast(dst)
	}
	return 0, 0, false
}

// onLink reports whether a lies in a subnet of ours.
func (h *Host) onLink(a proto.Addr) bool {
	for _, p := range h.cfg.Addrs {
		if a&mask(p.Bits) == p.Addr&mask(p.Bits) {
			return true
		}
	}
	return false
}

// subnetBroadcast reports whether a is the all-ones address of a subnet of ours (RFC 922); /31 and /32 have none
// (RFC 3021).
func (h *Host) subnetBroadcast(a proto.Addr) bool {
	for _, p := range h.cfg.Addrs {
		if m := mask(p.Bits); p.Bits < 31 && a&m == p.Addr&m && a|m == 0xffffffff {
			return true
		}
	}
	return false
}

// sourceFor is our address in the subnet of a, or the first one.
func (h *Host) sourceFor(a proto.Addr) proto.Addr {
	for _, p := range h.cfg.Addrs {
		if a&mask(p.Bits) == p.Addr&mask(p.Bits) {
			return p.Addr
		}
	}
	if len(h.cfg.Addrs) == 0 {
		return 0
	}
	return h.cfg.Addrs[0].Addr
}

// Contains reports whether a lies in the prefix.
func (p Prefix) Contains(a proto.Addr) bool { return (a^p.Addr)&mask(p.Bits) == 0 }
