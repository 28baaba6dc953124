package reactor

import (
	"testing"

	"xdpd/sockets"
)

// TestHandOverStalled: however many peers do not run, no more than half of a pool is away with them, and none has more
// than a quarter.
func TestHandOverStalled(t *testing.T) {
	rigs, reactors, _ := newRigs(t, 5, options{})
	if _, err := NewGroup(reactors, GroupConfig{}); err != nil {
		t.Fatal(err)
	}
	a := rigs[0]
	a.settle()
	for i, b := range rigs[1:] {
		b.bind(uint16(100 + i))
		for range 200 {
			a.deliver(a.udpFrame(uint16(100+i), []byte("x")))
			a.settle()
		}
		want := min((i+1)*a.pool.Total()/4, a.pool.Total()/2)
		if got := a.r.Away(); got != want {
			t.Errorf("%d frames are away with %d reactors, want %d", got, i+1, want)
		}
	}
	for _, b := range rigs[1:] {
		b.settle()
	}
	if got := a.r.Away(); got != 0 {
		t.Errorf("%d frames did not come back", got)
	}
}

// TestHandOverBlocked: who waits for frames when they are away with others hears of it when they are back, though frames
// that come back wake nobody.
func TestHandOverBlocked(t *testing.T) {
	rigs, reactors, _ := newRigs(t, 3, options{})
	if _, err := NewGroup(reactors, GroupConfig{}); err != nil {
		t.Fatal(err)
	}
	a := rigs[0]
	a.meet()
	s := a.bind(echoPort)
	for i, b := range rigs[1:] {
		b.bind(uint16(100 + i))
		for range a.pool.Total() / 4 {
			a.deliver(a.udpFrame(uint16(100+i), []byte("x")))
			a.settle()
		}
	}
	a.enter(func(h *sockets.Host, now int64) {
		_, limit, _, _ := h.Held()
		for range limit {
			a.deliver(a.udpFrame(echoPort, []byte("x")))
			a.r.receive(now)
		}
		if errno := h.UDPSend(s, make([]byte, 60_000), peerPort, now); errno != sockets.EAGAIN {
			t.Fatalf("sending with %d free frames: %v", a.pool.Avail(), errno)
		}
	})
	if d := a.settle(); a.r.inTX != 0 || !a.host.Blocked() || d > a.clock.Now()+blockedNS {
		t.Fatalf("%d frames with the device, blocked %v: the next turn is %d ns away", a.r.inTX, a.host.Blocked(), d-a.clock.Now())
	}
	for _, b := range rigs[1:] {
		b.settle()
	}
	a.settle()
	if a.host.Ready(s)&sockets.Out == 0 {
		t.Error("the frames are back, and the sender still waits")
	}
}

// newHandLoad is a pair of reactors without a ledger: what comes to one is for a socket of the other, or of its own.
func newHandLoad(t testing.TB, own bool) (turn func()) {
	rigs, reactors, _ := newRigs(t, 2, options{noLedger: true})
	if _, err := NewGroup(reactors, GroupConfig{}); err != nil {
		t.Fatal(err)
	}
	a, b := rigs[0], rigs[1]
	if own {
		b = a
	}
	s := b.bind(echoPort)
	for _, g := range rigs {
		g.settle()
	}
	frame, buf := append([]byte{}, a.udpFrame(echoPort, make([]byte, 64))...), make([]byte, 100)
	return func() {
		for range burst / 2 {
			a.deliver(frame)
		}
		a.r.Turn()
		if b != a {
			b.r.Turn()
		}
		h, _, _ := b.r.Enter()
		for n := 0; ; n++ {
			if _, errno := h.UDPRecv(s, buf); errno != 0 {
				if n != burst/2 {
					t.Fatalf("%d of %d datagrams", n, burst/2)
				}
				break
			}
		}
		b.r.Leave()
	}
}

func TestNoAllocationHandOver(t *testing.T) {
	turn := newHandLoad(t, false)
	turn() // makes the lane
	if n := testing.AllocsPerRun(100, turn); n != 0 {
		t.Errorf("%v allocations in a turn of %d packets", n, burst/2)
	}
}

// BenchmarkHandOver is what a datagram costs that another reactor of the same goroutine receives, and one that comes in
// where its socket is.
func BenchmarkHandOver(b *testing.B) {
	for name, own := range map[string]bool{"direct": true, "over": false} {
		b.Run(name, func(b *testing.B) {
			turn := newHandLoad(b, own)
			for b.Loop() {
				turn()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*burst/2), "ns/packet")
		})
	}
}
