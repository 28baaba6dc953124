package reactor_test

import (
	"math/bits"
	"net/netip"

	"xdpd/proto"
	"xdpd/sockets"
)

// tcpModel is the peers' TCP: clients that send a stream and want it back, byte for byte. Go-back-N, a fixed window,
// nothing clever: what RFC 9293 makes a receiver accept, and no more.
type tcpModel struct {
	w     *world
	all   []*client
	ports map[flow]*client // latest of each flow
	used  map[flow]int64   // when it ended
	iss   uint32
}

type flow struct {
	ip   proto.Addr
	port uint16
}

const (
	clientPort  = 10000
	clientPorts = 6
)

type clientState int

const (
	synSent clientState = iota
	open
	reset    // by the engine
	aborted  // by us
	vanished // we say nothing more
)

// client is one connection. Names are RFC 9293 3.3.1's, from our side.
type client struct {
	m     *tcpModel
	st    station
	f     flow
	state clientState

	total        int // bytes to send, and to get back
	mss          uint16
	ws           int // offered scale; -1: none
	ts           bool
	sendScale    uint8
	peerMSS      int
	salt         uint64 // of the byte pattern
	iss, una     uint32
	nxt, max     uint32
	irs, rcvNxt  uint32
	wnd          uint32
	edge         uint32 // the furthest that we allowed the engine to send to
	buffer       int    // our receive window when all is read
	unread       int
	got          int
	tsRecent     uint32
	rcvFIN       bool
	ackDue       bool
	rtxAt, ackAt int64
	readAt       int64 // our reader sleeps until then
	rto          int64
	retries      int
	abortAt      int     // bytes received at which we abort or vanish; -1: never
	sleepy       float64 // how often our reader stops
	wasAccepted  bool
	excused      bool // the program did something that ends the connection early
}

func newTCPModel(w *world) *tcpModel {
	return &tcpModel{w: w, ports: make(map[flow]*client), used: make(map[flow]int64), iss: w.rng.Uint32()}
}

// act opens connections and sends noise.
func (m *tcpModel) act() {
	if !m.w.p.tcp {
		return
	}
	if m.w.chance(0.15) {
		m.dial()
	}
	m.timers()
}

// timers does what is due.
func (m *tcpModel) timers() (n int) {
	for _, k := range m.all {
		n += k.timer()
	}
	return n
}

func (m *tcpModel) next() (at int64, ok bool) {
	for _, k := range m.all {
		for _, d := range [...]int64{k.rtxAt, k.ackAt, k.readAt} {
			if d != 0 && (!ok || d < at) {
				at, ok = d, true
			}
		}
	}
	return at, ok
}

func (m *tcpModel) dial() {
	rng := m.w.rng
	st, ip := m.w.peer.source()
	f := flow{ip, clientPort + uint16(rng.IntN(clientPorts))}
	now := m.w.clock.Now()
	if old := m.ports[f]; old != nil {
		if old.state != reset && !old.finished() {
			return // the engine may still have it
		}
		if m.used[f] == 0 {
			m.used[f] = now
		}
		if now-m.used[f] < 2*simSecond { // ISNs move on by the clock (RFC 9293 3.4.1)
			return
		}
		m.used[f] = 0
	}
	m.iss += 1 << 20
	k := &client{
		m: m, st: st, f: f, total: rng.IntN(1 << (4 + rng.IntN(12))), mss: uint16(between(rng, 200, 1460)), ws: rng.IntN(16) - 1,
		ts: rng.IntN(2) == 0, salt: rng.Uint64(), iss: m.iss, buffer: between(rng, 600, 30_000), rto: 300_000_000,
		abortAt: -1, sleepy: 0.05,
	}
	if rng.IntN(2) == 0 {
		k.buffer, k.sleepy = between(rng, 600, 3000), 0.4
	}
	k.ws = min(k.ws, bits.Len(uint(k.buffer))-8) // the window must not round to nothing
	if rng.IntN(5) == 0 {
		k.mss = 0 // none offered: 536
	}
	if !m.w.p.clean && rng.IntN(6) == 0 {
		k.abortAt = rng.IntN(k.total + 1)
	}
	k.una, k.nxt, k.max = k.iss, k.iss, k.iss
	m.all, m.ports[f] = append(m.all, k), k
	k.retransmit()
}

