package rings

import (
	"sync/atomic"
	"unsafe"
)

// bufSlot is struct io_uring_buf. Its last word is the number, and in the first entry the tail in its upper half (in
// memory; the halves change places where the machine is big endian).
type bufSlot struct {
	addr uint64
	len  uint32
	last [2]uint16
}

var _ [BufEntrySize]byte = [unsafe.Sizeof(bufSlot{})]byte{}

// bufSlots sees mem as entries; nil when it is not aligned, or no power of two of them.
func bufSlots(mem []byte) []bufSlot {
	n := len(mem) / BufEntrySize
	if n == 0 || n > BufRingMax || n&(n-1) != 0 || len(mem)%BufEntrySize != 0 || uintptr(unsafe.Pointer(&mem[0]))%8 != 0 {
		return nil
	}
	return unsafe.Slice((*bufSlot)(unsafe.Pointer(&mem[0])), n)
}

func (s *bufSlot) word() *uint32 { return (*uint32)(unsafe.Pointer(&s.last)) }

func (s *bufSlot) load() [2]uint16 {
	w := atomic.LoadUint32(s.word())
	return *(*[2]uint16)(unsafe.Pointer(&w))
}

func (s *bufSlot) store(v [2]uint16) {
	atomic.StoreUint32(s.word(), *(*uint32)(unsafe.Pointer(&v)))
}

// NewBufTaker makes the engine's end over mem, all of it; false when mem cannot be such a ring.
func NewBufTaker(mem []byte) (BufTaker, bool) {
	slots := bufSlots(mem)
	return BufTaker{slots: slots}, slots != nil
}

// NewBufGiver makes the application's end over mem, and an empty ring of it; false as NewBufTaker.
func NewBufGiver(mem []byte) (*BufGiver, bool) {
	slots := bufSlots(mem)
	if slots == nil {
		return nil, false
	}
	clear(mem)
	return &BufGiver{slots: slots}, true
}

func (t *BufTaker) tail() uint16 { return t.slots[0].load()[1] }

func (t *BufTaker) read(i int) Buf {
	s := &t.slots[i]
	b := Buf{Addr: s.addr, Len: s.len}
	if i == 0 {
		b.ID = s.load()[0]
	} else {
		b.ID = s.last[0]
	}
	return b
}

func (g *BufGiver) write(i int, b Buf) {
	s := &g.slots[i]
	s.addr, s.len = b.Addr, b.Len
	if i == 0 {
		g.first = b.ID
		s.store([2]uint16{b.ID, s.load()[1]})
	} else {
		s.last[0] = b.ID
	}
}

func (g *BufGiver) publish() { g.slots[0].store([2]uint16{g.first, g.tail}) }
