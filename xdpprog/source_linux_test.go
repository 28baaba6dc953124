package xdpprog

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A wire is a veth whose far end shows all that arrives to a packet socket: its XDP program, which it needs to receive
// redirected frames, passes everything.
type wire struct {
	t    *testing.T
	near netlink.Link
	fd   int
}

func newWire(t *testing.T) *wire {
	t.Helper()
	enterNS(t)
	far, near := newVeth(t, 1500, 1)
	startSink(t, SinkConfig{Ifindex: far.Attrs().Index, Mark: 1})
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(asStored(unix.ETH_P_ALL)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20); err != nil {
		t.Fatal(err)
	}
	addr := &unix.SockaddrLinklayer{Protocol: asStored(unix.ETH_P_ALL), Ifindex: far.Attrs().Index}
	if err := unix.Bind(fd, addr); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		t.Fatal(err)
	}
	return &wire{t, near, fd}
}

// frames sends n frames and returns those that arrived from the source's address: all n, or the test fails.
func (w *wire) frames(s *Source, n int) [][]byte {
	w.t.Helper()
	if err := s.Run(w.t.Context(), uint64(n)); err != nil {
		w.t.Fatal(err)
	}
	var out [][]byte
	for len(out) < n {
		b := make([]byte, MaxSize)
		size, _, err := unix.Recvfrom(w.fd, b, 0)
		if err != nil {
			w.t.Fatalf("%d of %d frames, then %v; %+v", len(out), n, err, sourceStats(w.t, s))
		}
		if bytes.Equal(b[6:12], sourceMAC) {
			out = append(out, b[:size])
		}
	}
	return out
}

// sum16 is RFC 1071's over all parts, which have even lengths but for the last: 0 where the checksum is right.
func sum16(parts ...[]byte) uint16 {
	var sum uint32
	for _, b := range parts {
		for i, x := range b {
			sum += uint32(x) << (8 * (1 - i%2))
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// A decoded frame, of which everything that has one right value was checked.
type decoded struct {
	src, dst netip.AddrPort
	payload  []byte // of UDP
}

func decode(t *testing.T, b []byte, proto byte) decoded {
	t.Helper()
	ip := b[14:]
	total := int(be.Uint16(ip[2:]))
	if !bytes.Equal(b[:6], targetMAC) || be.Uint16(b[12:]) != unix.ETH_P_IP || ip[0] != 0x45 || ip[1] != 0 || ip[9] != proto ||
		ip[8] == 0 || be.Uint16(ip[6:])&0x3fff != 0 || total > len(ip) {
		t.Fatalf("frame %x", b)
	}
	l4 := ip[20:total]
	if sum16(ip[:20]) != 0 {
		t.Fatalf("IPv4 checksum of %x", b)
	}
	pseudo := append(append([]byte(nil), ip[12:20]...), 0, proto)
	if sum16(be.AppendUint16(pseudo, uint16(len(l4))), l4) != 0 {
		t.Fatalf("checksum of %x", b)
	}
	addr := func(a []byte, p []byte) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(a)), be.Uint16(p))
	}
	d := decoded{src: addr(ip[12:16], l4), dst: addr(ip[16:20], l4[2:])}
	if proto == unix.IPPROTO_UDP {
		if int(be.Uint16(l4[4:])) != len(l4) || total != len(ip) {
			t.Fatalf("lengths of %x", b)
		}
		d.payload = l4[8:]
	}
	return d
}

