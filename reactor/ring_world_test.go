package reactor

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/internal/simnet"
	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// The world of rings: two engines on a wire that loses frames, a ring on each, and applications that do at random what
// can be done with sockets. What must hold: each request ends exactly once, each SEND_ZC that took its frame tells once
// that it is free, streams and datagrams arrive as they were sent, and in the end no frame is held or lent. In a hostile
// world garbage is submitted as well; then only the books must balance.

type ringWorld struct {
	rng     *rand.Rand
	clock   *simnet.Clock
	ends    [2]*worldEnd
	hostile bool
	loss    float64
	total   map[string]int
}

// worldEnd is an application with its engine.
type worldEnd struct {
	*ringRig
	w     *ringWorld
	other proto.Addr
	data  []byte
	owed  map[uint64]*worldReq // by user data
	user  uint64
	socks []*worldSock
	bufs  []uint64 // free buffers of bufSize
	giver *rings.BufGiver
	given []uint16 // provided buffers, in their order
	lent  []uint16 // frames that we have
}

type worldSock struct {
	fd      int32
	fixed   bool
	udp     bool
	sending bool
	live    bool // connected, at some time
	sent    int  // bytes of the stream
	got     int
}

type worldReq struct {
	op      rings.Op
	k       *worldSock
	buf     uint64 // our buffer; 0: none
	lent    uint16
	n       int
	born    *worldSock // by SOCKET
	multi   bool
	bundle  bool
	quiet   bool // says nothing unless it fails
	notif   bool // only its notification is missing
	claimed bool // there is a lent frame with it
}

const (
	bufSize     = 6144 // takes the longest datagram
	longestUDP  = 5000
	worldGroup  = 7
	worldGroups = 8 // provided buffers
	worldLends  = 12
	worldBufs   = 1 << 12
	worldTable  = 1 << 11
	worldArea   = 1 << 16
)

func TestRingWorld(t *testing.T) {
	first, n := seeds.Range(t, 200)
	total := map[string]int{}
	seeds.Each(t, first, n, func(seed uint64) error { return runRingWorld(t, seed, total) })
	t.Logf("%d seeds from %d: %v", n, first, total)
	for _, what := range []string{"bytes", "datagrams", "accepted", "more", "bundle", "lent", "notified", "fixed", "ECANCELED", "ENOBUFS", "stream ended", "stopped", "done"} {
		if n >= 150 && total[what] == 0 {
			t.Errorf("%q never happened: the world does not try what it should", what)
		}
	}
}

func runRingWorld(t *testing.T, seed uint64, total map[string]int) (err error) {
	rng := rand.New(rand.NewPCG(seed, 0x3017d))
	w := &ringWorld{rng: rng, clock: simnet.NewClock(1e12), total: total, hostile: rng.IntN(4) == 0}
	if rng.IntN(2) == 0 {
		w.loss = 0.05 * rng.Float64()
	}
	step := 0
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("step %d: %v\n%s", step, r, debug.Stack())
		}
	}()
	w.ends[0], w.ends[1] = w.newEnd(t, ourMAC, ourAddr, peerAddr), w.newEnd(t, peerMAC, peerAddr, ourAddr)
	for ; step < 400; step++ {
		for _, e := range w.ends {
			for range rng.IntN(4) {
				e.act()
			}
			e.reap(rng.IntN(20))
		}
		w.turn()
		if rng.IntN(4) == 0 {
			w.clock.AdvanceTo(w.clock.Now() + rng.Int64N(20_000_000))
		}
	}
	return w.end()
}

