package sockets

// demux finds the record of a flow: an open-addressing table like flat, but of 8 bytes a slot. A slot holds half of the
// key's hash and the record's kind and index; the key itself stands in the record. The home of a slot follows from the
// hash it holds, so that growing and deleting never look at a record. The table is one of many small ones by the hash's
// top bits: each grows by itself, so that no turn has to move a million slots, nor are all of them there twice.
type demux struct {
	parts [1 << demuxBits]demuxPart
	n     int
	tcp   *tcpTable
	sec   *secret

	dir     *Directory // of the group, or nil
	self    int
	leaving []flowKey // deleted, and not yet in the directory: what follows may be the same flow's next record
}

type demuxPart struct {
	slots []uint64 // hash<<32 | kind<<30 | index; 0: empty
	n     int
}

const demuxBits = 8

// Kinds of records.
const (
	demuxTCB = iota + 1
	demuxHalf
	demuxTW

	demuxIndexMax = 1<<30 - 1
)

func (d *demux) init(t *tcpTable, sec *secret, cfg *Config) {
	*d = demux{tcp: t, sec: sec, dir: cfg.Directory, self: cfg.Self}
	for i := range d.parts {
		d.parts[i].slots = make([]uint64, 8)
	}
}

func (d *demux) part(hash uint32) *demuxPart { return &d.parts[hash>>(32-demuxBits)] }

func (d *demux) key(kind, index uint32) flowKey {
	switch kind {
	case demuxTCB:
		return d.tcp.at(index).key
	case demuxHalf:
		return d.tcp.half.at(index).key
	}
	return d.tcp.tw.at(index).key
}

// find is the slot of k, or the empty one where its search ends.
func (d *demux) find(k flowKey, hash uint32) (p *demuxPart, slot uint32, ok bool) {
	p = d.part(hash)
	mask := uint32(len(p.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		s := p.slots[i]
		if s == 0 {
			return p, i, false
		}
		if uint32(s>>32) == hash && d.key(uint32(s)>>30, uint32(s)&demuxIndexMax) == k {
			return p, i, true
		}
	}
}

// get finds the record of k; kind 0: there is none.
func (d *demux) get(k flowKey) (kind, index uint32) {
	p, i, ok := d.find(k, uint32(d.sec.flow(k)))
	if !ok {
		return 0, 0
	}
	return uint32(p.slots[i]) >> 30, uint32(p.slots[i]) & demuxIndexMax
}

// put enters a record, whose key must be in it already and not in the table.
func (d *demux) put(kind, index uint32) {
	flow := d.sec.flow(d.key(kind, index))
	if d.dir != nil {
		d.dir.set(flow, d.self)
	}
	hash := uint32(flow)
	p := d.part(hash)
	if (p.n+1)*4 > len(p.slots)*3 {
		p.grow()
	}
	p.insert(uint64(hash)<<32 | uint64(kind)<<30 | uint64(index))
	p.n++
	d.n++
}

func (p *demuxPart) insert(s uint64) {
	mask := uint32(len(p.slots) - 1)
	i := uint32(s>>32) & mask
	for p.slots[i] != 0 {
		i = (i + 1) & mask
	}
	p.slots[i] = s
}

func (p *demuxPart) grow() {
	old := p.slots
	p.slots = make([]uint64, 2*len(old))
	for _, s := range old {
		if s != 0 {
			p.insert(s)
		}
	}
}

// del removes k, whose record must still hold it.
func (d *demux) del(k flowKey) {
	p, i, ok := d.find(k, uint32(d.sec.flow(k)))
	if !ok {
		return
	}
	if d.dir != nil {
		d.leaving = append(d.leaving, k)
	}
	p.n--
	d.n--
	mask := uint32(len(p.slots) - 1)
	// Shift back every later entry of the run that may not stay behind a hole (Knuth 6.4, algorithm R).
	for j := i; ; {
		j = (j + 1) & mask
		if p.slots[j] == 0 {
			break
		}
		home := uint32(p.slots[j]>>32) & mask
		if (j-home)&mask >= (j-i)&mask {
			p.slots[i] = p.slots[j]
			i = j
		}
	}
	p.slots[i] = 0
}

// settle tells the group of the flows of which nothing is left.
func (d *demux) settle() {
	for _, k := range d.leaving {
		if kind, _ := d.get(k); kind == 0 {
			d.dir.del(d.sec.flow(k), d.self)
		}
	}
	d.leaving = d.leaving[:0]
}

// forget has the group forget a flow that was to become ours.
func (d *demux) forget(k flowKey) {
	if d.dir != nil {
		d.dir.del(d.sec.flow(k), d.self)
	}
}
