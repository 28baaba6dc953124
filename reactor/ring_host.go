package reactor

import (
	"net/netip"
	"sync"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
)

// RingSockets are a ring's sockets as a Host has them: by handles, without blocking, with the Host's calls and errors. So a program that
// was written for the sockets of a reactor in its own process runs over a ring, of another process too. Calls may come from any goroutine.
// The times that they are given, as a Host is, are not used.
type RingSockets struct {
	calls *RingCalls
	mu    sync.Mutex
	socks []sockets.Handle // by number; 0: none
	gens  []uint32
	late  map[sockets.Handle]sockets.Errno // errors that were met behind bytes
	epoll [rings.MaxEpolls]bool
}

// NewRingSockets gives the sockets that are opened by calls.
func NewRingSockets(calls *RingCalls) *RingSockets {
	return &RingSockets{calls: calls, late: map[sockets.Handle]sockets.Errno{}}
}

// Kinds of sockets, as their handles have them.
const (
	handleUDP = iota + 1
	handleListener
	handleTCP
)

// opened gives a number a handle, which no other socket will have.
func (h *RingSockets) opened(fd int32, kind uint64) sockets.Handle {
	h.mu.Lock()
	defer h.mu.Unlock()
	for int(fd) >= len(h.socks) {
		h.socks, h.gens = append(h.socks, 0), append(h.gens, 0)
	}
	h.gens[fd]++
	h.socks[fd] = sockets.Handle(kind<<56 | uint64(h.gens[fd]&(1<<24-1))<<32 | uint64(fd))
	return h.socks[fd]
}

// number is the number of a handle; -1: it is closed.
func (h *RingSockets) number(s sockets.Handle) int32 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if i := uint32(s); int(i) < len(h.socks) && s != 0 && h.socks[i] == s {
		return int32(i)
	}
	return -1
}

// do is one operation on a socket.
func (h *RingSockets) do(o Call, s sockets.Handle, sqe rings.SQE) (int, sockets.Errno) {
	if sqe.FD = h.number(s); sqe.FD < 0 {
		return 0, sockets.EBADF
	}
	return result(o.Do(&sqe))
}

func result(n int, errno sockets.Errno, err error) (int, sockets.Errno) {
	if err != nil {
		return 0, sockets.EBADF // the ring is closed, and all sockets with it
	}
	return n, errno
}

// one is an operation with a call of its own.
func (h *RingSockets) one(s sockets.Handle, sqe rings.SQE) (int, sockets.Errno) {
	o, err := h.calls.Begin()
	if err != nil {
		return 0, sockets.EBADF
	}
	defer o.End()
	return h.do(o, s, sqe)
}

// openOn opens a socket, and does with it what then says, of which an address lies at Addr of the call's memory.
func (h *RingSockets) openOn(o Call, typ, kind uint64, then ...rings.SQE) (sockets.Handle, sockets.Errno) {
	fd, errno := result(o.Do(&rings.SQE{Opcode: rings.OpSocket, FD: afInet, Off: typ}))
	if errno != 0 {
		return 0, errno
	}
	for _, sqe := range then {
		sqe.FD = int32(fd)
		if sqe.Off != 0 {
			sqe.Addr += o.Base()
		}
		if _, errno = result(o.Do(&sqe)); errno != 0 && errno != sockets.EINPROGRESS {
			_, _ = result(o.Do(&rings.SQE{Opcode: rings.OpClose, FD: int32(fd)}))
			return 0, errno
		}
	}
	return h.opened(int32(fd), kind), 0
}

func putAddr(b []byte, a proto.Addr, port uint16) {
	rings.PutSockAddr(b, netip.AddrPortFrom(a.Netip(), port))
}

// TCPListen is Host.TCPListen.
func (h *RingSockets) TCPListen(local proto.Addr, port uint16) (sockets.Handle, sockets.Errno) {
	o, err := h.calls.Begin()
	if err != nil {
		return 0, sockets.EBADF
	}
	defer o.End()
	putAddr(o.Mem(), local, port)
	return h.openOn(o, sockStream, handleListener,
		rings.SQE{Opcode: rings.OpBind, Off: rings.SockAddrSize}, rings.SQE{Opcode: rings.OpListen})
}

