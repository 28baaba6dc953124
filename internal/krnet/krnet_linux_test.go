package krnet

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"reflect"
	"runtime"
	"slices"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

var (
	ourPrefix = netip.MustParsePrefix("10.78.0.2/24")
	peerAddr  = netip.MustParseAddr("10.78.0.1")
	nobody    = netip.MustParseAddr("10.78.0.66")
)

// A lab is a veth pair between two new namespaces: ours, where the test's goroutine is, and the peer's.
type lab struct {
	t       *testing.T
	dev     netlink.Link
	peer    *netlink.Handle // acts in the peer's namespace
	peerDev netlink.Link
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func value[T any](v T, err error) func(*testing.T) T {
	return func(t *testing.T) T { t.Helper(); must(t, err); return v }
}

func newLab(t *testing.T) *lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	runtime.LockOSThread()
	before := value(netns.Get())(t)
	far := value(netns.New())(t)
	near := value(netns.New())(t)
	t.Cleanup(func() {
		far.Close()
		near.Close()
		// A thread that cannot get back stays locked, and ends with its goroutine.
		if err := netns.Set(before); err != nil {
			t.Error(err)
			return
		}
		before.Close()
		runtime.UnlockOSThread()
	})
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "dev0", 1400
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerNamespace = "peer0", netlink.NsFd(far)
	must(t, netlink.LinkAdd(pair))

	l := &lab{t: t, peer: value(netlink.NewHandleAt(far))(t)}
	t.Cleanup(l.peer.Close)
	l.dev = value(netlink.LinkByName("dev0"))(t)
	l.peerDev = value(l.peer.LinkByName("peer0"))(t)
	must(t, netlink.AddrAdd(l.dev, value(netlink.ParseAddr(ourPrefix.String()))(t)))
	must(t, l.peer.AddrAdd(l.peerDev, value(netlink.ParseAddr(peerAddr.String()+"/24"))(t)))
	must(t, l.peer.LinkSetUp(l.peerDev))
	must(t, netlink.LinkSetUp(l.dev))
	return l
}

func (l *lab) open() *Kernel {
	l.t.Helper()
	k := value(Open(l.dev.Attrs().Index))(l.t)
	l.t.Cleanup(func() { k.Close() })
	return k
}

// elsewhere calls f on a thread of another namespace, from which a Kernel must work just as well.
func elsewhere[T any](f func() (T, error)) (v T, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		v, err = f()
	}()
	<-done
	return v, err
}

func (l *lab) snapshot(k *Kernel) State {
	l.t.Helper()
	return value(elsewhere(k.Snapshot))(l.t)
}

// watch returns the channel of a Watch's events. Nothing is lost: the watcher waits for the channel.
func (l *lab) watch(k *Kernel) <-chan Event {
	l.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	events := make(chan Event)
	l.t.Cleanup(cancel)
	must(l.t, k.Watch(ctx, func(e Event) {
		select {
		case events <- e:
		case <-ctx.Done():
		}
	}))
	return events
}

// await takes events until one is a T that satisfies ok.
func await[T Event](events <-chan Event, ok func(T) bool) T {
	for e := range events {
		if e, is := e.(T); is && ok(e) {
			return e
		}
	}
	panic("the channel is never closed")
}

func anyOf[T Event](T) bool { return true }

