package proto

import (
	"encoding/binary"
	"strconv"
	"strings"
	"testing"
)

// Frames that Linux 6.18 sent over a veth pair, taken with AF_PACKET: whole with `tx off`, partial with the checksum
// offload that a veth has by default. The lines are what describe must say.
var captured = []struct{ frame, want string }{
	{`ffffffffffff56cde9768e9b0806 000108000604000156cde9768e9b0a0908010000000000000a090802`,
		"arp who-has 10.9.8.2 tell 10.9.8.1 (56:cd:e9:76:8e:9b)"},
	{`56cde9768e9bda9373f1cc8f0806 0001080006040002da9373f1cc8f0a09080256cde9768e9b0a090801`,
		"arp 10.9.8.2 is-at da:93:73:f1:cc:8f to 10.9.8.1 (56:cd:e9:76:8e:9b)"},
	{`da9373f1cc8f56cde9768e9b0800 4500003cf0944000400626130a0908010a090802
		a32a1e61f24745a300000000a002faf066490000020405b40402080a2780a1b7000000000103030a`,
		"10.9.8.1 > 10.9.8.2: proto 6, len 60, ttl 64, id 61588, DF: tcp 41770 > 7777 [S] seq 4064757155 ack 0 win 64240 [mss 1460,sackOK,TS val 662741431 ecr 0,wscale 10] data 0 good"},
	{`56cde9768e9bda9373f1cc8f0800 4500003c00004000400616a80a0908020a090801
		1e61a32a75b74669f24745a4a012fe8841b80000020405b40402080a9db2c7142780a1b70103030a`,
		"10.9.8.2 > 10.9.8.1: proto 6, len 60, ttl 64, id 0, DF: tcp 7777 > 41770 [S.] seq 1974945385 ack 4064757156 win 65160 [mss 1460,sackOK,TS val 2645739284 ecr 662741431,wscale 10] data 0 good"},
	{`da9373f1cc8f56cde9768e9b0800 4500003ef09640004006260f0a0908010a090802
		a32a1e61f24745a475b7466a8018003fa5d800000101080a2780a1b79db2c714 68656c6c6f2c20786470`,
		"10.9.8.1 > 10.9.8.2: proto 6, len 62, ttl 64, id 61590, DF: tcp 41770 > 7777 [P.] seq 4064757156 ack 1974945386 win 63 [TS val 662741431 ecr 2645739284] data 10 good"},
	{`56cde9768e9bda9373f1cc8f0800 4500004814894000400602130a0908020a090801
		1e61a32a75b74674f24745aed0100040334200000101080a9db2c9092780a1b801010512f24746daf247470cf2474612f2474644`,
		"10.9.8.2 > 10.9.8.1: proto 6, len 72, ttl 64, id 5257, DF: tcp 7777 > 41770 [.] seq 1974945396 ack 4064757166 win 64 [TS val 2645739785 ecr 662741432,sack 4064757466:4064757516,sack 4064757266:4064757316] data 0 good"},
	{`da9373f1cc8f56cde9768e9b0800 45000034f0984000400626170a0908010a090802
		a32a1e61f24745ae75b746748011003f63c800000101080a2780aab69db2c909`,
		"10.9.8.1 > 10.9.8.2: proto 6, len 52, ttl 64, id 61592, DF: tcp 41770 > 7777 [F.] seq 4064757166 ack 1974945396 win 63 [TS val 662743734 ecr 2645739785] data 0 good"},
	{`da9373f1cc8f56cde9768e9b0800 4500001fb4ac40004011620d0a0908010a090802 ac7c0035000b5bad 6f6464`,
		"10.9.8.1 > 10.9.8.2: proto 17, len 31, ttl 64, id 46252, DF: udp 44156 > 53, len 11 good"},
	{`56cde9768e9bda9373f1cc8f0800 45c0003ea2c600004001b3240a0908020a090801
		030321310000000045000022f96d400040111d490a0908010a090802baa914e9000ed3e6636c6f736564`,
		"10.9.8.2 > 10.9.8.1: proto 1, len 62, ttl 64, id 41670, tos 0xc0: icmp type 3, code 3"},
	{`56cde9768e9bda9373f1cc8f0800 47000034a2f80000400198a30a0908020a0908010707080a09080100
		0000b48912340001202122232425262728292a2b2c2d2e2f`,
		"10.9.8.2 > 10.9.8.1: proto 1, len 52, ttl 64, id 41720: icmp echo reply, id 4660, seq 1"},

	{`3279d7a5ed02ae804df217a80800 4500003c94e04000400681c70a0908010a090802
		eb4e1e61a8919a9500000000a002faf024430000020405b40402080a75dd1a00000000000103030a`,
		"10.9.8.1 > 10.9.8.2: proto 6, len 60, ttl 64, id 38112, DF: tcp 60238 > 7777 [S] seq 2828114581 ack 0 win 64240 [mss 1460,sackOK,TS val 1977424384 ecr 0,wscale 10] data 0 partial"},
	{`3279d7a5ed02ae804df217a80800 4500003e94e24000400681c30a0908010a090802
		eb4e1e61a8919a9607296ce98018003f244500000101080a75dd1a00fa9056fa 68656c6c6f2c20786470`,
		"10.9.8.1 > 10.9.8.2: proto 6, len 62, ttl 64, id 38114, DF: tcp 60238 > 7777 [P.] seq 2828114582 ack 120155369 win 63 [TS val 1977424384 ecr 4203763450] data 10 partial"},
	{`3279d7a5ed02ae804df217a80800 4500001fc65b40004011505e0a0908010a090802 96bc0035000b2431 6f6464`,
		"10.9.8.1 > 10.9.8.2: proto 17, len 31, ttl 64, id 50779, DF: udp 38588 > 53, len 11 partial"},
}

