package xdpd_test

import (
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"

	"xdpd/rings"
)

// besieger is a hostile application. Each method is a round of what it does.
type besieger struct {
	path string
	peer netip.AddrPort
	rng  *rand.Rand

	c    *rawClient
	h    rings.ShareHello
	tail uint32 // as it should be
}

// expected are the errors that a daemon may have for such a client: it is full, or wants nothing more from this user just now, and may end
// the connection without a word.
func (b *besieger) expected(err error) bool {
	return slices.ContainsFunc([]error{io.EOF, unix.EUSERS, unix.ECONNRESET, unix.EPIPE, unix.EAGAIN, unix.EMFILE, unix.ENOMEM},
		func(e error) bool { return errors.Is(err, e) })
}

// enter joins with sizes of all kinds.
func (b *besieger) enter() (err error) {
	b.h = rings.ShareHello{
		SQEntries: 1 << b.rng.IntN(9), CQEntries: 1 << b.rng.IntN(9), Requests: 1 + b.rng.Uint32N(256),
		Sockets: 1 + b.rng.Uint32N(32), Fixed: b.rng.Uint32N(8), Data: 1 << (12 + b.rng.IntN(8)),
	}
	b.c, err = join(b.path, b.h)
	b.tail = 0
	return err
}

func (b *besieger) chance(of int) bool { return b.rng.IntN(of) == 0 }

// address is one that may be used, as the memory has it at offset 0 to 63, or any other.
func (b *besieger) addresses() {
	any := netip.IPv4Unspecified()
	for i, a := range []netip.AddrPort{
		b.peer, netip.AddrPortFrom(any, hostilePort+uint16(b.rng.IntN(4))), netip.AddrPortFrom(any, 0),
		netip.AddrPortFrom(b.peer.Addr(), uint16(1+b.rng.IntN(65535))),
	} {
		rings.PutSockAddr(b.c.mem[b.c.data+16*i:], a)
	}
}

// sqe is a request that makes some sense, mostly.
func (b *besieger) sqe() (s rings.SQE) {
	rng := b.rng
	ops := []rings.Op{
		rings.OpNop, rings.OpPollAdd, rings.OpPollRemove, rings.OpTimeout, rings.OpTimeoutRemove, rings.OpAccept, rings.OpCancel, rings.OpLinkTimeout,
		rings.OpConnect, rings.OpClose, rings.OpSend, rings.OpRecv, rings.OpShutdown, rings.OpMsg, rings.OpSocket, rings.OpSendZC, rings.OpBind,
		rings.OpListen, rings.OpRecvZC, rings.OpRecvFrom, rings.OpReturn, rings.OpFrameGet, rings.OpSendArea, rings.OpBufRing, rings.OpSockName, rings.OpSetSockOpt,
		rings.OpGetSockOpt, rings.OpEpollCtl, rings.OpEpollCtl, rings.OpEpollWait,
	}
	likely := []rings.Op{rings.OpSocket, rings.OpBind, rings.OpListen, rings.OpConnect, rings.OpSend, rings.OpRecv, rings.OpAccept}
	s.Opcode, s.UserData = ops[rng.IntN(len(ops))], uint64(rng.IntN(16))
	if b.chance(2) {
		s.Opcode = likely[rng.IntN(len(likely))]
	}
	s.FD = int32(rng.IntN(8))
	room := uint64(b.h.Data)
	at := 64 + uint64(rng.Int64N(int64(room-64)))
	switch s.Opcode {
	case rings.OpSocket:
		s.FD, s.Off = unix.AF_INET, uint64(1+rng.IntN(2))
	case rings.OpBind, rings.OpConnect:
		s.Addr, s.Off = uint64(16*rng.IntN(4)), rings.SockAddrSize
	case rings.OpSend:
		s.Addr, s.Len, s.OpFlags = at, uint32(rng.Int64N(int64(room-at)+1)), rings.MsgDontWait
		if b.chance(2) {
			s.Off, s.FileIndex = uint64(16*rng.IntN(4)), rings.SockAddrSize
		}
	case rings.OpRecv, rings.OpRecvFrom, rings.OpSockName:
		s.Addr, s.Len = at, uint32(rng.Int64N(int64(room-at)+1))
	case rings.OpTimeout:
		s.Addr, s.Off = uint64(rng.IntN(1e6)), uint64(rng.IntN(3))
	case rings.OpBufRing:
		s.FD, s.BufGroup, s.Addr, s.Len = 0, uint16(rng.IntN(4)), at&^7, 1<<rng.IntN(8)
	case rings.OpSetSockOpt:
		s.Len, s.OpFlags, s.Off = []uint32{1, 6}[rng.IntN(2)], uint32(rng.IntN(16)), uint64(rng.IntN(3))
	case rings.OpGetSockOpt:
		s.Len, s.OpFlags, s.Addr, s.Off = []uint32{1, 6}[rng.IntN(2)], uint32(rng.IntN(16)), at, uint64(rng.IntN(200))
	case rings.OpEpollCtl:
		s.FD, s.Len, s.Off, s.OpFlags = int32(rng.IntN(4)), uint32(rng.IntN(4)), uint64(rng.IntN(8)), rng.Uint32()&0xd000201f
	case rings.OpEpollWait:
		s.FD, s.Addr, s.Len, s.OpFlags = int32(rng.IntN(4)), at, uint32(1+rng.IntN(300)), uint32(rng.IntN(2))*rings.MsgDontWait
	}
	if b.chance(4) {
		s.Flags = uint8(rng.Uint32())
		s.IOPrio = uint16(rng.IntN(32))
	}
	if b.chance(4) { // something that is not its own, or out of range
		switch rng.IntN(6) {
		case 0:
			s.FD = []int32{-1, 1 << 30, -1 << 31, int32(b.h.Sockets), int32(rng.Uint32())}[rng.IntN(5)]
		case 1:
			s.Addr = []uint64{room, room - 1, 1<<64 - 1, 1 << 63, rng.Uint64()}[rng.IntN(5)]
		case 2:
			s.Len = []uint32{1<<32 - 1, 1<<31 - 1, uint32(room), rng.Uint32()}[rng.IntN(4)]
		case 3:
			s.Off = rng.Uint64()
		case 4:
			s.FileIndex = []uint32{rings.FileIndexAlloc, 1, b.h.Fixed + 1, rng.Uint32()}[rng.IntN(4)]
		case 5:
			s.OpFlags, s.BufGroup = rng.Uint32(), uint16(rng.Uint32())
		}
	}
	return s
}

