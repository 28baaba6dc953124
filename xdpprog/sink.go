package xdpprog

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
type Sink struct{}

// SinkStats counts from LoadSink or Reset on.
type SinkStats struct {
	Frames uint64 // taken, bad ones included
	Bytes  uint64 // of them, without FCS
	BadSum uint64 // with CheckSums: an IPv4 or UDP checksum was wrong; counted nowhere below
	// PartialSum is how many held only the pudo-header's sum, as the kernel leaves it on veth (with CheckSums); they are good.
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

// LoadSink loads the program and attaches it. The calling thread must be in the device's network namespace while LoadSink
// runs, and not afterwards. Errors are as those of Load.
func LoadSink(c SinkConfig) (*Sink, error) { return nil, nil }

// Stats reads the counters. CPUs go on counting while they are read: the sums of a busy device are not of one instant, but
// nothing is lost or counted twice between two calls.
func (s *Sink) Stats() (SinkStats, error) { return SinkStats{}, nil }

// Reset starts all counts anew, with FirstSeq as the first of the Seqs sequence numbers. What arrives while Reset runs may
// count in part: let traffic come to rest before.
func (s *Sink) Reset(firstSeq uint64) error { return nil }

// Missing returns at most limit ranges of sequence numbers in [FirstSeq, FirstSeq+n) that have not come, in order.
func (s *Sink) Missing(n uint64, limit int) ([]SeqRange, error) { return nil, nil }

// SeqRange is Count sequence numbers from First on.
type SeqRange struct{ First, Count uint64 }

// Native reports whether the program runs in the driver, as Program.Native does.
func (s *Sink) Native() bool { return false }

// Close detaches the program and frees it. The second call does nothing.
func (s *Sink) Close() error { return nil }

// Drop is an XDP program that counts and drops whatever comes: the cheapest receiver there is.
type Drop struct{}

// LoadDrop loads and attaches it, as LoadSink does.
func LoadDrop(iface string, ifindex int, attach Attach) (*Drop, error) { return nil, nil }

// Count returns the packets and their bytes, without FCS, since LoadDrop.
func (d *Drop) Count() (packets, bytes uint64, err error) { return 0, 0, nil }

// Native reports whether the program runs in the driver, as Program.Native does.
func (d *Drop) Native() bool { return false }

// Close detaches the program and frees it. The second call does nothing.
func (d *Drop) Close() error { return nil }
