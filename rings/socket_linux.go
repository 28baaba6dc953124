package rings

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"xdpd/umem"
)

// SocketOptions says where and how to open an AF_XDP socket.
type SocketOptions struct {
	Interface string // for messages; the kernel is told Ifindex
	Ifindex   int    // in the network namespace of the calling thread
	Queue     int

	// Ring sizes in entries, powers of two; 0 is 4096, 4096, 2048, 2048. The
	// first two are not used when Shared has the same interface and queue.
	FillSize, CompSize, RXSize, TXSize int

	Mode         Mode
	NoNeedWakeup bool // do without XDP_USE_NEED_WAKEUP: every batch must be kicked

	// SG lets a packet consist of several frames, all but the last with
	// DescContinued (XDP_USE_SG, Linux 6.6). Without it what does not fit into
	// one is dropped. In copy mode a packet to be sent has at most 18.
	SG bool

	// Shared, if not nil, is an open socket on the same region. The new socket
	// uses its registration (XDP_SHARED_UMEM) and inherits its mode, so Mode,
	// SG and NoNeedWakeup are not looked at. On the same interface and queue it also
	// uses its fill and completion rings; then one goroutine must run both, and
	// Shared must be closed last.
	Shared *Socket

	// Checksum asks the device to finish UDP and TCP checksums of what is sent,
	// where it does that for the kernel's own packets (Port.Checksum,
	// Socket.NoChecksum). With it each entry of the TX ring must leave
	// TXMetadata bytes of its frame in front of the packet, whether it asks or not.
	// A Shared socket was opened with it as well, or it does nothing.
	Checksum bool

	// Make, if not nil, gives the bare AF_XDP socket, for who has not the CAP_NET_RAW that socket(2) asks for. sendBytes is
	// the send buffer that it should have already, as setting it takes CAP_NET_ADMIN. The socket becomes ours.
	Make func(sendBytes int) (fd int, err error)

	// BusyPollUS is SO_BUSY_POLL in microseconds and turns SO_PREFER_BUSY_POLL
	// on; BusyPollBudget is SO_BUSY_POLL_BUDGET in packets. 0 leaves them off.
	BusyPollUS, BusyPollBudget int
}

// maxTXBudget is how many descriptors one Kick may send in copy mode
// (XDP_MAX_TX_SKB_BUDGET, since Linux 6.17), instead of the kernel's default.
const (
	maxTXBudget     = 256
	defaultTXBudget = 32 // TX_BATCH_SIZE, net/xdp/xsk.c
)

// Socket is an AF_XDP socket with its four rings mapped. Its methods are for
// one goroutine.
type Socket struct {
	fd         int
	opts       SocketOptions
	region     *umem.Region
	port       Port
	maps       [][]byte
	zeroCopy   bool
	refused    error // why not, if Best asked for it
	sg         bool
	needWakeup bool
	metadata   bool   // the region is registered with room for TX metadata
	features   uint64 // of the driver: xskFeatures
	noChecksum error  // why the device finishes none
	txBudget   int
}

