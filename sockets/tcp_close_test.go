package sockets

import (
	"testing"
)

// states builds a connection in each state that an accepted one can be in. The peer's ack is up to date.
var states = map[string]struct {
	state tcpState
	reach func(c conn)
}{
	"ESTABLISHED": {tcpEstablished, func(c conn) {}},
	"FIN-WAIT-1":  {tcpFinWait1, func(c conn) { c.shutdown() }},
	"FIN-WAIT-2":  {tcpFinWait2, func(c conn) { c.shutdown(); c.ackAll() }},
	"CLOSE-WAIT":  {tcpCloseWait, func(c conn) { c.send(fin|ack, nil); c.got() }},
	"CLOSING":     {tcpClosing, func(c conn) { c.shutdown(); c.simultaneousFIN() }},
	"LAST-ACK":    {tcpLastAck, func(c conn) { c.send(fin|ack, nil); c.got(); c.shutdown() }},
	"TIME-WAIT":   {tcpTimeWait, func(c conn) { c.shutdown(); c.send(fin|ack, nil); c.got() }},
}

// shutdown sends our FIN; the peer sees it.
func (c conn) shutdown() {
	c.k.t.Helper()
	if err := c.k.h.TCPShutdown(c.h, c.k.now); err != 0 {
		c.k.t.Fatalf("TCPShutdown: %v", err)
	}
	wantSeg(c.k.t, c.one(), fin|ack, c.ack-1, c.seq, nil)
}

// simultaneousFIN sends the peer's FIN as if ours had not arrived.
func (c conn) simultaneousFIN() {
	c.k.t.Helper()
	s := c.seg(fin|ack, nil)
	s.ack--
	c.inject(s)
	c.seq++
	wantSeg(c.k.t, c.one(), ack, c.ack, c.seq, nil)
}

func inState(t *testing.T, name string) (*kit, conn) {
	t.Helper()
	k, c := established(t)
	states[name].reach(c)
	c.wantState(states[name].state)
	k.events()
	return k, c
}

// TestTCPActiveClose: FIN-WAIT-1, FIN-WAIT-2, TIME-WAIT, and after 60 s nothing.
func TestTCPActiveClose(t *testing.T) {
	k, c := established(t)
	c.shutdown()
	c.wantState(tcpFinWait1)
	c.ackAll()
	c.wantState(tcpFinWait2)
	c.send(psh|ack, []byte("half open"))
	c.wantRead([]byte("half open"))
	k.sleep(100 * second) // an owner may read for as long as he likes
	c.got()
	c.wantState(tcpFinWait2)
	c.send(fin|ack, nil)
	wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
	c.wantState(tcpTimeWait)
	c.wantEOF(0)
	if r := k.h.Ready(c.h); r&(In|RdHup|Hup) != In|RdHup|Hup {
		t.Errorf("ready for %#x", r)
	}
	k.h.Close(c.h, k.now)
	c.wantTimeWait(1) // without its owner it needs no whole record
	k.sleep(59 * second)
	c.wantTimeWait(1)
	k.sleep(2 * second)
	c.wantTimeWait(0)
	c.none()
}

// wantTimeWait expects so many compact records of connections in TIME-WAIT.
func (c conn) wantTimeWait(n int) {
	c.k.t.Helper()
	c.k.h.Flush(c.k.now)
	if !c.gone() || c.k.h.tcp.tw.n != n {
		c.k.t.Fatalf("%d records in TIME-WAIT, want %d; the connection's own is gone: %v", c.k.h.tcp.tw.n, n, c.gone())
	}
}

// TestTCPPassiveClose: CLOSE-WAIT, in which we may write, LAST-ACK, and nothing.
func TestTCPPassiveClose(t *testing.T) {
	k, c := established(t)
	c.send(fin|psh|ack, []byte("bye"))
	wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
	c.wantState(tcpCloseWait)
	if r := k.h.Ready(c.h); r != In|Out|RdHup {
		t.Errorf("ready for %#x", r)
	}
	c.wantRead([]byte("bye"))
	c.wantEOF(0)
	c.write([]byte("still writing"))
	wantSeg(t, c.one(), ack, c.ack-13, c.seq, []byte("still writing"))
	c.ackAll()
	k.h.Close(c.h, k.now)
	c.wantState(tcpLastAck)
	wantSeg(t, c.one(), fin|ack, c.ack-1, c.seq, nil)
	c.ackAll()
	c.none()
	if !c.gone() {
		t.Error("still there after the last ACK")
	}
}

