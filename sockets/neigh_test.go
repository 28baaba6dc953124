package sockets

import (
	"bytes"
	"testing"

	"xdpd/proto"
	"xdpd/umem"
)

// udpTo opens a UDP socket and connects it if connect says so.
func udpTo(k *kit, remote proto.Addr, connect bool) Handle {
	k.t.Helper()
	s, err := k.h.UDPBind(0, 0)
	if err != 0 {
		k.t.Fatalf("UDPBind: %v", err)
	}
	if connect {
		if err := k.h.UDPConnect(s, remote, 7); err != 0 {
			k.t.Fatalf("UDPConnect: %v", err)
		}
	}
	return s
}

func (k *kit) sendTo(s Handle, remote proto.Addr, payload string) {
	k.t.Helper()
	if err := k.h.UDPSend(s, []byte(payload), port(remote, 7), k.now); err != 0 {
		k.t.Fatalf("UDPSend: %v", err)
	}
}

// wantRequest checks a broadcast ARP request of ours for a.
func wantRequest(t *testing.T, s seen, a proto.Addr) {
	t.Helper()
	if s.typ != 0x0806 || s.arp.op != 1 || s.dst != proto.Broadcast || s.src != usMAC || s.arp.sha != usMAC ||
		s.arp.spa != usIP || s.arp.tha != (proto.MAC{}) || s.arp.tpa != a {
		t.Fatalf("sent %+v, want a broadcast request for %v", s, a)
	}
}

// wantDatagram checks a datagram to a MAC.
func wantDatagram(t *testing.T, s seen, mac proto.MAC, payload string) {
	t.Helper()
	if s.typ != 0x0800 || s.dst != mac || string(s.data) != payload {
		t.Fatalf("sent %+v, want a datagram %q to %v", s, payload, mac)
	}
}

func (k *kit) wantNeigh(a proto.Addr, state neighState) *neighbour {
	k.t.Helper()
	e := k.h.neighGet(a)
	switch {
	case e == nil && state == neighUnused:
	case e == nil:
		k.t.Fatalf("no entry for %v, want state %d", a, state)
	case e.state != state:
		k.t.Fatalf("neighbour %v in state %d, want %d", a, e.state, state)
	}
	return e
}

// reachable resolves the peer by a request and its reply.
func reachable(k *kit, s Handle) {
	k.t.Helper()
	k.sendTo(s, peerIP, "first")
	wantRequest(k.t.(*testing.T), k.one(), peerIP)
	k.inject(arpReplyFrame(peerMAC, peerIP))
	k.wantNeigh(peerIP, neighReachable)
	wantDatagram(k.t.(*testing.T), k.one(), peerMAC, "first")
}

func TestNeighResolve(t *testing.T) {
	k := arpKit(t)
	s := udpTo(k, peerIP, false)
	k.sendTo(s, peerIP, "one")
	k.sendTo(s, peerIP, "two")
	wantRequest(t, k.one(), peerIP)
	k.wantNeigh(peerIP, neighIncomplete)
	k.inject(arpReplyFrame(peerMAC, peerIP))
	k.sendTo(s, peerIP, "three")
	out := k.seen()
	if len(out) != 3 {
		t.Fatalf("%d frames after the reply, want what waited and one more", len(out))
	}
	for i, want := range []string{"one", "two", "three"} {
		wantDatagram(t, out[i], peerMAC, want)
	}
}

// TestNeighLife goes through RFC 4861 7.3.2: REACHABLE 30 s, STALE until used, DELAY 5 s, PROBE three times a second.
func TestNeighLife(t *testing.T) {
	k := arpKit(t)
	s := udpTo(k, peerIP, false)
	reachable(k, s)
	k.sleep(30*second - 2*ms)
	k.wantNeigh(peerIP, neighReachable)
	k.sleep(3 * ms)
	k.wantNeigh(peerIP, neighStale)
	k.sleep(3600 * second)
	k.wantNeigh(peerIP, neighStale)
	k.none()

	k.sendTo(s, peerIP, "stale")
	k.wantNeigh(peerIP, neighDelay)
	wantDatagram(t, k.one(), peerMAC, "stale")
	k.sleep(5*second - 2*ms)
	k.none()
	for i := range 3 {
		k.sleep(map[bool]int64{true: 3 * ms, false: second}[i == 0])
		k.wantNeigh(peerIP, neighProbe)
		wantRequest(t, k.one(), peerIP)
		k.sendTo(s, peerIP, "probing")
		wantDatagram(t, k.one(), peerMAC, "probing")
	}
	k.sleep(second)
	k.wantNeigh(peerIP, neighUnused)
	k.none()
}

