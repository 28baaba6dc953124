package simnet

import (
	"encoding/binary"
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
)

func rng(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 1)) }

// numbered sends n frames of 64 bytes, one a microsecond, that begin with their number.
func numbered(w *Wire, n int) (copies int) {
	frame := make([]byte, 64)
	for i := range n {
		binary.BigEndian.PutUint64(frame, uint64(i))
		copies += w.Send(frame)
		w.clock.AdvanceTo(w.clock.Now() + 1000)
	}
	return copies
}

func drain(w *Wire) (frames []Frame) {
	for {
		at, ok := w.Next()
		if !ok {
			return frames
		}
		w.clock.AdvanceTo(at)
		f, ok := w.Receive()
		if !ok {
			panic("the frame that Next tells of is not there")
		}
		frames = append(frames, f)
	}
}

func TestPerfectWire(t *testing.T) {
	w := NewWire(NewClock(5), rng(1), Faults{LatencyNS: 30_000, JitterNS: 10_000})
	if got := numbered(w, 1000); got != 1000 {
		t.Fatalf("Send promised %d copies of 1000", got)
	}
	if f, ok := NewWire(w.clock, rng(1), Faults{}).Receive(); ok {
		t.Fatalf("an empty wire gave %v", f)
	}
	frames := drain(w)
	if len(frames) != 1000 {
		t.Fatalf("%d frames of 1000 arrived", len(frames))
	}
	for i, f := range frames {
		if f.Copy || f.Corrupt || binary.BigEndian.Uint64(f.Bytes) != uint64(i) || len(f.Bytes) != 64 {
			t.Fatalf("frame %d is %+v", i, f)
		}
	}
}

// TestLatency shows that no frame arrives before its time.
func TestLatency(t *testing.T) {
	c := NewClock(100)
	w := NewWire(c, rng(1), Faults{LatencyNS: 50})
	w.Send([]byte{1})
	c.AdvanceTo(149)
	if _, ok := w.Receive(); ok {
		t.Error("a frame arrived 1 ns early")
	}
	c.AdvanceTo(120) // back: ignored
	c.AdvanceTo(150)
	if _, ok := w.Receive(); !ok {
		t.Error("the frame did not arrive in time")
	}
}

func TestFaults(t *testing.T) {
	const n = 20_000
	near := func(t *testing.T, what string, got uint64, p float64) {
		t.Helper()
		if sigma := math.Sqrt(n * p * (1 - p)); math.Abs(float64(got)-n*p) > 6*sigma {
			t.Errorf("%s: %d of %d, want about %.0f", what, got, n, n*p)
		}
	}
	w := NewWire(NewClock(0), rng(7), Faults{
		Loss: 0.1, Duplicate: 0.05, Reorder: 0.02, Corrupt: 0.03, LatencyNS: 1000, ReorderNS: 100_000,
	})
	copies := numbered(w, n)
	frames := drain(w)
	s := w.Stats()
	if copies != len(frames) || s.Sent+s.Duplicated-s.Lost != s.Delivered || int(s.Delivered) != len(frames) {
		t.Errorf("promised %d, arrived %d, counted %+v", copies, len(frames), s)
	}
	near(t, "lost", s.Lost, 0.1)
	near(t, "duplicated", s.Duplicated, 0.05*0.9)
	near(t, "reordered", s.Reordered, 0.02*0.945)
	near(t, "corrupted", s.Corrupted, 0.03*0.945)
	checkFrames(t, frames, s)
}

func checkFrames(t *testing.T, frames []Frame, s Stats) {
	t.Helper()
	var copies, corrupt, backwards uint64
	last := uint64(0)
	for _, f := range frames {
		if f.Copy {
			copies++
		}
		if f.Corrupt {
			corrupt++
			ones := 0
			for _, b := range f.Bytes[min(8, len(f.Bytes)):] {
				ones += bits.OnesCount8(b)
			}
			if len(f.Bytes) == 64 && ones > 1 {
				t.Errorf("%d bits flipped", ones)
			}
			continue
		}
		n := binary.BigEndian.Uint64(f.Bytes)
		if n < last {
			backwards++
		}
		last = n
	}
	if copies != s.Duplicated || corrupt != s.Corrupted || backwards == 0 || backwards > s.Reordered+s.Duplicated {
		t.Errorf("%d copies, %d corrupt, %d went backwards; counted %+v", copies, corrupt, backwards, s)
	}
}

// TestDigest shows that equal seeds give equal runs, and that a digest tells different ones apart.
func TestDigest(t *testing.T) {
	run := func(seed uint64) uint64 {
		w := NewWire(NewClock(0), rng(seed), Faults{Loss: 0.2, Duplicate: 0.2, Reorder: 0.5, Corrupt: 0.2, JitterNS: 500, ReorderNS: 10_000})
		numbered(w, 200)
		drain(w)
		return w.Digest()
	}
	seen := map[uint64]uint64{}
	for seed := range uint64(200) {
		d := run(seed)
		if again := run(seed); d != again {
			t.Errorf("seed %d gave %x and %x", seed, d, again)
		}
		if other, ok := seen[d]; ok {
			t.Errorf("seeds %d and %d gave the same digest", seed, other)
		}
		seen[d] = seed
	}
}
