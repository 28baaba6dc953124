package sockets

import (
	"math/bits"

	"xdpd/proto"
	"xdpd/umem"
)

// Packets of several frames, for a device that takes and gives them (XDP_USE_SG) where one does not hold an MTU. The first
// frame begins with all the headers, and the others follow by Buf.Next, each with an Off and a Len of its own. What is on
// its way out says by bufMore how far the packet goes: the frames of a send queue are linked beyond its end.

// MaxPacketFrames is how many frames a packet can have: MAX_SKB_FRAGS+1, what the kernel sends in copy mode
// (xsk_build_skb, net/xdp/xsk.c).
const MaxPacketFrames = 18

// MaxMTU is the largest MTU whose packets fit into so many frames of chunk bytes each.
func MaxMTU(chunk, frames int) int { return min(frames*(chunk-umem.Headroom)-maxLead, 65535) }

// Piece is one frame of a packet: N bytes from Off in the chunk of F.
type Piece struct {
	F      umem.Frame
	Off, N uint16
}

// InputPieces is Input for a packet of several frames.
func (h *Host) InputPieces(pieces []Piece, now int64) {
	for i := len(pieces) - 1; i > 0; i-- {
		p := &pieces[i]
		h.counters.Stats[RxBytes] += uint64(p.N)
		*h.pool.Buf(p.F) = umem.Buf{Next: h.rest, Off: p.Off, Len: p.N}
		h.rest = p.F
	}
	h.Input(pieces[0].F, int(pieces[0].Off), int(pieces[0].N), now)
	h.rest = umem.None
}

// PacketFrames is how many frames a packet may consist of.
func (h *Host) PacketFrames() int { return h.cfg.PacketFrames }

// chainFrames and chainLen are the frames of a chain, and the bytes in them.
func (h *Host) chainFrames(f umem.Frame) int {
	n := 1
	for f = h.pool.Buf(f).Next; f != umem.None; f = h.pool.Buf(f).Next {
		n++
	}
	return n
}

func (h *Host) chainLen(f umem.Frame) (n int) {
	for ; f != umem.None; f = h.pool.Buf(f).Next {
		n += int(h.pool.Buf(f).Len)
	}
	return n
}

// sumRest goes on with a checksum behind at bytes: of the chain from f on, as far as it is one packet on its way in or,
// with bufMore, on its way out.
func (h *Host) sumRest(f umem.Frame, at int, acc uint64) uint64 {
	for f != umem.None {
		acc = h.sumFrame(f, at, acc)
		b := h.pool.Buf(f)
		at += int(b.Len)
		f = b.Next
	}
	return acc
}

// sumFrame adds up a frame that lies at bytes behind the beginning: at an odd place high and low bytes change sides
// (RFC 1071 section 2 (B)).
func (h *Host) sumFrame(f umem.Frame, at int, acc uint64) uint64 {
	if at&1 == 0 {
		return proto.Sum(h.pool.Data(f), acc)
	}
	odd := bits.ReverseBytes16(proto.Fold(proto.Sum(h.pool.Data(f), 0)))
	return proto.AddSum(acc, uint64(odd))
}

// cut shortens a packet's payload to n bytes and frees frames that hold none of them.
func (h *Host) cut(p *packet, n int) {
	p.n = n
	for f := p.f; ; {
		b := h.pool.Buf(f)
		if n <= int(b.Len) {
			b.Len = uint16(n)
			if b.Next != umem.None {
				h.freeChain(b.Next, p.held)
				b.Next = umem.None
			}
			return
		}
		n -= int(b.Len)
		f = b.Next
	}
}

// freeChain frees frames that were received, and freeRX those that nobody was charged for.
func (h *Host) freeChain(f umem.Frame, held bool) {
	if held {
		h.releaseChain(f)
	} else {
		h.freeRX(f)
	}
}

func (h *Host) freeRX(f umem.Frame) {
	for f != umem.None {
		next := h.pool.Buf(f).Next
		h.pool.Put(f, umem.RX)
		f = next
	}
}

// frames is how many frames a packet with n bytes of transport message takes.
func (h *Host) frames(n int) int { return (n + h.room - 1) / h.room }

// messageFrames is how many frames a transport message of n bytes takes, in one packet or in fragments.
func (h *Host) messageFrames(n int) int {
	count, per := h.fragments(n)
	return (count-1)*h.frames(per) + h.frames(n-(count-1)*per)
}

// allocPacket takes frames to send n bytes in one packet, which lie from umem.Headroom on in each. None: the limit is
// reached.
func (h *Host) allocPacket(n int) umem.Frame {
	first, last := umem.None, umem.None
	for {
		f := h.allocTX()
		if f == umem.None {
			if first != umem.None {
				h.unsend(first)
			}
			return f
		}
		if first == umem.None {
			first = f
		} else {
			b := h.pool.Buf(last)
			b.Next = f
			b.Flags |= bufMore
		}
		last = f
		k := min(n, h.room)
		h.pool.Buf(f).Len = uint16(k)
		if n -= k; n == 0 {
			return first
		}
	}
}

// unsend frees a packet that was not taken.
func (h *Host) unsend(f umem.Frame) {
	for {
		b := h.pool.Buf(f)
		next, more := b.Next, b.Flags&bufMore != 0
		h.freeTX(f, umem.Held)
		if !more {
			return
		}
		f = next
	}
}

// sentTogether is how many frames the packet has that begins with f, on its way out or sent.
func (h *Host) sentTogether(f umem.Frame) int {
	n := 1
	for b := h.pool.Buf(f); b.Flags&bufMore != 0 && b.Next != umem.None; b = h.pool.Buf(b.Next) {
		n++
	}
	return n
}

// enqueueChain is enqueue for a packet of several frames: all or none.
func (h *Host) enqueueChain(f umem.Frame, off, n int, flags uint16) bool {
	if h.txRoom() < h.sentTogether(f) {
		h.counters.Drops[TxQueueFull]++
		return false
	}
	for {
		b := h.pool.Buf(f)
		b.Flags |= bufQueued
		d := TxFrame{f, uint16(off) | flags, uint16(n)}
		flags = 0 // the first frame's
		if b.Flags&bufMore != 0 {
			d.off |= txMore
		}
		h.txq[h.txTail&(txqSize-1)] = d
		h.txTail++
		h.counters.Stats[TxBytes] += uint64(n)
		if b.Flags&bufMore == 0 {
			h.count(TxFrames)
			return true
		}
		f = b.Next
		off, n = int(h.pool.Buf(f).Off), int(h.pool.Buf(f).Len)
	}
}

// TxWhole is how many of the next n frames to send, at most TxPending, make whole packets.
func (h *Host) TxWhole(n int) int {
	for n > 0 && h.txq[(h.txHead+uint32(n)-1)&(txqSize-1)].off&txMore != 0 {
		n--
	}
	return n
}
