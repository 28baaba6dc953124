package sockets

import (
	"net/netip"
	"testing"

	"xdpd/umem"
)

// groupKit is two kits of one group: over one region, one ledger, one directory and one clock.
type groupKit struct {
	a, b *kit
	dir  *Directory
}

func newGroup(t testing.TB, set ...func(*Config)) *groupKit {
	t.Helper()
	const frames = 1024
	region, err := umem.Wrap(make([]byte, 2*frames*2048), 2048)
	if err != nil {
		t.Fatal(err)
	}
	g := &groupKit{dir: NewDirectory()}
	t.Cleanup(func() { // after the kits' own
		if n := g.dir.flows(); n != 0 {
			t.Errorf("the directory still has %d flows", n)
		}
		if len(g.dir.binds) != 0 || g.dir.Conns(0) != 0 || g.dir.Conns(1) != 0 {
			t.Errorf("the directory still has sockets: %v", g.dir.binds)
		}
	})
	ledger := umem.NewLedger(2 * frames)
	for i, k := range []**kit{&g.a, &g.b} {
		pool := umem.NewPool(region, umem.Frame(i*frames), frames, ledger)
		*k = newKitOn(t, pool, append([]func(*Config){func(c *Config) {
			c.KernelNeighbours, c.Directory, c.Self = true, g.dir, i
		}}, set...)...)
	}
	return g
}

// carry passes on what the Hosts have for each other until nothing is left, as reactors do, and counts the packets.
func (g *groupKit) carry() (n int) {
	for {
		moved := 0
		for i, from := range []*kit{g.a, g.b} {
			to := g.b
			if i == 1 {
				to = g.a
			}
			for _, m := range from.h.TakeHanded(nil) {
				if m.To != 1-i {
					from.t.Fatalf("a packet of Host %d goes to %d", i, m.To)
				}
				for _, f := range to.h.InputHanded(&m, to.now) {
					from.h.FrameBack(f)
				}
				moved++
			}
			from.h.EndTurn()
		}
		if moved == 0 {
			return n
		}
		n += moved
	}
}

// TestHandUDP: a datagram that comes in on the wrong queue arrives, in the frame that it came in.
func TestHandUDP(t *testing.T) {
	g := newGroup(t)
	s, errno := g.b.h.UDPBind(0, 53)
	if errno != 0 {
		t.Fatal(errno)
	}
	frame := g.a.fill[len(g.a.fill)-1]
	g.a.inject(udpFrame(1000, 53, []byte("query")))
	if g.carry() != 1 || !g.b.pool.Owns(frame) || g.b.h.udp.get(s).head != frame {
		t.Fatal("the datagram did not go over in its frame")
	}
	buf := make([]byte, 100)
	d, errno := g.b.h.UDPRecv(s, buf)
	if errno != 0 || string(buf[:d.N]) != "query" || d.Src != netip.AddrPortFrom(peerIP.Netip(), 1000) {
		t.Fatalf("%v %q from %v", errno, buf[:d.N], d.Src)
	}
	if g.a.h.counters.Stats[HandedOver] != 1 || g.b.h.counters.Stats[HandedIn] != 1 {
		t.Error("it is not counted")
	}
	// A connected socket is found before one that takes anything.
	c, _ := g.a.h.UDPBind(0, 54)
	if errno := g.a.h.UDPConnect(c, peerIP, 1000); errno != 0 {
		t.Fatal(errno)
	}
	g.b.inject(udpFrame(1000, 54, []byte("x")))
	g.carry()
	if d, errno := g.a.h.UDPRecv(c, buf); errno != 0 || d.N != 1 {
		t.Errorf("a connected socket gets %v", errno)
	}
	// And once nobody has a socket there is nobody to hand to.
	g.b.h.Close(s, g.b.now)
	g.a.wantDrops(func() {
		g.a.inject(udpFrame(1000, 53, []byte("query")))
		g.carry()
	}, map[Drop]uint64{UDPNoSocket: 1})
}

