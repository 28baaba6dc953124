package proto

import (
	"encoding/binary"
	"fmt"
	"strings"
)

// TCPOptionsMax is the room for options in a header: data offset 15 words, less 5.
const TCPOptionsMax = 40

// Option kinds and their lengths.
const (
	tcpOptEnd           = 0 // RFC 9293 section 3.1
	tcpOptNop           = 1
	tcpOptMSS           = 2
	tcpOptWScale        = 3 // RFC 7323 section 2.2
	tcpOptSACKPermitted = 4 // RFC 2018 section 2
	tcpOptSACK          = 5 // RFC 2018 section 3
	tcpOptTS            = 8 // RFC 7323 section 3.2

	tcpLenMSS           = 4
	tcpLenWScale        = 3
	tcpLenSACKPermitted = 2
	tcpLenSACK          = 2 // and 8 a block
	tcpLenTS            = 10

	tcpWScaleMax = 14
)

// TCPOptions is the options of one segment. The zero value is none.
type TCPOptions struct {
	MSS           uint16 // bytes; 0: none
	WScale        uint8  // shift, 0..14, if HasWScale
	HasWScale     bool
	SACKPermitted bool
	HasTS         bool
	TSVal, TSEcr  uint32       // if HasTS
	NSACK         uint8        // 0..4
	SACK          [4][2]uint32 // left edge, right edge: the first number past the block
}

// ParseTCPOptions sets *o to the options in b, the bytes between header and data. It survives anything: an option whose
// length is below 2 or runs out of b ends the list, and what came before it counts (as in tcp_parse_options of Linux's
// net/ipv4/tcp_input.c); kinds it does not know, and known ones of a wrong length, are skipped (RFC 9293 MUST-6 and
// MUST-7); of two of a kind the later counts. An MSS of 0 is none. A window scale above 14 is reported as 14 (RFC 7323
// section 2.3). Which options go with which segment it does not judge.
func ParseTCPOptions(b []byte, o *TCPOptions) {
	*o = TCPOptions{}
	for len(b) > 0 && b[0] != tcpOptEnd {
		if b[0] == tcpOptNop {
			b = b[1:]
			continue
		}
		if len(b) < 2 || b[1] < 2 || int(b[1]) > len(b) {
			return
		}
		parseTCPOption(b[:b[1]], o)
		b = b[b[1]:]
	}
}

// parseTCPOption takes one option: kind, its own length, data.
func parseTCPOption(b []byte, o *TCPOptions) {
	kind, data := b[0], b[2:]
	switch {
	case kind == tcpOptTS && len(b) == tcpLenTS:
		o.HasTS = true
		o.TSVal, o.TSEcr = binary.BigEndian.Uint32(data), binary.BigEndian.Uint32(data[4:])
	case kind == tcpOptSACK && len(data) > 0 && len(data)%8 == 0 && len(data)/8 <= len(o.SACK):
		o.NSACK, o.SACK = uint8(len(data)/8), [4][2]uint32{}
		for i := range o.NSACK {
			block := data[8*i:]
			o.SACK[i] = [2]uint32{binary.BigEndian.Uint32(block), binary.BigEndian.Uint32(block[4:])}
		}
	case kind == tcpOptMSS && len(b) == tcpLenMSS:
		if mss := binary.BigEndian.Uint16(data); mss != 0 {
			o.MSS = mss
		}
	case kind == tcpOptWScale && len(b) == tcpLenWScale:
		o.HasWScale, o.WScale = true, min(data[0], tcpWScaleMax)
	case kind == tcpOptSACKPermitted && len(b) == tcpLenSACKPermitted:
		o.SACKPermitted = true
	}
}

// Len is how many bytes PutTCPOptions writes for o: a multiple of 4, at most 40.
func (o *TCPOptions) Len() int {
	n := o.lenBeforeSACK()
	if blocks := o.blocks(n); blocks > 0 {
		n += 4 + 8*blocks
	}
	return n
}

func (o *TCPOptions) lenBeforeSACK() int {
	n := 0
	if o.MSS != 0 {
		n += 4
	}
	if o.HasTS {
		n += 12
	} else if o.SACKPermitted {
		n += 4
	}
	if o.HasWScale {
		n += 4
	}
	return n
}

// blocks is how many SACK blocks go behind n bytes of other options: beside a timestamp three (RFC 2018 section 3).
func (o *TCPOptions) blocks(n int) int { return min(int(o.NSACK), (TCPOptionsMax-n-4)/8) }

// PutTCPOptions writes o as Linux lays it out (tcp_options_write in net/ipv4/tcp_output.c), so that we look like it to
// middleboxes, and returns the length, o.Len(): MSS; timestamps behind SACK-permitted, else behind two NOPs;
// SACK-permitted alone behind two NOPs; window scale behind a NOP; SACK blocks behind two NOPs, as many as fit.
func PutTCPOptions(b []byte, o *TCPOptions) int {
	b = b[:o.Len()]
	n := 0
	put := func(word uint32) {
		binary.BigEndian.PutUint32(b[n:], word)
		n += 4
	}
	const nop, nopNop = tcpOptNop << 24, tcpOptNop<<24 | tcpOptNop<<16
	if o.MSS != 0 {
		put(tcpOptMSS<<24 | tcpLenMSS<<16 | uint32(o.MSS))
	}
	if o.HasTS {
		if o.SACKPermitted {
			put(tcpOptSACKPermitted<<24 | tcpLenSACKPermitted<<16 | tcpOptTS<<8 | tcpLenTS)
		} else {
			put(nopNop | tcpOptTS<<8 | tcpLenTS)
		}
		put(o.TSVal)
		put(o.TSEcr)
	} else if o.SACKPermitted {
		put(nopNop | tcpOptSACKPermitted<<8 | tcpLenSACKPermitted)
	}
	if o.HasWScale {
		put(nop | tcpOptWScale<<16 | tcpLenWScale<<8 | uint32(o.WScale))
	}
	if blocks := o.blocks(n); blocks > 0 {
		put(nopNop | tcpOptSACK<<8 | uint32(tcpLenSACK+8*blocks))
		for _, block := range o.SACK[:blocks] {
			put(block[0])
			put(block[1])
		}
	}
	return n
}

func (o TCPOptions) String() string {
	var s []string
	if o.MSS != 0 {
		s = append(s, fmt.Sprintf("mss %d", o.MSS))
	}
	if o.SACKPermitted {
		s = append(s, "sackOK")
	}
	if o.HasTS {
		s = append(s, fmt.Sprintf("TS val %d ecr %d", o.TSVal, o.TSEcr))
	}
	if o.HasWScale {
		s = append(s, fmt.Sprintf("wscale %d", o.WScale))
	}
	for i := range min(int(o.NSACK), len(o.SACK)) {
		s = append(s, fmt.Sprintf("sack %d:%d", o.SACK[i][0], o.SACK[i][1]))
	}
	return "[" + strings.Join(s, ",") + "]"
}
