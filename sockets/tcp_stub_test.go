package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

// What the core does not have yet.

const simStub = true

var simStubWorld *simWorld

func simHigh(c *tcb) uint32 { return c.sndMax }

func simConfig(c *Config, p simHost) {}

func (t *tcpTable) each(f func(i uint32, c *tcb)) {
	for n := range t.chunks {
		for k := range t.chunks[n] {
			if c := &t.chunks[n][k]; c.used {
				f(uint32(n*tcbChunk+k), c)
			}
		}
	}
}

type KeepAlive struct {
	Idle, Interval int64
	Count          int
}

func (h *Host) stubConn(k flowKey, iss, irs uint32, mss int) (uint32, *tcb) {
	i, c := h.tcpAlloc(k)
	c.state = tcpEstablished
	c.irs, c.rcvNxt, c.rcvAdv, c.lastAck = irs, irs+1, irs+1+uint32(min(65535, h.cfg.RcvBuf/2)), irs+1
	c.iss, c.sndUna, c.sndNxt, c.sndMax = iss, iss+1, iss+1, iss+1
	c.rto, c.mss = rtoFirstNS, uint16(mss)
	c.tsOK, c.rcvMSS = true, c.mss
	c.sndScale, c.rcvScale = tcpScale, tcpScale
	c.sndWl1, c.sndWl2 = irs, iss
	c.cwnd, c.ssthresh = tcpIWSegs*uint32(c.mss), 1<<30
	return i, c
}

// TCPDial makes both ends at once, without a handshake.
func (h *Host) TCPDial(local proto.Addr, lport uint16, remote proto.Addr, rport uint16, now int64) (Handle, Errno) {
	w := simStubWorld
	a := w.node[0]
	if a.h != h {
		a = w.node[1]
	}
	b := a.peer()
	h.now, b.h.now = now, now
	if lport == 0 {
		lport = h.ephemeral(func(p uint16) bool {
			_, ok := h.tcp.flows.get(flowKey{Local: a.ip, LPort: p, Remote: remote, RPort: rport})
			return !ok
		})
	}
	if h.tcp.conns >= h.cfg.MaxConns || b.h.tcp.conns >= b.h.cfg.MaxConns {
		return 0, EAGAIN
	}
	k := flowKey{Local: a.ip, LPort: lport, Remote: remote, RPort: rport}
	r := flowKey{Local: remote, LPort: rport, Remote: a.ip, RPort: lport}
	li, ok := b.h.tcp.bound.get(flowKey{LPort: rport})
	if _, taken := h.tcp.flows.get(k); taken || !ok {
		return 0, EADDRINUSE
	}
	if _, taken := b.h.tcp.flows.get(r); taken || b.h.tcp.listeners[li].ready.n >= b.h.cfg.Backlog {
		return 0, EADDRINUSE
	}
	mss := min(a.h.cfg.MTU, b.h.cfg.MTU) - 52
	iss, irs := h.sec.isn(k, now), b.h.sec.isn(r, now)
	i, c := h.stubConn(k, iss, irs, mss)
	j, d := b.h.stubConn(r, irs, iss, mss)
	c.sndWnd, d.sndWnd = d.rcvAdv-d.rcvNxt, c.rcvAdv-c.rcvNxt
	c.maxWnd, d.maxWnd = c.sndWnd, d.sndWnd
	c.tsRecent, d.tsRecent = b.h.tsNow(d), h.tsNow(c)
	l := &b.h.tcp.listeners[li]
	d.embryo, d.listener = true, li
	b.h.acceptPush(l, j)
	b.h.notify(makeHandle(kindListener, l.gen, li))
	b.wake()
	key := simKey{}
	key[a.id], key[b.id] = lport, rport
	f := w.flow(key)
	for _, x := range []struct {
		n *simNode
		c *tcb
		p *tcb
	}{{a, c, d}, {b, d, c}} {
		s := &simStream{iss: x.c.iss, fin: -1, max: 1, synWnd: int64(x.c.sndWnd), acked: 1, tsVal: x.p.tsRecent}
		s.tsFirst, s.tsSeen, s.hasTS = s.tsVal, s.tsVal, true
		s.syn = proto.TCPOptions{MSS: uint16(mss + 12), HasTS: true, HasWScale: true, WScale: tcpScale}
		s.edge, s.edgeSeen = 1+int64(x.c.sndWnd), 1+int64(x.c.sndWnd)
		s.got.add(0, 1)
		f.streams[x.n.id] = append(f.streams[x.n.id], s)
	}
	h.notify(h.tcp.handle(i))
	return h.tcp.handle(i), 0
}

func (h *Host) TCPError(s Handle) Errno {
	c := h.tcp.get(s)
	err := c.err
	c.err = 0
	return err
}
func (h *Host) TCPConnected(s Handle) bool                              { return true }
func (h *Host) TCPSetNoDelay(s Handle, on bool, now int64) Errno        { return 0 }
func (h *Host) TCPSetKeepAlive(s Handle, k KeepAlive, now int64) Errno  { return 0 }
func (h *Host) TCPSetCongestion(s Handle, name string) Errno            { return 0 }
func (h *Host) TCPSetUserTimeout(s Handle, ns int64) Errno              { return 0 }
func (h *Host) TCPShutdownRead(s Handle, now int64) Errno               { return EINVAL }
func (h *Host) TCPTake(s Handle, now int64) (umem.Frame, []byte, Errno) { return 0, nil, EINVAL }
func (h *Host) TCPGive(f umem.Frame)                                    {}
func (h *Host) TCPLend(s Handle, now int64) (umem.Frame, []byte, Errno) { return 0, nil, EINVAL }
func (h *Host) TCPSendLent(s Handle, f umem.Frame, n int, now int64) Errno {
	return EINVAL
}
