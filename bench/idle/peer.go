package main

import (
	"fmt"

	"xdpd/proto"
)

// The peer's hosts stand behind one gateway, firstPeer and those after it; each has portsEach connections.
const (
	ourAddr   = proto.Addr(0x0a010001) // 10.1.0.1/24
	gateway   = proto.Addr(0x0a010002)
	firstPeer = proto.Addr(0x0a020000)
	firstPort = 1024
	portsEach = 1 << 14
	ourPort   = 7
	peerMSS   = 1460
	// With a timestamp in each segment, fullSegment bytes of data fill a frame.
	fullSegment = peerMSS - 12
)

var peerMAC = proto.MAC{2, 0, 0, 0, 0, 2}

// peer is the far end of all connections. It writes frames by hand and remembers of a connection what it must to answer;
// it allocates nothing once it was made. What it sends goes through feed, a bounded number of frames a step.
type peer struct {
	ourMAC  proto.MAC
	flows   []flow
	answers []answer // to what came in
	now     func() int64
	frame   [2048]byte
	met     bool // an ARP reply came
	asked   bool // an ARP request came, for the gateway

	silent bool // does not answer a SYN-ACK: connections stay half-open
	mute   bool // does not answer at all

	synAcks, resets, closed, replies, echoed, probes int
	fault                                            error // the first thing that came and should not have
}

type flow struct {
	snd, rcv uint32 // next sequence number to send, and expected
	ts       uint32 // last timestamp of ours that came
	want     uint32 // bytes of echo that are missing
	fin      bool   // FIN was sent
}

type answer struct {
	conn  uint32
	flags uint8
}

func newPeer(conns int, ourMAC proto.MAC, now func() int64) *peer {
	p := &peer{ourMAC: ourMAC, flows: make([]flow, conns), answers: make([]answer, 0, 1<<13), now: now}
	for i := range p.flows {
		p.flows[i].snd = uint32(i)*2654435761 + 1 // touched: no page comes into being while we measure
	}
	return p
}

func peerAddr(conn int) (proto.Addr, uint16) {
	return firstPeer + proto.Addr(conn/portsEach), uint16(firstPort + conn%portsEach)
}

// segment writes a frame of a connection with n bytes of data; it is valid until the next one.
func (p *peer) segment(conn int, flags uint8, n int) []byte {
	f := &p.flows[conn]
	src, port := peerAddr(conn)
	opt := proto.TCPOptions{HasTS: true, TSVal: uint32(p.now() / 1e6), TSEcr: f.ts}
	h := proto.TCP{SrcPort: port, DstPort: ourPort, Seq: f.snd, Ack: f.rcv, Flags: flags, Window: 0xffff}
	if flags&proto.SYN != 0 {
		opt.MSS, opt.HasWScale, opt.WScale, opt.SACKPermitted = peerMSS, true, 7, true
		h.Ack = 0
	}
	h.DataOff = uint8(proto.TCPHeaderLen + opt.Len())
	length := int(h.DataOff) + n
	at := proto.PutEthernet(p.frame[:], p.ourMAC, peerMAC, proto.EtherIPv4)
	at += proto.PutIPv4(p.frame[at:], &proto.IPv4{
		Src: src, Dst: ourAddr, DF: true, TTL: 64, Proto: proto.ProtoTCP, TotalLen: uint16(proto.IPv4HeaderLen + length),
	})
	tcp := p.frame[at : at+length]
	proto.PutTCPOptions(tcp[proto.TCPHeaderLen:], &opt)
	for i := range n {
		tcp[int(h.DataOff)+i] = pattern(f.snd + uint32(i))
	}
	proto.PutTCP(tcp, &h)
	h.Checksum = ^proto.Fold(proto.Sum(tcp, proto.PseudoSum(src, ourAddr, proto.ProtoTCP, length)))
	proto.PutTCP(tcp, &h)
	f.snd += uint32(n)
	if flags&(proto.SYN|proto.FIN) != 0 {
		f.snd++
		f.fin = flags&proto.FIN != 0
	}
	return p.frame[:at+length]
}

// pattern is the byte at a sequence number.
func pattern(seq uint32) byte { return byte(seq ^ seq>>8) }

