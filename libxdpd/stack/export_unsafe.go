//go:build cgo

package main

// The compiler compares the prototypes of xdpd_stack.h with those that cgo makes of the functions below. These names are here because
// cgo has no const.

/*
#cgo CFLAGS: -I${SRCDIR}/../src
#include "xdpd_stack.h"
typedef const struct xdpd_stack_config *settings;
typedef const void *bytes_in;
typedef const char *name_in;
*/
import "C"

import (
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"xdpd/proto"
	"xdpd/sockets"
)

// open stacks by number: what C holds is no pointer of Go.
var open = struct {
	sync.Mutex
	stacks map[C.xdpd_stack]*stack
	last   C.xdpd_stack
}{stacks: map[C.xdpd_stack]*stack{}}

// enter gives the stack of a number, locked; nil: there is none.
func enter(n C.xdpd_stack) *stack {
	open.Lock()
	s := open.stacks[n]
	open.Unlock()
	if s == nil {
		return nil
	}
	s.mu.Lock()
	if s.ended { // meanwhile
		s.mu.Unlock()
		return nil
	}
	return s
}

func addr(a C.uint32_t) proto.Addr {
	return proto.Addr(binary.BigEndian.Uint32((*[4]byte)(unsafe.Pointer(&a))[:]))
}

// text puts s into n bytes of C's, ended by 0.
func text(s string, to *C.char, n int) {
	if to == nil || n == 0 {
		return
	}
	b := unsafe.Slice((*byte)(unsafe.Pointer(to)), n)
	b[copy(b[:n-1], s)] = 0
}

//export xdpd_stack_open
func xdpd_stack_open(c C.settings, reason *C.char, room C.size_t) C.xdpd_stack {
	s, err := openStack(c)
	if err != nil {
		text(err.Error(), reason, int(room))
		return 0
	}
	open.Lock()
	defer open.Unlock()
	open.last++
	open.stacks[open.last] = s
	return open.last
}

func openStack(c C.settings) (*stack, error) {
	if c == nil || uintptr(c.size) != unsafe.Sizeof(*c) {
		return nil, fmt.Errorf("the config's size is not %d: another version of xdpd_stack.h", unsafe.Sizeof(*c))
	}
	if c.prefix > 32 {
		return nil, fmt.Errorf("a prefix of %d bits", c.prefix)
	}
	h := sockets.Config{
		MTU: int(c.mtu), NoECN: c.no_ecn != 0, Addrs: []sockets.Prefix{{Addr: addr(c.addr), Bits: int(c.prefix)}},
		Congestion: C.GoStringN(&c.congestion[0], C.int(strnlen(c.congestion[:]))),
		RcvBuf:     int(c.rcv_buf), RcvMax: int(c.rcv_max), SndBuf: int(c.snd_buf), Backlog: int(c.backlog), MaxConns: int(c.conns),
	}
	copy(h.MAC[:], unsafe.Slice((*byte)(unsafe.Pointer(&c.mac[0])), len(c.mac)))
	copy(h.Seed[:], unsafe.Slice((*byte)(unsafe.Pointer(&c.seed[0])), len(c.seed)))
	if c.gateway != 0 {
		h.Routes = []sockets.Route{{Gateway: addr(c.gateway)}}
	}
	return newStack(config{host: h, frames: int(c.frames), now: int64(c.now)})
}

func strnlen(b []C.char) int {
	for i, c := range b {
		if c == 0 {
			return i
		}
	}
	return len(b)
}

//export xdpd_stack_close
func xdpd_stack_close(n C.xdpd_stack) C.int {
	s := enter(n)
	if s == nil {
		return -C.int(unix.EBADF)
	}
	defer s.mu.Unlock()
	open.Lock()
	delete(open.stacks, n)
	open.Unlock()
	s.close()
	return 0
}

//export xdpd_stack_ring
func xdpd_stack_ring(n C.xdpd_stack, entries C.uint32_t, data C.uint64_t, m *C.struct_xdpd_stack_memory) C.int {
	s := enter(n)
	if s == nil {
		return -C.int(unix.EBADF)
	}
	defer s.mu.Unlock()
	number, q, err := s.newRing(uint32(entries), uint64(data))
	if err != 0 {
		return -C.int(err)
	}
	w := q.share.Welcome()
	*m = C.struct_xdpd_stack_memory{
		mem: unsafe.Pointer(&q.share.Ring[0]), size: C.uint64_t(w.Size), data: C.uint64_t(w.Data), data_len: C.uint64_t(w.DataLen),
		mtu: C.uint32_t(s.host.MTU()), ring: C.uint32_t(number),
	}
	return 0
}

//export xdpd_stack_ring_close
func xdpd_stack_ring_close(n C.xdpd_stack, number C.uint32_t) C.int {
	s := enter(n)
	if s == nil {
		return -C.int(unix.EBADF)
	}
	defer s.mu.Unlock()
	return -C.int(s.closeRing(uint32(number)))
}

