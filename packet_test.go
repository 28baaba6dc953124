package xdpd_test

import (
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd/internal/netlab"
	"xdpd/proto"
)

// wire is a packet socket on an interface: it sends and sees whole frames.
type wire struct {
	t     testing.TB
	fd    int
	index int
	mac   proto.MAC
}

func networkOrder(v uint16) uint16 { return v<<8 | v>>8 }

// openWire opens a packet socket for frames of one Ethernet type (unix.ETH_P_ALL: all) in either direction.
func openWire(t testing.TB, ns *netlab.NS, dev string, etherType uint16) *wire {
	t.Helper()
	w := &wire{t: t}
	in(t, ns, func() error {
		link, err := netlink.LinkByName(dev)
		if err != nil {
			return err
		}
		w.index, w.mac = link.Attrs().Index, proto.MAC(link.Attrs().HardwareAddr)
		protocol := networkOrder(etherType)
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(protocol)); err != nil {
			return err
		}
		timeout := unix.NsecToTimeval(int64(patience))
		if err := unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
			return err
		}
		return unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: protocol, Ifindex: w.index})
	})
	t.Cleanup(func() { unix.Close(w.fd) })
	return w
}

// macOf is an interface's hardware address.
func macOf(t testing.TB, ns *netlab.NS, dev string) (mac proto.MAC) {
	t.Helper()
	in(t, ns, func() error {
		link, err := netlink.LinkByName(dev)
		if err == nil {
			mac = proto.MAC(link.Attrs().HardwareAddr)
		}
		return err
	})
	return mac
}

// send puts a frame on the wire as it is.
func (w *wire) send(frame []byte) {
	w.t.Helper()
	err := unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.index})
	for end := time.Now().Add(patience); err == unix.ENOBUFS && time.Now().Before(end); { // the receiver is behind
		time.Sleep(time.Millisecond)
		err = unix.Sendto(w.fd, frame, 0, &unix.SockaddrLinklayer{Ifindex: w.index})
	}
	if err != nil {
		w.t.Fatalf("send a frame of %d bytes: %v", len(frame), err)
	}
}

// next returns the next frame that comes in and is wanted.
func (w *wire) next(what string, wanted func(frame []byte) bool) []byte {
	w.t.Helper()
	buf := make([]byte, 65536)
	for {
		n, from, err := unix.Recvfrom(w.fd, buf, 0)
		if err == unix.EINTR { // the Go runtime's signals; SO_RCVTIMEO keeps the kernel from going on by itself
			continue
		}
		if err != nil {
			w.t.Fatalf("%s did not come: %v", what, err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype != unix.PACKET_OUTGOING && wanted(buf[:n]) {
			return append([]byte(nil), buf[:n]...)
		}
	}
}

// barrier returns a function that waits until the engine, of one queue, has dealt with all frames sent before: it probes
// for the engine's address (RFC 5227), which changes nothing and needs no memory.
func barrier(t testing.TB, lab *netlab.Lab) (settle func()) {
	t.Helper()
	w := openWire(t, lab.Peer, lab.PeerDev, unix.ETH_P_ARP)
	mac, us := macOf(t, lab.Engine, lab.EngineDev), protoAddr(t, lab.EngineAddr)
	return func() {
		t.Helper()
		w.send(probeFor(us, w.mac, mac))
		w.next("an ARP reply", func(b []byte) bool {
			a, fault := proto.ParseARP(b[14:])
			return fault == proto.OK && a.Op == proto.ARPReply && a.SPA == us && a.TPA == 0
		})
	}
}

// probeFor asks who has an address, as a station that has none itself.
func probeFor(target proto.Addr, from, to proto.MAC) []byte {
	return arpFrame(to, from, proto.ARP{Op: proto.ARPRequest, SHA: from, TPA: target})
}

// ethernet puts a link header in front of a payload.
func ethernet(dst, src proto.MAC, etherType uint16, payload []byte) []byte {
	frame := make([]byte, 14, 14+len(payload))
	proto.PutEthernet(frame, dst, src, etherType)
	return append(frame, payload...)
}

func arpFrame(dst, src proto.MAC, a proto.ARP) []byte {
	b := make([]byte, 28)
	proto.PutARP(b, &a)
	return ethernet(dst, src, proto.EtherARP, b)
}

// ipPacket puts an IPv4 header in front of a payload: h says the addresses, the protocol and what else is set.
func ipPacket(h proto.IPv4, payload []byte) []byte {
	h.HeaderLen, h.TotalLen = 20, uint16(20+len(payload))
	if h.TTL == 0 {
		h.TTL = 64
	}
	b := make([]byte, 20, 20+len(payload))
	proto.PutIPv4(b, &h)
	return append(b, payload...)
}

// udpDatagram is a UDP header with a correct checksum, and the payload.
func udpDatagram(src, dst proto.Addr, sport, dport uint16, payload []byte) []byte {
	n := 8 + len(payload)
	b := append(make([]byte, 8, n), payload...)
	proto.PutUDP(b, sport, dport, n, 0)
	proto.PutUDP(b, sport, dport, n, ^proto.Fold(proto.Sum(b, proto.PseudoSum(src, dst, proto.ProtoUDP, n))))
	return b
}

func icmpMessage(typ, code uint8, rest uint32, payload []byte) []byte {
	b := append(make([]byte, 8, 8+len(payload)), payload...)
	proto.PutICMP(b, typ, code, rest)
	proto.SetICMPChecksum(b)
	return b
}
