package forward

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	xdplink "github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/krnet"
	"xdpd/internal/netlab"
	"xdpd/sockets"
	"xdpd/xdpprog"
)

func TestBridge(t *testing.T) {
	l := newLab(t, false, netlab.Options{TxOffload: true})
	l.open(Config{})
	l.ping(l.Engine, l.PeerAddr, "")
	l.datagrams(upTo(1472, 31))
	l.bulk(16 << 20)
	l.noCopies()
	st := l.stats()
	if st.Stations != 2 {
		t.Errorf("%d stations, want the two hosts", st.Stations)
	}
	if st.Ports[1].Counters.PartialSums == 0 {
		t.Error("b leaves its checksums to the device, and none was finished")
	}
}

func TestRoute(t *testing.T) {
	l := newLab(t, true, netlab.Options{TxOffload: true})
	l.open(Config{Router: true})
	l.ping(l.Engine, l.PeerAddr, "")
	l.datagrams(upTo(1472, 31))
	l.datagrams([]int{1473, 4000, 65507}) // in fragments of the sender's
	l.bulk(16 << 20)
	l.noCopies()

	out := l.ping(l.Engine, netip.MustParseAddr("10.77.0.254"), "") // the router itself: the kernel's
	if strings.Contains(out, "100% packet loss") {
		t.Error("the router's kernel does not answer")
	}
	out, err := l.run(l.Engine, "traceroute -n -q 1 10.78.0.1")
	if err != nil || !strings.Contains(out, " 1  10.77.0.254") || !strings.Contains(out, " 2  10.78.0.1") {
		t.Errorf("traceroute: %v\n%s", err, out)
	}
	if st := l.stats(); st.Ports[0].Counters.Drops[sockets.FwdTTL] == 0 || st.Ports[0].Counters.ICMPErrors == 0 {
		t.Errorf("ports %+v", st.Ports)
	}
}

func TestRouteMTU(t *testing.T) {
	l := newLab(t, true, netlab.Options{})
	l.ip(l.Middle, "link set mb mtu 1000")
	l.ip(l.Peer, "link set xb0 mtu 1000")
	l.open(Config{Router: true})
	l.refused(l.Engine, "10.78.0.1", "-M do -s 1400", "mtu = 1000")
	l.ip(l.Engine, "route flush cache")
	l.datagrams([]int{100, 1200, 1472, 20000})
	st := l.stats()
	if c := st.Ports[0].Counters; c.Fragmented == 0 || c.Fragments < 2*c.Fragmented || c.Copied[sockets.CopyFragment] == 0 {
		t.Errorf("%+v, copied %v", c.PortStats, c.Copied)
	}
	l.bulk(1 << 20) // finds the MTU out
	l.ip(l.Middle, "link set mb mtu 1500")
	l.ip(l.Peer, "link set xb0 mtu 1500")
	for l.stats().Ports[1].Config.MTU != 1500 {
		time.Sleep(time.Millisecond)
	}
	l.ip(l.Engine, "route flush cache")
	l.ping(l.Engine, l.PeerAddr, "-M do -s 1472")
}

func TestRouteChanges(t *testing.T) {
	l := newLab(t, true, netlab.Options{})
	l.open(Config{Router: true})
	const net1 = "192.0.2.0/24"
	host := netip.MustParseAddr("192.0.2.1")
	l.ip(l.Peer, "addr add 192.0.2.1/32 dev lo")
	l.refused(l.Engine, host.String(), "", "Destination Net Unreachable")
	l.ip(l.Middle, "route add "+net1+" via 10.78.0.1")
	l.refused(l.Engine, host.String(), "", "1 received")
	l.ip(l.Middle, "route replace unreachable 192.0.2.0/28")
	l.refused(l.Engine, host.String(), "", "Destination Host Unreachable")
	l.ip(l.Middle, "route replace prohibit 192.0.2.0/28")
	l.refused(l.Engine, host.String(), "", "Packet filtered")
	l.ip(l.Middle, "route del prohibit 192.0.2.0/28")
	l.refused(l.Engine, host.String(), "", "1 received")
	// An address that the machine gets is the kernel's at once.
	l.ip(l.Middle, "addr add 192.0.2.1/32 dev lo")
	before := l.stats().Ports[1].Counters.TxFrames
	l.refused(l.Engine, host.String(), "", "1 received")
	for l.stats().Ports[0].Verdicts[1].Packets == 0 { // pass_own
		l.refused(l.Engine, host.String(), "", "1 received")
	}
	l.refused(l.Engine, host.String(), "", "1 received")
	if after := l.stats().Ports[1].Counters.TxFrames; after > before+20 {
		t.Errorf("%d packets left for an address of our own", after-before)
	}
}