// TestTCPSimultaneousClose: CLOSING, then TIME-WAIT.
func TestTCPSimultaneousClose(t *testing.T) {
	k, c := inState(t, "CLOSING")
	c.ackAll()
	c.wantState(tcpTimeWait)
	c.none()
	k.h.Close(c.h, k.now)
	k.sleep(61 * second)
	if !c.gone() {
		t.Error("still there after TIME-WAIT")
	}
}

// TestTCPFINWithData: a FIN behind data that waits goes behind the data; the peer's ACKs of each count.
func TestTCPFINWithData(t *testing.T) {
	k, c := established(t)
	c.wnd = 1000
	c.ackAll()
	c.write(pattern(1500))
	k.h.Close(c.h, k.now)
	c.wantState(tcpFinWait1)
	k.sleep(second)
	for range 20 {
		c.got()
		c.ackAll()
		k.sleep(second)
	}
	if c.ack != c.irs+1+1501 {
		t.Fatalf("%d bytes and FIN of 1501 came", c.ack-c.irs-1)
	}
	c.ackAll()
	c.wantState(tcpFinWait2)
	c.send(fin|ack, nil)
	c.got()
	c.wantTimeWait(1)
}

// TestTCPFINAgain: a FIN that was lost is sent again with back-off, and one that comes again is acknowledged again.
func TestTCPFINAgain(t *testing.T) {
	for _, name := range []string{"FIN-WAIT-1", "LAST-ACK", "CLOSING"} {
		k, c := inState(t, name)
		for range 3 {
			k.sleep(10 * second)
			got := c.got()
			if len(got) == 0 {
				t.Fatalf("%s: the FIN is not sent again", name)
			}
			for _, s := range got {
				wantSeg(t, s, fin|ack, c.ack-1, c.seq, nil)
			}
		}
		k.sleep(2000 * second)
		c.got()
		c.wantEOF(ETIMEDOUT)
	}
	for _, name := range []string{"CLOSE-WAIT", "LAST-ACK", "CLOSING", "TIME-WAIT"} {
		k, c := inState(t, name)
		s := c.seg(fin|ack, nil)
		s.seq--
		s.ack = c.irs + 1
		k.wantDrops(func() { c.inject(s) }, map[Drop]uint64{TCPDuplicate: 1})
		wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
		c.wantState(states[name].state)
	}
}

// TestTCPTimeWait: a FIN that comes again restarts the minute, RSTs do not end it (RFC 1337), data is refused.
func TestTCPTimeWait(t *testing.T) {
	k, c := inState(t, "TIME-WAIT")
	k.h.Close(c.h, k.now)
	again := c.seg(fin|ack, nil)
	again.seq--
	for range 3 {
		k.sleep(50 * second)
		c.inject(again)
		wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
		c.wantTimeWait(1)
	}
	for _, off := range []uint32{0, 5} {
		s := c.seg(rst, nil)
		s.seq += off
		c.inject(s)
		c.got()
		c.wantTimeWait(1)
	}
	k.wantDrops(func() { c.inject(c.seg(psh|ack, []byte("late"))) }, map[Drop]uint64{TCPOutOfWindow: 1})
	wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
	k.sleep(59 * second)
	c.wantTimeWait(1)
	k.sleep(2 * second)
	c.wantTimeWait(0)
}

// TestTCPTimeWaitReuse: a SYN that is newer by sequence number or timestamp opens a new connection; others do not.
func TestTCPTimeWaitReuse(t *testing.T) {
	for name, c := range map[string]struct {
		off   int32
		ts    int32 // added to the last timestamp, if not 0
		flags uint8
		ok    bool
	}{
		"newer number":                {1, 0, syn, true},
		"much newer number":           {1 << 30, 0, syn, true},
		"the next number":             {0, 0, syn, false},
		"older number":                {-1, 0, syn, false},
		"older number, newer time":    {-1000, 1, syn, true},
		"older number, the same time": {-1000, 0, syn, false},
		"older number, older time":    {-1000, -1, syn, false},
		"newer number, RST":           {1, 0, syn | rst, false},
		"newer number, FIN":           {1, 0, syn | fin, false},
		"newer number, ACK":           {1, 0, syn | ack, false},
	} {
		t.Run(name, func(t *testing.T) {
			k, old := tsConn(t)
			states["TIME-WAIT"].reach(old)
			old.wantState(tcpTimeWait)
			s := old.seg(c.flags, nil)
			s.seq = uint32(int32(old.seq) + c.off)
			s.opts = concat(optMSS(1460), optTS(uint32(int32(old.tsval)+c.ts), 0))
			old.inject(s)
			got := k.seen()
			opened := len(got) == 1 && got[0].tcp.flags == syn|ack && got[0].tcp.ack == s.seq+1
			if opened != c.ok {
				t.Fatalf("answered with %+v; opened %v, want %v", got, opened, c.ok)
			}
			if !c.ok {
				old.wantState(tcpTimeWait)
				return
			}
			old.wantEOF(0) // who has the old handle sees the old connection's end
			p := newPeer(k, svc, 1000)
			p.seq, p.irs, p.ack = s.seq+1, got[0].tcp.seq, got[0].tcp.seq+1
			p.ts, p.tsval = true, old.tsval+5
			p.send(psh|ack, []byte("new"))
			h, err := k.h.TCPAccept(old.l)
			if err != 0 || h == old.h {
				t.Fatalf("TCPAccept = %#x, %v", h, err)
			}
			conn{tpeer: p, h: h}.wantRead([]byte("new"))
		})
	}
}

