package xdpd_test

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/proto"
	"xdpd/sockets"
)

func protoAddr(t testing.TB, a netip.Addr) proto.Addr {
	t.Helper()
	p, ok := proto.AddrFrom(a)
	if !ok {
		t.Fatalf("%v is not an IPv4 address", a)
	}
	return p
}

// TestPingFlood has the kernel send as fast as answers come.
func TestPingFlood(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	const n = 20000
	ping(t, lab.Peer, lab.EngineAddr, n, "-f")
	if got := counted(t, stack, sockets.RxICMP); got != n {
		t.Errorf("the engine counts %d ICMP messages, not %d", got, n)
	}
	if got := counted(t, stack, sockets.TxICMP); got != n {
		t.Errorf("the engine counts %d ICMP messages sent, not %d", got, n)
	}
}

// pingWait is ping's interval: behind the last request it waits that long, or twice the longest round trip so far, and a busy
// machine lets an answer take more than the others did.
var pingWait = fmt.Sprintf("-i%.1f", 0.2*float64(netlab.Slow))

// TestPingSizes has requests and answers of one packet and of many fragments.
func TestPingSizes(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	for _, size := range []string{"0", "1", "56", "1471", "1472", "1473", "8000", "65507"} {
		ping(t, lab.Peer, lab.EngineAddr, 5, pingWait, "-s", size)
	}
	if counted(t, stack, sockets.Reassembled) != 15 {
		t.Errorf("%d packets were put together from fragments, not 15", counted(t, stack, sockets.Reassembled))
	}
}

// TestPingJumbo has requests and answers of several frames.
func TestPingJumbo(t *testing.T) {
	lab, stack := engine(t, netlab.Options{MTU: 9000})
	for _, size := range []string{"56", "3790", "3800", "3801", "8900", "8972", "8973", "65507"} {
		ping(t, lab.Peer, lab.EngineAddr, 5, pingWait, "-s", size)
	}
	if n := counted(t, stack, sockets.Reassembled); n != 10 {
		t.Errorf("%d packets were put together from fragments, not 10", n)
	}
	if st := getStats(t, stack); !st.SG || st.ChunkSize != 4096 || len(st.Drops()) != 0 {
		t.Errorf("multi-buffer %v, frames of %d bytes, drops %v", st.SG, st.ChunkSize, st.Drops())
	}
}

// TestARP asks as a station that the engine never heard of, as a probe that has no address yet, and for an address that
// is not the engine's.
func TestARP(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	w := openWire(t, lab.Peer, lab.PeerDev, unix.ETH_P_ARP)
	mac := macOf(t, lab.Engine, lab.EngineDev)
	us, stranger := protoAddr(t, lab.EngineAddr), protoAddr(t, lab.PeerAddr)+7
	for _, sender := range []proto.Addr{stranger, 0} {
		w.send(arpFrame(proto.Broadcast, w.mac, proto.ARP{Op: proto.ARPRequest, SHA: w.mac, SPA: sender, TPA: us + 9}))
		w.send(arpFrame(proto.Broadcast, w.mac, proto.ARP{Op: proto.ARPRequest, SHA: w.mac, SPA: sender, TPA: us}))
		frame := w.next("an ARP reply", func(b []byte) bool { return len(b) >= 42 && b[21] == proto.ARPReply })
		eth, _ := proto.ParseEthernet(frame)
		a, fault := proto.ParseARP(frame[14:])
		want := proto.ARP{Op: proto.ARPReply, SHA: mac, SPA: us, THA: w.mac, TPA: sender}
		if fault != proto.OK || a != want || eth.Src != mac || eth.Dst != w.mac {
			t.Errorf("asked by %v, the engine says %+v from %v to %v; want %+v", sender, a, eth.Src, eth.Dst, want)
		}
	}
	if got := counted(t, stack, sockets.TxARP); got != 3 { // with the announcement at the start
		t.Errorf("the engine sent %d ARP packets, not 3", got)
	}
}

// TestArping is the same by a program that others trust. Both arpings are in use: iputils' counts packets with -c and
// names the interface with -I, Habets' with -i.
func TestArping(t *testing.T) {
	lab, _ := engine(t, netlab.Options{})
	flag := "-I"
	if help, _ := lab.Peer.Run(t.Context(), "arping", "--help"); strings.Contains(string(help), "Thomas Habets") {
		flag = "-i"
	}
	out := run(t, lab.Peer, "arping", "-c", "2", flag, lab.PeerDev, lab.EngineAddr.String())
	if mac := macOf(t, lab.Engine, lab.EngineDev).String(); !strings.Contains(strings.ToLower(out), mac) {
		t.Errorf("no %s in: %s", mac, out)
	}
}

// TestClosedPort: what traceroute lives on. A datagram to a port that nobody opened brings ECONNREFUSED to its sender.
func TestClosedPort(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	for _, size := range []int{0, 1000, 5000} { // the last in fragments
		c := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 33434))
		if _, err := c.Write(make([]byte, size)); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNREFUSED) {
			t.Errorf("%d bytes to a closed port: %v, want %v", size, err, unix.ECONNREFUSED)
		}
	}
	if got := drops(t, stack, "udp_no_socket"); got != 3 {
		t.Errorf("udp_no_socket is %d, not 3", got)
	}
}
