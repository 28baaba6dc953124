package main

import (
	"encoding/binary"
	"errors"
	"fmt"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings/simnic"
	"xdpd/sockets"
	"xdpd/umem"
)

// crowd is a reactor whose Host has many established connections, all in one Poller or all read by one Ring, and the peer
// at their other end, behind a simulated NIC.
type crowd struct {
	region *umem.Region
	nic    *simnic.SimNIC
	host   *sockets.Host
	r      *reactor.Reactor
	now    func() int64
	pass   func(ns int64) // lets time go by

	segs     *segments
	frame    [2048]byte
	snd, rcv []uint32 // of each connection: the peer's next sequence number, and the next that it waits for

	p      *reactor.Poller
	ring   *crowdRing
	accept func(from, to int) error // has the application take these connections
}

// crowdKind is who waits for the connections' data: it opens the listener and sets accept.
type crowdKind func(c *crowd) error

const (
	crowdFrames = 8192
	crowdQueue  = 2048
	crowdBatch  = 192 // frames into a turn, whose budget is 256
	crowdEach   = 1 << 14
	crowdPort   = 1024 // the first of an address of the peer's
	crowdData   = 8    // bytes, the most that its segments have
	crowdMax    = 1_000_000
)

// newCrowd makes n connections. The caller runs the reactor, by Turn or Run; as long as that is another goroutine, it may
// call no more than offer and drain.
func newCrowd(kind crowdKind, n int, now func() int64, pass func(ns int64)) (*crowd, error) {
	region, err := umem.New(umem.Options{Frames: crowdFrames, ChunkSize: 2048})
	if err != nil {
		return nil, err
	}
	c := &crowd{
		region: region, nic: simnic.NewSimNIC(region, crowdQueue, crowdQueue, crowdQueue, crowdQueue), now: now, pass: pass,
		segs: newSegments(0, 1, crowdData), snd: make([]uint32, n), rcv: make([]uint32, n),
	}
	pool := umem.NewPool(region, 0, crowdFrames, nil)
	c.host, err = sockets.New(sockets.Config{
		MAC: ourMAC, MTU: 1500, Addrs: []sockets.Prefix{{Addr: ourAddr, Bits: 24}}, KernelNeighbours: true,
		Routes: []sockets.Route{{Gateway: peerAddr}}, MaxConns: n + 1, Backlog: 4096,
	}, pool, now())
	if err != nil {
		return nil, err
	}
	c.host.SetNeighbour(peerAddr, peerMAC, true, now())
	c.r, err = reactor.New(reactor.Config{Port: c.nic.Port(), Pool: pool, Host: c.host, Clock: now, MaxSpin: -1})
	if err != nil {
		return nil, err
	}
	c.turn(nil) // fills the fill ring
	if err := kind(c); err != nil {
		return nil, err
	}
	for from := 0; from < n; from += crowdBatch {
		if err := c.open(from, min(from+crowdBatch, n)); err != nil {
			return nil, err
		}
	}
	// What a connection has for as long as it is active it gives back after a second.
	for end := now() + 3e9; now() < end; pass(1e6) {
		c.turn(nil)
	}
	return c, nil
}

func (c *crowd) close() error { return errors.Join(c.r.Close(), c.region.Close()) }

// next is the segment that the peer would send on a connection.
func (c *crowd) next(conn int) segment {
	return segment{
		src: peerAddr + 1<<16 + proto.Addr(conn/crowdEach), port: uint16(crowdPort + conn%crowdEach),
		seq: c.snd[conn], ack: c.rcv[conn], ts: uint32(c.now() / 1e6),
	}
}

// turn has the reactor take what came in, and take see what it sends. On a busy machine a turn may have its time without
// having done much.
func (c *crowd) turn(take func(frame []byte)) {
	for more := true; more; more = c.nic.Port().RX.Avail() > 0 {
		c.r.Turn()
		c.drain(take)
	}
}

// drain is the NIC sending what there is to send.
func (c *crowd) drain(take func(frame []byte)) {
	if c.nic.Transmit(crowdQueue, take) > 0 {
		c.nic.Complete(crowdQueue)
	}
}

// withPoller has a Poller wait for data; Event.Data is the connection's number.
func withPoller(c *crowd) error {
	c.p = reactor.NewPoller(c.r)
	h, _, _ := c.r.Enter()
	defer c.r.Leave()
	l, errno := h.TCPListen(0, ourPort)
	if errno != 0 {
		return errno
	}
	c.accept = func(from, to int) error {
		h, _, _ := c.r.Enter()
		defer c.r.Leave()
		for conn := from; conn < to; conn++ {
			s, errno := h.TCPAccept(l)
			if errno != 0 {
				return errno
			}
			if err := c.p.Add(s, sockets.In, uint64(conn)); err != nil {
				return err
			}
		}
		return nil
	}
	return nil
}

// open opens the connections from..to.
func (c *crowd) open(from, to int) error {
	for conn := from; conn < to; conn++ {
		if !c.nic.Deliver(putSYN(c.frame[:], c.next(conn))) {
			return fmt.Errorf("the SYN of connection %d was dropped", conn)
		}
		c.snd[conn]++
	}
	answers := 0
	c.turn(func(f []byte) {
		conn := int(binary.BigEndian.Uint32(f[30:])-uint32(peerAddr+1<<16))*crowdEach + int(binary.BigEndian.Uint16(f[36:])) - crowdPort
		c.rcv[conn] = binary.BigEndian.Uint32(f[38:]) + 1
		answers++
	})
	if answers != to-from {
		return fmt.Errorf("%d SYN-ACKs for %d SYNs; dropped %v", answers, to-from, c.host.Counters().Drops)
	}
	for conn := from; conn < to; conn++ {
		if !c.offer(conn, 0) {
			return fmt.Errorf("the ACK of connection %d was dropped", conn)
		}
	}
	c.turn(nil)
	if err := c.accept(from, to); err != nil {
		return fmt.Errorf("connections %d to %d are not there: %w; dropped %v", from, to-1, err, c.host.Counters().Drops)
	}
	return nil
}

// offer puts a segment with n bytes of data into the RX ring, unless there is no room for it.
func (c *crowd) offer(conn, n int) bool {
	if !c.nic.Deliver(c.segs.put(c.frame[:], c.next(conn), n)) {
		return false
	}
	c.snd[conn] += uint32(n)
	return true
}

// offerStamped puts a segment into the RX ring whose data is the time of that.
func (c *crowd) offerStamped(conn int) bool {
	p := c.segs.put(c.frame[:], c.next(conn), crowdData)
	restamp(p, uint64(c.now()))
	if !c.nic.Deliver(p) {
		return false
	}
	c.snd[conn] += crowdData
	return true
}
