package rings

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"xdpd/internal/seeds"
	"xdpd/rings/internal/vethtest"
)

// rssAnswer is what a driver with Toeplitz says.
func rssAnswer(table []uint32, key []byte) []byte {
	b := command(rssHead/4, unix.ETHTOOL_GRSSH, 0, uint32(len(table)), uint32(len(key)))
	b[16] = 1
	for _, q := range table {
		b = binary.NativeEndian.AppendUint32(b, q)
	}
	return append(b, key...)
}

func TestParseRSS(t *testing.T) {
	table, key := []uint32{0, 1, 2, 3, 3, 2, 1, 70000}, []byte("forty bytes are what most devices have..")
	answer := rssAnswer(table, key)
	r, err := parseRSS(append(answer, 1, 2, 3))
	if err != nil || !slices.Equal(r.Table, table) || !bytes.Equal(r.Key, key) {
		t.Errorf("read %+v, %v", r, err)
	}
	for n := range answer {
		if r, err := parseRSS(answer[:n]); err == nil {
			t.Errorf("%d bytes of %d are read as %+v", n, len(answer), r)
		}
	}
	for name, c := range map[string]struct {
		at   int
		to   []uint32
		what string
	}{
		"no table":        {2, []uint32{0}, "no indirection table"},
		"no key":          {3, []uint32{0}, "no indirection table or no hash key"},
		"a huge table":    {2, []uint32{rssMaxTable + 1}, "65537 entries"},
		"a huge key":      {3, []uint32{rssMaxKey + 1}, "1025 bytes"},
		"both overflow":   {2, []uint32{1 << 30, 0xffffffff}, "1073741824 entries"},
		"more than there": {2, []uint32{9}, "bytes of"},
		"XOR":             {4, []uint32{2}, "function 0x2"},
		"no function":     {4, []uint32{0}, "function 0x0"},
		"symmetric":       {4, []uint32{0x0101}, "transformation 0x1"},
	} {
		b := bytes.Clone(answer)
		for i, v := range c.to {
			if c.at == 4 { // bytes, not a word
				b[16], b[17] = byte(v), byte(v>>8)
			} else {
				binary.NativeEndian.PutUint32(b[4*(c.at+i):], v)
			}
		}
		if r, err := parseRSS(b); err == nil || !strings.Contains(err.Error(), c.what) {
			t.Errorf("%s: %+v, %v; want an error with %q", name, r, err, c.what)
		}
	}
}

// TestParseRSSAnything: whatever a driver answers, it is an error or within the bounds.
func TestParseRSSAnything(t *testing.T) {
	seed := seeds.One(t)
	rng := rand.New(rand.NewPCG(seed, 0))
	good := 0
	for range 20_000 {
		b := rssAnswer(make([]uint32, 1<<rng.IntN(5)), make([]byte, 1+rng.IntN(20)))
		for range rng.IntN(3) {
			b[rng.IntN(len(b))] = byte(rng.Uint32()) >> rng.IntN(8)
		}
		b = b[:len(b)-max(0, rng.IntN(20)-15)]
		r, err := parseRSS(b)
		if err != nil {
			continue
		}
		good++
		if len(r.Table) == 0 || len(r.Key) == 0 || rssHead+4*len(r.Table)+len(r.Key) > len(b) {
			t.Fatalf("%d entries and a key of %d bytes out of %x", len(r.Table), len(r.Key), b)
		}
	}
	if good == 0 {
		t.Error("no answer was good")
	}
}

// driver answers as net/ethtool/ioctl.c does for a device with a table and a key.
type driver struct {
	table, second []uint32 // the table now, and, unless nil, at the second question
	key           []byte
	fields        map[uint32]uint64 // RXH_ flags of a kind of flow
	asked         int
}

func (d *driver) ask(c []byte) error {
	switch field(c, 0) {
	case unix.ETHTOOL_GRSSH:
		if d.asked++; d.asked == 2 && d.second != nil {
			d.table = d.second
		}
		table, key := field(c, 2), field(c, 3)
		if table != 0 && int(table) != len(d.table) || key != 0 && int(key) != len(d.key) {
			return unix.EINVAL
		}
		if answer := rssAnswer(d.table, d.key); table != 0 {
			copy(c, answer)
		} else {
			copy(c, answer[:rssHead])
		}
		return nil
	case unix.ETHTOOL_GRXFH:
		flags, ok := d.fields[field(c, 1)]
		if !ok {
			return unix.EOPNOTSUPP
		}
		binary.NativeEndian.PutUint64(c[8:], flags)
		return nil
	}
	return unix.EOPNOTSUPP
}

