package xdpd

import (
	"testing"
	"time"
)

// TestDoors: as many handshakes of a user as may come at once are done at once, further ones at the rate, and no more wait than may;
// another user comes in all the while.
func TestDoors(t *testing.T) {
	d, now := doors{of: map[uint32]*door{}}, time.Unix(1000, 0)
	for i := range handshakeRate {
		if wait, ok := d.enter(1, now); wait != 0 || !ok {
			t.Fatalf("handshake %d: %v, %v", i, wait, ok)
		}
		d.leave(1)
	}
	for i := range maxWaiting {
		if wait, ok := d.enter(1, now); wait != time.Duration(i)*time.Second/handshakeRate || !ok {
			t.Fatalf("handshake %d beyond the rate: %v, %v", i, wait, ok)
		}
	}
	if _, ok := d.enter(1, now); ok {
		t.Error("one more waits than may")
	}
	for uid := range uint32(5000) {
		if wait, ok := d.enter(uid+2, now); wait != 0 || !ok {
			t.Fatalf("another user: %v, %v", wait, ok)
		}
		d.leave(uid + 2)
		now = now.Add(10 * time.Millisecond)
	}
	if n := len(d.of); n > 1000 {
		t.Errorf("%d users are remembered", n)
	}
	for range maxWaiting {
		d.leave(1)
	}
	if wait, ok := d.enter(1, now); wait != 0 || !ok {
		t.Errorf("after a while: %v, %v", wait, ok)
	}
}