// TestNeighConfirmed: a reply in DELAY or PROBE makes the entry reachable again.
func TestNeighConfirmed(t *testing.T) {
	for name, wait := range map[string]int64{"delay": second, "probe 1": 5100 * ms, "probe 3": 7100 * ms} {
		t.Run(name, func(t *testing.T) {
			k := arpKit(t)
			s := udpTo(k, peerIP, false)
			reachable(k, s)
			k.sleep(31 * second)
			k.sendTo(s, peerIP, "x")
			k.sleep(wait)
			k.sent()
			k.wantDrops(func() { k.inject(arpReplyFrame(peerMAC, peerIP)) }, nil)
			k.wantNeigh(peerIP, neighReachable)
			k.sleep(29 * second)
			k.none()
			k.wantNeigh(peerIP, neighReachable)
		})
	}
}

// TestNeighHeard: a neighbour whose answers get lost is asked on, and used, as long as packets come from him, and is given up a
// second after the last. Packets of others do not help him.
func TestNeighHeard(t *testing.T) {
	k := arpKit(t)
	s := udpTo(k, peerIP, false)
	reachable(k, s)
	k.sleep(31 * second)
	k.sendTo(s, peerIP, "x")
	k.sleep(5*second + ms)
	k.sent()
	from := func(mac proto.MAC) {
		frame := icmpFrame(0, 0, 0, nil) // an answer to nothing
		copy(frame[6:12], mac[:])
		k.inject(frame)
		k.sent()
	}
	for range 300 {
		from(peerMAC)
		k.sleep(second)
		wantRequest(t, k.one(), peerIP)
		k.wantNeigh(peerIP, neighProbe)
		k.sendTo(s, peerIP, "still")
		wantDatagram(t, k.one(), peerMAC, "still")
	}
	from(proto.MAC{2, 9, 9, 9, 9, 9})
	k.sleep(second)
	k.wantNeigh(peerIP, neighUnused)
	k.none()
}

// TestNeighFailure: three requests a second apart, then the queue is dropped and the connected socket told, once.
func TestNeighFailure(t *testing.T) {
	k := arpKit(t)
	s, other := udpTo(k, peerIP, true), udpTo(k, peerIP, false)
	k.sendTo(other, peerIP, "from an unconnected socket")
	for range 3 {
		if err := k.h.UDPSend(s, []byte("lost"), port(0, 0), k.now); err != EINVAL {
			t.Fatalf("UDPSend to port 0: %v", err)
		}
		k.sendTo(s, peerIP, "lost")
	}
	for i := range 3 {
		if i > 0 {
			k.sleep(second - ms)
			k.none()
			k.sleep(2 * ms)
		}
		wantRequest(t, k.one(), peerIP)
	}
	k.sleep(second - 5*ms)
	k.wantNeigh(peerIP, neighIncomplete)
	k.events()
	k.wantDrops(func() { k.sleep(10 * ms) }, map[Drop]uint64{NeighFailed: 4})
	k.none()
	k.wantNeigh(peerIP, neighUnused)
	got := k.events()
	if got[s] != Err|Out || len(got) != 1 {
		t.Errorf("events %v, want Err and Out for the connected socket alone", got)
	}
	if _, err := k.h.UDPRecv(s, nil); err != EHOSTUNREACH {
		t.Errorf("UDPRecv = %v, want EHOSTUNREACH", err)
	}
	if _, err := k.h.UDPRecv(s, nil); err != EAGAIN {
		t.Errorf("second UDPRecv = %v, want EAGAIN", err)
	}
	if rx, _, tx, _ := k.h.Held(); rx != 0 || tx != 0 {
		t.Errorf("%d and %d frames held after the failure", rx, tx)
	}
	k.sendTo(s, peerIP, "again")
	wantRequest(t, k.one(), peerIP)
}

