package seeds

import (
	"errors"
	"slices"
	"testing"
)

// recorder is a test whose failures are counted.
type recorder struct {
	testing.TB
	errors, fatal int
}

func (r *recorder) Helper()               {}
func (r *recorder) Logf(string, ...any)   {}
func (r *recorder) Errorf(string, ...any) { r.errors++ }
func (r *recorder) Fatalf(string, ...any) { r.fatal++ }

func TestRange(t *testing.T) {
	t.Setenv("XDPD_SEED", "")
	t.Setenv("XDPD_SEED_BASE", "")
	if first, n := Range(t, 77); first != 1 || n == 0 || *count == 0 && !raceDetector && !testing.Short() && n != 77 {
		t.Errorf("%d seeds from %d", n, first)
	}
	t.Setenv("XDPD_SEED_BASE", "500")
	if first, n := Range(t, 77); first != 500 || n == 1 {
		t.Errorf("with a base: %d seeds from %d", n, first)
	}
	t.Setenv("XDPD_SEED_BASE", "x")
	r := &recorder{TB: t}
	if Range(r, 77); r.fatal != 1 {
		t.Error("a base that is no number is taken")
	}
	t.Setenv("XDPD_SEED", "a6b744e")
	a, n := Range(t, 77)
	t.Setenv("XDPD_SEED", "a6b744f")
	if b, _ := Range(t, 77); a == b || a < 1<<20 || n == 1 {
		t.Errorf("two commits: %d and %d, %d seeds", a, b, n)
	}
	t.Setenv("XDPD_SEED", "42")
	if first, n := Range(t, 77); first != 42 || n != 1 || One(t) != 42 {
		t.Errorf("a number: %d seeds from %d", n, first)
	}
	t.Setenv("XDPD_SEED", "a6b744e")
	if a, b := One(t), One(t); a == b {
		t.Error("one seed twice")
	}
}

func TestEach(t *testing.T) {
	r := &recorder{TB: t}
	var tried []uint64
	ok := Each(r, 10, 100, func(seed uint64) error {
		tried = append(tried, seed)
		if seed%2 == 0 {
			return errors.New("even")
		}
		return nil
	})
	if ok || r.errors != 3 || !slices.Equal(tried, []uint64{10, 11, 12, 13, 14}) {
		t.Errorf("ok %v, %d failures of %d", ok, r.errors, tried)
	}
	if !Each(r, 10, 100, func(uint64) error { return nil }) || r.errors != 3 {
		t.Error("a failure of nothing")
	}
}
