package sockets

import "testing"

// urgentSeg is data with an urgent pointer n bytes behind its beginning.
func (c conn) urgentSeg(data string, n uint16) tcpSeg {
	s := c.seg(ack|urg, []byte(data))
	s.urgent = n
	return s
}

func (c conn) wantPri(want bool, when string) {
	c.k.t.Helper()
	if got := c.k.h.Ready(c.h)&Pri != 0; got != want {
		c.k.t.Errorf("%s: ready for Pri is %v", when, got)
	}
}

// TestUrgent: an urgent byte is in line, and makes the socket ready for Pri from its coming until it is read.
func TestUrgent(t *testing.T) {
	k, c := established(t)
	c.inject(c.urgentSeg("ab", 4)) // the pointer comes before its byte, "d"
	c.seq += 2
	c.wantPri(false, "the byte is not here yet")
	c.send(ack, []byte("cde"))
	c.wantPri(true, "here")
	buf := make([]byte, 3)
	if n, err := k.h.TCPRead(c.h, buf, k.now); n != 3 || err != 0 {
		t.Fatalf("%d, %v", n, err)
	}
	c.wantPri(true, "the reader stands before it")
	c.wantRead([]byte("de"))
	c.wantPri(false, "read")
	if len(k.h.tcp.urgent) != 0 {
		t.Error("its place is still there")
	}
	c.got()

	s := c.urgentSeg("fg", 1)
	s.seq -= 5 // an old pointer says nothing
	c.inject(s)
	c.wantPri(false, "an old one")
	c.got()
	c.inject(c.urgentSeg("fg", 1), c.urgentSeg("fg", 2)) // one further replaces the one before, one that came again does not
	c.seq += 2
	c.wantPri(true, "the last byte with FIN to come")
	c.send(fin|ack, nil)
	c.wantPri(true, "before the end of the stream")
	c.wantRead([]byte("fg"))
	c.wantPri(false, "at the end of the stream")
	c.got()
}

// TestUrgentLimit: places for urgent data are bounded, and come back with the connection.
func TestUrgentLimit(t *testing.T) {
	k, c := established(t)
	for i := range uint32(urgentMax) {
		k.h.tcp.urgent[1<<20+i] = 0
	}
	c.inject(c.urgentSeg("x", 1))
	c.wantPri(false, "past the limit")
	if k.h.counters.Stats[TCPUrgentLimit] != 1 {
		t.Error("it is not counted")
	}
	delete(k.h.tcp.urgent, 1<<20)
	c.seq++
	c.send(ack|urg, []byte("y")) // pointer 0: the first byte
	c.wantPri(true, "below the limit again")
	k.h.TCPAbort(c.h, k.now)
	k.sent()
	if len(k.h.tcp.urgent) != urgentMax-1 {
		t.Errorf("%d places after the connection went", len(k.h.tcp.urgent))
	}
}
