package sockets

import (
	"bytes"
	"encoding/binary"
	"testing"

	"xdpd/proto"
	"xdpd/umem"
)

// forwardMachine is a Bridge or Router.
type forwardMachine interface {
	Input(port int, f umem.Frame, off, n int, now int64)
	TxPending(port int) int
	PopTX(port int) (umem.Frame, int, int)
	Completed(port int, f umem.Frame)
	Counters(port int) *PortCounters
	Tick(now int64)
}

// fwdKit plays the devices of a machine. Every frame is in the ledger.
type fwdKit struct {
	t      testing.TB
	m      forwardMachine
	pool   *umem.Pool
	ledger *umem.Ledger
	ports  int
	now    int64
	in     uint64
}

const fwdTestFrames = 1024

func newFwdPool(chunk int) (*umem.Pool, *umem.Ledger) {
	region, err := umem.Wrap(make([]byte, fwdTestFrames*chunk), chunk)
	if err != nil {
		panic(err)
	}
	l := umem.NewLedger(fwdTestFrames)
	return umem.NewPool(region, 0, fwdTestFrames, l), l
}

func fwdPorts(n, mtu int) (list []PortConfig) {
	for i := range n {
		list = append(list, PortConfig{MAC: fwdMAC(i), MTU: mtu, Up: true})
	}
	return list
}

// fwdMAC is that of port i, and stationMAC one of a station behind it.
func fwdMAC(i int) proto.MAC           { return proto.MAC{2, 0, 0, 0, 0, byte(i)} }
func stationMAC(port, i int) proto.MAC { return proto.MAC{2, 0, 0, 1, byte(port), byte(i)} }

// deliver receives a frame; nothing, if none is free.
func (k *fwdKit) deliver(port int, data []byte) {
	f := k.pool.Get(umem.Fill)
	if f == umem.None {
		return
	}
	k.pool.Move(f, umem.Fill, umem.RX)
	n := copy(k.pool.Chunk(f)[umem.Headroom:], data)
	k.in++
	k.m.Input(port, f, umem.Headroom, n, k.now)
}

// sent takes all that a port sends.
func (k *fwdKit) sent(port int) (out [][]byte) {
	for k.m.TxPending(port) > 0 {
		f, off, n := k.m.PopTX(port)
		out = append(out, bytes.Clone(k.pool.Chunk(f)[off:off+n]))
		k.pool.Move(f, umem.TX, umem.Comp)
		k.m.Completed(port, f)
	}
	return out
}

// all takes what every port sends.
func (k *fwdKit) all() [][][]byte {
	out := make([][][]byte, k.ports)
	for i := range out {
		out[i] = k.sent(i)
	}
	return out
}

// books: what came in or was made was sent, dropped, or waits.
func (k *fwdKit) books(waiting int) {
	k.t.Helper()
	if c := k.ledger.Counts(); c[umem.Free] != fwdTestFrames-waiting || c[umem.Held] != waiting {
		k.t.Fatalf("frames %v with %d waiting", c, waiting)
	}
	var rx, tx, drops uint64
	for i := range k.ports {
		c := k.m.Counters(i)
		rx += c.RxFrames
		tx += c.TxFrames
		for _, n := range c.Drops {
			drops += n
		}
	}
	if rx != k.in || rx > tx+drops+uint64(waiting) && k.copies() == 0 {
		k.t.Fatalf("%d delivered, %d received, %d sent, %d dropped, %d waiting", k.in, rx, tx, drops, waiting)
	}
}

func (k *fwdKit) copies() (n uint64) {
	for i := range k.ports {
		for _, c := range k.m.Counters(i).Copied {
			n += c
		}
	}
	return n
}

func newBridgeKit(t testing.TB, ports int) (*fwdKit, *Bridge) {
	pool, ledger := newFwdPool(2048)
	b, err := NewBridge(ForwardConfig{Ports: fwdPorts(ports, 1500), FillFrames: 256}, 0, pool, 0)
	if err != nil {
		t.Fatal(err)
	}
	return &fwdKit{t: t, m: b, pool: pool, ledger: ledger, ports: ports}, b
}

func etherFrame(dst, src proto.MAC, n int) []byte {
	b := make([]byte, n)
	proto.PutEthernetTagged(b, dst, src, []uint16{7}, 0x88b5) // tagged, of an experimental protocol
	return b
}

func (k *fwdKit) wantOut(ports ...int) {
	k.t.Helper()
	for i, out := range k.all() {
		want := 0
		for _, p := range ports {
			if p == i {
				want = 1
			}
		}
		if len(out) != want {
			k.t.Errorf("port %d sent %d frames, want %d", i, len(out), want)
		}
	}
	k.books(0)
}

