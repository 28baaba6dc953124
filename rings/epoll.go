package rings

import "encoding/binary"

// EPOLL_CTL: SQE.Len, EPOLL_CTL_* of <sys/epoll.h>; and EpollForget, which has the ring's poller be as at the beginning.
const (
	EpollForget = 0
	EpollAdd    = 1
	EpollDel    = 2
	EpollMod    = 3
)

// MaxEpolls is how many pollers a ring has, MaxEpollEvents how many events one EPOLL_WAIT gives.
const (
	MaxEpolls      = 64
	MaxEpollEvents = 256
)

// EpollEventSize is the size of an EpollEvent in memory.
const EpollEventSize = 16

// EpollEvent is what EPOLL_WAIT says of a socket.
//
//	0 data u64, as EPOLL_CTL was given; 8 events u32; 12 the socket's number i32, of a slot of the fixed table -1 less the slot
type EpollEvent struct {
	Data   uint64
	Events uint32
	FD     int32
}

// PutEpollEvent writes e.
func PutEpollEvent(b []byte, e EpollEvent) {
	binary.NativeEndian.PutUint64(b, e.Data)
	binary.NativeEndian.PutUint32(b[8:], e.Events)
	binary.NativeEndian.PutUint32(b[12:], uint32(e.FD))
}

// ParseEpollEvent reads what PutEpollEvent wrote.
func ParseEpollEvent(b []byte) EpollEvent {
	return EpollEvent{
		Data: binary.NativeEndian.Uint64(b), Events: binary.NativeEndian.Uint32(b[8:]), FD: int32(binary.NativeEndian.Uint32(b[12:])),
	}
}
