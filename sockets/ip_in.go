package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

// ipInput is ip_rcv: the frame's Buf covers the bytes behind the link header, b are the same bytes.
func (h *Host) ipInput(f umem.Frame, b []byte, eth *proto.Ethernet) {
	buf, n := h.pool.Buf(f), len(b)
	if buf.Next != umem.None {
		n += h.chainLen(buf.Next)
	}
	ip, fault := proto.ParseIPv4In(b, n)
	if fault != proto.OK {
		h.dropRX(f, Drop(fault))
		return
	}
	if why := h.ipCheck(&ip, b, eth); why != 0 {
		h.dropRX(f, why)
		return
	}
	p := packet{
		f: f, n: int(ip.TotalLen) - int(ip.HeaderLen), ipOff: buf.Off,
		ip: ip, srcMAC: eth.Src, bcast: eth.Dst.IsMulticast(),
	}
	buf.Off += uint16(ip.HeaderLen)
	if buf.Next == umem.None { // what lies behind the IP packet is link-layer padding
		buf.Len = uint16(p.n)
	} else {
		buf.Len -= uint16(ip.HeaderLen)
		h.cut(&p, p.n)
	}
	if ip.Fragment() {
		h.count(RxFragments)
		if !h.reassemble(&p) {
			return
		}
	}
	h.ipDeliver(&p)
}

// ipCheck is the validation of RFC 1122 3.2.1 and RFC 1812 5.3.7 beyond the header's own.
func (h *Host) ipCheck(ip *proto.IPv4, b []byte, eth *proto.Ethernet) Drop {
	if badUnicast(ip.Src) || h.isLocal(ip.Src) || h.subnetBroadcast(ip.Src) {
		return IPMartianSource
	}
	if ip.Dst.IsLoopback() || ip.Dst.IsZeroNet() {
		return IPMartianDest
	}
	if !h.isLocal(ip.Dst) {
		if ip.Proto == proto.ProtoICMP && (ip.Dst.IsMulticast() || ip.Dst.IsBroadcast() || h.subnetBroadcast(ip.Dst)) {
			return ICMPBroadcast
		}
		return IPNotOurs
	}
	if eth.Dst.IsMulticast() {
		return IPLinkBroadcast
	}
	if proto.SourceRouted(b[20:ip.HeaderLen]) {
		return IPSourceRoute
	}
	return 0
}

// ipDeliver is ip_local_deliver_finish.
func (h *Host) ipDeliver(p *packet) {
	switch p.ip.Proto {
	case proto.ProtoICMP:
		h.count(RxICMP)
		h.icmpInput(p)
	case proto.ProtoUDP:
		h.count(RxUDP)
		h.udpInput(p)
	case proto.ProtoTCP:
		h.count(RxTCP)
		h.tcpInput(p)
	default:
		h.icmpError(p, proto.ICMPUnreachable, proto.UnreachProtocol)
		h.drop(p, IPProtocol)
	}
}

// sum adds up the checksum of a packet's payload.
func (h *Host) sum(p *packet, acc uint64) uint64 {
	acc = proto.Sum(h.pool.Data(p.f), acc)
	if b := h.pool.Buf(p.f); b.Next != umem.None {
		acc = h.sumRest(b.Next, int(b.Len), acc)
	}
	return acc
}

// checkL4 verifies the checksum of a UDP or TCP packet, whose header holds field.
func (h *Host) checkL4(p *packet, field uint16) bool {
	if p.hops > 0 {
		return true
	}
	pseudo := proto.PseudoSum(p.ip.Src, p.ip.Dst, p.ip.Proto, p.n)
	// A sender on the other end of a veth leaves the checksum to a device that never sees the packet: the field holds
	// the sum of the pseudo-header alone (CHECKSUM_PARTIAL, include/linux/skbuff.h). Looked at first, it saves the sum of all.
	if h.cfg.AcceptPartial && field == proto.Fold(pseudo) {
		h.count(RxPartialSum)
		return true
	}
	return proto.Fold(h.sum(p, pseudo)) == 0xffff
}
