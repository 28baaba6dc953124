package sockets

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"

	"xdpd/proto"
)

// simKey names a flow: the port of node 0 and that of node 1.
type simKey [2]uint16

// simFlow is what was seen of a flow: for each node the streams that it began with a SYN, the newest last.
type simFlow struct {
	key     simKey
	streams [2][]*simStream
	lost    int    // segments
	rsts    [2]int // that reached a node
	seen    [2]simSeen
}

// simSeen is what reached one node of a flow, as far as its Host had to take it.
type simSeen struct {
	heard, moved int64 // when anything came; when it acknowledged something, if not before
	lost         int   // simFlow.lost at that time
}

// simStream is one direction of one connection as an observer beside both Hosts sees it. Numbers count from the SYN's.
type simStream struct {
	iss      uint32
	syn      proto.TCPOptions
	synWnd   int64
	ecn      bool      // the SYN or SYN-ACK agreed
	answer   bool      // it was a SYN-ACK
	max      int64     // end of what was sent
	fin      int64     // where; -1: not yet
	got      simRanges // what reached the receiver's Host
	acked    int64     // by the receiver, as it sent
	edge     int64     // right edge of the window, as the receiver sent it
	edgeSeen int64     // right edge as it reached the sender
	ackSeen  int64     // the acknowledgement that reached the sender
	tsVal    uint32    // the last that was sent
	tsFirst  uint32
	tsSeen   uint32 // the newest that reached the receiver
	hasTS    bool
}

const simSpan = 1 << 26 // no stream is so long

// stream finds the stream of a number: the one that began nearest below it.
func (f *simFlow) stream(node int, seq uint32) (best *simStream) {
	for _, s := range f.streams[node] {
		if d := seq - s.iss; d < simSpan && (best == nil || d <= seq-best.iss) {
			best = s
		}
	}
	return best
}

// simText is what all streams are made of; each begins somewhere else.
var simText = func() []byte {
	r := rand.New(rand.NewPCG(1, 2))
	b := make([]byte, 65521)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return append(append(b, b...), b...)
}()

// bytes gives n bytes from off of what node sends on the flow.
func (k simKey) bytes(node int, off int64, n int) []byte {
	i := (off + (int64(k[0])*65537+int64(k[1]))*7919 + int64(node)*30011) % 65521
	return simText[i : i+int64(n)]
}

func (w *simWorld) flow(k simKey) *simFlow {
	f := w.flows[k]
	if f == nil {
		f = &simFlow{key: k}
		w.flows[k] = f
	}
	return f
}

// simSegment is a TCP segment taken apart.
type simSegment struct {
	ip   proto.IPv4
	tcp  proto.TCP
	opt  proto.TCPOptions
	data []byte
	key  simKey
}

func (s *simSegment) String() string {
	return fmt.Sprintf("%v %v %d bytes, tos %d, df %v", s.tcp, s.opt, len(s.data), s.ip.TOS, s.ip.DF)
}

// length is SEG.LEN.
func (s *simSegment) length() int64 {
	return int64(len(s.data)) + int64(s.tcp.Flags>>1&1) + int64(s.tcp.Flags&1)
}

// simParse takes a frame of node's apart; false if it is no TCP segment.
func simParse(b []byte, node int, s *simSegment) bool {
	if len(b) < 54 || b[12] != 8 || b[13] != 0 || b[23] != proto.ProtoTCP {
		return false
	}
	s.ip, _ = proto.ParseIPv4(b[14:])
	seg := b[14+int(s.ip.HeaderLen) : 14+int(s.ip.TotalLen)]
	s.tcp, _ = proto.ParseTCP(seg)
	proto.ParseTCPOptions(seg[proto.TCPHeaderLen:s.tcp.DataOff], &s.opt)
	s.data = seg[s.tcp.DataOff:]
	s.key[node], s.key[1-node] = s.tcp.SrcPort, s.tcp.DstPort
	return true
}

// record finds what the Host has of a flow.
func (n *simNode) record(k simKey) (kind, i uint32) {
	return n.h.tcp.flows.get(flowKey{Local: n.ip, Remote: n.peer().ip, LPort: k[n.id], RPort: k[1-n.id]})
}

func (n *simNode) tcbOf(k simKey) *tcb {
	if kind, i := n.record(k); kind == demuxTCB {
		return n.h.tcp.at(i)
	}
	return nil
}

