package proto

import (
	"encoding/binary"
	"fmt"
	"math/bits"
)

// Bytes of a packet that receive side scaling may hash: the source and the destination address, or the ports behind them
// as well.
const (
	RSSAddrs = 8
	RSSPorts = 12
)

// Toeplitz is the hash of receive side scaling under one key, as a table for each byte of the input ("RSS hashing
// functions" in Microsoft's NDIS documentation): a bit that is set adds the 32 bits of the key that begin at its place.
type Toeplitz [RSSPorts][256]uint32

// NewToeplitz makes the tables. false: the key is shorter than the 16 bytes that RSSPorts of input take.
func NewToeplitz(key []byte) (*Toeplitz, bool) {
	if len(key) < RSSPorts+4 {
		return nil, false
	}
	t := new(Toeplitz)
	for i := range t {
		window := uint64(binary.BigEndian.Uint32(key[i:]))<<8 | uint64(key[i+4])
		for v := 1; v < 256; v++ {
			lowest := bits.TrailingZeros(uint(v))
			t[i][v] = t[i][v&(v-1)] ^ uint32(window>>(lowest+1))
		}
	}
	return t, true
}

// Hash is the hash of at most RSSPorts bytes.
func (t *Toeplitz) Hash(b []byte) (h uint32) {
	for i, v := range b {
		h ^= t[i][v]
	}
	return h
}

// RSS is how a device chooses the receive queue of a packet: by Toeplitz hash and indirection table. Nobody changes it
// once it is made.
type RSS struct {
	hash     *Toeplitz
	table    []uint32
	tcp, udp int
}

const rssMaxTable = 1 << 16

// NewRSS takes a device's key and indirection table, which holds a queue for each value of the hash's low bits, and how
// many bytes it hashes for TCP and for UDP over IPv4: RSSAddrs, RSSPorts, or 0 for something else.
func NewRSS(key []byte, table []uint32, tcp, udp int) (*RSS, error) {
	hash, ok := NewToeplitz(key)
	if !ok {
		return nil, fmt.Errorf("proto: an RSS key of %d bytes", len(key))
	}
	n := len(table)
	if n == 0 || n > rssMaxTable || n&(n-1) != 0 { // else no bits of the hash number its entries
		return nil, fmt.Errorf("proto: an RSS indirection table of %d entries", n)
	}
	for _, bytes := range []int{tcp, udp} {
		if bytes != 0 && bytes != RSSAddrs && bytes != RSSPorts {
			return nil, fmt.Errorf("proto: RSS over %d bytes", bytes)
		}
	}
	return &RSS{hash: hash, table: append([]uint32(nil), table...), tcp: tcp, udp: udp}, nil
}

// Hashed is how many bytes the device hashes for a transport protocol over IPv4: RSSAddrs, RSSPorts, or 0, not known. A
// nil RSS knows nothing.
func (r *RSS) Hashed(proto uint8) int {
	switch {
	case r == nil:
	case proto == ProtoTCP:
		return r.tcp
	case proto == ProtoUDP:
		return r.udp
	}
	return 0
}

// Queue is the receive queue of a packet that is no fragment; -1: not known.
func (r *RSS) Queue(proto uint8, src, dst Addr, sport, dport uint16) int {
	n := r.Hashed(proto)
	if n == 0 {
		return -1
	}
	var b [RSSPorts]byte
	binary.BigEndian.PutUint32(b[0:], uint32(src))
	binary.BigEndian.PutUint32(b[4:], uint32(dst))
	binary.BigEndian.PutUint16(b[8:], sport)
	binary.BigEndian.PutUint16(b[10:], dport)
	return int(r.table[r.hash.Hash(b[:n])&uint32(len(r.table)-1)])
}
