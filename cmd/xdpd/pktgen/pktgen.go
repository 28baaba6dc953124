// Package pktgen is what xdpd pktgen does: it sends traffic and counts, to the packet, what became of it.
//
// There are three sources. bpf is a program in the kernel (xdpprog.Source), xsk the engine's own AF_XDP socket, kernel the
// kernel's pktgen, run by scripts/pktgen. The first two stamp each frame with a sequence number and the time, or replay a
// capture file. What comes back, or in at another place, is taken by a program in the kernel (xdpprog.Sink) or by the
// AF_XDP socket, and each number is accounted for.
package pktgen

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"golang.org/x/sys/unix"
)

// Sent is what a source did.
type Sent struct {
	Packets uint64        `json:"packets"` // taken by the device
	Bytes   uint64        `json:"bytes"`   // of them, without FCS
	Dropped uint64        `json:"dropped"` // bpf: refused by the device, whose ring was full, or which has nobody to receive
	Errors  uint64        `json:"errors"`  // refused by the kernel
	Skipped uint64        `json:"skipped"` // bpf: places in the schedule that were given up because the source was late
	Took    time.Duration `json:"ns"`      // from the first frame to the last
}

// source sends. sent may be called while it runs.
type source interface {
	run(ctx context.Context) error // until all is sent, or ctx is done, which is no error
	sent() (Sent, error)
}

// sink receives from when it is opened. poll has it do so where nothing else does.
type sink interface {
	poll()
	received() (Received, error)
	latency() (*hdrhistogram.Histogram, error)
}

// Run does what the configuration says, until it is done or ctx is, and reports. Once a second it tells live how far it is.
// It must be called on a thread in the interface's network namespace, and opens everything there. The report is not nil
// when the run was as it should be, whatever was lost; Report.Fault judges that.
func Run(ctx context.Context, c Config, live *Live) (*Report, error) {
	if err := c.settle(); err != nil {
		return nil, err
	}
	d, err := findDevice(c.Interface)
	if err != nil {
		return nil, err
	}
	if !c.Sink {
		if err := c.aim(ctx, d); err != nil {
			return nil, err
		}
	}
	r := &run{config: &c, live: live}
	if err := r.open(d); err != nil {
		return nil, errors.Join(explain(err), r.close.all())
	}
	report, err := r.do(ctx)
	if err = errors.Join(err, r.close.all()); err != nil {
		return nil, explain(err)
	}
	return report, nil
}

// aim holds the frames against the device, and completes where they go.
func (c *Config) aim(ctx context.Context, d *device) error {
	if err := d.fits(c.longestFrame()); err != nil {
		return err
	}
	if c.capture != nil {
		return nil
	}
	if c.SrcMAC.IsZero() {
		c.SrcMAC.MAC = d.mac
	}
	return d.complete(ctx, &c.Src, c.Dst.First, &c.DstMAC.MAC)
}

// explain adds what to do to errors of rights.
func explain(err error) error {
	if err != nil && errors.Is(err, unix.EPERM) && !strings.Contains(err.Error(), "root") {
		return fmt.Errorf("%w: run it as root, or with CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW and CAP_PERFMON", err)
	}
	return err
}

// run is one run.
type run struct {
	config *Config
	live   *Live
	source source // nil: only receives
	sink   sink   // nil: only sends
	close  closers

	first, last time.Time // when something was first and last seen to come in
}

// closers close what was opened, the last first.
type closers []func() error

func (c closers) all() error {
	var errs []error
	for _, f := range slices.Backward(c) {
		errs = append(errs, f())
	}
	return errors.Join(errs...)
}

func (r *run) open(d *device) (err error) {
	c := r.config
	if c.Sink || c.Echo && c.Source == "bpf" {
		s, err := openKernelSink(d, c)
		if err != nil {
			return err
		}
		r.sink, r.close = s, append(r.close, s.close)
	}
	switch {
	case c.Sink:
		return nil
	case c.Source == "xsk":
		return r.openXSK(d)
	case c.Source == "kernel":
		r.source, err = newKernelSource(c)
		return err
	}
	s, err := openBPF(d, c)
	if err == nil {
		r.source, r.close = s, append(r.close, s.close)
	}
	return err
}

func (r *run) openXSK(d *device) error {
	c := r.config
	var check *checker
	if c.Echo {
		check = &checker{verifier: newVerifier(c.N, c.numbers()), mark: c.Mark, sizes: c.Sizes.pattern()}
	}
	x, err := openXSK(d, c, check)
	if err != nil {
		return err
	}
	r.close = append(r.close, x.close)
	pace := newPacer(c.perSecond(), c.Burst, nanotime())
	if c.capture != nil {
		t := &replayer{capture: c.capture, speed: c.Speed, pace: pace, total: c.frames()}
		if !c.DstMAC.IsZero() {
			t.dst = c.DstMAC.MAC[:]
		}
		if !c.SrcMAC.IsZero() {
			t.src = c.SrcMAC.MAC[:]
		}
		r.source = xskSource{x, t}
		return nil
	}
	make := maker{dst: c.DstMAC.MAC, src: c.SrcMAC.MAC, flows: &c.Flows, sizes: c.Sizes.pattern(), mark: c.Mark}
	r.source = xskSource{x, &generated{make, pace, c.frames()}}
	if c.Echo {
		r.sink = x
	}
	return nil
}

