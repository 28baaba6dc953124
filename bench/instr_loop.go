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

	seq, ack uint32 // the peer's next number, and the next that it waits for
	tmpl     []byte // Ethernet, IPv4, TCP with timestamps, and the longest payload
	sums     map[int]uint64
	events   []sockets.Event
	buf      []byte
	got      uint64 // bytes of payload that came to their end
}

const (
	instrTurn    = 8    // segments in a turn of the reactor
	instrSegment = 1448 // MTU 1500 with timestamps
	instrHeaders = 14 + 20 + 32
	instrUs      = proto.Addr(10<<24 | 1)
	instrPeer    = proto.Addr(10<<24 | 2)
)

var instrMAC = proto.MAC{2, 0, 0, 0, 0, 1}

// instrLoops are the loops whose instructions are counted, one call for one segment or exchange.
var instrLoops = map[string]func(b *bare, n int) error{"receive": (*bare).receive, "send": (*bare).send, "ask": (*bare).ask}

// instrLoop runs a loop n times.
func instrLoop(name string, dry bool, n int) error {
	debug.SetGCPercent(-1)
	b := &bare{now: 1e9, seq: 1000, ack: 0, sums: make(map[int]uint64), buf: make([]byte, 64<<10)}
	region, err := umem.Wrap(make([]byte, 1024*2048), 2048)
	if err != nil {
		return err
	}
	b.pool = umem.NewPool(region, 0, 1024, nil)
	b.template()
	if !dry {
		if err := b.connect(); err != nil {
			return err
		}
	}
	return instrLoops[name](b, n)
}

func (b *bare) template() {
	b.tmpl = make([]byte, instrHeaders+instrSegment)
	for i := range b.tmpl {
		b.tmpl[i] = byte(i)
	}
	proto.PutEthernet(b.tmpl, instrMAC, proto.MAC{2, 0, 0, 0, 0, 2}, proto.EtherIPv4)
	h := proto.TCP{SrcPort: 4000, DstPort: 7, DataOff: 32, Flags: proto.ACK | proto.PSH, Window: 0xffff}
	proto.PutTCP(b.tmpl[34:], &h)
	proto.PutTCPOptions(b.tmpl[54:], &proto.TCPOptions{HasTS: true})
	for _, n := range []int{0, 1, instrSegment} {
		b.sums[n] = proto.Sum(b.tmpl[34:instrHeaders+n], proto.PseudoSum(instrPeer, instrUs, proto.ProtoTCP, 32+n))
	}
}

// frame writes a segment of the peer's with n bytes of data into a frame of the pool, as if it had been received.
func (b *bare) frame(n int) umem.Frame {
	f := b.pool.Get(umem.Fill)
	b.pool.Move(f, umem.Fill, umem.RX)
	p := b.pool.Chunk(f)[umem.Headroom:]
	copy(p, b.tmpl[:instrHeaders+n])
	proto.PutIPv4(p[14:], &proto.IPv4{Src: instrPeer, Dst: instrUs, TTL: 64, Proto: proto.ProtoTCP, DF: true, TotalLen: uint16(52 + n)})
	ts := uint32(b.now / 1e6)
	binary.BigEndian.PutUint32(p[38:], b.seq)
	binary.BigEndian.PutUint32(p[42:], b.ack)
	binary.BigEndian.PutUint32(p[58:], ts)
	sum := b.sums[n] + uint64(b.seq) + uint64(b.ack) + uint64(ts)
	binary.BigEndian.PutUint16(p[50:], ^proto.Fold(sum))
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
	b.host.Input(f, umem.Headroom, instrHeaders+n, b.now)
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
		f, off, n, ok := b.host.PopTX()
		if !ok {
			break
		}
		p := b.pool.Chunk(f)[off:]
		if n > instrHeaders {
			b.ack = binary.BigEndian.Uint32(p[38:]) + uint32(n-instrHeaders)
			segments++
			b.got += uint64(n - instrHeaders)
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
		MAC: instrMAC, MTU: 1500, Addrs: []sockets.Prefix{{Addr: instrUs, Bits: 24}}, KernelNeighbours: true,
	}, b.pool, b.now)
	if err != nil {
		return err
	}
	b.host.SetNeighbour(instrPeer, proto.MAC{2, 0, 0, 0, 0, 2}, true, b.now)
	l, errno := b.host.TCPListen(0, 7)
	if errno != 0 {
		return errno
	}
	// The SYN is the one frame that the template does not make.
	opt := proto.TCPOptions{MSS: 1460, SACKPermitted: true, HasTS: true, TSVal: 1000, HasWScale: true, WScale: 0}
	f := b.pool.Get(umem.Fill)
	b.pool.Move(f, umem.Fill, umem.RX)
	p := b.pool.Chunk(f)[umem.Headroom:]
	proto.PutEthernet(p, instrMAC, proto.MAC{2, 0, 0, 0, 0, 2}, proto.EtherIPv4)
	proto.PutIPv4(p[14:], &proto.IPv4{Src: instrPeer, Dst: instrUs, TTL: 64, Proto: proto.ProtoTCP, TotalLen: uint16(40 + opt.Len())})
	proto.PutTCP(p[34:], &proto.TCP{SrcPort: 4000, DstPort: 7, Seq: b.seq, DataOff: uint8(20 + opt.Len()), Flags: proto.SYN, Window: 0xffff})
	proto.PutTCPOptions(p[54:], &opt)
	seg := p[34 : 54+opt.Len()]
	binary.BigEndian.PutUint16(seg[16:], ^proto.Fold(proto.Sum(seg, proto.PseudoSum(instrPeer, instrUs, proto.ProtoTCP, len(seg)))))
	b.host.Input(f, umem.Headroom, 34+len(seg), b.now)
	b.host.Flush(b.now)
	f, off, _, ok := b.host.PopTX()
	if !ok {
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
