package sockets

// slab hands out records of one type by index, in chunks that never move and are never given back: what a Host needed
// once it may need again. Records are reused last in, first out. The zero slab is empty.
type slab[T any] struct {
	chunks [][]T
	free   []uint32 // indexes; only as long as the most that were ever free at once
	n      int      // in use
}

const slabChunk = 256

func (s *slab[T]) at(i uint32) *T { return &s.chunks[i/slabChunk][i%slabChunk] }

// alloc gives a zero record.
func (s *slab[T]) alloc() (uint32, *T) {
	s.n++
	if k := len(s.free); k > 0 {
		i := s.free[k-1]
		s.free = s.free[:k-1]
		p := s.at(i)
		*p = *new(T)
		return i, p
	}
	i := uint32(s.n - 1)
	if i%slabChunk == 0 {
		s.chunks = append(s.chunks, make([]T, slabChunk))
	}
	return i, s.at(i)
}

func (s *slab[T]) release(i uint32) {
	s.n--
	s.free = append(s.free, i)
}

// fifo is a doubly linked list through records that hold a link: in the order in which they were pushed, with removal
// from the middle.
type fifo struct {
	head, tail uint32 // index+1; 0: none
}

type link struct {
	next, prev uint32 // index+1; 0: none
}

func (q *fifo) push(i uint32, at func(uint32) *link) {
	l := at(i)
	*l = link{prev: q.tail}
	if q.tail != 0 {
		at(q.tail - 1).next = i + 1
	} else {
		q.head = i + 1
	}
	q.tail = i + 1
}

func (q *fifo) remove(i uint32, at func(uint32) *link) {
	l := at(i)
	if l.prev != 0 {
		at(l.prev - 1).next = l.next
	} else {
		q.head = l.next
	}
	if l.next != 0 {
		at(l.next - 1).prev = l.prev
	} else {
		q.tail = l.prev
	}
}
