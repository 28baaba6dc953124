// Package vethtest makes a veth pair between two throw-away network namespaces
// for the tests of rings: AF_XDP at one end, AF_PACKET at the other. The
// namespaces have no names; they go when their last file descriptor does, so a
// crash leaves nothing behind. It needs root.
package vethtest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// EtherType of the test frames: local experimental 1 (IEEE 802).
const EtherType = 0x88b5

// Dev and PeerDev are the names of the two ends.
const (
	Dev     = "v0"
	PeerDev = "p0"
)

// Timeout ends a test that waits for something that does not come.
const Timeout = 20 * time.Second

// Pair is the veth pair. Dev is in one namespace, PeerDev in another.
type Pair struct {
	Ifindex, PeerIfindex int
	engine, peer         netns.NsHandle
}

// New makes a pair with the given number of queues at both ends, both up.
func New(t testing.TB, queues int) *Pair {
	t.Helper()
	p := &Pair{engine: netns.None(), peer: netns.None()}
	t.Cleanup(func() {
		p.engine.Close()
		p.peer.Close()
	})
	err := onThread(func() (err error) {
		if p.peer, err = netns.New(); err != nil {
			return fmt.Errorf("make a network namespace (the tests of rings need root): %w", err)
		}
		quiet()
		p.engine, err = netns.New()
		quiet()
		return err
	})
	if err == nil {
		err = p.Do(func() error { return p.addLinks(queues) })
	}
	if err == nil {
		err = p.DoPeer(func() error {
			p.PeerIfindex, err = setUp(PeerDev)
			return err
		})
	}
	if err != nil {
		t.Fatalf("veth pair: %v", err)
	}
	return p
}

// OnNIC is an interface of this namespace for Redirect; it has no other end.
func OnNIC(ifindex int) *Pair {
	return &Pair{Ifindex: ifindex, engine: netns.None(), peer: netns.None()}
}

// quiet keeps the namespace's IPv6 from sending frames of its own. A kernel
// without IPv6 has no such file, and no such frames.
func quiet() {
	for _, which := range []string{"all", "default"} {
		os.WriteFile("/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", []byte("1"), 0)
	}
}

func (p *Pair) addLinks(queues int) (err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.NumTxQueues, attrs.NumRxQueues = Dev, queues, queues
	if err := netlink.LinkAdd(&netlink.Veth{
		LinkAttrs: attrs, PeerName: PeerDev, PeerNamespace: netlink.NsFd(p.peer),
		PeerNumTxQueues: uint32(queues), PeerNumRxQueues: uint32(queues),
	}); err != nil {
		return err
	}
	p.Ifindex, err = setUp(Dev)
	return err
}

func setUp(name string) (int, error) {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	return l.Attrs().Index, netlink.LinkSetUp(l)
}

// onThread runs f on an OS thread that ends with it, whatever namespace f left
// it in.
func onThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		done <- f()
	}()
	return <-done
}

