package sockets

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"xdpd/proto"
	"xdpd/rings/simnic"
)

// newSpread is a device with a key of its own and a table that deals its entries out to some queues.
func newSpread(seed uint64, queues, size int) *simnic.Spread {
	rng := rand.New(rand.NewPCG(seed, 1))
	n := &simnic.Spread{Key: make([]byte, 40), Bytes: proto.RSSPorts}
	for i := range n.Key {
		n.Key[i] = byte(rng.Uint32())
	}
	for i := range size {
		n.Table = append(n.Table, uint32(i%queues))
	}
	return n
}

// facts are what the device's driver tells.
func facts(t testing.TB, n *simnic.Spread) *proto.RSS {
	t.Helper()
	r, err := proto.NewRSS(n.Key, n.Table, n.Bytes, n.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// queueKits are the Hosts of a device's queues.
func queueKits(t *testing.T, queues int, rss *proto.RSS) []*kit {
	var kits []*kit
	for q := range queues {
		kits = append(kits, newKit(t, func(c *Config) { c.RSS, c.Queue, c.Seed = rss, q, [32]byte{byte(q + 1)} }))
	}
	return kits
}

// dialOnce dials from a Host that was asked for a queue, and gives the SYN.
func (k *kit) dialOnce(rport uint16) []byte {
	k.t.Helper()
	s, err := k.h.TCPDial(0, 0, peerIP, rport, k.now)
	if err != 0 {
		k.t.Fatalf("TCPDial: %v", err)
	}
	return k.onlyFrame(s)
}

// talkOnce does as much with a connected UDP socket.
func (k *kit) talkOnce(rport uint16) []byte {
	k.t.Helper()
	s, err := k.h.UDPDial(peerIP, rport)
	if err == 0 {
		err = k.h.UDPSend(s, []byte("hello"), netip.AddrPort{}, k.now)
	}
	if err != 0 {
		k.t.Fatalf("UDPDial: %v", err)
	}
	return k.onlyFrame(s)
}

// onlyFrame is what a socket sent, which is then given up.
func (k *kit) onlyFrame(s Handle) []byte {
	k.t.Helper()
	k.pump()
	out := k.sent()
	if len(out) != 1 {
		k.t.Fatalf("%d frames were sent", len(out))
	}
	k.now += ms
	if s.kind() == kindTCP {
		k.h.TCPAbort(s, k.now)
	} else {
		k.h.Close(s, k.now)
	}
	k.pump()
	k.sent()
	return out[0]
}

// TestPortsBringAnswersHome: of 1,000 connections from four queues every answer comes in on the queue that asked, if the
// device hashes as it says, and about a quarter does if it does not.
func TestPortsBringAnswersHome(t *testing.T) {
	for name, ask := range map[string]func(k *kit, rport uint16) []byte{"TCP": (*kit).dialOnce, "UDP": (*kit).talkOnce} {
		t.Run(name, func(t *testing.T) {
			nic, other := newSpread(1, 4, 128), newSpread(2, 4, 128)
			kits := queueKits(t, 4, facts(t, nic))
			home, astray, ports := 0, 0, map[uint16]bool{}
			for i := range 1000 {
				q := i % 4
				frame := ask(kits[q], uint16(1+i/16))
				if nic.AnswerQueue(frame) == q {
					home++
				}
				if other.AnswerQueue(frame) != q {
					astray++
				}
				p := binary.BigEndian.Uint16(frame[34:])
				if p < ephemeralFirst || p > 60999 {
					t.Fatalf("port %d", p)
				}
				ports[p] = true
			}
			if home != 1000 {
				t.Errorf("%d of 1000 answers came home", home)
			}
			if astray < 600 || astray > 900 {
				t.Errorf("under another key %d of 1000 answers went astray", astray)
			}
			if len(ports) < 900 {
				t.Errorf("1000 connections used %d ports", len(ports))
			}
			for q, k := range kits {
				if n := k.h.Counters().Stats[PortElsewhere]; n != 0 {
					t.Errorf("queue %d counted %d ports elsewhere", q, n)
				}
			}
		})
	}
}

// TestPortsStayRandom: RFC 6056. Among the ports that fit there is no order and no favourite: those of UDP spread evenly,
// and TCP's to a new peer begin anywhere.
func TestPortsStayRandom(t *testing.T) {
	for name, ask := range map[string]func(k *kit, rport uint16) []byte{"TCP": (*kit).dialOnce, "UDP": (*kit).talkOnce} {
		t.Run(name, func(t *testing.T) {
			k := queueKits(t, 1, facts(t, newSpread(3, 4, 64)))[0]
			var parts [16]int
			up, last := 0, uint16(0)
			for i := range 1600 {
				p := binary.BigEndian.Uint16(ask(k, uint16(i+1))[34:])
				parts[int(p-ephemeralFirst)*16/ephemeralCount]++
				if p > last {
					up++
				}
				last = p
			}
			for i, n := range parts {
				if n < 50 || n > 150 {
					t.Errorf("of 1600 ports %d are in part %d of 16", n, i)
				}
			}
			if up < 700 || up > 900 {
				t.Errorf("%d of 1600 ports are above the one before", up)
			}
		})
	}
}

// TestPortsElsewhere: where no port brings the answer here, any will do, and it is counted.
func TestPortsElsewhere(t *testing.T) {
	nic := newSpread(4, 4, 128)
	k := queueKits(t, 6, facts(t, nic))[5] // which no entry of the table names
	if q := nic.AnswerQueue(k.dialOnce(80)); q == 5 {
		t.Error("the table has a queue 5")
	}
	k.talkOnce(80)
	if n := k.h.Counters().Stats[PortElsewhere]; n != 2 {
		t.Errorf("%d ports elsewhere are counted, want 2", n)
	}
	if _, err := k.h.TCPDialHere(0, peerIP, 80, k.now); err != EADDRNOTAVAIL {
		t.Errorf("TCPDialHere: %v", err)
	}
	k.pump()
	if out := k.sent(); len(out) != 0 || k.h.tcp.conns != 0 {
		t.Errorf("TCPDialHere sent %d frames and left %d connections", len(out), k.h.tcp.conns)
	}
	if n := k.h.Counters().Stats[PortElsewhere]; n != 2 {
		t.Errorf("what was not dialled is counted: %d", n)
	}
}

// TestPortsFewLeft: with all ports that fit taken another one is found, then none.
func TestPortsFewLeft(t *testing.T) {
	nic := newSpread(5, 2, 128)
	k := queueKits(t, 1, facts(t, nic))[0]
	taken := map[uint16]int{}
	other := uint16(0)
	for p := uint16(ephemeralFirst); p < ephemeralFirst+ephemeralCount; p++ {
		taken[p] = 1
		if !k.h.answeredHere(proto.ProtoUDP, flowKey{Local: usIP, Remote: peerIP, LPort: p, RPort: 9}) {
			other = p
		}
	}
	delete(taken, other)
	saved := k.h.udp.ports
	k.h.udp.ports = taken
	s, err := k.h.UDPDial(peerIP, 9)
	if local, _ := k.h.UDPAddr(s); err != 0 || local.Port() != other {
		t.Errorf("UDPDial from port %v, %v; want %d", local, err, other)
	}
	if n := k.h.Counters().Stats[PortElsewhere]; n != 1 {
		t.Errorf("%d ports elsewhere are counted", n)
	}
	if _, err := k.h.UDPDial(peerIP, 9); err != EADDRINUSE {
		t.Errorf("with no port free: %v", err)
	}
	k.h.Close(s, k.now)
	k.h.udp.ports = saved
}

// TestPortsWithoutPorts: a device that hashes addresses alone brings all answers of a peer to one queue, whatever the
// port, and one that says nothing may bring them anywhere.
func TestPortsWithoutPorts(t *testing.T) {
	nic := newSpread(6, 4, 128)
	nic.Bytes = proto.RSSAddrs
	here := 0
	for q, k := range queueKits(t, 4, facts(t, nic)) {
		frame := k.dialOnce(80)
		s, err := k.h.TCPDialHere(0, peerIP, 80, k.now)
		elsewhere := k.h.Counters().Stats[PortElsewhere]
		if nic.AnswerQueue(frame) == q {
			here++
			if err != 0 || elsewhere != 0 {
				t.Errorf("queue %d is the peer's: %v, and %d ports elsewhere", q, err, elsewhere)
			}
			k.onlyFrame(s)
		} else if err != EADDRNOTAVAIL || elsewhere != 1 {
			t.Errorf("queue %d is not the peer's: %v, and %d ports elsewhere", q, err, elsewhere)
		}
	}
	if here != 1 {
		t.Errorf("%d queues are the peer's", here)
	}
	k := queueKits(t, 1, nil)[0]
	if _, err := k.h.TCPDialHere(0, peerIP, 80, k.now); err != EADDRNOTAVAIL {
		t.Errorf("with nothing known TCPDialHere says %v", err)
	}
	k.dialOnce(80)
	k.talkOnce(80)
	if n := k.h.Counters().Stats[PortElsewhere]; n != 0 {
		t.Errorf("with nothing known %d ports elsewhere are counted", n)
	}
}

func TestUDPDial(t *testing.T) {
	k := newKit(t, func(c *Config) { c.Routes = nil })
	s, err := k.h.UDPDial(peerIP, 9)
	local, remote := k.h.UDPAddr(s)
	if err != 0 || local.Addr() != usIP.Netip() || remote != port(peerIP, 9) {
		t.Errorf("UDPDial: %v to %v, %v", local, remote, err)
	}
	if _, err := k.h.UDPDial(peerIP, 0); err != EINVAL {
		t.Errorf("to port 0: %v", err)
	}
	if _, err := k.h.UDPDial(farIP, 9); err != ENETUNREACH {
		t.Errorf("without a route: %v", err)
	}
	if n := len(k.h.UDPSockets()); n != 1 {
		t.Errorf("%d sockets are left", n)
	}
}
