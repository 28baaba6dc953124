package xdpd

import (
	"maps"
	"sync"
	"sync/atomic"
	"time"
)

const (
	handshakeTime = time.Second
	// maxWaiting bounds a user's processes that are connected and have no ring yet: who connects and says nothing costs a descriptor
	// for a second, and keeps nobody out but himself.
	maxWaiting = 32
	// handshakeRate is how many handshakes of a user are done in a second, each of which makes and maps memory. As many may come at once;
	// those beyond wait their turn.
	handshakeRate = 500
	// refuseRest is how long nobody is let in after somebody was turned away at the door: who is turned away comes again, and nothing else could
	// be told from it by who accepts.
	refuseRest = 50 * time.Microsecond
	// knockRest is how long a client is not heard that knocked with nothing behind it. It doubles with each such knock, and of several such
	// clients each rests as much longer, so that all together cost as much as one.
	knockRest    = 20 * time.Microsecond
	knockRestMax = time.Millisecond
	knocksHeard  = 256 // at a time: who knocks before he is answered means the same
)

// doors are where processes wait for their handshakes, one for each user.
type doors struct {
	mu sync.Mutex
	of map[uint32]*door
}

type door struct {
	waiting int
	next    time.Time // when the next handshake may be, if it does not use what may come at once
}

// enter lets one more of a user's processes in, after a while, or not.
func (d *doors) enter(uid uint32, now time.Time) (wait time.Duration, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	u := d.of[uid]
	if u == nil {
		if len(d.of) >= 1000 { // of as many users those who were not here lately
			maps.DeleteFunc(d.of, func(_ uint32, u *door) bool { return u.waiting == 0 && u.next.Before(now.Add(-time.Second)) })
		}
		u = &door{}
		d.of[uid] = u
	}
	if u.waiting >= maxWaiting {
		return 0, false
	}
	u.waiting++
	if earliest := now.Add(-time.Second); u.next.Before(earliest) {
		u.next = earliest
	}
	wait = u.next.Sub(now)
	u.next = u.next.Add(time.Second / handshakeRate)
	return max(0, wait), true
}

// leave is for a process whose handshake is over.
func (d *doors) leave(uid uint32) {
	d.mu.Lock()
	d.of[uid].waiting--
	d.mu.Unlock()
}

// rests are clients that were just answered.
type rests struct{ n atomic.Int32 }

func (r *rests) rest(alone time.Duration) {
	time.Sleep(time.Duration(r.n.Add(1)) * alone)
	r.n.Add(-1)
}
