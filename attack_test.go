package xdpd_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/proto"
	"xdpd/sockets"
)

// TestSYNFlood has strangers open connections that they never complete, a hundred thousand (XDPD_ATTACK=1000000: a
// million), while real clients come and go: each of them must be served, and the flood must cost no more memory than
// the listener's limits allow. By hand also as many as one core can send, of which the device drops what the engine
// does not take: the clients' packets are among those, so they come slowly, but they come.
func TestSYNFlood(t *testing.T) {
	n := attackSize(t, 100_000)
	for _, offload := range []bool{false, true} {
		o := netlab.Options{TxOffload: offload}
		t.Run(fmt.Sprintf("offload=%v", offload), func(t *testing.T) { testSYNFlood(t, o, n, 100*time.Microsecond, 50) })
	}
	// At full speed the ring in front of the engine loses most of the clients' segments as well: how long they take is the
	// machine's matter. By hand only.
	if os.Getenv("XDPD_ATTACK") != "" {
		t.Run("all that one core can", func(t *testing.T) { testSYNFlood(t, netlab.Options{}, n, 0, 10) })
	}
}

func testSYNFlood(t *testing.T, o netlab.Options, n uint64, pause time.Duration, clients int) {
	lab, stack := attackedEngine(t, o)
	serveTCPEcho(t, stack, 7)
	to := netip.AddrPortFrom(lab.EngineAddr, 7)
	a := newAttacker(t, lab)

	stop := make(chan struct{})
	end := sync.OnceFunc(func() { close(stop) })
	defer end()
	var sent atomic.Uint64
	flooding := blocked(func() error { return a.flood(lab, 7, pause, stop, &sent) })
	eventually(t, "the flood", func() bool { return sent.Load() > 10_000 })
	served, most := 0, 0
	for served < clients || sent.Load() < n {
		c, err := kernelTCP(t, lab.Peer, to)
		if err == nil {
			err = echoBulk(c, 3000, uint64(served))
			err = errors.Join(err, c.Close())
		}
		if err != nil {
			st := getStats(t, stack)
			t.Fatalf("client %d, after %d SYNs: %v; dropped %v", served, sent.Load(), err, st.Drops())
		}
		served++
		most = max(most, states(t, stack)["SYN-RECEIVED"])
	}
	end()
	if err := await(t, flooding, "the end of the flood"); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d clients were served during %d SYNs; at most %d connections were half open", served, sent.Load(), most)
	t.Logf("dropped: %v", func() any { st := getStats(t, stack); return st.Drops() }())
	if got := counter(t, stack, "tcp_syn_cookies"); got == 0 {
		t.Error("no SYN was answered with a cookie")
	}
	if accepted := counted(t, stack, sockets.TCPAccepted); accepted != uint64(served) {
		t.Errorf("%d connections were accepted, but %d clients were there", accepted, served)
	}
	if limit := 1024; most > limit { // sockets.Config.Backlog
		t.Errorf("%d connections were half open, more than the backlog of %d", most, limit)
	}
}

// victim is a connection of the peer's kernel to an echo service of the engine, whose numbers the attacker does not know.
type victim struct {
	*attacker
	stack  *xdpd.Stack
	conn   *net.TCPConn
	port   uint16 // the client's
	settle func()
}

func newVictim(t *testing.T) *victim {
	t.Helper()
	lab, stack := attackedEngine(t, netlab.Options{})
	serveTCPEcho(t, stack, 7)
	v := &victim{attacker: newAttacker(t, lab), stack: stack, settle: barrier(t, lab)}
	c, err := kernelTCP(t, lab.Peer, netip.AddrPortFrom(lab.EngineAddr, 7))
	if err != nil {
		t.Fatal(err)
	}
	v.conn, v.port = c, c.LocalAddr().(*net.TCPAddr).AddrPort().Port()
	return v
}

// ask has the connection say something and hear it back, and nothing else. Each time it is waited for anew: an attack may take
// longer than anybody's patience.
func (v *victim) ask(what string) {
	v.t.Helper()
	v.conn.SetDeadline(time.Now().Add(patience))
	if _, err := v.conn.Write([]byte(what)); err != nil {
		v.t.Fatalf("%.100s: the connection is dead: %v", what, err)
	}
	got := make([]byte, len(what))
	if n, err := io.ReadFull(v.conn, got); err != nil {
		v.t.Fatalf("after %d of %d bytes the connection is dead: %v", n, len(what), err)
	}
	if string(got) != what {
		v.t.Fatalf("the connection is poisoned: %.100q came back for %.100q", got, what)
	}
}

// numbers tells what the target will take next and has sent: what it shows in an echo's last ACK. Only the test knows
// them; the attacks near them stand for a guess that is almost right. opt is what the client's next segment has: without
// timestamps, or with old ones, nothing gets as far as the sequence numbers (RFC 7323 3.2, 5.3).
func (v *victim) numbers() (rcvNxt, sndNxt uint32, opt proto.TCPOptions) {
	v.t.Helper()
	v.settle()
	v.overheard(func(*heard) bool { return true })
	v.ask("what is the time?")
	v.settle()
	g := v.hear("an echo", func(g *heard) bool { return g.dst == v.peer && g.tcp.DstPort == v.port && len(g.data) > 0 })
	opt = proto.TCPOptions{HasTS: g.opt.HasTS, TSVal: g.opt.TSEcr, TSEcr: g.opt.TSVal}
	return g.tcp.Ack, g.tcp.Seq + uint32(len(g.data)), opt
}