// OpenSocket opens an AF_XDP socket on a queue, registers r with it, maps its
// rings and binds it. Nothing arrives before an XDP program redirects to it.
//
// Errors name the operation, the interface, the queue and the cure, and wrap
// the errno. A queue whose former socket the kernel is still letting go of is
// waited for, up to a second (net/xdp/xsk_buff_pool.c releases a
// pool from a work queue). See net/xdp/xsk.c.
func OpenSocket(r *umem.Region, o SocketOptions) (*Socket, error) {
	if err := o.check(r); err != nil {
		return nil, err
	}
	fd, err := o.makeSocket(r)
	if err != nil {
		return nil, err
	}
	s := &Socket{fd: fd, opts: o, region: r, sg: o.SG, needWakeup: !o.NoNeedWakeup}
	if o.Shared != nil {
		s.needWakeup, s.sg = o.Shared.needWakeup, o.Shared.sg
	}
	if err := s.setUp(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (o *SocketOptions) makeSocket(r *umem.Region) (fd int, err error) {
	if o.Make != nil {
		return o.Make(o.sendBytes(r))
	}
	if fd, err = unix.Socket(unix.AF_XDP, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, o.explain("open an AF_XDP socket", r, err)
	}
	return fd, nil
}

// sendBytes is the send buffer for a full TX ring. In copy mode a packet in flight is charged to the socket as any sent skb
// (xsk_build_skb, sock_alloc_send_skb): the default 208 KiB is 90 full frames, after which Kick gets EAGAIN until the receiver
// frees some.
func (o *SocketOptions) sendBytes(r *umem.Region) int { return o.TXSize * r.ChunkSize() * 2 }

func (o *SocketOptions) check(r *umem.Region) error {
	if r == nil || r.Frames() == 0 {
		return fmt.Errorf("rings: no packet memory for %s: the region is nil or closed", o.where())
	}
	for _, size := range []struct {
		name string
		n    *int
		def  int
	}{
		{"FillSize", &o.FillSize, 4096}, {"CompSize", &o.CompSize, 4096},
		{"RXSize", &o.RXSize, 2048}, {"TXSize", &o.TXSize, 2048},
	} {
		if *size.n == 0 {
			*size.n = size.def
		}
		if n := *size.n; n < 1 || n&(n-1) != 0 || n > 1<<30 {
			return fmt.Errorf("rings: %s is %d; it must be a power of two", size.name, n)
		}
	}
	if o.Ifindex < 1 || o.Queue < 0 {
		return fmt.Errorf("rings: interface %q has index %d and queue %d; the first index is 1, the first queue 0", o.Interface, o.Ifindex, o.Queue)
	}
	if o.Shared != nil && o.Shared.region != r {
		return fmt.Errorf("rings: a shared socket on %s needs the region of the socket it shares with", o.where())
	}
	if o.Mode > ZeroCopy {
		return fmt.Errorf("rings: mode %d on %s; there are Best, Copy and ZeroCopy", o.Mode, o.where())
	}
	return nil
}

// sharesRings says whether the fill and completion rings are Shared's.
func (o *SocketOptions) sharesRings() bool {
	return o.Shared != nil && o.Shared.opts.Ifindex == o.Ifindex && o.Shared.opts.Queue == o.Queue
}

func (o *SocketOptions) where() string {
	if o.Interface == "" {
		return fmt.Sprintf("interface number %d queue %d", o.Ifindex, o.Queue)
	}
	return fmt.Sprintf("interface %s queue %d", o.Interface, o.Queue)
}

func (s *Socket) setUp() error {
	if s.opts.Shared == nil {
		if err := s.register(); err != nil {
			return s.opts.explain("register packet memory", s.region, err)
		}
	}
	if err := s.mapRings(); err != nil {
		return err
	}
	if err := s.setOptions(); err != nil {
		return err
	}
	if err := s.bind(); err != nil {
		return s.opts.explain("bind the AF_XDP socket", s.region, err)
	}
	zeroCopy, err := isZeroCopy(s.fd)
	if err != nil {
		return s.opts.explain("ask for the mode", s.region, err)
	}
	s.zeroCopy = zeroCopy
	s.askForChecksums()
	s.port.Dev = s
	return nil
}

// mapRings sizes and maps the rings: the kernel allows it only before bind.
func (s *Socket) mapRings() error {
	o := &s.opts
	sizes := []struct{ opt, n int }{{unix.XDP_RX_RING, o.RXSize}, {unix.XDP_TX_RING, o.TXSize}}
	if !o.sharesRings() {
		sizes = append(sizes, []struct{ opt, n int }{
			{unix.XDP_UMEM_FILL_RING, o.FillSize}, {unix.XDP_UMEM_COMPLETION_RING, o.CompSize}}...)
	}
	for _, size := range sizes {
		if err := unix.SetsockoptInt(s.fd, unix.SOL_XDP, size.opt, size.n); err != nil {
			return o.explain(fmt.Sprintf("make a ring of %d entries", size.n), s.region, err)
		}
	}
	off, err := mmapOffsets(s.fd)
	if err != nil {
		return o.explain("ask where the rings are", s.region, err)
	}
	if mem := s.mapRing(&err, unix.XDP_PGOFF_RX_RING, off.Rx, o.RXSize, descSize); mem != nil {
		s.port.RX = NewConsumer(ringIn[Desc](mem, off.Rx, o.RXSize))
	}
	if mem := s.mapRing(&err, unix.XDP_PGOFF_TX_RING, off.Tx, o.TXSize, descSize); mem != nil {
		s.port.TX = NewProducer(ringIn[Desc](mem, off.Tx, o.TXSize))
	}
	if o.sharesRings() {
		s.port.Fill, s.port.Comp = o.Shared.port.Fill, o.Shared.port.Comp
		return err
	}
	if mem := s.mapRing(&err, unix.XDP_UMEM_PGOFF_FILL_RING, off.Fr, o.FillSize, addrSize); mem != nil {
		s.port.Fill = NewProducer(ringIn[uint64](mem, off.Fr, o.FillSize))
	}
	if mem := s.mapRing(&err, unix.XDP_UMEM_PGOFF_COMPLETION_RING, off.Cr, o.CompSize, addrSize); mem != nil {
		s.port.Comp = NewConsumer(ringIn[uint64](mem, off.Cr, o.CompSize))
	}
	return err
}

// mapRing maps one ring for Close to unmap. It does nothing once *err is set.
func (s *Socket) mapRing(err *error, pgoff int64, off unix.XDPRingOffset, n, entrySize int) []byte {
	if *err != nil {
		return nil
	}
	mem, merr := unix.Mmap(s.fd, pgoff, int(off.Desc)+n*entrySize,
		unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if merr != nil {
		*err = s.opts.explain(fmt.Sprintf("map a ring of %d entries", n), s.region, merr)
		return nil
	}
	s.maps = append(s.maps, mem)
	return mem
}

func (s *Socket) setOptions() error {
	o := &s.opts
	s.txBudget = defaultTXBudget
	if budget := min(maxTXBudget, o.TXSize); budget > defaultTXBudget {
		err := unix.SetsockoptInt(s.fd, unix.SOL_XDP, unix.XDP_MAX_TX_SKB_BUDGET, budget)
		if err == nil {
			s.txBudget = budget
		} else if !errors.Is(err, unix.ENOPROTOOPT) { // before Linux 6.17
			return o.explain("set the TX budget", s.region, err)
		}
	}
	if err := s.setSendBuffer(); err != nil {
		return o.explain("set the send buffer", s.region, err)
	}
	if o.BusyPollUS <= 0 {
		return nil
	}
	for _, opt := range []struct{ opt, value int }{
		{unix.SO_PREFER_BUSY_POLL, 1}, {unix.SO_BUSY_POLL, o.BusyPollUS}, {unix.SO_BUSY_POLL_BUDGET, o.BusyPollBudget},
	} {
		if opt.value == 0 {
			continue
		}
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, opt.opt, opt.value); err != nil {
			return o.explain("set busy polling", s.region, err)
		}
	}
	return nil
}

func (s *Socket) setSendBuffer() error {
	want := s.opts.sendBytes(s.region)
	if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, want) == nil {
		return nil
	}
	// Without CAP_NET_ADMIN as much as net.core.wmem_max allows, unless who made the socket gave it more.
	if has, err := unix.GetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF); err != nil || has >= want {
		return err
	}
	return unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, unix.SO_SNDBUF, want)
}

