package reactor

import "xdpd/sockets"

// watch is what there is of a socket in a Poller (epitem). A million of them cost 24 MB and the garbage collector
// nothing: they lie in chunks without pointers, found by the parts of the socket's Handle.
type watch struct {
	data       uint64
	gen        uint32 // of the socket: another one may have had the slot before
	prev, next ref    // in the Poller's ready list; next is 0 when the socket is not in it
	mask       uint16 // packMask
	poller     uint16 // Poller.id; 0: nobody watches
}

// In a mask the conditions stand where epoll(7) has them, and the flags, which epoll has at the top of 32 bits, 16 lower.
const (
	watchET        = uint16(EdgeTriggered >> 16)
	watchOneShot   = uint16(OneShot >> 16)
	watchExclusive = uint16(Exclusive >> 16)
	watchMore      = 0x0800 // the socket is in other pollers too (watchTable.more); only in its first watch
	watchFlags     = watchET | watchOneShot | watchExclusive | watchMore
	watchEvents    = uint16(sockets.In | sockets.Pri | sockets.Out | sockets.Err | sockets.Hup | sockets.RdHup)
	_              = -(watchFlags & watchEvents) // none may be another (or this is negative, and does not compile)
)

func packMask(m sockets.Ready) uint16 {
	return uint16(m)&watchEvents | uint16(m>>16)&(watchET|watchOneShot|watchExclusive)
}

// events is what of ready the watch is for.
func (w *watch) events(ready sockets.Ready) sockets.Ready {
	return ready & sockets.Ready(w.mask&watchEvents)
}

// ref names a watch: the socket's kind in the top bits, its index below.
type ref uint32

const (
	watchChunk = 256
	refBits    = 28
	maxKind    = 1<<(32-refBits) - 1
	kindMore   = maxKind // no kind of socket: watches beyond a socket's first
	lastRef    = ^ref(0) // ends a list at both sides
	maxMore    = 1 << 20 // registrations of sockets in a second poller and further ones
)

// split takes a Handle apart (sockets.Handle).
func split(s sockets.Handle) (kind uint8, gen, index uint32) {
	return uint8(s >> 56), uint32(s>>32) & (1<<24 - 1), uint32(s)
}

func refOf(s sockets.Handle) ref { return ref(s>>56)<<refBits | ref(uint32(s)) }

// watchTable holds the watches of one reactor. A chunk, once there, stays: there are as many as the Host's slabs have
// at the time of the most sockets. The first watch of a socket has the socket's own place; where a socket is in several
// pollers, the others are in a list, in the order in which they were added.
type watchTable struct {
	kinds [maxKind + 1][]*[watchChunk]watch
	more  map[sockets.Handle]uint32 // a socket's second watch, as index+1 of kindMore
	extra []extra                   // beside the watches of kindMore
	free  uint32                    // index+1 of the first free one of these, linked by next
	nmore int
}

// extra is what a watch of kindMore has that its place does not say.
type extra struct {
	sock sockets.Handle
	next uint32 // index+1
}

func moreRef(index uint32) ref { return kindMore<<refBits | ref(index) }

func (t *watchTable) at(i ref) *watch {
	index := i & (1<<refBits - 1)
	return &t.kinds[i>>refBits][index/watchChunk][index%watchChunk]
}

// handle is the socket that the watch is, or was, for.
func (t *watchTable) handle(i ref) sockets.Handle {
	if i>>refBits == kindMore {
		return t.extra[i&(1<<refBits-1)].sock
	}
	return sockets.Handle(i>>refBits)<<56 | sockets.Handle(t.at(i).gen)<<32 | sockets.Handle(i&(1<<refBits-1))
}