// as is a segment that pretends to be the client's.
func (v *victim) as(h proto.TCP, o proto.TCPOptions, data string) []byte {
	h.SrcPort, h.DstPort, h.Window = v.port, 7, 1000
	return v.segment(v.peer, h, o, data)
}

// TestBlindInjection shoots at a connection with numbers that are random or almost right. RFC 5961: nothing but the exact
// next number of a RST, and data whose acknowledgement is plausible, may have an effect.
func TestBlindInjection(t *testing.T) {
	shots := attackSize(t, 20_000)
	kinds := []struct {
		name  string
		flags uint8
		data  string
		exact bool // may be shot with the exact sequence number: the acknowledgement is what is wrong
	}{
		{"RST", proto.RST, "", false},
		{"RST,ACK", proto.RST | proto.ACK, "", false},
		{"SYN", proto.SYN, "", true},
		{"SYN,ACK", proto.SYN | proto.ACK, "", true},
		{"data", proto.ACK | proto.PSH, "poison", true},
		{"FIN", proto.FIN | proto.ACK, "", true},
		{"data,FIN", proto.FIN | proto.ACK, "poison", true},
		{"data without ACK", proto.PSH, "poison", true},
		{"URG", proto.ACK | proto.URG, "poison", true},
	}
	for _, k := range kinds {
		t.Run(k.name, func(t *testing.T) {
			v := newVictim(t)
			v.ask("before")
			for range shots / uint64(len(kinds)) {
				h := proto.TCP{Seq: v.rng.Uint32(), Ack: v.rng.Uint32(), Flags: k.flags}
				v.send(v.as(h, proto.TCPOptions{HasTS: v.rng.IntN(2) == 0, TSVal: v.rng.Uint32()}, k.data))
			}
			v.settle()
			v.ask("after random numbers")
			for i := range 200 {
				rcv, snd, opt := v.numbers()
				off := uint32(v.rng.IntN(60000))
				switch {
				case i%2 == 0:
					off = 1 + uint32(v.rng.IntN(3))
				case k.exact:
					off = 0
				}
				if off == 0 && !k.exact {
					off = 1
				}
				// Farther ahead than what was ever sent, and farther back than the largest window: RFC 5961 5.2.
				ack := snd + 1 + v.rng.Uint32N(1<<30)
				if i%4 < 2 {
					ack = snd - 1<<30 - v.rng.Uint32N(1<<29)
				}
				if k.flags&proto.ACK == 0 {
					ack = 0
				}
				if i%3 == 0 {
					opt = proto.TCPOptions{}
				}
				v.send(v.as(proto.TCP{Seq: rcv + off, Ack: ack, Flags: k.flags}, opt, k.data))
				if i%5 == 0 { // just behind the window's left edge as well
					v.send(v.as(proto.TCP{Seq: rcv - 1 - uint32(v.rng.IntN(3)), Ack: ack, Flags: k.flags}, opt, k.data))
				}
			}
			v.settle()
			v.ask("after numbers that were almost right")
			v.ask(string(make([]byte, 100_000)))
			v.conn.Close()
			noConnections(t, v.stack)
		})
	}
}

// TestExactRST is the counterpart: the one number that may end a connection does.
func TestExactRST(t *testing.T) {
	v := newVictim(t)
	rcv, _, opt := v.numbers()
	v.send(v.as(proto.TCP{Seq: rcv, Flags: proto.RST}, opt, ""))
	noConnections(t, v.stack)
}

// TestInjectionIntoBulk shoots at random while data flows in both directions.
func TestInjectionIntoBulk(t *testing.T) {
	v := newVictim(t)
	n := attackSize(t, 20_000)
	stop := make(chan struct{})
	end := sync.OnceFunc(func() { close(stop) })
	defer end()
	var shots atomic.Uint64
	shooting := blocked(func() error {
		rng := rand.New(rand.NewPCG(v.rng.Uint64(), 0))
		flags := []uint8{proto.RST, proto.SYN, proto.ACK, proto.ACK | proto.PSH, proto.FIN | proto.ACK, proto.SYN | proto.ACK}
		for {
			select {
			case <-stop:
				return nil
			default:
			}
			h := proto.TCP{Seq: rng.Uint32(), Ack: rng.Uint32(), Flags: flags[rng.IntN(len(flags))]}
			v.send(v.as(h, proto.TCPOptions{}, "poison"))
			if shots.Add(1)%64 == 0 {
				time.Sleep(time.Millisecond) // a flood that overflows the rings shows nothing
			}
		}
	})
	data, block := rand.NewChaCha8([32]byte{1}), make([]byte, 64<<10)
	for blocks := 0; blocks < 64 || shots.Load() < n; blocks++ {
		data.Read(block)
		v.ask(string(block))
	}
	end()
	if err := await(t, shooting, "the last shot"); err != nil {
		t.Fatal(err)
	}
	v.settle()
	v.conn.Close()
	noConnections(t, v.stack)
}
