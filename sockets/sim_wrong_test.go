package sockets

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
)

// TestWrongPeer lets a Host talk to a peer that knows the protocol well and abuses it: it takes windows back, acknowledges
// what was never sent, halves of segments, and data it did not get, sends the same numbers with other bytes, SACKs
// nonsense, stamps times from nowhere, and RST, SYN, FIN and urgent data anywhere. Nothing of that may cost the Host more
// than the connection: the books balance, memory and answers are bounded, and at the end everything is free.
func TestWrongPeer(t *testing.T) {
	first, n := seeds.Range(t, simSeeds)
	var total wrongTotals
	ok := seeds.Each(t, first, n, func(seed uint64) error {
		w, err := wrongRun(seed)
		if err == nil {
			total.add(&w.totals)
		}
		return err
	})
	t.Logf("%d seeds from %d: %+v", n, first, total)
	if n >= 100 && ok && (total.Established < uint64(n) || total.Read == 0 || total.Data == 0 || total.Acks == 0) {
		t.Errorf("the peer does not get far enough to do harm")
	}
}

type wrongTotals struct{ Established, Dialed, In, Out, Data, Acks, Read, Ticks uint64 }

func (s *wrongTotals) add(o *wrongTotals) {
	s.Established += o.Established
	s.Dialed += o.Dialed
	s.In += o.In
	s.Out += o.Out
	s.Data += o.Data
	s.Acks += o.Acks
	s.Read += o.Read
	s.Ticks += o.Ticks
}

// wrongWorld is a Host, its program, and the peer.
type wrongWorld struct {
	k       *kit
	rng     *rand.Rand
	flows   []*wrongFlow
	byPort  map[[2]uint16]*wrongFlow
	lis     Handle
	socks   []wrongSock
	written uint64
	trace   bool
	busy    bool // the peer answers every segment at once, in its wrong way
	totals  wrongTotals
}

// wrongSock is a socket of the Host's program.
type wrongSock struct {
	h    Handle
	f    *wrongFlow
	base uint32 // the sequence number of its first byte
	read int64
}

// wrongFlow is what the peer knows of a connection. Numbers that end in 0 are first ones.
type wrongFlow struct {
	sport, dport uint16
	iss, seq     uint32 // ours, the peer's: next to send
	top          uint32 // the highest that was ever sent
	irs, ack     uint32 // the Host's first, and what an honest peer would acknowledge
	max          uint32 // the end of what the Host ever sent
	edge         uint32 // of the Host's window
	scale        uint8  // of the Host
	mss          uint16
	ts, sack     bool
	tsEcr        uint32
	tsVal        uint32
	wnd          uint16
	known        bool // we saw a SYN of the Host's
	habits       uint32
}

// What a flow's peer does again and again.
const (
	habitHonest = 1 << iota // acknowledges what it got, with a window
	habitSplit              // a dozen ACKs for each segment
	habitAhead              // acknowledges what is not there yet
	habitShrink             // takes the window back
	habitTiny               // a window of a few bytes
	habitSACK               // SACK blocks of nonsense
	habitECE                // congestion, always
	habitDup                // the same ACK many times
	habitDeaf               // acknowledges nothing
	habitTS                 // timestamps from nowhere
	habits      = iota
)

func wrongRun(seed uint64) (w *wrongWorld, err error) {
	rng := rand.New(rand.NewPCG(seed, 0xbad))
	w = &wrongWorld{rng: rng, byPort: map[[2]uint16]*wrongFlow{}, trace: os.Getenv("XDPD_TRACE") != "", busy: rng.IntN(4) != 0}
	steps := simBetween(rng, 20, 400)
	step := 0
	defer func() {
		if r := recover(); r != nil {
			err = simError(r, nil, fmt.Sprintf("step %d of %d: %s", step, steps, simConns(w.k)))
		}
	}()
	w.k = newKitOf(simTB{}, simBetween(rng, 64, 600), 2048, func(c *Config) {
		c.KernelNeighbours, c.MTU = true, simBetween(rng, 576, 1500)
		c.RcvBuf, c.SndBuf = simBetween(rng, 1, 100)*2048, simBetween(rng, 300, 100_000)
		c.Backlog, c.MaxConns = simBetween(rng, 1, 8), simBetween(rng, 2, 16)
		for i := range c.Seed {
			c.Seed[i] = byte(rng.Uint32())
		}
	})
	w.lis, _ = w.k.h.TCPListen(0, svc)
	for ; step < steps; step++ {
		w.step()
		w.turn()
		w.k.check()
		w.checkAmplification()
	}
	w.pass(simLog(rng, ms, 1000*second))
	for _, s := range openSockets(w.k.h) {
		w.k.h.Close(s, w.k.now)
	}
	w.k.late = false
	w.k.complete(len(w.k.device))
	w.turn()
	w.k.finish()
	return w, nil
}

