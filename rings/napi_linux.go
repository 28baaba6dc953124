package rings

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// NAPI runs the NAPI of a receive queue, the kernel's poll function of the driver (Documentation/networking/napi.rst),
// from user space. An AF_XDP socket in copy mode cannot on veth: net/xdp/xsk.c does not learn the NAPI's id there. A UDP
// socket does, with the first datagram that comes to it through the queue: Hear waits for that. From then on a
// non-blocking recv on it is one round of the poll function (net/ipv4/udp.c, sk_busy_loop).
//
// While Drive is on, nobody else runs the NAPI: senders on the other end of a veth only queue their packets. Poll must
// then be called, or reception waits for DriveTimeout each time.
//
// Hear, Poll and Drive are for one goroutine at a time.
type NAPI struct {
	fd      int
	where   string
	port    uint16
	netdev  netdev
	id      uint32
	was     NAPISettings
	driving bool
}

// NAPISettings are what the kernel lets one change about one NAPI (netdev netlink, napi-set, since Linux 6.13).
type NAPISettings struct {
	DeferHardIRQs     uint32 `json:"defer_hard_irqs"`      // rounds without a packet after which interrupts are on again
	GROFlushTimeoutNS uint64 `json:"gro_flush_timeout_ns"` // then the kernel runs the NAPI itself
	// IRQSuspendTimeoutNS is how long interrupts stay off after an epoll_wait that busy-polls found events (Linux 6.13).
	IRQSuspendTimeoutNS uint64 `json:"irq_suspend_timeout_ns,omitempty"`
	Threaded            uint32 `json:"threaded,omitempty"` // 1: a kernel thread runs it, instead of the softirq (Linux 6.17)
}

// DriveTimeout is how long reception waits when a NAPI is driven and Poll is not called. It is longer than a timer tick of
// any kernel: a shorter timer would have to be programmed anew in every round.
const DriveTimeout = 20 * time.Millisecond

// String names them as netlink does.
func (s NAPISettings) String() string {
	text := fmt.Sprintf("defer-hard-irqs %d, gro-flush-timeout %d ns, irq-suspend-timeout %d ns", s.DeferHardIRQs, s.GROFlushTimeoutNS, s.IRQSuspendTimeoutNS)
	if s.Threaded != 0 {
		text += ", threaded"
	}
	return text
}

// Driven are the settings of a NAPI that is driven and had these: senders, the device's interrupts and the kernel leave it
// alone until the timeout.
func (s NAPISettings) Driven() NAPISettings {
	s.DeferHardIRQs, s.GROFlushTimeoutNS = drivenRounds, uint64(DriveTimeout)
	return s
}

const drivenRounds = 2

// Rounds of the poll function take as many packets as the kernel's own; any time above 0 makes recv do one.
const (
	pollBudget   = 64
	givingBudget = 8192 // a millisecond, if all are there; veth queues 256
	pollUS       = 20
)

// OpenNAPI makes the socket, in the network namespace of the calling thread. It needs CAP_NET_ADMIN and Linux 6.13.
func OpenNAPI(iface string) (*NAPI, error) {
	n := &NAPI{fd: -1, where: iface}
	fail := func(what string, err error) (*NAPI, error) {
		return nil, errors.Join(fmt.Errorf("rings: %s to run the NAPI of %s: %w", what, iface, err), n.Close())
	}
	var err error
	if n.netdev, err = openNetdev(); err != nil {
		return fail("ask for the netdev family (Linux 6.13 has what is needed)", err)
	}
	if n.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0); err != nil {
		return fail("open a UDP socket", err)
	}
	if err := unix.BindToDevice(n.fd, iface); err != nil {
		return fail("bind a UDP socket", err)
	}
	if err := unix.Bind(n.fd, &unix.SockaddrInet4{}); err != nil {
		return fail("bind a UDP socket", err)
	}
	addr, err := unix.Getsockname(n.fd)
	if err != nil {
		return fail("bind a UDP socket", err)
	}
	n.port = uint16(addr.(*unix.SockaddrInet4).Port)
	for _, o := range []struct{ opt, value int }{{unix.SO_BUSY_POLL, pollUS}, {unix.SO_BUSY_POLL_BUDGET, pollBudget}} {
		if err := unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, o.opt, o.value); err != nil {
			return fail("set busy polling (CAP_NET_ADMIN is needed)", err)
		}
	}
	return n, nil
}

// Port is the UDP port at which Hear hears.
func (n *NAPI) Port() uint16 { return n.port }

