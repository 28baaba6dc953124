// Package simnic is a NIC without hardware: it holds the far ends of a
// rings.Port in plain memory and does with them what net/xdp/xsk.c does, one
// step a call. Both ends of every ring are production code; only the wire is
// simulated.
//
// Everything a kernel may do late, the test decides: when a frame arrives
// (Deliver), when sent ones leave (Transmit), and when they are done
// (Complete).
package simnic

import (
	"encoding/binary"
	"fmt"

	"xdpd/rings"
	"xdpd/umem"
)

// SimNIC is one simulated queue. It is for the goroutine that runs the port.
type SimNIC struct {
	region *umem.Region
	port   rings.Port

	fill *rings.Consumer[uint64]
	rx   *rings.Producer[rings.Desc]
	tx   *rings.Consumer[rings.Desc]
	comp *rings.Producer[uint64]

	inFlight int    // taken from TX, completion slot reserved and written, not submitted
	packet   []byte // what there is of a packet of several descriptors
	start    int    // where its checksum is to be summed from, and the field behind start; 0: it is not asked for
	field    int
	options  uint32 // that a TX entry may have
	scatter  bool
	lossy    bool
	stats    rings.Stats
	kicks    uint64
	wakes    uint64
	down     bool
}

// NewSimNIC has rings of the given sizes, powers of two.
func NewSimNIC(region *umem.Region, fillSize, compSize, rxSize, txSize uint32) *SimNIC {
	fill, comp := rings.NewPlain[uint64](fillSize), rings.NewPlain[uint64](compSize)
	rx, tx := rings.NewPlain[rings.Desc](rxSize), rings.NewPlain[rings.Desc](txSize)
	n := &SimNIC{
		region: region, options: rings.DescContinued,
		fill: fill.Consumer(), rx: rx.Producer(), tx: tx.Consumer(), comp: comp.Producer(),
	}
	n.port = rings.Port{Fill: fill.Producer(), RX: rx.Consumer(), TX: tx.Producer(), Comp: comp.Consumer(), Dev: n}
	n.SetNeedWakeup(true, false) // as on veth
	return n
}

// Port is our side of the queue.
func (n *SimNIC) Port() *rings.Port { return &n.port }

// SetNeedWakeup sets what the port's TX and fill rings say of needing a wake-up.
func (n *SimNIC) SetNeedWakeup(tx, fill bool) {
	n.tx.SetNeedWakeup(tx)
	n.fill.SetNeedWakeup(fill)
}

// SetDown pulls the cable: Kick and WakeRX give rings.ErrDeviceDown, and
// nothing moves, until it is put back.
func (n *SimNIC) SetDown(down bool) { n.down = down }

// SetScatter chooses what becomes of a received packet that does not fit into
// a frame: it comes in several (XDP_USE_SG), or is dropped.
func (n *SimNIC) SetScatter(on bool) { n.scatter = on }

// SetChecksum chooses whether the NIC finishes checksums that it is asked to
// (rings.DescMetadata); else it refuses such entries. To be called before the
// port is copied.
func (n *SimNIC) SetChecksum(on bool) {
	if n.port.Checksum, n.options = on, rings.DescContinued; on {
		n.options |= rings.DescMetadata
	}
}

// Pieces is how many frames a received packet of so many bytes takes.
func (n *SimNIC) Pieces(bytes int) int {
	room := n.region.ChunkSize() - umem.Headroom
	return max(1, (bytes+room-1)/room)
}

// Deliver receives a packet: it takes a fill entry, copies the packet behind
// umem.Headroom and posts it to the RX ring; with SetScatter, if need be, in
// several frames. False says that the packet was dropped, and Stats for what
// reason.
func (n *SimNIC) Deliver(packet []byte) bool {
	pieces := uint32(n.Pieces(len(packet)))
	if n.down || pieces > 1 && !n.scatter {
		n.stats.RxDropped++
		return false
	}
	if _, ok := n.nextFill(); !ok || !n.filled(pieces) {
		n.stats.RxDropped++ // the kernel counts both: __xsk_rcv, __xp_alloc
		n.stats.RxFillRingEmpty++
		return false
	}
	idx, got := n.rx.Reserve(pieces)
	if got < pieces {
		n.rx.Cancel(got)
		n.stats.RxRingFull++
		return false
	}
	at, _ := n.fill.Peek(pieces)
	for i := range pieces {
		f, _ := n.region.FrameOf(n.fill.Read(at + i))
		k := copy(n.region.Chunk(f)[umem.Headroom:], packet)
		d := rings.Desc{Addr: n.region.Addr(f) + umem.Headroom, Len: uint32(k)}
		if packet = packet[k:]; len(packet) > 0 {
			d.Options = rings.DescContinued
		}
		*n.rx.Slot(idx + i) = d
	}
	n.fill.Release(pieces)
	n.rx.Submit(pieces)
	return true
}

// filled reports whether the oldest fill entries are so many good ones.
func (n *SimNIC) filled(want uint32) bool {
	idx, got := n.fill.Peek(want)
	for i := range got {
		if _, ok := n.region.FrameOf(n.fill.Read(idx + i)); !ok {
			return false
		}
	}
	return got == want
}

// nextFill is the oldest good fill entry, not released yet. Bad ones are
// released and counted; as in the kernel an address anywhere in a chunk means
// the chunk.
func (n *SimNIC) nextFill() (umem.Frame, bool) {
	for {
		idx, got := n.fill.Peek(1)
		if got == 0 {
			return umem.None, false
		}
		if f, ok := n.region.FrameOf(n.fill.Read(idx)); ok {
			return f, true
		}
		n.stats.RxInvalidDescs++
		n.fill.Release(1)
	}
}

