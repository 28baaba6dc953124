package pktgen

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
	"xdpd/xdpprog"
)

// TestVerifierCounts sends frames through a wire that loses, doubles, holds back and damages them, and holds what the
// checker counts against what the wire did.
func TestVerifierCounts(t *testing.T) {
	first, n := seeds.Range(t, 2000)
	seeds.Each(t, first, n, func(seed uint64) error {
		r := rand.New(rand.NewPCG(seed, 0))
		flows := &Flows{Dst: Addrs{addr(10, 0, 0, 1), addr(10, 0, 0, 1)}, N: 1 + r.IntN(20)}
		if err := flows.settle(); err != nil {
			return err
		}
		sizes := Sizes{{64, 1 + r.IntN(3)}, {64 + r.IntN(300), 1 + r.IntN(3)}}.pattern()
		sent := 1 + r.IntN(400)
		limit := uint64(sent)
		if r.IntN(4) == 0 {
			limit = uint64(r.IntN(sent))
		}
		m := maker{flows: flows, sizes: sizes, mark: 1}
		c := checker{verifier: newVerifier(flows.N, limit), mark: 1, sizes: sizes}
		wire := newWire(r, limit, flows.N)
		for range sent {
			frame := make([]byte, 1500)
			seq := m.seq
			wire.send(frame[:m.put(frame, 1000)], seq, &c)
		}
		wire.drain(&c)
		c.Received.Bytes = wire.want.Bytes // they are not what this is about
		if c.Received != wire.want {
			return fmt.Errorf("%d sent in %d flows, limit %d\ncounted %+v\n  is in %+v", sent, flows.N, limit, c.Received, wire.want)
		}
		if got := uint64(c.latency.TotalCount()); got != wire.want.Frames-wire.want.Corrupt {
			return fmt.Errorf("%d latencies for %d good frames", got, wire.want.Frames-wire.want.Corrupt)
		}
		if lost := c.Lost(uint64(sent)); limit == uint64(sent) && lost != uint64(wire.lost) {
			return fmt.Errorf("%d lost, counted %d", wire.lost, lost)
		}
		return nil
	})
}

// wire is a network with faults, which knows what it did.
type wire struct {
	r                           *rand.Rand
	pLose, pDouble, pHold, pBad float64
	held                        []parcel
	limit                       uint64
	came                        map[uint64]bool
	highest                     map[uint64]uint64 // of each flow
	flows                       uint64
	lost                        int
	want                        Received
}

type parcel struct {
	frame []byte
	seq   uint64
	wait  int
	bad   bool
}

func newWire(r *rand.Rand, limit uint64, flows int) *wire {
	some := func() float64 { return float64(r.IntN(3)) * 0.1 * r.Float64() }
	return &wire{
		r: r, pLose: some(), pDouble: some(), pHold: some(), pBad: some(), limit: limit, flows: uint64(flows),
		came: map[uint64]bool{}, highest: map[uint64]uint64{},
	}
}

func (w *wire) send(frame []byte, seq uint64, c *checker) {
	copies := 1
	if w.r.Float64() < w.pLose {
		copies = 0
	} else if w.r.Float64() < w.pDouble {
		copies = 2 + w.r.IntN(2)
	}
	good := 0
	for range copies {
		p := parcel{bytes.Clone(frame), seq, 0, w.r.Float64() < w.pBad}
		if p.bad {
			at := headers + 2 + w.r.IntN(len(frame)-headers-2) // behind the mark
			p.frame[at] ^= 1 << w.r.IntN(8)
		} else {
			good++
		}
		if w.r.Float64() < w.pHold {
			p.wait = 1 + w.r.IntN(50)
		}
		w.held = append(w.held, p)
	}
	if good == 0 {
		w.lost++
	}
	w.pass(c, false)
}

func (w *wire) drain(c *checker) { w.pass(c, true) }

// pass delivers what is not on hold any more.
func (w *wire) pass(c *checker, all bool) {
	rest := w.held[:0]
	for _, p := range w.held {
		if p.wait > 0 && !all {
			p.wait--
			rest = append(rest, p)
			continue
		}
		c.take(p.frame, 2000)
		w.note(p)
	}
	w.held = rest
}

// note is the model: sets and maps, in place of bits and expected numbers.
func (w *wire) note(p parcel) {
	w.want.Frames++
	if p.bad {
		w.want.Corrupt++
		return
	}
	flow := p.seq % w.flows
	highest, any := w.highest[flow]
	late := any && p.seq <= highest
	if !any || p.seq > highest {
		w.highest[flow] = p.seq
	}
	switch {
	case p.seq >= w.limit:
		w.want.Beyond++
	case w.came[p.seq]:
		w.want.Duplicates++
		return
	default:
		w.want.Unique++
	}
	w.came[p.seq] = true
	if late {
		w.want.Reordered++
	}
}