// pattern is byte i of the stream.
func (k *client) pattern(i int) byte {
	x := (uint64(i) + k.salt) * 0x9e3779b97f4a7c15
	return byte(x >> 56)
}

// finished: both directions are closed and everything came back.
func (k *client) finished() bool {
	return k.rcvFIN && k.una == k.iss+1+uint32(k.total)+1
}

// accepted is called when the program accepts a connection.
func (m *tcpModel) accepted(remote netip.AddrPort) {
	if k := m.client(remote); k != nil {
		k.wasAccepted = true
	}
}

// excuse is called when the program ends a connection early.
func (m *tcpModel) excuse(remote netip.AddrPort) {
	if k := m.client(remote); k != nil {
		k.excused = true
	}
}

func (m *tcpModel) client(remote netip.AddrPort) *client {
	ip, _ := proto.AddrFrom(remote.Addr())
	return m.ports[flow{ip, remote.Port()}]
}

func (m *tcpModel) vanishAll() {
	for _, k := range m.all {
		k.silent(vanished)
	}
}

// keepAlive has everybody ask who has nothing to send, and so would never hear that the engine has forgotten him when the
// reset was lost (RFC 9293 3.8.4). Who is answered with a reset is judged, who is answered with an ACK still has a connection.
func (m *tcpModel) keepAlive() {
	for _, k := range m.all {
		if k.state == open && k.rtxAt == 0 {
			k.send(proto.ACK, k.max-1, 0, &proto.TCPOptions{})
		}
	}
}

// silent stops all timers.
func (k *client) silent(s clientState) {
	k.state, k.rtxAt, k.ackAt, k.readAt = s, 0, 0, 0
}

// timer does what is due and tells how much that was.
func (k *client) timer() (n int) {
	now := k.m.w.clock.Now()
	if k.readAt != 0 && k.readAt <= now {
		k.readAt, k.unread = 0, 0
		k.ackDue = k.state == open
		n++
	}
	if k.rtxAt != 0 && k.rtxAt <= now {
		k.retransmit()
		n++
	}
	if k.ackAt != 0 && k.ackAt <= now {
		k.ackDue = true
		n++
	}
	k.push()
	return n
}

// retransmit goes back to the first byte that is not acknowledged, or probes a closed window.
func (k *client) retransmit() {
	k.nxt = k.una
	if k.retries++; k.retries < 20 {
		k.rto = min(2*k.rto, 3*simSecond)
	} else {
		k.rto = min(2*k.rto, 600*simSecond) // it is probably over, and only checkLive has to see it
	}
	k.rtxAt = k.m.w.clock.Now() + k.rto
	switch {
	case k.state == synSent:
		opt := proto.TCPOptions{MSS: k.mss, SACKPermitted: k.salt&1 == 0}
		if k.ws >= 0 {
			opt.HasWScale, opt.WScale = true, uint8(k.ws)
		}
		k.send(proto.SYN, k.iss, 0, &opt)
		k.nxt, k.max = k.iss+1, k.iss+1
	case k.wnd == 0 && k.nxt == k.una && k.nxt-k.iss-1 < uint32(k.total):
		k.sendData(1) // a probe of one byte: it does not count as sent (RFC 9293 3.8.6.1), or no ACK would be acceptable
		k.nxt = k.una
	}
}

// push sends what the engine's window allows, at most eight segments ahead, then FIN, then an ACK that is due.
func (k *client) push() {
	if k.state != open {
		return
	}
	size := min(k.peerMSS, k.m.w.p.mtu-40)
	if k.ts {
		size -= 12
	}
	for {
		at := int(k.nxt - k.iss - 1)
		n := min(size, k.total-at, int(k.wnd)-int(k.nxt-k.una))
		if n <= 0 || k.nxt-k.una >= uint32(8*size) {
			break
		}
		if k.m.w.chance(0.1) {
			n = 1 + k.m.w.rng.IntN(n)
		}
		k.sendData(n)
	}
	if k.nxt == k.iss+1+uint32(k.total) {
		k.send(proto.FIN|proto.ACK, k.nxt, 0, &proto.TCPOptions{})
		k.advance(1)
	}
	if k.ackDue {
		// Not nxt, which a timeout sets back; nor a probe's byte behind the window.
		seq := k.max
		if edge := k.una + k.wnd; int32(seq-edge) > 0 {
			seq = edge
		}
		k.send(proto.ACK, seq, 0, &proto.TCPOptions{})
	}
	k.arm()
}