// bind takes the queue. Best asks for zero copy by name and then for copy:
// flags 0 would do the same and not say why it is copy.
func (s *Socket) bind() error {
	o := &s.opts
	switch {
	case o.Shared != nil: // takes no other flag: inherits the mode
		return s.bindAs(unix.XDP_SHARED_UMEM)
	case o.Mode == Copy:
		return s.bindAs(unix.XDP_COPY | s.bindFlags())
	case o.Mode == ZeroCopy:
		return s.bindAs(unix.XDP_ZEROCOPY | s.bindFlags())
	}
	err := s.bindAs(unix.XDP_ZEROCOPY | s.bindFlags())
	if err == nil || errors.Is(err, unix.EBUSY) {
		return err
	}
	s.refused = o.zeroCopyRefused(err)
	return s.bindAs(unix.XDP_COPY | s.bindFlags())
}

func (s *Socket) bindFlags() (flags uint16) {
	if s.needWakeup {
		flags |= unix.XDP_USE_NEED_WAKEUP
	}
	if s.sg {
		flags |= unix.XDP_USE_SG
	}
	return flags
}

func (s *Socket) bindAs(flags uint16) error {
	o := &s.opts
	addr := unix.SockaddrXDP{Ifindex: uint32(o.Ifindex), QueueID: uint32(o.Queue), Flags: flags}
	if o.Shared != nil {
		addr.SharedUmemFD = uint32(o.Shared.fd)
	}
	var err error
	for wait := time.Millisecond; wait <= 512*time.Millisecond; wait *= 2 {
		if err = unix.Bind(s.fd, &addr); !errors.Is(err, unix.EBUSY) {
			return err
		}
		time.Sleep(wait)
	}
	return err
}

