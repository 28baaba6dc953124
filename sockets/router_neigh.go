package sockets

import (
	"slices"

	"xdpd/proto"
	"xdpd/umem"
)

// fwdNeigh is a neighbour of a Router. Not valid: packets without a link header wait for it, linked by Buf.Next.
type fwdNeigh struct {
	addr       proto.Addr
	mac        proto.MAC
	port       uint8
	valid      bool
	waiting    uint8
	asked      int64 // when the kernel was last asked about it
	used       int64 // when a packet was last for it
	head, tail umem.Frame
}

// fwdNeighTable holds the neighbours of all ports. It grows with what the kernel knows, which has a limit of its own
// (net.ipv4.neigh.default.gc_thresh3), and by a bounded number of those who are asked for.
type fwdNeighTable struct {
	index   *flat[uint64]
	entries slab[fwdNeigh]
	open    []uint32 // not valid, oldest first
	waiting int      // frames in all queues
	limit   int      // of waiting
	resolve []Hop
	next    int64
}

const (
	fwdNeighOpen   = 512           // neighbours that are asked for at one time: half of the kernel's room (gc_thresh3)
	fwdNeighMax    = 1 << 16       // neighbours
	fwdNeighQueue  = 32            // packets that wait for one
	fwdNeighGiveUp = 5_000_000_000 // the kernel gives up after three seconds, and tells
	fwdNeighFresh  = 30_000_000_000
	fwdResolveMax  = 2 * fwdNeighOpen // who is new, and who is to be confirmed
)

func (t *fwdNeighTable) init(r *Router, limit int, now int64) {
	t.index = newFlat(func(k uint64) uint64 { return mix(k^r.sec.k0, r.sec.k1) })
	t.limit, t.next = limit, now+1e9
}

func neighKey(port int, a proto.Addr) uint64 { return uint64(port)<<32 | uint64(a) }

// neighFor is the entry for a hop; nil: there is no room for one more. A new one, and one that was not confirmed for long, is
// asked for.
func (r *Router) neighFor(hop Hop) *fwdNeigh {
	t := &r.neigh
	i, ok := t.index.get(neighKey(hop.Port, hop.Gateway))
	if ok {
		e := t.entries.at(i)
		e.used = r.now
		if e.valid && r.now-e.asked > fwdNeighFresh {
			r.neighAsk(e)
		}
		return e
	}
	if len(t.open) >= fwdNeighOpen {
		return nil
	}
	i, e := r.neighNew(hop)
	if e == nil {
		return nil
	}
	t.open = append(t.open, i)
	e.used = r.now
	r.neighAsk(e)
	return e
}

func (r *Router) neighNew(hop Hop) (uint32, *fwdNeigh) {
	t := &r.neigh
	if t.index.n >= fwdNeighMax {
		return 0, nil
	}
	i, e := t.entries.alloc()
	*e = fwdNeigh{addr: hop.Gateway, port: uint8(hop.Port), head: umem.None, tail: umem.None, asked: r.now}
	t.index.put(neighKey(hop.Port, hop.Gateway), i)
	return i, e
}

func (r *Router) neighAsk(e *fwdNeigh) {
	e.asked = r.now
	if t := &r.neigh; len(t.resolve) < fwdResolveMax {
		t.resolve = append(t.resolve, Hop{int(e.port), e.addr})
	}
}

// PopResolve gives a neighbour that somebody must resolve, or confirm, for this Router.
func (r *Router) PopResolve() (Hop, bool) {
	n := len(r.neigh.resolve)
	if n == 0 {
		return Hop{}, false
	}
	h := r.neigh.resolve[n-1]
	r.neigh.resolve = r.neigh.resolve[:n-1]
	return h, true
}

// SetNeighbour tells what is known of a neighbour on a port. valid false: it does not answer, or is forgotten.
func (r *Router) SetNeighbour(port int, a proto.Addr, mac proto.MAC, valid bool, now int64) {
	r.now = now
	i, ok := r.neigh.index.get(neighKey(port, a))
	if !ok {
		if !valid {
			return
		}
		var e *fwdNeigh
		if i, e = r.neighNew(Hop{port, a}); e == nil {
			return
		}
	}
	e := r.neigh.entries.at(i)
	if !valid {
		r.neighFail(i)
		return
	}
	if !e.valid {
		r.neighClosed(i)
	}
	e.mac, e.valid, e.asked = mac, true, now
	for f := r.neighTake(e); f != umem.None; {
		b := r.pool.Buf(f)
		next := b.Next
		r.emit(f, int(b.Off), int(b.Len), e, umem.Held)
		f = next
	}
}

