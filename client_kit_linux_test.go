package xdpd_test

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/rings"
)

// ringProgram does operations on a ring of a daemon, one after the other.
type ringProgram struct {
	q    *xdpd.RemoteRing
	user uint64
}

// call does one operation, and gives its result; a negative one is an errno.
func (p *ringProgram) call(s rings.SQE) int32 {
	p.user++
	s.UserData = p.user
	slot := p.q.SQE()
	if slot == nil {
		return -int32(unix.EBUSY)
	}
	*slot = s
	p.q.Submit()
	for {
		c, ok := p.q.Peek()
		if !ok {
			if _, err := p.q.Wait(1, -1); err != nil {
				return -int32(unix.EBADFD)
			}
			continue
		}
		p.q.Seen(1)
		if c.UserData == p.user {
			return c.Res
		}
	}
}

// at puts an address in the memory, and gives where.
func (p *ringProgram) at(a netip.AddrPort) uint64 {
	rings.PutSockAddr(p.q.Data, a)
	return 0
}

func (p *ringProgram) socket(typ uint64) int32 {
	return p.call(rings.SQE{Opcode: rings.OpSocket, FD: unix.AF_INET, Off: typ})
}

func (p *ringProgram) bind(fd int32, a netip.AddrPort) int32 {
	return p.call(rings.SQE{Opcode: rings.OpBind, FD: fd, Addr: p.at(a), Off: rings.SockAddrSize})
}

func (p *ringProgram) connect(fd int32, a netip.AddrPort) int32 {
	return p.call(rings.SQE{Opcode: rings.OpConnect, FD: fd, Addr: p.at(a), Off: rings.SockAddrSize})
}

func (p *ringProgram) listen(fd int32) int32 {
	return p.call(rings.SQE{Opcode: rings.OpListen, FD: fd})
}

func (p *ringProgram) send(fd int32, b string, to netip.AddrPort) int32 {
	s := rings.SQE{Opcode: rings.OpSend, FD: fd, Addr: 64, Len: uint32(copy(p.q.Data[64:], b))}
	if to.IsValid() {
		s.Off, s.FileIndex = p.at(to), rings.SockAddrSize
	}
	return p.call(s)
}

func (p *ringProgram) close(fd int32) int32 {
	return p.call(rings.SQE{Opcode: rings.OpClose, FD: fd})
}

const (
	streamSocket = unix.SOCK_STREAM
	dgramSocket  = unix.SOCK_DGRAM
)

// do is what a line asks: "udp ADDR:PORT", "tcp ADDR:PORT" (bound, listening), "connect TYPE ADDR:PORT", "send FD ADDR:PORT TEXT",
// "recv FD" (what is there), "close FD". The answer is a number, or an errno's name.
func (p *ringProgram) do(words []string) string {
	addr := func(i int) (a netip.AddrPort) { a, _ = netip.ParseAddrPort(words[i]); return a }
	fd := func() (n int32) { _, _ = fmt.Sscan(words[1], &n); return n }
	res := int32(0)
	switch words[0] {
	case "udp", "tcp":
		typ := uint64(dgramSocket)
		if words[0] == "tcp" {
			typ = streamSocket
		}
		k := p.socket(typ)
		if res = p.bind(k, addr(1)); res >= 0 && typ == streamSocket {
			res = p.listen(k)
		}
		if res < 0 {
			p.close(k)
		} else {
			res = k
		}
	case "connect":
		typ := uint64(dgramSocket)
		if words[1] == "tcp" {
			typ = streamSocket
		}
		k := p.socket(typ)
		if res = p.connect(k, addr(2)); res < 0 {
			p.close(k)
		} else {
			res = k
		}
	case "send":
		res = p.send(fd(), words[3], addr(2))
	case "recv":
		res = p.call(rings.SQE{Opcode: rings.OpRecv, FD: fd(), Addr: 64, Len: 4096, OpFlags: rings.MsgDontWait})
		if res >= 0 {
			return "got " + string(p.q.Data[64:64+res])
		}
	case "close":
		res = p.close(fd())
	case "touch":
		return p.touch(fd())
	case "secret": // all over its memory
		for n := range len(p.q.Data) / len(secret) {
			copy(p.q.Data[n*len(secret):], secret)
		}
	case "search":
		res = int32(bytes.Count(p.q.Data, []byte(secret)))
	case "flood": // as many datagrams as go in a while, without waiting for any
		return p.flood(fd(), addr(2))
	}
	if res < 0 {
		return unix.ErrnoName(unix.Errno(-res))
	}
	return fmt.Sprint(res)
}

const secret = "what nobody else must see "

// touch tries all that can be done with a number that is no socket of this ring, and with what is no ring and no frame of it, and gives
// the different outcomes.
func (p *ringProgram) touch(fd int32) string {
	addr := p.at(netip.AddrPortFrom(netip.IPv4Unspecified(), 0))
	seen := map[string]bool{}
	for _, s := range []rings.SQE{
		{Opcode: rings.OpRecv, FD: fd, Addr: 64, Len: 100}, {Opcode: rings.OpRecvFrom, FD: fd, Addr: 64, Len: 100},
		{Opcode: rings.OpRecvZC, FD: fd}, {Opcode: rings.OpSend, FD: fd, Addr: 64, Len: 100}, {Opcode: rings.OpSendZC, FD: fd, Len: 100},
		{Opcode: rings.OpAccept, FD: fd}, {Opcode: rings.OpListen, FD: fd}, {Opcode: rings.OpShutdown, FD: fd, Len: 2},
		{Opcode: rings.OpBind, FD: fd, Addr: addr, Off: rings.SockAddrSize}, {Opcode: rings.OpConnect, FD: fd, Addr: addr, Off: rings.SockAddrSize},
		{Opcode: rings.OpSockName, FD: fd, Addr: 64, Len: 16}, {Opcode: rings.OpPollAdd, FD: fd, OpFlags: 1},
		{Opcode: rings.OpSetSockOpt, FD: fd, Len: 6, OpFlags: 1, Off: 1}, {Opcode: rings.OpCancel, FD: fd, OpFlags: rings.CancelFD | rings.CancelAll},
		{Opcode: rings.OpMsg, FD: fd, Off: 1}, {Opcode: rings.OpClose, FD: fd},
		{Opcode: rings.OpReturn, BufGroup: uint16(fd)}, {Opcode: rings.OpSendArea, FD: fd, BufGroup: uint16(fd), Len: 1},
	} {
		if res := p.call(s); res < 0 {
			seen[unix.ErrnoName(unix.Errno(-res))] = true
		} else {
			seen[fmt.Sprintf("opcode %d gave %d", s.Opcode, res)] = true
		}
	}
	return strings.Join(slices.Sorted(maps.Keys(seen)), " ")
}

// flood sends datagrams to an address, the SQ always full, until the application is ended.
func (p *ringProgram) flood(fd int32, to netip.AddrPort) string {
	at := p.at(to)
	buf := make([]rings.CQE, 256)
	for sent := 0; ; {
		for s := p.q.SQE(); s != nil; s = p.q.SQE() {
			*s = rings.SQE{Opcode: rings.OpSend, FD: fd, Off: at, FileIndex: rings.SockAddrSize, Addr: 64, Len: 1000, OpFlags: rings.MsgDontWait}
		}
		p.q.Submit()
		if _, err := p.q.Wait(1, time.Second); err != nil {
			return err.Error()
		}
		if sent += p.q.Reap(buf); sent > 1000 {
			sent = 0
			fmt.Println("flooding")
		}
	}
}
