package xdpd_test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/rings"
)

// TestClientPortsOfOthers: where each queue has a Host of its own, a port that a user has on one is not to be had by another on the next,
// who would receive what the device spreads there; the same user may have it on all.
func TestClientPortsOfOthers(t *testing.T) {
	lab, stack := engine(t, netlab.Options{Queues: 2})
	all := []xdpd.PortRange{{First: 1, Last: 65535}}
	_, path := policed(t, stack,
		xdpd.ClientPolicy{Name: "us", Users: []uint32{uint32(os.Getuid())}, Bind: all},
		xdpd.ClientPolicy{Name: "they", Users: []uint32{otherUser}, Bind: all})
	ours, ours2 := startChild(t, 0, path, "sockets 0"), startChild(t, 0, path, "sockets 1")
	theirs := startChild(t, otherUser, path, "sockets 1")
	any := netip.AddrPortFrom(netip.IPv4Unspecified(), 4000).String()
	ourAddr := netip.AddrPortFrom(lab.EngineAddr, 4000).String()
	for _, kind := range []string{"udp", "tcp"} {
		fd := ours.ask("%s %s", kind, any)
		if fd[0] == 'E' {
			t.Fatal(fd)
		}
		for _, address := range []string{any, ourAddr} {
			if got := theirs.ask("%s %s", kind, address); got != "EADDRINUSE" {
				t.Errorf("%s: another user's bind of %s on another queue: %s", kind, address, got)
			}
		}
		again := ours2.ask("%s %s", kind, any)
		if again[0] == 'E' {
			t.Errorf("%s: the same user's bind on another queue: %s", kind, again)
		}
		ours.ask("close %s", fd)
		if got := theirs.ask("%s %s", kind, any); got != "EADDRINUSE" {
			t.Errorf("%s: with one of two closed: %s", kind, got)
		}
		ours2.ask("close %s", again)
		fd = theirs.ask("%s %s", kind, any)
		if fd[0] == 'E' {
			t.Errorf("%s: with both closed: %s", kind, fd)
		}
		theirs.ask("close %s", fd)
		ours.ask("%s %s", kind, any)
	}
	ours.kill() // takes its ports with it
	for _, kind := range []string{"udp", "tcp"} {
		eventually(t, kind+" port of a dead application", func() bool { return theirs.ask("%s %s", kind, any)[0] != 'E' })
	}
}

// TestClientNoDescriptors: the daemon takes no descriptors from a client, whose last close it would be that does.
func TestClientNoDescriptors(t *testing.T) {
	_, stack := engine(t, netlab.Options{})
	_, path := daemon(t, stack, nil)
	conn, err := dialDaemon(path)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer read.Close()
	_, _, err = conn.WriteMsgUnix(make([]byte, 41), unix.UnixRights(int(write.Fd())), nil)
	write.Close()
	if refusesRights() != errors.Is(err, unix.EPERM) {
		t.Errorf("descriptors with a message: %v", err)
	}
	if n, err := read.Read(make([]byte, 1)); n != 0 || err == nil { // of an older kernel's daemon, when it has read the message
		t.Errorf("the pipe: %d, %v; nobody may hold its other end", n, err)
	}
}

// refusesRights says whether this kernel can refuse descriptors.
func refusesRights() bool {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	return unix.SetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0) == nil
}

