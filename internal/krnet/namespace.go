package krnet

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Tables is the kernel's IPv4 forwarding state of a network namespace: what a router goes by.
type Tables struct {
	Links  map[int]Link // by index
	Addrs  []LinkAddr
	Routes []TableRoute // of the main table
	Neighs []LinkNeigh
}

// Link is an interface's state, as in State.
type Link struct {
	Name string
	MTU  int
	MAC  [6]byte
	Up   bool
}

// LinkAddr is an address of an interface, with its host bits.
type LinkAddr struct {
	Index int
	Addr  netip.Prefix
}

// LinkNeigh is a neighbour on an interface.
type LinkNeigh struct {
	Index int
	Neigh
}

// TableRoute is a route with those of its next hops that live, each as often as its share in the weights. One all of whose next hops
// are dead is none. Type is RTN_UNICAST, RTN_BLACKHOLE and so on. Of equal Dst the smaller Metric wins.
type TableRoute struct {
	Dst    netip.Prefix
	Type   int
	Metric int
	Hops   []NextHop
}

// NextHop is the gateway on an interface's network; the zero Addr for a destination on the link.
type NextHop struct {
	Index   int
	Gateway netip.Addr
}

// maxShare bounds how often a next hop is listed.
const maxShare = 32

// newsBuffer holds some ten thousand events: those of the seconds that a look at a large table takes. Without it, each look of a
// router whose routes change all the time would end with events lost, and the next look.
const newsBuffer = 8 << 20

// Namespace is an open line to the kernel about a whole network namespace.
type Namespace struct {
	requests *netlink.Handle
	news     *nl.NetlinkSocket
	ended    atomic.Bool
}

// OpenNamespace opens the line in the calling thread's network namespace, as Open does.
func OpenNamespace() (*Namespace, error) {
	requests, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("krnet: open a netlink socket: %w", err)
	}
	news, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE)
	if err != nil {
		requests.Close()
		return nil, fmt.Errorf("krnet: subscribe to changes: %w", err)
	}
	_ = news.SetReceiveBufferSize(newsBuffer, true) // without CAP_NET_ADMIN it is the default, and Resync comes sooner
	return &Namespace{requests: requests, news: news}, nil
}

// Close ends the line and the Watch on it. It must be the last call.
func (n *Namespace) Close() {
	n.requests.Close()
	n.end()
}

func (n *Namespace) end() {
	n.ended.Store(true)
	n.news.Close()
}

// Snapshot reads the present state, as Kernel.Snapshot does.
func (n *Namespace) Snapshot() (t Tables, err error) {
	if t, err = n.snapshot(); err != nil {
		return Tables{}, fmt.Errorf("krnet: read the forwarding tables: %w", err)
	}
	return t, nil
}

