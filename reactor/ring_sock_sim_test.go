package reactor

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// The random program of the operations on sockets: sensible SQEs and garbage, against a peer that listens, dials, writes,
// reads and resets as it likes. Whatever happens, each SQE has exactly one last completion, each SEND_ZC that was taken
// one notification, and in the end no frame is missing. XDPD_SEED as in the simulation.

func TestRingSocketsRandom(t *testing.T) {
	first, n := seeds.From(t, 60)
	total := map[string]int{}
	seeds.Each(t, first, n, func(seed uint64) error { return ringSockets(t, seed, total) })
	t.Logf("%d seeds from %d: %v", n, first, total)
	for op, name := range simOps {
		if n >= 60 && total[name] == 0 {
			t.Errorf("operation %d never succeeded: the program does not try what it should", op)
		}
	}
	if n >= 60 && total["copied"]*total["multishot"]*total["notifications"] == 0 {
		t.Error("nothing was copied, notified, or completed many times")
	}
}

var simOps = map[rings.Op]string{
	rings.OpSocket: "socket", rings.OpBind: "bind", rings.OpListen: "listen", rings.OpConnect: "connect", rings.OpAccept: "accept",
	rings.OpShutdown: "shutdown", rings.OpClose: "close", rings.OpSockName: "name", rings.OpSetSockOpt: "option", rings.OpGetSockOpt: "get option",
	rings.OpRecv: "recv", rings.OpRecvFrom: "recvfrom", rings.OpRecvZC: "recv_zc", rings.OpReturn: "return", rings.OpFrameGet: "frame_get",
	rings.OpSend: "send", rings.OpSendZC: "send_zc", rings.OpSendArea: "send_area", rings.OpBufRing: "buf_ring", rings.OpCancel: "cancel",
}

// sockSim is one program.
type sockSim struct {
	*ringNet
	rng     *rand.Rand
	total   map[string]int
	user    uint64
	pending map[uint64]rings.SQE
	notify  map[uint64]bool // that must come
	lends   []uint16        // that the application believes to have
	bufs    *rings.BufGiver
	far     []sockets.Handle
}

func ringSockets(t *testing.T, seed uint64, total map[string]int) (err error) {
	n := newRingNet(t, RingConfig{SQEntries: 64, CQEntries: 128, Requests: 40, Sockets: 6, Fixed: 3, Areas: [][]byte{make([]byte, 5000)}})
	s := &sockSim{ringNet: n, rng: rand.New(rand.NewPCG(seed, 0x50c)), total: total, pending: map[uint64]rings.SQE{}, notify: map[uint64]bool{}}
	step := 0
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("step %d: %v\n%s", step, r, debug.Stack())
		}
	}()
	s.bufs, _ = rings.NewBufGiver(n.data[1024 : 1024+16*64])
	n.onPeer(func(h *sockets.Host, _ int64) {
		for _, port := range []uint16{80, 81} {
			l, _ := h.TCPListen(0, port)
			s.far = append(s.far, l)
		}
		u, _ := h.UDPBind(0, 5000)
		s.far = append(s.far, u)
	})
	n.listen(0, 90)
	s.add(rings.SQE{Opcode: rings.OpAccept, IOPrio: rings.AcceptMultishot})
	n.c.Submit()
	n.res(opSocket(1<<63, sockDgram), 1)
	n.res(n.opAddr(rings.OpBind, 1<<63, 1, 0, 91), 0)
	for ; step < 300; step++ {
		for range s.rng.IntN(4) {
			s.push()
		}
		n.c.Submit()
		if s.rng.IntN(3) == 0 {
			s.peer()
		}
		n.run()
		if s.rng.IntN(4) == 0 {
			n.pass(s.rng.Int64N(300_000_000))
		}
		s.complete()
	}
	return s.end()
}

