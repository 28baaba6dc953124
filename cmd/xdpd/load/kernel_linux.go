package load

import (
	"bufio"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"xdpd/reactor"
	"xdpd/sockets"
)

// Kernel is the kernel's sockets: each worker is an epoll loop on a thread of its own.
type Kernel struct {
	threads   int
	sources   []netip.Addr
	netns     string
	spin      bool
	ports     int
	before    uint64 // retransmits of the namespace
	beforeErr error
}

// KernelConfig describes a Kernel.
type KernelConfig struct {
	Threads int          // default 1
	Sources []netip.Addr // connections come from each of them in turn; none: as routes say
	NetNS   string       // a name in /run/netns or a path; "": the process's
	Spin    bool         // never wait for events: ask again
}

// NewKernel makes a side. Errors name what this machine does not allow.
func NewKernel(c KernelConfig) (*Kernel, error) {
	if c.Threads < 0 || c.Threads > 1024 {
		return nil, fmt.Errorf("%d threads", c.Threads)
	}
	if c.NetNS != "" && !strings.Contains(c.NetNS, "/") {
		c.NetNS = "/run/netns/" + c.NetNS
	}
	k := &Kernel{threads: max(1, c.Threads), sources: c.Sources, netns: c.NetNS, spin: c.Spin}
	return k, k.inside(func() error {
		var first, last int
		text, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
		if err == nil {
			_, err = fmt.Sscan(string(text), &first, &last)
		}
		if err != nil {
			return fmt.Errorf("range of local ports: %w", err)
		}
		k.ports = last - first + 1
		k.before, k.beforeErr = segmentsSentAgain()
		return nil
	})
}

// Workers implements Side.
func (k *Kernel) Workers() int { return k.threads }

func (k *Kernel) String() string { return fmt.Sprintf("kernel sockets, threads: %d", k.threads) }

// Ports implements Side.
func (k *Kernel) Ports() int { return k.ports * max(1, len(k.sources)) }

// Done implements Side: the kernel stays.
func (k *Kernel) Done() <-chan struct{} { return nil }

// Err implements Side.
func (k *Kernel) Err() error { return nil }

// Retransmits implements Side: those of the whole network namespace.
func (k *Kernel) Retransmits() (n uint64, known bool) {
	err := k.inside(func() (err error) {
		n, err = segmentsSentAgain()
		return err
	})
	return n - k.before, err == nil && k.beforeErr == nil
}

// inside runs f on a thread in the namespace, which ends with it if it is not the process's.
func (k *Kernel) inside(f func() error) error {
	done := make(chan error, 1)
	go func() {
		if err := k.enter(); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// enter locks the goroutine to a thread, and takes that into the namespace.
func (k *Kernel) enter() error {
	runtime.LockOSThread() // and never unlocks: the thread is no use to others
	if k.netns == "" {
		return nil
	}
	fd, err := unix.Open(k.netns, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err == nil {
		err = unix.Setns(fd, unix.CLONE_NEWNET)
		unix.Close(fd)
	}
	if err != nil {
		return fmt.Errorf("network namespace %s: %w", k.netns, err)
	}
	return nil
}

// segmentsSentAgain is RetransSegs of the thread's namespace.
func segmentsSentAgain() (uint64, error) {
	file, err := os.Open("/proc/thread-self/net/snmp")
	if err != nil {
		return 0, err
	}
	defer file.Close()
	var names []string
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) == 0 || fields[0] != "Tcp:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		for i, name := range names {
			if name == "RetransSegs" && i < len(fields) {
				return strconv.ParseUint(fields[i], 10, 64)
			}
		}
	}
	return 0, errors.New("no RetransSegs")
}

// openFiles sees to it that so many files may be open.
func openFiles(n int) error {
	want := uint64(n) + 256
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return fmt.Errorf("limit of open files: %w", err)
	}
	if l.Cur >= want {
		return nil
	}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: want, Max: max(want, l.Max)}); err != nil {
		return fmt.Errorf("%d connections need as many open files, and the limit is %d: ulimit -n %d, or sysctl fs.nr_open: %w",
			n, l.Max, want, err)
	}
	return nil
}

// kernelLoop is a worker's epoll loop.
type kernelLoop struct {
	w        *worker
	k        *Kernel
	ep, wake int
	udp      bool
	nodelay  bool
	next     int
	target   unix.SockaddrInet4
	sources  []unix.SockaddrInet4
	linger   unix.Linger
	events   [256]unix.EpollEvent
	wait     unix.Timespec

	mu     sync.Mutex // guards posted, closed, and wake's being open
	posted []func()
	closed bool
	over   bool // the loop's own
	ended  chan struct{}
}

const wakeKey = ^uint64(0)

