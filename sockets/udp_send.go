package sockets

import (
	"net/netip"

	"xdpd/proto"
	"xdpd/umem"
)

// UDPSend sends one datagram to dst, or with the zero dst to the connected peer. Errors: EAGAIN when there are no
// frames to send with (the socket reports Out when there are), EMSGSIZE, EDESTADDRREQ, ENETUNREACH, EINVAL, EBADF, and,
// once, what an ICMP error brought to a connected socket.
func (h *Host) UDPSend(s Handle, payload []byte, dst netip.AddrPort, now int64) Errno {
	h.now = now
	u, k, hop, err := h.udpRoute(s, len(payload), dst)
	if err != 0 {
		return err
	}
	h.accounts.payer = u.account
	err = h.udpOutput(payload, k, hop)
	h.accounts.payer = 0
	switch {
	case err == EAGAIN:
		h.udpWait(s, u, len(payload))
	case err == 0 && u.tellSent:
		h.notify(s, happenedOut)
	}
	return err
}

// udpRoute finds from whom to whom a datagram of n bytes goes, and by which neighbour. Errors as UDPSend, without EAGAIN.
func (h *Host) udpRoute(s Handle, n int, dst netip.AddrPort) (u *udpSock, k flowKey, hop proto.Addr, err Errno) {
	u = h.udp.get(s)
	switch {
	case u == nil:
		return nil, k, 0, EBADF
	case u.err != 0:
		return nil, k, 0, u.takeErr()
	case n > MaxUDP:
		return nil, k, 0, EMSGSIZE
	}
	k = u.key
	if dst.IsValid() {
		a, ok := proto.AddrFrom(dst.Addr())
		if !ok || dst.Port() == 0 {
			return nil, k, 0, EINVAL
		}
		k.Remote, k.RPort = a, dst.Port()
	} else if !u.connected {
		return nil, k, 0, EDESTADDRREQ
	}
	hop, src, ok := h.route(k.Remote)
	if !ok {
		return nil, k, 0, ENETUNREACH
	}
	if k.Local == 0 {
		k.Local = src
	}
	return u, k, hop, 0
}

// udpWait notes that the sender of a datagram of n bytes must hear of frames.
func (h *Host) udpWait(s Handle, u *udpSock, n int) {
	u.need = h.messageFrames(n + 8)
	if !u.blocked {
		u.blocked = true
		if !h.accountAwait(s, u.account, u.need) {
			h.wantTX(s)
		}
	}
}

func (h *Host) udpOutput(payload []byte, k flowKey, hop proto.Addr) Errno {
	if n := len(payload) + 8; n+20 > h.cfg.MTU {
		pseudo := proto.PseudoSum(k.Local, k.Remote, proto.ProtoUDP, n)
		g := gather{b: payload, chain: umem.None}
		proto.PutUDP(g.head[:], k.LPort, k.RPort, n, 0)
		sum := udpSum(proto.Fold(proto.Sum(payload, proto.Sum(g.head[:], pseudo))))
		proto.PutUDP(g.head[:], k.LPort, k.RPort, n, sum)
		err := h.sendMessage(&g, n, k.Local, k.Remote, hop, proto.ProtoUDP)
		if err == 0 {
			h.count(TxUDP)
		}
		return err
	}
	if h.txRoom() == 0 {
		return EAGAIN
	}
	if len(payload) > h.room-8 {
		return h.udpOutputChain(payload, k, hop)
	}
	f := h.allocTX()
	if f == umem.None {
		return EAGAIN
	}
	h.counters.Copied[CopySend] += uint64(len(payload))
	b := h.pool.Buf(f)
	b.Off += 8
	b.Len = uint16(copy(h.pool.Chunk(f)[b.Off:], payload))
	h.udpFinish(f, k, hop)
	return 0
}

// udpOutputChain sends a datagram that fits into a packet, and not into a frame.
func (h *Host) udpOutputChain(payload []byte, k flowKey, hop proto.Addr) Errno {
	if h.txFree() < h.messageFrames(len(payload)+8) {
		return EAGAIN
	}
	h.counters.Copied[CopySend] += uint64(len(payload))
	f := h.allocPacket(len(payload))
	for c := f; c != umem.None; c = h.pool.Buf(c).Next {
		payload = payload[copy(h.pool.Data(c), payload):]
	}
	h.udpFinish(f, k, hop)
	return 0
}

// udpFinish writes the headers in front of the payload in f, and in what it is chained with, and sends it.
func (h *Host) udpFinish(f umem.Frame, k flowKey, hop proto.Addr) {
	b := h.pool.Buf(f)
	b.Off -= 8
	b.Len += 8
	msg := h.pool.Data(f)
	n := len(msg)
	if b.Flags&bufMore != 0 {
		n += h.chainLen(b.Next)
	}
	pseudo := proto.PseudoSum(k.Local, k.Remote, proto.ProtoUDP, n)
	if h.leavesSum(n) {
		proto.PutUDP(msg, k.LPort, k.RPort, n, h.partialSum(b, pseudo))
	} else {
		sum := proto.Sum(msg[8:], uint64(k.LPort)+uint64(k.RPort)+uint64(n)+pseudo)
		if n > len(msg) {
			sum = h.sumRest(b.Next, len(msg), sum)
		}
		proto.PutUDP(msg, k.LPort, k.RPort, n, udpSum(proto.Fold(sum)))
	}
	h.count(TxUDP)
	if !h.sendIP(f, k.Local, k.Remote, hop, proto.ProtoUDP) {
		h.unsend(f) // counted where it was refused; to the sender it is a datagram lost on the way
	}
}

// udpSum is the checksum for a folded sum: 0 means "none" on the wire, so it is sent as its other representation
// (RFC 768).
func udpSum(folded uint16) uint16 {
	if s := ^folded; s != 0 {
		return s
	}
	return 0xffff
}