// TestTCPRST: RFC 5961 3.2: only the very next number resets; another in the window is challenged; outside nothing happens.
func TestTCPRST(t *testing.T) {
	for name, st := range states {
		if st.state == tcpTimeWait {
			continue
		}
		t.Run(name, func(t *testing.T) {
			k, c := inState(t, name)
			for _, off := range []uint32{1, 1000, 60_000} {
				s := c.seg(rst|ack, nil)
				s.seq += off
				c.tcb().challenge = 0 // as if the last one were long ago
				k.wantDrops(func() { c.inject(s) }, map[Drop]uint64{TCPOutOfWindow: 1})
				if got := c.got(); len(got) != 1 || got[0].flags != ack || got[0].ack != c.seq {
					t.Fatalf("RST %d beyond: answered with %+v, want a challenge", off, got)
				}
				c.wantState(st.state)
			}
			for _, off := range []uint32{0xffffffff, 1 << 30, 1 << 31} {
				s := c.seg(rst|ack, nil)
				s.seq += off
				c.inject(s)
				c.none()
				c.wantState(st.state)
			}
			k.wantDrops(func() { c.inject(c.seg(rst, nil)) }, nil) // with or without ACK
			c.none()
			c.wantState(tcpClosed)
			if got := k.events(); got[c.h]&(In|Out|Err|Hup|RdHup) != In|Out|Err|Hup|RdHup {
				t.Errorf("events %v", got)
			}
			c.wantEOF(ECONNRESET)
		})
	}
}

// TestTCPSYNInConnection: RFC 5961 4.2: a SYN in the window or outside it is challenged in every state.
func TestTCPSYNInConnection(t *testing.T) {
	for name, st := range states {
		for _, off := range []uint32{0, 1, 0xffffffff, 1 << 31} {
			if st.state == tcpTimeWait && off != 0 && int32(off) != -1 {
				continue // newer: TestTCPTimeWaitReuse
			}
			k, c := inState(t, name)
			s := c.seg(syn, nil)
			s.seq += off
			c.inject(s)
			if got := c.got(); len(got) != 1 || got[0].flags != ack || got[0].ack != c.seq {
				t.Errorf("%s, SYN at %+d: answered with %+v, want a challenge", name, int32(off), got)
			}
			c.wantState(st.state)
			if k.h.counters.Stats[TCPChallenges] != 1 {
				t.Errorf("%s: %d challenges counted", name, k.h.counters.Stats[TCPChallenges])
			}
		}
	}
}

// TestTCPBadACK: RFC 9293 3.10.7.4 and RFC 5961 5.2: an ACK of what was never sent, or of very long ago, is challenged and
// its data not taken; one that is merely old is harmless.
func TestTCPBadACK(t *testing.T) {
	for name, st := range states {
		k, c := inState(t, name)
		for _, off := range []uint32{1, 1 << 30, 1 << 31, ^uint32(1<<20 - 1)} {
			s := c.seg(ack, []byte("x"))
			s.ack += off
			c.tcb().challenge = 0
			k.wantDrops(func() { c.inject(s) }, map[Drop]uint64{TCPOutOfWindow: 1})
			if got := c.got(); len(got) != 1 || got[0].flags != ack || got[0].ack != c.seq {
				t.Errorf("%s, ACK %+d: answered with %+v, want a challenge", name, int32(off), got)
			}
			c.wantState(st.state)
		}
		s := c.seg(ack, nil)
		s.ack -= 100
		k.wantDrops(func() { c.inject(s) }, nil)
		c.none()
		c.wantState(st.state)
	}
}

