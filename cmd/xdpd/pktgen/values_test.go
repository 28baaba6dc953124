package pktgen

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"xdpd/proto"
)

func addr(a, b, c, d byte) proto.Addr {
	return proto.Addr(a)<<24 | proto.Addr(b)<<16 | proto.Addr(c)<<8 | proto.Addr(d)
}

func TestValues(t *testing.T) {
	for _, c := range []struct {
		text string
		into encoding.TextUnmarshaler
		want string // of %v; "!" and words: an error that has them
	}{
		{"0", new(Rate), "no limit"},
		{"250", new(Rate), "250 pps"},
		{"200k", new(Rate), "200.00 kpps"},
		{"1.5M", new(Rate), "1.50 Mpps"},
		{"1.5Mpps", new(Rate), "1.50 Mpps"},
		{"900Mbit", new(Rate), "900.00 Mbit/s"},
		{"10gbit/s", new(Rate), "10.00 Gbit/s"},
		{"", new(Rate), "!is no rate"},
		{"k", new(Rate), "!is no rate"},
		{"-1", new(Rate), "!is no rate"},
		{"1.2.3", new(Rate), "!is no rate"},
		{"5Mbyte", new(Rate), "!is no rate: packets a second as in 200k"},
		{"5000", new(Count), "5000"},
		{"10M", new(Count), "10000000"},
		{"1.5k", new(Count), "1500"},
		{"0.5", new(Count), "!is no number of packets"},
		{"1e6", new(Count), "!is no number of packets"},
		{"99999999999G", new(Count), "!is no number of packets"},
		{"64", new(Sizes), "64"},
		{"imix", new(Sizes), "64:7,594:4,1518:1"},
		{"64:3,128", new(Sizes), "64:3,128:1"},
		{"63", new(Sizes), "!size 63: frames have 64 to 4100 bytes"},
		{"4101", new(Sizes), "!size 4101"},
		{"64:0", new(Sizes), "!is no size"},
		{"64:60,128:60", new(Sizes), "!the weights sum up to 120"},
		{"small", new(Sizes), "!is no size: write 64, imix"},
		{"10.0.0.1", new(Addrs), "10.0.0.1"},
		{"10.0.0.1-10.0.1.9", new(Addrs), "10.0.0.1-10.0.1.9"},
		{"10.0.0.7/24", new(Addrs), "10.0.0.1-10.0.0.254"},
		{"10.0.0.6/31", new(Addrs), "10.0.0.6-10.0.0.7"},
		{"10.0.0.6/32", new(Addrs), "10.0.0.6"},
		{"0.0.0.0/0", new(Addrs), "0.0.0.1-255.255.255.254"},
		{"10.0.0.9-10.0.0.1", new(Addrs), "!is no range of IPv4"},
		{"fe80::1", new(Addrs), "!is no range of IPv4"},
		{"10.0.0.0/33", new(Addrs), "!is no range of IPv4"},
		{"7", new(Ports), "7"},
		{"1024-65535", new(Ports), "1024-65535"},
		{"0", new(Ports), "!is no range of ports"},
		{"9-7", new(Ports), "!is no range of ports"},
		{"65536", new(Ports), "!is no range of ports"},
		{"02:00:00:00:00:0a", new(MAC), "02:00:00:00:00:0a"},
		{"02:00:00:00:00:00:00:0a", new(MAC), "!is no MAC address"},
	} {
		err := c.into.UnmarshalText([]byte(c.text))
		if words, bad := strings.CutPrefix(c.want, "!"); bad {
			if err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("%q gives %v, want an error with %q", c.text, err, words)
			}
			continue
		}
		if got := fmt.Sprint(reflect.ValueOf(c.into).Elem()); err != nil || got != c.want {
			t.Errorf("%q is read as %s, %v, want %s", c.text, got, err, c.want)
		}
	}
}

func TestSizes(t *testing.T) {
	p := imix.pattern()
	if len(p) != 12 || imix.mean() != (7*64+4*594+1518)/12.0 || imix.max() != 1518 {
		t.Errorf("imix is %v, mean %v, longest %d", p, imix.mean(), imix.max())
	}
	for _, w := range imix {
		n := 0
		for _, size := range p {
			if size == w.Size {
				n++
			}
		}
		if n != w.Weight {
			t.Errorf("%d comes %d times in %v", w.Size, n, p)
		}
	}
	if got := (Sizes{{64, 2}, {128, 2}}).pattern(); !slices.Equal(got, []int{64, 128, 64, 128}) {
		t.Errorf("even weights alternate: %v", got)
	}
	if got := (Rate{Bits: 8e6}).perSecond(1000); got != 1000 {
		t.Errorf("8 Mbit/s in frames of 1000 bytes are %v a second", got)
	}
}

// TestFlows looks at every flow: the order is the documented one, none is there twice, and all are in their ranges.
func TestFlows(t *testing.T) {
	f := Flows{
		Src: Addrs{addr(10, 0, 0, 255), addr(10, 0, 1, 1)}, Dst: Addrs{addr(10, 9, 0, 1), addr(10, 9, 0, 2)},
		Sport: Ports{65532, 65535}, Dport: Ports{7, 9},
	}
	if err := f.settle(); err != nil || f.N != 3*2*4*3 {
		t.Fatalf("%d flows, %v", f.N, err)
	}
	i := 0
	for dst := range proto.Addr(2) {
		for src := range proto.Addr(3) {
			for dport := range uint16(3) {
				for sport := range uint16(4) {
					want := flow{addr(10, 0, 0, 255) + src, addr(10, 9, 0, 1) + dst, 65532 + sport, 7 + dport}
					if got := f.at(i); got != want {
						t.Fatalf("flow %d is %v, want %v", i, got, want)
					}
					i++
				}
			}
		}
	}
}

func TestFlowsSettle(t *testing.T) {
	one := Addrs{addr(10, 0, 0, 1), addr(10, 0, 0, 1)}
	all := Addrs{0, 1<<32 - 1}
	for _, c := range []struct {
		f     Flows
		want  int
		sport Ports
		err   string
	}{
		{Flows{Dst: one}, 1, Ports{1024, 1024}, ""},
		{Flows{Dst: one, N: 1000}, 1000, Ports{1024, 2023}, ""},
		{Flows{Dst: one, Dport: Ports{1, 3}, N: 1000}, 1000, Ports{1024, 1024 + 333}, ""},
		{Flows{Dst: one, N: 64512}, 64512, Ports{1024, 65535}, ""},
		{Flows{Dst: one, N: 64513}, 0, Ports{}, "--flows 64513: the addresses and ports make 64512: widen"},
		{Flows{Dst: one, Src: Addrs{0, 15}, N: MaxFlows}, MaxFlows, Ports{1024, 1024 + 62499}, ""},
		{Flows{Dst: all, Src: all, Sport: Ports{1, 65535}, Dport: Ports{1, 65535}}, MaxFlows, Ports{1, 65535}, ""},
		{Flows{Dst: one, N: MaxFlows + 1}, 0, Ports{}, "may be 1 to 1000000"},
		{Flows{Dst: one, N: -1}, 0, Ports{}, "may be 1 to 1000000"},
	} {
		err := c.f.settle()
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%+v: %v, want %q", c.f, err, c.err)
			}
		} else if err != nil || c.f.N != c.want || c.f.Sport != c.sport {
			t.Errorf("settled as %+v, %v, want %d flows from ports %v", c.f, err, c.want, c.sport)
		}
	}
}
