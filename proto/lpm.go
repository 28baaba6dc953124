package proto

import (
	"fmt"
	"slices"
)

// LPMRoute is one prefix of an LPM and the number it stands for.
type LPMRoute struct {
	Dst   Addr // bits behind the prefix do not matter
	Bits  int  // 0 to 32
	Value uint32
}

// LPM finds the longest prefix that an address lies in: a trie of three levels of 16, 8 and 8 bits, so that a look-up is
// three loads at most. It is built once and only read afterwards, also by several at a time.
type LPM struct {
	top   []uint32 // 65536 entries
	nodes [][256]uint32
}

// An entry is 0 for no route, a value plus 1, or with lpmNode the number of the node that goes on from here.
const (
	lpmNode  = 1 << 31
	lpmLimit = lpmNode - 1 // of values
)

// NewLPM builds the table. Of equal prefixes the first in the list counts. It panics on a length or a value out of range:
// both are the caller's own.
func NewLPM(list []LPMRoute) *LPM {
	t := &LPM{top: make([]uint32, 1<<16)}
	// Shorter prefixes first, so that a longer one writes over them; of equal ones the last written is the first in the list.
	order := slices.Clone(list)
	slices.Reverse(order)
	slices.SortStableFunc(order, func(a, b LPMRoute) int { return a.Bits - b.Bits })
	for _, r := range order {
		if r.Bits < 0 || r.Bits > 32 || r.Value >= lpmLimit {
			panic(fmt.Sprintf("proto: route to %v/%d with value %d", r.Dst, r.Bits, r.Value))
		}
		t.insert(r)
	}
	return t
}

func (t *LPM) insert(r LPMRoute) {
	level, left := t.top, 16 // entries of this level, bits that it looks at
	at, bits := uint32(r.Dst), r.Bits
	for bits > left {
		level = t.nodes[t.descend(&level[at>>(32-left)])][:]
		at <<= left
		bits -= left
		left = 8
	}
	first := at >> (32 - left) &^ (1<<(left-bits) - 1)
	for i := range uint32(1) << (left - bits) {
		level[first+i] = r.Value + 1
	}
}

// descend gives the node behind an entry. A new one begins with what the entry said.
func (t *LPM) descend(entry *uint32) uint32 {
	if *entry&lpmNode == 0 {
		var node [256]uint32
		for i := range node {
			node[i] = *entry
		}
		*entry = lpmNode | uint32(len(t.nodes))
		t.nodes = append(t.nodes, node)
	}
	return *entry &^ lpmNode
}

// Lookup gives the value of the longest prefix that a lies in; false: there is none.
func (t *LPM) Lookup(a Addr) (value uint32, ok bool) {
	e := t.top[a>>16]
	if e&lpmNode != 0 {
		if e = t.nodes[e&^lpmNode][a>>8&0xff]; e&lpmNode != 0 {
			e = t.nodes[e&^lpmNode][a&0xff]
		}
	}
	return e - 1, e != 0
}
