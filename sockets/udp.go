package sockets

import (
	"encoding/binary"
	"net/netip"

	"xdpd/proto"
	"xdpd/umem"
)

// MaxUDP is the largest UDP payload in bytes: 65535 less the IP and UDP headers.
const MaxUDP = 65535 - 20 - 8

// udpSock is a UDP socket. Its queue links datagrams by Buf.Aux of their first frame; a datagram that was reassembled
// is a chain of frames by Buf.Next.
type udpSock struct {
	key        flowKey
	gen        uint32
	used       bool
	connected  bool
	tellSent   bool   // UDPTellSent
	happened   uint8  // packReady of what happened; not 0: an event is queued
	times      uint32 // how often
	blocked    bool   // waits in Host.noTxFrame, or in its account
	account    Account
	need       int // while blocked: frames for the datagram that was refused
	err        Errno
	head, tail umem.Frame
	datagrams  int
	bytes      int // of whole frames, as Linux counts sk_rmem_alloc by truesize
	drops      uint64
}

// udpTable finds sockets: connected ones by four-tuple, others by address and port, wildcard ones by port.
type udpTable struct {
	socks     []udpSock
	free      []uint32
	flows     *flat[flowKey]
	ports     map[uint16]int // sockets that use a local port
	connected int
	specific  int // others that are bound to an address
}

func (t *udpTable) init(h *Host) {
	t.flows = newFlat(h.sec.flow)
	t.ports = make(map[uint16]int)
}

func (t *udpTable) get(s Handle) *udpSock {
	if i := s.index(); s.kind() == kindUDP && int(i) < len(t.socks) {
		if u := &t.socks[i]; u.used && u.gen == s.gen() {
			return u
		}
	}
	return nil
}

func (t *udpTable) handle(u *udpSock, i uint32) Handle { return makeHandle(kindUDP, u.gen, i) }

// lookup is __udp4_lib_lookup: the most specific socket wins.
func (t *udpTable) lookup(k flowKey) (uint32, bool) {
	if t.connected > 0 {
		if i, ok := t.flows.get(k); ok {
			return i, true
		}
	}
	k.Remote, k.RPort = 0, 0
	if t.specific > 0 {
		if i, ok := t.flows.get(k); ok {
			return i, true
		}
	}
	k.Local = 0
	return t.flows.get(k)
}

// UDPBind opens a UDP socket on an address of ours, or on all of them (zero), and a port, or a free one (zero). Errors:
// EADDRNOTAVAIL, EADDRINUSE.
func (h *Host) UDPBind(local proto.Addr, port uint16) (Handle, Errno) {
	if local != 0 && !h.isLocal(local) {
		return 0, EADDRNOTAVAIL
	}
	t := &h.udp
	if port == 0 {
		if port = h.udpPort(flowKey{Local: local}); port == 0 {
			return 0, EADDRINUSE
		}
	}
	k := flowKey{Local: local, LPort: port}
	if t.ports[port] > 0 && t.inUse(local, port) {
		return 0, EADDRINUSE
	}
	var i uint32
	if n := len(t.free); n > 0 {
		i, t.free = t.free[n-1], t.free[:n-1]
	} else {
		t.socks = append(t.socks, udpSock{})
		i = uint32(len(t.socks) - 1)
	}
	u := &t.socks[i]
	*u = udpSock{key: k, gen: u.gen + 1, used: true, head: umem.None, tail: umem.None}
	t.flows.put(k, i)
	h.udpEnter(k)
	t.ports[port]++
	if local != 0 {
		t.specific++
	}
	return t.handle(u, i), 0
}

// inUse reports whether a socket, connected or not, stands in the way of one on local:port (udp_lib_lport_inuse).
func (t *udpTable) inUse(local proto.Addr, port uint16) bool {
	for i := range t.socks {
		u := &t.socks[i]
		if u.used && u.key.LPort == port && (local == 0 || u.key.Local == 0 || u.key.Local == local) {
			return true
		}
	}
	return false
}

