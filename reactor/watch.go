package reactor

import "xdpd/sockets"

// watch is what there is of a socket in a Poller. A million of them cost 24 MB and the garbage collector nothing: they
// lie in chunks without pointers, found by the parts of the socket's Handle.
type watch struct {
	data       uint64
	gen        uint32 // of the socket: another one may have had the slot before
	prev, next ref    // in the Poller's ready list; next is 0 when the socket is not in it
	mask       uint16
	poller     uint16 // Poller.id; 0: nobody watches
}

// All conditions fit into watch.mask.
const _ = uint16(sockets.In | sockets.Out | sockets.Err | sockets.Hup | sockets.RdHup)

// ref names a watch: the socket's kind in the top bits, its index below.
type ref uint32

const (
	watchChunk = 256
	refBits    = 28
	maxKind    = 1<<(32-refBits) - 1
	lastRef    = ^ref(0) // ends a list at both sides
)

// split takes a Handle apart (sockets.Handle).
func split(s sockets.Handle) (kind uint8, gen, index uint32) {
	return uint8(s >> 56), uint32(s>>32) & (1<<24 - 1), uint32(s)
}

func refOf(s sockets.Handle) ref { return ref(s>>56)<<refBits | ref(uint32(s)) }

// watchTable holds the watches of one reactor. A chunk, once there, stays: there are as many as the Host's slabs have
// at the time of the most sockets.
type watchTable struct {
	kinds [maxKind + 1][]*[watchChunk]watch
}

func (t *watchTable) at(i ref) *watch {
	index := i & (1<<refBits - 1)
	return &t.kinds[i>>refBits][index/watchChunk][index%watchChunk]
}

// handle is the socket that the watch is, or was, for.
func (t *watchTable) handle(i ref) sockets.Handle {
	return sockets.Handle(i>>refBits)<<56 | sockets.Handle(t.at(i).gen)<<32 | sockets.Handle(i&(1<<refBits-1))
}

// find gives the watch of s; nil when it is in no Poller.
func (t *watchTable) find(s sockets.Handle) *watch {
	kind, gen, index := split(s)
	if kind > maxKind || int(index/watchChunk) >= len(t.kinds[kind]) {
		return nil
	}
	chunk := t.kinds[kind][index/watchChunk]
	if chunk == nil {
		return nil
	}
	if w := &chunk[index%watchChunk]; w.poller != 0 && w.gen == gen {
		return w
	}
	return nil
}

// slot gives the watch at the place of s, whoever has it. s is open in the Host.
func (t *watchTable) slot(s sockets.Handle) *watch {
	kind, _, index := split(s)
	if kind > maxKind || index >= 1<<refBits {
		panic("reactor: a handle that a ref cannot say")
	}
	n := int(index / watchChunk)
	for n >= len(t.kinds[kind]) {
		t.kinds[kind] = append(t.kinds[kind], nil)
	}
	if t.kinds[kind][n] == nil {
		t.kinds[kind][n] = new([watchChunk]watch)
	}
	return &t.kinds[kind][n][index%watchChunk]
}

// drop forgets all sockets of a Poller.
func (t *watchTable) drop(poller uint16) {
	for _, chunks := range t.kinds {
		for _, chunk := range chunks {
			if chunk == nil {
				continue
			}
			for i := range chunk {
				if chunk[i].poller == poller {
					chunk[i] = watch{}
				}
			}
		}
	}
}

// readyList is epoll's rdllist: each ready socket once, linked through the watches.
type readyList struct {
	head, tail ref
	n          int
}

func (t *watchTable) push(l *readyList, i ref) {
	w := t.at(i)
	w.prev, w.next = l.tail, lastRef
	if l.n == 0 {
		l.head, w.prev = i, lastRef
	} else {
		t.at(l.tail).next = i
	}
	l.tail = i
	l.n++
}

func (t *watchTable) unlink(l *readyList, i ref) {
	w := t.at(i)
	if w.prev == lastRef {
		l.head = w.next
	} else {
		t.at(w.prev).next = w.next
	}
	if w.next == lastRef {
		l.tail = w.prev
	} else {
		t.at(w.next).prev = w.prev
	}
	w.prev, w.next = 0, 0
	l.n--
}