// TestHandFragments: a datagram that was put together on one queue goes over as a chain.
func TestHandFragments(t *testing.T) {
	g := newGroup(t)
	s := g.b.bind(0, 53)
	payload := make([]byte, 5000)
	for i := range payload {
		payload[i] = byte(i * 7)
	}
	g.a.inject(ipPacket{proto: 17, id: 9, body: udpBytes(peerIP, usIP, 1000, 53, payload)}.fragments(1400)...)
	if g.carry() != 1 {
		t.Fatal("not handed over")
	}
	g.b.wantRecv(s, payload)
	payload = payload[:8*99] // in a hundred pieces
	g.a.inject(ipPacket{proto: 17, id: 10, body: udpBytes(peerIP, usIP, 1000, 53, payload)}.fragments(8)...)
	g.carry()
	g.b.wantRecv(s, payload)
	if g.a.h.rxUsed != 0 || g.b.h.rxUsed != 0 {
		t.Errorf("%d and %d frames are charged", g.a.h.rxUsed, g.b.h.rxUsed)
	}
}

// handTCP is a connection accepted by a, and the same peer with its wire plugged into b.
func handTCP(t *testing.T, set ...func(*Config)) (g *groupKit, c conn, over *tpeer) {
	t.Helper()
	g = newGroup(t, set...)
	l, errno := g.a.h.TCPListen(0, svc)
	if errno != 0 {
		t.Fatal(errno)
	}
	c = conn{tpeer: dial(g.a, svc, 1000), l: l}
	if c.h, errno = g.a.h.TCPAccept(l); errno != 0 {
		t.Fatal(errno)
	}
	c.none()
	wire := *c.tpeer
	wire.k = g.b
	return g, c, &wire
}

// TestHandTCP: a connection whose segments come in on the other queue.
func TestHandTCP(t *testing.T) {
	g, c, over := handTCP(t)
	over.send(ack|psh, []byte("hello"))
	over.none()
	if g.carry() != 1 {
		t.Fatal("the segment was not handed over")
	}
	c.wantRead([]byte("hello"))
	if g.dir.Conns(0) != 1 || g.dir.Conns(1) != 0 {
		t.Errorf("the directory counts %d and %d connections", g.dir.Conns(0), g.dir.Conns(1))
	}
	c.none() // the ACK is delayed
	// Gone on its Host, it is gone for the group: what comes now is answered by whom it comes to.
	g.a.h.Close(c.l, g.a.now)
	if errno := g.a.h.TCPAbort(c.h, g.a.now); errno != 0 {
		t.Fatal(errno)
	}
	g.a.sent()
	g.b.wantDrops(func() {
		over.inject(over.seg(ack, []byte("again")))
		if g.carry() != 0 {
			t.Error("a segment of nobody's was handed over")
		}
	}, map[Drop]uint64{TCPNoSocket: 1})
	if over.one().flags&rst == 0 {
		t.Error("no RST")
	}
}

// TestHandSYN: a listener on one Host serves all queues, and the handshake may change queues at every step.
func TestHandSYN(t *testing.T) {
	g := newGroup(t)
	l, _ := g.a.h.TCPListen(0, svc)
	p := newPeer(g.b, svc, 1000)
	s := p.seg(syn, nil)
	s.opts = optMSS(1460)
	p.inject(s)
	g.carry()
	p.seq++
	sa := g.a.one().tcp
	p.irs, p.ack = sa.seq, sa.seq+1
	p.k = g.a
	s.flags = syn // again, on the other queue: the same answer, and no second record
	p.inject(s)
	if again := g.a.one().tcp; again.seq != sa.seq || g.a.h.tcp.half.n+g.b.h.tcp.half.n != 1 {
		t.Errorf("the SYN again: %+v, %d and %d records", again, g.a.h.tcp.half.n, g.b.h.tcp.half.n)
	}
	p.k = g.b
	p.ackAll()
	g.carry()
	if _, errno := g.a.h.TCPAccept(l); errno != 0 {
		t.Fatalf("accept: %v", errno)
	}
	g.b.none()
}