// UDPConnect sets the only peer the socket talks to, or another one. Errors: EBADF, EINVAL, ENETUNREACH, EADDRINUSE.
func (h *Host) UDPConnect(s Handle, remote proto.Addr, port uint16) Errno {
	u := h.udp.get(s)
	switch {
	case u == nil:
		return EBADF
	case port == 0:
		return EINVAL
	}
	_, src, ok := h.route(remote)
	if !ok {
		return ENETUNREACH
	}
	k := flowKey{Local: u.key.Local, LPort: u.key.LPort, Remote: remote, RPort: port}
	if k.Local == 0 {
		k.Local = src
	}
	if k == u.key {
		return 0
	}
	if _, taken := h.udp.flows.get(k); taken {
		return EADDRINUSE
	}
	h.udpForget(u)
	h.udp.flows.put(k, s.index())
	h.udpEnter(k)
	if !u.connected {
		h.udp.connected++
		if u.key.Local != 0 {
			h.udp.specific--
		}
	}
	u.key, u.connected = k, true
	return 0
}

// udpClose closes the socket; what it holds is freed.
func (h *Host) udpClose(s Handle) Errno {
	t := &h.udp
	u := t.get(s)
	if u == nil {
		return EBADF
	}
	for u.datagrams > 0 {
		h.udpPop(u)
	}
	h.udpForget(u)
	if t.ports[u.key.LPort]--; t.ports[u.key.LPort] == 0 {
		delete(t.ports, u.key.LPort)
	}
	if u.connected {
		t.connected--
	} else if u.key.Local != 0 {
		t.specific--
	}
	u.used = false
	h.uncharge(u.account)
	if u.gen < maxGen {
		t.free = append(t.free, s.index())
	}
	return 0
}

// UDPAddr gives the local address and, for a connected socket, the remote one.
func (h *Host) UDPAddr(s Handle) (local, remote netip.AddrPort) {
	if u := h.udp.get(s); u != nil {
		local = netip.AddrPortFrom(u.key.Local.Netip(), u.key.LPort)
		if u.connected {
			remote = netip.AddrPortFrom(u.key.Remote.Netip(), u.key.RPort)
		}
	}
	return local, remote
}

// UDPInfo is what there is to know about a socket for a person.
type UDPInfo struct {
	Local, Remote netip.AddrPort
	Datagrams     int    // queued
	Bytes         int    // queued, counted in whole frames
	Drops         uint64 // refused because the queue was full
}

// UDPSockets lists all UDP sockets.
func (h *Host) UDPSockets() []UDPInfo {
	var out []UDPInfo
	for i := range h.udp.socks {
		if u := &h.udp.socks[i]; u.used {
			l, r := h.UDPAddr(h.udp.handle(u, uint32(i)))
			out = append(out, UDPInfo{Local: l, Remote: r, Datagrams: u.datagrams, Bytes: u.bytes, Drops: u.drops})
		}
	}
	return out
}

func (h *Host) udpInput(p *packet) {
	data := h.pool.Data(p.f)
	u, fault := proto.ParseUDPIn(data, p.n)
	if fault != proto.OK {
		h.drop(p, Drop(fault))
		return
	}
	if int(u.Len) != p.n {
		h.cut(p, int(u.Len))
	}
	if u.Checksum != 0 && !h.checkL4(p, u.Checksum) {
		h.drop(p, Drop(proto.UDPChecksum))
		return
	}
	k := flowKey{Local: p.ip.Dst, Remote: p.ip.Src, LPort: u.DstPort, RPort: u.SrcPort}
	i, ok := h.udp.lookup(k)
	if !ok && p.hops == 0 {
		if to, found := h.udpElsewhere(k); found {
			h.handOver(p, to, nil)
			return
		}
	}
	if !ok {
		h.icmpError(p, proto.ICMPUnreachable, proto.UnreachPort)
		h.drop(p, UDPNoSocket)
		return
	}
	s := &h.udp.socks[i]
	size := h.truesize(p)
	if s.datagrams > 0 && s.bytes+size > h.cfg.RcvBuf {
		s.drops++
		h.drop(p, UDPQueueFull)
		return
	}
	if !h.holdFor(s.account, p) {
		s.drops++
		return
	}
	h.udpPush(s, p, &u, size)
	h.count(RxDelivered)
	h.notify(h.udp.handle(s, i), happenedIn)
}

// truesize is what a packet costs in memory.
func (h *Host) truesize(p *packet) int {
	return h.chainFrames(p.f) * h.pool.Region().ChunkSize()
}

// udpMeta is where the source of a queued datagram is kept: over its UDP header, which was parsed and is in the cache. Before
// it stands its stamp, if there are any, over the end of the IP header.
const udpMeta = 8

