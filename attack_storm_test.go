package xdpd_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/proto"
	"xdpd/reactor"
	"xdpd/sockets"
)

// TestACKStorm has two ends that do not agree on their numbers: each ACK of the one makes the other say its own idea
// again, for ever, unless one of them keeps quiet (RFC 5961 section 7; tcp_oow_rate_limited in net/ipv4/tcp_input.c).
// Segments with data are no part of such a loop.
func TestACKStorm(t *testing.T) {
	ack := func(seq, ack uint32) proto.TCP { return proto.TCP{Seq: seq, Ack: ack, Flags: proto.ACK} }
	for _, c := range []struct {
		name string
		bad  func(rcv, snd uint32) proto.TCP
	}{
		{"old", func(rcv, snd uint32) proto.TCP { return ack(rcv-5000, snd) }},
		{"from the future", func(rcv, snd uint32) proto.TCP { return ack(rcv+1<<30, snd) }},
		{"ACK of what was never sent", func(rcv, snd uint32) proto.TCP { return ack(rcv, snd+1<<20) }},
		{"ACK of long ago", func(rcv, snd uint32) proto.TCP { return ack(rcv, snd-1<<30) }},
		{"SYN", func(rcv, _ uint32) proto.TCP { return proto.TCP{Seq: rcv + 3, Flags: proto.SYN} }},
		{"RST", func(rcv, _ uint32) proto.TCP { return proto.TCP{Seq: rcv + 3, Flags: proto.RST} }},
	} {
		t.Run(c.name, func(t *testing.T) {
			v := newVictim(t)
			rcv, snd, opt := v.numbers()
			frame := v.as(c.bad(rcv, snd), opt, "")
			ours := func(g *heard) bool { return g.dst == v.peer && g.tcp.DstPort == v.port }
			const n = 3000
			answers := 0
			for range n {
				v.send(frame)
				v.settle() // one at a time: many in one turn of the reactor have one answer anyway
				answers += v.overheard(ours)
			}
			t.Logf("%d answers to %d segments", answers, n)
			if answers > n/2 {
				t.Errorf("%d segments that nobody needs were answered %d times", n, answers)
			}
			if answers == 0 { // RFC 9293 3.10.7.4, RFC 5961 3.2, 4.2, 5.2
				t.Error("no answer at all: a peer that restarted would never learn of it")
			}
			v.ask("after the storm")
		})
	}
}

// stresser is a peer as sockstress is: it opens connections, keeps no state, and answers whatever comes with a window of
// zero, for ever.
type stresser struct {
	*attacker
	port uint16
	stop chan struct{}
	done sync.WaitGroup
}

// stress opens n connections and asks each for something. settle keeps it from overflowing the rings, which shows nothing.
func (a *attacker) stress(port uint16, n int, settle func()) *stresser {
	s := &stresser{attacker: a, port: port, stop: make(chan struct{})}
	s.done.Go(s.answer)
	for i := range n {
		h := proto.TCP{SrcPort: uint16(2000 + i%50000), DstPort: port, Seq: uint32(i) << 8, Flags: proto.SYN, Window: 64000}
		s.send(s.segment(farAway+proto.Addr(1+i/50000), h, proto.TCPOptions{MSS: 1460}, ""))
		if i%64 == 63 {
			settle()
		}
	}
	return s
}

// answer is the peer's side of all connections.
func (s *stresser) answer() {
	buf := make([]byte, 65536)
	for {
		select {
		case <-s.stop:
			return
		default:
		}
		n, from, err := unix.Recvfrom(s.fd, buf, unix.MSG_DONTWAIT)
		if err != nil {
			unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
			continue
		}
		g, ok := s.parseSegment(buf[:n])
		if !ok || from.(*unix.SockaddrLinklayer).Pkttype == unix.PACKET_OUTGOING || g.tcp.SrcPort != s.port || g.dst < farAway {
			continue
		}
		if g.tcp.Flags&proto.RST != 0 {
			continue
		}
		h := proto.TCP{SrcPort: g.tcp.DstPort, DstPort: s.port, Seq: g.tcp.Ack, Ack: g.tcp.Seq, Flags: proto.ACK}
		data := ""
		if g.tcp.Flags&proto.SYN != 0 {
			h.Ack, data = g.tcp.Seq+1, "?"
		}
		s.send(s.segment(g.dst, h, proto.TCPOptions{}, data))
	}
}

