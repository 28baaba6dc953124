package reactor

import (
	"fmt"
	"net/netip"
	"slices"

	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// lends are the frames that a ring's application holds: those that RECV_ZC and FRAME_GET lent, until RETURN or SEND_ZC,
// and those that SEND_ZC sent, until they are free. What the application has to know of them stands in a table in the
// registered memory, which is never read.
type lends struct {
	list  []lend
	free  uint32 // index+1 of a list through lend.next
	n     int    // free ones
	table []byte
	sent  int      // in lendSent
	done  []uint16 // sent by copying: to be told of
}

type lend struct {
	frame  umem.Frame
	next   uint32 // in the list of free ones
	gen    uint32 // so that a request knows what it began with
	state  lendState
	report bool   // its notification says whether it was copied
	user   uint64 // of the SEND_ZC
}

type lendState uint8

const (
	lendFree lendState = iota
	lendOut            // the application has it
	lendSent           // SEND_ZC took it; the Host will tell when it is free
	lendDone           // SEND_ZC copied it; it is in lends.done
)

const maxLends = 1 << 16 // what a CQE's upper half can name

func newLends(cfg *RingConfig) (lends, error) {
	n := cfg.Lends
	switch {
	case n < 0 || n > maxLends:
		return lends{}, fmt.Errorf("ring: %d lent frames; up to %d can be", n, maxLends)
	case cfg.LendTable > uint64(len(cfg.Data)) || uint64(n)*rings.LentSize > uint64(len(cfg.Data))-cfg.LendTable:
		return lends{}, fmt.Errorf("ring: a table of %d lent frames at %d of a memory of %d bytes", n, cfg.LendTable, len(cfg.Data))
	}
	l := lends{list: make([]lend, n), n: n, table: cfg.Data[cfg.LendTable:][:n*rings.LentSize], done: make([]uint16, 0, n)}
	for i := n - 1; i >= 0; i-- {
		l.list[i].next, l.free = l.free, uint32(i+1)
	}
	return l, nil
}

// add notes that a frame is lent. There is a free entry.
func (q *Ring) lend(f umem.Frame, src netip.AddrPort, next uint32) (id uint16) {
	t := &q.lends
	i := t.free - 1
	l := &t.list[i]
	t.free = l.next
	t.n--
	*l = lend{frame: f, gen: l.gen + 1, state: lendOut}
	b := q.r.pool.Buf(f)
	rings.PutLent(t.table[i*rings.LentSize:], rings.Lent{
		Addr: q.r.pool.Region().Addr(f) + uint64(b.Off), Len: uint32(b.Len), Next: next, Src: src,
	})
	return uint16(i)
}

// Lent is what the table says of frame number id, and its bytes: those that a completion of RECV_ZC or FRAME_GET lent.
func (c *RingClient) Lent(id uint16) (rings.Lent, []byte) {
	l := rings.ParseLent(c.q.lends.table[int(id)*rings.LentSize:])
	return l, c.q.r.pool.Region().Mem()[l.Addr:][:l.Len]
}

// unlend makes an entry free.
func (t *lends) unlend(id uint16) {
	l := &t.list[id]
	l.state, l.next, t.free = lendFree, t.free, uint32(id)+1
	t.n++
}

// out finds a frame that the application has.
func (t *lends) out(id uint16) *lend {
	if int(id) < len(t.list) && t.list[id].state == lendOut {
		return &t.list[id]
	}
	return nil
}

func init() {
	ops[rings.OpReturn] = operation{check: checkReturn, issue: issueReturn, instant: true}
	ops[rings.OpFrameGet] = operation{check: checkReturn, issue: issueFrameGet, instant: true}
}

func checkReturn(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.FD != 0 || s.Off != 0 || s.Addr != 0 || s.Len != 0 || s.OpFlags != 0 || s.FileIndex != 0 || s.Addr3 != 0 ||
		s.Opcode == rings.OpFrameGet && (s.BufGroup != 0 || s.Flags&rings.SQESkipSuccess != 0) {
		return sockets.EINVAL
	}
	return 0
}

// issueReturn gives back the lent frame BufGroup. Errors: ENOENT, the application does not have it.
func issueReturn(q *Ring, i uint32) verdict {
	p := q.at(i)
	l := q.lends.out(p.sqe.BufGroup)
	if l == nil {
		return p.fail(sockets.ENOENT)
	}
	q.r.host.Give(l.frame)
	q.lends.unlend(p.sqe.BufGroup)
	return done
}

// issueFrameGet lends a frame to be written. Errors: ENOBUFS.
func issueFrameGet(q *Ring, i uint32) verdict {
	p := q.at(i)
	if q.lends.n == 0 {
		return p.fail(sockets.ENOBUFS)
	}
	f, err := q.r.host.Lend(q.account)
	if err != 0 {
		return p.fail(sockets.ENOBUFS)
	}
	p.res = int32(q.r.pool.Buf(f).Len)
	p.cflags = lentFlags(q.lend(f, netip.AddrPort{}, 0))
	return done
}

func lentFlags(id uint16) uint32 { return rings.CQEBuffer | uint32(id)<<rings.CQEBufferShift }

// takeZC lends what was received. A datagram in several frames takes as many entries, linked in the table.
func (q *Ring) takeZC(p *request, k *ringSock) (n int, err sockets.Errno) {
	if k.deaf {
		return 0, 0
	}
	if q.lends.n == 0 {
		return 0, sockets.ENOBUFS
	}
	var f umem.Frame
	var src netip.AddrPort
	if k.kind == sockConnected {
		var b []byte
		if f, b, err = q.r.host.TCPTake(k.h, q.now); err != 0 || f == umem.None {
			return 0, err
		}
		n = len(b)
		_, src = q.r.host.TCPAddr(k.h)
	} else {
		d, err := sockets.Datagram{}, sockets.Errno(0)
		if f, d, err = q.r.host.UDPTake(k.h, q.lends.n); err != 0 {
			return 0, q.tooLong(k, err)
		}
		n, src = d.N, d.Src
	}
	p.cflags = lentFlags(q.lendChain(f, src))
	return n, 0
}

// tooLong deals with a datagram of more frames than can be lent: it waits until some were returned, but one that never
// could be lent goes.
func (q *Ring) tooLong(k *ringSock, err sockets.Errno) sockets.Errno {
	if err != sockets.EMSGSIZE || q.lends.n == len(q.lends.list) {
		if err == sockets.EMSGSIZE {
			q.r.host.UDPRecv(k.h, nil)
		}
		return err
	}
	return sockets.ENOBUFS
}

// lendChain lends a chain of frames and gives the first's number. Entries are made from the last on, since each names
// the one behind it.
func (q *Ring) lendChain(f umem.Frame, src netip.AddrPort) uint16 {
	next := q.r.pool.Buf(f).Next
	if next == umem.None {
		return q.lend(f, src, 0)
	}
	prev := umem.None // turn the chain round
	for f != umem.None {
		b := q.r.pool.Buf(f)
		f, prev, b.Next = b.Next, f, prev
	}
	id, link := uint16(0), uint32(0)
	for f = prev; f != umem.None; f = q.r.pool.Buf(f).Next {
		id = q.lend(f, src, link)
		link = uint32(id) + 1
	}
	return id
}

// tell is by what the Host names a frame that q sent.
func (q *Ring) tell(id uint16) uint32 { return uint32(q.tag)<<16 | uint32(id) }

// ringTag gives a tag that no ring has; 0 is nobody's.
func (r *Reactor) ringTag() uint16 {
	for {
		if r.tag++; r.tag != 0 && r.tagged[r.tag] == nil {
			return r.tag
		}
	}
}

// sending reports whether a lent frame is with the device, whose completion wakes nobody.
func (r *Reactor) sending() bool {
	return r.inTX > 0 && slices.ContainsFunc(r.rings, func(q *Ring) bool { return q.lends.sent > 0 })
}

// tellFreed notifies the rings of frames that became free.
func (r *Reactor) tellFreed() {
	r.freed = r.host.TakeFreed(r.freed[:0])
	for _, tell := range r.freed {
		if q := r.tagged[uint16(tell>>16)]; q != nil {
			q.lends.sent--
			q.notify(uint16(tell), 0)
		}
	}
}

// notify completes a SEND_ZC for the second time: its frame is free.
func (q *Ring) notify(id uint16, res int32) {
	l := &q.lends.list[id]
	if !l.report {
		res = 0
	}
	q.post(rings.CQE{UserData: l.user, Res: res, Flags: rings.CQENotif})
	q.lends.unlend(id)
}

// notifyCopied does so for what was copied.
func (q *Ring) notifyCopied() {
	for _, id := range q.lends.done {
		q.notify(id, rings.NotifCopied)
	}
	q.lends.done = q.lends.done[:0]
}

// freeLends takes all frames back: those that are being sent go on without anybody who waits for them.
func (q *Ring) freeLends() {
	q.r.tellFreed()
	q.notifyCopied()
	for id := range q.lends.list {
		switch l := &q.lends.list[id]; l.state {
		case lendOut:
			q.r.host.Give(l.frame)
			q.lends.unlend(uint16(id))
		case lendSent:
			q.r.host.Untell(l.frame)
			q.lends.sent--
			q.lends.unlend(uint16(id))
		}
	}
}
