package sockets

import "xdpd/umem"

// check compares what the Host keeps twice: its counts, its lists, and the ledger.
func (k *kit) check() {
	k.t.Helper()
	h := k.h
	rx, rxLimit, tx, txLimit := h.Held()
	if rx < 0 || rx > rxLimit || tx < 0 || tx > txLimit {
		k.t.Errorf("held %d of %d and %d of %d", rx, rxLimit, tx, txLimit)
	}
	got := k.pool.Ledger().Counts()
	want := k.owned()
	if k.others != nil {
		for o, n := range k.others() {
			want[o] += n
		}
	}
	if got != want {
		k.t.Errorf("ledger %v, want %v (by owner: free, fill, rx, held, lent, tx, comp)", got, want)
	}
	k.checkAccounts()
	held := k.checkNeighbours() + k.checkFragments() + k.checkUDP() + k.checkTCP()
	// What is in no list waits in the output queue or is with the device.
	queued := h.TxPending() + len(k.device)
	if held > rx+tx || held+queued < rx+tx {
		k.t.Errorf("%d frames in lists, %d queued or sent; %d and %d are counted", held, queued, rx, tx)
	}
}

// checkAccounts compares what accounts hold with the frames and sockets that are charged to them.
func (k *kit) checkAccounts() {
	t := &k.h.accounts
	frames, socks := make([]int, len(t.list)+1), make([]int, len(t.list)+1)
	for _, a := range t.of {
		frames[a]++
	}
	for i, a := range t.conns {
		if socks[a]++; a != 0 && !k.h.tcp.at(uint32(i)).used {
			k.t.Errorf("connection %d is none, and charged to account %d", i, a)
		}
	}
	for i := range k.h.udp.socks {
		if u := &k.h.udp.socks[i]; u.used {
			socks[u.account]++
		}
	}
	for i := range k.h.tcp.listeners {
		if l := &k.h.tcp.listeners[i]; l.used {
			socks[l.account]++
		}
	}
	if t.payer != 0 {
		k.t.Errorf("account %d pays for nobody", t.payer)
	}
	for i := range t.list {
		c := &t.list[i]
		if i > 0 && (c.RX < 0 || c.RX > c.RXLimit || c.TX < 0 || c.RX+c.TX != frames[i] || c.socks != socks[i] || c.used != (c.RXLimit > 0)) {
			k.t.Errorf("account %d: %+v, with %d frames and %d sockets", i, c, frames[i], socks[i])
		}
	}
}

// chain counts the frames and bytes of a list.
func (k *kit) chain(f umem.Frame) (frames, bytes int) {
	for ; f != umem.None; f = k.pool.Buf(f).Next {
		frames++
		bytes += int(k.pool.Buf(f).Len)
		if frames > k.pool.Total() {
			k.t.Fatal("a list of frames runs in a circle")
		}
	}
	return frames, bytes
}

func (k *kit) checkNeighbours() int {
	t, sum, n := &k.h.neigh, 0, 0
	for i := range t.entries {
		e := &t.entries[i]
		if e.state == neighUnused {
			continue
		}
		n++
		frames := 0
		for f := e.head; f != umem.None; f = umem.Frame(k.pool.Buf(f).Aux) {
			n, _ := k.chain(f)
			if frames += n; frames > k.pool.Total() {
				k.t.Fatal("a queue of packets runs in a circle")
			}
		}
		if frames != int(e.waiting) || frames > 0 && e.state != neighIncomplete {
			k.t.Errorf("neighbour %v in state %d: %d packets, %d counted", e.addr, e.state, frames, e.waiting)
		}
		if running := k.h.timers.running(e.timer); running == (e.state == neighStale) && !k.h.cfg.KernelNeighbours {
			k.t.Errorf("neighbour %v in state %d: timer runs %v", e.addr, e.state, running)
		}
		sum += frames
	}
	if sum != t.waiting || n != t.index.n || n+len(t.free) != neighMax {
		k.t.Errorf("neighbours: %d packets of %d, %d entries of %d, %d free", sum, t.waiting, n, t.index.n, len(t.free))
	}
	return sum
}

func (k *kit) checkFragments() int {
	t, sum, n := &k.h.frags, 0, 0
	for i := range t.entries {
		e := &t.entries[i]
		if !e.used {
			continue
		}
		n++
		frames, bytes := k.chain(e.head)
		if frames != int(e.frames) || bytes != e.have || e.dead && frames > 0 || !k.h.timers.running(e.timer) {
			k.t.Errorf("reassembly: %d pieces with %d bytes, %d and %d counted, dead %v", frames, bytes, e.pieces, e.have, e.dead)
		}
		sum += frames
	}
	if sum != t.frames || n != t.index.n || sum > k.h.rxLimit/4 {
		k.t.Errorf("reassembly: %d frames of %d, %d datagrams of %d", sum, t.frames, n, t.index.n)
	}
	return sum
}

