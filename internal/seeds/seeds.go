// Package seeds says with which seeds random tests run, so that any failure can be repeated: it prints XDPD_SEED=<n>, and
// with that in the environment exactly that seed is tried.
package seeds

import (
	"flag"
	"hash/fnv"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"
)

var count = flag.Int("seeds", 0, "number of simulation seeds (default: the test's own; fewer with -short or -race)")

// Range gives a simulation its seeds, n from first on: as many as the flag -seeds says, else byDefault, fewer with -short
// or -race.
func Range(t testing.TB, byDefault int) (first uint64, n int) {
	t.Helper()
	switch n = *count; {
	case n > 0:
	case raceDetector:
		n = 150
	case testing.Short():
		n = 200
	default:
		n = byDefault
	}
	return From(t, n)
}

// From gives the first of n seeds. XDPD_SEED with a number means that seed alone; with anything else, such as a commit's
// hash, it chooses where to begin, as does the number in XDPD_SEED_BASE.
func From(t testing.TB, n int) (first uint64, _ int) {
	t.Helper()
	if one, ok := only(); ok {
		return one, 1
	}
	if s := os.Getenv("XDPD_SEED"); s != "" {
		h := fnv.New64a()
		h.Write([]byte(s))
		return h.Sum64() >> 16, n // short numbers are easier to pass on
	}
	if s := os.Getenv("XDPD_SEED_BASE"); s != "" {
		base, err := strconv.ParseUint(s, 10, 64)
		if err != nil {
			t.Fatalf("XDPD_SEED_BASE: %v", err)
		}
		return base, n
	}
	return 1, n
}

// Each runs f for n seeds from first on, and reports those that fail until there are three. ok: none did.
func Each(t testing.TB, first uint64, n int, f func(seed uint64) error) (ok bool) {
	t.Helper()
	failed := 0
	for i := range n {
		if err := f(first + uint64(i)); err != nil {
			t.Errorf("XDPD_SEED=%d: %v", first+uint64(i), err)
			if failed++; failed == 3 {
				break
			}
		}
	}
	return failed == 0
}

// One is the seed of a test that tries one: the number in XDPD_SEED, else another each time. A failure shows it.
func One(t testing.TB) uint64 {
	t.Helper()
	seed, ok := only()
	if !ok {
		seed = rand.Uint64() >> 16
	}
	t.Logf("XDPD_SEED=%d", seed)
	return seed
}

func only() (seed uint64, ok bool) {
	seed, err := strconv.ParseUint(os.Getenv("XDPD_SEED"), 10, 64)
	return seed, err == nil
}
