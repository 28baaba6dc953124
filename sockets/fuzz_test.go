package sockets

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"xdpd/proto"
	"xdpd/umem"
)

// FuzzInput decodes its bytes as a Host's configuration and a list of steps: frames, time, socket calls, completions. The
// Host must not panic, every step must keep the invariants, every frame sent must be right in itself, and at the end,
// with all sockets closed and all time passed, every frame must be back.
func FuzzInput(f *testing.F) {
	f.Fuzz(func(t *testing.T, program []byte) { runProgram(t, program) })
}

// program reads the fuzzer's bytes; behind the end it reads zeros.
type program struct{ b []byte }

func (p *program) byte() byte {
	if len(p.b) == 0 {
		return 0
	}
	v := p.b[0]
	p.b = p.b[1:]
	return v
}

func (p *program) u16() uint16 { return uint16(p.byte())<<8 | uint16(p.byte()) }

func (p *program) bytes(n int) []byte {
	n = min(n, len(p.b))
	v := p.b[:n]
	p.b = p.b[n:]
	return v
}

// Steps, in the low four bits of their first byte.
const (
	stepFrame    = iota // raw bytes, as they are
	stepSummed          // raw bytes, with the checksums made right
	stepTime            // the clock moves on
	stepTurn            // output is built, sent and completed
	stepSend            // output is built and sent
	stepComplete        // some of what was sent is completed
	stepSegment         // a TCP segment close to what the connection expects
	stepFragment        // a fragment of a small set of datagrams
	stepARP
	stepDatagram
	stepICMP
	stepUDP  // a call of the UDP face
	stepTCP  // a call of the TCP face
	stepHost // a call that is not a socket's
	stepTick // the next deadline
	stepEvents
)

// stepArgs is how many bytes of arguments a step has, whatever it makes of them, so that a change in one does not change
// the meaning of all that follow. The bytes of a raw frame come behind.
var stepArgs = [16]int{stepFrame: 2, stepSummed: 2, stepTime: 1, stepSegment: 10, stepFragment: 4, stepARP: 3,
	stepDatagram: 2, stepICMP: 4, stepUDP: 5, stepTCP: 3, stepHost: 1}

// fuzzer runs one program.
type fuzzer struct {
	*kit
	p       program
	a       program  // arguments of the step
	handles []Handle // open and closed ones
}

// runProgram gives what the Host counted.
func runProgram(t *testing.T, b []byte) *Counters {
	z := fuzzer{p: program{b[:min(len(b), 1<<14)]}}
	flags := z.p.byte()
	frames, chunk := 96, 2048
	if flags&1 != 0 {
		chunk = 4096
	}
	z.kit = newKitOf(t, frames, chunk, func(c *Config) {
		c.KernelNeighbours = flags&2 != 0
		c.AcceptPartial, c.LeaveSums = flags&4 != 0, flags&4 != 0
		c.Siblings = flags&8 != 0
		c.MTU = []int{1500, 68, 576, 1501}[flags>>4&3]
		c.RcvBuf, c.SndBuf = 1<<(11+flags>>6), 6000
		c.Backlog, c.MaxConns = 3, 6
		if flags&0xc0 == 0xc0 {
			c.VLANs = []uint16{5}
		}
	})
	z.h.SetNeighbour(peerIP, peerMAC, true, z.now)
	for n := 0; len(z.p.b) > 0 && n < 600; n++ {
		z.step()
		z.check()
		if t.Failed() {
			t.Fatalf("after step %d", n)
		}
	}
	z.look()
	return z.h.Counters()
}

