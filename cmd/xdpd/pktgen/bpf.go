package pktgen

import (
	"context"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"xdpd/xdpprog"
)

// bpfSource is the source in the kernel.
type bpfSource struct {
	*xdpprog.Source
	dev   string
	count uint64 // 0: no end
}

func openBPF(d *device, c *Config) (*bpfSource, error) {
	cfg := xdpprog.SourceConfig{
		Interface: d.name, Ifindex: d.index, Mark: c.Mark, Rate: c.perSecond(), Pin: c.CPU >= 0, CPU: max(0, c.CPU),
	}
	if c.Burst > 1 {
		cfg.Batch = c.Burst
	}
	if c.capture != nil {
		cfg.Mark = 0
		cfg.Frames, cfg.Gaps = c.capture.schedule(c)
	} else {
		cfg.SrcMAC, cfg.DstMAC = net.HardwareAddr(c.SrcMAC.MAC[:]), net.HardwareAddr(c.DstMAC.MAC[:])
		cfg.Src = xdpprog.Addrs{First: c.Src.First.Netip(), Count: c.Src.n()}
		cfg.Dst = xdpprog.Addrs{First: c.Dst.First.Netip(), Count: c.Dst.n()}
		cfg.SrcPort = xdpprog.Ports{First: c.Sport.First, Count: c.Sport.n()}
		cfg.DstPort = xdpprog.Ports{First: c.Dport.First, Count: c.Dport.n()}
		cfg.Flows, cfg.Sizes = c.N, c.Sizes.pattern()
	}
	s, err := xdpprog.LoadSource(cfg)
	if err != nil {
		return nil, err
	}
	return &bpfSource{s, d.name, c.frames()}, nil
}

// schedule is what the in-kernel source replays, and how long each frame is due after the one before it.
func (f *capture) schedule(c *Config) (frames [][]byte, gaps []time.Duration) {
	for i := range f.n() {
		frame := slices.Clone(f.frame(i))
		if !c.DstMAC.IsZero() {
			copy(frame, c.DstMAC.MAC[:])
		}
		if !c.SrcMAC.IsZero() {
			copy(frame[6:], c.SrcMAC.MAC[:])
		}
		frames = append(frames, frame)
		gap := f.round() - f.at[f.n()-1] // of the first, to the last of the round before
		if i > 0 {
			gap = f.at[i] - f.at[i-1]
		}
		if c.Speed > 0 {
			gaps = append(gaps, time.Duration(float64(gap)/c.Speed))
		}
	}
	return frames, gaps
}

// probe is how many frames are sent before it is asked whether any left.
const probe = 16

func (s *bpfSource) run(ctx context.Context) error {
	first := uint64(probe)
	if s.count > 0 {
		first = min(first, s.count)
	}
	if err := s.part(ctx, first); err != nil || ctx.Err() != nil || first == s.count {
		return err
	}
	return s.part(ctx, s.count-min(s.count, first))
}

// part sends n frames; 0: no end.
func (s *bpfSource) part(ctx context.Context, n uint64) error {
	if err := s.Run(ctx, n); err != nil && ctx.Err() == nil {
		return err
	}
	st, err := s.Stats()
	if err == nil && st.Sent == 0 && st.Written > 0 {
		return fmt.Errorf("nothing that is written leaves %s (%d refused): if it is a veth, its other end receives only with an XDP program or GRO: "+
			"ethtool -K PEER gro on there; or use --source xsk", s.dev, st.Dropped+st.RedirectErrors)
	}
	return err
}

func (s *bpfSource) sent() (Sent, error) {
	st, err := s.Stats()
	sent := Sent{
		Packets: st.Sent, Bytes: st.Bytes, Dropped: st.Dropped, Errors: st.RedirectErrors, Skipped: st.Skipped,
		Took: time.Duration(st.Last - st.First),
	}
	if st.Written > 0 && st.Sent < st.Written { // what was refused has bytes as well
		sent.Bytes = uint64(float64(st.Bytes) * float64(st.Sent) / float64(st.Written))
	}
	return sent, err
}

func (s *bpfSource) close() error { return s.Close() }

// kernelSink is the sink in the kernel.
type kernelSink struct{ *xdpprog.Sink }

func openKernelSink(d *device, c *Config) (kernelSink, error) {
	s, err := xdpprog.LoadSink(xdpprog.SinkConfig{
		Interface: d.name, Ifindex: d.index, Mark: c.Mark, CheckSums: true, Seqs: c.numbers(), Flows: c.N,
	})
	return kernelSink{s}, err
}

func (kernelSink) poll() {}

func (s kernelSink) received() (Received, error) {
	st, err := s.Stats()
	return fromSink(&st), err
}

func (s kernelSink) latency() (*hdrhistogram.Histogram, error) {
	st, err := s.Stats()
	h := newHistogram()
	for v, n := range st.Latency.Buckets() {
		_ = h.RecordValues(min(max(v, 1), longest), int64(n))
	}
	return h, err
}

func (s kernelSink) close() error { return s.Close() }

// fromSink gives what the in-kernel sink counted. Its figures are those of verifier: a frame that is late is either reordered
// or a duplicate.
func fromSink(s *xdpprog.SinkStats) Received {
	reordered := s.Late - min(s.Late, s.Duplicates)
	return Received{
		Frames: s.Frames, Bytes: s.Bytes, Unique: s.Unique, Duplicates: s.Duplicates, Beyond: s.Outside,
		Reordered: reordered, Gaps: s.Gap - min(s.Gap, reordered), Corrupt: s.BadSum, Others: s.Passed,
	}
}
