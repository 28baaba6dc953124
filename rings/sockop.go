package rings

import (
	"encoding/binary"
	"net/netip"

	"xdpd/umem"
)

// Operations on sockets that io_uring has not, or has elsewhere.
const (
	OpRecvFrom   Op = 128 + iota // RECV with a RecvHeader in front of the data: recvmsg(2)'s msg_name
	OpReturn                     // gives back what RECV_ZC or FRAME_GET lent
	OpFrameGet                   // lends a frame to be written and sent by SEND_ZC
	OpSendArea                   // sends from a registered area: sendfile(2)
	OpBufRing                    // registers, or takes back, a ring of provided buffers (io_uring_register: PBUF_RING)
	OpSockName                   // getsockname(2), getpeername(2)
	OpSetSockOpt                 // setsockopt(2)
	OpGetSockOpt                 // getsockopt(2)
)

// SQE.IOPrio of ACCEPT: IORING_ACCEPT_*.
const (
	AcceptMultishot = 1 << 0
	AcceptDontWait  = 1 << 1
	AcceptPollFirst = 1 << 2
)

// SQE.IOPrio of RECV, SEND and their like: IORING_RECVSEND_*.
const (
	PollFirst     = 1 << 0 // do not try at once: there will be nothing to read, or no room
	RecvMultishot = 1 << 1
	ReportUsage   = 1 << 3 // SEND_ZC: its notification tells whether the data had to be copied
	RecvBundle    = 1 << 4 // fill as many provided buffers as there is data for
)

// SQE.OpFlags of RECV, SEND and their like: MSG_* of <sys/socket.h>.
const (
	MsgTrunc    = 0x20 // RECV of a datagram: the result is its whole length
	MsgDontWait = 0x40
	MsgWaitAll  = 0x100 // go on until all of Len is received, or sent
	MsgNoSignal = 0x4000
)

// NotifCopied in the result of a notification of SEND_ZC with ReportUsage: IORING_NOTIF_USAGE_ZC_COPIED.
const NotifCopied = -1 << 31

// FileIndex of CLOSE, SOCKET and ACCEPT names slot n of the fixed table as n+1.

// SockAddrSize is the size of struct sockaddr_in.
const SockAddrSize = 16

const afInet = 2

// PutSockAddr writes a struct sockaddr_in: family u16 in the machine's byte order, port and address big endian.
func PutSockAddr(b []byte, a netip.AddrPort) {
	clear(b[:SockAddrSize])
	binary.NativeEndian.PutUint16(b, afInet)
	binary.BigEndian.PutUint16(b[2:], a.Port())
	if ip := a.Addr().Unmap(); ip.Is4() {
		v4 := ip.As4()
		copy(b[4:], v4[:])
	}
}

// SockAddr reads a struct sockaddr_in; false when it is of another family.
func SockAddr(b []byte) (netip.AddrPort, bool) {
	if binary.NativeEndian.Uint16(b) != afInet {
		return netip.AddrPort{}, false
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[4:8])), binary.BigEndian.Uint16(b[2:])), true
}

// RecvHeaderSize is what RECVFROM writes in front of the data: struct io_uring_recvmsg_out and a struct sockaddr_in.
const RecvHeaderSize = 16 + SockAddrSize

// RecvHeader tells where a datagram came from and how long it was.
type RecvHeader struct {
	Src  netip.AddrPort
	Size uint32 // of the datagram: more than was received, if it was cut off
	// At is when it was received, 0 where that is not told. It stands in the sockaddr_in's sin_zero.
	At umem.Stamp
}

// PutRecvHeader writes h.
func PutRecvHeader(b []byte, h RecvHeader, cut bool) {
	binary.NativeEndian.PutUint32(b, SockAddrSize)
	binary.NativeEndian.PutUint32(b[4:], 0)
	binary.NativeEndian.PutUint32(b[8:], h.Size)
	flags := uint32(0)
	if cut {
		flags = MsgTrunc
	}
	binary.NativeEndian.PutUint32(b[12:], flags)
	PutSockAddr(b[16:], h.Src)
	umem.PutStamp(b[24:], h.At)
}

// ParseRecvHeader reads what PutRecvHeader wrote.
func ParseRecvHeader(b []byte) (h RecvHeader, cut bool) {
	h.Size = binary.NativeEndian.Uint32(b[8:])
	h.Src, _ = SockAddr(b[16:])
	h.At = umem.GetStamp(b[24:])
	return h, binary.NativeEndian.Uint32(b[12:])&MsgTrunc != 0
}

// LentSize is the size of an entry of the table of lent frames.
const LentSize = 32

// Lent is an entry of that table: where in the packet memory the bytes lie that RECV_ZC or FRAME_GET lent.
//
//	0 address u64, 8 length u32, 12 next piece u32 (its number plus one; 0: the last), 16 source sockaddr_in
type Lent struct {
	Addr uint64
	Len  uint32
	Next uint32
	Src  netip.AddrPort
}

// PutLent writes l.
func PutLent(b []byte, l Lent) {
	binary.NativeEndian.PutUint64(b, l.Addr)
	binary.NativeEndian.PutUint32(b[8:], l.Len)
	binary.NativeEndian.PutUint32(b[12:], l.Next)
	PutSockAddr(b[16:], l.Src)
}

// ParseLent reads an entry.
func ParseLent(b []byte) (l Lent) {
	l.Addr = binary.NativeEndian.Uint64(b)
	l.Len = binary.NativeEndian.Uint32(b[8:])
	l.Next = binary.NativeEndian.Uint32(b[12:])
	l.Src, _ = SockAddr(b[16:])
	return l
}
