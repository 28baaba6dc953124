package sockets

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
)

// sink collects the stream from segments of any order, checking that what comes twice is the same.
type sink struct {
	t    testing.TB
	base uint32
	data []byte
	have []bool
}

func newSink(c conn, room int) *sink {
	return &sink{t: c.k.t, base: c.irs + 1, data: make([]byte, room), have: make([]bool, room)}
}

func (s *sink) take(segs []tcpSeg) {
	s.t.Helper()
	for _, g := range segs {
		for i, b := range g.data {
			at := int(g.seq-s.base) + i
			if at < 0 || at >= len(s.data) {
				s.t.Fatalf("byte %d of the stream was sent, which nobody wrote", at)
			}
			if s.have[at] && s.data[at] != b {
				s.t.Fatalf("byte %d of the stream was sent as %#x and as %#x", at, s.data[at], b)
			}
			s.data[at], s.have[at] = b, true
		}
	}
}

// whole is how much of the stream is there without a hole.
func (s *sink) whole() int {
	for i, ok := range s.have {
		if !ok {
			return i
		}
	}
	return len(s.have)
}

func TestTCPSend(t *testing.T) {
	k, c := established(t)
	data := pattern(200_000)
	s := newSink(c, len(data))
	for at := 0; s.whole() < len(data); {
		n, err := k.h.TCPWrite(c.h, data[at:], k.now)
		if err != 0 && err != EAGAIN {
			t.Fatalf("TCPWrite: %v", err)
		}
		at += n
		segs := c.got()
		if len(segs) == 0 {
			t.Fatalf("nothing sent after %d bytes", s.whole())
		}
		for _, g := range segs {
			if len(g.data) > 1460 {
				t.Errorf("segment of %d bytes", len(g.data))
			}
		}
		s.take(segs)
		k.sleep(ms)
		c.ackAll()
	}
	if !bytes.Equal(s.data, data) {
		t.Error("what was sent differs")
	}
	if k.h.txUsed != 0 {
		t.Errorf("%d frames held after all was acknowledged", k.h.txUsed)
	}
	if k.h.counters.Stats[TCPRetransmits] != 0 {
		t.Errorf("%d retransmissions", k.h.counters.Stats[TCPRetransmits])
	}
}

// TestTCPWriteSmall: small writes share segments as long as they wait, and PSH marks the last.
func TestTCPWriteSmall(t *testing.T) {
	_, c := established(t)
	for range 100 {
		c.write([]byte("twenty bytes of data"))
	}
	got := c.got()
	if len(got) != 2 || len(got[0].data) != 1460 || got[0].flags != ack || got[1].flags != ack|psh {
		t.Errorf("sent %+v, want a full segment and the rest with PSH", got)
	}
}

func TestTCPWriteErrors(t *testing.T) {
	k, c := established(t)
	if n, err := k.h.TCPWrite(c.h, nil, k.now); n != 0 || err != 0 {
		t.Errorf("TCPWrite of nothing: %d, %v; who got EAGAIN for it would wait for ever", n, err)
	}
	k.h.TCPShutdown(c.h, k.now)
	if _, err := k.h.TCPWrite(c.h, []byte("x"), k.now); err != EPIPE {
		t.Errorf("TCPWrite after shutdown: %v", err)
	}
	c.got()
	c.reset()
	if _, err := k.h.TCPWrite(c.h, []byte("x"), k.now); err != ECONNRESET {
		t.Errorf("first TCPWrite after a reset: %v", err)
	}
	if _, err := k.h.TCPWrite(c.h, []byte("x"), k.now); err != EPIPE {
		t.Errorf("second TCPWrite after a reset: %v", err)
	}
	if err := k.h.TCPShutdown(c.h, k.now); err != ENOTCONN {
		t.Errorf("TCPShutdown after a reset: %v", err)
	}
}

// TestTCPInitialWindow: ten segments at first (RFC 6928), two more for each that is acknowledged.
func TestTCPInitialWindow(t *testing.T) {
	_, c := established(t)
	c.write(pattern(100_000))
	if n := len(c.got()); n != 10 {
		t.Fatalf("%d segments at first, want 10", n)
	}
	s := c.seg(ack, nil)
	s.ack = c.irs + 1 + 2*1460
	c.inject(s)
	if n := len(c.got()); n != 4 {
		t.Errorf("%d segments for an ACK of two, want 4", n)
	}
}

