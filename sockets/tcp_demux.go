package sockets

// demux finds the record of a flow: an open-addressing table like flat, but of 8 bytes a slot. A slot holds half of the
// key's hash and the record's kind and index; the key itself stands in the record. The home of a slot follows from the
// hash it holds, so that growing and deleting never look at a record.
type demux struct {
	slots []uint64 // hash<<32 | kind<<30 | index; 0: empty
	n     int
	tcp   *tcpTable
	sec   *secret
}

// Kinds of records.
const (
	demuxTCB = iota + 1
	demuxHalf
	demuxTW

	demuxIndexMax = 1<<30 - 1
)

func (d *demux) init(t *tcpTable, sec *secret) {
	*d = demux{slots: make([]uint64, 16), tcp: t, sec: sec}
}

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
func (d *demux) find(k flowKey, hash uint32) (slot uint32, ok bool) {
	mask := uint32(len(d.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		s := d.slots[i]
		if s == 0 {
			return i, false
		}
		if uint32(s>>32) == hash && d.key(uint32(s)>>30, uint32(s)&demuxIndexMax) == k {
			return i, true
		}
	}
}

// get finds the record of k; kind 0: there is none.
func (d *demux) get(k flowKey) (kind, index uint32) {
	i, ok := d.find(k, uint32(d.sec.flow(k)))
	if !ok {
		return 0, 0
	}
	return uint32(d.slots[i]) >> 30, uint32(d.slots[i]) & demuxIndexMax
}

// put enters a record, whose key must be in it already and not in the table.
func (d *demux) put(kind, index uint32) {
	if (d.n+1)*4 > len(d.slots)*3 {
		d.grow()
	}
	hash := uint32(d.sec.flow(d.key(kind, index)))
	d.insert(uint64(hash)<<32 | uint64(kind)<<30 | uint64(index))
	d.n++
}

func (d *demux) insert(s uint64) {
	mask := uint32(len(d.slots) - 1)
	i := uint32(s>>32) & mask
	for d.slots[i] != 0 {
		i = (i + 1) & mask
	}
	d.slots[i] = s
}

func (d *demux) grow() {
	old := d.slots
	d.slots = make([]uint64, 2*len(old))
	for _, s := range old {
		if s != 0 {
			d.insert(s)
		}
	}
}

// del removes k, whose record must still hold it.
func (d *demux) del(k flowKey) {
	i, ok := d.find(k, uint32(d.sec.flow(k)))
	if !ok {
		return
	}
	d.n--
	mask := uint32(len(d.slots) - 1)
	// Shift back every later entry of the run that may not stay behind a hole (Knuth 6.4, algorithm R).
	for j := i; ; {
		j = (j + 1) & mask
		if d.slots[j] == 0 {
			break
		}
		home := uint32(d.slots[j]>>32) & mask
		if (j-home)&mask >= (j-i)&mask {
			d.slots[i] = d.slots[j]
			i = j
		}
	}
	d.slots[i] = 0
}
