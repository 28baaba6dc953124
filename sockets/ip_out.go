package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

const defaultTTL = 64

// ident gives the IP identification for a packet to dst: counters per group of destinations with a random stride, so
// that they neither repeat soon (RFC 6864) nor tell a stranger our rate.
func (h *Host) ident(dst proto.Addr) uint16 {
	c := &h.ipID[h.sec.addr(dst)&0xff]
	*c += uint16(1 + h.sec.next()&7)
	return *c
}

// sendIP puts an IP header in front of the transport message in frame f, or with bufMore in the chain from f on (the Bufs
// say where), and sends it to hop. The message fits the MTU. false: not taken, counted, and f is still the caller's.
func (h *Host) sendIP(f umem.Frame, src, dst, hop proto.Addr, protocol uint8) bool {
	b := h.pool.Buf(f)
	off, n := int(b.Off)-20, int(b.Len)+20
	total := n
	if b.Flags&bufMore != 0 {
		total += h.chainLen(b.Next)
	}
	ip := proto.IPv4{
		Src: src, Dst: dst, ID: h.ident(dst), TTL: defaultTTL, Proto: protocol,
		HeaderLen: 20, TotalLen: uint16(total),
	}
	proto.PutIPv4(h.pool.Chunk(f)[off:], &ip)
	return h.transmit(f, off, n, hop)
}

// gather reads a message that lies in several places: a header, then bytes, then a chain of frames.
type gather struct {
	head  [8]byte
	b     []byte
	chain umem.Frame
	skip  int // bytes of the chain's first frame that were read
}

func (h *Host) gatherRead(g *gather, dst []byte) {
	for len(dst) > 0 {
		if len(g.b) > 0 {
			n := copy(dst, g.b)
			h.counters.Copied[CopySend] += uint64(n)
			dst, g.b = dst[n:], g.b[n:]
			continue
		}
		data := h.pool.Data(g.chain)[g.skip:]
		n := copy(dst, data)
		h.counters.Copied[CopyFragment] += uint64(n)
		dst = dst[n:]
		g.skip += n
		if n == len(data) {
			g.chain, g.skip = h.pool.Buf(g.chain).Next, 0
		}
	}
}

// fragments is how many packets a transport message of n bytes takes, and how much of it each but the last carries.
func (h *Host) fragments(n int) (count, per int) {
	if n <= h.cfg.MTU-20 {
		return 1, n
	}
	per = (h.cfg.MTU - 20) &^ 7
	return (n + per - 1) / per, per
}

// sendMessage sends a transport message of n bytes, g.head first, in as many fragments as the MTU asks for
// (RFC 791 3.2). EAGAIN without the frames for it, EMSGSIZE if there never will be so many.
func (h *Host) sendMessage(g *gather, n int, src, dst, hop proto.Addr, protocol uint8) Errno {
	_, per := h.fragments(n)
	need := h.messageFrames(n)
	most := min(h.txLimit, len(h.txq))
	if a := h.accounts.payer; a != 0 {
		most = min(most, h.accounts.list[a].TXLimit, h.txLimit/2)
	}
	if need > most {
		return EMSGSIZE
	}
	if h.txFree() < need {
		return EAGAIN
	}
	ip := proto.IPv4{Src: src, Dst: dst, ID: h.ident(dst), TTL: defaultTTL, Proto: protocol, HeaderLen: 20}
	for at := 0; at < n; at += per {
		k := min(per, n-at)
		f := h.allocPacket(k)
		if f == umem.None { // the ARP request for the hop took the last
			h.counters.Drops[TxNoFrame]++
			return 0
		}
		body := h.pool.Data(f)
		first := len(body)
		if at == 0 {
			copy(body, g.head[:])
			body = body[len(g.head):]
		}
		h.gatherRead(g, body)
		for c := h.pool.Buf(f).Next; c != umem.None; c = h.pool.Buf(c).Next {
			h.gatherRead(g, h.pool.Data(c))
		}
		ip.FragOff, ip.MF, ip.TotalLen = uint16(at), at+k < n, uint16(k+20)
		proto.PutIPv4(h.pool.Chunk(f)[umem.Headroom-20:], &ip)
		if !h.transmit(f, umem.Headroom-20, first+20, hop) {
			h.unsend(f)
			return 0 // as in any network, the rest would be of no use to the receiver
		}
		if n > per {
			h.count(TxFragments)
		}
	}
	return 0
}
