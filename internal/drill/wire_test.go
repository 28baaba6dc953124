package drill

import (
	"bytes"
	"encoding/binary"
	"strings"
	"testing"
)

// hostFrame is a good frame of the host's.
func hostFrame() []byte {
	s := segment{
		src: hostAddr, dst: peerAddr, sport: 80, dport: 40000, seq: 1000, ack: 2000, flags: ACK | PSH | URG, win: 3000, urg: 4,
		opts: []byte{1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2}, data: []byte("odd"), tos: 2, df: true, id: 77,
	}
	return ether(peerMAC, hostMAC, s.packet())
}

func TestDecode(t *testing.T) {
	s, err := decode(hostFrame())
	if err != nil {
		t.Fatal(err)
	}
	if s.sport != 80 || s.dport != 40000 || s.seq != 1000 || s.ack != 2000 || s.flags != ACK|PSH|URG || s.win != 3000 || s.urg != 4 ||
		len(s.opts) != 12 || string(s.data) != "odd" || s.tos != 2 || !s.df {
		t.Errorf("decoded %+v", s)
	}
	// 4502+0037+004d+4000+4006+0a00+0001+0a00+0002 = d98f, and its complement.
	if f := hostFrame(); binary.BigEndian.Uint16(f[etherLen+10:]) != 0x2670 {
		t.Errorf("IP checksum %x", f[etherLen+10:etherLen+12])
	}
}

// resum puts both checksums right again.
func resum(f []byte) {
	ip := f[etherLen:]
	copy(ip[10:12], []byte{0, 0})
	binary.BigEndian.PutUint16(ip[10:], ^uint16(onesSum(ip[:ipLen], 0)))
	tcp := ip[ipLen:]
	copy(tcp[16:18], []byte{0, 0})
	binary.BigEndian.PutUint16(tcp[16:], ^uint16(tcpSum(hostAddr, peerAddr, tcp)))
}

// TestDecodeFaults: whatever a receiver could object to is an error, and not only its checksum's.
func TestDecodeFaults(t *testing.T) {
	const ip, tcp = etherLen, etherLen + ipLen
	for _, c := range []struct {
		at   int
		to   byte
		sum  bool
		want string
	}{
		{0, 4, true, "a frame from"},
		{13, 6, true, "a frame of type"},
		{ip, 0x46, true, "header length"},
		{ip + 2, 9, true, "IP length"},
		{ip + 6, 0x20, true, "a fragment"},
		{ip + 8, 0, true, "TTL"},
		{ip + 9, 17, true, "IP protocol"},
		{ip + 11, 0, false, "IP checksum"},
		{tcp + 12, 0x40, true, "data offset"},
		{tcp + 12, 0xf0, true, "data offset"},
		{tcp + 12, 0x81, true, "reserved"},
		{tcp + 13, ACK, true, "urgent pointer without"},
		{tcp + 13, URG, true, "without ACK"},
		{tcp + 17, 1, false, "TCP checksum"},
		{len(hostFrame()) - 1, 'x', false, "TCP checksum"},
	} {
		f := hostFrame()
		f[c.at] = c.to
		if c.sum {
			resum(f)
		}
		if _, err := decode(f); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("byte %d as %#x: %v, want %q", c.at, c.to, err, c.want)
		}
	}
	for n := range len(hostFrame()) {
		if _, err := decode(hostFrame()[:n]); err == nil {
			t.Errorf("a frame cut to %d bytes is taken", n)
		}
	}
}

func TestSplitOptions(t *testing.T) {
	for _, c := range []struct {
		in   []byte
		want int // -1: an error
	}{
		{nil, 0},
		{[]byte{1, 1, 2, 4, 5, 180}, 3},
		{[]byte{2, 4, 5, 180, 0, 0, 0, 0}, 2},
		{[]byte{2, 4, 5, 180, 0, 0, 1, 0}, -1},
		{[]byte{2}, -1},
		{[]byte{2, 1}, -1},
		{[]byte{2, 5, 1, 1}, -1},
	} {
		got, err := splitOptions(c.in)
		if c.want < 0 && err == nil || c.want >= 0 && (err != nil || len(got) != c.want) {
			t.Errorf("% x: %d options, %v, want %d", c.in, len(got), err, c.want)
		}
		if err == nil && c.want > 0 && !bytes.HasPrefix(c.in, bytes.Join(got, nil)) {
			t.Errorf("% x became % x", c.in, got)
		}
	}
}