// SetLossy chooses what becomes of the frame of a bad TX entry: false, as in
// Linux 6.18 in copy mode, it completes; true, as in other kernels and with zero
// copy, it never does.
func (n *SimNIC) SetLossy(lossy bool) { n.lossy = lossy }

// Transmit takes up to max TX entries and says how many were good. out, unless
// nil, sees each packet, one of several descriptors put together: what it wants
// to keep it must copy. Frames taken are in flight until Complete; no more are
// taken than the completion ring has room for. A bad entry ends the call and is
// counted in Stats; of a packet it belongs to, nothing is sent.
func (n *SimNIC) Transmit(max int, out func(packet []byte)) int {
	for taken := range max {
		if n.down || !n.transmitOne(out) {
			return taken
		}
	}
	return max
}

func (n *SimNIC) transmitOne(out func(packet []byte)) bool {
	slot, room := n.comp.Reserve(1)
	if room == 0 {
		return false
	}
	idx, got := n.tx.Peek(1)
	if got == 0 {
		n.comp.Cancel(1)
		n.stats.TxRingEmptyDescs++
		return false
	}
	d := n.tx.Read(idx)
	ok := n.valid(d) && (!n.port.Checksum || n.ask(d))
	if ok {
		n.gather(d, out)
	} else {
		n.stats.TxInvalidDescs++
		n.packet, n.field = n.packet[:0], 0
	}
	n.tx.Release(1)
	if !ok && n.lossy {
		n.comp.Cancel(1)
		return false
	}
	*n.comp.Slot(slot) = d.Addr
	n.inFlight++
	return ok
}

// gather adds d to the packet, and gives the packet out when that was its end.
func (n *SimNIC) gather(d rings.Desc, out func(packet []byte)) {
	n.packet = append(n.packet, n.region.Mem()[d.Addr:d.Addr+uint64(d.Len)]...)
	if d.Options&rings.DescContinued != 0 {
		return
	}
	if n.field > 0 {
		n.finish()
	}
	if out != nil {
		out(n.packet)
	}
	n.packet, n.field = n.packet[:0], 0
}

// ask notes what a packet's first entry asks for. False: it leaves no room for
// the metadata (xp_aligned_validate_desc), or the kernel would not send it
// (xsk_skb_metadata in net/xdp/xsk.c).
func (n *SimNIC) ask(d rings.Desc) (ok bool) {
	if d.Addr&uint64(n.region.ChunkSize()-1) < rings.TXMetadata {
		return false
	}
	// Of a packet's further entries the kernel does not look at the metadata.
	if d.Options&rings.DescMetadata == 0 || len(n.packet) > 0 {
		return true
	}
	n.start, n.field, ok = rings.Asked(n.region.Mem()[d.Addr-rings.TXMetadata : d.Addr])
	return ok && n.start+n.field+2 <= int(d.Len)
}

// finish is skb_checksum_help (net/core/dev.c). A sum of 0 is sent as its other
// representation, which UDP asks for and others allow.
func (n *SimNIC) finish() {
	sum := uint32(0)
	for i, b := range n.packet[n.start:] {
		sum += uint32(b) << (8 &^ (i << 3))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum ^= 0xffff; sum == 0 {
		sum = 0xffff
	}
	binary.BigEndian.PutUint16(n.packet[n.start+n.field:], uint16(sum))
}

// valid is xp_aligned_validate_desc (net/xdp/xsk_queue.h): inside the region
// and inside one chunk, not empty, no unknown option.
func (n *SimNIC) valid(d rings.Desc) bool {
	f, ok := n.region.FrameOf(d.Addr)
	if !ok || d.Len == 0 || d.Options&^n.options != 0 {
		return false
	}
	offset := d.Addr - n.region.Addr(f)
	return offset+uint64(d.Len) <= uint64(n.region.ChunkSize())
}

// Complete posts completions for up to max frames in flight, oldest first, and
// says for how many.
func (n *SimNIC) Complete(max int) int {
	done := min(max, n.inFlight)
	if n.down || done <= 0 {
		return 0
	}
	n.comp.Submit(uint32(done))
	n.inFlight -= done
	return done
}

// InFlight is how many frames are taken from TX and not completed.
func (n *SimNIC) InFlight() int { return n.inFlight }

// Kicks is how often Kick was called.
func (n *SimNIC) Kicks() uint64 { return n.kicks }

// Wakes is how often WakeRX was called.
func (n *SimNIC) Wakes() uint64 { return n.wakes }

// Kick counts; the test calls Transmit when it wants frames to leave.
func (n *SimNIC) Kick() error {
	n.kicks++
	return n.upOrError("kick TX")
}

// WakeRX counts.
func (n *SimNIC) WakeRX() error {
	n.wakes++
	return n.upOrError("wake RX")
}

func (n *SimNIC) upOrError(op string) error {
	if n.down {
		return fmt.Errorf("simnic: %s: %w", op, rings.ErrDeviceDown)
	}
	return nil
}

// FD is -1: there is nothing to poll.
func (n *SimNIC) FD() int { return -1 }

// Stats are what the kernel would have counted.
func (n *SimNIC) Stats() (rings.Stats, error) { return n.stats, nil }

// Close takes the NIC down.
func (n *SimNIC) Close() error {
	n.down = true
	return nil
}
