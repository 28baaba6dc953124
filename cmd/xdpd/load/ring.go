package load

// ring is a queue of connections, each in it at most once, so that it never grows.
type ring struct {
	ids     []uint32
	in      []bool
	head, n int
}

func newRing(size int) ring { return ring{ids: make([]uint32, size), in: make([]bool, size)} }

func (r *ring) push(id uint32) {
	if r.in[id] {
		return
	}
	r.in[id] = true
	at := r.head + r.n
	if at >= len(r.ids) {
		at -= len(r.ids)
	}
	r.ids[at] = id
	r.n++
}

// pop takes the first; there is one.
func (r *ring) pop() uint32 {
	id := r.ids[r.head]
	if r.head++; r.head == len(r.ids) {
		r.head = 0
	}
	r.n--
	r.in[id] = false
	return id
}
