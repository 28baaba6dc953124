package sockets

import (
	"encoding/binary"
	"slices"

	"xdpd/proto"
	"xdpd/umem"
)

// Router passes IPv4 packets from port to port by the longest prefix (RFC 1812). A packet stays in the frame it came in:
// its Ethernet header, TTL and header checksum change there. Addresses, routes and neighbours are somebody else's, who tells
// them (SetTables, SetNeighbour) and is asked to resolve (PopResolve). Not safe for concurrent use.
type Router struct {
	forwarder
	*FIB
	neigh fwdNeighTable
	icmp  icmpLimit
	ipID  uint16

	mtuErrors bucket
}

// FIB is Tables made ready for a Router (NewFIB). It is only read.
type FIB struct {
	lpm    *proto.LPM
	fib    []fibEntry
	addrs  [][]Prefix // by port
	anyone proto.Addr // an address of ours, for ports that have none
}

// Hop is a next hop: Gateway on the network of Port, or the destination itself where Gateway is 0. Port is NoPort for an
// interface that is not forwarded to.
type Hop struct {
	Port    int
	Gateway proto.Addr
}

// NoPort is no port.
const NoPort = -1

// RouteKind says what becomes of packets that a route is for.
type RouteKind uint8

// The kinds, as in rtnetlink(7).
const (
	RouteUnicast     RouteKind = iota // sent on, by one of the route's hops
	RouteBlackhole                    // dropped
	RouteUnreachable                  // refused: host unreachable
	RouteProhibit                     // refused: prohibited
	routeLocal
	routeBroadcast
)

// FwdRoute is a route of a Router. Of several hops, one is chosen for each pair of addresses.
type FwdRoute struct {
	Dst  proto.Addr
	Bits int
	Kind RouteKind
	Hops []Hop
}

// Tables is all that a Router goes by.
type Tables struct {
	Local  []proto.Addr // addresses of the machine, on ports and elsewhere
	Addrs  [][]Prefix   // of each port
	Routes []FwdRoute   // of equal prefixes the first counts
}

type fibEntry struct {
	kind RouteKind
	hops []Hop
}

// NewRouter makes a Router over the frames of pool. It sends nothing on before it has Tables.
func NewRouter(c ForwardConfig, pool *umem.Pool, now int64) (*Router, error) {
	r := &Router{}
	if err := r.init(&c, pool, now); err != nil {
		return nil, err
	}
	r.icmp.init(now)
	r.mtuErrors = bucket{1000, now}
	r.neigh.init(r, (pool.Total()-c.FillFrames)/16, now)
	r.ipID = uint16(r.sec.next())
	r.SetTables(Tables{})
	return r, nil
}

// SetTables replaces addresses and routes.
func (r *Router) SetTables(t Tables) { r.SetFIB(NewFIB(t)) }

// SetFIB is SetTables for what was made ready elsewhere: that takes a while with many routes, in which a Router forwards on.
func (r *Router) SetFIB(f *FIB) { r.FIB = f }

// NewFIB makes Tables ready.
func NewFIB(t Tables) *FIB {
	r := &FIB{addrs: t.Addrs}
	var list []proto.LPMRoute
	add := func(dst proto.Addr, bits int, e fibEntry) {
		list = append(list, proto.LPMRoute{Dst: dst, Bits: bits, Value: uint32(len(r.fib))})
		r.fib = append(r.fib, e)
	}
	for _, a := range t.Local {
		add(a, 32, fibEntry{kind: routeLocal})
	}
	for _, port := range t.Addrs {
		for _, p := range port {
			if r.anyone == 0 {
				r.anyone = p.Addr
			}
			if p.Bits < 31 { // RFC 3021: /31 and /32 have no broadcast
				add(p.Addr|^mask(p.Bits), 32, fibEntry{kind: routeBroadcast})
			}
		}
	}
	for _, route := range t.Routes {
		add(route.Dst, route.Bits, fibEntry{route.Kind, slices.Clone(route.Hops)})
	}
	r.lpm = proto.NewLPM(list)
	return r
}

// Routes is how many prefixes are known, addresses and broadcasts of the router itself among them.
func (r *Router) Routes() int { return len(r.fib) }

func (r *Router) lookup(a proto.Addr) *fibEntry {
	if i, ok := r.lpm.Lookup(a); ok {
		return &r.fib[i]
	}
	return nil
}

// Input takes a frame that came in on a port: n bytes from off in the chunk of f, which the caller owns as umem.RX. The
// frame is the Router's from here on.
func (r *Router) Input(port int, f umem.Frame, off, n int, now int64) {
	p, data := r.receive(port, f, off, n, now)
	if why := r.forward(p, f, off, data); why != 0 {
		r.drop(p, f, why)
	}
}

