package xdpd_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/internal/seeds"
)

// siegeTime is longer in scripts/clients-soak.
var siegeTime = flag.Duration("siege", 3*time.Second, "how long TestClientSiege lets hostile applications at the daemon, at least")

const (
	guests      = 1000 // applications that come and go
	honestPort  = 7000
	hostilePort = 8000 // to 8999
)

// siegePart is what one process of the siege does, again and again: started, killed at a random time, started again.
type siegePart struct {
	do    string
	uid   uint32       // the daemon keeps users apart at its door
	count atomic.Int64 // rounds, of all its processes
	runs  int
}

// TestClientSiege: processes of another user do all that they can do to a daemon: garbage all over the memory that they share, indices that
// jump, descriptors and addresses that are not theirs, floods of knocks, handshakes that end in the middle, holes in the memory that both
// map; a thousand come and go; all are killed at random times. The daemon lives, the bytes of an honest application stay right, and in the
// end memory, descriptors and goroutines are where they were, and no frame is missing (the ledger is on).
func TestClientSiege(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	s, path := policed(t, stack,
		xdpd.ClientPolicy{Name: "honest", Users: []uint32{uint32(os.Getuid())}, Bind: []xdpd.PortRange{{First: honestPort, Last: honestPort}}, CPU: 100},
		xdpd.ClientPolicy{Name: "hostile", Users: []uint32{otherUser, otherUser - 1, otherUser - 2}, Bind: []xdpd.PortRange{{First: hostilePort, Last: hostilePort + 999}}, Sockets: 64, CPU: 20})
	peer := kernelSide(lab.Peer, lab.PeerAddr).open(t)
	peerDiscards(peer)
	seed, _ := seeds.From(t, 1)
	t.Logf("XDPD_SEED=%d", seed)
	rng := rand.New(rand.NewPCG(seed, 1))
	before := takeState(t)

	honest := startChild(t, 0, path, "honest "+netip.AddrPortFrom(lab.EngineAddr, honestPort).String())
	if got := honest.hear(); got != "ready" {
		t.Fatal(got)
	}
	stop := make(chan struct{})
	var visits, work sync.WaitGroup
	rounds := visitHonest(t, &visits, stop, lab)

	attackers := []*siegePart{
		{do: "garbage", uid: otherUser}, {do: "garbage", uid: otherUser}, {do: "knocks", uid: otherUser}, {do: "holes", uid: otherUser},
		{do: "shy", uid: otherUser - 1}, {do: "guests", uid: otherUser - 2},
	}
	comers := attackers[5]
	until := time.Now().Add(*siegeTime)
	over := func() bool { return time.Now().After(until) && comers.count.Load() >= guests }
	for i, a := range attackers {
		each := rand.New(rand.NewPCG(rng.Uint64(), uint64(i)))
		work.Go(func() {
			for !over() {
				a.run(t, path, each, peer.Addr().String())
			}
		})
	}
	work.Wait()
	was := rounds.Load()
	eventually(t, "the besiegers to be gone", func() bool { list, _ := s.Clients(); return len(list) == 1 })
	eventually(t, "the honest application to go on", func() bool { return rounds.Load() > was })
	close(stop)
	visits.Wait()
	honest.kill()
	eventually(t, "everybody to be gone", func() bool { list, _ := s.Clients(); return len(list) == 0 })
	for _, a := range attackers {
		t.Logf("%s: %d rounds by %d processes", a.do, a.count.Load(), a.runs)
		if a.count.Load() == 0 {
			t.Errorf("%s did nothing", a.do)
		}
	}
	t.Logf("%d rounds of the honest application", rounds.Load())
	peer.Close()
	var after state
	eventually(t, "memory, descriptors and goroutines to be back", func() bool {
		after = takeState(t)
		return after.maps == 0 && after.fds <= before.fds && after.goroutines <= before.goroutines && after.heap < before.heap+32<<20
	})
	t.Logf("before %+v, after %+v", before, after)
}

