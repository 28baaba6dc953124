package sockets

import (
	"slices"

	"xdpd/proto"
	"xdpd/umem"
)

// Neighbour states, as in net/core/neighbour.c and RFC 4861 7.3.2.
type neighState uint8

const (
	neighUnused     neighState = iota
	neighIncomplete            // asked by broadcast, nothing known yet; packets wait
	neighReachable             // confirmed less than reachableNS ago
	neighStale                 // known, not confirmed lately; used as it is
	neighDelay                 // used while stale: confirmation is due unless a reply comes first
	neighProbe                 // asked again, the old address still in use
)

const (
	neighMax      = 1024
	neighQueueMax = 64 // frames waiting for one neighbour: the fragments of a largest datagram fit
	neighWaitMax  = 512
	neighProbes   = 3
	resolveMax    = 64
	heardMax      = 64
	probingMax    = 16
	reachableNS   = 30_000_000_000
	delayNS       = 5_000_000_000
	probeNS       = 1_000_000_000
)

type neighbour struct {
	addr       proto.Addr
	mac        proto.MAC
	state      neighState
	probes     uint8
	waiting    uint8      // frames
	heard      bool       // in PROBE: a packet came from mac since the last request
	head, tail umem.Frame // packets without a link header, linked by Buf.Aux
	timer      uint32
}

// neighTable is the ARP table. A peer can fill it only with entries that are evicted first.
type neighTable struct {
	index   *flat[proto.Addr]
	entries []neighbour
	free    []uint16
	hand    int
	waiting int // frames in all queues
	resolve []proto.Addr
	heard   []proto.ARP
	probing []uint16 // entries in PROBE that were not heard since they were asked
}

func (t *neighTable) init(h *Host) {
	t.index = newFlat(h.sec.addr)
	t.entries = make([]neighbour, neighMax)
	t.free = make([]uint16, neighMax)
	for i := range t.free {
		t.free[i] = uint16(neighMax - 1 - i)
	}
}

func (h *Host) neighGet(a proto.Addr) *neighbour {
	if i, ok := h.neigh.index.get(a); ok {
		return &h.neigh.entries[i]
	}
	return nil
}