// end ends everything, and counts.
func (s *sockSim) end() error {
	s.add(rings.SQE{}) // which ends a chain that is open
	for range 100 {    // what is cancelled may have something linked behind it
		s.add(rings.SQE{Opcode: rings.OpCancel, OpFlags: rings.CancelAny})
		s.c.Submit()
		s.run()
		s.complete()
	}
	for user, e := range s.pending {
		return fmt.Errorf("no last completion of request %d: %+v", user, e)
	}
	for fd := range int32(6) {
		s.add(rings.SQE{Opcode: rings.OpClose, FD: fd})
		s.add(rings.SQE{Opcode: rings.OpClose, FileIndex: uint32(fd%3 + 1)})
	}
	s.c.Submit()
	s.run()
	s.onPeer(func(h *sockets.Host, now int64) {
		for _, f := range s.far {
			if h.TCPAbort(f, now) != 0 {
				h.Close(f, now)
			}
		}
	})
	for range 20 {
		s.run()
		s.complete()
	}
	s.pass(5e9)
	s.complete()
	if len(s.notify) > 0 || s.q.lends.sent > 0 {
		return fmt.Errorf("%d notifications did not come, %d frames are being sent", len(s.notify), s.q.lends.sent)
	}
	s.q.Close()
	if s.q.used != 0 || s.q.lends.n != len(s.q.lends.list) || s.pool.Ledger().Counts()[umem.Lent] != 0 {
		return fmt.Errorf("after Close: %d requests, %d entries free, ledger %v", s.q.used, s.q.lends.n, s.pool.Ledger().Counts())
	}
	s.pass(200e9)
	if rx, _, tx, _ := s.host.Held(); rx != 0 || tx != 0 {
		return fmt.Errorf("%d and %d frames are held in the end: %+v", rx, tx, s.host.TCPSockets())
	}
	return nil
}

// add submits an SQE with a number of its own, if there is room.
func (s *sockSim) add(e rings.SQE) {
	slot := s.c.SQE()
	if slot == nil {
		return
	}
	s.user++
	e.UserData = s.user
	*slot = e
	s.pending[s.user] = e
}

func (s *sockSim) push() {
	e := s.sensible()
	if s.rng.IntN(10) == 0 {
		e.Opcode = rings.Op(13 + s.rng.IntN(123))
		switch e.Opcode {
		case rings.OpTimeout, rings.OpLinkTimeout, rings.OpMsg, rings.OpPollAdd:
			e.Opcode = rings.OpRecv
		}
	}
	if s.rng.IntN(20) == 0 {
		switch s.rng.IntN(6) {
		case 0:
			e.Addr = s.rng.Uint64()
		case 1:
			e.Off = s.rng.Uint64()
		case 2:
			e.Len = s.rng.Uint32()
		case 3:
			e.FileIndex = s.rng.Uint32()
		case 4:
			e.IOPrio = uint16(s.rng.Uint32())
		case 5:
			e.OpFlags = s.rng.Uint32()
		}
	}
	s.add(e)
}

