package sockets

import (
	"encoding/binary"

	"xdpd/proto"
	"xdpd/umem"
)

// icmpLimit bounds the ICMP errors sent: a bucket for each group of peers (one a second, six at once, as Linux's
// icmp_ratelimit) and one for all (icmp_msgs_per_sec 1000, burst 50). The size of a refill is random, so that the
// common bucket cannot be used to count what others were sent (CVE-2020-25705).
type icmpLimit struct {
	all   bucket
	peers [256]bucket
}

type bucket struct {
	tokens int32
	at     int64
}

func (l *icmpLimit) init(now int64) {
	l.all = bucket{50, now}
	for i := range l.peers {
		l.peers[i] = bucket{6, now}
	}
}

// take refills the bucket by one token every perNS up to burst, and takes one.
func (b *bucket) take(now, perNS int64, burst int32) bool {
	if n := (now - b.at) / perNS; n > 0 {
		b.tokens = int32(min(int64(burst), int64(b.tokens)+n))
		b.at += n * perNS
	}
	if b.tokens <= 0 {
		return false
	}
	b.tokens--
	return true
}

const icmpQuote = 576 - 20 - 8 // bytes of the offending packet that an error carries (RFC 1812 4.3.2.3)

// icmpError tells the sender of p what went wrong. RFC 1122 3.2.2: never about an ICMP error, a broadcast, a fragment
// other than the first, or to a source that is not one host; those were dropped before or are seen here.
func (h *Host) icmpError(p *packet, typ, code uint8) {
	if p.bcast || p.ip.Proto == proto.ProtoICMP && !h.isEcho(p) {
		return
	}
	hop, _, ok := h.route(p.ip.Src)
	if !ok {
		h.counters.Drops[TxNoRoute]++
		return
	}
	peer := &h.icmp.peers[h.sec.addr(p.ip.Src)&0xff]
	if !peer.take(h.now, 1e9, 6) || !h.icmp.all.take(h.now, 1e6, 50-int32(h.sec.next()&3)) {
		h.counters.Drops[ICMPRateLimit]++
		return
	}
	f := h.allocTX()
	if f == umem.None {
		h.counters.Drops[TxNoFrame]++
		return
	}
	from := h.pool.Buf(p.f)
	quote := h.pool.Chunk(p.f)[p.ipOff : from.Off+from.Len]
	msg := h.pool.Chunk(f)[umem.Headroom:]
	n := proto.PutICMP(msg, typ, code, 0)
	n += copy(msg[n:], quote[:min(len(quote), icmpQuote, h.cfg.MTU-28)])
	h.counters.Copied[CopyQuote] += uint64(n - proto.ICMPHeaderLen)
	proto.SetICMPChecksum(msg[:n])
	h.pool.Buf(f).Len = uint16(n)
	h.count(TxICMP)
	if !h.sendIP(f, p.ip.Dst, p.ip.Src, hop, proto.ProtoICMP) {
		h.freeTX(f, umem.Held)
	}
}

// isEcho reports whether an ICMP packet is a query, about which errors may be sent.
func (h *Host) isEcho(p *packet) bool {
	data := h.pool.Data(p.f)
	return len(data) > 0 && (data[0] == proto.ICMPEcho || data[0] == proto.ICMPEchoReply)
}

func (h *Host) icmpInput(p *packet) {
	data := h.pool.Data(p.f)
	if len(data) < 8 {
		h.drop(p, Drop(proto.ICMPShort))
		return
	}
	if proto.Fold(h.sum(p, 0)) != 0xffff {
		h.drop(p, Drop(proto.ICMPChecksum))
		return
	}
	switch data[0] {
	case proto.ICMPEcho:
		h.icmpEcho(p)
	case proto.ICMPUnreachable, proto.ICMPTimeExceeded, proto.ICMPParameter:
		q, ok := h.quoted(data[8:])
		switch {
		case ok && h.socketError(&q, icmpErrno(data[0], data[1]), int(binary.BigEndian.Uint16(data[6:]))):
			h.discard(p)
		case ok && p.hops == 0 && h.quotePassOver(&q, p):
		default:
			h.drop(p, ICMPIgnored)
		}
	default:
		h.drop(p, ICMPIgnored)
	}
}