// take is what the engine sent.
func (p *peer) take(frame []byte) {
	eth, fault := proto.ParseEthernet(frame)
	if p.mute {
		return
	}
	if fault == proto.OK && eth.Type == proto.EtherARP {
		p.arpIn(frame[eth.Len:])
		return
	}
	if fault != proto.OK || eth.Dst != peerMAC || eth.Type != proto.EtherIPv4 {
		return // on a veth pair the kernel says a word now and then
	}
	b := frame[eth.Len:]
	ip, fault := proto.ParseIPv4(b)
	if fault != proto.OK || ip.Proto != proto.ProtoTCP {
		p.failf("a frame that is not TCP: %v", ip)
		return
	}
	b = b[ip.HeaderLen:ip.TotalLen]
	tcp, fault := proto.ParseTCP(b)
	if fault != proto.OK {
		p.failf("a bad TCP header: %v", fault)
		return
	}
	conn := int(ip.Dst-firstPeer)*portsEach + int(tcp.DstPort) - firstPort
	if conn < 0 || conn >= len(p.flows) {
		p.failf("a segment for nobody: %v %v", ip, tcp)
		return
	}
	var opt proto.TCPOptions
	proto.ParseTCPOptions(b[proto.TCPHeaderLen:tcp.DataOff], &opt)
	if opt.HasTS {
		p.flows[conn].ts = opt.TSVal
	}
	p.segmentIn(conn, &tcp, b[tcp.DataOff:])
}

func (p *peer) arpIn(b []byte) {
	a, fault := proto.ParseARP(b)
	switch {
	case fault != proto.OK:
		p.failf("a bad ARP packet: %v", fault)
	case a.Op == proto.ARPReply:
		p.met = true
	case a.TPA == gateway:
		p.asked = true
	}
}

// arp is the gateway's request for our address, or its reply to ours; the frame is valid until the next one.
func (p *peer) arp(op uint16) []byte {
	n := proto.PutEthernet(p.frame[:], p.ourMAC, peerMAC, proto.EtherARP)
	n += proto.PutARP(p.frame[n:], &proto.ARP{Op: op, SHA: peerMAC, SPA: gateway, THA: p.ourMAC, TPA: ourAddr})
	return p.frame[:n]
}

func (p *peer) segmentIn(conn int, tcp *proto.TCP, data []byte) {
	f := &p.flows[conn]
	switch {
	case tcp.Flags&proto.RST != 0:
		p.resets++
		return
	case tcp.Flags&proto.SYN != 0:
		if f.rcv != tcp.Seq+1 { // else it is sent again
			p.synAcks++
		}
		f.rcv = tcp.Seq + 1
		if !p.silent {
			p.answer(conn, proto.ACK)
		}
		return
	case tcp.Seq != f.rcv && len(data) == 0 && tcp.Flags&proto.FIN == 0:
		p.probes++ // a keep-alive probe is an old sequence number
		p.answer(conn, proto.ACK)
		return
	case tcp.Seq != f.rcv:
		p.failf("%v of connection %d; the next byte is %d", tcp, conn, f.rcv)
		return
	}
	for i, b := range data {
		// What comes back are the bytes that were sent last.
		if want := pattern(f.snd - f.want + uint32(i)); b != want {
			p.failf("connection %d: byte %d of an echo is %#x, want %#x", conn, i, b, want)
			return
		}
	}
	f.rcv += uint32(len(data))
	if len(data) > 0 {
		p.echoed += len(data)
		if f.want -= uint32(len(data)); f.want == 0 {
			p.replies++
		}
	}
	switch {
	case tcp.Flags&proto.FIN != 0:
		f.rcv++
		p.closed++
		if f.fin {
			p.answer(conn, proto.ACK)
		} else {
			p.answer(conn, proto.FIN|proto.ACK)
		}
	case len(data) > 0:
		p.answer(conn, proto.ACK)
	}
}

func (p *peer) answer(conn int, flags uint8) {
	p.answers = append(p.answers, answer{uint32(conn), flags})
}

func (p *peer) failf(format string, args ...any) {
	if p.fault == nil {
		p.fault = fmt.Errorf("the peer got "+format, args...)
	}
}

// feed sends at most limit frames: what is to be answered first, then what next gives, until it gives nil.
func (p *peer) feed(limit int, send func([]byte) error, next func() []byte) error {
	if p.asked {
		p.asked = false
		if err := send(p.arp(proto.ARPReply)); err != nil {
			return err
		}
	}
	n := min(limit, len(p.answers))
	for _, a := range p.answers[:n] {
		if err := send(p.segment(int(a.conn), a.flags, 0)); err != nil {
			return err
		}
	}
	p.answers = p.answers[:copy(p.answers, p.answers[n:])]
	for ; n < limit && next != nil; n++ {
		frame := next()
		if frame == nil {
			break
		}
		if err := send(frame); err != nil {
			return err
		}
	}
	return p.fault
}
