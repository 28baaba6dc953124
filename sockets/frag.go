package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

const (
	fragMax       = 64  // datagrams in reassembly
	fragPieces    = 128 // fragments of one datagram: 64 KiB at an MTU of 576
	fragTimeoutNS = 30_000_000_000
)

type fragKey struct {
	src, dst proto.Addr
	id       uint16
	proto    uint8
}

// fragEntry is a datagram in reassembly: the frames of its pieces as a chain sorted by offset. In their Bufs, Aux is the
// offset in the datagram.
type fragEntry struct {
	key    fragKey
	used   bool
	dead   bool // overlap seen: what still comes is dropped until the timeout (RFC 5722)
	pieces uint16
	frames uint16
	total  int // length of the whole; -1 until the last piece came
	have   int // bytes
	first  packet
	head   umem.Frame
	timer  uint32
}

// fragTable holds at most fragMax datagrams and a quarter of the frames that sockets may hold; a newcomer evicts the
// oldest, so that a flood of first halves cannot shut others out for the timeout's length.
type fragTable struct {
	index   *flat[fragKey]
	entries [fragMax]fragEntry
	hand    int
	frames  int
}

func (t *fragTable) init(h *Host) {
	t.index = newFlat(func(k fragKey) uint64 {
		return mix(mix(uint64(k.src)<<32|uint64(k.dst)^h.sec.k0, h.sec.k1)^uint64(k.id)<<8^uint64(k.proto), h.sec.k0|1)
	})
	for i := range t.entries {
		t.entries[i].timer = h.timers.alloc(timerOwner(timerFrag, uint32(i)))
	}
}

// reassemble takes a fragment. true: it completed its datagram, and p is now the whole. Overlapping fragments condemn
// the datagram (RFC 5722); an exact copy of a piece is dropped alone, as it is what a duplicating link makes.
func (h *Host) reassemble(p *packet) bool {
	off, end := int(p.ip.FragOff), int(p.ip.FragOff)+p.n
	e := h.fragGet(fragKey{p.ip.Src, p.ip.Dst, p.ip.ID, p.ip.Proto})
	if e.dead {
		h.drop(p, FragOverlap)
		return false
	}
	// All but the last carry a multiple of 8 bytes, at least 8 (RFC 791 3.2), and the whole fits a total length.
	if p.ip.MF && (p.n == 0 || p.n%8 != 0) || int(p.ip.HeaderLen)+end > 65535 || e.total >= 0 && (end > e.total || !p.ip.MF && end != e.total) {
		h.fragKill(e, p, FragBad)
		return false
	}
	prev, next := umem.None, e.head
	for next != umem.None && int(h.pool.Buf(next).Aux) < off {
		prev, next = next, h.pool.Buf(next).Next
	}
	if next != umem.None {
		if h.fragCopy(next, p) {
			h.drop(p, FragDuplicate)
			return false
		}
		if !p.ip.MF { // the last piece lies in front of another
			h.fragKill(e, p, FragBad)
			return false
		}
	}
	if prev != umem.None && int(h.pool.Buf(prev).Aux)+int(h.pool.Buf(prev).Len) > off ||
		next != umem.None && end > int(h.pool.Buf(next).Aux) {
		h.fragKill(e, p, FragOverlap)
		return false
	}
	if e.pieces >= fragPieces || int(e.frames)+h.chainFrames(p.f) > handedFrames || h.fragFull(e) {
		h.fragKill(e, p, FragLimit)
		return false
	}
	if !h.hold(p) {
		return false
	}
	h.fragLink(e, p, prev, next)
	if e.have != e.total {
		return false
	}
	*p = e.first
	p.f, p.n, p.held = e.head, e.total, true
	h.count(Reassembled)
	e.head = umem.None
	h.fragFree(e)
	return true
}