// TestNeighQueueBounds: so many packets wait for one neighbour, so many for all and one more for each, and the rest is counted.
func TestNeighQueueBounds(t *testing.T) {
	k := newKitOf(t, 8192, 2048)
	s := udpTo(k, peerIP, false)
	k.wantDrops(func() {
		for i := range neighQueueMax + 5 {
			k.sendTo(s, peerIP, string(rune('A'+i)))
		}
	}, map[Drop]uint64{NeighQueueFull: 5})
	k.wantDrops(func() {
		for n := range proto.Addr(neighWaitMax / neighQueueMax) {
			for range neighQueueMax {
				k.sendTo(s, peerIP+1+n, "x")
			}
		}
	}, map[Drop]uint64{NeighQueueFull: neighQueueMax - 1})
	if !k.h.Unsent() {
		t.Error("packets that wait for a neighbour count as sent")
	}
	if k.h.neigh.waiting != neighWaitMax+1 {
		t.Errorf("%d packets wait, want %d", k.h.neigh.waiting, neighWaitMax+1)
	}
	k.sent()
	k.inject(arpReplyFrame(peerMAC, peerIP))
	out := k.seen()
	if len(out) != neighQueueMax {
		t.Fatalf("%d packets went out, want %d", len(out), neighQueueMax)
	}
	for i := range out {
		wantDatagram(t, out[i], peerMAC, string(rune('A'+i)))
	}
}

// TestNeighQueueLeavesFrames: packets for neighbours who never answer, as pings from forged addresses make them, must not
// take all frames that there are to send with.
func TestNeighQueueLeavesFrames(t *testing.T) {
	k := newKitOf(t, 256, 2048)
	s := udpTo(k, peerIP, false)
	reachable(k, s)
	for i := range proto.Addr(200) {
		for range 8 {
			k.inject(ipPacket{src: usIP + 10 + i, proto: 1, body: icmpBytes(8, 0, 1, nil)}.frame())
		}
		k.sent()
	}
	if _, _, tx, limit := k.h.Held(); tx == 0 || tx > limit/2 {
		t.Errorf("%d of %d frames wait for neighbours", tx, limit)
	}
	k.sendTo(s, peerIP, "still works")
	wantDatagram(t, k.one(), peerMAC, "still works")
}

// TestNeighQueueLeavesTheLastFrame: what waits for a neighbour does not take the last frame, without which the neighbour
// is never asked for.
func TestNeighQueueLeavesTheLastFrame(t *testing.T) {
	k := arpKit(t)
	for k.h.txFree() > 1 {
		defer k.h.freeTX(k.h.allocTX(), umem.Held)
	}
	p := newPeer(k, svc, 1000)
	p.send(syn, nil) // nobody listens
	k.sent()
	k.sleep(probeNS + 10*ms)
	wantRequest(t, k.one(), peerIP)
	p.send(syn, nil) // the frame is free again, and nothing may wait in it
	k.sent()
	k.sleep(probeNS + 10*ms)
	wantRequest(t, k.one(), peerIP)
	k.inject(arpReplyFrame(peerMAC, peerIP))
	p.send(syn, nil)
	wantSeg(t, p.one(), rst|ack, 0, p.seq, nil)
}

func TestNeighUnsolicitedReply(t *testing.T) {
	k := arpKit(t)
	unsolicited := map[Drop]uint64{ARPUnsolicited: 1}
	k.wantDrops(func() { k.inject(arpReplyFrame(peerMAC, peerIP)) }, unsolicited)
	k.wantNeigh(peerIP, neighUnused)
	k.inject(arpRequest(peerMAC, peerIP, usIP))
	k.sent()
	k.wantNeigh(peerIP, neighStale)
	k.wantDrops(func() { k.inject(arpReplyFrame(peerMAC, peerIP)) }, unsolicited)
	k.wantNeigh(peerIP, neighStale)
	k.none()
}

