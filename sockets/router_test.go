package sockets

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/proto"
	"xdpd/umem"
)

func addr4(a, b, c, d byte) proto.Addr {
	return proto.Addr(a)<<24 | proto.Addr(b)<<16 | proto.Addr(c)<<8 | proto.Addr(d)
}

// newRouterKit: port i has 10.0.i.254/24, with neighbours .1 to .9 known; 192.0.2.0/24 is behind 10.0.1.1.
func newRouterKit(t testing.TB, ports, mtu int) (*fwdKit, *Router) {
	pool, ledger := newFwdPool(2048)
	r, err := NewRouter(ForwardConfig{Ports: fwdPorts(ports, mtu), FillFrames: 256}, pool, 0)
	if err != nil {
		t.Fatal(err)
	}
	tables := Tables{Local: []proto.Addr{addr4(127, 0, 0, 1)}}
	for i := range ports {
		own := addr4(10, 0, byte(i), 254)
		tables.Local = append(tables.Local, own)
		tables.Addrs = append(tables.Addrs, []Prefix{{own, 24}})
		tables.Routes = append(tables.Routes, FwdRoute{Dst: own, Bits: 24, Hops: []Hop{{Port: i}}})
		for n := range 9 {
			r.SetNeighbour(i, addr4(10, 0, byte(i), byte(n+1)), stationMAC(i, n+1), true, 0)
		}
	}
	tables.Routes = append(tables.Routes,
		FwdRoute{Dst: addr4(192, 0, 2, 0), Bits: 24, Hops: []Hop{{1, addr4(10, 0, 1, 1)}}},
		FwdRoute{Dst: addr4(192, 0, 3, 0), Bits: 24, Kind: RouteBlackhole},
		FwdRoute{Dst: addr4(192, 0, 4, 0), Bits: 24, Kind: RouteUnreachable},
		FwdRoute{Dst: addr4(192, 0, 5, 0), Bits: 24, Kind: RouteProhibit},
		FwdRoute{Dst: addr4(192, 0, 6, 0), Bits: 24, Hops: []Hop{{NoPort, addr4(172, 16, 0, 1)}}},
	)
	r.SetTables(tables)
	return &fwdKit{t: t, m: r, pool: pool, ledger: ledger, ports: ports}, r
}

// ipFrame is a UDP packet with n bytes behind its IP header, in a frame to port 0 with padding behind it.
func ipFrame(ip proto.IPv4, opts []byte, n int) []byte {
	if ip.TTL == 0 {
		ip.TTL = 64
	}
	if ip.Proto == 0 {
		ip.Proto = proto.ProtoUDP
	}
	b := make([]byte, 14+20+len(opts)+n+3)
	proto.PutEthernet(b, fwdMAC(0), stationMAC(0, 1), proto.EtherIPv4)
	more := ip.MF
	ip.MF = false
	df := ip.DF
	h := proto.PutFragment(b[14:], &ip, opts, 0, n, more)
	if df {
		b[14+6] |= 0x40
		binary.BigEndian.PutUint16(b[14+10:], 0)
		binary.BigEndian.PutUint16(b[14+10:], proto.Checksum(b[14:14+h]))
	}
	for i := range n {
		b[14+h+i] = byte(i)
	}
	return b
}

// only gives the one frame that all ports together sent, and which port it was.
func (k *fwdKit) only() (port int, frame []byte) {
	k.t.Helper()
	port = -1
	for i, list := range k.all() {
		for _, f := range list {
			if port >= 0 {
				k.t.Fatal("more than one frame was sent")
			}
			port, frame = i, f
		}
	}
	return port, frame
}