// TestHandTimeWait: what is left of a connection answers, whichever queue its last segments come in on.
func TestHandTimeWait(t *testing.T) {
	g, c, over := handTCP(t)
	c.shutdown()
	c.inject(c.seg(fin|ack, nil))
	c.one()
	g.a.h.Close(c.h, g.a.now)
	g.a.pump()
	if g.a.h.tcp.tw.n != 1 {
		t.Fatal("no TIME-WAIT")
	}
	over.seq, over.ack = c.seq, c.ack
	over.inject(over.seg(fin|ack, nil)) // its ACK was lost
	if n := g.carry(); n != 1 {
		t.Errorf("%d packets went over", n)
	}
	over.none()
	if got := c.one(); got.flags != ack {
		t.Errorf("the FIN again is answered with %+v", got)
	}
}

// TestHandICMP: an error about a connection of the other Host.
func TestHandICMP(t *testing.T) {
	g := newGroup(t)
	c, errno := g.a.h.TCPDial(0, 0, peerIP, 80, g.a.now)
	if errno != 0 {
		t.Fatal(errno)
	}
	quote := g.a.sent()[0][14:]
	g.b.inject(ipPacket{proto: 1, body: icmpBytes(3, 3, 0, quote[:28])}.frame())
	if g.carry() != 1 {
		t.Fatal("the error was not handed over")
	}
	if errno := g.a.h.TCPError(c); errno != ECONNREFUSED {
		t.Errorf("the dial ends with %v", errno)
	}
}

// TestHandDial: two Hosts never dial from one port to the same peer.
func TestHandDial(t *testing.T) {
	g := newGroup(t)
	seen := map[uint16]bool{}
	for range 200 {
		for _, k := range []*kit{g.a, g.b} {
			c, errno := k.h.TCPDial(0, 0, peerIP, 80, k.now)
			if errno != 0 {
				t.Fatal(errno)
			}
			local, _ := k.h.TCPAddr(c)
			if seen[local.Port()] {
				t.Fatalf("port %d twice", local.Port())
			}
			seen[local.Port()] = true
		}
	}
	taken, _ := g.a.h.TCPDial(0, 700, peerIP, 80, g.a.now)
	if _, errno := g.b.h.TCPDial(0, 700, peerIP, 80, g.b.now); errno != EADDRINUSE || taken == 0 {
		t.Errorf("the other Host's port: %v", errno)
	}
}

// spreadTo is a group in which all connections to a's listener go to b.
func spreadTo(t *testing.T, set ...func(*Config)) (g *groupKit, front, behind Handle) {
	t.Helper()
	g = newGroup(t, set...)
	front, _ = g.a.h.TCPListen(0, svc)
	behind, errno := g.b.h.TCPListenBehind(0, svc)
	if errno != 0 {
		t.Fatal(errno)
	}
	if errno := g.a.h.TCPSpread(front, func(netip.AddrPort) int { return 1 }); errno != 0 {
		t.Fatal(errno)
	}
	return g, front, behind
}

// TestSpread: the Host with the listener does the handshake, another one has the connection from then on.
func TestSpread(t *testing.T) {
	g, front, behind := spreadTo(t)
	p := newPeer(g.a, svc, 1000)
	synSent(g.a, p, optMSS(1460))
	p.send(ack|psh, []byte("early bird")) // the ACK was lost: the first data completes the handshake
	p.inject(p.seg(ack|psh, []byte("!")))
	if n := g.dir.Conns(1); n != 1 {
		t.Errorf("%d connections with one on its way", n)
	}
	if g.carry() != 2 {
		t.Error("not both segments went over")
	}
	if _, errno := g.a.h.TCPAccept(front); errno != EAGAIN {
		t.Errorf("the front accepts: %v", errno)
	}
	s, errno := g.b.h.TCPAccept(behind)
	if errno != 0 {
		t.Fatalf("accept: %v", errno)
	}
	p.k = g.b
	conn{tpeer: p, h: s}.wantRead([]byte("early bird!"))
	if g.a.h.tcp.half.n != 0 || g.a.h.tcp.conns != 0 || g.dir.Conns(1) != 1 {
		t.Errorf("left at the front: %d half-open, %d connections", g.a.h.tcp.half.n, g.a.h.tcp.conns)
	}
	g.a.none()
}