func prefix(s string) *net.IPNet {
	p := netip.MustParsePrefix(s)
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

func TestSnapshot(t *testing.T) {
	l := newLab(t)
	k := l.open()
	await(l.watch(k), func(c LinkChange) bool { return c.Up })
	index, gateway := l.dev.Attrs().Index, net.IP(peerAddr.AsSlice())
	other := netlink.NewLinkAttrs()
	other.Name = "other0"
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: other}))
	otherDev := value(netlink.LinkByName("other0"))(t)
	must(t, netlink.LinkSetUp(otherDev))
	must(t, netlink.AddrAdd(otherDev, value(netlink.ParseAddr("10.79.0.1/24"))(t)))
	must(t, netlink.AddrAdd(l.dev, value(netlink.ParseAddr("192.0.2.7/32"))(t)))
	for _, r := range []netlink.Route{
		{LinkIndex: index, Gw: gateway, Priority: 50}, // the default route
		{LinkIndex: index, Dst: prefix("198.51.100.0/24"), Gw: gateway, Src: net.IP{192, 0, 2, 7}},
		{LinkIndex: index, Dst: prefix("203.0.113.0/24"), Gw: gateway, Table: 77}, // not the main table
		{Dst: prefix("203.0.113.128/25"), Type: unix.RTN_BLACKHOLE},
		{LinkIndex: otherDev.Attrs().Index, Dst: prefix("100.64.0.0/10"), Scope: netlink.SCOPE_LINK},
		{Dst: prefix("198.18.0.0/15"), MultiPath: []*netlink.NexthopInfo{
			{LinkIndex: index, Gw: gateway}, {LinkIndex: otherDev.Attrs().Index, Gw: net.IP{10, 79, 0, 9}},
		}},
	} {
		must(t, netlink.RouteAdd(&r))
	}
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x66}
	for _, n := range []netlink.Neigh{
		{LinkIndex: index, IP: nobody.AsSlice()}, {LinkIndex: otherDev.Attrs().Index, IP: net.IP{10, 79, 0, 9}},
	} {
		n.HardwareAddr, n.State = mac, netlink.NUD_PERMANENT
		must(t, netlink.NeighSet(&n))
	}

	got := l.snapshot(k)
	want := State{
		Addrs: []netip.Prefix{netip.MustParsePrefix("192.0.2.7/32"), ourPrefix},
		Routes: []Route{
			{Dst: netip.MustParsePrefix("0.0.0.0/0"), Gateway: peerAddr, Metric: 50},
			{Dst: netip.MustParsePrefix("10.78.0.0/24"), Src: ourPrefix.Addr()},
			{Dst: netip.MustParsePrefix("198.18.0.0/15"), Gateway: peerAddr},
			{Dst: netip.MustParsePrefix("198.51.100.0/24"), Gateway: peerAddr, Src: netip.MustParseAddr("192.0.2.7")},
		},
		Neighs: []Neigh{{Addr: nobody, MAC: [6]byte(mac), Valid: true}},
		MTU:    1400, MAC: macOf(l.dev.Attrs().HardwareAddr), Up: true,
	}
	// The peer may have resolved itself already: that is another test's business.
	got.Neighs = slices.DeleteFunc(got.Neighs, func(n Neigh) bool { return n.Addr == peerAddr })
	slices.SortFunc(got.Addrs, func(a, b netip.Prefix) int { return -a.Addr().Compare(b.Addr()) })
	slices.SortFunc(got.Routes, func(a, b Route) int { return a.Dst.Addr().Compare(b.Dst.Addr()) })
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got, want)
	}
}

func TestLink(t *testing.T) {
	l := newLab(t)
	k := l.open()
	await(l.watch(k), func(c LinkChange) bool { return c.Up })
	want := LinkChange{Name: "dev0", Up: true, MTU: 1400, MAC: macOf(l.dev.Attrs().HardwareAddr)}
	if got := value(elsewhere(k.Link))(t); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	must(t, netlink.LinkDel(l.dev))
	if got := value(elsewhere(k.Link))(t); got != (LinkChange{Deleted: true}) {
		t.Errorf("%+v after it was deleted", got)
	}
}

// TestInterrupted: changes that come all the time are no failure.
func TestInterrupted(t *testing.T) {
	tries := 0
	list, err := whole(func() ([]int, error) {
		if tries++; tries <= 15 {
			return nil, netlink.ErrDumpInterrupted
		}
		return []int{1}, nil
	})
	if err != nil || !slices.Equal(list, []int{1}) {
		t.Errorf("%v, %v after %d tries", list, err, tries)
	}
}

