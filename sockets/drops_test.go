package sockets

import (
	"strings"
	"testing"

	"xdpd/proto"
	"xdpd/umem"
)

// dropCase produces one drop reason. make prepares a Host and returns what is then counted: why exactly once, and also,
// if there is something, once each.
type dropCase struct {
	why  Drop
	make func(t *testing.T) (*kit, func(k *kit))
	also []Drop
}

// frameCase is a case for which one frame to a fresh Host is enough.
func frameCase(why Drop, frame []byte) dropCase {
	return dropCase{why: why, make: func(t *testing.T) (*kit, func(*kit)) {
		return arpKit(t), func(k *kit) { k.inject(frame) }
	}}
}

// segCase is a case on an established connection.
func segCase(why Drop, change func(c conn, s *tcpSeg)) dropCase {
	return dropCase{why: why, make: func(t *testing.T) (*kit, func(*kit)) {
		k, c := established(t)
		return k, func(*kit) {
			s := c.seg(ack, nil)
			change(c, &s)
			c.inject(s)
		}
	}}
}

// mangled is a frame with one byte changed after all checksums were computed.
func mangled(frame []byte, at int, to byte) []byte {
	frame[at] = to
	return frame
}

// resummed is a frame with bytes of the IP header changed and the header's checksum right again.
func resummed(frame []byte, at int, to ...byte) []byte {
	copy(frame[at:], to)
	ip := frame[14:]
	ip[10], ip[11] = 0, 0
	n := min(len(ip), max(20, int(ip[0]&15)*4))
	sum := inetSum(ip[:n])
	ip[10], ip[11] = byte(sum>>8), byte(sum)
	return frame
}

// handCase is a case on the second Host of a group, whose first one gives it a packet.
func handCase(why Drop, act func(g *groupKit)) dropCase {
	return dropCase{why: why, make: func(t *testing.T) (*kit, func(*kit)) {
		g := newGroup(t)
		return g.b, func(*kit) { act(g) }
	}}
}

