package reactor

import (
	"xdpd/rings"
	"xdpd/sockets"
)

const recvFlags = rings.MsgTrunc | rings.MsgDontWait | rings.MsgWaitAll | rings.MsgNoSignal

// maxBundle is how many buffers one completion fills.
const maxBundle = 256

func init() {
	recv := operation{
		check: checkRecv, issue: issueRecv, queue: waitIn, socket: true, buffers: true, progress: true,
		ioprio: rings.PollFirst | rings.RecvMultishot | rings.RecvBundle,
	}
	ops[rings.OpRecv] = recv
	recv.ioprio = rings.PollFirst | rings.RecvMultishot
	ops[rings.OpRecvFrom] = recv
	recv.buffers = false
	recv.check = checkRecvZC
	ops[rings.OpRecvZC] = recv
}

func checkRecv(_ *Ring, s *rings.SQE) sockets.Errno {
	selects := s.Flags&rings.SQEBufferSelect != 0
	multi := s.IOPrio&rings.RecvMultishot != 0
	switch {
	case s.Off != 0 || s.FileIndex != 0 || s.Addr3 != 0 || s.OpFlags&^recvFlags != 0 || s.Len > 1<<31-1:
		return sockets.EINVAL
	case selects && s.Addr != 0, !selects && s.BufGroup != 0:
		return sockets.EINVAL
	case multi && (!selects || s.Len != 0 || s.OpFlags&rings.MsgWaitAll != 0 || s.Flags&rings.SQESkipSuccess != 0):
		return sockets.EINVAL
	case s.IOPrio&rings.RecvBundle != 0 && (!selects || s.OpFlags&rings.MsgWaitAll != 0):
		return sockets.EINVAL
	}
	return 0
}

func checkRecvZC(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.Off != 0 || s.Addr != 0 || s.Len != 0 || s.BufGroup != 0 || s.FileIndex != 0 || s.Addr3 != 0 ||
		s.OpFlags&^(rings.MsgDontWait|rings.MsgNoSignal) != 0 || s.Flags&rings.SQESkipSuccess != 0 {
		return sockets.EINVAL // without a completion nobody would know what to give back
	}
	return 0
}

// issueRecv is recv(2) and its like. What was received is in the completion's result; p.arg[0] is what an earlier try
// received.
func issueRecv(q *Ring, i uint32) verdict {
	p := q.at(i)
	if p.sqe.IOPrio&rings.PollFirst != 0 {
		p.sqe.IOPrio &^= rings.PollFirst
		return again
	}
	for range batch {
		if q.steps >= maxSteps {
			break
		}
		q.steps += costRequest
		k := q.sock(p)
		more := false
		n, err := 0, q.readable(k)
		if err == 0 {
			n, more, err = q.receive(p, k)
		}
		got := int(p.arg[0]) + n
		switch {
		case err == sockets.EAGAIN && p.sqe.OpFlags&rings.MsgDontWait == 0:
			p.arg[0] = uint64(got)
			return wait
		case err != 0 && got == 0:
			return p.fail(err)
		case err != 0: // what is received is told first
			if err != sockets.EAGAIN {
				k.err = err
			}
			p.partial = true
		case p.sqe.OpFlags&rings.MsgWaitAll != 0 && k.kind == sockConnected && n > 0 && got < int(p.sqe.Len):
			p.arg[0] = uint64(got)
			continue
		}
		p.partial = p.partial || p.sqe.OpFlags&rings.MsgWaitAll != 0 && got < int(p.sqe.Len)
		if more {
			p.cflags |= rings.CQESockNonempty
		}
		ended := n == 0 && k.kind == sockConnected // of the stream
		if p.sqe.IOPrio&rings.RecvMultishot == 0 || ended || k.deaf || !q.postMore(i, int32(got), p.cflags) {
			p.res = int32(got)
			return done
		}
		p.cflags = 0
	}
	return again
}

// readable tells whether a socket can be read: 0, EAGAIN, or why not.
func (q *Ring) readable(k *ringSock) sockets.Errno {
	switch {
	case k.kind == sockConnecting, k.due: // its CONNECT tells how that ends
		return sockets.EAGAIN
	case k.kind == sockTCP, k.kind == sockBound, k.kind == sockListening:
		return sockets.ENOTCONN
	}
	if err := k.err; err != 0 {
		k.err = 0
		return err
	}
	if k.deaf {
		return 0
	}
	if k.h == 0 || q.r.host.Ready(k.h)&(sockets.In|sockets.Err|sockets.Hup) == 0 {
		return sockets.EAGAIN
	}
	return 0
}