func (w *ringWorld) newEnd(t *testing.T, mac proto.MAC, addr, other proto.Addr) *worldEnd {
	g := newRig(t, options{frames: 1024, ring: 256, change: func(c *Config, h *sockets.Config) {
		c.Clock = w.clock.Now
		h.MAC, h.Addrs = mac, []sockets.Prefix{{Addr: addr, Bits: 24}}
		h.SndBuf, h.RcvBuf = 4096<<w.rng.IntN(8), 8192<<w.rng.IntN(6)
	}})
	e := &worldEnd{w: w, other: other, data: make([]byte, 1<<20), owed: map[uint64]*worldReq{}}
	area := make([]byte, worldArea)
	for i := range area {
		area[i] = streamByte(i)
	}
	e.ringRig = ringOn(g, RingConfig{
		SQEntries: 64, CQEntries: 1 << w.rng.IntN(8), Requests: 1 + w.rng.IntN(80), Sockets: 12, Fixed: 6, Data: e.data,
		Lends: worldLends, LendTable: worldTable, Areas: [][]byte{area},
	})
	for at := uint64(worldBufs); at < uint64(len(e.data)-bufSize); at += bufSize {
		e.bufs = append(e.bufs, at)
	}
	ring := e.data[1024 : 1024+worldGroups*rings.BufEntrySize]
	e.giver, _ = rings.NewBufGiver(ring)
	e.send(&worldReq{op: rings.OpBufRing}, rings.SQE{Opcode: rings.OpBufRing, Addr: 1024, Len: worldGroups, BufGroup: worldGroup})
	for range worldGroups {
		e.give(e.buffer())
	}
	return e
}

// streamByte is what stands at a place of any stream.
func streamByte(i int) byte { return byte(i*131 ^ i>>8*29 ^ i>>16) }

func (e *worldEnd) buffer() uint64 {
	if len(e.bufs) == 0 {
		return 0
	}
	b := e.bufs[len(e.bufs)-1]
	e.bufs = e.bufs[:len(e.bufs)-1]
	return b
}

// give provides a buffer. Its number says where it is.
func (e *worldEnd) give(at uint64) {
	id := uint16((at - worldBufs) / bufSize)
	e.giver.Add(rings.Buf{Addr: at, Len: bufSize, ID: id})
	e.given = append(e.given, id)
	e.giver.Publish()
}

// send submits an SQE, or says that there is no room.
func (e *worldEnd) send(r *worldReq, s rings.SQE) bool {
	slot := e.c.SQE()
	if slot == nil {
		return false
	}
	e.user++
	s.UserData = e.user
	if r.k != nil {
		s.FD = r.k.fd
		if r.k.fixed {
			s.Flags |= rings.SQEFixedSocket
		}
	}
	r.quiet = s.Flags&rings.SQESkipSuccess != 0
	e.owed[e.user] = r
	*slot = s
	e.c.Submit()
	return true
}

// act submits something.
func (e *worldEnd) act() {
	rng := e.w.rng
	if e.c.app.SQ.Free() < 4 {
		return
	}
	if e.w.hostile && rng.IntN(3) == 0 {
		e.garbage()
		return
	}
	if len(e.socks) < 3 || len(e.socks) < 9 && rng.IntN(8) == 0 {
		e.open()
		return
	}
	k := e.socks[rng.IntN(len(e.socks))]
	if live := slices.IndexFunc(e.socks, func(k *worldSock) bool { return k.live }); live >= 0 && rng.IntN(2) == 0 {
		k = e.socks[live]
	}
	switch rng.IntN(17) {
	case 14, 15, 16:
		if k.live {
			e.write(k)
			e.read(k)
		}
	case 0, 1, 2:
		e.write(k)
	case 3, 4, 5, 6:
		e.read(k)
	case 7:
		e.limited(k)
	case 8:
		s := rings.SQE{Opcode: rings.OpCancel, OpFlags: rings.CancelFD | rings.CancelAll, FD: k.fd}
		if k.fixed {
			s.OpFlags |= rings.CancelFixed
		}
		if rng.IntN(2) == 0 {
			s = rings.SQE{Opcode: rings.OpCancel, Addr: e.user - rng.Uint64N(20)}
		}
		e.send(&worldReq{op: s.Opcode}, s)
	case 9:
		e.send(&worldReq{op: rings.OpPollAdd, k: k, multi: true}, rings.SQE{Opcode: rings.OpPollAdd, OpFlags: 5, Len: rings.PollMulti})
	case 10:
		e.send(&worldReq{op: rings.OpShutdown, k: k}, rings.SQE{Opcode: rings.OpShutdown, Len: uint32(rng.IntN(3))})
	case 11:
		e.send(&worldReq{op: rings.OpNop}, rings.SQE{Opcode: rings.OpNop, Flags: rings.SQESkipSuccess})
	case 12:
		e.send(&worldReq{op: rings.OpTimeout}, rings.SQE{Opcode: rings.OpTimeout, Addr: rng.Uint64N(1e8), Off: rng.Uint64N(3)})
	case 13:
		if rng.IntN(2) == 0 {
			e.close(k)
		}
	}
}