// forward is ip_forward: it sends the packet on (0), or says why not.
func (r *Router) forward(p *fwdPort, f umem.Frame, off int, data []byte) Drop {
	if len(data) < proto.EthernetHeaderLen {
		return Drop(proto.EthShort)
	}
	if proto.MAC(data) != p.cfg.MAC {
		return EthNotOurs
	}
	if binary.BigEndian.Uint16(data[12:]) != proto.EtherIPv4 {
		return EthType
	}
	l3 := data[proto.EthernetHeaderLen:]
	ip, fault := proto.ParseIPv4(l3)
	if fault != proto.OK {
		return Drop(fault)
	}
	l3 = l3[:ip.TotalLen] // what lies behind is padding
	if why := r.check(&ip, l3); why != 0 {
		return why
	}
	hop, why := r.choose(p, &ip, l3)
	if why != 0 {
		return why
	}
	out := &r.ports[hop.Port]
	if ip.TTL <= 1 {
		r.icmpError(p, &ip, l3, proto.ICMPTimeExceeded, 0, 0)
		return FwdTTL
	}
	p.completeSum(l3, proto.EtherIPv4)
	if len(l3) > out.cfg.MTU {
		if ip.DF {
			r.icmpError(p, &ip, l3, proto.ICMPUnreachable, proto.UnreachFragNeeded, uint32(out.cfg.MTU))
			return FwdTooBig
		}
		r.fragment(p, &ip, l3, hop)
		r.pool.Put(f, umem.RX)
		return 0
	}
	proto.DecTTL(l3)
	r.output(f, off+proto.EthernetHeaderLen, len(l3), hop, umem.RX)
	return 0
}

// check is the validation of RFC 1812 5.3.7 beyond the header's own.
func (r *Router) check(ip *proto.IPv4, l3 []byte) Drop {
	const linkLocal, linkLocalBits = 169<<24 | 254<<16, 16
	switch {
	case badUnicast(ip.Src):
		return IPMartianSource
	case ip.Dst.IsMulticast():
		return FwdMulticast
	case badUnicast(ip.Dst):
		return IPMartianDest
	case ip.Src&mask(linkLocalBits) == linkLocal || ip.Dst&mask(linkLocalBits) == linkLocal:
		return FwdLinkLocal
	case ip.HeaderLen > proto.IPv4HeaderLen && proto.SourceRouted(l3[proto.IPv4HeaderLen:ip.HeaderLen]):
		return IPSourceRoute
	}
	if e := r.lookup(ip.Src); e != nil && e.kind >= routeLocal {
		return IPMartianSource
	}
	return 0
}

// choose finds the next hop of a packet that came in on p, or tells its sender that there is none.
func (r *Router) choose(p *fwdPort, ip *proto.IPv4, l3 []byte) (Hop, Drop) {
	refuse := func(code uint8, why Drop) (Hop, Drop) {
		if ip.TTL > 1 { // whoever traces the route is to learn of this router first
			r.icmpError(p, ip, l3, proto.ICMPUnreachable, code, 0)
		} else {
			r.icmpError(p, ip, l3, proto.ICMPTimeExceeded, 0, 0)
		}
		return Hop{}, why
	}
	e := r.lookup(ip.Dst)
	if e == nil {
		return refuse(proto.UnreachNet, TxNoRoute)
	}
	switch e.kind {
	case RouteUnicast:
	case RouteBlackhole:
		return Hop{}, FwdRefused
	case RouteUnreachable:
		return refuse(proto.UnreachHost, FwdRefused)
	case RouteProhibit:
		return refuse(unreachProhibited, FwdRefused)
	case routeLocal:
		return Hop{}, FwdLocal
	default:
		return Hop{}, FwdBroadcast
	}
	hop, ok := r.hop(e, ip.Src, ip.Dst)
	switch {
	case !ok:
		return refuse(proto.UnreachNet, FwdNoPort)
	case !r.ports[hop.Port].cfg.Up:
		return refuse(proto.UnreachHost, FwdPortDown)
	}
	return hop, 0
}

const unreachProhibited = 13 // communication administratively prohibited (RFC 1812 5.2.7.1)

// hop chooses among a route's next hops by the addresses, as net.ipv4.fib_multipath_hash_policy 0. false: it leads out of no
// port.
func (r *Router) hop(e *fibEntry, src, dst proto.Addr) (Hop, bool) {
	if len(e.hops) == 0 {
		return Hop{}, false
	}
	h := e.hops[0]
	if len(e.hops) > 1 {
		h = e.hops[mix(uint64(src)<<32|uint64(dst)^r.sec.k0, r.sec.k1)%uint64(len(e.hops))]
	}
	if h.Gateway == 0 {
		h.Gateway = dst
	}
	return h, h.Port >= 0 && h.Port < len(r.ports)
}

