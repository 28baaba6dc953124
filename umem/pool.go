package umem

import "fmt"

// Buf says where in its frame a packet lies and what it is linked to: what
// sk_buff is in Linux. It has no pointers, so the garbage collector never looks
// at a pool's Bufs.
type Buf struct {
	Next     Frame  // queue or chain link
	Off, Len uint16 // the payload is chunk[Off:Off+Len]
	Flags    uint16 // Flags, Aux and Seq are for the layer that holds the frame
	Aux      uint32
	Seq      uint32 // of the payload's first byte, where the layer has numbers for bytes
}

// Pool is the free list of one reactor: a stack over n frames of a region. Which
// frames these are may change, see Give and Take. It is not for concurrent use
// and allocates nothing after construction.
type Pool struct {
	region    *Region
	ledger    *Ledger
	id        uint16
	n         int
	bufs      []Buf    // the region's
	homes     []uint16 // the region's: which pool has a frame
	stack     []Frame  // free frames; cap == n, so push never grows it
	exhausted uint64
}

// NewPool makes a pool of frames [first, first+n), all free. With a nil ledger
// moves cost one nil check. Frames of an older pool are the new one's from here
// on. It panics when the range is not in the region or in the ledger.
func NewPool(r *Region, first Frame, n int, l *Ledger) *Pool {
	end := int64(first) + int64(n)
	if n < 0 || end > int64(r.Frames()) {
		panic(fmt.Sprintf("umem: pool of %d frames from %d in a region of %d", n, first, r.Frames()))
	}
	if l != nil && end > int64(len(l.owners)) {
		panic(fmt.Sprintf("umem: pool of %d frames from %d with a ledger of %d", n, first, len(l.owners)))
	}
	r.pools++
	p := &Pool{region: r, ledger: l, id: r.pools, n: n, bufs: r.bufs, homes: r.homes, stack: make([]Frame, n)}
	for i := range p.stack {
		f := first + Frame(n-1-i) // so that the first Get gives first
		r.homes[f] = p.id
		p.stack[i] = f
	}
	return p
}

// Get takes the frame freed last and hands it to to. It gives None when there
// is none, and counts that in Exhausted.
func (p *Pool) Get(to Owner) Frame {
	n := len(p.stack)
	if n == 0 {
		p.exhausted++
		return None
	}
	f := p.stack[n-1]
	p.stack = p.stack[:n-1]
	p.Move(f, Free, to)
	return f
}

// GetN fills dst with as many frames as there are and says how many. Fewer
// than asked for counts once in Exhausted.
func (p *Pool) GetN(dst []Frame, to Owner) int {
	n := min(len(dst), len(p.stack))
	if n < len(dst) {
		p.exhausted++
	}
	for i := range n {
		f := p.stack[len(p.stack)-1-i]
		dst[i] = f
		p.Move(f, Free, to)
	}
	p.stack = p.stack[:len(p.stack)-n]
	return n
}

// Put gives f back. A frame that is not this pool's, or one more than the pool
// has, is a programmer error and panics; a frame put back twice panics at once
// with a ledger, and without one as soon as the stack would overflow.
func (p *Pool) Put(f Frame, from Owner) {
	if !p.Owns(f) {
		panic(fmt.Sprintf("umem: frame %d put into a pool that does not have it", f))
	}
	p.Move(f, from, Free) // first: the ledger's panic says more
	if len(p.stack) == cap(p.stack) {
		panic(fmt.Sprintf("umem: frame %d put into a full pool: it, or one before it, was freed twice", f))
	}
	p.stack = append(p.stack, f)
}

// PutN gives back all of fs, the last of them to be used first.
func (p *Pool) PutN(fs []Frame, from Owner) {
	for _, f := range fs {
		p.Put(f, from)
	}
}

// Move notes in the ledger, if there is one, that f goes from one owner to
// another.
func (p *Pool) Move(f Frame, from, to Owner) {
	if p.ledger != nil {
		p.ledger.Move(f, from, to)
	}
}

// Give parts with a frame, which goes to another pool of the region: from here
// on only that pool's owner may touch it, once it has Taken it. What passes the
// frame on must be a synchronisation (a ring). The other pool gives one in
// return, or the same one back, so that no pool ever has more than its share.
func (p *Pool) Give(f Frame, from Owner) {
	if !p.Owns(f) {
		panic(fmt.Sprintf("umem: frame %d given away by a pool that does not have it", f))
	}
	p.Move(f, from, Handed)
	p.homes[f] = 0 // nobody's: not ours to put back, nor to take from a device that names it
}

// Take makes a frame that another pool gave one of this pool's, in the hands of
// to.
func (p *Pool) Take(f Frame, to Owner) {
	p.homes[f] = p.id
	p.Move(f, Handed, to)
	if to == Free {
		if len(p.stack) == cap(p.stack) {
			panic(fmt.Sprintf("umem: frame %d taken into a full pool", f))
		}
		p.stack = append(p.stack, f)
	}
}

// Owns reports whether f is one of the pool's frames, free or not.
func (p *Pool) Owns(f Frame) bool { return uint64(f) < uint64(len(p.homes)) && p.homes[f] == p.id }

// Avail is how many frames are free.
func (p *Pool) Avail() int { return len(p.stack) }

// Total is how many frames the pool owns, free or not; of these, some may be on
// their way from another pool that was given as many.
func (p *Pool) Total() int { return p.n }

// Exhausted is how many calls of Get and GetN could not be served in full.
func (p *Pool) Exhausted() uint64 { return p.exhausted }

// Region is the memory the frames lie in.
func (p *Pool) Region() *Region { return p.region }

// Ledger is the ledger, or nil.
func (p *Pool) Ledger() *Ledger { return p.ledger }

// Buf is the metadata of f, one of the pool's own frames. It holds whatever its
// last holder wrote.
func (p *Pool) Buf(f Frame) *Buf { return &p.bufs[f] }

// Chunk is the whole chunk of f.
func (p *Pool) Chunk(f Frame) []byte { return p.region.Chunk(f) }

// Data is the payload of f: chunk[Off:Off+Len] by its Buf. It panics when Buf
// points out of the chunk.
func (p *Pool) Data(f Frame) []byte {
	b := p.Buf(f)
	return p.region.Chunk(f)[b.Off : int(b.Off)+int(b.Len)]
}
