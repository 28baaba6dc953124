package drill

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// flow is one connection of a script and what turns its numbers into those on the wire.
type flow struct {
	name      string
	index     uint16
	active    bool // the host connects
	listener  Sock
	sock      Sock
	localPort uint16 // the host's; 0: an ephemeral one that its SYN will tell

	remotePort       uint16
	peerISN, hostISN uint32
	hasISN           bool // hostISN was heard
	hasTS            bool
	tsBase, tsLast   uint32 // the host's first and latest timestamp
	win              uint16 // of the last packet that stated one
	writeOff         int64  // bytes written and read so far
	readOff          int64
}

// The peer's numbers pass zero and the sign bit soon: what confuses them shows.
const firstISN = 0xffff_f000

func newFlow(name string, index uint16) *flow {
	return &flow{
		name: name, index: index, localPort: listenPort, remotePort: peerPort + index, win: 65535,
		peerISN: firstISN + uint32(index)*0x7fff_f000,
	}
}

// restart begins another connection of the same ports.
func (f *flow) restart(isn uint32) {
	f.peerISN, f.hasISN = isn, false
	f.writeOff, f.readOff = 0, 0
	f.win = 65535
	if f.active {
		f.localPort = 0
	}
}

// encode makes the piece of p that begins k bytes behind its start and is n bytes long.
func (f *flow) encode(p *Packet, k, n int) *segment {
	s := &segment{
		src: peerAddr, dst: hostAddr, sport: f.remotePort, dport: f.localPort, flags: p.Flags,
		seq: f.peerISN + uint32(p.Seq.N+int64(k)), df: true, badSum: p.BadSum,
	}
	if p.Flags&ACK != 0 || !p.Ack.Any {
		s.ack = f.hostISN + uint32(p.Ack.N)
	}
	if p.ECN > 0 {
		s.tos = byte(p.ECN)
	}
	if p.DF == 0 {
		s.df = false
	}
	if !p.Win.Any {
		f.win = uint16(p.Win.N)
	}
	s.win = f.win
	if !p.Urg.Any {
		s.urg = uint16(p.Urg.N)
	}
	for _, o := range p.Options {
		s.opts = f.putOption(s.opts, o)
	}
	off := p.Seq.N + int64(k) - 1
	if p.Flags&SYN != 0 {
		off++
	}
	s.data = make([]byte, n)
	for i := range s.data {
		s.data[i] = pattern(f.peerISN, off+int64(i))
	}
	return s
}

func (f *flow) putOption(b []byte, o Option) []byte {
	if o.Raw != nil {
		return append(b, o.Raw...)
	}
	be := binary.BigEndian
	switch o.Kind {
	case optMSS:
		return be.AppendUint16(append(b, optMSS, 4), uint16(o.N))
	case optWScale:
		return append(b, optWScale, 3, byte(o.N))
	case optSACKOK:
		return append(b, optSACKOK, 2)
	case optTS:
		ecr := uint32(o.Ecr.N)
		switch {
		case o.Ecr.Last:
			ecr = f.tsLast
		case f.hasTS:
			ecr += f.tsBase
		}
		return be.AppendUint32(be.AppendUint32(append(b, optTS, 10), uint32(o.Val.N)), ecr)
	case optSACK:
		b = append(b, optSACK, byte(2+8*len(o.Blocks)))
		for _, k := range o.Blocks {
			b = be.AppendUint32(be.AppendUint32(b, f.hostISN+uint32(k[0])), f.hostISN+uint32(k[1]))
		}
		return b
	}
	return append(b, o.Kind)
}

// learn takes from a segment of the host's what later ones are counted from, and checks its data.
func (f *flow) learn(s *segment) error {
	if f.localPort == 0 {
		f.localPort = s.sport
	}
	if f.localPort != s.sport || s.src != hostAddr || s.dst != peerAddr {
		return fmt.Errorf("a segment from %x:%d to %x:%d", s.src, s.sport, s.dst, s.dport)
	}
	if s.flags&SYN != 0 && !f.hasISN {
		f.hostISN, f.hasISN = s.seq, true
	}
	opts, err := splitOptions(s.opts)
	if err != nil {
		return err
	}
	for _, o := range opts {
		if o[0] == optTS && len(o) == 10 {
			f.tsLast = binary.BigEndian.Uint32(o[2:])
			if !f.hasTS {
				f.tsBase, f.hasTS = f.tsLast, true
			}
		}
	}
	off := int64(int32(s.seq - f.hostISN - 1))
	if s.flags&SYN != 0 {
		off++
	}
	for i, b := range s.data {
		if at := off + int64(i); at >= 0 && b != pattern(^f.peerISN, at) {
			return fmt.Errorf("byte %d of the host's stream is wrong in a segment of %d bytes", at, len(s.data))
		}
	}
	return nil
}

