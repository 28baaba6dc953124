package sockets

// flat is an open-addressing hash table with keys stored in line: linear probing, deletion by shifting back, no
// tombstones, no pointers, and one or two cache lines a look-up. Values must not be umem.None-like sentinels: presence
// is a field of its own.
type flat[K comparable] struct {
	hash  func(K) uint64
	slots []flatSlot[K]
	n     int
}

type flatSlot[K comparable] struct {
	key  K
	used bool
	val  uint32
}

func newFlat[K comparable](hash func(K) uint64) *flat[K] {
	return &flat[K]{hash: hash, slots: make([]flatSlot[K], 16)}
}

// get returns the value stored under k.
func (t *flat[K]) get(k K) (uint32, bool) {
	if t.n == 0 {
		return 0, false
	}
	mask := uint64(len(t.slots) - 1)
	for i := t.hash(k) & mask; t.slots[i].used; i = (i + 1) & mask {
		if t.slots[i].key == k {
			return t.slots[i].val, true
		}
	}
	return 0, false
}

// put stores v under k, which must not be there yet.
func (t *flat[K]) put(k K, v uint32) {
	if (t.n+1)*4 > len(t.slots)*3 {
		t.grow()
	}
	t.insert(k, v)
	t.n++
}

func (t *flat[K]) insert(k K, v uint32) {
	mask := uint64(len(t.slots) - 1)
	i := t.hash(k) & mask
	for t.slots[i].used {
		i = (i + 1) & mask
	}
	t.slots[i] = flatSlot[K]{key: k, used: true, val: v}
}

func (t *flat[K]) grow() {
	old := t.slots
	t.slots = make([]flatSlot[K], 2*len(old))
	for i := range old {
		if old[i].used {
			t.insert(old[i].key, old[i].val)
		}
	}
}

// del removes k and reports whether it was there.
func (t *flat[K]) del(k K) bool {
	mask := uint64(len(t.slots) - 1)
	i := t.hash(k) & mask
	for ; t.slots[i].used; i = (i + 1) & mask {
		if t.slots[i].key == k {
			break
		}
	}
	if !t.slots[i].used {
		return false
	}
	t.n--
	// Shift back every later entry of the run that may not stay behind a hole (Knuth 6.4, algorithm R).
	for j := i; ; {
		j = (j + 1) & mask
		if !t.slots[j].used {
			break
		}
		home := t.hash(t.slots[j].key) & mask
		if (j-home)&mask >= (j-i)&mask {
			t.slots[i] = t.slots[j]
			i = j
		}
	}
	t.slots[i] = flatSlot[K]{}
	return true
}

// all gives the values, in no order.
func (t *flat[K]) all() []uint32 {
	out := make([]uint32, 0, t.n)
	for i := range t.slots {
		if t.slots[i].used {
			out = append(out, t.slots[i].val)
		}
	}
	return out
}
