package sockets

import "iter"

const (
	tableKinds = kindTCP + 1
	tableChunk = 256
)

// Table keeps something for each socket of one Host, for who serves many of them: what a map does, by indexing, since a
// Handle says where the socket lies. It grows to the most sockets there were at a time and stays so; the zero Table is
// empty. A socket that was closed is to be deleted, or its entry stays until another socket has its place.
type Table[T any] struct {
	kinds [tableKinds][]*[tableChunk]tableEntry[T]
	n     int
}

type tableEntry[T any] struct {
	sock Handle // 0: nothing here
	v    T
}

// entry gives the place of s, or nil where there is none yet.
func (t *Table[T]) entry(s Handle) *tableEntry[T] {
	kind, n := int(s.kind()), int(s.index()/tableChunk)
	if kind >= tableKinds || n >= len(t.kinds[kind]) || t.kinds[kind][n] == nil {
		return nil
	}
	return &t.kinds[kind][n][s.index()%tableChunk]
}

// Get gives what is kept for s; ok is false, and v zero, when there is nothing.
func (t *Table[T]) Get(s Handle) (v T, ok bool) {
	if e := t.entry(s); e != nil && e.sock == s && s != 0 {
		return e.v, true
	}
	return v, false
}

// Put keeps v for s, in place of what was kept. s is, or was, a socket.
func (t *Table[T]) Put(s Handle, v T) {
	e := t.entry(s)
	if e == nil {
		chunks := &t.kinds[s.kind()]
		n := int(s.index() / tableChunk)
		for n >= len(*chunks) {
			*chunks = append(*chunks, nil)
		}
		(*chunks)[n] = new([tableChunk]tableEntry[T])
		e = t.entry(s)
	}
	if e.sock == 0 {
		t.n++
	}
	*e = tableEntry[T]{s, v}
}

// Delete forgets what is kept for s, if there is something.
func (t *Table[T]) Delete(s Handle) {
	if e := t.entry(s); e != nil && e.sock == s && s != 0 {
		*e = tableEntry[T]{}
		t.n--
	}
}

// Len is how many sockets something is kept for.
func (t *Table[T]) Len() int { return t.n }

// All gives everything that is kept, in no order that means something. Who goes through it may delete, and put.
func (t *Table[T]) All() iter.Seq2[Handle, T] {
	return func(yield func(Handle, T) bool) {
		for kind := range t.kinds {
			for n := 0; n < len(t.kinds[kind]); n++ {
				chunk := t.kinds[kind][n]
				for i := 0; chunk != nil && i < tableChunk; i++ {
					if e := chunk[i]; e.sock != 0 && !yield(e.sock, e.v) {
						return
					}
				}
			}
		}
	}
}
