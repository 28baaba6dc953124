package rings

import (
	"sync/atomic"
	"unsafe"
)

var _ [sqeSize]byte = [unsafe.Sizeof(SQE{})]byte{}
var _ [cqeSize]byte = [unsafe.Sizeof(CQE{})]byte{}

// NewRingArea is ordinary memory for a ring in one process.
func NewRingArea(l RingLayout) []byte {
	words := make([]uint64, l.Size/8)
	return unsafe.Slice((*byte)(unsafe.Pointer(&words[0])), l.Size)
}

func word(area []byte, off int) *uint32   { return (*uint32)(unsafe.Pointer(&area[off : off+4][0])) }
func word64(area []byte, off int) *uint64 { return (*uint64)(unsafe.Pointer(&area[off : off+8][0])) }

func (l *RingLayout) fits(area []byte) bool {
	return len(area) >= l.Size && uintptr(unsafe.Pointer(&area[0]))%8 == 0
}

// Engine makes an empty ring in area and gives the engine's end of it. It panics when area is shorter than l.Size or
// does not start at a multiple of 8.
func (l RingLayout) Engine(area []byte) *RingEngine {
	if !l.fits(area) {
		panic("rings: an area too short, or not aligned")
	}
	clear(area[:l.Size])
	*word64(area, 0) = ringMagic
	for i, v := range [...]uint32{ringVersion, l.SQEntries, l.CQEntries, uint32(l.SQEs), uint32(l.CQEs), uint32(l.Size)} {
		*word(area, 8+4*i) = v
	}
	sqes, cqes := l.entries(area)
	return &RingEngine{
		SQ:      NewConsumer(word(area, offSQTail), word(area, offSQHead), word(area, offSQFlags), sqes),
		CQ:      NewProducer(word(area, offCQTail), word(area, offCQHead), word(area, offCQFlags), cqes),
		sqFlags: word(area, offSQFlags),
		cqFlags: word(area, offCQFlags),
		cqHead:  word(area, offCQHead),
		cqWant:  word(area, offCQFlags+4),
		stats:   (*[ringStats]uint64)(unsafe.Pointer(word64(area[:offEntries], offCounters))),
	}
}

// App gives the application's end of the ring in area, which an engine made.
func App(area []byte) (*RingApp, RingLayout, error) {
	if len(area) < offEntries || *word64(area, 0) != ringMagic || *word(area, 8) != ringVersion {
		return nil, RingLayout{}, ErrRingArea
	}
	l, err := LayoutRing(*word(area, 12), *word(area, 16))
	if err != nil || !l.fits(area) {
		return nil, RingLayout{}, ErrRingArea
	}
	sqes, cqes := l.entries(area)
	return &RingApp{
		SQ:      NewProducer(word(area, offSQTail), word(area, offSQHead), word(area, offSQFlags), sqes),
		CQ:      NewConsumer(word(area, offCQTail), word(area, offCQHead), word(area, offCQFlags), cqes),
		sqFlags: word(area, offSQFlags),
		cqFlags: word(area, offCQFlags),
		cqHead:  word(area, offCQHead),
		cqTail:  word(area, offCQTail),
		cqWant:  word(area, offCQFlags+4),
		stats:   (*[ringStats]uint64)(unsafe.Pointer(word64(area[:offEntries], offCounters))),
	}, l, nil
}

func (l *RingLayout) entries(area []byte) ([]SQE, []CQE) {
	return unsafe.Slice((*SQE)(unsafe.Pointer(&area[l.SQEs])), l.SQEntries),
		unsafe.Slice((*CQE)(unsafe.Pointer(&area[l.CQEs])), l.CQEntries)
}

// SetOverflow tells the application whether completions wait behind a full CQ.
func (e *RingEngine) SetOverflow(on bool) {
	if on {
		atomic.OrUint32(e.sqFlags, SQOverflow)
	} else {
		atomic.AndUint32(e.sqFlags, ^uint32(SQOverflow))
	}
}

// Sleeper reports whether the application sleeps and wants to be woken at this CQ tail, which was loud behind the last completion
// that is not quiet, and whether it wants its eventfd written.
func (e *RingEngine) Sleeper(tail, loud uint32) (wake, eventFD bool) {
	flags := atomic.LoadUint32(e.cqFlags)
	if flags&CQWantQuiet == 0 {
		tail = loud
	}
	wake = flags&CQNeedWakeup != 0 && int32(tail-atomic.LoadUint32(e.cqWant)) >= 0
	return wake, flags&CQEventFDDisabled == 0
}

// Seen reports whether the application has taken all entries before tail. Nothing but its own eventfd hangs on it, so
// its word for it is taken.
func (e *RingEngine) Seen(tail uint32) bool { return int32(atomic.LoadUint32(e.cqHead)-tail) >= 0 }

// Publish writes the counters.
func (e *RingEngine) Publish(c *RingCounters) {
	for i, v := range [ringStats]uint64{c.Submitted, c.Completed, c.Overflows, c.Refused, c.BadIndex, c.SentZC, c.CopiedZC} {
		if atomic.LoadUint64(&e.stats[i]) != v {
			atomic.StoreUint64(&e.stats[i], v)
		}
	}
}

// Overflow reports whether completions wait behind the full CQ.
func (a *RingApp) Overflow() bool { return atomic.LoadUint32(a.sqFlags)&SQOverflow != 0 }

// Sleep tells the engine to wake the application when the CQ tail reaches want. Look at the CQ once more after it.
func (a *RingApp) Sleep(want uint32) {
	atomic.StoreUint32(a.cqWant, want)
	a.CQ.SetNeedWakeup(true)
}

// Waiting reports whether there are completions to take. Any goroutine may ask.
func (a *RingApp) Waiting() bool { return atomic.LoadUint32(a.cqTail) != atomic.LoadUint32(a.cqHead) }

// WantQuiet has quiet completions wake the application as well, or not any more. Before the Sleep that it is for.
func (a *RingApp) WantQuiet(on bool) {
	if on {
		atomic.OrUint32(a.cqFlags, CQWantQuiet)
	} else {
		atomic.AndUint32(a.cqFlags, ^uint32(CQWantQuiet))
	}
}

// Awake takes Sleep back.
func (a *RingApp) Awake() { a.CQ.SetNeedWakeup(false) }

// DisableEventFD switches writes to the eventfd off, or on again.
func (a *RingApp) DisableEventFD(off bool) {
	if off {
		atomic.OrUint32(a.cqFlags, CQEventFDDisabled)
	} else {
		atomic.AndUint32(a.cqFlags, ^uint32(CQEventFDDisabled))
	}
}

// Counters is what the engine told last.
func (a *RingApp) Counters() RingCounters {
	var v [ringStats]uint64
	for i := range v {
		v[i] = atomic.LoadUint64(&a.stats[i])
	}
	return RingCounters{v[0], v[1], v[2], v[3], v[4], v[5], v[6]}
}
