package reactor_test

import (
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/internal/simnet"
	"xdpd/proto"
	"xdpd/sockets"
)

// The simulation: a reactor with its Host on a simulated NIC, a faulty wire, and on the far side hosts written by hand
// from the RFCs. One seed decides everything, time is virtual, and after every turn the books must balance. A failure
// prints XDPD_SEED=<n>; with that in the environment exactly that run is repeated.

func TestSimulation(t *testing.T) {
	first, n := seeds.Range(t, 1500)
	var total simTotals
	ok := seeds.Each(t, first, n, func(seed uint64) error {
		w, err := simulate(seed)
		if err == nil {
			total.add(w)
		}
		return err
	})
	t.Logf("%d seeds from %d: %v", n, first, &total)
	if n >= 100 && ok {
		total.check(t)
	}
}

// TestSimulationRepeats shows that a seed is all that a run depends on: the same frames at the same times.
func TestSimulationRepeats(t *testing.T) {
	first, _ := seeds.Range(t, 1500)
	for i := range uint64(5) {
		a, errA := simulate(first + i)
		b, errB := simulate(first + i)
		if errA != nil || errB != nil {
			continue // TestSimulation reports it
		}
		if a.in.Digest() != b.in.Digest() || a.out.Digest() != b.out.Digest() || *a.host.Counters() != *b.host.Counters() {
			t.Errorf("XDPD_SEED=%d: two runs differ", first+i)
		}
	}
}

// simFailure is what world.fail panics with: a broken promise, as opposed to a panic in the code under test.
type simFailure string

// simulate runs one seed.
func simulate(seed uint64) (w *world, err error) {
	rng := rand.New(rand.NewPCG(seed, 0x5eed))
	p := chooseParams(rng)
	defer func() {
		r := recover()
		if r == nil {
			return
		}
		where := ""
		if w != nil {
			where = fmt.Sprintf("step %d, %.6f s: ", w.steps, float64(w.clock.Now()-simEpoch)/1e9)
		}
		if f, ok := r.(simFailure); ok {
			err = fmt.Errorf("%s%s\n%+v", where, string(f), p)
			return
		}
		err = fmt.Errorf("%spanic: %v\n%+v\n%s", where, r, p, debug.Stack())
	}()
	w = newWorld(rng, p)
	defer w.close()
	w.run()
	return w, nil
}

// params is what a seed chooses before the run.
type params struct {
	clean bool // no faults but copies, and nothing that may cost a datagram: every single one must be answered
	udp   bool
	tcp   bool

	frames, chunk, mtu, fillFrames         int
	packet                                 int // frames that a packet may have
	fillRing, compRing, rxRing, txRing     uint32
	vlans                                  []uint16
	share                                  bool // KernelNeighbours
	partial                                bool // the peers leave checksums to the device
	leave                                  bool // and so does the engine, to the NIC
	rcvBuf, sndBuf, backlog, maxConns      int
	kickTX, wakeFill, cable, shuffle       bool
	rxBurst, txBurst, compBurst            int // most that the NIC does in a step
	in, out                                simnet.Faults
	stations, steps, perCall               int
	silence, garbage, noSum, busy, earlyGo float64
}

// pow2 gives 2^lo to 2^hi.
func pow2(rng *rand.Rand, lo, hi int) uint32 { return 1 << (lo + rng.IntN(hi-lo+1)) }

// between gives lo to hi.
func between(rng *rand.Rand, lo, hi int) int { return lo + rng.IntN(hi-lo+1) }

// mostly0 gives 0 half of the time, else up to limit, small values more often.
func mostly0(rng *rand.Rand, limit float64) float64 {
	if rng.IntN(2) == 0 {
		return 0
	}
	f := rng.Float64()
	return f * f * limit
}

func chooseParams(rng *rand.Rand) params {
	p := params{
		clean: rng.IntN(3) == 0, udp: rng.IntN(4) != 0, chunk: 2048 << rng.IntN(2), mtu: between(rng, 576, 1500),
		frames: between(rng, 40, 40<<rng.IntN(5)), share: rng.IntN(8) == 0,
		fillRing: pow2(rng, 2, 8), compRing: pow2(rng, 2, 8), rxRing: pow2(rng, 2, 8), txRing: pow2(rng, 1, 8),
		backlog: between(rng, 1, 16), maxConns: between(rng, 4, 64),
		kickTX: rng.IntN(2) == 0, wakeFill: rng.IntN(4) == 0, shuffle: rng.IntN(2) == 0, cable: rng.IntN(4) == 0,
		rxBurst: between(rng, 1, 80), txBurst: between(rng, 1, 80), compBurst: between(rng, 1, 80),
		stations: between(rng, 1, 4), steps: between(rng, 60, 300), perCall: between(rng, 1, 40),
	}
	p.packet, p.leave = 1, rng.IntN(2) == 0
	if !p.clean && rng.IntN(3) == 0 {
		p.jumbo(rng)
	}
	p.tcp = !p.udp || !p.clean && rng.IntN(2) == 0
	for range rng.IntN(3) {
		p.vlans = append(p.vlans, uint16(between(rng, 1, 4094)))
	}
	// The frames that the fill ring keeps must leave the Host 16; refilling goes by halves, so a few more are needed.
	p.fillFrames = max(between(rng, 2, min(int(p.fillRing), p.frames-17)), 2*p.packet)
	p.rcvBuf = p.chunk * between(rng, 1, 64)
	p.sndBuf = between(rng, 2000, 64<<10)
	p.in.LatencyNS, p.out.LatencyNS = rng.Int64N(200_000), rng.Int64N(200_000)
	p.in.JitterNS, p.out.JitterNS = rng.Int64N(100_000), rng.Int64N(100_000)
	if p.clean {
		p.partial = rng.IntN(4) == 0
		return makeClean(rng, p)
	}
	for _, f := range []*simnet.Faults{&p.in, &p.out} {
		f.Loss, f.Duplicate = mostly0(rng, 0.3), mostly0(rng, 0.3)
		f.Reorder, f.Corrupt = mostly0(rng, 0.5), mostly0(rng, 0.3)
		f.ReorderNS = rng.Int64N(300_000_000)
	}
	p.silence, p.garbage, p.busy = mostly0(rng, 1), mostly0(rng, 1), mostly0(rng, 0.9)
	p.earlyGo = mostly0(rng, 0.2)
	if p.in.Corrupt == 0 {
		p.noSum = mostly0(rng, 0.5)
	}
	return p
}