// TestRouteChangesAtOnce: tables are read because of a link and because of an address at the same time, and what is read last is
// what holds.
func TestRouteChangesAtOnce(t *testing.T) {
	l := newLab(t, true, netlab.Options{})
	f := l.open(Config{Router: true})
	before := l.stats().Prefixes
	var syncing sync.WaitGroup
	stop := make(chan struct{})
	for _, neighbours := range []bool{true, false} {
		syncing.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := f.sync(neighbours); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 20 {
		l.ip(l.Middle, "addr add 192.0.2.1/32 dev lo")
		l.ip(l.Middle, "addr del 192.0.2.1/32 dev lo")
	}
	close(stop)
	syncing.Wait()
	for end := time.Now().Add(patience); l.stats().Prefixes != before && time.Now().Before(end); {
		time.Sleep(time.Millisecond)
	}
	if after := l.stats().Prefixes; after != before {
		t.Errorf("%d prefixes, and %d before", after, before)
	}
}

// TestRouteBackup: a route is left for the next one with the interface that it leads over, also one that is not forwarded to.
func TestRouteBackup(t *testing.T) {
	l := newLab(t, true, netlab.Options{})
	l.ip(l.Middle, "link add o0 type veth peer name o1")
	l.ip(l.Middle, "link set o0 up")
	l.ip(l.Middle, "link set o1 up")
	l.ip(l.Middle, "route add 192.0.2.0/24 dev o0 metric 10")
	l.ip(l.Middle, "route add 192.0.2.0/24 via 10.78.0.1 metric 20")
	l.ip(l.Peer, "addr add 192.0.2.1/32 dev lo")
	l.open(Config{Router: true})
	l.refused(l.Engine, "192.0.2.1", "", "Destination Net Unreachable")
	l.ip(l.Middle, "link set o0 down")
	l.refused(l.Engine, "192.0.2.1", "", "1 received")
}

func TestRouteNeighbours(t *testing.T) {
	l := newLab(t, true, netlab.Options{})
	l.open(Config{Router: true})
	l.refused(l.Engine, "10.78.0.99", "", "Destination Host Unreachable")
	st := l.stats()
	if c := st.Ports[1].Counters; c.Drops[sockets.NeighFailed] == 0 || c.Waited == 0 {
		t.Errorf("%+v", c)
	}
	l.ip(l.Peer, "addr add 10.78.0.99/24 dev xb0")
	l.refused(l.Engine, "10.78.0.99", "", "1 received")
	// Another host takes the address over.
	l.ip(l.Peer, "link set xb0 down")
	l.ip(l.Peer, "link set xb0 address 02:00:00:00:00:99")
	l.ip(l.Peer, "link set xb0 up")
	l.ip(l.Peer, "route replace default via 10.78.0.254")
	l.refused(l.Engine, "10.78.0.99", "", "1 received")
}

func TestRouteLinkDown(t *testing.T) {
	l := newLab(t, true, netlab.Options{})
	f := l.open(Config{Router: true})
	l.ping(l.Engine, l.PeerAddr, "")
	l.ip(l.Middle, "link set mb down")
	l.refused(l.Engine, l.PeerAddr.String(), "", "Unreachable")
	l.ip(l.Middle, "link set mb up")
	l.refused(l.Engine, l.PeerAddr.String(), "", "1 received")
	l.ip(l.Middle, "link del mb")
	select {
	case <-f.Done():
	case <-time.After(patience):
		t.Fatal("the forwarder goes on without its interface")
	}
	if err := f.Err(); !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "mb") {
		t.Errorf("it ended with %v", err)
	}
}

// TestResync: after events were lost, the kernel's neighbours are the router's, and those that it is asking for are no failures.
func TestResync(t *testing.T) {
	l := newLab(t, true, netlab.Options{})
	f := l.open(Config{Router: true})
	l.ping(l.Engine, l.PeerAddr, "")
	must(t, f.sync(true))
	known := l.stats().Neighbours
	now, _ := f.loop.Enter()
	f.router.SetNeighbour(1, 10<<24|78<<16|77, f.ports[0].mac, true, now) // the kernel forgot it
	f.loop.Leave()
	var c net.Conn
	must(t, l.Engine.Do(func() (err error) { c, err = net.Dial("udp4", "10.78.0.99:9"); return err }))
	defer c.Close()
	_, err := c.Write([]byte("to nobody"))
	must(t, err)
	for l.stats().Waiting == 0 {
		time.Sleep(time.Millisecond)
	}
	f.event(krnet.Resync{})
	if st := l.stats(); st.Neighbours != known || st.Waiting != 1 || st.Ports[1].Counters.Drops[sockets.NeighFailed] != 0 {
		t.Errorf("%d neighbours, and %d before; %d packets wait, %v", st.Neighbours, known, st.Waiting, st.Ports[1].Counters.Drops)
	}
	_, _ = f.loop.Enter() // nor was it told that mb came up, and has another MTU and address
	is := f.machinePortNow(1)
	must(t, f.setPort(1, sockets.PortConfig{MTU: 900, Up: false, CompletePartial: true}))
	f.loop.Leave()
	f.event(krnet.Resync{})
	if now := l.stats().Ports[1].Config; now != is {
		t.Errorf("the port is %+v, and it is %+v", now, is)
	}
}

