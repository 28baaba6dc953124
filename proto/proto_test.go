package proto

import (
	"encoding/hex"
	"strings"
	"testing"
)

// hx is the bytes of a hex string with spaces and line ends anywhere.
func hx(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// with is a copy of b with the byte at i replaced.
func with(b []byte, i int, v byte) []byte {
	b = append([]byte(nil), b...)
	b[i] = v
	return b
}

// checkParse asks parse for the header and fault of b. A refused b must give the zero header.
func checkParse[H comparable](t *testing.T, parse func([]byte) (H, Fault), b []byte, want H, fault Fault) {
	t.Helper()
	var zero H
	if fault != OK {
		want = zero
	}
	if got, f := parse(b); f != fault || got != want {
		t.Errorf("% x\n got %v %+v\nwant %v %+v", b, f, got, fault, want)
	}
}

// checkTruncated cuts b, which parses, at every length: below need the fault is one of the named, and from need on OK.
// The bytes are cut off the capacity too, so that reading past the end panics.
func checkTruncated[H comparable](t *testing.T, parse func([]byte) (H, Fault), b []byte, need int, faults ...Fault) {
	t.Helper()
	for n := 0; n <= len(b); n++ {
		_, got := parse(b[:n:n])
		named := n >= need && got == OK
		for _, f := range faults {
			named = named || n < need && got == f
		}
		if !named {
			t.Errorf("%d of %d bytes: %v", n, len(b), got)
		}
	}
}

// mustPanic asks of f, a Put function with too short a buffer, that it does not write past it and go on.
func mustPanic(t *testing.T, name string, f func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", name)
		}
	}()
	f()
}

func TestShortBufferPanics(t *testing.T) {
	buf := make([]byte, 64)
	o := TCPOptions{MSS: 1460, HasWScale: true}
	for name, c := range map[string]struct {
		n   int
		put func([]byte)
	}{
		"PutEthernet":       {14, func(b []byte) { PutEthernet(b, MAC{}, MAC{}, EtherIPv4) }},
		"PutEthernetTagged": {22, func(b []byte) { PutEthernetTagged(b, MAC{}, MAC{}, []uint16{1, 2}, EtherIPv4) }},
		"PutARP":            {28, func(b []byte) { PutARP(b, &ARP{}) }},
		"PutIPv4":           {20, func(b []byte) { PutIPv4(b, &IPv4{}) }},
		"PutICMP":           {8, func(b []byte) { PutICMP(b, 8, 0, 0) }},
		"PutUDP":            {8, func(b []byte) { PutUDP(b, 1, 2, 8, 0) }},
		"PutTCP":            {20, func(b []byte) { PutTCP(b, &TCP{}) }},
		"PutTCPOptions":     {8, func(b []byte) { PutTCPOptions(b, &o) }},
	} {
		c.put(buf[:c.n:c.n])
		mustPanic(t, name, func() { c.put(buf[: c.n-1 : c.n-1]) })
	}
}

// Nothing on the way of a packet allocates.
func TestNoAllocations(t *testing.T) {
	eth := hx("020000000002 020000000001 88a8 0064 8100 0065 0800")
	arp := hx(arpRequestBytes)
	ip := hx(ipOptionsBytes)
	icmp := hx(icmpEchoBytes)
	udp := hx("0035 1234 0009 0000 61")
	tcp := hx(tcpSYNBytes)
	buf := make([]byte, 128)
	tags := []uint16{100, 101}
	var faults, total int
	count := func(f Fault, n int) {
		if f != OK {
			faults++
		}
		total += n
	}
	n := testing.AllocsPerRun(100, func() {
		e, f := ParseEthernet(eth)
		count(f, PutEthernetTagged(buf, e.Dst, e.Src, tags, e.Type))
		a, f := ParseARP(arp)
		count(f, PutARP(buf, &a))
		h, f := ParseIPv4(ip)
		count(f, PutIPv4(buf, &h))
		m, f := ParseICMP(icmp)
		count(f, PutICMP(buf, m.Type, m.Code, m.Rest))
		SetICMPChecksum(buf[:8])
		u, f := ParseUDP(udp)
		count(f, PutUDP(buf, u.SrcPort, u.DstPort, int(u.Len), u.Checksum))
		s, f := ParseTCP(tcp)
		count(f, PutTCP(buf, &s))
		var o TCPOptions
		ParseTCPOptions(tcp[TCPHeaderLen:s.DataOff], &o)
		count(OK, PutTCPOptions(buf, &o))
		VerifyL4(tcp, s.Checksum, PseudoSum(h.Src, h.Dst, ProtoTCP, len(tcp)))
		if SourceRouted(ip[IPv4HeaderLen:h.HeaderLen]) {
			faults++
		}
	})
	if n != 0 {
		t.Errorf("%v allocations a run", n)
	}
	if want := 101 * (22 + 28 + 20 + 8 + 8 + 20 + 20); faults != 0 || total != want {
		t.Errorf("%d faults, %d bytes, want %d: the test did not run what it measures", faults, total, want)
	}
}

