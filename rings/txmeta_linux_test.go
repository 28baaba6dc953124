package rings_test

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"xdpd/rings"
	"xdpd/rings/internal/vethtest"
	"xdpd/umem"
)

// ethtool runs ethtool -K on our end of the pair.
func ethtool(t testing.TB, p *vethtest.Pair, args ...string) {
	t.Helper()
	err := p.Do(func() error {
		if out, err := exec.Command("ethtool", append([]string{"-K", vethtest.Dev}, args...)...).CombinedOutput(); err != nil {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
	if err != nil {
		t.Fatalf("ethtool -K %s: %v", args, err)
	}
}

// sendAsking sends a packet cut into pieces of at most size bytes, of which the
// first asks for a checksum if field is not 0.
func sendAsking(t testing.TB, port *rings.Port, pool *umem.Pool, packet []byte, size, start, field int) (frames uint32) {
	t.Helper()
	for at := 0; at < len(packet); at += size {
		f := pool.Get(umem.TX)
		n := copy(pool.Chunk(f)[umem.Headroom:], packet[at:min(at+size, len(packet))])
		d := rings.Desc{Addr: pool.Region().Addr(f) + umem.Headroom, Len: uint32(n)}
		// What is in front of a packet that asks for nothing is nobody's business.
		meta := pool.Chunk(f)[umem.Headroom-rings.TXMetadata : umem.Headroom]
		for i := range meta {
			meta[i] = 0xff
		}
		if at == 0 && field > 0 {
			rings.AskChecksum(meta, start, field)
			d.Options = rings.DescMetadata
		}
		if at+n < len(packet) {
			d.Options |= rings.DescContinued
		}
		idx, got := port.TX.Reserve(1)
		if got == 0 {
			t.Fatal("the TX ring is full")
		}
		*port.TX.Slot(idx) = d
		port.TX.Submit(1)
		frames++
	}
	return frames
}

// onesSum is the folded ones-complement sum.
func onesSum(b []byte) uint16 {
	sum := uint32(0)
	for len(b) > 1 {
		sum += uint32(binary.BigEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		sum += uint32(b[0]) << 8
	}
	sum = sum>>16 + sum&0xffff
	return uint16(sum>>16 + sum)
}

// A veth passes a packet on as it is, and the sum is computed as soon as its
// offload is switched off, under an open socket as well.
func TestSocketChecksum(t *testing.T) {
	const start, field = 34, 16
	p, r := vethtest.New(t, 1), region(t)
	s, pool := mustOpen(t, p, r, rings.SocketOptions{Checksum: true, SG: true}), newPool(r)
	peer, port := p.Packet(t), s.Port()
	if err := s.NoChecksum(); err != nil || !port.Checksum || port.Metadata {
		t.Fatalf("a veth finishes no checksums: %v; port %+v", err, port)
	}
	try := func(n, size int, ask, finished bool) {
		t.Helper()
		packet := vethtest.Frame(uint32(n), n)
		binary.BigEndian.PutUint16(packet[start+field:], 0x1234)
		want := bytes.Clone(packet)
		if finished {
			binary.BigEndian.PutUint16(want[start+field:], ^onesSum(packet[start:]))
		}
		offset := 0
		if ask {
			offset = field
		}
		frames := sendAsking(t, port, pool, packet, size, start, offset)
		kick(t, port)
		if got := peer.Receive(); !bytes.Equal(got, want) {
			t.Fatalf("of %d bytes in frames of %d, asked: %v: got %x, want %x", n, size, ask, got, want)
		}
		reap(t, port, pool, frames)
	}
	for _, off := range []bool{false, true} {
		if off {
			ethtool(t, p, "tx", "off")
		}
		for _, n := range []int{52, 60, 61, 1000, 1513, 1514} {
			for _, size := range []int{1792, 700, 301} {
				try(n, size, true, off)
				try(n, size, false, false)
			}
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = mustOpen(t, p, r, rings.SocketOptions{Checksum: true})
	if err := s.NoChecksum(); err == nil || s.Port().Checksum || !strings.Contains(err.Error(), "ethtool -K") {
		t.Errorf("with tx off: Checksum %v, %v", s.Port().Checksum, err)
	}
	ethtool(t, p, "tx", "on")
	for _, o := range []rings.SocketOptions{{Shared: s, Checksum: true}, {Shared: s}} {
		shared := mustOpen(t, p, r, o)
		if shared.Port().Checksum != o.Checksum || (shared.NoChecksum() == nil) != o.Checksum {
			t.Errorf("shared, asked %v: Checksum %v, %v", o.Checksum, shared.Port().Checksum, shared.NoChecksum())
		}
		shared.Close()
	}
}

func TestSocketChecksumNotAsked(t *testing.T) {
	p, r := vethtest.New(t, 1), region(t)
	s := mustOpen(t, p, r, rings.SocketOptions{})
	if s.Port().Checksum || s.NoChecksum() == nil {
		t.Errorf("Checksum %v, %v", s.Port().Checksum, s.NoChecksum())
	}
	shared := mustOpen(t, p, r, rings.SocketOptions{Shared: s, Checksum: true})
	if shared.Port().Checksum || shared.NoChecksum() == nil {
		t.Errorf("shared with one that was not: Checksum %v, %v", shared.Port().Checksum, shared.NoChecksum())
	}
}

func TestAsked(t *testing.T) {
	meta := bytes.Repeat([]byte{0xff}, rings.TXMetadata)
	if _, _, ok := rings.Asked(meta); ok {
		t.Error("garbage is taken for a question")
	}
	rings.AskChecksum(meta, 300, 16)
	if start, field, ok := rings.Asked(meta); start != 300 || field != 16 || !ok {
		t.Errorf("asked for 16 behind 300, got %d behind %d, %v", field, start, ok)
	}
	rings.AskNothing(meta)
	if _, field, ok := rings.Asked(meta); field != 0 || !ok {
		t.Errorf("asked for nothing, got %d, %v", field, ok)
	}
}
