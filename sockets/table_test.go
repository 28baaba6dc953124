package sockets

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
)

// TestTable does with a Table and with a map the same. A slot has one socket at a time, of any generation.
func TestTable(t *testing.T) {
	first, n := seeds.Range(t, 20)
	seeds.Each(t, first, n, func(seed uint64) error {
		rng := rand.New(rand.NewPCG(seed, 0))
		type slot struct {
			kind  uint8
			index uint32
		}
		var table Table[int]
		model, at := map[Handle]int{}, map[slot]Handle{}
		indices := []uint32{0, 1, 255, 256, 257, 5000}
		for step := range 5000 {
			sl := slot{uint8(1 + rng.IntN(3)), indices[rng.IntN(len(indices))]}
			s := makeHandle(sl.kind, uint32(rng.IntN(3)), sl.index)
			switch rng.IntN(4) {
			case 0, 1:
				if old, ok := at[sl]; ok {
					delete(model, old)
				}
				model[s], at[sl] = step, s
				table.Put(s, step)
			case 2:
				if at[sl] == s {
					delete(at, sl)
				}
				delete(model, s)
				table.Delete(s)
			default:
				want, has := model[s]
				if v, ok := table.Get(s); v != want || ok != has {
					return fmt.Errorf("step %d: %x is %d, %v; want %d, %v", step, s, v, ok, want, has)
				}
			}
			if table.Len() != len(model) {
				return fmt.Errorf("step %d: %d entries, want %d", step, table.Len(), len(model))
			}
		}
		if got := maps.Collect(table.All()); !maps.Equal(got, model) {
			return fmt.Errorf("All gives %v, want %v", got, model)
		}
		for s := range table.All() {
			table.Delete(s)
		}
		if table.Len() != 0 || len(maps.Collect(table.All())) != 0 {
			return fmt.Errorf("%d are left after all were deleted", table.Len())
		}
		return nil
	})
	var table Table[int]
	for _, s := range []Handle{0, 1, 1 << 63, makeHandle(kindTCP, 0, 1<<31)} {
		table.Delete(s)
		if _, ok := table.Get(s); ok {
			t.Errorf("an empty table has %x", s)
		}
	}
}

func TestTableAllocates(t *testing.T) {
	var table Table[*int]
	s, v := makeHandle(kindUDP, 1, 7), new(int)
	table.Put(s, v)
	if n := testing.AllocsPerRun(100, func() { table.Delete(s); table.Put(s, v); table.Get(s) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