func (k *kit) checkUDP() int {
	t, sum, n, connected, specific := &k.h.udp, 0, 0, 0, 0
	for i := range t.socks {
		u := &t.socks[i]
		if !u.used {
			continue
		}
		n++
		if u.connected {
			connected++
		} else if u.key.Local != 0 {
			specific++
		}
		frames, datagrams := 0, 0
		for f := u.head; f != umem.None; f = umem.Frame(k.pool.Buf(f).Aux) {
			c, _ := k.chain(f)
			frames += c
			if datagrams++; datagrams > k.pool.Total() {
				k.t.Fatal("a queue of datagrams runs in a circle")
			}
		}
		if datagrams != u.datagrams || frames*k.pool.Region().ChunkSize() != u.bytes {
			k.t.Errorf("UDP socket %d: %d datagrams in %d frames, %d and %d bytes counted", i, datagrams, frames, u.datagrams, u.bytes)
		}
		if j, ok := t.flows.get(u.key); !ok || int(j) != i {
			k.t.Errorf("UDP socket %d is not found by its key", i)
		}
		sum += frames
	}
	if n != t.flows.n || connected != t.connected || specific != t.specific {
		k.t.Errorf("UDP: %d sockets, %d in the table, %d connected of %d, %d with an address of %d",
			n, t.flows.n, connected, t.connected, specific, t.specific)
	}
	return sum
}

func (k *kit) checkTCP() int {
	t, sum, live, moving := &k.h.tcp, 0, 0, 0
	dirty, half := map[uint32]bool{}, map[uint32]int{}
	for _, i := range t.dirty {
		if dirty[i] {
			k.t.Errorf("connection %d is listed for output twice", i)
		}
		dirty[i] = true
	}
	t.each(func(i uint32, c *tcb) {
		if c.dirty != dirty[i] {
			k.t.Errorf("connection %d: dirty is %v", i, c.dirty)
		}
		if c.state != tcpClosed {
			live++
			if kind, j := t.flows.get(c.key); kind != demuxTCB || j != i {
				k.t.Errorf("connection %d is not found by its key", i)
			}
		}
		if c.active != 0 {
			moving++
		}
		sum += k.checkConn(i, c)
	})
	halves := 0
	for n := range t.half.lists {
		for at := t.half.lists[n].head; at != 0; at = t.half.at(at - 1).link.next {
			r := t.half.at(at - 1)
			half[r.listener]++
			halves++
			if kind, j := t.flows.get(r.key); kind != demuxHalf || j != at-1 || int(r.retries) != n {
				k.t.Errorf("half-open connection %d is not found by its key, or in the wrong list", at-1)
			}
		}
	}
	waits := 0
	for at := t.tw.list.head; at != 0; at = t.tw.at(at - 1).link.next {
		waits++
		if kind, j := t.flows.get(t.tw.at(at - 1).key); kind != demuxTW || j != at-1 {
			k.t.Errorf("TIME-WAIT record %d is not found by its key", at-1)
		}
	}
	for i := range t.listeners {
		if l := &t.listeners[i]; l.used && (l.half != half[uint32(i)] || l.ready.n > k.h.cfg.Backlog) {
			k.t.Errorf("listener %d: %d half-open, %d counted, %d ready", i, half[uint32(i)], l.half, l.ready.n)
		}
	}
	if live != t.conns || live+halves+waits != t.flows.n || live > k.h.cfg.MaxConns {
		k.t.Errorf("TCP: %d connections, %d counted, %d in the table", live, t.conns, t.flows.n)
	}
	if moving != t.act.n || halves != t.half.n || waits != t.tw.n {
		k.t.Errorf("TCP: %d of %d active records, %d of %d half-open, %d of %d in TIME-WAIT",
			moving, t.act.n, halves, t.half.n, waits, t.tw.n)
	}
	return sum
}

