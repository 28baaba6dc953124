package sockets

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
)

// smallWindow gives connections a receive buffer of 8192 bytes of data.
func smallWindow(c *Config) { c.RcvBuf = 16384 }

func TestTCPReceive(t *testing.T) {
	k, c := established(t)
	data := pattern(60_000)
	for at := 0; at < len(data); {
		n := min(1+at%1460, len(data)-at)
		c.send(ack, data[at:at+n])
		at += n
		if at%7 == 0 {
			c.got()
		}
	}
	if got := k.events(); len(got) != 1 || got[c.h] != In|Out {
		t.Errorf("events %v, want In and Out once", got)
	}
	c.wantRead(data)
	if _, err := k.h.TCPRead(c.h, make([]byte, 1), k.now); err != EAGAIN {
		t.Errorf("TCPRead of nothing: %v", err)
	}
	if r := k.h.Ready(c.h); r != Out {
		t.Errorf("ready for %#x after all was read", r)
	}
	if k.h.rxUsed != 0 {
		t.Errorf("%d frames held after all was read", k.h.rxUsed)
	}
}

// TestTCPSmallSegments: single bytes do not hold a frame each.
func TestTCPSmallSegments(t *testing.T) {
	k, c := established(t)
	data := pattern(5000)
	for i := range data {
		c.send(psh|ack, data[i:i+1])
	}
	if k.h.rxUsed > 4 {
		t.Errorf("%d frames for 5000 bytes", k.h.rxUsed)
	}
	c.wantRead(data)
}

// TestTCPReadInPieces: whatever the sizes of segments and reads, the bytes are the bytes.
func TestTCPReadInPieces(t *testing.T) {
	seed := seeds.One(t)
	r := rand.New(rand.NewPCG(seed, 0))
	k, c := established(t)
	data := pattern(300_000)
	var got []byte
	for at := 0; len(got) < len(data); {
		if n := min(1+r.IntN([]int{3, 700, 1460}[r.IntN(3)]), len(data)-at); n > 0 && at-len(got) < 20_000 {
			c.send(ack, data[at:at+n])
			at += n
		}
		buf := make([]byte, r.IntN(3000))
		n, err := k.h.TCPRead(c.h, buf, k.now)
		if err != 0 && err != EAGAIN {
			t.Fatalf("TCPRead: %v, seed %d", err, seed)
		}
		got = append(got, buf[:n]...)
		c.got()
	}
	if !bytes.Equal(got, data) {
		t.Fatalf("what was read differs, seed %d", seed)
	}
}

// TestTCPDelayedACK: 40 ms for a small segment, at once for every second full-sized one, and data carries it for free.
func TestTCPDelayedACK(t *testing.T) {
	k, c := established(t)
	c.send(psh|ack, []byte("one"))
	c.none()
	k.sleep(38 * ms)
	c.none()
	k.sleep(3 * ms)
	wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
	k.sleep(second)
	c.none()

	c.send(psh|ack, []byte("two"))
	c.write([]byte("answer"))
	wantSeg(t, c.one(), ack, c.ack-6, c.seq, []byte("answer"))
	c.ackAll()
	k.sleep(second)
	c.none()

	c.send(ack, pattern(1460))
	c.none()
	c.send(ack, pattern(1460))
	wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
	for range 10 { // one turn, one ACK
		c.send(ack, pattern(1460))
	}
	wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
}

