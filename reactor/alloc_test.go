package reactor

import (
	"encoding/binary"
	"fmt"
	"testing"
	"time"

	"xdpd/proto"
	"xdpd/sockets"
)

// load is a rig in which a device of few words carries traffic: it keeps nothing, so that only the engine's own
// allocations count.
type load struct {
	*rig
	p *Poller
}

const burst = 64 // frames a turn

func newLoad(t testing.TB, mtu, frames int) *load {
	g := &load{rig: newRig(t, options{
		frames: frames, ring: 256, noLedger: true, change: func(_ *Config, h *sockets.Config) { h.MTU = mtu },
	})}
	g.dev.prompt = false
	g.settle()
	g.deliver(g.arpFrame(proto.ARPRequest))
	g.settle()
	g.pump()
	g.p = NewPoller(g.r)
	return g
}

// pump has the device send and complete everything, and tells how many frames that was.
func (g *load) pump() int {
	n := g.nic.Transmit(2*burst, nil)
	g.nic.Complete(n)
	return n
}

// echo serves the UDP port.
func (g *load) echo() {
	s := g.bind(echoPort)
	buf := make([]byte, 2048)
	g.enter(func(*sockets.Host, int64) {
		g.p.Serve(func(h *sockets.Host, now int64, e Event) {
			for {
				d, err := h.UDPRecv(e.Sock, buf)
				if err != 0 {
					return
				}
				if err := h.UDPSend(e.Sock, buf[:d.N], d.Src, now); err != 0 {
					g.t.Fatal(err)
				}
			}
		})
		if err := g.p.Add(s, sockets.In, 0); err != nil {
			g.t.Fatal(err)
		}
	})
}

// noAllocations runs a thousand turns and wants no allocation in all of them, and answers answers in each.
func (g *load) noAllocations(answers int, receive func()) {
	g.t.Helper()
	sent := 0
	const turns = 100
	total := testing.AllocsPerRun(10, func() {
		for range turns {
			receive()
			g.r.Turn()
			sent += g.pump()
			g.clock.AdvanceTo(g.clock.Now() + 10_000)
		}
	})
	if total != 0 {
		g.t.Errorf("%v allocations in %d turns", total, turns)
	}
	if want := 11 * turns * answers; sent != want {
		g.t.Errorf("%d frames sent, want %d", sent, want)
	}
}

func (g *load) repeat(frame []byte) func() {
	frame = append([]byte{}, frame...)
	return func() {
		for range burst {
			g.deliver(frame)
		}
	}
}

func TestNoAllocationUDP(t *testing.T) {
	g := newLoad(t, 1500, 1024)
	g.echo()
	g.noAllocations(burst, g.repeat(g.udpFrame(echoPort, make([]byte, 64))))
}

func TestNoAllocationPing(t *testing.T) {
	g := newLoad(t, 1500, 1024)
	n := proto.PutEthernet(g.frame[:], ourMAC, peerMAC, proto.EtherIPv4)
	n += proto.PutIPv4(g.frame[n:], &proto.IPv4{Src: peerAddr, Dst: ourAddr, TTL: 64, Proto: proto.ProtoICMP, TotalLen: 20 + 64})
	proto.PutICMP(g.frame[n:], proto.ICMPEcho, 0, 1)
	proto.SetICMPChecksum(g.frame[n : n+64])
	g.noAllocations(burst, g.repeat(g.frame[:n+64]))
}

func TestNoAllocationARP(t *testing.T) {
	g := newLoad(t, 1500, 1024)
	g.noAllocations(burst, g.repeat(g.arpFrame(proto.ARPRequest)))
}

// TestNoAllocationWait: the same through Poller.Wait, as a goroutine beside the reactor does it.
func TestNoAllocationWait(t *testing.T) {
	g := newLoad(t, 1500, 1024)
	s := g.bind(echoPort)
	g.enter(func(*sockets.Host, int64) {
		if err := g.p.Add(s, sockets.In, 0); err != nil {
			t.Fatal(err)
		}
	})
	frames := g.repeat(g.udpFrame(echoPort, make([]byte, 64)))
	events, buf := make([]Event, 4), make([]byte, 2048)
	g.noAllocations(burst, func() {
		frames()
		g.r.Turn()
		if n, err := g.p.Wait(events, 0); n != 1 || err != nil {
			t.Fatal(n, err)
		}
		h, now, _ := g.r.Enter()
		for {
			d, err := h.UDPRecv(s, buf)
			if err != 0 {
				break
			}
			if err := h.UDPSend(s, buf[:d.N], d.Src, now); err != 0 {
				t.Fatal(err)
			}
		}
		g.r.Leave()
	})
}