// TestTCPPeerWindow: no byte is sent beyond the window that the peer offered last.
func TestTCPPeerWindow(t *testing.T) {
	seed := seeds.One(t)
	r := rand.New(rand.NewPCG(seed, 0))
	k, c := established(t)
	data := pattern(300_000)
	s := newSink(c, len(data))
	edge := c.ack + 65535
	for at := 0; s.whole() < len(data); {
		n, _ := k.h.TCPWrite(c.h, data[at:], k.now)
		at += n
		segs := c.got()
		for _, g := range segs {
			if seqLT(edge, g.seq+uint32(len(g.data))) {
				t.Fatalf("sent %d bytes beyond the window, seed %d", g.seq+uint32(len(g.data))-edge, seed)
			}
		}
		s.take(segs)
		c.wnd = uint16(r.IntN([]int{2, 1000, 5000, 65536}[r.IntN(4)]))
		if e := c.ack + uint32(c.wnd); seqLT(e, edge) {
			c.wnd = uint16(min(edge-c.ack, 65535)) // a peer that shrinks its window gets what is on its way
		}
		c.ackAll()
		edge = c.ack + uint32(c.wnd)
		k.sleep(r.Int64N(300 * ms))
	}
	if !bytes.Equal(s.data, data) {
		t.Error("what was sent differs")
	}
}

// TestTCPOldWindow: the window of an older segment does not replace that of a newer one (RFC 9293 3.10.7.4, WL1 and WL2).
func TestTCPOldWindow(t *testing.T) {
	_, c := established(t)
	old := c.seg(ack, pattern(600))
	old.wnd = 10
	c.send(ack, pattern(100))
	c.wnd = 4000
	c.send(ack, pattern(500)[100:])
	c.inject(old)
	if w := c.tcb().sndWnd; w != 4000 {
		t.Errorf("a window of %d, want 4000", w)
	}
	c.seq += 100
	c.got()
}

// TestTCPSillyWindow: a segment is not cut for a sliver of window while there is hope for more (RFC 9293 3.8.6.2.1); half
// of the largest window the peer ever had is no sliver.
func TestTCPSillyWindow(t *testing.T) {
	_, c := established(t)
	c.wnd = 1000
	c.ackAll()
	c.write(pattern(3000))
	c.none()
	c.wnd = 1460
	c.ackAll()
	if n := len(c.one().data); n != 1460 {
		t.Errorf("%d bytes for a window of one segment", n)
	}
	k := newKit(t)
	l, _ := k.h.TCPListen(0, svc)
	p := newPeer(k, svc, 1)
	p.wnd = 1000 // it never had more
	synSent(k, p, optMSS(1460))
	p.ackAll()
	s, _ := k.h.TCPAccept(l)
	conn{tpeer: p, h: s}.write(pattern(3000))
	if n := len(p.one().data); n != 1000 {
		t.Errorf("%d bytes for all the window there ever was", n)
	}
}

// TestTCPRTO: RFC 6298: one second without a sample, then doubled; each time from the first unacknowledged byte on, one
// segment. The connection ends after 15 times.
func TestTCPRTO(t *testing.T) {
	k, c := established(t)
	c.write(pattern(5000))
	if n := len(c.got()); n != 4 {
		t.Fatalf("%d segments", n)
	}
	una, rto := c.irs+1, int64(c.tcb().rto)*1000
	if rto < 200*ms || rto > second {
		t.Fatalf("RTO of %d ns", rto)
	}
	at := k.now
	for i := range 15 {
		at += rto
		k.sleep(at - 2*ms - k.now)
		c.none()
		k.sleep(at + int64(i+3)*ms - k.now)
		g := c.one()
		n := 1460
		if i >= plpmtuTry {
			n = len(g.data) // what nothing is heard of becomes smaller: TestTCPBlackHole
		}
		if g.seq != una || !bytes.Equal(g.data, pattern(5000)[:n]) || n == 0 {
			t.Fatalf("retransmission %d: seq %d with %d bytes, want %d", i, g.seq, len(g.data), una)
		}
		rto = min(2*rto, 120*second)
	}
	k.sleep(121 * second)
	c.none()
	if r := k.h.Ready(c.h); r&(In|Out|Err|Hup) != In|Out|Err|Hup {
		t.Errorf("ready for %#x", r)
	}
	c.wantEOF(ETIMEDOUT)
	if k.h.txUsed != 0 {
		t.Errorf("%d frames held after the connection was given up", k.h.txUsed)
	}
}

