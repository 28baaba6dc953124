package xdpd_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
)

const (
	ringData  = 1 << 16
	ringLends = 64
	ringTable = ringData - ringLends*rings.LentSize
)

// ringEcho serves TCP and UDP echo on a port by one ring, without copying: what was lent is sent.
type ringEcho struct {
	c       *reactor.RingClient
	data    []byte
	sending map[int32]int // requests of a connection that are under way
	ended   map[int32]bool
	starved []rings.SQE // that ended because all frames that may be lent were
}

// What the user data of a request says: the operation in the upper half, the socket below.
const (
	echoAccept = (1 + iota) << 32
	echoRecv
	echoSend
	echoUDP
	echoUDPSend
	echoClose
)

// ringOf makes a ring on a reactor; it closes with the test.
func ringOf(t testing.TB, stack *xdpd.Stack, number int) (*reactor.RingClient, []byte) {
	t.Helper()
	data := make([]byte, ringData)
	q, err := stack.Ring(xdpd.RingConfig{Reactor: number, RingConfig: reactor.RingConfig{
		Data: data, Lends: ringLends, LendTable: ringTable,
	}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(q.Close)
	return q.Client(), data
}

// ringAsk submits one SQE and waits for its completion.
func ringAsk(t testing.TB, c *reactor.RingClient, s rings.SQE) int32 {
	t.Helper()
	*c.SQE() = s
	c.Submit()
	if n, err := c.Wait(1, patience); n == 0 || err != nil {
		t.Fatalf("no completion of operation %d: %v", s.Opcode, err)
	}
	cqe, _ := c.Peek()
	c.Seen(1)
	return cqe.Res
}

// serveRingEcho has one socket of each protocol listen on port; a goroutine serves them until the ring ends.
func serveRingEcho(t testing.TB, stack *xdpd.Stack, port uint16) {
	t.Helper()
	c, data := ringOf(t, stack, 0)
	serveEchoOn(t, c, data, port)
}

// serveEchoOn does it on any ring with ringData bytes of data and ringLends frames to lend.
func serveEchoOn(t testing.TB, c *reactor.RingClient, data []byte, port uint16) {
	t.Helper()
	e := &ringEcho{c: c, data: data, sending: make(map[int32]int), ended: make(map[int32]bool)}
	rings.PutSockAddr(e.data, netip.AddrPortFrom(netip.IPv4Unspecified(), port))
	for _, s := range []rings.SQE{
		{Opcode: rings.OpSocket, FD: 2, Off: 1}, {Opcode: rings.OpBind, FD: 0, Off: 16}, {Opcode: rings.OpListen, FD: 0, Len: 128},
		{Opcode: rings.OpSocket, FD: 2, Off: 2}, {Opcode: rings.OpBind, FD: 1, Off: 16},
	} {
		if res := ringAsk(t, e.c, s); res < 0 {
			t.Fatalf("operation %d: %v", s.Opcode, sockets.Errno(-res))
		}
	}
	e.push(rings.SQE{Opcode: rings.OpAccept, IOPrio: rings.AcceptMultishot, UserData: echoAccept})
	e.push(rings.SQE{Opcode: rings.OpRecvZC, FD: 1, IOPrio: rings.RecvMultishot, UserData: echoUDP})
	e.c.Submit()
	done := make(chan error, 1)
	stop := make(chan struct{})
	go func() { done <- e.run(stop) }()
	t.Cleanup(func() { // before the ring is closed there must be nobody who uses it
		close(stop)
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func (e *ringEcho) push(s rings.SQE) {
	slot := e.c.SQE()
	for ; slot == nil; slot = e.c.SQE() {
		e.c.Submit()
	}
	*slot = s
}

func (e *ringEcho) run(stop chan struct{}) error {
	buf := make([]rings.CQE, 64)
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		if _, err := e.c.Wait(1, 20*time.Millisecond); err != nil {
			return err
		}
		for _, c := range buf[:e.c.Reap(buf)] {
			if err := e.completed(c); err != nil {
				return err
			}
		}
		e.c.Submit()
	}
}

// completed goes on where a request is done.
func (e *ringEcho) completed(c rings.CQE) error {
	op, fd := c.UserData>>32<<32, int32(uint32(c.UserData))
	id := uint16(c.Flags >> rings.CQEBufferShift)
	recv := rings.SQE{Opcode: rings.OpRecvZC, FD: fd, IOPrio: rings.RecvMultishot, UserData: echoRecv | uint64(fd)}
	if op == echoUDP {
		recv.FD, recv.UserData = 1, echoUDP
	}
	switch {
	case c.Flags&rings.CQENotif != 0: // a frame is free: there may be room for another
		for _, s := range e.starved {
			e.push(s)
		}
		e.starved = e.starved[:0]
	case c.Res == -int32(sockets.ENOBUFS) && (op == echoRecv || op == echoUDP):
		e.starved = append(e.starved, recv)
	case c.Res < 0:
		return fmt.Errorf("operation %d on socket %d: %w", op>>32, fd, sockets.Errno(-c.Res))
	case op == echoAccept:
		recv.FD, recv.UserData = c.Res, echoRecv|uint64(c.Res)
		e.push(recv)
	case op == echoRecv && c.Res > 0:
		e.sending[fd]++
		e.push(rings.SQE{Opcode: rings.OpSendZC, FD: fd, BufGroup: id, Len: uint32(c.Res), UserData: echoSend | uint64(fd)})
	case op == echoUDP:
		e.push(rings.SQE{Opcode: rings.OpSendZC, FD: 1, BufGroup: id, Len: uint32(c.Res), UserData: echoUDPSend,
			Off: ringTable + uint64(id)*rings.LentSize + 16, FileIndex: rings.SockAddrSize})
	case op == echoRecv: // the end of the stream
		e.ended[fd] = true
		e.maybeClose(fd)
	case op == echoSend:
		e.sending[fd]--
		e.maybeClose(fd)
	}
	return nil
}

// maybeClose closes a connection whose peer has said all and was sent all.
func (e *ringEcho) maybeClose(fd int32) {
	if e.ended[fd] && e.sending[fd] == 0 {
		delete(e.ended, fd)
		e.push(rings.SQE{Opcode: rings.OpClose, FD: fd, UserData: echoClose})
	}
}

// TestRingEcho: kernel clients against a ring that sends the frames that it receives.
func TestRingEcho(t *testing.T) {
	for _, kind := range []string{"own", "share", "client"} {
		t.Run(kind, func(t *testing.T) {
			var lab *netlab.Lab
			var stack *xdpd.Stack
			if kind == "share" {
				lab, stack = shared(t)
			} else {
				lab, stack = engine(t, netlab.Options{})
			}
			if kind == "client" {
				q := trustedRing(t, stack)
				serveEchoOn(t, q.RingClient, q.Data, 7)
			} else {
				serveRingEcho(t, stack, 7)
			}
			to := netip.AddrPortFrom(lab.EngineAddr, 7)
			c, err := kernelTCP(t, lab.Peer, to)
			if err != nil {
				t.Fatal(err)
			}
			if err := echoBulk(c, 4<<20, rand.Uint64()); err != nil {
				t.Error(err)
			}
			copied := func() (n uint64) {
				for _, q := range getStats(t, stack).Queues {
					n += q.Host.Copied[sockets.CopyRecv] + q.Host.Copied[sockets.CopySend]
				}
				return n
			}
			before := copied()
			if before > 4<<20/20 { // some segments come together in a frame, and do not fit into one that leaves
				t.Errorf("of 4 MiB there and back %d bytes were copied to or from the application", before)
			}
			for i := range 100 {
				if got := answer(t, lab, 7, string(rune('a'+i%26))); got != string(rune('a'+i%26)) {
					t.Fatalf("datagram %d came back as %q", i, got)
				}
			}
			if n := copied(); n != before {
				t.Errorf("of datagrams %d bytes were copied to or from the application", n-before)
			}
		})
	}
}

// TestRingFace: numbers that name no reactor.
func TestRingFace(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	for _, n := range []int{-1, len(stack.Reactors())} {
		if _, err := stack.Ring(xdpd.RingConfig{Reactor: n}); err == nil {
			t.Errorf("a ring on reactor %d", n)
		}
		if _, err := stack.Poller(n); err == nil {
			t.Errorf("a poller on reactor %d", n)
		}
	}
	p, err := stack.Poller(0)
	if err != nil {
		t.Fatal(err)
	}
	p.Close()
	if _, err := p.Wait(make([]reactor.Event, 1), 0); !errors.Is(err, reactor.ErrClosed) {
		t.Errorf("Wait of a closed poller: %v", err)
	}
	c, data := ringOf(t, stack, 0)
	ln := kernelSide(lab.Peer, lab.PeerAddr).open(t)
	rings.PutSockAddr(data, ln.Addr().(*net.TCPAddr).AddrPort())
	if res := ringAsk(t, c, rings.SQE{Opcode: rings.OpSocket, FD: 2, Off: 1}); res != 0 {
		t.Fatal(res)
	}
	if res := ringAsk(t, c, rings.SQE{Opcode: rings.OpConnect, Off: 16}); res != 0 {
		t.Fatalf("CONNECT to the kernel: %v", sockets.Errno(-res))
	}
}
