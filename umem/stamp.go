package umem

import (
	"encoding/binary"
	"time"
)

// Stamp is when a frame was received: on CLOCK_MONOTONIC, when the XDP program saw it, or on the clock of the device that
// received it (of a NIC, mostly PTP's). 0: nobody knows. A program writes it into the StampSize bytes in front of the frame,
// in the machine's byte order.
type Stamp uint64

// StampSize is the size of a Stamp in bytes.
const StampSize = 8

const stampHardware = 1 << 63

// Hardware reports whether the time is of the device's clock.
func (s Stamp) Hardware() bool { return s&stampHardware != 0 }

// Time is the time since the clock began.
func (s Stamp) Time() time.Duration { return time.Duration(s &^ stampHardware) }

// GetStamp reads a Stamp.
func GetStamp(b []byte) Stamp { return Stamp(binary.NativeEndian.Uint64(b)) }

// PutStamp writes a Stamp.
func PutStamp(b []byte, s Stamp) { binary.NativeEndian.PutUint64(b, uint64(s)) }
