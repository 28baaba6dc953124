package reactor

import (
	"sync/atomic"

	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// lane carries packets from one reactor of a group to another, and frames in return: two rings in plain memory. The packet
// itself stays where it is in the region.
type lane struct {
	packets *rings.Plain[sockets.Handed]
	frames  *rings.Plain[umem.Frame]
}

// peer is the other reactors as one of a group sees them: what goes there, and what comes from there. Lanes are made when
// they are first needed: most devices keep a flow on its queue.
type peer struct {
	r *Reactor

	out   *rings.Producer[sockets.Handed]
	gotIn *rings.Consumer[umem.Frame] // in return for what went out
	away  int                         // frames that went out and for which none came yet

	lane atomic.Pointer[lane] // made by the other one
	in   *rings.Consumer[sockets.Handed]
	give *rings.Producer[umem.Frame]
}

const (
	laneSize   = 256  // packets
	laneFrames = 1024 // frames under way, at most a quarter of the pool, and on all lanes half of it
)

// join makes the reactors a group, in the order of their Hosts' numbers, before any of them runs.
func join(reactors []*Reactor) {
	for i, r := range reactors {
		r.self = i
		r.peers = make([]peer, len(reactors))
		for j := range r.peers {
			r.peers[j].r = reactors[j]
		}
	}
}

// outTo is the lane to p's reactor.
func (r *Reactor) outTo(p *peer) *rings.Producer[sockets.Handed] {
	if p.out == nil {
		l := &lane{rings.NewPlain[sockets.Handed](laneSize), rings.NewPlain[umem.Frame](laneFrames)}
		p.out, p.gotIn = l.packets.Producer(), l.frames.Consumer()
		p.r.peers[r.self].lane.Store(l)
	}
	return p.out
}

// handOut passes on what the Host has for others. What finds no room is dropped, and counted.
func (r *Reactor) handOut() {
	r.handed = r.host.TakeHanded(r.handed[:0])
	for i := range r.handed {
		m := &r.handed[i]
		if m.To >= len(r.peers) || m.To == r.self || !r.pass(&r.peers[m.To], m) {
			r.host.HandBack(m)
		}
	}
	for i := range r.peers {
		p := &r.peers[i]
		if p.out != nil && p.out.Reserved() > 0 {
			p.out.Submit(p.out.Reserved())
			p.r.nudge()
		}
		r.takeBack(p)
	}
}

// takeBack takes the frames that came in return. They wake nobody: it is enough to look when more goes out, or anyway, and
// now and then while somebody is short of frames (deadline).
func (r *Reactor) takeBack(p *peer) {
	if p.away == 0 {
		return
	}
	idx, n := p.gotIn.Peek(laneFrames)
	for k := range n {
		r.host.FrameBack(p.gotIn.Read(idx + k))
	}
	p.gotIn.Release(n)
	p.away -= int(n)
	r.away -= int(n)
}

// Away is how many frames went to other reactors for which none came yet. The caller holds the lock (Enter).
func (r *Reactor) Away() int {
	for i := range r.peers {
		r.takeBack(&r.peers[i])
	}
	return r.away
}

func (r *Reactor) pass(p *peer, m *sockets.Handed) bool {
	out := r.outTo(p)
	if p.away+m.Frames > min(laneFrames, r.pool.Total()/4) || r.away+m.Frames > r.pool.Total()/2 {
		return false
	}
	idx, n := out.Reserve(1)
	if n == 0 {
		return false
	}
	*out.Slot(idx) = *m
	p.away += m.Frames
	r.away += m.Frames
	return true
}

// handIn takes what others received for this reactor.
func (r *Reactor) handIn(now int64) (worked bool) {
	for i := range r.peers {
		p := &r.peers[i]
		if p.in == nil {
			l := p.lane.Load()
			if l == nil {
				continue
			}
			p.in, p.give = l.packets.Consumer(), l.frames.Producer()
		}
		worked = r.handInFrom(p, now) || worked
	}
	return worked
}

func (r *Reactor) handInFrom(p *peer, now int64) bool {
	idx, n := p.in.Peek(laneSize)
	if n == 0 {
		return false
	}
	for k := range n {
		m := p.in.Read(idx + k)
		back := r.host.InputHanded(&m, now)
		slot, got := p.give.Reserve(uint32(len(back)))
		if int(got) != len(back) {
			panic("reactor: more frames in return than were under way")
		}
		for i, f := range back {
			*p.give.Slot(slot + uint32(i)) = f
		}
	}
	p.give.Submit(p.give.Reserved())
	p.in.Release(n)
	return true
}
