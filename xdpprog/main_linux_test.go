package xdpprog

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A test that needs a process of its own starts this binary again with childEnv saying what to do there and
// childIfindexEnv on which device; the child starts in the network namespace of the thread that forked it.
const (
	childEnv        = "XDPPROG_TEST_CHILD"
	childIfindexEnv = "XDPPROG_TEST_IFINDEX"
)

func TestMain(m *testing.M) {
	if do := os.Getenv(childEnv); do != "" {
		runtime.LockOSThread()
		child(do)
		return
	}
	os.Exit(m.Run())
}

// child loads the program and says "loaded", or the error, on standard output. "hold" then waits to be killed; "caps"
// and "nocaps" first give up all capabilities but those that Load says it needs, or all.
func child(do string) {
	switch do {
	case "caps":
		keepCaps(1<<unix.CAP_BPF | 1<<unix.CAP_NET_ADMIN)
	case "nocaps", "source-nocaps", "sink-nocaps":
		keepCaps(0)
	}
	ifindex, err := strconv.Atoi(os.Getenv(childIfindexEnv))
	if err != nil {
		panic(err)
	}
	switch do {
	case "source-nocaps":
		_, err := LoadSource(SourceConfig{Ifindex: ifindex, Frames: [][]byte{make([]byte, 60)}})
		fmt.Println(err)
		return
	case "sink-nocaps":
		_, err := LoadSink(SinkConfig{Ifindex: ifindex})
		fmt.Println(err)
		return
	}
	if do == "dispatch" {
		keepCaps(1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_SYS_ADMIN)
		holdMembership(ifindex)
		return
	}
	c := testConfig(Share, ifindex)
	c.Metadata = Stamps
	p, err := Load(c)
	if err == nil {
		err = p.NoMetadata()
	}
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("loaded")
	if do == "hold" {
		os.Stdin.Read(make([]byte, 1))
	}
	p.Close()
}

// holdMembership joins a dispatcher, says so as JSON, and waits to be killed.
func holdMembership(ifindex int) {
	var m Membership
	c := testConfig(Own, ifindex)
	c.Dispatch, c.Joins = AlwaysDispatch, func(now Membership) error { m = now; return nil }
	if _, err := Load(c); err != nil {
		fmt.Println(err)
		return
	}
	text, _ := json.Marshal(m)
	fmt.Println(string(text))
	os.Stdin.Read(make([]byte, 1))
}

func keepCaps(mask uint64) {
	hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	for i := range data {
		bits := uint32(mask >> (32 * i))
		data[i] = unix.CapUserData{Effective: bits, Permitted: bits}
	}
	if err := unix.Capset(&hdr, &data[0]); err != nil {
		panic(err)
	}
}

func needRoot(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
}

var (
	ourAddr   = netip.MustParseAddr("10.77.0.2")
	ourAddr2  = netip.MustParseAddr("10.77.0.3")
	otherAddr = netip.MustParseAddr("10.77.0.9")
	peerAddr  = netip.MustParseAddr("10.77.0.1")
)

func testConfig(s Steer, ifindex int) Config {
	return Config{Interface: "under-test", Ifindex: ifindex, Steer: s, Addrs: []netip.Addr{ourAddr, ourAddr2}, Queues: 2}
}

// newXSK opens an AF_XDP socket with an RX ring, which is all the socket map asks of it.
func newXSK(t testing.TB) int {
	t.Helper()
	fd, err := unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_XDP, unix.XDP_RX_RING, 64); err != nil {
		t.Fatal(err)
	}
	return fd
}

// enterNS moves the test's goroutine, on its own thread, to a new network namespace until the test ends. Subtests run
// in other goroutines and so elsewhere.
func enterNS(t *testing.T) {
	t.Helper()
	needRoot(t)
	runtime.LockOSThread()
	before, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	inside, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		inside.Close()
		// A thread that cannot get back stays locked, and ends with its goroutine.
		if err := netns.Set(before); err != nil {
			t.Error(err)
			return
		}
		before.Close()
		runtime.UnlockOSThread()
	})
}

// newVeth makes a veth pair in the present namespace and sets both ends up.
func newVeth(t *testing.T, mtu, queues int) (engine, peer netlink.Link) {
	t.Helper()
	// Or the kernel's router solicitations arrive, too.
	err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = "engine0", mtu
	attrs.NumRxQueues, attrs.NumTxQueues = queues, queues
	pair := netlink.NewVeth(attrs)
	pair.PeerName, pair.PeerMTU = "peer0", uint32(mtu)
	pair.PeerNumRxQueues, pair.PeerNumTxQueues = uint32(queues), uint32(queues)
	if err := netlink.LinkAdd(pair); err != nil {
		t.Fatal(err)
	}
	return setUp(t, "engine0"), setUp(t, "peer0")
}

func setUp(t *testing.T, name string) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
	return l
}

// attachedXDP asks the kernel afresh what is attached to a device.
func attachedXDP(t *testing.T, l netlink.Link) netlink.LinkXdp {
	t.Helper()
	l, err := netlink.LinkByIndex(l.Attrs().Index)
	if err != nil {
		t.Fatal(err)
	}
	if l.Attrs().Xdp == nil {
		return netlink.LinkXdp{}
	}
	return *l.Attrs().Xdp
}

func programID(t *testing.T, p *ebpf.Program) uint32 {
	t.Helper()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, ok := info.ID()
	if !ok {
		t.Fatal("the kernel does not tell the program's id")
	}
	return uint32(id)
}