// do runs source and sink to their end.
func (r *run) do(ctx context.Context) (*Report, error) {
	c := r.config
	if c.Duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, c.Duration)
		defer cancel()
	}
	report := &Report{Config: *c, Started: time.Now()}
	stop := r.live.start(r)
	err := r.send(ctx)
	report.Seconds = time.Since(report.Started).Seconds()
	if err == nil && r.source != nil && r.sink != nil {
		err = r.awaitReplies()
	}
	stop()
	if err != nil {
		return nil, err
	}
	return report, r.fill(report)
}

// send runs the source; a sink alone waits for the end of time, or for its count.
func (r *run) send(ctx context.Context) error {
	if r.source != nil {
		return r.source.run(ctx)
	}
	return r.until(ctx, func(got *Received) bool {
		return r.config.Count > 0 && got.Unique+got.Beyond >= uint64(r.config.Count)
	})
}

// pollEvery is how often the counters of an in-kernel sink are looked at.
const pollEvery = 2 * time.Millisecond

// until receives until enough is true of what came, or ctx is done.
func (r *run) until(ctx context.Context, enough func(*Received) bool) error {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for frames := uint64(0); ; {
		r.sink.poll()
		got, err := r.sink.received()
		if err != nil {
			return err
		}
		if got.Frames != frames {
			frames, r.last = got.Frames, time.Now()
			if r.first.IsZero() {
				r.first = r.last
			}
		}
		if enough(&got) {
			return nil
		}
		if _, busy := r.sink.(*xsk); busy && ctx.Err() == nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// awaitReplies waits until everything is back, or nothing came for Config.Wait.
func (r *run) awaitReplies() error {
	sent, err := r.source.sent()
	if err != nil {
		return err
	}
	r.last = time.Now()
	return r.until(context.Background(), func(got *Received) bool {
		return got.Lost(sent.Packets) == 0 || time.Since(r.last) >= r.config.Wait
	})
}

// Live tells once a second how far a run is: on a terminal always in the same line, else one below the other.
type Live struct {
	Out      io.Writer
	Terminal bool
	Every    time.Duration
}

// start begins to tell; the function it returns ends it.
func (l *Live) start(r *run) (stop func()) {
	done := make(chan struct{})
	var telling sync.WaitGroup
	telling.Go(func() {
		tick := time.NewTicker(l.Every)
		defer tick.Stop()
		var before view
		for begin := time.Now(); ; {
			select {
			case <-done:
				if l.Terminal {
					fmt.Fprint(l.Out, "\r\x1b[K")
				}
				return
			case <-tick.C:
			}
			now, err := look(r, time.Since(begin))
			if err != nil {
				continue // the end will tell
			}
			if l.Terminal {
				fmt.Fprint(l.Out, "\r\x1b[K"+now.since(&before))
			} else {
				fmt.Fprintln(l.Out, now.since(&before))
			}
			before = now
		}
	})
	return func() { close(done); telling.Wait() }
}

// view is what a run had done at some time.
type view struct {
	at       time.Duration
	sends    bool
	receives bool
	sent     Sent
	received Received
}

func look(r *run, at time.Duration) (v view, err error) {
	v = view{at: at, sends: r.source != nil, receives: r.sink != nil}
	if v.sends {
		v.sent, err = r.source.sent()
	}
	if v.receives && err == nil {
		v.received, err = r.sink.received()
	}
	return v, err
}

// since is a line with the rates since before.
func (v *view) since(before *view) string {
	var parts []string
	seconds := (v.at - before.at).Seconds()
	if v.sends {
		packets := v.sent.Packets - before.sent.Packets
		parts = append(parts, "sent "+rates(packets, v.sent.Bytes-before.sent.Bytes, seconds))
		if v.sent.Dropped+v.sent.Errors > 0 {
			parts = append(parts, fmt.Sprintf("refused %d", v.sent.Dropped+v.sent.Errors))
		}
	}
	if v.receives {
		got := &v.received
		parts = append(parts, "received "+rates(got.Frames-before.received.Frames, got.Bytes-before.received.Bytes, seconds),
			fmt.Sprintf("duplicates %d, out of order %d, corrupt %d", got.Duplicates, got.Reordered, got.Corrupt))
	}
	return fmt.Sprintf("%3.0f s  %s", v.at.Seconds(), strings.Join(parts, ", "))
}

// rates is packets and bits a second.
func rates(packets, bytes uint64, seconds float64) string {
	return fmt.Sprintf("%spps, %sbit/s", short(float64(packets)/seconds), short(bits(packets, bytes)/seconds))
}

// bits is how many a number of frames has on a wire, with FCS and without preamble and gap.
func bits(packets, bytes uint64) float64 { return 8 * float64(bytes+fcs*packets) }

// kernelRelease is what uname -r says.
func kernelRelease() string {
	text, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(text))
}
