package xdpprog

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of a Source. Sizes are in bytes as on a wire, with the four bytes of the Ethernet checksum (FCS) that a frame in
// memory has not: the smallest frame, 64, is 60 bytes in memory.
const (
	MinSize   = 64
	MaxSize   = 3300 // a live frame of a test run is one page with the kernel's own data in it
	MaxFlows  = 1 << 20
	MaxSizes  = 64
	MaxFrames = 1 << 16
	MaxBatch  = 256 // net/bpf/test_run.c, TEST_XDP_MAX_BATCH
)

// IMIX is the "simple IMIX" of frame sizes, 7:4:1, for SourceConfig.Sizes.
var IMIX = []int{64, 594, 64, 64, 594, 64, 64, 594, 64, 64, 594, 1518}

// Addrs is a range of IPv4 addresses: Count of them from First on.
type Addrs struct {
	First netip.Addr
	Count int // 0 means 1
}

// Ports is a range of ports: Count of them from First on.
type Ports struct {
	First uint16
	Count int // 0 means 1
}

// SourceConfig says what a Source sends, and where to.
//
// A frame is Ethernet, IPv4 without options, UDP, a Stamp, and Pattern repeated up to the frame's size, all sums right. With
// SYN it is a TCP SYN without options or data instead, and bears no Stamp. With Frames it is one of those.
//
// Flow i of Flows has source port First + i mod Count; what is left of i, divided by Count, says the destination port in
// the same way, then the source address, then the destination address. Frame number seq belongs to flow seq mod Flows
// or, with RandomFlows, to one that is a hash of seq; its size is Sizes[seq mod len(Sizes)].
type SourceConfig struct {
	Interface string // for messages
	Ifindex   int    // device to send from, in the calling thread's network namespace; must be up

	SrcMAC, DstMAC   net.HardwareAddr
	Src, Dst         Addrs
	SrcPort, DstPort Ports
	Flows            int    // 1..MaxFlows; 0: as many as the ranges make, and that must not be more than MaxFlows
	RandomFlows      bool   //
	Sizes            []int  // 1..MaxSizes of MinSize..MaxSize bytes with FCS; nil: {64}
	Pattern          []byte // payload after the stamp; nil: zeros
	NoUDPSum         bool   // the UDP checksum is zero: not computed
	SYN              bool   //

	// Frames, if any, are sent in turn as they are, from the Ethernet header on without FCS (14 bytes to MaxSize - 4).
	// All about addresses, flows, sizes and payload above must be left zero then. Gaps, if given, says for each
	// frame how long after the one before it is due; without SetRate it is the schedule.
	Frames [][]byte
	Gaps   []time.Duration

	Mark     uint16        // 0 means DefaultMark
	FirstSeq uint64        // sequence number of the first frame
	Rate     float64       // frames/s, 0 means as fast as possible; SetRate changes it
	Burst    time.Duration // how far a late source catches up; 0 means 100 µs. What is later is given up (SourceStats.Skipped)
	Batch    int           // frames handed over at a time, 1..MaxBatch; 0: by Rate, so that a batch spans at most 4 µs

	Pinned bool // run on CPU only
	CPU    int  //
}

// Source sends frames from within the kernel: a BPF program, run in a loop by BPF_PROG_RUN with "live frames"
// (Documentation/bpf/bpf_prog_run.rst), writes each frame and redirects it to the device. On veth the far end receives it
// in its NAPI, which that end has while it has an XDP program, or GRO on; the softirq runs on the source's CPU, unless
// somebody else runs that NAPI. Needs Linux 5.18, CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
type Source struct {
	config SourceConfig
	mu     sync.Mutex // held by Run
}

// SourceStats counts from LoadSource on. Written = Sent + Dropped + RedirectErrors once Run has returned.
type SourceStats struct {
	Written        uint64 // frames made: the next sequence number is FirstSeq + Written
	Bytes          uint64 // of them, without FCS
	Sent           uint64 // taken by the device
	Dropped        uint64 // refused by the device: its ring was full, or it has no receiver
	RedirectErrors uint64 // refused before that: device down, frame above MTU, no NAPI at the peer
	Skipped        uint64 // places in the schedule given up because the source was more than Burst late
	First, Last    int64  // when the first and the last frame were written, CLOCK_MONOTONIC ns; 0: none yet
}

// LoadSource loads the program and sets it up. The calling thread must be in the device's network namespace while
// LoadSource runs, and not afterwards. Errors match unix.EPERM, unix.ENODEV, or are about a field of the configuration.
func LoadSource(c SourceConfig) (*Source, error) {
	return nil, errors.New("xdpprog: not yet")
}

// Run sends count frames, 0 meaning without end, and returns nil; or the context's error when that is done first. The
// next Run goes on where this one ended, with the following sequence number. One Run at a time.
func (s *Source) Run(ctx context.Context, count uint64) error { return nil }

// SetRate changes the rate, in frames/s; 0 means as fast as possible, or by Gaps. It may be called during a Run.
func (s *Source) SetRate(rate float64) error { return nil }

// Stats reads the counters; it may be called during a Run, whose last batch is then not in Dropped yet.
func (s *Source) Stats() (SourceStats, error) { return SourceStats{}, nil }

// Flows is how many flows there are; the number of Frames if those are sent.
func (s *Source) Flows() int { return s.config.Flows }

// Close frees the program; a Run must have ended. The second call does nothing.
func (s *Source) Close() error { return nil }

var _ = fmt.Sprint
var _ = unix.EPERM