func TestRouterForwards(t *testing.T) {
	k, _ := newRouterKit(t, 3, 1500)
	src, via := addr4(10, 0, 0, 1), addr4(192, 0, 2, 77)
	for _, c := range []struct {
		dst  proto.Addr
		port int
		mac  proto.MAC
		opts []byte
		n    int
	}{
		{addr4(10, 0, 2, 5), 2, stationMAC(2, 5), nil, 8},
		{via, 1, stationMAC(1, 1), nil, 1480},
		{via, 1, stationMAC(1, 1), []byte{7, 4, 4, 0}, 100},
		{addr4(10, 0, 0, 7), 0, stationMAC(0, 7), nil, 0}, // back to where it came from
	} {
		in := ipFrame(proto.IPv4{Src: src, Dst: c.dst, TTL: 2}, c.opts, c.n)
		k.deliver(0, in)
		port, out := k.only()
		want := bytes.Clone(in[:14+20+len(c.opts)+c.n])
		proto.PutEthernet(want, c.mac, fwdMAC(c.port), proto.EtherIPv4)
		proto.DecTTL(want[14:])
		if port != c.port || !bytes.Equal(out, want) {
			t.Errorf("to %v: port %d sent\n%x, want port %d\n%x", c.dst, port, out, c.port, want)
		}
	}
	if k.copies() != 0 {
		t.Errorf("%d bytes were copied", k.copies())
	}
	k.books(0)
}

