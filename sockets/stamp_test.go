package sockets

import (
	"testing"

	"xdpd/umem"
)

func stamps(c *Config) { c.Stamps = true }

// injectAt has a frame come in with a stamp in front of it.
func (k *kit) injectAt(frame []byte, at umem.Stamp) {
	k.t.Helper()
	umem.PutStamp(k.pool.Chunk(k.fill[len(k.fill)-1])[umem.Headroom-umem.StampSize:], at)
	k.inject(frame)
}

func (k *kit) wantStamps(s Handle, want ...umem.Stamp) {
	k.t.Helper()
	for _, at := range want {
		if d, errno := k.h.UDPRecv(s, nil); errno != 0 || d.At != at {
			k.t.Errorf("errno %v, received at %#x, want %#x", errno, uint64(d.At), uint64(at))
		}
	}
}

// TestStamps: each datagram keeps the stamp of its frame, however long it waits; one in fragments has that of the frame that
// completed it.
func TestStamps(t *testing.T) {
	const hardware = umem.Stamp(1<<63 | 5)
	k := newKit(t, stamps)
	s := k.bind(0, 53)
	k.injectAt(udpFrame(1000, 53, []byte("x")), 7)
	k.injectAt(udpFrame(1000, 53, nil), hardware)
	pieces := ipPacket{proto: 17, id: 9, body: udpBytes(peerIP, usIP, 1000, 53, make([]byte, 3000))}.fragments(1400)
	for i, p := range pieces {
		k.injectAt(p, umem.Stamp(100+i))
	}
	k.wantStamps(s, 7, hardware, umem.Stamp(100+len(pieces)-1))
	if !hardware.Hardware() || hardware.Time() != 5 || umem.Stamp(7).Hardware() || umem.Stamp(7).Time() != 7 {
		t.Error("a stamp says something else")
	}

	k.injectAt(udpFrame(1000, 53, []byte("lent")), 8)
	f, d, errno := k.h.UDPTake(s, 1)
	if errno != 0 || d.At != 8 || string(k.pool.Data(f)) != "lent" {
		t.Errorf("lent: %v, %+v", errno, d)
	}
	k.h.Give(f)

	g := newGroup(t, stamps)
	s = g.b.bind(0, 53)
	g.a.injectAt(udpFrame(1000, 53, nil), 21)
	g.a.injectAt(udpFrame(1000, 53, nil), 22)
	g.b.injectAt(udpFrame(1000, 53, nil), 23)
	g.carry()
	g.b.wantStamps(s, 23, 21, 22)
}
