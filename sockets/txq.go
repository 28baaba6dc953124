package sockets

import "xdpd/umem"

// txDesc is one frame on its way out: the bytes chunk[off:off+n] of frame f, with flags in off.
type txDesc struct {
	f      umem.Frame
	off, n uint16
}

// Flags of a txDesc.
const (
	txMore  = 1 << 15 // the packet goes on in the next one
	txUDP   = 1 << 14 // its checksum is for the device to finish: UDP's
	txTCP   = 1 << 13 // or TCP's
	txFlags = txMore | txUDP | txTCP
)

// txRoom is how many frames the output queue still takes.
func (h *Host) txRoom() int { return len(h.txq) - int(h.txTail-h.txHead) }

// enqueue puts the n bytes from off of frame f on the output queue, with flags of txDesc. false: full, counted, and the
// frame is still the caller's.
func (h *Host) enqueue(f umem.Frame, off, n int, flags uint16) bool {
	if h.txRoom() == 0 {
		h.counters.Drops[TxQueueFull]++
		return false
	}
	h.pool.Buf(f).Flags |= bufQueued
	h.txq[h.txTail&(txqSize-1)] = txDesc{f, uint16(off) | flags, uint16(n)}
	h.txTail++
	h.count(TxFrames)
	h.counters.Stats[TxBytes] += uint64(n)
	return true
}

// TxPending is how many frames wait for PopTX.
func (h *Host) TxPending() int { return int(h.txTail - h.txHead) }

// TxFrame is a frame to send: the N bytes from Off of its chunk.
type TxFrame struct {
	F      umem.Frame // umem.None: there is none
	Off, N int
	More   bool // the packet goes on in the next one: such frames leave together (TxWhole)

	// SumField is not 0 where the device is to finish the packet's checksum: to sum its bytes from SumStart on, and put
	// the checksum so many bytes behind that. There the packet has the sum of the pseudo-header. Only with LeaveSums, and
	// of several frames in the first.
	SumStart, SumField int
}

// PopTX gives the next frame to send. It goes from umem.Held to umem.TX, and comes back through Completed.
func (h *Host) PopTX() TxFrame {
	if h.txHead == h.txTail {
		return TxFrame{F: umem.None}
	}
	d := h.txq[h.txHead&(txqSize-1)]
	h.txHead++
	h.pool.Move(d.f, umem.Held, umem.TX)
	t := TxFrame{F: d.f, Off: int(d.off &^ txFlags), N: int(d.n), More: d.off&txMore != 0}
	if d.off&(txUDP|txTCP) != 0 {
		if t.SumStart, t.SumField = h.lead+20, 16; d.off&txUDP != 0 {
			t.SumField = 6
		}
	}
	return t
}
