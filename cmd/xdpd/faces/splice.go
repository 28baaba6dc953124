package faces

import (
	"xdpd/rings"
	"xdpd/sockets"
)

// Splicer is what a Stream is besides whose bytes go out on a connection as they came in, its own or another of the Loop.
// A ring passes them on without copying, in the frames in which they came, and calls neither Take nor Sent for them, nor is
// any of them in Next. On the poller they go by Take and Next.
type Splicer interface {
	// Onto is where they go; nil: it is not known yet, and nothing is read before Conn.Wake.
	Onto() Conn
	// Passed: n bytes are on their way there.
	Passed(n int)
}

// spliced is a Stream that may be a Splicer.
type spliced interface{ Splicer() Splicer }

// A connection has so many frames under way to one that does not take them yet; then nothing more is read from it.
const spliceFrames = 16

// maxLends is how many frames a ring can lend (reactor.RingConfig). It lends as many as its reactor has, for then it is the
// Host that runs short first, and the Host sees to it that who takes nothing does not keep them.
const maxLends = 1 << 16

// lent is a frame that a ring has lent.
type lent struct {
	from, to *ringConn
	n        int
}

// readFrames asks for the next frames: after one behind which there were more, for as many as may be under way.
func (c *ringConn) readFrames(more bool) {
	to, _ := c.sp.Onto().(*ringConn)
	if c.reading || c.eof || to == nil || !to.open || c.unsent >= spliceFrames {
		return
	}
	for n := c.unsent + 1; more && n < spliceFrames; n++ {
		s := new(rings.SQE).PrepRecvZC(c.fd, 0)
		s.OpFlags = rings.MsgDontWait
		c.push(s, opBurst)
		c.bursts++
	}
	c.reading = true
	c.push(new(rings.SQE).PrepRecvZC(c.fd, 0), opRecvZC)
}

// frameCame passes a frame on. c is nil, or gone, when there is nobody any more from whom it came.
func (l *ringLoop) frameCame(c *ringConn, e rings.CQE) {
	id := e.Buffer()
	var to *ringConn
	if c != nil && !c.gone {
		to, _ = c.sp.Onto().(*ringConn)
	}
	if to == nil || to.gone || to.fin { // who has ended hears nothing more
		l.giveBack(id)
		return
	}
	l.lent[id] = lent{c, to, int(e.Res)}
	c.unsent++
	to.pending++
	l.push(new(rings.SQE).PrepSendZC(to.fd, id, uint32(e.Res)), opSendZC|uint64(id))
}

// giveBack returns a frame that nobody wants.
func (l *ringLoop) giveBack(id uint16) {
	l.push(new(rings.SQE).PrepReturn(id), opNone)
	l.feed()
}

// feed has those read again who found all frames lent.
func (l *ringLoop) feed() {
	for _, c := range l.starved {
		c.Wake()
	}
	l.starved = l.starved[:0]
}

// frameWent is told of a SEND_ZC: that it was taken, or was not, and later that its frame is free.
func (l *ringLoop) frameWent(e rings.CQE) {
	if e.Flags&rings.CQENotif != 0 {
		l.feed()
		return
	}
	id := uint16(e.UserData)
	f := l.lent[id]
	f.from.unsent--
	f.to.pending--
	if e.Flags&rings.CQEMore == 0 { // the frame is still ours
		l.giveBack(id)
		if e.Res < 0 && !f.to.gone {
			f.to.abort(sockets.Errno(-e.Res))
		}
	} else {
		f.from.sp.Passed(f.n)
	}
	f.from.pump()
	f.to.pump()
}

// framesRead goes on after a RECV_ZC: the frame that came with it is on its way.
func (c *ringConn) framesRead(op uint64, e rings.CQE) {
	if op == opBurst {
		c.bursts--
	} else {
		c.reading = false
	}
	switch {
	case e.Res > 0:
	case e.Res == 0 && !c.eof:
		c.eof = true
		c.s.End()
	case e.Res == -int32(sockets.ENOBUFS): // until a frame is free
		c.l.starved = append(c.l.starved, c)
		return
	case e.Res == -int32(sockets.EAGAIN) || e.Res == 0:
	default:
		c.abort(sockets.Errno(-e.Res))
		return
	}
	if op == opRecvZC && c.bursts == 0 {
		c.readFrames(e.Res > 0 && e.Flags&rings.CQESockNonempty != 0)
	}
	c.pump()
}