// What is on the wire, by a decoder of its own: sizes, pattern, stamps, and every combination of addresses and ports as
// often as any other.
func TestSourceFrames(t *testing.T) {
	for _, random := range []bool{false, true} {
		w := newWire(t)
		c := oneFlow(w.near)
		c.Src.Count, c.Dst.Count, c.SrcPort.Count, c.DstPort.Count, c.RandomFlows = 3, 2, 10, 4, random
		c.Sizes, c.Pattern, c.FirstSeq = []int{64, 65, 300, 1518, 1517, 99, 128}, []byte("pattern"), 1_000_000
		s := startSource(t, c)
		const rounds = 20
		flows := map[[2]netip.AddrPort]int{}
		var before int64
		for i, b := range w.frames(s, 240*rounds) {
			d := decode(t, b, unix.IPPROTO_UDP)
			seq := c.FirstSeq + uint64(i)
			if want := c.Sizes[seq%7] - 4; len(b) != want {
				t.Fatalf("frame %d has %d bytes, want %d", seq, len(b), want)
			}
			st, ok := ParseStamp(d.payload)
			if !ok || st.Mark != DefaultMark || st.Seq != seq || st.Time < before {
				t.Fatalf("frame %d: stamp %+v %v, the one before was of %d", seq, st, ok, before)
			}
			before = st.Time
			rest := d.payload[StampLen:]
			if want := bytes.Repeat(c.Pattern, 300)[:len(rest)]; !bytes.Equal(rest, want) {
				t.Fatalf("frame %d: payload %q", seq, rest)
			}
			if n := uint64(len(flows)); !random && n < 240 && seq-c.FirstSeq < 240 && flows[[2]netip.AddrPort{d.src, d.dst}] > 0 {
				t.Fatalf("frame %d is of a flow that had its turn", seq)
			}
			flows[[2]netip.AddrPort{d.src, d.dst}]++
		}
		if len(flows) != 240 || s.Flows() != 240 {
			t.Fatalf("%d flows, the source says %d, want 240", len(flows), s.Flows())
		}
		for f, n := range flows {
			if f[0].Addr().Compare(c.Src.First) < 0 || f[1].Addr().Compare(c.Dst.First) < 0 || f[0].Port() >= 1010 || f[1].Port() >= 11 {
				t.Errorf("flow %v", f)
			}
			// At random, 20 ± 7 sigma of a binomial distribution.
			if !random && n != rounds || n > rounds+32 {
				t.Errorf("flow %v has %d frames of %d", f, n, rounds)
			}
		}
	}
}

func TestSourceSYN(t *testing.T) {
	w := newWire(t)
	c := oneFlow(w.near)
	c.SYN, c.SrcPort.Count = true, 100
	ports, seqs := map[uint16]bool{}, map[uint32]bool{}
	for _, b := range w.frames(startSource(t, c), 100) {
		d := decode(t, b, unix.IPPROTO_TCP)
		tcp := b[34:]
		if len(b) != 60 || be.Uint16(b[16:]) != 40 || tcp[12] != 5<<4 || tcp[13] != 2 || be.Uint32(tcp[8:]) != 0 {
			t.Fatalf("frame %x is no SYN", b)
		}
		ports[d.src.Port()], seqs[be.Uint32(tcp[4:])] = true, true
	}
	if len(ports) != 100 || len(seqs) != 100 {
		t.Errorf("%d ports and %d sequence numbers of 100", len(ports), len(seqs))
	}
}

// Frames of the caller's go out as they are, in turn, each after its gap.
func TestSourceOwnFrames(t *testing.T) {
	w := newWire(t)
	var frames [][]byte
	for i, n := range []int{60, 1514, 18, 333} {
		frames = append(frames, append(append(append([]byte(nil), targetMAC...), sourceMAC...),
			bytes.Repeat([]byte{byte(0x80 + i)}, n-12)...))
	}
	gap := 200 * time.Microsecond
	s := startSource(t, SourceConfig{
		Ifindex: w.near.Attrs().Index, Frames: frames, Gaps: []time.Duration{gap, 0, gap, gap},
	})
	for i, got := range w.frames(s, 402) {
		if !bytes.Equal(got, frames[i%4]) {
			t.Fatalf("frame %d is %x", i, got)
		}
	}
	st := sourceStats(t, s)
	if least := 300 * gap; time.Duration(st.Last-st.First) < least-100*time.Microsecond {
		t.Errorf("402 frames in %v, their gaps are %v", time.Duration(st.Last-st.First), least)
	}
	if want := uint64(100*(60+1514+18+333) + 60 + 1514); st.Bytes != want {
		t.Errorf("%d bytes, want %d", st.Bytes, want)
	}
}