// submit puts it where the engine looks next, and moves the tail on.
func (b *besieger) submit(s rings.SQE) {
	at := 1024 + 64*int(b.tail%b.h.SQEntries)
	*(*rings.SQE)(unsafe.Pointer(&b.c.mem[at])) = s
	b.tail++
	atomic.StoreUint32(b.c.word(256), b.tail)
}

// garbage is a life of garbage: requests that make sense, requests that change under the engine's eyes, words anywhere, indices that jump.
func (b *besieger) garbage() error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.c.close()
	rng, mem := b.rng, b.c.mem
	for range 200 + rng.IntN(5000) {
		switch rng.IntN(12) {
		case 0, 1, 2, 3:
			b.submit(b.sqe())
		case 4: // takes what is there, or a part of it
			head, tail := b.c.word(512), atomic.LoadUint32(b.c.word(640))
			atomic.StoreUint32(head, tail-b.rng.Uint32N(2))
		case 5:
			b.addresses()
		case 6: // an entry that the engine may be reading
			at := 1024 + 8*rng.IntN(int(b.h.SQEntries)*8)
			binary.NativeEndian.PutUint64(mem[at:], rng.Uint64())
		case 7: // any byte of all of it
			mem[rng.IntN(len(mem))] = byte(rng.Uint32())
		case 8: // an index that jumps, and comes back
			word := b.c.word([]int{128, 256, 512, 640}[rng.IntN(4)])
			was := atomic.LoadUint32(word)
			atomic.StoreUint32(word, []uint32{was + b.h.SQEntries + 1, was - 1, was + 1<<31, 0, ^uint32(0), rng.Uint32()}[rng.IntN(6)])
			if b.chance(2) {
				atomic.StoreUint32(word, was)
			}
		case 9:
			atomic.StoreUint32(b.c.word(256), b.tail)
		case 10: // sleeps, and is to be woken at once; flags of the engine's
			atomic.StoreUint32(b.c.word([]int{384, 768, 772}[rng.IntN(3)]), rng.Uint32())
		case 11:
			if err := b.knock(1 + rng.IntN(3)); err != nil {
				return err
			}
		}
	}
	return nil
}