func (w *wrongWorld) step() {
	switch n := w.rng.IntN(20); {
	case n == 0 || len(w.flows) == 0:
		w.open()
	case n < 9:
		w.abuse(w.flows[w.rng.IntN(len(w.flows))])
	case n < 15:
		w.program()
	case n == 15:
		w.icmp(w.flows[w.rng.IntN(len(w.flows))])
	case n == 16:
		w.k.late = w.rng.IntN(2) == 0
		w.k.complete(w.rng.IntN(len(w.k.device) + 1))
	case n == 17:
		w.pass(simLog(w.rng, ms, 200*second))
	default:
		w.pass(simLog(w.rng, 1000, 300*ms))
	}
}

// pass lets time go by with its timers.
func (w *wrongWorld) pass(ns int64) {
	for end := w.k.now + ns; ; {
		next := w.k.h.NextDeadline()
		if next > end {
			w.k.now = end
			return
		}
		w.k.now = max(w.k.now, next)
		before := w.k.h.counters.Stats[TxFrames]
		w.k.h.Tick(w.k.now)
		w.k.h.Flush(w.k.now)
		if w.k.h.counters.Stats[TxFrames] != before {
			w.totals.Ticks++
		}
		w.turn()
	}
}

// open begins a connection, from either side.
func (w *wrongWorld) open() {
	rng := w.rng
	f := &wrongFlow{sport: uint16(2000 + rng.IntN(6)), dport: svc, iss: rng.Uint32(), wnd: uint16(rng.Uint32() >> rng.IntN(17)),
		habits: 1 << rng.IntN(habits) & rng.Uint32(), tsVal: rng.Uint32()}
	if rng.IntN(3) == 0 {
		f.iss = -uint32(rng.IntN(3000))
	}
	if rng.IntN(2) == 0 {
		f.habits |= 1<<rng.IntN(habits) | habitHonest
	}
	f.seq, f.top = f.iss+1, f.iss+1
	if rng.IntN(3) == 0 {
		h, err := w.k.h.TCPDial(0, 0, peerIP, f.sport, w.k.now)
		if err != 0 {
			return
		}
		w.totals.Dialed++
		local, _ := w.k.h.TCPAddr(h)
		f.dport = local.Port()
		w.socks = append(w.socks, wrongSock{h: h, f: f})
		w.add(f)
		return
	}
	w.add(f)
	s := tcpSeg{seq: f.iss, flags: syn, wnd: f.wnd, opts: w.synOptions(f)}
	if rng.IntN(4) == 0 {
		s.flags |= proto.ECE | proto.CWR
	}
	w.send(f, s)
	w.turn()
	if f.known && rng.IntN(8) != 0 {
		w.send(f, tcpSeg{seq: f.seq, ack: f.ack, flags: ack, wnd: f.wnd})
	}
}

func (w *wrongWorld) add(f *wrongFlow) {
	w.flows = append(w.flows, f)
	w.byPort[[2]uint16{f.sport, f.dport}] = f
}

func (w *wrongWorld) synOptions(f *wrongFlow) []byte {
	rng := w.rng
	var o []byte
	if rng.IntN(8) != 0 {
		o = append(o, optMSS(uint16(rng.Uint32()>>rng.IntN(17)))...)
		if rng.IntN(2) == 0 {
			o = optMSS(1460)
		}
	}
	if rng.IntN(4) != 0 {
		o = append(o, optWScale(byte(rng.IntN(16)))...)
	}
	if f.sack = rng.IntN(4) != 0; f.sack {
		o = append(o, 1, 1, 4, 2)
	}
	if f.ts = rng.IntN(2) == 0; f.ts {
		o = append(o, optTS(f.tsVal, 0)...)
	}
	return o
}

