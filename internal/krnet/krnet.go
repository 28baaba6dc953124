// Package krnet asks the kernel, by netlink, for what an engine needs that shares its addresses with the kernel: the
// interface's addresses, routes, neighbours and state, and news of their changes. The kernel stays the one who does
// ARP and keeps the routes; Resolve makes it do the former on our behalf.
//
// A Kernel is bound to the network namespace of the thread that opens it. Its methods work from any goroutine.
package krnet

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Neigh is an entry of the kernel's IPv4 neighbour table. MAC is meaningful only while Valid: the kernel would send to
// it (NUD_VALID of include/net/neighbour.h), if only to probe it.
type Neigh struct {
	Addr  netip.Addr
	MAC   [6]byte
	Valid bool
}

// Route is one next hop of an IPv4 unicast route of the main table. Gateway is the zero Addr for a destination on the
// link, Src the zero Addr where the route does not prefer a source. Of equal Dst the smaller Metric wins.
type Route struct {
	Dst     netip.Prefix
	Gateway netip.Addr
	Src     netip.Addr
	Metric  int
}

// State is what the kernel holds for one interface. Up: set up and with carrier. Addrs keep their host bits. Next hops
// that the kernel holds dead, and IPv6 gateways of IPv4 routes, are left out of Routes.
type State struct {
	Addrs  []netip.Prefix
	Routes []Route
	Neighs []Neigh
	MTU    int
	MAC    [6]byte
	Up     bool
}

// Kernel is an open line to the kernel about one interface.
type Kernel struct {
	ifindex  int
	requests *netlink.Handle
	news     *nl.NetlinkSocket
	nudge    *os.File // a UDP socket bound to the interface
	watched  atomic.Bool
	ended    atomic.Bool // news is closed
}

// Open opens the line in the calling thread's network namespace (runtime.LockOSThread where that is not the process's
// own). It needs no privilege.
func Open(ifindex int) (*Kernel, error) {
	requests, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("krnet: open a netlink socket for interface %d: %w", ifindex, err)
	}
	// Subscribed here and not in Watch: a socket belongs to the namespace it is opened in, and to come back to that
	// namespace later would take CAP_SYS_ADMIN.
	news, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH, unix.RTNLGRP_IPV4_IFADDR,
		unix.RTNLGRP_IPV4_ROUTE)
	if err != nil {
		requests.Close()
		return nil, fmt.Errorf("krnet: subscribe to changes of interface %d: %w", ifindex, err)
	}
	k := &Kernel{ifindex: ifindex, requests: requests, news: news}
	if k.nudge, err = openNudge(ifindex); err != nil {
		k.Close()
		return nil, fmt.Errorf("krnet: open a UDP socket on interface %d: %w", ifindex, err)
	}
	if _, err := requests.LinkByIndex(ifindex); err != nil {
		k.Close()
		return nil, fmt.Errorf("krnet: interface %d: %w", ifindex, err)
	}
	return k, nil
}

// Close ends the line and the Watch on it. It must be the last call; an event that is being told at this moment may
// still be in f when Close returns.
func (k *Kernel) Close() error {
	k.requests.Close()
	k.endNews()
	if k.nudge != nil {
		return k.nudge.Close()
	}
	return nil
}

// endNews wakes the watcher. The flag comes first: what Receive returns from a closed socket is no error that has a
// name outside package os.
func (k *Kernel) endNews() {
	k.ended.Store(true)
	k.news.Close()
}

// Snapshot reads the interface's present state. It is put together from several answers: with a Watch running, what
// changes in between is told by an event afterwards.
func (k *Kernel) Snapshot() (State, error) {
	s, err := k.snapshot()
	if err != nil {
		return State{}, fmt.Errorf("krnet: read the state of interface %d: %w", k.ifindex, err)
	}
	return s, nil
}

func (k *Kernel) snapshot() (State, error) {
	var s State
	l, err := k.requests.LinkByIndex(k.ifindex)
	if err != nil {
		return s, err
	}
	s.MTU, s.MAC, s.Up = l.Attrs().MTU, macOf(l.Attrs().HardwareAddr), isUp(l.Attrs().RawFlags)

	addrs, err := whole(func() ([]netlink.Addr, error) { return k.requests.AddrList(l, netlink.FAMILY_V4) })
	if err != nil {
		return s, err
	}
	for _, a := range addrs {
		if p, ok := prefixOf(a.IPNet); ok {
			s.Addrs = append(s.Addrs, p)
		}
	}
	routes, err := whole(func() ([]netlink.Route, error) {
		main := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		return k.requests.RouteListFiltered(netlink.FAMILY_V4, main, netlink.RT_FILTER_TABLE)
	})
	if err != nil {
		return s, err
	}
	for _, r := range routes {
		s.Routes = append(s.Routes, k.nextHops(r)...)
	}
	neighs, err := whole(func() ([]netlink.Neigh, error) { return k.requests.NeighList(k.ifindex, netlink.FAMILY_V4) })
	if err != nil {
		return s, err
	}
	for _, n := range neighs {
		if n, ok := listed(n); ok {
			s.Neighs = append(s.Neighs, n)
		}
	}
	return s, nil
}

