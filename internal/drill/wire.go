package drill

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

const (
	hostAddr    = 0x0a000001
	peerAddr    = 0x0a000002
	listenPort  = 80
	peerPort    = 40000 // of the first flow, when the host listens
	connectPort = 8080  // of the first flow, when the host connects
	etherLen    = 14
	ipLen       = 20
	tcpLen      = 20
)

var (
	hostMAC = []byte{2, 0, 0, 0, 0, 1}
	peerMAC = []byte{2, 0, 0, 0, 0, 2}
)

// The codec below is written for this package from RFC 791, 792 and 9293 and shares nothing with the host's.

// pattern is the byte at offset i of a stream. No two streams are alike.
func pattern(stream uint32, i int64) byte {
	x := uint64(i)*0x9e3779b97f4a7c15 + uint64(stream)
	return byte(x>>56 ^ x>>24)
}

func onesSum(b []byte, sum uint32) uint32 {
	for ; len(b) > 1; b = b[2:] {
		sum += uint32(b[0])<<8 | uint32(b[1])
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return sum
}

func tcpSum(src, dst uint32, seg []byte) uint32 {
	var pseudo [12]byte
	binary.BigEndian.PutUint32(pseudo[0:], src)
	binary.BigEndian.PutUint32(pseudo[4:], dst)
	pseudo[9] = 6
	binary.BigEndian.PutUint16(pseudo[10:], uint16(len(seg)))
	return onesSum(seg, onesSum(pseudo[:], 0))
}

// segment is a TCP segment as it is on the wire.
type segment struct {
	src, dst     uint32
	sport, dport uint16
	seq, ack     uint32
	flags        byte
	win, urg     uint16
	opts, data   []byte
	tos          byte
	df, badSum   bool
	id           uint16
}

func (s *segment) ipHeader(proto byte, payload int) []byte {
	h := make([]byte, ipLen)
	h[0] = 0x45
	h[1] = s.tos
	binary.BigEndian.PutUint16(h[2:], uint16(ipLen+payload))
	binary.BigEndian.PutUint16(h[4:], s.id)
	if s.df {
		h[6] = 0x40
	}
	h[8] = 64
	h[9] = proto
	binary.BigEndian.PutUint32(h[12:], s.src)
	binary.BigEndian.PutUint32(h[16:], s.dst)
	binary.BigEndian.PutUint16(h[10:], ^uint16(onesSum(h, 0)))
	return h
}

// packet is the IP packet.
func (s *segment) packet() []byte {
	opts := s.opts
	for len(opts)%4 != 0 {
		opts = append(opts, optEnd)
	}
	t := make([]byte, tcpLen, tcpLen+len(opts)+len(s.data))
	binary.BigEndian.PutUint16(t[0:], s.sport)
	binary.BigEndian.PutUint16(t[2:], s.dport)
	binary.BigEndian.PutUint32(t[4:], s.seq)
	binary.BigEndian.PutUint32(t[8:], s.ack)
	t[12] = byte((tcpLen + len(opts)) / 4 << 4)
	t[13] = s.flags
	binary.BigEndian.PutUint16(t[14:], s.win)
	binary.BigEndian.PutUint16(t[18:], s.urg)
	t = append(append(t, opts...), s.data...)
	sum := ^uint16(tcpSum(s.src, s.dst, t))
	if s.badSum {
		sum++
	}
	binary.BigEndian.PutUint16(t[16:], sum)
	return append(s.ipHeader(6, len(t)), t...)
}

func ether(dst, src, packet []byte) []byte {
	return append(append(append(append([]byte(nil), dst...), src...), 8, 0), packet...)
}

// icmpError is an ICMP error from the peer about the packet s of the host's: its IP header and 8 bytes behind it.
func icmpError(e ICMPError, s *segment) []byte {
	quote := s.packet()[:ipLen+8]
	m := make([]byte, 8, 8+len(quote))
	m[0], m[1] = e.Type, e.Code
	binary.BigEndian.PutUint16(m[6:], e.MTU)
	m = append(m, quote...)
	binary.BigEndian.PutUint16(m[2:], ^uint16(onesSum(m, 0)))
	outer := segment{src: peerAddr, dst: hostAddr}
	return append(outer.ipHeader(1, len(m)), m...)
}

// decode reads a frame of the host's and checks all that a receiver could object to.
func decode(frame []byte) (*segment, error) {
	switch {
	case len(frame) < etherLen+ipLen:
		return nil, fmt.Errorf("a frame of %d bytes", len(frame))
	case !bytes.Equal(frame[:6], peerMAC) || !bytes.Equal(frame[6:12], hostMAC):
		return nil, fmt.Errorf("a frame from %x to %x", frame[6:12], frame[:6])
	case frame[12] != 8 || frame[13] != 0:
		return nil, fmt.Errorf("a frame of type %x", frame[12:14])
	}
	ip := frame[etherLen:]
	total := int(binary.BigEndian.Uint16(ip[2:]))
	switch {
	case ip[0] != 0x45:
		return nil, fmt.Errorf("IP version and header length %#x", ip[0])
	case total > len(ip) || total < ipLen:
		return nil, fmt.Errorf("IP length %d in a frame of %d bytes", total, len(frame))
	case onesSum(ip[:ipLen], 0) != 0xffff:
		return nil, fmt.Errorf("the IP checksum is wrong")
	case ip[8] == 0:
		return nil, fmt.Errorf("TTL 0")
	case ip[9] != 6:
		return nil, fmt.Errorf("IP protocol %d", ip[9])
	case binary.BigEndian.Uint16(ip[6:])&0xbfff != 0:
		return nil, fmt.Errorf("a fragment")
	}
	s := &segment{
		src: binary.BigEndian.Uint32(ip[12:]), dst: binary.BigEndian.Uint32(ip[16:]), tos: ip[1], df: ip[6]&0x40 != 0,
	}
	return s, s.decodeTCP(ip[ipLen:total])
}

func (s *segment) decodeTCP(t []byte) error {
	if len(t) < tcpLen {
		return fmt.Errorf("a TCP segment of %d bytes", len(t))
	}
	off := int(t[12]>>4) * 4
	switch {
	case off < tcpLen || off > len(t):
		return fmt.Errorf("data offset %d in a segment of %d bytes", off, len(t))
	case tcpSum(s.src, s.dst, t) != 0xffff:
		return fmt.Errorf("the TCP checksum is wrong")
	case t[12]&0xf != 0:
		return fmt.Errorf("reserved bits are set: %#x", t[12])
	}
	s.sport, s.dport = binary.BigEndian.Uint16(t[0:]), binary.BigEndian.Uint16(t[2:])
	s.seq, s.ack = binary.BigEndian.Uint32(t[4:]), binary.BigEndian.Uint32(t[8:])
	s.flags = t[13]
	s.win, s.urg = binary.BigEndian.Uint16(t[14:]), binary.BigEndian.Uint16(t[18:])
	s.opts, s.data = t[tcpLen:off], t[off:]
	switch {
	case s.flags&URG == 0 && s.urg != 0:
		return fmt.Errorf("an urgent pointer without URG")
	case s.flags&ACK == 0 && s.ack != 0:
		return fmt.Errorf("an acknowledgement number without ACK")
	}
	return nil
}

// splitOptions cuts the options of a segment apart. Behind an end-of-list option there may only be padding.
func splitOptions(b []byte) ([][]byte, error) {
	var out [][]byte
	for len(b) > 0 {
		n := 1
		switch {
		case b[0] == optEnd:
			for _, pad := range b {
				if pad != 0 {
					return nil, fmt.Errorf("padding of %x", b)
				}
			}
			return append(out, b[:1]), nil
		case b[0] != optNop:
			if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
				return nil, fmt.Errorf("options end in %x", b)
			}
			n = int(b[1])
		}
		out = append(out, b[:n])
		b = b[n:]
	}
	return out, nil
}