func (k *client) sendData(n int) {
	at := int(k.nxt - k.iss - 1)
	k.send(proto.ACK|proto.PSH, k.nxt, min(n, k.total-at), &proto.TCPOptions{})
	k.advance(min(n, k.total-at))
}

func (k *client) advance(n int) {
	k.nxt += uint32(n)
	if int32(k.nxt-k.max) > 0 {
		k.max = k.nxt
	}
}

// arm keeps the retransmission timer running while something is to be acknowledged or sent.
func (k *client) arm() {
	left := k.una != k.iss+1+uint32(k.total)+1
	switch {
	case !left:
		k.rtxAt = 0
	case k.rtxAt == 0:
		k.rtxAt = k.m.w.clock.Now() + k.rto
	}
}

// send sends one segment with n bytes of the stream.
func (k *client) send(flags uint8, seq uint32, n int, opt *proto.TCPOptions) {
	h := proto.TCP{SrcPort: k.f.port, DstPort: tcpPort, Seq: seq, Flags: flags}
	room := uint32(k.buffer - k.unread)
	if flags&proto.ACK == 0 {
		h.Window = uint16(min(room, 0xffff)) // a SYN's is not scaled
	} else {
		// The window never shrinks: its edge stays where it was (RFC 9293 3.8.6).
		room = max(room, uint32(max(0, int32(k.edge-k.rcvNxt))))
		h.Ack, h.Window = k.rcvNxt, uint16(min(room>>k.scale(), 0xffff))
		if edge := k.rcvNxt + uint32(h.Window)<<k.scale(); int32(edge-k.edge) > 0 {
			k.edge = edge
		}
		k.ackDue, k.ackAt = false, 0
	}
	if k.ts {
		opt.HasTS, opt.TSVal, opt.TSEcr = true, uint32(k.m.w.clock.Now()/1_000_000), k.tsRecent
	}
	at := int(seq - k.iss - 1)
	data := make([]byte, n)
	for i := range data {
		data[i] = k.pattern(at + i)
	}
	k.m.sendSegment(k.st, k.f.ip, &h, opt, data)
}

func (k *client) scale() uint8 { return uint8(max(0, k.ws)) }

func (m *tcpModel) sendSegment(st station, src proto.Addr, h *proto.TCP, opt *proto.TCPOptions, data []byte) {
	b := make([]byte, 20+opt.Len()+len(data))
	h.DataOff = uint8(20 + proto.PutTCPOptions(b[20:], opt))
	copy(b[h.DataOff:], data)
	h.Checksum = 0
	proto.PutTCP(b, h)
	pseudo := proto.PseudoSum(src, engineAddr, proto.ProtoTCP, len(b))
	if h.Checksum = ^proto.Fold(proto.Sum(b, pseudo)); m.w.p.partial && m.w.chance(0.5) {
		h.Checksum = proto.Fold(pseudo)
	}
	proto.PutTCP(b, h)
	m.w.peer.sendIP(st, src, proto.ProtoTCP, b)
}

func (m *tcpModel) sendRST(st station, from flow, seq uint32) {
	h := proto.TCP{SrcPort: from.port, DstPort: tcpPort, Seq: seq, Flags: proto.RST}
	m.sendSegment(st, from.ip, &h, &proto.TCPOptions{}, nil)
}

// receive takes a TCP packet of the engine.
func (m *tcpModel) receive(ip *proto.IPv4, b []byte, bad func(string, ...any)) {
	h, fault := proto.ParseTCP(b)
	if fault != proto.OK || proto.VerifyL4(b, h.Checksum, proto.PseudoSum(ip.Src, ip.Dst, ip.Proto, len(b))) != proto.L4Good {
		bad("%v: %v %v", ip, h, fault)
		return
	}
	if k := m.ports[flow{ip.Dst, h.DstPort}]; k != nil && k.state != vanished && k.state != aborted {
		var opt proto.TCPOptions
		proto.ParseTCPOptions(b[20:h.DataOff], &opt)
		k.segment(&h, &opt, b[h.DataOff:])
		return
	}
	if h.DstPort < noisePort && m.ports[flow{ip.Dst, h.DstPort}] == nil && !m.w.p.strayARP() {
		m.w.fail("%v: %v belongs to no connection", ip, h)
	}
	if k := m.ports[flow{ip.Dst, h.DstPort}]; k != nil && k.state == vanished {
		return
	}
	if h.Flags&proto.RST == 0 && h.Flags&proto.ACK != 0 && m.w.rng.IntN(2) == 0 {
		if st, ok := m.w.peer.stationFor(ip.Dst); ok {
			m.sendRST(st, flow{ip.Dst, h.DstPort}, h.Ack)
		}
	}
}

