package sockets

import "xdpd/umem"

// TxFrame is one frame on its way out.
type TxFrame struct {
	F      umem.Frame // umem.None: there is none
	off, n uint16
}

// Off and N say where the bytes to be sent are: the N from Off of the frame's chunk.
func (t TxFrame) Off() int { return int(t.off &^ txFlags) }

// N is the number of bytes.
func (t TxFrame) N() int { return int(t.n) }

// More says that the packet goes on in the next frame: such frames leave together (TxWhole).
func (t TxFrame) More() bool { return t.off&txMore != 0 }

// LeavesSum says that the device is to finish the packet's checksum: SumOf says how. Only with Config.LeaveSums, and of
// several frames in the first.
func (t TxFrame) LeavesSum() bool { return t.off&(txUDP|txTCP) != 0 }

// SumOf says of a frame that leaves its sum that the packet is to be summed from start on, and the checksum to be put
// field bytes behind start. There the packet has the sum of the pseudo-header.
func (h *Host) SumOf(t TxFrame) (start, field int) {
	if t.off&txUDP != 0 {
		return h.lead + 20, 6
	}
	return h.lead + 20, 16
}

// Flags in TxFrame.off.
const (
	txMore  = 1 << 15 // the packet goes on in the next one
	txUDP   = 1 << 14 // its checksum is for the device to finish: UDP's
	txTCP   = 1 << 13 // or TCP's
	txFlags = txMore | txUDP | txTCP
)

// txRoom is how many frames the output queue still takes.
func (h *Host) txRoom() int { return len(h.txq) - int(h.txTail-h.txHead) }

// enqueue puts the n bytes from off of frame f on the output queue, with flags of TxFrame. false: full, counted, and the
// frame is still the caller's.
func (h *Host) enqueue(f umem.Frame, off, n int, flags uint16) bool {
	if h.txRoom() == 0 {
		h.counters.Drops[TxQueueFull]++
		return false
	}
	h.pool.Buf(f).Flags |= bufQueued
	h.txq[h.txTail&(txqSize-1)] = TxFrame{f, uint16(off) | flags, uint16(n)}
	h.txTail++
	h.count(TxFrames)
	h.counters.Stats[TxBytes] += uint64(n)
	return true
}

// TxPending is how many frames wait for PopTX.
func (h *Host) TxPending() int { return int(h.txTail - h.txHead) }

// PopTX gives the next frame to send. It goes from umem.Held to umem.TX, and comes back through Completed.
func (h *Host) PopTX() TxFrame {
	if h.txHead == h.txTail {
		return TxFrame{F: umem.None}
	}
	t := h.txq[h.txHead&(txqSize-1)]
	h.txHead++
	h.pool.Move(t.F, umem.Held, umem.TX)
	return t
}
