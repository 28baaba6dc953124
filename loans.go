package xdpd

import "sync/atomic"

// loans counts the frames that are lent to readers and writers outside the engine, who may keep them for as long as they
// block. While there are any, the packet memory stays mapped.
type loans struct {
	lent    atomic.Int64
	filling atomic.Int64 // of them, those that a reader fills
	limit   int64        // of filling: readers that block must leave frames to everybody else
}

// memoryUnused is added to loans.lent when the engine has no more use for its memory.
const memoryUnused = 1 << 32

// out counts a frame that was lent. The caller holds a reactor's lock and the reactor runs: the memory is there.
func (l *loans) out() { l.lent.Add(1) }

// fill asks for the right to lend a frame to a reader, which filled gives back.
func (l *loans) fill() bool {
	if l.filling.Add(1) <= l.limit {
		return true
	}
	l.filling.Add(-1)
	return false
}

func (l *loans) filled() { l.filling.Add(-1) }

// repay counts a frame that came back. The last one after Close ends the packet memory.
func (s *Stack) repay() {
	if s.loans.lent.Add(-1) == memoryUnused {
		_ = s.region.Close() // nobody is left to be told
	}
}

// freeMemory ends the packet memory, or leaves that to whoever still holds a lent frame.
func (s *Stack) freeMemory() error {
	if s.loans.lent.Add(memoryUnused) == memoryUnused {
		return s.region.Close()
	}
	return nil
}
