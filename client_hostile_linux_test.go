package xdpd_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/internal/seeds"
	"xdpd/rings"
)

// rawClient is a client that does the handshake by hand, and has all of the memory in its hands.
type rawClient struct {
	conn *net.UnixConn
	mem  []byte
	data int // offset of its own memory
}

func (c *rawClient) close() {
	c.conn.Close()
	_ = unix.Munmap(c.mem)
}

func (c *rawClient) word(at int) *uint32 { return (*uint32)(unsafe.Pointer(&c.mem[at])) }

func dialDaemon(path string) (*net.UnixConn, error) {
	return net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
}

func join(path string, h rings.ShareHello) (*rawClient, error) {
	conn, err := dialDaemon(path)
	if err != nil {
		return nil, err
	}
	h.Magic, h.Version = rings.ShareMagic, rings.ShareVersion
	var w rings.ShareWelcome
	fds := []int(nil)
	if err = rings.SendShare(conn, &h); err == nil {
		fds, err = rings.RecvShare(conn, &w)
	}
	if err == nil && w.Errno != 0 {
		err = unix.Errno(w.Errno)
	}
	if err != nil {
		conn.Close()
		return nil, err
	}
	mem, err := unix.Mmap(fds[0], 0, int(w.Size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	_ = unix.Close(fds[0])
	return &rawClient{conn, mem, int(w.Data)}, err
}

// echoes has an honest client send and get back data over a connection to the kernel, round by round until stop, and checks every byte.
func echoes(t *testing.T, c *xdpd.Client, lab *netlab.Lab, addr netip.Addr, stop <-chan struct{}) *sync.WaitGroup {
	t.Helper()
	near, far, err := connect(clientSide(c, addr), kernelSide(lab.Peer, lab.PeerAddr).open(t))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = io.Copy(far, far); far.Close() })
	wg.Go(func() {
		defer near.Close()
		out, in := make([]byte, 4096), make([]byte, 4096)
		for round := byte(0); ; round++ {
			select {
			case <-stop:
				return
			default:
			}
			for i := range out {
				out[i] = byte(i)*3 + round
			}
			_ = near.SetDeadline(time.Now().Add(patience))
			if _, err := near.Write(out); err != nil {
				t.Errorf("round %d: %v", round, err)
				return
			}
			if _, err := io.ReadFull(near, in); err != nil || !bytes.Equal(in, out) {
				t.Errorf("round %d: %v, or other bytes", round, err)
				return
			}
		}
	})
	return &wg
}

// TestClientGarbage: a client writes random bytes and half-right entries all over the memory that it shares, its indices too,
// while the engine works on it. The engine lives, another client's bytes stay right, and in the end no frame is missing (the ledger is on).
func TestClientGarbage(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	s, path := daemon(t, stack, func(p *xdpd.ClientPolicy) { p.CPU = 20 })
	honest := client(t, path)
	stop := make(chan struct{})
	wg := echoes(t, honest, lab, lab.EngineAddr, stop)
	first, n := seeds.From(t, 6)
	for seed := first; seed < first+uint64(n); seed++ {
		rng := rand.New(rand.NewPCG(seed, 0))
		c, err := join(path, rings.ShareHello{SQEntries: 64, CQEntries: 64, Requests: 64, Sockets: 32, Fixed: 8, Data: 1 << 16})
		if err != nil {
			t.Fatalf("XDPD_SEED=%d: %v", seed, err)
		}
		words := len(c.mem) / 8
		for range 20_000 {
			switch rng.IntN(4) {
			case 0: // the indices and flags
				c.mem[128*(1+rng.IntN(6))+rng.IntN(8)] = byte(rng.Uint32())
			case 1: // an SQE that may make sense
				at := 1024 + 64*rng.IntN(64)
				c.mem[at] = byte(rng.IntN(64))
				if rng.IntN(4) == 0 {
					c.mem[at] = 128 + byte(rng.IntN(8))
				}
				c.mem[at+1] = byte(rng.Uint32()) & 0x7f
				c.mem[at+4], c.mem[at+5], c.mem[at+6], c.mem[at+7] = byte(rng.IntN(34)), 0, 0, 0
				c.mem[256]++ // the tail
			case 2:
				c.mem[8*rng.IntN(words)+rng.IntN(8)] = byte(rng.Uint32())
			case 3:
				if _, err := c.conn.Write([]byte("knock")); err != nil {
					t.Fatalf("XDPD_SEED=%d: knock: %v", seed, err)
				}
			}
		}
		c.close()
	}
	close(stop)
	wg.Wait()
	eventually(t, "the garbage's clients to be gone", func() bool { list, _ := s.Clients(); return len(list) == 1 })
}

