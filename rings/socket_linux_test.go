package rings_test

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/rings"
	"xdpd/rings/internal/vethtest"
	"xdpd/umem"
)

func TestSocketReceive(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	s, pool := mustOpen(t, p, r, rings.SocketOptions{}), newPool(r)
	p.Redirect(t, map[uint32]int{0: s.FD()})
	peer, port := p.Packet(t), s.Port()
	const n = 200
	fill(t, port, pool, n)
	for i := range uint32(n) {
		peer.Send(vethtest.Frame(i, 18+int(i)*7))
	}
	next := uint32(0)
	for next < n {
		waitReadable(t, s.FD())
		receive(t, port, pool, func(packet []byte) {
			if want := vethtest.Frame(next, 18+int(next)*7); !bytes.Equal(packet, want) {
				t.Fatalf("packet %d is %x, want %x", next, packet, want)
			}
			next++
		})
		if err := s.WakeRX(); err != nil {
			t.Fatal(err)
		}
	}
	if pool.Avail() != testFrames {
		t.Fatalf("%d frames free after all were received, want %d", pool.Avail(), testFrames)
	}
	st, err := s.Stats()
	if err != nil || st.RxDropped != 0 || st.RxFillRingEmpty != 0 {
		t.Fatalf("stats %+v, %v; want no drops", st, err)
	}
}

func TestSocketTransmit(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	// Small rings, so that five rounds go around each of them.
	s, pool := mustOpen(t, p, r, rings.SocketOptions{TXSize: 256, CompSize: 256}), newPool(r)
	peer, port := p.Packet(t), s.Port()
	sent := uint32(0)
	for _, n := range []uint32{1, 7, 256, 100, 256} {
		send(t, port, pool, sent, n, 60)
		kick(t, port)
		for i := range n {
			if got, want := peer.Receive(), vethtest.Frame(sent+i, 60); !bytes.Equal(got, want) {
				t.Fatalf("frame %d is %x, want %x", sent+i, got, want)
			}
		}
		reap(t, port, pool, n)
		sent += n
	}
	if pool.Avail() != testFrames {
		t.Fatalf("%d frames free after all completed, want %d", pool.Avail(), testFrames)
	}
}

// A packet may lie in as many frames as the kernel takes, 18 (MAX_SKB_FRAGS+1).
func TestSocketSG(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	s, pool := mustOpen(t, p, r, rings.SocketOptions{SG: true}), newPool(r)
	shared := mustOpen(t, p, r, rings.SocketOptions{Shared: s})
	if !s.SG() || !shared.SG() {
		t.Error("SG was asked for, and is not told")
	}
	peer, port := p.Packet(t), s.Port()
	for n := uint32(1); n <= 18; n++ {
		want := vethtest.Frame(n, 900)
		idx, _ := port.TX.Reserve(n)
		rest := want
		for i := range n {
			f := pool.Get(umem.TX)
			k := copy(pool.Chunk(f)[umem.Headroom:], rest[:50])
			d := rings.Desc{Options: rings.DescContinued}
			if i == n-1 {
				k, d.Options = copy(pool.Chunk(f)[umem.Headroom:], rest), 0
			}
			rest = rest[k:]
			d.Addr, d.Len = r.Addr(f)+umem.Headroom, uint32(k)
			*port.TX.Slot(idx + i) = d
		}
		port.TX.Submit(n)
		kick(t, port)
		if got := peer.Receive(); !bytes.Equal(got, want) {
			t.Fatalf("a packet in %d frames is received as %d bytes", n, len(got))
		}
		reap(t, port, pool, n)
	}
}

// One Kick sends a whole batch where the kernel lets the budget be raised, and
// 32 frames where it does not.
func TestSocketTransmitBudget(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	s, pool := mustOpen(t, p, r, rings.SocketOptions{}), newPool(r)
	p.Packet(t) // so that the frames have somewhere to go
	want := uint32(256)
	if !kernelHasTXBudget(t) {
		want = 32
	}
	send(t, s.Port(), pool, 0, 512, 60)
	if err := s.Kick(); err != nil {
		t.Fatal(err)
	}
	if got := 512 - s.Port().TX.Pending(); got != want {
		t.Fatalf("one kick sends %d frames, want %d", got, want)
	}
	if kicks := kick(t, s.Port()); kicks < 1 {
		t.Fatal("the rest went without a kick")
	}
}