// lose notes that a frame does not arrive, as an excuse for its connection.
func (w *simWorld) lose(b []byte) {
	w.totals.Lost++
	if len(b) < 38 || b[13] != 0 || b[23] != proto.ProtoTCP {
		w.lostOther++
		return
	}
	src, dst := binary.BigEndian.Uint16(b[34:]), binary.BigEndian.Uint16(b[36:])
	if proto.GetAddr(b[26:]) == w.node[0].ip {
		w.flow(simKey{src, dst}).lost++
	} else {
		w.flow(simKey{dst, src}).lost++
	}
}

// egress looks at a frame that a Host sends.
func (w *simWorld) egress(n *simNode, b []byte) {
	w.digest = crc32.Update(w.digest, crc32.IEEETable, b)
	bad := func(format string, args ...any) {
		w.fail("node %d sends %s: % x", n.id, fmt.Sprintf(format, args...), b[:min(len(b), 90)])
	}
	eth, fault := proto.ParseEthernet(b)
	switch {
	case fault != proto.OK:
		bad("a frame with %v", fault)
	case eth.Src != n.mac:
		bad("from %v", eth.Src)
	case eth.Type == proto.EtherARP:
		return
	case eth.Dst != n.peer().mac:
		bad("to %v", eth.Dst)
	}
	ip, fault := proto.ParseIPv4(b[14:])
	switch {
	case fault != proto.OK:
		bad("a packet with %v", fault)
	case int(ip.TotalLen) != len(b)-14 || int(ip.TotalLen) > n.h.cfg.MTU:
		bad("%d bytes, of which the packet has %d; the MTU is %d", len(b)-14, ip.TotalLen, n.h.cfg.MTU)
	case ip.Src != n.ip || ip.Dst != n.peer().ip && ip.Dst != simRouter:
		bad("from %v to %v", ip.Src, ip.Dst)
	case ip.Fragment():
		bad("a fragment")
	case ip.Proto != proto.ProtoTCP:
		if ip.Proto != proto.ProtoICMP || proto.Checksum(b[34:]) != 0 {
			bad("protocol %d", ip.Proto)
		}
		return
	}
	hdr, fault := proto.ParseTCP(b[34:])
	if fault != proto.OK ||
		proto.VerifyL4(b[34:], hdr.Checksum, proto.PseudoSum(ip.Src, ip.Dst, proto.ProtoTCP, len(b)-34)) != proto.L4Good {
		bad("a segment with %v, or its checksum is wrong", fault)
	}
	var s simSegment
	simParse(b, n.id, &s)
	w.totals.Segments++
	if w.trace {
		fmt.Printf("%12.6f  %d> %v\n", float64(w.now-w.start)/1e9, n.id, &s)
	}
	if !w.wrong {
		w.segment(n, &s, func(format string, args ...any) {
			w.fail("node %d: %v: %s", n.id, &s, fmt.Sprintf(format, args...))
		})
	}
}

// segment judges what a Host says about a connection.
func (w *simWorld) segment(n *simNode, s *simSegment, bad func(string, ...any)) {
	f := w.flow(s.key)
	flags := s.tcp.Flags
	switch {
	case s.tcp.Urgent != 0 || flags&proto.URG != 0:
		bad("urgent")
	case flags&proto.RST != 0:
		if len(s.data) > 0 || flags&(proto.SYN|proto.FIN) != 0 {
			bad("a RST with more")
		}
		w.reset(n, f, s, bad)
		return
	case flags&proto.SYN != 0:
		w.synSegment(n, f, s, bad)
		return
	case flags&proto.ACK == 0:
		bad("no ACK")
	}
	mine, their := f.stream(n.id, s.tcp.Seq), f.stream(1-n.id, s.tcp.Ack)
	if c := n.tcbOf(s.key); mine == nil && c != nil && c.state == tcpSynRcvd && s.tcp.Seq == c.sndNxt &&
		n.h.counters.Drops[NeighFailed] > 0 {
		return // its SYN got no further than the queue of a neighbour that did not answer
	}
	if mine == nil || their == nil {
		bad("numbers of no connection")
	}
	ts := mine.syn.HasTS && their.syn.HasTS
	switch {
	case s.opt.HasTS != ts:
		bad("timestamps: agreed %v", ts)
	case s.opt.MSS != 0 || s.opt.HasWScale || s.opt.SACKPermitted:
		bad("options of a SYN")
	case !(mine.ecn && their.ecn) && (flags&(proto.ECE|proto.CWR) != 0 || s.ip.TOS&3 != 0):
		bad("ECN, which was not agreed on")
	case len(s.data) == 0 && s.ip.TOS&3 != 0:
		bad("ECT without data (RFC 3168 6.1.4)")
	}
	mine.sends(w, n, f, s, bad)
	their.answers(w, n, mine, s, bad)
	if ts {
		mine.stamp(their, s, bad)
	}
}