// TestClientDeaf: a client that says it sleeps, and hears no knock, does not hold up the engine, however often it is to be woken.
func TestClientDeaf(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	s, path := daemon(t, stack, nil)
	stop := make(chan struct{})
	wg := echoes(t, client(t, path), lab, lab.EngineAddr, stop)
	c, err := join(path, rings.ShareHello{SQEntries: 1, CQEntries: 1, Requests: 8, Sockets: 8})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	tail, flags, done, seen := c.word(256), c.word(768), c.word(640), c.word(512)
	atomic.StoreUint32(flags, 1)
	for n := uint32(1); n <= 5000; n++ { // NOPs, of which each completion is one that it waits for; a socket holds some hundred knocks
		atomic.StoreUint32(c.word(772), n)
		atomic.StoreUint32(tail, n)
		if _, err := c.conn.Write([]byte{1}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a completion", func() bool { return atomic.LoadUint32(done) == n })
		atomic.StoreUint32(seen, n)
	}
	close(stop)
	wg.Wait()
	if list, _ := s.Clients(); len(list) != 2 {
		t.Errorf("%d clients, want both", len(list))
	}
}

// TestClientHandshakes: every way to get the handshake wrong. Nobody stays, nothing leaks, and others come in all the while.
func TestClientHandshakes(t *testing.T) {
	_, stack := engine(t, netlab.Options{})
	s, path := daemon(t, stack, func(p *xdpd.ClientPolicy) { p.Memory, p.Sockets, p.Requests, p.Clients = 1<<20, 100, 100, 3 })
	good := rings.ShareHello{SQEntries: 64, CQEntries: 64, Requests: 64, Sockets: 32, Data: 1 << 16}
	before := descriptors(t)
	for name, c := range map[string]struct {
		change func(*rings.ShareHello)
		want   error
	}{
		"memory":    {func(h *rings.ShareHello) { h.Data = 1<<20 + 1 }, unix.ENOMEM},
		"all of it": {func(h *rings.ShareHello) { h.Data = 1<<64 - 1 }, unix.ENOMEM},
		"sockets":   {func(h *rings.ShareHello) { h.Sockets = 101 }, unix.EMFILE},
		"slots":     {func(h *rings.ShareHello) { h.Fixed = 1<<32 - 1 }, unix.EMFILE},
		"requests":  {func(h *rings.ShareHello) { h.Requests = 1<<32 - 1 }, unix.EAGAIN},
		"entries":   {func(h *rings.ShareHello) { h.SQEntries = 1 << 31 }, unix.EINVAL},
		"no power":  {func(h *rings.ShareHello) { h.CQEntries = 65 }, unix.EACCES},
	} {
		h := good
		c.change(&h)
		if _, err := join(path, h); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for _, message := range [][]byte{nil, {1}, make([]byte, 39), make([]byte, 40), make([]byte, 41), bytes.Repeat([]byte{0xff}, 40), make([]byte, 100_000)} {
		conn, err := dialDaemon(path)
		if err != nil {
			t.Fatal(err)
		}
		f, _ := os.Open("/dev/null")
		_, _, _ = conn.WriteMsgUnix(message, unix.UnixRights(int(f.Fd()), int(f.Fd()), int(f.Fd()), int(f.Fd()), int(f.Fd())), nil)
		f.Close()
		conn.Close()
	}
	for range 200 { // coming and going at once, and in the middle of it
		conn, err := dialDaemon(path)
		if err != nil {
			t.Fatal(err)
		}
		h := good
		h.Magic, h.Version = rings.ShareMagic, rings.ShareVersion
		_ = rings.SendShare(conn, &h)
		conn.Close()
	}
	eventually(t, "the door to be free", func() bool {
		c, err := join(path, good)
		if err == nil {
			c.close()
		}
		return err == nil
	})
	var there []*rawClient
	eventually(t, "those who come and go to leave three places", func() bool {
		c, err := join(path, good)
		if err == nil {
			there = append(there, c)
		} else if !errors.Is(err, unix.EUSERS) && !errors.Is(err, unix.ECONNRESET) { // places, and those who wait at the door
			t.Fatal(err)
		}
		return len(there) == 3
	})
	eventually(t, "the others to be gone", func() bool { list, _ := s.Clients(); return len(list) == 3 })
	if _, err := join(path, good); !errors.Is(err, unix.EUSERS) {
		t.Errorf("a fourth client: %v", err)
	}
	if _, err := there[0].conn.Write(nil); err != nil { // not even a knock
		t.Error(err)
	}
	eventually(t, "who says nothing to be out", func() bool { list, _ := s.Clients(); return len(list) == 2 })
	for _, c := range there {
		c.close()
	}
	eventually(t, "everybody to be gone", func() bool { list, _ := s.Clients(); return len(list) == 0 })
	eventually(t, "all descriptors to be closed", func() bool { return descriptors(t) <= before })
}

func descriptors(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

const (
	clientEnv  = "XDPD_TEST_CLIENT" // the daemon's socket
	addressEnv = "XDPD_TEST_ADDRESS"
)

// TestClientChild is an application in a process of its own, which TestClientKilled starts and kills: it echoes at an address.
func TestClientChild(t *testing.T) {
	path, address := os.Getenv(clientEnv), os.Getenv(addressEnv)
	if path == "" {
		return
	}
	c, err := xdpd.Connect(t.Context(), path)
	if err != nil {
		panic(err)
	}
	l, err := c.Listen("tcp", address)
	if err != nil {
		panic(err)
	}
	os.Stdout.WriteString("ready\n")
	for {
		conn, err := l.Accept()
		if err != nil {
			panic(err)
		}
		go func() { _, _ = io.Copy(conn, conn) }()
	}
}

// TestClientKilled: applications that are killed in the middle of a transfer. Their peers' connections end, and the address is free again.
func TestClientKilled(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	s, path := daemon(t, stack, nil)
	address := netip.AddrPortFrom(lab.EngineAddr, 7777).String()
	for range 5 {
		cmd := exec.Command(os.Args[0], "-test.run=^TestClientChild$")
		cmd.Env = append(os.Environ(), clientEnv+"="+path, addressEnv+"="+address)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(out, make([]byte, 6)); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		k, err := kernelSide(lab.Peer, lab.PeerAddr).dial(ctx, "tcp4", address)
		cancel()
		if err != nil {
			t.Fatal(err)
		}
		_ = k.SetDeadline(time.Now().Add(patience))
		buf := make([]byte, 100_000)
		if _, err := k.Write(buf); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(k, buf[:1000]); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait()
		if _, err := io.Copy(io.Discard, k); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("the peer of a killed client: %v", err)
		}
		k.Close()
		eventually(t, "the killed client to be gone", func() bool { list, _ := s.Clients(); return len(list) == 0 })
	}
}