// ForgetNeighbour tells that the kernel has forgotten a neighbour, which it also does for want of room: one in use is asked for
// anew, and goes on being used. In a scan it would have to compete with addresses that nobody has otherwise.
func (r *Router) ForgetNeighbour(port int, a proto.Addr, now int64) {
	r.now = now
	i, ok := r.neigh.index.get(neighKey(port, a))
	if !ok {
		return
	}
	if e := r.neigh.entries.at(i); e.valid && now-e.used < fwdNeighFresh {
		r.neighAsk(e)
	} else {
		r.neighFail(i)
	}
}

// KeepNeighbours forgets the known neighbours that are not known any more.
func (r *Router) KeepNeighbours(known func(port int, a proto.Addr) bool, now int64) {
	r.now = now
	for _, i := range r.neigh.index.all() {
		if e := r.neigh.entries.at(i); e.valid && !known(int(e.port), e.addr) {
			r.neighFail(i)
		}
	}
}

// neighClosed: entry i is asked for no more.
func (r *Router) neighClosed(i uint32) {
	t := &r.neigh
	if k := slices.Index(t.open, i); k >= 0 {
		t.open = slices.Delete(t.open, k, k+1)
	}
}

// neighTake empties the queue of e and gives its first packet.
func (r *Router) neighTake(e *fwdNeigh) umem.Frame {
	f := e.head
	r.neigh.waiting -= int(e.waiting)
	e.head, e.tail, e.waiting = umem.None, umem.None, 0
	return f
}

// neighWait queues the n bytes of IP from off of a frame until the neighbour is known.
func (r *Router) neighWait(e *fwdNeigh, f umem.Frame, off, n int, from umem.Owner) {
	out := &r.ports[e.port]
	if e.waiting >= fwdNeighQueue || r.neigh.waiting >= r.neigh.limit {
		out.counters.Drops[NeighQueueFull]++
		r.pool.Put(f, from)
		return
	}
	if from != umem.Held {
		r.pool.Move(f, from, umem.Held)
	}
	*r.pool.Buf(f) = umem.Buf{Next: umem.None, Off: uint16(off), Len: uint16(n)}
	if e.head == umem.None {
		e.head = f
	} else {
		r.pool.Buf(e.tail).Next = f
	}
	e.tail = f
	e.waiting++
	r.neigh.waiting++
	out.counters.Waited++
}

// neighFail forgets entry i, and tells the senders of what waited for it.
func (r *Router) neighFail(i uint32) {
	t := &r.neigh
	e := t.entries.at(i)
	out, f := &r.ports[e.port], r.neighTake(e)
	if !e.valid {
		r.neighClosed(i)
	}
	t.index.del(neighKey(int(e.port), e.addr))
	t.entries.release(i)
	for f != umem.None {
		next := r.pool.Buf(f).Next
		out.counters.Drops[NeighFailed]++
		l3 := r.pool.Data(f)
		if ip, fault := proto.ParseIPv4(l3); fault == proto.OK && !r.ours(ip.Src) {
			r.icmpError(out, &ip, l3, proto.ICMPUnreachable, proto.UnreachHost, 0)
		}
		r.pool.Put(f, umem.Held)
		f = next
	}
}

// ours: an error of our own waited.
func (r *Router) ours(a proto.Addr) bool {
	e := r.lookup(a)
	return e != nil && e.kind == routeLocal
}

// SetPort follows an interface. Of one that goes down the neighbours are forgotten, as the kernel forgets its own.
func (r *Router) SetPort(port int, c PortConfig) error {
	if err := r.forwarder.SetPort(port, c); err != nil || c.Up {
		return err
	}
	for _, i := range r.neigh.index.all() {
		if int(r.neigh.entries.at(i).port) == port {
			r.neighFail(i)
		}
	}
	r.neigh.resolve = slices.DeleteFunc(r.neigh.resolve, func(h Hop) bool { return h.Port == port })
	return nil
}

// neighTick gives up those who were asked for too long ago.
func (r *Router) neighTick() {
	t := &r.neigh
	if r.now < t.next {
		return
	}
	t.next = r.now + 1e9
	for len(t.open) > 0 && r.now-t.entries.at(t.open[0]).asked >= fwdNeighGiveUp {
		r.neighFail(t.open[0])
	}
}

// Neighbours is how many are known, and how many packets wait for others.
func (r *Router) Neighbours() (known, waiting int) {
	return r.neigh.index.n - len(r.neigh.open), r.neigh.waiting
}
