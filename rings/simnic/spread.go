package simnic

import (
	"bytes"
	"encoding/binary"
)

// Spread chooses the queue of a received frame as a device with receive side
// scaling does: by Toeplitz hash, here bit by bit as it is defined, of the
// addresses (Bytes 8) or of addresses and ports (12).
type Spread struct {
	Key   []byte
	Table []uint32 // queue for each value of the hash modulo its length
	Bytes int
}

// Queue is for an IPv4 packet of TCP or UDP in a frame without VLAN tags.
func (s *Spread) Queue(frame []byte) int {
	ip := frame[14:]
	return s.queue(ip[12:16], ip[16:20], ip[20:22], ip[22:24])
}

// AnswerQueue is where the answer to such a frame comes in.
func (s *Spread) AnswerQueue(frame []byte) int {
	ip := frame[14:]
	return s.queue(ip[16:20], ip[12:16], ip[22:24], ip[20:22])
}

func (s *Spread) queue(fields ...[]byte) int {
	input := bytes.Join(fields, nil)[:s.Bytes]
	hash := uint32(0)
	for i := range 8 * len(input) {
		if input[i/8]>>(7-i%8)&1 == 1 {
			hash ^= uint32(binary.BigEndian.Uint64(s.Key[i/8:]) << (i % 8) >> 32)
		}
	}
	return int(s.Table[hash%uint32(len(s.Table))])
}
