package pktgen

import (
	"errors"
	"fmt"
	"time"

	"xdpd/rings"
	"xdpd/xdpprog"
)

// Config says what to send and what to receive. It is a part of the report.
type Config struct {
	Interface string        `json:"interface"`
	Source    string        `json:"source,omitempty"` // bpf, xsk or kernel; "" with Sink
	Sink      bool          `json:"sink"`             // send nothing: receive and verify what another pktgen sends
	Echo      bool          `json:"echo"`             // expect everything back
	SrcMAC    MAC           `json:"src_mac"`          // zero: the interface's
	DstMAC    MAC           `json:"dst_mac"`          // zero: ask the kernel's routes and neighbours
	Flows                   //
	Sizes     Sizes         `json:"sizes"`
	Rate      Rate          `json:"rate"`
	Count     Count         `json:"count"`    // frames to send, or to receive with Sink; 0: no end
	Duration  time.Duration `json:"duration"` // ns; 0: no end
	Burst     int           `json:"burst"`    // frames sent together
	Wait      time.Duration `json:"wait"`     // ns; how long nothing may come before the rest is lost
	Mark      uint16        `json:"mark"`     // of the stamps
	Queue     int           `json:"queue"`    // xsk and kernel: that frames are sent on
	Mode      string        `json:"mode"`     // xsk: best, copy or zerocopy
	CPU       int           `json:"cpu"`      // bpf and kernel: that sends; -1: any
	Replay    string        `json:"replay,omitempty"`
	Speed     float64       `json:"speed,omitempty"` // of the replay, times the recorded; 0: by Rate
	Loops     int           `json:"loops,omitempty"` // rounds of the replay; 0: no end
	Verify    bool          `json:"verify"`

	capture *capture
}

// UsageError is a configuration that makes no sense.
type UsageError struct{ err error }

func (e *UsageError) Error() string { return e.err.Error() }
func (e *UsageError) Unwrap() error { return e.err }

var modes = map[string]rings.Mode{"best": rings.Best, "copy": rings.Copy, "zerocopy": rings.ZeroCopy}

func (c *Config) mode() rings.Mode { return modes[c.Mode] }

// settle gives what was not said its default and refuses what does not go together.
func (c *Config) settle() error {
	if err := c.check(); err != nil {
		return &UsageError{err}
	}
	if c.Mark == 0 {
		c.Mark = xdpprog.DefaultMark
	}
	if c.Sink {
		c.N = max(1, c.N)
		return nil
	}
	if c.Replay != "" {
		return c.settleReplay()
	}
	if err := c.Flows.settle(); err != nil {
		return &UsageError{err}
	}
	return nil
}

func (c *Config) check() error {
	receives := c.Sink || c.Echo
	switch {
	case c.Interface == "":
		return errors.New("no interface given: -i IFACE")
	case c.Sink && c.Echo:
		return errors.New("--sink sends nothing, so there is nothing for --echo to come back: leave one of them out")
	case c.Verify && !receives:
		return errors.New("--verify looks at what comes in: with --echo at the replies, with --sink at what another pktgen sends")
	case c.Burst < 1 || c.Burst > xdpprog.MaxBatch:
		return fmt.Errorf("--burst %d: a burst has 1 to %d packets", c.Burst, xdpprog.MaxBatch)
	case c.Duration < 0 || c.Wait < 0:
		return errors.New("--duration and --wait cannot be negative")
	case c.N < 0 || c.N > MaxFlows:
		return fmt.Errorf("--flows %d: there may be 1 to %d", c.N, MaxFlows)
	case c.Sink && c.Replay != "":
		return errors.New("--sink sends nothing, and --replay does: leave one of them out")
	case c.Sink:
		return nil
	case c.Replay != "" && c.Echo:
		return errors.New("--replay sends frames as they are, without a stamp to know them by: leave --echo out")
	case c.Source == "kernel" && c.Echo:
		return errors.New("the packets of the kernel's pktgen have no stamp of ours to know them by: --echo goes with --source bpf and xsk")
	case c.Source == "kernel" && c.Replay != "":
		return errors.New("the kernel's pktgen replays nothing: --replay goes with --source bpf and xsk")
	case c.Replay == "" && c.Dst == (Addrs{}):
		return errors.New("no destination given: --dst ADDR, or a range of them")
	case c.Source == "bpf" && c.Replay == "" && c.Sizes.max() > xdpprog.MaxSize:
		return fmt.Errorf("--source bpf sends frames of at most %d bytes: give a smaller --size, or use --source xsk", xdpprog.MaxSize)
	}
	return nil
}

// settleReplay reads the capture file.
func (c *Config) settleReplay() (err error) {
	if c.capture, err = loadCapture(c.Replay); err != nil {
		return err
	}
	if c.Rate != (Rate{}) {
		c.Speed = 0
	}
	if c.Source != "bpf" {
		return nil
	}
	if n := c.capture.n(); n > xdpprog.MaxFrames {
		return fmt.Errorf("--source bpf replays at most %d frames, and %s has %d: use --source xsk", xdpprog.MaxFrames, c.Replay, n)
	}
	if n := c.capture.longest(); n > xdpprog.MaxSize-fcs {
		return fmt.Errorf("--source bpf sends frames of at most %d bytes, and %s has one of %d: use --source xsk", xdpprog.MaxSize-fcs, c.Replay, n)
	}
	return nil
}

// longestFrame is in bytes without FCS.
func (c *Config) longestFrame() int {
	if c.capture != nil {
		return c.capture.longest()
	}
	return c.Sizes.max() - fcs
}

// perSecond is the rate in packets; 0: no limit.
func (c *Config) perSecond() float64 {
	if c.capture != nil {
		return c.Rate.perSecond(float64(len(c.capture.data))/float64(c.capture.n()) + fcs)
	}
	return c.Rate.perSecond(c.Sizes.mean())
}

// frames is how many to send; 0: no end.
func (c *Config) frames() uint64 {
	n := uint64(c.Count)
	if c.capture == nil || c.Loops == 0 {
		return n
	}
	all := uint64(c.Loops) * uint64(c.capture.n())
	if n == 0 {
		return all
	}
	return min(n, all)
}

// numbers is of how many sequence numbers account is kept, as far as it can be known before.
func (c *Config) numbers() uint64 {
	const fastest = 20e6 // packets a second: no source of ours comes near
	n := uint64(c.Count)
	if n == 0 && c.Duration > 0 && !c.Sink {
		rate := c.perSecond()
		if rate == 0 {
			rate = fastest
		}
		n = uint64(rate*c.Duration.Seconds()*1.1) + 1<<20
	}
	if n == 0 {
		n = xdpprog.MaxSeqs
	}
	return min(n, xdpprog.MaxSeqs)
}
