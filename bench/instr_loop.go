package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime/debug"

	"xdpd/sockets"
	"xdpd/umem"
)

// bare is a Host without a device, and the least of a peer: frames from a template, with the numbers that change put in.
type bare struct {
	host *sockets.Host // nil: the peer's work alone, which is to be taken off
	pool *umem.Pool
	now  int64 // ns
	conn sockets.Handle

	seq, ack uint32 // the peer's next number, and the next that it waits for
	segs     *segments
	events   []sockets.Event
	buf      []byte
	got      uint64 // bytes of payload that came to their end
}

const (
	instrTurn    = 8    // segments in a turn of the reactor
	instrSegment = 1448 // MTU 1500 with timestamps
)

// instrLoops are the loops whose instructions are counted, one call for one segment or exchange.
var instrLoops = map[string]func(b *bare, n int) error{"receive": (*bare).receive, "send": (*bare).send, "ask": (*bare).ask}

// instrLoop runs a loop n times.
func instrLoop(name string, dry bool, n int) error {
	debug.SetGCPercent(-1)
	b := &bare{now: 1e9, seq: 1000, ack: 0, buf: make([]byte, 64<<10)}
	b.segs = newSegments(0, 1, instrSegment)
	region, err := umem.Wrap(make([]byte, 1024*2048), 2048)
	if err != nil {
		return err
	}
	b.pool = umem.NewPool(region, 0, 1024, nil)
	if !dry {
		if err := b.connect(); err != nil {
			return err
		}
	}
	return instrLoops[name](b, n)
}

// frame writes a segment of the peer's with n bytes of data into a frame of the pool, as if it had been received.
func (b *bare) frame(n int) umem.Frame {
	f := b.pool.Get(umem.Fill)
	b.pool.Move(f, umem.Fill, umem.RX)
	b.segs.put(b.pool.Chunk(f)[umem.Headroom:], segment{peerAddr, peerPort, b.seq, b.ack, uint32(b.now / 1e6)}, n)
	b.seq += uint32(n)
	return f
}

// input has the Host receive it.
func (b *bare) input(n int) {
	f := b.frame(n)
	if b.host == nil {
		b.pool.Put(f, umem.RX)
		return
	}
	b.host.Input(f, umem.Headroom, segHeaders+n, b.now)
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
		f, off, n, _ := b.host.PopTX()
		if f == umem.None {
			break
		}
		p := b.pool.Chunk(f)[off:]
		if n > segHeaders {
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
	}, b.pool, b.now)
	if err != nil {
		return err
	}
	b.host.SetNeighbour(peerAddr, peerMAC, true, b.now)
	l, errno := b.host.TCPListen(0, ourPort)
	if errno != 0 {
		return errno
	}
	f := b.pool.Get(umem.Fill)
	b.pool.Move(f, umem.Fill, umem.RX)
	syn := putSYN(b.pool.Chunk(f)[umem.Headroom:], segment{peerAddr, peerPort, b.seq, 0, uint32(b.now / 1e6)})
	b.host.Input(f, umem.Headroom, len(syn), b.now)
	b.host.Flush(b.now)
	f, off, _, _ := b.host.PopTX()
	if f == umem.None {
		return errors.New("no SYN-ACK")
	}
	b.ack = binary.BigEndian.Uint32(b.pool.Chunk(f)[off+38:]) + 1
	b.pool.Move(f, umem.TX, umem.Comp)
	b.host.Completed(f)
	b.seq++
	b.input(0)
	b.endTurn()
	if b.conn, errno = b.host.TCPAccept(l); errno != 0 {
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

// check looks whether the work was done.
func (b *bare) check(want int) error {
	if b.host != nil && b.got != uint64(want) {
		return fmt.Errorf("%d bytes got through, not %d; dropped %v", b.got, want, b.host.Counters().Drops)
	}
	return nil
}
