package xdpd_test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/proto"
)

// badFrames makes frames that a station should not send.
type badFrames struct {
	us, them      proto.Addr
	ourMAC, their proto.MAC
	udp           uint16 // a port that is open
}

func (b *badFrames) eth(etherType uint16, payload []byte) []byte {
	return ethernet(b.ourMAC, b.their, etherType, payload)
}

// ip is a frame with a sound IPv4 header; h may say more than the addresses.
func (b *badFrames) ip(h proto.IPv4, payload []byte) []byte {
	if h.Src == 0 {
		h.Src = b.them
	}
	h.Dst = b.us
	return b.eth(proto.EtherIPv4, ipPacket(h, payload))
}

// header is a frame whose IPv4 header was changed by edit, with the checksum made good again.
func (b *badFrames) header(edit func(ip []byte)) []byte {
	frame := b.datagram(func([]byte) {})
	ip := frame[14:]
	edit(ip)
	n := min(int(ip[0]&15)*4, len(ip))
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], proto.Checksum(ip[:n]))
	return frame
}

// options is a datagram with these IPv4 options, of which there must be a multiple of four bytes.
func (b *badFrames) options(opts ...byte) []byte {
	d := udpDatagram(b.them, b.us, 4000, b.udp, []byte("options"))
	frame := b.ip(proto.IPv4{Proto: proto.ProtoUDP}, append(opts, d...))
	ip := frame[14:]
	ip[0] = 0x45 + byte(len(opts)/4)
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], proto.Checksum(ip[:20+len(opts)]))
	return frame
}

// datagram is a sound UDP datagram to the open port, changed by edit afterwards.
func (b *badFrames) datagram(edit func(udp []byte)) []byte {
	d := udpDatagram(b.them, b.us, 4000, b.udp, []byte("twenty bytes of data")) // nothing may be cut off unseen
	edit(d)
	return b.ip(proto.IPv4{Proto: proto.ProtoUDP}, d)
}

func (b *badFrames) from(src proto.Addr) []byte {
	return b.ip(proto.IPv4{Proto: proto.ProtoUDP, Src: src}, udpDatagram(src, b.us, 4000, b.udp, []byte("martian")))
}

func (b *badFrames) icmp(typ, code uint8, payload []byte) []byte {
	return b.ip(proto.IPv4{Proto: proto.ProtoICMP}, icmpMessage(typ, code, 0, payload))
}

// tcp is a segment with a sound checksum.
func (b *badFrames) tcp(h proto.TCP) []byte {
	h.SrcPort, h.Window = 4000, 1000
	if h.DataOff == 0 {
		h.DataOff = 20
	}
	seg := make([]byte, 20)
	proto.PutTCP(seg, &h)
	binary.BigEndian.PutUint16(seg[16:], ^proto.Fold(proto.Sum(seg, proto.PseudoSum(b.them, b.us, proto.ProtoTCP, 20))))
	return b.ip(proto.IPv4{Proto: proto.ProtoTCP}, seg)
}

func (b *badFrames) fragment(id uint16, off, n int, more bool) []byte {
	return b.ip(proto.IPv4{Proto: proto.ProtoUDP, ID: id, FragOff: uint16(off), MF: more}, make([]byte, n))
}

// quote is an IPv4 header and eight bytes behind it, as an ICMP error carries them.
func (b *badFrames) quote(src proto.Addr, protocol uint8) []byte {
	return ipPacket(proto.IPv4{Src: src, Dst: b.them, Proto: protocol}, []byte{3, 32, 0, 9, 0, 8, 0, 0})
}

type badCase struct {
	name   string
	frames [][]byte
	want   map[string]uint64 // drops by reason, and nothing else
}

func one(reason string) map[string]uint64 { return map[string]uint64{reason: 1} }

