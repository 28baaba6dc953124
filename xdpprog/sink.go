package xdpprog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"sync"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// SinkConfig says what a Sink takes and what it keeps account of.
type SinkConfig struct {
	Interface string // for messages
	Ifindex   int    // device in the calling thread's network namespace
	Attach    Attach

	Mark      uint16 // of the frames it takes; 0 means DefaultMark
	CheckSums bool   // verify IPv4 and UDP checksums

	// FirstSeq and Seqs, if not 0, are the sequence numbers of which each is expected once: a bit each is kept, so that
	// duplicates are told and Missing knows what is not there. At most MaxSeqs.
	FirstSeq uint64
	Seqs     uint64

	// Flows, if not 0, keeps the next expected sequence number of each flow. Flows and RandomFlows must be those of the
	// Source.
	Flows       int
	RandomFlows bool
}

// MaxSeqs is the largest SinkConfig.Seqs: 128 MiB of bits.
const MaxSeqs = 1 << 30

// Sink is an XDP program that takes the frames of a Source, or the replies to them, off a device's receive path, and
// counts them there: UDP over IPv4 whose payload starts with a Stamp of its Mark. All else passes to the kernel (ARP
// has to). Needs Linux 5.18, CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
type Sink struct {
	hook
	config SinkConfig
	objs   struct {
		Sink     *ebpf.Program  `ebpf:"sink"`
		Totals   *ebpf.Map      `ebpf:"totals"`
		Seen     *ebpf.Map      `ebpf:"seen"`
		Expected *ebpf.Map      `ebpf:"expected"`
		FirstSeq *ebpf.Variable `ebpf:"first_seq"`
	}

	mu    sync.Mutex
	first uint64    // of the Seqs sequence numbers
	base  sinkWords // what was counted before the last Reset
}

// SinkStats counts from LoadSink or Reset on.
type SinkStats struct {
	Frames uint64 // taken, bad ones included
	Bytes  uint64 // of them, without FCS
	BadSum uint64 // with CheckSums: an IPv4 or UDP checksum was wrong; counted nowhere below
	// PartialSum is how many held only the pseudo-header's sum, as the kernel leaves it on veth (with CheckSums); they are good.
	PartialSum uint64

	// With Seqs.
	Unique     uint64 // sequence numbers that came at least once: what is lost is SourceStats.Sent - Unique
	Duplicates uint64 // frames whose sequence number had come before
	Outside    uint64 // frames whose sequence number is not in the range

	// With Flows. A frame is in order when its sequence number is the expected one of its flow or above.
	InOrder uint64 // the expected one, or the flow's first
	Ahead   uint64 // above it: frames before it are lost, or come later
	Gap     uint64 // sequence numbers of the flows that were jumped over so (0 with RandomFlows, where it cannot be told)
	Late    uint64 // below it: reordered, or duplicates

	Passed  uint64    // frames that were not ours and went to the kernel
	Latency Histogram // of good frames: when it was received - Stamp.Time, ns
}

// sinkWords is struct counters of bpf/sink.c, as words.
type sinkWords [13 + histBuckets]uint64

func (c *sinkWords) stats() SinkStats {
	st := SinkStats{
		Frames: c[0], Bytes: c[1], BadSum: c[2], PartialSum: c[3], Unique: c[4], Duplicates: c[5], Outside: c[6],
		InOrder: c[7], Ahead: c[8], Gap: c[9], Late: c[10], Passed: c[11],
	}
	st.Latency.sum = c[12]
	copy(st.Latency.counts[:], c[13:])
	return st
}

// LoadSink loads the program and attaches it. The calling thread must be in the device's network namespace while LoadSink
// runs, and not afterwards. Errors are as those of Load.
func LoadSink(c SinkConfig) (*Sink, error) {
	if c.Mark == 0 {
		c.Mark = DefaultMark
	}
	switch {
	case c.Seqs > MaxSeqs:
		return nil, fmt.Errorf("xdpprog: sink on %s: %d sequence numbers: at most %d", c.Interface, c.Seqs, MaxSeqs)
	case c.Flows < 0 || c.Flows > MaxFlows:
		return nil, fmt.Errorf("xdpprog: sink on %s: %d flows: not in 0..%d", c.Interface, c.Flows, MaxFlows)
	}
	s := &Sink{config: c, first: c.FirstSeq}
	var err error
	s.hook, err = hookUp(Config{Interface: c.Interface, Ifindex: c.Ifindex, Attach: c.Attach}, s.load, s.unload)
	if err != nil {
		return nil, err
	}
	return s, nil
}

// sinkSpec reads bpf/sink.c's object. frags says that the program may be given frames in several buffers.
func sinkSpec(program string, frags bool) (*ebpf.CollectionSpec, error) {
	spec, err := loadSink()
	if err != nil {
		return nil, fmt.Errorf("read the built-in program: %w", err)
	}
	if frags {
		spec.Programs[program].Flags |= unix.BPF_F_XDP_HAS_FRAGS
	}
	return spec, nil
}

