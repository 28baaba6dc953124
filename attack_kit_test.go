package xdpd_test

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/proto"
	"xdpd/rings"
	"xdpd/sockets"
	"xdpd/umem"
)

// attacker is somebody on the peer's side who writes frames himself, as whoever he likes.
type attacker struct {
	*wire
	target, peer proto.Addr
	targetMAC    proto.MAC
	rng          *rand.Rand
}

// farAway is a network behind the peer, of which the peer's kernel knows nothing: what the engine sends there, only a
// packet socket sees.
const farAway = proto.Addr(10<<24 | 99<<16)

// attackedEngine has a router, so that it answers strangers.
func attackedEngine(t *testing.T, o netlab.Options) (*netlab.Lab, *xdpd.Stack) {
	t.Helper()
	lab := newLab(t, o)
	cfg := engineConfig(lab)
	cfg.Gateway = lab.PeerAddr
	return lab, openStack(t, lab, cfg)
}

func newAttacker(t *testing.T, lab *netlab.Lab) *attacker {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	t.Logf("attacker's seed %d", seed)
	a := &attacker{
		wire: openWire(t, lab.Peer, lab.PeerDev, unix.ETH_P_IP), target: protoAddr(t, lab.EngineAddr),
		peer: protoAddr(t, lab.PeerAddr), targetMAC: macOf(t, lab.Engine, lab.EngineDev), rng: rand.New(rand.NewPCG(seed, 0)),
	}
	// What nobody reads while frames are only sent must not be lost for it.
	if err := unix.SetsockoptInt(a.fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		t.Fatal(err)
	}
	return a
}

// segment is a frame with a TCP segment to the target, as from src.
func (a *attacker) segment(src proto.Addr, h proto.TCP, o proto.TCPOptions, data string) []byte {
	frame := make([]byte, 14+20+20+o.Len()+len(data))
	a.put(frame, src, h, o, data)
	return frame
}

// put writes the frame where it is to lie.
func (a *attacker) put(frame []byte, src proto.Addr, h proto.TCP, o proto.TCPOptions, data string) {
	proto.PutEthernet(frame, a.targetMAC, a.mac, proto.EtherIPv4)
	proto.PutIPv4(frame[14:], &proto.IPv4{
		Src: src, Dst: a.target, TTL: 64, Proto: proto.ProtoTCP, DF: true, TotalLen: uint16(len(frame) - 14),
	})
	seg := frame[34:]
	h.DataOff, h.Checksum = uint8(20+o.Len()), 0
	proto.PutTCP(seg, &h)
	proto.PutTCPOptions(seg[20:], &o)
	copy(seg[h.DataOff:], data)
	sum := ^proto.Fold(proto.Sum(seg, proto.PseudoSum(src, a.target, proto.ProtoTCP, len(seg))))
	binary.BigEndian.PutUint16(seg[16:], sum)
}

// synOptions are those that Linux sends.
var synOptions = proto.TCPOptions{MSS: 1460, SACKPermitted: true, HasTS: true, TSVal: 1, HasWScale: true, WScale: 7}

// heard is a segment that the target sent.
type heard struct {
	dst  proto.Addr
	tcp  proto.TCP
	opt  proto.TCPOptions
	data []byte
}

// parseSegment reads a frame of the target's.
func (a *attacker) parseSegment(frame []byte) (g heard, ok bool) {
	e, fault := proto.ParseEthernet(frame)
	if fault != proto.OK || e.Type != proto.EtherIPv4 || e.Src != a.targetMAC {
		return g, false
	}
	ip, fault := proto.ParseIPv4(frame[14:])
	if fault != proto.OK || ip.Proto != proto.ProtoTCP {
		return g, false
	}
	seg := frame[14+int(ip.HeaderLen) : 14+int(ip.TotalLen)]
	if g.tcp, fault = proto.ParseTCP(seg); fault != proto.OK {
		return g, false
	}
	proto.ParseTCPOptions(seg[20:g.tcp.DataOff], &g.opt)
	g.dst, g.data = ip.Dst, seg[g.tcp.DataOff:]
	return g, true
}

