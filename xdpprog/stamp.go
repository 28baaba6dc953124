package xdpprog

import "encoding/binary"

// DefaultMark is the mark of a Source that was not given another one.
const DefaultMark = 0x7864 // "xd"

// StampLen is the length of a Stamp at the start of a UDP payload, in bytes: as much as the smallest frame has room for.
const StampLen = 18

// Stamp is what a Source writes at the start of each UDP payload, and a Sink looks for. On the wire, big-endian:
//
//	offset  0  2  Mark
//	offset  2  8  Time
//	offset 10  8  Seq
type Stamp struct {
	Mark uint16 // tells one test's frames from those of another
	Time int64  // CLOCK_MONOTONIC at the source's machine, ns: when the frame was written
	Seq  uint64 // counts the frames of a Source, over all its flows
}

// ParseStamp reads the stamp at the start of a UDP payload. False: the payload is too short to have one; Mark is for the
// caller to compare.
func ParseStamp(payload []byte) (Stamp, bool) {
	if len(payload) < StampLen {
		return Stamp{}, false
	}
	be := binary.BigEndian
	return Stamp{Mark: be.Uint16(payload), Time: int64(be.Uint64(payload[2:])), Seq: be.Uint64(payload[10:])}, true
}
