package reactor

import (
	"context"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"time"

	"xdpd/internal/simnet"
	"xdpd/proto"
	"xdpd/rings"
	"xdpd/rings/simnic"
	"xdpd/sockets"
	"xdpd/umem"
)

const (
	ourAddr  = proto.Addr(0x0a010001) // 10.1.0.1/24
	peerAddr = proto.Addr(0x0a010002)
	echoPort = 7
)

var (
	ourMAC   = proto.MAC{2, 0, 0, 0, 0, 1}
	peerMAC  = proto.MAC{2, 0, 0, 0, 0, 2}
	peerPort = netip.AddrPortFrom(peerAddr.Netip(), 5000)
)

// rig is a reactor on a simulated NIC. The test runs it, by Turn or by Run.
type rig struct {
	t     testing.TB
	clock *simnet.Clock // nil: the real one
	nic   *simnic.SimNIC
	dev   *device
	port  *rings.Port
	pool  *umem.Pool
	host  *sockets.Host
	r     *Reactor
	seq   uint16
	frame [4096]byte
	sent  [][]byte // frames that the device took at a kick

	kick sync.Mutex // a running reactor kicks without its lock; enter and until have both
}

// device is the NIC, sending at every kick if prompt, as copy mode does.
type device struct {
	*simnic.SimNIC
	g      *rig
	prompt bool
	fd     int
	err    error // what Kick says
}

func (d *device) FD() int { return d.fd }

func (d *device) Kick() error {
	d.g.kick.Lock()
	defer d.g.kick.Unlock()
	if d.err != nil {
		return d.err
	}
	if err := d.SimNIC.Kick(); err != nil || !d.prompt {
		return err
	}
	d.g.transmit(32) // TX_BATCH_SIZE, net/xdp/xsk.c
	d.Complete(32)
	return nil
}

// options chooses what differs from rig to rig.
type options struct {
	frames   int    // default 256
	ring     uint32 // size of all rings, default 64
	noLedger bool   // for what must not allocate
	realTime bool
	change   func(*Config, *sockets.Config)

	region *umem.Region // shared with other rigs: frames of it from first on (default one of its own)
	ledger *umem.Ledger
	first  umem.Frame
}

