package xdpprog

import (
	"iter"
	"math/bits"
)

// The histogram's buckets are log-linear: values below 2*subBuckets have one each, and each further octave has subBuckets,
// so that a bucket is at most 1/subBuckets of its values wide. hist_index in bpf/sink.c does the same.
const (
	subBits     = 5
	subBuckets  = 1 << subBits
	topBit      = 40 // values from 2^41 ns (37 minutes) on are in the last bucket
	histBuckets = (topBit-subBits)*subBuckets + 2*subBuckets
)

// Histogram counts values, in nanoseconds, with an error of less than 2 %: a value is told as the middle of its bucket.
type Histogram struct {
	counts [histBuckets]uint64
	sum    uint64 // of all values, exact
}

func bucketOf(v uint64) int {
	v = min(v, 1<<(topBit+1)-1)
	shift := max(bits.Len64(v)-1-subBits, 0)
	return shift<<subBits + int(v>>shift)
}

// bucketRange returns the lowest value of bucket i, and how many values it has.
func bucketRange(i int) (low, width uint64) {
	shift := max(i>>subBits-1, 0)
	return uint64(i-shift<<subBits) << shift, 1 << shift
}

// Count is how many values there are.
func (h *Histogram) Count() uint64 {
	var n uint64
	for _, c := range h.counts {
		n += c
	}
	return n
}

// Mean is exact; 0 of no values.
func (h *Histogram) Mean() float64 {
	n := h.Count()
	if n == 0 {
		return 0
	}
	return float64(h.sum) / float64(n)
}

// Quantile returns the value that a share q, 0 to 1, of all values do not exceed; Quantile(1) is the largest. 0 of no values.
func (h *Histogram) Quantile(q float64) int64 {
	n := h.Count()
	if n == 0 {
		return 0
	}
	rank := max(uint64(q*float64(n)+0.5), 1) // the rank-th smallest
	var seen uint64
	var last int64
	for v, c := range h.Buckets() {
		last = v
		if seen += c; seen >= rank {
			break
		}
	}
	return last
}

// Buckets yields the middle value of each bucket that is not empty, ascending, and how many values are in it.
func (h *Histogram) Buckets() iter.Seq2[int64, uint64] {
	return func(yield func(int64, uint64) bool) {
		for i, c := range h.counts {
			if c == 0 {
				continue
			}
			low, width := bucketRange(i)
			if !yield(int64(low+width/2), c) {
				return
			}
		}
	}
}

// Add adds the values of o.
func (h *Histogram) Add(o *Histogram) {
	for i, c := range o.counts {
		h.counts[i] += c
	}
	h.sum += o.sum
}

// Sub takes away the values of o, an earlier reading of the same counters.
func (h *Histogram) Sub(o *Histogram) {
	for i, c := range o.counts {
		h.counts[i] -= c
	}
	h.sum -= o.sum
}
