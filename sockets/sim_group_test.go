package sockets

import (
	"xdpd/proto"
	"xdpd/umem"
)

// simFront is the second queue of a node that has two: a Host without a socket of its own. Frames come in here as they
// like, and go over to the Host that has the connections, some at once and some later. What it answers itself, it answers
// for the node.
type simFront struct {
	*kit
	over []simOver
}

// simOver is a packet on its way, and what the wire brought.
type simOver struct {
	m Handed
	f simFrame
}

// grouped makes the node's Host, and its front, of one group.
func (n *simNode) grouped(dir *Directory, set func(*Config)) {
	region, err := umem.Wrap(make([]byte, 2*n.p.frames*2048), 2048)
	if err != nil {
		panic(err)
	}
	ledger := umem.NewLedger(2 * n.p.frames)
	for i, k := range []**kit{&n.kit, &n.front.kit} {
		pool := umem.NewPool(region, umem.Frame(i*n.p.frames), n.p.frames, ledger)
		*k = newKitOn(simTB{}, pool, set, func(c *Config) { c.Directory, c.Self, c.Siblings = dir, i, true })
	}
	n.kit.others = func() [umem.NOwners]int {
		c := n.front.owned()
		for _, o := range n.front.over {
			c[umem.Handed] += o.m.Frames
		}
		return c
	}
	n.front.kit.others = func() [umem.NOwners]int {
		c := n.kit.owned()
		for _, o := range n.front.over {
			c[umem.Handed] += o.m.Frames
		}
		return c
	}
}

// owned is what the ledger must say of a kit's frames.
func (k *kit) owned() [umem.NOwners]int {
	rx, _, tx, _ := k.h.Held()
	return [umem.NOwners]int{umem.Free: k.pool.Avail(), umem.Fill: len(k.fill), umem.TX: len(k.device),
		umem.Held: rx + tx - len(k.device)}
}

// takes chooses the queue of a frame. The fragments of a datagram stay together, as devices keep them.
func (n *simNode) takesFront(b []byte) bool {
	if n.front.kit == nil {
		return false
	}
	if ip, fault := proto.ParseIPv4(b[min(len(b), 14):]); fault == proto.OK && ip.Fragment() {
		return ip.ID%2 == 0
	}
	return n.w.rng.IntN(3) == 0
}

// receiveFront has a frame come in at the front.
func (n *simNode) receiveFront(f simFrame) {
	front := &n.front
	front.now = n.w.now
	if front.refill(); len(front.fill) == 0 {
		n.w.lose(f.b)
		return
	}
	front.input(f.b)
	got := front.h.TakeHanded(nil)
	if len(got) == 0 {
		n.w.deliver(n, f.whole)
	}
	for _, m := range got {
		n.w.totals.Handed++
		if len(front.over) >= 8 {
			n.w.lose(f.b)
			front.h.HandBack(&m)
			continue
		}
		front.over = append(front.over, simOver{m, f})
	}
}

// runFront is the rest of the front's turn: what it hands over, hears and sends.
func (n *simNode) runFront() {
	front := &n.front
	if front.kit == nil {
		return
	}
	front.now = n.w.now
	for len(front.over) > 0 && (n.w.calm || n.w.rng.IntN(4) > 0) {
		o := front.over[0]
		front.over = front.over[1:]
		if n.pool.Avail() < o.m.Frames {
			n.w.lose(o.f.b)
		} else {
			n.w.deliver(n, o.f.whole)
		}
		for _, f := range n.h.InputHanded(&o.m, n.w.now) {
			front.h.FrameBack(f)
		}
	}
	front.h.Tick(n.w.now)
	for _, pair := range [][2]*kit{{front.kit, n.kit}, {n.kit, front.kit}} {
		for a, ok := pair[0].h.PopHeard(); ok; a, ok = pair[0].h.PopHeard() {
			pair[1].h.Heard(&a, n.w.now)
		}
	}
	front.pump()
	n.out = append(n.out, front.out...)
	front.out = front.out[:0]
}

// frontDue is when the front wants a turn.
func (n *simNode) frontDue() int64 {
	if n.front.kit == nil {
		return simNever
	}
	return n.front.h.NextDeadline()
}

// frontBusy reports whether the front has something to do.
func (n *simNode) frontBusy() bool {
	return n.front.kit != nil && (len(n.front.over) > 0 || n.front.h.Busy())
}
