package reactor_test

import (
	"encoding/binary"
	"iter"
	"net/netip"

	"xdpd/proto"
)

// Ports of the engine.
const (
	tcpPort    = 7
	mutePort   = 666 // nobody reads it
	closedPort = 999
	waitPort   = 3000 // and the following: read after Poller.Wait
)

var echoPorts = [...]uint16{7, 9, 9000}

// udpModel is what the peers sent by UDP and ICMP, and what became of it.
type udpModel struct {
	w           *world
	sent        map[uint64]*datagram
	short       map[uint16]uint64 // serial by source port, for datagrams too short to carry it
	serial      uint64
	unsolicited map[uint64]int // sizes of what the program sent by itself
	seen        map[uint64]bool
	echoes      uint64
	pongs       uint64
	outstanding int // clean runs: frames that the requests without an answer, or their answers, need
}

// datagram is one message with its serial number.
type datagram struct {
	src          proto.Addr
	sport, dport uint16 // 0: a ping
	size         int    // payload bytes
	ping         bool
	rest         uint32 // id and sequence number of a ping
	answer       bool   // it should come back
	frames       int
	copies       int // how often it will arrive as a whole
	received     int // by the program
	echoed       int // by us, without the wire's copies
}

func newUDPModel(w *world) *udpModel {
	return &udpModel{
		w: w, sent: make(map[uint64]*datagram), short: make(map[uint16]uint64),
		unsolicited: make(map[uint64]int), seen: make(map[uint64]bool),
	}
}

// least is how often it must come back when there are no faults but copies: of fragments that come twice a receiver may
// make one datagram or two.
func (d *datagram) least() int {
	if d.frames > 1 {
		return min(1, d.copies)
	}
	return d.copies
}

// inOrder goes through what was sent, oldest first.
func (m *udpModel) inOrder() iter.Seq2[uint64, *datagram] {
	return func(yield func(uint64, *datagram) bool) {
		for serial := uint64(1); serial <= m.serial; serial++ {
			if d := m.sent[serial]; d != nil && !yield(serial, d) {
				return
			}
		}
	}
}

// fillPayload writes the serial number and a pattern that follows from it.
func fillPayload(b []byte, serial uint64) {
	if len(b) < 8 {
		for i := range b {
			b[i] = byte(len(b))
		}
		return
	}
	binary.BigEndian.PutUint64(b, serial)
	for i := 8; i < len(b); i++ {
		b[i] = byte(serial*167 + uint64(i)*31 + uint64(i)>>8)
	}
}

func payloadIs(b []byte, serial uint64) bool {
	want := make([]byte, len(b))
	fillPayload(want, serial)
	return string(want) == string(b)
}

// act sends what a step brings.
func (m *udpModel) act() {
	if !m.w.p.udp {
		return
	}
	if m.w.p.clean {
		for m.w.chance(0.8) && m.sendClean() {
		}
		return
	}
	for m.w.chance(0.7) {
		m.send()
	}
}

// frames is how many frames a message of n bytes of IP payload takes, either way.
func (m *udpModel) frames(n int) int {
	per := (m.w.p.mtu - 20 - 4) &^ 7 // 4 for options
	return (n + per - 1) / per
}

// sendClean keeps a closed loop of requests that fits into every queue on the way, and tells whether it is open.
func (m *udpModel) sendClean() bool {
	p := &m.w.p
	_, rxLimit, tx, txLimit := m.w.host.Held()
	arp := 2*p.stations + 5 // what ARP may need beside
	window := min(min(p.fillFrames/2, int(p.rxRing))-arp, rxLimit/4-2, p.rcvBuf/p.chunk-2, txLimit/4-2)
	pings := m.w.steps%2 == 0
	if pings { // they are dropped when no frame can be sent; echoes wait
		window -= tx
	}
	if p.in.Duplicate > 0 {
		window /= 3
	}
	room := window - m.outstanding
	if room <= 0 {
		return false
	}
	size := m.size()
	for m.frames(size+8) > room {
		size /= 2
	}
	if pings && m.w.chance(0.3) {
		m.ping(max(8, size))
	} else {
		m.datagram(echoPorts[m.w.rng.IntN(len(echoPorts))], size, true)
	}
	return true
}

