package reactor

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"xdpd/proto"
	"xdpd/sockets"
)

// client is a TCP connection of the peer to a group's listener, in frames written by hand.
type client struct {
	port     uint16
	seq, ack uint32
}

// frame is a segment of it, valid until the next one.
func (c *client) frame(g *rig, dport uint16, flags uint8, data string) []byte {
	n := proto.PutEthernet(g.frame[:], ourMAC, peerMAC, proto.EtherIPv4)
	n += proto.PutIPv4(g.frame[n:], &proto.IPv4{
		Src: peerAddr, Dst: ourAddr, TTL: 64, Proto: proto.ProtoTCP, TotalLen: uint16(40 + len(data)),
	})
	tcp := g.frame[n : n+20+copy(g.frame[n+20:], data)]
	h := proto.TCP{SrcPort: c.port, DstPort: dport, Seq: c.seq, Ack: c.ack, DataOff: 20, Flags: flags, Window: 60000}
	proto.PutTCP(tcp, &h)
	h.Checksum = ^proto.Fold(proto.Sum(tcp, proto.PseudoSum(peerAddr, ourAddr, proto.ProtoTCP, len(tcp))))
	proto.PutTCP(tcp, &h)
	c.seq += uint32(len(data))
	if flags&proto.SYN != 0 {
		c.seq++
	}
	return g.frame[:n+len(tcp)]
}

// answer finds the last segment for the client among what the rigs sent, and forgets all of it.
func (c *client) answer(rigs []*rig) (h proto.TCP, ok bool) {
	for _, g := range rigs {
		for _, b := range g.sent {
			if eth, _ := proto.ParseEthernet(b); eth.Type != proto.EtherIPv4 {
				continue
			}
			if got, fault := proto.ParseTCP(b[34:]); fault == proto.OK && got.DstPort == c.port {
				h, ok = got, true
			}
		}
		g.sent = nil
	}
	return h, ok
}

// settleAll runs the reactors until none has anything to do, for itself or another.
func settleAll(rigs []*rig) {
	for range 2*len(rigs) + 1 {
		for _, g := range rigs {
			g.settle()
		}
	}
}

// open does the handshake: the SYN comes in on one queue and its ACK on another.
func (c *client) open(t *testing.T, rigs []*rig, dport uint16, synOn, ackOn int) {
	t.Helper()
	rigs[synOn].deliver(c.frame(rigs[synOn], dport, proto.SYN, ""))
	settleAll(rigs)
	h, ok := c.answer(rigs)
	if !ok || h.Flags != proto.SYN|proto.ACK || h.Ack != c.seq {
		t.Fatalf("port %d: the SYN is answered with %v, %v", c.port, h, ok)
	}
	c.ack = h.Seq + 1
	rigs[ackOn].deliver(c.frame(rigs[ackOn], dport, proto.ACK, ""))
	settleAll(rigs)
}

// listening is a group of n simulated NICs with a listener.
func listening(t *testing.T, n int, spread Spread) (g *Group, rigs []*rig, socks []sockets.Handle) {
	t.Helper()
	rigs, reactors, _ := newRigs(t, n, options{})
	g, err := NewGroup(reactors, GroupConfig{})
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range rigs {
		k.meet()
	}
	if socks, err = g.Listen(0, echoPort, spread); err != nil || len(socks) != n {
		t.Fatalf("Listen: %d sockets, %v", len(socks), err)
	}
	return g, rigs, socks
}

// accept takes a connection from the only reactor that has one, and says which; -1: none has.
func accept(t *testing.T, rigs []*rig, socks []sockets.Handle) (on int, c sockets.Handle) {
	t.Helper()
	on = -1
	for i, k := range rigs {
		k.enter(func(h *sockets.Host, _ int64) {
			for {
				s, errno := h.TCPAccept(socks[i])
				if errno != 0 {
					return
				}
				if on >= 0 {
					t.Fatalf("reactors %d and %d both have a connection", on, i)
				}
				on, c = i, s
			}
		})
	}
	return on, c
}