// Port is the socket's rings, with the socket as their device.
func (s *Socket) Port() *Port { return &s.port }

// ZeroCopy says whether the driver works on the region itself.
func (s *Socket) ZeroCopy() bool { return s.zeroCopy }

// SG says whether a packet may consist of several frames.
func (s *Socket) SG() bool { return s.sg }

// NeedWakeup says whether the rings' NeedWakeup is meaningful. Without it TX
// always asks for a kick and fill never.
func (s *Socket) NeedWakeup() bool { return s.needWakeup }

// TXBudget is how many descriptors one Kick sends in copy mode.
func (s *Socket) TXBudget() int { return s.txBudget }

// Queue is the queue the socket is bound to.
func (s *Socket) Queue() int { return s.opts.Queue }

// FD is the socket, for poll(2) and for an XSKMAP; -1 after Close.
func (s *Socket) FD() int { return s.fd }

// Kick makes the kernel send what is in the TX ring: at most the TX budget in
// copy mode, so look at TX.Pending before the next turn.
func (s *Socket) Kick() error {
	// RawSyscall: the scheduler need not know of a call that never blocks, and
	// telling it costs 40 ns.
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	if errno == 0 {
		return nil
	}
	return DataPathError("kick TX", s.opts.where(), errno)
}

// WakeRX makes the kernel look at the fill ring.
func (s *Socket) WakeRX() error {
	_, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(s.fd), 0, 0, unix.MSG_DONTWAIT, 0, 0)
	if errno == 0 {
		return nil
	}
	return DataPathError("wake RX", s.opts.where(), errno)
}

// Stats asks the kernel for its counters (XDP_STATISTICS).
func (s *Socket) Stats() (Stats, error) {
	st, err := xdpStatistics(s.fd)
	if err != nil {
		return Stats{}, fmt.Errorf("rings: read the statistics of %s: %w", s.opts.where(), err)
	}
	return Stats{
		RxDropped: st.Rx_dropped, RxInvalidDescs: st.Rx_invalid_descs, TxInvalidDescs: st.Tx_invalid_descs,
		RxRingFull: st.Rx_ring_full, RxFillRingEmpty: st.Rx_fill_ring_empty_descs, TxRingEmptyDescs: st.Tx_ring_empty_descs,
	}, nil
}

// Close unmaps the rings and closes the socket. Any use of the port's rings
// after it is a fault. Closing twice does nothing.
func (s *Socket) Close() error {
	if s.fd < 0 {
		return nil
	}
	var errs []error
	// A mapped ring keeps the socket alive, and with it the queue.
	for _, mem := range s.maps {
		if err := unix.Munmap(mem); err != nil {
			errs = append(errs, fmt.Errorf("rings: unmap a ring of %s: %w", s.opts.where(), err))
		}
	}
	if err := unix.Close(s.fd); err != nil {
		errs = append(errs, fmt.Errorf("rings: close the AF_XDP socket of %s: %w", s.opts.where(), err))
	}
	s.maps, s.fd = nil, -1
	return errors.Join(errs...)
}
