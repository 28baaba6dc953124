//go:build linux

package rings

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	descSize = int(unsafe.Sizeof(Desc{}))
	addrSize = int(unsafe.Sizeof(uint64(0)))
)

// ringIn finds the words and entries of a ring of n entries in its mapping, as
// XDP_MMAP_OFFSETS places them. It panics when they are not in mem.
func ringIn[T any](mem []byte, off unix.XDPRingOffset, n int) (prod, cons, flags *uint32, entries []T) {
	word := func(at uint64) *uint32 { return (*uint32)(unsafe.Pointer(&mem[at : at+4][0])) }
	var t T
	desc := mem[off.Desc : off.Desc+uint64(n)*uint64(unsafe.Sizeof(t))]
	return word(off.Producer), word(off.Consumer), word(off.Flags), unsafe.Slice((*T)(unsafe.Pointer(&desc[0])), n)
}
