package xdpd

import (
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/rings"
	"xdpd/rings/simnic"
	"xdpd/sockets"
	"xdpd/umem"
)

const (
	steerUs   proto.Addr = 0x0a000001 // 10.0.0.1
	steerPeer proto.Addr = 0x0a000002
)

var (
	steerMAC     = proto.MAC{2, 0, 0, 0, 0, 1}
	steerPeerMAC = proto.MAC{2, 0, 0, 0, 0, 2}
)

// steerWorld is a Stack on a simulated NIC with several queues, which spreads what it receives by a hash, and a peer that
// answers every SYN. One goroutine turns the reactors and plays both.
type steerWorld struct {
	t     *testing.T
	stack *Stack
	nics  []*steerQueue
	dir   *sockets.Directory

	mu      sync.Mutex
	spread  *simnic.Spread
	open    int            // connections of all queues when the last SYN went out
	udpHome map[int]int    // datagrams by the queue they left from, if their answer would come in there
	udpAway int            // other datagrams
	ports   map[uint16]int // source ports of SYNs
}

// steerQueue is a queue's NIC, which sends at every kick.
type steerQueue struct {
	*simnic.SimNIC
	sent [][]byte
}

func (q *steerQueue) Kick() error {
	q.Transmit(32, func(frame []byte) { q.sent = append(q.sent, append([]byte(nil), frame...)) })
	q.Complete(32)
	return q.SimNIC.Kick()
}

func steerSpread(seed uint64, queues int) *simnic.Spread {
	rng := rand.New(rand.NewPCG(seed, 0))
	n := &simnic.Spread{Key: make([]byte, 40), Bytes: proto.RSSPorts}
	for i := range n.Key {
		n.Key[i] = byte(rng.Uint32())
	}
	for i := range 128 {
		n.Table = append(n.Table, uint32(i%queues))
	}
	return n
}