//export xdpd_stack_input
func xdpd_stack_input(n C.xdpd_stack, frame C.bytes_in, length C.size_t) C.int {
	s := enter(n)
	if s == nil {
		return -C.int(unix.EBADF)
	}
	defer s.mu.Unlock()
	if length > math.MaxInt32 {
		return -C.int(unix.EMSGSIZE)
	}
	return -C.int(s.input(unsafe.Slice((*byte)(frame), int(length))))
}

//export xdpd_stack_output
func xdpd_stack_output(n C.xdpd_stack, frame unsafe.Pointer, room C.size_t, when *C.int64_t) C.int64_t {
	s := enter(n)
	if s == nil {
		return -C.int64_t(unix.EBADF)
	}
	defer s.mu.Unlock()
	got, at, err := s.output(unsafe.Slice((*byte)(frame), int(min(room, math.MaxInt32))))
	if err != 0 {
		return -C.int64_t(err)
	}
	if got > 0 && when != nil {
		*when = C.int64_t(at)
	}
	return C.int64_t(got)
}

//export xdpd_stack_run
func xdpd_stack_run(n C.xdpd_stack) C.int64_t {
	return timed(n, (*stack).run)
}

//export xdpd_stack_advance
func xdpd_stack_advance(n C.xdpd_stack, now C.int64_t) C.int64_t {
	return timed(n, func(s *stack) int64 { return s.advance(int64(now), false) })
}

//export xdpd_stack_step
func xdpd_stack_step(n C.xdpd_stack, limit C.int64_t) C.int64_t {
	return timed(n, func(s *stack) int64 { return s.advance(int64(limit), true) })
}

//export xdpd_stack_now
func xdpd_stack_now(n C.xdpd_stack) C.int64_t {
	return timed(n, func(s *stack) int64 { return s.now })
}

func timed(n C.xdpd_stack, f func(*stack) int64) C.int64_t {
	s := enter(n)
	if s == nil {
		return -C.int64_t(unix.EBADF)
	}
	defer s.mu.Unlock()
	return C.int64_t(f(s))
}

//export xdpd_stack_counter
func xdpd_stack_counter(n C.xdpd_stack, name C.name_in) C.int64_t {
	s := enter(n)
	if s == nil {
		return -C.int64_t(unix.EBADF)
	}
	defer s.mu.Unlock()
	v, err := s.counter(C.GoString((*C.char)(unsafe.Pointer(name))))
	if err != 0 {
		return -C.int64_t(err)
	}
	return C.int64_t(v)
}

//export xdpd_stack_tcp_info
func xdpd_stack_tcp_info(n C.xdpd_stack, local C.uint32_t, localPort C.uint16_t, remote C.uint32_t, remotePort C.uint16_t,
	info *C.struct_xdpd_stack_tcp) C.int {
	s := enter(n)
	if s == nil {
		return -C.int(unix.EBADF)
	}
	defer s.mu.Unlock()
	from, to := addrPort(local, localPort), addrPort(remote, remotePort)
	for _, i := range s.host.TCPSockets() {
		if i.Local == from && i.Remote == to {
			*info = tcpInfo(&i)
			return 0
		}
	}
	return -C.int(unix.ENOENT)
}

func addrPort(a C.uint32_t, port C.uint16_t) netip.AddrPort {
	return netip.AddrPortFrom(addr(a).Netip(), binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&port))[:]))
}

func tcpInfo(i *sockets.TCPInfo) (c C.struct_xdpd_stack_tcp) {
	for _, t := range []struct {
		s  string
		to []C.char
	}{{i.State, c.state[:]}, {i.Phase, c.phase[:]}, {i.Congestion, c.congestion[:]}, {i.Timer, c.timer[:]}} {
		text(t.s, &t.to[0], len(t.to))
	}
	u := func(n int) C.uint32_t { return C.uint32_t(max(n, 0)) }
	flag := func(b bool) C.uint8_t {
		if b {
			return 1
		}
		return 0
	}
	c.timer_in, c.rtt, c.rtt_var, c.min_rtt, c.rto = C.int64_t(i.TimerIn), C.int64_t(i.RTT), C.int64_t(i.RTTVar), C.int64_t(i.MinRTT), C.int64_t(i.RTO)
	c.acked, c.received = C.uint64_t(i.BytesAcked), C.uint64_t(i.BytesReceived)
	c.cwnd, c.ssthresh, c.in_flight = u(i.Cwnd), u(i.Ssthresh), u(i.InFlight)
	c.unacked, c.sacked, c.lost, c.again = u(i.Unacked), u(i.Sacked), u(i.Lost), u(i.Again)
	c.send_queue, c.recv_queue, c.out_of_order = u(i.SendQueue), u(i.RecvQueue), u(i.OutOfOrder)
	c.snd_wnd, c.rcv_wnd = u(i.SndWnd), u(i.RcvWnd)
	c.mss, c.rcv_mss, c.pmtu, c.retransmits = u(i.MSS), u(i.RcvMSS), u(i.PMTU), C.uint32_t(i.Retransmits)
	c.snd_scale, c.rcv_scale, c.backoff = C.uint8_t(i.SndScale), C.uint8_t(i.RcvScale), C.uint8_t(min(i.Backoff, 255))
	c.sack, c.timestamps, c.ecn = flag(i.SACK), flag(i.TS), flag(i.ECN)
	return c
}
