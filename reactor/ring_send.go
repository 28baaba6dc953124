package reactor

import (
	"net/netip"

	"xdpd/rings"
	"xdpd/sockets"
)

const sendFlags = rings.MsgDontWait | rings.MsgWaitAll | rings.MsgNoSignal

func init() {
	send := operation{check: checkSend, issue: issueSend, queue: waitOut, socket: true, buffers: true, ioprio: rings.PollFirst, progress: true}
	ops[rings.OpSend] = send
	send.buffers = false
	send.check = checkSendArea
	ops[rings.OpSendArea] = send
	send.check, send.issue, send.ioprio = checkSendZC, issueSendZC, rings.PollFirst|rings.ReportUsage
	ops[rings.OpSendZC] = send
}

func checkSend(_ *Ring, s *rings.SQE) sockets.Errno {
	selects := s.Flags&rings.SQEBufferSelect != 0
	switch {
	case s.Addr3 != 0 || s.OpFlags&^sendFlags != 0 || s.Len > 1<<31-1:
		return sockets.EINVAL
	case s.FileIndex&^addrLenMask != 0 || s.FileIndex == 0 && s.Off != 0:
		return sockets.EINVAL
	case selects && s.Addr != 0, !selects && s.BufGroup != 0:
		return sockets.EINVAL
	}
	return 0
}

func checkSendArea(q *Ring, s *rings.SQE) sockets.Errno {
	switch {
	case s.Addr != 0 || s.FileIndex != 0 || s.Addr3 != 0 || s.OpFlags&^sendFlags != 0 || s.Len > 1<<31-1:
		return sockets.EINVAL
	case int(s.BufGroup) >= len(q.areas):
		return sockets.EINVAL
	}
	if n := uint64(len(q.areas[s.BufGroup])); s.Off > n || uint64(s.Len) > n-s.Off {
		return sockets.EFAULT
	}
	return 0
}

// sendable tells whether a socket can be written to: 0, EAGAIN, or why not. A UDP socket without an address gets one.
func (q *Ring) sendable(p *request) (k *ringSock, err sockets.Errno) {
	k = q.sock(p)
	switch k.kind {
	case sockConnected:
		if !q.may(slowSend, p.sock-1) {
			err = sockets.EAGAIN
		}
		return k, err
	case sockConnecting:
		return k, sockets.EAGAIN
	case sockUDP:
		if k.mute {
			return k, sockets.EPIPE
		}
		if !q.may(slowSend, p.sock-1) {
			return k, sockets.EAGAIN
		}
		if k.h == 0 {
			return k, q.bind(p.sock-1, 0, 0)
		}
		return k, 0
	}
	if k.due {
		return k, sockets.EAGAIN
	}
	return k, sockets.EPIPE // sk_stream_wait_connect
}

// sendTo reads where a datagram goes: the zero value without an address, for CONNECT was asked then.
func (q *Ring) sendTo(k *ringSock, s *rings.SQE) (netip.AddrPort, sockets.Errno) {
	if s.FileIndex == 0 {
		return netip.AddrPort{}, 0
	}
	a, err := q.sockAddr(s.Off, uint64(s.FileIndex))
	if err == 0 && !q.mayReach(k, a) {
		err = sockets.EACCES
	}
	return a, err
}

// issueSend is send(2), sendto(2), and sendfile(2) from a registered area. p.arg[0] is what earlier tries sent.
func issueSend(q *Ring, i uint32) verdict {
	p := q.at(i)
	if p.sqe.IOPrio&rings.PollFirst != 0 {
		p.sqe.IOPrio &^= rings.PollFirst
		return again
	}
	k, err := q.sendable(p)
	n := 0
	if err == 0 {
		n, err = q.send(p, k)
	}
	got := p.arg[0] + uint64(n)
	p.arg[0] = got
	whole := err == 0 && got == uint64(p.sqe.Len)
	all := p.sqe.OpFlags&rings.MsgWaitAll != 0 || p.sqe.Opcode == rings.OpSendArea
	switch {
	case whole, k.kind == sockUDP && err == 0, !all && got > 0 && (err == 0 || err == sockets.EAGAIN):
	case (err == 0 || err == sockets.EAGAIN) && p.sqe.OpFlags&rings.MsgDontWait == 0:
		return wait
	case got == 0:
		return p.fail(err)
	default: // what was sent is told first
		if err != 0 && err != sockets.EAGAIN && err != sockets.EPIPE {
			k.err = err
		}
		p.partial = true
	}
	p.res = int32(got)
	return done
}

// send sends once.
func (q *Ring) send(p *request, k *ringSock) (n int, err sockets.Errno) {
	if err := k.err; err != 0 {
		k.err = 0
		return 0, err
	}
	src, err := q.payload(p)
	if err != 0 {
		return 0, err
	}
	if k.kind == sockConnected {
		n, err = q.r.host.TCPWrite(k.h, src[p.arg[0]:], q.now)
		if n > 0 {
			q.sentData(n)
		}
		return n, err
	}
	if p.sqe.Opcode == rings.OpSendArea {
		return 0, sockets.EOPNOTSUPP
	}
	dst, err := q.sendTo(k, &p.sqe)
	if err == 0 {
		err = q.r.host.UDPSend(k.h, src, dst, q.now)
	}
	if err != 0 {
		return 0, err
	}
	q.sentData(len(src))
	return len(src), 0
}