func TestReadRSSFromDriver(t *testing.T) {
	table, key := []uint32{3, 2, 1, 0}, bytes.Repeat([]byte{0x6d, 0x5a}, 20)
	both := map[uint32]uint64{unix.TCP_V4_FLOW: 0xf0, unix.UDP_V4_FLOW: 0x30}
	d := driver{table: table, key: key, fields: both}
	r, err := readRSS(d.ask)
	if err != nil || !slices.Equal(r.Table, table) || !bytes.Equal(r.Key, key) || r.TCP != 12 || r.UDP != 8 {
		t.Errorf("read %+v, %v", r, err)
	}
	if text := r.String(); text != "Toeplitz, a table of 4; TCP: addresses and ports; UDP: addresses" {
		t.Errorf("in words: %s", text)
	}
	d = driver{table: table, key: key, fields: map[uint32]uint64{unix.TCP_V4_FLOW: 0xf0}}
	if r, err := readRSS(d.ask); err != nil || r.TCP != 12 || r.UDP != 0 {
		t.Errorf("with TCP alone: %+v, %v", r, err)
	}
	for name, d := range map[string]*driver{
		"no table":          {key: key, fields: both},
		"no key":            {table: table, fields: both},
		"no fields":         {table: table, key: key},
		"other fields":      {table: table, key: key, fields: map[uint32]uint64{unix.TCP_V4_FLOW: 0x10}},
		"a table too large": {table: make([]uint32, rssMaxTable+1), key: key, fields: both},
		"one that grows":    {table: table, second: make([]uint32, 8), key: key, fields: both},
		"one that shrinks":  {table: table, second: []uint32{0}, key: key, fields: both},
	} {
		if r, err := readRSS(d.ask); err == nil || len(r.Table)+len(r.Key)+r.TCP+r.UDP != 0 {
			t.Errorf("%s: %+v, %v", name, r, err)
		}
	}
}

func TestHashFields(t *testing.T) {
	const src, dst, sport, dport = 1 << 4, 1 << 5, 1 << 6, 1 << 7 // RXH_, include/uapi/linux/ethtool.h
	for flags, want := range map[uint64]int{
		src | dst | sport | dport: 12, src | dst: 8,
		0: 0, src: 0, src | dst | dport: 0, sport | dport: 0, src | dst | 1<<3: 0, src | dst | sport | dport | 1<<2: 0,
		1 << 31: 0, 1<<40 | src | dst: 0,
	} {
		if got := hashFields(flags); got != want {
			t.Errorf("RXH flags %#x: %d bytes, want %d", flags, got, want)
		}
	}
}

// TestReadRSS: veth has no such thing; any other device of this machine says what makes sense, or why not.
func TestReadRSS(t *testing.T) {
	devices, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range devices {
		r, err := ReadRSS(d.Name)
		t.Logf("%s: %d entries, a key of %d bytes, TCP %d, UDP %d; %v", d.Name, len(r.Table), len(r.Key), r.TCP, r.UDP, err)
		n := QueueCount(d.Name, d.Index)
		for _, q := range r.Table {
			if n > 0 && int(q) >= n {
				t.Errorf("%s with %d queues steers to queue %d", d.Name, n, q)
			}
		}
		if err == nil && (len(r.Table) == 0 || len(r.Key) == 0 || r.TCP == 0 && r.UDP == 0) {
			t.Errorf("%s: no error and nothing known", d.Name)
		}
	}
	for _, name := range []string{"nosuch0", "", "a-name-of-more-than-fifteen-bytes"} {
		if _, err := ReadRSS(name); !errors.Is(err, unix.ENODEV) {
			t.Errorf("ReadRSS(%q): %v", name, err)
		}
		if n := ethtoolChannels(name); n != 0 {
			t.Errorf("%q has %d queues", name, n)
		}
	}
	p := vethtest.New(t, 3)
	if err := p.Do(func() error {
		if _, err := ReadRSS(vethtest.Dev); !errors.Is(err, unix.EOPNOTSUPP) {
			t.Errorf("veth: %v", err)
		}
		if n := QueueCount(vethtest.Dev, p.Ifindex); n != 3 {
			t.Errorf("veth with 3 queues has %d", n)
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestRingSizes(t *testing.T) {
	got, err := readRingSizes(func(b []byte) error {
		if len(b) != 36 || field(b, 0) != unix.ETHTOOL_GRINGPARAM {
			t.Errorf("asked %v", b)
		}
		copy(b[4:], command(8, 4096, 1, 2, 2048, 512, 3, 4, 256))
		return nil
	})
	if want := (RingSizes{RX: 512, MaxRX: 4096, TX: 256, MaxTX: 2048}); err != nil || got != want {
		t.Errorf("%+v, %v; want %+v", got, err, want)
	}
	if _, err := readRingSizes(func([]byte) error { return unix.EOPNOTSUPP }); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("a driver that does not say: %v", err)
	}
}
