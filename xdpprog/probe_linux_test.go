package xdpprog

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// TestProbe: the answer to an ARP probe becomes a datagram while somebody waits for it on a port, and only then.
func TestProbe(t *testing.T) {
	reply := ether(arpT, arp(netip.IPv4Unspecified()))
	reply[21] = 2
	request, named := bytes.Clone(reply), bytes.Clone(reply)
	request[21] = 1
	named[41] = 9
	padded := append(bytes.Clone(reply), make([]byte, 18)...)
	for _, s := range []Steer{Own, Share} {
		r := newRig(t, s, false)
		probe := func(port uint16) {
			t.Helper()
			if err := r.p.Probe(port); err != nil {
				t.Fatal(err)
			}
		}
		r.expect(reply, "pass_not_ours")
		probe(0x1234)
		r.expect(request, "pass_not_ours")
		r.expect(named, "pass_not_ours")
		r.expect(ether(arpT, reply[14:], vlan), "pass_not_ours")
		r.expect(padded, "pass_probe")
		r.expect(reply, "pass_probe")
		out := make([]byte, len(reply))
		if _, err := r.p.objs.Steer.Run(&ebpf.RunOptions{Data: reply, DataOut: out}); err != nil {
			t.Fatal(err)
		}
		r.last = r.counters()
		udp := []byte{0, 0, 0x12, 0x34, 0, 8, 0, 0}
		ip := []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 1, 17, 0, 0, 0, 0, 0, 0, 224, 0, 0, 1}
		sum := uint32(0)
		for i := 0; i < len(ip); i += 2 {
			sum += uint32(be.Uint16(ip[i:]))
		}
		be.PutUint16(ip[10:], ^uint16(sum+sum>>16))
		if want := append(append(append(bytes.Clone(reply[:12]), 8, 0), ip...), udp...); !bytes.Equal(out, want) {
			t.Errorf("the answer became\n%x, want\n%x", out, want)
		}
		probe(0)
		r.expect(reply, "pass_not_ours")
	}
}