func (b *badFrames) linkCases() []badCase {
	arp := proto.ARP{Op: proto.ARPRequest, SHA: b.their, SPA: b.them, TPA: b.us}
	edited := func(edit func(*proto.ARP)) [][]byte {
		a := arp
		edit(&a)
		return [][]byte{arpFrame(b.ourMAC, b.their, a)}
	}
	sound := b.datagram(func([]byte) {})
	broadcast := ethernet(proto.Broadcast, b.their, proto.EtherIPv4, sound[14:])
	other := ethernet(proto.MAC{2, 0, 0, 0, 0, 9}, b.their, proto.EtherIPv4, sound[14:])
	tagged := append(append(append([]byte(nil), sound[:12]...), 0x81, 0, 0, 5), sound[12:]...)
	return []badCase{
		{"another station's", [][]byte{other}, one("eth_not_ours")},
		{"broadcast", [][]byte{broadcast}, one("ip_link_broadcast")},
		{"VLAN", [][]byte{tagged}, one("eth_vlan_id")},
		{"ARP op", edited(func(a *proto.ARP) { a.Op = 7 }), one("arp_bad")},
		{"ARP of another sender", edited(func(a *proto.ARP) { a.SHA[5]++ }), one("arp_bad")},
		{"ARP from outside", edited(func(a *proto.ARP) { a.SPA = 0x08080808 }), one("arp_not_ours")},
		{"ARP with our address", edited(func(a *proto.ARP) { a.SPA = b.us }), one("arp_conflict")},
		{"ARP reply", edited(func(a *proto.ARP) { a.Op, a.SPA = proto.ARPReply, b.them+20 }), one("arp_unsolicited")},
	}
}

func (b *badFrames) ipCases() []badCase {
	var cases []badCase
	add := func(name, reason string, frame []byte) {
		cases = append(cases, badCase{name, [][]byte{frame}, one(reason)})
	}
	add("version 5", "ip_version", b.header(func(ip []byte) { ip[0] = 0x55 }))
	add("version 6", "ip_version", b.header(func(ip []byte) { ip[0] = 0x65 }))
	add("header of 16 bytes", "ip_header_len", b.header(func(ip []byte) { ip[0] = 0x44 }))
	add("header longer than the frame", "ip_header_len", b.header(func(ip []byte) { ip[0] = 0x4f }))
	add("total length below the header's", "ip_total_len", b.header(func(ip []byte) { ip[2], ip[3] = 0, 19 }))
	add("total length beyond the frame", "ip_total_len", b.header(func(ip []byte) { ip[2], ip[3] = 5, 0 }))
	add("cut off", "ip_total_len", b.header(func([]byte) {})[:14+30])
	bad := b.header(func([]byte) {})
	bad[14+10]++
	add("checksum", "ip_checksum", bad)
	add("option of no length", "ip_options", b.options(7, 0, 0, 0))
	add("option beyond the header", "ip_options", b.options(7, 40, 4, 0))
	add("loose source route", "ip_source_route", b.options(131, 7, 4, 1, 2, 3, 4, 0))
	add("strict source route", "ip_source_route", b.options(1, 137, 3, 4))
	for name, src := range map[string]string{
		"loopback": "127.0.0.1", "multicast": "224.0.0.1", "broadcast": "255.255.255.255", "zero": "0.0.0.1",
		"reserved": "240.0.0.1", "subnet broadcast": "10.77.0.255",
	} {
		a, _ := proto.AddrFrom(netip.MustParseAddr(src))
		add("from "+name, "ip_martian_source", b.from(a))
	}
	add("from ourselves", "ip_martian_source", b.from(b.us))
	add("unknown protocol", "ip_protocol", b.ip(proto.IPv4{Proto: 253}, []byte("experiment")))
	add("fragment past 65535", "ip_total_len", b.fragment(9, 65528, 1400, false))
	return append(cases,
		badCase{"overlapping fragments", [][]byte{b.fragment(1, 0, 32, true), b.fragment(1, 24, 32, true), b.fragment(1, 56, 8, false)},
			map[string]uint64{"frag_overlap": 3}},
		badCase{"overlap at the end", [][]byte{b.fragment(2, 64, 32, false), b.fragment(2, 0, 72, true)},
			map[string]uint64{"frag_overlap": 2}},
		badCase{"odd fragment", [][]byte{b.fragment(3, 0, 13, true)}, one("frag_bad")},
		badCase{"empty fragment", [][]byte{b.fragment(4, 8, 0, true)}, one("frag_bad")},
		badCase{"two ends", [][]byte{b.fragment(5, 64, 32, false), b.fragment(5, 128, 32, false)}, map[string]uint64{"frag_bad": 2}},
		badCase{"end before the last", [][]byte{b.fragment(6, 64, 32, true), b.fragment(6, 8, 16, false)}, map[string]uint64{"frag_bad": 2}},
		badCase{"the same twice, then an overlap", [][]byte{b.fragment(7, 0, 32, true), b.fragment(7, 0, 32, true), b.fragment(7, 8, 8, true)},
			map[string]uint64{"frag_duplicate": 1, "frag_overlap": 2}},
		badCase{"largest of all, and 20 bytes more", [][]byte{b.fragment(8, 64000, 728, true), b.fragment(8, 65520, 15, false)},
			map[string]uint64{"frag_bad": 2}},
	)
}