func TestCaptured(t *testing.T) {
	for _, c := range captured {
		frame := hx(c.frame)
		if got := describe(frame); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
		if strings.HasPrefix(c.want, "arp") || strings.HasSuffix(c.want, "partial") {
			continue // nothing protects the whole of these
		}
		for i := EthernetHeaderLen; i < len(frame); i++ {
			if describe(with(frame, i, frame[i]^0x10)) == c.want {
				t.Errorf("a bit of byte %d changes nothing in %s", i, c.want)
			}
		}
	}
}

// describe takes a frame apart as a host would.
func describe(frame []byte) string {
	e, f := ParseEthernet(frame)
	if f != OK {
		return f.String()
	}
	frame = frame[e.Len:]
	if e.Type == EtherARP {
		a, f := ParseARP(frame)
		if f != OK {
			return f.String()
		}
		return a.String()
	}
	h, f := ParseIPv4(frame)
	if f != OK {
		return f.String()
	}
	b := frame[h.HeaderLen:h.TotalLen]
	pseudo := PseudoSum(h.Src, h.Dst, h.Proto, len(b))
	s := h.String() + ": "
	switch h.Proto {
	case ProtoICMP:
		m, f := ParseICMP(b)
		if f != OK {
			return f.String()
		}
		return s + m.String()
	case ProtoUDP:
		u, f := ParseUDP(b)
		if f != OK {
			return f.String()
		}
		return s + u.String() + " " + VerifyL4(b, u.Checksum, pseudo).String()
	case ProtoTCP:
		h, f := ParseTCP(b)
		if f != OK {
			return f.String()
		}
		var o TCPOptions
		ParseTCPOptions(b[TCPHeaderLen:h.DataOff], &o)
		return s + h.String() + " " + o.String() + " data " + strconv.Itoa(len(b)-int(h.DataOff)) + " " + VerifyL4(b, h.Checksum, pseudo).String()
	}
	return s
}

// What Linux's segments look like, we make from their fields to the byte.
func TestRebuildCaptured(t *testing.T) {
	for _, c := range captured {
		frame := hx(c.frame)
		e, _ := ParseEthernet(frame)
		h, f := ParseIPv4(frame[e.Len:])
		if f != OK || h.Proto != ProtoTCP {
			continue
		}
		b := frame[e.Len:][h.HeaderLen:h.TotalLen]
		th, _ := ParseTCP(b)
		var o TCPOptions
		ParseTCPOptions(b[TCPHeaderLen:th.DataOff], &o)
		pseudo := PseudoSum(h.Src, h.Dst, h.Proto, len(b))
		partial := VerifyL4(b, th.Checksum, pseudo) == L4Partial

		out := make([]byte, len(frame))
		n := PutEthernet(out, e.Dst, e.Src, e.Type)
		n += PutIPv4(out[n:], &h)
		seg := out[n:]
		th.Checksum = 0
		th.DataOff = uint8(TCPHeaderLen + o.Len())
		PutTCP(seg, &th)
		PutTCPOptions(seg[TCPHeaderLen:], &o)
		copy(seg[th.DataOff:], b[th.DataOff:])
		sum := ^Fold(Sum(seg, pseudo))
		if partial {
			sum = Fold(pseudo)
		}
		binary.BigEndian.PutUint16(seg[16:], sum)
		if string(out) != string(frame) {
			t.Errorf("%s\n got % x\nwant % x", c.want, out, frame)
		}
	}
}