// TestClientCrowd: a client that finds the daemon's queue full of others that connect waits its turn.
func TestClientCrowd(t *testing.T) {
	path := openDoor(t)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, &unix.SockaddrUnix{Name: path})
	}
	if err == nil {
		err = unix.Listen(fd, 1)
	}
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "door")
	l, err := net.FileListener(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for err == nil { // who is there already
		var c net.Conn
		if c, err = net.Dial("unixpacket", path); err == nil {
			defer c.Close()
		}
	}
	if !errors.Is(err, unix.EAGAIN) {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { _, err := xdpd.OpenRing(t.Context(), path, xdpd.RemoteConfig{}); ended <- err }()
	select {
	case err := <-ended:
		t.Fatalf("it did not wait: %v", err)
	case <-time.After(20 * time.Millisecond): // some of its tries
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	if err := <-ended; err == nil || errors.Is(err, unix.EAGAIN) {
		t.Errorf("what it heard from who turns everybody away: %v", err)
	}
}

// TestClientDoorIsCheap: what a handshake costs the engine does not grow with the sockets that there are.
func TestClientDoorIsCheap(t *testing.T) {
	_, stack := engine(t, netlab.Options{})
	_, path := daemon(t, stack, func(p *xdpd.ClientPolicy) { p.Sockets, p.Clients = 1024, 100 })
	allocated := func() uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		for range 20 {
			c, err := join(path, rings.ShareHello{SQEntries: 8, CQEntries: 8, Requests: 8, Sockets: 8, Data: 4096})
			if err != nil {
				t.Fatal(err)
			}
			c.close()
		}
		runtime.ReadMemStats(&after)
		return after.TotalAlloc - before.TotalAlloc
	}
	few := allocated()
	q, err := xdpd.OpenRing(t.Context(), path, xdpd.RemoteConfig{Sockets: 1000})
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	p := &ringProgram{q: q}
	for range 500 {
		if fd := p.socket(dgramSocket); p.bind(fd, netip.AddrPortFrom(netip.IPv4Unspecified(), 0)) != 0 {
			t.Fatal("no socket")
		}
	}
	if many := allocated(); many > 2*few {
		t.Errorf("twenty handshakes beside 500 sockets allocate %d bytes, beside none %d", many, few)
	}
}

// TestClientPlaces: policies of one name count their clients each for itself; who leaves the number of his sockets to the policy, and has
// slots, has what they leave of it; where a reactor has no more rings, or the engine ended, that is said, and no place is lost by it.
func TestClientPlaces(t *testing.T) {
	_, stack := engine(t, netlab.Options{})
	us := []uint32{uint32(os.Getuid())}
	s, path := policed(t, stack,
		xdpd.ClientPolicy{Name: "one", Users: []uint32{otherUser}, Clients: 1},
		xdpd.ClientPolicy{Name: "one", Users: us, Clients: 1, Sockets: 100})
	startChild(t, otherUser, path, "sockets 0").ask("close 0") // it is in
	h := rings.ShareHello{SQEntries: 1, CQEntries: 1, Fixed: 30}
	c, err := join(path, h)
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := s.Clients(); list[len(list)-1].Limits.Sockets != 100 {
		t.Errorf("it has %+v", list[len(list)-1].Limits)
	}
	if _, err := join(path, h); !errors.Is(err, unix.EUSERS) {
		t.Errorf("a second client of this policy: %v", err)
	}
	c.close()
	eventually(t, "it to be gone", func() bool { list, _ := s.Clients(); return len(list) == 1 })
	h.Fixed = 100
	if _, err := join(path, h); !errors.Is(err, unix.EMFILE) {
		t.Errorf("slots that leave no socket: %v", err)
	}
	var last *reactor.Ring
	for err == nil {
		var q *reactor.Ring
		q, err = stack.Ring(xdpd.RingConfig{RingConfig: reactor.RingConfig{SQEntries: 1, CQEntries: 1, Requests: 1, Sockets: 1, Messages: 1}})
		if err == nil {
			last = q
		}
	}
	if !errors.Is(err, reactor.ErrTooManyRings) {
		t.Fatal(err)
	}
	h.Fixed = 0
	if _, err := join(path, h); !errors.Is(err, unix.EUSERS) {
		t.Errorf("a client of a reactor that has as many rings as it may: %v", err)
	}
	last.Close()
	if c, err = join(path, h); err != nil {
		t.Fatal(err)
	}
	c.close()
	if err := stack.Close(); err != nil {
		t.Error(err)
	}
	if _, err := join(path, h); !errors.Is(err, unix.ESHUTDOWN) {
		t.Errorf("a client of an engine that ended: %v", err)
	}
}
