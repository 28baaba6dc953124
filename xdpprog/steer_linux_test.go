package xdpprog

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	xdpPass     = 2 // enum xdp_action, linux/bpf.h
	xdpRedirect = 4

	more   = 0x2000 // more-fragments flag
	later  = 0x0010 // a later fragment, by its offset
	vlan   = 0x8100
	qinq   = 0x88a8
	ipv4T  = 0x0800
	arpT   = 0x0806
	ipv6T  = 0x86dd
	tcpNr  = unix.IPPROTO_TCP
	udpNr  = unix.IPPROTO_UDP
	icmpNr = unix.IPPROTO_ICMP
)

// openedPorts are open in every share-mode rig: one for all addresses, one for one address and protocol only.
var openedPorts = []struct {
	proto uint8
	addr  netip.Addr
	port  uint16
}{
	{udpNr, netip.Addr{}, 53},
	{tcpNr, ourAddr, 80},
}

// A rig is a loaded, unattached program that frames are run through one at a time.
type rig struct {
	t    testing.TB
	p    *Program
	last []Counter
}

func newRig(t testing.TB, s Steer, frags bool) *rig {
	t.Helper()
	needRoot(t)
	p, err := open(testConfig(s, 1), attempt{frags: frags})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	for _, o := range openedPorts {
		if err := p.OpenPort(o.proto, o.addr, o.port); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.SetSocket(0, newXSK(t)); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, p: p}
	r.last = r.counters()
	return r
}