// receive receives once, from a socket that has something: data, an error, or the end of the stream.
func (q *Ring) receive(p *request, k *ringSock) (n int, more bool, err sockets.Errno) {
	if p.sqe.Opcode == rings.OpRecvZC {
		n, err = q.takeZC(p, k)
		return n, q.nonEmpty(k, n), err
	}
	if p.sqe.IOPrio&rings.RecvBundle != 0 && k.kind == sockConnected {
		n, err = q.receiveBundle(p, k)
		return n, q.nonEmpty(k, n), err
	}
	if k.deaf {
		return 0, false, 0
	}
	dst, b, err := q.buffer(p)
	if err != 0 {
		return 0, false, err
	}
	taken := true // a datagram takes a buffer, also an empty one
	switch {
	case k.kind == sockUDP:
		n, more, err = q.receiveDatagram(p, k, dst)
	case p.sqe.Opcode == rings.OpRecvFrom:
		return 0, false, sockets.EOPNOTSUPP
	default:
		n, err = q.r.host.TCPRead(k.h, dst[p.arg[0]:], q.now)
		more, taken = q.nonEmpty(k, n), n > 0
	}
	if taken && err == 0 && p.sqe.Flags&rings.SQEBufferSelect != 0 && p.cflags&rings.CQEBuffer == 0 {
		q.took(p, b)
		if p.sqe.OpFlags&rings.MsgWaitAll != 0 { // what else comes goes into the same
			p.sqe.Addr, p.sqe.Len = b.Addr, b.Len
		}
	}
	return n, more, err
}

// nonEmpty reports whether there is more to read, or the end, behind n bytes.
func (q *Ring) nonEmpty(k *ringSock, n int) bool { return n > 0 && q.r.host.Ready(k.h)&sockets.In != 0 }

// buffer gives the memory that a request receives into, all of it.
func (q *Ring) buffer(p *request) (dst []byte, b rings.Buf, err sockets.Errno) {
	if p.sqe.Flags&rings.SQEBufferSelect != 0 && p.cflags&rings.CQEBuffer == 0 {
		return q.pick(p, p.sqe.Len)
	}
	dst, err = q.mem(p.sqe.Addr, uint64(p.sqe.Len))
	return dst, b, err
}

// receiveDatagram receives a datagram, for RECVFROM behind a header that tells its source.
func (q *Ring) receiveDatagram(p *request, k *ringSock, dst []byte) (n int, more bool, err sockets.Errno) {
	head := 0
	if p.sqe.Opcode == rings.OpRecvFrom {
		if head = rings.RecvHeaderSize; len(dst) < head {
			return 0, false, sockets.EFAULT
		}
	}
	d, err := q.r.host.UDPRecv(k.h, dst[head:])
	if err != 0 {
		return 0, false, err
	}
	if head > 0 {
		rings.PutRecvHeader(dst, rings.RecvHeader{Src: d.Src, Size: uint32(d.Size), At: d.At}, d.N < d.Size)
	} else if p.sqe.OpFlags&rings.MsgTrunc != 0 {
		return d.Size, d.More, 0
	}
	return head + d.N, d.More, 0
}

// receiveBundle fills buffer after buffer; the completion names the first.
func (q *Ring) receiveBundle(p *request, k *ringSock) (total int, err sockets.Errno) {
	for range maxBundle {
		limit := uint32(0)
		if p.sqe.Len != 0 {
			if limit = p.sqe.Len - uint32(total); limit == 0 {
				break
			}
		}
		dst, b, err := q.pick(p, limit)
		n := 0
		if err == 0 {
			n, err = q.r.host.TCPRead(k.h, dst, q.now)
		}
		if n == 0 {
			if total > 0 { // what else there is to say is said the next time
				if err != 0 && err != sockets.EAGAIN && err != sockets.ENOBUFS && err != sockets.EFAULT {
					k.err = err
				}
				err = 0
			}
			return total, err
		}
		q.steps += costRequest
		if total += n; p.cflags&rings.CQEBuffer != 0 {
			q.groups[p.sqe.BufGroup].Next()
		} else {
			q.took(p, b)
		}
		if n < len(dst) {
			break
		}
	}
	return total, 0
}