// icmpErrno is what an ICMP error means to a socket (icmp_err_convert, net/ipv4/icmp.c).
func icmpErrno(typ, code uint8) Errno {
	switch {
	case typ == proto.ICMPParameter:
		return EPROTO
	case typ == proto.ICMPTimeExceeded:
		return EHOSTUNREACH
	case code == proto.UnreachPort:
		return ECONNREFUSED
	case code == proto.UnreachProtocol:
		return ENOPROTOOPT
	case code == proto.UnreachFragNeeded:
		return EMSGSIZE
	case code == proto.UnreachNet || code == 6 || code == 9 || code == 11:
		return ENETUNREACH
	}
	return EHOSTUNREACH
}

// icmpEcho answers a ping: in the frames that brought it if the answer is one packet, in new ones if it must be
// fragmented.
func (h *Host) icmpEcho(p *packet) {
	hop, _, ok := h.route(p.ip.Src)
	if !ok {
		h.drop(p, TxNoRoute)
		return
	}
	data := h.pool.Data(p.f)
	data[0] = proto.ICMPEchoReply
	sum := proto.Update16(binary.BigEndian.Uint16(data[2:]), uint16(proto.ICMPEcho)<<8|uint16(data[1]), uint16(data[1]))
	if sum == 0 {
		sum = 0xffff // the same number, and right over nothing but zeros too, where Update16 is not
	}
	binary.BigEndian.PutUint16(data[2:], sum)
	if !p.held && p.n+20 <= h.cfg.MTU {
		n := h.chainFrames(p.f)
		if h.txUsed+n > h.txLimit {
			h.drop(p, TxNoFrame)
			return
		}
		h.txUsed += n
		for f := p.f; f != umem.None; {
			b := h.pool.Buf(f)
			h.pool.Move(f, umem.RX, umem.Held)
			if f = b.Next; f != umem.None {
				b.Flags = bufMore
			}
		}
		h.count(TxICMP)
		if !h.sendIP(p.f, p.ip.Dst, p.ip.Src, hop, proto.ProtoICMP) {
			h.unsend(p.f)
		}
		return
	}
	g := gather{chain: p.f, skip: 8}
	copy(g.head[:], data)
	if h.sendMessage(&g, p.n, p.ip.Dst, p.ip.Src, hop, proto.ProtoICMP) != 0 {
		h.drop(p, TxNoFrame)
		return
	}
	h.count(TxICMP)
	h.discard(p)
}

// quote is what an ICMP error says of the packet that it is about.
type quote struct {
	key   flowKey
	proto uint8
	seq   uint32 // TCP
	size  int    // bytes of the IP packet
}

// quoted reads the packet quoted in b: an IP header and at least 8 bytes behind it. false: it is garbage, or was none of
// ours.
func (h *Host) quoted(b []byte) (q quote, ok bool) {
	if len(b) < 28 || b[0]>>4 != 4 {
		return q, false
	}
	n := int(b[0]&0xf) * 4
	if n < 20 || len(b) < n+8 || binary.BigEndian.Uint16(b[6:])&0x1fff != 0 {
		return q, false
	}
	q = quote{
		key: flowKey{
			Local: proto.GetAddr(b[12:]), Remote: proto.GetAddr(b[16:]),
			LPort: binary.BigEndian.Uint16(b[n:]), RPort: binary.BigEndian.Uint16(b[n+2:]),
		},
		proto: b[9], seq: binary.BigEndian.Uint32(b[n+4:]), size: int(binary.BigEndian.Uint16(b[2:])),
	}
	return q, h.isLocal(q.key.Local)
}

// socketError delivers err to the socket that sent the packet quoted. false: none did. An unconnected UDP socket is not
// told, as in Linux: the error would come up in a call that concerns somebody else. mtu is the next hop's where err is
// EMSGSIZE.
func (h *Host) socketError(q *quote, err Errno, mtu int) bool {
	switch q.proto {
	case proto.ProtoUDP:
		return h.udpError(q.key, err)
	case proto.ProtoTCP:
		return h.tcpError(q.key, q.seq, err, mtu, q.size)
	}
	return false
}