// open makes a socket of some use: bound and listening, connected, or for datagrams.
func (e *worldEnd) open() {
	rng := e.w.rng
	typ, index := uint64(sockStream), uint32(0)
	k := &worldSock{udp: rng.IntN(4) == 0}
	if k.udp {
		typ = sockDgram
	}
	if k.fixed = rng.IntN(3) == 0; k.fixed {
		index = rings.FileIndexAlloc
	}
	e.send(&worldReq{op: rings.OpSocket, born: k}, rings.SQE{Opcode: rings.OpSocket, FD: afInet, Off: typ, FileIndex: index})
}

// begin gives a new socket something to be.
func (e *worldEnd) begin(k *worldSock) {
	rng := e.w.rng
	e.socks = append(e.socks, k)
	at := uint64(16 * (e.user % 60))
	port := uint16(100 + rng.IntN(3))
	if k.udp {
		rings.PutSockAddr(e.data[at:], addrPort(0, port))
		e.send(&worldReq{op: rings.OpBind, k: k}, rings.SQE{Opcode: rings.OpBind, Addr: at, Off: rings.SockAddrSize})
		return
	}
	if rng.IntN(2) == 0 {
		rings.PutSockAddr(e.data[at:], addrPort(0, port))
		e.send(&worldReq{op: rings.OpBind, k: k}, rings.SQE{Opcode: rings.OpBind, Flags: rings.SQELink, Addr: at, Off: rings.SockAddrSize})
		e.send(&worldReq{op: rings.OpListen, k: k}, rings.SQE{Opcode: rings.OpListen, Len: 8})
		multi := rng.IntN(2) == 0
		s := rings.SQE{Opcode: rings.OpAccept}
		if multi {
			s.IOPrio = rings.AcceptMultishot
		}
		if k.fixed {
			s.FileIndex = rings.FileIndexAlloc
		}
		e.send(&worldReq{op: rings.OpAccept, k: k, multi: multi}, s)
		return
	}
	rings.PutSockAddr(e.data[at:], addrPort(e.other, port))
	e.send(&worldReq{op: rings.OpConnect, k: k}, rings.SQE{Opcode: rings.OpConnect, Addr: at, Off: rings.SockAddrSize})
}

func (e *worldEnd) close(k *worldSock) {
	s := rings.SQE{Opcode: rings.OpClose, FD: k.fd}
	if k.fixed {
		s.FD, s.FileIndex = 0, uint32(k.fd)+1
	}
	if e.send(&worldReq{op: rings.OpClose}, s) {
		e.socks = slices.DeleteFunc(e.socks, func(o *worldSock) bool { return o == k })
	}
}

// limited reads under a LINK_TIMEOUT.
func (e *worldEnd) limited(k *worldSock) {
	buf := e.buffer()
	if buf == 0 {
		return
	}
	e.send(&worldReq{op: rings.OpRecv, k: k, buf: buf}, rings.SQE{Opcode: rings.OpRecv, Flags: rings.SQELink, Addr: buf, Len: bufSize})
	e.send(&worldReq{op: rings.OpLinkTimeout}, rings.SQE{Opcode: rings.OpLinkTimeout, Addr: e.w.rng.Uint64N(1e8)})
}

func (e *worldEnd) read(k *worldSock) {
	rng := e.w.rng
	r := &worldReq{op: rings.OpRecv, k: k}
	s := rings.SQE{Opcode: rings.OpRecv}
	switch rng.IntN(6) {
	case 0, 1:
		if r.buf = e.buffer(); r.buf == 0 {
			return
		}
		s.Addr, s.Len = r.buf, bufSize
		if !k.udp {
			s.Len = uint32(1 + rng.IntN(bufSize))
			s.OpFlags = [...]uint32{0, rings.MsgWaitAll, rings.MsgDontWait}[rng.IntN(3)]
		}
	case 2:
		s.Flags, s.BufGroup = rings.SQEBufferSelect, worldGroup
	case 3:
		s.Flags, s.BufGroup, s.IOPrio, r.multi = rings.SQEBufferSelect, worldGroup, rings.RecvMultishot, true
	case 4:
		if k.udp {
			return
		}
		s.Flags, s.BufGroup, s.IOPrio, r.bundle = rings.SQEBufferSelect, worldGroup, rings.RecvBundle, true
		if r.multi = rng.IntN(2) == 0; r.multi {
			s.IOPrio |= rings.RecvMultishot
		}
	case 5:
		s.Opcode, r.op = rings.OpRecvZC, rings.OpRecvZC
		if r.multi = rng.IntN(2) == 0; r.multi {
			s.IOPrio = rings.RecvMultishot
		}
	}
	e.send(r, s)
}