func TestWatch(t *testing.T) {
	l := newLab(t)
	k := l.open()
	events := l.watch(k)
	index := l.dev.Attrs().Index
	await(events, func(c LinkChange) bool { return c.Up && c.MTU == 1400 && !c.Deleted })

	must(t, netlink.LinkSetMTU(l.dev, 1300))
	await(events, func(c LinkChange) bool { return c.Up && c.MTU == 1300 })
	mac := net.HardwareAddr{2, 0, 0, 0, 0, 0x55}
	must(t, netlink.LinkSetHardwareAddr(l.dev, mac))
	await(events, func(c LinkChange) bool { return c.MAC == [6]byte(mac) })

	addr := value(netlink.ParseAddr("192.0.2.7/32"))(t)
	must(t, netlink.AddrAdd(l.dev, addr))
	await(events, anyOf[AddrChange])
	must(t, netlink.AddrDel(l.dev, addr))
	await(events, anyOf[AddrChange])

	route := netlink.Route{LinkIndex: index, Dst: prefix("198.51.100.0/24"), Gw: peerAddr.AsSlice()}
	must(t, netlink.RouteAdd(&route))
	await(events, anyOf[RouteChange])
	// Replaced by a route that names another interface only: ours is gone.
	lo := value(netlink.LinkByName("lo"))(t)
	must(t, netlink.LinkSetUp(lo))
	must(t, netlink.RouteReplace(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: route.Dst, Scope: netlink.SCOPE_LINK}))
	await(events, anyOf[RouteChange])

	entry := netlink.Neigh{LinkIndex: index, IP: nobody.AsSlice(), HardwareAddr: mac, State: netlink.NUD_PERMANENT}
	must(t, netlink.NeighSet(&entry))
	await(events, func(n NeighChange) bool { return n == NeighChange{Neigh: Neigh{nobody, [6]byte(mac), true}} })
	must(t, netlink.NeighDel(&entry))
	await(events, func(n NeighChange) bool { return n.Addr == nobody && !n.Valid })

	must(t, l.peer.LinkSetDown(l.peerDev)) // takes our carrier away
	await(events, func(c LinkChange) bool { return !c.Up && !c.Deleted })
	if l.snapshot(k).Up {
		t.Error("Snapshot says up without carrier")
	}
	must(t, netlink.LinkDel(l.dev))
	await(events, func(c LinkChange) bool { return c.Deleted && !c.Up })
	if _, err := elsewhere(k.Snapshot); err == nil {
		t.Error("Snapshot of a deleted interface: no error")
	}
	if err := k.Watch(t.Context(), func(Event) {}); err == nil {
		t.Error("second Watch: no error")
	}
}

// Changes of other interfaces are not told, nor is the end of a bridge port taken for the end of the interface.
func TestWatchOnlyOurs(t *testing.T) {
	l := newLab(t)
	k := l.open()
	events := l.watch(k)
	await(events, func(c LinkChange) bool { return c.Up })

	attrs := netlink.NewLinkAttrs()
	attrs.Name = "other0"
	must(t, netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}))
	other := value(netlink.LinkByName("other0"))(t)
	must(t, netlink.LinkSetUp(other))
	must(t, netlink.AddrAdd(other, value(netlink.ParseAddr("10.79.0.1/24"))(t)))
	for _, r := range []netlink.Route{
		{LinkIndex: other.Attrs().Index, Dst: prefix("100.64.0.0/10")},
		{LinkIndex: l.dev.Attrs().Index, Dst: prefix("100.65.0.0/16"), Table: 77},
	} {
		r.Scope = netlink.SCOPE_LINK
		must(t, netlink.RouteAdd(&r))
	}
	must(t, netlink.NeighSet(&netlink.Neigh{
		LinkIndex: other.Attrs().Index, IP: net.IP{10, 79, 0, 9},
		HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 9}, State: netlink.NUD_PERMANENT,
	}))
	must(t, netlink.LinkSetMaster(l.dev, other))
	must(t, netlink.LinkSetNoMaster(l.dev))
	must(t, netlink.LinkSetMTU(l.dev, 1280)) // the kernel keeps the order: all of the above was before this

	for e := range events {
		switch e := e.(type) {
		case LinkChange:
			if e.Deleted {
				t.Fatal("told of a deleted link")
			}
			if e.MTU == 1280 {
				return
			}
		case RouteChange, AddrChange, Resync:
			t.Fatalf("told of %#v", e)
		case NeighChange:
			if e.Addr != peerAddr {
				t.Fatalf("told of %+v", e)
			}
		}
	}
}