// claims is how somebody else may say that the peer's address is his.
var claims = map[string][]byte{
	"reply":             arpReplyFrame(evilMAC, peerIP),
	"request":           arpRequest(evilMAC, peerIP, usIP),
	"broadcast reply":   arpFrame(2, evilMAC, peerIP, usMAC, usIP, proto.Broadcast),
	"gratuitous to us":  arpFrame(2, evilMAC, peerIP, evilMAC, usIP, usMAC),
	"request, for more": arpFrame(1, evilMAC, peerIP, usMAC, usIP, usMAC),
}

// TestNeighConflictingClaim: a claim on the address of a REACHABLE neighbour makes us ask, and nothing more; however
// often it is repeated, the owner's answer wins.
func TestNeighConflictingClaim(t *testing.T) {
	for name, claim := range claims {
		t.Run(name, func(t *testing.T) {
			k := arpKit(t)
			s := udpTo(k, peerIP, false)
			reachable(k, s)
			k.inject(claim)
			asked := 0
			for _, f := range k.seen() {
				if f.arp.op == 1 {
					wantRequest(t, f, peerIP)
					asked++
				}
			}
			if asked != 1 {
				t.Errorf("asked %d times, want once", asked)
			}
			for range 5 {
				k.inject(claim)
				k.sent()
				if e := k.h.neighGet(peerIP); e == nil || e.mac != peerMAC {
					t.Fatalf("entry is %+v after repeated claims, want the owner's address", e)
				}
			}
			k.sendTo(s, peerIP, "to whom")
			wantDatagram(t, k.one(), peerMAC, "to whom")
			k.inject(arpReplyFrame(peerMAC, peerIP))
			if e := k.wantNeigh(peerIP, neighReachable); e.mac != peerMAC {
				t.Errorf("address is %v after the owner's answer", e.mac)
			}
		})
	}
}

// TestNeighMoves: an address whose old owner no longer answers goes to the new one.
func TestNeighMoves(t *testing.T) {
	k := arpKit(t)
	s := udpTo(k, peerIP, false)
	reachable(k, s)
	k.inject(arpReplyFrame(evilMAC, peerIP)) // a fail-over announces itself
	wantRequest(t, k.one(), peerIP)
	k.sleep(1100 * ms)
	wantRequest(t, k.one(), peerIP)
	k.inject(arpReplyFrame(evilMAC, peerIP))
	if e := k.wantNeigh(peerIP, neighReachable); e.mac != evilMAC {
		t.Fatalf("address is %v, want the new owner's", e.mac)
	}
	k.sendTo(s, peerIP, "moved")
	wantDatagram(t, k.one(), evilMAC, "moved")
}

func TestARPIgnored(t *testing.T) {
	const other = peerIP + 5
	for name, c := range map[string]struct {
		frame []byte
		why   Drop
	}{
		"request for another":         {arpRequest(peerMAC, peerIP, other), ARPNotOurs},
		"gratuitous of another":       {arpRequest(peerMAC, peerIP, peerIP), ARPNotOurs},
		"sender off the link":         {arpRequest(peerMAC, farIP, usIP), ARPNotOurs},
		"broadcast hardware address":  {arpRequest(proto.Broadcast, peerIP, usIP), Drop(proto.ARPBad)},
		"zero hardware address":       {arpRequest(proto.MAC{}, peerIP, usIP), Drop(proto.ARPBad)},
		"hardware address not source": {ethFrame(proto.Broadcast, evilMAC, 0x0806, arpRequest(peerMAC, peerIP, usIP)[14:]), Drop(proto.ARPBad)},
		"conflict, announced":         {arpRequest(evilMAC, usIP, usIP), ARPConflict},
		"conflict, reply":             {arpReplyFrame(evilMAC, usIP), ARPConflict},
		"conflict, asks for another":  {arpRequest(evilMAC, usIP, other), ARPConflict},
		"reply to nobody's question":  {arpReplyFrame(peerMAC, peerIP), ARPUnsolicited},
		"reply to another":            {arpFrame(2, peerMAC, peerIP, usMAC, other, usMAC), ARPNotOurs},
		"short":                       {arpRequest(peerMAC, peerIP, usIP)[:14+27], Drop(proto.ARPShort)},
		"operation 3":                 {arpFrame(3, peerMAC, peerIP, usMAC, usIP, usMAC), Drop(proto.ARPBad)},
	} {
		t.Run(name, func(t *testing.T) {
			k := arpKit(t)
			k.wantDrops(func() { k.inject(c.frame) }, map[Drop]uint64{c.why: 1})
			k.none()
			for _, a := range []proto.Addr{peerIP, farIP, usIP, other} {
				k.wantNeigh(a, neighUnused)
			}
		})
	}
}