// TestRouterRefuses: each reason to drop a packet, with the ICMP error that it gives, if any.
func TestRouterRefuses(t *testing.T) {
	src, dst := addr4(10, 0, 0, 1), addr4(10, 0, 1, 1)
	none := -1
	ip := func(change func(*proto.IPv4)) []byte {
		h := proto.IPv4{Src: src, Dst: dst}
		change(&h)
		return ipFrame(h, nil, 100)
	}
	to := func(a proto.Addr) []byte { return ip(func(h *proto.IPv4) { h.Dst = a }) }
	from := func(a proto.Addr) []byte { return ip(func(h *proto.IPv4) { h.Src = a }) }
	raw := func(change func([]byte)) []byte { b := to(dst); change(b); return b }
	icmp := func(typ byte) []byte {
		b := ip(func(h *proto.IPv4) { h.TTL, h.Proto = 1, proto.ProtoICMP })
		b[34] = typ
		return b
	}
	for _, c := range []struct {
		name      string
		frame     []byte
		why       Drop
		typ, code int
	}{
		{"short", make([]byte, 13), Drop(proto.EthShort), none, 0},
		{"another MAC", raw(func(b []byte) { b[5] = 9 }), EthNotOurs, none, 0},
		{"no IPv4", raw(func(b []byte) { b[13] = 6 }), EthType, none, 0},
		{"bad checksum", raw(func(b []byte) { b[24]++ }), Drop(proto.IPChecksum), none, 0},
		{"cut", to(dst)[:100], Drop(proto.IPTotalLen), none, 0},
		{"from a group", from(addr4(224, 0, 0, 1)), IPMartianSource, none, 0},
		{"from loopback", from(addr4(127, 1, 1, 1)), IPMartianSource, none, 0},
		{"from nowhere", from(0), IPMartianSource, none, 0},
		{"from ourselves", from(addr4(10, 0, 1, 254)), IPMartianSource, none, 0},
		{"from a broadcast", from(addr4(10, 0, 1, 255)), IPMartianSource, none, 0},
		{"to loopback", to(addr4(127, 1, 1, 1)), IPMartianDest, none, 0},
		{"to all", to(0xffffffff), IPMartianDest, none, 0},
		{"to a group", to(addr4(224, 0, 0, 5)), FwdMulticast, none, 0},
		{"to link local", to(addr4(169, 254, 3, 3)), FwdLinkLocal, none, 0},
		{"from link local", from(addr4(169, 254, 3, 3)), FwdLinkLocal, none, 0},
		{"to ourselves", to(addr4(10, 0, 1, 254)), FwdLocal, none, 0},
		{"directed broadcast", to(addr4(10, 0, 1, 255)), FwdBroadcast, none, 0},
		{"source route", ipFrame(proto.IPv4{Src: src, Dst: dst}, []byte{131, 3, 4, 0}, 8), IPSourceRoute, none, 0},
		{"no route", to(addr4(8, 8, 8, 8)), TxNoRoute, 3, 0},
		{"blackhole", to(addr4(192, 0, 3, 1)), FwdRefused, none, 0},
		{"unreachable", to(addr4(192, 0, 4, 1)), FwdRefused, 3, 1},
		{"prohibited", to(addr4(192, 0, 5, 1)), FwdRefused, 3, 13},
		{"no port", to(addr4(192, 0, 6, 1)), FwdNoPort, 3, 0},
		{"TTL", ip(func(h *proto.IPv4) { h.TTL = 1 }), FwdTTL, 11, 0},
		{"TTL of a later fragment", ip(func(h *proto.IPv4) { h.TTL, h.FragOff = 1, 800 }), FwdTTL, none, 0},
		{"TTL of an echo", icmp(8), FwdTTL, 11, 0},
		{"TTL of an ICMP error", icmp(3), FwdTTL, none, 0},
		{"TTL of a strange ICMP", icmp(99), FwdTTL, none, 0},
		{"TTL where no route is", ip(func(h *proto.IPv4) { h.TTL, h.Dst = 1, addr4(8, 8, 8, 8) }), TxNoRoute, 11, 0},
		{"DF", ipFrame(proto.IPv4{Src: src, Dst: addr4(10, 0, 2, 1), DF: true}, nil, 1000), FwdTooBig, 3, 4},
	} {
		k, r := newRouterKit(t, 3, 1500)
		small := r.Port(2)
		small.MTU = 700
		if err := r.SetPort(2, small); err != nil {
			t.Fatal(err)
		}
		k.deliver(0, c.frame)
		port, out := k.only()
		if n := r.Counters(0).Drops[c.why]; n != 1 {
			t.Errorf("%s: not counted as %v: %v", c.name, c.why, r.Counters(0).Drops)
		}
		k.books(0)
		if c.typ == none {
			if port >= 0 {
				t.Errorf("%s: answered by %x", c.name, out)
			}
			continue
		}
		if port != 0 || len(out) < 42 {
			t.Errorf("%s: port %d answered %x", c.name, port, out)
			continue
		}
		h, fault := proto.ParseIPv4(out[14:])
		m, fault2 := proto.ParseICMP(out[34:])
		quote := c.frame[14:min(len(c.frame)-3, 14+icmpQuote)]
		if fault != proto.OK || fault2 != proto.OK || int(m.Type) != c.typ || int(m.Code) != c.code ||
			h.Src != addr4(10, 0, 0, 254) || h.Dst != src || !bytes.Equal(out[42:], quote) || proto.MAC(out) != stationMAC(0, 1) {
			t.Errorf("%s: %v %v %v %v\n%x, quote\n%x", c.name, fault, h, fault2, m, out[42:], quote)
		}
		if c.code == 4 && m.Rest != 700 {
			t.Errorf("%s: says MTU %d", c.name, m.Rest)
		}
	}
}

// TestRouterLimitsErrors: a flood of packets that cannot be sent on is not answered one by one.
func TestRouterLimitsErrors(t *testing.T) {
	k, r := newRouterKit(t, 2, 1500)
	for range 100 {
		k.deliver(0, ipFrame(proto.IPv4{Src: addr4(10, 0, 0, 1), Dst: addr4(8, 8, 8, 8)}, nil, 8))
	}
	if n := len(k.sent(0)); n != 6 || r.Counters(0).Drops[ICMPRateLimit] != 94 {
		t.Errorf("%d errors sent, %d held back", n, r.Counters(0).Drops[ICMPRateLimit])
	}
}