func TestResolve(t *testing.T) {
	l := newLab(t)
	k := l.open()
	events := l.watch(k)
	await(events, func(c LinkChange) bool { return c.Up })

	resolve := func(a netip.Addr) error {
		_, err := elsewhere(func() (struct{}, error) { return struct{}{}, k.Resolve(a) })
		return err
	}
	must(t, resolve(peerAddr))
	want := Neigh{Addr: peerAddr, MAC: macOf(l.peerDev.Attrs().HardwareAddr), Valid: true}
	await(events, func(n NeighChange) bool { return n.Neigh == want && !n.Deleted })
	if got := l.snapshot(k).Neighs; !slices.Contains(got, want) {
		t.Errorf("neighbours %+v lack %+v", got, want)
	}
	must(t, resolve(peerAddr)) // a known one is no error

	// Nobody answers: the kernel asks three times and gives up, and says so. /proc/sys/net is this thread's namespace's.
	must(t, os.WriteFile("/proc/sys/net/ipv4/neigh/dev0/retrans_time_ms", []byte("20"), 0))
	must(t, resolve(nobody))
	await(events, func(n NeighChange) bool { return n.Addr == nobody && !n.Valid })
	if slices.ContainsFunc(l.snapshot(k).Neighs, func(n Neigh) bool { return n.Addr == nobody && n.Valid }) {
		t.Error("an address that nobody has is valid")
	}
	for _, bad := range []netip.Addr{{}, netip.IPv6Loopback(), netip.MustParseAddr("224.0.0.1")} {
		if err := resolve(bad); bad.Is4() != (err == nil) {
			t.Errorf("resolve %v: %v", bad, err)
		}
	}
}

// When f is slow the kernel drops what does not fit; f is told, and a Snapshot has it all.
func TestLostEvents(t *testing.T) {
	l := newLab(t)
	k := l.open()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	gate, resync := make(chan struct{}), make(chan struct{}, 1)
	must(t, k.Watch(ctx, func(e Event) {
		<-gate
		if _, ok := e.(Resync); ok {
			select {
			case resync <- struct{}{}:
			default:
			}
		}
	}))
	const n = 2000
	for i := range n {
		must(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: l.dev.Attrs().Index, IP: net.IP{10, 78, byte(1 + i/256), byte(i)},
			HardwareAddr: net.HardwareAddr{2, 0, 0, 1, byte(i >> 8), byte(i)}, State: netlink.NUD_PERMANENT,
		}))
	}
	close(gate)
	<-resync
	if got := len(l.snapshot(k).Neighs); got < n {
		t.Errorf("%d neighbours after Resync, want %d", got, n)
	}
}

// Close and the end of ctx both end the watcher, which tells nothing more.
func TestEnd(t *testing.T) {
	l := newLab(t)
	closed, cancelled := l.open(), l.open()
	ctx, cancel := context.WithCancel(context.Background())
	end := func(e Event) {
		if _, ok := e.(Resync); ok {
			t.Error("a closed subscription was told as lost events")
		}
	}
	must(t, closed.Watch(context.Background(), end))
	must(t, cancelled.Watch(ctx, end))
	must(t, closed.Close())
	cancel()
	stacks := make([]byte, 1<<20)
	for bytes.Contains(stacks[:runtime.Stack(stacks, true)], []byte("krnet.(*Kernel).Watch")) {
		runtime.Gosched()
	}
	if _, err := Open(1 << 20); err == nil {
		t.Error("no such interface: no error")
	}
}

// TestResolveWithoutPrivilege has the kernel send something where it may not be asked.
func TestResolveWithoutPrivilege(t *testing.T) {
	l := newLab(t)
	k := l.open()
	events := l.watch(k)
	await(events, func(c LinkChange) bool { return c.Up })
	resolve := func(a netip.Addr) error {
		_, err := elsewhere(func() (struct{}, error) {
			runtime.LockOSThread() // for good: the thread ends with its goroutine
			hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
			var none [2]unix.CapUserData
			if err := unix.Capset(&hdr, &none[0]); err != nil {
				return struct{}{}, err
			}
			if err := k.requests.NeighSet(&netlink.Neigh{LinkIndex: k.ifindex, IP: nobody.AsSlice()}); err == nil {
				t.Error("the thread has not lost its privilege")
			}
			return struct{}{}, k.Resolve(a)
		})
		return err
	}
	must(t, resolve(peerAddr))
	want := Neigh{Addr: peerAddr, MAC: macOf(l.peerDev.Attrs().HardwareAddr), Valid: true}
	await(events, func(n NeighChange) bool { return n.Neigh == want && !n.Deleted })
	must(t, resolve(peerAddr)) // a known one is no error
}