// sensible is an SQE that may succeed.
func (s *sockSim) sensible() rings.SQE {
	r := s.rng
	ops := [...]rings.Op{
		rings.OpSocket, rings.OpSocket, rings.OpSocket, rings.OpBind, rings.OpBind, rings.OpListen, rings.OpListen, rings.OpConnect, rings.OpConnect,
		rings.OpConnect, rings.OpAccept, rings.OpAccept, rings.OpAccept, rings.OpShutdown, rings.OpClose, rings.OpSockName, rings.OpSetSockOpt, rings.OpGetSockOpt,
		rings.OpRecv, rings.OpRecv, rings.OpRecv, rings.OpRecvFrom, rings.OpRecvFrom, rings.OpRecvZC, rings.OpRecvZC, rings.OpRecvZC,
		rings.OpReturn, rings.OpReturn, rings.OpFrameGet, rings.OpFrameGet, rings.OpSend, rings.OpSend, rings.OpSendZC, rings.OpSendZC, rings.OpSendZC, rings.OpSendArea,
		rings.OpBufRing, rings.OpCancel, rings.OpCancel,
	}
	e := rings.SQE{Opcode: ops[r.IntN(len(ops))], FD: int32(r.IntN(7)) - 1}
	if r.IntN(4) == 0 {
		e.Flags |= rings.SQEFixedSocket
		e.FD = int32(r.IntN(3))
	}
	if r.IntN(6) == 0 {
		e.Flags |= rings.SQELink
	}
	index := func() uint32 { return [...]uint32{0, 0, 0, 1, 2, 3, rings.FileIndexAlloc}[r.IntN(7)] }
	addr := func(port uint16) uint64 { return s.addr(uint64(16*r.IntN(60)), peerAddr, port) }
	flags := func() uint32 { return [...]uint32{0, 0, rings.MsgDontWait, rings.MsgWaitAll}[r.IntN(4)] }
	switch e.Opcode {
	case rings.OpSocket:
		e.FD, e.Off, e.FileIndex = afInet, uint64(1+r.IntN(2)), index()
	case rings.OpBind:
		e.Addr, e.Off = s.addr(uint64(16*r.IntN(60)), 0, [...]uint16{0, 0, 90, 91}[r.IntN(4)]), rings.SockAddrSize
	case rings.OpConnect:
		e.Addr, e.Off = addr([...]uint16{80, 80, 81, 5000, 99}[r.IntN(5)]), rings.SockAddrSize
	case rings.OpAccept:
		if e.FileIndex = index(); r.IntN(2) == 0 {
			e.IOPrio = rings.AcceptMultishot
		}
	case rings.OpShutdown:
		e.Len = uint32(r.IntN(3))
	case rings.OpClose:
		if e.FD = max(e.FD, 2); r.IntN(10) == 0 {
			e.FD = int32(r.IntN(2))
		}
		if e.Flags &^= rings.SQEFixedSocket; r.IntN(2) == 0 {
			e.FD, e.FileIndex = 0, uint32(1+r.IntN(3))
		}
	case rings.OpSockName:
		e.Addr, e.Len, e.OpFlags = 512, 16, uint32(r.IntN(2))
	case rings.OpGetSockOpt:
		e.Len, e.OpFlags, e.Addr, e.Off = solTCP, tcpInfo, 512, 152
	case rings.OpSetSockOpt:
		e.Len, e.OpFlags, e.Off = solTCP, tcpNoDelay, uint64(r.IntN(2))
	case rings.OpRecv, rings.OpRecvFrom:
		if e.Addr, e.Len, e.OpFlags = uint64(bufAt+r.IntN(10_000)), uint32(r.IntN(3000)), flags(); r.IntN(2) == 0 {
			e.Flags |= rings.SQEBufferSelect
			e.Addr, e.Len, e.OpFlags = 0, 0, 0
			e.IOPrio = [...]uint16{0, rings.RecvMultishot, rings.RecvBundle, rings.RecvMultishot | rings.RecvBundle, rings.PollFirst}[r.IntN(5)]
		}
	case rings.OpRecvZC:
		e.IOPrio = [...]uint16{0, rings.RecvMultishot, rings.PollFirst}[r.IntN(3)]
	case rings.OpReturn:
		e.FD, e.BufGroup = 0, s.anyLend(true)
	case rings.OpFrameGet, rings.OpBufRing:
		if e.FD = 0; e.Opcode == rings.OpBufRing {
			e.Addr, e.Len = 1024, 64
		}
	case rings.OpSend:
		e.Addr, e.Len, e.OpFlags = bufAt, uint32(r.IntN(40_000)), flags()
		if r.IntN(3) == 0 {
			e.Len, e.Off, e.FileIndex = e.Len%3000, addr(5000), rings.SockAddrSize
		}
	case rings.OpSendZC:
		e.BufGroup, e.Len, e.OpFlags, e.IOPrio = s.anyLend(false), uint32(r.IntN(600)), flags(), uint16(r.IntN(2)*rings.ReportUsage)
		if r.IntN(8) == 0 {
			e.Len = 1700
		}
		if r.IntN(3) == 0 {
			e.Off, e.FileIndex = addr(5000), rings.SockAddrSize
		}
	case rings.OpSendArea:
		e.Off, e.Len = uint64(r.IntN(1000)), uint32(r.IntN(4000))
	case rings.OpCancel:
		e.FD, e.Addr = 0, s.user-uint64(r.IntN(20))
	}
	return e
}

