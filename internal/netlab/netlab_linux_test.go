package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func newLab(t *testing.T, o Options) *Lab {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return l
}

// inode identifies the calling thread's namespace.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(path, err)
	}
	return st.Ino
}

const ownNS = "/proc/thread-self/ns/net"

func nsInode(t *testing.T, n *NS) (ino uint64) {
	t.Helper()
	if err := n.Do(func() error { ino = inode(t, ownNS); return nil }); err != nil {
		t.Fatal(err)
	}
	return ino
}

// holders lists the descriptors and threads of this process that are in one of the namespaces.
func holders(t *testing.T, inodes ...uint64) (found []string) {
	t.Helper()
	for _, pattern := range []string{"/proc/self/fd/*", "/proc/self/task/*/ns/net"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		for _, path := range paths {
			for _, ino := range inodes {
				if link, _ := os.Readlink(path); link == fmt.Sprintf("net:[%d]", ino) {
					found = append(found, path)
				}
			}
		}
	}
	return found
}

func TestPingBetweenKernels(t *testing.T) {
	l := newLab(t, Options{KernelAddr: true})
	for _, c := range []struct {
		from *NS
		to   netip.Addr
	}{{l.Peer, l.EngineAddr}, {l.Engine, l.PeerAddr}} {
		out, err := c.from.Run(t.Context(), "ping", "-c", "1", "-W", "5", c.to.String())
		if err != nil {
			t.Error(err)
		}
		if !strings.Contains(string(out), "1 received") {
			t.Errorf("ping %s: %s", c.to, out)
		}
	}
}