// payload is what a request sends, all of it.
func (q *Ring) payload(p *request) ([]byte, sockets.Errno) {
	s := &p.sqe
	if s.Opcode == rings.OpSendArea {
		return q.areas[s.BufGroup][s.Off:][:s.Len], 0
	}
	if s.Flags&rings.SQEBufferSelect != 0 && p.cflags&rings.CQEBuffer == 0 {
		_, b, err := q.pick(p, s.Len)
		if err != 0 {
			return nil, err
		}
		q.took(p, b)
		s.Addr, s.Len = b.Addr, b.Len
	}
	return q.mem(s.Addr, uint64(s.Len))
}

func checkSendZC(_ *Ring, s *rings.SQE) sockets.Errno {
	switch {
	case s.Addr3 != 0 || s.OpFlags&^(rings.MsgDontWait|rings.MsgWaitAll|rings.MsgNoSignal) != 0 || s.Len > 1<<16 || s.Addr > 1<<16:
		return sockets.EINVAL
	case s.FileIndex&^addrLenMask != 0 || s.FileIndex == 0 && s.Off != 0 || s.Flags&rings.SQESkipSuccess != 0:
		return sockets.EINVAL
	}
	return 0
}

// issueSendZC sends Len bytes from Addr of the lent frame BufGroup, which is the engine's when this succeeds. p.arg[0] is
// how many bytes were copied, where it cannot be sent as it lies; p.arg[1] the entry's generation, plus one.
func issueSendZC(q *Ring, i uint32) verdict {
	p := q.at(i)
	s := &p.sqe
	if s.IOPrio&rings.PollFirst != 0 {
		s.IOPrio &^= rings.PollFirst
		return again
	}
	l := q.lends.out(s.BufGroup)
	if l == nil || p.arg[1] != 0 && p.arg[1] != uint64(l.gen)+1 {
		return p.fail(sockets.ENOENT)
	}
	p.arg[1] = uint64(l.gen) + 1
	b := q.r.pool.Buf(l.frame)
	if s.Addr > uint64(b.Len) || uint64(s.Len) > uint64(b.Len)-s.Addr {
		return p.fail(sockets.EFAULT)
	}
	k, err := q.sendable(p)
	if err == 0 && k.err != 0 {
		err, k.err = k.err, 0
	}
	dst := netip.AddrPort{}
	if err == 0 {
		dst, err = q.sendTo(k, s)
	}
	if err == 0 {
		err = q.sendLent(p, k, l, dst)
	}
	switch {
	case err == sockets.EAGAIN && s.OpFlags&rings.MsgDontWait == 0:
		return wait
	case err != 0 && p.arg[0] > 0: // what was copied is told first; the frame is still the application's
		if err != sockets.EAGAIN && err != sockets.EPIPE {
			k.err = err
		}
		p.res, p.partial = int32(p.arg[0]), true
		return done
	case err != 0:
		return p.fail(err)
	}
	q.sentData(int(s.Len))
	l.user, l.report = s.UserData, s.IOPrio&rings.ReportUsage != 0
	p.res, p.cflags = int32(s.Len), rings.CQEMore
	return done
}

// sendLent sends a lent frame as it lies, or a copy of what is in it.
func (q *Ring) sendLent(p *request, k *ringSock, l *lend, dst netip.AddrPort) sockets.Errno {
	h, f := q.r.host, l.frame
	off, n := int(q.r.pool.Buf(f).Off)+int(p.sqe.Addr), int(p.sqe.Len)
	err := sockets.EMSGSIZE
	switch {
	case p.arg[0] != 0: // its front was copied
	case k.kind == sockUDP:
		err = h.UDPSendLent(k.h, f, off, n, dst, q.tell(p.sqe.BufGroup), q.now)
	case n > 0:
		err = h.TCPSendLent(k.h, f, off, n, q.tell(p.sqe.BufGroup), q.now)
	}
	if err == 0 {
		l.state = lendSent
		q.lends.sent++
		q.counters.SentZC++
	}
	if err != sockets.EMSGSIZE {
		return err
	}
	data := q.r.pool.Chunk(f)[off+int(p.arg[0]) : off+n]
	if k.kind == sockUDP {
		err = h.UDPSend(k.h, data, dst, q.now)
	} else {
		var done int
		if done, err = h.TCPWrite(k.h, data, q.now); err == 0 && done < len(data) {
			p.arg[0] += uint64(done)
			err = sockets.EAGAIN
		}
	}
	if err == 0 {
		q.counters.CopiedZC += uint64(n)
		h.Give(f)
		l.state = lendDone
		q.lends.done = append(q.lends.done, p.sqe.BufGroup)
	}
	return err
}
