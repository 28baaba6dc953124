package sockets

import (
	"bytes"
	"testing"
)

// TestReceiveShare: connections that nobody reads, each filled to the last byte of its window, leave memory to one that is
// read: its window stays open, and nothing of it is dropped.
func TestReceiveShare(t *testing.T) {
	const big = 1 << 20
	k := newKitOf(t, 8192, 2048, func(c *Config) { c.KernelNeighbours, c.RcvMax = true, big })
	l, _ := k.h.TCPListen(0, svc)
	open := func(port uint16) conn {
		p := newPeer(k, svc, port)
		synSent(k, p, concat(optMSS(1460), optWScale(7)))
		p.ackAll()
		c := conn{tpeer: p, l: l}
		var err Errno
		if c.h, err = k.h.TCPAccept(l); err != 0 {
			t.Fatal(err)
		}
		c.none()
		c.tcb().rcvBuf = big // as the buffer of one that was read until now
		return c
	}
	data := bytes.Repeat([]byte("x"), 1460)
	room := func(c conn) int { return int(c.tcb().rcvAdv - c.seq) }
	var stuck []conn
	for port := range uint16(30) {
		c := open(1000 + port)
		stuck = append(stuck, c)
		for room(c) >= len(data) {
			c.send(ack|psh, data)
			k.seen()
		}
	}
	good := open(2000)
	k.wantDrops(func() {
		for range 200 {
			if room(good) < 2*len(data) {
				t.Fatalf("the window of the one that is read is %d bytes; %d of %d frames are held", room(good), k.h.rxUsed, k.h.rxLimit)
			}
			good.send(ack|psh, data)
			k.seen()
			good.wantRead(data)
			k.seen()
		}
	}, nil)
	for _, c := range stuck {
		if c.tcb().rcvBytes == 0 {
			t.Error("one of the others holds nothing: nothing is tested")
		}
	}
}