func (z *fuzzer) step() {
	op := z.p.byte()
	arg := int(op >> 4)
	z.a = program{z.p.bytes(stepArgs[op&15])}
	switch op & 15 {
	case stepFrame:
		z.receive(z.p.bytes(int(z.a.u16()) % 1800))
	case stepSummed:
		z.receive(summed(append([]byte(nil), z.p.bytes(int(z.a.u16())%1800)...)))
	case stepTime:
		z.now += int64(1) << (z.a.byte() % 42)
		z.h.Tick(z.now)
	case stepTurn:
		z.look()
	case stepSend:
		z.late = true
		z.look()
		z.late = false
	case stepComplete:
		z.complete(min(arg+1, len(z.device)))
	case stepSegment:
		z.segment(arg)
	case stepFragment:
		z.fragment(arg)
	case stepARP:
		z.arp(arg)
	case stepDatagram:
		z.receive(udpFrame(1000+uint16(arg&3), 7+uint16(arg>>2), pattern(int(z.a.u16())%1400)))
	case stepICMP:
		z.icmp(arg)
	case stepUDP:
		z.callUDP(arg)
	case stepTCP:
		z.callTCP(arg)
	case stepHost:
		z.callHost(arg)
	case stepTick:
		z.now = max(z.now, min(z.h.NextDeadline(), z.now+3600*second))
		z.h.Tick(z.now)
	case stepEvents:
		z.events()
		for range arg {
			z.h.PopClosed()
		}
	}
}

// receive adds the VLAN tag of the configuration and hands the frame in.
func (z *fuzzer) receive(frame []byte) {
	if len(z.h.cfg.VLANs) > 0 && len(frame) >= 14 && frame[len(frame)-1]&7 != 0 {
		frame = concat(frame[:12], be16(0x8100), be16(z.h.cfg.VLANs[0]), frame[12:])
	}
	z.input(frame[:min(len(frame), z.pool.Region().ChunkSize()-umem.Headroom)])
}

// summed makes length, IP and transport checksums of a raw frame right, so that what lies behind them is reached.
func summed(f []byte) []byte {
	if len(f) < 34 || binary.BigEndian.Uint16(f[12:]) != 0x0800 {
		return f
	}
	ip := f[14:]
	hl := int(ip[0]&15) * 4
	if hl < 20 || hl > len(ip) {
		return f
	}
	binary.BigEndian.PutUint16(ip[2:], uint16(len(ip)))
	binary.BigEndian.PutUint16(ip[10:], 0)
	binary.BigEndian.PutUint16(ip[10:], inetSum(ip[:hl]))
	body := ip[hl:]
	at := map[byte]int{1: 2, 6: 16, 17: 6}[ip[9]]
	if at == 0 || len(body) < at+2 || binary.BigEndian.Uint16(ip[6:])&0x3fff != 0 {
		return f
	}
	var ph []byte
	if ip[9] != 1 {
		ph = pseudo(proto.GetAddr(ip[12:]), proto.GetAddr(ip[16:]), ip[9], len(body))
	}
	binary.BigEndian.PutUint16(body[at:], 0)
	binary.BigEndian.PutUint16(body[at:], inetSum(ph, body))
	return f
}

// segment sends a segment of one of four peers, with numbers close to what the connection, if there is one, expects.
func (z *fuzzer) segment(arg int) {
	s := tcpSeg{sport: 1000 + uint16(arg&3), dport: svc, seq: 1000, flags: z.a.byte()}
	if kind, i := z.h.tcp.flows.get(flowKey{usIP, peerIP, svc, s.sport}); kind == demuxTCB {
		c := z.h.tcp.at(i)
		s.seq = c.rcvNxt + uint32(int8(z.a.byte()))*uint32(1+arg>>2*97)
		s.ack = c.sndUna + uint32(z.a.byte())*uint32(c.sndNxt-c.sndUna)/128
		ts := z.a.byte()
		if c.tsOK {
			s.opts = optTS(c.tsRecent+uint32(ts>>6)-1, 0)
		}
		if ts&1 != 0 {
			from := c.sndUna + uint32(ts>>1&31)*97
			s.opts = append(s.opts, concat([]byte{1, 1, 5, 10}, be32(from), be32(from+uint32(ts>>3)*50))...)
		}
	} else if kind == demuxHalf {
		r := z.h.tcp.half.at(i)
		s.seq = r.irs + 1 + uint32(int8(z.a.byte()))*uint32(1+arg>>2*97)
		s.ack = r.iss + uint32(z.a.byte())/128
		if ts := z.a.byte(); r.flags&halfTS != 0 {
			s.opts = optTS(r.tsRecent+uint32(ts>>6)-1, 0)
		}
	} else if s.flags&syn != 0 {
		o := z.a.byte()
		if o&1 != 0 {
			s.opts = append(s.opts, optMSS(z.a.u16())...)
		}
		if o&2 != 0 {
			s.opts = append(s.opts, optTS(1<<31-2, 0)...)
		}
		if o&4 != 0 {
			s.opts = append(s.opts, optWScale(o>>3)...)
		}
		s.seq = uint32(z.a.u16()) << 16
	}
	s.wnd = z.a.u16()
	s.data = pattern(int(z.a.byte()) * int(1+z.a.byte()&7))
	s.data = s.data[:min(len(s.data), 1400)]
	if arg == 15 {
		for _, f := range (ipPacket{id: s.wnd, proto: 6, body: s.bytes(peerIP, usIP)}).fragments(32) {
			z.receive(f)
		}
		return
	}
	z.receive(s.frame())
}