// TestTCPChallengeLimit: one connection's challenges are half a second apart and all connections' together a thousand a
// second, but data that comes twice is answered always: a peer whose ACKs were lost depends on it.
func TestTCPChallengeLimit(t *testing.T) {
	k, c := established(t)
	for range 3 {
		for i := range 500 {
			s := c.seg(ack, nil)
			s.seq += 1 << 30
			c.inject(s)
			if n := len(c.got()); n != 0 && i > 0 || n != 1 && i == 0 {
				t.Errorf("junk %d: %d answers", i, n)
			}
		}
		k.sleep(challengeMS * ms)
	}
	c.send(ack, []byte("data"))
	c.got()
	for range 50 {
		s := c.seg(ack, []byte("data"))
		s.seq -= 4
		c.inject(s)
		wantSeg(t, c.one(), ack, c.ack, c.seq, nil)
	}
	var peers []*tpeer
	for i := range uint16(300) {
		peers = append(peers, dial(k, svc, 2000+i))
	}
	k.sent()
	sent := 0
	for _, p := range peers {
		s := p.seg(ack, nil)
		s.seq += 1 << 30
		p.inject(s)
		sent += len(p.got())
	}
	if sent < 60 || sent > 100 {
		t.Errorf("%d challenges at once, want no more than 100", sent)
	}
}

// TestTCPDataAfterFIN: in no state after the peer's FIN is data taken.
func TestTCPDataAfterFIN(t *testing.T) {
	for _, name := range []string{"CLOSE-WAIT", "CLOSING", "LAST-ACK", "TIME-WAIT"} {
		k, c := inState(t, name)
		s := c.seg(psh|ack, []byte("after FIN"))
		s.ack = c.irs + 1
		k.wantDrops(func() { c.inject(s) }, map[Drop]uint64{TCPDuplicate: 1})
		if got := c.got(); len(got) != 1 || got[0].ack != c.seq {
			t.Errorf("%s: answered with %+v", name, got)
		}
		c.wantEOF(0)
	}
}

// TestTCPCloseUnread: a close that leaves data unread resets (RFC 2525 2.17).
func TestTCPCloseUnread(t *testing.T) {
	for _, name := range []string{"ESTABLISHED", "FIN-WAIT-1", "FIN-WAIT-2"} {
		k, c := inState(t, name)
		s := c.seg(psh|ack, []byte("unread"))
		if name == "FIN-WAIT-1" {
			s.ack--
		}
		c.inject(s)
		c.seq += 6
		k.sleep(50 * ms)
		c.got()
		k.h.Close(c.h, k.now)
		wantSeg(t, c.one(), rst|ack, c.ack, c.seq, nil)
		if !c.gone() || k.h.rxUsed != 0 {
			t.Errorf("%s: gone %v, %d frames held", name, c.gone(), k.h.rxUsed)
		}
	}
	k, c := established(t) // read in part, and with the peer's FIN
	c.send(fin|psh|ack, []byte("unread"))
	k.h.TCPRead(c.h, make([]byte, 5), k.now)
	c.got()
	k.h.Close(c.h, k.now)
	wantSeg(t, c.one(), rst|ack, c.ack, c.seq, nil)
}

// TestTCPDataForNobody: data for a connection whose owner has closed it is answered with RST (RFC 1122 4.2.2.13).
func TestTCPDataForNobody(t *testing.T) {
	for _, acked := range []bool{false, true} {
		k, c := established(t)
		k.h.Close(c.h, k.now)
		wantSeg(t, c.one(), fin|ack, c.ack-1, c.seq, nil)
		if acked {
			c.ackAll()
			c.wantState(tcpFinWait2)
		}
		s := c.seg(psh|ack, []byte("anybody?"))
		if !acked {
			s.ack--
		}
		k.wantDrops(func() { c.inject(s) }, map[Drop]uint64{TCPClosed: 1})
		wantSeg(t, c.one(), rst, s.ack, 0, nil)
		if !c.gone() {
			t.Error("still there")
		}
	}
}

// TestTCPOrphanFinWait2: without an owner FIN-WAIT-2 ends after 60 s, whenever the owner left.
func TestTCPOrphanFinWait2(t *testing.T) {
	for _, late := range []bool{false, true} {
		k, c := established(t)
		if late {
			c.shutdown()
			c.ackAll()
			k.sleep(1000 * second)
			c.wantState(tcpFinWait2)
			k.h.Close(c.h, k.now)
		} else {
			k.h.Close(c.h, k.now)
			c.got()
			c.ackAll()
		}
		k.sleep(59 * second)
		c.wantState(tcpFinWait2)
		k.sleep(2 * second)
		if !c.gone() {
			t.Error("still there after a minute")
		}
	}
}