var dropCases = []dropCase{
	frameCase(Drop(proto.EthShort), make([]byte, 13)),
	frameCase(Drop(proto.EthVLAN), ethFrame(usMAC, peerMAC, 0x8100, []byte{0, 5, 0x81, 0, 0, 6, 0x81, 0, 0, 7, 8, 0})),
	frameCase(Drop(proto.EthLLC), ethFrame(usMAC, peerMAC, 100, make([]byte, 100))),
	frameCase(EthNotOurs, ethFrame(evilMAC, peerMAC, 0x0800, ipPacket{proto: 17}.bytes())),
	frameCase(EthVLANID, ethFrame(usMAC, peerMAC, 0x8100, concat(be16(5), be16(0x0800), ipPacket{proto: 17}.bytes()))),
	frameCase(EthType, ethFrame(usMAC, peerMAC, 0x86dd, make([]byte, 60))),
	frameCase(Drop(proto.ARPShort), arpRequest(peerMAC, peerIP, usIP)[:41]),
	frameCase(Drop(proto.ARPBad), mangled(arpRequest(peerMAC, peerIP, usIP), 18, 8)),
	frameCase(ARPNotOurs, arpRequest(peerMAC, peerIP, gwIP)),
	frameCase(ARPUnsolicited, arpReplyFrame(peerMAC, peerIP)),
	frameCase(ARPConflict, arpRequest(peerMAC, usIP, usIP)),

	frameCase(Drop(proto.IPShort), udpFrame(1, 2, nil)[:14+19]),
	frameCase(Drop(proto.IPVersion), resummed(udpFrame(1, 2, nil), 14, 0x65)),
	frameCase(Drop(proto.IPHeaderLen), resummed(udpFrame(1, 2, nil), 14, 0x44)),
	frameCase(Drop(proto.IPTotalLen), resummed(udpFrame(1, 2, nil), 16, 0, 29)),
	frameCase(Drop(proto.IPChecksum), mangled(udpFrame(1, 2, nil), 22, 63)),
	frameCase(Drop(proto.IPOptions), ipPacket{proto: 17, opts: []byte{7, 1, 0, 0}}.frame()),
	frameCase(IPNotOurs, ipPacket{dst: gwIP, proto: 17}.frame()),
	frameCase(IPMartianSource, ipPacket{src: usIP, proto: 17}.frame()),
	frameCase(IPMartianDest, ipPacket{dst: 0x7f000001, proto: 17}.frame()),
	frameCase(IPLinkBroadcast, ethFrame(proto.Broadcast, peerMAC, 0x0800, ipPacket{proto: 17}.bytes())),
	frameCase(IPSourceRoute, ipPacket{proto: 17, opts: []byte{131, 7, 4, 1, 2, 3, 4, 0}}.frame()),
	frameCase(IPProtocol, ipPacket{proto: 132, body: make([]byte, 12)}.frame()),
	frameCase(ICMPBroadcast, ipPacket{dst: 0x0a0000ff, proto: 1, body: icmpBytes(8, 0, 1, nil)}.frame()),
	frameCase(Drop(proto.ICMPShort), ipPacket{proto: 1, body: icmpBytes(8, 0, 1, nil)[:7]}.frame()),
	frameCase(Drop(proto.ICMPChecksum), mangled(icmpFrame(8, 0, 1, []byte("x")), 14+20+8, 'y')),
	frameCase(ICMPIgnored, icmpFrame(13, 0, 1, make([]byte, 12))),
	frameCase(Drop(proto.UDPShort), ipPacket{proto: 17, body: make([]byte, 7)}.frame()),
	frameCase(Drop(proto.UDPLen), ipPacket{proto: 17, body: []byte{0, 1, 0, 2, 0, 9, 0, 0}}.frame()),
	frameCase(Drop(proto.UDPChecksum), mangled(udpFrame(1, 2, []byte("x")), 14+20+8, 'y')),
	frameCase(UDPNoSocket, udpFrame(1, 2, nil)),
	frameCase(Drop(proto.TCPShort), ipPacket{proto: 6, body: make([]byte, 19)}.frame()),
	frameCase(Drop(proto.TCPDataOff), ipPacket{proto: 6, body: mangled(tcpSeg{flags: syn}.bytes(peerIP, usIP), 12, 0x40)}.frame()),
	frameCase(Drop(proto.TCPChecksum), mangled(tcpSeg{flags: syn}.frame(), 14+20+14, 1)),
	frameCase(TCPNoSocket, tcpSeg{sport: 1, dport: 2, flags: syn}.frame()),

	segCase(TCPOutOfWindow, func(c conn, s *tcpSeg) { s.seq += 1 << 30 }),
	segCase(TCPDuplicate, func(c conn, s *tcpSeg) { s.seq--; s.data = []byte("x") }),
	segCase(TCPNoACK, func(c conn, s *tcpSeg) { s.flags = 0 }),
	segCase(TCPBadFlag, func(c conn, s *tcpSeg) { s.flags = syn | ack }),

	{why: TCPPAWS, make: func(t *testing.T) (*kit, func(*kit)) {
		k, c := tsConn(t)
		return k, func(*kit) {
			c.tsval--
			c.send(psh|ack, []byte("old"))
		}
	}},
	{why: TCPClosed, make: func(t *testing.T) (*kit, func(*kit)) {
		k, c := established(t)
		k.h.Close(c.h, k.now)
		return k, func(*kit) { c.inject(c.seg(psh|ack, []byte("nobody reads this"))) }
	}},
	{why: TCPOutOfOrder, make: func(t *testing.T) (*kit, func(*kit)) {
		k, c := established(t)
		for i := range uint32(ofoMax) { // every second byte, until no more are kept
			if k.h.rxUsed >= k.h.rxLimit/2 {
				break
			}
			s := c.seg(ack, []byte("x"))
			s.seq += 1 + 2*i
			c.inject(s)
		}
		return k, func(*kit) {
			s := c.seg(ack, []byte("x"))
			s.seq += 10_000
			c.inject(s)
		}
	}},
	{why: TCPBacklogFull, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t, func(c *Config) { c.Backlog = 1 })
		k.h.TCPListen(0, svc)
		dial(k, svc, 1)
		return k, func(k *kit) { k.inject(tcpSeg{sport: 2, dport: svc, flags: syn}.frame()) }
	}},
	{why: UDPQueueFull, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t, func(c *Config) { c.RcvBuf = 2048 })
		k.h.UDPBind(0, 7)
		k.inject(udpFrame(1, 7, nil))
		return k, func(k *kit) { k.inject(udpFrame(1, 7, nil)) }
	}},
	{why: HandoverFull, make: func(t *testing.T) (*kit, func(*kit)) {
		g := newGroup(t)
		g.b.bind(0, 53)
		return g.a, func(k *kit) {
			k.inject(udpFrame(1000, 53, []byte("x")))
			for _, m := range k.h.TakeHanded(nil) {
				k.h.HandBack(&m)
			}
		}
	}},
	handCase(HandoverNoFrame, func(g *groupKit) {
		g.b.bind(0, 53)
		var taken []umem.Frame
		for f := g.b.pool.Get(umem.Lent); f != umem.None; f = g.b.pool.Get(umem.Lent) {
			taken = append(taken, f)
		}
		g.a.inject(udpFrame(1000, 53, []byte("x")))
		g.carry()
		g.b.pool.PutN(taken, umem.Lent)
	}),
	handCase(HandoverEarly, func(g *groupKit) {
		g.a.bind(0, 53)
		k := flowKey{Local: usIP, Remote: peerIP, LPort: 80, RPort: 1000}
		g.dir.set(g.a.h.sec.flow(k), 1)
		g.a.inject(newPeer(g.a, 80, 1000).seg(ack, nil).frame())
		g.carry()
		g.dir.del(g.a.h.sec.flow(k), 1)
	}),
	{why: RxMemLimit, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t, func(c *Config) { c.RcvBuf = 1 << 30 })
		k.h.UDPBind(0, 7)
		for k.h.rxUsed < k.h.rxLimit {
			k.inject(udpFrame(1, 7, nil))
		}
		return k, func(k *kit) { k.inject(udpFrame(1, 7, nil)) }
	}},
	{why: RxAccountLimit, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t)
		a, _ := k.h.NewAccount(3, 3, 0)
		s, _ := k.h.UDPBind(0, 7)
		k.h.Charge(s, a)
		for k.use(a).RX < 3 {
			k.inject(udpFrame(1, 7, nil))
		}
		return k, func(k *kit) { k.inject(udpFrame(1, 7, nil)) }
	}},
	{why: NeighTableFull, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t)
		for i := range proto.Addr(neighMax) {
			k.h.SetNeighbour(0x0b000000+i, evilMAC, true, k.now)
		}
		return k, func(k *kit) { k.inject(ipPacket{src: usIP + 50, proto: 1, body: icmpBytes(8, 0, 1, nil)}.frame()) }
	}},
	{why: NeighQueueFull, make: func(t *testing.T) (*kit, func(*kit)) {
		k := arpKit(t)
		echo := icmpFrame(8, 0, 1, nil)
		for range neighQueueMax {
			k.inject(echo)
		}
		return k, func(k *kit) { k.inject(echo) }
	}},
	{why: NeighFailed, make: func(t *testing.T) (*kit, func(*kit)) {
		k := arpKit(t)
		k.inject(icmpFrame(8, 0, 1, nil))
		return k, func(k *kit) { k.sleep(4 * second) }
	}},

	{why: FragOverlap, also: []Drop{FragOverlap}, make: fragCase(
		ipPacket{id: 1, proto: 17, mf: true, body: make([]byte, 16)}, ipPacket{id: 1, proto: 17, off: 8, body: make([]byte, 16)})},
	{why: FragDuplicate, make: fragCase(
		ipPacket{id: 1, proto: 17, mf: true, body: make([]byte, 16)}, ipPacket{id: 1, proto: 17, mf: true, body: make([]byte, 16)})},
	{why: FragBad, also: []Drop{FragBad}, make: fragCase(
		ipPacket{id: 1, proto: 17, off: 8, body: make([]byte, 16)}, ipPacket{id: 1, proto: 17, off: 24, mf: true, body: make([]byte, 8)})},
	{why: FragLimit, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t)
		for id := range uint16(fragMax) {
			k.inject(ipPacket{id: id, proto: 17, mf: true, body: make([]byte, 8)}.frame())
		}
		return k, func(k *kit) { k.inject(ipPacket{id: 999, proto: 17, mf: true, body: make([]byte, 8)}.frame()) }
	}},
	{why: FragTimeout, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t)
		k.inject(ipPacket{proto: 17, off: 8, body: make([]byte, 8)}.frame())
		return k, func(k *kit) { k.sleep(31 * second) }
	}},
	{why: ICMPRateLimit, also: []Drop{UDPNoSocket}, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t)
		for range 6 {
			k.inject(udpFrame(1, 2, nil))
		}
		return k, func(k *kit) { k.inject(udpFrame(1, 2, nil)) }
	}},

	{why: TxNoRoute, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t, func(c *Config) { c.Routes = nil })
		return k, func(k *kit) { k.inject(ipPacket{src: farIP, proto: 1, body: icmpBytes(8, 0, 1, nil)}.frame()) }
	}},
	{why: TxNoFrame, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t)
		s := udpTo(k, peerIP, false)
		for k.h.UDPSend(s, nil, port(peerIP, 7), k.now) == 0 {
		}
		return k, func(k *kit) { k.inject(icmpFrame(8, 0, 1, nil)) }
	}},
	{why: TxQueueFull, make: func(t *testing.T) (*kit, func(*kit)) {
		k := newKitOf(t, 5*txqSize/2, 2048, func(c *Config) { c.KernelNeighbours = true })
		k.h.SetNeighbour(peerIP, peerMAC, true, k.now)
		s := udpTo(k, peerIP, false)
		for k.h.UDPSend(s, nil, port(peerIP, 7), k.now) == 0 {
		}
		return k, func(k *kit) { k.inject(icmpFrame(8, 0, 1, nil)) }
	}},
}