// write sends, if nothing else is on its way: what is sent next depends on how much of it went.
func (e *worldEnd) write(k *worldSock) {
	if k.sending {
		return
	}
	rng := e.w.rng
	r := &worldReq{op: rings.OpSend, k: k, n: 1 + rng.IntN(bufSize)}
	s := rings.SQE{Opcode: rings.OpSend}
	switch kind := rng.IntN(4); {
	case k.udp:
		r.n = 8 + rng.IntN(longestUDP-8)
		at := uint64(16 * (e.user % 60))
		rings.PutSockAddr(e.data[at:], addrPort(e.other, uint16(100+rng.IntN(3))))
		s.Off, s.FileIndex = at, rings.SockAddrSize
	case kind == 0:
		s.OpFlags = rings.MsgWaitAll
	case kind == 1 && k.sent+r.n < worldArea:
		s.Opcode, r.op, s.Off = rings.OpSendArea, rings.OpSendArea, uint64(k.sent)
		s.Len = uint32(r.n)
		k.sending = e.send(r, s)
		return
	}
	if rng.IntN(3) == 0 {
		e.writeZC(k, r, s)
		return
	}
	if r.buf = e.buffer(); r.buf == 0 {
		return
	}
	s.Addr, s.Len = r.buf, uint32(r.n)
	e.pattern(k, e.data[r.buf:][:r.n])
	k.sending = e.send(r, s)
}

// writeZC sends a lent frame, or first asks for one.
func (e *worldEnd) writeZC(k *worldSock, r *worldReq, s rings.SQE) {
	if len(e.lent) == 0 {
		e.send(&worldReq{op: rings.OpFrameGet}, rings.SQE{Opcode: rings.OpFrameGet})
		return
	}
	id := e.lent[0]
	l := e.entry(id)
	if l.Len < 8 {
		e.giveBack(0)
		return
	}
	s.Opcode, r.op, r.lent, r.claimed = rings.OpSendZC, rings.OpSendZC, id, true
	r.n = min(r.n, int(l.Len))
	e.pattern(k, e.pool.Region().Mem()[l.Addr:][:r.n])
	s.BufGroup, s.Len = id, uint32(r.n)
	if e.w.rng.IntN(2) == 0 {
		s.IOPrio = rings.ReportUsage
	}
	if k.sending = e.send(r, s); k.sending {
		e.lent = e.lent[1:]
	}
}

func (e *worldEnd) giveBack(i int) {
	if e.send(&worldReq{op: rings.OpReturn, lent: e.lent[i]}, rings.SQE{Opcode: rings.OpReturn, BufGroup: e.lent[i]}) {
		e.lent = slices.Delete(e.lent, i, i+1)
	}
}

func (e *worldEnd) entry(id uint16) rings.Lent {
	return rings.ParseLent(e.data[worldTable+int(id)*rings.LentSize:])
}

// pattern writes what the stream says next, or a datagram that says how it goes on.
func (e *worldEnd) pattern(k *worldSock, b []byte) {
	from := k.sent
	if k.udp {
		from = e.w.rng.IntN(1 << 16)
	}
	for i := range b {
		b[i] = streamByte(from + i)
	}
	if k.udp {
		b[0], b[1], b[2], b[3] = byte(from>>8), byte(from), byte(len(b)>>8), byte(len(b))
	}
}

// received checks what came, in one or several pieces.
func (e *worldEnd) received(k *worldSock, pieces ...[]byte) {
	b := slices.Concat(pieces...)
	from := k.got
	if k.udp {
		e.w.total["datagrams"]++
		from = int(b[0])<<8 | int(b[1])
		if n := int(b[2])<<8 | int(b[3]); n != len(b) {
			panic(fmt.Sprintf("a datagram of %d bytes comes as %d", n, len(b)))
		}
		copy(b, []byte{streamByte(from), streamByte(from + 1), streamByte(from + 2), streamByte(from + 3)})
	} else {
		k.got += len(b)
		e.w.total["bytes"] += len(b)
	}
	for i := range b {
		if b[i] != streamByte(from+i) {
			panic(fmt.Sprintf("byte %d of %d received differs from what was sent (stream at %d)", i, len(b), from))
		}
	}
}

