package reactor

import (
	"errors"
	"slices"
	"syscall"

	"xdpd/rings"
	"xdpd/sockets"
)

// epoll is a Poller over a ring's sockets. Its waits are requests.
type epoll struct {
	*Poller
	waits list // the last that came first, as goroutines are
	n     int
	woken int // of them, who are to look
}

func init() {
	ops[rings.OpEpollCtl] = operation{check: checkEpollCtl, issue: issueEpollCtl, instant: true}
	ops[rings.OpEpollWait] = operation{check: checkEpollWait, issue: issueEpollWait, cancel: cancelEpollWait}
}

func checkEpollCtl(_ *Ring, s *rings.SQE) sockets.Errno {
	if uint32(s.FD) >= rings.MaxEpolls || s.Len > rings.EpollMod || s.Off > 1<<31-1 || s.BufGroup != 0 || s.FileIndex != 0 || s.Addr3 != 0 {
		return sockets.EINVAL
	}
	return 0
}

// issueEpollCtl is epoll_ctl(2): FD is the poller, Len what to do, Off the socket, OpFlags the mask, Addr the data.
func issueEpollCtl(q *Ring, i uint32) verdict {
	p := q.at(i)
	e := q.epoll(p.sqe.FD)
	if e == nil {
		return p.fail(syscall.ENOSPC)
	}
	if p.sqe.Len == rings.EpollForget {
		q.forgetEpoll(e)
		return done
	}
	s, ok := q.socks.lookup(int32(p.sqe.Off), p.sqe.Flags&rings.SQEFixedSocket != 0)
	if !ok || q.socks.at(s).h == 0 {
		return p.fail(sockets.EBADF)
	}
	h, mask, err := q.socks.at(s).h, sockets.Ready(p.sqe.OpFlags), error(nil)
	switch p.sqe.Len {
	case rings.EpollAdd:
		err = e.Add(h, mask, p.sqe.Addr)
	case rings.EpollMod:
		err = e.Mod(h, mask, p.sqe.Addr)
	default:
		err = e.Del(h)
	}
	if errno := sockets.Errno(0); errors.As(err, &errno) {
		return p.fail(errno)
	}
	return done
}

// epoll gives the poller of a number; nil: the reactor has no more.
func (q *Ring) epoll(number int32) *epoll {
	if q.epolls == nil {
		q.epolls = make([]*epoll, rings.MaxEpolls)
	}
	if q.epolls[number] == nil {
		p := q.r.newPoller()
		if p == nil {
			return nil
		}
		e := &epoll{Poller: p}
		e.ring, e.ringEpoll = q, e
		q.epolls[number] = e
		q.r.ringPollers++
	}
	return q.epolls[number]
}

func (q *Ring) forgetEpoll(e *epoll) {
	for e.waits.head != 0 {
		q.cancelOne(e.waits.head)
	}
	if e.members > 0 { // all are the ring's, and Poller.close would look for them among everybody's
		q.steps += len(q.socks.socks) / costRequest
		for s := range q.socks.socks {
			if h := q.socks.at(uint32(s)).h; h != 0 {
				_ = e.Del(h) // or it is not in this one
			}
		}
	}
	q.r.dropPoller(e.Poller)
	q.r.ringPollers--
	q.epolls[slices.Index(q.epolls, e)] = nil
}

func (q *Ring) forgetEpolls() {
	for _, e := range q.epolls {
		if e != nil {
			q.forgetEpoll(e)
		}
	}
}

func checkEpollWait(_ *Ring, s *rings.SQE) sockets.Errno {
	if uint32(s.FD) >= rings.MaxEpolls || s.Len == 0 || s.OpFlags&^rings.MsgDontWait != 0 || s.Off != 0 || s.BufGroup != 0 || s.FileIndex != 0 || s.Addr3 != 0 {
		return sockets.EINVAL
	}
	return 0
}

// issueEpollWait is epoll_wait(2): FD is the poller; at Addr is room for Len events.
func issueEpollWait(q *Ring, i uint32) verdict {
	p := q.at(i)
	e := q.epoll(p.sqe.FD)
	if e == nil {
		return p.fail(syscall.ENOSPC)
	}
	if q.takeEvents(e, p) || p.sqe.OpFlags&rings.MsgDontWait != 0 {
		if e.ready.n > 0 {
			q.wakeEpoll(e) // still ready: the next one's (ep_done_scan)
		}
		return done
	}
	q.prepend(&e.waits, onWait, i)
	e.n++
	return held
}

// takeEvents gives a wait the events that there are, if there are any, or an error.
func (q *Ring) takeEvents(e *epoll, p *request) bool {
	n := min(int(p.sqe.Len), rings.MaxEpollEvents)
	b, err := q.mem(p.sqe.Addr, uint64(n)*rings.EpollEventSize)
	if err != 0 {
		p.res = -int32(err)
		return true
	}
	if e.batch == nil {
		e.batch = make([]Event, rings.MaxEpollEvents)
	}
	n = e.take(e.batch[:n])
	for k, ev := range e.batch[:n] {
		s, _ := q.socks.byHandle.Get(ev.Sock)
		fd := int32(s)
		if int(s) >= q.socks.numbers {
			fd = -1 - (fd - int32(q.socks.numbers))
		}
		rings.PutEpollEvent(b[k*rings.EpollEventSize:], rings.EpollEvent{Data: ev.Data, Events: uint32(ev.Ready), FD: fd})
	}
	q.steps += n
	p.res = int32(n)
	return n > 0
}

func cancelEpollWait(q *Ring, i uint32) {
	e := q.epoll(q.at(i).sqe.FD)
	q.remove(&e.waits, onWait, i)
	e.n--
	e.woken = min(e.woken, e.n)
}

// wakeEpoll has one wait look, and reports whether there is one that did not have to already.
func (q *Ring) wakeEpoll(e *epoll) bool {
	if e.n <= e.woken {
		return false
	}
	e.woken++
	q.epollDue++
	return true
}

// serveEpolls ends waits for which there is something, as many as a turn may.
func (q *Ring) serveEpolls() (worked bool) {
	if q.epollDue == 0 {
		return false
	}
	q.epollDue = 0
	for _, e := range q.epolls {
		for e != nil && e.woken > 0 {
			if q.steps >= maxSteps {
				q.epollDue++ // the next turn goes on
				q.settle()
				return worked
			}
			e.woken--
			i := e.waits.head
			q.steps++
			if worked = true; !q.takeEvents(e, q.at(i)) {
				continue // as a thread that was woken and finds nothing
			}
			cancelEpollWait(q, i)
			q.complete(i)
			if e.ready.n > 0 {
				q.wakeEpoll(e)
			}
		}
	}
	q.settle()
	return worked
}
