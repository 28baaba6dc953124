package reactor

import (
	"hash/fnv"
	"os"
	"strconv"
	"testing"
)

// SeedRange gives the first of n seeds, from the environment. XDPD_SEED with a number means that seed alone; with
// anything else, such as a commit's hash, it chooses where to begin, as does the number in XDPD_SEED_BASE.
func SeedRange(t *testing.T, n int) (first uint64, _ int) {
	if s := os.Getenv("XDPD_SEED"); s != "" {
		if one, err := strconv.ParseUint(s, 10, 64); err == nil {
			return one, 1
		}
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
