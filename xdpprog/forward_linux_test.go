package xdpprog

import (
	"bytes"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/cilium/ebpf"

	"xdpd/proto"
)

// TestLocalsFull: too many addresses are an error that says so, and the table stays as it was.
func TestLocalsFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	locals, err := NewLocals()
	if err != nil {
		t.Fatal(err)
	}
	defer locals.Close()
	var addrs []netip.Addr
	for i := range MaxLocals + 1 {
		addrs = append(addrs, proto.Addr(0x0a000000+i).Netip())
	}
	if err := locals.Set(addrs[1:]); err != nil {
		t.Error(err)
	}
	if err := locals.Set(addrs); err == nil || !strings.Contains(err.Error(), "4097 IPv4 addresses") {
		t.Errorf("%v", err)
	}
	if err := locals.Set(addrs[:MaxLocals]); err != nil {
		t.Error(err)
	}
}

// TestForwardVerdicts runs the program on frames of every kind. Without a socket, what is the forwarder's is counted so.
func TestForwardVerdicts(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	own, other := proto.MAC{2, 0, 0, 0, 0, 1}, proto.MAC{2, 0, 0, 0, 0, 2}
	packet := func(mac proto.MAC, typ uint16, dst proto.Addr) []byte {
		b := make([]byte, 64)
		proto.PutEthernet(b, mac, other, typ)
		proto.PutIPv4(b[14:], &proto.IPv4{Src: 0x0a000001, Dst: dst, TTL: 9, Proto: 17, TotalLen: 50})
		return b
	}
	const far, local = proto.Addr(0x0a010101), proto.Addr(0x0a0000fe)
	lldp := proto.MAC{1, 0x80, 0xc2, 0, 0, 0xe}
	for _, c := range []struct {
		name           string
		frame          []byte
		bridge, router string
	}{
		{"to go on", packet(own, proto.EtherIPv4, far), "pass_own", "pass_no_socket"},
		{"to the machine", packet(own, proto.EtherIPv4, local), "pass_own", "pass_own"},
		{"to another station", packet(other, proto.EtherIPv4, far), "pass_no_socket", "pass_protocol"},
		{"ARP", packet(own, proto.EtherARP, far), "pass_own", "pass_protocol"},
		{"tagged", packet(own, proto.EtherCTag, far), "pass_own", "pass_protocol"},
		{"to all", packet(proto.Broadcast, proto.EtherARP, far), "pass_no_socket", "pass_group"},
		{"to a group of hosts", packet(own, proto.EtherIPv4, 0xe0000005), "pass_own", "pass_group"},
		{"LLDP", packet(lldp, 0x88cc, far), "pass_group", "pass_group"},
		{"past LLDP", packet(proto.MAC{1, 0x80, 0xc2, 0, 0, 0x10}, 0x88cc, far), "pass_no_socket", "pass_group"},
		{"short", packet(own, proto.EtherIPv4, far)[:30], "pass_own", "pass_short"},
	} {
		for _, router := range []bool{false, true} {
			locals, err := NewLocals()
			if err != nil {
				t.Fatal(err)
			}
			if err := locals.Set([]netip.Addr{far.Netip()}); err != nil { // replaced by what is right
				t.Fatal(err)
			}
			if err := locals.Set([]netip.Addr{local.Netip(), netip.MustParseAddr("::1")}); err != nil {
				t.Fatal(err)
			}
			f := &Forward{config: ForwardConfig{MAC: other, Queues: 1, Route: router, Locals: locals}}
			prog, err := f.load(attempt{})
			if err != nil {
				t.Fatal(err)
			}
			if err := f.SetMAC(own); err != nil {
				t.Fatal(err)
			}
			out := make([]byte, 256)
			ret, err := prog.Run(&ebpf.RunOptions{Data: c.frame, DataOut: out})
			if err != nil || ret != xdpPass || !bytes.HasPrefix(out, c.frame) {
				t.Errorf("%s: %v, verdict %d, want XDP_PASS", c.name, err, ret)
			}
			counters, err := f.Counters()
			if err != nil {
				t.Fatal(err)
			}
			want := c.bridge
			if router {
				want = c.router
			}
			for _, v := range counters {
				if n := v.Packets; (n == 1) != (v.Name == want) || n == 1 && v.Bytes != uint64(len(c.frame)) {
					t.Errorf("%s, router %v: %s counts %d packets, want %s", c.name, router, v.Name, n, want)
				}
			}
			if err := f.Close(); err != nil {
				t.Error(err)
			}
			if err := locals.Close(); err != nil {
				t.Error(err)
			}
		}
	}
}