func (b *badFrames) transportCases() []badCase {
	var cases []badCase
	add := func(name, reason string, frame []byte) {
		cases = append(cases, badCase{name, [][]byte{frame}, one(reason)})
	}
	u := func(name, reason string, edit func(udp []byte)) { add("UDP "+name, reason, b.datagram(edit)) }
	u("checksum", "udp_checksum", func(d []byte) { d[6]++ })
	u("payload", "udp_checksum", func(d []byte) { d[9]++ })
	u("length 7", "udp_len", func(d []byte) { d[5] = 7 })
	u("length beyond the packet", "udp_len", func(d []byte) { d[5] = 29 })
	u("length less than the packet", "udp_checksum", func(d []byte) { d[5] = 27 })
	add("UDP of 7 bytes", "udp_short", b.ip(proto.IPv4{Proto: proto.ProtoUDP}, make([]byte, 7)))
	add("TCP of 19 bytes", "tcp_short", b.ip(proto.IPv4{Proto: proto.ProtoTCP}, make([]byte, 19)))
	add("TCP data offset 16", "tcp_data_off", b.tcp(proto.TCP{DataOff: 16, DstPort: 7, Flags: proto.SYN}))
	add("TCP data offset 60", "tcp_data_off", b.tcp(proto.TCP{DataOff: 60, DstPort: 7, Flags: proto.SYN}))
	bad := b.tcp(proto.TCP{DstPort: 7, Flags: proto.SYN})
	bad[14+20+4]++ // in the sequence number
	add("TCP checksum", "tcp_checksum", bad)
	add("TCP SYN and FIN", "tcp_bad_flag", b.tcp(proto.TCP{DstPort: 7, Flags: proto.SYN | proto.FIN}))
	add("TCP no flags", "tcp_bad_flag", b.tcp(proto.TCP{DstPort: 7}))
	add("TCP RST", "tcp_no_socket", b.tcp(proto.TCP{DstPort: 9, Flags: proto.RST}))
	add("ICMP of 7 bytes", "icmp_short", b.ip(proto.IPv4{Proto: proto.ProtoICMP}, make([]byte, 7)))
	bad = b.icmp(proto.ICMPEcho, 0, []byte("echo"))
	bad[len(bad)-1]++
	add("ICMP checksum", "icmp_checksum", bad)
	add("ICMP timestamp", "icmp_ignored", b.icmp(13, 0, make([]byte, 12)))
	add("ICMP redirect", "icmp_ignored", b.icmp(5, 1, b.quote(b.us, proto.ProtoUDP)))
	for name, quote := range map[string][]byte{
		"nothing": nil, "garbage": []byte("this is no IPv4 header, nor what follows one"), "a header alone": b.quote(b.us, proto.ProtoUDP)[:20],
		"a stranger": b.quote(b.them+5, proto.ProtoUDP), "no connection": b.quote(b.us, proto.ProtoTCP),
		"a socket that is not connected": b.quote(b.us, proto.ProtoUDP),
	} {
		add("ICMP error quoting "+name, "icmp_ignored", b.icmp(proto.ICMPUnreachable, proto.UnreachPort, quote))
	}
	return cases
}

// TestBadFrames sends what a station should not send, sound but for one thing. Each must be counted under its own name,
// and the engine must be as it was before.
func TestBadFrames(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	serveTCPEcho(t, stack, 7)
	conn := listen(t, stack, ":800")
	w := openWire(t, lab.Peer, lab.PeerDev, unix.ETH_P_ALL)
	b := &badFrames{
		us: protoAddr(t, lab.EngineAddr), them: protoAddr(t, lab.PeerAddr), ourMAC: macOf(t, lab.Engine, lab.EngineDev),
		their: w.mac, udp: 800,
	}
	settle := barrier(t, lab)
	promiscuous(t, lab.Engine, lab.EngineDev)
	ping(t, lab.Peer, lab.EngineAddr, 1)
	for _, c := range append(append(b.linkCases(), b.ipCases()...), b.transportCases()...) {
		t.Run(c.name, func(t *testing.T) {
			before := getStats(t, stack)
			if before.Driver == "igb" && c.want["ip_header_len"] > 0 {
				t.Skipf("%s: %v: igb, as QEMU has it, receives no such header", t.Name(), netlab.ErrNICs)
			}
			for _, frame := range c.frames {
				w.send(frame)
			}
			settle()
			after := getStats(t, stack)
			got := after.Drops()
			for reason, n := range before.Drops() {
				if got[reason] -= n; got[reason] == 0 {
					delete(got, reason)
				}
			}
			if !maps.Equal(got, c.want) {
				t.Errorf("counted as %v, want %v", got, c.want)
			}
			if held := framesHeld(&after) - after.Queues[0].Frames.Tx; held != 0 {
				t.Errorf("%d frames are held", held)
			}
		})
	}
	conn.SetReadDeadline(time.Unix(1, 0))
	if n, from, err := conn.ReadFrom(make([]byte, 100)); err == nil {
		t.Errorf("the socket got %d bytes from %v", n, from)
	}
	w.send(b.datagram(func([]byte) {})) // as it was made, it is sound
	w.send(b.options(7, 3, 4, 0))       // record route, full
	conn.SetReadDeadline(time.Now().Add(patience))
	for _, want := range []string{"twenty bytes of data", "options"} {
		buf := make([]byte, 100)
		if n, _, err := conn.ReadFrom(buf); err != nil || string(buf[:n]) != want {
			t.Errorf("read %q, %v; want %q", buf[:n], err, want)
		}
	}
	ping(t, lab.Peer, lab.EngineAddr, 5, pingWait, "-s", "8000")
}

