package forward

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/sockets"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// wires are two: from the first interface to the second, and from the third to the fourth. The interfaces are those that the
// environment gives (scripts/vmlab --pairs 2), whose driver may have zero copy, or veth pairs in a namespace of the test's own.
// The forwarder has the inner ones.
func wires(t *testing.T) [4]string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	if _, err := net.InterfaceByName("eth3"); err == nil && netlab.NICs() != nil {
		return [4]string{"eth0", "eth1", "eth2", "eth3"}
	}
	runtime.LockOSThread()
	home, err := netns.Get()
	must(t, err)
	ns, err := netns.New()
	must(t, err)
	t.Cleanup(func() {
		ns.Close()
		if netns.Set(home) == nil { // else the thread ends with the test's goroutine
			runtime.UnlockOSThread()
		}
		home.Close()
	})
	addVeth(t, "w0", "w1")
	addVeth(t, "w2", "w3")
	return [4]string{"w0", "w1", "w2", "w3"}
}

func addVeth(t *testing.T, a, b string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a
	must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: b}))
	for _, name := range []string{a, b} {
		must(t, netlink.LinkSetUp(link(t, name)))
	}
}

func link(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	must(t, err)
	return l
}

// TestWires: every sequence number that goes into the one wire comes out of the other once, and no byte was copied; between
// devices of one kind, and between one of those and a veth, whose mode is another where the first has zero copy.
func TestWires(t *testing.T) {
	w := wires(t)
	addVeth(t, "mixed0", "mixed1")
	t.Cleanup(func() { _ = netlink.LinkDel(link(t, "mixed0")) })
	for _, c := range []struct {
		name    string
		router  bool
		out, to string
	}{
		{"bridge", false, w[2], w[3]}, {"router", true, w[2], w[3]},
		{"bridge to veth", false, "mixed0", "mixed1"}, {"router to veth", true, "mixed0", "mixed1"},
	} {
		t.Log(c.name) // on this thread, which is in the namespace
		acrossWires(t, w[0], w[1], c.out, c.to, c.router)
	}
}

// between opens a forwarder from the interface in to the interface out, whose neighbour is to, and gives the MAC address that a
// sender has to use. It ends with the test's part, by the function.
func between(t *testing.T, in, out, to string, router bool) (l *lab, dst net.HardwareAddr, end func()) {
	dst, end = link(t, to).Attrs().HardwareAddr, func() {}
	if router {
		dst = link(t, in).Attrs().HardwareAddr
		subnet := netlink.Addr{IPNet: &net.IPNet{IP: net.IP{10, 78, 0, 254}, Mask: net.CIDRMask(24, 32)}}
		must(t, netlink.AddrAdd(link(t, out), &subnet))
		end = func() { must(t, netlink.AddrDel(link(t, out), &subnet)) }
		must(t, netlink.NeighSet(&netlink.Neigh{
			LinkIndex: link(t, out).Attrs().Index, IP: net.IP{10, 78, 0, 1}, HardwareAddr: link(t, to).Attrs().HardwareAddr,
			State: netlink.NUD_PERMANENT,
		}))
	}
	f, err := Open(Config{Interfaces: []string{in, out}, Router: router, Ledger: true})
	if err != nil {
		end()
		t.Fatal(err)
	}
	l = &lab{t: t, f: f}
	if zc, known := netlab.ZeroCopy(); known {
		if st := l.stats(); st.Ports[0].ZeroCopy != zc {
			t.Errorf("%s is in zero copy: %v", in, st.Ports[0].ZeroCopy)
		} else if veth := st.Ports[1].Driver == "veth"; st.Ports[1].ZeroCopy != (zc && !veth) || st.Ports[1].OwnMemory != (zc && veth) {
			t.Errorf("%+v", st.Ports[1])
		}
	}
	removeSubnet := end
	return l, dst, func() {
		l.checkFrames()
		must(t, f.Close())
		removeSubnet()
	}
}

