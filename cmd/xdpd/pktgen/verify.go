package pktgen

import (
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Received is what came back, or in: frames with our mark, each of which is in exactly one of Unique, Duplicates, Beyond and
// Corrupt. Reordered is a part of Unique and Beyond.
type Received struct {
	Frames     uint64 `json:"frames"`
	Bytes      uint64 `json:"bytes"`      // of those, without FCS
	Unique     uint64 `json:"unique"`     // sequence numbers that came
	Duplicates uint64 `json:"duplicates"` // frames whose number had come before
	Beyond     uint64 `json:"beyond"`     // frames with a number above those that are kept account of one by one
	Reordered  uint64 `json:"reordered"`  // frames that came after a higher number of their flow (RFC 4737, section 3), duplicates left out
	Corrupt    uint64 `json:"corrupt"`    // frames with a wrong checksum, or (xsk) other bytes than were sent
	Gaps       uint64 `json:"gaps"`       // in-kernel sink: numbers between the first and the last of a flow that did not come
	Others     uint64 `json:"others"`     // frames without our mark, not among Frames
}

// Lost is how many of the sent frames did not come: numbers beyond the account are taken for new ones.
func (r *Received) Lost(sent uint64) uint64 { return sent - min(sent, r.Unique+r.Beyond) }

// verifier keeps account of sequence numbers, which begin with 0, as the in-kernel sink does.
type verifier struct {
	Received
	latency *hdrhistogram.Histogram // ns
	limit   uint64                  // numbers from here on are beyond
	seen    []uint64                // a bit for each number
	next    []uint64                // of each flow, what is expected
}

func newVerifier(flows int, limit uint64) *verifier {
	return &verifier{latency: newHistogram(), limit: limit, next: make([]uint64, flows)}
}

// add takes a good frame.
func (v *verifier) add(seq uint64, latency int64) {
	_ = v.latency.RecordValue(min(max(latency, 1), longest))
	next := &v.next[seq%uint64(len(v.next))]
	late := seq < *next
	if !late {
		*next = seq + uint64(len(v.next))
	}
	if seq >= v.limit {
		v.Beyond++
	} else if v.mark(seq) {
		v.Duplicates++
		return
	} else {
		v.Unique++
	}
	if late {
		v.Reordered++
	}
}

// mark notes that a number came, and reports whether it had come before.
func (v *verifier) mark(seq uint64) (before bool) {
	if missing := int(seq/64) + 1 - len(v.seen); missing > 0 {
		v.seen = append(v.seen, make([]uint64, missing)...)
	}
	word, bit := &v.seen[seq/64], uint64(1)<<(seq%64)
	before = *word&bit != 0
	*word |= bit
	return before
}

// longest is the longest latency that is told apart from longer ones, in ns.
const longest = int64(time.Minute)

// newHistogram is exact to three digits.
func newHistogram() *hdrhistogram.Histogram { return hdrhistogram.New(1, longest, 3) }