func (s *stresser) end() {
	close(s.stop)
	s.done.Wait()
}

// TestZeroWindowForEver has thousands of peers that ask for data and take none. They may hold memory up to the limit, but
// not what others need, and those whose owner set a time limit (RFC 5482) are let go.
func TestZeroWindowForEver(t *testing.T) {
	const n = 3000
	lab, stack := attackedEngine(t, netlab.Options{})
	serveTCPEcho(t, stack, 7)
	giver := giveAndWait(t, stack, 19)
	a := newAttacker(t, lab)
	s := a.stress(19, n, barrier(t, lab))
	defer s.end()
	eventually(t, "the connections", func() bool { return giver.opened() >= n/2 }) // an overrun ring loses some
	// Who does take what he asks for is served all the while.
	for i := range 20 {
		c, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 7))
		if err != nil {
			t.Fatalf("client %d: %v", i, err)
		}
		err = echoBulk(c, 20_000, uint64(i))
		c.Close()
		if err != nil {
			t.Errorf("client %d: %v", i, err)
			break
		}
	}
	st := getStats(t, stack)
	for _, q := range st.Queues {
		if q.Frames.Tx > q.Frames.TxLimit || q.Frames.Free == 0 {
			t.Errorf("%d connections with a window of zero hold %+v", giver.opened(), q.Frames)
		}
	}
	t.Logf("%d connections hold %d of %d frames", giver.opened(), st.Queues[0].Frames.Tx, st.Queues[0].Frames.TxLimit)
	giver.limit(t)
	eventually(t, "the end of the connections that take nothing", func() bool {
		m := states(t, stack)
		return m["ESTABLISHED"]+m["CLOSE-WAIT"]+m["FIN-WAIT-1"] == 0
	})
	giver.letGo() // of what they had asked, which nobody read
	eventually(t, "the frames back", func() bool {
		st := getStats(t, stack)
		return framesHeld(&st) < 64
	})
}

// giver gives every connection more than it asks for, and does nothing about those that do not take it.
type giver struct {
	r      *reactor.Reactor
	poller *reactor.Poller
	conns  []sockets.Handle // with the reactor's lock held
}

// giveAndWait opens such a service on the only reactor.
func giveAndWait(t *testing.T, stack *xdpd.Stack, port uint16) *giver {
	t.Helper()
	r := stack.Reactors()[0]
	g := &giver{r: r, poller: reactor.NewPoller(r)}
	h, _, ok := r.Enter()
	defer r.Leave()
	l, errno := h.TCPListen(0, port)
	if !ok || errno != 0 {
		t.Fatal(ok, errno)
	}
	data := make([]byte, 16<<10)
	g.poller.Serve(func(h *sockets.Host, now int64, ev reactor.Event) {
		for {
			c, errno := h.TCPAccept(l)
			if errno != 0 {
				return
			}
			g.conns = append(g.conns, c)
			if n, _ := h.TCPWrite(c, data, now); n == 0 { // what does not fit is not missed
				h.TCPAbort(c, now)
			}
		}
	})
	if err := g.poller.Add(l, sockets.In, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		g.letGo()
		h, now, ok := r.Enter()
		defer r.Leave()
		if ok {
			h.Close(l, now)
		}
	})
	return g
}

// letGo closes all connections; those that ended long ago too.
func (g *giver) letGo() {
	h, now, ok := g.r.Enter()
	defer g.r.Leave()
	if !ok {
		return
	}
	for _, c := range g.conns {
		h.TCPAbort(c, now)
	}
	g.conns = nil
}

func (g *giver) opened() int {
	_, _, _ = g.r.Enter()
	defer g.r.Leave()
	return len(g.conns)
}

// limit sets how long they may stay without taking anything.
func (g *giver) limit(t *testing.T) {
	t.Helper()
	h, _, _ := g.r.Enter()
	defer g.r.Leave()
	for _, c := range g.conns {
		if errno := h.TCPSetUserTimeout(c, 1e9); errno != 0 && errno != sockets.EBADF {
			t.Error(errno)
		}
	}
}

