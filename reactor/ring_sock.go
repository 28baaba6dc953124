package reactor

import (
	"math/bits"

	"xdpd/rings"
	"xdpd/sockets"
)

// ringSock is a socket of a ring: a place in its table.
type ringSock struct {
	h      sockets.Handle     // 0: the Host does not know of it yet
	queues [waitPoll + 1]list // requests that wait; queues[waitNone] is not used
	next   uint32             // in Ring.readyQ: index+1; sockListEnd: the last
	used   bool
	slow   uint8 // bits of the rates' lists that it is in
	sockState
}

const sockListEnd = ^uint32(0)

// sockTable holds a ring's sockets: first those with a number, then the slots of the fixed table.
type sockTable struct {
	socks    []ringSock
	numbers  int
	free     [2]bitmap // numbers, slots: set bits are free
	byHandle sockets.Table[uint32]
}

func newSockTable(numbers, fixed int) sockTable {
	return sockTable{
		socks: make([]ringSock, numbers+fixed), numbers: numbers,
		free: [2]bitmap{newBitmap(numbers), newBitmap(fixed)},
	}
}

func (t *sockTable) at(s uint32) *ringSock { return &t.socks[s] }

// lookup finds the socket that an SQE means.
func (t *sockTable) lookup(fd int32, fixed bool) (uint32, bool) {
	n, base := t.numbers, 0
	if fixed {
		n, base = len(t.socks)-t.numbers, t.numbers
	}
	if fd < 0 || int(fd) >= n || !t.socks[base+int(fd)].used {
		return 0, false
	}
	return uint32(base + int(fd)), true
}

// addSock makes a place for a new socket: with fileIndex 0 the lowest free number (else EMFILE), with n+1 slot n of the
// fixed table, whose socket, if there is one, is closed as io_uring does, with FileIndexAlloc any free slot (else
// ENFILE). fd is what the completion tells: 0 to who chose the slot.
func (q *Ring) addSock(fileIndex uint32) (s uint32, fd int32, err sockets.Errno) {
	t := &q.socks
	switch fileIndex {
	case 0:
		n, ok := t.free[0].take()
		if !ok {
			return 0, 0, sockets.EMFILE
		}
		s, fd = uint32(n), int32(n)
	case rings.FileIndexAlloc:
		n, ok := t.free[1].take()
		if !ok {
			return 0, 0, sockets.ENFILE
		}
		s, fd = uint32(t.numbers+n), int32(n)
	default:
		if fileIndex-1 >= uint32(len(t.socks)-t.numbers) {
			return 0, 0, sockets.EINVAL
		}
		s = uint32(t.numbers) + fileIndex - 1
		if t.at(s).used {
			q.closeSock(s)
		}
		t.free[1].reserve(int(fileIndex - 1))
	}
	*t.at(s) = ringSock{used: true, next: t.at(s).next, slow: t.at(s).slow}
	return s, fd, 0
}

// setHandle tells which socket of the Host it is, and has the ring told about it.
func (q *Ring) setHandle(s uint32, h sockets.Handle) {
	q.socks.at(s).h = h
	q.socks.byHandle.Put(h, s)
	q.r.Watch(h, q)
	if q.account != 0 {
		q.r.host.Charge(h, q.account)
	}
}

// dropSock gives the place back. Its requests end with ECANCELED; the Host's socket is the caller's again.
func (q *Ring) dropSock(s uint32) sockets.Handle {
	k := q.socks.at(s)
	for w := range k.queues {
		for k.queues[w].head != 0 {
			q.canceled(k.queues[w].head)
		}
	}
	h := k.h
	if h != 0 {
		q.socks.byHandle.Delete(h)
		q.r.Watch(h, nil)
	}
	q.closePort(k)
	*k = ringSock{next: k.next, slow: k.slow}
	if int(s) < q.socks.numbers {
		q.socks.free[0].release(int(s))
	} else {
		q.socks.free[1].release(int(s) - q.socks.numbers)
	}
	return h
}

// closeSock closes a socket.
func (q *Ring) closeSock(s uint32) sockets.Errno {
	k := q.socks.at(s)
	reset := k.reset && k.kind == sockConnected
	switch h := q.dropSock(s); {
	case h == 0:
		return 0
	case reset:
		return q.r.host.TCPAbort(h, q.now)
	default:
		return q.r.host.Close(h, q.now)
	}
}

func (t *sockTable) closeAll(q *Ring) {
	for s := range t.socks {
		if t.socks[s].used {
			q.closeSock(uint32(s))
		}
	}
}

// await has a request wait in a queue of its socket.
func (q *Ring) await(i uint32, w waitKind) {
	p := q.at(i)
	p.waits = w
	q.append(&q.socks.at(p.sock - 1).queues[w], onWait, i)
}

// sockList is a queue of sockets through ringSock.next.
type sockList struct{ head, tail uint32 }

// Ready is told by the reactor that something happened on a socket.
func (q *Ring) Ready(h sockets.Handle, _ sockets.Ready) (woke bool) {
	if s, ok := q.socks.byHandle.Get(h); ok {
		q.markReady(s)
	}
	return false
}

// markReady has the requests of a socket tried again when the ring runs next.
func (q *Ring) markReady(s uint32) {
	k := q.socks.at(s)
	if k.next != 0 {
		return
	}
	k.next = sockListEnd
	if q.readyQ.head == 0 {
		q.readyQ.head = s + 1
	} else {
		q.socks.at(q.readyQ.tail - 1).next = s + 1
	}
	q.readyQ.tail = s + 1
}

// serveReady tries the requests of sockets on which something happened before this call, as many as a turn may.
func (q *Ring) serveReady() (worked bool) {
	for last := q.readyQ.tail; q.readyQ.head != 0 && q.steps < maxSteps; {
		s := q.readyQ.head - 1
		k := q.socks.at(s)
		if q.readyQ.head = k.next; k.next == sockListEnd {
			q.readyQ = sockList{}
		}
		k.next = 0
		worked = true
		q.retry(s, waitIn)
		q.retry(s, waitOut)
		q.pollSock(s)
		q.settle()
		if s+1 == last {
			break
		}
	}
	return worked
}

// retry serves a queue in order until its first request has to wait, or the turn has done enough.
func (q *Ring) retry(s uint32, w waitKind) {
	for q.socks.at(s).queues[w].head != 0 {
		if q.steps >= maxSteps {
			q.markReady(s)
			return
		}
		i := q.socks.at(s).queues[w].head
		switch ops[q.at(i).sqe.Opcode].issue(q, i) {
		case done:
			q.complete(i)
		case wait:
			return
		case again:
			q.markReady(s)
			return
		}
	}
}

// bitmap finds the lowest free number.
type bitmap struct {
	words []uint64
	from  int // no word before it has a bit
	n     int // set bits
}

func newBitmap(n int) bitmap {
	b := bitmap{words: make([]uint64, (n+63)/64), n: n}
	for i := range n {
		b.words[i/64] |= 1 << (i % 64)
	}
	return b
}

func (b *bitmap) take() (int, bool) {
	if b.n == 0 {
		return 0, false
	}
	for b.words[b.from] == 0 {
		b.from++
	}
	i := b.from*64 + bits.TrailingZeros64(b.words[b.from])
	b.reserve(i)
	return i, true
}

func (b *bitmap) reserve(i int) {
	b.words[i/64] &^= 1 << (i % 64)
	b.n--
}

func (b *bitmap) release(i int) {
	b.words[i/64] |= 1 << (i % 64)
	b.from = min(b.from, i/64)
	b.n++
}