// TestListen: in every shape a connection lands where its spread says, whatever queues its handshake comes in on, and its
// data follows it there.
func TestListen(t *testing.T) {
	byPort := By(func(peer netip.AddrPort) int { return int(peer.Port()) % 5 })
	for name, c := range map[string]struct {
		reactors int
		spread   Spread
		want     func(i int, peer uint16, synOn int) int
	}{
		"each":               {3, nil, func(_ int, _ uint16, synOn int) int { return synOn }},
		"each of one":        {1, nil, func(int, uint16, int) int { return 0 }},
		"round robin":        {4, RoundRobin, func(i int, _ uint16, _ int) int { return 1 + i%3 }},
		"round robin of two": {2, RoundRobin, func(int, uint16, int) int { return 1 }},
		"round robin of one": {1, RoundRobin, func(int, uint16, int) int { return 0 }},
		"least connections":  {3, LeastConns, func(i int, _ uint16, _ int) int { return 1 + i%2 }},
		"least of one":       {1, LeastConns, func(int, uint16, int) int { return 0 }},
		"by function":        {4, byPort, func(_ int, peer uint16, _ int) int { return int(peer) % 5 % 4 }}, // 4: there is none, main keeps it
	} {
		t.Run(name, func(t *testing.T) {
			_, rigs, socks := listening(t, c.reactors, c.spread)
			const conns = 24
			landed := make([]uint64, c.reactors)
			for i := range conns {
				p := &client{port: uint16(5000 + 7*i), seq: uint32(i) << 24}
				synOn, ackOn := i%c.reactors, i*5/2%c.reactors
				p.open(t, rigs, echoPort, synOn, ackOn)
				on, s := accept(t, rigs, socks)
				if want := c.want(i, p.port, synOn); on != want {
					t.Fatalf("connection %d landed on reactor %d, not %d", i, on, want)
				}
				landed[on]++
				rigs[ackOn].deliver(p.frame(rigs[ackOn], echoPort, proto.ACK|proto.PSH, "hello"))
				settleAll(rigs)
				rigs[on].enter(func(h *sockets.Host, now int64) {
					buf := make([]byte, 10)
					if n, errno := h.TCPRead(s, buf, now); errno != 0 || string(buf[:n]) != "hello" {
						t.Fatalf("connection %d: read %q, %v", i, buf[:n], errno)
					}
				})
			}
			var over, in uint64
			for i, k := range rigs {
				n := k.host.Counters()
				if n.Stats[sockets.TCPAccepted] != landed[i] {
					t.Errorf("reactor %d counts %d accepted, has %d", i, n.Stats[sockets.TCPAccepted], landed[i])
				}
				over, in = over+n.Stats[sockets.HandedOver], in+n.Stats[sockets.HandedIn]
				for d, n := range n.Drops {
					if n != 0 {
						t.Errorf("reactor %d dropped %d: %v", i, n, sockets.Drop(d))
					}
				}
			}
			if over != in || (over > 0) != (c.reactors > 1) {
				t.Errorf("%d handed over, %d handed in", over, in)
			}
		})
	}
}

// TestLeastConns: connections that end make room, and many that are established in one turn count at once.
func TestLeastConns(t *testing.T) {
	_, rigs, socks := listening(t, 3, LeastConns)
	dir := rigs[0].host.Directory()
	var peers []*client
	for i := range 6 { // all in one turn
		p := &client{port: uint16(6000 + i), seq: 1}
		peers = append(peers, p)
		rigs[0].deliver(p.frame(rigs[0], echoPort, proto.SYN, ""))
		rigs[0].settle()
		h, _ := p.answer(rigs)
		p.ack = h.Seq + 1
	}
	for _, p := range peers {
		rigs[0].deliver(p.frame(rigs[0], echoPort, proto.ACK, ""))
	}
	rigs[0].settle()
	if dir.Conns(0) != 0 || dir.Conns(1) != 3 || dir.Conns(2) != 3 {
		t.Fatalf("on their way: %d, %d, %d", dir.Conns(0), dir.Conns(1), dir.Conns(2))
	}
	settleAll(rigs)
	if dir.Conns(1) != 3 || dir.Conns(2) != 3 {
		t.Fatalf("arrived: %d and %d", dir.Conns(1), dir.Conns(2))
	}
	rigs[2].enter(func(h *sockets.Host, now int64) { // two of the three end
		for range 2 {
			s, errno := h.TCPAccept(socks[2])
			if errno == 0 {
				errno = h.TCPAbort(s, now)
			}
			if errno != 0 {
				t.Fatal(errno)
			}
		}
	})
	settleAll(rigs)
	for i := range uint16(2) {
		p := &client{port: 7000 + i, seq: 1}
		p.open(t, rigs, echoPort, 1, 1)
	}
	if dir.Conns(1) != 3 || dir.Conns(2) != 3 {
		t.Errorf("%d and %d, where the second had 1 and two came", dir.Conns(1), dir.Conns(2))
	}
}

// TestListenErrors: what cannot be opened everywhere is open nowhere.
func TestListenErrors(t *testing.T) {
	for _, spread := range []Spread{nil, RoundRobin} {
		g, rigs, _ := listening(t, 3, nil)
		if _, err := g.Listen(0, echoPort, spread); !errors.Is(err, sockets.EADDRINUSE) {
			t.Errorf("the port twice: %v", err)
		}
		if _, err := g.Listen(peerAddr, 80, spread); !errors.Is(err, sockets.EADDRNOTAVAIL) {
			t.Errorf("another's address: %v", err)
		}
		var taken sockets.Handle
		rigs[2].enter(func(h *sockets.Host, _ int64) { taken, _ = h.TCPListen(0, 81) })
		if _, err := g.Listen(0, 81, spread); !errors.Is(err, sockets.EADDRINUSE) {
			t.Errorf("a port that the last reactor uses: %v", err)
		}
		rigs[2].enter(func(h *sockets.Host, now int64) { h.Close(taken, now) })
		if _, err := g.Listen(0, 81, spread); err != nil {
			t.Errorf("once it is free: %v", err)
		}
		free, err := g.Listen(0, 0, spread)
		if err != nil {
			t.Fatal(err)
		}
		var ports []uint16
		for i, k := range rigs {
			k.enter(func(h *sockets.Host, _ int64) {
				at, _ := h.TCPAddr(free[i])
				ports = append(ports, at.Port())
			})
		}
		if len(slices.Compact(slices.Clone(ports))) != 1 || ports[0] == 0 {
			t.Errorf("a free port is %v", ports)
		}
		g.reactors[1].stopped = true
		if s, err := g.Listen(0, 82, spread); !errors.Is(err, ErrStopped) || s != nil {
			t.Errorf("with a stopped reactor: %v, %v", s, err)
		}
	}
}