// TestRandomISN takes the initial sequence numbers of connections from one peer's ports in turn, and then from the same
// port of many peers, and looks for what a stranger could use to guess the next.
func TestRandomISN(t *testing.T) {
	lab, stack := attackedEngine(t, netlab.Options{})
	serveTCPEcho(t, stack, 7)
	a := newAttacker(t, lab)
	const n = 4096
	for _, c := range []struct {
		name string
		from func(i int) (proto.Addr, uint16)
	}{
		{"ports", func(i int) (proto.Addr, uint16) { return farAway + 7, uint16(10000 + i) }},
		{"addresses", func(i int) (proto.Addr, uint16) { return farAway + 256 + proto.Addr(i), 10000 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			isns := make([]uint64, n)
			for i := range isns {
				src, port := c.from(i)
				a.send(a.segment(src, proto.TCP{SrcPort: port, DstPort: 7, Seq: 1, Flags: proto.SYN, Window: 1000}, synOptions, ""))
				g := a.hear("a SYN-ACK", func(g *heard) bool { return g.dst == src && g.tcp.DstPort == port && g.tcp.Flags&proto.SYN != 0 })
				isns[i] = uint64(g.tcp.Seq)
				// So that the queue of half-open connections has room: cookies are another test's matter.
				a.send(a.segment(src, proto.TCP{SrcPort: port, DstPort: 7, Seq: 2, Flags: proto.RST}, proto.TCPOptions{}, ""))
			}
			looksRandom(t, isns, 1<<32)
		})
	}
}

// TestRandomCookies is the same for SYN cookies, which are initial sequence numbers too. Time, MSS and a hash share
// their bits, so what is looked at is one MSS within a moment.
func TestRandomCookies(t *testing.T) {
	lab, stack := attackedEngine(t, netlab.Options{})
	serveTCPEcho(t, stack, 7)
	a := newAttacker(t, lab)
	before := counter(t, stack, "tcp_syn_cookies")
	const n = 4096
	isns := make([]uint64, 0, n)
	for i := 0; len(isns) < n; i++ {
		src, port := farAway+proto.Addr(i>>12), uint16(10000+i&4095)
		a.send(a.segment(src, proto.TCP{SrcPort: port, DstPort: 7, Seq: 1, Flags: proto.SYN, Window: 1000}, synOptions, ""))
		g := a.hear("a SYN-ACK", func(g *heard) bool { return g.dst == src && g.tcp.DstPort == port && g.tcp.Flags&proto.SYN != 0 })
		if i > 4096 { // by now the queue is full
			isns = append(isns, uint64(g.tcp.Seq))
		}
	}
	if made := counter(t, stack, "tcp_syn_cookies") - before; made < n {
		t.Fatalf("only %d of the SYN-ACKs were cookies", made)
	}
	looksRandom(t, isns, 1<<32)
}

// TestRandomPorts takes the source ports that connections and sockets choose for themselves, as other peers see them.
func TestRandomPorts(t *testing.T) {
	_, stack := attackedEngine(t, netlab.Options{})
	const first, span = 32768, 28232
	for name, port := range portChoosers(t, stack) {
		t.Run(name, func(t *testing.T) {
			ports := make([]uint64, 4096)
			for i := range ports {
				p := uint64(port(i))
				if p < first || p >= first+span {
					t.Fatalf("port %d is not in %d..%d", p, first, first+span-1)
				}
				ports[i] = p - first
			}
			looksRandom(t, ports, span)
		})
	}
}

// portChoosers are the ways to get a port; i is the number of the peer.
func portChoosers(t *testing.T, stack *xdpd.Stack) map[string]func(i int) uint16 {
	r := stack.Reactors()[0]
	return map[string]func(i int) uint16{
		"UDP": func(int) uint16 {
			h, now, _ := r.Enter()
			defer r.Leave()
			s, errno := h.UDPBind(0, 0)
			if errno != 0 {
				t.Fatal(errno)
			}
			defer h.Close(s, now)
			local, _ := h.UDPAddr(s)
			return local.Port()
		},
		"TCP": func(i int) uint16 {
			h, now, _ := r.Enter()
			defer r.Leave()
			s, errno := h.TCPDial(0, 0, farAway+proto.Addr(i), 80, now)
			if errno != 0 {
				t.Fatal(errno)
			}
			defer h.TCPAbort(s, now)
			local, _ := h.TCPAddr(s)
			return local.Port()
		},
	}
}

