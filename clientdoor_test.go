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

// TestFreePorts: a user has no more of the free ports than he leaves to all others, of each transport; all come back.
func TestFreePorts(t *testing.T) {
	o := portOwners{ports: map[ownedPort][]portOwner{}, free: map[freeKey]int{}}
	at := map[uint8]int{}
	var taken []func()
	most := func(protocol uint8, uid uint32) (n int) {
		for ; at[protocol] < freePorts; n++ {
			k := ownedPort{protocol, uint16(freeFirst + at[protocol])}
			if o.take(k, 0, uid) != 0 {
				break
			}
			taken = append(taken, func() { o.give(k, 0, uid) })
			at[protocol]++
		}
		return n
	}
	if got := [...]int{most(17, 1), most(17, 2), most(6, 1), most(17, 3)}; got != [...]int{freePorts / 2, freePorts / 4, freePorts / 2, freePorts / 8} {
		t.Errorf("users have %v of %d ports", got, freePorts)
	}
	if err := o.take(ownedPort{17, 80}, 0, 1); err != 0 {
		t.Errorf("a port that is none of them: %v", err)
	}
	o.give(ownedPort{17, 80}, 0, 1)
	for _, give := range taken {
		give()
	}
	if len(o.ports)+len(o.free) != 0 {
		t.Errorf("%d ports and %d counts are left", len(o.ports), len(o.free))
	}
}
