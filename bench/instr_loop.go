package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"

	"xdpd/proto"
	"xdpd/sockets"
	"xdpd/umem"
)

// bare is a Host without a device, and the least of a peer: frames from a template, with the numbers that change put in.
type bare struct {
	host *sockets.Host // nil: the peer's work alone, which is to be taken off
	pool *umem.Pool
	now  int64 // ns
	conn sockets.Handle
	port sockets.Handle // the listener

	seq, ack uint32 // the peer's next number, and the next that it waits for
	segs     *segments
	events   []sockets.Event
	buf      []byte
	got      uint64 // bytes of payload that came to their end

	acks  [instrTurn]uint32 // what the peer waits for on each of a turn's new connections
	edges int               // SYNs and FINs that came from the Host
	sent  int               // frames that did
}

const (
	instrTurn    = 8    // segments in a turn of the reactor
	instrSegment = 1448 // MTU 1500 with timestamps
)

// instrLoops are the loops whose instructions are counted, one call for one segment or exchange.
var instrLoops = map[string]func(b *bare, n int) error{
	"receive": (*bare).receive, "send": (*bare).send, "ask": (*bare).ask, "syn": (*bare).syn,
}

const bareFrames = 1024

// instrLoop runs a loop n times.
func instrLoop(name string, dry bool, n int) error {
	debug.SetGCPercent(-1)
	b, err := newBare(noLedger)
	if err != nil {
		return err
	}
	if !dry {
		if err := b.connect(); err != nil {
			return err
		}
	}
	return instrLoops[name](b, n)
}

// newBare is without a Host, which connect makes.
func newBare(ledger func(frames int) *umem.Ledger) (*bare, error) {
	b := &bare{now: 1e9, seq: 1000, ack: 0, buf: make([]byte, 64<<10)}
	b.segs = newSegments(0, 1, instrSegment)
	region, err := umem.Wrap(make([]byte, bareFrames*2048), 2048)
	if err != nil {
		return nil, err
	}
	b.pool = umem.NewPool(region, 0, bareFrames, ledger(bareFrames))
	return b, nil
}

// frame takes one of the pool, as if it had been received.
func (b *bare) frame() (f umem.Frame, p []byte) {
	f = b.pool.Get(umem.Fill)
	b.pool.Move(f, umem.Fill, umem.RX)
	return f, b.pool.Chunk(f)[umem.Headroom:]
}

// give has the Host receive n bytes in it.
func (b *bare) give(f umem.Frame, n int) {
	if b.host == nil {
		b.pool.Put(f, umem.RX)
		return
	}
	b.host.Input(f, umem.Headroom, n, b.now)
}

// input has the Host receive a segment of the peer's with n bytes of data.
func (b *bare) input(n int) {
	f, p := b.frame()
	b.segs.put(p, segment{peerAddr, peerPort, b.seq, b.ack, uint32(b.now / 1e6)}, n)
	b.seq += uint32(n)
	b.give(f, segHeaders+n)
}

// endTurn is what the reactor does after it has received; segments with data move what the peer waits for.
func (b *bare) endTurn() (segments int) {
	b.now += 50_000
	if b.host == nil {
		return 0
	}
	b.host.Tick(b.now)
	b.host.Flush(b.now)
	for {
		tx := b.host.PopTX()
		f, n := tx.F, tx.N()
		if f == umem.None {
			break
		}
		p := b.pool.Chunk(f)[tx.Off():]
		b.sent++
		if p[47]&(proto.SYN|proto.FIN) != 0 {
			b.acks[binary.BigEndian.Uint16(p[36:])%instrTurn] = binary.BigEndian.Uint32(p[38:]) + 1
			b.edges++
		} else if n > segHeaders {
			b.ack = binary.BigEndian.Uint32(p[38:]) + uint32(n-segHeaders)
			segments++
			b.got += uint64(n - segHeaders)
		}
		b.pool.Move(f, umem.TX, umem.Comp)
		b.host.Completed(f)
	}
	b.host.EndTurn()
	b.events = b.host.TakeEvents(b.events[:0])
	return segments
}

func (b *bare) connect() (err error) {
	b.host, err = sockets.New(sockets.Config{
		MAC: ourMAC, MTU: 1500, Addrs: []sockets.Prefix{{Addr: ourAddr, Bits: 24}}, KernelNeighbours: true,
		Routes: []sockets.Route{{Gateway: peerAddr}},
	}, b.pool, b.now)
	if err != nil {
		return err
	}
	b.host.SetNeighbour(peerAddr, peerMAC, true, b.now)
	var errno sockets.Errno
	if b.port, errno = b.host.TCPListen(0, ourPort); errno != 0 {
		return errno
	}
	f, p := b.frame()
	b.give(f, len(putSYN(p, segment{peerAddr, peerPort, b.seq, 0, uint32(b.now / 1e6)})))
	b.endTurn()
	if b.edges != 1 {
		return errors.New("no SYN-ACK")
	}
	b.ack = b.acks[peerPort%instrTurn]
	b.seq++
	b.input(0)
	b.endTurn()
	if b.conn, errno = b.host.TCPAccept(b.port); errno != 0 {
		return fmt.Errorf("accept: %w", errno)
	}
	return nil
}