// TestEndings: what would have frames pass to the kernel, unseen, ends the forwarder.
func TestEndings(t *testing.T) {
	for _, c := range []struct {
		name string
		act  func(l *lab) error
		err  error
		says string
	}{
		{"queue", func(l *lab) error {
			_, err := l.run(l.Middle, "ethtool -L mb rx 2")
			return err
		}, unix.ENXIO, "mb has 2 RX queues"},
		{"program", func(l *lab) error {
			for links := new(xdplink.Iterator); links.Next(); {
				if info, err := links.Link.Info(); err == nil && info.Type == xdplink.XDPType && info.XDP().Ifindex == uint32(l.f.ports[1].index) {
					return links.Link.Detach()
				}
			}
			return errors.New("the link is not to be found")
		}, unix.ENOLINK, "from interface mb"},
		{"moved", func(l *lab) error {
			there, err := os.Open(l.Peer.Path())
			if err != nil {
				return err
			}
			defer there.Close()
			return netlink.LinkSetNsFd(link(l.t, "mb"), int(there.Fd()))
		}, unix.ENODEV, "mb was moved to another network namespace"},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, false, netlab.Options{Queues: 2})
			for i, dev := range netlab.MiddleDevs {
				_, err := l.run([]*netlab.NS{l.Engine, l.Peer}[i], "ethtool -L "+[]string{l.EngineDev, l.PeerDev}[i]+" tx 1")
				must(t, err)
				_, err = l.run(l.Middle, "ethtool -L "+dev+" rx 1")
				must(t, err)
			}
			f := l.open(Config{})
			l.ping(l.Engine, l.PeerAddr, "")
			must(t, l.Middle.Do(func() error { return c.act(l) }))
			select {
			case <-f.Done():
			case <-time.After(patience):
				t.Fatal("it goes on")
			}
			if err := f.Err(); !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("it ended with %v", err)
			}
		})
	}
}

func TestStaticRoutes(t *testing.T) {
	l := newLab(t, true, netlab.Options{})
	l.ip(l.Peer, "addr add 192.0.2.1/32 dev lo")
	l.ip(l.Middle, "route add unreachable 192.0.2.0/24")
	l.open(Config{Router: true, Routes: []Route{{netip.MustParsePrefix("192.0.2.0/24"), l.PeerAddr}}})
	l.ping(l.Engine, netip.MustParseAddr("192.0.2.1"), "")
	l.ping(l.Engine, l.PeerAddr, "")
}

// TestEverySequenceNumber: what the generator in a's kernel sends arrives in b's exactly once, without a byte copied.
func TestEverySequenceNumber(t *testing.T) {
	for _, router := range []bool{false, true} {
		name, ttlSum := "bridge", false
		if router {
			name, ttlSum = "router", true
		}
		t.Run(name, func(t *testing.T) {
			l := newLab(t, router, netlab.Options{})
			l.open(Config{Router: router})
			l.ping(l.Engine, l.PeerAddr, "") // neighbours and stations are known
			const count = 50_000
			a, b := l.device(l.Engine, l.EngineDev), l.device(l.Peer, l.PeerDev)
			dst := b.HardwareAddr
			if router {
				dst = l.device(l.Middle, netlab.MiddleDevs[0]).HardwareAddr
			}
			var source *xdpprog.Source
			var sink *xdpprog.Sink
			must(t, l.Peer.Do(func() (err error) {
				sink, err = xdpprog.LoadSink(xdpprog.SinkConfig{
					Interface: b.Name, Ifindex: b.Index, Seqs: count, Flows: 16, CheckSums: ttlSum,
				})
				return err
			}))
			defer sink.Close()
			must(t, l.Engine.Do(func() (err error) {
				source, err = xdpprog.LoadSource(xdpprog.SourceConfig{
					Interface: a.Name, Ifindex: a.Index, SrcMAC: a.HardwareAddr, DstMAC: dst, Flows: 16, Rate: 20_000,
					Src: xdpprog.Addrs{First: l.EngineAddr}, Dst: xdpprog.Addrs{First: l.PeerAddr},
					SrcPort: xdpprog.Ports{First: 1024, Count: 16}, DstPort: xdpprog.Ports{First: 9},
					Sizes: []int{64, 594, 1518},
				})
				return err
			}))
			defer source.Close()
			sent, got := across(t, source, sink, count)
			if got.Unique != sent.Sent || got.Duplicates != 0 || got.Late != 0 || got.BadSum != 0 || got.Outside != 0 {
				t.Errorf("sent %+v\narrived %d of %d frames, %d doubled, %d late, %d bad\nports %+v", sent, got.Unique, got.Frames,
					got.Duplicates, got.Late, got.BadSum, l.stats().Ports)
			}
			l.noCopies()
			st := l.stats()
			for _, p := range st.Ports {
				for d, n := range p.Counters.Drops {
					if n != 0 {
						t.Errorf("%s dropped %d: %v", p.Interface, n, sockets.Drop(d))
					}
				}
			}
		})
	}
}

func (l *lab) device(ns *netlab.NS, name string) (dev *net.Interface) {
	l.t.Helper()
	must(l.t, ns.Do(func() (err error) { dev, err = net.InterfaceByName(name); return err }))
	return dev
}