// run is one process of it, which is killed.
func (a *siegePart) run(t *testing.T, path string, rng *rand.Rand, peer string) {
	c := startChild(t, a.uid, path, fmt.Sprintf("%s %d %s", a.do, rng.Uint32(), peer))
	a.runs++
	if a.do != "guests" { // of few cores the daemon and the others need something as well
		if err := unix.Setpriority(unix.PRIO_PROCESS, c.cmd.Process.Pid, 19); err != nil {
			t.Error(err)
		}
	}
	var enough *time.Timer
	for rounds, most := 0, rng.IntN(200); c.out.Scan(); rounds++ {
		a.count.Add(1)
		switch {
		case a.do == "guests": // each round of theirs is a process as the daemon sees it
			if rounds == most {
				_ = c.cmd.Process.Kill()
			}
		case enough == nil: // it has begun
			enough = time.AfterFunc(time.Duration(rng.IntN(800))*time.Millisecond, func() { _ = c.cmd.Process.Kill() })
			defer enough.Stop()
		}
	}
	c.kill()
}

// state is what must come back.
type state struct {
	fds, goroutines, maps int
	heap                  int
}

func takeState(t *testing.T) state {
	t.Helper()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	text, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	return state{descriptors(t), runtime.NumGoroutine(), bytes.Count(text, []byte("xdpd-rings")), int(m.HeapAlloc)}
}

// peerDiscards has a listener of the peer take whatever comes.
func peerDiscards(l net.Listener) {
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(io.Discard, c); c.Close() }()
		}
	}()
}

// visitHonest has the kernel's side talk to the honest application over one connection after the other, and checks each byte that comes back.
func visitHonest(t *testing.T, wg *sync.WaitGroup, stop <-chan struct{}, lab *netlab.Lab) *atomic.Int64 {
	rounds := &atomic.Int64{}
	address := netip.AddrPortFrom(lab.EngineAddr, honestPort).String()
	visit := func(salt byte) error {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		k, err := kernelSide(lab.Peer, lab.PeerAddr).dial(ctx, "tcp4", address)
		if err != nil {
			return err
		}
		defer k.Close()
		out, in := make([]byte, 20_000), make([]byte, 20_000)
		for round := range byte(20) {
			for i := range out {
				out[i] = byte(i)*3 + round + salt
			}
			_ = k.SetDeadline(time.Now().Add(patience))
			if _, err := k.Write(out); err != nil {
				return err
			}
			if _, err := io.ReadFull(k, in); err != nil {
				return err
			}
			if !bytes.Equal(in, out) {
				return errors.New("other bytes came back")
			}
			rounds.Add(1)
		}
		return nil
	}
	for lane := range 2 {
		wg.Go(func() {
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if err := visit(byte(n*2 + lane)); err != nil {
					t.Errorf("the honest application's peer, after %d rounds: %v", rounds.Load(), err)
					return
				}
			}
		})
	}
	return rounds
}

func init() {
	children["honest"] = childHonest
	for name, do := range map[string]func(*besieger) error{
		"garbage": (*besieger).garbage, "knocks": (*besieger).knocks, "shy": (*besieger).shy, "guests": (*besieger).guest, "holes": (*besieger).holes,
	} {
		children[name] = func(path string, args []string) error {
			b := &besieger{path: path, peer: netip.MustParseAddrPort(args[1])}
			var seed uint64
			if _, err := fmt.Sscan(args[0], &seed); err != nil {
				return err
			}
			b.rng = rand.New(rand.NewPCG(seed, 2))
			out := bufio.NewWriterSize(os.Stdout, 1)
			for {
				if err := do(b); err != nil && !b.expected(err) {
					return fmt.Errorf("XDPD_SEED=%d: %w", seed, err)
				}
				fmt.Fprintln(out, name)
				if name != "guests" {
					time.Sleep(time.Millisecond)
				}
			}
		}
	}
}

// childHonest echoes at an address.
func childHonest(path string, args []string) error {
	c, err := xdpd.Connect(context.Background(), path)
	if err != nil {
		return err
	}
	l, err := c.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	fmt.Println("ready")
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			if _, err := io.Copy(conn, conn); err != nil && !strings.Contains(err.Error(), "reset") {
				fmt.Fprintln(os.Stderr, "honest:", err)
			}
		}()
	}
}
