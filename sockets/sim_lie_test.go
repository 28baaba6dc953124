package sockets

import (
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
)

// TestLyingPeer is TestSimulation with a liar on the path: what node 1 says reaches node 0 with other windows, numbers,
// options, flags and bytes, under right checksums. So the lies come in the midst of conversations that make sense. Of
// what the programs see nothing can be said, but both Hosts must keep their books, and end everything.
func TestLyingPeer(t *testing.T) {
	first, n := seeds.Range(t, simSeeds)
	n = (n + 1) / 2
	var total simTotals
	var lies uint64
	ok := seeds.Each(t, first, n, func(seed uint64) error {
		w, err := simLied(seed)
		if err == nil {
			total.add(w)
			lies += w.lies
		}
		return err
	})
	t.Logf("%d seeds from %d: %d lies, %+v", n, first, lies, total)
	if n >= 100 && ok && (lies < uint64(n) || total.Bytes == 0) {
		t.Errorf("the liar does not get far enough to do harm")
	}
}

func simLied(seed uint64) (w *simWorld, err error) {
	rng := rand.New(rand.NewPCG(seed, 0x11e))
	p := simChoose(rng)
	p.clean, p.share = false, true
	p.lie = rng.Float64() * rng.Float64()
	p.habit = rng.IntN(2 * simLies)
	defer func() {
		if r := recover(); r != nil {
			err = simBroken(r, w, p)
		}
	}()
	w = newSimWorld(rng, p)
	w.wrong = true
	w.trace = os.Getenv("XDPD_TRACE") != ""
	w.run()
	return w, nil
}

// simSegmentBytes puts a segment together again.
func simSegmentBytes(eth []byte, s *simSegment) []byte {
	n := proto.TCPHeaderLen + s.opt.Len()
	b := make([]byte, 14+20+n+len(s.data))
	copy(b, eth[:14])
	s.ip.HeaderLen, s.ip.TotalLen = 20, uint16(len(b)-14)
	proto.PutIPv4(b[14:], &s.ip)
	seg := b[34:]
	s.tcp.DataOff, s.tcp.Checksum = uint8(n), 0
	proto.PutTCP(seg, &s.tcp)
	proto.PutTCPOptions(seg[proto.TCPHeaderLen:], &s.opt)
	copy(seg[n:], s.data)
	s.tcp.Checksum = ^proto.Fold(proto.Sum(seg, proto.PseudoSum(s.ip.Src, s.ip.Dst, proto.ProtoTCP, len(seg))))
	proto.PutTCP(seg, &s.tcp)
	return b
}

const simLies = 14 // kinds of them

// lie gives what becomes of a frame that node 1 sent.
func (w *simWorld) lie(b []byte) [][]byte {
	var s simSegment
	rng := w.rng
	if w.calm || rng.Float64() > w.p.lie || !simParse(b, 1, &s) {
		return [][]byte{b}
	}
	w.lies++
	kind := w.p.habit
	if kind >= simLies || rng.IntN(4) == 0 {
		kind = rng.IntN(simLies)
	}
	if s.tcp.Flags&proto.SYN != 0 && rng.IntN(2) == 0 {
		w.lieSYN(&s)
		return [][]byte{simSegmentBytes(b, &s)}
	}
	near := func() uint32 { return uint32(simLog(rng, 1, 1<<16)) }
	if rng.IntN(2) == 0 {
		near = func() uint32 { return -uint32(simLog(rng, 1, 1<<16)) }
	}
	switch kind {
	case 0:
		s.tcp.Window = uint16(rng.Uint32() >> rng.IntN(17))
	case 1:
		s.tcp.Window = uint16(rng.IntN(2))
	case 2:
		s.tcp.Ack += near()
	case 3: // the ACK in small pieces
		var out [][]byte
		last := s.tcp.Ack - uint32(rng.IntN(3000))
		s.data = nil
		for end := s.tcp.Ack; seqLT(last, end) && len(out) < 50; last += 1 + uint32(rng.IntN(200)) {
			s.tcp.Ack = last
			out = append(out, simSegmentBytes(b, &s))
		}
		return append(out, b)
	case 4:
		s.opt.NSACK = uint8(1 + rng.IntN(4))
		for i := range s.opt.NSACK {
			from := s.tcp.Ack + uint32(rng.IntN(20000)) - 3000
			s.opt.SACK[i] = [2]uint32{from, from + uint32(rng.IntN(5000)) - uint32(rng.IntN(2)*rng.IntN(5000))}
		}
	case 5:
		s.opt.NSACK = 0 // reneging
	case 6:
		s.opt.TSVal += near()
	case 7:
		s.opt.TSEcr += near()
	case 8:
		s.opt.HasTS = !s.opt.HasTS
	case 9:
		s.tcp.Flags ^= []uint8{proto.ECE, proto.ECE, proto.CWR, proto.URG, proto.FIN, proto.RST, proto.SYN, proto.ACK}[rng.IntN(8)]
		s.tcp.Urgent = uint16(rng.Uint32())
	case 10:
		s.tcp.Seq += near()
	case 11: // the same numbers, other bytes, before or behind the true ones
		s.data = slices.Clone(s.data)
		for i := range s.data {
			s.data[i] ^= 0x55
		}
		out := [][]byte{simSegmentBytes(b, &s), b}
		if rng.IntN(2) == 0 {
			out[0], out[1] = out[1], out[0]
		}
		return out
	case 12:
		return slices.Repeat([][]byte{b}, rng.IntN(30))
	case 13:
		s.ip.TOS ^= uint8(rng.IntN(4))
	}
	out := simSegmentBytes(b, &s)
	if rng.IntN(4) == 0 {
		return [][]byte{b, out}
	}
	return [][]byte{out}
}

// lieSYN changes what is agreed on.
func (w *simWorld) lieSYN(s *simSegment) {
	rng := w.rng
	switch rng.IntN(7) {
	case 0:
		s.opt.MSS = uint16(rng.Uint32() >> rng.IntN(17))
	case 1:
		s.opt.HasWScale, s.opt.WScale = rng.IntN(4) != 0, uint8(rng.IntN(16))
	case 2:
		s.opt.HasTS = !s.opt.HasTS
	case 3:
		s.opt.SACKPermitted = !s.opt.SACKPermitted
	case 4:
		s.tcp.Flags ^= []uint8{proto.ECE, proto.CWR, proto.ECE | proto.CWR, proto.FIN, proto.RST, proto.ACK}[rng.IntN(6)]
	case 5:
		s.tcp.Window = uint16(rng.Uint32() >> rng.IntN(17))
	case 6:
		s.tcp.Ack += uint32(rng.IntN(3)) - 1
	}
}

// checkLies bounds what the liar can make a Host send.
func (w *simWorld) checkLies() {
	work := uint64(1000)
	for _, c := range w.conns {
		work += 60
		for _, s := range c.side {
			work += uint64(s.calls) + uint64(s.sent)/60 + uint64(s.life/second)
		}
	}
	for _, n := range w.node {
		if got, limit := n.h.counters.Stats[TxTCP], 4*n.h.counters.Stats[RxTCP]+4*work; got > limit {
			w.fail("node %d sent %d segments for %d received and a work of %d", n.id, got, n.h.counters.Stats[RxTCP], work)
		}
	}
}