// TestTCPRTT: RFC 6298 section 2, and Karn: what was sent twice is not measured.
func TestTCPRTT(t *testing.T) {
	k, c := established(t)
	const msUS = 1000
	if c.tcb().srtt == 0 || c.tcb().srtt > msUS {
		t.Fatalf("after a handshake within one turn: SRTT %d µs", c.tcb().srtt)
	}
	c.tcb().srtt = 0
	measure := func(d int64) {
		c.write([]byte("x"))
		c.got()
		k.sleep(d)
		c.ackAll()
	}
	measure(100 * ms)
	if b := c.tcb(); b.srtt != 100*msUS || b.rttvar != 50*msUS || b.rto != 300*msUS {
		t.Errorf("first sample: SRTT %d, RTTVAR %d, RTO %d ms", b.srtt/msUS, b.rttvar/msUS, b.rto/msUS)
	}
	measure(180 * ms)
	// RTTVAR = 3/4 * 50 + 1/4 * 80, SRTT = 7/8 * 100 + 1/8 * 180
	if b := c.tcb(); b.srtt != 110*msUS || b.rttvar != 57*msUS+msUS/2 || b.rto != 340*msUS {
		t.Errorf("second sample: SRTT %d, RTTVAR %d, RTO %d ms", b.srtt/msUS, b.rttvar/msUS, b.rto/msUS)
	}
	for _, want := range []uint32{680, 1360} { // the timeout grows until something arrives before it
		measure(900 * ms)
		if k.h.counters.Stats[TCPRetransmits] == 0 || c.tcb().srtt != 110*msUS || c.tcb().rto != want*msUS {
			t.Fatalf("after a retransmission: SRTT %d ms, RTO %d ms", c.tcb().srtt/msUS, c.tcb().rto/msUS)
		}
	}
	if measure(900 * ms); c.tcb().srtt <= 200*msUS || k.h.counters.Stats[TCPRetransmits] != 2 {
		t.Errorf("a path that became longer: SRTT %d ms", c.tcb().srtt/msUS)
	}
	for range 60 {
		measure(ms)
	}
	if b := c.tcb(); b.rto != 200*msUS {
		t.Errorf("RTO %d ms on a short path, want the lower bound", b.rto/msUS)
	}
}

// TestTCPRecovery: after a timeout what the peer has is not sent again, and what was sent is what was written.
func TestTCPRecovery(t *testing.T) {
	k, c := established(t)
	data := pattern(10 * 1460)
	c.write(data)
	s := newSink(c, len(data))
	s.take(c.got())
	c.ack = c.irs + 1
	for _, acked := range []int{0, 100, 1460, 1461, 5000, 14_599} {
		k.sleep(121 * second)
		segs := c.got()
		if len(segs) == 0 || segs[0].seq != c.irs+1+uint32(acked) && acked == 0 {
			t.Fatalf("after the timeout with %d acknowledged: %+v", acked, segs)
		}
		s.take(segs)
		g := c.seg(ack, nil)
		g.ack = c.irs + 1 + uint32(acked)
		c.inject(g)
		segs = c.got()
		for _, g := range segs {
			if seqLT(g.seq, c.irs+1+uint32(acked)) {
				t.Errorf("sent %d again, %d are acknowledged", g.seq-c.irs-1, acked)
			}
		}
		s.take(segs)
	}
	c.ack = c.irs + 1 + uint32(len(data))
	c.ackAll()
	c.none()
	if c.tcb().sndBytes != 0 || k.h.txUsed != 0 {
		t.Errorf("%d bytes, %d frames held", c.tcb().sndBytes, k.h.txUsed)
	}
}