// TestTCPAbort sends RST in every state but the last, and frees everything at once.
func TestTCPAbort(t *testing.T) {
	for name, st := range states {
		k, c := inState(t, name)
		if st.state == tcpEstablished || st.state == tcpCloseWait {
			c.write(pattern(5000))
		}
		if err := k.h.TCPAbort(c.h, k.now); err != 0 {
			t.Fatalf("%s: %v", name, err)
		}
		if err := k.h.TCPAbort(c.h, k.now); err != EBADF {
			t.Errorf("%s: again %v", name, err)
		}
		got := c.got()
		if st.state == tcpTimeWait {
			if len(got) != 0 {
				t.Errorf("%s: sent %+v", name, got)
			}
		} else if len(got) != 1 || got[0].flags != rst|ack || got[0].ack != c.seq {
			t.Errorf("%s: sent %+v, want RST", name, got)
		}
		if k.h.txUsed != 0 || k.h.tcp.conns != 0 {
			t.Errorf("%s: %d frames held, %d connections", name, k.h.txUsed, k.h.tcp.conns)
		}
	}
}

// TestTCPFINFullWindow: a FIN is taken behind data that fills the window to the last byte, and what comes then is still
// judged by its sequence number.
func TestTCPFINFullWindow(t *testing.T) {
	for _, with := range []bool{true, false} {
		k, c := established(t, smallWindow)
		for {
			n := min(1460, c.tcb().rcvAdv-c.seq)
			last := n == c.tcb().rcvAdv-c.seq
			if last && with {
				c.send(fin|ack, pattern(int(n)))
				break
			}
			c.send(ack, pattern(int(n)))
			c.sent()
			if c.tcb().rcvAdv == c.seq {
				c.send(fin|ack, nil)
				break
			}
		}
		c.got()
		c.wantState(tcpCloseWait)
		for _, off := range []uint32{1, 1000, 1 << 30, 1 << 31, 0xffffffff} {
			s := c.seg(rst, nil)
			s.seq += off
			k.wantDrops(func() { c.inject(s) }, map[Drop]uint64{map[bool]Drop{true: TCPDuplicate, false: TCPOutOfWindow}[off>>31 != 0]: 1})
			c.none() // outside the window: not even a challenge
			c.wantState(tcpCloseWait)
		}
		if len(c.read()) < 8192 {
			t.Error("data is missing")
		}
		c.wantEOF(0)
	}
}

// TestTCPInfo: what a person is told.
func TestTCPInfo(t *testing.T) {
	k, c := established(t)
	c.send(psh|ack, []byte("five!"))
	c.write([]byte("seven!!"))
	infos := k.h.TCPSockets()
	if len(infos) != 2 || infos[0].State != "LISTEN" || infos[0].Local != port(0, svc) {
		t.Fatalf("TCPSockets = %+v", infos)
	}
	i := infos[1]
	if i.State != "ESTABLISHED" || i.Local != port(usIP, svc) || i.Remote != port(peerIP, 1000) || i.SendQueue != 7 ||
		i.RecvQueue != 5 || i.Cwnd < 14600 {
		t.Errorf("TCPSockets = %+v", i)
	}
	if !k.h.Unsent() {
		t.Error("Unsent is false with seven bytes to send")
	}
	c.got()
	if !k.h.Unsent() {
		t.Error("Unsent is false with seven bytes unacknowledged")
	}
	c.ackAll()
	c.got()
	k.events()
	if k.h.Unsent() {
		t.Error("Unsent is true with nothing to send")
	}
	for name, st := range states {
		k, c := inState(t, name)
		if got := k.h.TCPSockets()[1].State; got != name || tcpStateNames[st.state] != name {
			t.Errorf("state %q, want %q", got, name)
		}
		c.got()
	}
}

// TestTCPICMPErrors: RFC 5927: an ICMP error ends nothing, whatever it quotes.
func TestTCPICMPErrors(t *testing.T) {
	k, c := established(t)
	c.write([]byte("data"))
	s := c.one()
	for _, off := range []uint32{0, 3, 4, 1 << 30, 0xffffffff} {
		q := s
		q.seq += off
		want := map[Drop]uint64{ICMPIgnored: 1}
		if off < 4 { // in flight
			want = nil
		}
		p := ipPacket{src: usIP, dst: peerIP, proto: 6, body: q.bytes(usIP, peerIP)}
		k.wantDrops(func() { k.inject(quoting(3, 1, p).frame()) }, want)
		c.wantState(tcpEstablished)
		if _, err := k.h.TCPRead(c.h, make([]byte, 1), k.now); err != EAGAIN {
			t.Errorf("TCPRead: %v", err)
		}
	}
}