// TCPDial is Host.TCPDial.
func (h *RingSockets) TCPDial(local proto.Addr, lport uint16, remote proto.Addr, port uint16, _ int64) (sockets.Handle, sockets.Errno) {
	o, err := h.calls.Begin()
	if err != nil {
		return 0, sockets.EBADF
	}
	defer o.End()
	putAddr(o.Mem(), local, lport)
	putAddr(o.Mem()[rings.SockAddrSize:], remote, port)
	steps := []rings.SQE{
		{Opcode: rings.OpBind, Off: rings.SockAddrSize},
		{Opcode: rings.OpConnect, Addr: rings.SockAddrSize, Off: rings.SockAddrSize, OpFlags: rings.MsgDontWait},
	}
	if local == 0 && lport == 0 {
		steps = steps[1:]
	}
	return h.openOn(o, sockStream, handleTCP, steps...)
}

// TCPAccept is Host.TCPAccept.
func (h *RingSockets) TCPAccept(s sockets.Handle) (sockets.Handle, sockets.Errno) {
	fd, errno := h.one(s, rings.SQE{Opcode: rings.OpAccept, IOPrio: rings.AcceptDontWait})
	if errno != 0 {
		return 0, errno
	}
	return h.opened(int32(fd), handleTCP), 0
}

// TCPRead is Host.TCPRead.
func (h *RingSockets) TCPRead(s sockets.Handle, dst []byte, _ int64) (n int, errno sockets.Errno) {
	if errno := h.takeLate(s); errno != 0 {
		return 0, errno
	}
	o, err := h.calls.BeginData()
	if err != nil {
		return 0, sockets.EBADF
	}
	defer o.End()
	for {
		k := min(len(dst)-n, h.calls.cfg.Chunk)
		k, errno = h.do(o, s, rings.SQE{Opcode: rings.OpRecv, Addr: o.Base(), Len: uint32(k), OpFlags: rings.MsgDontWait})
		if errno != 0 {
			break
		}
		if n += copy(dst[n:], o.Mem()[:k]); n == len(dst) || k < h.calls.cfg.Chunk {
			break // there was no more
		}
	}
	if errno == sockets.EAGAIN && len(dst) == 0 {
		errno = 0
	}
	return h.moved(s, n, errno)
}

// TCPWrite is Host.TCPWrite.
func (h *RingSockets) TCPWrite(s sockets.Handle, p []byte, _ int64) (n int, errno sockets.Errno) {
	if errno := h.takeLate(s); errno != 0 {
		return 0, errno
	}
	o, err := h.calls.BeginData()
	if err != nil {
		return 0, sockets.EBADF
	}
	defer o.End()
	for {
		size := copy(o.Mem(), p[n:])
		k := 0
		k, errno = h.do(o, s, rings.SQE{Opcode: rings.OpSend, Addr: o.Base(), Len: uint32(size), OpFlags: rings.MsgDontWait})
		if n += k; k < size || n == len(p) { // a part is all that there was room for, and who waits hears when there is more
			break
		}
	}
	return h.moved(s, n, errno)
}

// moved is the result of a call that moved n bytes before something else happened, which the next call tells.
func (h *RingSockets) moved(s sockets.Handle, n int, errno sockets.Errno) (int, sockets.Errno) {
	if n == 0 || errno == 0 {
		return n, errno
	}
	if errno != sockets.EAGAIN && errno != sockets.EPIPE { // which the next call finds by itself
		h.mu.Lock()
		h.late[s] = errno
		h.mu.Unlock()
	}
	return n, 0
}

// takeLate takes what an earlier call did not tell.
func (h *RingSockets) takeLate(s sockets.Handle) sockets.Errno {
	h.mu.Lock()
	defer h.mu.Unlock()
	errno := h.late[s]
	delete(h.late, s)
	return errno
}

// TCPShutdown is Host.TCPShutdown.
func (h *RingSockets) TCPShutdown(s sockets.Handle, _ int64) sockets.Errno { return h.shutdown(s, 1) }

// TCPShutdownRead is Host.TCPShutdownRead.
func (h *RingSockets) TCPShutdownRead(s sockets.Handle, _ int64) sockets.Errno {
	return h.shutdown(s, 0)
}

func (h *RingSockets) shutdown(s sockets.Handle, how uint32) sockets.Errno {
	_, errno := h.one(s, rings.SQE{Opcode: rings.OpShutdown, Len: how})
	return errno
}

// TCPError is Host.TCPError: the pending error, which it takes.
func (h *RingSockets) TCPError(s sockets.Handle) sockets.Errno {
	if errno := h.takeLate(s); errno != 0 {
		return errno
	}
	_, errno := h.one(s, rings.SQE{Opcode: rings.OpSend, OpFlags: rings.MsgDontWait})
	if errno == sockets.EAGAIN || errno == sockets.EPIPE { // no error of the connection's
		return 0
	}
	return errno
}

// TCPAddr is Host.TCPAddr.
func (h *RingSockets) TCPAddr(s sockets.Handle) (local, remote netip.AddrPort) { return h.addrs(s) }

