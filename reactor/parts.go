package reactor

import (
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// parts is a packet of several frames on its way in. Its descriptors may come in several batches, and in several turns.
type parts struct {
	open   bool // the last descriptor was not the packet's last
	bad    bool // something is wrong with the packet: it is dropped whole
	n      int
	pieces [sockets.MaxPacketFrames]sockets.Piece
}

// receivePart takes one descriptor of a packet of several frames, and with the last hands the packet to the Host.
func (r *Reactor) receivePart(d rings.Desc, now int64) {
	p := &r.parts
	if p.open = d.Options&rings.DescContinued != 0; p.open {
		r.counters.RxMore++
		r.counters.RxFrames-- // which the batch counts
	}
	if f, ok := r.frame(d.Addr, umem.Fill); !ok {
		p.bad = true
	} else {
		r.pool.Move(f, umem.Fill, umem.RX)
		r.addPart(f, d)
	}
	if p.bad {
		r.dropParts()
	}
	if p.open {
		return
	}
	if p.bad {
		r.counters.RxBadChain++
	} else {
		r.host.InputPieces(p.pieces[:p.n], now)
	}
	p.n, p.bad = 0, false
}

// addPart takes f if d lies in it, there is something in it, and the packet may have one more frame.
func (r *Reactor) addPart(f umem.Frame, d rings.Desc) {
	p := &r.parts
	off := int(d.Addr - r.pool.Region().Addr(f))
	inside := off >= earliest && d.Len > 0 && int64(d.Len) <= int64(r.pool.Region().ChunkSize()-off)
	if p.bad || !inside || p.n == r.host.PacketFrames() {
		p.bad = true
		r.pool.Put(f, umem.RX)
		return
	}
	p.pieces[p.n] = sockets.Piece{F: f, Off: uint16(off), N: uint16(d.Len)}
	p.n++
}

// dropParts frees what there is of a packet.
func (r *Reactor) dropParts() {
	for _, piece := range r.parts.pieces[:r.parts.n] {
		r.pool.Put(piece.F, umem.RX)
	}
	r.parts.n = 0
}