// udpPush queues a datagram. Its first frame's Buf covers the payload from here on, and the 8 bytes before it become
// source address, source port and payload length.
func (h *Host) udpPush(s *udpSock, p *packet, u *proto.UDP, size int) {
	b := h.pool.Buf(p.f)
	b.Off += udpMeta
	b.Len -= udpMeta
	b.Aux = uint32(umem.None)
	meta := h.pool.Chunk(p.f)[b.Off-udpMeta:]
	binary.NativeEndian.PutUint32(meta, uint32(p.ip.Src))
	binary.NativeEndian.PutUint16(meta[4:], u.SrcPort)
	binary.NativeEndian.PutUint16(meta[6:], uint16(p.n-udpMeta))
	if h.cfg.Stamps {
		umem.PutStamp(h.pool.Chunk(p.f)[b.Off-udpMeta-umem.StampSize:], h.stamp)
	}
	if s.head == umem.None {
		s.head = p.f
	} else {
		h.pool.Buf(s.tail).Aux = uint32(p.f)
	}
	s.tail = p.f
	s.datagrams++
	s.bytes += size
}

// udpPop frees the first datagram of the queue.
func (h *Host) udpPop(s *udpSock) {
	h.releaseChain(h.udpUnlink(s))
}

// udpUnlink takes the first datagram out of the queue.
func (h *Host) udpUnlink(s *udpSock) umem.Frame {
	first := s.head
	s.head = umem.Frame(h.pool.Buf(first).Aux)
	s.datagrams--
	for f := first; f != umem.None; f = h.pool.Buf(f).Next {
		s.bytes -= h.pool.Region().ChunkSize()
	}
	return first
}

// Datagram is the result of UDPRecv.
type Datagram struct {
	N    int // bytes copied
	Size int // bytes of the datagram; more than N: the rest was cut off
	Src  netip.AddrPort
	More bool // another one waits
	// At is when it was received, or if in fragments, the one that completed it (Config.Stamps); else 0.
	At umem.Stamp
}

// udpFirst finds the next datagram of a reading call, and says in d what UDPRecv says of it, but for N. Errors: as UDPRecv.
func (h *Host) udpFirst(s Handle, d *Datagram) (*udpSock, Errno) {
	u := h.udp.get(s)
	switch {
	case u == nil:
		return nil, EBADF
	case u.err != 0:
		return nil, u.takeErr()
	case u.datagrams == 0:
		return nil, EAGAIN
	}
	meta := h.pool.Chunk(u.head)[h.pool.Buf(u.head).Off-udpMeta:][:udpMeta]
	d.Size = int(binary.NativeEndian.Uint16(meta[6:]))
	d.Src = netip.AddrPortFrom(proto.Addr(binary.NativeEndian.Uint32(meta)).Netip(), binary.NativeEndian.Uint16(meta[4:]))
	d.More = u.datagrams > 1
	if h.cfg.Stamps {
		d.At = umem.GetStamp(h.pool.Chunk(u.head)[h.pool.Buf(u.head).Off-udpMeta-umem.StampSize:])
	}
	return u, 0
}

// takeErr takes the pending error.
func (u *udpSock) takeErr() Errno {
	err := u.err
	u.err = 0
	return err
}

// UDPError takes a socket's pending error, as SO_ERROR does.
func (h *Host) UDPError(s Handle) Errno {
	u := h.udp.get(s)
	if u == nil {
		return EBADF
	}
	return u.takeErr()
}

// UDPRecv copies the next datagram into dst. Errors: EAGAIN when there is none, EBADF, and, once, what an ICMP error
// brought to a connected socket.
func (h *Host) UDPRecv(s Handle, dst []byte) (d Datagram, err Errno) {
	u, err := h.udpFirst(s, &d)
	if err != 0 {
		return d, err
	}
	for f := u.head; f != umem.None && d.N < len(dst); f = h.pool.Buf(f).Next {
		d.N += copy(dst[d.N:], h.pool.Data(f))
	}
	h.counters.Copied[CopyRecv] += uint64(d.N)
	h.udpPop(u)
	return d, 0
}

// udpError delivers an ICMP error to the connected socket it concerns.
func (h *Host) udpError(k flowKey, err Errno) bool {
	i, ok := h.udp.flows.get(k)
	if !ok || !h.udp.socks[i].connected {
		return false
	}
	u := &h.udp.socks[i]
	u.err = err
	h.notify(h.udp.handle(u, i), happenedErr)
	return true
}