// jumbo has packets take several frames. One must fit into every ring.
func (p *params) jumbo(rng *rand.Rand) {
	p.packet, p.chunk = between(rng, 2, 5), 2048
	p.mtu = between(rng, sockets.MaxMTU(p.chunk, 1)+1, sockets.MaxMTU(p.chunk, p.packet))
	p.frames += 20
	p.fillRing, p.compRing, p.rxRing, p.txRing = max(p.fillRing, 16), max(p.compRing, 8), max(p.rxRing, 8), max(p.txRing, 8)
}

// makeClean leaves room: the closed loop of requests must fit into every queue on its way (see sendClean).
func makeClean(rng *rand.Rand, p params) params {
	p.fillRing, p.rxRing = pow2(rng, 6, 8), pow2(rng, 5, 8)
	p.fillFrames = between(rng, 40, int(p.fillRing))
	p.rcvBuf = p.chunk * between(rng, 16, 64)
	p.maxConns, p.backlog = 64, 16
	// ARP must not take longer than anybody waits for it.
	p.rxBurst, p.txBurst, p.compBurst = p.rxBurst+8, p.txBurst+8, p.compBurst+8
	if rng.IntN(3) == 0 {
		p.in.Duplicate, p.out.Duplicate = rng.Float64(), rng.Float64()
		p.rxRing, p.fillRing, p.fillFrames = 64, 64, 64 // ARP packets come twice as well
	}
	p.frames = p.fillFrames + between(rng, 64, 600)
	return p
}

// simTotals shows that the seeds did what they are for.
type simTotals struct {
	runs, clean, turns, frames      uint64
	udpSent, udpEchoed, pings       uint64
	conns, finished, bytes          uint64
	lost, noFrame, ringFull         uint64
	fill, rxFull                    uint64
	reassembled, queueFull, badSums uint64
	rxMore, txMore, leftSums        uint64
}

func (s *simTotals) add(w *world) {
	c, r := w.host.Counters(), w.counters()
	s.runs++
	if w.p.clean {
		s.clean++
	}
	s.turns += r.Turns
	s.frames += r.RxFrames + r.TxFrames
	s.addHost(c)
	s.ringFull += r.TxRingFull
	s.rxMore += r.RxMore
	s.txMore += r.TxMore
	s.leftSums += c.Stats[sockets.TxPartialSum]
	nic, _ := w.nic.Stats()
	s.fill += nic.RxFillRingEmpty
	s.rxFull += nic.RxRingFull
	s.lost += w.in.Stats().Lost + w.out.Stats().Lost + w.nicLost
	s.udpSent += uint64(len(w.udp.sent))
	s.udpEchoed += w.udp.echoes
	s.pings += w.udp.pongs
	for _, k := range w.tcp.all {
		s.conns++
		s.bytes += uint64(k.got)
		if k.finished() {
			s.finished++
		}
	}
}

func (s *simTotals) addHost(c *sockets.Counters) {
	s.noFrame += c.Drops[sockets.TxNoFrame]
	s.reassembled += c.Stats[sockets.Reassembled]
	s.queueFull += c.Drops[sockets.UDPQueueFull]
	s.badSums += c.Drops[proto.IPChecksum] + c.Drops[proto.UDPChecksum] + c.Drops[proto.TCPChecksum] + c.Drops[proto.ICMPChecksum]
}

func (s *simTotals) String() string {
	return fmt.Sprintf("%d runs (%d clean), %d turns, %d frames; udp %d sent, %d echoed, %d pongs; tcp %d connections, "+
		"%d finished, %d bytes; %d frames lost, %d times no TX frame, %d TX ring full, %d fill ring empty, %d RX ring full; "+
		"%d reassembled, %d UDP queue full, %d bad checksums",
		s.runs, s.clean, s.turns, s.frames, s.udpSent, s.udpEchoed, s.pings, s.conns, s.finished, s.bytes,
		s.lost, s.noFrame, s.ringFull, s.fill, s.rxFull, s.reassembled, s.queueFull, s.badSums)
}

// check fails when something that the simulation should try never happened.
func (s *simTotals) check(t *testing.T) {
	for _, c := range []struct {
		what string
		n    uint64
	}{
		{"clean runs", s.clean}, {"UDP echoes", s.udpEchoed}, {"pongs", s.pings}, {"finished TCP connections", s.finished},
		{"lost frames", s.lost}, {"sends without a frame", s.noFrame}, {"full TX rings", s.ringFull},
		{"empty fill rings", s.fill}, {"full RX rings", s.rxFull}, {"reassembled datagrams", s.reassembled},
		{"full UDP queues", s.queueFull},
		{"bad checksums", s.badSums}, {"received packets of several frames", s.rxMore}, {"such packets sent", s.txMore},
		{"checksums left to the NIC", s.leftSums},
	} {
		if c.n < s.runs/10 {
			t.Errorf("%s: %d in %d runs; the simulation does not try what it should", c.what, c.n, s.runs)
		}
	}
}
