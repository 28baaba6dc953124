package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/proto"
	"xdpd/rings"
	"xdpd/umem"
	"xdpd/xdpprog"
)

// The sizes are those that the engine uses, and peers/xsk.c, the twin.
const (
	rawFrames = 16384
	rawChunk  = 2048
	rawFill   = 4096
	rawBatch  = 64
	rawLen    = 64 // bytes of the frame that raw-tx sends, without the FCS
)

// raw is what is left of the engine without a stack and a reactor: the socket, its rings, the frames.
type raw struct {
	region  *umem.Region
	pool    *umem.Pool
	sock    *rings.Socket
	program *xdpprog.Program
	port    *rings.Port
	inFill  int
	scratch [rawBatch]umem.Frame
	in, out uint64
	txFull  uint64
	calls   uint64
}

// serveRaw does a work without a stack: the floor under the others. It spins.
func serveRaw(ctx context.Context, o serveOptions, ready func()) (_ counters, err error) {
	w := &raw{}
	step, ok := map[string]func(*raw) error{"raw-echo": (*raw).echo, "raw-tx": (*raw).send, "raw-drop": (*raw).drop}[o.work]
	if !ok {
		return counters{}, fmt.Errorf("work %q: raw does raw-echo, raw-tx and raw-drop", o.work)
	}
	defer func() { err = errors.Join(err, w.close()) }()
	if err := w.open(o); err != nil {
		return counters{}, err
	}
	// The scheduler interrupts the loop every 10 ms: with one P no other thread can take it over then.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	ready()
	// What was received before the end counts: the sums agree with the sender's, if that has ended first.
	for left := int(w.port.RX.Size()) / rawBatch; ctx.Err() == nil || left > 0 && w.port.RX.Avail() > 0; {
		w.reap()
		if err := w.refill(); err != nil {
			return counters{}, err
		}
		if err := step(w); err != nil {
			return counters{}, err
		}
		if ctx.Err() != nil {
			left--
		}
	}
	return w.counters()
}

// open makes the socket, and has what goes over UDP to the port come to it. All else is the kernel's.
func (w *raw) open(o serveOptions) error {
	link, err := netlink.LinkByName(o.dev)
	if err != nil {
		return fmt.Errorf("interface %s: %w", o.dev, err)
	}
	if w.region, err = umem.New(umem.Options{Frames: rawFrames, ChunkSize: rawChunk}); err != nil {
		return err
	}
	w.pool = umem.NewPool(w.region, 0, rawFrames, nil)
	ifindex := link.Attrs().Index
	if w.sock, err = rings.OpenSocket(w.region, rings.SocketOptions{
		Interface: o.dev, Ifindex: ifindex, FillSize: rawFill, Mode: rings.Copy,
	}); err != nil {
		return err
	}
	w.port = w.sock.Port()
	if o.work == "raw-tx" {
		if err := w.writeFrames(link, o); err != nil {
			return err
		}
	}
	if err := w.refill(); err != nil { // a frame that comes at once needs a place
		return err
	}
	addr := o.addr.Addr()
	if w.program, err = xdpprog.Load(xdpprog.Config{
		Interface: o.dev, Ifindex: ifindex, Steer: xdpprog.Share, Addrs: []netip.Addr{addr}, Queues: 1, Attach: xdpprog.Native,
	}); err != nil {
		return err
	}
	if err := w.program.OpenPort(proto.ProtoUDP, addr, uint16(o.port)); err != nil {
		return err
	}
	return w.program.SetSocket(0, w.sock.FD())
}

func (w *raw) close() error {
	var errs []error
	if w.program != nil {
		errs = append(errs, w.program.Close())
	}
	if w.sock != nil {
		errs = append(errs, w.sock.Close())
	}
	if w.region != nil {
		errs = append(errs, w.region.Close())
	}
	return errors.Join(errs...)
}

func (w *raw) counters() (counters, error) {
	st, err := w.sock.Stats()
	return counters{
		Mode: "copy, native", FramesIn: w.in, FramesOut: w.out - uint64(w.port.TX.Pending()), Syscalls: w.calls,
		Drops: map[string]uint64{
			"tx_full": w.txFull, "rx_dropped": st.RxDropped, "rx_ring_full": st.RxRingFull, "tx_invalid": st.TxInvalidDescs,
		},
	}, err
}

// reap takes back the frames that were sent.
func (w *raw) reap() {
	comp := w.port.Comp
	for {
		idx, n := comp.Peek(rawBatch)
		if n == 0 {
			return
		}
		for i := range n {
			w.put(comp.Read(idx+i), umem.TX)
		}
		comp.Release(n)
	}
}

// put frees the frame of an address that the kernel gave.
func (w *raw) put(addr uint64, from umem.Owner) {
	if f, ok := w.region.FrameOf(addr); ok {
		w.pool.Put(f, from)
	}
}