// TestTCPStreamUnderLoss sends through a peer that loses, delays, and acknowledges anything from nothing to all; the
// device completes late. The stream stays what was written.
func TestTCPStreamUnderLoss(t *testing.T) {
	for range 10 {
		seed := seeds.One(t)
		r := rand.New(rand.NewPCG(seed, 0))
		k, c := established(t)
		k.late = true
		data := pattern(60_000)
		s := newSink(c, len(data))
		closed, fin := false, uint32(0)
		for at, step := 0, 0; s.whole() < len(data) || c.tcb().state != tcpFinWait2; step++ {
			if step > 20_000 {
				t.Fatalf("stuck at %d of %d bytes in %s, seed %d", s.whole(), len(data), tcpStateNames[c.tcb().state], seed)
			}
			if at < len(data) {
				n, _ := k.h.TCPWrite(c.h, data[at:min(len(data), at+r.IntN(9000))], k.now)
				at += n
			} else if !closed {
				closed = true
				k.h.TCPShutdown(c.h, k.now)
			}
			c.ack = 0 // got must not count
			for _, g := range c.got() {
				if r.IntN(3) > 0 {
					s.take([]tcpSeg{g})
					if g.flags&1 != 0 && s.whole() == len(data) {
						fin = 1
					}
				}
			}
			if r.IntN(4) > 0 {
				k.complete(r.IntN(len(k.device) + 1))
			}
			if r.IntN(2) == 0 {
				g := c.seg(ack, nil)
				g.ack = s.base + uint32(s.whole()) + fin
				c.inject(g)
			}
			k.sleep(r.Int64N(int64(1+r.IntN(2000)) * ms))
		}
		if !bytes.Equal(s.data, data) {
			t.Fatalf("the stream differs, seed %d", seed)
		}
	}
}

// TestTCPQueuedFrameIsNotTouched: while the device still has a segment, its bytes stay as they are, whatever the timers,
// the peer and the writer do.
func TestTCPQueuedFrameIsNotTouched(t *testing.T) {
	for name, act := range map[string]func(k *kit, c conn){
		"timeouts":       func(k *kit, c conn) { k.sleep(100 * second) },
		"new timestamps": func(k *kit, c conn) { c.send(psh|ack, []byte("x")); k.sleep(10 * second) },
		"partly acknowledged": func(k *kit, c conn) {
			g := c.seg(ack, nil)
			g.ack = c.irs + 101
			c.inject(g)
			k.sleep(10 * second)
		},
		"window of one byte": func(k *kit, c conn) { c.ack, c.wnd = c.irs+1, 1; c.ackAll(); k.sleep(10 * second) },
		"more data":          func(k *kit, c conn) { k.h.TCPWrite(c.h, []byte("more"), k.now); k.sleep(10 * second) },
		"close":              func(k *kit, c conn) { k.h.Close(c.h, k.now); k.sleep(10 * second) },
		"abort":              func(k *kit, c conn) { k.h.TCPAbort(c.h, k.now); k.sleep(10 * second) },
		"reset":              func(k *kit, c conn) { c.reset(); k.sleep(10 * second) },
		"all acknowledged":   func(k *kit, c conn) { c.ackAll(); k.h.TCPWrite(c.h, pattern(9000), k.now); k.sleep(10 * second) },
	} {
		t.Run(name, func(t *testing.T) {
			k, c := tsConn(t)
			k.late = true
			c.write(pattern(2000))
			n := len(c.got())
			if n != 2 {
				t.Fatalf("%d segments", n)
			}
			first := append(k.device[:0:0], k.device...)
			var before [][]byte
			for _, f := range first {
				before = append(before, append([]byte(nil), k.pool.Chunk(f)...))
			}
			act(k, c)
			for i, f := range first {
				if !bytes.Equal(k.pool.Chunk(f), before[i]) {
					t.Errorf("frame %d changed while the device had it", i)
				}
			}
			k.complete(len(k.device))
		})
	}
}