func (n *Namespace) snapshot() (Tables, error) {
	t := Tables{Links: make(map[int]Link)}
	links, err := whole(n.requests.LinkList)
	if err != nil {
		return t, err
	}
	for _, l := range links {
		a := l.Attrs()
		t.Links[a.Index] = Link{a.Name, a.MTU, macOf(a.HardwareAddr), isUp(a.RawFlags)}
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return n.requests.AddrList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return t, err
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok {
			t.Addrs = append(t.Addrs, LinkAddr{a.LinkIndex, p})
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) {
		main := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		return n.requests.RouteListFiltered(netlink.FAMILY_V4, main, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return t, err
	}
	for _, r := range routes {
		if r, ok := tableRoute(r); ok {
			t.Routes = append(t.Routes, r)
		}
	}
	neighs, err := whole(func() ([]netlink.Neigh, error) { return n.requests.NeighList(0, netlink.FAMILY_V4) })
	if err != nil {
		return t, err
	}
	for _, e := range neighs {
		if ours, ok := listed(e); ok {
			t.Neighs = append(t.Neighs, LinkNeigh{e.LinkIndex, ours})
		}
	}
	return t, nil
}

func tableRoute(r netlink.Route) (TableRoute, bool) {
	out := TableRoute{Dst: netip.PrefixFrom(netip.IPv4Unspecified(), 0), Type: r.Type, Metric: r.Priority}
	if r.Dst != nil {
		var ok bool
		if out.Dst, ok = prefixOf(r.Dst); !ok {
			return out, false
		}
	}
	hops := r.MultiPath
	if len(hops) == 0 {
		hops = []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via, Encap: r.Encap, Flags: r.Flags}}
	}
	hops = slices.DeleteFunc(slices.Clone(hops), func(h *netlink.NexthopInfo) bool {
		return h.LinkIndex == 0 || h.Via != nil || h.Encap != nil
	})
	known := len(hops)
	hops = slices.DeleteFunc(hops, func(h *netlink.NexthopInfo) bool { return h.Flags&unix.RTNH_F_DEAD != 0 })
	if known > 0 && len(hops) == 0 {
		return out, false // the kernel goes on to the next route
	}
	down := func(h *netlink.NexthopInfo) bool { return h.Flags&unix.RTNH_F_LINKDOWN != 0 }
	if slices.ContainsFunc(hops, func(h *netlink.NexthopInfo) bool { return !down(h) }) {
		hops = slices.DeleteFunc(hops, down)
	}
	for i, n := range shares(hops) {
		for range n {
			out.Hops = append(out.Hops, NextHop{hops[i].LinkIndex, addrOf(hops[i].Gw)})
		}
	}
	return out, true
}

// shares are the hops' weights in the smallest numbers, and at most maxShare, which takes some of their precision.
func shares(hops []*netlink.NexthopInfo) []int {
	var list []int
	most, divisor := 0, 0
	for _, h := range hops {
		w := h.Hops + 1
		list = append(list, w)
		most = max(most, w)
		for divisor, w = w, divisor; w != 0; {
			divisor, w = w, divisor%w
		}
	}
	for i, w := range list {
		if list[i] = w / divisor; most/divisor > maxShare {
			list[i] = max(1, (w*maxShare+most/2)/most)
		}
	}
	return list
}

// Resolve asks the kernel to resolve a neighbour on an interface, or to confirm it, as Kernel.Resolve does.
func (n *Namespace) Resolve(index int, a netip.Addr) error {
	k := Kernel{ifindex: index, requests: n.requests}
	return k.Resolve(a)
}

// LinkEvent is an event of one interface: NeighChange or LinkChange.
type LinkEvent struct {
	Index int
	Event
}

// Watch tells f of every change from one goroutine, in the kernel's order, until ctx is done or the line is closed: a
// LinkEvent for neighbours and links; RouteChange, AddrChange and Resync ask for a Snapshot. It is to be called once.
func (n *Namespace) Watch(ctx context.Context, f func(Event)) {
	go func() {
		defer context.AfterFunc(ctx, n.end)()
		for {
			msgs, from, err := n.news.Receive()
			switch {
			case n.ended.Load() || ctx.Err() != nil:
				return
			case err != nil:
				f(Resync{})
				continue
			case from.Pid != 0:
				continue
			}
			for _, m := range msgs {
				if e := decodeAny(m); e != nil && ctx.Err() == nil && !n.ended.Load() {
					f(e)
				}
			}
		}
	}()
}

// decodeAny reads a message about any interface.
func decodeAny(m syscall.NetlinkMessage) Event {
	k := Kernel{}
	switch m.Header.Type {
	case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
		return RouteChange{}
	case unix.RTM_NEWADDR, unix.RTM_DELADDR:
		return AddrChange{}
	case unix.RTM_NEWLINK, unix.RTM_DELLINK:
		if len(m.Data) >= unix.SizeofIfInfomsg {
			k.ifindex = int(nl.DeserializeIfInfomsg(m.Data).Index)
		}
	case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
		if len(m.Data) >= unix.SizeofNdMsg && m.Data[0] == unix.AF_INET {
			if n, err := netlink.NeighDeserialize(m.Data); err == nil {
				k.ifindex = n.LinkIndex
			}
		}
	default:
		return nil
	}
	if e := k.decode(m); e != nil {
		return LinkEvent{k.ifindex, e}
	}
	return nil
}