func (m *udpModel) size() int {
	rng := m.w.rng
	switch rng.IntN(10) {
	case 0:
		return rng.IntN(8)
	case 1:
		return rng.IntN(9000)
	case 2, 3, 4:
		return m.w.p.mtu - 28 - rng.IntN(16)
	}
	return 8 + rng.IntN(200)
}

func (m *udpModel) send() {
	rng := m.w.rng
	switch n := rng.IntN(20); {
	case n < 12:
		m.datagram(echoPorts[rng.IntN(len(echoPorts))], m.size(), true)
	case n < 14:
		m.datagram(mutePort, m.size(), false)
	case n < 16:
		m.datagram(waitPort+uint16(rng.IntN(waitSockets)), m.size(), false)
	case n < 17:
		m.datagram(closedPort, m.size(), false)
	default:
		m.ping(max(8, m.size()))
	}
}

func (m *udpModel) datagram(dport uint16, size int, answer bool) {
	m.serial++
	st, src := m.w.peer.source()
	d := &datagram{src: src, sport: uint16(20000 + m.w.rng.IntN(8)), dport: dport, size: size, answer: answer}
	if size < 8 {
		d.sport = uint16(30000 + m.serial%20000)
		m.short[d.sport] = m.serial
	}
	b := make([]byte, 8+size)
	fillPayload(b[8:], m.serial)
	pseudo := proto.PseudoSum(src, engineAddr, proto.ProtoUDP, len(b))
	proto.PutUDP(b, d.sport, dport, len(b), 0)
	sum := ^proto.Fold(proto.Sum(b, pseudo))
	if sum == 0 {
		sum = 0xffff
	}
	switch {
	case m.w.chance(m.w.p.noSum):
		sum = 0
	case m.w.p.partial && m.w.chance(0.5):
		sum = proto.Fold(pseudo)
	}
	proto.PutUDP(b, d.sport, dport, len(b), sum)
	m.launch(d, func() int { return m.w.peer.sendIP(st, src, proto.ProtoUDP, b) }, len(b))
}

func (m *udpModel) ping(size int) {
	m.serial++
	st, src := m.w.peer.source()
	d := &datagram{src: src, size: size, ping: true, rest: m.w.rng.Uint32(), answer: true}
	b := make([]byte, 8+size)
	proto.PutICMP(b, proto.ICMPEcho, 0, d.rest)
	fillPayload(b[8:], m.serial)
	proto.SetICMPChecksum(b)
	m.launch(d, func() int { return m.w.peer.sendIP(st, src, proto.ProtoICMP, b) }, len(b))
}

func (m *udpModel) launch(d *datagram, send func() int, n int) {
	d.frames = m.frames(n)
	m.sent[m.serial] = d
	if d.answer {
		m.outstanding += d.frames
	}
	d.copies = send()
}

// find gives the datagram that a payload belongs to; port is the peer's.
func (m *udpModel) find(payload []byte, port uint16) (uint64, *datagram) {
	serial := m.short[port]
	if len(payload) >= 8 {
		serial = binary.BigEndian.Uint64(payload)
	}
	return serial, m.sent[serial]
}