// TestTCPZeroWindowProbe: a closed window is asked about, ever more seldom (RFC 9293 3.8.6.1), for as long as the peer
// answers; when it opens, the data goes at once.
func TestTCPZeroWindowProbe(t *testing.T) {
	k, c := established(t)
	c.wnd = 0
	c.ackAll()
	c.write([]byte("waits"))
	c.none()
	last, gap := k.now, int64(0)
	for i := range 40 {
		for k.sleep(10 * ms); ; k.sleep(10 * ms) {
			if got := c.got(); len(got) > 0 {
				if len(got) != 1 || len(got[0].data) != 0 || got[0].seq != c.ack-1 {
					t.Fatalf("probe %d: %+v", i, got)
				}
				break
			}
			if k.now-last > 300*second {
				t.Fatalf("no probe after %d", i)
			}
		}
		if d := k.now - last; d < gap-20*ms || gap < 60*second && i > 1 && d < gap*3/2 {
			t.Fatalf("probe %d came after %d ms, the one before after %d ms: no back-off", i, d/ms, gap/ms)
		}
		gap, last = k.now-last, k.now
		c.ackAll()
		if i > 12 {
			break
		}
	}
	if gap > 121*second {
		t.Errorf("%d s between probes", gap/second)
	}
	c.wnd = 65535
	c.ackAll()
	wantSeg(t, c.one(), ack, c.ack-5, c.seq, []byte("waits"))
	k.sleep(2 * second) // the timeout is what the path asks for again, not what the probes had come to
	if got := c.got(); len(got) == 0 {
		t.Error("no retransmission two seconds after the window opened")
	}
}

// TestTCPZeroWindowSilence: a peer that does not answer probes is given up.
func TestTCPZeroWindowSilence(t *testing.T) {
	k, c := established(t)
	c.wnd = 0
	c.ackAll()
	c.write([]byte("waits"))
	k.sleep(2000 * second)
	if n := len(c.got()); n < 10 || n > 20 {
		t.Errorf("%d probes", n)
	}
	c.wantEOF(ETIMEDOUT)
}

// TestTCPSmallWindow: a window that has become small for good gets what fits into it when the timer says so (the override
// of RFC 9293 3.8.6.2.1); without it the connection would stand still.
func TestTCPSmallWindow(t *testing.T) {
	for _, wnd := range []uint16{1, 100, 1000, 1459} {
		k, c := established(t)
		data := pattern(6 * int(wnd))
		s := newSink(c, len(data))
		c.wnd = wnd
		c.ackAll()
		c.write(data)
		for step := 0; s.whole() < len(data); step++ {
			if step > 400 {
				t.Fatalf("window %d: stands still after %d of %d bytes", wnd, s.whole(), len(data))
			}
			segs := c.got()
			for _, g := range segs {
				if len(g.data) > int(wnd) {
					t.Fatalf("segment of %d bytes into a window of %d", len(g.data), wnd)
				}
			}
			s.take(segs)
			c.ackAll()
			k.sleep(second)
		}
		if !bytes.Equal(s.data, data) {
			t.Error("what was sent differs")
		}
	}
}

// TestTCPSendBuffer: SndBuf bytes are taken; Out comes when a third is free again, once.
func TestTCPSendBuffer(t *testing.T) {
	k, c := established(t, func(c *Config) { c.SndBuf = 30_000 })
	n, err := k.h.TCPWrite(c.h, pattern(50_000), k.now)
	if n != 30_000 || err != 0 {
		t.Fatalf("TCPWrite = %d, %v", n, err)
	}
	if _, err := k.h.TCPWrite(c.h, []byte("x"), k.now); err != EAGAIN {
		t.Errorf("TCPWrite into a full buffer: %v", err)
	}
	if k.h.Ready(c.h)&Out != 0 {
		t.Error("ready for Out with a full buffer")
	}
	k.events()
	outs := 0
	for c.tcb().sndBytes > 0 {
		c.got()
		g := c.seg(ack, nil)
		g.ack = c.tcb().sndUna + min(1000, c.tcb().sndNxt-c.tcb().sndUna)
		c.inject(g)
		ready := int(c.tcb().sndBytes) <= 20_000
		if got := k.events(); got[c.h]&Out != 0 {
			outs++
		}
		if (k.h.Ready(c.h)&Out != 0) != ready || ready != (outs > 0) {
			t.Fatalf("%d bytes in the buffer: ready for %#x, %d events", c.tcb().sndBytes, k.h.Ready(c.h), outs)
		}
	}
	if outs != 1 {
		t.Errorf("%d events for Out, want one", outs)
	}
}

