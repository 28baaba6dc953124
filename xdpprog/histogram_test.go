package xdpprog

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"
)

// Buckets follow one another without a hole, and the middle of each is within 2 % of all its values.
func TestHistogramBuckets(t *testing.T) {
	next := uint64(0)
	for i := range histBuckets {
		low, width := bucketRange(i)
		if low != next || width == 0 {
			t.Fatalf("bucket %d is %d values from %d on, want from %d on", i, width, low, next)
		}
		next = low + width
		if bucketOf(low) != i || bucketOf(next-1) != i {
			t.Fatalf("%d is in bucket %d, %d in bucket %d, want %d", low, bucketOf(low), next-1, bucketOf(next-1), i)
		}
		if middle := float64(low + width/2); math.Abs(middle-float64(low)) > 0.02*float64(low) && width > 1 {
			t.Fatalf("bucket %d: its middle is %v, its lowest value %d", i, middle, low)
		}
	}
	if next != 1<<(topBit+1) || bucketOf(math.MaxUint64) != histBuckets-1 {
		t.Errorf("buckets end at %d; the largest value is in bucket %d of %d", next, bucketOf(math.MaxUint64), histBuckets)
	}
}

func TestHistogram(t *testing.T) {
	var h, earlier Histogram
	if h.Quantile(0.5) != 0 || h.Mean() != 0 {
		t.Error("something in nothing")
	}
	r := rand.New(rand.NewPCG(1, 2))
	var values []int64
	for i := range 10_000 {
		v := int64(math.Exp(r.Float64() * 20))
		values = append(values, v)
		h.counts[bucketOf(uint64(v))]++
		h.sum += uint64(v)
		if i == 999 {
			earlier = h
		}
	}
	sum := int64(0)
	for _, v := range values {
		sum += v
	}
	if h.Mean() != float64(sum)/10_000 {
		t.Errorf("mean %v, want %v", h.Mean(), float64(sum)/10_000)
	}
	slices.Sort(values)
	for _, q := range []float64{0, 0.001, 0.5, 0.99, 0.999, 1} {
		want := float64(values[max(int(q*10_000)-1, 0)])
		if got := float64(h.Quantile(q)); math.Abs(got-want) > 0.02*want+1 {
			t.Errorf("quantile %v: %v, want %v", q, got, want)
		}
	}
	both := h
	both.Sub(&earlier)
	if both.Count() != 9000 {
		t.Errorf("%d values after taking 1000 of 10000 away", both.Count())
	}
	if both.Add(&earlier); both != h {
		t.Error("taken away and added again, it is another one")
	}
}
