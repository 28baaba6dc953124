package rings_test

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/rings"
	"xdpd/rings/internal/vethtest"
	"xdpd/umem"
)

const testFrames = 1024

func region(t testing.TB) *umem.Region {
	t.Helper()
	r, err := umem.New(umem.Options{Frames: testFrames, ChunkSize: 2048})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

func open(p *vethtest.Pair, r *umem.Region, o rings.SocketOptions) (s *rings.Socket, err error) {
	o.Interface, o.Ifindex = vethtest.Dev, p.Ifindex
	err = p.Do(func() error {
		s, err = rings.OpenSocket(r, o)
		return err
	})
	return s, err
}

func mustOpen(t testing.TB, p *vethtest.Pair, r *umem.Region, o rings.SocketOptions) *rings.Socket {
	t.Helper()
	s, err := open(p, r, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// fill hands n frames of the pool to the device.
func fill(t testing.TB, port *rings.Port, pool *umem.Pool, n uint32) {
	t.Helper()
	idx, got := port.Fill.Reserve(n)
	if got != n {
		t.Fatalf("fill ring gives %d slots, want %d", got, n)
	}
	for i := range n {
		*port.Fill.Slot(idx + i) = pool.Region().Addr(pool.Get(umem.Fill))
	}
	port.Fill.Submit(n)
}

// receive takes what is in the RX ring, gives the frames back and calls f.
func receive(t testing.TB, port *rings.Port, pool *umem.Pool, f func(packet []byte)) {
	t.Helper()
	idx, got := port.RX.Peek(64)
	for i := range got {
		d := port.RX.Read(idx + i)
		frame, ok := pool.Region().FrameOf(d.Addr)
		if !ok || d.Addr-pool.Region().Addr(frame) != umem.Headroom {
			t.Fatalf("descriptor %+v; want a packet %d bytes into a frame", d, umem.Headroom)
		}
		pool.Move(frame, umem.Fill, umem.RX)
		f(pool.Region().Mem()[d.Addr : d.Addr+uint64(d.Len)])
		pool.Put(frame, umem.RX)
	}
	port.RX.Release(got)
}

// send puts n numbered frames in the TX ring.
func send(t testing.TB, port *rings.Port, pool *umem.Pool, first, n uint32, length int) {
	t.Helper()
	idx, got := port.TX.Reserve(n)
	if got != n {
		t.Fatalf("TX ring gives %d slots, want %d", got, n)
	}
	for i := range n {
		f := pool.Get(umem.TX)
		copy(pool.Chunk(f)[umem.Headroom:], vethtest.Frame(first+i, length))
		*port.TX.Slot(idx + i) = rings.Desc{Addr: pool.Region().Addr(f) + umem.Headroom, Len: uint32(length)}
	}
	port.TX.Submit(n)
}

// kick kicks until the kernel has taken all of the TX ring, and says how often.
func kick(t testing.TB, port *rings.Port) int {
	t.Helper()
	kicks := 0
	vethtest.Until(t, "TX ring empty", func() bool {
		if port.TX.Pending() == 0 {
			return true
		}
		kicks++
		if err := port.Dev.Kick(); err != nil {
			t.Fatal(err)
		}
		return false
	})
	return kicks
}

// reap waits for n completions and frees their frames.
func reap(t testing.TB, port *rings.Port, pool *umem.Pool, n uint32) {
	t.Helper()
	vethtest.Until(t, "completions", func() bool {
		idx, got := port.Comp.Peek(n)
		for i := range got {
			frame, ok := pool.Region().FrameOf(port.Comp.Read(idx + i))
			if !ok {
				t.Fatalf("completion of address %#x", port.Comp.Read(idx+i))
			}
			pool.Move(frame, umem.TX, umem.Comp)
			pool.Put(frame, umem.Comp)
		}
		port.Comp.Release(got)
		n -= got
		return n == 0
	})
}

func waitReadable(t testing.TB, fds ...int) {
	t.Helper()
	var pfds []unix.PollFd
	for _, fd := range fds {
		pfds = append(pfds, unix.PollFd{Fd: int32(fd), Events: unix.POLLIN})
	}
	for {
		n, err := unix.Poll(pfds, int(vethtest.Timeout.Milliseconds()))
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if n == 0 || err != nil {
			t.Fatalf("poll gives %d, %v; want a readable socket", n, err)
		}
		return
	}
}

func newPool(r *umem.Region) *umem.Pool {
	return umem.NewPool(r, 0, r.Frames(), umem.NewLedger(r.Frames()))
}