// knock knocks; the socket may be full of knocks.
func (b *besieger) knock(n int) error {
	raw, err := b.c.conn.SyscallConn()
	if err != nil {
		return err
	}
	for range n {
		if e := raw.Control(func(fd uintptr) {
			_, err = unix.SendmsgN(int(fd), make([]byte, 1+b.rng.IntN(2000)), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		}); e != nil || err != nil && err != unix.EAGAIN {
			return errors.Join(e, err)
		}
	}
	return nil
}

// knocks is a flood: of knocks with nothing behind them, and of completions each of which it wants to be woken for and never hears of.
func (b *besieger) knocks() error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.c.close()
	atomic.StoreUint32(b.c.word(768), 1)
	for range 500 {
		for range b.rng.IntN(4) {
			b.submit(rings.SQE{})
		}
		done := atomic.LoadUint32(b.c.word(640))
		atomic.StoreUint32(b.c.word(772), done+1)
		atomic.StoreUint32(b.c.word(512), done)
		if err := b.knock(b.rng.IntN(20)); err != nil {
			return err
		}
	}
	return nil
}

// shy ends the handshake anywhere in it.
func (b *besieger) shy() error {
	conn, err := dialDaemon(b.path)
	if err != nil {
		return err
	}
	defer conn.Close()
	switch b.rng.IntN(6) {
	case 0:
	case 1:
		_, err = conn.Write(make([]byte, b.rng.IntN(100)))
	case 2:
		h := rings.ShareHello{Magic: rings.ShareMagic, Version: b.rng.Uint32N(3), SQEntries: b.rng.Uint32(), CQEntries: b.rng.Uint32(), Data: b.rng.Uint64()}
		err = rings.SendShare(conn, &h)
	case 3: // right, and not there for the answer
		h := rings.ShareHello{Magic: rings.ShareMagic, Version: rings.ShareVersion, SQEntries: 8, CQEntries: 8, Requests: 8, Sockets: 8, Data: 4096}
		err = rings.SendShare(conn, &h)
	case 4: // and closed for writing
		h := rings.ShareHello{Magic: rings.ShareMagic, Version: rings.ShareVersion, SQEntries: 8, CQEntries: 8, Requests: 8, Sockets: 8, Data: 4096}
		if err = rings.SendShare(conn, &h); err == nil {
			err = conn.CloseWrite()
		}
	case 5: // it hears nothing from us, and never says anything
		err = conn.CloseRead()
	}
	return err
}

// guest comes, opens what it may, and goes without a word.
func (b *besieger) guest() error {
	c, err := join(b.path, rings.ShareHello{SQEntries: 16, CQEntries: 16, Requests: 16, Sockets: 8, Data: 4096})
	if err != nil {
		return err
	}
	b.c, b.tail = c, 0
	b.h = rings.ShareHello{SQEntries: 16, Sockets: 8, Data: 4096}
	defer c.close()
	b.addresses()
	for i, typ := range []uint64{streamSocket, dgramSocket, streamSocket} {
		b.submit(rings.SQE{Opcode: rings.OpSocket, FD: unix.AF_INET, Off: typ, Flags: rings.SQEHardLink})
		b.submit(rings.SQE{Opcode: rings.OpBind, FD: int32(i), Addr: 16, Off: rings.SockAddrSize, Flags: rings.SQEHardLink})
	}
	b.submit(rings.SQE{Opcode: rings.OpListen, FD: 0, Flags: rings.SQEHardLink})
	b.submit(rings.SQE{Opcode: rings.OpConnect, FD: 2, Addr: 0, Off: rings.SockAddrSize, Flags: rings.SQEHardLink})
	b.submit(rings.SQE{Opcode: rings.OpSend, FD: 2, Addr: 64, Len: 1000, Flags: rings.SQEHardLink})
	b.submit(rings.SQE{Opcode: rings.OpRecv, FD: 2, Addr: 64, Len: 1000})
	if err := b.knock(1); err != nil {
		return err
	}
	for range b.rng.IntN(5) { // some see what becomes of it
		_, _ = unix.Poll([]unix.PollFd{}, 1)
	}
	return nil
}

// holes takes the pages of the memory away again and again, while the engine uses them.
func (b *besieger) holes() error {
	if err := b.enter(); err != nil {
		return err
	}
	defer b.c.close()
	for range 100 {
		for range 8 {
			b.submit(b.sqe())
		}
		b.addresses()
		if err := unix.Madvise(b.c.mem, unix.MADV_REMOVE); err != nil {
			return err
		}
		b.tail = 0
		if err := b.knock(1); err != nil {
			return err
		}
	}
	return nil
}