func TestBridgeLearns(t *testing.T) {
	k, b := newBridgeKit(t, 3)
	x, y := stationMAC(0, 1), stationMAC(1, 1)
	k.deliver(0, etherFrame(y, x, 100)) // not known: to all others, one copy
	if c := k.copies(); c != 100 {
		t.Errorf("%d bytes copied for two ports, want 100", c)
	}
	k.wantOut(1, 2)
	k.deliver(1, etherFrame(x, y, 100))
	k.wantOut(0)
	frame := etherFrame(y, x, 1518)
	k.deliver(0, frame)
	if out := k.sent(1); len(out) != 1 || !bytes.Equal(out[0], frame) {
		t.Errorf("the tagged frame came out as %x", out)
	}
	k.deliver(0, etherFrame(y, x, 1519))
	k.deliver(0, etherFrame(proto.Broadcast, x, 1519))
	k.wantOut()
	if c := k.copies(); c != 100 {
		t.Errorf("%d bytes were copied for frames to known stations", c-100)
	}
	k.deliver(1, etherFrame(y, stationMAC(1, 2), 60)) // both on one port
	k.wantOut()
	if b.Counters(1).Drops[BridgeSamePort] != 1 || b.Counters(0).Drops[FwdTooBig] != 2 {
		t.Errorf("%v", b.Counters(1).Drops)
	}
	k.deliver(2, etherFrame(x, y, 60)) // y moved
	k.wantOut(0)
	k.deliver(0, etherFrame(y, x, 60))
	k.wantOut(2)
	if b.Counters(2).Moved != 1 {
		t.Error("the move was not counted")
	}
	k.deliver(0, etherFrame(proto.Broadcast, x, 60))
	k.wantOut(1, 2)
	for i := range 16 {
		k.deliver(0, etherFrame(proto.MAC{1, 0x80, 0xc2, 0, 0, byte(i)}, x, 60))
	}
	k.deliver(0, etherFrame(y, proto.Broadcast, 60))
	k.deliver(0, etherFrame(y, proto.MAC{}, 60))
	k.deliver(0, []byte{1, 2, 3})
	k.wantOut()
	if d := &b.Counters(0).Drops; d[BridgeReserved] != 16 || d[BridgeSource] != 2 || d[proto.EthShort] != 1 {
		t.Errorf("%v", d)
	}
}

func TestBridgeForgets(t *testing.T) {
	k, b := newBridgeKit(t, 3)
	x, y := stationMAC(0, 1), stationMAC(1, 1)
	k.deliver(0, etherFrame(y, x, 60))
	k.deliver(1, etherFrame(x, y, 60))
	k.all()
	k.now = DefaultAgeing
	k.deliver(2, etherFrame(x, stationMAC(2, 1), 60))
	k.wantOut(0)
	k.now++
	k.deliver(2, etherFrame(x, stationMAC(2, 1), 60))
	k.wantOut(0, 1)
	for range 20 {
		k.now += sweepNS
		k.m.Tick(k.now)
	}
	if n := b.Stations(); n != 1 {
		t.Errorf("%d stations are left, want the one that spoke last", n)
	}
	down := b.Port(2)
	down.Up = false
	if err := b.SetPort(2, down); err != nil || b.Stations() != 0 {
		t.Errorf("%v, %d stations after their port went down", err, b.Stations())
	}
	k.deliver(0, etherFrame(proto.Broadcast, x, 60))
	k.wantOut(1)
}

// TestBridgeTableFull: as many stations as there may be, and more; the table stays what it is and everything is passed on.
func TestBridgeTableFull(t *testing.T) {
	k, b := newBridgeKit(t, 2)
	frame := etherFrame(proto.Broadcast, proto.MAC{}, 60)
	for i := range maxStations + 100 {
		binary.BigEndian.PutUint32(frame[8:], uint32(i))
		frame[6], frame[7] = 2, 0
		k.deliver(0, frame)
		if len(k.sent(1)) != 1 {
			t.Fatal("not passed on")
		}
	}
	if b.Stations() != maxStations || b.Counters(0).TableFull != 100 {
		t.Errorf("%d stations, %d not learned", b.Stations(), b.Counters(0).TableFull)
	}
	k.books(0)
}

// TestForwardFull: a device that takes nothing costs the frames of its share, and no more.
func TestForwardFull(t *testing.T) {
	k, b := newBridgeKit(t, 2)
	for range fwdTestFrames {
		k.deliver(0, etherFrame(proto.Broadcast, stationMAC(0, 1), 60))
	}
	used, limit := b.Used(1)
	if used != limit || b.Counters(1).Drops[TxQueueFull] != uint64(fwdTestFrames-limit) || k.pool.Avail() != fwdTestFrames-limit {
		t.Errorf("%d of %d used, %d dropped, %d free", used, limit, b.Counters(1).Drops[TxQueueFull], k.pool.Avail())
	}
	k.all()
	k.books(0)
}