// garbage submits anything, under user data of which nothing is expected.
func (e *worldEnd) garbage() {
	s := garbageSQE(e.w.rng)
	s.UserData |= 1 << 63
	s.Flags &^= rings.SQEDrain | rings.SQELink | rings.SQEHardLink
	if e.w.rng.IntN(2) == 0 {
		s.FD, s.IOPrio, s.Off, s.FileIndex = int32(e.w.rng.IntN(12)), 0, 0, 0
		s.Opcode = [...]rings.Op{rings.OpClose, rings.OpRecv, rings.OpSend, rings.OpReturn, rings.OpSendZC, rings.OpRecvZC,
			rings.OpAccept, rings.OpShutdown, rings.OpListen, rings.OpBufRing}[e.w.rng.IntN(10)]
	}
	if slot := e.c.SQE(); slot != nil {
		*slot = s
		e.c.Submit()
	}
}

// reap takes completions and sees that they are owed.
func (e *worldEnd) reap(limit int) {
	for range limit {
		c, ok := e.c.Peek()
		if !ok {
			return
		}
		e.c.Seen(1)
		if c.UserData>>63 != 0 {
			continue
		}
		e.completed(c)
	}
}

func (e *worldEnd) completed(c rings.CQE) {
	r := e.owed[c.UserData]
	switch {
	case r == nil:
		panic(fmt.Sprintf("completion %+v, which nobody is owed", c))
	case r.notif != (c.Flags&rings.CQENotif != 0):
		panic(fmt.Sprintf("completion %+v of opcode %d; only its notification is missing: %v", c, r.op, r.notif))
	case c.Res < 0 && c.Flags&rings.CQENotif == 0:
		e.w.total[errnoName(sockets.Errno(-c.Res))]++
	}
	more := c.Flags&rings.CQEMore != 0
	if more && !r.multi && r.op != rings.OpSendZC {
		panic(fmt.Sprintf("completion %+v of opcode %d says that more will come", c, r.op))
	}
	if more {
		e.w.total["more"]++
	} else {
		delete(e.owed, c.UserData)
		e.w.total["done"]++
		if r.multi && c.Res >= 0 {
			e.w.total["stopped"]++
		}
		if r.buf != 0 {
			defer func() { e.bufs = append(e.bufs, r.buf) }()
		}
	}
	switch r.op {
	case rings.OpSocket:
		if c.Res >= 0 {
			k := r.born
			k.fd = c.Res
			if k.fixed {
				e.w.total["fixed"]++
			}
			e.begin(k)
		}
	case rings.OpConnect:
		r.k.live = c.Res == 0
	case rings.OpAccept:
		if c.Res >= 0 {
			e.w.total["accepted"]++
			e.socks = append(e.socks, &worldSock{fd: c.Res, fixed: r.k.fixed, live: true})
		}
	case rings.OpSend, rings.OpSendArea, rings.OpSendZC:
		e.wrote(r, c)
	case rings.OpRecv, rings.OpRecvZC:
		e.readDone(r, c)
	case rings.OpFrameGet:
		if c.Res >= 0 {
			e.lent = append(e.lent, uint16(c.Flags>>16))
			e.w.total["lent"]++
		}
	}
}

func errnoName(err sockets.Errno) string {
	switch err {
	case sockets.ECANCELED:
		return "ECANCELED"
	case sockets.ENOBUFS:
		return "ENOBUFS"
	}
	return "failed"
}

func (e *worldEnd) wrote(r *worldReq, c rings.CQE) {
	if c.Flags&rings.CQENotif != 0 {
		e.w.total["notified"]++
		return
	}
	r.k.sending = false
	if c.Res > 0 {
		r.k.sent += int(c.Res)
	}
	if r.op == rings.OpSendZC {
		if r.notif = c.Flags&rings.CQEMore != 0; !r.notif && c.Res != -int32(sockets.ENOENT) {
			e.lent = append(e.lent, r.lent) // it is still ours
		}
	}
}