// fragCopy reports whether p is what lies at its offset already, in frames cut alike.
func (h *Host) fragCopy(at umem.Frame, p *packet) bool {
	off := uint32(p.ip.FragOff)
	for f := p.f; f != umem.None; f = h.pool.Buf(f).Next {
		if at == umem.None {
			return false
		}
		a, b := h.pool.Buf(at), h.pool.Buf(f)
		if a.Aux != off || a.Len != b.Len {
			return false
		}
		off += uint32(b.Len)
		at = a.Next
	}
	return true
}

// fragFull reports that reassembly holds its share of the frames; the oldest other datagram goes first.
func (h *Host) fragFull(e *fragEntry) bool {
	for range h.frags.entries {
		if h.frags.frames < h.rxLimit/4 {
			return false
		}
		if !h.fragEvict(e) {
			break
		}
	}
	return h.frags.frames >= h.rxLimit/4
}

func (h *Host) fragLink(e *fragEntry, p *packet, prev, next umem.Frame) {
	off, frames := uint32(p.ip.FragOff), 1
	b := h.pool.Buf(p.f)
	for b.Aux = off; b.Next != umem.None; frames++ {
		off += uint32(b.Len)
		b = h.pool.Buf(b.Next)
		b.Aux = off
	}
	b.Next = next
	if prev == umem.None {
		e.head = p.f
	} else {
		h.pool.Buf(prev).Next = p.f
	}
	if p.ip.FragOff == 0 {
		e.first = *p
	}
	if !p.ip.MF {
		e.total = int(p.ip.FragOff) + p.n
	}
	e.pieces++
	e.frames += uint16(frames)
	e.have += p.n
	h.frags.frames += frames
}

// fragGet finds the entry of k or makes one, evicting the oldest when the table is full.
func (h *Host) fragGet(k fragKey) *fragEntry {
	t := &h.frags
	if i, ok := t.index.get(k); ok {
		return &t.entries[i]
	}
	if t.index.n == fragMax {
		h.fragEvict(nil)
	}
	for t.entries[t.hand].used {
		t.hand = (t.hand + 1) % fragMax
	}
	e := &t.entries[t.hand]
	*e = fragEntry{key: k, used: true, total: -1, head: umem.None, timer: e.timer}
	t.index.put(k, uint32(t.hand))
	h.timers.start(e.timer, h.now+fragTimeoutNS)
	return e
}

// fragEvict frees the oldest entry other than keep: deadlines are all equally long, so it is the one due first.
func (h *Host) fragEvict(keep *fragEntry) bool {
	var oldest *fragEntry
	for i := range h.frags.entries {
		e := &h.frags.entries[i]
		if e.used && e != keep && (oldest == nil || h.timers.when(e.timer) < h.timers.when(oldest.timer)) {
			oldest = e
		}
	}
	if oldest == nil {
		return false
	}
	h.counters.Drops[FragLimit] += uint64(oldest.pieces)
	h.fragFree(oldest)
	return true
}

// fragKill drops p and all that came of its datagram, and remembers that the rest is unwanted.
func (h *Host) fragKill(e *fragEntry, p *packet, why Drop) {
	h.drop(p, why)
	h.counters.Drops[why] += uint64(e.pieces)
	h.fragDropPieces(e)
	e.dead = true
}

func (h *Host) fragDropPieces(e *fragEntry) {
	h.releaseChain(e.head)
	h.frags.frames -= int(e.frames)
	e.head, e.pieces, e.frames, e.have = umem.None, 0, 0, 0
}

func (h *Host) fragFree(e *fragEntry) {
	h.fragDropPieces(e)
	h.timers.stop(e.timer)
	h.frags.index.del(e.key)
	e.used = false
}

// fragTimer gives up on a datagram. Its sender is told if the first fragment came (RFC 1122 3.3.2).
func (h *Host) fragTimer(i uint32) {
	e := &h.frags.entries[i]
	h.counters.Drops[FragTimeout] += uint64(e.pieces)
	if e.head != umem.None && h.pool.Buf(e.head).Aux == 0 {
		e.first.f = e.head
		h.icmpError(&e.first, proto.ICMPTimeExceeded, 1)
	}
	h.fragFree(e)
}
