//go:build cgo

package main

import (
	"bytes"
	"math"
	"os"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/proto"
	"xdpd/sockets"
)

var peerMAC = proto.MAC{2, 0, 0, 0, 0, 2}

func open10(t *testing.T) *stack {
	t.Helper()
	s, err := newStack(config{host: sockets.Config{Addrs: []sockets.Prefix{{Addr: 0x0a000001, Bits: 24}}}, frames: 256, now: 5})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// request is an ARP request for the stack's address.
func request() []byte {
	b := make([]byte, 64)
	n := proto.PutEthernet(b, proto.MAC{255, 255, 255, 255, 255, 255}, peerMAC, proto.EtherARP)
	return b[:n+proto.PutARP(b[n:], &proto.ARP{Op: proto.ARPRequest, SHA: peerMAC, SPA: 0x0a000002, THA: proto.MAC{}, TPA: 0x0a000001})]
}

// TestOutputFull: who never takes frames loses them, and reads how many.
func TestOutputFull(t *testing.T) {
	s := open10(t)
	defer s.close()
	const more = 100
	for range maxSent + more {
		if err := s.input(request()); err != 0 {
			t.Fatal(err)
		}
	}
	if n, _ := s.counter("output_full"); n != more {
		t.Errorf("%d frames were lost, want %d", n, more)
	}
	n := 0
	for buf := make([]byte, 64); ; n++ {
		if k, at, err := s.output(buf); k == 0 || at != 5 || err != 0 {
			break
		}
	}
	if n != maxSent {
		t.Errorf("%d frames can be taken, want %d", n, maxSent)
	}
}

// TestAdvance: the clock goes from timer to timer, no further than it is told, and not back. The only timers here are those of an
// address that nobody answers for: it is asked for once a second.
func TestAdvance(t *testing.T) {
	s := open10(t)
	defer s.close()
	if due := s.advance(1000, false); due != math.MaxInt64 || s.now != 1000 {
		t.Errorf("an idle stack: due at %d, now %d", due, s.now)
	}
	h, now, _ := s.r.Enter()
	if _, err := h.TCPDial(0x0a000001, 0, 0x0a000009, 80, now); err != 0 {
		t.Fatal(err)
	}
	s.r.Leave()
	due := s.run()
	if due <= 1000 || due > 2e9 {
		t.Errorf("a timer at %d", due)
	}
	if again := s.advance(due-1, false); again != due || s.now != due-1 {
		t.Errorf("before it: due at %d, now %d", again, s.now)
	}
	if next := s.advance(100e9, true); s.now != due || next <= due {
		t.Errorf("one step: now %d, the next at %d; the first was at %d", s.now, next, due)
	}
	s.advance(5, false)
	if s.now != due {
		t.Errorf("the clock went back to %d", s.now)
	}
	s.advance(10e9, false)
	times := map[int64]bool{}
	for buf := make([]byte, 64); ; {
		k, at, err := s.output(buf)
		if k == 0 || err != 0 {
			break
		}
		times[at] = true
	}
	if len(times) < 3 || s.now != 10e9 {
		t.Errorf("frames at %d times, now %d", len(times), s.now)
	}
}

// TestStackEnds: a stack that is closed keeps neither descriptors nor mappings, its rings neither.
func TestStackEnds(t *testing.T) {
	count := func() int {
		fds, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		maps, err := os.ReadFile("/proc/self/maps")
		if err != nil {
			t.Fatal(err)
		}
		return len(fds) + bytes.Count(maps, []byte("\n"))
	}
	cycle := func() {
		s := open10(t)
		for range 3 {
			if _, _, err := s.newRing(8, 1<<16); err != 0 {
				t.Fatal(err)
			}
		}
		if s.closeRing(2) != 0 || s.closeRing(2) != unix.EBADF {
			t.Error("a ring is closed once")
		}
		s.close()
	}
	cycle()
	before := count()
	for range 100 {
		cycle()
	}
	if after := count(); after > before+20 { // Go's own come and go
		t.Errorf("%d descriptors and mappings, there were %d", after, before)
	}
}
