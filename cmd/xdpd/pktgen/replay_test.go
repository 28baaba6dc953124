package pktgen

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/gopacket/gopacket/pcapgo"
)

// recorded is a frame and when it was captured.
type recorded struct {
	data []byte
	at   time.Duration
	cut  int // bytes that were not captured
}

var epoch = time.Date(2026, 1, 2, 3, 4, 5, 678, time.UTC)

func (r *recorded) info() gopacket.CaptureInfo {
	return gopacket.CaptureInfo{Timestamp: epoch.Add(r.at), CaptureLength: len(r.data), Length: len(r.data) + r.cut}
}

func pcap(t testing.TB, link layers.LinkType, frames ...recorded) []byte {
	t.Helper()
	var b bytes.Buffer
	w := pcapgo.NewWriterNanos(&b)
	if err := w.WriteFileHeader(65535, link); err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if err := w.WritePacket(f.info(), f.data); err != nil {
			t.Fatal(err)
		}
	}
	return b.Bytes()
}

func pcapng(t testing.TB, frames ...recorded) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := pcapgo.NewNgWriter(&b, layers.LinkTypeEthernet)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if err := w.WritePacket(f.info(), f.data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// someFrames are of an Ethernet type that no kernel answers, of different lengths and bytes.
func someFrames(n int) (out []recorded) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range n {
		b := make([]byte, 60+r.IntN(1455))
		for j := range b {
			b[j] = byte(r.Uint32())
		}
		copy(b, []byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, byte(i), 0x88, 0xb5})
		out = append(out, recorded{data: b, at: time.Duration(i) * 1500 * time.Microsecond})
	}
	return out
}

func TestReadCapture(t *testing.T) {
	frames := someFrames(5)
	frames[3].at = frames[1].at // a clock that was set back
	for name, file := range map[string][]byte{"pcap": pcap(t, layers.LinkTypeEthernet, frames...), "pcapng": pcapng(t, frames...)} {
		c, err := readCapture(bytes.NewReader(file))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		want := []int64{0, 1_500_000, 3_000_000, 3_000_000, 6_000_000}
		if c.n() != 5 || !slices.Equal(c.at, want) || c.round() != 7_500_000 {
			t.Errorf("%s: %d frames at %v, a round of %d", name, c.n(), c.at, c.round())
		}
		for i, f := range frames {
			if !bytes.Equal(c.frame(i), f.data) {
				t.Errorf("%s: frame %d is %x, want %x", name, i, c.frame(i), f.data)
			}
		}
	}
}

func TestReadCaptureErrors(t *testing.T) {
	frame := someFrames(1)[0]
	whole := pcap(t, layers.LinkTypeEthernet, frame, frame)
	for name, c := range map[string]struct {
		file []byte
		want string
	}{
		"empty":   {nil, "too short for a capture"},
		"text":    {[]byte("hello, world, this is a text of some length"), "no pcap and no pcapng"},
		"nothing": {pcap(t, layers.LinkTypeEthernet), "there is no frame in it"},
		"raw IP":  {pcap(t, layers.LinkTypeRaw, frame), "only Ethernet can be sent"},
		"cut":     {pcap(t, layers.LinkTypeEthernet, recorded{frame.data[:64], 0, 100}), "of frame 1 only 64 of 164 bytes were captured: capture whole frames (tcpdump -s 0)"},
		"short":   {pcap(t, layers.LinkTypeEthernet, frame, recorded{data: frame.data[:13]}), "frame 2 has 13 bytes"},
		"long":    {pcap(t, layers.LinkTypeEthernet, recorded{data: make([]byte, 5000)}), "frame 1 has 5000 bytes"},
		"broken":  {whole[:len(whole)-7], "behind frame 1"},
		"head":    {whole[:20], "no pcap and no pcapng"},
	} {
		if got, err := readCapture(bytes.NewReader(c.file)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, %v, want %q", name, got, err, c.want)
		}
	}
	if _, err := loadCapture(filepath.Join(t.TempDir(), "no.pcap")); err == nil || !os.IsNotExist(underlying(err)) {
		t.Errorf("a missing file gives %v", err)
	}
}

func underlying(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		if _, path := err.(*os.PathError); path {
			return err
		}
		err = u.Unwrap()
	}
}

// TestReplaySchedule asks at random times, and holds what is due against the recorded times.
func TestReplaySchedule(t *testing.T) {
	c := &capture{data: make([]byte, 3*60), end: []int{60, 120, 180}, at: []int64{0, 100, 400}}
	// A round takes 400 and a mean distance of 200.
	want := []int64{0, 100, 400, 600, 700, 1000, 1200, 1300, 1600}
	r := rand.New(rand.NewPCG(3, 4))
	for _, speed := range []float64{1, 0.5, 4} {
		const start = 1_000_000
		p := &replayer{capture: c, speed: speed, total: uint64(len(want))}
		b := make([]byte, 100)
		sent := 0
		for now := int64(start); ; now += int64(r.IntN(50)) {
			n, done := p.due(now, 1+r.IntN(3))
			for range n {
				at := start + int64(float64(want[sent])/speed)
				if now < at {
					t.Fatalf("speed %v: frame %d is due at %d, and was at %d", speed, sent, at, now)
				}
				p.put(b, now)
				sent++
			}
			if done {
				break
			}
			if n == 0 && sent < len(want) && now >= start+int64(float64(want[sent])/speed) {
				t.Fatalf("speed %v: at %d frame %d is not due", speed, now, sent)
			}
		}
		if sent != len(want) {
			t.Errorf("speed %v: %d frames were sent", speed, sent)
		}
	}
	fast := &replayer{capture: c, pace: newPacer(0, 1, 0), total: 7}
	if n, done := fast.due(5, 64); n != 7 || done {
		t.Errorf("as fast as it goes, %d are due at once", n)
	}
}

// TestScheduleForTheKernel: the gaps that the in-kernel source is told are those of the times.
func TestScheduleForTheKernel(t *testing.T) {
	c := &capture{data: make([]byte, 3*60), end: []int{60, 120, 180}, at: []int64{0, 100, 400}}
	frames, gaps := c.schedule(&Config{Speed: 2, DstMAC: MAC{[6]byte{1, 2, 3, 4, 5, 6}}})
	if !slices.Equal(gaps, []time.Duration{100, 50, 150}) || len(frames) != 3 || !bytes.Equal(frames[1][:7], []byte{1, 2, 3, 4, 5, 6, 0}) {
		t.Errorf("gaps %v, frames %x", gaps, frames)
	}
	if _, gaps := c.schedule(&Config{}); gaps != nil {
		t.Errorf("as fast as it goes with gaps %v", gaps)
	}
}

// FuzzCapture: no file makes the reader panic or give frames that cannot be sent.
func FuzzCapture(f *testing.F) {
	frames := someFrames(3)
	for i := range frames {
		frames[i].data = frames[i].data[:70]
	}
	f.Add(pcap(f, layers.LinkTypeEthernet, frames...))
	f.Add(pcapng(f, frames...))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := readCapture(bytes.NewReader(b))
		if err != nil {
			return
		}
		if c.n() == 0 || len(c.at) != c.n() || c.end[c.n()-1] != len(c.data) || c.at[0] != 0 || !slices.IsSorted(c.at) {
			t.Fatalf("read as %+v", c)
		}
		for i := range c.n() {
			if n := len(c.frame(i)); n < 14 || n > maxSize-fcs {
				t.Fatalf("frame %d has %d bytes", i, n)
			}
		}
	})
}