// TestCheckerOthers are frames that are none of ours, which damage must not turn into ours.
func TestCheckerOthers(t *testing.T) {
	flows := &Flows{Dst: Addrs{addr(10, 0, 0, 1), addr(10, 0, 0, 1)}}
	if err := flows.settle(); err != nil {
		t.Fatal(err)
	}
	m := maker{flows: flows, sizes: []int{64}, mark: 0x1234}
	for name, change := range map[string]func([]byte){
		"another mark":  func(b []byte) { b[headers]++ },
		"IPv6":          func(b []byte) { b[12], b[13] = 0x86, 0xdd },
		"TCP":           func(b []byte) { b[23] = proto.ProtoTCP },
		"options":       func(b []byte) { b[14] = 0x46 },
		"a fragment":    func(b []byte) { b[20] |= 0x20 },
		"another piece": func(b []byte) { b[21] = 1 },
		"too long":      func(b []byte) { b[17]++ },
		"UDP length":    func(b []byte) { b[39]++ },
	} {
		c := checker{verifier: newVerifier(1, 10), mark: 0x1234}
		frame := make([]byte, 60)
		m.seq = 3
		m.put(frame, 0)
		change(frame)
		c.take(frame, 0)
		if c.Received != (Received{Others: 1}) {
			t.Errorf("%s is counted %+v", name, c.Received)
		}
	}
	c := checker{verifier: newVerifier(1, 10), mark: 0x1234, sizes: []int{64}}
	for _, b := range [][]byte{nil, make([]byte, 41), make([]byte, 42)} {
		c.take(b, 0)
	}
	for name, change := range map[string]func([]byte) []byte{
		"IP checksum":  func(b []byte) []byte { b[24]++; return b },
		"UDP checksum": func(b []byte) []byte { b[40]++; return b },
		"no checksum, and another byte behind the stamp": func(b []byte) []byte {
			b[40], b[41], b[60] = 0, 0, 1
			return b
		},
		"no checksum, and another length": func(b []byte) []byte {
			b[40], b[41] = 0, 0
			return append(b, 0)
		},
	} {
		before := c.Corrupt
		m.seq, m.sizes = 4, []int{70}
		c.sizes = m.sizes
		frame := make([]byte, 66)
		m.put(frame, 0)
		c.take(change(frame), 0)
		if c.Corrupt != before+1 {
			t.Errorf("%s is counted %+v", name, c.Received)
		}
	}
	// A kernel's echo leaves the sum to its device: that is no damage.
	frame := make([]byte, 66)
	m.put(frame, 0)
	sum := proto.Fold(proto.PseudoSum(proto.GetAddr(frame[26:]), proto.GetAddr(frame[30:]), proto.ProtoUDP, 66-34))
	frame[40], frame[41] = byte(sum>>8), byte(sum)
	before := c.Received
	c.take(frame, 0)
	if c.Unique != before.Unique+1 {
		t.Errorf("a partial checksum is counted %+v", c.Received)
	}
}

// FuzzParse holds parse against proto's parsers: what it takes must be what they take.
func FuzzParse(f *testing.F) {
	flows := &Flows{Dst: Addrs{addr(10, 0, 0, 1), addr(10, 0, 0, 1)}}
	if err := flows.settle(); err != nil {
		f.Fatal(err)
	}
	m := maker{flows: flows, sizes: []int{64, 100, 1518}, mark: 7}
	for range 3 {
		frame := make([]byte, 1600)
		f.Add(frame[:m.put(frame, 12345)])
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		stamp, sums, ok := parse(b)
		c := checker{verifier: newVerifier(3, 100), mark: stamp.Mark, sizes: []int{64}}
		c.take(b, 0)
		if got := c.Frames+c.Others == 1; !got {
			t.Fatalf("counted %+v", c.Received)
		}
		if !ok {
			return
		}
		ip, fault := proto.ParseIPv4(b[14:])
		if sums && fault != proto.OK {
			t.Fatalf("taken as good, and the header has the fault %v", fault)
		}
		if !sums {
			return
		}
		u, fault := proto.ParseUDP(b[34 : 14+int(ip.TotalLen)])
		if fault != proto.OK || int(u.Len) != int(ip.TotalLen)-20 || ip.Fragment() {
			t.Fatalf("taken, and is %v, %v, %v", ip, u, fault)
		}
		if want, _ := xdpprog.ParseStamp(b[42:]); want != stamp {
			t.Fatalf("stamp %v, want %v", stamp, want)
		}
	})
}