// TestTCPOutOfOrder: what comes too early is kept and asked for at once (RFC 5681 4.2); a FIN among it counts in its turn.
func TestTCPOutOfOrder(t *testing.T) {
	k, c := established(t)
	for i, at := range []int{5, 11, 8, 20, 17, 14} { // three bytes each; at 23 a FIN
		s := c.seg(ack, pattern(23)[at:at+3])
		s.seq += uint32(at)
		c.inject(s)
		wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
		if k.h.rxUsed != i+1 {
			t.Errorf("%d frames held, want %d", k.h.rxUsed, i+1)
		}
	}
	f := c.seg(fin|ack, nil)
	f.seq += 23
	c.inject(f)
	c.one()
	c.wantState(tcpEstablished)
	c.wantRead(nil)
	c.send(ack, pattern(23)[:5])
	c.seq += 19
	wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
	c.wantState(tcpCloseWait)
	c.wantRead(pattern(23))
	c.wantEOF(0)
	if k.h.rxUsed != 0 {
		t.Errorf("%d frames held", k.h.rxUsed)
	}
}

// TestTCPOldData: segments that were there, wholly or in part, are trimmed, and answered with an ACK.
func TestTCPOldData(t *testing.T) {
	k, c := established(t)
	data := pattern(3000)
	c.send(ack, data[:1000])
	c.got()
	base := c.seq
	old := func(back uint32, n int, flags uint8) tcpSeg {
		s := c.seg(flags, data[1000-int(back):1000-int(back)+n])
		s.seq -= back
		return s
	}
	for _, n := range []int{1, 999, 1000} {
		k.wantDrops(func() { c.inject(old(1000, n, ack)) }, map[Drop]uint64{TCPDuplicate: 1})
		wantSeg(t, c.one(), ack, c.ack, base, nil)
	}
	c.inject(old(1000, 1001, ack), old(500, 700, ack))
	c.seq = base + 200
	k.sleep(50 * ms)
	got := c.got()
	if len(got) == 0 || got[len(got)-1].ack != base+200 {
		t.Fatalf("acknowledged %+v, want %d", got, base+200)
	}
	c.wantRead(data[:1200])
	// Old data with a new FIN: the FIN counts.
	s := c.seg(fin|ack, data[1100:1200])
	s.seq -= 100
	c.inject(s)
	wantSeg(t, c.one(), ack, c.ack, base+201, nil)
	c.wantState(tcpCloseWait)
	c.wantEOF(0)
	// And the same again is old altogether.
	k.wantDrops(func() { c.inject(s) }, map[Drop]uint64{TCPDuplicate: 1})
	wantSeg(t, c.one(), ack, c.ack, base+201, nil)
}

// TestTCPBeyondWindow: data over the window's edge is cut off there, with its FIN; behind it nothing is taken.
func TestTCPBeyondWindow(t *testing.T) {
	k, c := established(t, smallWindow)
	data := pattern(20_000)
	edge := int(c.tcb().rcvAdv - c.tcb().rcvNxt)
	if edge < 8192 || edge > 8192+127 {
		t.Fatalf("window of %d", edge)
	}
	start := c.seq
	for range edge / 1460 {
		c.send(ack, data[c.seq-start:][:1460])
	}
	c.got()
	room := int(c.tcb().rcvAdv - c.seq)
	s := c.seg(fin|psh|ack, data[c.seq-start:][:1460])
	c.inject(s)
	c.wantState(tcpEstablished)
	last := c.one()
	if last.ack != s.seq+uint32(room) || last.wnd != 0 {
		t.Errorf("acknowledged %d of %d bytes with a window of %d; want %d and 0", last.ack-s.seq, len(s.data), last.wnd, room)
	}
	c.seq = last.ack
	k.wantDrops(func() {
		far := c.seg(ack, []byte("far"))
		far.seq++
		c.inject(far)
	}, map[Drop]uint64{TCPOutOfWindow: 1})
	c.wantRead(data[:c.seq-start])
}