// stuck makes n connections whose peers offer no window hold all the frames that TCP may have for data.
func stuck(t *testing.T, k *kit) []Handle {
	l, err := k.h.TCPListen(0, 81)
	if err != 0 {
		t.Fatal(err)
	}
	var out []Handle
	for i := range uint16(100) {
		p := dial(k, 81, 2000+i)
		p.wnd = 0
		p.ackAll()
		s, err := k.h.TCPAccept(l)
		if err != 0 {
			t.Fatal(err)
		}
		out = append(out, s)
		if n, _ := k.h.TCPWrite(s, pattern(128<<10), k.now); n == 0 {
			return out
		}
	}
	t.Fatal("a hundred connections do not fill the frames")
	return nil
}

// TestTCPFramesExhausted: when stuck connections hold all frames for TCP data, other writers wait without being told
// that there is room, datagrams and handshakes still go, and Out comes when frames are there.
func TestTCPFramesExhausted(t *testing.T) {
	for _, frames := range []int{256, 1024, 4096} {
		k := newKitOf(t, frames, 2048, func(c *Config) { c.KernelNeighbours = true })
		k.h.SetNeighbour(peerIP, peerMAC, true, k.now)
		holders := stuck(t, k)
		l, _ := k.h.TCPListen(0, svc)
		c := conn{tpeer: dial(k, svc, 1000)}
		c.h, _ = k.h.TCPAccept(l)
		k.sent()
		if _, err := k.h.TCPWrite(c.h, []byte("x"), k.now); err != EAGAIN {
			t.Fatalf("TCPWrite without frames: %v", err)
		}
		k.events()
		for range 10 {
			k.pump()
			if got := k.events(); len(got) != 0 {
				t.Fatalf("%d frames: events %v while nothing changed", frames, got)
			}
		}
		// A datagram socket that used up the rest for a moment gets it back.
		u := k.bind(0, 9)
		k.late = true
		for k.h.UDPSend(u, nil, port(peerIP, 9), k.now) == 0 {
		}
		k.pump()
		k.late = false
		k.complete(len(k.device))
		k.pump()
		if got := k.events(); got[u]&Out == 0 || got[c.h] != 0 {
			t.Fatalf("%d frames: events %v after the completions, want Out for the datagram socket alone", frames, got)
		}
		k.sent()
		// Closing works too: the FIN does not wait for those who hold the frames.
		k.h.TCPShutdown(c.h, k.now)
		wantSeg(t, c.one(), fin|ack, c.ack-1, c.seq, nil)
		for _, s := range holders {
			k.h.TCPAbort(s, k.now)
		}
		k.sent()
		if got := k.events(); got[c.h]&Out == 0 {
			t.Errorf("%d frames: events %v after frames were freed, want Out", frames, got)
		}
	}
}

// TestTCPWaitersAreBounded: connections that come, find no frames for their answer, and go, leave nothing behind.
func TestTCPWaitersAreBounded(t *testing.T) {
	k := newKit(t)
	stuck(t, k)
	l, _ := k.h.TCPListen(0, svc)
	for i := range uint16(1000) {
		p := dial(k, svc, 1+i)
		s, _ := k.h.TCPAccept(l)
		if _, err := k.h.TCPWrite(s, []byte("x"), k.now); err != EAGAIN {
			t.Fatalf("TCPWrite without frames: %v", err)
		}
		p.reset()
		k.h.Close(s, k.now)
		k.sent()
	}
	if n := len(k.h.noTxData); n > 50 {
		t.Errorf("%d wait, and all but one are gone", n)
	}
}

// TestTCPFINWithoutFrames: a FIN that finds no frame goes when there are some.
func TestTCPFINWithoutFrames(t *testing.T) {
	k, c := established(t)
	u := k.bind(0, 9)
	k.late = true
	for k.h.UDPSend(u, nil, port(peerIP, 9), k.now) == 0 {
	}
	k.sent()
	k.h.Close(c.h, k.now)
	c.none()
	k.late = false
	k.complete(len(k.device))
	k.pump()
	wantSeg(t, c.one(), fin|ack, c.ack-1, c.seq, nil)
}
