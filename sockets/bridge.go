package sockets

import (
	"encoding/binary"

	"xdpd/proto"
	"xdpd/umem"
)

// Bridge passes Ethernet frames between ports, as they are, tags included: a learning bridge of IEEE 802.1Q without VLAN
// awareness and without spanning tree. Stations live in one table of bounded size; one that is not heard of for the
// ageing time is forgotten. A frame goes to its station's port without being copied; one for a group or an unknown station
// goes to all others, with one copy for each but the last. Not safe for concurrent use.
type Bridge struct {
	forwarder
	index    *flat[proto.MAC]
	stations []station
	free     []uint32
	ageNS    int64
	sweepAt  int64 // when stations are looked through next
	hand     int
}

type station struct {
	mac  proto.MAC
	port uint8
	used bool
	seen int64
}

const (
	// DefaultAgeing is how long a station that says nothing is remembered (IEEE 802.1Q table 8-3: 300 s).
	DefaultAgeing = 300_000_000_000

	maxStations = 1 << 14
	sweepNS     = 1_000_000_000
	sweepPart   = maxStations / 16 // stations that one sweep looks at
)

// NewBridge makes a Bridge over the frames of pool. ageNS is the ageing time, 0 for the default.
func NewBridge(c ForwardConfig, ageNS int64, pool *umem.Pool, now int64) (*Bridge, error) {
	b := &Bridge{stations: make([]station, maxStations), ageNS: ageNS, sweepAt: now + sweepNS}
	if ageNS <= 0 {
		b.ageNS = DefaultAgeing
	}
	if err := b.init(&c, pool, now); err != nil {
		return nil, err
	}
	b.index = newFlat(b.hash)
	for i := range b.stations {
		b.free = append(b.free, uint32(maxStations-1-i))
	}
	return b, nil
}

func (b *Bridge) hash(m proto.MAC) uint64 {
	v := uint64(binary.BigEndian.Uint32(m[:]))<<16 | uint64(binary.BigEndian.Uint16(m[4:]))
	return mix(v^b.sec.k0, b.sec.k1)
}

// Input takes a frame that came in on a port: n bytes from off in the chunk of f, which the caller owns as umem.RX. The
// frame is the Bridge's from here on.
func (b *Bridge) Input(port int, f umem.Frame, off, n int, now int64) {
	p, data := b.receive(port, f, off, n, now)
	if len(data) < proto.EthernetHeaderLen {
		b.drop(p, f, Drop(proto.EthShort))
		return
	}
	dst, src := proto.MAC(data[0:6]), proto.MAC(data[6:12])
	switch {
	case src.IsMulticast() || src.IsZero():
		b.drop(p, f, BridgeSource)
		return
	case isReservedGroup(dst):
		b.drop(p, f, BridgeReserved)
		return
	}
	b.learn(p, port, src)
	if p.cfg.CompletePartial {
		if eth, fault := proto.ParseEthernet(data); fault == proto.OK {
			p.completeSum(data[eth.Len:], eth.Type)
		}
	}
	if !dst.IsMulticast() {
		if i, ok := b.index.get(dst); ok && now-b.stations[i].seen <= b.ageNS {
			if out := int(b.stations[i].port); out == port {
				b.drop(p, f, BridgeSamePort)
			} else if n > b.ports[out].room() {
				b.drop(p, f, FwdTooBig)
			} else {
				b.send(&b.ports[out], f, off, n, umem.RX)
			}
			return
		}
	}
	b.flood(p, port, f, off, n)
}

// room is how long a frame may be: a tag of the stations' own is no part of the MTU (is_skb_forwardable, net/core/dev.c).
func (p *fwdPort) room() int { return p.cfg.MTU + proto.EthernetHeaderLen + 4 }

// isReservedGroup: IEEE 802.1Q table 8-1, 01-80-C2-00-00-00 to -0F.
func isReservedGroup(m proto.MAC) bool {
	return m[0] == 0x01 && m[1] == 0x80 && m[2] == 0xc2 && m[3] == 0 && m[4] == 0 && m[5] < 16
}

// learn notes where a station is.
func (b *Bridge) learn(p *fwdPort, port int, mac proto.MAC) {
	if i, ok := b.index.get(mac); ok {
		s := &b.stations[i]
		s.seen = b.now
		if int(s.port) != port {
			s.port = uint8(port)
			p.counters.Learned++
			p.counters.Moved++
		}
		return
	}
	if len(b.free) == 0 {
		p.counters.TableFull++
		return
	}
	i := b.free[len(b.free)-1]
	b.free = b.free[:len(b.free)-1]
	b.stations[i] = station{mac, uint8(port), true, b.now}
	b.index.put(mac, i)
	p.counters.Learned++
}

// flood sends a frame to all other ports that can take it. The last of them gets the frame itself.
func (b *Bridge) flood(p *fwdPort, port int, f umem.Frame, off, n int) {
	p.counters.Flooded++
	last, why := -1, FwdPortDown
	for out := range b.ports {
		o := &b.ports[out]
		if out == port || !o.cfg.Up {
			continue
		}
		if n > o.room() {
			why = FwdTooBig
			continue
		}
		if last >= 0 {
			b.copyTo(p, &b.ports[last], f, off, n)
		}
		last = out
	}
	if last < 0 {
		b.drop(p, f, why)
		return
	}
	b.send(&b.ports[last], f, off, n, umem.RX)
}

// copyTo sends a copy of a frame.
func (b *Bridge) copyTo(p, out *fwdPort, f umem.Frame, off, n int) {
	if why := out.refuses(); why != 0 {
		out.counters.Drops[why]++
		return
	}
	c := b.pool.Get(umem.Held)
	if c == umem.None {
		out.counters.Drops[TxNoFrame]++
		return
	}
	copy(b.pool.Chunk(c)[umem.Headroom:], b.pool.Chunk(f)[off:off+n])
	p.counters.Copied[CopyFlood] += uint64(n)
	b.send(out, c, umem.Headroom, n, umem.Held)
}

// SetPort follows an interface. Of one that is down the stations are forgotten: they may come back elsewhere.
func (b *Bridge) SetPort(port int, c PortConfig) error {
	if err := b.forwarder.SetPort(port, c); err != nil {
		return err
	}
	for i := range b.stations {
		if s := &b.stations[i]; !c.Up && s.used && int(s.port) == port {
			b.forget(uint32(i))
		}
	}
	return nil
}

func (b *Bridge) forget(i uint32) {
	b.index.del(b.stations[i].mac)
	b.stations[i] = station{}
	b.free = append(b.free, i)
}

// Stations is how many stations are known.
func (b *Bridge) Stations() int { return maxStations - len(b.free) }

// NextDeadline is when Tick wants to be called.
func (b *Bridge) NextDeadline() int64 { return b.sweepAt }

// Tick forgets stations whose time is over, a part of the table at a time.
func (b *Bridge) Tick(now int64) {
	b.now = now
	if now < b.sweepAt {
		return
	}
	b.sweepAt = now + sweepNS
	for range sweepPart {
		b.hand = (b.hand + 1) % maxStations
		if s := &b.stations[b.hand]; s.used && now-s.seen > b.ageNS {
			b.forget(uint32(b.hand))
		}
	}
}
