package rings

// The Prep methods fill in an SQE that is all zero, as RingClient.SQE gives it, each for one operation: liburing's
// io_uring_prep_*. They return it, so that UserData and Flags can be set in the same line. Addresses are offsets in the
// registered memory; docs/ring.md says what results and errors the operations have.

// Types of sockets for PrepSocket (<bits/socket_type.h>).
const (
	SockStream = 1 // TCP
	SockDgram  = 2 // UDP
)

const solSocket, soLinger = 1, 13

// PrepNop does nothing.
func (s *SQE) PrepNop() *SQE {
	s.Opcode = OpNop
	return s
}

// PrepSocket makes a socket, SockStream or SockDgram, with the lowest free number.
func (s *SQE) PrepSocket(typ uint64) *SQE {
	s.Opcode, s.FD, s.Off = OpSocket, afInet, typ
	return s
}

// PrepBind gives a socket the address that lies at addr (PutSockAddr).
func (s *SQE) PrepBind(fd int32, addr uint64) *SQE {
	s.Opcode, s.FD, s.Addr, s.Off = OpBind, fd, addr, SockAddrSize
	return s
}

// PrepListen has a bound socket listen.
func (s *SQE) PrepListen(fd int32) *SQE {
	s.Opcode, s.FD = OpListen, fd
	return s
}

// PrepAccept accepts a connection, with AcceptMultishot one after the other.
func (s *SQE) PrepAccept(fd int32, flags uint16) *SQE {
	s.Opcode, s.FD, s.IOPrio = OpAccept, fd, flags
	return s
}

// PrepConnect connects a socket to the address that lies at addr (PutSockAddr).
func (s *SQE) PrepConnect(fd int32, addr uint64) *SQE {
	s.Opcode, s.FD, s.Addr, s.Off = OpConnect, fd, addr, SockAddrSize
	return s
}

// PrepRecv receives up to n bytes at addr.
func (s *SQE) PrepRecv(fd int32, addr uint64, n uint32) *SQE {
	s.Opcode, s.FD, s.Addr, s.Len = OpRecv, fd, addr, n
	return s
}

// PrepRecvSelect receives up to n bytes, 0: as many as fit, into a buffer of a group.
func (s *SQE) PrepRecvSelect(fd int32, group uint16, n uint32) *SQE {
	s.Opcode, s.FD, s.Len, s.Flags, s.BufGroup = OpRecv, fd, n, SQEBufferSelect, group
	return s
}

// PrepRecvFrom receives datagrams, one or with RecvMultishot all that come, each behind a RecvHeader into a buffer of a
// group.
func (s *SQE) PrepRecvFrom(fd int32, group, flags uint16) *SQE {
	s.Opcode, s.FD, s.IOPrio, s.Flags, s.BufGroup = OpRecvFrom, fd, flags, SQEBufferSelect, group
	return s
}

// PrepRecvZC has the frame lent in which the next bytes, or the next datagram, came: CQE.Buffer is its number.
func (s *SQE) PrepRecvZC(fd int32, flags uint16) *SQE {
	s.Opcode, s.FD, s.IOPrio = OpRecvZC, fd, flags
	return s
}

// PrepSend sends n bytes from addr; fewer, unless OpFlags has MsgWaitAll, if there is no room for all.
func (s *SQE) PrepSend(fd int32, addr uint64, n uint32) *SQE {
	s.Opcode, s.FD, s.Addr, s.Len = OpSend, fd, addr, n
	return s
}

// PrepSendTo sends a datagram of n bytes from addr to the address that lies at to (PutSockAddr).
func (s *SQE) PrepSendTo(fd int32, addr uint64, n uint32, to uint64) *SQE {
	s.Opcode, s.FD, s.Addr, s.Len, s.Off, s.FileIndex = OpSend, fd, addr, n, to, SockAddrSize
	return s
}

// PrepSendZC sends the first n bytes of the lent frame as they lie. The frame is the engine's when this succeeds, and a
// second completion, with CQENotif, says that its number is free again.
func (s *SQE) PrepSendZC(fd int32, frame uint16, n uint32) *SQE {
	s.Opcode, s.FD, s.BufGroup, s.Len = OpSendZC, fd, frame, n
	return s
}

// PrepReturn gives a lent frame back.
func (s *SQE) PrepReturn(frame uint16) *SQE {
	s.Opcode, s.BufGroup = OpReturn, frame
	return s
}

// PrepBufRing makes a group of provided buffers of the ring of n entries at addr (NewBufGiver).
func (s *SQE) PrepBufRing(group uint16, addr uint64, n uint32) *SQE {
	s.Opcode, s.BufGroup, s.Addr, s.Len = OpBufRing, group, addr, n
	return s
}

// PrepShutdown shuts a connection down for reading (how 0), writing (1) or both (2).
func (s *SQE) PrepShutdown(fd int32, how uint32) *SQE {
	s.Opcode, s.FD, s.Len = OpShutdown, fd, how
	return s
}

// PrepClose closes a socket. Its requests end with ECANCELED.
func (s *SQE) PrepClose(fd int32) *SQE {
	s.Opcode, s.FD = OpClose, fd
	return s
}

// PrepReset has a connection's CLOSE reset it: SO_LINGER, on and with no time.
func (s *SQE) PrepReset(fd int32) *SQE {
	s.Opcode, s.FD, s.Len, s.OpFlags, s.Off = OpSetSockOpt, fd, solSocket, soLinger, 1
	return s
}

// Keep-alive's settings, as level and option of setsockopt(2).
const (
	KeepOn       = 1<<32 | 9 // SO_KEEPALIVE
	KeepIdle     = 6<<32 | 4 // TCP_KEEPIDLE: seconds
	KeepInterval = 6<<32 | 5 // TCP_KEEPINTVL: seconds
	KeepCount    = 6<<32 | 6 // TCP_KEEPCNT
)

// PrepKeepAlive changes one of the settings of keep-alive.
func (s *SQE) PrepKeepAlive(fd int32, setting, value uint64) *SQE {
	s.Opcode, s.FD, s.Len, s.OpFlags, s.Off = OpSetSockOpt, fd, uint32(setting>>32), uint32(setting), value
	return s
}

// PrepTimeout ends after ns nanoseconds.
func (s *SQE) PrepTimeout(ns uint64) *SQE {
	s.Opcode, s.Addr = OpTimeout, ns
	return s
}

// PrepCancel cancels the oldest request with that user data.
func (s *SQE) PrepCancel(userData uint64) *SQE {
	s.Opcode, s.Addr = OpCancel, userData
	return s
}

// Buffer is the number of the provided buffer, or of the lent frame, that a completion with CQEBuffer tells of.
func (c CQE) Buffer() uint16 { return uint16(c.Flags >> CQEBufferShift) }