// newSteerWorld has the driver tell of one hash, and the device use another or the same one.
func newSteerWorld(t *testing.T, queues int, told, used *simnic.Spread) *steerWorld {
	t.Helper()
	const frames = 512
	region, err := umem.Wrap(make([]byte, queues*frames*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	ledger := umem.NewLedger(queues * frames)
	w := &steerWorld{
		t: t, dir: sockets.NewDirectory(), spread: used, udpHome: map[int]int{}, ports: map[uint16]int{}, stack: &Stack{done: make(chan struct{})},
	}
	if told != nil {
		if w.stack.steer.rss, err = proto.NewRSS(told.Key, told.Table, told.Bytes, told.Bytes); err != nil {
			t.Fatal(err)
		}
	}
	for i := range queues {
		nic := &steerQueue{SimNIC: simnic.NewSimNIC(region, 64, 64, 64, 64)}
		port := *nic.Port()
		port.Dev = nic
		w.nics = append(w.nics, nic)
		w.addQueue(i, &port, umem.NewPool(region, umem.Frame(i*frames), frames, ledger))
	}
	if _, err := reactor.NewGroup(w.stack.Reactors(), reactor.GroupConfig{Stall: -1}); err != nil { // for hand-over
		t.Fatal(err)
	}
	w.turn() // fills the fill rings
	stop, done := new(atomic.Bool), make(chan struct{})
	go func() {
		defer close(done)
		for !stop.Load() {
			w.turn()
			runtime.Gosched()
		}
	}()
	t.Cleanup(func() {
		stop.Store(true)
		<-done
		for _, q := range w.stack.queues {
			q.reactor.Close()
		}
	})
	return w
}

func (w *steerWorld) addQueue(i int, port *rings.Port, pool *umem.Pool) {
	w.t.Helper()
	host, err := sockets.New(sockets.Config{
		MAC: steerMAC, MTU: 1500, Addrs: []sockets.Prefix{{Addr: steerUs, Bits: 24}}, KernelNeighbours: true,
		RSS: w.stack.steer.rss, Queue: i, Seed: [32]byte{1}, Siblings: true, Directory: w.dir, Self: i,
	}, pool, reactor.Monotonic())
	if err != nil {
		w.t.Fatal(err)
	}
	host.SetNeighbour(steerPeer, steerPeerMAC, true, reactor.Monotonic())
	r, err := reactor.New(reactor.Config{Port: port, Pool: pool, Host: host})
	if err != nil {
		w.t.Fatal(err)
	}
	w.stack.queues = append(w.stack.queues, &queue{id: i, pool: pool, host: host, reactor: r})
}

func (w *steerWorld) turn() {
	for i, q := range w.stack.queues {
		q.reactor.Turn()
		for _, frame := range w.nics[i].sent {
			w.heard(i, frame)
		}
		w.nics[i].sent = nil
	}
}

// heard is the peer, and the device that brings its answer.
func (w *steerWorld) heard(from int, frame []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	to := w.spread.AnswerQueue(frame)
	ip, _ := proto.ParseIPv4(frame[14:])
	if ip.Proto == proto.ProtoUDP {
		if to == from {
			w.udpHome[from]++
		} else {
			w.udpAway++
		}
		return
	}
	tcp, _ := proto.ParseTCP(frame[34:])
	if tcp.Flags&(proto.SYN|proto.ACK) != proto.SYN {
		return
	}
	w.ports[tcp.SrcPort]++
	w.open = 0
	for _, q := range w.stack.queues {
		h, _, _ := q.reactor.Enter()
		w.open += len(h.TCPSockets())
		q.reactor.Leave()
	}
	w.nics[to].Deliver(synAck(&tcp))
}

func synAck(syn *proto.TCP) []byte {
	b := make([]byte, 14+20+20)
	proto.PutEthernet(b, steerMAC, steerPeerMAC, proto.EtherIPv4)
	proto.PutIPv4(b[14:], &proto.IPv4{
		Src: steerPeer, Dst: steerUs, TTL: 64, Proto: proto.ProtoTCP, TotalLen: uint16(len(b) - 14), DF: true,
	})
	hdr := proto.TCP{
		SrcPort: syn.DstPort, DstPort: syn.SrcPort, Seq: 7, Ack: syn.Seq + 1, DataOff: 20, Flags: proto.SYN | proto.ACK,
		Window: 65535,
	}
	proto.PutTCP(b[34:], &hdr)
	hdr.Checksum = ^proto.Fold(proto.Sum(b[34:], proto.PseudoSum(steerPeer, steerUs, proto.ProtoTCP, 20)))
	proto.PutTCP(b[34:], &hdr)
	return b
}

// dial connects, and gives the queue of the connection, and how many sockets waited when its SYN went out.
func (w *steerWorld) dial() (queue, open int) {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second) // turns a hang into a failure
	defer cancel()
	conn, err := w.stack.DialContext(ctx, "tcp", "10.0.0.2:80")
	if err != nil {
		w.t.Fatal(err)
	}
	c := conn.(*TCPConn)
	queue = slices.Index(w.stack.Reactors(), c.r)
	c.SetLinger(0)
	c.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	return queue, w.open
}

// count sums a counter over the queues.
func (w *steerWorld) count(stat sockets.Stat) (n uint64) {
	for _, q := range w.stack.queues {
		h, _, _ := q.reactor.Enter()
		n += h.Counters().Stats[stat]
		q.reactor.Leave()
	}
	return n
}

// TestDialKnownHash: a dial waits on one queue only, the queues take turns, and of 1,000 dials every answer comes in on the
// queue that asked.
func TestDialKnownHash(t *testing.T) {
	nic := steerSpread(1, 4)
	w := newSteerWorld(t, 4, nic, nic)
	for i := range 1000 {
		if q, open := w.dial(); q != (i+1)%4 || open != 1 {
			t.Fatalf("dial %d waited on %d queues and is queue %d's", i, open, q)
		}
	}
	for _, stat := range []sockets.Stat{sockets.PortElsewhere, sockets.AnswerElsewhere, sockets.HandedOver, sockets.TCPRetransmits} {
		if n := w.count(stat); n != 0 {
			t.Errorf("%v is %d", stat, n)
		}
	}
	if len(w.ports) != 1000 {
		t.Errorf("1000 dials used %d ports", len(w.ports))
	}
}

// TestDialWrongHash: where the device hashes otherwise than its driver says every dial connects all the same, by hand-over,
// until each queue has seen one answer elsewhere. From then on, as where nothing is known, dials wait on all queues.
func TestDialWrongHash(t *testing.T) {
	for name, told := range map[string]*simnic.Spread{"wrong": steerSpread(2, 4), "unknown": nil} {
		t.Run(name, func(t *testing.T) {
			w := newSteerWorld(t, 4, told, steerSpread(1, 4))
			var queues [4]int
			alone := 0
			for i := range 200 {
				q, open := w.dial()
				queues[q]++
				if open == 1 {
					alone++
				} else if open != 4 {
					t.Fatalf("a dial waited on %d queues", open)
				}
				if open != 4 && (i >= 100 || told == nil) {
					t.Fatalf("dial %d waited on %d queues", i, open)
				}
			}
			for q, n := range queues {
				if n == 0 {
					t.Errorf("no connection is queue %d's", q)
				}
			}
			elsewhere := w.count(sockets.AnswerElsewhere)
			if want := uint64(4); told != nil && (elsewhere != want || alone < 4) || told == nil && elsewhere != 0 {
				t.Errorf("%d answers came in elsewhere, and %d dials waited on one queue", elsewhere, alone)
			}
		})
	}
}

// TestDialHashChanges: when the table is changed (ethtool -X), the dials that wait in the wrong place are answered by
// hand-over, one for each queue, and those after them wait everywhere.
func TestDialHashChanges(t *testing.T) {
	nic := steerSpread(3, 4)
	told := *nic
	told.Table = append([]uint32(nil), nic.Table...)
	w := newSteerWorld(t, 4, &told, nic)
	for range 8 {
		w.dial()
	}
	w.mu.Lock()
	for i, q := range nic.Table {
		nic.Table[i] = (q + 1) % 4
	}
	w.mu.Unlock()
	for i := range 8 {
		want := 4
		if i < 4 {
			want = 1
		}
		if _, open := w.dial(); open != want {
			t.Errorf("dial %d after the change waited on %d queues, want %d", i, open, want)
		}
	}
	if n := w.count(sockets.AnswerElsewhere); n != 4 {
		t.Errorf("%d answers came in elsewhere", n)
	}
}

// TestDialNoPortFits: a queue that no port brings an answer to leaves its turn to another; if there is none, a dial waits
// on all of them.
func TestDialNoPortFits(t *testing.T) {
	one := steerSpread(4, 1)
	byAddress := steerSpread(4, 4)
	byAddress.Bytes = proto.RSSAddrs
	notOurs := steerSpread(4, 1)
	notOurs.Table = []uint32{9}
	for name, c := range map[string]struct {
		told, used *simnic.Spread
		open       int
		queue      int // that all connect on; -1: any
	}{
		"one queue gets all":       {one, one, 1, 0},
		"the port is not hashed":   {byAddress, byAddress, 1, byAddress.Queue(synAck(&proto.TCP{}))},
		"a queue that is not ours": {notOurs, steerSpread(4, 4), 4, -1},
	} {
		t.Run(name, func(t *testing.T) {
			w := newSteerWorld(t, 4, c.told, c.used)
			for range 50 {
				if q, open := w.dial(); open != c.open || c.queue >= 0 && q != c.queue {
					t.Fatalf("a dial waited on %d queues and connected on %d, want %d and %d", open, q, c.open, c.queue)
				}
			}
			if n := w.count(sockets.AnswerElsewhere); n != 0 {
				t.Errorf("%d answers came in elsewhere", n)
			}
		})
	}
}

// TestUDPKnownHash: connected sockets send from the queue that the answers come in on, each queue has its share, and so
// do sockets that are bound to an address.
func TestUDPKnownHash(t *testing.T) {
	nic := steerSpread(5, 4)
	for name, told := range map[string]*simnic.Spread{"known": nic, "wrong": steerSpread(6, 4), "unknown": nil} {
		t.Run(name, func(t *testing.T) {
			w := newSteerWorld(t, 4, told, nic)
			to := netip.MustParseAddrPort("10.0.0.2:53")
			for range 200 {
				c, err := w.stack.DialUDP(to)
				if err == nil {
					_, err = c.Write([]byte("query"))
				}
				if err != nil {
					t.Fatal(err)
				}
				c.Close()
			}
			bound, err := w.stack.ListenPacket("udp", "10.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			for p := range 200 {
				if _, err := bound.WriteTo([]byte("news"), &net.UDPAddr{IP: net.IPv4(10, 0, 0, 2), Port: 1000 + p}); err != nil {
					t.Fatal(err)
				}
			}
			bound.Close()
			var home, away int
			for away+home < 400 {
				runtime.Gosched()
				w.mu.Lock()
				away, home = w.udpAway, 0
				for _, n := range w.udpHome {
					home += n
				}
				w.mu.Unlock()
			}
			if told == nic && (away != 0 || w.udpHome[0] < 80 || w.udpHome[1] < 80 || w.udpHome[2] < 80 || w.udpHome[3] < 80) {
				t.Errorf("sent from the right queue: %v, from a wrong one: %d", w.udpHome, away)
			}
			if told != nic && away < 200 {
				t.Errorf("by chance %d of 400 were sent from the right queue", home)
			}
		})
	}
}
