package main

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"xdpd"
	"xdpd/internal/netlab"
)

// TestNetFaceMemory: what an established connection takes of heap and stacks that is a TCPConn with a goroutine in Read. The
// peers are the kernel's, and have nothing in this process but a descriptor.
func TestNetFaceMemory(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	const few, n = 100, 2100
	const mostHeap = 1760        // a tenth over what was measured
	const mostStack = 4096 * 1.1 // of the two least sizes it has the larger: not every collection shrinks it
	lab, err := netlab.New(netlab.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer lab.Close()
	stack, err := xdpd.Open(xdpd.Config{
		Interface: lab.EngineDev, NetNS: lab.Engine.Path(), Addrs: []netip.Prefix{netip.PrefixFrom(lab.EngineAddr, 24)},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer stack.Close()
	l, err := stack.Listen("tcp", fmt.Sprintf(":%d", ourPort))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	var readers sync.WaitGroup
	peers := make([]int, 0, n)
	conns := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range conns {
			c.Close()
		}
		for _, fd := range peers {
			unix.Close(fd)
		}
		readers.Wait()
	}()
	to := &unix.SockaddrInet4{Port: ourPort, Addr: lab.EngineAddr.As4()}
	// open has connections come until there are so many. Each says a byte, for whose echo its reader waits twice: then the
	// second Read has begun, or is about to.
	open := func(until int) error {
		for len(conns) < until {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			peers = append(peers, fd)
			if err := unix.Connect(fd, to); err != nil {
				return fmt.Errorf("connect: %w", err)
			}
			c, err := l.Accept()
			if err != nil {
				return err
			}
			conns = append(conns, c)
			readers.Go(func() { echoBytes(c) })
			var b [1]byte
			if _, err := unix.Write(fd, b[:]); err != nil {
				return err
			}
			if _, err := unix.Read(fd, b[:]); err != nil {
				return err
			}
		}
		return nil
	}
	// hold is what is held when all is idle: what a connection has while it is active it gives back after a second, and
	// stacks shrink with collections.
	hold := func(until int) (heap, stacks uint64) {
		if err := lab.Peer.Do(func() error { return open(until) }); err != nil {
			t.Fatal(err)
		}
		heap, stacks = math.MaxUint64, math.MaxUint64
		for end := time.Now().Add(2 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			runtime.GC()
			v := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/stacks:bytes"}}
			metrics.Read(v)
			heap, stacks = min(heap, v[0].Value.Uint64()), min(stacks, v[1].Value.Uint64())
		}
		return heap, stacks
	}
	heap0, stacks0 := hold(few)
	heap, stacks := hold(n)
	heapEach, stackEach := float64(heap-heap0)/(n-few), float64(int64(stacks-stacks0))/(n-few)
	t.Logf("%.0f bytes of heap each, %.0f of stacks", heapEach, stackEach)
	if heapEach > mostHeap || stackEach > mostStack && !raced() || heapEach < 100 || stackEach < 2000 {
		t.Errorf("a connection takes %.0f bytes of heap and %.0f of stacks, want at most %d and %.0f", heapEach, stackEach, mostHeap, float64(mostStack))
	}
}

// raced reports the race detector, with which stacks are larger.
func raced() bool {
	info, ok := debug.ReadBuildInfo()
	return ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"})
}

// echoBytes is a goroutine that a server has for a connection.
func echoBytes(c net.Conn) {
	b := make([]byte, 1)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}