// hear waits for a segment of the target's.
func (a *attacker) hear(what string, wanted func(*heard) bool) (g heard) {
	a.t.Helper()
	a.next(what, func(frame []byte) bool {
		var ok bool
		g, ok = a.parseSegment(frame)
		if ok = ok && wanted(&g); ok {
			g.data = append([]byte(nil), g.data...)
		}
		return ok
	})
	return g
}

// overheard takes all segments that have come by now. What the target was to do before must be settled.
func (a *attacker) overheard(wanted func(*heard) bool) (n int) {
	a.t.Helper()
	buf := make([]byte, 65536)
	for {
		k, from, err := unix.Recvfrom(a.fd, buf, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN {
			return n
		}
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			a.t.Fatal(err)
		}
		if from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING {
			continue
		}
		if g, ok := a.parseSegment(buf[:k]); ok && wanted(&g) {
			n++
		}
	}
}

// flood sends SYNs from strangers to a port through an AF_XDP socket, in bursts of 64 with a pause between them, until
// stop. sent counts them.
func (a *attacker) flood(lab *netlab.Lab, port uint16, pause time.Duration, stop <-chan struct{}, sent *atomic.Uint64) error {
	region, err := umem.New(umem.Options{Frames: 2048, ChunkSize: 2048})
	if err != nil {
		return err
	}
	defer region.Close()
	var sock *rings.Socket
	err = lab.Peer.Do(func() error {
		link, err := netlink.LinkByName(lab.PeerDev)
		if err != nil {
			return err
		}
		sock, err = rings.OpenSocket(region, rings.SocketOptions{
			Interface: lab.PeerDev, Ifindex: link.Attrs().Index, Mode: rings.Copy, TXSize: 1024, CompSize: 2048,
		})
		return err
	})
	if err != nil {
		return err
	}
	defer sock.Close()
	port4, next := sock.Port(), umem.Frame(0)
	size := 14 + 20 + 20 + synOptions.Len()
	// Frames are used in turn. One that is written again too early would only be a SYN of somebody else.
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		_, done := port4.Comp.Peek(1024)
		port4.Comp.Release(done)
		idx, got := port4.TX.Reserve(64)
		for i := range got {
			chunk := region.Chunk(next)[:size]
			a.put(chunk, farAway+proto.Addr(a.rng.Uint32N(1<<16)), proto.TCP{
				SrcPort: uint16(1024 + a.rng.Uint32N(60000)), DstPort: port, Seq: a.rng.Uint32(), Flags: proto.SYN, Window: 64240,
			}, synOptions, "")
			*port4.TX.Slot(idx + i) = rings.Desc{Addr: region.Addr(next), Len: uint32(size)}
			next = (next + 1) % umem.Frame(region.Frames())
		}
		port4.TX.Submit(got)
		sent.Add(uint64(got))
		if err := sock.Kick(); err != nil {
			return err
		}
		time.Sleep(pause)
	}
}

// attackSize is how many packets an attack has: as many as the environment variable says, or n.
func attackSize(t *testing.T, n uint64) uint64 {
	t.Helper()
	if s := os.Getenv("XDPD_ATTACK"); s != "" {
		v, err := strconv.ParseUint(s, 10, 32)
		if err != nil {
			t.Fatalf("XDPD_ATTACK: %v", err)
		}
		return v
	}
	return n
}

// counter finds a counter of the Host by its name.
func counter(t *testing.T, stack *xdpd.Stack, name string) uint64 {
	t.Helper()
	for s := range sockets.NStats {
		if s.String() == name {
			return counted(t, stack, s)
		}
	}
	t.Fatalf("there is no counter %s", name)
	return 0
}

// states counts TCP sockets by state.
func states(t *testing.T, stack *xdpd.Stack) map[string]int {
	t.Helper()
	m := make(map[string]int)
	for _, q := range getStats(t, stack).Queues {
		for _, c := range q.TCP {
			m[c.State]++
		}
	}
	return m
}