// TestARPAnswers: a request is answered to who asked. What asks from 0.0.0.0 (RFC 5227 2.1.1) is not learnt.
func TestARPAnswers(t *testing.T) {
	for _, from := range []proto.Addr{peerIP, 0} {
		k := arpKit(t)
		k.wantDrops(func() { k.inject(arpRequest(peerMAC, from, usIP)) }, nil)
		s := k.one()
		if s.typ != 0x0806 || s.dst != peerMAC || s.arp.op != 2 || s.arp.sha != usMAC || s.arp.spa != usIP ||
			s.arp.tha != peerMAC || s.arp.tpa != from {
			t.Errorf("answer to a request from %v: %+v", from, s)
		}
		if from == 0 {
			k.wantNeigh(0, neighUnused)
			if k.h.neigh.index.n != 0 {
				t.Error("a probe was learnt")
			}
		} else if e := k.wantNeigh(from, neighStale); e.mac != peerMAC {
			t.Errorf("learnt %v", e.mac)
		}
	}
}

// TestARPRequestServesTheQueue: who asks for us has told his address too, so what waits for him goes out.
func TestARPRequestServesTheQueue(t *testing.T) {
	k := arpKit(t)
	s := udpTo(k, peerIP, false)
	k.sendTo(s, peerIP, "waits")
	k.sent()
	k.inject(arpRequest(peerMAC, peerIP, usIP))
	out := k.seen()
	if len(out) != 2 || out[1].arp.op != 2 {
		t.Fatalf("sent %+v, want the datagram and the answer", out)
	}
	wantDatagram(t, out[0], peerMAC, "waits")
	k.wantNeigh(peerIP, neighStale)
}

// TestARPFlood: ten thousand senders fill no more than the table, and push out no neighbour in use.
func TestARPFlood(t *testing.T) {
	k := arpKit(t, func(c *Config) { c.Addrs = []Prefix{{usIP, 8}} })
	s := udpTo(k, peerIP, false)
	reachable(k, s)
	for i := range 10_000 {
		mac := evilMAC
		mac[3], mac[4] = byte(i>>8), byte(i)
		k.inject(arpRequest(mac, 0x0a100000+proto.Addr(i), usIP))
		k.pump()
		k.out = nil
	}
	if n := k.h.neigh.index.n; n != neighMax {
		t.Errorf("%d entries, want %d", n, neighMax)
	}
	if e := k.wantNeigh(peerIP, neighReachable); e.mac != peerMAC {
		t.Errorf("the neighbour is now at %v", e.mac)
	}
	k.sendTo(s, peerIP, "still there")
	wantDatagram(t, k.one(), peerMAC, "still there")
	// And somebody new is still found: the flood's entries make room.
	k.sendTo(s, gwIP, "new")
	wantRequest(t, k.one(), gwIP)
	k.inject(arpReplyFrame(gwMAC, gwIP))
	wantDatagram(t, k.one(), gwMAC, "new")
}

// TestNeighTableFull: with all entries in use a packet to somebody new is dropped and counted.
func TestNeighTableFull(t *testing.T) {
	k := arpKit(t, func(c *Config) { c.Addrs = []Prefix{{usIP, 8}} })
	for i := range proto.Addr(neighMax) {
		k.h.SetNeighbour(0x0a100000+i, evilMAC, true, k.now)
	}
	s := udpTo(k, peerIP, false)
	k.wantDrops(func() { k.sendTo(s, peerIP, "x") }, map[Drop]uint64{NeighTableFull: 1})
	k.none()
	if _, _, tx, _ := k.h.Held(); tx != 0 {
		t.Errorf("%d frames held", tx)
	}
	k.sleep(31 * second) // now all are stale
	k.sendTo(s, peerIP, "x")
	wantRequest(t, k.one(), peerIP)
}