// relative puts a segment of the host's into the numbers of the script.
func (f *flow) relative(s *segment) Packet {
	num := func(n uint32) Num { return Num{N: int64(int32(n)), Op: '='} }
	p := Packet{
		ECN: int(s.tos & 3), DF: 0, Flags: s.flags, Seq: num(s.seq - f.hostISN), Len: len(s.data),
		Ack: Num{Any: true}, Win: Num{N: int64(s.win), Op: '='}, Urg: Num{Any: true}, HasOptions: true,
	}
	if s.df {
		p.DF = 1
	}
	if s.flags&ACK != 0 {
		p.Ack = num(s.ack - f.peerISN)
	}
	if s.flags&URG != 0 {
		p.Urg = Num{N: int64(s.urg), Op: '='}
	}
	opts, _ := splitOptions(s.opts) // learn has checked it
	for _, o := range opts {
		p.Options = append(p.Options, f.option(o))
	}
	return p
}

func (f *flow) option(b []byte) Option {
	be := binary.BigEndian
	switch {
	case b[0] == optNop || b[0] == optEnd || b[0] == optSACKOK && len(b) == 2:
		return Option{Kind: b[0]}
	case b[0] == optMSS && len(b) == 4:
		return Option{Kind: optMSS, N: int(be.Uint16(b[2:]))}
	case b[0] == optWScale && len(b) == 3:
		return Option{Kind: optWScale, N: int(b[2])}
	case b[0] == optTS && len(b) == 10:
		val := Num{N: int64(int32(be.Uint32(b[2:]) - f.tsBase)), Op: '='}
		return Option{Kind: optTS, Val: val, Ecr: Num{N: int64(be.Uint32(b[6:])), Op: '='}}
	case b[0] == optSACK && len(b) > 2 && len(b)%8 == 2:
		o := Option{Kind: optSACK}
		for e := b[2:]; len(e) > 0; e = e[8:] {
			o.Blocks = append(o.Blocks, [2]int64{
				int64(int32(be.Uint32(e) - f.peerISN)), int64(int32(be.Uint32(e[4:]) - f.peerISN)),
			})
		}
		return o
	}
	return Option{Kind: b[0], Raw: b}
}

// differ names what of got is not as want states.
func differ(want, got *Packet) []string {
	var out []string
	note := func(bad bool, what string) {
		if bad {
			out = append(out, what)
		}
	}
	note(want.ECN >= 0 && want.ECN != got.ECN, "ECN mark")
	note(want.DF >= 0 && want.DF != got.DF, "DF")
	note(want.Flags&^PSH != got.Flags&^PSH || want.Flags&PSH&^got.Flags != 0, "flags")
	note(!want.Seq.is(got.Seq.N), "sequence number")
	note(want.Len != got.Len, "length")
	note(!want.Ack.is(got.Ack.N) || !want.Ack.Any && got.Ack.Any, "ack")
	note(!want.Win.is(got.Win.N), "win")
	note(!want.Urg.is(got.Urg.N) || !want.Urg.Any && got.Urg.Any, "urg")
	note(want.HasOptions && !sameOptions(want, got.Options), "options")
	return out
}

// sameOptions compares the lists in order; with More, got may hold others in between.
func sameOptions(want *Packet, got []Option) bool {
	for _, w := range want.Options {
		for want.More && len(got) > 0 && !sameOption(w, got[0]) {
			got = got[1:]
		}
		if len(got) == 0 || !sameOption(w, got[0]) {
			return false
		}
		got = got[1:]
	}
	return want.More || len(got) == 0
}

// tsSlack is how far a timestamp of the host's may be off: its clock has a grain too.
const tsSlack = 5

func sameOption(want, got Option) bool {
	if want.Raw != nil || got.Raw != nil {
		return slices.Equal(want.Raw, got.Raw)
	}
	if want.Kind != got.Kind || want.N != got.N || !slices.Equal(want.Blocks, got.Blocks) {
		return false
	}
	if want.Kind != optTS {
		return true
	}
	val := want.Val
	if val.Op == '=' && !val.Any {
		d := got.Val.N - val.N
		return d >= -tsSlack && d <= tsSlack && want.Ecr.is(got.Ecr.N)
	}
	return val.is(got.Val.N) && want.Ecr.is(got.Ecr.N)
}