// fragment sends the packet in pieces for its hop's MTU (RFC 791 3.2, RFC 1812 5.2.6).
func (r *Router) fragment(p *fwdPort, ip *proto.IPv4, l3 []byte, hop Hop) {
	var kept [40]byte
	opts := l3[proto.IPv4HeaderLen:ip.HeaderLen]
	later := kept[:proto.CopiedOptions(kept[:], opts)]
	per := (r.ports[hop.Port].cfg.MTU - int(ip.HeaderLen)) &^ 7
	body := l3[ip.HeaderLen:]
	head := *ip
	head.TTL--
	p.counters.Fragmented++
	for at := 0; at < len(body); at += per {
		if at > 0 {
			opts = later
		}
		f := r.pool.Get(umem.Held)
		if f == umem.None {
			r.ports[hop.Port].counters.Drops[TxNoFrame]++
			return // the rest would be of no use to the receiver
		}
		const off = umem.Headroom + proto.EthernetHeaderLen
		b, k := r.pool.Chunk(f)[off:], min(per, len(body)-at)
		size := proto.PutFragment(b, &head, opts, at, k, at+k < len(body))
		copy(b[size:], body[at:at+k])
		p.counters.Copied[CopyFragment] += uint64(k)
		p.counters.Fragments++
		r.output(f, off, size+k, hop, umem.Held)
	}
}

// output sends the n bytes of IP from off of a frame to a hop, when its hardware address is known.
func (r *Router) output(f umem.Frame, off, n int, hop Hop, from umem.Owner) {
	e := r.neighFor(hop)
	switch {
	case e == nil:
		r.ports[hop.Port].counters.Drops[NeighTableFull]++
		r.pool.Put(f, from)
	case !e.valid:
		r.neighWait(e, f, off, n, from)
	default:
		r.emit(f, off, n, e, from)
	}
}

// emit writes the link header in front of the packet and queues it.
func (r *Router) emit(f umem.Frame, off, n int, e *fwdNeigh, from umem.Owner) {
	out := &r.ports[e.port]
	off -= proto.EthernetHeaderLen
	proto.PutEthernet(r.pool.Chunk(f)[off:], e.mac, out.cfg.MAC, proto.EtherIPv4)
	r.send(out, f, off, n+proto.EthernetHeaderLen, from)
}

// NextDeadline is when Tick wants to be called.
func (r *Router) NextDeadline() int64 { return r.neigh.next }

// Tick gives up neighbours that did not answer.
func (r *Router) Tick(now int64) {
	r.now = now
	r.neighTick()
}

// icmpError tells the sender of the packet l3, which came in on p, what went wrong. RFC 1812 4.3.2.7: never about an ICMP
// error or a fragment other than the first; broadcasts and martians were dropped before.
func (r *Router) icmpError(p *fwdPort, ip *proto.IPv4, l3 []byte, typ, code uint8, rest uint32) {
	if ip.FragOff != 0 || ip.Proto == proto.ProtoICMP && !isQuery(l3[ip.HeaderLen:]) {
		return
	}
	e := r.lookup(ip.Src)
	if e == nil || e.kind != RouteUnicast {
		return
	}
	src := r.anyone
	hop, ok := r.hop(e, 0, ip.Src)
	if !ok || !r.ports[hop.Port].cfg.Up {
		return
	}
	if hop.Port < len(r.addrs) && len(r.addrs[hop.Port]) > 0 {
		src = r.addrs[hop.Port][0].Addr
	}
	if src == 0 {
		return
	}
	if !r.mayTell(ip.Src, typ == proto.ICMPUnreachable && code == proto.UnreachFragNeeded) {
		p.counters.Drops[ICMPRateLimit]++
		return
	}
	f := r.pool.Get(umem.Held)
	if f == umem.None {
		p.counters.Drops[TxNoFrame]++
		return
	}
	const off = umem.Headroom + proto.EthernetHeaderLen
	b := r.pool.Chunk(f)[off:]
	msg := b[proto.IPv4HeaderLen:]
	n := proto.PutICMP(msg, typ, code, rest)
	k := copy(msg[n:], l3[:min(len(l3), icmpQuote, r.ports[hop.Port].cfg.MTU-28)])
	p.counters.Copied[CopyQuote] += uint64(k)
	proto.SetICMPChecksum(msg[:n+k])
	r.ipID++
	proto.PutIPv4(b, &proto.IPv4{
		Src: src, Dst: ip.Src, ID: r.ipID, TTL: defaultTTL, Proto: proto.ProtoICMP,
		TOS:      0xc0, // internetwork control (RFC 1812 4.3.2.5)
		TotalLen: uint16(proto.IPv4HeaderLen + n + k),
	})
	p.counters.ICMPErrors++
	r.output(f, off, proto.IPv4HeaderLen+n+k, hop, umem.Held)
}

// mayTell limits errors. Of path MTU discovery each is needed, for a sender may have many destinations, so that only what all
// together get has a limit (Linux has none: icmpv4_mask_allow, net/ipv4/icmp.c).
func (r *Router) mayTell(src proto.Addr, mtu bool) bool {
	if mtu {
		return r.mtuErrors.take(r.now, 1e5, 1000)
	}
	return r.icmp.peers[r.sec.addr(src)&0xff].take(r.now, 1e9, 6) && r.icmp.all.take(r.now, 1e6, 50-int32(r.sec.next()&3))
}

// isQuery reports whether an ICMP message is one that errors may be sent about.
func isQuery(b []byte) bool {
	if len(b) == 0 {
		return false
	}
	switch b[0] {
	case proto.ICMPEcho, proto.ICMPEchoReply, 13, 14: // timestamp and its reply
		return true
	}
	return false
}