func (k *Kernel) start(cfg *Config, i int, w *worker) (loop, error) {
	if i == 0 {
		if err := openFiles(cfg.Connections); err != nil {
			return nil, err
		}
	}
	l := &kernelLoop{
		w: w, k: k, udp: cfg.Kind == UDP, nodelay: cfg.Kind == RR || cfg.Kind == HTTP || cfg.Kind == Bulk, next: i,
		linger: unix.Linger{Onoff: 1}, target: unix.SockaddrInet4{Port: int(cfg.Target.Port()), Addr: cfg.Target.Addr().As4()},
		ended: make(chan struct{}),
	}
	for _, a := range k.sources {
		if !a.Is4() {
			return nil, fmt.Errorf("%v is no IPv4 address", a)
		}
		l.sources = append(l.sources, unix.SockaddrInet4{Addr: a.As4()})
	}
	var err error
	if l.ep, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("epoll: %w", err)
	}
	if l.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err == nil {
		err = l.add(l.wake, unix.EPOLLIN, wakeKey)
	}
	if err != nil {
		unix.Close(l.ep)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	w.t = l
	started := make(chan error)
	go l.run(started)
	return l, <-started
}

func (l *kernelLoop) add(fd int, events uint32, key uint64) error {
	return unix.EpollCtl(l.ep, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: events, Fd: int32(key), Pad: int32(key >> 32)})
}

// slackNS is how long before a deadline the loop no longer sleeps: a thread that does wakes up late.
const slackNS = 60_000

func (l *kernelLoop) run(started chan<- error) {
	defer l.closeLoop()
	if err := l.k.enter(); err != nil {
		started <- err
		return
	}
	_ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) // else deadlines come 50 µs later
	started <- nil
	for !l.over {
		n := rawEvents(l.ep, l.events[:])
		if wait := l.w.deadline() - l.clock(); n == 0 && !l.k.spin && wait > slackNS {
			l.wait = unix.NsecToTimespec(wait - slackNS/2)
			n = waitEvents(l.ep, l.events[:], &l.wait)
		}
		for i := range l.events[:n] {
			e := &l.events[i]
			if key := uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32; key == wakeKey {
				l.runPosted()
			} else {
				l.w.event(key, sockets.Ready(e.Events))
			}
		}
		if l.clock() >= l.w.deadline() {
			l.w.tick()
		}
	}
	for i := range l.w.conns {
		l.w.drop(&l.w.conns[i], true)
	}
}

func (l *kernelLoop) closeLoop() {
	l.mu.Lock()
	l.closed = true
	unix.Close(l.ep)
	unix.Close(l.wake)
	l.mu.Unlock()
	close(l.ended)
}

func (l *kernelLoop) runPosted() {
	var count [8]byte
	rawRead(l.wake, count[:])
	l.mu.Lock()
	list := l.posted
	l.posted = nil
	l.mu.Unlock()
	for _, f := range list {
		f()
	}
}

func (l *kernelLoop) do(f func()) bool {
	done := make(chan struct{})
	l.mu.Lock()
	if !l.closed {
		l.posted = append(l.posted, func() { f(); close(done) })
		_, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // fails when it was written 2⁶⁴ times and not read
	}
	l.mu.Unlock()
	select {
	case <-done:
		return true
	case <-l.ended:
		return false
	}
}

func (l *kernelLoop) end() { l.do(func() { l.over = true }); <-l.ended }

func (l *kernelLoop) clock() int64 { return reactor.Monotonic() }

func (l *kernelLoop) dial(key uint64) (uint64, syscall.Errno) {
	kind, mask := unix.SOCK_STREAM, uint32(unix.EPOLLIN|unix.EPOLLOUT|unix.EPOLLRDHUP|unix.EPOLLET)
	if l.udp {
		kind, mask = unix.SOCK_DGRAM, unix.EPOLLIN|unix.EPOLLET
	}
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, errno(err)
	}
	if len(l.sources) > 0 {
		// The port is chosen with the target in view: one can serve many.
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
		err = unix.Bind(fd, &l.sources[l.next%len(l.sources)])
		l.next++
	}
	if err == nil && l.nodelay {
		err = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	}
	if err == nil {
		err = unix.Connect(fd, &l.target)
	}
	if err == nil || err == unix.EINPROGRESS {
		err = l.add(fd, mask, key)
	}
	if err != nil {
		unix.Close(fd)
		return 0, errno(err)
	}
	return uint64(fd), 0
}

func (l *kernelLoop) fault(sock uint64) syscall.Errno {
	n, err := unix.GetsockoptInt(int(sock), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return errno(err)
	}
	return syscall.Errno(n)
}

func (l *kernelLoop) read(sock uint64, b []byte) (int, syscall.Errno)  { return rawRead(int(sock), b) }
func (l *kernelLoop) write(sock uint64, b []byte) (int, syscall.Errno) { return rawSend(int(sock), b) }

func (l *kernelLoop) again(sock, key uint64) {
	mask := uint32(unix.EPOLLIN | unix.EPOLLOUT | unix.EPOLLRDHUP | unix.EPOLLET)
	_ = unix.EpollCtl(l.ep, unix.EPOLL_CTL_MOD, int(sock), &unix.EpollEvent{Events: mask, Fd: int32(key), Pad: int32(key >> 32)})
}

func (l *kernelLoop) shutdown(sock uint64) { _ = unix.Shutdown(int(sock), unix.SHUT_WR) }

func (l *kernelLoop) close(sock uint64, reset bool) {
	if reset && !l.udp {
		_ = unix.SetsockoptLinger(int(sock), unix.SOL_SOCKET, unix.SO_LINGER, &l.linger)
	}
	unix.Close(int(sock))
}
