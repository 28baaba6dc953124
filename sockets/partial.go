package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

// Checksums that are left to the device (Config.LeaveSums): the field in the header then holds the sum of the
// pseudo-header alone, not inverted (tcp_v4_send_check in net/ipv4/tcp_ipv4.c), and Buf.Flags has bufPartial. Fragments never
// are, nor ICMP.

// leaveFrom is from how many bytes of transport message on a checksum is left to the device. In copy mode the kernel takes 20 ns
// longer for a frame that asks for one, which is what summing 1000 bytes takes. A kernel that receives it saves its own
// sum, too, but not who listens with XDP.
const leaveFrom = 1000

// leavesSum reports whether the checksum of a packet with n bytes of transport message is left to the device.
func (h *Host) leavesSum(n int) bool { return h.cfg.LeaveSums && n >= leaveFrom }

// partialSum is what a packet's checksum field then holds.
func (h *Host) partialSum(pseudo uint64) uint16 {
	h.count(TxPartialSum)
	return proto.Fold(pseudo)
}

// tcpSum is the checksum field of a segment of total bytes that begins with seg, in frame f, where the field is 0.
func (h *Host) tcpSum(f umem.Frame, seg []byte, total int, pseudo uint64) uint16 {
	b := h.pool.Buf(f)
	if h.leavesSum(total) {
		b.Flags |= bufPartial
		return h.partialSum(pseudo)
	}
	b.Flags &^= bufPartial // as which a frame of the send queue may have gone out before
	if total > len(seg) {
		pseudo = proto.AddSum(pseudo, h.sumTied(f, len(seg)))
	}
	return ^proto.Fold(proto.Sum(seg, pseudo))
}

// sumFlag is the txDesc's flag for a packet with bufPartial whose link header begins at off of f.
func (h *Host) sumFlag(f umem.Frame, off int) uint16 {
	const ipProto = 9 // offset in the IP header
	if h.pool.Chunk(f)[off+h.lead+ipProto] == proto.ProtoUDP {
		return txUDP
	}
	return txTCP
}