// arrived is called when the program got a datagram on port: whole bytes of it, of which payload fitted its buffer.
func (m *udpModel) arrived(port uint16, payload []byte, whole int, from netip.AddrPort) {
	src, _ := proto.AddrFrom(from.Addr())
	serial, d := m.find(payload, from.Port())
	if len(payload) < whole && len(payload) < 8 { // cut off before the serial number
		return
	}
	switch {
	case d == nil:
		m.w.fail("the program got a datagram from %v that nobody sent: % x", from, payload)
	case d.src != src || d.sport != from.Port() || d.dport != port || d.size != whole || d.ping || !payloadIs(payload, serial):
		m.w.fail("datagram %d (%+v) reached the program on port %d from %v with %d bytes: % x",
			serial, *d, port, from, whole, payload)
	}
	if d.received++; d.received > d.copies {
		m.w.fail("datagram %d was sent %d times and delivered %d times", serial, d.copies, d.received)
	}
}

// receive takes a UDP packet of the engine.
func (m *udpModel) receive(h *proto.IPv4, b []byte, copied bool, bad func(string, ...any)) {
	u, fault := proto.ParseUDP(b)
	if fault != proto.OK || int(u.Len) != len(b) || u.Checksum == 0 ||
		proto.VerifyL4(b, u.Checksum, proto.PseudoSum(h.Src, h.Dst, h.Proto, len(b))) != proto.L4Good {
		bad("%v: %v %v", h, u, fault)
		return
	}
	payload := b[8:]
	if u.DstPort == discardPort {
		m.receiveUnsolicited(payload, copied)
		return
	}
	serial, d := m.find(payload, u.DstPort)
	switch {
	case d == nil:
		m.w.fail("%v: %v is an answer to nothing", h, u)
	case d.src != h.Dst || d.sport != u.DstPort || d.dport != u.SrcPort || d.size != len(payload) || !payloadIs(payload, serial):
		m.w.fail("datagram %d (%+v) came back as %v: %v, % x", serial, *d, h, u, payload)
	}
	if m.answered(d, copied); d.echoed > d.received {
		m.w.fail("datagram %d was delivered %d times and came back %d times", serial, d.received, d.echoed)
	}
	m.echoes++
}

func (m *udpModel) answered(d *datagram, copied bool) {
	if copied {
		return
	}
	if d.echoed++; d.echoed == d.least() {
		m.outstanding -= d.frames
	}
}

func (m *udpModel) receiveUnsolicited(payload []byte, copied bool) {
	id := binary.BigEndian.Uint64(payload)
	size, ok := m.unsolicited[id]
	if !ok || size != len(payload) || !payloadIs(payload, id) || !copied && m.seen[id] {
		m.w.fail("the program never sent this, or not once only: % x", payload)
	}
	m.seen[id] = m.seen[id] || !copied
}

// receiveICMP takes an ICMP packet of the engine.
func (m *udpModel) receiveICMP(h *proto.IPv4, b []byte, copied bool, bad func(string, ...any)) {
	c, fault := proto.ParseICMP(b)
	if fault != proto.OK {
		bad("%v: %v %v", h, c, fault)
		return
	}
	if c.Type == proto.ICMPEchoReply {
		m.pong(h, &c, b[8:], copied)
		return
	}
	q, fault := proto.ParseIPv4(append(append([]byte{}, b[8:]...), make([]byte, 65535)...))
	if len(b) < 28 || fault != proto.OK || q.Src != h.Dst || len(b) > 576-20 {
		m.w.fail("%v: %v quotes what we did not send: %v\n% x", h, c, fault, b)
	}
}

func (m *udpModel) pong(h *proto.IPv4, c *proto.ICMP, payload []byte, copied bool) {
	if len(payload) < 8 {
		m.w.fail("%v: %v answers nothing", h, c)
	}
	serial, d := m.find(payload, 0)
	if d == nil || !d.ping || d.src != h.Dst || d.rest != c.Rest || d.size != len(payload) || !payloadIs(payload, serial) {
		m.w.fail("%v: %v answers no ping of ours: % x", h, c, payload)
	}
	if m.answered(d, copied); d.echoed > d.copies {
		m.w.fail("ping %d was sent %d times and answered %d times", serial, d.copies, d.echoed)
	}
	m.pongs++
}
