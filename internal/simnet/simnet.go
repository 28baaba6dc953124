// Package simnet is a link without cables: what one end sends arrives at the other late, twice, out of order, changed or
// not at all, as a random source decides, in virtual time.
//
// It knows nothing of what is in a frame. Nothing here reads a clock or a global random source: two runs with the same
// seed do the same, which Digest shows.
package simnet

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"slices"
)

// Clock is virtual time in ns. It stands still until it is told to move.
type Clock struct{ now int64 }

// NewClock starts at now.
func NewClock(now int64) *Clock { return &Clock{now} }

// Now is the time.
func (c *Clock) Now() int64 { return c.now }

// AdvanceTo moves the clock forward to at. A time that is past changes nothing.
func (c *Clock) AdvanceTo(at int64) { c.now = max(c.now, at) }

// Faults says what a Wire does to frames. Probabilities are per frame, from 0 to 1; the zero value is a perfect wire.
type Faults struct {
	Loss      float64
	Duplicate float64
	Reorder   float64 // the frame takes up to ReorderNS longer and later ones overtake it
	Corrupt   float64 // one bit flips, or the end is cut off: nothing that the Internet checksum cannot see

	LatencyNS int64 // of every frame
	JitterNS  int64 // of every frame, at random up to this, without changing their order
	ReorderNS int64
}

// Frame is what arrives.
type Frame struct {
	Bytes   []byte
	Copy    bool // the wire made it: the original arrives as well
	Corrupt bool

	at  int64
	seq uint64
}

// Stats counts frames. Sent + Duplicated - Lost is always Delivered plus what is under way.
type Stats struct {
	Sent, Lost, Duplicated, Reordered, Corrupted, Delivered uint64
}

// Wire is one direction of a link.
type Wire struct {
	Faults Faults // may be changed at any time; frames under way keep their fate

	clock  *Clock
	rng    *rand.Rand
	queue  []Frame // by (at, seq), the next to arrive last
	seq    uint64
	last   int64 // arrival of the latest frame that was not held back
	stats  Stats
	digest uint64
}

// NewWire is a wire whose randomness is rng's alone.
func NewWire(clock *Clock, rng *rand.Rand, faults Faults) *Wire {
	return &Wire{Faults: faults, clock: clock, rng: rng}
}

// Send puts a copy of frame on the wire and tells how many will arrive: none, one or two.
func (w *Wire) Send(frame []byte) (copies int) {
	w.stats.Sent++
	if w.chance(w.Faults.Loss) {
		w.stats.Lost++
		return 0
	}
	w.put(Frame{Bytes: slices.Clone(frame)})
	if !w.chance(w.Faults.Duplicate) {
		return 1
	}
	w.stats.Duplicated++
	w.put(Frame{Bytes: slices.Clone(frame), Copy: true})
	return 2
}

func (w *Wire) chance(p float64) bool { return p > 0 && w.rng.Float64() < p }

func (w *Wire) put(f Frame) {
	if w.chance(w.Faults.Corrupt) && len(f.Bytes) > 0 {
		w.stats.Corrupted++
		f.Corrupt = true
		f.Bytes = w.corrupt(f.Bytes)
	}
	f.at = max(w.last, w.clock.now+w.Faults.LatencyNS+w.upTo(w.Faults.JitterNS))
	if w.chance(w.Faults.Reorder) {
		w.stats.Reordered++
		f.at += w.upTo(w.Faults.ReorderNS)
	} else {
		w.last = f.at
	}
	f.seq = w.seq
	w.seq++
	i, _ := slices.BinarySearchFunc(w.queue, f, func(a, b Frame) int {
		if a.at != b.at {
			return int(max(-1, min(1, b.at-a.at)))
		}
		return int(int64(b.seq) - int64(a.seq))
	})
	w.queue = slices.Insert(w.queue, i, f)
}

func (w *Wire) upTo(ns int64) int64 {
	if ns <= 0 {
		return 0
	}
	return w.rng.Int64N(ns + 1)
}

// corrupt changes what one checksum of 16 bits always sees: a single bit, or the length.
func (w *Wire) corrupt(b []byte) []byte {
	if w.rng.IntN(4) == 0 {
		return b[:w.rng.IntN(len(b))]
	}
	bit := w.rng.IntN(8 * len(b))
	b[bit/8] ^= 1 << (bit % 8)
	return b
}

// Receive gives the next frame that has arrived by now; false when there is none.
func (w *Wire) Receive() (Frame, bool) {
	n := len(w.queue)
	if n == 0 || w.queue[n-1].at > w.clock.now {
		return Frame{}, false
	}
	f := w.queue[n-1]
	w.queue[n-1] = Frame{}
	w.queue = w.queue[:n-1]
	w.stats.Delivered++
	var at [8]byte
	binary.LittleEndian.PutUint64(at[:], uint64(w.clock.now))
	sum := crc32.Update(crc32.Update(uint32(w.digest), castagnoli, at[:]), castagnoli, f.Bytes)
	w.digest = (w.digest<<32|w.digest>>32)*0x9e3779b97f4a7c15 ^ uint64(sum)
	return f, true
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Next is when the next frame arrives; false when none is under way.
func (w *Wire) Next() (at int64, ok bool) {
	if len(w.queue) == 0 {
		return 0, false
	}
	return w.queue[len(w.queue)-1].at, true
}

// Pending is how many frames are under way.
func (w *Wire) Pending() int { return len(w.queue) }

// Stats are the counts so far.
func (w *Wire) Stats() Stats { return w.stats }

// Digest sums up all that arrived so far, and when.
func (w *Wire) Digest() uint64 { return w.digest }