// Hear takes a datagram and learns from it whose NAPI this is. ok is false when there is none, or when it came by a way
// that has no NAPI. source is the port it was sent from.
func (n *NAPI) Hear() (source uint16, ok bool) {
	var b [64]byte
	_, from, err := unix.Recvfrom(n.fd, b[:], unix.MSG_DONTWAIT)
	if err != nil {
		return 0, false
	}
	id, err := unix.GetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_INCOMING_NAPI_ID)
	sender, inet := from.(*unix.SockaddrInet4)
	if err != nil || id == 0 || !inet {
		return 0, false
	}
	// From here on it hears nothing: whoever sent to it would keep Poll busy.
	deaf := []unix.SockFilter{{Code: unix.BPF_RET | unix.BPF_K}}
	err = unix.SetsockoptSockFprog(n.fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &deaf[0]})
	if err != nil {
		return 0, false
	}
	n.id = uint32(id)
	return uint16(sender.Port), true
}

// Settings asks for the settings of the NAPI, which Drive will have them be again at the end.
func (n *NAPI) Settings() (NAPISettings, error) {
	s, _, err := n.netdev.get(n.id)
	if err != nil {
		return s, fmt.Errorf("rings: read the settings of NAPI %d of %s: %w", n.id, n.where, err)
	}
	n.was = s
	return s, nil
}

// ID is the NAPI's, as netlink has it; 0 before Hear was ok.
func (n *NAPI) ID() uint32 { return n.id }

// Poll runs one round, which takes 64 packets at most to where the XDP program sends them. It never blocks.
func (n *NAPI) Poll() {
	_, _, _ = unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(n.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
}

// budget is how many packets a round takes.
func (n *NAPI) budget(packets int) error {
	return unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_BUSY_POLL_BUDGET, packets)
}

// Drive takes the NAPI from the kernel, or gives it back: as it was, and with what came in meanwhile on its way. Settings
// that somebody else changed stay as they are; then the NAPI is not taken. An error means that it is the kernel's.
func (n *NAPI) Drive(on bool) error {
	if on == n.driving {
		return nil
	}
	from, to, prefer := n.was.Driven(), n.was, 0
	if on {
		from, to, prefer = to, from, 1
	}
	changed, err := n.netdev.change(n.id, from, to)
	if err == nil && !changed && on {
		err = errors.New("somebody changed its settings")
	}
	if !on && errors.Is(err, unix.ENOENT) {
		err = nil // it went away, with the XDP program or when the link went down
	}
	if err == nil || !on {
		err = errors.Join(err, unix.SetsockoptInt(n.fd, unix.SOL_SOCKET, unix.SO_PREFER_BUSY_POLL, prefer))
	}
	if !on {
		// A round that finds less than its budget, and may complete, lets senders run the NAPI again (veth_poll:
		// rx_notify_masked). The first ones may only count down what was deferred. One that finds a full budget would have
		// it run from now on in the softirq of this CPU (net/core/dev.c, __busy_poll_stop), which under a flood never ends
		// and leaves nothing for the engine. So the budget is one in which any sender pauses once.
		err = errors.Join(err, n.budget(givingBudget))
		for range drivenRounds + 2 {
			n.Poll()
		}
		err = errors.Join(err, n.budget(pollBudget))
	}
	n.driving = on && err == nil
	if err != nil {
		return fmt.Errorf("rings: change who runs NAPI %d of %s: %w", n.id, n.where, err)
	}
	return nil
}

// Close gives the NAPI back and closes the socket.
func (n *NAPI) Close() error {
	err := n.Drive(false)
	if n.fd >= 0 {
		err = errors.Join(err, unix.Close(n.fd))
	}
	err = errors.Join(err, n.netdev.close())
	n.fd = -1
	return err
}

// RestoreNAPI has a NAPI's settings be what they were, if they still are what they were changed to and it is still the
// interface's. It looks in the network namespace of the calling thread; a NAPI that is not there any more is no error.
func RestoreNAPI(ifindex int, id uint32, is, was NAPISettings) (changed bool, err error) {
	nd, err := openNetdev()
	if err == nil {
		defer nd.close()
		var owner int
		if _, owner, err = nd.get(id); err == nil && owner == ifindex {
			changed, err = nd.change(id, is, was)
		}
	}
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return false, fmt.Errorf("rings: restore NAPI %d of interface number %d: %w", id, ifindex, err)
	}
	return changed, nil
}