func (z *fuzzer) fragment(arg int) {
	p := ipPacket{id: uint16(arg & 3), proto: []uint8{17, 1, 6, 99}[arg>>2], off: int(z.a.byte()) * 8, mf: true}
	if n := z.a.byte(); n&0x80 != 0 {
		p.mf = false
		p.body = pattern(int(n & 0x7f))
	} else {
		p.body = pattern(int(n) * 8)
	}
	if p.off == 0 && len(p.body) >= 8 {
		p.body = append([]byte{3, 232, 0, 7, 0, byte(8 + z.a.byte()), 0, 0}, p.body[8:]...)
	}
	if z.a.byte()&7 == 7 {
		p.off += 65000
	}
	z.receive(p.frame())
}

func (z *fuzzer) arp(arg int) {
	mac := []proto.MAC{peerMAC, evilMAC, usMAC, proto.Broadcast}[arg&3]
	ip := []proto.Addr{peerIP, gwIP, usIP, peerIP + proto.Addr(z.a.byte())}[arg>>2]
	target := []proto.Addr{usIP, usIP, peerIP, 0}[z.a.byte()&3]
	z.receive(arpFrame(uint16(1+z.a.byte()&1), mac, ip, usMAC, target, usMAC))
}

// icmp sends an echo, or an error that quotes something like what a socket sent.
func (z *fuzzer) icmp(arg int) {
	if arg < 8 {
		src := peerIP + proto.Addr(arg)
		z.receive(ipPacket{src: src, proto: 1, body: icmpBytes(8, 0, uint32(arg), pattern(int(z.a.u16())%1400))}.frame())
		return
	}
	var body []byte
	if arg&1 != 0 {
		body = udpBytes(usIP, peerIP, 7, 1000, nil)
	} else {
		body = tcpSeg{sport: svc, dport: 1000, seq: uint32(z.a.u16())}.bytes(usIP, peerIP)
	}
	q := ipPacket{src: usIP, dst: peerIP, proto: []uint8{6, 17}[arg&1], body: body}.bytes()
	q = q[:min(len(q), int(z.a.byte()))]
	z.receive(icmpFrame([]uint8{3, 11, 12, 5}[arg>>1&3], z.a.byte()&15, 0, q))
}

// handle is one of those given out so far, open or not.
func (z *fuzzer) handle() Handle {
	if len(z.handles) == 0 {
		return 0
	}
	return z.handles[int(z.a.byte())%len(z.handles)]
}

func (z *fuzzer) keep(s Handle, err Errno) {
	if err != 0 {
		return
	}
	if !z.h.Open(s) {
		z.t.Errorf("handle %#x, just given out, names nothing", s)
	}
	for _, old := range z.handles {
		if old == s {
			z.t.Errorf("handle %#x was given out twice", s)
		}
	}
	z.handles = append(z.handles, s)
}