// TestTCPZeroWindow: a full buffer closes the window; probes are answered, not taken; a reader opens it again.
func TestTCPZeroWindow(t *testing.T) {
	k, c := established(t, smallWindow)
	data := pattern(20_000)
	start := c.seq
	fill := func() {
		for c.tcb().rcvAdv != c.seq {
			n := min(1460, c.tcb().rcvAdv-c.seq)
			c.send(ack, data[c.seq-start:][:n])
			c.sent()
		}
	}
	fill()
	k.sleep(50 * ms)
	c.got()
	full := int(c.seq - start)
	k.events()
	for range 3 {
		k.sleep(200 * ms)
		c.inject(c.seg(ack, data[full:full+1])) // a probe with a byte of data
		if s := c.one(); s.ack != c.seq || s.wnd != 0 {
			t.Fatalf("probe answered with %+v", s)
		}
		k.sleep(challengeMS * ms)
		old := c.seg(ack, nil) // one with an old number, as Linux sends it
		old.seq--
		c.inject(old)
		if s := c.one(); s.ack != c.seq || s.wnd != 0 {
			t.Fatalf("probe answered with %+v", s)
		}
		c.inject(c.seg(ack, nil)) // a bare ACK is taken and not answered
		c.none()
	}
	// Reading a little says nothing (silly window); reading more opens the window unasked.
	buf := make([]byte, 1000)
	var got []byte
	read := func() {
		n, err := k.h.TCPRead(c.h, buf, k.now)
		if err != 0 {
			t.Fatal(err)
		}
		got = append(got, buf[:n]...)
	}
	read()
	c.none()
	for range 5 {
		read()
	}
	s := c.one()
	if s.ack != c.seq || s.wnd == 0 || int(s.wnd)<<7 > len(got)+127 {
		t.Fatalf("after %d bytes were read: ACK %d, window %d", len(got), s.ack, int(s.wnd)<<7)
	}
	fill()
	got = append(got, c.read()...)
	if !bytes.Equal(got, data[:len(got)]) || len(got) < full+4000 {
		t.Errorf("%d bytes read, want more than %d, or they differ", len(got), full+4000)
	}
}

// sent lets output go without looking at it.
func (p *tpeer) sent() { p.k.sent() }

// TestTCPWindowNeverShrinks: whatever is sent and read, the right edge that a peer sees never moves back (RFC 9293
// SHLD-14), with scaling and without.
func TestTCPWindowNeverShrinks(t *testing.T) {
	for _, opts := range [][]byte{optMSS(1460), concat(optMSS(1460), optWScale(0))} {
		for round := range 20 {
			seed := seeds.One(t)
			r := rand.New(rand.NewPCG(seed, 0))
			k := newKit(t, func(c *Config) { c.RcvBuf = 4096 << (round % 10) })
			l, _ := k.h.TCPListen(0, svc)
			c := conn{tpeer: dialOpts(k, svc, 1000, opts)}
			c.h, _ = k.h.TCPAccept(l)
			scale := c.tcb().rcvScale
			start, edge, most := c.seq, uint32(0), pattern(1<<21)
			for step := range 3000 {
				if wnd := c.tcb().rcvAdv - c.seq; r.IntN(3) > 0 && wnd > 0 {
					n := min(uint32(1+r.IntN([]int{10, 600, 1460}[r.IntN(3)])), wnd)
					c.send(ack, most[c.seq-start:][:n])
				} else if r.IntN(4) == 0 {
					k.h.TCPRead(c.h, make([]byte, r.IntN(8000)), k.now)
				}
				if r.IntN(3) == 0 {
					k.sleep(r.Int64N(60 * ms))
				}
				for _, s := range c.got() {
					e := s.ack + uint32(s.wnd)<<scale
					if edge != 0 && seqLT(e, edge) {
						t.Fatalf("step %d: the edge moves back by %d, buffer %d, scale %d, seed %d", step, edge-e, k.h.cfg.RcvBuf, scale, seed)
					}
					edge = e
				}
			}
		}
	}
}

