package reactor

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
	"xdpd/rings"
	"xdpd/rings/simnic"
	"xdpd/sockets"
	"xdpd/umem"
)

// forwardSim is a bridge or router between simulated NICs of one or two queues each.
type forwardSim struct {
	t      *testing.T
	rng    *rand.Rand
	now    int64
	nics   [][]*simnic.SimNIC
	ledger *umem.Ledger
	pool   *umem.Pool
	f      *Forwarder
	count  func(port int) *sockets.PortCounters
	seen   map[uint64]int // how often each number came out
}

const simForwardFrames = 1024

func simMAC(port int) proto.MAC { return proto.MAC{2, 0, 0, 0, 1, byte(port)} }

func newForwardSim(t *testing.T, rng *rand.Rand, router bool) *forwardSim {
	s := &forwardSim{t: t, rng: rng, now: 1, seen: make(map[uint64]int), ledger: umem.NewLedger(simForwardFrames)}
	region, err := umem.Wrap(make([]byte, simForwardFrames*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	s.pool = umem.NewPool(region, 0, simForwardFrames, s.ledger)
	cfg := sockets.ForwardConfig{}
	var ports [][]*rings.Port
	for i := range 2 + rng.IntN(3) {
		var nics []*simnic.SimNIC
		var list []*rings.Port
		for range 1 + rng.IntN(2) {
			nic := simnic.NewSimNIC(region, 64, 128, 64, 32)
			nics, list = append(nics, nic), append(list, nic.Port())
			cfg.FillFrames += 64
		}
		s.nics, ports = append(s.nics, nics), append(ports, list)
		cfg.Ports = append(cfg.Ports, sockets.PortConfig{MAC: simMAC(i), MTU: 1500, Up: true})
	}
	fc := ForwarderConfig{Pool: s.pool, Ports: ports, Clock: func() int64 { return s.now }}
	if router {
		r, err := sockets.NewRouter(cfg, s.pool, s.now)
		if err != nil {
			t.Fatal(err)
		}
		var tables sockets.Tables
		for i := range ports {
			a := proto.Addr(10<<24 | i<<16)
			tables.Routes = append(tables.Routes, sockets.FwdRoute{Dst: a, Bits: 16, Hops: []sockets.Hop{{Port: i}}})
			r.SetNeighbour(i, a+1, simMAC(i), true, s.now)
		}
		r.SetTables(tables)
		fc.Machine, s.count = r, r.Counters
	} else {
		b, err := sockets.NewBridge(cfg, 0, s.pool, s.now)
		if err != nil {
			t.Fatal(err)
		}
		fc.Machine, s.count = b, b.Counters
	}
	if s.f, err = NewForwarder(fc); err != nil {
		t.Fatal(err)
	}
	return s
}

// frame is a packet from behind one port to one behind another, with a number that comes once.
func (s *forwardSim) frame(from, to int, number uint64, router bool) []byte {
	b := make([]byte, 60+s.rng.IntN(1400))
	src, dst := proto.MAC{2, 9, 0, 0, 0, byte(from)}, proto.MAC{2, 9, 0, 0, 0, byte(to)}
	if router {
		dst = simMAC(from)
	}
	proto.PutEthernet(b, dst, src, proto.EtherIPv4)
	ip := proto.IPv4{Src: proto.Addr(10<<24|from<<16) + 1, Dst: proto.Addr(10<<24|to<<16) + 1, TTL: 9, Proto: 17, TotalLen: uint16(len(b) - 14)}
	proto.PutIPv4(b[14:], &ip)
	binary.BigEndian.PutUint64(b[34:], number)
	return b
}

func (s *forwardSim) turn() {
	s.now += 1000
	if _, _, stop := s.f.Turn(); stop {
		s.t.Fatal("it stopped")
	}
}

// drive lets a NIC send and complete.
func (s *forwardSim) drive(nic *simnic.SimNIC, n int) {
	nic.Transmit(n, func(p []byte) {
		if len(p) >= 42 {
			s.seen[binary.BigEndian.Uint64(p[34:])]++
		}
	})
	nic.Complete(n)
}

// TestForwarderSim: NICs that send late, complete late and go down; no frame is lost or doubled, and what was received was
// sent or dropped with a reason.
func TestForwarderSim(t *testing.T) {
	first, n := seeds.Range(t, 200)
	for seed := first; seed < first+uint64(n); seed++ {
		rng := rand.New(rand.NewPCG(seed, 3))
		router := seed%2 == 0
		s := newForwardSim(t, rng, router)
		s.turn() // fills
		number, received := uint64(0), uint64(0)
		for range 300 {
			from := rng.IntN(len(s.nics))
			nic := s.nics[from][rng.IntN(len(s.nics[from]))]
			switch rng.IntN(12) {
			case 0, 1, 2, 3, 4:
				for range rng.IntN(40) {
					to := (from + 1 + rng.IntN(len(s.nics)-1)) % len(s.nics)
					number++
					if nic.Deliver(s.frame(from, to, number, router)) {
						received++
					}
				}
			case 5, 6, 7:
				s.turn()
			case 8:
				nic.SetDown(rng.IntN(3) == 0)
			default:
				s.drive(nic, rng.IntN(64))
			}
		}
		for range 200 { // everything comes to an end
			s.now += downRetryNS
			s.turn()
			for _, nics := range s.nics {
				for _, nic := range nics {
					nic.SetDown(false)
					s.drive(nic, 64)
				}
			}
		}
		s.turn()
		s.judge(seed, received)
	}
}

func (s *forwardSim) judge(seed, received uint64) {
	var rx, tx, drops, copied uint64
	for i := range s.nics {
		c := s.count(i)
		rx += c.RxFrames
		tx += c.TxFrames
		for _, n := range c.Drops {
			drops += n
		}
		copied += c.Copied[sockets.CopyFlood]
	}
	doubled, out := 0, uint64(0)
	for _, n := range s.seen {
		out += uint64(n)
		if n > 1 {
			doubled++
		}
	}
	if rx != received || out != tx || copied == 0 && (rx != tx+drops || doubled > 0) {
		s.t.Fatalf("seed %d: delivered %d, received %d, queued %d, left %d, dropped %d, doubled %d", seed, received, rx, tx, out, drops, doubled)
	}
	fill, inTX := s.f.InRings()
	c := s.ledger.Counts()
	if inTX != 0 || c[umem.TX] != 0 || c[umem.Fill] != fill || c[umem.Free] != s.pool.Avail() || fill+s.pool.Avail() != simForwardFrames {
		s.t.Fatalf("seed %d: frames %v; fill rings %d, TX rings %d, free %d", seed, c, fill, inTX, s.pool.Avail())
	}
	if len(s.nics) == 2 && copied != 0 {
		s.t.Fatalf("seed %d: a bridge of two ports copied %d bytes", seed, copied)
	}
}

// TestForwarderBadDescriptors: what a device names that is not its own is counted, and taken for nothing.
func TestForwarderBadDescriptors(t *testing.T) {
	s := newForwardSim(t, rand.New(rand.NewPCG(1, 1)), false)
	rx, comp := rings.NewPlain[rings.Desc](8), rings.NewPlain[uint64](8)
	q := &s.f.queues[0]
	q.ring.RX, q.ring.Comp = rx.Consumer(), comp.Consumer()
	s.turn()
	in, done := rx.Producer(), comp.Producer()
	first := uint64(s.ledger.Frames(umem.Fill)[0]) * 2048
	for _, d := range []rings.Desc{
		{Addr: 1 << 40, Len: 60}, {Addr: first + 10, Len: 60}, {Addr: first + 2048 + umem.Headroom, Len: 4000},
		{Addr: first + 2*2048 + umem.Headroom, Len: 1000, Options: rings.DescContinued}, {Addr: first + 3*2048 + umem.Headroom, Len: 9},
	} {
		i, _ := in.Reserve(1)
		*in.Slot(i) = d
		in.Submit(1)
	}
	i, _ := done.Reserve(1)
	*done.Slot(i) = 1 << 40
	done.Submit(1)
	s.turn()
	if c := s.f.Counters(0, 0); c.RxBadDesc != 3 || c.RxBadChain != 2 || c.BadCompletions != 1 {
		t.Errorf("%+v", c)
	}
	if c := s.count(0); c.RxFrames != 0 {
		t.Errorf("%d frames got through", c.RxFrames)
	}
}

// TestForwarderEnds: Run ends with what it was told.
func TestForwarderEnds(t *testing.T) {
	s := newForwardSim(t, rand.New(rand.NewPCG(1, 1)), false)
	s.f.now = Monotonic
	gone := errors.New("gone")
	ended := make(chan error)
	go func() { ended <- s.f.Run(t.Context()) }()
	if _, ok := s.f.Enter(); !ok {
		t.Error("it ended by itself")
	}
	s.f.Leave()
	s.f.Fail(gone)
	if err := <-ended; !errors.Is(err, gone) {
		t.Errorf("it ended with %v", err)
	}
	if _, ok := s.f.Enter(); ok {
		t.Error("it may still be used")
	}
	s.f.Leave()
	if err := s.f.Close(); err != nil {
		t.Error(err)
	}
}