func (z *fuzzer) callUDP(arg int) {
	switch arg & 7 {
	case 0, 1:
		if len(z.h.udp.socks) < 20 {
			z.keep(z.h.UDPBind([]proto.Addr{0, usIP}[arg&1], []uint16{7, 8, 0}[int(z.a.byte())%3]))
		}
	case 2:
		z.h.UDPConnect(z.handle(), peerIP, 1000+uint16(z.a.byte()&3))
	case 3, 4:
		to := []proto.Addr{peerIP, gwIP, peerIP + proto.Addr(z.a.byte()), farIP}[z.a.byte()&3]
		z.h.UDPSend(z.handle(), pattern(int(z.a.u16())), port(to, 1000), z.now)
	case 5, 6:
		d, err := z.h.UDPRecv(z.handle(), make([]byte, z.a.u16()))
		if err == 0 && d.N > d.Size {
			z.t.Errorf("UDPRecv: %+v", d)
		}
	case 7:
		z.h.Close(z.handle(), z.now)
	}
}

func (z *fuzzer) callTCP(arg int) {
	switch arg & 7 {
	case 0:
		z.keep(z.h.TCPListen([]proto.Addr{0, usIP}[arg>>3], svc))
	case 1:
		z.keep(z.h.TCPAccept(z.handle()))
	case 2, 3:
		z.h.TCPRead(z.handle(), make([]byte, z.a.u16()%4000), z.now)
	case 4, 5:
		z.h.TCPWrite(z.handle(), pattern(int(z.a.u16())%9000), z.now)
	case 6:
		z.h.TCPShutdown(z.handle(), z.now)
	case 7:
		if arg>>3 != 0 {
			z.h.TCPAbort(z.handle(), z.now)
		} else {
			z.h.Close(z.handle(), z.now)
		}
	}
}

func (z *fuzzer) callHost(arg int) {
	a := peerIP + proto.Addr(z.a.byte())
	switch arg & 7 {
	case 0, 1:
		z.h.SetNeighbour(a, evilMAC, arg&1 != 0, z.now)
	case 2:
		z.h.PopResolve()
	case 3:
		z.h.Announce(z.now)
	case 4:
		z.h.EndTurn()
	case 5:
		heard, ok := z.h.PopHeard()
		if ok {
			z.h.Heard(&heard, z.now)
		}
	case 6:
		z.h.Flush(z.now)
	case 7:
		z.h.SetAddrs([]Prefix{{usIP, 8 + arg}}, []Route{{Gateway: gwIP}})
		z.h.Unsent()
		z.h.TCPSockets()
		z.h.UDPSockets()
		z.h.Ready(z.handle())
	}
}

// look sends what there is, and takes it apart.
func (z *fuzzer) look() {
	for _, f := range z.sent() {
		if n := z.h.lead - 14; n > 0 {
			f = concat(f[:12], f[12+n:])
		}
		dissect(z.t, f)
		if len(f)-14 > z.h.cfg.MTU {
			z.t.Errorf("sent a packet of %d bytes, the MTU is %d", len(f)-14, z.h.cfg.MTU)
		}
	}
}

// TestFuzzSeeds: the programs in testdata reach what they are there for; when steps change their encoding this fails.
func TestFuzzSeeds(t *testing.T) {
	names, err := filepath.Glob("testdata/fuzz/FuzzInput/*")
	if err != nil || len(names) == 0 {
		t.Fatalf("no seeds: %v", err)
	}
	var sum Counters
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, quoted, _ := strings.Cut(string(text), "\n[]byte(")
		b, err := strconv.Unquote(strings.TrimSuffix(strings.TrimSpace(quoted), ")"))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		t.Run(filepath.Base(name), func(t *testing.T) { sum.Add(runProgram(t, []byte(b))) })
	}
	for _, s := range []Stat{RxARP, RxICMP, RxUDP, RxTCP, Reassembled, RxDelivered, TxARP, TxICMP, TxUDP, TxFragments,
		TCPAccepted, TCPResets, TCPRetransmits, TCPChallenges, TCPCookies, TCPOutOfOrderHeld} {
		if sum.Stats[s] == 0 {
			t.Errorf("no seed reaches %v", s)
		}
	}
	for _, d := range []Drop{ARPConflict, IPSourceRoute, FragOverlap, FragDuplicate, FragTimeout, TCPPAWS,
		TCPOutOfWindow, TCPDuplicate, UDPNoSocket} {
		if sum.Drops[d] == 0 {
			t.Errorf("no seed reaches the drop %v", d)
		}
	}
}