// TestTCPReceiveBound: no pattern of segments makes a connection queue more than its buffer, which counts whole frames;
// not single bytes (each ACK rounds the window up), not tiny fragments.
func TestTCPReceiveBound(t *testing.T) {
	t.Run("single bytes", func(t *testing.T) {
		k, c := established(t, smallWindow)
		edge := c.tcb().rcvAdv
		for c.tcb().rcvNxt == c.seq { // until one is refused
			c.send(ack, []byte("x"))
			k.sleep(41 * ms)
			for _, s := range c.got() {
				if e := s.ack + uint32(s.wnd)<<7; seqLT(edge, e) {
					edge = e
				}
			}
			if n := int(c.tcb().rcvBytes); n > k.h.cfg.RcvBuf+127 {
				t.Fatalf("%d bytes queued, the buffer is %d", n, k.h.cfg.RcvBuf)
			}
		}
		c.seq--
		if c.seq != edge {
			t.Errorf("refused the byte %d before the furthest edge that was promised", int32(edge-c.seq))
		}
		c.read() // and it goes on when somebody reads
		if got := c.got(); len(got) == 0 || got[len(got)-1].wnd == 0 {
			t.Fatalf("after all was read: %+v, want an open window", got)
		}
	})
	t.Run("tiny fragments", func(t *testing.T) {
		k, c := established(t, smallWindow)
		data := pattern(20_000)
		start := c.seq
		for i := range uint16(200) {
			n := min(int(c.tcb().rcvAdv-c.seq), 200)
			if n <= 0 {
				break
			}
			s := c.seg(ack, data[c.seq-start:][:n])
			k.inject(ipPacket{id: i, proto: 6, body: s.bytes(peerIP, usIP)}.fragments(24)...)
			if c.tcb().rcvNxt != c.seq {
				c.seq += uint32(n)
			}
			c.sent()
			if size := k.h.rxUsed * 2048; size > 2*k.h.cfg.RcvBuf {
				t.Fatalf("%d frames held for %d bytes", k.h.rxUsed, c.tcb().rcvBytes)
			}
		}
		if c.seq-start < 8192 {
			t.Errorf("only %d bytes taken", c.seq-start)
		}
		c.wantRead(data[:c.seq-start])
	})
	t.Run("fragments mostly beyond the window", func(t *testing.T) {
		k, c := established(t, smallWindow)
		for c.tcb().rcvAdv-c.seq > 1 {
			c.send(ack, pattern(min(1460, int(c.tcb().rcvAdv-c.seq)-1)))
			c.sent()
		}
		before := k.h.rxUsed
		k.inject(ipPacket{id: 1, proto: 6, body: c.seg(ack, pattern(2000)).bytes(peerIP, usIP)}.fragments(24)...)
		if n := k.h.rxUsed - before; n > 1 {
			t.Errorf("%d frames held for one byte", n)
		}
		c.seq++
		if c.tcb().rcvNxt != c.seq {
			t.Error("the byte in the window was not taken")
		}
	})
}

// TestTCPFragments: segments that come in fragments, in all places that trim.
func TestTCPFragments(t *testing.T) {
	for _, cut := range []int{24, 104, 1000, 1480} {
		k, c := established(t)
		data := pattern(3000)
		c.send(ack, data[:100])
		s := c.seg(ack, data[:2500])
		s.seq -= 100
		k.inject(ipPacket{id: 1, proto: 6, body: s.bytes(peerIP, usIP)}.fragments(cut)...)
		c.seq += 2400
		f := c.seg(fin|ack, data[2500:])
		k.inject(ipPacket{id: 2, proto: 6, body: f.bytes(peerIP, usIP)}.fragments(cut)...)
		c.seq += 501
		wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
		c.wantRead(data)
		c.wantEOF(0)
		if k.h.rxUsed != 0 {
			t.Errorf("pieces of %d: %d frames held", cut, k.h.rxUsed)
		}
		// Again, all old now: each fragment goes back to the pool.
		k.inject(ipPacket{id: 3, proto: 6, body: f.bytes(peerIP, usIP)}.fragments(cut)...)
		if k.h.rxUsed != 0 {
			t.Errorf("pieces of %d: %d frames held for old data", cut, k.h.rxUsed)
		}
		c.got()
	}
	// A first fragment that ends within the TCP header (RFC 1858) is not believed.
	k, c := established(t)
	k.wantDrops(func() {
		k.inject(ipPacket{id: 1, proto: 6, body: c.seg(ack, pattern(100)).bytes(peerIP, usIP)}.fragments(16)...)
	}, map[Drop]uint64{Drop(proto.TCPShort): 1})
}