// receive has n full segments come in, which the application reads once a turn.
func (b *bare) receive(n int) error {
	for range n / instrTurn {
		for range instrTurn {
			b.input(instrSegment)
		}
		if b.host != nil {
			for {
				k, errno := b.host.TCPRead(b.conn, b.buf, b.now)
				if errno != 0 {
					break
				}
				b.got += uint64(k)
			}
		}
		b.endTurn()
	}
	return b.check(n / instrTurn * instrTurn * instrSegment)
}

// send has the application write what makes n full segments; of each two of a turn one is acknowledged.
func (b *bare) send(n int) error {
	for range n / instrTurn {
		if b.host != nil {
			if k, errno := b.host.TCPWrite(b.conn, b.buf[:instrTurn*instrSegment], b.now); errno != 0 || k != instrTurn*instrSegment {
				return fmt.Errorf("wrote %d bytes: %w", k, errno)
			}
		}
		first := b.ack
		if segments := b.endTurn(); b.host != nil && segments != instrTurn {
			return fmt.Errorf("%d segments were sent, not %d", segments, instrTurn)
		}
		last := b.ack
		for i := range instrTurn / 2 {
			b.ack = first + uint32(i+1)*2*instrSegment
			b.input(0)
		}
		if b.host != nil {
			b.ack = last
		}
	}
	return b.check(n / instrTurn * instrTurn * instrSegment)
}

// ask has one byte come in, and one go back, n times.
func (b *bare) ask(n int) error {
	for range n {
		b.input(1)
		if b.host != nil {
			if k, errno := b.host.TCPRead(b.conn, b.buf, b.now); k != 1 || errno != 0 {
				return fmt.Errorf("read %d bytes: %w", k, errno)
			}
			if k, errno := b.host.TCPWrite(b.conn, b.buf[:1], b.now); k != 1 || errno != 0 {
				return fmt.Errorf("wrote %d bytes: %w", k, errno)
			}
		}
		b.endTurn()
	}
	return b.check(n)
}

// syn has n connections come, which the application accepts and closes at once, as the peer then does. Each rests in TIME-WAIT
// for its minute, in which more come.
func (b *bare) syn(n int) error {
	for at := 0; at < n/instrTurn*instrTurn; at += instrTurn {
		b.edges = 0
		for conn := at; conn < at+instrTurn; conn++ {
			f, p := b.frame()
			b.give(f, len(putSYN(p, b.fresh(conn, 0))))
		}
		b.endTurn()
		for conn := at; conn < at+instrTurn; conn++ {
			f, p := b.frame()
			b.give(f, len(b.segs.put(p, b.fresh(conn, 1), 0)))
		}
		for range instrTurn {
			if b.host == nil {
				break
			}
			c, errno := b.host.TCPAccept(b.port)
			if errno != 0 {
				return fmt.Errorf("accept: %w", errno)
			}
			if errno := b.host.Close(c, b.now); errno != 0 {
				return fmt.Errorf("close: %w", errno)
			}
		}
		b.endTurn()
		for conn := at; conn < at+instrTurn; conn++ {
			f, p := b.frame()
			b.give(f, len(withFIN(b.segs.put(p, b.fresh(conn, 1), 0))))
		}
		b.sent = 0
		b.endTurn()
		if b.host != nil && (b.edges != 2*instrTurn || b.sent != instrTurn) {
			return fmt.Errorf("the peer saw %d SYNs and FINs, and %d last ACKs, of %d connections", b.edges, b.sent, instrTurn)
		}
		b.got += instrTurn
		b.now += 200_000_000
	}
	if b.host == nil {
		return nil
	}
	if resting := len(b.host.TCPSockets()) - 2; resting == 0 || resting > n {
		return fmt.Errorf("%d of %d connections rest", resting, n)
	}
	return b.check(n / instrTurn * instrTurn)
}

// fresh is what a connection of syn begins with, and, after its SYN, goes on with.
func (b *bare) fresh(conn int, seq uint32) segment {
	return segment{
		src: peerAddr + 1<<16 + proto.Addr(conn/crowdEach), port: uint16(crowdPort + conn%crowdEach),
		seq: 1000 + seq, ack: b.acks[conn%instrTurn], ts: uint32(b.now / 1e6),
	}
}

// check looks whether the work was done.
func (b *bare) check(want int) error {
	if b.host != nil && b.got != uint64(want) {
		return fmt.Errorf("%d bytes got through, not %d; dropped %v", b.got, want, b.host.Counters().Drops)
	}
	return nil
}
