package reactor_test

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/sockets"
)

// kernelTwin runs scripts over Linux's sockets on a loopback of its own. All of it happens on one thread, bound to one
// CPU: the loopback's backlog is then a queue in which a datagram to oneself marks a place.
type kernelTwin struct {
	eps     [equivEps]int
	socks   [equivSocks]int // of A; -1: none
	peers   [equivSocks]int // of B
	lis     int             // B's listener
	barrier int
	buf     [64 << 10]byte
	events  [64]unix.EpollEvent
}

var (
	kernelA = [4]byte{127, 0, 0, 1}
	kernelB = [4]byte{127, 0, 0, 2}
)

// inKernelTwin calls f on a thread in a namespace with nothing but a loopback.
func inKernelTwin(t *testing.T, f func(twin)) {
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	err = lab.Peer.Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := errors.Join(netlink.LinkSetMTU(lo, 1500), netlink.LinkSetUp(lo)); err != nil {
			return err
		}
		var old unix.CPUSet
		if err := unix.SchedGetaffinity(0, &old); err != nil {
			return err
		}
		defer unix.SchedSetaffinity(0, &old)
		var one unix.CPUSet
		for cpu := range 1024 {
			if old.IsSet(cpu) {
				one.Zero()
				one.Set(cpu)
			}
		}
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return err
		}
		w := &kernelTwin{}
		w.barrier = w.socket(unix.SOCK_DGRAM)
		w.bind(w.barrier, kernelA)
		must(unix.Connect(w.barrier, address(kernelA, localPort(w.barrier))))
		defer unix.Close(w.barrier)
		f(w)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func address(ip [4]byte, port int) unix.Sockaddr { return &unix.SockaddrInet4{Addr: ip, Port: port} }

func localPort(fd int) int {
	name, err := unix.Getsockname(fd)
	must(err)
	return name.(*unix.SockaddrInet4).Port
}

func (w *kernelTwin) socket(typ int) int {
	fd, err := unix.Socket(unix.AF_INET, typ|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	must(err)
	return fd
}

func (w *kernelTwin) bind(fd int, ip [4]byte) { must(unix.Bind(fd, address(ip, 0))) }

// tcp makes a socket whose buffers are fixed: the sender's many times the receiver's.
func (w *kernelTwin) tcp() int {
	fd := w.socket(unix.SOCK_STREAM)
	must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 512<<10))
	must(unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 32<<10))
	return fd
}

func (w *kernelTwin) listener(ip [4]byte) int {
	fd := w.tcp()
	w.bind(fd, ip)
	must(unix.Listen(fd, 64))
	return fd
}

func (w *kernelTwin) begin() (err error) {
	defer func() {
		if e := recover(); e != nil {
			err = fmt.Errorf("Linux: %v", e)
		}
	}()
	for i := range w.socks {
		w.socks[i], w.peers[i] = -1, -1
	}
	for i := range w.eps {
		w.eps[i], err = unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		must(err)
	}
	w.socks[listenerID], w.lis = w.listener(kernelA), w.listener(kernelB)
	for id := udpFree; id < firstTCP; id++ {
		w.peers[id] = w.socket(unix.SOCK_DGRAM)
		w.bind(w.peers[id], kernelB)
		w.openUDP(id)
	}
	return nil
}

// openUDP: the dead port is one of TCP alone.
func (w *kernelTwin) openUDP(id int) {
	w.socks[id] = w.socket(unix.SOCK_DGRAM)
	w.bind(w.socks[id], kernelA)
	switch id {
	case udpLive:
		must(unix.Connect(w.socks[id], address(kernelB, localPort(w.peers[id]))))
	case udpDead:
		must(unix.Connect(w.socks[id], address([4]byte{127, 0, 0, 3}, 9)))
	}
}

// end closes all, with resets so that nothing stays in TIME-WAIT.
func (w *kernelTwin) end() {
	for _, fd := range append(append(w.eps[:], w.lis), append(w.socks[:], w.peers[:]...)...) {
		if fd >= 0 {
			_ = w.reset(fd) // not all are of TCP
		}
	}
}

func (w *kernelTwin) reset(fd int) error {
	_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	return unix.Close(fd)
}

func (w *kernelTwin) wait(ep, maxEvents int) (out []reported) {
	n, err := unix.EpollWait(w.eps[ep], w.events[:maxEvents], 0)
	must(err)
	for _, e := range w.events[:n] {
		out = append(out, reported{sockets.Ready(e.Events), uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32})
	}
	return out
}

// settle pushes out the ACKs that both ends of a connection delay, and waits until the loopback has handled all that this
// set off: a datagram to oneself comes behind everything that is queued, and another behind the answers to that.
func (w *kernelTwin) settle(id int) {
	for range 3 {
		if id >= firstTCP {
			for _, fd := range []int{w.socks[id], w.peers[id]} {
				if fd >= 0 {
					_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) // it may be closed
				}
			}
		}
		_, err := unix.Write(w.barrier, w.buf[:1])
		must(err)
		for err = unix.EAGAIN; err == unix.EAGAIN; {
			_, err = unix.Read(w.barrier, w.buf[:1])
		}
		must(err)
	}
}

