package sockets

import "math/bits"

// wheel is a hierarchical timing wheel (Varghese and Lauck, scheme 7): start, stop and fire are O(1) and allocate
// nothing once the node slab has grown. A tick is 1 ms; a timer never fires before its time and at most one tick after
// it. Timers further away than the top level reaches are parked at its rim and cascade again.
type wheel struct {
	tick  int64 // the last tick that was run
	heads [wheelLevels][wheelSlots]uint32
	used  [wheelLevels]uint64 // bit s: slot s of the level is not empty
	nodes [][]wheelNode       // chunks: a million timers must not be copied when one more is made
	free  uint32
	n     int
	ahead func(owners []uint32) // is told whose timers fire next, where there are many
}

type wheelNode struct {
	when       int64 // tick
	next, prev uint32
	owner      uint32 // what fires: kind in the top byte, index below
	slot       uint16 // level<<6 | slot; noSlot: not running
}

const (
	wheelLevels = 5
	wheelBits   = 6
	wheelSlots  = 1 << wheelBits
	tickNS      = 1_000_000
	wheelChunk  = 1024
	nilNode     = 0 // node 0 is never handed out
	noSlot      = 0xffff
)

func newWheel(now int64) *wheel {
	return &wheel{tick: now / tickNS, ahead: func([]uint32) {}}
}

func (w *wheel) at(id uint32) *wheelNode { return &w.nodes[id/wheelChunk][id%wheelChunk] }

// alloc makes a timer for owner, not running.
func (w *wheel) alloc(owner uint32) uint32 {
	if w.free == nilNode {
		w.grow()
	}
	id := w.free
	n := w.at(id)
	w.free = n.next
	*n = wheelNode{owner: owner, slot: noSlot}
	return id
}

func (w *wheel) grow() {
	base := uint32(len(w.nodes) * wheelChunk)
	w.nodes = append(w.nodes, make([]wheelNode, wheelChunk))
	for id := base + wheelChunk - 1; id+1 > max(base, 1); id-- {
		w.at(id).next = w.free
		w.free = id
	}
}

// release stops the timer and gives its node back.
func (w *wheel) release(id uint32) {
	w.stop(id)
	w.at(id).next = w.free
	w.free = id
}

func (w *wheel) running(id uint32) bool { return w.at(id).slot != noSlot }

// when is the time (ns) for which a running timer is set.
func (w *wheel) when(id uint32) int64 { return w.at(id).when * tickNS }

// start sets the timer to fire at or just after the time at (ns), replacing an earlier setting.
func (w *wheel) start(id uint32, at int64) {
	when := max((at+tickNS-1)/tickNS, w.tick+1)
	if w.running(id) && w.at(id).when == when {
		return
	}
	w.stop(id)
	w.at(id).when = when
	w.link(id)
	w.n++
}

func (w *wheel) stop(id uint32) {
	if w.running(id) {
		w.unlink(id)
		w.n--
	}
}

func (w *wheel) link(id uint32) {
	n := w.at(id)
	// The level is that of the highest bit in which the deadline differs from now: everything above is the same, so
	// the slot is reached within the level's current turn. The top level has nothing above it, and no turns.
	level := min(max(bits.Len64(uint64(n.when^w.tick))-1, 0)/wheelBits, wheelLevels-1)
	at, cur := n.when>>(wheelBits*level), w.tick>>(wheelBits*level)
	slot := int(min(at, cur+wheelSlots-1)) & (wheelSlots - 1) // beyond the rim: as late as the top level can say
	head := w.heads[level][slot]
	n.slot, n.next, n.prev = uint16(level<<wheelBits|slot), head, nilNode
	if head != nilNode {
		w.at(head).prev = id
	}
	w.heads[level][slot] = id
	w.used[level] |= 1 << slot
}

func (w *wheel) unlink(id uint32) {
	n := w.at(id)
	level, slot := n.slot>>wheelBits, n.slot&(wheelSlots-1)
	if n.prev != nilNode {
		w.at(n.prev).next = n.next
	} else {
		w.heads[level][slot] = n.next
		if n.next == nilNode {
			w.used[level] &^= 1 << slot
		}
	}
	if n.next != nilNode {
		w.at(n.next).prev = n.prev
	}
	n.slot = noSlot
}

// advance runs the wheel to now and calls fire(owner) for every timer that is due. fire may start and stop any timer.
func (w *wheel) advance(now int64, fire func(owner uint32)) {
	for target := now / tickNS; w.tick < target; {
		if w.n == 0 {
			w.tick = target
			return
		}
		w.tick = min(target, w.nextTick())
		for level := wheelLevels - 1; level >= 0; level-- {
			if w.tick&(1<<(wheelBits*level)-1) == 0 {
				w.expire(level, int(w.tick>>(wheelBits*level))&(wheelSlots-1), fire)
			}
		}
	}
}

func (w *wheel) expire(level, slot int, fire func(uint32)) {
	for k := 0; w.heads[level][slot] != nilNode; k++ {
		id := w.heads[level][slot]
		if k%AheadMax == 0 && level == 0 && w.n >= aheadFrom {
			w.lookAhead(id)
		}
		w.unlink(id)
		if w.at(id).when <= w.tick {
			w.n--
			fire(w.at(id).owner)
			continue
		}
		w.link(id)
	}
}

// lookAhead tells of the timers from id on, whatever becomes of them.
func (w *wheel) lookAhead(id uint32) {
	var owners [AheadMax]uint32
	n := 0
	for ; n < AheadMax && id != nilNode; n++ {
		node := w.at(id)
		owners[n], id = node.owner, node.next
	}
	w.ahead(owners[:n])
}

// nextTick is the first tick after the current one at which a slot has to be looked at: a timer fires there, or moves a
// level down.
func (w *wheel) nextTick() int64 {
	best := int64(1)<<62 - 1
	for level := range w.used {
		if w.used[level] == 0 {
			continue
		}
		shift := wheelBits * level
		cur := w.tick >> shift
		ahead := bits.TrailingZeros64(bits.RotateLeft64(w.used[level], -int((cur+1)&(wheelSlots-1))))
		best = min(best, (cur+1+int64(ahead))<<shift)
	}
	return best
}

// next returns the time (ns) at which advance should be called again; ok is false when no timer runs.
func (w *wheel) next() (at int64, ok bool) {
	if w.n == 0 {
		return 0, false
	}
	return w.nextTick() * tickNS, true
}