func (e *worldEnd) readDone(r *worldReq, c rings.CQE) {
	if c.Res == 0 && !r.k.udp {
		e.w.total["stream ended"]++
	}
	selected := c.Flags&rings.CQEBuffer != 0
	switch {
	case r.op == rings.OpRecvZC && selected:
		e.gotZC(r, c)
	case selected:
		e.gotBuffers(r, c)
	case c.Res > 0 && !e.w.hostile:
		e.received(r.k, e.data[r.buf:][:c.Res])
	}
}

// gotBuffers: the buffers used are the first that were given and not used.
func (e *worldEnd) gotBuffers(r *worldReq, c rings.CQE) {
	if e.w.hostile { // who knows what became of the group
		return
	}
	if r.bundle {
		e.w.total["bundle"]++
	}
	var pieces [][]byte
	var used []uint64
	for left := int(c.Res); ; {
		id := e.given[0]
		if len(pieces) == 0 && id != uint16(c.Flags>>16) {
			panic(fmt.Sprintf("buffer %d was used, the first is %d", c.Flags>>16, id))
		}
		e.given = e.given[1:]
		at := worldBufs + int(id)*bufSize
		used = append(used, uint64(at))
		pieces = append(pieces, e.data[at:][:min(left, bufSize)])
		if left -= bufSize; left <= 0 || !r.bundle {
			break
		}
	}
	e.received(r.k, pieces...)
	for _, at := range used {
		e.give(at)
	}
}

func (e *worldEnd) gotZC(r *worldReq, c rings.CQE) {
	var pieces [][]byte
	for id := uint32(c.Flags>>16) + 1; id != 0; {
		l := e.entry(uint16(id - 1))
		e.lent = append(e.lent, uint16(id-1))
		pieces = append(pieces, e.pool.Region().Mem()[l.Addr:][:l.Len])
		id = l.Next
	}
	e.w.total["lent"]++
	if !e.w.hostile {
		e.received(r.k, pieces...)
	}
	for range pieces {
		if len(e.lent) > 2 {
			e.giveBack(0)
		}
	}
}

// turn has both engines work and the wire carry.
func (w *ringWorld) turn() {
	for range 3 {
		for _, e := range w.ends {
			e.r.Turn()
		}
		for i, e := range w.ends {
			frames := e.sent
			e.sent = nil
			for _, f := range frames {
				if w.rng.Float64() >= w.loss {
					w.ends[1-i].nic.Deliver(f)
				}
			}
		}
	}
}

// end closes everything and sees that nothing is left.
func (w *ringWorld) end() error {
	for _, e := range w.ends {
		e.c.Submit()
	}
	for i := range 3000 {
		w.clock.AdvanceTo(w.clock.Now() + 100_000_000)
		for _, e := range w.ends {
			e.reap(1 << 20)
			if i < 50 || e.c.app.SQ.Free() < 8 {
				continue
			}
			if len(e.socks) > 0 {
				e.close(e.socks[0])
			} else if len(e.lent) > 0 {
				e.giveBack(0)
			} else if i%100 == 0 && i < 2500 {
				e.send(&worldReq{op: rings.OpCancel}, rings.SQE{Opcode: rings.OpCancel, OpFlags: rings.CancelAny})
			}
		}
		w.turn()
	}
	for i, e := range w.ends {
		for user, r := range e.owed {
			if !r.quiet {
				return fmt.Errorf("end %d: request %d, opcode %d, never ended (notification alone: %v); %d in flight, %d lent frames sent", i, user, r.op, r.notif, e.q.used, e.q.lends.sent)
			}
		}
		if e.q.used != 0 && !w.hostile {
			return fmt.Errorf("end %d: %d requests are left", i, e.q.used)
		}
		e.q.Close()
	}
	for range 3000 {
		w.clock.AdvanceTo(w.clock.Now() + 100_000_000)
		w.turn()
	}
	for i, e := range w.ends {
		if n := e.pool.Ledger().Counts(); n[umem.Held] != 0 || n[umem.Lent] != 0 || n[umem.TX] != 0 {
			return fmt.Errorf("end %d: frames are left: held %d, lent %d, with the device %d", i, n[umem.Held], n[umem.Lent], n[umem.TX])
		}
	}
	return nil
}