// find gives the first watch of s; nil when it is in no Poller.
func (t *watchTable) find(s sockets.Handle) *watch {
	kind, gen, index := split(s)
	if kind >= kindMore || int(index/watchChunk) >= len(t.kinds[kind]) {
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

// touch reads the watches of all these sockets, so that their lines come into the cache together.
func (t *watchTable) touch(events []sockets.Event) (seen uint32) {
	for _, e := range events {
		if w := t.find(e.Sock); w != nil {
			seen += w.gen
		}
	}
	return seen
}

// findIn gives the watch of s in one Poller; 0 when it is not in it.
func (t *watchTable) findIn(s sockets.Handle, poller uint16) (i ref, w *watch) {
	w = t.find(s)
	if w == nil || w.poller == poller {
		return refOf(s), w
	}
	if w.mask&watchMore != 0 {
		for k := t.more[s]; k != 0; k = t.extra[k-1].next {
			if w = t.at(moreRef(k - 1)); w.poller == poller {
				return moreRef(k - 1), w
			}
		}
	}
	return 0, nil
}

// all appends the watches of s to refs, the oldest first.
func (t *watchTable) all(refs []ref, s sockets.Handle) []ref {
	w := t.find(s)
	if w == nil {
		return refs
	}
	refs = append(refs, refOf(s))
	if w.mask&watchMore != 0 {
		for k := t.more[s]; k != 0; k = t.extra[k-1].next {
			refs = append(refs, moreRef(k-1))
		}
	}
	return refs
}

// slot gives the watch at the place of s, whoever has it. s is open in the Host.
func (t *watchTable) slot(s sockets.Handle) *watch {
	kind, _, index := split(s)
	if kind >= kindMore || index >= 1<<refBits {
		panic("reactor: a handle that a ref cannot say")
	}
	return t.place(int(kind), index)
}

func (t *watchTable) place(kind int, index uint32) *watch {
	n := int(index / watchChunk)
	for n >= len(t.kinds[kind]) {
		t.kinds[kind] = append(t.kinds[kind], nil)
	}
	if t.kinds[kind][n] == nil {
		t.kinds[kind][n] = new([watchChunk]watch)
	}
	return &t.kinds[kind][n][index%watchChunk]
}

// add makes one more watch for s, which has one already. ok is false at the limit.
func (t *watchTable) add(s sockets.Handle) (i ref, w *watch, ok bool) {
	if t.nmore >= maxMore {
		return 0, nil, false
	}
	t.nmore++
	k := t.free // index+1
	if k != 0 {
		t.free = t.extra[k-1].next
	} else {
		t.extra = append(t.extra, extra{})
		k = uint32(len(t.extra))
	}
	t.extra[k-1] = extra{sock: s}
	if first := t.find(s); first.mask&watchMore == 0 {
		first.mask |= watchMore
		if t.more == nil {
			t.more = make(map[sockets.Handle]uint32)
		}
		t.more[s] = k
	} else {
		last := t.more[s]
		for t.extra[last-1].next != 0 {
			last = t.extra[last-1].next
		}
		t.extra[last-1].next = k
	}
	return moreRef(k - 1), t.place(kindMore, k-1), true
}

// remove forgets one watch of s, which is in no ready list. The first watch of a socket is always at the socket's own
// place: when it goes, the next one moves there. moved is that one's old name, or 0.
func (t *watchTable) remove(s sockets.Handle, i ref) (moved ref) {
	w := t.at(i)
	if w.mask&watchMore == 0 && i>>refBits != kindMore {
		*w = watch{}
		return 0
	}
	first, k := t.find(s), t.more[s]
	switch {
	case i>>refBits != kindMore:
		moved = moreRef(k - 1)
		*w = *t.at(moved)
		w.mask |= watchMore
		t.more[s] = t.extra[k-1].next
	case i == moreRef(k-1):
		t.more[s] = t.extra[k-1].next
	default:
		for moreRef(t.extra[k-1].next-1) != i {
			k = t.extra[k-1].next
		}
		gone := t.extra[k-1].next
		t.extra[k-1].next = t.extra[gone-1].next
		k = gone
	}
	*t.at(moreRef(k - 1)) = watch{}
	t.extra[k-1] = extra{next: t.free}
	t.free = k
	t.nmore--
	if t.more[s] == 0 {
		delete(t.more, s)
		first.mask &^= watchMore
	}
	return moved
}

// each calls f for every watch; f may remove it.
func (t *watchTable) each(f func(i ref, w *watch)) {
	for kind, chunks := range t.kinds {
		for n, chunk := range chunks {
			for k := 0; chunk != nil && k < watchChunk; k++ {
				if chunk[k].poller != 0 {
					f(ref(kind)<<refBits|ref(n*watchChunk+k), &chunk[k])
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

// renamed tells the list that a watch in it has a new place.
func (t *watchTable) renamed(l *readyList, to ref) {
	w := t.at(to)
	if w.prev == lastRef {
		l.head = to
	} else {
		t.at(w.prev).next = to
	}
	if w.next == lastRef {
		l.tail = to
	} else {
		t.at(w.next).prev = to
	}
}