// segment handles one that the engine sent on k's flow.
func (k *client) segment(h *proto.TCP, opt *proto.TCPOptions, data []byte) {
	switch {
	case k.state == synSent:
		k.synAnswer(h, opt)
	case h.Flags&proto.RST != 0:
		if h.Seq == k.rcvNxt && k.state == open && !k.finished() {
			k.m.checkReset(k)
			k.silent(reset)
		}
	case k.state == open && h.Flags&proto.SYN != 0:
		k.ackDue = true // our ACK of it was lost, or the wire doubled it
	case k.state == open && h.Flags&proto.ACK != 0:
		k.established(h, opt, data)
	}
	k.push()
}

// synAnswer is SYN-SENT (RFC 9293 3.10.7.3).
func (k *client) synAnswer(h *proto.TCP, opt *proto.TCPOptions) {
	if h.Flags&proto.ACK == 0 {
		return
	}
	if h.Ack != k.iss+1 {
		if h.Flags&proto.RST == 0 {
			k.m.sendRST(k.st, k.f, h.Ack)
		}
		return
	}
	if h.Flags&proto.RST != 0 {
		if !k.m.w.p.clean {
			k.silent(reset) // the listener was closed
			return
		}
		k.m.w.fail("a SYN was reset: %v", h)
	}
	if h.Flags&proto.SYN == 0 {
		return
	}
	mtu := k.m.w.p.mtu
	if int(opt.MSS) != mtu-40 || opt.HasTS != k.ts || opt.HasWScale && k.ws < 0 || opt.SACKPermitted && k.salt&1 != 0 {
		k.m.w.fail("SYN-ACK %v with options %v for mss %d, scale %d, timestamps %v", h, opt, k.mss, k.ws, k.ts)
	}
	k.state, k.irs, k.rcvNxt, k.una = open, h.Seq, h.Seq+1, k.iss+1
	k.nxt, k.max, k.edge = k.una, k.una, k.rcvNxt+uint32(min(k.buffer, 0xffff))
	k.peerMSS, k.wnd, k.tsRecent = int(opt.MSS), uint32(h.Window), opt.TSVal
	k.rto, k.rtxAt = 300_000_000, 0
	if opt.HasWScale {
		k.sendScale = opt.WScale
	} else {
		k.ws = -1
	}
	k.ackDue = true
}

// established takes ACK, window, data and FIN.
func (k *client) established(h *proto.TCP, opt *proto.TCPOptions, data []byte) {
	w := k.m.w
	if int32(h.Seq-k.irs) < 0 && int32(h.Ack-k.una) < 0 {
		k.ackDue = true // of an earlier connection
		return
	}
	if opt.HasTS != k.ts && !w.p.strayTCP() { // a forged SYN may have taken the place of a connection that is gone
		w.fail("%v: timestamps %v, agreed were %v", h, opt.HasTS, k.ts)
	}
	k.checkData(h, data)
	if int32(h.Ack-k.max) > 0 && !w.p.strayTCP() {
		w.fail("%v acknowledges what was never sent; we are at %d", h, k.max)
	}
	if int32(h.Ack-k.una) > 0 && int32(h.Ack-k.max) <= 0 {
		k.una, k.rtxAt, k.rto, k.retries = h.Ack, 0, 300_000_000, 0
		if int32(k.nxt-k.una) < 0 {
			k.nxt = k.una
		}
	}
	if int32(h.Ack-k.una) >= 0 {
		k.wnd = uint32(h.Window) << k.sendScale
	}
	if k.ts && int32(h.Seq-k.rcvNxt) <= 0 && int32(opt.TSVal-k.tsRecent) > 0 {
		k.tsRecent = opt.TSVal
	}
	k.take(h, data)
}

