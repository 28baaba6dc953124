package sockets

import (
	"encoding/binary"
	"math"
	"net/netip"
	"testing"

	"xdpd/proto"
	"xdpd/umem"
)

// Who is on the test network: us, a peer on the link, and a gateway.
const (
	usIP   proto.Addr = 0x0a000001 // 10.0.0.1/24
	peerIP proto.Addr = 0x0a000002
	gwIP   proto.Addr = 0x0a0000fe
	farIP  proto.Addr = 0xc0000201 // 192.0.2.1, behind the gateway
)

var (
	usMAC   = proto.MAC{2, 0, 0, 0, 0, 1}
	peerMAC = proto.MAC{2, 0, 0, 0, 0, 2}
	gwMAC   = proto.MAC{2, 0, 0, 0, 0, 0xfe}
	evilMAC = proto.MAC{2, 0, 0, 0, 0, 0x66}
)

const (
	ms     = int64(1_000_000)
	second = 1000 * ms
)

// kit is a Host on heap memory with the ledger on, a clock that the test owns, and the part of a reactor and a device
// that moves frames: a fill ring, and a TX ring whose completions come at once or, with late, when the test says so.
type kit struct {
	t       testing.TB
	h       *Host
	pool    *umem.Pool
	now     int64
	fill    []umem.Frame
	late    bool
	device  []umem.Frame // sent and not completed
	out     [][]byte     // sent frames nobody looked at yet
	arped   []proto.MAC  // targets of ARP requests that pump answered
	answers map[proto.Addr]proto.MAC
	others  func() [umem.NOwners]int // frames of other kits in the same ledger

	finished int // checksums that were left to the device
}

// newKit makes a Host that knows its neighbours as the kernel does (share mode), so that no ARP disturbs: what a test
// asks for beyond that it says in set. arpKit makes one that resolves for itself.
func newKit(t testing.TB, set ...func(*Config)) *kit {
	return newKitOf(t, 1024, 2048, append([]func(*Config){func(c *Config) { c.KernelNeighbours = true }}, set...)...)
}

func arpKit(t testing.TB, set ...func(*Config)) *kit { return newKitOf(t, 1024, 2048, set...) }

func newKitOf(t testing.TB, frames, chunk int, set ...func(*Config)) *kit {
	region, err := umem.Wrap(make([]byte, frames*chunk), chunk)
	if err != nil {
		t.Fatal(err)
	}
	return newKitOn(t, umem.NewPool(region, 0, frames, umem.NewLedger(frames)), set...)
}

func newKitOn(t testing.TB, pool *umem.Pool, set ...func(*Config)) *kit {
	cfg := Config{
		MAC: usMAC, MTU: 1500, Addrs: []Prefix{{usIP, 24}},
		Routes: []Route{{Dst: 0, Bits: 0, Gateway: gwIP}}, FillFrames: pool.Total() / 8,
	}
	for _, f := range set {
		f(&cfg)
	}
	k := &kit{t: t, now: 1000*second + 123_456, answers: map[proto.Addr]proto.MAC{}, pool: pool}
	var err error
	if k.h, err = New(cfg, k.pool, k.now); err != nil {
		t.Fatal(err)
	}
	k.refill()
	if cfg.KernelNeighbours {
		k.h.SetNeighbour(peerIP, peerMAC, true, k.now)
		k.h.SetNeighbour(gwIP, gwMAC, true, k.now)
	}
	if tt, ok := t.(*testing.T); ok {
		tt.Cleanup(func() {
			if !tt.Failed() {
				k.finish()
			}
		})
	}
	return k
}

func (k *kit) refill() {
	for len(k.fill) < k.h.cfg.FillFrames {
		f := k.pool.Get(umem.Fill)
		if f == umem.None {
			return
		}
		k.fill = append(k.fill, f)
	}
}

// input hands the Host a received frame and reports whether there was one in the fill ring to receive it into.
func (k *kit) input(frame []byte) bool {
	if len(k.fill) == 0 {
		k.refill()
	}
	n := len(k.fill)
	if n == 0 {
		return false
	}
	f := k.fill[n-1]
	k.fill = k.fill[:n-1]
	k.pool.Move(f, umem.Fill, umem.RX)
	if len(frame) > k.h.room {
		return k.inputPieces(f, frame)
	}
	copy(k.pool.Chunk(f)[umem.Headroom:], frame)
	k.h.Ahead([]Piece{{f, umem.Headroom, uint16(len(frame))}}) // whatever comes must do no harm there
	k.h.Input(f, umem.Headroom, len(frame), k.now)
	k.refill()
	return true
}