// No frame is before its time, and none later than the catching up allows.
func TestSourceRate(t *testing.T) {
	for _, rate := range []float64{1000, 3333.3, 1e6 / 7} {
		w := newWire(t)
		c := oneFlow(w.near)
		c.Rate = rate / 10
		s := startSource(t, c)
		if err := s.SetRate(rate); err != nil {
			t.Fatal(err)
		}
		burst := float64(defaultBurst)
		var first int64
		for i, b := range w.frames(s, 500) {
			st, _ := ParseStamp(decode(t, b, unix.IPPROTO_UDP).payload)
			if i == 0 {
				first = st.Time
			}
			if due := float64(i) * 1e9 / rate; float64(st.Time-first) < due-burst-1 {
				t.Fatalf("at %v frames/s frame %d was sent %d ns after the first, it was due after %.0f", rate, i, st.Time-first, due)
			}
		}
		st := sourceStats(t, s)
		if st.Written != 500 || float64(st.Last-st.First) < 498*1e9/rate-burst {
			t.Errorf("at %v frames/s: %+v", rate, st)
		}
	}
}

// A cancelled run returns, and the program is gone with its source.
func TestSourceCancel(t *testing.T) {
	for _, rate := range []float64{0, 10} {
		enterNS(t)
		engine, peer := newVeth(t, 1500, 1)
		drop, err := LoadDrop("engine0", engine.Attrs().Index, Native)
		if err != nil {
			t.Fatal(err)
		}
		defer drop.Close()
		c := oneFlow(peer)
		c.Rate = rate
		s := startSource(t, c)
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx, 0) }()
		for n := uint64(0); n == 0; {
			if n, _, err = drop.Count(); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("cancelled: %v", err)
		}
		st := sourceStats(t, s)
		if again := sourceStats(t, s); again != st || st.Written == 0 {
			t.Errorf("after Run: %+v, and then %+v", st, again)
		}
		if err := s.Run(ctx, 1); !errors.Is(err, context.Canceled) {
			t.Errorf("a run that was cancelled before: %v", err)
		}
		if n, size, err := drop.Count(); err != nil || n > st.Sent || size != 60*n || !drop.Native() {
			t.Errorf("%d frames of %d bytes arrived: %v; %+v", n, size, err, st)
		}
	}
}

// A device that is down, or whose peer cannot receive, is counted; one that goes away ends the run.
func TestSourceTrouble(t *testing.T) {
	enterNS(t)
	_, peer := newVeth(t, 1500, 1)
	s := startSource(t, oneFlow(peer))
	if err := s.Run(t.Context(), 1000); err != nil {
		t.Fatal(err)
	}
	if st := sourceStats(t, s); st.Sent != 0 || st.Dropped+st.RedirectErrors != 1000 {
		t.Errorf("to a peer without a program: %+v", st)
	}
	if err := netlink.LinkSetDown(peer); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), 1000); err != nil {
		t.Fatal(err)
	}
	if st := sourceStats(t, s); st.Sent != 0 || st.RedirectErrors < 1000 {
		t.Errorf("down: %+v", st)
	}
	if err := netlink.LinkDel(peer); err != nil {
		t.Fatal(err)
	}
	if err := s.Run(t.Context(), 0); !errors.Is(err, unix.ENODEV) {
		t.Errorf("without a device: %v", err)
	}
}