// checkData compares every byte that falls into our window, in order or not, with what it must be.
func (k *client) checkData(h *proto.TCP, data []byte) {
	w := k.m.w
	at := int(int32(h.Seq - k.irs - 1))
	if at < 0 || len(data) == 0 {
		return
	}
	limit := min(int(k.mss), w.p.mtu-40)
	if k.mss == 0 {
		limit = min(536, w.p.mtu-40)
	}
	if k.ts {
		limit -= 12
	}
	sent := int(k.max - k.iss - 1)
	switch {
	case len(data) > limit:
		w.fail("%v: %d bytes, the largest segment is %d", h, len(data), limit)
	case int32(h.Seq+uint32(len(data))-k.edge) > 0:
		w.fail("%v: %d bytes; the window ends at %d", h, len(data), k.edge)
	case at+len(data) > min(sent, k.total):
		w.fail("%v: byte %d of the echo, of which %d were sent", h, at+len(data), sent)
	}
	for i, b := range data {
		if b != k.pattern(at+i) {
			w.fail("%v: byte %d of the echo is %#x, sent was %#x", h, at+i, b, k.pattern(at+i))
		}
	}
}

// take accepts what is next in the stream.
func (k *client) take(h *proto.TCP, data []byte) {
	fin := h.Flags&proto.FIN != 0
	if len(data) == 0 && !fin {
		if int32(h.Seq-k.rcvNxt) < 0 {
			k.ackDue = true // outside the window: a probe of ours, perhaps (RFC 9293 3.10.7.4)
		}
		return
	}
	k.ackLater(int32(h.Seq-k.rcvNxt) > 0)
	skip := int(int32(k.rcvNxt - h.Seq))
	if skip < 0 || skip > len(data) || k.rcvFIN {
		k.ackDue = true
		return
	}
	n := len(data) - skip
	k.rcvNxt += uint32(n)
	k.got += n
	k.read(n)
	if fin {
		if k.got != k.total && !k.excused {
			k.m.w.fail("%v ends the echo after %d of %d bytes", h, k.got, k.total)
		}
		k.rcvNxt++
		k.rcvFIN, k.ackDue = true, true
	}
	if k.abortAt >= 0 && k.got >= k.abortAt {
		k.leave()
	}
}

// ackLater acknowledges at once, or in a while.
func (k *client) ackLater(now bool) {
	switch {
	case now || k.m.w.chance(0.5):
		k.ackDue = true
	case k.ackAt == 0:
		k.ackAt = k.m.w.clock.Now() + k.m.w.rng.Int64N(100_000_000)
	}
}

// read has the client's program take n bytes at once, or later: then the window shrinks.
func (k *client) read(n int) {
	if k.readAt == 0 && !k.m.w.chance(k.sleepy) {
		return
	}
	k.unread = min(k.unread+n, k.buffer)
	if k.readAt == 0 {
		k.readAt = k.m.w.clock.Now() + k.m.w.rng.Int64N(2*simSecond)
	}
}

// leave breaks the connection off, with a RST or without a word.
func (k *client) leave() {
	if k.m.w.rng.IntN(2) == 0 {
		k.send(proto.RST|proto.ACK, k.nxt, 0, &proto.TCPOptions{})
		k.silent(aborted)
		return
	}
	k.silent(vanished)
}

// checkReset: the engine resets only what its program gave up, or never had.
func (m *tcpModel) checkReset(k *client) {
	pressed := m.w.host.Counters().Stats[sockets.TCPPressure] > 0 // it took nothing for a minute while frames were short
	if k.wasAccepted && !k.excused && !pressed || m.w.p.clean {
		m.w.fail("the engine reset a connection from %v:%d at %d of %d bytes", k.f.ip, k.f.port, k.got, k.total)
	}
}

// checkLive holds when everything had its time.
func (k *client) checkLive() {
	w := k.m.w
	if k.state >= reset || k.excused || k.finished() && k.got == k.total {
		return
	}
	if !k.wasAccepted && !w.p.clean {
		return // the engine may have forgotten it, what says so was lost; or has no room for another
	}
	w.fail("the connection from %v:%d hangs at %d of %d bytes, state %d, una %d nxt %d, window %d, FIN %v\n%+v\n%s",
		k.f.ip, k.f.port, k.got, k.total, k.state, k.una-k.iss, k.nxt-k.iss, k.wnd, k.rcvFIN,
		w.host.TCPSockets(), hostCounters(w.host.Counters()))
}
