package rings

import (
	"fmt"
	"sync/atomic"
)

// needWakeup is XDP_RING_NEED_WAKEUP, bit 0 of a ring's flags word: the
// consumer sleeps and wants a system call.
const needWakeup = 1

// Producer is the writing end of a single-producer single-consumer ring of
// entries. The indices run freely and wrap at 2^32; the slot of index i is
// i modulo the size.
//
// Only the producer writes *prod and only its peer writes *cons. The producer
// keeps its own index privately and never reads it back, so a hostile peer can
// lie about its own index only; that lie is bounded before use, see peer.
type Producer[T any] struct {
	prod, cons, flags *uint32
	entries           []T
	mask              uint32
	head              uint32 // next slot to reserve
	tail              uint32 // *prod: slots before it are published
	peer              uint32 // the last *cons that made sense; tail-peer <= size
	bad               uint64
}

// NewProducer starts at the current *prod. The length of entries must be a
// power of two, else it panics; flags may be nil.
func NewProducer[T any](prod, cons, flags *uint32, entries []T) *Producer[T] {
	size := ringSize(len(entries))
	tail := atomic.LoadUint32(prod)
	return &Producer[T]{
		prod: prod, cons: cons, flags: flags, entries: entries, mask: size - 1,
		// Full until the first look at *cons.
		head: tail, tail: tail, peer: tail - size,
	}
}

func ringSize(n int) uint32 {
	// 2^31 at most: full (distance = size) and empty (0) must stay apart.
	if n < 1 || n > 1<<31 || n&(n-1) != 0 {
		panic(fmt.Sprintf("rings: %d entries; a ring needs a power of two, at most 2^31", n))
	}
	return uint32(n)
}

// look loads *cons once. The consumer may only move forward from where it was
// last seen, at most to what is published; anything else is counted and
// ignored.
func (p *Producer[T]) look() bool {
	cons := atomic.LoadUint32(p.cons)
	if p.tail-cons > p.tail-p.peer {
		p.bad++
		return false
	}
	p.peer = cons
	return true
}

// Reserve takes up to n slots: got of them, starting at index idx. They are
// written through Slot and published by Submit. Reserving again before Submit
// continues behind them. A peer index that is out of bounds counts as a full
// ring.
func (p *Producer[T]) Reserve(n uint32) (idx, got uint32) {
	free := p.mask + 1 - (p.head - p.peer)
	if free < n {
		if !p.look() {
			return p.head, 0
		}
		free = p.mask + 1 - (p.head - p.peer)
	}
	idx, got = p.head, min(n, free)
	p.head += got
	return idx, got
}

// Slot is the place for index idx, any index: it is taken modulo the size.
func (p *Producer[T]) Slot(idx uint32) *T { return &p.entries[idx&p.mask] }

// Submit publishes the n oldest reserved slots with one atomic store; that
// store is what makes their contents visible to the consumer. More than are
// reserved is a programmer error and panics.
func (p *Producer[T]) Submit(n uint32) {
	if n > p.head-p.tail {
		panic("rings: Submit of more slots than are reserved")
	}
	if n == 0 {
		return
	}
	p.tail += n
	atomic.StoreUint32(p.prod, p.tail)
}

// Reserved is how many slots are reserved and not published.
func (p *Producer[T]) Reserved() uint32 { return p.head - p.tail }

// Cancel gives back the n youngest reserved slots. More than are reserved is a
// programmer error and panics.
func (p *Producer[T]) Cancel(n uint32) {
	if n > p.head-p.tail {
		panic("rings: Cancel of more slots than are reserved")
	}
	p.head -= n
}

// Free is how many slots Reserve would give now.
func (p *Producer[T]) Free() uint32 {
	if p.head != p.peer && !p.look() {
		return 0
	}
	return p.mask + 1 - (p.head - p.peer)
}

// Pending is how many published entries the consumer has not taken yet; all
// that could be, when the consumer's index is out of bounds.
func (p *Producer[T]) Pending() uint32 {
	if p.tail != p.peer {
		p.look()
	}
	return p.tail - p.peer
}

// NeedWakeup says whether the consumer sleeps. Where it may fall asleep while
// one publishes, ask after Submit.
func (p *Producer[T]) NeedWakeup() bool {
	return p.flags != nil && atomic.LoadUint32(p.flags)&needWakeup != 0
}

// Size is the number of slots.
func (p *Producer[T]) Size() uint32 { return p.mask + 1 }

// BadPeer counts how often the consumer's index was out of bounds.
func (p *Producer[T]) BadPeer() uint64 { return p.bad }

