package sockets

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"

	"xdpd/proto"
)

// simPath says what one direction of the path between the Hosts does. Probabilities are per frame.
type simPath struct {
	rate                                 int64 // bits a second
	queue                                int   // bytes that wait for the transmitter
	mark                                 int   // above so many ECN marks; 0: never
	delay, jitter                        int64
	reorderNS                            int64 // what reordered frames take longer
	loss, ackLoss, dup, reorder, corrupt float64
	burstIn, burstOut                    float64 // into and out of a time when nothing comes through (Gilbert)
	mtu                                  int
	silent                               bool // packets too big vanish without an ICMP message
}

// simRouter is where the ICMP messages of the path come from.
const simRouter proto.Addr = 0x0a0000fd

// simFrame is a frame under way. whole is the packet that a fragment is of; nil if no checksum would hold.
type simFrame struct {
	b     []byte
	whole []byte
}

// simLink is one direction of the path.
type simLink struct {
	simPath
	w        *simWorld
	rng      *rand.Rand
	from, to *simNode
	free     int64 // when the transmitter has sent what it has
	last     int64 // arrival of the latest frame that was not held back
	burst    bool
	down     bool
}

func (l *simLink) chance(p float64) bool { return p > 0 && l.rng.Float64() < p }

// send takes a frame from the Host, or, of the size of the path, from the router in the middle.
func (l *simLink) send(b []byte) {
	if binary.BigEndian.Uint16(b[12:]) != proto.EtherIPv4 {
		l.put(b, b)
		return
	}
	if n := len(b) - 14; n <= l.mtu {
		l.put(b, b)
	} else if binary.BigEndian.Uint16(b[20:])&0x4000 != 0 {
		l.w.totals.TooBig++
		l.w.lose(b)
		if !l.silent {
			l.tooBig(b)
		}
	} else {
		l.fragment(b)
	}
}

// fragment does what a router does with a packet that may be cut (RFC 791 3.2).
func (l *simLink) fragment(b []byte) {
	head, body := b[:34], b[34:]
	per := (l.mtu - 20) &^ 7
	for at := 0; at < len(body); at += per {
		l.w.totals.Fragments++
		piece := concat(head, body[at:min(len(body), at+per)])
		frag := uint16(at / 8)
		if at+per < len(body) {
			frag |= 0x2000
		}
		binary.BigEndian.PutUint16(piece[16:], uint16(len(piece)-14))
		binary.BigEndian.PutUint16(piece[20:], frag)
		fixIPSum(piece)
		l.put(piece, b)
	}
}

func fixIPSum(b []byte) {
	binary.BigEndian.PutUint16(b[24:], 0)
	binary.BigEndian.PutUint16(b[24:], proto.Checksum(b[14:34]))
}

// tooBig tells the sender what fits (RFC 1191 section 4).
func (l *simLink) tooBig(b []byte) {
	body := icmpBytes(3, 4, uint32(l.mtu), b[14:min(len(b), 14+28+l.rng.IntN(500))])
	p := ipPacket{src: simRouter, dst: l.from.ip, proto: 1, body: body}.bytes()
	l.to.link.put(ethFrame(l.from.mac, l.to.mac, 0x0800, p), nil)
}

// put is the wire.
func (l *simLink) put(b, whole []byte) {
	now := l.w.now
	if l.chance(l.burstIn) {
		l.burst = true
	} else if l.burst && l.chance(l.burstOut) {
		l.burst = false
	}
	l.free = max(l.free, now)
	waiting := int((l.free - now) * l.rate / 8 / 1e9)
	pure := len(b) < 14+20+60 && b[23] == proto.ProtoTCP && l.chance(l.ackLoss) // few such are not pure ACKs
	if l.down || l.burst || waiting > l.queue || pure || l.chance(l.loss) {
		l.w.lose(b)
		return
	}
	if l.mark > 0 && waiting > l.mark && b[12] == 8 && b[13] == 0 && b[15]&3 != 0 && b[15]&3 != 3 {
		l.w.totals.Marked++
		b = slices.Clone(b)
		b[15] |= 3
		fixIPSum(b)
		if len(b) == len(whole) {
			whole = b
		}
	}
	l.free += int64(len(b)) * 8 * 1e9 / l.rate
	f := simFrame{b, whole}
	if l.chance(l.corrupt) && b[12] == 8 && b[13] == 0 { // ARP has no checksum
		l.w.totals.Corrupted++
		l.w.lose(b)
		f = simFrame{l.damage(slices.Clone(b)), nil}
	}
	l.arrive(f)
	if l.chance(l.dup) {
		l.arrive(f)
	}
}

// damage does what a sum of 16 bits always sees: one bit, or the end is missing.
func (l *simLink) damage(b []byte) []byte {
	if l.rng.IntN(4) == 0 {
		return b[:14+l.rng.IntN(len(b)-14)]
	}
	bit := l.rng.IntN(8 * (len(b) - 14))
	b[14+bit/8] ^= 1 << (bit % 8)
	return b
}

func (l *simLink) arrive(f simFrame) {
	at := l.free + l.delay
	if l.jitter > 0 {
		at += l.rng.Int64N(l.jitter)
	}
	at = max(at, l.last)
	if l.chance(l.reorder) {
		at += l.rng.Int64N(l.reorderNS)
	} else {
		l.last = at
	}
	l.w.at(at, func() { l.to.receive(f) })
}

// calm ends all faults.
func (l *simLink) calm() {
	l.simPath = simPath{rate: l.rate, queue: 1 << 30, delay: l.delay, mtu: l.mtu}
	l.burst, l.down = false, false
}

// simRanges is a set of numbers as sorted, separate ranges [from, to).
type simRanges [][2]int64

func (r *simRanges) add(from, to int64) {
	if from >= to {
		return
	}
	i := 0
	for i < len(*r) && (*r)[i][1] < from {
		i++
	}
	j := i
	for ; j < len(*r) && (*r)[j][0] <= to; j++ {
		from, to = min(from, (*r)[j][0]), max(to, (*r)[j][1])
	}
	*r = slices.Replace(*r, i, j, [2]int64{from, to})
}

func (r simRanges) has(from, to int64) bool {
	for _, x := range r {
		if x[0] <= from && to <= x[1] {
			return true
		}
	}
	return false
}

// first is the end of the range that begins at 0.
func (r simRanges) first() int64 {
	if len(r) == 0 || r[0][0] > 0 {
		return 0
	}
	return r[0][1]
}
