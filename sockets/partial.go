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

// SetLeaveSums changes Config.LeaveSums. What is on its way out must not be sent by a device that finishes no sums.
func (h *Host) SetLeaveSums(on bool) { h.cfg.LeaveSums = on }

// leavesSum reports whether the checksum of a packet with n bytes of transport message is left to the device.
func (h *Host) leavesSum(n int) bool { return h.cfg.LeaveSums && n >= leaveFrom }

// partialSum marks a packet whose checksum is left to the device, and gives what the field then holds.
func (h *Host) partialSum(b *umem.Buf, pseudo uint64) uint16 {
	b.Flags |= bufPartial
	h.count(TxPartialSum)
	return proto.Fold(pseudo)
}

// sumFlag is the TxFrame's flag for a packet with bufPartial whose link header begins at off of f.
func (h *Host) sumFlag(f umem.Frame, off int) uint16 {
	const ipProto = 9 // offset in the IP header
	if h.pool.Chunk(f)[off+h.lead+ipProto] == proto.ProtoUDP {
		return txUDP
	}
	return txTCP
}