// checkConn checks one connection and gives the frames in its queues.
func (k *kit) checkConn(i uint32, c *tcb) int {
	name := tcpStateNames[c.state]
	rcvFrames, rcvBytes := k.chain(c.rcvHead)
	sndFrames, sndBytes := k.chain(c.sndHead)
	if rcvBytes != int(c.rcvBytes) || sndBytes != int(c.sndBytes) || sndFrames != int(c.sndFrames) {
		k.t.Errorf("connection %d in %s: %d bytes in %d frames received, %d counted; %d in %d to send, %d and %d counted",
			i, name, rcvBytes, rcvFrames, c.rcvBytes, sndBytes, sndFrames, c.sndBytes, c.sndFrames)
	}
	if rcvBytes > k.h.cfg.RcvBuf+127 || sndBytes > k.h.cfg.SndBuf+int(c.mssMax) {
		k.t.Errorf("connection %d in %s: %d bytes received, %d to send: over the limit", i, name, rcvBytes, sndBytes)
	}
	if c.state == tcpClosed {
		if sndFrames > 0 || c.active != 0 || c.timer != 0 {
			k.t.Errorf("connection %d is closed and has %d frames to send", i, sndFrames)
		}
		return rcvFrames
	}
	if !seqLE(c.sndUna, c.sndNxt) || !seqLE(c.rcvNxt, c.rcvAdv) {
		k.t.Errorf("connection %d in %s: UNA %d NXT %d; RCV.NXT %d, edge %d", i, name, c.sndUna, c.sndNxt, c.rcvNxt, c.rcvAdv)
	}
	if c.sndUna != c.sndNxt && c.rtxAt == 0 {
		k.t.Errorf("connection %d in %s: data in flight and no timer", i, name)
	}
	x := k.h.activeOf(c)
	due := c.rtxAt != 0 || c.ackAt != 0 || c.idleAt != 0 || x != nil
	if due && (c.timer == 0 || !k.h.timers.running(c.timer)) && !c.dirty {
		k.t.Errorf("connection %d in %s: a deadline and no timer", i, name)
	}
	if c.state == tcpTimeWait && c.idleAt == 0 {
		k.t.Errorf("connection %d stays in TIME-WAIT", i)
	}
	if c.rcvFIN != (c.state >= tcpCloseWait) {
		k.t.Errorf("connection %d in %s: rcvFIN is %v", i, name, c.rcvFIN)
	}
	if x == nil {
		if sndFrames > 0 && c.sndUna != c.sndNxt {
			k.t.Errorf("connection %d in %s: %d frames to send and no active record", i, name, sndFrames)
		}
		return rcvFrames + sndFrames
	}
	k.checkScore(i, c, x)
	return rcvFrames + sndFrames + k.checkOFO(i, c, x)
}

// checkScore compares the scoreboard's sums with the frames.
func (k *kit) checkScore(i uint32, c *tcb, x *active) {
	var sacked, sackedFrames, lost, again, toSend uint32
	seq, sent := c.sndUna, true
	for f := c.sndHead; f != umem.None; f = k.pool.Buf(f).Next {
		b := k.pool.Buf(f)
		if f == c.sndNext {
			if sent = false; seq != c.sndNxt {
				k.t.Errorf("connection %d: the next frame begins at %d, NXT is %d", i, seq, c.sndNxt)
			}
		}
		if b.Seq != seq || (b.Flags&bufSent != 0) != sent {
			k.t.Errorf("connection %d: a frame of number %d, want %d; flags %#x, sent %v", i, b.Seq, seq, b.Flags, sent)
		}
		n := uint32(b.Len)
		if b.Flags&bufFIN != 0 {
			n++
		}
		seq += n
		if b.Flags&bufSacked != 0 {
			sacked += n
			sackedFrames++
		}
		if b.Flags&bufLost != 0 {
			lost += n
			if b.Flags&bufAgain == 0 {
				toSend++
			}
		}
		if b.Flags&bufAgain != 0 {
			again += n
		}
	}
	if sent && c.sndHead != umem.None && seq != c.sndNxt {
		k.t.Errorf("connection %d: all frames are sent, the last ends at %d, NXT is %d", i, seq, c.sndNxt)
	}
	if sacked != x.sacked || sackedFrames != x.sackedFrames || lost != x.lost || again != x.again || toSend != x.toSend {
		k.t.Errorf("connection %d: %d sacked in %d frames, %d lost, %d again, %d to send; counted %d, %d, %d, %d, %d", i,
			sacked, sackedFrames, lost, again, toSend, x.sacked, x.sackedFrames, x.lost, x.again, x.toSend)
	}
}

// checkOFO checks the frames that came before their turn and gives their number.
func (k *kit) checkOFO(i uint32, c *tcb, x *active) int {
	frames, bytes := k.chain(x.ofoHead)
	end, last := c.rcvNxt, umem.None
	for f := x.ofoHead; f != umem.None; f = k.pool.Buf(f).Next {
		b := k.pool.Buf(f)
		if seqLT(b.Seq, end) || b.Seq == c.rcvNxt {
			k.t.Errorf("connection %d: out of order %d after %d, RCV.NXT is %d", i, b.Seq, end, c.rcvNxt)
		}
		end, last = b.Seq+uint32(b.Len), f
	}
	if frames != int(x.ofoFrames) || bytes != int(x.ofoBytes) || last != x.ofoTail {
		k.t.Errorf("connection %d: %d bytes in %d frames out of order, %d and %d counted", i, bytes, frames, x.ofoBytes, x.ofoFrames)
	}
	return frames
}