// fragCase has fragments of which the last is counted.
func fragCase(parts ...ipPacket) func(t *testing.T) (*kit, func(*kit)) {
	return func(t *testing.T) (*kit, func(*kit)) {
		k := newKit(t)
		for _, p := range parts[:len(parts)-1] {
			k.inject(p.frame())
		}
		return k, func(k *kit) { k.inject(parts[len(parts)-1].frame()) }
	}
}

// neverDropped are values that no frame can be dropped for.
var neverDropped = map[Drop]string{
	Drop(proto.OK): "not a fault",
}

// TestEveryDrop produces each reason that there is, and checks that it is counted once and nothing else with it.
func TestEveryDrop(t *testing.T) {
	done := map[Drop]bool{}
	for _, c := range dropCases {
		done[c.why] = true
		t.Run(c.why.String(), func(t *testing.T) {
			k, act := c.make(t)
			want := map[Drop]uint64{c.why: 1}
			for _, d := range c.also {
				want[d]++
			}
			k.wantDrops(func() { act(k) }, want)
		})
	}
	for d := range NHostDrops { // those of Bridge and Router: TestBridgeLearns, TestRouterRefuses
		if why, never := neverDropped[d]; never == done[d] {
			t.Errorf("%v: produced %v, excused with %q", d, done[d], why)
		}
	}
}