func kernelHasTXBudget(t *testing.T) bool {
	t.Helper()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return !errors.Is(unix.SetsockoptInt(fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, 0), unix.ENOPROTOOPT)
}

func TestSocketModes(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	for _, o := range []rings.SocketOptions{
		{Mode: rings.Best}, {Mode: rings.Copy}, {Mode: rings.Copy, NoNeedWakeup: true},
		{BusyPollUS: 20, BusyPollBudget: 64},
	} {
		s, err := open(p, r, o)
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		if s.ZeroCopy() {
			t.Errorf("%+v: zero copy on veth, which has none", o)
		}
		if s.NeedWakeup() == o.NoNeedWakeup {
			t.Errorf("%+v: NeedWakeup is %v", o, s.NeedWakeup())
		}
		// Copy mode always needs the kick; a fill ring never does (net/xdp/xsk.c).
		if tx, fill := s.Port().TX.NeedWakeup(), s.Port().Fill.NeedWakeup(); !tx || fill {
			t.Errorf("%+v: TX needs wake-up %v, fill %v; want true, false", o, tx, fill)
		}
		if o.BusyPollUS > 0 {
			us, _ := unix.GetsockoptInt(s.FD(), unix.SOL_SOCKET, unix.SO_BUSY_POLL)
			prefer, _ := unix.GetsockoptInt(s.FD(), unix.SOL_SOCKET, unix.SO_PREFER_BUSY_POLL)
			if us != 20 || prefer != 1 { // the budget cannot be asked for
				t.Errorf("busy poll %d us, prefer %d; want 20, 1", us, prefer)
			}
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Two queues of one interface, one region: frames from each, and frames received
// on one sent on the other.
func TestSocketSharedUmem(t *testing.T) {
	p, r := vethtest.New(t, 2), region(t)
	pool := newPool(r)
	first := mustOpen(t, p, r, rings.SocketOptions{})
	second := mustOpen(t, p, r, rings.SocketOptions{Queue: 1, Shared: first})
	if first.Port().Fill == second.Port().Fill || second.Queue() != 1 || !second.NeedWakeup() {
		t.Fatalf("second socket shares a fill ring, or is on queue %d", second.Queue())
	}
	p.Redirect(t, map[uint32]int{0: first.FD(), 1: second.FD()})
	peer := p.Packet(t)
	socks, seen := []*rings.Socket{first, second}, []int{0, 0}
	for _, s := range socks {
		fill(t, s.Port(), pool, 256)
	}
	// The kernel hashes the flow to choose a queue: vary the UDP source port until
	// both have been chosen.
	for i := uint32(0); seen[0] == 0 || seen[1] == 0; i++ {
		if i == 200 {
			t.Fatalf("200 frames, by queue: %v", seen)
		}
		frame := vethtest.UDPFrame(uint16(1024 + i))
		peer.Send(frame)
		waitReadable(t, first.FD(), second.FD())
		for q, s := range socks {
			receive(t, s.Port(), pool, func(packet []byte) {
				if !bytes.Equal(packet, frame) {
					t.Fatalf("queue %d: %x, want %x", q, packet, frame)
				}
				seen[q]++
			})
		}
	}
	for q, s := range socks {
		send(t, s.Port(), pool, uint32(q), 1, 64)
		kick(t, s.Port())
		if got, want := peer.Receive(), vethtest.Frame(uint32(q), 64); !bytes.Equal(got, want) {
			t.Fatalf("sent on queue %d: %x, want %x", q, got, want)
		}
		reap(t, s.Port(), pool, 1)
	}
}

// A second socket on the same queue has rings of its own for RX and TX only.
func TestSocketSharedQueue(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	pool := newPool(r)
	first := mustOpen(t, p, r, rings.SocketOptions{})
	second := mustOpen(t, p, r, rings.SocketOptions{Shared: first})
	if first.Port().Fill != second.Port().Fill || first.Port().Comp != second.Port().Comp {
		t.Fatal("two sockets on one queue have fill or completion rings of their own")
	}
	p.Redirect(t, map[uint32]int{0: second.FD()})
	peer := p.Packet(t)
	fill(t, first.Port(), pool, 1)
	peer.Send(vethtest.Frame(1, 64))
	waitReadable(t, second.FD())
	got := 0
	receive(t, second.Port(), pool, func([]byte) { got++ })
	if got != 1 {
		t.Fatalf("second socket has %d packets, want 1", got)
	}
	send(t, second.Port(), pool, 2, 1, 64)
	kick(t, second.Port())
	peer.Receive()
	reap(t, first.Port(), pool, 1)
}

// Every error a user can provoke names the operation, the place and the cure,
// and wraps the errno.
func TestSocketErrors(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	mustOpen(t, p, r, rings.SocketOptions{})
	other := region(t)
	heap, err := umem.Wrap(make([]byte, 1<<20)[512:], 2048) // never on a page
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		region *umem.Region
		o      rings.SocketOptions
		errno  error
		words  []string
	}{
		"missing queue": {other, rings.SocketOptions{Queue: 3}, unix.EINVAL,
			[]string{"bind", "interface v0 queue 3", "interface v0 has no queue 3; it has 1", "ethtool -L v0"}},
		"queue taken": {other, rings.SocketOptions{}, unix.EBUSY,
			[]string{"bind", "interface v0 queue 0", "another AF_XDP socket has this queue"}},
		"memory off the page": {heap, rings.SocketOptions{}, unix.EINVAL,
			[]string{"register packet memory", "interface v0 queue 0", "start on a page"}},
	} {
		s, err := open(p, c.region, c.o)
		if err == nil {
			s.Close()
		}
		if !errors.Is(err, c.errno) {
			t.Errorf("%s: error %v, want %v", name, err, c.errno)
			continue
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %q does not say %q", name, err, w)
			}
		}
	}
}

func TestSocketNoZeroCopy(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	_, err := open(p, r, rings.SocketOptions{Mode: rings.ZeroCopy})
	if !errors.Is(err, unix.EOPNOTSUPP) || !strings.Contains(err.Error(), "no zero copy on this queue: use copy mode") {
		t.Fatalf("zero copy on veth: %v", err)
	}
}

func TestSocketNoInterface(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	missing := *p
	missing.Ifindex = 4711
	_, err := open(&missing, r, rings.SocketOptions{})
	if !errors.Is(err, unix.ENODEV) || !strings.Contains(err.Error(), "no interface with index 4711 in this network namespace") {
		t.Fatalf("interface 4711: %v", err)
	}
}

// The rings of a closed socket must be gone at once, whatever is in flight, or
// the queue stays taken.
func TestSocketReopen(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	peer, redirect := p.Packet(t), p.Redirect(t, nil)
	for i := range uint32(20) {
		s, pool := mustOpen(t, p, r, rings.SocketOptions{}), newPool(r)
		if err := redirect.Put(uint32(0), uint32(s.FD())); err != nil {
			t.Fatal(err)
		}
		fill(t, s.Port(), pool, 64)
		send(t, s.Port(), pool, i, 16, 60)
		kick(t, s.Port())
		for range 16 {
			peer.Receive()
		}
		if err := errors.Join(s.Close(), s.Close()); err != nil {
			t.Fatalf("close twice: %v", err)
		}
		if s.FD() != -1 {
			t.Fatalf("FD of a closed socket is %d", s.FD())
		}
	}
}

func TestSocketInterfaceDeleted(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	s, pool := mustOpen(t, p, r, rings.SocketOptions{}), newPool(r)
	send(t, s.Port(), pool, 0, 1, 60)
	if err := errors.Join(s.Kick(), s.WakeRX()); err != nil {
		t.Fatal(err)
	}
	p.Delete(t)
	for name, err := range map[string]error{"Kick": s.Kick(), "WakeRX": s.WakeRX()} {
		if !errors.Is(err, rings.ErrDeviceDown) || !errors.Is(err, unix.ENXIO) {
			t.Errorf("%s after the interface was deleted: %v, want ErrDeviceDown and ENXIO", name, err)
		}
	}
	if _, err := s.Stats(); err != nil {
		t.Errorf("stats of a dead socket: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestSocketStatistics(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	s, pool := mustOpen(t, p, r, rings.SocketOptions{RXSize: 4}), newPool(r)
	p.Redirect(t, map[uint32]int{0: s.FD()})
	peer := p.Packet(t)
	counts := func(what string, counter func(rings.Stats) uint64) {
		t.Helper()
		vethtest.Until(t, what, func() bool {
			peer.Send(vethtest.Frame(0, 64))
			st, err := s.Stats()
			if err != nil {
				t.Fatal(err)
			}
			return counter(st) > 0
		})
	}
	counts("fill ring empty", func(st rings.Stats) uint64 { return st.RxFillRingEmpty })
	counts("dropped", func(st rings.Stats) uint64 { return st.RxDropped })
	fill(t, s.Port(), pool, 64)
	counts("RX ring full", func(st rings.Stats) uint64 { return st.RxRingFull })

	idx, _ := s.Port().TX.Reserve(1)
	*s.Port().TX.Slot(idx) = rings.Desc{Addr: uint64(len(r.Mem())), Len: 60}
	s.Port().TX.Submit(1)
	send(t, s.Port(), pool, 7, 1, 60)
	kick(t, s.Port())
	if got, want := peer.Receive(), vethtest.Frame(7, 60); !bytes.Equal(got, want) {
		t.Fatalf("behind a bad descriptor comes %x, want %x", got, want)
	}
	if err := s.Kick(); err != nil {
		t.Fatal(err)
	}
	st, err := s.Stats()
	if err != nil || st.TxInvalidDescs != 1 || st.TxRingEmptyDescs == 0 {
		t.Fatalf("stats %+v, %v; want one invalid TX descriptor, and the ring found empty", st, err)
	}
}

// dropCapability takes one capability from the calling thread, which must be
// one that ends soon.
func dropCapability(which int) error {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&hdr, &data[0]); err != nil {
		return err
	}
	data[which/32].Effective &^= 1 << (which % 32)
	return unix.Capset(&hdr, &data[0])
}

func TestSocketWithoutCapabilities(t *testing.T) {
	p := vethtest.New(t, 1)
	for _, c := range []struct {
		capability int
		frames     int
		errno      error
		words      string
	}{
		{unix.CAP_NET_RAW, 4, unix.EPERM, "open an AF_XDP socket on interface v0 queue 0: CAP_NET_RAW is needed"},
		{unix.CAP_IPC_LOCK, 4 << 10, unix.ENOBUFS, "8192 KiB of frames and the rings; the limit is 4096 KiB: raise RLIMIT_MEMLOCK"},
	} {
		r, err := umem.New(umem.Options{Frames: c.frames, ChunkSize: 2048})
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		err = p.Do(func() error {
			if err := dropCapability(c.capability); err != nil {
				return err
			}
			s, err := rings.OpenSocket(r, rings.SocketOptions{Interface: vethtest.Dev, Ifindex: p.Ifindex})
			if err == nil {
				s.Close()
			}
			return err
		})
		if !errors.Is(err, c.errno) || !strings.Contains(err.Error(), c.words) {
			t.Errorf("without capability %d: %v, want %v and %q", c.capability, err, c.errno, c.words)
		}
	}
}

// TestMain lowers the limit on locked memory to what TestSocketWithoutCapabilities
// expects; the other tests have CAP_IPC_LOCK and do not notice.
func TestMain(m *testing.M) {
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &lim); err == nil && lim.Cur > 4<<20 {
		lim.Cur = 4 << 20
		unix.Setrlimit(unix.RLIMIT_MEMLOCK, &lim)
	}
	os.Exit(m.Run())
}
