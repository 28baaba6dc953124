package pktgen

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// traffic is what an xsk sends.
type traffic interface {
	// due says how many frames may be sent at now (ns), at most n. done: none any more.
	due(now int64, n int) (frames int, done bool)
	// put writes the next frame, stamped with now, and returns its length.
	put(b []byte, now int64) int
}

// generated is the traffic of a maker.
type generated struct {
	maker
	*pacer
	count uint64 // 0: no end
}

func (g *generated) due(now int64, n int) (int, bool) {
	if g.count > 0 {
		if g.seq == g.count {
			return 0, true
		}
		n = int(min(uint64(n), g.count-g.seq))
	}
	return g.pacer.due(now, n), false
}

func (g *generated) put(b []byte, now int64) int {
	g.sent(1)
	return g.maker.put(b, now)
}

// The kernel publishes what it has taken from the fill ring only when it has taken all that it knew of: with half as many
// frames as entries there is always room to give one back.
const (
	xskSend  = 4096 // frames to send from
	xskTake  = 2048 // frames to receive in
	xskRing  = 4096 // entries of fill and completion ring
	xskBatch = 64
)

// xskPort is a queue of the device.
type xskPort struct {
	region *umem.Region
	pool   *umem.Pool // of the frames to send from
	sock   *rings.Socket
	rings.Port
}

// openPort opens the queue; receive gives the kernel frames to receive in.
func openPort(d *device, queue, chunk int, mode rings.Mode, receive bool) (p *xskPort, err error) {
	frames := xskSend
	if receive {
		frames += xskTake
	}
	region, err := umem.New(umem.Options{Frames: frames, ChunkSize: chunk})
	if err != nil {
		return nil, err
	}
	sock, err := rings.OpenSocket(region, rings.SocketOptions{
		Interface: d.name, Ifindex: d.index, Queue: queue, Mode: mode, FillSize: xskRing, CompSize: xskRing,
	})
	if err != nil {
		return nil, errors.Join(err, region.Close())
	}
	p = &xskPort{region: region, pool: umem.NewPool(region, 0, xskSend, nil), sock: sock, Port: *sock.Port()}
	for f := xskSend; f < frames; f++ {
		idx, _ := p.Fill.Reserve(1)
		*p.Fill.Slot(idx) = region.Addr(umem.Frame(f))
	}
	p.Fill.Submit(uint32(frames - xskSend))
	return p, nil
}

func (p *xskPort) close() error { return errors.Join(p.sock.Close(), p.region.Close()) }

// xsk sends on a queue of the device by AF_XDP and, if it has a checker, receives on all.
type xsk struct {
	ports   []*xskPort // the first sends
	program *xdpprog.Program

	mu      sync.Mutex // guards what follows; held for a batch
	check   *checker   // nil: nothing is received
	packets uint64     // handed to the kernel
	bytes   uint64     // of them
	first   int64      // when the first was, ns
	last    int64
}

// openXSK opens the device's sockets. With check, the replies of flows are steered to them.
func openXSK(d *device, c *Config, check *checker) (x *xsk, err error) {
	x = &xsk{check: check}
	defer func() {
		if err != nil {
			err = errors.Join(err, x.close())
		}
	}()
	size, queues := c.longestFrame(), []int{c.Queue}
	if check != nil {
		size += umem.Headroom // which the kernel leaves in front of what it receives
		for q := range max(1, rings.QueueCount(d.name, d.index)) {
			if q != c.Queue {
				queues = append(queues, q)
			}
		}
	}
	chunk := 2048
	if size > chunk {
		chunk = 4096
	}
	if size > chunk {
		return x, fmt.Errorf("frames of %d bytes do not fit into one of packet memory: give a --size of at most %d", c.longestFrame()+fcs, c.longestFrame()+fcs-size+chunk)
	}
	for _, q := range queues {
		p, err := openPort(d, q, chunk, c.mode(), check != nil)
		if err != nil {
			return x, err
		}
		x.ports = append(x.ports, p)
	}
	if check != nil {
		err = x.steer(d, &c.Flows)
	}
	return x, err
}

// steer has the replies of the flows come to the sockets.
func (x *xsk) steer(d *device, f *Flows) (err error) {
	var addrs []netip.Addr
	if f.Src.n() > xdpprog.MaxAddrs {
		return fmt.Errorf("--source xsk takes replies to %d addresses, and --src has %d: give fewer, or use --source bpf", xdpprog.MaxAddrs, f.Src.n())
	}
	for a := f.Src.First; ; a++ {
		addrs = append(addrs, a.Netip())
		if a == f.Src.Last {
			break
		}
	}
	queues := len(x.ports)
	for _, p := range x.ports {
		queues = max(queues, p.sock.Queue()+1)
	}
	x.program, err = xdpprog.Load(xdpprog.Config{
		Interface: d.name, Ifindex: d.index, Steer: xdpprog.Share, Addrs: addrs, Queues: queues,
	})
	if err != nil {
		return err
	}
	for _, p := range x.ports {
		if err := x.program.SetSocket(p.sock.Queue(), p.sock.FD()); err != nil {
			return err
		}
	}
	for port := f.Sport.First; ; port++ {
		if err := x.program.OpenPort(proto.ProtoUDP, netip.Addr{}, port); err != nil {
			return err
		}
		if port == f.Sport.Last {
			return nil
		}
	}
}

