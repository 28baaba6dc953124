package xdpd_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"xdpd"
	"xdpd/internal/netlab"
	"xdpd/internal/seeds"
)

// echoed has a connection's peer send b to it, and echoes it.
func echoed(t testing.TB, peer, ours net.Conn, b []byte) {
	t.Helper()
	_ = peer.SetDeadline(time.Now().Add(patience))
	_ = ours.SetDeadline(time.Now().Add(patience))
	go func() { _, _ = peer.Write(b) }()
	got := make([]byte, len(b))
	if _, err := io.ReadFull(ours, got); err != nil || !bytes.Equal(got, b) {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	go func() { _, _ = ours.Write(got) }()
	back := make([]byte, len(b))
	if _, err := io.ReadFull(peer, back); err != nil || !bytes.Equal(back, b) {
		t.Fatalf("%d bytes back: %v", len(b), err)
	}
}

// TestClientIdleReaders: a server with many connections that say nothing, each with a goroutine that reads, serves the next one.
func TestClientIdleReaders(t *testing.T) {
	lab, c, _ := viaDaemon(t, netlab.Options{})
	ours, kernels := clientSide(c, lab.EngineAddr), kernelSide(lab.Peer, lab.PeerAddr)
	ln := ours.open(t)
	var reading sync.WaitGroup
	var idle []net.Conn
	for range 600 {
		peer, conn, err := connect(kernels, ln)
		if err != nil {
			t.Fatalf("connection %d: %v", len(idle), err)
		}
		idle = append(idle, peer, conn)
		reading.Go(func() {
			if n, err := conn.Read(make([]byte, 1)); n != 1 || err != nil {
				t.Errorf("an idle connection reads %d, %v", n, err)
			}
		})
	}
	peer, conn, err := connect(kernels, ln)
	if err != nil {
		t.Fatal(err)
	}
	defer peer.Close()
	defer conn.Close()
	echoed(t, peer, conn, bytes.Repeat([]byte("served "), 50_000))
	for i := 0; i < len(idle); i += 2 {
		if _, err := idle[i].Write([]byte("x")); err != nil {
			t.Error(err)
		}
	}
	reading.Wait()
	for _, c := range idle {
		c.Close()
	}
}

// TestClientStalledWriters: connections whose peers take nothing do not hold up the others, and lose nothing.
func TestClientStalledWriters(t *testing.T) {
	lab := newLab(t, netlab.Options{})
	cfg := engineConfig(lab)
	cfg.SndBuf = 4096
	stack := openStack(t, lab, cfg)
	_, path := daemon(t, stack, func(p *xdpd.ClientPolicy) { p.Frames = 100 })
	c := client(t, path)
	ln := clientSide(c, lab.EngineAddr).open(t)
	dial := kernelSide(lab.Peer, lab.PeerAddr).dial
	connect := func() (peer *net.TCPConn, conn net.Conn) {
		t.Helper()
		p, err := dial(context.Background(), "tcp", ln.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		if conn, err = ln.Accept(); err != nil {
			t.Fatal(err)
		}
		return p.(*net.TCPConn), conn
	}
	const n, size = 200, 1 << 20
	var writing sync.WaitGroup
	var peers []*net.TCPConn
	for i := range n {
		peer, conn := connect()
		if err := peer.SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		peers = append(peers, peer)
		writing.Go(func() {
			defer conn.Close()
			if k, err := conn.Write(bytes.Repeat([]byte{byte(i)}, size)); k != size || err != nil {
				t.Errorf("connection %d wrote %d, %v", i, k, err)
			}
		})
	}
	for range 3 {
		peer, conn := connect()
		echoed(t, peer, conn, bytes.Repeat([]byte("served "), 50_000))
		peer.Close()
		conn.Close()
	}
	var taking sync.WaitGroup
	for i, peer := range peers {
		taking.Go(func() {
			defer peer.Close()
			b, err := io.ReadAll(peer)
			if want := bytes.Repeat([]byte{byte(i)}, size); err != nil || !bytes.Equal(b, want) {
				t.Errorf("connection %d: %d bytes of %d came, %v", i, len(b), size, err)
			}
		})
	}
	taking.Wait()
	writing.Wait()
}

// TestClientUnread: what sockets had received ahead of their readers when they were closed is nobody's loss: not the memory, and not what
// others receive.
func TestClientUnread(t *testing.T) {
	lab, c, _ := viaDaemon(t, netlab.Options{})
	ping(t, lab.Peer, lab.EngineAddr, 1) // who queues for a neighbour may send out of order
	for i := range 100 {
		port := uint16(700 + i) // what is still on its way is not for the next
		pc, err := c.ListenPacket("udp", fmt.Sprint(":", port))
		if err != nil {
			t.Fatal(err)
		}
		_ = pc.SetDeadline(time.Now().Add(patience))
		peer := kernelUDP(t, lab.Peer, netip.AddrPortFrom(lab.PeerAddr, 0), netip.AddrPort{}) // which hears of no closed port
		const n = 20
		for k := range n {
			if _, err := peer.WriteToUDPAddrPort(fmt.Appendf(nil, "%d of %d", k, i), netip.AddrPortFrom(lab.EngineAddr, port)); err != nil {
				t.Fatal(err)
			}
		}
		buf := make([]byte, 2000)
		for k := range n / 2 { // in order, and the others are there as well by then
			m, from, err := pc.ReadFrom(buf)
			if want := fmt.Sprintf("%d of %d", k, i); err != nil || string(buf[:m]) != want {
				t.Fatalf("read %q, %v, want %q", buf[:m], err, want)
			}
			if _, err := pc.WriteTo(buf[:m], from); err != nil {
				t.Fatal(err)
			}
		}
		if err := pc.Close(); err != nil {
			t.Fatal(err)
		}
		for k := range n / 2 { // what was written before Close goes out
			m, err := peer.Read(buf)
			if want := fmt.Sprintf("%d of %d", k, i); err != nil || string(buf[:m]) != want {
				t.Fatalf("the peer reads %q, %v, want %q", buf[:m], err, want)
			}
		}
		peer.Close()
	}
}

// TestClientLastWords: what a process wrote before it exited goes out.
func TestClientLastWords(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	_, path := daemon(t, stack, nil)
	for range 10 {
		peer := kernelUDP(t, lab.Peer, netip.AddrPortFrom(lab.PeerAddr, 0), netip.AddrPort{})
		startChild(t, 0, path, "lastwords "+peer.LocalAddr().String())
		buf := make([]byte, 100)
		for k := range lastWords {
			n, err := peer.Read(buf)
			if want := fmt.Sprint("word ", k); err != nil || string(buf[:n]) != want {
				t.Fatalf("the peer reads %q, %v, want %q", buf[:n], err, want)
			}
		}
		peer.Close()
	}
}

const lastWords = 50

func init() {
	children["lastwords"] = func(path string, args []string) error {
		c, err := xdpd.Connect(context.Background(), path)
		if err != nil {
			return err
		}
		conn, err := c.Dial("udp", args[0])
		if err != nil {
			return err
		}
		for k := range lastWords {
			if _, err := fmt.Fprint(conn, "word ", k); err != nil {
				return err
			}
		}
		os.Exit(0)
		return nil
	}
}

// TestClientInOrder: bursts of datagrams of any length, with pauses between them, are read in order, and so are the answers: however many a
// socket receives ahead of its reader.
func TestClientInOrder(t *testing.T) {
	lab, stack := engine(t, netlab.Options{})
	s, path := daemon(t, stack, nil)
	pc, err := client(t, path).ListenPacket("udp", ":700")
	if err != nil {
		t.Fatal(err)
	}
	ping(t, lab.Peer, lab.EngineAddr, 1) // who queues for a neighbour may send out of order
	var echoing sync.WaitGroup
	echoing.Go(func() {
		buf := make([]byte, 100)
		for n := uint32(0); ; n++ {
			k, from, err := pc.ReadFrom(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if got := binary.BigEndian.Uint32(buf); err != nil || k != 4 || got != n {
				t.Errorf("datagram %d: %d bytes, number %d, %v", n, k, got, err)
			}
			if _, err := pc.WriteTo(buf[:k], from); err != nil {
				t.Error(err)
			}
		}
	})
	rng := rand.New(rand.NewPCG(seeds.One(t), 0))
	peer := kernelUDP(t, lab.Peer, netip.AddrPort{}, netip.AddrPortFrom(lab.EngineAddr, 700))
	sent, got, buf := uint32(0), uint32(0), make([]byte, 100)
	for range 400 {
		for range 1 + rng.IntN(1<<rng.IntN(7)) {
			if _, err := peer.Write(binary.BigEndian.AppendUint32(nil, sent)); err != nil {
				t.Fatal(err)
			}
			sent++
		}
		for ; got < sent; got++ {
			if k, err := peer.Read(buf); err != nil || k != 4 || binary.BigEndian.Uint32(buf) != got {
				t.Fatalf("answer %d: %d bytes, number %d, %v", got, k, binary.BigEndian.Uint32(buf), err)
			}
		}
	}
	list, _ := s.Clients()
	t.Logf("%d datagrams, %d knocks", sent, list[0].Knocks)
	if err := pc.Close(); err != nil {
		t.Error(err)
	}
	echoing.Wait()
}
