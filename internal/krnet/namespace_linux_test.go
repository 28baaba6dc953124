package krnet

import (
	"context"
	"net"
	"net/netip"
	"reflect"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestNamespace(t *testing.T) {
	l := newLab(t)
	n := value(OpenNamespace())(t)
	ctx, cancel := context.WithCancel(t.Context())
	events := make(chan Event)
	n.Watch(ctx, func(e Event) {
		select {
		case events <- e:
		case <-ctx.Done():
		}
	})
	defer func() { cancel(); n.Close() }()
	index, gateway := l.dev.Attrs().Index, net.IP(peerAddr.AsSlice())
	await(events, func(e LinkEvent) bool {
		c, ok := e.Event.(LinkChange)
		return ok && e.Index == index && c.Up
	})
	for _, r := range []netlink.Route{
		{LinkIndex: index, Gw: gateway, Priority: 50},
		{Dst: prefix("203.0.113.128/25"), Type: unix.RTN_BLACKHOLE},
		{Dst: prefix("198.18.0.0/15"), MultiPath: []*netlink.NexthopInfo{
			{LinkIndex: index, Gw: gateway, Hops: 1}, {LinkIndex: index, Gw: net.IP{10, 78, 0, 9}},
		}},
	} {
		must(t, netlink.RouteAdd(&r))
		await(events, anyOf[RouteChange])
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
	entry := netlink.Neigh{LinkIndex: index, IP: nobody.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
	must(t, netlink.NeighSet(&entry))
	await(events, func(e LinkEvent) bool {
		c, ok := e.Event.(NeighChange)
		return ok && e.Index == index && c.Neigh == Neigh{nobody, [6]byte(mac), true}
	})
	got := value(n.Snapshot())(t)
	if link := got.Links[index]; link != (Link{"dev0", 1400, macOf(l.dev.Attrs().HardwareAddr), true}) {
		t.Errorf("link %+v", link)
	}
	if !slices.Contains(got.Addrs, LinkAddr{index, ourPrefix}) {
		t.Errorf("addresses %+v", got.Addrs)
	}
	if !slices.Contains(got.Neighs, LinkNeigh{index, Neigh{nobody, [6]byte(mac), true}}) {
		t.Errorf("neighbours %+v", got.Neighs)
	}
	slices.SortFunc(got.Routes, func(a, b TableRoute) int { return a.Dst.Addr().Compare(b.Dst.Addr()) })
	want := []TableRoute{
		{netip.MustParsePrefix("0.0.0.0/0"), unix.RTN_UNICAST, 50, []NextHop{{index, peerAddr}}},
		{netip.MustParsePrefix("10.78.0.0/24"), unix.RTN_UNICAST, 0, []NextHop{{index, netip.Addr{}}}},
		{netip.MustParsePrefix("198.18.0.0/15"), unix.RTN_UNICAST, 0,
			[]NextHop{{index, peerAddr}, {index, peerAddr}, {index, netip.MustParseAddr("10.78.0.9")}}},
		{netip.MustParsePrefix("203.0.113.128/25"), unix.RTN_BLACKHOLE, 0, nil},
	}
	if !reflect.DeepEqual(got.Routes, want) {
		t.Errorf("routes %+v\nwant   %+v", got.Routes, want)
	}
	must(t, n.Resolve(index, netip.MustParseAddr("10.78.0.5")))
	await(events, func(e LinkEvent) bool { // it does not answer
		c, ok := e.Event.(NeighChange)
		return ok && c.Addr == netip.MustParseAddr("10.78.0.5") && !c.Valid
	})
	must(t, netlink.LinkDel(l.dev))
	await(events, func(e LinkEvent) bool {
		c, ok := e.Event.(LinkChange)
		return ok && e.Index == index && c.Deleted
	})
}

// TestNextHops: who is dead is left out, and a route that has nobody else as well; weights keep their proportions.
func TestNextHops(t *testing.T) {
	const dead, down = unix.RTNH_F_DEAD, unix.RTNH_F_LINKDOWN
	for _, hop := range []netlink.NexthopInfo{
		{LinkIndex: 1, Via: &netlink.Via{}}, {LinkIndex: 1, Encap: &netlink.MPLSEncap{Labels: []int{100}}},
	} { // what leads on, but not for us
		if got, ok := tableRoute(netlink.Route{Type: unix.RTN_UNICAST, LinkIndex: 1, Via: hop.Via, Encap: hop.Encap}); !ok || len(got.Hops) != 0 {
			t.Errorf("%+v: %v %v", hop, ok, got.Hops)
		}
	}
	for _, c := range []struct {
		weights, flags []int
		want           []int // how often each is listed; nil: no route
	}{
		{[]int{1}, []int{0}, []int{1}},
		{[]int{1}, []int{dead | down}, nil},
		{[]int{1}, []int{down}, []int{1}}, // the kernel uses it all the same
		{[]int{1, 1}, []int{dead, dead}, nil},
		{[]int{1, 1}, []int{dead, 0}, []int{0, 1}},
		{[]int{1, 1}, []int{down, 0}, []int{0, 1}},
		{[]int{1, 1}, []int{down, dead}, []int{1, 0}},
		{[]int{100, 200}, []int{0, 0}, []int{1, 2}},
		{[]int{20, 200}, []int{0, 0}, []int{1, 10}},
		{[]int{256, 127, 1}, []int{0, 0, 0}, []int{32, 16, 1}},
	} {
		r := netlink.Route{Type: unix.RTN_UNICAST}
		for i, w := range c.weights {
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{LinkIndex: i + 1, Hops: w - 1, Flags: c.flags[i]})
		}
		got, ok := tableRoute(r)
		counts := make([]int, len(c.weights))
		for _, h := range got.Hops {
			counts[h.Index-1]++
		}
		if ok != (c.want != nil) || ok && !slices.Equal(counts, c.want) {
			t.Errorf("weights %v, flags %v: %v %v, want %v", c.weights, c.flags, ok, counts, c.want)
		}
	}
}

// TestNamespaceKeepsUp: a look at large tables takes seconds, in which a thousand events are none too many.
func TestNamespaceKeepsUp(t *testing.T) {
	l := newLab(t)
	n := value(OpenNamespace())(t)
	ctx, cancel := context.WithCancel(t.Context())
	gate, last := make(chan struct{}), make(chan Event, 1)
	entry := netlink.Neigh{LinkIndex: l.dev.Attrs().Index, IP: nobody.AsSlice(), State: netlink.NUD_PERMANENT}
	const count = 1000
	n.Watch(ctx, func(e Event) {
		<-gate
		le, _ := e.(LinkEvent)
		c, _ := le.Event.(NeighChange)
		if _, lost := e.(Resync); lost || c.Addr == nobody && c.MAC[5] == count&0xff && c.MAC[4] == count>>8 {
			select {
			case last <- e:
			default:
			}
		}
	})
	defer func() { cancel(); n.Close() }()
	for i := range count {
		entry.HardwareAddr = net.HardwareAddr{2, 0, 0, 0, byte((i + 1) >> 8), byte(i + 1)}
		must(t, netlink.NeighSet(&entry))
	}
	close(gate)
	if e := <-last; e == (Resync{}) {
		t.Error("events were lost")
	}
}