func (w *simWorld) synSegment(n *simNode, f *simFlow, s *simSegment, bad func(string, ...any)) {
	answer := s.tcp.Flags&proto.ACK != 0
	switch {
	case s.tcp.Flags&proto.FIN != 0 || len(s.data) > 0:
		bad("a SYN with more")
	case int(s.opt.MSS) > n.h.cfg.MTU-40 || s.opt.MSS == 0:
		bad("MSS with an MTU of %d", n.h.cfg.MTU)
	case s.ip.TOS&3 != 0:
		bad("ECT on a SYN")
	}
	var mine *simStream
	for _, m := range f.streams[n.id] {
		if m.iss == s.tcp.Seq {
			mine = m
		}
	}
	if mine == nil {
		mine = &simStream{iss: s.tcp.Seq, fin: -1, max: 1, tsVal: s.opt.TSVal, tsFirst: s.opt.TSVal}
		f.streams[n.id] = append(f.streams[n.id], mine)
	}
	mine.syn, mine.answer = s.opt, answer
	mine.ecn = mine.ecn || s.tcp.Flags&proto.ECE != 0 // a second SYN asks for none, and may come second
	mine.synWnd = int64(s.tcp.Window)
	if !answer {
		return
	}
	their := f.stream(1-n.id, s.tcp.Ack-1)
	if their == nil || their.iss != s.tcp.Ack-1 || len(their.got) == 0 {
		bad("an answer to no SYN")
	}
	if s.opt.HasTS && !their.syn.HasTS || s.opt.HasWScale && !their.syn.HasWScale || s.opt.SACKPermitted && !their.syn.SACKPermitted {
		bad("options that the SYN %v does not offer", their.syn)
	}
	their.edge = max(their.edge, 1+mine.synWnd)
	their.acked = max(their.acked, 1)
}

// sends judges the sequence numbers and the data that a Host sends.
func (m *simStream) sends(w *simWorld, n *simNode, f *simFlow, s *simSegment, bad func(string, ...any)) {
	at := int64(s.tcp.Seq - m.iss)
	end := at + int64(len(s.data))
	fin := s.tcp.Flags&proto.FIN != 0
	if len(s.data) > 0 {
		switch {
		case at < 1 || !bytes.Equal(s.data, f.key.bytes(n.id, at-1, len(s.data))):
			bad("data at %d that nobody wrote", at)
		case end > m.edgeSeen:
			bad("data up to %d; the window never went beyond %d", end, m.edgeSeen)
		case s.ip.TOS&3 != 0 && end <= m.max:
			bad("ECT on what is sent again (RFC 3168 6.1.5)")
		}
		if their := f.stream(1-n.id, s.tcp.Ack); len(s.data)+int(s.tcp.DataOff)-20 > max(64, int(their.syn.MSS)) {
			bad("longer than the MSS of %d", their.syn.MSS)
		}
	}
	switch {
	case m.fin >= 0 && (len(s.data) > 0 && end > m.fin || fin && end != m.fin):
		bad("data or a FIN up to %d behind the FIN at %d", end, m.fin)
	case at > m.max && w.p.share && !n.leftOut(s): // without share, what waits for a neighbour may be dropped
		bad("a hole: %d was the end so far, this begins at %d", m.max, at)
	case fin:
		m.fin = end
		end++
	}
	m.max = max(m.max, end)
}

// leftOut reports the one hole there may be: for want of frames only a part of what SND.NXT counts was sent (bufPart).
func (n *simNode) leftOut(s *simSegment) bool {
	c := n.tcbOf(s.key)
	if c == nil || s.length() > 0 {
		return false
	}
	x := n.h.activeOf(c)
	return x != nil && s.tcp.Seq == c.sndNxt && seqLT(c.sndUna, x.partEnd)
}