// send sends a segment of flow f; without options it gets the timestamps that belong there.
func (w *wrongWorld) send(f *wrongFlow, s tcpSeg) {
	s.sport, s.dport = f.sport, f.dport
	if f.ts && s.opts == nil {
		s.opts = optTS(f.tsVal, f.tsEcr)
	}
	if n := 54 + len(s.opts) + len(s.data); n > 1514 {
		s.data = s.data[:len(s.data)-(n-1514)]
	}
	if end := s.seq + uint32(len(s.data)); seqLT(f.top, end) {
		f.top = end
	}
	if w.trace {
		fmt.Printf("%12.6f > %d %+v\n", float64(w.k.now)/1e9, f.sport, s)
	}
	w.totals.In++
	w.k.input(s.frame())
}

// wrongData is what peers send at seq: one of two texts, so that any byte that arrives can be told.
func wrongData(seq uint32, n, variant int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = simText[int(uint16(seq+uint32(i)))+variant*1000]
	}
	return b
}

// turn moves frames until the Host has nothing to say, and the peer answers for as long as it is in the mood.
func (w *wrongWorld) turn() {
	for round := 0; ; round++ {
		out := w.k.sent()
		for _, b := range out {
			w.receive(dissect(w.k.t, b))
		}
		if len(out) == 0 && !w.k.h.Busy() || round > 20 {
			return
		}
		if !w.k.h.Busy() && len(out) == 0 {
			return
		}
		w.k.h.TakeEvents(nil)
	}
}

func (w *wrongWorld) receive(s seen) {
	w.totals.Out++
	if s.ip.proto != proto.ProtoTCP {
		return
	}
	if w.trace {
		t := s.tcp
		fmt.Printf("%12.6f < %d seq %d ack %d flags %x wnd %d opts % x, %d bytes\n", float64(w.k.now)/1e9, t.dport, t.seq, t.ack,
			t.flags, t.wnd, t.opts, len(t.data))
	}
	f := w.byPort[[2]uint16{s.tcp.dport, s.tcp.sport}]
	t := s.tcp
	if f == nil || t.flags&rst != 0 {
		return
	}
	var o proto.TCPOptions
	proto.ParseTCPOptions(t.opts, &o)
	if o.HasTS {
		f.tsEcr = o.TSVal
	}
	if t.flags&syn != 0 {
		f.irs, f.ack, f.max, f.known, f.scale, f.mss = t.seq, t.seq+1, t.seq+1, true, o.WScale, o.MSS
		f.edge = t.ack + uint32(t.wnd)
		w.totals.Established++
		if t.flags&ack == 0 { // the Host dials
			f.ts = o.HasTS && w.rng.IntN(2) == 0
			answer := tcpSeg{seq: f.iss, ack: f.ack, flags: syn | ack, wnd: f.wnd, opts: w.synOptions(f)}
			if w.rng.IntN(8) == 0 {
				answer.flags = byte(w.rng.Uint32())
			}
			w.send(f, answer)
		}
		return
	}
	if end := t.seq + uint32(len(t.data)) + uint32(t.flags&1); seqLT(f.max, end) {
		f.max = end
	}
	if t.seq == f.ack {
		f.ack += uint32(len(t.data)) + uint32(t.flags&1)
	}
	f.edge = t.ack + uint32(t.wnd)<<f.scale
	if len(t.data) > 0 {
		w.totals.Data++
	}
	if w.busy && (len(t.data) > 0 || t.flags&fin != 0) {
		w.answer(f, len(t.data))
	}
}

// answer is what the flow's habits make of a segment with data.
func (w *wrongWorld) answer(f *wrongFlow, n int) {
	rng := w.rng
	w.totals.Acks++
	s := tcpSeg{seq: f.seq, ack: f.ack, flags: ack, wnd: f.wnd}
	switch {
	case f.habits&habitDeaf != 0:
		return
	case f.habits&habitSplit != 0 && n > 1:
		for i := range 12 {
			s.ack = f.ack - uint32(n) + uint32(n*(i+1)/12)
			w.send(f, s)
		}
		return
	case f.habits&habitAhead != 0:
		s.ack = f.max + uint32(rng.IntN(2)*rng.IntN(3000))
	}
	if f.habits&habitShrink != 0 {
		s.wnd = uint16(rng.Uint32() >> rng.IntN(17))
	}
	if f.habits&habitTiny != 0 {
		s.wnd = uint16(rng.IntN(3))
	}
	if f.habits&habitSACK != 0 {
		s.opts = w.sackOptions(f)
		s.ack -= uint32(rng.IntN(2) * n)
	}
	if f.habits&habitECE != 0 {
		s.flags |= proto.ECE
	}
	if f.habits&habitTS != 0 {
		f.tsVal = rng.Uint32()
	}
	times := 1
	if f.habits&habitDup != 0 {
		times = rng.IntN(20)
		s.ack = f.irs + 1
	}
	for range times {
		w.send(f, s)
	}
}