func (s *Sink) load(a attempt) (*ebpf.Program, error) {
	spec, err := sinkSpec(sinkProgSink, a.frags)
	if err != nil {
		return nil, err
	}
	c := &s.config
	for name, value := range map[string]any{
		sinkVarMark:        asStored(c.Mark),
		sinkVarCheckSums:   flag(c.CheckSums),
		sinkVarSeqs:        c.Seqs,
		sinkVarFlows:       uint32(c.Flows),
		sinkVarRandomFlows: flag(c.RandomFlows),
		sinkVarFirstSeq:    c.FirstSeq,
	} {
		if err := spec.Variables[name].Set(value); err != nil {
			return nil, fmt.Errorf("set %s: %w", name, err)
		}
	}
	spec.Maps[sinkMapSeen].MaxEntries = uint32(max(1, (c.Seqs+63)/64))
	spec.Maps[sinkMapExpected].MaxEntries = uint32(max(1, c.Flows))
	if err := spec.LoadAndAssign(&s.objs, nil); err != nil {
		return nil, explainPrivilege(err)
	}
	return s.objs.Sink, nil
}

func (s *Sink) unload() error {
	o := &s.objs
	return errors.Join(o.Sink.Close(), o.Totals.Close(), o.Seen.Close(), o.Expected.Close())
}

func (s *Sink) read() (total sinkWords, err error) {
	var perCPU []sinkWords
	if err := s.objs.Totals.Lookup(uint32(0), &perCPU); err != nil {
		return total, fmt.Errorf("xdpprog: counters of the sink on %s: %w", s.iface, err)
	}
	for _, c := range perCPU {
		for i, n := range c {
			total[i] += n
		}
	}
	return total, nil
}

// Stats reads the counters. CPUs go on counting while they are read: the sums of a busy device are not of one instant, but
// nothing is lost or counted twice between two calls.
func (s *Sink) Stats() (SinkStats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now, err := s.read()
	if err != nil {
		return SinkStats{}, err
	}
	for i := range now {
		now[i] -= s.base[i]
	}
	return now.stats(), nil
}

// Reset starts all counts anew, with firstSeq as the first of the Seqs sequence numbers. What arrives while Reset runs may
// count in part: let traffic come to rest before.
func (s *Sink) Reset(firstSeq uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := errors.Join(clearMap(s.objs.Seen), clearMap(s.objs.Expected), s.objs.FirstSeq.Set(firstSeq))
	if err != nil {
		return fmt.Errorf("xdpprog: reset the sink on %s: %w", s.iface, err)
	}
	now, err := s.read()
	if err != nil {
		return err
	}
	s.base, s.first = now, firstSeq
	return nil
}

// clearMap zeroes an array that can be mapped to memory.
func clearMap(m *ebpf.Map) error {
	mem, err := m.Memory()
	if err != nil {
		return err
	}
	zeros := make([]byte, 64<<10)
	for at := 0; at < int(mem.Size()); at += len(zeros) {
		n := min(len(zeros), int(mem.Size())-at)
		if _, err := mem.WriteAt(zeros[:n], int64(at)); err != nil {
			return err
		}
	}
	return nil
}

// SeqRange is Count sequence numbers from First on.
type SeqRange struct{ First, Count uint64 }

// Missing returns at most limit ranges of sequence numbers that have not come, in order, of the first n from the sink's
// first on; n may be at most Seqs.
func (s *Sink) Missing(n uint64, limit int) ([]SeqRange, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n > s.config.Seqs {
		return nil, fmt.Errorf("xdpprog: sink on %s: %d sequence numbers asked for, it keeps %d", s.iface, n, s.config.Seqs)
	}
	mem, err := s.objs.Seen.Memory()
	if err != nil {
		return nil, fmt.Errorf("xdpprog: sequence numbers of the sink on %s: %w", s.iface, err)
	}
	var out []SeqRange
	chunk := make([]byte, 64<<10)
	for at := uint64(0); at < n; at += 8 * uint64(len(chunk)) {
		size := min(len(chunk), int(mem.Size())-int(at/8))
		if _, err := mem.ReadAt(chunk[:size], int64(at/8)); err != nil {
			return nil, fmt.Errorf("xdpprog: sequence numbers of the sink on %s: %w", s.iface, err)
		}
		if out = missing(out, chunk[:size], s.first+at, min(n-at, 8*uint64(size)), limit+1); len(out) > limit {
			return out[:limit], nil
		}
	}
	return out, nil
}

// missing appends to ranges the n sequence numbers from first on whose bit is 0, until there are limit ranges. The bits are
// in words of 64, in the machine's order.
func missing(ranges []SeqRange, bits []byte, first, n uint64, limit int) []SeqRange {
	for i := uint64(0); i < n; i++ {
		word := binary.NativeEndian.Uint64(bits[i/64*8:])
		switch {
		case i%64 == 0 && word == math.MaxUint64:
			i += 63
			continue
		case word>>(i%64)&1 == 1:
			continue
		}
		if last := len(ranges) - 1; last >= 0 && ranges[last].First+ranges[last].Count == first+i {
			ranges[last].Count++
		} else if len(ranges) == limit {
			return ranges
		} else {
			ranges = append(ranges, SeqRange{First: first + i, Count: 1})
		}
	}
	return ranges
}

// Close detaches the program and frees it. The second call does nothing.
func (s *Sink) Close() error { return errors.Join(s.detach(), s.unload()) }
