package sockets

import "syscall"

// Handle names a socket: a kind, an index into the kind's slab, and the generation of that slot, so that a handle of a
// closed socket is recognised however often its slot was used again. The zero Handle names nothing.
type Handle uint64

// Kinds of sockets.
const (
	kindUDP = iota + 1
	kindListener
	kindTCP
)

// maxGen is the last generation a handle can say. A slot that reached it is not used again: after a wrap the handle of a
// socket closed long ago would name a new one.
const maxGen = 1<<24 - 1

func makeHandle(kind uint8, gen uint32, index uint32) Handle {
	return Handle(kind)<<56 | Handle(gen&maxGen)<<32 | Handle(index)
}

func (s Handle) kind() uint8   { return uint8(s >> 56) }
func (s Handle) gen() uint32   { return uint32(s>>32) & maxGen }
func (s Handle) index() uint32 { return uint32(s) }

// exists reports whether s names a socket, also a TCP connection without an owner, which still has its data to send.
func (h *Host) exists(s Handle) bool {
	if s.kind() == kindTCP {
		c := h.tcp.at(s.index())
		return c.used && c.gen == s.gen()
	}
	return h.udp.get(s) != nil
}

// Errno is a syscall errno; 0 is success. It is what a completion carries, and what the net face turns into an error.
type Errno = syscall.Errno