// refill gives the device frames to receive into, in whole batches. It looks at the ring only then: the kernel writes its index
// of it on the line where the flags are, for each batch, and who reads that all the time slows it down.
func (w *raw) refill() error {
	fill := w.port.Fill
	for rawFill-w.inFill >= rawBatch {
		// The kernel publishes what it received before it publishes what it took from this ring.
		idx, room := fill.Reserve(uint32(min(rawBatch, w.pool.Avail())))
		if room == 0 {
			break
		}
		n := w.pool.GetN(w.scratch[:room], umem.Fill)
		for i, f := range w.scratch[:n] {
			*fill.Slot(idx + uint32(i)) = w.region.Addr(f)
		}
		fill.Submit(room)
		w.inFill += n
		if fill.NeedWakeup() {
			w.calls++
			if err := w.sock.WakeRX(); err != nil {
				return err
			}
		}
	}
	return nil
}

// kick has the kernel send, if there is something that it has not taken.
func (w *raw) kick() error {
	if w.port.TX.Pending() == 0 || !w.port.TX.NeedWakeup() {
		return nil
	}
	w.calls++
	return w.sock.Kick()
}

// echo sends datagrams back in the frames they came in.
func (w *raw) echo() error {
	rx, tx := w.port.RX, w.port.TX
	idx, n := rx.Peek(rawBatch)
	if n > 0 {
		out, room := tx.Reserve(n)
		for i := range n {
			d := rx.Read(idx + i)
			if i >= room {
				w.put(d.Addr, umem.RX)
				continue
			}
			reverse(w.region.Mem()[d.Addr : d.Addr+uint64(d.Len)])
			*tx.Slot(out + i) = rings.Desc{Addr: d.Addr, Len: d.Len}
		}
		rx.Release(n)
		tx.Submit(room)
		w.inFill -= int(n)
		w.in += uint64(n)
		w.out += uint64(room)
		w.txFull += uint64(n - room)
	}
	return w.kick()
}

// reverse exchanges MACs, addresses and ports of a UDP datagram without IP options: the program lets through no other. The
// sums stay what they are.
func reverse(frame []byte) {
	const ip, udp = 14, 14 + 20
	b := frame[:udp+4]
	dst, src := (*[6]byte)(b), (*[6]byte)(b[6:])
	*dst, *src = *src, *dst
	from, to := (*[4]byte)(b[ip+12:]), (*[4]byte)(b[ip+16:])
	*from, *to = *to, *from
	near, far := (*[2]byte)(b[udp:]), (*[2]byte)(b[udp+2:])
	*near, *far = *far, *near
}

func (w *raw) drop() error {
	rx := w.port.RX
	idx, n := rx.Peek(rawBatch)
	for i := range n {
		w.put(rx.Read(idx+i).Addr, umem.RX)
	}
	rx.Release(n)
	w.inFill -= int(n)
	w.in += uint64(n)
	return nil
}

// send sends the frames that writeFrames wrote.
func (w *raw) send() error {
	tx := w.port.TX
	idx, room := tx.Reserve(uint32(min(rawBatch, w.pool.Avail())))
	n := w.pool.GetN(w.scratch[:room], umem.TX)
	for i, f := range w.scratch[:n] {
		*tx.Slot(idx + uint32(i)) = rings.Desc{Addr: w.region.Addr(f) + umem.Headroom, Len: rawLen}
	}
	tx.Submit(room)
	w.out += uint64(room)
	return w.kick()
}

// writeFrames puts the same UDP datagram, without a checksum, into every frame. Its receiver is the other host of a /30 that
// our address lies in, as peers/xsk.c has it.
func (w *raw) writeFrames(link netlink.Link, o serveOptions) error {
	own, ok := proto.AddrFrom(o.addr.Addr())
	if !ok {
		return fmt.Errorf("%s is no IPv4 address", o.addr)
	}
	peer := own ^ 3
	mac, err := neighbour(link.Attrs().Index, net.IPv4(byte(peer>>24), byte(peer>>16), byte(peer>>8), byte(peer)))
	if err != nil {
		return err
	}
	const ip, udp = 14, 14 + 20
	for f := range umem.Frame(rawFrames) {
		b := w.region.Chunk(f)[umem.Headroom:]
		proto.PutEthernet(b, mac, proto.MAC(link.Attrs().HardwareAddr), proto.EtherIPv4)
		proto.PutIPv4(b[ip:], &proto.IPv4{TotalLen: rawLen - ip, TTL: 64, Proto: proto.ProtoUDP, Src: own, Dst: peer})
		proto.PutUDP(b[udp:], uint16(o.port), uint16(o.port), rawLen-udp, 0)
	}
	return nil
}

// neighbour has the kernel resolve an address, and waits for it.
func neighbour(ifindex int, ip net.IP) (proto.MAC, error) {
	const known = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE | netlink.NUD_STALE | netlink.NUD_DELAY | netlink.NUD_PROBE
	for try := range 300 {
		list, err := netlink.NeighList(ifindex, unix.AF_INET)
		if err != nil {
			return proto.MAC{}, fmt.Errorf("neighbours: %w", err)
		}
		for _, n := range list {
			if n.IP.Equal(ip) && n.State&known != 0 && len(n.HardwareAddr) == 6 {
				return proto.MAC(n.HardwareAddr), nil
			}
		}
		if try%100 == 0 {
			if c, err := net.DialUDP("udp4", nil, &net.UDPAddr{IP: ip, Port: 9}); err == nil { // discard
				_, _ = c.Write(nil) // refused, or not routed: then the list will not have it
				c.Close()
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
	return proto.MAC{}, fmt.Errorf("no answer to ARP for %s", ip)
}