func (r *rig) counters() []Counter {
	r.t.Helper()
	c, err := r.p.Counters()
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

// run gives one frame to the program and returns the name of the one counter that moved. It fails unless that moved
// by this one frame, no other did, and the action fits the name.
func (r *rig) run(frame []byte, ctx any) string {
	r.t.Helper()
	action, err := r.p.objs.Steer.Run(&ebpf.RunOptions{Data: frame, Context: ctx, Repeat: 1})
	if err != nil {
		r.t.Fatalf("run a frame of %d bytes: %v", len(frame), err)
	}
	before, now := r.last, r.counters()
	r.last = now
	name := ""
	for i := range now {
		packets, bytes := now[i].Packets-before[i].Packets, now[i].Bytes-before[i].Bytes
		switch {
		case packets == 0 && bytes == 0:
		case packets == 1 && bytes == uint64(len(frame)) && name == "":
			name = now[i].Name
		default:
			r.t.Fatalf("frame %x: counters went from %v to %v", frame, before, now)
		}
	}
	want := uint32(xdpRedirect)
	if len(name) > 5 && name[:5] == "pass_" {
		want = xdpPass
	}
	if name == "" || action != want {
		r.t.Fatalf("frame %x: action %d with counter %q", frame, action, name)
	}
	return name
}

func (r *rig) expect(frame []byte, want string) {
	r.t.Helper()
	if got := r.run(frame, nil); got != want {
		r.t.Errorf("%s, want %s", got, want)
	}
}

// A verdictCase is one frame and what each mode does with it. Only single frames: what fragments do to each other is
// in TestFragments.
type verdictCase struct {
	name       string
	frame      []byte
	own, share string
}

func verdictCases() []verdictCase {
	to2 := toUs(udpNr)
	to2.dst = ourAddr2
	foreign := toUs(udpNr)
	foreign.dst = otherAddr
	broadcast := toUs(udpNr)
	broadcast.dst = netip.MustParseAddr("255.255.255.255")
	tcpTo2 := toUs(tcpNr)
	tcpTo2.dst = ourAddr2
	options := toUs(udpNr)
	options.options = make([]byte, 40)
	frag := func(proto uint8, bits uint16) ip4 { h := toUs(proto); h.frag = bits; return h }
	ip := func(h ip4, payload []byte) []byte { return ether(ipv4T, h.bytes(payload)) }
	good := ip(toUs(udpNr), udp(9, 53))
	goodARP := ether(arpT, arp(ourAddr))

	probeReply := ether(arpT, arp(netip.IPv4Unspecified()))
	probeReply[21] = 2 // a reply

	cases := []verdictCase{
		{"ARP for us", goodARP, "own_arp", "pass_not_ours"},
		{"ARP for our second address", ether(arpT, arp(ourAddr2)), "own_arp", "pass_not_ours"},
		{"answer to an ARP probe", probeReply, "pass_not_ours", "pass_not_ours"},
		{"ARP for another", ether(arpT, arp(otherAddr)), "pass_not_ours", "pass_not_ours"},
		{"ARP for IPv6 (sic)", set16(goodARP, 16, ipv6T), "pass_malformed", "pass_not_ours"},
		{"ARP with 8-byte hardware addresses", set8(goodARP, 18, 8), "pass_malformed", "pass_not_ours"},
		{"ARP with 16-byte protocol addresses", set8(goodARP, 19, 16), "pass_malformed", "pass_not_ours"},
		{"IPv6", ether(ipv6T, make([]byte, 60)), "pass_not_ours", "pass_not_ours"},
		{"LLC", ether(0x0026, make([]byte, 46)), "pass_not_ours", "pass_not_ours"},

		{"UDP to an open port", good, "own_ipv4", "share_port"},
		{"UDP with Ethernet padding", append(good[:len(good):len(good)], 0, 0, 0), "own_ipv4", "share_port"},
		{"UDP to our second address", ip(to2, udp(9, 53)), "own_ipv4", "share_port"},
		{"UDP with IP options", ip(options, udp(9, 53)), "own_ipv4", "share_port"},
		{"UDP from an open port to a closed one", ip(toUs(udpNr), udp(53, 9)), "own_ipv4", "pass_not_ours"},
		{"UDP to a port open for TCP", ip(toUs(udpNr), udp(9, 80)), "own_ipv4", "pass_not_ours"},
		{"UDP to another's address", ip(foreign, udp(9, 53)), "pass_not_ours", "pass_not_ours"},
		{"TCP to an open port", ip(toUs(tcpNr), tcp(9, 80)), "own_ipv4", "share_port"},
		{"TCP to a port open for UDP", ip(toUs(tcpNr), tcp(9, 53)), "own_ipv4", "pass_not_ours"},
		{"TCP to a port open on the other address", ip(tcpTo2, tcp(9, 80)), "own_ipv4", "pass_not_ours"},
		{"SCTP", ip(toUs(132), udp(9, 53)), "own_ipv4", "pass_not_ours"},
		{"ICMP echo", ip(toUs(icmpNr), icmp(8, fromUs(udpNr).bytes(udp(53, 9)))), "own_ipv4", "pass_not_ours"},
		{"ICMP redirect", ip(toUs(icmpNr), icmp(5, fromUs(udpNr).bytes(udp(53, 9)))), "own_ipv4", "pass_not_ours"},
		{"limited broadcast", ip(broadcast, udp(9, 53)), "pass_not_ours", "pass_not_ours"},

		{"first fragment to an open port", ip(frag(udpNr, more), udp(9, 53)), "own_ipv4", "share_port"},
		{"first fragment to a closed port", ip(frag(udpNr, more), udp(9, 9)), "own_ipv4", "pass_not_ours"},
		{"later fragment of nothing known", ip(frag(tcpNr, later), udp(9, 53)), "own_ipv4", "pass_fragment"},
		{"middle fragment of nothing known", ip(frag(tcpNr, more|later), udp(9, 53)), "own_ipv4", "pass_fragment"},
		{"do not fragment", ip(frag(udpNr, 0x4000), udp(9, 53)), "own_ipv4", "share_port"},

		{"IP version 5", set8(good, 14, 0x55), "own_ipv4", "pass_malformed"},
		{"IP header of 16 bytes", set8(good, 14, 0x44), "own_ipv4", "pass_malformed"},
		{"IP header longer than the frame", set8(good, 14, 0x4f), "own_ipv4", "pass_malformed"},
		{"IP length below the header's", set16(good, 16, 19), "own_ipv4", "pass_malformed"},
		{"IP length above the frame's", set16(good, 16, uint16(len(good)-14+1)), "own_ipv4", "pass_malformed"},
		{"IP length that cuts the ports", set16(good, 16, 23), "own_ipv4", "pass_malformed"},
		{"IP length that ends after the ports", set16(good, 16, 24), "own_ipv4", "share_port"},
		{"bad IP header to another's address", set8(ip(foreign, udp(9, 53)), 14, 0x44), "pass_not_ours", "pass_not_ours"},
		{"three tags", ether(ipv4T, toUs(udpNr).bytes(udp(9, 53)), qinq, vlan, vlan), "pass_not_ours", "pass_not_ours"},
	}
	return append(cases, icmpErrorCases()...)
}

func icmpErrorCases() []verdictCase {
	quoteOptions := fromUs(udpNr)
	quoteOptions.options = make([]byte, 8)
	quoteLater := fromUs(udpNr)
	quoteLater.frag = later
	quoteForeign := fromUs(udpNr)
	quoteForeign.src = otherAddr
	from2 := fromUs(tcpNr)
	from2.src = ourAddr2
	open := fromUs(udpNr).bytes(udp(53, 9))
	message := func(typ uint8, quote []byte) []byte { return ether(ipv4T, toUs(icmpNr).bytes(icmp(typ, quote))) }
	const o = "own_ipv4"

	return []verdictCase{
		{"unreachable, UDP", message(3, open), o, "share_icmp_error"},
		{"time exceeded, TCP", message(11, fromUs(tcpNr).bytes(tcp(80, 9))), o, "share_icmp_error"},
		{"parameter problem, quote with options", message(12, quoteOptions.bytes(udp(53, 9))), o, "share_icmp_error"},
		{"quote of 8 bytes only, as RFC 792 has it", message(3, open[:28]), o, "share_icmp_error"},
		{"quote without a source port open", message(3, fromUs(udpNr).bytes(udp(9, 53))), o, "pass_not_ours"},
		{"quote of a port open for the other protocol", message(3, fromUs(tcpNr).bytes(tcp(53, 9))), o, "pass_not_ours"},
		{"quote of a port open on the other address", message(3, from2.bytes(tcp(80, 9))), o, "pass_not_ours"},
		{"quote of another's packet", message(3, quoteForeign.bytes(udp(53, 9))), o, "pass_not_ours"},
		{"quote of ICMP", message(3, fromUs(icmpNr).bytes(udp(53, 9))), o, "pass_not_ours"},
		{"quote of a later fragment", message(3, quoteLater.bytes(udp(53, 9))), o, "pass_not_ours"},
		{"quote of 23 bytes", message(3, open[:23]), o, "pass_malformed"},
		{"quote of IPv6", message(3, set8(open, 0, 0x65)), o, "pass_malformed"},
		{"quote with a header of 16 bytes", message(3, set8(open, 0, 0x44)), o, "pass_malformed"},
		{"quote with a header longer than itself", message(3, set8(open, 0, 0x4f)), o, "pass_malformed"},
		{"no quote", message(3, nil), o, "pass_malformed"},
	}
}

func (c verdictCase) want(s Steer) string {
	if s == Share {
		return c.share
	}
	return c.own
}

func TestVerdicts(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range []Steer{Own, Share} {
		for _, frags := range []bool{false, true} {
			r := newRig(t, s, frags)
			for _, c := range verdictCases() {
				tagged := map[string][]byte{"untagged": c.frame}
				if be.Uint16(c.frame[12:]) != qinq {
					payload, typ := c.frame[14:], be.Uint16(c.frame[12:])
					tagged["802.1Q"] = ether(typ, payload, vlan)
					tagged["802.1ad"] = ether(typ, payload, qinq)
					tagged["802.1ad and 802.1Q"] = ether(typ, payload, qinq, vlan)
					tagged["two 802.1Q"] = ether(typ, payload, vlan, vlan)
				}
				for tags, frame := range tagged {
					t.Run(fmt.Sprintf("steer %d frags %v/%s/%s", s, frags, c.name, tags), func(t *testing.T) {
						r.t = t
						r.expect(frame, c.want(s))
					})
				}
				seen[c.want(s)] = true
			}
			r.t = t
		}
	}
	for _, name := range verdictNames {
		if !seen[name] && name != "share_fragment" && name != "pass_no_socket" && name != "pass_probe" && name != "drop_no_room" {
			t.Errorf("no case ends in %s", name)
		}
	}
}

// Every prefix of every frame: verdicts by the model, and the limits that matter by hand.
func TestTruncated(t *testing.T) {
	for _, s := range []Steer{Own, Share} {
		r, m := newRig(t, s, false), newModel(s)
		for _, c := range verdictCases() {
			for n := 14; n <= len(c.frame); n++ {
				if got, want := r.run(c.frame[:n], nil), m.verdict(c.frame[:n]); got != want {
					t.Errorf("steer %d, %s, first %d bytes: %s, the model says %s", s, c.name, n, got, want)
				}
			}
		}
	}
	own, share := newRig(t, Own, false), newRig(t, Share, false)
	limit := func(r *rig, frame []byte, readable int, before, after string, fixLength bool) {
		t.Helper()
		for n := 14; n <= len(frame); n++ {
			cut := frame[:n]
			if fixLength && n >= 18 {
				cut = set16(cut, 16, uint16(n-14))
			}
			want := before
			if n >= readable {
				want = after
			}
			r.expect(cut, want)
		}
	}
	datagram := toUs(udpNr).bytes(udp(9, 53))
	limit(own, ether(ipv4T, datagram), 14+20, "pass_malformed", "own_ipv4", false)
	limit(own, ether(ipv4T, datagram, vlan), 18+20, "pass_malformed", "own_ipv4", false)
	limit(own, ether(arpT, arp(ourAddr)), 14+28, "pass_malformed", "own_arp", false)
	limit(share, ether(ipv4T, datagram), 14+len(datagram), "pass_malformed", "share_port", false)
	limit(share, ether(ipv4T, datagram), 14+20+4, "pass_malformed", "share_port", true)
	quote := icmp(3, fromUs(udpNr).bytes(udp(53, 9)))
	limit(share, ether(ipv4T, toUs(icmpNr).bytes(quote)), 14+20+8+20+4, "pass_malformed", "share_icmp_error", true)
}

func TestFragments(t *testing.T) {
	r := newRig(t, Share, false)
	datagram := toUs(udpNr)
	frag := func(h ip4, bits uint16, payload []byte) []byte {
		h.frag = bits
		return ether(ipv4T, h.bytes(payload))
	}
	first := frag(datagram, more, udp(9, 53))
	middle, last := frag(datagram, more|later, udp(9, 9)), frag(datagram, later+1, udp(9, 9))

	r.expect(last, "pass_fragment") // overtook its first
	r.expect(first, "share_port")
	r.expect(last, "share_fragment")
	r.expect(middle, "share_fragment")
	r.expect(middle, "share_fragment") // a duplicate

	for _, other := range []func(*ip4){
		func(h *ip4) { h.id++ },
		func(h *ip4) { h.proto = tcpNr },
		func(h *ip4) { h.src = otherAddr },
		func(h *ip4) { h.dst = ourAddr2 },
	} {
		h := datagram
		other(&h)
		r.expect(frag(h, later, udp(9, 9)), "pass_fragment")
	}

	// The same ID again, now for the kernel: the claim of the older datagram ends.
	r.expect(frag(datagram, more, udp(9, 9)), "pass_not_ours")
	r.expect(last, "pass_fragment")
	// A whole datagram, or one whose ports cannot be read, makes no claim.
	r.expect(ether(ipv4T, datagram.bytes(udp(9, 53))), "share_port")
	r.expect(frag(datagram, more, []byte{0, 9}), "pass_malformed")
	r.expect(last, "pass_fragment")
	// A fragmented ICMP error is followed as well.
	errorHead := toUs(icmpNr)
	r.expect(frag(errorHead, more, icmp(3, fromUs(udpNr).bytes(udp(53, 9)))), "share_icmp_error")
	r.expect(frag(errorHead, later, udp(9, 9)), "share_fragment")

	// A claim has a time limit; 0 is a time that is over.
	r.expect(first, "share_port")
	var key steerFragKey
	entries := r.p.objs.Fragments.Iterate()
	var until uint64
	expired := 0
	for entries.Next(&key, &until) {
		if err := r.p.objs.Fragments.Put(key, uint64(0)); err != nil {
			t.Fatal(err)
		}
		expired++
	}
	if entries.Err() != nil || expired != 2 {
		t.Fatalf("%d claims, want 2 (%v)", expired, entries.Err())
	}
	r.expect(last, "pass_fragment")
}

func TestPorts(t *testing.T) {
	r := newRig(t, Share, false)
	frame := ether(ipv4T, toUs(tcpNr).bytes(tcp(9, 4000)))
	steps := []struct {
		do   func(uint8, netip.Addr, uint16) error
		addr netip.Addr
		want string
	}{
		{r.p.OpenPort, ourAddr2, "pass_not_ours"},
		{r.p.OpenPort, ourAddr, "share_port"},
		{r.p.OpenPort, ourAddr, "share_port"}, // again: nothing changes
		{r.p.OpenPort, netip.IPv4Unspecified(), "share_port"},
		{r.p.ClosePort, ourAddr, "share_port"},
		{r.p.ClosePort, netip.Addr{}, "pass_not_ours"},
		{r.p.OpenPort, netip.MustParseAddr("::ffff:10.77.0.2"), "share_port"},
	}
	for i, step := range steps {
		if err := step.do(tcpNr, step.addr, 4000); err != nil {
			t.Fatalf("step %d: %v", i, err)
		}
		r.expect(frame, step.want)
	}

	bad := map[string]error{
		"protocol":   r.p.OpenPort(icmpNr, ourAddr, 4000),
		"port 0":     r.p.OpenPort(tcpNr, ourAddr, 0),
		"address":    r.p.OpenPort(tcpNr, otherAddr, 4000),
		"IPv6":       r.p.ClosePort(tcpNr, netip.IPv6Loopback(), 4000),
		"not open":   r.p.ClosePort(udpNr, ourAddr, 4000),
		"never open": r.p.ClosePort(tcpNr, ourAddr, 4001),
	}
	for what, err := range bad {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}

	own := newRig(t, Own, false)
	if err := own.p.ClosePort(icmpNr, otherAddr, 0); err != nil {
		t.Errorf("in Own mode ports are nobody's business: %v", err)
	}
}

// The socket that gets a frame is that of the frame's queue; a queue without one passes, under its own name.
func TestQueues(t *testing.T) {
	enterNS(t)
	engine, _ := newVeth(t, 1500, 2)
	p, err := Load(testConfig(Own, engine.Attrs().Index))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	r := &rig{t: t, p: p, last: nil}
	r.last = r.counters()
	frame := ether(arpT, arp(ourAddr))
	onQueue := func(q uint32) string {
		// struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
		return r.run(frame, []uint32{0, uint32(len(frame)), 0, uint32(engine.Attrs().Index), q, 0})
	}
	xsk := newXSK(t)
	check := func(want ...string) {
		t.Helper()
		if got := []string{onQueue(0), onQueue(1)}; !slices.Equal(got, want) {
			t.Errorf("queues 0 and 1: %v, want %v", got, want)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	check("pass_no_socket", "pass_no_socket")
	must(p.SetSocket(1, xsk))
	check("pass_no_socket", "own_arp")
	must(p.SetSocket(0, newXSK(t)))
	check("own_arp", "own_arp")
	must(p.ClearSocket(1))
	must(p.ClearSocket(1))
	check("own_arp", "pass_no_socket")

	for what, err := range map[string]error{
		"queue -1":     p.SetSocket(-1, xsk),
		"queue 2":      p.SetSocket(2, xsk),
		"clear 2":      p.ClearSocket(2),
		"descriptor":   p.SetSocket(1, -1),
		"not a socket": p.SetSocket(1, p.objs.Steer.FD()),
	} {
		if err == nil {
			t.Errorf("%s: no error", what)
		}
	}
}

// A frame of several buffers is counted whole, and its length is what the IPv4 header is held against.
func TestMultiBuffer(t *testing.T) {
	big := ether(ipv4T, toUs(udpNr).bytes(append(udp(9, 53), make([]byte, 8900)...)))
	r := newRig(t, Share, true)
	r.expect(big, "share_port")
	r.expect(big[:len(big)-1], "pass_malformed")
	own := newRig(t, Own, true)
	own.expect(big, "own_ipv4")
}