// TestNeighNobody: who sends to more addresses where nobody is than there are entries keeps nobody from a new neighbour that answers.
func TestNeighNobody(t *testing.T) {
	k := arpKit(t, func(c *Config) { c.Addrs = []Prefix{{usIP, 8}} })
	s := udpTo(k, peerIP, false)
	flood := func(from, n proto.Addr) {
		for i := range n {
			k.sendTo(s, 0x0a100000+from+i, "x")
			k.pump()
			k.complete(len(k.device))
			k.out = nil
		}
	}
	flood(0, neighMax)
	k.sendTo(s, peerIP, "waits")
	wantRequest(t, k.one(), peerIP)
	flood(neighMax, neighMax/2)
	k.inject(arpReplyFrame(peerMAC, peerIP))
	wantDatagram(t, k.one(), peerMAC, "waits")
	flood(2*neighMax, 2*neighMax)
	k.sendTo(s, peerIP, "goes")
	wantDatagram(t, k.one(), peerMAC, "goes")
	if n := k.h.neigh.index.n; n != neighMax {
		t.Errorf("%d entries, want %d", n, neighMax)
	}
	k.check()
}

func TestNeighGateway(t *testing.T) {
	k := arpKit(t)
	s := udpTo(k, farIP, false)
	k.sendTo(s, farIP, "far")
	wantRequest(t, k.one(), gwIP)
	k.inject(arpReplyFrame(gwMAC, gwIP))
	out := k.one()
	wantDatagram(t, out, gwMAC, "far")
	if out.ip.dst != farIP || out.ip.src != usIP {
		t.Errorf("sent from %v to %v", out.ip.src, out.ip.dst)
	}
	k.wantNeigh(farIP, neighUnused)
}

func TestNeighAnnounce(t *testing.T) {
	k := arpKit(t, func(c *Config) { c.Addrs = []Prefix{{usIP, 24}, {usIP + 9, 24}} })
	k.h.Announce(k.now)
	out := k.seen()
	if len(out) != 2 {
		t.Fatalf("%d announcements, want two", len(out))
	}
	for i, a := range []proto.Addr{usIP, usIP + 9} {
		if s := out[i]; s.dst != proto.Broadcast || s.arp.spa != a || s.arp.tpa != a || s.arp.sha != usMAC {
			t.Errorf("announcement %d: %+v", i, s)
		}
	}
}

// TestKernelNeighbours: in share mode no ARP goes out or comes in; who resolves is asked, and tells.
func TestKernelNeighbours(t *testing.T) {
	k := newKit(t)
	const a, b = peerIP + 1, peerIP + 2
	s := udpTo(k, a, true)
	k.wantDrops(func() { k.inject(arpRequest(peerMAC, peerIP, usIP)) }, map[Drop]uint64{ARPNotOurs: 1})
	k.h.Announce(k.now)
	k.sendTo(s, a, "x")
	k.none()
	if got, ok := k.h.PopResolve(); !ok || got != a {
		t.Fatalf("PopResolve = %v, %v", got, ok)
	}
	if _, ok := k.h.PopResolve(); ok {
		t.Fatal("asked twice at once")
	}
	k.h.SetNeighbour(a, evilMAC, true, k.now)
	wantDatagram(t, k.one(), evilMAC, "x")
	k.sleep(7200 * second)
	k.sendTo(s, a, "y")
	wantDatagram(t, k.one(), evilMAC, "y")

	k.h.SetNeighbour(a, proto.MAC{}, false, k.now)
	k.sendTo(s, a, "z")
	k.wantDrops(func() { k.h.SetNeighbour(a, proto.MAC{}, false, k.now) }, map[Drop]uint64{NeighFailed: 1})
	if _, err := k.h.UDPRecv(s, nil); err != EHOSTUNREACH {
		t.Errorf("UDPRecv = %v, want EHOSTUNREACH", err)
	}
	k.h.SetNeighbour(b, proto.MAC{}, false, k.now) // of whom we never heard
	for range 2 * resolveMax {
		k.sendTo(s, b, "x")
		k.sleep(4 * second)
	}
	if n := len(k.h.neigh.resolve); n > resolveMax {
		t.Errorf("%d questions nobody took, want at most %d", n, resolveMax)
	}
}

