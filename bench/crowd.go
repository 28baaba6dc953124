package main

import (
	"encoding/binary"
	"fmt"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings/simnic"
	"xdpd/sockets"
	"xdpd/umem"
)

// crowd is a reactor whose Host has many established connections, all in one Poller, and the peer at their other end,
// behind a simulated NIC.
type crowd struct {
	nic  *simnic.SimNIC
	host *sockets.Host
	r    *reactor.Reactor
	p    *reactor.Poller
	now  func() int64
	pass func(ns int64) // lets time go by

	segs     *segments
	frame    [2048]byte
	snd, rcv []uint32 // of each connection: the peer's next sequence number, and the next that it waits for
}

const (
	crowdFrames = 8192
	crowdRing   = 2048
	crowdBatch  = 192 // frames into a turn, whose budget is 256
	crowdEach   = 1 << 14
	crowdPort   = 1024 // the first of an address of the peer's
	crowdData   = 8    // bytes, the most that its segments have
	crowdMax    = 1 << 20
)

// newCrowd makes n connections. The caller runs the reactor, by Turn or Run; as long as that is another goroutine, it may
// call no more than offer and drain.
func newCrowd(n int, now func() int64, pass func(ns int64)) (*crowd, error) {
	region, err := umem.New(umem.Options{Frames: crowdFrames, ChunkSize: 2048})
	if err != nil {
		return nil, err
	}
	c := &crowd{
		nic: simnic.NewSimNIC(region, crowdRing, crowdRing, crowdRing, crowdRing), now: now, pass: pass,
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
	c.p = reactor.NewPoller(c.r)
	c.turn(nil) // fills the fill ring
	if err := c.establish(); err != nil {
		return nil, err
	}
	// What a connection has for as long as it is active it gives back after a second.
	for end := now() + 3e9; now() < end; pass(1e6) {
		c.turn(nil)
	}
	return c, nil
}

func (c *crowd) close() error { return c.r.Close() }

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
	if c.nic.Transmit(crowdRing, take) > 0 {
		c.nic.Complete(crowdRing)
	}
}

// establish opens the connections.
func (c *crowd) establish() error {
	h, _, _ := c.r.Enter()
	l, errno := h.TCPListen(0, ourPort)
	c.r.Leave()
	if errno != 0 {
		return errno
	}
	for from := 0; from < len(c.snd); from += crowdBatch {
		to := min(from+crowdBatch, len(c.snd))
		if err := c.open(l, from, to); err != nil {
			return err
		}
	}
	return nil
}

// open opens the connections from..to; data of each is its number.
func (c *crowd) open(l sockets.Handle, from, to int) error {
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
	h, _, _ := c.r.Enter()
	defer c.r.Leave()
	for conn := from; conn < to; conn++ {
		s, errno := h.TCPAccept(l)
		if errno != 0 {
			return fmt.Errorf("accept: %w; dropped %v", errno, h.Counters().Drops)
		}
		if err := c.p.Add(s, sockets.In, uint64(conn)); err != nil {
			return err
		}
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
