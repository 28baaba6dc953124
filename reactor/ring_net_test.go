package reactor

import (
	"bytes"
	"net/netip"
	"testing"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// ringNet is a ring on one engine, and another engine at the other end of the wire whose Host the test calls itself. Data
// in the registered memory: addresses below 1024, buffers from 4096 on, the table of lent frames at the end.
type ringNet struct {
	*ringRig
	peer *rig
	data []byte
	cut  bool // the wire loses everything
}

const (
	lendCount = 16
	dataSize  = 1 << 20
	tableAt   = dataSize - lendCount*rings.LentSize
	bufAt     = 4096
)

func newRingNet(t testing.TB, cfg RingConfig, o ...options) *ringNet {
	t.Helper()
	opt := options{frames: 1024, ring: 256}
	if len(o) > 0 {
		opt = o[0]
	}
	g := newRig(t, opt)
	peer := newRig(t, options{frames: 1024, ring: 256, noLedger: opt.noLedger, change: func(c *Config, h *sockets.Config) {
		c.Clock = g.clock.Now
		h.MAC, h.Addrs = peerMAC, []sockets.Prefix{{Addr: peerAddr, Bits: 24}}
		h.RcvMax = 64 << 10 // so that a sender finds it full
	}})
	cfg.Data = make([]byte, dataSize)
	if cfg.Lends == 0 {
		cfg.Lends, cfg.LendTable = lendCount, tableAt
	}
	n := &ringNet{ringRig: ringOn(g, cfg), peer: peer}
	n.data = n.mem
	if opt.noLedger {
		return n
	}
	t.Cleanup(func() {
		if t.Failed() {
			return
		}
		n.q.Close()
		if lent := g.pool.Ledger().Counts()[umem.Lent]; lent != 0 {
			t.Errorf("%d frames are lent after the ring was closed: %v", lent, g.pool.Ledger().Frames(umem.Lent))
		}
	})
	return n
}

// run has both engines work, and the wire carry frames, until there is nothing to do.
func (n *ringNet) run() {
	n.t.Helper()
	for range 10_000 {
		n.settle()
		n.peer.settle()
		if len(n.sent)+len(n.peer.sent) == 0 {
			return
		}
		out, in := n.sent, n.peer.sent
		if n.sent, n.peer.sent = nil, nil; n.cut {
			continue
		}
		carry(n.peer, out)
		carry(n.rig, in)
	}
	n.t.Fatal("the wire is never quiet")
}

func carry(to *rig, frames [][]byte) {
	to.t.Helper()
	for i, f := range frames {
		if i%16 == 15 {
			to.settle()
		}
		to.deliver(f)
	}
}

// pass lets time go by, with whatever happens in it.
func (n *ringNet) pass(ns int64) {
	n.t.Helper()
	const step = 5_000_000
	for end := n.clock.Now() + ns; n.clock.Now() < end; {
		n.clock.AdvanceTo(min(end, n.clock.Now()+step))
		n.run()
	}
}

// take does what there is to do and takes all completions.
func (n *ringNet) take() (all []rings.CQE) {
	n.t.Helper()
	buf := make([]rings.CQE, 64)
	for {
		n.run()
		k := n.c.Reap(buf)
		if k == 0 {
			return all
		}
		all = append(all, buf[:k]...)
	}
}

// submit submits SQEs and takes what completes.
func (n *ringNet) submit(list ...rings.SQE) []rings.CQE {
	n.t.Helper()
	n.push(list...)
	return n.take()
}

// gives submits SQEs and wants exactly these completions.
func (n *ringNet) gives(list []rings.SQE, want ...rings.CQE) {
	n.t.Helper()
	n.want(n.submit(list...), want...)
}

// one submits an SQE and gives its only completion.
func (n *ringNet) one(s rings.SQE) rings.CQE {
	n.t.Helper()
	got := n.submit(s)
	if len(got) != 1 || got[0].UserData != s.UserData {
		n.t.Fatalf("completions %v of one request %d", got, s.UserData)
	}
	return got[0]
}

// res submits an SQE and wants this result.
func (n *ringNet) res(s rings.SQE, want int32) {
	n.t.Helper()
	if c := n.one(s); c.Res != want {
		n.t.Fatalf("opcode %d gives %d (%v), want %d", s.Opcode, c.Res, sockets.Errno(max(0, -c.Res)), want)
	}
}

func (n *ringNet) err(s rings.SQE, want sockets.Errno) { n.t.Helper(); n.res(s, -int32(want)) }

// onPeer calls the other engine's Host.
func (n *ringNet) onPeer(f func(h *sockets.Host, now int64)) {
	n.t.Helper()
	n.peer.enter(f)
	n.run()
}

// addr puts an address into the registered memory.
func (n *ringNet) addr(at uint64, a proto.Addr, port uint16) uint64 {
	rings.PutSockAddr(n.data[at:], netip.AddrPortFrom(a.Netip(), port))
	return at
}

func opSocket(user uint64, typ uint64) rings.SQE {
	return rings.SQE{Opcode: rings.OpSocket, FD: afInet, Off: typ, UserData: user}
}

func (n *ringNet) opAddr(op rings.Op, user uint64, fd int32, a proto.Addr, port uint16) rings.SQE {
	return rings.SQE{Opcode: op, FD: fd, Addr: n.addr(16*user%1024, a, port), Off: rings.SockAddrSize, UserData: user}
}

func opLen(op rings.Op, user uint64, fd int32, length uint32) rings.SQE {
	return rings.SQE{Opcode: op, FD: fd, Len: length, UserData: user}
}

// opMem is SEND or RECV of memory.
func opMem(op rings.Op, user uint64, fd int32, addr, length int) rings.SQE {
	return rings.SQE{Opcode: op, FD: fd, Addr: uint64(addr), Len: uint32(length), UserData: user}
}

func opCancel(user, of uint64) rings.SQE {
	return rings.SQE{Opcode: rings.OpCancel, Addr: of, UserData: user}
}

func opClose(user uint64, fd int32) rings.SQE {
	return rings.SQE{Opcode: rings.OpClose, FD: fd, UserData: user}
}

// listen makes a listener, and wants its number.
func (n *ringNet) listen(fd int32, port uint16) {
	n.t.Helper()
	n.res(opSocket(1, sockStream), fd)
	n.res(n.opAddr(rings.OpBind, 2, fd, 0, port), 0)
	n.res(opLen(rings.OpListen, 3, fd, 128), 0)
}

// dialed is a connection of the ring, number fd, to the peer, and the peer's end of it.
func (n *ringNet) dialed(fd int32) (far sockets.Handle) {
	n.t.Helper()
	var l sockets.Handle
	n.onPeer(func(h *sockets.Host, _ int64) { l, _ = h.TCPListen(0, 80) })
	n.res(opSocket(1, sockStream), fd)
	n.res(n.opAddr(rings.OpConnect, 2, fd, peerAddr, 80), 0)
	n.onPeer(func(h *sockets.Host, now int64) {
		var err sockets.Errno
		if far, err = h.TCPAccept(l); err != 0 {
			n.t.Fatal(err)
		}
		h.Close(l, now)
	})
	return far
}

// accepted is a connection that the peer dialed, number fd, and the peer's end of it.
func (n *ringNet) peerDials(port uint16) (far sockets.Handle) {
	n.t.Helper()
	n.onPeer(func(h *sockets.Host, now int64) {
		var err sockets.Errno
		if far, err = h.TCPDial(0, 0, ourAddr, port, now); err != 0 {
			n.t.Fatal(err)
		}
	})
	return far
}

// write has the peer write to a connection, all of b.
func (n *ringNet) write(far sockets.Handle, b []byte) {
	n.t.Helper()
	n.onPeer(func(h *sockets.Host, now int64) {
		if k, err := h.TCPWrite(far, b, now); k != len(b) || err != 0 {
			n.t.Fatalf("the peer wrote %d of %d: %v", k, len(b), err)
		}
	})
}

// wantRead has the peer read, and wants exactly want.
func (n *ringNet) wantRead(far sockets.Handle, want []byte) {
	n.t.Helper()
	n.run()
	got := make([]byte, len(want)+1)
	k := 0
	n.onPeer(func(h *sockets.Host, now int64) {
		for k < len(got) {
			m, err := h.TCPRead(far, got[k:], now)
			if m == 0 || err != 0 {
				break
			}
			k += m
		}
	})
	if !bytes.Equal(got[:k], want) {
		n.t.Fatalf("the peer read %d bytes, want %d, or they differ", k, len(want))
	}
}

// bytes is the registered memory at addr.
func (n *ringNet) bytes(addr, length int) []byte { return n.data[addr : addr+length] }

// fill writes a pattern that starts at from.
func fill(b []byte, from int) []byte {
	for i := range b {
		b[i] = byte((i + from) * 167 >> 3)
	}
	return b
}

func addrPort(a proto.Addr, port uint16) netip.AddrPort { return netip.AddrPortFrom(a.Netip(), port) }
