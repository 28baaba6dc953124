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
