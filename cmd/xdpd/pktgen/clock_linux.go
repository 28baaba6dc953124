package pktgen

import (
	"time"

	"golang.org/x/sys/unix"
)

// time.Since reads CLOCK_MONOTONIC without a system call, but from a start of its own.
var (
	clockStart  = time.Now()
	clockOffset = monotonic()
)

func monotonic() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err) // a clock that every kernel has
	}
	return ts.Nano()
}