// xskSource is an xsk with what it sends.
type xskSource struct {
	*xsk
	traffic
}

// run sends until the traffic is done or ctx is.
func (x xskSource) run(ctx context.Context) error {
	done := ctx.Done()
	for {
		select {
		case <-done:
			return x.settle()
		default:
		}
		busy, end, err := x.turn(x.traffic)
		if err != nil {
			return err
		}
		if end {
			return x.settle()
		}
		if !busy {
			runtime.Gosched()
		}
	}
}

// turn reaps, receives and sends one batch.
func (x *xsk) turn(t traffic) (busy, end bool, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	p, now := x.ports[0], nanotime()
	p.reap()
	n, end := 0, false
	if room := min(xskBatch, p.pool.Avail(), int(p.TX.Free())); room > 0 {
		n, end = t.due(now, room)
	}
	if n > 0 {
		idx, _ := p.TX.Reserve(uint32(n)) // there were as many free
		for i := range uint32(n) {
			f := p.pool.Get(umem.TX)
			length := t.put(p.region.Chunk(f), now)
			*p.TX.Slot(idx + i) = rings.Desc{Addr: p.region.Addr(f), Len: uint32(length)}
			x.bytes += uint64(length)
		}
		p.TX.Submit(uint32(n))
		x.packets += uint64(n)
		if x.last = now; x.first == 0 {
			x.first = now
		}
	}
	if p.TX.Pending() > 0 {
		if err := p.Dev.Kick(); err != nil {
			return false, true, err
		}
	}
	came := x.takeAll(nanotime())
	return n > 0 || came > 0, end, nil
}

// reap frees the frames that were sent.
func (p *xskPort) reap() {
	idx, n := p.Comp.Peek(xskRing)
	for i := range n {
		if f, ok := p.region.FrameOf(p.Comp.Read(idx + i)); ok {
			p.pool.Put(f, umem.TX)
		}
	}
	p.Comp.Release(n)
}

// takeAll receives a batch from each queue.
func (x *xsk) takeAll(now int64) (n int) {
	if x.check == nil {
		return 0
	}
	for _, p := range x.ports {
		n += p.take(x.check, now)
	}
	return n
}

func (p *xskPort) take(c *checker, now int64) int {
	idx, n := p.RX.Peek(xskBatch)
	if n == 0 {
		return 0
	}
	slot, _ := p.Fill.Reserve(n)
	mem := p.region.Mem()
	for i := range n {
		d := p.RX.Read(idx + i)
		c.take(mem[d.Addr:d.Addr+uint64(d.Len)], now)
		f, _ := p.region.FrameOf(d.Addr)
		*p.Fill.Slot(slot + i) = p.region.Addr(f)
	}
	p.Fill.Submit(n)
	p.RX.Release(n)
	if p.Fill.NeedWakeup() {
		_ = p.Dev.WakeRX() // a device that is gone is told by Kick
	}
	return int(n)
}

// settleTime is how long the kernel is given to take the rest of the TX ring, and the driver to send it.
const settleTime = time.Second

// settle waits until the kernel has taken all that is in the TX ring; what it does not take was not sent.
func (x *xsk) settle() error {
	p := x.ports[0]
	for end := nanotime() + int64(settleTime); ; {
		x.mu.Lock()
		p.reap()
		rest := p.TX.Pending()
		var err error
		if rest > 0 {
			err = p.Dev.Kick()
		}
		x.takeAll(nanotime())
		late := nanotime() > end
		if late {
			x.takeBack(p, rest)
		}
		if x.last > 0 && rest > 0 {
			x.last = nanotime()
		}
		x.mu.Unlock()
		if rest == 0 || late || err != nil {
			return err
		}
	}
}

// takeBack counts the last n frames of the TX ring as not sent.
func (x *xsk) takeBack(p *xskPort, n uint32) {
	end, _ := p.TX.Reserve(0)
	for i := end - n; i != end; i++ {
		x.bytes -= uint64(p.TX.Slot(i).Len)
		x.packets--
	}
}

func (x *xsk) sent() (s Sent, err error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return Sent{Packets: x.packets, Bytes: x.bytes, Took: time.Duration(x.last - x.first)}, nil
}

func (x *xsk) poll() {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.takeAll(nanotime())
}

func (x *xsk) received() (Received, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.check.Received, nil
}

func (x *xsk) latency() (*hdrhistogram.Histogram, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	return hdrhistogram.Import(x.check.verifier.latency.Export()), nil
}

func (x *xsk) close() error {
	var errs []error
	if x.program != nil {
		errs = append(errs, x.program.Close())
	}
	for _, p := range x.ports {
		errs = append(errs, p.close())
	}
	return errors.Join(errs...)
}

// nanotime is CLOCK_MONOTONIC in ns, the clock of stamps.
func nanotime() int64 { return clockOffset + int64(time.Since(clockStart)) }