// Link reads the interface's present state, as LinkChange tells it.
func (k *Kernel) Link() (LinkChange, error) {
	l, err := k.requests.LinkByIndex(k.ifindex)
	switch {
	case errors.As(err, new(netlink.LinkNotFoundError)):
		return LinkChange{Deleted: true}, nil
	case err != nil:
		return LinkChange{}, fmt.Errorf("krnet: read the state of interface %d: %w", k.ifindex, err)
	}
	a := l.Attrs()
	return LinkChange{Name: a.Name, Up: isUp(a.RawFlags), MTU: a.MTU, MAC: macOf(a.HardwareAddr)}, nil
}

// whole repeats a dump that a change interrupted (NLM_F_DUMP_INTR): its answer may lack entries or have them twice. Where
// interfaces and addresses come and go all the time, many in turn may be.
func whole[T any](dump func() ([]T, error)) (list []T, err error) {
	for try := range 100 {
		list, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
		time.Sleep(time.Duration(try) * time.Millisecond)
	}
	return list, err
}

// nextHops are those of a route's next hops that lead out of our interface.
func (k *Kernel) nextHops(r netlink.Route) []Route {
	dst := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if r.Dst != nil {
		var ok bool
		if dst, ok = prefixOf(r.Dst); !ok {
			return nil
		}
	}
	if r.Type != unix.RTN_UNICAST {
		return nil
	}
	hops := r.MultiPath
	if len(hops) == 0 {
		hops = []*netlink.NexthopInfo{{LinkIndex: r.LinkIndex, Gw: r.Gw, Via: r.Via, Flags: r.Flags}}
	}
	var out []Route
	for _, h := range hops {
		if h.LinkIndex != k.ifindex || h.Via != nil || h.Flags&(unix.RTNH_F_DEAD|unix.RTNH_F_LINKDOWN) != 0 {
			continue
		}
		out = append(out, Route{Dst: dst.Masked(), Gateway: addrOf(h.Gw), Src: addrOf(r.Src), Metric: r.Priority})
	}
	return out
}

// Resolve asks the kernel to resolve a neighbour now, as it would before it sends there: NTF_USE, neigh_add in
// net/core/neighbour.c. What comes of it is told by a NeighChange event. A valid neighbour is confirmed if it is stale.
//
// Without CAP_NET_ADMIN the kernel does not take the request, and is given something to send instead: an empty UDP datagram for
// the neighbour's port 9 (discard, RFC 863), which no router passes on.
func (k *Kernel) Resolve(a netip.Addr) error {
	if a = a.Unmap(); !a.Is4() {
		return fmt.Errorf("krnet: resolve %q on interface %d: only IPv4 neighbours are resolved", a, k.ifindex)
	}
	err := k.requests.NeighSet(&netlink.Neigh{
		LinkIndex: k.ifindex, Family: netlink.FAMILY_V4, IP: a.AsSlice(), Flags: netlink.NTF_USE, State: netlink.NUD_NONE,
	})
	if errors.Is(err, unix.EPERM) {
		err = k.send(a)
	}
	if err != nil {
		return fmt.Errorf("krnet: resolve %s on interface %d: %w", a, k.ifindex, err)
	}
	return nil
}

func openNudge(ifindex int) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "krnet")
	for _, o := range []struct{ level, opt, value int }{
		{unix.SOL_SOCKET, unix.SO_BINDTOIFINDEX, ifindex}, {unix.SOL_SOCKET, unix.SO_DONTROUTE, 1}, {unix.IPPROTO_IP, unix.IP_TTL, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.opt, o.value); err != nil {
			return nil, errors.Join(err, f.Close())
		}
	}
	return f, nil
}

func (k *Kernel) send(a netip.Addr) error {
	conn, err := k.nudge.SyscallConn()
	if err != nil {
		return err
	}
	var serr error
	err = conn.Control(func(fd uintptr) { serr = unix.Sendto(int(fd), nil, 0, &unix.SockaddrInet4{Port: 9, Addr: a.As4()}) })
	return errors.Join(err, serr)
}

func isUp(flags uint32) bool {
	const up = unix.IFF_UP | unix.IFF_RUNNING
	return flags&up == up
}

// listed is an entry of a whole table as a Neigh, unless the kernel is still asking for it: that it does not know is no news.
func listed(n netlink.Neigh) (Neigh, bool) {
	ours, ok := neighOf(n)
	return ours, ok && n.State != netlink.NUD_INCOMPLETE
}

func neighOf(n netlink.Neigh) (Neigh, bool) {
	const valid = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE | netlink.NUD_PROBE |
		netlink.NUD_STALE | netlink.NUD_DELAY
	a := addrOf(n.IP)
	ok := n.State&valid != 0 && len(n.HardwareAddr) == 6
	return Neigh{Addr: a, MAC: macOf(n.HardwareAddr), Valid: ok}, a.Is4()
}

func macOf(hw net.HardwareAddr) (mac [6]byte) {
	if len(hw) == len(mac) {
		copy(mac[:], hw)
	}
	return mac
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	ones, _ := n.Mask.Size()
	p := netip.PrefixFrom(addrOf(n.IP), ones)
	return p, p.IsValid() && p.Addr().Is4()
}