// TestTCPReceiveMemory: data that finds no memory is not acknowledged, and is taken when it comes again.
func TestTCPReceiveMemory(t *testing.T) {
	k, c := established(t, func(c *Config) { c.RcvBuf = 1 << 30 })
	u := k.bind(0, 7)
	for k.h.rxUsed < k.h.rxLimit {
		k.inject(udpFrame(1, 7, nil))
	}
	c.got()
	s := c.seg(psh|ack, pattern(1000))
	k.wantDrops(func() { c.inject(s) }, map[Drop]uint64{RxMemLimit: 1})
	k.sleep(second)
	for _, s := range c.got() {
		if s.ack != c.seq {
			t.Errorf("acknowledged %d bytes that were dropped", s.ack-c.seq)
		}
	}
	f := c.seg(fin|psh|ack, pattern(1000))
	k.wantDrops(func() { c.inject(f) }, map[Drop]uint64{RxMemLimit: 1})
	c.wantState(tcpEstablished)
	k.h.UDPRecv(u, nil)
	c.inject(f)
	c.wantState(tcpCloseWait)
	c.wantRead(pattern(1000))
}

// TestTCPPressure: where most of the memory is in use, windows stand still instead of promising more.
func TestTCPPressure(t *testing.T) {
	k, c := established(t)
	edge := c.tcb().rcvAdv
	k.bind(0, 7)
	for k.h.rxUsed <= k.h.rxLimit*3/4+1 {
		k.inject(udpFrame(1, 7, nil))
	}
	for range 20 {
		c.send(ack, pattern(1460))
		c.got()
	}
	c.read()
	c.send(ack, pattern(1460))
	k.sleep(50 * ms)
	c.got()
	if moved := c.tcb().rcvAdv - edge; moved >= 128*30 {
		t.Errorf("the window's edge moved on by %d", moved)
	}
}

// TestTCPChecksum: wrong, partial where it is allowed and where not.
func TestTCPChecksum(t *testing.T) {
	for _, partialOK := range []bool{false, true} {
		for _, partial := range []bool{false, true} {
			k, c := established(t, func(c *Config) { c.AcceptPartial = partialOK })
			s := c.seg(psh|ack, []byte("data")).bytes(peerIP, usIP)
			s[16] ^= 1
			if partial {
				copy(s[16:], be16(^inetSum(pseudo(peerIP, usIP, 6, len(s)))))
			}
			want := map[Drop]uint64{Drop(proto.TCPChecksum): 1}
			if partial && partialOK {
				want = nil
			}
			k.wantDrops(func() { k.inject(ipPacket{proto: 6, body: s}.frame()) }, want)
			if got := c.read(); (len(got) == 4) != (want == nil) {
				t.Errorf("partial %v, accepted %v: read %q", partial, partialOK, got)
			}
		}
	}
}