// inputPieces hands the Host a frame of the link in several of the pool, the first of which is f.
func (k *kit) inputPieces(f umem.Frame, frame []byte) bool {
	var pieces []Piece
	for {
		n := copy(k.pool.Chunk(f)[umem.Headroom:], frame)
		pieces = append(pieces, Piece{f, umem.Headroom, uint16(n)})
		if frame = frame[n:]; len(frame) == 0 {
			break
		}
		if k.refill(); len(k.fill) == 0 {
			for _, p := range pieces {
				k.pool.Move(p.F, umem.RX, umem.Fill)
				k.fill = append(k.fill, p.F)
			}
			return false
		}
		f = k.fill[len(k.fill)-1]
		k.fill = k.fill[:len(k.fill)-1]
		k.pool.Move(f, umem.Fill, umem.RX)
	}
	k.h.InputPieces(pieces, k.now)
	k.refill()
	return true
}

func (k *kit) inject(frames ...[]byte) {
	k.t.Helper()
	for _, f := range frames {
		if !k.input(f) {
			k.t.Fatal("the fill ring is empty")
		}
	}
}

// pump does what a turn does after receiving: output is built, sent, and, unless the device is late, completed.
func (k *kit) pump() {
	k.h.Flush(k.now)
	for k.h.TxPending() > 0 {
		first := k.h.PopTX()
		frame := k.take(nil, first)
		for tx := first; tx.More(); {
			tx = k.h.PopTX()
			frame = k.take(frame, tx)
		}
		if first.LeavesSum() {
			k.finishSum(frame, first)
		}
		if !k.late {
			k.complete(len(k.device))
		}
		if a, fault := proto.ParseARP(frame[min(len(frame), k.h.lead):]); fault == proto.OK && a.Op == proto.ARPRequest {
			if mac, ok := k.answers[a.TPA]; ok {
				k.arped = append(k.arped, proto.MAC(frame[:6]))
				k.inject(arpFrame(proto.ARPReply, mac, a.TPA, usMAC, a.SPA, usMAC))
				continue
			}
		}
		k.out = append(k.out, frame)
	}
	k.h.EndTurn()
}

// take has the device take a frame, and adds it to the packet.
func (k *kit) take(packet []byte, tx TxFrame) []byte {
	k.device = append(k.device, tx.F)
	return append(packet, k.pool.Chunk(tx.F)[tx.Off():tx.Off()+tx.N()]...)
}

// finishSum does what the device is asked to do with a packet, after a look at whether that may be asked of one.
func (k *kit) finishSum(packet []byte, tx TxFrame) {
	k.t.Helper()
	start, offset := k.h.SumOf(tx)
	if !k.h.cfg.LeaveSums || start != k.h.lead+20 || start+offset+2 > tx.N() || tx.Off() < 24+k.h.lead {
		k.t.Fatalf("of the device is asked: %+v", tx)
	}
	ip, msg := packet[k.h.lead:start], packet[start:]
	src, dst := proto.Addr(binary.BigEndian.Uint32(ip[12:])), proto.Addr(binary.BigEndian.Uint32(ip[16:]))
	field, sum := msg[offset:], ^inetSum(pseudo(src, dst, ip[9], len(msg)))
	if offset != map[byte]int{6: 16, 17: 6}[ip[9]] || ip[6]&0x3f|ip[7] != 0 || binary.BigEndian.Uint16(field) != sum {
		k.t.Fatalf("of the device is asked: %+v; the pseudo-header's sum is %#x, the packet % x", tx, sum, packet)
	}
	k.finished++
	if sum = inetSum(msg); sum == 0 {
		sum = 0xffff // CSUM_MANGLED_0, include/net/checksum.h
	}
	binary.BigEndian.PutUint16(field, sum)
}

// complete has the device finish the n oldest frames it was given.
func (k *kit) complete(n int) {
	for _, f := range k.device[:n] {
		k.pool.Move(f, umem.TX, umem.Comp)
		k.h.Completed(f)
	}
	k.device = append(k.device[:0], k.device[n:]...)
}

// sent gives the frames that went out since the last call.
func (k *kit) sent() [][]byte {
	k.pump()
	out := k.out
	k.out = nil
	return out
}

// sleep moves the clock on, stopping wherever a timer is due.
func (k *kit) sleep(d int64) {
	for end := k.now + d; ; {
		k.now = min(end, max(k.now, k.h.NextDeadline()))
		k.h.Tick(k.now)
		k.pump()
		if k.now == end {
			return
		}
	}
}

// drops is the counters' difference to before, by name of the reason.
func (k *kit) drops(before Counters) map[Drop]uint64 {
	got := map[Drop]uint64{}
	for i, n := range k.h.counters.Drops {
		if d := n - before.Drops[i]; d != 0 {
			got[Drop(i)] = d
		}
	}
	return got
}

