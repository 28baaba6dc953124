package sockets

import (
	"fmt"

	"xdpd/proto"
	"xdpd/umem"
)

// PortConfig is one interface of a Bridge or Router.
type PortConfig struct {
	MAC proto.MAC
	MTU int  // bytes of the IP packet
	Up  bool // down: nothing is sent there

	// CompletePartial finishes TCP and UDP checksums that a kernel sender on the other end left to a device (veth and its
	// like), for the device that they leave by does not know of that.
	CompletePartial bool
}

// PortCounters is one port's part of the ledger. What came in and went no further is counted where it came in, and what
// could not be sent where it was to leave.
type PortCounters struct {
	PortStats
	Drops  [NDrops]uint64
	Copied [NCopies]uint64 // bytes of frames that came in here
}

// PortStats are a port's counters that are no drops.
type PortStats struct {
	RxFrames, RxBytes uint64
	TxFrames, TxBytes uint64 // queued for the device
	PartialSums       uint64 // checksums that were finished
	Flooded           uint64 // frames for all ports: their station is not known, or it is a group
	Learned           uint64 // stations that appeared here
	Moved             uint64 // of them, those that were on another port before
	TableFull         uint64 // stations not learned, for there is no room
	Waited            uint64 // packets that waited for a neighbour
	Fragmented        uint64 // packets cut for the MTU of the port that they left by
	Fragments         uint64 // that came of it
	ICMPErrors        uint64 // sent about packets that came in here
}

// forwarder is what a Bridge and a Router have in common: ports with an output queue each, over the frames of one pool. Not
// safe for concurrent use.
type forwarder struct {
	pool  *umem.Pool
	ports []fwdPort
	sec   secret
	now   int64
}

type fwdPort struct {
	cfg      PortConfig
	counters PortCounters
	txq      []TxFrame // ring; len is a power of two
	head     uint32
	tail     uint32
	used     int // frames in txq and with the device
	limit    int // of used
}

// fwdQueue is how many frames wait for a device's ring at most.
const fwdQueue = 2048

// ForwardConfig describes a Bridge or Router.
type ForwardConfig struct {
	Ports      []PortConfig
	FillFrames int      // frames that the fill rings of all ports need
	Seed       [32]byte // secret of hashes and identifications
}

func (f *forwarder) init(c *ForwardConfig, pool *umem.Pool, now int64) error {
	if len(c.Ports) < 2 || len(c.Ports) > MaxPorts {
		return fmt.Errorf("sockets: %d ports; a forwarder has 2 to %d", len(c.Ports), MaxPorts)
	}
	spare := pool.Total() - c.FillFrames
	if spare < 32*len(c.Ports) {
		return fmt.Errorf("sockets: %d frames, of which fill rings take %d; %d ports need %d more",
			pool.Total(), c.FillFrames, len(c.Ports), 32*len(c.Ports))
	}
	f.pool, f.sec, f.now = pool, newSecret(c.Seed, 0), now
	for _, p := range c.Ports {
		if err := f.checkPort(&p); err != nil {
			return err
		}
		// An eighth is left to packets that wait for neighbours, and to those that are made here.
		f.ports = append(f.ports, fwdPort{cfg: p, txq: make([]TxFrame, fwdQueue), limit: spare * 7 / 8 / len(c.Ports)})
	}
	return nil
}

// MaxPorts is how many ports a Bridge or Router has at most.
const MaxPorts = 64

func (f *forwarder) checkPort(p *PortConfig) error {
	if most := MaxMTU(f.pool.Region().ChunkSize(), 1); p.MTU < 68 || p.MTU > most {
		return fmt.Errorf("sockets: MTU %d; with frames of %d bytes it must lie between 68 and %d", p.MTU, f.pool.Region().ChunkSize(), most)
	}
	return nil
}

// SetPort follows an interface whose state changed. An MTU that frames do not hold is an error, and changes nothing.
func (f *forwarder) SetPort(port int, c PortConfig) error {
	if err := f.checkPort(&c); err != nil {
		return err
	}
	f.ports[port].cfg = c
	return nil
}

// Port is what SetPort set last.
func (f *forwarder) Port(port int) PortConfig { return f.ports[port].cfg }

// Counters gives a port's ledger; the caller must not change it.
func (f *forwarder) Counters(port int) *PortCounters { return &f.ports[port].counters }

// Used is how many frames wait for a port's device or are with it, and how many may.
func (f *forwarder) Used(port int) (n, limit int) { return f.ports[port].used, f.ports[port].limit }

// TxPending is how many frames wait for PopTX.
func (f *forwarder) TxPending(port int) int { return int(f.ports[port].tail - f.ports[port].head) }

// PopTX gives the next frame to send on a port: n bytes from off of its chunk. The frame goes from umem.Held to umem.TX, and
// comes back through Completed. umem.None: there is none.
func (f *forwarder) PopTX(port int) (frame umem.Frame, off, n int) {
	p := &f.ports[port]
	if p.head == p.tail {
		return umem.None, 0, 0
	}
	d := p.txq[p.head&(fwdQueue-1)]
	p.head++
	f.pool.Move(d.F, umem.Held, umem.TX)
	return d.F, d.Off(), d.N()
}

// Completed takes back a frame that a port's device is done with; the caller owns it as umem.Comp.
func (f *forwarder) Completed(port int, frame umem.Frame) {
	f.ports[port].used--
	f.pool.Put(frame, umem.Comp)
}

// receive counts a frame that came in, and gives its bytes.
func (f *forwarder) receive(port int, frame umem.Frame, off, n int, now int64) (*fwdPort, []byte) {
	f.now = now
	p := &f.ports[port]
	p.counters.RxFrames++
	p.counters.RxBytes += uint64(n)
	return p, f.pool.Chunk(frame)[off : off+n]
}

// drop frees what came in on p.
func (f *forwarder) drop(p *fwdPort, frame umem.Frame, why Drop) {
	p.counters.Drops[why]++
	f.pool.Put(frame, umem.RX)
}

// send queues n bytes from off of a frame for a port, or drops it with a reason. from is who owns the frame.
func (f *forwarder) send(out *fwdPort, frame umem.Frame, off, n int, from umem.Owner) {
	if why := out.refuses(); why != 0 {
		out.counters.Drops[why]++
		f.pool.Put(frame, from)
		return
	}
	if from != umem.Held {
		f.pool.Move(frame, from, umem.Held)
	}
	out.txq[out.tail&(fwdQueue-1)] = TxFrame{frame, uint16(off), uint16(n)}
	out.tail++
	out.used++
	out.counters.TxFrames++
	out.counters.TxBytes += uint64(n)
}

// refuses says why nothing can be sent on the port at this moment; 0: it can.
func (p *fwdPort) refuses() Drop {
	switch {
	case !p.cfg.Up:
		return FwdPortDown
	case p.tail-p.head == fwdQueue || p.used >= p.limit:
		return TxQueueFull
	}
	return 0
}

// completeSum finishes the checksum of the packet in a frame, if its sender left that to a device.
func (p *fwdPort) completeSum(l3 []byte, etherType uint16) {
	if p.cfg.CompletePartial && proto.CompleteL4(l3, etherType) {
		p.counters.PartialSums++
	}
}
