package reactor

import (
	"xdpd/rings"
	"xdpd/sockets"
)

// Provided buffers: groups of buffers in the registered memory, of which a request with SQEBufferSelect takes one when
// there is something to put into it.

// maxGroups bounds the groups of a ring.
const maxGroups = 1024

func init() {
	ops[rings.OpBufRing] = operation{check: checkBufRing, issue: issueBufRing, instant: true}
}

func checkBufRing(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.FD != 0 || s.Off != 0 || s.OpFlags != 0 || s.FileIndex != 0 || s.Addr3 != 0 || s.Len > rings.BufRingMax {
		return sockets.EINVAL
	}
	return 0
}

// issueBufRing makes group BufGroup of the Len entries at Addr; Len 0 takes it back.
func issueBufRing(q *Ring, i uint32) verdict {
	p := q.at(i)
	_, there := q.groups[p.sqe.BufGroup]
	if p.sqe.Len == 0 {
		if !there {
			return p.fail(sockets.ENOENT)
		}
		delete(q.groups, p.sqe.BufGroup)
		return done
	}
	mem, err := q.mem(p.sqe.Addr, uint64(p.sqe.Len)*rings.BufEntrySize)
	if err != 0 {
		return p.fail(err)
	}
	taker, ok := rings.NewBufTaker(mem)
	switch {
	case !ok:
		return p.fail(sockets.EINVAL)
	case there:
		return p.fail(sockets.EEXIST)
	case len(q.groups) >= maxGroups:
		return p.fail(sockets.ENOMEM)
	}
	if q.groups == nil {
		q.groups = make(map[uint16]*rings.BufTaker)
	}
	q.groups[p.sqe.BufGroup] = &taker
	return done
}

// pick gives the next buffer of a request's group, which stays there until took is called. limit bounds its length; 0:
// none. Errors: ENOBUFS; EFAULT for one that is empty or not in the registered memory, which is then gone, but not when it only
// ends a bundle: the next request tells of it.
func (q *Ring) pick(p *request, limit uint32) (mem []byte, b rings.Buf, err sockets.Errno) {
	g := q.groups[p.sqe.BufGroup]
	if g == nil || g.Avail() == 0 {
		return nil, b, sockets.ENOBUFS
	}
	if b = g.Peek(); limit != 0 {
		b.Len = min(b.Len, limit)
	}
	if mem, err = q.mem(b.Addr, uint64(b.Len)); err == 0 && (b.Len == 0 || b.Len > 1<<31-1) {
		err = sockets.EFAULT
	}
	if err != 0 && p.cflags&rings.CQEBuffer == 0 {
		g.Next()
	}
	return mem, b, err
}

// took takes the buffer that pick gave.
func (q *Ring) took(p *request, b rings.Buf) {
	q.groups[p.sqe.BufGroup].Next()
	p.cflags |= rings.CQEBuffer | uint32(b.ID)<<rings.CQEBufferShift
}
