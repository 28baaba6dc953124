package xdpprog

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
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

	Pin bool // run on CPU only
	CPU int
}

// Source sends frames from within the kernel: a BPF program, run in a loop by BPF_PROG_RUN with "live frames"
// (Documentation/bpf/bpf_prog_run.rst), writes each frame and redirects it to the device. On veth the far end receives it
// in its NAPI, which that end has while it has an XDP program, or GRO on; the softirq runs on the source's CPU, unless
// somebody else runs that NAPI. Needs Linux 5.18, CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON.
type Source struct {
	config  SourceConfig
	proto   []byte // what the kernel fills new frames with
	objs    sourceObjects
	tracers []link.Link

	running sync.Mutex // held by Run
	rates   sync.Mutex // guards what SetRate changes
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
	s := &Source{config: c}
	if err := s.config.complete(); err != nil {
		return nil, fmt.Errorf("xdpprog: source on %s: %w", c.Interface, err)
	}
	s.proto = s.config.prototype()
	if err := s.load(); err != nil {
		return nil, fmt.Errorf("xdpprog: source on %s: %w", c.Interface, errors.Join(err, s.Close()))
	}
	return s, nil
}

func (s *Source) load() error {
	spec, err := loadSource()
	if err != nil {
		return fmt.Errorf("read the built-in program: %w", err)
	}
	for name, value := range s.config.constants(s.proto) {
		if err := spec.Variables[name].Set(value); err != nil {
			return fmt.Errorf("set %s: %w", name, err)
		}
	}
	frames := spec.Maps[sourceMapFrames]
	frames.MaxEntries = uint32(max(1, len(s.config.Frames)))
	frames.ValueSize = uint32(slotLen + len(s.proto))

	// The device's map comes first: the tracing program knows its frames by it.
	out, err := ebpf.NewMap(spec.Maps[sourceMapOut])
	if err != nil {
		return explainPrivilege(err)
	}
	defer out.Close() // the programs keep it
	if err := out.Put(uint32(0), uint32(s.config.Ifindex)); err != nil {
		if errors.Is(err, unix.EINVAL) { // kernel/bpf/devmap.c, __dev_map_alloc_node: no such device
			err = unix.ENODEV
		}
		return fmt.Errorf("device %d: %w (in this network namespace)", s.config.Ifindex, err)
	}
	info, err := out.Info()
	if err != nil {
		return err
	}
	id, _ := info.ID()
	if err := spec.Variables[sourceVarRedirectMapId].Set(uint32(id)); err != nil {
		return err
	}
	err = spec.LoadAndAssign(&s.objs, &ebpf.CollectionOptions{MapReplacements: map[string]*ebpf.Map{sourceMapOut: out}})
	if err != nil {
		return explainPrivilege(err)
	}
	for i := range s.config.Frames {
		if err := s.objs.Frames.Put(uint32(i), s.config.slot(i, len(s.proto))); err != nil {
			return fmt.Errorf("frame %d: %w", i, err)
		}
	}
	for _, p := range []*ebpf.Program{s.objs.SourceXmit, s.objs.SourceErr} {
		l, err := link.AttachTracing(link.TracingOptions{Program: p})
		if err != nil {
			return explainPrivilege(err)
		}
		s.tracers = append(s.tracers, l)
	}
	return s.SetRate(s.config.Rate)
}

func explainPrivilege(err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("%w (CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON are needed: run as root)", err)
	}
	return fmt.Errorf("%w (Linux 5.18 with BTF is needed)", err)
}

// SetRate changes the rate, in frames/s; 0 means as fast as possible, or by Gaps. It may be called during a Run, where
// the size of a batch stays as it was.
func (s *Source) SetRate(rate float64) error {
	if err := checkRate(rate); err != nil {
		return fmt.Errorf("xdpprog: source on %s: %w", s.config.Interface, err)
	}
	s.rates.Lock()
	defer s.rates.Unlock()
	s.config.Rate = rate
	var step uint64
	var frac uint32
	if rate > 0 {
		ns := 1e9 / rate
		step = uint64(ns)
		frac = uint32((ns - float64(step)) * (1 << 32))
	}
	return errors.Join(s.objs.StepFrac.Set(frac), s.objs.StepNs.Set(step), s.objs.Rebase.Set(uint32(1)))
}

// Stats reads the counters. During a Run, frames of its last batch are written and neither sent nor dropped yet.
func (s *Source) Stats() (SourceStats, error) {
	var st SourceStats
	var err error
	for _, v := range []struct {
		from *ebpf.Variable
		to   *uint64
	}{
		{s.objs.Dropped, &st.Dropped},
		{s.objs.RedirectErrors, &st.RedirectErrors},
		{s.objs.Written, &st.Written}, // after those that are taken from it
		{s.objs.Bytes, &st.Bytes},
		{s.objs.Skipped, &st.Skipped},
	} {
		err = errors.Join(err, v.from.Get(v.to))
	}
	err = errors.Join(err, s.objs.FirstTime.Get(&st.First), s.objs.LastTime.Get(&st.Last))
	st.Sent = st.Written - st.Dropped - st.RedirectErrors
	if err != nil {
		return SourceStats{}, fmt.Errorf("xdpprog: counters of the source on %s: %w", s.config.Interface, err)
	}
	return st, nil
}

// Flows is how many flows there are; the number of Frames if those are sent.
func (s *Source) Flows() int { return s.config.Flows }

// Close frees the program; a Run must have ended. The second call does nothing.
func (s *Source) Close() error {
	var err error
	for _, l := range s.tracers {
		err = errors.Join(err, l.Close())
	}
	s.tracers = nil
	if err = errors.Join(err, s.objs.Close()); err != nil {
		return fmt.Errorf("xdpprog: close the source on %s: %w", s.config.Interface, err)
	}
	return nil
}