// Consumer is the reading end of a ring, see Producer. Only the consumer
// writes *cons and *flags.
type Consumer[T any] struct {
	prod, cons, flags *uint32
	entries           []T
	mask              uint32
	next              uint32 // *cons: the oldest entry not released
	peer              uint32 // the last *prod that made sense; peer-next <= size
	bad               uint64
}

// NewConsumer starts at the current *cons. The length of entries must be a
// power of two, else it panics; flags may be nil.
func NewConsumer[T any](prod, cons, flags *uint32, entries []T) *Consumer[T] {
	size := ringSize(len(entries))
	next := atomic.LoadUint32(cons)
	return &Consumer[T]{
		prod: prod, cons: cons, flags: flags, entries: entries, mask: size - 1,
		next: next, peer: next, // empty until the first look at *prod
	}
}

// look loads *prod once. The producer may only move forward from where it was
// last seen, at most a ring ahead of us; anything else is counted and ignored.
func (c *Consumer[T]) look() bool {
	prod := atomic.LoadUint32(c.prod)
	avail := prod - c.next
	if avail > c.mask+1 || avail < c.peer-c.next {
		c.bad++
		return false
	}
	c.peer = prod
	return true
}

// Peek finds up to n entries: got of them, the oldest at index idx. It takes
// nothing; peeking again before Release finds the same. A peer index that is
// out of bounds counts as an empty ring.
func (c *Consumer[T]) Peek(n uint32) (idx, got uint32) {
	avail := c.peer - c.next
	if avail < n {
		if !c.look() {
			return c.next, 0
		}
		avail = c.peer - c.next
	}
	return c.next, min(n, avail)
}

// Read copies the entry at idx out, once: check the copy, for the peer may
// write on the original at any time.
func (c *Consumer[T]) Read(idx uint32) T { return c.entries[idx&c.mask] }

// Release gives the n oldest entries back to the producer with one atomic
// store. More than Peek has shown is a programmer error and panics.
func (c *Consumer[T]) Release(n uint32) {
	if n > c.peer-c.next {
		panic("rings: Release of more entries than were there")
	}
	if n == 0 {
		return
	}
	c.next += n
	atomic.StoreUint32(c.cons, c.next)
}

// Avail is how many entries Peek would find now.
func (c *Consumer[T]) Avail() uint32 {
	if !c.look() {
		return 0
	}
	return c.peer - c.next
}

// Size is the number of slots.
func (c *Consumer[T]) Size() uint32 { return c.mask + 1 }

// NeedWakeup says what SetNeedWakeup was last called with.
func (c *Consumer[T]) NeedWakeup() bool {
	return c.flags != nil && atomic.LoadUint32(c.flags)&needWakeup != 0
}

// SetNeedWakeup tells the producer whether the consumer is about to sleep.
// After setting it, look at the ring once more before sleeping. Without a flags
// word it does nothing.
func (c *Consumer[T]) SetNeedWakeup(on bool) {
	if c.flags == nil {
		return
	}
	// An atomic read-modify-write costs more than a store, but the word may
	// carry other flags of the consumer.
	if on {
		atomic.OrUint32(c.flags, needWakeup)
	} else {
		atomic.AndUint32(c.flags, ^uint32(needWakeup))
	}
}

// BadPeer counts how often the producer's index was out of bounds.
func (c *Consumer[T]) BadPeer() uint64 { return c.bad }

// Plain is a ring in ordinary memory, for both ends in one process. The words
// lie on cache lines of their own, 128 bytes apart: adjacent lines are fetched
// in pairs on amd64 and are that long on some arm64.
type Plain[T any] struct {
	prod    uint32
	_       [124]byte
	cons    uint32
	_       [124]byte
	flags   uint32
	_       [124]byte
	entries []T
}

// NewPlain has size slots, a power of two, else it panics.
func NewPlain[T any](size uint32) *Plain[T] {
	return NewPlainAt[T](size, 0)
}

// NewPlainAt has both indices start at start, which lets a test begin just
// before they wrap.
func NewPlainAt[T any](size, start uint32) *Plain[T] {
	ringSize(int(size))
	return &Plain[T]{prod: start, cons: start, entries: make([]T, size)}
}

// Producer makes the writing end. Call it once.
func (r *Plain[T]) Producer() *Producer[T] {
	return NewProducer(&r.prod, &r.cons, &r.flags, r.entries)
}

// Consumer makes the reading end. Call it once.
func (r *Plain[T]) Consumer() *Consumer[T] {
	return NewConsumer(&r.prod, &r.cons, &r.flags, r.entries)
}
