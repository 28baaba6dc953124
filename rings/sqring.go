package rings

import (
	"errors"
	"fmt"
)

// RingLayout says where things lie in the one contiguous memory area that an application and an engine share: a header,
// indices and flags on cache lines of their own, the SQEs, the CQEs. All numbers in it are in the machine's byte order.
//
//	  0 magic u64, version u32, SQEntries u32, CQEntries u32, offset of the SQEs u32, of the CQEs u32, size u32
//	128 SQ head (engine)             256 SQ tail (application)        384 SQ flags (engine)
//	512 CQ head (application)        640 CQ tail (engine)
//	768 CQ flags, wanted tail (application)
//	896 counters (engine)
//
// Neither side believes what it reads here further than Producer and Consumer do, and nobody reads the header back once
// the area is set up: it is for the one who joins.
type RingLayout struct {
	SQEntries, CQEntries uint32
	SQEs, CQEs           int // offsets
	Size                 int // bytes
}

const (
	ringMagic   = 0x676e697264706478 // "xdpdring", little endian
	ringVersion = 1

	offSQHead   = 128
	offSQTail   = 256
	offSQFlags  = 384
	offCQHead   = 512
	offCQTail   = 640
	offCQFlags  = 768
	offCounters = 896
	offEntries  = 1024

	sqeSize = 64
	cqeSize = 16

	maxRingEntries = 1 << 20
)

// SQ flags, which the engine writes: IORING_SQ_*.
const (
	SQNeedWakeup = needWakeup // the engine sleeps: submit through its door
	SQOverflow   = 1 << 1     // the CQ is full and completions wait behind it: nothing is consumed until some were taken
)

// CQ flags, which the application writes.
const (
	CQNeedWakeup      = needWakeup // the application sleeps: wake it when the tail reaches the wanted one
	CQEventFDDisabled = 1 << 1     // IORING_CQ_EVENTFD_DISABLED, which is bit 0 there
	CQWantQuiet       = 1 << 2     // quiet completions (SQEQuiet) are to wake it as others do
)

// ErrRingArea says that an area is no ring, or one of another version or shape.
var ErrRingArea = errors.New("rings: the memory holds no ring of this version")

// LayoutRing is the layout of rings of that many entries: powers of two, at most 2^20.
func LayoutRing(sqEntries, cqEntries uint32) (RingLayout, error) {
	for _, n := range [...]uint32{sqEntries, cqEntries} {
		if n < 1 || n > maxRingEntries || n&(n-1) != 0 {
			return RingLayout{}, fmt.Errorf("rings: %d entries; a ring needs a power of two, at most %d", n, maxRingEntries)
		}
	}
	l := RingLayout{SQEntries: sqEntries, CQEntries: cqEntries, SQEs: offEntries}
	l.CQEs = l.SQEs + int(sqEntries)*sqeSize
	l.Size = (l.CQEs + int(cqEntries)*cqeSize + 127) &^ 127
	return l, nil
}

// RingEngine is the engine's end.
type RingEngine struct {
	SQ      *Consumer[SQE]
	CQ      *Producer[CQE]
	sqFlags *uint32
	cqFlags *uint32
	cqHead  *uint32
	cqWant  *uint32
	stats   *[ringStats]uint64
}

// RingApp is the application's end.
type RingApp struct {
	SQ      *Producer[SQE]
	CQ      *Consumer[CQE]
	sqFlags *uint32
	cqFlags *uint32
	cqHead  *uint32
	cqTail  *uint32
	cqWant  *uint32
	stats   *[ringStats]uint64
}

// RingCounters is what an engine tells about a ring in its area.
type RingCounters struct {
	Submitted uint64 // SQEs consumed
	Completed uint64 // CQEs made
	Overflows uint64 // of these, those that found the CQ full
	Refused   uint64 // SQEs that got no request: malformed, or too many in flight
	BadIndex  uint64 // times the application's indices were out of bounds
	SentZC    uint64 // frames that SEND_ZC sent as they lay
	CopiedZC  uint64 // bytes that it had to copy: more than a segment or a packet, or no room behind them for a whole one
}

const ringStats = 7