// TCPAbort is Host.TCPAbort.
func (h *RingSockets) TCPAbort(s sockets.Handle, now int64) sockets.Errno {
	if _, errno := h.one(s, rings.SQE{Opcode: rings.OpSetSockOpt, Len: solSocket, OpFlags: soLinger, Off: 1}); errno != 0 {
		return errno
	}
	return h.Close(s, now)
}

// UDPBind is Host.UDPBind.
func (h *RingSockets) UDPBind(local proto.Addr, port uint16) (sockets.Handle, sockets.Errno) {
	o, err := h.calls.Begin()
	if err != nil {
		return 0, sockets.EBADF
	}
	defer o.End()
	putAddr(o.Mem(), local, port)
	return h.openOn(o, sockDgram, handleUDP, rings.SQE{Opcode: rings.OpBind, Off: rings.SockAddrSize})
}

// UDPConnect is Host.UDPConnect.
func (h *RingSockets) UDPConnect(s sockets.Handle, remote proto.Addr, port uint16) sockets.Errno {
	o, err := h.calls.Begin()
	if err != nil {
		return sockets.EBADF
	}
	defer o.End()
	putAddr(o.Mem(), remote, port)
	_, errno := h.do(o, s, rings.SQE{Opcode: rings.OpConnect, Addr: o.Base(), Off: rings.SockAddrSize})
	return errno
}

// UDPRecv is Host.UDPRecv.
func (h *RingSockets) UDPRecv(s sockets.Handle, dst []byte) (d sockets.Datagram, errno sockets.Errno) {
	o, err := h.calls.BeginData()
	if err != nil {
		return d, sockets.EBADF
	}
	defer o.End()
	room := min(len(dst)+rings.RecvHeaderSize, h.calls.cfg.Chunk)
	n, errno := h.do(o, s, rings.SQE{Opcode: rings.OpRecvFrom, Addr: o.Base(), Len: uint32(room), OpFlags: rings.MsgDontWait})
	if errno != 0 {
		return d, errno
	}
	head, _ := rings.ParseRecvHeader(o.Mem())
	d.Src, d.Size, d.More = head.Src, int(head.Size), o.Flags()&rings.CQESockNonempty != 0
	d.N = copy(dst, o.Mem()[rings.RecvHeaderSize:n])
	return d, 0
}

// UDPSend is Host.UDPSend.
func (h *RingSockets) UDPSend(s sockets.Handle, payload []byte, dst netip.AddrPort, _ int64) sockets.Errno {
	o, err := h.calls.BeginData()
	if err != nil {
		return sockets.EBADF
	}
	defer o.End()
	if len(payload) > sockets.MaxUDP {
		return sockets.EMSGSIZE
	}
	sqe := rings.SQE{
		Opcode: rings.OpSend, Addr: o.Base() + rings.SockAddrSize, Len: uint32(copy(o.Mem()[rings.SockAddrSize:], payload)), OpFlags: rings.MsgDontWait,
	}
	if dst.IsValid() {
		rings.PutSockAddr(o.Mem(), dst)
		sqe.Off, sqe.FileIndex = o.Base(), rings.SockAddrSize
	}
	_, errno := h.do(o, s, sqe)
	return errno
}

// UDPAddr is Host.UDPAddr.
func (h *RingSockets) UDPAddr(s sockets.Handle) (local, remote netip.AddrPort) { return h.addrs(s) }

func (h *RingSockets) addrs(s sockets.Handle) (local, remote netip.AddrPort) {
	o, err := h.calls.Begin()
	if err != nil {
		return local, remote
	}
	defer o.End()
	for of, a := range []*netip.AddrPort{&local, &remote} {
		if _, errno := h.do(o, s, rings.SQE{Opcode: rings.OpSockName, Addr: o.Base(), Len: rings.SockAddrSize, OpFlags: uint32(of)}); errno == 0 {
			*a, _ = rings.SockAddr(o.Mem())
		}
	}
	return local, remote
}

// Close is Host.Close.
func (h *RingSockets) Close(s sockets.Handle, _ int64) sockets.Errno {
	fd := h.number(s)
	if fd < 0 {
		return sockets.EBADF
	}
	h.mu.Lock()
	delete(h.late, s)
	h.socks[fd] = 0 // before anybody else can have the number
	h.mu.Unlock()
	o, err := h.calls.Begin()
	if err != nil {
		return sockets.EBADF
	}
	defer o.End()
	_, errno := result(o.Do(&rings.SQE{Opcode: rings.OpClose, FD: fd}))
	return errno
}