// sackOptions makes up to four blocks near what is in flight.
func (w *wrongWorld) sackOptions(f *wrongFlow) []byte {
	rng := w.rng
	var o []byte
	blocks := 1 + rng.IntN(4)
	if f.ts {
		o = append(o, optTS(f.tsVal, f.tsEcr)...)
		blocks = min(blocks, 3)
	}
	o = append(o, 1, 1, 5, byte(2+8*blocks))
	span := int(f.max-f.ack) + 3000
	for range blocks {
		a := f.ack - 1500 + uint32(rng.IntN(span))
		b := a + uint32(rng.IntN(3000))
		switch rng.IntN(8) {
		case 0:
			a, b = b, a
		case 1:
			a, b = rng.Uint32(), rng.Uint32()
		case 2:
			a = f.ack
		case 3:
			b = f.max
		}
		o = append(o, be32(a)...)
		o = append(o, be32(b)...)
	}
	return o
}

// abuse sends something on a flow, right or wrong.
func (w *wrongWorld) abuse(f *wrongFlow) {
	rng := w.rng
	s := tcpSeg{seq: f.seq, ack: f.ack, flags: ack, wnd: f.wnd}
	switch rng.IntN(18) {
	case 0, 1, 2, 3: // right
		s.data = wrongData(s.seq, rng.IntN(1461), 0)
		f.seq += uint32(len(s.data))
	case 4: // the same numbers with other bytes
		s.seq -= min(f.seq-f.iss-1, uint32(rng.IntN(3000)))
		s.data = wrongData(s.seq, rng.IntN(1461), 1)
	case 5, 6: // ahead, perhaps beyond the window
		s.seq += uint32(rng.IntN(5000))
		s.data = wrongData(s.seq, rng.IntN(1461), rng.IntN(2))
	case 7: // across the window's edge, or beyond
		s.seq = f.edge - uint32(rng.IntN(1500))
		s.data = wrongData(s.seq, rng.IntN(1461), rng.IntN(2))
	case 8:
		s.ack = f.max + uint32(rng.IntN(5000))
	case 9:
		s.ack = f.ack - uint32(simLog(rng, 1, 1<<31))
	case 10:
		f.wnd = uint16(rng.Uint32() >> rng.IntN(17))
		s.wnd = f.wnd
	case 11:
		s.opts = w.sackOptions(f)
	case 12:
		s.opts = optTS(rng.Uint32(), rng.Uint32())
	case 13:
		s.flags = byte(rng.Uint32())
		s.seq += uint32(rng.IntN(3) * rng.IntN(3000))
	case 14:
		s.flags |= fin
		s.seq += uint32(rng.IntN(2) * rng.IntN(3000))
		s.data = wrongData(s.seq, rng.IntN(2)*rng.IntN(1461), 0)
	case 15:
		s.flags |= []byte{rst, syn, rst | syn, syn | fin}[rng.IntN(4)]
		s.seq += uint32(rng.IntN(3)-1) * uint32(rng.IntN(3000))
	case 16:
		for range rng.IntN(100) {
			w.send(f, s)
		}
	case 17:
		for n := f.max - f.ack; n > 0 && n < 1<<20; n -= min(n, uint32(1+rng.IntN(200))) {
			s.ack = f.max - n
			w.send(f, s)
		}
		f.ack = f.max
		s.ack = f.max
	}
	if rng.IntN(16) == 0 {
		s.flags |= 0x20
	}
	w.sendUrgent(f, s)
}

// sendUrgent gives segments with URG a pointer to anywhere.
func (w *wrongWorld) sendUrgent(f *wrongFlow, s tcpSeg) {
	if s.flags&0x20 == 0 {
		w.send(f, s)
		return
	}
	s.sport, s.dport = f.sport, f.dport
	b := s.bytes(peerIP, usIP)
	binary.BigEndian.PutUint16(b[18:], uint16(w.rng.Uint32()))
	binary.BigEndian.PutUint16(b[16:], 0)
	binary.BigEndian.PutUint16(b[16:], inetSum(pseudo(peerIP, usIP, 6, len(b)), b))
	if end := s.seq + uint32(len(s.data)); seqLT(f.top, end) {
		f.top = end
	}
	w.totals.In++
	w.k.input(ipPacket{proto: 6, body: b}.frame())
}