// TestNeighSiblings: what one queue's Host heard by ARP resolves the question of another's.
func TestNeighSiblings(t *testing.T) {
	siblings := func(c *Config) { c.Siblings = true }
	a, b := arpKit(t, siblings), arpKit(t, siblings)
	s := udpTo(a, peerIP, false)
	a.sendTo(s, peerIP, "waits")
	wantRequest(t, a.one(), peerIP)
	b.inject(arpReplyFrame(peerMAC, peerIP))
	heard, ok := b.h.PopHeard()
	if !ok {
		t.Fatal("nothing to tell")
	}
	a.h.Heard(&heard, a.now)
	wantDatagram(t, a.one(), peerMAC, "waits")

	for range 3 * heardMax {
		b.inject(arpRequest(peerMAC, peerIP, usIP))
		b.pump()
	}
	n := 0
	for ; ; n++ {
		if heard, ok = b.h.PopHeard(); !ok {
			break
		}
		a.h.Heard(&heard, a.now)
	}
	if n == 0 || n > heardMax {
		t.Errorf("%d packets to tell, want at most %d", n, heardMax)
	}
	a.none() // the answer was given there
	off := proto.ARP{Op: 1, SHA: evilMAC, SPA: farIP, TPA: usIP}
	a.h.Heard(&off, a.now)
	a.wantNeigh(farIP, neighUnused)
}

// TestVLANs: frames carry our tags, and only frames with just these are ours; a priority tag does not count.
func TestVLANs(t *testing.T) {
	tags := func(kinds ...uint16) []byte {
		f := arpRequest(peerMAC, peerIP, usIP)
		var b []byte
		for _, id := range kinds {
			b = append(b, concat(be16(0x8100), be16(id))...)
		}
		return concat(f[:12], b, f[12:])
	}
	for _, c := range []struct {
		ours, theirs []uint16
		ok           bool
	}{
		{nil, nil, true}, {nil, []uint16{5}, false}, {nil, []uint16{0xe000}, true},
		{[]uint16{5}, nil, false}, {[]uint16{5}, []uint16{5}, true}, {[]uint16{5}, []uint16{0xa005}, true},
		{[]uint16{5}, []uint16{6}, false}, {[]uint16{5}, []uint16{0}, false}, {[]uint16{5}, []uint16{0, 5}, true},
		{[]uint16{5}, []uint16{5, 6}, false}, {[]uint16{5, 6}, []uint16{5, 6}, true}, {[]uint16{5, 6}, []uint16{6, 5}, false},
		{[]uint16{5, 6}, []uint16{5}, false},
	} {
		k := arpKit(t, func(cfg *Config) { cfg.VLANs = c.ours })
		want := map[Drop]uint64{EthVLANID: 1}
		if c.ok {
			want = nil
		}
		k.wantDrops(func() { k.inject(tags(c.theirs...)) }, want)
		out := k.sent()
		if len(out) != map[bool]int{true: 1}[c.ok] {
			t.Errorf("our tags %v, theirs %v: %d answers", c.ours, c.theirs, len(out))
			continue
		}
		if !c.ok {
			continue
		}
		head := concat(peerMAC[:], usMAC[:])
		for i, id := range c.ours {
			kind := uint16(0x8100)
			if i+1 < len(c.ours) {
				kind = 0x88a8
			}
			head = concat(head, be16(kind), be16(id))
		}
		if !bytes.HasPrefix(out[0], concat(head, be16(0x0806))) {
			t.Errorf("our tags %v: answer starts with % x", c.ours, out[0][:24])
		}
	}
}