// TestSpreadOvertaken: what follows the handshake comes to the front by hand, after the connection has left.
func TestSpreadOvertaken(t *testing.T) {
	g, _, behind := spreadTo(t)
	p := newPeer(g.a, svc, 1000)
	synSent(g.a, p, optMSS(1460))
	p.k = g.b // both segments come in on the other queue, before the front has seen either
	p.ackAll()
	p.send(ack|psh, []byte("x"))
	if n := g.carry(); n != 4 { // there and back again, each
		t.Errorf("%d packets went over", n)
	}
	s, errno := g.b.h.TCPAccept(behind)
	if errno != 0 {
		t.Fatal(errno)
	}
	conn{tpeer: p, h: s}.wantRead([]byte("x"))
	g.a.none()
}

// TestSpreadFull: behind a full accept queue the handshake is not lost, it waits.
func TestSpreadFull(t *testing.T) {
	g, _, behind := spreadTo(t, func(c *Config) { c.Backlog = 1 })
	var peers []*tpeer
	for i := range uint16(2) {
		p := newPeer(g.a, svc, 1000+i)
		synSent(g.a, p, optMSS(1460))
		p.ackAll()
		g.carry()
		p.k = g.b
		peers = append(peers, p)
	}
	if _, errno := g.b.h.TCPAccept(behind); errno != 0 {
		t.Fatal(errno)
	}
	if _, errno := g.b.h.TCPAccept(behind); errno != EAGAIN {
		t.Fatal("more than the backlog are ready")
	}
	peers[1].inject(peers[1].seg(ack|psh, []byte("x"))) // on the other queue, and accepted now
	g.carry()
	s, errno := g.b.h.TCPAccept(behind)
	if errno != 0 {
		t.Fatal(errno)
	}
	conn{tpeer: peers[1], h: s}.wantRead([]byte("x"))
}

// TestSpreadNobody: with no listener behind, the peer is told.
func TestSpreadNobody(t *testing.T) {
	g, _, behind := spreadTo(t)
	g.b.h.Close(behind, g.b.now)
	p := newPeer(g.a, svc, 1000)
	synSent(g.a, p, optMSS(1460))
	p.ackAll()
	g.carry()
	if n := g.dir.Conns(1); n != 0 {
		t.Errorf("%d connections of none", n)
	}
	p.k = g.b
	if p.one().flags&rst == 0 {
		t.Error("no RST")
	}
}

// TestHandNoRoom: what finds no room on its way is dropped and counted, its frames are back, and a handshake goes on later.
func TestHandNoRoom(t *testing.T) {
	g, _, behind := spreadTo(t)
	p := newPeer(g.a, svc, 1000)
	synSent(g.a, p, optMSS(1460))
	free := g.a.pool.Avail()
	g.a.wantDrops(func() {
		p.ackAll()
		for _, m := range g.a.h.TakeHanded(nil) {
			g.a.h.HandBack(&m)
		}
	}, map[Drop]uint64{HandoverFull: 1})
	g.a.h.EndTurn()
	if n := g.dir.Conns(1); n != 0 {
		t.Errorf("%d connections with none on its way", n)
	}
	if g.a.pool.Avail() != free || g.a.h.tcp.half.n != 1 {
		t.Fatalf("%d frames of %d are back, %d half-open", g.a.pool.Avail(), free, g.a.h.tcp.half.n)
	}
	p.inject(p.seg(ack, nil))
	g.carry()
	if _, errno := g.b.h.TCPAccept(behind); errno != 0 {
		t.Errorf("the second ACK: %v", errno)
	}
}
