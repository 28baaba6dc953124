package netlab

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// TestNICs lends the ends of a veth pair, which stand for two NICs, and looks what comes back.
func TestNICs(t *testing.T) {
	home := newLab(t, Options{})
	names := []string{home.EngineDev, "nic1"}
	err := home.Engine.Do(func() error {
		// The other end comes here as well: both must be where New is called.
		if err := home.Peer.Do(func() error { return move(home.PeerDev, names[1], home.Engine.handle) }); err != nil {
			return err
		}
		if err := up(names[1], netip.Prefix{}); err != nil {
			return err
		}
		before := looks(t, names)
		l, err := New(Options{NICs: names, MTU: 1400, VLANs: []uint16{7}})
		if err != nil && !errors.Is(err, ErrNoVLAN) {
			return err
		}
		if err == nil {
			if _, err := New(Options{NICs: names}); err == nil || errors.Is(err, ErrNICs) {
				t.Errorf("a second network has the same NICs: %v", err)
			}
			if out, err := l.Peer.Run(t.Context(), "ip", "link", "show", l.PeerDev); err != nil {
				t.Errorf("%s: %v", out, err)
			}
			if _, err := netlink.LinkByName(names[0]); err == nil {
				t.Errorf("%s is still here", names[0])
			}
			if err := l.Close(); err != nil {
				t.Error(err)
			}
		}
		if after := looks(t, names); after != before {
			t.Errorf("given back as %v, were %v", after, before)
		}
		for _, o := range []Options{{Queues: 77}, {Middle: true}, {MTU: 65535}, {TxOffload: true}, {Veth: "because"}} {
			o.NICs = names
			if l, err := New(o); !errors.Is(err, ErrNICs) {
				t.Errorf("%+v: %v", o, err)
				l.Close()
			}
			if after := looks(t, names); after != before {
				t.Errorf("%+v: given back as %v, were %v", o, after, before)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// look is what an interface must come back with.
type look struct {
	mtu, addrs   int
	up, checksum bool
	queues       uint32
}

func looks(t *testing.T, names []string) (all [2]look) {
	t.Helper()
	for i, name := range names {
		link, err := netlink.LinkByName(name)
		if err != nil {
			t.Fatal(err)
		}
		addrs, err := netlink.AddrList(link, unix.AF_INET)
		if err != nil {
			t.Fatal(err)
		}
		all[i].mtu, all[i].checksum, err = lookAt(name)
		if err != nil {
			t.Fatal(err)
		}
		all[i].addrs, all[i].up = len(addrs), link.Attrs().Flags&net.FlagUp != 0
		all[i].queues, _ = channels(name)
	}
	if links, err := netlink.LinkList(); err != nil || len(links) != 3 { // with the loopback
		t.Errorf("%d interfaces, %v", len(links), err)
	}
	return all
}

// TestEnvironment: what the tests of other packages ask.
func TestEnvironment(t *testing.T) {
	if os.Getenv("NETLAB_NICS") != "" {
		return
	}
	t.Setenv("NETLAB_ZEROCOPY", "yes")
	if _, known := ZeroCopy(); known || NICs() != nil {
		t.Error("without NICs a mode is asked for")
	}
	t.Setenv("NETLAB_NICS", "eth0,eth1")
	if must, known := ZeroCopy(); !must || !known || len(NICs()) != 2 || NICs()[1] != "eth1" {
		t.Errorf("zero copy %v, %v on %v", must, known, NICs())
	}
	t.Setenv("NETLAB_ZEROCOPY", "no")
	if must, known := ZeroCopy(); must || !known {
		t.Errorf("zero copy %v, %v", must, known)
	}
}
