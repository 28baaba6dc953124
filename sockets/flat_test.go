package sockets

import (
	"math/rand/v2"
	"slices"
	"testing"

	"xdpd/internal/seeds"
)

func TestFlatAgainstMap(t *testing.T) {
	hashes := map[string]func(uint32) uint64{
		"good":     func(k uint32) uint64 { return mix(uint64(k)^0x9e3779b97f4a7c15, 0xbf58476d1ce4e5b9) },
		"runs":     func(k uint32) uint64 { return uint64(k) / 8 },            // long probe runs that touch one another
		"one":      func(uint32) uint64 { return 7 },                          // everything in one run
		"wrapping": func(k uint32) uint64 { return ^uint64(0) - uint64(k%3) }, // runs over the end of the table
	}
	for name, hash := range hashes {
		t.Run(name, func(t *testing.T) {
			seed := seeds.One(t)
			r := rand.New(rand.NewPCG(seed, 0))
			table, model := newFlat(hash), map[uint32]uint32{}
			for range 30_000 {
				k := uint32(r.IntN(200))
				v, there := model[k]
				got, ok := table.get(k)
				if ok != there || ok && got != v {
					t.Fatalf("get(%d) = %d, %v; the model has %d, %v", k, got, ok, v, there)
				}
				switch {
				case !there:
					model[k] = r.Uint32()
					table.put(k, model[k])
				case r.IntN(2) == 0:
					delete(model, k)
					if !table.del(k) {
						t.Fatalf("del(%d) found nothing", k)
					}
				}
				if table.del(k + 1000) {
					t.Fatalf("del of a key that was never there")
				}
				if table.n != len(model) {
					t.Fatalf("n is %d, the model has %d", table.n, len(model))
				}
			}
			var want []uint32
			for k, v := range model {
				want = append(want, v)
				if got, ok := table.get(k); !ok || got != v {
					t.Fatalf("get(%d) = %d, %v at the end, want %d", k, got, ok, v)
				}
			}
			got := table.all()
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Errorf("all gives %d values, want %d", len(got), len(want))
			}
		})
	}
}

// TestFlatLongLife puts and deletes for ever with few keys alive: without tombstones the table need not grow.
func TestFlatLongLife(t *testing.T) {
	table := newFlat(func(k uint32) uint64 { return mix(uint64(k), 0x9e3779b97f4a7c15) })
	for i := range uint32(100_000) {
		table.put(i, i)
		if i >= 10 {
			table.del(i - 10)
		}
	}
	if table.n != 10 || len(table.slots) != 16 {
		t.Errorf("%d entries in %d slots, want 10 in 16", table.n, len(table.slots))
	}
}
