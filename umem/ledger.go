package umem

import (
	"fmt"
	"sync"
)

// Owner is who holds a frame. A frame has exactly one.
type Owner uint8

// The owners, in the order in which a received frame that is sent on meets
// them.
const (
	Free   Owner = iota // in a pool
	Fill                // in the fill ring, or the device's for receiving
	RX                  // taken from the RX ring, on its way up the stack
	Held                // in a socket's queue
	Lent                // an application reads or writes it
	TX                  // in the TX ring, or the device's for sending
	Comp                // taken from the completion ring, about to be freed
	Handed              // on its way from one pool to another
	NOwners
)

var ownerNames = [NOwners]string{"free", "fill", "rx", "held", "lent", "tx", "comp", "handed"}

func (o Owner) String() string {
	if o >= NOwners {
		return fmt.Sprintf("owner(%d)", uint8(o))
	}
	return ownerNames[o]
}

// Ledger names the owner of each frame of a region and panics on the first
// move that breaks the frame law. It is for tests and simulation; it may be
// used from any goroutine.
type Ledger struct {
	mu     sync.Mutex
	owners []Owner
	counts [NOwners]int
	moves  [NOwners][NOwners]uint64
}

// NewLedger has all frames in Free.
func NewLedger(frames int) *Ledger {
	l := &Ledger{owners: make([]Owner, frames)}
	l.counts[Free] = frames
	return l
}

// Move hands f from one owner to the next. It panics, naming both, when f does
// not belong to from.
func (l *Ledger) Move(f Frame, from, to Owner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if int64(f) >= int64(len(l.owners)) {
		panic(fmt.Sprintf("umem: frame %d moved from %v to %v; there are only %d frames", f, from, to, len(l.owners)))
	}
	if to >= NOwners {
		panic(fmt.Sprintf("umem: frame %d moved from %v to %v, who cannot own frames", f, from, to))
	}
	if got := l.owners[f]; got != from {
		panic(fmt.Sprintf("umem: frame %d moved from %v to %v; its owner is %v", f, from, to, got))
	}
	l.owners[f] = to
	l.counts[from]--
	l.counts[to]++
	l.moves[from][to]++
}

// Owner is who holds f.
func (l *Ledger) Owner(f Frame) Owner {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.owners[f]
}

// Counts is how many frames each owner holds.
func (l *Ledger) Counts() [NOwners]int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.counts
}

// Moves is how often a frame went from one owner to another, since the start:
// what a packet costs in frames.
func (l *Ledger) Moves(from, to Owner) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.moves[from][to]
}

// Frames lists the frames that o holds, in ascending order.
func (l *Ledger) Frames(o Owner) []Frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	var fs []Frame
	for f, owner := range l.owners {
		if owner == o {
			fs = append(fs, Frame(f))
		}
	}
	return fs
}