// anyLend is a frame that the application has, or any number.
func (s *sockSim) anyLend(drop bool) uint16 {
	if len(s.lends) == 0 {
		return uint16(s.rng.IntN(2 * lendCount))
	}
	k := s.rng.IntN(len(s.lends))
	id := s.lends[k]
	if drop {
		s.lends = append(s.lends[:k], s.lends[k+1:]...)
	}
	return id
}

// complete takes the completions and keeps the books.
func (s *sockSim) complete() {
	for {
		c, ok := s.c.Peek()
		if !ok {
			return
		}
		s.c.Seen(1)
		if c.Flags&rings.CQENotif != 0 {
			if !s.notify[c.UserData] {
				panic(fmt.Sprintf("a notification %v that nobody waits for", c))
			}
			delete(s.notify, c.UserData)
			s.total["notifications"]++
			if c.Res == rings.NotifCopied {
				s.total["copied"]++
			}
			s.run()
			continue
		}
		e, ok := s.pending[c.UserData]
		if !ok {
			panic(fmt.Sprintf("a completion %v of nothing that is pending", c))
		}
		s.ended(c, e)
		s.run() // which moves what waits behind a full CQ
	}
}

func (s *sockSim) ended(c rings.CQE, e rings.SQE) {
	if c.Res >= 0 {
		s.total[simOps[e.Opcode]]++
	}
	id := uint16(c.Flags >> rings.CQEBufferShift)
	switch {
	case c.Flags&rings.CQEBuffer == 0:
	case e.Opcode == rings.OpRecvZC || e.Opcode == rings.OpFrameGet:
		s.lends = append(s.lends, id)
	}
	if e.Opcode == rings.OpBufRing && c.Res == 0 {
		for i := range 60 {
			s.bufs.Add(rings.Buf{Addr: uint64(bufAt + 512*i), Len: uint32(1 + 37*i%500), ID: uint16(i)})
		}
		s.bufs.Publish()
	}
	if c.Flags&rings.CQEMore == 0 {
		delete(s.pending, c.UserData)
		return
	}
	if e.Opcode == rings.OpSendZC {
		s.notify[c.UserData] = true
		delete(s.pending, c.UserData)
		return
	}
	s.total["multishot"]++
}

// peer does something at the other end.
func (s *sockSim) peer() {
	b := make([]byte, s.rng.IntN(5000))
	s.onPeer(func(h *sockets.Host, now int64) {
		switch k := s.rng.IntN(10); {
		case k < 3:
			for _, l := range s.far[:2] {
				if c, err := h.TCPAccept(l); err == 0 {
					s.far = append(s.far, c)
				}
			}
		case k < 5:
			if c, err := h.TCPDial(0, 0, ourAddr, [...]uint16{90, 91}[s.rng.IntN(2)], now); err == 0 {
				s.far = append(s.far, c)
			}
		case k < 6:
			_ = h.UDPSend(s.far[2], b, addrPort(ourAddr, [...]uint16{90, 91}[s.rng.IntN(2)]), now)
		case len(s.far) > 3:
			i := 3 + s.rng.IntN(len(s.far)-3)
			switch f := s.far[i]; s.rng.IntN(8) {
			case 0:
				h.Close(f, now)
				s.far = append(s.far[:i], s.far[i+1:]...)
			case 1:
				h.TCPShutdown(f, now)
			case 2, 3, 4:
				_, _ = h.TCPWrite(f, b, now)
			default:
				_, _ = h.TCPRead(f, b, now)
			}
		}
	})
}