// wantDrops checks that what f does is counted as given and as nothing else.
func (k *kit) wantDrops(f func(), want map[Drop]uint64) {
	k.t.Helper()
	before := k.h.counters
	f()
	got := k.drops(before)
	for d, n := range want {
		if got[d] != n {
			k.t.Errorf("%v counted %d times, want %d", d, got[d], n)
		}
	}
	for d, n := range got {
		if want[d] == 0 {
			k.t.Errorf("%v counted %d times, want none", d, n)
		}
	}
}

// finish closes all sockets, lets all time pass, and checks that every frame came back.
func (k *kit) finish() {
	k.t.Helper()
	h := k.h
	for _, s := range openSockets(h) {
		if err := h.Close(s, k.now); err != 0 {
			k.t.Fatalf("Close of an open socket: %v", err)
		}
	}
	k.late = false
	k.complete(len(k.device))
	for step := 0; ; step++ {
		if step > 200_000 {
			k.t.Fatal("timers never come to an end")
		}
		k.pump()
		at := h.NextDeadline()
		if at == math.MaxInt64 && len(h.tcp.dirty) == 0 { // else EndTurn woke somebody, whose turn is the next
			break
		}
		if at != math.MaxInt64 {
			k.now = max(k.now, at)
			h.Tick(k.now)
		}
	}
	for _, f := range k.fill {
		k.pool.Put(f, umem.Fill)
	}
	k.fill = nil
	rx, _, tx, _ := h.Held()
	if rx != 0 || tx != 0 || k.pool.Avail() != k.pool.Total() {
		k.t.Errorf("after everything was closed: %d received and %d outgoing frames held, %d of %d free; by owner: %v",
			rx, tx, k.pool.Avail(), k.pool.Total(), k.pool.Ledger().Counts())
	}
	if h.tcp.conns != 0 || h.tcp.flows.n != 0 || h.udp.flows.n != 0 || h.tcp.bound.n != 0 || len(h.udp.ports)+len(h.tcp.ports) != 0 {
		k.t.Errorf("after everything was closed: %d connections, %d, %d and %d table entries, %d ports",
			h.tcp.conns, h.tcp.flows.n, h.udp.flows.n, h.tcp.bound.n, len(h.udp.ports)+len(h.tcp.ports))
	}
	if h.tcp.setBy != [256]int32{} {
		k.t.Errorf("after everything was closed: settings are had by %v", h.tcp.setBy)
	}
	if h.neigh.waiting != 0 || h.frags.frames != 0 || h.timers.n != 0 {
		k.t.Errorf("left over: %d frames at neighbours, %d in reassembly, %d timers",
			h.neigh.waiting, h.frags.frames, h.timers.n)
	}
	h.tcp.each(func(i uint32, c *tcb) { k.t.Errorf("connection %d still in use in %s", i, tcpStateNames[c.state]) })
	if h.tcp.act.n != 0 || h.tcp.half.n != 0 || h.tcp.tw.n != 0 {
		k.t.Errorf("left over: %d active records, %d half-open, %d in TIME-WAIT", h.tcp.act.n, h.tcp.half.n, h.tcp.tw.n)
	}
}

// openSockets lists the handles that somebody owns. A connection nobody accepted belongs to its listener.
func openSockets(h *Host) []Handle {
	var out []Handle
	for i := range h.udp.socks {
		if u := &h.udp.socks[i]; u.used {
			out = append(out, h.udp.handle(u, uint32(i)))
		}
	}
	for i := range h.tcp.listeners {
		if l := &h.tcp.listeners[i]; l.used {
			out = append(out, makeHandle(kindListener, l.gen, uint32(i)))
		}
	}
	h.tcp.each(func(i uint32, c *tcb) {
		if !c.orphan && !c.embryo {
			out = append(out, h.tcp.handle(i))
		}
	})
	return out
}

// events gives what TakeEvents gives, by socket.
func (k *kit) events() map[Handle]Ready {
	got := map[Handle]Ready{}
	for _, e := range k.h.TakeEvents(nil) {
		if _, twice := got[e.Sock]; twice {
			k.t.Errorf("two events for socket %#x", e.Sock)
		}
		got[e.Sock] = k.h.Ready(e.Sock)
	}
	return got
}

func port(a proto.Addr, p uint16) netip.AddrPort { return netip.AddrPortFrom(a.Netip(), p) }

func concat(parts ...[]byte) []byte {
	var b []byte
	for _, p := range parts {
		b = append(b, p...)
	}
	return b
}

func be16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func be32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }

// pattern makes n bytes that repeat only after 65521.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i % 65521 * 167 >> 4)
	}
	return b
}
