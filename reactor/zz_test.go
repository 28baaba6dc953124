package reactor

import (
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"xdpd/rings"
	"xdpd/sockets"
)

type zzGuard struct{}

func (zzGuard) MayBind(_ uint8, a netip.AddrPort) bool  { return a.Port() >= 70 }
func (zzGuard) MayReach(_ uint8, a netip.AddrPort) bool { return a.Port() != 71 }

func TestZZ(t *testing.T) {
	seed := uint64(1)
	if s := os.Getenv("ZZ"); s != "" {
		seed, _ = strconv.ParseUint(s, 10, 64)
	}
	secs := 4.0
	if s := os.Getenv("ZZT"); s != "" {
		secs, _ = strconv.ParseFloat(s, 64)
	}
	for end := time.Now().Add(time.Duration(secs * 1e9)); time.Now().Before(end); seed++ {
		zz(t, seed)
		if t.Failed() {
			t.Fatal("seed", seed)
		}
	}
	t.Log("seeds to", seed)
}

func zz(t *testing.T, seed uint64) {
	defer func() {
		if e := recover(); e != nil {
			t.Errorf("seed %d", seed)
			panic(e)
		}
	}()
	rng := rand.New(rand.NewPCG(seed, 3))
	one := func(of int) bool { return rng.IntN(of) == 0 }
	cfg := RingConfig{SQEntries: 64, CQEntries: 1 << (1 + rng.IntN(7)), Requests: 4 + rng.IntN(60), Sockets: 8, Fixed: 4, Messages: 2, Guard: zzGuard{}, Frames: 5 + rng.IntN(60)}
	if one(2) {
		cfg.Rates = Rates{Connects: int64(rng.IntN(50)), Packets: int64(rng.IntN(500)), Bytes: int64(rng.IntN(100000))}
	}
	if one(2) {
		cfg.CPU = 1 + rng.IntN(100)
	}
	n := newRingNet(t, cfg, options{frames: 512, ring: 128})
	var far []sockets.Handle
	n.onPeer(func(h *sockets.Host, _ int64) {
		h.TCPListen(0, 80)
		h.UDPBind(0, 70)
	})
	var acc sockets.Account
	n.enter(func(h *sockets.Host, _ int64) { acc = n.q.account })
	ops := []rings.Op{
		rings.OpNop, rings.OpPollAdd, rings.OpPollRemove, rings.OpTimeout, rings.OpTimeoutRemove, rings.OpAccept, rings.OpCancel, rings.OpLinkTimeout,
		rings.OpConnect, rings.OpClose, rings.OpSend, rings.OpRecv, rings.OpShutdown, rings.OpMsg, rings.OpSocket, rings.OpSendZC, rings.OpBind,
		rings.OpListen, rings.OpRecvZC, rings.OpRecvFrom, rings.OpReturn, rings.OpFrameGet, rings.OpBufRing, rings.OpSockName, rings.OpSetSockOpt,
		rings.OpGetSockOpt, rings.OpEpollCtl, rings.OpEpollWait, rings.OpEpollCtl, rings.OpEpollWait, rings.OpSocket, rings.OpBind, rings.OpConnect, rings.OpSend, rings.OpAccept, rings.OpListen,
	}
	sqe := func() (s rings.SQE) {
		s.Opcode, s.UserData = ops[rng.IntN(len(ops))], uint64(rng.IntN(16))
		s.FD = int32(rng.IntN(8))
		at := 1024 + uint64(rng.IntN(dataSize/2))
		port := []uint16{80, 70, 71, 72, 73, 0, 81}[rng.IntN(7)]
		dst := peerAddr
		switch s.Opcode {
		case rings.OpSocket:
			s.FD, s.Off = afInet, uint64(1+rng.IntN(2))
			s.FileIndex = []uint32{0, 0, 0, rings.FileIndexAlloc, 1, 2, 3}[rng.IntN(7)]
		case rings.OpBind:
			s.Addr, s.Off = n.addr(16*uint64(rng.IntN(16)), 0, port), 16
		case rings.OpConnect:
			s.Addr, s.Off = n.addr(16*uint64(rng.IntN(16)), dst, port), 16
			if one(3) {
				s.OpFlags = rings.MsgDontWait
			}
		case rings.OpSend:
			s.Addr, s.Len = at, uint32(rng.IntN(3000))
			if one(10) {
				s.Len = uint32(rng.IntN(60000))
			}
			if one(2) {
				s.OpFlags = []uint32{rings.MsgDontWait, rings.MsgWaitAll}[rng.IntN(2)]
			}
			if one(2) {
				s.Off, s.FileIndex = n.addr(16*uint64(rng.IntN(16)), dst, port), 16
			}
			if one(8) {
				s.Addr, s.BufGroup, s.Flags = 0, uint16(rng.IntN(2)), rings.SQEBufferSelect
			}
		case rings.OpRecv, rings.OpRecvFrom:
			s.Addr, s.Len = at, uint32(rng.IntN(3000))
			if one(4) {
				s.Addr, s.BufGroup, s.Flags = 0, uint16(rng.IntN(2)), rings.SQEBufferSelect
				s.IOPrio = uint16(rng.IntN(32)) &^ 8
				if s.IOPrio&rings.RecvMultishot != 0 {
					s.Len = 0
				}
			} else if one(3) {
				s.OpFlags = rings.MsgWaitAll
			}
		case rings.OpRecvZC, rings.OpFrameGet:
			if s.Opcode == rings.OpFrameGet {
				s.FD = 0
			} else if one(2) {
				s.IOPrio = rings.RecvMultishot
			}
		case rings.OpReturn:
			s.FD, s.BufGroup = 0, uint16(rng.IntN(lendCount))
		case rings.OpSendZC:
			s.BufGroup, s.Len = uint16(rng.IntN(lendCount)), uint32(rng.IntN(1400))
			if one(2) {
				s.Off, s.FileIndex = n.addr(16*uint64(rng.IntN(16)), dst, port), 16
			}
		case rings.OpBufRing:
			s.FD, s.BufGroup, s.Addr = 0, uint16(rng.IntN(2)), at&^7
			if one(2) {
				s.Len = 1 << rng.IntN(6)
			}
		case rings.OpTimeout, rings.OpLinkTimeout:
			s.Addr = uint64(rng.IntN(1e9))
			if s.Opcode == rings.OpTimeout {
				s.Off = uint64(rng.IntN(3))
				if one(8) {
					s.OpFlags = rings.TimeoutMultishot
				}
			}
		case rings.OpAccept:
			if one(2) {
				s.IOPrio = uint16(rng.IntN(8))
			} else {
				s.Addr, s.Off = at, 16
			}
			s.FileIndex = []uint32{0, 0, rings.FileIndexAlloc, 0}[rng.IntN(4)]
			if s.IOPrio&1 == 0 && one(3) {
				s.FileIndex = uint32(rng.IntN(5))
			}
		case rings.OpPollAdd:
			s.OpFlags = rng.Uint32() & 0x201f
			if one(2) {
				s.Len = rings.PollMulti
			}
		case rings.OpPollRemove:
			s.Addr = uint64(rng.IntN(16))
			s.FD = 0
		case rings.OpTimeoutRemove, rings.OpCancel:
			s.Addr = uint64(rng.IntN(16))
			if s.Opcode == rings.OpCancel && one(2) {
				s.OpFlags = uint32(rng.IntN(64))
			}
		case rings.OpShutdown:
			s.Len = uint32(rng.IntN(3))
		case rings.OpSockName:
			s.Addr, s.Len = at, 16
		case rings.OpSetSockOpt:
			s.Len, s.OpFlags, s.Off = []uint32{1, 6}[rng.IntN(2)], uint32(rng.IntN(20)), uint64(rng.IntN(3))
		case rings.OpGetSockOpt:
			s.Len, s.OpFlags, s.Off, s.Addr = []uint32{1, 6}[rng.IntN(2)], uint32(rng.IntN(20)), uint64(rng.IntN(300)), at
		case rings.OpEpollCtl:
			s.FD, s.Len, s.Off = int32(rng.IntN(3)), uint32(rng.IntN(4)), uint64(rng.IntN(8))
			if s.Len == 0 && one(2) {
				s.Len = 1
			}
			s.OpFlags = rng.Uint32()&0x201f | []uint32{0, 1 << 31, 1 << 30, 1 << 28, 3 << 30}[rng.IntN(5)]
			s.Addr = rng.Uint64()
		case rings.OpEpollWait:
			s.FD, s.Addr, s.Len = int32(rng.IntN(3)), at, uint32(1+rng.IntN(300))
			if one(3) {
				s.OpFlags = rings.MsgDontWait
			}
		case rings.OpNop, rings.OpMsg:
		}
		if one(5) {
			s.Flags |= uint8(rng.Uint32()) & rings.SQEFlags &^ rings.SQEBufferSelect
		}
		return s
	}
	macro := func() {
		fd := int32(rng.IntN(5))
		put := func(x rings.SQE) {
			if slot := n.c.SQE(); slot != nil {
				*slot = x
			}
		}
		typ := uint64(1 + rng.IntN(2))
		put(rings.SQE{Opcode: rings.OpClose, FD: fd, UserData: 1})
		put(rings.SQE{Opcode: rings.OpSocket, FD: afInet, Off: typ, UserData: 2})
		switch rng.IntN(4) {
		case 0, 1:
			put(rings.SQE{Opcode: rings.OpBind, FD: fd, Addr: n.addr(16*uint64(rng.IntN(16)), 0, []uint16{72, 73, 80, 81}[rng.IntN(4)]), Off: 16, UserData: 2})
			if typ == 1 {
				put(rings.SQE{Opcode: rings.OpListen, FD: fd, UserData: 3})
				put(rings.SQE{Opcode: rings.OpAccept, FD: fd, IOPrio: uint16(rng.IntN(8)), UserData: 4})
			}
		default:
			put(rings.SQE{Opcode: rings.OpConnect, FD: fd, Addr: n.addr(16*uint64(rng.IntN(16)), peerAddr, []uint16{80, 70, 72}[rng.IntN(3)]), Off: 16, UserData: 2})
			if one(2) {
				put(rings.SQE{Opcode: rings.OpSend, FD: fd, Addr: bufAt, Len: uint32(rng.IntN(100000)), UserData: 3})
			}
		}
		put(rings.SQE{Opcode: rings.OpEpollCtl, FD: int32(rng.IntN(3)), Len: 1, Off: uint64(fd), OpFlags: 5 | []uint32{0, 1 << 31, 1 << 30}[rng.IntN(3)], UserData: 3})
		put(rings.SQE{Opcode: rings.OpEpollWait, FD: int32(rng.IntN(3)), Len: 4, Addr: bufAt, UserData: 3})
		switch rng.IntN(4) {
		case 0:
			put(rings.SQE{Opcode: rings.OpRecvZC, FD: fd, IOPrio: uint16(rng.IntN(2)) * 2, UserData: 6})
		case 1:
			put(rings.SQE{Opcode: rings.OpRecv, FD: fd, IOPrio: []uint16{0, 2, 16, 18}[rng.IntN(4)], Flags: rings.SQEBufferSelect, UserData: 6})
		}
		if one(3) {
			at := 8 * (1 << 16)
			g, _ := rings.NewBufGiver(n.data[at : at+16*64])
			for i := range rng.IntN(64) {
				l := uint32(rng.IntN(500))
				if one(10) {
					l = rng.Uint32()
				}
				g.Add(rings.Buf{Addr: uint64(bufAt + i*100), Len: l, ID: uint16(i)})
			}
			g.Publish()
			put(rings.SQE{Opcode: rings.OpBufRing, Addr: uint64(at), Len: 64})
		}
		n.c.Submit()
	}
	for range 300 {
		if one(12) {
			macro()
		}
		switch rng.IntN(10) {
		case 0, 1, 2, 3, 4, 5:
			for range 1 + rng.IntN(6) {
				if slot := n.c.SQE(); slot != nil {
					*slot = sqe()
				}
			}
			n.c.Submit()
		case 6:
			n.c.Reap(make([]rings.CQE, rng.IntN(30)))
		case 7:
			n.clock.AdvanceTo(n.clock.Now() + rng.Int64N(2e8))
		case 8:
			n.enterPeer(func(h *sockets.Host, now int64) {
				port := []uint16{70, 71, 72, 73, 80, 81}[rng.IntN(6)]
				switch rng.IntN(6) {
				case 0, 1:
					if c, err := h.TCPDial(0, 0, ourAddr, port, now); err == 0 {
						far = append(far, c)
					}
				case 2:
					if len(far) > 0 {
						h.TCPWrite(far[rng.IntN(len(far))], make([]byte, rng.IntN(20000)), now)
					}
				case 3:
					if len(far) > 0 {
						i := rng.IntN(len(far))
						if one(2) {
							h.Close(far[i], now)
						} else {
							h.TCPAbort(far[i], now)
						}
						far = append(far[:i], far[i+1:]...)
					}
				case 4, 5:
					if s, err := h.UDPBind(0, 0); err == 0 {
						h.UDPSend(s, make([]byte, rng.IntN(4000)), addrPort(ourAddr, port), now)
						h.Close(s, now)
					}
				}
			})
		case 9:
			for range rng.IntN(12) {
				n.r.Turn()
				n.peer.r.Turn()
				out, in := n.sent, n.peer.sent
				n.sent, n.peer.sent = nil, nil
				for _, f := range out {
					n.peer.nic.Deliver(f)
				}
				for _, f := range in {
					n.nic.Deliver(f)
				}
			}
		}
		if n.q.steps > 2*maxSteps+4096*8 {
			t.Errorf("%d steps", n.q.steps)
		}
	}
	n.q.Close()
	if n.q.used != 0 {
		t.Errorf("%d requests", n.q.used)
	}
	for _, p := range n.r.pollers {
		if p != nil {
			t.Error("a poller is left")
		}
	}
	n.r.watches.each(func(ref, *watch) { t.Error("a watch is left") })
	if n.r.ringPollers != 0 {
		t.Error("ringPollers", n.r.ringPollers)
	}
	n.onPeer(func(h *sockets.Host, now int64) {
		for _, c := range far {
			h.TCPAbort(c, now)
		}
	})
	for range 200 {
		n.clock.AdvanceTo(n.clock.Now() + 10e9)
		for range 20 {
			n.r.Turn()
			n.peer.r.Turn()
			out, in := n.sent, n.peer.sent
			n.sent, n.peer.sent = nil, nil
			for _, f := range out {
				n.peer.nic.Deliver(f)
			}
			for _, f := range in {
				n.nic.Deliver(f)
			}
		}
	}
	n.enter(func(h *sockets.Host, _ int64) {
		if u, s := h.AccountUse(acc); s != 0 {
			t.Errorf("the account is there: %+v", u)
		}
		if h.Blocked() {
			t.Error("blocked")
		}
	})
	if t.Failed() {
		t.Logf("cfg %+v", cfg)
	}
}

func (n *ringNet) enterPeer(f func(h *sockets.Host, now int64)) { n.t.Helper(); n.peer.enter(f) }