// icmp quotes a segment that the Host may have sent.
func (w *wrongWorld) icmp(f *wrongFlow) {
	rng := w.rng
	seq := f.ack + uint32(rng.IntN(3)-1)*uint32(rng.IntN(3000))
	quote := tcpSeg{sport: f.dport, dport: f.sport, seq: seq, ack: f.seq, flags: ack, data: make([]byte, rng.IntN(1000))}
	p := ipPacket{src: usIP, dst: peerIP, proto: 6, body: quote.bytes(usIP, peerIP)}.bytes()
	mtu := []uint32{0, 1, 68, 296, 552, 576, 1000, 1400, 1499, 1500, 65535}[rng.IntN(11)]
	w.totals.In++
	w.k.input(icmpFrame(3, []byte{0, 1, 2, 3, 4, 4, 4, 4, 4, 13}[rng.IntN(10)], mtu, p[:28+rng.IntN(len(p)-27)]))
}

// program is a step of the Host's program.
func (w *wrongWorld) program() {
	rng, h, now := w.rng, w.k.h, w.k.now
	if s, err := h.TCPAccept(w.lis); err == 0 {
		_, remote := h.TCPAddr(s)
		var f *wrongFlow // nil: opened by a SYN with other numbers than its flow's
		for _, g := range w.flows {
			if g.sport == remote.Port() && g.dport == svc && g.iss == simIRS(h.tcp.at(s.index())) {
				f = g
			}
		}
		w.socks = append(w.socks, wrongSock{h: s, f: f})
	}
	if len(w.socks) == 0 {
		return
	}
	s := &w.socks[rng.IntN(len(w.socks))]
	if s.h == 0 {
		return
	}
	switch n := rng.IntN(20); {
	case n < 9:
		b := make([]byte, 1+simLog(rng, 1, 40000))
		if k, err := h.TCPWrite(s.h, b, now); err == 0 {
			w.written += uint64(k)
		}
	case n < 16:
		w.read(s)
	case n == 16:
		h.TCPShutdown(s.h, now)
	case n == 17:
		h.Close(s.h, now)
		s.h = 0
	case n == 18:
		h.TCPAbort(s.h, now)
		s.h = 0
	case n == 19:
		h.TCPSetNoDelay(s.h, rng.IntN(2) == 0, now)
		h.TCPSetKeepAlive(s.h, KeepAlive{Idle: simLog(rng, 10*ms, 100*second), Interval: second, Count: 3}, now)
		h.TCPSetCongestion(s.h, []string{"reno", "cubic"}[rng.IntN(2)])
		if rng.IntN(4) == 0 {
			h.TCPShutdownRead(s.h, now)
		}
	}
}

// read takes what came: every byte is one of the two that the peer may have sent there.
func (w *wrongWorld) read(s *wrongSock) {
	b := make([]byte, 1+simLog(w.rng, 1, 40000))
	if c := w.k.h.tcp.get(s.h); c != nil && s.read == 0 {
		s.base = simIRS(c) + 1
	}
	n, err := w.k.h.TCPRead(s.h, b, w.k.now)
	if err != 0 {
		return
	}
	w.totals.Read += uint64(n)
	if s.f == nil {
		return
	}
	at := s.base + uint32(s.read)
	x, y := wrongData(at, n, 0), wrongData(at, n, 1)
	for i, c := range b[:n] {
		if c != x[i] && c != y[i] {
			w.k.t.Fatalf("byte %d of what was read was never sent", s.read+int64(i))
		}
	}
	s.read += int64(n)
	top := int64(0)
	for _, f := range w.flows { // of all that used the port
		if f.sport == s.f.sport && f.dport == s.f.dport {
			top = max(top, int64(int32(f.top-s.base)))
		}
	}
	if s.read > top {
		w.k.t.Fatalf("%d bytes were read, %d sent", s.read, top)
	}
}

// checkAmplification bounds what the peer can make the Host send: an answer or two for a segment, what timers send, and
// the program's own data.
func (w *wrongWorld) checkAmplification() {
	t := &w.totals
	if limit := 100 + 4*t.In + 2*t.Ticks + w.written/64; t.Out > limit {
		w.k.t.Fatalf("%d segments were sent for %d received, %d timers and %d bytes written", t.Out, t.In, t.Ticks, w.written)
	}
}