// awaitLinks: drivers may restart their link when a program comes.
func awaitLinks(t *testing.T, names ...string) {
	t.Helper()
	for _, name := range names {
		for end := time.Now().Add(patience); link(t, name).Attrs().OperState != netlink.OperUp && time.Now().Before(end); {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

// TestMTUGrows: an MTU that frames do not hold, or not in zero copy, ends the forwarder, and another one has larger frames or copy
// mode.
func TestMTUGrows(t *testing.T) {
	w := wires(t)
	in, out := link(t, w[1]), link(t, w[2])
	t.Cleanup(func() {
		for _, l := range []netlink.Link{in, out} {
			must(t, netlink.LinkSetMTU(l, l.Attrs().MTU))
		}
	})
	must(t, netlink.LinkSetMTU(in, 1000))
	must(t, netlink.LinkSetMTU(out, 1000))
	for _, mtu := range []int{1500, 3200} {
		awaitLinks(t, w[1], w[2])
		f, err := Open(Config{Interfaces: []string{w[1], w[2]}, Ledger: true})
		must(t, err)
		p := f.ports[0]
		most := sockets.MaxMTU(f.region.ChunkSize(), 1)
		if p.zeroCopy() {
			most = p.zeroCopyMTU(f.region.ChunkSize())
		}
		if err := netlink.LinkSetMTU(in, mtu); errors.Is(err, unix.EINVAL) { // igb, when it is beyond what it receives with XDP
			t.Logf("%s refuses MTU %d: %v", p.driver, mtu, err)
			must(t, f.Close())
			must(t, netlink.LinkSetMTU(in, mtu))
			continue
		} else if err != nil {
			t.Fatal(err)
		}
		if mtu <= most {
			for {
				st, err := f.Stats()
				must(t, err) // it goes on
				if st.Ports[0].Config.MTU == mtu {
					break
				}
				time.Sleep(time.Millisecond)
			}
		} else {
			select {
			case <-f.Done():
			case <-time.After(patience):
				t.Fatalf("MTU %d of at most %d: it goes on", mtu, most)
			}
			if err := f.Err(); err == nil || !strings.Contains(err.Error(), "start the forwarder again") {
				t.Errorf("MTU %d of at most %d: it ended with %v", mtu, most, err)
			}
		}
		must(t, f.Close())
	}
	awaitLinks(t, w[1], w[2])
	f, err := Open(Config{Interfaces: []string{w[1], w[2]}, Ledger: true})
	must(t, err)
	st, err := f.Stats()
	must(t, err)
	if zc, known := netlab.ZeroCopy(); known && st.Ports[0].ZeroCopy != (zc && st.Ports[0].Config.MTU <= f.ports[0].zeroCopyMTU(st.ChunkSize)) {
		t.Errorf("%+v", st.Ports[0])
	}
	must(t, f.Close())
}

func acrossWires(t *testing.T, from, in, out, to string, router bool) {
	l, dst, end := between(t, in, out, to, router)
	defer end()
	f := l.f
	count, rate := uint64(20_000), 20_000.0
	if netlab.Slow > 1 {
		count, rate = 1500, 300
	}
	sink, err := xdpprog.LoadSink(xdpprog.SinkConfig{
		Interface: to, Ifindex: link(t, to).Attrs().Index, Seqs: 2 * count, Flows: 4, CheckSums: true,
	})
	must(t, err)
	defer sink.Close()
	drop, err := xdpprog.LoadDrop(from, link(t, from).Attrs().Index, xdpprog.BestAttach) // drivers send for XDP where they run one
	must(t, err)
	defer drop.Close()
	awaitLinks(t, from, in, out, to)
	source, err := xdpprog.LoadSource(xdpprog.SourceConfig{
		Interface: from, Ifindex: link(t, from).Attrs().Index, SrcMAC: link(t, from).Attrs().HardwareAddr, DstMAC: dst, Flows: 4,
		Src: xdpprog.Addrs{First: netip.MustParseAddr("10.77.0.2")}, Dst: xdpprog.Addrs{First: netip.MustParseAddr("10.78.0.1")},
		SrcPort: xdpprog.Ports{First: 1024, Count: 4}, DstPort: xdpprog.Ports{First: 9}, Sizes: []int{64, 594, 1518}, Rate: rate,
	})
	must(t, err)
	defer source.Close()
	sent, got := across(t, source, sink, count)
	st := l.stats()
	if got.Unique != sent.Sent || sent.Sent == 0 || got.Duplicates+got.BadSum+got.Outside != 0 {
		t.Errorf("sent %+v\narrived %d, doubled %d, bad %d\nports %+v", sent, got.Unique, got.Duplicates, got.BadSum, st.Ports)
	}
	t.Logf("%d of %d frames arrived, %v; zero copy %v and %v", got.Unique, sent.Sent, st.Ports[0].Counters.PortStats,
		st.Ports[0].ZeroCopy, st.Ports[1].ZeroCopy)
	if st.Copied() != 0 {
		t.Errorf("%d bytes were copied", st.Copied())
	}
	if n := f.ledger.Moves(umem.Fill, umem.RX); n < count {
		t.Errorf("%d frames went through our hands", n)
	}
}
