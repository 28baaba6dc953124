package proto

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"

	"xdpd/internal/seeds"
)

// rssKey is the key of Microsoft's verification suite ("Verifying the RSS hash calculation"), which many drivers use.
var rssKey = []byte{
	0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0, 0xd0, 0xca, 0x2b, 0xcb,
	0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
}

// bitwise is the definition: the leftmost 32 bits of a key that moves on by one bit with each bit of the input.
func bitwise(key, input []byte) (h uint32) {
	bit := func(b []byte, i int) uint32 { return uint32(b[i/8]) >> (7 - i%8) & 1 }
	for i := range 8 * len(input) {
		if bit(input, i) == 0 {
			continue
		}
		window := uint32(0)
		for j := range 32 {
			window = window<<1 | bit(key, i+j)
		}
		h ^= window
	}
	return h
}

// whole has an indirection table so large that its entries show the hash's low 16 bits.
func whole(t *testing.T, key []byte, tcp, udp int) *RSS {
	t.Helper()
	table := make([]uint32, 1<<16)
	for i := range table {
		table[i] = uint32(i)
	}
	r, err := NewRSS(key, table, tcp, udp)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestToeplitzVerificationSuite(t *testing.T) {
	hash, ok := NewToeplitz(rssKey)
	if !ok {
		t.Fatal("no hash")
	}
	rss := whole(t, rssKey, RSSPorts, RSSAddrs)
	for _, c := range []struct {
		src, dst     string
		ports, addrs uint32
	}{
		{"66.9.149.187:2794", "161.142.100.80:1766", 0x51ccc178, 0x323e8fc2},
		{"199.92.111.2:14230", "65.69.140.83:4739", 0xc626b0ea, 0xd718262a},
		{"24.19.198.95:12898", "12.22.207.184:38024", 0x5c2b394a, 0xd2d0a5de},
		{"38.27.205.30:48228", "209.142.163.6:2217", 0xafc7327f, 0x82989176},
		{"153.39.163.191:44251", "202.188.127.2:1303", 0x10e828a2, 0x5d1809c5},
	} {
		from, to := netip.MustParseAddrPort(c.src), netip.MustParseAddrPort(c.dst)
		in := append(from.Addr().AsSlice(), to.Addr().AsSlice()...)
		in = binary.BigEndian.AppendUint16(in, from.Port())
		in = binary.BigEndian.AppendUint16(in, to.Port())
		if got := hash.Hash(in); got != c.ports {
			t.Errorf("%s to %s with ports: %08x, want %08x", c.src, c.dst, got, c.ports)
		}
		if got := hash.Hash(in[:RSSAddrs]); got != c.addrs {
			t.Errorf("%s to %s: %08x, want %08x", c.src, c.dst, got, c.addrs)
		}
		src, _ := AddrFrom(from.Addr())
		dst, _ := AddrFrom(to.Addr())
		if got := rss.Queue(ProtoTCP, src, dst, from.Port(), to.Port()); got != int(c.ports&0xffff) {
			t.Errorf("TCP from %s to %s: entry %04x of %08x", c.src, c.dst, got, c.ports)
		}
		if got := rss.Queue(ProtoUDP, src, dst, from.Port(), to.Port()); got != int(c.addrs&0xffff) {
			t.Errorf("UDP from %s to %s: entry %04x of %08x", c.src, c.dst, got, c.addrs)
		}
	}
}

func FuzzToeplitz(f *testing.F) {
	f.Add(rssKey, []byte("twelve bytes"))
	f.Add(make([]byte, 16), []byte{})
	f.Add(rssKey[:16], []byte{255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255, 255})
	f.Add(rssKey[:15], []byte{1})
	f.Fuzz(func(t *testing.T, key, input []byte) {
		input = input[:min(len(input), RSSPorts)]
		hash, ok := NewToeplitz(key)
		if ok != (len(key) >= 16) {
			t.Fatalf("a key of %d bytes: %v", len(key), ok)
		}
		if ok && hash.Hash(input) != bitwise(key, input) {
			t.Errorf("hash of %x under %x: %08x, bit by bit %08x", input, key, hash.Hash(input), bitwise(key, input))
		}
	})
}

func TestToeplitzBitByBit(t *testing.T) {
	seed := seeds.One(t)
	rng := rand.New(rand.NewPCG(seed, 2))
	for range 2000 {
		key, input := make([]byte, 16+rng.IntN(37)), make([]byte, rng.IntN(RSSPorts+1))
		for i := range key {
			key[i] = byte(rng.Uint32())
		}
		for i := range input {
			input[i] = byte(rng.Uint32())
		}
		hash, _ := NewToeplitz(key)
		if got, want := hash.Hash(input), bitwise(key, input); got != want {
			t.Fatalf("hash of %x under %x: %08x, bit by bit %08x", input, key, got, want)
		}
	}
}

func TestRSSRefusesWhatIsNotKnown(t *testing.T) {
	for name, c := range map[string]struct {
		key      []byte
		entries  int
		tcp, udp int
	}{
		"no key":       {nil, 128, 12, 12},
		"a short key":  {rssKey[:15], 128, 12, 12},
		"no table":     {rssKey, 0, 12, 12},
		"100 entries":  {rssKey, 100, 12, 12},
		"131072":       {rssKey, 1 << 17, 12, 12},
		"TCP 10 bytes": {rssKey, 128, 10, 12},
		"UDP -1 bytes": {rssKey, 128, 12, -1},
	} {
		if r, err := NewRSS(c.key, make([]uint32, c.entries), c.tcp, c.udp); err == nil || r != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	var none *RSS
	some := whole(t, rssKey, RSSPorts, 0)
	for name, q := range map[string]int{
		"nil":     none.Queue(ProtoTCP, 1, 2, 3, 4),
		"no UDP":  some.Queue(ProtoUDP, 1, 2, 3, 4),
		"no ICMP": some.Queue(ProtoICMP, 1, 2, 3, 4),
	} {
		if q != -1 {
			t.Errorf("%s: queue %d", name, q)
		}
	}
	if none.Hashed(ProtoTCP) != 0 || some.Hashed(ProtoTCP) != RSSPorts {
		t.Error("Hashed says something else")
	}
	if n := testing.AllocsPerRun(100, func() { some.Queue(ProtoTCP, 1, 2, 3, 4) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRSSQueue(b *testing.B) {
	r, err := NewRSS(rssKey, make([]uint32, 128), RSSPorts, RSSPorts)
	if err != nil {
		b.Fatal(err)
	}
	for i := range b.N {
		r.Queue(ProtoTCP, 1, 2, 3, uint16(i))
	}
}