func newRig(t testing.TB, o options) *rig {
	t.Helper()
	if o.frames == 0 {
		o.frames = 256
	}
	if o.ring == 0 {
		o.ring = 64
	}
	if o.region == nil {
		o.region = newRegion(t, o.frames)
		if !o.noLedger {
			o.ledger = umem.NewLedger(o.frames)
		}
	}
	pool := umem.NewPool(o.region, o.first, o.frames, o.ledger)
	g := &rig{t: t, pool: pool, nic: simnic.NewSimNIC(o.region, o.ring, o.ring, o.ring, o.ring)}
	g.dev = &device{SimNIC: g.nic, g: g, prompt: true, fd: -1}
	port := *g.nic.Port()
	port.Dev = g.dev
	g.port = &port
	cfg := Config{Port: g.port, Pool: g.pool}
	if !o.realTime {
		g.clock = simnet.NewClock(1e12)
		cfg.Clock = g.clock.Now
	}
	host := sockets.Config{MAC: ourMAC, MTU: 1500, Addrs: []sockets.Prefix{{Addr: ourAddr, Bits: 24}}}
	if o.change != nil {
		o.change(&cfg, &host)
		g.pool = cfg.Pool
	}
	var err error
	if g.host, err = sockets.New(host, g.pool, g.now(&cfg)); err != nil {
		t.Fatal(err)
	}
	cfg.Host = g.host
	if g.r, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.r.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func newRegion(t testing.TB, frames int) *umem.Region {
	t.Helper()
	region, err := umem.Wrap(make([]byte, frames*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	return region
}

func (g *rig) now(cfg *Config) int64 {
	if cfg.Clock == nil {
		return Monotonic()
	}
	return cfg.Clock()
}

// transmit has the NIC take frames and keeps them.
func (g *rig) transmit(limit int) {
	g.nic.Transmit(limit, func(frame []byte) { g.sent = append(g.sent, append([]byte{}, frame...)) })
}

// enter calls f as another goroutine would.
func (g *rig) enter(f func(h *sockets.Host, now int64)) {
	g.t.Helper()
	h, now, ok := g.r.Enter()
	if !ok {
		g.t.Fatal("the reactor stopped")
	}
	g.kick.Lock()
	f(h, now)
	g.kick.Unlock()
	g.r.Leave()
}

func (g *rig) bind(port uint16) (s sockets.Handle) {
	g.t.Helper()
	g.enter(func(h *sockets.Host, _ int64) {
		var err sockets.Errno
		if s, err = h.UDPBind(0, port); err != 0 {
			g.t.Fatal(err)
		}
	})
	return s
}

// settle does turns until one finds nothing to do.
func (g *rig) settle() (deadline int64) {
	g.t.Helper()
	for range 10_000 {
		worked, deadline := g.r.Turn()
		if !worked {
			return deadline
		}
	}
	g.t.Fatal("turns find work for ever")
	return 0
}

// udpFrame is a datagram of the peer to a port of ours; the frame is valid until the next one.
func (g *rig) udpFrame(dport uint16, payload []byte) []byte {
	g.seq++
	n := proto.PutEthernet(g.frame[:], ourMAC, peerMAC, proto.EtherIPv4)
	n += proto.PutIPv4(g.frame[n:], &proto.IPv4{
		Src: peerAddr, Dst: ourAddr, ID: g.seq, TTL: 64, Proto: proto.ProtoUDP, TotalLen: uint16(28 + len(payload)),
	})
	n += proto.PutUDP(g.frame[n:], peerPort.Port(), dport, 8+len(payload), 0)
	return g.frame[:n+copy(g.frame[n:], payload)]
}

func (g *rig) arpFrame(op uint16) []byte {
	n := proto.PutEthernet(g.frame[:], ourMAC, peerMAC, proto.EtherARP)
	return g.frame[:n+proto.PutARP(g.frame[n:], &proto.ARP{Op: op, SHA: peerMAC, SPA: peerAddr, THA: ourMAC, TPA: ourAddr})]
}

// deliver has the NIC receive a frame.
func (g *rig) deliver(frame []byte) {
	g.t.Helper()
	if !g.nic.Deliver(frame) {
		stats, _ := g.nic.Stats()
		g.t.Fatalf("the NIC dropped a frame: %+v", stats)
	}
}

// meet makes the peer known to the Host, so that what is sent to it leaves at once.
func (g *rig) meet() {
	g.t.Helper()
	g.settle()
	g.deliver(g.arpFrame(proto.ARPRequest))
	g.settle()
	if len(g.sent) != 1 {
		g.t.Fatalf("the ARP request brought %d answers", len(g.sent))
	}
	g.sent = nil
}

// run runs the reactor on a goroutine; stop ends it and gives Run's error.
func (g *rig) run() (stop func() error) {
	done := make(chan error, 1)
	go func() { done <- g.r.Run(context.Background()) }()
	stopped := false
	stop = func() error {
		stopped = true
		g.r.Stop()
		return await(g.t, "the end of Run", done)
	}
	g.t.Cleanup(func() {
		if !stopped {
			g.r.Stop()
			<-done
		}
	})
	return stop
}

// hang is when a test that waits for an event gives up.
const hang = 20 * time.Second

func await[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(hang):
		t.Fatalf("waited in vain for %s", what)
	}
	return v
}

// awaitAsleep returns when the running reactor sleeps, or is about to. It must be woken by what comes next all the same.
func (g *rig) awaitAsleep() {
	g.t.Helper()
	g.until("the reactor to sleep", func() bool { return g.r.asleep })
}

// until returns when cond, called with the lock held, is true.
func (g *rig) until(what string, cond func() bool) {
	g.t.Helper()
	for give := time.Now().Add(hang); time.Now().Before(give); runtime.Gosched() {
		g.r.mu.Lock()
		g.kick.Lock()
		ok := cond()
		g.kick.Unlock()
		g.r.mu.Unlock()
		if ok {
			return
		}
	}
	g.t.Fatalf("waited in vain for %s", what)
}
