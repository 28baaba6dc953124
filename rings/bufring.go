package rings

// A ring of provided buffers lies in registered memory, laid out as struct io_uring_buf_ring: a power of two of entries
// of 16 bytes, each the buffer's address u64, its length u32 and its number u16; the last u16 of the first entry is the
// tail, which the application moves on. Where the engine is only the engine knows: a completion tells which buffer it used.

// BufEntrySize is the size of an entry; BufRingMax the most entries there can be.
const (
	BufEntrySize = 16
	BufRingMax   = 1 << 15
)

// Buf is a provided buffer: Len bytes at Addr of the registered memory.
type Buf struct {
	Addr uint64
	Len  uint32
	ID   uint16
}

// BufTaker is the engine's end of a ring of provided buffers.
type BufTaker struct {
	slots []bufSlot
	head  uint16
}

// Avail is how many buffers there are; a tail that makes no sense counts as none.
func (t *BufTaker) Avail() int {
	n := t.tail() - t.head
	if int(n) > len(t.slots) {
		return 0
	}
	return int(n)
}

// Peek copies the next buffer, of Avail > 0; Next goes on to the one behind it.
func (t *BufTaker) Peek() Buf { return t.read(int(t.head) & (len(t.slots) - 1)) }

// Next takes the buffer that Peek gave.
func (t *BufTaker) Next() { t.head++ }

// BufGiver is the application's end.
type BufGiver struct {
	slots []bufSlot
	tail  uint16
	first uint16 // number of the buffer in the first entry, which shares a word with the tail
}

// Add puts a buffer behind the others. The application must not add more than the ring has entries.
func (g *BufGiver) Add(b Buf) {
	g.write(int(g.tail)&(len(g.slots)-1), b)
	g.tail++
}

// Publish shows the engine what was added.
func (g *BufGiver) Publish() { g.publish() }
