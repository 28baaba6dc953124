package reactor

import (
	"encoding/binary"
	"slices"

	"xdpd/rings"
	"xdpd/sockets"
)

const (
	soError   = 4
	tcpMaxSeg = 2
	tcpInfo   = 11

	// tcpInfoSize is how much of struct tcp_info (include/uapi/linux/tcp.h) is filled in: up to tcpi_min_rtt.
	tcpInfoSize = 152

	dupThresh = 3 // segments (RFC 8985): reordering widens a time instead
)

func init() {
	ops[rings.OpGetSockOpt] = operation{check: checkGetSockOpt, issue: issueGetSockOpt, socket: true, instant: true}
}

func checkGetSockOpt(_ *Ring, s *rings.SQE) sockets.Errno {
	if s.BufGroup != 0 || s.FileIndex != 0 || s.Addr3 != 0 || s.Off > 1<<31-1 {
		return sockets.EINVAL
	}
	return 0
}

// issueGetSockOpt is getsockopt(2): Len is the level, OpFlags the option. The value is the result, or, where it is a struct, lies in
// the Off bytes at Addr.
func issueGetSockOpt(q *Ring, i uint32) verdict {
	p := q.at(i)
	k := q.sock(p)
	switch name := uint64(p.sqe.Len)<<32 | uint64(p.sqe.OpFlags); {
	case name == solSocket<<32|soError:
		err := k.err
		switch k.err = 0; {
		case err != 0 || k.h == 0:
		case k.kind == sockConnected:
			err = q.r.host.TCPError(k.h)
		case k.kind == sockUDP:
			err = q.r.host.UDPError(k.h)
		}
		p.res = int32(err)
	case k.kind == sockUDP:
		return p.fail(sockets.ENOPROTOOPT)
	case name == solTCP<<32|tcpMaxSeg:
		info, _ := q.r.host.TCPStat(k.h)
		p.res = int32(info.MSS)
	case name == solTCP<<32|tcpInfo:
		dst, err := q.mem(p.sqe.Addr, p.sqe.Off)
		if err != 0 {
			return p.fail(err)
		}
		info, _ := q.r.host.TCPStat(k.h)
		p.res = int32(copy(dst, appendTCPInfo(make([]byte, 0, tcpInfoSize), &info)))
	default:
		return p.fail(sockets.ENOPROTOOPT)
	}
	return done
}

// tcpStates are the states in the order of Linux's numbers (include/net/tcp_states.h), from 1 on.
var tcpStates = []string{
	"ESTABLISHED", "SYN-SENT", "SYN-RECEIVED", "FIN-WAIT-1", "FIN-WAIT-2", "TIME-WAIT", "CLOSED", "CLOSE-WAIT", "LAST-ACK", "LISTEN", "CLOSING",
}

// appendTCPInfo writes what is known of struct tcp_info; all else is zero.
func appendTCPInfo(b []byte, t *sockets.TCPInfo) []byte {
	state := slices.Index(tcpStates, t.State) + 1
	if state == 0 {
		state = 7 // no such connection
	}
	phase := map[string]byte{"cwr": 2, "recovery": 3, "loss": 4}[t.Phase]
	if phase == 0 && t.Sacked > 0 {
		phase = 1 // TCP_CA_Disorder
	}
	options := byte(0)
	for bit, on := range []bool{t.TS, t.SACK, t.SndScale+t.RcvScale > 0, t.ECN} {
		if on {
			options |= 1 << bit
		}
	}
	b = append(b, byte(state), phase, byte(t.Backoff), 0, byte(t.Backoff), options, byte(t.SndScale)|byte(t.RcvScale)<<4, 0)
	us := func(ns int64) uint32 { return uint32(ns / 1000) }
	segments := func(n int) uint32 { return uint32(n / max(t.MSS, 1)) }
	some := func(n int) uint32 { return segments(n + max(t.MSS, 1) - 1) } // the last one may be short
	ssthresh := uint32(1<<31 - 1)
	if t.Ssthresh > 0 {
		ssthresh = segments(t.Ssthresh)
	}
	for _, v := range []uint32{
		us(t.RTO), 0, uint32(t.MSS), uint32(t.RcvMSS), some(t.Unacked), some(t.Sacked), some(t.Lost), some(t.Again), 0, // to tcpi_fackets
		0, 0, 0, 0, // tcpi_last_*
		uint32(t.PMTU), uint32(t.RcvBuf), us(t.RTT), us(t.RTTVar), ssthresh, segments(t.Cwnd), uint32(t.MSS), dupThresh,
		0, uint32(t.RcvBuf), t.Retransmits,
	} {
		b = binary.NativeEndian.AppendUint32(b, v)
	}
	for _, v := range []uint64{0, 0, t.BytesAcked, t.BytesReceived, 0} { // from tcpi_pacing_rate to tcpi_segs_in
		b = binary.NativeEndian.AppendUint64(b, v)
	}
	b = binary.NativeEndian.AppendUint32(b, uint32(max(0, t.SendQueue-t.Unacked)))
	return binary.NativeEndian.AppendUint32(b, us(t.MinRTT))
}