// TestTCPPAWS: RFC 7323 5.3: old timestamps are refused with an ACK, RSTs and segments after a long silence are not, and a
// segment without timestamps is not of this connection.
func TestTCPPAWS(t *testing.T) {
	k, c := tsConn(t)
	c.tsval += 10
	c.send(psh|ack, []byte("new"))
	k.sleep(50 * ms)
	wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
	if c.tcb().tsRecent != c.tsval {
		t.Errorf("TS.Recent is %d, want %d", c.tcb().tsRecent, c.tsval)
	}
	old := c.seg(psh|ack, []byte("old"))
	old.opts = optTS(c.tsval-1, c.tsecr)
	k.wantDrops(func() { c.inject(old) }, map[Drop]uint64{TCPPAWS: 1})
	wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
	bare := c.seg(psh|ack, []byte("no option"))
	bare.opts = nil
	k.wantDrops(func() { c.inject(bare) }, map[Drop]uint64{TCPPAWS: 1})
	c.got()
	// What lies beyond what we acknowledged does not move TS.Recent.
	early := c.seg(psh|ack, []byte("early"))
	early.seq += 100
	early.opts = optTS(c.tsval+1000, c.tsecr)
	c.inject(early)
	c.got()
	if c.tcb().tsRecent != c.tsval {
		t.Errorf("TS.Recent is %d after a segment from the future", c.tcb().tsRecent)
	}
	same := c.seg(psh|ack, []byte("same"))
	c.inject(same)
	c.seq += 4
	c.wantRead([]byte("newsame"))
	k.sleep(25 * 24 * 3600 * second)
	c.got()
	old.seq = c.seq
	c.inject(old)
	c.seq += 3
	c.wantRead([]byte("old"))
	k.sleep(50 * ms)
	c.got()
	r := c.seg(rst, nil)
	r.opts = optTS(1, 0)
	c.inject(r)
	c.wantEOF(ECONNRESET)
}

// TestTCPWindowGrows: a reader who takes all that comes is given a larger window than the first.
func TestTCPWindowGrows(t *testing.T) {
	k, c := established(t)
	for range 3 {
		for range 40 {
			c.send(ack, pattern(1460))
		}
		c.read()
		k.sleep(2 * ms)
		c.got()
	}
	if got := c.tcb().rcvBuf; got < 2*40*1460 {
		t.Errorf("the buffer has %d bytes, less than twice what the reader takes at once", got)
	}
}

// TestTCPSmallRests: a small message does not make a connection active; a full segment does.
func TestTCPSmallRests(t *testing.T) {
	k, c := established(t)
	k.sleep(3 * second)
	for _, n := range []int{8, 100, 1460} {
		c.send(ack, pattern(n))
		c.read()
		if got, want := c.tcb().active != 0, n == 1460; got != want {
			t.Errorf("after %d bytes the connection is active: %v", n, got)
		}
		k.sleep(100 * ms)
	}
	c.got()
}

// TestTCPOutOfOrderGivesWay: with no memory left, what came before its turn is forgotten for what is in order.
func TestTCPOutOfOrderGivesWay(t *testing.T) {
	k, c := established(t)
	for i := range uint32(10) {
		s := c.seg(ack, pattern(1460))
		s.seq += 1460 * (i + 1)
		c.inject(s)
	}
	k.bind(0, 7)
	for k.h.rxUsed < k.h.rxLimit {
		k.inject(udpFrame(1, 7, nil))
	}
	c.got()
	k.wantDrops(func() { c.send(ack, pattern(1460)) }, map[Drop]uint64{TCPOutOfOrder: 10})
	c.wantRead(pattern(1460))
}

// TestTCPTakeOpensWindow: what is taken without a copy makes room as what is read does.
func TestTCPTakeOpensWindow(t *testing.T) {
	k, c := established(t, func(c *Config) { c.RcvBuf = 16 * 2048 })
	for c.tcb().rcvAdv != c.tcb().rcvNxt {
		room := c.tcb().rcvAdv - c.tcb().rcvNxt
		c.send(ack, pattern(int(min(room, 1460))))
		k.sleep(50 * ms)
		c.got()
	}
	told := false
	for c.tcb().rcvBytes > 0 {
		f, _, err := k.h.TCPTake(c.h, k.now)
		if err != 0 {
			t.Fatal(err)
		}
		k.h.Give(f)
		for _, s := range c.got() {
			told = told || s.wnd > 0
		}
	}
	if !told {
		t.Error("the peer was not told of the room")
	}
}