// TestRouterTellsMTU: path MTU discovery towards many destinations at once is not held up.
func TestRouterTellsMTU(t *testing.T) {
	k, r := newRouterKit(t, 2, 1500)
	small := r.Port(1)
	small.MTU = 700
	if err := r.SetPort(1, small); err != nil {
		t.Fatal(err)
	}
	big := ipFrame(proto.IPv4{Src: addr4(10, 0, 0, 1), Dst: addr4(192, 0, 2, 1), DF: true}, nil, 1000)
	told := func(n int) (sent int) {
		for range n {
			k.deliver(0, big)
			sent += len(k.sent(0))
		}
		return sent
	}
	if n := told(500); n != 500 {
		t.Errorf("%d of 500 were told the MTU", n)
	}
	if n := told(10_000); n >= 1000 || r.Counters(0).Drops[ICMPRateLimit] == 0 {
		t.Errorf("%d of 10,000 more at once", n)
	}
	k.books(0)
}

// TestRouterTables: new tables take no time of the router's, however many routes there are.
func TestRouterTables(t *testing.T) {
	k, r := newRouterKit(t, 2, 1500)
	var tables Tables
	for i := range 1000 {
		tables.Routes = append(tables.Routes, FwdRoute{Dst: addr4(172, byte(i>>8), byte(i), 0), Bits: 24, Hops: []Hop{{1, addr4(10, 0, 1, 1)}}})
	}
	fib := NewFIB(tables)
	if n := testing.AllocsPerRun(10, func() { r.SetFIB(fib) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
	k.deliver(0, ipFrame(proto.IPv4{Src: addr4(10, 0, 0, 1), Dst: addr4(172, 3, 100, 7)}, nil, 8))
	if port, _ := k.only(); port != 1 || r.Routes() != 1000 {
		t.Errorf("port %d, %d routes", port, r.Routes())
	}
}

// TestRouterFragments puts the pieces together again.
func TestRouterFragments(t *testing.T) {
	k, r := newRouterKit(t, 2, 1500)
	small := r.Port(1)
	small.MTU = 577
	if err := r.SetPort(1, small); err != nil {
		t.Fatal(err)
	}
	in := ipFrame(proto.IPv4{Src: addr4(10, 0, 0, 1), Dst: addr4(10, 0, 1, 1), ID: 77, MF: true}, []byte{7, 3, 4, 0}, 1400)
	k.deliver(0, in)
	var body []byte
	for i, out := range k.sent(1) {
		h, fault := proto.ParseIPv4(out[14:])
		header := 20
		if i == 0 {
			header = 24
		}
		if fault != proto.OK || int(h.FragOff) != len(body) || !h.MF || h.ID != 77 || h.TTL != 63 || int(h.HeaderLen) != header || h.TotalLen > 577 {
			t.Errorf("fragment %d: %v %v", i, fault, h)
		}
		body = append(body, out[14+header:]...)
	}
	if !bytes.Equal(body, in[38:38+1400]) {
		t.Errorf("the pieces are %d bytes, and not what was sent", len(body))
	}
	if c := r.Counters(0); c.Copied[CopyFragment] != 1400 || c.Fragmented != 1 || c.Fragments != 3 {
		t.Errorf("%+v %v", c.PortStats, c.Copied)
	}
	k.books(0)
}

func TestRouterNeighbours(t *testing.T) {
	k, r := newRouterKit(t, 2, 1500)
	src, dst := addr4(10, 0, 0, 1), addr4(10, 0, 1, 100)
	for range fwdNeighQueue + 3 {
		k.deliver(0, ipFrame(proto.IPv4{Src: src, Dst: dst}, nil, 8))
	}
	if h, ok := r.PopResolve(); !ok || h != (Hop{1, dst}) {
		t.Errorf("asked for %v %v", h, ok)
	}
	if _, ok := r.PopResolve(); ok {
		t.Error("asked twice")
	}
	k.books(fwdNeighQueue)
	r.SetNeighbour(1, dst, stationMAC(1, 100), true, k.now)
	if n := len(k.sent(1)); n != fwdNeighQueue || r.Counters(1).Drops[NeighQueueFull] != 3 {
		t.Errorf("%d left, %d dropped", n, r.Counters(1).Drops[NeighQueueFull])
	}
	k.books(0)
	// In use and not confirmed for long: it is asked for, and goes on being used.
	k.now += fwdNeighFresh + 1
	k.deliver(0, ipFrame(proto.IPv4{Src: src, Dst: dst}, nil, 8))
	if h, ok := r.PopResolve(); !ok || h.Gateway != dst || len(k.sent(1)) != 1 {
		t.Errorf("asked for %v %v", h, ok)
	}
	// It is gone: who sends hears of it when nobody answers.
	r.SetNeighbour(1, dst, proto.MAC{}, false, k.now)
	k.deliver(0, ipFrame(proto.IPv4{Src: src, Dst: dst}, nil, 8))
	k.books(1)
	k.now += fwdNeighGiveUp
	k.m.Tick(k.now)
	out := k.sent(0)
	if len(out) != 1 || out[0][34] != proto.ICMPUnreachable || out[0][35] != proto.UnreachHost {
		t.Errorf("told %x", out)
	}
	k.books(0)
	// A scan of the network holds no more than its share.
	for i := range 2000 {
		k.deliver(0, ipFrame(proto.IPv4{Src: src, Dst: addr4(10, 0, 1, 101) + proto.Addr(i%100)}, nil, 8))
	}
	_, waiting := r.Neighbours()
	if waiting > (fwdTestFrames-256)/16 {
		t.Errorf("%d packets wait", waiting)
	}
	k.books(waiting)
	down := r.Port(1)
	down.Up = false
	if err := r.SetPort(1, down); err != nil {
		t.Fatal(err)
	}
	k.all()
	k.books(0)
}

// TestRouterAsksForAll: no neighbour has to wait for its time to be over because many became wanted at once.
func TestRouterAsksForAll(t *testing.T) {
	k, r := newRouterKit(t, 2, 1500)
	r.SetTables(Tables{Routes: []FwdRoute{{Dst: addr4(172, 16, 0, 0), Bits: 16, Hops: []Hop{{Port: 1}}}}})
	wanted := make(map[proto.Addr]bool)
	for i := range fwdNeighOpen + 100 {
		dst := addr4(172, 16, byte(i>>8), byte(i))
		k.deliver(0, ipFrame(proto.IPv4{Src: addr4(10, 0, 0, 1), Dst: dst}, nil, 8))
		wanted[dst] = i < fwdNeighOpen
	}
	asked := 0
	for {
		h, ok := r.PopResolve()
		if !ok {
			break
		}
		if !wanted[h.Gateway] {
			t.Errorf("asked for %v", h)
		}
		wanted[h.Gateway] = false
		asked++
	}
	if asked != fwdNeighOpen || r.Counters(1).Drops[NeighTableFull] != 100 {
		t.Errorf("asked for %d, %d had no room", asked, r.Counters(1).Drops[NeighTableFull])
	}
	_, waiting := r.Neighbours()
	k.books(waiting)
}

// TestRouterForgotten: the kernel forgets neighbours when it lacks room, as in a scan, and not only those of no use.
func TestRouterForgotten(t *testing.T) {
	k, r := newRouterKit(t, 2, 1500)
	packet := func(to proto.Addr) { k.deliver(0, ipFrame(proto.IPv4{Src: addr4(10, 0, 0, 1), Dst: to}, nil, 8)) }
	used, unused := addr4(10, 0, 1, 1), addr4(10, 0, 1, 2)
	k.now += fwdNeighFresh
	packet(used)
	k.sent(1)
	known, _ := r.Neighbours()
	r.ForgetNeighbour(1, used, k.now)
	r.ForgetNeighbour(1, unused, k.now)
	r.ForgetNeighbour(1, addr4(10, 0, 1, 3), k.now) // nor is that
	if h, ok := r.PopResolve(); !ok || h != (Hop{1, used}) {
		t.Errorf("asked for %v %v", h, ok)
	}
	if _, ok := r.PopResolve(); ok {
		t.Error("asked for who is not used")
	}
	if n, _ := r.Neighbours(); n != known-2 {
		t.Errorf("%d neighbours of %d", n, known)
	}
	packet(used)
	if n := len(k.sent(1)); n != 1 {
		t.Errorf("%d packets left", n)
	}
	r.SetNeighbour(1, used, proto.MAC{}, false, k.now) // it does not answer
	packet(used)
	packet(unused)
	k.books(2)
	down := r.Port(1)
	down.Up = false
	if err := r.SetPort(1, down); err != nil {
		t.Fatal(err)
	}
	if h, ok := r.PopResolve(); ok {
		t.Errorf("asked for %v on a port that is down", h)
	}
}

// routerOracle says what becomes of a frame, in the plainest words: the port and the bytes that leave, or none.
func routerOracle(r *Router, routes []FwdRoute, local []proto.Addr, in []byte, known func(Hop) (proto.MAC, bool)) (int, []byte) {
	if len(in) < 34 || proto.MAC(in) != fwdMAC(0) || in[12] != 8 || in[13] != 0 {
		return -1, nil
	}
	ip, fault := proto.ParseIPv4(in[14:])
	if fault != proto.OK || ip.TTL <= 1 || badUnicast(ip.Src) || badUnicast(ip.Dst) || ip.Src>>16 == 0xa9fe || ip.Dst>>16 == 0xa9fe ||
		proto.SourceRouted(in[34:14+int(ip.HeaderLen)]) {
		return -1, nil
	}
	for _, a := range local {
		if ip.Src == a || ip.Dst == a || a>>24 == 10 && (ip.Src == a|0xff || ip.Dst == a|0xff) {
			return -1, nil
		}
	}
	best := -1
	for i, c := range routes {
		if (c.Bits == 0 || (c.Dst^ip.Dst)>>(32-c.Bits) == 0) && (best < 0 || c.Bits > routes[best].Bits) {
			best = i
		}
	}
	if best < 0 || routes[best].Kind != RouteUnicast || routes[best].Hops[0].Port < 0 {
		return -1, nil
	}
	hop := routes[best].Hops[0]
	if hop.Gateway == 0 {
		hop.Gateway = ip.Dst
	}
	mac, ok := known(hop)
	if !ok || int(ip.TotalLen) > r.Port(hop.Port).MTU {
		return -1, nil
	}
	out := bytes.Clone(in[:14+int(ip.TotalLen)])
	proto.PutEthernet(out, mac, fwdMAC(hop.Port), proto.EtherIPv4)
	out[22]--
	binary.BigEndian.PutUint16(out[24:], 0)
	binary.BigEndian.PutUint16(out[24:], proto.Checksum(out[14:14+int(ip.HeaderLen)]))
	return hop.Port, out
}

// TestRouterRandom: random topologies and hostile frames; every frame is accounted for, and what should be sent on is, byte
// by byte.
func TestRouterRandom(t *testing.T) {
	first, n := seeds.Range(t, 300)
	for seed := first; seed < first+uint64(n); seed++ {
		rng := rand.New(rand.NewPCG(seed, 7))
		k, r := newRouterKit(t, 2+rng.IntN(4), 1500)
		var tables Tables
		for i := range k.ports {
			own := addr4(10, 0, byte(i), 254)
			tables.Local = append(tables.Local, own)
			tables.Addrs = append(tables.Addrs, []Prefix{{own, 24}})
			tables.Routes = append(tables.Routes, FwdRoute{Dst: own, Bits: 24, Hops: []Hop{{Port: i}}})
			c := r.Port(i)
			c.MTU = 600 + rng.IntN(900)
			_ = r.SetPort(i, c)
		}
		for range rng.IntN(30) {
			p := rng.IntN(k.ports)
			route := FwdRoute{
				Dst: addr4(byte(10+rng.IntN(2)), byte(rng.IntN(4)), byte(rng.IntN(256)), byte(rng.IntN(256))), Bits: rng.IntN(33),
				Kind: RouteKind(rng.IntN(8) / 5), Hops: []Hop{{p, addr4(10, 0, byte(p), byte(1+rng.IntN(9)))}},
			}
			if rng.IntN(5) == 0 {
				route.Hops[0].Port = NoPort
			}
			tables.Routes = append(tables.Routes, route)
		}
		r.SetTables(tables)
		known := func(h Hop) (proto.MAC, bool) {
			last := int(h.Gateway & 0xff)
			return stationMAC(h.Port, last), h.Gateway>>8 == addr4(10, 0, byte(h.Port), 0)>>8 && last >= 1 && last <= 9
		}
		for range 100 {
			frame := randomPacket(rng, k.ports)
			port, want := routerOracle(r, tables.Routes, tables.Local, frame, known)
			k.deliver(0, frame)
			found := false
			for i, list := range k.all() {
				for _, out := range list {
					found = found || i == port && bytes.Equal(out, want)
				}
			}
			if found != (port >= 0) {
				t.Fatalf("seed %d: to port %d %v:\n%x\nwant\n%x", seed, port, found, frame, want)
			}
			if rng.IntN(20) == 0 {
				k.now += rng.Int64N(3e9)
				r.Tick(k.now)
			}
			for {
				if _, ok := r.PopResolve(); !ok {
					break
				}
			}
		}
		_, waiting := r.Neighbours()
		k.all()
		k.books(waiting)
	}
}

// randomPacket is mostly sound, and hostile in one place otherwise.
func randomPacket(rng *rand.Rand, ports int) []byte {
	near := func() proto.Addr {
		return addr4(10, byte(rng.IntN(20)/19), byte(rng.IntN(ports)), byte(rng.IntN(12)))
	}
	ip := proto.IPv4{
		Src: near(), Dst: near(), TTL: uint8(1 + rng.IntN(255)), Proto: []uint8{1, 6, 17, 200}[rng.IntN(4)], ID: uint16(rng.Uint32()),
		DF: rng.IntN(2) == 0, MF: rng.IntN(9) == 0,
	}
	if rng.IntN(9) == 0 {
		ip.FragOff = uint16(rng.IntN(100) * 8)
	}
	if rng.IntN(6) == 0 {
		ip.Dst = proto.Addr(rng.Uint32())
	}
	if rng.IntN(9) == 0 {
		ip.Src = proto.Addr(rng.Uint32())
	}
	var opts []byte
	if rng.IntN(6) == 0 {
		opts = make([]byte, 4*rng.IntN(11))
		for i := range opts {
			opts[i] = byte(rng.IntN(5))
		}
	}
	b := ipFrame(ip, opts, rng.IntN(1400))
	switch rng.IntN(12) {
	case 0:
		b = b[:rng.IntN(len(b)+1)]
	case 1:
		b[rng.IntN(min(len(b), 40))] ^= 1 << rng.IntN(8)
	}
	return b
}

// FuzzForward: no frame makes a bridge or a router lose one, or panic.
func FuzzForward(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 20 {
		f.Add(randomPacket(rng, 3), true)
	}
	f.Add([]byte{}, false)
	bridge, b := newBridgeKit(f, 3)
	router, r := newRouterKit(f, 3, 700)
	f.Fuzz(func(t *testing.T, frame []byte, partial bool) {
		if len(frame) > 1700 {
			return
		}
		bridge.t, router.t = t, t
		for i := range 3 {
			c := b.Port(i)
			c.CompletePartial = partial
			_ = b.SetPort(i, c)
			_ = r.SetPort(i, c)
		}
		for _, k := range []*fwdKit{bridge, router} {
			k.deliver(0, frame)
			k.deliver(1, frame)
			k.now += fwdNeighGiveUp
			k.all()
			k.m.Tick(k.now)
			k.all()
			k.books(int(k.ledger.Counts()[umem.Held]))
		}
	})
}