// answers judges the acknowledgement, the window and the SACK blocks that a Host sends about this stream; mine is its own.
func (t *simStream) answers(w *simWorld, n *simNode, mine *simStream, s *simSegment, bad func(string, ...any)) {
	acked := int64(s.tcp.Ack - t.iss)
	scale := 0
	if mine.syn.HasWScale && t.syn.HasWScale {
		scale = int(mine.syn.WScale)
	}
	edge := acked + int64(s.tcp.Window)<<scale
	switch {
	case acked > t.got.first():
		bad("acknowledges up to %d, of which only %d came", acked, t.got.first())
	case acked < t.acked:
		bad("acknowledges %d after %d", acked, t.acked)
	}
	if back := t.edge - edge; back > 0 && !w.mayShrink(n, s, back, int64(1)<<scale) {
		bad("the right edge moves back from %d to %d", t.edge, edge)
	}
	t.acked, t.edge = acked, max(t.edge, edge)
	if s.opt.NSACK > 0 && !(mine.syn.SACKPermitted && t.syn.SACKPermitted) {
		bad("SACK, which was not agreed on")
	}
	for i, b := range s.opt.SACK[:s.opt.NSACK] {
		from, to := int64(b[0]-t.iss), int64(b[1]-t.iss)
		switch {
		case !t.got.has(from, to) || from >= to:
			bad("SACK block %d to %d; what came is %v", from, to, t.got)
		case i > 0 && from < acked:
			bad("SACK block %d is below the acknowledgement %d", i, acked)
		}
	}
}

// mayShrink is the exception that rcvAdvertise documents: at twice its limit what scaling rounds may take back.
func (w *simWorld) mayShrink(n *simNode, s *simSegment, back, unit int64) bool {
	if back >= unit {
		return false
	}
	c := n.tcbOf(s.key)
	return c == nil || int64(c.rcvBytes)+int64(c.rcvAdv-c.rcvNxt)+unit > 2*int64(c.rcvBuf)
}

// stamp judges timestamps (RFC 7323).
func (m *simStream) stamp(their *simStream, s *simSegment, bad func(string, ...any)) {
	switch {
	case seqLT(s.opt.TSVal, m.tsVal):
		bad("the timestamp goes back from %d", m.tsVal)
	case seqLT(s.opt.TSEcr, their.tsFirst) || seqLT(their.tsSeen, s.opt.TSEcr):
		bad("echoes a timestamp; those that came are %d to %d", their.tsFirst, their.tsSeen)
	}
	m.tsVal = s.opt.TSVal
}

// deliver notes what a segment brings to Host n.
func (w *simWorld) deliver(n *simNode, b []byte) {
	var s simSegment
	if b == nil || w.wrong || !simParse(b, 1-n.id, &s) {
		return
	}
	if w.trace {
		fmt.Printf("%12.6f  >%d %v\n", float64(w.now-w.start)/1e9, n.id, &s)
	}
	f := w.flow(s.key)
	if s.tcp.Flags&proto.RST != 0 {
		f.rsts[n.id]++
		return
	}
	m := f.stream(1-n.id, s.tcp.Seq)
	if m == nil {
		return
	}
	at := int64(s.tcp.Seq - m.iss)
	first := m.got.first()
	// Old segments may be refused with all that they say.
	fresh := (at+s.length() > first || s.length() == 0 && at == first) && !(m.hasTS && seqLT(s.opt.TSVal, m.tsSeen))
	kind, i := n.record(s.key)
	taken := fresh && (kind == demuxTCB || kind == demuxHalf) ||
		kind == demuxTCB && s.tcp.Flags&proto.SYN != 0 && n.h.tcp.at(i).state < tcpEstablished
	if taken {
		f.seen[n.id].heard = w.now
	}
	m.got.add(at, at+s.length())
	if s.opt.HasTS && (!m.hasTS || seqLT(m.tsSeen, s.opt.TSVal)) {
		m.hasTS, m.tsSeen = true, s.opt.TSVal
	}
	if s.tcp.Flags&proto.ACK == 0 {
		return
	}
	t := f.stream(n.id, s.tcp.Ack)
	if t == nil {
		return
	}
	scale := 0
	if s.tcp.Flags&proto.SYN == 0 && m.syn.HasWScale && t.syn.HasWScale {
		scale = int(m.syn.WScale)
	}
	if ack := int64(s.tcp.Ack - t.iss); ack > t.ackSeen {
		t.ackSeen = ack
		if taken {
			f.seen[n.id].moved, f.seen[n.id].lost = w.now, f.lost
		}
	}
	t.edgeSeen = max(t.edgeSeen, int64(s.tcp.Ack-t.iss)+int64(s.tcp.Window)<<scale, 1+m.synWnd)
}
