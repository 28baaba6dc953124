package reactor

import (
	"xdpd/rings"
)

// request is an SQE that was accepted and is not done. It lies in a slab of its ring, is named by its index there, and
// holds no pointers; index 0 names none.
type request struct {
	sqe      rings.SQE // the copy that was checked
	deadline int64     // of a timeout, ns
	count    uint64    // Ring.counted at which a timeout is satisfied
	order    uint64    // when it was started, as a number
	arg      [2]uint64 // the operation's own
	res      int32     // its result
	cflags   uint32    // its CQE's flags
	next     uint32    // in its chain; in the list of free ones
	timeout  uint32    // the armed LINK_TIMEOUT of it; of a LINK_TIMEOUT: what it guards
	sock     uint32    // index+1 in the socket table
	links    [listKinds]link
	heapPos  [heapKinds]uint32 // place+1
	waits    waitKind          // in which queue of its socket it is
	running  bool              // started
	partial  bool              // done with less than was asked for: breaks a chain as a failure does
}

type link struct{ next, prev uint32 }

// What a request can be linked into.
const (
	onPending = iota // Ring.pending
	onUser           // a bucket of Ring.byUser
	onWait           // a queue of its socket, or Ring.startQ
	listKinds
)

// list is a doubly linked list through requests.
type list struct{ head, tail uint32 }

func (q *Ring) at(i uint32) *request { return &q.reqs[i] }

// alloc gives a zero request; 0 when there is none. The last one is kept for an operation that ends at once, so that
// what is in flight can be cancelled however full it is.
func (q *Ring) alloc(spare bool) uint32 {
	i := q.freeHead
	if i == 0 || q.used >= q.limit && !spare {
		return 0
	}
	p := q.at(i)
	q.freeHead = p.next
	*p = request{}
	q.used++
	return i
}

func (q *Ring) free(i uint32) {
	p := q.at(i)
	p.next, p.running = q.freeHead, false
	q.freeHead = i
	q.used--
}

func (q *Ring) append(l *list, kind int, i uint32) {
	q.at(i).links[kind] = link{prev: l.tail}
	if l.tail != 0 {
		q.at(l.tail).links[kind].next = i
	} else {
		l.head = i
	}
	l.tail = i
}

func (q *Ring) prepend(l *list, kind int, i uint32) {
	q.at(i).links[kind] = link{next: l.head}
	if l.head != 0 {
		q.at(l.head).links[kind].prev = i
	} else {
		l.tail = i
	}
	l.head = i
}

func (q *Ring) remove(l *list, kind int, i uint32) {
	k := q.at(i).links[kind]
	if k.prev != 0 {
		q.at(k.prev).links[kind].next = k.next
	} else {
		l.head = k.next
	}
	if k.next != 0 {
		q.at(k.next).links[kind].prev = k.prev
	} else {
		l.tail = k.prev
	}
	q.at(i).links[kind] = link{}
}

// bucket is where requests with that user data are: with the steps of MurmurHash3's fmix64, for programs have their numbers
// in any bits.
func (q *Ring) bucket(user uint64) *list {
	x := user ^ q.userKey
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return &q.byUser[x>>32&uint64(len(q.byUser)-1)]
}

// backlog holds completions that found the CQ full.
type backlog struct {
	ring    []rings.CQE
	message []bool // it came from another ring
	head, n int
	told    bool // the overflow flag is up
}

func newBacklog(size int) backlog {
	return backlog{ring: make([]rings.CQE, size), message: make([]bool, size)}
}

func (b *backlog) push(c rings.CQE, message bool) {
	if b.n == len(b.ring) {
		panic("reactor: a completion without a place")
	}
	at := (b.head + b.n) % len(b.ring)
	b.ring[at], b.message[at] = c, message
	b.n++
}

func (b *backlog) first() (rings.CQE, bool) { return b.ring[b.head], b.message[b.head] }

func (b *backlog) drop() {
	b.head = (b.head + 1) % len(b.ring)
	b.n--
}