// promiscuous lets frames for other stations through, which a NIC would not.
func promiscuous(t *testing.T, ns *netlab.NS, dev string) {
	onLink(t, ns, dev, netlink.SetPromiscOn)
	t.Cleanup(func() { onLink(t, ns, dev, netlink.SetPromiscOff) })
}

// TestARPFlood has thousands of stations ask for the engine, more than it can remember; the answers of those that it
// forgot do not depend on that, nor does anybody else.
func TestARPFlood(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	cfg.Addrs[0] = netip.PrefixFrom(lab.EngineAddr, 16)
	stack := openStack(t, lab, cfg)
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	ask(t, c, "before")
	w := openWire(t, lab.Peer, lab.PeerDev, unix.ETH_P_ARP)
	promiscuous(t, lab.Peer, lab.PeerDev)
	us, first := protoAddr(t, lab.EngineAddr), protoAddr(t, netip.MustParseAddr("10.77.16.0"))
	const n = 5000
	for i := range n {
		mac := proto.MAC{2, 0, 0, 1, byte(i >> 8), byte(i)}
		w.send(arpFrame(proto.Broadcast, mac, proto.ARP{Op: proto.ARPRequest, SHA: mac, SPA: first + proto.Addr(i), TPA: us}))
		reply, _ := proto.ParseARP(w.next(fmt.Sprintf("the ARP reply to station %d", i), func(b []byte) bool { return b[21] == proto.ARPReply })[14:])
		if reply.THA != mac || reply.SPA != us {
			t.Fatalf("station %d, %v: the answer is %+v", i, mac, reply)
		}
	}
	ask(t, c, "after")
	ping(t, lab.Peer, lab.EngineAddr, 1)
	if st := getStats(t, stack); len(st.Drops()) != 0 {
		t.Errorf("drops: %v", st.Drops())
	}
}

// TestNoise sends sound frames with a few bytes changed at random. Whatever becomes of them, the engine goes on.
func TestNoise(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	serveTCPEcho(t, stack, 7)
	_, to := echo(t, lab, stack)
	c := kernelUDP(t, lab.Peer, netip.AddrPort{}, to)
	ask(t, c, "before")
	w := openWire(t, lab.Peer, lab.PeerDev, unix.ETH_P_ALL)
	b := &badFrames{
		us: protoAddr(t, lab.EngineAddr), them: protoAddr(t, lab.PeerAddr), ourMAC: macOf(t, lab.Engine, lab.EngineDev),
		their: w.mac, udp: to.Port(),
	}
	var samples [][]byte
	for _, c := range append(append(b.linkCases(), b.ipCases()...), b.transportCases()...) {
		samples = append(samples, c.frames...)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	settle := barrier(t, lab)
	const n = 20000
	for i := range n {
		frame := append([]byte(nil), samples[r.IntN(len(samples))]...)
		for range r.IntN(4) {
			frame[12+r.IntN(len(frame)-12)] = byte(r.Uint32())
		}
		w.send(frame[:14+r.IntN(len(frame)-13)])
		if i%256 == 255 {
			settle()
		}
	}
	if err := tryAsk(c, "after", patience); err != nil {
		t.Errorf("seed %d: %v", seed, err)
	}
	ping(t, lab.Peer, lab.EngineAddr, 5, pingWait, "-s", "8000")
	// Pieces of datagrams wait for the rest of them. Others take their places, of which no piece is kept.
	for i := range 100 {
		w.send(b.fragment(uint16(i), 0, 13, true))
	}
	settle()
}