// TestNames: every reason and every counter has a name of its own.
func TestNames(t *testing.T) {
	names := map[string]bool{}
	check := func(kind, s string) {
		if s == "" || s == "?" || s != strings.ToLower(s) || strings.ContainsAny(s, " -()") || names[kind+s] {
			t.Errorf("%s has the name %q", kind, s)
		}
		names[kind+s] = true
	}
	for d := range NDrops {
		check("drop", d.String())
	}
	for s := range NStats {
		check("stat", s.String())
	}
	if len(dropNames) != int(NDrops)-int(proto.NFaults) || len(statNames) != int(NStats) {
		t.Errorf("%d and %d names for %d and %d counters", len(dropNames), len(statNames), int(NDrops)-int(proto.NFaults), NStats)
	}
	if NDrops.String() != "?" {
		t.Errorf("what is no reason is called %q", NDrops)
	}
	var a, b Counters
	for i := range a.Drops {
		a.Drops[i], b.Drops[i] = uint64(i), 1000
	}
	for i := range a.Stats {
		a.Stats[i], b.Stats[i] = uint64(i), 1000
	}
	a.Add(&b)
	for i, n := range a.Drops {
		if n != uint64(i)+1000 {
			t.Errorf("sum of %v is %d", Drop(i), n)
		}
	}
	for i, n := range a.Stats {
		if n != uint64(i)+1000 {
			t.Errorf("sum of %v is %d", Stat(i), n)
		}
	}
}