func in(ns netns.NsHandle, f func() error) error {
	return onThread(func() error {
		if !ns.IsOpen() {
			return f()
		}
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

// Do runs f in the namespace of Dev.
func (p *Pair) Do(f func() error) error { return in(p.engine, f) }

// DoPeer runs f in the namespace of PeerDev.
func (p *Pair) DoPeer(f func() error) error { return in(p.peer, f) }

// Delete deletes the interface under whatever is open on it.
func (p *Pair) Delete(t testing.TB) {
	t.Helper()
	err := p.Do(func() error {
		l, err := netlink.LinkByName(Dev)
		if err != nil {
			return err
		}
		return netlink.LinkDel(l)
	})
	if err != nil {
		t.Fatalf("delete %s: %v", Dev, err)
	}
}

// Redirect attaches, in native mode, an XDP program that sends what arrives at
// queue i to socket fds[i], and the rest to the kernel. The map it gives is the
// XSKMAP, for other sockets later.
func (p *Pair) Redirect(t testing.TB, fds map[uint32]int) *ebpf.Map {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.XSKMap, KeySize: 4, ValueSize: 4, MaxEntries: 64})
	if err != nil {
		t.Fatalf("xskmap: %v", err)
	}
	t.Cleanup(func() { m.Close() })
	for queue, fd := range fds {
		if err := m.Put(queue, uint32(fd)); err != nil {
			t.Fatalf("xskmap, queue %d: %v", queue, err)
		}
	}
	const rxQueueIndex, xdpPass = 16, 2 // struct xdp_md, enum xdp_action
	prog, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.LoadMem(asm.R2, asm.R1, rxQueueIndex, asm.Word),
		asm.LoadMapPtr(asm.R1, m.FD()),
		asm.Mov.Imm(asm.R3, xdpPass),
		asm.FnRedirectMap.Call(),
		asm.Return(),
	}})
	if err != nil {
		t.Fatalf("redirect program: %v", err)
	}
	t.Cleanup(func() { prog.Close() })
	var l link.Link
	err = p.Do(func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: prog, Interface: p.Ifindex, Flags: link.XDPDriverMode})
		return err
	})
	if err != nil {
		t.Fatalf("attach redirect program: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return m
}

// Packet is an AF_PACKET socket on PeerDev.
type Packet struct {
	t           testing.TB
	fd, ifindex int
}

// Packet opens one for frames of EtherType.
func (p *Pair) Packet(t testing.TB) *Packet {
	t.Helper()
	s := &Packet{t: t, fd: -1, ifindex: p.PeerIfindex}
	err := p.DoPeer(func() (err error) {
		s.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		tv := unix.NsecToTimeval(int64(Timeout))
		return errors.Join(
			unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 8<<20),
			unix.SetsockoptTimeval(s.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv),
			unix.Bind(s.fd, &unix.SockaddrLinklayer{Protocol: bigEndian(EtherType), Ifindex: p.PeerIfindex}))
	})
	t.Cleanup(func() { unix.Close(s.fd) })
	if err != nil {
		t.Fatalf("packet socket: %v", err)
	}
	return s
}

func bigEndian(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}

// Send sends a frame into the pair.
func (s *Packet) Send(frame []byte) {
	s.t.Helper()
	// The protocol lets the kernel find the flow, and by that choose a queue.
	to := &unix.SockaddrLinklayer{Protocol: bigEndian(binary.BigEndian.Uint16(frame[12:])), Ifindex: s.ifindex}
	if err := unix.Sendto(s.fd, frame, 0, to); err != nil {
		s.t.Fatalf("send to %s: %v", PeerDev, err)
	}
}

// Receive waits for the next frame out of the pair.
func (s *Packet) Receive() []byte {
	s.t.Helper()
	buf := make([]byte, 4096)
	for {
		n, err := unix.Read(s.fd, buf)
		if err == nil {
			return buf[:n]
		}
		if !errors.Is(err, unix.EINTR) {
			s.t.Fatalf("receive from %s: %v", PeerDev, err)
		}
	}
}

// Frame is a test frame of the given length, at least 18; the bytes behind the
// header come from number.
func Frame(number uint32, length int) []byte {
	b := make([]byte, length)
	copy(b, []byte{2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1})
	binary.BigEndian.PutUint16(b[12:], EtherType)
	binary.BigEndian.PutUint32(b[14:], number)
	for i := 18; i < length; i++ {
		b[i] = byte(number + uint32(i)*7)
	}
	return b
}

// UDPFrame is a frame with an IPv4 header and a UDP header from port.
func UDPFrame(port uint16) []byte {
	b := Frame(0, 64)
	copy(b[12:], []byte{
		8, 0, // IPv4
		0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2,
		byte(port >> 8), byte(port), 0, 9, 0, 30, 0, 0,
	})
	return b
}

// Until calls step until it says true.
func Until(t testing.TB, what string, step func() bool) {
	t.Helper()
	for deadline := time.Now().Add(Timeout); !step(); runtime.Gosched() {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}