// TestNoAllocationWaitLimit: neither does a Wait that blocks, and ends by its limit.
func TestNoAllocationWaitLimit(t *testing.T) {
	g := newRig(t, options{realTime: true, noLedger: true})
	p := NewPoller(g.r)
	g.run()
	buf := make([]Event, 1)
	if n := testing.AllocsPerRun(100, func() {
		if n, err := p.Wait(buf, 20*time.Microsecond); n != 0 || err != nil {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("a Wait allocates %v times", n)
	}
}

// BenchmarkPollerOneActive is a datagram, the Wait that reports it, and the read, with idle sockets in the same poller.
func BenchmarkPollerOneActive(b *testing.B) {
	for _, idle := range []uint32{10, 1_000_000} {
		b.Run(fmt.Sprintf("idle=%d", idle), func(b *testing.B) {
			g := newLoad(b, 1500, 1024)
			s := g.bind(echoPort)
			g.fillWatches(g.p, idle)
			g.enter(func(*sockets.Host, int64) {
				if err := g.p.Add(s, sockets.In, 0); err != nil {
					b.Fatal(err)
				}
			})
			frame := g.udpFrame(echoPort, make([]byte, 64))
			events, buf := make([]Event, 4), make([]byte, 64)
			for b.Loop() {
				g.deliver(frame)
				g.r.Turn()
				if n, err := g.p.Wait(events, 0); n != 1 || err != nil {
					b.Fatal(n, err)
				}
				h, _, _ := g.r.Enter()
				h.UDPRecv(s, buf)
				g.r.Leave()
			}
		})
	}
}

// stream is a TCP connection of the peer that sends segments and gets them back.
type stream struct {
	*load
	seq, ack uint32
	buf      []byte
	conn     sockets.Handle // the engine's end
}

// segment is one with n bytes of data; the frame is valid until the next one.
func (s *stream) segment(flags uint8, data int) []byte {
	n := proto.PutEthernet(s.frame[:], ourMAC, peerMAC, proto.EtherIPv4)
	n += proto.PutIPv4(s.frame[n:], &proto.IPv4{
		Src: peerAddr, Dst: ourAddr, TTL: 64, Proto: proto.ProtoTCP, TotalLen: uint16(40 + data),
	})
	tcp := s.frame[n : n+20+data]
	h := proto.TCP{SrcPort: peerPort.Port(), DstPort: echoPort, Seq: s.seq, Ack: s.ack, DataOff: 20, Flags: flags, Window: 60000}
	proto.PutTCP(tcp, &h)
	h.Checksum = ^proto.Fold(proto.Sum(tcp, proto.PseudoSum(peerAddr, ourAddr, proto.ProtoTCP, len(tcp))))
	proto.PutTCP(tcp, &h)
	s.seq += uint32(data)
	if flags&proto.SYN != 0 {
		s.seq++
	}
	return s.frame[:n+len(tcp)]
}

func (s *stream) handle(h *sockets.Host, now int64, e Event) {
	c, err := h.TCPAccept(e.Sock)
	if err == 0 {
		s.conn = c
		if err := s.p.Add(c, sockets.In, 0); err != nil {
			s.t.Fatal(err)
		}
		return
	}
	n, err := h.TCPRead(e.Sock, s.buf, now)
	if err != 0 || n == 0 {
		s.t.Fatalf("TCPRead: %d, %v", n, err)
	}
	if k, err := h.TCPWrite(e.Sock, s.buf[:n], now); k != n || err != 0 {
		s.t.Fatalf("TCPWrite: %d of %d, %v", k, n, err)
	}
}

func newStream(t *testing.T, mtu, frames int) *stream {
	s := &stream{load: newLoad(t, mtu, frames), seq: 1000, buf: make([]byte, 4096)}
	s.enter(func(h *sockets.Host, _ int64) {
		s.p.Serve(s.handle)
		l, err := h.TCPListen(0, echoPort)
		if err != 0 {
			t.Fatal(err)
		}
		if err := s.p.Add(l, sockets.In, 0); err != nil {
			t.Fatal(err)
		}
	})
	s.deliver(s.segment(proto.SYN, 0))
	s.settle()
	s.nic.Transmit(1, func(frame []byte) { s.ack = binary.BigEndian.Uint32(frame[14+20+4:]) + 1 })
	s.nic.Complete(1)
	if s.ack == 0 {
		t.Fatal("no SYN-ACK")
	}
	s.deliver(s.segment(proto.ACK, 0))
	s.settle()
	return s
}

// TestNoAllocationTCP: a segment in, its echo out, which the next segment acknowledges. The peer offered no MSS, so 536
// bytes are a full segment.
func TestNoAllocationTCP(t *testing.T) {
	s := newStream(t, 1500, 1024)
	s.noAllocations(1, func() {
		s.deliver(s.segment(proto.ACK|proto.PSH, 500))
		s.ack += 500
	})
	if c := s.host.Counters(); c.Stats[sockets.TCPRetransmits] != 0 || c.Drops[sockets.TCPDuplicate] != 0 {
		t.Errorf("the stream was not steady: %+v", c)
	}
}

// TestNoAllocationTCPBurst: several segments a turn, echoed and acknowledged together.
func TestNoAllocationTCPBurst(t *testing.T) {
	s := newStream(t, 1500, 1024)
	last := s.ack
	s.noAllocations(4, func() {
		s.ack = last
		for range 4 {
			s.deliver(s.segment(proto.ACK|proto.PSH, 536))
		}
		last += 4 * 536
	})
}

// TestSyscalls: under load a system call serves 32 packets at least.
func TestSyscalls(t *testing.T) {
	g := newLoad(t, 1500, 1024)
	g.echo()
	receive := g.repeat(g.udpFrame(echoPort, make([]byte, 64)))
	before := g.r.Counters()
	for range 1000 {
		receive()
		g.r.Turn()
		if n := g.pump(); n != burst {
			t.Fatalf("%d of %d packets came back", n, burst)
		}
	}
	after := g.r.Counters()
	packets := after.RxFrames - before.RxFrames
	if calls := after.Syscalls() - before.Syscalls(); packets != 1000*burst || calls == 0 || calls > packets/32 {
		t.Errorf("%d system calls for %d packets", calls, packets)
	}
}
