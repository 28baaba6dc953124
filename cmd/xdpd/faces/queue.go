package faces

import "sync"

// QueueSize is how many bytes a Queue holds.
const QueueSize = 64 << 10

var queueBufs = sync.Pool{New: func() any { return new([QueueSize]byte) }}

// Queue is bytes that wait to be sent. The zero value is empty, and an empty one has no memory.
type Queue struct {
	buf      *[QueueSize]byte
	from, to int
}

// Room is how many bytes Put takes.
func (q *Queue) Room() int { return QueueSize - (q.to - q.from) }

// Put queues b, for which there is room.
func (q *Queue) Put(b []byte) {
	if len(b) == 0 {
		return // an empty queue holds no memory
	}
	if q.buf == nil {
		q.buf = queueBufs.Get().(*[QueueSize]byte)
	}
	if q.to+len(b) > QueueSize {
		q.to = copy(q.buf[:], q.buf[q.from:q.to])
		q.from = 0
	}
	q.to += copy(q.buf[q.to:], b)
}

// Bytes are those that wait.
func (q *Queue) Bytes() []byte {
	if q.buf == nil {
		return nil
	}
	return q.buf[q.from:q.to]
}

// Drop forgets the first n.
func (q *Queue) Drop(n int) {
	if q.from += n; q.from == q.to && q.buf != nil {
		queueBufs.Put(q.buf)
		*q = Queue{}
	}
}
