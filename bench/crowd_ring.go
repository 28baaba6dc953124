package main

import (
	"fmt"
	"net/netip"

	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/sockets"
)

// crowdRing is a Ring that has a multishot receive on each connection, into provided buffers.
type crowdRing struct {
	client *reactor.RingClient
	data   []byte // what is registered: the ring of buffers, then the buffers
	bufs   *rings.BufGiver
	cqes   [crowdBatch]rings.CQE
}

const (
	ringBufs    = 2 * crowdQueue // more than the RX ring can bring at once
	ringBufSize = 64
	ringBufBase = ringBufs * rings.BufEntrySize
	ringAccept  = ^uint64(0) // user data of the ACCEPT; that of a RECV is its socket
)

// withRing has a Ring receive the data.
func withRing(c *crowd) error {
	n := len(c.snd)
	q := &crowdRing{data: make([]byte, ringBufBase+ringBufs*ringBufSize)}
	c.ring, c.accept = q, func(from, to int) error { return q.accept(c, to-from) }
	ring, err := reactor.NewRing(c.r, reactor.RingConfig{
		Requests: n + 2, Sockets: n + 1, SQEntries: 2 * crowdQueue, CQEntries: 2 * crowdQueue, Data: q.data,
	})
	if err != nil {
		return err
	}
	q.client = ring.Client()
	rings.PutSockAddr(q.data[ringBufBase:], netip.AddrPortFrom(netip.IPv4Unspecified(), ourPort))
	for _, s := range []rings.SQE{
		{Opcode: rings.OpSocket, FD: 2, Off: 1}, // AF_INET, SOCK_STREAM: the first number is 0
		{Opcode: rings.OpBind, Addr: ringBufBase, Off: rings.SockAddrSize},
		{Opcode: rings.OpListen, Len: 4096},
		{Opcode: rings.OpBufRing, Len: ringBufs},
	} {
		cqe, err := q.one(c, s)
		if err != nil || cqe.Res != 0 {
			return fmt.Errorf("operation %d on the listener: %v: %w", s.Opcode, cqe, err)
		}
	}
	var ok bool
	if q.bufs, ok = rings.NewBufGiver(q.data[:ringBufBase]); !ok {
		return fmt.Errorf("no ring of %d buffers", ringBufs)
	}
	for i := range ringBufs {
		q.give(uint16(i))
	}
	return q.push(rings.SQE{Opcode: rings.OpAccept, IOPrio: rings.AcceptMultishot, UserData: ringAccept})
}

// push submits an SQE.
func (q *crowdRing) push(s rings.SQE) error {
	slot := q.client.SQE()
	if slot == nil {
		return sockets.ENOBUFS
	}
	*slot = s
	q.client.Submit()
	return nil
}

// one does an operation that is done at once.
func (q *crowdRing) one(c *crowd, s rings.SQE) (rings.CQE, error) {
	if err := q.push(s); err != nil {
		return rings.CQE{}, err
	}
	c.turn(nil)
	if q.client.Reap(q.cqes[:]) != 1 {
		return rings.CQE{}, errUseless
	}
	return q.cqes[0], nil
}

// accept begins to receive on n connections that came. A turn accepts no more than a part of them.
func (q *crowdRing) accept(c *crowd, n int) error {
	for came := 0; came < n; c.turn(nil) {
		got := q.client.Reap(q.cqes[:])
		if came += got; got == 0 || came > n {
			return fmt.Errorf("%d connections were accepted, not %d", came, n)
		}
		for _, cqe := range q.cqes[:got] {
			if cqe.UserData != ringAccept || cqe.Res < 0 || cqe.Flags&rings.CQEMore == 0 {
				return fmt.Errorf("an accept gave %+v", cqe)
			}
			if err := q.receive(cqe.Res); err != nil {
				return err
			}
		}
	}
	return nil
}

// receive begins to receive on a socket.
func (q *crowdRing) receive(fd int32) error {
	return q.push(rings.SQE{
		Opcode: rings.OpRecv, Flags: rings.SQEBufferSelect, IOPrio: rings.RecvMultishot, FD: fd, UserData: uint64(fd),
	})
}

// taken gives what a completion brought. It is given back by release.
func (q *crowdRing) taken(cqe rings.CQE) ([]byte, error) {
	if cqe.Res <= 0 || cqe.Flags&rings.CQEBuffer == 0 {
		return nil, fmt.Errorf("a receive gave %+v", cqe)
	}
	at := ringBufBase + int(cqe.Flags>>rings.CQEBufferShift)*ringBufSize
	return q.data[at : at+int(cqe.Res)], nil
}

// release gives the buffer of a completion back, and begins to receive again if that was the last one.
func (q *crowdRing) release(cqe rings.CQE) error {
	q.give(uint16(cqe.Flags >> rings.CQEBufferShift))
	if cqe.Flags&rings.CQEMore != 0 {
		return nil
	}
	return q.receive(int32(cqe.UserData))
}

func (q *crowdRing) give(id uint16) {
	q.bufs.Add(rings.Buf{Addr: ringBufBase + uint64(id)*ringBufSize, Len: ringBufSize, ID: id})
	q.bufs.Publish()
}