func TestSourceErrors(t *testing.T) {
	enterNS(t)
	_, peer := newVeth(t, 1500, 1)
	frame := make([]byte, 60)
	for want, change := range map[string]func(*SourceConfig){
		"no such device":      func(c *SourceConfig) { c.Ifindex = 0 },
		"network namespace":   func(c *SourceConfig) { c.Ifindex = 12345 },
		"source MAC":          func(c *SourceConfig) { c.SrcMAC = nil },
		"destination MAC":     func(c *SourceConfig) { c.DstMAC = make(net.HardwareAddr, 8) },
		"source address":      func(c *SourceConfig) { c.Src.First = netip.IPv6Loopback() },
		"destination address": func(c *SourceConfig) { c.Dst.First = netip.Addr{} },
		"source port: 0":      func(c *SourceConfig) { c.SrcPort.First = 0 },
		"range of 2":          func(c *SourceConfig) { c.DstPort = Ports{65535, 2} },
		"range of -1":         func(c *SourceConfig) { c.Src.Count = -1 },
		"make only 6":         func(c *SourceConfig) { c.SrcPort.Count, c.Dst.Count, c.Flows = 3, 2, 7 },
		"flows: not in":       func(c *SourceConfig) { c.SrcPort.Count, c.Dst.Count = 60000, 1000 },
		"frame size 63":       func(c *SourceConfig) { c.Sizes = []int{64, 63} },
		"frame size 3301":     func(c *SourceConfig) { c.Sizes = []int{3301} },
		"65 frame sizes":      func(c *SourceConfig) { c.Sizes = make([]int, 65) },
		"a SYN has 64":        func(c *SourceConfig) { c.SYN, c.Sizes = true, []int{65} },
		"rate of -1":          func(c *SourceConfig) { c.Rate = -1 },
		"rate of 2e+09":       func(c *SourceConfig) { c.Rate = 2e9 },
		"burst":               func(c *SourceConfig) { c.Burst = -1 },
		"batch of 257":        func(c *SourceConfig) { c.Batch = 257 },
		"CPU -1":              func(c *SourceConfig) { c.Pin, c.CPU = true, -1 },
		"gaps without frames": func(c *SourceConfig) { c.Gaps = []time.Duration{1} },
		"no meaning":          func(c *SourceConfig) { c.Frames = [][]byte{frame} },
		"frame 0: 13 bytes":   func(c *SourceConfig) { *c = SourceConfig{Ifindex: 1, Frames: [][]byte{frame[:13]}} },
		"2 gaps for 1 frames": func(c *SourceConfig) {
			*c = SourceConfig{Ifindex: 1, Frames: [][]byte{frame}, Gaps: make([]time.Duration, 2)}
		},
		"gap 0 is -1ns": func(c *SourceConfig) {
			*c = SourceConfig{Ifindex: 1, Frames: [][]byte{frame}, Gaps: []time.Duration{-1}}
		},
	} {
		c := oneFlow(peer)
		change(&c)
		s, err := LoadSource(c)
		if err == nil {
			s.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want an error with %q, got %v", want, err)
		}
	}
	c := oneFlow(peer)
	c.Pin, c.CPU = true, 1000
	if err := startSource(t, c).Run(t.Context(), 1); err == nil || !strings.Contains(err.Error(), "pin to CPU 1000") {
		t.Errorf("on a CPU that is not there: %v", err)
	}
	c = oneFlow(peer)
	c.Sizes = []int{MaxSize}
	if err := startSource(t, c).Run(t.Context(), 1); err != nil {
		t.Errorf("the largest frame: %v", err)
	}
	_, err := LoadSource(SourceConfig{Ifindex: 12345, Frames: [][]byte{frame}})
	if !errors.Is(err, unix.ENODEV) {
		t.Errorf("no such device: %v", err)
	}
}

// Without privilege the error says which is missing.
func TestTrafficPrivilege(t *testing.T) {
	enterNS(t)
	_, peer := newVeth(t, 1500, 1)
	for _, do := range []string{"source-nocaps", "sink-nocaps"} {
		cmd, line := startChild(t, do, peer.Attrs().Index)
		cmd.Wait()
		if !strings.Contains(line, "operation not permitted") || !strings.Contains(line, "CAP_") {
			t.Errorf("%s: %q", do, line)
		}
	}
}