func TestStrings(t *testing.T) {
	for want, h := range map[string]interface{ String() string }{
		"02:00:00:00:00:01 > ff:ff:ff:ff:ff:ff, type 0x0806, vlan 100 p 0, vlan 4095 p 7": Ethernet{
			Dst: Broadcast, Src: MAC{2, 0, 0, 0, 0, 1}, Type: EtherARP, NTags: 2, Tags: [2]uint16{100, 0xffff}},
		"arp who-has 10.0.0.2 tell 10.0.0.1 (02:00:00:00:00:01)": ARP{
			Op: ARPRequest, SHA: MAC{2, 0, 0, 0, 0, 1}, SPA: 0x0a000001, TPA: 0x0a000002},
		"arp 10.0.0.1 is-at 02:00:00:00:00:01 to 10.0.0.2 (00:00:00:00:00:00)": ARP{
			Op: ARPReply, SHA: MAC{2, 0, 0, 0, 0, 1}, SPA: 0x0a000001, TPA: 0x0a000002},
		"10.0.0.1 > 10.0.0.2: proto 17, len 40, ttl 64, id 7": IPv4{
			Src: 0x0a000001, Dst: 0x0a000002, ID: 7, TTL: 64, Proto: ProtoUDP, TotalLen: 40},
		"0.0.0.0 > 0.0.0.0: proto 0, len 0, ttl 0, id 0, tos 0x3, DF": IPv4{TOS: 3, DF: true},
		"0.0.0.0 > 0.0.0.0: proto 0, len 0, ttl 0, id 0, frag 1480+":  IPv4{FragOff: 1480, MF: true},
		"icmp echo request, id 4660, seq 1":                           ICMP{Type: ICMPEcho, Rest: 0x12340001},
		"icmp echo reply, id 4660, seq 1":                             ICMP{Type: ICMPEchoReply, Rest: 0x12340001},
		"icmp unreachable, fragmentation needed, mtu 1400":            ICMP{Type: 3, Code: 4, Rest: 1400},
		"icmp type 11, code 1":                                        ICMP{Type: ICMPTimeExceeded, Code: 1},
		"udp 53 > 4242, len 9":                                        UDP{SrcPort: 53, DstPort: 4242, Len: 9},
		"tcp 80 > 4242 [S.] seq 7 ack 8 win 9":                        TCP{80, 4242, 7, 8, 20, SYN | ACK, 9, 0, 0},
		"tcp 0 > 0 [FSRP.UEW] seq 0 ack 0 win 0":                      TCP{Flags: 0xff},
		"[]":                                                          TCPOptions{},
		"[mss 1460,sackOK,TS val 1 ecr 2,wscale 0,sack 3:4]":          TCPOptions{1460, 0, true, true, true, 1, 2, 1, [4][2]uint32{{3, 4}}},
		"[sack 0:0,sack 0:0,sack 0:0,sack 0:0]":                       TCPOptions{NSACK: 255},
	} {
		if got := h.String(); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
