package rings_test

import (
	"errors"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/rings"
	"xdpd/rings/internal/vethtest"
	"xdpd/umem"
)

// TestTrySend: what the device gives back is free again, and whoever listens has the packet.
func TestTrySend(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	s, pool := mustOpen(t, p, r, rings.SocketOptions{}), newPool(r)
	peer := p.Packet(t)
	for i := range 3 {
		mac := [6]byte{2, 0, 0, 0, 0, byte(i)}
		want := append(append(mac[:], mac[:]...), 0x88, 0xb5)
		if err := s.TrySend(pool, mac, vethtest.Timeout); err != nil {
			t.Fatal(err)
		}
		if got := peer.Receive(); len(got) != 60 || string(got[:14]) != string(want) {
			t.Errorf("the peer received %x, want %x", got, want)
		}
	}
	if pool.Avail() != testFrames {
		t.Errorf("%d frames free, want %d", pool.Avail(), testFrames)
	}
}

// TestTrySendRefused: a kernel that refuses to send is a device that does not send; igb says EINVAL without a native program.
func TestTrySendRefused(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	s := mustOpen(t, p, r, rings.SocketOptions{})
	null, err := unix.Open("/dev/null", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(null)
	if err := unix.Dup3(null, s.FD(), unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	if err := s.TrySend(newPool(r), [6]byte{2}, vethtest.Timeout); !errors.Is(err, rings.ErrUnsent) || !errors.Is(err, unix.ENOTSOCK) {
		t.Errorf("%v", err)
	}
}

// TestRefused: a socket that is not zero copy says why, if it was to be.
func TestRefused(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	s := mustOpen(t, p, r, rings.SocketOptions{Mode: rings.Copy})
	if err := s.Refused(); err != nil {
		t.Errorf("copy was asked for, and refused is %q", err)
	}
	s.Close()
	s = mustOpen(t, p, r, rings.SocketOptions{Mode: rings.Best})
	if err := s.Refused(); err == nil || s.ZeroCopy() {
		t.Errorf("zero copy is %v on veth, refused %v", s.ZeroCopy(), err)
	}
}

func TestZeroCopyRoom(t *testing.T) {
	for _, c := range []struct {
		driver      string
		chunk, want int
	}{{"virtio_net", 2048, 1792}, {"igb", 2048, 1024}, {"igc", 4096, 3072}, {"ice", 4096, 3840}} {
		if got := rings.ZeroCopyRoom(c.driver, c.chunk); got != c.want {
			t.Errorf("%s: %d of %d, want %d", c.driver, got, c.chunk, c.want)
		}
	}
}

// TestZeroCopyOnNIC runs where there are NICs (scripts/vmlab): a socket that is told to be zero copy is, and sends; one that
// also busy-polls never does, and is found out. Where the driver refuses, that is said, and Best is copy.
func TestZeroCopyOnNIC(t *testing.T) {
	nics := netlab.NICs()
	if nics == nil {
		return // on veth there is nothing of the kind
	}
	link, err := netlink.LinkByName(nics[0])
	if err != nil {
		t.Fatal(err)
	}
	r := region(t)
	// try opens a socket, attaches a program, without which igb sends nothing, and sends a packet.
	try := func(name string, o rings.SocketOptions, within time.Duration) (s *rings.Socket, err error) {
		t.Run(name, func(t *testing.T) {
			o.Interface, o.Ifindex = nics[0], link.Attrs().Index
			if s, err = rings.OpenSocket(r, o); err != nil {
				return
			}
			defer s.Close()
			vethtest.OnNIC(o.Ifindex).Redirect(t, map[uint32]int{0: s.FD()})
			if !rings.AwaitCarrier(o.Ifindex, netlab.Patience) {
				t.Fatal("no carrier")
			}
			err = s.TrySend(umem.NewPool(r, 0, r.Frames(), nil), [6]byte{2}, within)
		})
		return s, err
	}
	must, known := netlab.ZeroCopy()
	if !known {
		t.Fatal("NETLAB_ZEROCOPY says neither yes nor no")
	}
	if s, err := try("best", rings.SocketOptions{Mode: rings.Best}, netlab.Patience); err != nil || s.ZeroCopy() != must {
		t.Fatalf("Best: %v, zero copy must be %v", err, must)
	} else if (s.Refused() == nil) != must {
		t.Errorf("refused: %v", s.Refused())
	}
	s, err := try("zero copy", rings.SocketOptions{Mode: rings.ZeroCopy}, netlab.Patience)
	if !must {
		if err == nil {
			t.Error("the driver takes a zero-copy socket")
		}
		return
	}
	if err != nil || !s.ZeroCopy() {
		t.Fatalf("zero copy: %v", err)
	}
	if _, err := try("busy poll", rings.SocketOptions{Mode: rings.ZeroCopy, BusyPollUS: 20, BusyPollBudget: 64}, netlab.Slow*time.Second); !errors.Is(err, rings.ErrUnsent) {
		t.Errorf("with SO_PREFER_BUSY_POLL: %v, want %v", err, rings.ErrUnsent)
	}
}
