package reactor

import "xdpd/sockets"

// Rates are what the sockets of a ring may do in a second, in the long run; 0: as much as they can. What is beyond waits, as it does for a
// full queue. A tenth of a second's may come at once.
type Rates struct {
	Connects int64 `json:"connects"` // TCP connections begun and accepted
	Packets  int64 `json:"packets"`  // sent: as many as the data fills
	Bytes    int64 `json:"bytes"`    // of data sent
}

// MaxRate is the highest that can be kept.
const MaxRate = 1 << 33

// bucket holds something to a rate. It fills with time; more may be taken than there is, and is then waited for. It counts in billionths,
// so that nothing is lost between two looks at it.
type bucket struct {
	rate int64 // a second; 0: no limit
	left int64
	at   int64 // when left was right, ns
}

const burstNS = 100_000_000

// ok reports whether something may be taken now.
func (b *bucket) ok(now int64) bool {
	if b.rate == 0 {
		return true
	}
	if full := burstNS * b.rate; now-b.at > (full-b.left)/b.rate {
		b.left = full
	} else {
		b.left += (now - b.at) * b.rate
	}
	b.at = now
	return b.left >= 0
}

// ready is when ok says yes.
func (b *bucket) ready() int64 {
	if b.rate == 0 || b.left >= 0 {
		return b.at
	}
	return b.at + (-b.left+b.rate-1)/b.rate
}

func (b *bucket) take(n int) {
	if b.rate != 0 {
		b.left -= int64(n) * 1_000_000_000
	}
}

// What waits for a bucket.
const (
	slowConnect = iota // and accept
	slowSend
	slowKinds
)

// rates are a ring's buckets, and its sockets that wait for them: each as often as it is among them, in the order in which they came.
type rates struct {
	on       bool
	connects bucket
	packets  bucket
	bytes    bucket
	slow     [slowKinds]slowList
}

type slowList struct {
	ring    []uint32 // room for all sockets
	head, n int
	times   uint64 // that somebody had to wait
}

func newRates(r Rates, socks int) (t rates) {
	if t.on = r != (Rates{}); t.on {
		t.connects.rate, t.packets.rate, t.bytes.rate = r.Connects, r.Packets, r.Bytes
		for k := range t.slow {
			t.slow[k].ring = make([]uint32, socks)
		}
	}
	return t
}

// HeldBack is how often connections, and data to send, had to wait because of RingConfig.Rates. The caller holds the lock.
func (q *Ring) HeldBack() (connects, sends uint64) {
	return q.rates.slow[slowConnect].times, q.rates.slow[slowSend].times
}

func (t *rates) ok(kind int, now int64) bool {
	if kind == slowConnect {
		return t.connects.ok(now)
	}
	packets := t.packets.ok(now) // both are to be looked at
	return t.bytes.ok(now) && packets
}

func (t *rates) ready(kind int) int64 {
	if kind == slowConnect {
		return t.connects.ready()
	}
	return max(t.packets.ready(), t.bytes.ready())
}

// may reports whether a socket may connect, accept or send now. If not, it is looked at again when it may.
func (q *Ring) may(kind int, s uint32) bool {
	t := &q.rates
	if !t.on || t.ok(kind, q.now) {
		return true
	}
	l, k := &t.slow[kind], q.socks.at(s)
	if bit := uint8(1) << kind; k.slow&bit == 0 { // once; and who is closed stays until it is his turn
		k.slow |= bit
		l.ring[(l.head+l.n)%len(l.ring)] = s
		l.n++
		l.times++
	}
	return false
}

// sentData notes what was sent.
func (q *Ring) sentData(n int) {
	if !q.rates.on {
		return
	}
	full := q.r.host.MTU() - 40
	q.rates.packets.take(max(1, (n+full-1)/full))
	q.rates.bytes.take(n)
}

// serveSlow has sockets go on that waited for a bucket, as far as there is something in it.
func (q *Ring) serveSlow() (worked bool) {
	if !q.rates.on {
		return false
	}
	for kind := range q.rates.slow {
		l := &q.rates.slow[kind]
		for left := l.n; left > 0 && q.steps < maxSteps && q.rates.ok(kind, q.now); left-- {
			s := l.ring[l.head]
			l.head, l.n = (l.head+1)%len(l.ring), l.n-1
			q.socks.at(s).slow &^= 1 << kind
			if worked = true; q.socks.at(s).used {
				q.steps++
				q.retry(s, waitIn)
				q.retry(s, waitOut)
				q.pollSock(s)
				q.tellPollers(s, kind)
				q.settle()
			}
		}
	}
	return worked
}

// tellPollers tells the ring's pollers of what a socket may do again.
func (q *Ring) tellPollers(s uint32, kind int) {
	h, what := q.socks.at(s).h, sockets.Out
	if kind == slowConnect {
		what = sockets.In
	}
	if w := q.r.watches.find(h); w != nil {
		q.r.tell(sockets.Event{Sock: h, What: what, Times: 1}, w)
	}
}

// slowDeadline is when the first bucket has something for who waits for it.
func (q *Ring) slowDeadline() int64 {
	d := foreverNS
	for kind := range q.rates.slow {
		if q.rates.slow[kind].n > 0 {
			d = min(d, q.rates.ready(kind))
		}
	}
	return d
}

// slowed takes from what a socket is ready for what it may not do yet.
func (q *Ring) slowed(s uint32, ready sockets.Ready) sockets.Ready {
	switch k := q.socks.at(s); {
	case k.kind == sockListening && ready&sockets.In != 0 && !q.may(slowConnect, s):
		return ready &^ sockets.In
	case k.kind != sockListening && ready&(sockets.Out|sockets.Hup|sockets.Err) == sockets.Out && !q.may(slowSend, s):
		return ready &^ sockets.Out
	}
	return ready
}