// TestMiddle joins the two halves by a bridge: before that nothing gets through.
func TestMiddle(t *testing.T) {
	l := newLab(t, Options{KernelAddr: true, Middle: true})
	ping := func(within string) error {
		_, err := l.Peer.Run(t.Context(), "ping", "-c", "1", "-W", within, l.EngineAddr.String())
		return err
	}
	if ping("1") == nil {
		t.Error("a ping gets through a cut cable")
	}
	err := l.Middle.Do(func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		for _, dev := range MiddleDevs {
			link, err := netlink.LinkByName(dev)
			if err == nil {
				err = netlink.LinkSetMaster(link, bridge)
			}
			if err != nil {
				return err
			}
		}
		return netlink.LinkSetUp(bridge)
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := ping("10"); err != nil {
		t.Error(err)
	}
}

func TestEngineSideIsBare(t *testing.T) {
	l := newLab(t, Options{})
	addrs := func(n *NS, dev string) (list []netlink.Addr) {
		err := n.Do(func() error {
			link, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			if link.Attrs().OperState != netlink.OperUp {
				t.Errorf("%s is %s", dev, link.Attrs().OperState)
			}
			list, err = netlink.AddrList(link, netlink.FAMILY_ALL)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return list
	}
	if got := addrs(l.Engine, l.EngineDev); len(got) != 0 {
		t.Errorf("the engine's side has addresses: %v", got)
	}
	got := addrs(l.Peer, l.PeerDev)
	if want := l.PeerAddr.String() + "/24"; len(got) != 1 || got[0].IPNet.String() != want { // and none of IPv6
		t.Errorf("the peer's side has addresses %v, want %s", got, want)
	}
}

func TestQueuesAndMTU(t *testing.T) {
	l := newLab(t, Options{Queues: 3, MTU: 9000})
	for n, dev := range map[*NS]string{l.Engine: l.EngineDev, l.Peer: l.PeerDev} {
		err := n.Do(func() error {
			link, err := netlink.LinkByName(dev)
			if err != nil {
				return err
			}
			if mtu := link.Attrs().MTU; mtu != 9000 {
				t.Errorf("%s: MTU %d", dev, mtu)
			}
			// struct ethtool_channels: cmd, four maxima, then rx, tx, other and combined counts
			words := append([]uint32{unix.ETHTOOL_GCHANNELS}, make([]uint32, 8)...)
			if err := ethtool(dev, words); err != nil {
				return err
			}
			if rx, tx := words[5], words[6]; rx != 3 || tx != 3 {
				t.Errorf("%s: %d RX and %d TX queues", dev, rx, tx)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
}

// TestTxOffload looks at the UDP checksum of a datagram that the peer's kernel sends.
func TestTxOffload(t *testing.T) {
	for _, offload := range []bool{false, true} {
		t.Run(fmt.Sprint(offload), func(t *testing.T) {
			l := newLab(t, Options{TxOffload: offload, KernelAddr: true})
			tap := openTap(t, l.Engine, l.EngineDev)
			err := l.Peer.Do(func() error {
				c, err := net.Dial("udp", netip.AddrPortFrom(l.EngineAddr, 9).String())
				if err != nil {
					return err
				}
				defer c.Close()
				_, err = c.Write([]byte("odd"))
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			ip := tap.next(t, unix.IPPROTO_UDP)
			// RFC 768: the sum over pseudo header and datagram, checksum included, is all ones.
			sum := func(b []byte) (s uint32) {
				for ; len(b) > 1; b = b[2:] {
					s += uint32(b[0])<<8 | uint32(b[1])
				}
				if len(b) == 1 {
					s += uint32(b[0]) << 8
				}
				return s
			}
			udp := ip[20:31]
			s := sum(ip[12:20]) + unix.IPPROTO_UDP + uint32(len(udp)) + sum(udp)
			for s > 0xffff {
				s = s>>16 + s&0xffff
			}
			if complete := s == 0xffff; complete == offload {
				t.Errorf("offload %v: checksum complete %v", offload, complete)
			}
		})
	}
}

func TestStatistics(t *testing.T) {
	l := newLab(t, Options{Queues: 2})
	var peer netlink.Link
	if err := l.Peer.Do(func() (err error) {
		peer, err = netlink.LinkByName(l.PeerDev)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	st, err := l.Engine.Statistics(l.EngineDev)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := st["peer_ifindex"], uint64(peer.Attrs().Index); got != want {
		t.Errorf("peer_ifindex %d, want %d, of %v", got, want, st)
	}
	if _, ok := st["tx_queue_1_xdp_xmit_errors"]; !ok { // the last one
		t.Errorf("counters are missing: %v", st)
	}
	if _, err := l.Engine.Statistics("nowhere"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("a device that is not there: %v", err)
	}
}

type tap int

func openTap(t *testing.T, n *NS, dev string) tap {
	t.Helper()
	const protocols = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // network order
	fd := -1
	err := n.Do(func() (err error) {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocols); err != nil {
			return err
		}
		if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: protocols, Ifindex: link.Attrs().Index})
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return tap(fd)
}

// next returns the next IPv4 packet of a protocol that comes in.
func (f tap) next(t *testing.T, protocol byte) []byte {
	t.Helper()
	frame := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(int(f), frame, 0)
		if err == unix.EINTR { // a signal of the runtime's, which SO_RCVTIMEO does not let restart the call
			continue
		}
		if err != nil {
			t.Fatal("no packet came: ", err)
		}
		incoming := from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING
		if incoming && n > 34 && frame[12] == 8 && frame[13] == 0 && frame[23] == protocol {
			return frame[14:n]
		}
	}
}

// TestVLAN holds on a kernel with 802.1Q and on one without.
func TestVLAN(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	l, err := New(Options{VLANs: []uint16{100, 200}, KernelAddr: true})
	if errors.Is(err, ErrNoVLAN) {
		if _, err := os.Stat("/proc/net/vlan"); err == nil {
			t.Error("ErrNoVLAN from a kernel that has 802.1Q")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, v := range l.VLANs {
		if out, err := l.Peer.Run(t.Context(), "ping", "-c", "1", "-W", "5", v.EngineAddr.String()); err != nil {
			t.Errorf("VLAN %d: %v: %s", v.ID, err, out)
		}
	}
}

func TestDoIsolates(t *testing.T) {
	l := newLab(t, Options{})
	home, engine, peer := inode(t, ownNS), nsInode(t, l.Engine), nsInode(t, l.Peer)
	if home == engine || home == peer || engine == peer {
		t.Fatalf("namespaces home %d, engine %d, peer %d are not three", home, engine, peer)
	}
	if got := inode(t, l.Engine.Path()); got != engine {
		t.Errorf("Path leads to %d, not %d", got, engine)
	}
	oops := errors.New("oops")
	err := l.Engine.Do(func() error {
		if err := l.Peer.Do(func() error { return oops }); !errors.Is(err, oops) {
			t.Errorf("inner Do returns %v", err)
		}
		if got := inode(t, ownNS); got != engine {
			t.Errorf("after an inner Do the thread is in %d, not %d", got, engine)
		}
		return oops
	})
	if !errors.Is(err, oops) {
		t.Errorf("Do returns %v", err)
	}
	// A goroutine that ends within f (t.FailNow) must not leave a thread of the pool behind in there.
	ended := make(chan uint64)
	go func() {
		runtime.LockOSThread() // to look at the very thread, afterwards
		defer func() { ended <- inode(t, ownNS) }()
		_ = l.Engine.Do(func() error { runtime.Goexit(); return nil })
	}()
	if got := <-ended; got != home {
		t.Errorf("the thread came back to %d, not %d", got, home)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if left := holders(t, engine, peer); len(left) != 0 {
		t.Errorf("after Close these are still inside: %v", left)
	}
	if err := l.Engine.Do(func() error { return nil }); !errors.Is(err, os.ErrClosed) {
		t.Errorf("Do after Close: %v", err)
	}
}

func TestCloseRemovesPair(t *testing.T) {
	l := newLab(t, Options{})
	// A descriptor of our own keeps the namespace after Close: what is still in it shows.
	kept, err := os.Open(l.Engine.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	links := func() (names []string) {
		err := onLockedThread(func() error {
			if err := unix.Setns(int(kept.Fd()), unix.CLONE_NEWNET); err != nil {
				return err
			}
			list, err := netlink.LinkList()
			for _, link := range list {
				names = append(names, link.Attrs().Name)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		return names
	}
	if got := fmt.Sprint(links()); got != "[lo xa0]" {
		t.Fatalf("before Close: %s", got)
	}
	for range 2 { // the second Close does nothing
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if got := fmt.Sprint(links()); got != "[lo]" {
		t.Errorf("after Close: %s", got)
	}
}

func TestNamedAndLeftovers(t *testing.T) {
	name := fmt.Sprintf("netlabtest%d", os.Getpid())
	old := newLab(t, Options{Name: name})
	if want := "/run/netns/" + name + "-a"; old.Engine.Path() != want {
		t.Errorf("Path %s, want %s", old.Engine.Path(), want)
	}
	if out, err := exec.Command("ip", "netns", "exec", name+"-b", "ip", "link", "show", "xb0").CombinedOutput(); err != nil {
		t.Errorf("ip netns does not find it: %v: %s", err, out)
	}
	before := nsInode(t, old.Engine)
	// A name without a namespace is what a run leaves that dies in the middle.
	half := "/run/netns/" + name + "half-a"
	if err := os.WriteFile(half, nil, 0o444); err != nil {
		t.Fatal(err)
	}
	newLab(t, Options{Name: name + "half"})

	l := newLab(t, Options{Name: name, KernelAddr: true})
	if after := nsInode(t, l.Engine); after == before {
		t.Error("the earlier namespace is still there")
	}
	if err := old.Engine.Do(func() error { _, err := net.InterfaceByName("xa0"); return err }); err == nil {
		t.Error("the earlier pair is still there")
	}
	if _, err := l.Peer.Run(t.Context(), "ping", "-c", "1", "-W", "5", l.EngineAddr.String()); err != nil {
		t.Error(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if left, _ := filepath.Glob("/run/netns/" + name + "-*"); len(left) != 0 {
		t.Errorf("after Close: %v", left)
	}
}

func TestRun(t *testing.T) {
	l := newLab(t, Options{})
	out, err := l.Peer.Run(t.Context(), "readlink", "/proc/self/ns/net")
	if want := fmt.Sprintf("net:[%d]\n", nsInode(t, l.Peer)); err != nil || string(out) != want {
		t.Errorf("ran in %q (%v), want %q", out, err, want)
	}
	if out, err = l.Peer.Run(t.Context(), "sh", "-c", "echo why >&2; exit 3"); err == nil || !strings.Contains(err.Error(), "why") {
		t.Errorf("a failure: output %q, error %v", out, err)
	}
	if _, err = l.Peer.Run(t.Context(), "/nonexistent"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a missing program: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	fifo, done := filepath.Join(t.TempDir(), "runs"), make(chan error, 1)
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := l.Peer.Run(ctx, "sh", "-c", "echo yes >"+fifo+"; exec sleep 1000")
		done <- err
	}()
	if _, err := os.ReadFile(fifo); err != nil { // waits for the child to write
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestStart checks that the child ends only by our signal: if its forking thread went back to the runtime, it would be
// among those that end here, and Pdeathsig would kill the child.
func TestStart(t *testing.T) {
	l := newLab(t, Options{})
	cmd := exec.Command("cat")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Peer.Start(cmd); err != nil {
		t.Fatal(err)
	}
	var locked, ended sync.WaitGroup
	all := make(chan struct{})
	for range 64 { // more than there are idle threads
		locked.Add(1)
		ended.Go(func() {
			runtime.LockOSThread() // for ever: the thread ends with the goroutine
			locked.Done()
			<-all
		})
	}
	locked.Wait()
	close(all)
	ended.Wait()
	for i := range 20 {
		word := make([]byte, 1)
		if _, err := in.Write([]byte{byte(i)}); err != nil {
			t.Fatal(err)
		}
		if _, err := out.Read(word); err != nil || word[0] != byte(i) {
			t.Fatalf("echo %v of %d: %v", word, i, err)
		}
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGTERM {
		t.Errorf("ended by %v", err)
	}
}

// TestCrashLeavesNothing kills a process that has a lab and a child in it.
func TestCrashLeavesNothing(t *testing.T) {
	if os.Getenv("NETLAB_CRASH") != "" {
		crash(t)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	self := exec.Command(os.Args[0], "-test.run=^TestCrashLeavesNothing$")
	self.Env = append(os.Environ(), "NETLAB_CRASH=1")
	out, err := self.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Start(); err != nil {
		t.Fatal(err)
	}
	defer self.Process.Kill()
	var pid int
	if _, err := fmt.Fscan(out, &pid); err != nil {
		t.Fatal("the process with the lab says nothing: ", err)
	}
	child, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(child)
	if err := self.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = self.Wait() // says that it was killed
	if n, err := unix.Poll([]unix.PollFd{{Fd: int32(child), Events: unix.POLLIN}}, 10_000); n != 1 {
		t.Errorf("the child outlived the process that started it (%v)", err)
	}
}

func crash(t *testing.T) {
	l, err := New(Options{})
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "1000")
	if err := l.Peer.Start(cmd); err != nil {
		t.Fatal(err)
	}
	fmt.Println(cmd.Process.Pid)
	select {}
}

func TestBadOptions(t *testing.T) {
	for _, o := range []Options{
		{Queues: -1}, {Queues: 5000}, {MTU: 60}, {MTU: 70000}, {VLANs: []uint16{0}}, {VLANs: []uint16{4095}}, {Name: "a/b"},
	} {
		if l, err := New(o); err == nil {
			l.Close()
			t.Errorf("%+v is accepted", o)
		} else if strings.Contains(err.Error(), "root") {
			t.Errorf("%+v: not what is wrong: %v", o, err)
		}
	}
}
