package xdpd

import (
	"fmt"

	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// Stats is the drop ledger from the XDP verdict to the socket, and the state of the packet memory.
type Stats struct {
	Interface string
	Driver    string
	Native    bool   // the steering program is in the driver, not in generic mode
	Refused   string // why it is not, where native was wanted
	// Dispatched: it is in a dispatcher, where other programs may be as well.
	Dispatched  bool
	ZeroCopy    bool
	NotZeroCopy string // why it is not, where it was wanted
	SG          bool   // packets may consist of several frames: one does not hold an MTU
	// NeedWakeup: the kernel says when it must be told of frames; TXBudget is how many a system call sends, in copy mode.
	NeedWakeup bool
	TXBudget   int
	HugePages  bool
	ChunkSize  int
	MTU        int
	Loops      int // goroutines that run the reactors (Stack.Resize)
	Ports      int // share mode: ports that are steered to the engine
	NAPI       NAPIStats
	RSS        RSSStats
	Checksums  ChecksumStats
	Metadata   MetadataStats
	Verdicts   []xdpprog.Counter
	Queues     []QueueStats
}

// QueueStats is one queue's part of the ledger.
type QueueStats struct {
	Queue   int
	Kernel  rings.Stats
	Reactor reactor.Counters
	Host    sockets.Counters
	Drives  bool // the reactor runs the queue's NAPI at this moment
	Frames  FrameStats
	UDP     []sockets.UDPInfo
	TCP     []sockets.TCPInfo
}

// ChecksumStats says who sums what is sent by UDP and TCP.
type ChecksumStats struct {
	Device bool   // the device finishes the checksums of larger packets (sockets.TxPartialSum counts them)
	What   string // in words; why it does not
}

// FrameStats says where a queue's frames are.
type FrameStats struct {
	Total     int
	Free      int
	Rx        int // held for received data
	RxLimit   int
	Tx        int // held for data to send, or on its way
	TxLimit   int
	Away      int            // on their way to other queues' reactors, which give as many back
	Exhausted uint64         // times that none was free
	Owners    map[string]int // with the ledger on: all of the engine's frames by owner
}

// Stats takes the counters of all queues.
func (s *Stack) Stats() (Stats, error) {
	st := Stats{
		Interface: s.iface(), Driver: s.dev.driver, Native: s.program.Native(),
		HugePages: s.region.Huge(), ChunkSize: s.region.ChunkSize(),
		Loops: s.group.Loops(), RSS: RSSStats{s.steer.rss != nil, s.dev.hash}, NAPI: s.napiStats(),
		Metadata: s.program.Metadata(),
	}
	s.mu.Lock()
	st.Ports = len(s.ports)
	s.mu.Unlock()
	st.NotZeroCopy = s.notZeroCopy
	if h, _, ok := s.queues[0].reactor.Enter(); ok {
		sock := s.queues[0].sock
		st.ZeroCopy, st.SG, st.NeedWakeup, st.TXBudget = sock.ZeroCopy(), sock.SG(), sock.NeedWakeup(), sock.TXBudget()
		st.Checksums, st.MTU = checksumStats(sock.NoChecksum()), h.MTU()
		if err := sock.Refused(); err != nil {
			st.NotZeroCopy = err.Error()
		} else if s.cfg.Mode == Best && !st.ZeroCopy && st.NotZeroCopy == "" { // the MTU may have grown since Open
			st.NotZeroCopy = tooLong(st.Driver, st.MTU, st.ChunkSize)
		}
	}
	s.queues[0].reactor.Leave()
	if err := s.program.NativeRefused(); err != nil {
		st.Refused = err.Error()
	}
	st.Dispatched = s.program.Dispatched()
	var err error
	if st.Verdicts, err = s.program.Counters(); err != nil {
		return st, fmt.Errorf("xdpd: %w", err)
	}
	for _, q := range s.queues {
		qs, err := s.queueStats(q)
		if err != nil {
			return st, fmt.Errorf("xdpd: %w", err)
		}
		st.Queues = append(st.Queues, qs)
	}
	return st, nil
}

func checksumStats(why error) ChecksumStats {
	if why != nil {
		return ChecksumStats{What: why.Error()}
	}
	return ChecksumStats{true, "left to the device"}
}

func (s *Stack) queueStats(q *queue) (QueueStats, error) {
	h, _, ok := q.reactor.Enter()
	defer q.reactor.Leave()
	if !ok {
		return QueueStats{}, reactor.ErrStopped
	}
	kernel, err := q.sock.Stats()
	if err != nil {
		return QueueStats{}, err
	}
	away := q.reactor.Away() // first: it takes what came back
	qs := QueueStats{
		Queue: q.id, Kernel: kernel, Reactor: q.reactor.Counters(), Host: *h.Counters(), UDP: h.UDPSockets(), TCP: h.TCPSockets(),
		Frames: FrameStats{Total: q.pool.Total(), Free: q.pool.Avail(), Away: away, Exhausted: q.pool.Exhausted()},
	}
	qs.Drives, _ = q.reactor.Drives()
	qs.Frames.Rx, qs.Frames.RxLimit, qs.Frames.Tx, qs.Frames.TxLimit = h.Held()
	if s.ledger != nil {
		qs.Frames.Owners = make(map[string]int)
		for o, n := range s.ledger.Counts() {
			qs.Frames.Owners[umem.Owner(o).String()] = n
		}
	}
	return qs, nil
}

// Drops gives the reasons for which packets were dropped anywhere in the engine or in front of it, those that never
// happened left out.
func (s *Stats) Drops() map[string]uint64 {
	out := make(map[string]uint64)
	add := func(name string, n uint64) {
		if n > 0 {
			out[name] += n
		}
	}
	for _, q := range s.Queues {
		add("kernel_rx_dropped", q.Kernel.RxDropped)
		add("kernel_rx_ring_full", q.Kernel.RxRingFull)
		if !s.ZeroCopy { // there the driver asks for frames in advance: it says nothing of packets
			add("kernel_rx_fill_ring_empty", q.Kernel.RxFillRingEmpty)
		}
		add("kernel_rx_invalid_descs", q.Kernel.RxInvalidDescs)
		add("kernel_tx_invalid_descs", q.Kernel.TxInvalidDescs)
		add("ring_rx_bad_desc", q.Reactor.RxBadDesc)
		add("ring_rx_bad_chain", q.Reactor.RxBadChain)
		for d, n := range q.Host.Drops {
			add(sockets.Drop(d).String(), n)
		}
	}
	return out
}
