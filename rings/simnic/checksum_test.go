package simnic

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"xdpd/internal/seeds"
	"xdpd/rings"
	"xdpd/umem"
)

// finished computes RFC 1071 the long way.
func finished(b []byte) (high, low byte) {
	sum := 0
	for i, v := range b {
		if i%2 == 0 {
			sum += int(v) << 8
		} else {
			sum += int(v)
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	if sum ^= 0xffff; sum == 0 {
		sum = 0xffff
	}
	return byte(sum >> 8), byte(sum)
}

// A checksum that is asked for is finished over all of a packet's frames, in that packet only, and whatever the frames are
// sent with.
func TestTransmitChecksum(t *testing.T) {
	g := newRig(t, 64, 4, 64, 4, 64)
	g.nic.SetChecksum(true)
	seed := seeds.One(t)
	rnd := rand.New(rand.NewPCG(seed, 0))
	for range 5000 {
		packet, ask := make([]byte, 20+rnd.IntN(4000)), rnd.IntN(3) > 0
		for i := range packet {
			packet[i] = byte(rnd.Uint32()) * byte(rnd.IntN(2))
		}
		want, start, field := bytes.Clone(packet), rnd.IntN(10), rnd.IntN(4)*2+2
		if ask {
			want[start+field], want[start+field+1] = finished(packet[start:])
		}
		for at := 0; at < len(packet); {
			f := g.pool.Get(umem.TX)
			off := rings.TXMetadata + rnd.IntN(100)
			chunk := g.pool.Chunk(f)
			n := copy(chunk[off:], packet[at:min(len(packet), at+20+rnd.IntN(2000))])
			d := rings.Desc{Addr: g.pool.Region().Addr(f) + uint64(off), Len: uint32(n)}
			rings.AskChecksum(chunk[off-rings.TXMetadata:], start, field)
			if at == 0 && ask {
				d.Options = rings.DescMetadata
			}
			if at += n; at < len(packet) {
				d.Options |= rings.DescContinued
			}
			g.post(d)
		}
		var got [][]byte
		for g.nic.Transmit(1+rnd.IntN(3), func(packet []byte) { got = append(got, bytes.Clone(packet)) }) > 0 {
		}
		if len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Fatalf("seed %d: asked %v, %d packets, want one:\n% x\n% x", seed, ask, len(got), got, want)
		}
		g.nic.Complete(99)
		g.reap()
	}
}

// What the kernel refuses is refused: questions to a NIC that finishes nothing, unknown ones, a field outside the first
// frame, and a packet without room in front of it.
func TestTransmitChecksumRefused(t *testing.T) {
	for _, c := range []struct {
		on           bool
		off, n       int
		start, field int
		good         bool
	}{
		{true, 24, 60, 34, 16, true},
		{true, 24, 52, 34, 16, true},
		{true, 24, 51, 34, 16, false},
		{false, 24, 60, 34, 16, false},
		{true, 23, 60, 34, 16, false},
		{true, 24, 60, -1, 16, false},
	} {
		g := newRig(t, 8, 4, 16, 4, 16)
		g.nic.SetChecksum(c.on)
		chunk := g.pool.Chunk(0)
		if c.off >= rings.TXMetadata {
			if rings.AskChecksum(chunk[c.off-rings.TXMetadata:], c.start, c.field); c.start < 0 {
				chunk[c.off-rings.TXMetadata] |= 0x80
			}
		}
		g.post(rings.Desc{Addr: uint64(c.off), Len: uint32(c.n), Options: rings.DescMetadata})
		if sent := g.nic.Transmit(9, nil) == 1; sent != c.good || (g.stats().TxInvalidDescs == 0) != c.good {
			t.Errorf("%+v: sent %v, %+v", c, sent, g.stats())
		}
	}
}
