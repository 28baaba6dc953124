package reactor

import (
	"xdpd/rings"
	"xdpd/sockets"
)

// option is a setting that nobody may have made yet.
type option uint8

const (
	optUnset option = iota
	optOff
	optOn
)

// Options of setsockopt(2) (<asm-generic/socket.h>, <netinet/tcp.h>).
const (
	solSocket    = 1
	solTCP       = 6
	soKeepAlive  = 9
	soLinger     = 13
	tcpNoDelay   = 1
	tcpKeepIdle  = 4
	tcpKeepIntvl = 5
	tcpKeepCnt   = 6
	tcpUserLimit = 18
)

// keepAliveDefault is Linux's: after two hours, every 75 s, nine times.
var keepAliveDefault = sockets.KeepAlive{Idle: 7200e9, Interval: 75e9, Count: 9}

func init() {
	ops[rings.OpSetSockOpt] = operation{check: checkSetSockOpt, issue: issueSetSockOpt, socket: true, instant: true}
}

func checkSetSockOpt(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.Addr != 0 || s.BufGroup != 0 || s.FileIndex != 0 || s.Off > 1<<31-1 {
		return sockets.EINVAL
	}
	return 0
}

// issueSetSockOpt is setsockopt(2) for an int: Len is the level, OpFlags the option, Off the value. What is set before a
// connection is there holds from its beginning.
func issueSetSockOpt(q *Ring, i uint32) verdict {
	p := q.at(i)
	k, v := q.sock(p), int64(p.sqe.Off)
	ka := k.keepAlive
	if ka == (sockets.KeepAlive{}) {
		ka = keepAliveDefault
	}
	on := optOff
	if v != 0 {
		on = optOn
	}
	switch name := uint64(p.sqe.Len)<<32 | uint64(p.sqe.OpFlags); {
	case k.kind == sockUDP:
		return p.fail(sockets.ENOPROTOOPT)
	case name == solTCP<<32|tcpNoDelay:
		k.noDelay = on
	case name == solSocket<<32|soKeepAlive:
		k.keep = on
	case name == solSocket<<32|soLinger: // struct linger with l_linger 0, the only one there is: CLOSE resets
		k.reset = v != 0
	case name == solTCP<<32|tcpKeepIdle && v > 0 && v <= 32767:
		ka.Idle = v * 1e9
	case name == solTCP<<32|tcpKeepIntvl && v > 0 && v <= 32767:
		ka.Interval = v * 1e9
	case name == solTCP<<32|tcpKeepCnt && v > 0 && v <= 127:
		ka.Count = int(v)
	case name == solTCP<<32|tcpUserLimit:
		k.userLimit, k.hasLimit = v*1e6, true
	case name == solTCP<<32|tcpKeepIdle, name == solTCP<<32|tcpKeepIntvl, name == solTCP<<32|tcpKeepCnt:
		return p.fail(sockets.EINVAL)
	default:
		return p.fail(sockets.ENOPROTOOPT)
	}
	k.keepAlive = ka
	if k.kind == sockConnected {
		p.res = -int32(q.applyOptions(k))
	}
	return done
}

// applyOptions tells the Host what was set.
func (q *Ring) applyOptions(k *ringSock) (err sockets.Errno) {
	if k.noDelay != optUnset {
		err = q.r.host.TCPSetNoDelay(k.h, k.noDelay == optOn, q.now)
	}
	switch {
	case err != 0 || k.keep == optUnset:
	case k.keep == optOff:
		err = q.r.host.TCPSetKeepAlive(k.h, sockets.KeepAlive{}, q.now)
	default:
		err = q.r.host.TCPSetKeepAlive(k.h, k.keepAlive, q.now)
	}
	if err == 0 && k.hasLimit {
		err = q.r.host.TCPSetUserTimeout(k.h, k.userLimit)
	}
	return err
}