// neighNew makes an entry for a, evicting a stale one if the table is full, or else one that has not answered yet: who sends to addresses
// where nobody is would keep all others from new neighbours. nil when all are in use.
func (h *Host) neighNew(a proto.Addr) *neighbour {
	t := &h.neigh
	if len(t.free) == 0 {
		h.neighEvict()
		if len(t.free) == 0 {
			h.counters.Drops[NeighTableFull]++
			return nil
		}
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.index.put(a, uint32(i))
	e := &t.entries[i]
	*e = neighbour{addr: a, head: umem.None, tail: umem.None, timer: h.timers.alloc(timerOwner(timerNeigh, uint32(i)))}
	return e
}

// neighEvict looks for an entry that can go with a clock hand, at a few only: a flood must not buy a scan of the table per packet.
func (h *Host) neighEvict() {
	t := &h.neigh
	for n := range 16 {
		if at := (t.hand + 1 + n) % neighMax; t.entries[at].state == neighStale {
			t.hand = at
			h.neighDelete(&t.entries[at])
			return
		}
	}
	for range 16 {
		t.hand = (t.hand + 1) % neighMax
		e := &t.entries[t.hand]
		if e.state != neighIncomplete {
			continue
		}
		f := h.neighTake(e)
		h.neighDelete(e)
		for f != umem.None {
			next := umem.Frame(h.pool.Buf(f).Aux)
			h.counters.Drops[NeighTableFull]++
			h.unsend(f)
			f = next
		}
		return
	}
}

// neighDelete forgets an entry whose queue is empty.
func (h *Host) neighDelete(e *neighbour) {
	i, _ := h.neigh.index.get(e.addr)
	h.neigh.index.del(e.addr)
	h.timers.release(e.timer)
	*e = neighbour{}
	h.neigh.free = append(h.neigh.free, uint16(i))
}

// SetNeighbour tells what the kernel knows of a neighbour (share mode). valid false: it is gone.
func (h *Host) SetNeighbour(a proto.Addr, mac proto.MAC, valid bool, now int64) {
	h.now = now
	e := h.neighGet(a)
	switch {
	case valid:
		if e == nil {
			if e = h.neighNew(a); e == nil {
				return
			}
		}
		e.mac = mac
		h.neighReached(e)
	case e != nil && e.state == neighIncomplete:
		h.neighFail(e)
	case e != nil:
		h.neighDelete(e)
	}
}

// Neighbours gives the neighbours that answered once and are not in doubt, max of them at most.
func (h *Host) Neighbours(max int) (list []proto.Addr) {
	for i := range h.neigh.entries {
		if e := &h.neigh.entries[i]; len(list) < max && e.state >= neighReachable {
			list = append(list, e.addr)
		}
	}
	return list
}

// PopResolve gives an address that somebody must resolve for this Host (share mode).
func (h *Host) PopResolve() (proto.Addr, bool) {
	n := len(h.neigh.resolve)
	if n == 0 {
		return 0, false
	}
	a := h.neigh.resolve[n-1]
	h.neigh.resolve = h.neigh.resolve[:n-1]
	return a, true
}

// transmit sends the IP packet of n bytes at off in frame f to the neighbour hop, or queues it until hop is resolved.
// false: it was not taken, the reason is counted, and the frame is still the caller's.
func (h *Host) transmit(f umem.Frame, off, n int, hop proto.Addr) bool {
	e := h.neighGet(hop)
	if e == nil {
		if e = h.neighNew(hop); e == nil {
			return false
		}
		e.state = neighIncomplete
		waits := h.neighWait(e, f, off, n)
		h.neighAsk(e)
		return waits
	}
	if e.state == neighIncomplete {
		return h.neighWait(e, f, off, n)
	}
	if e.state == neighStale && !h.cfg.KernelNeighbours {
		e.state = neighDelay
		h.timers.start(e.timer, h.now+delayNS)
	}
	return h.emit(f, off, n, e.mac, proto.EtherIPv4)
}

// emit writes the link header in front of the packet and puts the frame on the output queue.
func (h *Host) emit(f umem.Frame, off, n int, dst proto.MAC, etherType uint16) bool {
	off -= h.lead
	if p := h.pool.Chunk(f)[off:]; len(h.cfg.VLANs) == 0 {
		proto.PutEthernet(p, dst, h.cfg.MAC, etherType)
	} else {
		proto.PutEthernetTagged(p, dst, h.cfg.MAC, h.cfg.VLANs, etherType)
	}
	b, flags := h.pool.Buf(f), uint16(0)
	if b.Flags&bufPartial != 0 {
		flags = h.sumFlag(f, off)
	}
	if b.Flags&bufMore != 0 {
		return h.enqueueChain(f, off, n+h.lead, flags)
	}
	return h.enqueue(f, off, n+h.lead, flags)
}

func (h *Host) neighWait(e *neighbour, f umem.Frame, off, n int) bool {
	b := h.pool.Buf(f)
	limit := min(neighWaitMax, h.txLimit/4)
	if e.head == umem.None { // the first: else who sends to addresses where nobody is would keep others from new neighbours
		limit = h.txLimit / 2
	}
	// A frame of a TCP send queue is linked there already; the retransmission timer brings it again. In the last free frame
	// nothing waits: it is for the request.
	if b.Flags&bufKept != 0 || h.txFree() == 0 || int(e.waiting)+h.sentTogether(f) > neighQueueMax ||
		h.neigh.waiting >= limit {
		h.counters.Drops[NeighQueueFull]++
		return false
	}
	b.Off, b.Len, b.Aux = uint16(off), uint16(n), uint32(umem.None)
	if e.head == umem.None {
		e.head = f
	} else {
		h.pool.Buf(e.tail).Aux = uint32(f)
	}
	e.tail = f
	frames := h.sentTogether(f)
	e.waiting += uint8(frames)
	h.neigh.waiting += frames
	return true
}

// neighTake empties the queue of e and gives its first packet.
func (h *Host) neighTake(e *neighbour) umem.Frame {
	f := e.head
	h.neigh.waiting -= int(e.waiting)
	e.head, e.tail, e.waiting = umem.None, umem.None, 0
	return f
}

// neighReached is called when e.mac was confirmed: what waited goes out.
func (h *Host) neighReached(e *neighbour) {
	e.state, e.probes = neighReachable, 0
	if h.cfg.KernelNeighbours {
		h.timers.stop(e.timer)
	} else {
		h.timers.start(e.timer, h.now+reachableNS)
	}
	for f := h.neighTake(e); f != umem.None; {
		b := h.pool.Buf(f)
		next := umem.Frame(b.Aux)
		if !h.emit(f, int(b.Off), int(b.Len), e.mac, proto.EtherIPv4) {
			h.unsend(f)
		}
		f = next
	}
}

// neighFail gives up on e: what waited is dropped, and the sockets it came from learn it as they would from an ICMP
// host unreachable.
func (h *Host) neighFail(e *neighbour) {
	f := h.neighTake(e)
	h.neighDelete(e)
	for f != umem.None {
		next := umem.Frame(h.pool.Buf(f).Aux)
		h.counters.Drops[NeighFailed]++
		if q, ok := h.quoted(h.pool.Data(f)); ok {
			h.socketError(&q, EHOSTUNREACH, 0)
		}
		h.unsend(f)
		f = next
	}
}

// neighAsk sends the request that e's state calls for and sets the timer for the next.
func (h *Host) neighAsk(e *neighbour) {
	e.probes = min(e.probes+1, neighProbes)
	h.timers.start(e.timer, h.now+probeNS)
	if e.heard = false; e.state == neighProbe && len(h.neigh.probing) < probingMax {
		i, _ := h.neigh.index.get(e.addr)
		if !slices.Contains(h.neigh.probing, uint16(i)) {
			h.neigh.probing = append(h.neigh.probing, uint16(i))
		}
	}
	if h.cfg.KernelNeighbours {
		if len(h.neigh.resolve) < resolveMax {
			h.neigh.resolve = append(h.neigh.resolve, e.addr)
		}
		return
	}
	h.arpSend(proto.Broadcast, &proto.ARP{Op: proto.ARPRequest, SHA: h.cfg.MAC, SPA: h.sourceFor(e.addr), TPA: e.addr})
}

func (h *Host) neighTimer(i uint32) {
	e := &h.neigh.entries[i]
	switch e.state {
	case neighReachable:
		e.state = neighStale
	case neighDelay:
		e.state, e.probes = neighProbe, 0
		h.neighAsk(e)
	case neighIncomplete, neighProbe:
		if e.probes >= neighProbes && !e.heard {
			h.neighFail(e)
			return
		}
		h.neighAsk(e)
	}
}

// neighHeard takes note of who sent a packet while neighbours are in doubt. Under a flood the device drops most of what comes in,
// and three answers by ARP are soon among it: to give a neighbour up that is plainly there would add an outage to the flood. It does
// not show that he hears us, so he is asked on, and an entry that another MAC answers for is still replaced.
func (h *Host) neighHeard(mac proto.MAC) {
	h.neigh.probing = slices.DeleteFunc(h.neigh.probing, func(i uint16) bool {
		e := &h.neigh.entries[i]
		if e.state == neighProbe && e.mac == mac {
			e.heard = true
		}
		return e.state != neighProbe || e.heard
	})
}

// arpInput handles a received ARP packet (RFC 826) and frees its frame. It learns from replies that were asked for and
// from requests for our own address, nothing else; and what is confirmed is never overwritten by what nobody asked for:
// the claim only makes us ask the whole link.
func (h *Host) arpInput(b []byte, linkSrc proto.MAC, f umem.Frame) {
	a, fault := proto.ParseARP(b)
	why := Drop(fault)
	if fault == proto.OK {
		why = h.arpHandle(&a, linkSrc)
	}
	if why != 0 {
		h.counters.Drops[why]++
	}
	h.freeRX(f)
}

func (h *Host) arpHandle(a *proto.ARP, linkSrc proto.MAC) Drop {
	// A claim on our address is a conflict whomever it is addressed to (RFC 5227 2.4).
	if h.cfg.KernelNeighbours || !h.isLocal(a.TPA) && !h.isLocal(a.SPA) {
		return ARPNotOurs
	}
	// The hardware addresses must be one station's, the same in both headers.
	if a.SHA.IsMulticast() || a.SHA.IsZero() || a.SHA != linkSrc {
		return Drop(proto.ARPBad)
	}
	if h.isLocal(a.SPA) {
		return ARPConflict
	}
	if h.cfg.Siblings && len(h.neigh.heard) < heardMax {
		h.neigh.heard = append(h.neigh.heard, *a)
	}
	if a.Op == proto.ARPReply {
		return h.arpReply(a)
	}
	if a.SPA != 0 { // an RFC 5227 probe has no sender address: answered, not learnt
		if !h.onLink(a.SPA) {
			return ARPNotOurs
		}
		h.arpLearn(a)
	}
	h.arpSend(a.SHA, &proto.ARP{Op: proto.ARPReply, SHA: h.cfg.MAC, SPA: a.TPA, THA: a.SHA, TPA: a.SPA})
	return 0
}

// PopHeard gives an ARP packet that the Hosts of the interface's other queues must hear of: a reply comes back on
// whatever queue the device likes, not on that of the Host that asked.
func (h *Host) PopHeard() (proto.ARP, bool) {
	n := len(h.neigh.heard)
	if n == 0 {
		return proto.ARP{}, false
	}
	a := h.neigh.heard[n-1]
	h.neigh.heard = h.neigh.heard[:n-1]
	return a, true
}

// Heard takes what another queue's Host heard. The answer to a request was given there.
func (h *Host) Heard(a *proto.ARP, now int64) {
	h.now = now
	if a.Op == proto.ARPReply {
		h.arpReply(a)
	} else if a.SPA != 0 && h.onLink(a.SPA) {
		h.arpLearn(a)
	}
}

func (h *Host) arpReply(a *proto.ARP) Drop {
	e := h.neighGet(a.SPA)
	if e == nil || e.state == neighReachable || e.state == neighStale {
		if e != nil && e.mac != a.SHA {
			h.neighDoubt(e)
		}
		return ARPUnsolicited
	}
	// In DELAY nothing was asked yet, and in the first second of PROBE the owner answers if he is there: only then is
	// another's claim believed, or whoever makes it twice would have the address.
	if e.mac != a.SHA && (e.state == neighDelay || e.state == neighProbe && e.probes < 2) {
		h.neighDoubt(e)
		return ARPUnsolicited
	}
	e.mac = a.SHA
	h.neighReached(e)
	return 0
}

// arpLearn takes the sender of a request for our address: it is about to talk to us.
func (h *Host) arpLearn(a *proto.ARP) {
	e := h.neighGet(a.SPA)
	switch {
	case e == nil:
		if e = h.neighNew(a.SPA); e != nil {
			e.mac, e.state = a.SHA, neighStale
		}
	case e.state == neighIncomplete:
		e.mac = a.SHA
		h.neighReached(e)
		e.state = neighStale // it can reach us; that we can reach it is not shown yet
		h.timers.stop(e.timer)
	case e.mac != a.SHA:
		h.neighDoubt(e)
	}
}

// neighDoubt is called when somebody claims another hardware address for a known neighbour.
func (h *Host) neighDoubt(e *neighbour) {
	if e.state != neighProbe {
		e.state, e.probes = neighProbe, 0
		h.neighAsk(e)
	}
}

// Announce broadcasts a gratuitous ARP for each of our addresses (RFC 5227 section 3), so that peers forget a MAC that
// had them before.
func (h *Host) Announce(now int64) {
	h.now = now
	if h.cfg.KernelNeighbours {
		return
	}
	for _, p := range h.cfg.Addrs {
		h.arpSend(proto.Broadcast, &proto.ARP{Op: proto.ARPRequest, SHA: h.cfg.MAC, SPA: p.Addr, TPA: p.Addr})
	}
}

// Trial sends what nobody listens to: a frame from the device to itself, which no switch passes on, of the EtherType for local
// experiments (IEEE 802-2014, 9.2.4). It comes back as any other, which shows that the device sends. false: there is no free
// frame, or no room.
func (h *Host) Trial(now int64) bool {
	h.now = now
	if h.txRoom() == 0 {
		return false
	}
	f := h.allocTX()
	if f == umem.None {
		return false
	}
	clear(h.pool.Chunk(f)[umem.Headroom:][:trialLen])
	return h.emit(f, umem.Headroom, trialLen, h.cfg.MAC, proto.EtherTrial)
}

// trialLen fills the shortest frame (IEEE 802.3-2018 section 3.2.7).
const trialLen = 46

func (h *Host) arpSend(dst proto.MAC, a *proto.ARP) {
	f := h.allocTX()
	if f == umem.None {
		h.counters.Drops[TxNoFrame]++
		return
	}
	n := proto.PutARP(h.pool.Chunk(f)[umem.Headroom:], a)
	if !h.emit(f, umem.Headroom, n, dst, proto.EtherARP) {
		h.freeTX(f, umem.Held)
		return
	}
	h.count(TxARP)
}