func looksRandom(t *testing.T, v []uint64, limit uint64) {
	t.Helper()
	for _, f := range suspicious(v, limit) {
		t.Error(f)
	}
}

// suspicious tests numbers below limit for what a generator must not show: too few or too many of some size (in the
// high bits, and in the low ones), the same of the steps between them, and a correlation of each with the one before. A
// good generator fails once in 10^9 runs: the sum of all tests' probabilities.
func suspicious(v []uint64, limit uint64) (found []string) {
	complain := func(format string, args ...any) { found = append(found, fmt.Sprintf(format, args...)) }
	const z = 6.6 // standard deviations: two sides, 4e-11 a test
	n := float64(len(v))
	steps := make([]uint64, len(v)-1)
	for i := range steps {
		steps[i] = (v[i+1] + limit - v[i]) % limit
	}
	for name, list := range map[string][]uint64{"numbers": v, "steps": steps} {
		high, low := make([]float64, 128), make([]float64, 8)
		for _, x := range list {
			high[x*128/limit]++
			low[x%8]++
		}
		for part, bins := range map[string][]float64{"high": high, "low": low} {
			if chi, least, most := chiSquare(bins, z); chi < least || chi > most {
				complain("%s, %s bits: chi-square %.1f is not in %.1f..%.1f", name, part, chi, least, most)
			}
		}
	}
	mean, product, square := float64(limit-1)/2, 0., 0.
	for i := range steps {
		product += (float64(v[i]) - mean) * (float64(v[i+1]) - mean)
	}
	for _, x := range v {
		square += (float64(x) - mean) * (float64(x) - mean)
	}
	if r := product / square; math.Abs(r) > z/math.Sqrt(n) {
		complain("serial correlation %.3f", r)
	}
	// Numbers that repeat follow a Poisson distribution; up to mean + z sigma + z^2/2 is beyond its 10^-10.
	sorted, same := slices.Sorted(slices.Values(v)), 0.
	for i := range steps {
		if sorted[i] == sorted[i+1] {
			same++
		}
	}
	expect := n * n / 2 / float64(limit)
	if most := expect + z*math.Sqrt(expect) + z*z/8; same > most {
		complain("%.0f of %.0f numbers repeat; %.2f are to be expected, %.0f at most", same, n, expect, most)
	}
	return found
}

// chiSquare is the test's value for equally likely bins, and the bounds z standard deviations away (Wilson and Hilferty's
// approximation).
func chiSquare(bins []float64, z float64) (chi, least, most float64) {
	sum := 0.
	for _, b := range bins {
		sum += b
	}
	expect := sum / float64(len(bins))
	for _, b := range bins {
		chi += (b - expect) * (b - expect) / expect
	}
	df := float64(len(bins) - 1)
	at := func(z float64) float64 {
		c := max(0, 1-2/(9*df)+z*math.Sqrt(2/(9*df)))
		return df * c * c * c
	}
	return chi, at(-z), at(z)
}

// TestSuspicious shows the test what it must find, and what it must not.
func TestSuspicious(t *testing.T) {
	seed := rand.Uint64()
	rng := rand.New(rand.NewPCG(seed, 0))
	sum := uint64(0)
	for _, c := range []struct {
		name string
		next func(i int) uint64
		good bool
	}{
		{"counter", func(i int) uint64 { return uint64(i) * 64000 % (1 << 32) }, false},
		{"even numbers", func(int) uint64 { return uint64(rng.Uint32() &^ 1) }, false},
		{"half of the range", func(int) uint64 { return uint64(rng.Uint32() >> 1) }, false},
		{"random steps", func(int) uint64 { sum = (sum + rng.Uint64N(1e6)) % (1 << 32); return sum }, false},
		{"few values", func(int) uint64 { return rng.Uint64N(1000) * 4294967 }, false},
		{"no value twice, as from a shuffled list", func(i int) uint64 { return uint64(i*2654435761) % (1 << 32) }, false},
		{"random", func(int) uint64 { return uint64(rng.Uint32()) }, true},
	} {
		v := make([]uint64, 4096)
		for i := range v {
			v[i] = c.next(i)
		}
		if found := suspicious(v, 1<<32); (len(found) == 0) != c.good {
			t.Errorf("seed %d: %s: found %q", seed, c.name, found)
		}
	}
}