func (w *kernelTwin) step(o op) syscall.Errno {
	err := w.do(o)
	if o.do != "add" && o.do != "mod" && o.do != "del" {
		w.settle(o.id)
	}
	errno, _ := err.(syscall.Errno)
	return errno
}

func (w *kernelTwin) ctl(o op, ctl int) error {
	e := unix.EpollEvent{Events: uint32(o.mask), Fd: int32(uint32(o.data)), Pad: int32(uint32(o.data >> 32))}
	return unix.EpollCtl(w.eps[o.ep], ctl, w.socks[o.id], &e)
}

func (w *kernelTwin) do(o op) (err error) {
	switch o.do {
	case "add":
		return w.ctl(o, unix.EPOLL_CTL_ADD)
	case "mod":
		return w.ctl(o, unix.EPOLL_CTL_MOD)
	case "del":
		return w.ctl(o, unix.EPOLL_CTL_DEL)
	case "connect", "refused":
		return w.connect(o)
	case "arrive":
		w.peers[o.id] = w.tcp()
		return unix.Connect(w.peers[o.id], address(kernelA, localPort(w.socks[listenerID])))
	case "accept":
		w.socks[o.id], _, err = unix.Accept4(w.socks[listenerID], unix.SOCK_NONBLOCK)
		return err
	case "fill":
		return w.fill(o)
	case "drain":
		return w.drain(o)
	case "gram":
		return unix.Sendto(w.peers[o.id], w.buf[:o.n%1400], 0, address(kernelA, localPort(w.socks[o.id])))
	case "gramrecv":
		_, err = unix.Read(w.socks[o.id], w.buf[:])
		return err
	case "gramsend":
		if o.id == udpFree {
			return unix.Sendto(w.socks[o.id], w.buf[:o.n%1400], 0, address(kernelB, localPort(w.peers[o.id])))
		}
		_, err = unix.Write(w.socks[o.id], w.buf[:o.n%1400])
		return err
	case "reopen":
		must(unix.Close(w.socks[o.id]))
		w.openUDP(o.id)
		return nil
	}
	if o.do[0] == 'b' {
		return w.tcpStep(&w.peers[o.id], o)
	}
	return w.tcpStep(&w.socks[o.id], o)
}

// tcpStep does what either end does to a connection.
func (w *kernelTwin) tcpStep(fd *int, o op) (err error) {
	switch o.do[1:] {
	case "send":
		return unix.Sendto(*fd, w.buf[:o.n], unix.MSG_NOSIGNAL, nil)
	case "recv", "read":
		_, err = unix.Read(*fd, w.buf[:o.n])
	case "recvall":
		for n := 1; n > 0 && err == nil; {
			n, err = unix.Read(*fd, w.buf[:])
		}
	case "shut":
		how := unix.SHUT_WR
		if o.do == "ashut" {
			how = o.n - 1 // SHUT_RD, SHUT_WR, SHUT_RDWR
		}
		return unix.Shutdown(*fd, how)
	case "close", "reset":
		if o.do[1:] == "reset" {
			err = w.reset(*fd)
		} else {
			err = unix.Close(*fd)
		}
		*fd = -1
	default:
		panic(o.do)
	}
	return err
}

func (w *kernelTwin) connect(o op) error {
	fd := w.tcp()
	w.socks[o.id] = fd
	if o.pre {
		must(w.ctl(o, unix.EPOLL_CTL_ADD))
		_, err := unix.EpollWait(w.eps[o.ep], w.events[:], 0) // what it is before connect: OUT|HUP
		must(err)
	}
	to := address(kernelB, localPort(w.lis))
	if o.do == "refused" {
		to = address([4]byte{127, 0, 0, 3}, 9)
	}
	err := unix.Connect(fd, to)
	w.settle(0)
	if o.do == "connect" {
		w.peers[o.id], _, err = unix.Accept4(w.lis, unix.SOCK_NONBLOCK)
		must(err)
	}
	return err
}

// fill writes until nothing more goes, however long it waits.
func (w *kernelTwin) fill(o op) error {
	for {
		total := 0
		for {
			n, err := unix.Write(w.socks[o.id], w.buf[:])
			if err != nil {
				break
			}
			total += n
		}
		if total == 0 {
			return nil
		}
		w.settle(o.id)
	}
}

// drain reads until nothing more comes: the sender has nothing left that is not acknowledged.
func (w *kernelTwin) drain(o op) error {
	for {
		n, err := unix.Read(w.peers[o.id], w.buf[:])
		if n == 0 && err == nil {
			return nil
		}
		if err == nil {
			continue
		}
		if err != unix.EAGAIN {
			return err
		}
		w.settle(o.id)
		left, err := unix.IoctlGetInt(w.socks[o.id], unix.TIOCOUTQ)
		must(err)
		if left == 0 {
			return nil
		}
	}
}
